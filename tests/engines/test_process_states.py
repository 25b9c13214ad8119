"""Whether a process of this machine has ended, or is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from waiting import PATIENCE, wait_until

from amorsize.engines.external.futures import _is_ended
from amorsize.engines.external.worker import Place
from amorsize.engines.process_states import ENDED, STOPPED, is_in_state
from amorsize.workers.chunk import HOSTNAME

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")

PARENT = """
import os, sys, time
child = os.fork()
if not child:
    time.sleep(600)
print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def grandchild() -> Iterator[int]:
    """A process whose parent, another than this one, waits for nobody."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    yield pid
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    parent.communicate(timeout=PATIENCE)


def test_a_zombie_of_somebody_elses_has_ended(grandchild: int) -> None:
    """It can still be sent signals, which says nothing."""
    place = Place(HOSTNAME, grandchild, 1, "MainThread")
    assert not _is_ended(place)
    os.kill(grandchild, signal.SIGKILL)
    wait_until(lambda: _is_ended(place), "the zombie is seen")
    os.kill(grandchild, 0)
    assert is_in_state(grandchild, ENDED)


def test_a_stopped_process_has_not_ended(grandchild: int) -> None:
    """It may go on."""
    os.kill(grandchild, signal.SIGSTOP)
    wait_until(lambda: is_in_state(grandchild, STOPPED), "it is stopped")
    assert not _is_ended(Place(HOSTNAME, grandchild, 1, "MainThread"))
