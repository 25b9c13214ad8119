"""A function that keeps an account of its own calls in a file, and what the account says.

Each call writes a line when it begins and one when it is over, with the clocks that it reads itself
wherever it runs: nothing of the package, and no hook, has a part in it. Monotonic clocks are one
clock for all processes of a machine; CPU time is that of the calling thread.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import PATIENCE, wait_until

RESULT_BYTES = 1000
"""What each result weighs, without what pickling adds."""

LONG_SECONDS = 0.03

_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Call:
    """One call of the function, as it has written it down itself.

    Attributes:
        item: what it was called with: the index in the input.
        pid, thread: where.
        began, began_at: when, by the monotonic clock; in seconds since the epoch.
        cpu_began: CPU time of its thread then.
        ended, ended_at, cpu_ended: the same at its end; infinite where it has not ended.
        how: ``returned``, ``raised`` or ``died``; empty where it has not ended.
    """

    item: int
    pid: int
    thread: int
    began: float
    began_at: float
    cpu_began: float
    ended: float = float("inf")
    ended_at: float = float("inf")
    cpu_ended: float = float("inf")
    how: str = ""

    @property
    def worker(self) -> tuple[int, int]:
        """The process and the thread."""
        return self.pid, self.thread


class Work:
    """The function: waits, computes, and does to some items what they are marked for.

    Args:
        directory: where it writes, and looks for the gate.
        marked: what happens to items, by their index: ``gate``, to wait until the gate is open;
            ``long``; ``raise``; ``die``; ``die once``; ``names``, to count under more names than
            are kept.
        inner: called with each item as well.
    """

    def __init__(
        self,
        directory: Path,
        *,
        marked: dict[int, str] | None = None,
        wait_seconds: float = 0.002,
        cpu_seconds: float = 0.002,
        inner: Callable[[int], object] | None = None,
    ) -> None:
        directory.mkdir()
        self.directory = directory
        self._marked = marked or {}
        self._wait_seconds = wait_seconds
        self._cpu_seconds = cpu_seconds
        self._inner = inner

    def __call__(self, item: int) -> bytes:
        began, began_at, cpu_began = _read()
        self._write("began", item, began, began_at, cpu_began)
        mark, how = self._marked.get(item, ""), "returned"
        try:
            if self._inner is not None:
                self._inner(item)
            time.sleep(self._wait_seconds)
            while time.thread_time() - cpu_began < self._cpu_seconds:
                pass
            if mark == "raise":
                how = "raised"
                raise ValueError(f"item {item}")
            if mark == "long":
                time.sleep(LONG_SECONDS)
            if "gate" in mark:
                self._wait_at_gate()
            if mark == "names":
                self._count_under_many_names()
            if "die" in mark and not ("once" in mark and self._has_died()):
                self._write("died", item, *_read())
                os.kill(os.getpid(), signal.SIGKILL)
            return os.urandom(RESULT_BYTES)
        finally:
            self._write(how, item, *_read())

    def _write(self, how: str, item: int, *clocks: float) -> None:
        line = json.dumps([how, item, os.getpid(), threading.get_native_id(), *clocks])
        with open(self.directory / "calls", "a", encoding="utf-8") as file:
            file.write(line + "\n")  # one call of write(2), at the end of the file

    def _wait_at_gate(self) -> None:
        for _ in range(int(PATIENCE / _POLL_SECONDS)):
            if (self.directory / "gate").exists():
                return
            time.sleep(_POLL_SECONDS)

    def _has_died(self) -> bool:
        return any(how == "died" for how, *_ in self._lines())

    def _count_under_many_names(self) -> None:
        from amorsize import count

        for number in range(NAMES):
            count(f"ledger_{number}")

    def _lines(self) -> list[list[Any]]:
        try:
            text = (self.directory / "calls").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]

    # --- in the test ----

    def open_gate(self) -> None:
        """Let go of the calls that wait."""
        (self.directory / "gate").touch()

    def wait_for_gate(self) -> None:
        """Wait until a call waits."""
        gate = next(item for item, mark in self._marked.items() if "gate" in mark)
        wait_until(lambda: any(call.item == gate for call in self.calls()), "a call at the gate")

    def calls(self) -> list[Call]:
        """Read the account, in the order in which the calls began."""
        calls: dict[tuple[int, int, int], list[Call]] = {}
        for how, item, pid, thread, *clocks in self._lines():
            of_item = calls.setdefault((item, pid, thread), [])
            if how == "began":
                of_item.append(Call(item, pid, thread, *clocks))
            else:
                begun = vars(of_item.pop())
                ended = dict(zip(("ended", "ended_at", "cpu_ended"), clocks, strict=True))
                of_item.append(Call(**(begun | ended | {"how": how})))
        return sorted((call for each in calls.values() for call in each), key=lambda c: c.began)


NAMES = 130
"""More than the names of a chunk that are kept."""


class Drawn:
    """An input that writes down when each of its items was drawn.

    Attributes:
        at, at_epoch: by the monotonic clock; in seconds since the epoch.
    """

    def __init__(self, items: range) -> None:
        self._items = items
        self.at: list[float] = []
        self.at_epoch: list[float] = []

    def __iter__(self) -> Iterator[int]:
        for item in self._items:
            self.at.append(time.monotonic())
            self.at_epoch.append(time.time())
            yield item


class Announced(Drawn):
    """The same, of known length."""

    def __len__(self) -> int:
        return len(self._items)


def _read() -> tuple[float, float, float]:
    return time.monotonic(), time.time(), time.thread_time()
