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

import math

import numpy as np
import torch
from torch import Tensor
from torch.special import ndtr, xlogy

#: Variances below this are taken as this: a belief that is certain to double precision.
TINY = 1e-300


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


def class_probabilities(mean: Tensor, variance: Tensor, thresholds: Tensor) -> Tensor:
    """P(t_j <= f < t_{j+1}) for ascending thresholds t_1 < ... < t_k, with t_0 = -inf and t_{k+1} = inf.

    Returns:
        Shape (..., k + 1); sums to 1 over the last axis.
    """
    above = excursion_probability(mean[..., None], variance[..., None], thresholds)
    ones = torch.ones_like(above[..., :1])
    return (torch.cat([ones, above], -1) - torch.cat([above, 0 * ones], -1)).clamp_min(0.0)


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
    [0, 1], on which 8-point Gauss-Legendre is exact to 1e-11; the range is cut where the integrand has fallen below
    e^-32 of its value at 0.

    References:
        Owen (1956), eqs. 2.1 and 2.3.
    """
    h = h.abs()
    flip = a > 1
    k = torch.where(flip, (a * h).nan_to_num(0.0), h)
    b = torch.where(flip, 1 / a, a)
    end = torch.minimum(b, 8.0 / k.clamp_min(1.0))  # exp(-k^2 x^2/2) = e^-32 at x = 8/k
    half = -0.5 * k**2
    total = torch.zeros_like(k * end)
    for node, weight in zip((0.5 * (_NODES + 1)).tolist(), (0.25 * _WEIGHTS / math.pi).tolist()):
        t = 1 + (node * end) ** 2
        total += weight * torch.exp(half * t) / t
    total *= end
    # Products of small tails, not of numbers near one: relative accuracy far from the threshold.
    tail, far = ndtr(-h), ndtr(-k)
    return torch.where(flip, 0.5 * (tail + far) - tail * far - total, total)


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
