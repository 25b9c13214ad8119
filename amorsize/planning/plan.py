"""The answers of the planner: look further, start workers ahead, run chunks.

There is one vocabulary for the first plan and for every later one; ``running`` carries it out.
"""

from __future__ import annotations

from amorsize.planning.engine import Engine
from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from amorsize.planning.cost import Comparison
    from amorsize.planning.workload import Workload

ITEMS = "items"
"""Run the next items in the calling thread, timed one by one."""
ITEMS_TOGETHER = "items together"
"""Run the next items in the calling thread, timed as one: the clock takes longer than one does."""
ITEMS_MEANWHILE = "items meanwhile"
"""Run the next items in the calling thread, untimed, until a worker is up."""
CORES = "cores"
MEMORY = "memory"
"""Cores and memory."""
PAYLOAD = "payload"
"""Pickle the function, an item and a result."""
STARTUP = "start-up"
"""Start an interpreter, and time that."""
CALL = "call"
"""Look at the call in progress again, later."""


class LookFurther(Record):
    """More has to be known.

    Attributes:
        at: one of the above.
        items: how many, at most.
        afresh: of items: earlier ones say nothing of these.
        monitored: of items: whether a long call is looked at while it is in progress.
        from_start: of monitored items: whether the first call may be a long one.
        seconds: of a call: when to look again.
        note: for the explanation.
    """

    at: str
    items: int = 0
    afresh: bool = False
    monitored: bool = True
    from_start: bool = True
    seconds: float = 0.0
    note: str = ""


class StartTemplate(Record):
    """The process that worker processes are forked from starts ahead of the plan."""


class StartWorkers(Record):
    """Workers start ahead of the plan.

    Attributes:
        engine: ``thread`` or ``process``.
        n_jobs: how many.
        dispatch: how many items go to them now, one per chunk.
        keep: items, before those, that stay for the calling thread.
        look_again_seconds: of a call in progress: when to look again; None for never.
    """

    engine: str
    n_jobs: int
    dispatch: int = 0
    keep: int = 0
    look_again_seconds: float | None = None


class Choice(Record):
    """Where chunks run, and why.

    Attributes:
        engine: the engine.
        n_jobs: workers at most.
        reason: why, in a sentence; empty where :attr:`comparison` says it.
        estimated_speedup: over a serial run; None where nothing was measured.
        item_seconds: what an item is expected to take.
        may_leave: whether the run may leave its workers, where they turn out to gain nothing.
        may_grow: whether a serial run may go over to workers, where its items turn out long.
        warnings: what the user may want to change.
        workload: what was chosen for; None where nothing was measured.
        comparison: the engines as they were compared; None where none were.
        notes: for the explanation: steps on the way.
    """

    engine: Engine
    n_jobs: int = 1
    reason: str = ""
    estimated_speedup: float | None = 1.0
    item_seconds: float = 0.0
    may_leave: bool = False
    may_grow: bool = False
    warnings: tuple[str, ...] = ()
    workload: Workload | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_serial(self) -> bool:
        """Whether the calling thread, or one that stands in for it, is the only worker."""
        return self.engine.type == "serial"

    @property
    def is_local(self) -> bool:
        """Whether items and results surely stay in this process, and are not copied."""
        return self.engine.type in ("serial", "thread")


class RunChunks(Record):
    """Chunks run, until something else is better.

    Attributes:
        choice: where; it is the same object as long as only the size of chunks changes.
        size: items in the next chunk; 0 where what is held has to become less first.
        usual_size: the same, away from the end of the input.
        counted: how many chunks that size accounts for.
        most_bytes: the next chunk ends where its items weigh so much, or its results do; 0 for
            never.
    """

    choice: Choice
    size: int
    usual_size: int
    counted: int = 0
    most_bytes: int = 0


Plan: TypeAlias = LookFurther | StartTemplate | StartWorkers | RunChunks
