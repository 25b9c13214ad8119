"""Random faults against random work, for minutes: does every item and every event add up?

``make soak`` runs it for five minutes; ``python -m benchmarks.soak --seconds 20 --seed 7`` for as
long as you like, and again in the same way.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

import amorsize
from amorsize import HookContext, HookEvent, HookManager
from amorsize.errors import AmorsizeError, ContractError
from amorsize.testing import RecordingHook, assert_contract

MODES = (None, "serial", "thread", "process")
FAULTS = (
    "none",
    "raise",
    "raise in place",
    "kill",
    "kill in place",
    "kill from outside",
    "hang",
    "unpicklable",
    "input",
    "leave",
    "hook",
)
_HANG_SECONDS = 0.4
_ITEM_TIMEOUT = 0.2


class Boom(Exception):
    """The exception that items raise."""


class Work:
    """The function: takes some time, and commits the fault for certain items."""

    def __init__(self, cost: float, fault: str, victims: frozenset[int]) -> None:
        self.cost = cost
        self.fault = fault
        self.victims = victims

    def __call__(self, item: int) -> Any:
        if self.cost:
            time.sleep(self.cost)
        if item in self.victims:
            match self.fault:
                case "raise" | "raise in place":
                    raise Boom(item)
                case "kill" | "kill in place":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(_HANG_SECONDS)
                case "unpicklable":
                    return threading.Lock()
        return item * 3


@dataclass
class Tally:
    """The totals of the runs."""

    runs: int = 0
    items: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost_items: int = 0
    broken_contracts: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)


def one_run(chance: random.Random, tally: Tally) -> None:
    """Run once, with a fault that this mode can have, and check every result and event."""
    mode = chance.choice(MODES)
    possible = [
        fault
        for fault in FAULTS
        if mode == "process" or fault not in ("kill", "kill in place", "kill from outside")
    ]
    if mode in (None, "serial"):
        possible.remove("hang")
    if mode != "process":
        possible.remove("unpicklable")
    fault = chance.choice(possible)
    total = chance.choice([0, 1, 7, 50, 300])
    victims = frozenset(chance.sample(range(total), min(total, chance.choice([1, 1, 2, 5]))))
    in_place = fault in ("raise in place", "kill in place", "hang", "kill from outside")
    hooks = HookManager()
    recorder = RecordingHook().attach(hooks)
    if fault == "hook":
        for event in HookEvent:
            hooks.register(event, _broken_hook)
    if fault == "kill from outside":
        hooks.register(HookEvent.ON_WORKER_START, _killer(chance))
    options: dict[str, Any] = {
        "executor": mode,
        "n_jobs": chance.choice([1, 2, 3]) if mode else None,
        "chunksize": chance.choice([None, 1, 4, 50]),
        "return_exceptions": in_place,
        "item_timeout": _ITEM_TIMEOUT if fault == "hang" else None,
        "hooks": hooks,
        "name": f"soak {fault}",
    }
    func = Work(chance.choice([0, 0, 0.001]), fault, victims)
    data = _source(total, broken=fault == "input")
    error: BaseException | None = None
    results: list[Any] = []
    left_after: int | None = None
    try:
        if fault == "leave" or chance.random() < 0.4:
            stream = amorsize.stream(func, data, **options)
            if fault == "leave":
                left_after = chance.choice([0, 1, total // 2])
            for result in stream:
                results.append(result)
                if left_after is not None and len(results) > left_after:
                    break
            stream.close()  # type: ignore[attr-defined]  # it is a generator
        else:
            results = amorsize.execute(func, data, **options)
    except (Boom, OSError, AmorsizeError) as caught:
        error = caught
    tally.runs += 1
    tally.items += total
    tally.faults[fault] += 1
    _check(tally, fault, total, victims, results, error, left_after)
    if recorder.contexts:
        try:
            assert_contract(recorder.contexts)
        except ContractError as broken:
            tally.broken_contracts.append(f"{fault}, {mode}, {total} items: {broken}")


def _check(
    tally: Tally,
    fault: str,
    total: int,
    victims: frozenset[int],
    results: list[Any],
    error: BaseException | None,
    left_after: int | None,
) -> None:
    ends_early = fault in ("raise", "kill", "unpicklable") and victims
    if fault == "input" or ends_early:
        if error is None:
            tally.surprises.append(f"{fault} over {total} items raised nothing")
        return
    if error is not None:
        tally.surprises.append(f"{fault} over {total} items raised {error!r}")
        return
    expected = total if left_after is None else min(total, left_after + 1)
    tally.lost_items += expected - len(results)
    fails = victims if fault in ("raise in place", "kill in place", "hang") else frozenset()
    for index, result in enumerate(results):
        good = isinstance(result, Exception) if index in fails else result == index * 3
        if fault == "kill from outside" and isinstance(result, Exception):
            good = True  # an item may be at work both times that its worker is killed
        if not good:
            tally.lost_items += 1
            tally.surprises.append(f"{fault}: item {index} gave {result!r}")


def _source(total: int, *, broken: bool) -> Iterator[int]:
    yield from range(total)
    if broken:
        raise OSError("the input broke")


def _broken_hook(context: HookContext) -> None:
    raise RuntimeError("a broken hook")


def _killer(chance: random.Random) -> Any:
    def kill(context: HookContext) -> None:
        if chance.random() < 0.3:
            try:
                os.kill(context.metadata["pid"], signal.SIGKILL)
            except ProcessLookupError:
                pass

    return kill


def leftovers(before: tuple[int, int]) -> dict[str, int]:
    """Count processes, threads and descriptors that are left after the shutdown."""
    amorsize.shutdown()
    gc.collect()
    me = psutil.Process()
    deadline = time.monotonic() + 5  # abandoned threads sleep a little longer
    while threading.active_count() > before[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    return {
        "processes": len(me.children(recursive=True)),
        "threads": threading.active_count() - before[0],
        "file descriptors": me.num_fds() - before[1],
    }


def main(arguments: list[str] | None = None) -> int:
    """Soak, report, and return 1 if anything was lost, unpaired or left over."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long (default: 300)")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run (default: random)")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    chance = random.Random(seed)
    import logging

    logging.getLogger("amorsize").setLevel(logging.CRITICAL)  # broken hooks are on purpose
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread would count as one of ours
    tally = Tally()
    me = psutil.Process()
    amorsize.execute(abs, range(10), executor="process")  # what is imported once is not growth
    amorsize.shutdown()
    before = (threading.active_count(), me.num_fds())
    began = time.monotonic()
    memory_before = 0
    with tqdm(total=round(options.seconds), unit="s", desc="soak") as bar:
        while (elapsed := time.monotonic() - began) < options.seconds:
            one_run(chance, tally)
            if not memory_before and elapsed > options.seconds / 5:
                memory_before = me.memory_info().rss
            bar.update(min(round(elapsed), bar.total) - bar.n)
    growth = (me.memory_info().rss - memory_before) / 1e6
    left = leftovers(before)
    print(f"seed {seed}: {tally.runs:,} runs over {tally.items:,} items")
    print("faults injected: " + ", ".join(f"{n} {k}" for k, n in sorted(tally.faults.items())))
    print(f"items lost: {tally.lost_items}")
    print(f"events unpaired or untrue: {len(tally.broken_contracts)}")
    for what, count in left.items():
        print(f"{what} left over: {count}")
    print(f"growth of memory after the first fifth: {growth:.1f} MB")
    for line in (tally.surprises + tally.broken_contracts)[:20]:
        print(f"  ! {line}", file=sys.stderr)
    clean = not (tally.lost_items or tally.broken_contracts or tally.surprises)
    return 0 if clean and all(count <= 0 for count in left.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
