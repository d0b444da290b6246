"""What we know: proposals, trials and their outcomes. Plain records, no I/O, no torch: workers load this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import InvalidOutcome

State = Literal["queued", "running", "complete", "censored", "failed", "invalid"]
#: Trials in these states may still be told an outcome.
PENDING: tuple[State, ...] = ("queued", "running")
#: Trials in these states hold values.
INFORMATIVE: tuple[State, ...] = ("complete", "censored")
#: Trials in these states never change again.
FINISHED: tuple[State, ...] = ("complete", "censored", "failed", "invalid")


@dataclass(frozen=True)
class Outcome:
    """What one evaluation returned: values per task, or the reason why there are none.

    Attributes:
        values: task name -> value in the task's units. Infinite values are allowed: they mean "beyond anything
            measurable" and are treated as censored.
        variances: task name -> variance of the value (its Monte Carlo error squared); absent means unknown.
        bounds: task name -> "above" or "below": the true value lies above (below) ``values[task]``, which is all
            that is known (a limit larger than the bracket; no event passed).
        error: why the evaluation has no values; None if it has.
        permanent: the evaluation can never succeed at this point (state "invalid" rather than "failed").
        info: anything else worth keeping, JSON-compatible (yields, log file, seconds).

    Raises:
        InvalidOutcome: NaN values, negative or infinite variances, bounds for tasks without values, a failure that
            also has values.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    variances: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, Literal["above", "below"]] = field(default_factory=dict)
    error: str | None = None
    permanent: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.error is None) == (not self.values):
            raise InvalidOutcome(
                f"outcome: needs either values or an error, got values={dict(self.values)!r}, error={self.error!r}. "
                "Use Outcome.of(...) or Outcome.failed(...)"
            )
        values, bounds = {}, dict(self.bounds)
        for task, value in self.values.items():
            try:
                if isinstance(value, str | bool):
                    raise TypeError
                values[task] = float(value)
            except (TypeError, ValueError, OverflowError):
                raise InvalidOutcome(
                    f"outcome of task {task!r}: the value must be a number, got {value!r:.80}. Return a float"
                ) from None
            if math.isnan(values[task]):
                raise InvalidOutcome(
                    f"outcome of task {task!r}: the value must not be NaN, got {value!r}. Tell a failure "
                    "(Outcome.failed) or a bound (Outcome.of(..., bounds={task: 'above'})) instead"
                )
            if math.isinf(values[task]):
                bounds.setdefault(task, "above" if values[task] > 0 else "below")
        for task, variance in self.variances.items():
            if task not in values or not _is_variance(variance):
                raise InvalidOutcome(
                    f"outcome of task {task!r}: a variance must be finite, not negative and belong to a value, "
                    f"got {variance!r}. Leave it out if it is unknown"
                )
        for task, side in bounds.items():
            if task not in values or side not in ("above", "below"):
                raise InvalidOutcome(
                    f"outcome of task {task!r}: a bound must be 'above' or 'below' and belong to a value, got {side!r}"
                )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "variances", {k: float(v) for k, v in self.variances.items()})
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "info", _plain(self.info, "info"))

    @classmethod
    def of(cls, values: float | Mapping[str, float], **more: Any) -> Outcome:
        """The outcome of a successful evaluation; a bare number is the value of the task "f"."""
        return cls(values=values if isinstance(values, Mapping) else {"f": values}, **more)

    @classmethod
    def failed(cls, reason: str, *, permanent: bool = False, **info: Any) -> Outcome:
        """The outcome of an evaluation without values."""
        return cls(error=reason or "no reason given", permanent=permanent, info=info)

    @property
    def state(self) -> State:
        """The state of a trial with this outcome."""
        if self.error is not None:
            return "invalid" if self.permanent else "failed"
        return "censored" if self.bounds else "complete"


def _plain(value: Any, where: str) -> Any:
    """JSON-compatible data; numpy's numbers and arrays become Python's."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    if isinstance(value, str | int | float):  # subclasses: enumerations and the like
        return value
    raise InvalidOutcome(
        f"outcome, {where}: must be text, numbers, lists and dicts (JSON), got {type(value).__name__}. "
        "Convert it, or leave it out"
    )


def _is_variance(value: Any) -> bool:
    try:
        return math.isfinite(value) and value >= 0
    except (TypeError, OverflowError):
        return False


@dataclass(frozen=True)
class Proposal:
    """A point that is worth an evaluation, not stored yet, with the reason for it.

    Attributes:
        x: parameter name -> physical value.
        basis: how many trials were finished when it was chosen.
        criterion: name of what chose it ("design", "SUR", ...).
        score: the criterion's value, larger is better; None for a design point.
        predicted: task name -> probability that the value is at or above its (first) threshold, when it was chosen.
        belief: task name -> how the belief behind it was made: transform, its scale, temperature.
    """

    x: Mapping[str, float]
    basis: int
    criterion: str = "design"
    score: float | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    belief: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One row of a campaign's history.

    Attributes:
        number: 0, 1, 2, ... in the order of asking; with the campaign's name the primary key.
        x, basis, criterion, score, predicted, belief: see `Proposal`.
        after: how many trials existed when it was asked; trials of one batch share it.
        state: see `State`; finished states never change.
        told: order of completion 0, 1, 2, ...; None while pending.
        outcome: what came back; None while pending.
        seed: seed for this evaluation, fixed by the strategy's seed and the number.
        asked, started, finished: seconds since the epoch, or None.
        owner: who runs it (host:process), or None.
    """

    number: int
    x: Mapping[str, float]
    basis: int
    after: int
    criterion: str = "design"
    score: float | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    belief: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: State = "queued"
    told: int | None = None
    outcome: Outcome | None = None
    seed: int = 0
    asked: float | None = None
    started: float | None = None
    finished: float | None = None
    owner: str | None = None

    @property
    def pending(self) -> bool:
        """Asked but not told yet."""
        return self.state in PENDING


@dataclass(frozen=True)
class Job:
    """What an evaluator gets to know: the point, who asks, and the seed to use."""

    x: Mapping[str, float]
    number: int = 0
    seed: int = 0
