"""The demo's three functions, and the service that one of them asks."""

from __future__ import annotations

import bz2
import pickle
import threading
import time
import urllib.parse

import pytest
from waiting import PATIENCE

from amorsize.demo.service import FactsService
from amorsize.demo.sources import find_sources
from amorsize.demo.stages import Download, Measures, ServiceRefused, compress, fetch, get, measure

PROGRAM = '''\
"""A module."""

# Comment one
import os  # comment two


class Shelf:
    """Holds books."""

    def find(self, title):
        for book in self.books:
            if book.title == title and book.here or title is None:
                return book
        return [b for b in self.books if b] or None


async def lend(
    book,
):
    try:
        book.out()
    except OSError:
        assert book
'''


@pytest.fixture
def service(tmp_path):
    for name in ("one.py", "two words.py"):
        (tmp_path / name).write_text("x = 1\ny = 2\n")
    with FactsService(find_sources(tmp_path), wait_seconds=(0.0, 0.0)) as running:
        yield running


def test_measure_counts_what_is_there(tmp_path):
    """Counted by hand. 'find': for, if, and, or; a comprehension with an if, or; and one."""
    path = tmp_path / "shelf.py"
    path.write_text(PROGRAM)
    assert measure(str(path)) == Measures(
        path=str(path),
        bytes=len(PROGRAM),
        lines=23,
        code_lines=16,
        comments=2,
        functions=2,
        classes=1,
        documented=1,
        deepest=4,
        complexity=8,
        most_complex="Shelf.find",
        names=14,
        name_characters=52,
    )


@pytest.mark.parametrize("text", ["print 'Python 2'\n", "x = '\0'\n", "def f(:\n"])
def test_what_is_no_python_has_a_size_all_the_same(tmp_path, text):
    """Some files in libraries are templates, or samples of other Pythons."""
    path = tmp_path / "old.py"
    path.write_text(text)
    assert measure(str(path)) == Measures(str(path), len(text), 1)


def test_measure_bears_code_that_is_nested_deeply(tmp_path):
    """Generated modules hold sums of thousands of terms."""
    path = tmp_path / "deep.py"
    path.write_text("x = " + " + ".join(["y"] * 1500) + "\n")
    assert measure(str(path)).names == 1501


def test_compress_finds_the_smallest_of_three(tmp_path):
    """The winner's size is that of the compressed whole."""
    paths = tuple(str(tmp_path / name) for name in "ab")
    for path in paths:
        with open(path, "w") as file:
            file.write("text " * 20_000)
    packed = compress(paths)
    assert packed.algorithm == "bz2"
    assert packed.bytes == 200_000
    assert packed.packed_bytes == len(bz2.compress(b"text " * 40_000))


def test_fetch_gets_the_facts(service):
    """Names that need quoting too."""
    assert fetch(service.url("one.py")) == Download("one.py", 12, 2)
    assert fetch(service.url("two words.py")) == Download("two words.py", 12, 2)


@pytest.mark.parametrize("name", ["three.py", "../one.py", "", "/etc/passwd"])
def test_the_service_knows_its_files_alone(service, name):
    """Whatever else is asked for is not found, wherever it is."""
    assert get(service.url(name))[0] == 404


def test_the_service_takes_its_time(tmp_path):
    """A file's wait is always the same one, within the bounds."""
    (tmp_path / "one.py").write_text("")
    with FactsService(find_sources(tmp_path), wait_seconds=(0.05, 0.06)) as service:
        start = time.monotonic()
        fetch(service.url("one.py"))
        assert time.monotonic() - start >= 0.05


def test_the_service_answers_many_at_once(tmp_path):
    """A hundred askers wait together, none for another."""
    (tmp_path / "one.py").write_text("")
    everybody = threading.Barrier(100, timeout=PATIENCE)
    answers: list[Download] = []

    def ask(url: str) -> None:
        everybody.wait()
        answers.append(fetch(url))

    with FactsService(find_sources(tmp_path), wait_seconds=(0.5, 0.5)) as service:
        threads = [threading.Thread(target=ask, args=[service.url("one.py")]) for _ in range(100)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start < 50  # what they wait one after the other
    assert len(answers) == 100


def test_the_service_refuses_on_request(tmp_path):
    """A refusal is an exception that names the address, and can be pickled."""
    (tmp_path / "one.py").write_text("")
    with FactsService(find_sources(tmp_path), wait_seconds=(0.0, 0.0), refuse_one_in=1) as service:
        url = service.url("one.py")
        with pytest.raises(ServiceRefused, match=rf"{url} answered 503") as caught:
            fetch(url)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_service_frees_its_port(tmp_path):
    """After its block the service no longer answers."""
    (tmp_path / "one.py").write_text("")
    with FactsService(find_sources(tmp_path)) as service:
        url = service.url("one.py")
    with pytest.raises(ConnectionRefusedError):
        get(url)


def test_proxies_of_the_environment_are_not_asked(service, monkeypatch):
    """A proxy cannot reach this machine's 127.0.0.1."""
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    url = service.url("one.py")
    assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"
    assert get(url)[0] == 200
