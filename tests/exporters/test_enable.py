"""Exporters by name: from code, from the environment, and from other people's packages."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE

import amorsize
from amorsize.errors import (
    ExporterError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
    PortInUseError,
)
from amorsize.exporters import base, registry
from amorsize.exporters.base import close_all
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.hooks import HookEvent, get_default_manager
from amorsize.running import environment

from .backends import Backend

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "writing-an-exporter.md"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this process had not run anything yet."""
    monkeypatch.setattr(environment, "_read", False)
    monkeypatch.setattr(base, "_applied", set())
    monkeypatch.setenv("AMORSIZE_PROMETHEUS_PORT", "0")
    monkeypatch.delenv("AMORSIZE_EXPORTERS", raising=False)
    yield
    close_all()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Put a package on the path, with a module and entry points as an installer writes them."""

    def make(code: str, *targets: str, distribution: str = "third") -> str:
        module = f"amorsize_test_{distribution}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{distribution}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        lines = [target.replace("=", f" = {module}:") for target in targets]
        (info / "entry_points.txt").write_text("\n".join(["[amorsize.exporters]", *lines, ""]))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return module

    return make


def listening() -> list[Any]:
    """The exporters that observe runs by the default manager."""
    entries = get_default_manager()._hooks[HookEvent.POST_EXECUTE].entries
    hooks: list[Any] = [entry.callback for entry in entries]
    return [hook.__wrapped__.__self__ for hook in hooks if hasattr(hook, "__wrapped__")]


PLAIN = """
    from amorsize.exporters import Exporter
    class Plain(Exporter):
        name = "plain"
        def __init__(self, size=1):
            super().__init__()
            self.size = size
        def post_execute(self, context):
            pass
"""


# --- from code ----


def test_by_name_or_by_function_it_is_the_same():
    """One exporter for both ways."""
    exporter = amorsize.enable("prometheus", port=0)
    assert isinstance(exporter, PrometheusExporter)
    assert amorsize.enable_prometheus(port=0) is exporter
    assert amorsize.enable("prometheus", port=0) is exporter


@pytest.mark.parametrize("name", registry.OWN)
def test_each_of_our_own_names_is_there(name):
    """No name is offered before its exporter."""
    target = registry._load(name, registry._find(name))
    assert target is getattr(amorsize, f"enable_{name}")


def test_an_unknown_name_lists_the_known_ones(package):
    """Those of other packages, too."""
    package(PLAIN, "plain=Plain")
    with pytest.raises(InvalidValueError, match=r"no exporter 'promteus'; .*plain, prome"):
        amorsize.enable("promteus")


def test_a_name_is_a_string():
    """A class is not."""
    with pytest.raises(InvalidTypeError, match="must be the name of an exporter, a string; got"):
        amorsize.enable(PrometheusExporter)  # type: ignore[arg-type]


def test_an_unknown_setting_lists_the_known_ones():
    """Before the exporter is built."""
    with pytest.raises(InvalidTypeError, match=r"'prot'\. Its settings are: port, addr, registry"):
        amorsize.enable("prometheus", prot=1)
    assert listening() == []


def test_a_missing_extra_is_reported_as_it_is(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'amorsize\[prometheus\]'"):
        amorsize.enable("prometheus")


def test_a_class_of_another_package_is_enabled_once(package):
    """With what our own exporters have."""
    package(PLAIN, "plain=Plain")
    exporter = amorsize.enable("plain", size=2)
    assert exporter.size == 2
    assert amorsize.enable("plain", size=2) is exporter
    assert listening() == [exporter]
    with pytest.raises(ExporterError, match="is enabled already, with another size"):
        amorsize.enable("plain", size=3)
    exporter.close()
    assert amorsize.enable("plain", size=3).size == 3


BROKEN = """
    from amorsize.exporters import Exporter
    def returns_nothing():
        pass
    class NoExporter:
        pass
    number = 3
"""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing", r"third\) cannot be loaded: AttributeError: .*missing"),
        ("number", r"must be a subclass of .* or a function .*; it is an object of type int"),
        ("NoExporter", r"must be a subclass of .*; it is the class NoExporter"),
        ("returns_nothing", r"returned NoneType when it was enabled; it must return an"),
    ],
)
def test_a_wrong_entry_point_is_an_error_that_names_the_mistake(package, target, message):
    """And whose it is."""
    package(BROKEN, f"broken={target}")
    with pytest.raises(ExporterError, match=message):
        amorsize.enable("broken")


def test_a_package_that_cannot_be_imported_is_named(package):
    """Its own error is the cause."""
    package("import no_such_module_here", "broken=Plain")
    with pytest.raises(
        ExporterError, match=r"'broken' \(amorsize_test_third:Plain of third\).*ModuleNotFoundError"
    ) as raised:
        amorsize.enable("broken")
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)


def test_two_packages_with_one_name_are_an_error(package):
    """None wins by the order of the path."""
    package(PLAIN, "plain=Plain", distribution="one")
    package(PLAIN, "plain=Plain", distribution="two")
    with pytest.raises(ExporterError, match=r"several packages .* amorsize_test_one:Plain, amors"):
        amorsize.enable("plain")


@pytest.mark.parametrize(
    "snippet",
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "exporters.md").read_text(), re.S),
)
def test_the_snippets_of_the_page_enable_prometheus(snippet):
    """As they stand, but for the port."""
    exec(snippet.replace("9500", "0"), {"amorsize": amorsize})
    assert [exporter.name for exporter in listening()] == ["prometheus"]


# --- from the environment ----


@pytest.mark.parametrize("run", [amorsize.execute, lambda *a: list(amorsize.stream(*a))])
def test_the_first_run_enables_the_exporters_of_the_environment(package, monkeypatch, run):
    """All of them, with any spaces, and the run itself is observed."""
    package(PLAIN, "plain=Plain")
    monkeypatch.setenv("AMORSIZE_EXPORTERS", " prometheus ,plain,, plain")
    assert listening() == []
    run(abs, [-1])
    assert [exporter.name for exporter in listening()] == ["prometheus", "plain"]
    counted = listening()[0].snapshot()
    assert (
        sum(
            sum(series.values())
            for metric, series in counted.items()
            if metric.prometheus == "amorsize_executions_total"
        )
        == 1
    )


def test_the_environment_is_read_once(monkeypatch):
    """By the first run: what is closed stays closed, and what is set later comes too late."""
    amorsize.execute(abs, [1])
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    amorsize.execute(abs, [1])
    assert listening() == []


def test_a_closed_exporter_stays_closed(monkeypatch):
    """A second run does not bring it back."""
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    amorsize.execute(abs, [1])
    listening()[0].close()
    amorsize.execute(abs, [1])
    assert listening() == []


def test_a_wrong_name_in_the_environment_is_an_error_before_anything_runs(monkeypatch):
    """Every time, until it is right; and nothing else is enabled meanwhile."""
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus,promteus")
    called: list[int] = []
    for run in (amorsize.execute, amorsize.stream):
        with pytest.raises(
            InvalidValueError,
            match=r"variable AMORSIZE_EXPORTERS names 'promteus', .* known are .*prometheus",
        ):
            run(called.append, [1], executor="serial")
    assert called == listening() == []
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    amorsize.execute(abs, [1])
    assert len(listening()) == 1


def test_a_missing_extra_is_an_error_from_the_environment_too(monkeypatch):
    """Who asked for monitoring must not go without it unnoticed."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    with pytest.raises(MissingExtraError, match="pip install"):
        amorsize.execute(abs, [1])


def test_a_wrong_setting_of_an_exporter_is_an_error(monkeypatch):
    """As from its own function."""
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    monkeypatch.setenv("AMORSIZE_PROMETHEUS_PORT", "many")
    with pytest.raises(InvalidValueError, match="AMORSIZE_PROMETHEUS_PORT"):
        amorsize.execute(abs, [1])


def test_a_port_that_is_taken_does_not_fail_the_run(monkeypatch, caplog):
    """The log says what to do; asked for from code, it is an error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
        monkeypatch.setenv("AMORSIZE_PROMETHEUS_PORT", port)
        assert amorsize.execute(abs, [-1]) == [1]
        assert amorsize.execute(abs, [-1]) == [1]
        with pytest.raises(PortInUseError):
            amorsize.enable("prometheus")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("AMORSIZE_EXPORTERS asks for the prometheus exporter, which failed")
    assert port in errors[0]
    assert "AMORSIZE_PROMETHEUS_PORT" in errors[0]
    assert errors[0].endswith("The run goes on without it.")


def test_an_exporter_that_fails_to_begin_does_not_fail_the_run(package, monkeypatch, caplog):
    """Its error is logged without credentials, and the next one is enabled."""
    package(
        PLAIN + "    def fails():\n        raise OSError('http://me:hunter2@host is gone')\n",
        "fails=fails",
        "plain=Plain",
    )
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "fails,plain")
    assert amorsize.execute(abs, [-1]) == [1]
    assert caplog.messages == [
        "AMORSIZE_EXPORTERS asks for the fails exporter, which failed: OSError: http://***@host "
        "is gone. The run goes on without it."
    ]
    assert [exporter.name for exporter in listening()] == ["plain"]


def test_an_exporter_that_the_program_enabled_stays(monkeypatch):
    """Its settings are stronger than the environment's, which is no error."""
    exporter = amorsize.enable_prometheus(addr="localhost", port=0)
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    amorsize.execute(abs, [1])
    assert listening() == [exporter]


def test_an_exporter_may_itself_execute(package, monkeypatch):
    """Its own run does not enable it again."""
    package(
        PLAIN
        + "    class Eager(Plain):\n"
        + "        def __init__(self):\n"
        + "            super().__init__()\n"
        + "            import amorsize\n"
        + "            amorsize.execute(abs, [1])\n",
        "eager=Eager",
    )
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "eager")
    amorsize.execute(abs, [1])
    assert len(listening()) == 1


def test_first_runs_of_several_threads_enable_once(package, monkeypatch):
    """None runs before it is done."""
    package(PLAIN, "plain=Plain")
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "plain")
    barrier = threading.Barrier(8)
    seen: list[int] = []

    def first() -> None:
        barrier.wait(PATIENCE)
        amorsize.execute(abs, [1])
        seen.append(len(listening()))

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == [1] * 8


def python(script: str, *arguments: str, **variables: str) -> str:
    """Run a script in a process of its own; return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "AMORSIZE_PROMETHEUS_PORT": "0", "no_proxy": "*", **variables},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_without_the_variable_no_exporter_is_imported():
    """Who asks for nothing pays nothing."""
    script = """
        import amorsize, sys
        amorsize.execute(abs, [1], executor="serial")
        print([name for name in sys.modules if name.startswith("amorsize.exporters")])
    """
    assert python(script, AMORSIZE_EXPORTERS="") == "[]\n"


def test_only_the_parent_enables_anything():
    """Not workers whose function runs something itself, nor children of multiprocessing."""
    script = """
        import amorsize, multiprocessing, os

        def nested(item):
            import amorsize
            amorsize.execute(abs, [item], executor="serial")
            return amorsize.get_default_manager().has_hooks(), os.getpid()

        workers = amorsize.execute(nested, range(8), executor="process", n_jobs=2)
        assert os.getpid() not in {pid for _, pid in workers}
        print({enabled for enabled, _ in workers})
        for method in multiprocessing.get_all_start_methods():
            if method != "fork":  # functions of `python -c` cannot be found by the others
                import operator
                target = operator.methodcaller("has_hooks")
                with multiprocessing.get_context(method).Pool(1) as pool:
                    pool.apply_async(amorsize.execute, (abs, [1])).get(60)
                    manager = pool.apply_async(eval, ("__import__('amorsize')"
                        ".get_default_manager().has_hooks()",)).get(60)
                    print(method, manager)
                    pool.close()
                    pool.join()
        print(amorsize.get_default_manager().has_hooks())
    """
    lines = python(script, AMORSIZE_EXPORTERS="prometheus").splitlines()
    assert lines[0] == "{False}"
    assert lines[-1] == "True"
    assert all(line.endswith(" False") for line in lines[1:-1])
    assert len(lines) >= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # 3.12: it is the point
def test_a_forked_child_does_not_enable_it_again(monkeypatch):
    """The parent's is inert there, and no second one takes a port."""
    monkeypatch.setenv("AMORSIZE_EXPORTERS", "prometheus")
    amorsize.execute(abs, [1])
    child = os.fork()
    if child == 0:
        good = amorsize.execute(abs, [-1], executor="serial") == [1] and not listening()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0


CHILD = """
    import amorsize, logging, multiprocessing, os, sys
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
    manager = amorsize.get_default_manager()
    def run():
        amorsize.execute(abs, [1], executor="serial")
        print(manager.has_hooks(amorsize.HookEvent.POST_EXECUTE), flush=True)
    def start(method):
        child = multiprocessing.get_context(method).Process(target=run)
        child.start()
        child.join()
"""


@pytest.mark.parametrize("asked", ["", "1"])
def test_a_child_that_ignores_the_environment_says_so(asked, tmp_path):
    """With what to do; and with that it enables the exporters, those of the file as well."""
    (tmp_path / "amorsize.toml").write_text("[exporters.datadog]\n")
    variables = {
        "AMORSIZE_EXPORTERS": "prometheus",
        "AMORSIZE_CONFIG": str(tmp_path / "amorsize.toml"),
        "AMORSIZE_EXPORTERS_IN_CHILDREN": asked,
    }
    printed = python(CHILD + "    start('fork')", **variables)
    if asked:
        assert printed.startswith("True\n")
        assert "inert" not in printed
        return
    file, names, observed = printed.splitlines()
    assert file.startswith("WARNING The exporters and hooks of the file that AMORSIZE_CONFIG names")
    assert names.startswith("WARNING The exporters that AMORSIZE_EXPORTERS names are inert in this")
    assert names.endswith(". Set AMORSIZE_EXPORTERS_IN_CHILDREN=1 to enable them in it.")
    assert observed == "False"


def test_a_forked_child_enables_them_again_where_it_is_asked_for():
    """Those of the parent have stayed with the parent; nothing says that they are inert."""
    script = (
        CHILD
        + """
    run()
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    os.wait()
    """
    )
    variables = {"AMORSIZE_EXPORTERS": "prometheus", "AMORSIZE_EXPORTERS_IN_CHILDREN": "1"}
    assert python(script, **variables) == "True\nTrue\n"


# --- the package of docs/writing-an-exporter.md ----


def build(into: Path) -> Path:
    """Write the page's files, and install them as a user would; return where."""
    blocks = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [name for name, _ in blocks] == ["amorsize_webhook.py", "pyproject.toml"]
    source, target = into / "source", into / "target"
    source.mkdir()
    for name, text in blocks:
        (source / name).write_text(text)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, *offline, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("pip", "hatchling") if importlib.util.find_spec(name) is None]
    if missing:
        message = f"needs {' and '.join(missing)} (see the group tests of pyproject.toml)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return build(tmp_path_factory.mktemp("webhook"))


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


def test_the_packages_code_is_about_thirty_lines():
    """Short enough to be read before it is needed."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 35


RUNS = """
    import amorsize, sys
    def work(item):
        if item == 7:
            raise ValueError(item)
        return item
    amorsize.execute(work, range(5), executor="process", n_jobs=2, name="good")
    try:
        amorsize.execute(work, range(8), executor="thread", n_jobs=2, chunksize=1, name="bad")
    except ValueError:
        pass
"""


def test_the_packages_exporter_is_used_from_the_environment(webhook, backend):
    """The program knows nothing of it, and its last run is delivered while it exits."""
    url = f"http://127.0.0.1:{backend.port}/"
    backend.statuses = [503]  # the first attempt fails; the sender's next one does not
    python(
        RUNS,
        AMORSIZE_EXPORTERS="webhook,prometheus",
        WEBHOOK_URL=url,
        PYTHONPATH=str(webhook),
    )
    reported = [(item["function"], item["status"], item["items"]) for item in backend.received]
    assert reported[0] == ("good", "ok", 5)
    assert [each[:2] for each in reported] == [("good", "ok"), ("bad", "error")]
    assert backend.received[0]["seconds"] > 0


def test_the_packages_exporter_is_used_from_code(webhook, backend):
    """With settings, enabled once, its counters among those that Prometheus shows."""
    script = """
        import amorsize, sys, urllib.request
        from amorsize.exporters.base import exporter_stats
        exporter = amorsize.enable("webhook", url=sys.argv[1])
        assert amorsize.enable("webhook", url=sys.argv[1]) is exporter
        amorsize.execute(abs, [1, 2], name="one")
        assert exporter.flush(30)
        amorsize.execute(abs, [1, 2, 3], name="two")
        exporter.flush(30)
        print(exporter_stats())
        print(exporter.sender.stats().last_error)
        page = urllib.request.urlopen(amorsize.enable("prometheus", port=0).url).read().decode()
        print(*[line for line in page.splitlines() if 'exporter="webhook"' in line], sep="\\n")
    """
    backend.statuses = [200, 410]
    printed = python(script, f"http://127.0.0.1:{backend.port}/", PYTHONPATH=str(webhook))
    assert printed.splitlines() == [
        "{'webhook': (1, 1)}",
        "RefusedError: answered 410",
        'amorsize_exporter_dropped_total{exporter="webhook"} 1',
        'amorsize_exporter_errors_total{exporter="webhook"} 1',
    ]
    assert [item["function"] for item in backend.received] == ["one"]


def test_the_packages_function_enables_its_exporter_once(backend):
    """The page's last piece of code, in the module of its first."""
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    for snippet in (snippets[0], snippets[-1]):
        exec(snippet, names)
    with names["enable_webhook"](f"http://127.0.0.1:{backend.port}/") as exporter:
        assert names["enable_webhook"](exporter.url) is exporter
        with pytest.raises(ExporterError, match="enabled already, with another url"):
            names["enable_webhook"]("http://127.0.0.1:1/")


def test_the_packages_exporter_with_a_dead_backend_costs_the_run_nothing(webhook):
    """Results, and an exit in time."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        script = """
            import amorsize, json
            print(json.dumps(amorsize.execute(abs, [-1, 2])))
        """
        printed = python(
            script, AMORSIZE_EXPORTERS="webhook", WEBHOOK_URL=url, PYTHONPATH=str(webhook)
        )
    assert json.loads(printed) == [1, 2]
