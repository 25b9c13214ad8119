"""Registration and order, by properties: random registrations against a plain list; and threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from waiting import PATIENCE

from amorsize import HookContext, HookEvent, HookManager
from amorsize.errors import InvalidTypeError, InvalidValueError

PROGRESS = HookEvent.ON_PROGRESS
EVENTS = [PROGRESS, HookEvent.POST_EXECUTE]


class Hook:
    """A hook that notes its name, and may fail."""

    def __init__(self, name: int, notes: list[int]) -> None:
        self.name = name
        self.notes = notes

    def __call__(self, context: HookContext) -> None:
        self.notes.append(self.name)
        if self.name % 3 == 0:
            raise ValueError(self.name)


class RandomRegistrations(RuleBasedStateMachine):
    """What a manager does, whatever it is asked, beside the simplest thing that could say so."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[int] = []
        self.hooks = [Hook(number, self.notes) for number in range(6)]
        self.manager = HookManager()
        self.model: dict[HookEvent, list[tuple[int, int]]] = {event: [] for event in EVENTS}
        self.calls = dict.fromkeys(EVENTS, 0)
        self.errors = dict.fromkeys(EVENTS, 0)

    @rule(event=st.sampled_from(EVENTS), number=st.integers(0, 5), priority=st.integers(-2, 2))
    def register(self, event: HookEvent, number: int, priority: int) -> None:
        registered = {name: rank for rank, name in self.model[event]}
        if registered.get(number, priority) != priority:
            with pytest.raises(InvalidValueError, match="unregister it first"):
                self.manager.register(event, self.hooks[number], priority=priority)
            return
        self.manager.register(event, self.hooks[number], priority=priority)
        if number not in registered:
            self.model[event].append((priority, number))

    @rule(event=st.sampled_from(EVENTS), number=st.integers(0, 5))
    def unregister(self, event: HookEvent, number: int) -> None:
        known = [each for each in self.model[event] if each[1] == number]
        assert self.manager.unregister(event, self.hooks[number]) is bool(known)
        self.model[event] = [each for each in self.model[event] if each[1] != number]

    @rule(event=st.one_of(st.none(), st.sampled_from(EVENTS)))
    def unregister_all(self, event: HookEvent | None) -> None:
        events = EVENTS if event is None else [event]
        assert self.manager.unregister_all(event) == sum(len(self.model[each]) for each in events)
        for each in events:
            self.model[each] = []

    @rule(timed=st.booleans())
    def time(self, timed: bool) -> None:
        self.manager.timed = timed
        assert self.manager.timed is timed

    @rule(event=st.sampled_from(EVENTS), times=st.integers(1, 3))
    def trigger(self, event: HookEvent, times: int) -> None:
        expected = [name for _, name in sorted(self.model[event], key=lambda each: -each[0])]
        for _ in range(times):
            self.notes.clear()
            self.manager.trigger(HookContext(event))
            assert self.notes == expected
        self.calls[event] += times * len(expected)
        self.errors[event] += times * sum(name % 3 == 0 for name in expected)

    @invariant()
    def counts(self) -> None:
        stats = self.manager.get_stats()
        for event in EVENTS:
            assert self.manager.get_hook_count(event) == len(self.model[event])
            assert self.manager.has_hooks(event) is bool(self.model[event])
            assert stats["call_counts"][event] == self.calls[event]
            assert stats["error_counts"].get(event, 0) == self.errors[event]
        assert stats["hook_counts"] == dict.fromkeys(HookEvent, 0) | {
            event: len(hooks) for event, hooks in self.model.items()
        }


RandomRegistrations.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None
)
TestRandomRegistrations = RandomRegistrations.TestCase


@given(priorities=st.lists(st.integers(-5, 5), max_size=12))
def test_hooks_run_by_priority_and_then_in_the_order_of_their_registration(
    priorities: list[int],
) -> None:
    """Higher first; Python's sort is stable, and so is this."""
    hooks, order = HookManager(), []
    for number, priority in enumerate(priorities):
        hooks.register(PROGRESS, lambda _, n=number: order.append(n), priority=priority)
    hooks.trigger(HookContext(PROGRESS))
    assert order == sorted(range(len(priorities)), key=lambda number: -priorities[number])


@pytest.mark.parametrize("priority", ["high", 1.5, None, True])
def test_a_priority_is_a_whole_number(hooks: HookManager, priority: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidTypeError, match="whole number, higher first; got"):
        hooks.register(PROGRESS, print, priority=priority)


@settings(max_examples=15, deadline=None)
@given(
    plan=st.lists(
        st.lists(st.sampled_from(["trigger", "register", "time", "untime", "stats"]), max_size=25),
        min_size=2,
        max_size=4,
    )
)
def test_threads_that_register_trigger_and_time_lose_no_call(plan: list[list[str]]) -> None:
    """Whatever they do at the same time, a steady hook is called once a trigger, and counted."""
    hooks = HookManager()
    seen: list[int] = []
    conditional: list[int] = []
    hooks.register(PROGRESS, lambda _: seen.append(1))
    hooks.register(PROGRESS, lambda _: conditional.append(1), when=lambda _: True)
    start = threading.Barrier(len(plan))

    def work(actions: list[str]) -> None:
        start.wait(PATIENCE)
        for action in actions:
            if action == "trigger":
                hooks.trigger(HookContext(PROGRESS))
            elif action == "register":
                with hooks.register(PROGRESS, lambda _: None, priority=1):
                    pass
            elif action == "stats":
                hooks.get_stats()
            else:
                hooks.timed = action == "time"

    threads = [threading.Thread(target=work, args=(actions,)) for actions in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    triggers = sum(actions.count("trigger") for actions in plan)
    assert len(seen) == len(conditional) == triggers
    steady = [
        each["calls"]
        for name, each in hooks.get_stats()["hooks"]["on_progress"].items()
        if name.endswith("<lambda>")
    ]
    # All lambdas of this function share one name; those that came and went were called at most
    # once a trigger each.
    assert sum(steady) >= 2 * triggers
    assert hooks.get_hook_count() == 2
