"""The state of the program that its workers share: read in the program, applied in a worker.

The state goes to a worker at the start of each run. At the run's end the worker compares and
restores, so that what one run's function changes never meets the next run. docs/workers.md lists
what is shared, and what is not.

A setting of a module that the program has not loaded has its default there; a worker has it, too,
and imports the module only where the value is another.
"""

from __future__ import annotations

import _locale
import _socket
import os
import sys
import time
import warnings

from amorsize.workers import thread_limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    State: TypeAlias = dict[str, Any]
else:
    import _signal as signal  # what signal wraps in enums, which takes 2 ms

_STREAMS = (1, 2)

_STANDARD = os.path.dirname(os.__file__) + os.sep
_OFTEN_NEEDED = "dataclasses", "json", "logging", "pathlib", "re", "typing"
"""Modules of the standard library that take 2 to 8 ms to import. A function's module is likely to
need those that the program has loaded."""


class _Setting:
    """A setting of one module.

    Args:
        module: it has to be loaded; None for one that always is.
        default: the value that the module begins with.
        read: returns a value that is compared and pickled without any import.
        write: applies such a value.
    """

    def __init__(
        self,
        module: str | None,
        default: Any,
        read: Callable[[], Any],
        write: Callable[[Any], object],
    ) -> None:
        self.module = module
        self.default = default
        self.read = read
        self.write = write

    def here(self) -> Any:
        """Return its value in this process."""
        if self.module is not None and self.module not in sys.modules:
            return self.default
        try:
            return self.read()
        except Exception:  # the module is only half imported, by another thread
            return self.default

    def apply(self, value: Any) -> None:
        """Give it a value, where it has another."""
        if self.here() != value:
            try:
                self.write(value)
            except Exception:  # a locale or a module that this process does not have
                pass


def _read_decimal() -> Any:
    import decimal

    return tuple(
        (c.prec, c.rounding, c.Emin, c.Emax, c.capitals, c.clamp)
        + (tuple(sorted(condition.__name__ for condition, trapped in c.traps.items() if trapped)),)
        for c in (decimal.getcontext(), decimal.DefaultContext)
    )


def _write_decimal(value: Any) -> None:
    import decimal

    for context, (*settings, trapped) in zip(
        (decimal.getcontext(), decimal.DefaultContext), value, strict=True
    ):
        names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
        for name, setting in zip(names, settings, strict=True):
            setattr(context, name, setting)
        for condition in context.traps:
            context.traps[condition] = condition.__name__ in trapped


_DECIMAL_DEFAULT = (
    28,
    "ROUND_HALF_EVEN",
    -999999,
    999999,
    1,
    0,
    ("DivisionByZero", "InvalidOperation", "Overflow"),
)


def _numpy_errors() -> Any:
    return dict(sys.modules["numpy"].geterr())


def _write_numpy_errors(value: Any) -> None:
    import importlib

    importlib.import_module("numpy").seterr(**value)


def _csv(*limit: int) -> int:
    import csv

    return csv.field_size_limit(*limit)


def _read_filters() -> list[tuple[Any, ...]]:
    """Describe the warning filters by names and patterns, which need no import to be compared."""
    return [
        (action, _pattern(message), _name(category), _pattern(module), line)
        for action, message, category, module, line in list(warnings.filters)
    ]


def _name(category: Any) -> str:
    return f"{category.__module__}:{category.__qualname__}"


def _pattern(pattern: Any) -> tuple[str, int] | str | None:
    if pattern is None or isinstance(pattern, str):
        return pattern
    return pattern.pattern, pattern.flags


def _write_filters(described: list[tuple[Any, ...]]) -> None:
    """Set the filters; those for a category whose module is not loaded here are left out."""
    filters = []
    for action, message, kind, module, line in described:
        module_name, _, name = kind.partition(":")
        category = getattr(sys.modules.get(module_name), name, None)
        if isinstance(category, type) and issubclass(category, Warning):
            filters.append((action, _compiled(message), category, _compiled(module), line))
    warnings.resetwarnings()  # makes the interpreter look at the filters again
    warnings.filters[:] = filters  # type: ignore[index]  # a list


def _compiled(described: tuple[str, int] | str | None) -> Any:
    if not isinstance(described, tuple):
        return described
    import re

    return re.compile(*described)


def _read_umask() -> int | None:
    """Read the umask without a change that other threads would see; None where unknown."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return None


def _write_umask(value: int | None) -> None:
    if value is not None:
        os.umask(value)


def _read_affinity() -> Any:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _write_affinity(value: Any) -> None:
    if value is not None:
        os.sched_setaffinity(0, value)


SETTINGS = {
    "recursion limit": _Setting(None, 1000, sys.getrecursionlimit, sys.setrecursionlimit),
    "integer digits": _Setting(None, 4300, sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    "socket timeout": _Setting(None, None, _socket.getdefaulttimeout, _socket.setdefaulttimeout),
    "locale": _Setting(
        None,
        "C",
        lambda: _locale.setlocale(_locale.LC_ALL, None),
        lambda value: _locale.setlocale(_locale.LC_ALL, value),
    ),
    "umask": _Setting(None, None, _read_umask, _write_umask),
    "affinity": _Setting(None, None, _read_affinity, _write_affinity),
    "decimal": _Setting(
        "decimal", (_DECIMAL_DEFAULT, _DECIMAL_DEFAULT), _read_decimal, _write_decimal
    ),
    "csv": _Setting("_csv", 131072, _csv, _csv),
    "numpy": _Setting(
        "numpy",
        {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
        _numpy_errors,
        _write_numpy_errors,
    ),
    "warnings": _Setting(None, [], _read_filters, _write_filters),
}


def read_state(inner_threads: int) -> State:
    """Read what a worker shares with this process.

    Libraries that bring thread pools of their own are held to ``inner_threads``, unless the
    environment says otherwise: n workers with a pool of n threads each only disturb each other.
    """
    from amorsize.engines.process.launcher import needs_site  # no worker asks

    environment = dict.fromkeys(thread_limits.VARIABLES, str(inner_threads)) | _environment()
    state: State = {name: setting.here() for name, setting in SETTINGS.items()}
    return state | {
        "path": [str(entry) for entry in sys.path],
        "argv": list(map(str, sys.argv)),
        "bytecode": (sys.dont_write_bytecode, sys.pycache_prefix),
        "environment": environment,
        "zone": (time.timezone, time.altzone, time.tzname),
        "directory": _identify("."),
        "streams": [_identify(fd) for fd in _STREAMS],
        "multiprocessing": _read_multiprocessing(),
        "site": needs_site(),
    }


def _environment() -> dict[str, str]:
    for _ in range(100):
        try:
            return dict(os.environ)
        except (KeyError, RuntimeError):
            continue  # another thread is changing it
    return {}


def _identify(place: str | int) -> tuple[int, int] | None:
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _read_multiprocessing() -> tuple[bytes, int] | None:
    """Read the key, and the process id of the resource tracker, 0 for none; None for neither."""
    process = sys.modules.get("multiprocessing.process")
    if (
        process is None
        or not {
            "multiprocessing.connection",
            "multiprocessing.managers",
            "multiprocessing.resource_tracker",
        }
        & sys.modules.keys()
    ):
        return None
    try:
        return bytes(process.current_process().authkey), _tracker_pid()
    except Exception:  # half imported by another thread
        return None


def _tracker_pid() -> int:
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker is None:
        return 0
    shared = tracker._resource_tracker
    if shared._fd is None and "multiprocessing.shared_memory" not in sys.modules:
        return 0
    # Started where there is none: one of a worker's own would destroy at the worker's end what
    # the program still uses.
    tracker.ensure_running()
    return int(shared._pid or -1)  # a child of multiprocessing does not know its pid


def modules_to_share(state: State) -> list[str]:
    """List modules that workers need in this state: the template imports them once for all."""
    names = [name for name in _OFTEN_NEEDED if _is_standard(sys.modules.get(name))]
    if "logging" in names:
        names.append("amorsize.workers.log_records")
    shared = state["multiprocessing"]
    if shared is not None:
        names.append("multiprocessing.process")
        if shared[1]:
            names.append("multiprocessing.resource_tracker")
    return names


def _is_standard(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.startswith(_STANDARD)


class Descriptors:
    """The files that the state refers to: directory, stdout, stderr, resource tracker.

    Attributes:
        has: which of them there are.
        opened: their descriptors.

    Raises OSError where no descriptor is left.
    """

    def __init__(self, state: State) -> None:
        self.has: list[bool] = []
        self.opened: list[int] = []
        try:
            self._add(_open_directory())
            for fd in _STREAMS:
                self._add(_duplicate(fd))
            shared = state["multiprocessing"]
            if shared is not None and shared[1]:
                fd = sys.modules["multiprocessing.resource_tracker"].getfd()
                self._add(_duplicate(fd))
            else:
                self._add(None)
        except BaseException:
            self.close()
            raise

    def _add(self, fd: int | None) -> None:
        self.has.append(fd is not None)
        if fd is not None:
            self.opened.append(fd)

    def close(self) -> None:
        """Close them; workers keep what they have received."""
        while self.opened:
            os.close(self.opened.pop())

    def __del__(self) -> None:
        self.close()


def _open_directory() -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    for right in (getattr(os, "O_PATH", 0), 0):  # the first needs no right to list it
        try:
            return os.open(".", flags | right)
        except OSError:
            continue
    return None


def _duplicate(fd: int) -> int | None:
    try:
        return os.dup(fd)
    except OSError as error:
        import errno

        if error.errno == errno.EBADF:
            return None
        raise


class AppliedState:
    """The program's state in a worker: applied when a run begins, restored when it ends."""

    def __init__(self) -> None:
        self._state: State = {}
        self._directory: int | None = None
        self._zone_name: str | None = os.environ.get("TZ")
        self._handlers = {number: signal.getsignal(number) for number in _handled_signals()}
        self._fixed = _read_fixed()

    def take(self, state: State, descriptors: Sequence[int | None]) -> None:
        """Take over a new state of the program."""
        if self._directory is not None:
            os.close(self._directory)
        directory, *streams, tracker = descriptors
        self._directory = directory
        self._state = state
        for fd, stream in zip(_STREAMS, streams, strict=True):
            if stream is not None:
                flush_streams()
                os.dup2(stream, fd)
                os.close(stream)
        if state["multiprocessing"] is not None:
            _join_multiprocessing(state["multiprocessing"][0], tracker)

    def apply(self) -> None:
        """Make this process' state that of the program."""
        state = self._state
        sys.path[:] = state["path"]
        sys.argv[:] = state["argv"]
        sys.dont_write_bytecode, sys.pycache_prefix = state["bytecode"]
        directory = state["directory"]
        if directory is not None and _identify(".") != directory and self._directory is not None:
            try:
                os.fchdir(self._directory)
            except OSError:
                pass  # the program itself could not enter it again: stay
        environment = state["environment"]
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        zone_name = environment.get("TZ")
        zone = time.timezone, time.altzone, time.tzname
        if hasattr(time, "tzset") and (zone_name != self._zone_name or zone != state["zone"]):
            time.tzset()
            self._zone_name = zone_name
        for name, setting in SETTINGS.items():
            setting.apply(state[name])

    def apply_warnings(self) -> None:
        """Set the warning filters again, after the modules of their categories were loaded."""
        SETTINGS["warnings"].apply(self._state["warnings"])

    def restore(self) -> bool:
        """Undo what a run has changed; False where that cannot be undone."""
        if not self._state:
            return True
        self.apply()
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self._fixed == _read_fixed()


def _handled_signals() -> list[int]:
    unchangeable = {signal.SIGKILL, signal.SIGSTOP}
    return sorted(
        number
        for number in signal.valid_signals() - unchangeable
        if signal.getsignal(number) is not None
    )


def _read_fixed() -> tuple[Any, ...]:
    """Read what a process cannot take back: its users, groups, root directory and priority."""
    return (
        os.getuid(),
        os.geteuid(),
        os.getgid(),
        os.getegid(),
        os.getgroups(),
        os.getpriority(os.PRIO_PROCESS, 0),
        _identify("/"),
    )


def _join_multiprocessing(authkey: bytes, tracker: int | None) -> None:
    """Use the program's key and resource tracker, as a child that multiprocessing starts does."""
    from multiprocessing import process

    process.current_process().authkey = authkey
    if tracker is not None:
        from multiprocessing import resource_tracker

        shared: Any = resource_tracker._resource_tracker
        if shared._fd is not None and shared._fd != tracker:
            try:
                os.close(shared._fd)
            except OSError:
                pass
        shared._fd, shared._pid = tracker, None


def flush_streams() -> None:
    """Write out what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed or replaced by the function
            pass
