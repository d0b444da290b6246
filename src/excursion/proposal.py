"""Where to look next: a pure function of the problem, the strategy and the history."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
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
from .data import FINISHED, INFORMATIVE, Proposal, Trial
from .errors import (
    InvalidStrategy,
    SpaceExhausted,
)
from .problem import Problem
from .space import ParameterSpace
from .surrogate import RECIPES, GaussianProcess, KernelSearch, Observations, Posterior, Surrogate
from .viability import Viability, to_retry, viability


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
                object.__setattr__(self, name, whole(f"strategy: {name}", value))
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
            InvalidStrategy: a criterion for level sets where an optimum is sought, or the reverse; a surrogate that
                knows one fidelity where there are more.
        """
        if len(problem.fidelities) > 1 and isinstance(self.surrogate, KernelSearch):
            raise InvalidStrategy(
                "strategy: the surrogate must take cheaper fidelities, got KernelSearch for "
                f"{[f.name for f in problem.fidelities]}. Use GaussianProcess or MultiTask"
            )
        if self.acquisition is None:
            return replace(self, acquisition=EI() if problem.sign else SUR())
        seeks = "optimum" if problem.sign else "level set"
        if self.acquisition.seeks not in (seeks, "any"):
            fitting = [name for name, c in CRITERIA.items() if c.seeks in (seeks, "any")]
            raise InvalidStrategy(
                f"strategy: the criterion must fit the goal {problem.goal!r}, got {self.acquisition}. "
                f"Use one of {', '.join(fitting)}"
            )
        if self.acquisition.kind == "bound" and any(
            f.events or level for level, f in enumerate(reversed(problem.fidelities)) if f.cost is not None
        ):
            gains = [n for n, c in CRITERIA.items() if c.seeks in (seeks, "any") and c.kind != "bound"]
            raise InvalidStrategy(
                "strategy: fidelities need a criterion that is a gain, never negative, to be divided by their costs, "
                f"got {self.acquisition}. Use one of {', '.join(gains)}"
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


def whole(where: str, value: Any) -> int:
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
        InvalidStrategy: the criterion does not fit the problem's goal, or the surrogate its fidelities.
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
    level = to_design(problem, strategy, trials, among)
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


def to_design(problem: Problem, strategy: Strategy, trials: Sequence[Trial], among: Tensor | None = None) -> int | None:
    """The level that still needs space-filling points; None once all have enough, so that there can be a belief.

    A cheaper level gets no more where it has no point left (of ``among`` or of a lattice), or where as many trials as
    its design needs have failed and none has values: the dearer ones do not wait for a program that is broken.
    """
    d, size = problem.space.dim, max(strategy.design(problem.space.dim), 2)
    known = [0] * max(1, len(problem.fidelities))
    failed = list(known)
    valued = dict.fromkeys(problem.task_names, 0)
    for t in trials:
        if t.state in INFORMATIVE and t.outcome:
            known[level := problem.level(t.fidelity)] += 1
            for name in t.outcome.values if level == 0 else ():
                valued[name] += 1
        elif t.state in FINISHED:
            failed[problem.level(t.fidelity)] += 1
    asked = [level for level, f in enumerate(reversed(problem.fidelities)) if f.cost is not None] or [0]
    for level in reversed(asked):
        needed = size if level == 0 else _MORE * size
        if any(count >= size for count in known[level + 1 :]):
            needed = max(d + 1, math.ceil(_LESS * size))
        if level and ((not known[level] and failed[level] >= needed) or _tried(problem, trials, level, among)):
            continue
        if known[level] < needed or (level == 0 and min(valued.values()) < 2):
            return level
    return None


def _tried(problem: Problem, trials: Sequence[Trial], level: int, among: Tensor | None) -> bool:
    """Whether no point of a finite set is left to be asked for at a level."""
    space = problem.space
    taken = space.to_unit(space.tensor([t.x for t in trials if problem.level(t.fidelity) == level]))
    lattice = _small_lattice(space, len(taken) + 1) if among is None else among
    return lattice is not None and not not_taken(lattice, taken if among is not None else space.snap(taken), 1e-9).any()


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
