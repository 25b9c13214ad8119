"""The architecture: which module may import which, held by walking the imports.

``LAYERS`` is to be read from top to bottom: a module may import what stands above it and is
named beside it, nothing else. Imports inside functions count like those at the top of a file;
those under ``if TYPE_CHECKING:`` do not run, and have a table of their own.
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

LAYERS = {
    # The package itself resolves its public names on first use, so importing it imports nothing.
    "the name": {
        "amorsize": "",
    },
    "words that everyone speaks": {
        "errors": "",
        "record": "",
        "hooks.events": "",
        "hooks.entries": "errors hooks.events record",
        "hooks.registration": "hooks.entries hooks.events",
        "hooks.conditions": "errors hooks.entries hooks.events",
        "hooks.chains": "errors hooks.entries hooks.events",
        "hooks.decorators": "hooks.entries hooks.events",
        "hooks.background": "hooks.entries hooks.events",
        "hooks.calls": "hooks.background hooks.entries hooks.events",
        "hooks.config": "errors hooks.chains hooks.conditions hooks.entries hooks.events",
        "hooks.manager": (
            "errors hooks.background hooks.calls hooks.conditions hooks.config hooks.decorators "
            "hooks.entries hooks.events hooks.registration"
        ),
        "hooks.default": "hooks.entries hooks.events hooks.manager",
        "hooks.helpers": "errors hooks.entries hooks.events",
        "hooks": "",  # it resolves its names on first use, too
    },
    "facts": {
        "engine": "errors record",
        "arguments": "engine errors record",
        "system": "errors record",
        "user_metrics": "errors",
        "tracing": "record",
        "chunk_trace": "tracing",
        "collecting": "chunk_trace record tracing user_metrics",
        "known_functions": "",
        "gil_probe": "",
        "clocks": "record",
        "span": "errors",
        "watch": "gil_probe span",
        "sampling": "clocks collecting gil_probe",
        "payload": "record sampling",
    },
    "decision": {
        "workload": "known_functions record",
        "cost": "record workload",
        "explanation": "cost record",
        "chooser": "clocks cost explanation gil_probe payload sampling system workload",
        "opening": ("arguments clocks gil_probe known_functions sampling span watch workload"),
        "optimizer": "arguments chooser clocks cost engine explanation sampling system",
    },
    # A worker process imports process_worker and what that needs; all of it is to stay light.
    "execution": {
        "sinks": "",
        "backends": "",
        "backends.board": "",
        "worker": "backends.board collecting errors record span",
        "chunking": "span",
        "log_records": "tracing",
        "backends.base": "collecting errors record worker",
        "backends.channel": "",
        "backends.wire": "backends.channel errors worker",
        "backends.process_worker": (
            "backends.board backends.channel backends.wire collecting errors log_records worker"
        ),
        "backends.process_pool": "backends.board backends.channel errors system",
        "backends.process": (
            "backends.base backends.board backends.process_pool backends.wire errors log_records "
            "system worker"
        ),
        "prestart": "backends.process_pool system workload",
        "backends.serial": "backends.base watch worker",
        "backends.thread": "backends.base backends.board errors watch worker",
        "backends.foreign_worker": "backends.board backends.wire collecting log_records worker",
        "backends.foreign": (
            "backends.base backends.foreign_worker backends.wire errors log_records tracing worker"
        ),
        "backends.futures": (
            "backends.base backends.board backends.foreign backends.foreign_worker errors worker"
        ),
        "backends.dask": "backends.base backends.foreign backends.foreign_worker errors",
    },
    # Only the parent process emits events, and only `reporting` builds them.
    "the run loop": {
        "reporting": "backends.base hooks.events hooks.manager tracing user_metrics worker",
        "termination": "",
        "plan": "engine record worker",
        "backends.factory": (
            "backends.base backends.dask backends.futures backends.process backends.serial "
            "backends.thread plan watch"
        ),
        "failures": "backends.base errors termination worker",
        "head_start": (
            "backends.base backends.factory chooser engine errors gil_probe known_functions "
            "opening plan sampling system worker"
        ),
        "apart": "",
        "retries": "worker",
        "course": "chunking engine opening plan workload",
        "run": (
            "apart backends.base backends.factory chunking course errors failures head_start "
            "log_records plan reporting retries sinks termination worker"
        ),
        "progress": "errors hooks",
    },
    # Observers know events, never the run loop that sends them.
    "observers": {
        "testing": "errors hooks.events hooks.manager",
        "exporters.sender": "errors",
        "exporters.base": "errors exporters.sender hooks",
        "exporters.registry": "errors exporters.base exporters.sender hooks hooks.config",
        "exporters.metrics": "hooks.events",
        "exporters.numbers": "exporters.metrics",
        "exporters.user_numbers": "exporters.metrics exporters.numbers user_metrics",
        "exporters.exemplars": "exporters.numbers hooks",
        "exporters.exposition": "exporters.metrics exporters.numbers",
        "exporters.page": "exporters.exposition exporters.metrics exporters.numbers",
        "exporters.endpoint": "",
        "exporters.server": "",
        "exporters.ports": "",
        "exporters.textfile": "errors",
        "exporters.file_sd": "errors exporters.textfile",
        "exporters.listening": ("errors exporters.file_sd exporters.ports exporters.server"),
        "exporters.push": (
            "errors exporters.listening exporters.metrics exporters.page exporters.sender"
        ),
        "exporters": "exporters.base exporters.sender",
        "exporters.totals": (
            "amorsize exporters.base exporters.exemplars exporters.metrics exporters.numbers "
            "exporters.user_numbers hooks"
        ),
        "exporters.span_budget": "",
        "exporters.span_writer": "exporters.span_budget tracing",
        "exporters.instruments": "exporters.metrics exporters.numbers",
        "exporters.otlp": "errors exporters.sender",
        "exporters.execution_traces": (
            "exporters.metrics exporters.numbers exporters.sender exporters.span_budget "
            "exporters.span_writer hooks tracing"
        ),
        "exporters.opentelemetry": (
            "amorsize chunk_trace errors exporters.base exporters.execution_traces "
            "exporters.instruments exporters.metrics exporters.numbers exporters.otlp "
            "exporters.sender exporters.span_writer exporters.totals hooks tracing"
        ),
        "exporters.changes": "exporters.metrics exporters.numbers",
        "exporters.datagrams": "",
        "exporters.datadog_events": "errors hooks",
        "exporters.datadog_api": "errors exporters.datadog_events exporters.sender",
        "exporters.datadog": (
            "errors exporters.base exporters.changes exporters.datadog_api "
            "exporters.datadog_events exporters.datagrams exporters.metrics exporters.numbers "
            "exporters.push exporters.sender exporters.totals exporters.user_numbers hooks"
        ),
        "exporters.cloudwatch_data": (
            "exporters.changes exporters.metrics exporters.numbers exporters.user_numbers "
            "user_metrics"
        ),
        "exporters.emf": "exporters.cloudwatch_data",
        "exporters.cloudwatch": (
            "errors exporters.base exporters.changes exporters.cloudwatch_data exporters.emf "
            "exporters.metrics exporters.numbers exporters.push exporters.sender exporters.totals "
            "hooks"
        ),
        "exporters.prometheus": (
            "errors exporters.base exporters.endpoint exporters.listening exporters.page "
            "exporters.push exporters.textfile exporters.totals hooks"
        ),
    },
    # The executor knows exporters by nothing but the environment, which may name some.
    "the way in": {
        "environment": ("errors exporters.base exporters.registry hooks.config hooks.manager"),
        "call": (
            "arguments backends.base chunking collecting course engine environment errors "
            "explanation head_start hooks.manager opening optimizer plan progress reporting run "
            "sampling sinks system worker"
        ),
        "driving": "backends.process_pool call errors explanation sinks",
        "executor": (
            "arguments backends.base backends.process_pool call environment head_start opening "
            "prestart sinks termination"
        ),
        "streaming": "call driving hooks.manager sinks termination",
        "aio": "call driving explanation hooks.manager sinks termination",
    },
    # These use amorsize as anybody would, through its public names.
    "programs": {
        "demo": "",
        "demo.sources": "errors",
        "demo.stages": "demo.sources",
        "demo.service": "demo.sources",
        "demo.cluster": "errors",
        "demo.report": "amorsize",
        "demo.run": (
            "amorsize demo.cluster demo.report demo.service demo.sources demo.stages errors "
            "exporters.listening exporters.prometheus hooks"
        ),
        "dashboards": "errors",
        "cli": "amorsize dashboards demo.run errors",
        "__main__": "cli",
    },
}

TYPES_ONLY = {
    "plan": "backends.base chunking",
    "reporting": "plan",
    "amorsize": (
        "aio errors executor explanation exporters.cloudwatch exporters.datadog "
        "exporters.opentelemetry exporters.prometheus exporters.registry hooks optimizer "
        "streaming user_metrics"
    ),
    "hooks": (
        "hooks.chains hooks.conditions hooks.default hooks.entries hooks.events hooks.helpers "
        "hooks.manager hooks.registration"
    ),
    "hooks.config": "hooks.manager",
    "cost": "system",
    "workload": "payload sampling",
    "aio": "engine",
    "executor": "chooser engine explanation hooks.manager workload",
    "opening": "chooser collecting explanation plan",
    "streaming": "engine",
    "explanation": "cost sampling system workload",
}

THIRD_PARTY = {
    "system": "psutil",
    "chunk_trace": "opentelemetry",
    "payload": "cloudpickle",
    "backends.dask": "distributed",
    "backends.wire": "cloudpickle",
    "demo.cluster": "distributed",
    "engine": "distributed",
    "progress": "tqdm",
    "exporters.execution_traces": "opentelemetry",
    "exporters.instruments": "opentelemetry",
    "exporters.opentelemetry": "opentelemetry",
    "exporters.otlp": "opentelemetry",
    "exporters.span_writer": "opentelemetry",
    "exporters.cloudwatch": "boto3 botocore",
    "exporters.datadog": "datadog",
    "exporters.datagrams": "datadog",
    "exporters.page": "prometheus_client",
    "exporters.ports": "psutil",
    "exporters.file_sd": "psutil",
    "exporters.prometheus": "prometheus_client",
}

IMPORTED_BEHIND_ITS_PACKAGE = {
    "chunk_trace",
    "exporters.execution_traces",
    "exporters.instruments",
    "exporters.otlp",
    "exporters.span_writer",
}
"""Modules that subclass a package's classes, and are themselves imported by the function that has
found the package there."""

PRINTS = ("cli", "demo")
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers"}
MAX_LINES = 500

ALLOWED = {module: set(row.split()) for rows in LAYERS.values() for module, row in rows.items()}


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
    return tops - {"amorsize"} - set(sys.stdlib_module_names)


# --- the table ----


def test_the_table_has_a_row_for_every_module_and_no_other() -> None:
    """A new module has to find its place in the architecture first."""
    assert set(ALLOWED) == set(FILES)


def test_every_row_builds_on_rows_above_it_alone() -> None:
    """Read from top to bottom, the table has no cycle."""
    known: set[str] = set()
    for module, allowed in ALLOWED.items():
        assert allowed <= known, f"{module} imports from below: {sorted(allowed - known)}"
        known.add(module)


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_what_its_row_allows(module: str) -> None:
    """Imports inside of functions included."""
    assert own(imports_of(module).running) <= ALLOWED.get(module, set())


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_for_its_annotations_what_its_row_allows(module: str) -> None:
    """What runs may be annotated; beyond that the table of types says more."""
    allowed = ALLOWED.get(module, set()) | set(TYPES_ONLY.get(module, "").split())
    assert own(imports_of(module).types_only) <= allowed


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
def test_a_module_is_no_longer_than_500_lines(module: str) -> None:
    """What is longer holds two concepts."""
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", FILES)
def test_only_the_command_line_prints(module: str) -> None:
    """A library writes to its logger."""
    if module.partition(".")[0] in PRINTS:
        return
    calls = [node.func for node in ast.walk(parse(module)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


# --- what importing costs ----

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
    assert loaded == {
        "amorsize.arguments",
        "amorsize.engine",
        "amorsize.environment",
        "amorsize.executor",
        "amorsize.gil_probe",
        "amorsize.known_functions",
        "amorsize.opening",
        "amorsize.record",
        "amorsize.sampling",
        "amorsize.span",
        "amorsize.clocks",
        "amorsize.watch",
        "amorsize.workload",
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
    assert loaded == {"amorsize.hooks.entries", "amorsize.hooks.events", "amorsize.hooks.manager"}


def test_a_worker_process_imports_no_more_than_it_needs() -> None:
    """What runs chunks elsewhere starts fast: no optimizer, no exporter, no psutil."""
    script = "import amorsize.backends.process_worker, sys\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {name for name in done.stdout.split() if name.startswith("amorsize.")}
    assert loaded == {
        "amorsize.backends",
        "amorsize.backends.board",
        "amorsize.backends.channel",
        "amorsize.backends.process_worker",
        "amorsize.backends.wire",
        "amorsize.collecting",
        "amorsize.errors",
        "amorsize.log_records",
        "amorsize.record",
        "amorsize.span",
        "amorsize.tracing",
        "amorsize.worker",
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
