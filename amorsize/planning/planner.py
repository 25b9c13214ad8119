"""The planner: given everything observed so far, what next?

It is one object with one question, :meth:`Planner.next`, which is asked before the first item,
while a call is in progress, before each chunk, and where items deviate from what was expected. It
is pure: no clock, no thread, no effect. ``running`` observes, asks, and does what the plan says.

Looking costs time as well, so it goes as far as it can change the answer: the first items first;
the machine only where enough work is left; pickling and memory only where processes would win if
they were free.

Importing this module is paid for by the shortest runs: what only longer ones need (the comparison
of engines) is imported by the functions that need it.
"""

from __future__ import annotations

from amorsize.planning.chunk_sizes import (
    CHUNK_BYTES,
    SHORTEST_CHUNK_SECONDS,
    SHORTEST_OWN_CHUNK_SECONDS,
    chunk_bytes,
    chunk_seconds,
    corrected_size,
    first_size,
    fitting_size,
    has_room,
    next_size,
)
from amorsize.planning.engine import Engine
from amorsize.planning.observations import EarlyWork, Observations
from amorsize.planning.plan import (
    CALL,
    CORES,
    ITEMS,
    ITEMS_MEANWHILE,
    ITEMS_TOGETHER,
    MEMORY,
    PAYLOAD,
    STARTUP,
    Choice,
    LookFurther,
    Plan,
    RunChunks,
    StartTemplate,
    StartWorkers,
)
from amorsize.planning.workload import (
    LITTLE_SECONDS,
    SHORTEST_ITEM_SECONDS,
    Workload,
    assumed_items,
    describe,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from amorsize.planning.cost import Candidate, Comparison

LOOK_SECONDS = 1e-2
"""A call in progress is looked at once it has taken about this long."""

TOGETHER_SECONDS = 1e-3
"""About so long very short calls are timed together; calls of a sixteenth of it are very short."""
MOST_TOGETHER = 256
FEWEST_LEFT_TOGETHER = 64
"""Where fewer remain, it does not matter what a very short call takes exactly."""

SECOND_LOOK_ITEMS = 32
"""A single slow call shows neither whether it holds the GIL nor whether it was a warm-up. Where so
many items remain, another one alone costs at most 3 % of a serial run."""

MEASURE_STARTUP_SECONDS = 2.0
"""``optimize()`` measures the start of an interpreter (0.1 s) for serial work of this length."""

UNTRIED_SECONDS = 0.1
"""Once the first call of a function has taken so long, processes begin with further items before it
is known whether its results can be sent back."""

FIRST_THREADS_PER_CORE = 4
"""Threads that start while the first call is in progress: more of them once it is over."""

CHUNKS_PER_THREAD = 2
"""Items that threads may begin with at once where an earlier run has shown what they take."""

ALIKE = 3
"""Calls that take less than so many times what others took are like them."""

DISTURBED_SHARE = 0.2
"""No threads start on a look during which the call had to wait for a CPU for more of its time."""

DEVIATION = 4
"""Items are no longer what they were once they take so many times as long."""

REPLANNING_SECONDS = 0.01
"""The approximate time of re-planning, in a process that has not loaded the modules for it."""

CHEAP_SECONDS = 5e-7
"""An item that takes less is done sooner than it is handed to a worker and back."""

MOST_GROWTHS = 8
"""How often a serial run goes over to workers: items may change for ever."""

SURE_SECONDS = 0.1
"""Serial work that makes processes a sure gain: twice what the first results of two take, about."""

SERIAL = Engine("serial")


class Planner:
    """Answers one question; most of it is what :func:`amorsize.execute` promises to choose."""

    def next(self, seen: Observations) -> Plan | None:
        """Say what to do next.

        Returns:
            A look, a start of workers or of their template, or chunks to run; None where nothing
            changes while the call in progress lasts on. Asked with the same observations, it gives
            an equal answer.
        """
        if seen.plan is not None:
            return _while_running(seen, seen.plan)
        if seen.in_progress:
            return _during_call(seen)
        if seen.engine is not None or seen.n_jobs == 1:
            return _as_named(seen)
        return _first_look(seen) or _choose(seen)


# --- before the first chunk ----


def _as_named(seen: Observations) -> Plan:
    """Fill in what an engine that the caller named leaves open; nothing is measured."""
    from amorsize.planning.named import needs_cores, plan_named

    engine = seen.engine or SERIAL
    if seen.machine is None and needs_cores(engine, seen.n_jobs):
        return LookFurther(CORES)
    return plan_named(seen, engine)


def _first_look(seen: Observations) -> Plan | None:
    """Measure the first items, unless an earlier run has shown what they are like."""
    sample, early = seen.sample, seen.early
    if seen.stopped:
        return None
    if sample.asked_items == 0:
        if (start := _start_at_once(seen)) is not None:
            return start
        if early is not None and early.dispatched:
            return LookFurther(ITEMS, 1, monitored=False)
        return LookFurther(
            ITEMS,
            seen.sample_size,
            monitored=early is not None and seen.total != 1,
            from_start=not seen.known.short,
        )
    one_by_one = seen.returns_exceptions or seen.runs_again or seen.item_time_limit
    if not sample.asked_together and not one_by_one:
        calls = sorted(sample.item_seconds)
        each = calls[len(calls) // 2] if calls else 0.0
        short = len(calls) > 1 and each <= TOGETHER_SECONDS / 16
        enough = seen.left is None or seen.left >= FEWEST_LEFT_TOGETHER
        if short and enough and not sample.exhausted and max(sample.input_seconds) <= 1e-3:
            wanted = min(MOST_TOGETHER, int(TOGETHER_SECONDS / max(each, 1e-9)))
            held = sample.items_bytes + sample.results_bytes
            if held >= CHUNK_BYTES:
                return None
            fitting = fitting_size(wanted, held / sample.taken, CHUNK_BYTES - held)
            return LookFurther(ITEMS_TOGETHER, fitting)
    elif sample.together and not sample.exhausted:
        calls = sorted(sample.item_seconds)
        each = sample.together_seconds / sample.together
        if deviates(each, seen.left, calls[len(calls) // 2]):
            return LookFurther(ITEMS, seen.sample_size, afresh=True, monitored=early is not None)
    return None


def _start_at_once(seen: Observations) -> Plan | None:
    """Start what an earlier run of the function has shown to be worth it; else None."""
    early, known = seen.early, seen.known.workload
    if early is None or early.engine is not None or early.refused or known is None:
        return None
    if not seen.indexable:
        return None
    if not seen.memory_read:
        return LookFurther(MEMORY)
    workload = known.over(seen.left, 0)
    comparison = _compare(seen, workload)
    engine, n_jobs = comparison.chosen.engine, comparison.chosen.n_jobs
    if not _gains(comparison, workload) or (engine == "process" and not seen.sendable):
        return None
    # Beside busy threads it may be long before the calling thread hands out anything again.
    each = 1 if engine == "process" else CHUNKS_PER_THREAD
    return StartWorkers(engine, n_jobs, each * n_jobs - 1, keep=1)


def _choose(seen: Observations) -> Plan:
    """Choose the engine for what is left, or look at what could change the choice."""
    early = seen.early
    if seen.stopped:
        return _stopped(seen)
    workload = _workload(seen)
    if early is not None and early.dispatched:
        return _join_early_workers(seen, early, workload)
    if _is_little(seen, workload):
        if seen.whole and 0 < workload.remaining < FEWEST_LEFT_TOGETHER and _is_short(workload):
            # So few are done before an engine is made for them.
            return LookFurther(ITEMS_TOGETHER, workload.remaining)
        return _run(seen, None, workload)
    if (start := _start_template(seen, workload)) is not None:
        return start
    if seen.machine is None:
        return LookFurther(CORES)
    comparison = _compare(seen, workload._replace(payload=None))
    wanted = comparison.chosen.engine
    if seen.payload is None:
        many = seen.left is None or workload.remaining >= SECOND_LOOK_ITEMS
        if many and wanted != "serial" and _is_open(seen, workload):
            return _look_again(seen)
    if not seen.memory_read and (wanted == "process" or workload.working_bytes > 1 << 20):
        return LookFurther(MEMORY)
    if wanted == "process" and seen.payload is None:
        return LookFurther(PAYLOAD)
    if wanted == "process" and _is_startup_worth_measuring(seen, workload):
        return LookFurther(STARTUP)
    comparison = _compare(seen, workload)
    chosen = comparison.chosen
    if chosen.engine == "process" and early is not None:
        if early.engine is None and not early.refused and chosen.n_jobs > seen.warm_workers:
            return StartWorkers("process", chosen.n_jobs)
        if early.engine == "process" and _may_work_meanwhile(seen, early, workload):
            leave = 0 if seen.left is None else chosen.n_jobs
            return LookFurther(ITEMS_MEANWHILE, max(0, workload.remaining - leave))
    # Payloads that are dear to move: whether the GIL is free now decides.
    heavy = seen.payload is not None and chosen.engine == "serial"
    if heavy and workload.remaining >= 4 and _is_open(seen, workload):
        return _look_again(seen)
    return _run(seen, comparison, workload)


def _workload(seen: Observations) -> Workload:
    return describe(seen.sample, seen.total, payload=seen.payload, again=seen.runs_again)


def _is_little(seen: Observations, workload: Workload) -> bool:
    """Whether the rest is done sooner than anything better could begin."""
    if seen.n_jobs is not None:
        return False
    if workload.item_seconds < SHORTEST_ITEM_SECONDS:
        return True
    known = seen.left is not None or seen.sample.exhausted
    return known and workload.serial_seconds < max(LITTLE_SECONDS, seen.loading_seconds)


def _is_short(workload: Workload) -> bool:
    return workload.item_seconds <= TOGETHER_SECONDS / 16


def _start_template(seen: Observations, workload: Workload) -> Plan | None:
    """Start the template before what plans for workers is loaded, where these surely gain.

    It takes some 30 ms to start, and so does, beside a call that holds the GIL, loading what
    compares engines. Where the calls leave hardly a doubt, both happen at the same time.
    """
    early = seen.early
    computes = not (workload.waits or workload.releases_gil or workload.parallel_inside)
    gains = computes and workload.remaining > 1 and workload.serial_seconds >= SURE_SECONDS
    if not (seen.loading_seconds and gains and "process" in seen.allowed):
        return None
    if early is None or early.engine or early.template or early.refused:
        return None
    if seen.machine is None:
        return LookFurther(CORES)
    return StartTemplate() if seen.machine.usable_cores > 1 else None


def _is_open(seen: Observations, workload: Workload) -> bool:
    """Whether one slow call left open whether it holds the GIL."""
    slow = seen.sample.taken == 1 and not seen.sample.exhausted
    return slow and not workload.waits and not workload.gil_known and seen.sample_size > 1


def _look_again(seen: Observations) -> LookFurther:
    note = "one slow call leaves too much open: sampled further"
    return LookFurther(ITEMS, seen.sample_size - 1, monitored=False, note=note)


def _is_startup_worth_measuring(seen: Observations, workload: Workload) -> bool:
    return (
        seen.runs_again
        and seen.payload is not None
        and seen.payload.problem is None  # a program that is no interpreter is never started again
        and seen.startup is not None
        and not seen.startup["process"].measured
        and workload.serial_seconds >= MEASURE_STARTUP_SECONDS
    )


def _may_work_meanwhile(seen: Observations, early: EarlyWork, workload: Workload) -> bool:
    from amorsize.planning.cost import MEANWHILE_SECONDS

    short = workload.item_seconds < MEANWHILE_SECONDS
    return not (seen.time_limit or early.is_up) and short and not seen.sample.exhausted


def _join_early_workers(seen: Observations, early: EarlyWork, workload: Workload) -> Plan:
    """Plan for what was begun while the first call was in progress."""
    engine = str(early.engine)
    if not seen.memory_read:
        return LookFurther(MEMORY)
    if engine == "process" and seen.payload is None:
        return LookFurther(PAYLOAD)
    if (known := seen.known.workload) is not None and is_like(workload, known):
        # The items that others ran beside it have disturbed this call.
        workload = known.over(seen.total, workload.sampled, workload.sample_seconds)
    else:
        workload = workload._replace(is_sure=False)
    workload = workload._replace(
        remaining=max(0, workload.remaining - early.dispatched),
        payload=seen.payload if engine == "process" else None,
    )
    n_jobs, warm = seen.n_jobs, seen.warm_workers
    if engine == "process":
        n_jobs = warm = early.n_jobs
    comparison = _compare(seen, workload, n_jobs=n_jobs, warm=warm, allowed=(engine,))
    from amorsize.planning.cost import Comparison

    begun = _candidate(comparison, engine)
    n_jobs = early.n_jobs if begun is None else max(begun.n_jobs, early.n_jobs)
    # Dispatched items run beside the first items, and are part of the whole work.
    whole = workload.over(seen.total, 0)
    planned = _compare(seen, whole, n_jobs=n_jobs, warm=early.n_jobs, allowed=(engine,))
    expected = _candidate(planned, engine) or planned.chosen
    chosen = (begun or expected)._replace(engine=engine, n_jobs=n_jobs, speedup=expected.speedup)
    items = "1 item" if early.dispatched == 1 else f"{early.dispatched:,} items"
    note = f"while the first call was in progress, workers began with {items}"
    return _run(seen, Comparison(chosen, comparison.candidates), workload, note=note)


def _candidate(comparison: Comparison, engine: str) -> Candidate | None:
    each = (c for c in comparison.candidates if c.engine == engine and not c.problem)
    return next(each, None)


def is_like(workload: Workload, known: Workload) -> bool:
    """Whether calls take about what is known of them."""
    seconds = (workload.item_seconds, known.item_seconds)
    return max(seconds) < ALIKE * min(seconds)


def _stopped(seen: Observations) -> RunChunks:
    """Nothing more runs: the reason says what ended the measuring."""
    size, early = seen.chunksize or 1, seen.early
    if early is None or not early.dispatched:
        return RunChunks(Choice(SERIAL, 1, f"Serial, because {seen.stopped}."), size, size)
    begun = "Threads" if early.engine == "thread" else "Processes"
    reason = f"{begun} were begun while the first call was in progress; {seen.stopped}."
    return RunChunks(Choice(Engine(str(early.engine)), early.n_jobs, reason, None), size, size)


def _compare(
    seen: Observations,
    workload: Workload,
    *,
    n_jobs: int | None = None,
    warm: int | None = None,
    allowed: tuple[str, ...] | None = None,
) -> Comparison:
    from amorsize.planning.cost import compare
    from amorsize.planning.machine import PRIORS

    assert seen.machine is not None
    return compare(
        workload,
        seen.machine,
        seen.startup or PRIORS,
        target_chunk_duration=seen.target_chunk_duration,
        n_jobs=n_jobs or seen.n_jobs,
        chunksize=seen.chunksize,
        allowed=allowed or seen.allowed,
        warm_workers=_warm_workers(seen) if warm is None else warm,
        meanwhile=seen.early is not None and not seen.time_limit,
    )


def _warm_workers(seen: Observations) -> int:
    # The cost of workers that were started ahead is spent.
    early = seen.early
    started = early.n_jobs if early is not None and early.engine == "process" else 0
    return max(seen.warm_workers, started)


def _gains(comparison: Comparison, workload: Workload) -> bool:
    """Whether workers are worth starting: of named ones the lesser evil may be chosen."""
    from amorsize.planning.cost import MINIMUM_GAIN

    chosen = comparison.chosen
    return chosen.engine != "serial" and chosen.seconds * MINIMUM_GAIN <= workload.serial_seconds


def _run(
    seen: Observations, comparison: Comparison | None, workload: Workload, *, note: str = ""
) -> RunChunks:
    """Run what is left, as was chosen: without a comparison, in the calling thread."""
    name, n_jobs, speedup = "serial", 1, 1.0
    if comparison is None:
        size = first_size(seen.target_chunk_duration, workload.item_seconds)
    else:
        chosen = comparison.chosen
        name, n_jobs, size, speedup = (
            chosen.engine,
            chosen.n_jobs,
            chosen.chunksize,
            chosen.speedup,
        )
    each_bytes = seen.weights_on(name).both_bytes
    size = fitting_size(size, each_bytes, chunk_bytes(name, n_jobs))
    if seen.chunksize is not None:
        size = fitting_size(seen.chunksize, each_bytes, chunk_bytes("thread", n_jobs))
    else:
        size = min(size, max(1, workload.remaining))
    # Items that were short again when they were measured are less of a deviation the next time: a
    # single one may have stood in the queue for a CPU, but some inputs go on like that.
    before = max(SHORTEST_ITEM_SECONDS, seen.expected_seconds)
    expected = max(workload.busy_item_seconds, min(seen.deviating_seconds, DEVIATION * before))
    is_free = seen.n_jobs is None
    grows = name != "serial" and seen.deviating_seconds > 0
    choice = Choice(
        engine=SERIAL if name == "serial" else Engine(name),
        n_jobs=n_jobs,
        estimated_speedup=speedup,
        item_seconds=expected,
        may_leave=(
            is_free and seen.chunksize is None and name != "serial" and not seen.interruptible
        ),
        may_grow=is_free and not seen.item_time_limit and seen.growths + grows < MOST_GROWTHS,
        workload=workload,
        comparison=comparison,
        notes=(*seen.notes, note) if note else seen.notes,
    )
    return RunChunks(choice, size, size)


# --- while a call is in progress ----


def _during_call(seen: Observations) -> Plan | None:
    """Start ahead what a call in progress already warrants, or look at it again later.

    A call so far counts as a call of that length: it can only get longer.
    """
    early, sample = seen.early, seen.sample
    if early is None:
        return None
    taken = sample.item_seconds[-1]
    later = max(LOOK_SECONDS, taken)  # when it has taken twice as long
    again = LookFurther(CALL, seconds=later)
    workload = _workload(seen)
    # The call in progress is work as well: two items are enough for two workers.
    workload = workload._replace(remaining=workload.remaining + 1)
    if (start := _start_template(seen, workload)) is not None:
        return start
    if _is_little(seen, workload):
        return again
    if seen.machine is None:
        return LookFurther(CORES)
    if _compare(seen, workload._replace(payload=None)).chosen.engine == "process":
        if seen.payload is None:
            return LookFurther(PAYLOAD)
        if not seen.memory_read:
            return LookFurther(MEMORY)
    comparison = _compare(seen, workload)
    if not _gains(comparison, workload):
        return again
    engine, n_jobs = comparison.chosen.engine, comparison.chosen.n_jobs
    if early.refused or early.engine not in (None, engine):
        return None  # calls are not what they seemed: once this one is over, more is known
    if engine == "process":
        return _processes_during_call(seen, early, n_jobs, taken)
    if workload.queued_share > DISTURBED_SHARE or not seen.indexable:
        return again  # threads are of no use to calls that hold the GIL: a calmer look shows it
    if not seen.memory_read:
        return LookFurther(MEMORY)
    return _threads_during_call(seen, early, n_jobs, later)


def _processes_during_call(
    seen: Observations, early: EarlyWork, n_jobs: int, taken: float
) -> Plan | None:
    # Whether results can be sent is known where they were before; else the first one shows it, and
    # only where it is long in coming the others begin without that.
    untried = not seen.sendable and taken < UNTRIED_SECONDS
    if early.engine is None:
        wait = min(max(LOOK_SECONDS, taken), UNTRIED_SECONDS - taken) if untried else 0.0
        return StartWorkers("process", n_jobs, look_again_seconds=wait)
    if untried:
        return LookFurther(CALL, seconds=min(max(LOOK_SECONDS, taken), UNTRIED_SECONDS - taken))
    if early.dispatched or not seen.indexable:
        return None
    return StartWorkers("process", n_jobs, n_jobs - 1)  # the call in progress has one of the cores


def _threads_during_call(
    seen: Observations, early: EarlyWork, n_jobs: int, later: float
) -> StartWorkers | None:
    # As many as a call warrants that is over; till then a few, and twice as many at each look.
    assert seen.machine is not None
    few = max(2 * early.n_jobs, FIRST_THREADS_PER_CORE * seen.machine.usable_cores)
    threads = n_jobs if len(seen.sample.item_seconds) > 1 else min(n_jobs, few)
    if early.engine is not None and threads <= early.n_jobs:
        return None
    return StartWorkers(
        "thread",
        threads,
        CHUNKS_PER_THREAD * threads - 1 - early.dispatched,
        look_again_seconds=later if threads < n_jobs else None,
    )


# --- between two chunks ----


def deviates(each_seconds: float, left: int | None, expected_seconds: float) -> bool:
    """Say whether items take so much longer than expected that it pays to plan again.

    Args:
        each_seconds: what an item took lately.
        left: how many are left; None where that is unknown.
        expected_seconds: what an item was expected to take.

    >>> deviates(0.02, 10, 1e-6), deviates(0.02, 2, 1e-6), deviates(0.02, 10, 0.01)
    (True, False, False)
    """
    expected = max(SHORTEST_ITEM_SECONDS, expected_seconds)
    if each_seconds <= DEVIATION * expected:
        return False
    remaining = assumed_items(each_seconds) if left is None else left
    return each_seconds * remaining > DEVIATION * REPLANNING_SECONDS


def _while_running(seen: Observations, plan: RunChunks) -> Plan:
    choice = plan.choice
    if choice.engine.type in seen.refusals and seen.engine is None:
        return _elsewhere(seen, choice)
    if choice.may_grow and choice.is_serial:
        if deviates(seen.deviating_seconds, seen.left, choice.item_seconds):
            return LookFurther(
                ITEMS, seen.sample_size, afresh=True, monitored=seen.early is not None
            )
    elif choice.may_leave and (each := seen.chunks.item_seconds) is not None:
        if choice.engine.type == "thread":
            # They take turns at the GIL: what an item takes has items of all others in it.
            each /= choice.n_jobs
        if each < CHEAP_SECONDS:
            choice = choice._replace(
                engine=SERIAL,
                n_jobs=1,
                may_leave=False,
                item_seconds=CHEAP_SECONDS,
                reason="Serial, because items cost less than their way to a worker and back.",
            )
    return _resize(seen, plan, choice)


def _elsewhere(seen: Observations, choice: Choice) -> RunChunks:
    """Choose again, for what is left, where the chosen engine has turned out to be of no use."""
    from amorsize.planning.pickling import Payload

    if choice.engine.type == "thread":
        reason = f"Serial, because {seen.refusals['thread']}."
        alone = Choice(SERIAL, 1, reason, item_seconds=choice.item_seconds)
        size = seen.chunksize or first_size(seen.target_chunk_duration, choice.item_seconds)
        return RunChunks(alone, size, size)
    assert choice.workload is not None
    sampled = choice.workload.sampled
    left = None if seen.left is None else seen.left + seen.refused_items
    workload = choice.workload.over(None if left is None else sampled + left, sampled)
    workload = workload._replace(payload=Payload(problem=seen.refusals["process"]))
    again = _run(seen, _compare(seen, workload), workload)
    # Chunks that were made for workers are no piece of the input that could end early.
    return again._replace(choice=again.choice._replace(may_grow=False, may_leave=False))


def _resize(seen: Observations, plan: RunChunks, choice: Choice) -> RunChunks:
    """Correct the size of the next chunk by what the chunks so far took."""
    name, n_jobs, times = choice.engine.type, choice.n_jobs, seen.chunks
    each_bytes, most_bytes = seen.weights_on(name).both_bytes, chunk_bytes(name, n_jobs)
    if seen.chunksize is not None:
        most_bytes = chunk_bytes("thread", n_jobs)  # as much as any chunk may weigh
        size = usual = fitting_size(seen.chunksize, each_bytes, most_bytes)
    elif seen.whole and choice.is_serial:
        size = usual = seen.most_serial_items
    else:
        most = seen.most_serial_items if choice.is_serial else seen.most_chunk_items
        usual = min(plan.usual_size, most)
        if times.count > plan.counted:
            target = chunk_seconds(name, n_jobs, seen.target_chunk_duration)
            if seen.left is not None:  # there are no chunks of more items than are left
                most = max(usual, min(most, seen.left))
            usual = corrected_size(usual, times, target_seconds=target, most=most)
        usual = fitting_size(usual, each_bytes, most_bytes)
        shortest = SHORTEST_CHUNK_SECONDS.get(name, SHORTEST_OWN_CHUNK_SECONDS)
        size = next_size(usual, times, n_jobs=n_jobs, left=seen.left, shortest_seconds=shortest)
    held = seen.held_chunks, seen.held_bytes
    if not has_room(*held, size * each_bytes, n_jobs=n_jobs, streams=seen.streams):
        size = 0
    return RunChunks(choice, size, usual, times.count, most_bytes)
