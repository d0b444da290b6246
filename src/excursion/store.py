"""What survives: campaigns, their trials and the log of who did what. Knows no tensors.

A store holds, for each campaign, a specification (JSON) and a growing list of trials. Numbers 0, 1, 2, ...
are given in the order of asking, places `told` 0, 1, 2, ... in the order of completion; both are unique
keys of the database, so that two processes can never write the same one. Every method is one transaction:
it happens entirely or not at all, and what it has returned survives the death of the process and, on a disk
that honours flushes, a power cut.
"""

from __future__ import annotations

import json
import math
import operator
import os
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from .data import PENDING, Outcome, Proposal, Trial
from .errors import (
    DuplicateCampaign,
    InvalidOutcome,
    MissingExtra,
    SchemaMismatch,
    StaleHistory,
    StoreError,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)

__all__ = ["SCHEMA", "Event", "MemoryStore", "SqlStore", "Store", "open_store", "this_process"]

#: Version of the tables below. A store of version 2 is brought to it when it is opened, any other is refused.
SCHEMA = 3
_BEFORE = 2
#: Seconds a transaction waits for those of other processes before it gives up.
PATIENCE = 30.0
_NAME_LENGTH = 200


@dataclass(frozen=True)
class Event:
    """One line of a campaign's log, which only grows.

    Attributes:
        kind: "ask", "claim", "release" or "tell".
        number: the trial's number.
        time: seconds since the epoch.
        host: name of the machine that did it.
        pid: its process there.
        owner: who runs (or ran, for a release) the trial; None if nobody claimed it.
    """

    kind: Literal["ask", "claim", "release", "tell"]
    number: int
    time: float
    host: str
    pid: int
    owner: str | None = None


class Store(AbstractContextManager["Store"]):
    """Where campaigns live. Safe for several threads; `SqlStore` also for several processes.

    Every method but `names`, `create` and `close` raises `UnknownCampaign` for a name that is not there.
    """

    @abstractmethod
    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """Start a campaign without trials.

        Args:
            name: its name, at most 200 characters of any script.
            spec: what the campaign is about, JSON-compatible; the store does not look inside.

        Raises:
            DuplicateCampaign: the name is taken.
            StoreError: the name is empty or too long, or `spec` is not JSON.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all campaigns, sorted."""

    @abstractmethod
    def spec(self, name: str) -> dict[str, Any]:
        """The specification given to `create`."""

    @abstractmethod
    def trials(self, name: str, since: int = 0) -> list[Trial]:
        """The trials numbered `since` and above, ordered by number, as they are at one moment."""

    @abstractmethod
    def events(self, name: str) -> list[Event]:
        """The log of the campaign, oldest first."""

    @abstractmethod
    def add(self, name: str, proposals: Sequence[Proposal], *, after: int, seeds: Sequence[int]) -> list[Trial]:
        """Append queued trials numbered `after`, `after` + 1, ...: all of them or none.

        Args:
            name: the campaign.
            proposals: the points to append.
            after: how many trials there were in the history the proposals were made from.
            seeds: one seed for each proposal, 0 <= seed < 2^63.

        Returns:
            The new trials.

        Raises:
            StaleHistory: the campaign does not have exactly `after` trials (any more); read and propose
                again.
            StoreError: not one seed per proposal, or a point or score that is not a number.
        """

    @abstractmethod
    def record(
        self,
        name: str,
        proposals: Sequence[Proposal],
        outcomes: Sequence[Outcome],
        *,
        after: int,
        seeds: Sequence[int],
    ) -> list[Trial]:
        """Append trials that are finished already, such as the rows of a table: all of them or none.

        Args:
            name: the campaign.
            proposals: the points to append.
            outcomes: what is known there, one for each proposal.
            after, seeds: as for `add`.

        Returns:
            The new trials, told in this order after all others.

        Raises:
            StaleHistory, StoreError: as `add`; not one outcome per proposal.
            InvalidOutcome: an outcome's `info` is not JSON-compatible.
        """

    @abstractmethod
    def claim(self, name: str, owner: str, number: int | None = None) -> Trial | None:
        """Turn one queued trial into a running one that belongs to `owner`; nobody else can claim it then.

        Args:
            name: the campaign.
            owner: who is going to run it, such as `this_process()`.
            number: which trial; the queued one with the lowest number if None.

        Returns:
            The running trial; None if no trial (or not this one) is queued.

        Raises:
            UnknownTrial: there is no trial of this number.
        """

    @abstractmethod
    def release(self, name: str, *, number: int | None = None, owner: str | None = None) -> list[Trial]:
        """Queue running trials again because whoever ran them has died.

        Args:
            name: the campaign.
            number: only this trial.
            owner: only trials of this owner.

        Returns:
            The trials that are queued again. Trials which are not running are left as they are.

        Raises:
            UnknownTrial: there is no trial of this number.
            StoreError: neither a number nor an owner is given.
        """

    @abstractmethod
    def finish(self, name: str, number: int, outcome: Outcome) -> Trial:
        """Record what came back from a queued or running trial, for good.

        Returns:
            The finished trial; its `told` is the number of trials finished before it.

        Raises:
            UnknownTrial: there is no trial of this number.
            TrialFinished: the trial has an outcome already, which stays as it is.
            InvalidOutcome: the outcome's `info` is not JSON-compatible.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what the store holds open."""


def open_store(url: str | os.PathLike[str], *, create: bool = True) -> Store:
    """The store at a URL: "memory://" for a new `MemoryStore`, anything else for a `SqlStore`."""
    return MemoryStore() if os.fspath(url) == "memory://" else SqlStore(url, create=create)


def this_process() -> str:
    """The name of the calling process, "host:pid", as the owner of trials."""
    return f"{socket.gethostname()}:{os.getpid()}"


# --- What both stores share: records <-> JSON, checks, messages ---------------------------------------------


def _campaign_json(name: str, spec: Mapping[str, Any]) -> str:
    """The specification as text, once name and specification are known to be storable."""
    # NUL and lone surrogates cannot be written as UTF-8 text in every database.
    storable = isinstance(name, str) and "\0" not in name and not any("\ud800" <= c <= "\udfff" for c in name)
    if not storable or not name.strip() or len(name) > _NAME_LENGTH:
        raise StoreError(
            f"store: a campaign's name must be 1 to {_NAME_LENGTH} characters of text, got {name!r}. Choose another"
        )
    try:
        return json.dumps(dict(spec))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"campaign {name!r}: the specification must be JSON-compatible, got {error}. "
            "Use dicts with text keys, lists, text, numbers, booleans and None only"
        ) from error


def _outcome_json(where: str, outcome: Outcome) -> str:
    # Python's JSON writes floats by repr, hence exactly, and infinities as Infinity.
    try:
        return json.dumps(
            {
                "values": dict(outcome.values),
                "variances": dict(outcome.variances),
                "bounds": dict(outcome.bounds),
                "error": outcome.error,
                "permanent": bool(outcome.permanent),
                "info": dict(outcome.info),
                "missing": list(outcome.missing),
            }
        )
    except (TypeError, ValueError) as error:
        raise InvalidOutcome(
            f"{where}: the outcome's info must be JSON-compatible, got {error}. "
            "Use dicts with text keys, lists, text, numbers, booleans and None only"
        ) from error


def _outcome(text: str | None) -> Outcome | None:
    return None if text is None else Outcome(**json.loads(text))


def _queued(name: str, proposals: Sequence[Proposal], after: int, seeds: Sequence[int]) -> list[Trial]:
    """The trials that `add` appends, with plain floats (numpy's would not all be JSON)."""
    if len(seeds) != len(proposals):
        raise StoreError(
            f"campaign {name!r}: add needs one seed per proposal, got {len(seeds)} seeds for {len(proposals)} proposals"
        )
    now = time.time()
    trials = []
    for number, (proposal, seed) in enumerate(zip(proposals, seeds), start=after):
        if not 0 <= seed < 2**63:
            raise StoreError(f"trial {number} of {name!r}: a seed must lie in [0, 2^63), got {seed}")
        score = None if proposal.score is None else float(proposal.score)
        x = {key: float(value) for key, value in proposal.x.items()}
        if any(map(math.isnan, x.values())) or (score is not None and math.isnan(score)):
            raise StoreError(f"trial {number} of {name!r}: point and score must not be NaN, got {x}, score {score}")
        events = None if proposal.events is None else operator.index(proposal.events)
        if events is not None and not 1 <= events < 2**63:
            raise StoreError(f"trial {number} of {name!r}: the events must lie in [1, 2^63), got {events}")
        trials.append(
            Trial(
                number=number,
                x=x,
                basis=operator.index(proposal.basis),
                after=after,
                criterion=proposal.criterion,
                score=score,
                predicted={key: float(value) for key, value in proposal.predicted.items()},
                belief={key: dict(value) for key, value in proposal.belief.items()},
                seed=operator.index(seed),
                asked=now,
                fidelity=proposal.fidelity,
                events=events,
            )
        )
    return trials


def _told(name: str, new: Sequence[Trial], outcomes: Sequence[Outcome], told: int) -> list[Trial]:
    """The trials that `record` appends: the queued ones with their outcomes, told from this place on."""
    if len(outcomes) != len(new):
        raise StoreError(
            f"campaign {name!r}: record needs one outcome per proposal, got {len(outcomes)} outcomes for "
            f"{len(new)} proposals"
        )
    return [
        replace(
            trial,
            state=outcome.state,
            told=told + i,
            outcome=_outcome(_outcome_json(f"trial {trial.number} of {name!r}", outcome)),
            finished=trial.asked,
        )
        for i, (trial, outcome) in enumerate(zip(new, outcomes))
    ]


def _events(kind: Literal["ask", "claim", "release", "tell"], trials: Sequence[Trial]) -> list[Event]:
    now, host, pid = time.time(), socket.gethostname(), os.getpid()
    return [Event(kind, trial.number, now, host, pid, trial.owner) for trial in trials]


def _unknown_campaign(where: str, name: str, known: Sequence[str]) -> UnknownCampaign:
    return UnknownCampaign(
        f"{where}: no campaign of this name, got {name!r}. "
        + (f"Choose one of {sorted(known)}" if known else "The store is empty: create a campaign first")
    )


def _unknown_trial(name: str, number: int, count: int) -> UnknownTrial:
    there = f"0 to {count - 1}" if count else "none yet"
    return UnknownTrial(f"campaign {name!r}: no trial of this number, got {number}. Its trials are: {there}")


def _stale(name: str, count: int, after: int) -> StaleHistory:
    return StaleHistory(
        f"campaign {name!r}: trials can only be added to the history they were proposed from, "
        f"got after={after} for {count} trials. Read the trials and ask again"
    )


def _finished(name: str, trial: Trial) -> TrialFinished:
    return TrialFinished(
        f"trial {trial.number} of {name!r}: a finished trial cannot change, got another outcome for a trial "
        f"that is {trial.state}. Ask for a new trial to evaluate the point again"
    )


def _release_what(name: str, number: int | None, owner: str | None) -> None:
    if number is None and owner is None:
        raise StoreError(f"campaign {name!r}: release needs a trial number or an owner, got neither. Give one")


# --- In memory ----------------------------------------------------------------------------------------------


class MemoryStore(Store):
    """Campaigns in the memory of this process, gone with it. For notebooks and tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._specs: dict[str, str] = {}
        self._trials: dict[str, list[Trial]] = {}
        self._events: dict[str, list[Event]] = {}

    def __repr__(self) -> str:
        return "MemoryStore()"

    def __reduce__(self) -> Any:
        raise StoreError(
            "MemoryStore: cannot be sent to another process, got pickled. Use a SqlStore where processes share a store"
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held open; the campaigns stay as long as the object."""

    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """See `Store.create`."""
        text = _campaign_json(name, spec)
        with self._lock:
            if name in self._specs:
                raise _duplicate("MemoryStore", name)
            self._specs[name], self._trials[name], self._events[name] = text, [], []

    def names(self) -> list[str]:
        """See `Store.names`."""
        with self._lock:
            return sorted(self._specs)

    def spec(self, name: str) -> dict[str, Any]:
        """See `Store.spec`."""
        with self._lock:
            self._check(name)
            return json.loads(self._specs[name])

    def trials(self, name: str, since: int = 0) -> list[Trial]:
        """See `Store.trials`."""
        with self._lock:
            return [_copy(trial) for trial in self._check(name)[max(since, 0) :]]

    def events(self, name: str) -> list[Event]:
        """See `Store.events`."""
        with self._lock:
            self._check(name)
            return list(self._events[name])

    def add(self, name: str, proposals: Sequence[Proposal], *, after: int, seeds: Sequence[int]) -> list[Trial]:
        """See `Store.add`."""
        new = _queued(name, proposals, after, seeds)
        with self._lock:
            trials = self._check(name)
            if len(trials) != after:
                raise _stale(name, len(trials), after)
            trials.extend(new)
            self._events[name].extend(_events("ask", new))
            return [_copy(trial) for trial in new]

    def record(
        self,
        name: str,
        proposals: Sequence[Proposal],
        outcomes: Sequence[Outcome],
        *,
        after: int,
        seeds: Sequence[int],
    ) -> list[Trial]:
        """See `Store.record`."""
        new = _queued(name, proposals, after, seeds)
        with self._lock:
            trials = self._check(name)
            if len(trials) != after:
                raise _stale(name, len(trials), after)
            done = _told(name, new, outcomes, sum(other.told is not None for other in trials))
            trials.extend(done)
            self._events[name].extend(_events("ask", done) + _events("tell", done))
            return [_copy(trial) for trial in done]

    def claim(self, name: str, owner: str, number: int | None = None) -> Trial | None:
        """See `Store.claim`."""
        with self._lock:
            trials = self._check(name) if number is None else [self._trial(name, number)]
            for trial in trials:
                if trial.state == "queued":
                    return self._put(name, "claim", replace(trial, state="running", started=time.time(), owner=owner))
            return None

    def release(self, name: str, *, number: int | None = None, owner: str | None = None) -> list[Trial]:
        """See `Store.release`."""
        with self._lock:
            trials = list(self._check(name)) if number is None else [self._trial(name, number)]
            _release_what(name, number, owner)
            released = []
            for trial in trials:
                if trial.state == "running" and owner in (None, trial.owner):
                    self._events[name].extend(_events("release", [trial]))
                    released.append(self._put(name, None, replace(trial, state="queued", started=None, owner=None)))
            return released

    def finish(self, name: str, number: int, outcome: Outcome) -> Trial:
        """See `Store.finish`."""
        kept = _outcome(_outcome_json(f"trial {number} of {name!r}", outcome))
        with self._lock:
            trial = self._trial(name, number)
            if not trial.pending:
                raise _finished(name, trial)
            told = sum(other.told is not None for other in self._trials[name])
            done = replace(trial, state=outcome.state, told=told, outcome=kept, finished=time.time())
            return self._put(name, "tell", done)

    def _check(self, name: str) -> list[Trial]:
        if name not in self._trials:
            raise _unknown_campaign("MemoryStore", name, list(self._trials))
        return self._trials[name]

    def _trial(self, name: str, number: int) -> Trial:
        trials = self._check(name)
        if not 0 <= number < len(trials):
            raise _unknown_trial(name, number, len(trials))
        return trials[number]

    def _put(self, name: str, kind: Literal["claim", "tell"] | None, trial: Trial) -> Trial:
        self._trials[name][trial.number] = trial
        if kind:
            self._events[name].extend(_events(kind, [trial]))
        return _copy(trial)


def _copy(trial: Trial) -> Trial:
    """A trial whose dictionaries the caller may change without changing the store."""
    kept = trial.outcome and _outcome(_outcome_json("trial", trial.outcome))
    return replace(trial, x=dict(trial.x), predicted=dict(trial.predicted), belief=dict(trial.belief), outcome=kept)


def _duplicate(where: str, name: str) -> DuplicateCampaign:
    return DuplicateCampaign(
        f"{where}: a campaign's name can be used once, got {name!r} again. Open the campaign or choose another name"
    )


# --- In SQL -------------------------------------------------------------------------------------------------

_schema = sa.MetaData()
_meta = sa.Table("excursion", _schema, sa.Column("schema_version", sa.Integer, primary_key=True))
_campaign = sa.Table(
    "campaign",
    _schema,
    sa.Column("name", sa.String(_NAME_LENGTH), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)
_trial = sa.Table(
    "trial",
    _schema,
    sa.Column("campaign", sa.String(_NAME_LENGTH), sa.ForeignKey("campaign.name"), primary_key=True),
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
    sa.UniqueConstraint("campaign", "told"),
    # A trial has an outcome and a place in the order of completion exactly when it is finished.
    sa.CheckConstraint("(state IN ('queued', 'running')) = (told IS NULL)"),
    sa.CheckConstraint("(told IS NULL) = (outcome IS NULL)"),
    sa.Index("trial_state", "campaign", "state", "number"),
)
_event = sa.Table(
    "event",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign", sa.String(_NAME_LENGTH), sa.ForeignKey("campaign.name"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text),
)


def _from_row(row: Any) -> Trial:
    try:
        return _trial_of(row)
    except ValueError as error:
        raise StoreError(
            f"trial {row.number}: its row must hold JSON, got {error}. The file is damaged: restore it from a backup"
        ) from error


def _trial_of(row: Any) -> Trial:
    return Trial(
        number=row.number,
        x=json.loads(row.x),
        basis=row.basis,
        after=row.after,
        criterion=row.criterion,
        score=row.score,
        predicted=json.loads(row.predicted),
        belief=json.loads(row.belief),
        state=row.state,
        told=row.told,
        outcome=_outcome(row.outcome),
        seed=row.seed,
        asked=row.asked,
        started=row.started,
        finished=row.finished,
        owner=row.owner,
        fidelity=row.fidelity,
        events=row.events,
    )


def _to_row(name: str, trial: Trial) -> dict[str, Any]:
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
    }


class SqlStore(Store):
    """Campaigns in a database that several processes use at once: an SQLite file, or PostgreSQL.

    An SQLite file must lie on a disk of this machine, for its locks do not work reliably on network file
    systems; use PostgreSQL to share a store between machines. Each method opens a connection for one
    transaction and closes it: nothing is held open in between, so a store may be forked, pickled (by its
    URL) and dropped at any time.
    """

    def __init__(self, url: str | os.PathLike[str], *, create: bool = True) -> None:
        """Open a store, or make a new one.

        Args:
            url: "sqlite:///campaign.db", "postgresql+psycopg://user@host/database" or the bare path of an
                SQLite file.
            create: make the file (its folder must exist) or the tables if there are none.

        Raises:
            StoreError: there is no store (and `create` is False), the file is not an excursion store, or
                the URL is not understood.
            SchemaMismatch: the store was written by another schema version; it is left as it is. One of the version
                before is brought to the present one, in one transaction.
            MissingExtra: the driver of the database is not installed.
        """
        self._url = _parse(url)
        self._engine = _engine(self._url)
        self._open(create)

    def __repr__(self) -> str:
        return f"SqlStore({self.url!r})"

    def __reduce__(self) -> tuple[Callable[[sa.URL], SqlStore], tuple[sa.URL]]:
        # Another process opens its own connection to a store that must be there by now.
        return _reopen, (self._url,)

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the store is, without the password: the file's absolute path, or the database's URL."""
        return str(self._url.database if _is_sqlite(self._url) else self._url.render_as_string(hide_password=True))

    def close(self) -> None:
        """Let go of the engine; no connection is open between calls anyway."""
        self._engine.dispose()

    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """See `Store.create`."""
        text = _campaign_json(name, spec)
        try:
            with self._transaction("write") as c:
                c.execute(_campaign.insert().values(name=name, spec=text, created=time.time()))
        except StoreError as error:
            # The primary key says so, whoever writes at the same time.
            if isinstance(error.__cause__, sa.exc.IntegrityError):
                raise _duplicate(f"store {self.url}", name) from error
            raise

    def names(self) -> list[str]:
        """See `Store.names`."""
        with self._transaction("read") as c:
            return sorted(c.scalars(sa.select(_campaign.c.name)))

    def spec(self, name: str) -> dict[str, Any]:
        """See `Store.spec`."""
        with self._transaction("read") as c:
            return json.loads(self._campaign(c, name).spec)

    def trials(self, name: str, since: int = 0) -> list[Trial]:
        """See `Store.trials`."""
        t = _trial.c
        with self._transaction("read") as c:
            self._campaign(c, name)
            rows = c.execute(sa.select(_trial).where(t.campaign == name, t.number >= since).order_by(t.number)).all()
        return [_from_row(row) for row in rows]

    def events(self, name: str) -> list[Event]:
        """See `Store.events`."""
        e = _event.c
        with self._transaction("read") as c:
            self._campaign(c, name)
            rows = c.execute(
                sa.select(e.kind, e.number, e.time, e.host, e.pid, e.owner).where(e.campaign == name).order_by(e.id)
            ).all()
        return [Event(*row) for row in rows]

    def add(self, name: str, proposals: Sequence[Proposal], *, after: int, seeds: Sequence[int]) -> list[Trial]:
        """See `Store.add`."""
        new = _queued(name, proposals, after, seeds)
        with self._transaction("write") as c:
            self._campaign(c, name)
            count = _count(c, name)
            if count != after:
                raise _stale(name, count, after)
            if new:
                c.execute(_trial.insert(), [_to_row(name, trial) for trial in new])
                self._log(c, name, "ask", new)
        return new

    def record(
        self,
        name: str,
        proposals: Sequence[Proposal],
        outcomes: Sequence[Outcome],
        *,
        after: int,
        seeds: Sequence[int],
    ) -> list[Trial]:
        """See `Store.record`."""
        new = _queued(name, proposals, after, seeds)
        with self._transaction("write") as c:
            self._campaign(c, name)
            count = _count(c, name)
            if count != after:
                raise _stale(name, count, after)
            done = _told(name, new, outcomes, _next_place(c, name))
            if done:
                rows = [
                    _to_row(name, trial)
                    | {"told": trial.told, "outcome": _outcome_json("trial", outcome), "finished": trial.finished}
                    for trial, outcome in zip(done, outcomes)
                ]
                c.execute(_trial.insert(), rows)
                self._log(c, name, "ask", done)
                self._log(c, name, "tell", done)
        return done

    def claim(self, name: str, owner: str, number: int | None = None) -> Trial | None:
        """See `Store.claim`."""
        t = _trial.c
        with self._transaction("write") as c:
            self._campaign(c, name)
            if number is None:
                number = c.scalar(sa.select(sa.func.min(t.number)).where(t.campaign == name, t.state == "queued"))
                if number is None:
                    return None
            if self._one(c, name, number).state != "queued":
                return None
            return self._change(c, name, "claim", number, {"state": "running", "started": time.time(), "owner": owner})

    def release(self, name: str, *, number: int | None = None, owner: str | None = None) -> list[Trial]:
        """See `Store.release`."""
        t = _trial.c
        with self._transaction("write") as c:
            self._campaign(c, name)
            _release_what(name, number, owner)
            running = sa.select(_trial).where(t.campaign == name, t.state == "running").order_by(t.number)
            if number is not None:
                self._one(c, name, number)
                running = running.where(t.number == number)
            if owner is not None:
                running = running.where(t.owner == owner)
            dead = [_from_row(row) for row in c.execute(running).all()]
            self._log(c, name, "release", dead)
            values = {"state": "queued", "started": None, "owner": None}
            return [self._change(c, name, None, trial.number, values) for trial in dead]

    def finish(self, name: str, number: int, outcome: Outcome) -> Trial:
        """See `Store.finish`."""
        text = _outcome_json(f"trial {number} of {name!r}", outcome)
        with self._transaction("write") as c:
            self._campaign(c, name)
            trial = self._one(c, name, number)
            if not trial.pending:
                raise _finished(name, trial)
            values = {"state": outcome.state, "told": _next_place(c, name), "outcome": text, "finished": time.time()}
            return self._change(c, name, "tell", number, values)

    # -- one transaction

    @contextmanager
    def _transaction(self, mode: Literal["read", "write", "create"]) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect().execution_options(excursion=mode) as connection, connection.begin():
                yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"store {self.url}: the database refused, got {error.orig}. " + _advice(str(error.orig))
            ) from error

    def _campaign(self, c: sa.Connection, name: str) -> Any:
        """The campaign's row, locked until the end of a writing transaction.

        The lock makes the writers of one campaign queue up on PostgreSQL, so that counting and writing are
        one step (SQLite ignores FOR UPDATE: there the whole transaction is exclusive already).
        """
        query = sa.select(_campaign).where(_campaign.c.name == name)
        if c.get_execution_options()["excursion"] == "write":
            query = query.with_for_update()
        row = c.execute(query).first()
        if row is None:
            raise _unknown_campaign(f"store {self.url}", name, list(c.scalars(sa.select(_campaign.c.name))))
        return row

    def _one(self, c: sa.Connection, name: str, number: int) -> Trial:
        row = c.execute(sa.select(_trial).where(_trial.c.campaign == name, _trial.c.number == number)).first()
        if row is None:
            raise _unknown_trial(name, number, _count(c, name))
        return _from_row(row)

    def _change(
        self,
        c: sa.Connection,
        name: str,
        kind: Literal["claim", "tell"] | None,
        number: int,
        values: dict[str, Any],
    ) -> Trial:
        t = _trial.c
        # The condition on the state repeats what was checked: no finished row is written, whatever happens.
        changed = c.execute(
            _trial.update().where(t.campaign == name, t.number == number, t.state.in_(PENDING)).values(**values)
        )
        if changed.rowcount != 1:
            raise StoreError(f"trial {number} of {name!r}: it changed during a transaction. Report this as a bug")
        trial = self._one(c, name, number)
        if kind:
            self._log(c, name, kind, [trial])
        return trial

    def _log(
        self,
        c: sa.Connection,
        name: str,
        kind: Literal["ask", "claim", "release", "tell"],
        trials: Sequence[Trial],
    ) -> None:
        if trials:
            c.execute(_event.insert(), [{"campaign": name, **vars(event)} for event in _events(kind, trials)])

    # -- opening

    def _open(self, create: bool) -> None:
        if _is_sqlite(self._url):
            path = Path(self.url)
            if not path.exists() and not create:
                raise StoreError(f"store {path}: must exist, got no such file. Create a campaign first")
            if not path.parent.is_dir():
                raise StoreError(
                    f"store {path}: its folder must exist, got no folder {path.parent}. Make the folder first"
                )
            if path.is_dir():
                raise StoreError(f"store {path}: must be a file, got a folder. Name a file inside it")
        with self._transaction("read") as c:
            version = self._version(c)
        if version == _BEFORE:
            self._migrate()
        if version is not None:
            return
        if not create:
            raise StoreError(
                f"store {self.url}: must be an excursion store, got an empty database. Create a campaign first"
            )
        with self._transaction("create") as c:
            # Somebody else may have been faster.
            if self._version(c) is None:
                _schema.create_all(c)
                c.execute(_meta.insert().values(schema_version=SCHEMA))

    def _migrate(self) -> None:
        """Bring the tables from the version before to this one: fidelity and events of the trials.

        Whoever has the store open with the older excursion can go on: the new columns have defaults.

        Raises:
            SchemaMismatch: the store cannot be written.
        """
        try:
            with self._transaction("write") as c:
                # On PostgreSQL the lock makes a second process wait here; on SQLite it has waited at the start.
                locked = c.scalar(sa.select(_meta.c.schema_version).with_for_update())
                if locked != _BEFORE:
                    return  # somebody else was faster
                for column in (_trial.c.fidelity, _trial.c.events):
                    ddl = sa.schema.CreateColumn(column).compile(dialect=c.dialect)
                    c.exec_driver_sql(f"ALTER TABLE {_trial.name} ADD COLUMN {ddl}")
                c.execute(_meta.update().values(schema_version=SCHEMA))
        except StoreError as error:
            raise SchemaMismatch(
                f"store {self.url}: a store of schema version {_BEFORE} is brought to version {SCHEMA} when it is "
                f"opened, got a store that could not be written ({error}). Open it once where it can be, or copy it"
            ) from error

    def _version(self, c: sa.Connection) -> int | None:
        """The version of this store, one that we know; None for an empty database."""
        tables = sa.inspect(c).get_table_names()
        if not tables:
            return None
        if _meta.name not in tables:
            raise StoreError(
                f"store {self.url}: must be an excursion store, "
                f"got a database with the tables {sorted(tables)}. Name a new file or an empty database"
            )
        version = c.scalar(sa.select(_meta.c.schema_version))
        if version not in (_BEFORE, SCHEMA):
            newer = isinstance(version, int) and version > SCHEMA
            raise SchemaMismatch(
                f"store {self.url}: this version of excursion reads and writes schema version {SCHEMA}, "
                f"got schema version {version}. "
                + ("Upgrade excursion" if newer else "Open it with the older excursion that wrote it")
                + " or start a new store; nothing was changed"
            )
        return int(version)


def _next_place(c: sa.Connection, name: str) -> int:
    """How many trials have been told."""
    last = c.scalar(sa.select(sa.func.max(_trial.c.told)).where(_trial.c.campaign == name))
    return 0 if last is None else last + 1


def _count(c: sa.Connection, name: str) -> int:
    last = c.scalar(sa.select(sa.func.max(_trial.c.number)).where(_trial.c.campaign == name))
    return 0 if last is None else last + 1


def _reopen(url: sa.URL) -> SqlStore:
    return SqlStore(
        url.render_as_string(hide_password=False) if not _is_sqlite(url) else str(url.database), create=False
    )


def _is_sqlite(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _parse(url: str | os.PathLike[str]) -> sa.URL:
    """The URL of a database; an SQLite path is made absolute, for processes may change their folder."""
    text = os.fspath(url)
    if "://" in text:
        try:
            parsed = sa.make_url(text)
            backend = parsed.get_backend_name()
        except (sa.exc.ArgumentError, ValueError) as error:
            raise StoreError(f"store: the URL must be one of a database, got {text!r}. {_URLS}") from error
        if backend not in ("sqlite", "postgresql"):
            raise StoreError(f"store: the database must be SQLite or PostgreSQL, got {backend!r}. {_URLS}")
        if backend == "postgresql":
            return parsed
        path = parsed.database or ""
        if parsed.host or parsed.query or parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise StoreError(f"store: an SQLite URL must hold a path and nothing else, got {text!r}. {_URLS}")
    else:
        path = os.path.expanduser(text)
    if path in ("", ":memory:") or path.startswith("file:"):
        raise StoreError(f"store: SQLite needs the path of a file, got {text!r}. {_URLS}")
    return sa.URL.create("sqlite", database=os.path.abspath(path))


_URLS = "Write a path (campaign.db), sqlite:///path, postgresql+psycopg://user@host/database or memory://"


def _engine(url: sa.URL) -> sa.Engine:
    # No pool: a connection that was open during a fork would be shared by two processes, and SQLite's view of
    # its own locks would be wrong in the child.
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except ImportError as error:
        raise MissingExtra(
            f"store: the database's driver must be installed, got {error}. "
            "Install it (pip install 'psycopg[binary]') and write postgresql+psycopg://..."
        ) from error
    except sa.exc.ArgumentError as error:
        raise StoreError(f"store: the URL must name a known driver, got {error}. {_URLS}") from error
    if _is_sqlite(url):
        _sqlite_rules(engine)
    return engine


def _advice(message: str) -> str:
    if "locked" in message or "busy" in message:
        return f"Another process held the store for more than {PATIENCE:g} s; try again"
    if "not a database" in message or "malformed" in message:
        return "The file is not an intact SQLite database: name another file"
    if "full" in message:
        return "Free some space and try again; nothing was lost"
    return "Check the path or URL and your rights to read and write there"


# --- The one place that knows SQLite ------------------------------------------------------------------------


def _sqlite_rules(engine: sa.Engine) -> None:
    """Transactions that begin when we say so, wait for others, and are on disk when they end.

    Python's driver would begin a transaction only at the first INSERT or UPDATE, after our SELECT, which lets
    two processes read the same state and one of them fail; so it is told to keep out (`isolation_level =
    None`), and writers take the lock at once (BEGIN IMMEDIATE). WAL lets readers go on during a write. With
    synchronous=FULL a commit returns when the log is flushed to disk: a few milliseconds for a value that
    took minutes to compute.

    References:
        SQLAlchemy documentation, SQLite dialect, "Enabling Non-Legacy SQLite Transactional Modes";
        sqlite.org/wal.html.
    """

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        mode = connection.get_execution_options().get("excursion", "read")
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(1000 * PATIENCE)}")
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        connection.exec_driver_sql("PRAGMA synchronous = FULL")
        if mode == "create":
            # A property of the file, kept for good.
            _patiently(connection, "PRAGMA journal_mode = WAL")
        if mode == "read":
            connection.exec_driver_sql("BEGIN")
            # Takes the snapshot that the transaction will see.
            _patiently(connection, "SELECT 1 FROM sqlite_master LIMIT 1")
        else:
            _patiently(connection, "BEGIN IMMEDIATE")


def _patiently(connection: sa.Connection, statement: str) -> None:
    """Execute what takes a lock.

    SQLite's own waiting (busy_timeout) is left out where it could mean a deadlock: while the journal mode changes,
    and while another process recovers or removes the log. These locks are held for milliseconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.exec_driver_sql(statement)
            return
        except sa.exc.OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
        time.sleep(0.005)
