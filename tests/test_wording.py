"""The docs speak the field's plain English, and use the glossary's terms in one sense."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
QUOTED = re.compile(r"^```.*?^```$|`[^`\n]+`|\]\([^)]*\)|<!--.*?-->", re.DOTALL | re.MULTILINE)

BANNED = {
    r"told|tells?|telling": "emitted, notified, reported, shows",
    r"hears?|heard|hearing": "observes, is notified",
    r"anew": "again, re-plan",
    r"behind(?! (?:a|the|your) proxy)": "after (in order)",
    r"lent|foreign": "caller-owned, external",
    r"travel(?:s|led|ling)?": "can be pickled, is sent",
    r"(?:rides?|comes?|came|brings?|brought|sends?|sent) home|home with": "is returned",
    r"stillborn|storyteller": "failed start, event builder",
    r"bury|buried": "handle a death",
    r"news": "messages, changes",
    r"surprises?|hopeless": "deviation, not worth parallelising",
    r"trivial": "the bound, such as: less than 0.3 µs",
    r"(?:once|twice|items?|bytes|seconds?|µs|ms|numbers?|threads?) an? "
    r"(?:chunk|worker|item|process|core|thread|run|call)": "per chunk, per worker",
    r"(?:of|by) yours": "your own, caller-owned",
    r"takes? no more|is no (?:TOML|JSON) file": "no longer accepts, is not valid",
}
"""Expressions that this project once used, and those to use instead."""

ALLOWED = {("docs/benchmarks.md", "trivial")}  # in the names of figures

BARE = re.compile(r"(?:(?<=[.:;] )|^(?:[-*] |\d\. )?)[Ww](?:hat|ho|hoever) [^.?|\n]*\.", re.M)
"""A sentence whose subject is "what" or "who", and names nothing."""


def prose(page: Path) -> str:
    """Return a page without code, link targets and comments, in lines of the same numbers."""
    text = page.read_text(encoding="utf-8")
    return QUOTED.sub(lambda quoted: "`" + "\n" * quoted.group().count("\n"), text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_uses_the_fields_words(page: Path) -> None:
    """No expression of the list occurs; code may quote one."""
    text = prose(page)
    found = [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match.group()!r}, better: {better}"
        for banned, better in BANNED.items()
        for match in re.finditer(rf"\b(?:{banned})\b", text, re.IGNORECASE)
        if (page.relative_to(ROOT).as_posix(), match.group().lower()) not in ALLOWED
    ]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_its_subjects(page: Path) -> None:
    """No statement begins with "what" or "who"; questions and titles may."""
    found = [
        match.group() for match in BARE.finditer(prose(page)) if not match.group().endswith("**.")
    ]
    assert not found


def test_the_package_uses_the_fields_words() -> None:
    """Names, docstrings, comments and messages; a file, or a thread, may be left behind."""
    banned = "|".join(each for each in BANNED if not each.startswith("behind"))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}"
        for path in sorted((ROOT / "amorsize").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in re.finditer(rf"(?:\b|_)(?:{banned})(?:\b|_)", line, re.IGNORECASE)
    ]
    assert not found


def test_the_package_names_its_subjects() -> None:
    """No docstring, comment or sentence in them begins with "What" or "Who"; a message may ask."""
    begins = re.compile(
        r"(?:^\s*(?:# |\"{3})|(?<=[.:;] ))(?:What|Who(?:ever)?|Whatever)\b(?!.*\?)", re.MULTILINE
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "amorsize").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if begins.search(line)
    ]
    assert not found


def terms() -> list[str]:
    """Return the glossary's terms: what stands in bold."""
    return re.findall(r"\*\*([^*]+)\*\*", GLOSSARY.read_text(encoding="utf-8"))


@cache
def written() -> str:
    """Return all pages but the glossary, and the package's code."""
    code = sorted((ROOT / "amorsize").rglob("*.py"))
    pages = [page for page in PAGES if page != GLOSSARY]
    text = " ".join(path.read_text(encoding="utf-8") for path in (*pages, *code))
    return " ".join(text.lower().replace("_", " ").split())


@pytest.mark.parametrize("term", terms())
def test_a_term_of_the_glossary_is_used(term: str) -> None:
    """In the docs or in the code."""
    assert re.search(rf"\b{re.escape(term.lower())}s?\b", written())


def test_the_glossary_has_each_term_once() -> None:
    """One word for one thing."""
    assert len(terms()) == len({term.lower() for term in terms()}) > 40


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/events.md"])
def test_the_glossary_is_linked(page: str) -> None:
    """Where a reader meets its terms first."""
    assert "glossary.md" in (ROOT / page).read_text(encoding="utf-8")
