"""Criteria: how much a look at a candidate is worth. Pure functions of the belief; larger is better, always.

Several thresholds of a task add up; several tasks add up with their weights. Pending points and batches are no concern
of a criterion: the belief it sees has been conditioned on them. EI, PI and UCB seek an optimum, the others level sets.

References:
    Bect et al., Stat. Comput. 22 (2012) 773; Chevalier et al., Technometrics 56 (2014) 455: SUR.
    Bryan et al., NeurIPS 2005: straddle. Bichon et al. 2008: EFF. Ranjan et al. 2008. Picheny et al. 2010: tIMSE.
    Letham et al., AISTATS 2022 (arXiv:2203.09751): mutual information.
    Jones, Schonlau, Welch 1998: EI. Kushner 1964: PI. Srinivas et al. 2010; Desautels et al. 2014: UCB and its batches.
    Heinrich, Louppe, Cranmer, Espejo (excursion, 2018-21) and ATL-PHYS-PUB-2022-045: exclusion entropy (MES), PES.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr

from .. import levelset
from ..errors import InvalidStrategy
from ..levelset import ndtr

#: Numbers per array that a processor's cache holds several of.
_PAIRS = 2**16


@dataclass(frozen=True)
class Prospect:
    """What is believed at c candidates, and how a look at each would sharpen the belief at m integration points.

    Attributes:
        mean, variance: of f at the candidates, (t, c).
        noise: variance of an observation around f, (t,), or at each candidate, (t, c).
        levels: per task the transformed thresholds, (k,) each.
        weights: of the tasks, (t,).
        at_mean, at_variance: of f at the integration points, (t, m).
        at_weight: of the integration points; sums over them estimate integrals over the allowed volume, (m,).
        cross: covariance between integration points and candidates, (t, m, c).
        best: per task the incumbent, see `Target.best`, (t,); None where only level sets are sought.
        sign: +1 if the optimum is a maximum, -1 if it is a minimum.
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor
    levels: tuple[Tensor, ...]
    weights: Tensor
    at_mean: Tensor
    at_variance: Tensor
    at_weight: Tensor
    cross: Tensor
    best: Tensor | None = None
    sign: float = 1.0

    def blocks(self) -> list[slice]:
        """Slices of the candidates whose pairs with the integration points fit into a processor's cache."""
        size = max(1, _PAIRS // max(1, self.at_mean.shape[1]))
        return [slice(i, i + size) for i in range(0, self.mean.shape[1], size)]

    def correlation(self, task: int, block: slice) -> Tensor:
        """Of f at (m) with a look at (b), some of the candidates: shape (b, m), in [-1, 1]."""
        # Standard deviations first: products of variances underflow in small units.
        noise = self.noise[task] if self.noise.ndim == 1 else self.noise[task, block]
        at, seen = self.at_variance[task].sqrt(), (self.variance[task, block] + noise).sqrt()
        return (self.cross[task, :, block].mT / at).div_(seen[:, None]).clamp_(-1.0, 1.0)

    def remaining(self, task: int, block: slice) -> Tensor:
        """r = s+^2/s^2, the part of the variance that is left at (m) after a look at (b): shape (b, m), in [0, 1]."""
        return 1 - self.correlation(task, block).square_()

    def leads(self, task: int) -> list[Tensor]:
        """u = (m - T)/s at the integration points, (m,), per threshold."""
        return [levelset.standardised(self.at_mean[task], self.at_variance[task], t) for t in self.levels[task]]


class Acquisition(ABC):
    """A criterion: settings only; holds no belief and no data."""

    #: Whether the criterion needs the integration points of a `Prospect`.
    looks_ahead: ClassVar[bool]
    #: What it is a criterion for: "level set" needs thresholds, "optimum" an incumbent or a sign, "any" nothing.
    seeks: ClassVar[str]
    #: "gain": never negative, zero if a look is worth nothing; "log": logarithm of a gain; "bound": neither.
    kind: ClassVar[str]

    @abstractmethod
    def score(self, prospect: Prospect) -> Tensor:
        """The worth of each candidate, shape (c,)."""


@dataclass(frozen=True)
class SUR(Acquisition):
    """Stepwise uncertainty reduction: expected drop of the misclassified volume fraction after the look.

    Attributes:
        loss: "misclassification", E[min(p, 1-p)], the number a user understands; or "variance", E[p(1-p)].

    References:
        Bect et al. (2012); Chevalier et al. (2014), eq. 4, in Owen's form (`levelset.expected_misclassification`).
    """

    loss: str = "misclassification"
    looks_ahead: ClassVar[bool] = True
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def __post_init__(self) -> None:
        if self.loss not in ("misclassification", "variance"):
            raise InvalidStrategy(f"SUR: loss must be 'misclassification' or 'variance', got {self.loss!r}")

    def score(self, prospect: Prospect) -> Tensor:
        """Expected drop of the loss, averaged over the allowed volume."""
        if self.loss == "misclassification":
            return _misclassification_drop(prospect)
        return _integrated(prospect, lambda u: functools.partial(levelset.bernoulli_variance_drop, u))


@dataclass(frozen=True)
class MutualInformation(Acquisition):
    """Exact mutual information between the look and the class at every integration point, averaged (nats).

    References:
        Letham et al. (2022), section 3; see `levelset.mutual_information`.
    """

    looks_ahead: ClassVar[bool] = True
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """Expected drop of the class entropy, averaged over the allowed volume."""

        def information(u: Tensor) -> Callable[[Tensor], Tensor]:
            return functools.partial(levelset.mutual_information, u, series=levelset.information_series(u))

        return _integrated(prospect, information)


@dataclass(frozen=True)
class PES(Acquisition):
    """Predictive entropy search: information of the look about the class at x', averaged over x' (nats).

    H[Y(x)] - sum_j p_j(x') H[Y(x) | class j at x'], each conditional distribution replaced by the normal with its
    exact variance (truncated-normal moments). Close to `MutualInformation` unless x and x' are nearly the same point.

    References:
        The excursion package (2018-21); moments of a truncated normal: Johnson, Kotz, Balakrishnan (1994), 13.10.
    """

    looks_ahead: ClassVar[bool] = True
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """Information gain, averaged over the allowed volume."""
        total = torch.zeros_like(prospect.mean[0])
        for i, levels in enumerate(prospect.levels):
            mean, sd = prospect.at_mean[i], prospect.at_variance[i].sqrt()
            ends = torch.cat([levels.new_tensor([-math.inf]), levels, levels.new_tensor([math.inf])])
            edges = (ends - mean[:, None]) / sd[:, None]  # (m, k + 2)
            probability, variance = truncated_normal(edges[:, :-1], edges[:, 1:])
            each = (-0.5 * prospect.weights[i] * prospect.at_weight[:, None] * probability).T  # (k + 1, m)
            for block in prospect.blocks():
                shared = prospect.correlation(i, block).square_()  # of f(x') with the look
                for part, lost in zip(each, 1 - variance.T):
                    total[block] += (1 - shared * lost).clamp_min_(1e-12).log_() @ part
        return total


@dataclass(frozen=True)
class ExclusionEntropy(Acquisition):
    """Entropy of the class at the candidate itself (MES of the excursion slides), any number of thresholds (nats).

    References:
        ATL-PHYS-PUB-2022-045; the excursion package (2018-21).
    """

    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """H of the class probabilities."""
        total = torch.zeros_like(prospect.mean[0])
        for i, levels in enumerate(prospect.levels):
            p = levelset.class_probabilities(prospect.mean[i], prospect.variance[i], levels)
            total = total + prospect.weights[i] * levelset.entropy(p)
        return total


@dataclass(frozen=True)
class Straddle(Acquisition):
    """kappa s - |m - T|, for the nearest threshold.

    References:
        Bryan et al. (2005), section 3.
    """

    kappa: float = 1.96
    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "bound"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kappa) and self.kappa > 0):
            raise InvalidStrategy(f"straddle: kappa must be positive and finite, got {self.kappa!r}")

    def score(self, prospect: Prospect) -> Tensor:
        """Straddle, summed over tasks with their weights."""
        total = torch.zeros_like(prospect.mean[0])
        for i, levels in enumerate(prospect.levels):
            distance = (prospect.mean[i][:, None] - levels).abs().amin(-1)
            total = total + prospect.weights[i] * (self.kappa * prospect.variance[i].sqrt() - distance)
        return total


@dataclass(frozen=True)
class TargetedIMSE(Acquisition):
    """Drop of the integrated variance, weighted by the density of the threshold under the belief.

    References:
        Picheny et al., J. Mech. Des. 132 (2010) 071008, eqs. 11 and 17, with the Gaussian weight of width zero.
    """

    looks_ahead: ClassVar[bool] = True
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """Integral of s^2 (1 - r) times the density of T, summed over thresholds."""
        total = torch.zeros_like(prospect.mean[0])
        for i in range(len(prospect.levels)):
            density = sum((_density(u) for u in prospect.leads(i)), torch.zeros_like(prospect.at_weight))
            each = prospect.weights[i] * prospect.at_weight * prospect.at_variance[i].sqrt() * density
            for block in prospect.blocks():
                total[block] += prospect.correlation(i, block).square_() @ each
        return total


@dataclass(frozen=True)
class EAVC(Acquisition):
    """Expected absolute change of the excursion volume, 16-point Gauss-Hermite in the outcome of the look.

    The nodes see the kink of the absolute value to 2 % (median; 8 % at most on 120 random beliefs).

    References:
        Letham et al. (2022), eq. 12.
    """

    looks_ahead: ClassVar[bool] = True
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """E_y |sum_q w_q (p_q - p_q^y)|, summed over thresholds."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(16)
        weights = weights / weights.sum()
        total = torch.zeros_like(prospect.mean[0])
        for i in range(len(prospect.levels)):
            for u in prospect.leads(i):
                now = prospect.at_weight @ ndtr(u)
                for block in prospect.blocks():
                    correlation = prospect.correlation(i, block)
                    root = (1 - correlation.square()).clamp_min_(1e-12).sqrt_()
                    for z, weight in zip(nodes.tolist(), weights.tolist()):
                        then = ndtr(torch.add(u, correlation, alpha=z).div_(root)) @ prospect.at_weight
                        total[block] += prospect.weights[i] * weight * (then - now).abs()
        return total


@dataclass(frozen=True)
class EFF(Acquisition):
    """Expected feasibility E[max(epsilon - |Y - T|, 0)] with epsilon = alpha s.

    References:
        Bichon et al., AIAA J. 46 (2008) 2459, eq. 17.
    """

    alpha: float = 2.0
    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InvalidStrategy(f"EFF: alpha must be positive and finite, got {self.alpha!r}")

    def score(self, prospect: Prospect) -> Tensor:
        """Expected feasibility, the largest over thresholds, summed over tasks."""
        return _largest(prospect, self._one)

    def _one(self, u: Tensor, sd: Tensor) -> Tensor:
        a, u = self.alpha, u.abs()  # symmetric; on this side the differences are of small tails
        inside = ndtr(a - u) - ndtr(-a - u)
        odd = 2 * ndtr(-u) - ndtr(-a - u) - ndtr(a - u)
        even = 2 * _density(u) - _density(a + u) - _density(a - u)
        return sd * (u * odd - even + a * inside).clamp_min(0.0)


@dataclass(frozen=True)
class Ranjan(Acquisition):
    """Expected improvement towards a contour, E[max(epsilon^2 - (Y - T)^2, 0)] with epsilon = alpha s.

    References:
        Ranjan, Bingham, Michailidis, Technometrics 50 (2008) 527, eq. 8.
    """

    alpha: float = 1.96
    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "level set"
    kind: ClassVar[str] = "gain"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InvalidStrategy(f"Ranjan: alpha must be positive and finite, got {self.alpha!r}")

    def score(self, prospect: Prospect) -> Tensor:
        """Expected improvement, the largest over thresholds, summed over tasks."""
        return _largest(prospect, self._one)

    def _one(self, u: Tensor, sd: Tensor) -> Tensor:
        u = u.abs()  # as in EFF
        low, high = -self.alpha - u, self.alpha - u
        inside = ndtr(high) - ndtr(low)
        first, second = _density(low) - _density(high), inside + low * _density(low) - high * _density(high)
        return sd**2 * ((self.alpha**2 - u**2) * inside - 2 * u * first - second).clamp_min(0.0)


@dataclass(frozen=True)
class EI(Acquisition):
    """Expected improvement over the incumbent, E[max(f - best, 0)], or E[max(best - f, 0)] for a minimum.

    The incumbent of noisy values is the best posterior mean at a point that has been observed, not the luckiest value
    (Vazquez et al., J. Phys. Conf. Ser. 135 (2008) 012100; Picheny et al., Struct. Multidiscip. Optim. 48 (2013) 607).

    References:
        Jones, Schonlau, Welch, J. Glob. Optim. 13 (1998) 455, eq. 15.
    """

    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "optimum"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """s (phi(u) + u Phi(u)) for the lead u in standard deviations, summed over tasks."""
        u, sd = _lead(prospect), prospect.variance.sqrt()
        far = (-u).clamp_min(1.0)  # phi(u) + u Phi(u) cancels there: by the scaled complementary error function
        tail = _density(far) * (1 - math.sqrt(math.pi / 2) * far * erfcx(far / math.sqrt(2)))
        return prospect.weights @ (sd * torch.where(u < -1, tail.clamp_min(0.0), _density(u) + u * ndtr(u)))


@dataclass(frozen=True)
class PI(Acquisition):
    """Probability of improving on the incumbent, however little; it stays near the incumbent (prefer `EI`).

    References:
        Kushner, J. Basic Eng. 86 (1964) 97; Jones, J. Glob. Optim. 21 (2001) 345, section 4.2.
    """

    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "optimum"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """Phi(u) for the lead u in standard deviations, summed over tasks."""
        return prospect.weights @ ndtr(_lead(prospect))


@dataclass(frozen=True)
class UCB(Acquisition):
    """Upper confidence bound m + kappa s, or -m + kappa s for a minimum; may be negative.

    In a batch the spread shrinks with each pick while the mean stays: GP-BUCB.

    References:
        Srinivas et al., ICML 2010 (arXiv:0912.3995), eq. 6; Desautels, Krause, Burdick, JMLR 15 (2014) 4053, eq. 7.
    """

    kappa: float = 2.0
    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "optimum"
    kind: ClassVar[str] = "bound"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kappa) and self.kappa > 0):
            raise InvalidStrategy(f"UCB: kappa must be positive and finite, got {self.kappa!r}")

    def score(self, prospect: Prospect) -> Tensor:
        """The bound, summed over tasks with their weights."""
        return prospect.weights @ (prospect.sign * prospect.mean + self.kappa * prospect.variance.sqrt())


@dataclass(frozen=True)
class Sobol(Acquisition):
    """No criterion: the next points of a scrambled Sobol sequence, as a baseline."""

    looks_ahead: ClassVar[bool] = False
    seeks: ClassVar[str] = "any"
    kind: ClassVar[str] = "gain"

    def score(self, prospect: Prospect) -> Tensor:
        """Zero: the sequence decides."""
        return torch.zeros_like(prospect.mean[0])


def _lead(prospect: Prospect) -> Tensor:
    """How far the belief is ahead of the incumbent, in standard deviations, (t, c)."""
    if prospect.best is None:
        raise InvalidStrategy(
            "criterion: improvement must be over an incumbent, got none. Use a problem that seeks an optimum, or SUR"
        )
    return prospect.sign * levelset.standardised(prospect.mean, prospect.variance, prospect.best[:, None])


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


def _largest(prospect: Prospect, one: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum over tasks of the largest one(u, s) over thresholds, with the tasks' weights; shape (c,)."""
    total = torch.zeros_like(prospect.mean[0])
    for i, levels in enumerate(prospect.levels):
        sd = prospect.variance[i].sqrt()[:, None]
        u = levelset.standardised(prospect.mean[i][:, None], prospect.variance[i][:, None], levels)
        total = total + prospect.weights[i] * one(u, sd).amax(-1)
    return total


def truncated_normal(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and variance of a standard normal between a < b (either may be infinite).

    Where the interval carries less than 1e-200 of the probability its variance is given as 0: its weight is nothing.
    """
    flip = a > 0  # work in the left tail, where log_ndtr is accurate
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
    probability = (ndtr(high) - ndtr(low)).clamp_min(0.0)
    log_p = log_ndtr(high) + torch.log1p(-(log_ndtr(low) - log_ndtr(high)).exp().clamp(max=1 - 1e-16))

    def over(x: Tensor) -> tuple[Tensor, Tensor]:
        density = torch.exp(-0.5 * x**2 - 0.5 * math.log(2 * math.pi) - log_p)
        return torch.where(x.isinf(), 0.0, density), torch.where(x.isinf(), 0.0, x * density)

    (pa, xa), (pb, xb) = over(low), over(high)
    variance = (1 + xa - xb - (pa - pb) ** 2).clamp(0.0, 1.0)
    return probability, torch.where(probability > 1e-200, variance, torch.zeros_like(variance))


def _integrated(prospect: Prospect, gain: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Tensor:
    """Sum over tasks, thresholds and integration points of gain(u)(r), with their weights; shape (c,)."""
    total = torch.zeros_like(prospect.mean[0])
    for i in range(len(prospect.levels)):
        for u in prospect.leads(i):
            of_r = gain(u)
            for block in prospect.blocks():
                total[block] += prospect.weights[i] * (of_r(prospect.remaining(i, block)) @ prospect.at_weight)
    return total


def _misclassification_drop(prospect: Prospect) -> Tensor:
    """Sum of `levelset.misclassification_drop` over tasks, thresholds and integration points; shape (c,).

    A pair adds less than exp(-u^2/(2 rho^2))/2, so of most pairs only this bound is looked at. Those below e^-32 of the
    largest that any look could bring are left out: 1e-14 of the sum.
    """
    total = torch.zeros_like(prospect.mean[0])
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for i in range(len(prospect.levels)):
        for u in prospect.leads(i):
            far, weight = u.abs(), prospect.weights[i] * prospect.at_weight
            reach = far / (64 + far.min() ** 2).sqrt()
            for block in prospect.blocks():
                rho = prospect.correlation(i, block).abs_()
                candidate, at = (rho > reach).nonzero(as_tuple=True)
                found.append((candidate + block.start, far[at], rho[candidate, at], weight[at]))
                if sum(len(f[0]) for f in found) > _PAIRS // 2:
                    _add_drops(total, found)
    _add_drops(total, found)
    return total


def _add_drops(total: Tensor, found: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
    """Add the drops of pairs (candidate, |u|, |rho|, weight) to their candidates' totals; empties the list."""
    if found:
        candidate, far, rho, weight = map(torch.cat, zip(*found))
        total.index_add_(0, candidate, levelset.misclassification_drop(far, rho).mul_(weight))
        found.clear()


CRITERIA: Mapping[str, type[Acquisition]] = {
    c.__name__: c
    for c in (
        SUR,
        MutualInformation,
        PES,
        TargetedIMSE,
        EAVC,
        ExclusionEntropy,
        Straddle,
        EFF,
        Ranjan,
        EI,
        PI,
        UCB,
        Sobol,
    )
}


def acquisition_from_json(data: Mapping[str, Any]) -> Acquisition:
    """The criterion that `acquisition_to_json` wrote.

    Raises:
        InvalidStrategy: an unknown criterion; the known ones are listed.
    """
    settings = dict(data)
    name = settings.pop("type", None)
    if name not in CRITERIA:
        raise InvalidStrategy(f"criterion: must be one of {', '.join(CRITERIA)}, got {name!r}. Use one of these")
    try:
        return CRITERIA[name](**settings)
    except TypeError as error:
        raise InvalidStrategy(f"criterion {name}: settings must exist, got {settings!r} ({error})") from error


def acquisition_to_json(acquisition: Acquisition) -> dict[str, Any]:
    """Name and settings as JSON-compatible data."""
    return {"type": type(acquisition).__name__, **asdict(acquisition)}  # type: ignore[call-overload]
