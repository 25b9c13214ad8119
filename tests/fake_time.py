"""A clock that moves only when a test says so."""

from __future__ import annotations

from amorsize.planning.clocks import Clocks


class FakeTime:
    """Seconds on a clock; a function of the test adds what a call is to take.

    Args:
        cores: how many cores compute while it moves.
    """

    def __init__(self, cores: float = 0.0) -> None:
        self.now = 100.0
        self._cores = cores

    def __call__(self) -> float:
        return self.now

    def clocks(self) -> Clocks:
        """Clocks that read this one."""
        return Clocks(
            wall=self,
            epoch=lambda: 5.0,
            thread_cpu=lambda: self.now * min(1.0, self._cores),
            process_cpu=lambda: self.now * self._cores,
            usage=lambda: (0, 0, 0.0),
            peak_bytes=lambda: 0,
        )
