"""Campaigns in a database, SQLite or PostgreSQL.

Numbers 0, 1, 2, ... are given in the order of asking, places `told` 0, 1, 2, ... in the order of completion; both are
unique keys of the database, so that two processes can never write the same one.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from ..data import PENDING, Approval, Outcome, Proposal, Trial
from ..errors import SchemaMismatch, StoreError
from ..secrets import without_password
from .base import (
    CLAIMABLE,
    DAMAGE,
    REVIEWS,
    Event,
    Fault,
    Kind,
    Store,
    asks,
    campaign_json,
    duplicate,
    events_of,
    finished,
    outcome_json,
    positive,
    queued,
    rejection,
    release_what,
    reviewed,
    stale,
    storable,
    to_queue,
    told_trials,
    unknown_campaign,
    unknown_trial,
)
from .check import check
from .database import OUTAGE, Mode, advice, is_sqlite, let_go, make_engine, parse_url, passing
from .tables import CAMPAIGN, EVENT, HOLD, META, NEW, SCHEMA, TABLES, TRIAL, from_row, to_row

#: The number of our lock among PostgreSQL's advisory locks ("excursio" in ASCII, shortened to 63 bits).
_ADVISORY = 0x6578637572736900
T = TypeVar("T")


_SERVER_CLOCK = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)
_SPEC = sa.select(CAMPAIGN).where(CAMPAIGN.c.name == sa.bindparam("campaign_"))
_LOOK = sa.select(CAMPAIGN.c.created).where(CAMPAIGN.c.name == sa.bindparam("campaign_"))
_LOCK = _LOOK.with_for_update(key_share=True)
_LINE = EVENT.insert()
_OTHER = TRIAL.alias()
#: How many trials have been told: the place of the next one.
_PLACE = sa.select(sa.func.coalesce(sa.func.max(_OTHER.c.told), -1) + 1).where(
    _OTHER.c.campaign == sa.bindparam("campaign_")
)


@dataclass(frozen=True)
class _Hot:
    """Statements that every evaluation needs, made once: making them takes as long as sending them.

    Attributes:
        claim: takes the queued trial with the lowest number.
        claim_one: takes the trial of a number, if it is queued.
        finish: writes an outcome where none is.
    """

    claim: sa.UpdateBase
    claim_one: sa.UpdateBase
    finish: sa.UpdateBase


@cache
def _hot(lite: bool) -> _Hot:
    t, o, given = TRIAL.c, _OTHER.c, sa.bindparam
    now = given("now_", type_=sa.Double) if lite else _SERVER_CLOCK
    free = sa.select(o.number).where(o.campaign == given("campaign_"), o.state == "queued", o.approval.in_(CLAIMABLE))
    # On PostgreSQL two workers claim at the same time: each skips what the other is about to take.
    take = (
        TRIAL.update()
        .values(
            state="running",
            started=given("started_"),
            owner=given("owner_"),
            expires=now + given("lease_", type_=sa.Double),  # NULL without a lease
        )
        .where(t.campaign == given("campaign_"))
        .returning(TRIAL)
    )
    first = free.order_by(o.number).limit(1).with_for_update(skip_locked=True).scalar_subquery()
    one = free.where(o.number == given("number_")).with_for_update(skip_locked=True).scalar_subquery()
    # The condition on the state: no finished row is written, whatever happens.
    finish = (
        TRIAL.update()
        .values(
            state=given("state_"),
            told=_PLACE.scalar_subquery(),
            outcome=given("outcome_"),
            finished=given("finished_"),
            expires=None,
        )
        .where(t.campaign == given("campaign_"), t.number == given("number_"), t.state.in_(PENDING))
        .returning(TRIAL)
    )
    return _Hot(take.where(t.number == first), take.where(t.number == one), finish)


class SqlStore(Store):
    """Campaigns in a database that several processes use at once: an SQLite file, or PostgreSQL.

    An SQLite file must lie on a disk of this machine, for its locks do not work reliably on network file
    systems; use PostgreSQL to share a store between machines. Each method is one transaction. With SQLite nothing is
    held open in between; with PostgreSQL one connection or a few are. A store may be forked, pickled (by its URL) and
    dropped at any time.

    When the connection to PostgreSQL is lost, or its server restarts, a method waits up to `OUTAGE` seconds for it
    and does its transaction again. Whether a transaction happened whose commit was not answered is looked up then, so
    that nothing is done twice.

    Finished trials are kept in memory, for they never change: `trials` reads what is new only.
    """

    def __init__(self, url: str | os.PathLike[str], *, create: bool = True) -> None:
        """Open a store, or make a new one.

        Args:
            url: "sqlite:///campaign.db", "postgresql://user@host/database" or the bare path of an SQLite file.
            create: make the file (its folder must exist) or the tables if there are none.

        Raises:
            StoreError: there is no store (and `create` is False), the file is not an excursion store, or
                the URL is not understood.
            SchemaMismatch: the store was written by another schema version; it is left as it is. One of an older
                version that is known is brought to the present one, in one transaction.
            MissingExtra: the driver of the database is not installed.
        """
        self._url = parse_url(url)
        self._engine = make_engine(self._url)
        # A store may be dropped without being closed; then its connections are.
        weakref.finalize(self, let_go, self._engine, os.getpid())
        self._hot = _hot(is_sqlite(self._url))
        self._lock = threading.Lock()
        self._finished: dict[tuple[str, float], tuple[int, dict[int, Trial]]] = {}
        self._opened = False
        self._open(create)
        self._opened = True

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
        if is_sqlite(self._url):
            return str(self._url.database)
        return without_password(self._url.render_as_string(hide_password=True))

    def close(self) -> None:
        """Let go of the engine; no connection is open between calls anyway."""
        self._engine.dispose()

    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """See `Store.create`."""
        text, now = campaign_json(name, spec), time.time()

        def work(c: sa.Connection, again: bool) -> None:
            row = c.execute(sa.select(CAMPAIGN).where(CAMPAIGN.c.name == name)).first()
            if row is None:
                c.execute(CAMPAIGN.insert().values(name=name, spec=text, created=now))
            elif not (again and row.created == now and row.spec == text):
                raise duplicate(f"store {self.url}", name)

        try:
            self._do("write", work)
        except StoreError as error:
            # The primary key says so, whoever writes at the same time.
            if isinstance(error.__cause__, sa.exc.IntegrityError):
                raise duplicate(f"store {self.url}", name) from error
            raise

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """See `Store.in_use`: closing the last connection to an SQLite file empties its log, which takes time."""
        if not is_sqlite(self._url):
            yield
            return
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("SELECT count(*) FROM sqlite_master").fetchall()
            yield
        finally:
            connection.close()

    def names(self) -> list[str]:
        """See `Store.names`."""
        return self._do("read", lambda c, _: sorted(c.scalars(sa.select(CAMPAIGN.c.name))))

    def spec(self, name: str) -> dict[str, Any]:
        """See `Store.spec`."""
        text = self._do("read", lambda c, _: self._campaign(c, name, spec=True).spec)
        try:
            return dict(json.loads(text))
        except DAMAGE as error:
            raise StoreError(
                f"campaign {name!r}: its description must be a JSON object, got {error}. The store is damaged: "
                "restore it from a backup"
            ) from error

    def trials(self, name: str, since: int = 0, *, finished: bool = False) -> list[Trial]:
        """See `Store.trials`."""
        t = TRIAL.c

        def work(c: sa.Connection, _: bool) -> tuple[tuple[str, float], dict[int, Trial], list[Any]]:
            key = (name, self._campaign(c, name, lock=False).created)
            with self._lock:
                told, known = self._finished.get(key, (0, {}))
            # Places are given one after the other, each after the one before is committed: none can turn up later.
            new = t.told >= told if finished else sa.or_(t.told.is_(None), t.told >= told)
            return key, known, list(c.execute(sa.select(TRIAL).where(t.campaign == name, new)).all())

        key, known, rows = self._do("read", work)
        read = {row.number: from_row(row) for row in rows}
        finished_now = {number: trial for number, trial in read.items() if trial.told is not None}
        everything = known | read
        if finished_now:
            told = 1 + max(trial.told or 0 for trial in finished_now.values())
            with self._lock:
                if told > self._finished.get(key, (0, {}))[0]:
                    self._finished[key] = (told, known | finished_now)
        return [everything[number] for number in sorted(everything) if number >= since]

    def events(self, name: str, number: int | None = None) -> list[Event]:
        """See `Store.events`."""
        e = EVENT.c

        def work(c: sa.Connection, _: bool) -> list[Any]:
            self._campaign(c, name, lock=False)
            wanted = sa.select(e.kind, e.number, e.time, e.host, e.pid, e.owner, e.version, e.seed, e.note)
            wanted = wanted.where(e.campaign == name).order_by(e.id)
            return list(c.execute(wanted if number is None else wanted.where(e.number == number)).all())

        return [Event(*row) for row in self._do("read", work)]

    def add(
        self, name: str, proposals: Sequence[Proposal], *, after: int, seeds: Sequence[int], approval: Approval = ""
    ) -> list[Trial]:
        """See `Store.add`."""
        new = queued(name, proposals, after, seeds, approval)

        def work(c: sa.Connection, again: bool) -> None:
            if self._may_append(c, name, new, after, again):
                c.execute(TRIAL.insert(), [to_row(name, trial) for trial in new])
                self._log(c, name, asks(new))

        self._do("write", work)
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
        new = queued(name, proposals, after, seeds)

        def work(c: sa.Connection, again: bool) -> list[Trial]:
            if not self._may_append(c, name, new, after, again):
                first = c.execute(_several(name, after).limit(1)).first()
                return told_trials(name, new, outcomes, 0 if first is None else first.told)
            done = told_trials(name, new, outcomes, int(c.scalar(_PLACE, {"campaign_": name}) or 0))
            if done:
                rows = [
                    to_row(name, trial)
                    | {"told": trial.told, "outcome": outcome_json("trial", outcome), "finished": trial.finished}
                    for trial, outcome in zip(done, outcomes)
                ]
                c.execute(TRIAL.insert(), rows)
                self._log(c, name, asks(done) + events_of("tell", done))
            return done

        return self._do("write", work)

    def claim(self, name: str, owner: str, number: int | None = None, *, lease: float | None = None) -> Trial | None:
        """See `Store.claim`."""
        where = f"campaign {name!r}: claim"
        owner, seconds = storable(where, "owner", owner), None if lease is None else positive(where, "lease", lease)
        t, started = TRIAL.c, time.time()
        statement = self._hot.claim if number is None else self._hot.claim_one
        values = {"campaign_": name, "number_": number, "started_": started, "owner_": owner, "lease_": seconds}
        if number is None:
            del values["number_"]

        def work(c: sa.Connection, again: bool) -> Trial | None:
            if again:
                mine = sa.select(TRIAL).where(t.campaign == name, t.owner == owner, t.started == started)
                if (row := c.execute(mine.where(t.state == "running")).first()) is not None:
                    return from_row(row)
            for expired in (False, True):
                if expired:
                    self._campaign(c, name)
                    if number is not None:
                        self._one(c, name, number)
                    if not self._expire(c, name):
                        return None
                if (row := c.execute(statement, self._timed(values)).first()) is not None:
                    trial = from_row(row)
                    self._log(c, name, events_of("claim", [trial]))
                    return trial
            return None

        return self._do("write", work)

    def renew(self, name: str, owner: str, lease: float) -> frozenset[int]:
        """See `Store.renew`."""
        seconds, t = positive(f"campaign {name!r}: renew", "lease", lease), TRIAL.c
        mine = (t.campaign == name, t.owner == owner, t.state == "running")

        def work(c: sa.Connection, _: bool) -> frozenset[int]:
            self._campaign(c, name, lock=False)
            end = sa.case((t.expires.is_(None), None), else_=self._clock() + seconds)
            return frozenset(c.scalars(TRIAL.update().where(*mine).values(expires=end).returning(t.number)))

        return self._do("write", work)

    def expire(self, name: str) -> list[Trial]:
        """See `Store.expire`."""

        def work(c: sa.Connection, _: bool) -> list[Trial]:
            self._campaign(c, name)
            return self._expire(c, name)

        return self._do("write", work)

    def release(self, name: str, *, number: int | None = None, owner: str | None = None) -> list[Trial]:
        """See `Store.release`."""
        t = TRIAL.c

        def work(c: sa.Connection, _: bool) -> list[Trial]:
            self._campaign(c, name)
            release_what(name, number, owner)
            running = sa.select(TRIAL).where(t.campaign == name, t.state == "running").order_by(t.number)
            if number is not None:
                self._one(c, name, number)
                running = running.where(t.number == number)
            if owner is not None:
                running = running.where(t.owner == owner)
            return self._requeue(c, name, "release", running)

        return self._do("write", work)

    def finish(self, name: str, number: int, outcome: Outcome, *, owner: str | None = None) -> Trial:
        """See `Store.finish`."""
        text, now = outcome_json(f"trial {number} of {name!r}", outcome), time.time()
        owner = owner and storable(f"trial {number} of {name!r}", "owner", owner)

        def work(c: sa.Connection, again: bool) -> Trial:
            self._campaign(c, name)
            trial = self._finish(c, name, number, outcome.state, text, now, owner)
            if trial is None:
                trial = self._one(c, name, number)
                if not (again and trial.finished == now):
                    raise finished(name, trial)
            return trial

        return self._do("write", work)

    def review(self, name: str, number: int, approval: Approval, *, note: str = "", owner: str | None = None) -> Trial:
        """See `Store.review`."""
        where, now = f"campaign {name!r}: review", time.time()
        note, owner = storable(where, "note", note), owner and storable(where, "owner", owner)

        def work(c: sa.Connection, again: bool) -> Trial:
            self._campaign(c, name)
            trial = self._one(c, name, number)
            if again and trial.approval == approval and now in (trial.finished, trial.started):
                return trial
            if (new := reviewed(name, trial, approval, note, owner)) is None:
                return trial
            self._log(c, name, events_of(REVIEWS[new], [trial], owner, note))
            values: dict[str, Any] = {"approval": new}
            if new == "submitted":
                values |= {"state": "running", "started": now, "owner": owner}
            changed = self._change(c, name, number, values)
            if new == "rejected":
                told = rejection(note)
                changed = self._finish(c, name, number, told.state, outcome_json(where, told), now, owner)
            return changed or trial

        return self._do("write", work)

    def hold(self, name: str, what: str, owner: str, seconds: float) -> bool:
        """See `Store.hold`."""
        where, h = f"campaign {name!r}: hold", HOLD.c
        what, owner = storable(where, "lock", what), storable(where, "owner", owner)
        seconds = positive(where, "time", seconds)

        def work(c: sa.Connection, _: bool) -> bool:
            self._campaign(c, name)
            now, this = self._clock(), (h.campaign == name, h.what == what)
            may = sa.or_(h.owner == owner, h.expires < now)
            if c.execute(HOLD.update().where(*this, may).values(owner=owner, expires=now + seconds)).rowcount:
                return True
            if c.execute(sa.select(h.owner).where(*this)).first() is not None:
                return False
            c.execute(HOLD.insert().values(campaign=name, what=what, owner=owner, expires=now + seconds))
            return True

        return self._do("write", work)

    def drop(self, name: str, what: str, owner: str) -> None:
        """See `Store.drop`."""
        h = HOLD.c

        def work(c: sa.Connection, _: bool) -> None:
            self._campaign(c, name)
            c.execute(HOLD.delete().where(h.campaign == name, h.what == what, h.owner == owner))

        self._do("write", work)

    def counts(self, name: str) -> dict[str, int]:
        """See `Store.counts`."""
        t = TRIAL.c

        def work(c: sa.Connection, _: bool) -> dict[str, int]:
            self._campaign(c, name, lock=False)
            found = sa.select(t.state, sa.func.count()).where(t.campaign == name).group_by(t.state)
            return {state: int(n) for state, n in c.execute(found).all()}

        return self._do("read", work)

    def check(self, name: str, *, repair: bool = False) -> list[Fault]:
        """See `Store.check`."""
        lite = is_sqlite(self._url)

        def work(c: sa.Connection, _: bool) -> list[Fault]:
            made = self._campaign(c, name).created
            found = check(c, name, self._clock(), repair, lite)
            if repair and any(fault.repair for fault in found):
                # Finished trials have changed, which others have in memory: to them it is another campaign now.
                c.execute(
                    CAMPAIGN.update().where(CAMPAIGN.c.name == name).values(created=math.nextafter(made, math.inf))
                )
            return found

        return self._do("write" if repair else "read", work)

    # -- one transaction

    def _do(self, mode: Mode, work: Callable[[sa.Connection, bool], T]) -> T:
        """Do `work` in one transaction; again, with True, where the connection was lost or the database asks for it."""
        deadline, pause, again = time.monotonic() + OUTAGE, 0.05, False
        while True:
            try:
                with self._engine.connect().execution_options(excursion=mode) as c, c.begin():
                    return work(c, again)
            except sa.exc.DBAPIError as error:
                if not passing(error, self._opened) or time.monotonic() > deadline:
                    raise StoreError(
                        f"store {self.url}: the database refused, got {error.orig}. " + advice(str(error.orig))
                    ) from error
            again = True
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _clock(self) -> Any:
        """Now, in seconds since the epoch, by the clock that all processes share: that of the server."""
        return time.time() if is_sqlite(self._url) else _SERVER_CLOCK

    def _timed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a prepared statement, with the time where the database has no clock of its own."""
        return values | {"now_": time.time()} if is_sqlite(self._url) else values

    def _campaign(self, c: sa.Connection, name: str, *, lock: bool = True, spec: bool = False) -> Any:
        """The campaign's row, in a writing transaction locked until its end.

        The lock makes the writers of one campaign queue up on PostgreSQL, so that counting and writing are
        one step (SQLite ignores FOR UPDATE: there the whole transaction is exclusive already).
        """
        lock = lock and c.get_execution_options()["excursion"] == "write"
        row = c.execute(_SPEC if spec else _LOCK if lock else _LOOK, {"campaign_": name}).first()
        if row is None:
            raise unknown_campaign(f"store {self.url}", name, list(c.scalars(sa.select(CAMPAIGN.c.name))))
        return row

    def _may_append(self, c: sa.Connection, name: str, new: Sequence[Trial], after: int, again: bool) -> bool:
        """Whether these trials follow those that are there; False if they are there (this is another try) or none.

        Raises:
            StaleHistory: others are there.
        """
        self._campaign(c, name)
        count = _count(c, name)
        if again and new and count >= after + len(new):
            first = c.execute(_several(name, after).limit(1)).first()
            if first is not None and (first.asked, first.seed) == (new[0].asked, new[0].seed):
                return False
        if count != after:
            raise stale(name, count, after)
        return bool(new)

    def _one(self, c: sa.Connection, name: str, number: int) -> Trial:
        row = c.execute(sa.select(TRIAL).where(TRIAL.c.campaign == name, TRIAL.c.number == number)).first()
        if row is None:
            raise unknown_trial(name, number, _count(c, name))
        return from_row(row)

    def _change(self, c: sa.Connection, name: str, number: Any, values: dict[str, Any]) -> Trial | None:
        """The changed trial; None if there is none of this number that is not finished."""
        t = TRIAL.c
        # The condition on the state: no finished row is written, whatever happens.
        row = c.execute(
            TRIAL.update()
            .where(t.campaign == name, t.number == number, t.state.in_(PENDING))
            .values(**values)
            .returning(TRIAL)
        ).first()
        return None if row is None else from_row(row)

    def _finish(
        self, c: sa.Connection, name: str, number: int, state: str, outcome: str, now: float, owner: str | None
    ) -> Trial | None:
        values = {"campaign_": name, "number_": number, "state_": state, "outcome_": outcome, "finished_": now}
        if (row := c.execute(self._hot.finish, values).first()) is None:
            return None
        trial = from_row(row)
        self._log(c, name, events_of("tell", [trial], owner))
        return trial

    def _expire(self, c: sa.Connection, name: str) -> list[Trial]:
        t = TRIAL.c
        over = sa.select(TRIAL).where(t.campaign == name, t.state == "running", t.expires < self._clock())
        return self._requeue(c, name, "expire", over.order_by(t.number))

    def _requeue(self, c: sa.Connection, name: str, kind: Kind, which: sa.Select) -> list[Trial]:
        dead = [from_row(row) for row in c.execute(which.with_for_update()).all()]
        self._log(c, name, events_of(kind, dead))
        columns = ("state", "started", "owner", "expires", "approval")
        queued_again = [to_queue(t) for t in dead]
        for trial in queued_again:
            self._change(c, name, trial.number, {k: getattr(trial, k) for k in columns})
        return queued_again

    def _log(self, c: sa.Connection, name: str, events: Sequence[Event]) -> None:
        if events:
            c.execute(_LINE, [{"campaign": name, **vars(event)} for event in events])

    # -- opening

    def _open(self, create: bool) -> None:
        if is_sqlite(self._url):
            path = Path(self.url)
            # os.path: a name that no file can have (too long, NUL) is one of no file.
            if not os.path.exists(path) and not create:
                raise StoreError(f"store {path}: must exist, got no such file. Create a campaign first")
            if not os.path.isdir(path.parent):
                raise StoreError(
                    f"store {path}: its folder must exist, got no folder {path.parent}. Make the folder first"
                )
            if os.path.isdir(path):
                raise StoreError(f"store {path}: must be a file, got a folder. Name a file inside it")
        version = self._do("read", lambda c, _: self._version(c))
        if version is not None and version < SCHEMA:
            self._migrate()
        if version is not None:
            return
        if not create:
            raise StoreError(
                f"store {self.url}: must be an excursion store, got an empty database. Create a campaign first"
            )

        def make(c: sa.Connection, _: bool) -> None:
            if not is_sqlite(self._url):
                c.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY)))
            # Somebody else may have been faster.
            if self._version(c) is None:
                TABLES.create_all(c)
                c.execute(META.insert().values(schema_version=SCHEMA))

        self._do("create", make)

    def _migrate(self) -> None:
        """Bring the tables of an older version to this one, forward step by step, in one transaction.

        Whoever has the store open with the older excursion can go on: the new columns have defaults.

        Raises:
            SchemaMismatch: the store cannot be written.
        """

        def step(c: sa.Connection, _: bool) -> None:
            # On PostgreSQL the lock makes a second process wait here; on SQLite it has waited at the start.
            version = c.scalar(sa.select(META.c.schema_version).with_for_update())
            if version is None or not min(NEW) <= version < SCHEMA:
                return  # somebody else was faster
            for new in (new for v in range(version, SCHEMA) for new in NEW[v]):
                if isinstance(new, sa.Table | sa.Index):
                    new.create(c)
                else:
                    ddl = sa.schema.CreateColumn(new).compile(dialect=c.dialect)
                    c.exec_driver_sql(f"ALTER TABLE {new.table.name} ADD COLUMN {ddl}")
            c.execute(META.update().values(schema_version=SCHEMA))

        try:
            self._do("write", step)
        except StoreError as error:
            raise SchemaMismatch(
                f"store {self.url}: a store of an older schema version is brought to version {SCHEMA} when it is "
                f"opened, got a store that could not be written ({error}). Open it once where it can be, or copy it"
            ) from error

    def _version(self, c: sa.Connection) -> int | None:
        """The version of this store, one that we know; None for an empty database."""
        tables = sa.inspect(c).get_table_names()
        if not tables:
            return None
        if META.name not in tables:
            raise StoreError(
                f"store {self.url}: must be an excursion store, "
                f"got a database with the tables {sorted(tables)}. Name a new file or an empty database"
            )
        version = c.scalar(sa.select(META.c.schema_version))
        if version not in (*NEW, SCHEMA):
            newer = isinstance(version, int) and version > SCHEMA
            raise SchemaMismatch(
                f"store {self.url}: this version of excursion reads and writes schema version {SCHEMA}, "
                f"got schema version {version}. "
                + ("Upgrade excursion" if newer else "Open it with the older excursion that wrote it")
                + " or start a new store; nothing was changed"
            )
        return int(version)


def _count(c: sa.Connection, name: str) -> int:
    last = c.scalar(sa.select(sa.func.max(TRIAL.c.number)).where(TRIAL.c.campaign == name))
    return 0 if last is None else last + 1


def _several(name: str, since: int) -> sa.Select:
    """The trials numbered `since` and above."""
    return sa.select(TRIAL).where(TRIAL.c.campaign == name, TRIAL.c.number >= since).order_by(TRIAL.c.number)


def _reopen(url: sa.URL) -> SqlStore:
    return SqlStore(
        url.render_as_string(hide_password=False) if not is_sqlite(url) else str(url.database), create=False
    )
