"""Hooks in a file: ``save()``, ``load()``, ``AMORSIZE_CONFIG``, and the line of every mistake."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amorsize import (
    HookContext,
    HookEvent,
    HookManager,
    chain,
    every,
    function,
    get_default_manager,
    on_failure,
    slower_than,
)
from amorsize.errors import InvalidValueError
from amorsize.exporters import Exporter
from amorsize.hooks import config

PROGRESS = HookEvent.ON_PROGRESS
POST = HookEvent.POST_EXECUTE

MODULE = """
import amorsize
seen = []

def first(context):
    seen.append("first")
    return 1

def second(context):
    seen.append("second")

def third(context):
    seen.append("third")

async def later(context):
    seen.append("later")

def often(context):
    return True

def no_hook():
    pass

class Group:
    @staticmethod
    def inside(context):
        seen.append("inside")

    def method(self, context):
        pass

group = Group()
"""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of hooks that can be imported, as a file of a user's could name it."""
    (tmp_path / "hooks_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import hooks_of_mine  # type: ignore[import-not-found]

    yield hooks_of_mine
    del sys.modules["hooks_of_mine"]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "amorsize.toml"
    path.write_text(textwrap.dedent(text))
    return path


# --- there and back ----


def test_what_is_saved_is_loaded_again(saved: Any, tmp_path: Path) -> None:
    """Events, callables, chains, conditions, priorities, the background; and the order."""
    hooks = HookManager()
    hooks.register(PROGRESS, saved.first, when=every(items=1000))
    hooks.register(POST, saved.first, when=every(items=1000))
    hooks.register(POST, saved.second, priority=5, when=on_failure)
    hooks.register(POST, saved.later, timeout=2.5, when=slower_than(0.25))
    hooks.register(POST, saved.third, background=True, when=function('pkg."odd\\name".*'))
    hooks.register(POST, saved.Group.inside, when=saved.often)
    hooks.register(POST, chain(saved.first, saved.second), when=every(seconds=5))
    hooks.register(PROGRESS, print)
    path = tmp_path / "amorsize.toml"
    hooks.save(path)
    assert path.read_text() == textwrap.dedent("""\
        # Written by HookManager.save(). docs/hooks.md describes the format.

        [[hooks]]
        events = ["on_progress", "post_execute"]
        call = "hooks_of_mine:first"
        when = {every = {items = 1000}}

        [[hooks]]
        events = ["post_execute"]
        call = "hooks_of_mine:second"
        when = "on_failure"
        priority = 5

        [[hooks]]
        events = ["post_execute"]
        call = "hooks_of_mine:later"
        when = {slower_than = 0.25}
        background = true
        timeout = 2.5

        [[hooks]]
        events = ["post_execute"]
        call = "hooks_of_mine:third"
        when = {function = "pkg.\\"odd\\\\name\\".*"}
        background = true

        [[hooks]]
        events = ["post_execute"]
        call = "hooks_of_mine:Group.inside"
        when = "hooks_of_mine:often"

        [[hooks]]
        events = ["post_execute"]
        chain = ["hooks_of_mine:first", "hooks_of_mine:second"]
        when = {every = {seconds = 5}}

        [[hooks]]
        events = ["on_progress"]
        call = "builtins:print"
        """)
    loaded = HookManager.load(path)
    assert registered(loaded) == registered(hooks)
    loaded.save(path)
    assert registered(HookManager.load(os.fspath(path))) == registered(hooks)


def registered(manager: HookManager) -> list[tuple[Any, ...]]:
    return [
        (event, entry.callback, entry.options)
        for event in HookEvent
        for entry in manager._hooks[event].entries
    ]


_CONDITIONS = st.one_of(
    st.none(),
    st.just(on_failure),
    st.builds(lambda n: every(items=n), st.integers(1, 10**9)),
    st.builds(lambda s: every(seconds=s), st.floats(1e-9, 1e9)),
    st.builds(slower_than, st.floats(1e-9, 1e9)),
    st.builds(function, st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(HookEvent)),
            st.sampled_from(["first", "second", "third", "later"]),
            _CONDITIONS,
            st.integers(-3, 3),
            st.booleans(),
        ),
        unique_by=lambda each: (each[0], each[1]),
        max_size=10,
    )
)
def test_any_registrations_survive_the_file(saved: Any, tmp_path: Path, plan: list[Any]) -> None:
    """Whatever a pattern holds, in the same order."""
    hooks = HookManager()
    for event, name, when, priority, background in plan:
        hooks.register(
            event, getattr(saved, name), when=when, priority=priority, background=background
        )
    hooks.save(tmp_path / "any.toml")
    assert registered(HookManager.load(tmp_path / "any.toml")) == registered(hooks)


def test_what_cannot_be_saved_is_named_and_nothing_is_written(saved: Any, tmp_path: Path) -> None:
    """All of it at once."""

    def inner(context: HookContext) -> None: ...

    hooks = HookManager()
    hooks.register(PROGRESS, saved.first)
    hooks.register(PROGRESS, lambda context: None)
    hooks.register(POST, inner)
    hooks.register(POST, saved.group.method)
    hooks.register(POST, saved.second, when=lambda context: True)
    path = tmp_path / "amorsize.toml"
    path.write_text("before")
    with pytest.raises(InvalidValueError, match="load") as caught:
        hooks.save(path)
    text = str(caught.value)
    assert "<lambda> of tests.hooks" in text or "<lambda> of test_config" in text
    assert "(registered for on_progress)" in text
    assert "<locals>.inner" in text
    assert "Group.method of hooks_of_mine" in text
    assert text.count("has no name to import it by") == 4
    assert "first" not in text
    assert path.read_text() == "before"
    assert os.listdir(tmp_path).count("amorsize.toml") == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_function_of_main_cannot_be_saved(tmp_path: Path) -> None:
    """In the program that loads it, ``__main__`` is something else."""
    script = """if True:
        import sys, amorsize
        hooks = amorsize.HookManager()
        def mine(context): ...
        hooks.register(amorsize.HookEvent.POST_EXECUTE, mine)
        try:
            hooks.save(sys.argv[1])
        except amorsize.AmorsizeError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.toml")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mine is defined in __main__" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Settings of exporters may be secrets."""
    HookManager().save(tmp_path / "amorsize.toml")
    assert stat.S_IMODE((tmp_path / "amorsize.toml").stat().st_mode) == 0o600


# --- mistakes ----


MISTAKES = {
    "key": ('[[hooks]]\nevents = ["on_error"]\ncall = "builtins:print"\nwhne = "on_failure"\n',
            4, "unknown key 'whne'; [[hooks]] takes events, call, chain"),
    "top key": ('\n\nhook = 1\n', 3, "unknown key 'hook'; the file holds [[hooks]] and"),
    "no tables": ('hooks = 3\n', 1, "hooks are written as [[hooks]] tables"),
    "event": ('[[hooks]]\ncall = "builtins:print"\nevents = [\n  "on_error",\n  "on_eror",\n]\n',
              5, "unknown event 'on_eror'; events are pre_execute, on_worker_start"),
    "second table": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\n\n# more\n'
                     '[[hooks]]\nevents = "never"\ncall = "builtins:print"\n',
                     7, "unknown event 'never'"),
    "no events": ('# hooks\n[[hooks]]\ncall = "builtins:print"\n', 2, "needs events, such as"),
    "empty events": ('[[hooks]]\nevents = []\ncall = "builtins:print"\n', 2, "needs events"),
    "no call": ('[[hooks]]\nevents = "on_error"\n', 1, 'needs either call = "package.module:'),
    "call and chain": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\nchain = []\n',
                       1, "either call"),
    "no path": ('[[hooks]]\nevents = "on_error"\ncall = "print"\n', 3,
                "'print' is not an import path"),
    "missing module": ('[[hooks]]\nevents = "on_error"\ncall = "no_such_module_:f"\n', 3,
                       "'no_such_module_' cannot be imported: ModuleNotFoundError"),
    "missing name": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:prnt"\n', 3,
                     "'builtins' has no 'prnt'"),
    "no hook": ('[[hooks]]\nevents = "on_error"\ncall = "hooks_of_mine:no_hook"\n', 3,
                "called with one positional argument"),
    "no callable": ('[[hooks]]\nevents = "on_error"\ncall = "hooks_of_mine:seen"\n', 3,
                    "a hook must be a callable"),
    "link": ('[[hooks]]\nevents = "on_error"\nchain = [\n"builtins:print",\n"builtins:prnt",\n]\n',
             5, "'builtins' has no 'prnt'"),
    "empty chain": ('[[hooks]]\nevents = "on_error"\nchain = []\n', 3, "a list of import paths"),
    "priority": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\npriority = "high"\n',
                 4, "priority must be a whole number"),
    "timeout": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\ntimeout = 1\n', 4,
                "timeout is for hooks in the background"),
    "background": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\nbackground = 1\n', 4,
                   "background must be True or False"),
    "condition": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\nwhen = {evry = 5}\n',
                  4, "unknown condition {'evry': 5}; known are"),
    "condition's value": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\n'
                          'when = {every = {items = 0}}\n', 4, "1 or more; got 0"),
    "condition's key": ('[[hooks]]\nevents = "on_error"\ncall = "builtins:print"\n'
                        '[hooks.when.every]\nminutes = 1\n', 5, "every takes {seconds = 5}"),
    "exporter": ('[exporters.promethus]\n', 1, "no exporter 'promethus'; known are cloudwatch"),
    "exporter's setting": ('[exporters.prometheus]\nport = 0\nprot = 1\n', 3,
                           "Its settings are: port, addr"),
    "exporter's value": ('\n[exporters.prometheus]\nport = 99999\n', 2,
                         "port must be from 0 to 65535, 0 for any free one; got 99999"),
    "exporter's contradiction": ('[exporters.datadog]\nhost = "a"\nsocket_path = "/b"\n', 1,
                                 "pass either socket_path, or host and port"),
    "exporter's table": ('[exporters]\nprometheus = 9\n', 2, "an exporter's settings are a table"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error_with_its_line(
    saved: Any, tmp_path: Path, text: str, line: int, message: str
) -> None:
    """And nothing is registered, for the file is wrong."""
    path = write(tmp_path, text)
    with pytest.raises(InvalidValueError) as caught:
        HookManager.load(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert message in str(caught.value)


def test_a_module_that_fails_to_import_is_an_error_with_its_line_and_cause(tmp_path: Path) -> None:
    """The traceback leads to where it failed."""
    (tmp_path / "broken_hooks.py").write_text("1 / 0\n")
    path = write(tmp_path, '[[hooks]]\nevents = "on_error"\ncall = "broken_hooks:f"\n')
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(InvalidValueError, match=r"line 3: .*ZeroDivisionError") as caught:
            HookManager.load(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = \n", "is not valid TOML: .*line 1"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be"),
    ],
)
def test_what_is_no_toml_file_is_an_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    """A file that is not there, too."""
    path = tmp_path / "amorsize.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidValueError, match=message):
        HookManager.load(path)


def test_loading_imports_what_the_file_names_alone(saved: Any, tmp_path: Path) -> None:
    """No SDK, no exporter, no event loop."""
    path = write(tmp_path, '[[hooks]]\nevents = "on_error"\ncall = "hooks_of_mine:first"\n')
    script = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from amorsize import HookEvent, HookManager
        import amorsize.hooks.config
        HookManager().register(HookEvent.ON_ERROR, print)
        before = set(sys.modules)
        HookManager.load({str(path)!r})
        print(*set(sys.modules) - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["hooks_of_mine"]


# --- exporters ----


@pytest.fixture
def exporters_end() -> Iterator[None]:
    yield
    from amorsize.exporters.base import close_all

    close_all()


@pytest.mark.usefixtures("exporters_end")
def test_exporters_are_enabled_and_saved_with_their_settings(tmp_path: Path) -> None:
    """Those that stand at their defaults are not written."""
    pytest.importorskip("prometheus_client")
    path = write(
        tmp_path,
        """
        [exporters.prometheus]
        port = 0
        """,
    )
    loaded = HookManager.load(path)
    assert not loaded.has_hooks(), "the exporter observes every run through the default manager"
    assert get_default_manager().has_hooks(POST)
    get_default_manager().save(tmp_path / "again.toml")
    assert "[exporters.prometheus]\nport = 0\n" in (tmp_path / "again.toml").read_text()
    assert "[[hooks]]" not in (tmp_path / "again.toml").read_text()
    HookManager.load(tmp_path / "again.toml")  # the same settings: the same exporter


@pytest.mark.usefixtures("exporters_end")
def test_an_exporter_that_was_attached_by_hand_cannot_be_saved(tmp_path: Path) -> None:
    """Its settings are not known."""

    class Mine(Exporter):
        name = "mine"

        def post_execute(self, context: HookContext) -> None: ...

    hooks = HookManager()
    with Mine().attach(hooks), pytest.raises(InvalidValueError, match=r"Mine \(open\)> cannot be"):
        hooks.save(tmp_path / "x.toml")


def test_plain_values_alone_can_stand_in_a_file() -> None:
    """What an exporter's setting may be."""
    assert all(map(config.is_plain, [1, 1.5, "x", True, [1, ["x"]], {"a": (1,)}]))
    assert not any(map(config.is_plain, [None, object(), [None], {1: 1}, {"a": object()}]))


# --- AMORSIZE_CONFIG ----

PROGRAM = """
import os, sys, amorsize
if __name__ == "__main__":
    amorsize.execute(abs, [-1], executor=sys.argv[1], n_jobs=1)
    amorsize.execute(abs, [-1], executor="serial")
"""

NOTED = """
import os, sys
os.write(1, f"imported {'amorsize.engines.process.worker' in sys.modules}\\n".encode())
def note(context):
    os.write(1, f"{context.event} {context.metadata['status']}\\n".encode())
"""


def run_program(
    tmp_path: Path, *arguments: str, program: str = PROGRAM, **variables: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "noted.py").write_text(NOTED)
    (tmp_path / "program.py").write_text(program)
    environment = {key: value for key, value in os.environ.items() if "AMORSIZE" not in key}
    return subprocess.run(
        [sys.executable, "program.py", *arguments],
        cwd=tmp_path,
        env=environment | variables,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("mode", ["serial", "process"])
def test_the_environment_names_a_file_that_the_first_run_reads(tmp_path: Path, mode: str) -> None:
    """Once, and in the parent alone; the hooks are called in every run."""
    write(tmp_path, '[[hooks]]\nevents = ["post_execute"]\ncall = "noted:note"\n')
    done = run_program(tmp_path, mode, AMORSIZE_CONFIG="amorsize.toml")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["imported False", "post_execute ok", "post_execute ok"]


def test_no_file_is_found_by_looking_around(tmp_path: Path) -> None:
    """It names code, so it is only loaded from where the environment says."""
    write(tmp_path, '[[hooks]]\nevents = ["post_execute"]\ncall = "noted:note"\n')
    for variables in ({}, {"AMORSIZE_CONFIG": ""}):
        assert run_program(tmp_path, "serial", **variables).stdout == ""


def test_children_of_multiprocessing_do_not_read_it(tmp_path: Path) -> None:
    """Neither spawned nor forked ones, and they say so: one parent, one set of hooks."""
    write(tmp_path, '[[hooks]]\nevents = ["post_execute"]\ncall = "noted:note"\n')
    program = """if True:
        import multiprocessing, sys, warnings
        import amorsize
        warnings.simplefilter("ignore", DeprecationWarning)
        def run(_):
            amorsize.execute(abs, [1], executor="serial")
            return amorsize.get_default_manager().get_hook_count()
        if __name__ == "__main__":
            counts = []
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    counts += pool.map(run, [0])
            print(counts, run(0), flush=True)
    """
    done = run_program(tmp_path, program=program, AMORSIZE_CONFIG="amorsize.toml")
    said = done.stderr.splitlines()
    assert len(said) == 2
    assert all("AMORSIZE_CONFIG names are inert in this process" in line for line in said)
    assert done.stdout.splitlines() == ["imported False", "post_execute ok", "[0, 0] 1"]


def test_a_mistake_in_the_file_is_raised_by_every_run_before_anything_runs(tmp_path: Path) -> None:
    """With the file, the line, and the variable."""
    write(tmp_path, '[[hooks]]\nevents = ["post_exec"]\ncall = "noted:note"\n')
    program = """if True:
        import amorsize, traceback
        for _ in range(2):
            try:
                amorsize.execute(print, ["never"], executor="serial")
            except amorsize.AmorsizeError as error:
                print("".join(traceback.format_exception_only(error)))
    """
    done = run_program(tmp_path, program=program, AMORSIZE_CONFIG="amorsize.toml")
    assert done.stdout.count("amorsize.toml, line 2: unknown event 'post_exec'") == 2
    assert done.stdout.count("The environment variable AMORSIZE_CONFIG names this file.") == 2
    assert "never" not in done.stdout


def test_exporter_settings_of_the_file_go_before_the_names_of_the_other_variable(
    tmp_path: Path,
) -> None:
    """AMORSIZE_EXPORTERS finds the exporter enabled, and leaves it as it is."""
    pytest.importorskip("prometheus_client")
    write(tmp_path, '[exporters.prometheus]\nport = 0\naddr = "127.0.0.1"\n')
    program = """if True:
        import amorsize
        amorsize.execute(abs, [1], executor="serial")
        from amorsize.exporters.base import _open_exporters
        (exporter,) = _open_exporters
        print(type(exporter).__name__, exporter.port > 0)
    """
    done = run_program(
        tmp_path,
        program=program,
        AMORSIZE_CONFIG="amorsize.toml",
        AMORSIZE_EXPORTERS="prometheus",
        AMORSIZE_PROMETHEUS_PORT="1",
    )
    assert (done.stdout, done.stderr) == ("PrometheusExporter True\n", "")


def test_an_exporter_of_the_file_that_cannot_begin_does_not_fail_the_run(tmp_path: Path) -> None:
    """As with AMORSIZE_EXPORTERS: it is logged, and the hooks work."""
    pytest.importorskip("prometheus_client")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        write(
            tmp_path,
            f'[[hooks]]\nevents = ["post_execute"]\ncall = "noted:note"\n'
            f"[exporters.prometheus]\nport = {port}\n",
        )
        done = run_program(tmp_path, "serial", AMORSIZE_CONFIG="amorsize.toml")
    assert "AMORSIZE_CONFIG asks for the prometheus exporter, which failed" in done.stderr
    assert done.stdout.splitlines().count("post_execute ok") == 2
