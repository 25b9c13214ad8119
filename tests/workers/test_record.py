"""Records: named values without a class that takes time to make."""

from __future__ import annotations

import pickle

import pytest

from amorsize.planning.engine import Engine
from amorsize.workers.record import Record


def test_records_are_equal_where_their_values_and_their_class_are() -> None:
    """As those of a dataclass are, and not as tuples."""

    class Other(Record):
        def __init__(self, type: str, lent: None, workers: None) -> None:
            self.type, self.lent, self.workers = type, lent, workers

    assert Engine("thread") == Engine("thread", None, None)
    assert Engine("thread") != Engine("process")
    assert Engine("thread") != Other("thread", None, None)


def test_a_record_with_other_values_is_another_one() -> None:
    """The one that it was made from stays as it is."""
    engine = Engine("custom", workers=2)
    assert engine._replace(workers=3) == Engine("custom", workers=3)
    assert engine.workers == 2


def test_a_value_that_a_record_does_not_have_is_refused() -> None:
    """A misspelt name says so."""
    with pytest.raises(TypeError, match="worker"):
        Engine("thread")._replace(worker=3)


def test_a_record_shows_its_values() -> None:
    """With the name of its class, as it would be made."""
    assert repr(Engine("thread", workers=2)) == "Engine(type='thread', lent=None, workers=2)"


def test_a_record_survives_pickling() -> None:
    """It comes back equal."""
    assert pickle.loads(pickle.dumps(Engine("thread"))) == Engine("thread")
