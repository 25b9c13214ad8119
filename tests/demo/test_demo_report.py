"""What the demo prints and writes."""

from __future__ import annotations

import json
from dataclasses import replace

import amorsize
from amorsize.demo.report import (
    StageReport,
    format_round,
    format_table,
    promql_totals,
    select_metrics,
    summarise,
    write_json,
)

MEASURE = StageReport(
    name="measure",
    items=734,
    failed=0,
    engine="process",
    n_jobs=2,
    chunksize=12,
    reason="It computes in Python and holds the GIL. " * 4,
    estimated_speedup=1.94,
    measured_speedup=1.87,
    seconds=6.54,
    status="ok",
    finding="A great many functions.",
)
FETCH = replace(MEASURE, name="fetch", failed=18, engine="thread", n_jobs=64, measured_speedup=None)


def test_the_table_fits_into_80_columns_and_says_why():
    """Each row is followed by the reason of its plan and its finding, wrapped."""
    table = format_table([MEASURE, FETCH], width=80)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[0].split()) == (
        "stage items engine n_jobs chunksize estimated measured time status"
    )
    assert " ".join(lines[2].split()) == "measure 734 process 2 12 1.9x 1.9x 6.5 s ok"
    assert lines[3].startswith("    why:    It computes in Python")
    assert "    result: A great many functions." in lines
    [fetch] = [line for line in lines if line.startswith("fetch")]
    assert " ".join(fetch.split()) == "fetch 734 thread 64 12 1.9x - 6.5 s ok"


def test_a_round_is_one_line_with_its_failures():
    """What --forever prints from the second round on."""
    assert format_round(3, [MEASURE, FETCH]) == (
        "Round 3: measure 734 items 6.5 s, fetch 734 items (18 failed) 6.5 s"
    )


def test_totals_are_valid_comparisons_in_promql():
    """A stage's label is its name."""
    assert next(promql_totals([MEASURE])) == (
        'sum(amorsize_items_processed_total{function="measure"}) == 734'
    )


def test_the_lines_of_metrics_are_those_of_the_stages():
    """Other functions, other metrics, comments and zeros are left out."""
    text = """\
# HELP amorsize_executions_total x
amorsize_executions_total{executor="process",function="measure",status="ok"} 1.0
amorsize_executions_total{executor="process",function="measure",status="error"} 0.0
amorsize_executions_total{executor="process",function="mine",status="ok"} 1.0
amorsize_items_processed_total{executor="process",function="measure"} 734.0
amorsize_items_processed_created{executor="process",function="measure"} 1.7e9
amorsize_workers{executor="process",function="measure"} 1.0
"""
    assert select_metrics(text, ["measure", "fetch"]) == [
        'amorsize_executions_total{executor="process",function="measure",status="ok"} 1.0',
        'amorsize_items_processed_total{executor="process",function="measure"} 734.0',
    ]


def test_the_summary_says_what_the_table_says(tmp_path):
    """And is replaced as a whole."""
    path = tmp_path / "summary.json"
    path.write_text("old")
    write_json(
        path,
        summarise([MEASURE], metrics_url="http://x/metrics", files=734, total_bytes=9, rounds=1),
    )
    summary = json.loads(path.read_text())
    assert summary["amorsize"] == amorsize.__version__
    assert summary["metrics_url"] == "http://x/metrics"
    assert (summary["files"], summary["bytes"], summary["rounds"]) == (734, 9, 1)
    [stage] = summary["stages"]
    assert StageReport(**stage) == MEASURE
    assert list(tmp_path.iterdir()) == [path]
