"""Evaluators: how one point becomes one outcome. They never import the campaign."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..data import Job, Outcome

__all__ = ["Evaluator"]


class Evaluator(ABC):
    """The expensive function as a picklable recipe; `evaluate` runs in a worker process or on another machine."""

    @abstractmethod
    def evaluate(self, job: Job) -> Outcome:
        """Evaluate one point.

        Args:
            job: the point in physical units, the trial's number and its seed.

        Returns:
            The values of all tasks, or a failure.

        Raises:
            EvaluationError: recorded as a failed trial; another try may succeed.
            ImpossiblePoint: recorded as an invalid trial.
        """
