"""Upper limits on the signal strength from HistFactory models, fast enough to sit inside a campaign.

pyhf owns the model: it validates the specification, names the parameters, and gives their constraints, bounds and
starting values. The likelihood is then compiled into numpy arrays with exact derivatives (see `histfactory`), so that
a fit is a few Newton steps of some hundred microseconds. Every compiled model is compared with pyhf's own rates and
constraint terms before it is used; a disagreement is an error.

The limits are the asymptotic CLs limits of the test statistic q-tilde. Writing q for its value on the data and q_A
for its value on the background-only Asimov data (both functions of mu),

    t = sqrt(q) - sqrt(q_A)                    for q <= q_A
    t = (q - q_A) / (2 sqrt(q_A))              otherwise
    CLs(mu) = Phi(-t - sqrt(q_A)) / Phi(-t)

and the limit expected for a background that fluctuates by N standard deviations replaces t by -N. It is thus the root
of sqrt(q_A)(mu) = N - Phi^-1(alpha Phi(N)), and all five of them share the fits to the Asimov data.

References:
    G. Cowan, K. Cranmer, E. Gross, O. Vitells, Eur. Phys. J. C 71 (2011) 1554, arXiv:1007.1727, eqs. 16, 62-66, 88-89.
    K. Cranmer et al., HistFactory, CERN-OPEN-2012-016.
    L. Heinrich, M. Feickert, G. Stark, pyhf, JOSS 6 (2021) 2823.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from ..data import Job, Outcome
from ..errors import EvaluationError, InvalidProblem, MissingExtra, ShapeError
from . import Evaluator
from .histfactory import (
    Data,
    Fit,
    Likelihood,
    Profile,
    auxiliary_parameters,
    compile_model,
    expected_rates,
    first_guess,
    minimise,
    response,
)

__all__ = [
    "TASKS",
    "CountsModel",
    "HistFactoryModel",
    "Limits",
    "PyhfEvaluator",
    "Signal",
    "WorkspaceModel",
    "Yields",
    "fitted",
    "limits",
]

#: What `PyhfEvaluator` returns: the observed limit, then the expected ones from -2 to +2 standard deviations.
TASKS: tuple[str, ...] = (
    "observed",
    "expected_minus_2",
    "expected_minus_1",
    "expected",
    "expected_plus_1",
    "expected_plus_2",
)
_SIGMAS: dict[str, int] = dict(zip(TASKS[1:], (-2, -1, 0, 1, 2)))

Array = np.ndarray
Bins = Sequence[float] | Mapping[str, Sequence[float]]


# ------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True)
class Limits:
    """Upper limits on the signal strength mu.

    Attributes:
        observed: the largest mu that the data do not exclude.
        expected: the same for background fluctuations of -2, -1, 0, 1 and 2 standard deviations.
        bounds: task name (see `TASKS`) -> "above": the limit lies above the number given (the largest mu that was
            tried), because the signal is too small, absent, or too uncertain to be excluded at any strength.
        best_fit: the mu >= 0 that maximises the likelihood; 0 without any signal.
        elasticities: task -> channel -> d ln mu / d ln s_i, how the limit answers to the signal yield s_i of each
            bin; the sum over all bins is -1. Absent for tasks with a bound.
        fits: how many minimisations it took.
        seconds: how long it took, construction of the model included.
    """

    observed: float
    expected: tuple[float, float, float, float, float]
    bounds: Mapping[str, Literal["above"]] = field(default_factory=dict)
    best_fit: float = 0.0
    elasticities: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    fits: int = 0
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, float]:
        """Task name -> limit, in the order of `TASKS`."""
        return dict(zip(TASKS, (self.observed, *self.expected)))


class Yields(Protocol):
    """What a simulation returns: any object with these attributes (`Signal` is one).

    Attributes:
        nominal: expected signal events per bin at mu = 1, flat in the model's order or channel -> bins.
        errors: their Monte Carlo standard deviations in the same form, or None.
    """

    @property
    def nominal(self) -> Any:
        """Expected signal events per bin at mu = 1."""

    @property
    def errors(self) -> Any:
        """Monte Carlo standard deviations of `nominal`, or None."""


@dataclass(frozen=True)
class Signal:
    """Expected signal events.

    Attributes:
        nominal: events per bin at mu = 1, flat in the model's order or channel -> bins.
        errors: their Monte Carlo standard deviations in the same form, or None if unknown.
        info: anything else worth keeping, JSON-compatible.
    """

    nominal: Bins
    errors: Bins | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- models


class HistFactoryModel(ABC):
    """A recipe that turns signal yields into a HistFactory workspace."""

    @abstractmethod
    def split(self, values: Bins, what: str) -> dict[str, Array]:
        """Check numbers per bin and sort them by channel.

        Args:
            values: one number per bin, flat in the model's order of channels or channel -> bins.
            what: what they are, for messages.

        Raises:
            ShapeError: the number of channels or bins is wrong.
        """

    @abstractmethod
    def workspace(self, signal: Yields) -> dict[str, Any]:
        """The workspace (pyhf's JSON format) with this signal.

        Raises:
            EvaluationError: yields that are negative or not finite.
            ShapeError: yields that do not fit the model's bins.
        """


def _numbers(where: str, values: Any) -> Array:
    try:
        return np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise ShapeError(f"{where}: must be one number per bin, got {values!r}. Give a flat sequence") from None


def _by_channel(values: Any, layout: Mapping[str, int], where: str) -> dict[str, Array]:
    if isinstance(values, Mapping):
        if set(values) != set(layout):
            raise ShapeError(
                f"{where}: must name the channels {sorted(layout)}, got {sorted(map(str, values))}. Give each its bins"
            )
        result = {name: _numbers(f"{where}, channel {name!r}", values[name]) for name in layout}
        for name, bins in result.items():
            if bins.shape != (layout[name],):
                raise ShapeError(
                    f"{where}, channel {name!r}: must have shape ({layout[name]},), got {bins.shape}. "
                    "Give one number per bin"
                )
        return result
    flat = _numbers(where, values)
    total = sum(layout.values())
    if flat.shape != (total,):
        raise ShapeError(
            f"{where}: must have shape ({total},), got {flat.shape}. Give one number per bin, in the order of "
            f"channels {list(layout)}"
        )
    edges = np.cumsum(list(layout.values()))[:-1]
    return dict(zip(layout, np.split(flat, edges)))


def checked(model: HistFactoryModel, signal: Yields) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """Nominal yields and errors by channel, finite and not negative."""
    errors = getattr(signal, "errors", None)
    nominal = model.split(signal.nominal, "signal yields")
    spread = None if errors is None else model.split(errors, "signal errors")
    for what, parts in (("yields", nominal), ("errors", spread or {})):
        for channel, bins in parts.items():
            bad = ~(np.isfinite(bins) & (bins >= 0))
            if bad.any():
                raise EvaluationError(
                    f"signal {what}, channel {channel!r}: must be finite and not negative, got {bins[bad][0]} in bin "
                    f"{int(np.flatnonzero(bad)[0])}. Look at the simulation; merge bins if event weights are negative"
                )
    return nominal, spread


@dataclass(frozen=True)
class CountsModel(HistFactoryModel):
    """Published counts per bin: observed events, expected background and its uncertainty, uncorrelated.

    The rate of bin i is mu s_i gamma_i^s eta lambda + b_i gamma_i^b. gamma_i^b is constrained by a Poisson term of
    (b_i / error_i)^2 auxiliary events (HistFactory's shapesys). gamma_i^s, present if the signal has errors, is
    likewise constrained by its number of simulated events (shapesys, right also for a handful of events) or by a
    Gaussian of the same relative width (staterror). eta and lambda are optional common factors.

    Attributes:
        observed, background, background_error: one number per bin; the error is one standard deviation, in events.
        channels: channel -> number of bins, in the order of the flat numbers; one channel "counts" if empty.
        signal_error: which term describes the signal's Monte Carlo error; "none" leaves it out of the likelihood.
        signal_uncertainty: relative normalisation uncertainty of the signal in all bins (normsys), below 1.
        luminosity_uncertainty: relative uncertainty of the luminosity, which multiplies the signal only: background
            estimates from published tables contain it.

    Raises:
        ShapeError: lengths that differ.
        InvalidProblem: negative or non-finite counts, an uncertainty on no background (a multiplicative term cannot
            hold it: give such a bin a small background), relative uncertainties out of range.
    """

    observed: Sequence[float]
    background: Sequence[float]
    background_error: Sequence[float]
    channels: Mapping[str, int] = field(default_factory=dict)
    signal_error: Literal["shapesys", "staterror", "none"] = "shapesys"
    signal_uncertainty: float = 0.0
    luminosity_uncertainty: float = 0.0

    def __post_init__(self) -> None:
        observed = _numbers("counts model, observed", self.observed)
        layout = {str(name): int(bins) for name, bins in self.channels.items()} or {"counts": observed.size}
        if min(layout.values()) < 1:
            raise ShapeError(f"counts model, channels: each needs at least one bin, got {layout}. Leave it out")
        object.__setattr__(self, "channels", layout)
        for name in ("observed", "background", "background_error"):
            parts = _by_channel(getattr(self, name), layout, f"counts model, {name}")
            flat = np.concatenate(list(parts.values()))
            if not (np.isfinite(flat).all() and (flat >= 0).all()):
                raise InvalidProblem(
                    f"counts model, {name}: must be finite and not negative, got {flat.tolist()}. Correct the counts"
                )
            object.__setattr__(self, name, tuple(flat.tolist()))
        for i, (b, e) in enumerate(zip(self.background, self.background_error)):
            if b == 0 and e > 0:
                raise InvalidProblem(
                    f"counts model, background_error: must be 0 where the background is 0, got {e} in bin {i}. "
                    "Give the bin a small background instead: the error is a factor on it"
                )
        if self.signal_error not in ("shapesys", "staterror", "none"):
            raise InvalidProblem(
                f"counts model, signal_error: must be 'shapesys', 'staterror' or 'none', got {self.signal_error!r}. "
                "Choose one"
            )
        for name in ("signal_uncertainty", "luminosity_uncertainty"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidProblem(
                    f"counts model, {name}: must be relative and in [0, 1), got {getattr(self, name)!r}. "
                    "Divide by the nominal"
                )

    def split(self, values: Bins, what: str) -> dict[str, Array]:
        """See `HistFactoryModel.split`."""
        return _by_channel(values, self.channels, f"counts model, {what}")

    def workspace(self, signal: Yields) -> dict[str, Any]:
        """See `HistFactoryModel.workspace`."""
        nominal, errors = checked(self, signal)
        observed, background, spread = (
            self.split(v, "counts") for v in (self.observed, self.background, self.background_error)
        )
        channels = []
        for name in self.channels:
            modifiers: list[dict[str, Any]] = [{"name": "mu", "type": "normfactor", "data": None}]
            if errors is not None and self.signal_error != "none":
                # staterror is named after its channel by HistFactory's convention.
                label = f"staterror_{name}" if self.signal_error == "staterror" else f"signal_{name}"
                modifiers.append({"name": label, "type": self.signal_error, "data": errors[name].tolist()})
            if self.signal_uncertainty > 0:
                shift = {"hi": 1 + self.signal_uncertainty, "lo": 1 - self.signal_uncertainty}
                modifiers.append({"name": "signal_normalisation", "type": "normsys", "data": shift})
            if self.luminosity_uncertainty > 0:
                modifiers.append({"name": "lumi", "type": "lumi", "data": None})
            bins = {"name": f"background_{name}", "type": "shapesys", "data": spread[name].tolist()}
            channels.append(
                {
                    "name": name,
                    "samples": [
                        {"name": "signal", "data": nominal[name].tolist(), "modifiers": modifiers},
                        {"name": "background", "data": background[name].tolist(), "modifiers": [bins]},
                    ],
                }
            )
        parameters = []
        if self.luminosity_uncertainty > 0:
            width = self.luminosity_uncertainty
            bounds = [max(1e-10, 1 - 10 * width), 1 + 10 * width]
            parameters.append({"name": "lumi", "auxdata": [1.0], "sigmas": [width], "inits": [1.0], "bounds": [bounds]})
        return {
            "channels": channels,
            "observations": [{"name": name, "data": bins.tolist()} for name, bins in observed.items()],
            "measurements": [{"name": "limit", "config": {"poi": "mu", "parameters": parameters}}],
            "version": "1.0.0",
        }


@dataclass(frozen=True)
class WorkspaceModel(HistFactoryModel):
    """Any HistFactory workspace whose signal sample is replaced by new yields.

    If no channel has a sample of the given name the workspace is background-only: the sample is added to every
    channel, scaled by the measurement's parameter of interest, with a shapesys for its Monte Carlo errors. Otherwise
    its yields are replaced wherever it occurs; the shifts of its histosys modifiers keep their ratio to the nominal,
    and its staterror and shapesys modifiers take the new errors (or, without any, keep their ratio).

    Attributes:
        spec: the workspace, pyhf's JSON format as a dictionary.
        sample: name of the signal sample.
        measurement: which measurement to use; the first one if None.
        patch: (copy of the workspace, signal) -> workspace, instead of all of the above, for anything else.

    Raises:
        InvalidProblem: no channels, observations or measurement of this name.
    """

    spec: Mapping[str, Any]
    sample: str = "signal"
    measurement: str | None = None
    patch: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        missing = [key for key in ("channels", "observations", "measurements") if not self.spec.get(key)]
        if missing:
            raise InvalidProblem(
                f"workspace model: needs channels, observations and measurements, got none of {missing}. "
                "Give a complete pyhf workspace"
            )
        self._measurement(self.spec)

    def _measurement(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        names = [m["name"] for m in spec["measurements"]]
        name = names[0] if self.measurement is None else self.measurement
        if name not in names:
            raise InvalidProblem(f"workspace model: must have measurement {name!r}, got {names}. Choose one of them")
        return spec["measurements"][names.index(name)]

    @property
    def layout(self) -> dict[str, int]:
        """Channel -> number of bins, of the channels that have the signal (all, in a background-only workspace)."""
        with_signal = [c for c in self.spec["channels"] if any(s["name"] == self.sample for s in c["samples"])]
        return {c["name"]: len(c["samples"][0]["data"]) for c in with_signal or self.spec["channels"]}

    def split(self, values: Bins, what: str) -> dict[str, Array]:
        """See `HistFactoryModel.split`."""
        return _by_channel(values, self.layout, f"workspace model, {what}")

    def workspace(self, signal: Yields) -> dict[str, Any]:
        """See `HistFactoryModel.workspace`."""
        result = copy.deepcopy(dict(self.spec))
        if self.patch is not None:
            return self.patch(result, signal)
        nominal, errors = checked(self, signal)
        poi = self._measurement(result)["config"]["poi"]
        present = any(s["name"] == self.sample for c in result["channels"] for s in c["samples"])
        for channel in result["channels"]:
            name = channel["name"]
            if not present:
                modifiers: list[dict[str, Any]] = [{"name": poi, "type": "normfactor", "data": None}]
                if errors is not None:
                    label = f"{self.sample}_{name}"
                    modifiers.append({"name": label, "type": "shapesys", "data": errors[name].tolist()})
                sample = {"name": self.sample, "data": nominal[name].tolist(), "modifiers": modifiers}
                channel["samples"].append(sample)
                continue
            for sample in channel["samples"]:
                if sample["name"] == self.sample:
                    new_errors = None if errors is None else errors[name]
                    _replace_yields(sample, nominal[name], new_errors)
        return result


def _replace_yields(sample: dict[str, Any], nominal: Array, errors: Array | None) -> None:
    """Give a sample (in place) new yields; see `WorkspaceModel` for what happens to its modifiers."""
    old = np.asarray(sample["data"], dtype=np.float64)
    ratio = np.divide(nominal, old, out=np.zeros_like(old), where=old > 0)
    for modifier in sample["modifiers"]:
        if modifier["type"] == "histosys":
            for side in ("hi_data", "lo_data"):
                shifted = np.asarray(modifier["data"][side], dtype=np.float64)
                # A bin that was empty has no relative shift to keep.
                modifier["data"][side] = np.where(old > 0, shifted * ratio, nominal).tolist()
        elif modifier["type"] in ("staterror", "shapesys"):
            kept = np.asarray(modifier["data"], dtype=np.float64) * ratio
            modifier["data"] = (kept if errors is None else errors).tolist()
    sample["data"] = nominal.tolist()


# ------------------------------------------------------------------------------------------------------ limits


def _log_cls(q: float, q_asimov: float) -> float:
    """ln CLs from the test statistic on the data and on the Asimov data."""
    root = math.sqrt(q_asimov)
    above = (q - q_asimov) / (2 * root) if root > 0 else math.inf
    t = math.sqrt(q) - root if q <= q_asimov else above
    return float(log_ndtr(-t - root) - log_ndtr(-t))


def _bracket_root(
    function: Callable[[float], float], known: Sequence[float], target: float, largest: float, rtol: float
) -> float | None:
    """The mu in (0, largest] where an increasing function reaches the target, or None; `known` were evaluated."""
    below, above = 0.0, None
    for mu in sorted(known):
        if function(mu) >= target:
            above = mu
            break
        below = mu
    while above is None:
        mu = min(max(2 * below, 1e-300), largest)
        if mu <= below:
            return None
        if function(mu) >= target:
            above = mu
        else:
            below = mu
    return float(brentq(lambda mu: function(mu) - target, below, above, xtol=1e-300, rtol=rtol))


def limits(
    model: Any,
    data: Sequence[float] | None = None,
    *,
    level: float = 0.95,
    mu_max: float = 1e4,
    measurement: str | None = None,
    poi: str = "mu",
    rtol: float = 1e-5,
) -> Limits:
    """Asymptotic CLs upper limits on the signal strength mu: observed, and expected at -2 ... +2 standard deviations.

    Parameters other than mu keep the bounds, starting values and fixed flags of the specification; mu itself ranges
    over [0, infinity) in fits. pyhf's global backend is neither used nor changed for fits. The auxiliary data of the
    Asimov set are those expected after a fit of the background to the data, as in pyhf.

    Args:
        model: a workspace (dictionary with "observations", or pyhf.Workspace), or a model specification (dictionary
            with "channels") or a pyhf.Model, which need `data`.
        data: observed events per bin in the order of the model's channels (pyhf: sorted by name), optionally followed
            by the auxiliary data.
        level: confidence level 1 - alpha in (0, 1).
        mu_max: the largest mu that is tried, positive and finite; limits beyond it become bounds.
        measurement: name of the workspace's measurement; its first one if None.
        poi: the parameter of interest of a bare specification.
        rtol: relative tolerance of the roots.

    Returns:
        The limits; a signal without any events has all of them "above" mu_max.

    Raises:
        EvaluationError: a fit did not converge, or observed events where the background cannot be.
        InvalidProblem: settings out of range, a specification that pyhf refuses, data of negative counts.
        ShapeError: data of the wrong length.
        MissingExtra: pyhf is not installed.

    References:
        arXiv:1007.1727, eqs. 16, 62-66 (q-tilde), 88-89 (expected bands).
    """
    began = time.perf_counter()
    if not 0 < level < 1:
        raise InvalidProblem(f"limits, level: must lie in (0, 1), got {level!r}. Use 0.95 for 95 %")
    if not (math.isfinite(mu_max) and mu_max > 0):
        raise InvalidProblem(f"limits, mu_max: must be positive and finite, got {mu_max!r}. The default is 1e4")
    if not 1e-12 <= rtol < 0.1:
        raise InvalidProblem(f"limits, rtol: must lie in [1e-12, 0.1), got {rtol!r}. The default is 1e-5")
    compiled, observed = _prepare(model, data, measurement, poi)
    result = _limits(compiled, observed, 1 - level, float(mu_max), rtol)
    return replace(result, seconds=time.perf_counter() - began)


def _limits(model: Likelihood, data: Data, alpha: float, mu_max: float, rtol: float) -> Limits:
    signal = model.nominal.reshape(model.signal.size, -1)[model.signal]
    if not (signal > 0).any():
        bounds: dict[str, Literal["above"]] = dict.fromkeys(TASKS, "above")
        return Limits(mu_max, (mu_max,) * 5, bounds)
    guess = min(first_guess(model), mu_max)

    background = minimise(model, data, model.start, 0.0)
    asimov = Data(
        expected_rates(model, background.theta),
        background.theta[model.gauss],
        model.tau * background.theta[model.poisson],
    )
    if (asimov.counts < 0).any():
        raise EvaluationError(
            f"HistFactory fit of the background: rates must not be negative, got {asimov.counts.min():.6g}. "
            "Look at shifts (histosys) larger than the yields"
        )
    # In deviance form the Asimov set's own best fit has the value 0, at mu = 0.
    on_asimov = Profile(model, asimov, Fit(background.theta, 0.0))
    on_data = Profile(model, data, background)

    def q_asimov(mu: float) -> float:
        return 2 * max(on_asimov(mu).value, 0.0)

    values: dict[str, float] = {}
    responses: dict[str, Array] = {}
    q_asimov(guess)
    for task, n in sorted(_SIGMAS.items(), key=lambda item: abs(item[1])):
        target = n - float(ndtri(alpha * ndtr(n)))
        root = _bracket_root(lambda mu: math.sqrt(q_asimov(mu)), list(on_asimov.fits), target, mu_max, rtol)
        if root is not None:
            values[task] = root
            responses[task] = response(model, asimov, on_asimov(root))

    # The likelihood may have several maxima, one of them at mu = 0: climb from the highest of some conditional fits.
    peak = min((on_data(mu) for mu in (0.0, guess, *values.values())), key=lambda fit: fit.value)
    best = min((minimise(model, data, fit.theta, None) for fit in (background, peak)), key=lambda fit: fit.value)
    for _ in range(10):
        try:
            root = _observed_root(on_data, on_asimov, best, values.get("expected", guess), alpha, mu_max, rtol)
        except _HigherPeak as higher:
            best = minimise(model, data, higher.fit.theta, None)
        else:
            break
    else:
        raise EvaluationError(
            f"HistFactory fit: the best fit must be the lowest, got ever lower ones, -ln L = {best.value:.6g} at "
            f"mu = {float(best.theta[model.poi]):.6g}. The likelihood has many maxima; simplify the model"
        )
    if root is not None:
        values["observed"] = root
        responses["observed"] = _observed_response(model, data, asimov, on_data, on_asimov, best, root)
    elasticities = {}
    for task, change in responses.items():
        share = -change / change.sum()
        elasticities[task] = {name: tuple(share[where].tolist()) for name, where in model.channels.items()}
    return Limits(
        observed=values.get("observed", mu_max),
        expected=tuple(values.get(task, mu_max) for task in TASKS[1:]),  # type: ignore[arg-type]
        bounds={task: "above" for task in TASKS if task not in values},
        best_fit=float(best.theta[model.poi]),
        elasticities=elasticities,
        fits=3 + on_data.count + on_asimov.count,
    )


class _HigherPeak(Exception):
    """A conditional fit lies above what was taken for the maximum of the likelihood."""

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self.fit = fit


def _observed_root(
    on_data: Profile, on_asimov: Profile, best: Fit, width: float, alpha: float, mu_max: float, rtol: float
) -> float | None:
    """The mu where the data's CLs is alpha, or None; `width` is about how far it lies above the best fit."""
    best_mu = float(best.theta[on_data.model.poi])

    def excluded(mu: float) -> float:
        q = 0.0
        if mu > best_mu:
            fit = on_data(mu)
            if fit.value < best.value - 1e-6:
                raise _HigherPeak(fit)
            q = 2 * max(fit.value - best.value, 0.0)
        return -_log_cls(q, 2 * max(on_asimov(mu).value, 0.0))

    near = [min(best_mu, mu_max), min(best_mu + width, mu_max)]
    return _bracket_root(excluded, near, -math.log(alpha), mu_max, rtol)


def _observed_response(
    model: Likelihood, data: Data, asimov: Data, on_data: Profile, on_asimov: Profile, best: Fit, mu: float
) -> Array:
    """d ln CLs / d ln s_i (B,) on the data, by the chain rule through q and q_A."""
    fit, fit_asimov = on_data(mu), on_asimov(mu)
    q, q_a = 2 * (fit.value - best.value), 2 * fit_asimov.value
    dq, da = 1e-5 * q, 1e-5 * q_a
    by_q = (_log_cls(q + dq, q_a) - _log_cls(q - dq, q_a)) / (2 * dq)
    by_a = (_log_cls(q, q_a + da) - _log_cls(q, q_a - da)) / (2 * da)
    change = response(model, data, fit) - response(model, data, best)
    return by_q * change + by_a * response(model, asimov, fit_asimov)


def _pyhf() -> ModuleType:
    try:
        import pyhf
    except ImportError as error:
        raise MissingExtra(
            f'limits: pyhf must be installed, got {error}. Run: pip install "excursion[pyhf]"'
        ) from error
    return pyhf


def _prepare(model: Any, data: Any, measurement: str | None, poi: str) -> tuple[Likelihood, Data]:
    """pyhf's model of whatever was given, compiled, with its data."""
    pyhf = _pyhf()
    try:
        with warnings.catch_warnings():
            # pyhf 0.7 validates with an old interface of jsonschema.
            warnings.filterwarnings("ignore", message="jsonschema.RefResolver is deprecated")
            if isinstance(model, Mapping) and "observations" in model:
                model = pyhf.Workspace(model)
            if isinstance(model, pyhf.Workspace):
                workspace = model
                model = workspace.model(measurement_name=measurement)
                if data is None:
                    data = workspace.data(model, include_auxdata=False)
            elif isinstance(model, Mapping):
                model = pyhf.Model(dict(model), poi_name=poi)
    except (
        pyhf.exceptions.InvalidSpecification,
        pyhf.exceptions.InvalidMeasurement,
        pyhf.exceptions.InvalidModel,
        pyhf.exceptions.InvalidModifier,
        pyhf.exceptions.InvalidNameReuse,
        pyhf.exceptions.InvalidWorkspaceOperation,
        KeyError,
    ) as error:
        raise InvalidProblem(
            f"HistFactory model: pyhf must accept the specification, got {type(error).__name__}: {error}. Correct it"
        ) from error
    if not isinstance(model, pyhf.Model):
        raise InvalidProblem(
            f"HistFactory model: must be a workspace, a specification or a pyhf.Model, got {type(model).__name__}. "
            "Read JSON files first"
        )
    if model.config.poi_index is None:
        raise InvalidProblem(
            "HistFactory model: needs a parameter of interest, got none. Name it in the measurement or as poi_name"
        )
    if data is None:
        raise InvalidProblem("limits: a model without observations needs data, got None. Give the observed counts")
    main, aux = int(model.config.nmaindata), int(model.config.nauxdata)
    counts = _numbers("limits, data", data)
    if counts.shape not in ((main,), (main + aux,)):
        raise ShapeError(
            f"limits, data: must have shape ({main},) or, with auxiliary data, ({main + aux},), got {counts.shape}. "
            f"Give one count per bin of channels {list(model.config.channels)}"
        )
    if not (np.isfinite(counts).all() and (counts[:main] >= 0).all()):
        raise InvalidProblem(
            f"limits, data: counts must be finite and not negative, got {counts[:main].tolist()}. Correct the data"
        )
    compiled = compile_model(model, pyhf.tensorlib)
    measured = counts[main:] if counts.size > main else np.asarray(model.config.auxdata, dtype=np.float64)
    by_parameter = dict(zip(auxiliary_parameters(model), measured.tolist()))
    pick = [np.array([by_parameter[i] for i in index.tolist()]) for index in (compiled.gauss, compiled.poisson)]
    return compiled, Data(counts[:main], pick[0], pick[1])


# --------------------------------------------------------------------------------------------------- evaluator


def fitted(model: HistFactoryModel, signal: Yields, *, level: float = 0.95, mu_max: float = 1e4) -> Outcome:
    """Signal yields -> upper limits on the signal strength, with their Monte Carlo variances.

    The tasks are those of `TASKS`. A limit beyond `mu_max` is told as the bound "above mu_max" (censored). The variance
    of a limit comes from the signal's errors e_i to first order,

        var(mu) = mu^2 sum_i (eps_i e_i / s_i)^2,      eps_i = d ln mu / d ln s_i,

    where the elasticities eps_i are exact (`Limits.elasticities`) for fixed errors; bins without signal events
    contribute nothing.

    Args:
        model: what to compare the signal with.
        signal: events per bin at mu = 1, with errors or without.
        level: confidence level.
        mu_max: the largest signal strength that is tried.

    Returns:
        Limits and variances; `info` holds yields, errors, best fit, number of fits and seconds.

    Raises:
        As `limits`.
    """
    nominal, errors = checked(model, signal)
    measurement = getattr(model, "measurement", None)
    result = limits(model.workspace(signal), level=level, mu_max=mu_max, measurement=measurement)
    variances = {}
    if errors is not None:
        for task, shares in result.elasticities.items():
            relative = 0.0
            for channel, s in nominal.items():
                some = s > 0
                relative += float(np.sum((np.asarray(shares[channel])[some] * errors[channel][some] / s[some]) ** 2))
            variances[task] = result.values[task] ** 2 * relative
    info: dict[str, Any] = {"yields": {channel: s.tolist() for channel, s in nominal.items()}}
    if errors is not None:
        info["yield_errors"] = {channel: e.tolist() for channel, e in errors.items()}
    info |= {"best_fit": result.best_fit, "fits": result.fits, "seconds_limits": result.seconds}
    return Outcome.of(result.values, variances=variances, bounds=result.bounds, info=info)


@dataclass(frozen=True)
class PyhfEvaluator(Evaluator):
    """Simulated signal yields -> upper limits on the signal strength, with their Monte Carlo variances.

    The tasks are those of `TASKS`; a point is excluded where its limit is below 1. See `fitted`.

    Attributes:
        signal: (point, seed) -> yields with `nominal`, `errors` (or None) and perhaps `info`; the expensive part.
        model: what to compare them with.
        level: confidence level.
        mu_max: the largest signal strength that is tried. The default, 1e4, is far beyond any strength that matters
            for the level set mu = 1.
    """

    signal: Callable[[Mapping[str, float], int], Yields]
    model: HistFactoryModel
    level: float = 0.95
    mu_max: float = 1e4

    def evaluate(self, job: Job) -> Outcome:
        """See `Evaluator.evaluate`."""
        began = time.perf_counter()
        signal = self.signal(job.x, job.seed)
        seconds = time.perf_counter() - began
        outcome = fitted(self.model, signal, level=self.level, mu_max=self.mu_max)
        info = {**(getattr(signal, "info", None) or {}), **outcome.info, "seconds_signal": seconds}
        return replace(outcome, info=info)
