"""Names from the user's program, bounded for whoever shows them."""

from __future__ import annotations

import pytest

from amorsize.workers.names import MAX_CHARACTERS, bounded, cut


@pytest.mark.parametrize("name", ["", "parse", "größe", "x" * MAX_CHARACTERS, "größe\n\t"])
def test_a_short_name_stays_as_it_is(name: str) -> None:
    """Whatever it is made of, as long as it can be encoded."""
    assert bounded(name) == name


@pytest.mark.parametrize("character", ["x", "ß", "😀", "\udcff", '"', "\n"])
def test_a_long_name_keeps_its_beginning(character: str) -> None:
    """And what it became stays as it is, so that it may be bounded where it passes."""
    short = bounded("load:" + character * 100_000)
    assert len(short) <= MAX_CHARACTERS
    assert short.startswith("load:" + bounded(character)[:1])
    assert bounded(short) == short
    short.encode()


def test_long_names_that_differ_stay_different() -> None:
    """At the cut, after it, at their ends, and by their lengths alone."""
    names = [f"{'x' * 1000}{number:04d}{'y' * 1000}" for number in range(1000)]
    names += ["x" * (MAX_CHARACTERS + more) for more in range(1000)]
    assert len({bounded(name) for name in names}) == len(names)


def test_a_cut_keeps_to_any_measure() -> None:
    """Such as bytes; whole characters stay."""
    for room in range(9, 40):
        short = cut("straße" * 10, room, lambda text: len(text.encode()))
        assert room - 1 <= len(short.encode()) <= room
        assert ("straße" * 10).startswith(short[:-9])
