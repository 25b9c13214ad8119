"""A real run with every failure that dashboards and alerts cover.

Five functions run side by side: one whose items fail and whose workers are killed, one whose
executions fail and time out, one that is half way through a long input, one that waits, and one
that counts under too many names. A hook raises, and an exporter does not deliver.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.exporters import Exporter, RefusedError

KILLER = -1
"""An item that kills its worker."""

FUNCTIONS = ("import_orders", "send_invoices", "resize_images", "fetch_prices", "parse_logs")


def import_order(item: int) -> int:
    """Take a few milliseconds; fail for some items, and die at one."""
    if item == KILLER:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.003 * (1 + item % 5) * (4 if item % 31 == 5 else 1))
    if item % 29 == 7:
        raise ValueError(f"order {item} has no customer")
    if item % 41 == 3:
        raise KeyError("price")
    amorsize.count("orders_imported")
    return item


def fetch_price(item: int) -> int:
    """Wait, some items longer."""
    time.sleep(random.expovariate(1 / 0.03))
    return item


def parse_log(item: int) -> int:
    """Count under a name for each item, as one should not."""
    time.sleep(0.002)
    amorsize.count(f"lines_{item}")
    return item


class UnreliableExporter(Exporter):
    """An exporter whose backend refuses everything."""

    name = "webhook"

    def __init__(self) -> None:
        super().__init__()
        self._sender = self.new_sender(self._refuse)

    def post_execute(self, context: HookContext) -> None:
        self._sender.put(context.items_completed)

    def _refuse(self, batch: list[Any]) -> None:
        raise RefusedError("answered 404")


class Scenario:
    """Runs while it is entered; its exporters are the caller's.

    Args:
        manager: what the exporters are attached to.
        seconds: how long it is going to run: the long execution is half way then.
        size: how large the executions are: 1 is some tenths of a second.
        tracer: an OpenTelemetry tracer, for exemplars; None for none.
    """

    def __init__(
        self, manager: HookManager, *, seconds: float, size: int = 1, tracer: Any = None
    ) -> None:
        self._manager = manager
        self._seconds = seconds
        self._size = size
        self._tracer = tracer
        self._stop = threading.Event()
        self._exporter = UnreliableExporter()
        self._threads = [
            threading.Thread(target=self._repeat, args=(run,), name=run.__name__)
            for run in (
                self._import_orders,
                self._send_invoices,
                self._resize_images,
                self._fetch_prices,
                self._parse_logs,
            )
        ]

    def __enter__(self) -> Self:
        self._exporter.attach(self._manager)
        self._manager.register(HookEvent.POST_EXECUTE, _failing_hook)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._manager.unregister(HookEvent.POST_EXECUTE, _failing_hook)
        self._exporter.close()

    def _repeat(self, run: Callable[[int], None]) -> None:
        turn = 0
        while not self._stop.is_set():
            span = self._tracer and self._tracer.start_as_current_span(run.__name__.strip("_"))
            with span or nullcontext():
                try:
                    run(turn)
                except (ConnectionError, ValueError, KeyError, amorsize.AmorsizeError):
                    pass
            turn += 1

    def _execute(self, func: Callable[[int], object], items: Any, **settings: Any) -> None:
        amorsize.execute(func, items, hooks=self._manager, **settings)

    def _import_orders(self, turn: int) -> None:
        items = list(range(self._size * (60 + 40 * (turn % 4))))
        if turn % 5 == 1:
            items[len(items) // 2] = KILLER
        self._execute(
            import_order,
            items,
            name=FUNCTIONS[0],
            executor=None if turn % 5 == 0 else "process",  # only a choice has an estimate
            n_jobs=3,
            chunksize=6,
            return_exceptions=turn % 5 != 2,
        )
        self._stop.wait(0.3 * self._size)

    def _send_invoices(self, turn: int) -> None:
        def send(item: int) -> int:
            self._stop.wait(0.02)
            if turn % 3 == 1 and item == 17 * self._size:
                raise ConnectionError("the mail server hung up")
            if turn % 7 == 3 and item == 11 * self._size:
                self._stop.wait(0.6 * self._size)
            return item

        self._execute(
            send,
            range(30 * self._size),
            name=FUNCTIONS[1],
            executor="thread",
            n_jobs=2,
            chunksize=2,
            timeout=0.6 * self._size,
        )
        self._stop.wait(0.5 * self._size)

    def _resize_images(self, turn: int) -> None:
        def resize(item: int) -> int:
            self._stop.wait(0.02 * (1 + item % 3))
            return item

        total = round(2 * self._seconds * 2 / 0.045)
        self._execute(
            resize, range(total), name=FUNCTIONS[2], executor="thread", n_jobs=2, chunksize=8
        )

    def _fetch_prices(self, turn: int) -> None:
        self._execute(
            fetch_price,
            range(self._size * (200 + 100 * (turn % 3))),
            name=FUNCTIONS[3],
            n_jobs=8,
            chunksize=4,
        )
        self._stop.wait(0.8 * self._size)

    def _parse_logs(self, turn: int) -> None:
        items = range(80 * self._size)
        self._execute(parse_log, items, name=FUNCTIONS[4], executor="serial", chunksize=20)
        self._stop.wait(1.0 * self._size)


def _failing_hook(context: HookContext) -> None:
    if context.error is not None:
        raise RuntimeError("the pager is not configured")
