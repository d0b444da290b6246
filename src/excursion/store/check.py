"""What must not be in the tables of a campaign, and its repair. Everything here is one transaction of `SqlStore`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ..data import PENDING, Outcome, Trial
from ..errors import ExcursionError
from .base import DAMAGE, Event, Fault, Kind, ended_leases, events_of, listed, outcome_json, outcome_of, to_queue
from .tables import CAMPAIGN, EVENT, TRIAL, from_row, readable, require_types

_NOTE = "written by a repair"


def check(c: sa.Connection, name: str, now: Any, repair: bool, lite: bool) -> list[Fault]:
    """See `Store.check`.

    Args:
        c: in a transaction, a writing one for a repair, with the campaign locked.
        name: of the campaign.
        now: the time by the clock of the leases.
        repair: whether to repair.
        lite: whether the database is SQLite.
    """
    faults = [*(_file(c, repair) if lite else []), *_indices(c, repair), *_campaign(c, name)]
    damaged = _rows(c, name, repair)
    faults += damaged
    faults += _numbers(c, name)
    faults += _places(c, name, repair)
    unreadable = {number for fault in damaged for number in fault.trials}
    faults += _states(c, name, unreadable, repair)
    faults += _log(c, name, repair)
    faults += _leases(c, name, now, unreadable, repair)
    return faults


def _file(c: sa.Connection, repair: bool) -> list[Fault]:
    """The pages of an SQLite file."""
    found = [str(row[0]) for row in c.exec_driver_sql("PRAGMA integrity_check(20)")]
    if found == ["ok"]:
        return []
    text = f"SQLite finds {listed(found, 3)}"
    # What the rows say is there; only the indices over them are wrong.
    if all("index" in line or "entries" in line for line in found):
        if repair:
            c.exec_driver_sql("REINDEX")
        return [Fault("file", text, repair="the indices are built anew")]
    return [Fault("file", f"{text}. Copy the file; restore a backup, or try the command .recover of sqlite3")]


def _indices(c: sa.Connection, repair: bool) -> list[Fault]:
    """Indices that a copy of the tables by other programs may have lost."""
    faults = []
    for table in (TRIAL, EVENT):
        there = {index["name"] for index in sa.inspect(c).get_indexes(table.name)}
        for index in sorted(table.indexes, key=lambda i: str(i.name)):
            if index.name not in there:
                if repair:
                    index.create(c)
                faults.append(Fault("index", f"the index {index.name} is not there: all is slow", repair="it is made"))
    unique = {tuple(map(str, u["column_names"])) for u in sa.inspect(c).get_unique_constraints(TRIAL.name)}
    unique |= {tuple(map(str, i["column_names"])) for i in sa.inspect(c).get_indexes(TRIAL.name) if i["unique"]}
    if ("campaign", "told") not in unique:
        if repair:
            c.exec_driver_sql("CREATE UNIQUE INDEX trial_told ON trial (campaign, told)")
        text = "nothing keeps two trials from the same place in the order of completion"
        faults.append(Fault("index", text, repair="a unique index is made"))
    return faults


def _campaign(c: sa.Connection, name: str) -> list[Fault]:
    text = c.scalar(sa.select(CAMPAIGN.c.spec).where(CAMPAIGN.c.name == name))
    try:
        json.loads(text or "")
    except (ValueError, TypeError) as error:
        return [Fault("campaign", f"its description is not JSON ({error}). Restore it from the YAML file or a backup")]
    return []


def _rows(c: sa.Connection, name: str, repair: bool) -> list[Fault]:
    """Rows that cannot be read."""
    t, faults = TRIAL.c, []
    for row in c.execute(sa.select(TRIAL).where(t.campaign == name).order_by(t.number)):
        for column in ("x", "predicted", "belief", "outcome"):
            text = getattr(row, column)
            wrong = _unreadable(column, text)
            if not wrong:
                continue
            what = f"trial {row.number}: its {column} cannot be read ({wrong})"
            if column == "x":
                faults.append(Fault("row", f"{what}: the point is lost. Restore a backup", (row.number,)))
                continue
            if column == "outcome":
                new = outcome_json("repair", Outcome.failed("its outcome was damaged in the store", damaged=str(text)))
                values, done = {"outcome": new, "state": "failed"}, "it is failed, the damaged text is in its info"
            else:
                values, done = {column: "{}"}, f"its {column} is emptied"
            if repair:
                c.execute(TRIAL.update().where(t.campaign == name, t.number == row.number).values(**values))
            faults.append(Fault("row", what, (row.number,), done))
        try:
            require_types(row)
        except TypeError as error:
            faults.append(
                Fault("row", f"trial {row.number}: cannot be read ({error}). Restore a backup", (row.number,))
            )
    return faults


def _unreadable(column: str, text: str | None) -> str:
    try:
        if column == "outcome":
            outcome_of(text)
        else:
            readable(column, text or "")
    except (*DAMAGE, ExcursionError) as error:
        return str(error)[:200]
    return ""


def _numbers(c: sa.Connection, name: str) -> list[Fault]:
    t = TRIAL.c
    numbers = list(c.scalars(sa.select(t.number).where(t.campaign == name).order_by(t.number)))
    if not numbers or len(numbers) == numbers[-1] + 1:
        return []
    lost = sorted(set(range(numbers[-1])) - set(numbers))
    return [Fault("gap", f"{len(lost)} trials are not there: {listed(lost)}. Restore a backup", tuple(lost))]


def _places(c: sa.Connection, name: str, repair: bool) -> list[Fault]:
    """The order of completion must be 0, 1, 2, ..."""
    t = TRIAL.c
    done = t.campaign == name, t.told.is_not(None)
    rows = c.execute(sa.select(t.number, t.told).where(*done).order_by(t.told)).all()
    moved = [(row.number, place) for place, row in enumerate(rows) if row.told != place]
    if moved and repair:
        for number, place in moved:  # in their order: each moves to a place that is free by now
            c.execute(TRIAL.update().where(t.campaign == name, t.number == number).values(told=place))
    numbers = tuple(number for number, _ in moved)
    text = f"the order of completion has gaps before {len(moved)} trials"
    return [Fault("order", text, numbers, "they move up; their order stays")] if moved else []


def _states(c: sa.Connection, name: str, unreadable: set[int], repair: bool) -> list[Fault]:
    """A finished trial has the state that its outcome says."""
    t = TRIAL.c
    rows = c.execute(sa.select(t.number, t.state, t.outcome).where(t.campaign == name, t.outcome.is_not(None))).all()
    faults = []
    for row in rows:
        if row.number in unreadable:
            continue
        outcome = outcome_of(row.outcome)
        if outcome is not None and outcome.state != row.state:
            if repair:
                c.execute(TRIAL.update().where(t.campaign == name, t.number == row.number).values(state=outcome.state))
            text = f"trial {row.number}: its state is {row.state!r}, its outcome {outcome.state!r}"
            faults.append(Fault("state", text, (row.number,), f"it is {outcome.state}"))
    return faults


def _log(c: sa.Connection, name: str, repair: bool) -> list[Fault]:
    """Every trial has a line that it was asked, and every finished one that it was told."""
    t, e = TRIAL.c, EVENT.c
    faults = []
    lines: tuple[tuple[tuple[Kind, ...], Any, str], ...] = (
        (("ask", "retry"), sa.true(), "asked"),
        (("tell",), t.told.is_not(None), "told"),
    )
    for kinds, which, what in lines:
        line = sa.exists().where(e.campaign == name, e.number == t.number, e.kind.in_(kinds))
        silent = sa.select(TRIAL).where(t.campaign == name, which, ~line).order_by(t.number)
        rows = c.execute(silent).all()
        if not rows:
            continue
        if repair:
            trials = [Trial(row.number, {}, 0, 0, seed=row.seed, owner=row.owner) for row in rows]
            when = [row.asked if what == "asked" else row.finished for row in rows]
            _write(c, name, events_of(kinds[0], trials, note=_NOTE), when)
        text = f"the log does not say when {len(rows)} trials were {what}"
        faults.append(Fault("log", text, tuple(row.number for row in rows), "the lines are added from the trials"))
    return faults


def _leases(c: sa.Connection, name: str, now: Any, unreadable: set[int], repair: bool) -> list[Fault]:
    t = TRIAL.c
    running = sa.select(TRIAL).where(t.campaign == name, t.state == "running", t.expires < now).order_by(t.number)
    over = [from_row(row) for row in c.execute(running).all() if row.number not in unreadable or repair]
    if repair and over:
        _write(c, name, events_of("expire", over))
        for trial in over:
            new = to_queue(trial)
            values = {k: getattr(new, k) for k in ("state", "started", "owner", "expires", "approval")}
            mine = (t.campaign == name, t.number == trial.number, t.state.in_(PENDING))
            c.execute(TRIAL.update().where(*mine).values(**values))
    return [fault] if (fault := ended_leases(over)) else []


def _write(c: sa.Connection, name: str, events: Sequence[Event], when: Sequence[float | None] = ()) -> None:
    lines = [{"campaign": name, **vars(event)} for event in events]
    for line, time in zip(lines, when):
        line["time"] = line["time"] if time is None else time
    c.execute(EVENT.insert(), lines)
