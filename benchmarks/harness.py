"""Declares figures and measures them.

A figure is a generator function that sets up, yields its contenders by name, and tears down.
The first contender is the one the figure is about, the others are its peers::

    @figure("sorting", "sorted() of 1,000 numbers", unit="µs", at_most=2.0, against="list.sort")
    def sorting() -> Contenders:
        numbers = [random.random() for _ in range(1000)]
        yield {
            "sorted": timed(lambda: sorted(numbers)),
            "list.sort": timed(lambda: numbers.copy().sort()),
        }

Every round times every contender once, each round beginning with another one, so that what
else the machine does meets all of them alike. Figures are medians over the rounds; a ratio is
the median of the rounds' own ratios. The collector of cycles is off while the clock runs.
"""

from __future__ import annotations

import inspect
import statistics
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender: a callable to measure.

    Attributes:
        measure: does it the given number of times; returns the seconds that took.
        per: how often what the figure counts (a chunk, say) happens each time.
    """

    measure: Callable[[int], float]
    per: int = 1


Contenders: TypeAlias = Iterator[dict[str, Contender]]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure: at least ``seconds`` a contender in each of ``rounds`` rounds."""

    rounds: int
    seconds: float


FULL = Budget(rounds=21, seconds=0.03)
QUICK = Budget(rounds=5, seconds=0.004)


@dataclass(frozen=True, slots=True)
class Figure:
    """A declared figure; the fields are the arguments of :func:`figure`."""

    name: str
    title: str
    unit: str
    contenders: Callable[[], Contenders]
    difference: bool = False
    at_most: float | None = None
    against: str | None = None
    share_of: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The measurements of one figure.

    Attributes:
        figure: of what.
        rounds: of each contender, the seconds it took in each round.
        again: the same for the first peer once more (the figure itself where there is none).
    """

    figure: Figure
    rounds: dict[str, list[float]]
    again: list[float]

    @property
    def name(self) -> str:
        """The contender that the figure is named after."""
        return next(iter(self.rounds))

    @property
    def peers(self) -> list[str]:
        return list(self.rounds)[1:]

    def seconds(self, contender: str | None = None) -> float:
        """Return the median over the rounds, of the figure itself for None."""
        return statistics.median(self.rounds[contender or self.name])

    def ratio(self, peer: str) -> float:
        """Return the ratio of its time to the peer's."""
        return statistics.median(_pairwise(self.rounds[self.name], self.rounds[peer]))

    def difference(self, peer: str) -> float:
        """Return its time minus the peer's, in seconds."""
        ours, theirs = self.rounds[self.name], self.rounds[peer]
        return statistics.median(a - b for a, b in zip(ours, theirs, strict=True))

    @property
    def noise(self) -> float:
        """The difference between two timings of one contender in one round, as a share."""
        first = self.rounds[(self.peers or [self.name])[0]]
        return statistics.median(abs(ratio - 1) for ratio in _pairwise(first, self.again))

    @property
    def judged(self) -> float | None:
        """The number that ``at_most`` limits: the value, the ratio or the difference; or None."""
        if self.figure.at_most is None:
            return None
        if self.figure.against is None:
            return self.seconds() / UNITS[self.figure.unit]
        if self.figure.difference:
            return self.difference(self.figure.against) / UNITS[self.figure.unit]
        return self.ratio(self.figure.against)


FIGURES: dict[str, Figure] = {}
"""All declared figures, by name, in the order of the table."""


def figure(
    name: str,
    title: str,
    *,
    unit: str,
    difference: bool = False,
    at_most: float | None = None,
    against: str | None = None,
    share_of: float | None = None,
) -> Callable[[Callable[[], Contenders]], Callable[[], Contenders]]:
    """Declare a figure.

    Args:
        name: short, for ``--only`` and for the JSON file.
        title: what the table calls it.
        unit: of the values: ``ns``, ``µs``, ``ms`` or ``s``.
        difference: compare with peers by the difference, instead of by the ratio.
        at_most: what is to be reached; of the comparison with ``against``, or of the value.
        against: a peer.
        share_of: seconds; also show the difference as a share of this.
    """

    def declare(contenders: Callable[[], Contenders]) -> Callable[[], Contenders]:
        assert inspect.isgeneratorfunction(contenders), f"{name}: yield the contenders"
        assert name not in FIGURES, f"{name} is declared twice"
        FIGURES[name] = Figure(
            name, title, unit, contenders, difference, at_most, against, share_of
        )
        return contenders

    return declare


def timed(statement: str | Callable[[], object], *, per: int = 1, **names: Any) -> Contender:
    """Make a contender of a callable, or of a statement that uses ``names``.

    A callable costs a call (30 ns) of its own: take a statement for what is about as short.
    """
    return Contender(timeit.Timer(statement, globals=names).timeit, per)


def self_timed(take: Callable[[], float]) -> Contender:
    """Make a contender of a callable that returns its own time, such as a fresh process."""
    return Contender(lambda number: sum(take() for _ in range(number)))


def run(declared: Figure, budget: Budget) -> Result:
    """Measure one figure."""
    with contextmanager(declared.contenders)() as contenders:
        first_peer = list(contenders)[min(1, len(contenders) - 1)]
        entrants = [*contenders.items(), ("", contenders[first_peer])]
        numbers = [_calibrate(contender, budget.seconds) for _, contender in entrants]
        rounds: dict[str, list[float]] = {name: [] for name, _ in entrants}
        for begin in range(budget.rounds):
            for turn in range(len(entrants)):
                at = (begin + turn) % len(entrants)
                name, contender = entrants[at]
                taken = contender.measure(numbers[at])
                rounds[name].append(taken / (numbers[at] * contender.per))
    again = rounds.pop("")
    return Result(declared, rounds, again)


def _calibrate(contender: Contender, seconds: float) -> int:
    """Find the number of repetitions for a round of ``seconds``; warms the contender up."""
    number = 1
    if contender.measure(number) >= 10 * seconds:
        return number
    while (taken := contender.measure(number)) < seconds:
        number = max(number + 1, min(10 * number, int(1.2 * number * seconds / max(taken, 1e-9))))
    return number


def _pairwise(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]
