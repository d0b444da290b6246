"""The tables of a store, and how trials become rows."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from ..data import Trial
from ..errors import StoreError
from .base import DAMAGE, NAME_LENGTH, outcome_of

#: Version of the tables below. Stores of the versions in `NEW` are brought to it when they are opened.
SCHEMA = 4

TABLES = sa.MetaData()
META = sa.Table("excursion", TABLES, sa.Column("schema_version", sa.Integer, primary_key=True))
CAMPAIGN = sa.Table(
    "campaign",
    TABLES,
    sa.Column("name", sa.String(NAME_LENGTH), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)
TRIAL = sa.Table(
    "trial",
    TABLES,
    sa.Column("campaign", sa.String(NAME_LENGTH), sa.ForeignKey("campaign.name"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("x", sa.Text, nullable=False),
    sa.Column("basis", sa.Integer, nullable=False),
    sa.Column("after", sa.Integer, nullable=False),
    sa.Column("criterion", sa.Text, nullable=False),
    sa.Column("score", sa.Double),
    sa.Column("predicted", sa.Text, nullable=False),
    sa.Column("belief", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("told", sa.Integer),
    sa.Column("outcome", sa.Text),
    sa.Column("asked", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.Column("owner", sa.Text),
    sa.Column("fidelity", sa.Text, nullable=False, server_default=""),
    sa.Column("events", sa.BigInteger),
    sa.Column("expires", sa.Double),
    sa.Column("approval", sa.String(16), nullable=False, server_default=""),
    sa.UniqueConstraint("campaign", "told"),
    # A trial has an outcome and a place in the order of completion exactly when it is finished.
    sa.CheckConstraint("(state IN ('queued', 'running')) = (told IS NULL)"),
    sa.CheckConstraint("(told IS NULL) = (outcome IS NULL)"),
    sa.Index("trial_state", "campaign", "state", "number"),
)
EVENT = sa.Table(
    "event",
    TABLES,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("campaign", sa.String(NAME_LENGTH), sa.ForeignKey("campaign.name"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("version", sa.Text, nullable=False, server_default=""),
    sa.Column("seed", sa.BigInteger),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Index("event_trial", "campaign", "number"),
)
HOLD = sa.Table(
    "hold",
    TABLES,
    sa.Column("campaign", sa.String(NAME_LENGTH), sa.ForeignKey("campaign.name"), primary_key=True),
    sa.Column("what", sa.String(NAME_LENGTH), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)
#: Version of the tables -> what the next one has in addition; all columns have defaults.
NEW: dict[int, tuple[sa.Column | sa.Table | sa.Index, ...]] = {
    2: (TRIAL.c.fidelity, TRIAL.c.events),
    3: (TRIAL.c.expires, TRIAL.c.approval, EVENT.c.version, EVENT.c.seed, EVENT.c.note, HOLD, *EVENT.indexes),
}


def from_row(row: Any) -> Trial:
    """The trial in a row.

    Raises:
        StoreError: the row is damaged.
    """
    try:
        require_types(row)
        return _trial_of(row)
    except DAMAGE as error:
        raise StoreError(
            f"trial {row.number}: its row must hold JSON as excursion writes it, got {error}. "
            "The store is damaged: see excursion doctor --repair"
        ) from error


def _trial_of(row: Any) -> Trial:
    return Trial(
        number=row.number,
        x=readable("x", row.x),
        basis=row.basis,
        after=row.after,
        criterion=row.criterion,
        score=row.score,
        predicted=readable("predicted", row.predicted),
        belief=readable("belief", row.belief),
        state=row.state,
        told=row.told,
        outcome=outcome_of(row.outcome),
        seed=row.seed,
        asked=row.asked,
        started=row.started,
        finished=row.finished,
        owner=row.owner,
        fidelity=row.fidelity,
        events=row.events,
        expires=row.expires,
        approval=row.approval,
    )


def readable(column: str, text: str) -> dict[str, Any]:
    """The object in a column: of numbers ("x", "predicted") or of objects ("belief").

    Raises:
        any of `DAMAGE`: it is none.
    """
    found = json.loads(text)
    kinds: tuple[type, ...] = (dict,) if column == "belief" else (float, int)
    if type(found) is not dict or any(type(value) not in kinds for value in found.values()):
        raise TypeError(f"no object of {'objects' if column == 'belief' else 'numbers'}")
    return found


#: SQLite holds anything in any column.
_TEXTS, _NUMBERS = ("state", "criterion", "fidelity", "approval"), ("score", "asked", "started", "finished", "expires")
_COUNTS = ("basis", "after", "seed")


def require_types(row: Any) -> None:
    """Refuse (`TypeError`) a row in which a number is text, say."""
    for names, kinds in ((_TEXTS, (str,)), (_NUMBERS, (float, int, type(None))), (_COUNTS, (int,))):
        for name in names:
            if type(value := getattr(row, name)) not in kinds:
                raise TypeError(f"{name} = {value!r:.80}")


def to_row(name: str, trial: Trial) -> dict[str, Any]:
    """A new trial as a row; the columns of a later state stay NULL."""
    return {
        "campaign": name,
        "number": trial.number,
        "state": trial.state,
        "x": json.dumps(trial.x),
        "basis": trial.basis,
        "after": trial.after,
        "criterion": trial.criterion,
        "score": trial.score,
        "predicted": json.dumps(trial.predicted),
        "belief": json.dumps(trial.belief),
        "seed": trial.seed,
        "asked": trial.asked,
        "fidelity": trial.fidelity,
        "events": trial.events,
        "approval": trial.approval,
    }
