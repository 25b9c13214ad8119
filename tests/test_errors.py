"""The exception tree, its messages, and its way through pickle."""

from __future__ import annotations

import inspect
import pickle
import re
import signal

import pytest

from amorsize import errors
from amorsize.errors import (
    AmorsizeError,
    MissingExtraError,
    UnpicklableItemError,
    WorkerDiedError,
    describe_exit,
)

CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, AmorsizeError)
]

SAMPLES: list[AmorsizeError] = [
    MissingExtraError("enable_prometheus()", "prometheus_client", "prometheus"),
    UnpicklableItemError(3, "generator", "TypeError: cannot pickle"),
    WorkerDiedError(pid=7, exit_code=-9, chunk_id=2, item_index=5, detail="while it slept"),
    *(
        each("what happened")
        for each in CLASSES
        if each not in (MissingExtraError, UnpicklableItemError, WorkerDiedError)
    ),
]


def drawn_tree() -> dict[str, tuple[str | None, str | None]]:
    """Read the tree in the module's docstring: class -> (parent, second parent)."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)(\w+Error)(?: \((\w+)\))?", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        del above[depth:]
        tree[found[2]] = (above[-1] if above else None, found[3])
        above.append(found[2])
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    """Readers trust the drawing, so it has every class at its place."""
    actual: dict[str, tuple[str | None, str | None]] = {}
    for each in CLASSES:
        names = [base.__name__ for base in each.__bases__]
        actual[each.__name__] = (names[0], names[1] if len(names) > 1 else None)
    actual["AmorsizeError"] = (None, None)
    assert drawn_tree() == actual


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_says_in_its_docstring_when_it_is_raised(kind: type[AmorsizeError]) -> None:
    """A docstring of its own, not an inherited one."""
    assert kind.__doc__
    assert all(kind.__doc__ != base.__doc__ for base in kind.__bases__)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: AmorsizeError) -> None:
    """Type, message and attributes: errors cross process borders."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_missing_extra_names_the_package_and_the_command() -> None:
    """One error says what is missing and how to install it."""
    error = MissingExtraError("progress=True", "tqdm", "progress")
    assert str(error) == (
        "progress=True needs the package 'tqdm', which is not installed. "
        "Install it with: pip install 'amorsize[progress]'"
    )
    assert (error.feature, error.package, error.extra) == ("progress=True", "tqdm", "progress")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "worker process 7 was killed by signal 9 (SIGKILL). The kernel does so"),
        (
            {"chunk_id": 2},
            "in chunk 2. The kernel does so when memory is short. Its results of that chunk are "
            "lost. Do",
        ),
        ({"chunk_id": 2, "item_index": 5}, "(SIGKILL) on item 5 in chunk 2. The"),
        ({"detail": "while it slept"}, "(SIGKILL) (while it slept). The kernel"),
    ],
    ids=["alone", "chunk", "item", "detail"],
)
def test_a_dead_worker_is_described_as_far_as_known(
    fields: dict[str, object], message: str
) -> None:
    """Which process, how it ended, what it was at, and what to do."""
    error = WorkerDiedError(pid=7, exit_code=-9, hint="Do this.", **fields)  # type: ignore[arg-type]
    assert message in str(error)
    assert str(error).endswith("Do this.")
    assert (error.pid, error.exit_code) == (7, -9)


def test_an_unpicklable_item_says_which_and_what_to_do() -> None:
    """The index is in the message and in an attribute."""
    error = UnpicklableItemError(3, "generator", "TypeError: cannot pickle")
    assert error.index == 3
    assert str(error).startswith("item 3, a generator, cannot be sent to a worker process")
    assert "executor='thread'" in str(error)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGTERM, "was killed by signal 15 (SIGTERM)"),
        (-200, "was killed by signal 200 (unknown)"),
        (None, "ended, its exit code is unknown,"),
    ],
)
def test_an_exit_code_is_put_in_words(code: int | None, words: str) -> None:
    """Negative codes are signals, as in ``subprocess``."""
    assert describe_exit(code) == words
