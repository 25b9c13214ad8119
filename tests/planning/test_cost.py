"""The arithmetic of the choice: no clock, no machine, only numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize.planning import cost
from amorsize.planning.chunk_sizes import MOST_FIRST_ITEMS
from amorsize.planning.cost import Comparison, compare, effective_cores
from amorsize.planning.machine import PRIORS, SystemFacts
from amorsize.planning.observations import Sample
from amorsize.planning.pickling import Payload
from amorsize.planning.workload import STREAM_ITEMS, Workload, describe

FOUR = SystemFacts.of(4, total_bytes=16 << 30, available_bytes=8 << 30)
SMALL = Payload(function_bytes=300, item_bytes=10, item_seconds=1e-6, result_bytes=10)


def work(seconds: float, remaining: int = 10_000, **others: Any) -> Workload:
    """A function that computes under the GIL, unless stated otherwise."""
    facts: dict[str, Any] = {
        "total": remaining + 5,
        "sampled": 5,
        "remaining": remaining,
        "sample_seconds": 5 * seconds,
        "item_seconds": seconds,
        "cpu_seconds": seconds,
        "gil_seconds": seconds,
        "payload": SMALL,
    }
    return Workload(**{**facts, **others})


def waiting(seconds: float, cpu: float, remaining: int = 10_000, **others: Any) -> Workload:
    return work(
        seconds,
        remaining,
        cpu_seconds=cpu,
        gil_seconds=cpu,
        wait_seconds=seconds - cpu,
        **others,
    )


def plan(workload: Workload, system: SystemFacts = FOUR, **others: Any) -> Comparison:
    options: dict[str, Any] = {"target_chunk_duration": 0.2, **others}
    return compare(workload, system, PRIORS, **options)


def test_computing_under_the_gil_gets_a_process_a_core() -> None:
    """Four cores, four workers, nearly four times as fast."""
    chosen = plan(work(0.005)).chosen
    assert (chosen.engine, chosen.n_jobs) == ("process", 4)
    assert 3.5 < chosen.speedup < 4.0
    assert 35 <= chosen.chunksize <= 40  # 0.2 s of 5 ms


def test_releasing_the_gil_gets_threads() -> None:
    """As fast as processes, and nothing is copied."""
    chosen = plan(work(0.005, gil_seconds=0.0, gil_known=True)).chosen
    assert (chosen.engine, chosen.n_jobs) == ("thread", 4)


def test_waiting_gets_many_threads() -> None:
    """Far more than cores, never more than 64, never more than items."""
    assert plan(waiting(0.02, 0.0)).chosen.n_jobs == 64
    assert plan(waiting(0.02, 0.0, remaining=9)).chosen.n_jobs == 9
    assert plan(waiting(0.02, 0.0, remaining=9)).chosen.engine == "thread"


@pytest.mark.parametrize(("cpu", "most"), [(0.002, 20), (0.005, 8)])
def test_threads_only_as_the_computing_share_allows(cpu: float, most: int) -> None:
    """A call of 20 ms with 2 ms under the GIL keeps ten threads busy, and a few in the queue."""
    chosen = plan(waiting(0.02, cpu), SystemFacts.of(2)).chosen
    assert chosen.engine == "thread"
    assert 0.02 / cpu < chosen.n_jobs <= most


def test_too_little_work_is_serial() -> None:
    """Less than starting workers costs, and it says so."""
    result = plan(work(1e-7, remaining=10))
    assert result.chosen.engine == "serial"
    assert (result.chosen.n_jobs, result.chosen.speedup) == (1, 1.0)


def test_warm_workers_make_little_work_worth_dividing() -> None:
    """Twenty calls of 2 ms: not for cold processes, but for warm ones."""
    assert plan(work(0.002, remaining=20)).chosen.engine == "serial"
    assert plan(work(0.002, remaining=20), warm_workers=4).chosen.engine == "process"


def test_parallel_inside_stays_serial() -> None:
    """All cores are in use by one call."""
    result = plan(work(0.05, inner_parallelism=3.8))
    assert result.chosen.engine == "serial"
    assert all("3.8 cores" in str(c.problem) for c in result.candidates[1:])


def test_payload_dearer_than_computing_stays_inside() -> None:
    """8 MB to pickle for 1 ms of work."""
    heavy = Payload(item_bytes=8 << 20, item_seconds=4e-3, result_bytes=10)
    assert plan(work(0.001, payload=heavy)).chosen.engine == "serial"
    free = work(0.001, gil_seconds=0.0, gil_known=True, payload=heavy)
    assert plan(free).chosen.engine == "thread"


def test_unpicklable_is_never_for_processes() -> None:
    """Not even with a number of workers given."""
    problem = Payload(problem="the function cannot be pickled")
    assert plan(work(0.01, payload=problem)).chosen.engine == "serial"
    assert plan(work(0.01, payload=problem), n_jobs=4).chosen.engine == "thread"


def test_memory_holds_fewer_workers() -> None:
    """Each call was seen to need 1 GB, and 3 GB are left."""
    tight = FOUR._replace(available_bytes=3 << 30)
    chosen = plan(work(0.05, working_bytes=1 << 30), tight).chosen
    assert (chosen.engine, chosen.n_jobs, chosen.wanted_jobs) == ("process", 2, 4)


def test_memory_for_no_worker_is_serial() -> None:
    """Nothing but the caller itself fits."""
    tight = FOUR._replace(available_bytes=1 << 20)
    result = plan(work(0.05, payload=SMALL._replace(function_bytes=50 << 20)), tight)
    assert result.chosen.engine == "serial"
    assert result.candidates[-1].problem == cost.NO_MEMORY


def test_unknown_memory_limits_nothing() -> None:
    """What was not read is not used."""
    assert plan(work(0.05), SystemFacts.of(4)).chosen.n_jobs == 4


def test_one_core_does_not_compute_in_parallel() -> None:
    """But waiting needs no core."""
    assert plan(work(0.05), SystemFacts.of(1)).chosen.engine == "serial"
    assert plan(waiting(0.05, 1e-5), SystemFacts.of(1)).chosen.engine == "thread"


@pytest.mark.parametrize("n_jobs", [2, 3, 16])
def test_given_workers_are_honoured(n_jobs: int) -> None:
    """The engine is chosen for just so many, whatever is predicted."""
    assert plan(work(0.005), n_jobs=n_jobs).chosen.n_jobs == n_jobs
    tiny = plan(work(1e-7, remaining=10), n_jobs=n_jobs).chosen
    assert (tiny.engine, tiny.n_jobs) == ("thread", n_jobs)


def test_given_chunksize_is_honoured() -> None:
    """Exactly, even beyond the number of items."""
    assert plan(work(0.005), chunksize=7).chosen.chunksize == 7
    assert plan(work(1e-7, remaining=3), chunksize=1000).chosen.chunksize == 1000
    huge = plan(work(0.005, remaining=100), chunksize=100, n_jobs=4)
    assert huge.chosen.seconds > 0.5  # all of it falls to one worker


def test_only_what_is_allowed() -> None:
    """Where processes may not be used, threads or nothing."""
    assert plan(work(0.005), allowed=("serial",)).chosen.engine == "serial"
    assert plan(work(0.005), allowed=("serial", "thread")).chosen.engine == "serial"


def test_chunks_leave_slack_at_the_end() -> None:
    """Each worker gets sixteen chunks, if they are not too short, and four at least."""
    assert plan(work(0.005, remaining=160)).chosen.chunksize == 2
    warm = plan(work(0.001, remaining=32), warm_workers=4)
    assert (warm.chosen.engine, warm.chosen.chunksize) == ("process", 2)
    assert plan(work(0.5, remaining=160)).chosen.chunksize == 1
    assert plan(work(0.0, remaining=10**9)).chosen.chunksize == MOST_FIRST_ITEMS


def test_chunks_of_large_items_are_small() -> None:
    """8 MB of items and results a chunk, whatever its duration."""
    large = SMALL._replace(item_bytes=1 << 20, result_bytes=1 << 20)
    assert plan(work(0.01, payload=large)).chosen.chunksize == 4
    larger = SMALL._replace(item_bytes=80 << 20)
    assert plan(work(10.0, payload=larger)).chosen.chunksize == 1


def test_slow_input_limits_the_gain() -> None:
    """What the input takes, no executor divides: Amdahl's law."""
    chosen = plan(work(0.01, input_seconds=0.01)).chosen
    assert chosen.speedup <= 2.0


def test_equal_engines_take_fewer_workers() -> None:
    """Nothing is gained by a worker that the input keeps waiting."""
    chosen = plan(waiting(0.01, 0.0, input_seconds=0.005)).chosen
    assert chosen.n_jobs <= 4


def test_hyperthreads_and_quota() -> None:
    """The second thread of a core adds 0.3, a quota caps it all."""
    facts = SystemFacts.of(8, physical_cores=4)
    assert effective_cores(facts, 4) == 4.0
    assert effective_cores(facts, 6) == pytest.approx(4.6)
    assert effective_cores(facts, 100) == pytest.approx(5.2)
    assert effective_cores(facts._replace(quota_cores=2.5), 8) == 2.5


def test_half_a_core_gains_nothing() -> None:
    """Workers cannot exceed the quota together."""
    assert plan(work(0.01), SystemFacts.of(4, quota_cores=1.0)).chosen.engine == "serial"


def sample(seconds: list[float], **others: Any) -> Sample:
    facts: dict[str, Any] = {
        "taken": len(seconds),
        "item_seconds": seconds,
        "seconds": sum(seconds),
        "cpu_seconds": sum(seconds),
        "process_cpu_seconds": sum(seconds),
        "input_seconds": [1e-7] * len(seconds),
    }
    return Sample(**{**facts, **others})


def but(base: Sample, **facts: Any) -> Sample:
    """A sample with some facts replaced."""
    return base._replace(**facts)


def test_describe_plain() -> None:
    """Mean time, all of it under the GIL where nothing is known."""
    workload = describe(sample([0.01, 0.02, 0.03]), 100)
    assert workload.item_seconds == pytest.approx(0.02)
    assert workload.gil_seconds == pytest.approx(0.02)
    assert (workload.remaining, workload.sampled, workload.waits) == (97, 3, False)
    assert describe(sample([0.01]), 100, again=True).remaining == 100


def test_describe_leaves_out_a_warm_up() -> None:
    """A first call that imports a package says nothing about the others."""
    assert describe(sample([0.5, 0.001, 0.001]), 100).item_seconds == pytest.approx(0.001)
    assert describe(sample([0.5, 0.001]), 100).item_seconds > 0.2


def test_describe_waiting() -> None:
    """Low CPU share, and the CPU was given up by itself."""
    waits = sample([0.01] * 3, cpu_seconds=0.003, voluntary_switches=3)
    assert describe(waits, 100).wait_seconds == pytest.approx(0.009)
    assert describe(but(waits, voluntary_switches=None), 100).waits


@pytest.mark.parametrize(
    ("calls", "waits", "sure"),
    [
        ([0.01], False, False),
        ([0.01], True, False),
        ([0.01, 0.012], True, True),
        ([0.1, 0.01], True, False),
        ([0.1, 0.01], False, True),
        ([0.5, 0.01, 0.01], True, True),
        ([0.5, 0.01], True, False),
    ],
    ids=["one", "one waits", "alike", "not alike", "compute", "warm-up", "warm-up and one"],
)
def test_what_a_sample_says_for_sure(calls: list[float], waits: bool, sure: bool) -> None:
    """Not by a single call; nor how long others wait, where two waited for unlike times."""
    share = 0.3 if waits else 1.0
    taken = sample(calls, cpu_seconds=share * sum(calls), voluntary_switches=9)
    workload = describe(taken, 100)
    assert (workload.waits, workload.is_sure) == (waits, sure)


@pytest.mark.parametrize(
    "facts",
    [
        {"voluntary_switches": 1},
        {"voluntary_switches": 30, "gil_share": 0.04},
        {"voluntary_switches": 3, "involuntary_switches": 40},
    ],
)
def test_a_busy_machine_is_no_waiting(facts: dict[str, Any]) -> None:
    """The CPU was taken away, or the GIL was fought for."""
    assert not describe(sample([0.01] * 3, cpu_seconds=0.015, **facts), 100).waits


def test_who_hardly_computes_waits_on_a_busy_machine_too() -> None:
    """What computes keeps more of a CPU than this, however often that is taken away."""
    busy = {"voluntary_switches": 3, "involuntary_switches": 40, "gil_share": 0.6}
    assert describe(sample([0.019] * 3, cpu_seconds=0.011, **busy), 100).waits
    assert not describe(sample([0.019] * 3, cpu_seconds=0.03, **busy), 100).waits


def test_a_call_that_stood_in_the_queue_for_a_cpu_did_not_wait() -> None:
    """Of a call in progress the scheduler's word stands for the context switches."""
    taken = sample(
        [0.01], cpu_seconds=0.006, gil_share=0.35, voluntary_switches=None, queued_seconds=0.004
    )
    workload = describe(taken, 2)
    assert not workload.waits
    assert workload.queued_share == pytest.approx(0.4)
    assert describe(but(taken, queued_seconds=0.0), 2).waits


def test_a_call_is_as_long_as_it_would_be_alone() -> None:
    """The time in the queue for a CPU is no part of it."""
    queued = sample([0.1], cpu_seconds=0.02, gil_share=0.01, queued_seconds=0.3)
    workload = describe(queued, 10)
    assert workload.item_seconds == pytest.approx(0.02)
    assert workload.busy_item_seconds == pytest.approx(0.1)
    assert not workload.waits
    half = describe(but(queued, queued_seconds=0.05, voluntary_switches=2, gil_share=0.6), 10)
    assert half.item_seconds == pytest.approx(0.05)
    assert half.wait_seconds == pytest.approx(0.03)


def test_who_waits_for_those_that_look_at_it_does_not_wait() -> None:
    """On a busy machine a thread may hold the GIL and have no CPU."""
    taken = sample(
        [0.366], cpu_seconds=0.22, gil_share=0.4, voluntary_switches=None, queued_seconds=0.006
    )
    assert describe(taken, 10).waits
    workload = describe(but(taken, looks_seconds=0.12), 10)
    assert not workload.waits
    assert workload.item_seconds == pytest.approx(0.24)
    waiting = but(taken, cpu_seconds=0.001, looks_seconds=0.35)
    assert describe(waiting, 10).waits


@pytest.mark.parametrize(("share", "released"), [(0.04, False), (0.32, True), (0.7, True)])
def test_describe_gil(share: float, released: bool) -> None:
    """The measured shares of facts on an idle and on a busy machine."""
    assert describe(sample([0.02] * 3, gil_share=share), 100).releases_gil is released


def test_describe_parallel_inside() -> None:
    """More CPU time than wall time."""
    assert describe(sample([0.02], process_cpu_seconds=0.05), 10).parallel_inside
    assert not describe(sample([1e-6], process_cpu_seconds=1e-4), 10).parallel_inside


def test_describe_stream_and_its_end() -> None:
    """An unknown length is taken for long, unless the sample saw the end."""
    assert describe(sample([0.001]), None).remaining == 10_000
    assert describe(sample([10.0]), None).remaining == STREAM_ITEMS
    assert describe(sample([0.001], exhausted=True), None).remaining == 0


def test_describe_nothing() -> None:
    """An empty input is serial and done."""
    workload = describe(Sample(exhausted=True), None)
    assert (workload.remaining, workload.serial_seconds) == (0, 0.0)
    assert plan(workload).chosen.engine == "serial"


@given(
    seconds=st.floats(0, 100),
    remaining=st.integers(0, 10**7),
    cores=st.integers(1, 200),
    cpu=st.floats(0, 1),
    gil=st.floats(0, 1),
    input_seconds=st.floats(0, 1),
    item_bytes=st.integers(0, 1 << 40),
    n_jobs=st.none() | st.integers(1, 500),
    available=st.none() | st.integers(0, 1 << 40),
)
def test_any_facts_give_a_plan_that_can_run(
    seconds: float,
    remaining: int,
    cores: int,
    cpu: float,
    gil: float,
    input_seconds: float,
    item_bytes: int,
    n_jobs: int | None,
    available: int | None,
) -> None:
    """Bounds hold whatever the facts, and a free choice is never predicted to lose."""
    workload = work(
        seconds,
        remaining,
        cpu_seconds=seconds * cpu,
        gil_seconds=seconds * cpu * gil,
        wait_seconds=seconds * (1 - cpu) if cpu < 0.8 else 0.0,
        input_seconds=input_seconds,
        payload=Payload(item_bytes=item_bytes, item_seconds=item_bytes / 1e9),
    )
    system = SystemFacts.of(cores, total_bytes=available, available_bytes=available)
    result = plan(workload, system, n_jobs=n_jobs)
    chosen = result.chosen
    assert chosen.chunksize >= 1
    assert chosen.speedup >= 0
    if n_jobs is not None:
        assert chosen.n_jobs == n_jobs
        return
    assert 1 <= chosen.n_jobs <= max(cost.MAX_THREADS, cores)
    assert chosen.n_jobs == 1 or chosen.n_jobs <= remaining
    assert chosen.seconds <= result.candidates[0].seconds
    if chosen.engine == "serial":
        assert chosen.speedup == 1.0
    else:
        assert chosen.speedup > 1.0
