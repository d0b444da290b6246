"""The loop's memory: ask for points, tell what came back. All state is in the store; the rest is pure functions."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import levelset
from .acquisition import (
    CRITERIA,
    EI,
    SUR,
    Acquisition,
    Offer,
    Offers,
    Prospect,
    Search,
    Sobol,
    Target,
    acquisition_from_json,
    incumbent,
    poisson_disc,
    select,
)
from .acquisition.criteria import acquisition_to_json
from .acquisition.search import DEAD, not_taken
from .belief import Belief, believe, observations, settle
from .data import FINISHED, INFORMATIVE, TABLE, Outcome, Proposal, Trial
from .errors import (
    InvalidOutcome,
    InvalidPoint,
    InvalidProblem,
    InvalidStrategy,
    InvalidTable,
    SchemaMismatch,
    SpaceExhausted,
    StaleHistory,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)
from .forecast import Forecast, evaluated, forecast, latest, milestones, pace
from .known import Source, answers, known, parse_cell
from .precision import Precision, Reading, measure, misclassified, parse
from .problem import Problem
from .space import ParameterSpace
from .store import Store, open_store
from .surrogate import RECIPES, GaussianProcess, Observations, Posterior, Surrogate
from .threads import one_thread
from .viability import Viability, to_retry, viability

#: Version of the JSON that describes problem and strategy.
SPEC_VERSION = 1
#: A threshold that was never crossed needs so many times the design to be believed.
UNCROSSED = 3
#: Beliefs of the past that a forecast looks at.
_MILESTONES = 10


@dataclass(frozen=True)
class Strategy:
    """How the search is done. Settings only.

    Attributes:
        surrogate: recipe for the belief.
        acquisition: criterion that scores candidates; None means SUR for level sets and EI for an optimum.
        search: settings of the search for the best batch.
        design_size: space-filling points come first, until this many trials hold values; None means 4 + 2 d.
        exploration: fraction of later points that are space-filling all the same, against missed islands (0 to 1).
        seed: fixes all random numbers; with the history it fixes every proposal.
        replicates: a point may be asked again, for noisy values on a grid.
        retries: how often a point that failed, and not for good, is asked again (`viability.to_retry`).
    """

    surrogate: Surrogate = field(default_factory=GaussianProcess)
    acquisition: Acquisition | None = None
    search: Search = field(default_factory=Search)
    design_size: int | None = None
    exploration: float = 0.05
    seed: int = 0
    replicates: bool = False
    retries: int = 1

    def __post_init__(self) -> None:
        for name in ("design_size", "seed", "retries"):
            value = getattr(self, name)
            if name != "design_size" or value is not None:
                object.__setattr__(self, name, _whole(f"strategy: {name}", value))
        if self.design_size is not None and self.design_size < 2:
            raise InvalidStrategy(f"strategy: design_size must be at least 2, got {self.design_size!r}")
        if not isinstance(self.exploration, int | float) or not 0 <= self.exploration <= 1:
            raise InvalidStrategy(f"strategy: exploration must lie in [0, 1], got {self.exploration!r}")
        if not 0 <= self.retries <= 20:
            raise InvalidStrategy(f"strategy: retries must lie in [0, 20], got {self.retries!r}")
        if not 0 <= self.seed < 2**31:
            raise InvalidStrategy(f"strategy: seed must lie in [0, 2^31), got {self.seed!r}")

    def design(self, d: int) -> int:
        """Trials with values before the criterion takes over, in d dimensions."""
        return 4 + 2 * d if self.design_size is None else self.design_size

    def suited_to(self, problem: Problem) -> Strategy:
        """The strategy with the criterion that this problem has by default, if it names none.

        Raises:
            InvalidStrategy: a criterion for level sets where an optimum is sought, or the reverse.
        """
        if self.acquisition is None:
            return replace(self, acquisition=EI() if problem.sign else SUR())
        seeks = "optimum" if problem.sign else "level set"
        if self.acquisition.seeks not in (seeks, "any"):
            fitting = [name for name, c in CRITERIA.items() if c.seeks in (seeks, "any")]
            raise InvalidStrategy(
                f"strategy: the criterion must fit the goal {problem.goal!r}, got {self.acquisition}. "
                f"Use one of {', '.join(fitting)}"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """The strategy as JSON-compatible data."""
        return {
            "surrogate": self.surrogate.to_json(),
            "acquisition": None if self.acquisition is None else acquisition_to_json(self.acquisition),
            "search": self.search.to_json(),
            "design_size": self.design_size,
            "exploration": self.exploration,
            "seed": self.seed,
            "replicates": self.replicates,
            "retries": self.retries,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Strategy:
        """The strategy that `to_json` wrote.

        Raises:
            InvalidStrategy: unknown surrogate, criterion or setting.
        """
        settings = dict(data)
        try:
            if "surrogate" in settings:
                recipe = dict(settings["surrogate"])
                kind = recipe.pop("type", "GaussianProcess")
                if kind not in RECIPES:
                    raise InvalidStrategy(f"surrogate: must be one of {', '.join(RECIPES)}, got {kind!r}. Use one")
                settings["surrogate"] = RECIPES[kind](**recipe)
            if settings.get("acquisition") is not None:
                settings["acquisition"] = acquisition_from_json(settings["acquisition"])
            if "search" in settings:
                settings["search"] = Search(**settings["search"])
            return cls(**settings)
        except TypeError as error:
            raise InvalidStrategy(f"strategy: settings must exist and fit, got {data!r} ({error})") from error


def _whole(where: str, value: Any) -> int:
    """The value as an int; numpy's integers count, True does not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InvalidStrategy(f"{where} must be a whole number, got {value!r}") from None


def conditioned(belief: Belief, trials: Sequence[Trial]) -> Posterior:
    """The belief for proposals: conditioned on pending trials, whose values will shrink the variance around them.

    Trials that failed tell nothing of the function; `viability` tells where not to look.
    """
    blind = [t for t in trials if t.pending and belief.problem.level(t.fidelity) in belief.levels]
    if not blind:
        return belief.posterior
    space = belief.problem.space
    u = space.to_unit(space.tensor([t.x for t in blind]))
    if len(belief.levels) > 1:
        level = [belief.levels.index(belief.problem.level(t.fidelity)) for t in blind]
        u = torch.cat([u, torch.tensor(level, dtype=u.dtype)[:, None]], 1)
    with torch.no_grad():
        return belief.posterior.condition(u)


def target(problem: Problem, posterior: Posterior, observed: Tensor) -> Target:
    """What is sought, as the surrogate sees it: thresholds and weights, or the value to beat.

    Args:
        problem: says what.
        posterior: the belief.
        observed: points with values, (n, d) in the unit cube.
    """
    weights = torch.tensor([t.weight for t in problem.tasks], dtype=torch.float64)
    best = incumbent(posterior, observed, problem.sign) if problem.sign else None
    return Target(tuple(t.levels for t in problem.tasks), weights / weights.sum(), best, problem.sign or 1.0)


def propose(
    problem: Problem, strategy: Strategy, trials: Sequence[Trial], n: int, among: Tensor | None = None
) -> list[Proposal]:
    """The next n points: a function of the history and the strategy, and of nothing else.

    Fewer than n if a quantised space, or ``among``, has fewer left.

    Args:
        problem: what is searched.
        strategy: how.
        trials: the history.
        n: how many points.
        among: ask for these points (m, d) of the unit cube only, a table of known simulations, say.

    Raises:
        SpaceExhausted: a quantised space, or ``among``, has no point left.
        FitError: the surrogate could not be fitted.
        InvalidStrategy: the criterion does not fit the problem's goal.
    """
    strategy, viable = strategy.suited_to(problem), viability(problem.space, trials)
    again = _again(problem.space, strategy, trials, n, viable)
    if len(again) == n:
        return again
    queued = [
        Trial(len(trials) + i, p.x, p.basis, len(trials), p.criterion, fidelity=p.fidelity, events=p.events)
        for i, p in enumerate(again)
    ]
    try:
        return again + _new(problem, strategy, [*trials, *queued], n - len(again), among, viable)
    except SpaceExhausted:  # then nothing is gained by waiting
        again += _again(problem.space, strategy, [*trials, *queued], n - len(again), viable, wait=False)
        if not again:
            raise
        return again


def _again(
    space: ParameterSpace, strategy: Strategy, trials: Sequence[Trial], n: int, viable: Viability, wait: bool = True
) -> list[Proposal]:
    """At most n points that failed and are tried once more, under another number and hence another seed."""
    basis = sum(t.state in FINISHED for t in trials)
    failed = to_retry(trials, strategy.retries, lambda some: viable(space.to_unit(space.tensor(some))), wait)
    return [
        Proposal(t.x, basis, "retry", None, t.predicted, t.belief, fidelity=t.fidelity, events=t.events)
        for t in failed[:n]
    ]


def _new(
    problem: Problem, strategy: Strategy, trials: Sequence[Trial], n: int, among: Tensor | None, viable: Viability
) -> list[Proposal]:
    """`propose` without retries; ``viable`` is the probability of success."""
    space, k = problem.space, len(trials)
    basis = sum(t.state in FINISHED for t in trials)
    level = _to_design(problem, strategy, trials)
    if level is not None or isinstance(strategy.acquisition, Sobol):
        u = _design(problem, strategy, trials, n, level or 0, among, viable)
        name, events = _names(problem, level or 0)
        return [Proposal(space.point(x), basis, fidelity=name, events=events) for x in space.from_unit(u)]

    belief = believe(problem, strategy.surrogate, trials)
    problem, posterior = belief.problem, conditioned(belief, trials)
    ways = _ways(belief, trials)
    offers = Offers(tuple(offer for offer, _ in ways))
    taken = space.to_unit(space.tensor([t.x for t in trials]))
    if offers.columns:
        at = [problem.level(t.fidelity) for t in trials]
        place = [belief.levels.index(i) if i in belief.levels else -1 for i in at]
        taken = torch.cat([taken, torch.tensor(place, dtype=taken.dtype).reshape(-1, 1)], 1)
    lattice = _small_lattice(space, k + n) if among is None else among
    if lattice is not None and not strategy.replicates:
        n = min(
            n, _left(offers.of(lattice)[:, : taken.shape[1]], taken if among is not None else _snapped(space, taken))
        )
    # Every 1/exploration-th trial, counted by number so that batches of any size explore alike.
    explore = [_floor((k + i + 1) * strategy.exploration) > _floor((k + i) * strategy.exploration) for i in range(n)]
    chosen: list[tuple[Tensor, str, float | None]] = []
    if any(explore) and lattice is not None and strategy.replicates:
        explore = [False] * n  # nothing there has been missed
    if any(explore):
        # The cheapest way to look is good enough to find what was missed.
        cheapest = min(range(len(ways)), key=lambda i: offers.ways[i].cost)
        pool = among
        if pool is None:
            pool = space.sample(0, 2048, (strategy.seed + 7919 * (k + 1)) % 2**31)
            pool = _alive(pool, viable, sum(explore))
        extra = offers.of(_farthest(pool, taken[:, : space.dim], sum(explore)))
        extra = extra[cheapest * sum(explore) :][: sum(explore)]
        chosen += [(row, "exploration", None) for row in extra]
        with torch.no_grad():
            posterior = posterior.condition(offers.at(extra))
        taken = torch.cat([taken, extra[:, : taken.shape[1]]])
    if (rest := n - sum(explore)) > 0 and strategy.acquisition:
        u, scores = select(
            strategy.acquisition,
            posterior,
            space,
            target(problem, posterior, belief.data.u),
            rest,
            seed=strategy.seed + 104729 * (k + 1),
            taken=taken[:0] if strategy.replicates else taken,
            search=strategy.search,
            among=among,
            offers=offers,
            viable=None if viable.sure else viable,
        )
        name = type(strategy.acquisition).__name__
        chosen = [(row, name, float(s)) for row, s in zip(u, scores)] + chosen
    looks = torch.stack([row for row, _, _ in chosen])
    points = offers.place(looks)
    with torch.no_grad():
        mean, variance = posterior.marginal(points)
    above = {
        t.name: levelset.excursion_probability(mean[i], variance[i], t.levels[0])
        for i, t in enumerate(problem.tasks)
        if t.thresholds
    }
    summary = belief.summary()
    proposals = []
    for i, (x, (row, criterion, score)) in enumerate(zip(space.from_unit(points), chosen)):
        fidelity, events = ways[int(row[-1]) if offers.columns else 0][1]
        predicted = {name: float(p[i]) for name, p in above.items()}
        proposals.append(Proposal(space.point(x), basis, criterion, score, predicted, summary, fidelity, events))
    return proposals


#: The dearest fidelity needs this part of the design where a cheaper one is known, and the cheapest so many times it.
_LESS, _MORE = 0.5, 2


def _to_design(problem: Problem, strategy: Strategy, trials: Sequence[Trial]) -> int | None:
    """The level that still needs space-filling points; None once all have enough."""
    d, size = problem.space.dim, max(strategy.design(problem.space.dim), 2)
    known = [0] * max(1, len(problem.fidelities))
    for t in trials:
        known[problem.level(t.fidelity)] += t.state in INFORMATIVE
    asked = [level for level, f in enumerate(reversed(problem.fidelities)) if f.cost is not None] or [0]
    for level in reversed(asked):
        needed = size if level == 0 else _MORE * size
        if any(count >= size for count in known[level + 1 :]):
            needed = max(d + 1, math.ceil(_LESS * size))
        if known[level] < needed:
            return level
    return None


def _design(
    problem: Problem,
    strategy: Strategy,
    trials: Sequence[Trial],
    n: int,
    level: int,
    among: Tensor | None,
    viable: Viability,
) -> Tensor:
    """The next n points of the design of a level: space-filling; half of them near the contour where the next cheaper
    fidelity says that it is."""
    space = problem.space
    taken = space.to_unit(space.tensor([t.x for t in trials if problem.level(t.fidelity) == level]))
    lattice = _small_lattice(space, len(taken) + n) if among is None else among
    if lattice is not None:
        n = min(n, _left(lattice, taken if among is not None else space.snap(taken)))
    if among is not None:
        return _spread(among, taken, n, strategy.seed)
    near = _near_contour(problem, strategy, trials, n // 2, level, taken) if lattice is None else taken[:0]
    filling = _space_filling(space, torch.cat([taken, near]), n - len(near), strategy.seed, lattice, viable)
    # In turn, so that the first few are of both kinds.
    order = torch.cat([torch.arange(len(filling)) * 2, torch.arange(len(near)) * 2 + 1]).argsort()
    return torch.cat([filling, near])[order]


@torch.no_grad()
def _near_contour(
    problem: Problem, strategy: Strategy, trials: Sequence[Trial], n: int, level: int, taken: Tensor
) -> Tensor:
    """n points near the level set of the cheaper fidelities, apart from one another; none if these know too little."""
    cheap = observations(settle(problem, trials), [t for t in trials if problem.level(t.fidelity) > level]).cheaper
    if n < 1 or problem.sign or cheap is None or len(cheap) < strategy.design(problem.space.dim):
        return taken[:0]
    if cheap.known is not None:
        return taken[:0]  # some of the tasks only
    posterior = strategy.surrogate.fit(cheap)
    pool = problem.space.sample(0, 4096, (strategy.seed + 7919 * (len(trials) + 1)) % 2**31)
    mean, variance = posterior.marginal(pool)
    # The dearer level set is somewhere near.
    loose = variance + (_NEAR * cheap.z.std(0)[:, None]) ** 2
    weights = torch.tensor([t.weight for t in problem.tasks], dtype=torch.float64)
    interest = Target(cheap.levels, weights / weights.sum()).interest(mean, loose)
    generator = torch.Generator().manual_seed(strategy.seed + 104729 * (len(trials) + 1))
    # Far from the contour are enough other points of the design.
    near = interest.topk(min(len(pool), max(16 * n, int((interest > 0.1 * interest.max()).sum())))).indices
    return pool[near][poisson_disc(pool[near], interest[near], taken, n, generator)]


#: How far the level sets of two fidelities may be apart, in standard deviations of all values.
_NEAR = 0.2


def _names(problem: Problem, level: int) -> tuple[str, int | None]:
    """Fidelity and events of a design point."""
    if not problem.fidelities:
        return "", None
    fidelity = problem.fidelities[-1 - level]
    least, most = fidelity.events or (0, 0)
    return fidelity.name, round(math.sqrt(least * most)) if fidelity.events else None


#: So many numbers of events are weighed against each other.
_SIZES = 5


def _ways(belief: Belief, trials: Sequence[Trial]) -> list[tuple[Offer, tuple[str, int | None]]]:
    """What may be asked: fidelities whose values are known, and numbers of events, each with its name and events."""
    problem = belief.problem
    if not problem.fidelities:
        return [(Offer(), ("", None))]
    ways: list[tuple[Offer, tuple[str, int | None]]] = []
    for place, level in enumerate(belief.levels):
        fidelity = problem.fidelities[-1 - level]
        if fidelity.cost is None:
            continue
        if fidelity.events is None:
            ways.append((Offer(place, problem.cost(fidelity.name)), (fidelity.name, None)))
            continue
        per_event = _noise_per_event(belief, trials, level)
        least, most = fidelity.events
        sizes = {round(least * (most / least) ** (i / (_SIZES - 1))) for i in range(_SIZES)}
        nugget = torch.tensor([h.get("nugget", 0.0) ** 2 for h in belief.posterior.hyperparameters])
        for events in sorted(sizes) if per_event is not None else [most]:
            noise = None if per_event is None else per_event / events + (nugget if level == 0 else 0.0)
            ways.append((Offer(place, problem.cost(fidelity.name, events), noise), (fidelity.name, events)))
    return ways


#: The noise of so many values, the nearest to a threshold, says how many events are needed.
_NOISY = 16


def _noise_per_event(belief: Belief, trials: Sequence[Trial], level: int) -> Tensor | None:
    """Variance of z times the number of events, (t,), near the thresholds; None if variances are not known."""
    data: Observations | None = belief.data
    for _ in range(belief.levels.index(level)):
        data = data.cheaper if data else None
    done = sorted(
        (t for t in trials if t.state in INFORMATIVE and belief.problem.level(t.fidelity) == level),
        key=lambda t: t.number,
    )
    events = torch.tensor([float(t.events or math.nan) for t in done], dtype=torch.float64)
    if data is None:
        return None
    out = []
    for i, levels in enumerate(data.levels):
        product = data.variance[:, i] * events
        known = (data.side[:, i] == 0) & (data.variance[:, i] > 0) & events.isfinite()
        if not known.any():
            return None
        distance = (data.z[known, i][:, None] - levels).abs().amin(1) if len(levels) else data.z[known, i] * 0
        out.append(product[known][distance.argsort()[:_NOISY]].median())
    return torch.stack(out)


def _snapped(space: ParameterSpace, taken: Tensor) -> Tensor:
    return torch.cat([space.snap(taken[:, : space.dim]), taken[:, space.dim :]], 1)


def _small_lattice(space: ParameterSpace, n: int) -> Tensor | None:
    """All allowed points, (m, d), if there are so few that n trials may use them up."""
    if not all(p.step is not None for p in space.parameters):
        return None
    if math.prod(1 + (p.upper - p.lower) / (p.step or 1) for p in space.parameters) > 10_000 + 100 * n:
        return None  # far from used up
    lattice = space.lattice()
    return None if lattice is None or len(lattice) >= n else lattice


def _left(points: Tensor, taken: Tensor) -> int:
    """How many of the points have not been asked."""
    if (left := int(not_taken(points, taken, 1e-9).sum())) == 0:
        raise SpaceExhausted(
            f"campaign: needs a point that has not been asked, got none: all {len(points)} allowed points have been. "
            "Use a finer step or stop here"
        )
    return left


def _alive(u: Tensor, viable: Viability, n: int) -> Tensor:
    """The points at which evaluations may succeed; all if these are fewer than n."""
    alive = u if viable.sure else u[viable(u) >= DEAD]
    return alive if len(alive) >= n else u


def _space_filling(
    space: ParameterSpace, taken: Tensor, n: int, seed: int, lattice: Tensor | None, viable: Viability
) -> Tensor:
    """The next n points of the design that have not been asked; ``lattice`` as of `_small_lattice`."""
    if not _stepped(space):
        if viable.sure:
            return space.sample(len(taken), n, seed)
        u = space.sample(0, 4 * (len(taken) + n), seed)
        return _alive(u[not_taken(u, taken, 1e-9)], viable, n)[:n]
    size = len(torch.unique(space.snap(taken), dim=0)) + n
    u = space.sample(0, size if lattice is None else min(size, len(lattice)), seed, distinct=True)
    u = u[not_taken(u, taken, 1e-9)]
    if len(u) < n:
        raise SpaceExhausted(
            f"campaign: needs {n} points that have not been asked, got {len(u)} of {size} allowed. "
            "Use a finer step or stop here"
        )
    return u[:n]


def _spread(among: Tensor, taken: Tensor, n: int, seed: int) -> Tensor:
    """n of the points that have not been asked: each the farthest of ten drawn at random.

    References:
        D. P. Mitchell, SIGGRAPH 1991, 157: the best of some candidates, for points that are random and yet spread.
    """
    for _ in range(n):
        free = among[not_taken(among, taken, 1e-9)]
        generator = torch.Generator().manual_seed(seed + 15_485_863 * (len(taken) + 1))
        drawn = free[torch.randperm(len(free), generator=generator)[:10]]
        taken = torch.cat([taken, _farthest(drawn, taken, 1) if len(taken) else drawn[:1]])
    return taken[len(taken) - n :]


def _farthest(pool: Tensor, taken: Tensor, n: int) -> Tensor:
    """n points of the pool, each as far as possible from those asked before (the centres of the largest holes)."""
    distance = torch.cdist(pool, taken).amin(1)
    out: list[Tensor] = []
    for _ in range(n):
        best = int(distance.argmax())
        if distance[best] < 1e-9:
            raise SpaceExhausted(
                f"campaign: needs {n} points that have not been asked, got {len(out)}. Use a finer step or stop here"
            )
        out.append(pool[best])
        distance = torch.minimum(distance, (pool - pool[best]).square().sum(1).sqrt())
    return torch.stack(out)


def _stepped(space: ParameterSpace) -> bool:
    return any(p.step is not None for p in space.parameters)


def _floor(value: float) -> int:
    """Floor that forgives rounding: 20 * 0.05 is 1."""
    return int(value + 1e-9)


@torch.no_grad()
def improvement(problem: Problem, posterior: Posterior, data: Observations) -> dict[str, float]:
    """Largest expected improvement over the best value believed at a point seen, in units of the range of values seen.

    Of the transformed values, over space-filling points and points around the three best ones; 1 while all values are
    the same.
    """
    space, name = problem.space, problem.tasks[0].name
    sought = target(problem, posterior, data.u)
    mean = posterior.marginal(data.u)[0][0]
    best = data.u[(problem.sign * mean).topk(min(3, len(data))).indices]
    generator = torch.Generator().manual_seed(0)
    scatter = torch.randn(4, len(best), 128, space.dim, generator=generator, dtype=torch.float64)
    width = torch.tensor([0.2, 0.05, 0.01, 0.002], dtype=torch.float64)[:, None, None, None]
    near = space.snap((best[:, None] + width * scatter).clamp(0.0, 1.0).reshape(-1, space.dim))
    u = torch.cat([space.sample(0, 4096, 2**31 - 1), near[space.allowed_unit(near)]])
    m, v = posterior.marginal(u)
    at, weight, cross = m[:, :0], m[0, :0], m[:, None, :][:, :0]  # the criterion does not look ahead
    look = Prospect(
        m, v, posterior.noise, sought.levels, sought.weights, at, at, weight, cross, sought.best, sought.sign
    )
    span = float(data.z.max() - data.z.min())
    return {name: float(EI().score(look).max()) / span if span > 0 else 1.0}


def remaining(problem: Problem, posterior: Posterior, data: Observations) -> dict[str, float]:
    """What is left to do per task: `misclassified` of level sets, `improvement` of an optimum."""
    return improvement(problem, posterior, data) if problem.sign else misclassified(problem, posterior)


def readings(goals: Sequence[Precision], belief: Belief) -> tuple[Reading, ...]:
    """What a belief says about each condition of a goal."""
    problem, posterior = belief.problem, belief.posterior
    left = remaining(problem, posterior, belief.data) if goals else {}
    plain = ("misclassified", "improvement")
    return tuple(Reading(g, left[g.task] if g.measure in plain else measure(g, problem, posterior)) for g in goals)


@torch.no_grad()
def one_sided(problem: Problem, posterior: Posterior, data: Observations) -> tuple[str, ...]:
    """A sentence for each threshold that has no value on one side, with the highest probability of that side."""
    notes = []
    mean, variance = posterior.marginal(problem.space.sample(0, 4096, 2**31 - 1))
    for i, task in enumerate(problem.tasks):
        above, below = _sides(data, i, task.levels)
        for j, threshold in enumerate(task.thresholds):
            p = levelset.excursion_probability(mean[i], variance[i], task.levels[j])
            for seen, side, chance in ((above[j], "at or above", p), (below[j], "below", 1 - p)):
                if not seen:
                    highest = float(chance.max())
                    likely = f"= {highest:.2g}" if highest >= 1e-4 else "< 0.0001"
                    notes.append(f"{task.name}: no point {side} {threshold:g} seen yet; highest P {likely}")
    return tuple(notes)


def _sides(data: Observations, task: int, levels: Tensor) -> tuple[list[bool], list[bool]]:
    """Whether each threshold (k,) has a value surely at or above it, and one surely below."""
    z, side = data.z[:, task : task + 1], data.side[:, task : task + 1]
    above = (z >= levels) & (side >= 0)
    below = ((z < levels) & (side <= 0)) | ((z <= levels) & (side < 0))
    return above.any(0).tolist(), below.any(0).tolist()


def best_trial(problem: Problem, trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best value, the first of equal ones; exact values before bounds. None without values.

    Only the dearest fidelity counts: the others are not what is sought.
    """
    name = problem.tasks[0].name
    known = problem.valued(trials, name)
    exact = [t for t in known if t.state == "complete"] or known
    return max(exact, key=lambda t: problem.sign * t.outcome.values[name] if t.outcome else 0.0, default=None)


@dataclass(frozen=True)
class Status:
    """How a campaign stands.

    Attributes:
        name: of the campaign.
        counts: state -> number of trials.
        uncertainty: task -> expected misclassified fraction of the allowed volume; for an optimum the largest expected
            improvement in units of the range of values seen (`improvement`). Empty while the design runs.
        crossed: task -> whether values on both sides of each threshold are known; empty for an optimum.
        notes: once the design is complete: thresholds with values on one side only, a sentence each.
        readings: once the design is complete: what is known of each condition of the goal.
        best: where an optimum is sought: the trial with the best value.
    """

    name: str
    counts: Mapping[str, int]
    uncertainty: Mapping[str, float]
    crossed: Mapping[str, bool]
    notes: tuple[str, ...] = ()
    best: Trial | None = None
    readings: tuple[Reading, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether there is a goal and all of its conditions hold."""
        return bool(self.readings) and all(r.reached for r in self.readings)

    @property
    def measure(self) -> str:
        """What `uncertainty` is, for people."""
        return "expected misclassified" if self.crossed else "expected improvement"

    @property
    def finished(self) -> int:
        """Trials that will not change any more."""
        return sum(self.counts.get(s, 0) for s in FINISHED)


class Campaign:
    """A persisted search: a problem, a strategy and their history in a store. Holds no state of its own.

    Use `create` or `open`, then `ask` and `tell`; any number of processes may do so at the same time.

    Attributes:
        store: where it lives.
        name: its name there.
        problem: what is searched.
        strategy: how.
    """

    def __init__(self, store: Store, name: str, problem: Problem, strategy: Strategy) -> None:
        self.store, self.name, self.problem, self.strategy = store, name, problem, strategy.suited_to(problem)

    def __repr__(self) -> str:
        return f"<Campaign {self.name!r}: {', '.join(self.problem.task_names)} over {self.problem.space.names}>"

    @classmethod
    def create(
        cls,
        url: Store | str | os.PathLike[str],
        name: str,
        problem: Problem,
        strategy: Strategy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Campaign:
        """Start a campaign.

        Args:
            url: a database URL ("sqlite:///scan.db"), a file name, "memory://", or an open store.
            name: unique in the store.
            problem: what is searched. Constraints given as Python functions are not written to the store: whoever
                opens the campaign gives the same problem again.
            strategy: how; the default is good.
            extra: anything to keep with the description, JSON-compatible (the evaluator's settings, say).

        Raises:
            DuplicateCampaign: the name is taken.
            InvalidStrategy: the criterion does not fit the problem's goal.
        """
        strategy = (strategy or Strategy()).suited_to(problem)
        store = url if isinstance(url, Store) else open_store(url)
        spec = {
            "version": SPEC_VERSION,
            "problem": _storable(problem).to_json(),
            "callables": problem.space.has_callables,
            "strategy": strategy.to_json(),
            "extra": dict(extra or {}),
        }
        store.create(name, spec)
        return cls(store, name, problem, strategy)

    @classmethod
    def open(
        cls, url: Store | str | os.PathLike[str], name: str | None = None, problem: Problem | None = None
    ) -> Campaign:
        """Open a campaign that exists.

        Args:
            url: as in `create`; nothing is created.
            name: its name; may be left out if the store holds only one.
            problem: needed only if its constraints are Python functions.

        Raises:
            UnknownCampaign: no such campaign; the known ones are listed.
            InvalidProblem: the problem must be given.
            SchemaMismatch: it was written by another version of this package.
        """
        store = url if isinstance(url, Store) else open_store(url, create=False)
        names = store.names()
        if name is None:
            if len(names) != 1:
                raise UnknownCampaign(f"store: which campaign is meant must be clear, got {names}. Give its name")
            name = names[0]
        spec = store.spec(name)
        if spec.get("version") != SPEC_VERSION:
            raise SchemaMismatch(
                f"campaign {name!r}: its description must be of version {SPEC_VERSION}, got {spec.get('version')!r}. "
                "Open it with the excursion that wrote it; the store has not been changed"
            )
        stored = Problem.from_json(spec["problem"])
        if problem is None:
            if spec.get("callables"):
                raise InvalidProblem(
                    f"campaign {name!r}: its constraints are Python functions, which are not stored, got no problem. "
                    "Open it with problem=..., or use expressions as constraints"
                )
            problem = stored
        elif _storable(problem) != stored:
            raise InvalidProblem(
                f"campaign {name!r}: is in the store with another problem, got {problem}, there {stored}. "
                "Give another name or the same problem"
            )
        return cls(store, name, problem, Strategy.from_json(spec["strategy"]))

    @property
    def extra(self) -> dict[str, Any]:
        """What was kept with the description."""
        return self.store.spec(self.name).get("extra", {})

    @property
    def trials(self) -> list[Trial]:
        """The history, ordered by number."""
        return self.store.trials(self.name)

    def ask(self, n: int = 1, *, limit: float | None = None) -> list[Trial]:
        """Ask for the next n points; they are stored as queued trials.

        Args:
            n: how many.
            limit: no more than so many evaluations in the campaign, whoever asks, counted in those of the dearest
                fidelity (`Problem.spent`); nothing is asked for beyond.

        Raises:
            InvalidPoint: n is not positive.
            SpaceExhausted: a quantised space has no point left; one with fewer than n gives what it has.
        """
        if (n := _whole("ask: the number of points", n)) < 1:
            raise InvalidPoint(f"ask: the number of points must be at least 1, got {n!r}")
        while True:
            trials = self.trials
            left = math.inf if limit is None else limit - self.problem.spent(trials)
            if (n := int(min(n, self.problem.affordable(left)))) < 1:
                return []
            try:
                with one_thread(len(trials)):
                    proposals = propose(self.problem, self.strategy, trials, n)
                return self._add(self.problem.within(proposals, left), len(trials))
            except StaleHistory:
                continue  # another process asked at the same time: propose again, knowing its points

    def add(
        self, points: Sequence[Mapping[str, float]], *, fidelity: str = "", events: int | None = None
    ) -> list[Trial]:
        """Queue points of one's own choice, in physical units; one that was evaluated before is evaluated again.

        Args:
            points: parameter name -> value.
            fidelity: how to evaluate; the dearest fidelity by default.
            events: how many Monte Carlo events; the most that the fidelity takes by default.

        Raises:
            InvalidPoint: unknown or missing names, outside the range, forbidden by a constraint; a number of events
                that is none; a fidelity that is known from tables only.
            InvalidProblem: nobody declared this fidelity.
        """
        where = f"campaign {self.name!r}"
        checked = [self.problem.space.check(p, where) for p in points]
        if events is not None and (isinstance(events, bool) or not isinstance(events, numbers.Integral) or events < 1):
            raise InvalidPoint(f"{where}: the events must be a positive whole number, got {events!r}")
        self.problem.level(fidelity)
        if self.problem.fidelities:
            chosen = self.problem.fidelity(fidelity)
            if chosen.cost is None:
                raise InvalidPoint(
                    f"{where}: fidelity {fidelity!r} is known from tables only, got points to evaluate. "
                    "Use warm_start, or give it a cost"
                )
            fidelity = chosen.name
            events = chosen.events[1] if events is None and chosen.events else events
        while True:
            trials = self.trials
            basis = sum(t.state in FINISHED for t in trials)
            proposals = [Proposal(p, basis, "given", fidelity=fidelity, events=events) for p in checked]
            try:
                return self._add(proposals, len(trials))
            except StaleHistory:
                continue

    def _settled(self, proposal: Proposal) -> Proposal:
        """The proposal with the name of its fidelity; raises where nobody declared it."""
        if proposal.fidelity or not self.problem.fidelities:
            self.problem.level(proposal.fidelity)
            return proposal
        dearest = self.problem.fidelity()
        most = dearest.events[1] if dearest.events else None
        return replace(proposal, fidelity=dearest.name, events=most if proposal.events is None else proposal.events)

    def warm_start(
        self,
        table: Source,
        fidelity: str = "",
        columns: Mapping[str, str] | None = None,
    ) -> WarmStart:
        """Tell what a table knows already: its rows become finished trials, which cost nothing.

        Rows that were told before (same point, fidelity and values) are left out, and so are rows outside the space
        and rows without a value; all are counted. It happens in one transaction.

        Args:
            table: path of a CSV, JSON or HEPData file, a list of dicts or a dict of columns, see `known.read`.
            fidelity: which one the table holds. Where it depends on some parameters only, the others are stored at the
                middle of their range and mean nothing.
            columns: the table's name of a column -> ours, where they differ.

        Returns:
            How many rows were used, and how many were not, for which reason.

        Raises:
            InvalidTable: it cannot be used: columns, units, cells; nothing is stored.
            InvalidProblem: nobody declared this fidelity, or it is not said which one the table holds.
        """
        if self.problem.fidelities and not fidelity:
            raise InvalidProblem(
                f"campaign {self.name!r}: a table holds one of the fidelities "
                f"{[f.name for f in self.problem.fidelities]}, got none. Say which: fidelity=..."
            )
        found = known(self.problem, table, fidelity, columns)
        while True:
            trials = self.trials
            basis = sum(t.state in FINISHED for t in trials)
            told = {_row(t.fidelity, t.x, t.outcome) for t in trials if t.outcome is not None and t.criterion == TABLE}
            proposals, outcomes = [], []
            for x, outcome in zip(found.points, found.outcomes):
                if (row := _row(fidelity, x, outcome)) not in told:
                    told.add(row)
                    proposals.append(Proposal(x, basis, TABLE, fidelity=fidelity))
                    outcomes.append(outcome)
            seeds = [evaluation_seed(self.strategy.seed, len(trials) + i) for i in range(len(proposals))]
            try:
                self.store.record(self.name, proposals, outcomes, after=len(trials), seeds=seeds)
            except StaleHistory:
                continue
            repeated = len(found.points) - len(proposals)
            return WarmStart(len(proposals), found.outside, found.empty, repeated, found.missing)

    def _add(self, proposals: Sequence[Proposal], after: int) -> list[Trial]:
        proposals = [self._settled(proposal) for proposal in proposals]
        seeds = [evaluation_seed(self.strategy.seed, after + i) for i in range(len(proposals))]
        return self.store.add(self.name, proposals, after=after, seeds=seeds)

    def tell(self, number: int, outcome: Outcome | float | Mapping[str, float]) -> Trial:
        """Record what came back; a finished trial never changes.

        Args:
            number: of the trial.
            outcome: an `Outcome`; a dict task -> value, or one number if there is one task.

        Raises:
            InvalidOutcome: NaN, missing or unknown tasks, a bound that an exact value known at the same point
                contradicts (by five standard deviations, where its variance is known); the trial stays pending.
            TrialFinished: it was told before.
            UnknownTrial: there is no such trial.
        """
        if not isinstance(number, numbers.Integral):
            raise UnknownTrial(f"campaign {self.name!r}: a trial's number must be a whole number, got {number!r}")
        told = self.checked(int(number), self.outcome(outcome))
        return self.store.finish(self.name, int(number), told)

    def tell_table(self, table: Source) -> list[Trial]:
        """Record what came back from several trials, from a table as `excursion ask --csv` writes it, filled in.

        Args:
            table: columns "number" and each task; a cell may be empty (missing), ">10" or "<0.1" (a bound). Columns
                "<task>_err" hold standard errors. Where there are columns of parameters, "fidelity" and "events" they
                must be those that were asked for. Rows without any value are left pending.

        Returns:
            The finished trials.

        Raises:
            InvalidTable: columns or cells that make no sense; another point than was asked for.
            InvalidOutcome, TrialFinished, UnknownTrial: as `tell`; nothing is told.
        """
        rows = answers(self.problem, table)
        trials = self.trials
        for number, outcome, cells in rows:
            if not 0 <= number < len(trials):
                there = f"0 to {len(trials) - 1}" if trials else "none yet"
                raise UnknownTrial(
                    f"campaign {self.name!r}: no trial of this number, got {number}. Trials are: {there}"
                )
            trial = trials[number]
            if not trial.pending:
                raise TrialFinished(
                    f"campaign {self.name!r}: a finished trial cannot change, got another outcome for trial {number}, "
                    f"which is {trial.state}. Take the row out"
                )
            _check_bounds(self.problem, trials, trial, outcome)
            asked: dict[str, Any] = {**trial.x, "fidelity": trial.fidelity, "events": trial.events}
            for name in asked.keys() & cells.keys():
                told, was = cells[name], asked[name]
                same = str(told or "") == str(was or "") if name == "fidelity" else _number(told) == _number(was)
                if not same:
                    raise InvalidTable(
                        f"table, trial {number}: {name!r} must be what was asked for, {was!r}, got {told!r}. "
                        "Check the numbers of the rows"
                    )
        return [self.store.finish(self.name, number, outcome) for number, outcome, _ in rows]

    def checked(self, number: int, outcome: Outcome) -> Outcome:
        """The outcome, if it fits the problem and does not contradict what is known; raises what `tell` does."""
        self.problem.check(outcome)
        if outcome.bounds:
            trials = self.trials
            if 0 <= number < len(trials):
                _check_bounds(self.problem, trials, trials[number], outcome)
        return outcome

    def outcome(self, value: Outcome | float | Mapping[str, float]) -> Outcome:
        """The outcome meant by a number, a dict or an outcome."""
        if isinstance(value, Outcome):
            return value
        return Outcome.of(value if isinstance(value, Mapping) else {self.problem.tasks[0].name: value})

    def belief(self) -> Belief:
        """What is believed from what is known now; pending points play no part.

        Raises:
            FitError: fewer than two trials hold values.
        """
        trials = self.trials
        with one_thread(len(trials)):
            return believe(self.problem, self.strategy.surrogate, trials)

    def goals(self, goal: Any = None) -> tuple[Precision, ...]:
        """The conditions that a goal means, see `precision.parse`; None means the one kept with the description.

        Raises:
            InvalidStrategy: a goal that makes no sense.
        """
        kept = (self.extra.get("run") or {}).get("goal") if goal is None else goal
        return parse(kept, self.problem, f"campaign {self.name!r}")

    def forecast(self, goal: Any = None) -> Forecast | None:
        """How many more evaluations the goal may need, from beliefs at some moments of the past; None without a goal.

        It fits the surrogate anew for each of these moments, which takes some times as long as an ask.

        Args:
            goal: see `goals`.

        Raises:
            InvalidStrategy: a goal that makes no sense.
        """
        goals, trials = self.goals(goal), self.trials
        if not goals:
            return None
        done = sorted((t for t in trials if t.told is not None), key=lambda t: t.told or 0)
        design = max(2, self.strategy.design(self.problem.space.dim))
        useful = [k + 1 for k, t in enumerate(done) if t.state in INFORMATIVE]
        curves: list[list[tuple[int, float]]] = [[] for _ in goals]
        with one_thread(len(trials)):
            for k in milestones(design, len(useful), _MILESTONES):
                past = done[: useful[k - 1]]
                found = readings(goals, believe(self.problem, self.strategy.surrogate, past))
                for curve, reading in zip(curves, found):
                    curve.append((evaluated(past), reading.value))
        return latest(forecast(curve, g.limit, pace(trials)) for curve, g in zip(curves, goals))

    def status(self, goal: Any = None) -> Status:
        """Counts, what is left to do, and whether the thresholds are crossed or which value is best.

        Args:
            goal: see `goals`; what is known of its conditions is in `Status.readings`.

        Raises:
            InvalidStrategy: a goal that makes no sense.
        """
        problem, trials, goals = self.problem, self.trials, self.goals(goal)
        read: tuple[Reading, ...] = ()
        counts: dict[str, int] = {}
        for t in trials:
            counts[t.state] = counts.get(t.state, 0) + 1
        left: Mapping[str, float] = {}
        notes: tuple[str, ...] = ()
        if sum(t.state in INFORMATIVE for t in trials) >= max(2, self.strategy.design(problem.space.dim)):
            with one_thread(len(trials)):
                belief = believe(problem, self.strategy.surrogate, trials)
                left = remaining(belief.problem, belief.posterior, belief.data)
                notes = one_sided(belief.problem, belief.posterior, belief.data)
                read = readings(goals, belief)
        if problem.sign:
            return Status(self.name, counts, left, {}, notes, best_trial(problem, trials), read)
        plain = replace(problem, tasks=tuple(replace(t, transform="identity") for t in problem.tasks))
        seen = observations(plain, trials)
        sides = {task.name: _sides(seen, i, task.levels) for i, task in enumerate(plain.tasks)}
        crossed = {name: all(above) and all(below) for name, (above, below) in sides.items()}
        return Status(self.name, counts, left, crossed, notes, None, read)


@dataclass(frozen=True)
class WarmStart:
    """What became of the rows of a table.

    Attributes:
        used: rows that are trials now.
        outside: rows that lie outside the space or that a constraint forbids.
        empty: rows without any value.
        repeated: rows that had been told before.
        missing: tasks that the table has no column for.
    """

    used: int
    outside: int = 0
    empty: int = 0
    repeated: int = 0
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = (("outside the space", self.outside), ("without a value", self.empty), ("told before", self.repeated))
        left = [f"{n} {why}" for why, n in reasons if n]
        return "; ".join(
            [
                f"{self.used} rows used",
                *([f"left out: {', '.join(left)}"] if left else []),
                *([f"no column for {', '.join(self.missing)}"] if self.missing else []),
            ]
        )


def _number(cell: Any) -> float | None:
    return parse_cell(cell, "table")[0]


def _row(fidelity: str, x: Mapping[str, float], outcome: Outcome) -> Hashable:
    """What makes two rows of a table the same."""
    parts = (x, outcome.values, outcome.variances, outcome.bounds)
    return (fidelity, *(tuple(sorted(part.items())) for part in parts))


def _check_bounds(problem: Problem, trials: Sequence[Trial], trial: Trial, outcome: Outcome) -> None:
    """Refuse a bound on the wrong side of an exact value of the same point, fidelity and task."""
    names = (problem.fidelity(trial.fidelity).parameters if problem.fidelities else None) or problem.space.names
    level = problem.level(trial.fidelity)
    for other in trials:
        if other.outcome is None or any(other.x[n] != trial.x[n] for n in names):
            continue
        if problem.level(other.fidelity) != level:
            continue
        for task, side in outcome.bounds.items():
            if task not in other.outcome.values or task in other.outcome.bounds:
                continue
            value, bound = other.outcome.values[task], outcome.values[task]
            variances = [o.variances[task] for o in (other.outcome, outcome) if task in o.variances]
            excess = bound - value if side == "above" else value - bound
            if excess > 5 * math.sqrt(sum(variances)):
                sd = f" +- {math.sqrt(other.outcome.variances[task]):g}" if task in other.outcome.variances else ""
                raise InvalidOutcome(
                    f"outcome of task {task!r}: a bound must agree with what is known, got {side} {bound:g} at the "
                    f"point of trial {other.number}, where it is {value:g}{sd}. Tell the value, or a failure"
                )


def _storable(problem: Problem) -> Problem:
    """The problem without the constraints that are Python functions."""
    space = problem.space
    if not space.has_callables:
        return problem
    kept = tuple(c for c in space.constraints if isinstance(c.expression, str))
    return replace(problem, space=ParameterSpace(space.parameters, kept))


def evaluation_seed(seed: int, number: int) -> int:
    """Seed of the evaluation of a trial: fixed by the strategy's seed and the number, below 9e8 (Pythia's limit)."""
    return (seed * 1_000_003 + 7_368_787 * (number + 1)) % 900_000_000
