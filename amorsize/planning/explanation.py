"""Says in words and numbers what was chosen and why: the text of a result, no decision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amorsize.planning.cost import MINIMUM_GAIN, ONE_CORE, Comparison, serial_candidate
from amorsize.planning.machine import PRIORS
from amorsize.workers.record import Record

if TYPE_CHECKING:
    from amorsize.planning.cost import Candidate
    from amorsize.planning.machine import StartupModel, SystemFacts
    from amorsize.planning.observations import Observations
    from amorsize.planning.plan import Choice, RunChunks
    from amorsize.planning.workload import Workload

logger = logging.getLogger(__name__)

LABEL_WIDTH = 11

IN_A_WORKER = "this process is a worker itself, and starts no processes"


class Details(Record):
    """The facts that a choice was made from.

    Attributes:
        comparison: the candidates and the one taken.
        workload: what the sample shows.
        system: what may be used; None where too little work was left to look.
        startup: the start-up models used.
        call_seconds: the shortest and the longest call of the sample.
        switches: voluntary context switches in the sample.
        n_jobs, chunksize: as the caller gave them.
        notes: steps taken on the way.
    """

    comparison: Comparison
    workload: Workload
    system: SystemFacts | None
    startup: Mapping[str, StartupModel]
    call_seconds: tuple[float, float]
    switches: int | None
    n_jobs: int | None
    chunksize: int | None
    notes: Sequence[str]


class OptimizationResult:
    """How to run a function over its data, and why.

    Attributes:
        n_jobs: workers.
        chunksize: items of a chunk.
        executor_type: ``serial``, ``thread``, ``process``, ``dask`` or ``custom`` (any other
            executor).
        estimated_speedup: predicted, over a serial run; 1.0 for a serial run, None where nothing
            was measured.
        reason: why, in a sentence.
        warnings: what you may want to change.
        data: an iterable of every item, the sampled ones too.
        corrections: how often the size of the chunks was corrected by half or more while running;
            of a result of ``execute()``, once it is over.
        final_chunksize: what it was corrected to at last; None where it was not.
        changes: what it went over to while running, and why, in sentences.

    >>> result = OptimizationResult(4, 10, "process", 3.6, "Processes, because they are faster.")
    >>> print(result)
    process, n_jobs=4, chunksize=10, estimated speedup 3.6: Processes, because they are faster.
    """

    __slots__ = (
        "changes",
        "chunksize",
        "corrections",
        "data",
        "details",
        "estimated_speedup",
        "executor_type",
        "final_chunksize",
        "n_jobs",
        "reason",
        "warnings",
    )

    def __init__(
        self,
        n_jobs: int,
        chunksize: int,
        executor_type: str,
        estimated_speedup: float | None,
        reason: str,
        warnings: list[str] | None = None,
        data: Any = None,
        details: Details | None = None,
        corrections: int = 0,
        final_chunksize: int | None = None,
        changes: list[str] | None = None,
    ) -> None:
        self.n_jobs = n_jobs
        self.chunksize = chunksize
        self.executor_type = executor_type
        self.estimated_speedup = estimated_speedup
        self.reason = reason
        self.warnings = [] if warnings is None else warnings
        self.data = data
        self.details = details
        self.corrections = corrections
        self.final_chunksize = final_chunksize
        self.changes = [] if changes is None else changes

    def _choice(self) -> dict[str, Any]:
        """The fields that are compared, and shown: data and details may be large."""
        names = ("n_jobs", "chunksize", "executor_type", "estimated_speedup", "reason", "warnings")
        return {name: getattr(self, name) for name in names}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OptimizationResult):
            return NotImplemented
        return self._choice() == other._choice()

    __hash__ = None  # type: ignore[assignment]  # it changes, and holds a list

    def __repr__(self) -> str:
        choice = ", ".join(f"{name}={value!r}" for name, value in self._choice().items())
        return f"OptimizationResult({choice})"

    def explain(self) -> str:
        """The arithmetic: facts, sample, what each engine would take, which was taken and why.

        >>> import amorsize
        >>> print(amorsize.optimize(abs, [], executor="thread", n_jobs=2).explain())
        thread: 2 workers, chunks of 1 item
        Threads, as asked for.
        No sample was taken: the first chunks show how long a call takes.
        """
        if self.details is not None:
            return render(self.details, self.reason, self.warnings, self._while_running())
        workers = "1 worker" if self.n_jobs == 1 else f"{self.n_jobs} workers"
        items = "1 item" if self.chunksize == 1 else f"{self.chunksize} items"
        lines = [
            f"{self.executor_type}: {workers}, chunks of {items}{self._expected()}",
            self.reason,
            "No sample was taken: the first chunks show how long a call takes.",
            *self._while_running(),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    def _expected(self) -> str:
        speedup = self.estimated_speedup
        return "" if speedup is None else f", estimated speedup {speedup:.1f}"

    def _while_running(self) -> list[str]:
        lines = [f"While running it changed. {change}" for change in self.changes]
        if self.corrections:
            times = "once" if self.corrections == 1 else f"{self.corrections} times"
            to = count_of(self.final_chunksize or 1, "item")
            lines.append(
                f"The size of the chunks was corrected {times} while running, at last to {to}."
            )
        return lines

    def __str__(self) -> str:
        return (
            f"{self.executor_type}, n_jobs={self.n_jobs}, chunksize={self.chunksize}"
            f"{self._expected()}: {self.reason}"
        )


def make_result(plan: RunChunks, seen: Observations) -> OptimizationResult:
    """Make the result that explains a plan."""
    choice = plan.choice
    workload = choice.workload
    if workload is None:
        return _result_of(plan, choice.reason, list(choice.warnings))
    comparison = _comparison_of(choice, workload, seen)
    calls = seen.sample.item_seconds or [0.0]
    details = Details(
        comparison,
        workload,
        None if choice.comparison is None else seen.machine,
        seen.startup or PRIORS,
        (min(calls), max(calls)),
        seen.sample.voluntary_switches,
        seen.n_jobs,
        seen.chunksize,
        choice.notes,
    )
    warnings = [] if details.system is None else say_warnings(comparison, workload, details.system)
    return _result_of(plan, reason_of(choice, seen), warnings, details)


def reason_of(choice: Choice, seen: Observations) -> str:
    """Say why a choice was made, in a sentence."""
    if choice.reason or choice.workload is None:
        return choice.reason
    comparison = _comparison_of(choice, choice.workload, seen)
    begun = seen.early is not None and seen.early.dispatched > 0
    return say_reason(comparison, choice.workload, n_jobs=seen.n_jobs, begun=begun)


def _comparison_of(choice: Choice, workload: Workload, seen: Observations) -> Comparison:
    if choice.comparison is not None:
        return choice.comparison
    serial = serial_candidate(workload, seen.target_chunk_duration, seen.chunksize)
    return Comparison(serial, (serial,))


def _result_of(
    plan: RunChunks, reason: str, warnings: list[str], details: Details | None = None
) -> OptimizationResult:
    choice = plan.choice
    return OptimizationResult(
        n_jobs=choice.n_jobs,
        chunksize=plan.usual_size,
        executor_type=choice.engine.type,
        estimated_speedup=choice.estimated_speedup,
        reason=reason,
        warnings=warnings,
        details=details,
    )


def say_reason(
    comparison: Comparison, workload: Workload, *, n_jobs: int | None = None, begun: bool = False
) -> str:
    """Why this engine, in a sentence that a user understands.

    Args:
        comparison: what was chosen, and what else was considered.
        workload: what it was chosen for.
        n_jobs: the number of workers where the caller gave it.
        begun: whether the workers began while the first call was in progress.
    """
    chosen = comparison.chosen
    ahead = f"{chosen.n_jobs} workers began while the first call was in progress"
    workers = f"{n_jobs} workers as asked for" if n_jobs else ""
    item = format_seconds(workload.item_seconds)
    if chosen.engine == "serial":
        return f"Serial, because {_why_serial(comparison, workload)}."
    if chosen.engine == "process":
        spent = f"{item} per item"
        if workload.waits:  # not enough for threads to gain: the computing decides
            spent = f"{format_seconds(workload.gil_seconds)} of a call's {item}"
        computes = "the function computes"
        if workload.gil_known:
            computes += " under the GIL"
        if n_jobs:
            return f"Processes, {workers}, because {computes} for {spent}."
        if begun and chosen.speedup < MINIMUM_GAIN:
            return f"Processes, because {ahead}."
        return (
            f"Processes, because {computes} for {spent}, and "
            f"{chosen.n_jobs} workers are predicted to be {chosen.speedup:.1f} times as fast "
            "as one."
        )
    lead = f"Threads, {workers}, because" if n_jobs else "Threads, because"
    if workload.waits:
        share = workload.wait_seconds / workload.item_seconds
        at_once = _calls_at_once(chosen.n_jobs, workload, begun)
        waiting = f"{share:.0%} of a call's {item} is waiting"
        return f"{lead} {waiting}, and {at_once} wait at the same time."
    if workload.releases_gil:
        at_once = _calls_at_once(chosen.n_jobs, workload, begun)
        if n_jobs or begun:
            at_once = "calls"  # as many as there are cores
        return (
            f"{lead} the function releases the GIL while it computes for {item} per item: "
            f"{at_once} compute at the same time, and nothing is copied."
        )
    if begun:
        return f"{lead} {ahead}."
    payload = workload.payload
    if payload is not None and payload.problem is not None:
        return f"{lead} processes are out of the question: {payload.problem}."
    process = _candidate(comparison, "process")
    if process is None:
        return f"{lead} {IN_A_WORKER}."
    if process.problem is not None:
        return f"{lead} processes are out of the question: {process.problem}."
    return f"{lead} processes would take longer for calls of {item}."


def _calls_at_once(n_jobs: int, workload: Workload, begun: bool) -> str:
    """How many calls are in progress at once, where there are no more items than workers."""
    items = workload.remaining if not begun else workload.total
    number = n_jobs if workload.total is None or items is None else min(n_jobs, items)
    return count_of(number, "call")


def _why_serial(comparison: Comparison, workload: Workload) -> str:
    item = format_seconds(workload.item_seconds)
    if workload.remaining == 0:
        return "nothing remains after the sample" if workload.sampled else "the input is empty"
    if workload.parallel_inside:
        return f"the function already uses {workload.inner_parallelism:.1f} cores by itself"
    payload = workload.payload
    process = _candidate(comparison, "process")
    if payload is not None and payload.problem is not None:
        return f"{payload.problem}, and threads would gain nothing"
    if workload.remaining == 1 and workload.total is not None:
        return "only one item remains" if workload.sampled else "there is only one item"
    if process is not None and process.problem == ONE_CORE and not workload.waits:
        return f"one core is usable, and a call computes for its {item}"
    if payload is not None and process is not None:
        move = process.pickling_seconds / workload.remaining
        moved = payload.item_bytes + payload.result_bytes
        much = moved > 1 << 16 or (workload.total is not None and workload.serial_seconds > 0.01)
        if much and move > 0.3 * workload.item_seconds:
            size = format_bytes(moved)
            return (
                f"moving an item and its result ({size}) to a worker and back costs "
                f"{format_seconds(move)}, and the call itself {item}"
            )
    if workload.input_seconds > workload.item_seconds and workload.serial_seconds > 0.01:
        return (
            f"producing an item takes {format_seconds(workload.input_seconds)}, and the call "
            f"only {item}"
        )
    if process is None and _candidate(comparison, "thread") is not None:
        return f"{IN_A_WORKER}, and threads would gain nothing"
    problems = {each.problem for each in comparison.candidates if each.problem is not None}
    possible = [each for each in comparison.candidates[1:] if each.problem is None]
    if problems and not possible:
        return " and ".join(sorted(problems))
    left = format_seconds(workload.serial_seconds)
    if possible:
        best = min(possible, key=lambda each: each.seconds)
        if best.startup_seconds < workload.serial_seconds / 2 and workload.serial_seconds > 0.01:
            workers = "threads" if best.engine == "thread" else "processes"
            return (
                f"{best.n_jobs} {workers} are predicted to take {format_seconds(best.seconds)} for "
                f"the remaining {left} of work"
            )
    if workload.total is None:
        return f"a call takes {item}, too little to gain from workers"
    return f"the remaining {left} of work are too little to gain from workers"


def say_warnings(comparison: Comparison, workload: Workload, system: SystemFacts) -> list[str]:
    """Warnings: settings that the user may want to change."""
    chosen = comparison.chosen
    warnings = []
    for candidate in comparison.candidates:
        if candidate.wanted_jobs:
            held = "no two" if candidate.problem else f"no more than {candidate.n_jobs}"
            if candidate.n_jobs == candidate.wanted_jobs and not candidate.problem:
                held = "fewer"  # the caller asked for so many, and gets them
            warnings.append(
                f"The {format_bytes(system.available_bytes or 0)} of memory still available hold "
                f"{held} {candidate.engine} workers of this work, out of {candidate.wanted_jobs}."
            )
    payload = workload.payload
    if payload is not None and payload.problem is not None:
        advice = ""
        if "cannot be pickled" in payload.problem:
            advice = " Build such objects inside the function, or pass what they are made from."
        warnings.append(f"Worker processes cannot be used: {payload.problem}.{advice}")
    elif payload is not None:
        moved = payload.item_bytes + payload.result_bytes
        if chosen.engine == "serial" and moved > 1 << 20 and not workload.parallel_inside:
            warnings.append(
                f"An item and its result are {format_bytes(moved)} pickled: if the function read "
                "its data itself, given a path or an index, worker processes could help."
            )
        if chosen.engine == "process" and payload.function_bytes > 10 << 20:
            warnings.append(
                f"The function carries {format_bytes(payload.function_bytes)} of data along, "
                "which is sent once to each worker."
            )
    if not workload.waits and chosen.n_jobs > system.usable_cores:
        warnings.append(
            f"n_jobs={chosen.n_jobs} for a function that computes, on "
            f"{count_of(system.usable_cores, 'usable core')}: more workers than cores gain nothing."
        )
    if chosen.n_jobs > 1 and workload.input_seconds * chosen.n_jobs > workload.item_seconds:
        warnings.append(
            f"Producing an item takes {format_seconds(workload.input_seconds)} and calling the "
            f"function {format_seconds(workload.item_seconds)}: {chosen.n_jobs} workers will wait "
            "for the input."
        )
    return warnings


def render(
    details: Details, reason: str, warnings: list[str], corrected: Sequence[str] = ()
) -> str:
    """The arithmetic as text of several lines, for people; ``corrected`` comes of the run."""
    comparison, workload = details.comparison, details.workload
    chosen = comparison.chosen
    lines = [
        f"{chosen.engine}: {count_of(chosen.n_jobs, 'worker')}, chunks of "
        f"{count_of(chosen.chunksize, 'item')}, estimated speedup {chosen.speedup:.1f}",
        reason,
        "",
        *_labelled("machine", _machine(details.system)),
        *_labelled("sample", _sample_lines(details)),
        *_labelled("to do", _work(workload)),
    ]
    if notes := [*details.notes, *corrected]:
        lines += _labelled("on the way", notes)
    header = ("engine", "workers", "chunk", "start-up", "compute", "pickling", "round trips")
    rows = [(*header, "total", "speedup")]
    footnotes = []
    for candidate in comparison.candidates:
        mark = " *" if candidate.engine == chosen.engine else ""
        if candidate.problem is not None:
            footnotes.append(f"{candidate.engine}: not possible, {candidate.problem}")
            continue
        unknown = candidate.engine == "process" and workload.payload is None
        rows.append(
            (
                candidate.engine + mark,
                str(candidate.n_jobs),
                str(candidate.chunksize),
                format_seconds(candidate.startup_seconds),
                format_seconds(candidate.compute_seconds),
                "?" if unknown else format_seconds(candidate.pickling_seconds),
                format_seconds(candidate.round_trip_seconds),
                (">= " if unknown else "") + format_seconds(candidate.seconds),
                ("<= " if unknown else "") + f"{candidate.speedup:.2f}",
            )
        )
        if unknown:
            footnotes.append("?: not measured, because it could not have changed the choice")
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) + 2)]
    lines.append("")
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("  " + "  ".join(cells))
    if len(rows) > 2:
        footnotes.append("total: start-up, then the longer of the workers' part (compute, half the")
        footnotes.append("pickling) and the parent's (input, half the pickling, round trips)")
        footnotes.append(_startup_source(details))
    lines += ["  " + footnote for footnote in footnotes]
    if warnings:
        lines += ["", *(f"warning: {warning}" for warning in warnings)]
    return "\n".join(lines)


def _candidate(comparison: Comparison, engine: str) -> Candidate | None:
    return next((c for c in comparison.candidates if c.engine == engine), None)


def _labelled(label: str, texts: list[str]) -> list[str]:
    return [
        f"{label if index == 0 else '':<{LABEL_WIDTH}}{text}" for index, text in enumerate(texts)
    ]


def _machine(system: SystemFacts | None) -> list[str]:
    if system is None:
        return ["not looked at: the work is done sooner"]
    quota = "no CPU quota"
    if system.quota_cores is not None:
        quota = f"a CPU quota of {system.quota_cores:.3g}"
    text = (
        f"{count_of(system.usable_cores, 'usable core')} ({system.logical_cores} in the machine, "
        f"{system.affinity_cores} by affinity, {system.physical_cores} of them physical, {quota})"
    )
    if system.available_bytes is None or system.total_bytes is None:
        return [text]
    available, total = format_bytes(system.available_bytes), format_bytes(system.total_bytes)
    return [text, f"{available} of {total} memory available"]


def _sample_lines(details: Details) -> list[str]:
    workload = details.workload
    shortest, longest = map(format_seconds, details.call_seconds)
    spread = shortest if shortest == longest else f"{shortest} to {longest}"
    item = workload.item_seconds
    lines = [
        f"{count_of(workload.sampled, 'item')}, {spread} per call; "
        f"estimate {format_seconds(item)} per call, "
        f"{format_seconds(workload.input_seconds)} to produce an item"
    ]
    if item > 0 and details.system is not None:
        # The probe's own thread is in it as well, which is all that goes past 100 %.
        share = workload.cpu_seconds / item
        cpu = f"{share if workload.parallel_inside else min(share, 1.0):.0%} of it on a CPU"
        gil = f"GIL held {workload.gil_seconds / item:.0%} of the time"
        if not workload.gil_known:
            gil += " (assumed)"
        waits = "waiting not counted here"
        if details.switches is not None:
            waits = f"{count_of(details.switches, 'voluntary context switch')} in all"
        lines.append(f"{cpu}, {gil}, {waits}")
    payload = workload.payload
    if payload is not None and payload.problem is None:
        lines.append(
            f"pickled: item {format_bytes(payload.item_bytes)}, "
            f"result {format_bytes(payload.result_bytes)}, "
            f"function {format_bytes(payload.function_bytes)}"
        )
    return lines


def _work(workload: Workload) -> list[str]:
    alone = f"{format_seconds(workload.serial_seconds)} one after the other"
    if workload.total is None:
        return [f"an unknown number of items, taken for {workload.remaining:,} ({alone})"]
    return [f"{count_of(workload.remaining, 'item')}, {alone}"]


def _startup_source(details: Details) -> str:
    model = details.startup["process"]
    return "start-up of processes: " + (
        "measured in this process" if model.measured else "as on the developers' machine so far"
    )


def count_of(number: int, noun: str) -> str:
    """A number and what it counts.

    >>> count_of(1, "item"), count_of(2000, "switch")
    ('1 item', '2,000 switches')
    """
    plural = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{plural}"


def format_seconds(seconds: float) -> str:
    """Seconds in the unit that reads best.

    >>> [format_seconds(s) for s in (0, 3.2e-7, 0.0051, 2.0, 2500)]
    ['0', '0.32 µs', '5.1 ms', '2 s', '2,500 s']
    """
    if seconds < 1e-9:
        return "0"
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"


def format_bytes(size: float) -> str:
    """Bytes in the unit that reads best.

    >>> [format_bytes(n) for n in (17, 4096, 3_500_000, 25e9)]
    ['17 B', '4.1 kB', '3.5 MB', '25 GB']
    """
    for unit, factor in (("B", 1.0), ("kB", 1e3), ("MB", 1e6)):
        if size < 999.5 * factor:
            return f"{size / factor:.{2 if size < 10 * factor else 3}g} {unit}"
    return f"{size / 1e9:.3g} GB"


def log_choice(result: OptimizationResult, verbose: bool) -> None:
    """Write the choice to the log, and to stderr where that was asked for."""
    logger.debug("%s", result)
    if verbose:
        sys.stderr.write(result.explain() + "\n")
