"""Goals in the user's units: what they mean, and that what they claim holds."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from excursion import precision
from excursion.acquisition import Search
from excursion.campaign import Campaign
from excursion.errors import InvalidStrategy
from excursion.evaluators.python import Function
from excursion.levelset import disagreement
from excursion.precision import Precision, ambiguous, misclassified, parse, width
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.result import Result, find_level_set
from excursion.runner import run
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import Posterior, View

PLANE = Problem(
    (Parameter("m", 100, 500, unit="GeV"), Parameter("g", 0.01, 1, scale="log"), Parameter("w", -1, 1)),
    (Task("observed", 1.0, "identity"), Task("expected", 1.0, "identity")),
)
QUICK = Search(pool=512, candidates=64, integration=128, polish=1)


class Tilted(Posterior):
    """A belief written down: mean n.u, covariance s(u) s(v) exp(-|u - v|^2/2 l^2)."""

    def __init__(self, normal, sd, length=1.0):
        self.normal, self.sd, self.length = torch.tensor(normal, dtype=torch.float64), sd, length

    def marginal(self, u):
        sd = self.sd(u) * torch.ones(len(u), dtype=torch.float64)
        return (u @ self.normal)[None], sd.square()[None]

    def view(self, u):
        return Seen(self, u)

    def joint(self, u):
        raise NotImplementedError

    cross = condition = noise = hyperparameters = joint


class Seen(View):
    def __init__(self, belief, u):
        self.belief, self.u = belief, u
        self.mean, self.variance = belief.marginal(u)

    def covariance(self, other):
        near = (-0.5 * (torch.cdist(self.u, other.u) / self.belief.length) ** 2).exp()
        return (near * self.variance[0, :, None].sqrt() * other.variance[0].sqrt())[None]


def cube(d, upper=1.0, threshold=0.5, constraints=()):
    names = "abcdefghij"[:d]
    return Problem(ParameterSpace.of({k: (0, upper) for k in names}, constraints), Task("f", threshold, "identity"))


@pytest.mark.parametrize(
    ("u", "v", "c"), [(1.2, 0.8, 0.5), (-0.7, 0.4, -0.2), (2.5, 2.1, 0.99), (0.0, 0.0, 0.3), (0, 1, 0.6)]
)
def test_disagreement_is_that_of_the_bivariate_normal(u, v, c):
    ours = disagreement(*(torch.tensor([x], dtype=torch.float64) for x in (u, v, c)))
    theirs = norm.cdf(u) + norm.cdf(v) - 2 * multivariate_normal.cdf([u, v], cov=[[1, c], [c, 1]])
    assert float(ours) == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize("d", [1, 2, 3, 6, 10])
def test_the_width_of_a_plane_is_known(d):
    """A plane with normal n and a constant error: the crossing along an axis has sd s/n."""
    normal = [1.0, 0.5, *[0.1] * 8][:d]
    belief = Tilted(normal, lambda u: 0.01)
    threshold = sum(normal) / 2
    problem = cube(d, upper=200.0, threshold=threshold)
    for k, name in enumerate(problem.space.names[:2]):
        assert width(problem, belief, name, "f") == pytest.approx(200 * 1.95996 * 0.01 / normal[k], rel=0.01)
    assert width(problem, belief, "a", "f", credibility=0.6827) == pytest.approx(2.0, rel=0.01)


def test_the_width_is_a_quantile_over_the_lines_that_meet_the_contour():
    """The error grows with b: the quantile over b, uniform along the contour a = 1/2."""
    problem, belief = cube(2), Tilted([1.0, 0.0], lambda u: 0.001 + 0.02 * u[:, 1])
    for share in (0.5, 0.95):
        expected = 1.95996 * (0.001 + 0.02 * share)
        assert width(problem, belief, "a", "f", share=share) == pytest.approx(expected, rel=0.04)


def test_a_contour_parallel_to_the_axis_does_not_count():
    """Along b the contour a = 1/2 is never crossed; where it bends it is."""
    assert width(cube(2), Tilted([1.0, 0.0], lambda u: 0.01, length=1e4), "b", "f") > 0.3  # nothing else there
    bent = Tilted([1.0, 1.0], lambda u: 0.01)
    assert width(cube(2, threshold=1.0), bent, "b", "f") == pytest.approx(0.0196, rel=0.02)


def test_constraints_cut_the_width():
    """Only a > 1/2 is allowed, and the contour lies at .49: what is left of the band is its upper part."""
    belief = Tilted([1.0, 0.0], lambda u: 0.01)
    half = width(cube(2, threshold=0.49, constraints=("a > 0.5",)), belief, "a", "f")
    assert half == pytest.approx(0.49 + 0.0196 - 0.5, rel=0.02)
    thin = cube(2, threshold=0.5, constraints=("a > 0.497", "a < 0.503"))  # between two ticks
    assert 0.002 < width(thin, belief, "a", "f") <= 0.0031


def test_no_contour_has_no_width_and_an_unknown_place_has_all():
    assert width(cube(2, threshold=5.0), Tilted([1.0, 0.0], lambda u: 0.01), "a", "f") == 0.0
    assert width(cube(2), Tilted([1.0, 0.0], lambda u: 3.0, length=0.1), "a", "f") > 0.45


def test_a_hole_in_the_knowledge_counts():
    """A sure contour and a quarter of the plane where nothing is known: more than 5 % of the contour may be there."""
    belief = Tilted([1.0, 0.0], lambda u: torch.where(u[:, 1] > 0.75, 1.0, 0.001), length=0.1)
    assert width(cube(2), belief, "a", "f") > 0.3


def test_relative_distances_on_a_log_scale():
    problem = Problem({"g": (0.01, 1, "log")}, Task("f", 0.5, "identity"))
    sd = 0.01
    found = width(problem, Tilted([1.0], lambda u: sd), "g", "f", relative=True)
    assert found == pytest.approx(math.exp(1.95996 * sd * math.log(100)) - 1, rel=0.01)
    assert width(problem, Tilted([1.0], lambda u: sd), "g", "f") == pytest.approx(0.1 * found, rel=0.01)


def test_fractions_of_a_plane_are_known():
    problem, belief = cube(2), Tilted([1.0, 0.0], lambda u: 0.05)
    assert ambiguous(problem, belief)["f"] == pytest.approx(2 * 1.95996 * 0.05, rel=0.02)
    assert ambiguous(problem, belief, 0.5)["f"] == pytest.approx(2 * 0.67449 * 0.05, rel=0.02)
    assert misclassified(problem, belief)["f"] == pytest.approx(0.05 * 2 * norm.pdf(0), rel=0.02)


def test_the_mean_chance_between_two_scores():
    a, b = torch.tensor([-2.0, 0.3, -1.0, 5.0, 0.7]), torch.tensor([1.0, 2.0, -3.0, 5.0, 0.7 + 1e-7])
    ours = precision._mean_chance(a.double(), b.double())
    for one, two, value in zip(a.tolist(), b.tolist(), ours.tolist()):
        mean = norm.sf(np.abs(np.linspace(one, two, 20001))).mean()
        assert value == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(
    ("goal", "meant"),
    [
        (None, []),
        (0.01, ["observed: 1 % misclassified", "expected: 1 % misclassified"]),
        ("0.01", ["observed: 1 % misclassified", "expected: 1 % misclassified"]),
        ("<= 1 % of the plane ambiguous", ["observed: 1 % ambiguous", "expected: 1 % ambiguous"]),
        ("expected: 2 % ambiguous at 99 %", ["expected: 2 % ambiguous at 99 %"]),
        ("observed within 10 GeV of m", ["observed: within 10 GeV of m"]),
        ("observed within +-10 of m at 90 %", ["observed: within 10 GeV of m at 90 %"]),
        ({"observed": "9 GeV of m", "expected": 0.02}, ["observed: within 9 GeV of m", "expected: 2 % misclassified"]),
        (["observed within 5 % of g", "expected 0.1 of w"], ["observed: within 5 % of g", "expected: within 0.1 of w"]),
        ({"observed": ["20 GeV of m", "1% ambiguous"]}, ["observed: within 20 GeV of m", "observed: 1 % ambiguous"]),
        ("observed within 10 of m and w", ["observed: within 10 GeV of m", "observed: within 10 of w"]),
        (Precision("width", 10.0, "observed", "m"), ["observed: within 10 GeV of m"]),
    ],
)  # fmt: skip
def test_goals_are_understood(goal, meant):
    found = parse(goal, PLANE)
    assert [str(c) for c in found] == meant
    assert parse([str(c) for c in found], PLANE) == found


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ("soon", "the goal must be one that is known, got 'soon'. Write 0.01, '1 % misclassified'"),
        (True, "the goal must be a number, a text or several of them, got True"),
        (0.7, "the goal is a fraction between 0 and 0.5, got 0.7"),
        (math.nan, "the goal is a fraction between 0 and 0.5, got nan"),
        ("150 % ambiguous", "the goal is a fraction between 0 and 1, got 1.5"),
        ("1 % ambiguous at 30 %", "the credibility must lie between 50 % and 100 %, got 30 %"),
        ("theory within 10 GeV of m", "the goal must name tasks, got 'theory'. Known are observed, expected"),
        ({"theory": 0.1}, "the goal must name tasks, got 'theory'"),
        ("within 10 GeV of mass", "the goal must name a parameter, got 'mass'. Known are m, g, w"),
        ("within 10 TeV of m", "a distance is in the parameter's unit, GeV of 'm', got 'TeV'. Convert it"),
        ("within 0 GeV of m", "a distance must be positive, got 0.0"),
        ("within 3 % of w", "a distance in per cent needs a parameter that is never 0"),
        (Precision("improvement", 0.1, "observed"), "the goal must fit what is sought"),
    ],
)
def test_goals_that_make_no_sense(goal, message):
    with pytest.raises(InvalidStrategy) as error:
        parse(goal, PLANE)
    assert message in str(error.value)


def test_an_optimum_has_its_own_measure():
    problem = Problem({"x": (0, 1)}, Task(), "minimum")
    assert [c.measure for c in parse(1e-4, problem)] == ["improvement"]
    with pytest.raises(InvalidStrategy, match="must fit what is sought, a minimum, got 'ambiguous'"):
        parse("1 % ambiguous", problem)


def ring(p):
    return math.hypot(p["x"] - 250, p["y"] - 250)


RING = ParameterSpace((Parameter("x", 0, 500, unit="GeV"), Parameter("y", 0, 500, unit="GeV")))


@pytest.mark.parametrize(
    "goal", ["1 % ambiguous", "within 10 GeV of x and y", {"f": ["0.5 % misclassified", "5 GeV of x"]}]
)
def test_what_a_goal_claims_is_true(goal):
    """A run stops well before its budget; at least 90 % (95 % of 95 %) of the true circle lies as near as is said."""
    campaign = Campaign.create("memory://", "ring", Problem(RING, Task(thresholds=120.0)), Strategy(search=QUICK))
    report = run(campaign, Function(ring), budget=60, goal=goal, workers=1, progress=False)
    assert report.reason == "goal"
    assert report.status.reached
    assert 8 < report.evaluations < 50
    result = Result.of(campaign)
    for reading in report.status.readings:
        if reading.goal.measure != "width":
            grid = RING.grid(101)
            p = result.excursion_probability(grid)
            truth = np.hypot(*(grid.numpy() - 250).T) >= 120
            sure = np.minimum(p, 1 - p) <= 0.025
            if reading.goal.measure == "ambiguous":
                assert 1 - sure.mean() == pytest.approx(reading.value, abs=0.005)
            assert (truth == (p >= 0.5))[sure].mean() > 0.99
            continue
        axis = RING.names.index(reading.goal.parameter)
        near = total = 0
        for other in np.linspace(135, 365, 47):
            t = np.linspace(0, 500, 2001)
            line = np.full((len(t), 2), other)
            line[:, axis] = t
            drawn = result.excursion_probability(line) >= 0.5
            places = t[1:][drawn[1:] != drawn[:-1]]
            half = math.sqrt(120**2 - (other - 250) ** 2)
            for true in (250 - half, 250 + half):
                total += 1
                near += len(places) > 0 and np.abs(places - true).min() <= reading.value + 0.25
        assert near / total >= 0.9


def test_find_level_set_takes_a_goal():
    result = find_level_set(ring, RING, 120.0, budget=60, goal="f within 20 GeV of x", strategy=Strategy(search=QUICK))
    assert result.evaluations < 50
    assert width(result.problem, result.posterior, "x", "f") <= 20


def test_where_nothing_can_be_evaluated_the_width_does_not_count():
    """The contour b = 0.5 is known well for a > 0.5 only; elsewhere every evaluation fails."""
    problem = Problem({"a": (0, 1), "b": (0, 1)}, Task("f", 0.5, "identity"))
    belief = Tilted((0.0, 1.0), lambda u: torch.where(u[:, 0] > 0.5, 0.02, 0.1).double())
    everywhere = width(problem, belief, "b", "f")
    alive = width(problem, belief, "b", "f", weigh=lambda u: (u[:, 0] > 0.5).double())
    assert everywhere == pytest.approx(1.96 * 0.1, rel=0.1)
    assert alive == pytest.approx(1.96 * 0.02, rel=0.1)
