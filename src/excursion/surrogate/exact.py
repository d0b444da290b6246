"""Exact Gaussian processes: Cholesky algebra, MAP hyperparameters, censored observations, one process per task.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): algorithms 2.1 and 3.5.
    Hvarfner et al., ICML 2024 (arXiv:2402.02229): length-scale priors that grow with the dimension.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator 0.6 uses torch.jit.script when it is imported, which torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
    import gpytorch
    from gpytorch.constraints import Positive
    from gpytorch.priors import LogNormalPrior

from ..errors import FitError, InvalidStrategy
from . import Observations, Posterior, Surrogate

#: Tried in turn, relative to the mean diagonal, until the Cholesky factorisation succeeds.
JITTERS = (0.0, 1e-12, 1e-10, 1e-8, 1e-6)
#: A censored observation whose site carries less precision than this (in standardised units) tells nothing.
_NO_PRECISION = 1e-10


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a symmetric matrix (n, n), with the least jitter of `JITTERS` that works.

    Raises:
        FitError: not positive definite even with the largest jitter, or not finite.
    """
    size = matrix.diagonal().mean()
    for jitter in JITTERS:
        factor, info = torch.linalg.cholesky_ex(
            matrix + jitter * size * torch.eye(len(matrix), dtype=matrix.dtype)
        )
        if not info.any() and torch.isfinite(factor).all():
            return factor
    raise FitError(
        f"Gaussian process: the covariance of {len(matrix)} points must be positive definite, got mean diagonal "
        f"{float(size):.3g} and largest jitter {JITTERS[-1]:g}. Look for duplicated points with different values"
    )


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _basis(u: Tensor, mean: str) -> Tensor:
    """Basis of the mean function: 1, and the centred coordinates if linear. Shape (n, 1) or (n, 1 + d)."""
    ones = torch.ones(len(u), 1, dtype=u.dtype)
    return ones if mean == "constant" else torch.cat([ones, u - 0.5], -1)


def _kernel(name: str, d: int) -> gpytorch.kernels.ScaleKernel:
    """Stationary kernel with one length scale per parameter; raw parameters are logarithms."""
    log = {"transform": torch.exp, "inv_transform": torch.log}
    settings: dict[str, Any] = {
        "ard_num_dims": d,
        "lengthscale_constraint": Positive(**log),
        # Grows with sqrt(d), as distances do: without it every function looks wiggly in high dimension.
        "lengthscale_prior": LogNormalPrior(math.sqrt(2) + 0.5 * math.log(d), math.sqrt(3)),
    }
    if name == "rbf":
        base: gpytorch.kernels.Kernel = gpytorch.kernels.RBFKernel(**settings)
    else:
        base = gpytorch.kernels.MaternKernel(nu={"matern52": 2.5, "matern32": 1.5}[name], **settings)
    return gpytorch.kernels.ScaleKernel(
        base, outputscale_constraint=Positive(**log), outputscale_prior=LogNormalPrior(0.0, 1.5)
    ).double()


@dataclass(frozen=True)
class _Process(Posterior):
    """One task: z = shift + scale * (basis @ beta + GP), data in standardised units.

    ``white`` is L^-1 (z - mean) for L L^T = K + noise: predictions and rank updates need nothing else.
    """

    kernel: gpytorch.kernels.Kernel
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
        return self.kernel(a, b).to_dense()

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised mean (n,) and L^-1 k(data, u)."""
        v = _solve(self.factor, self._k(self.u, u))
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
        va, vb = _solve(self.factor, self._k(self.u, a)), _solve(self.factor, self._k(self.u, b))
        return (self.scale**2 * (self._k(a, b) - va.T @ vb))[None]

    @property
    def noise(self) -> Tensor:
        return (self.scale**2 * (self.nugget + self.known))[None]

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        mean, v = self._project(u)
        noise = (
            (self.nugget + self.known).expand(len(u)) if variance is None else variance[:, 0] / self.scale**2
        )
        corner = cholesky(self._k(u, u) - v.T @ v + torch.diag(noise))
        if z is None:
            white = torch.zeros(len(u), dtype=u.dtype)  # what is seen is what was expected
        else:
            white = _solve(corner, ((z[:, 0] - self.shift) / self.scale - mean)[:, None])[:, 0]
        zeros = torch.zeros(len(self.u), len(u), dtype=u.dtype)
        factor = torch.cat([torch.cat([self.factor, zeros], 1), torch.cat([v.T, corner], 1)], 0)
        return replace(self, u=torch.cat([self.u, u]), factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        return (
            {
                "lengthscales": self.kernel.base_kernel.lengthscale[0].tolist(),
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
        means, variances = zip(*(p.marginal(u) for p in self.parts))
        return torch.cat(means), torch.cat(variances)

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        means, covariances = zip(*(p.joint(u) for p in self.parts))
        return torch.cat(means), torch.cat(covariances)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([p.cross(a, b) for p in self.parts])

    @property
    def noise(self) -> Tensor:
        return torch.cat([p.noise for p in self.parts])

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        columns = [slice(i, i + 1) for i in range(len(self.parts))]
        return Independent(
            tuple(
                p.condition(u, None if z is None else z[:, c], None if variance is None else variance[:, c])
                for p, c in zip(self.parts, columns)
            )
        )

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        return tuple(h for p in self.parts for h in p.hyperparameters)


def censored_sites(
    covariance: Tensor,
    mean: Tensor,
    z: Tensor,
    variance: Tensor,
    side: Tensor,
    *,
    sweeps: int = 200,
    tol: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Gaussian observations that stand for censored ones, by expectation propagation.

    The likelihood of a censored observation is Phi(side (f - z)/sqrt(variance)): f plus the noise lies beyond z. Exact
    observations are left as they are.

    Args:
        covariance: prior covariance of f, (n, n).
        mean: prior mean, (n,).
        z: values, or bounds where censored, (n,).
        variance: noise variances, positive where censored, (n,).
        side: 0 exact, +1 above, -1 below, (n,).

    Returns:
        Values (n,) and noise variances (n,); a site that tells nothing has a variance of 1e10.

    Raises:
        FitError: no convergence.

    References:
        Rasmussen and Williams (2006), section 3.6 (parallel updates, damped).
    """
    censored = side != 0
    precision = torch.where(censored, torch.full_like(z, _NO_PRECISION), 1 / variance)
    location = torch.where(
        censored, torch.zeros_like(z), precision * (z - mean)
    )  # precision times mean, centred
    bound, s = (z - mean)[censored], side[censored]
    change = math.inf
    for _ in range(sweeps):
        root = precision.sqrt()
        factor = cholesky(torch.eye(len(z), dtype=z.dtype) + root[:, None] * covariance * root)
        v = _solve(factor, root[:, None] * covariance)
        posterior = covariance - v.T @ v
        m, s2 = posterior @ location, posterior.diagonal()
        cavity_precision = (1 / s2 - precision)[censored].clamp_min(1e-12)
        cavity_mean = (m / s2 - location)[censored] / cavity_precision
        total = variance[censored] + 1 / cavity_precision
        t = s * (cavity_mean - bound) / total.sqrt()
        ratio = torch.exp(-0.5 * t**2 - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(t))
        new_variance = 1 / cavity_precision - ratio * (t + ratio) / (cavity_precision**2 * total)
        new_mean = cavity_mean + s * ratio / (cavity_precision * total.sqrt())
        site_precision = (1 / new_variance - cavity_precision).clamp_min(_NO_PRECISION)
        site_location = new_mean / new_variance - cavity_precision * cavity_mean
        change = max(
            float((site_precision - precision[censored]).abs().max() / (1 + precision[censored].max())),
            float((site_location - location[censored]).abs().max() / (1 + location[censored].abs().max())),
        )
        precision, location = precision.clone(), location.clone()
        precision[censored] += 0.7 * (site_precision - precision[censored])
        location[censored] += 0.7 * (site_location - location[censored])
        if change < tol:
            return torch.where(censored, mean + location / precision, z), 1 / precision
    raise FitError(
        f"expectation propagation: must converge in {sweeps} sweeps, got a last change of {change:.3g} with "
        f"{int(censored.sum())} censored of {len(z)} observations. Report this data set"
    )


@dataclass(frozen=True)
class GaussianProcess(Surrogate):
    """Exact Gaussian process, one per task, float64, hyperparameters at the maximum of their posterior.

    Attributes:
        kernel: "matern52" (default), "matern32" or "rbf", with one length scale per parameter.
        mean: "constant" or "linear"; its coefficients are profiled out (generalised least squares).
        restarts: starting points of the L-BFGS search (1 to 4).
        max_iter: iterations per start.
    """

    kernel: Literal["matern52", "matern32", "rbf"] = "matern52"
    mean: Literal["constant", "linear"] = "constant"
    restarts: int = 2
    max_iter: int = 80

    def __post_init__(self) -> None:
        if self.kernel not in ("matern52", "matern32", "rbf") or self.mean not in ("constant", "linear"):
            raise InvalidStrategy(
                "Gaussian process: kernel must be matern52, matern32 or rbf and mean constant or linear, got "
                f"kernel={self.kernel!r}, mean={self.mean!r}"
            )
        if not 1 <= self.restarts <= len(_STARTS) or self.max_iter < 1:
            raise InvalidStrategy(
                f"Gaussian process: needs 1 <= restarts <= {len(_STARTS)} and max_iter >= 1, got "
                f"restarts={self.restarts!r}, max_iter={self.max_iter!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Settings as JSON-compatible data."""
        return {"type": "GaussianProcess", **asdict(self)}

    def fit(self, data: Observations) -> Posterior:
        """Fit each task on its own; see `Surrogate.fit`."""
        if len(data) < 2:
            raise FitError(
                f"Gaussian process: needs at least 2 observations, got {len(data)}. Evaluate more points"
            )
        parts = [
            self._fit_task(data.u, data.z[:, i], data.variance[:, i], data.side[:, i])
            for i in range(data.z.shape[1])
        ]
        return parts[0] if len(parts) == 1 else Independent(tuple(parts))

    def _fit_task(self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor) -> Posterior:
        shift = z.mean()
        scale = (z - shift).square().mean().sqrt()
        if not scale > 1e-12 * (1 + shift.abs()):
            scale = torch.ones_like(shift)  # constant so far: nothing to standardise by
        y, known = (z - shift) / scale, variance / scale**2
        kernel = _kernel(self.kernel, u.shape[1])
        values, noise = y, known  # of the Gaussian observations; sites where censored
        raw, nugget = _START_RAW, torch.tensor(math.nan)
        sites = torch.zeros_like(y)
        for _ in range(3 if side.any() else 1):
            # Censored: the gradient of EP's evidence is that of the Gaussian evidence at fixed sites, so the two are
            # alternated; the first round takes the bounds as values.
            starts = [raw] if raw is not _START_RAW else list(_STARTS[: self.restarts])
            raw = self._optimise(kernel, u, values, noise, sites, starts)
            nugget = torch.tensor(math.exp(raw[-1]), dtype=torch.float64)
            if side.any():
                with torch.no_grad():
                    k = kernel(u, u).to_dense()
                    beta = _profile(k + torch.diag(noise + (1 - sites) * nugget), u, values, self.mean)[2]
                    values, noise = censored_sites(k, _basis(u, self.mean) @ beta, y, known + nugget, side)
                    noise = torch.where(side == 0, known, noise)
                    sites = side.abs()
        kernel.requires_grad_(False)
        with torch.no_grad():
            factor, white, beta = _profile(
                kernel(u, u).to_dense() + torch.diag(noise + (1 - sites) * nugget), u, values, self.mean
            )
        exact = known[side == 0]
        typical = exact.mean() if len(exact) else torch.zeros_like(shift)
        return _Process(kernel, self.mean, beta, shift, scale, nugget, typical, u, factor, white)

    def _optimise(
        self,
        kernel: gpytorch.kernels.Kernel,
        u: Tensor,
        y: Tensor,
        noise: Tensor,
        sites: Tensor,
        starts: list,
    ) -> np.ndarray:
        """Set the kernel to the maximum of the log posterior; return (log length scales, log amplitude^2, log nugget).

        ``sites`` is 1 where an observation stands for a censored one: its noise is complete, without the nugget.
        """
        d = u.shape[1]
        raw_noise = torch.zeros((), dtype=torch.float64, requires_grad=True)
        parameters = [kernel.base_kernel.raw_lengthscale, kernel.raw_outputscale, raw_noise]

        def assign(theta: np.ndarray) -> None:
            values = torch.from_numpy(np.ascontiguousarray(theta))
            with torch.no_grad():
                parameters[0].copy_(values[None, :d])
                parameters[1].copy_(values[d])
                raw_noise.copy_(values[d + 1])

        @torch.enable_grad()
        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            assign(theta)
            covariance = kernel(u, u).to_dense() + torch.diag(noise + (1 - sites) * raw_noise.exp())
            factor, white, _ = _profile(covariance, u, y, self.mean)
            value = 0.5 * white.square().sum() + factor.diagonal().log().sum()
            value = (
                value - kernel.base_kernel.lengthscale_prior.log_prob(kernel.base_kernel.lengthscale).sum()
            )
            value = value - kernel.outputscale_prior.log_prob(kernel.outputscale).sum()
            value = value - _NUGGET_PRIOR.log_prob(raw_noise)
            gradient = torch.autograd.grad(value, parameters)
            return float(value.detach()), np.concatenate([g.reshape(-1).numpy() for g in gradient])

        bounds = [(math.log(5e-3), math.log(1e3))] * d + [(math.log(1e-3), math.log(1e4)), _LOG_NUGGET]
        best: scipy.optimize.OptimizeResult | None = None
        for start in starts:
            first = (
                start
                if len(start) == d + 2
                else np.array([start[0] + 0.5 * math.log(d)] * d + list(start[1:]))
            )
            found = scipy.optimize.minimize(
                loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": self.max_iter}
            )
            if best is None or found.fun < best.fun:
                best = found
        if best is None or not np.isfinite(best.fun) or not np.isfinite(best.x).all():
            raise FitError(f"Gaussian process: the fit must end at finite hyperparameters, got {best}")
        assign(best.x)
        return best.x


#: (log length scale for d = 1, log amplitude^2, log nugget) where the search starts.
_STARTS = (
    np.array([math.log(0.4), 0.0, math.log(1e-4)]),
    np.array([math.log(0.15), 0.0, math.log(1e-6)]),
    np.array([math.log(1.5), 1.0, math.log(1e-6)]),
    np.array([math.log(0.3), 0.0, math.log(1e-2)]),
)
_START_RAW = _STARTS[0]
_LOG_NUGGET = (math.log(1e-9), math.log(1.0))
# Deterministic simulators have no noise, Monte Carlo limits a few per cent: four decades either way.
_NUGGET_PRIOR = torch.distributions.Normal(
    torch.tensor(math.log(1e-5), dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64)
)


def _profile(covariance: Tensor, u: Tensor, y: Tensor, mean: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor L, L^-1 (y - H beta) and the generalised-least-squares beta with a N(0, 10^2) prior on it."""
    factor = cholesky(covariance)
    basis = _basis(u, mean)
    solved = _solve(factor, torch.cat([basis, y[:, None]], 1))
    h, w = solved[:, :-1], solved[:, -1]
    beta = torch.linalg.solve(h.T @ h + 1e-2 * torch.eye(h.shape[1], dtype=u.dtype), h.T @ w)
    return factor, w - h @ beta, beta
