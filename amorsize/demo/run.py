"""Runs the demo: three stages, once or again and again, and their report."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import amorsize
from amorsize.demo.report import (
    StageReport,
    format_round,
    format_table,
    promql_totals,
    select_metrics,
    summarise,
    write_json,
)
from amorsize.demo.service import FactsService
from amorsize.demo.sources import MAX_FILES, Sources, find_sources
from amorsize.demo.stages import Download, Measures, Packed, compress, fetch, get, measure
from amorsize.errors import AmorsizeError, PortInUseError
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from amorsize.exporters.prometheus.settings import PORT_VARIABLE
from amorsize.hooks import HookContext, HookEvent, HookManager

if TYPE_CHECKING:
    from amorsize.demo.cluster import Cluster

T = TypeVar("T")
R = TypeVar("R")

QUICK_FILES = 75
PAUSE_SECONDS = 5.0
"""Between two rounds of ``--forever``."""

PUSH_JOB = "amorsize-demo-push"
"""The job of pushed metrics. It differs from the job under which Prometheus scrapes the demo."""

LAST_PUSH_SECONDS = 10.0
"""How long the last push may take."""

REFUSE_EVERY_ROUNDS = 3
REFUSE_ONE_IN = 40
"""With ``--forever``, every third round the service refuses one request in forty, on purpose."""


@dataclass(frozen=True)
class DemoOptions:
    """The options of the command line, as ``amorsize demo --help`` describes them."""

    serve: bool = False
    forever: bool = False
    quick: bool = False
    port: int | None = None
    addr: str = "127.0.0.1"
    json_path: Path | None = None
    pushgateway: str | None = None
    dask: str | None = None


def run_demo(options: DemoOptions) -> int:
    """Run the demo and print its report.

    Returns:
        The exit code: 0, also when Ctrl-C or SIGTERM ended ``--forever``, or ended ``--serve``
        after its report.

    Raises:
        AmorsizeError: prometheus-client is missing, the port is taken, a result is wrong, the
            Pushgateway did not accept the metrics, or there is no cluster at the given address.
        KeyboardInterrupt: Ctrl-C before the report.
    """
    sources = find_sources(max_files=QUICK_FILES if options.quick else MAX_FILES)
    exporter = _open_exporter(options)
    with (
        exporter,
        _stop_on_signals(options.serve or options.forever) as stopping,
        _connect(sources, options) as cluster,
    ):
        _print_header(sources, exporter)
        if options.forever:
            try:
                _repeat(sources, exporter, options, stopping, cluster)
            except KeyboardInterrupt:
                pass
            print("\nStopped.")
            return 0
        reports = run_round(sources, progress=_can_show_progress(), cluster=cluster)
        _print_report(reports, sources, exporter, options)
        _write_json(reports, sources, exporter, options, rounds=1)
        if options.pushgateway is not None:
            _push(exporter, options.pushgateway)
        if not options.serve:
            _print_next_steps(exporter)
            return 0
        try:
            print(f"\nServing {exporter.url} until Ctrl-C.")
            stopping.wait()
        except KeyboardInterrupt:
            pass
        print("\nStopped.")
        return 0


def run_round(
    sources: Sources,
    *,
    progress: bool = False,
    refuse_one_in: int = 0,
    wait_seconds: tuple[float, float] | None = None,
    cluster: Cluster | None = None,
) -> list[StageReport]:
    """Run the three stages on ``sources`` and check their results against each other.

    Args:
        sources: the input.
        progress: show a progress bar for each stage.
        refuse_one_in: make the service refuse one request in this many; 0 refuses none, and then a
            failing item ends the round.
        wait_seconds: the service's shortest and longest wait; None for its default.
        cluster: the cluster to run on; None lets amorsize choose an engine for each stage.

    Raises:
        AmorsizeError: a result is wrong.
    """
    paths = [sources.path(name) for name in sources.sizes]
    measured = _Stage("measure", measure, paths)
    executor = cluster and cluster.client
    measured.run(progress=progress, executor=executor)

    compressed = _Stage("compress", compress, list(sources.bundles()))
    compressed.run(progress=progress, executor=executor)

    settings: dict[str, Any] = {} if cluster is None else {"host": cluster.host}
    if wait_seconds is not None:
        settings["wait_seconds"] = wait_seconds
    with FactsService(sources, refuse_one_in=refuse_one_in, **settings) as service:
        fetched = _Stage("fetch", fetch, [service.url(name) for name in sources.sizes])
        fetched.run(progress=progress, executor=executor, return_exceptions=refuse_one_in > 0)

    return [
        measured.report(_check_measures(measured.results, sources)),
        compressed.report(_check_packed(compressed.results, sources)),
        fetched.report(_check_answers(fetched.results, measured.results, sources)),
    ]


class _Stage:
    """A function, its input, and after ``run`` its results."""

    def __init__(self, name: str, func: Callable[[T], R], items: Sequence[T]) -> None:
        self.name = name
        self.items = items
        self.results: list[Any] = []
        self._func = func

    def run(self, *, progress: bool, executor: Any, return_exceptions: bool = False) -> None:
        ends: list[HookContext] = []
        hooks = HookManager()
        hooks.register(HookEvent.POST_EXECUTE, ends.append)
        self.results, self._plan = amorsize.execute(
            self._func,
            self.items,
            hooks=hooks,
            name=self.name,
            executor=executor,
            progress=progress,
            return_exceptions=return_exceptions,
            return_optimization_result=True,
        )
        [self._end] = ends

    def report(self, finding: str) -> StageReport:
        return StageReport(
            name=self.name,
            items=len(self.items),
            failed=sum(isinstance(result, BaseException) for result in self.results),
            engine=self._plan.executor_type,
            n_jobs=self._plan.n_jobs,
            chunksize=self._plan.chunksize,
            reason=self._plan.reason,
            estimated_speedup=self._plan.estimated_speedup,
            measured_speedup=self._end.metadata.get("measured_speedup"),
            seconds=self._end.elapsed_time,
            status=self._end.metadata["status"],
            finding=finding,
        )


def _check_measures(measures: list[Measures], sources: Sources) -> str:
    _require("measure", [found.bytes for found in measures], list(sources.sizes.values()))
    top = max(measures, key=lambda found: found.complexity)
    where = Path(top.path).relative_to(sources.root).as_posix()
    functions = sum(found.functions for found in measures)
    lines = sum(found.lines for found in measures)
    return (
        f"{functions:,} functions in {lines:,} lines; the most complex is {top.most_complex} "
        f"in {where} (complexity {top.complexity})"
    )


def _check_packed(packed: list[Packed], sources: Sources) -> str:
    _require("compress", sum(bundle.bytes for bundle in packed), sources.total_bytes)
    size = sum(bundle.packed_bytes for bundle in packed)
    wins = Counter(bundle.algorithm for bundle in packed).most_common()
    return (
        f"{sources.total_bytes / 1e6:.1f} MB become {size / 1e6:.1f} MB, and unpack to the same "
        f"bytes; best: " + ", ".join(f"{algorithm} {count}x" for algorithm, count in wins)
    )


def _check_answers(
    answers: list[Download | BaseException], measures: list[Measures], sources: Sources
) -> str:
    given = [answer for answer in answers if isinstance(answer, Download)]
    expected = [
        Download(name, found.bytes, found.lines)
        for name, found, answer in zip(sources.sizes, measures, answers, strict=True)
        if isinstance(answer, Download)
    ]
    _require("fetch", given, expected)
    refused = len(answers) - len(given)
    return f"{len(given):,} answers, all equal to what stage one measured" + (
        f"; {refused} refused on purpose" if refused else ""
    )


def _require(stage: str, result: object, expected: object) -> None:
    if result != expected:
        raise AmorsizeError(
            f"the demo's stage '{stage}' gave a wrong result; did its input change?"
        )


def _repeat(
    sources: Sources,
    exporter: PrometheusExporter,
    options: DemoOptions,
    stopping: threading.Event,
    cluster: Cluster | None,
) -> None:
    reported = False
    for number in itertools.count(1):
        if cluster is not None:
            cluster.require()
        refuse_one_in = REFUSE_ONE_IN if number % REFUSE_EVERY_ROUNDS == 0 else 0
        try:
            reports = run_round(
                sources,
                progress=not reported and _can_show_progress(),
                refuse_one_in=refuse_one_in,
                cluster=cluster,
            )
        except Exception as error:
            # Dashboards show failures, such as a worker killed by hand: the demo must go on.
            print(f"Round {number} failed: {type(error).__name__}: {error}")
        else:
            if not reported:
                reported = True
                _print_report(reports, sources, exporter, options)
                print(f"\nServing {exporter.url} and working on until Ctrl-C.")
            else:
                print(format_round(number, reports))
            _write_json(reports, sources, exporter, options, rounds=number)
        if stopping.wait(PAUSE_SECONDS):
            return


def _connect(sources: Sources, options: DemoOptions) -> AbstractContextManager[Cluster | None]:
    if options.dask is None:
        return nullcontext()
    from amorsize.demo.cluster import connected

    return connected(options.dask, sources.path(next(iter(sources.sizes))))


def _push(exporter: PrometheusExporter, pushgateway: str) -> None:
    if not exporter.flush(LAST_PUSH_SECONDS) or exporter.counts()[0]:
        raise AmorsizeError(
            f"the Pushgateway at {pushgateway} did not accept the metrics; is it running?"
        )
    print(f"\nPushed to {pushgateway} as the job {PUSH_JOB!r}.")


def _open_exporter(options: DemoOptions) -> PrometheusExporter:
    if options.pushgateway is not None:
        # The page is only for the report: leave the default port to another demo.
        return amorsize.enable_prometheus(
            port=options.port or 0,
            addr=options.addr,
            pushgateway=options.pushgateway,
            job=PUSH_JOB,
        )
    try:
        return amorsize.enable_prometheus(port=options.port, addr=options.addr)
    except PortInUseError:
        if options.port is not None:
            raise PortInUseError(
                f"port {options.port} on {options.addr} is taken by another program. Choose "
                "another one with --port, or a free one with --port 0."
            ) from None
        if os.environ.get(PORT_VARIABLE):
            raise
    exporter = amorsize.enable_prometheus(port=0, addr=options.addr)
    print(f"The default port is taken, so this demo serves its metrics on port {exporter.port}.")
    return exporter


@contextmanager
def _stop_on_signals(wanted: bool) -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt at SIGTERM (``docker stop``, ``kill``) as at Ctrl-C.

    The handler also sets the event, because Python drops an exception that it raises during the
    callback of a weak reference, as when threads end. Then the current round is the last one.
    """
    stopping = threading.Event()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        # An ignored signal stays ignored: shells make their background jobs ignore Ctrl-C.
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    for number in before:
        signal.signal(number, stop)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _can_show_progress() -> bool:
    if find_spec("tqdm") is not None:
        return True
    print("No progress bars: they need tqdm (pip install 'amorsize[progress]').")
    return False


def _print_header(sources: Sources, exporter: PrometheusExporter) -> None:
    print(
        f"amorsize {amorsize.__version__} on {len(sources.sizes)} source files "
        f"({sources.total_bytes / 1e6:.1f} MB) of Python's standard library.\n"
        "Three stages: measure (computes in Python), compress (computes in C), fetch (waits).\n"
        f"Metrics while it runs: {exporter.url}\n"
    )


def _print_report(
    reports: list[StageReport], sources: Sources, exporter: PrometheusExporter, options: DemoOptions
) -> None:
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    print("\n" + format_table(reports, width=width))
    status, body = get(exporter.url)
    if status != 200:
        raise AmorsizeError(f"{exporter.url} answered {status}")
    text = body.decode()
    print(f"\nFrom {exporter.url} ({len(text.splitlines())} lines, these among them):\n")
    for line in select_metrics(text, [report.name for report in reports]):
        print(f"  {line}")
    if not options.forever:  # with it, the totals keep growing
        print("\nIn PromQL, once a Prometheus has scraped it:\n")
        for expression in promql_totals(reports):
            print(f"  {expression}")


def _write_json(
    reports: list[StageReport],
    sources: Sources,
    exporter: PrometheusExporter,
    options: DemoOptions,
    *,
    rounds: int,
) -> None:
    if options.json_path is not None:
        summary = summarise(
            reports,
            metrics_url=exporter.url,
            files=len(sources.sizes),
            total_bytes=sources.total_bytes,
            rounds=rounds,
        )
        write_json(options.json_path, summary)


def _print_next_steps(exporter: PrometheusExporter) -> None:
    target = urlsplit(exporter.url).netloc
    print(f"""
What next:

  amorsize demo --serve      keep /metrics up; a Prometheus scrapes {target}
  amorsize demo --forever    repeat the work, for dashboards

  In your own code:

    import amorsize
    amorsize.enable_prometheus()
    results = amorsize.execute(func, data)""")
