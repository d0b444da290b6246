"""What a search has found, in physical units; and the one call that does it all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from . import levelset, uncertainty
from .belief import believe, observations
from .campaign import Campaign, best_trial, one_sided
from .contours import Contour, Slice, trace
from .data import INFORMATIVE, Outcome, Trial
from .errors import FitError, InvalidPoint, InvalidProblem, InvalidStrategy
from .evaluators.python import Function
from .fidelities import helps
from .problem import Fidelity, Problem, Task, TransformName
from .proposal import Strategy
from .runner import run
from .space import ParameterSpace
from .store import Store
from .surrogate import Posterior
from .threads import one_thread
from .uncertainty import SetSummary


@dataclass(frozen=True)
class Optimum:
    """The minimum or maximum after a search.

    Attributes:
        x: where it is believed to be, parameter name -> physical value: the optimum of mean + sd (mean - sd for a
            maximum) of the transformed values, so that a place where nothing is known does not win by hope.
        value: the belief there, in the task's units.
        sd: its standard deviation, see `Result.mean_and_sd`.
        best: the trial with the best value.
        best_value: that value.
    """

    x: Mapping[str, float]
    value: float
    sd: float
    best: Trial
    best_value: float


@dataclass(frozen=True)
class Band:
    """The points at which a side of the threshold cannot be told at some level.

    Attributes:
        result: what is known.
        task, threshold: whose level set it surrounds.
        level: probability of the central interval of f that holds the threshold there.
        volume: of the band, as a fraction of the allowed volume.
    """

    result: Result
    task: str
    threshold: float
    level: float
    volume: float

    def contains(self, x: Any) -> np.ndarray:
        """Whether points in physical units lie in the band: (1 - level)/2 < P(f >= threshold) < (1 + level)/2.

        Args:
            x: see `Result.excursion_probability`.

        Returns:
            Booleans, (n,); False at forbidden points.
        """
        p = self.result.excursion_probability(x, self.task, self.threshold)
        return np.abs(2 * p - 1) < self.level

    def edges(self, **slice_: Any) -> tuple[Contour, Contour]:
        """Where P(f >= threshold) is (1 + level)/2, and where it is (1 - level)/2, as lines.

        Args:
            slice_: ``names``, ``fixed`` and ``n`` of `Result.contours`.
        """
        k = levelset.half_width(self.level)
        low, high = (self.result.contours(self.task, self.threshold, sigmas=s, **slice_) for s in (-k, k))
        return low, high


@dataclass(frozen=True, repr=False)
class Result:
    """The belief about the level sets, or the optimum, after a search.

    Attributes:
        problem: what was searched; its transforms are those of the posterior.
        posterior: the belief, on the unit cube and on transformed values.
        history: the trials behind it.
    """

    problem: Problem
    posterior: Posterior
    history: tuple[Trial, ...]

    @classmethod
    def of(cls, campaign: Campaign) -> Result:
        """What a campaign knows now.

        Raises:
            FitError: fewer than two trials hold values.
        """
        trials = campaign.trials
        known = sum(t.state in INFORMATIVE and campaign.problem.level(t.fidelity) == 0 for t in trials)
        if known < 2:
            raise FitError(
                f"campaign {campaign.name!r}: a result needs at least 2 trials with values"
                f"{f' of {of[-1].name!r}' if (of := campaign.problem.fidelities) else ''}, got {known} of "
                f"{len(trials)}. Evaluate more points; {_reasons(trials)}"
            )
        with one_thread(known):
            belief = believe(campaign.problem, campaign.strategy.surrogate, trials)
        return cls(belief.problem, belief.posterior, tuple(trials))

    def __repr__(self) -> str:
        names, tasks = ", ".join(self.problem.space.names), ", ".join(self.problem.task_names)
        notes = "".join(f"; {note}" for note in self.notes)
        return f"<Result: {tasks} over ({names}) from {self.evaluations} evaluations{notes}>"

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Sentences: on each threshold that has values on one side only, on what a cheaper fidelity does for a task."""
        found = one_sided(self.problem, self.posterior, observations(self.problem, self.history))
        return found + tuple(map(str, helps(self.problem, self.posterior, self.history)))

    def _unit(self, x: Any) -> torch.Tensor:
        space = self.problem.space
        if isinstance(x, Mapping):
            x = [x]
        if isinstance(x, Sequence) and len(x) and all(isinstance(p, Mapping) for p in x):
            return space.to_unit(space.tensor(x))
        try:
            points = torch.as_tensor(np.asarray(x, dtype=float), dtype=torch.float64)
        except (TypeError, ValueError):
            raise InvalidPoint(
                f"result: points must be numbers of shape (n, {space.dim}) or dicts, got {x!r}. "
                f"The columns are {list(space.names)}"
            ) from None
        if points.ndim == 1 and len(points) == space.dim and space.dim > 1:
            points = points[None]
        if points.ndim == 1 and space.dim == 1:
            points = points[:, None]
        if points.ndim != 2 or points.shape[1] != space.dim or not torch.isfinite(points).all():
            raise InvalidPoint(
                f"result: points must be finite and of shape (n, {space.dim}) in the order {list(space.names)}, got "
                f"shape {tuple(points.shape)}"
            )
        return space.to_unit(points)

    def _index(self, task: str | None) -> tuple[int, Task]:
        chosen = self.problem.task(task)
        return self.problem.task_names.index(chosen.name), chosen

    @torch.no_grad()
    def excursion_probability(self, x: Any, task: str | None = None, threshold: float | None = None) -> np.ndarray:
        """P(f >= threshold) at points in physical units.

        Args:
            x: shape (n, d), columns in the order of the space's names; or a dict or a list of dicts.
            task: which output; the first by default.
            threshold: in the task's units; its first threshold by default.

        Returns:
            Shape (n,), between 0 and 1. Points forbidden by a constraint get NaN: nothing is known there.
        """
        i, chosen = self._index(task)
        level = chosen.threshold(threshold)
        u = self._unit(x)
        mean, variance = self.posterior.marginal(u)
        z = chosen.map(torch.tensor(level, dtype=torch.float64))
        p = levelset.excursion_probability(mean[i], variance[i], z)
        return torch.where(self.problem.space.allowed_unit(u), p, math.nan).numpy()

    @torch.no_grad()
    def mean_and_sd(self, x: Any, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Best estimate of f and its standard deviation, in the task's units.

        For a transformed task the belief about f is not normal: the median and half of the central 68.3 % interval
        are given (infinite where the transform saturates).

        Args:
            x: shape (n, d) in physical units.
            task: which output; the first by default.

        Returns:
            Two arrays of shape (n,); NaN at forbidden points.
        """
        i, chosen = self._index(task)
        u = self._unit(x)
        mean, variance = (m[i] for m in self.posterior.marginal(u))
        sd = variance.sqrt()
        middle, low, high = (chosen.map.inverse(mean + k * sd) for k in (0, -1, 1))
        half = torch.where(high.isinf(), math.inf, (high - low) / 2)  # also where all three saturate
        allowed = self.problem.space.allowed_unit(u)
        return torch.where(allowed, middle, math.nan).numpy(), torch.where(allowed, half, math.nan).numpy()

    @property
    def trials(self) -> list[dict[str, Any]]:
        """One flat dict per trial, ready for ``pandas.DataFrame(result.trials)``."""
        return table(self.problem, self.history)

    @property
    def evaluations(self) -> int:
        """How many trials came back, failures included."""
        return sum(not t.pending for t in self.history)

    @torch.no_grad()
    def optimum(self) -> Optimum:
        """The optimum of the belief, and the best value seen.

        Of space-filling and evaluated points, with ever narrower scatter around the best ones.

        References:
            Picheny, Ginsbourger, Richet, Caplin, Technometrics 55 (2013) 2: a quantile of the belief to decide by.

        Raises:
            InvalidProblem: level sets were sought.
        """
        space, sign = self.problem.space, self.problem.sign
        best = best_trial(self.problem, self.history)
        if not sign or best is None or best.outcome is None:
            raise InvalidProblem(
                f"optimum: the problem's goal must be 'minimum' or 'maximum', got {self.problem.goal!r}. "
                "Use Problem(..., goal='minimum') or find_optimum"
            )
        generator = torch.Generator().manual_seed(0)
        known = space.to_unit(space.tensor([t.x for t in self.history if t.state in INFORMATIVE]))
        u = torch.cat([known, space.sample(0, 8192, 2**31 - 1)])

        def worth(points: torch.Tensor) -> torch.Tensor:
            mean, variance = (m[0] for m in self.posterior.marginal(points))
            return sign * mean - variance.sqrt()

        for k in range(10):
            top = u[worth(u).topk(min(len(u), 5)).indices]
            scatter = torch.randn(len(top), 200, space.dim, generator=generator, dtype=torch.float64)
            near = space.snap((top[:, None] + 0.2 * 0.4**k * scatter).clamp(0.0, 1.0).reshape(-1, space.dim))
            u = torch.cat([top, near[space.allowed_unit(near)]])
        u = u[worth(u).argmax()]
        x = space.from_unit(u)
        value, sd = self.mean_and_sd(x[None])
        found = best.outcome.values[self.problem.tasks[0].name]
        return Optimum(space.point(x), float(value[0]), float(sd[0]), best, found)

    @torch.no_grad()
    def contours(
        self,
        task: str | None = None,
        threshold: float | None = None,
        *,
        sigmas: float = 0.0,
        names: Sequence[str] | None = None,
        fixed: Mapping[str, float] | None = None,
        n: int = 201,
    ) -> Contour:
        """The level set as lines in physical units: crossing points in 1-D, polylines in 2-D or in a 2-D slice.

        Args:
            task: which output; the first by default.
            threshold: in the task's units; its first threshold by default.
            sigmas: draw {mean + sigmas * sd = threshold} instead: +1 and -1 enclose the level set's 68 % band.
            names, fixed, n: the slice, see `Slice.of`; needed in three or more dimensions.

        Raises:
            InvalidPoint: more than two parameters vary.
        """
        i, chosen = self._index(task)
        level = chosen.threshold(threshold)
        grid = Slice.of(self.problem.space, tuple(names) if names is not None else None, fixed, n)
        mean, variance = (m[i] for m in self.posterior.marginal(self.problem.space.to_unit(grid.x)))
        z = chosen.map(torch.tensor(level, dtype=torch.float64))
        values = mean - z + sigmas * variance.sqrt()
        return trace(grid, values.numpy(), 0.0, chosen.name, level)

    @torch.no_grad()
    def on(self, grid: Slice, *, forbidden: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The belief about all tasks on a slice, as the surrogate sees them (transformed by each task's ``map``).

        Args:
            grid: where.
            forbidden: give the surrogate's numbers also at forbidden points, where they mean nothing.

        Returns:
            Mean and standard deviation, each (tasks, *grid.shape); NaN at forbidden points otherwise.
        """
        mean, variance = self.posterior.marginal(self.problem.space.to_unit(grid.x))
        shape = (len(mean), *grid.shape)
        known = grid.allowed | forbidden
        mean, sd = (torch.where(known, m, math.nan).reshape(shape) for m in (mean, variance.sqrt()))
        return mean.numpy(), sd.numpy()

    @torch.no_grad()
    def volume_fraction(self, task: str | None = None, threshold: float | None = None) -> tuple[float, float]:
        """Fraction of the allowed volume with f >= threshold, and the fraction expected to be misclassified."""
        i, chosen = self._index(task)
        level = chosen.threshold(threshold)
        mean, variance = (m[i] for m in self.posterior.marginal(self.problem.space.sample(0, 8192, 2**31 - 1)))
        p = levelset.excursion_probability(mean, variance, chosen.map(torch.tensor(level, dtype=torch.float64)))
        return float(p.mean()), float(levelset.misclassification(p).mean())

    @torch.no_grad()
    def band(self, task: str | None = None, level: float = 0.95, threshold: float | None = None) -> Band:
        """The band around a level set in which no side of the threshold can be told.

        Args:
            task: which output; the first by default.
            level: 0.95 leaves out where P(f >= threshold) is below .025 or above .975.
            threshold: in the task's units; its first threshold by default.

        Raises:
            InvalidProblem: no such task, no threshold, a level outside (0, 1).
        """
        i, chosen = self._index(task)
        value = chosen.threshold(threshold)
        mean, variance = (m[i] for m in self.posterior.marginal(self.problem.space.sample(0, 8192, 2**31 - 1)))
        z = chosen.map(torch.tensor(value, dtype=torch.float64))
        inside = levelset.undecided(mean, variance, z, level)
        return Band(self, chosen.name, value, level, float(inside.double().mean()))

    def sets(
        self, task: str | None = None, threshold: float | None = None, *, level: float = 0.95, seed: int = 0
    ) -> SetSummary:
        """How well {f >= threshold} is known: its volume with an error, bands, conservative sets, pieces, holes.

        Of a conservative set ``side`` of the summary, ``result.excursion_probability(x) >= side.probability`` tells the
        points of ``above`` (``<= 1 - side.probability`` those of ``below``), and
        ``result.contours(sigmas=-side.sigmas)`` (``sigmas=side.sigmas``) draws its edge.

        Args:
            task: which output; the first by default.
            threshold: in the task's units; its first threshold by default.
            level: joint probability of the conservative sets.
            seed: of the joint draws.

        Raises:
            InvalidProblem: no such task, no threshold, a level outside (0, 1).
        """
        chosen, space = self.problem.task(task), self.problem.space
        known = [
            t.x
            for t in self.history
            if t.state in INFORMATIVE
            and t.outcome
            and chosen.name in t.outcome.values
            and self.problem.level(t.fidelity) == 0
        ]
        explored = space.to_unit(space.tensor(known))
        told = observations(self.problem, self.history).task(self.problem.task_names.index(chosen.name))
        values = int((told.side == 0).sum())
        return uncertainty.summary(
            self.problem,
            self.posterior,
            explored,
            chosen.name,
            threshold,
            level=level,
            seed=seed,
            degrees=uncertainty.degrees_of_freedom(values, space.dim),
        )


def table(problem: Problem, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Trials as flat dicts: number, state, parameters, then per task value, sd and bound, then what is known of it.

    A value that is missing is NaN. Fidelity and events come last, where the problem declares fidelities.
    """
    rows = []
    for t in trials:
        o = t.outcome
        row: dict[str, Any] = {"number": t.number, "state": t.state, **t.x}
        for task in problem.task_names:
            value = o.values.get(task) if o else None
            variance = o.variances.get(task) if o else None
            row[task] = math.nan if value is None else value
            row[f"{task}_sd"] = math.nan if variance is None else math.sqrt(variance)
            row[f"{task}_bound"] = (o.bounds.get(task) if o else None) or ""
        row |= {
            "criterion": t.criterion,
            "score": math.nan if t.score is None else t.score,
            "basis": t.basis,
            "seed": t.seed,
            "asked": t.asked,
            "started": t.started,
            "finished": t.finished,
            "error": (o.error if o else None) or "",
        }
        if problem.fidelities:
            row |= {"fidelity": t.fidelity, "events": math.nan if t.events is None else t.events}
        rows.append(row)
    return rows


def _reasons(trials: Sequence[Trial]) -> str:
    errors = [t.outcome.error for t in trials if t.outcome and t.outcome.error]
    return f"the last failure was: {errors[-1]}" if errors else "no evaluation has failed"


def find_level_set(
    function: Callable[[dict[str, float]], float | Mapping[str, float] | Outcome],
    space: ParameterSpace | Mapping[str, Any] | Sequence[Any],
    threshold: float | Sequence[float] | Mapping[str, float | Sequence[float]] = 0.0,
    *,
    budget: int,
    batch: int = 1,
    seed: int = 0,
    design_size: int | None = None,
    constraints: Sequence[Any] = (),
    transform: str = "auto",
    goal: Any = None,
    fidelities: Sequence[Fidelity] = (),
    strategy: Strategy | None = None,
    store: Store | str = "memory://",
    name: str = "level set",
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Result:
    """Find where an expensive function crosses a threshold, with few evaluations.

    Args:
        function: the expensive one. It takes one point as a dict name -> float (and, if it has such a parameter,
            ``seed``); it returns a float, a dict task -> float, or an `Outcome`. Lambdas and notebook functions work
            in parallel too. A point at which it raises or returns NaN is recorded as failed and the search goes on.
            Infinite values (and sizes above 1e60) count as "beyond anything measured". Tell the Monte Carlo variance
            of noisy values, as ``Outcome.of(value, variances={"f": variance})``: a belief that must guess the noise is
            overconfident.
        space: a `ParameterSpace`, or a dict name -> (lower, upper[, "log"]), or a list of `Parameter`.
        threshold: T of the level set {f = T}; several for several level sets; a dict task -> threshold(s) for a
            function that returns a dict.
        budget: evaluations in all.
        batch: points evaluated at the same time.
        seed: fixes the result.
        design_size: space-filling evaluations before the criterion takes over; by default 4 + 2 d.
        constraints: expressions in the parameters' names, such as "m_slepton - m_chi > 20"; added to the space's.
        transform: "auto", "identity", "log", "asinh" or "log-tanh"; see `Transform`.
        goal: stop early when this stays reached: a number, the expected misclassified fraction of the volume, or a text
            such as "1 % ambiguous" or "within 10 GeV of m_chi", or several; see `run`.
        fidelities: cheaper ways to evaluate, from cheap to dear, the last being the one whose level set is sought: the
            function is told which one by an argument ``fidelity``, and the budget counts evaluations of the last.
        strategy: everything else; ``seed`` and ``design_size`` replace its own.
        store: where to keep the trials, "memory://", a file or a database URL. An existing campaign of the same name
            goes on.
        name: of the campaign in the store.
        workers, executor, progress: see `run`.

    Returns:
        The belief about the level set.

    Raises:
        InvalidSpace, InvalidProblem, InvalidStrategy: arguments that make no sense.
        FitError: fewer than two evaluations gave values.

    Example:
        >>> result = find_level_set(lambda p: p["x"] ** 2 + p["y"] ** 2, {"x": (-2, 2), "y": (-2, 2)}, 1.0, budget=20)
        >>> bool(result.excursion_probability([[0.0, 0.0]])[0] < 0.01)
        True
    """
    thresholds = threshold if isinstance(threshold, Mapping) else {"f": threshold}
    tasks = tuple(Task(t, v, transform) for t, v in thresholds.items())  # type: ignore[arg-type]
    problem = Problem(ParameterSpace.of(space, constraints), tasks, fidelities=tuple(fidelities))
    return _search(
        function, problem, budget=budget, batch=batch, seed=seed, design_size=design_size, goal=goal, strategy=strategy,
        store=store, name=name, workers=workers, executor=executor, progress=progress,
    )  # fmt: skip


def find_optimum(
    function: Callable[[dict[str, float]], float | Mapping[str, float] | Outcome],
    space: ParameterSpace | Mapping[str, Any] | Sequence[Any],
    *,
    budget: int,
    minimize: bool = True,
    batch: int = 1,
    seed: int = 0,
    design_size: int | None = None,
    constraints: Sequence[Any] = (),
    transform: TransformName = "identity",
    goal: float | None = None,
    strategy: Strategy | None = None,
    store: Store | str = "memory://",
    name: str = "optimum",
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Result:
    """Find the minimum (or maximum) of an expensive function with few evaluations: Bayesian optimisation.

    Args:
        function, space, budget, batch, seed, design_size, constraints, strategy, store, name, workers, executor,
            progress: see `find_level_set`. The default criterion is expected improvement.
        minimize: False seeks the maximum.
        transform: "identity", or "log" for positive values over decades, whose minimum counts; see `Transform`.
        goal: stop early when the largest expected improvement, in units of the range of values seen, stays at or below
            this.

    Returns:
        The belief about the function; `Result.optimum` says where the optimum is.

    Raises:
        InvalidSpace, InvalidProblem, InvalidStrategy: arguments that make no sense.
        FitError: fewer than two evaluations gave values.

    Example:
        >>> found = find_optimum(lambda p: (p["x"] - 0.3) ** 2, {"x": (0, 1)}, budget=12).optimum()
        >>> bool(abs(found.x["x"] - 0.3) < 0.01)
        True
    """
    problem = Problem(
        ParameterSpace.of(space, constraints), (Task("f", (), transform),), "minimum" if minimize else "maximum"
    )
    return _search(
        function, problem, budget=budget, batch=batch, seed=seed, design_size=design_size, goal=goal, strategy=strategy,
        store=store, name=name, workers=workers, executor=executor, progress=progress,
    )  # fmt: skip


def _search(
    function: Callable[[dict[str, float]], float | Mapping[str, float] | Outcome],
    problem: Problem,
    *,
    seed: int,
    design_size: int | None,
    strategy: Strategy | None,
    store: Store | str,
    name: str,
    **running: Any,
) -> Result:
    """Create the campaign, or go on with it, run it, and see what is known."""
    strategy = replace(strategy or Strategy(), seed=seed)
    if design_size is not None:
        strategy = replace(strategy, design_size=design_size)
    campaign = _create_or_open(store, name, problem, strategy)
    run(campaign, Function(function, task=problem.tasks[0].name), **running)
    return Result.of(campaign)


def _create_or_open(store: Store | str, name: str, problem: Problem, strategy: Strategy) -> Campaign:
    """The campaign of this name, made if there is none; one with another problem is refused."""
    from .store import open_store

    opened = store if isinstance(store, Store) else open_store(store)
    if name not in opened.names():
        return Campaign.create(opened, name, problem, strategy)
    campaign = Campaign.open(opened, name, problem)
    if campaign.strategy != strategy.suited_to(problem):
        raise InvalidStrategy(
            f"campaign {name!r}: is in the store already with another strategy (seed, design_size, ...), got "
            f"{strategy}, there {campaign.strategy}. Give another name or the same strategy"
        )
    return campaign
