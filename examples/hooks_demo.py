"""Seven things to do with hooks, each in a few lines. Run it: python examples/hooks_demo.py

A hook is any callable that takes a HookContext. Register it in a HookManager, pass the manager
as ``hooks=``, and it is called on the caller's thread, one call at a time: no locks are needed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from typing import Any

from amorsize import (
    HookContext,
    HookEvent,
    HookManager,
    create_error_hook,
    create_progress_hook,
    create_throughput_hook,
    create_timing_hook,
    execute,
)


def count_primes(limit: int) -> int:
    """Work that computes: how many primes are below ``limit``?"""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, limit))


def ask_slowly(question: int) -> int:
    """Work that waits, as a request to a service does."""
    time.sleep(0.005)
    return question * 2


def divide(number: int) -> float:
    """Work that fails for 0."""
    return 60 / number


def progress() -> None:
    """Report progress as it happens."""
    hooks = HookManager()
    hooks.register(
        HookEvent.ON_PROGRESS,
        create_progress_hook(
            lambda percent, done, total: print(f"{percent:5.1f}%  {done} of {total}"),
            min_interval=0.0,  # every chunk; the default is one report a second
        ),
    )
    execute(ask_slowly, range(100), hooks=hooks, executor="thread", n_jobs=2, chunksize=25)


def metrics_collection() -> None:
    """Collect the totals of a run: chunks, items, time inside the function."""
    totals: Counter[str] = Counter()

    def collect(context: HookContext) -> None:
        totals["chunks"] += 1
        totals["items"] += context.chunk_size or 0
        totals["milliseconds"] += round(context.chunk_time * 1000)

    hooks = HookManager()
    hooks.register(HookEvent.ON_CHUNK_COMPLETE, collect)
    primes = execute(count_primes, [2000] * 40, hooks=hooks, executor="process", chunksize=10)
    print(f"{totals['items']} items in {totals['chunks']} chunks, each found {primes[0]} primes")
    print(f"{totals['milliseconds'] / totals['items']:.1f} ms per item inside the function")


def timing_of_stages() -> None:
    """See when each stage of a run was reached."""
    reached: dict[str, float] = {}
    hook = create_timing_hook(lambda event, elapsed: reached.setdefault(event, elapsed))

    hooks = HookManager()
    for event in HookEvent:
        hooks.register(event, hook)
    execute(ask_slowly, range(60), hooks=hooks, executor="thread", n_jobs=2, chunksize=15)
    for event_name, elapsed in reached.items():
        print(f"{elapsed * 1000:6.1f} ms  {event_name}")


def errors_and_logging() -> None:
    """Log failures with the worker's traceback, and continue."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log = logging.getLogger("hooks_demo")
    log.addHandler(handler)

    def log_error(error: BaseException, traceback_text: str) -> None:
        last_line = traceback_text.strip().splitlines()[-1]
        log.error("%s, says the worker: %s", type(error).__name__, last_line)

    hooks = HookManager()
    hooks.register(HookEvent.ON_ERROR, create_error_hook(log_error))
    results = execute(
        divide, [3, 0, 5], hooks=hooks, executor="serial", chunksize=1, return_exceptions=True
    )
    print(f"results: {results}")
    log.removeHandler(handler)


class Watch:
    """Your own monitoring system: it keeps a journal and raises an alert."""

    def __init__(self, slow_chunk_seconds: float) -> None:
        self.journal: list[str] = []
        self.alerts: list[str] = []
        self._slow_chunk_seconds = slow_chunk_seconds

    def attach(self, hooks: HookManager) -> None:
        hooks.register(HookEvent.PRE_EXECUTE, self.started)
        hooks.register(HookEvent.ON_CHUNK_COMPLETE, self.chunk_done)
        hooks.register(HookEvent.POST_EXECUTE, self.ended)

    def started(self, context: HookContext) -> None:
        self.journal.append(f"{context.metadata['function']}: {context.total_items} items")

    def chunk_done(self, context: HookContext) -> None:
        if context.chunk_time > self._slow_chunk_seconds:
            first = context.metadata["chunk_start"]
            self.alerts.append(f"the chunk from item {first} on was slow")

    def ended(self, context: HookContext) -> None:
        self.journal.append(f"{context.metadata['function']}: {context.metadata['status']}")


def monitoring_system() -> None:
    """Put several hooks that share state into a class."""
    watch = Watch(slow_chunk_seconds=0.15)
    hooks = HookManager()
    watch.attach(hooks)
    waits = [0.001] * 20 + [0.2] + [0.001] * 19  # item 20 is the slow one
    execute(time.sleep, waits, hooks=hooks, name="poll", executor="thread", chunksize=10)
    print("journal:", "; ".join(watch.journal))
    print("alerts: ", "; ".join(watch.alerts))


def throughput() -> None:
    """Follow the items per second: the same work, by one worker and by eight."""
    for n_jobs in (1, 8):
        rates: list[float] = []
        hooks = HookManager()
        hooks.register(
            HookEvent.ON_PROGRESS, create_throughput_hook(rates.append, min_interval=0.0)
        )
        execute(ask_slowly, range(80), hooks=hooks, executor="thread", n_jobs=n_jobs, chunksize=5)
        print(f"n_jobs={n_jobs}: {rates[-1]:6.0f} items per second")


def dashboard() -> None:
    """Keep all values of a dashboard in one dictionary."""
    board: dict[str, Any] = {"errors": 0, "workers": 0}

    def update(context: HookContext) -> None:
        match context.event:
            case HookEvent.PRE_EXECUTE:
                board["function"] = context.metadata["function"]
                board["engine"] = context.metadata["executor_type"]
                board["n_jobs"] = context.n_jobs
            case HookEvent.ON_WORKER_START:
                board["workers"] += 1
            case HookEvent.ON_ERROR:
                board["errors"] += 1
            case HookEvent.POST_EXECUTE:
                board["status"] = context.metadata["status"]
                board["seconds"] = round(context.elapsed_time, 2)
        board["progress"] = f"{context.items_completed}/{context.total_items}"

    hooks = HookManager()
    for event in HookEvent:
        hooks.register(event, update)
    execute(count_primes, [3000] * 100, hooks=hooks, executor="process", n_jobs=2)
    for key, value in board.items():
        print(f"{key:9} {value}")


DEMONSTRATIONS = [
    progress,
    metrics_collection,
    timing_of_stages,
    errors_and_logging,
    monitoring_system,
    throughput,
    dashboard,
]


def main() -> None:
    for number, demonstrate in enumerate(DEMONSTRATIONS, start=1):
        title = demonstrate.__name__.replace("_", " ").capitalize()
        print(f"\n{number}. {title}\n   {demonstrate.__doc__}\n")
        demonstrate()


if __name__ == "__main__":
    main()
