"""Exact Gaussian processes: Cholesky algebra, MAP hyperparameters, censored observations, one process per task.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): algorithms 2.1 and 3.5.
    Hvarfner et al., ICML 2024 (arXiv:2402.02229): length-scale priors that grow with the dimension.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import log_ndtr
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator 0.6 uses torch.jit.script when it is imported, which torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
    import gpytorch

from ..errors import FitError, InvalidStrategy
from . import Observations, Posterior, Surrogate
from .censored import censored_sites
from .evidence import RIDGE, STARTS, Evidence, first_guesses, split
from .linalg import cholesky, solve


def _basis(u: Tensor, mean: str) -> Tensor:
    """Basis of the mean function: 1, and the centred coordinates if linear. Shape (n, 1) or (n, 1 + d)."""
    ones = torch.ones(len(u), 1, dtype=u.dtype)
    return ones if mean == "constant" else torch.cat([ones, u - 0.5], -1)


def _kernel(name: str, lengthscales: np.ndarray, amplitude: float) -> gpytorch.kernels.ScaleKernel:
    """Stationary kernel with one length scale per coordinate; ``amplitude`` is the variance."""
    if name == "rbf":
        base: gpytorch.kernels.Kernel = gpytorch.kernels.RBFKernel(ard_num_dims=len(lengthscales))
    else:
        nu = {"matern52": 2.5, "matern32": 1.5}[name]
        base = gpytorch.kernels.MaternKernel(nu=nu, ard_num_dims=len(lengthscales))
    kernel = gpytorch.kernels.ScaleKernel(base).double()
    kernel.base_kernel.lengthscale = torch.from_numpy(lengthscales)
    kernel.outputscale = amplitude
    return kernel.requires_grad_(False)


@dataclass(frozen=True, repr=False)
class _Process(Posterior):
    """One task: z = shift + scale * (basis @ beta + GP), data in standardised units.

    ``white`` is L^-1 (z - mean) for L L^T = K + noise: predictions and rank updates need nothing else.
    """

    kernel: gpytorch.kernels.Kernel
    mix: Tensor  # 1 + W: the kernel's coordinates are mix @ u
    mean: str
    beta: Tensor
    shift: Tensor
    scale: Tensor
    nugget: Tensor  # learned noise variance, standardised
    known: Tensor  # typical known variance of an observation, standardised
    u: Tensor
    factor: Tensor
    white: Tensor

    def _k(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a, b), shape (n, m): GPyTorch's kernel, in place and in pieces that fit into the cache, for speed."""
        base, amplitude = self.kernel.base_kernel, self._amplitude()
        # -r^2/2 for RBF, 2 nu r^2 for Matern, by one product of matrices.
        unit = -0.5 if isinstance(base, gpytorch.kernels.RBFKernel) else 2 * base.nu
        metric = (self.mix / base.lengthscale[0][:, None]).T
        x, y = ((p - 0.5) @ metric for p in (a, b))
        one = torch.ones_like
        left = unit * torch.cat([-2 * x, x.square().sum(1, True), one(x[:, :1])], 1)
        right = torch.cat([y, one(y[:, :1]), y.square().sum(1, True)], 1).T
        out = a.new_empty(len(a), len(b))
        rows = max(1, 2**15 // max(1, len(b)))
        for i in range(0, len(a), rows):
            part = torch.mm(left[i : i + rows], right, out=out[i : i + rows])
            if unit < 0:
                part.clamp_max_(0.0).exp_().mul_(amplitude)
                continue
            s = part.clamp_min_(0.0).sqrt_()
            decay = torch.neg(s).exp_()
            # Matern 3/2: 1 + s; 5/2: 1 + s + s^2/3.
            inner = amplitude if base.nu == 1.5 else torch.add(amplitude, s, alpha=float(amplitude) / 3)
            torch.addcmul(amplitude, inner, s, out=part).mul_(decay)
        return out

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised mean (n,) and L^-1 k(data, u)."""
        v = solve(self.factor, self._k(self.u, u))
        return _basis(u, self.mean) @ self.beta + v.T @ self.white, v

    def _amplitude(self) -> Tensor:
        return self.kernel.outputscale

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        m, v = self._project(u)
        variance = (self._amplitude() - (v**2).sum(0)).clamp_min(1e-14)
        return (self.shift + self.scale * m)[None], (self.scale**2 * variance)[None]

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        m, v = self._project(u)
        return (self.shift + self.scale * m)[None], (self.scale**2 * (self._k(u, u) - v.T @ v))[None]

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        return self.covariance_with(b)(a)

    def covariance_with(self, a: Tensor) -> Callable[[Tensor], Tensor]:
        va = solve(self.factor, self._k(self.u, a))

        def cross(b: Tensor) -> Tensor:
            vb = solve(self.factor, self._k(self.u, b))
            return torch.addmm(self._k(b, a), vb.T, va, alpha=-1).mul_(self.scale**2)[None]

        return cross

    @property
    def noise(self) -> Tensor:
        return (self.scale**2 * (self.nugget + self.known))[None]

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        mean, v = self._project(u)
        noise = (self.nugget + self.known).expand(len(u)) if variance is None else variance[:, 0] / self.scale**2
        corner = cholesky(self._k(u, u) - v.T @ v + torch.diag(noise))
        if z is None:
            white = torch.zeros(len(u), dtype=u.dtype)  # what is seen is what was expected
        else:
            white = solve(corner, ((z[:, 0] - self.shift) / self.scale - mean)[:, None])[:, 0]
        zeros = torch.zeros(len(self.u), len(u), dtype=u.dtype)
        factor = torch.cat([torch.cat([self.factor, zeros], 1), torch.cat([v.T, corner], 1)], 0)
        return replace(self, u=torch.cat([self.u, u]), factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        metric = self.mix / self.kernel.base_kernel.lengthscale[0][:, None]
        return (
            {
                "lengthscales": metric.square().sum(0).rsqrt().tolist(),
                "metric": metric.tolist(),
                "amplitude": float(self.scale * self._amplitude().sqrt()),
                "nugget": float(self.scale * self.nugget.sqrt()),
                "mean": (self.shift + self.scale * self.beta[0]).item(),
            },
        )


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
class GaussianProcess(Surrogate):
    """Exact Gaussian process, one per task, float64, hyperparameters at a maximum of their posterior.

    Attributes:
        kernel: "matern52", "matern32" or "rbf"; "auto" (default) is whichever Matern kernel predicts the class of
            held-out observations better (or, without thresholds, has the higher posterior).
        metric: "ard": one length scale per parameter; "full": a general metric, which sees that a function depends on
            m1 - m2, say; "auto": whichever predicts better, likewise (see `evidence`).
        mean: "constant" or "linear"; its coefficients are profiled out (generalised least squares).
        restarts: starting points of the L-BFGS search (1 to 4).
        max_iter: iterations per start.
    """

    kernel: Literal["auto", "matern52", "matern32", "rbf"] = "auto"
    metric: Literal["auto", "ard", "full"] = "auto"
    mean: Literal["constant", "linear"] = "constant"
    restarts: int = 2
    max_iter: int = 80

    def __post_init__(self) -> None:
        if self.kernel not in ("auto", "matern52", "matern32", "rbf") or self.mean not in ("constant", "linear"):
            raise InvalidStrategy(
                "Gaussian process: kernel must be auto, matern52, matern32 or rbf and mean constant or linear, got "
                f"kernel={self.kernel!r}, mean={self.mean!r}"
            )
        if self.metric not in ("auto", "ard", "full"):
            raise InvalidStrategy(f"Gaussian process: metric must be auto, ard or full, got metric={self.metric!r}")
        if not 1 <= self.restarts <= len(STARTS) or self.max_iter < 1:
            raise InvalidStrategy(
                f"Gaussian process: needs 1 <= restarts <= {len(STARTS)} and max_iter >= 1, got "
                f"restarts={self.restarts!r}, max_iter={self.max_iter!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Settings as JSON-compatible data."""
        return {"type": "GaussianProcess", **asdict(self)}

    @torch.no_grad()
    def fit(self, data: Observations) -> Posterior:
        """Fit each task on its own; see `Surrogate.fit`."""
        if len(data) < 2:
            raise FitError(f"Gaussian process: needs at least 2 observations, got {len(data)}. Evaluate more points")
        thresholds = data.levels or (torch.zeros(0, dtype=torch.float64),) * data.z.shape[1]
        parts = [
            _remembered(self, len(data), *(a.numpy().tobytes() for a in (data.u, z, variance, side, levels)))
            for z, variance, side, levels in zip(data.z.T, data.variance.T, data.side.T, thresholds)
        ]
        return parts[0] if len(parts) == 1 else Independent(tuple(parts))

    def fit_task(self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor, levels: Tensor) -> Posterior:
        """The belief about one task from values z (n,), their variances and sides, and its thresholds (k,)."""
        shift = z.mean()
        spread = (z - shift).abs().max()
        if spread > 1e-12 * shift.abs():
            scale = spread * ((z - shift) / spread).square().mean().sqrt()  # squares of tiny numbers underflow
        else:  # constant so far: nothing to standardise by but its own size
            scale = shift.abs() if shift != 0 else torch.ones_like(shift)
        y, known = (z - shift) / scale, variance / scale**2
        values, noise = y, known  # of the Gaussian observations that are fitted: sites where censored
        sites = torch.zeros_like(y)
        name, theta = "", np.empty(0)
        for _ in range(3 if side.any() else 1):
            # Censored: the gradient of EP's evidence is that of the Gaussian evidence at fixed sites, so the two are
            # alternated; the first round takes the bounds as values.
            data = (u, _basis(u, self.mean), values, noise, 1 - sites)
            arrays = [t.numpy() for t in data]
            if not name:
                name, theta = self._choose(arrays, ((levels - shift) / scale).numpy(), side.numpy())
            else:
                theta, _ = Evidence(name, *arrays).polished(theta, self.max_iter)
            lengths, mixing, amplitude, learned = split(theta, u.shape[1])
            kernel, mix = _kernel(name, lengths, amplitude), torch.from_numpy(mixing)
            nugget = torch.tensor(learned, dtype=u.dtype)
            gram = kernel(u @ mix.T, u @ mix.T).to_dense()
            if side.any():
                beta = _profile(gram + torch.diag(noise + (1 - sites) * nugget), u, values, self.mean)[2]
                values, noise = censored_sites(gram, _basis(u, self.mean) @ beta, y, known + nugget, side)
                sites = side.abs()
                noise = torch.where(side == 0, known, noise)
        factor, white, beta = _profile(gram + torch.diag(noise + (1 - sites) * nugget), u, values, self.mean)
        exact = known[side == 0]
        typical = exact.mean() if len(exact) else torch.zeros_like(shift)
        return _Process(kernel, mix, self.mean, beta, shift, scale, nugget, typical, u, factor, white)

    def _choose(self, arrays: list[np.ndarray], levels: np.ndarray, side: np.ndarray) -> tuple[str, np.ndarray]:
        """Kernel and hyperparameters among the maxima of the posterior that predict the class of held-out points best.

        The score is sum_i ln P(class of i | all others) over observations and thresholds, plus a fifth of the log
        posterior, which decides where the classes do not. Where a function has a cliff, the highest maximum is often
        one that is rough everywhere and gets the class wrong between the points.
        """
        u, y = arrays[0], arrays[2]
        names = ("matern52", "matern32") if self.kernel == "auto" else (self.kernel,)
        guesses = first_guesses(u.shape[1], self.restarts)
        found = [
            (name, theta, value)
            for name in names
            for theta, value in Evidence(name, *arrays).modes(self.metric, guesses, self.max_iter)
        ]
        if len(found) == 1:
            return found[0][0], found[0][1]

        def score(candidate: tuple[str, np.ndarray, float]) -> float:
            name, theta, value = candidate
            mean, variance = Evidence(name, *arrays).held_out(theta)
            total = -0.2 * value
            for level in levels:
                # A bound tells the class only if it lies on the far side of the threshold.
                known = np.where(side == 0, True, np.where(side > 0, y >= level, y <= level))
                sign = np.where((side > 0) | ((side == 0) & (y >= level)), 1.0, -1.0)
                total += np.maximum(log_ndtr(sign * (mean - level) / np.sqrt(variance)), -14.0)[known].sum()
            return float(total)

        best = max(found, key=score)
        return best[0], best[1]


@functools.lru_cache(maxsize=16)
def _remembered(recipe: GaussianProcess, n: int, *data: bytes) -> Posterior:
    """`GaussianProcess.fit_task`, which is a pure function: asks, status and pictures of one history fit it once."""
    # An empty buffer is refused: no thresholds.
    tensors = [torch.frombuffer(bytearray(b), dtype=torch.float64) if b else torch.zeros(0).double() for b in data]
    return recipe.fit_task(tensors[0].reshape(n, -1), *tensors[1:])


def _profile(covariance: Tensor, u: Tensor, y: Tensor, mean: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor L, L^-1 (y - H beta) and the generalised-least-squares beta with a N(0, 10^2) prior on it."""
    factor = cholesky(covariance)
    basis = _basis(u, mean)
    solved = solve(factor, torch.cat([basis, y[:, None]], 1))
    h, w = solved[:, :-1], solved[:, -1]
    beta = torch.linalg.solve(h.T @ h + RIDGE * torch.eye(h.shape[1], dtype=u.dtype), h.T @ w)
    return factor, w - h @ beta, beta
