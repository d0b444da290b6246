"""How many more evaluations, and how long: from how a measure has come down so far. Pure functions; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .data import FINISHED, TABLE, Trial
from .problem import Problem

__all__ = ["Forecast", "Pace", "forecast", "latest", "milestones", "pace", "paid", "unit"]

#: So few values of the measure are no history.
_FEWEST = 4
#: Draws of the future; fixed, so that the same history gives the same forecast.
_DRAWS = 4000
#: A forecast whose upper end is more than so many times the evaluations so far is none.
_FARTHEST = 10
#: So many of the latest evaluations tell the present pace.
_RECENT = 20
#: What a measure is taken for where it is zero: none of the space-filling points is wrong.
_LEAST = 1e-9


@dataclass(frozen=True)
class Forecast:
    """How many more evaluations a goal needs; with fidelities their cost, as a budget counts it (`Problem.spent`).

    Attributes:
        more: the median; 0 where the goal is reached. None: there is no forecast.
        sd: half of the central 68 % interval.
        low, high: the central 95 % interval.
        seconds: about how long that takes at the present pace; None if that is not known.
        reason: why there is no forecast; empty if there is one.
        unit: of `more`, `sd`, `low` and `high`: "points", or evaluations of the dearest fidelity.
    """

    more: float | None
    sd: float = 0.0
    low: float = 0.0
    high: float = 0.0
    seconds: float | None = None
    reason: str = ""
    unit: str = "points"

    def __str__(self) -> str:
        if self.more is None:
            return f"no forecast yet ({self.reason})"
        if self.more == 0:
            return "goal reached"
        time = "" if self.seconds is None else f" (about {spelt(self.seconds)} at the present pace)"
        more, sd = (_rounded(v, 1.0 if self.unit == "points" else 0.01) for v in (self.more, self.sd))
        return f"{more} ± {sd} more {self.unit}{time}"


def _rounded(value: float, least: float) -> str:
    """A number with two digits, a whole one if the least is; never below the least."""
    short = max(least, float(f"{value:.2g}"))
    return f"{short:.0f}" if least == 1.0 else f"{short:g}"


def spelt(seconds: float) -> str:
    """A time for people, in the largest unit of which there are two or more.

    >>> spelt(800_000), spelt(7000), spelt(3)
    ('9 days', '117 minutes', '3 seconds')
    """
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} seconds"


@dataclass(frozen=True)
class Pace:
    """How fast evaluations come back at present.

    Attributes:
        latency: median seconds between asking and the outcome.
        throughput: evaluations finished per second while any was pending, so that nights between two runs do not count
            and evaluations at the same time do; with fidelities their cost, in evaluations of the dearest.
        each: mean cost of one evaluation.
    """

    latency: float
    throughput: float
    each: float = 1.0


def paid(problem: Problem, trials: Sequence[Trial]) -> float:
    """What the finished ones of these trials cost: `Problem.spent` of them."""
    return problem.spent(t for t in trials if t.state in FINISHED)


def unit(problem: Problem) -> str:
    """What a forecast counts."""
    return f"evaluations of {problem.fidelity().name!r}" if problem.fidelities else "points"


def pace(problem: Problem, trials: Sequence[Trial]) -> Pace | None:
    """The present pace, from the latest evaluations; None without any."""
    spans = [
        (t.finished, t.asked, problem.cost(t.fidelity, t.events))
        for t in trials
        if t.state in FINISHED and t.criterion != TABLE and t.finished is not None and t.asked is not None
    ]
    if not spans:
        return None
    recent = sorted(spans)[-_RECENT:]
    latency = float(np.median([end - start for end, start, _ in recent]))
    busy, until = 0.0, -math.inf
    for end, start, _ in sorted(recent, key=lambda span: span[1]):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    cost = math.fsum(cost for _, _, cost in recent)
    return Pace(latency, cost / max(busy, 1e-9), cost / len(recent))


def milestones(first: int, last: int, steps: int) -> list[int]:
    """So many whole numbers from first to last, evenly spaced, both included; fewer if there are not so many."""
    if last < first:
        return []
    return sorted({round(first + (last - first) * k / max(1, steps - 1)) for k in range(steps)})


def forecast(
    curve: Sequence[tuple[float, float]], limit: float, pace: Pace | None = None, unit: str = "points"
) -> Forecast:
    """When a measure will have come down to its limit.

    The logarithm of the measure is taken for a random walk with drift, in the number of evaluations n (an exponential
    law) or in ln n (a power law), weighed by their marginal likelihoods. Each law's drift and diffusion have the
    conjugate posterior of a normal sample; the time of the first passage through the limit is then inverse Gaussian.
    A walk, unlike a line with errors, knows that a setback (a belief found wrong) stays until it is worked off. On the
    analytic problems of `benchmarks/forecast.py` the central 95 % interval holds the truth in 97 % of the cases.

    Args:
        curve: evaluations (with fidelities their cost, see `paid`) and measure, (n, value) with ascending n; n = 0
            (tables only) does not count.
        limit: what the measure has to come down to, in its units.
        pace: gives the time, and what one evaluation costs (1 without).
        unit: of n, for people.

    Returns:
        The forecast; without a value if fewer than `_FEWEST` points are known or the measure shows no trend.

    References:
        Schrödinger, Physikalische Zeitschrift 16 (1915) 289: the first passage of a Brownian motion with drift.
        Gelman et al., Bayesian Data Analysis (2013), section 3.3: the conjugate posterior.
    """
    last = {k: v for k, v in curve if k > 0}  # of several values at the same number the last
    n = np.array(list(last), dtype=float)
    z = np.log(np.maximum(list(last.values()), _LEAST))
    goal = math.log(max(limit, _LEAST))
    if len(z) and z[-1] <= goal:
        return Forecast(0.0, unit=unit)
    if len(z) < _FEWEST:
        return Forecast(None, reason=f"{len(z)} measurements, {_FEWEST} are needed", unit=unit)
    rng = np.random.default_rng(0)
    laws = [_walk(t, z) for t in (n / n[-1], np.log(n / n[-1]) + 1.0)]
    evidence = np.array([law.evidence for law in laws])
    weights = np.exp(evidence - evidence.max())
    counts = rng.multinomial(_DRAWS, weights / weights.sum())
    passages = []
    for law, count, power in zip(laws, counts, (False, True)):
        waits = law.passage(z[-1] - goal, count, rng)
        with np.errstate(over="ignore"):
            passages.append(n[-1] * (np.exp(waits) if power else 1 + waits))
    more = np.concatenate(passages) - n[-1] + (pace.each if pace else 1.0)  # the goal has to hold twice
    low, below, median, above, high = np.quantile(more, [0.025, 0.16, 0.5, 0.84, 0.975], method="inverted_cdf")
    if not above < _FARTHEST * n[-1]:
        return Forecast(None, reason="the measure shows no clear trend", unit=unit)
    seconds = None if pace is None else float(median / pace.throughput)
    return Forecast(float(median), float(above - below) / 2, float(low), float(high), seconds, unit=unit)


@dataclass(frozen=True)
class _Walk:
    """Posterior of a random walk's drift and variance per unit of time: normal-inverse-gamma.

    Attributes:
        drift: mean of the drift.
        time: time that it is known from, prior included.
        shape, rate: of the variance.
        evidence: log marginal likelihood of the steps.
    """

    drift: float
    time: float
    shape: float
    rate: float
    evidence: float

    def passage(self, distance: float, count: int, rng: np.random.Generator) -> np.ndarray:
        """Times at which so many walks have gone down by a distance; infinite for those that never do."""
        variance = self.rate / rng.gamma(self.shape, size=count)
        drift = self.drift + np.sqrt(variance / self.time) * rng.standard_normal(count)
        down = drift < 0
        out = np.full(count, math.inf)
        out[down] = rng.wald(distance / -drift[down], distance**2 / variance[down])
        return out


#: Prior. Time is measured in evaluations so far: a drift, as sure as this part of the history would make it, and a
#: variance, as sure as so many steps. Chosen by `benchmarks/forecast.py`.
_DRIFT, _HISTORY, _VARIANCE, _STEPS = -3.0, 0.3, 2.0, 2.0


def _walk(t: np.ndarray, z: np.ndarray) -> _Walk:
    """The walk behind values z (k,) at times t (k,)."""
    dt, dz = np.diff(t), np.diff(z)
    time = _HISTORY + dt.sum()
    drift = (_HISTORY * _DRIFT + dz.sum()) / time
    shape, first = (_STEPS + len(dz)) / 2, _STEPS * _VARIANCE / 2
    rate = first + 0.5 * (_HISTORY * _DRIFT**2 + (dz**2 / dt).sum() - time * drift**2)
    evidence = (
        math.lgamma(shape) - math.lgamma(_STEPS / 2) + _STEPS / 2 * math.log(first) - shape * math.log(rate)
        + 0.5 * math.log(_HISTORY / time) - 0.5 * np.log(2 * math.pi * dt).sum()
    )  # fmt: skip
    return _Walk(drift, time, shape, rate, float(evidence))


def latest(forecasts: Iterable[Forecast]) -> Forecast:
    """The forecast of several conditions that must all hold: that of the one which takes longest."""
    found = list(forecasts)
    unknown = [f for f in found if f.more is None]
    return unknown[0] if unknown else max(found, key=lambda f: f.more or 0.0)
