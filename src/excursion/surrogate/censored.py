"""Censored observations: Gaussian stand-ins by expectation propagation.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): section 3.6, algorithm 3.5.
    Tobin, Econometrica 26 (1958) 24: the one-sided likelihood.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import erfcx, log_ndtr
from torch import Tensor

from ..errors import FitError
from .linalg import cholesky, solve

#: A site that carries less precision than this, relative to the prior's, tells nothing.
_NO_PRECISION = 1e-10
#: Tolerance at the last sweep: as large as the error of the propagation itself.
_LOOSE = 1e-2


def censored_sites(
    covariance: Tensor, mean: Tensor, z: Tensor, variance: Tensor, side: Tensor, *, sweeps: int = 100, tol: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Gaussian observations that stand for censored ones, by expectation propagation.

    The likelihood of a censored observation is Phi(side (f - z)/sqrt(variance)): f plus the noise lies beyond z. Exact
    observations are left as they are; the belief at the censored points given them is the prior of the propagation.

    Args:
        covariance: prior covariance of f, (n, n).
        mean: prior mean, (n,).
        z: values, or bounds where censored, (n,).
        variance: noise variances, positive, (n,).
        side: 0 exact, +1 above, -1 below, (n,).
        sweeps: at most so many passes over the censored points.
        tol: largest change of a posterior mean, in standard deviations, and of a relative variance, at convergence.
            From half of the sweeps on it grows to `_LOOSE`: where bounds contradict values next to them, rounding may
            leave more than `tol`.

    Returns:
        Values (n,) and noise variances (n,).

    Raises:
        FitError: no convergence.
    """
    if not side.any():
        return z, variance
    c, prior_mean, prior, _ = _given_exact(covariance, mean, z, variance, side)
    value, noise, _ = _propagate(prior_mean, prior, z[c].numpy(), variance[c].numpy(), side[c].numpy(), sweeps, tol)
    z, variance = z.clone(), variance.clone()
    z[c], variance[c] = torch.from_numpy(value), torch.from_numpy(noise)
    return z, variance


def censored_evidence(
    covariance: Tensor, mean: Tensor, z: Tensor, variance: Tensor, side: Tensor, *, sweeps: int = 100, tol: float = 1e-6
) -> float:
    """ln p(values, bounds): the density of the exact values times the probability of the bounds, by the same sites.

    ln N(z_e; m, K + noise) in closed form plus the propagation's ln Z of the censored ones given these. One bound is
    exact, of several the error is some thousandths.

    Args, raises: as `censored_sites`.

    References:
        Rasmussen and Williams (2006), eqs. 3.65, 3.73 and 3.74.
    """
    c, prior_mean, prior, log_density = _given_exact(covariance, mean, z, variance, side)
    if not len(c):
        return log_density
    bounds = (z[c].numpy(), variance[c].numpy(), side[c].numpy())
    return log_density + _propagate(prior_mean, prior, *bounds, sweeps, tol)[2]


def _given_exact(
    covariance: Tensor, mean: Tensor, z: Tensor, variance: Tensor, side: Tensor
) -> tuple[Tensor, np.ndarray, np.ndarray, float]:
    """Which are censored; mean and covariance of f there, given the exact values; the log density of these."""
    c, e = (side != 0).nonzero()[:, 0], (side == 0).nonzero()[:, 0]
    factor = cholesky(covariance[e][:, e] + torch.diag(variance[e]))
    v = solve(factor, covariance[e][:, c])
    white = solve(factor, (z - mean)[e][:, None])[:, 0]
    prior_mean = (mean[c] + v.T @ white).numpy()
    prior = (covariance[c][:, c] - v.T @ v).numpy()
    # Conditioning cancels digits: what is left of a variance is at least the rounding error of what was there.
    prior.flat[:: len(c) + 1] = np.maximum(prior.diagonal(), 1e-12 * float(covariance.diagonal().mean()))
    log_density = -0.5 * (white @ white + len(e) * math.log(2 * math.pi)) - factor.diagonal().log().sum()
    return c, prior_mean, prior, float(log_density)


def _hazard(t: float) -> tuple[float, float]:
    """h = phi(t)/Phi(t), and 1 - h (t + h) without cancellation.

    References:
        The asymptotic series of Mills' ratio: Abramowitz and Stegun (1964), 26.2.12.
    """
    h = math.sqrt(2 / math.pi) / float(erfcx(-t / math.sqrt(2)))
    if t > -40:
        return h, 1 - h * (t + h)
    a = 1 / t**2
    return h, a * (1 - a * (6 - a * (50 - 518 * a)))


def _propagate(
    mean: np.ndarray,
    covariance: np.ndarray,
    bound: np.ndarray,
    noise: np.ndarray,
    side: np.ndarray,
    sweeps: int,
    tol: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sites (value, variance) of the one-sided likelihoods under the prior N(mean, covariance), and ln Z."""
    n = len(mean)
    precision, location = np.zeros(n), np.zeros(n)  # of the sites, in the coordinates f - mean
    m, s = np.zeros(n), covariance.copy()  # of the approximate posterior
    floor = _NO_PRECISION / covariance.diagonal()
    for sweep in range(sweeps):
        before_m, before_s = m.copy(), s.diagonal().copy()
        damping = 1.0 if sweep < 20 else 0.5
        for i in range(n):
            cavity_precision = max(1 / s[i, i] - precision[i], 1e-9 / s[i, i])
            cavity_variance = 1 / cavity_precision
            cavity_mean = cavity_variance * (m[i] / s[i, i] - location[i])
            total = noise[i] + cavity_variance
            t = side[i] * (cavity_mean + mean[i] - bound[i]) / math.sqrt(total)
            ratio, rest = _hazard(t)
            # Of the tilted distribution; the variance shrinks by 1 - cavity/total ratio (t + ratio).
            shrink = rest + (1 - rest) * noise[i] / total
            tilted_mean = cavity_mean + side[i] * cavity_variance * ratio / math.sqrt(total)
            new_precision = max((1 / shrink - 1) * cavity_precision, floor[i])
            new_location = tilted_mean * (new_precision + cavity_precision) - cavity_precision * cavity_mean
            step = damping * (new_precision - precision[i])
            precision[i] += step
            location[i] += damping * (new_location - location[i])
            column = s[:, i].copy()
            s -= (step / (1 + step * column[i])) * np.outer(column, column)
            m = s @ location
        # The rank-one updates gather rounding errors: once per sweep from scratch.
        root = np.sqrt(precision)
        lower = np.linalg.cholesky(np.eye(n) + root[:, None] * covariance * root)
        half = np.linalg.solve(lower, root[:, None] * covariance)
        s = covariance - half.T @ half
        s.flat[:: n + 1] = np.maximum(s.diagonal(), 1e-14 * covariance.diagonal())
        m = s @ location
        change = max(
            float(np.max(np.abs(m - before_m) / np.sqrt(before_s))), float(np.max(np.abs(s.diagonal() / before_s - 1)))
        )
        if change < tol * (_LOOSE / tol) ** max(0.0, 2 * (sweep + 1) / sweeps - 1):
            log_z = _log_z(m, s.diagonal(), lower, precision, location, bound - mean, noise, side)
            return mean + location / precision, 1 / precision, log_z
    raise FitError(
        f"expectation propagation: must converge in {sweeps} sweeps, got a last change of {change:.3g} standard "
        f"deviations with {n} censored observations. Give their noise (variances), or report this data set"
    )


def _log_z(
    m: np.ndarray,
    variance: np.ndarray,
    lower: np.ndarray,
    precision: np.ndarray,
    location: np.ndarray,
    bound: np.ndarray,
    noise: np.ndarray,
    side: np.ndarray,
) -> float:
    """ln Z of the propagation, with f - mean as coordinates.

    Written with the natural parameters, nothing of which grows where a site tells nothing: for the Gaussian family with
    log-partition function g(location, precision), ln Z = g(posterior) - g(prior) + sum_i (ln Phi(t_i) + g(cavity_i) -
    g(posterior_i)).

    Args:
        m, variance: of the approximate posterior, (n,).
        lower: Cholesky factor of 1 + precision^1/2 K precision^1/2.
        precision, location: of the sites.
        bound, noise, side: of the likelihoods.

    References:
        Minka, Expectation propagation for approximate Bayesian inference, UAI 2001, section 3.
    """
    cavity_precision = np.maximum(1 / variance - precision, 1e-9 / variance)  # as in the sweeps
    cavity_location = m / variance - location
    total = noise + 1 / cavity_precision
    t = side * (cavity_location / cavity_precision - bound) / np.sqrt(total)
    whole = 0.5 * location @ m - np.log(lower.diagonal()).sum()
    cavities = 0.5 * (cavity_location**2 / cavity_precision - np.log(cavity_precision))
    marginals = 0.5 * (m**2 / variance + np.log(variance))
    return float(whole + (log_ndtr(t) + cavities - marginals).sum())
