"""What only a server can do: lose connections, restart, be asked for by many processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from benchmarks.postgres import Server, server

from excursion.data import Outcome, Proposal
from excursion.errors import DuplicateCampaign, SchemaMismatch, StaleHistory, StoreError, TrialFinished
from excursion.store import SCHEMA, SqlStore, open_store

POINT = Proposal({"x": 0.5}, basis=0)


def add(store: SqlStore, n: int, name: str = "a") -> None:
    store.create(name, {})
    store.add(name, [POINT] * n, after=0, seeds=range(n))


# --- opening


def test_urls(postgres, monkeypatch):
    add(SqlStore(postgres), 1)
    url = sa.make_url(postgres)
    for scheme in ("postgresql", "postgresql+psycopg", "postgres"):
        same = open_store(postgres.replace("postgresql", scheme, 1), create=False)
        assert same.names() == ["a"]
    monkeypatch.setenv("PGPASSWORD", url.password)
    store = open_store(postgres.replace(f":{url.password}@", "@"), create=False)
    assert store.names() == ["a"]
    assert url.password not in repr(store) + store.url


def test_an_empty_database_becomes_a_store_only_if_asked(postgres):
    with pytest.raises(StoreError, match="must be an excursion store, got an empty database"):
        SqlStore(postgres, create=False)
    assert SqlStore(postgres).names() == []
    assert SqlStore(postgres, create=False).names() == []


def test_another_database_is_left_alone(postgres_server):
    made = postgres_server.new()
    made.sql("CREATE TABLE mine (x int)")
    with pytest.raises(StoreError, match=r"got a database with the tables \['mine'\]"):
        SqlStore(made.url)
    made.sql("DROP TABLE mine")
    SqlStore(made.url)
    made.sql("UPDATE excursion SET schema_version = 99")
    with pytest.raises(SchemaMismatch, match=r"got schema version 99\. Upgrade excursion"):
        SqlStore(made.url)


def test_a_server_that_is_not_there(postgres):
    """Nobody waits for a server that has never been reached, and no message tells the password."""
    url = sa.make_url(postgres)
    wrong = [
        (url.set(port=1), "could not be reached|refused"),
        (url.set(password="hunter2hunter2"), "password authentication failed"),
        (url.set(database="nothere"), "does not exist"),
        (url.set(host="no-such-host.invalid"), "resolve|not known|failure"),
    ]
    for bad, says in wrong:
        start = time.monotonic()
        with pytest.raises(StoreError, match=says) as caught:
            SqlStore(bad.render_as_string(hide_password=False))
        assert time.monotonic() - start < 20
        text = "".join(traceback.format_exception(caught.value))
        assert str(bad.password) not in text
    # The URL is wrong in another way.
    with pytest.raises(StoreError) as caught:
        SqlStore(f"mysql://me:{url.password}@host/db")
    assert url.password not in str(caught.value)


def test_version_3_is_brought_to_this_one(postgres_server):
    made = postgres_server.new()
    store = SqlStore(made.url)
    add(store, 3)
    store.finish("a", 1, Outcome.of(1.0))
    before = store.trials("a")
    for column in ("trial.expires", "trial.approval", "event.version", "event.seed", "event.note"):
        table, _, name = column.partition(".")
        made.sql(f"ALTER TABLE {table} DROP COLUMN {name}")
    made.sql("DROP TABLE hold")
    made.sql("DROP INDEX event_trial")
    made.sql("UPDATE excursion SET schema_version = 3")
    threads = [threading.Thread(target=SqlStore, args=(made.url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = SqlStore(made.url, create=False)
    assert again.trials("a") == before
    assert again.events("a")[0].version == ""
    assert again.claim("a", "me", lease=1.0) is not None
    assert again.hold("a", "ask", "me", 1.0)
    assert f"{SCHEMA}" in made.dump()


# --- many processes


def _drain(url: str, owner: str, queue: multiprocessing.Queue) -> None:
    store = SqlStore(url, create=False)
    ran = []
    while (trial := store.claim("a", owner, lease=60)) is not None:
        store.finish("a", trial.number, Outcome.of(float(trial.number)))
        ran.append(trial.number)
    queue.put(ran)


def test_eight_processes_claim_each_trial_once(postgres):
    store = SqlStore(postgres)
    add(store, 200)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_drain, args=(postgres, f"w{i}", queue)) for i in range(8)]
    for process in processes:
        process.start()
    ran = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(number for numbers in ran for number in numbers) == list(range(200))
    trials = store.trials("a")
    assert sorted(t.told for t in trials) == list(range(200))
    assert all(t.outcome.values == {"f": float(t.number)} for t in trials)


def test_two_who_add_at_once(postgres):
    """The second gets StaleHistory, and nothing of it is there."""
    add(SqlStore(postgres), 1)
    barrier, stale = threading.Barrier(6), []

    def work(i: int) -> None:
        store = SqlStore(postgres, create=False)
        barrier.wait()
        try:
            store.add("a", [POINT] * 3, after=1, seeds=[i] * 3)
        except StaleHistory:
            stale.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = SqlStore(postgres).trials("a")
    assert len(stale) == 5
    assert [t.number for t in trials] == [0, 1, 2, 3]
    assert len({t.seed for t in trials[1:]}) == 1


FORK = """
import os, sys
from excursion.data import Outcome
from excursion.store import SqlStore
store = SqlStore(sys.argv[1], create=False)
store.names()
child = os.fork()
for i in range(20):
    trial = store.claim("a", f"p{os.getpid()}")
    store.finish("a", trial.number, Outcome.of(1.0))
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_store_works_in_parent_and_child(postgres):
    store = SqlStore(postgres)
    add(store, 40)
    subprocess.run([sys.executable, "-W", "error", "-c", FORK, postgres], check=True, timeout=60)
    assert store.counts("a") == {"complete": 40}


# --- lost connections


def test_a_restarted_server_is_waited_for():
    with server() as own:
        store = SqlStore(own.new().url)
        add(store, 60)
        told, trouble = [], []

        def work(owner: str) -> None:
            try:
                while (trial := store.claim("a", owner, lease=30)) is not None:
                    store.finish("a", trial.number, Outcome.of(float(trial.number)))
                    told.append(trial.number)
                    time.sleep(0.05)
            except BaseException as error:
                trouble.append(error)

        threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        own.stop("immediate")
        stopped = len(told)
        time.sleep(0.5)
        own.start()
        for thread in threads:
            thread.join(60)
        assert trouble == []
        assert stopped < 60
        trials = store.trials("a")
        assert sorted(told) == list(range(60))
        assert sorted(t.told for t in trials) == list(range(60))
        store.close()


class _Proxy:
    """Passes bytes on between a client and the server; on demand it loses the answer to the next commit."""

    def __init__(self, port: int) -> None:
        self.lose = False
        self.instead: Callable[[], object] | None = None  # what happens in place of the next commit
        self.lost = 0
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._open):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                upstream = socket.create_connection(("127.0.0.1", self._server))
                self._open.append(upstream)
                for ends in ((client, upstream, True), (upstream, client, False)):
                    self._threads.append(threading.Thread(target=self._pass, args=ends))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, sink: socket.socket, commits: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if commits and self.instead and b"COMMIT" in data:
                    instead, self.instead = self.instead, None
                    sink.shutdown(socket.SHUT_RDWR)
                    sink.close()
                    instead()
                    break
                if commits and self.lose and b"COMMIT" in data:
                    self.lose = False
                    # The client hears nothing more; the server gets the commit and answers nobody.
                    source.shutdown(socket.SHUT_RDWR)
                    sink.sendall(data)
                    self.lost += 1
                    time.sleep(0.2)
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied(postgres_server: Server) -> Iterator[tuple[_Proxy, SqlStore, SqlStore]]:
    made = postgres_server.new()
    proxy = _Proxy(made.port)
    url = sa.make_url(made.url).set(port=proxy.port, query={"sslmode": "disable"})
    with SqlStore(made.url) as direct, SqlStore(url.render_as_string(hide_password=False)) as store:
        yield proxy, store, direct
    proxy.close()


def test_nothing_is_done_twice_when_the_answer_to_a_commit_is_lost(proxied):
    proxy, store, direct = proxied

    def lose(call):
        before = proxy.lost
        proxy.lose = True
        found = call()
        assert proxy.lost == before + 1, "no commit was lost: nothing was tested"
        return found

    lose(lambda: store.create("a", {"k": 1}))
    assert direct.spec("a") == {"k": 1}
    with pytest.raises(DuplicateCampaign):
        store.create("a", {"k": 1})
    added = lose(lambda: store.add("a", [POINT] * 4, after=0, seeds=range(4)))
    assert direct.trials("a") == added
    with pytest.raises(StaleHistory):
        store.add("a", [POINT] * 4, after=0, seeds=range(4))
    claimed = lose(lambda: store.claim("a", "me", lease=60))
    assert claimed.number == 0
    assert [t.state for t in direct.trials("a")] == ["running", "queued", "queued", "queued"]
    done = lose(lambda: store.finish("a", 0, Outcome.of(1.0)))
    assert direct.trials("a")[0] == done
    with pytest.raises(TrialFinished):
        store.finish("a", 0, Outcome.of(1.0))
    recorded = lose(lambda: store.record("a", [POINT] * 2, [Outcome.of(1.0)] * 2, after=4, seeds=[1, 2]))
    assert direct.trials("a")[4:] == recorded
    assert lose(lambda: store.review("a", 1, "rejected", note="no")).told == 3
    assert lose(lambda: store.review("a", 2, "submitted", owner="people")).owner == "people"
    store.claim("a", "dead")
    assert [t.number for t in lose(lambda: store.release("a", owner="dead"))] in ([3], [])
    assert direct.trials("a")[3].state == "queued"
    kinds = [e.kind for e in direct.events("a")]
    assert kinds.count("ask") == 6
    assert kinds.count("tell") == 4
    assert kinds.count("claim") == 2
    assert kinds.count("release") == 1


def test_another_try_does_not_take_what_others_wrote_for_its_own(proxied):
    """The commit never arrived, and before the second try somebody else was faster."""
    proxy, store, direct = proxied
    add(store, 2)

    def meanwhile(instead, call, error):
        proxy.instead = instead
        with pytest.raises(error):
            call()
        assert proxy.instead is None, "no commit was lost: nothing was tested"

    meanwhile(
        lambda: direct.finish("a", 0, Outcome.of(2.0)), lambda: store.finish("a", 0, Outcome.of(1.0)), TrialFinished
    )
    assert direct.trials("a")[0].outcome.values == {"f": 2.0}
    meanwhile(
        lambda: direct.add("a", [POINT] * 3, after=2, seeds=range(3)),
        lambda: store.add("a", [POINT] * 3, after=2, seeds=range(10, 13)),
        StaleHistory,
    )
    assert [t.seed for t in direct.trials("a")] == [0, 1, 0, 1, 2]
    meanwhile(lambda: direct.create("b", {}), lambda: store.create("b", {}), DuplicateCampaign)
    assert direct.names() == ["a", "b"]


def test_what_is_lost_before_the_commit_is_done_again(proxied):
    """The server ends the connection in the middle; the whole transaction is repeated."""
    proxy, store, direct = proxied
    add(store, 3)
    direct.claim("a", "other")
    for number in range(3):
        with store._engine.connect() as c:  # one that the pool gives out next
            pid = c.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with direct._engine.connect() as c:
            assert c.exec_driver_sql(f"SELECT pg_terminate_backend({pid})").scalar()
        assert store.finish("a", number, Outcome.of(1.0)).told == number
    assert proxy.lost == 0


def test_an_outage_that_lasts_says_so(monkeypatch):
    monkeypatch.setattr("excursion.store.sql.OUTAGE", 0.5)
    with server() as own:
        store = SqlStore(own.url)
        add(store, 1)
        own.stop()
        with pytest.raises(StoreError, match=re.escape("nothing was lost: try again")) as caught:
            store.claim("a", "me")
        assert own.password not in "".join(traceback.format_exception(caught.value))
        own.start()
        assert store.claim("a", "me") is not None
        store.close()
