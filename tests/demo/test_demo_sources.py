"""The demo's input: which files it takes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from amorsize.demo import sources as sources_module
from amorsize.demo.sources import count_lines, find_sources
from amorsize.errors import AmorsizeError


def write(root: Path, name: str, text: str = "x = 1\n") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_it_takes_this_pythons_standard_library_without_tests_and_packages():
    """What is installed beside the library is not the same on two machines."""
    found = find_sources(max_files=100_000)
    assert found.root == Path(sysconfig.get_paths()["stdlib"])
    assert {"ast.py", "json/decoder.py", "email/message.py"} <= found.sizes.keys()
    parts = {part for name in found.sizes for part in name.split("/")}
    assert not parts & {"site-packages", "dist-packages", "__pycache__", "test", "tests"}


def test_it_takes_no_more_files_than_asked_for_and_the_same_ones_each_time():
    """Two rounds, and two machines with one library, work on the same."""
    first = find_sources(max_files=20)
    assert len(first.sizes) == 20
    assert first == find_sources(max_files=20)


def test_the_first_files_are_not_of_one_package():
    """They are the sample, which must be like the rest."""
    assert len({name.split("/")[0] for name in find_sources(max_files=20).sizes}) > 5


def test_sizes_and_paths_are_those_of_the_files(tmp_path):
    """Names are relative and have slashes; the size is in bytes."""
    write(tmp_path, "one.py", "é = 1\n")
    write(tmp_path, "deep/er/two.py", "")
    found = find_sources(tmp_path)
    assert found.sizes == {"one.py": 7, "deep/er/two.py": 0}
    assert found.total_bytes == 7
    assert Path(found.path("deep/er/two.py")) == tmp_path / "deep" / "er" / "two.py"


def test_bundles_hold_every_file_once_and_have_a_size(tmp_path, monkeypatch):
    """The last bundle holds the rest."""
    monkeypatch.setattr(sources_module, "BUNDLE_BYTES", 10)
    for number in range(7):
        write(tmp_path, f"{number}.py", "x = 1\n")
    found = find_sources(tmp_path)
    bundles = list(found.bundles())
    assert [len(bundle) for bundle in bundles] == [2, 2, 2, 1]
    assert [path for bundle in bundles for path in bundle] == [found.path(n) for n in found.sizes]


def test_a_python_without_sources_is_an_error(tmp_path):
    """Such as one whose library is in a zip file."""
    with pytest.raises(AmorsizeError, match=r"there are none in .*; run it with a Python"):
        find_sources(tmp_path)


@pytest.mark.parametrize(("data", "lines"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\nb\n", 2)])
def test_lines_are_counted_with_a_last_one_that_has_no_newline(data, lines):
    """As an editor shows them."""
    assert count_lines(data) == lines
