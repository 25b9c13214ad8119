"""How a run begins: its first items, called before what plans, runs and tells it is loaded.

Loading all of amorsize takes longer than many a run takes in all. So what a run begins with imports
little; and where the first items say that the others are done sooner than anything could be
planned, and nobody is to be told of it, it goes on with them (:meth:`Opening.finish`). Everything
else is loaded by whoever needs it first: the thread that looks at a long call in progress, or the
caller.
"""

from __future__ import annotations

import contextvars
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

from amorsize.options import known_length
from amorsize.planning.clocks import ThreadClocks
from amorsize.planning.gil_probe import AFTER_SECONDS, LOOK_SECONDS, GilProbe, switching_often
from amorsize.planning.known_functions import KnownFunctions
from amorsize.planning.sampling import Sample, draw_sample, sample_together
from amorsize.planning.workload import (
    HOPELESS_SECONDS,
    KNOWN_WORKLOADS,
    TRIVIAL_SECONDS,
    Workload,
    assumed_items,
    describe,
)
from amorsize.workers.pass_monitor import Watcher
from amorsize.workers.slices import Span

if TYPE_CHECKING:
    from amorsize.planning.explanation import OptimizationResult
    from amorsize.planning.plan import Rest
    from amorsize.planning.planner import Chooser
    from amorsize.workers.collectors import ChunkCollector

LOADING_SECONDS = 0.01
"""What loading everything else takes, about, in a process that has not done so."""

_SHORT = KnownFunctions[bool]()
"""Functions whose first calls were over before a look at one."""

SURPRISE = 4
"""Items are no longer what they were once they take so many times as long."""


def is_surprise(each_seconds: float, left: int, foreseen_seconds: float) -> bool:
    """Say whether items take so much longer than foreseen that the others are to be planned anew.

    Args:
        each_seconds: what an item took lately.
        left: how many are left.
        foreseen_seconds: what an item was foreseen to take.

    >>> is_surprise(0.02, 10, 1e-6), is_surprise(0.02, 2, 1e-6), is_surprise(0.02, 10, 0.01)
    (True, False, False)
    """
    foreseen = max(TRIVIAL_SECONDS, foreseen_seconds)
    return each_seconds > SURPRISE * foreseen and each_seconds * left > SURPRISE * LOADING_SECONDS


class Opening:
    """The first items of one run, and the choice that they lead to.

    Args:
        func: the function.
        data: the input.
        make_chooser: makes what looks at a call in progress, and chooses; called once, from this
            thread or another.
        sample_size: items to measure at most.
        return_exceptions: go on behind items that raise.
        prestart: told what calls are like, once, before ``make_chooser`` is called, which may take
            long; None where it does not.
        rest: what to begin with instead of the first item, in the middle of a run.

    Attributes:
        began: when the run began, by ``time.perf_counter()``.
        iterator: where further items come from.
        total: the length of the input, or of what is left of it; or None.
        sequence: the input, where slices of it say the same as its iterator; or None.
        start: the index in the input of the first item.
        chunk_id: the id of the chunk that the sample is.
        sample: the items so far.
        context: the context variables of the calling thread.
        result: the choice, once it is made.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        data: Iterable[Any],
        make_chooser: Callable[[Opening], Chooser],
        *,
        sample_size: int,
        return_exceptions: bool = False,
        prestart: Callable[[Workload], None] | None = None,
        rest: Rest | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self._func = func
        self._sample_size = sample_size
        self._return_exceptions = return_exceptions
        self.iterator: Iterator[Any]
        self.sequence: Sequence[Any] | None
        if rest is None:
            self.iterator, self.total = iter(data), known_length(data)
            # A range may be endless; and of a subclass one never knows.
            sliceable = type(data) in (list, tuple, range) and self.total is not None
            self.sequence = data if sliceable else None  # type: ignore[assignment]
            self.start = self.chunk_id = 0
        else:
            self.iterator, self.sequence, self.total = rest.iterator, rest.sequence, rest.left
            self.start, self.chunk_id = rest.start, rest.chunk_id
            _SHORT.forget(func)
        self.sample = Sample()
        self.context = contextvars.copy_context()
        self.result: OptimizationResult | None = None
        self._make_chooser = make_chooser
        self._prestart = prestart
        self._chooser: Chooser | None = None
        self._done = False
        self._begun_anew = rest is not None
        self._abandoned = False

    @property
    def chooser(self) -> Chooser:
        """What looks at a call in progress, and chooses; made when it is first asked for."""
        if self._chooser is None:
            self._chooser = self._make_chooser(self)
            if self._abandoned:  # by a run that did not wait for a call that is looked at only now
                self.abandon()
        return self._chooser

    def draw(self, collector: ChunkCollector | None = None) -> None:
        """Call the function on the first items.

        Args:
            collector: keeps what the calls bring beside results; None for none.
        """
        size = self._measure(collector)
        if size > 1 and not self._return_exceptions:
            sample_together(self.sample, self._func, self.iterator, self.total)
            if self._is_well() and self._have_changed():
                self._begin_anew()
                self._measure(collector)

    def _measure(self, collector: ChunkCollector | None) -> int:
        """Call the function on a few items, timed one by one; say on how many at most."""
        look: _Look | None = None
        size = self._sample_size
        if self._is_known() and self.chooser.begin_at_once():
            size = 1
        elif (clocks := ThreadClocks.of_this_thread()) is not None and self.total != 1:
            look = _Look(self, clocks)
        try:
            draw_sample(
                self._func,
                self.iterator,
                size,
                return_exceptions=self._return_exceptions,
                collector=collector,
                look=look,
                look_early=_SHORT.recall(self._func) is None,
                sample=self.sample,
            )
        finally:
            if look is not None:
                look.settle(self.sample)
        return size

    def _have_changed(self) -> bool:
        """Whether calls that were timed together were not as short as those before them."""
        sample = self.sample
        if not sample.together or sample.exhausted:
            return False
        each = sample.together_seconds / sample.together
        left = assumed_items(each) if self.total is None else self.total - len(sample.items)
        return is_surprise(each, left, sorted(sample.item_seconds)[len(sample.item_seconds) // 2])

    def _begin_anew(self) -> None:
        """Measure the next items like first ones."""
        _SHORT.forget(self._func)
        self.sample.begin_anew()
        self._begun_anew = True

    def finish(self) -> list[Any] | None:
        """Call the function on all other items, where workers would not help; the results.

        Where items turn out to be longer than foreseen, the next ones are measured anew.

        Returns:
            The results; None where something else is to be done, behind what :attr:`sample` holds:
            what the function or the input raised is there, too.
        """
        while self._may_go_on():
            workload = describe(self.sample, self.total)
            if self._is_hopeless(workload):
                if workload.item_seconds < AFTER_SECONDS:
                    _SHORT.remember(self._func, True)
            elif self.choose().executor_type != "serial" or not self._is_well():
                return None  # choosing may have measured further items
            if self._go_on():
                break
            # Items are not what they were: the next ones say what to do with the rest.
            self._begin_anew()
            self.result = None
            self.draw()
        if not self._is_well() or not (self._done or self._is_over()):
            return None
        self.abandon()  # workers that were begun before items turned out to be short
        return self.sample.results

    def choose(self) -> OptimizationResult:
        """Choose, once, what is done with all other items; it is :attr:`result` from then on."""
        if self.result is None:
            if self._is_well():
                self.prestart(describe(self.sample, self.total))
            self.result = self.chooser.choose()
            if self._begun_anew:  # a further run's first items are not like these
                KNOWN_WORKLOADS.forget(self._func)
        return self.result

    def prestart(self, workload: Workload) -> None:
        """Have workers start that calls of this kind need, before what chooses is loaded."""
        if (prestart := self._prestart) is not None and self._chooser is None:
            self._prestart = None
            prestart(workload)

    def abandon(self) -> None:
        """End what was begun, and nobody took over; begin nothing more."""
        self._abandoned = True
        if self._chooser is not None and self._chooser.ahead is not None:
            self._chooser.ahead.abandon()

    def _is_known(self) -> bool:
        """Whether an earlier run has shown what the calls are like."""
        known = KNOWN_WORKLOADS.recall(self._func) is not None
        first = not self.sample.items and not self._begun_anew
        return known and first and self.sequence is not None

    def _is_well(self) -> bool:
        sample = self.sample
        return not sample.failures and sample.input_error is None and sample.interrupted is None

    def _is_over(self) -> bool:
        if self.sample.exhausted or self.sequence is None:
            return self.sample.exhausted or len(self.sample.items) == self.total
        return len(self.sample.items) == self.total == len(self.sequence)

    def _may_go_on(self) -> bool:
        ahead = None if self._chooser is None else self._chooser.ahead
        if self.sequence is None or (ahead is not None and ahead.dispatched) or self._is_over():
            return False
        # Of a list that the function has made longer, or shorter, the run loop takes care.
        return self._is_well() and len(self.sequence) == self.total

    def _is_hopeless(self, workload: Workload) -> bool:
        """Whether the rest is done sooner than anything better could begin."""
        if workload.item_seconds < TRIVIAL_SECONDS:
            return True
        loaded = "amorsize.running.call" in sys.modules
        return workload.serial_seconds < (HOPELESS_SECONDS if loaded else LOADING_SECONDS)

    def _go_on(self) -> bool:
        """Call the function on all other items, as long as they are as short as foreseen.

        Says whether that was the end, by whatever.
        """
        assert self.sequence is not None
        assert self.total is not None
        sample, sequence, total = self.sample, self.sequence, self.total
        before = len(sample.items)
        foreseen = describe(sample, total).item_seconds

        def too_long(each: float, at: int) -> bool:
            return is_surprise(each, total - at, foreseen)

        func, watcher = self._func, Watcher(too_long)
        watch = watcher.look_after(Span(sequence, before, total), before)
        began = time.perf_counter()
        try:
            with watch as items:
                results = [func(item) for item in items]
            watch.settle(results)
        except Exception as error:
            taken = before + watch.taken
            sample.fail(taken - 1, error)
            lost = taken - len(sequence)  # a list may have become shorter
            sample.items = [*sequence[:taken], *[None] * max(0, lost)]
            return True
        finally:
            watcher.close()
            sample.earlier_seconds += time.perf_counter() - began
        taken = before + watch.taken
        results[:0] = sample.results
        sample.results = results
        if taken == total:
            self._done = True
            # They are not copied: nobody adds to them.
            whole = taken == len(sequence)
            sample.items = sequence if whole else list(sequence[:taken])  # type: ignore[assignment]
            return True
        sample.items = list(sequence[:taken])
        self.iterator = Span(sequence, taken, total).iterator()
        if self._chooser is not None:
            self._chooser.iterator = self.iterator
        return False


class _Look:
    """What the probe's thread does while the first calls run."""

    def __init__(self, opening: Opening, clocks: ThreadClocks) -> None:
        self._opening = opening
        self._clocks = clocks
        self._looking = Lock()
        self._caller = get_ident()
        self._settled = False
        self._spent = 0.0
        self.begin = clocks.begin

    def __call__(self, probe: GilProbe) -> float | None:
        with self._looking:
            # What is computed here is not the function's.
            self._spent -= time.thread_time()
            try:
                return None if self._settled else self._look(probe)
            finally:
                self._spent += time.thread_time()

    def _look(self, probe: GilProbe) -> float | None:
        if self._is_importing():
            return LOOK_SECONDS
        with switching_often():
            if (seen := self._see(probe)) is None:
                return LOOK_SECONDS
            self._opening.prestart(seen[1])
            try:
                chooser = self._opening.chooser
            except Exception:
                return None  # the caller's thread meets that again
            # Loading it may have taken long enough for a call to come to its end.
            seen = self._see(probe)
        return LOOK_SECONDS if seen is None else chooser.look(*seen)

    def _is_importing(self) -> bool:
        """Whether the caller is in the middle of an import.

        To pickle what is of that module, this thread would wait until it is over; and the caller,
        after its call, for this thread.
        """
        frame = sys._current_frames().get(self._caller)
        while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
            frame = frame.f_back
        return frame is not None

    def _see(self, probe: GilProbe) -> tuple[Sample, Workload] | None:
        """Say what is known in the middle of a call, and what it means for the whole input.

        A call so far counts as a call of that length: it can only get longer.
        """
        cpu, process_cpu = self._clocks.cpu(), time.process_time()
        sample = self._opening.sample.so_far(time.perf_counter(), cpu, process_cpu)
        if sample is None or (share := probe.share()) is None:
            return None
        sample.gil_share = share
        self._correct(sample, self._spent + time.thread_time())
        workload = describe(sample, self._opening.total)
        # The call in progress is work as well: two items are enough for two workers.
        return sample, workload._replace(remaining=workload.remaining + 1)

    def settle(self, sample: Sample) -> None:
        """Wait for a look in progress, allow no other, and note what looks told of the calls."""
        self._settled = True
        with self._looking:
            self._correct(sample, self._spent)

    def _correct(self, sample: Sample, spent: float) -> None:
        sample.queued_seconds = self._clocks.queued()
        ours = max(0.0, sample.process_cpu_seconds - sample.cpu_seconds)
        sample.process_cpu_seconds -= min(ours, spent)


def nobody_listens() -> bool:
    """Say whether an execution without hooks of its own would be told to anybody.

    That is the default manager, the chunk that this code runs in, or the log.
    """
    modules = sys.modules
    manager = getattr(modules.get("amorsize.hooks.manager"), "get_default_manager", None)
    if manager is not None and manager().has_hooks():
        return False
    numbers = getattr(modules.get("amorsize.workers.user_metrics"), "current_collector", None)
    if numbers is not None and numbers() is not None:
        return False
    logging = modules.get("logging")
    return logging is None or not logging.getLogger("amorsize").isEnabledFor(logging.DEBUG)
