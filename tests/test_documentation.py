"""README and docs stay true: their snippets run, their links lead somewhere, their tests exist."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documented import documented_keys
from modes import Engines

from amorsize.exporters import registry

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def source_files() -> list[Path]:
    """List the files of the package."""
    return sorted((ROOT / "amorsize").rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository, and a title in it."""
    for target, title in LINK.findall(page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        if title:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in titles}
            assert title in anchors, f"{page.name} links to {target}#{title}"


@pytest.mark.parametrize("snippet", PYTHON.findall((ROOT / "README.md").read_text()))
def test_the_readmes_snippets_run(
    snippet: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand, with a function and data."""
    monkeypatch.setenv("AMORSIZE_PROMETHEUS_PORT", "0")
    names = {
        "func": lambda x: x * x,
        "data": range(100),
        "generator": lambda: (x for x in range(100)),
    }
    try:
        exec(compile(snippet, "README.md", "exec"), names)
        if "results" in names:
            assert names["results"] is not None
    finally:
        from amorsize.exporters.base import close_all

        close_all()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("snippet", PYTHON.findall((ROOT / "docs" / "distributed.md").read_text()))
def test_the_snippets_of_distributed_run(
    snippet: str, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, with a cluster of this machine."""
    import distributed

    client = engines.mode("dask").executor
    real = distributed.Client

    class Connected(real):  # type: ignore[misc, valid-type]
        """Finds the scheduler where it is."""

        def __init__(self, address: str) -> None:
            assert address.startswith("tcp://")
            super().__init__(client.scheduler.address)

    monkeypatch.setattr(distributed, "Client", Connected)
    names: dict[str, Any] = {"func": abs, "data": range(-10, 0)}
    exec(compile(f"import amorsize\n{snippet}", "distributed.md", "exec"), names)
    assert names["results"] == list(range(10, 0, -1))


@pytest.mark.parametrize(
    "snippet", PYTHON.findall((ROOT / "docs" / "opentelemetry.md").read_text())
)
def test_the_snippets_of_opentelemetry_run(snippet: str, tmp_path: Path) -> None:
    """Each as a program of its own, because providers are set once a process."""
    (tmp_path / "report.py").write_text(snippet)
    ran = subprocess.run(
        [sys.executable, "report.py"],
        cwd=tmp_path,
        env=os.environ | {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    if "TraceIdRatioBased" not in snippet:  # the others print their spans
        assert '"name": "execute ' in ran.stdout
        assert '"name": "chunk"' in ran.stdout


HOOKS = (ROOT / "docs" / "hooks.md").read_text()
SHOWN = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)
ALERTS = "def measure(context): ...\ndef page(context): ...\n"


@pytest.mark.parametrize(("program", "printed"), SHOWN.findall(HOOKS))
def test_the_examples_of_hooks_print_what_the_page_says(
    program: str, printed: str, tmp_path: Path
) -> None:
    """Each is a program of its own, beside the page's file of hooks."""
    (settings,) = re.findall(r"^```toml\n(.*?)^```", HOOKS, re.DOTALL | re.MULTILINE)
    (tmp_path / "amorsize.toml").write_text(settings)
    (tmp_path / "alerts.py").write_text(ALERTS)
    (tmp_path / "program.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stdout == printed
    warned = "builtins.int: item 1 failed with ValueError\n"  # the log of the run
    assert ran.stderr == (warned if "return_exceptions" in program else "")


def test_every_example_of_hooks_shows_what_it_prints() -> None:
    """So that every one is run."""
    assert len(SHOWN.findall(HOOKS)) == len(PYTHON.findall(HOOKS)) >= 8


def test_every_key_of_the_table_of_events_is_in_the_code() -> None:
    """The ``recorder`` of the tests asserts the reverse: each key of an event is in the table."""
    written = "\n".join(path.read_text() for path in source_files())
    assert len(documented_keys()) > 35
    keys = sorted(documented_keys())
    assert [key for key in keys if not re.search(rf'"{key}"|\b{key}=', written)] == []


def test_every_fault_of_the_table_has_its_test() -> None:
    """Each test that docs/faults.md names is a test of the suite."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in sorted(named) if f"def {name}(" not in written]
    assert len(named) > 25
    assert missing == []


def test_every_row_of_the_fault_table_names_a_test() -> None:
    """A fault that nobody shows is not in the table."""
    rows = [
        line
        for line in (ROOT / "docs" / "faults.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| fault", "| situation"))
    ]
    without = [row for row in rows if "`test_" not in row and "the same test" not in row]
    assert len(rows) > 25
    assert without == []


PUBLIC_MODULES = {
    "amorsize",
    "amorsize.errors",
    "amorsize.exporters",
    "amorsize.exporters.cloudwatch",
    "amorsize.exporters.datadog",
    "amorsize.exporters.opentelemetry",
    "amorsize.exporters.prometheus",
    "amorsize.hooks",
    "amorsize.testing",
}
DOTTED = re.compile(r"\bamorsize(?:\.\w+)+")


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")]), ids=lambda page: page.name
)
def test_pages_for_users_name_public_modules_alone(page: Path) -> None:
    """Whatever else is in the package may move. A metric's name in OpenTelemetry is no path."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    metrics = set(DOTTED.findall((ROOT / "docs" / "metrics.md").read_text()))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in source_files()
    }
    named = {
        module
        for name in set(DOTTED.findall(text)) - metrics
        for module in modules
        if f"{name}.".startswith(f"{module}.")
    }
    assert named <= PUBLIC_MODULES


@pytest.mark.parametrize("name", registry.OWN)
def test_each_exporter_has_its_rows_and_is_known_to_type_checkers(name: str) -> None:
    """In the table of exporters and the README's table of extras; and the package declares it."""
    exporters, readme, package = (
        (ROOT / path).read_text()
        for path in ("docs/exporters.md", "README.md", "amorsize/__init__.py")
    )
    assert f"| `{name}` |" in exporters
    assert re.search(rf"^\| `.*`enable_{name}\(\)`.* \|$", readme, re.MULTILINE)
    assert f"enable_{name} as enable_{name}" in package


# --- the maintainers' guide ----

GUIDE = sorted(ROOT.glob("docs/development/*.md"))
QUOTED = re.compile(r"`([^`\n]+)`")


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_files_and_modules_of_the_guide_exist(page: Path) -> None:
    """Each path of the repository, and each dotted name of the package, in backticks."""
    top = {path.name for path in ROOT.iterdir()}
    missing = []
    for quoted in QUOTED.findall(page.read_text()):
        first = re.match(r"[\w.-]+", quoted)
        if first is None or " " in quoted or re.search(r"[<>*{]|\.\.\.", quoted):
            continue
        if "/" in quoted and first[0] in top:
            path, _, _ = quoted.partition("::")
            missing += [] if (ROOT / path).exists() else [quoted]
        elif re.fullmatch(r"amorsize(\.\w+)+", quoted):
            try:
                pkgutil.resolve_name(quoted)
            except (ImportError, AttributeError):
                missing.append(quoted)
    assert missing == []


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.name)
def test_tests_of_the_guide_exist(page: Path) -> None:
    """Each test that it names is a test of the suite."""
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


def test_pages_of_the_guide_are_linked() -> None:
    """From its index, which CONTRIBUTING.md links."""
    index = ROOT / "docs" / "development" / "README.md"
    linked = {target for target, _ in LINK.findall(index.read_text())}
    assert {page.name for page in GUIDE} - {index.name} <= linked
    assert "docs/development/README.md" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_guide_names_every_private_module() -> None:
    """Of Python's, which may change with any version."""
    guide = (ROOT / "docs" / "development" / "internals.md").read_text()
    imported = re.compile(r"^\s*(?:import|from) (_[a-z]\w*)", re.MULTILINE)
    modules = {name for path in source_files() for name in imported.findall(path.read_text())}
    modules -= {"_typeshed"}  # for type checkers alone
    assert len(modules) > 4
    assert {name for name in modules if f"`{name}`" not in guide} == set()


LOCK = re.compile(r"(\w+)(?:: \w+)? = (?:threading\.)?(?:R?Lock|Condition)\(\)")


def test_locks_of_the_guide_exist_where_it_says() -> None:
    """Each ``name`` or ``Class.name``, in the module that follows it in parentheses."""
    guide = (ROOT / "docs" / "development" / "threads-and-locks.md").read_text()
    named = re.findall(r"`(?:(\w+)\.)?(_[a-z]\w*)`[\w\s']*\(`(amorsize/[^`]+)`", guide)
    assert len(named) > 12
    for owner, lock, path in named:
        source = (ROOT / path).read_text()
        assert lock in LOCK.findall(source), f"{path} has no lock {lock}"
        assert not owner or f"class {owner}" in source, f"{path} has no class {owner}"


@pytest.mark.parametrize(
    ("page", "pattern"),
    [
        ("threads-and-locks.md", r"threading\.(?:Thread|Timer)\(|start_new_thread\("),
        ("threads-and-locks.md", r"\b(?:R?Lock|Condition)\(\)|allocate_lock\(\)"),
        ("fork-and-signals.md", r"import in_forked_child|atexit\.register|signal\.signal\("),
    ],
    ids=["threads", "locks", "forks, exits, signals"],
)
def test_the_guide_names_every_module_that(page: str, pattern: str) -> None:
    """Starts a thread, creates a lock, or registers a handler of a fork, a signal or the exit."""
    guide = (ROOT / "docs" / "development" / page).read_text()
    names = [
        path.relative_to(ROOT).as_posix()
        for path in source_files()
        if re.search(pattern, path.read_text())
    ]
    assert [name for name in names if f"`{name}`" not in guide] == []
    assert names
