"""HistFactory likelihoods as numpy arrays: rates, exact first and second derivatives, fits by Newton's method.

A model comes from pyhf (see `compile_model`), which owns the names, constraints, bounds and starting values of the
parameters; this module needs no pyhf itself. An evaluation with both derivatives takes some hundred microseconds
for tens of bins and parameters.

References:
    K. Cranmer et al., HistFactory, CERN-OPEN-2012-016.
    L. Heinrich, M. Feickert, G. Stark, pyhf, JOSS 6 (2021) 2823.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg.lapack import dposv
from scipy.special import xlogy

from ..errors import EvaluationError, InvalidProblem

__all__ = [
    "Data",
    "Fit",
    "Likelihood",
    "Profile",
    "auxiliary_parameters",
    "compile_model",
    "derivatives",
    "expected_rates",
    "first_guess",
    "half_deviance",
    "minimise",
    "response",
]

Array = np.ndarray


# ------------------------------------------------------------------------- the likelihood, compiled to arrays


@dataclass(frozen=True)
class Likelihood:
    """A HistFactory likelihood as arrays. N parameters, S samples, B bins of all channels, X = S B.

    The rate of sample s in bin b is (nominal + additive shifts) times the product of linear factors (a parameter
    itself: normfactor, lumi, shapefactor, shapesys, staterror) and of normalisation factors (normsys).
    """

    names: tuple[str, ...]  # one per parameter
    channels: dict[str, slice]  # channel -> its bins
    poi: int
    start: Array  # (N,)
    lower: Array
    upper: Array
    free: Array  # (N,) bool
    nominal: Array  # (X,)
    signal: Array  # (S,) bool: samples scaled by the parameter of interest
    layers: tuple[tuple[Array, Array], ...]  # linear factors: (positions in X, parameters); a position once a layer
    norm_parameters: Array  # (n,)
    norm_logs: Array  # (2, n, X): ln hi, ln lo
    norm_powers: Array  # (7, n, X): the polynomial inside [-1, 1]
    shift_parameters: Array  # (h,)
    shift_even: Array  # (h, X): (up - down) / 16 ...
    shift_odd: Array  # (h, X): ... and (up + down) / 2
    gauss: Array  # parameters constrained by a Gaussian,
    width: Array  # with this standard deviation
    poisson: Array  # parameters constrained by a Poisson term
    tau: Array  # of this expectation at 1

    @property
    def bins(self) -> int:
        """Number of bins of all channels."""
        return self.nominal.size // self.signal.size


@dataclass(frozen=True)
class Data:
    """What is fitted: main counts (B,) and the auxiliary measurements of the two kinds of constraint."""

    counts: Array
    gauss: Array
    poisson: Array


def _shift_shape(alpha: Array) -> tuple[Array, Array, Array]:
    """The even part of the interpolation of a histosys ("code4p"), with its derivatives.

    8 |alpha| outside [-1, 1]; inside 15 a^2 - 10 a^4 + 3 a^6, which is twice differentiable at the joints.
    """
    a = np.clip(alpha, -1.0, 1.0)
    inside = np.abs(alpha) < 1
    value = np.where(inside, a**2 * (15 - 10 * a**2 + 3 * a**4), 8 * np.abs(alpha))
    first = np.where(inside, a * (30 - 40 * a**2 + 18 * a**4), 8 * np.sign(alpha))
    second = np.where(inside, 30 - 120 * a**2 + 90 * a**4, 0.0)
    return value, first, second


def _norm_factors(model: Likelihood, theta: Array) -> tuple[Array, Array, Array]:
    """Factors m of normsys modifiers, m'/m, and m''/m - (m'/m)^2; each (n, X)."""
    alpha = theta[model.norm_parameters][:, None]
    log_hi, log_lo = model.norm_logs
    slope = np.where(alpha >= 0, log_hi, -log_lo)
    value, curvature = np.exp(alpha * slope), np.zeros_like(slope)
    inside = (np.abs(alpha) < 1)[:, 0]
    if inside.any():
        powers = model.norm_powers[:, inside]
        a = alpha[inside]
        m, first, second = np.zeros((3, *powers.shape[1:]))
        for k in range(6, -1, -1):  # Horner's scheme, with two derivatives
            second = second * a + 2 * first
            first = first * a + m
            m = m * a + powers[k]
        value[inside] = m
        slope = slope.copy()
        slope[inside] = first / m
        curvature[inside] = second / m - (first / m) ** 2
    return value, slope, curvature


def _norm_polynomials(logs: Array) -> Array:
    """Coefficients (7, n, X) of the polynomial that joins hi^a and lo^-a twice differentiably at a = +-1.

    It is 1 at 0 and has degree six (HistFactory's default interpolation, "code4").
    """
    k = np.arange(1, 7)
    rows, sides = [], []
    for sign, log in ((1.0, logs[0]), (-1.0, -logs[1])):
        edge = np.exp(sign * log)
        rows += [sign**k, k * sign ** (k - 1), k * (k - 1) * sign**k]
        sides += [edge - 1, edge * log, edge * log**2]
    right = np.stack(sides)
    solved = np.linalg.solve(np.stack(rows), right.reshape(6, -1)).reshape(right.shape)
    return np.concatenate([np.ones((1, *logs[0].shape)), solved])


def _sample_rates(model: Likelihood, theta: Array) -> tuple[Array, Array]:
    """Yields before multiplication (nominal + shifts) and the product of all factors, both (X,)."""
    additive = model.nominal
    if model.shift_parameters.size:
        alpha = theta[model.shift_parameters]
        even = _shift_shape(alpha)[0]
        additive = additive + alpha @ model.shift_odd + even @ model.shift_even
    product = np.ones_like(additive)
    for positions, parameters in model.layers:
        product[positions] *= theta[parameters]
    if model.norm_parameters.size:
        product = product * _norm_factors(model, theta)[0].prod(axis=0)
    return additive, product


def expected_rates(model: Likelihood, theta: Array) -> Array:
    """Expected events per bin (B,)."""
    additive, product = _sample_rates(model, theta)
    return (additive * product).reshape(model.signal.size, -1).sum(axis=0)


def half_deviance(model: Likelihood, data: Data, theta: Array) -> float:
    """Minus the log-likelihood ratio to the saturated model; infinite where a rate cannot have made the counts."""
    # Deviance form: no large constants, so that differences keep their digits.
    expected = np.concatenate([expected_rates(model, theta), model.tau * theta[model.poisson]])
    counts = np.concatenate([data.counts, data.poisson])
    some = counts > 0
    if not np.isfinite(expected).all() or (expected[some] <= 0).any():
        return math.inf
    total = (expected - counts).sum() + xlogy(counts[some], counts[some] / expected[some]).sum()
    pulls = (data.gauss - theta[model.gauss]) / model.width
    return float(total + 0.5 * pulls @ pulls)


def derivatives(model: Likelihood, data: Data, theta: Array) -> tuple[Array, Array, Array]:
    """Gradient (N,) and Hessian (N, N) of `half_deviance`, and the diagonal (N,) of the Fisher information."""
    n, samples, bins = theta.size, model.signal.size, model.bins
    # A factor of exactly zero has no logarithmic derivative; this floor changes rates by less than rounding.
    theta = np.where(np.abs(theta) < 1e-60, 1e-60, theta)
    additive, product = _sample_rates(model, theta)
    rates = additive * product
    slope = np.zeros((n, rates.size))  # d ln(product) / d theta_i
    bend = np.zeros_like(slope)  # d^2 ln(product) / d theta_i^2
    for positions, parameters in model.layers:
        inverse = 1 / theta[parameters]
        slope[parameters, positions] += inverse
        bend[parameters, positions] -= inverse**2
    if model.norm_parameters.size:
        _, first, second = _norm_factors(model, theta)
        slope[model.norm_parameters] += first
        bend[model.norm_parameters] += second
    jacobian = slope * rates
    curved = (slope**2 + bend) * rates  # the diagonal of the second derivatives; exactly 0 for a linear factor
    shift = None
    if model.shift_parameters.size:
        rows = model.shift_parameters
        _, first, second = _shift_shape(theta[rows])
        shift = (model.shift_odd + first[:, None] * model.shift_even) * product
        jacobian[rows] += shift
        curved[rows] += 2 * shift * slope[rows] + second[:, None] * model.shift_even * product
    expected = rates.reshape(samples, bins).sum(axis=0)
    some = data.counts > 0
    weight = np.ones(bins)  # d value / d rate
    weight[some] -= data.counts[some] / expected[some]
    sharp = np.zeros(bins)
    sharp[some] = data.counts[some] / expected[some] ** 2
    total = jacobian.reshape(n, samples, bins).sum(axis=1)
    gradient = total @ weight
    hessian = (total * sharp) @ total.T
    spread = np.tile(weight, samples)
    mixed = (slope * (spread * rates)) @ slope.T
    if shift is not None:
        cross = (shift * spread) @ slope.T
        mixed[rows] += cross
        mixed[:, rows] += cross.T
    np.fill_diagonal(mixed, curved @ spread)
    hessian += mixed
    gradient[model.gauss] -= (data.gauss - theta[model.gauss]) / model.width**2
    hessian[model.gauss, model.gauss] += model.width**-2
    inside = theta[model.poisson]
    gradient[model.poisson] += model.tau - data.poisson / inside
    hessian[model.poisson, model.poisson] += data.poisson / inside**2
    fisher = (total**2 / np.maximum(expected, 1e-300)).sum(axis=1)
    fisher[model.gauss] += model.width**-2
    fisher[model.poisson] += model.tau / np.maximum(inside, 1e-300)
    return gradient, hessian, fisher


def compile_model(model: Any, tensorlib: Any) -> Likelihood:
    """Translate a pyhf model; `tensorlib` is the library it was built for (pyhf.tensorlib).

    Raises:
        InvalidProblem: modifiers or interpolations outside HistFactory; rates or constraints unlike pyhf's.
    """
    config = model.config
    # The other interpolations have kinks, where a fit by derivatives may get stuck.
    for kind, known in (("normsys", "code4"), ("histosys", "code4p")):
        code = config.modifier_settings.get(kind, {}).get("interpcode", known)
        if code != known:
            raise InvalidProblem(
                f"HistFactory model: the interpolation of {kind} must be {known!r}, got {code!r}. "
                "Leave out modifier_settings"
            )
    samples, channels = list(config.samples), dict(config.channel_slices)
    bins = sum(config.channel_nbins.values())
    size = len(samples) * bins
    nominal = np.zeros(size)
    signal = np.zeros(len(samples), dtype=bool)
    linear: list[tuple[Array, Array]] = []
    norms: dict[int, Array] = {}
    shifts: dict[int, Array] = {}
    for channel in model.spec["channels"]:
        inside = channels[channel["name"]]
        for sample in channel["samples"]:
            row = samples.index(sample["name"])
            at = np.arange(row * bins + inside.start, row * bins + inside.stop)
            nominal[at] = data = np.asarray(sample["data"], dtype=np.float64)
            for modifier in sample["modifiers"]:
                kind, name = modifier["type"], modifier["name"]
                where = config.par_slice(name)
                if kind in ("normfactor", "lumi"):
                    linear.append((at, np.full(at.size, where.start)))
                    signal[row] |= where.start == config.poi_index
                elif kind in ("shapefactor", "shapesys", "staterror"):
                    linear.append((at, np.arange(where.start, where.stop)))
                elif kind == "normsys":
                    hi, lo = float(modifier["data"]["hi"]), float(modifier["data"]["lo"])
                    if not (hi > 0 and lo > 0):
                        raise InvalidProblem(
                            f"HistFactory model, normsys {name!r} of sample {sample['name']!r}: hi and lo must be "
                            f"positive factors, got hi={hi}, lo={lo}. Correct the workspace"
                        )
                    norms.setdefault(where.start, np.zeros((2, size)))[:, at] += [[math.log(hi)], [math.log(lo)]]
                elif kind == "histosys":
                    up = np.asarray(modifier["data"]["hi_data"], dtype=np.float64) - data
                    down = data - np.asarray(modifier["data"]["lo_data"], dtype=np.float64)
                    shifts.setdefault(where.start, np.zeros((2, size)))[:, at] += [(up - down) / 16, (up + down) / 2]
                else:
                    raise InvalidProblem(
                        f"HistFactory model, modifier {name!r}: the type must be one of HistFactory's, got {kind!r}. "
                        "Replace custom modifiers"
                    )
    for at, parameters in linear:
        if at.size != parameters.size:
            raise InvalidProblem(
                f"HistFactory model: a modifier per bin must have one parameter per bin of its channel, got "
                f"{parameters.size} for {at.size} bins. Give modifiers of different channels different names"
            )
    gauss: list[int] = []
    poisson: list[int] = []
    width: list[float] = []
    tau: list[float] = []
    fixed = np.asarray(config.suggested_fixed(), dtype=bool)
    for name in config.auxdata_order:
        parameter = config.param_set(name)
        index = np.arange(config.par_slice(name).start, config.par_slice(name).stop)
        if parameter.pdf_type == "normal":
            gauss.extend(index)
            width.extend(parameter.width())
        else:
            poisson.extend(index)
            tau.extend(parameter.factors)
    bounds = np.array(config.suggested_bounds(), dtype=np.float64).T
    bounds[:, config.poi_index] = 0.0, np.inf  # q-tilde asks for mu >= 0; an upper bound would cut the limit
    if not signal.any():
        raise InvalidProblem(
            f"HistFactory model: the parameter of interest must be a normfactor of a sample, got "
            f"{config.poi_name!r}, which scales none. Name another one"
        )
    logs = np.stack(list(norms.values()), axis=1) if norms else np.zeros((2, 0, size))
    moves = np.stack(list(shifts.values()), axis=1) if shifts else np.zeros((2, 0, size))
    compiled = Likelihood(
        names=tuple(config.par_names),
        channels=channels,
        poi=config.poi_index,
        start=np.array(config.suggested_init(), dtype=np.float64),
        lower=bounds[0],
        upper=bounds[1],
        free=~fixed,
        nominal=nominal,
        signal=signal,
        layers=_layers(linear),
        norm_parameters=np.array(list(norms), dtype=int),
        norm_logs=logs,
        norm_powers=_norm_polynomials(logs),
        shift_parameters=np.array(list(shifts), dtype=int),
        shift_even=moves[0],
        shift_odd=moves[1],
        gauss=np.array(gauss, dtype=int),
        width=np.array(width, dtype=np.float64),
        poisson=np.array(poisson, dtype=int),
        tau=np.array(tau, dtype=np.float64),
    )
    _compare_with_pyhf(compiled, model, tensorlib)
    # A fixed parameter's constraint is a constant.
    keep_gauss, keep_poisson = compiled.free[compiled.gauss], compiled.free[compiled.poisson]
    return replace(
        compiled,
        gauss=compiled.gauss[keep_gauss],
        width=compiled.width[keep_gauss],
        poisson=compiled.poisson[keep_poisson],
        tau=compiled.tau[keep_poisson],
    )


def _layers(linear: list[tuple[Array, Array]]) -> tuple[tuple[Array, Array], ...]:
    """Merge factors that touch different positions, so that one indexed multiplication serves many of them."""
    layers: list[tuple[list[Array], list[Array], set[int]]] = []
    for at, parameters in linear:
        taken = set(at.tolist())
        for positions, indices, used in layers:
            if not used & taken:
                positions.append(at)
                indices.append(parameters)
                used |= taken
                break
        else:
            layers.append(([at], [parameters], taken))
    return tuple((np.concatenate(p), np.concatenate(i)) for p, i, _ in layers)


def _compare_with_pyhf(compiled: Likelihood, model: Any, tensorlib: Any) -> None:
    """Refuse a translation whose rates or constraints differ from pyhf's, at points inside and outside |alpha| = 1."""
    aux = np.asarray(model.config.auxdata, dtype=np.float64)
    order = np.concatenate([compiled.gauss, compiled.poisson]).astype(int)
    mine = np.empty(aux.size)
    for j, name in enumerate(auxiliary_parameters(model)):
        mine[np.flatnonzero(order == name)[0]] = aux[j]
    data = Data(np.zeros(compiled.bins), mine[: compiled.gauss.size], mine[compiled.gauss.size :])
    wave = np.cos(np.arange(compiled.start.size))
    reference = None
    for size in (0.0, 0.3, 1.6):
        move = np.where(compiled.free, size * wave, 0.0)
        around_one = compiled.start > 0.5
        theta = np.where(around_one, compiled.start * np.exp(0.3 * move), compiled.start + move)
        theta = np.clip(theta, compiled.lower, compiled.upper)
        tensor = tensorlib.astensor(theta.tolist())
        theirs = tensorlib.tolist(model.expected_data(tensor, include_auxdata=False))
        expected = np.asarray(theirs, dtype=np.float64)
        logpdf = 0.0
        if aux.size:
            logpdf = tensorlib.tolist(model.constraint_logpdf(tensorlib.astensor(aux.tolist()), tensor))
            logpdf = float(np.ravel(logpdf)[0])
        rates = expected_rates(compiled, theta)
        constraint = -(half_deviance(compiled, data, theta) - float(rates.sum()))
        if reference is None:
            reference = logpdf - constraint
        # 32-bit tensor libraries agree to 1e-6 only.
        if not (
            np.allclose(rates, expected, rtol=1e-4, atol=1e-5 * (1 + np.abs(expected).max()))
            and math.isclose(logpdf - constraint, reference, rel_tol=1e-4, abs_tol=1e-3)
        ):
            raise InvalidProblem(
                f"HistFactory model: the compiled likelihood must equal pyhf's, got rates {rates.tolist()} for "
                f"{expected.tolist()} and constraint {constraint + reference} for {logpdf} at {theta.tolist()}. "
                "The model uses something that is not supported; please report it"
            )


def auxiliary_parameters(model: Any) -> list[int]:
    """The parameter of each auxiliary datum, in pyhf's order of auxiliary data."""
    config = model.config
    slices = [config.par_slice(name) for name in config.auxdata_order]
    return [i for where in slices for i in range(where.start, where.stop)]


def _signal_rates(model: Likelihood, theta: Array) -> Array:
    """Events per bin (B,) of the samples that the parameter of interest scales."""
    additive, product = _sample_rates(model, theta)
    return (additive * product).reshape(model.signal.size, -1)[model.signal].sum(axis=0)


def response(model: Likelihood, data: Data, fit: Fit) -> Array:
    """d(2 value)/d ln s_i at a fit (B,): by the envelope theorem the nuisance parameters need not move."""
    rates = expected_rates(model, fit.theta)
    ratio = np.divide(data.counts, rates, out=np.zeros_like(rates), where=data.counts > 0)
    return 2 * (1 - ratio) * _signal_rates(model, fit.theta)


def first_guess(model: Likelihood) -> float:
    """A mu within a factor of a few of the expected limit, from s^2 / (b + db^2 + mu s)."""
    theta = model.start.copy()
    theta[model.poi] = 1.0
    signal = _signal_rates(model, theta)
    theta[model.poi] = 0.0
    background = np.maximum(expected_rates(model, theta), 0.0)
    # Uncertainties one parameter at a time, by a symmetric step of one standard deviation.
    variance = np.zeros_like(background)
    widths = np.concatenate([model.width, 1 / np.sqrt(np.maximum(model.tau, 1e-300))])
    for i, width in zip(np.concatenate([model.gauss, model.poisson]), widths):
        step = theta.copy()
        step[i] = min(theta[i] + width, model.upper[i])
        variance += (expected_rates(model, step) - background) ** 2
    some = signal > 0
    s, noise = signal[some], (background + variance)[some]
    mu = 1.0 / s.sum()
    while mu**2 * (s**2 / (noise + mu * s)).sum() < 4.0:
        mu *= 2.0
    return mu


# ------------------------------------------------------------------------------------------------ minimisation


@dataclass(frozen=True)
class Fit:
    """Where a minimisation ended: parameters (N,) and half the deviance there."""

    theta: Array
    value: float


def minimise(model: Likelihood, data: Data, start: Array, mu: float | None) -> Fit:
    """Minimise `half_deviance` within the bounds, with mu fixed unless None.

    Newton's method with exact second derivatives, projected on the bounds, damped (Levenberg-Marquardt) where a full
    step would not decrease the function: for large damping it is scaled steepest descent.

    Raises:
        EvaluationError: it did not converge.
    """
    free = model.free.copy()
    theta = np.clip(start, model.lower, model.upper)
    if mu is None:
        free[model.poi] = True
    else:
        free[model.poi] = False
        theta[model.poi] = mu
    value = half_deviance(model, data, theta)
    damping, decrease = 0.0, math.inf
    for _ in range(500):
        if not math.isfinite(value):
            break
        gradient, hessian, fisher = derivatives(model, data, theta)
        stuck = ((theta <= model.lower) & (gradient > 0)) | ((theta >= model.upper) & (gradient < 0))
        move = np.flatnonzero(free & ~stuck)
        if not move.size:
            return Fit(theta, value)
        gradient, hessian = gradient[move], hessian[np.ix_(move, move)]
        # Without counts the curvature may vanish; the Fisher information still knows the scale.
        scale = np.maximum(np.abs(np.diag(hessian)), fisher[move]) + 1e-30
        accepted = False
        while damping < 1e14:
            _, step, failed = dposv(hessian + np.diag(damping * scale), -gradient)
            if failed == 0:
                trial = theta.copy()
                trial[move] = np.clip(theta[move] + step, model.lower[move], model.upper[move])
                decrease = float(-gradient @ (trial[move] - theta[move]))
                if damping == 0.0 and 0 <= decrease < 1e-10 + 1e-14 * abs(value):
                    return Fit(theta, value)
                new = half_deviance(model, data, trial) if decrease > 0 else math.inf
                if new <= value - 1e-4 * decrease:
                    accepted = True
                    break
                # Rounding of the sum hides smaller decreases.
                if 0 <= decrease < 1e-9 + 1e-12 * abs(value):
                    return Fit(theta, value)
            damping = max(1e-4, 10 * damping)
        if not accepted:
            break
        theta, value = trial, new
        damping = 0.0 if damping <= 1e-3 else damping / 10
    worst = int(np.argmax(np.abs(theta - model.start)))
    raise EvaluationError(
        f"HistFactory fit (mu {'free' if mu is None else f'= {mu:.6g}'}): must converge, got -ln L = {value:.6g} with "
        f"expected decrease {decrease:.3g}; furthest from its start is {model.names[worst]!r} at {theta[worst]:.6g}. "
        "Look for bins with observed events but no background, or for parameters nothing constrains"
    )


class Profile:
    """Conditional fits to one data set, each started from the nearest one before."""

    def __init__(self, model: Likelihood, data: Data, *known: Fit) -> None:
        self.model, self.data = model, data
        self.fits = {float(fit.theta[model.poi]): fit for fit in known}
        self.count = 0

    def __call__(self, mu: float) -> Fit:
        """The fit with this mu, made once."""
        if mu not in self.fits:
            nearest = min(self.fits, key=lambda known: abs(known - mu))
            start = self.fits[nearest].theta
            self.fits[mu] = minimise(self.model, self.data, start, mu)
            self.count += 1
        return self.fits[mu]
