"""The files of a program: sums that never fall, whoever dies when, and nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from amorsize.exporters.metrics import EXECUTIONS_IN_PROGRESS, WORKER_DEATHS
from amorsize.exporters.prometheus import program_files
from amorsize.exporters.prometheus.process_file import encode
from amorsize.exporters.prometheus.processes import Process
from amorsize.exporters.prometheus.program_files import ENDED_FILE, ProgramFiles
from amorsize.exporters.series import Series, Share

LABELS = ("parse", "process")


def share(count: float) -> Share:
    series: Series = {WORKER_DEATHS: {LABELS: count}, EXECUTIONS_IN_PROGRESS: {LABELS: 1}}
    return Share(series, {})


def counted(files: ProgramFiles) -> Any:
    return files.merge()[WORKER_DEATHS][LABELS]


class Member:
    """A process of this program, as far as its file shows."""

    def __init__(self, files: ProgramFiles, process: Process, count: float, **further: Any) -> None:
        name = f"process-{process.started}-{process.pid}-0.json"
        self.path = files.directory / name
        self.path.write_bytes(encode(share(count), **further))


DEAD = Process(4194305, 1)  # above the greatest id that Linux gives


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ProgramFiles]:
    files = ProgramFiles(tmp_path, lambda: share(1))
    yield files
    files.close()


@pytest.fixture
def living() -> Iterator[Process]:
    """Another process that runs."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    status = program_files.program_of(child.pid)
    yield status
    child.communicate()


def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    """A process that runs nothing leaves no trace."""
    files = ProgramFiles(tmp_path, lambda: None)
    files.write()
    assert files.merge() == {}
    assert not files.are_used
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_user_can_enter_and_read(tmp_path: Path) -> None:
    """Whatever the umask is."""
    before = os.umask(0)
    try:
        files = ProgramFiles(tmp_path, lambda: share(1))
        Member(files, DEAD, 1)
        files.merge()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files.directory.iterdir()}
        assert len(modes) == 3
        assert set(modes.values()) == {0o600}
        for directory in (files.directory, files.directory.parent):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    finally:
        os.umask(before)
        files.close()


@pytest.mark.parametrize("kind", ["open to all", "a link", "a file"])
def test_a_directory_of_somebody_elses_is_refused(tmp_path: Path, kind: str) -> None:
    """Anybody can make a directory of this name among temporary files."""
    path = tmp_path / f"amorsize-{os.geteuid()}"
    if kind == "open to all":
        path.mkdir()
        path.chmod(0o755)
    elif kind == "a link":
        (tmp_path / "other").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "other")
    else:
        path.touch()
    files = ProgramFiles(tmp_path, lambda: share(1))
    with pytest.raises(PermissionError, match=r"must be a directory of this user's.*multiprocess_"):
        files.merge()
    files.close()


def test_the_default_is_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR names them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = ProgramFiles(None, lambda: share(1))
    assert files.directory.parent == tmp_path / f"amorsize-{os.geteuid()}"
    files.close()


def test_the_shares_of_all_processes_add_up(files: ProgramFiles, living: Process) -> None:
    """The dead keep their counters, and none of their executions is in progress."""
    Member(files, living, 10)
    Member(files, DEAD, 100)
    series = files.merge()
    assert series[WORKER_DEATHS][LABELS] == 111
    assert series[EXECUTIONS_IN_PROGRESS][LABELS] == 2


def test_the_files_of_the_dead_become_one(files: ProgramFiles, living: Process) -> None:
    """However many workers a server recycles; what a killed one had half written goes, too."""
    member = Member(files, living, 10)
    for number in range(5):
        dead = Member(files, Process(DEAD.pid + number, 1), 100)
        (files.directory / f".{dead.path.name}.xyz~").touch()
    for _ in range(3):
        assert counted(files) == 511
    names = {path.name for path in files.directory.iterdir()}
    assert names == {ENDED_FILE, "folding", member.path.name, files._own_path().name}


def test_an_exporter_that_was_closed_has_no_executions_in_progress(
    files: ProgramFiles, living: Process
) -> None:
    """Although its process runs; its file is added to those of the dead."""
    member = Member(files, living, 10, closed=True)
    series = files.merge()
    assert series[WORKER_DEATHS][LABELS] == 11
    assert series[EXECUTIONS_IN_PROGRESS][LABELS] == 1
    assert not member.path.exists()


def test_one_that_closes_leaves_its_totals_to_the_others(tmp_path: Path, living: Process) -> None:
    """As they were written last."""
    files = ProgramFiles(tmp_path, lambda: share(1))
    other = ProgramFiles(tmp_path, lambda: share(5), exporter=files.exporter)
    Member(files, living, 10)
    assert counted(other) == 15
    assert counted(files) == 16
    files.close()
    assert counted(other) == 16
    assert other.merge()[EXECUTIONS_IN_PROGRESS][LABELS] == 2
    other.close()


@pytest.mark.parametrize("step", ["written", "half removed"])
def test_whoever_dies_while_folding_loses_nothing(
    files: ProgramFiles, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """And counts nothing twice: the sum names the files that it holds until they are gone."""
    dead = [Member(files, Process(DEAD.pid + number, 1), 100) for number in range(3)]
    removed: list[Path] = []
    unlink = Path.unlink

    def dies(path: Path, **options: Any) -> None:
        if step == "half removed" and not removed:
            removed.append(path)
            unlink(path)
            return
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", dies)
    with pytest.raises(KeyboardInterrupt):
        files.merge()
    monkeypatch.undo()
    assert sum(each.path.exists() for each in dead) == 3 - len(removed)
    assert [counted(files) for _ in range(3)] == [301] * 3
    Member(files, Process(DEAD.pid + 9, 1), 1000)
    assert [counted(files) for _ in range(3)] == [1301] * 3
    assert {path.name for path in files.directory.iterdir()} == {
        ENDED_FILE,
        "folding",
        files._own_path().name,
    }


def test_a_process_that_is_folded_while_it_is_read_counts_once(
    files: ProgramFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the list of the files and the reading of one, another process folds it."""
    other = ProgramFiles(files.directory.parents[1], lambda: share(1), exporter=files.exporter)
    files.write()
    assert counted(other) == 2
    Member(files, DEAD, 100)
    read = files._read

    def folded_first(path: Path) -> Any:
        monkeypatch.setattr(files, "_read", read)
        assert counted(other) == 102
        return read(path)

    monkeypatch.setattr(files, "_read", folded_first)
    assert counted(files) == 102
    other.close()


def test_one_process_folds_at_a_time(files: ProgramFiles) -> None:
    """The others read on meanwhile, even if it is frozen."""
    Member(files, DEAD, 100)
    with program_files.FileLock(files.directory / "folding") as is_locked:
        assert is_locked
        assert [counted(files) for _ in range(2)] == [101] * 2
        assert not (files.directory / ENDED_FILE).exists()
    assert counted(files) == 101
    assert (files.directory / ENDED_FILE).exists()


@pytest.mark.parametrize("name", [f"process-1-{DEAD.pid}-0.json", ENDED_FILE])
def test_a_file_that_is_no_share_is_left_out(
    files: ProgramFiles, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The log says so; everything else is there."""
    path = files.directory / name
    path.write_bytes(b'{"format": 1, "metr')
    with caplog.at_level(logging.WARNING):
        assert counted(files) == 1
    assert f"{path} is left out of the totals of this program" in caplog.text


def test_files_that_are_not_ours_are_left_alone(files: ProgramFiles, tmp_path: Path) -> None:
    """In the program's directory, and among those of programs."""
    strange = [files.directory / "notes.json", files.directory.parent / "notes"]
    for path in strange:
        path.write_text("x")
    other_host = files.directory.parent / "elsewhere-1-4194305-1-0"
    other_host.mkdir()
    ProgramFiles(tmp_path, lambda: share(1)).close()
    assert counted(files) == 1
    assert all(path.exists() for path in (*strange, other_host))


def test_a_directory_that_is_removed_is_made_again(files: ProgramFiles) -> None:
    """By somebody who cleans up."""
    import shutil

    assert counted(files) == 1
    shutil.rmtree(files.directory)
    assert counted(files) == 1


def test_directories_of_ended_programs_are_removed(tmp_path: Path, living: Process) -> None:
    """By the next program; not while one of their processes runs, although the first has ended."""
    first = ProgramFiles(tmp_path, lambda: share(1))
    user, own = first.directory.parent, first.directory
    name = own.name.replace(str(program_files.program_of(os.getpid()).pid), str(DEAD.pid), 1)
    orphaned, ended = user / name, user / name.replace(str(DEAD.pid), str(DEAD.pid + 1))
    for directory in (orphaned, ended):
        directory.mkdir()
        (directory / ENDED_FILE).touch()
    (orphaned / f"process-{living.started}-{living.pid}-0.json").touch()
    second = ProgramFiles(tmp_path, lambda: share(1))
    second.write()
    assert orphaned.exists()
    assert not ended.exists()
    for each in (first, second):
        each.close()


def test_the_last_process_of_a_program_removes_its_directory(
    tmp_path: Path, living: Process
) -> None:
    """Not before: while another one runs, the totals stay."""
    files = ProgramFiles(tmp_path, lambda: share(1))
    member = Member(files, living, 1)
    files.write()
    files.close()
    assert member.path.exists()
    member.path.unlink()
    files = ProgramFiles(tmp_path, lambda: share(1))
    files.write()
    directory = files.directory
    files.close()
    assert not directory.exists()


def test_exporters_of_one_process_are_kept_apart(tmp_path: Path) -> None:
    """Each observes its own managers; a number is used again once its exporter has closed."""
    one, two = (ProgramFiles(tmp_path, lambda: share(1)) for _ in range(2))
    assert two.exporter == one.exporter + 1
    assert (counted(one), counted(two)) == (1, 1)
    one.close()
    three = ProgramFiles(tmp_path, lambda: share(1))
    assert three.exporter == one.exporter
    for each in (one, two, three):
        each.close()


def test_a_signal_handler_may_write_over_a_write(tmp_path: Path) -> None:
    """The newer numbers stay."""
    count = 0
    files: ProgramFiles

    def read() -> Share:
        nonlocal count
        count += 1
        mine = share(count)
        if count == 1:
            files.write()  # as if a handler had interrupted here
        return mine

    files = ProgramFiles(tmp_path, read)
    files.write()
    content = json.loads(files._own_path().read_bytes())
    deaths = next(each for each in content["metrics"] if "deaths" in each["name"])
    assert deaths["series"][0][1] == 3
    files.close()


WORKER = """
import sys, time
from pathlib import Path
from amorsize.exporters.prometheus import program_files
from amorsize.exporters.prometheus.processes import Process
from amorsize.exporters.prometheus.program_files import ProgramFiles
from amorsize.exporters.series import Share
from amorsize.exporters.metrics import WORKER_DEATHS

base, pid, started = sys.argv[1:]
program_files.program_of = lambda _: Process(int(pid), int(started))  # as if it had been forked
count = 0
files = ProgramFiles(Path(base), lambda: Share({WORKER_DEATHS: {("a", "b"): count}}, {}), 0)
while True:
    count += 1
    files.write()
    print(count, flush=True)
    total = files.merge()[WORKER_DEATHS]["a", "b"]
"""


def test_what_a_killed_process_leaves_after_it_was_added_up_goes_with_the_next_reading(
    tmp_path: Path,
) -> None:
    """One of its threads ends a little later: its file is back, and an unfinished one beside it."""
    program = program_files.program_of(os.getpid())
    arguments = [str(tmp_path), str(program.pid), str(program.started)]
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        for _ in range(5):
            worker.stdout.readline()
        worker.kill()
    ours = ProgramFiles(tmp_path, lambda: Share({WORKER_DEATHS: {("a", "b"): 0}}, {}), 0)
    (left,) = [path for path in ours.directory.glob("process-*") if str(worker.pid) in path.name]
    content = left.read_bytes()
    deaths: Any = ours.merge()[WORKER_DEATHS]["a", "b"]
    assert not left.exists()
    left.write_bytes(content)
    unfinished = left.with_name(f".{left.name}.abc~")
    unfinished.write_bytes(content[:10])
    assert ours.merge()[WORKER_DEATHS]["a", "b"] == deaths
    assert not left.exists()
    assert not unfinished.exists()
    ours.close()


def test_sums_never_fall_while_processes_are_killed(tmp_path: Path) -> None:
    """Whenever they are: between two statements, while they write, and while they fold."""
    shown: list[float] = []
    done = threading.Event()
    files = ProgramFiles(tmp_path, lambda: Share({WORKER_DEATHS: {("a", "b"): 0}}, {}), 0)
    program = program_files.program_of(os.getpid())
    arguments = [str(tmp_path), str(program.pid), str(program.started)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, text=True
        )

    def read_on() -> None:
        while not done.is_set():
            shown.append(files.merge()[WORKER_DEATHS]["a", "b"])  # type: ignore[arg-type]

    reader = threading.Thread(target=read_on)
    reader.start()
    written = 0
    try:
        workers = [start(), start()]
        for _ in range(6):
            worker = workers.pop(0)
            workers.append(start())
            assert worker.stdout is not None
            lines = [worker.stdout.readline() for _ in range(20)]
            worker.send_signal(signal.SIGKILL)
            rest, _ = worker.communicate()
            lines += rest.splitlines(keepends=True)
            written += int([line for line in lines if line.endswith("\n")][-1])
        for worker in workers:
            worker.kill()
            rest, _ = worker.communicate()
            whole = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
            written += int(whole[-1]) if whole else 0
    finally:
        done.set()
        reader.join()
    assert shown == sorted(shown)
    # Each may have written once more than it could say.
    total: Any = files.merge()[WORKER_DEATHS]["a", "b"]
    assert written <= total <= written + 8
    assert len(list(files.directory.glob("process-*"))) == 1
    assert list(files.directory.glob(".*~")) == []
    files.close()


def test_reading_gives_up_where_files_change_without_end(
    files: ProgramFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrape fails, and says so."""

    def vanishes(path: Path) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(files, "_read", vanishes)
    with pytest.raises(OSError, match="change too often to be read"):
        files.merge()


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    """Killed, it holds nothing; and a lock that cannot be taken for another reason is an error."""
    from amorsize.exporters.prometheus.file_lock import FileLock

    holds = """if True:
        import sys, time
        from pathlib import Path
        from amorsize.exporters.prometheus.file_lock import FileLock
        print(FileLock(Path(sys.argv[1])).acquire(), flush=True)
        time.sleep(1000)
    """
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", holds, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    lock = FileLock(path)
    assert not lock.acquire()
    holder.kill()
    holder.communicate()
    wait_until(lock.acquire, "the lock")
    lock.release()
    lock.release()
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "missing" / "lock").acquire()
