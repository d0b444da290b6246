"""Damage of many kinds is found, said, and repaired as far as it can be, on both databases."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from excursion.campaign import Campaign
from excursion.cli import app
from excursion.data import Outcome, Proposal
from excursion.doctor import examine
from excursion.errors import StoreError
from excursion.owners import is_dead, new_owner
from excursion.problem import Problem, Task
from excursion.store import MemoryStore, SqlStore

POINT = Proposal({"x": 0.5}, basis=0)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    url = tmp_path / "campaign.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    with SqlStore(url) as made:
        made.create("a", {"k": 1})
        made.add("a", [POINT] * 6, after=0, seeds=range(6))
        for number in (3, 1, 0):
            made.claim("a", "me", number)
            made.finish("a", number, Outcome.of(float(number)))
        made.claim("a", "me", lease=60)
        yield made


def damage(store: SqlStore, *statements: str) -> None:
    """What another program, or a failing disk, may do."""
    with store._engine.connect().execution_options(excursion="write") as c, c.begin():
        for statement in statements:
            c.exec_driver_sql(statement)


def repaired(store: SqlStore) -> list[tuple[str, tuple[int, ...]]]:
    """Kinds and trials of what is found; a repair finds the same, and afterwards there is nothing left."""
    found = store.check("a")
    assert store.check("a") == found, "looking changes nothing"
    assert store.check("a", repair=True) == found
    assert store.check("a") == [f for f in found if not f.repair]
    return [(f.kind, f.trials) for f in found]


def test_a_healthy_campaign_has_no_faults(store):
    before, log = store.trials("a"), store.events("a")
    assert repaired(store) == []
    assert (store.trials("a"), store.events("a")) == (before, log)
    memory = MemoryStore()
    memory.create("a", {})
    assert memory.check("a", repair=True) == []


def test_a_damaged_outcome_is_a_failure_that_keeps_the_text(store):
    damage(store, 'UPDATE trial SET outcome = \'{"values": {"f": 1.0\' WHERE number = 3')
    fresh = SqlStore(store.url if "://" not in store.url else store._url.render_as_string(hide_password=False))
    with pytest.raises(StoreError, match="its row must hold JSON.*see excursion doctor --repair"):
        fresh.trials("a")
    assert repaired(store) == [("row", (3,))]
    trial = fresh.trials("a")[3]
    assert (trial.state, trial.told) == ("failed", 0)
    assert trial.outcome.info == {"damaged": '{"values": {"f": 1.0'}
    assert [t.state for t in fresh.trials("a")][:2] == ["complete"] * 2


@pytest.mark.parametrize("column", ["predicted", "belief"])
def test_a_damaged_reason_is_emptied(store, column):
    damage(store, f"UPDATE trial SET {column} = 'nonsense' WHERE number = 4")
    assert repaired(store) == [("row", (4,))]
    assert getattr(store.trials("a")[4], column) == {}


def test_a_lost_point_is_said(store):
    damage(store, "UPDATE trial SET x = '' WHERE number = 4", "UPDATE campaign SET spec = '{'")
    (campaign, row) = store.check("a", repair=True)
    assert (campaign.kind, row.kind, row.trials) == ("campaign", "row", (4,))
    assert "Restore" in campaign.text
    assert "the point is lost" in row.text
    assert campaign.repair == row.repair == ""


def test_lost_trials_are_said(store):
    damage(store, "DELETE FROM trial WHERE number = 2")
    assert repaired(store) == [("gap", (2,))]


def test_the_order_of_completion_is_closed(store):
    damage(store, "UPDATE trial SET told = told + 5 WHERE told > 0")
    assert repaired(store) == [("order", (1, 0))]
    assert [t.told for t in store.trials("a")[:4]] == [2, 1, None, 0]
    assert store.finish("a", 2, Outcome.of(1.0)).told == 3


def test_others_see_what_was_repaired(store):
    other = pickle.loads(pickle.dumps(store))
    damage(store, "UPDATE trial SET told = told + 5 WHERE told > 0")
    assert [t.told for t in other.trials("a")] == [7, 6, None, 0, None, None]
    store.check("a", repair=True)
    store.finish("a", 2, Outcome.of(1.0))
    assert [t.told for t in other.trials("a")] == [2, 1, 3, 0, None, None]
    assert other.trials("a") == store.trials("a")
    other.close()


def test_a_state_is_what_the_outcome_says(store):
    damage(store, "UPDATE trial SET state = 'censored' WHERE number = 1")
    assert repaired(store) == [("state", (1,))]
    assert store.trials("a")[1].state == "complete"


def test_lines_that_the_log_lacks_are_added(store):
    damage(store, "DELETE FROM event WHERE number = 1", "DELETE FROM event WHERE kind = 'ask' AND number = 5")
    assert repaired(store) == [("log", (1, 5)), ("log", (1,))]
    trial, lines = store.trials("a")[1], store.events("a", 1)
    assert [(e.kind, e.time, e.seed, e.note) for e in lines] == [
        ("ask", trial.asked, 1, "written by a repair"),
        ("tell", trial.finished, 1, "written by a repair"),
    ]


def test_leases_that_ended_are_queued_again(store):
    damage(store, "UPDATE trial SET expires = 1.0 WHERE number = 2")
    assert repaired(store) == [("lease", (2,))]
    assert (store.trials("a")[2].state, store.events("a", 2)[-1].kind) == ("queued", "expire")


def test_lost_indices_are_made_again(store):
    damage(store, "DROP INDEX trial_state", "DROP INDEX event_trial")
    assert repaired(store) == [("index", ()), ("index", ())]
    names = {i["name"] for i in sa.inspect(store._engine).get_indexes("trial")}
    assert "trial_state" in names


def test_a_copy_without_keys_gets_one(tmp_path, store):
    if store.url.startswith("postgresql"):
        damage(store, "ALTER TABLE trial DROP CONSTRAINT trial_campaign_told_key")
    else:
        sql = "SELECT sql FROM sqlite_master WHERE name = 'trial'"
        with closing(sqlite3.connect(store.url)) as c:
            made = c.execute(sql).fetchone()[0]
        damage(
            store,
            "DROP INDEX trial_state",
            "ALTER TABLE trial RENAME TO old",
            made.replace("UNIQUE (campaign, told),", ""),
            "INSERT INTO trial SELECT * FROM old",
            "DROP TABLE old",
        )
    kinds = repaired(store)
    assert ("index", ()) in kinds
    with pytest.raises(sa.exc.IntegrityError):
        damage(store, "UPDATE trial SET told = 0 WHERE number = 1")


def test_everything_at_once(store):
    damage(
        store,
        "UPDATE trial SET outcome = 'x', told = told + 5 WHERE number = 0",
        "UPDATE trial SET state = 'failed' WHERE number = 1",
        "UPDATE trial SET expires = 1.0 WHERE number = 2",
        "DELETE FROM event",
    )
    assert [kind for kind, _ in repaired(store)] == ["row", "order", "state", "log", "log", "lease"]
    assert [t.state for t in store.trials("a")] == ["failed", "complete", "queued", "complete", "queued", "queued"]


def test_a_broken_index_of_the_file_is_built_anew(tmp_path):
    path = tmp_path / "campaign.db"
    store = SqlStore(path)
    store.create("a", {})
    store.add("a", [POINT] * 50, after=0, seeds=range(50))
    with closing(sqlite3.connect(path)) as c:
        # The index lacks a row that the table has: as after a crash of a disk that does not honour flushes.
        c.execute("PRAGMA writable_schema = ON")
        (sql,) = c.execute("SELECT sql FROM sqlite_master WHERE name = 'trial_state'").fetchone()
        c.execute("UPDATE sqlite_master SET sql = sql || ' WHERE number < 10' WHERE name = 'trial_state'")
        c.execute("PRAGMA writable_schema = RESET")
        c.execute("REINDEX trial_state")
        c.execute("PRAGMA writable_schema = ON")
        c.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'trial_state'", (sql,))
        c.commit()
    assert [kind for kind, _ in repaired(store)] == ["file"]
    assert store.claim("a", "me", 49) is not None


def test_a_ruined_file_is_said(tmp_path):
    path = tmp_path / "campaign.db"
    store = SqlStore(path)
    store.create("a", {})
    store.add("a", [Proposal({"x": float(i)}, 0) for i in range(500)], after=0, seeds=range(500))
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b"\xff" * 8192)
    said: list[str] = []
    try:
        said += [f.kind for f in store.check("a") if not f.repair]
    except StoreError as error:
        said.append(str(error))
    assert any(text in ("file", "row") or "malformed" in text for text in said)


# --- the command


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign.create(tmp_path / "campaign.db", "a", Problem({"x": (0, 1)}, Task("f", 0.5)))


def test_dead_processes_are_known():
    assert not is_dead(new_owner())
    done = subprocess.run(
        [sys.executable, "-c", "from excursion.owners import new_owner; print(new_owner())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    owner = done.stdout.strip()
    assert is_dead(owner)
    host, pid, start, run = owner.split(":")
    assert not is_dead(f"elsewhere:{pid}:{start}:{run}")
    me = new_owner().split(":")
    assert is_dead(":".join([me[0], me[1], "1.00", me[3]])), "a later process with the same number"
    for odd in ("", "me", f"{host}:", f"{host}:x:1", f"{host}:²:1"):
        assert not is_dead(odd)


def test_the_doctor_repairs_when_told(campaign):
    path = campaign.store.url
    campaign.add([{"x": 0.25}, {"x": 0.75}, {"x": 0.5}])
    dead = new_owner().split(":")
    dead[2] = "1.00"
    campaign.store.claim("a", ":".join(dead))
    campaign.store.claim("a", "elsewhere:1:1.00:x", lease=60)
    damage(
        campaign.store,
        "UPDATE trial SET expires = 1.0 WHERE number = 1",
        "UPDATE trial SET belief = '' WHERE number = 2",
    )
    runner = CliRunner()
    said = runner.invoke(app, ["doctor", path])
    assert said.exit_code == 0
    assert "row: trial 2: its belief cannot be read" in said.stdout
    assert "doctor --repair would: its belief is emptied" in said.stdout
    said = runner.invoke(app, ["doctor", path, "--repair"])
    assert said.exit_code == 0, said.output
    for line in ("repaired: its belief is emptied", "lease: 1 running trials", "dead: trials 0 are run by"):
        assert line in said.stdout
    assert [t.state for t in campaign.trials] == ["queued"] * 3
    assert examine(campaign) == []
    assert runner.invoke(app, ["doctor", path]).stdout == "nothing is odd\n"


def test_rows_of_another_problem_are_said(campaign):
    campaign.add([{"x": 0.25}, {"x": 0.75}])
    campaign.tell(0, 1.0)
    damage(campaign.store, "UPDATE trial SET x = '{\"y\": 1.0}' WHERE number = 1")
    (found,) = examine(campaign)
    assert (found.kind, found.trials) == ("row", (1,))
    damage(campaign.store, "UPDATE trial SET x = '{\"x\": 0.75}' WHERE number = 1")
    damage(campaign.store, "UPDATE trial SET outcome = replace(outcome, '\"f\"', '\"g\"') WHERE number = 0")
    (found,) = examine(Campaign.open(campaign.store.url))
    assert (found.kind, found.trials) == ("row", (0,))
