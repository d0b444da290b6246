import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from excursion import campaign as campaign_module
from excursion import runner
from excursion.acquisition import Search
from excursion.campaign import Campaign
from excursion.data import Job, Outcome, Proposal
from excursion.errors import ImpossiblePoint, InvalidStrategy
from excursion.evaluators import Evaluator
from excursion.evaluators.python import Function
from excursion.problem import Fidelity, Problem, Task
from excursion.proposal import Strategy
from excursion.runner import run
from excursion.space import Parameter, ParameterSpace
from excursion.store import open_store

PROBLEM = Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6))
STRATEGY = Strategy(design_size=6, seed=1, search=Search(pool=256, candidates=48, integration=48, polish=1))


def plane(p):
    return p["x"] + 0.3 * p["y"]


def campaign(url="memory://", strategy=STRATEGY, problem=PROBLEM):
    return Campaign.create(url, "c", problem, strategy)


def test_a_run_ends_at_the_budget():
    c = campaign()
    report = run(c, Function(plane), budget=12, progress=False)
    assert (report.reason, report.evaluations, report.failed) == ("budget", 12, 0)
    assert report.status.counts == {"complete": 12}
    assert [t.told for t in c.trials] == list(range(12))
    again = run(c, Function(plane), budget=12, progress=False)
    assert (again.reason, again.evaluations) == ("budget", 0)
    assert run(c, Function(plane), budget=14, progress=False).evaluations == 2


def test_the_goal_stops_early():
    report = run(campaign(), Function(plane), budget=100, goal=0.01, progress=False)
    assert report.reason == "goal"
    assert report.status.uncertainty["f"] <= 0.01
    assert 6 < report.evaluations < 40


def test_a_threshold_that_is_never_crossed_does_not_stop_at_once():
    c = campaign(problem=Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=50.0)))
    report = run(c, Function(plane), budget=30, goal=0.01, progress=False)
    assert report.evaluations >= 18
    assert report.status.crossed == {"f": False}


def test_parallel_rounds_give_the_points_of_a_single_process():
    """With batch >= workers the run goes in rounds, so timing plays no part."""
    alone, together = campaign(), campaign()
    run(alone, Function(plane), budget=15, batch=3, workers=1, progress=False)
    run(together, Function(lambda p: time.sleep(0.02 * p["y"]) or plane(p)), budget=15, batch=3, progress=False)
    assert [t.x for t in alone.trials] == [t.x for t in together.trials]


@pytest.mark.parametrize("kind", ["threads", "spawn", "loky"])
def test_any_executor_keeps_all_workers_busy(kind):
    c = campaign(strategy=Strategy(design_size=50))
    if kind == "loky":
        report = run(c, Function(lambda p: time.sleep(0.5) or plane(p)), budget=16, workers=4, progress=False)
    else:
        make = ThreadPoolExecutor if kind == "threads" else ProcessPoolExecutor
        with make(4, **({} if kind == "threads" else {"mp_context": get_context("spawn")})) as executor:
            report = run(
                c, Function(lambda p: time.sleep(0.5) or plane(p)), budget=16, executor=executor, progress=False
            )
            assert executor.submit(math.sqrt, 4).result() == 2  # still open
    assert report.evaluations == 16
    spans = sorted((t.started, t.finished) for t in c.trials)
    overlap = max(sum(a <= start < b for a, b in spans) for start, _ in spans)
    assert overlap == 4


def test_asynchronous_asks_know_what_has_come_back():
    """With batch=1 each ask uses every value told so far: later trials have a larger basis."""
    c = campaign()
    run(c, Function(lambda p: time.sleep(0.05 + 0.2 * p["x"]) or plane(p)), budget=14, workers=3, progress=False)
    bases = [t.basis for t in c.trials]
    assert bases == sorted(bases)
    assert bases[-1] >= 11
    assert len(set(bases[6:])) >= 5


class Troubled(Evaluator):
    """Everything that can go wrong, by the place."""

    def evaluate(self, job: Job) -> Outcome:
        x, y = job.x["x"], job.x["y"]
        if x < 0.2:
            raise ValueError(f"no convergence at {x:.3f}")
        if x > 0.9:
            raise ImpossiblePoint("outside the kinematic range")
        if y < 0.15:
            return Outcome.of(math.inf)
        if y > 0.85:
            return Outcome.of({"other": 1.0})
        return Outcome.of(plane(job.x))


def test_failures_are_recorded_with_their_reason_and_the_run_goes_on():
    c = campaign()
    report = run(c, Troubled(), budget=40, progress=False)
    assert report.evaluations == 40
    by_state = {}
    for t in c.trials:
        by_state.setdefault(t.state, []).append(t)
    assert set(by_state) == {"complete", "censored", "failed", "invalid"}
    assert report.failed == len(by_state["failed"]) + len(by_state["invalid"])
    for t in c.trials:
        x, y = t.x["x"], t.x["y"]
        if x < 0.2:
            assert t.outcome.error == f"ValueError: no convergence at {x:.3f}"
            assert 'raise ValueError(f"no convergence' in t.outcome.info["traceback"]
        elif x > 0.9:
            assert (t.state, t.outcome.error) == ("invalid", "outside the kinematic range")
        elif y < 0.15:
            assert t.state == "censored"
        elif y > 0.85:
            assert "missing=['f'], unknown=['other']" in t.outcome.error
        else:
            assert t.state == "complete"


class Unlucky(Evaluator):
    """Fails for one seed in four, whatever the point: a lost node."""

    def evaluate(self, job: Job) -> Outcome:
        if job.seed % 4 == 0:
            raise OSError("lost node")
        return Outcome.of(plane(job.x))


def test_what_failed_by_chance_is_tried_again():
    c = campaign()
    report = run(c, Unlucky(), budget=26, progress=False)
    points = {}
    for t in c.trials:
        points.setdefault(tuple(t.x.values()), []).append(t)
    again = [own for own in points.values() if len(own) > 1]
    assert again
    assert report.failed == sum(t.seed % 4 == 0 for t in c.trials) >= 4
    assert all([t.criterion == "retry" for t in own] == [False, True] for own in again)
    assert all(own[0].state == "failed" for own in again)
    assert any(own[1].state == "complete" for own in again)
    assert report.evaluations == 26


def die_in_a_corner(p):
    if p["x"] < 0.3 and p["y"] < 0.5:
        os._exit(11)  # as a segmentation fault in compiled code does
    time.sleep(0.05)
    return plane(p)


def test_a_dying_worker_costs_its_own_trial_only():
    c = campaign()
    report = run(c, Function(die_in_a_corner), budget=14, workers=2, progress=False)
    assert report.evaluations == 14
    killers = [t for t in c.trials if t.x["x"] < 0.3 and t.x["y"] < 0.5]
    assert killers
    assert all("the worker process died" in t.outcome.error for t in killers)
    assert all(t.state == "complete" for t in c.trials if t not in killers)  # neighbours in the pool are innocent


def test_an_evaluator_that_cannot_travel_fails_at_once():
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        run(campaign(), Function(lambda p: lock and plane(p)), budget=3, workers=2, progress=False)


def test_queued_trials_are_evaluated_first():
    c = campaign()
    c.add([{"x": 0.123, "y": 0.456}])
    run(c, Function(plane), budget=3, progress=False)
    assert c.trials[0].x == {"x": 0.123, "y": 0.456}
    assert c.trials[0].state == "complete"


def test_somebody_else_may_tell_meanwhile(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    c = campaign(url)

    def slow(p):
        time.sleep(0.2)
        return plane(p)

    def meddle():
        with open_store(url) as store:
            other = Campaign.open(store, "c")
            while not (running := [t for t in other.trials if t.state == "running"]):
                time.sleep(0.01)
            other.tell(running[0].number, 17.0)

    thread = threading.Thread(target=meddle)
    thread.start()
    run(c, Function(slow), budget=4, workers=2, progress=False)
    thread.join()
    values = [t.outcome.values["f"] for t in c.trials]
    assert values.count(17.0) == 1
    assert all(t.state == "complete" for t in c.trials)
    c.store.close()


def test_a_small_lattice_is_exhausted():
    space = ParameterSpace((Parameter("x", 0, 3, step=1), Parameter("y", 0, 1, step=1)))
    report = run(campaign(problem=Problem(space, Task(thresholds=1.7))), Function(plane), budget=50, progress=False)
    assert (report.reason, report.evaluations) == ("exhausted", 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget must be a positive number of evaluations, got 0"),
        ({"budget": 2.5}, "budget must be a positive number of evaluations, got 2.5"),
        ({"budget": 5, "batch": 0}, "batch must be a positive number of points, got 0"),
        ({"budget": 5, "workers": -1}, "number of workers must be positive, got -1"),
        ({"budget": 5, "goal": 2}, "goal is a fraction between 0 and 0.5, got 2"),
    ],
)
def test_settings_are_checked_before_anything_runs(settings, message):
    c = campaign()
    with pytest.raises(InvalidStrategy, match=message):
        run(c, Function(plane), **settings)
    assert c.trials == []


def test_progress_goes_to_stderr(capfd):
    run(campaign(), Function(lambda p: time.sleep(11) or 1.0 if p["x"] > 2 else plane(p)), budget=3, progress=True)
    assert capfd.readouterr().out == ""


# --- real processes, really killed

SCRIPT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from excursion.acquisition import Search
    from excursion.campaign import Campaign
    from excursion.proposal import Strategy
    from excursion.evaluators.python import Function
    from excursion.problem import Problem, Task
    from excursion.runner import run

    url, log, budget = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def f(p):
        time.sleep(0.03)
        value = p["x"] + 0.3 * p["y"]
        with open(log, "a") as out:
            out.write(f"{p['x']!r} {p['y']!r}\\n")
        return value

    campaign = Campaign.open(url, "c")
    print("ready", flush=True)
    run(campaign, Function(f), budget=budget, workers=2, progress=False)
    """
)


def start(tmp_path, url, budget):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), url, str(tmp_path / "log"), str(budget)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def wait_for_evaluations(tmp_path, n):
    """Until the script has evaluated n more points; how long that takes depends on the machine's load."""
    log = tmp_path / "log"
    lines = len(log.read_text().splitlines()) if log.exists() else 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= lines + n:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {n} evaluations within two minutes")


def end(process, how):
    """Send a signal to the run alone; its orphaned workers are ended afterwards."""
    process.send_signal(how)
    process.wait(timeout=60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_no_told_value(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    campaign(url).store.close()
    told = {}
    for i in range(6):
        process = start(tmp_path, url, 400)
        if i:  # the first one is killed while it starts
            wait_for_evaluations(tmp_path, 2)
        time.sleep(0.13 * i)
        assert end(process, signal.SIGKILL) == -signal.SIGKILL
        with open_store(url) as store:
            trials = Campaign.open(store, "c").trials
        now = {t.number: (json.dumps(t.x), t.outcome.values["f"]) for t in trials if t.state == "complete"}
        assert {k: now[k] for k in told} == told  # nothing told before is lost or changed
        assert sorted(t.told for t in trials if t.told is not None) == list(range(len(now)))
        assert [t.number for t in trials] == list(range(len(trials)))
        for t in trials:
            if t.state == "complete":
                assert t.outcome.values["f"] == plane(t.x)
        told = now
    assert len(told) > 5
    budget = len(trials) + 4
    process = start(tmp_path, url, budget)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    with open_store(url) as store:
        trials = Campaign.open(store, "c").trials
    assert len(trials) == budget
    assert all(t.state == "complete" for t in trials)  # what the dead had claimed was taken up
    assert sorted(t.told for t in trials) == list(range(budget))


def test_ctrl_c_queues_what_was_in_flight(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    campaign(url).store.close()
    process = start(tmp_path, url, 400)
    wait_for_evaluations(tmp_path, 3)
    assert end(process, signal.SIGINT) != 0
    with open_store(url) as store:
        trials = Campaign.open(store, "c").trials
    assert trials
    assert {t.state for t in trials} <= {"complete", "queued"}


def test_a_dead_executor_is_an_error_that_loses_nothing():
    c = campaign()
    executor = ThreadPoolExecutor(2)
    executor.shutdown()
    with pytest.raises(InvalidStrategy, match="the executor must take work, got RuntimeError"):
        run(c, Function(plane), budget=4, executor=executor, progress=False)
    assert {t.state for t in c.trials} == {"queued"}
    assert run(c, Function(plane), budget=4, progress=False).evaluations == 4


@pytest.mark.slow
def test_a_point_that_kills_its_process_is_given_up(tmp_path):
    """Alone in its process a crash takes the run with it; after some restarts the point is the one to blame."""
    url = f"sqlite:///{tmp_path}/c.db"
    campaign(url).store.close()
    code = (
        "import os, sys\n"
        "from excursion import Campaign, Function, run\n"
        "f = lambda p: os._exit(9) if p['x'] > 0.5 else p['x']\n"
        "print(run(Campaign.open(sys.argv[1]), Function(f), budget=2, workers=1, progress=False).failed)\n"
    )
    for _ in range(12):
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=100)
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
    with open_store(url) as store:
        trials = Campaign.open(store, "c").trials
    assert done.returncode == 0
    assert all((t.state == "failed") == (t.x["x"] > 0.5) for t in trials)
    assert any("the process died or was stopped 5 times" in (t.outcome.error or "") for t in trials)


def test_several_runs_share_one_budget(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    campaign(url).store.close()

    def work():
        with open_store(url) as store:
            run(Campaign.open(store, "c"), Function(lambda p: time.sleep(0.05) or plane(p)), budget=20, progress=False)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with open_store(url) as store:
        trials = Campaign.open(store, "c").trials
    assert len(trials) == 20
    assert all(t.state == "complete" for t in trials)


# --- fidelities, tables and bounds

BOTH = Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6), fidelities=(Fidelity("fast", 1), Fidelity("full", 10)))


def test_the_progress_line_counts_cost_and_no_tables(capsys):
    c = campaign(problem=BOTH)
    c.warm_start([{"x": 0.1 * i, "y": 0.5, "f": 0.1 * i} for i in range(5)], "fast")
    for i in range(3):
        (trial,) = c.add([{"x": 0.2 * i, "y": 0.1}], fidelity="fast")
        c.tell(trial.number, 0.2 * i)
    display = runner._Display(c, 4, runner.Watch(c, ()), None)
    (trial,) = c.add([{"x": 0.5, "y": 0.1}])
    c.tell(trial.number, 0.5)
    c.add([{"x": 0.6, "y": 0.1}])  # not finished
    display._said, display._start = -1e9, time.monotonic() - 50
    display.show(1, 0, [])
    line = capsys.readouterr().err
    assert line.startswith("1.3/4 evaluated, ")
    # One unit of cost took 50 s, 2.7 are left.
    assert line.rstrip().endswith(("| 0:02:15 left", "| 0:02:16 left"))


def test_a_run_ends_when_what_is_worth_asking_for_cannot_be_paid(monkeypatch):
    """Two tenths are left: enough for the cheap fidelity, but the campaign wants the dear one."""
    c = campaign(problem=BOTH)
    for i in range(4):
        c.add([{"x": 0.2 * i, "y": 0.1}], fidelity="full")
    for i in range(8):
        c.add([{"x": 0.1 * i, "y": 0.3}], fidelity="fast")
    wanted = Proposal({"x": 0.45, "y": 0.5}, 12, fidelity="full")
    asked = []

    def propose(*given):
        asked.append(given)
        assert len(asked) < 4, "the run goes on asking"
        return [wanted]

    monkeypatch.setattr(campaign_module, "propose", propose)
    report = run(c, Function(plane), budget=5, workers=1, progress=False)
    assert len(asked) == 1
    assert (report.reason, report.evaluations) == ("budget", 12)
    assert BOTH.spent(c.trials) == pytest.approx(4.8)


def test_what_contradicts_a_value_known_there_is_recorded_as_a_failure():
    """Nothing is lost: what came back is kept with the reason."""
    c, point = campaign(), {"x": 0.5, "y": 0.5}

    class Told(Evaluator):
        def evaluate(self, job):
            if job.number in (0, 3):
                return Outcome.of(0.4, variances={"f": 1e-4}, info={"log": "a.txt"})
            return Outcome(values={"f": 0.7}, bounds={"f": "above"}, info={"log": "a.txt"})

    c.add([point, point, {"x": 0.6, "y": 0.5}, {"x": 0.6, "y": 0.5}])
    report = run(c, Told(), budget=4, workers=1, progress=False)
    assert [t.state for t in c.trials] == ["complete", "failed", "censored", "failed"]
    bound, value = (c.trials[i].outcome for i in (1, 3))
    assert "a bound must agree with what is known, got above 0.7 at the point of trial 0, where it is 0.4 +-" in (
        bound.error
    )
    assert bound.info == {"log": "a.txt", "refused": {"values": {"f": 0.7}, "bounds": {"f": "above"}}}
    assert (
        "a value must agree with what is known, got 0.4 at the point of trial 2, where it is above 0.7" in value.error
    )
    assert value.info["refused"] == {"values": {"f": 0.4}, "variances": {"f": 1e-4}}
    assert report.failed == 2
    assert report.last_error == value.error


def test_what_a_lost_machine_was_evaluating_is_taken_up(tmp_path):
    """Of another machine nobody can see whether its process is alive; its lease ends."""
    c = campaign(tmp_path / "scan.db")
    c.add([{"x": 0.25, "y": 0.25}])
    assert c.store.claim("c", "elsewhere:17:1.00:lost", lease=0.2) is not None
    c.add([{"x": 0.75, "y": 0.25}])
    time.sleep(0.3)
    run(c, Function(lambda p: p["x"]), budget=2, workers=1, progress=False)
    assert [t.outcome.values["f"] for t in c.trials] == [0.25, 0.75]
    assert [e.kind for e in c.store.events("c", 0)] == ["ask", "claim", "expire", "claim", "tell"]


def test_a_run_renews_its_leases(tmp_path, monkeypatch):
    monkeypatch.setattr("excursion.runner.LEASE", 0.3)
    c = campaign(tmp_path / "scan.db")
    c.add([{"x": 0.25, "y": 0.25}])
    stolen = []

    def slow(point):
        time.sleep(1.2)
        stolen.extend(open_store(tmp_path / "scan.db").expire("c"))
        return point["x"]

    run(c, Function(slow), budget=1, workers=1, progress=False)
    assert stolen == []
    assert [e.kind for e in c.store.events("c")] == ["ask", "claim", "tell"]
