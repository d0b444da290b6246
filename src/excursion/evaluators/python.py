"""A Python function as an evaluator."""

from __future__ import annotations

import inspect
import numbers
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..data import Job, Outcome
from ..errors import EvaluationError, InvalidOutcome, InvalidSpec
from . import Evaluator

__all__ = ["Function"]


@dataclass(frozen=True)
class Function(Evaluator):
    """Calls a Python function with one point, a dict of parameter name -> physical value.

    Attributes:
        function: takes the point; returns a number, a dict of task name -> number, or an `Outcome`. If it
            has a parameter called `seed` (not its first), it is given the trial's seed. So it is with `fidelity` and
            `events`; where there is nothing to give, their defaults hold. A task given as None is missing.
        task: the task a bare number belongs to.

    Raises:
        InvalidSpec: `function` cannot be called.

    Example:
        >>> Function(lambda point: point["x"] ** 2).evaluate(Job({"x": 3.0})).values
        {'f': 9.0}
    """

    function: Callable[..., Any]
    task: str = "f"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidSpec(
                f"function: must be callable, got {self.function!r}. Give a function of one point (a dict)"
            )

    def evaluate(self, job: Job) -> Outcome:
        """Call the function at one point.

        Args:
            job: the point in physical units, the trial's number and its seed.

        Returns:
            What the function returned.

        Raises:
            EvaluationError: the function raised anything (an `ImpossiblePoint` or `EvaluationError` of its
                own comes through as it is), or returned something that is not an outcome.
        """
        where = f"function {_name(self.function)} at trial {job.number}"
        returned = self.call(job)
        if isinstance(returned, Outcome):
            return returned
        values = returned if isinstance(returned, Mapping) else {self.task: returned}
        try:
            return Outcome.of(
                {
                    _task(where, task): None if value is None and len(values) > 1 else _number(where, value)
                    for task, value in values.items()
                }
            )
        except (InvalidOutcome, OverflowError) as error:
            raise EvaluationError(f"{where}: returned {returned!r} at {dict(job.x)}: {error}") from error

    def call(self, job: Job) -> Any:
        """Call the function at one point, whatever it returns.

        Raises:
            EvaluationError: it raised anything.
        """
        where = f"function {_name(self.function)} at trial {job.number}"
        more = _wanted(self.function, job)
        try:
            return self.function(dict(job.x), **more)
        except EvaluationError:
            raise
        except Exception as error:
            # The cause does not survive the way back from another process, so the message tells where it was.
            steps = traceback.extract_tb(error.__traceback__)[1:]
            lines = "".join(f"\n  {step.filename}:{step.lineno} in {step.name}" for step in steps[-3:])
            raise EvaluationError(
                f"{where}: must not raise, got {type(error).__name__}: {error} at {dict(job.x)}. "
                f"Raise ImpossiblePoint where it can never succeed{lines}"
            ) from error


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _wanted(function: Callable[..., Any], job: Job) -> dict[str, Any]:
    """Seed, fidelity and events, as far as the function has parameters for them and does not know better."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):
        # Some functions written in C have no signature.
        return {}
    given: dict[str, Any] = {"seed": job.seed, "fidelity": job.fidelity, "events": job.events}
    unset = [name for name in ("fidelity", "events") if not given[name]]
    return {
        p.name: given[p.name]
        for p in parameters
        if p.name in given
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and (p.name not in unset or p.default is p.empty)
    }


def _task(where: str, task: object) -> str:
    if not isinstance(task, str):
        raise EvaluationError(f"{where}: tasks must be text, got {task!r}. Return a dict of task name -> number")
    return task


def _number(where: str, value: Any) -> float:
    """A real number, a numpy scalar or an array of no dimension, as a float."""
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise EvaluationError(
            f"{where}: must return a number, a dict of numbers or an Outcome, "
            f"got {type(value).__name__}{shape}: {value!r}. Return float(...)"
        )
    return float(plain)
