"""The tests' own parser of DogStatsD takes what the format allows, and nothing else."""

from __future__ import annotations

import pytest

from ..dogstatsd import BadDatagram, Check, Event, Metric, parse

GOOD = {
    b"page.views:1|c": Metric("page.views", (1.0,), "c"),
    b"fuel.level:0.5|g": Metric("fuel.level", (0.5,), "g"),
    b"song:240:1e-05|h|@0.5": Metric("song", (240.0, 1e-05), "h", 0.5),
    "a.b:3|d|#env:dev,größe\n".encode(): Metric("a.b", (3.0,), "d", 1.0, ("env:dev", "größe")),
    b"users:-1|c|@0.5|#country:china": Metric("users", (-1.0,), "c", 0.5, ("country:china",)),
    b"a:1|g|c:83c0a99c|T1656581400": Metric("a", (1.0,), "g", 1.0, (), 1656581400, "83c0a99c"),
    "_e{5,9}:größ|a\\n|\\nb#,|t:error|k:x|#a:b".encode().replace(b"{5,9}", b"{6,9}"): Event(
        "größ", "a\n|\nb#,", ("a:b",), {"t": "error", "k": "x"}
    ),
    b"_sc|Redis.up|2|#env:dev|m:gone": Check("Redis.up", 2, ("env:dev",), "gone"),
}

BAD = [
    b"",
    b"a:1|c\n\nb:1|c",
    b"a",
    b"a:1",
    b":1|c",
    b"1a:1|c",
    "größe:1|c".encode(),
    b"a b:1|c",
    b"a:|c",
    b"a:one|c",
    b"a:nan|g",
    b"a:1_000|g",
    b"a:1|x",
    b"a:1|",
    b"a:1:2|c",
    b"a:1|c|",
    b"a:1|c|@2",
    b"a:1|c|@0",
    b"a:1|c|#",
    b"a:1|c|#a,",
    b"a:1|c|#a b",
    b"a:1|c|#1a",
    b"a:1|c|#a:",
    b"a:1|c|#a|#b",
    b"a:1|d|T1656581400",
    b"a:1|g|Tnow",
    b"a:1|c|z",
    b"a:1|c|card:huge",
    b"a:1|c\r",
    b"a:1|c|#" + b"x" * 201,
    b"\xff:1|c",
    b"_e:a|b",
    b"_e{1,1}:a",
    b"_e{1,1}:ab|c",
    b"_e{1,1}:a|bc",
    b"_e{0,1}:|b",
    "_e{1,2}:ß|b".encode(),
    "_e{2,1}:ß|ß".encode(),
    b"_e{1,1}:a|b|t:fatal",
    b"_e{1,1}:a|b|d:now",
    b"_e{1,1}:a|b|p:high",
    b"_e{1,1}:a|b|m:c",
    b"_sc|a",
    b"_sc|a|4",
    b"_sc|a|OK",
    b"_sc|a b|0",
    b"_sc|a|0|m:b|#c:d",
    b"_sc|a|0|m:b|c",
]


@pytest.mark.parametrize(("datagram", "message"), GOOD.items(), ids=lambda each: str(each)[:40])
def test_a_good_datagram(datagram: bytes, message: object) -> None:
    """As the examples of the specification."""
    assert parse(datagram) == [message]


def test_a_datagram_of_several_messages() -> None:
    """A line each, with or without a line end after the last."""
    assert [type(each) for each in parse(b"a:1|c\n_sc|a|0\n_e{1,1}:a|b\n")] == [
        Metric,
        Check,
        Event,
    ]


@pytest.mark.parametrize("datagram", BAD, ids=repr)
def test_a_bad_datagram(datagram: bytes) -> None:
    """What an agent would drop, or guess at."""
    with pytest.raises(BadDatagram):
        parse(datagram)
