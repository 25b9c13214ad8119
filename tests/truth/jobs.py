"""Jobs of every kind: programs that run functions, fail as asked, and end or stay.

``python jobs.py JSON`` is such a program; :func:`run` and :class:`Job` start one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from waiting import PATIENCE


@dataclass(frozen=True)
class Run:
    """One execution.

    Attributes:
        function: its name.
        items: how many.
        failing: how many of them fail.
        killing: how many of them kill their worker.
        ledger: a file to which each death is written, before it happens.
        raises: whether the first failure ends the execution.
        hangs: whether its last item waits until the job gets a line to go on, when the job has
            delivered what is in progress. In this process alone.
        seconds: how long each item takes.
        broken: whether hooks fail, and the other exporter.
        speedups: estimated and measured: then the events of such an execution, of a minute, are
            made up. Whether a machine reaches a speedup is not for a test to say.
        executor: where it runs; ``killing`` needs processes.
        in_child: whether a child process of the program makes it, and ends.
    """

    function: str = "parse"
    items: int = 10
    failing: int = 0
    killing: int = 0
    ledger: str = os.devnull
    raises: bool = False
    hangs: bool = False
    seconds: float = 0.0
    broken: bool = False
    speedups: tuple[float, float] | None = None
    executor: str = "serial"
    n_jobs: int | None = None
    chunksize: int = 1
    in_child: bool = False


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        runs: its executions, one after the other.
        exporter: arguments of ``enable_prometheus()``.
        clock: what ``time.time()`` says at the start, in seconds since the epoch; None for now.
        stays: whether it waits for a line before each execution, and before its end.
        hook_at: the event at which a hook fails in a broken execution.
    """

    runs: tuple[Run, ...]
    exporter: dict[str, Any] = field(default_factory=dict)
    clock: float | None = None
    stays: bool = False
    hook_at: str = "post_execute"


def run(program: Program) -> None:
    """Run a program to its end."""
    with Job(program) as job:
        job.finish()


class Job:
    """A running program; lines on its standard input tell it to go on.

    Attributes:
        url: of its metrics; empty where nothing listens.
    """

    def __init__(self, program: Program) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, json.dumps(asdict(program))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            self.url = self._said().removesuffix("/metrics")
        except BaseException:
            self.kill()
            raise
        self.address = self.url.removeprefix("http://")

    def go_on(self, clock: float | None = None, run: Run | None = None) -> None:
        """Let it make an execution, or go on with one, and wait until it has ended, or hangs.

        Args:
            clock: what ``time.time()`` says in it from then on; None to leave it alone.
            run: the execution; None for the next one of the program.
        """
        assert self._process.stdin is not None
        line = {"clock": clock, "run": None if run is None else asdict(run)}
        self._process.stdin.write(f"{json.dumps(line)}\n")
        self._process.stdin.flush()
        self._said()

    def finish(self) -> None:
        """Let it do all the rest, and wait for its end."""
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0

    def kill(self) -> None:
        """End it at once, without a chance to say anything."""
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the job has ended"
        return line.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self.kill()


# --- in the program ----


def _set_clock(clock: float) -> None:
    ahead = clock - time.time_ns() / 1e9
    time.time = lambda: time.time_ns() / 1e9 + ahead


def _wait_for_a_line() -> Run | None:
    """Do what a line says; return the execution that it names.

    Raises:
        EOFError: there is no further line.
    """
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    said = json.loads(line)
    if said["clock"] is not None:
        _set_clock(said["clock"])
    return None if said["run"] is None else Run(**said["run"])


def _runs(program: Program) -> Iterator[Run]:
    runs = iter(program.runs)
    try:
        while program.stays:
            yield _wait_for_a_line() or next(runs)
    except EOFError:
        pass
    yield from runs


class Work:
    """The function of a run; it goes to worker processes, too."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, item: int) -> int:
        if self.run.seconds:
            time.sleep(self.run.seconds)
        if item < self.run.killing:
            with open(self.run.ledger, "a", encoding="utf-8") as ledger:
                ledger.write("died\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if item < self.run.killing + self.run.failing:
            raise ValueError(f"item {item}")
        if self.run.hangs and item == self.run.items - 1:
            sys.modules["__main__"].deliver()  # type: ignore[attr-defined]  # _main has set it
            print("hangs", flush=True)
            with suppress(EOFError):
                _wait_for_a_line()
        return item


def _execute(run: Run, manager: Any) -> None:
    import amorsize

    if run.speedups is not None:
        _make_up(run)
        return
    try:
        amorsize.execute(
            Work(run),
            range(run.items),
            name=run.function,
            executor=run.executor,
            n_jobs=run.n_jobs,
            chunksize=run.chunksize,
            return_exceptions=not run.raises,
            hooks=manager,
        )
    except (ValueError, amorsize.AmorsizeError):
        assert run.raises


def _make_up(run: Run) -> None:
    import amorsize

    assert run.speedups is not None
    estimated, measured = run.speedups
    metadata = {
        "execution_id": f"{run.function} {time.time()}",
        "function": run.function,
        "executor_type": "process",
        "estimated_speedup": estimated,
    }
    ends = {"status": "ok", "planning_time": 0.1, "measured_speedup": measured}
    for event, more in (("pre_execute", {}), ("post_execute", ends)):
        context = amorsize.HookContext(
            amorsize.HookEvent(event),
            total_items=run.items,
            elapsed_time=60.0 if more else 0.1,
            metadata=metadata | more,
        )
        amorsize.get_default_manager().trigger(context)


def _main(program: Program) -> None:
    import amorsize
    from amorsize.exporters import Exporter, RefusedError

    now = [Run()]

    class Webhook(Exporter):
        """Cannot deliver while all is broken."""

        name = "webhook"

        def __init__(self) -> None:
            super().__init__()
            self._sender = self.new_sender(self._refuse)

        def post_execute(self, context: amorsize.HookContext) -> None:
            self._sender.put(1)

        def _refuse(self, batch: list[int]) -> None:
            if now[0].broken:
                raise RefusedError("answered 404")

    def hook(context: amorsize.HookContext) -> None:
        if now[0].broken:
            raise RuntimeError("the hook is broken")

    if program.clock is not None:
        _set_clock(program.clock)
    exporter = amorsize.enable_prometheus(**program.exporter)
    globals()["deliver"] = lambda: exporter.flush(PATIENCE)
    manager = amorsize.HookManager()
    manager.register(amorsize.HookEvent(program.hook_at), hook)
    webhook = Webhook().attach()
    print(exporter.url, flush=True)
    for each in _runs(program):
        now[0] = each
        if each.in_child:
            child = multiprocessing.get_context("fork").Process(
                target=_execute, args=(each, manager)
            )
            child.start()
            child.join(PATIENCE)
            assert child.exitcode == 0
        else:
            _execute(each, manager)
        webhook.flush(PATIENCE)
        if program.stays:
            exporter.flush(PATIENCE)
            print("done", flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["runs"] = tuple(Run(**each) for each in given["runs"])
    _main(Program(**given))
