"""What is searched: a space, the tasks (outputs) learnt together, their thresholds and transforms."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .data import INFORMATIVE, TABLE, Outcome, Proposal, Trial
from .errors import InvalidOutcome, InvalidProblem
from .space import ParameterSpace

TransformName = Literal["identity", "log", "asinh", "log-tanh"]
#: What is sought: {f = T}, or the least or the greatest value.
Goal = Literal["level-set", "minimum", "maximum"]
TRANSFORMS: tuple[TransformName, ...] = ("identity", "log", "asinh", "log-tanh")


@dataclass(frozen=True)
class Transform:
    """A monotone map z = g(y) of a task's values to what the surrogate learns.

    * "identity": z = y.
    * "log": z = ln y, for positive values over many decades.
    * "asinh": z = asinh((y - c)/s): linear near the threshold, logarithmic far away.
    * "log-tanh": z = tanh(log10(y/c)): sharp near the threshold, flat two decades away from it; the best choice
      measured on limits on a signal strength, which span a hundred decades.

    Attributes:
        name: one of the four.
        center: c, in units of y (a threshold).
        scale: s, in units of y; only "asinh" uses it.
    """

    name: TransformName = "identity"
    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in TRANSFORMS:
            raise InvalidProblem(
                f"transform: the name must be one of {', '.join(TRANSFORMS)}, got {self.name!r}. Choose one of these"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InvalidProblem(f"transform {self.name!r}: the scale must be positive and finite, got {self.scale!r}")
        if self.positive and self.name == "log-tanh" and not self.center > 0:
            raise InvalidProblem(
                f"transform {self.name!r}: the threshold must be positive, got {self.center!r}. "
                "Use 'identity' or 'asinh' for values of both signs"
            )

    @property
    def positive(self) -> bool:
        """Whether only positive values have an image."""
        return self.name in ("log", "log-tanh")

    def __call__(self, y: Tensor) -> Tensor:
        """g(y), same shape; infinite y gives the limit of g, zero under a logarithm gives its lower limit."""
        match self.name:
            case "identity":
                return y
            case "log":
                return y.log()
            case "asinh":
                return ((y - self.center) / self.scale).asinh()
            case "log-tanh":
                return (y / self.center).log10().tanh()

    def slope(self, y: Tensor) -> Tensor:
        """dg/dy, which carries a standard error from y to z to first order."""
        match self.name:
            case "identity":
                return torch.ones_like(y)
            case "log":
                return 1 / y
            case "asinh":
                return 1 / torch.hypot(y - self.center, torch.full_like(y, self.scale))  # no overflow
            case "log-tanh":
                return (1 - self(y) ** 2) / (y * math.log(10))

    def log_slope(self, y: Tensor) -> Tensor:
        """ln dg/dy, (n,); for "log-tanh" at least that of "log" minus 12.

        Far from the threshold "log-tanh" declares values to be alike: what happens there is not held against it.
        """
        match self.name:
            case "identity":
                return torch.zeros_like(y)
            case "log":
                return -y.log()
            case "asinh":
                return self.slope(y).log()
            case "log-tanh":
                t = (y / self.center).log10().abs()
                # ln sech^2 t = 2 (ln 2 - t - ln(1 + e^-2t))
                squash = 2 * (math.log(2) - t - torch.log1p(torch.exp(-2 * t))) - math.log(math.log(10))
                return squash.clamp_min(-12.0) - y.log()

    def inverse(self, z: Tensor) -> Tensor:
        """The y with g(y) = z; infinite where z lies beyond the range of g."""
        match self.name:
            case "identity":
                return z
            case "log":
                return z.exp()
            case "asinh":
                return self.center + self.scale * z.sinh()
            case "log-tanh":
                return self.center * 10.0 ** z.clamp(-1, 1).atanh()


@dataclass(frozen=True)
class Task:
    """One output of the expensive function and the values at which it matters.

    Attributes:
        name: as in the outcomes' values.
        thresholds: ascending; the level sets {f = T} that are sought. A bare number is accepted. None, (), where an
            optimum is sought.
        transform: see `Transform`; "auto" (default) is whichever predicts the data best, chosen anew as they come in.
        scale: the scale of the "asinh" transform, in the task's units.
        weight: importance of this task's level set relative to the others.
        unit: for labels.
        label: for labels, LaTeX allowed.
    """

    name: str = "f"
    thresholds: tuple[float, ...] = (0.0,)
    transform: TransformName | Literal["auto"] = "auto"
    scale: float = 1.0
    weight: float = 1.0
    unit: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidProblem(f"task: the name must be a non-empty string, got {self.name!r}")
        try:
            given = np.atleast_1d(np.asarray(self.thresholds))
        except ValueError:  # ragged
            given = np.array("")
        if (given.dtype.kind not in "iuf" and given.size) or given.ndim > 1:
            raise InvalidProblem(f"task {self.name!r}: thresholds must be numbers, got {self.thresholds!r}")
        thresholds = tuple(float(t) for t in given)
        ascending = all(a < b for a, b in itertools.pairwise(thresholds))
        if not all(map(math.isfinite, thresholds)) or not ascending:
            raise InvalidProblem(
                f"task {self.name!r}: thresholds must be finite and ascending, got {self.thresholds!r}"
            )
        if any(abs(t) >= 1e60 for t in thresholds):  # such values count as infinite
            raise InvalidProblem(
                f"task {self.name!r}: thresholds must be smaller than 1e60, got {thresholds}. Use another unit"
            )
        object.__setattr__(self, "thresholds", thresholds)
        for key in ("weight", "scale"):
            value = getattr(self, key)
            if not isinstance(value, numbers.Real) or not (math.isfinite(value) and float(value) > 0):
                raise InvalidProblem(f"task {self.name!r}: the {key} must be positive and finite, got {value!r}")
        if self.transform != "auto" and self.map.positive and min(thresholds, default=1.0) <= 0:
            raise InvalidProblem(
                f"task {self.name!r}: transform {self.transform!r} needs positive thresholds, got {thresholds}. "
                "Use 'identity' or 'asinh'"
            )

    @property
    def map(self) -> Transform:
        """The transform, centred on the (middle) threshold; on 0 without one.

        Raises:
            InvalidProblem: the transform is "auto" and has not been settled.
        """
        if self.transform == "auto":
            raise InvalidProblem(
                f"task {self.name!r}: the transform must have been settled, got 'auto'. "
                "Take the task of a belief or a result (their `problem`), or name a transform"
            )
        return Transform(self.transform, self._center, self.scale)

    @property
    def _center(self) -> float:
        return self.thresholds[len(self.thresholds) // 2] if self.thresholds else 0.0

    def choices(self, y: Tensor) -> tuple[Task, ...]:
        """This task under each transform that the values y (n,) allow, the simplest first.

        The scale of "asinh" is the median distance of the finite values from the threshold. Logarithms need positive
        values and thresholds. Without a threshold (an optimum is sought) there is nothing to centre on: identity.
        """
        names: list[tuple[TransformName, float]] = [("identity", 1.0)]
        finite = y[y.isfinite()]
        distance = float((finite - self._center).abs().quantile(0.5)) if len(finite) else 0.0
        if self.thresholds and math.isfinite(distance) and distance > 0:
            names.append(("asinh", distance))
        if min(self.thresholds, default=0.0) > 0 and bool((y > 0).all()):
            names += [("log", 1.0), ("log-tanh", 1.0)]
        return tuple(replace(self, transform=name, scale=scale) for name, scale in names)

    def threshold(self, given: float | None = None) -> float:
        """The threshold that is meant, checked as one of the task's own would be; without one the first of these.

        Raises:
            InvalidProblem: it makes no sense, or there is none.
        """
        if given is not None:
            return replace(self, thresholds=(given,)).thresholds[0]
        if not self.thresholds:
            raise InvalidProblem(
                f"task {self.name!r}: where an optimum is sought there is no threshold, got none. "
                "Give threshold=..., or use optimum()"
            )
        return self.thresholds[0]

    @property
    def levels(self) -> Tensor:
        """The thresholds as the surrogate sees them, shape (k,), ascending."""
        return self.map(torch.tensor(self.thresholds, dtype=torch.float64))


@dataclass(frozen=True)
class Fidelity:
    """One way to evaluate the tasks: cheap and rough (leading order, fast simulation, a table), or dear and right.

    Attributes:
        name: as in proposals and trials.
        cost: of one evaluation, positive, in any unit that all fidelities of a problem share (seconds, say). None: it
            is known from tables only (`Campaign.warm_start`) and never asked for.
        parameters: names of the parameters that it depends on; None: all of them.
        events: (least, most) Monte Carlo events of one evaluation: the campaign chooses how many. None: it does not.
        event_cost: what each event adds to the cost.

    Raises:
        InvalidProblem: says which of these makes no sense.
    """

    name: str
    cost: float | None = 1.0
    parameters: tuple[str, ...] | None = None
    events: tuple[int, int] | None = None
    event_cost: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InvalidProblem(f"fidelity: the name must be a non-empty string, got {self.name!r}. Give it one")
        where = f"fidelity {self.name!r}"
        if self.cost is not None and not _at_least(self.cost, math.ulp(0.0)):
            raise InvalidProblem(
                f"{where}: the cost must be a positive number, got {self.cost!r}. Use None for what is known from "
                "tables only"
            )
        object.__setattr__(self, "cost", None if self.cost is None else float(self.cost))
        if not _at_least(self.event_cost, 0.0):
            raise InvalidProblem(f"{where}: event_cost must be a number, at least 0, got {self.event_cost!r}")
        object.__setattr__(self, "event_cost", float(self.event_cost))
        if self.parameters is not None:
            if not isinstance(self.parameters, list | tuple) or not all(isinstance(p, str) for p in self.parameters):
                raise InvalidProblem(f"{where}: parameters must be a list of names, got {self.parameters!r}")
            names = tuple(self.parameters)
            if not names or len(set(names)) < len(names):
                raise InvalidProblem(
                    f"{where}: parameters must be named once each, at least one, got {list(names)}. Leave them out "
                    "if it depends on all"
                )
            object.__setattr__(self, "parameters", names)
        if self.events is not None:
            object.__setattr__(self, "events", _range_of_events(where, self.events))
        if self.event_cost and self.events is None:
            raise InvalidProblem(
                f"{where}: event_cost needs events, got event_cost={self.event_cost!r} without. "
                "Give events=(least, most)"
            )
        if self.cost is None and self.events is not None:
            raise InvalidProblem(
                f"{where}: what is known from tables only has no events to choose, got events={self.events}. "
                "Give a cost, or leave the events out"
            )

    def price(self, events: int | None = None) -> float:
        """Cost of one evaluation with so many events (by default the most), in the unit of `cost`; 0 without a cost."""
        if self.cost is None:
            return 0.0
        if self.events is None:
            return self.cost
        return self.cost + self.event_cost * (self.events[1] if events is None else events)


def _at_least(value: Any, least: float) -> bool:
    try:
        return not isinstance(value, bool) and least <= value < math.inf
    except TypeError:
        return False


def _range_of_events(where: str, events: Any) -> tuple[int, int]:
    try:
        least, most = (operator.index(e) for e in events)
        if any(isinstance(e, bool) for e in events) or not 1 <= least <= most < 2**63:
            raise ValueError
    except (TypeError, ValueError):
        raise InvalidProblem(
            f"{where}: events must be two whole numbers, 1 <= least <= most, got {events!r}. Give (least, most)"
        ) from None
    return least, most


@dataclass(frozen=True)
class Problem:
    """A search: where to look, at which outputs, and which values of them are sought.

    Attributes:
        space: the parameters, their ranges and constraints.
        tasks: the outputs of one evaluation, learnt together. A single `Task` is accepted; the default is one task "f"
            with threshold 0.
        goal: "level-set"; or "minimum" or "maximum" of the only task, whose thresholds then are of no account and are
            dropped.
        fidelities: ways to evaluate the tasks, from cheap to dear; what is sought is the level set (or the optimum) of
            the last. Without any there is one way, which needs no name.
    """

    space: ParameterSpace
    tasks: tuple[Task, ...] = (Task(),)
    goal: Goal = "level-set"
    fidelities: tuple[Fidelity, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", ParameterSpace.of(self.space))
        tasks = (self.tasks,) if isinstance(self.tasks, Task) else tuple(self.tasks)
        names = [t.name for t in tasks]
        if not tasks or len(set(names)) < len(names):
            raise InvalidProblem(f"problem: needs at least one task and no repeated name, got {names}")
        if self.goal not in get_args(Goal):
            raise InvalidProblem(f"problem: the goal must be one of {', '.join(get_args(Goal))}, got {self.goal!r}")
        if self.sign and len(tasks) > 1:
            raise InvalidProblem(
                f"problem: a {self.goal} is of one task, got {names}. Name one, or combine them in the function"
            )
        if self.sign:
            if tasks[0].transform == "log-tanh":
                raise InvalidProblem(
                    f"task {tasks[0].name!r}: transform 'log-tanh' is flat far from a threshold, got goal "
                    f"{self.goal!r}. Use 'identity', 'log' or 'asinh'"
                )
            tasks = (replace(tasks[0], thresholds=()),)
        elif bare := [t.name for t in tasks if not t.thresholds]:
            raise InvalidProblem(
                f"problem: a level set needs at least one threshold per task, got none for {bare}. "
                "Give one, or seek a minimum or maximum (goal)"
            )
        object.__setattr__(self, "tasks", tasks)
        object.__setattr__(self, "fidelities", tuple(self.fidelities))
        if self.fidelities:
            self._check_fidelities()

    def _check_fidelities(self) -> None:
        if wrong := [f for f in self.fidelities if not isinstance(f, Fidelity)]:
            raise InvalidProblem(f"problem: fidelities must be Fidelity objects, got {wrong}")
        names = [f.name for f in self.fidelities]
        if len(set(names)) < len(names):
            raise InvalidProblem(f"problem: a fidelity's name can be used once, got {names}. Rename one")
        for fidelity in self.fidelities:
            if unknown := sorted(set(fidelity.parameters or ()) - set(self.space.names)):
                raise InvalidProblem(
                    f"fidelity {fidelity.name!r}: parameters must be some of {list(self.space.names)}, got {unknown}"
                )
        dearest = self.fidelities[-1]
        if dearest.cost is None or set(dearest.parameters or self.space.names) < set(self.space.names):
            raise InvalidProblem(
                f"problem: the last fidelity is the one whose level set is sought: it must have a cost and depend on "
                f"all parameters, got {dearest}. Put the fidelities from cheap to dear"
            )
        asked = [f for f in self.fidelities if f.cost is not None]
        for cheap, dear in itertools.pairwise(asked):
            if cheap.price() > dear.price():
                raise InvalidProblem(
                    f"problem: fidelities must be given from cheap to dear, got {cheap.name!r} for {cheap.price():g} "
                    f"before {dear.name!r} for {dear.price():g}. Change the order, or leave out what is both rough and "
                    "dear"
                )

    def level(self, name: str) -> int:
        """0 for the dearest fidelity (and for "", its other name), 1 for the next cheaper one, and so on.

        Raises:
            InvalidProblem: nobody declared this fidelity.
        """
        names = [f.name for f in self.fidelities]
        if name == "":
            return 0
        if name not in names:
            raise InvalidProblem(
                f"problem: a fidelity must be one of {names or 'none'}, got {name!r}. "
                + ("Use one of these" if names else "Declare it: Problem(..., fidelities=(Fidelity(...), ...))")
            )
        return len(names) - 1 - names.index(name)

    def fidelity(self, name: str = "") -> Fidelity:
        """The fidelity of this name; without a name the dearest.

        Raises:
            InvalidProblem: nobody declared this fidelity, or any.
        """
        level = self.level(name)
        if not self.fidelities:
            raise InvalidProblem(
                "problem: no fidelity was declared, got none. Declare it: Problem(..., fidelities=...)"
            )
        return self.fidelities[-1 - level]

    def cost(self, fidelity: str = "", events: int | None = None) -> float:
        """Cost of one evaluation, in evaluations of the dearest fidelity (with the most events, if it has any).

        1 where no fidelities are declared, 0 for a fidelity that is known from tables only.
        """
        if not self.fidelities:
            self.level(fidelity)
            return 1.0
        return self.fidelity(fidelity).price(events) / self.fidelities[-1].price()

    def spent(self, trials: Iterable[Trial]) -> float:
        """Cost of these trials, in evaluations of the dearest fidelity; what came from tables costs nothing."""
        return math.fsum(self.cost(t.fidelity, t.events) for t in trials if t.criterion != TABLE)

    def affordable(self, left: float) -> float:
        """How many evaluations of the cheapest fidelity that may be asked for this pays."""
        prices = [self.cost(f.name, f.events[0] if f.events else None) for f in self.fidelities if f.cost is not None]
        return math.inf if left == math.inf else math.floor(left / min(prices, default=1.0) + 1e-9)

    def within(self, proposals: Sequence[Proposal], left: float) -> list[Proposal]:
        """The first of these that cost no more together than what is left, in evaluations of the dearest fidelity."""
        totals = itertools.accumulate(self.cost(p.fidelity, p.events) for p in proposals)
        return [p for p, total in zip(proposals, totals) if total <= left + 1e-9]

    def valued(self, trials: Iterable[Trial], task: str | None = None) -> list[Trial]:
        """The trials at the dearest fidelity that hold a value of this task; without a name, of any."""
        return [
            t
            for t in trials
            if t.state in INFORMATIVE
            and t.outcome is not None
            and self.level(t.fidelity) == 0
            and (task is None or task in t.outcome.values)
        ]

    @property
    def sign(self) -> int:
        """+1 if a maximum is sought, -1 if a minimum, 0 if level sets."""
        return {"maximum": 1, "minimum": -1}.get(self.goal, 0)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(t.name for t in self.tasks)

    def task(self, name: str | None = None) -> Task:
        """The task of this name; without a name the first one."""
        for task in self.tasks:
            if name in (None, task.name):
                return task
        raise InvalidProblem(f"problem: no task {name!r}, got tasks {list(self.task_names)}. Use one of these")

    def check(self, outcome: Outcome) -> Outcome:
        """The outcome, if it fits the tasks: every task has a value or is `Outcome.missing`, none is unknown, none lies
        outside its transform.

        Raises:
            InvalidOutcome: says which task and what to do.
        """
        if outcome.error is not None:
            return outcome
        known, given = set(self.task_names), {*outcome.values, *outcome.missing}
        if given != known:
            missing, unknown = sorted(known - given), sorted(given - known)
            raise InvalidOutcome(
                f"outcome: needs a value for each task {list(self.task_names)}, got missing={missing}, "
                f"unknown={unknown}. Rename the values, give None for a task that this evaluation says nothing about, "
                "or tell a failure if the evaluation did not work"
            )
        for task in self.tasks:
            value = outcome.values.get(task.name)
            if value is not None and task.transform != "auto" and task.map.positive and not value > 0:
                raise InvalidOutcome(
                    f"outcome of task {task.name!r}: transform {task.transform!r} needs positive values, "
                    f"got {value!r}. Tell a failure, or use the transform 'identity' or 'asinh'"
                )
        return outcome

    def to_json(self) -> dict[str, Any]:
        """The problem as JSON-compatible data."""
        tasks = [asdict(t) | {"thresholds": list(t.thresholds)} for t in self.tasks]
        # As written before there were goals, so that stores from then are those of now.
        goal = {} if self.goal == "level-set" else {"goal": self.goal}
        # The same for fidelities.
        fidelities = {"fidelities": [asdict(f) for f in self.fidelities]} if self.fidelities else {}
        return {"space": self.space.to_json(), "tasks": tasks, **goal, **fidelities}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Problem:
        """The problem that `to_json` wrote."""
        tasks = tuple(Task(**t) for t in data["tasks"])
        fidelities = tuple(Fidelity(**f) for f in data.get("fidelities", ()))
        return cls(ParameterSpace.from_json(data["space"]), tasks, data.get("goal", "level-set"), fidelities)
