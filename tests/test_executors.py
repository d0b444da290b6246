"""One contract over all engines that evaluate, each of them real; what stands for a service says so in its name."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from excursion.campaign import Campaign
from excursion.errors import EngineError, ImpossiblePoint, InvalidSpec, MissingExtra
from excursion.evaluators.command import Command
from excursion.evaluators.python import Function
from excursion.executors import MPI, RECIPES, Dask, GlobusCompute, Local, Parsl, Workers, recipe, settings
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.runner import run
from excursion.spec import begin, go_on, load, parse, resume
from excursion.store import open_store

# Parsl makes a pool of threads for itself and leaves its sockets to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

PROBLEM = Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6))
OWN_PROCESSES = ("processes", "dask", "parsl")


def campaign(points: list[dict[str, float]] = (), url: str = "memory://", **strategy: Any) -> Campaign:
    made = Campaign.create(url, "c", PROBLEM, Strategy(**{"design_size": 500, "seed": 1, "retries": 0, **strategy}))
    if points:
        made.add(points)
    return made


def grid(n: int) -> list[dict[str, float]]:
    return [{"x": (i + 0.5) / n, "y": 0.5} for i in range(n)]


@contextlib.contextmanager
def open_engine(kind: str, workers: int = 2) -> Iterator[Executor]:
    if kind == "threads":
        made: Any = Local(threads=True)
    else:
        pytest.importorskip({"dask": "distributed", "parsl": "parsl"}.get(kind, "loky"))
        made = recipe("local" if kind == "processes" else kind)
    with made.open(workers) as executor:
        yield executor


@pytest.fixture(scope="module", params=["processes", "threads", "dask", "parsl"])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, Executor]]:
    with open_engine(request.param) as executor:
        yield request.param, executor


# ------------------------------------------------------------------------------------------- the contract


def test_values_belong_to_their_points(engine: tuple[str, Executor]) -> None:
    _, executor = engine
    c, factor = campaign(grid(150)), 3.0
    report = run(c, Function(lambda p: factor * p["x"] + p["y"]), budget=150, executor=executor, progress=False)
    assert (report.reason, report.evaluations, report.failed) == ("budget", 150, 0)
    assert all(t.outcome.values == {"f": 3 * t.x["x"] + t.x["y"]} for t in c.trials)
    assert sorted(t.told for t in c.trials) == list(range(150))


def test_rounds_give_the_points_of_this_process(engine: tuple[str, Executor]) -> None:
    _, executor = engine
    alone, there = campaign(design_size=6), campaign(design_size=6)
    function = Function(lambda p: p["x"] + 0.3 * p["y"])
    run(alone, function, budget=10, batch=2, workers=1, progress=False)
    run(there, function, budget=10, batch=2, executor=executor, progress=False)
    assert [t.x for t in there.trials] == [t.x for t in alone.trials]
    assert [t.seed for t in there.trials] == [t.seed for t in alone.trials]


def troubled(p: dict[str, float]) -> Any:
    if p["x"] < 0.2:
        raise ValueError(f"no convergence at {p['x']:.3f}")
    if p["x"] < 0.4:
        raise ImpossiblePoint("outside the kinematic range")
    if p["x"] < 0.6:
        raise SystemExit(3)
    return "text" if p["x"] < 0.8 else p["x"]


def test_failures_keep_their_reasons(engine: tuple[str, Executor]) -> None:
    _, executor = engine
    c = campaign(grid(5))
    report = run(c, Function(troubled), budget=5, executor=executor, progress=False)
    assert report.failed == 4
    assert [t.state for t in c.trials] == ["failed", "invalid", "failed", "failed", "complete"]
    reasons = [t.outcome.error for t in c.trials]
    assert "got ValueError: no convergence at 0.100 at {'x': 0.1, 'y': 0.5}" in reasons[0]
    assert reasons[1] == "outside the kinematic range"
    assert reasons[2] == "SystemExit: 3"
    assert "must return a number, a dict of numbers or an Outcome, got str: 'text'" in reasons[3]


def test_a_dying_worker_costs_its_own_trial_only(engine: tuple[str, Executor], tmp_path: Path) -> None:
    kind, executor = engine
    if kind not in OWN_PROCESSES:
        pytest.skip("evaluations share a process with the run")
    c = campaign(grid(7))

    def die(p: dict[str, float]) -> float:
        if 0.4 < p["x"] < 0.6:
            (tmp_path / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
        return p["x"]

    report = run(c, Function(die), budget=7, executor=executor, progress=False)
    assert report.failed == 1
    assert [t.state for t in c.trials] == ["complete"] * 3 + ["failed"] + ["complete"] * 3
    assert "the worker process died 2 times during this evaluation" in c.trials[3].outcome.error
    assert len(list(tmp_path.iterdir())) == 2
    assert all(t.outcome.values == {"f": t.x["x"]} for t in c.trials if t.number != 3)


def test_equal_points_are_evaluated_each(engine: tuple[str, Executor]) -> None:
    """Engines that remember equal calls would make noise look like certainty."""
    _, executor = engine
    c = campaign([{"x": 0.5, "y": 0.5}] * 8)
    run(c, Function(lambda p: random.SystemRandom().random()), budget=8, executor=executor, progress=False)
    assert len({t.outcome.values["f"] for t in c.trials}) == 8


def test_programs_run(engine: tuple[str, Executor], tmp_path: Path) -> None:
    _, executor = engine
    c = campaign(grid(4))
    command = Command(
        f"{sys.executable} -c 'import sys; print(2 * float(sys.argv[1]))' {{x}} {{y}}",
        result="stdout",
        workdir=str(tmp_path / "work"),
        parameters=("x", "y"),
    )
    run(c, command, budget=4, executor=executor, progress=False)
    assert [t.outcome.values for t in c.trials] == [{"f": 2 * t.x["x"]} for t in c.trials]


def triple(p: dict[str, float]) -> float:
    return 3 * p["x"]


def test_evaluations_may_start_processes(engine: tuple[str, Executor]) -> None:
    """A daemonic worker could not."""
    _, executor = engine
    c = campaign(grid(2))

    def pooled(p: dict[str, float]) -> float:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.map(abs, [-p["x"]])[0]

    run(c, Function(pooled), budget=2, executor=executor, progress=False)
    assert [t.outcome.values for t in c.trials] == [{"f": t.x["x"]} for t in c.trials]


def test_workers_use_one_thread_each(engine: tuple[str, Executor]) -> None:
    kind, executor = engine
    if kind not in OWN_PROCESSES:
        pytest.skip("evaluations share a process with the run")
    c = campaign(grid(2))
    run(c, Function(lambda p: float(os.environ["OMP_NUM_THREADS"])), budget=2, executor=executor, progress=False)
    assert [t.outcome.values for t in c.trials] == [{"f": 1.0}] * 2


def test_large_evaluators_travel(engine: tuple[str, Executor]) -> None:
    _, executor = engine
    c, ballast = campaign(grid(20)), os.urandom(3_000_000)
    run(c, Function(lambda p: p["x"] + len(ballast)), budget=20, executor=executor, progress=False)
    assert [t.outcome.values["f"] for t in c.trials] == [t.x["x"] + 3e6 for t in c.trials]


def test_what_the_workers_lack_stops_the_run_and_loses_nothing(engine: tuple[str, Executor], tmp_path: Path) -> None:
    kind, executor = engine
    if kind == "threads" or kind == "processes":
        pytest.skip("this machine's own pools")
    (tmp_path / "only_here.py").write_text("class Twice:\n    def __call__(self, p):\n        return 2 * p['x']\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # type: ignore[import-not-found]

        c = campaign(grid(3))
        with pytest.raises(EngineError, match="workers need every module .* No module named 'only_here'"):
            run(c, Function(only_here.Twice()), budget=3, executor=executor, progress=False)
    finally:
        sys.path.remove(str(tmp_path))
    assert {t.state for t in c.trials} == {"queued"}
    run(c, Function(lambda p: p["x"]), budget=3, executor=executor, progress=False)  # it has not stopped for good
    assert {t.state for t in c.trials} == {"complete"}


# -------------------------------------------------------------------------------------- recipes and files


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("local", Local()),
        ({"type": "dask", "cluster": "slurm", "jobs": 3}, Dask(cluster="slurm", jobs=3)),
        ({"type": "parsl", "workers_per_node": 8}, Parsl(workers_per_node=8)),
        ({"type": "globus-compute", "endpoint": "4b116d3c-1703-4f8f-9f6f-39921e5864df"}, None),
        ("mpi", MPI()),
        ("workers", Workers()),
    ],
)
def test_recipes_survive_json(given: Any, made: Any) -> None:
    found = recipe(given)
    assert made is None or found == made
    kept = settings(found)
    assert kept == ({"type": given} if isinstance(given, str) else given)
    assert recipe(json.loads(json.dumps(kept))) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dusk", "must be one of local, dask, .*, got 'dusk'"),
        ({"type": "dask", "adress": "x"}, r"settings are \[.*\], got \['adress'\]"),
        ({"type": "dask", "address": "tcp://a:1", "jobs": 2}, "with an address nothing is started"),
        ({"type": "dask", "address": "tcp://me:pw@a:1"}, "must not hold a password"),
        ({"type": "dask", "jobs": 2}, "jobs are those of a batch system, got jobs=2"),
        ({"type": "dask", "cluster": "slurm", "jobs": 0}, "jobs must be positive, got jobs=0"),
        ({"type": "dask", "options": {"Password": "x"}}, r"for everybody to read, got options \['Password'\]"),
        ({"type": "parsl", "config": "a.py:c", "provider": "slurm"}, "configuration says everything"),
        ({"type": "parsl", "config": "a.py"}, "must be named as file.py:name"),
        ({"type": "parsl", "workers_per_node": 0}, "workers_per_node must be positive"),
        ({"type": "globus-compute"}, "a setting must be given"),
        ({"type": "globus-compute", "endpoint": "mine"}, "must be an id such as"),
    ],
)
def test_settings_that_make_no_sense(given: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        recipe(given)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [
        (Dask(), "distributed", "dask"),
        (Dask(cluster="slurm"), "dask_jobqueue", "dask"),
        (Parsl(), "parsl", "parsl"),
        (GlobusCompute("4b116d3c-1703-4f8f-9f6f-39921e5864df"), "globus_compute_sdk", "globus"),
        (MPI(), "mpi4py.futures", "mpi"),
    ],
)
def test_an_engine_that_is_not_installed_is_named(
    kind: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    c = campaign(grid(2))
    with pytest.raises(MissingExtra, match=rf"pip install 'excursion\[{extra}\]'"):
        run(c, Function(triple), budget=2, executor=kind, progress=False)
    assert {t.state for t in c.trials} == {"queued"}


def test_workers_are_not_for_a_run_that_evaluates() -> None:
    with pytest.raises(InvalidSpec, match="excursion work STORE NAME"):
        run(campaign(grid(2)), Function(triple), budget=2, executor="workers", progress=False)


DOCS = Path(__file__).parents[1] / "docs" / "executors.md"
SITES = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("block", SITES, ids=range(len(SITES)))
def test_the_documented_files_are_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "physics.py").write_text("def limit(point):\n    return point['x'] + point['y'] - 1.6\n")
    spec = parse(block, tmp_path / "scan.yaml")
    assert spec.executor is not None
    made = recipe(json.loads(json.dumps(spec.executor)))
    if spec.executor["type"] == "local":
        report = go_on(begin(spec), spec.evaluator, spec.run, executor=made, budget=6, progress=False)
        assert (report.reason, report.evaluations, report.failed) == ("budget", 6, 0)


def test_every_engine_is_documented(tmp_path: Path) -> None:
    (tmp_path / "physics.py").touch()
    used = {parse(block, tmp_path / "scan.yaml").executor["type"] for block in SITES}
    assert used == set(RECIPES)


SCAN = """\
parameters: {x: [0, 1.5], y: [0, 1.5]}
tasks: {f: 0}
evaluator: {python: "physics.py:limit"}
run: {budget: 6, batch: 2, workers: 2}
"""


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("executor: dusk", "line 5, executor: must be the name of a kind of executor, got 'dusk'. Did you mean 'dask'"),
        ("executor: {type: dask, adress: x}", "line 5, executor.adress: this key is not known.*Did you mean 'address'"),
        ("executor: {type: dask, jobs: 1.5}", "line 5, executor.jobs"),
        ("executor: {type: dask, jobs: 2}", "line 5, executor.jobs: executor dask: jobs are those of a batch system"),
        (
            "executor: {type: dask, cluster: slurm, options: {walltime: .nan}}",
            "line 5, executor: settings must be text",
        ),
        ("executor: {address: x}", "line 5, executor: must be the name of a kind of executor, got None"),
        ("executor: [local]", "line 5, executor"),
    ],
)
def test_a_wrong_executor_names_its_line(executor: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "physics.py").touch()
    with pytest.raises(InvalidSpec, match=message):
        parse(SCAN + executor, tmp_path / "scan.yaml")


def test_a_campaign_remembers_its_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    thread_pool = Local.open

    def open_(self: Local, workers: int | None = None) -> Any:
        opened.append(self)
        return thread_pool(self, workers)

    monkeypatch.setattr(Local, "open", open_)
    (tmp_path / "physics.py").write_text("def limit(point):\n    return point['x'] + point['y'] - 1.6\n")
    (tmp_path / "scan.yaml").write_text(SCAN + "executor: {type: local, threads: true}\n")
    spec = load(tmp_path / "scan.yaml")
    go_on(begin(spec), spec.evaluator, spec.run, executor=spec.executor, progress=False)
    resume(spec.store, budget=8, progress=False)
    resume(spec.store, budget=10, executor="local", progress=False)  # its name alone means it with its settings
    resume(spec.store, budget=12, executor=Local(), progress=False)
    assert opened == [Local(threads=True)] * 3 + [Local()]


def test_parsl_configurations_are_named_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "physics.py").touch()
    spec = parse(SCAN + "executor: {type: parsl, config: 'site.py:config'}", tmp_path / "scan.yaml")
    assert spec.executor == {"type": "parsl", "config": f"{tmp_path}/site.py:config"}


# --------------------------------------------------------------------------------------- what breaks, and how

SCRIPT = """
import os, signal, subprocess, sys, threading, time
from excursion import Campaign, Function, run
import psutil

kind, how, url, marks = sys.argv[1:]

def f(p):
    if p["x"] > 0.5:
        open(os.path.join(marks, str(os.getpid())), "w").close()
        if how != "kill":  # a program in a session of its own, as Command starts them
            program = subprocess.Popen(["sleep", "600"], start_new_session=True)
            open(os.path.join(marks, str(program.pid)), "w").close()
        time.sleep(600)
    return p["x"]

def strike():
    while len(os.listdir(marks)) < (2 if how == "kill" else 4):
        time.sleep(0.05)
    if how == "engine":
        for child in psutil.Process().children():
            if "interchange" in " ".join(child.cmdline()):
                child.kill()
    else:
        # As a terminal does with Ctrl-C: every process of the group is told.
        os.killpg(os.getpgrp(), signal.SIGINT) if how == "int" else os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    threading.Thread(target=strike, daemon=True).start()
    campaign = Campaign.open(url, "c")
    try:
        run(campaign, Function(f), budget=10, batch=2, workers=2, executor=kind, progress=False)
    except BaseException as error:
        print("ended by", type(error).__name__, error, flush=True)
"""


def struck(kind: str, how: str, folder: Path) -> tuple[str, list[str], list[int]]:
    """What a run said that was struck while two evaluations hang; the states of the trials; who evaluated."""
    marks = folder / "marks"
    marks.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    url = f"sqlite:///{folder}/c.db"
    campaign([{"x": x, "y": 0.5} for x in (0.1, 0.2, 0.7, 0.8)], url).store.close()
    done = subprocess.run(
        [sys.executable, str(script), kind, how, url, str(marks)],
        capture_output=True,
        text=True,
        timeout=90,
        start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    with open_store(url) as store:
        states = [t.state for t in Campaign.open(store, "c").trials]
    return done.stdout + done.stderr, states, [int(name) for name in os.listdir(marks)]


def end_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "dask", "parsl"])
def test_ctrl_c_queues_what_was_in_flight_and_ends_the_workers(kind: str, tmp_path: Path) -> None:
    said, states, workers = struck(kind, "int", tmp_path)
    assert "ended by KeyboardInterrupt" in said
    assert states == ["complete", "complete", "queued", "queued"]
    assert len(workers) == 4
    assert end_within(workers, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dask", "parsl"])
def test_no_worker_outlives_a_run_that_was_killed(kind: str, tmp_path: Path) -> None:
    _, states, workers = struck(kind, "kill", tmp_path)
    assert states == ["complete", "complete", "running", "running"]
    assert end_within(workers, 60)
    with open_store(f"sqlite:///{tmp_path}/c.db") as store:
        c = Campaign.open(store, "c")
        run(c, Function(lambda p: p["x"]), budget=4, workers=1, progress=False)
        assert [t.state for t in c.trials] == ["complete"] * 4


@pytest.mark.slow
def test_parsl_without_its_interchange_stops_the_run(tmp_path: Path) -> None:
    said, states, workers = struck("parsl", "engine", tmp_path)
    assert "ended by EngineError executor: the engine must run until the end" in said
    assert "the interchange of excursion ended: -9" in said
    assert states == ["complete", "complete", "queued", "queued"]
    assert end_within(workers, 5)


@pytest.mark.slow
def test_dask_without_its_scheduler_stops_the_run() -> None:
    distributed = pytest.importorskip("distributed")
    c = campaign(grid(4))
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, Dask(address=cluster.scheduler_address).open() as executor:
        assert executor._max_workers == 2

        def strike() -> None:
            while not any(t.state == "complete" for t in c.trials):
                time.sleep(0.05)
            cluster.loop.add_callback(cluster.scheduler.close)

        thread = threading.Thread(target=strike)
        thread.start()
        f = Function(lambda p: p["x"] if p["x"] < 0.2 else time.sleep(5))
        with pytest.raises(EngineError, match="the engine must run until the end"):
            run(c, f, budget=4, executor=executor, progress=False)
        thread.join()
    assert [t.state for t in c.trials] == ["complete", "queued", "queued", "queued"]


def test_engines_that_cannot_be_reached_or_started_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("dask_jobqueue")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    c = campaign(grid(2))
    for place, error, message in (
        (Dask(address="environment"), InvalidSpec, "needs the variable DASK_SCHEDULER_ADDRESS"),
        (Dask(address=str(tmp_path / "no.json")), InvalidSpec, "the scheduler file must exist"),
        (Dask(options={"n_wrokers": 3}), EngineError, "because of TypeError: .*'n_wrokers'. Nothing is lost"),
        (Dask(cluster="htcondor"), EngineError, "the engine must start, got ValueError"),
        (Parsl(config=f"{tmp_path}/no.py:config"), InvalidSpec, "the configuration's file must exist"),
        (Parsl(options={"nodes": 3}), InvalidSpec, "options must be those of the engine"),
    ):
        with pytest.raises(error, match=message):
            run(c, Function(triple), budget=2, executor=place, progress=False)
        assert {t.state for t in c.trials} == {"queued"}


def test_parsl_takes_a_configuration_of_the_site(tmp_path: Path) -> None:
    pytest.importorskip("parsl")
    (tmp_path / "site_config.py").write_text(
        "from parsl.config import Config\nfrom parsl.executors import ThreadPoolExecutor\n"
        f"def config():\n    return Config(executors=[ThreadPoolExecutor(max_threads=3)], run_dir={str(tmp_path)!r},\n"
        "                  initialize_logging=False)\n"
    )
    with Parsl(config=f"{tmp_path}/site_config.py:config").open() as executor:
        assert executor._max_workers == 3
        c = campaign(grid(6))
        run(c, Function(triple), budget=6, executor=executor, progress=False)
    assert [t.outcome.values["f"] for t in c.trials] == [3 * t.x["x"] for t in c.trials]


# ------------------------------------------------------------------------------- batch systems, MPI, services


def test_job_scripts_hold_what_was_asked_for() -> None:
    pytest.importorskip("dask_jobqueue")
    by_site = {parse_executor(block)["cluster"]: parse_executor(block) for block in SITES if "cluster:" in block}
    with contextlib.closing(recipe(by_site["slurm"]).batch_system()) as cluster:
        slurm = cluster.job_script()
    for line in ("#SBATCH -p standard", "#SBATCH -A atlas", "#SBATCH --cpus-per-task=8", "#SBATCH -t 08:00:00"):
        assert line in slurm
    assert "--nthreads 1" in slurm
    assert "--nworkers 8" in slurm
    assert slurm.index("export OMP_NUM_THREADS=1") < slurm.index("source /cvmfs") < slurm.index("dask_worker tcp://")
    by_site["htcondor"]["options"]["scheduler_options"] = {}  # any port: this one may be taken here
    with contextlib.closing(recipe(by_site["htcondor"]).batch_system()) as cluster:
        condor = cluster.job_script()
    assert '+JobFlavour = "workday"' in condor
    assert "MY.DaskWorkerDisk = 4000000000" in condor
    assert "export OMP_NUM_THREADS=1" in condor


def parse_executor(block: str) -> dict[str, Any]:
    return yaml.safe_load(block)["executor"]


SBATCH = """#!{python}
# Stands for a batch system: starts the job here and now.
import os, shlex, subprocess, sys, re
text = open(sys.argv[-1]).read()
match = re.search('^Arguments = "(.*)"$', text, flags=re.M)
command = ["/bin/sh", *shlex.split(match[1])] if match else ["/bin/bash", sys.argv[-1]]
if not match:
    copy = os.path.join({jobs!r}, str(os.getpid()))
    open(copy, "w").write(text)
    command[-1] = copy
log = open(os.path.join({jobs!r}, "log"), "a")
job = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
open(os.path.join({jobs!r}, "job%d" % job.pid), "w").close()
print("1 job(s) submitted to cluster %d." % job.pid if match else "Submitted batch job %d" % job.pid)
"""
SCANCEL = """#!{python}
import os, signal, sys
for job in sys.argv[1:]:
    try:
        os.killpg(int(job.split(".")[0]), signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The commands of Slurm and HTCondor, which start jobs on this machine at once."""
    commands, jobs = tmp_path / "bin", tmp_path / "jobs"
    commands.mkdir()
    jobs.mkdir()
    for names, text in ((("sbatch", "condor_submit"), SBATCH), (("scancel", "condor_rm"), SCANCEL)):
        for name in names:
            (commands / name).write_text(text.format(python=sys.executable, jobs=str(jobs)))
            (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    yield jobs
    for job in jobs.glob("job*"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(job.name[3:]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slurm", "htcondor"])
def test_jobs_evaluate_and_those_that_die_are_replaced(kind: str, batch_system: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    options = {
        "memory": "1 GB",
        "log_directory": str(tmp_path / "logs"),
        **({"disk": "1 GB"} if kind != "slurm" else {}),
    }
    mark = tmp_path / "mark"

    def f(p: dict[str, float]) -> float:
        if p["x"] > 0.5 and not mark.exists():
            mark.touch()
            os.killpg(os.getpgrp(), signal.SIGKILL)  # the whole job, as at the end of its walltime
        return p["x"]

    c = campaign(grid(6))
    report = run(c, Function(f), budget=6, executor=Dask(cluster=kind, jobs=1, options=options), progress=False)  # type: ignore[arg-type]
    assert (report.evaluations, report.failed) == (6, 0)
    assert mark.exists()
    assert [t.outcome.values["f"] for t in c.trials] == [t.x["x"] for t in c.trials]
    assert len(list(batch_system.glob("job*"))) >= 2
    assert end_within([int(job.name[3:]) for job in batch_system.glob("job*")], 20)


@pytest.mark.parametrize("launch", [["mpiexec", "-n", "3"], []], ids=["mpiexec", "spawned"])
def test_mpi(launch: list[str], tmp_path: Path) -> None:
    folder = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    probe = subprocess.run(
        [sys.executable, "-c", "import mpi4py.MPI"], capture_output=True, env=environment, timeout=60
    )
    if probe.returncode or not shutil.which("mpiexec", path=environment["PATH"]):
        pytest.skip("MPI is not installed (pip install mpi4py mpich)")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os
            from excursion import Campaign, Function, Problem, Strategy, Task, run
            def main():
                def f(p):
                    if p["x"] > 0.9:
                        raise ValueError("no")
                    return {"f": p["x"]}
                problem = Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6))
                c = Campaign.create("memory://", "c", problem, Strategy(design_size=99, retries=0))
                c.add([{"x": (i + 0.5) / 20, "y": 0.5} for i in range(20)])
                WORKERS
                report = run(c, Function(f), budget=20, executor="mpi", progress=False, **more)
                good = [t.outcome.values == {"f": t.x["x"]} for t in c.trials if t.state == "complete"]
                print(report.evaluations, report.failed, len(good), all(good), flush=True)
            if __name__ == "__main__":
                main()
            """
        ).replace("WORKERS", f"more = {dict() if launch else dict(workers=2)}")
    )
    module = ["-m", "mpi4py.futures"] if launch else []
    done = subprocess.run(
        [*launch, sys.executable, *module, str(script)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.strip() == "20 2 18 True", done.stderr


ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


def test_globus_compute_asks_nobody_to_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("globus_compute_sdk")
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    c = campaign(grid(2))
    with pytest.raises(EngineError, match="needs a login that is there already"):
        run(c, Function(triple), budget=2, executor=GlobusCompute(ENDPOINT), progress=False)
    assert {t.state for t in c.trials} == {"queued"}


def at_the_endpoint(task: str) -> str:
    """What an endpoint does: everything comes and goes as text, by Globus' own serializer."""
    from globus_compute_sdk.serialize import ComputeSerializer

    serializer = ComputeSerializer()
    function, given, named = serializer.unpack_and_deserialize(task)
    return serializer.serialize(function(*given, **named))


def test_globus_compute_with_a_stand_in_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is played by processes of this machine; serialization and errors are those of the SDK."""
    sdk = pytest.importorskip("globus_compute_sdk")
    loky = pytest.importorskip("loky")
    from globus_compute_sdk.errors import TaskExecutionFailed
    from globus_compute_sdk.serialize import ComputeSerializer

    made: list[Any] = []

    class StandIn(Executor):
        def __init__(self, endpoint_id: str, client: Any, label: str = "") -> None:
            self.endpoint_id, self.label, self.processes = endpoint_id, label, loky.ProcessPoolExecutor(2)
            made.append(self)

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
            serializer = ComputeSerializer()
            task = serializer.pack_buffers([serializer.serialize(part) for part in (fn, args, kwargs)])
            inner, outer = self.processes.submit(at_the_endpoint, task), Future()

            def tell(done: Future) -> None:
                if (error := done.exception()) is not None:
                    outer.set_exception(TaskExecutionFailed(f"{type(error).__name__}: {error}"))
                else:
                    outer.set_result(serializer.deserialize(done.result()))

            inner.add_done_callback(tell)
            return outer

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.processes.shutdown(wait=True, kill_workers=cancel_futures)

    class LoggedIn:
        app = None

        def __init__(self, **settings: Any) -> None:
            assert settings == {"do_version_check": False}

    monkeypatch.setattr(sdk, "Client", LoggedIn)
    monkeypatch.setattr(sdk, "Executor", StandIn)
    c = campaign(grid(5))
    here = GlobusCompute(ENDPOINT, {"label": "scan"})
    report = run(c, Function(lambda p: troubled(p)), budget=5, workers=2, executor=here, progress=False)
    assert (made[0].endpoint_id, made[0].label) == (ENDPOINT, "scan")
    assert report.failed == 4
    assert [t.state for t in c.trials] == ["failed", "invalid", "failed", "failed", "complete"]
    assert c.trials[4].outcome.values == {"f": 0.9}


def test_a_run_with_workers_asks_and_waits(tmp_path: Path) -> None:
    (tmp_path / "physics.py").write_text("def limit(point):\n    return point['x'] + point['y'] - 1.6\n")
    (tmp_path / "scan.yaml").write_text(SCAN + "executor: workers\n")
    spec = load(tmp_path / "scan.yaml")
    begin(spec).store.close()
    elsewhere = subprocess.Popen(
        [sys.executable, "-m", "excursion.cli", "work", spec.store, "--no-ask"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with elsewhere:
        report = resume(spec.store, progress=False)
        elsewhere.terminate()
    assert (report.reason, report.evaluations, report.failed) == ("budget", 6, 0)
    with open_store(spec.store) as store:
        trials = Campaign.open(store, "scan").trials
        owners = {e.pid for e in store.events("scan") if e.kind == "tell"}
    assert [t.outcome.values["f"] for t in trials] == [t.x["x"] + t.x["y"] - 1.6 for t in trials]
    assert os.getpid() not in owners


# ------------------------------------------------------------------------------------------ a real search


@pytest.mark.slow
def test_the_slepton_search_is_the_same_on_every_engine(tmp_path: Path) -> None:
    pytest.importorskip("pythia8mc")
    pytest.importorskip("pyhf")
    (tmp_path / "scan.yaml").write_text(
        textwrap.dedent(
            """
            parameters:
              m_slepton: {lower: 100, upper: 800, unit: GeV}
              m_chi: {lower: 0, upper: 600, unit: GeV}
            constraints: [m_slepton - m_chi > 20]
            tasks: {observed: {threshold: 1, transform: log-tanh}}
            evaluator: {example: sleptons, events: 200}
            strategy: {seed: 3, design_size: 4}
            run: {budget: 6, batch: 2, workers: 2}
            """
        )
    )
    found = {}
    for kind in ("local", "dask", "parsl", "workers"):
        spec = replace(load(tmp_path / "scan.yaml"), store=str(tmp_path / f"{kind}.db"))
        c = begin(spec)
        elsewhere = [sys.executable, "-m", "excursion.cli", "work", spec.store, "--no-ask", "--jobs", "2"]
        with contextlib.ExitStack() as stack:
            if kind == "workers":
                log = stack.enter_context((tmp_path / "log").open("w"))
                process = stack.enter_context(subprocess.Popen(elsewhere, stdout=log, stderr=log))
                stack.callback(process.terminate)
            report = go_on(c, spec.evaluator, spec.run, executor=kind, progress=False)
        assert (report.evaluations, report.failed) == (6, 0)
        found[kind] = [(t.x, t.seed, dict(t.outcome.values)) for t in c.trials]
        c.store.close()
    assert found["dask"] == found["local"]
    assert found["parsl"] == found["local"]
    assert found["workers"] == found["local"]
