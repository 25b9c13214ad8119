"""The engines that tests run on: our own, and those of others."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

MODES = ("serial", "thread", "process")
"""Every engine of our own; a further backend is one more name here."""

EXTERNAL_MODES = (
    "thread-pool",
    "fork-pool",
    "forkserver-pool",
    "spawn-pool",
    "loky-pool",
    "dask",
    "dask-executor",
)
"""Engines of others, for the contract suite and the fault tests that make sense for them."""


LOCAL_CLUSTER: dict[str, Any] = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "processes": True,
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",
    "worker_dashboard_address": "127.0.0.1:0",
    "silence_logs": False,
}


@dataclass(frozen=True)
class Mode:
    """An engine, and what to expect of it.

    Attributes:
        name: as in the lists above.
        executor: what to pass as ``executor=``.
        type: what the events call it.
        in_process: whether its workers are in this process.
    """

    name: str
    executor: Any
    type: str
    in_process: bool

    @property
    def is_dask(self) -> bool:
        """Whether it is a Dask cluster."""
        return self.name.startswith("dask")


class Engines:
    """Makes each external engine when it is first asked for, and closes all at the end."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._made: dict[str, Any] = {}

    def mode(self, name: str) -> Mode:
        """Look an engine up by its name."""
        if name in MODES:
            return Mode(name, name, name, name != "process")
        kind = "dask" if name == "dask" else "custom"
        return Mode(name, self._engine(name), kind, name == "thread-pool")

    def _engine(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Any:
        kind = name.partition("-")[0]
        match name:
            case "thread-pool":
                return self._closing.enter_context(ThreadPoolExecutor(2))
            case "fork-pool" | "forkserver-pool" | "spawn-pool":
                pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(kind))
                return self._closing.enter_context(pool)
            case "loky-pool":
                import loky

                pool = loky.ProcessPoolExecutor(2)
                self._closing.callback(pool.shutdown)
                return pool
            case "dask":
                import distributed  # takes most of a second, which only some tests are to pay

                cluster = distributed.LocalCluster(**LOCAL_CLUSTER)
                self._closing.enter_context(cluster)
                # Not the current one: tests without a client are to find none.
                client = distributed.Client(cluster, set_as_default=False)
                return self._closing.enter_context(client)
            case "dask-executor":
                return self._engine("dask").get_executor()
        raise AssertionError(name)

    def close(self) -> None:
        """End them all."""
        self._closing.close()
