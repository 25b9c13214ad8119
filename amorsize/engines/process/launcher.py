"""Starts the template of this process.

A template takes as long to start as this process takes to load what runs a run. So where a run is
sure to need workers the template is started first, and this module loads next to nothing before
that. The part that asks a template for workers is in :mod:`.template_client`.
"""

from __future__ import annotations

import _socket
import os
import sys

from amorsize.engines import warm_pool
from amorsize.planning.process_support import why_no_template
from amorsize.workers import in_forked_child
from amorsize.workers.role import is_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from functools import partial
else:  # the whole modules take 2 ms each
    import _signal as signal
    from _functools import partial

_BOOT = (
    "import gc, sys; gc.disable(); sys.path.insert(0, sys.argv[1]); import amorsize; "
    "del sys.path[0]; "
    "from amorsize.engines.process.template import main; main()"
)
_PACKAGE_PARENT = os.path.abspath(__file__).rsplit(os.sep, 4)[0]
_CONTROL_FDS = 3, 4
"""Where the template finds its control connection: in one of these."""


class Launched:
    """A template that nobody has asked for anything yet.

    Attributes:
        identity: see :func:`read_identity`.
        control: our end of its control connection; when that closes, the template ends.
        pids: its process id, once it is started.
    """

    control: _socket.socket | None = None

    def __init__(self) -> None:
        self.identity = read_identity()
        self.pids: list[int] = []

    def start(self) -> None:
        """Start it. Raises OSError where that is not possible."""
        self.control, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            theirs.setblocking(True)  # whatever the program's default timeout is
            self._spawn(theirs.fileno())
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()

    def _spawn(self, control: int) -> None:
        # A descriptor that stays in its place would keep its flag, and be closed.
        place = _CONTROL_FDS[control == _CONTROL_FDS[0]]
        command = [sys.executable, *_interpreter_flags()]
        command += ["-S"] * needs_site() + ["-P", "-c", _BOOT, _PACKAGE_PARENT, str(place)]
        spawn = partial(
            os.posix_spawn,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, control, place),
            ],
            setsigmask=[],  # signals that the program blocks, or ignores
            setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGIO],
        )
        # One call in C: a Ctrl-C that comes meanwhile is raised when the process id is kept.
        self.pids.extend(map(spawn, [sys.executable], [command], [_environment()]))

    def close(self) -> None:
        """Let go of it: it ends. Again does nothing."""
        control, self.control = self.control, None
        if control is not None:
            control.close()

    def end(self) -> None:
        """End it at once. Again does nothing."""
        self.close()
        pids, self.pids = self.pids, []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except OSError:
                pass  # the program reaps all of its children

    def __del__(self) -> None:
        self.close()


def start_early() -> None:
    """Start the template of a run that is sure to need it. Errors are left to the run."""
    if warm_pool.pool is not None or warm_pool.early is not None or is_worker():
        return
    if why_no_template() is None:
        # Kept first: a Ctrl-C may come at any time, and a later run, or the end, finds it there.
        warm_pool.early = launched = Launched()
        try:
            launched.start()
        except OSError:
            warm_pool.early = None


@in_forked_child
def _forget_early() -> None:
    """In a forked child: the template is the parent's."""
    launched, warm_pool.early = warm_pool.early, None
    if launched is not None:
        launched.close()


def read_identity() -> tuple[object, ...]:
    """Return what a template passes on to its workers and cannot change."""
    return (
        os.getpid(),
        sys.executable,
        os.getresuid() if hasattr(os, "getresuid") else (os.getuid(), os.geteuid()),
        os.getresgid() if hasattr(os, "getresgid") else (os.getgid(), os.getegid()),
        os.getgroups(),
        needs_site(),
    )


def needs_site() -> bool:
    """Say whether ``site`` has run code of somebody's, which is to run in each worker, too.

    Such code may start threads, as that of ``opentelemetry-instrument`` does: it has no place in
    the template.
    """
    return (
        bool({"sitecustomize", "usercustomize"} & sys.modules.keys())
        or "COVERAGE_PROCESS_START" in os.environ
        or "COVERAGE_PROCESS_CONFIG" in os.environ
    )


_hash_seed = ""


def _environment() -> dict[str, str]:
    """Return the environment that a template starts in; workers get that of their run."""
    global _hash_seed
    environment = dict(os.environ)
    # Paths are part of the state of each run, and what lies there is the user's.
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPROFILEIMPORTTIME"):
        environment.pop(name, None)
    if "PYTHONHASHSEED" not in environment:
        # The program's own seed cannot be read; all of its workers have one.
        _hash_seed = _hash_seed or str(int.from_bytes(os.urandom(4), "big"))
        environment["PYTHONHASHSEED"] = _hash_seed
    return environment


def _interpreter_flags() -> list[str]:
    """Return the flags that this interpreter runs with; ``subprocess`` takes long to import."""
    names = {"debug": "d", "dont_write_bytecode": "B", "verbose": "v", "bytes_warning": "b"}
    names |= {"optimize": "O", "no_site": "S", "isolated": "I"}
    if not sys.flags.isolated:
        names |= {"ignore_environment": "E", "no_user_site": "s"}
    flags = [
        "-" + letter * number
        for name, letter in names.items()
        if (number := int(getattr(sys.flags, name))) > 0
    ]
    flags += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        flags += ["-X", name if value is True else f"{name}={value}"]
    return flags
