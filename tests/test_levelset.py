import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from excursion import levelset

U = torch.linspace(-6, 6, 25, dtype=torch.float64)
R = torch.cat([torch.logspace(-8, -0.3, 20, dtype=torch.float64), torch.tensor([0.6, 0.9, 0.99, 1 - 1e-9, 1.0])])


def normal_average(g, order=4001):
    """E g(Z) by the trapezoidal rule on a fine grid: independent of Gauss-Hermite and of Owen's function."""
    z = np.linspace(-12, 12, order)
    return np.trapezoid(g(z) * scipy.stats.norm.pdf(z), z)


@given(h=st.floats(-40, 40), a=st.floats(0, 1e12))
def test_owen_t_agrees_with_scipy(h, a):
    ours = levelset.owen_t(torch.tensor(h, dtype=torch.float64), torch.tensor(a, dtype=torch.float64))
    assert float(ours) == pytest.approx(scipy.special.owens_t(h, a), abs=1e-11, rel=1e-12)


def test_owen_t_at_infinity_and_zero():
    h = U[:, None]
    ours = levelset.owen_t(h, torch.tensor([math.inf, 0.0], dtype=torch.float64))
    assert torch.allclose(ours[:, 0], 0.5 * torch.special.ndtr(-h[:, 0].abs()), atol=1e-11)
    assert (ours[:, 1] == 0).all()


@pytest.mark.parametrize("u", [-3.0, -1.2, 0.0, 0.4, 2.5])
@pytest.mark.parametrize("r", [0.01, 0.05, 0.3, 0.49, 0.51, 0.7, 0.97])
def test_looks_ahead_agree_with_the_average_over_outcomes(u, r):
    """p+ = Phi((u + sqrt(1-r) z)/sqrt(r)), averaged over the outcome z by another rule."""

    def p(z):
        return scipy.stats.norm.cdf((u + math.sqrt(1 - r) * z) / math.sqrt(r))

    def h(q):
        return -scipy.special.xlogy(q, q) - scipy.special.xlogy(1 - q, 1 - q)

    args = torch.tensor(u, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    assert float(levelset.expected_misclassification(*args)) == pytest.approx(
        normal_average(lambda z: np.minimum(p(z), 1 - p(z)), 40001), abs=1e-7
    )
    assert float(levelset.expected_bernoulli_variance(*args)) == pytest.approx(
        normal_average(lambda z: p(z) * (1 - p(z)), 40001), abs=1e-9
    )
    assert float(levelset.conditional_entropy(*args)) == pytest.approx(
        normal_average(lambda z: h(p(z)), 40001), abs=1e-9
    )


def owens_drop(u, rho):
    """2 T(u, inf) - 2 T(u, sqrt(1 - rho^2)/rho) by scipy; two tails, so to 1e-16 absolute."""
    a = np.sqrt(1 - rho**2) / rho
    return scipy.stats.norm.cdf(-np.abs(u)) - 2 * scipy.special.owens_t(u, a)


def test_the_drop_of_misclassification_agrees_with_scipy():
    u, rho = (
        np.linspace(-9, 9, 73)[:, None],
        np.concatenate([np.logspace(-6, -0.3, 40), 1 - np.logspace(-0.31, -9, 40)]),
    )
    ours = levelset.misclassification_drop(torch.from_numpy(u), torch.from_numpy(rho)).numpy()
    assert np.abs(ours - owens_drop(u, rho)).max() < 1e-11


def test_small_drops_keep_their_digits():
    """For rho = 1e-5 the two tails agree to ten digits; the integral over the angle does not cancel."""
    for u, rho in [(0.0, 1e-5), (2e-5, 1e-5), (0.3, 0.1), (1.5, 0.6), (2.0, 0.9)]:
        x, w = np.polynomial.legendre.leggauss(400)
        angle = math.asin(rho) * (x + 1) / 2
        expect = math.asin(rho) / 2 / math.pi * (w * np.exp(-(u**2) / 2 / np.sin(angle) ** 2)).sum()
        ours = levelset.misclassification_drop(*(torch.tensor(v, dtype=torch.float64) for v in (u, rho)))
        assert float(ours) == pytest.approx(expect, rel=1e-6, abs=0)


def test_looks_that_tell_nothing_or_all_drop_nothing_or_all():
    u = torch.linspace(-12, 12, 49, dtype=torch.float64)
    nothing, everything = torch.zeros_like(u), torch.ones_like(u)
    p = torch.from_numpy(scipy.special.ndtr(u.numpy()))
    assert (levelset.misclassification_drop(u, nothing) == 0).all()
    assert (levelset.bernoulli_variance_drop(u, everything) == 0).all()
    assert (levelset.mutual_information(u, everything) == 0).all()
    tail = torch.from_numpy(scipy.special.ndtr(-u.abs().numpy()))
    assert torch.allclose(levelset.misclassification_drop(u, everything), tail, rtol=1e-9, atol=0)
    assert torch.allclose(levelset.bernoulli_variance_drop(u, nothing), p * (1 - p), atol=1e-12)
    entropy = -torch.xlogy(tail, tail) - torch.special.log_ndtr(u.abs()) * (1 - tail)
    assert torch.allclose(levelset.mutual_information(u, nothing), entropy, rtol=1e-6, atol=0)


def test_the_drop_of_the_class_variance_agrees_with_scipy():
    u, r = np.linspace(-9, 9, 73)[:, None], np.concatenate([np.logspace(-9, -0.3, 40), 1 - np.logspace(-0.31, -9, 40)])
    ours = levelset.bernoulli_variance_drop(torch.from_numpy(u), torch.from_numpy(r)).numpy()
    expect = 2 * scipy.special.owens_t(u, 1.0) - 2 * scipy.special.owens_t(u, np.sqrt(r / (2 - r)))
    assert np.abs(ours - expect).max() < 1e-11
    # A look that tells little: phi(u)^2 (1 - r), to first order.
    faint = levelset.bernoulli_variance_drop(*torch.tensor([1.3, 1 - 1e-9], dtype=torch.float64))
    assert float(faint) == pytest.approx(1e-9 * scipy.stats.norm.pdf(1.3) ** 2, rel=1e-6, abs=0)


def test_mutual_information_is_the_drop_of_entropy():
    """Against the average over outcomes, and far from the threshold against the derivative at a faint look."""
    u = torch.linspace(-7, 7, 57, dtype=torch.float64)[:, None]
    ours = levelset.mutual_information(u, R)
    expect = levelset.binary_entropy(torch.special.ndtr(u)) - levelset.conditional_entropy(u, R)
    assert torch.allclose(ours, expect, atol=2e-9)
    assert torch.equal(ours, levelset.mutual_information(u, R, levelset.information_series(u)))
    for far in (0.0, 3.0, 12.0, 30.0):
        n = scipy.stats.norm
        slope = math.exp(2 * n.logpdf(far) - n.logcdf(far) - n.logsf(far)) / 2
        faint = levelset.mutual_information(*torch.tensor([far, 1 - 1e-8], dtype=torch.float64))
        assert float(faint) == pytest.approx(1e-8 * slope, rel=2e-5, abs=0)


def test_far_classes_keep_their_digits():
    """On either side of the thresholds."""
    levels = torch.tensor([0.0, 1.0], dtype=torch.float64)
    p = levelset.class_probabilities(torch.tensor([-20.0, 21.0]).double(), torch.ones(2).double(), levels)
    assert p[0, 1:].numpy() == pytest.approx(
        [scipy.stats.norm.sf(20) - scipy.stats.norm.sf(21), scipy.stats.norm.sf(21)], rel=1e-9, abs=0
    )
    assert p[1, :2].numpy() == pytest.approx(
        [scipy.stats.norm.sf(21), scipy.stats.norm.sf(20) - scipy.stats.norm.sf(21)], rel=1e-9
    )


def test_a_look_that_tells_nothing_and_one_that_tells_all():
    p = torch.special.ndtr(U)
    one, zero = torch.ones_like(U), torch.zeros_like(U)
    assert torch.allclose(levelset.expected_misclassification(U, one), torch.minimum(p, 1 - p), atol=1e-15)
    assert torch.allclose(levelset.expected_bernoulli_variance(U, one), p * (1 - p), atol=1e-15)
    assert torch.allclose(levelset.conditional_entropy(U, one), levelset.binary_entropy(p), atol=1e-12)
    assert levelset.expected_misclassification(U, zero).abs().max() < 1e-15
    assert levelset.expected_bernoulli_variance(U, zero).abs().max() < 1e-15


def test_more_information_never_hurts():
    for f in (levelset.expected_misclassification, levelset.expected_bernoulli_variance, levelset.conditional_entropy):
        value = f(U[:, None], R)
        assert (value.diff(dim=1) > -1e-9).all(), f.__name__


def test_class_probabilities_and_entropy():
    mean, variance = torch.tensor([0.3, -5.0], dtype=torch.float64), torch.tensor([0.5, 1e-12], dtype=torch.float64)
    levels = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    p = levelset.class_probabilities(mean, variance, levels)
    expect = np.diff(np.concatenate([[0], scipy.stats.norm.cdf(levels.numpy(), 0.3, math.sqrt(0.5)), [1]]))
    assert np.allclose(p[0], expect, atol=1e-14)
    assert p[1].tolist() == [1, 0, 0, 0]
    assert float(levelset.entropy(p)[0]) == pytest.approx(scipy.stats.entropy(expect))
    assert float(levelset.entropy(p)[1]) == 0


def test_certain_beliefs_have_certain_probabilities():
    p = levelset.excursion_probability(
        torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0.0
    )
    assert p.tolist() == [1.0, 0.0, 0.5]
    assert levelset.misclassification(p).tolist() == [0.0, 0.0, 0.5]
