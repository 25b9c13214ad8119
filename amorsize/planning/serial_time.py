"""What a serial run would have taken, by what a run has shown: arithmetic only, no clock.

The time of a call in a worker is not the time that it takes alone: beside others it waits for a
CPU and for the GIL. So each chunk says between which bounds the serial time of its calls lies::

    at most   its time, less that in which its thread stood ready without a CPU
    at least  its CPU time; and the most, less the CPU time that others of its process had in it:
              so long they may have held the GIL, or worked for the call (threads, child processes)

Where the bounds of a run are as good as one, their middle is the serial time: of processes, and of
threads that wait. Where they are far apart, what is known of the function's calls alone decides
between them: of one that computes, serial time is CPU time; of one that waits, CPU time and the
waits that were measured. Else it is not known.

What this cannot see: workers that wait for each other (a lock, a disk) seem to wait for themselves.
"""

from __future__ import annotations

from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.planning.workload import Workload
    from amorsize.workers.cpu_time import CpuTime

CLOSE = 0.75
"""Bounds are as good as one from this ratio on: their middle is then within 17 % of the truth."""

ALIKE = 1.5
"""Calls whose CPU times differ by no more than this factor wait for as long as each other, too."""


class SerialTime(Record):
    """The serial time of the calls of a run, as far as it is known.

    Attributes:
        items: items of the chunks.
        seconds: time of the chunks.
        at_least, at_most: bounds of the serial time.
        cpu_seconds: CPU time of the threads that called.
        counted: whether the CPU time of every chunk is known.
    """

    items: int = 0
    seconds: float = 0.0
    at_least: float = 0.0
    at_most: float = 0.0
    cpu_seconds: float = 0.0
    counted: bool = True

    def add(
        self,
        items: int,
        seconds: float,
        cpu: CpuTime | None,
        *,
        alone: bool = False,
        crowd: float = 1.0,
    ) -> None:
        """Add a chunk.

        Args:
            items: its items.
            seconds: the time of its calls.
            cpu: their CPU time; None where it was not measured.
            alone: whether no other worker of the run was at work: its time is serial time.
            crowd: workers per core: so many times as long as its CPU time a thread or a process
                that works for a call may take.
        """
        self.items += items
        self.seconds += seconds
        if cpu is None:
            self.counted = self.counted and (alone or not seconds)
            self.at_most += seconds
            self.at_least += seconds if alone else 0.0
            return
        own = min(cpu.seconds, seconds)
        self.cpu_seconds += own
        if alone:
            self.at_least += seconds
            self.at_most += seconds
            return
        # Outside of worker processes all that competes is of the same process.
        queued = cpu.queued_seconds or 0.0
        most = max(own, seconds - queued)
        helped = crowd * (cpu.other_seconds + cpu.children_seconds)
        self.at_most += most
        self.at_least += max(own, most - helped) if cpu.queued_seconds is not None else own

    def add_unfinished(self, seconds: float) -> None:
        """Add time in calls that did not end, of which nothing else is known."""
        self.seconds += seconds
        self.at_most += seconds
        self.counted = False

    def speedup(
        self,
        elapsed: float,
        *,
        input_seconds: float = 0.0,
        known: Workload | None = None,
        cores: float | None = None,
    ) -> float | None:
        """Return how many times as long a serial run would have taken; None where it is not known.

        Args:
            elapsed: seconds that the run took.
            input_seconds: time of drawing its items from the input.
            known: what a call is like alone; None where that was never measured.
            cores: how much computing the machine can do at once; None where that is not known.
        """
        calls = self._calls(known)
        if calls is None or elapsed <= 0 or self.items == 0:
            return None
        if cores is not None:
            # CPU time that hyperthreads had to share counts for less alone.
            calls -= max(0.0, self.cpu_seconds - cores * elapsed)
        return (calls + input_seconds) / elapsed

    def _calls(self, known: Workload | None) -> float | None:
        least, most = self.at_least, self.at_most
        if least >= CLOSE * most:
            return (least + most) / 2
        if known is None or known.parallel_inside or not self.counted:
            return None
        calls = self.cpu_seconds
        if known.waits:
            each = sorted((self.cpu_seconds / max(1, self.items), known.cpu_seconds))
            if each[1] > ALIKE * each[0]:
                return None
            calls += self.items * known.wait_seconds
        return min(max(calls, least), most)
