"""Exact Gaussian processes: Cholesky algebra, MAP hyperparameters, censored observations, one process per task.

References:
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): algorithms 2.1 and 3.5.
    Hvarfner et al., ICML 2024 (arXiv:2402.02229): length-scale priors that grow with the dimension.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import log_ndtr
from torch import Tensor

from ..errors import FitError, InvalidStrategy, ShapeError
from ..threads import one_thread
from . import Observations, Posterior, Surrogate, View
from .censored import censored_sites
from .evidence import KERNELS, RIDGE, STARTS, Evidence, first_guesses, orders, split, tilted
from .joined import Independent, Mixture, same_width
from .linalg import bordered, cholesky, solve


def _basis(u: Tensor, mean: str) -> Tensor:
    """Basis of the mean function: 1, and the centred coordinates if linear. Shape (n, 1) or (n, 1 + d)."""
    ones = torch.ones(len(u), 1, dtype=u.dtype)
    return ones if mean == "constant" else torch.cat([ones, u - 0.5], -1)


def _part(u: Tensor, columns: tuple[int, ...] | None) -> Tensor:
    return u if columns is None else u[:, list(columns)]


@dataclass(frozen=True)
class Kernel:
    """A covariance function; `evidence` has the same with gradients.

    Attributes:
        name: one of `KERNELS`.
        metric: v = metric @ u are the coordinates in which distances are taken, (c, d), c = d unless f depends on some
            parameters only.
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


@dataclass(frozen=True)
class _Source:
    """A belief about something that f follows: f = weight * source + a process of its own (Kennedy and O'Hagan 2000).

    Attributes:
        belief: about the next cheaper fidelity of the same task, or about another task.
        below: whether it is a cheaper fidelity: the source's level 0 is level 1 of f.
        values: of another task that the same evaluations gave, noise and all, at the observations of f; NaN where there
            is none. Their noise is then taken to be common: what follows is free of it.
        variances: of these values.
    """

    belief: Posterior
    below: bool
    values: Tensor | None = None
    variances: Tensor | None = None
    # All explanations of f look at their common source at the same points.
    _looks: list[tuple[Tensor, _Look]] = field(default_factory=list, compare=False)

    def look(self, u: Tensor, d: int) -> _Look:
        """At u (n, d or d + 1), levels being those of f: at level 0 the source's own value, else that of the level."""
        for at, look in self._looks:
            if at is u:
                return look
        place, level = u[:, :d], u[:, d:]
        own = (level - 1).clamp_min(0) if self.below else level
        view = self.belief.view(torch.cat([place, own], 1) if own.any() else place)
        self._looks[:] = [(u, _Look(view)), *self._looks[: _LOOKS - 1]]
        return self._looks[0][1]


#: So many looks at a source are kept, and covariances of each: that at the data and that at what is asked for.
_LOOKS = 2


@dataclass(frozen=True, repr=False)
class _Look:
    """A view of a source, with its latest covariances."""

    view: View
    _covariances: list[tuple[_Look, Tensor]] = field(default_factory=list, compare=False)

    def covariance(self, other: _Look) -> Tensor:
        """With another look, (n, m)."""
        for known, covariance in self._covariances:
            if known is other:
                return covariance
        covariance = self.view.covariance(other.view)[0]
        self._covariances[:] = [(other, covariance), *self._covariances[: _LOOKS - 1]]
        return covariance


@dataclass(frozen=True)
class _Link:
    """How f follows its source: the weight's normal prior, and its value once data are known.

    Attributes:
        prior, variance: of the prior.
        weight: mean given the data; scales what is not known of the source.
    """

    prior: float
    variance: float
    weight: float


@dataclass(frozen=True)
class HeldOut:
    """How well a task's observations are foretold, each from all others, with and without the cheaper fidelity.

    Of the best explanation of each kind; of up to `FEW` observations, those that tell most about the thresholds, bounds
    left out. Pairs are (with, without).

    Attributes:
        error: root mean square of mean minus value, on the transformed scale.
        density: mean log predictive density of a value.
        count: how many observations.
        weight: that the belief gives to explanations that follow the cheaper fidelity.

    References:
        Rasmussen and Williams (2006), eqs. 5.10 to 5.12; see `Evidence.held_out`.
    """

    error: tuple[float, float]
    density: tuple[float, float]
    count: int
    weight: float = 0.0


@dataclass(frozen=True, repr=False)
class _Process(Posterior):
    """One task: z = shift + w * (source - shift) + scale * (basis @ beta + GP), the GP in standardised units.

    The weight w of the source has a normal prior, ``link``, so that few data leave it open. ``white`` is
    L^-1 (z - prior mean)/scale for L L^T = prior covariance + noise: predictions and rank updates need nothing else.
    What is believed of the source is the prior: conditioned on values of f it is what all data of all fidelities
    together tell, nested or not. Points of level 1 and more (see `Posterior`) are values of the source.

    References:
        Kennedy and O'Hagan, Biometrika 87 (2000) 1: the autoregressive model.
        Le Gratiet and Garnier, Int. J. Uncertainty Quantification 4 (2014) 365: one level after the other.
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
    source: _Source | None = None
    link: _Link | None = None
    columns: tuple[int, ...] | None = None  # the parameters that f depends on
    rows: int = 0  # so many of the points are those of the fit; later ones are of `condition`
    held_out: HeldOut | None = None  # of the whole fit, where there is a cheaper fidelity

    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        view = self.view(u)
        return view.mean, view.variance

    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        view = self.view(u)
        return view.mean, view.covariance(view)

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        return self.view(a).covariance(self.view(b))

    def _base(self, u: Tensor) -> Tensor:
        """Mean (n,) at u (n, d) where the source is `shift`."""
        return self.shift + self.scale * (_basis(_part(u, self.columns), self.mean) @ self.beta)

    def prior(self, u: Tensor) -> _Prior:
        """What is believed at u before values of f itself are known."""
        d = self.kernel.metric.shape[1]
        level = u[:, d] if u.shape[1] > d else u.new_zeros(len(u))
        link = self.link or _Link(0.0, 0.0, 0.0)
        at, u = u, u[:, :d]
        own, pull = (level == 0).to(u.dtype), torch.where(level == 0, link.weight, 1.0)
        mean = self._base(u)
        variance = (self.scale**2 * self.kernel.amplitude).expand(len(u))
        noise = (self.scale**2 * (self.nugget + self.known)).expand(len(u))
        if not own.all() and self.source is None:
            raise ShapeError(f"posterior: must have a cheaper fidelity for levels above 0, got {level.max():g}")
        if self.source is None or (self.link is None and own.all()):
            return _Prior(mean, variance, noise, self, u, own, pull, torch.zeros_like(own), None)
        below = self.source.look(at, d)
        excess = own * (below.view.mean[0] - self.shift)
        lever = math.sqrt(link.variance) * excess / self.scale
        return _Prior(
            torch.where(level == 0, mean + link.prior * excess, below.view.mean[0]),
            own * variance + pull**2 * below.view.variance[0] + (self.scale * lever) ** 2,
            torch.where(level == 0, noise, below.view.noise[0]),
            self,
            u,
            own,
            pull,
            lever,
            below,
        )

    @functools.cached_property
    def _seen(self) -> _Prior:
        prior = self.prior(self.u)
        if self.source is None or self.link is None or self.source.values is None:
            return prior
        # What the same evaluation gave for the source is known, and tells nothing about it elsewhere.
        values = torch.cat([self.source.values, self.u.new_full((len(self.u) - self.rows,), math.nan)])
        same, excess = values.isfinite(), values - self.shift
        return replace(
            prior,
            mean=torch.where(same, self._base(prior.u) + self.link.prior * excess, prior.mean),
            pull=torch.where(same, 0.0, prior.pull),
            lever=torch.where(same, math.sqrt(self.link.variance) * excess / self.scale, prior.lever),
        )

    def view(self, u: Tensor) -> _ProcessView:
        prior = self.prior(u)
        v = solve(self.factor, prior.covariance(self._seen).T)  # LAPACK's own order of a matrix
        mean = prior.mean + self.scale * (v.T @ self.white)
        variance = prior.variance - self.scale**2 * torch.linalg.vector_norm(v, dim=0).square()
        variance = torch.maximum(variance, 1e-14 * self.scale**2)
        return _ProcessView(mean[None], variance[None], prior.noise[None], prior, v)

    @property
    def noise(self) -> Tensor:
        return (self.scale**2 * (self.nugget + self.known))[None]

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        view, square = self.view(u), self.scale**2
        noise = (view.noise[0] if variance is None else variance[:, 0]) / square
        corner = cholesky(view.covariance(view)[0] / square + torch.diag(noise))
        # Without z, what is seen is what was expected.
        white = torch.zeros(len(u), dtype=u.dtype) if z is None else solve(corner, (z - view.mean.T) / self.scale)[:, 0]
        factor = bordered(self.factor, view.v, corner)
        return replace(self, u=torch.cat(same_width(self.u, u)), factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        metric, d = self.kernel.metric, len(self.kernel.metric)
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
            }
            | ({} if self.source is None else {"follows": self.link.weight if self.link else 0.0})
            | ({} if self.held_out is None else {"held_out": asdict(self.held_out)}),
        )


@dataclass(frozen=True, repr=False)
class _Prior:
    """A process at n points u before values of f itself: mean, variance and noise (n,).

    ``own`` is 1 at points of f itself, 0 at those of cheaper levels; ``pull`` the weight of the source there; ``lever``
    what a standard deviation of that weight does, standardised.
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor
    process: _Process
    u: Tensor
    own: Tensor
    pull: Tensor
    lever: Tensor
    below: _Look | None

    def covariance(self, other: _Prior) -> Tensor:
        """Prior covariance in standardised units, (n, m)."""
        out = self.process.kernel(self.u, other.u)
        if not (self.own.all() and other.own.all()):
            out.mul_(self.own[:, None]).mul_(other.own)
        if self.below is not None and other.below is not None:
            pull = self.pull[:, None] / self.process.scale**2
            out.addcmul_(self.below.covariance(other.below) * pull, other.pull.expand_as(out))
            out.addr_(self.lever, other.lever)
        return out


@dataclass(frozen=True, repr=False)
class _ProcessView(View):
    """A process at n points, with v = L^-1 Cov(data, points)/scale^2 and what was believed before the data."""

    mean: Tensor
    variance: Tensor
    noise: Tensor
    prior: _Prior
    v: Tensor

    def covariance(self, other: _ProcessView) -> Tensor:
        square = float(self.prior.process.scale**2)
        return self.prior.covariance(other.prior).addmm_(self.v.T, other.v, beta=square, alpha=-square)[None]


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
        """Fit each task, those known at the most points first; see `Surrogate.fit`.

        Where there is a cheaper fidelity, or where values of a task are missing at points where another task is known,
        the task may follow that: f = weight * source + a process of its own. Whether it does is decided as between
        kernels, by the class of held-out observations: a source that does harm gets no weight.
        """
        parts: list[Posterior] = [_remembered(GaussianProcess.fit_task, self, key) for key in _enough(data)]
        return parts[0] if len(parts) == 1 else Independent(tuple(parts))

    def scores(self, data: Observations) -> list[float]:
        """Per task how well the best explanation predicts the class of held-out observations, plus `DENSITY` times
        the log posterior density of the values z; larger is better.

        Comparable between monotone transforms of the same values once `DENSITY` times the log of the Jacobian,
        sum_i ln dz_i/dy_i, is added.
        """
        return [_remembered(GaussianProcess.score_task, self, key) for key in _enough(data)]

    @torch.no_grad()
    def fit_task(self, data: Observations, sources: tuple[_Source, ...] = ()) -> Posterior:
        """The belief about the one task of the data."""
        scaled, thresholds, found, held_out = self._sought(data, sources)
        y, known, side = scaled.y, scaled.noise, data.side[:, 0]
        exact = side == 0
        if not exact.all():
            # The gradient of EP's evidence is that of the Gaussian evidence at fixed sites, so the two are alternated;
            # the explanations were sought with the bounds as values.
            best, some = found[0], telling(y.numpy(), thresholds, SOME)
            for _ in range(2):
                scaled = scaled.with_sites(best, y, known, side)
                best = best.polished(scaled, some, self.max_iter)
            found = [best, *(other.polished(scaled, some, self.max_iter) for other in found[1:])]
            scaled = scaled.with_sites(best, y, known, side)
        typical = known[exact].mean() if exact.any() else torch.zeros_like(scaled.shift)
        if self.average and len(y) < DRAWN * data.u.shape[1]:
            found = scaled.drawn(found)
        parts = tuple(scaled.process(e, typical) for e in found)
        weights = np.exp(np.array([e.weight for e in found]))
        if held_out is not None:
            share = sum(w for w, p in zip(weights, parts) if p.link and p.source and p.source.below) / weights.sum()
            parts = tuple(replace(p, held_out=replace(held_out, weight=float(share))) for p in parts)
        return parts[0] if len(parts) == 1 else Mixture(parts, torch.from_numpy(weights / weights.sum()))

    @torch.no_grad()
    def score_task(self, data: Observations, sources: tuple[_Source, ...] = ()) -> float:
        """One of `scores`, from the same arguments as `fit_task`; no belief is made."""
        scaled, _, found, _ = self._sought(data, sources)
        return found[0].score - DENSITY * float((data.side == 0).sum() * scaled.scale.log())

    def _sought(
        self, data: Observations, sources: tuple[_Source, ...]
    ) -> tuple[_Standardised, np.ndarray, list[_Explanation], HeldOut | None]:
        """Standardised observations and thresholds (k,), what explains them, and what a cheaper fidelity does."""
        z, side = data.z[:, 0], data.side[:, 0]
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
        thresholds = ((data.levels[0] - shift) / scale).numpy() if data.levels else np.zeros(0)
        y = (z - shift) / scale
        told = tuple(_Told.by(source, data.u, y, shift, scale) for source in sources)
        scaled = _Standardised(
            data.u,
            y,
            data.variance[:, 0] / scale**2,
            (side != 0).to(z.dtype),
            self.mean,
            shift,
            scale,
            told,
            data.columns,
        )
        with one_thread(SOME):  # the search sees no more rows than that
            return scaled, thresholds, *self._explanations(scaled, thresholds, side.numpy())

    def _explanations(
        self, data: _Standardised, levels: np.ndarray, side: np.ndarray
    ) -> tuple[list[_Explanation], HeldOut | None]:
        """Maxima of the posterior of all kernels and metrics, best first; only the best unless `average`.

        The score is sum_i ln P(class of i | all others) over observations and thresholds, plus `DENSITY` times the log
        posterior, which decides where the classes do not. Where a function has a cliff, the highest maximum is often
        one that is rough everywhere and gets the class wrong between the points.

        Among many data, maxima are sought with `FEW` of them, half near the threshold, and followed with `SOME`.
        """
        d = _part(data.u, data.columns).shape[1]
        # With one parameter there is nothing to add up.
        names = [k for k in KERNELS if d > 1 or k != "additive"] if self.kernel == "auto" else [self.kernel]
        few, some = (telling(data.y.numpy(), levels, n) for n in (FEW, SOME))
        found: list[_Explanation] = []
        for follows in (None, *range(len(data.told))):
            first: list[_Explanation] = []
            for name in names:
                evidence = data.evidence(name, few, follows)
                if first and name != "additive":  # the maxima of another kernel are near those of the first
                    modes = [evidence.polished(e.theta, self.max_iter // 2) for e in first]
                else:
                    modes = evidence.modes(self.metric, first_guesses(name, d, self.restarts), self.max_iter)
                new: list[_Explanation] = []
                for theta, value in modes:
                    same = any(e.name == name and abs(e.value - value) < 1e-3 for e in new)
                    if not same:
                        e = _Explanation(name, theta, value, follows, data.odds(follows))
                        new.append(e.scored(evidence, levels, side[few]))
                first = first or new
                found += new
        found.sort(key=lambda e: -e.score)
        held_out = data.held_out(found, few, side)
        if len(some) > len(few):
            followed = []
            for e in found[:3]:
                evidence = data.evidence(e.name, some, e.follows)
                theta, value = evidence.polished(e.theta, 15)
                followed.append(replace(e, theta=theta, value=value).scored(evidence, levels, side[some]))
            found = sorted(followed, key=lambda e: -e.score)
        if not self.average or len(data.y) >= AVERAGED * d:
            return found[:1], held_out
        # Held-out classes are correlated: their product would trust the winner too much.
        flat = TEMPER if len(levels) else 1 / DENSITY
        found = [replace(e, weight=flat * (e.score - found[0].score)) for e in found]
        return [e for e in found[:MOST] if e.weight > math.log(LEAST)], held_out


#: Weight of the log posterior beside the log probability of held-out classes.
DENSITY = 0.3
#: Kernels without end of derivatives claim to know more between the points, and must earn it: log prior odds against,
#: and classes that they get wrong count twice. They swing beyond cliffs; where a function is smooth they still win.
SMOOTH, HANDICAP = ("rbf", "additive"), 3.0
#: Price of a parameter of a tilted metric (Akaike, IEEE Trans. Autom. Control 19 (1974) 716): classes are held out, but
#: the metric has seen them. Without it fifteen parameters in six dimensions explain classes by chance: of Hartmann's
#: function .19 of the volume is then wrong, instead of .06.
AKAIKE = 1.0
#: Log prior odds for following a cheaper fidelity, which somebody declared for a reason: four values cannot tell. With
#: even odds the belief from two full limits and 300 simplified ones (`benchmarks/sbottom.py`) was 14 % wrong, now 4 %;
#: the simplified contour alone .5 %. Another task is nobody's choice, and pays for its weight.
DECLARED = 2.0
#: Explanations are weighed while there are fewer observations than this per dimension.
AVERAGED = 50
#: Weight of explanations: exp(TEMPER * score). Held-out classes are correlated, most where they are hard to predict.
TEMPER = 0.5
#: Explanations that weigh less than this part of the best one are left out, and all beyond so many.
LEAST, MOST = 0.05, 4
#: Draws around the maxima, in all, while there are fewer observations than this per dimension; those that weigh less
#: than this part of the heaviest are left out.
DRAWS, DRAWN, LIGHTEST = 6, 25, 0.02
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
    follows: int | None = None  # which of the sources
    odds: float = 0.0  # log prior odds of following it
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
            classes += self.odds - AKAIKE * tilted(self.name, self.theta, evidence.u.shape[1])
        return replace(self, score=classes - DENSITY * self.value)

    def polished(self, data: _Standardised, index: np.ndarray, max_iter: int) -> _Explanation:
        with one_thread(len(index)):
            theta, value = data.evidence(self.name, index, self.follows).polished(self.theta, max_iter)
        return replace(self, theta=theta, value=value)


@dataclass(frozen=True)
class _Told:
    """What a source tells at the observations, in the standardised units of the task.

    Attributes:
        source: see `_Source`.
        mean: of the source, (n,).
        covariance: of the source, (n, n).
        link: prior of the weight, and least squares' weight.
        common: variance of the source's values, (n,), whose noise is that of the task; zeros if it is not.
    """

    source: _Source
    mean: Tensor
    covariance: Tensor
    link: _Link
    common: Tensor

    @classmethod
    def by(cls, source: _Source, u: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> _Told:
        view = source.look(u, u.shape[1]).view
        mean, covariance, common = (view.mean[0] - shift) / scale, view.covariance(view)[0] / scale**2, 0 * y
        if source.values is not None and source.variances is not None:
            same = source.values.isfinite()
            mean = torch.where(same, (source.values - shift) / scale, mean)
            covariance = covariance * torch.outer(~same, ~same)
            common = torch.where(same, source.variances / scale**2, common)
        # A fidelity is about the same quantity.
        prior, variance = (1.0, ALIKE**2) if source.below else (0.0, 1 / RIDGE)
        guess = prior + (mean @ (y - prior * mean)) / (mean @ mean + 1 / variance)
        return cls(source, mean, covariance, _Link(prior, variance, float(guess)), common)

    def with_weight(self, kernel: Tensor, basis: Tensor, y: Tensor) -> _Told:
        """With the weight's mean given standardised values y and the covariance of what is not the source, noise
        included."""
        noisy = kernel + self.link.weight**2 * self.covariance
        ridge = torch.tensor([*[RIDGE] * basis.shape[1], 1 / self.link.variance], dtype=y.dtype)
        weights = _profile(noisy, torch.cat([basis, self.mean[:, None]], 1), y - self.offset, ridge)[2]
        return replace(self, link=replace(self.link, weight=self.link.prior + float(weights[-1])))

    @property
    def offset(self) -> Tensor:
        """Of the mean of f, (n,)."""
        return self.link.prior * self.mean

    @property
    def extra(self) -> Tensor:
        """Covariance of f that comes from the source and the weight, (n, n)."""
        return self.link.weight**2 * self.covariance + self.link.variance * torch.outer(self.mean, self.mean)


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
    told: tuple[_Told, ...] = ()
    columns: tuple[int, ...] | None = None

    @functools.cached_property
    def _basis(self) -> Tensor:
        return _basis(_part(self.u, self.columns), self.mean)

    def odds(self, follows: int | None) -> float:
        """Log prior odds of following a source."""
        if follows is None:
            return 0.0
        return DECLARED if self.told[follows].source.below else -AKAIKE

    def evidence(self, kernel: str, index: np.ndarray, follows: int | None) -> Evidence:
        """Of some of the observations, as following one of the sources or none."""
        u = _part(self.u[index], self.columns)
        told = None if follows is None else self.told[follows]
        noise = self.noise_beside(told)
        arrays = [t.numpy() for t in (u, self._basis[index], self.y[index], noise[index], 1 - self.site[index])]
        if told:
            arrays += [told.offset[index].numpy(), told.extra[index][:, index].numpy()]
        return Evidence(kernel, *arrays)

    def held_out(self, found: list[_Explanation], index: np.ndarray, side: np.ndarray) -> HeldOut | None:
        """What the cheaper fidelity does for these observations, from explanations, best first; None if there is none.

        ``side`` is that of all observations, (n,).
        """
        exact = side[index] == 0
        below = [e.follows is not None and self.told[e.follows].source.below for e in found]
        if not any(below) or not exact.any():
            return None
        errors, densities = [], []
        for kind in (True, False):
            best = found[below.index(kind)]
            evidence = self.evidence(best.name, index, best.follows)
            mean, variance = (a[exact] for a in evidence.held_out(best.theta))
            off, log_scale = evidence.y[exact] - mean, float(self.scale.log())
            errors.append(float(self.scale) * math.sqrt(np.square(off).mean()))
            densities.append(-0.5 * float((np.log(2 * math.pi * variance) + off**2 / variance).mean()) - log_scale)
        return HeldOut((errors[0], errors[1]), (densities[0], densities[1]), int(exact.sum()))

    def noise_beside(self, told: _Told | None) -> Tensor:
        """Known variances that are left when the noise that is common with a source is taken away, (n,)."""
        if told is None:
            return self.noise
        left = (self.noise - told.link.weight**2 * told.common).clamp_min(0.0)
        return torch.where(self.site == 0, left, self.noise)

    def drawn(self, found: list[_Explanation]) -> list[_Explanation]:
        """The explanations and draws of the posterior around each; the heavier an explanation, the more draws."""
        shares = np.exp([e.weight for e in found])
        counts = np.ceil(DRAWS * shares / shares.sum()).astype(int)
        out = []
        for e, count in zip(found, counts):
            around = self.evidence(e.name, np.arange(len(self.y)), e.follows).around(e.theta, count)
            total = np.logaddexp.reduce([weight for _, weight in around])
            out += [replace(e, theta=theta, weight=e.weight + weight - total) for theta, weight in around]
        heaviest = max(e.weight for e in out)
        return [e for e in out if e.weight > heaviest + math.log(LIGHTEST)]

    def _gram(self, e: _Explanation) -> tuple[Kernel, Tensor, Tensor]:
        columns = range(self.u.shape[1]) if self.columns is None else self.columns
        lengths, mixing, variances, learned = split(e.name, e.theta, len(columns))
        metric = self.u.new_zeros(len(columns), self.u.shape[1])
        metric[:, list(columns)] = torch.from_numpy(mixing / lengths[:, None])
        kernel = Kernel(e.name, metric, torch.from_numpy(variances))
        return kernel, torch.tensor(learned, dtype=self.u.dtype), kernel(self.u, self.u)

    def _follow(self, e: _Explanation, gram: Tensor, nugget: Tensor) -> tuple[_Told | None, Tensor, Tensor]:
        """What is followed, prior covariance (n, n) without noise, and the mean that the source gives, (n,)."""
        if e.follows is None:
            return None, gram, torch.zeros_like(self.y)
        told = self.told[e.follows]
        noise = torch.diag(self.noise_beside(told) + (1 - self.site) * nugget)
        told = told.with_weight(gram + noise, self._basis, self.y)
        return told, gram + told.extra, told.offset

    def with_sites(self, e: _Explanation, y: Tensor, known: Tensor, side: Tensor) -> _Standardised:
        """The bounds among (y, known, side) as Gaussian observations, by expectation propagation under e."""
        _, nugget, gram = self._gram(e)
        told, covariance, offset = self._follow(e, gram, nugget)
        own = self.noise_beside(told)
        noisy = covariance + torch.diag(own + (1 - self.site) * nugget)
        beta = _profile(noisy, self._basis, self.y - offset)[2]
        own = torch.where(side == 0, own, known)
        values, noise = censored_sites(covariance, offset + self._basis @ beta, y, own + nugget, side)
        return replace(self, y=values, noise=torch.where(side == 0, known, noise))

    def process(self, e: _Explanation, typical: Tensor) -> _Process:
        """The belief under e; ``typical`` is the known variance of an observation to come."""
        kernel, nugget, gram = self._gram(e)
        told, covariance, offset = self._follow(e, gram, nugget)
        noisy = covariance + torch.diag(self.noise_beside(told) + (1 - self.site) * nugget)
        factor, white, beta = _profile(noisy, self._basis, self.y - offset)
        # Without a weight, the source still tells what a look at the cheaper fidelity would give.
        source = told.source if told else next((t.source for t in self.told if t.source.below), None)
        return _Process(
            kernel,
            self.mean,
            beta,
            self.shift,
            self.scale,
            nugget,
            typical,
            self.u,
            factor,
            white,
            source,
            told.link if told else None,
            self.columns,
            len(self.u),
        )


#: Standard deviation of the normal prior on the weight of a cheaper fidelity, around 1.
ALIKE = 0.5
#: Of a cheaper fidelity so many observations are used, those that tell most about the thresholds.
CHEAP = 1500


#: One task's observations in bytes, and what it may follow: rows, columns, bytes ..., sources (key, below, bytes ...).
_Key = tuple[Any, ...]


def _keys(data: Observations, most: int | None = None) -> list[_Key | None]:
    """Of each task, in order; None for one with fewer than two values. At most so many observations of each."""
    tasks = [data.task(i) for i in range(data.z.shape[1])]
    below = [None] * len(tasks) if data.cheaper is None else _keys(data.cheaper, CHEAP)
    # A task that the cheaper fidelity does not give may follow another one that it gives.
    other = next((key for key in below if key is not None), None)
    below = [other if key is None else key for key in below]
    keys: list[_Key | None] = [None] * len(tasks)
    order = sorted(range(len(tasks)), key=lambda i: -len(tasks[i]))
    for place, i in enumerate(order):
        task, sources = tasks[i], [] if below[i] is None else [(below[i], True, b"", b"")]
        if len(task) < 2:
            continue
        kept = np.arange(len(task))
        if most is not None and len(task) > most:
            kept = telling(task.z[:, 0].numpy(), task.levels[0].numpy() if task.levels else np.zeros(0), most)
            task = task.rows(kept)
        if data.known is not None and (j := _sibling(data, i, order[:place])) is not None:
            at = data.known[:, i].nonzero()[kept, 0]
            exact = data.known[at, j] & (data.side[at, j] == 0)
            values = torch.where(exact, data.z[at, j], math.nan)
            sources.append((keys[j], False, b"", b""))
            sources.append((keys[j], False, values.numpy().tobytes(), data.variance[at, j].numpy().tobytes()))
        levels = task.levels[0] if task.levels else torch.zeros(0, dtype=torch.float64)
        arrays = (task.u, task.z, task.variance, task.side, levels)
        keys[i] = (len(task), task.columns, *(a.numpy().tobytes() for a in arrays), tuple(sources))
    return keys


def _enough(data: Observations) -> list[_Key]:
    """The keys of all tasks.

    Raises:
        FitError: a task with fewer than two values.
    """
    keys = _keys(data)
    counts = [len(data.task(i)) for i in range(data.z.shape[1])]
    if min(counts) < 2:
        raise FitError(
            f"Gaussian process: needs at least 2 observations, got {min(counts)}. Evaluate more points"
            + (f"; the tasks have {counts}" if len(counts) > 1 else "")
        )
    return [key for key in keys if key is not None]


def _sibling(data: Observations, i: int, earlier: list[int]) -> int | None:
    """The earlier task that may tell what is missing of task i: known where that is not, and the most like it."""
    known = data.known if data.known is not None else torch.ones_like(data.z, dtype=torch.bool)
    best, found = 0.0, None
    for j in earlier:
        both, more = known[:, i] & known[:, j], known[:, j] & ~known[:, i]
        if int(both.sum()) < 3 or not more.any():
            continue
        likeness = float(torch.corrcoef(torch.stack([data.z[both, i], data.z[both, j]]))[0, 1].abs().nan_to_num())
        if likeness > best:
            best, found = likeness, j
    return found


@functools.lru_cache(maxsize=64)
def _remembered(work: Callable[..., Any], recipe: GaussianProcess, key: _Key) -> Any:
    """`GaussianProcess.fit_task` or `score_task`, pure functions: asks, status and pictures of one history fit once."""
    n, columns, *data, sources = key
    # An empty buffer is refused: no thresholds.
    u, z, variance, side, levels = (
        torch.frombuffer(bytearray(b), dtype=torch.float64) if b else torch.zeros(0).double() for b in data
    )
    z, variance, side = (a.reshape(n, 1) for a in (z, variance, side))
    told = []
    for other, below, *same in sources:
        values, known = (torch.frombuffer(bytearray(b), dtype=torch.float64) if b else None for b in same)
        told.append(_Source(_remembered(GaussianProcess.fit_task, recipe, other), below, values, known))
    return work(recipe, Observations(u.reshape(n, -1), z, variance, side, (levels,), columns=columns), tuple(told))


def _profile(
    covariance: Tensor, basis: Tensor, y: Tensor, ridge: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factor L, L^-1 (y - H beta) and the generalised-least-squares beta with a normal prior on it."""
    factor = cholesky(covariance)
    solved = solve(factor, torch.cat([basis, y[:, None]], 1))
    h, w = solved[:, :-1], solved[:, -1]
    ridge = torch.full_like(basis[0], RIDGE) if ridge is None else ridge
    beta = torch.linalg.solve(h.T @ h + torch.diag(ridge), h.T @ w)
    return factor, w - h @ beta, beta
