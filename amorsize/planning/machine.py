"""The resources that this process may use: cores, memory; and the cost of starting workers.

The numbers a machine reports are not those a process may use. Cores are cut by the affinity mask
and by the CPU quota of every control group above the process, memory by the groups' limits; both
are read here, for cgroup v1 and v2. Every path is read below ``root``, so tests bring their own
tree.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux,
proc(5) for mountinfo.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time

from amorsize.errors import InvalidValueError
from amorsize.workers.record import Record
from amorsize.workers.role import is_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/"

StrPath = str | os.PathLike[str]
CORES_TTL_SECONDS = 10.0
"""How long cores and quota are remembered: reading them costs 0.2 ms, and containers are resized
while they run."""

ENGINES = ("serial", "thread", "process")


def engines_here() -> tuple[str, ...]:
    """List the engines that a run in this process may choose.

    In a worker process the workers of the outer run have the cores already.
    """
    return ("serial", "thread") if is_worker() else ENGINES


class SystemFacts(Record):
    """The cores and the memory that this process may use.

    Attributes:
        logical_cores: hardware threads of the machine.
        affinity_cores: those this process may be scheduled on.
        physical_cores: physical cores of ``affinity_cores`` (two hyperthreads are one).
        quota_cores: CPU quota of the control groups in cores, or None without one.
        usable_cores: workers that can compute at the same time; at least 1. A quota is rounded
            up, because one worker more uses up its fraction.
        total_bytes: memory of the machine or of the tightest group, None when not read.
        available_bytes: memory that can still be taken, None when not read.
    """

    logical_cores: int
    affinity_cores: int
    physical_cores: int
    quota_cores: float | None
    usable_cores: int
    total_bytes: int | None = None
    available_bytes: int | None = None

    @classmethod
    def of(
        cls,
        cores: int,
        *,
        physical_cores: int | None = None,
        quota_cores: float | None = None,
        total_bytes: int | None = None,
        available_bytes: int | None = None,
    ) -> SystemFacts:
        """Facts of a machine that is described rather than read.

        >>> SystemFacts.of(8, quota_cores=2.5).usable_cores
        3
        """
        return cls(
            logical_cores=cores,
            affinity_cores=cores,
            physical_cores=cores if physical_cores is None else physical_cores,
            quota_cores=quota_cores,
            usable_cores=_usable(cores, quota_cores),
            total_bytes=total_bytes,
            available_bytes=available_bytes,
        )


def _usable(cores: int, quota: float | None) -> int:
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


_remembered: tuple[tuple[StrPath, frozenset[int]], float, SystemFacts] | None = None
"""The root and the affinity, until when they are remembered, and what was read of them. It is
replaced as a whole: threads need no lock, which one of them could hold during a fork."""


def read_system(*, memory: bool = True, root: StrPath = ROOT) -> SystemFacts:
    """Read what this process may use now.

    Args:
        memory: read memory too (0.1 ms), which is never remembered.
        root: the directory under which ``proc`` and ``sys`` are looked up.

    >>> facts = read_system()
    >>> 1 <= facts.usable_cores <= facts.logical_cores
    True
    """
    global _remembered
    affinity = _affinity()
    key = (root, affinity)
    now = time.monotonic()
    remembered = _remembered
    if remembered is not None and remembered[0] == key and now < remembered[1]:
        facts = remembered[2]
    else:
        facts = _read_cores(affinity, root)
        _remembered = key, now + CORES_TTL_SECONDS, facts
    if not memory:
        return facts
    total, available = read_memory(root=root)
    return SystemFacts(
        logical_cores=facts.logical_cores,
        affinity_cores=facts.affinity_cores,
        physical_cores=facts.physical_cores,
        quota_cores=facts.quota_cores,
        usable_cores=facts.usable_cores,
        total_bytes=total,
        available_bytes=available,
    )


def _affinity() -> frozenset[int]:
    read = getattr(os, "sched_getaffinity", None)  # Linux only
    return frozenset(range(os.cpu_count() or 1) if read is None else read(0))


def _read_cores(affinity: frozenset[int], root: StrPath) -> SystemFacts:
    logical = os.cpu_count() or 1
    quota = read_cpu_quota(root=root)
    return SystemFacts(
        logical_cores=max(logical, len(affinity)),
        affinity_cores=len(affinity),
        physical_cores=count_physical_cores(affinity, root=root),
        quota_cores=quota,
        usable_cores=_usable(len(affinity), quota),
    )


def count_physical_cores(cpus: frozenset[int], *, root: StrPath = ROOT) -> int:
    """Count the cores of a set of hardware threads; threads of one core count once."""
    siblings = set()
    for cpu in cpus:
        topology = os.path.join(root, f"sys/devices/system/cpu/cpu{cpu}/topology")
        text = _read_text(topology, "core_cpus_list") or _read_text(
            topology, "thread_siblings_list"
        )
        if text is None:
            break
        siblings.add(text.strip())
    else:
        return max(1, len(siblings))
    if root != ROOT:
        return max(1, len(cpus))
    import psutil

    return max(1, min(len(cpus), psutil.cpu_count(logical=False) or len(cpus)))


def read_cpu_quota(*, root: StrPath = ROOT) -> float | None:
    """The tightest CPU quota of the control groups of this process, in cores; None without one."""
    quotas = []
    for version, level in _cgroup_levels("cpu", root):
        if version == 2:
            fields = (_read_text(level, "cpu.max") or "").split()
            quota = _number(fields[0]) if fields else None
            period = _number(fields[1]) if len(fields) > 1 else 100_000
        else:
            quota = _number(_read_text(level, "cpu.cfs_quota_us"))
            period = _number(_read_text(level, "cpu.cfs_period_us"))
        if quota is not None and period is not None and quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def read_memory(*, root: StrPath = ROOT) -> tuple[int | None, int | None]:
    """Memory in bytes that this process may use: ``(total, still available)``.

    A group's page cache that can be dropped (``inactive_file``) counts as available, as in
    ``docker stats``. ``memory.high`` counts as a limit: above it the kernel slows the group down.
    """
    total, available = _machine_memory(root)
    for version, level in _cgroup_levels("memory", root):
        if version == 2:
            limits = [_number(_read_text(level, f"memory.{name}")) for name in ("max", "high")]
            used = _number(_read_text(level, "memory.current"))
            cache_field = "inactive_file"
        else:
            limits = [_number(_read_text(level, "memory.limit_in_bytes"))]
            used = _number(_read_text(level, "memory.usage_in_bytes"))
            cache_field = "total_inactive_file"
        limit = min((value for value in limits if value is not None), default=None)
        # Version 1 says "no limit" with a number near 2**63.
        if limit is None or limit >= 1 << 62:
            continue
        total = limit if total is None else min(total, limit)
        if used is not None:
            headroom = max(0, limit - used + _stat(level, cache_field))
            available = headroom if available is None else min(available, headroom)
    if total is not None and available is not None:
        available = min(available, total)
    return total, available


def _machine_memory(root: StrPath) -> tuple[int | None, int | None]:
    text = _read_text(root, "proc/meminfo")
    if text is not None:
        kib = {line.partition(":")[0]: line.split()[1] for line in text.splitlines() if ":" in line}
        total, available = _number(kib.get("MemTotal")), _number(kib.get("MemAvailable"))
        if total is not None and available is not None:
            return total * 1024, available * 1024
    if root != ROOT:
        return None, None
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _cgroup_levels(controller: str, root: StrPath) -> Iterator[tuple[int, str]]:
    """Yield ``(version, directory)`` from the group of this process up to its mount point."""
    groups = _read_text(root, "proc/self/cgroup")
    if groups is None:
        return
    paths: dict[int, str] = {}
    for line in groups.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    for version, mount_root, mount_point in _cgroup_mounts(controller, root):
        if version not in paths:
            continue
        top = os.path.join(root, mount_point.strip("/"))
        # Without a cgroup namespace a container sees the host's path, but its own group is
        # mounted: the path is then relative to the mount's root, or unknown.
        path = paths[version]
        prefix = mount_root.rstrip("/")
        inside = path == prefix or path.startswith(prefix + "/")
        relative = path[len(prefix) :].strip("/") if inside else ""
        level = os.path.join(top, relative) if relative else top
        if ".." in relative.split("/") or not os.path.isdir(level):
            level = top
        while True:
            yield version, level
            if level == top:
                break
            level = os.path.dirname(level)


def _cgroup_mounts(controller: str, root: StrPath) -> list[tuple[int, str, str]]:
    """The mounted hierarchies of a controller: ``(version, root within it, mount point)``."""
    text = _read_text(root, "proc/self/mountinfo")
    if text is None:
        return [(2, "/", "/sys/fs/cgroup"), (1, "/", f"/sys/fs/cgroup/{controller}")]
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        where = (_unescape(fields[3]), _unescape(fields[4]))
        if kind[0] == "cgroup2":
            mounts.append((2, *where))
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            mounts.append((1, *where))
    return mounts


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    import re

    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _read_text(directory: StrPath, name: str) -> str | None:
    try:
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:  # "max"
        return None


def _stat(level: str, field: str) -> int:
    for line in (_read_text(level, "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == field:
            return _number(value) or 0
    return 0


class StartupModel(Record):
    """The cost of starting workers of one engine.

    Attributes:
        boot_seconds: a worker's own start, done by as many at a time as there are cores.
        spawn_seconds: the parent's share for each worker, one after the other.
        measured: whether it was measured in this process.

    >>> StartupModel(boot_seconds=0.5, spawn_seconds=0.25).seconds(4, cores=2)
    2.0
    """

    boot_seconds: float
    spawn_seconds: float
    measured: bool = False

    def seconds(self, workers: int, *, cores: int) -> float:
        """Seconds until ``workers`` new workers are ready."""
        if workers <= 0:
            return 0.0
        return self.boot_seconds * math.ceil(workers / max(1, cores)) + self.spawn_seconds * workers


PRIORS = {
    "serial": StartupModel(0.0, 0.0),
    # Start of a thread on an idle machine, and until it takes its first chunk.
    "thread": StartupModel(0.0, 60e-6),
    # Two interpreters on two cores: up in 40 ms, first answer 24 ms later (Python 3.11).
    "process": StartupModel(0.056, 4e-3),
}
"""Start-up costs before anything was measured in this process."""


class StartupCosts:
    """Start-up cost of each engine: priors, then what was measured. Safe to use from any thread.

    The shape of the model stays that of :data:`PRIORS`; a measurement scales it. The first one
    replaces the prior, later ones count half, so that one slow start on a busy machine is
    forgotten. Of two that come at the same moment, one may be lost.

    >>> costs = StartupCosts()
    >>> costs.record("process", workers=2, seconds=0.128, cores=2)
    >>> round(costs.model("process").seconds(2, cores=2), 3)
    0.128
    """

    def __init__(self) -> None:
        self._scales: dict[str, float] = {}

    def model(self, engine: str) -> StartupModel:
        """The model of an engine, as known now."""
        prior = PRIORS[engine]
        scale = self._scales.get(engine)
        if scale is None:
            return prior
        return StartupModel(prior.boot_seconds * scale, prior.spawn_seconds * scale, measured=True)

    def record(self, engine: str, workers: int, seconds: float, *, cores: int) -> None:
        """Take in one measurement: ``workers`` were started at once and ready after ``seconds``."""
        expected = PRIORS[engine].seconds(workers, cores=cores)
        if not (expected > 0 and math.isfinite(seconds) and seconds > 0):
            return
        scale = min(100.0, max(0.02, seconds / expected))
        before = self._scales.get(engine)
        self._scales[engine] = scale if before is None else (before + scale) / 2


STARTUP_COSTS = StartupCosts()
"""The start-up costs of this process, shared by all threads."""


def record_startup(engine: str, workers: int, seconds: float) -> None:
    """Say how long starting workers took; called by a pool that really started some.

    Args:
        engine: ``"thread"`` or ``"process"``.
        workers: how many were started at once.
        seconds: from the first start until the last worker was ready.
    """
    STARTUP_COSTS.record(engine, workers, seconds, cores=read_system(memory=False).usable_cores)


def measure_startup(engine: str) -> float:
    """Start one worker of an engine, record what it cost, and return the seconds.

    Costs 0.3 ms for threads and 50 to 100 ms for processes. Called by ``optimize()`` when the
    work is so long that this does not matter; a run measures its own pool for nothing.

    Raises:
        InvalidValueError: the engine has no workers that could be started.

    >>> measure_startup("thread") > 0
    True
    """
    if engine == "thread":
        count = 8
        began = time.perf_counter()
        threads = [threading.Thread(target=_nothing, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        record_startup("thread", count, seconds)
        return seconds / count
    if engine == "process":
        import subprocess  # 3 ms, needed here alone

        began = time.perf_counter()
        # The modules that a worker imports before it can take its first chunk.
        subprocess.run(
            [sys.executable, "-c", "import cloudpickle, amorsize.workers.chunk"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=60,
        )
        seconds = time.perf_counter() - began
        record_startup("process", 1, seconds)
        return seconds
    raise InvalidValueError(
        f"engine {engine!r} has no start-up to measure; give 'thread' or 'process'."
    )


def _nothing() -> None:
    return None
