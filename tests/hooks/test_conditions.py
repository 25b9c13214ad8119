"""Conditional hooks: ``when=``, and the ready-made conditions, by properties too."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import PATIENCE

import amorsize
from amorsize import HookContext, HookEvent, HookManager, every, function, on_failure, slower_than
from amorsize.errors import InvalidTypeError, InvalidValueError

PROGRESS = HookEvent.ON_PROGRESS
POST = HookEvent.POST_EXECUTE


def test_a_hook_is_called_where_its_condition_holds(hooks: HookManager) -> None:
    """Anything true will do; what it passed over is no call."""
    seen: list[int] = []
    hooks.register(
        PROGRESS,
        lambda ctx: seen.append(ctx.items_completed),
        when=lambda ctx: ctx.items_completed,
    )
    for completed in (0, 1, 0, 2):
        hooks.trigger(HookContext(PROGRESS, items_completed=completed))
    assert seen == [1, 2]
    assert hooks.get_stats()["call_counts"]["on_progress"] == 2


def test_a_condition_that_raises_counts_as_a_failure_of_the_hook(
    hooks: HookManager, caplog: pytest.LogCaptureFixture
) -> None:
    """The hook is not called, the others are, and the log has the traceback."""
    seen: list[str] = []

    def broken(context: HookContext) -> bool:
        raise LookupError("no such key")

    hooks.register(PROGRESS, lambda _: seen.append("conditional"), when=broken)
    hooks.register(PROGRESS, lambda _: seen.append("other"))
    hooks.trigger(HookContext(PROGRESS))
    assert seen == ["other"]
    assert hooks.get_stats()["error_counts"] == {"on_progress": 1}
    assert "no such key" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [True, "on_failure", lambda: True, every, slower_than],
    ids=["bool", "string", "no-argument", "every-class", "slower-than-class"],
)
def test_what_is_no_condition_is_refused_at_registration(hooks: HookManager, wrong: Any) -> None:
    """``when=every`` without its parentheses too."""
    with pytest.raises(InvalidTypeError, match=r"when must be|a condition is called with one"):
        hooks.register(PROGRESS, print, when=wrong)
    assert not hooks.has_hooks()


def test_an_asynchronous_condition_is_refused(hooks: HookManager) -> None:
    """A coroutine is true, always."""

    async def condition(context: HookContext) -> bool:
        return False

    with pytest.raises(InvalidTypeError, match="when must be a plain function"):
        hooks.register(PROGRESS, print, when=condition)


# --- every ----


@given(
    seconds=st.floats(0.1, 100),
    steps=st.lists(st.floats(0, 50), max_size=40),
)
def test_every_seconds_passes_the_first_and_none_too_soon(
    seconds: float, steps: list[float]
) -> None:
    """Contexts that pass are at least that far apart; the first later one passes."""
    condition = every(seconds=seconds)
    now, last = 1000.0, None
    for step in steps:
        now += step
        due = last is None or now - last >= seconds
        assert condition(HookContext(PROGRESS, timestamp=now)) is due
        if due:
            last = now


def test_every_seconds_survives_a_clock_that_is_set_back() -> None:
    """A hook that is silent for an hour after midnight's correction would be missed."""
    condition = every(seconds=5)
    answers = [condition(HookContext(PROGRESS, timestamp=t)) for t in (1000.0, 10.0, 12.0, 15.0)]
    assert answers == [True, True, False, True]


@given(
    items=st.integers(1, 50),
    events=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=60),
)
def test_every_items_passes_once_for_each_multiple_reached_in_each_execution(
    items: int, events: list[tuple[int, int]]
) -> None:
    """Executions that run at the same time do not count for each other."""
    condition = every(items=items)
    completed: dict[int, int] = {}
    for execution, step in events:
        before = completed.get(execution, 0)
        completed[execution] = before + step
        context = HookContext(
            PROGRESS,
            items_completed=before + step,
            metadata={"execution_id": str(execution)},
        )
        assert condition(context) is ((before + step) // items > before // items)


def test_every_passes_once_when_several_threads_ask() -> None:
    """A manager may be shared by executions of several threads."""
    for _ in range(20):
        for condition in (every(seconds=3600), every(items=5)):
            answers: list[bool] = []
            start = threading.Barrier(4)

            def ask(condition: every = condition, start: threading.Barrier = start) -> None:
                context = HookContext(PROGRESS, timestamp=1000.0, items_completed=7)
                start.wait(PATIENCE)
                answers.append(condition(context))  # noqa: B023  # joined below

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert sorted(answers) == [False, False, False, True]


def test_every_items_forgets_old_executions() -> None:
    """A service that runs for months does not fill its memory."""
    condition = every(items=1)
    for number in range(2000):
        condition(HookContext(PROGRESS, items_completed=1, metadata={"execution_id": str(number)}))
    assert len(condition._reached) == 1000


def test_each_registration_counts_for_itself(hooks: HookManager) -> None:
    """One object given to two hooks, and to two events, is four counts."""
    seen: list[str] = []
    condition = every(seconds=60)
    for event in (PROGRESS, POST):
        hooks.register(event, lambda ctx: seen.append(f"a {ctx.event}"), when=condition)
        hooks.register(event, lambda ctx: seen.append(f"b {ctx.event}"), when=condition)
    for event in (PROGRESS, PROGRESS, POST):
        hooks.trigger(HookContext(event))
    assert seen == ["a on_progress", "b on_progress", "a post_execute", "b post_execute"]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: every(), InvalidTypeError, "either seconds= or items="),
        (lambda: every(seconds=1, items=1), InvalidTypeError, "either seconds= or items="),
        (lambda: every(seconds=0), InvalidValueError, "above 0 seconds, and finite; got 0"),
        (lambda: every(seconds=float("nan")), InvalidValueError, "finite; got nan"),
        (lambda: every(seconds="5"), InvalidTypeError, "a number of seconds; got '5'"),
        (lambda: every(items=0), InvalidValueError, "1 or more; got 0"),
        (lambda: every(items=1.5), InvalidTypeError, "a whole number; got 1.5"),
        (lambda: every(items=True), InvalidTypeError, "a whole number; got True"),
        (lambda: slower_than(-1), InvalidValueError, "above 0 seconds"),
        (lambda: function(3), InvalidTypeError, "a pattern, a string; got 3"),
        (lambda: function(""), InvalidValueError, "such as 'pkg.mod"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused_when_it_is_made(
    make: Any, kind: type[Exception], message: str
) -> None:
    """The message says what was given and what is allowed."""
    with pytest.raises(kind, match=message):
        make()


# --- the others ----


@given(limit=st.floats(0.001, 1e6), took=st.floats(0, 1e6))
def test_slower_than_looks_at_the_chunk_or_else_at_the_run(limit: float, took: float) -> None:
    """The event decides which."""
    condition = slower_than(limit)
    chunk = HookContext(HookEvent.ON_CHUNK_COMPLETE, chunk_id=0, chunk_time=took, elapsed_time=2e6)
    run = HookContext(POST, elapsed_time=took, chunk_time=2e6)
    assert condition(chunk) is condition(run) is (took > limit)


@pytest.mark.parametrize(
    ("context", "failed"),
    [
        (HookContext(HookEvent.ON_ERROR, error=ValueError()), True),
        (HookContext(POST, metadata={"status": "cancelled"}), True),
        (HookContext(POST, metadata={"status": "ok"}), False),
        (HookContext(HookEvent.ON_WORKER_END, metadata={"exit_reason": "died"}), True),
        (HookContext(HookEvent.ON_WORKER_END, metadata={"exit_reason": "finished"}), False),
        (HookContext(HookEvent.ON_CHUNK_COMPLETE, metadata={"failed_items": 1}), True),
        (HookContext(HookEvent.ON_CHUNK_COMPLETE, metadata={"failed_items": 0}), False),
        (HookContext(PROGRESS), False),
    ],
)
def test_on_failure_holds_where_something_went_wrong(context: HookContext, failed: bool) -> None:
    """Whatever the event calls it."""
    assert on_failure(context) is failed


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("etl.load.*", True), ("etl.*", True), ("*rows", True), ("ETL.*", False), ("etl", False)],
)
def test_function_matches_the_name_in_the_events(pattern: str, matches: bool) -> None:
    """As ``fnmatch`` does, upper and lower case apart; no name matches nothing."""
    context = HookContext(POST, metadata={"function": "etl.load.rows"})
    assert function(pattern)(context) is matches
    assert function(pattern)(HookContext(POST)) is False


def test_conditions_of_one_kind_and_value_are_equal_and_show_themselves() -> None:
    """So that registering the same thing twice is the same thing."""
    for make in (
        lambda: every(seconds=5),
        lambda: every(items=5),
        lambda: slower_than(5),
        lambda: function("a.*"),
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
        assert eval(repr(make())) == make()
    assert len({every(seconds=5), every(items=5), slower_than(5)}) == 3
    assert every(seconds=5) != 5


def test_conditions_hold_in_a_run_of_every_engine(hooks: HookManager, mode: str) -> None:
    """Fifty items, reported at every tenth; a failing run reports its end."""
    noted: list[int] = []
    failed: list[str] = []
    hooks.register(PROGRESS, lambda ctx: noted.append(ctx.items_completed), when=every(items=10))
    hooks.register(POST, lambda ctx: failed.append(ctx.metadata["status"]), when=on_failure)
    hooks.register(POST, lambda ctx: failed.append("never"), when=function("other.*"))
    amorsize.execute(abs, range(50), executor=mode, n_jobs=1, chunksize=1, hooks=hooks)
    assert noted == [10, 20, 30, 40, 50]
    assert failed == []
    with pytest.raises(TypeError):
        amorsize.execute(abs, ["x"], executor=mode, n_jobs=1, hooks=hooks)
    assert failed == ["error"]
