"""Run the first items in the calling thread and learn what they cost.

No item is lost and none runs twice: what was taken from the iterator is in ``Sample.items``, what
the function gave for it in ``Sample.results``, and a run goes on behind them.

The sample stops at its size, or once the calls have taken :data:`BUDGET_SECONDS`, or as soon as the
answer is clear: a slow item tells in one call what five fast ones tell together, and while it runs
all other cores idle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

from amorsize.planning.clocks import Clocks, Reading, read_peak_bytes
from amorsize.planning.gil_probe import AFTER_SECONDS, WINDOW_SECONDS, GilProbe, Look

if TYPE_CHECKING:
    from amorsize.workers.collectors import ChunkCollector

BUDGET_SECONDS = 0.05
"""Once the calls have taken this long, no further item is sampled. Long enough for the probe of
the GIL (it needs some 5 ms) and for clocks, short against any work worth dividing."""

CLEAR_SECONDS = 0.01
"""Nor once two calls or more have taken this long together, when they agree within a factor of two
and the probe has seen enough: all other cores idle meanwhile."""

UNREAD_SECONDS = 2e-5
"""Reading all clocks takes as long as shorter calls do: such are taken to compute."""


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
        seconds: wall time around the calls that were timed one by one.
        item_seconds: the same, for each call.
        cpu_seconds: CPU time of the calling thread in the calls, and of child processes that
            ended in them.
        process_cpu_seconds: CPU time of all threads of the process in the calls.
        input_seconds: wall time of taking each item from the iterator.
        voluntary_switches: context switches by which the calls waited; None where not counted.
        involuntary_switches: those by which the CPU was taken away from them.
        queued_seconds: for how long the calls were ready to run, but had no CPU; None where that
            is not known, and context switches have to tell.
        gil_share: see :class:`GilProbe`; None when not probed.
        peak_growth_bytes: how far the process' highest resident size rose.
        collector: keeps what the calls bring beside results; None where nobody listens.
        together, together_seconds: calls that were timed as one, and how long they took.
        earlier_seconds: what calls took that say nothing of those to come.
        running: when the call in progress began, and a reading before it; None between calls.
        peak_before_bytes: the process' highest resident size when the calls began.
    """

    # Not a dataclass: see ``record``.
    def __init__(self, **facts: Any) -> None:  # they take the place of what an empty one has
        self.items: list[Any] = []
        self.results: list[Any] = []
        self.failures: list[tuple[int, BaseException, str]] = []
        self.interrupted: BaseException | None = None
        self.input_error: BaseException | None = None
        self.exhausted = False
        self.started_at = 0.0
        self.seconds = 0.0
        self.item_seconds: list[float] = []
        self.cpu_seconds = 0.0
        self.process_cpu_seconds = 0.0
        self.input_seconds: list[float] = []
        self.voluntary_switches: int | None = 0
        self.involuntary_switches = 0
        self.queued_seconds: float | None = None
        self.gil_share: float | None = None
        self.peak_growth_bytes = 0
        self.collector: ChunkCollector | None = None
        self.together = 0
        self.together_seconds = 0.0
        self.earlier_seconds = 0.0
        self.running: tuple[float, Reading] | None = None
        self.peak_before_bytes = 0
        self._closed = False
        self._taking = Lock()
        vars(self).update(facts)

    @property
    def all_seconds(self) -> float:
        """Wall time around all calls, those that were timed as one included."""
        return self.seconds + self.together_seconds + self.earlier_seconds

    def reopen(self) -> None:
        """Let further items be taken again."""
        self._closed = False

    def fail(self, index: int, error: Exception) -> None:
        """Note that a call raised."""
        self.failures.append((index, error, _traceback_text(error)))

    def account(self, before: Reading, after: Reading) -> Reading:
        """Add what the clocks counted during a call; gives ``after`` back."""
        self.cpu_seconds += max(0.0, after.cpu - before.cpu)
        self.cpu_seconds += max(0.0, after.children_cpu - before.children_cpu)
        self.process_cpu_seconds += max(0.0, after.process_cpu - before.process_cpu)
        self.involuntary_switches += after.involuntary - before.involuntary
        if before.voluntary is None or after.voluntary is None:
            self.voluntary_switches = None
        elif self.voluntary_switches is not None:
            self.voluntary_switches += after.voluntary - before.voluntary
        return after

    def begin_anew(self) -> None:
        """Forget how long calls took: from here on they are others."""
        self.earlier_seconds = self.all_seconds
        self.seconds = self.together_seconds = 0.0
        self.cpu_seconds = self.process_cpu_seconds = 0.0
        self.item_seconds, self.input_seconds = [], []
        self.together = self.involuntary_switches = 0
        self.voluntary_switches = 0
        self.gil_share = self.queued_seconds = None

    def so_far(self, wall: float, cpu: float, process_cpu: float) -> Sample | None:
        """Say what is known in the middle of a call, taken as one that ends now; else None.

        May be called from another thread than the sample's.

        Args:
            wall, cpu, process_cpu: the clocks of :class:`Clocks`, now.
        """
        if (running := self.running) is None:
            return None
        began, before = running
        seconds = max(0.0, wall - began)
        return Sample(
            items=self.items[:],
            results=self.results[:],
            failures=self.failures[:],
            seconds=self.seconds + seconds,
            item_seconds=[*self.item_seconds, seconds],
            cpu_seconds=self.cpu_seconds + max(0.0, cpu - before.cpu),
            process_cpu_seconds=self.process_cpu_seconds
            + max(0.0, process_cpu - before.process_cpu),
            input_seconds=self.input_seconds[:],
            voluntary_switches=None,  # those of another thread are not to be had
            peak_growth_bytes=max(0, read_peak_bytes() - self.peak_before_bytes),
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
    look: Look | None = None,
    look_early: bool = True,
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
            true; see :class:`~amorsize.planning.gil_probe.GilProbe`. None for nobody.
        look_early: whether the first call may be long, so that it is to be looked at as well.
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
        look_early=look_early,
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
    look: Look | None = None,
    look_early: bool = True,
    until: Callable[[], bool] | None = None,
) -> None:
    """Take up to ``size`` further items into a sample; arguments as in :func:`draw_sample`.

    With ``until``, which is asked about once a millisecond, it goes on until that is true, however
    clear the answer.
    """
    clocks = clocks or Clocks()
    wall = clocks.wall
    gil: GilProbe | None = None
    before: Reading | None = None
    spent = asked = unread = 0.0
    if look is not None and look_early:
        # From the first call on: a single one may take longer than all that is to be learned.
        look.begin()
        gil = GilProbe(wall, look)
        gil = gil if gil.start() else None
        probe = False
    if not sample.items:
        sample.started_at = clocks.epoch()
    sample.peak_before_bytes = clocks.peak_bytes()
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
                if look is not None:
                    look.begin()
                gil = GilProbe(wall, look)
                probe = gil.start()
                gil = gil if probe else None
            raised: Exception | None = None
            unread += sample.input_seconds[-1]
            if before is None or unread >= UNREAD_SECONDS:
                before = clocks.read()
            if sample.collector is not None:
                sample.collector.enter()
            began = wall()
            sample.running = began, before
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
                if seconds < UNREAD_SECONDS:
                    unread += seconds
                    sample.cpu_seconds += seconds
                    sample.process_cpu_seconds += seconds
                else:
                    before, unread = sample.account(before, clocks.read()), 0.0
            spent += seconds
            if raised is not None:
                sample.fail(taken, raised)
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
    sample.peak_growth_bytes += max(0, clocks.peak_bytes() - sample.peak_before_bytes)


def sample_together(
    sample: Sample,
    func: Callable[[Any], Any],
    iterator: Iterator[Any],
    total: int | None = None,
    *,
    clocks: Clocks | None = None,
) -> None:
    """Call ``func`` on further items with one look at the clock, where each call is very short.

    The clock takes longer than a trivial call: only many of them together say what one takes.
    Does nothing where calls or input are slow, where the sample has come to an end, or where too
    few of ``total`` items remain to make a difference.
    """
    ended = sample.failures or sample.exhausted or sample.interrupted or sample.input_error
    if ended or sample._closed or len(sample.item_seconds) < 2:
        return
    if total is not None and total - len(sample.items) < TOGETHER_ITEMS:
        return
    each = sorted(sample.item_seconds)[len(sample.item_seconds) // 2]
    if each > TOGETHER_SECONDS / 16 or max(sample.input_seconds) > TOGETHER_SECONDS:
        return
    wall = (clocks or Clocks()).wall
    size = len(sample.items) + min(MAX_TOGETHER, int(TOGETHER_SECONDS / max(each, 1e-9)))
    items, results, collector = sample.items, sample.results, sample.collector
    before, seconds = len(items), 0.0
    try:
        while (taken := len(results)) < size and seconds < 4 * TOGETHER_SECONDS:
            # Those behind a few may take longer.
            wanted = min(max(4, taken - before), TOGETHER_SLICE_ITEMS, size - taken)
            try:
                items.extend(islice(iterator, wanted))
            except Exception as error:  # what came before it is called
                sample.input_error = error
            piece = items[taken:]
            if collector is not None:
                collector.enter()
            began = wall()
            try:
                for item in piece:
                    results.append(func(item))
            finally:
                seconds += wall() - began
                if collector is not None:
                    collector.leave()
            if len(piece) < wanted:
                sample.exhausted = sample.input_error is None
                break
    except Exception as error:
        sample.fail(len(results), error)
    except BaseException as error:
        sample.interrupted = error
    finally:
        sample.together, sample.together_seconds = len(results) - before, max(0.0, seconds)


TOGETHER_SECONDS = 1e-3
"""About so long a sample of very short calls goes on."""
TOGETHER_SLICE_ITEMS = 32
MAX_TOGETHER = 256
TOGETHER_ITEMS = 64
"""Where fewer remain, it does not matter what a very short call takes exactly."""

_ASK_SECONDS = 1e-3
_OURS = (__name__, "amorsize.running.first_items")


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

    # The first frames are those that call the function, which tell the user nothing.
    shown = error.__traceback__
    while shown is not None and shown.tb_frame.f_globals.get("__name__") in _OURS:
        shown = shown.tb_next
    return "".join(traceback.format_exception(type(error), error, shown or error.__traceback__))
