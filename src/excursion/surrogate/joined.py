"""Beliefs made of beliefs: independent tasks, weighed explanations of one task, and later observations."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import Posterior, View
from .linalg import bordered, cholesky, solve


def same_width(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Points with the column of levels (see `Posterior`) in both if one of them has it."""
    width = max(a.shape[1], b.shape[1])
    return tuple(torch.cat([p, p.new_zeros(len(p), width - p.shape[1])], 1) for p in (a, b))  # type: ignore[return-value]


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
        view = self.view(u)
        return view.mean, view.covariance(view)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.view(a).covariance(self.view(b))

    def view(self, u: Tensor) -> _IndependentView:
        """See `Posterior`."""
        parts = tuple(p.view(u) for p in self.parts)
        return _IndependentView(
            torch.cat([p.mean for p in parts]),
            torch.cat([p.variance for p in parts]),
            torch.cat([p.noise for p in parts]),
            parts,
        )

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

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        means, variances = zip(*(p.marginal(u) for p in self.parts))
        mean, variance, _ = self._total(torch.cat(means), torch.cat(variances))
        return mean, variance

    def _total(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance, (1, n), from those of the parts, (k, n); deviations of the parts' means."""
        mean = self.weights @ means
        off = means - mean
        return mean[None], (self.weights @ (variances + off.square()))[None], off

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        view = self.view(u)
        return view.mean, view.covariance(view)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.view(a).covariance(self.view(b))

    def view(self, u: Tensor) -> _MixtureView:
        """See `Posterior`."""
        parts = tuple(p.view(u) for p in self.parts)
        mean, variance, off = self._total(torch.cat([p.mean for p in parts]), torch.cat([p.variance for p in parts]))
        noise = (self.weights @ torch.cat([p.noise for p in parts]))[None]
        return _MixtureView(mean, variance, noise, off, parts, self.weights)

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

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        view = self.view(u)
        return view.mean, view.variance

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        view = self.view(u)
        return view.mean, view.covariance(view)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.view(a).covariance(self.view(b))

    @functools.cached_property
    def _seen(self) -> View:
        return self.before.view(self.u)

    def view(self, u: Tensor) -> _ConditionedView:
        """See `Posterior`."""
        before = self.before.view(u)
        gain = solve(self.factor, self._seen.covariance(before)[0])
        # What rounding leaves of a variance that vanishes is in proportion to what it was.
        variance = torch.maximum(before.variance - gain.square().sum(0), 1e-14 * before.variance)
        return _ConditionedView(before.mean + (self.white @ gain)[None], variance, before.noise, before, gain)

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return self.before.noise

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`."""
        view = self.view(u)
        v, noise = view.gain, view.noise[0] if variance is None else variance[:, 0]
        corner = cholesky(view.covariance(view)[0] + torch.diag(noise))
        # Without z, what is seen is what was expected.
        white = torch.zeros(len(u), dtype=u.dtype) if z is None else solve(corner, z - view.mean.T)[:, 0]
        factor = bordered(self.factor, v, corner)
        seen = u if not len(self.u) else torch.cat(same_width(self.u, u))
        return replace(self, u=seen, factor=factor, white=torch.cat([self.white, white]))

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

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        mean, variance = self.before.marginal(u)
        return mean, variance * self.factor.square()[:, None]

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `Posterior`."""
        view = self.view(u)
        return view.mean, view.covariance(view)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """See `Posterior`."""
        return self.view(a).covariance(self.view(b))

    def view(self, u: Tensor) -> _TemperedView:
        """See `Posterior`."""
        before, square = self.before.view(u), self.factor.square()
        return _TemperedView(
            before.mean, before.variance * square[:, None], before.noise * square[:, None], before, square
        )

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


# -- the same at points


@dataclass(frozen=True)
class _IndependentView(View):
    """Views of independent tasks."""

    mean: Tensor
    variance: Tensor
    noise: Tensor
    parts: tuple[View, ...]

    def covariance(self, other: _IndependentView) -> Tensor:
        """See `View`."""
        return torch.cat([a.covariance(b) for a, b in zip(self.parts, other.parts)])


@dataclass(frozen=True)
class _MixtureView(View):
    """Views of the explanations, and the deviations (k, n) of their means from the common one."""

    mean: Tensor
    variance: Tensor
    noise: Tensor
    off: Tensor
    parts: tuple[View, ...]
    weights: Tensor

    def covariance(self, other: _MixtureView) -> Tensor:
        """See `View`."""
        total = ((self.weights[:, None] * self.off).T @ other.off)[None]
        for weight, a, b in zip(self.weights.tolist(), self.parts, other.parts):
            total.add_(a.covariance(b), alpha=weight)
        return total


@dataclass(frozen=True)
class _ConditionedView(View):
    """A view of the belief before, and the gain L^-1 cov(seen, points), (m, n)."""

    mean: Tensor
    variance: Tensor
    noise: Tensor
    before: View
    gain: Tensor

    def covariance(self, other: _ConditionedView) -> Tensor:
        """See `View`."""
        return self.before.covariance(other.before) - (self.gain.T @ other.gain)[None]


@dataclass(frozen=True)
class _TemperedView(View):
    """A view of the belief as fitted, and the factor on the variances, (t,)."""

    mean: Tensor
    variance: Tensor
    noise: Tensor
    before: View
    square: Tensor

    def covariance(self, other: _TemperedView) -> Tensor:
        """See `View`."""
        return self.before.covariance(other.before) * self.square[:, None, None]
