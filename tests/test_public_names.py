"""The public surface: a name or a default that changes here changes for every user."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import amorsize
import amorsize.hooks
from amorsize.public_names import lazy_names

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
        "enable_in_child_process",
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


PACKAGES = ["amorsize", "amorsize.hooks", "amorsize.exporters"]
"""Those whose names are imported on first use."""


def listed(statements: str) -> list[list[str]]:
    """Run statements in a fresh interpreter; return ``dir()`` of the packages."""
    script = f"""if True:
        import json, sys, {", ".join(PACKAGES)}
        {statements}
        print(json.dumps([dir(sys.modules[name]) for name in {PACKAGES!r}]))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_dir_lists_the_public_names_alone_before_and_after_a_run() -> None:
    """Completion in a notebook offers what is meant for users; submodules are not."""
    before = listed("pass")
    for name, names in zip(PACKAGES, before, strict=True):
        public = [each for each in names if not each.startswith("__")]
        assert public == sorted(set(importlib.import_module(name).__all__) - {"__version__"})
    assert "__version__" in before[0]
    used = "amorsize.execute(abs, range(9), executor='thread', progress=True)"
    assert listed(used) == before


def test_importing_the_package_costs_no_more_than_its_two_files() -> None:
    """That takes 0.3 ms; ``importlib`` or ``typing`` alone would take longer."""
    script = "import sys; before = {*sys.modules}; import amorsize; print(*{*sys.modules} - before)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"amorsize", "amorsize.public_names"}


@pytest.mark.parametrize(
    ("package", "name", "meant"),
    [
        (amorsize, "exceute", "execute"),
        (amorsize, "enable_promethues", "enable_prometheus"),
        (amorsize.hooks, "evry", "every"),
    ],
)
def test_a_misspelled_name_gets_a_suggestion(package: ModuleType, name: str, meant: str) -> None:
    """In the message itself, so that a log has it too."""
    with pytest.raises(AttributeError) as caught:
        getattr(package, name)
    assert str(caught.value) == (
        f"module {package.__name__!r} has no attribute {name!r}. Did you mean: {meant!r}?"
    )


def test_python_does_not_suggest_it_a_second_time() -> None:
    """It adds a suggestion of its own to an AttributeError that names its object."""
    done = subprocess.run(
        [sys.executable, "-c", "import amorsize; amorsize.exceute"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == (
        "AttributeError: module 'amorsize' has no attribute 'exceute'. Did you mean: 'execute'?"
    )


@pytest.mark.parametrize("name", ["quite_another", "_private", "__wrapped__"])
def test_an_unknown_name_without_a_likeness_gets_no_suggestion(name: str) -> None:
    """Nor does one that only tools ask for."""
    with pytest.raises(AttributeError) as caught:
        getattr(amorsize, name)
    assert str(caught.value) == f"module 'amorsize' has no attribute {name!r}"


def test_suggestions_are_imported_for_misspelled_names_alone() -> None:
    """``from package import submodule`` asks for the name first: our own modules avoid it."""
    script = """if True:
        import sys, amorsize
        amorsize.get_default_manager()
        amorsize.enable_prometheus(port=0).close()
        amorsize.execute(abs, range(9), executor="process", n_jobs=1)
        print("difflib" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_a_name_is_resolved_once() -> None:
    """From then on it is an attribute of the package like any other."""
    namespace: dict[str, Any] = {"__name__": "example", "submodule": object()}
    resolve, names = lazy_names(namespace, {"dumps": "json", "Path": "pathlib"})
    assert names() == ["Path", "__name__", "dumps"]
    assert resolve("dumps") is json.dumps
    assert namespace["dumps"] is json.dumps


def test_the_signature_of_execute() -> None:
    """All but the function and the data is by keyword."""
    assert signature(amorsize.execute) == pinned(**RUN, return_optimization_result=False)


def test_the_signature_of_stream() -> None:
    """As ``execute``, with the order of the results to choose, and nothing beside them."""
    assert signature(amorsize.stream) == pinned(ordered=True, **RUN)


def test_the_signatures_for_asyncio_are_those_of_execute_and_stream() -> None:
    """Only the name and ``await`` are different."""
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
