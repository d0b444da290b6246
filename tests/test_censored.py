import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch

from excursion.surrogate import GaussianProcess, MultiTask, Observations
from excursion.surrogate.censored import censored_evidence, censored_sites
from excursion.surrogate.exact import Kernel


def tensor(a):
    return torch.tensor(a, dtype=torch.float64)


def problem(seed, n, bounds, noise):
    """A prior covariance of n close points, values drawn from it, and bounds (sides) for the first of them."""
    rng = np.random.default_rng(seed)
    u = rng.random((n, 2))
    k = 1.3 * np.exp(-0.5 * ((u[:, None] - u[None]) ** 2).sum(-1) / 0.4**2)
    mean = 0.3 * u[:, 0]
    variance = noise * rng.uniform(0.5, 2.0, n)
    z = mean + np.linalg.cholesky(k + 1e-9 * np.eye(n)) @ rng.standard_normal(n)
    side = np.zeros(n)
    side[: len(bounds)] = bounds
    z[: len(bounds)] -= side[: len(bounds)] * rng.uniform(-0.5, 1.0, len(bounds))
    return k, mean, z, variance, side


def orthant(mean, covariance, z, side):
    """P(side (g - z) > 0) for g ~ N(mean, covariance), by Genz's integration."""
    if not len(side):
        return 1.0
    flipped = side[:, None] * covariance * side
    return float(
        scipy.stats.multivariate_normal.cdf(
            np.zeros(len(side)), side * (z - mean), flipped, abseps=1e-6, releps=1e-5, maxpts=500_000, rng=1
        )
    )


def integrated(k, mean, z, variance, side):
    """ln p(values, bounds) and the posterior mean of f at all points, without expectation propagation.

    The moments of a truncated normal from its derivatives (Tallis, J. R. Stat. Soc. B 23 (1961) 223, eq. 2):
    E[g - m] = C sum_i e_i p_i, p_i the density of g_i at its bound times the probability that the others hold there.
    """
    e, c = np.flatnonzero(side == 0), np.flatnonzero(side)
    gram = k + np.diag(variance)
    density, m, cov, gain = 0.0, mean, gram, np.zeros((len(z), 0))
    prior = k
    if len(e):
        density = scipy.stats.multivariate_normal.logpdf(z[e], mean[e], gram[np.ix_(e, e)])
        gain = np.linalg.solve(gram[np.ix_(e, e)], k[e]).T
        m, prior = mean + gain @ (z - mean)[e], k - gain @ k[e]
    cov = (prior + np.diag(variance))[np.ix_(c, c)]
    total = orthant(m[c], cov, z[c], side[c])
    pulls = np.zeros(len(c))
    for i in range(len(c)):
        rest = np.delete(np.arange(len(c)), i)
        at = m[c][rest] + cov[rest, i] / cov[i, i] * (z[c][i] - m[c][i])
        left = cov[np.ix_(rest, rest)] - np.outer(cov[rest, i], cov[i, rest]) / cov[i, i]
        height = scipy.stats.norm.pdf(z[c][i], m[c][i], math.sqrt(cov[i, i]))
        pulls[i] = side[c][i] * height * orthant(at, left, z[c][rest], side[c][rest]) / total
    return density + math.log(total), m + prior[:, c] @ pulls


SIDES = [(1,), (-1,), (1, 1), (1, -1), (-1, -1, -1), (1, -1, 1), (1, 1, 1)]


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("exact", [0, 3])
@pytest.mark.parametrize("bounds", SIDES)
def test_evidence_and_mean_agree_with_integration_to_a_hundredth(bounds, exact, noise):
    """ln p to 1 % or .01; the mean of f at every point to .01 (its standard deviation is 1.1) or 1 % of itself."""
    for seed in range(2):
        case = problem(seed, len(bounds) + exact, bounds, noise)
        log_p, mean = integrated(*case)
        tensors = [tensor(a) for a in case]
        assert censored_evidence(*tensors) == pytest.approx(log_p, rel=0.01, abs=0.01)
        k, prior_mean = case[:2]
        values, variances = (a.numpy() for a in censored_sites(*tensors))
        gain = np.linalg.solve(k + np.diag(variances), k).T
        got = prior_mean + gain @ (values - prior_mean)
        assert (np.abs(got - mean) < 0.01 * np.maximum(1.0, np.abs(mean))).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("sd", [0.01, 0.3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_belief_of_a_fit_agrees_with_integration(count, sd, sign):
    """Under the hyperparameters that were fitted: the mean at all points, to 1 % of the prior's standard deviation."""
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=2).draw(10, dtype=torch.float64)
    f = torch.sin(4 * u[:, 0]) + u[:, 1] + sd * tensor(np.random.default_rng(1).standard_normal(10))
    side = torch.zeros(10, dtype=torch.float64)
    side[(sign * f).topk(count).indices] = sign
    z = torch.where(side != 0, f - sign * 0.3, f)
    variance = torch.full_like(z, sd**2)
    data = Observations(u, z[:, None], variance[:, None], side[:, None])
    at = u + tensor([0.05, -0.05])
    posterior = GaussianProcess(kernel="rbf", metric="ard", average=False).fit(data)
    (h,) = posterior.hyperparameters
    both = torch.cat([u, at]).numpy() / np.array(h["lengthscales"])
    k = h["amplitude"] ** 2 * np.exp(-0.5 * ((both[:, None] - both[None]) ** 2).sum(-1))
    # What is not observed enters as a value of no weight.
    blind, enormous = np.zeros(10), np.full(10, 3e4)
    _, mean = integrated(
        k,
        np.full(20, h["mean"]),
        np.concatenate([z, np.full(10, h["mean"])]),
        np.concatenate([variance + h["nugget"] ** 2, enormous]),
        np.concatenate([side, blind]),
    )
    got = torch.cat([posterior.marginal(u)[0][0], posterior.marginal(at)[0][0]]).numpy()
    assert np.abs(got - mean).max() < 0.01 * h["amplitude"]
    assert np.abs(got - mean).max() < 0.01 * np.abs(mean).max()


def test_the_integration_is_that_of_a_lattice():
    """The reference above against a sum over a fine lattice of (f_1, f_2), and over f_3 in closed form."""
    case = problem(3, 3, (1, -1), 0.05)
    k, mean, z, variance, side = case
    axis = np.linspace(-8, 8, 801)
    f = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2) + mean[:2]
    gram = k.copy()
    gram[2, 2] += variance[2]  # the third is seen with its noise
    joint = np.column_stack([f, np.full(len(f), z[2])])
    weight = np.exp(scipy.stats.multivariate_normal.logpdf(joint, mean, gram))
    for i in range(2):
        weight *= scipy.stats.norm.cdf(side[i] * (f[:, i] - z[i]) / math.sqrt(variance[i]))
    log_p, m = integrated(*case)
    assert log_p == pytest.approx(math.log(weight.sum() * (axis[1] - axis[0]) ** 2), abs=1e-4)
    assert m[:2] == pytest.approx(weight @ f / weight.sum(), abs=1e-4)


def test_one_bound_is_exact():
    k, mean, z, variance, side = (tensor(a) for a in problem(1, 1, (1,), 0.1))
    t = float((mean - z) / (k[0, 0] + variance).sqrt())
    assert censored_evidence(k, mean, z, variance, side) == pytest.approx(scipy.stats.norm.logcdf(t), rel=1e-9)
    assert censored_evidence(k, mean, z - 1e9, variance, side) == pytest.approx(0.0, abs=1e-6)  # it tells nothing


def test_without_bounds_it_is_the_density_of_the_values():
    k, mean, z, variance, side = problem(1, 4, (), 0.1)
    tensors = [tensor(a) for a in (k, mean, z, variance, side)]
    expected = scipy.stats.multivariate_normal.logpdf(z, mean, k + np.diag(variance))
    assert censored_evidence(*tensors) == pytest.approx(expected, rel=1e-10)
    values, variances = censored_sites(*tensors)
    assert torch.equal(values, tensors[2])
    assert torch.equal(variances, tensors[3])


def test_the_probabilities_of_both_sides_of_all_bounds_add_up():
    """Over the four ways in which two bounds may be passed: a law that no quadrature is needed for."""
    k, mean, z, variance, _ = problem(5, 2, (), 0.05)
    total = sum(
        math.exp(censored_evidence(*(tensor(a) for a in (k, mean, z, variance, np.array(sides)))))
        for sides in itertools.product((-1.0, 1.0), repeat=2)
    )
    assert total == pytest.approx(1.0, abs=0.003)


# --- never an error


def scattered(seed):
    """Half of the values censored in one of five ways, in one to four dimensions; for each seed the same."""
    rng = np.random.default_rng(seed)
    d, n = (
        int(rng.integers(1, 5)),
        int(rng.choice([4, 6, 10, 20, 40, 80, 200], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.06, 0.04])),
    )
    u = rng.random((n, d))
    f = (
        np.sin(5 * u[:, 0]) + u.sum(1),
        20 * (u[:, 0] - 0.5) ** 3,
        np.where(u[:, 0] > 0.5, 5.0, -5.0),
        rng.normal(size=n),
        np.exp(8 * u[:, 0]),
        1e3 * u[:, 0] + 1e5,
    )[rng.integers(6)]
    if rng.random() < 0.3:  # duplicates, with equal values or not
        k = n // 3
        u[:k] = u[n - k :]
        if rng.random() < 0.5:
            f[:k] = f[n - k :]
    sd = f.std() + 1e-3
    variance = (sd * 10 ** rng.uniform(-4, 0.5, n)) ** 2 * rng.integers(2)
    side, z, half = np.zeros(n), f.copy(), rng.permutation(n)[: n // 2]
    kind = rng.integers(5)
    if kind == 0:  # railed at the median
        side, z = (f > np.median(f)) * 1.0, np.minimum(f, np.median(f))
    elif kind == 1:  # railed at both ends
        low, high = np.quantile(f, [0.25, 0.75])
        side, z = (f > high) * 1.0 - (f < low), np.clip(f, low, high)
    elif kind in (2, 3):  # far bounds on the wrong side (2), or weak ones on the right side (3)
        side[half] = rng.choice([-1, 1], len(half))
        z[half] += (1 if kind == 2 else -1) * side[half] * rng.uniform(0, 10, len(half)) * sd
    else:  # above 10, next to values of 1
        side[half], z[:] = 1.0, 1 + 0.01 * rng.normal(size=n)
        z[half] = 10
        u[half] = u[rng.permutation(n)[: len(half)]] + 1e-4 * rng.random((len(half), d))
    return tensor(np.clip(u, 0, 1)), tensor(z)[:, None], tensor(variance)[:, None], tensor(side)[:, None]


@pytest.mark.parametrize(
    ("recipe", "seeds"),
    [
        (GaussianProcess(kernel="matern52", metric="ard", restarts=1, average=False, max_iter=30), range(60)),
        (GaussianProcess(), range(100, 115)),
        (MultiTask(restarts=1, max_iter=30), range(200, 240)),
    ],
    ids=["matern", "default", "multitask"],
)
def test_half_of_the_data_censored_is_never_an_error(recipe, seeds):
    for seed in seeds:
        data = Observations(*scattered(seed))
        mean, variance = recipe.fit(data).marginal(data.u)
        assert torch.isfinite(mean).all(), seed
        assert (variance >= 0).all(), seed


def test_sites_are_found_where_rounding_is_all_that_moves():
    """Amplitudes of up to 30 and noise of down to 1e-9, bounds that contradict values next to them."""
    for seed in range(400):
        rng = np.random.default_rng(seed)
        u, z, variance, side = scattered(seed)
        scale = z.std(0) + 1e-9
        kernel = Kernel(
            str(rng.choice(["rbf", "matern52", "matern32"])),
            torch.eye(u.shape[1]).double() / 10 ** rng.uniform(-1.5, 1.5),
            tensor([10 ** rng.uniform(-3, 3)]),
        )
        noise = (variance / scale**2)[:, 0] + 10 ** rng.uniform(-9, -1)
        mean = torch.zeros(len(u), dtype=torch.float64)
        y = ((z - z.mean(0)) / scale)[:, 0]
        values, variances = censored_sites(kernel(u, u), mean, y, noise, side[:, 0])
        assert torch.isfinite(values).all(), seed
        assert (variances > 0).all(), seed
        assert math.isfinite(censored_evidence(kernel(u, u), mean, y, noise, side[:, 0])), seed


def test_240_bounds_among_800_values_take_seconds():
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(800, dtype=torch.float64)
    f = torch.sin(4 * u[:, 0]) + u[:, 1]
    bound = f.sort().values[560]
    side = (f >= bound).double()
    assert side.sum() == 240
    data = Observations(u, f.clamp_max(bound)[:, None], torch.zeros(800, 1).double(), side[:, None])
    start = time.perf_counter()
    posterior = GaussianProcess().fit(data)
    assert time.perf_counter() - start < 30  # three on an idle machine
    mean, _ = posterior.marginal(u)
    assert (mean[0] > bound - 0.05)[side > 0].all()
