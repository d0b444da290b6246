"""Several outputs of one evaluation as one Gaussian process: what one of them tells about the others.

The linear model of coregionalisation: f_i(u) = m_i(u) + sum_q sum_r W^q_ir g_qr(u) + sqrt(kappa^q_i) e_qi(u) with
independent processes g_qr and e_qi of unit variance and correlation k_q. The covariance of task i at u with task j at
u' is sum_q B^q_ij k_q(u, u'), B^q = W^q W^qT + diag(kappa^q). With one k (`latent` = 1) it is the intrinsic model.

Where all tasks are known at all n points, with a noise D_i that is the same at all of them, the covariance of the data
is B (x) K + D (x) I. With the eigenvalues b_i of D^-1/2 B D^-1/2 and k_a of K those of the whitened data are
b_i k_a + 1: O(n^3 + t^3) work in place of O(n^3 t^3), exactly the same numbers.

A task at a cheaper fidelity is one more output of the same model (Bonilla et al.'s matrix over pairs of both): with L
fidelities B is (L t, L t), output l t + i being task i at level l. Each evaluation gives the outputs of its own level;
those of the others are missing values.

References:
    Goovaerts, Geostatistics for Natural Resources Evaluation (1997), section 4.2: both models of coregionalisation.
    Bonilla, Chai and Williams, Multi-task Gaussian Process Prediction, NeurIPS 20 (2007), eqs. 1, 2; section 2.1.
    Alvarez, Rosasco and Lawrence, Kernels for Vector-Valued Functions, Found. Trends Mach. Learn. 4 (2012) 195
    (arXiv:1106.6251), sections 4.2 and 6.1: the eigenvalues of the product.
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eqs. 2.42, 5.8 and 5.9.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from ..errors import FitError, InvalidStrategy, ShapeError
from ..threads import one_thread
from . import Observations, Posterior, Surrogate, View
from .censored import censored_sites
from .evidence import NUGGET_PRIOR, RIDGE, STARTS, covariances, lengthscale_prior
from .exact import CHEAP, Kernel, telling
from .joined import same_width
from .linalg import bordered, cholesky, solve

#: Names of the correlations.
KERNELS = ("matern52", "matern32", "rbf")
#: Standard deviation of the normal prior on the entries of W, mean 0 (standardised values).
WEIGHT_PRIOR = 3.0
#: Mean and standard deviation of the normal prior on log kappa: what a task does on its own is small, perhaps.
OWN_PRIOR = (math.log(1e-2), 3.0)
#: Maxima are sought with about so many values, and followed with so many; on a complete table with so many points.
FEW, SOME, FEW_POINTS, SOME_POINTS = 256, 600, 64, 256
#: Of cheaper fidelities so many values are used in all, those that tell most about the thresholds; `CHEAP` per task.
CHEAPER = 2000
#: With cheaper fidelities the covariance is dense: so many values of all fidelities and tasks at most.
DENSE = 6000
#: Correlation of a task with itself at another fidelity where the search begins.
_ALIKE = 0.9
_SCALE, _WEIGHT, _OWN = (math.log(5e-3), math.log(1e3)), (-100.0, 100.0), (math.log(1e-6), math.log(1e4))
_NUGGET = (math.log(1e-9), 0.0)


# -- hyperparameters


@dataclass(frozen=True)
class Coregionalisation:
    """Hyperparameters in standardised units.

    Attributes:
        scales: length scales of each correlation, (q, d).
        weights: W of each, (q, t, r).
        own: kappa of each, (q, t).
        nugget: learned noise variance per task, (t,).
    """

    scales: np.ndarray
    weights: np.ndarray
    own: np.ndarray
    nugget: np.ndarray

    @property
    def b(self) -> np.ndarray:
        """B^q, (q, t, t)."""
        return self.weights @ self.weights.transpose(0, 2, 1) + self.own[:, :, None] * np.eye(self.own.shape[1])

    @classmethod
    def of(cls, theta: np.ndarray, d: int, t: int, latent: int) -> Coregionalisation:
        """From theta: for each q log l (d), W (t r, by rows), log kappa (t); then the log nuggets (t)."""
        parts = theta[:-t].reshape(latent, -1)
        weights = parts[:, d:-t].reshape(latent, t, -1)
        return cls(np.exp(parts[:, :d]), weights, np.exp(parts[:, -t:]), np.exp(theta[-t:]))


@dataclass(frozen=True)
class JointEvidence:
    """The negative log posterior of the hyperparameters of all tasks together.

    Attributes:
        kernel: one of `KERNELS`.
        latent: number of correlations, q.
        u: points, (n, d).
        basis: of the mean, (n, b); each task has its own coefficients.
        tasks: number of outputs, t.
        task, point: of each value, (N,), ascending by task and then by point.
        y: standardised values, (N,).
        noise: known variances, (N,).
        nuggets: 1 where the nugget adds to the noise, 0 where a value stands for a censored one, (N,).
        fidelities: L; outputs l t / L, l t / L + 1, ... are the tasks at level l.
    """

    kernel: str
    latent: int
    u: np.ndarray
    basis: np.ndarray
    tasks: int
    task: np.ndarray
    point: np.ndarray
    y: np.ndarray
    noise: np.ndarray
    nuggets: np.ndarray
    fidelities: int = 1

    @functools.cached_property
    def whole(self) -> bool:
        """Whether the covariance is B (x) K + D (x) I."""
        if self.latent > 1 or len(self.y) < self.tasks * len(self.u) or not self.nuggets.all():
            return False
        noise = self.noise.reshape(self.tasks, -1)
        return bool((noise == noise[:, :1]).all())

    @functools.cached_property
    def _squares(self) -> np.ndarray:
        return ((self.u[:, None] - self.u[None]) ** 2).transpose(2, 0, 1)

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """-ln p(y | theta) - ln p(theta) up to a constant, and its gradient.

        The mean's coefficients are at their best; by the envelope theorem they count as constant in the gradient.
        """
        d = self.u.shape[1]
        h = Coregionalisation.of(theta, d, self.tasks, self.latent)
        pairs = [covariances(self.kernel, self._squares, scales, np.ones(1)) for scales in h.scales]
        correlations, slopes = ([terms[0] for terms in kind] for kind in zip(*pairs))
        pulled = self._whole(h, correlations[0]) if self.whole else self._dense(h, correlations)
        value, by_task, by_point, by_nugget = pulled
        parts = []
        for q, slope in enumerate(slopes):
            lengths = np.tensordot(self._squares, by_point[q] * slope, 2) / h.scales[q] ** 2
            weights = 2 * by_task[q] @ h.weights[q]
            parts.append(np.concatenate([lengths, weights.ravel(), by_task[q].diagonal() * h.own[q]]))
        gradient = np.concatenate([*parts, by_nugget * h.nugget])

        # Log-normal densities of the length scales (with their Jacobian 1/l), normal in all others.
        prior = [(*lengthscale_prior(d), 1.0)] * d + [(0.0, WEIGHT_PRIOR, 0.0)] * h.weights[0].size
        prior = (prior + [(*OWN_PRIOR, 0.0)] * self.tasks) * self.latent + [(*NUGGET_PRIOR, 0.0)] * self.tasks
        mean, sd, jacobian = np.array(prior).T
        s = (theta - mean) / sd
        return float(value + (0.5 * s * s + jacobian * theta).sum()), gradient + s / sd + jacobian

    def _dense(
        self, h: Coregionalisation, correlations: Sequence[np.ndarray]
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """-ln p(y), and its derivatives by B (q, t, t), by k_q of pairs of points (q, n, n) and by nuggets (t,)."""
        size, n, t = len(self.y), len(self.u), self.tasks
        pairs, places = np.ix_(self.task, self.task), np.ix_(self.point, self.point)
        covariance = sum((b[pairs] * k[places] for b, k in zip(h.b, correlations)), np.zeros((size, size)))
        covariance.flat[:: size + 1] += self.noise + self.nuggets * h.nugget[self.task]
        factor, failed = scipy.linalg.lapack.dpotrf(covariance, lower=1)
        if failed:
            factor = cholesky(torch.from_numpy(covariance)).numpy()
        half, _ = scipy.linalg.lapack.dpotri(factor, lower=1)
        precision = np.tril(half)
        precision = precision + precision.T
        precision.flat[:: size + 1] *= 0.5
        basis = by_rows(self.basis[self.point], self.task, t)
        weighted = precision @ basis
        beta = np.linalg.solve(basis.T @ weighted + RIDGE * np.eye(basis.shape[1]), weighted.T @ self.y)
        residual = self.y - basis @ beta
        alpha = precision @ residual
        value = 0.5 * (residual @ alpha + RIDGE * beta @ beta) + np.log(np.diagonal(factor)).sum()
        pull = 0.5 * (precision - np.outer(alpha, alpha))
        by_nugget = np.bincount(self.task, np.diagonal(pull) * self.nuggets, minlength=t)
        if size < n * t:
            rows = self.task * n + self.point
            part, pull = pull, np.zeros((n * t, n * t))
            pull[np.ix_(rows, rows)] = part
        pull = np.ascontiguousarray(pull.reshape(t, n, t, n).transpose(0, 2, 1, 3)).reshape(t * t, n * n)
        by_task = np.stack([(pull @ k.ravel()).reshape(t, t) for k in correlations])
        by_point = (h.b.reshape(-1, t * t) @ pull).reshape(-1, n, n)
        return float(value), by_task, by_point, by_nugget

    def _whole(self, h: Coregionalisation, k: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """The same as `_dense`, from the eigenvalues of both factors."""
        n, t = len(self.u), self.tasks
        y, b = self.y.reshape(t, n), h.b[0]
        noise = self.noise.reshape(t, n)[:, 0] + h.nugget
        spectrum = Spectrum.of(b, noise, k)
        beta, residual = spectrum.profiled(y, self.basis)
        solved = spectrum.solved(residual)
        value = 0.5 * (np.vdot(residual, solved) + RIDGE * np.vdot(beta, beta) + spectrum.log_determinant)
        mix, weight = spectrum.mix, 1 / spectrum.values
        by_task = mix.T @ ((weight @ spectrum.k)[:, None] * mix) - solved @ k @ solved.T
        by_point = (spectrum.vectors * (spectrum.b @ weight)) @ spectrum.vectors.T - solved.T @ b @ solved
        by_nugget = (mix**2 * weight.sum(1)[:, None]).sum(0) - (solved**2).sum(1)
        return float(value), 0.5 * by_task[None], 0.5 * by_point[None], 0.5 * by_nugget

    def first_guesses(self, rank: int, count: int) -> list[np.ndarray]:
        """Starts: those of `evidence.STARTS`, with B from the correlation of the values where tasks are known together.

        Points of several fidelities are not the same: a task begins almost like itself at another level. Length scales
        of further correlations are three times shorter each.
        """
        n, d, t = len(self.u), self.u.shape[1], self.tasks
        y, known = np.zeros((t, n)), np.zeros((t, n))
        y[self.task, self.point], known[self.task, self.point] = self.y, 1.0
        levels = self.fidelities
        both, counts = (np.einsum("lin,ljn->ij", a, a) for a in (b.reshape(levels, t // levels, n) for b in (y, known)))
        alike = np.where(np.eye(levels, dtype=bool), 1.0, _ALIKE)
        together = np.kron(alike, both / np.maximum(counts, 1.0))
        values, vectors = np.linalg.eigh(together)
        weights = vectors[:, ::-1][:, :rank] * np.sqrt(np.maximum(values[::-1][:rank], 1e-3))
        own = np.maximum(together.diagonal() - (weights**2).sum(1), 0.05)
        out = []
        for scale, amplitude, nugget in STARTS[:count]:
            size = math.exp(amplitude) / self.latent
            parts = [
                [
                    np.full(d, scale + 0.5 * math.log(d) - q * math.log(3)),
                    weights.ravel() * math.sqrt(size),
                    np.log(own * size),
                ]
                for q in range(self.latent)
            ]
            out.append(np.concatenate([*(a for part in parts for a in part), np.full(t, nugget)]))
        return out

    def maximum(self, starts: Sequence[np.ndarray], max_iter: int) -> np.ndarray:
        """The best theta that L-BFGS reaches from the starts.

        Raises:
            FitError: no finite maximum.
        """
        t, d = self.tasks, self.u.shape[1]
        each = (len(starts[0]) - t) // self.latent
        bounds = ([_SCALE] * d + [_WEIGHT] * (each - d - t) + [_OWN] * t) * self.latent + [_NUGGET] * t
        options = {"maxiter": max_iter, "ftol": 1e-8, "gtol": 1e-4, "maxcor": 20}
        found = [
            scipy.optimize.minimize(self, s, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            for s in starts
        ]
        best = min(found, key=lambda f: f.fun if np.isfinite(f.fun) else math.inf)
        if not np.isfinite(best.fun) or not np.isfinite(best.x).all():
            raise FitError(f"multi-task process: the fit must end at finite hyperparameters, got {best}")
        return best.x


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the whitened covariance B (x) K + D (x) I of t tasks at n points.

    Attributes:
        mix: V^T D^-1/2, (t, t), for the eigenvectors V of D^-1/2 B D^-1/2.
        b: its eigenvalues, (t,).
        vectors, k: eigenvectors (n, n) and eigenvalues (n,) of K.
        noise: D, (t,).
    """

    mix: np.ndarray
    b: np.ndarray
    vectors: np.ndarray
    k: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, b: np.ndarray, noise: np.ndarray, k: np.ndarray) -> Spectrum:
        """From B (t, t), D (t,) and K (n, n)."""
        root = noise**-0.5
        task_values, task_vectors = np.linalg.eigh(root[:, None] * b * root)
        values, vectors = scipy.linalg.eigh(k, driver="evd")
        return cls(task_vectors.T * root, np.maximum(task_values, 0), vectors, np.maximum(values, 0), noise)

    @functools.cached_property
    def values(self) -> np.ndarray:
        """b_i k_a + 1, (t, n)."""
        return np.outer(self.b, self.k) + 1

    @property
    def log_determinant(self) -> float:
        """Of the covariance, before whitening."""
        return float(np.log(self.values).sum() + len(self.k) * np.log(self.noise).sum())

    def whitened(self, y: np.ndarray) -> np.ndarray:
        """Values (t, n) in the coordinates where their covariance is diagonal with `values`."""
        return self.mix @ y @ self.vectors

    def solved(self, y: np.ndarray) -> np.ndarray:
        """The inverse covariance times y, (t, n)."""
        return self.mix.T @ (self.whitened(y) / self.values) @ self.vectors.T

    def profiled(self, y: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (t, b) of the basis (n, b) by generalised least squares with a ridge, and what is left of y."""
        t, b = len(y), basis.shape[1]
        h = self.vectors.T @ basis
        normal = np.einsum("pi,pj,pa,ac,ae->icje", self.mix, self.mix, 1 / self.values, h, h, optimize=True)
        right = self.mix.T @ (self.whitened(y) / self.values) @ h
        left = normal.reshape(t * b, t * b) + RIDGE * np.eye(t * b)
        beta = np.linalg.solve(left, right.ravel()).reshape(t, b)
        return beta, y - beta @ basis.T


def by_rows(basis: np.ndarray, task: np.ndarray, t: int) -> np.ndarray:
    """The basis of each value, (N, b), in the columns of its task: (N, t b)."""
    out = np.zeros((len(basis), t, basis.shape[1]))
    out[np.arange(len(basis)), task] = basis
    return out.reshape(len(basis), -1)


# -- the belief


@dataclass(frozen=True)
class _Model:
    """All outputs before any observation: z_i = shift_i + scale_i (basis @ beta_i + f_i).

    Points come with `outputs`, what is asked of each: (n, t), or (1, t) where it is the same at all.
    """

    kernels: tuple[Kernel, ...]
    b: Tensor  # (q, t, t), standardised
    mean: str
    beta: Tensor  # (t, b)
    shift: Tensor
    scale: Tensor
    nugget: Tensor
    known: Tensor  # typical known variance of an observation, standardised, (L t,)
    fidelities: int  # L

    @property
    def tasks(self) -> int:
        return len(self.shift) // self.fidelities

    def places(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Points (n, d) and outputs of points that may have one more column, the level.

        Raises:
            ShapeError: a level that does not exist.
        """
        d, first = self.kernels[0].metric.shape[1], torch.arange(self.tasks)[None]
        level = u[:, d:]
        if not level.any():
            return u[:, :d], first
        if not bool(torch.isin(level, torch.arange(self.fidelities)).all()):
            raise ShapeError(
                f"posterior: must have a cheaper fidelity for levels above 0, got {level.max():g} with "
                f"{self.fidelities} fidelities"
            )
        if (level == level[0]).all():
            level = level[:1]
        return u[:, :d], first + self.tasks * level.long()

    def expected(self, u: Tensor, outputs: Tensor) -> Tensor:
        """Standardised, (t, n)."""
        return torch.einsum("nib,nb->in", self.beta[outputs].expand(len(u), -1, -1), _basis(u, self.mean))

    def correlations(self, a: Tensor, b: Tensor) -> Tensor:
        """k_q(a, b), (q, n, m)."""
        return torch.stack([k(a, b) for k in self.kernels])

    def across(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Covariance of what is asked at a with what is asked at b, (n, t, m, t)."""
        pairs = self.b[:, a[1][:, :, None, None], b[1]]
        return (pairs * self.correlations(a[0], b[0])[:, :, None, :, None]).sum(0)

    def within(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """The same of each task with itself, (t, n, m)."""
        pairs = self.b[:, a[1].T[:, :, None], b[1].T[:, None, :]]
        return (pairs * self.correlations(a[0], b[0])[:, None]).sum(0)


@dataclass(frozen=True)
class _Rows:
    """Any values that are known: the Cholesky factor of their covariance, (N, N), and L^-1 (y - mean)."""

    u: Tensor
    task: Tensor
    point: Tensor
    factor: Tensor
    white: Tensor

    def project(self, model: _Model, u: Tensor, outputs: Tensor) -> Tensor:
        """L^-1 times the covariance of the values with what is asked at u, (N, m, t)."""
        k = model.correlations(self.u, u)
        prior = sum(
            (b[self.task][:, outputs] * each[self.point][..., None] for b, each in zip(model.b, k)),
            torch.zeros(len(self.task), len(u), model.tasks, dtype=u.dtype),
        )
        return solve(self.factor, prior.reshape(len(prior), -1)).reshape(prior.shape)

    def mean(self, v: Tensor) -> Tensor:
        """What the values add to the expected ones at a projection, (t, m)."""
        return torch.einsum("nmt,n->tm", v, self.white)

    def explained(self, v: Tensor, w: Tensor) -> Tensor:
        """By how much the covariances of each task shrink, (t, n, m)."""
        return v.permute(2, 1, 0) @ w.permute(2, 0, 1)

    def known(self, v: Tensor) -> Tensor:
        """By how much the variances shrink, (t, n)."""
        return v.square().sum(0).T

    def across(self, v: Tensor, w: Tensor) -> Tensor:
        """The same between all tasks, (n, t, m, t)."""
        return (v.flatten(1).T @ w.flatten(1)).reshape(*v.shape[1:], *w.shape[1:])


@dataclass(frozen=True)
class _Whole:
    """All tasks at all points, of one fidelity: the eigenvectors of K, and what remains per task and eigenvalue.

    Attributes:
        u: points, (n, d).
        vectors: eigenvectors of K, (n, n).
        shrink: sum_p w_pi w_pj / (b_p k_a + 1) with w = V^T D^-1/2 B, (t, t, n).
        coefficients: of the mean in the eigenvectors, (t, n).
    """

    u: Tensor
    vectors: Tensor
    shrink: Tensor
    coefficients: Tensor

    def project(self, model: _Model, u: Tensor, outputs: Tensor) -> Tensor:
        """The correlation with the points, in the eigenvectors, (n, m)."""
        return self.vectors.T @ model.kernels[0](self.u, u)

    def mean(self, v: Tensor) -> Tensor:
        """See `_Rows`."""
        return self.coefficients @ v

    def explained(self, v: Tensor, w: Tensor) -> Tensor:
        """See `_Rows`."""
        return torch.stack([(v * g[:, None]).T @ w for g in self._own])

    def known(self, v: Tensor) -> Tensor:
        """See `_Rows`."""
        return self._own @ v.square()

    @property
    def _own(self) -> Tensor:
        return self.shrink.diagonal().T

    def across(self, v: Tensor, w: Tensor) -> Tensor:
        """See `_Rows`."""
        return torch.einsum("na,ijn,nb->aibj", v, self.shrink, w)


@dataclass(frozen=True, repr=False)
class _Joint(Posterior):
    """All tasks after the observations of the fit (`seen`) and later ones of all tasks.

    Attributes:
        later: where the later ones were made, (m, d), or (m, d + 1) with their levels.
        factor: L of L L^T = their covariance given `seen`, noise included, by points and then tasks, (m t, m t).
        white: L^-1 (z - mean given `seen`), standardised, (m t,).
    """

    model: _Model
    seen: _Rows | _Whole
    later: Tensor
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
    def _later(self) -> tuple[Tensor, Tensor]:
        return self.model.places(self.later)

    @functools.cached_property
    def _projected(self) -> Tensor:
        return self.seen.project(self.model, *self._later)

    def view(self, u: Tensor) -> _JointView:
        """See `Posterior`."""
        model, at = self.model, self.model.places(u)
        v = self.seen.project(model, *at)
        before = model.across(self._later, at) - self.seen.across(self._projected, v)
        size = len(self.white)
        gain = solve(self.factor, before.reshape(size, len(u) * model.tasks)).reshape(size, len(u), model.tasks)
        mean = model.expected(*at) + self.seen.mean(v) + torch.einsum("nmt,n->tm", gain, self.white)
        prior, shift, scale, noise = (
            a[at[1]].T for a in (model.b.sum(0).diagonal(), model.shift, model.scale, self._noise)
        )
        variance = torch.maximum(prior - self.seen.known(v) - gain.square().sum(0).T, 1e-14 * prior)
        return _JointView(
            shift + scale * mean, scale.square() * variance, noise.expand_as(mean), self, *at, scale, v, gain
        )

    def _across(self, a: _JointView, b: _JointView) -> Tensor:
        """Covariance of all tasks at a with all tasks at b, standardised, (n, t, m, t)."""
        later = (a.gain.flatten(1).T @ b.gain.flatten(1)).reshape(*a.gain.shape[1:], *b.gain.shape[1:])
        return self.model.across((a.u, a.outputs), (b.u, b.outputs)) - self.seen.across(a.v, b.v) - later

    @property
    def _noise(self) -> Tensor:
        return self.model.scale.square() * (self.model.nugget + self.model.known)

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return self._noise[: self.model.tasks]

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`; each observation is one of all tasks."""
        view = self.view(u)
        size, scale = view.mean.numel(), view.scale.T
        noise = (view.noise.T if variance is None else variance) / scale.square()
        corner = cholesky(self._across(view, view).reshape(size, size) + torch.diag(noise.flatten()))
        if z is None:
            white = torch.zeros(size, dtype=u.dtype)  # what is seen is what was expected
        else:
            white = solve(corner, ((z - view.mean.T) / scale).reshape(size, 1))[:, 0]
        factor = bordered(self.factor, view.gain.flatten(1), corner)
        later = torch.cat(same_width(self.later, u))
        return replace(self, later=later, factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """See `Posterior`; length scales are those of the correlation that has most of the task's variance.

        Also ``task``, its number, ``correlation`` with each task, and ``coregionalisation``: for each correlation its
        length scales and B in units of z. With cheaper fidelities B is that of (level, task), the dearest first, and
        ``fidelities`` the correlation of the task with itself at each level.
        """
        model, t = self.model, self.model.tasks
        total = model.b.sum(0)
        sd = total.diagonal().sqrt()
        correlation = total / sd / sd[:, None]
        scales = [(1 / k.metric.diagonal()).tolist() for k in model.kernels]
        in_units = (model.b * model.scale * model.scale[:, None]).tolist()
        terms = [{"lengthscales": s, "B": b} for s, b in zip(scales, in_units)]
        return tuple(
            {
                "kernel": model.kernels[0].name,
                "lengthscales": scales[int(model.b[:, i, i].argmax())],
                "amplitude": float(model.scale[i] * sd[i]),
                "nugget": float(model.scale[i] * model.nugget[i].sqrt()),
                "mean": float(model.shift[i] + model.scale[i] * model.beta[i, 0]),
                "slopes": (model.scale[i] * model.beta[i, 1:]).tolist(),
                "task": i,
                "correlation": correlation[i, :t].tolist(),
                "coregionalisation": terms,
            }
            | ({} if model.fidelities == 1 else {"fidelities": correlation[i, i::t].tolist()})
            for i in range(t)
        )


@dataclass(frozen=True, repr=False)
class _JointView(View):
    """All tasks at m points u: projected on the observations of the fit, and the gain of later ones, (., m, t).

    ``scale`` is that of the outputs, (t, m) or (t, 1).
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor
    process: _Joint
    u: Tensor
    outputs: Tensor
    scale: Tensor
    v: Tensor
    gain: Tensor

    def covariance(self, other: _JointView) -> Tensor:
        """See `View`."""
        rest = self.process.model.within((self.u, self.outputs), (other.u, other.outputs))
        rest -= self.process.seen.explained(self.v, other.v)
        rest -= self.gain.permute(2, 1, 0) @ other.gain.permute(2, 0, 1)
        return self.scale[:, :, None] * other.scale[:, None] * rest


def _basis(u: Tensor, mean: str) -> Tensor:
    """Basis of the mean function: 1, and the centred coordinates if linear. Shape (n, 1) or (n, 1 + d)."""
    ones = torch.ones(len(u), 1, dtype=u.dtype)
    return ones if mean == "constant" else torch.cat([ones, u - 0.5], -1)


# -- the recipe


@dataclass(frozen=True)
class MultiTask(Surrogate):
    """One Gaussian process for all tasks, which share what they have in common; float64.

    An evaluation that gives some tasks only (`Observations.known`) tells about the others as well. The hyperparameters
    are at the maximum of their posterior. With ``kernel="rbf"`` and ``mean="linear"`` it is the model with which ATLAS
    interpolates limits. A task at a cheaper fidelity is one more output; at most `CHEAP` values of each and `CHEAPER`
    of all are used, those that tell most about the thresholds.

    Attributes:
        kernel: "matern52" (default), "matern32" or "rbf", with one length scale per parameter.
        rank: columns of W: so many functions are shared by all tasks; beside them each task has its own. With cheaper
            fidelities at least as many as there are tasks: what a task has of its own is shared by its fidelities.
        latent: correlations of different length scales: 1 is the intrinsic model, more the linear model of
            coregionalisation.
        mean: "constant" or "linear" in the parameters, for each task; its coefficients are profiled out (generalised
            least squares).
        restarts: starting points of the L-BFGS search (1 to 4).
        max_iter: iterations per start.

    Raises:
        InvalidStrategy: settings out of range.
    """

    kernel: Literal["matern52", "matern32", "rbf"] = "matern52"
    rank: int = 2
    latent: int = 1
    mean: Literal["constant", "linear"] = "constant"
    restarts: int = 2
    max_iter: int = 100

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS or self.mean not in ("constant", "linear"):
            raise InvalidStrategy(
                f"multi-task process: kernel must be {', '.join(KERNELS)} and mean constant or linear, got "
                f"kernel={self.kernel!r}, mean={self.mean!r}"
            )
        if self.rank < 1 or self.latent < 1 or self.max_iter < 1 or not 1 <= self.restarts <= len(STARTS):
            raise InvalidStrategy(
                f"multi-task process: needs rank >= 1, latent >= 1, max_iter >= 1 and 1 <= restarts <= {len(STARTS)}, "
                f"got rank={self.rank!r}, latent={self.latent!r}, max_iter={self.max_iter!r}, "
                f"restarts={self.restarts!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Settings as JSON-compatible data."""
        return {"type": "MultiTask", **asdict(self)}

    @torch.no_grad()
    def fit(self, data: Observations) -> Posterior:
        """Fit all tasks together; see `Surrogate.fit`.

        Raises:
            FitError: fewer than two points, a task without a single value, values that differ too little for their
                squares, a cheaper fidelity that knows some parameters only, more than `DENSE` values of several
                fidelities, or numerical trouble.
        """
        if len(data) < 2:
            raise FitError(f"multi-task process: needs at least 2 observations, got {len(data)}. Evaluate more points")
        known = torch.ones_like(data.z, dtype=torch.bool) if data.known is None else data.known
        if not known.any(0).all():
            raise FitError(
                f"multi-task process: each task must have a value, got {known.sum(0).tolist()} per task. Leave out "
                "the task, or evaluate it once"
            )
        fidelities, data, known = _stacked(data)
        tensors = (data.u, data.z, data.variance, data.side, known.double(), *data.levels)
        return _remembered(self, fidelities, *((tuple(a.shape), a.contiguous().numpy().tobytes()) for a in tensors))

    def _fit(self, data: Observations, known: Tensor, fidelities: int = 1) -> Posterior:
        t = data.z.shape[1]
        shift, scale = _units(data.z, known, fidelities)
        y, variance = (data.z - shift) / scale, data.variance / scale**2
        levels = [((v - s) / c).numpy() for v, s, c in zip(data.levels, shift, scale)]
        task, point = known.T.nonzero().T
        values, noise, side = (a.T[task, point] for a in (y, variance, data.side))
        everything = JointEvidence(
            self.kernel,
            self.latent,
            data.u.numpy(),
            _basis(data.u, self.mean).numpy(),
            t,
            task.numpy(),
            point.numpy(),
            values.numpy(),
            noise.numpy(),
            np.ones(len(values)),
            fidelities,
        )
        each = t // fidelities
        rank = min(self.rank if fidelities == 1 else max(self.rank, each), t)
        counts = (FEW_POINTS, SOME_POINTS) if everything.whole else (FEW // each, SOME // each)
        few, some = (_telling(y.numpy(), known.numpy(), levels, count) for count in counts)
        with one_thread(SOME_POINTS):
            part = _some(everything, few)
            theta = part.maximum(part.first_guesses(rank, self.restarts), self.max_iter)
            if len(some) > len(few):
                theta = _some(everything, some).maximum([theta], max(1, self.max_iter // 3))
        censored = (side != 0).numpy()
        if censored.any():
            # The gradient of EP's evidence is that of the Gaussian evidence at fixed sites: the two are alternated.
            bounds = everything
            for _ in range(2):
                everything = self._with_sites(everything, bounds, side, theta)
                with one_thread(SOME_POINTS):
                    theta = _some(everything, some).maximum([theta], max(1, self.max_iter // 3))
            everything = self._with_sites(everything, bounds, side, theta)
        theta = _without_values(theta, data.u.shape[1], self.latent, known)
        exact = known & (data.side == 0)
        typical = (variance * exact).sum(0) / exact.sum(0).clamp_min(1)
        return self._process(everything, theta, shift, scale, typical)

    def _gram(self, e: JointEvidence, theta: np.ndarray) -> tuple[Coregionalisation, tuple[Kernel, ...], Tensor]:
        """Hyperparameters, correlations and the covariance of the values without noise."""
        h = Coregionalisation.of(theta, e.u.shape[1], e.tasks, e.latent)
        one = torch.ones(1, dtype=torch.float64)
        kernels = tuple(Kernel(self.kernel, torch.diag(torch.from_numpy(1 / scales)), one) for scales in h.scales)
        if e.whole:
            return h, kernels, torch.zeros(0)
        points = torch.from_numpy(e.u)
        gram = sum(
            (
                torch.from_numpy(b[np.ix_(e.task, e.task)]) * k(points, points)[np.ix_(e.point, e.point)]
                for b, k in zip(h.b, kernels)
            ),
            torch.zeros(len(e.y), len(e.y), dtype=torch.float64),
        )
        return h, kernels, gram

    def _with_sites(self, e: JointEvidence, bounds: JointEvidence, side: Tensor, theta: np.ndarray) -> JointEvidence:
        """Gaussian stand-ins for the bounds, by expectation propagation; ``e`` has those of the step before, if any."""
        h, _, gram = self._gram(replace(e, nuggets=(side == 0).double().numpy()), theta)
        nugget = h.nugget[e.task]
        noise = torch.from_numpy(e.noise + e.nuggets * nugget)
        basis = torch.from_numpy(by_rows(e.basis[e.point], e.task, e.tasks))
        beta = _profiled(cholesky(gram + torch.diag(noise)), basis, torch.from_numpy(e.y))[1]
        values, variances = censored_sites(
            gram, basis @ beta, torch.from_numpy(bounds.y), torch.from_numpy(bounds.noise + nugget), side
        )
        noise = torch.where(side == 0, torch.from_numpy(bounds.noise), variances)
        return replace(e, y=values.numpy(), noise=noise.numpy(), nuggets=(side == 0).double().numpy())

    def _process(self, e: JointEvidence, theta: np.ndarray, shift: Tensor, scale: Tensor, typical: Tensor) -> _Joint:
        h, kernels, gram = self._gram(e, theta)
        u, t, b, nugget = torch.from_numpy(e.u), e.tasks, torch.from_numpy(h.b), torch.from_numpy(h.nugget)
        model = _Model(
            kernels,
            b,
            self.mean,
            torch.zeros(t, e.basis.shape[1]).double(),
            shift,
            scale,
            nugget,
            typical,
            e.fidelities,
        )
        seen: _Rows | _Whole
        if e.whole:
            noise = e.noise.reshape(t, -1)[:, 0] + h.nugget
            spectrum = Spectrum.of(h.b[0], noise, kernels[0](u, u).numpy())
            coefficients, residual = spectrum.profiled(e.y.reshape(t, -1), e.basis)
            mixed = spectrum.mix @ h.b[0]
            shrink = np.einsum("pi,pj,pa->ija", mixed, mixed, 1 / spectrum.values)
            mean = mixed.T @ (spectrum.whitened(residual) / spectrum.values)
            seen = _Whole(u, *(torch.from_numpy(a) for a in (spectrum.vectors, shrink, mean)))
            beta = torch.from_numpy(coefficients)
        else:
            task, point = torch.from_numpy(e.task), torch.from_numpy(e.point)
            factor = cholesky(gram + torch.diag(torch.from_numpy(e.noise + e.nuggets * h.nugget[e.task])))
            basis = torch.from_numpy(by_rows(e.basis[e.point], e.task, t))
            white, beta = _profiled(factor, basis, torch.from_numpy(e.y))
            seen = _Rows(u, task, point, factor, white)
        empty = torch.zeros(0, dtype=u.dtype)
        return _Joint(replace(model, beta=beta.reshape(t, -1)), seen, u[:0], empty.reshape(0, 0), empty)


@functools.lru_cache(maxsize=16)
def _remembered(recipe: MultiTask, fidelities: int, *data: tuple[tuple[int, ...], bytes]) -> Posterior:
    """`MultiTask._fit`, a pure function: asks, status and pictures of one history fit once."""
    # An empty buffer is refused: no thresholds.
    u, z, variance, side, known, *levels = (
        torch.frombuffer(bytearray(b), dtype=torch.float64).reshape(shape) if b else torch.zeros(shape).double()
        for shape, b in data
    )
    return recipe._fit(Observations(u, z, variance, side, tuple(levels)), known.bool(), fidelities)


def _stacked(data: Observations) -> tuple[int, Observations, Tensor]:
    """How many fidelities there are, all of their observations as those of outputs (level, task), and which are known.

    Raises:
        FitError: a fidelity that knows some parameters only, or more than `DENSE` values of several fidelities.
    """
    chain = [data]
    while (below := chain[-1].cheaper) is not None:
        chain.append(below)
    if any(part.columns is not None for part in chain):
        raise FitError(
            f"multi-task process: each fidelity must depend on all parameters, got {[p.columns for p in chain]}. "
            "All share one kernel here: use the surrogate 'GaussianProcess'"
        )
    t, count = data.z.shape[1], len(chain)
    thresholds = data.levels or (torch.zeros(0, dtype=torch.float64),) * t
    parts, blocks = [], []
    for place, part in enumerate(chain):
        known = torch.ones_like(part.z, dtype=torch.bool) if part.known is None else part.known
        if place:
            most = min(CHEAP, max(2, CHEAPER // (t * (count - 1))))
            kept = _telling(part.z.numpy(), known.numpy(), [v.numpy() for v in thresholds], most)
            part, known = part.rows(kept), known[kept]
        parts.append(part)
        blocks.append(known)
    known = torch.block_diag(*(b.double() for b in blocks)).bool()
    if count > 1 and (values := int(known.sum())) > DENSE:
        raise FitError(
            f"multi-task process: can have {DENSE} values of several fidelities, got {values}. "
            "Use the surrogate 'GaussianProcess'"
        )
    z, variance, side = (
        torch.block_diag(*(getattr(p, name).where(b, 0.0) for p, b in zip(parts, blocks)))
        for name in ("z", "variance", "side")
    )
    return count, Observations(torch.cat([p.u for p in parts]), z, variance, side, thresholds * count), known


def _units(z: Tensor, known: Tensor, fidelities: int) -> Tensor:
    """Mean and standard deviation of each output's values, (2, t); those of the next dearer level if it has none."""
    t = z.shape[1] // fidelities
    out: list[Tensor] = []
    for i in range(z.shape[1]):
        out.append(_unit(z[known[:, i], i]) if known[:, i].any() else out[i - t])
    return torch.stack(out).T


def _without_values(theta: np.ndarray, d: int, latent: int, known: Tensor) -> np.ndarray:
    """The same, outputs without a value being independent of all others and as uncertain as they are large."""
    theta, t = theta.copy(), known.shape[1]
    parts = theta[:-t].reshape(latent, -1)
    silent = (~known.any(0)).numpy()
    parts[:, d:-t].reshape(latent, t, -1)[:, silent] = 0.0
    parts[:, -t:][:, silent] = -math.log(latent)
    return theta


def _unit(z: Tensor) -> Tensor:
    """Mean and standard deviation of values, (2,); their own size where they are all equal."""
    shift = z.mean()
    spread = (z - shift).abs().max()
    if spread > 1e-12 * shift.abs():
        scale = spread * ((z - shift) / spread).square().mean().sqrt()  # squares of tiny numbers underflow
    else:
        scale = shift.abs() if shift != 0 else torch.ones_like(shift)
    if scale < 1e-140:
        raise FitError(
            f"multi-task process: values must differ by more than 1e-140, got a deviation of {float(scale):.3g}. "
            "Variances would vanish in double precision: use a smaller unit"
        )
    return torch.stack([shift, scale])


def _telling(y: np.ndarray, known: np.ndarray, levels: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Indices of about `count` points that are telling for one task or another (see `exact.telling`), ascending."""
    n, t = y.shape
    if n <= count:
        return np.arange(n)
    where = [np.flatnonzero(k) for k in known.T]

    def union(each: int) -> np.ndarray:
        chosen = [w[telling(y[w, i], levels[i], each)] for i, w in enumerate(where)]
        return np.unique(np.concatenate(chosen))

    least = max(2, count // t)
    return union(least - 1 + max(1, bisect.bisect_right(range(least, n + 1), count, key=lambda k: len(union(k)))))


def _some(e: JointEvidence, points: np.ndarray) -> JointEvidence:
    """The evidence of the values at some of the points."""
    if len(points) == len(e.u):
        return e
    place = np.full(len(e.u), -1)
    place[points] = np.arange(len(points))
    kept = place[e.point] >= 0
    return replace(
        e,
        u=e.u[points],
        basis=e.basis[points],
        task=e.task[kept],
        point=place[e.point][kept],
        y=e.y[kept],
        noise=e.noise[kept],
        nuggets=e.nuggets[kept],
    )


def _profiled(factor: Tensor, basis: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1 (y - H beta) and the generalised-least-squares beta with a N(0, 1/`RIDGE`) prior on it."""
    solved = solve(factor, torch.cat([basis, y[:, None]], 1))
    h, w = solved[:, :-1], solved[:, -1]
    beta = torch.linalg.solve(h.T @ h + RIDGE * torch.eye(h.shape[1], dtype=y.dtype), h.T @ w)
    return w - h @ beta, beta
