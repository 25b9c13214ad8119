"""The demo's three functions. Each needs another engine, and none of them refers to one.

``measure`` computes in Python and holds the GIL: it needs processes. ``compress`` computes in C
and releases the GIL: threads are enough. ``fetch`` waits: it needs many threads.
"""

from __future__ import annotations

import ast
import bz2
import io
import json
import lzma
import threading
import tokenize
import warnings
import zlib
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from amorsize.demo.sources import count_lines

_TIMEOUT_SECONDS = 30.0

_PARSER = threading.Lock()
"""Python 3.11 miscounts its depth when two threads parse (gh-106905), as they do on Dask workers.
Nothing is lost: the parser holds the GIL."""


@dataclass(slots=True)
class Measures:
    """The figures of a source file, as ``measure`` returns them.

    Attributes:
        path, bytes, lines: the file.
        code_lines: lines that hold code; comments: their number.
        functions, classes: defined in it; documented: those of them with a docstring.
        deepest: how far compound statements are nested.
        complexity: the cyclomatic complexity of the most complex function; most_complex: its name.
        names, name_characters: uses of names, and the sum of their lengths.
    """

    path: str
    bytes: int
    lines: int
    code_lines: int = 0
    comments: int = 0
    functions: int = 0
    classes: int = 0
    documented: int = 0
    deepest: int = 0
    complexity: int = 0
    most_complex: str = ""
    names: int = 0
    name_characters: int = 0


class Packed(NamedTuple):
    """The sizes of a bundle in bytes, and the name of the algorithm that compressed it best."""

    bytes: int
    packed_bytes: int
    algorithm: str


class Download(NamedTuple):
    """The answer of the service about a file."""

    name: str
    bytes: int
    lines: int


class ServiceRefused(Exception):
    """The service answered with a status other than 200."""


def measure(path: str) -> Measures:
    """Parse and tokenize a source file, and measure its functions, nesting and names."""
    data = Path(path).read_bytes()
    found = Measures(path, len(data), count_lines(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # outdated escapes in old modules are not our topic
            with _PARSER:
                tree = ast.parse(data, path)
        _measure_tokens(data, found)
    except (SyntaxError, ValueError):
        return found  # a template, or a test case of invalid Python
    _measure_tree(tree, found)
    return found


def compress(paths: tuple[str, ...]) -> Packed:
    """Compress some files together by three algorithms, check each, and name the best."""
    data = b"".join(Path(path).read_bytes() for path in paths)
    packed = {
        "zlib": zlib.compress(data, 9),
        "bz2": bz2.compress(data),
        "lzma": lzma.compress(data, preset=6 | lzma.PRESET_EXTREME),
    }
    unpacked = {
        "zlib": zlib.decompress(packed["zlib"]),
        "bz2": bz2.decompress(packed["bz2"]),
        "lzma": lzma.decompress(packed["lzma"]),
    }
    for algorithm, copy in unpacked.items():
        if copy != data:
            raise ValueError(f"{algorithm} does not restore the original bytes: {paths}")
    best = min(packed, key=lambda algorithm: len(packed[algorithm]))
    return Packed(len(data), len(packed[best]), best)


def fetch(url: str) -> Download:
    """Ask the service about a file."""
    status, body = get(url)
    if status != 200:
        raise ServiceRefused(f"{url} answered {status}")
    return Download(**json.loads(body))


def get(url: str) -> tuple[int, bytes]:
    """Send a GET request and return status and body; proxies of the environment are not used."""
    address = urlsplit(url)
    with closing(
        HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_SECONDS)
    ) as connection:
        connection.request("GET", address.path)
        response = connection.getresponse()
        return response.status, response.read()


_COMPOUND = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar,
    ast.Match, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
)  # fmt: skip
_BRANCHES = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert,
    ast.match_case,
)  # fmt: skip
_TRIVIA = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


def _measure_tokens(data: bytes, found: Measures) -> None:
    code_lines: set[int] = set()
    for token in tokenize.tokenize(io.BytesIO(data).readline):
        if token.type == tokenize.COMMENT:
            found.comments += 1
        elif token.type not in _TRIVIA:
            code_lines.update(range(token.start[0], token.end[0] + 1))
    found.code_lines = len(code_lines)


def _measure_tree(tree: ast.Module, found: Measures) -> None:
    # McCabe's number of a function: its branches plus one. Nested functions count for themselves.
    complexities: dict[str, int] = {}
    # A stack, because generated expressions can be nested deeper than Python calls may be.
    todo: list[tuple[ast.AST, int, str, str]] = [(tree, 0, "", "")]
    while todo:
        node, depth, scope, function = todo.pop()
        if isinstance(node, _COMPOUND):
            depth += 1
            found.deepest = max(found.deepest, depth)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = f"{scope}.{node.name}" if scope else node.name
            found.documented += ast.get_docstring(node, clean=False) is not None
            if isinstance(node, ast.ClassDef):
                found.classes += 1
            else:
                found.functions += 1
                function = f"{scope}:{node.lineno}"
                complexities[function] = 1
        elif isinstance(node, ast.Name):
            found.names += 1
            found.name_characters += len(node.id)
        elif function:
            if isinstance(node, _BRANCHES):
                complexities[function] += 1
            elif isinstance(node, ast.BoolOp):
                complexities[function] += len(node.values) - 1
            elif isinstance(node, ast.comprehension):
                complexities[function] += 1 + len(node.ifs)
        todo += [(child, depth, scope, function) for child in ast.iter_child_nodes(node)]
    if complexities:
        name, found.complexity = max(complexities.items(), key=lambda entry: entry[1])
        found.most_complex = name.partition(":")[0]
