"""The planner: tables of observations and of what is to be done next."""

from __future__ import annotations

from typing import Any

import pytest

from amorsize.planning import planner as planner_module
from amorsize.planning.chunk_sizes import CHUNK_BYTES, HELD_BYTES
from amorsize.planning.engine import Engine
from amorsize.planning.explanation import make_result
from amorsize.planning.known_functions import Known
from amorsize.planning.machine import PRIORS, SystemFacts
from amorsize.planning.observations import ChunkTimes, EarlyWork, Observations, Sample, Weights
from amorsize.planning.pickling import Payload
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
from amorsize.planning.planner import MOST_GROWTHS, SERIAL, Planner
from amorsize.planning.workload import Workload

TWO = SystemFacts.of(2, total_bytes=16 << 30, available_bytes=8 << 30)
LARGE = SystemFacts.of(32)
SMALL = Payload(function_bytes=300, item_bytes=10, item_seconds=1e-6, result_bytes=10)
HEAVY = Payload(item_bytes=8 << 20, item_seconds=0.02)
UNPICKLABLE = Payload(problem="the function (f) cannot be pickled: TypeError: no")


def calls(*seconds: float, waiting: bool = False, **others: Any) -> Sample:
    """What calls look like that compute under the GIL, or that wait."""
    busy = 0.0 if waiting else sum(seconds)
    facts: dict[str, Any] = {
        "taken": len(seconds),
        "seconds": sum(seconds),
        "item_seconds": list(seconds),
        "cpu_seconds": busy,
        "process_cpu_seconds": busy,
        "input_seconds": [1e-6] * len(seconds),
        "voluntary_switches": len(seconds) if waiting else 0,
        "gil_share": 0.7 if waiting else 0.0,
        "asked_items": 5,
        "asked_together": True,
    }
    return Sample(**{**facts, **others})


def observed(sample: Sample | None = None, left: int | None = 1000, **others: Any) -> Observations:
    """What a run of this process knows that has looked at the machine."""
    facts: dict[str, Any] = {
        "sample": Sample() if sample is None else sample,
        "left": left,
        "indexable": True,
        "machine": TWO,
        "memory_read": True,
        "startup": PRIORS,
        "early": EarlyWork(),
    }
    return Observations(**{**facts, **others})


def next_of(seen: Observations) -> Any:
    """Ask twice: nothing is changed by the asking."""
    first: Plan | None = Planner().next(seen)
    assert Planner().next(seen) == first
    return first


def workload(seconds: float = 0.02, *, waits: bool = False) -> Workload:
    """What an earlier run has shown."""
    busy = 0.0 if waits else seconds
    wait = seconds if waits else 0.0
    return Workload(None, 5, 1000, 0.0, seconds, busy, busy, wait)


# --- the first items ----


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (observed(), LookFurther(ITEMS, 5)),
        (observed(sample_size=2), LookFurther(ITEMS, 2)),
        (observed(left=1), LookFurther(ITEMS, 5, monitored=False)),
        (observed(early=None), LookFurther(ITEMS, 5, monitored=False)),
        (observed(known=Known(short=True)), LookFurther(ITEMS, 5, from_start=False)),
        # Very short calls are measured together, once, where enough of them are left.
        (observed(calls(*[1e-6] * 5, asked_together=False)), LookFurther(ITEMS_TOGETHER, 256)),
        (observed(calls(*[5e-5] * 5, asked_together=False)), LookFurther(ITEMS_TOGETHER, 20)),
        # Those that were not as short as the ones before are measured like first ones.
        (
            observed(calls(*[1e-6] * 5, together=64, together_seconds=0.64)),
            LookFurther(ITEMS, 5, afresh=True),
        ),
        # One slow call leaves open whether it holds the GIL, or was a warm-up.
        (
            observed(calls(0.3, gil_share=None), payload=None),
            LookFurther(
                ITEMS,
                4,
                monitored=False,
                note="one slow call leaves too much open: sampled further",
            ),
        ),
        # So does the first where moving items costs more than calling: a free GIL would decide.
        (
            observed(calls(0.01, gil_share=None), left=20, payload=HEAVY),
            LookFurther(
                ITEMS,
                4,
                monitored=False,
                note="one slow call leaves too much open: sampled further",
            ),
        ),
    ],
)
def test_items_are_measured_as_long_as_that_can_change_the_answer(
    seen: Observations, step: LookFurther
) -> None:
    """How many, and how."""
    assert next_of(seen) == step


@pytest.mark.parametrize(
    "seen",
    [
        observed(calls(*[1e-4] * 5, asked_together=False), left=10),
        observed(calls(*[1e-6] * 5, asked_together=False), left=63),
        observed(calls(*[1e-6] * 5, asked_together=False), returns_exceptions=True),
        observed(calls(*[1e-6] * 5, asked_together=False), runs_again=True),
        observed(calls(*[1e-6] * 5, asked_together=False), stopped="it is over"),
        observed(calls(*[1e-6] * 5, asked_together=False, exhausted=True), left=0),
        observed(calls(*[1e-6] * 4, asked_together=False, input_seconds=[0.01] * 4), left=70),
    ],
)
def test_calls_are_not_always_measured_together(seen: Observations) -> None:
    """Not where they are long, few, may fail in place, or run again."""
    step = next_of(seen)
    assert not (isinstance(step, LookFurther) and step.at == ITEMS_TOGETHER)


# --- the first plan ----


@pytest.mark.parametrize(
    ("seen", "at"),
    [
        (observed(calls(0.02, 0.02), machine=None, memory_read=False), CORES),
        (observed(calls(0.02, 0.02), memory_read=False), MEMORY),
        (observed(calls(0.02, 0.02)), PAYLOAD),
        (observed(calls(0.02, 0.02), runs_again=True, early=None, payload=SMALL), STARTUP),
    ],
)
def test_it_looks_further_only_where_processes_would_win(seen: Observations, at: str) -> None:
    """The machine first, then memory, then what crosses to a process."""
    assert next_of(seen) == LookFurther(at)


def test_nothing_is_started_to_be_measured_where_no_process_can_be() -> None:
    """What would be started is the program itself: it is no interpreter."""
    unsendable = Payload(problem="this program is frozen")
    seen = observed(calls(0.02, 0.02), runs_again=True, early=None, payload=unsendable)
    assert isinstance(next_of(seen), RunChunks)


@pytest.mark.parametrize(
    "seen",
    [
        observed(calls(*[1e-7] * 5), machine=None, loading_seconds=0.0),
        observed(calls(*[1e-7] * 5), left=None, machine=None),
        # However many, and also when an earlier run has shown that they are short.
        observed(
            calls(*[1e-6] * 5, together=256, together_seconds=5e-5), left=200_000, machine=None
        ),
        observed(
            calls(*[1e-6] * 5, together=256, together_seconds=5e-5),
            left=200_000,
            machine=None,
            known=Known(short=True),
        ),
        observed(calls(*[1e-5] * 5), left=100, machine=None),
        observed(calls(*[5e-6] * 5), left=1000, machine=None, loading_seconds=0.01),
        observed(Sample(asked_items=5, exhausted=True), left=0, machine=None),
    ],
)
def test_little_work_is_done_before_anything_is_looked_at(seen: Observations) -> None:
    """No machine is read, and no engine compared."""
    plan = next_of(seen)
    assert (plan.choice.engine, plan.choice.comparison) == (SERIAL, None)
    assert plan.choice.may_grow


@pytest.mark.parametrize(
    ("seen", "engine", "n_jobs"),
    [
        (observed(calls(0.02, 0.02, waiting=True)), "thread", 48),
        (observed(calls(0.02, 0.02, gil_share=0.7)), "thread", 2),
        (observed(calls(0.02, 0.02), payload=SMALL, warm_workers=2), "process", 2),
        (observed(calls(0.02, 0.02), payload=SMALL, early=None), "process", 2),
        (observed(calls(0.02, 0.02), payload=UNPICKLABLE), "serial", 1),
        (observed(calls(0.001, 0.001), payload=HEAVY), "serial", 1),
        (observed(calls(0.02, 0.02), payload=SMALL, machine=SystemFacts.of(1)), "serial", 1),
        (
            observed(calls(0.02, 0.02, process_cpu_seconds=0.12), payload=SMALL, early=None),
            "serial",
            1,
        ),
        (
            observed(calls(0.02, 0.02), payload=SMALL, n_jobs=7, early=EarlyWork("process", 7)),
            "process",
            7,
        ),
        (observed(calls(0.02, 0.02), allowed=("serial", "thread")), "serial", 1),
    ],
)
def test_the_first_plan(seen: Observations, engine: str, n_jobs: int) -> None:
    """By what calls were like, what crosses, and what the caller gave."""
    if seen.early is not None and seen.early.engine is not None:
        seen.early.is_up = True
    plan = next_of(seen)
    assert plan.choice.engine == Engine(engine)
    assert plan.choice.n_jobs >= n_jobs if engine == "thread" else plan.choice.n_jobs == n_jobs


@pytest.mark.parametrize(("waiting", "engine"), [(True, "thread"), (False, "process")])
def test_items_that_turn_out_long_go_to_the_engine_that_they_need(
    waiting: bool, engine: str
) -> None:
    """A run that began with very short items is planned by the long ones."""
    seen = observed(
        calls(0.02, 0.02, waiting=waiting),
        left=98,
        payload=SMALL,
        early=None,
        expected_seconds=1e-6,
        deviating_seconds=0.02,
    )
    assert next_of(seen).choice.engine.type == engine


def test_measuring_that_was_stopped_runs_nothing_more() -> None:
    """The reason says what stopped it."""
    plan = next_of(observed(calls(0.01), stopped="the input raised OSError after 3 items"))
    assert plan.choice.reason == "Serial, because the input raised OSError after 3 items."
    early = EarlyWork("thread", 8, 15)
    plan = next_of(observed(calls(0.01), stopped="it raised", early=early))
    assert (plan.choice.engine.type, plan.choice.n_jobs) == ("thread", 8)
    assert plan.choice.reason.startswith("Threads were begun while the first call was in progress")
    assert plan.choice.estimated_speedup is None


@pytest.mark.parametrize(
    ("named", "step"),
    [
        (
            {"engine": Engine("serial", instead_of="process")},
            RunChunks(
                Choice(
                    Engine("serial", instead_of="process"),
                    1,
                    "Serial, because this process is a worker itself: 'process' cannot be used "
                    "here.",
                ),
                1,
                1,
            ),
        ),
        ({"engine": SERIAL}, RunChunks(Choice(SERIAL, 1, "Serial, as asked for."), 1, 1)),
        (
            {"n_jobs": 1},
            RunChunks(Choice(SERIAL, 1, "Serial, because one worker was asked for."), 1, 1),
        ),
        ({"engine": Engine("thread")}, LookFurther(CORES)),
        (
            {"engine": Engine("thread"), "n_jobs": 3, "chunksize": 7},
            RunChunks(Choice(Engine("thread"), 3, "Threads, as asked for.", None), 7, 7),
        ),
        (
            {"engine": Engine("process"), "machine": TWO},
            RunChunks(Choice(Engine("process"), 2, "Processes, as asked for.", None), 1, 1),
        ),
    ],
)
def test_a_named_engine_is_not_measured_for(named: dict[str, Any], step: Plan) -> None:
    """What the caller left open is filled in."""
    assert next_of(Observations(left=100, **named)) == step


# --- starting ahead of the plan ----


def test_processes_start_while_this_thread_works_on() -> None:
    """Unless their start was refused; the items that they will need are left to them."""
    seen = observed(calls(0.002, 0.002), payload=SMALL)
    assert next_of(seen) == StartWorkers("process", 2)
    seen.early = EarlyWork("process", 2)
    assert next_of(seen) == LookFurther(ITEMS_MEANWHILE, 998)
    seen.early.is_up = True
    assert next_of(seen).choice.engine.type == "process"
    assert next_of(seen._replace(early=EarlyWork(refused=True))).choice.engine.type == "process"


@pytest.mark.parametrize("facts", [{"time_limit": True}, {"sample": calls(0.05, 0.05)}])
def test_this_thread_does_not_work_on(facts: dict[str, Any]) -> None:
    """Where an item must be ended in time, or calls take so long that messages would wait."""
    early = EarlyWork("process", 2)
    seen = observed(**{"sample": calls(0.002, 0.002), "payload": SMALL, "early": early, **facts})
    assert next_of(seen).choice.engine.type == "process"


@pytest.mark.parametrize(
    ("known", "sendable", "step"),
    [
        (workload(waits=True), False, StartWorkers("thread", 48, 95, keep=1)),
        (workload(), True, StartWorkers("process", 2, 1, keep=1)),
        (workload(), False, LookFurther(ITEMS, 5)),
        (workload(1e-6), True, LookFurther(ITEMS, 5)),
    ],
)
def test_a_function_that_is_known_is_begun_with_at_once(
    known: Workload, sendable: bool, step: Plan
) -> None:
    """Processes only where its results came back from them before."""
    seen = observed(known=Known(workload=known), sendable=sendable)
    answer = next_of(seen)
    if isinstance(step, StartWorkers) and step.engine == "thread":
        assert (answer.engine, answer.keep, answer.dispatch) == (
            "thread",
            1,
            2 * answer.n_jobs - 1,
        )
        assert answer.n_jobs >= 40
    else:
        assert answer == step
    assert next_of(seen._replace(indexable=False)) == LookFurther(ITEMS, 5)
    assert next_of(seen._replace(memory_read=False)) == LookFurther(MEMORY)


def test_one_item_is_measured_beside_those_that_were_handed_out() -> None:
    """And its plan is for what was begun, whatever it looks like beside the others."""
    known = Known(workload=workload(waits=True)._replace(is_sure=True))
    early = EarlyWork("thread", 48, 95)
    seen = observed(known=known, early=early)
    assert next_of(seen) == LookFurther(ITEMS, 1, monitored=False)
    seen.sample = calls(0.03)
    plan = next_of(seen)
    assert (plan.choice.engine.type, plan.choice.workload.item_seconds) == ("thread", 0.02)
    assert "workers began with 95 items" in plan.choice.notes[-1]
    assert plan.choice.workload.is_sure
    seen.sample = calls(0.9, 0.9)  # no longer what is known; alone they may take less
    plan = next_of(seen)
    assert (plan.choice.engine.type, plan.choice.workload.item_seconds) == ("thread", 0.9)
    assert not plan.choice.workload.is_sure


@pytest.mark.parametrize(
    ("known", "early", "left", "expected", "reason"),
    [
        (workload(waits=True), EarlyWork("thread", 64, 74), 74, (25, 64), "Threads, because 100%"),
        (
            workload(),
            EarlyWork("process", 2, 1),
            99,
            (1.5, 2.0),
            "Processes, because the function computes for 20 ms per item, and 2 workers are",
        ),
        (
            workload(),
            EarlyWork("process", 2, 1),
            1,
            (0.0, 2.0),
            "Processes, because",
        ),
        (
            workload(0.02),
            EarlyWork("thread", 8, 15),
            99,
            (0.5, 1.1),
            "Threads, because 8 workers began while the first call was in progress.",
        ),
    ],
)
def test_workers_that_nobody_asked_for_are_not_said_to_be_asked_for(
    known: Workload, early: EarlyWork, left: int, expected: tuple[float, float], reason: str
) -> None:
    """What was handed out ahead of the plan is work of its speedup; the reason is the true one."""
    seen = observed(
        calls(0.02), left, known=Known(workload=known), early=early, payload=SMALL, sendable=True
    )
    plan = next_of(seen)
    result = make_result(plan, seen)
    assert (plan.choice.engine.type, plan.choice.n_jobs) == (early.engine, early.n_jobs)
    assert result.estimated_speedup is not None
    assert expected[0] <= result.estimated_speedup <= expected[1]
    assert result.reason.startswith(reason)
    assert "asked for" not in result.reason


@pytest.mark.parametrize(
    "seen",
    [
        observed(calls(1e-7, 1e-7), left=1),
        observed(calls(1e-7, 1e-7), left=0),
        observed(calls(0.02, 0.02), left=1, payload=SMALL),
        observed(calls(0.02, 0.02, waiting=True), left=3),
    ],
)
def test_no_chunk_is_planned_of_more_items_than_there_are(seen: Observations) -> None:
    """Whatever a chunk could hold of such items."""
    left = seen.left
    assert left is not None
    seen.early = None
    plan = next_of(seen)
    assert plan.usual_size <= max(1, left)
    assert next_of(seen._replace(chunksize=40)).usual_size == 40  # but the caller may


@pytest.mark.parametrize(
    ("doubtful", "left"),
    [
        (calls(0.01, 0.01, waiting=True), 1000),
        (calls(0.01, 0.01, gil_share=0.7), 1000),
        (calls(0.01, 0.01, process_cpu_seconds=0.04), 1000),
        (calls(0.01, 0.01), 9),
        (calls(10.0, 10.0), 1),
    ],
    ids=["waits", "releases the GIL", "parallel inside", "little is left", "one item is left"],
)
def test_no_template_starts_where_there_is_a_doubt(doubtful: Sample, left: int) -> None:
    """One that starts needlessly takes a core away from what runs."""
    step = next_of(observed(doubtful, left, loading_seconds=0.01, machine=LARGE))
    assert step != StartTemplate()


@pytest.mark.parametrize("asked", [{}, {"n_jobs": 2}], ids=["nothing", "so many workers"])
@pytest.mark.parametrize(("seconds", "left"), [(0.01, 10), (1.0, 2), (1.0, 1000)])
def test_the_template_starts_where_processes_surely_gain(
    seconds: float, left: int, asked: dict[str, Any]
) -> None:
    """Before what compares engines is loaded, and once."""
    seen = observed(calls(seconds, seconds), left, loading_seconds=0.01, machine=LARGE, **asked)
    assert next_of(seen) == StartTemplate()
    assert next_of(seen._replace(in_progress=True)) == StartTemplate()
    assert next_of(seen._replace(machine=None)) == LookFurther(CORES)
    for others in (
        {"allowed": ("serial", "thread")},
        {"loading_seconds": 0.0},
        {"machine": SystemFacts.of(1)},
        {"early": EarlyWork(template=True)},
        {"early": EarlyWork(refused=True)},
        {"early": None},
    ):
        assert next_of(seen._replace(**others)) != StartTemplate()


# --- while a call is in progress ----


def during(sample: Sample, **others: Any) -> Observations:
    return observed(sample, in_progress=True, **others)


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        # Little work: look again once it has taken twice as long.
        (during(calls(0.0004), left=2), LookFurther(CALL, seconds=0.01)),
        (during(calls(0.012), machine=None), LookFurther(CORES)),
        (during(calls(0.012)), LookFurther(PAYLOAD)),
        (during(calls(0.012), payload=SMALL, memory_read=False), LookFurther(MEMORY)),
        (
            during(calls(0.012), payload=SMALL),
            StartWorkers("process", 2, look_again_seconds=0.012),
        ),
        # Items only where results are known to be picklable, or once the call is long.
        (
            during(calls(0.09), payload=SMALL, early=EarlyWork("process", 2)),
            LookFurther(CALL, seconds=pytest.approx(0.01)),
        ),
        (
            during(calls(0.12), payload=SMALL, early=EarlyWork("process", 2)),
            StartWorkers("process", 2, 1),
        ),
        (
            during(calls(0.02), payload=SMALL, early=EarlyWork("process", 2), sendable=True),
            StartWorkers("process", 2, 1),
        ),
        (during(calls(0.12), payload=SMALL, early=EarlyWork("process", 2, 1)), None),
        (during(calls(0.12), payload=SMALL, early=EarlyWork("process", 2), indexable=False), None),
        (during(calls(0.12), payload=UNPICKLABLE), LookFurther(CALL, seconds=0.12)),
        # A few threads, twice as many at each look; all of them once a call is over.
        (
            during(calls(0.02, waiting=True)),
            StartWorkers("thread", 8, 15, look_again_seconds=0.02),
        ),
        (
            during(calls(0.05, waiting=True), early=EarlyWork("thread", 8, 15)),
            StartWorkers("thread", 16, 16, look_again_seconds=0.05),
        ),
        (
            during(calls(0.02, waiting=True, queued_seconds=0.01)),
            LookFurther(CALL, seconds=0.02),
        ),
        (during(calls(0.02, waiting=True), indexable=False), LookFurther(CALL, seconds=0.02)),
        # Calls are not what they seemed.
        (during(calls(0.02, waiting=True), early=EarlyWork("process", 2)), None),
        (during(calls(0.02, waiting=True), early=EarlyWork(refused=True)), None),
        (during(calls(0.02), early=None), None),
    ],
)
def test_a_call_in_progress(seen: Observations, step: Plan | None) -> None:
    """It can only get longer: what it warrants by now is begun."""
    assert next_of(seen) == step


def test_two_items_are_enough_for_two_workers() -> None:
    """The call in progress is one of them."""
    step = next_of(during(calls(0.5), left=1, payload=SMALL, early=EarlyWork("process", 2)))
    assert step == StartWorkers("process", 2, 1)


def test_after_one_call_all_threads_begin_at_the_next() -> None:
    """What a call takes is known by then."""
    step = next_of(during(calls(0.02, 0.02, waiting=True)))
    assert step.n_jobs >= 40
    assert step.look_again_seconds is None


# --- between chunks ----


def running(choice: Choice, size: int = 10, **others: Any) -> Observations:
    plan = RunChunks(choice, size, size)
    return observed(plan=plan, **others)


ALONE = Choice(SERIAL, item_seconds=1e-6, may_grow=True)
THREADS = Choice(Engine("thread"), 8, may_leave=True)
PROCESSES = Choice(Engine("process"), 2, may_leave=True)


@pytest.mark.parametrize(
    ("seen", "grows"),
    [
        (running(ALONE, deviating_seconds=0.02), True),
        (running(ALONE, deviating_seconds=0.02, left=None), True),
        (running(ALONE, deviating_seconds=3e-6), False),
        (running(ALONE, deviating_seconds=0.02, left=2), False),
        (running(ALONE._replace(item_seconds=0.01), deviating_seconds=0.02), False),
        (running(ALONE._replace(may_grow=False), deviating_seconds=0.02), False),
        (running(THREADS._replace(may_grow=True), deviating_seconds=0.02), False),
    ],
)
def test_a_serial_run_measures_again_where_items_turn_out_long(
    seen: Observations, grows: bool
) -> None:
    """And enough of them are left; workers are kept."""
    step = next_of(seen)
    if grows:
        assert step == LookFurther(ITEMS, 5, afresh=True)
    else:
        assert step.choice is seen.plan.choice  # type: ignore[union-attr]  # it has one


@pytest.mark.parametrize("facts", [{"item_time_limit": True}, {"n_jobs": 1}, {"n_jobs": 2}])
def test_a_serial_run_may_not_grow(facts: dict[str, Any]) -> None:
    """An item that must be ended in time is not measured; the number of workers may be given."""
    seen = observed(calls(*[1e-7] * 5), payload=UNPICKLABLE, **facts)
    assert not next_of(seen).choice.may_grow


@pytest.mark.parametrize("growths", range(MOST_GROWTHS + 1))
def test_items_that_change_for_ever_are_followed_so_often(growths: int) -> None:
    """Each time they are expected to take what they took then."""
    seen = observed(
        calls(0.02, 0.02, waiting=True),
        expected_seconds=1e-6,
        deviating_seconds=1.0,
        growths=growths,
    )
    choice = next_of(seen).choice
    assert choice.may_grow == (growths + 1 < MOST_GROWTHS)
    assert choice.item_seconds == pytest.approx(0.02)


def test_a_false_alarm_is_less_of_a_deviation_the_next_time() -> None:
    """One item stood in the queue for a CPU; those that follow are short again."""
    seen = observed(calls(*[1e-6] * 5), expected_seconds=1e-6, deviating_seconds=0.02)
    assert next_of(seen).choice.item_seconds == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("choice", "each", "leaves"),
    [
        (PROCESSES, 4e-7, True),
        (PROCESSES, 6e-7, False),
        # Threads take turns at the GIL.
        (THREADS, 3e-6, True),
        (THREADS, 5e-6, False),
        (THREADS._replace(may_leave=False), 1e-7, False),
    ],
)
def test_workers_are_left_where_items_cost_less_than_their_way(
    choice: Choice, each: float, leaves: bool
) -> None:
    """The run may go over to them again."""
    step = next_of(running(choice, chunks=ChunkTimes(1000, 1000 * each, 1000 * each, 1000, 1)))
    assert (step.choice.engine == SERIAL) == leaves
    assert leaves == step.choice.reason.startswith("Serial, because items cost less")


def test_the_size_of_chunks_is_corrected_once_per_chunk() -> None:
    """Towards the target; the choice stays the same object."""
    seen = running(PROCESSES, chunks=ChunkTimes(10, 0.01, 0.01, 10, 1), left=10**6)
    plan = next_of(seen)
    assert (plan.size, plan.usual_size, plan.counted) == (80, 80, 1)
    assert plan.choice is PROCESSES
    seen.plan = plan
    assert next_of(seen) == plan
    assert next_of(seen._replace(chunksize=3)).size == 3
    seen.left = 12
    assert (next_of(seen).size, next_of(seen).usual_size) == (3, 80)


def test_a_serial_run_that_nobody_observes_is_one_chunk() -> None:
    """Where its input is in memory; it can be ended early."""
    seen = running(ALONE, whole=True, most_serial_items=10**7)
    assert next_of(seen).size == 10**7
    assert next_of(seen._replace(chunksize=4)).size == 4


# --- what items and results weigh ----

MB = 1 << 20
STREAMED = ALONE._replace(may_grow=False)
HEAVY_ITEMS = Weights(1.0 * MB, 0.0, 1)
HEAVY_RESULTS = Weights(0.0, 1.0 * MB, 1)


@pytest.mark.parametrize(
    ("seen", "size"),
    [
        # By what chunks weighed that came back: 32 MB each, or less where there are many workers,
        # and 8 MB where they are sent to other processes.
        (running(STREAMED, 1000, weights=HEAVY_ITEMS), 32),
        (running(STREAMED, 1000, weights=HEAVY_RESULTS), 32),
        (running(STREAMED, 1000, weights=Weights(1.0 * MB, 3.0 * MB, 1)), 8),
        (running(STREAMED, 1000, weights=Weights(10.0, 10.0, 1)), 1000),
        (running(STREAMED, 1000, weights=Weights(1e12, 0.0, 1)), 1),
        (running(THREADS, 1000, weights=HEAVY_ITEMS, left=None), 5),
        (running(PROCESSES, 1000, weights=HEAVY_ITEMS, left=None), 8),
        (running(Choice(Engine("dask"), 2), 1000, weights=HEAVY_ITEMS, left=None), 8),
        # Before that, by the sample, and by what crosses to processes.
        (running(STREAMED, 1000, sample=calls(1e-4, 1e-4, items_bytes=4 * MB)), 16),
        (running(STREAMED, 1000, sample=calls(1e-4, 1e-4, results_bytes=4 * MB)), 16),
        (running(PROCESSES, 1000, payload=HEAVY), 1),
        (running(PROCESSES, 1000, payload=Payload(item_bytes=MB, result_bytes=MB), left=None), 4),
        (running(STREAMED, 1000, payload=HEAVY), 1000),
        # A size that the caller has given is kept, unless that is more than any chunk may weigh.
        (running(STREAMED, 1000, weights=HEAVY_ITEMS, chunksize=20), 20),
        (running(STREAMED, 1000, weights=HEAVY_ITEMS, chunksize=100), 32),
        (running(PROCESSES, 1000, weights=HEAVY_ITEMS, chunksize=12), 12),
        (running(PROCESSES, 1000, weights=HEAVY_ITEMS, chunksize=100, left=None), 18),
    ],
)
def test_chunks_of_heavy_items_or_results_are_small(seen: Observations, size: int) -> None:
    """However short the calls are."""
    assert next_of(seen).size == size


def test_the_size_of_a_chunk_grows_again_where_items_become_lighter() -> None:
    """As a size does that was corrected because of the time that chunks took."""
    seen = running(STREAMED, 1000, weights=HEAVY_ITEMS)
    seen.plan = next_of(seen)
    assert (seen.plan.size, seen.plan.usual_size) == (32, 32)
    quick = seen._replace(weights=Weights(10.0, 0.0, 2), chunks=ChunkTimes(32, 1e-4, 1e-4, 32, 1))
    assert next_of(quick).size == 256


@pytest.mark.parametrize(
    ("others", "waits"),
    [
        ({}, False),
        ({"held_chunks": 3, "held_bytes": HELD_BYTES - 9 * MB}, False),
        ({"held_chunks": 3, "held_bytes": HELD_BYTES - 7 * MB}, True),
        ({"held_chunks": 1, "held_bytes": HELD_BYTES}, False),
        ({"held_chunks": 3, "held_bytes": HELD_BYTES, "chunksize": 4}, True),
        ({"held_chunks": 6, "streams": True}, False),
        ({"held_chunks": 7, "streams": True}, True),
        ({"held_chunks": 70}, False),
    ],
)
def test_what_is_held_has_to_become_less_first(others: dict[str, Any], waits: bool) -> None:
    """Chunks in flight, and those that wait for a consumer, weigh so much at most."""
    plan = next_of(running(PROCESSES, weights=HEAVY_ITEMS, left=None, **others))
    assert (plan.size == 0) is waits
    assert plan.usual_size >= 4


def test_a_chunk_ends_where_it_weighs_enough() -> None:
    """Items and results may become heavy all of a sudden."""
    assert next_of(running(STREAMED)).most_bytes == CHUNK_BYTES
    assert next_of(running(PROCESSES)).most_bytes == 8 * MB
    assert 8 * MB < next_of(running(PROCESSES, chunksize=1000)).most_bytes <= CHUNK_BYTES


@pytest.mark.parametrize(
    ("held", "items"), [(0, 256), (5 * 64 * 1024, 256), (5 * MB, 27), (CHUNK_BYTES, None)]
)
def test_few_heavy_items_are_measured_together(held: int, items: int | None) -> None:
    """They are held until it is planned what becomes of the others."""
    for weight in ({"items_bytes": held}, {"results_bytes": held}):
        plan = next_of(observed(calls(*[1e-6] * 5, asked_together=False, **weight)))
        assert isinstance(plan, RunChunks) == (items is None)
        if items is not None:
            assert plan == LookFurther(ITEMS_TOGETHER, items)


def test_the_first_chunks_of_heavy_items_are_small() -> None:
    """As is the size that is announced."""
    short = calls(*[1e-6] * 5, items_bytes=5 * MB)
    plan = next_of(observed(short, left=100, indexable=False))
    assert (plan.choice.engine, plan.usual_size) == (SERIAL, 32)


def test_the_planner_knows_no_effects() -> None:
    """It imports nothing that reads a clock, starts a thread, or measures."""
    names = {name for name in vars(planner_module) if not name.startswith("_")}
    assert not names & {"time", "threading", "os", "sys", "read_system", "measure_payload"}
