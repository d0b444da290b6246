"""Workers, leases and artifacts: real processes and stores, really interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from excursion import Campaign, Command, Function, Parameter, ParameterSpace, Problem, Strategy, Task, run
from excursion import work as front
from excursion.artifacts import Artifacts, folder_name
from excursion.cli import app
from excursion.data import Censored, Outcome
from excursion.errors import InvalidOutcome, InvalidSpec, InvalidStrategy, MissingExtra, StoreError, TrialFinished
from excursion.isolation import bytes_of
from excursion.leases import DEATHS, Heartbeat, give_up, release_dead
from excursion.owners import new_owner
from excursion.store import MemoryStore, SqlStore, Store
from excursion.work import coordinate, supervise, work


def campaign(store, name="scan", budget=12, seed=0, **more):
    problem = Problem(ParameterSpace((Parameter("x", 0, 1), Parameter("y", 0, 1))), (Task("f", (0.5,)),))
    extra = {"run": {"budget": budget, **more}} if budget else {}
    return Campaign.create(store if isinstance(store, Store) else str(store), name, problem, Strategy(seed=seed), extra)


def smooth(p):
    return p["x"] + p["y"] ** 2


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.02)


# --- what a worker does


def test_a_worker_does_what_a_run_does(tmp_path):
    by_run, by_work = campaign(tmp_path / "a.db"), campaign(tmp_path / "b.db")
    run(by_run, Function(smooth), budget=12, progress=False)
    found = work(by_work, Function(smooth))
    assert (found.reason, found.evaluations, found.failed, found.given_back) == ("budget", 12, 0, 0)
    assert [(t.number, t.x, t.told, t.seed, t.outcome) for t in by_work.trials] == [
        (t.number, t.x, t.told, t.seed, t.outcome) for t in by_run.trials
    ]


def test_a_limit_ends_a_worker_and_the_next_goes_on(tmp_path):
    c = campaign(tmp_path / "a.db")
    assert work(c, Function(smooth), limit=5).reason == "limit"
    assert len(c.trials) == 5
    assert (work(c, Function(smooth)).evaluations, len(c.trials)) == (7, 12)
    assert work(c, Function(smooth)).evaluations == 0


def test_who_does_not_ask_only_evaluates(tmp_path):
    c = campaign(tmp_path / "a.db")
    c.ask(3)
    found = work(c, Function(smooth), ask=False, idle=0.3)
    assert (found.reason, found.evaluations, len(c.trials)) == ("idle", 3, 3)
    c.ask(9)
    assert work(c, Function(smooth), ask=False).reason == "budget"  # nothing can be asked for any more


def test_without_a_budget_nothing_is_asked_for(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.1, "y": 0.2}])
    assert work(c, Function(smooth), idle=0.2).evaluations == 1
    assert work(c, Function(smooth), budget=4).evaluations == 3


def test_the_goal_stops_all_workers(tmp_path):
    c = campaign(tmp_path / "a.db", budget=100, goal=0.02)
    first = work(c, Function(smooth))
    assert first.reason == "goal"
    assert 9 < first.evaluations < 60
    # The goal is reached for everybody, not only for whoever has seen it twice.
    second = work(c, Function(smooth))
    assert (second.reason, second.evaluations) == ("goal", 0)


def test_the_goal_must_have_held_before(tmp_path):
    c = campaign(tmp_path / "a.db", budget=100)
    work(c, Function(smooth), budget=20)
    goals = c.goals(0.3)
    trials = c.trials
    assert front._reached(c, goals, trials)
    # Without anything known at an ask before (all were given at once) it holds for the first time.
    given = campaign(tmp_path / "b.db", budget=100)
    given.add([dict(t.x) for t in trials])
    work(given, Function(smooth), ask=False, idle=0.1)
    assert given.status(goals).reached
    assert not front._reached(given, goals, given.trials)


def test_failures_of_all_kinds_are_told_and_the_worker_goes_on(tmp_path):
    def function(p):
        print("x is", p["x"])
        if p["x"] < 0.2:
            os._exit(7)
        if p["x"] < 0.4:
            time.sleep(60)
        if p["x"] < 0.6:
            kept = bytearray(400_000_000)
            time.sleep(60)
            return len(kept)
        return p["x"]

    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": x, "y": 0.5} for x in (0.1, 0.3, 0.5, 0.7)])
    lines = []
    found = work(c, Function(function), timeout=1.5, memory=300_000_000, idle=0.1, say=lines.append)
    assert (found.evaluations, found.failed) == (4, 3)
    assert "GB of memory" in found.last_error
    errors = [t.outcome.error for t in c.trials]
    assert "exit code 7" in errors[0]
    assert "no end within 1.5 s" in errors[1]
    assert "where 0.3 GB are allowed" in errors[2]
    assert errors[3] is None
    assert c.trials[0].outcome.info["output"] == "x is 0.1"
    assert any(line.startswith("trial 1: failed after") and "no end within 1.5 s" in line for line in lines)


def test_an_outcome_that_does_not_fit_is_a_failure_that_keeps_it(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.1, "y": 0.5}])
    work(c, Function(lambda p: {"g": 3.0}), idle=0.1)
    (trial,) = c.trials
    assert trial.state == "failed"
    assert trial.outcome.info["refused"] == {"values": {"g": 3.0}}


def test_what_is_wrong_everywhere_ends_the_worker_and_spoils_nothing(tmp_path):
    c = campaign(tmp_path / "a.db")
    with pytest.raises(InvalidSpec, match="no-such-program"):
        work(c, Command("no-such-program {x} {y}", workdir=str(tmp_path)))
    (trial,) = [t for t in c.trials if t.number == 0]
    assert trial.state == "queued"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lease": 0}, "lease: must be a positive number"),
        ({"timeout": -1.0}, "timeout must be positive"),
        ({"limit": 0}, "limit must be positive"),
        ({"idle": 0.0}, "idle must be positive"),
        ({"memory": -5}, "memory limit: must be positive"),
        ({"budget": 1.5}, "budget must be a positive whole number"),
        ({"batch": -1}, "batch must be a positive whole number"),
        ({"goal": "nonsense"}, "goal"),
    ],
)
def test_settings_are_checked_before_anything_happens(tmp_path, settings, message):
    c = campaign(tmp_path / "a.db")
    with pytest.raises(InvalidStrategy, match=message):
        work(c, Function(smooth), **settings)
    assert c.trials == []


@pytest.mark.parametrize(
    ("text", "number"),
    [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("100k", 10**5), ("7", 7), ("3B", 3)],
)
def test_sizes_are_read(text, number):
    assert bytes_of(text) == number


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2XB", "1e9", "inf", "2 GB please"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidStrategy, match="memory limit"):
        bytes_of(text)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
def test_finished_trials_can_be_read_alone(kind, tmp_path, request):
    url = request.getfixturevalue("postgres") if kind == "postgres" else str(tmp_path / "a.db")
    c = campaign(MemoryStore() if kind == "memory" else url, budget=None)
    with c.store.in_use():
        c.add([{"x": x, "y": 0.5} for x in (0.1, 0.2, 0.3, 0.4)])
        assert c.store.trials("scan", finished=True) == []
        c.tell(2, 1.0)
        assert [t.number for t in c.store.trials("scan", finished=True)] == [2]
        c.store.claim("scan", "me")
        c.tell(0, Outcome.failed("so"))
        for since, numbers in ((0, [0, 2]), (1, [2]), (3, [])):
            assert [t.number for t in c.store.trials("scan", since, finished=True)] == numbers
        assert [t.number for t in c.trials] == [0, 1, 2, 3]
        # What contradicts another value of the same point is seen all the same.
        (again,) = c.add([{"x": 0.3, "y": 0.5}])
        with pytest.raises(InvalidOutcome, match="a bound must agree"):
            c.checked(again.number, Outcome.of({}, Censored("f", above=5.0)), again)
        with pytest.raises(InvalidOutcome, match="a bound must agree"):
            c.checked(again.number, Outcome.of({}, Censored("f", above=5.0)))


# --- leases


def test_the_heartbeat_keeps_a_long_evaluation(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.5, "y": 0.5}])
    stolen = []

    def thief():
        other = SqlStore(tmp_path / "a.db")
        while c.trials[0].pending:
            stolen.extend(filter(None, [other.claim("scan", "thief", lease=60)] if c.trials[0].owner else []))
            time.sleep(0.1)

    thread = threading.Thread(target=thief)
    thread.start()
    found = work(c, Function(lambda p: time.sleep(2.5) or 1.0), lease=0.9, idle=0.1)
    thread.join()
    assert found.evaluations == 1
    assert stolen == []
    assert [e.kind for e in c.store.events("scan")] == ["ask", "claim", "tell"]


def test_who_has_lost_its_trial_lets_it_go(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.5, "y": 0.5}])
    path = tmp_path / "started"

    def function(p):
        path.touch()
        time.sleep(60)

    def other():
        wait_until(path.exists)
        store = SqlStore(tmp_path / "a.db")
        store.release("scan", number=0)
        assert store.claim("scan", "other").number == 0
        time.sleep(1.5)
        store.finish("scan", 0, Outcome.of(3.0))

    thread = threading.Thread(target=other)
    thread.start()
    began = time.monotonic()
    found = work(c, Function(function), lease=1.2, idle=0.2)
    thread.join()
    assert time.monotonic() - began < 20
    assert (found.evaluations, found.given_back) == (0, 1)
    assert (c.trials[0].owner, c.trials[0].outcome.values) == ("other", {"f": 3.0})
    assert [e.kind for e in c.store.events("scan")] == ["ask", "claim", "release", "claim", "tell"]


def test_a_value_that_comes_when_others_were_faster_is_dropped(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.5, "y": 0.5}])
    store_file = str(tmp_path / "a.db")

    def function(p):
        SqlStore(store_file).finish("scan", 0, Outcome.of(3.0), owner="somebody")
        return 5.0

    found = work(c, Function(function), idle=0.1)
    assert found.evaluations == 0
    assert c.trials[0].outcome.values == {"f": 3.0}


def test_a_value_is_kept_until_the_store_takes_it(tmp_path, monkeypatch):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.5, "y": 0.5}])
    refusals, finish, claim = [], SqlStore.finish, SqlStore.claim

    def full(self, *args, **kwargs):
        if len(refusals) < 2:
            refusals.append(args)
            raise StoreError("store: the database refused, got disk full. Free some space")
        return finish(self, *args, **kwargs)

    def unreachable(self, *args, **kwargs):
        if not refusals:
            refusals.append(args)
            raise StoreError("store: the database refused, got no connection. Try again")
        return claim(self, *args, **kwargs)

    monkeypatch.setattr(SqlStore, "finish", full)
    monkeypatch.setattr(SqlStore, "claim", unreachable)
    lines = []
    found = work(c, Function(smooth), idle=0.1, say=lines.append)
    assert found.evaluations == 1
    assert c.trials[0].outcome.values == {"f": 0.75}
    assert len(refusals) == 2
    assert [line.startswith("the store is tried again in") for line in lines[:2]] == [True, True]


def test_a_heartbeat_says_what_is_lost_only_when_it_knows(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.1, "y": 0.5}, {"x": 0.2, "y": 0.5}])
    owner = new_owner()
    with Heartbeat(c, owner, 0.3) as beat:
        assert not beat.lost(0, time.monotonic())  # nothing has been renewed yet
        claims = [(c.store.claim("scan", owner, lease=0.3).number, time.monotonic()) for _ in range(2)]
        time.sleep(0.8)
        assert not any(beat.lost(*claim) for claim in claims)
        c.store.release("scan", number=1)
        wait_until(lambda: beat.lost(*claims[1]))
        assert not beat.lost(*claims[0])
        # Claimed after the last renewal: it does not know yet, which is not to have lost it.
        assert not beat.lost(1, time.monotonic() + 1)
    with pytest.raises(InvalidStrategy, match="lease"):
        Heartbeat(c, owner, float("nan"))


def test_locks_are_held_by_one_and_renewed(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    with Heartbeat(c, "a", 0.6) as a, Heartbeat(c, "b", 0.6) as b:
        with a.holding("ask") as mine:
            assert mine
            time.sleep(1.5)
            with b.holding("ask") as too:
                assert not too
        with b.holding("ask") as now:
            assert now


def test_a_point_that_kills_its_workers_is_given_up(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.1, "y": 0.5}, {"x": 0.2, "y": 0.5}])
    for _ in range(DEATHS - 1):
        c.store.claim("scan", "elsewhere:1:2:3", 0, lease=0.01)
        time.sleep(0.02)
        assert [t.number for t in c.store.expire("scan")] == [0]
        assert not give_up(c, 0)
    # One of this machine, which does not exist any more.
    gone = subprocess.run(
        [sys.executable, "-c", "from excursion.owners import new_owner; print(new_owner())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    c.store.claim("scan", gone, 0)
    assert [t.number for t in release_dead(c)] == [0]
    assert "died or was stopped 5 times" in c.trials[0].outcome.error
    assert work(c, Function(smooth), idle=0.1).evaluations == 1
    assert c.trials[1].state == "complete"


def test_a_worker_gives_up_what_killed_others(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.1, "y": 0.5}])
    for _ in range(DEATHS):
        c.store.claim("scan", "elsewhere:1:2:3", 0, lease=0.01)
        time.sleep(0.02)
        c.store.expire("scan")
    time.sleep(0.3)
    lines = []
    assert work(c, Function(smooth), lease=0.3, idle=0.1, say=lines.append).evaluations == 0
    assert lines == ["trial 0: given up"]
    assert c.trials[0].state == "failed"


def test_stops_of_its_own_are_no_fault_of_the_point(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.1, "y": 0.5}])
    owner = new_owner()
    for _ in range(DEATHS + 1):
        c.store.claim("scan", owner, 0)
        c.store.release("scan", owner=owner)
    assert not give_up(c, 0)


# --- several workers


def test_workers_share_a_campaign_and_one_asks_at_a_time(tmp_path):
    c = campaign(tmp_path / "a.db", budget=24, batch=2)
    shifts = []

    def worker():
        own = Campaign.open(str(tmp_path / "a.db"))
        shifts.append(work(own, Function(lambda p: time.sleep(0.1) or smooth(p))))

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [s.reason for s in shifts] == ["budget"] * 3
    assert sum(s.evaluations for s in shifts) == 24
    assert sum(s.evaluations > 0 for s in shifts) >= 2  # one may come late on a busy machine
    assert sorted(t.told for t in c.trials) == list(range(24))
    assert all(t.state == "complete" for t in c.trials)


def test_a_coordinator_asks_and_workers_evaluate(tmp_path):
    by_run, c = campaign(tmp_path / "a.db", budget=None), campaign(tmp_path / "b.db", budget=None)
    run(by_run, Function(smooth), budget=12, batch=3, workers=3, progress=False)
    slow = Function(lambda p: time.sleep(0.3) or smooth(p))
    threads = [
        threading.Thread(target=lambda: work(Campaign.open(str(tmp_path / "b.db")), slow, ask=False, idle=2.5))
        for _ in range(2)
    ]
    for t in threads:
        t.start()
    report = coordinate(c, budget=12, batch=3, workers=3, progress=False)
    for t in threads:
        t.join()
    assert (report.reason, report.evaluations, report.failed) == ("budget", 12, 0)
    assert report.status.counts == {"complete": 12}
    # In rounds, as a run with as many workers: the order of telling within one may differ, the points do not.
    assert [t.basis for t in c.trials] == [t.basis for t in by_run.trials]
    assert {tuple(t.x.values()) for t in c.trials[:9]} == {tuple(t.x.values()) for t in by_run.trials[:9]}


def test_a_coordinator_stops_at_the_goal(tmp_path):
    c = campaign(tmp_path / "b.db", budget=None)
    thread = threading.Thread(
        target=lambda: work(Campaign.open(str(tmp_path / "b.db")), Function(smooth), ask=False, idle=2.5)
    )
    thread.start()
    report = coordinate(c, budget=100, goal=0.02, progress=False)
    thread.join()
    assert report.reason == "goal"
    assert report.status.reached
    assert report.evaluations == len(c.trials) < 60


def test_what_waits_for_a_person_is_not_evaluated_and_no_more_is_asked_for(tmp_path):
    c = campaign(tmp_path / "a.db", budget=3, approval=True)
    found = work(c, Function(smooth), idle=0.4)
    assert (found.reason, found.evaluations) == ("idle", 0)
    (trial,) = c.trials
    assert trial.approval == "proposed"
    c.store.review("scan", 0, "approved")
    assert work(c, Function(smooth), idle=0.4).evaluations == 1
    assert len(c.trials) == 2


# --- the command


EVALUATOR = """
import os, time
def f(p):
    open("started", "a").close()
    time.sleep(float(os.environ.get("SLEEP", 0)))
    return p["x"] + p["y"] ** 2
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(EVALUATOR)
    (tmp_path / "scan.yaml").write_text(
        "parameters: {x: [0, 1], y: [0, 1]}\ntasks: {f: 0.5}\nevaluator: {python: 'mine.py:f'}\n"
        "run: {budget: 6, lease: 3}\n"
    )
    subprocess.run([*CLI, "create", "scan.yaml"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


CLI = (sys.executable, "-m", "excursion.cli")


def start(folder, *words, sleep=0.0):
    return subprocess.Popen(
        [*CLI, "work", "scan.db", *words],
        cwd=folder,
        env={**os.environ, "SLEEP": str(sleep)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trials(folder):
    return Campaign.open(str(folder / "scan.db")).trials


def test_the_command_works_a_campaign_off(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text("def f(p): return 7.0\n")
    first = start(folder, "scan", "--limit", "1", "--folder", "elsewhere")
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out[:26]) == (0, "limit: 1 evaluations, 0 fai"[:26]), err
    assert trials(folder)[0].outcome.values == {"f": 7.0}
    second = start(folder, "--artifacts", "kept", "--memory", "2GB", "--timeout", "60")
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out[:23]) == (0, "budget: 5 evaluations, "), err
    assert sorted(p.name for p in (folder / "kept" / "scan").iterdir()) == [f"{n:05d}-0" for n in range(1, 6)]


def test_sigterm_lets_the_evaluation_end(folder):
    worker = start(folder, sleep=1.5)
    wait_until((folder / "started").exists)
    worker.terminate()
    out, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    assert out.startswith("stopped: 1 evaluations, 0 failed")
    assert [t.state for t in trials(folder)][:1] == ["complete"]


def test_sigterm_ends_what_takes_longer_and_leaves_it_to_others(folder):
    worker = start(folder, "--grace", "0.5", sleep=60)
    wait_until((folder / "started").exists)
    began = time.monotonic()
    worker.terminate()
    out, err = worker.communicate(timeout=30)
    assert time.monotonic() - began < 8
    assert (worker.returncode, out.startswith("stopped: 0 evaluations, 0 failed, 1 given back")) == (0, True), err
    assert trials(folder)[0].state == "queued"


def test_a_second_ctrl_c_ends_at_once(folder):
    worker = start(folder, sleep=60)
    wait_until((folder / "started").exists)
    worker.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert worker.poll() is None
    worker.send_signal(signal.SIGINT)
    _, err = worker.communicate(timeout=30)
    assert worker.returncode == 130
    assert "go on with: excursion work scan.db" in err
    assert trials(folder)[0].state == "queued"


def test_kill_9_costs_one_lease(folder):
    worker = start(folder, sleep=60)
    wait_until((folder / "started").exists)
    worker.kill()
    worker.communicate()
    (folder / "started").unlink()
    assert trials(folder)[0].state == "running"
    out, err = start(folder, sleep=0).communicate(timeout=60)
    assert out.startswith("budget: 6 evaluations"), err
    kinds = [e.kind for e in Campaign.open(str(folder / "scan.db")).store.events("scan", 0)]
    assert kinds == ["ask", "claim", "release", "claim", "tell"]  # this machine sees that its process is gone


def test_a_supervisor_starts_again_what_dies(folder, monkeypatch):
    monkeypatch.setattr(front, "_PAUSE", 0.2)
    monkeypatch.setenv("SLEEP", "0.8")
    monkeypatch.chdir(folder)
    lines, codes = [], []
    thread = threading.Thread(target=lambda: codes.append(supervise([*CLI, "work", "scan.db"], 2, lines.append)))
    thread.start()
    wait_until((folder / "started").exists)
    (running,) = [t for t in trials(folder) if t.state == "running"][:1]
    os.kill(int(running.owner.split(":")[1]), signal.SIGKILL)
    thread.join(60)
    assert codes == [0]
    assert lines == ["a worker died (signal 9) and is started again"]
    assert [t.state for t in trials(folder)] == ["complete"] * 6


def test_jobs_stop_together_and_do_not_outlive_their_supervisor(folder):
    import psutil

    for how in (signal.SIGTERM, signal.SIGKILL):
        (folder / "started").unlink(missing_ok=True)
        supervisor = start(folder, "--jobs", "2", "--grace", "0.2", sleep=60)
        wait_until((folder / "started").exists)
        family = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(family) >= 4
        supervisor.send_signal(how)
        supervisor.communicate(timeout=30)
        assert supervisor.returncode == (0 if how == signal.SIGTERM else -9)
        _, alive = psutil.wait_procs(family, timeout=15)
        assert alive == []
        assert {t.state for t in trials(folder)} == {"queued"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--spec", "none.yaml"), "must be a readable file"),
        (("--memory", "lots"), "memory limit"),
        (("other",), "no campaign of this name"),
        (("--jobs", "0"), "jobs must be at least 1"),
    ],
)
def test_errors_of_the_command(tmp_path, words, message):
    campaign(tmp_path / "scan.db")
    done = CliRunner().invoke(app, ["work", str(tmp_path / "scan.db"), *words])
    assert done.exit_code == 2
    assert message in done.output


# --- artifacts


PROGRAM = """
import os, sys
print("printed")
with open("yields.txt", "w") as file: file.write("1 2 3")
os.makedirs("deep/er"); open("deep/er/x.txt", "w").close()
os.symlink("/etc/passwd", "secrets"); os.symlink("yields.txt", "same"); os.mkfifo("pipe")
os.symlink("nowhere", "dangling")
x = float(sys.argv[1])
if x < 0.2: sys.exit(3)
if x < 0.4: import time; time.sleep(60)
print(x)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "p.py").write_text(PROGRAM)
    return Command(
        f"{sys.executable} {{folder}}/p.py {{x}} {{y}}", result="stdout", folder=str(tmp_path), workdir="runs"
    )


def tree(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


FILES = {"yields.txt", "deep/er/x.txt", "same", "stdout.txt", "log.txt", "trial.json"}


def test_files_of_all_evaluations_are_kept(tmp_path, program):
    c = campaign(tmp_path / "a.db", name="../../etc: x", budget=None)
    c.add([{"x": x, "y": 0.5} for x in (0.1, 0.3, 0.7)])
    work(c, program, timeout=2.0, artifacts=tmp_path / "kept", idle=0.1)
    assert [t.state for t in c.trials] == ["failed", "failed", "complete"]
    (place,) = (tmp_path / "kept").iterdir()
    assert place.name == "%2E%2E%2F%2E%2E%2Fetc%3A%20x"
    assert sorted(p.name for p in place.iterdir()) == ["00000-0", "00001-0", "00002-0"]
    for trial in c.trials:
        kept = place / f"{trial.number:05d}-0"
        assert tree(kept) == FILES, "also of what failed or was killed"
        about = json.loads((kept / "trial.json").read_text())
        assert (about["number"], about["x"]) == (trial.number, trial.x)
        assert about["outcome"]["values"] == trial.outcome.values
        assert about["left_out"] == ["pipe", "secrets"]
        assert trial.outcome.info["artifacts"] == str(kept)
    assert (place / "00002-0" / "same").read_text() == "1 2 3"
    # Another evaluation of the same trial gets a place of its own.
    again = Artifacts(tmp_path / "kept", c.name).attempt(2)
    assert again.keep({}, None) == (str(place / "00002-1"), "")


def test_logs_go_there_while_they_are_written(tmp_path):
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.5, "y": 0.5}])
    seen = []

    def look():
        wait_until(lambda: [p for p in (tmp_path / "kept").rglob("worker.log") if "half" in p.read_text()])
        seen.extend(p.parent.name for p in (tmp_path / "kept").rglob("worker.log"))

    thread = threading.Thread(target=look)
    thread.start()
    work(
        c,
        Function(lambda p: print("half") or time.sleep(1) or print("all") or 1.0),
        artifacts=tmp_path / "kept",
        idle=0.1,
    )
    thread.join()
    assert seen[0].startswith(".00000-")
    assert (tmp_path / "kept" / "scan" / "00000-0" / "worker.log").read_text() == "half\nall\n"
    assert [p.name for p in (tmp_path / "kept" / "scan").iterdir()] == ["00000-0"]


def test_any_place_that_fsspec_knows(tmp_path, program):
    fsspec = pytest.importorskip("fsspec")
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.7, "y": 0.5}])
    work(c, program, artifacts="memory://bucket/deep", idle=0.1)
    memory = fsspec.filesystem("memory")
    found = {p.removeprefix("/bucket/deep/scan/00000-0/") for p in memory.find("/bucket/deep")}
    assert found == FILES
    assert c.trials[0].outcome.info["artifacts"].endswith("bucket/deep/scan/00000-0")
    attempt = Artifacts("memory://bucket/deep", "scan").attempt(0)
    local = attempt.log.parent
    assert attempt.keep({}, None)[0].endswith("00000-1")
    assert not local.exists()


def test_trouble_with_artifacts_never_costs_a_value(tmp_path, program, monkeypatch):
    (tmp_path / "file").write_text("")
    c = campaign(tmp_path / "a.db", budget=None)
    c.add([{"x": 0.7, "y": 0.5}] * 3)
    work(c, program, artifacts=tmp_path / "file", limit=1)
    assert c.trials[0].outcome.values == {"f": 0.7}
    assert (
        "Not a directory" in c.trials[0].outcome.info["artifacts_error"]
        or "exists" in c.trials[0].outcome.info["artifacts_error"]
    )

    # A store that is lost in the middle, and one that hangs.
    work(c, Function(lambda p: os.system(f"rm -r {tmp_path}/gone") or 1.0), artifacts=tmp_path / "gone", limit=1)
    assert c.trials[1].outcome.values == {"f": 1.0}
    assert "No such file" in c.trials[1].outcome.info["artifacts_error"]

    attempt = Artifacts(tmp_path / "slow", "scan").attempt(0)
    monkeypatch.setattr(os, "rename", lambda *_: time.sleep(3))
    began = time.monotonic()
    assert attempt.keep({}, None, patience=0.2) == ("", "it took longer than 0.2 s")
    assert time.monotonic() - began < 2


def test_a_result_cannot_lead_elsewhere(tmp_path):
    from excursion.artifacts import work_directory

    command = Command("x {x}", workdir="runs", folder=str(tmp_path))
    for name in ("runs/00000-0", "runs/00001-0", "other"):
        (tmp_path / name).mkdir(parents=True)
    began = time.time()
    assert work_directory(command, {"workdir": str(tmp_path / "runs" / "00001-0")}, 0, began).name == "00001-0"
    for bad in ("/etc", str(tmp_path / "other"), str(tmp_path / "runs" / ".." / "other"), str(tmp_path / "runs"), 7):
        assert work_directory(command, {"workdir": bad}, 0, began).name == "00000-0"
    assert work_directory(command, {}, 0, began + 60) is None  # of an evaluation before
    assert work_directory(Function(smooth), {"workdir": "/etc"}, 0, began) is None


def test_places_that_make_no_sense():
    with pytest.raises(InvalidSpec, match="artifacts: must be a folder or a URL"):
        Artifacts("nonsense://bucket", "scan")
    with pytest.raises(MissingExtra, match="artifacts: a URL needs fsspec and its driver"):
        Artifacts("gs://bucket", "scan")


@pytest.mark.parametrize("name", ["..", ".", "...", "a/b", "a\\b", " a", "a ", "a.", "é" * 200, "~", "\n", "COM1"])
def test_names_of_folders_are_safe(name, tmp_path):
    found = folder_name(name)
    assert "/" not in found
    assert "\\" not in found
    assert found not in ("", ".", "..")
    assert len(found) <= 120
    (tmp_path / found / "x").mkdir(parents=True)
    assert [p.name for p in tmp_path.iterdir()] == [found]


def test_names_of_folders_differ():
    names = ["..", "%2E%2E", "é" * 199, "é" * 200, "a/b", "a%2Fb", "a b", "a%20b", " a", "a"]
    assert len({folder_name(n) for n in names}) == len(names)


def test_told_trials_stay(tmp_path):
    c = campaign(tmp_path / "a.db")
    work(c, Function(smooth))
    with pytest.raises(TrialFinished):
        c.tell(0, 4.0)
