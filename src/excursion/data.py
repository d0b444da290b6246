"""What we know: proposals, trials and their outcomes. Plain records, no I/O, no torch: workers load this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import InvalidOutcome
from .untrusted import DEEPEST

State = Literal["queued", "running", "complete", "censored", "failed", "invalid"]
#: What people decided about a trial, where they do: see `Trial`.
Approval = Literal["", "proposed", "approved", "submitted", "rejected"]
#: Trials in these states may still be told an outcome.
PENDING: tuple[State, ...] = ("queued", "running")
#: Trials in these states hold values.
INFORMATIVE: tuple[State, ...] = ("complete", "censored")
#: Trials in these states never change again.
FINISHED: tuple[State, ...] = ("complete", "censored", "failed", "invalid")
#: Whole numbers with more bits are no text any more (Python refuses beyond 4300 digits).
_BITS = 8192
#: The criterion of trials that were not asked for but known from a table.
TABLE = "table"


@dataclass(frozen=True)
class Censored:
    """A value of which only a bound is known: a limit beyond the end of its bracket, no event passed.

    Attributes:
        task: name of the task.
        above: the true value lies above this.
        below: the true value lies below this.

    Raises:
        InvalidOutcome: not exactly one bound, or one that is not a number.
    """

    task: str
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise InvalidOutcome(
                f"outcome of task {self.task!r}: a censored value has one bound, got above={self.above!r}, "
                f"below={self.below!r}. Give one of them"
            )
        _number(self.task, self.bound)

    @property
    def bound(self) -> float:
        """The number, in the task's units."""
        return self.above if self.above is not None else self.below  # type: ignore[return-value]

    @property
    def side(self) -> Literal["above", "below"]:
        """On which side of `bound` the true value lies."""
        return "above" if self.above is not None else "below"


@dataclass(frozen=True)
class Outcome:
    """What one evaluation returned: values per task, or the reason why there are none.

    Attributes:
        values: task name -> value in the task's units, known ones only. Infinite values are allowed: they mean
            "beyond anything measurable" and are treated as censored. A task given as None is `missing`.
        variances: task name -> variance of the value (its Monte Carlo error squared); absent means unknown.
        bounds: task name -> "above" or "below": the true value lies above (below) ``values[task]``, which is all
            that is known (a limit larger than the bracket; no event passed).
        error: why the evaluation has no values; None if it has.
        permanent: the evaluation can never succeed at this point (state "invalid" rather than "failed").
        info: anything else worth keeping, JSON-compatible (yields, log file, seconds).
        missing: tasks that this evaluation says nothing about (a column that a table does not have, a fit that was not
            done); the others keep their values.

    Raises:
        InvalidOutcome: NaN values, negative or infinite variances, bounds for tasks without values, a failure that
            also has values, all tasks missing.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    variances: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, Literal["above", "below"]] = field(default_factory=dict)
    error: str | None = None
    permanent: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {task: value for task, value in self.values.items() if value is not None}
        missing = tuple(dict.fromkeys([*self.missing, *(t for t in self.values if t not in known)]))
        if (self.error is None) == (not known) or (self.error is not None and missing):
            raise InvalidOutcome(
                f"outcome: needs either values or an error, got values={known!r}, missing={list(missing)}, "
                f"error={self.error!r}. Use Outcome.of(...) or Outcome.failed(...)"
            )
        if both := [task for task in missing if task in known]:
            raise InvalidOutcome(f"outcome: a task is either missing or has a value, got both for {both}. Choose one")
        values, bounds = {}, dict(self.bounds)
        for task, value in known.items():
            values[task] = _number(task, value)
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
        object.__setattr__(self, "missing", missing)

    @classmethod
    def of(cls, values: float | Mapping[str, float | None], *censored: Censored, **more: Any) -> Outcome:
        """The outcome of a successful evaluation.

        Args:
            values: task name -> value; None where it is missing. A bare number is the value of the task "f".
            *censored: values of which only a bound is known.
            **more: further attributes.

        >>> outcome = Outcome.of({"expected": 1.3, "mass": None}, Censored("observed", above=10.0))
        >>> outcome.values["observed"], outcome.bounds["observed"], outcome.missing
        (10.0, 'above', ('mass',))
        """
        known: dict[str, Any] = dict(values) if isinstance(values, Mapping) else {"f": values}
        bounds = dict(more.pop("bounds", {}))
        for c in censored:
            if c.task in known:
                raise InvalidOutcome(
                    f"outcome of task {c.task!r}: it has a value or is censored, got {known[c.task]!r} and {c}. "
                    "Give one of them"
                )
            known[c.task], bounds[c.task] = c.bound, c.side
        return cls(values=known, bounds=bounds, **more)

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


def _number(task: str, value: Any) -> float:
    try:
        if isinstance(value, str | bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidOutcome(
            f"outcome of task {task!r}: the value must be a number, got {value!r:.80}. Return a float"
        ) from None
    if math.isnan(number):
        raise InvalidOutcome(
            f"outcome of task {task!r}: the value must not be NaN, got {value!r}. Tell a failure "
            "(Outcome.failed), a bound (Censored(task, above=...)) or None where it is missing instead"
        )
    return number


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """JSON-compatible data; numpy's numbers and arrays become Python's."""
    if depth > DEEPEST:
        raise InvalidOutcome(
            f"outcome, {where[:80]}: must be nested at most {DEEPEST} deep, got more. Flatten it, or leave it out"
        )
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, where, depth + 1) for v in value]
    if type(value) is int and value.bit_length() > _BITS:
        raise InvalidOutcome(
            f"outcome, {where}: whole numbers must have at most {_BITS} bits, got {value.bit_length()}. Make it text"
        )
    if value is None or type(value) in (str, int, float, bool):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where, depth + 1)
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
        fidelity: name of the fidelity to evaluate at; "" where the problem declares none.
        events: how many Monte Carlo events to generate; None where the campaign does not choose that.
    """

    x: Mapping[str, float]
    basis: int
    criterion: str = "design"
    score: float | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    belief: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fidelity: str = ""
    events: int | None = None


@dataclass(frozen=True)
class Trial:
    """One row of a campaign's history.

    Attributes:
        number: 0, 1, 2, ... in the order of asking; with the campaign's name the primary key.
        x, basis, criterion, score, predicted, belief, fidelity, events: see `Proposal`.
        after: how many trials existed when it was asked; trials of one batch share it.
        state: see `State`; finished states never change.
        told: order of completion 0, 1, 2, ...; None while pending.
        outcome: what came back; None while pending.
        seed: seed for this evaluation, fixed by the strategy's seed and the number.
        asked, started, finished: seconds since the epoch, or None.
        owner: who runs it (host:process), or None.
        expires: seconds since the epoch after which it may be queued again unless its owner renews the lease; None:
            never.
        approval: "proposed" while it waits for a person, "approved", "submitted" (evaluated by people), "rejected";
            empty where nobody has to approve.
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
    fidelity: str = ""
    events: int | None = None
    expires: float | None = None
    approval: Approval = ""

    @property
    def pending(self) -> bool:
        """Asked but not told yet."""
        return self.state in PENDING


@dataclass(frozen=True)
class Job:
    """What an evaluator gets to know: the point, who asks, the seed to use, and how well to evaluate.

    Attributes:
        x: parameter name -> physical value.
        number: of the trial.
        seed: for the evaluation's random numbers.
        fidelity: name of the fidelity; "" where the problem declares none.
        events: how many Monte Carlo events to generate; None where the campaign does not choose that.
    """

    x: Mapping[str, float]
    number: int = 0
    seed: int = 0
    fidelity: str = ""
    events: int | None = None
