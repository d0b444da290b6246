"""The databases below a store: URLs, connections, and what is particular to SQLite and to PostgreSQL."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from typing import Any, Literal

import sqlalchemy as sa

from ..errors import MissingExtra, StoreError
from ..secrets import masked

#: Seconds a transaction waits for those of other processes before it gives up.
PATIENCE = 30.0
#: Seconds that a lost connection to a server is waited for.
OUTAGE = 60.0
Mode = Literal["read", "write", "create"]


def is_sqlite(url: sa.URL) -> bool:
    """Whether the database is a file of SQLite."""
    return url.get_backend_name() == "sqlite"


def parse_url(url: str | os.PathLike[str]) -> sa.URL:
    """The URL of a database; an SQLite path is made absolute, for processes may change their folder."""
    text = os.fsdecode(url)
    if "://" in text:
        try:
            # The short scheme is libpq's.
            parsed = sa.make_url(re.sub(r"^postgres://", "postgresql://", text))
            backend = parsed.get_backend_name()
        except (sa.exc.ArgumentError, ValueError, UnicodeError):
            # Not from that error, which may quote a part of the password as the port.
            raise StoreError(f"store: the URL must be one of a database, got {masked(text)!r}. {_URLS}") from None
        if backend not in ("sqlite", "postgresql"):
            raise StoreError(f"store: the database must be SQLite or PostgreSQL, got {backend!r}. {_URLS}")
        if backend == "postgresql":
            return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == backend else parsed
        path = parsed.database or ""
        if parsed.host or parsed.query or parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise StoreError(f"store: an SQLite URL must hold a path and nothing else, got {masked(text)!r}. {_URLS}")
    else:
        path = os.path.expanduser(text)
    # Of halves of characters, a file's name may have those that stand for bytes which are no UTF-8.
    nameable = "\0" not in path and not re.search("[\ud800-\udc7f\udd00-\udfff]", path)
    if path in ("", ":memory:") or path.startswith("file:") or not nameable:
        raise StoreError(f"store: SQLite needs the path of a file, got {masked(text)!r}. {_URLS}")
    return sa.URL.create("sqlite", database=os.path.abspath(path))


_URLS = "Write a path (campaign.db), sqlite:///path, postgresql://user@host/database or memory://"


def make_engine(url: sa.URL) -> sa.Engine:
    """The engine for a URL; it connects to nothing yet.

    Raises:
        MissingExtra: the driver is not installed.
        StoreError: the URL names no driver that is known.
    """
    # SQLite without a pool: a connection that was open during a fork would be shared by two processes, and SQLite's
    # view of its own locks would be wrong in the child.
    how: dict[str, Any] = {"poolclass": sa.NullPool} if is_sqlite(url) else _POSTGRES
    try:
        engine = sa.create_engine(url, **how)
    except ImportError as error:
        raise MissingExtra(
            f"store: the database's driver must be installed, got {error}. "
            "Install it (pip install 'excursion[postgres]') and write postgresql://..."
        ) from error
    except sa.exc.ArgumentError as error:
        raise StoreError(f"store: the URL must name a known driver, got {error}. {_URLS}") from error
    if is_sqlite(url):
        _sqlite_rules(engine)
    else:
        _postgres_rules(engine)
    return engine


def advice(message: str) -> str:
    """What to do about a message of the database."""
    if "locked" in message or "busy" in message or "lock timeout" in message:
        return f"Another process held the store for more than {PATIENCE:g} s; try again"
    if "not a database" in message or "malformed" in message:
        return "The file is not an intact SQLite database: name another file"
    if "onnect" in message or "server closed" in message:
        return f"The server could not be reached (for {OUTAGE:g} s, if it had been); nothing was lost: try again"
    if "full" in message or "No space left" in message:
        return "Free some space and try again; nothing was lost"
    return "Check the path or URL and your rights to read and write there"


# --- The one place that knows PostgreSQL --------------------------------------------------------------------

#: Few connections, for a process does one thing at a time but for its heartbeat. Nobody may keep the others waiting for
#: ever: neither a statement for a lock nor a client that has gone away in the middle of a transaction.
_POSTGRES: dict[str, Any] = {
    "pool_size": 2,
    "max_overflow": 14,
    "pool_recycle": 1800,
    "connect_args": {
        "application_name": "excursion",
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "options": f"-c lock_timeout={int(1000 * PATIENCE)} -c idle_in_transaction_session_timeout=60000",
    },
}
#: Codes of errors after which the same transaction may succeed: a lost connection (class 08), a server that stops,
#: crashes or starts, a transaction that lost against another one.
_PASSING = ("08", "57P01", "57P02", "57P03", "40001", "40P01")


def passing(error: sa.exc.DBAPIError, opened: bool) -> bool:
    """Whether to do a transaction again that failed so.

    Args:
        error: what happened.
        opened: whether this store has been reached before; if not, a server that is not there is an error.
    """
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state.startswith(_PASSING)
    # Without a code it is the client's own: the connection was lost, or could not be made.
    gone = isinstance(error, sa.exc.OperationalError) and not isinstance(error.orig, sqlite3.Error)
    return gone and (opened or error.connection_invalidated or "starting up" in str(error.orig))


def let_go(engine: sa.Engine, pid: int) -> None:
    """Close the connections of an engine that this process made; those of a parent are left to it."""
    engine.dispose(close=os.getpid() == pid)


def _postgres_rules(engine: sa.Engine) -> None:
    """A connection is used by the process that made it only: a fork would share its socket.

    References:
        SQLAlchemy documentation, "Using Connection Pools with Multiprocessing or os.fork()".
    """

    @sa.event.listens_for(engine, "connect")
    def _connect(_: Any, record: Any) -> None:
        record.info["pid"] = os.getpid()

    @sa.event.listens_for(engine, "checkout")
    def _checkout(_: Any, record: Any, proxy: Any) -> None:
        if record.info["pid"] != os.getpid():
            record.dbapi_connection = proxy.dbapi_connection = None
            raise sa.exc.DisconnectionError("the connection belongs to another process")


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
