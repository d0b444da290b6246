import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

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
from excursion.acquisition.criteria import Prospect, truncated_normal
from excursion.acquisition.search import SEPARATION, integration_set, poisson_disc
from excursion.errors import InvalidStrategy, ShapeError, SpaceExhausted
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import GaussianProcess, Observations
from excursion.testing import AcquisitionContract

NOTHING = torch.zeros(0, 2, dtype=torch.float64)


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
    return GaussianProcess().fit(Observations.exact(u, torch.sin(5 * u[:, 0]) + u[:, 1]))


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


# --- the search


SPACE = ParameterSpace.of({"x": (0, 1), "y": (0, 1)})
TARGET = Target((torch.tensor([0.8], dtype=torch.float64),), torch.ones(1, dtype=torch.float64))


def test_integration_points_are_unbiased_and_near_the_band(posterior):
    pool = points(4096, seed=3)
    interest = TARGET.interest(*posterior.marginal(pool))
    g = torch.sin(3 * pool[:, 0]) + pool[:, 1] ** 2
    estimates = []
    for seed in range(200):
        index, weight = integration_set(interest, 256, torch.Generator().manual_seed(seed))
        estimates.append(float((weight * g[index]).sum()))
    error = np.std(estimates) / math.sqrt(200)
    assert np.mean(estimates) == pytest.approx(float(g.mean()), abs=4 * error + 1e-12)
    assert error < 0.01
    assert interest[index].mean() > 1.5 * interest.mean()


def test_integration_points_without_any_interest_are_uniform():
    index, weight = integration_set(torch.zeros(100, dtype=torch.float64), 50, torch.Generator().manual_seed(0))
    assert torch.allclose(weight, torch.full((50,), 1 / 50, dtype=torch.float64))
    assert len(torch.unique(index)) == 50


def test_the_batch_is_the_brute_force_one(posterior):
    """On few candidates, greedy with joint variance equals doing it the slow way."""
    search = Search(pool=48, candidates=48, integration=32, polish=0)
    chosen, scores = select(SUR(), posterior, SPACE, TARGET, 4, seed=5, taken=NOTHING, search=search)
    pool = SPACE.sample(0, 48, 5)
    index, weight = integration_set(TARGET.interest(*posterior.marginal(pool)), 32, torch.Generator().manual_seed(5))
    belief, expect = posterior, []
    for score in scores:
        p = prospect(belief, pool, (0.8,))
        at = pool[index]
        at_mean, at_variance = belief.marginal(at)
        p = type(p)(
            **{
                **p.__dict__,
                "at_mean": at_mean,
                "at_variance": at_variance,
                "at_weight": weight,
                "cross": belief.cross(at, pool),
            }
        )
        worth = SUR().score(p)
        expect.append(pool[worth.argmax()])
        assert float(score) == pytest.approx(float(worth.max()), rel=1e-6)
        belief = belief.condition(expect[-1][None])
    assert torch.allclose(chosen, torch.stack(expect))


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


def test_large_batches_and_many_points_stay_sane(posterior):
    u, scores = select(SUR(), posterior, SPACE, TARGET, 60, seed=3, taken=NOTHING)
    assert torch.nn.functional.pdist(u).min() > SEPARATION
    assert torch.isfinite(scores).all()


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
        (lambda: Search(batch="best"), "batch must be joint, poisson-disc or top, got 'best'"),
        (lambda: Search(candidates=3), "must be at least 16, got .*candidates=3"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InvalidStrategy, match=message):
        make()
