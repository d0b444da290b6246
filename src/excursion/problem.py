"""What is searched: a space, the tasks (outputs) learnt together, their thresholds and transforms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .data import Outcome
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
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InvalidProblem(f"task {self.name!r}: the weight must be positive and finite, got {self.weight!r}")
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
class Problem:
    """A search: where to look, at which outputs, and which values of them are sought.

    Attributes:
        space: the parameters, their ranges and constraints.
        tasks: the outputs of one evaluation, learnt together. A single `Task` is accepted; the default is one task "f"
            with threshold 0.
        goal: "level-set"; or "minimum" or "maximum" of the only task, whose thresholds then are of no account and are
            dropped.
    """

    space: ParameterSpace
    tasks: tuple[Task, ...] = (Task(),)
    goal: Goal = "level-set"

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
        """The outcome, if it fits the tasks: every task has a value, none is unknown, none lies outside its transform.

        Raises:
            InvalidOutcome: says which task and what to do.
        """
        if outcome.error is not None:
            return outcome
        known, given = set(self.task_names), set(outcome.values)
        if given != known:
            missing, unknown = sorted(known - given), sorted(given - known)
            raise InvalidOutcome(
                f"outcome: needs a value for each task {list(self.task_names)}, got missing={missing}, "
                f"unknown={unknown}. Rename the values, or tell a failure if the evaluation did not work"
            )
        for task in self.tasks:
            value = outcome.values[task.name]
            if task.transform != "auto" and task.map.positive and not value > 0:
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
        return {"space": self.space.to_json(), "tasks": tasks, **goal}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Problem:
        """The problem that `to_json` wrote."""
        tasks = tuple(Task(**t) for t in data["tasks"])
        return cls(ParameterSpace.from_json(data["space"]), tasks, data.get("goal", "level-set"))
