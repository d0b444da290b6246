"""What comes back from people: rows of result files become outcomes, each of which is told entirely or not at all.

The same rows in any order, in any number of files, told any number of times give the same campaign.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from ..campaign import Campaign, check_bounds
from ..data import Outcome, Trial
from ..errors import InvalidOutcome, InvalidTable, TrialFinished
from ..known import parse_cell, same_unit
from ..problem import Problem
from ..space import Parameter
from .reading import Formula, Refusal, Row, Rows, expand, read_rows
from .request import Column, columns, key, one_line
from .writing import ERRORS_FROM

__all__ = ["Answer", "Import", "answer", "import_results", "number", "same_parameter", "tell"]

#: Words for the status of a row, in lower case.
_DONE = ("done", "complete", "completed", "finished", "ok", "success")
_FAILED = ("failed", "fail", "error")
_REJECTED = ("rejected", "reject", "impossible", "invalid")
_WAITING = ("running", "submitted", "pending", "queued", "waiting", "in progress", "approved", "proposed", "todo")
#: Cells that say "there is no value", rather than nothing.
_MISSING = ("-", "--", "nan", ".nan", "na", "n/a", "none", "null", "missing")
#: A parameter may differ by this part of its range, if its digits were rounded so.
_ROUNDED = 0.01
_COMMENT = 1000
#: How the store begins the reason of a rejected request.
_REJECTION = "rejected: "
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[-+]?\.?inf(inity)?", re.ASCII | re.IGNORECASE)
_COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """What a row says about a request.

    Attributes:
        row: where it stands.
        number: of the trial.
        outcome: None if nothing is known yet.
    """

    row: Row
    number: int
    outcome: Outcome | None


@dataclass(frozen=True)
class Import:
    """What became of the rows of some files.

    Attributes:
        told: numbers of the trials that are finished now.
        known: numbers of trials that had been told the same before, or again.
        waiting: numbers of trials about which the rows say nothing yet.
        refused: rows and files that were not told, with reasons.
        notes: how files were understood where that is not clear.
    """

    told: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people: counts, then one line for each thing that was refused."""
        counts = [("told", len(self.told)), ("already known", len(self.known)), ("not yet", len(self.waiting))]
        said = ", ".join(f"{count} {what}" for what, count in [*counts, ("refused", len(self.refused))])
        # Files may hold anything, also what moves the cursor of a terminal.
        return [said, *(one_line(f"note: {n}") for n in self.notes), *(one_line(f"refused: {r}") for r in self.refused)]


def import_results(campaign: Campaign, paths: Iterable[str | os.PathLike[str]], who: str | None = None) -> Import:
    """Tell what files hold: CSV, spreadsheets, YAML, JSON and SLHA, and folders of them.

    A row that cannot be understood, or that contradicts what was asked or told, is refused; the others are told.

    Args:
        campaign: that asked.
        paths: files and folders.
        who: tells it, for the log.

    Raises:
        InvalidTable: a path that is not there.
        StoreError: the store refuses to work; what was told stays told, and importing again goes on.
    """
    known = [header for column in columns(campaign.problem) for header in _headers(column)] + ["number"]
    return tell(campaign, [read_rows(path, known) for path in expand(paths)], who)


def tell(campaign: Campaign, found: Sequence[Rows], who: str | None = None) -> Import:
    """Tell what rows hold; see `import_results`."""
    trials = campaign.trials
    answers: list[Answer] = []
    refused: list[Refusal] = []
    notes: list[str] = []
    for rows in found:
        refused += rows.refused
        notes += [f"{rows.file}: {note}" for note in rows.notes]
        try:
            matched, unknown = _matched(rows, campaign.problem)
        except InvalidTable as error:
            refused.append(Refusal(rows.file, None, "", str(error)))
            refused += [Refusal(r.file, r.number, _id(r), "its file cannot be used") for r in rows.rows]
            continue
        if unknown:
            notes.append(f"{rows.file}: not read: columns {[str(h)[:80] for h in unknown[:20]]}")
        for row in rows.rows:
            try:
                answers.append(answer(campaign, trials, matched, row))
            except (InvalidTable, InvalidOutcome) as error:
                refused.append(Refusal(row.file, row.number, _id(row), str(error)))
    told, same, waiting = [], [], []
    first = campaign.problem.space.names[0]
    near: dict[float, list[Trial]] = {}  # who is at the same place has the same first parameter
    for trial in trials:
        near.setdefault(trial.x[first], []).append(trial)
    groups: dict[int, list[Answer]] = {}
    for one in answers:
        if one.outcome is None:
            waiting.append(one.number)
        else:
            groups.setdefault(one.number, []).append(one)
    for trial_number, group in sorted(groups.items()):
        outcome = group[0].outcome
        assert outcome is not None
        other = next((a.outcome for a in group if a.outcome and not _same(a.outcome, outcome)), None)
        if other is not None:
            reason = (
                f"rows must agree, got {_shown(outcome)} and {_shown(other)} for the same request. Remove the wrong"
            )
            refused += [Refusal(a.row.file, a.row.number, _id(a.row), reason) for a in group]
            continue
        try:
            if trials[trial_number].pending:
                beside = near[trials[trial_number].x[first]]
                _finish(campaign, beside, trials[trial_number], outcome, who)
                beside.append(replace(trials[trial_number], outcome=outcome))  # rows must agree with each other, too
                told.append(trial_number)
                same += [trial_number] * (len(group) - 1)
                continue
        except InvalidOutcome as error:
            refused += [Refusal(a.row.file, a.row.number, _id(a.row), str(error)) for a in group]
            continue
        except TrialFinished:  # somebody else told it a moment ago
            trials = campaign.trials
        before = trials[trial_number].outcome
        if before is not None and _same(before, outcome):
            same += [trial_number] * len(group)
            continue
        reason = (
            f"a finished trial cannot change, got {_shown(outcome)} where {_shown(before)} was told. Ask for a new "
            "trial to evaluate the point again"
        )
        refused += [Refusal(a.row.file, a.row.number, _id(a.row), reason) for a in group]
    order = {rows.file: i for i, rows in enumerate(found)}
    refused.sort(key=lambda r: (order[r.file], r.row or 0))
    return Import(tuple(told), tuple(same), tuple(waiting), tuple(refused), tuple(notes))


def _finish(campaign: Campaign, beside: Sequence[Trial], trial: Trial, outcome: Outcome, who: str | None) -> None:
    """Tell the outcome of a trial, if it agrees with what is known at its place.

    Raises:
        InvalidOutcome: it does not.
        TrialFinished: somebody else has told it.
    """
    if outcome.permanent and outcome.error is not None:
        note = outcome.error.removeprefix(_REJECTION)
        campaign.store.review(campaign.name, trial.number, "rejected", note=note, owner=who)
    else:
        if outcome.error is None:
            check_bounds(campaign.problem, beside, trial, campaign.problem.check(outcome))
        campaign.store.finish(campaign.name, trial.number, outcome, owner=who)


def _same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes say the same; the reasons of two failures of the same kind may differ."""
    if one.error is not None or other.error is not None:
        return (one.error is None) == (other.error is None) and one.permanent == other.permanent
    parts = [(o.values, o.variances, o.bounds) for o in (one, other)]
    return parts[0] == parts[1]


def _shown(outcome: Outcome | None) -> str:
    if outcome is None:
        return "nothing"
    if outcome.error is not None:
        return f"{outcome.state} ({outcome.error[:80]})"
    said = []
    for task, value in outcome.values.items():
        side = {"above": ">", "below": "<"}.get(outcome.bounds.get(task, ""), "")
        error = f" +- {math.sqrt(outcome.variances[task])!r}" if task in outcome.variances else ""
        said.append(f"{task} = {side}{value!r}{error}")
    return ", ".join([*said, *(f"{task} missing" for task in outcome.missing)])


def _id(row: Row) -> str:
    return next(
        (str(row.cells[name]).strip()[:80] for name in ("#request", "request", "number") if row.cells.get(name)), ""
    )


# ------------------------------------------------------------------------------------------------------ columns


def _headers(column: Column) -> tuple[str, ...]:
    """The headers by which a column is known, best first."""
    plain = one_line(column.name)
    match column.role:
        case "parameter" | "value":
            return (column.header, plain)
        case "error":
            return (column.header, *([f"{plain}_sd"] if column.header == f"{plain}_err" else []))
        case _:
            return (column.header,)


def _matched(rows: Rows, problem: Problem) -> tuple[dict[str, Column], list[str]]:
    """Header -> our column, and the headers that mean nothing.

    Raises:
        InvalidTable: columns are missing, meant by two headers, or in another unit.
    """
    ours = columns(problem)
    by_header: dict[str, Column] = {}
    for rank in range(2):
        for own in ours:
            names = _headers(own)
            if len(names) > rank:
                by_header.setdefault(names[rank], own)
    for i, task in enumerate(problem.task_names, 1):  # as SLHA files call them
        for name, role in ((f"#{i}", "value"), (f"#{ERRORS_FROM + i}", "error")):
            there = next((c for c in ours if c.name == task and c.role == role), None)
            if there is not None:
                by_header.setdefault(name, there)
    for other in ours:  # ... and what is no parameter
        if other.role in ("request", "status", "comment"):
            by_header.setdefault(f"#{other.role}", other)
    by_header.setdefault("number", Column("number", "request", "number"))
    plain = {h.lower(): c for h, c in reversed(by_header.items()) if c.role not in ("parameter", "value", "error")}
    found: dict[str, Column] = {}
    unknown: list[str] = []
    for header in rows.headers:
        bare = re.match(r"(.*\S)\s*\[([^][]*)\]$", header)
        column: Column | None = by_header.get(header) or plain.get(header.lower())
        if column is None and bare is not None:
            column = by_header.get(bare[1])
            if column is not None and column.unit and not same_unit(column.unit, bare[2]):
                raise InvalidTable(
                    f"column {header!r} must be in {column.unit}, got {bare[2]}. Convert it, and rename the column"
                )
        if column is None:
            unknown.append(header)
            continue
        if (twice := next((h for h, c in found.items() if c == column), None)) is not None:
            raise InvalidTable(f"{column.header!r} must be one column, got {twice!r} and {header!r}. Remove one")
        found[header] = column
    roles = {c.role for c in found.values()}
    if rows.rows and ("request" not in roles or not roles & {"value", "status"}):
        need = [c.header for c in ours if c.role in ("request", "value", "status")]
        raise InvalidTable(f"needs columns of {need}, got {list(rows.headers)[:20]}. Keep those of the request")
    return found, [h for h in unknown if h]


# -------------------------------------------------------------------------------------------------------- cells


def answer(campaign: Campaign, trials: Sequence[Trial], matched: Mapping[str, Column], row: Row) -> Answer:
    """What a row says.

    Args:
        campaign: that asked.
        trials: its history.
        matched: header -> column.
        row: its cells.

    Raises:
        InvalidTable, InvalidOutcome: it makes no sense, or does not fit what was asked.
    """
    cells = {column: row.cells[header] for header, column in matched.items() if row.cells.get(header) is not None}
    trial = _asked(campaign, trials, {c: v for c, v in cells.items() if c.role == "request"})
    written = [v for c, v in cells.items() if c.role in ("parameter", "value", "error")]
    commas = any(isinstance(v, str) and _clear_comma(v.strip().lstrip("<>=").strip()) for v in written)
    space = {p.name: p for p in campaign.problem.space.parameters}
    for column, value in cells.items():
        if column.role == "parameter" and _text(value):
            told, side = number(value, f"column {column.header!r}", commas, strict=False)
            if told is None or side or not same_parameter(space[column.name], told, trial.x[column.name], value):
                raise InvalidTable(
                    f"{column.name} must be what was asked for, {trial.x[column.name]!r}, got {_quoted(value)}. Is it "
                    "the row of another request?"
                )
        elif column.role == "fidelity" and _text(value) and one_line(_text(value)) != one_line(trial.fidelity):
            raise InvalidTable(f"the fidelity must be what was asked for, {trial.fidelity!r}, got {_quoted(value)}")
        elif column.role == "events" and _text(value):
            events, _ = number(value, f"column {column.header!r}", commas, strict=False)
            if events != trial.events:
                raise InvalidTable(f"the events must be what was asked for, {trial.events!r}, got {_quoted(value)}")
    return Answer(row, trial.number, _outcome(campaign.problem, cells, commas))


def _asked(campaign: Campaign, trials: Sequence[Trial], cells: Mapping[Column, Any]) -> Trial:
    """The trial that a row answers."""
    meant: set[int] = set()
    for column, value in cells.items():
        text = _text(value)
        if not text:
            continue
        name, hash_, digits = text.rpartition("#")
        if column.name == "number":  # as `excursion ask --csv` writes it
            name, hash_, digits = key(campaign.name), "#", text.removesuffix(".0")
        if not hash_ or not re.fullmatch(r"[0-9]{1,12}", digits):
            raise InvalidTable(f"must have the id of a request, got {_quoted(value)}. Copy it from the request")
        if " ".join(name.split()) != key(campaign.name):
            raise InvalidTable(
                f"must answer a request of this campaign, {key(campaign.name)!r}, got {_quoted(value)}. "
                "Import it into the other campaign"
            )
        meant.add(int(digits))
    if len(meant) != 1:
        raise InvalidTable(f"must say which request it answers, got {sorted(meant) or 'none'}. Copy the id")
    (found,) = meant
    if found >= len(trials):
        there = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise InvalidTable(f"must answer a request that was made, got number {found}. Requests are: {there}")
    return trials[found]


def _outcome(problem: Problem, cells: Mapping[Column, Any], commas: bool) -> Outcome | None:
    """What the columns of the results say; None if nothing yet."""
    by = {(column.role, column.name): (column.header, value) for column, value in cells.items()}
    status = _text(by.get(("status", ""), ("", ""))[1]).lower()
    comment = _clean(by.get(("comment", ""), ("", ""))[1])
    known: dict[str, float] = {}
    missing: list[str] = []
    variances: dict[str, float] = {}
    bounds: dict[str, Literal["above", "below"]] = {}
    empty: list[str] = []
    for task in problem.task_names:
        header, given = by.get(("value", task), (task, None))
        where = f"column {header!r}"
        text = _text(given)
        extra = {
            role: by[(role, task)] for role in ("error", "bound") if (role, task) in by and _text(by[(role, task)][1])
        }
        if not text or text.lower() in _MISSING:
            (missing if text else empty).append(task)
            if extra := {role: cell for role, cell in extra.items() if _text(cell[1]).lower() not in _MISSING}:
                raise InvalidTable(f"{where}: an error or a bound needs a value, got {_quoted(extra.popitem()[1][1])}")
            continue
        value, side = number(given, where, commas)
        assert value is not None
        known[task] = value
        if "bound" in extra:
            word = _text(extra["bound"][1]).lower()
            if word not in ("above", "below", *_MISSING) or (side and word in ("above", "below") and word != side):
                raise InvalidTable(
                    f"column {extra['bound'][0]!r}: must be 'above', 'below' or empty, got {word[:80]!r}"
                )
            side = side or (word if word in ("above", "below") else None)  # type: ignore[assignment]
        if side:
            bounds[task] = side
        if "error" in extra and _text(extra["error"][1]).lower() not in _MISSING:
            error, beyond = number(extra["error"][1], f"column {extra['error'][0]!r}", commas)
            if error is None or beyond or not 0 <= error < math.inf or math.isinf(error * error):
                raise InvalidTable(
                    f"column {extra['error'][0]!r}: a standard error must be a number of at least 0, got "
                    f"{_quoted(extra['error'][1])}. Correct it"
                )
            variances[task] = error * error
    if status in (*_FAILED, *_REJECTED):
        if known:
            raise InvalidTable(f"a row that {status!r} has no values, got {known}. Remove them, or write 'done'")
        if status in _REJECTED:
            return Outcome.failed(f"{_REJECTION}{comment or 'no reason given'}", permanent=True)
        return Outcome.failed(comment or "failed, no reason given")
    if status in _WAITING:
        if known:
            raise InvalidTable(
                f"a row that is {status!r} has no values yet, got {known}. Write 'done' if they are final"
            )
        return None
    if status and status not in _DONE:
        raise InvalidTable(
            f"the status must be done, failed, rejected, running or empty, got {status[:80]!r}. Write one of these"
        )
    if not known:
        if status or missing:
            raise InvalidTable("a row that is done must have a value, got none. Write 'failed' if there is none")
        return None
    if empty and not status:
        return None  # some values are still to come
    info = {"comment": comment} if comment else {}
    values: dict[str, float | None] = {**known, **dict.fromkeys([*missing, *empty])}
    ordered = {task: values[task] for task in problem.task_names}
    return problem.check(Outcome.of(ordered, variances=variances, bounds=bounds, info=info))


def _text(value: Any) -> str:
    """A cell as text without blanks around it."""
    return "" if value is None else str(value).replace("\u00a0", " ").replace("\u202f", " ").strip()


def _clean(value: Any) -> str:
    """A comment that every database takes."""
    text = "".join(c for c in one_line(_text(value)) if not "\ud800" <= c <= "\udfff")
    return text[:_COMMENT]


def _quoted(value: Any) -> str:
    return repr(str(value)[:80])


def _clear_comma(text: str) -> bool:
    """Whether the comma is that of decimals: not 1,234."""
    return bool(_COMMA.fullmatch(text)) and not _THOUSANDS.fullmatch(text)


def number(
    cell: Any, where: str, commas: bool = False, strict: bool = True
) -> tuple[float | None, Literal["above", "below"] | None]:
    """The number in a cell, and on which side of it the truth lies if it is a bound.

    "0,73" is .73; "1,234" is 1.234 only where another number of the row has such a comma, and then "1.234" is refused,
    for it may be either.

    Args:
        cell: text or a number.
        where: for messages.
        commas: whether the row writes decimals with a comma.
        strict: refuse "1.234" in such a row; it need not be where the number is known otherwise.

    Raises:
        InvalidTable: a date, a formula, a truth value, other text, a number that float64 cannot hold.
    """
    if isinstance(cell, datetime | date | clock | timedelta):
        raise InvalidTable(
            f"{where}: must be a number, got the date {cell}. Format the cell as a number, type it again"
        )
    if isinstance(cell, Formula):
        raise InvalidTable(f"{where}: must be a number, got the formula {_quoted(cell)}. Paste its value instead")
    if isinstance(cell, bool):
        raise InvalidTable(f"{where}: must be a number, got {cell}. Correct it")
    if isinstance(cell, int | float):
        if not abs(cell) <= sys.float_info.max:
            raise InvalidTable(f"{where}: must be a number below 1.8e308, got {_quoted(cell)}. Correct it")
        return float(cell), None
    text = _text(cell).replace("−", "-").replace("≥", ">").replace("≤", "<")
    mark = re.match(r"[<>]=?\s*", text)
    bare = text[mark.end() :] if mark else text
    if _COMMA.fullmatch(bare):
        if _THOUSANDS.fullmatch(bare) and not commas:
            raise InvalidTable(
                f"{where}: must be clear, got {_quoted(cell)}, which may be either. Write a decimal point"
            )
        bare = bare.replace(",", ".")
    elif commas and strict and _THOUSANDS.fullmatch(bare):
        raise InvalidTable(
            f"{where}: must be clear, got {_quoted(cell)} among decimal commas. Write it without the point"
        )
    if _INFINITE.fullmatch(bare) and not mark:
        return parse_cell(bare.replace(".", ""), where)
    if not _NUMBER.fullmatch(bare):
        raise InvalidTable(
            f"{where}: must be a number, '>number', '<number', '-' (missing) or empty, got {_quoted(cell)}. Correct it"
        )
    value = float(bare)
    if math.isinf(value):
        raise InvalidTable(
            f"{where}: must be a number below 1.8e308, got {_quoted(cell)}. Write 'inf' if it is infinite"
        )
    return value, ({">": "above", "<": "below"}[text[0]] if mark else None)  # type: ignore[return-value]


def same_parameter(parameter: Parameter, told: float, asked: float, written: Any) -> bool:
    """Whether a parameter is the one asked for, but for rounding to the digits that were written.

    Args:
        parameter: its range and scale.
        told: the value in a file.
        asked: the value of the request.
        written: the cell that `told` is from.
    """
    if told == asked:
        return True
    text = re.sub(r"^[<>=\s]+", "", _text(written)).replace("−", "-").replace(",", ".")
    try:
        half = 0.5 * 10.0 ** int(Decimal(text).as_tuple().exponent)
    except (InvalidOperation, OverflowError, ValueError):
        return False
    lower, upper, ends = parameter.lower, parameter.upper, (told, asked)
    if parameter.scale == "log":
        if min(ends) <= 0:
            return False
        lower, upper, ends = math.log(lower), math.log(upper), (math.log(told), math.log(asked))
    near = abs(ends[0] - ends[1]) <= _ROUNDED * (upper - lower)
    # Excel cuts numbers off after fifteen digits without rounding.
    return near and abs(told - asked) <= half * (1 + 1e-9) + 1e-14 * abs(asked)
