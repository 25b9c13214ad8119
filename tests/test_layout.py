"""The architecture: folders are rooms, and imports go down, from room to room, never up.

Read ``ROOMS`` from top to bottom: a module may import modules of its own room, and of the rooms
above it in this list. Imports inside functions count like those at the top of a file. Imports under
``if TYPE_CHECKING:`` never run, and may go to any room.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

import amorsize

PACKAGE = Path(amorsize.__file__).parent

ROOMS = {
    "public names, imported on first use": "public_names",
    "the package itself": "amorsize",
    "errors": "errors",
    "what runs inside any worker": "workers",
    "events, and the hooks that they call": "hooks",
    "what to do with the items, by measurement": "planning",
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
"""Every room, from the ground up, with the folders and modules that make it up."""

FORBIDDEN_DOORS = {
    # Observers know events, never the engines and the plans that events come from.
    "exporters": "planning engines",
    "testing": "planning engines",
}
"""Rooms that a room does not import although they are above it in the list."""

THIRD_PARTY = {
    "demo.cluster": "distributed",
    "engines.external.dask": "distributed",
    "engines.process.program_state": "numpy",
    "exporters.cloudwatch.exporter": "boto3 botocore",
    "exporters.datadog.datagrams": "datadog",
    "exporters.datadog.exporter": "datadog",
    "exporters.opentelemetry.execution_traces": "opentelemetry",
    "exporters.opentelemetry.exporter": "opentelemetry",
    "exporters.opentelemetry.instruments": "opentelemetry",
    "exporters.opentelemetry.otlp": "opentelemetry",
    "exporters.opentelemetry.provisional": "opentelemetry",
    "exporters.opentelemetry.single_attempt": "google grpc requests",
    "exporters.opentelemetry.span_writer": "opentelemetry",
    "exporters.progress": "tqdm",
    "exporters.prometheus.earlier": "prometheus_client",
    "exporters.prometheus.exporter": "prometheus_client",
    "exporters.prometheus.file_sd": "psutil",
    "exporters.prometheus.page": "prometheus_client",
    "exporters.prometheus.settings": "prometheus_client",
    "exporters.prometheus.listening": "psutil",
    "exporters.prometheus.processes": "psutil",
    "planning.engine": "distributed",
    "planning.machine": "psutil",
    "workers.by_value": "cloudpickle numpy",
    "workers.otel_context": "opentelemetry",
}
"""The packages of others that a module imports."""

IMPORTED_AFTER_ITS_PACKAGE = {
    "exporters.opentelemetry.execution_traces",
    "exporters.opentelemetry.instruments",
    "exporters.opentelemetry.otlp",
    "exporters.opentelemetry.provisional",
    "exporters.opentelemetry.span_writer",
    "workers.otel_context",
}
"""Modules that subclass classes of a package, and so import it at their top. They are imported by
functions alone, which have found the package installed."""

LOOKED_UP_AMONG_LOADED_MODULES = {
    "engines.process.launcher": "whether site was customized, which workers then load as well",
    "engines.process.module_files": "the user's modules: a worker with an old one is replaced",
    "engines.process.pool": "where modules were found that each worker is to import",
    "engines.process.program_state": "settings of modules; one that is not loaded has its defaults",
    "engines.process.template": "the path is not changed for a module that is there already",
    "exporters.base": "celery's signals: a process of its pool runs no exit functions",
    "workers.by_value": "modules that no worker can import; what numpy and cloudpickle hold",
    "workers.log_capture": "whether the function loaded logging, whose records are then captured",
    "workers.thread_limits": "libraries that compute on several cores, if they are loaded",
    "workers.observers": "the level of the log: where logging is not loaded, none was set",
    "workers.trace_link": "the current span: where OpenTelemetry is not loaded, there is none",
}
"""Modules that read ``sys.modules``, and what for.

It is state that exists only if a module is loaded, or the modules themselves. Importing a module to
ask for that would take longer than the answer is worth. How a run goes on depends on arguments and
attributes, never on what happens to be loaded.
"""

DEFINED_IN = {
    "engines.process.program_state": "shown: categories of warnings, to be found again by name",
    "engines.process.protocol": "shown: the type of an exception",
    "hooks.config": "shown: the import path of a function; nothing can import ``__main__`` again",
    "hooks.entries": "shown: the name of a hook",
    "running.observers": "shown: the name of a function",
    "workers.by_value": "pickle names an object by its module; finders of editable installs",
    "workers.otel_context": "shown: the type of an exception, as OpenTelemetry's SDK names it",
    "workers.record": "for the traceback of a class of records",
}
"""Modules that read in which module something is defined (``__module__``), and what for."""

NAMES_COMPARED = {
    "engines.process.program_state": ["condition.__name__ in trapped"],  # of decimal's signals
    "workers.by_value": ["'<locals>' not in cached.__qualname__"],  # pickle cannot find it
}

DEFINED_TWICE = {
    # Called with the names of their modules: trace_link.begin(...).
    "apply": "running.environment workers.thread_limits",
    "begin": "hooks.executions workers.trace_link",
    # Where a program, a template and a worker begin.
    "main": "cli engines.process.template engines.process.worker",
    # The same thing, found without loading the module that defines it.
    "pool": "engines.process.pool engines.warm_pool",
    "read_levels": "workers.log_capture workers.log_records",
    "shutdown": "engines.warm_pool executor",
    # Exporters do not import the options of a run, whose module loads none of theirs.
    "check_switch": "exporters.settings options",
}
"""Names that two modules define, and why."""

PRINTING = {"cli", "demo"}
NAMES_WITHOUT_A_CONCEPT = {"utils", "util", "common", "misc", "helpers"}

FLOORS = {name: floor for floor, names in enumerate(ROOMS.values()) for name in names.split()}


# --- reading the package ----


def find_modules() -> dict[str, Path]:
    """Find every module of the package; their names come without the leading ``amorsize.``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts) or "amorsize"] = path
    return found


FILES = find_modules()

PACKAGES = sorted(
    f"amorsize.{name}"
    for name, path in FILES.items()
    if path.name == "__init__.py" and name != "amorsize"
)

every_module = pytest.mark.parametrize("module", FILES)


@dataclass
class Imports:
    """The dotted names of what a module imports.

    Attributes:
        at_top: when it is itself imported.
        inside: when one of its functions is called.
    """

    at_top: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)

    @property
    def all(self) -> set[str]:
        return self.at_top | self.inside


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def walk_running(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Walk what runs, with whether it is inside a function: not what only type checkers read."""
    yield node, inside
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from walk_running(child, inside=inside)


def imported_by(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module, names, level):
            assert level == 0, f"a relative import of {module}: write its full name"
            # `from package import module` imports the module, not an attribute of the package.
            full_names = [f"{module}.{alias.name}" for alias in names]
            return [
                name if name.removeprefix("amorsize.") in FILES else str(module)
                for name in full_names
            ]
        case ast.Call(ast.Name(called) | ast.Attribute(attr=called), [ast.Constant(str(name)), *_]):
            return [name] if called in ("import_module", "__import__") else []
    return []


@cache
def imports_of(module: str) -> Imports:
    imports = Imports()
    for node, inside in walk_running(parse(module)):
        (imports.inside if inside else imports.at_top).update(imported_by(node))
    return imports


def own(names: set[str]) -> set[str]:
    """Return the modules of this package among dotted names."""
    return {
        name.removeprefix("amorsize.") for name in names if name.partition(".")[0] == "amorsize"
    }


def third_party(names: set[str]) -> set[str]:
    """Return the packages among dotted names that are neither Python's nor this one."""
    tops = {name.partition(".")[0] for name in names}
    return tops - {"amorsize", "__main__"} - set(sys.stdlib_module_names)  # 3.14 has it


def room_of(module: str) -> str:
    return module.partition(".")[0]


# --- the rooms ----


def test_every_module_stands_in_a_room() -> None:
    """A new folder has to find its place in the architecture first."""
    assert {room_of(module) for module in FILES} == set(FLOORS)


@every_module
def test_imports_go_down(module: str) -> None:
    """Imports inside functions go down too."""
    room = room_of(module)
    imported = {room_of(name) for name in own(imports_of(module).all)} - {room}
    upward = {name for name in imported if FLOORS[name] >= FLOORS[room]}
    closed = imported & set(FORBIDDEN_DOORS.get(room, "").split())
    assert not upward, f"{module} imports from above, or beside it: {sorted(upward)}"
    assert not closed, f"{module} imports what it is not to know: {sorted(closed)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_that_are_imported_on_first_use_are_of_the_same_room(package: str) -> None:
    """Such imports are written as strings; only the package itself names every room."""
    homes = getattr(importlib.import_module(package), "_HOMES", {})
    package = package.removeprefix("amorsize.")
    assert {room_of(home.removeprefix("amorsize.")) for home in homes.values()} <= {
        room_of(package)
    }


def test_no_modules_import_each_other() -> None:
    """Neither through others nor inside functions: each can be read after those it imports."""
    unread = {
        module: {name for name in own(imports_of(module).all) if name in FILES} - {module}
        for module in FILES
    }
    while unread:
        ready = {module for module, imported in unread.items() if not imported & set(unread)}
        assert ready, f"some of these import each other: {sorted(unread)}"
        unread = {module: names for module, names in unread.items() if module not in ready}


@every_module
def test_a_third_party_package_is_imported_where_the_table_says(module: str) -> None:
    """One SDK per exporter, one module per service of psutil, cloudpickle where things pickle."""
    assert third_party(imports_of(module).all) <= set(THIRD_PARTY.get(module, "").split())


@every_module
def test_a_third_party_package_is_imported_by_the_function_that_needs_it(module: str) -> None:
    """Whoever does not use it does not pay for it."""
    at_top = imports_of(module).at_top
    # Nor through a module that imports one at its top.
    if module not in IMPORTED_AFTER_ITS_PACKAGE:
        assert third_party(at_top) == set()
        assert not own(at_top) & IMPORTED_AFTER_ITS_PACKAGE


@every_module
def test_a_module_is_named_after_its_concept(module: str) -> None:
    """There is no drawer for everything else; ``hooks.helpers`` is the issue's word for them."""
    if module != "hooks.helpers":
        assert not NAMES_WITHOUT_A_CONCEPT & set(module.split("."))


def test_the_loaded_modules_are_looked_at_where_the_table_says() -> None:
    """State is passed explicitly."""
    reading = {
        module
        for module in FILES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.modules"
    }
    assert reading == set(LOOKED_UP_AMONG_LOADED_MODULES)


def test_where_something_is_defined_is_asked_where_the_table_says() -> None:
    """Names are for people; something is known by what it can do, or by a mark."""
    reading = {
        module
        for module in FILES
        for node in ast.walk(parse(module))
        if (isinstance(node, ast.Attribute) and node.attr == "__module__")
        or (isinstance(node, ast.Constant) and node.value == "__module__")
    }
    assert reading == set(DEFINED_IN)


@every_module
def test_nothing_is_decided_by_a_name(module: str) -> None:
    """Neither of a type nor of a function, but for names that are themselves the data."""
    names = ("__name__", "__qualname__")
    compared = [
        ast.unparse(node)
        for node in ast.walk(parse(module))
        if isinstance(node, ast.Compare)
        and any(isinstance(each, ast.Attribute) and each.attr in names for each in ast.walk(node))
    ]
    assert compared == NAMES_COMPARED.get(module, [])


def defined_in(module: str) -> Iterator[str]:
    """Name the classes, functions and constants of a module, but no type variable."""
    for node in parse(module).body:
        match node:
            case ast.ClassDef(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                yield name
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("TypeVar" | "ParamSpec"))):
                pass
            case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)):
                yield name


def test_a_name_means_one_thing() -> None:
    """In all of the package, so that a reader who has met it once knows it."""
    places: dict[str, list[str]] = {}
    for module in FILES:
        for name in {*defined_in(module)}:  # an overload has its name several times
            if not name.startswith("_") and name not in ("TYPE_CHECKING", "logger"):
                places.setdefault(name, []).append(module)
    shared = {name: " ".join(modules) for name, modules in places.items() if len(modules) > 1}
    assert shared == DEFINED_TWICE


@every_module
def test_only_the_command_line_prints(module: str) -> None:
    """A library writes to its logger."""
    if room_of(module) not in PRINTING:
        calls = [node.func for node in ast.walk(parse(module)) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


# --- the import budget ----

SDKS = {"prometheus_client", "opentelemetry", "datadog", "boto3", "distributed", "dask", "tqdm"}
HEAVY = {"psutil", "cloudpickle", "multiprocessing", "subprocess", "concurrent"}


def loaded_after(statements: str) -> set[str]:
    """Run statements in a fresh interpreter; return the names of the modules that it has loaded.

    Packages are left out, and the module of their names, which everybody loads.
    """
    script = f"{statements}\nimport json, sys\nprint(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout)) - {*PACKAGES} - {"amorsize", "amorsize.public_names"}


def within(loaded: set[str], package: str) -> set[str]:
    """Return the modules of a package, without its name before each."""
    return {name.removeprefix(f"{package}.") for name in loaded if name.startswith(f"{package}.")}


def test_importing_amorsize_imports_nothing() -> None:
    """No SDK, no psutil, no multiprocessing, and no module of its own."""
    loaded = loaded_after("import amorsize")
    assert not within(loaded, "amorsize")
    assert not loaded & (SDKS | HEAVY)


def test_every_public_name_resolves_without_an_sdk() -> None:
    """The SDK of an exporter is imported when the exporter is enabled."""
    loaded = loaded_after(
        "import amorsize\nfor name in amorsize.__all__: assert getattr(amorsize, name) is not None"
    )
    assert not loaded & SDKS


def test_a_serial_run_imports_no_process_engine() -> None:
    """A program that never leaves its process does not pay for processes."""
    loaded = loaded_after("import amorsize\namorsize.execute(abs, [1], executor='serial')")
    assert not loaded & (SDKS | {"multiprocessing", "subprocess", "cloudpickle"})


def test_a_run_that_is_over_at_once_loads_the_loop_the_planner_and_the_serial_engine() -> None:
    """Loading the other engines, the reporter and the comparison takes longer than such a run.

    The clock of the script makes its calls short, however busy the machine.
    """
    loaded = loaded_after(
        "import itertools, time\n"
        "ticks = itertools.count()\n"
        "time.perf_counter = lambda: next(ticks) * 1e-7\n"
        "import amorsize\nassert amorsize.execute(abs, range(-5000, 0)) == list(range(5000, 0, -1))"
    )
    assert within(loaded, "amorsize") == {
        "engines.base",
        "engines.serial",
        "executor",
        "hooks.interruption",
        "options",
        "planning.chunk_sizes",
        "planning.clocks",
        "planning.engine",
        "planning.gil_probe",
        "planning.known_functions",
        "planning.observations",
        "planning.plan",
        "planning.planner",
        "planning.workload",
        "running.call_monitor",
        "running.environment",
        "running.first_items",
        "running.input",
        "running.loop",
        "running.measurement",
        "running.sinks",
        "workers.chunk",
        "workers.observers",
        "workers.pass_monitor",
        "workers.record",
        "workers.slices",
        "workers.thread_cache",
    }
    unwanted = {"dataclasses", "inspect", "logging", "multiprocessing", "pickle", "typing"}
    assert not unwanted & loaded


def test_a_run_that_nobody_observes_loads_no_hooks() -> None:
    """Not even the manager: nobody is notified."""
    loaded = loaded_after("import amorsize\namorsize.execute(abs, [1], executor='serial')")
    assert within(loaded, "amorsize.hooks") == {"interruption"}


def test_a_run_with_hooks_loads_the_manager_alone() -> None:
    """Conditions, chains, decorators and helpers are for those who ask for them."""
    loaded = loaded_after(
        "import amorsize\n"
        "amorsize.execute(abs, [1], executor='serial', hooks=amorsize.HookManager())"
    )
    assert within(loaded, "amorsize.hooks") == {
        "entries",
        "events",
        "executions",
        "interruption",
        "manager",
        "termination",
    }


def test_a_worker_process_imports_what_it_needs_alone() -> None:
    """A worker starts fast: no optimizer, no exporter, no psutil."""
    loaded = loaded_after("import amorsize.engines.process.worker")
    assert within(loaded, "amorsize") == {
        "engines.process.connection",
        "engines.process.module_files",
        "engines.process.program_state",
        "engines.process.protocol",
        "engines.process.worker",
        "errors",
        "workers.by_value",
        "workers.chunk",
        "workers.item_slots",
        "workers.log_capture",
        "workers.record",
        "workers.role",
        "workers.slices",
        "workers.thread_limits",
    }
    assert not {"cloudpickle", "dataclasses", "inspect", "logging", "pickle", "psutil"} & loaded
