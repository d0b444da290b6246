"""Shadow replay: a campaign on a scan that exists already, to see how much of it would have been needed.

Only points of the table can be asked for, each once, and what comes back is the table's value. The module is called so
that `excursion.replay` is the function.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from .belief import believe
from .constraint import Constraint
from .data import Outcome, Trial
from .errors import InvalidOutcome, InvalidStrategy, InvalidTable
from .known import read_table
from .problem import Problem, Task
from .proposal import Strategy, propose
from .space import Parameter, ParameterSpace
from .threads import one_thread

__all__ = ["Curve", "Replay", "read_table", "replay"]

#: A smaller table is quicker evaluated than replayed.
_SMALLEST = 10
#: Points that differ by less than this, in ranges of the parameters, are the same point.
_SAME = 1e-9


@dataclass(frozen=True)
class Curve:
    """How the error fell.

    Attributes:
        evaluations: how many points had been asked for, ascending.
        error: the misclassified fraction of the table's points that have values, at each of these.
    """

    evaluations: tuple[int, ...]
    error: tuple[float, ...]

    def needed(self, goal: float) -> int | None:
        """From how many evaluations on the error stays at or below the goal; None if it does not."""
        needed = None
        for n, error in zip(self.evaluations, self.error):
            needed = None if error > goal else n if needed is None else needed
        return needed

    def at(self, n: int) -> float:
        """The error after n evaluations, NaN before the first."""
        known = [error for k, error in zip(self.evaluations, self.error) if k <= n]
        return known[-1] if known else math.nan


@dataclass(frozen=True, repr=False)
class Replay:
    """What a campaign would have needed of a scan.

    Attributes:
        problem: parameters with the ranges of the table; the output with its threshold.
        points: how many points the table has, points without a value included.
        failed: those without a value.
        goal: the error to stay at or below.
        curve: the error of the campaign.
        random: the error of the same belief with points in random order, the median of several orders.
        history: the points in the order in which they were asked for.
    """

    problem: Problem
    points: int
    failed: int
    goal: float
    curve: Curve
    random: Curve
    history: tuple[Trial, ...] = field(default=())

    @property
    def needed(self) -> int | None:
        """From how many evaluations on the error stays at or below the goal; None if it does not."""
        return self.curve.needed(self.goal)

    def __repr__(self) -> str:
        needed = "more" if self.needed is None else self.needed
        return f"<Replay: {needed} of {self.points} points for an error of at most {self.goal:g}>"


def replay(
    table: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    threshold: float = 1.0,
    *,
    parameters: Sequence[str] | None = None,
    output: str | None = None,
    transform: str | None = None,
    log: Sequence[str] = (),
    constraints: Sequence[str] = (),
    where: str | None = None,
    batch: int = 1,
    seed: int = 0,
    goal: float = 0.01,
    strategy: Strategy | None = None,
    orders: int = 3,
) -> Replay:
    """Run a campaign on a scan that exists: how many of its points would have been needed?

    The error after n evaluations is the fraction of all points with values (infinite ones included) on the wrong side
    of the threshold: points that were asked for count by their value, the others by the belief's mean. The campaign
    ends when the error has stayed at or below the goal for ten more evaluations and a quarter more, or with the table.
    Random orders are followed for three times as many evaluations.

    Args:
        table: a CSV file with a header, a JSON file with a list of objects, or such a list; a DataFrame's
            ``to_dict("records")``. An empty or NaN value of the output is a failed evaluation: it costs one and tells
            nothing. Rows that say the same count once.
        threshold: T of the level set {output = T}.
        parameters: columns that were scanned; by default all that vary but the output.
        output: column of the values; the last by default.
        transform: of the output, see `Transform`; the default of `Task` if None.
        log: parameters on a logarithmic scale.
        constraints: only rows in which all these expressions in the names of the columns hold are part of the scan.
        where: a value counts only where this expression holds ("status == 0"); elsewhere the evaluation has failed.
        batch: points asked for together.
        seed: fixes the result.
        goal: misclassified fraction to stay at or below.
        strategy: everything else; ``seed`` replaces its own.
        orders: how many random orders are compared with; 0 for none.

    Returns:
        The two error curves, and the points that were asked for.

    Raises:
        InvalidTable: a column that is not there, a cell that is no number, two values at one point, fewer than ten
            points, all values on one side of the threshold.
        InvalidProblem, InvalidStrategy: settings that make no sense.

    Example:
        >>> grid = [{"m1": 10.0 * i, "m2": 10.0 * j, "mu": (i - j) / 4 + 0.1} for i in range(12) for j in range(12)]
        >>> replay(grid, threshold=1.0, orders=0).needed < 40
        True
    """
    if not (isinstance(goal, int | float) and 0 < goal < 0.5):
        raise InvalidStrategy(f"replay: the goal is a fraction of the points between 0 and 0.5, got {goal!r}")
    for name, count, least in (("batch", batch, 1), ("orders", orders, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InvalidStrategy(f"replay: {name} must be a whole number and at least {least}, got {count!r}")
    strategy = replace(strategy or Strategy(), seed=seed)
    problem, x, y = _scan(table, threshold, parameters, output, transform, log, constraints, where)
    scan = _Scan.of(problem, x, y)
    history, curve = _campaign(scan, strategy, batch, goal)
    reached = curve.needed(goal)
    last = 3 * (len(history) if reached is None else reached)
    random = _random(scan, strategy, orders, curve, min(last, len(y)), reached)
    return Replay(problem, len(y), int(np.isnan(y).sum()), goal, curve, random, tuple(history))


# ------------------------------------------------------------------------------------------------ the campaign


@dataclass(frozen=True)
class _Scan:
    """The table as a campaign sees it: points in the unit cube, what each returns, which side it is on."""

    problem: Problem
    u: torch.Tensor
    points: tuple[Mapping[str, float], ...]
    outcomes: tuple[Outcome, ...]
    valued: np.ndarray
    above: np.ndarray

    @classmethod
    def of(cls, problem: Problem, x: np.ndarray, y: np.ndarray) -> _Scan:
        space, task = problem.space, problem.tasks[0]
        outcomes = tuple(
            Outcome.failed("no value in the table", permanent=True)
            if math.isnan(v)
            else Outcome.of({task.name: float(v)})
            for v in y
        )
        tensor = torch.from_numpy(x)
        points = tuple(space.point(row) for row in tensor)
        valued = ~np.isnan(y)
        return cls(problem, space.to_unit(tensor), points, outcomes, valued, y >= task.thresholds[0])

    def trial(self, row: int, number: int, after: int, criterion: str = "design") -> Trial:
        """The row as a trial that has come back."""
        outcome = self.outcomes[row]
        return Trial(
            number, self.points[row], after, after, criterion, state=outcome.state, told=number, outcome=outcome
        )

    def error(self, strategy: Strategy, rows: Sequence[int]) -> float | None:
        """The misclassified fraction when these rows are known; None before a belief can be fitted."""
        trials = [self.trial(row, i, 0) for i, row in enumerate(rows)]
        if sum(self.valued[list(rows)]) < 2:
            return None
        with torch.no_grad(), one_thread(len(trials)):
            belief = believe(self.problem, strategy.surrogate, trials)
            level = float(belief.problem.tasks[0].levels[0])
            mean = belief.posterior.marginal(self.u)[0][0].numpy()
        wrong = (mean >= level) != self.above
        wrong[list(rows)] = False
        return float(wrong[self.valued].mean())


def _campaign(scan: _Scan, strategy: Strategy, batch: int, goal: float) -> tuple[list[Trial], Curve]:
    rows: list[int] = []
    history: list[Trial] = []
    curve = Curve((), ())
    while len(rows) < len(scan.points):
        with one_thread(len(rows)):
            proposals = propose(scan.problem, strategy, history, batch, scan.u)
        space, after = scan.problem.space, len(rows)
        asked = space.to_unit(space.tensor([p.x for p in proposals]))
        nearest = torch.cdist(asked, scan.u, compute_mode="donot_use_mm_for_euclid_dist").argmin(1).tolist()
        for row, proposal in zip(nearest, proposals):
            history.append(scan.trial(row, len(rows), after, proposal.criterion))
            rows.append(row)
        if (error := scan.error(strategy, rows)) is None:
            continue
        curve = Curve((*curve.evaluations, len(rows)), (*curve.error, error))
        needed = curve.needed(goal)
        if needed is not None and len(rows) >= needed + max(10, needed / 4):
            break
    return history, curve


def _random(scan: _Scan, strategy: Strategy, orders: int, curve: Curve, last: int, needed: int | None) -> Curve:
    """The median error over random orders, at ever fewer of the campaign's evaluations."""
    if not orders or not curve.evaluations:
        return Curve((), ())
    counts = {last} if needed is None else {needed, last}
    n = curve.evaluations[0]
    while n < last:
        counts.add(n)
        n = max(n + 1, math.ceil(1.25 * n))
    shuffled = [np.random.default_rng((strategy.seed, i)).permutation(len(scan.points)) for i in range(orders)]
    errors = {n: [scan.error(strategy, order[:n].tolist()) for order in shuffled] for n in sorted(counts)}
    # Before a belief can be fitted nothing is known: as wrong as a coin.
    median = {n: float(np.median([0.5 if e is None else e for e in found])) for n, found in errors.items()}
    return Curve(tuple(median), tuple(median.values()))


# --------------------------------------------------------------------------------------------------- the table


def _scan(
    table: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    threshold: float,
    parameters: Sequence[str] | None,
    output: str | None,
    transform: str | None,
    log: Sequence[str],
    constraints: Sequence[str],
    where: str | None,
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """The problem that the table is a scan of, the points (n, d) and the values (n,), NaN where there is none."""
    place = f"table {os.fspath(table)}" if isinstance(table, str | os.PathLike) else "table"
    rows = read_table(table) if isinstance(table, str | os.PathLike) else list(table)
    if len(rows) < _SMALLEST:
        raise InvalidTable(f"{place}: needs at least {_SMALLEST} rows, got {len(rows)}. Give a larger scan")
    columns = _Columns(place, rows)
    names = columns.names
    output = columns.known(output, "output") if output is not None else names[-1]
    y = columns.numbers(output, empty=True)
    inside = np.ones(len(rows), dtype=bool)
    for text in constraints:
        inside &= columns.holds(text)
    if inside.sum() < _SMALLEST:
        raise InvalidTable(
            f"{place}: needs at least {_SMALLEST} rows, got {inside.sum()} of {len(rows)} in which {list(constraints)} "
            "hold. Relax the constraints"
        )
    if parameters is None:
        candidates = [name for name in names if name != output]
        parameters = [name for name in candidates if np.ptp(columns.numbers(name)[inside]) > 0]
    else:
        parameters = [columns.known(name, "parameters") for name in parameters]
        if output in parameters or len(set(parameters)) < len(parameters):
            raise InvalidTable(
                f"{place}: parameters must be different columns and not the output {output!r}, got {parameters}. "
                "Name each once"
            )
    log = [columns.known(name, "log") for name in log]
    if unknown := sorted(set(log) - set(parameters)):
        raise InvalidTable(f"{place}: log scales are for parameters, got {unknown}. Parameters are {parameters}")
    constant = [name for name in parameters if not np.ptp(columns.numbers(name)[inside]) > 0]
    if constant or not parameters:
        raise InvalidTable(
            f"{place}: parameters must vary, got one value only in {constant or 'every column'}. "
            "Name those that were scanned (parameters)"
        )
    x = np.stack([columns.numbers(name) for name in parameters], 1)
    if where is not None:
        y = np.where(columns.holds(where), y, math.nan)
    x, y = _distinct(place, parameters, x[inside], y[inside], np.flatnonzero(inside))
    if len(y) < _SMALLEST:
        raise InvalidTable(
            f"{place}: needs at least {_SMALLEST} different points, got {len(y)} in {inside.sum()} rows. "
            "Give a larger scan"
        )
    problem = _problem(parameters, x, output, threshold, transform, log)
    for value in y[~np.isnan(y)]:
        try:
            problem.check(Outcome.of({output: float(value)}))
        except InvalidOutcome as error:
            raise InvalidTable(f"{place}: {error}") from error
    known = y[~np.isnan(y)]
    if not (known >= threshold).any() or not (known < threshold).any():
        among = f"{len(known)} values from {known.min():g} to {known.max():g}" if len(known) else "no value at all"
        raise InvalidTable(
            f"{place}: column {output!r} must have values on both sides of the threshold {threshold:g}, got {among}. "
            "Give another threshold or output"
        )
    return problem, x, y


def _problem(
    parameters: Sequence[str], x: np.ndarray, output: str, threshold: float, transform: str | None, log: Sequence[str]
) -> Problem:
    space = ParameterSpace(
        tuple(
            Parameter(
                _identifier(name),
                float(column.min()),
                float(column.max()),
                "log" if name in log else "linear",
                label="" if _identifier(name) == name else name,
            )
            for name, column in zip(parameters, x.T)
        )
    )
    more: dict[str, Any] = {} if transform is None else {"transform": transform}
    return Problem(space, (Task(output, (threshold,), **more),))


def _identifier(name: str) -> str:
    """The name of a column in expressions: "m(Z') [GeV]" is m_Z_GeV."""
    short = re.sub(r"\W+", "_", name).strip("_")
    return short if short.isidentifier() else f"p_{short}"


class _Columns:
    """The cells of a table by column, as numbers where they are asked for."""

    def __init__(self, place: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.place, self.rows = place, rows
        self.names = [str(name) for name in rows[0]]
        for i, row in enumerate(rows, 1):
            if not isinstance(row, Mapping) or {str(name) for name in row} != set(self.names):
                raise InvalidTable(
                    f"{place}, row {i}: must have the columns of the first row {self.names}, got "
                    f"{list(row) if isinstance(row, Mapping) else row!r}. Fill the gaps"
                )

    def known(self, name: str, what: str) -> str:
        """The column of this name."""
        if name not in self.names:
            raise InvalidTable(f"{self.place}: {what} must name a column, got {name!r}. Columns are {self.names}")
        return name

    def numbers(self, name: str, empty: bool = False) -> np.ndarray:
        """The column as floats; with ``empty`` a cell may be empty or NaN, and is NaN then; parameters are finite."""
        values = np.empty(len(self.rows))
        for i, row in enumerate(self.rows):
            cell = row[name]
            try:
                if isinstance(cell, bool):
                    raise ValueError
                missing = cell is None or (isinstance(cell, str) and not cell.strip())
                values[i] = math.nan if missing else float(cell)
                if not empty and not math.isfinite(values[i]):
                    raise ValueError
            except (TypeError, ValueError, OverflowError):
                fix = "Leave it empty if the evaluation failed" if empty else "Correct it, or name other parameters"
                raise InvalidTable(
                    f"{self.place}, row {i + 1}, column {name!r}: must be a {'' if empty else 'finite '}number, "
                    f"got {cell!r}. {fix}"
                ) from None
        return values

    def holds(self, text: str) -> np.ndarray:
        """In which rows an expression in the names of the columns holds."""
        condition = Constraint(text)
        found = {_identifier(name): name for name in self.names}
        if unknown := sorted(condition.names - set(found) - {"pi"}):
            raise InvalidTable(
                f"{self.place}: expression {text!r} must use the columns, got {', '.join(unknown)}. "
                f"Columns are called {', '.join(found)}"
            )
        return condition.holds({name: self.numbers(found[name], empty=True) for name in condition.names & set(found)})


def _distinct(
    place: str, parameters: Sequence[str], x: np.ndarray, y: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The points without repetitions; one with two values is refused."""
    keys = np.round((x - x.min(0)) / np.ptp(x, 0) / _SAME)
    first: dict[bytes, int] = {}
    kept = []
    for i, key in enumerate(k.tobytes() for k in keys):
        j = first.setdefault(key, i)
        if i == j:
            kept.append(i)
        elif y[i] != y[j] and not (math.isnan(y[i]) and math.isnan(y[j])):
            point = ", ".join(f"{name}={value:g}" for name, value in zip(parameters, x[i]))
            raise InvalidTable(
                f"{place}: a point must have one value, got {y[j]:g} in row {rows[j] + 1} and {y[i]:g} in row "
                f"{rows[i] + 1} at {point}. Keep one of them or their mean, or name the parameter that differs"
            )
    return x[kept], y[kept]
