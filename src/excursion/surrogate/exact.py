"""Exact Gaussian processes: Cholesky algebra, MAP hyperparameters, censored observations, one process per task.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): algorithms 2.1 and 3.5.
    Hvarfner et al., ICML 2024 (arXiv:2402.02229): length-scale priors that grow with the dimension.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator 0.6 uses torch.jit.script when it is imported, which torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
    import gpytorch

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
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * size * torch.eye(len(matrix), dtype=matrix.dtype))
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


def _kernel(name: str, theta: np.ndarray) -> gpytorch.kernels.ScaleKernel:
    """Stationary kernel with one length scale per parameter, at (log length scales, log amplitude^2, log nugget)."""
    d = len(theta) - 2
    if name == "rbf":
        base: gpytorch.kernels.Kernel = gpytorch.kernels.RBFKernel(ard_num_dims=d)
    else:
        base = gpytorch.kernels.MaternKernel(nu={"matern52": 2.5, "matern32": 1.5}[name], ard_num_dims=d)
    kernel = gpytorch.kernels.ScaleKernel(base).double()
    kernel.base_kernel.lengthscale = torch.from_numpy(np.exp(theta[:d]))
    kernel.outputscale = math.exp(theta[d])
    return kernel.requires_grad_(False)


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
        noise = (self.nugget + self.known).expand(len(u)) if variance is None else variance[:, 0] / self.scale**2
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
    location = torch.where(censored, torch.zeros_like(z), precision * (z - mean))  # precision times mean, centred
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

    @torch.no_grad()
    def fit(self, data: Observations) -> Posterior:
        """Fit each task on its own; see `Surrogate.fit`."""
        if len(data) < 2:
            raise FitError(f"Gaussian process: needs at least 2 observations, got {len(data)}. Evaluate more points")
        parts = [
            self._fit_task(data.u, data.z[:, i], data.variance[:, i], data.side[:, i]) for i in range(data.z.shape[1])
        ]
        return parts[0] if len(parts) == 1 else Independent(tuple(parts))

    def _fit_task(self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor) -> Posterior:
        shift = z.mean()
        scale = (z - shift).square().mean().sqrt()
        if not scale > 1e-12 * (1 + shift.abs()):
            scale = torch.ones_like(shift)  # constant so far: nothing to standardise by
        y, known = (z - shift) / scale, variance / scale**2
        values, noise = y, known  # of the Gaussian observations that are fitted: sites where censored
        sites = torch.zeros_like(y)
        starts: Sequence[np.ndarray] = _STARTS[: self.restarts]
        # Censored: the gradient of EP's evidence is that of the Gaussian evidence at fixed sites, so the two are
        # alternated; the first round takes the bounds as values.
        for _ in range(3 if side.any() else 1):
            theta = self._optimise(u, values, noise, sites, starts)
            starts = [theta]
            kernel, nugget = _kernel(self.kernel, theta), torch.tensor(math.exp(theta[-1]), dtype=u.dtype)
            gram = kernel(u, u).to_dense()
            if side.any():
                beta = _profile(gram + torch.diag(noise + (1 - sites) * nugget), u, values, self.mean)[2]
                values, noise = censored_sites(gram, _basis(u, self.mean) @ beta, y, known + nugget, side)
                sites = side.abs()
                noise = torch.where(side == 0, known, noise)
        factor, white, beta = _profile(gram + torch.diag(noise + (1 - sites) * nugget), u, values, self.mean)
        exact = known[side == 0]
        typical = exact.mean() if len(exact) else torch.zeros_like(shift)
        return _Process(kernel, self.mean, beta, shift, scale, nugget, typical, u, factor, white)

    def _optimise(self, u: Tensor, y: Tensor, noise: Tensor, sites: Tensor, starts: Sequence[np.ndarray]) -> np.ndarray:
        """The maximum of the log posterior: (log length scales, log amplitude^2, log nugget), shape (d + 2,)."""
        d = u.shape[1]
        points, values = u.numpy(), y.numpy()
        squares = np.ascontiguousarray(((points[:, None] - points[None]) ** 2).transpose(2, 0, 1))
        basis = _basis(u, self.mean).numpy()

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            return _negative_log_posterior(theta, self.kernel, squares, basis, values, noise.numpy(), 1 - sites.numpy())

        bounds = [(math.log(5e-3), math.log(1e3))] * d + [(math.log(1e-3), math.log(1e4)), _LOG_NUGGET]
        best: scipy.optimize.OptimizeResult | None = None
        for start in starts:
            first = start if len(start) == d + 2 else np.array([start[0] + 0.5 * math.log(d)] * d + list(start[1:]))
            found = scipy.optimize.minimize(
                loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": self.max_iter}
            )
            if best is None or found.fun < best.fun:
                best = found
        if best is None or not np.isfinite(best.fun) or not np.isfinite(best.x).all():
            raise FitError(f"Gaussian process: the fit must end at finite hyperparameters, got {best}")
        return best.x


#: (log length scale for d = 1, log amplitude^2, log nugget) where the search starts.
_STARTS = (
    np.array([math.log(0.4), 0.0, math.log(1e-4)]),
    np.array([math.log(0.15), 0.0, math.log(1e-6)]),
    np.array([math.log(1.5), 1.0, math.log(1e-6)]),
    np.array([math.log(0.3), 0.0, math.log(1e-2)]),
)
_LOG_NUGGET = (math.log(1e-9), math.log(1.0))
# Deterministic simulators have no noise, Monte Carlo limits a few per cent: four decades either way.
#: Mean and standard deviation of the normal prior on the log nugget: deterministic simulators have none, Monte Carlo
#: limits some per cent.
_NUGGET_PRIOR = (math.log(1e-5), 4.0)
#: Mean and standard deviation of the normal prior on the log amplitude^2 (standardised values).
_AMPLITUDE_PRIOR = (0.0, 1.5)
#: Precision of the normal prior on the coefficients of the mean.
_RIDGE = 1e-2


def _lengthscale_prior(d: int) -> tuple[float, float]:
    """Mean and standard deviation of log l; grows with sqrt(d) as distances do (Hvarfner et al. 2024, eq. 5)."""
    return math.sqrt(2) + 0.5 * math.log(d), math.sqrt(3)


def _correlation(name: str, squares: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k(r)/amplitude^2 for r^2 = sum_k inverse_k squares_k, and -2 dk/d(r^2), both (n, n)."""
    r2 = np.tensordot(inverse, squares, 1)
    if name == "rbf":
        k = np.exp(-0.5 * r2)
        return k, k
    nu = 5.0 if name == "matern52" else 3.0
    r = np.sqrt(nu * r2)
    decay = np.exp(-r)
    if name == "matern52":
        return (1 + r + r * r / 3) * decay, (5 / 3) * (1 + r) * decay
    return (1 + r) * decay, 3 * decay


def _negative_log_posterior(
    theta: np.ndarray,
    kernel: str,
    squares: np.ndarray,
    basis: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    nuggets: np.ndarray,
) -> tuple[float, np.ndarray]:
    """-ln p(y | theta) - ln p(theta) up to a constant, the mean's coefficients at their best; and its gradient.

    In numpy with the gradient by hand: for some tens of points this is ten times faster than automatic
    differentiation, and a campaign fits at every ask. By the envelope theorem the mean's coefficients count as
    constant.

    Args:
        theta: (log length scales, log amplitude^2, log nugget), (d + 2,).
        kernel: name.
        squares: squared differences of the points per parameter, (d, n, n).
        basis: of the mean, (n, b).
        y: values, (n,).
        noise: known variances, (n,).
        nuggets: 1 where the nugget adds to the noise, 0 where an observation stands for a censored one, (n,).

    References:
        Rasmussen and Williams (2006), eq. 5.9.
    """
    d, n = len(squares), len(y)
    inverse, amplitude, nugget = np.exp(-2 * theta[:d]), math.exp(theta[d]), math.exp(theta[d + 1])
    correlation, slope = _correlation(kernel, squares, inverse)
    covariance = amplitude * correlation
    covariance.flat[:: n + 1] += noise + nuggets * nugget
    factor = cholesky(torch.from_numpy(covariance)).numpy()
    precision, _ = scipy.linalg.lapack.dpotri(factor, lower=1)
    precision = np.tril(precision) + np.tril(precision, -1).T
    weighted = precision @ basis
    beta = np.linalg.solve(basis.T @ weighted + _RIDGE * np.eye(basis.shape[1]), weighted.T @ y)
    residual = y - basis @ beta
    alpha = precision @ residual
    value = 0.5 * (residual @ alpha + _RIDGE * beta @ beta) + np.log(np.diagonal(factor)).sum()
    # dL/dK = (K^-1 - alpha alpha^T)/2
    pull = 0.5 * (precision - np.outer(alpha, alpha))
    gradient = np.empty_like(theta)
    gradient[:d] = amplitude * inverse * np.einsum("ij,kij->k", pull * slope, squares)
    gradient[d] = amplitude * np.vdot(pull, correlation)
    gradient[d + 1] = nugget * (np.diagonal(pull) * nuggets).sum()

    # Log-normal densities of length scale and amplitude^2 (with their Jacobian 1/x), normal in the log nugget.
    center, width = _lengthscale_prior(d)
    for i, (mean, sd, jacobian) in enumerate(
        [*[(center, width, 1.0)] * d, (*_AMPLITUDE_PRIOR, 1.0), (*_NUGGET_PRIOR, 0.0)]
    ):
        t = (theta[i] - mean) / sd
        value += 0.5 * t * t + jacobian * theta[i]
        gradient[i] += t / sd + jacobian
    return float(value), gradient


def _profile(covariance: Tensor, u: Tensor, y: Tensor, mean: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor L, L^-1 (y - H beta) and the generalised-least-squares beta with a N(0, 10^2) prior on it."""
    factor = cholesky(covariance)
    basis = _basis(u, mean)
    solved = _solve(factor, torch.cat([basis, y[:, None]], 1))
    h, w = solved[:, :-1], solved[:, -1]
    beta = torch.linalg.solve(h.T @ h + _RIDGE * torch.eye(h.shape[1], dtype=u.dtype), h.T @ w)
    return factor, w - h @ beta, beta
