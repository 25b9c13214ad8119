"""The workload of the whole input, estimated from a sample: arithmetic only, no clock, no I/O."""

from __future__ import annotations

import math

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.planning.observations import Sample
    from amorsize.planning.pickling import Payload

SHORT_CALL_SECONDS = 20e-6
CLOCK_SECONDS = 2e-6
"""The time that the sample measures for taking an item from a list: that of its own clock."""
INNER_PARALLELISM = 1.5
"""CPU time over wall time above which the function uses several cores by itself."""
WAITING_CPU_SHARE = 0.8
TAKEN_PER_GIVEN = 3
"""More involuntary context switches than this for each voluntary one: the CPU is taken away (10 and
more for a computing function on an overcommitted machine, 0 to 2 for one that waits)."""
TAKEN_CPU_SHARE = 0.3
"""A call that computes keeps more than this share of a CPU on a machine three times
overcommitted."""
GIL_FREE_SHARE = 0.25
"""Ticks of the probe above which the GIL is free: between 0.06 (held) and 0.7 (free)."""
FEWEST_SURE_CALLS = 2
SURE_SPREAD = 1.5
"""Calls that wait say how long others do where there are so many, and the longest took at most so
many times what the shortest did."""
SHORTEST_ITEM_SECONDS = 3e-7
"""Calls as short as this are done sooner than their items are handed to anybody else."""
LITTLE_SECONDS = 2e-3
"""Serial work of this length is done before anything better has begun: planning alone takes a tenth
of it."""
STREAM_SECONDS = 10.0
STREAM_ITEMS = 1000
"""An input of unknown length is taken for this much serial work, and at least so many items."""


class Workload(Record):
    """The properties of the whole input, as far as the sample shows them.

    Attributes:
        total: items of the input, or None when unknown.
        sampled: items that have been run already.
        remaining: items still to run; assumed when ``total`` is None.
        sample_seconds: what the sample took, input included; 0 where its items run again.
        item_seconds: one call, run alone: without the time in which it had to wait for a CPU.
        cpu_seconds: the share of it on a CPU, in all threads and child processes.
        gil_seconds: the share of it during which the GIL is held.
        wait_seconds: the share of it spent waiting.
        input_seconds: producing one item.
        inner_parallelism: cores that one call uses.
        gil_known: whether the GIL was probed.
        queued_share: the share of the calls' time in which they had to wait for a CPU, where known.
        is_sure: whether it says what calls are like alone: several were measured (one is enough
            that uses several cores), with no other worker beside them, and those that waited did
            so for about as long.
        working_bytes: memory that one call was seen to need.
        payload: what crosses to a worker process; None when not measured.
    """

    total: int | None
    sampled: int
    remaining: int
    sample_seconds: float
    item_seconds: float
    cpu_seconds: float
    gil_seconds: float
    wait_seconds: float = 0.0
    input_seconds: float = 0.0
    inner_parallelism: float = 1.0
    gil_known: bool = False
    queued_share: float = 0.0
    is_sure: bool = False
    working_bytes: int = 0
    payload: Payload | None = None

    @property
    def waits(self) -> bool:
        """Whether a call mostly waits."""
        return self.wait_seconds > 0.0

    @property
    def releases_gil(self) -> bool:
        """Whether a call computes for most of its time without holding the GIL."""
        return not self.waits and self.gil_seconds < 0.7 * self.item_seconds

    @property
    def parallel_inside(self) -> bool:
        """Whether a call uses several cores by itself."""
        return self.inner_parallelism > INNER_PARALLELISM

    def over(self, total: int | None, taken: int, sample_seconds: float = 0.0) -> Workload:
        """Return the same work over another input, of which some items are taken already."""
        remaining = assumed_items(self.item_seconds + self.input_seconds)
        if total is not None:
            remaining = max(0, total - taken)
        return self._replace(
            total=total, sampled=taken, remaining=remaining, sample_seconds=sample_seconds
        )

    @property
    def busy_item_seconds(self) -> float:
        """One call, with the time in which it had to wait for a CPU."""
        return self.item_seconds / max(1.0 - self.queued_share, 1e-3)

    @property
    def serial_seconds(self) -> float:
        """The remaining items, one after the other."""
        return self.remaining * (self.item_seconds + self.input_seconds)


def describe(
    sample: Sample,
    total: int | None,
    *,
    payload: Payload | None = None,
    again: bool = False,
) -> Workload:
    """Say what a sample means for the whole input.

    Args:
        sample: the first items.
        total: items of the input, sampled ones included; None when unknown.
        payload: what crosses to a worker process, where measured.
        again: whether the sampled items will run again with the others.

    Calls of a few microseconds are taken at their median, because their mean is that of the
    interpreter warming up. A first call that took ten times as long as is typical of at least two
    others is a warm-up (imports, caches) and left out of the estimate.
    """
    calls = sample.item_seconds
    taken = sample.taken
    if sample.exhausted:
        total = taken
    warming = len(calls) >= 3 and calls[0] > 10 * _typical(calls[1:])
    usual = calls[1:] if warming else calls
    item = _typical(usual)
    if sample.together:
        item = sample.together_seconds / sample.together
    # CPU times have no finer reading than the calls around the sample: shares of it.
    off_cpu = max(0.0, sample.seconds - sample.cpu_seconds)
    queued = min(sample.queued_seconds or 0.0, off_cpu)
    ran = sample.seconds - queued
    cpu_share = min(1.0, sample.cpu_seconds / ran) if ran > 0 else 1.0
    # The thread that looks at a call needs the GIL, and on a busy machine may hold it without a
    # CPU.
    undisturbed = max(sample.cpu_seconds, ran - sample.looks_seconds)
    surely = sample.cpu_seconds >= WAITING_CPU_SHARE * undisturbed and cpu_share > TAKEN_CPU_SHARE
    inner = sample.process_cpu_seconds / sample.seconds if sample.seconds > 1e-3 else 1.0
    free = sample.gil_share
    switches = sample.voluntary_switches
    # A busy machine makes wall time longer than CPU time too, but it takes the CPU away: only
    # what gives it up by itself waits. And a thread that fights for the GIL gives it up as well.
    waits = (
        cpu_share < WAITING_CPU_SHARE
        and not surely
        and (free is None or free >= GIL_FREE_SHARE)
        and (switches is None or switches >= len(calls))
        and (
            switches is None
            or sample.queued_seconds is not None
            or sample.involuntary_switches <= TAKEN_PER_GIVEN * switches
            or cpu_share <= TAKEN_CPU_SHARE
        )
    )
    if sample.seconds > 0 and not sample.together:
        item *= (ran if waits else min(ran, undisturbed)) / sample.seconds
    if waits:
        # The CPU time of a waiting function is assumed to hold the GIL: ticks cannot show it.
        cpu = item * cpu_share
        gil = min(cpu, item)
        wait = max(0.0, item - cpu)
    else:
        cpu, wait = item * max(1.0, inner), 0.0
        held = 1.0 if free is None else (0.5 - free) / (0.5 - 0.06)
        gil = item * min(1.0, max(0.0, held))
    input_seconds = _typical(sample.input_seconds)
    if input_seconds < CLOCK_SECONDS:
        input_seconds = 0.0
    if total is not None:
        remaining = max(0, total if again else total - taken)
    else:
        remaining = assumed_items(item + input_seconds)
    return Workload(
        total=total,
        sampled=taken,
        remaining=remaining,
        sample_seconds=0.0 if again else sample.all_seconds + sum(sample.input_seconds),
        item_seconds=item,
        cpu_seconds=cpu,
        gil_seconds=gil,
        wait_seconds=wait,
        input_seconds=input_seconds,
        inner_parallelism=inner,
        gil_known=free is not None,
        queued_share=queued / sample.seconds if queued else 0.0,
        is_sure=(len(usual) >= FEWEST_SURE_CALLS or inner > INNER_PARALLELISM)
        and not (waits and max(usual) > SURE_SPREAD * min(usual)),
        working_bytes=sample.peak_growth_bytes,
        payload=payload,
    )


def assumed_items(item_seconds: float) -> int:
    """Say how many items an input of unknown length is taken for."""
    return max(STREAM_ITEMS, math.ceil(STREAM_SECONDS / max(item_seconds, 1e-9)))


def _typical(seconds: list[float]) -> float:
    if not seconds:
        return 0.0
    median = sorted(seconds)[len(seconds) // 2]
    return median if median < SHORT_CALL_SECONDS else sum(seconds) / len(seconds)
