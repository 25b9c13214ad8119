"""The demo on a Dask cluster: the client, and the address of the service for the workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amorsize.errors import AmorsizeError, MissingExtraError

CLUSTER_SECONDS = 30.0
"""How long to wait for the scheduler, and then for its first worker, while they start."""


@dataclass(frozen=True)
class Cluster:
    """A cluster to run on.

    Attributes:
        client: the Dask client, for ``execute(..., executor=client)``.
        host: the address at which the scheduler and its workers reach this machine.
    """

    client: Any
    host: str

    def require(self) -> None:
        """Check that the cluster is still connected.

        Raises:
            AmorsizeError: the client has no connection to its scheduler.
        """
        if self.client.status != "running":
            raise AmorsizeError(
                f"the connection to the Dask scheduler is lost (status: {self.client.status}); "
                "start the scheduler, then the demo again"
            )


@contextmanager
def connected(
    address: str, needed_file: str, *, seconds: float = CLUSTER_SECONDS
) -> Iterator[Cluster]:
    """Connect to a scheduler, and wait for its first worker.

    Args:
        address: the address of the scheduler, as in ``tcp://scheduler:8786``.
        needed_file: a file of the demo's input, which the workers read themselves.
        seconds: how long to wait for the scheduler, and then for a worker.

    Raises:
        AmorsizeError: there is no scheduler or no worker in time, or a worker lacks the file.
        MissingExtraError: Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtraError("amorsize demo --dask", "distributed", "dask") from None
    try:
        client: Any = Client(address, timeout=seconds)  # type: ignore[no-untyped-call]  # theirs
    except (OSError, ValueError) as error:
        raise AmorsizeError(f"no Dask scheduler answers at {address!r}: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError:
            raise AmorsizeError(
                f"the Dask scheduler at {address!r} has no worker after {seconds:.0f} s; start one "
                f"with: dask worker {address}"
            ) from None
        has_it = client.run(os.path.isfile, needed_file)
        without = sorted(worker for worker, has in has_it.items() if not has)
        if without:
            raise AmorsizeError(
                f"the demo's workers read Python's own sources, and {without[0]} has no "
                f"{needed_file}; run its workers with the same Python, at the same place"
            )
        yield Cluster(client, _address_towards(client.scheduler.address))


def _address_towards(scheduler: str) -> str:
    """Return the address of this machine in the network of the scheduler."""
    there = urlsplit(scheduler)
    if there.hostname is None:  # a cluster within this process
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in there.hostname else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((there.hostname, there.port or 1))  # UDP: nothing is sent
        host: str = sock.getsockname()[0]
        return host
