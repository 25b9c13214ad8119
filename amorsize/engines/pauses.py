"""Pauses of this process, which are not held against the items that were running meanwhile."""

from __future__ import annotations

import time

PAUSE_WATCH_SECONDS = 0.5
"""How often the run's thread looks at items that may take too long, at least."""

_PAUSE_NS = int(2 * PAUSE_WATCH_SECONDS * 1e9)


class PauseWatch:
    """Notices that nobody looked for a long time: the process was stopped, or its container paused.

    Attributes:
        looked_at: the time of the last look, in monotonic ns.
    """

    def __init__(self) -> None:
        self.looked_at = time.monotonic_ns()
        self._pauses: list[tuple[int, int]] = []

    def look(self) -> None:
        """Note a look; call it at least every :data:`PAUSE_WATCH_SECONDS`."""
        now = time.monotonic_ns()
        pause = now - self.looked_at - _PAUSE_NS
        if pause > 0:
            self._pauses.append((now, pause))
        self.looked_at = now

    def seconds_since(self, stamp: int) -> float:
        """Return the seconds from a time to the last look, without pauses."""
        paused = sum(pause for at, pause in self._pauses if at > stamp)
        return (self.looked_at - stamp - paused) / 1e9
