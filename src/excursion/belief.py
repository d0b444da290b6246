"""From trials to a belief: transformed observations, the transform that suits them, calibration.

Everything here is a pure function of the problem, the strategy's recipe and the stored trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri
from torch import Tensor

from .data import INFORMATIVE, Trial
from .problem import Problem, Task
from .surrogate import GaussianProcess, Observations, Posterior, Surrogate, Tempered, telling
from .surrogate.exact import DENSITY


@dataclass(frozen=True)
class Belief:
    """What is believed after some trials.

    Attributes:
        problem: the problem with every "auto" transform settled; `posterior` lives on its transformed values.
        posterior: fitted to the trials with values; pending and failed ones play no part.
        data: what it was fitted to.
        temperature: task -> factor on the standard deviations, from how well past predictions came true.
        levels: the levels of the problem (see `Problem.level`) that the levels of the posterior stand for: those with
            values.
    """

    problem: Problem
    posterior: Posterior
    data: Observations
    temperature: dict[str, float]
    levels: tuple[int, ...] = (0,)

    def summary(self) -> dict[str, dict[str, float | str]]:
        """Per task the transform, its scale and the temperature, JSON-compatible: kept with each proposal."""
        return {
            t.name: {"transform": t.transform, "scale": t.scale, "temperature": self.temperature[t.name]}
            for t in self.problem.tasks
        }


def believe(problem: Problem, recipe: Surrogate, trials: Sequence[Trial]) -> Belief:
    """The belief from the trials that hold values.

    Raises:
        FitError: fewer than two trials (of the dearest fidelity) hold values.
    """
    settled = settle(problem, trials)
    data = observations(settled, trials)
    posterior = recipe.fit(data)
    dear = _informative(settled, trials)
    factors = {t.name: temperature(t, dear) for t in settled.tasks}
    if any(f != 1.0 for f in factors.values()):
        posterior = Tempered(posterior, torch.tensor(list(factors.values()), dtype=torch.float64))
    cheaper = (level for level in range(1, len(problem.fidelities)) if _informative(problem, trials, level))
    return Belief(settled, posterior, data, factors, (0, *cheaper))


def observations(problem: Problem, trials: Sequence[Trial]) -> Observations:
    """The trials that hold values, as the surrogate sees them, in the order of their numbers.

    Those of cheaper fidelities are `Observations.cheaper` of the next dearer one. What a trial does not say of a task
    is not known.

    An infinite value becomes a bound at the farthest finite value known on its side (thresholds included): "beyond
    anything measured". So does the largest or smallest value where `_RAIL` points or more have exactly that and it lies
    beyond all thresholds: a CLs of 0 or 1, or a limit at the end of its bracket, tells where the answer saturates, not
    what the function does there. A plateau taken for values makes a smooth edge look like a cliff. Where fewer than two
    other values are known it is taken for values all the same: something has to set the scale.

    Raises:
        InvalidProblem: a transform is still to be settled (`settle`).
    """
    found: Observations | None = None
    # A fidelity without values tells nothing: the next dearer one follows the one below.
    for level in range(len(problem.fidelities) - 1, 0, -1):
        if done := _informative(problem, trials, level):
            names = problem.fidelities[-1 - level].parameters
            columns = None if names is None else tuple(problem.space.names.index(n) for n in names)
            found = replace(_at_level(problem, done), cheaper=found, columns=columns)
    return replace(_at_level(problem, _informative(problem, trials)), cheaper=found)


def _at_level(problem: Problem, done: Sequence[Trial]) -> Observations:
    """What these trials with values, all of one fidelity, tell."""
    u = problem.space.to_unit(problem.space.tensor([t.x for t in done]))
    known = torch.tensor([[name in t.outcome.values for name in problem.task_names] for t in done if t.outcome])
    known = known.reshape(len(done), len(problem.tasks))  # none at all has no columns
    columns = [_column(task, u, done) for task in problem.tasks]
    levels = tuple(t.levels for t in problem.tasks)
    z, variance, side = (torch.stack(part, 1) for part in zip(*columns))
    return Observations(u, z, variance, side, levels, None if known.all() else known)


def _column(task: Task, u: Tensor, done: Sequence[Trial]) -> tuple[Tensor, Tensor, Tensor]:
    """Values, variances and sides of a task, (n,); zeros where it is missing."""
    rows = torch.tensor(
        [i for i, t in enumerate(done) if t.outcome and task.name in t.outcome.values], dtype=torch.long
    )
    outcomes = [t.outcome for t in done if t.outcome and task.name in t.outcome.values]
    y = _values(task, done)
    variance = torch.tensor([o.variances.get(task.name, 0.0) for o in outcomes], dtype=torch.float64)
    side = torch.tensor(
        [{"above": 1.0, "below": -1.0}.get(o.bounds.get(task.name, ""), 0.0) for o in outcomes], dtype=torch.float64
    )
    z = task.map(y)
    beyond = ~(z.abs() < _BEYOND)
    side = torch.where(beyond & (side == 0), z.sign(), side)
    exact = side == 0
    railed = side.clone()
    for rail, sign in ((y[exact].max(), 1.0), (y[exact].min(), -1.0)) if task.thresholds and exact.any() else ():
        at = exact & (y == rail)
        far = bool((sign * (rail - y.new_tensor(task.thresholds)) > 0).all())
        if far and len(u[rows][at].unique(dim=0)) >= _RAIL:
            railed = torch.where(at, y.new_tensor(sign), railed)
    side = railed if (railed == 0).sum() >= 2 else side
    finite = torch.cat([z[~beyond], task.levels])
    finite = finite if len(finite) else finite.new_zeros(1)  # an optimum is sought, and only infinities are known
    slope = task.map.slope(y)
    slope = torch.where(y.isfinite() & slope.isfinite() & ~beyond, slope, torch.zeros_like(y))
    # The slope of a logarithm may be infinite.
    scaled = (variance.sqrt() * slope.clamp_max(1e300)).clamp_max(1e60) ** 2
    parts = (z.clamp(finite.min(), finite.max()), scaled, side)
    z, variance, side = (torch.zeros(len(done), dtype=y.dtype).index_copy(0, rows, part) for part in parts)
    return z, variance, side


#: So many points with equal values at an end of their range are a saturation.
_RAIL = 3
#: Squares of larger values and their products overflow: such a value says no more than an infinite one.
_BEYOND = 1e60


def _informative(problem: Problem, trials: Sequence[Trial], level: int = 0) -> list[Trial]:
    """Trials of this level with values, in the order of their numbers."""
    chosen = [t for t in trials if t.state in INFORMATIVE and t.outcome and problem.level(t.fidelity) == level]
    return sorted(chosen, key=lambda t: t.number)


def _values(task: Task, done: Sequence[Trial]) -> Tensor:
    """Of the trials that have one."""
    values = [t.outcome.values[task.name] for t in done if t.outcome and task.name in t.outcome.values]
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- transforms

#: Judges transforms, whatever recipe makes the belief: one smooth kernel is enough to tell them apart.
_JUDGE = GaussianProcess(kernel="matern52", restarts=1, max_iter=40, average=False)
#: Log prior odds against a transform. With few data a curved one now and then explains a smooth function as well as
#: "identity", and then misleads, "asinh" most of all.
_HANDICAP = {"asinh": 3.0, "log": 1.0, "log-tanh": 1.0}


def settle(problem: Problem, trials: Sequence[Trial]) -> Problem:
    """The problem with every "auto" transform replaced by the one that the data prefer.

    A Gaussian process is fitted under each transform that is possible (see `Task.choices`). The score is the log
    probability of the class (above or below each threshold) of the held-out observations, in closed form, plus a
    part of the log density of the values y, which decides where the classes do not. Scores of all fidelities are added
    up, and those of all tasks with the same thresholds, which therefore have the same transform: so that one is a
    multiple of another where their values are.

    The choice is made anew whenever the number of observations has grown by a fifth, from the first so many: a
    function of the history, and cheap. Before two are known it is the simplest.
    """
    if not any(t.transform == "auto" for t in problem.tasks):
        return problem
    known = [_informative(problem, trials, level) for level in range(max(1, len(problem.fidelities)))]
    done = [some[: _milestone(len(some))] for some in known]
    groups: dict[tuple[float, ...], list[Task]] = {}
    for t in problem.tasks:
        if t.transform == "auto":
            groups.setdefault(t.thresholds, []).append(t)
    settled = {t.name: t for tasks in groups.values() for t in _settled(problem, tasks, done, known)}
    return replace(problem, tasks=tuple(settled.get(t.name, t) for t in problem.tasks))


def _milestone(n: int) -> int:
    """The largest of 2, 3, ..., 10, 12, 15, 18, 22, ... (growing by a fifth) that is at most n."""
    step = 10
    if n < step:
        return n
    while math.ceil(1.2 * step) <= n:
        step = math.ceil(1.2 * step)
    return step


def _jury(d: int) -> int:
    """How many observations a judge sees, half of them the nearest to a threshold: 8 d^2, from 48 to 256.

    With 48 in seven dimensions all transforms look alike: "asinh" may be chosen for an ellipsoid.
    """
    return min(256, max(48, 8 * d * d))


def _settled(
    problem: Problem, tasks: Sequence[Task], done: Sequence[Sequence[Trial]], known: Sequence[Sequence[Trial]]
) -> list[Task]:
    """The tasks under the transform that suits all of them; ``done`` judge it, per level, ``known`` have an image."""
    options: list[dict[str, Task]] = []
    for task in tasks:
        y = torch.cat([_values(task, some) for some in done])
        choices = task.choices(y)
        # A transform that turns finite values into bounds has less to explain: its score cannot be compared.
        whole = [c for c in choices if bool((c.map(y[y.isfinite()]).abs() < _BEYOND).all())]
        # A value that came later may rule a logarithm out.
        positive = all(bool((_values(task, some) > 0).all()) for some in known)
        options.append({c.transform: c for c in whole or choices if positive or not c.map.positive})
    names = [name for name in options[0] if all(name in some for some in options)]
    if not names:  # no transform suits all
        return [task for own in tasks for task in _settled(problem, [own], done, known)]

    def score(name: str) -> float:
        return sum(_score(problem, some[name], level) for some in options for level in done)

    count = max(len(level) for level in done)
    best = max(names, key=score) if len(names) > 1 and count >= 2 else names[0]
    return [some[best] for some in options]


def _score(problem: Problem, choice: Task, done: Sequence[Trial]) -> float:
    """How well a transform explains trials of one level."""
    y = _values(choice, done)
    if len(y) < 2:
        return 0.0
    data = _at_level(replace(problem, tasks=(choice,)), done).task(0)
    kept = telling(data.z[:, 0].numpy(), data.levels[0].numpy(), _jury(problem.space.dim))
    data = data.rows(kept)
    exact = data.side[:, 0] == 0
    (total,) = _JUDGE.scores(data)
    return total - _HANDICAP.get(choice.transform, 0.0) + DENSITY * float(choice.map.log_slope(y[kept][exact]).sum())


# ------------------------------------------------------------------------------------------------- calibration

#: Mean 0 and this standard deviation of the normal prior on the log temperature.
_PRIOR = 0.25
#: So many of the latest predictions count: a belief is not to be blamed for what an older one did not know.
_LATEST = 24
#: Chance of a surprise that no temperature explains (a cliff where none was known).
_SURPRISE = 0.02


def temperature(task: Task, trials: Sequence[Trial]) -> float:
    """Factor by which standard deviations should have been larger, from the class predicted and the class seen.

    Each proposal was stored with the probability p_i that its value is above the threshold. With u_i = Phi^-1(p_i) the
    factor t maximises sum_i ln((1 - 2 e) Phi(s_i u_i / t) + e) + ln N(ln t; 0, .25^2), where s_i = +1 if the value was
    above, else -1, and e = .02 is the chance of a surprise: one sure prediction that fails does not spoil all others.
    It is never below 1: predictions that come true too often are no reason to trust a belief more than it does itself.
    """
    signs, scores = [], []
    known = [t for t in trials if t.state in INFORMATIVE and t.outcome and task.name in t.outcome.values]
    for t in sorted(known, key=lambda t: t.number)[-_LATEST:]:
        if t.outcome is None or task.name not in t.predicted or not 0 < t.predicted[task.name] < 1:
            continue
        before = float(t.belief.get(task.name, {}).get("temperature", 1.0))
        bound, value = t.outcome.bounds.get(task.name), t.outcome.values[task.name]
        if bound is not None and (value < task.thresholds[0]) == (bound == "above"):
            continue  # a bound on the near side does not tell the class
        signs.append(1.0 if value >= task.thresholds[0] else -1.0)
        scores.append(before * ndtri(t.predicted[task.name]))
    if not signs:
        return 1.0
    margin = np.array(signs) * np.array(scores)

    def loss(log_t: float) -> float:
        likelihood = (1 - 2 * _SURPRISE) * ndtr(margin / math.exp(log_t)) + _SURPRISE
        return float(0.5 * (log_t / _PRIOR) ** 2 - np.log(likelihood).sum())

    return math.exp(max(0.0, round(float(minimize_scalar(loss, bounds=(-0.1, 2.5), method="bounded").x), 3)))
