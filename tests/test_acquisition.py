import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

import excursion.acquisition.criteria
import excursion.acquisition.search
from excursion import levelset
from excursion.acquisition import (
    CRITERIA,
    EAVC,
    EFF,
    EI,
    PES,
    PI,
    SUR,
    UCB,
    Acquisition,
    ExclusionEntropy,
    MutualInformation,
    Ranjan,
    Search,
    Sobol,
    Straddle,
    Target,
    TargetedIMSE,
    acquisition_from_json,
    incumbent,
    select,
)
from excursion.acquisition.batch import Batch, Shortlist
from excursion.acquisition.criteria import Prospect, truncated_normal
from excursion.acquisition.search import POLISHED, SEPARATION, integration_set, poisson_disc
from excursion.errors import InvalidStrategy, ScoreError, ShapeError, SpaceExhausted
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import GaussianProcess, Observations
from excursion.testing import AcquisitionContract

NOTHING = torch.zeros(0, 2, dtype=torch.float64)
LOOK_AHEAD = [SUR(), SUR(loss="variance"), MutualInformation(), PES(), TargetedIMSE(), EAVC()]


def points(n, d=2, seed=1):
    return torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)


@pytest.fixture(params=[*(c() for c in CRITERIA.values()), SUR(loss="variance")], ids=repr)
def acquisition(request):
    return request.param


class TestCriteria(AcquisitionContract):
    pass


@pytest.fixture(scope="module")
def posterior():
    u = points(8)
    return GaussianProcess("matern52", average=False).fit(Observations.exact(u, torch.sin(5 * u[:, 0]) + u[:, 1]))


LEVELS = ((0.8,), (0.3, 0.8, 1.5))


def prospect(posterior, candidates, levels):
    p = AcquisitionContract.prospect(posterior, candidates, (levels,))
    return type(p)(**{**p.__dict__, "weights": torch.ones(1, dtype=torch.float64)})


def average_over_outcomes(posterior, at, candidate, loss):
    """E_z of the loss of the belief, by conditioning on each outcome z of the look; trapezoidal rule in z."""
    mean, variance = (m[0, 0] for m in posterior.marginal(candidate[None]))
    noise = posterior.noise
    z = np.linspace(-7.5, 7.5, 301)
    losses = [
        loss(
            *(
                m[0]
                for m in posterior.condition(
                    candidate[None], (mean + (variance + noise).sqrt() * s)[None], noise[None]
                ).marginal(at)
            )
        )
        for s in z
    ]
    return np.trapezoid(scipy.stats.norm.pdf(z) * losses, z)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(
    ("criterion", "of_p"),
    [
        (SUR(), levelset.misclassification),
        (SUR(loss="variance"), lambda p: p * (1 - p)),
        (MutualInformation(), levelset.binary_entropy),
    ],
    ids=["misclassification", "variance", "information"],
)
def test_looking_ahead_agrees_with_conditioning_on_every_outcome(posterior, criterion, of_p, levels):
    at = points(40, seed=6)

    def loss(mean, variance):
        return float(sum(of_p(levelset.excursion_probability(mean, variance, t)).mean() for t in levels))

    candidates = points(4, seed=11)
    scores = criterion.score(prospect(posterior, candidates, levels))
    now = loss(*(m[0] for m in posterior.marginal(at)))
    for candidate, score in zip(candidates, scores):
        expect = now - average_over_outcomes(posterior, at, candidate, loss)
        assert float(score) == pytest.approx(expect, rel=5e-4, abs=1e-7)


@pytest.mark.parametrize("levels", LEVELS)
def test_pes_is_the_drop_of_the_looks_entropy(posterior, levels):
    """Entropy of the look minus its average entropy given the class elsewhere, moments by numerical integration."""
    at, candidates = points(40, seed=6), points(3, seed=11)
    scores = PES().score(prospect(posterior, candidates, levels))
    at_mean, at_variance = (m[0] for m in posterior.marginal(at))
    cross = posterior.cross(at, candidates)[0]
    ends = [-math.inf, *levels, math.inf]
    for c, score in enumerate(scores):
        seen = float(posterior.marginal(candidates)[1][0, c] + posterior.noise[0])
        total = 0.0
        for q in range(40):
            f = scipy.stats.norm(float(at_mean[q]), math.sqrt(float(at_variance[q])))
            slope = float(cross[q, c]) / f.var()
            for low, high in itertools.pairwise(ends):
                grid = np.linspace(max(low, f.mean() - 12 * f.std()), min(high, f.mean() + 12 * f.std()), 20001)
                if grid[0] >= grid[-1]:
                    continue
                weight = f.pdf(grid)
                weight /= (p := np.trapezoid(weight, grid)) or 1.0
                m = np.trapezoid(weight * grid, grid)
                spread = np.trapezoid(weight * (grid - m) ** 2, grid)
                if p > 1e-12:
                    total += p * 0.5 * math.log(seen / (seen - slope**2 * (f.var() - spread)))
        assert float(score) == pytest.approx(total / 40, rel=1e-3, abs=1e-7)


def test_pointwise_criteria_by_hand(posterior):
    candidates = points(6, seed=11)
    mean, variance = (m[0].numpy() for m in posterior.marginal(candidates))
    p = scipy.stats.norm.sf(0.8, mean, np.sqrt(variance))
    entropy = ExclusionEntropy().score(prospect(posterior, candidates, (0.8,)))
    assert np.allclose(entropy, [scipy.stats.entropy([q, 1 - q]) for q in p])
    straddle = Straddle(kappa=2.5).score(prospect(posterior, candidates, (-5.0, 0.8)))
    assert np.allclose(straddle, 2.5 * np.sqrt(variance) - np.abs(mean - 0.8))


@pytest.mark.parametrize(
    ("criterion", "of_distance"),
    [
        (EFF(alpha=1.5), lambda y, s: np.maximum(1.5 * s - np.abs(y), 0)),
        (Ranjan(alpha=2.2), lambda y, s: np.maximum((2.2 * s) ** 2 - y**2, 0)),
    ],
    ids=["EFF", "Ranjan"],
)
def test_improvements_by_quadrature(posterior, criterion, of_distance):
    candidates = points(6, seed=11)
    mean, variance = (m[0].numpy() for m in posterior.marginal(candidates))
    scores = criterion.score(prospect(posterior, candidates, (0.8,)))
    z = np.linspace(-10, 10, 200001)
    for m, s, score in zip(mean, np.sqrt(variance), scores):
        expect = np.trapezoid(scipy.stats.norm.pdf(z) * of_distance(m + s * z - 0.8, s), z)
        assert float(score) == pytest.approx(expect, rel=1e-6, abs=1e-12)
    both = criterion.score(prospect(posterior, candidates, (-50.0, 0.8)))
    assert torch.allclose(both, scores)


@pytest.mark.parametrize("criterion", [EFF(), Ranjan()], ids=repr)
def test_improvements_keep_their_digits_on_both_sides(criterion):
    """At ten standard deviations the hope is 1e-16 and less; by quadrature where it is not nothing."""
    lead = torch.tensor([[-10.0, 10.0]], dtype=torch.float64)
    one, none = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.float64)
    p = Prospect(lead, one, none[0], (one[0, :1] * 0,), one[0, :1], none, none, none[0], none[:, :, None])
    a = criterion.alpha
    x, w = np.polynomial.legendre.leggauss(200)
    f = a * x
    gain = {"EFF": a - np.abs(f), "Ranjan": a**2 - f**2}[type(criterion).__name__]
    pieces = [(f[f < 0], w[f < 0], gain[f < 0]), (f[f > 0], w[f > 0], gain[f > 0])]
    expect = sum(a * (wi * gi * scipy.stats.norm.pdf(fi, 10.0)).sum() for fi, wi, gi in pieces)
    assert criterion.score(p).tolist() == pytest.approx([expect, expect], rel=1e-2, abs=0)


def test_targeted_imse_is_the_drop_of_the_weighted_variance(posterior):
    at, candidates = points(40, seed=6), points(4, seed=11)
    scores = TargetedIMSE().score(prospect(posterior, candidates, (0.8,)))
    mean, variance = (m[0] for m in posterior.marginal(at))
    density = scipy.stats.norm.pdf(0.8, mean, variance.sqrt())
    for candidate, score in zip(candidates, scores):
        after = posterior.condition(candidate[None]).marginal(at)[1][0]
        assert float(score) == pytest.approx(((variance - after).numpy() * density).mean(), rel=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_eavc_is_the_expected_change_of_the_volume(posterior, levels):
    at, candidates = points(40, seed=6), points(3, seed=11)
    scores = EAVC().score(prospect(posterior, candidates, levels))
    now = [float(levelset.excursion_probability(*(m[0] for m in posterior.marginal(at)), t).mean()) for t in levels]

    def change(mean, variance):
        return sum(
            abs(float(levelset.excursion_probability(mean, variance, t).mean()) - p) for t, p in zip(levels, now)
        )

    for candidate, score in zip(candidates, scores):
        # 16 nodes of Gauss-Hermite see the kink of the absolute value to about two per cent.
        assert float(score) == pytest.approx(average_over_outcomes(posterior, at, candidate, change), rel=0.04)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("criterion", "of_gain"),
    [
        (EI(), lambda gain, s: np.maximum(gain, 0)),
        (PI(), lambda gain, s: gain > 0),
        (UCB(kappa=1.5), lambda gain, s: gain + 1.5 * s),
    ],
    ids=["EI", "PI", "UCB"],
)
def test_optimum_criteria_by_quadrature(criterion, of_gain, sign):
    """The average over the outcome f of a gain, tasks with weights, leads from -9 to 9 standard deviations."""
    mean = torch.linspace(-4, 5, 14, dtype=torch.float64).reshape(2, 7)
    variance = torch.tensor([[0.25], [4.0]], dtype=torch.float64).expand(2, 7)
    best, weights = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.7, 0.3], dtype=torch.float64)
    none = torch.zeros(2, 0, dtype=torch.float64)
    levels = (torch.zeros(0, dtype=torch.float64),) * 2
    p = Prospect(mean, variance, none[:, 0:0], levels, weights, none, none, none[0], none[:, :, None], best, sign)
    expect = np.zeros(7)
    for i in range(2):
        for c in range(7):
            m, s, b = float(mean[i, c]), math.sqrt(float(variance[i, c])), float(best[i])
            kink = np.clip(b, m - 12 * s, m + 12 * s)  # integrated piecewise, each piece smooth
            for low, high in ((m - 12 * s, kink), (kink, m + 12 * s)):
                if low < high:
                    x, w = np.polynomial.legendre.leggauss(200)
                    f = low + (high - low) * (x + 1) / 2
                    gain = of_gain(sign * (f - (b if not isinstance(criterion, UCB) else 0)), s)
                    expect[c] += float(weights[i]) * (high - low) / 2 * (w * scipy.stats.norm.pdf(f, m, s) * gain).sum()
    assert np.allclose(criterion.score(p).numpy(), expect, rtol=1e-6, atol=1e-12)


def test_expected_improvement_keeps_its_digits_far_below_the_incumbent():
    """At 30 standard deviations the expectation is 1e-200; by Mills' asymptotic series."""
    u = torch.tensor([[-30.0]], dtype=torch.float64)
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 0, dtype=torch.float64)
    p = Prospect(u, one, none[0], (none[0],), one[0], none, none, none[0], none[:, :, None], 0 * one[0])
    series = scipy.stats.norm.pdf(30) / 900 * (1 - 3 / 900 + 15 / 900**2 - 105 / 900**3 + 945 / 900**4)
    assert float(EI().score(p)) == pytest.approx(series, rel=1e-8)


@pytest.mark.parametrize(("a", "b"), [(-math.inf, 0.3), (-1.0, 2.0), (5.0, math.inf), (-math.inf, -7.0), (6.0, 6.5)])
def test_truncated_normal_moments(a, b):
    probability, variance = truncated_normal(*(torch.tensor([v], dtype=torch.float64) for v in (a, b)))
    exact = scipy.stats.truncnorm(a, b)
    assert float(probability) == pytest.approx(scipy.stats.norm.cdf(b) - scipy.stats.norm.cdf(a), rel=1e-9, abs=1e-16)
    assert float(variance) == pytest.approx(exact.var(), rel=1e-6, abs=1e-8)


def test_an_empty_class_has_no_weight():
    probability, variance = truncated_normal(torch.tensor([60.0]).double(), torch.tensor([61.0]).double())
    assert float(probability) == 0
    assert float(variance) == 0


# --- every criterion against loops in scipy


def random_prospect(seed):
    """Three tasks of one to three thresholds, correlations up to 0.999, leads up to some standard deviations."""
    rng = np.random.default_rng(seed)
    t, c, m = 3, 3, 4
    levels = tuple(torch.from_numpy(np.sort(rng.normal(size=k))) for k in (1, 2, 3))
    variance, at_variance = rng.gamma(1.0, 1.0, (t, c)) + 0.01, rng.gamma(1.0, 1.0, (t, m)) + 0.01
    noise = rng.gamma(0.5, 0.1, t)
    rho = np.sign(rng.normal(size=(t, m, c))) * rng.beta(0.6, 0.6, (t, m, c)) * 0.999
    cross = rho * np.sqrt(at_variance[:, :, None] * (variance + noise[:, None])[:, None, :])
    arrays = rng.normal(size=(t, c)), variance, noise
    mean, variance, noise = map(torch.from_numpy, arrays)
    at = rng.normal(size=(t, m)), at_variance, rng.dirichlet(np.ones(m))
    at_mean, at_variance, weight = map(torch.from_numpy, at)
    weights = torch.from_numpy(rng.dirichlet(np.ones(t)))
    best = torch.from_numpy(rng.normal(size=t))
    cross = torch.from_numpy(cross)
    sign = float(rng.choice([-1.0, 1.0]))
    return Prospect(mean, variance, noise, levels, weights, at_mean, at_variance, weight, cross, best, sign)


NORMAL = scipy.stats.norm


def normal_mean(g, m, s, kinks=()):
    """E g(f) for f ~ N(m, s^2): Gauss-Legendre between the kinks."""
    inside = sorted(min(max(k, m - 14 * s), m + 14 * s) for k in kinks)
    edges = [m - 14 * s, *inside, m + 14 * s]
    x, w = np.polynomial.legendre.leggauss(100)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        f = low + (high - low) * (x + 1) / 2
        total += (high - low) / 2 * (w * NORMAL.pdf(f, m, s) * g(f)).sum()
    return total


def per_point(kind):
    """What a task adds at a candidate of mean m and spread s, by quadrature over f."""

    def entropy(m, s, levels, best, sign):
        return scipy.stats.entropy(np.diff([0.0, *NORMAL.cdf(levels, m, s), 1.0]))

    def straddle(m, s, levels, best, sign):
        return max(1.96 * s - abs(m - level) for level in levels)

    def eff(m, s, levels, best, sign):
        def one(level):
            return normal_mean(
                lambda f: np.maximum(2 * s - abs(f - level), 0), m, s, (level - 2 * s, level, level + 2 * s)
            )

        return max(one(level) for level in levels)

    def ranjan(m, s, levels, best, sign):
        def one(level):
            e = 1.96 * s
            return normal_mean(lambda f: np.maximum(e**2 - (f - level) ** 2, 0), m, s, (level - e, level + e))

        return max(one(level) for level in levels)

    def ei(m, s, levels, best, sign):
        return normal_mean(lambda f: np.maximum(sign * (f - best), 0), m, s, (best,))

    def pi(m, s, levels, best, sign):
        return NORMAL.cdf(sign * (m - best) / s)

    def ucb(m, s, levels, best, sign):
        return sign * m + 2 * s

    return locals()[kind]


def per_pair(kind):
    """What a task adds at a pair: leads u of the thresholds, edges, spread s at the point, correlation rho."""

    def drop(of_p):
        def total(m, s, levels, rho):
            def one(level):
                u = (m - level) / s
                # p+ as a function of the outcome z; in panels that resolve the step where rho is nearly one.
                step, width = -u / rho, math.sqrt(1 - rho**2) / abs(rho)
                near = [step + k * width for k in (-12, -6, -3, -1, 0, 1, 3, 6, 12)]
                after = normal_mean(
                    lambda z: of_p(NORMAL.cdf((u + rho * z) / math.sqrt(1 - rho**2))),
                    0.0,
                    1.0,
                    (*near, -6, -3, 0, 3, 6),
                )
                return of_p(NORMAL.cdf(u)) - after

            return sum(one(level) for level in levels)

        return total

    misclassification = drop(lambda p: np.minimum(p, 1 - p))
    variance = drop(lambda p: p * (1 - p))
    information = drop(lambda p: scipy.stats.entropy([p, 1 - p]))

    def pes(m, s, levels, rho):
        total = 0.0
        for low, high in itertools.pairwise([-np.inf, *levels, np.inf]):
            a, b = (low - m) / s, (high - m) / s
            lost = 1 - scipy.stats.truncnorm.var(a, b)
            total -= 0.5 * (NORMAL.cdf(b) - NORMAL.cdf(a)) * math.log(1 - rho**2 * lost)
        return total

    def imse(m, s, levels, rho):
        return sum(s**2 * rho**2 * NORMAL.pdf(level, m, s) for level in levels)

    return locals()[kind]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (ExclusionEntropy(), "entropy"),
        (Straddle(), "straddle"),
        (EFF(), "eff"),
        (Ranjan(), "ranjan"),
        (EI(), "ei"),
        (PI(), "pi"),
        (UCB(), "ucb"),
    ],
)
def test_criteria_at_a_point_by_quadrature(criterion, kind, seed):
    p = random_prospect(seed)
    of_task = per_point(kind)
    for c, score in enumerate(criterion.score(p)):
        expect = sum(
            float(p.weights[i])
            * of_task(
                float(p.mean[i, c]), float(p.variance[i, c].sqrt()), p.levels[i].numpy(), float(p.best[i]), p.sign
            )
            for i in range(3)
        )
        assert float(score) == pytest.approx(expect, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("criterion", "kind"),
    [
        (SUR(), "misclassification"),
        (SUR(loss="variance"), "variance"),
        (MutualInformation(), "information"),
        (PES(), "pes"),
        (TargetedIMSE(), "imse"),
    ],
)
def test_criteria_that_look_ahead_by_quadrature(criterion, kind, seed):
    p = random_prospect(seed)
    of_pair = per_pair(kind)
    for c, score in enumerate(criterion.score(p)):
        expect = 0.0
        for i, q in itertools.product(range(3), range(4)):
            seen = float((p.variance[i, c] + p.noise[i]).sqrt())
            s = float(p.at_variance[i, q].sqrt())
            value = of_pair(float(p.at_mean[i, q]), s, p.levels[i].numpy(), float(p.cross[i, q, c]) / s / seen)
            expect += float(p.weights[i] * p.at_weight[q]) * value
        assert float(score) == pytest.approx(expect, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_eavc_by_its_own_nodes(seed):
    p = random_prospect(seed)
    nodes, weights = scipy.special.roots_hermitenorm(16)
    for c, score in enumerate(EAVC().score(p)):
        expect = 0.0
        for i in range(3):
            seen = math.sqrt(float(p.variance[i, c] + p.noise[i]))
            s = p.at_variance[i].sqrt().numpy()
            rho = p.cross[i, :, c].numpy() / s / seen
            for level in p.levels[i].numpy():
                u = (p.at_mean[i].numpy() - level) / s
                change = [
                    abs(p.at_weight.numpy() @ (NORMAL.cdf((u + rho * z) / np.sqrt(1 - rho**2)) - NORMAL.cdf(u)))
                    for z in nodes
                ]
                expect += float(p.weights[i]) * (weights / weights.sum()) @ change
        assert float(score) == pytest.approx(expect, rel=1e-6)


def test_eavc_is_accurate_to_a_few_per_cent():
    """Against an average over outcomes on a fine grid: the 16 nodes of Gauss-Hermite miss the absolute value's kink."""
    z = np.linspace(-9, 9, 2001)
    weights = NORMAL.pdf(z) / NORMAL.pdf(z).sum()
    off = []
    for seed in range(8):
        p = random_prospect(seed)
        for c, score in enumerate(EAVC().score(p)):
            expect = 0.0
            for i in range(3):
                s, seen = p.at_variance[i].sqrt().numpy(), math.sqrt(float(p.variance[i, c] + p.noise[i]))
                rho = (p.cross[i, :, c].numpy() / s / seen)[:, None]
                for level in p.levels[i].numpy():
                    u = ((p.at_mean[i].numpy() - level) / s)[:, None]
                    change = NORMAL.cdf((u + rho * z) / np.sqrt(1 - rho**2)) - NORMAL.cdf(u)
                    expect += float(p.weights[i] * (weights @ abs(p.at_weight.numpy() @ change)))
            off.append(abs(float(score) / expect - 1))
    assert np.median(off) < 0.025
    assert max(off) < 0.1


@pytest.mark.parametrize("criterion", LOOK_AHEAD, ids=repr)
def test_pieces_that_fit_into_the_cache_add_up(criterion, monkeypatch):
    """Also where the pairs that count are gathered over several pieces before they are evaluated."""
    p = random_prospect(1)
    whole = criterion.score(p)
    monkeypatch.setattr(excursion.acquisition.criteria, "_PAIRS", 8)  # two candidates at a time
    assert torch.allclose(criterion.score(p), whole, rtol=1e-12)


# --- the search


SPACE = ParameterSpace.of({"x": (0, 1), "y": (0, 1)})
TARGET = Target((torch.tensor([0.8], dtype=torch.float64),), torch.ones(1, dtype=torch.float64))


def in_the_pools_order(interest, n, seed):
    """Systematic sampling without a curve: the same density, the pool in its own order."""
    density = 0.85 * interest / interest.sum() + 0.15 / len(interest)
    offset = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    index = torch.searchsorted(density.cumsum(0), (torch.arange(n) + offset) / n)
    return index, 1 / len(interest) / density[index] / n


def test_integration_points_are_unbiased_and_near_the_band(posterior):
    pool = points(4096, seed=3)
    interest = TARGET.interest(*posterior.marginal(pool))
    g = torch.sin(3 * pool[:, 0]) + pool[:, 1] ** 2
    sets = [integration_set(pool, interest, 256, torch.Generator().manual_seed(seed)) for seed in range(200)]
    found = np.array([float((weight * g[index]).sum()) for index, weight in sets])
    error = found.std() / math.sqrt(200)
    assert found.mean() == pytest.approx(float(g.mean()), abs=4 * error)
    assert error < 0.01
    index, weight = sets[0]
    assert len(torch.unique(index)) == len(index) == len(weight) <= 256
    assert interest[index].mean() > 1.5 * interest.mean()


def test_walking_along_a_curve_lowers_the_variance_of_what_a_look_is_worth(posterior):
    pool, candidates = points(4096, seed=3), points(10, seed=21)
    mean, variance = (m[0] for m in posterior.marginal(pool))
    interest = TARGET.interest(mean[None], variance[None])
    seen = posterior.marginal(candidates)[1][0] + posterior.noise
    rho = posterior.cross(candidates, pool)[0] / (seen[:, None] * variance).sqrt()
    gain = levelset.misclassification_drop((mean - 0.8) / variance.sqrt(), rho.abs().clamp_max(1.0))

    def estimates(draw):
        return torch.stack([gain[:, index] @ weight for index, weight in map(draw, range(100))])

    walked = estimates(lambda seed: integration_set(pool, interest, 128, torch.Generator().manual_seed(seed)))
    jumped = estimates(lambda seed: in_the_pools_order(interest, 128, seed))
    for found in (walked, jumped):
        assert torch.allclose(found.mean(0), gain.mean(1), rtol=0.03)
    assert walked.var(0).mean() < 0.4 * jumped.var(0).mean()


def test_integration_points_without_any_interest_are_uniform():
    index, weight = integration_set(
        points(100), torch.zeros(100, dtype=torch.float64), 50, torch.Generator().manual_seed(0)
    )
    assert torch.allclose(weight, torch.full((50,), 1 / 50, dtype=torch.float64))
    assert len(torch.unique(index)) == 50


TWO_LEVELS = (torch.tensor([0.3, 0.9], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64))
TWO = Target(TWO_LEVELS, torch.tensor([0.7, 0.3], dtype=torch.float64))


@pytest.fixture(scope="module")
def two_tasks():
    u = points(10)
    return GaussianProcess("matern52", average=False).fit(
        Observations.exact(u, torch.stack([torch.sin(5 * u[:, 0]), u[:, 1] - 0.5], 1))
    )


def brute_force(criterion, posterior, target, pool, index, weight, n, price=1.0):
    """All candidates scored at every pick with the dense covariance of the whole pool, one rank-one update per pick."""
    mean, covariance = posterior.joint(pool)
    covariance = covariance.clone()
    chosen, scores = [], []
    for _ in range(n):
        variance = covariance.diagonal(dim1=1, dim2=2)
        p = Prospect(
            mean,
            variance,
            posterior.noise,
            target.levels,
            target.weights,
            mean[:, index],
            variance[:, index],
            weight,
            covariance[:, index],
        )
        worth = criterion.score(p) / price
        worth[chosen] = -math.inf
        best = int(worth.argmax())
        chosen.append(best)
        scores.append(float(worth[best]))
        column = covariance[:, :, best]
        seen = variance[:, best] + posterior.noise
        covariance -= column[:, :, None] * column[:, None, :] / seen[:, None, None]
    return chosen, scores


@pytest.mark.parametrize("criterion", LOOK_AHEAD, ids=repr)
def test_the_batch_is_the_brute_force_one(two_tasks, criterion):
    """Greedy by updates of covariances equals doing it the slow way, for two tasks and three thresholds."""
    search = Search(pool=48, candidates=48, integration=32, polish=0)
    u, scores = select(criterion, two_tasks, SPACE, TWO, 5, seed=5, taken=NOTHING, search=search)
    pool = SPACE.sample(0, 48, 5)
    interest = TWO.interest(*two_tasks.marginal(pool))
    index, weight = integration_set(pool, interest, 32, torch.Generator().manual_seed(5))
    chosen, expect = brute_force(criterion, two_tasks, TWO, pool, index, weight, 5)
    assert torch.equal(u, pool[chosen])
    assert scores.tolist() == pytest.approx(expect, rel=1e-9, abs=0)


@pytest.mark.parametrize("criterion", [SUR(), MutualInformation(), TargetedIMSE(), Straddle()], ids=repr)
def test_a_list_that_is_loaded_bit_by_bit_gives_the_same_batch(two_tasks, criterion, monkeypatch):
    """Candidates beyond the cache are scored in blocks, loaded and scored afresh when the search looks at them."""
    search = Search(pool=400, candidates=300, integration=64, polish=0)
    whole = select(criterion, two_tasks, SPACE, TWO, 20, seed=5, taken=NOTHING, search=search)
    loaded = []
    load = Shortlist._load
    monkeypatch.setattr(Shortlist, "_load", lambda self, stop: (loaded.append(stop), load(self, stop)))
    monkeypatch.setattr(excursion.acquisition.search, "_BLOCK", 4096)
    u, scores = select(criterion, two_tasks, SPACE, TWO, 20, seed=5, taken=NOTHING, search=search)
    assert loaded[0] == 64
    assert torch.equal(u, whole[0])
    assert torch.allclose(scores, whole[1], rtol=1e-9, atol=1e-9)
    # Sixteen at first: stale scores as bounds. Exact where no look makes another one worth more, else nearly so.
    loaded.clear()
    monkeypatch.setattr(excursion.acquisition.search, "_FRESH", 1)
    u, scores = select(criterion, two_tasks, SPACE, TWO, 20, seed=5, taken=NOTHING, search=search)
    assert loaded[-1] < 300
    if isinstance(criterion, Straddle):
        assert torch.equal(u, whole[0])
    assert scores.sum() == pytest.approx(float(whole[1].sum()), rel=2e-3)


def test_polished_points_are_conditioned_on(two_tasks):
    """Points that are no candidates: the scores are those of the dense algebra at the points that were chosen."""
    search = Search(pool=64, candidates=32, integration=32, polish=2)
    u, scores = select(SUR(), two_tasks, SPACE, TWO, 6, seed=5, taken=NOTHING, search=search)
    pool = SPACE.sample(0, 64, 5)
    assert (torch.cdist(u, pool).amin(1) > 1e-6).sum() >= 3
    interest = TWO.interest(*two_tasks.marginal(pool))
    index, weight = integration_set(pool, interest, 32, torch.Generator().manual_seed(5))
    belief = two_tasks
    for point, score in zip(u, scores):
        mean, covariance = belief.joint(torch.cat([point[None], pool[index]]))
        variance = covariance.diagonal(dim1=1, dim2=2)
        p = Prospect(
            mean[:, :1],
            variance[:, :1],
            belief.noise,
            TWO.levels,
            TWO.weights,
            mean[:, 1:],
            variance[:, 1:],
            weight,
            covariance[:, 1:, :1],
        )
        assert float(score) == pytest.approx(float(SUR().score(p)), rel=1e-6)
        belief = belief.condition(point[None])


def test_the_kriging_believer_is_the_joint_batch(two_tasks):
    found = [
        select(EFF(), two_tasks, SPACE, TWO, 6, seed=5, taken=NOTHING, search=Search(batch=batch, pool=256))
        for batch in ("joint", "believer")
    ]
    assert torch.equal(found[0][0], found[1][0])
    # Step by step: believe the mean, refit nothing.
    search = Search(batch="believer", pool=64, candidates=64, polish=0)
    u, _ = select(EFF(), two_tasks, SPACE, TWO, 6, seed=5, taken=NOTHING, search=search)
    pool, belief = SPACE.sample(0, 64, 5), two_tasks
    for k, point in enumerate(u):
        mean, variance = belief.marginal(pool)
        none = mean[:, :0]
        p = Prospect(mean, variance, belief.noise, TWO.levels, TWO.weights, none, none, none[0], none[:, :, None])
        worth = torch.where((pool[:, None] == u[:k]).all(-1).any(-1), -math.inf, EFF().score(p))
        assert torch.equal(point, pool[worth.argmax()])
        belief = belief.condition(point[None], belief.marginal(point[None])[0].T)


# --- cost


def test_a_cost_divides_the_gain(two_tasks):
    """Brute force again, and a cost that is the same everywhere changes nothing but the unit."""
    search = Search(pool=48, candidates=48, integration=32, polish=0)

    def cost(u):
        return 1 + 10 * u[:, 0] ** 2

    u, scores = select(SUR(), two_tasks, SPACE, TWO, 4, seed=5, taken=NOTHING, search=search, cost=cost)
    pool = SPACE.sample(0, 48, 5)
    interest = TWO.interest(*two_tasks.marginal(pool))
    index, weight = integration_set(pool, interest, 32, torch.Generator().manual_seed(5))
    chosen, expect = brute_force(SUR(), two_tasks, TWO, pool, index, weight, 4, cost(pool))
    assert torch.equal(u, pool[chosen])
    assert scores.tolist() == pytest.approx(expect, rel=1e-9, abs=0)
    assert chosen != brute_force(SUR(), two_tasks, TWO, pool, index, weight, 4)[0]
    free, gains = select(SUR(), two_tasks, SPACE, TWO, 4, seed=5, taken=NOTHING)
    same = select(
        SUR(), two_tasks, SPACE, TWO, 4, seed=5, taken=NOTHING, cost=lambda u: torch.full((len(u),), 8.0).double()
    )
    assert torch.equal(same[0], free)
    assert torch.allclose(8 * same[1], gains)


@pytest.mark.parametrize("criterion", [Straddle(), UCB()], ids=repr)
def test_a_bound_has_no_gain_per_cost(posterior, criterion):
    target = replace(TARGET, best=torch.ones(1).double()) if criterion.seeks == "optimum" else TARGET
    with pytest.raises(InvalidStrategy, match=r"a cost needs a criterion that is a gain, never negative, got \w+\("):
        select(criterion, posterior, SPACE, target, 1, seed=5, taken=NOTHING, cost=lambda u: 1 + u[:, 0])


@pytest.mark.parametrize("cost", [lambda u: u[:, 0] - 0.5, lambda u: torch.ones(3), lambda u: u[:, 0] * math.nan])
def test_a_cost_must_be_positive(posterior, cost):
    with pytest.raises(InvalidStrategy, match="must be as many positive finite numbers, got shape"):
        select(SUR(), posterior, SPACE, TARGET, 1, seed=5, taken=NOTHING, cost=cost)


# --- one-sided beliefs, and what is not finite


@pytest.mark.parametrize("batch", ["joint", "top", "poisson-disc"])
@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("criterion", [SUR(), MutualInformation(), PES(), ExclusionEntropy(), EFF()], ids=repr)
def test_a_one_sided_belief_is_searched_where_the_other_side_is_least_improbable(posterior, criterion, side, batch):
    """The threshold 40 to 300 standard deviations away: probabilities of e^-800 and less."""
    pool = SPACE.sample(0, 512, 5)
    mean, variance = (m[0] for m in posterior.marginal(pool))
    level = (mean - side * 40 * variance.sqrt()).amin() if side > 0 else (mean + 40 * variance.sqrt()).amax()
    target = Target((level[None],), torch.ones(1, dtype=torch.float64))
    lead = ((mean - level) / variance.sqrt()).abs()
    assert lead.min() > 39.9
    search = Search(batch=batch, pool=512, candidates=512, polish=0)
    u, scores = select(criterion, posterior, SPACE, target, 3, seed=5, taken=NOTHING, search=search)
    chosen = lead[torch.cdist(u, pool).argmin(1)]
    assert torch.isfinite(scores).all()
    if batch != "poisson-disc":
        assert float(chosen[0]) == pytest.approx(float(lead.min()))
        assert float(scores[0]) == pytest.approx(float(scipy.stats.norm.logsf(lead.min())))
    assert chosen[0] < lead.quantile(0.2)
    if batch == "joint":  # the second look is not beside the first
        assert torch.nn.functional.pdist(u).min() > 0.05


def test_one_sided_searches_weigh_the_cost(posterior):
    pool = SPACE.sample(0, 128, 5)
    mean, variance = (m[0] for m in posterior.marginal(pool))
    target = Target(((mean + 10 * variance.sqrt()).amax()[None],), torch.ones(1, dtype=torch.float64))
    u, scores = select(
        SUR(),
        posterior,
        SPACE,
        target,
        1,
        seed=5,
        taken=NOTHING,
        search=Search(pool=128, polish=0),
        cost=lambda u: (-300 * u[:, 0]).exp(),
    )
    chance = target.log_interest(mean[None], variance[None]) + 300 * pool[:, 0]
    assert chance.argmax() != pool[:, 0].argmax()
    assert chance.argmax() != (chance - 300 * pool[:, 0]).argmax()
    assert torch.equal(u[0], pool[chance.argmax()])
    assert float(scores) == pytest.approx(float(chance.max()))


def test_scores_and_beliefs_that_are_not_finite_are_errors(posterior):
    @dataclass(frozen=True)
    class Broken(Acquisition):
        looks_ahead = False
        seeks = "any"
        kind = "gain"

        def score(self, prospect):
            return torch.where(prospect.mean[0] > 0.5, torch.nan, 1.0)

    with pytest.raises(ScoreError, match=r"scores must be finite, got \[nan, nan, nan\] from .*Broken"):
        select(Broken(), posterior, SPACE, TARGET, 1, seed=5, taken=NOTHING)
    nowhere = replace(posterior, white=posterior.white * math.nan)
    with pytest.raises(ScoreError, match="the belief must be finite, got NaN"):
        select(SUR(), nowhere, SPACE, TARGET, 1, seed=5, taken=NOTHING)


@pytest.mark.parametrize("batch", ["joint", "top", "poisson-disc"])
def test_fewer_allowed_points_than_asked_for(posterior, batch):
    space = ParameterSpace((Parameter("x", 0, 1, step=0.5), Parameter("y", 0, 1, step=1)))  # 6 points
    search = Search(batch=batch)
    assert len(select(SUR(), posterior, space, TARGET, 6, seed=5, taken=NOTHING, search=search)[0]) == 6
    with pytest.raises(SpaceExhausted):
        select(SUR(), posterior, space, TARGET, 7, seed=5, taken=NOTHING, search=search)


@pytest.mark.parametrize("batch", ["joint", "top", "poisson-disc"])
def test_two_hundred_points_at_once(posterior, batch):
    u, scores = select(SUR(), posterior, SPACE, TARGET, 200, seed=3, taken=NOTHING, search=Search(batch=batch))
    assert torch.nn.functional.pdist(u).min() > SEPARATION
    assert torch.isfinite(scores).all()


def test_polishing_finds_better_points(posterior):
    rough = select(SUR(), posterior, SPACE, TARGET, 1, seed=5, taken=NOTHING, search=Search(pool=64, polish=0))
    fine = select(SUR(), posterior, SPACE, TARGET, 1, seed=5, taken=NOTHING, search=Search(pool=64, polish=3))
    assert fine[1] > rough[1]


@pytest.mark.parametrize("batch", ["joint", "poisson-disc", "top"])
def test_batches_are_allowed_distinct_and_reproducible(acquisition, posterior, batch):
    space = ParameterSpace((Parameter("x", 0, 1), Parameter("y", 0, 10, step=0.5)), ("x**2 + (y/10)**2 < 0.8",))
    search = Search(batch=batch, pool=512, candidates=64, integration=64)
    taken = space.snap(points(8))
    if isinstance(acquisition, Sobol) and batch != "poisson-disc":
        return  # nothing to choose by
    sought = replace(TARGET, best=incumbent(posterior, points(8))) if acquisition.seeks == "optimum" else TARGET
    u, scores = select(acquisition, posterior, space, sought, 6, seed=3, taken=taken, search=search)
    assert u.shape == (6, 2)
    assert scores.shape == (6,)
    assert space.allowed_unit(u).all()
    assert torch.allclose(u, space.snap(u), atol=1e-12)
    assert torch.cdist(u, torch.cat([u, taken])).add(10 * torch.eye(6, 14)).min() > 1e-6
    again = select(acquisition, posterior, space, sought, 6, seed=3, taken=taken, search=search)
    assert torch.equal(u, again[0])


def test_a_joint_batch_spreads_and_the_top_does_not(posterior):
    spread = {}
    for batch in ("joint", "top"):
        u, _ = select(SUR(), posterior, SPACE, TARGET, 5, seed=3, taken=NOTHING, search=Search(batch=batch))
        spread[batch] = float(torch.nn.functional.pdist(u).min())
    assert spread["joint"] > 0.05
    assert spread["top"] < spread["joint"]


def test_poisson_discs_keep_their_distance_and_prefer_high_scores():
    u = points(600)
    score = (u[:, 0] > 0.5).double()
    chosen = poisson_disc(u, score, u[:3], 12, torch.Generator().manual_seed(1))
    assert len(set(chosen.tolist())) == 12
    assert (u[chosen][:, 0] > 0.5).all()
    assert torch.nn.functional.pdist(u[chosen]).min() > 0.1
    far = poisson_disc(u, score, u[:60], 12, torch.Generator().manual_seed(1))
    assert torch.cdist(u[far], u[:60]).min() > 0.04
    with pytest.raises(SpaceExhausted, match="Poisson disc: needs 5 points, got 3"):
        poisson_disc(u[:3], score[:3], u[:0], 5, torch.Generator())


def test_a_lattice_is_used_up_to_the_last_point(posterior):
    space = ParameterSpace((Parameter("x", 0, 3, step=1), Parameter("y", 0, 2, step=1)))  # 12 points
    taken = space.sample(0, 9, 0, distinct=True)
    u, _ = select(SUR(), posterior, space, TARGET, 3, seed=1, taken=taken, search=Search(pool=16))
    assert torch.cdist(u, torch.cat([taken, u])).add(10 * torch.eye(3, 12).roll(9, 1)).min() > 0.1
    with pytest.raises(SpaceExhausted):
        select(SUR(), posterior, space, TARGET, 4, seed=1, taken=taken, search=Search(pool=16))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("criterion", [EI(), PI(), UCB()], ids=repr)
def test_a_search_for_the_optimum(posterior, criterion, sign):
    """The first point is the best of the pool; later ones know those before, the incumbent included."""
    observed = points(8)
    target = Target((NOTHING[:, 0],), torch.ones(1, dtype=torch.float64), incumbent(posterior, observed, sign), sign)
    assert float(target.best) == pytest.approx(float((sign * posterior.marginal(observed)[0]).max() * sign))
    search = Search(pool=48, candidates=48, polish=0)
    u, scores = select(criterion, posterior, SPACE, target, 4, seed=5, taken=NOTHING, search=search)
    pool, belief, best, chosen = SPACE.sample(0, 48, 5), posterior, sign * float(target.best), []
    for pick, score in zip(u, scores):
        m, s = (a[0].numpy() for a in belief.marginal(pool))
        m, s = sign * m, np.sqrt(s)
        z = (m - best) / s
        worth = {
            "EI": s * (z * scipy.stats.norm.cdf(z) + scipy.stats.norm.pdf(z)),
            "PI": scipy.stats.norm.cdf(z),
            "UCB": m + 2 * s,
        }[type(criterion).__name__]
        worth[chosen] = -np.inf  # a point is asked once
        k = worth.argmax()
        chosen.append(k)
        assert torch.equal(pick, pool[k])
        assert float(score) == pytest.approx(worth[k], rel=1e-6, abs=1e-12)
        belief, best = belief.condition(pool[k][None]), max(best, m[k])


def test_criteria_must_fit_what_is_sought(posterior):
    optimum = Target((NOTHING[:, 0],), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    with pytest.raises(InvalidStrategy, match=r"must fit what is sought, an optimum, got SUR\(.*Use EI"):
        select(SUR(), posterior, SPACE, optimum, 1, seed=5, taken=NOTHING)
    with pytest.raises(InvalidStrategy, match=r"must fit what is sought, level sets, got EI\(.*Use SUR"):
        select(EI(), posterior, SPACE, TARGET, 1, seed=5, taken=NOTHING)
    with pytest.raises(InvalidStrategy, match="improvement must be over an incumbent, got none"):
        EI().score(replace(prospect(posterior, points(3), (0.8,)), best=None))


@pytest.mark.parametrize("batch", ["joint", "poisson-disc", "top"])
def test_a_search_among_given_points_proposes_rows_of_the_table_only(posterior, batch):
    """Rows that lie closer than the search's own separation count; one asked before does not come again."""
    table = torch.cat([points(40, seed=9), points(1, seed=9) + 1e-5, points(3, seed=9)])  # 41 distinct rows
    taken, left = table[:31], table[31:41]
    search = Search(batch=batch, integration=32)
    u, scores = select(SUR(), posterior, SPACE, TARGET, 10, seed=3, taken=taken, search=search, among=table)
    assert torch.isfinite(scores).all()
    assert sorted(u.tolist()) == sorted(left.tolist())
    with pytest.raises(SpaceExhausted, match="needs 11 allowed points, got 10"):
        select(SUR(), posterior, SPACE, TARGET, 11, seed=3, taken=taken, search=search, among=table)


def test_a_search_among_given_points_integrates_over_them(posterior):
    """The score is the expected drop of the misclassified fraction of the table."""
    table = points(16, seed=9)
    u, scores = select(SUR(), posterior, SPACE, TARGET, 1, seed=3, taken=NOTHING, among=table)

    mean, variance = (m[0].numpy() for m in posterior.marginal(table))
    cross = posterior.cross(table, u)[0, :, 0].numpy()
    rho = np.abs(cross) / np.sqrt(variance * float(posterior.marginal(u)[1][0, 0] + posterior.noise[0]))
    now = scipy.stats.norm.cdf(-np.abs(mean - 0.8) / np.sqrt(variance))
    then = 2 * scipy.special.owens_t((mean - 0.8) / np.sqrt(variance), np.sqrt(1 - rho**2) / rho)
    assert float(scores[0]) == pytest.approx((now - then).mean(), rel=1e-6)
    with pytest.raises(ShapeError, match=r"among must have shape \(m, 2\) with m > 0, got \(3, 1\)"):
        select(SUR(), posterior, SPACE, TARGET, 1, seed=3, taken=NOTHING, among=table[:3, :1])


def test_integration_on_a_lattice_counts_cells(posterior):
    """Snapped pools repeat points, those inside more often than those at the border."""
    space = ParameterSpace((Parameter("x", 0, 1, step=0.25), Parameter("y", 0, 1, step=0.5)))
    u, scores = select(SUR(), posterior, space, TARGET, 1, seed=3, taken=NOTHING, search=Search(pool=512))
    pool = space.sample(0, 512, 3)
    mean, variance = (m[0].numpy() for m in posterior.marginal(pool))
    cross = posterior.cross(pool, u)[0, :, 0].numpy()
    rho = np.abs(cross) / np.sqrt(variance * float(posterior.marginal(u)[1][0, 0] + posterior.noise[0]))
    lead = (mean - 0.8) / np.sqrt(variance)
    drop = scipy.stats.norm.cdf(-np.abs(lead)) - 2 * scipy.special.owens_t(lead, np.sqrt(1 - rho**2) / rho)
    assert float(scores[0]) == pytest.approx(drop.mean(), rel=1e-6)


def test_integration_points_with_shares_are_unbiased():
    u, generator = points(600), torch.Generator().manual_seed(7)
    interest, share = (torch.rand(600, generator=generator, dtype=torch.float64) ** k for k in (4, 2))
    g = u[:, 0] + interest
    sets = [integration_set(u, interest, 100, torch.Generator().manual_seed(s), share) for s in range(300)]
    found = np.array([float((weight * g[index]).sum()) for index, weight in sets])
    expect = float((share * g).sum() / share.sum())
    assert found.mean() == pytest.approx(expect, abs=4 * found.std() / math.sqrt(300))
    assert found.std() < 0.15 * expect


def test_only_small_batches_are_polished(posterior):
    pool = SPACE.sample(0, 64, 3)
    for n, polished in ((POLISHED, True), (POLISHED + 1, False)):
        u, _ = select(SUR(), posterior, SPACE, TARGET, n, seed=3, taken=NOTHING, search=Search(pool=64))
        assert bool((torch.cdist(u, pool).amin(1) > 1e-6).any()) is polished


def test_a_list_in_bits_is_conditioned_like_points_of_its_own(two_tasks):
    """Picks at the borders of what was loaded, one that is no candidate, and candidates loaded later."""
    candidates, at = points(150, seed=31), points(20, seed=32)
    mean, variance = two_tasks.marginal(at)
    batch = Batch(two_tasks, at, mean, variance, torch.full((20,), 0.05, dtype=torch.float64), 8)
    short = Shortlist(batch, candidates)
    for i in (0, 63, 64, None, 95, 96, 143, 149):
        if i is None:
            own = batch.points(two_tasks.view(points(1, seed=33)), points(1, seed=33))
            short.after(batch.pick(own, 0), None)
        else:
            one = short[torch.tensor([i])]
            short.after(batch.pick(one, 0), i)
        seen = torch.tensor([0, 5, i or 0])
        p = batch.prospect(short[seen], TWO)
        q = batch.prospect(batch.points(two_tasks.view(candidates[seen]), candidates[seen]), TWO)
        after = two_tasks.condition(batch.picks)
        for ours, fresh, dense in (
            (p.variance, q.variance, after.marginal(candidates[seen])[1]),
            (p.at_variance, q.at_variance, after.marginal(at)[1]),
            (p.cross, q.cross, after.cross(at, candidates[seen])),
        ):
            assert torch.allclose(ours, fresh, rtol=1e-8, atol=1e-12)
            assert torch.allclose(ours, dense, rtol=1e-6, atol=1e-9)


def test_neighbours_closer_than_the_separation_are_one_point():
    line = ParameterSpace.of({"x": (0, 1)})
    u = points(5, d=1)
    belief = GaussianProcess().fit(Observations.exact(u, torch.sin(5 * u[:, 0])))
    search = Search(batch="top", pool=8192, candidates=8192, polish=0)  # 1.2e-4 apart
    found, _ = select(SUR(), belief, line, TARGET, 8, seed=3, taken=u, search=search)
    assert SEPARATION < torch.nn.functional.pdist(found).min() < 5 * SEPARATION


# --- bad input


def test_an_unknown_criterion_lists_the_known():
    with pytest.raises(InvalidStrategy, match="must be one of SUR, MutualInformation, PES, .*, got 'MES'"):
        acquisition_from_json({"type": "MES"})
    with pytest.raises(InvalidStrategy, match="criterion Straddle: settings must exist, got {'beta': 2}"):
        acquisition_from_json({"type": "Straddle", "beta": 2})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SUR(loss="entropy"), "loss must be 'misclassification' or 'variance', got 'entropy'"),
        (lambda: Straddle(kappa=0), "kappa must be positive and finite, got 0"),
        (lambda: UCB(kappa=math.inf), "kappa must be positive and finite, got inf"),
        (lambda: Search(batch="best"), "batch must be joint, believer, poisson-disc or top, got 'best'"),
        (lambda: Search(candidates=3), "must be at least 16 .*got .*candidates=3"),
        (lambda: Search(pool=2**40), "at most 1048576, .*got .*pool=1099511627776"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InvalidStrategy, match=message):
        make()
