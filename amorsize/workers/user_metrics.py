"""User metrics: counted inside the function, exported by the parent's exporters.

::

    def parse(line):
        if not line.strip():
            amorsize.count("rows_rejected")
        ...

    amorsize.count() ──> MetricsCollector of the chunk in progress ──> ChunkOutcome.extras
                     ──> admit(), in the parent ──> metadata["user_metrics"] ──> hooks, exporters

Calls are added up in the worker, so that a chunk returns a bounded amount: one number per counter,
one per gauge, some forty per histogram, whatever the number of calls.

Imports little: every worker that counts something imports this module.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from bisect import bisect_left
from contextvars import ContextVar, Token
from typing import Any, Final, Literal, TypeAlias, TypedDict

from amorsize.errors import InvalidTypeError, InvalidValueError
from amorsize.workers import in_forked_child
from amorsize.workers.observers import observes_when

logger = logging.getLogger(__name__)

MAX_NAMES = 50
"""Names kept per chunk, and exported per process; calls with further names are dropped."""

MAX_NAME_CHARACTERS = 100
MAX_HELP_CHARACTERS = 200

BUCKETS: Final[tuple[float, ...]] = (
    0.0,
    *(float(f"{digit}e{exponent}") for exponent in range(-6, 9) for digit in (1, 3)),
    1e9,
)
"""Upper bounds of a histogram's buckets: 0, then two per decade from 1e-6 to 1e9. Seconds, bytes
and rows all fit; one more bucket is bounded by infinity."""

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
UserKind: TypeAlias = Literal["counter", "gauge", "histogram"]

_CALLS = {COUNTER: "count", GAUGE: "set_gauge", HISTOGRAM: "observe"}

_RESERVED_ENDS = ("_total", "_count", "_sum", "_bucket", "_created", "_info")
"""Prometheus appends these itself, so a name that ends in one would clash."""

_LARGEST = sys.float_info.max
_EXACT = 2**53
"""Integers up to this are kept as they are; larger ones are floats in every backend."""

_KNOWN_LIMIT = 1000


class Counter(TypedDict):
    """The sum of the ``count()`` calls of a chunk."""

    kind: Literal["counter"]
    help: str | None
    calls: int
    value: float


class Gauge(TypedDict):
    """The last ``set_gauge()`` of a chunk, and its time, in seconds since the epoch."""

    kind: Literal["gauge"]
    help: str | None
    calls: int
    value: float
    time: float


class UserHistogram(TypedDict):
    """The ``observe()`` calls of a chunk; ``buckets`` counts by the bounds of ``BUCKETS``."""

    kind: Literal["histogram"]
    help: str | None
    calls: int
    sum: float
    min: float
    max: float
    buckets: list[int]


UserMetric: TypeAlias = Counter | Gauge | UserHistogram
"""One name's share of a chunk: plain data, ready for JSON."""

UserMetrics: TypeAlias = dict[str, UserMetric]

Collected: TypeAlias = tuple[UserMetrics, int]
"""The metrics of a chunk by name, and how many calls were dropped."""

_current: ContextVar[MetricsCollector | None] = ContextVar("amorsize_user_metrics", default=None)
_kinds: dict[str, UserKind] = {}
_admitted: dict[str, UserKind] = {}
_warned: set[str] = set()
_admission = threading.Lock()


def count(name: str, value: float = 1, *, help: str | None = None) -> None:
    """Add to a counter of your own, inside the function that ``execute()`` runs.

    Works in every mode; does nothing outside an execution, or where nothing observes it. In
    Prometheus the counter is ``amorsize_user_<name>_total``.

    Args:
        name: letters, digits and underscores, not beginning with a digit.
        value: what to add, at least 0; 0 makes the counter appear.
        help: what it counts; the first one given is kept.

    Raises:
        InvalidTypeError, InvalidValueError: the name, the value or the help is not allowed, or
            the name has another kind already. This does not depend on observers.

    Example:
        >>> import amorsize
        >>> def parse(line):
        ...     if not line:
        ...         amorsize.count("rows_rejected", help="Empty lines")
        ...     return line.split(",")
        >>> hooks = amorsize.HookManager()
        >>> _ = hooks.register(
        ...     amorsize.HookEvent.ON_CHUNK_COMPLETE,
        ...     lambda context: print(context.metadata["user_metrics"]["rows_rejected"]["value"]),
        ... )
        >>> amorsize.execute(parse, ["a,b", "", ""], executor="serial", chunksize=3, hooks=hooks)
        2
        [['a', 'b'], [''], ['']]
    """
    try:
        if _kinds.get(name) is not COUNTER:
            _check_name(name, COUNTER)
    except TypeError:  # not even hashable
        _check_name(name, COUNTER)
    if (type(value) is not int and type(value) is not float) or not 0 <= value <= _EXACT:
        value = _checked(value, name, COUNTER)
    if help is not None:
        _check_help(help, name)
    collector = _current.get()
    if collector is not None:
        collector.count(name, value, help)


def observe(name: str, value: float, *, help: str | None = None) -> None:
    """Add a value to a histogram of your own, inside the function that ``execute()`` runs.

    Works in every mode; does nothing outside an execution, or where nothing observes it. In
    Prometheus the histogram is ``amorsize_user_<name>``; its buckets are :data:`BUCKETS`.

    Args:
        name: letters, digits and underscores, not beginning with a digit; best with its unit.
        value: any finite number.
        help: what it measures; the first one given is kept.

    Raises:
        InvalidTypeError, InvalidValueError: as for :func:`count`.

    Example:
        >>> import amorsize
        >>> def fetch(size):
        ...     amorsize.observe("response_bytes", size)
        >>> amorsize.execute(fetch, [120, 4000])
        [None, None]
    """
    try:
        if _kinds.get(name) is not HISTOGRAM:
            _check_name(name, HISTOGRAM)
    except TypeError:
        _check_name(name, HISTOGRAM)
    if (type(value) is not int and type(value) is not float) or not -_EXACT <= value <= _EXACT:
        value = _checked(value, name, HISTOGRAM)
    if help is not None:
        _check_help(help, name)
    collector = _current.get()
    if collector is not None:
        collector.observe(name, value, help)


def set_gauge(name: str, value: float, *, help: str | None = None) -> None:
    """Set a gauge of your own, inside the function that ``execute()`` runs.

    Works in every mode; does nothing outside an execution, or where nothing observes it. The value
    that was set last, by the clocks of the workers, is exported. In Prometheus the gauge is
    ``amorsize_user_<name>``.

    Args:
        name: letters, digits and underscores, not beginning with a digit.
        value: any finite number.
        help: what it shows; the first one given is kept.

    Raises:
        InvalidTypeError, InvalidValueError: as for :func:`count`.

    Example:
        >>> import amorsize
        >>> def predict(row):
        ...     amorsize.set_gauge("model_version", 7)
        ...     return row > 0.5
        >>> amorsize.execute(predict, [0.2, 0.9])
        [False, True]
    """
    try:
        if _kinds.get(name) is not GAUGE:
            _check_name(name, GAUGE)
    except TypeError:
        _check_name(name, GAUGE)
    if (type(value) is not int and type(value) is not float) or not -_EXACT <= value <= _EXACT:
        value = _checked(value, name, GAUGE)
    if help is not None:
        _check_help(help, name)
    collector = _current.get()
    if collector is not None:
        collector.set_gauge(name, value, help)


class MetricsCollector:
    """Adds up the user metrics of one chunk.

    Between ``enter()`` and ``leave()``, calls in this context reach it. asyncio and
    ``asyncio.to_thread`` pass on context variables by themselves; several threads may use it at
    once. Calls after ``take()`` are ignored.
    """

    __slots__ = ("_dropped", "_lock", "_metrics", "_token")

    def __init__(self) -> None:
        # Reentrant: a signal handler, or a finalizer, may call in the middle of a call.
        self._lock = threading.RLock()
        self._metrics: UserMetrics | None = {}
        self._dropped = 0
        self._token: Token[MetricsCollector | None] | None = None

    def enter(self) -> None:
        """Make this the collector of the current context."""
        self._token = _current.set(self)

    def leave(self) -> None:
        """Restore the collector that was current before."""
        if self._token is not None:
            _current.reset(self._token)
            self._token = None

    def take(self) -> Collected | None:
        """End, and return what was collected; None when there is nothing."""
        with self._lock:
            metrics, self._metrics = self._metrics, None
            return (metrics, self._dropped) if metrics else None

    def count(self, name: str, value: float, help: str | None) -> None:
        with self._lock:
            if (metric := self._find(name, COUNTER, help)) is not None:
                metric["calls"] += 1
                metric["value"] += value

    def set_gauge(self, name: str, value: float, help: str | None) -> None:
        with self._lock:
            if (metric := self._find(name, GAUGE, help)) is not None:
                metric["calls"] += 1
                metric["value"] = value
                metric["time"] = time.time()

    def observe(self, name: str, value: float, help: str | None) -> None:
        with self._lock:
            if (metric := self._find(name, HISTOGRAM, help)) is not None:
                metric["calls"] += 1
                metric["sum"] += value
                if value < metric["min"] or metric["calls"] == 1:
                    metric["min"] = value
                if value > metric["max"] or metric["calls"] == 1:
                    metric["max"] = value
                metric["buckets"][bisect_left(BUCKETS, value)] += 1

    def absorb(self, collected: Collected) -> None:
        """Add what an execution inside this chunk collected."""
        metrics, dropped = collected
        with self._lock:
            self._dropped += dropped
            for name, share in metrics.items():
                total = self._find(name, share["kind"], share["help"], calls=share["calls"])
                if total is not None:
                    merge(total, share)

    def _find(self, name: str, kind: UserKind, help: str | None, *, calls: int = 1) -> Any:
        metrics = self._metrics
        if metrics is None:
            return None
        metric = metrics.get(name)
        if metric is None:
            if len(metrics) >= MAX_NAMES:
                self._dropped += calls
                return None
            # A subclass (a StrEnum of the user's __main__) need not unpickle in the parent.
            metric = metrics[str.__str__(name)] = empty_metric(kind)
        elif metric["kind"] != kind:
            self._dropped += calls
            return None
        if help is not None and metric["help"] is None:
            metric["help"] = _shortened(help)
        return metric


def current_collector() -> MetricsCollector | None:
    """Return the collector of the chunk that this code runs in, if one is kept."""
    return _current.get()


observes_when(lambda: current_collector() is not None)


def empty_metric(kind: UserKind, help: str | None = None) -> UserMetric:
    """Make a total to ``merge()`` into."""
    if kind == COUNTER:
        return {"kind": COUNTER, "help": help, "calls": 0, "value": 0}
    if kind == GAUGE:
        return {"kind": GAUGE, "help": help, "calls": 0, "value": 0, "time": 0.0}
    return {
        "kind": HISTOGRAM,
        "help": help,
        "calls": 0,
        "sum": 0,
        "min": 0,
        "max": 0,
        "buckets": [0] * (len(BUCKETS) + 1),
    }


def merge(total: UserMetric, share: UserMetric) -> None:
    """Add a chunk's share of a name to a total of the same kind; the newest gauge stays.

    >>> total, share = empty_metric("counter"), empty_metric("counter")
    >>> share["calls"], share["value"] = 2, 5
    >>> merge(total, share)
    >>> merge(total, share)
    >>> total["calls"], total["value"]
    (4, 10)
    """
    if total["kind"] == COUNTER and share["kind"] == COUNTER:
        total["value"] += share["value"]
    elif total["kind"] == GAUGE and share["kind"] == GAUGE:
        if share["time"] >= total["time"]:
            total["value"], total["time"] = share["value"], share["time"]
    elif total["kind"] == HISTOGRAM and share["kind"] == HISTOGRAM:
        total["sum"] += share["sum"]
        total["min"] = min(total["min"], share["min"]) if total["calls"] else share["min"]
        total["max"] = max(total["max"], share["max"]) if total["calls"] else share["max"]
        buckets = total["buckets"]
        for position, observed in enumerate(share["buckets"]):
            if observed:  # few did: this takes a third of the time of adding all
                buckets[position] += observed
    else:
        raise AssertionError(f"a {share['kind']} cannot be added to a {total['kind']}")
    total["calls"] += share["calls"]


def admit(collected: Collected) -> dict[str, Any]:
    """Admit a chunk's user metrics to this process; return the metadata for its event.

    The first ``MAX_NAMES`` names of the process are admitted, each with its first kind. Calls with
    other names are counted in ``user_metrics_dropped``, and logged once.
    """
    metrics, dropped = collected
    refused = [name for name, metric in metrics.items() if not _is_admitted(name, metric["kind"])]
    for name in refused:
        dropped += metrics.pop(name)["calls"]
    metadata: dict[str, Any] = {}
    if metrics:
        metadata["user_metrics"] = metrics
    if dropped:
        metadata["user_metrics_dropped"] = dropped
        _warn_once(
            "limit",
            "User metrics were dropped: %d names are kept per chunk and per process. A name must "
            "not contain a varying part (an id, a key)",
            MAX_NAMES,
        )
    return metadata


def _is_admitted(name: str, kind: UserKind) -> bool:
    known = _admitted.get(name)
    if known is None:
        with _admission:
            if name not in _admitted and len(_admitted) >= MAX_NAMES:
                return False
            known = _admitted.setdefault(name, kind)
    if known != kind:
        _warn_once(
            "kind",
            "User metrics were dropped: %r is a %s in one worker and a %s in another. Give each "
            "its own name",
            name,
            known,
            kind,
        )
    return known == kind


def _warn_once(topic: str, message: str, *args: object) -> None:
    if topic not in _warned:
        _warned.add(topic)
        logger.warning(message, *args)


def _check_name(name: object, kind: UserKind) -> None:
    """Refuse a name that is not allowed, or not for this kind; remember others."""
    call = _CALLS[kind]
    if not isinstance(name, str):
        raise InvalidTypeError(
            f"the name given to {call}() is of type {type(name).__qualname__}; give a string."
        )
    if not (name.isascii() and name.isidentifier()) or len(name) > MAX_NAME_CHARACTERS:
        raise InvalidValueError(
            f"{call}() got the name {name[:MAX_NAME_CHARACTERS]!r}; give letters, digits and "
            f"underscores, not beginning with a digit, at most {MAX_NAME_CHARACTERS} of them."
        )
    if name.endswith(_RESERVED_ENDS):
        raise InvalidValueError(
            f"{call}() got the name {name!r}, which ends in "
            f"{next(end for end in _RESERVED_ENDS if name.endswith(end))!r}: Prometheus appends "
            f"such endings itself ({', '.join(_RESERVED_ENDS)}). Choose another ending."
        )
    known = _kinds.get(name, kind)
    if len(_kinds) < _KNOWN_LIMIT:
        known = _kinds.setdefault(str.__str__(name), kind)
    if known != kind:
        raise InvalidValueError(
            f"{call}() got the name {name!r}, which is used with {_CALLS[known]}() in this "
            "process; a name has one kind. Give each its own name."
        )


def _checked(value: Any, name: str, kind: UserKind) -> float:
    """Return a finite number as an ``int`` or a ``float``; refuse other values."""
    call = _CALLS[kind]
    number = "a finite number" + (", 0 or more" if kind == COUNTER else "")
    # Numbers of NumPy have __float__ as well, and so do decimals; truth values are refused.
    is_bool = isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"
    if is_bool or isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        raise InvalidTypeError(
            f"{call}() got a value of type {type(value).__qualname__} for {name!r}; give {number}."
        )
    try:
        converted = float(value)
    except OverflowError:  # an int beyond all floats
        converted = math.inf
    except (TypeError, ValueError) as error:  # an array of several numbers
        raise InvalidTypeError(
            f"{call}() got a value of type {type(value).__qualname__} for {name!r}, which is not "
            f"a number ({error}); give {number}."
        ) from error
    lowest = 0 if kind == COUNTER else -_LARGEST
    if not lowest <= converted <= _LARGEST:
        raise InvalidValueError(f"{call}() got {converted} for {name!r}; give {number}.")
    return int(value) if isinstance(value, int) and abs(converted) <= _EXACT else converted


def _check_help(help: object, name: str) -> None:
    if not isinstance(help, str):
        raise InvalidTypeError(
            f"the help of {name!r} is of type {type(help).__qualname__}; give a string, or None."
        )


def _shortened(help: str) -> str:
    # A lone surrogate would make a whole exposition unencodable.
    text = help[:MAX_HELP_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())


@in_forked_child
def _renew_lock() -> None:
    global _admission
    _admission = threading.Lock()
