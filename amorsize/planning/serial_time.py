"""The time of a serial run, estimated from the chunks of a run: arithmetic only, no clock.

A call in a worker takes longer than it does alone: it waits for a CPU, and for the GIL. How much of
its time the workers of the run have cost each other is known within bounds::

    at most   the time of the calls, less what they waited for a CPU because of each other
    at least  their CPU time, less that of others of a worker process; and the most, less what they
              waited for a CPU because of other programs, and less the CPU time that others of their
              process had meanwhile: so long these may have held the GIL, or worked for the call
              (threads, child processes)

Beside ``n - 1`` others, on ``m`` cores that are shared fairly, a thread that has a CPU for a second
waits for one for ``(n - 1) / m`` seconds because of them. A longer wait is due to other programs.
How long a serial run would have waited for these depends on how the system shares the cores (by
thread, by group): where that matters, its time is not known.

Where the bounds are as good as one, their middle is the serial time: of processes, and of threads
that hardly compute. Where they are far apart, what is known of the function's calls alone decides
between them: of one that computes, serial time is CPU time; of one that waits, CPU time and the
waits that were measured. Else it is not known; nor is it where one call uses several cores by
itself, or where what is known comes of a single call, or of calls that others disturbed.

Not visible here: workers that wait for each other (a lock, a disk) seem to wait by themselves.
"""

from __future__ import annotations

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.planning.workload import Workload
    from amorsize.workers.cpu_time import CpuTime

CLOSE = 0.75
"""Bounds are as good as one from this ratio on: their middle is then within 17 % of the truth."""

USES_ONE_CORE = 1.2
"""Calls that use no more cores than this use one; a thread of the program may have had the rest."""

ALIKE_CPU_TIMES = 1.5
"""Calls whose CPU times differ by no more than this factor wait for as long as each other, too."""


class SerialTime(Record):
    """The serial time of the calls of a run, as far as it is known.

    Attributes:
        alone_items, alone_seconds: calls beside which no other worker was at work.
        items, seconds: all others.
        uncounted_seconds: that of them whose CPU time is not known, or that did not end.
        cpu_seconds, alone_cpu_seconds: CPU time of the threads that called.
        queued_seconds: for how long these waited for a CPU.
        crowded_seconds: for how long they may have done so because of each other.
        helped_seconds: for how long others of their processes may have worked for them, or have
            held the GIL.
        inner_seconds: for how long others of worker processes computed: alone, calls that use
            several cores by themselves take less CPU time of the thread that calls, which spins
            while it waits for the others.
        limited_seconds: CPU time of calls that may take less where libraries are free to use all
            cores, as in the caller.
        queue_known: whether it is known for how long they waited for a CPU.
    """

    alone_items: int = 0
    alone_seconds: float = 0.0
    items: int = 0
    seconds: float = 0.0
    uncounted_seconds: float = 0.0
    cpu_seconds: float = 0.0
    alone_cpu_seconds: float = 0.0
    queued_seconds: float = 0.0
    crowded_seconds: float = 0.0
    helped_seconds: float = 0.0
    inner_seconds: float = 0.0
    limited_seconds: float = 0.0
    queue_known: bool = True

    def add(
        self,
        items: int,
        seconds: float,
        cpu: CpuTime | None,
        *,
        workers: int = 1,
        cores: int = 1,
        threads: bool = False,
    ) -> None:
        """Add a chunk.

        Args:
            items: its items.
            seconds: the time of its calls.
            cpu: their CPU time; None where it was not measured.
            workers: how many share the cores with it, itself included; 1 where it was alone.
            cores: how many they share.
            threads: whether the workers are threads of one process.
        """
        own = 0.0 if cpu is None else min(cpu.seconds, seconds)
        if workers == 1:
            self.alone_items += items
            self.alone_seconds += seconds
            self.alone_cpu_seconds += own
            return
        self.items += items
        self.seconds += seconds
        if cpu is None:
            self.uncounted_seconds += seconds
            return
        self.cpu_seconds += own
        self.crowded_seconds += own * (workers - 1) / cores
        # Others of a worker process may be in the queue as often as it is; those of this process
        # are the other workers.
        if cpu.is_limited:
            self.limited_seconds += own
        helpers = cpu.other_seconds + cpu.children_seconds
        if not threads:
            self.inner_seconds += helpers
            helpers *= max(1.0, workers / cores)
        self.helped_seconds += helpers
        if cpu.queued_seconds is None:
            self.queue_known = False
        else:
            self.queued_seconds += cpu.queued_seconds

    def add_unfinished(self, seconds: float) -> None:
        """Add time in calls that did not end, of which nothing else is known."""
        self.seconds += seconds
        self.uncounted_seconds += seconds

    def speedup(
        self,
        elapsed: float,
        *,
        input_seconds: float = 0.0,
        known: Workload | None = None,
        capacity: float | None = None,
    ) -> float | None:
        """Return how many times as long a serial run would have taken; None where it is not known.

        Args:
            elapsed: seconds that the run took.
            input_seconds: time of drawing its items from the input.
            known: what a call is like alone; None where that was never measured.
            capacity: how much computing the machine can do at once, in cores; None where that is
                not known.
        """
        calls = self._calls(known)
        if calls is None or elapsed <= 0 or self.items + self.alone_items == 0:
            return None
        if capacity is not None:
            # CPU time that hyperthreads had to share counts for less alone.
            calls -= max(0.0, self.all_cpu_seconds - capacity * elapsed)
        return (calls + input_seconds) / elapsed

    @property
    def all_cpu_seconds(self) -> float:
        """CPU time of the threads that called, alone or not."""
        return self.cpu_seconds + self.alone_cpu_seconds

    def _calls(self, known: Workload | None) -> float | None:
        alone = self.alone_seconds
        if self.items == 0 and self.seconds == 0.0:
            return alone
        # One call is enough for that: what runs beside it only adds to what it seems to use.
        uses_one_core = known is not None and known.inner_parallelism <= USES_ONE_CORE
        limited = 0.0 if uses_one_core else self.limited_seconds
        if known is not None and not known.is_sure:
            known = None
        if known is not None and known.parallel_inside:
            return None
        mutual = min(self.queued_seconds, self.crowded_seconds)
        outside = self.queued_seconds - mutual
        most = max(self.cpu_seconds, self.seconds - mutual)
        least = max(0.0, self.cpu_seconds - self.inner_seconds - limited)
        if self.queue_known:
            unsure = outside + self.uncounted_seconds + self.helped_seconds + limited
            least = max(least, most - unsure)
        computing, least = min(self.cpu_seconds + outside / 2, most), min(least, most)
        if alone + least >= CLOSE * (alone + most):
            return alone + (least + most) / 2
        if known is None or self.uncounted_seconds > 0:
            return None
        if alone + self.cpu_seconds - limited < CLOSE * (alone + self.cpu_seconds + outside):
            return None
        calls = computing
        if known.waits:
            each = sorted((self.cpu_seconds / max(1, self.items), known.cpu_seconds))
            if each[1] > ALIKE_CPU_TIMES * each[0]:
                return None
            calls += self.items * known.wait_seconds
        return alone + min(max(calls, least), most)
