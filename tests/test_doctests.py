"""The examples in docstrings are right."""

import doctest
import importlib
import pkgutil

import pytest

import excursion

#: A plugin of packtivity, which is loaded by yadage and not by this package.
ELSEWHERE = "excursion.evaluators.packtivity_local"
MODULES = [
    "excursion",
    *(m.name for m in pkgutil.walk_packages(excursion.__path__, "excursion.") if m.name != ELSEWHERE),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples]
    assert len(found) >= 10
