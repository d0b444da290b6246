from __future__ import annotations

import functools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from excursion.data import Job, Outcome
from excursion.errors import EvaluationError, ImpossiblePoint, InvalidSpec
from excursion.evaluators.python import Function

JOB = Job({"x": 2.0, "y": 3.0}, number=4, seed=99)


def returning(value):
    return Function(lambda point: value).evaluate(JOB)


def product(point):
    return point["x"] * point["y"]


def test_the_function_gets_the_point_as_a_dict_of_its_own():
    def function(point):
        assert type(point) is dict
        return point.pop("x") * point.pop("y")

    assert Function(function).evaluate(JOB).values == {"f": 6.0}
    assert JOB.x == {"x": 2.0, "y": 3.0}
    assert Function(product, task="mu").evaluate(JOB) == Outcome.of({"mu": 6.0})


def test_it_travels():
    assert pickle.loads(pickle.dumps(Function(product))) == Function(product)


@pytest.mark.parametrize(
    "value",
    [1.5, np.float64(1.5), np.float32(1.5), np.array(1.5), torch.tensor(1.5), Fraction(3, 2)],
    ids=lambda value: type(value).__name__,
)
def test_what_counts_as_a_number(value):
    outcome = returning(value)
    assert outcome.values == {"f": 1.5}
    assert type(outcome.values["f"]) is float
    assert returning({"a": value, "b": np.int64(2)}).values == {"a": 1.5, "b": 2.0}


def test_infinity_is_a_bound():
    assert returning(math.inf).bounds == {"f": "above"}


def test_an_outcome_passes_as_it_is():
    outcome = Outcome.of({"a": 1.0}, variances={"a": 0.1}, info={"k": 1})
    assert returning(outcome) is outcome


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "must return a number, a dict of numbers or an Outcome, got NoneType: None"),
        (True, "got bool: True"),
        (np.bool_(True), r"got bool"),
        ("1.0", "got str: '1.0'"),
        (1j, "got complex: 1j"),
        (np.array([1.0]), r"got ndarray of shape \(1,\): array\(\[1\.\]\)"),
        ([1.0], r"got list: \[1\.0\]"),
        ((1.0, 2.0), r"got tuple: \(1\.0, 2\.0\)"),
        ({"a": None}, "got NoneType: None"),
        ({1: 1.0}, "tasks must be text, got 1"),
        ({}, "returned {} at .*needs either values or an error"),
        (math.nan, r"returned nan at \{'x': 2\.0, 'y': 3\.0\}.*must not be NaN"),
        (10**400, "returned 1000.*too large"),
    ],
)
def test_anything_else_is_said(value, says):
    with pytest.raises(EvaluationError, match=says) as caught:
        returning(value)
    assert "at trial 4" in str(caught.value)


def test_what_the_function_raises_is_a_failure_that_tells_where():
    def inner(point):
        return 1 / (point["x"] - 2.0)

    def broken(point):
        return inner(point)

    with pytest.raises(EvaluationError, match=r"broken at trial 4: must not raise, got ZeroDivisionError") as caught:
        Function(broken).evaluate(JOB)
    assert "at {'x': 2.0, 'y': 3.0}" in str(caught.value)
    assert "test_evaluator_python.py" in str(caught.value).splitlines()[-1]
    assert str(caught.value).endswith("inner")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("kind", [EvaluationError, ImpossiblePoint])
def test_our_own_errors_pass(kind):
    def function(point):
        raise kind("no event passed")

    with pytest.raises(kind, match=r"^no event passed$") as caught:
        Function(function).evaluate(JOB)
    assert type(caught.value) is kind


def test_an_interrupt_is_not_a_failure():
    def function(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        Function(function).evaluate(JOB)


class Callable:
    def __call__(self, point, *, seed):
        return seed


def test_the_seed_is_passed_to_who_asks():
    def by_keyword(point, *, seed=0):
        return seed

    def by_either(point, seed):
        return seed

    def not_asking(point, **more):
        return len(more)

    def first(seed):
        return seed["x"]

    assert Function(by_keyword).evaluate(JOB).values == {"f": 99.0}
    assert Function(by_either).evaluate(JOB).values == {"f": 99.0}
    assert Function(Callable()).evaluate(JOB).values == {"f": 99.0}
    assert Function(functools.partial(by_either)).evaluate(JOB).values == {"f": 99.0}
    assert Function(not_asking).evaluate(JOB).values == {"f": 0.0}
    assert Function(first).evaluate(JOB).values == {"f": 2.0}


def test_functions_written_in_c():
    assert Function(len).evaluate(JOB).values == {"f": 2.0}
    with pytest.raises(EvaluationError, match=r"function repr at trial 4: must return a number.*got str"):
        Function(repr).evaluate(JOB)


def test_what_cannot_be_called():
    with pytest.raises(InvalidSpec, match=r"must be callable, got 3\.0\. Give a function"):
        Function(3.0)


# --- fidelity and events


@pytest.mark.parametrize(
    ("function", "plain", "dear"),
    [
        (lambda p, seed, fidelity, events: (seed, fidelity, events), (99, "", None), (99, "full", 7)),
        (lambda p, *, events=5000, fidelity="parton": (fidelity, events), ("parton", 5000), ("full", 7)),
        (lambda p, events=5000: events, 5000, 7),
        (lambda p, other=1, **more: (other, more), (1, {}), (1, {})),
        (lambda fidelity: fidelity, {"x": 1.0}, {"x": 1.0}),
    ],
)
def test_fidelity_and_events_are_given_to_whoever_wants_them(function, plain, dear):
    seen = []

    @functools.wraps(function)
    def spy(*args, **kwargs):
        seen.append(function(*args, **kwargs))
        return 1.0

    for job in (Job({"x": 1.0}, seed=99), Job({"x": 1.0}, seed=99, fidelity="full", events=7)):
        Function(spy).evaluate(job)
    assert seen == [plain, dear]


def test_none_is_missing_beside_a_number():
    outcome = returning({"a": None, "b": 2})
    assert (outcome.values, outcome.missing) == ({"b": 2.0}, ("a",))
    for value in (None, {"a": None}, {"a": None, "b": None}):
        with pytest.raises(EvaluationError, match="must return a number|either values or an error"):
            returning(value)
