"""The public surface: a name or a default that changes here changes for every user."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import amorsize
import amorsize.hooks

POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
KEYWORD = inspect.Parameter.KEYWORD_ONLY

PLAN = {"sample_size": 5, "target_chunk_duration": 0.2}
RUN = {
    "hooks": None,
    "n_jobs": None,
    "chunksize": None,
    "executor": None,
    **PLAN,
    "progress": False,
    "progress_interval": 0.0,
    "return_exceptions": False,
    "timeout": None,
    "item_timeout": None,
    "name": None,
    "verbose": False,
}


def signature(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters]


def pinned(**keywords: Any) -> list[tuple[str, Any, Any]]:
    required = [(name, POSITIONAL, inspect.Parameter.empty) for name in ("func", "data")]
    return [*required, *((name, KEYWORD, default) for name, default in keywords.items())]


def test_the_names_of_the_package() -> None:
    """What ``from amorsize import *`` gives."""
    assert sorted(amorsize.__all__) == [
        "AmorsizeError",
        "HookContext",
        "HookEvent",
        "HookManager",
        "OptimizationResult",
        "__version__",
        "aexecute",
        "astream",
        "chain",
        "count",
        "create_error_hook",
        "create_progress_hook",
        "create_throughput_hook",
        "create_timing_hook",
        "enable",
        "enable_cloudwatch",
        "enable_datadog",
        "enable_opentelemetry",
        "enable_prometheus",
        "every",
        "execute",
        "function",
        "get_default_manager",
        "observe",
        "on",
        "on_failure",
        "optimize",
        "set_gauge",
        "shutdown",
        "slower_than",
        "stream",
    ]


def test_the_names_of_the_hooks() -> None:
    """What ``from amorsize.hooks import *`` gives."""
    assert sorted(amorsize.hooks.__all__) == [
        "Condition",
        "Hook",
        "HookContext",
        "HookEvent",
        "HookManager",
        "Registration",
        "chain",
        "create_error_hook",
        "create_progress_hook",
        "create_throughput_hook",
        "create_timing_hook",
        "every",
        "function",
        "get_default_manager",
        "on",
        "on_failure",
        "slower_than",
    ]


def test_a_name_is_the_same_object_in_both_places() -> None:
    """``except`` and ``isinstance`` do not depend on where a name came from."""
    for name in set(amorsize.hooks.__all__) & set(amorsize.__all__):
        assert getattr(amorsize, name) is getattr(amorsize.hooks, name)


def test_the_signature_of_execute() -> None:
    """All but the function and the data is by keyword."""
    assert signature(amorsize.execute) == pinned(**RUN, return_optimization_result=False)


def test_the_signature_of_stream() -> None:
    """As ``execute``, with the order of the results to choose, and nothing beside them."""
    assert signature(amorsize.stream) == pinned(ordered=True, **RUN)


def test_the_signatures_for_asyncio_are_those_of_execute_and_stream() -> None:
    """One word more, and nothing to learn anew."""
    assert signature(amorsize.aexecute) == signature(amorsize.execute)
    assert signature(amorsize.astream) == signature(amorsize.stream)


def test_the_signature_of_optimize() -> None:
    """What decides the plan, and nothing that only a run needs."""
    assert signature(amorsize.optimize) == pinned(
        **PLAN, n_jobs=None, chunksize=None, executor=None, verbose=False
    )


def test_the_signature_of_enable_prometheus_begins_with_where_it_listens() -> None:
    """The one line that most users write."""
    parameters = inspect.signature(amorsize.enable_prometheus).parameters
    defaults = {name: each.default for name, each in list(parameters.items())[:3]}
    assert defaults == {"port": None, "addr": "127.0.0.1", "registry": None}
