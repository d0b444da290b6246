"""One contract over all engines that evaluate, each of them real; what stands for a service says so in its name."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from excursion.campaign import Campaign
from excursion.errors import EngineError, ImpossiblePoint, InvalidSpec, MissingExtra
from excursion.evaluators.command import Command
from excursion.evaluators.python import Function
from excursion.executors import MPI, RECIPES, Dask, GlobusCompute, Local, Parsl, Workers, recipe, settings
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.runner import run
from excursion.spec import begin, go_on, load, parse, resume

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


def test_a_dying_worker_costs_its_own_trial_only(engine: tuple[str, Executor]) -> None:
    kind, executor = engine
    if kind not in OWN_PROCESSES:
        pytest.skip("evaluations share a process with the run")
    c = campaign(grid(7))

    def die(p: dict[str, float]) -> float:
        if 0.4 < p["x"] < 0.6:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
        return p["x"]

    report = run(c, Function(die), budget=7, executor=executor, progress=False)
    assert report.failed == 1
    assert [t.state for t in c.trials] == ["complete"] * 3 + ["failed"] + ["complete"] * 3
    assert "the worker process died 2 times during this evaluation" in c.trials[3].outcome.error
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
