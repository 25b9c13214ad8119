"""Hooks by decoration: functions, several events, methods of a class."""

from __future__ import annotations

from typing import Any

import pytest

import amorsize
from amorsize import HookContext, HookEvent, HookManager, every, get_default_manager
from amorsize.errors import InvalidTypeError, InvalidValueError

PROGRESS = HookEvent.ON_PROGRESS
ERROR = HookEvent.ON_ERROR
POST = HookEvent.POST_EXECUTE


def test_a_decorated_function_is_registered_and_stays_what_it_was(hooks: HookManager) -> None:
    """It can be called, tested and imported like before."""
    received: list[HookEvent] = []

    def note(context: HookContext) -> str:
        received.append(context.event)
        return "noted"

    assert hooks.on(PROGRESS)(note) is note
    assert note(HookContext(ERROR)) == "noted"
    hooks.trigger(HookContext(PROGRESS))
    hooks.trigger(HookContext(ERROR))
    assert received == [ERROR, PROGRESS]


def test_one_decorator_takes_several_events_and_options(hooks: HookManager) -> None:
    """The options hold for each of the events."""
    received: list[str] = []

    @hooks.on(PROGRESS, POST, priority=1, when=lambda context: context.items_completed > 1)
    def first(context: HookContext) -> None:
        received.append("first")

    hooks.register(POST, lambda _: received.append("earlier, of a lower priority"))
    for event in (PROGRESS, POST):
        hooks.trigger(HookContext(event, items_completed=1))
    assert received == ["earlier, of a lower priority"]
    hooks.trigger(HookContext(POST, items_completed=2))
    assert received[1:] == ["first", "earlier, of a lower priority"]


def test_decorators_stack(hooks: HookManager) -> None:
    """Each adds its events; a method may have several, too."""

    class Watch:
        @hooks.on(PROGRESS)
        @hooks.on(ERROR, priority=3)
        def see(self, context: HookContext) -> None: ...

    hooks.attach(Watch())
    assert hooks.get_hook_count(PROGRESS) == hooks.get_hook_count(ERROR) == 1


def test_methods_are_registered_with_each_object_and_let_go_with_the_handle(
    hooks: HookManager,
) -> None:
    """The class alone registers nothing: there is no object to call the method with."""

    class Watch:
        def __init__(self, name: str) -> None:
            self.received = [name]

        @hooks.on(PROGRESS, POST)
        def see(self, context: HookContext) -> None:
            self.received.append(context.event.value)

        @hooks.on(POST)
        async def see_later(self, context: HookContext) -> None:
            self.received.append("later")

    assert not hooks.has_hooks()
    first, second = Watch("first"), Watch("second")
    with hooks.attach(first):
        handle = hooks.attach(second)
        hooks.trigger(HookContext(PROGRESS))
    hooks.trigger(HookContext(POST))
    assert hooks.drain()
    handle.close()
    hooks.trigger(HookContext(POST))
    assert first.received == ["first", "on_progress"]
    assert second.received == ["second", "on_progress", "post_execute", "later"]
    assert not hooks.has_hooks()
    hooks.close()


def test_methods_of_a_base_class_count_and_an_override_decides_for_itself(
    hooks: HookManager,
) -> None:
    """A method that a subclass overrides without the decorator is not a hook."""

    class Base:
        received: tuple[str, ...] = ()

        @hooks.on(PROGRESS)
        def kept(self, context: HookContext) -> None:
            self.received += ("kept",)

        @hooks.on(PROGRESS)
        def replaced(self, context: HookContext) -> None:
            self.received += ("replaced",)

    class Derived(Base):
        def replaced(self, context: HookContext) -> None:
            self.received += ("not a hook",)

    watch = Derived()
    hooks.attach(watch)
    hooks.trigger(HookContext(PROGRESS))
    assert watch.received == ("kept",)


def test_a_static_method_is_a_function_and_registered_at_once(hooks: HookManager) -> None:
    """It needs no object."""
    received: list[HookEvent] = []

    class Watch:
        @hooks.on(PROGRESS)
        @staticmethod
        def outside(context: HookContext) -> None:
            received.append(context.event)

        @staticmethod
        @hooks.on(PROGRESS)
        def inside(context: HookContext) -> None:
            received.append(context.event)

    assert Watch.outside is not Watch.inside
    hooks.trigger(HookContext(PROGRESS))
    assert received == [PROGRESS, PROGRESS]


def test_attach_takes_the_methods_of_its_own_manager_alone(hooks: HookManager) -> None:
    """Two managers, two sets of methods; an object with none is a mistake."""

    class Watch:
        @hooks.on(PROGRESS)
        def see(self, context: HookContext) -> None: ...

    with pytest.raises(InvalidValueError, match=r"decorated with on\(\) of this manager; .*Watch"):
        HookManager().attach(Watch())
    hooks.attach(Watch())
    assert hooks.get_hook_count() == 1


def test_attach_registers_all_or_nothing(hooks: HookManager) -> None:
    """If one method is refused, none stays registered."""

    class Watch:
        @hooks.on(PROGRESS)
        def fine(self, context: HookContext) -> None: ...

        @hooks.on(ERROR)
        def registered_otherwise(self, context: HookContext) -> None: ...

    watch = Watch()
    hooks.register(ERROR, watch.registered_otherwise, priority=9)
    with pytest.raises(InvalidValueError, match="unregister it first"):
        hooks.attach(watch)
    assert hooks.get_hook_count() == 1


@pytest.mark.parametrize("events", [(), ("on_progress",), (PROGRESS, None), (print,)])
def test_on_refuses_what_is_no_event(hooks: HookManager, events: Any) -> None:
    """``@hooks.on`` without parentheses is the commonest of these."""
    with pytest.raises(InvalidTypeError, match=r"as in @hooks\.on\(HookEvent\.POST_EXECUTE\); got"):
        hooks.on(*events)


def test_a_mistake_in_a_method_is_raised_where_it_is_decorated(hooks: HookManager) -> None:
    """Not when some object comes along."""
    with pytest.raises(InvalidTypeError, match="priority must be a whole number"):

        class Watch:
            @hooks.on(PROGRESS, priority="high")  # type: ignore[arg-type]
            def see(self, context: HookContext) -> None: ...

    with pytest.raises(InvalidTypeError, match="called with one positional argument"):

        @hooks.on(PROGRESS)
        def none() -> None: ...


def test_amorsize_on_registers_with_the_default_manager() -> None:
    """It is called in every execution, without hooks=."""
    statuses: list[str] = []

    @amorsize.on(POST)
    def note(context: HookContext) -> None:
        statuses.append(context.metadata["status"])

    amorsize.execute(abs, [-1], executor="serial")
    assert statuses == ["ok"]

    class Watch:
        @amorsize.on(POST, when=every(items=1))
        def see(self, context: HookContext) -> None:
            statuses.append("seen")

    with get_default_manager().attach(Watch()):
        amorsize.execute(abs, [-1], executor="serial")
    assert statuses == ["ok", "ok", "seen"]


def test_in_a_worker_process_amorsize_on_registers_nothing() -> None:
    """A worker imports the modules that decorate; it runs no hooks."""

    def decorate(_: int) -> int:
        @amorsize.on(POST)
        def note(context: HookContext) -> None: ...

        return get_default_manager().get_hook_count()

    assert amorsize.execute(decorate, [0], executor="process", n_jobs=1) == [0]
    assert amorsize.execute(decorate, [0], executor="serial") == [1]
