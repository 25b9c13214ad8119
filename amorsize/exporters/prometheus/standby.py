"""The one listener of a program of several processes: if its process ends, another one listens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from amorsize.errors import ExporterError
from amorsize.exporters.prometheus.file_lock import FileLock
from amorsize.exporters.prometheus.listening import Listener

logger = logging.getLogger(__name__)

LOCK = "listening"
"""The file in the program's directory that the process which listens holds locked."""

WAIT_SECONDS = 1.0
"""Between two looks whether nobody listens."""


class Standby:
    """Listens in one process of a program, and stands by in the others.

    Args:
        directory: gives the directory of the program.
        listen: makes the listener, which answers at once.
    """

    def __init__(self, directory: Callable[[], Path], listen: Callable[[], Listener]) -> None:
        self._directory = directory
        self._listen = listen
        self._listening: tuple[FileLock, Listener] | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def try_to_listen(self) -> bool:
        """Listen, unless another process of the program does.

        Raises:
            PortInUseError, ExporterError: nobody of the program listens, and this process cannot.
            OSError: the program has no directory.
        """
        lock = FileLock(self._directory() / LOCK)
        if not lock.acquire():
            return False
        try:
            listener = self._listen()
        except BaseException:
            lock.release()
            raise
        with self._lock:
            if not self._closing.is_set():
                self._listening = lock, listener
                return True
        listener.close()
        lock.release()
        return False

    def stand_by(self) -> None:
        """Listen from the moment when no other process of the program does."""
        with self._lock:
            if self._thread is None and self._listening is None and not self._closing.is_set():
                thread = threading.Thread(target=self._wait, name="amorsize-standby", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread is left
                self._thread = thread

    def close(self) -> None:
        """Stop listening, and standing by."""
        self._closing.set()
        with self._lock:
            listening, self._listening = self._listening, None
        if listening is not None:
            lock, listener = listening
            listener.close()
            lock.release()

    def abandon(self) -> None:
        """Close the descriptors in a forked child; the parent goes on listening."""
        if self._listening is not None:
            lock, listener = self._listening
            listener.abandon()
            lock.release()

    def _wait(self) -> None:
        is_reported = False
        while not self._closing.wait(WAIT_SECONDS):
            try:
                if self.try_to_listen():
                    return
            except (ExporterError, OSError) as error:
                if not is_reported:
                    logger.warning("No process of this program serves the metrics: %s", error)
                is_reported = True
