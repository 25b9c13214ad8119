"""Compares the engines: arithmetic only, no clock, no I/O.

The prediction for an engine with ``n`` workers is Amdahl's law with the costs of dividing in it::

    total = start-up(n) + max(workers, parent)

    workers  the slowest of
             - ceil(items / n) calls one after the other: the law's divided part
             - what the cores give: all CPU time / min(n cores, cores, quota)
             - threads only, what the GIL gives: all the time that it is held
    parent   the law's serial part: producing the input, pickling items and unpickling results,
             a round trip for each chunk (it overlaps with the workers)

The engine with the lowest total is taken; where two are within 3 %, the one with fewer workers;
and a serial run, unless a total is at least 1.1 times as fast as it is.

Source: G. M. Amdahl, "Validity of the single processor approach to achieving large scale computing
capabilities", AFIPS 1967.
"""

from __future__ import annotations

import math

from amorsize.planning.chunk_sizes import MOST_FIRST_ITEMS, chunk_bytes, fitting_size
from amorsize.planning.workload import Workload
from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from amorsize.planning.machine import StartupModel, SystemFacts

ROUND_TRIP_SECONDS = {"serial": 0.0, "thread": 16e-6, "process": 55e-6}
"""A chunk's way to a worker and back, measured with the engines of this package."""

BYTES_PER_SECOND = 1e9
"""Moving pickled bytes to another process: 3 GB/s through a socket pair, read and copied again."""

MAX_THREADS = 64
WORKER_BYTES = 30 << 20
"""The memory of an interpreter with the worker's imports."""
MEMORY_SHARE = 0.8
"""The share of the available memory that a plan may fill."""
CHUNKS_PER_WORKER = 16
"""Chunks per worker, where they are not too short for that: the slack that evens out items of
different length, and workers that begin at different times."""
FEWEST_CHUNKS_PER_WORKER = 4
"""Where they would be: so many at least."""
TOO_SHORT_CHUNK_SECONDS = 5e-3
"""Too short: a hundred times what a chunk's way to a worker and back costs."""

HYPERTHREAD_YIELD = 0.3
"""The gain by the second hardware thread of a core (Intel gives up to 30 %: Marr et al.,
"Hyper-Threading Technology Architecture and Microarchitecture", 2002)."""

MEANWHILE_SECONDS = 0.04
"""Calls shorter than this go on in the caller's thread while workers start: it notices those
within 50 ms."""
MEANWHILE_SHARE = 0.8
"""The share of its usual work that it gets done in that time: workers that start need cores,
too."""

MINIMUM_GAIN = 1.1
"""A serial run is left only for a speedup of at least this much."""
MINIMUM_SAVING_SECONDS = 5e-4

NO_MEMORY = "memory does not hold two of its workers"
ONE_CORE = "one core is usable"


class Candidate(Record):
    """The predicted time of one engine for the remaining items.

    Attributes:
        engine: ``serial``, ``thread`` or ``process``.
        n_jobs, chunksize: with how many workers, in chunks of how many items.
        startup_seconds: starting the workers that are not warm, sending them the function.
        compute_seconds: the calls, as long as the slowest worker takes.
        pickling_seconds: pickling and moving items and results, in workers and parent.
        round_trip_seconds: one for each chunk.
        seconds: the total; pickling and round trips of the parent overlap with computing, so it
            may be less than the sum.
        speedup: over a serial run of the whole input, the sample included.
        problem: why the engine is out of the question, or None.
        wanted_jobs: workers that would have been considered, had memory held them.
    """

    engine: str
    n_jobs: int = 1
    chunksize: int = 1
    startup_seconds: float = 0.0
    compute_seconds: float = 0.0
    pickling_seconds: float = 0.0
    round_trip_seconds: float = 0.0
    seconds: float = 0.0
    speedup: float = 1.0
    problem: str | None = None
    wanted_jobs: int = 0


class Comparison(Record):
    """The engines, compared.

    Attributes:
        chosen: the candidate taken.
        candidates: the best of each engine, the serial run first.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]


def effective_cores(system: SystemFacts, workers: int) -> float:
    """Cores that ``workers`` computing at the same time get.

    >>> from amorsize.planning.machine import SystemFacts
    >>> effective_cores(SystemFacts.of(8, physical_cores=4), 8)
    5.2
    """
    busy = min(workers, system.affinity_cores)
    cores = min(busy, system.physical_cores)
    capacity = cores + HYPERTHREAD_YIELD * (busy - cores)
    return capacity if system.quota_cores is None else min(capacity, system.quota_cores)


def choose_chunksize(
    workload: Workload, n_jobs: int, target_chunk_duration: float, call_seconds: float
) -> int:
    """Items per chunk that lasts ``target_chunk_duration`` seconds, if enough chunks remain."""
    size: float = MOST_FIRST_ITEMS
    if call_seconds > 0:
        size = min(target_chunk_duration / call_seconds, MOST_FIRST_ITEMS)
    if n_jobs > 1 and workload.total is not None:
        most = workload.remaining / (n_jobs * FEWEST_CHUNKS_PER_WORKER)
        short = TOO_SHORT_CHUNK_SECONDS / call_seconds if call_seconds > 0 else most
        even = workload.remaining / (n_jobs * CHUNKS_PER_WORKER)
        size = min(size, most, max(even, short))
    if workload.total is not None:
        size = min(size, workload.remaining)
    payload = workload.payload
    if payload is not None and n_jobs > 1:
        most = chunk_bytes("process", n_jobs)
        return fitting_size(max(1, int(size)), payload.item_bytes + payload.result_bytes, most)
    return max(1, int(size))


def queued_seconds(n_jobs: int, held: float, waited: float) -> float:
    """Seconds per item where threads wait, each for itself, and queue up for the GIL in between.

    The mean value analysis of a closed queue (Reiser and Lavenberg 1980): just as many threads as
    would keep the GIL busy, if they came in turns, do not, because they come as they please.

    Args:
        n_jobs: threads.
        held: seconds for which a call needs the GIL.
        waited: seconds for which it waits for something else.

    >>> queued_seconds(1, 0.003, 0.015)
    0.018
    >>> round(queued_seconds(6, 0.003, 0.015), 5), round(queued_seconds(16, 0.003, 0.015), 5)
    (0.00371, 0.003)
    """
    queue = each = 0.0
    for threads in range(1, n_jobs + 1) if waited else ():
        there = held * (1.0 + queue)
        each = (waited + there) / threads
        queue = there / each if each else 0.0
    return max(each, held)


def predict(
    engine: str,
    n_jobs: int,
    workload: Workload,
    system: SystemFacts,
    startup: StartupModel,
    *,
    target_chunk_duration: float,
    chunksize: int | None = None,
    warm_workers: int = 0,
    meanwhile: bool = False,
) -> Candidate:
    """Predict what an engine with ``n_jobs`` workers takes for the remaining items.

    With ``meanwhile`` the caller's thread goes on while worker processes start.
    """
    remaining = workload.remaining
    cores = effective_cores(system, n_jobs)
    payload = workload.payload if engine == "process" else None
    move = 0.0  # seconds to pickle, move and unpickle an item and its result, half on each side
    if payload is not None:
        pickling = payload.item_seconds + payload.result_seconds
        move = 2 * pickling + (payload.item_bytes + payload.result_bytes) / BYTES_PER_SECOND
    cpu = workload.cpu_seconds + move / 2
    # A call lasts longer than alone where more workers compute than there are cores, or GILs.
    call = max(workload.item_seconds + move / 2, n_jobs * cpu / cores)
    if engine == "thread":
        each = queued_seconds(n_jobs, workload.gil_seconds, workload.wait_seconds)
        call = max(call, n_jobs * each)
    size = chunksize or choose_chunksize(workload, n_jobs, target_chunk_duration, call)
    chunks = math.ceil(remaining / size)
    round_trips = chunks * ROUND_TRIP_SECONDS[engine]

    # A chunk of the caller's size falls to one worker whole; ours are made smaller at the end.
    calls = math.ceil(remaining / n_jobs)
    if chunksize is not None:
        calls = min(remaining, math.ceil(chunks / n_jobs) * chunksize)
    alone = calls * (workload.item_seconds + move / 2)
    shared = remaining * cpu / cores
    parent = remaining * (workload.input_seconds + move / 2) + round_trips
    workers = max(alone, shared)
    if engine == "thread":
        parent += remaining * workload.gil_seconds  # the parent needs the GIL as well
        workers = max(workers, remaining * each)
    if engine == "process":
        # The parent computes too, and takes its cores from the workers.
        everything = remaining * cpu + parent - remaining * workload.input_seconds
        workers = max(workers, everything / effective_cores(system, n_jobs + 1))
    new = max(0, n_jobs - (warm_workers if engine == "process" else 0))
    start = startup.seconds(new, cores=system.usable_cores)
    if payload is not None:
        start += payload.function_seconds + n_jobs * payload.function_bytes / BYTES_PER_SECOND
    ahead = 0.0
    if meanwhile and engine == "process" and 0 < workload.item_seconds < MEANWHILE_SECONDS:
        ahead = min(start * MEANWHILE_SHARE / workload.item_seconds, max(0, remaining - n_jobs))
    seconds = start + max(workers, parent) * (1 - ahead / max(1, remaining))
    moving = remaining * move
    return Candidate(
        engine=engine,
        n_jobs=n_jobs,
        chunksize=size,
        startup_seconds=start,
        compute_seconds=max(0.0, workers - moving / 2 / n_jobs),
        pickling_seconds=moving,
        round_trip_seconds=round_trips,
        seconds=seconds,
        speedup=_speedup(workload, seconds),
    )


def _speedup(workload: Workload, seconds: float) -> float:
    before = workload.sample_seconds if workload.total is not None else 0.0
    planned = before + seconds
    return (before + workload.serial_seconds) / planned if planned > 0 else 1.0


def serial_candidate(
    workload: Workload, target_chunk_duration: float, chunksize: int | None = None
) -> Candidate:
    """The remaining items in the calling thread, one after the other."""
    return Candidate(
        engine="serial",
        chunksize=chunksize
        or choose_chunksize(workload, 1, target_chunk_duration, workload.item_seconds),
        compute_seconds=workload.remaining * workload.item_seconds,
        seconds=workload.serial_seconds,
    )


def memory_workers(engine: str, workload: Workload, system: SystemFacts, chunksize: int) -> int:
    """Workers for which the available memory suffices; a large number when it is not known."""
    if system.available_bytes is None:
        return 1 << 30
    each = workload.working_bytes
    payload = workload.payload
    if engine == "process":
        each += WORKER_BYTES
        if payload is not None:
            # Two chunks per worker in flight, pickled here and as objects there.
            flight = 4 * chunksize * (payload.item_bytes + payload.result_bytes)
            each += flight + 2 * payload.function_bytes
    if each == 0:
        return 1 << 30
    return int(MEMORY_SHARE * system.available_bytes / each)


def compare(
    workload: Workload,
    system: SystemFacts,
    startup: Mapping[str, StartupModel],
    *,
    target_chunk_duration: float,
    n_jobs: int | None = None,
    chunksize: int | None = None,
    allowed: Iterable[str] = ("serial", "thread", "process"),
    warm_workers: int = 0,
    meanwhile: bool = False,
) -> Comparison:
    """Compare the engines and take one.

    Args:
        workload: what is to be done.
        system: what it may use.
        startup: the start-up model of each engine.
        target_chunk_duration: seconds that a chunk should last.
        n_jobs: as the caller gave it; None to choose.
        chunksize: as the caller gave it; None to choose.
        allowed: engines that may be taken.
        warm_workers: worker processes that are up already.
        meanwhile: whether the caller's thread goes on while worker processes start.
    """
    serial = serial_candidate(workload, target_chunk_duration, chunksize)
    candidates = [serial]
    possible: list[Candidate] = []
    for engine in ("thread", "process"):
        if engine not in allowed:
            continue
        counts = _worker_counts(engine, workload, system, n_jobs)
        problem = _problem(engine, workload, counts, forced=n_jobs is not None)
        if problem is not None:
            candidates.append(Candidate(engine, max(counts, default=1), problem=problem))
            continue
        predicted = [
            predict(
                engine,
                count,
                workload,
                system,
                startup[engine],
                target_chunk_duration=target_chunk_duration,
                chunksize=chunksize,
                warm_workers=warm_workers,
                meanwhile=meanwhile,
            )
            for count in counts
        ]
        fitting = [
            candidate
            for candidate in predicted
            if candidate.n_jobs <= memory_workers(engine, workload, system, candidate.chunksize)
        ]
        most = max(counts)
        if not fitting and n_jobs is None:
            none = Candidate(engine, most, problem=NO_MEMORY, wanted_jobs=most)
            candidates.append(none)
            continue
        best = _best(fitting or predicted)
        if len(fitting) < len(predicted):
            best = best._replace(wanted_jobs=most)
        candidates.append(best)
        possible.append(best)
    return Comparison(
        _take(serial, possible, workload, forced=n_jobs is not None), tuple(candidates)
    )


def _worker_counts(
    engine: str, workload: Workload, system: SystemFacts, n_jobs: int | None
) -> list[int]:
    if n_jobs is not None:
        return [n_jobs]
    cap = MAX_THREADS if engine == "thread" and workload.waits else system.usable_cores
    cap = min(cap, workload.remaining)
    # Every number up to 8, then steps of about a third.
    counts = {n for n in (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64) if n < cap}
    steps = range(96, cap, 32)
    return sorted({*counts, *steps, cap} if cap >= 2 else set())


def _problem(engine: str, workload: Workload, counts: list[int], *, forced: bool) -> str | None:
    if engine == "process":
        payload = workload.payload
        if payload is not None and payload.problem is not None:
            return payload.problem
    if forced:
        return None
    if workload.parallel_inside:
        return f"one call already uses {workload.inner_parallelism:.1f} cores"
    if not counts:
        return "fewer than two items remain" if workload.remaining < 2 else ONE_CORE
    return None


def _best(predicted: list[Candidate]) -> Candidate:
    fastest = min(predicted, key=lambda candidate: candidate.seconds)
    near = [c for c in predicted if c.seconds <= 1.03 * fastest.seconds]
    return min(near, key=lambda candidate: candidate.n_jobs)


def _take(
    serial: Candidate, possible: list[Candidate], workload: Workload, *, forced: bool
) -> Candidate:
    if not possible:
        return serial
    # Threads come first in the list: at the same speed they copy nothing.
    fastest = min(possible, key=lambda candidate: candidate.seconds)
    near = [c for c in possible if c.seconds <= 1.03 * fastest.seconds]
    best = near[0]
    if forced or workload.remaining == 0:
        return best if forced else serial
    saving = serial.seconds - best.seconds
    worth = serial.seconds >= MINIMUM_GAIN * best.seconds and saving >= MINIMUM_SAVING_SECONDS
    return best if worth else serial
