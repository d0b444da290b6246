"""The mathematics of level sets: pure functions of means, variances and thresholds.

Notation: the belief about f at a point is normal with mean m and standard deviation s; T is a threshold and
u = (m - T)/s. After one more look the standard deviation becomes s+ (which does not depend on what is seen) and
r = s+^2 / s^2; the new mean is N(m, s^2 (1 - r)). All arguments are float64 tensors that broadcast.

References:
    Bect et al., Stat. Comput. 22 (2012) 773: SUR criteria.
    Chevalier et al., Technometrics 56 (2014) 455: closed forms by the bivariate normal distribution.
    Letham et al., AISTATS 2022 (arXiv:2203.09751): look-ahead for level sets.
    Owen, Ann. Math. Stat. 27 (1956) 1075: T(h, a).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy.special
import torch
from torch import Tensor
from torch.special import xlogy

from .errors import InvalidProblem

#: Variances below this are taken as this: a belief that is certain to double precision.
TINY = 1e-300


def ndtr(x: Tensor) -> Tensor:
    """Phi(x), the standard normal distribution function; unlike torch's own, the lower tail keeps its digits."""
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def standardised(mean: Tensor, variance: Tensor, threshold: Tensor | float) -> Tensor:
    """u = (m - T)/s, the distance of the belief from the threshold in standard deviations."""
    return (mean - threshold) / variance.clamp_min(TINY).sqrt()


def excursion_probability(mean: Tensor, variance: Tensor, threshold: Tensor | float) -> Tensor:
    """P(f >= T) = Phi((m - T)/s).

    Args:
        mean: m, any shape.
        variance: s^2, not negative, broadcastable with ``mean``; 0 gives 0 or 1 (1/2 at m = T).
        threshold: T.

    Returns:
        Probabilities in [0, 1] of the broadcast shape.

    >>> float(excursion_probability(torch.tensor(1.0), torch.tensor(4.0), 1.0))
    0.5
    """
    return ndtr(standardised(mean, variance, threshold))


def half_width(level: float) -> float:
    """Half the width, in standard deviations, of the central interval of this probability: Phi^-1((1 + level)/2).

    >>> round(half_width(0.95), 4)
    1.96

    Raises:
        InvalidProblem: the level does not lie between 0 and 1.
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise InvalidProblem(f"level: must lie between 0 and 1, got {level!r}. Give 0.95, say")
    return float(scipy.special.ndtri(0.5 * (1 + level)))


def undecided(mean: Tensor, variance: Tensor, threshold: Tensor | float, level: float) -> Tensor:
    """Whether T lies inside the central interval of f: (1 - level)/2 < P(f >= T) < (1 + level)/2.

    These points are the band of {f = T}: no side of the threshold can be told there at this level.

    Args:
        mean, variance, threshold: see `excursion_probability`.
        level: probability of the interval, 0.95 say.

    Returns:
        Booleans of the broadcast shape.
    """
    return standardised(mean, variance, threshold).abs() < half_width(level)


#: Probability of the interval of one standard deviation around a normal mean.
ONE_SIGMA = math.erf(math.sqrt(0.5))


def band_edges(difference: np.ndarray, sd: np.ndarray, level: float = ONE_SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """Two functions that vanish at the edges of the band of `undecided`, m - T + k s and m - T - k s.

    Args:
        difference: m - T, any shape.
        sd: s.
        level: of the band.
    """
    width = half_width(level) * sd
    return difference + width, difference - width


def class_probabilities(mean: Tensor, variance: Tensor, thresholds: Tensor) -> Tensor:
    """P(t_j <= f < t_{j+1}) for ascending thresholds t_1 < ... < t_k, with t_0 = -inf and t_{k+1} = inf.

    Returns:
        Shape (..., k + 1); sums to 1 over the last axis.
    """
    u = -standardised(mean[..., None], variance[..., None], thresholds)
    infinite = torch.full_like(u[..., :1], math.inf)
    low, high = torch.cat([-infinite, u], -1), torch.cat([u, infinite], -1)
    flip = low > 0  # differences of small tails, not of numbers near one
    return ndtr(torch.where(flip, -low, high)) - ndtr(torch.where(flip, -high, low))


def entropy(p: Tensor) -> Tensor:
    """-sum_j p_j ln p_j over the last axis, in nats; 0 ln 0 = 0."""
    return -xlogy(p, p).sum(-1)


def binary_entropy(p: Tensor) -> Tensor:
    """H(p) = -p ln p - (1-p) ln(1-p), in nats."""
    return -xlogy(p, p) - xlogy(1 - p, 1 - p)


def misclassification(p: Tensor) -> Tensor:
    """min(p, 1-p): the probability that the likelier side of the threshold is the wrong one."""
    return torch.minimum(p, 1 - p)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def owen_t(h: Tensor, a: Tensor) -> Tensor:
    """Owen's T(h, a) = 1/(2 pi) int_0^a exp(-h^2 (1 + x^2)/2)/(1 + x^2) dx, for a >= 0.

    For a > 1 the reflection T(h, a) = Phi(|h|)/2 + Phi(a|h|)/2 - Phi(|h|) Phi(a|h|) - T(a|h|, 1/a) leaves a range
    [0, 1], on which 8-point Gauss-Legendre is exact to 1e-11.

    References:
        Owen (1956), eqs. 2.1 and 2.3.
    """
    h = h.abs()
    flip = a > 1
    k = torch.where(flip, (a * h).nan_to_num(0.0), h)
    total = _owen_t(k, torch.where(flip, 1 / a, a))
    # Products of small tails, not of numbers near one: relative accuracy far from the threshold.
    tail, far = ndtr(-h), ndtr(-k)
    return torch.where(flip, 0.5 * (tail + far) - tail * far - total, total)


def _owen_t(h: Tensor, a: Tensor) -> Tensor:
    """T(h, a) for h >= 0 and a in [0, 1]; the range is cut where the integrand is e^-32 of its value at 0."""
    # exp(-h^2 x^2/2) = e^-32 at x = 8/h. Exponents of underflowing results are slow, so they end at -700.
    half, end = -0.5 * h.square(), torch.minimum(a, 8.0 / h.clamp_min(1.0)).square()
    total = torch.zeros_like(end)
    for node, weight in zip((0.5 * (_NODES + 1)).tolist(), (0.25 * _WEIGHTS / math.pi).tolist()):
        t = (end * node**2).add_(1)
        total.addcdiv_((half * t).clamp_min_(-700.0).exp_(), t, value=weight)
    return total.mul_(end.sqrt_())


def disagreement(u: Tensor, v: Tensor, correlation: Tensor) -> Tensor:
    """P(U and V lie on different sides of 0) for normals with means u, v, variances 1 and this correlation.

    With a_u = (v - c u)/(u sqrt(1 - c^2)) it is 2 T(u, a_u) + 2 T(v, a_v), plus 1 where u v < 0: what is left of
    Phi(u) + Phi(v) - 2 Phi_2(u, v; c).

    References:
        Owen (1956), eq. 3.1.
    """
    c = correlation.clamp(-1.0, 1.0)
    # At zero the two terms are taken at their limits.
    u, v = (torch.where(x.abs() < 1e-150, torch.full_like(x, 1e-150), x) for x in (u, v))
    root = ((1 - c) * (1 + c)).clamp_min(1e-30).sqrt()
    total = (u.sign() * v.sign() < 0).to(u.dtype)
    for near, far in ((u, v), (v, u)):
        a = (far - c * near) / root / near
        total = total + 2 * a.sign() * owen_t(near, a.abs())
    return total.clamp(0.0, 1.0)


def expected_misclassification(u: Tensor, r: Tensor) -> Tensor:
    """E[min(p+, 1 - p+)] = 2 T(u, sqrt(r/(1-r))): the misclassification expected after one more look.

    Args:
        u: (m - T)/s before the look.
        r: s+^2/s^2 in [0, 1]; 1 means that the look tells nothing.

    References:
        Chevalier et al. (2014), eq. 4, for E[p+(1-p+)]. Here the likelier side is wrong when f and the new mean m+ lie
        on different sides of T, a quadrant probability of two normals with correlation sqrt(1 - r).
    """
    return 2 * owen_t(u, (r / (1 - r).clamp_min(1e-16)).sqrt())


def expected_bernoulli_variance(u: Tensor, r: Tensor) -> Tensor:
    """E[p+ (1 - p+)] = 2 T(u, sqrt(r/(2-r))): the class variance expected after one more look.

    References:
        Chevalier et al. (2014), eq. 4, in Owen's form.
    """
    return 2 * owen_t(u, (r / (2 - r)).sqrt())


def misclassification_drop(u: Tensor, rho: Tensor) -> Tensor:
    """E[min(p, 1-p) - min(p+, 1-p+)] = 2 T(u, inf) - 2 T(u, a) with a = sqrt(1-rho^2)/rho, to an absolute 1e-11.

    It is (1/pi) int_0^{asin rho} exp(-u^2/(2 sin^2 x)) dx, so at most asin(rho)/pi exp(-u^2/(2 rho^2)). For a > 1 it is
    2 T(k, 1/a) - Phi(-k) erf(|u|/sqrt2) with k = a|u|, by the reflection in `owen_t`: small rho costs no digits.

    Args:
        u: (m - T)/s before the look.
        rho: correlation of f with the look, sqrt(1 - r), in [0, 1]; 0 tells nothing.

    References:
        Owen (1956), eqs. 2.1 and 2.3.
    """
    h = u.abs()
    b = rho / (1 - rho.square()).clamp_min_(1e-32).sqrt_()
    small = b < 1
    k = torch.where(small, h / b.clamp_min(1e-150), h)
    part = _owen_t(k, torch.where(small, b, 1 / b)).mul_(2)
    tail = torch.special.erfc(k.mul_(math.sqrt(0.5))).mul_(0.5)
    return torch.where(small, part - tail * torch.erf(h * math.sqrt(0.5)), tail - part).clamp_min_(0.0)


def bernoulli_variance_drop(u: Tensor, r: Tensor) -> Tensor:
    """E[p (1-p) - p+ (1-p+)] = 2 T(u, 1) - 2 T(u, sqrt(r/(2-r))): the integral over what lies between, no cancellation.

    References:
        Chevalier et al. (2014), eq. 4, in Owen's form.
    """
    half, start = -0.5 * u.square(), (r / (2 - r)).sqrt()
    # The range is cut where the integrand is e^-32 of its first value.
    width = (start.square() + 64 / u.square().clamp_min(1.0)).sqrt_().clamp_max_(1.0).sub_(start)
    total = torch.zeros_like(width)
    for node, weight in zip((0.5 * (_NODES + 1)).tolist(), (0.5 * _WEIGHTS / math.pi).tolist()):
        t = torch.add(start, width, alpha=node).square_().add_(1)
        total.addcdiv_((half * t).clamp_min_(-700.0).exp_(), t, value=weight)
    return total.mul_(width)


def conditional_entropy(u: Tensor, r: Tensor) -> Tensor:
    """E[H(p+)], the entropy of the class of a point expected after one more look, to 1e-9.

    H(Phi(u)) minus this is the mutual information between the class and the look (nats). With
    v = (u + sqrt(1-r) Z)/sqrt(r) it is the average of H(Phi(v)) over v ~ N(u/sqrt(r), (1-r)/r). The trapezoidal rule
    converges geometrically for such bells; it runs over v if the normal is wide (r < 1/2), over Z if it is narrow.

    References:
        Letham et al. (2022), section 3, for a probit likelihood; the Gaussian case follows from p+ = Phi(v).
    """
    r = r.clamp(1e-300, 1.0)
    root, step = r.sqrt(), (1 - r).sqrt()
    wide = r < 0.5
    total = torch.zeros_like(u * r)
    for z in torch.arange(-8.8, 8.81, 0.4, dtype=torch.float64).tolist():
        v = torch.where(wide, z, (u + step * z) / root)
        # Density of v at z, times dv/dz: sqrt(r/(1-r)) phi((sqrt(r) z - u)/sqrt(1-r)).
        at = torch.where(wide, (root * z - u) / step.clamp_min(0.1), z)
        weight = torch.where(wide, root / step.clamp_min(0.1), 1.0) * torch.exp(-0.5 * at**2)
        total = total + weight * binary_entropy(ndtr(v))
    return total * (0.4 / math.sqrt(2 * math.pi))


#: Terms in u and in the square root of r of `mutual_information`, and where its variable u/(u + 4) is 4/5.
_TERMS, _SPLIT, _FARTHEST = (48, 12), 4.0, 40.0


@functools.cache
def _information_table() -> Tensor:
    """Chebyshev coefficients of I exp(u^2/2)/((1 - q)(1 + u)), see `mutual_information`."""
    z, of_z = np.polynomial.hermite_e.hermegauss(60)
    x, of_x = np.polynomial.legendre.leggauss(40)
    of_z, of_x = of_z / of_z.sum(), of_x / 2
    ticks = [(1 - np.cos(np.pi * (np.arange(n) + 0.5) / n)) / 2 for n in _TERMS]
    far = ticks[0] * _FARTHEST / (_FARTHEST + _SPLIT)
    u, q = (_SPLIT * far / (1 - far))[:, None, None, None], ticks[1][:, None, None]
    s = q + (1 - q) * (x[:, None] + 1) / 2
    v = np.abs(u * s + np.sqrt(1 - s**2) * z) / math.sqrt(2)
    # 2 g(v) = phi(v)/sqrt(2 pi)/(Phi(v) Phi(-v) exp(-v^2/2)), with the scaled complement of the error function.
    g = 2 / (2 * math.pi * scipy.special.erfcx(v) * scipy.special.ndtr(math.sqrt(2) * v))
    values = np.einsum("jkxz,x,z->jk", g, of_x, of_z) / (1 + u[:, 0, 0])
    for axis, tick in enumerate(ticks):
        vandermonde = np.polynomial.chebyshev.chebvander(2 * tick - 1, len(tick) - 1)
        values = np.moveaxis(np.linalg.solve(vandermonde, np.moveaxis(values, axis, 0)), 0, axis)
    return torch.from_numpy(values)


def information_series(u: Tensor) -> Tensor:
    """What `mutual_information` depends on through u: coefficients of Chebyshev polynomials in sqrt(r), (..., 12)."""
    far = u.abs()
    held = far.clamp_max(_FARTHEST)
    x = 2 * (held / (held + _SPLIT)) * ((_FARTHEST + _SPLIT) / _FARTHEST) - 1
    j = torch.arange(_TERMS[0], dtype=torch.float64)
    in_u = torch.cos(j * torch.acos(x.clamp(-1.0, 1.0))[..., None]) @ _information_table()
    return in_u * ((1 + held) * torch.exp(-0.5 * far.square()))[..., None]


def mutual_information(u: Tensor, r: Tensor, series: Tensor | None = None) -> Tensor:
    """I = H(p) - E[H(p+)], what a look tells about the class of a point, in nats; to a relative 1e-7 for |u| < 8.

    A first look that tells little, r = 1 - d, tells s(u) d with s(u) = phi(u)^2/(2 Phi(u) Phi(-u)). Looks in a row add
    up (chain rule), so that with q = sqrt(r), and g(v) = s(v) exp(v^2/2),

        I = exp(-u^2/2) int_q^1 2 E_z[g(u x + sqrt(1 - x^2) z)] dx.

    Nothing cancels. The mean of the integrand over [q, 1] is a smooth function, held in Chebyshev polynomials. Beyond
    |u| = 40, where I < 1e-300, the table is held constant.

    Args:
        u: (m - T)/s before the look.
        r: s+^2/s^2 in [0, 1].
        series: `information_series(u)`, if it is used more than once.

    References:
        Letham et al. (2022), section 3; Cover and Thomas, Elements of Information Theory (2006), theorem 2.5.2.
    """
    series = information_series(u) if series is None else series
    q = r.sqrt()
    y = 4 * q - 2  # twice the variable of the polynomials
    b1, b2 = torch.zeros_like(y + u), torch.zeros_like(y + u)
    for c in series.unbind(-1)[:0:-1]:  # Clenshaw
        b1, b2 = b2.neg_().add_(c).addcmul_(y, b1), b1
    mean = b2.neg_().add_(series[..., 0]).addcmul_(y, b1, value=0.5)
    return mean.mul_((1 - r) / (1 + q)).clamp_min_(0.0)
