"""The totals of several processes as those of one program."""

from __future__ import annotations

from bisect import bisect_left

import pytest

from amorsize.exporters import metrics
from amorsize.exporters.metrics import Kind, Metric
from amorsize.exporters.prometheus.merging import Merger
from amorsize.exporters.prometheus.process_file import decode, encode
from amorsize.exporters.series import Exemplar, Histogram, Series, Share, Totals, Value
from amorsize.exporters.totals import LIVE_GAUGES
from amorsize.exporters.user_totals import UserTotals
from amorsize.workers.user_metrics import MAX_NAMES

RUN = ("parse", "process")


def share(metric: Metric, value: Value, *, set_at: float | None = None) -> Share:
    """A share of one series, as another process reads it from the file."""
    labels = tuple("x" for _ in metric.labels)
    times = {} if set_at is None else {metric: {labels: set_at}}
    return decode(encode(Share({metric: {labels: value}}, times)))[0]


def merged(*shares: tuple[Share, bool]) -> Series:
    merger = Merger()
    for each, is_running in shares:
        merger.add(each, is_running=is_running)
    return merger.share().series


def of(series: Series, metric: Metric) -> Value:
    """The value of the one series of a metric."""
    (row,) = [row for row in series if row.prometheus == metric.prometheus]
    ((_, value),) = series[row].items()
    return value


@pytest.mark.parametrize(
    "metric",
    [each for each in metrics.METRICS if each.kind is Kind.COUNTER],
    ids=lambda m: m.dotted,
)
def test_counters_of_the_dead_are_kept(metric: Metric) -> None:
    """A sum that falls is a restart to Prometheus, and counts as growth."""
    series = merged((share(metric, 3), False), (share(metric, 4), True))
    assert of(series, metric) == 7


@pytest.mark.parametrize("metric", LIVE_GAUGES, ids=lambda m: m.dotted)
def test_gauges_of_executions_in_progress_go_with_their_process(metric: Metric) -> None:
    """And are 0, not absent, when there is none."""
    assert of(merged((share(metric, 3), True), (share(metric, 4), True)), metric) == 7
    assert of(merged((share(metric, 3), False), (share(metric, 4), True)), metric) == 4
    assert of(merged((share(metric, 3), False)), metric) == 0


SET = [
    each
    for each in metrics.METRICS
    if each.kind is Kind.GAUGE and each not in (*LIVE_GAUGES, metrics.HOOK_LONGEST)
]


@pytest.mark.parametrize("metric", SET, ids=lambda m: m.dotted)
@pytest.mark.parametrize("is_running", [True, False])
def test_the_gauge_that_was_set_last_is_the_programs(metric: Metric, is_running: bool) -> None:
    """In whichever order the processes are read, and after its process has ended."""
    first, last = share(metric, 9, set_at=100.0), share(metric, 2, set_at=101.0)
    assert of(merged((first, True), (last, is_running)), metric) == 2
    assert of(merged((last, is_running), (first, True)), metric) == 2


def test_a_gauge_that_was_removed_last_is_absent() -> None:
    """The last execution has none, so an older one of another process is not shown."""
    row = metrics.MEASURED_SPEEDUP
    totals = Totals()
    totals.set(row, ("parse",), 3.0)
    older = Share(totals.copy(), {row: {("parse",): 100.0}})
    totals.set(row, ("parse",), None)
    assert totals.set_times()[row][("parse",)] > 100.0
    removed = decode(encode(Share(totals.copy(), {row: {("parse",): 101.0}})))[0]
    newer = Share(older.series, {row: {("parse",): 102.0}})
    for order in ([older, removed], [removed, older]):
        assert merged(*((each, True) for each in order))[row] == {}
        assert merged(*((each, False) for each in (*order, newer)))[row] == {("parse",): 3.0}


def longest(last: float | None, in_progress: float | None, *, set_at: float) -> Share:
    row = metrics.LONGEST_CHUNK
    values: dict[tuple[str, ...], Value] = {} if last is None else {RUN: last}
    series: Series = {row: values}
    share = Share(series, {row: {RUN: set_at}} if values else {})
    if in_progress is not None:
        share.longest[RUN] = in_progress
    return decode(encode(share))[0]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((longest(9.0, None, set_at=1.0), True), (longest(2.0, None, set_at=2.0), True), 2.0),
        ((longest(9.0, 3.0, set_at=1.0), True), (longest(2.0, None, set_at=2.0), True), 3.0),
        ((longest(9.0, 3.0, set_at=1.0), False), (longest(2.0, None, set_at=2.0), True), 2.0),
        ((longest(None, 3.0, set_at=1.0), True), (longest(None, 5.0, set_at=2.0), True), 5.0),
        ((longest(None, 1.0, set_at=1.0), True), (longest(2.0, None, set_at=2.0), False), 2.0),
    ],
    ids=["the last", "in progress", "of a dead process", "two in progress", "the last is longer"],
)
def test_the_longest_chunk_is_of_the_last_execution_and_of_those_in_progress(
    first: tuple[Share, bool], second: tuple[Share, bool], expected: float
) -> None:
    """In whichever processes they are."""
    for order in ([first, second], [second, first]):
        merger = Merger()
        for each, is_running in order:
            merger.add(each, is_running=is_running)
        shown = merger.share().shown()[metrics.LONGEST_CHUNK]
        assert shown == {RUN: expected}


def test_the_longest_hook_is_that_of_all() -> None:
    """No event sets it: it is read from the managers."""
    metric = metrics.HOOK_LONGEST
    assert of(merged((share(metric, 0.5), False), (share(metric, 0.2), True)), metric) == 0.5


def test_a_program_counts_since_its_first_process() -> None:
    """Its counters are those of all, also of those that have ended."""
    metric = metrics.COUNTING_SINCE
    first, last = share(metric, 100.0), share(metric, 200.0)
    for order in ([(first, False), (last, True)], [(last, True), (first, False)]):
        assert of(merged(*order), metric) == 100.0


def test_information_is_that_of_the_living() -> None:
    """After an upgrade the old version goes with the last process that runs it."""
    row = metrics.BUILD_INFO
    old = Share({row: {("1.0", "3.11"): 1}}, {})
    new = Share({row: {("2.0", "3.11"): 1}}, {})
    assert merged((old, True), (new, True), (new, True))[row] == {
        ("1.0", "3.11"): 1,
        ("2.0", "3.11"): 1,
    }
    assert merged((old, False), (new, True))[row] == {("2.0", "3.11"): 1}


def test_histograms_add_up_with_the_last_exemplars() -> None:
    """Bucket by bucket; neither share changes."""
    row = metrics.CHUNK_DURATION
    shares = []
    for seconds, timestamp in ((0.02, 10.0), (0.02, 20.0), (9.0, 5.0)):
        totals = Totals()
        exemplar = Exemplar({"trace_id": f"{timestamp:.0f}"}, seconds, timestamp)
        totals.observe(row, RUN, seconds, exemplar)
        totals.observe(row, RUN, 0.2)
        shares.append(decode(encode(Share(totals.copy(), {})))[0])
    for order in (shares, shares[::-1]):
        value = merged(*((each, False) for each in order))[row][RUN]
        assert isinstance(value, Histogram)
        assert sum(value.counts) == 6
        assert value.total == pytest.approx(9.64)
        assert value.exemplars is not None
        found = {bucket: each.labels["trace_id"] for bucket, each in value.exemplars.items()}
        assert found == {bisect_left(row.buckets, 0.02): "20", bisect_left(row.buckets, 9.0): "5"}
    kept = shares[0].series[row][RUN]
    assert isinstance(kept, Histogram)
    assert sum(kept.counts) == 2


def test_gauges_remember_when_they_were_set() -> None:
    """Those of events by the clock of this process, those of functions by the worker's."""
    totals, user = Totals(), UserTotals()
    totals.set(metrics.LAST_ITEMS, ("parse",), 3)
    assert totals.set_times()[metrics.LAST_ITEMS][("parse",)] > 1e9
    gauge = {"kind": "gauge", "help": None, "calls": 1, "value": 7, "time": 12.5}
    counter = {"kind": "counter", "help": None, "calls": 1, "value": 7}
    user.add(RUN, {"user_metrics": {"model": gauge, "rows": counter}})
    times = {row.prometheus: times for row, times in user.set_times().items()}
    assert times == {"amorsize_user_model": {RUN: 12.5}, "amorsize_user_rows_total": {}}


# --- limits and differences ----


def test_names_stay_within_the_limit_of_one_process() -> None:
    """Recycled workers bring names without end; the first ones stay, and nothing is lost."""
    row, limit = metrics.ITEMS_PROCESSED, metrics.LABEL_LIMITS["function"]
    merger = Merger()
    for process in range(3):
        names = [f"request-{process}-{number}" for number in range(limit)]
        merger.add(Share({row: {(name, "serial"): 2 for name in names}}, {}), is_running=False)
    values = merger.share().series[row]
    assert len(values) == limit + 1
    assert values["request-0-0", "serial"] == 2
    assert values[metrics.OTHER, "serial"] == 2 * limit * 2


def user_row(name: str, kind: Kind = Kind.COUNTER, help: str = "Own") -> Metric:
    return Metric(
        prometheus=f"amorsize_user_{name}",
        dotted=f"amorsize.user.{name}",
        kind=kind,
        help=help,
        labels=("function", "executor"),
    )


def test_the_users_own_metrics_add_up_by_name() -> None:
    """Each process has a row of its own for a name."""
    shares = [share(user_row("rows_total"), 3), share(user_row("rows_total"), 4)]
    assert of(merged(*((each, True) for each in shares)), user_row("rows_total")) == 7


def test_names_of_the_users_own_metrics_stay_within_the_limit_of_one_process() -> None:
    """The first ones stay."""
    names = [f"n{number}_total" for number in range(MAX_NAMES + 5)]
    series = merged(*((share(user_row(name), 1), True) for name in names))
    assert [row.prometheus for row in series] == [
        user_row(name).prometheus for name in names[:MAX_NAMES]
    ]


def test_a_name_of_two_kinds_has_the_first() -> None:
    """As within one process."""
    counter, gauge = share(user_row("size"), 3), share(user_row("size", Kind.GAUGE), 4, set_at=1.0)
    assert of(merged((counter, True), (gauge, True)), user_row("size")) == 3


def test_a_row_that_this_version_knows_otherwise_is_left_out() -> None:
    """The processes of a server may be of two versions while it is upgraded."""
    known = metrics.CHUNK_QUEUE
    other = Metric(
        prometheus=known.prometheus,
        dotted=known.dotted,
        kind=known.kind,
        help=known.help,
        labels=known.labels,
        buckets=(1.0, 2.0),
    )
    gone = Metric(prometheus="amorsize_gone", dotted="", kind=Kind.GAUGE, help="", labels=())
    assert share(other, Histogram(2)).series == {}
    assert share(gone, 1).series == {}
    assert list(share(known, Histogram(len(known.buckets))).series) == [known]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"7",
        b"null",
        b"[]",
        b"{}",
        b'{"format": 2, "metrics": [], "longest": []}',
        b'{"format": 1, "longest": []}',
        b'{"format": 1, "metrics": [], "longest": 1}',
        b'{"format": 1, "metrics": [{}], "longest": []}',
        b'{"format": 1, "metrics": [{"name": "x", "kind": "y"}], "longest": []}',
        b"\xff\xfe",
        encode(share(metrics.WORKER_DEATHS, 1))[:-9],
    ],
)
def test_what_is_no_share_is_a_value_error(content: bytes) -> None:
    """Whatever it is, and nothing of it is run."""
    with pytest.raises(ValueError):
        decode(content)


def test_further_values_stand_beside_a_share() -> None:
    """They are how a process says that it has closed."""
    read, further = decode(encode(Share({}, {}), closed=True, included=["a"]))
    assert (read.series, further["closed"], further["included"]) == ({}, True, ["a"])
