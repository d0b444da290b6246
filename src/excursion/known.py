"""Tables of points that somebody has evaluated, in CSV, JSON or HEPData: from columns to points and outcomes."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .data import Outcome
from .errors import InvalidOutcome, InvalidTable
from .problem import Problem
from .space import ParameterSpace
from .untrusted import json_value, read_text, yaml_value

__all__ = ["Known", "Source", "Table", "answers", "known", "parse_cell", "read", "read_table", "same_unit"]

#: A table: the path of a file, records, or columns.
Source = str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
#: Cells that say that there is no value.
_EMPTY = ("", "-", "--", "nan", "na", "n/a", "none", "null")
#: Columns beside that of a task: its standard error (either name), and on which side of the value the truth lies.
_ERRORS = ("_err", "_sd")
_BOUND = "_bound"
#: The square of a larger one is no float.
_LARGEST_ERROR = 1e150


@dataclass(frozen=True)
class Table:
    """Named columns.

    Attributes:
        place: what messages call it.
        columns: header -> cells, all of the same number.
        units: header -> unit, where one is known.
    """

    place: str
    columns: Mapping[str, Sequence[Any]]
    units: Mapping[str, str]

    def __post_init__(self) -> None:
        lengths = {name: len(cells) for name, cells in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidTable(
                f"{self.place}: columns must have the same number of cells, got {lengths}. Fill the gaps"
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True)
class Known:
    """What a table says about a problem.

    Attributes:
        points: parameter name -> physical value, inside the space; parameters that the fidelity does not depend on are
            at the middle of their range.
        outcomes: one for each point.
        outside: rows that lie outside the ranges, or that a constraint forbids; they are left out.
        empty: rows without any value; they are left out.
        missing: tasks that the table has no column for.
        rows: the number of the row that each point is from, 1 being the first.
    """

    points: tuple[Mapping[str, float], ...]
    outcomes: tuple[Outcome, ...]
    outside: int
    empty: int
    missing: tuple[str, ...]
    rows: tuple[int, ...]


def known(problem: Problem, source: Source, fidelity: str = "", columns: Mapping[str, str] | None = None) -> Known:
    """The rows of a table as points and outcomes.

    A column is that of the parameter or the task that has its name ("m" or "m [GeV]"). Beside the column of a task
    there may be "<task>_err" (or "_sd"), its standard error, and "<task>_bound" ("above" or "below"). Other columns are
    left alone. For the cells see `parse_cell`.

    Args:
        problem: gives the names, units and ranges.
        source: see `read`.
        fidelity: which one the table holds; if it depends on some parameters only, the table needs only these.
        columns: the table's name -> ours, where they differ.

    Raises:
        InvalidTable: columns that are missing, units that differ, cells that are no numbers, no row inside the space.
        InvalidProblem: nobody declared this fidelity.
    """
    needed = (problem.fidelity(fidelity).parameters if problem.fidelities else None) or problem.space.names
    if not problem.fidelities:
        problem.level(fidelity)
    table = read(source)
    if not len(table):
        raise InvalidTable(f"{table.place}: must have rows, got none. Check the file")
    found = _matched(table, problem, columns or {})
    if lacking := [name for name in needed if name not in found]:
        raise InvalidTable(
            f"{table.place}: needs a column for each of the parameters {list(needed)}, got none for {lacking}. "
            f"Columns are {list(table.columns)}: name them with columns={{'theirs': {lacking[0]!r}}}"
        )
    missing = tuple(name for name in problem.task_names if name not in found)
    if len(missing) == len(problem.task_names):
        raise InvalidTable(
            f"{table.place}: needs a column for one of the tasks {list(problem.task_names)} at least, got none. "
            f"Columns are {list(table.columns)}: name them with columns={{'theirs': {missing[0]!r}}}"
        )
    x = _points(table, problem.space, needed, found)
    inside = _allowed(problem.space, needed, x)
    if not any(inside):
        ranges = ", ".join(
            f"{p.name} in [{p.lower:g}, {p.upper:g}]{f' {p.unit}' if p.unit else ''}"
            for p in problem.space.parameters
            if p.name in needed
        )
        raise InvalidTable(
            f"{table.place}: some rows must lie in the space, {ranges}, got none of {len(table)}. Check the units"
        )
    points, outcomes, rows, empty = [], [], [], 0
    for row, point in enumerate(x):
        outcome = _outcome(table, problem, found, row)
        if outcome is None:
            empty += 1
        elif inside[row]:
            points.append(point)
            outcomes.append(outcome)
            rows.append(row + 1)
    outside = sum(not here for here in inside)
    return Known(tuple(points), tuple(outcomes), outside, empty, missing, tuple(rows))


def answers(problem: Problem, source: Source) -> list[tuple[int, Outcome, Mapping[str, Any]]]:
    """What came back for trials: a table with their numbers and a column for each task, some cells of which are empty.

    Args:
        problem: gives the names of the tasks.
        source: see `read`; a column "number" says which trials are meant. Rows without any value are left out.

    Returns:
        Number, outcome and all cells of each row.

    Raises:
        InvalidTable: columns or cells that make no sense, a number that occurs twice.
    """
    table = read(source)
    found = _matched(table, problem, {})
    if lacking := [name for name in ("number", *problem.task_names) if name not in (*table.columns, *found)]:
        raise InvalidTable(
            f"{table.place}: needs the columns 'number' and {list(problem.task_names)}, got none for {lacking}. "
            f"Columns are {list(table.columns)}"
        )
    rows: dict[int, tuple[int, Outcome, Mapping[str, Any]]] = {}
    for row, cell in enumerate(table.columns["number"]):
        where = _place(table, row, "number")
        value, _ = parse_cell(cell, where)
        if value is None or not value.is_integer() or int(value) in rows:
            raise InvalidTable(f"{where}: must be the number of a trial, once each, got {cell!r}. Correct it")
        outcome = _outcome(table, problem, found, row)
        if outcome is not None:
            rows[int(value)] = int(value), outcome, {name: cells[row] for name, cells in table.columns.items()}
    return list(rows.values())


def _matched(table: Table, problem: Problem, columns: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the header of its column."""
    tasks = problem.task_names
    ours = {*problem.space.names, *tasks, *(f"{t}{s}" for t in tasks for s in (*_ERRORS, _BOUND))}
    short = {header: re.sub(r"\s*\[[^][]*\]$", "", header) for header in table.columns}
    found: dict[str, str] = {}

    def take(our: str, header: str) -> None:
        if found.setdefault(our, header) != header:
            raise InvalidTable(
                f"{table.place}: {our!r} must be one column, got {[found[our], header]}. Choose with columns={{...}}"
            )

    renamed = set()
    for theirs, our in columns.items():
        header = theirs if theirs in short else next((h for h, name in short.items() if name == theirs), None)
        if header is None:
            raise InvalidTable(
                f"{table.place}: columns must name a column of the table, got {theirs!r}. "
                f"Columns are {list(table.columns)}"
            )
        if our not in ours:
            raise InvalidTable(
                f"{table.place}: column {theirs!r} must be called as a parameter {list(problem.space.names)} or a task "
                f"{list(tasks)}, got {our!r}. For standard errors add '_err' to the task"
            )
        take(our, header)
        renamed.add(header)
        for suffix in (*_ERRORS, _BOUND):
            if our in tasks and (beside := header + suffix) in table.columns and beside not in columns:
                take(our + suffix, beside)
                renamed.add(beside)
    for header, name in short.items():
        if header not in renamed:
            for our in {header, name} & (ours - set(columns.values())):
                take(our, header)
    for task in tasks:
        if all(f"{task}{s}" in found for s in _ERRORS):
            raise InvalidTable(f"{table.place}: {task!r} must have one standard error, got columns {_ERRORS}. Drop one")
    units = {p.name: p.unit for p in problem.space.parameters} | {t.name: t.unit for t in problem.tasks}
    for our, header in found.items():
        mine, theirs = units.get(our, ""), table.units.get(header, "")
        if mine and theirs and not same_unit(mine, theirs):
            raise InvalidTable(
                f"{table.place}: column {header!r} must be in the unit of {our!r}, {mine}, got {theirs}. Convert it"
            )
    return found


def same_unit(mine: str, theirs: str) -> bool:
    """HEPData writes units in capitals: GEV is GeV."""
    mine, theirs = mine.strip(), theirs.strip()
    return mine == theirs or mine.upper() == theirs or theirs.upper() == mine


def _points(
    table: Table, space: ParameterSpace, needed: Sequence[str], found: Mapping[str, str]
) -> list[dict[str, float]]:
    middle = space.point(space.from_unit(torch.full((space.dim,), 0.5, dtype=torch.float64)))
    points = [dict(middle) for _ in range(len(table))]
    for name in needed:
        for row, cell in enumerate(table.columns[found[name]]):
            value, side = parse_cell(cell, _place(table, row, found[name]))
            if value is None or side or not math.isfinite(value):
                raise InvalidTable(
                    f"{_place(table, row, found[name])}: a parameter must be a finite number, got {cell!r}. Correct it"
                )
            points[row][name] = value
    return points


def _allowed(space: ParameterSpace, needed: Sequence[str], points: Sequence[Mapping[str, float]]) -> list[bool]:
    """Whether points lie in the space, as far as these parameters tell."""
    if set(needed) < set(space.names):
        constraints = tuple(
            c for c in space.constraints if isinstance(c.expression, str) and c.names - {"pi"} <= set(needed)
        )
        space = ParameterSpace(tuple(p for p in space.parameters if p.name in needed), constraints)
    return list(map(bool, space.allowed(space.tensor([{name: p[name] for name in space.names} for p in points]))))


def _outcome(table: Table, problem: Problem, found: Mapping[str, str], row: int) -> Outcome | None:
    """What a row says; None if it has no value."""
    values: dict[str, float | None] = {}
    variances: dict[str, float] = {}
    bounds: dict[str, Literal["above", "below"]] = {}
    for task in problem.task_names:
        values[task] = None
        if task not in found:
            continue
        value, side = parse_cell(table.columns[found[task]][row], _place(table, row, found[task]))
        values[task] = value
        if value is None:
            continue
        if (beside := found.get(task + _BOUND)) is not None:
            side = _side(table, row, beside) or side
        if side:
            bounds[task] = side
        for suffix in _ERRORS:
            if (beside := found.get(task + suffix)) is not None:
                error, _ = parse_cell(cell := table.columns[beside][row], where := _place(table, row, beside))
                if error is not None and not 0 <= error < _LARGEST_ERROR:
                    raise InvalidTable(
                        f"{where}: a standard error must be at least 0, got {cell!r:.80}. Correct it (below 1e150)"
                    )
                if error is not None:
                    variances[task] = error**2
    if all(value is None for value in values.values()):
        return None
    try:
        return problem.check(Outcome.of(values, variances=variances, bounds=bounds))
    except InvalidOutcome as error:
        raise InvalidTable(f"{table.place}, row {row + 1}: {error}") from error


def _side(table: Table, row: int, header: str) -> Literal["above", "below"] | None:
    cell = table.columns[header][row]
    text = "" if cell is None else str(cell).strip().lower()
    if text in ("above", "below"):
        return text  # type: ignore[return-value]
    if text in _EMPTY:
        return None
    raise InvalidTable(f"{_place(table, row, header)}: a bound must be 'above', 'below' or empty, got {cell!r}")


def _place(table: Table, row: int, header: str) -> str:
    return f"{table.place}, row {row + 1}, column {header!r}"


def parse_cell(cell: Any, where: str) -> tuple[float | None, Literal["above", "below"] | None]:
    """The number in a cell and, where it is a bound, on which side of it the truth lies.

    Empty, "-" and NaN mean that there is no value; ">10" and "inf" lie above, "<0.1" and "-inf" below.

    Raises:
        InvalidTable: something else.
    """
    side: Literal["above", "below"] | None = None
    text = cell
    try:
        if isinstance(cell, bool):
            raise ValueError
        if cell is None:
            return None, None
        if isinstance(cell, str):
            text = cell.strip()
            if text.lower() in _EMPTY:
                return None, None
            if text[0] in "<>":
                side = "above" if text[0] == ">" else "below"
                text = text[1:].removeprefix("=")
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        raise InvalidTable(
            f"{where}: must be a number, '>number', '<number' or empty, got {cell!r:.200}. Correct it"
        ) from None
    if math.isnan(value):
        if side:
            raise InvalidTable(f"{where}: a bound must be a number, got {cell!r}. Correct it")
        return None, None
    if math.isinf(value):
        side = side or ("above" if value > 0 else "below")
    return value, side


# ---------------------------------------------------------------------------------------------------- reading


def read(source: Source) -> Table:
    """A table from whatever holds it.

    Args:
        source: path of a CSV file with a header, of JSON (a list of objects, or an object of columns) or of a HEPData
            data file (YAML or JSON); a list of dicts; or a dict of columns.

    Raises:
        InvalidTable: it cannot be read, or is none of these.
    """
    if not isinstance(source, str | os.PathLike):
        return _table("table", source)
    file = Path(source)
    text = read_text(file, InvalidTable, "utf-8-sig")
    place = f"table {file}"
    if text.lstrip()[:1] in ("[", "{"):
        return _table(place, _json(file, text))
    if file.suffix.lower() in (".yaml", ".yml") or re.search(r"^(in)?dependent_variables\s*:", text, re.MULTILINE):
        try:
            data = yaml_value(text)
        except ValueError as error:
            raise InvalidTable(f"{place}: must be YAML, got a problem: {error}. Correct it") from None
        return _table(place, data)
    return _table(place, _csv(file, text))


def _table(place: str, data: Any) -> Table:
    """The table that plain data are."""
    if isinstance(data, Mapping) and "dependent_variables" in data:
        return _hepdata(place, data)
    if isinstance(data, Mapping):
        columns = {str(name): cells for name, cells in data.items()}
        for name, cells in columns.items():
            if isinstance(cells, str | Mapping) or not hasattr(cells, "__len__") or not hasattr(cells, "__iter__"):
                raise InvalidTable(f"{place}: column {name!r} must be a list, got {str(cells)[:80]}. {_FORMS}")
        return _named(place, {name: list(cells) for name, cells in columns.items()})
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        names: dict[str, None] = {}
        for i, row in enumerate(data, 1):
            if not isinstance(row, Mapping):
                raise InvalidTable(f"{place}, row {i}: must be a record (a dict), got {str(row)[:80]}. {_FORMS}")
            names |= dict.fromkeys(str(name) for name in row)
        rows = [{str(name): cell for name, cell in row.items()} for row in data]
        # What a record leaves out is empty.
        return _named(place, {name: [row.get(name) for row in rows] for name in names})
    raise InvalidTable(f"{place}: must be records or columns, got {type(data).__name__}. {_FORMS}")


_FORMS = "Give a path, a list of dicts or a dict of lists (a DataFrame's to_dict('list'))"


def _named(place: str, columns: Mapping[str, Sequence[Any]]) -> Table:
    """The table of columns whose headers may hold a unit: "m [GeV]"."""
    units = {name: match[1] for name in columns if (match := re.search(r"\[([^][]*)\]$", name))}
    return Table(place, columns, units)


def _hepdata(place: str, data: Mapping[str, Any]) -> Table:
    """A HEPData data file: independent and dependent variables with headers, units, values and errors.

    The point of a bin is its centre. Errors are added in quadrature; of an asymmetric one the mean counts.
    A name that occurs again gets " #2".

    References:
        https://hepdata-submission.readthedocs.io/en/latest/data_yaml.html
    """
    columns: dict[str, list[Any]] = {}
    units: dict[str, str] = {}
    for kind in ("independent_variables", "dependent_variables"):
        variables = data.get(kind)
        if not isinstance(variables, list):
            raise InvalidTable(f"{place}: {kind} must be a list, got {str(variables)[:80]}. See hepdata.net")
        for variable in variables:
            header, values = (variable.get(k) if isinstance(variable, Mapping) else None for k in ("header", "values"))
            if not isinstance(header, Mapping) or not header.get("name") or not isinstance(values, list):
                raise InvalidTable(
                    f"{place}: each of the {kind} needs a header with a name, and values, got {str(variable)[:80]}. "
                    "See hepdata.net"
                )
            if not all(isinstance(v, Mapping) for v in values):
                raise InvalidTable(f"{place}, column {header['name']!r}: values must be mappings, got {values!r:.80}")
            name = str(header["name"])
            count = 2
            while name in columns:
                name, count = f"{header['name']} #{count}", count + 1
            columns[name] = [_value(v, f"{place}, row {i}, column {name!r}") for i, v in enumerate(values, 1)]
            if header.get("units"):
                units[name] = str(header["units"])
            if any(v.get("errors") for v in values):
                columns[f"{name}_err"] = [
                    _error(v, cell, f"{place}, row {i}, column {name!r}")
                    for i, (v, cell) in enumerate(zip(values, columns[name]), 1)
                ]
    return Table(place, columns, units)


def _value(value: Mapping[str, Any], where: str) -> Any:
    if value.get("value") is None and {"low", "high"} <= set(value):
        low, high = (parse_cell(value[end], where)[0] for end in ("low", "high"))
        return None if low is None or high is None else (low + high) / 2
    return value.get("value")


def _error(value: Mapping[str, Any], cell: Any, where: str) -> float | None:
    """All errors of a value, in quadrature."""
    found = []
    errors = value.get("errors") or ()
    if not isinstance(errors, list | tuple):
        raise InvalidTable(f"{where}: errors must be a list, got {errors!r:.80}. See hepdata.net")
    for error in errors:
        given = error.get("symerror", error.get("asymerror")) if isinstance(error, Mapping) else None
        sides = list(given.values()) if isinstance(given, Mapping) else [given]
        try:
            numbers = [
                float(side.strip().removesuffix("%")) / 100 * abs(float(cell))
                if isinstance(side, str) and side.strip().endswith("%")
                else 0.0
                if side is None or side == ""
                else float(side)
                for side in sides
            ]
            if not numbers or not isinstance(error, Mapping):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise InvalidTable(f"{where}: errors must be numbers, got {error!r:.80}. Correct them") from None
        if not isinstance(given, Mapping) and numbers[0] < 0:
            raise InvalidTable(f"{where}: a symmetric error must be at least 0, got {given!r}. Correct it")
        found.append(sum(map(abs, numbers)) / len(numbers))
    return math.hypot(*found) if found else None


def read_table(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a CSV file with a header (comma, semicolon or tab; lines that begin with # are left out), or of JSON.

    Raises:
        InvalidTable: it cannot be read, or is neither.
    """
    file = Path(path)
    text = read_text(file, InvalidTable, "utf-8-sig")
    if text.lstrip()[:1] in ("[", "{"):
        rows = _json(file, text)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidTable(f"{file}: must be a list of objects, got {str(rows)[:80]}. Write [{{...}}, {{...}}]")
        return rows
    return _csv(file, text)


def _json(file: Path, text: str) -> Any:
    try:
        return json_value(text)
    except ValueError as error:
        raise InvalidTable(f"{file}: must be JSON, got {error}. Write a list of objects") from None


def _csv(file: Path, text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise InvalidTable(f"{file}: must have a header and rows, got an empty file. Check the path")
    delimiter = max(",;\t", key=lines[0].count)
    try:
        header, *body = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    except csv.Error as error:
        raise InvalidTable(f"{file}: must be a table of short cells, got {error}. Close the quotes") from None
    header = [name.strip() for name in header]
    for i, cells in enumerate(body, 1):
        if len(cells) != len(header):
            raise InvalidTable(
                f"{file}, row {i}: must have one cell for each of the {len(header)} columns, got {len(cells)}. "
                "Put text with commas in quotes"
            )
    if len(set(header)) < len(header):
        raise InvalidTable(f"{file}: columns must have different names, got {header}. Rename one")
    return [dict(zip(header, cells)) for cells in body]
