"""The demo's input: the source files of Python's own standard library."""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from amorsize.errors import AmorsizeError

MAX_FILES = 750
"""Work for half a minute on two cores; the whole library without its tests has about 730 files."""

BUNDLE_BYTES = 128 * 1024
"""Sources are compressed in bundles of at least this size, about 0.15 s of work each."""

_SKIPPED = {"site-packages", "dist-packages", "__pycache__"}
_TESTS = {"test", "tests", "idle_test"}  # installed on some machines, left out on others


@dataclass(frozen=True)
class Sources:
    """Some source files and their sizes.

    Attributes:
        root: the folder that they are in.
        sizes: the size of each file in bytes, by its name relative to ``root``, with slashes.
    """

    root: Path
    sizes: dict[str, int]

    @cached_property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    def path(self, name: str) -> str:
        return str(self.root / name)

    def bundles(self) -> Iterator[tuple[str, ...]]:
        """Group the files' paths into bundles of at least ``BUNDLE_BYTES``, the last one less."""
        bundle: list[str] = []
        size = 0
        for name, file_size in self.sizes.items():
            bundle.append(self.path(name))
            size += file_size
            if size >= BUNDLE_BYTES:
                yield tuple(bundle)
                bundle, size = [], 0
        if bundle:
            yield tuple(bundle)


def find_sources(root: Path | None = None, *, max_files: int = MAX_FILES) -> Sources:
    """Find the standard library's sources, tests left out.

    Args:
        root: the folder to search; None means this interpreter's standard library.
        max_files: how many files to take at most.

    Raises:
        AmorsizeError: there are none, because Python is installed without its sources.
    """
    if root is None:
        root = Path(sysconfig.get_paths()["stdlib"])
    paths: list[Path] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED - _TESTS)  # os.walk goes into these only
        paths += [Path(folder, name) for name in sorted(files) if name.endswith(".py")]
    if not paths:
        raise AmorsizeError(
            f"the demo works on the source files of Python's standard library, and there are none "
            f"in {root}; run it with a Python that is installed with its sources"
        )
    # The first items of each stage are its sample; in alphabetical order they would be too similar.
    random.Random(9464).shuffle(paths)
    return Sources(
        root, {path.relative_to(root).as_posix(): path.stat().st_size for path in paths[:max_files]}
    )


def count_lines(data: bytes) -> int:
    """Count lines, including a last one without a newline."""
    return data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
