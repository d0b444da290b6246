import math
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import missing

from excursion import Campaign, Fidelity, MultiTask, Parameter, ParameterSpace, Problem, Strategy, Task
from excursion.errors import FitError, InvalidStrategy, ShapeError
from excursion.surrogate import RECIPES, GaussianProcess, Observations
from excursion.surrogate.censored import censored_sites
from excursion.surrogate.exact import CHEAP
from excursion.surrogate.multitask import (
    CHEAPER,
    SOME,
    JointEvidence,
    Spectrum,
    _some,
    _stacked,
    _telling,
)
from excursion.testing import SurrogateContract

CORRELATIONS = {
    "matern52": lambda r: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r),
    "matern32": lambda r: (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r),
    "rbf": lambda r: np.exp(-(r**2) / 2),
}


def points(n, d=2, seed=1):
    return torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)


def functions(u):
    """Three tasks that share a wave, (n, 3)."""
    wave = torch.sin(5 * u[:, 0])
    return torch.stack([wave + u[:, 1], 2 * wave + u[:, 1] ** 2 - 3, 10 * (u[:, 0] - u[:, 1])], 1)


def some_known(n, t, part=0.7, seed=3):
    known = torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) < part
    known[0] = True
    return known


def observed(u, z, known=None, variance=None, side=None, levels=(), cheaper=None):
    known_ = torch.ones_like(z, dtype=torch.bool) if known is None else known
    zero = torch.zeros_like(z)
    filled = [zero if a is None else a.where(known_, zero) for a in (z, variance, side)]
    return Observations(u, *filled, levels, known, cheaper)


@pytest.fixture(
    params=[MultiTask(), MultiTask(kernel="rbf", mean="linear", restarts=1), MultiTask("matern32", rank=1, latent=2)],
    ids=lambda s: f"{s.kernel}-{s.mean}-{s.latent}",
)
def surrogate(request):
    return request.param


class TestMultiTask(SurrogateContract):
    pass


# --- evidence


def evidence(kernel, latent, known, noise, nuggets, seed=1):
    u, rng = points(len(known)), np.random.default_rng(seed)
    z = functions(u)
    task, point = known.T.nonzero().T
    y = ((z - z.mean(0)) / z.std(0)).T[task, point].numpy()
    basis = np.column_stack([np.ones(len(u)), u.numpy() - 0.5])
    noise, nuggets = (np.broadcast_to(f(rng, len(y)), len(y)) for f in (noise, nuggets))
    return JointEvidence(kernel, latent, u.numpy(), basis, 3, task.numpy(), point.numpy(), y, noise, nuggets)


def no_noise(rng, n):
    return 0.0


def all_nuggets(rng, n):
    return 1.0


CASES = {
    "missing": (
        1,
        some_known(15, 3),
        lambda rng, n: rng.uniform(0, 0.1, n),
        lambda rng, n: rng.integers(0, 2, n) * 1.0,
    ),
    "latent": (2, some_known(15, 3), lambda rng, n: rng.uniform(0, 0.1, n), all_nuggets),
    "whole": (1, some_known(15, 3, 1.1), no_noise, all_nuggets),
}


@pytest.mark.parametrize("kernel", CORRELATIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_finite_differences(kernel, case):
    e = evidence(kernel, *CASES[case])
    assert e.whole == (case == "whole")
    start = e.first_guesses(2, 1)[0]
    theta = start + 0.3 * np.random.default_rng(5).standard_normal(len(start))
    numeric = [(e(theta + h)[0] - e(theta - h)[0]) / 2e-5 for h in 1e-5 * np.eye(len(theta))]
    assert e(theta)[1] == pytest.approx(np.array(numeric), rel=1e-6, abs=1e-6)


def dense_covariance(kernel, scales, b, u, task, point):
    """sum_q B^q_ij k_q(u, u') of values, one entry after the other."""
    total = np.zeros((len(task), len(task)))
    for each, bq in zip(scales, b):
        r = np.linalg.norm((u[:, None] - u[None]) / each, axis=-1)
        k = CORRELATIONS[kernel](r)
        total += np.array([[bq[i, j] * k[p, s] for j, s in zip(task, point)] for i, p in zip(task, point)])
    return total


@pytest.mark.parametrize("case", CASES)
def test_the_evidence_is_the_density_of_the_values_and_the_prior(case):
    """Differences between two thetas: the constants are left out."""
    e = evidence("matern52", *CASES[case])
    d, t, latent, rank = 2, 3, e.latent, 2

    def expected(theta):
        parts = [theta[q * 11 : (q + 1) * 11] for q in range(latent)]
        weights = [p[2:8].reshape(3, 2) for p in parts]
        b = [w @ w.T + np.diag(np.exp(p[8:])) for w, p in zip(weights, parts)]
        covariance = dense_covariance("matern52", [np.exp(p[:2]) for p in parts], b, e.u, e.task, e.point)
        covariance += np.diag(e.noise + e.nuggets * np.exp(theta[-3:])[e.task])
        h = np.zeros((len(e.y), 9))
        for row, (i, p) in enumerate(zip(e.task, e.point)):
            h[row, 3 * i : 3 * i + 3] = e.basis[p]
        inverse = np.linalg.inv(covariance)
        beta = np.linalg.solve(h.T @ inverse @ h + 1e-2 * np.eye(9), h.T @ inverse @ e.y)
        rest = e.y - h @ beta
        value = 0.5 * (rest @ inverse @ rest + 1e-2 * beta @ beta + np.linalg.slogdet(covariance)[1])
        for p in parts:
            value += (0.5 * ((p[:2] - math.sqrt(2) - 0.5 * math.log(2)) / math.sqrt(3)) ** 2 + p[:2]).sum()
            value += (0.5 * (p[2:8] / 3) ** 2).sum() + (0.5 * ((p[8:] - math.log(1e-2)) / 3) ** 2).sum()
        return value + (0.5 * ((theta[-3:] - math.log(1e-5)) / 4) ** 2).sum()

    rng = np.random.default_rng(2)
    a, b = (g + 0.2 * rng.standard_normal(len(g)) for g in e.first_guesses(rank, 2))
    assert len(a) == latent * (d + t * rank + t) + t
    assert e(a)[0] - e(b)[0] == pytest.approx(expected(a) - expected(b), rel=1e-9)


# --- the product of matrices


@pytest.mark.parametrize("variance", [0.0, 1e-3])
def test_a_whole_table_gives_the_same_numbers_as_dense_algebra(variance, monkeypatch):
    u, at, new = points(25), points(40, seed=4), points(3, seed=8)
    z = functions(u)
    noise = torch.full_like(z, variance) * torch.tensor([1.0, 2.0, 5.0]).double()
    for recipe in (MultiTask(restarts=1), MultiTask("rbf", mean="linear", restarts=1)):
        data = observed(u, z, variance=noise)
        fast = recipe.fit(data)
        evidence_, *rest = arguments_of_the_belief(recipe, data)
        with monkeypatch.context() as patch:
            patch.setattr(JointEvidence, "whole", False)
            slow = recipe._process(replace(evidence_), *rest)
        assert type(fast.seen) is not type(slow.seen)
        for a, b in ((fast, slow), (fast.condition(new, functions(new)), slow.condition(new, functions(new)))):
            for one, other in zip((*a.joint(at), a.cross(at, new)), (*b.joint(at), b.cross(at, new))):
                assert torch.allclose(one, other, rtol=1e-8, atol=1e-8 if variance else 1e-7)  # a nugget of 1e-9
            assert torch.allclose(a.marginal(at)[1], b.marginal(at)[1], rtol=1e-6, atol=1e-8)


def arguments_of_the_belief(recipe, data):
    """Evidence, hyperparameters and units with which the recipe makes its belief."""
    kept, real = [], MultiTask._process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiTask, "_process", lambda self, *args: kept.append(args) or real(self, *args))
        recipe._fit(data, torch.ones_like(data.z, dtype=torch.bool))
    return kept[-1]


def test_the_evidence_of_a_whole_table_is_that_of_dense_algebra():
    e = evidence("matern52", *CASES["whole"])
    theta = e.first_guesses(2, 1)[0]
    fast, fast_gradient = e(theta)
    e.__dict__["whole"] = False
    slow, slow_gradient = e(theta)
    assert fast == pytest.approx(slow, rel=1e-10)
    assert fast_gradient == pytest.approx(slow_gradient, rel=1e-8, abs=1e-8)


def test_a_whole_table_is_faster():
    """Eight tasks at 150 points are 1200 rows: a ratio of several tens, some of which a busy machine takes."""
    n, t = 150, 8
    u = points(n)
    y = torch.stack([torch.sin((3 + 0.2 * i) * u[:, 0]) + u[:, 1] for i in range(t)]).flatten().numpy()
    task, point = np.repeat(np.arange(t), n), np.tile(np.arange(n), t)
    e = JointEvidence("matern52", 1, u.numpy(), np.ones((n, 1)), t, task, point, y, np.zeros(n * t), np.ones(n * t))
    theta = e.first_guesses(2, 1)[0]

    def seconds():
        start = time.perf_counter()
        e(theta)
        return time.perf_counter() - start

    fast = min(seconds() for _ in range(3))
    e.__dict__["whole"] = False
    assert min(seconds() for _ in range(2)) > 5 * fast


def test_the_spectrum_solves_and_gives_the_determinant():
    rng = np.random.default_rng(3)
    root, u = rng.standard_normal((3, 3)), rng.random((6, 2))
    b, noise = root @ root.T, np.array([0.1, 0.5, 2.0])
    k = np.exp(-np.linalg.norm(u[:, None] - u[None], axis=-1))
    dense = np.kron(b, k) + np.kron(np.diag(noise), np.eye(6))
    spectrum, y = Spectrum.of(b, noise, k), rng.standard_normal((3, 6))
    assert spectrum.log_determinant == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-12)
    assert spectrum.solved(y).ravel() == pytest.approx(np.linalg.solve(dense, y.ravel()), rel=1e-10)


# --- the belief


def textbook(posterior, kernel, data, known, at):
    """Mean (t, n) and covariance (t, n, t, n) from the reported hyperparameters, one entry after the other.

    For a constant mean. Rasmussen and Williams, eqs. 2.25 and 2.26, with the covariance of Bonilla et al., eq. 2.
    """
    h = posterior.hyperparameters
    task, point = known.T.nonzero().T.numpy()
    t, n = len(h), len(at)
    everywhere = np.concatenate([data.u.numpy(), at.numpy()])
    rows = np.concatenate([task, np.repeat(np.arange(t), n)])
    places = np.concatenate([point, len(data.u) + np.tile(np.arange(n), t)])
    terms = h[0]["coregionalisation"]
    scales, b = [c["lengthscales"] for c in terms], [np.array(c["B"]) for c in terms]
    prior = dense_covariance(kernel, scales, b, everywhere, rows, places)
    size = len(task)
    noise = data.variance.T[task, point].numpy() + np.array([x["nugget"] ** 2 for x in h])[task]
    mean = np.array([x["mean"] for x in h])
    gain = np.linalg.solve(prior[:size, :size] + np.diag(noise), prior[:size, size:]).T
    expected = mean[rows[size:]] + gain @ (data.z.T[task, point].numpy() - mean[task])
    covariance = prior[size:, size:] - gain @ prior[:size, size:]
    return expected.reshape(t, n), covariance.reshape(t, n, t, n)


@pytest.mark.parametrize("recipe", [MultiTask(), MultiTask("rbf", rank=1), MultiTask("matern32", latent=2)])
@pytest.mark.parametrize("part", [0.6, 1.1])
def test_the_belief_is_that_of_dense_algebra(recipe, part):
    u, at = points(14), points(6, seed=4)
    known = some_known(14, 3, part)
    rng = np.random.default_rng(1)
    z = functions(u) + 0.05 * torch.from_numpy(rng.standard_normal((14, 3)))
    data = observed(u, z, known, torch.from_numpy(rng.uniform(1e-3, 1e-2, (14, 3))))
    posterior = recipe.fit(data)
    mean, covariance = textbook(posterior, recipe.kernel, data, known, at)
    got_mean, got = posterior.joint(at)
    assert got_mean.numpy() == pytest.approx(mean, rel=1e-8, abs=1e-8)
    own = np.stack([covariance[i, :, i] for i in range(3)])
    assert got.numpy() == pytest.approx(own, rel=1e-7, abs=1e-9)
    view = posterior.view(at)
    scale = posterior.model.scale
    between = torch.einsum("aibj,i,j->iajb", posterior._across(view, view), scale, scale)
    assert between.numpy() == pytest.approx(covariance, rel=1e-7, abs=1e-9)
    assert posterior.noise.numpy() == pytest.approx(
        [
            h["nugget"] ** 2 + float(data.variance[known[:, i], i].mean())
            for i, h in enumerate(posterior.hyperparameters)
        ]
    )


@pytest.mark.parametrize("part", [0.6, 1.1])
def test_conditioning_is_dense_algebra_of_all_tasks(part):
    """Seeing more points later equals having seen them at the fit, the mean's coefficients held."""
    u, new, at = points(14), points(4, seed=6), points(5, seed=4)
    known = some_known(14, 3, part)
    data = observed(u, functions(u), known)
    posterior = MultiTask().fit(data)
    z, variance = functions(new) + 0.2, torch.full((4, 3), 0.01).double()
    after = posterior.condition(new[:1], z[:1], variance[:1]).condition(new[1:], z[1:], variance[1:])
    # What is given as variance is all of it; the algebra below adds the nugget.
    nugget = torch.tensor([h["nugget"] ** 2 for h in posterior.hyperparameters], dtype=torch.float64)
    assert (variance > nugget).all()
    both = observed(
        torch.cat([u, new]),
        torch.cat([data.z, z]),
        torch.cat([known, torch.ones(4, 3, dtype=torch.bool)]),
        torch.cat([data.variance, variance - nugget]),
    )
    mean, covariance = textbook(posterior, "matern52", both, both.known, at)
    got_mean, got = after.joint(at)
    assert got_mean.numpy() == pytest.approx(mean, rel=1e-6, abs=1e-7)
    assert got.numpy() == pytest.approx(np.stack([covariance[i, :, i] for i in range(3)]), rel=1e-5, abs=1e-8)


def test_it_agrees_with_gpytorch():
    """Bonilla's product of a kernel of points and one of tasks, as GPyTorch has it; and so the mean and covariance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gpytorch
    u, at = points(20), points(7, seed=4)
    z = functions(u)
    posterior = MultiTask("rbf", rank=1).fit(observed(u, z))
    h = posterior.hyperparameters
    (term,) = h[0]["coregionalisation"]
    b = torch.tensor(term["B"], dtype=torch.float64)
    kernel = gpytorch.kernels.MultitaskKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2), num_tasks=3, rank=1).double()
    kernel.data_covar_module.lengthscale = torch.tensor([term["lengthscales"]], dtype=torch.float64)
    weights = torch.from_numpy(posterior_weights(b.numpy()))[:, None]
    kernel.task_covar_module.covar_factor.data = weights
    kernel.task_covar_module.var = b.diagonal() - weights[:, 0] ** 2
    with torch.no_grad():
        gram, cross, corner = kernel(u).to_dense(), kernel(at, u).to_dense(), kernel(at).to_dense()
    noise = torch.tensor([x["nugget"] ** 2 for x in h]).double().repeat(20)  # GPyTorch counts tasks first
    shift = torch.tensor([x["mean"] for x in h]).double()
    gain = torch.linalg.solve(gram + torch.diag(noise), cross.T).T
    mean = (gain @ (z - shift).flatten()).reshape(7, 3) + shift
    covariance = (corner - gain @ cross.T).reshape(7, 3, 7, 3)
    got_mean, got = posterior.joint(at)
    assert torch.allclose(got_mean, mean.T, rtol=1e-6, atol=1e-6)
    for i in range(3):
        assert torch.allclose(got[i], covariance[:, i, :, i], rtol=1e-4, atol=1e-7)


def posterior_weights(b):
    """W of B = W W^T + diag(kappa) with one column, from what is off the diagonal of three tasks."""
    first = math.sqrt(b[0, 1] * b[0, 2] / b[1, 2])
    return np.array([first, b[0, 1] / first, b[0, 2] / first])


def test_another_task_tells_what_is_missing():
    """A task known at six points, and one like it at thirty: far better than the six alone; and it knows that."""
    u, at = points(30), points(200, seed=4)
    known = torch.ones(30, 2, dtype=torch.bool)
    known[6:, 1] = False
    z = functions(u)[:, :2]
    z[:, 1] = -3 * z[:, 0] + 0.3 * u[:, 0]
    truth = -3 * functions(at)[:, 0] + 0.3 * at[:, 0]
    mean, variance = MultiTask().fit(observed(u, z, known)).marginal(at)
    alone, wide = GaussianProcess().fit(Observations.exact(u[:6], z[:6, 1])).marginal(at)
    assert (mean[1] - truth).square().mean() < 0.05 * (alone[0] - truth).square().mean()
    assert variance[1].mean() < 0.05 * wide[0].mean()


def test_what_is_missing_does_not_enter():
    u, known = points(16), some_known(16, 3)
    z, at = functions(u), points(9, seed=4)
    fillers = torch.full_like(z, 77.0)
    plain = observed(u, z, known)
    filled = Observations(u, z.where(known, fillers), (~known) * 5.0 + 0 * z, (~known) * 1.0 + 0 * z, (), known)
    for one, other in zip(MultiTask().fit(plain).marginal(at), MultiTask().fit(filled).marginal(at)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("part", [0.7, 1.1])
def test_the_order_of_the_tasks_is_irrelevant(part):
    u, known, at = points(20), some_known(20, 3, part), points(9, seed=4)
    z, order = functions(u), [2, 0, 1]
    recipe = MultiTask(restarts=1)
    mean, variance = recipe.fit(observed(u, z, known)).marginal(at)
    again, spread = recipe.fit(observed(u, z[:, order], known[:, order])).marginal(at)
    size = z.std(0)[:, None]
    assert torch.allclose(again / size[order], mean[order] / size[order], atol=2e-3)
    assert torch.allclose(spread.sqrt() / size[order], variance[order].sqrt() / size[order], rtol=0.05, atol=1e-3)


def test_it_recovers_the_correlation_of_a_draw():
    rng = np.random.default_rng(4)
    u = points(120)
    b = np.array([[1.0, 0.8, -0.5], [0.8, 1.5, 0.0], [-0.5, 0.0, 0.7]])
    k = dense_covariance("matern52", [[0.25, 0.5]], [np.eye(1)], u.numpy(), np.zeros(120, int), np.arange(120))
    f = np.linalg.cholesky(b) @ rng.standard_normal((3, 120)) @ np.linalg.cholesky(k + 1e-10 * np.eye(120)).T
    z = torch.from_numpy(f.T + 0.01 * rng.standard_normal((120, 3)))
    h = MultiTask().fit(observed(u, z)).hyperparameters
    sd = np.sqrt(np.diag(b))
    assert np.array([x["correlation"] for x in h]) == pytest.approx(b / np.outer(sd, sd), abs=0.12)
    assert h[0]["lengthscales"] == pytest.approx([0.25, 0.5], rel=0.3)
    found = np.array(h[0]["coregionalisation"][0]["B"])  # its size trades with the length scales (Zhang 2004)
    assert found / found.trace() == pytest.approx(b / b.trace(), abs=0.08)
    assert [x["nugget"] for x in h] == pytest.approx([0.01] * 3, abs=0.01)


def test_two_correlations_see_what_one_cannot():
    """A smooth function that both tasks share, and a rough one that only the second has."""
    u, at = points(60, d=1), points(200, d=1, seed=4)

    def f(x):
        smooth = torch.sin(4 * x[:, 0])
        return torch.stack([smooth, smooth + 0.5 * torch.sin(50 * x[:, 0])], 1)

    known = torch.ones(60, 2, dtype=torch.bool)
    known[5:, 0] = False
    data = observed(u, f(u), known)
    error = [
        float((MultiTask("rbf", latent=q).fit(data).marginal(at)[0][0] - f(at)[:, 0]).square().mean()) for q in (1, 2)
    ]
    assert error[1] < 0.3 * error[0]


def test_the_linear_mean_goes_on_beyond_the_data():
    u = 0.4 * points(20)
    z = torch.stack([3 * u[:, 0] - u[:, 1], 5 - 2 * u[:, 0]], 1) + 0.01 * functions(u)[:, :2]
    far = torch.tensor([[0.9, 0.1], [0.2, 0.9]], dtype=torch.float64)
    mean, _ = MultiTask(kernel="rbf", mean="linear").fit(observed(u, z)).marginal(far)
    truth = torch.stack([3 * far[:, 0] - far[:, 1], 5 - 2 * far[:, 0]])
    assert (mean - truth).abs().max() < 0.3
    h = MultiTask(kernel="rbf", mean="linear").fit(observed(u, z)).hyperparameters
    assert h[0]["slopes"] == pytest.approx([3, -1], abs=0.3)


# --- bounds


def test_bounds_of_one_task_and_values_of_another():
    """The limit of one task is only known to lie above 1; what the other does there says how far."""
    u, at = points(40), points(300, seed=4)
    f, g = (torch.stack([4 * (x[:, 0] + x[:, 1] - 1), 8 * (x[:, 0] + x[:, 1] - 1) + 3], 1) for x in (u, at))
    side = (f > torch.tensor([1.0, 99.0])).double()
    z = torch.where(side > 0, torch.tensor([1.0, 99.0]).double(), f)
    recipe = MultiTask(restarts=1)
    mean, variance = recipe.fit(observed(u, z, side=side)).marginal(at)
    beyond = g[:, 0] > 1.5
    assert (mean[0, beyond] - g[beyond, 0]).abs().max() < 0.4
    assert (mean[0] - g[:, 0]).square().mean().sqrt() < 0.1
    assert ((mean[0] - g[:, 0]).square() / variance[0]).mean() < 9
    alone = GaussianProcess(kernel="matern52").fit(observed(u, z[:, :1], side=side[:, :1])).marginal(at)[0]
    assert (mean[0] - g[:, 0]).square().mean() < 0.2 * (alone[0] - g[:, 0]).square().mean()


def test_bounds_and_noisy_values_are_those_of_dense_algebra():
    """Stand-ins for the bounds from the dense covariance under the reported hyperparameters; then the textbook."""
    u, at = points(40), points(15, seed=4)
    rng = np.random.default_rng(2)
    z = functions(u)[:, :2] + 0.3 * torch.from_numpy(rng.standard_normal((40, 2)))
    side = torch.zeros_like(z)
    side[:, 0] = (z[:, 0] > 1.0).double()
    z[:, 0].clamp_max_(1.0)
    posterior = MultiTask(rank=1, restarts=1).fit(observed(u, z, side=side))
    h = posterior.hyperparameters
    (term,) = h[0]["coregionalisation"]
    task, point = np.repeat([0, 1], 55), np.tile(np.arange(55), 2)
    seen = point < 40
    prior = dense_covariance(
        "matern52", [term["lengthscales"]], [np.array(term["B"])], torch.cat([u, at]).numpy(), task, point
    )
    mean, nugget = np.array([x["mean"] for x in h])[task], np.array([x["nugget"] ** 2 for x in h])[task]
    gram = torch.from_numpy(prior[np.ix_(seen, seen)])
    expected, noise = torch.from_numpy(mean[seen]), torch.from_numpy(nugget[seen])
    values, variances = censored_sites(gram, expected, z.T.flatten(), noise, side.T.flatten())
    gain = np.linalg.solve(gram.numpy() + np.diag(variances.numpy()), prior[np.ix_(seen, ~seen)]).T
    got_mean, got = posterior.marginal(at)
    mean = mean[~seen] + gain @ (values - expected).numpy()
    variance = (prior[np.ix_(~seen, ~seen)] - gain @ prior[np.ix_(seen, ~seen)]).diagonal()
    assert nugget.min() > 0.01  # it matters how often it counts
    # The coefficients of the mean are those of the sites before the last.
    assert got_mean.flatten().numpy() == pytest.approx(mean, abs=0.01)
    assert got.flatten().numpy() == pytest.approx(variance, rel=0.02)


def test_only_bounds():
    u = points(8)
    z = torch.stack([torch.full((8,), 2.0).double(), u[:, 0]], 1)
    side = torch.stack([torch.ones(8), torch.zeros(8)], 1).double()
    mean, variance = MultiTask().fit(observed(u, z, side=side)).marginal(u)
    assert (mean[0] > 1.5).all()
    assert torch.isfinite(variance).all()


# --- fidelities


def cheaper_functions(u):
    """Like `functions`, in other units and with a bias."""
    return 0.5 * functions(u) + torch.stack([0.2 * u[:, 0], 0.1 * u[:, 1] ** 2, 3 - u[:, 1]], 1)


def two_levels(dear=7, cheap=15, **more):
    """Of both some values are missing, and all are noisy."""
    parts = []
    for seed, (n, f) in enumerate(((dear, functions), (cheap, cheaper_functions))):
        u, rng = points(n, seed=5 + seed), np.random.default_rng(seed)
        z = f(u) + 0.05 * torch.from_numpy(rng.standard_normal((n, 3)))
        variance = torch.from_numpy(rng.uniform(1e-3, 1e-2, (n, 3)))
        parts.append(observed(u, z, some_known(n, 3, 0.8, seed=seed), variance))
    return replace(parts[0], cheaper=parts[1], **more)


def at_levels(u, *levels):
    return torch.cat([u, torch.tensor(levels, dtype=torch.float64)[:, None]], 1)


MIXED = at_levels(points(6, seed=4), 0, 1, 1, 0, 1, 0)


def stacked_textbook(posterior, kernel, values, at):
    """Like `textbook`, of outputs (level, task): values are (point, level, task, z, variance without nugget)."""
    model, t = posterior.model, 3
    size, n, d = len(values), len(at), 2
    everywhere = np.concatenate([np.array([v[0].numpy() for v in values]), at[:, :d].numpy()])
    output = np.array([v[1] * t + v[2] for v in values] + [int(x[d]) * t + i for i in range(t) for x in at])
    places = np.concatenate([np.arange(size), size + np.tile(np.arange(n), t)])
    terms = posterior.hyperparameters[0]["coregionalisation"]
    scales, b = [c["lengthscales"] for c in terms], [np.array(c["B"]) for c in terms]
    assert all(each.shape == (2 * t, 2 * t) for each in b)
    prior = dense_covariance(kernel, scales, b, everywhere, output, places)
    nugget = (model.scale.square() * model.nugget).numpy()
    noise = np.array([v[4] for v in values]) + nugget[output[:size]]
    mean = (model.shift + model.scale * model.beta[:, 0]).numpy()[output]
    gain = np.linalg.solve(prior[:size, :size] + np.diag(noise), prior[:size, size:]).T
    expected = mean[size:] + gain @ (np.array([v[3] for v in values]) - mean[:size])
    covariance = prior[size:, size:] - gain @ prior[:size, size:]
    return expected.reshape(t, n), covariance.reshape(t, n, t, n)


def entries(data):
    return [
        (part.u[p], level, i, float(part.z[p, i]), float(part.variance[p, i]))
        for level, part in enumerate((data, data.cheaper))
        for i, p in part.known.T.nonzero().tolist()
    ]


@pytest.mark.parametrize("recipe", [MultiTask(), MultiTask("rbf", rank=1), MultiTask("matern32", latent=2)])
def test_the_belief_about_two_fidelities_is_that_of_dense_algebra(recipe):
    data = two_levels()
    posterior = recipe.fit(data)
    mean, covariance = stacked_textbook(posterior, recipe.kernel, entries(data), MIXED)
    own = np.stack([covariance[i, :, i] for i in range(3)])
    got_mean, got = posterior.joint(MIXED)
    assert got_mean.numpy() == pytest.approx(mean, rel=1e-8, abs=1e-8)
    assert got.numpy() == pytest.approx(own, rel=1e-7, abs=1e-9)
    assert posterior.marginal(MIXED)[1].numpy() == pytest.approx(own.diagonal(axis1=1, axis2=2), rel=1e-7, abs=1e-9)
    # One level at a time, and none at all, is the same.
    dear, cheap = MIXED[:, 2] == 0, MIXED[:, 2] == 1
    assert posterior.cross(MIXED[dear], MIXED[cheap]).numpy() == pytest.approx(own[:, dear][:, :, cheap], abs=1e-9)
    assert torch.allclose(posterior.joint(MIXED[dear, :2])[1], got[:, dear][:, :, dear], rtol=1e-9)
    # Noise is that of each point's level.
    noise = posterior.view(MIXED).noise
    for level, part in enumerate((data, data.cheaper)):
        typical = torch.stack([v[k].mean() for v, k in zip(part.variance.T, part.known.T)])
        outputs = slice(3 * level, 3 * level + 3)
        nugget = (posterior.model.scale.square() * posterior.model.nugget)[outputs]
        assert torch.allclose(noise[:, MIXED[:, 2] == level], (typical + nugget)[:, None])
    assert torch.equal(posterior.noise, noise[:, 0])


def test_conditioning_across_levels_is_dense_algebra_of_all_tasks():
    data = two_levels()
    posterior = MultiTask().fit(data)
    new = at_levels(points(4, seed=6), 0, 1, 1, 0)
    rng = np.random.default_rng(8)
    z, variance = torch.from_numpy(rng.standard_normal((4, 3))), torch.full((4, 3), 0.5).double()
    after = posterior.condition(new[3:, :2], z[3:], variance[3:])  # a point without its level
    after = after.condition(new[:3], z[:3], variance[:3])
    nugget = posterior.model.scale.square() * posterior.model.nugget  # the variance that is given includes it
    later = [
        (x[:2], int(x[2]), i, float(z[k, i]), 0.5 - float(nugget[3 * int(x[2]) + i]))
        for k, x in enumerate(new)
        for i in range(3)
    ]
    mean, covariance = stacked_textbook(posterior, "matern52", entries(data) + later, MIXED)
    got_mean, got = after.joint(MIXED)
    assert got_mean.numpy() == pytest.approx(mean, rel=1e-6, abs=1e-7)
    assert got.numpy() == pytest.approx(np.stack([covariance[i, :, i] for i in range(3)]), rel=1e-5, abs=1e-8)
    # Unless told, the noise is that of each level, and the mean stays.
    expected = posterior.condition(new, variance=posterior.view(new).noise.T)
    for one, other in zip(posterior.condition(new).marginal(MIXED), expected.marginal(MIXED)):
        assert torch.allclose(one, other, rtol=1e-10)
    assert torch.allclose(posterior.condition(new).marginal(MIXED)[0], posterior.marginal(MIXED)[0], atol=1e-9)


def test_few_dear_values_are_enough_beside_many_cheap_ones():
    """And the cheap ones of one task help another of the dear fidelity; each level has its own unit."""
    a, b, at = points(50), points(6, seed=7), points(300, seed=9)
    known = torch.ones(6, 3, dtype=torch.bool)
    known[4:, 1] = False
    dear = observed(b, functions(b), known)
    below = observed(a, 1000 + 50 * cheaper_functions(a))
    both = MultiTask().fit(replace(dear, cheaper=below))
    alone = MultiTask().fit(dear)
    truth = functions(at).T
    error, before = ((p.marginal(at)[0] - truth).square().mean(1).sqrt() for p in (both, alone))
    assert (error < 0.3 * before).all()
    cheap = both.marginal(at_levels(at, *[1.0] * 300))[0]
    assert (cheap - (1000 + 50 * cheaper_functions(at).T)).abs().max() < 1.0
    for h in both.hyperparameters:
        first, second = h["fidelities"]
        assert first == pytest.approx(1.0)
        assert 0.8 < second < 1.0
        assert len(h["correlation"]) == 3


def test_three_fidelities():
    data = two_levels()
    middle = replace(data.cheaper, cheaper=observed(points(20, seed=2), -functions(points(20, seed=2))))
    posterior = MultiTask(rank=1).fit(replace(data, cheaper=middle))  # three functions that levels share all the same
    at = points(50, seed=9)
    mean = posterior.marginal(at_levels(at, *[2.0] * 50))[0]
    assert (mean.T + functions(at)).square().mean() < 0.05
    assert all(h["fidelities"][2] < -0.5 for h in posterior.hyperparameters)
    for level in (3.0, 0.5, -1.0):
        with pytest.raises(ShapeError, match=f"cheaper fidelity for levels above 0, got {level:g} with 3 fidelities"):
            posterior.view(at_levels(at[:1], level))
    with pytest.raises(ShapeError, match="got 1 with 1 fidelities"):
        MultiTask().fit(observed(at, functions(at))).view(at_levels(at[:1], 1))


def test_bounds_at_a_cheaper_fidelity():
    """Beyond 1 the cheap values are only known to lie above: the dear ones beyond are not pulled down to it."""
    a, b, at = points(30), points(8, seed=7), points(200, seed=4)

    def f(u):
        return 4 * (u[:, :1] + u[:, 1:] - 1)

    side = (f(a) > 1.0).double()
    below = observed(a, f(a).clamp_max(1.0), side=side)
    mean, _ = MultiTask(restarts=1).fit(replace(observed(b, f(b) + 0.1), cheaper=below)).marginal(at)
    assert (mean[0] - f(at)[:, 0] - 0.1).square().mean().sqrt() < 0.1
    assert (mean[0, f(at)[:, 0] > 2.0] > 1.5).all()


def test_a_task_that_the_cheaper_fidelity_does_not_give():
    """Looking at it there tells nothing, and nothing is claimed about it."""
    data = two_levels()
    known = data.cheaper.known.clone()
    known[:, 1] = False
    below = replace(data.cheaper, z=data.cheaper.z.where(known, 0.0), known=known)
    posterior = MultiTask(latent=2).fit(replace(data, cheaper=below))
    there = at_levels(points(5, seed=9), *[1.0] * 5)
    _, variance = posterior.marginal(there)
    seen = data.z[data.known[:, 1], 1]
    assert torch.allclose(variance[1], seen.var(correction=0).expand(5))
    assert posterior.cross(there, there[:, :2])[1].abs().max() == 0
    assert posterior.cross(there, there[:, :2])[0].abs().max() > 0
    assert torch.isfinite(posterior.marginal(there[:, :2])[0]).all()


def test_what_fidelities_cannot_be():
    data = two_levels()
    with pytest.raises(FitError, match=r"all parameters, got \[None, \(1,\)\].* use the surrogate 'GaussianProcess'"):
        MultiTask().fit(replace(data, cheaper=replace(data.cheaper, columns=(1,))))
    u = points(2000)
    with pytest.raises(FitError, match="can have 6000 values of several fidelities, got 6[0-9]{3}"):
        MultiTask().fit(observed(u, functions(u), cheaper=data.cheaper))


@pytest.mark.parametrize(("tasks", "levels"), [(1, 1), (3, 1), (3, 2)])
def test_of_thousands_of_cheap_values_the_telling_ones_are_used(tasks, levels):
    u, b = points(2500), points(5, seed=3)
    thresholds = tuple(torch.tensor([x]).double() for x in (0.5, -2.0, 3.0))[:tasks]
    below = None
    for _ in range(levels):
        below = observed(u, functions(u)[:, :tasks], cheaper=below)
    count, stacked, known = _stacked(observed(b, functions(b)[:, :tasks], levels=thresholds, cheaper=below))
    assert count == levels + 1
    assert stacked.levels == thresholds * count
    assert known[:5, :tasks].all()  # all dear ones
    assert known.sum() - 5 * tasks <= CHEAPER
    assert (known.sum(0)[tasks:] > 0.6 * min(CHEAP, CHEAPER // (tasks * levels))).all()
    assert (known.sum(0)[tasks:] <= CHEAP).all()
    near = (functions(u)[:, 0] - 0.5).abs().sort().values[20]
    assert ((stacked.z[known[:, tasks], tasks] - 0.5).abs() <= near).sum() >= 20


def test_a_campaign_of_two_fidelities_and_two_tasks():
    space = ParameterSpace((Parameter("x", 0, 1), Parameter("y", 0, 1)))
    problem = Problem(
        space, (Task("f", 0.5), Task("g", -2.5)), fidelities=(Fidelity("fast", 1.0), Fidelity("full", 20.0))
    )
    strategy = Strategy(surrogate=MultiTask(restarts=1), design_size=8, seed=1)
    campaign = Campaign.create("memory://", "two", problem, strategy)
    while sum(t.fidelity == "full" for t in campaign.trials) < 6:
        for t in campaign.ask(2):
            u = torch.tensor([list(t.x.values())], dtype=torch.float64)
            z = (functions if t.fidelity == "full" else cheaper_functions)(u)[0]
            campaign.tell(t.number, {"f": float(z[0]), "g": None if t.number == 3 else float(z[1])})
    belief, u = campaign.belief(), points(2000, seed=9)
    assert belief.levels == (0, 1)
    assert {t.fidelity for t in campaign.trials if t.criterion != "design"} == {"fast", "full"}
    truth = torch.stack([functions(u)[:, 0] > 0.5, functions(u)[:, 1] > -2.5])
    edges = torch.stack([t.levels for t in belief.problem.tasks])
    assert ((belief.posterior.marginal(u)[0] > edges) != truth).double().mean() < 0.03


# --- many values


def test_telling_points_are_those_of_every_task():
    u = points(1000)
    y = functions(u).numpy()
    known = some_known(1000, 3, 0.8).numpy()
    levels = [np.array([0.5]), np.array([-2.0]), np.array([3.0])]
    chosen = _telling(y, known, levels, 150)
    assert 100 < len(chosen) <= 150
    assert (np.diff(chosen) > 0).all()
    for i, level in enumerate(levels):
        near = np.sort(np.abs(y[known[:, i], i] - level))[10]
        assert (np.abs(y[chosen, i] - level)[known[chosen, i]] <= near).sum() >= 10
    assert _telling(y, known, levels, 1000).tolist() == list(range(1000))


def test_part_of_the_evidence_is_that_of_fewer_points():
    e = evidence("matern52", *CASES["missing"])
    points_ = np.array([1, 4, 5, 9])
    part = _some(e, points_)
    rows = np.isin(e.point, points_)
    assert (part.u == e.u[points_]).all()
    assert (part.u[part.point] == e.u[e.point[rows]]).all()
    for name in ("y", "task", "noise", "nuggets"):
        assert (getattr(part, name) == getattr(e, name)[rows]).all()


def test_a_thousand_values_take_seconds():
    u = points(400)
    known = some_known(400, 3, 0.9)
    z = functions(u)
    start = time.perf_counter()
    mean, _ = MultiTask().fit(observed(u, z, known, levels=tuple(z.median(0).values[:, None]))).marginal(u)
    assert time.perf_counter() - start < 60  # some seconds on an idle machine
    assert (mean.T - z).abs().max() < 0.1
    assert SOME < 400 * 3


# --- as a recipe


def test_a_campaign_with_it():
    """Asked and told, from JSON; the pending points of both tasks count."""
    settings = {"surrogate": {"type": "MultiTask", "kernel": "rbf", "mean": "linear", "restarts": 1}}
    strategy = Strategy.from_json(settings)
    assert strategy.surrogate == MultiTask(kernel="rbf", mean="linear", restarts=1)
    assert Strategy.from_json(strategy.to_json()) == strategy
    problem = Problem(ParameterSpace((Parameter("x", 0, 1), Parameter("y", 0, 1))), (Task("f", 0.5), Task("g", 0.0)))
    campaign = Campaign.create("memory://", "c", problem, strategy)
    for _ in range(14):
        for trial in campaign.ask(1):
            x, y = trial.x["x"], trial.x["y"]
            campaign.tell(trial.number, {"f": x * x + y, "g": 2 * x * x + 2 * y - 1.4})
    first, second = campaign.ask(2)
    assert first.x != second.x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "additive"}, "kernel must be matern52, matern32, rbf .* got kernel='additive'"),
        ({"mean": "zero"}, "mean constant or linear, got .*mean='zero'"),
        ({"rank": 0}, "needs rank >= 1, .* got rank=0"),
        ({"latent": 0}, "got .*latent=0"),
        ({"restarts": 5}, "1 <= restarts <= 4, got .*restarts=5"),
        ({"max_iter": 0}, "got .*max_iter=0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InvalidStrategy, match=message):
        MultiTask(**settings)


def test_it_is_a_recipe_by_name():
    recipe = MultiTask(kernel="rbf", rank=3, latent=2)
    data = recipe.to_json()
    assert RECIPES[data.pop("type")](**data) == recipe


def test_errors():
    u = points(5)
    known = torch.ones(5, 3, dtype=torch.bool)
    known[:, 1] = False
    with pytest.raises(FitError, match=r"each task must have a value, got \[5, 0, 5\] per task"):
        MultiTask().fit(observed(u, functions(u), known))
    with pytest.raises(FitError, match="must differ by more than 1e-140, got a deviation of "):
        MultiTask().fit(observed(u, 1e-200 * functions(u)))
    z = functions(u)
    with pytest.raises(ShapeError, match=r"known must be true or false for each of \(5, 3\) values, got \(5, 2\)"):
        Observations(u, z, 0 * z, 0 * z, (), known[:, :2])
    with pytest.raises(ShapeError, match="got .* of torch.float64"):
        Observations(u, z, 0 * z, 0 * z, (), known.double())


# --- a table of the experiment


def test_expected_limits_tell_a_missing_observed_one():
    """At every third point of the table; the whole of it is the benchmark."""
    file = missing.table()
    if file is None:
        pytest.skip("needs mono_sbb_limits.csv in EXCURSION_DATA")
    u, z = missing.limits(file)
    assert z.shape == (42, 6)
    rows = range(0, 42, 3)
    alone = missing.left_out(GaussianProcess(), u, z[:, :1], rows)
    together = missing.left_out(MultiTask(restarts=1), u, z, rows)
    assert together.points == 14
    assert together.rms < 0.75 * alone.rms
