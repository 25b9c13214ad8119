"""The cost of observing a chunk: its whole serial path, with and without hooks.

The peer is the same run without a hook, so the difference is the cost of watching, which is also
shown as a share of the duration that chunks have by default.
"""

from __future__ import annotations

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters.prometheus.exporter import PrometheusExporter
from benchmarks.harness import Contender, Contenders, figure, timed

CHUNKS = 500
CHUNK_SECONDS = 0.2
"""The default of ``target_chunk_duration``."""

_HALF_PERCENT_OF_A_CHUNK_US = 1000.0


@figure("watch-nobody", "a chunk nobody watches", unit="µs")
def nobody() -> Contenders:
    yield {"amorsize": _chunks(None)}


@figure(
    "watch-every-event",
    "a chunk, a hook on every event",
    unit="µs",
    difference=True,
    at_most=_HALF_PERCENT_OF_A_CHUNK_US,
    against="no hooks",
    share_of=CHUNK_SECONDS,
)
def every_event() -> Contenders:
    manager = HookManager()
    for event in HookEvent:
        manager.register(event, _do_nothing)
    yield {"amorsize": _chunks(manager), "no hooks": _chunks(None)}


@figure(
    "watch-prometheus",
    "a chunk, Prometheus exporter",
    unit="µs",
    difference=True,
    at_most=_HALF_PERCENT_OF_A_CHUNK_US,
    against="no hooks",
    share_of=CHUNK_SECONDS,
)
def prometheus() -> Contenders:
    manager = HookManager()
    with PrometheusExporter(port=0).attach(manager):
        yield {"amorsize": _chunks(manager), "no hooks": _chunks(None)}


def _chunks(manager: HookManager | None) -> Contender:
    def run() -> object:
        return amorsize.execute(abs, range(CHUNKS), executor="serial", chunksize=1, hooks=manager)

    return timed(run, per=CHUNKS)


def _do_nothing(context: HookContext) -> None:
    pass
