"""Runs of every kind, and what is known of each beside what the package reports.

:func:`perform` makes a run under :class:`~truth.ledger.Work` and gathers the account of its calls,
the clocks of the test around it, what its caller saw, a scrape while it ran and one after its end,
and its events.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.events import Scrape
from modes import Mode
from waiting import PATIENCE

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters import Exporter, RefusedError
from amorsize.exporters.metrics import LAST_ACTIVITY, LONGEST_CHUNK, Metric
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.running import run_log
from amorsize.testing import RecordingHook

from .ledger import Announced, Call, Drawn, Work

N_JOBS = 2
NAME = "ledger"

GREATEST = (LAST_ACTIVITY, LONGEST_CHUNK)
"""Gauges with a label that they are not summed over: the newest, or the longest, is meant."""


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: for the test's id.
        marked: what its function does to some of its items: see :class:`~truth.ledger.Work`.
        work: how long it takes otherwise: further arguments of that.
        items, chunksize: how many.
        status: how it ends.
        form: ``execute``; the same over a ``list``; ``aexecute``; ``stream``, of unknown length; or
            ``close``, for such a stream that is left while a call waits at the gate.
        options: further arguments.
        runs: how many at once.
        looks: called while a call waits at the gate.
        inner: called by the function with each item.
        only: the modes that it makes sense for; none for all.
    """

    name: str
    marked: dict[int, str] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    items: int = 12
    chunksize: int | None = 2
    status: str = "ok"
    form: str = "execute"
    options: dict[str, Any] = field(default_factory=dict)
    runs: int = 1
    looks: Callable[[Evidence], None] | None = None
    inner: Callable[[int], object] | None = None
    only: tuple[str, ...] = ()

    def has(self, mark: str) -> bool:
        """Say whether an item is marked with this."""
        return any(mark in each for each in self.marked.values())


@dataclass
class Run:
    """One run, as its caller and its function saw it.

    Attributes:
        work: the function.
        drawn: the input.
        began, ended: around the call, by the monotonic clock; seconds since the epoch as ``_at``.
        cut: a moment at which it was still running, by the monotonic clock: what was done until
            then counts, whenever the run noticed its end.
        results: what the caller received.
        error: what it raised; None where it returned.
        calls: the account.
        caller: the thread that made it.
        loses_starts: whether the report of a start is lost where its worker dies at once.
        manager, recorder: its hooks.
    """

    work: Work
    drawn: Drawn
    manager: HookManager = field(default_factory=HookManager)
    recorder: RecordingHook = field(init=False)
    began: float = 0.0
    ended: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    cut: float = 0.0
    cut_at: float = 0.0
    results: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    calls: list[Call] = field(default_factory=list)
    caller: int = 0
    loses_starts: bool = False

    def __post_init__(self) -> None:
        self.recorder = RecordingHook().attach(self.manager)

    @property
    def post(self) -> HookContext:
        """Its last event."""
        return self.recorder.contexts[-1]

    @property
    def chunks(self) -> list[HookContext]:
        """The events of its chunks."""
        return self.recorder.of(HookEvent.ON_CHUNK_COMPLETE)

    # --- bounds that no other program of the machine can break ----

    def least_elapsed(self) -> float:
        """From its first call to the moment at which it was still running."""
        return max(0.0, self.cut - self.calls[0].began) if self.calls else 0.0

    def most_elapsed(self) -> float:
        return self.ended - self.began

    def least(self, call: Call) -> float:
        """The time of a call, as far as the run was still running."""
        if self.loses_starts and call.how == "died":
            return 0.0
        return max(0.0, min(call.ended, self.cut) - call.began)

    def most(self, call: Call) -> float:
        """From when its worker was free, and its item drawn, until its worker was free again."""
        same = [each for each in self.calls if each.worker == call.worker and each is not call]
        since = max(
            [self.drawn.at[call.item]]
            + [each.ended for each in same if each.began < call.began and each.how]
        )
        until = min([self.ended] + [each.began for each in same if each.began > call.began])
        return max(0.0, until - since)

    def least_busy(self) -> float:
        return sum(map(self.least, self.calls))

    def most_busy(self) -> float:
        return sum(map(self.most, self.calls))

    def least_cpu(self) -> float:
        """CPU time of the calls that have ended."""
        return sum(call.cpu_ended - call.cpu_began for call in self.calls if call.how)

    @property
    def by_caller(self) -> list[Call]:
        """Calls in the thread that made the run, or that drives it."""
        return [call for call in self.calls if call.thread == self.caller]


@dataclass
class Evidence:
    """All that is known of the runs of a kind, in a mode.

    Attributes:
        mode, kind: which.
        runs: each of them.
        exporter: shows the metrics.
        hook: the account of a hook of the chunks.
        webhook: another exporter, whose backend refuses all.
        log: what was logged of runs.
        after: what a scrape said once they were over.
    """

    mode: Mode
    kind: Kind
    runs: list[Run]
    exporter: PrometheusExporter
    hook: HookAccount
    webhook: Webhook
    log: list[logging.LogRecord] = field(default_factory=list)
    after: Scrape = field(init=False)

    @property
    def is_named(self) -> bool:
        """Whether the engine was named."""
        return self.mode.executor is not None

    @property
    def calls(self) -> list[Call]:
        """The account of all runs."""
        return [call for run in self.runs for call in run.calls]

    def value(self, metric: Metric, suffix: str = "", **labels: str) -> float | None:
        """The value of a metric after the runs, over all labels that are not named: their sum.

        Of those in :data:`GREATEST` it is the greatest.
        """
        return self.value_in(self.after, metric, suffix, **labels)

    def value_in(
        self, scrape: Scrape, metric: Metric, suffix: str = "", **labels: str
    ) -> float | None:
        """The same, in a scrape."""
        known = {"function": NAME}
        if self.is_named:
            known["executor"] = self.mode.type
        own = {label: known[label] for label in metric.labels if label in known}
        values = scrape.values(metric.prometheus + suffix, **(own | labels))
        return (max if metric in GREATEST else sum)(values) if values else None

    def sums(self, of: Callable[[Run], float]) -> float:
        """Add up something of each run."""
        return sum(map(of, self.runs))


class Log(logging.Handler):
    """Keeps what runs log."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def __enter__(self) -> Log:
        self._before = run_log.logger.level
        run_log.logger.setLevel(logging.INFO)
        run_log.logger.addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        run_log.logger.removeHandler(self)
        run_log.logger.setLevel(self._before)


class HookAccount:
    """A hook that keeps an account of its calls, and raises in every other one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._lock = threading.Lock()

    def __call__(self, context: HookContext) -> None:
        began = time.monotonic()
        with self._lock:
            self.seconds.append(0.0)
            number = len(self.seconds)
        time.sleep(0.001)
        self.seconds[number - 1] = time.monotonic() - began
        if number % 2:
            raise RuntimeError("every other call")


class Webhook(Exporter):
    """An exporter whose backend refuses what it gets, and counts that."""

    name = "webhook"

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0
        self.refused = 0
        self._sender = self.new_sender(self._send)

    def post_execute(self, context: HookContext) -> None:
        self._sender.put(1)

    def _send(self, batch: list[int]) -> None:
        self.attempts += 1
        self.refused += len(batch)
        raise RefusedError("answered 404")


def perform(mode: Mode, kind: Kind, directory: Path) -> Evidence:
    """Make the runs of a kind in a mode, and gather what is known of them."""
    account = HookAccount()
    with PrometheusExporter(port=0) as exporter, Webhook() as webhook, ExitStack() as stack:
        runs = [_prepare(kind, directory / str(number)) for number in range(kind.runs)]
        for run in runs:
            exporter.attach(run.manager)
            webhook.attach(run.manager)
            run.manager.register(HookEvent.ON_CHUNK_COMPLETE, account)
        evidence = Evidence(mode, kind, runs, exporter, account, webhook)
        stack.enter_context(Log(evidence.log))
        opening = stack.enter_context(ExitStack())
        for run in runs:
            opening.callback(run.work.open_gate)
        threads = [threading.Thread(target=_make, args=(run, mode, kind)) for run in runs]
        for thread in threads:
            thread.start()
        if kind.looks:
            for run in runs:
                run.work.wait_for_gate()
            kind.looks(evidence)
        if kind.status == "ok":
            opening.close()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the run does not end"
        webhook.flush(PATIENCE)
        evidence.after = Scrape(exporter.url)
        for run in runs:
            run.calls = run.work.calls()  # the gate still holds those that nobody waited for
            _find_cut(run, kind)
    return evidence


def _prepare(kind: Kind, directory: Path) -> Run:
    work = Work(directory, marked=kind.marked, inner=kind.inner, **kind.work)
    items = range(kind.items)
    drawn = Drawn(items) if kind.form in ("stream", "close") else Announced(items)
    return Run(work, drawn, loses_starts=kind.has("die once"))  # of a Dask worker


def _make(run: Run, mode: Mode, kind: Kind) -> None:
    run.caller = threading.get_native_id()
    options = {
        "executor": mode.executor,
        "n_jobs": N_JOBS if mode.name in ("thread", "process") else None,
        "chunksize": kind.chunksize,
        "hooks": run.manager,
        "name": NAME,
        **kind.options,
    }
    data: Any = run.drawn
    run.began, run.began_at = time.monotonic(), time.time()
    if kind.form == "list":
        data = list(run.drawn)
        run.began, run.began_at = time.monotonic(), time.time()
    try:
        if kind.form == "aexecute":
            run.results = asyncio.run(amorsize.aexecute(run.work, data, **options))
        elif kind.form == "stream":
            run.results += amorsize.stream(run.work, data, **options)
        elif kind.form == "close":
            _leave(run, amorsize.stream(run.work, data, **options))
        else:
            run.results = amorsize.execute(run.work, data, **options)
    except Exception as error:
        run.error = error
    run.ended, run.ended_at = time.monotonic(), time.time()


def _leave(run: Run, stream: Any) -> None:
    run.results.append(next(stream))
    run.work.wait_for_gate()
    run.cut, run.cut_at = time.monotonic(), time.time()
    stream.close()


def _find_cut(run: Run, kind: Kind) -> None:
    """Find the latest moment at which a run is known to have been in progress."""
    if kind.status == "timeout":
        run.cut, run.cut_at = (at + kind.options["timeout"] for at in (run.began, run.began_at))
    elif kind.status == "error":
        hows = ("raised", "died")
        last = max((call for call in run.calls if call.how in hows), key=lambda call: call.ended)
        run.cut, run.cut_at = last.ended, last.ended_at
    elif kind.status == "ok":
        run.cut = max(call.ended for call in run.calls)
        run.cut_at = max(call.ended_at for call in run.calls)
