"""The search for the best batch: candidates, integration points, greedy joint selection, Poisson discs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.special import log_ndtr

from .. import levelset
from ..errors import InvalidStrategy, ShapeError, SpaceExhausted
from ..space import ParameterSpace
from ..surrogate import Posterior
from .criteria import Acquisition, Prospect


@dataclass(frozen=True)
class Target:
    """What is sought, as the surrogate sees it: level sets, or an optimum.

    Attributes:
        levels: per task the transformed thresholds, (k,); empty ones where an optimum is sought.
        weights: of the tasks, (t,).
        best: per task the incumbent of the search for an optimum, see `incumbent`, (t,); None for level sets.
        sign: +1 seeks a maximum, -1 a minimum.
    """

    levels: tuple[Tensor, ...]
    weights: Tensor
    best: Tensor | None = None
    sign: float = 1.0

    def log_interest(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Logarithm of `interest`, finite where that underflows."""
        terms = [torch.full_like(mean[0], -math.inf)]
        for i, log_weight in enumerate(self.weights.log()):
            if self.best is not None:
                u = self.sign * levelset.standardised(mean[i], variance[i], self.best[i])
                terms.append(log_weight + log_ndtr(u))
                continue
            for level in self.levels[i]:
                u = levelset.standardised(mean[i], variance[i], level)
                terms.append(log_weight + log_ndtr(u) + log_ndtr(-u))
        return torch.stack(terms).logsumexp(0)

    def interest(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Where the search should look, shape (n,), for mean and variance (t, n).

        Weighted sum over tasks and thresholds of p(1-p); for an optimum, of the probability of beating the incumbent.
        """
        return self.log_interest(mean, variance).exp()

    def after(self, mean: Tensor) -> Target:
        """The target when a point of this mean (t,) is added to those observed: the incumbent may be another."""
        if self.best is None:
            return self
        return replace(self, best=self.sign * torch.maximum(self.sign * self.best, self.sign * mean))


@torch.no_grad()
def incumbent(posterior: Posterior, observed: Tensor, sign: float = 1.0) -> Tensor:
    """Per task the best posterior mean at observed points (n, d), shape (t,): no lucky noise, unlike the best value.

    References:
        Vazquez et al., J. Phys. Conf. Ser. 135 (2008) 012100.
    """
    return sign * (sign * posterior.marginal(observed)[0]).amax(1)


@dataclass(frozen=True)
class Search:
    """Settings of the search.

    Attributes:
        batch: "joint" (greedy, each point conditioned on those before), "poisson-disc" (points drawn with
            probability proportional to the score, at a distance from one another; what ATLAS used) or "top" (the n
            best, however close).
        pool: space-filling points that candidates and integration points are drawn from; None grows with the dimension.
        candidates: how many are scored per pick.
        integration: how many points the look-ahead criteria average over.
        polish: rounds of local search around the best candidates.
    """

    batch: Literal["joint", "poisson-disc", "top"] = "joint"
    pool: int | None = None
    candidates: int = 256
    integration: int = 384
    polish: int = 2

    def __post_init__(self) -> None:
        if self.batch not in ("joint", "poisson-disc", "top"):
            raise InvalidStrategy(f"search: batch must be joint, poisson-disc or top, got {self.batch!r}")
        sizes = (self.pool if self.pool is not None else 64, self.candidates, self.integration)
        if min(sizes) < 16 or self.polish < 0:
            raise InvalidStrategy(f"search: pool, candidates and integration must be at least 16, got {self}")

    def pool_size(self, d: int) -> int:
        """Points of the pool in d dimensions."""
        return self.pool if self.pool is not None else (2048, 4096, 8192)[min(d, 3) - 1] if d < 4 else 16384

    def to_json(self) -> dict[str, Any]:
        """Settings as JSON-compatible data."""
        return asdict(self)


def integration_set(interest: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices into the pool and weights, both (n,): importance sampling near the band, with a uniform part.

    A pool of no more than n points is taken whole.

    sum_i weight_i g(u_i) is an unbiased estimate of the mean of g over the pool. A uniform set of some hundred points
    misses the band altogether in four dimensions.
    """
    uniform = torch.full_like(interest, 1 / len(interest))
    if len(interest) <= n:
        return torch.arange(len(interest)), uniform
    total = interest.sum()
    density = 0.85 * interest / total + 0.15 * uniform if total > 1e-12 * len(interest) else uniform
    # Systematic sampling: one uniform number, low variance.
    ticks = (torch.arange(n, dtype=interest.dtype) + torch.rand((), generator=generator, dtype=interest.dtype)) / n
    index = torch.searchsorted(density.cumsum(0).contiguous(), ticks).clamp_max(len(interest) - 1)
    return index, uniform[index] / density[index] / n


@torch.no_grad()
def select(
    acquisition: Acquisition,
    posterior: Posterior,
    space: ParameterSpace,
    target: Target,
    n: int,
    *,
    seed: int,
    taken: Tensor,
    search: Search | None = None,
    among: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The best batch of n points, a function of its arguments and nothing else.

    Args:
        acquisition: the criterion.
        posterior: the belief, conditioned on pending points.
        space: where points are allowed; every candidate is allowed and snapped to its steps before it is scored.
        target: what is sought.
        n: size of the batch.
        seed: of candidates and integration points.
        taken: points asked before, (k, d); never proposed again where the space is quantised.
        search: settings.
        among: search these points (m, d) only, a table of known simulations, say: candidates and integration points
            are rows of it, unchanged, and nothing else is proposed. Whether ``space`` allows them is not looked at.

    Returns:
        Points (n, d) in the unit cube and their scores (n,).

    Raises:
        SpaceExhausted: fewer than n allowed points are left.
        ShapeError: ``among`` is not of shape (m, d).
        InvalidStrategy: a criterion for level sets in a search for an optimum, or the reverse.
    """
    search = search or Search()
    generator = torch.Generator().manual_seed(seed % 2**63)
    gap, polish = SEPARATION, search.polish
    if among is None:
        pool = space.sample(0, search.pool_size(space.dim), seed % 2**31)
    else:
        if among.ndim != 2 or among.shape[1] != space.dim or not len(among):
            raise ShapeError(f"search: among must have shape (m, {space.dim}) with m > 0, got {tuple(among.shape)}")
        pool, gap, polish = _distinct(among), 1e-9, 0
    interest = target.interest(*posterior.marginal(pool))
    index, weight = integration_set(interest, search.integration if acquisition.looks_ahead else 0, generator)
    at = pool[index]

    if acquisition.seeks not in ("any", "level set" if target.best is None else "optimum"):
        raise InvalidStrategy(
            f"search: the criterion must fit what is sought, {'level sets' if target.best is None else 'an optimum'}, "
            f"got {acquisition}. Use {'SUR' if target.best is None else 'EI'}, say"
        )

    if search.batch == "poisson-disc":
        free = _distinct(pool[_not_taken(pool, taken, gap)])
        if len(free) < n:
            raise _exhausted(n, len(free))
        worth = torch.cat(
            [
                acquisition.score(_Field.of(posterior, c, at).prospect(posterior.noise, target, weight, slice(None)))
                for c in free.split(2048)
            ]
        )
        chosen = poisson_disc(free, worth, taken, n, generator)
        return free[chosen], worth[chosen]

    size = search.candidates + 8 * n
    candidates = _candidates(pool, interest, _not_taken(pool, taken, gap), size, generator)
    if (
        among is None and len(candidates) < 2 * n
    ):  # a coarse lattice, nearly used up: everything that is left, or SpaceExhausted
        gap = 1e-9
        left = space.sample(0, len(taken) + n, seed % 2**31, distinct=True)
        candidates = left[_not_taken(left, taken, gap)]
    if len(candidates) < n:
        raise _exhausted(n, len(candidates))
    field = _Field.of(posterior, candidates, at)

    def score(f: _Field, i: Tensor | slice = slice(None)) -> Tensor:
        return acquisition.score(f.prospect(posterior.noise, target, weight, i))

    stale = score(field)
    picks: list[Tensor] = []
    scores: list[Tensor] = []
    while len(picks) < n:
        if search.batch == "joint" and picks:
            best, value, stale = _lazy_argmax(stale, functools.partial(score, field))
        else:
            best = int(stale.argmax())
            value = stale[best]
        pick = candidates[best]
        for shrink in range(polish):
            fresh = torch.cat([taken, *(p[None] for p in picks)])
            near = _around(
                candidates[_top(stale, best, 5)] if shrink == 0 else pick[None], space, fresh, shrink, generator
            )
            if len(near):
                worth = score(_Field.of(posterior, near, at))
                if worth.max() > value:
                    pick, value = near[worth.argmax()], worth.max()
        picks.append(pick)
        scores.append(value)
        stale = torch.where(_not_taken(candidates, pick[None], gap), stale, -math.inf)
        if stale.isneginf().all() and len(picks) < n:
            raise _exhausted(n, len(picks))
        if search.batch == "joint" and len(picks) < n:
            field = field.after(posterior, pick)
            target = target.after(posterior.marginal(pick[None])[0][:, 0])
            posterior = posterior.condition(pick[None])
    return torch.stack(picks), torch.stack(scores)


@dataclass(frozen=True)
class _Field:
    """The belief at candidates and integration points, cheap to update after a pick (rank-one downdates)."""

    candidates: Tensor
    at: Tensor
    mean: Tensor
    variance: Tensor
    at_mean: Tensor
    at_variance: Tensor
    cross: Tensor

    @classmethod
    def of(cls, posterior: Posterior, candidates: Tensor, at: Tensor) -> _Field:
        """Evaluate the belief; without integration points for criteria that do not look ahead."""
        mean, variance = posterior.marginal(candidates)
        at_mean, at_variance = posterior.marginal(at) if len(at) else (mean[:, :0], mean[:, :0])
        cross = posterior.cross(at, candidates) if len(at) else mean[:, None, :][:, :0]
        return cls(candidates, at, mean, variance, at_mean, at_variance, cross)

    def prospect(self, noise: Tensor, target: Target, weight: Tensor, i: Tensor | slice) -> Prospect:
        """What a criterion sees of the candidates i."""
        return Prospect(
            self.mean[:, i],
            self.variance[:, i],
            noise,
            target.levels,
            target.weights,
            self.at_mean,
            self.at_variance,
            weight,
            self.cross[:, :, i],
            target.best,
            target.sign,
        )

    def after(self, posterior: Posterior, pick: Tensor) -> _Field:
        """The same field when an observation at ``pick`` (d,) is expected; ``posterior`` is the belief before."""
        row = posterior.cross(pick[None], torch.cat([self.at, self.candidates]))[:, 0]
        seen = posterior.marginal(pick[None])[1][:, 0] + posterior.noise
        at, candidates = row[:, : len(self.at)], row[:, len(self.at) :]
        return replace(
            self,
            variance=(self.variance - candidates**2 / seen[:, None]).clamp_min(1e-300),
            at_variance=(self.at_variance - at**2 / seen[:, None]).clamp_min(1e-300),
            cross=self.cross - at[:, :, None] * candidates[:, None, :] / seen[:, None, None],
        )


def _lazy_argmax(stale: Tensor, fresh: Callable[[Tensor], Tensor], chunk: int = 64) -> tuple[int, Tensor, Tensor]:
    """Index and value of the largest fresh score, computed only where the stale one could still be the largest.

    Conditioning on a pick makes the other points less worth, as a rule, so stale scores are upper bounds (Minoux 1978,
    lazy greedy). Up to ``chunk`` candidates this is the full search.
    """
    order = stale.argsort(descending=True)
    updated = stale.clone()
    best, seen = -math.inf, order[:0]
    for i in order.split(chunk):
        if float(stale[i[0]]) <= best:
            break
        updated[i] = torch.where(stale[i].isneginf(), stale[i], fresh(i))
        best = max(best, float(updated[i].max()))
        seen = torch.cat([seen, i])
    winner = int(seen[updated[seen].argmax()])
    return winner, updated[winner], updated


def _top(score: Tensor, best: int, n: int) -> Tensor:
    """Indices of the n best scores, ``best`` among them."""
    return torch.unique(torch.cat([score.topk(min(n, len(score))).indices, torch.tensor([best])]))


def _distinct(u: Tensor) -> Tensor:
    """The rows without repetitions (snapped pools have many), sorted."""
    return torch.unique(u, dim=0)


#: Points nearer to one another than this (in each coordinate of the cube) are one point for the search: another look
#: there teaches nothing new, and covariances of near-duplicates are close to singular.
SEPARATION = 3e-4


def _not_taken(u: Tensor, taken: Tensor, gap: float = SEPARATION) -> Tensor:
    """Mask of the points that are not one of those asked before."""
    if not len(taken):
        return torch.ones(len(u), dtype=torch.bool)
    return torch.cdist(u, taken, p=math.inf, compute_mode="donot_use_mm_for_euclid_dist").amin(1) > gap


def _exhausted(n: int, found: int) -> SpaceExhausted:
    return SpaceExhausted(
        f"search: needs {n} allowed points, got {found} that have not been asked. Use a finer step or a smaller batch"
    )


def _candidates(pool: Tensor, interest: Tensor, free: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Part of the free pool: one third anywhere, two thirds drawn with probability proportional to the interest."""
    keys = torch.rand(2, len(pool), generator=generator, dtype=pool.dtype).clamp_min(1e-300)[:, free]
    pool, interest = pool[free], interest[free]
    if not len(pool):
        return pool
    anywhere = keys[0].topk(min(n // 3, len(pool))).indices
    # Weighted sampling without replacement (Efraimidis and Spirakis 2006): largest log(uniform)/weight.
    near = (keys[1].log() / (interest + 1e-9 * interest.max() + 1e-300)).topk(min(n - n // 3, len(pool))).indices
    return pool[torch.unique(torch.cat([anywhere, near]))]


def _around(centres: Tensor, space: ParameterSpace, taken: Tensor, shrink: int, generator: torch.Generator) -> Tensor:
    """Allowed points scattered around the centres (k, d), 64 in all, ever nearer from round to round."""
    width = 0.08 / 5**shrink
    steps = torch.randn(len(centres), 64 // len(centres), space.dim, generator=generator, dtype=centres.dtype)
    u = space.snap((centres[:, None, :] + width * steps).clamp(0.0, 1.0).reshape(-1, space.dim))
    u = u[space.allowed_unit(u)]
    return u[_not_taken(u, taken)]


def poisson_disc(points: Tensor, score: Tensor, taken: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices of n points drawn with probability proportional to a non-negative score, apart from one another.

    The distance starts at that of n points on a lattice of the whole cube and shrinks by 0.8 until n points fit;
    points asked before keep the same distance. Points without score are used only if there are too few others.

    Raises:
        SpaceExhausted: fewer than n points.

    References:
        Bridson, SIGGRAPH 2007 (discs); Efraimidis and Spirakis, Inf. Process. Lett. 97 (2006) 181 (weighted order).
    """
    if len(points) < n:
        raise SpaceExhausted(f"Poisson disc: needs {n} points, got {len(points)}. Use a finer step or a smaller batch")
    weight = score.clamp_min(0.0) + 1e-12 * score.abs().max() + 1e-300
    keys = torch.rand(len(points), generator=generator, dtype=points.dtype).clamp_min(1e-300).log() / weight
    order = keys.argsort(descending=True)
    worth = weight[order] > 1e-6 * weight.max()
    ranked = order[worth if worth.sum() >= n else slice(None)].tolist()
    radius = n ** (-1 / points.shape[1])
    while True:
        accepted: list[int] = []
        others = taken
        for i in ranked:
            if len(others) and (others - points[i]).square().sum(1).min().sqrt() < radius:
                continue
            accepted.append(i)
            others = torch.cat([others, points[i : i + 1]])
            if len(accepted) == n:
                return torch.tensor(accepted)
        radius = radius * 0.8 if radius > 1e-6 else -1.0
