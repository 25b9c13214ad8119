"""The architecture: folders are rooms, and imports go down, from room to room, never up.

``ROOMS`` is to be read from top to bottom: what stands in a room may import what stands in the
same room, or in one above it in this list. Imports inside functions count like those at the top of
a file; those under ``if TYPE_CHECKING:`` do not run, and may go to any room.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import amorsize
import amorsize.hooks

PACKAGE = Path(amorsize.__file__).parent

ROOMS = {
    # The package itself resolves its public names on first use, so importing it imports nothing.
    "the name": "amorsize",
    "errors": "errors",
    "what runs inside any worker": "workers",
    "events, and who is called": "hooks",
    "what to do with the items": "planning",
    "where chunks run": "engines",
    "what observes": "exporters testing",
    "the arguments of a run": "options",
    "the one loop": "running",
    "arguments in, results out": "optimizer executor streaming aio",
    # These use amorsize as anybody would, through its public names.
    "programs": "demo dashboards",
    "the command line": "cli",
    "python -m amorsize": "__main__",
}
"""Every room, from the ground up, with the folders and modules that it is made of."""

FORBIDDEN_DOORS = {
    # Observers know events, never the engines and the plans that these come from.
    "exporters": "planning engines",
    "testing": "planning engines",
}
"""What a room does not import although it stands above it."""

THIRD_PARTY = {
    "planning.machine": "psutil",
    "workers.otel_context": "opentelemetry",
    "planning.pickling": "cloudpickle",
    "engines.external.dask": "distributed",
    "engines.process.protocol": "cloudpickle",
    "demo.cluster": "distributed",
    "planning.engine": "distributed",
    "exporters.progress": "tqdm",
    "exporters.opentelemetry.execution_traces": "opentelemetry",
    "exporters.opentelemetry.instruments": "opentelemetry",
    "exporters.opentelemetry.exporter": "opentelemetry",
    "exporters.opentelemetry.otlp": "opentelemetry",
    "exporters.opentelemetry.span_writer": "opentelemetry",
    "exporters.cloudwatch.exporter": "boto3 botocore",
    "exporters.datadog.exporter": "datadog",
    "exporters.datadog.datagrams": "datadog",
    "exporters.prometheus.page": "prometheus_client",
    "exporters.prometheus.ports": "psutil",
    "exporters.prometheus.file_sd": "psutil",
    "exporters.prometheus.exporter": "prometheus_client",
}

IMPORTED_BEHIND_ITS_PACKAGE = {
    "workers.otel_context",
    "exporters.opentelemetry.execution_traces",
    "exporters.opentelemetry.instruments",
    "exporters.opentelemetry.otlp",
    "exporters.opentelemetry.span_writer",
}
"""Modules that subclass a package's classes, and are themselves imported by the function that has
found the package there."""

PRINTS = ("cli", "demo")
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers"}

FLOOR = {name: floor for floor, names in enumerate(ROOMS.values()) for name in names.split()}


@dataclass
class Imports:
    """What a module imports, by dotted names."""

    running: set[str] = field(default_factory=set)
    types_only: set[str] = field(default_factory=set)


def module_files() -> dict[str, Path]:
    """Name every module of the package, without the leading ``amorsize.``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts) or "amorsize"] = path
    return found


FILES = module_files()


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def walk(node: ast.AST, *, types_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Walk a tree, with whether a node runs for type checkers only."""
    yield node, types_only
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from walk(child, types_only=True)
        for child in node.orelse:
            yield from walk(child, types_only=types_only)
        return
    for child in ast.iter_child_nodes(node):
        yield from walk(child, types_only=types_only)


def names_imported_by(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module, names, level):
            assert level == 0, f"a relative import of {module}: the table needs full names"
            # `from package import module` imports the module, not the package's attribute.
            return [
                f"{module}.{alias.name}"
                if f"{module}.{alias.name}".removeprefix("amorsize.") in FILES
                else str(module)
                for alias in names
            ]
        case ast.Call(ast.Name(called) | ast.Attribute(attr=called), [ast.Constant(str(name)), *_]):
            return [name] if called in ("import_module", "__import__") else []
    return []


@cache
def imports_of(module: str) -> Imports:
    imports = Imports()
    for node, types_only in walk(parse(module)):
        kind = imports.types_only if types_only else imports.running
        kind.update(names_imported_by(node))
    return imports


def own(names: set[str]) -> set[str]:
    return {
        name.removeprefix("amorsize.") for name in names if name.partition(".")[0] == "amorsize"
    }


def foreign(names: set[str]) -> set[str]:
    tops = {name.partition(".")[0] for name in names}
    return tops - {"amorsize", "annotationlib"} - set(sys.stdlib_module_names)  # 3.14 has it


# --- the rooms ----


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_stands_in_a_room() -> None:
    """A new folder has to find its place in the architecture first."""
    assert {room_of(module) for module in FILES} == set(FLOOR)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    """Imports inside of functions included."""
    room = room_of(module)
    imported = {room_of(name) for name in own(imports_of(module).running)} - {room, "amorsize"}
    upward = {name for name in imported if FLOOR[name] >= FLOOR[room]}
    closed = imported & set(FORBIDDEN_DOORS.get(room, "").split())
    assert not upward, f"{module} imports from above, or beside it: {sorted(upward)}"
    assert not closed, f"{module} imports what it is not to know: {sorted(closed)}"


def test_no_modules_import_each_other() -> None:
    """Not by way of others, nor inside functions: each can be read after those that it imports."""
    edges = {
        module: {name for name in own(imports_of(module).running) if name in FILES} - {module}
        for module in FILES
    }
    done: set[str] = set()
    while len(done) < len(edges):
        ready = {name for name in edges if name not in done and edges[name] <= done}
        left = sorted(set(edges) - done)
        assert ready, f"some of these import each other: {left}"
        done |= ready


@pytest.mark.parametrize("module", FILES)
def test_a_third_party_package_is_imported_where_the_table_says(module: str) -> None:
    """One SDK an exporter, psutil behind system, cloudpickle behind pickling."""
    assert foreign(imports_of(module).running) <= set(THIRD_PARTY.get(module, "").split())


@pytest.mark.parametrize("module", FILES)
def test_a_third_party_package_is_not_imported_with_the_module(module: str) -> None:
    """Packages are imported by the function that needs them, so that none is paid for unused."""
    if module in IMPORTED_BEHIND_ITS_PACKAGE:
        return
    deferred = {
        id(inner)
        for outer in ast.walk(parse(module))
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    at_import = set(
        chain.from_iterable(
            names_imported_by(node)
            for node, types_only in walk(parse(module))
            if not types_only and id(node) not in deferred
        )
    )
    assert foreign(at_import) == set()
    # Nor by way of a module that imports one.
    assert not own(at_import) & IMPORTED_BEHIND_ITS_PACKAGE


@pytest.mark.parametrize("module", FILES)
def test_a_module_is_named_after_its_concept(module: str) -> None:
    """There is no drawer for everything else; ``hooks.helpers`` is what the design calls them."""
    if module != "hooks.helpers":
        assert not FORBIDDEN_NAMES & set(module.split("."))


@pytest.mark.parametrize("module", FILES)
def test_only_the_command_line_prints(module: str) -> None:
    """A library writes to its logger."""
    if module.partition(".")[0] in PRINTS:
        return
    calls = [node.func for node in ast.walk(parse(module)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


# --- what importing costs ----

ROOM_NAMES = {f"amorsize.{name}" for name, path in FILES.items() if path.name == "__init__.py"}

SDKS = {"prometheus_client", "opentelemetry", "datadog", "boto3", "distributed", "dask", "tqdm"}
HEAVY = {"psutil", "cloudpickle", "multiprocessing", "subprocess", "concurrent"}


def loaded_after(statements: str) -> set[str]:
    """Run statements in a fresh interpreter; return the top-level names of what is imported."""
    script = f"{statements}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_amorsize_imports_nothing_heavy() -> None:
    """No SDK, no psutil, no multiprocessing: the name costs what a name should."""
    loaded = loaded_after("import amorsize")
    assert "amorsize" in loaded
    assert not loaded & (SDKS | HEAVY)


def test_every_public_name_resolves_without_an_sdk() -> None:
    """An exporter's SDK is imported when the exporter is enabled, not when it is named."""
    loaded = loaded_after(
        "import amorsize\nfor name in amorsize.__all__: assert getattr(amorsize, name) is not None"
    )
    assert not loaded & SDKS


def test_a_serial_run_imports_no_process_engine() -> None:
    """Who never leaves the process does not pay for processes."""
    loaded = loaded_after("import amorsize\namorsize.execute(abs, [1], executor='serial')")
    assert not loaded & (SDKS | {"multiprocessing", "subprocess", "cloudpickle"})


def test_a_run_that_is_over_at_once_loads_nothing_that_plans_runs_or_tells() -> None:
    """Loading all of it takes longer than such a run."""
    script = (
        "import amorsize, sys\n"
        "assert amorsize.execute(abs, range(-5000, 0)) == list(range(5000, 0, -1))\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name for name in done.stdout.split() if name.startswith("amorsize.")}
    assert loaded - ROOM_NAMES == {
        "amorsize.options",
        "amorsize.planning.engine",
        "amorsize.running.environment",
        "amorsize.executor",
        "amorsize.planning.gil_probe",
        "amorsize.planning.known_functions",
        "amorsize.running.first_items",
        "amorsize.workers.record",
        "amorsize.planning.sampling",
        "amorsize.workers.slices",
        "amorsize.planning.clocks",
        "amorsize.workers.pass_monitor",
        "amorsize.workers.thread_cache",
        "amorsize.planning.workload",
    }
    unwanted = {"dataclasses", "inspect", "logging", "multiprocessing", "pickle", "subprocess"}
    assert not unwanted & set(done.stdout.split())


def test_a_run_without_hooks_loads_nothing_that_surrounds_one() -> None:
    """Conditions, chains, decorators and helpers are for those who register a hook."""
    script = (
        "import amorsize, sys\namorsize.execute(abs, [1], executor='serial')\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name for name in done.stdout.split() if name.startswith("amorsize.hooks.")}
    assert loaded == {
        "amorsize.hooks.entries",
        "amorsize.hooks.events",
        "amorsize.hooks.interruption",
        "amorsize.hooks.manager",
        "amorsize.hooks.termination",
    }


def test_a_worker_process_imports_no_more_than_it_needs() -> None:
    """What runs chunks elsewhere starts fast: no optimizer, no exporter, no psutil."""
    script = "import amorsize.engines.process.worker, sys\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {name for name in done.stdout.split() if name.startswith("amorsize.")}
    assert loaded - ROOM_NAMES == {
        "amorsize.workers.item_slots",
        "amorsize.engines.process.connection",
        "amorsize.engines.process.worker",
        "amorsize.engines.process.protocol",
        "amorsize.workers.collectors",
        "amorsize.errors",
        "amorsize.workers.log_records",
        "amorsize.workers.record",
        "amorsize.workers.role",
        "amorsize.workers.slices",
        "amorsize.workers.trace_link",
        "amorsize.workers.chunk",
    }
    assert not {"cloudpickle", "dataclasses", "inspect", "psutil"} & set(done.stdout.split())


def test_a_misspelt_name_of_the_package_is_an_attribute_error() -> None:
    """Names are resolved on demand, and unknown ones are still unknown."""
    with pytest.raises(AttributeError, match="module 'amorsize' has no attribute 'exceute'"):
        amorsize.exceute  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"module 'amorsize\.hooks' has no attribute 'evry'"):
        amorsize.hooks.evry  # type: ignore[attr-defined]


def test_dir_lists_the_public_names() -> None:
    """Completion in a notebook works before the first use."""
    assert set(amorsize.__all__) <= set(dir(amorsize))
    assert set(amorsize.hooks.__all__) <= set(dir(amorsize.hooks))
