"""Run the first items in the calling thread and learn what they cost.

No item is lost and none runs twice: what was taken from the iterator is in ``Sample.items``, what
the function gave for it in ``Sample.results``, and a run goes on behind them.

The sample stops at its size, or once the calls have taken :data:`BUDGET_SECONDS`, or as soon as the
answer is clear: a slow item tells in one call what five fast ones tell together, and while it runs
all other cores idle.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from amorsize.collecting import ChunkCollector
from amorsize.gil_probe import AFTER_SECONDS, WINDOW_SECONDS, GilProbe

try:
    import resource
except ImportError:  # on Windows
    HAS_RESOURCE = False
else:
    HAS_RESOURCE = True

BUDGET_SECONDS = 0.05
"""Once the calls have taken this long, no further item is sampled. Long enough for the probe of
the GIL (it needs some 5 ms) and for clocks, short against any work worth dividing."""

CLEAR_SECONDS = 0.01
"""Nor once two calls or more have taken this long together, when they agree within a factor of two
and the probe has seen enough: all other cores idle meanwhile."""

PICKLE_LIMIT_BYTES = 64 << 20
"""Pickling of one object stops here, and its size is extrapolated."""


# Linux only
_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None) if HAS_RESOURCE else None


def _read_usage() -> tuple[int | None, int, float]:
    if not HAS_RESOURCE:
        return None, 0, 0.0
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    children_seconds = children.ru_utime + children.ru_stime
    if _THREAD is None:
        return None, 0, children_seconds
    thread = resource.getrusage(_THREAD)
    return thread.ru_nvcsw, thread.ru_nivcsw, children_seconds


def _read_peak_bytes() -> int:
    if not HAS_RESOURCE:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Clocks(NamedTuple):
    """Where the sample reads time from; tests bring their own.

    Attributes:
        wall: seconds on a monotonic clock.
        epoch: seconds since the epoch.
        thread_cpu: CPU seconds of the calling thread.
        process_cpu: CPU seconds of all threads of the process.
        usage: ``(voluntary, involuntary, children)``: context switches of the thread, the first
            None where they are not counted, and CPU seconds of child processes that ended.
        peak_bytes: the highest resident size of the process so far.
    """

    wall: Callable[[], float] = time.perf_counter
    epoch: Callable[[], float] = time.time
    thread_cpu: Callable[[], float] = time.thread_time
    process_cpu: Callable[[], float] = time.process_time
    usage: Callable[[], tuple[int | None, int, float]] = _read_usage
    peak_bytes: Callable[[], int] = _read_peak_bytes


class Running(NamedTuple):
    """A call in progress: when it began, by the wall, the thread's and the process' CPU clock."""

    began: float
    cpu: float
    process_cpu: float


@dataclass(slots=True, eq=False, repr=False)
class Sample:
    """The first items, what became of them, and what they cost.

    Attributes:
        items: every item taken from the iterator, in order.
        results: one for each call that returned; exceptions in place under
            ``return_exceptions``.
        failures: ``(index, exception, traceback text)`` of each call that raised.
        interrupted: what stopped the sample from outside (KeyboardInterrupt, SystemExit), to be
            raised again once the events are told.
        input_error: what the iterator raised instead of an item.
        exhausted: whether the iterator was seen to end.
        started_at: seconds since the epoch at which the first call began.
        seconds: wall time around the calls.
        item_seconds: the same, for each call.
        cpu_seconds: CPU time of the calling thread in the calls, and of child processes that
            ended in them.
        process_cpu_seconds: CPU time of all threads of the process in the calls.
        input_seconds: wall time of taking each item from the iterator.
        voluntary_switches: context switches by which the calls waited; None where not counted.
        involuntary_switches: those by which the CPU was taken away from them.
        gil_share: see :class:`GilProbe`; None when not probed.
        peak_growth_bytes: how far the process' highest resident size rose.
        collector: keeps what the calls bring beside results; None where nobody listens.
        running: the call in progress, or None.
    """

    items: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    failures: list[tuple[int, BaseException, str]] = field(default_factory=list)
    interrupted: BaseException | None = None
    input_error: BaseException | None = None
    exhausted: bool = False
    started_at: float = 0.0
    seconds: float = 0.0
    item_seconds: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    process_cpu_seconds: float = 0.0
    input_seconds: list[float] = field(default_factory=list)
    voluntary_switches: int | None = 0
    involuntary_switches: int = 0
    gil_share: float | None = None
    peak_growth_bytes: int = 0
    collector: ChunkCollector | None = None
    running: Running | None = None
    _closed: bool = False
    _taking: threading.Lock = field(default_factory=threading.Lock)

    def so_far(self, wall: float, cpu: float, process_cpu: float) -> Sample | None:
        """Say what is known in the middle of a call, taken as one that ends now; else None.

        May be called from another thread than the sample's.

        Args:
            wall, cpu, process_cpu: the clocks of :class:`Running`, now.
        """
        running = self.running
        if running is None:
            return None
        seconds = max(0.0, wall - running.began)
        return Sample(
            items=self.items[:],
            results=self.results[:],
            failures=self.failures[:],
            seconds=self.seconds + seconds,
            item_seconds=[*self.item_seconds, seconds],
            cpu_seconds=self.cpu_seconds + max(0.0, cpu - running.cpu),
            process_cpu_seconds=self.process_cpu_seconds
            + max(0.0, process_cpu - running.process_cpu),
            input_seconds=self.input_seconds[:],
            voluntary_switches=None,  # those of another thread are not to be had
        )

    def close(self) -> int | None:
        """Have no further item taken; say how many were, or None where one is being taken now.

        May be called from another thread than the sample's.
        """
        if not self._taking.acquire(blocking=False):
            return None
        try:
            self._closed = True
            return len(self.items)
        finally:
            self._taking.release()


def draw_sample(
    func: Callable[[Any], Any],
    iterator: Iterator[Any],
    size: int,
    *,
    return_exceptions: bool = False,
    budget_seconds: float = BUDGET_SECONDS,
    clocks: Clocks | None = None,
    probe: bool = True,
    collector: ChunkCollector | None = None,
    look: Callable[[GilProbe], bool] | None = None,
    sample: Sample | None = None,
) -> Sample:
    """Call ``func`` on the first items, in the calling thread, and measure.

    Args:
        func: the function.
        iterator: where items are taken from, one at a time, just before each call.
        size: how many at most.
        return_exceptions: go on behind an item that raises an ``Exception``; without it the
            sample stops there and takes no further item.
        budget_seconds: take no further item once the calls have taken this long.
        clocks: where time is read from; None for the real clocks.
        probe: whether the GIL may be probed, by a second thread, where the calls are slow.
        collector: keeps what the calls bring beside results; None for none.
        look: called, from another thread, while a long call is in progress, until it returns
            true; see :class:`~amorsize.gil_probe.GilProbe`. None for nobody.
        sample: an empty one to fill; None for a new one.

    Nothing that ``func`` or the iterator raises leaves this function: it is in the sample.

    >>> sample = draw_sample(abs, iter([-1, -2, -3]), 2)
    >>> sample.items, sample.results
    ([-1, -2], [1, 2])
    """
    if sample is None:
        sample = Sample()
    sample.collector = collector
    extend_sample(
        sample,
        func,
        iterator,
        size,
        return_exceptions=return_exceptions,
        budget_seconds=budget_seconds,
        clocks=clocks,
        probe=probe,
        look=look,
    )
    return sample


def extend_sample(
    sample: Sample,
    func: Callable[[Any], Any],
    iterator: Iterator[Any],
    size: int,
    *,
    return_exceptions: bool = False,
    budget_seconds: float = BUDGET_SECONDS,
    clocks: Clocks | None = None,
    probe: bool = True,
    look: Callable[[GilProbe], bool] | None = None,
    until: Callable[[], bool] | None = None,
) -> None:
    """Take up to ``size`` further items into a sample; arguments as in :func:`draw_sample`.

    With ``until``, which is asked about once a millisecond, it goes on until that is true, however
    clear the answer.
    """
    clocks = clocks or Clocks()
    wall, usage = clocks.wall, clocks.usage
    gil: GilProbe | None = None
    spent = asked = 0.0
    if look is not None:
        # From the first call on: a single one may take longer than all that is to be learned.
        gil = GilProbe(wall, lambda: gil is not None and look(gil))
        gil = gil if gil.start() else None
        probe = False
    if not sample.items:
        sample.started_at = clocks.epoch()
    peak_before = clocks.peak_bytes()
    try:
        for _ in range(size):
            began = wall()
            taken = len(sample.items)
            try:
                with sample._taking:
                    if sample._closed:
                        break
                    # One call in C: a Ctrl-C cannot fall between taking the item and keeping it.
                    sample.items.extend(islice(iterator, 1))
            except Exception as error:
                sample.input_error = error
                break
            if len(sample.items) == taken:
                sample.exhausted = True
                break
            sample.input_seconds.append(max(0.0, wall() - began))
            item = sample.items[taken]

            if gil is None and probe and sample.seconds >= AFTER_SECONDS:
                gil = GilProbe(wall)
                probe = gil.start()
                gil = gil if probe else None
            raised: Exception | None = None
            switches, forced, children = usage()
            process_cpu = clocks.process_cpu()
            cpu = clocks.thread_cpu()
            if sample.collector is not None:
                sample.collector.enter()
            began = wall()
            sample.running = Running(began, cpu, process_cpu)
            if gil is not None:
                gil.enter(began)
            try:
                result = func(item)
            except Exception as error:
                raised = error
            else:
                sample.results.append(result)
            finally:
                ended = wall()
                sample.running = None
                if sample.collector is not None:
                    sample.collector.leave()
                if gil is not None:
                    gil.leave(began, ended)
                seconds = max(0.0, ended - began)
                sample.seconds += seconds
                sample.item_seconds.append(seconds)
                sample.cpu_seconds += max(0.0, clocks.thread_cpu() - cpu)
                sample.process_cpu_seconds += max(0.0, clocks.process_cpu() - process_cpu)
                switches_after, forced_after, children_after = usage()
                sample.cpu_seconds += max(0.0, children_after - children)
                sample.involuntary_switches += forced_after - forced
                if sample.voluntary_switches is not None:
                    if switches is None or switches_after is None:
                        sample.voluntary_switches = None
                    else:
                        sample.voluntary_switches += switches_after - switches
            spent += seconds
            if raised is not None:
                sample.failures.append((taken, raised, _traceback_text(raised)))
                raised = None  # its traceback holds this frame: a cycle otherwise
                if not return_exceptions:
                    break
                sample.results.append(sample.failures[-1][1])
            if until is not None:
                if spent - asked >= _ASK_SECONDS:
                    asked = spent
                    if until():
                        break
            elif spent >= budget_seconds or _is_clear(sample, spent, gil):
                break
    except BaseException as error:  # told by the caller's events, then raised again by it
        sample.interrupted = error
    finally:
        if gil is not None:
            gil.stop()
            sample.gil_share = gil.share()
    sample.peak_growth_bytes += max(0, clocks.peak_bytes() - peak_before)


_ASK_SECONDS = 1e-3


def _is_clear(sample: Sample, spent: float, gil: GilProbe | None) -> bool:
    calls = sample.item_seconds
    return (
        spent >= CLEAR_SECONDS
        and len(calls) >= 2
        and max(calls) < 2 * min(calls)
        and gil is not None
        and gil.window() >= WINDOW_SECONDS
    )


def _traceback_text(error: BaseException) -> str:
    import traceback

    # The first frame is extend_sample itself, which tells the user nothing.
    shown = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return "".join(traceback.format_exception(type(error), error, shown or error.__traceback__))


class Payload(NamedTuple):
    """What crosses to a worker process and back, and whether it can.

    Attributes:
        function_bytes, function_seconds: size of the pickled function, time to pickle it.
        item_bytes, item_seconds: the same for one item.
        result_bytes, result_seconds: the same for one result.
        problem: why it cannot be sent to another process, or None.
    """

    function_bytes: int = 0
    function_seconds: float = 0.0
    item_bytes: int = 0
    item_seconds: float = 0.0
    result_bytes: int = 0
    result_seconds: float = 0.0
    problem: str | None = None


def measure_payload(
    sample: Sample,
    func: Callable[[Any], Any],
    *,
    wall: Callable[[], float] = time.perf_counter,
    limit_bytes: int = PICKLE_LIMIT_BYTES,
) -> Payload:
    """Pickle the function and representatives of the sample's items and results.

    Nothing is kept: the bytes are counted as they come. One object is pickled up to
    ``limit_bytes``; the other items of a sample only where the first was small.

    >>> payload = measure_payload(draw_sample(abs, iter([b"x" * 1000]), 1), len)
    >>> payload.problem is None, payload.item_bytes > 1000
    (True, True)
    """
    try:
        what, named = "the function", getattr(func, "__qualname__", type(func).__name__)
        function = _pickled(func, wall, limit_bytes)
        failed = {index for index, _, _ in sample.failures}
        what, named = "an item", _type_name(sample.items)
        item = _representative(sample.items, wall, limit_bytes)
        results = [r for i, r in enumerate(sample.results) if i not in failed]
        what, named = "a result", _type_name(results)
        result = _representative(results, wall, limit_bytes)
    except Exception as error:  # pickling runs the objects' own code, which may raise anything
        return Payload(
            problem=f"{what} ({named}) cannot be pickled: {type(error).__name__}: {error}"
        )
    return Payload(*function, *item, *result)


def _type_name(objects: list[Any]) -> str:
    return type(objects[0]).__qualname__ if objects else "none"


def _representative(
    objects: list[Any], wall: Callable[[], float], limit_bytes: int
) -> tuple[int, float]:
    """Size and time of one object: of the first, or the mean of a few where the first is small."""
    if not objects:
        return 0, 0.0
    size, seconds = _pickled(objects[0], wall, limit_bytes)
    if len(objects) == 1 or size > 1 << 20 or seconds > 2e-3:
        return size, seconds
    count = min(len(objects), 8)
    size, seconds = _pickled(objects[:count], wall, limit_bytes)
    return size // count, seconds / count


class _TooMuch(Exception):
    """Enough was pickled to know."""


class _Meter:
    """A file that counts what is written to it, and keeps nothing."""

    __slots__ = ("limit", "names_main", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.names_main = False

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.size += length
        if not self.names_main and length < 1 << 20:
            self.names_main = b"__main__" in bytes(data)
        if self.size > self.limit:
            raise _TooMuch
        return length


def _pickled(obj: Any, wall: Callable[[], float], limit_bytes: int) -> tuple[int, float]:
    """Bytes and seconds of pickling an object; raises where it cannot be pickled."""
    import pickle  # not needed where everything runs here

    meter = _Meter(limit_bytes)
    # The interpreter's own pickler first: it is right for nearly everything, and importing
    # cloudpickle costs some 10 ms. What belongs to __main__ must travel by value, though.
    began = wall()
    try:
        pickle.Pickler(meter, pickle.HIGHEST_PROTOCOL).dump(obj)
        plain = not meter.names_main
    except _TooMuch:
        plain = True
    except Exception:  # as in measure_payload
        plain = False
    if not plain:
        import cloudpickle

        meter = _Meter(limit_bytes)
        began = wall()
        try:
            cloudpickle.Pickler(meter, pickle.HIGHEST_PROTOCOL).dump(obj)
        except _TooMuch:
            pass
    seconds = max(0.0, wall() - began)
    if meter.size <= limit_bytes:
        return meter.size, seconds
    size = max(meter.size, sys.getsizeof(obj))
    return size, seconds * size / meter.size
