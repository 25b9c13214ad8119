"""The seven events, and the fields of a context."""

from __future__ import annotations

import dataclasses
import pickle
import time

import pytest

from amorsize import HookContext, HookEvent

DEFAULTS = {
    "n_jobs": 0,
    "chunksize": 0,
    "total_items": None,
    "items_completed": 0,
    "items_remaining": 0,
    "percent_complete": 0.0,
    "elapsed_time": 0.0,
    "estimated_time_remaining": 0.0,
    "throughput_items_per_sec": 0.0,
    "avg_item_time": 0.0,
    "worker_id": None,
    "worker_count": 0,
    "chunk_id": None,
    "chunk_size": None,
    "chunk_time": 0.0,
    "error": None,
    "error_message": None,
    "error_traceback": None,
    "results_count": 0,
    "results_size_bytes": 0,
    "metadata": {},
}


def test_there_are_seven_events_and_their_values_are_their_names_in_lower_case() -> None:
    """The events and the strings that stand for them are part of the contract."""
    assert {event.name: event.value for event in HookEvent} == {
        "PRE_EXECUTE": "pre_execute",
        "ON_WORKER_START": "on_worker_start",
        "ON_CHUNK_COMPLETE": "on_chunk_complete",
        "ON_PROGRESS": "on_progress",
        "ON_ERROR": "on_error",
        "ON_WORKER_END": "on_worker_end",
        "POST_EXECUTE": "post_execute",
    }


@pytest.mark.parametrize("event", HookEvent, ids=str)
def test_an_event_is_its_string(event: HookEvent) -> None:
    """An event prints, compares and looks up as its value."""
    assert f"{event}" == event.value == event
    assert HookEvent(event.value) is event


def test_the_fields_of_a_context_come_in_the_order_of_the_contract() -> None:
    """Positional use and repr depend on the order, event and timestamp first."""
    names = [field.name for field in dataclasses.fields(HookContext)]
    assert names == ["event", "timestamp", *DEFAULTS]


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items(), ids=DEFAULTS)
def test_a_field_that_is_not_given_has_its_default(name: str, default: object) -> None:
    """Each default has the value, and the type, that the contract names."""
    value = getattr(HookContext(HookEvent.ON_PROGRESS), name)
    assert value == default
    assert type(value) is type(default)


def test_only_the_event_is_required() -> None:
    """A context without an event says nothing, so it is refused."""
    with pytest.raises(TypeError, match="event"):
        HookContext()  # type: ignore[call-arg]


def test_the_timestamp_is_the_epoch_time_at_which_the_context_was_built() -> None:
    """It is filled in when it is not given."""
    before = time.time()
    context = HookContext(HookEvent.PRE_EXECUTE)
    assert before <= context.timestamp <= time.time()


def test_contexts_do_not_share_their_metadata() -> None:
    """What one hook finds in one context is not written to by another event."""
    first, second = HookContext(HookEvent.ON_ERROR), HookContext(HookEvent.ON_ERROR)
    first.metadata["key"] = "value"
    assert second.metadata == {}


def test_a_context_is_slotted_and_not_frozen() -> None:
    """Slots keep it cheap; freezing it would cost seven times as much to build."""
    context = HookContext(HookEvent.ON_PROGRESS)
    assert not hasattr(context, "__dict__")
    context.items_completed = 3
    assert context.items_completed == 3
    with pytest.raises(AttributeError):
        context.items_done = 3  # type: ignore[attr-defined]


def test_a_context_survives_pickling() -> None:
    """A context can be sent elsewhere or written down, and comes back equal."""
    context = HookContext(HookEvent.ON_CHUNK_COMPLETE, chunk_id=1, metadata={"chunk_start": 7})
    assert pickle.loads(pickle.dumps(context)) == context


def test_contexts_are_equal_where_all_their_fields_are() -> None:
    """As those of any dataclass are, the timestamp among them."""
    context = HookContext(HookEvent.ON_CHUNK_COMPLETE, chunk_id=1, metadata={"chunk_start": 7})
    assert dataclasses.replace(context) == context
    assert dataclasses.replace(context, metadata={"chunk_start": 8}) != context
    assert context != context.event


def test_a_context_shows_all_its_fields() -> None:
    """Also one that a hook has put into its own metadata."""
    context = HookContext(HookEvent.PRE_EXECUTE, 1.5)
    context.metadata["self"] = context
    text = repr(context)
    assert text.startswith(f"HookContext(event={HookEvent.PRE_EXECUTE!r}, timestamp=1.5, n_jobs=0,")
    assert text.endswith("results_size_bytes=0, metadata={'self': ...})")
