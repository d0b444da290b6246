"""The search for the best batch: candidates, integration points, greedy joint selection, Poisson discs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import levelset
from ..errors import InvalidStrategy, SpaceExhausted
from ..space import ParameterSpace
from ..surrogate import Posterior
from .criteria import Acquisition, Prospect


@dataclass(frozen=True)
class Target:
    """What is sought, as the surrogate sees it: transformed thresholds (k,) and weights per task."""

    levels: tuple[Tensor, ...]
    weights: Tensor

    def interest(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Weighted sum over tasks and thresholds of p(1-p), shape (n,), for mean and variance (t, n)."""
        total = torch.zeros_like(mean[0])
        for i, levels in enumerate(self.levels):
            for level in levels:
                p = levelset.excursion_probability(mean[i], variance[i], level)
                total = total + self.weights[i] * p * (1 - p)
        return total


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
    """Indices (n,) into the pool and weights (n,): importance sampling near the band, with a uniform part.

    sum_i weight_i g(u_i) is an unbiased estimate of the mean of g over the pool. A uniform set of some hundred points
    misses the band altogether in four dimensions.
    """
    uniform = torch.full_like(interest, 1 / len(interest))
    total = interest.sum()
    density = 0.85 * interest / total + 0.15 * uniform if total > 1e-12 * len(interest) else uniform
    # Systematic sampling: one uniform number, low variance.
    ticks = (
        torch.arange(n, dtype=interest.dtype) + torch.rand((), generator=generator, dtype=interest.dtype)
    ) / n
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

    Returns:
        Points (n, d) in the unit cube and their scores (n,).

    Raises:
        SpaceExhausted: fewer than n allowed points are left.
    """
    search = search or Search()
    generator = torch.Generator().manual_seed(seed % 2**63)
    pool = space.sample(0, search.pool_size(space.dim), seed % 2**31)
    interest = target.interest(*posterior.marginal(pool))
    index, weight = integration_set(interest, search.integration, generator)
    at = pool[index]

    if search.batch == "poisson-disc":
        score = _score(acquisition, posterior, target, pool, at, weight)
        free = _not_taken(pool, taken)
        chosen = poisson_disc(pool[free], score[free], taken, n, generator)
        return pool[free][chosen], score[free][chosen]

    picks, scores = [], []
    while len(picks) < n:
        candidates = _candidates(
            pool, target.interest(*posterior.marginal(pool)), taken, search.candidates, generator
        )
        score = _score(acquisition, posterior, target, candidates, at, weight)
        for shrink in range(search.polish):
            near = _around(candidates, score, space, taken, 0.08 / 4**shrink, generator)
            if len(near):
                candidates = torch.cat([candidates, near])
                score = torch.cat([score, _score(acquisition, posterior, target, near, at, weight)])
        count = n if search.batch == "top" else 1
        best = _distinct(candidates, score, count)
        if not len(best):
            left = space.sample(0, len(taken) + n, seed % 2**31, distinct=True)  # raises SpaceExhausted
            candidates = left[_not_taken(left, taken)]
            score = _score(acquisition, posterior, target, candidates, at, weight)
            best = _distinct(candidates, score, count)
            if not len(best):
                raise SpaceExhausted(
                    f"search: needs {n - len(picks)} more allowed points, got none that has not been asked. "
                    "Use a finer step or stop here"
                )
        for b in best[: n - len(picks)].tolist():
            picks.append(candidates[b])
            scores.append(score[b])
        chosen = torch.stack(picks[-len(best) :])
        taken = torch.cat([taken, chosen])
        if len(picks) < n:
            posterior = posterior.condition(chosen)
    return torch.stack(picks), torch.stack(scores)


def _score(
    acquisition: Acquisition,
    posterior: Posterior,
    target: Target,
    candidates: Tensor,
    at: Tensor,
    weight: Tensor,
) -> Tensor:
    """Scores (c,) of the candidates (c, d); in chunks, so that memory stays below about 100 MB per task."""
    if not acquisition.looks_ahead:
        at, weight = at[:0], weight[:0]
    at_mean, at_variance = posterior.marginal(at) if len(at) else (torch.zeros(0), torch.zeros(0))
    parts = []
    for c in candidates.split(2048):
        mean, variance = posterior.marginal(c)
        cross = posterior.cross(at, c) if len(at) else torch.zeros(0)
        parts.append(
            acquisition.score(
                Prospect(
                    mean,
                    variance,
                    posterior.noise,
                    target.levels,
                    target.weights,
                    at_mean,
                    at_variance,
                    weight,
                    cross,
                )
            )
        )
    return torch.cat(parts)


def _not_taken(u: Tensor, taken: Tensor) -> Tensor:
    """Mask of the points that have not been asked, to 1e-9 of the cube."""
    if not len(taken):
        return torch.ones(len(u), dtype=torch.bool)
    return torch.cdist(u, taken, p=math.inf, compute_mode="donot_use_mm_for_euclid_dist").amin(1) > 1e-9


def _candidates(pool: Tensor, interest: Tensor, taken: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Part of the pool: one third anywhere, two thirds drawn with probability proportional to the interest."""
    keys = torch.rand(2, len(pool), generator=generator, dtype=pool.dtype).clamp_min(1e-300)
    anywhere = keys[0].topk(min(n // 3, len(pool))).indices
    # Weighted sampling without replacement (Efraimidis and Spirakis 2006): largest log(uniform)/weight.
    near = (
        (keys[1].log() / (interest + 1e-9 * interest.max() + 1e-300)).topk(min(n - n // 3, len(pool))).indices
    )
    found = pool[torch.unique(torch.cat([anywhere, near]))]
    return found[_not_taken(found, taken)]


def _around(
    candidates: Tensor,
    score: Tensor,
    space: ParameterSpace,
    taken: Tensor,
    width: float,
    generator: torch.Generator,
) -> Tensor:
    """Allowed points scattered around the best five candidates."""
    if not len(candidates):
        return candidates
    centres = candidates[score.topk(min(5, len(score))).indices]
    steps = torch.randn(len(centres), 16, space.dim, generator=generator, dtype=candidates.dtype)
    u = space.snap((centres[:, None, :] + width * steps).clamp(0.0, 1.0).reshape(-1, space.dim))
    u = u[space.allowed_unit(u)]
    return u[_not_taken(u, torch.cat([taken, candidates]))]


def _distinct(candidates: Tensor, score: Tensor, n: int) -> Tensor:
    """Indices of the best n candidates, no point twice."""
    out: list[int] = []
    for i in score.argsort(descending=True, stable=True).tolist():
        if len(out) == n:
            break
        if not out or (candidates[out] - candidates[i]).abs().amax(1).min() > 1e-9:
            out.append(i)
    return torch.tensor(out, dtype=torch.long)


def poisson_disc(points: Tensor, score: Tensor, taken: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Indices of n points drawn with probability proportional to a non-negative score, apart from one another.

    The distance starts at that of n points on a lattice of the whole cube and shrinks by 0.8 until n points fit;
    points asked before keep the same distance.

    Raises:
        SpaceExhausted: fewer than n points.

    References:
        Bridson, SIGGRAPH 2007 (discs); Efraimidis and Spirakis, Inf. Process. Lett. 97 (2006) 181 (weighted order).
    """
    if len(points) < n:
        raise SpaceExhausted(
            f"Poisson disc: needs {n} points, got {len(points)}. Use a finer step or a smaller batch"
        )
    weight = score.clamp_min(0.0) + 1e-12 * score.abs().max() + 1e-300
    keys = torch.rand(len(points), generator=generator, dtype=points.dtype).clamp_min(1e-300).log() / weight
    order = keys.argsort(descending=True).tolist()
    radius = n ** (-1 / points.shape[1])
    while True:
        accepted: list[int] = []
        others = taken
        for i in order:
            if len(others) and (others - points[i]).square().sum(1).min().sqrt() < radius:
                continue
            accepted.append(i)
            others = torch.cat([others, points[i : i + 1]])
            if len(accepted) == n:
                return torch.tensor(accepted)
        radius = radius * 0.8 if radius > 1e-6 else -1.0
