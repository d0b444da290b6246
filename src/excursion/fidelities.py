"""What a cheaper fidelity does for the belief about the dearest one, in numbers and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .data import INFORMATIVE, Trial
from .problem import Problem
from .surrogate import Posterior

__all__ = ["Help", "helps"]

#: An explanation is followed, or left out, from this part of the belief on.
_MOSTLY, _HARDLY = 0.5, 0.05


@dataclass(frozen=True)
class Help:
    """What a cheaper fidelity does for one task: leave-one-out predictions of the dearest fidelity with and without it.

    Each observation is foretold from all others, in closed form, by the best explanation that follows the cheaper
    fidelity and by the best one that does not. The belief decides by the class of the observations, not by these.

    Attributes:
        task: whose values.
        cheaper: the next cheaper fidelity that has values.
        dearest: what is sought.
        error_with, error_without: root mean square error on the transformed scale.
        density_with, density_without: mean log predictive density of a value there; larger is better.
        count: observations that were held out, in turn; at most 64, those that tell most about the thresholds.
        weight: part of the belief that follows the cheaper fidelity, 0 to 1.
    """

    task: str
    cheaper: str
    dearest: str
    error_with: float
    error_without: float
    density_with: float
    density_without: float
    count: int
    weight: float

    def __str__(self) -> str:
        numbers = f"leave-one-out error {self.error_with:.2g} with, {self.error_without:.2g} without"
        start = f"{self.task}: {self.cheaper!r}"
        if self.weight < _HARDLY:
            verb = "does harm" if self.error_with > self.error_without else "does not help"
            return f"{start} {verb} ({numbers}) and is left out"
        if self.weight >= _MOSTLY and self.error_with < self.error_without:
            verb = "halves" if 0.4 <= self.error_with / self.error_without <= 0.6 else "lowers"
            return (
                f"{start} {verb} the leave-one-out error of {self.dearest!r} "
                f"({self.error_with:.2g} instead of {self.error_without:.2g})"
            )
        return f"{start} is followed by {100 * self.weight:.0f} % of the belief ({numbers})"


def helps(problem: Problem, posterior: Posterior, trials: Sequence[Trial]) -> tuple[Help, ...]:
    """What the cheaper fidelity does, for each task of which it has values; empty for recipes that do not compare.

    Args:
        problem: with the fidelities.
        posterior: the belief from the trials.
        trials: say which fidelities have values.
    """
    levels = {problem.level(t.fidelity) for t in trials if t.state in INFORMATIVE} - {0}
    if not levels:
        return ()
    cheaper, dearest = problem.fidelities[-1 - min(levels)].name, problem.fidelities[-1].name
    found = []
    for task, parameters in zip(problem.task_names, posterior.hyperparameters):
        if (held_out := parameters.get("held_out")) is not None:
            numbers = (*held_out["error"], *held_out["density"], held_out["count"], held_out["weight"])
            found.append(Help(task, cheaper, dearest, *numbers))
    return tuple(found)
