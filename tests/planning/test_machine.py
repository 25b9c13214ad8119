"""What this process may use, read from trees of our own and from this machine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from amorsize.errors import InvalidValueError
from amorsize.planning import machine
from amorsize.planning.machine import (
    PRIORS,
    StartupCosts,
    SystemFacts,
    count_physical_cores,
    measure_startup,
    read_cpu_quota,
    read_memory,
    read_system,
)

V2_MOUNT = "30 20 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   8000000 kB\n"


class Tree:
    """A root directory with just the files that a test names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> Tree:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_v2_quota_of_a_parent_group_counts(tree: Tree) -> None:
    """The tightest limit on the way up holds, wherever it was set."""
    tree.write("proc/self/cgroup", "0::/jobs/batch\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/jobs/batch/cpu.max", "400000 100000\n")
    tree.write("sys/fs/cgroup/jobs/cpu.max", "150000 100000\n")
    assert read_cpu_quota(root=tree.root) == 1.5


def test_v2_without_limit_has_no_quota(tree: Tree) -> None:
    """The word max is no number of cores."""
    tree.write("proc/self/cgroup", "0::/\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/cpu.max", "max 100000\n")
    assert read_cpu_quota(root=tree.root) is None


def test_v2_period_may_be_missing(tree: Tree) -> None:
    """A period that is not written is the kernel's default of 100 ms."""
    tree.write("proc/self/cgroup", "0::/\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/cpu.max", "50000\n")
    assert read_cpu_quota(root=tree.root) == 0.5


@pytest.mark.parametrize(("quota", "cores"), [("250000", 2.5), ("-1", None), ("0", None)])
def test_v1_quota(tree: Tree, quota: str, cores: float | None) -> None:
    """Version 1 writes quota and period into two files, and -1 for none."""
    tree.write("proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a/b\n0::/\n")
    tree.write("proc/self/mountinfo", V1_MOUNTS.format(root="/"))
    tree.write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", quota + "\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n")
    assert read_cpu_quota(root=tree.root) == cores


@pytest.mark.parametrize("mount_root", ["/docker/abc", "/"])
def test_container_without_a_namespace_finds_its_own_group(tree: Tree, mount_root: str) -> None:
    """The host's path is shown, the container's group is mounted: the mount point is meant."""
    tree.write("proc/self/cgroup", "3:cpu,cpuacct:/docker/abc\n")
    tree.write("proc/self/mountinfo", V1_MOUNTS.format(root=mount_root))
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert read_cpu_quota(root=tree.root) == 3.0


def test_path_outside_the_namespace_stays_below_the_mount(tree: Tree) -> None:
    """A path with .. in it is not followed."""
    tree.write("proc/self/cgroup", "0::/../other\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    tree.write("sys/fs/other/cpu.max", "100000 100000\n")
    assert read_cpu_quota(root=tree.root) == 2.0


def test_escaped_mount_point(tree: Tree) -> None:
    """mountinfo writes a space as \\040."""
    mount = V2_MOUNT.replace("/sys/fs/cgroup", r"/my\040groups")
    tree.write("proc/self/cgroup", "0::/\n").write("proc/self/mountinfo", mount)
    tree.write("my groups/cpu.max", "100000 100000\n")
    assert read_cpu_quota(root=tree.root) == 1.0


def test_nothing_to_read_is_no_limit(tree: Tree) -> None:
    """Outside Linux there are no such files."""
    assert read_cpu_quota(root=tree.root) is None
    assert read_memory(root=tree.root) == (None, None)


@pytest.mark.parametrize("garbage", ["", "what\n", "0\n", ":::\n", "0::/\n1:cpu\n"])
def test_garbage_is_no_limit(tree: Tree, garbage: str) -> None:
    """Files that are not as documented do not raise."""
    tree.write("proc/self/cgroup", garbage).write("proc/self/mountinfo", garbage)
    tree.write("proc/meminfo", "MemTotal:  what\n")
    assert read_cpu_quota(root=tree.root) is None
    assert read_memory(root=tree.root) == (None, None)


def test_v2_memory_limit_and_droppable_cache(tree: Tree) -> None:
    """What a group may still take is its limit less its use, and page cache that can go."""
    tree.write("proc/meminfo", MEMINFO)
    tree.write("proc/self/cgroup", "0::/job\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/job/memory.max", "1000000000\n")
    tree.write("sys/fs/cgroup/job/memory.high", "900000000\n")
    tree.write("sys/fs/cgroup/job/memory.current", "700000000\n")
    tree.write("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 100000000\n")
    assert read_memory(root=tree.root) == (900_000_000, 300_000_000)


def test_v1_memory_no_limit_is_the_machine(tree: Tree) -> None:
    """Version 1 says no limit with a number near 2**63."""
    tree.write("proc/meminfo", MEMINFO)
    tree.write("proc/self/cgroup", "4:memory:/a\n")
    tree.write("proc/self/mountinfo", V1_MOUNTS.format(root="/"))
    tree.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n")
    assert read_memory(root=tree.root) == (16_000_000 * 1024, 8_000_000 * 1024)


def test_v1_memory_limit_of_a_parent(tree: Tree) -> None:
    """The parent's limit and its use count for the child."""
    tree.write("proc/meminfo", MEMINFO)
    tree.write("proc/self/cgroup", "4:memory:/a/b\n")
    tree.write("proc/self/mountinfo", V1_MOUNTS.format(root="/"))
    tree.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000\n")
    tree.write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1500\n")
    tree.write("sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file 200\n")
    tree.write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "5000\n")
    tree.write("sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "100\n")
    assert read_memory(root=tree.root) == (2000, 700)


def test_use_over_the_limit_leaves_nothing(tree: Tree) -> None:
    """Available memory is never negative."""
    tree.write("proc/self/cgroup", "0::/\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/memory.max", "100\n").write("sys/fs/cgroup/memory.current", "150\n")
    assert read_memory(root=tree.root) == (100, 0)


def test_hyperthreads_of_a_core_count_once(tree: Tree) -> None:
    """Four hardware threads on two cores."""
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        tree.write(path, siblings + "\n")
    assert count_physical_cores(frozenset(range(4)), root=tree.root) == 2
    assert count_physical_cores(frozenset({0, 1}), root=tree.root) == 2
    assert count_physical_cores(frozenset({0, 2}), root=tree.root) == 1


def test_without_topology_every_thread_is_a_core(tree: Tree) -> None:
    """Where the kernel does not say, none is left out."""
    assert count_physical_cores(frozenset({0, 1, 2}), root=tree.root) == 3


def test_facts_of_this_machine() -> None:
    """The parts agree with each other, and memory is read when asked for."""
    facts = read_system()
    assert 1 <= facts.usable_cores <= facts.affinity_cores <= facts.logical_cores
    assert 1 <= facts.physical_cores <= facts.affinity_cores
    assert facts.total_bytes is not None
    assert facts.available_bytes is not None
    assert 0 < facts.available_bytes <= facts.total_bytes
    assert read_system(memory=False).total_bytes is None


def test_affinity_limits_and_is_never_remembered(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed mask is seen at once, a quota is rounded up."""
    tree.write("proc/self/cgroup", "0::/\n").write("proc/self/mountinfo", V2_MOUNT)
    tree.write("sys/fs/cgroup/cpu.max", "250000 100000\n")
    monkeypatch.setattr(machine, "_affinity", lambda: frozenset(range(8)))
    facts = read_system(memory=False, root=tree.root)
    assert (facts.affinity_cores, facts.quota_cores, facts.usable_cores) == (8, 2.5, 3)
    monkeypatch.setattr(machine, "_affinity", lambda: frozenset({1, 5}))
    assert read_system(memory=False, root=tree.root).usable_cores == 2


def test_a_quota_below_one_core_leaves_one() -> None:
    """Half a core is one worker."""
    assert SystemFacts.of(4, quota_cores=0.2).usable_cores == 1


def test_startup_prior_then_measurement() -> None:
    """The first measurement replaces the prior, later ones count half."""
    costs = StartupCosts()
    assert costs.model("process") is PRIORS["process"]
    prior = PRIORS["process"].seconds(2, cores=2)
    costs.record("process", 2, prior * 3, cores=2)
    assert costs.model("process").measured
    assert costs.model("process").seconds(2, cores=2) == pytest.approx(prior * 3)
    costs.record("process", 2, prior, cores=2)
    assert costs.model("process").seconds(2, cores=2) == pytest.approx(prior * 2)
    assert costs.model("thread") is PRIORS["thread"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_startup_ignores_what_cannot_be(seconds: float) -> None:
    """A clock that went wrong leaves the prior."""
    costs = StartupCosts()
    costs.record("process", 2, seconds, cores=2)
    costs.record("process", 0, 1.0, cores=2)
    costs.record("serial", 1, 1.0, cores=2)
    assert not costs.model("process").measured


def test_warm_workers_cost_nothing() -> None:
    """No new worker, no start-up."""
    assert PRIORS["process"].seconds(0, cores=2) == 0.0
    assert PRIORS["process"].seconds(-1, cores=2) == 0.0


def test_startup_may_be_recorded_by_many_threads() -> None:
    """The scale stays within what was recorded."""
    costs = StartupCosts()
    expected = PRIORS["process"].seconds(1, cores=1)

    def record() -> None:
        for factor in (1.0, 2.0) * 50:
            costs.record("process", 1, expected * factor, cores=1)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected <= costs.model("process").seconds(1, cores=1) <= 2 * expected


def test_measuring_starts_real_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines are measured, and the measurement is recorded."""
    costs = StartupCosts()
    monkeypatch.setattr(machine, "STARTUP_COSTS", costs)
    assert measure_startup("thread") > 0
    assert measure_startup("process") > 0
    assert costs.model("thread").measured
    assert costs.model("process").measured


def test_measuring_refuses_the_rest() -> None:
    """Only what starts workers can be measured."""
    with pytest.raises(InvalidValueError, match="'serial' has no start-up to measure"):
        measure_startup("serial")
