"""Beliefs made of beliefs: independent tasks, weighed explanations of one task, and later observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import Posterior
from .linalg import cholesky, solve


@dataclass(frozen=True)
class Independent(Posterior):
    """Several tasks that tell nothing about each other."""

    parts: tuple[Posterior, ...]

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        means, variances = zip(*(p.marginal(u) for p in self.parts))
        return torch.cat(means), torch.cat(variances)

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        means, covariances = zip(*(p.joint(u) for p in self.parts))
        return torch.cat(means), torch.cat(covariances)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return torch.cat([p.cross(a, b) for p in self.parts])

    def covariance_with(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Posterior`."""
        parts = [p.covariance_with(a) for p in self.parts]
        return lambda b: torch.cat([cross(b) for cross in parts])

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return torch.cat([p.noise for p in self.parts])

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`."""
        columns = [slice(i, i + 1) for i in range(len(self.parts))]
        return Independent(
            tuple(
                p.condition(u, None if z is None else z[:, c], None if variance is None else variance[:, c])
                for p, c in zip(self.parts, columns)
            )
        )

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """See `Posterior`."""
        return tuple(h for p in self.parts for h in p.hyperparameters)


@dataclass(frozen=True)
class Mixture(Posterior):
    """Several explanations of one task, weighed; taken as the Gaussian belief with their mean and covariance.

    Where the explanations disagree the variance is large: Cov = sum_k w_k (Cov_k + (m_k - m)(m_k - m)^T), the law of
    total covariance.

    Attributes:
        parts: beliefs about one task, the heaviest first.
        weights: (k,), positive, sum 1.
    """

    parts: tuple[Posterior, ...]
    weights: Tensor

    def _means(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n,), deviations of the parts from it (k, n) and the parts' mean variance (n,)."""
        means, variances = zip(*(p.marginal(u) for p in self.parts))
        stacked = torch.cat(means)
        mean = self.weights @ stacked
        return mean, stacked - mean, self.weights @ torch.cat(variances)

    def _spread(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("k,kn,km->nm", self.weights, a, b)

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        mean, off, variance = self._means(u)
        return mean[None], (variance + self.weights @ off**2)[None]

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        mean, off, _ = self._means(u)
        within = sum(w * p.joint(u)[1] for w, p in zip(self.weights, self.parts))
        return mean[None], within + self._spread(off, off)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.covariance_with(b)(a)

    def covariance_with(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Posterior`."""
        parts, off = [p.covariance_with(a) for p in self.parts], self._means(a)[1]

        def cross(b: Tensor) -> Tensor:
            within = sum(w * part(b) for w, part in zip(self.weights, parts))
            return within + self._spread(self._means(b)[1], off)

        return cross

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return self.weights @ torch.stack([p.noise for p in self.parts])

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`; the weights stay, the belief is conditioned as a Gaussian one."""
        empty = torch.zeros(0, dtype=u.dtype)
        return Conditioned(self, u[:0], empty.reshape(0, 0), empty).condition(u, z, variance)

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """See `Posterior`; of the heaviest explanation, with its weight."""
        return ({**self.parts[0].hyperparameters[0], "weight": float(self.weights[0])},)


@dataclass(frozen=True)
class Conditioned(Posterior):
    """A Gaussian belief about one task after more observations.

    Attributes:
        before: the belief without them.
        u: where they were made, (m, d).
        factor: L of L L^T = their covariance before, noise included.
        white: L^-1 (z - mean before).
    """

    before: Posterior
    u: Tensor
    factor: Tensor
    white: Tensor

    def _gain(self, u: Tensor) -> Tensor:
        """L^-1 cov(seen, u), (m, n)."""
        return solve(self.factor, self.before.cross(self.u, u)[0])

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        mean, variance = self.before.marginal(u)
        v = self._gain(u)
        # What rounding leaves of a variance that vanishes is in proportion to what it was.
        return mean + (self.white @ v)[None], torch.maximum(variance - (v**2).sum(0), 1e-14 * variance)

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        mean, covariance = self.before.joint(u)
        v = self._gain(u)
        return mean + (self.white @ v)[None], covariance - (v.T @ v)[None]

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.covariance_with(b)(a)

    def covariance_with(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Posterior`."""
        before, gain = self.before.covariance_with(a), self._gain(a)
        return lambda b: before(b) - (self._gain(b).T @ gain)[None]

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return self.before.noise

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`."""
        v = self._gain(u)
        mean, covariance = self.before.joint(u)
        noise = self.noise.expand(len(u)) if variance is None else variance[:, 0]
        corner = cholesky(covariance[0] - v.T @ v + torch.diag(noise))
        if z is None:
            white = torch.zeros(len(u), dtype=u.dtype)  # what is seen is what was expected
        else:
            white = solve(corner, (z[:, 0] - mean[0] - self.white @ v)[:, None])[:, 0]
        zeros = torch.zeros(len(self.u), len(u), dtype=u.dtype)
        factor = torch.cat([torch.cat([self.factor, zeros], 1), torch.cat([v.T, corner], 1)], 0)
        return replace(self, u=torch.cat([self.u, u]), factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """See `Posterior`."""
        return self.before.hyperparameters


@dataclass(frozen=True)
class Tempered(Posterior):
    """A belief with its standard deviations multiplied, because it has been found too sure of itself.

    Attributes:
        before: the belief as fitted.
        factor: on the standard deviations of each task, (t,).
    """

    before: Posterior
    factor: Tensor

    def _scaled(self, moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        mean, second = moments
        return mean, second * self.factor.square().reshape(-1, *[1] * (second.ndim - 1))

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        return self._scaled(self.before.marginal(u))

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        return self._scaled(self.before.joint(u))

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.covariance_with(b)(a)

    def covariance_with(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Posterior`."""
        before = self.before.covariance_with(a)
        return lambda b: before(b) * self.factor.square()[:, None, None]

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return self.before.noise * self.factor.square()

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`."""
        untempered = None if variance is None else variance / self.factor.square()
        return replace(self, before=self.before.condition(u, z, untempered))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """See `Posterior`."""
        pairs = zip(self.before.hyperparameters, self.factor.tolist())
        return tuple(h | {"temperature": factor} for h, factor in pairs)
