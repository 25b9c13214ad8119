"""The first items of a run, called in its thread and measured; or those that are measured later.

They are the first chunk of the serial engine, timed: no item is lost and none runs twice. The
measuring stops at its size, or once the calls have taken :data:`BUDGET_SECONDS`, or once they weigh
as much as a chunk may, or as soon as the answer is clear: one slow call says what five fast ones
say together, and while it runs all other cores idle.
"""

from __future__ import annotations

import os
import threading
from operator import length_hint
from threading import Lock

from amorsize.planning.chunk_sizes import CHUNK_BYTES
from amorsize.planning.clocks import Clocks, Reading, read_peak_bytes
from amorsize.planning.gil_probe import AFTER_SECONDS, WINDOW_SECONDS, GilProbe
from amorsize.planning.observations import Sample
from amorsize.planning.planner import TOGETHER_SECONDS
from amorsize.running.input import Input
from amorsize.workers.chunk import HOSTNAME, ChunkOutcome, Failure, call_all, call_each, failure_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from amorsize.planning.clocks import ThreadClocks
    from amorsize.planning.gil_probe import Look
    from amorsize.workers.collectors import ChunkCollector

BUDGET_SECONDS = 0.05
"""Once the calls have taken this long, no further item is measured. Long enough for the probe of
the GIL (it needs some 5 ms) and for clocks, short against any work worth dividing."""

CLEAR_SECONDS = 0.01
"""Nor once two calls or more have taken this long together, when they agree within a factor of two
and the probe has seen enough: all other cores idle meanwhile."""

UNREAD_SECONDS = 2e-5
"""Reading all clocks takes as long as shorter calls do: such are taken to compute."""

TOGETHER_SLICE_ITEMS = 32
"""Calls that are timed as one, at most: items after a few short ones may take longer."""

ASK_SECONDS = 1e-3
"""While workers start, they are asked about so often whether one is up."""


class FirstItems:
    """Items that were called in this thread, with their results and what they cost.

    Args:
        func: the function.
        source: where items are taken from, just before they are called.
        return_exceptions: go on after an item that raises an ``Exception``; without it the
            measuring stops there and takes no further item.
        collector: keeps what the calls bring beside results; None for none.
        chunk_id: of the chunk that they are.
        clocks: where time is read from; None for the real clocks.
        weighs_results: whether results are weighed, as those are that wait for a consumer.

    Attributes:
        start: the index in the input of the first one.
        items: every item taken, in order.
        results: one for each call that returned; exceptions in place under
            ``return_exceptions``.
        failures: the calls that raised.
        interrupted: what stopped the measuring from outside (KeyboardInterrupt, SystemExit); the
            run raises it once its events are emitted.
        sample: what the calls cost.
        draw: takes items from the input.
        thread: the clocks of the thread that calls; None where there are none.
        item_type: the type of the first item, once they are released.

    Nothing that the function or the input raises leaves the methods.

    >>> first = FirstItems(abs, Input([-1, -2, -3]))
    >>> first.measure(2)
    >>> first.items, first.results, first.sample.taken
    ([-1, -2], [1, 2], 2)
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        source: Input,
        *,
        return_exceptions: bool = False,
        collector: ChunkCollector | None = None,
        chunk_id: int = 0,
        clocks: Clocks | None = None,
        weighs_results: bool = False,
    ) -> None:
        self._func = func
        self._source = source
        self.draw: Callable[[int], Sequence[Any]] = source.draw
        self._return_exceptions = return_exceptions
        self._collector = collector
        self._clocks = Clocks() if clocks is None else clocks
        self.chunk_id = chunk_id
        self.start = source.drawn
        self.items: list[Any] = []
        self.results: list[Any] = []
        self.failures: list[Failure] = []
        self.interrupted: BaseException | None = None
        self.sample = Sample()
        self.item_type: type = type(None)
        self._weighs_results = weighs_results
        self._weighed = 0
        self._started_at = 0.0
        self._in_progress: tuple[float, Reading] | None = None
        self._raised_at: float | None = None
        self._peak_bytes = 0
        self._gil: GilProbe | None = None
        self.thread: ThreadClocks | None = None
        self._queue_unread = False
        self._closed = False
        self._taking = Lock()

    @property
    def stopped(self) -> str:
        """The reason why measuring ended early; empty where it did not."""
        if self.interrupted is not None:
            return f"{type(self.interrupted).__name__} stopped the run in its first items"
        if self._source.error is not None:
            error = type(self._source.error).__name__
            return f"the input raised {error} after {self._source.drawn} items"
        if self.failures and not self._return_exceptions:
            failure = self.failures[0]
            return f"the function raised {type(failure.error).__name__} on item {failure.index}"
        return ""

    def measure(
        self,
        size: int,
        *,
        make_look: Callable[[], Look | None] | None = None,
        from_start: bool = True,
        budget_seconds: float = BUDGET_SECONDS,
        probe: bool = True,
    ) -> None:
        """Call the function on further items, timed one by one.

        Args:
            size: how many at most.
            make_look: makes what is called, from another thread, while a long call is in progress;
                see :class:`~amorsize.planning.gil_probe.GilProbe`. None for no looks.
            from_start: whether the first call may be long, so that it is to be looked at as well.
            budget_seconds: take no further item once the calls have taken this long.
            probe: whether the GIL may be probed, by a second thread, where the calls are slow.
        """
        clocks, sample = self._clocks, self.sample
        self._gil = None
        if make_look is not None and from_start:
            # From the first call on: one may take longer than all that is to be learned.
            self._gil = self._start_probe(make_look)
            probe = False
        if not self.items:
            self._started_at = clocks.epoch()
        self._peak_bytes = clocks.peak_bytes()
        sample.asked_items += size
        self._call(self._timed(size, budget_seconds, make_look, probe))
        if (gil := self._gil) is not None:
            gil.stop()
            sample.gil_share = gil.share()
            self._gil = None  # it refers to the monitor, and that to this
        sample.peak_growth_bytes += max(0, clocks.peak_bytes() - self._peak_bytes)

    def measure_together(self, size: int) -> None:
        """Call the function on further items, a few at each look at the clock."""
        func, source, sample, collector = self._func, self._source, self.sample, self._collector
        sample.asked_together = True
        wall, done, seconds = self._clocks.wall, 0, 0.0
        try:
            while done < size and seconds < 4 * TOGETHER_SECONDS and not self._closed:
                if done and self._is_full():
                    break
                wanted = min(max(4, done), TOGETHER_SLICE_ITEMS, size - done)
                piece = self.draw(wanted)
                if not piece:
                    break
                sample.items_bytes += source.drawn_bytes
                self.items.extend(piece)
                items = iter(piece)
                if collector is not None:
                    collector.enter()
                began = wall()
                try:
                    self.results += call_all(func, items)
                except Exception as error:
                    called = len(piece) - length_hint(items)
                    at = self.start + len(self.results) + called - 1
                    del self.items[at - self.start + 1 :]
                    self.failures.append(failure_of(at, error))
                    break
                finally:
                    seconds += wall() - began
                    if collector is not None:
                        collector.leave()
                done += len(piece)
        except BaseException as error:
            self.interrupted = error
        self._is_full()
        sample.taken = len(self.items)
        sample.together += done
        sample.together_seconds += max(0.0, seconds)
        sample.exhausted = source.exhausted and source.error is None

    def work_until(self, size: int, until: Callable[[], bool]) -> int:
        """Call the function on further items, until something is true; return on how many.

        It is asked about once a millisecond.
        """
        before, wall = len(self.items), self._clocks.wall
        began = wall()
        self._call(self._untimed(size, until))
        self.sample.other_seconds += max(0.0, wall() - began)
        return len(self.items) - before

    def forget_times(self) -> None:
        """Forget how long calls took: from here on they are others."""
        sample = self.sample
        self._queue_unread = False
        self.sample = Sample(
            taken=sample.taken,
            exhausted=sample.exhausted,
            other_seconds=sample.all_seconds,
            peak_growth_bytes=sample.peak_growth_bytes,
            items_bytes=sample.items_bytes,
            results_bytes=sample.results_bytes,
            asked_together=sample.asked_together,
        )

    def so_far(
        self, wall: float, cpu: float, process_cpu: float, queued: float | None = None
    ) -> Sample | None:
        """Say what is known in the middle of a call, taken as one that ends now; else None.

        May be called from another thread.

        Args:
            wall, cpu, process_cpu: the clocks of :class:`Clocks`, now.
            queued: for how long the call had no CPU, where that is known.
        """
        if (in_progress := self._in_progress) is None:
            return None
        (began, before), sample = in_progress, self.sample
        seconds = max(0.0, wall - began)
        return Sample(
            taken=len(self.items),
            seconds=sample.seconds + seconds,
            item_seconds=[*sample.item_seconds, seconds],
            cpu_seconds=sample.cpu_seconds + max(0.0, cpu - before.cpu),
            process_cpu_seconds=sample.process_cpu_seconds
            + max(0.0, process_cpu - before.process_cpu),
            input_seconds=sample.input_seconds[:],
            voluntary_switches=None,  # those of another thread are not to be had
            queued_seconds=None if queued is None else queued + (sample.queued_seconds or 0.0),
            peak_growth_bytes=max(0, read_peak_bytes() - self._peak_bytes),
            asked_items=sample.asked_items,
        )

    def close(self) -> int | None:
        """Take no further item; return how many were taken, or None where one is taken just now.

        May be called from another thread.
        """
        if not self._taking.acquire(blocking=False):
            return None
        try:
            self._closed = True
            return len(self.items)
        finally:
            self._taking.release()

    def reopen(self) -> None:
        """Take further items again."""
        self._closed = False

    def in_progress(self) -> int | None:
        """Return the index of the item that is called just now; None where none is.

        May be called from another thread, while no items are called together.
        """
        called = len(self.results)
        return self.start + called if len(self.items) > called else None

    def cut(self, stop: BaseException) -> FirstItems:
        """Leave a call in progress to the thread that is held up in it; that takes no further item.

        May be called from another thread, which goes on with what is returned.

        Args:
            stop: why: an item that takes too long is a failure of that item, all else stops the
                measuring as an interruption does.

        Returns:
            What there is so far, the call in progress taken as one that ends now.
        """
        from amorsize.errors import ItemTimeoutError

        with self._taking:
            self._closed = True
        cut = FirstItems(
            self._func,
            self._source,
            return_exceptions=self._return_exceptions,
            collector=self._collector,
            chunk_id=self.chunk_id,
            clocks=self._clocks,
            weighs_results=self._weighs_results,
        )
        clocks, done, sample = self._clocks, self.results[:], self.sample
        thread = self.thread
        so_far = self.so_far(
            clocks.wall(), 0.0 if thread is None else thread.cpu(), clocks.process_cpu()
        )
        cut.start, cut.results, cut.items = self.start, done, self.items[: len(done) + 1]
        cut.failures = [each for each in self.failures if each.index < self.start + len(done)]
        cut._started_at, cut._weighed = self._started_at, self._weighed
        cut.sample = (so_far or sample)._replace(
            taken=len(cut.items),
            exhausted=self._source.exhausted and self._source.error is None,
            together=sample.together,
            together_seconds=sample.together_seconds,
            other_seconds=sample.other_seconds,
            items_bytes=sample.items_bytes,
            results_bytes=sample.results_bytes,
            asked_together=sample.asked_together,
        )
        if isinstance(stop, ItemTimeoutError):
            cut.failures.append(Failure(self.start + len(done), stop, str(stop)))
            if self._return_exceptions:
                done.append(stop)
        else:
            cut.interrupted = stop
        return cut

    def returned(self) -> list[Any]:
        """Return the results of calls that did not raise."""
        failed = {failure.index - self.start for failure in self.failures}
        return [result for index, result in enumerate(self.results) if index not in failed]

    def outcome(self) -> ChunkOutcome | None:
        """Return what came of the items, as of a chunk; None where there were none."""
        size = len(self.items)
        if self.interrupted is not None:
            size = len(self.results)  # the last call did not come to its end
        if not size:
            return None
        complete = len(self.results) == size
        assert complete or self.failures, "results of the first items are lost"
        return ChunkOutcome(
            chunk_id=self.chunk_id,
            start=self.start,
            size=size,
            results=self.results if complete else None,
            failures=self.failures,
            started_at=self._started_at,
            duration=self.sample.all_seconds,
            pid=os.getpid(),
            hostname=HOSTNAME,
            thread_name=threading.current_thread().name,
            extras={} if self._collector is None else self._collector.take(),
        )

    def release(self) -> None:
        """Let go of the items and their results: somebody else has them."""
        if self.items:
            self.item_type = type(self.items[0])
        self.items, self.results = [], []

    def _is_full(self) -> bool:
        """Weigh the results that have come, and say whether all weighs as much as a chunk may."""
        sample = self.sample
        if self._weighs_results:
            from amorsize.workers.weight import weigh_all

            sample.results_bytes += weigh_all(self.results[self._weighed :])
            self._weighed = len(self.results)
        return sample.items_bytes + sample.results_bytes >= CHUNK_BYTES

    def _call(self, items: Iterator[Any]) -> None:
        try:
            call_each(
                self._func,
                items,
                self.results,
                self.failures,
                start=self.start,
                go_on=self._return_exceptions,
                on_error=self._note_end,
            )
        except BaseException as error:
            self.interrupted = error
        finally:
            items.close()  # type: ignore[attr-defined]  # a generator
        self._is_full()
        self.sample.taken = len(self.items)
        self.sample.exhausted = self._source.exhausted and self._source.error is None

    def _note_end(self) -> None:
        self._raised_at = self._clocks.wall()

    def _take(self) -> bool:
        """Take an item, unless there is none, or others have begun with those that follow."""
        with self._taking:
            if self._closed:
                return False
            # One call in C: a Ctrl-C cannot fall between taking the item and keeping it.
            taken = len(self.items)
            self.items.extend(self.draw(1))
        self.sample.items_bytes += self._source.drawn_bytes
        return len(self.items) > taken

    def _start_probe(self, make_look: Callable[[], Look | None] | None) -> GilProbe | None:
        look = None if make_look is None else make_look()
        if look is not None:
            look.begin()
        gil = GilProbe(self._clocks.wall, look)
        return gil if gil.start() else None

    def _timed(
        self,
        size: int,
        budget_seconds: float,
        make_look: Callable[[], Look | None] | None,
        probe: bool,
    ) -> Iterator[Any]:
        """Give items to call, and measure the calls."""
        clocks, sample, collector = self._clocks, self.sample, self._collector
        wall = clocks.wall
        before: Reading | None = None
        spent = unread = 0.0
        for number in range(size):
            if number and self._is_full():
                break
            began = wall()
            if not self._take():
                break
            produced = max(0.0, wall() - began)
            sample.input_seconds.append(produced)
            if self._gil is None and probe and sample.seconds >= AFTER_SECONDS:
                self._gil = self._start_probe(make_look)
                probe = self._gil is not None
            gil = self._gil
            unread += produced
            if before is None or unread >= UNREAD_SECONDS:
                before = clocks.read()
                if self.thread is not None:
                    self.thread.begin()
            if collector is not None:
                collector.enter()
            self._raised_at = None
            began = wall()
            self._in_progress = began, before
            if gil is not None:
                gil.enter(began)
            try:
                yield self.items[-1]
            finally:
                ended = self._raised_at or wall()
                self._in_progress = None
                if collector is not None:
                    collector.leave()
                if gil is not None:
                    gil.leave(began, ended)
                seconds = max(0.0, ended - began)
                sample.seconds += seconds
                sample.item_seconds.append(seconds)
                if seconds < UNREAD_SECONDS:
                    unread += seconds
                    sample.cpu_seconds += seconds
                    sample.process_cpu_seconds += seconds
                else:
                    before, unread = _add_usage(sample, before, clocks.read()), 0.0
                    queued = None if self.thread is None else self.thread.begin()
                    # Of a part of the calls it would say nothing of the others.
                    self._queue_unread |= queued is None
                    if self._queue_unread or queued is None:
                        sample.queued_seconds = None
                    else:
                        sample.queued_seconds = queued + (sample.queued_seconds or 0.0)
            spent += seconds
            if spent >= budget_seconds or (spent >= CLEAR_SECONDS and _is_clear(sample, gil)):
                break

    def _untimed(self, size: int, until: Callable[[], bool]) -> Iterator[Any]:
        """Give items to call, until something is true."""
        wall, collector = self._clocks.wall, self._collector
        asked = wall()
        for number in range(size):
            if (number and self._is_full()) or not self._take():
                break
            if collector is not None:
                collector.enter()
            try:
                yield self.items[-1]
            finally:
                if collector is not None:
                    collector.leave()
            now = wall()
            if now - asked >= ASK_SECONDS:
                asked = now
                if until():
                    break


def _add_usage(sample: Sample, before: Reading, after: Reading) -> Reading:
    """Add what the clocks counted during a call; return ``after``."""
    sample.cpu_seconds += max(0.0, after.cpu - before.cpu)
    sample.cpu_seconds += max(0.0, after.children_cpu - before.children_cpu)
    sample.process_cpu_seconds += max(0.0, after.process_cpu - before.process_cpu)
    sample.involuntary_switches += after.involuntary - before.involuntary
    if before.voluntary is None or after.voluntary is None:
        sample.voluntary_switches = None
    elif sample.voluntary_switches is not None:
        sample.voluntary_switches += after.voluntary - before.voluntary
    return after


def _is_clear(sample: Sample, gil: GilProbe | None) -> bool:
    calls = sample.item_seconds
    return (
        len(calls) >= 2
        and max(calls) < 2 * min(calls)
        and gil is not None
        and gil.window() >= WINDOW_SECONDS
    )
