"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import io
import pkgutil

import pytest

import amorsize

NEEDS = {
    "amorsize.exporters.progress": "tqdm",
    "amorsize.exporters.datadog": "datadog",
    "amorsize.exporters.prometheus": "prometheus_client",
    "amorsize.exporters.registry": "prometheus_client",
}

MODULES = ["amorsize"] + sorted(
    info.name
    for info in pkgutil.walk_packages(amorsize.__path__, "amorsize.")
    if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    """An example that does not run teaches something wrong."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
        runner.run(test, out=report.write)
    assert runner.failures == 0, report.getvalue()


def test_the_main_functions_have_an_example() -> None:
    """What a newcomer looks up first shows how it is used."""
    for function in (amorsize.execute, amorsize.stream, amorsize.optimize):
        assert ">>> " in (function.__doc__ or "")
