"""Where evaluations succeed: the probability that one at u gives values, from the points that did and did not.

The label of a point is 1 if it has values, -1 if it failed. P(success at u) = Phi(f(u)); the Gaussian process f is a
constant, known from the data alone, plus a function of u. Failures by chance are explained by the constant, a region in
which programs crash by the function; the evidence decides between them.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): sections 3.3 and 3.6, eqs. 3.58, 3.65, 3.82.
    Kuss and Rasmussen, J. Mach. Learn. Res. 6 (2005) 1679: expectation propagation is the accurate choice.
    Gelbart, Snoek and Adams, UAI 2014 (arXiv:1403.5607): a criterion times the probability that it can be had.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.special import erfcx, log_ndtr, ndtr
from torch import Tensor

from .data import FINISHED, INFORMATIVE, Trial
from .errors import FitError
from .space import ParameterSpace
from .surrogate.exact import AKAIKE, Kernel

#: Variance of the constant: its prior allows every success rate alike (1 would be uniform in P).
CONSTANT = 1.0
#: Points that failed are not tried again where success is less likely than this.
HOPELESS = 0.25
#: Of the function: edges are sharp or round, and smoother than those of a Matern 3/2.
KERNEL = "matern52"
#: Standard deviations of the function that are weighed against one another, and against none (chance alone).
AMPLITUDES = (1.0, 3.0, 10.0)
#: Length scales for d = 1 where the search starts; the standard deviation of the prior on their logarithms.
LENGTHS, SPREAD = (0.15, 0.5, 1.5), 1.0
#: Metrics tilt in at most so many dimensions.
TILTED = 6
#: Labels that the hyperparameters are found with, and labels that the belief is made of.
FEW, MOST = 48, 200
#: So many places are weighed against chance in the end; what weighs less than this part of the heaviest is left out.
PLACES, LEAST = 2, 0.1
#: Of expectation propagation: passes, and the change of means (in prior standard deviations) and relative variances.
#: While length scales are sought the change may be `ROUGH`.
SWEEPS, TOLERANCE, ROUGH = 200, 1e-4, 1e-2


@dataclass(frozen=True)
class Viability:
    """The probability of success: a mixture of probit Gaussian processes, or a constant.

    Attributes:
        parts: the processes; none if nothing has failed.
        weights: of the parts, (p,).
    """

    parts: tuple[_Probit, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def sure(self) -> bool:
        """Nothing has failed: P = 1 everywhere."""
        return not self.parts

    @torch.no_grad()
    def __call__(self, u: Tensor) -> Tensor:
        """P(an evaluation at u succeeds), for u (n, d) in the unit cube: (n,), at least 1e-9."""
        if self.sure:
            return torch.ones(len(u), dtype=torch.float64)
        points = u.numpy()
        total = sum(w * part(points) for w, part in zip(self.weights, self.parts))
        return torch.from_numpy(np.asarray(total)).clamp_(1e-9, 1.0)


#: Every evaluation succeeds.
ALWAYS = Viability()


@dataclass(frozen=True)
class Point:
    """All trials of one point at one fidelity, by number."""

    trials: tuple[Trial, ...]

    @property
    def label(self) -> int:
        """1: has values; -1: has failed, so far or for good; 0: pending."""
        states = {t.state for t in self.trials}
        if states & set(INFORMATIVE):
            return 1
        return -1 if states & {"failed", "invalid"} else 0

    @property
    def pending(self) -> bool:
        """Values may come back: one of the trials has not ended."""
        return any(t.pending for t in self.trials)


def by_point(trials: Sequence[Trial]) -> list[Point]:
    """The points of a history with their trials, in the order in which they were asked first."""
    found: dict[tuple[object, ...], list[Trial]] = {}
    for t in sorted(trials, key=lambda t: t.number):
        found.setdefault((t.fidelity, *sorted(t.x.items())), []).append(t)
    return [Point(tuple(own)) for own in found.values()]


def to_retry(
    trials: Sequence[Trial],
    retries: int,
    viable: Callable[[Sequence[Mapping[str, float]]], Tensor],
    wait: bool = True,
) -> list[Trial]:
    """The last trial of each point that is to be asked again now.

    A point without values that failed k <= retries times, and not for good, is asked again once 2^(k - 1) trials asked
    after its last one have ended: a trouble of the moment (a node, a licence) may be over then. This counts which
    trials have ended, not in what order or when. Where most points fail (P < `HOPELESS`) another attempt is a waste.

    Args:
        trials: the history.
        retries: largest number of further attempts.
        viable: the probability of success at points in physical units.
        wait: False: at once.
    """
    ended = [t.number for t in trials if t.state in FINISHED]
    waiting = []
    for point in by_point(trials) if retries else ():
        last, states = point.trials[-1], [t.state for t in point.trials]
        again = point.label < 0 and not point.pending and "invalid" not in states
        failures = states.count("failed")
        patience = 2 ** (failures - 1) if wait else 0
        if again and failures <= retries and sum(n > last.number for n in ended) >= patience:
            waiting.append(last)
    return [t for t, p in zip(waiting, viable([t.x for t in waiting])) if p >= HOPELESS] if waiting else []


def viability(space: ParameterSpace, trials: Sequence[Trial]) -> Viability:
    """The probability of success, given a history.

    Args:
        space: of the trials.
        trials: the history.

    Raises:
        FitError: expectation propagation did not converge.
    """
    known = [(p.trials[0].x, label) for p in by_point(trials) if (label := p.label)]
    y = np.array([label for _, label in known], dtype=float)
    if not (y < 0).any():
        return ALWAYS
    u = space.to_unit(space.tensor([x for x, _ in known])).numpy()
    return _remembered(len(y), u.tobytes(), y.tobytes())


@functools.lru_cache(maxsize=16)
def _remembered(n: int, u: bytes, y: bytes) -> Viability:
    return fit(np.frombuffer(u).reshape(n, -1), np.frombuffer(y))


def fit(u: np.ndarray, y: np.ndarray) -> Viability:
    """The probability of success from labels.

    Length scales, and tilts of the metric (see `surrogate.evidence`), are sought with the evidence of expectation
    propagation and a log-normal prior, one after the other; amplitudes are weighed by it. A regression of the labels
    would be quicker, and ends in maxima that follow single labels.

    Beyond `FEW` labels these are found with some of them, at most half from the rarer class. Beyond `MOST` the belief
    is made of those where a first look finds the outcome most open, and as many from everywhere.

    Args:
        u: points in the unit cube, (n, d).
        y: labels, 1 or -1, (n,).

    Raises:
        FitError: expectation propagation did not converge.
    """
    some = _stratified(y, FEW)
    chance, *others = _weighed(u[some], y[some])
    found = [chance, *sorted(others, key=lambda e: -e.weight)[:PLACES]]
    if len(y) > FEW:
        telling = np.arange(len(y))
        if len(y) > MOST:
            first = _mixture(found)(torch.tensor(u)).numpy()
            unsure = np.argsort(np.abs(first - 0.5), kind="stable")[: MOST // 2]
            rest = np.setdiff1d(telling, unsure)
            telling = np.sort(np.concatenate([unsure, rest[_evenly(len(rest), MOST - len(unsure))]]))
        found = [e.told(u[telling], y[telling]) for e in found]
    return _mixture(found)


@dataclass(frozen=True, eq=False)
class _Explanation:
    """A process with its log prior probability and its log evidence."""

    process: _Probit
    prior: float
    evidence: float

    @property
    def weight(self) -> float:
        """Log posterior probability, up to a constant."""
        return self.prior + self.evidence

    def told(self, u: np.ndarray, y: np.ndarray) -> _Explanation:
        """The same explanation of other labels."""
        return _explained(u, y, self.process.metric, self.process.amplitude, self.prior)


def _mixture(found: Sequence[_Explanation]) -> Viability:
    heaviest = max(e.weight for e in found)
    kept = [e for e in found if e.weight > heaviest + math.log(LEAST)]
    weights = np.exp([e.weight - heaviest for e in kept])
    return Viability(tuple(e.process for e in kept), tuple((weights / weights.sum()).tolist()))


def _evenly(n: int, k: int) -> np.ndarray:
    """At most k of the indices 0 ... n - 1, evenly spaced."""
    return np.linspace(0, n - 1, min(n, k)).round().astype(int)


def _stratified(y: np.ndarray, k: int) -> np.ndarray:
    """Indices of at most k labels, ascending: up to half of the rarer class, the others of the other."""
    if len(y) <= k:
        return np.arange(len(y))
    rare, common = sorted((np.flatnonzero(y < 0), np.flatnonzero(y > 0)), key=len)
    few = rare[_evenly(len(rare), k // 2)]
    return np.sort(np.concatenate([few, common[_evenly(len(common), k - len(few))]]))


def _weighed(u: np.ndarray, y: np.ndarray) -> list[_Explanation]:
    """Chance first, then what place may explain."""
    n, d = u.shape
    found = [_explained(u, y, np.zeros((d, d)), 0.0, 0.0)]
    if not (y > 0).any():
        return found

    def placed(
        scales: np.ndarray, tilt: np.ndarray, amplitude: float = AMPLITUDES[1], tolerance: float = ROUGH
    ) -> _Explanation:
        metric = (np.eye(d) + tilt) / np.exp(scales)[:, None]
        t = (scales - math.log(0.5 * math.sqrt(d))) / SPREAD
        prior = -0.5 * (t @ t) - 0.5 * (tilt * tilt).sum() - AKAIKE * (0.5 * d + np.count_nonzero(tilt))
        return _explained(u, y, metric, amplitude, float(prior) - math.log(len(AMPLITUDES)), tolerance)

    none, axes = np.zeros((d, d)), np.eye(d)
    tries = [np.full(d, math.log(length * math.sqrt(d))) for length in LENGTHS]
    scales = max(tries, key=lambda s: placed(s, none).weight)
    plain = tilted = _climbed(scales, lambda s: placed(s, none).weight, axes)
    tilt = none
    if 2 <= d <= TILTED and n >= 2 * d:
        pairs = [np.outer(axes[i], axes[j]) for i in range(d) for j in range(i)]
        for pair in pairs:  # one after the other; a difference of two parameters has -1
            steps = [tilt + w * pair for w in (0.0, -1.0, -0.5, 0.5, 1.0)]
            tilt = max(steps, key=lambda w: placed(plain, w).weight)
        if tilt.any():
            tilted = _climbed(plain, lambda s: placed(s, tilt).weight, axes)
    shapes = [(plain, none), (tilted, tilt)] if tilt.any() else [(plain, none)]
    return found + [placed(s, w, amplitude, TOLERANCE) for s, w in shapes for amplitude in AMPLITUDES]


def _climbed(start: np.ndarray, height: Callable[[np.ndarray], float], axes: np.ndarray) -> np.ndarray:
    """A better point by steps along one axis at a time, coarse ones, then finer ones."""
    best, value = start, height(start)
    for step in (1.2, 0.6, 0.3):
        for axis in axes:
            for sign in (1.0, -1.0):
                while (there := height(best + sign * step * axis)) > value:
                    best, value = best + sign * step * axis, there
    return best


@dataclass(frozen=True, eq=False)
class _Probit:
    """A probit Gaussian process after expectation propagation.

    Attributes:
        u: points with labels, (n, d).
        metric: distances are taken in metric @ u, (d, d).
        amplitude: prior standard deviation of the function; the constant's variance is `CONSTANT`.
        root: square roots of the sites' precisions, (n,).
        factor: L of 1 + root K root, (n, n).
        alpha: the mean at u' is k(u', u) alpha, (n,).
    """

    u: np.ndarray
    metric: np.ndarray
    amplitude: float
    root: np.ndarray
    factor: np.ndarray
    alpha: np.ndarray

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """P(success) at u (m, d), eq. 3.82 of Rasmussen and Williams."""
        out = np.empty(len(u))
        for i in range(0, len(u), 2048):
            k = _kernel(u[i : i + 2048], self.u, self.metric, self.amplitude)
            half = scipy.linalg.solve_triangular(self.factor, self.root[:, None] * k.T, lower=True, check_finite=False)
            variance = self.amplitude**2 + CONSTANT - np.square(half).sum(0)
            out[i : i + 2048] = ndtr(k @ self.alpha / np.sqrt(1 + np.maximum(variance, 0.0)))
        return out


def _kernel(a: np.ndarray, b: np.ndarray, metric: np.ndarray, amplitude: float) -> np.ndarray:
    """Prior covariance of the latent value, (n, m)."""
    if amplitude == 0:
        return np.full((len(a), len(b)), CONSTANT)
    correlation = Kernel(KERNEL, torch.from_numpy(metric), torch.ones(1, dtype=torch.float64))
    return CONSTANT + amplitude**2 * correlation(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _explained(
    u: np.ndarray, y: np.ndarray, metric: np.ndarray, amplitude: float, prior: float, tolerance: float = TOLERANCE
) -> _Explanation:
    """Expectation propagation, all sites at once.

    A step of .8 of the way converges in some twenty passes; a full one may swing for ever where many labels near a
    sharp boundary pull together.

    Raises:
        FitError: no convergence.
    """
    n = len(y)
    covariance = _kernel(u, u, metric, amplitude)
    diagonal = covariance.diagonal()
    precision, location = np.zeros(n), np.zeros(n)  # of the sites
    mean, variance = np.zeros(n), diagonal.copy()
    for sweep in range(SWEEPS):
        cavity_variance = 1 / (1 / variance - precision)
        cavity_mean = cavity_variance * (mean / variance - location)
        total = np.sqrt(1 + cavity_variance)
        t = y * cavity_mean / total
        hazard = math.sqrt(2 / math.pi) / erfcx(-t / math.sqrt(2))
        tilted_variance = cavity_variance - cavity_variance**2 / total**2 * hazard * (t + hazard)
        tilted_mean = cavity_mean + y * cavity_variance * hazard / total
        step = 1.0 if sweep == 0 else 0.8 if sweep < 15 else 0.5 if sweep < 80 else 0.2
        new = np.maximum(1 / tilted_variance - 1 / cavity_variance, 1e-12)
        location = location + step * (
            tilted_mean * (new + 1 / cavity_variance) - cavity_mean / cavity_variance - location
        )
        precision = precision + step * (new - precision)
        root = np.sqrt(precision)
        factor = np.linalg.cholesky(np.eye(n) + root[:, None] * covariance * root)
        half = scipy.linalg.solve_triangular(factor, root[:, None] * covariance, lower=True, check_finite=False)
        before_mean, before = mean, variance
        variance = np.maximum(diagonal - np.square(half).sum(0), 1e-12 * diagonal)
        mean = covariance @ location - half.T @ (half @ location)
        change = max(np.abs(mean - before_mean).max() / math.sqrt(before.max()), np.abs(variance / before - 1).max())
        if change < tolerance:
            break
    else:
        raise FitError(
            f"viability: expectation propagation must converge in {SWEEPS} sweeps, got a last change of {change:.3g} "
            f"with {n} labels. Report this data set"
        )
    # Eq. 3.65 with the sites' normalisation put in; no division by a site's precision, which may vanish.
    cavity_precision = 1 / variance - precision
    cavity_variance = 1 / cavity_precision
    cavity_mean = cavity_variance * (mean / variance - location)
    sites = 1 + precision * cavity_variance
    value = log_ndtr(y * cavity_mean / np.sqrt(1 + cavity_variance)).sum() + 0.5 * np.log(sites).sum()
    value += (
        0.5 * ((cavity_mean**2 * precision - 2 * cavity_mean * location - cavity_variance * location**2) / sites).sum()
    )
    value += 0.5 * location @ mean - np.log(factor.diagonal()).sum()
    solved = scipy.linalg.cho_solve((factor, True), root * (covariance @ location), check_finite=False)
    process = _Probit(u, metric, amplitude, root, factor, location - root * solved)
    return _Explanation(process, prior, float(value))
