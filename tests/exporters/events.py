"""Events as the run loop sends them, made by hand, and the samples that a scrape shows."""

from __future__ import annotations

import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE

from amorsize.exporters import metrics
from amorsize.hooks import HookContext, HookEvent, HookManager


class Run:
    """Tells a manager about one made-up execution, event by event."""

    def __init__(
        self,
        manager: HookManager,
        *,
        execution_id: str = "run-1",
        function: str = "parse",
        executor: str = "process",
    ) -> None:
        self.manager = manager
        self.metadata = {
            "execution_id": execution_id,
            "function": function,
            "executor_type": executor,
            "estimated_speedup": 3.5,
        }
        self.total_items: int | None = 10
        self.completed = 0
        self.workers = 0

    def emit(self, event: HookEvent, metadata: dict[str, Any] | None = None, **fields: Any) -> None:
        fields = {
            "total_items": self.total_items,
            "items_completed": self.completed,
            "worker_count": self.workers,
        } | fields
        self.manager.trigger(
            HookContext(event, metadata={**self.metadata, **(metadata or {})}, **fields)
        )

    def begin(self, total_items: int | None = 10, **fields: Any) -> None:
        self.total_items = total_items
        self.emit(HookEvent.PRE_EXECUTE, **fields)

    def start_worker(self, worker_id: int = 0, **fields: Any) -> None:
        self.workers += 1
        self.emit(HookEvent.ON_WORKER_START, worker_id=worker_id, **fields)

    def complete_chunk(
        self,
        size: int,
        *,
        worker_id: int | None = 0,
        chunk_time: float = 0.05,
        throughput: float = 20.0,
        elapsed: float = 0.0,
        cpu_seconds: float = 0.0,
        **metadata: Any,
    ) -> None:
        self.completed += size
        metadata["cpu_seconds"] = cpu_seconds
        self.emit(
            HookEvent.ON_CHUNK_COMPLETE,
            metadata,
            worker_id=worker_id,
            chunk_size=size,
            chunk_time=chunk_time,
            throughput_items_per_sec=throughput,
            elapsed_time=elapsed,
        )

    def fail(self, error: BaseException, *, failed_items: int = 1, **fields: Any) -> None:
        self.emit(HookEvent.ON_ERROR, {"failed_items": failed_items}, error=error, **fields)

    def end_worker(
        self,
        worker_id: int = 0,
        exit_reason: str = "finished",
        busy_time: float = 0.0,
        *,
        elapsed: float = 0.0,
        **metadata: Any,
    ) -> None:
        self.workers -= 1
        self.emit(
            HookEvent.ON_WORKER_END,
            {"exit_reason": exit_reason, "busy_time": busy_time} | metadata,
            worker_id=worker_id,
            elapsed_time=elapsed,
        )

    def end(
        self,
        status: str = "ok",
        *,
        elapsed: float = 1.0,
        measured_speedup: float | None = 2.5,
        **fields: Any,
    ) -> None:
        metadata: dict[str, Any] = {"status": status, "planning_time": 0.03, "concurrency": 2.75}
        if measured_speedup is not None:
            metadata["measured_speedup"] = measured_speedup
        self.emit(HookEvent.POST_EXECUTE, metadata, elapsed_time=elapsed, **fields)


def emit_run(manager: HookManager, function: str = "parse", **fields: Any) -> Run:
    """Emit a whole run, after which a row of the metric table has a value, unless it is UNCHANGED.

    Two chunks, one failure, a death, and the end.
    """
    run = Run(manager, function=function, execution_id=f"run of {function}"[:40])
    run.begin(total_items=10)
    run.start_worker()
    run.complete_chunk(4, chunk_time=0.25, queue_time=0.5, throughput=8.0, cpu_seconds=0.125)
    run.fail(ValueError("bad"), failed_items=2)
    run.complete_chunk(6, chunk_time=0.5, queue_time=0.0, throughput=10.0)
    run.end_worker(exit_reason="died", busy_time=1.0, cpu_seconds=0.5)
    run.end(**fields)
    return run


UNCHANGED = {metrics.USER_METRICS_DROPPED, metrics.EXPORTER_ERRORS}
"""Rows of the metric table that :func:`emit_run` leaves without a value."""


def fetch(url: str, accept: str = "text/plain") -> str:
    """Get what the endpoint says, as a scraper that asks for ``accept``."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        text: str = response.read().decode()
        return text


class Scrape:
    """The samples of one scrape: ``scrape("amorsize_workers", function="parse")``."""

    def __init__(self, url: str) -> None:
        self.text = fetch(url)
        self.samples = [
            sample
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float | None:
        """The sum of the samples with this name and (at least) these labels; None without any."""
        values = self.values(name, **labels)
        return sum(values) if values else None

    def values(self, name: str, **labels: str) -> list[float]:
        """The samples with this name and (at least) these labels."""
        return [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label takes in the samples of this name."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}
