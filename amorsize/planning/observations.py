"""Everything that is known when the planner is asked: the caller's wishes, and what was seen."""

from __future__ import annotations

from amorsize.planning.known_functions import Known
from amorsize.workers.record import Record, made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from amorsize.planning.engine import Engine
    from amorsize.planning.machine import StartupModel, SystemFacts
    from amorsize.planning.pickling import Payload
    from amorsize.planning.plan import RunChunks

    StartupModels: TypeAlias = Mapping[str, StartupModel]


class Sample(Record):
    """The cost of the first items, or of items that were measured like first ones.

    Attributes:
        taken: items that were taken from the input.
        exhausted: whether the input was seen to end.
        seconds: wall time around the calls that were timed one by one.
        item_seconds: the same, for each call.
        cpu_seconds: CPU time of the calling thread in the calls, and of child processes that
            ended in them.
        process_cpu_seconds: CPU time of all threads of the process in the calls.
        input_seconds: wall time of taking each item from the input.
        voluntary_switches: context switches by which the calls waited; None where not counted.
        involuntary_switches: those by which the CPU was taken away from them.
        queued_seconds: for how long the calls were ready to run, but had no CPU; None where that
            is not known, and context switches have to show it.
        looks_seconds: for how long another thread looked at them, which needs the GIL for that.
        gil_share: see :class:`~amorsize.planning.gil_probe.GilProbe`; None when not probed.
        peak_growth_bytes: how far the process' highest resident size rose.
        together, together_seconds: calls that were timed as one, and how long they took.
        other_seconds: what calls took that say nothing of those to come.
        items_bytes, results_bytes: what the items and the results weigh, about; 0 where nobody
            asks: the input is in memory, and the results stay there.
        asked_items: how many were to be timed one by one.
        asked_together: whether further ones were to be timed as one.
    """

    taken: int = 0
    exhausted: bool = False
    seconds: float = 0.0
    item_seconds: list[float] = made(factory=list)
    cpu_seconds: float = 0.0
    process_cpu_seconds: float = 0.0
    input_seconds: list[float] = made(factory=list)
    voluntary_switches: int | None = 0
    involuntary_switches: int = 0
    queued_seconds: float | None = None
    looks_seconds: float = 0.0
    gil_share: float | None = None
    peak_growth_bytes: int = 0
    together: int = 0
    together_seconds: float = 0.0
    other_seconds: float = 0.0
    items_bytes: int = 0
    results_bytes: int = 0
    asked_items: int = 0
    asked_together: bool = False

    @property
    def all_seconds(self) -> float:
        """Wall time around all calls."""
        return self.seconds + self.together_seconds + self.other_seconds


class EarlyWork(Record):
    """Workers that were started ahead of the plan.

    Attributes:
        engine: ``thread`` or ``process``; None where there are none yet.
        n_jobs: how many workers.
        dispatched: items that were handed to them.
        is_up: whether one is ready to work, or never will be.
        refused: whether they could not be started, or are of no use.
        template: whether the template of worker processes was started.
    """

    engine: str | None = None
    n_jobs: int = 0
    dispatched: int = 0
    is_up: bool = False
    refused: bool = False
    template: bool = False


class ChunkTimes(Record):
    """The time of chunks since the engine began; older ones count half as much each time.

    Attributes:
        recent_items, recent_seconds: the weighted sums.
        worked_seconds: of all chunks.
        last_items: the size of the chunk that came back last.
        count: how many came back.
    """

    recent_items: float = 0.0
    recent_seconds: float = 0.0
    worked_seconds: float = 0.0
    last_items: int = 0
    count: int = 0

    def add(self, items: int, seconds: float) -> None:
        """Add a chunk; an empty one says nothing."""
        if items:
            self.recent_items = self.recent_items / 2 + items
            self.recent_seconds = self.recent_seconds / 2 + seconds
            self.worked_seconds += seconds
            self.last_items = items
            self.count += 1

    @property
    def item_seconds(self) -> float | None:
        """The recent time of an item; None where nothing was measured."""
        return self.recent_seconds / self.recent_items if self.recent_items > 0 else None


class Weights(Record):
    """The weight of items and results, in bytes. A greater weight than before counts at once, a
    lower one by half.

    Attributes:
        item_bytes, result_bytes: of one item, and of its result.
        count: how many chunks were weighed.
    """

    item_bytes: float = 0.0
    result_bytes: float = 0.0
    count: int = 0

    def add(self, items: int, items_bytes: int, results_bytes: int) -> None:
        """Add a chunk; an empty one says nothing."""
        if items:
            item, result = items_bytes / items, results_bytes / items
            self.item_bytes = max(item, (self.item_bytes + item) / 2)
            self.result_bytes = max(result, (self.result_bytes + result) / 2)
            self.count += 1

    @property
    def both_bytes(self) -> float:
        """Of an item and its result."""
        return self.item_bytes + self.result_bytes


class Observations(Record):
    """All that is known about a run. The run writes it, the planner reads it.

    Attributes:
        engine: the engine that the caller named; None where the choice is open.
        n_jobs, chunksize: as the caller gave them; None to choose.
        sample_size: items to measure at most.
        target_chunk_duration: seconds that a chunk is to take.
        allowed: engines that may be chosen; a serial run always may.
        returns_exceptions: whether items may fail without ending the run.
        time_limit: whether there is one for the run or its items: then the calling thread does
            not work on while workers start.
        item_time_limit: whether there is one for items: an item that hangs must hang where it
            can be ended.
        interruptible: whether a serial run answers to somebody else, and so has its own thread.
        runs_again: whether the measured items run again with the others, and nothing starts
            ahead: ``optimize()``.
        whole: whether a serial run may do all that is left as one chunk: its input is in memory,
            nobody observes it, and nothing else was asked for.
        most_chunk_items, most_serial_items: items per chunk at most; the same, in a serial run.
        streams: whether results wait for a consumer, who may be slow.

        left: items that were not taken yet; None where the length is unknown.
        indexable: whether items can be had by their index, beside those that are measured.
        loading_seconds: what it takes to load what plans for workers and starts them; 0 where
            that is loaded.
        known: what earlier runs have shown of the function.
        sendable: whether its results came back from worker processes, for such items.
        machine: None where it was not looked at.
        memory_read: whether its memory was looked at, too.
        startup: the start-up model of each engine; None for the priors.
        warm_workers: worker processes that are up already.
        sample: what the first items cost.
        stopped: what ended the measuring: an exception, in words; empty where nothing did.
        payload: what crosses to a worker process; None where not measured.
        in_progress: whether the last call of the sample is in progress, and lasts on.
        early: the workers that were started ahead; None where none can be.

        plan: what the run goes by now; None before the first plan.
        chunks: what its chunks took.
        weights: what its items and results weigh.
        held_chunks: chunks in flight, or waiting for the consumer of a stream.
        held_bytes: what they weigh, with the results that are expected.
        expected_seconds: what items were expected to take when they last deviated.
        deviating_seconds: what an item took that made a chunk end early; 0 where none did.
        growths: how often the run has gone over to workers.
        refusals: of engines that were chosen and turned out to be of no use: why.
        refused_items: items that were drawn for them, and not begun.
        notes: for the explanation: steps on the way.
    """

    engine: Engine | None = None
    n_jobs: int | None = None
    chunksize: int | None = None
    sample_size: int = 5
    target_chunk_duration: float = 0.2
    allowed: tuple[str, ...] = ("serial", "thread", "process")
    returns_exceptions: bool = False
    time_limit: bool = False
    item_time_limit: bool = False
    interruptible: bool = False
    runs_again: bool = False
    whole: bool = False
    most_chunk_items: int = 100_000
    most_serial_items: int = 100_000
    streams: bool = False

    left: int | None = None
    indexable: bool = False
    loading_seconds: float = 0.0
    known: Known = made(factory=Known)
    sendable: bool = False
    machine: SystemFacts | None = None
    memory_read: bool = False
    startup: StartupModels | None = None
    warm_workers: int = 0
    sample: Sample = made(factory=Sample)
    stopped: str = ""
    payload: Payload | None = None
    in_progress: bool = False
    early: EarlyWork | None = None

    plan: RunChunks | None = None
    chunks: ChunkTimes = made(factory=ChunkTimes)
    weights: Weights = made(factory=Weights)
    held_chunks: int = 0
    held_bytes: float = 0.0
    expected_seconds: float = 0.0
    deviating_seconds: float = 0.0
    growths: int = 0
    refusals: Mapping[str, str] = made(factory=dict)
    refused_items: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int | None:
        """The items of the input, measured ones included; from where the measuring began."""
        return None if self.left is None else self.left + self.sample.taken

    def weights_on(self, engine: str) -> Weights:
        """The weight of items and results: of chunks that came back, or else of the sample."""
        if self.weights.count:
            return self.weights
        weights, sample, payload = Weights(), self.sample, self.payload
        weights.add(sample.taken, sample.items_bytes, sample.results_bytes)
        if payload is not None and engine == "process":
            weights.add(1, payload.item_bytes, payload.result_bytes)
        return weights
