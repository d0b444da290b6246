import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from excursion.data import Outcome
from excursion.errors import InvalidOutcome, InvalidProblem
from excursion.problem import TRANSFORMS, Problem, Task, Transform
from excursion.space import ParameterSpace

SPACE = ParameterSpace.of({"x": (0, 1)})


def number(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return Transform(request.param, center=2.0, scale=0.5)


def test_transforms_are_increasing_and_invertible(transform):
    y = torch.logspace(-2, 2, 50, dtype=torch.float64)
    y = y if transform.positive else torch.cat([-y.flip(0), y])
    z = transform(y)
    assert (z.diff() > 0).all()
    assert torch.allclose(transform.inverse(z), y, rtol=1e-6)


def test_the_slope_is_the_derivative(transform):
    y = torch.linspace(0.3, 9, 30, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(transform(y).sum(), y)
    assert torch.allclose(transform.slope(y.detach()), gradient, rtol=1e-10)


@given(st.floats(1e-3, 1e3))
def test_log_tanh_knows_ratios_to_the_threshold_only(ratio):
    a, b = (Transform("log-tanh", center=c)(number(c * ratio)) for c in (1.0, 20.0))
    assert float(a) == pytest.approx(float(b), abs=1e-12)
    assert float(a) == pytest.approx(math.tanh(math.log10(ratio)), abs=1e-12)


def test_infinities_have_an_image():
    inf = number(math.inf)
    assert Transform("log-tanh", 1.0)(inf) == 1.0
    assert Transform("log-tanh", 1.0).inverse(number(1.5)) == math.inf
    assert Transform("log-tanh", 1.0).inverse(number(-1.5)) == 0.0
    assert Transform("asinh")(inf) == math.inf


def test_the_threshold_is_the_centre():
    assert Task("mu", 3.0, "log-tanh").levels.tolist() == [0.0]
    assert Task("mu", 3.0, "asinh", scale=0.1).levels.tolist() == [0.0]
    assert Task("mu", (1.0, 10.0, 100.0), "log-tanh").levels.tolist() == pytest.approx([math.tanh(-1), 0, math.tanh(1)])
    assert Task("mu", (1.0, 2.0), "identity").levels.tolist() == [1.0, 2.0]
    with pytest.raises(InvalidProblem, match="task 'mu': the transform must have been settled, got 'auto'"):
        Task("mu", 1.0).levels  # noqa: B018


def test_the_log_of_the_slope(transform):
    y = torch.logspace(-1, 1, 30, dtype=torch.float64)
    assert torch.allclose(transform.log_slope(y), transform.slope(y).log(), rtol=1e-9, atol=1e-12)


def test_what_saturates_is_not_held_against_the_transform():
    far = torch.tensor([1e100, 1e-100], dtype=torch.float64)
    squash, log = Transform("log-tanh", 1.0).log_slope(far), Transform("log").log_slope(far)
    assert torch.allclose(squash - log, torch.full((2,), -12.0, dtype=torch.float64))


def test_the_transforms_that_values_allow():
    def names(task, y):
        return [t.transform for t in task.choices(torch.tensor(y, dtype=torch.float64))]

    assert names(Task("f", 1.0), [0.5, 2.0]) == ["identity", "asinh", "log", "log-tanh"]
    assert names(Task("f", 1.0), [0.5, math.inf]) == ["identity", "asinh", "log", "log-tanh"]
    assert names(Task("f", 0.0), [0.5, 2.0]) == ["identity", "asinh"]
    assert names(Task("f", 1.0), [-0.5, 2.0]) == ["identity", "asinh"]
    assert names(Task("f", 1.0), [1.0, 1.0]) == ["identity", "log", "log-tanh"]
    assert Task("f", 1.0).choices(torch.tensor([0.0, 4.0, 5.0, 1e300], dtype=torch.float64))[1].scale == pytest.approx(
        3.5
    )


def test_problems_survive_json():
    problem = Problem(
        ParameterSpace.of({"x": (0, 1), "y": (1, 10, "log")}, ["x < y"]),
        (Task("a", 1.0, "log", unit="fb", label=r"$\sigma$", weight=2), Task("b", (-1, 1.5), "asinh", scale=3)),
    )
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_short_forms():
    problem = Problem({"x": (0, 1)}, Task())
    assert problem.task_names == ("f",)
    assert problem.task().thresholds == (0.0,)
    assert problem.space == SPACE


def test_failures_always_fit():
    assert Problem(SPACE).check(Outcome.failed("x")).error == "x"


def test_unknown_tasks_in_an_outcome():
    with pytest.raises(InvalidOutcome, match=r"missing=\['f'\], unknown=\['g'\]. Rename the values"):
        Problem(SPACE).check(Outcome.of({"g": 1.0}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task(""), "name must be a non-empty string, got ''"),
        (lambda: Problem(SPACE, Task("a", ())), r"at least one threshold per task, got none for \['a'\]. Give one, or"),
        (lambda: Problem(SPACE, goal="optimum"), "goal must be one of level-set, minimum, maximum, got 'optimum'"),
        (lambda: Problem(SPACE, (Task("a"), Task("b")), "maximum"), r"a maximum is of one task, got \['a', 'b'\]"),
        (
            lambda: Problem(SPACE, Task("a", 1, "log-tanh"), "minimum"),
            "'log-tanh' is flat far from a threshold, got goal",
        ),
        (lambda: Task("a", (1.0, 1.0)), "finite and ascending"),
        (lambda: Task("a", math.inf), "finite and ascending"),
        (lambda: Task("a", "high"), "thresholds must be numbers, got 'high'"),
        (lambda: Task("a", 1.0, weight=0), "weight must be positive and finite, got 0"),
        (lambda: Task("a", 0.0, "log"), "needs positive thresholds, got \\(0.0,\\)"),
        (lambda: Task("a", 0.0, "log-tanh"), "the threshold must be positive, got 0.0"),
        (lambda: Task("a", 0.0, "asinh", scale=0), "the scale must be positive and finite, got 0"),
        (lambda: Transform("sqrt"), "must be one of identity, log, asinh, log-tanh, got 'sqrt'"),
        (lambda: Problem(SPACE, ()), "at least one task and no repeated name, got \\[\\]"),
        (lambda: Problem(SPACE, (Task("a"), Task("a"))), "no repeated name, got \\['a', 'a'\\]"),
        (lambda: Problem(SPACE).task("g"), "no task 'g', got tasks \\['f'\\]"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(InvalidProblem, match=message):
        make()


def test_an_optimum_has_no_threshold():
    problem = Problem(SPACE, Task("a", (1.0, 2.0), "asinh", unit="GeV"), "minimum")
    assert problem.task().thresholds == ()
    assert problem.task().levels.shape == (0,)
    assert (problem.sign, Problem(SPACE, goal="maximum").sign, Problem(SPACE).sign) == (-1, 1, 0)
    assert problem.task().map(torch.zeros(1)) == 0


def test_goals_survive_json_and_older_descriptions_are_level_sets():
    for goal in ("level-set", "minimum", "maximum"):
        problem = Problem(SPACE, Task("a", 1.0), goal)
        data = json.loads(json.dumps(problem.to_json()))
        assert Problem.from_json(data) == problem
        assert ("goal" in data) == (goal != "level-set")
