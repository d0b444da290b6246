"""Compositional kernel search: which sum of products of simple kernels explains the data, said in English.

The search is greedy: the best few kernels so far are changed at every place of their trees, and the changes with the
lowest Bayesian information criterion are taken.

References:
    Duvenaud et al., Structure Discovery in Nonparametric Regression through Compositional Kernel Search, ICML 2013
    (arXiv:1302.4922), section 3: the moves and the criterion.
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eqs. 2.25, 2.26, 5.8 and 5.9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from ..errors import FitError, InvalidStrategy, ShapeError
from . import Observations, Posterior, Surrogate, View
from .censored import censored_sites
from .composition import (
    FAMILIES,
    Atom,
    Columns,
    Kernel,
    Product,
    Sum,
    atoms,
    canonical,
    change_atoms,
    evaluate,
    expand,
    expression,
    free_parameters,
    in_words,
    local_length,
    normalise,
    order,
    parameters,
    slopes,
    term_in_words,
    with_parameters,
)
from .joined import Independent
from .linalg import JITTERS, bordered, cholesky, solve

# -- the likelihood of one kernel


@dataclass(frozen=True)
class _Task:
    """One standardised task, laid out for speed: pairs of points once, not twice.

    ``columns_a[k][m]`` and ``columns_b[k][m]`` are coordinate k of the two points of pair m, i >= j.
    """

    y: np.ndarray
    noise: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    columns_a: Columns
    columns_b: Columns
    axes: tuple[_Axis, ...]

    @classmethod
    def of(cls, u: np.ndarray, y: np.ndarray, noise: np.ndarray) -> _Task:
        rows, cols = np.tril_indices(len(u))
        axes = tuple(_Axis.of(column, y) for column in u.T)
        return cls(y, noise, rows, cols, list(u[rows].T), list(u[cols].T), axes)


@dataclass(frozen=True)
class _Axis:
    """What the points tell about lengths along one parameter: their range, how dense they are, likely periods."""

    middle: float
    span: float
    distinct: int
    periods: tuple[float, ...]

    @classmethod
    def of(cls, u: np.ndarray, y: np.ndarray) -> _Axis:
        span, distinct = float(np.ptp(u)), len(np.unique(u))
        return cls(float(u.min()) + span / 2, span, distinct, _periods(u, y, span, distinct))

    def families(self, wanted: Sequence[str]) -> list[str]:
        """Kernels that can be told from a constant; a period takes four points in a row."""
        if self.distinct < 2:
            return []
        return [f for f in FAMILIES if f in wanted and (f != "PER" or self.distinct > 3)]

    def bounds(self, family: str) -> list[tuple[float, float]]:
        """Of theta, see `Atom`."""
        log_span = math.log(self.span)
        scale = (math.log(1e-6), math.log(1e3))
        length = (log_span + math.log(1e-3), log_span + math.log(10))
        if family == "SE":
            return [scale, length]
        if family == "RQ":
            return [scale, length, (math.log(1e-3), math.log(1e3))]
        if family == "LIN":
            scale = (scale[0] - 2 * log_span, scale[1] - 2 * log_span)
            return [scale, (self.middle - 3.5 * self.span, self.middle + 3.5 * self.span)]
        # From the Nyquist limit of evenly spread points to once in the range.
        period = (log_span + math.log(2 / (self.distinct - 1)), log_span)
        return [scale, (math.log(0.05), math.log(10)), period]

    def units(self, atom: Atom) -> list[float]:
        """How far each theta goes for a comparable change; a period of many repetitions is known very well."""
        steps = [1.0] * len(atom.theta)
        if atom.family == "PER":
            steps[2] = 0.2 * math.exp(atom.theta[2]) / self.span
        return steps

    def draw(self, family: str, rng: np.random.Generator, period: int) -> tuple[float, ...]:
        """A start for theta, with a prior variance of .05 to 1; ``period`` says which peak of the spectrum."""
        log_scale = rng.uniform(math.log(0.05), 0.0)
        shortest = min(0.1, 1 / (self.distinct - 1))  # some gaps between points, where they are many
        log_length = math.log(self.span) + rng.uniform(math.log(shortest), math.log(1.5))
        if family == "SE":
            return (log_scale, log_length)
        if family == "RQ":
            return (log_scale, log_length, rng.uniform(math.log(0.1), math.log(10)))
        if family == "LIN":
            center = rng.uniform(-1.5, 1.5) * self.span
            return (log_scale - math.log(center**2 + self.span**2 / 12), self.middle + center)
        return (log_scale, rng.uniform(math.log(0.3), math.log(3)), math.log(self.periods[period % len(self.periods)]))


def _periods(u: np.ndarray, y: np.ndarray, span: float, distinct: int, most: int = 4) -> tuple[float, ...]:
    """The strongest periods of y without its quadratic trend, the strongest first.

    Peaks of the power |sum_i y_i exp(2 pi i f u_i)|^2 between one and (distinct - 1)/2 periods in the range.
    """
    if distinct < 4:
        return ()
    t = (u - u.min()) / span
    rest = y - np.polynomial.Polynomial.fit(t, y, 2)(t)
    # Enough frequencies for the width of a peak; more than 2000 are more than scattered points can tell apart.
    highest = (distinct - 1) / 2
    frequencies = np.linspace(1.0, highest, int(min(2000, max(8, 8 * highest))))
    power = np.abs(np.exp(2j * math.pi * np.outer(frequencies, t)) @ rest) ** 2
    padded = np.concatenate([[-1.0], power, [-1.0]])
    peaks = np.flatnonzero((padded[1:-1] >= padded[:-2]) & (padded[1:-1] >= padded[2:]))
    peaks = peaks[np.argsort(-power[peaks], kind="stable")][:most]
    return tuple(float(span / frequencies[i]) for i in peaks)


#: Bounds of the log noise variance, standardised: none, or nothing but noise.
_LOG_NUGGET = (math.log(1e-8), math.log(2.0))
_FIRST_LOG_NUGGET = math.log(0.1)


def _factorise(packed: np.ndarray, task: _Task, log_nugget: float) -> np.ndarray:
    """Lower Cholesky factor of K + noise, with the least jitter of `JITTERS` that works.

    Raises:
        FitError: not positive definite even with the largest jitter.
    """
    n = len(task.y)
    matrix = np.zeros((n, n))
    matrix[task.rows, task.cols] = packed
    matrix.flat[:: n + 1] += task.noise + math.exp(log_nugget)
    size = matrix.trace() / n
    for jitter in JITTERS:
        shifted = matrix.copy()
        shifted.flat[:: n + 1] += jitter * size
        factor, info = scipy.linalg.lapack.dpotrf(shifted, lower=1)
        if info == 0 and np.isfinite(factor.diagonal()).all():
            return factor
    raise FitError(
        f"kernel search: the covariance of {n} points must be positive definite, got mean diagonal {size:.3g} and "
        f"largest jitter {JITTERS[-1]:g}. Look for duplicated points with different values"
    )


def negative_log_likelihood(kernel: Kernel, log_nugget: float, task: _Task) -> tuple[float, np.ndarray]:
    """-ln p(y | kernel, noise) and its gradient by all parameters of the tree and the log noise variance.

    References:
        Rasmussen and Williams (2006), eqs. 5.8 and 5.9.
    """
    n = len(task.y)
    packed, partials = slopes(kernel, task.columns_a, task.columns_b)
    factor = _factorise(packed, task, log_nugget)
    alpha, _ = scipy.linalg.lapack.dpotrs(factor, task.y, lower=1)
    value = 0.5 * task.y @ alpha + np.log(factor.diagonal()).sum() + 0.5 * n * math.log(2 * math.pi)
    # Not dpotri: OpenBLAS runs it on all cores even for 20 points, which is a thousand times slower on a busy machine.
    inverse, _ = scipy.linalg.lapack.dtrtri(factor, lower=1)
    precision = inverse.T @ inverse
    # d/dt = tr((K^-1 - alpha alpha^T) dK/dt)/2: pairs off the diagonal count twice.
    pull = precision[task.rows, task.cols] - alpha[task.rows] * alpha[task.cols]
    diagonal = task.rows == task.cols
    noise = 0.5 * math.exp(log_nugget) * pull[diagonal].sum()
    pull[diagonal] *= 0.5
    return float(value), np.array([*(pull @ p for p in partials), noise])


@dataclass(frozen=True)
class _Fit:
    """A kernel at its best parameters."""

    kernel: Kernel
    log_nugget: float
    loss: float

    @property
    def parameters(self) -> int:
        """How many parameters were fitted: those of the kernel without surplus scales, and the noise."""
        return sum(free_parameters(self.kernel)) + 1

    def bic(self, n: int) -> float:
        """-2 ln L + k ln n."""
        return 2 * self.loss + self.parameters * math.log(n)


def _optimise(kernel: Kernel, log_nugget: float, task: _Task, max_iter: int) -> _Fit:
    """The maximum of the likelihood near a start, within bounds; its loss is infinite where no step was possible."""
    kernel = normalise(kernel)
    free = np.array([*free_parameters(kernel), True])
    bounds = [b for atom in atoms(kernel) for b in task.axes[atom.axis].bounds(atom.family)] + [_LOG_NUGGET]
    allowed = [b for b, f in zip(bounds, free) if f]
    full = np.append(parameters(kernel), log_nugget)
    units = np.array([u for atom in atoms(kernel) for u in task.axes[atom.axis].units(atom)] + [1.0])[free]
    limits = [(low / unit, high / unit) for (low, high), unit in zip(allowed, units)]

    def loss(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        full[free] = scaled * units
        try:
            value, gradient = negative_log_likelihood(with_parameters(kernel, full[:-1]), full[-1], task)
        except FitError:
            # Singular here: the line search steps back. If it is so everywhere, the caller sees an infinite loss.
            return math.inf, np.zeros(len(scaled))
        return value, gradient[free] * units

    start = np.clip(full[free], *np.transpose(allowed)) / units
    found = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": max_iter, "maxcor": 20}
    )
    full[free] = found.x * units
    fun = float(found.fun) if np.isfinite(found.fun) and np.isfinite(found.x).all() else math.inf
    return _Fit(with_parameters(kernel, full[:-1]), float(full[-1]), fun)


# -- the search


def _neighbours(kernel: Kernel, simple: Sequence[Atom]) -> Iterator[Kernel]:
    """Every S -> S + B, S -> S × B, B -> B' and S without a part, at each place of the tree."""
    for atom in simple:
        yield Sum((kernel, atom))
        yield Product((kernel, atom))
    if isinstance(kernel, Atom):
        yield from (atom for atom in simple if order(atom) != order(kernel))
        return
    for i, part in enumerate(kernel.parts):
        before, after = kernel.parts[:i], kernel.parts[i + 1 :]
        yield type(kernel)(before + after)
        for changed in _neighbours(part, simple):
            yield type(kernel)((*before, changed, *after))


def _draw(kernel: Kernel, task: _Task, rng: np.random.Generator, period: int, everything: bool) -> Kernel:
    """The kernel with drawn parameters where it is new, or everywhere."""

    def draw(atom: Atom) -> Atom:
        if atom.theta and not everything:
            return atom
        return replace(atom, theta=task.axes[atom.axis].draw(atom.family, rng, period))

    return change_atoms(draw, kernel)


@dataclass(frozen=True)
class KernelSearch(Surrogate):
    """Gaussian process whose kernel is found by search among sums and products of simple kernels, one per task.

    Values are standardised and the process has mean zero then, maximum-likelihood parameters within wide bounds and a
    fitted noise. The kernel has the lowest BIC = -2 ln L + k ln n that greedy steps reach, where k counts the
    parameters of the kernel (a product of m kernels has m - 1 scales less) and the noise. Where some observations are
    censored, the kernel comes from the others, and the censored ones enter the belief by expectation propagation.

    It takes some thousands of Cholesky factorisations: minutes for 150 points, on one core.

    Attributes:
        families: simple kernels to build from, of `FAMILIES`.
        depth: most steps; the search ends earlier where no change lowers the BIC.
        restarts: starts per candidate, each from the parameters of the step before and from new ones throughout.
        beam: how many candidates of a step are changed further in the next one (1 in the paper, where a smooth trend
            times a periodic function may block the way to a line plus the same).
        max_iter: iterations of L-BFGS for the best 3 * beam candidates of a step; before, each start gets an eighth.
        seed: of the starts.
        names: of the parameters, for the description in words; x, or x1, x2, ... unless given.

    Raises:
        InvalidStrategy: settings out of range, unknown kernels.

    References:
        Duvenaud et al. (2013), section 3.
    """

    families: tuple[str, ...] = FAMILIES
    depth: int = 8
    restarts: int = 3
    beam: int = 2
    max_iter: int = 200
    seed: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        families, names = tuple(self.families), tuple(self.names)  # JSON knows lists only
        object.__setattr__(self, "families", families)
        object.__setattr__(self, "names", names)
        if not families or len(set(families)) < len(families) or not set(families) <= set(FAMILIES):
            raise InvalidStrategy(
                f"kernel search: families must be some of {', '.join(FAMILIES)}, each once, got {list(families)}"
            )
        counts = {k: getattr(self, k) for k in ("depth", "restarts", "beam", "max_iter")}
        if not all(isinstance(v, int) and v >= 1 for v in counts.values()):
            raise InvalidStrategy(f"kernel search: {', '.join(counts)} must be whole numbers >= 1, got {counts}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InvalidStrategy(f"kernel search: seed must be a whole number >= 0, got {self.seed!r}")
        if len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise InvalidStrategy(f"kernel search: names must be different words, got {list(names)!r}")

    def to_json(self) -> dict[str, Any]:
        """Settings as JSON-compatible data."""
        return {
            "type": "KernelSearch",
            **asdict(self),
            "families": list(self.families),
            "names": list(self.names),
        }

    def fit(self, data: Observations) -> Posterior:
        """Search for the kernel of each task on its own; see `Surrogate.fit`.

        Returns:
            A `ComposedProcess` for one task; for several an `Independent` with one in each of its ``parts``.

        Raises:
            FitError: less than two observations that are not censored, or values too large or small to be squared.
            ShapeError: another number of names than of parameters.
        """
        if len(data) < 2:
            raise FitError(f"kernel search: needs at least 2 observations, got {len(data)}. Evaluate more points")
        if data.cheaper is not None:
            raise FitError(
                "kernel search: must have one fidelity, got cheaper ones. Use the surrogate 'GaussianProcess'"
            )
        d = data.u.shape[1]
        if self.names and len(self.names) != d:
            raise ShapeError(f"kernel search: needs one name per parameter, got {list(self.names)} for {d} parameters")
        tasks = [data.task(i) for i in range(data.z.shape[1])]
        parts = [self._fit_task(t.u, t.z[:, 0], t.variance[:, 0], t.side[:, 0]) for t in tasks]
        return parts[0] if len(parts) == 1 else Independent(tuple(parts))

    def _fit_task(self, u: Tensor, z: Tensor, variance: Tensor, side: Tensor) -> ComposedProcess:
        exact = side == 0
        if exact.sum() < 2:
            raise FitError(
                f"kernel search: needs at least 2 observations that are not censored, got {int(exact.sum())} of "
                f"{len(z)}. Evaluate more points"
            )
        shift = z[exact].mean()
        scale = (z[exact] - shift).square().mean().sqrt()
        largest = float(z.abs().max())
        if not scale > 1e-12 * largest:
            scale = torch.full_like(scale, largest if largest > 0 else 1.0)  # constant: nothing to standardise by
        if not 1e-150 < scale < 1e150:
            raise FitError(
                f"kernel search: values must vary by 1e-150 to 1e150 so that their variance is a number, got values of "
                f"up to {largest:.3g}. Use another unit, or the logarithm"
            )
        y, known = (z - shift) / scale, variance / scale**2
        # Rounded, so that values in another unit, which differ in their last bits, lead the search the same way.
        task = _Task.of(u[exact].numpy(), y[exact].numpy().round(12), known[exact].numpy().round(12))
        fit = self._search(task)
        nugget = torch.tensor(math.exp(fit.log_nugget), dtype=z.dtype)
        gram, values, noise = _matrix(fit.kernel, u, u), y, known + nugget
        if not exact.all():
            values, noise = censored_sites(gram, torch.zeros_like(y), y, noise, side)
        factor = cholesky(gram + torch.diag(noise))
        names = self.names or (("x",) if u.shape[1] == 1 else tuple(f"x{i + 1}" for i in range(u.shape[1])))
        return ComposedProcess(
            kernel=fit.kernel,
            names=names,
            log_likelihood=-fit.loss,
            bic=fit.bic(len(task.y)),
            shift=shift,
            scale=scale,
            nugget=nugget,
            known=known[exact].mean(),
            u=u,
            factor=factor,
            white=solve(factor, values[:, None])[:, 0],
        )

    def _search(self, task: _Task) -> _Fit:
        """The kernel of lowest BIC that greedy steps reach."""
        n = len(task.y)
        simple = [Atom(f, axis) for axis, a in enumerate(task.axes) for f in a.families(self.families)]
        if not simple:
            raise FitError(
                f"kernel search: the points must differ enough for one of {', '.join(self.families)}, got {n} points "
                f"with {[a.distinct for a in task.axes]} different values per parameter. Evaluate other points"
            )
        best: _Fit | None = None
        parents: list[_Fit] = []
        seen: set[tuple[Any, ...]] = set()
        for step in range(self.depth):
            moves = [(k, p.log_nugget) for p in parents for k in _neighbours(p.kernel, simple)] or [
                (k, _FIRST_LOG_NUGGET) for k in simple
            ]
            fits: list[_Fit] = []
            for kernel, log_nugget in ((canonical(k), nugget) for k, nugget in moves):
                if (key := order(kernel)) not in seen:
                    seen.add(key)
                    fits.append(self._screen(kernel, log_nugget, task, step, len(fits)))
            fits.sort(key=lambda f: f.bic(n))
            ends = [_optimise(f.kernel, f.log_nugget, task, self.max_iter) for f in fits[: 3 * self.beam]]
            parents = sorted(ends, key=lambda f: f.bic(n))[: self.beam]
            if not parents or (best is not None and not parents[0].bic(n) < best.bic(n)):
                break
            best = parents[0]
        if best is None or not math.isfinite(best.loss):
            raise FitError(
                f"kernel search: a simple kernel must give a finite likelihood, got {best}. Look for duplicated "
                "points with different values"
            )
        return best

    def _screen(self, kernel: Kernel, log_nugget: float, task: _Task, *which: int) -> _Fit:
        """The best of short fits from all starts."""
        rng = np.random.default_rng([self.seed, *which])
        new = [not atom.theta for atom in atoms(kernel)]
        inherited = 0 if all(new) else self.restarts if any(new) else 1
        starts = [(i, True) for i in range(self.restarts)] + [(i, False) for i in range(inherited)]
        drawn = (_draw(kernel, task, rng, i, everything) for i, everything in starts)
        fits = (_optimise(k, log_nugget, task, max(1, self.max_iter // 8)) for k in drawn)
        return min(fits, key=lambda f: f.loss)


# -- the belief


def _columns(u: Tensor, *shape: int) -> Columns:
    return [column.reshape(*shape) for column in u.numpy().T]


def _matrix(kernel: Kernel, a: Tensor, b: Tensor) -> Tensor:
    value = evaluate(kernel, _columns(a, -1, 1), _columns(b, 1, -1))
    return torch.from_numpy(np.array(np.broadcast_to(value, (len(a), len(b)))))


@dataclass(frozen=True)
class Component:
    """One additive part of a belief: one product of simple kernels.

    Attributes:
        name: in English.
        expression: as a formula, such as "SE × PER".
        mean: of this part, in units of z, (n,).
        variance: of this part, (n,). Parts are correlated: their variances do not add up to that of the whole.
    """

    name: str
    expression: str
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Decomposition:
    """A belief as a constant plus components, whose means add up to the mean of the whole.

    Attributes:
        offset: the constant, in units of z.
        components: in the order of the kernel's name.
    """

    offset: float
    components: tuple[Component, ...]


@dataclass(frozen=True)
class ComposedProcess(Posterior):
    """One task with a composed kernel: z = shift + scale * GP, data in standardised units.

    Attributes:
        kernel: the tree, in standardised units of z.
        names: of the parameters.
        log_likelihood: ln p(y | kernel, noise) of the standardised values the kernel was fitted to.
        bic: -2 log_likelihood + k ln n.
        shift, scale: of the standardisation.
        nugget: fitted noise variance, standardised.
        known: typical known variance of an observation, standardised.
        u: the points, (n, d).
        factor: lower L of L L^T = K + noise, (n, n).
        white: L^-1 y, (n,): with it, predictions and rank updates need nothing else.
    """

    kernel: Kernel
    names: tuple[str, ...]
    log_likelihood: float
    bic: float
    shift: Tensor
    scale: Tensor
    nugget: Tensor
    known: Tensor
    u: Tensor
    factor: Tensor
    white: Tensor

    @property
    def name(self) -> str:
        """The kernel in English, multiplied out."""
        return in_words(self.kernel, self.names)

    @property
    def expression(self) -> str:
        """The kernel as a formula."""
        return expression(self.kernel, self.names)

    def decompose(self, u: Tensor) -> Decomposition:
        """The belief at u (n, d) about each additive part of f.

        The part with kernel k_i has mean k_i(u, U) (K + noise)^-1 y and variance
        k_i(u, u) - k_i(u, U) (K + noise)^-1 k_i(U, u), where K is the whole kernel.

        References:
            Duvenaud et al. (2013), section 3 and appendix: posterior of an additive part.
        """
        return Decomposition(float(self.shift), tuple(self._component(term, u) for term in expand(self.kernel)))

    def _component(self, term: tuple[Atom, ...], u: Tensor) -> Component:
        kernel = term[0] if len(term) == 1 else Product(term)
        mean, variance, _ = self._standardised(kernel, u)
        name, formula = term_in_words(term, self.names), expression(canonical(kernel), self.names)
        return Component(name, formula, self.scale * mean, self.scale**2 * variance)

    def _standardised(self, kernel: Kernel, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n,) and variance (n,) of the part of the process that has this kernel, and L^-1 k(data, u)."""
        v = solve(self.factor, _matrix(kernel, self.u, u))
        prior = torch.from_numpy(evaluate(kernel, _columns(u, -1), _columns(u, -1)))
        return v.T @ self.white, (prior - (v**2).sum(0)).clamp_min(1e-14), v

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

    def view(self, u: Tensor) -> _ComposedView:
        """See `Posterior`."""
        mean, variance, v = self._standardised(self.kernel, u)
        noise = self.noise[:, None].expand(1, len(u))
        return _ComposedView(
            (self.shift + self.scale * mean)[None], (self.scale**2 * variance)[None], noise, self, u, v
        )

    @property
    def noise(self) -> Tensor:
        """See `Posterior`."""
        return (self.scale**2 * (self.nugget + self.known))[None]

    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """See `Posterior`; kernel, likelihood and BIC stay those of the fit."""
        v = solve(self.factor, _matrix(self.kernel, self.u, u))
        noise = (self.nugget + self.known).expand(len(u)) if variance is None else variance[:, 0] / self.scale**2
        corner = cholesky(_matrix(self.kernel, u, u) - v.T @ v + torch.diag(noise))
        if z is None:
            white = torch.zeros(len(u), dtype=u.dtype)  # what is seen is what was expected
        else:
            white = solve(corner, ((z[:, 0] - self.shift) / self.scale - v.T @ self.white)[:, None])[:, 0]
        factor = bordered(self.factor, v, corner)
        return replace(self, u=torch.cat([self.u, u]), factor=factor, white=torch.cat([self.white, white]))

    @property
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """See `Posterior`; length scales are those of the fastest change along each parameter, infinite if linear.

        Also ``kernel``, the formula, and ``atoms``, the parameters of its simple kernels from left to right.
        """
        lengths = [math.inf] * len(self.names)
        for atom in atoms(self.kernel):
            lengths[atom.axis] = min(lengths[atom.axis], local_length(atom))
        prior = evaluate(self.kernel, _columns(self.u, -1), _columns(self.u, -1))
        return (
            {
                "lengthscales": lengths,
                "amplitude": float(self.scale) * math.sqrt(prior.mean()),
                "nugget": float(self.scale * self.nugget.sqrt()),
                "mean": float(self.shift),
                "kernel": self.expression,
                "atoms": [
                    {"family": a.family, "parameter": self.names[a.axis], "theta": list(a.theta)}
                    for a in atoms(self.kernel)
                ],
            },
        )


@dataclass(frozen=True)
class _ComposedView(View):
    """A process at n points u, with v = L^-1 k(data, u)."""

    mean: Tensor
    variance: Tensor
    noise: Tensor
    process: ComposedProcess
    u: Tensor
    v: Tensor

    def covariance(self, other: _ComposedView) -> Tensor:
        """See `View`."""
        prior = _matrix(self.process.kernel, self.u, other.u)
        return (self.process.scale**2 * (prior - self.v.T @ other.v))[None]


def search_kernel(data: Observations, **settings: Any) -> ComposedProcess:
    """Find the kernel that explains one task best, as a belief with a name in English.

    Args:
        data: observations of one task.
        settings: of `KernelSearch`.

    Raises:
        ShapeError: not one task.
        FitError: see `KernelSearch.fit`.
        InvalidStrategy: settings out of range.

    Example:
        >>> u = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
        >>> found = search_kernel(Observations.exact(u, torch.sin(40 * u[:, 0]) + 3 * u[:, 0]), names=("t",), depth=3)
        >>> print(found.name)
        a linear function of t plus a periodic function of t
    """
    if data.z.shape[1] != 1:
        raise ShapeError(
            f"kernel search: needs one task, got {data.z.shape[1]}. Use KernelSearch(...).fit for several tasks"
        )
    posterior = KernelSearch(**settings).fit(data)
    assert isinstance(posterior, ComposedProcess)
    return posterior
