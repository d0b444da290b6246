import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from excursion.belief import _milestone, believe, observations, settle, temperature
from excursion.data import Outcome, Trial
from excursion.errors import FitError
from excursion.problem import Problem, Task
from excursion.space import ParameterSpace
from excursion.surrogate import GaussianProcess

SPACE = ParameterSpace.of({"x": (0, 1), "y": (0, 1)})


def history(f, n, *, predicted=(), told=None):
    """n Sobol points with the values of f, as a campaign stores them."""
    points = SPACE.from_unit(SPACE.sample(0, n, 3))
    order = told or range(n)
    return [
        Trial(
            i,
            SPACE.point(row),
            0,
            0,
            predicted={"f": predicted[i]} if i < len(predicted) else {},
            state=(outcome := Outcome.of(float(f(*row.tolist())))).state,
            told=order[i],
            outcome=outcome,
        )
        for i, row in enumerate(points)
    ]


def bowl(x, y):
    return (x - 0.3) ** 2 + (y - 0.6) ** 2


def limit(x, y):
    """A limit on a signal strength: smooth in its logarithm, and out of reach behind a cliff."""
    return 10 ** (-1 + 2.5 * x + 100 / (1 + math.exp((y - 0.15) / 0.02)))


def wrong(f, task, n):
    """The misclassified fraction of a belief from n points."""
    belief = believe(Problem(SPACE, task), GaussianProcess(), history(f, n))
    u = SPACE.sample(0, 3000, 99)
    truth = np.array([f(*row) >= task.thresholds[0] for row in SPACE.from_unit(u).tolist()])
    mean = belief.posterior.marginal(u)[0][0]
    return float(((mean >= belief.problem.tasks[0].levels).numpy() != truth).mean())


@pytest.mark.parametrize(
    ("f", "threshold", "expected"),
    [(bowl, 0.1, {"identity"}), (limit, 1.0, {"log", "log-tanh"}), (lambda x, y: math.exp(9 * x + y), 90.0, {"log"})],
)
def test_the_transform_follows_the_data(f, threshold, expected):
    problem = settle(Problem(SPACE, Task("f", threshold)), history(f, 40))
    assert problem.tasks[0].transform in expected


@pytest.mark.parametrize(("f", "threshold"), [(bowl, 0.1), (limit, 1.0)])
def test_choosing_is_as_good_as_knowing(f, threshold):
    """Never worse than the best fixed transform by more than noise, on smooth functions and on cliffs."""

    def mean(transform):
        return sum(wrong(f, Task("f", threshold, transform), n) for n in (24, 32, 40)) / 3

    fixed = [mean(name) for name in ("identity", "log", "log-tanh")]
    assert max(fixed) > 3 * min(fixed)  # it matters
    assert mean("auto") <= 1.1 * min(fixed) + 2e-3


def test_a_named_transform_stays():
    problem = Problem(SPACE, Task("f", 0.1, "asinh", scale=0.5))
    assert settle(problem, history(bowl, 10)) is problem


def test_the_choice_is_made_anew_when_a_fifth_more_is_known():
    assert [_milestone(n) for n in (2, 9, 10, 11, 12, 14, 15, 100)] == [2, 9, 10, 10, 12, 12, 15, 84]
    problem = Problem(SPACE, Task("f", 1.0))
    # Values after the milestone play no part yet.
    trials = history(bowl, 10)
    strange = Trial(10, {"x": 0.5, "y": 0.5}, 0, 0, state="complete", told=10, outcome=Outcome.of(1e30))
    assert settle(problem, [*trials, strange]) == settle(problem, trials)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_transform_is_told_in_many_dimensions(seed):
    """48 observations in seven dimensions do not tell it, whatever is known beside them."""
    space = ParameterSpace.of({name: (-2, 2) for name in "abcdefg"})
    weight = 10 ** torch.linspace(0.5, -1.5, 7, dtype=torch.float64)

    def ellipsoid(x):
        return ((x - 0.4) ** 2) @ weight

    u = space.sample(0, 1 << 14, seed)
    y = ellipsoid(space.from_unit(u))
    near = ((y / 4.5).log().abs() < 0.05).nonzero()[:, 0]
    index = torch.cat([torch.arange(30), near[near >= 30][:90]])
    trials = [
        Trial(i, space.point(x), 0, 0, state="complete", told=i, outcome=Outcome.of(float(ellipsoid(x))))
        for i, x in enumerate(space.from_unit(u[index]))
    ]
    assert settle(Problem(space, Task("f", 4.5)), trials).tasks[0].transform == "identity"


def test_the_order_of_tells_does_not_matter():
    problem = Problem(SPACE, Task("f", 0.1))
    one, other = history(bowl, 13), history(bowl, 13, told=list(reversed(range(13))))
    assert settle(problem, one) == settle(problem, other)


@pytest.mark.parametrize("value", [1.0, 1e300, -1e300, math.inf])
def test_constant_and_infinite_values_settle_without_a_fuss(value):
    problem = Problem(SPACE, Task("f", 0.5))
    belief = believe(problem, GaussianProcess(), history(lambda x, y: value, 8))
    mean, variance = belief.posterior.marginal(SPACE.sample(0, 20, 1))
    assert torch.isfinite(mean).all()
    assert torch.isfinite(variance).all()
    assert ((mean[0] >= belief.problem.tasks[0].levels) == (value > 0)).all()


def test_too_few_values():
    with pytest.raises(FitError, match="needs at least 2 observations, got 1"):
        believe(Problem(SPACE, Task("f", 0.5)), GaussianProcess(), history(bowl, 1))


# --- calibration


def test_the_temperature_is_the_maximum_of_its_posterior():
    """Against scipy, from predictions that are half wrong though they were sure."""
    rng = np.random.default_rng(4)
    p = norm.cdf(rng.normal(0, 2, 24))
    trials = history(lambda x, y: x - 0.5, 24, predicted=p.tolist())
    sign = np.array([1.0 if t.outcome.values["f"] >= 0 else -1.0 for t in trials])

    def loss(log_t):
        chance = 0.96 * norm.cdf(sign * norm.ppf(p) / math.exp(log_t)) + 0.02
        return -np.log(chance).sum() - norm.logpdf(log_t, 0, 0.25)

    best = math.exp(minimize_scalar(loss, bounds=(0, 2.5), method="bounded").x)
    assert best > 1.3
    assert temperature(Task("f", 0.0), trials) == pytest.approx(best, rel=2e-3)


def test_one_surprise_does_not_spoil_all_other_predictions():
    f = lambda x, y: x - 0.5  # noqa: E731
    p = [0.95 if t.outcome.values["f"] >= 0 else 0.05 for t in history(f, 24)]
    p[7] = 1e-12 if p[7] > 0.5 else 1 - 1e-12
    assert temperature(Task("f", 0.0), history(f, 24, predicted=p)) < 1.2


def test_predictions_that_come_true_cool_nothing():
    trials = history(lambda x, y: x - 0.5, 24)
    assert temperature(Task("f", 0.0), trials) == 1.0
    p = [0.9 if t.outcome.values["f"] >= 0 else 0.1 for t in trials]
    assert temperature(Task("f", 0.0), history(lambda x, y: x - 0.5, 24, predicted=p)) == 1.0


def test_a_belief_that_was_too_sure_widens():
    f, surely_wrong = (lambda x, y: x - 0.5), [0.02 if x > 0.5 else 0.98 for x in SPACE.sample(0, 24, 3)[:, 0]]
    problem = Problem(SPACE, Task("f", 0.0, "identity"))
    honest = believe(problem, GaussianProcess(), history(f, 24))
    wary = believe(problem, GaussianProcess(), history(f, 24, predicted=surely_wrong))
    assert honest.temperature == {"f": 1.0}
    factor = wary.temperature["f"]
    assert factor > 2
    u = SPACE.sample(0, 30, 5)
    assert torch.equal(honest.posterior.marginal(u)[0], wary.posterior.marginal(u)[0])
    assert torch.allclose(factor**2 * honest.posterior.marginal(u)[1], wary.posterior.marginal(u)[1])


def seen(values, threshold, transform="identity"):
    """The observations of a task with these values at Sobol points."""
    told = iter(values)
    return observations(Problem(SPACE, Task("f", threshold, transform)), history(lambda x, y: next(told), len(values)))


@pytest.mark.parametrize(
    ("values", "threshold", "side"),
    [
        ([0, 0, 0, 0.2, 0.7, 1, 1, 1], 0.05, [-1, -1, -1, 0, 0, 1, 1, 1]),
        ([0, 0, 0.1, 0.2, 0.7, 1, 1, 0.9], 0.05, [0] * 8),  # two may be chance
        ([0, 0.3, 0.3, 0.3, 0.7, 1, 1, 0.9], 0.05, [0] * 8),  # not at an end
        ([0, 0, 0, 0.2, 0.7, 0.9, 1], 0.0, [0] * 7),  # the rail is the threshold
        ([0, 0, 0, 0.2, 1, 1, 1], (0.05, 2.0), [-1, -1, -1, 0, 0, 0, 0]),  # not beyond all thresholds
        ([0, 0, 0, 0.1, 0.2, 1, 1, 1, math.inf], 0.05, [-1, -1, -1, 0, 0, 1, 1, 1, 1]),
        ([0, 0, 0, 0.1, 1, 1, 1, math.inf], 0.05, [0] * 7 + [1]),  # too little else is known
        ([3] * 6, 0.05, [0] * 6),
    ],
)
def test_values_at_a_rail_are_bounds(values, threshold, side):
    data = seen(values, threshold)
    assert data.side[:, 0].tolist() == side
    assert data.z[:, 0].tolist() == [min(v, max(v for v in values if v < math.inf)) for v in values]


def test_one_point_told_three_times_is_no_rail():
    trials = history(lambda x, y: x, 6)
    top = max(trials, key=lambda t: t.outcome.values["f"])
    again = [replace(top, number=6 + i, told=6 + i) for i in range(2)]
    data = observations(Problem(SPACE, Task("f", 0.2, "identity")), [*trials, *again])
    assert data.side.abs().sum() == 0


def saturated(x, y):
    """A CLs that is exactly 0 and 1 away from a curved edge."""
    t = min(max(0.5 + (y - 0.7 + 0.6 * x**2) / 0.25, 0), 1)
    return t * t * (3 - 2 * t)


def test_a_plateau_is_no_cliff():
    """As bounds, equal values leave less than half of the error that they leave as values."""
    apart = lambda x, y: saturated(x, y) + 1e-9 * x  # noqa: E731 - the same function, but no two values are equal
    task = Task("f", 0.05, "identity")
    assert 0 < wrong(saturated, task, 40) < wrong(apart, task, 40) / 2


def test_finite_values_are_not_bounds_where_another_transform_can_hold_them():
    """Under the identity 1e98 would be a bound, for which nothing need be explained: not a score to compare."""
    values = history(lambda x, y: 10 ** (-1 + 2 * x + 98 * (y > 0.6)), 30)
    assert settle(Problem(SPACE, Task("f", 1.0)), values).tasks[0].transform in ("log", "log-tanh")
    values = history(lambda x, y: (x - y) * 10.0 ** (80 * (x > 0.5)), 30)
    assert settle(Problem(SPACE, Task("f", 0.0)), values).tasks[0].transform == "asinh"


def test_a_value_that_comes_after_the_choice_may_rule_a_logarithm_out():
    trials = history(lambda x, y: math.exp(6 * x - 3), 20)
    problem = Problem(SPACE, Task("f", (1.0,)))
    assert _milestone(20) < 20
    assert settle(problem, trials).tasks[0].transform in ("log", "log-tanh")
    later = [*trials[:19], replace(trials[19], outcome=Outcome.of(-0.5))]
    assert settle(problem, later).tasks[0].transform in ("identity", "asinh")
    assert torch.isfinite(believe(problem, GaussianProcess(), later).data.z).all()
