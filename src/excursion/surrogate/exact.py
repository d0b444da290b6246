"""Exact Gaussian processes: Cholesky algebra, MAP hyperparameters, censored observations, one process per task.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): algorithms 2.1 and 3.5.
    Hvarfner et al., ICML 2024 (arXiv:2402.02229): length-scale priors that grow with the dimension.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import log_ndtr
from torch import Tensor

from ..errors import FitError, InvalidStrategy
from ..threads import one_thread
from . import Observations, Posterior, Surrogate, View
from .censored import censored_sites
from .evidence import KERNELS, RIDGE, STARTS, Evidence, first_guesses, orders, split, tilted
from .joined import Independent, Mixture
from .linalg import bordered, cholesky, solve


def _basis(u: Tensor, mean: str) -> Tensor:
    """Basis of the mean function: 1, and the centred coordinates if linear. Shape (n, 1) or (n, 1 + d)."""
    ones = torch.ones(len(u), 1, dtype=u.dtype)
    return ones if mean == "constant" else torch.cat([ones, u - 0.5], -1)


@dataclass(frozen=True)
class Kernel:
    """A covariance function; `evidence` has the same with gradients.

    Attributes:
        name: one of `KERNELS`.
        metric: v = metric @ u are the coordinates in which distances are taken, (d, d).
        variances: of each order, (a,); their sum is k(u, u).
    """

    name: str
    metric: Tensor
    variances: Tensor

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """k(a, b), shape (n, m), in place and in pieces that fit into the cache, for speed."""
        x, y = ((p - 0.5) @ self.metric.T for p in (a, b))
        rows = max(1, 2**15 // max(1, len(b)))
        out = a.new_empty(len(a), len(b))
        if self.name == "additive":
            for i in range(0, len(a), rows):
                self._sum(x[i : i + rows], y, out[i : i + rows])
            return out
        # -r^2/2 for the squared exponential, 2 nu r^2 for Matern, by one product of matrices.
        unit = {"rbf": -0.5, "matern32": 3.0, "matern52": 5.0}[self.name]
        one = torch.ones_like
        left = unit * torch.cat([-2 * x, x.square().sum(1, True), one(x[:, :1])], 1)
        right = torch.cat([y, one(y[:, :1]), y.square().sum(1, True)], 1).T
        amplitude = self.variances[0]
        for i in range(0, len(a), rows):
            part = torch.mm(left[i : i + rows], right, out=out[i : i + rows])
            if unit < 0:
                part.clamp_max_(0.0).exp_().mul_(amplitude)
                continue
            s = part.clamp_min_(0.0).sqrt_()
            decay = torch.neg(s).exp_()
            # Matern 3/2: 1 + s; 5/2: 1 + s + s^2/3.
            inner = amplitude if unit == 3.0 else torch.add(amplitude, s, alpha=float(amplitude) / 3)
            torch.addcmul(amplitude, inner, s, out=part).mul_(decay)
        return out

    def _sum(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        """The additive kernel of coordinates x (n, d) and y (m, d)."""
        d = x.shape[1]
        total, squares, product = torch.zeros_like(out), torch.zeros_like(out), torch.ones_like(out)
        for a, b in zip(x.T, y.T):
            z = (a[:, None] - b).square_().mul_(-0.5).exp_()
            total.add_(z)
            squares.addcmul_(z, z)
            product.mul_(z)
        polynomials = {2: (total.square() - squares).div_(d * (d - 1)), 1: total / d}
        out.zero_()
        for order, variance in zip(orders(self.name, d), self.variances.tolist()):
            out.add_(polynomials.get(order, product), alpha=variance)

    @property
    def amplitude(self) -> Tensor:
        """k(u, u)."""
        return self.variances.sum()


@dataclass(frozen=True, repr=False)
class _Process(Posterior):
    """One task: z = shift + scale * (basis @ beta + GP), data in standardised units.

    ``white`` is L^-1 (z - mean) for L L^T = K + noise: predictions and rank updates need nothing else.
    """

    kernel: Kernel
    mean: str
    beta: Tensor
    shift: Tensor
    scale: Tensor
    nugget: Tensor  # learned noise variance, standardised
    known: Tensor  # typical known variance of an observation, standardised
    u: Tensor
    factor: Tensor
    white: Tensor

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised mean (n,) and L^-1 k(data, u)."""
        v = solve(self.factor, self.kernel(u, self.u).T)  # LAPACK's own order of a matrix
        return _basis(u, self.mean) @ self.beta + v.T @ self.white, v

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        view = self.view(u)
        return view.mean, view.variance

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        view = self.view(u)
        return view.mean, view.covariance(view)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        return self.view(a).covariance(self.view(b))

    def view(self, u: Tensor) -> _ProcessView:
        m, v = self._project(u)
        variance = (self.kernel.amplitude - torch.linalg.vector_norm(v, dim=0).square()).clamp_min(1e-14)
        return _ProcessView((self.shift + self.scale * m)[None], (self.scale**2 * variance)[None], self, u, v)

    @property
    def noise(self) -> Tensor:
        return (self.scale**2 * (self.nugget + self.known))[None]

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        mean, v = self._project(u)
        noise = (self.nugget + self.known).expand(len(u)) if variance is None else variance[:, 0] / self.scale**2
        corner = cholesky(self.kernel(u, u) - v.T @ v + torch.diag(noise))
        if z is None:
            white = torch.zeros(len(u), dtype=u.dtype)  # what is seen is what was expected
        else:
            white = solve(corner, ((z[:, 0] - self.shift) / self.scale - mean)[:, None])[:, 0]
        factor = bordered(self.factor, v, corner)
        return replace(self, u=torch.cat([self.u, u]), factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        metric, d = self.kernel.metric, self.u.shape[1]
        return (
            {
                "kernel": self.kernel.name,
                "lengthscales": metric.square().sum(0).rsqrt().tolist(),
                "metric": metric.tolist(),
                "amplitude": float(self.scale * self.kernel.amplitude.sqrt()),
                # Of functions of one parameter, of two, of all.
                "variances": dict(zip(orders(self.kernel.name, d), (self.scale**2 * self.kernel.variances).tolist())),
                "nugget": float(self.scale * self.nugget.sqrt()),
                "mean": (self.shift + self.scale * self.beta[0]).item(),
            },
        )


@dataclass(frozen=True, repr=False)
class _ProcessView(View):
    """A process at n points u, with v = L^-1 k(data, u)."""

    mean: Tensor
    variance: Tensor
    process: _Process
    u: Tensor
    v: Tensor

    def covariance(self, other: _ProcessView) -> Tensor:
        square = float(self.process.scale**2)
        prior = self.process.kernel(self.u, other.u)
        return prior.addmm_(self.v.T, other.v, beta=square, alpha=-square)[None]


@dataclass(frozen=True)
class GaussianProcess(Surrogate):
    """Exact Gaussian process, one per task, float64, hyperparameters at maxima of their posterior.

    Attributes:
        kernel: "matern52", "matern32", "rbf" or "additive" (see `evidence`); "auto" (default) tries all four.
        metric: "ard": one length scale per parameter; "full": a general metric, which sees that a function depends on
            m1 - m2, say; "auto": tries both (see `evidence`).
        mean: "constant" or "linear"; its coefficients are profiled out (generalised least squares).
        restarts: starting points of the L-BFGS search (1 to 4).
        max_iter: iterations per start.
        average: weigh the explanations that were found (kernels, metrics, maxima) by how well they predict the class of
            held-out observations (up to `AVERAGED` per dimension), and average over hyperparameters around each maximum
            (up to `DRAWN` per dimension); False: take the best. Often several explain them equally well: a single one
            is overconfident, and changes from ask to ask.
    """

    kernel: Literal["auto", "matern52", "matern32", "rbf", "additive"] = "auto"
    metric: Literal["auto", "ard", "full"] = "auto"
    mean: Literal["constant", "linear"] = "constant"
    restarts: int = 2
    max_iter: int = 80
    average: bool = True

    def __post_init__(self) -> None:
        if self.kernel not in ("auto", *KERNELS) or self.mean not in ("constant", "linear"):
            raise InvalidStrategy(
                "Gaussian process: kernel must be auto, matern52, matern32, rbf or additive and mean constant "
                "or linear, got "
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

    def fit(self, data: Observations) -> Posterior:
        """Fit each task on its own; see `Surrogate.fit`."""
        parts: list[Posterior] = self._each(GaussianProcess.fit_task, data)
        return parts[0] if len(parts) == 1 else Independent(tuple(parts))

    def scores(self, data: Observations) -> list[float]:
        """Per task how well the best explanation predicts the class of held-out observations, plus `DENSITY` times
        the log posterior density of the values z; larger is better.

        Comparable between monotone transforms of the same values once `DENSITY` times the log of the Jacobian,
        sum_i ln dz_i/dy_i, is added.
        """
        return self._each(GaussianProcess.score_task, data)

    @torch.no_grad()
    def _each(self, work: Callable[..., Any], data: Observations) -> list[Any]:
        if len(data) < 2:
            raise FitError(f"Gaussian process: needs at least 2 observations, got {len(data)}. Evaluate more points")
        thresholds = data.levels or (torch.zeros(0, dtype=torch.float64),) * data.z.shape[1]
        return [
            _remembered(work, self, len(data), *(a.numpy().tobytes() for a in (data.u, z, variance, side, levels)))
            for z, variance, side, levels in zip(data.z.T, data.variance.T, data.side.T, thresholds)
        ]

    def fit_task(self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor, levels: Tensor) -> Posterior:
        """The belief about one task from values z (n,), variances, sides and its thresholds (k,)."""
        data, thresholds, found = self._sought(u, z, variance, side, levels)
        y, known, exact = data.y, data.noise, side == 0
        if not exact.all():
            # The gradient of EP's evidence is that of the Gaussian evidence at fixed sites, so the two are alternated;
            # the explanations were sought with the bounds as values.
            best, some = found[0], telling(y.numpy(), thresholds, SOME)
            for _ in range(2):
                data = data.with_sites(best, y, known, side)
                best = best.polished(data, some, self.max_iter)
            found = [best, *(other.polished(data, some, self.max_iter) for other in found[1:])]
            data = data.with_sites(best, y, known, side)
        typical = known[exact].mean() if exact.any() else torch.zeros_like(data.shift)
        if self.average and len(y) < DRAWN * u.shape[1]:
            found = data.drawn(found)
        parts = tuple(data.process(e, typical) for e in found)
        weights = np.exp(np.array([e.weight for e in found]))
        return parts[0] if len(parts) == 1 else Mixture(parts, torch.from_numpy(weights / weights.sum()))

    def score_task(self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor, levels: Tensor) -> float:
        """One of `scores`, from the same arguments as `fit_task`; no belief is made."""
        data, _, found = self._sought(u, z, variance, side, levels)
        return found[0].score - DENSITY * float((side == 0).sum() * data.scale.log())

    def _sought(
        self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor, levels: Tensor
    ) -> tuple[_Standardised, np.ndarray, list[_Explanation]]:
        """Standardised observations and thresholds (k,), and what explains them."""
        shift = z.mean()
        spread = (z - shift).abs().max()
        if spread > 1e-12 * shift.abs():
            scale = spread * ((z - shift) / spread).square().mean().sqrt()  # squares of tiny numbers underflow
        else:  # constant so far: nothing to standardise by but its own size
            scale = shift.abs() if shift != 0 else torch.ones_like(shift)
        if scale < 1e-140:
            raise FitError(
                f"Gaussian process: values must differ by more than 1e-140, got a deviation of {float(scale):.3g}. "
                "Variances would vanish in double precision: use a smaller unit"
            )
        thresholds = ((levels - shift) / scale).numpy()
        data = _Standardised(
            u, (z - shift) / scale, variance / scale**2, (side != 0).to(u.dtype), self.mean, shift, scale
        )
        with one_thread(SOME):  # the search sees no more rows than that
            return data, thresholds, self._explanations(data, thresholds, side.numpy())

    def _explanations(self, data: _Standardised, levels: np.ndarray, side: np.ndarray) -> list[_Explanation]:
        """Maxima of the posterior of all kernels and metrics, best first; only the best unless `average`.

        The score is sum_i ln P(class of i | all others) over observations and thresholds, plus `DENSITY` times the log
        posterior, which decides where the classes do not. Where a function has a cliff, the highest maximum is often
        one that is rough everywhere and gets the class wrong between the points.

        Among many data, maxima are sought with `FEW` of them, half near the threshold, and followed with `SOME`.
        """
        d = data.u.shape[1]
        # With one parameter there is nothing to add up.
        names = [k for k in KERNELS if d > 1 or k != "additive"] if self.kernel == "auto" else [self.kernel]
        few, some = (telling(data.y.numpy(), levels, n) for n in (FEW, SOME))
        found: list[_Explanation] = []
        first: list[_Explanation] = []
        for name in names:
            evidence = Evidence(name, *data.arrays(few))
            if found and name != "additive":  # the maxima of another kernel are near those of the first
                modes = [evidence.polished(e.theta, self.max_iter // 2) for e in first]
            else:
                modes = evidence.modes(self.metric, first_guesses(name, d, self.restarts), self.max_iter)
            for theta, value in modes:
                same = any(e.name == name and abs(e.value - value) < 1e-3 for e in found)
                if not same:
                    found.append(_Explanation(name, theta, value).scored(evidence, levels, side[few]))
            first = first or list(found)
        found.sort(key=lambda e: -e.score)
        if len(some) > len(few):
            followed = []
            for e in found[:3]:
                evidence = Evidence(e.name, *data.arrays(some))
                theta, value = evidence.polished(e.theta, 15)
                followed.append(_Explanation(e.name, theta, value).scored(evidence, levels, side[some]))
            found = sorted(followed, key=lambda e: -e.score)
        if not self.average or len(data.y) >= AVERAGED * d:
            return found[:1]
        # Held-out classes are correlated: their product would trust the winner too much.
        flat = TEMPER if len(levels) else 1 / DENSITY
        found = [replace(e, weight=flat * (e.score - found[0].score)) for e in found]
        return [e for e in found[:MOST] if e.weight > math.log(LEAST)]


#: Weight of the log posterior beside the log probability of held-out classes.
DENSITY = 0.3
#: Kernels without end of derivatives claim to know more between the points, and must earn it: log prior odds against,
#: and classes that they get wrong count twice. They swing beyond cliffs; where a function is smooth they still win.
SMOOTH, HANDICAP = ("rbf", "additive"), 3.0
#: Price of a parameter of a tilted metric (Akaike, IEEE Trans. Autom. Control 19 (1974) 716): classes are held out, but
#: the metric has seen them. Without it fifteen parameters in six dimensions explain classes by chance: of Hartmann's
#: function .19 of the volume is then wrong, instead of .06.
AKAIKE = 1.0
#: Explanations are weighed while there are fewer observations than this per dimension.
AVERAGED = 50
#: Weight of explanations: exp(TEMPER * score). Held-out classes are correlated, most where they are hard to predict.
TEMPER = 0.5
#: Explanations that weigh less than this part of the best one are left out, and all beyond so many.
LEAST, MOST = 0.05, 4
#: Draws around the maxima, in all, while there are fewer observations than this per dimension; those that weigh less
#: than this part of the heaviest are left out.
DRAWS, DRAWN, LIGHTEST = 6, 10, 0.02
#: Maxima are sought with so many observations, and followed with so many.
FEW, SOME = 64, 256


def telling(y: np.ndarray, levels: np.ndarray, n: int) -> np.ndarray:
    """Indices of at most n observations, ascending: half are the nearest to a threshold by rank, half spread evenly."""
    if len(y) <= n:
        return np.arange(len(y))
    near = np.zeros(0, dtype=int)
    if len(levels):
        rank = np.argsort(np.argsort(y, kind="stable"), kind="stable")
        crossings = np.searchsorted(np.sort(y), levels) - 0.5
        near = np.argsort(np.abs(rank[:, None] - crossings).min(1), kind="stable")[: n // 2]
    others = np.setdiff1d(np.arange(len(y)), near)
    spread = others[np.linspace(0, len(others) - 1, n - len(near)).round().astype(int)]
    return np.sort(np.concatenate([near, spread]))


@dataclass(frozen=True)
class _Explanation:
    """A kernel with its hyperparameters at a maximum of their posterior."""

    name: str
    theta: np.ndarray
    value: float  # negative log posterior
    score: float = -math.inf
    weight: float = 0.0  # log, relative to the best

    def scored(self, evidence: Evidence, levels: np.ndarray, side: np.ndarray) -> _Explanation:
        mean, variance = evidence.held_out(self.theta)
        y, classes = evidence.y, 0.0
        for level in levels:
            # A bound tells the class only if it lies on the far side of the threshold.
            known = np.where(side == 0, True, np.where(side > 0, y >= level, y <= level))
            sign = np.where((side > 0) | ((side == 0) & (y >= level)), 1.0, -1.0)
            classes += float(np.maximum(log_ndtr(sign * (mean - level) / np.sqrt(variance)), -14.0)[known].sum())
        if self.name in SMOOTH:
            classes = 2 * classes - HANDICAP
        if len(levels):
            classes -= AKAIKE * tilted(self.name, self.theta, evidence.u.shape[1])
        return replace(self, score=classes - DENSITY * self.value)

    def polished(self, data: _Standardised, index: np.ndarray, max_iter: int) -> _Explanation:
        with one_thread(len(index)):
            theta, value = Evidence(self.name, *data.arrays(index)).polished(self.theta, max_iter)
        return replace(self, theta=theta, value=value)


@dataclass(frozen=True)
class _Standardised:
    """Gaussian observations of one task in standardised units, (z - shift)/scale; ``site`` 1 stands for a bound."""

    u: Tensor
    y: Tensor
    noise: Tensor
    site: Tensor
    mean: str
    shift: Tensor
    scale: Tensor

    def arrays(self, index: np.ndarray) -> list[np.ndarray]:
        """What `Evidence` needs of some of the observations."""
        u = self.u[index]
        return [t.numpy() for t in (u, _basis(u, self.mean), self.y[index], self.noise[index], 1 - self.site[index])]

    def drawn(self, found: list[_Explanation]) -> list[_Explanation]:
        """The explanations and draws of the posterior around each; the heavier an explanation, the more draws."""
        shares = np.exp([e.weight for e in found])
        counts = np.ceil(DRAWS * shares / shares.sum()).astype(int)
        out = []
        for e, count in zip(found, counts):
            around = Evidence(e.name, *self.arrays(np.arange(len(self.y)))).around(e.theta, count)
            total = np.logaddexp.reduce([weight for _, weight in around])
            out += [replace(e, theta=theta, weight=e.weight + weight - total) for theta, weight in around]
        heaviest = max(e.weight for e in out)
        return [e for e in out if e.weight > heaviest + math.log(LIGHTEST)]

    def _gram(self, e: _Explanation) -> tuple[Kernel, Tensor, Tensor]:
        lengths, mixing, variances, learned = split(e.name, e.theta, self.u.shape[1])
        kernel = Kernel(e.name, torch.from_numpy(mixing / lengths[:, None]), torch.from_numpy(variances))
        return kernel, torch.tensor(learned, dtype=self.u.dtype), kernel(self.u, self.u)

    def with_sites(self, e: _Explanation, y: Tensor, known: Tensor, side: Tensor) -> _Standardised:
        """The bounds among (y, known, side) as Gaussian observations, by expectation propagation under e."""
        _, nugget, gram = self._gram(e)
        beta = _profile(gram + torch.diag(self.noise + (1 - self.site) * nugget), self.u, self.y, self.mean)[2]
        values, noise = censored_sites(gram, _basis(self.u, self.mean) @ beta, y, known + nugget, side)
        return replace(self, y=values, noise=torch.where(side == 0, known, noise))

    def process(self, e: _Explanation, typical: Tensor) -> _Process:
        """The belief under e; ``typical`` is the known variance of an observation to come."""
        kernel, nugget, gram = self._gram(e)
        covariance = gram + torch.diag(self.noise + (1 - self.site) * nugget)
        factor, white, beta = _profile(covariance, self.u, self.y, self.mean)
        return _Process(kernel, self.mean, beta, self.shift, self.scale, nugget, typical, self.u, factor, white)


@functools.lru_cache(maxsize=64)
def _remembered(work: Callable[..., Any], recipe: GaussianProcess, n: int, *data: bytes) -> Any:
    """`GaussianProcess.fit_task` or `score_task`, pure functions: asks, status and pictures of one history fit once."""
    # An empty buffer is refused: no thresholds.
    tensors = [torch.frombuffer(bytearray(b), dtype=torch.float64) if b else torch.zeros(0).double() for b in data]
    return work(recipe, tensors[0].reshape(n, -1), *tensors[1:])


def _profile(covariance: Tensor, u: Tensor, y: Tensor, mean: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor L, L^-1 (y - H beta) and the generalised-least-squares beta with a N(0, 10^2) prior on it."""
    factor = cholesky(covariance)
    basis = _basis(u, mean)
    solved = solve(factor, torch.cat([basis, y[:, None]], 1))
    h, w = solved[:, :-1], solved[:, -1]
    beta = torch.linalg.solve(h.T @ h + RIDGE * torch.eye(h.shape[1], dtype=u.dtype), h.T @ w)
    return factor, w - h @ beta, beta
