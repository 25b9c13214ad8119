"""One choice in the making: looks further as long as that can change it.

::

    sampling -> cost -> explanation
    system  ------^

Looking costs time as well, so it goes as far as it can change the answer: the sample first; the
machine only where enough work is left; pickling and memory only where processes would win if they
were free.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from amorsize.planning import cost
from amorsize.planning.clocks import Clocks
from amorsize.planning.explanation import (
    NAMES,
    OptimizationResult,
    count_of,
    details_of,
    say_reason,
    say_warnings,
)
from amorsize.planning.gil_probe import LOOK_SECONDS, switching_often
from amorsize.planning.machine import (
    ENGINES,
    STARTUP,
    StartupCosts,
    SystemFacts,
    measure_startup,
    read_system,
)
from amorsize.planning.pickling import measure_payload
from amorsize.planning.sampling import Sample, extend_sample
from amorsize.planning.workload import (
    HOPELESS_SECONDS,
    KNOWN_WORKLOADS,
    TRIVIAL_SECONDS,
    Workload,
    describe,
)

logger = logging.getLogger(__name__)

SECOND_LOOK_ITEMS = 32
"""A single slow call tells neither whether it holds the GIL nor whether it was a warm-up. Where so
many items remain, another one alone costs at most 3 % of a serial run."""

MEASURE_STARTUP_SECONDS = 2.0
"""``optimize()`` measures the start of an interpreter (0.1 s) for serial work of this length."""

UNTRIED_SECONDS = 0.1
"""Once the first call of a function has taken so long, processes begin with further items before it
is known whether its results can be sent home."""

FIRST_THREADS_PER_CORE = 4
"""Threads that begin while the first call is in progress: more of them once it has told all."""

CHUNKS_A_THREAD = 2
"""Items that threads may begin with at once where an earlier run has told all."""

ALIKE = 3
"""Calls that take less than so many times what others took are like them."""

DISTURBED_SHARE = 0.2
"""No threads begin on a look during which the call had to wait for a CPU for more of its time."""


class Ahead(Protocol):
    """Where workers begin while the sample runs; ``running.early_workers`` has it."""

    engine: str | None
    n_jobs: int
    dispatched: int
    may_work: bool

    @property
    def may_dispatch(self) -> bool: ...
    @property
    def travels(self) -> bool: ...
    def begin(self, engine: str, n_jobs: int) -> None: ...
    def dispatch(self, sample: Sample, chunks: int, *, start: int | None = None) -> bool: ...
    def is_up(self) -> bool: ...
    def abandon(self) -> None: ...


class Chooser:
    """One choice; most arguments are those of :func:`amorsize.optimizer.choose`.

    Attributes:
        ahead: where workers may begin before the choice is made; None for nowhere.
        load: called once workers are starting, with something that takes a moment and is needed
            later; None for nothing.
        notes: what is to be said of how the choice was made.
    """

    def __init__(
        self,
        func: Callable[[Any], Any],
        iterator: Iterator[Any],
        total: int | None,
        sample: Sample,
        sample_size: int,
        return_exceptions: bool,
        n_jobs: int | None,
        chunksize: int | None,
        target_chunk_duration: float,
        allowed: tuple[str, ...],
        warm_workers: int,
        again: bool,
        system: SystemFacts | None,
        startup: StartupCosts,
        clocks: Clocks | None,
        ahead: Ahead | None = None,
        load: Callable[[], object] | None = None,
    ) -> None:
        self.func = func
        self.iterator = iterator
        self.total = total
        self.sample = sample
        self.sample_size = sample_size
        self.return_exceptions = return_exceptions
        self.n_jobs = n_jobs
        self.chunksize = chunksize
        self.target_chunk_duration = target_chunk_duration
        self.allowed = allowed
        self.warm_workers = warm_workers
        self.again = again
        self.system = system
        self.startup = startup
        self.clocks = clocks
        self.ahead = ahead
        self.load = load
        self.notes: list[str] = []
        self._known: Workload | None = None

    def look(self, sample: Sample, workload: Workload) -> float | None:
        """Begin ahead what a call in progress already warrants; say when to look again.

        Called from another thread. Mistakes end here.

        Args:
            sample: the items so far, with the call in progress as one that ends now.
            workload: what it means for the whole input, that call included.

        Returns:
            Seconds until the next look; None for no other.
        """
        if self.ahead is None:
            return None
        try:
            return self._look(self.ahead, sample, workload)
        except Exception:
            logger.debug("Nothing is begun ahead of the run", exc_info=True)
            return None

    def _look(self, ahead: Ahead, sample: Sample, workload: Workload) -> float | None:
        taken = sample.item_seconds[-1]
        later = max(LOOK_SECONDS, taken)  # when it has taken twice as long
        with switching_often():
            wanted = self._wanted(sample, workload)
        if wanted is None:
            return later
        engine, n_jobs = wanted.engine, wanted.n_jobs
        if ahead.engine not in (None, engine):
            return None  # calls are not what they seemed: once this one is over, more is known
        if engine == "process":
            ahead.begin(engine, n_jobs)
            # Whether results travel is known where they did before; else the first one tells, and
            # only where it is long in coming the others begin without that.
            if not ahead.travels and taken < UNTRIED_SECONDS:
                return min(later, UNTRIED_SECONDS - taken)
            # This thread's call has one of the cores.
            ahead.dispatch(self.sample, n_jobs - 1)
            self._load()
            return None
        if workload.queued_share > DISTURBED_SHARE or not ahead.may_dispatch:
            return later  # threads are of no use to what holds the GIL: a calmer look tells
        self._load()  # not beside threads: should they compute, each file that is read waits long
        # As many as a call warrants that has come to its end; till then a few, and twice as many
        # at each look.
        few = max(2 * ahead.n_jobs, FIRST_THREADS_PER_CORE * self._cores().usable_cores)
        threads = n_jobs if len(sample.item_seconds) > 1 else min(n_jobs, few)
        ahead.begin(engine, threads)
        ahead.dispatch(self.sample, CHUNKS_A_THREAD * threads - 1 - ahead.dispatched)
        return later if threads < n_jobs else None

    def _wanted(self, sample: Sample, workload: Workload) -> cost.Candidate | None:
        """Plan for a call in progress; None where nothing is to be begun."""
        if self._hopeless(workload):
            return None
        plan = self._plan(workload, self._cores())
        if plan.chosen.engine != "serial":
            if plan.chosen.engine == "process":
                workload = workload._replace(payload=measure_payload(sample, self.func))
            plan = self._plan(workload, self._machine())
        return plan.chosen if _gains(plan, workload) else None

    def _load(self) -> None:
        if self.load is not None:
            self.load()

    def begin_at_once(self) -> bool:
        """Begin what an earlier run of the function warrants; say whether anything was begun.

        All but the first item, which is the sample's, may then be elsewhere.
        """
        ahead, known = self.ahead, KNOWN_WORKLOADS.recall(self.func)
        if ahead is None or known is None:
            return False
        workload = known.over(self.total, 0)
        plan = self._plan(workload, self._machine())
        engine, n_jobs = plan.chosen.engine, plan.chosen.n_jobs
        if not _gains(plan, workload) or (engine == "process" and not ahead.travels):
            return False
        try:
            ahead.begin(engine, n_jobs)
            # Behind a busy GIL it may be long before this thread hands out anything again.
            each = 1 if engine == "process" else CHUNKS_A_THREAD
            ahead.dispatch(self.sample, each * n_jobs - 1, start=1)
        except Exception:
            logger.debug("Nothing is begun ahead of the run", exc_info=True)
        if ahead.dispatched:
            self._known = known
        return ahead.dispatched > 0

    def choose(self) -> OptimizationResult:
        if (stopped := self._stopped()) is not None:
            return stopped
        workload = describe(self.sample, self.total, again=self.again)
        if self.ahead is not None and self.ahead.dispatched:
            return self._go_on(self.ahead, workload)
        if self._hopeless(workload):
            serial = cost.serial_candidate(workload, self.target_chunk_duration, self.chunksize)
            return self._result(cost.Plan(serial, (serial,)), workload, None)

        cores = self._cores()
        plan = self._plan(workload, cores)
        many = self.total is None or workload.remaining >= SECOND_LOOK_ITEMS
        if many and plan.chosen.engine != "serial" and self._look_again(workload):
            if (stopped := self._stopped()) is not None:
                return stopped
            workload = describe(self.sample, self.total, again=self.again)
            plan = self._plan(workload, cores)
        system = cores
        if plan.chosen.engine == "process" or workload.working_bytes > 1 << 20:
            system = self._machine()
        if plan.chosen.engine == "process":
            workload = workload._replace(payload=measure_payload(self.sample, self.func))
            if self._worth_measuring_startup(workload):
                measure_startup("process")
        if system is not cores or workload.payload is not None:
            plan = self._plan(workload, system)
        if plan.chosen.engine == "process" and self.ahead is not None:
            missing = plan.chosen.n_jobs - self.warm_workers
            if missing > 0 and self._work_meanwhile(self.ahead, plan.chosen.n_jobs, workload):
                if (stopped := self._stopped()) is not None:
                    return stopped
                # How long a call takes is known from before: now workers were starting beside.
                after = describe(self.sample, self.total)
                workload = workload._replace(
                    total=after.total,
                    sampled=after.sampled,
                    remaining=after.remaining if after.total is not None else workload.remaining,
                    sample_seconds=after.sample_seconds,
                )
                plan = self._plan(workload, system)
        # Payloads that are dear to move: whether the GIL is free now decides.
        heavy = workload.payload is not None and plan.chosen.engine == "serial"
        if heavy and workload.remaining >= 4 and self._look_again(workload):
            if (stopped := self._stopped()) is not None:
                return stopped
            workload = describe(self.sample, self.total, payload=workload.payload, again=self.again)
            plan = self._plan(workload, system)
        return self._result(plan, workload, system)

    def _work_meanwhile(self, ahead: Ahead, n_jobs: int, workload: Workload) -> bool:
        """Start workers, and go on with the sample until one is up; say whether that was so."""
        try:
            ahead.begin("process", n_jobs)
        except Exception:
            logger.debug("No workers can be started ahead of the run", exc_info=True)
            return False  # the run meets that again, and says so
        self.warm_workers = n_jobs  # what they cost is spent
        self._load()
        before = len(self.sample.items)
        leave = 0 if self.total is None else n_jobs
        if ahead.may_work and workload.item_seconds < cost.MEANWHILE_SECONDS and not ahead.is_up():
            extend_sample(
                self.sample,
                self.func,
                self.iterator,
                max(0, workload.remaining - leave),
                return_exceptions=self.return_exceptions,
                clocks=self.clocks,
                probe=False,
                until=ahead.is_up,
            )
        worked = len(self.sample.items) - before
        if worked:
            self.notes.append(
                f"while the workers started, {count_of(worked, 'item')} more ran here"
            )
        return True

    def _go_on(self, ahead: Ahead, workload: Workload) -> OptimizationResult:
        """Plan for what was begun while the first call was in progress."""
        engine = str(ahead.engine)
        if self._known is not None:
            seconds = (workload.item_seconds, self._known.item_seconds)
            if max(seconds) < ALIKE * min(seconds):
                # What others did beside it has disturbed this one.
                workload = self._known.over(self.total, workload.sampled, workload.sample_seconds)
            else:
                KNOWN_WORKLOADS.forget(self.func)
        system = self._machine()
        remaining = max(0, workload.remaining - ahead.dispatched)
        workload = workload._replace(remaining=remaining)
        if engine == "process":
            self.n_jobs = ahead.n_jobs
            self.warm_workers = ahead.n_jobs
            workload = workload._replace(payload=measure_payload(self.sample, self.func))
        self.allowed = (engine,)
        plan = self._plan(workload, system)
        begun = next((c for c in plan.candidates if c.engine == engine and not c.problem), None)
        if begun is None:
            begun = cost.Candidate(engine, ahead.n_jobs)
        self.notes.append(
            "while the first call was in progress, workers began with "
            f"{count_of(ahead.dispatched, 'item')}"
        )
        return self._result(cost.Plan(begun, plan.candidates), workload, system)

    def _machine(self) -> SystemFacts:
        """What may be used; read once a run: each file waits for the GIL beside busy threads."""
        if self.system is None:
            self.system = read_system()
        return self.system

    def _cores(self) -> SystemFacts:
        return self.system or read_system(memory=False)

    def _hopeless(self, workload: Workload) -> bool:
        """Whether so little is left that not even looking at the machine pays."""
        known = self.total is not None or self.sample.exhausted
        if self.n_jobs is None and workload.item_seconds < TRIVIAL_SECONDS:
            return True
        little = workload.serial_seconds < HOPELESS_SECONDS
        return self.n_jobs is None and known and little

    def _look_again(self, workload: Workload) -> bool:
        """Sample further where one slow call left open whether it holds the GIL."""
        slow = len(self.sample.items) == 1 and not self.sample.exhausted
        if not slow or workload.waits or workload.gil_known or self.sample_size < 2:
            return False
        extend_sample(
            self.sample,
            self.func,
            self.iterator,
            self.sample_size - 1,
            return_exceptions=self.return_exceptions,
            clocks=self.clocks,
        )
        self.notes.append("one slow call leaves too much open: sampled further")
        return True

    def _worth_measuring_startup(self, workload: Workload) -> bool:
        return (
            self.again
            and self.startup is STARTUP
            and workload.serial_seconds >= MEASURE_STARTUP_SECONDS
            and not STARTUP.model("process").measured
        )

    def _plan(self, workload: Workload, system: SystemFacts) -> cost.Plan:
        return cost.make_plan(
            workload,
            system,
            {engine: self.startup.model(engine) for engine in ENGINES},
            target_chunk_duration=self.target_chunk_duration,
            n_jobs=self.n_jobs,
            chunksize=self.chunksize,
            allowed=self.allowed,
            warm_workers=self.warm_workers,
            meanwhile=self.ahead is not None and self.ahead.may_work,
        )

    def _result(
        self, plan: cost.Plan, workload: Workload, system: SystemFacts | None
    ) -> OptimizationResult:
        chosen = plan.chosen
        if self.ahead is not None and chosen.engine != "serial":
            KNOWN_WORKLOADS.remember(self.func, workload)
        return OptimizationResult(
            n_jobs=chosen.n_jobs,
            chunksize=chosen.chunksize,
            executor_type=chosen.engine,
            estimated_speedup=chosen.speedup,
            reason=say_reason(plan, workload, n_jobs=self.n_jobs),
            warnings=say_warnings(plan, workload, system) if system is not None else [],
            details=details_of(
                plan,
                workload,
                self.sample,
                system,
                {engine: self.startup.model(engine) for engine in ENGINES},
                n_jobs=self.n_jobs,
                chunksize=self.chunksize,
                notes=self.notes,
            ),
        )

    def _stopped(self) -> OptimizationResult | None:
        """A result that only says why nothing more runs, where the sample came to a bad end."""
        sample = self.sample
        if sample.interrupted is not None:
            what = f"{type(sample.interrupted).__name__} stopped the run while it was sampling"
        elif sample.input_error is not None:
            error = type(sample.input_error).__name__
            what = f"the input raised {error} behind {len(sample.items)} items"
        elif sample.failures and not self.return_exceptions:
            index, failure, _ = sample.failures[0]
            what = f"the function raised {type(failure).__name__} on item {index}"
        else:
            return None
        if self.ahead is not None and self.ahead.dispatched:
            begun, jobs = str(self.ahead.engine), self.ahead.n_jobs
            reason = f"{NAMES[begun]} were begun while the first call was in progress; {what}."
            return OptimizationResult(jobs, self.chunksize or 1, begun, 1.0, reason)
        return OptimizationResult(1, self.chunksize or 1, "serial", 1.0, f"Serial, because {what}.")


def _gains(plan: cost.Plan, workload: Workload) -> bool:
    """Whether workers are worth beginning with: of named ones the lesser evil may be chosen."""
    chosen = plan.chosen
    worth = chosen.seconds * cost.MINIMUM_GAIN <= workload.serial_seconds
    return chosen.engine != "serial" and worth
