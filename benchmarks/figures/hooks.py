"""Hooks by themselves: building a context, and calling the hooks of an event.

Peers: pluggy (the plugin system of pytest) and blinker (the signals of Flask), each calling as
many plain functions with one keyword argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blinker
import pluggy

from amorsize import HookContext, HookEvent, HookManager
from amorsize.hooks import Hook
from benchmarks.harness import Contenders, figure, timed

_TEN_KEYWORDS = (
    "HookContext(event, n_jobs=2, chunksize=10, total_items=100, items_completed=50, "
    "items_remaining=50, percent_complete=50.0, elapsed_time=1.0, worker_id=1, chunk_id=5, "
    "metadata=metadata)"
)


@figure("context", "a context, defaults", unit="µs", at_most=1.0)
def context_with_defaults() -> Contenders:
    yield {"HookContext": timed("HookContext(event)", **_context_names())}


@figure("context-ten", "a context, ten keywords", unit="µs", at_most=1.0)
def context_with_ten_keywords() -> Contenders:
    yield {"HookContext": timed(_TEN_KEYWORDS, **_context_names())}


@figure("trigger-0", "trigger, no hook", unit="µs")
def trigger_without_hooks() -> Contenders:
    yield from _trigger(0)


@figure("trigger-1", "trigger, 1 hook", unit="µs", at_most=0.35, against="pluggy")
def trigger_one_hook() -> Contenders:
    yield from _trigger(1)


@figure("trigger-5", "trigger, 5 hooks", unit="µs")
def trigger_five_hooks() -> Contenders:
    yield from _trigger(5)


def _context_names() -> dict[str, Any]:
    return {"HookContext": HookContext, "event": HookEvent.ON_PROGRESS, "metadata": {"a": 1}}


def _trigger(count: int) -> Contenders:
    context = HookContext(HookEvent.ON_PROGRESS)
    manager = HookManager()
    plugins = pluggy.PluginManager("benchmarks")
    plugins.add_hookspecs(_Specification)
    signal = blinker.Signal()
    for _ in range(count):
        manager.register(HookEvent.ON_PROGRESS, _make_hook())
        plugins.register(_Plugin())
        signal.connect(_make_receiver(), weak=False)
    yield {
        "amorsize": timed("manager.trigger(context)", manager=manager, context=context),
        "pluggy": timed("hook.on_event(context=context)", hook=plugins.hook, context=context),
        "blinker": timed("signal.send(None, context=context)", signal=signal, context=context),
    }


def _make_hook() -> Hook:
    def hook(context: HookContext) -> None:
        pass

    return hook


def _make_receiver() -> Callable[..., None]:
    def receiver(sender: object, context: HookContext) -> None:
        pass

    return receiver


class _Specification:
    @pluggy.HookspecMarker("benchmarks")
    def on_event(self, context: HookContext) -> None: ...


class _Plugin:
    @pluggy.HookimplMarker("benchmarks")
    def on_event(self, context: HookContext) -> None:
        pass
