import json
import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excursion.errors import FitError, InvalidStrategy, ShapeError
from excursion.surrogate import KernelSearch, Observations, search_kernel
from excursion.surrogate.composition import (
    FAMILIES,
    Atom,
    Product,
    Sum,
    atoms,
    canonical,
    evaluate,
    expand,
    expression,
    free_parameters,
    in_words,
    normalise,
    order,
    parameters,
    slopes,
    with_parameters,
)
from excursion.surrogate.search import ComposedProcess, _Axis, _Fit, _neighbours, _Task, negative_log_likelihood
from excursion.testing import SurrogateContract

FAST = {"depth": 3, "restarts": 2, "beam": 3, "max_iter": 80}


@pytest.fixture
def surrogate():
    return KernelSearch(families=("SE", "LIN"), depth=3, restarts=1, max_iter=100)


class TestKernelSearch(SurrogateContract):
    pass


SE, RQ = Atom("SE", 0, (0.3, -1.0)), Atom("RQ", 0, (-0.2, -0.5, 0.4))
LIN, PER = Atom("LIN", 0, (0.1, 0.3)), Atom("PER", 0, (0.2, 0.1, -1.5))
PAPER = Product((SE, Sum((LIN, Product((LIN, Sum((PER, RQ))))))))


def line(n, seed=3):
    return np.sort(np.random.default_rng(seed).uniform(size=n))[:, None]


def gram(kernel, u):
    return np.broadcast_to(evaluate(kernel, list(u.T[:, :, None]), list(u.T[:, None, :])), (len(u), len(u)))


# -- kernels


def test_simple_kernels_equal_gpytorch():
    with warnings.catch_warnings():  # linear_operator uses torch.jit.script, which torch 2.13 deprecates
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        import gpytorch

    u = line(12)
    rbf, rq, periodic = (
        gpytorch.kernels.RBFKernel(),
        gpytorch.kernels.RQKernel(),
        gpytorch.kernels.PeriodicKernel(),
    )
    rbf.lengthscale, rq.lengthscale, rq.alpha = math.exp(-1.0), math.exp(-0.5), math.exp(0.4)
    periodic.lengthscale, periodic.period_length = math.exp(0.1) ** 2, math.exp(-1.5)
    for atom, kernel in ((SE, rbf), (RQ, rq), (PER, periodic)):
        expect = kernel.double()(torch.from_numpy(u)).to_dense().detach().numpy()
        assert np.allclose(gram(atom, u), math.exp(atom.theta[0]) * expect, rtol=1e-6, atol=1e-8)
    assert np.allclose(gram(LIN, u), math.exp(0.1) * (u - 0.3) * (u - 0.3).T, rtol=1e-12)


@st.composite
def kernels(draw, depth=2):
    if depth == 0 or draw(st.booleans()):
        family = draw(st.sampled_from(FAMILIES))
        size = {"SE": 2, "LIN": 2}.get(family, 3)
        theta = draw(st.lists(st.floats(-1.5, 1.5), min_size=size, max_size=size))
        return Atom(family, draw(st.integers(0, 1)), tuple(theta))
    parts = draw(st.lists(kernels(depth=depth - 1), min_size=2, max_size=3))
    return draw(st.sampled_from([Sum, Product]))(tuple(parts))


U2 = np.random.default_rng(1).uniform(size=(7, 2))


@settings(max_examples=60, deadline=None)
@given(kernels())
def test_rewriting_leaves_the_kernel(kernel):
    expect = gram(kernel, U2)
    close = {"rtol": 1e-9, "atol": 1e-12 * np.abs(expect).max()}
    assert np.allclose(gram(canonical(kernel), U2), expect, **close)
    assert np.allclose(gram(normalise(kernel), U2), expect, **close)
    assert np.allclose(sum(gram(Product(term), U2) for term in expand(kernel)), expect, **close)
    assert canonical(canonical(kernel)) == canonical(kernel)
    assert with_parameters(kernel, parameters(kernel)) == kernel


@settings(max_examples=60, deadline=None)
@given(kernels())
def test_surplus_scales_are_pinned_and_only_they(kernel):
    """Of all scales, exactly the surplus ones are 1, and the others change the kernel independently."""
    kernel = normalise(canonical(kernel))
    free = np.array(free_parameters(kernel))
    assert (parameters(kernel)[~free] == 0).all()
    products = [k for k in subtrees(kernel) if isinstance(k, Product)]
    assert (~free).sum() == sum(len(p.parts) - 1 for p in products)


def subtrees(kernel):
    return [kernel, *(k for part in getattr(kernel, "parts", ()) for k in subtrees(part))]


@settings(max_examples=40, deadline=None)
@given(kernels())
def test_slopes_equal_finite_differences(kernel):
    a, b, theta = list(U2.T), list(U2[::-1].T), parameters(kernel)
    value, partials = slopes(kernel, a, b)
    assert np.allclose(value, evaluate(kernel, a, b), rtol=1e-12)
    for i, partial in enumerate(partials):
        step = 1e-5 * np.eye(len(theta))[i]
        up, down = (evaluate(with_parameters(kernel, theta + s * step), a, b) for s in (1, -1))
        assert np.allclose(partial, (up - down) / 2e-5, rtol=1e-5, atol=1e-6 * (1 + np.abs(value).max()))


def test_canonical_form():
    se = Atom("SE", 0, (0.0, math.log(0.3)))
    other = Atom("SE", 0, (0.5, math.log(0.4)))
    merged = canonical(Product((se, other)))
    assert merged.family == "SE"
    assert merged.theta == pytest.approx((0.5, math.log(0.24)))  # 1/l^2 = 1/.09 + 1/.16
    assert canonical(Product((se, Atom("SE", 1, (0.0, 0.0))))) != se
    assert len(canonical(Product((LIN, LIN))).parts) == 2
    assert canonical(Sum((PER, Sum((SE, LIN))))) == Sum((SE, LIN, PER))
    assert canonical(Sum((SE,))) == SE
    assert order(canonical(Sum((PER, SE)))) == order(canonical(Sum((SE, PER))))
    assert order(Sum((PER, SE))) != order(Product((PER, SE)))
    new = Atom("SE", 0)
    assert canonical(Product((new, se))) == canonical(Product((se, new))) == se


def test_neighbours_are_the_moves_of_the_paper():
    simple = [Atom(family, 0) for family in FAMILIES]
    kernel = Product((SE, Sum((LIN, PER))))
    found = {expression(canonical(k)) for k in _neighbours(kernel, simple)}
    assert {"RQ + SE × (LIN + PER)", "SE × RQ × (LIN + PER)"} <= found  # the whole
    assert {"(SE + RQ) × (LIN + PER)", "RQ × (LIN + PER)"} <= found  # the first factor
    assert {"SE × (RQ + LIN + PER)", "SE × (LIN + LIN × PER)", "SE × (LIN + LIN)"} <= found  # inside the second
    assert {"SE × LIN", "SE × PER", "LIN + PER"} <= found  # without a part
    assert len(found) < 45


# -- words


@pytest.mark.parametrize(
    ("kernel", "names", "formula", "words"),
    [
        (SE, ("x",), "SE", "a smooth trend of x"),
        (RQ, ("x",), "RQ", "a trend on many scales of x"),
        (Product((LIN, LIN)), ("x",), "LIN × LIN", "a quadratic function of x"),
        (Product((LIN,) * 5), ("x",), "LIN × LIN × LIN × LIN × LIN", "a polynomial of degree 5 of x"),
        (
            Sum((Product((SE, PER)), LIN)),
            ("t",),
            "SE × PER + LIN",
            "a smooth trend times a periodic function of t plus a linear function of t",
        ),
        (
            Product((Atom("LIN", 0, (0.0, 0.0)), Sum((Atom("SE", 1, (0.0, 0.0)), PER)))),
            ("a", "b"),
            "LIN(a) × (SE(b) + PER(a))",
            "a linear function of a times a smooth trend of b plus a linear function times a periodic function of a",
        ),
        (Product((SE, Sum((SE, PER)))), ("x",), "SE × (SE + PER)", "a smooth trend of x plus a smooth trend times a "
         "periodic function of x"),
    ],
)  # fmt: skip
def test_formula_and_words(kernel, names, formula, words):
    assert expression(kernel, names) == formula
    assert in_words(kernel, names) == words


# -- likelihood


def test_likelihood_is_the_multivariate_normal():
    u, noise = line(15), np.linspace(0.01, 0.2, 15)
    y = np.sin(9 * u[:, 0])
    value, _ = negative_log_likelihood(PAPER, -3.0, _Task.of(u, y, noise))
    covariance = gram(PAPER, u) + np.diag(noise + math.exp(-3))
    assert value == pytest.approx(-scipy.stats.multivariate_normal(np.zeros(15), covariance).logpdf(y), rel=1e-10)


def test_gradient_of_the_likelihood():
    u = line(15)
    task = _Task.of(u, np.sin(9 * u[:, 0]), np.full(15, 0.01))
    theta = np.append(parameters(PAPER), -2.0)

    def value(t):
        return negative_log_likelihood(with_parameters(PAPER, t[:-1]), t[-1], task)[0]

    _, gradient = negative_log_likelihood(PAPER, -2.0, task)
    assert np.allclose(gradient, scipy.optimize.approx_fprime(theta, value, 1e-7), rtol=1e-4, atol=1e-4)


def test_a_singular_covariance_is_an_error():
    task = _Task.of(np.array([[0.0], [0.5], [1.0]]), np.ones(3), np.zeros(3))
    with pytest.raises(FitError, match="must be positive definite, got mean diagonal nan"):
        negative_log_likelihood(Atom("SE", 0, (math.nan, 0.0)), -2.0, task)


def test_bic_counts_the_parameters():
    """SE × (LIN + LIN × (PER + RQ)): 2 + 2 + 2 + 3 + 3, less one scale for each of two products, plus the noise."""
    fit = _Fit(normalise(canonical(PAPER)), 0.0, 12.5)
    assert fit.parameters == 11
    assert fit.bic(144) == pytest.approx(25.0 + 11 * math.log(144))
    assert _Fit(SE, 0.0, 1.0).parameters == 3


# -- the search


def series(n=60, seed=5, noise=0.05):
    u = line(n, seed)
    return torch.from_numpy(u), torch.from_numpy(noise * np.random.default_rng(seed).normal(size=n))


def test_periods_come_from_the_spectrum():
    u = line(80)[:, 0]
    y = np.sin(2 * math.pi * u / 0.13) + 0.5 * np.sin(2 * math.pi * u / 0.31) + 5 * u**2
    first, second = _Axis.of(u, y).periods[:2]
    assert first == pytest.approx(0.13, rel=0.03)
    assert second == pytest.approx(0.31, rel=0.1)  # sits on the trend and between few periods
    assert _Axis.of(0.5 + u / 10, y).periods[0] == pytest.approx(first / 10)
    assert _Axis.of(np.array([0.0, 0.5, 1.0]), np.ones(3)).periods == ()


@pytest.fixture(scope="module")
def wave():
    u, e = series()
    return u, 40 * (5 * u[:, 0] + torch.exp(torch.sin(2 * math.pi * u[:, 0] / 0.17)) + e) + 7


@pytest.fixture(scope="module")
def found(wave):
    return search_kernel(Observations.exact(*wave), names=("time",), **FAST)


def test_a_line_plus_a_period(found):
    assert found.expression == "LIN + PER"
    assert found.name == "a linear function of time plus a periodic function of time"
    (h,) = found.hyperparameters
    assert math.exp(h["atoms"][1]["theta"][2]) == pytest.approx(0.17, rel=0.01)
    assert h["nugget"] == pytest.approx(40 * 0.05, rel=0.25)
    assert h["kernel"] == found.expression


def test_a_period_that_changes_slowly():
    u, e = series(100)
    kernel = Product((Atom("SE", 0, (0.0, math.log(0.12))), Atom("PER", 0, (0.0, 0.0, math.log(0.06)))))
    root = np.linalg.cholesky(gram(kernel, u.numpy()) + 1e-9 * np.eye(100))
    z = torch.from_numpy(root @ np.random.default_rng(2).normal(size=100)) + e
    got = search_kernel(Observations.exact(u, z), depth=2, restarts=6, families=("SE", "LIN", "PER"))
    assert got.expression == "SE × PER"
    assert math.exp(got.hyperparameters[0]["atoms"][1]["theta"][2]) == pytest.approx(0.06, rel=0.02)


def test_two_parameters():
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(40, dtype=torch.float64)
    e = torch.from_numpy(0.02 * np.random.default_rng(1).normal(size=40))
    got = search_kernel(
        Observations.exact(u, torch.exp(-30 * (u[:, 0] - 0.4) ** 2) + 2 * u[:, 1] + e), names=("m1", "m2"), **FAST
    )
    # Not one product mixes the parameters.
    assert {frozenset(a.axis for a in term) for term in expand(got.kernel)} == {frozenset({0}), frozenset({1})}
    assert "LIN(m2)" in got.expression
    assert "SE(m1)" in got.expression
    assert [a["parameter"] for a in got.hyperparameters[0]["atoms"] if a["family"] == "SE"] == ["m1"]
    assert {a["parameter"] for a in got.hyperparameters[0]["atoms"]} == {"m1", "m2"}
    lengths = got.hyperparameters[0]["lengthscales"]
    assert 0.05 < lengths[0] < 1
    assert lengths[1] == math.inf


def test_noise_alone_is_not_explained():
    u, _ = series(50)
    z = torch.from_numpy(np.random.default_rng(8).normal(size=50))
    got = search_kernel(Observations.exact(u, z), **FAST)
    assert len(atoms(got.kernel)) == 1
    assert got.hyperparameters[0]["nugget"] > 0.7


def test_the_result_is_at_the_maximum(found, wave):
    """BIC and likelihood by scipy from the reported kernel; no step within the bounds is better."""
    u, z = (a.numpy() for a in wave)
    y = (z - z.mean()) / z.std()
    nugget = float(found.nugget)

    def log_likelihood(theta, log_nugget):
        covariance = gram(with_parameters(found.kernel, theta), u) + math.exp(log_nugget) * np.eye(len(u))
        return scipy.stats.multivariate_normal(np.zeros(len(u)), covariance).logpdf(y)

    theta = parameters(found.kernel)
    best = log_likelihood(theta, math.log(nugget))
    assert found.log_likelihood == pytest.approx(best, rel=1e-8)
    assert found.bic == pytest.approx(-2 * best + 6 * math.log(60), rel=1e-8)
    for i in range(len(theta)):
        for step in (-0.02, 0.02):
            assert log_likelihood(theta + step * np.eye(len(theta))[i], math.log(nugget)) < best
    assert log_likelihood(theta, math.log(nugget) + 0.1) < best > log_likelihood(theta, math.log(nugget) - 0.1)


def test_predictions_equal_dense_algebra(found, wave):
    u, z = (a.numpy() for a in wave)
    at = np.linspace(-0.1, 1.2, 9)[:, None]
    k = gram(found.kernel, np.concatenate([u, at]))
    inverse = np.linalg.inv(k[:60, :60] + float(found.nugget) * np.eye(60))
    gain = k[60:, :60] @ inverse
    mean = z.mean() + gain @ (z - z.mean())
    covariance = z.std() ** 2 * (k[60:, 60:] - gain @ k[:60, 60:])
    got_mean, got_covariance = found.joint(torch.from_numpy(at))
    assert np.allclose(got_mean[0], mean, rtol=1e-7)
    assert np.allclose(got_covariance[0], covariance, rtol=1e-5, atol=1e-9 * z.var())


def test_components_add_up(found, wave):
    u = torch.linspace(0, 1.1, 30, dtype=torch.float64)[:, None]
    parts = found.decompose(u)
    assert [c.name for c in parts.components] == ["a linear function of time", "a periodic function of time"]
    assert [c.expression for c in parts.components] == ["LIN", "PER"]
    total = parts.offset + sum(c.mean for c in parts.components)
    assert torch.allclose(total, found.marginal(u)[0][0], rtol=1e-9)
    data, z = (a.numpy() for a in wave)
    inverse = np.linalg.inv(gram(found.kernel, data) + float(found.nugget) * np.eye(60))
    for component, atom in zip(parts.components, found.kernel.parts):
        k = gram(atom, np.concatenate([data, u.numpy()]))
        assert np.allclose(component.mean, k[60:, :60] @ inverse @ (z - z.mean()), rtol=1e-6, atol=1e-8 * z.std())
        variance = z.var() * np.diag(k[60:, 60:] - k[60:, :60] @ inverse @ k[:60, 60:])
        assert np.allclose(component.variance, variance, rtol=1e-5, atol=1e-9 * z.var())
    slope = np.polyfit(u[:, 0].numpy(), parts.components[0].mean.numpy(), 1)[0]
    assert slope == pytest.approx(200, rel=0.05)


def test_conditioning_keeps_the_kernel(found):
    after = found.condition(torch.tensor([[1.1]], dtype=torch.float64), torch.tensor([[100.0]], dtype=torch.float64))
    assert isinstance(after, ComposedProcess)
    assert (after.kernel, after.bic, after.name) == (found.kernel, found.bic, found.name)
    u = torch.tensor([[0.2], [1.1]], dtype=torch.float64)
    parts = after.decompose(u)
    assert torch.allclose(parts.offset + sum(c.mean for c in parts.components), after.marginal(u)[0][0])


def test_units_change_nothing(found, wave):
    u, z = wave
    scaled = search_kernel(Observations.exact(u, 1e-6 * z - 3e-6), names=("time",), **FAST)
    assert scaled.expression == found.expression
    assert scaled.bic == pytest.approx(found.bic, abs=1e-3)
    narrow = search_kernel(Observations.exact(0.4 + 0.1 * u, z), names=("time",), **FAST)
    assert narrow.expression == found.expression
    assert narrow.bic == pytest.approx(found.bic, abs=1e-3)
    at = torch.tensor([[0.33], [1.2]], dtype=torch.float64)
    assert torch.allclose(narrow.marginal(0.4 + 0.1 * at)[0], found.marginal(at)[0], rtol=1e-3)


def test_known_variances_are_noise():
    u, e = series(40)
    z = torch.sin(6 * u[:, 0])
    bad = torch.zeros_like(z)
    bad[::4] = 10 * torch.sign(e[::4])
    variance = torch.where(bad != 0, 100.0, 0.0)
    got = search_kernel(Observations.exact(u, z + bad, variance), depth=1, restarts=2)
    clean = search_kernel(Observations.exact(u[bad == 0], z[bad == 0]), depth=1, restarts=2)
    assert torch.allclose(got.marginal(u)[0], clean.marginal(u)[0], atol=0.05)


def test_several_tasks_have_kernels_of_their_own(wave):
    u, z = wave
    data = Observations.exact(u, torch.stack([z, -3 * u[:, 0]], 1), torch.full((60, 2), 1e-2))
    posterior = KernelSearch(**FAST).fit(data)
    assert [p.expression for p in posterior.parts] == ["LIN + PER", "LIN"]
    with pytest.raises(ShapeError, match=r"needs one task, got 2\. Use KernelSearch"):
        search_kernel(data)


# -- input


def test_settings_survive_json():
    recipe = KernelSearch(families=("SE", "PER"), depth=3, names=("a", "b"))
    stored = json.loads(json.dumps(recipe.to_json()))
    assert stored.pop("type") == "KernelSearch"
    assert KernelSearch(**stored) == recipe


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"families": ("SE", "RBF")}, r"families must be some of SE, RQ, LIN, PER, each once, got \['SE', 'RBF'\]"),
        ({"families": ()}, r"each once, got \[\]"),
        ({"families": ("SE", "SE")}, "each once"),
        ({"depth": 0}, "must be whole numbers >= 1, got {'depth': 0"),
        ({"restarts": 1.5}, "'restarts': 1.5"),
        ({"beam": 0}, "'beam': 0"),
        ({"max_iter": -1}, "'max_iter': -1"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"names": ("a", "a")}, "names must be different words"),
        ({"names": ("",)}, "names must be different words"),
    ],
)
def test_bad_settings(setting, match):
    with pytest.raises(InvalidStrategy, match=match):
        KernelSearch(**setting)


def test_bad_data():
    u, z = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None], torch.arange(6, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"needs one name per parameter, got \['a', 'b'\] for 1 parameters"):
        search_kernel(Observations.exact(u, z), names=("a", "b"))
    with pytest.raises(FitError, match="must differ enough for one of SE, RQ, LIN, PER, got 6 points"):
        search_kernel(Observations.exact(torch.full_like(u, 0.3), z))
    with pytest.raises(FitError, match="values must vary by 1e-150 to 1e150"):
        search_kernel(Observations.exact(u, 1e300 * z))
    censored = Observations(u, z[:, None], torch.zeros(6, 1).double(), torch.tensor([[0.0]] + [[1.0]] * 5).double())
    with pytest.raises(FitError, match="at least 2 observations that are not censored, got 1 of 6"):
        search_kernel(censored)


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_few_points(n):
    u = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    got = search_kernel(Observations.exact(u, u[:, 0] ** 2), depth=2, restarts=1)
    mean, variance = got.marginal(torch.linspace(0, 1, 50, dtype=torch.float64)[:, None])
    assert torch.isfinite(mean).all()
    assert (variance > 0).all()
    assert math.isfinite(got.bic)
