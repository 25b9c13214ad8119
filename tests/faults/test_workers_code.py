"""Old code never runs in a worker, and what belongs to no importable module is sent by value."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripts import run_program

import amorsize
from amorsize.engines.process.pool import pool
from amorsize.errors import TransportError
from amorsize.workers import by_value


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    amorsize.shutdown()
    yield
    amorsize.shutdown()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes modules of the user's, which are found by name."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write_module(name: str, text: str) -> Path:
        names.append(name)
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        importlib.invalidate_caches()
        return file

    yield write_module
    for name in names:
        sys.modules.pop(name, None)


def in_workers(func: Callable[[Any], Any]) -> set[Any]:
    return set(amorsize.execute(func, range(4), executor="process", n_jobs=2, chunksize=1))


# --- stale modules ----


def test_a_reloaded_module_runs_nowhere_in_its_old_version(
    write: Callable[[str, str], Path],
) -> None:
    """Warm workers that hold it are replaced, and only because of that."""
    write("edited_module", "def f(x):\n    return 'old'\n")
    module = importlib.import_module("edited_module")
    assert in_workers(module.f) == {"old"}
    before = pool.pids()
    assert in_workers(module.f) == {"old"}
    assert set(pool.pids()) == set(before)
    write("edited_module", "def f(x):\n    return 'new, and longer'\n")
    importlib.reload(module)
    assert in_workers(module.f) == {"new, and longer"}
    assert not set(before) & set(pool.pids())


def test_a_helper_of_a_function_by_value_is_reloaded_too(
    write: Callable[[str, str], Path],
) -> None:
    """The function itself stands in no file, as in a notebook."""
    write("edited_helper", "def help(x):\n    return 'old'\n")
    module = importlib.import_module("edited_helper")
    func: Callable[[Any], Any] = eval("lambda x: module.help(x)", {"module": module})
    assert in_workers(func) == {"old"}
    write("edited_helper", "def help(x):\n    return 'new, and longer'\n")
    importlib.reload(module)
    assert in_workers(func) == {"new, and longer"}


def test_a_module_that_is_reloaded_without_an_edit_is_loaded_again(
    write: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it read when it was loaded may be another."""
    monkeypatch.setenv("AMORSIZE_TEST_SETTING", "first")
    text = (
        "import os\nsetting = os.environ['AMORSIZE_TEST_SETTING']\ndef f(x):\n    return setting\n"
    )
    write("reloaded_module", text)
    module = importlib.import_module("reloaded_module")
    assert in_workers(module.f) == {"first"}
    monkeypatch.setenv("AMORSIZE_TEST_SETTING", "second")
    importlib.reload(module)
    assert in_workers(module.f) == {"second"}


def test_another_module_of_the_same_name_is_another_module(
    write: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found elsewhere, because the import path has changed."""
    write("same_name", "def f(x):\n    return 'here'\n")
    assert in_workers(importlib.import_module("same_name").f) == {"here"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "same_name.py").write_text("def f(x):\n    return 'there'\n")
    monkeypatch.syspath_prepend(str(other))
    del sys.modules["same_name"]
    assert in_workers(importlib.import_module("same_name").f) == {"there"}


# --- what a worker cannot import ----


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[ModuleType]:
    """A module that was loaded from its path, as plugins are."""
    file = tmp_path / "loaded_plugin.py"
    file.write_text(
        "import functools\n"
        "STEP = 3\n"
        "def add(x):\n"
        "    return x + STEP\n"
        "@functools.lru_cache\n"
        "def cached(x):\n"
        "    return cached(x - 1) + 1 if x else STEP\n"
        "class Adder:\n"
        "    def __call__(self, x):\n"
        "        return add(x)\n"
        "    def method(self, x):\n"
        "        return Result(add(x))\n"
        "class Result:\n"
        "    def __init__(self, value):\n"
        "        self.value = value\n"
    )
    spec = importlib.util.spec_from_file_location("loaded_plugin", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loaded_plugin"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["loaded_plugin"]


REACHING: dict[str, Callable[[ModuleType], Callable[[Any], Any]]] = {
    "function": lambda module: module.add,
    "partial": lambda module: functools.partial(module.add),
    "instance": lambda module: module.Adder(),
    "cached": lambda module: module.cached,
    "closure": lambda module: lambda x: module.add(x),
    "function in a closure": lambda module: (lambda add: lambda x: add(x))(module.add),
}


@pytest.mark.parametrize("kind", REACHING)
def test_a_module_that_was_loaded_from_its_path_is_sent_by_value(
    loaded: ModuleType, kind: str
) -> None:
    """Its functions, and whatever reaches them."""
    assert in_workers(REACHING[kind](loaded)) == {3, 4, 5, 6}


def test_results_of_classes_sent_by_value_are_of_the_programs_own(loaded: ModuleType) -> None:
    """As those of ``__main__`` are."""
    [result] = amorsize.execute(loaded.Adder().method, [1], executor="process", n_jobs=1)
    assert type(result) is loaded.Result
    assert result.value == 4


def test_items_of_a_loaded_module_are_sent_by_value(loaded: ModuleType) -> None:
    """They name its classes."""
    items = [loaded.Result(number) for number in range(4)]
    assert amorsize.execute(lambda r: r.value, items, executor="process", n_jobs=2) == [0, 1, 2, 3]


def test_a_module_that_was_made_by_hand_is_sent_by_value() -> None:
    """There is no file from which a worker could load it."""
    module = types.ModuleType("made_by_hand")
    exec("def f(x):\n    return x * 2\n", vars(module))
    sys.modules["made_by_hand"] = module
    try:
        assert in_workers(module.f) == {0, 2, 4, 6}
    finally:
        del sys.modules["made_by_hand"]


def test_a_name_that_leads_to_another_file_is_not_trusted(
    write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """A worker would import the other one, and run that."""
    write("two_of_them", "def f(x):\n    return 'found by name'\n")
    file = tmp_path / "elsewhere.py"
    file.write_text("def f(x):\n    return 'loaded from its path'\n")
    spec = importlib.util.spec_from_file_location("two_of_them", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["two_of_them"] = module
    spec.loader.exec_module(module)
    assert in_workers(module.f) == {"loaded from its path"}


def test_what_only_says_that_it_is_a_module_is_left_alone() -> None:
    """The libraries that cffi makes stand among the modules."""

    class Pretender:
        __slots__ = ()

        @property
        def __class__(self) -> type[ModuleType]:  # type: ignore[override]  # as cffi does
            return ModuleType

    sys.modules["pretending_module"] = Pretender()  # type: ignore[assignment]
    try:
        assert in_workers(abs) == {0, 1, 2, 3}
    finally:
        del sys.modules["pretending_module"]


def test_what_a_worker_can_import_is_not_sent_by_value() -> None:
    """Of the standard library, and of packages, installed or in the import path."""
    by_name = {"json", "os", "numpy", "amorsize.workers.by_value", "cloudpickle", __name__}
    assert not by_name & by_value.modules_by_value().keys()


@pytest.mark.parametrize("executor", ["process", None])
def test_cached_functions_of_a_script(tmp_path: Path, executor: str | None) -> None:
    """Recursive ones too; each worker has a cache of its own."""
    program = """
        import functools, json, sys, amorsize

        @functools.lru_cache(maxsize=None)
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        @functools.cache
        def busy(n):
            return sum(range(200_000)) * 0 + fib(n)

        executor = None if sys.argv[1] == "None" else sys.argv[1]
        results = amorsize.execute(busy, range(90), executor=executor)
        info = amorsize.execute(lambda n: (fib(n), fib.cache_info().maxsize, fib.__name__), [30],
                                executor="process", n_jobs=1)
        print(json.dumps([results == [fib(n) for n in range(90)], info]))
    """
    assert run_program(program, tmp_path, str(executor)) == [True, [[832040, None, "fib"]]]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_functions_of_the_script_in_a_child_of_multiprocessing(tmp_path: Path, method: str) -> None:
    """There the script is ``__mp_main__``."""
    program = """
        import json, multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor

        def work(x):
            return sum(range(100_000)) * 0 + x

        def child(_):
            import amorsize
            modes = (None, "process", "thread")
            return [amorsize.execute(work, range(20), executor=mode) == list(range(20))
                    for mode in modes]

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with ProcessPoolExecutor(1, mp_context=context) as executor:
                print(json.dumps(executor.submit(child, 0).result()))
    """
    assert run_program(program, tmp_path, method) == [True, True, True]


def test_what_could_not_be_loaded_is_named_with_its_reason() -> None:
    """An error that has nothing to do with imports is given no advice about them."""

    class Unloadable:
        def __call__(self, x: int) -> int:
            return x

        def __reduce__(self) -> tuple[Any, ...]:
            return os.listdir, ("/nonexistent/place",)

    with pytest.raises(TransportError, match=r"cannot be loaded.*/nonexistent/place'\.$"):
        in_workers(Unloadable())


def test_a_lock_of_multiprocessing_is_refused_with_a_way_out() -> None:
    """It reaches the children of multiprocessing alone."""
    import multiprocessing

    lock = multiprocessing.get_context("spawn").Lock()
    with pytest.raises(TransportError, match=r"through inheritance.*multiprocessing\.Manager\(\)"):
        in_workers(lambda x: lock.acquire())
