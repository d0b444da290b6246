from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from excursion.campaign import Campaign
from excursion.cli import app
from excursion.data import FINISHED, Trial
from excursion.errors import StoreError, UnknownCampaign
from excursion.report.tables import point_lines, points_csv, points_json
from excursion.result import table

# A program that takes its time, and writes down what it has evaluated before it gives the value away.
PROGRAM = """\
import json, os, sys, time
number, x, y, seconds, out = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
time.sleep(seconds)
value = x * x + y - 1
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "evaluated.log")
log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, (json.dumps([number, x, y, value]) + "\\n").encode())
trouble = os.environ.get("TROUBLE")
if trouble == str(number):
    sys.exit(4)
with open(out, "w") as file:
    json.dump({"f": value, "g": float("inf") if trouble and x > 1.4 else value + 0.5}, file)
"""
SPEC = """\
name: scan
parameters:
  x: {{lower: 0, upper: 1.5, unit: GeV}}
  y: [0, 1]
constraints: ["x + y < 2.2"]
tasks: {{f: 0, g: {{threshold: [0, 1], unit: fb}}}}
evaluator:
  command: "{python} -I -S {{folder}}/program.py {{number}} {{x}} {{y}} {seconds} {{workdir}}/out.json"
  result: out.json
strategy: {{seed: 3, design_size: {design}, search: {{candidates: 64, integration: 64, pool: 256, polish: 0}}}}
run: {{budget: {budget}, batch: {batch}, workers: {workers}}}
"""


def write_spec(folder: Path, *, seconds: float = 0.0, budget: int = 12, batch: int = 2, workers: int = 2) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    spec = folder / "scan.yaml"
    spec.write_text(
        SPEC.format(
            python=sys.executable, seconds=seconds, budget=budget, batch=batch, workers=workers, design=min(8, budget)
        )
    )
    return spec


class Process:
    """A real `excursion`; what it prints goes to files, for workers that outlive it would keep a pipe open."""

    def __init__(self, *args: object, **environment: str) -> None:
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "excursion.cli", *map(str, args)],
            stdout=self.out,
            stderr=self.err,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def finish(self) -> tuple[int, str, str]:
        code = self.popen.wait(120)
        self.out.seek(0)
        self.err.seek(0)
        return code, self.out.read(), self.err.read()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        self.out.close()
        self.err.close()


def execute(*args: object, **environment: str) -> tuple[int, str, str]:
    with Process(*args, **environment) as process:
        return process.finish()


def call(*args: object, stdin: str | None = None) -> Result:
    """The command in this process, to save the time of loading everything."""
    return CliRunner().invoke(app, [str(a) for a in args], input=stdin, prog_name="excursion")


def said(*args: object, stdin: str | None = None) -> str:
    result = call(*args, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def history(store: Path) -> list[Trial]:
    return Campaign.open(str(store)).trials


def until(condition: Callable[[], Any], process: Process, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if process.popen.poll() is not None:
            pytest.fail(f"the process ended: {process.finish()}")
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return found


def evaluated(folder: Path) -> list[list[float]]:
    log = folder / "evaluated.log"
    # The last line may be in the middle of being written.
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def pending(store: Path) -> list[Trial]:
    return [t for t in trials_so_far(store) if t.pending]


def finished(store: Path) -> list[Trial]:
    return [t for t in trials_so_far(store) if t.state in FINISHED]


def trials_so_far(store: Path) -> list[Trial]:
    """None while the store is being made."""
    try:
        return history(store)
    except (StoreError, UnknownCampaign):
        return []


def check_books(folder: Path, before: dict[int, Trial]) -> dict[int, Trial]:
    """What holds of a store at any moment; returns the finished trials by number."""
    trials = history(folder / "scan.db")
    told = [t.told for t in trials if t.told is not None]
    assert sorted(told) == list(range(len(told)))
    assert [t.number for t in trials] == list(range(len(trials)))
    now = {t.number: t for t in trials if t.state in FINISHED}
    assert {number: now.get(number) for number in before} == before
    known = {(int(n), x, y): value for n, x, y, value in evaluated(folder)}
    for t in now.values():
        assert t.state in ("complete", "censored")
        assert t.outcome is not None
        assert t.outcome.values["f"] == known[t.number, t.x["x"], t.x["y"]]
    return now


# ---------------------------------------------------------------------------------------------------- one campaign


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a campaign that a real `excursion run` has finished; one point failed, some are infinite."""
    folder = tmp_path_factory.mktemp("done")
    spec = write_spec(folder, budget=12)
    code, out, err = execute("run", spec, "--no-progress", TROUBLE="5")
    assert (code, err) == (0, "")
    assert out.startswith("scan: the budget is spent; 12 evaluations in ")
    assert re.search(r"1 failed \(the last one: .*\), 12 finished in all; expected misclassified: f ", out)
    assert out.rstrip().endswith(f"store {folder / 'scan.db'}")
    return folder / "scan.db"


def test_run_has_done_what_the_file_says(done: Path) -> None:
    trials = history(done)
    assert len(trials) == 12
    assert [t.number for t in trials if t.state == "failed"] == [5]
    assert {t.criterion for t in trials} >= {"design", "SUR"}
    assert len(evaluated(done.parent)) == 12
    assert (done.parent / "work" / "00005-0" / "log.txt").exists()


def test_run_again_and_resume_find_nothing_to_do(done: Path) -> None:
    before = history(done)
    handler = signal.getsignal(signal.SIGTERM)
    assert said("run", done.parent / "scan.yaml").startswith("scan: the budget is spent; 0 evaluations")
    assert said("resume", done, "scan", "--no-progress").startswith("scan: the budget is spent; 0 evaluations")
    assert history(done) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sets(done: Path) -> None:
    text = said("sets", done)
    assert len(re.findall(r"^[fg] >= ", text, re.MULTILINE)) == 3
    assert "GeV" in text
    found = json.loads(said("sets", done, "--task", "g", "--json"))
    assert [(one["task"], one["threshold"]) for one in found] == [("g", 0.0), ("g", 1.0)]
    assert found[0]["volume"] > found[1]["volume"]
    assert found[0]["volume_unit"] == "GeV"
    assert 0 <= found[0]["hole"]["x"] <= 1.5
    assert call("sets", done, "--task", "h").exit_code == 2


def test_status(done: Path) -> None:
    text = said("status", done)
    assert text.startswith("scan: 12 of 12 finished (")
    assert re.search(r"\n  f: threshold crossed, expected misclassified \d+\.\d\d % of the volume\n", text)
    assert re.search(r"\n  \d+\.\d\d s per point\n  trial 5 failed: .*must end with exit code 0, got exit code 4", text)
    found = json.loads(said("status", done, "scan", "--json"))
    assert (found["campaign"], found["finished"], found["budget"]) == ("scan", 12, 12)
    assert sum(found["counts"].values()) == 12
    assert found["counts"]["failed"] == 1
    assert set(found["expected_misclassified"]) == {"f", "g"}
    assert all(0 <= v < 0.2 for v in found["expected_misclassified"].values())
    assert found["crossed"] == {"f": True, "g": True}
    assert 0 < found["seconds_per_point"] < 60
    assert [(f["number"], f["state"]) for f in found["failures"]] == [(5, "failed")]


def test_list(done: Path) -> None:
    assert said("list", done) == "scan: 12 trials\n"


def test_log(done: Path) -> None:
    lines = said("log", done, "--number", 3).splitlines()
    assert [line.split()[1] for line in lines] == ["ask", "claim", "tell"]
    assert all(re.match(r"20\d\d-\d\d-\d\dT[0-9:.]+\+00:00  \w+ +3  seed \d+  ", line) for line in lines)
    assert f"excursion {version('excursion')}" in lines[0]
    events = json.loads(said("log", done, "--json"))
    assert {e["kind"] for e in events} == {"ask", "retry", "claim", "tell"}
    assert {e["number"] for e in events} == set(range(12))


def test_trials_go_out_and_come_back(done: Path, tmp_path: Path) -> None:
    campaign = Campaign.open(str(done))
    rows = table(campaign.problem, campaign.trials)
    said("export", done, "--out", tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        back = list(csv.DictReader(file))
    assert list(back[0]) == list(rows[0])
    for row, read in zip(rows, back, strict=True):
        for key, value in row.items():
            if isinstance(value, float):
                assert read[key] == "" if math.isnan(value) else float(read[key]) == value
            else:
                assert read[key] == str(value)
    said("export", done, "scan", "--format", "json", "--out", tmp_path / "trials.json")
    found = json.loads((tmp_path / "trials.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert [(p["name"], p["unit"], p["upper"]) for p in found["parameters"]] == [("x", "GeV", 1.5), ("y", "", 1.0)]
    assert [(t["name"], t["unit"], t["thresholds"]) for t in found["tasks"]] == [("f", "", [0]), ("g", "fb", [0, 1])]
    assert found["constraints"] == ["x + y < 2.2"]
    for row, read in zip(rows, found["trials"], strict=True):
        assert {k: None if v != v else "inf" if v == math.inf else v for k, v in row.items()} == read
    assert any(row["g"] == math.inf for row in rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trials.csv", "trials.json"]


def test_contours_go_out(done: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(said("export", done, "--what", "contours"))))
    assert list(rows[0]) == ["task", "threshold", "line", "x", "y"]
    assert {(r["task"], float(r["threshold"])) for r in rows} == {("f", 0.0), ("g", 0.0), ("g", 1.0)}
    # The level set of f is y = 1 - x^2, that of g = 0 is y = 0.5 - x^2.
    for task, constant in (("f", 1.0), ("g", 0.5)):
        points = [(float(r["x"]), float(r["y"])) for r in rows if r["task"] == task and float(r["threshold"]) == 0]
        assert len(points) > 20
        assert max(abs(x * x + y - constant) for x, y in points) < 0.15
    found = json.loads(said("export", done, "--what", "contours", "--format", "json"))
    assert [(c["task"], c["threshold"]) for c in found["contours"]] == [("f", 0.0), ("g", 0.0), ("g", 1.0)]
    flat = [p for c in found["contours"] for line in c["lines"] for p in line]
    assert [[float(r["x"]), float(r["y"])] for r in rows] == flat
    cut = json.loads(said("export", done, "--what", "contours", "--format", "json", "--fix", "y=0.5"))
    crossing = cut["contours"][0]
    assert crossing["fixed"] == {"y": 0.5}
    assert crossing["lines"][0][0][0] == pytest.approx(math.sqrt(0.5), abs=0.1)


def test_plot(done: Path, tmp_path: Path) -> None:
    code, out, err = execute("plot", done, "--out", tmp_path / "scan.png")
    assert (code, out, err) == (0, f"{tmp_path / 'scan.png'}\n", "")
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")


# -------------------------------------------------------------------------------------------------------- by hand


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    spec = tmp_path / "hand.yaml"
    spec.write_text("parameters: {v: [0, 10], p: [1e-6, 1, log]}\ntasks: {a: 0, b: 1}\n")
    assert said("create", spec) == f"campaign 'hand' is in {tmp_path / 'hand.db'}\n"
    return tmp_path / "hand.db"


def test_a_new_campaign_knows_nothing(by_hand: Path) -> None:
    text = said("status", by_hand)
    assert text.startswith(
        "hand: 0 finished (no trials)\n  a: threshold not crossed yet, expected misclassified not known"
    )
    assert said("export", by_hand).startswith("number,state,v,p,a,a_sd,a_bound,b,b_sd,b_bound,criterion,")
    assert said("export", by_hand).count("\n") == 1
    result = call("export", by_hand, "--what", "contours")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: campaign 'hand': a result needs at least 2 trials with values, got 0 of 0. Evaluate more points; "
        "no evaluation has failed\n"
    )


def test_ask_and_tell(by_hand: Path, tmp_path: Path) -> None:
    lines = said("ask", by_hand, "hand", "-n", 2).splitlines()
    points = json.loads(said("ask", by_hand, "-n", 4, "--json"))
    trials = history(by_hand)
    assert [p["number"] for p in points] == [2, 3, 4, 5]
    assert [p["parameters"] for p in points] == [t.x for t in trials[2:]]
    match = re.fullmatch(r"1  v=(\S+)  p=(\S+)", lines[1])
    assert match is not None
    assert {"v": float(match[1]), "p": float(match[2])} == trials[1].x

    assert said("tell", by_hand, 0, "--value", "a=0.7", "--value", "b=-1e-3") == "trial 0 is complete\n"
    assert said("tell", by_hand, 1, "--json", '{"a": 1, "b": 2}', "--name", "hand") == "trial 1 is complete\n"
    (tmp_path / "r.json").write_text('{"values": {"a": 3, "b": 4}, "variances": {"a": 0.5}, "bounds": {"b": "above"}}')
    assert said("tell", by_hand, 2, "--file", tmp_path / "r.json") == "trial 2 is censored\n"
    assert said("tell", by_hand, 3, "--file", "-", stdin='{"a": 5, "b": 6}') == "trial 3 is complete\n"
    assert said("tell", by_hand, 4, "--failed", "sparks") == "trial 4 is failed\n"
    assert said("tell", by_hand, 5, "--failed", "arc", "--impossible") == "trial 5 is invalid\n"
    outcomes = [t.outcome for t in history(by_hand)]
    assert [dict(o.values) for o in outcomes[:4] if o] == [
        {"a": 0.7, "b": -1e-3}, {"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}, {"a": 5.0, "b": 6.0}
    ]  # fmt: skip
    assert [o.error for o in outcomes[4:] if o] == ["sparks", "arc"]
    assert "  trial 5 invalid: arc\n  trial 4 failed: sparks\n" in said("status", by_hand)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tell", "{}", 0, "--value", "a=1"), "needs a value for each task ['a', 'b'], got missing=['b']"),
        (("tell", "{}", 0, "--value", "1"), "one value per task is needed"),
        (("tell", "{}", 0, "--value", "a=nan", "--value", "b=1"), "must not be NaN"),
        (("tell", "{}", 0), "needs either values, JSON or a failure"),
        (("tell", "{}", 0, "--json", "{"), "must be JSON"),
        (("tell", "{}", 7, "--failed", "x"), "no trial of this number, got 7"),
        (("tell", "{}", 1, "--failed", "x"), "a finished trial cannot change"),
        (
            ("tell", "{}", 0, "--failed", "x", "--name", "hnd"),
            "no campaign of this name, got 'hnd'. Choose one of ['hand']",
        ),
        (("status", "{}", "hnd"), "no campaign of this name, got 'hnd'. Choose one of ['hand']"),
        (("ask", "{}", "-n", 0), "the number of points must be at least 1, got 0"),
        (("resume", "{}"), "to run it needs an evaluator, got none"),
        (("status", "{}.absent"), "must exist, got no such file"),
        (("export", "{}", "--out", "{}/x.csv"), "must be writable"),
        (("export", "{}", "--what", "contours", "--fix", "v"), "a result needs at least 2 trials"),
        (("run", "{}.yaml"), "must be a readable file, got No such file or directory"),
    ],
)
def test_our_errors_are_one_line_and_lose_nothing(by_hand: Path, args: tuple[Any, ...], message: str) -> None:
    campaign = Campaign.open(str(by_hand))
    campaign.ask(2)
    campaign.tell(1, {"a": 0.0, "b": 0.0})
    before = history(by_hand)
    result = call(*(str(a).replace("{}", str(by_hand)) for a in args))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""
    assert history(by_hand) == before


def test_errors_that_are_not_ours_show_where_they_were(by_hand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Campaign, "ask", broken)
    result = call("ask", by_hand)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_mistake_in_the_file_names_the_line(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    spec.write_text(spec.read_text().replace("upper: 1.5", "uper: 1.5"))
    result = call("run", spec)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {spec}, line 3, parameters.x.uper: this key is not known, got 'uper'. Did you mean 'upper'?\n"
    )
    assert not (tmp_path / "scan.db").exists()


# --------------------------------------------------------------------------------------------------- help


COMMANDS = ("run", "create", "resume", "list", "status", "ask", "tell", "plot", "export", "sets")


def test_help_is_quick_and_complete() -> None:
    # Best of a few: other tests may keep the machine busy.
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        code, out, err = execute("--help")
        seconds.append(time.monotonic() - began)
        assert (code, err) == (0, "")
    assert min(seconds) < 1.0
    for command in (*COMMANDS, "example"):
        assert re.search(rf"\b{command} +\w", out)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, excursion.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(re.findall(r"'(\w+)'", loaded)) & {
        "torch",
        "numpy",
        "scipy",
        "sqlalchemy",
        "pydantic",
        "yaml",
        "psutil",
    }


@pytest.mark.parametrize("command", [*COMMANDS, "example sleptons"])
def test_every_command_explains_itself(command: str) -> None:
    text = " ".join(said(*command.split(), "--help").split())
    assert f"Usage: excursion {command}" in text


def test_version_and_entry_point() -> None:
    from excursion import __version__

    script = Path(sys.executable).parent / "excursion"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"excursion {__version__}\n"


# ------------------------------------------------------------------------------------ while others are at work


def test_everybody_works_on_the_store_of_a_run(tmp_path: Path) -> None:
    store = tmp_path / "scan.db"
    with Process("run", write_spec(tmp_path, seconds=0.6, budget=10), "--no-progress") as process:
        until(lambda: finished(store), process)
        found = json.loads(said("status", store, "--json"))
        assert found["counts"].get("running", 0) <= 2  # none between two rounds
        assert 1 <= found["finished"] < 9
        (point,) = json.loads(said("ask", store, "--json"))
        assert said("tell", store, point["number"], "--value", "f=0.25", "--value", "g=0.75") != ""
        assert said("export", store).count("\n") > found["finished"]
        code, _, err = process.finish()
    assert (code, err) == (0, "")
    trials = history(store)
    assert len(trials) == 10
    assert all(t.state in FINISHED for t in trials)
    assert sorted(t.told for t in trials if t.told is not None) == list(range(10))
    mine = trials[point["number"]]
    assert mine.outcome is not None
    assert dict(mine.outcome.values) == {"f": 0.25, "g": 0.75}


def test_two_runs_share_a_campaign(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, seconds=0.3, budget=16, batch=1, workers=1)
    with Process("run", spec, "--no-progress") as one, Process("run", spec, "--no-progress") as two:
        assert one.finish()[0] == 0
        assert two.finish()[0] == 0
    now = check_books(tmp_path, {})
    owners = {t.owner for t in now.values()}
    assert len(owners) == 2
    # Two that ask at the same moment may both see the last place free.
    assert 16 <= len(now) <= 17
    assert sorted(int(e[0]) for e in evaluated(tmp_path)) == sorted(now)


def test_ctrl_c_leaves_a_store_to_go_on_with(tmp_path: Path) -> None:
    store, spec = tmp_path / "scan.db", write_spec(tmp_path, seconds=0.4, budget=8)
    with Process("run", spec, "--no-progress") as process:
        until(lambda: len(finished(store)) >= 2 and len(pending(store)) == 2, process)
        process.popen.send_signal(signal.SIGINT)
        code, out, err = process.finish()
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == f"interrupted: go on with: excursion run {spec}"
    before = check_books(tmp_path, {})
    states = {t.state for t in history(store)} - set(FINISHED)
    assert states == {"queued"}
    assert said("resume", store, "--no-progress").startswith("scan: the budget is spent; ")
    assert len(check_books(tmp_path, before)) == 8


def test_a_batch_system_may_end_a_run(tmp_path: Path) -> None:
    store = tmp_path / "scan.db"
    with Process("run", write_spec(tmp_path, seconds=0.4, workers=1), "--no-progress") as process:
        until(lambda: finished(store), process)
        process.popen.terminate()
        assert process.finish()[0] == 130
    assert {t.state for t in history(store)} - set(FINISHED) <= {"queued"}


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 4), (2, 2)])
def test_a_killed_run_loses_nothing(tmp_path: Path, workers: int, kills: int) -> None:
    store, spec = tmp_path / "scan.db", write_spec(tmp_path, seconds=0.1, budget=30, batch=2, workers=workers)
    before: dict[int, Trial] = {}
    chance = random.Random(workers)
    for i in range(kills):
        command = ("run", spec) if i % 2 == 0 else ("resume", store)
        with Process(*command, "--no-progress") as process:
            known = len(before)
            until(lambda known=known: len(finished(store)) > known, process)
            time.sleep(chance.uniform(0.0, 0.6))
            process.popen.kill()
            process.popen.wait()
        before = check_books(tmp_path, before)
    assert len(before) < 30
    code, _, err = execute("resume", store, "--no-progress")
    assert (code, err) == (0, "")
    after = check_books(tmp_path, before)
    assert len(after) == len(history(store)) == 30
    assert sorted(t.told for t in after.values() if t.told is not None) == list(range(30))


FIDELITIES = """\
name: scan
parameters: {x: [0, 1], y: [0, 1]}
tasks: {f: 0, g: {threshold: 1, unit: fb}}
fidelities: [{name: paper, cost: null, parameters: [x]}, {name: fast, cost: 0.1, events: [10, 99]}, {name: full}]
"""


def test_tables_and_fidelities_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "scan.yaml").write_text(FIDELITIES)
    store = str(tmp_path / "scan.db")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return " ".join(result.output.split()) if code else result.stdout

    run("create", str(tmp_path / "scan.yaml"))
    paper = tmp_path / "paper.csv"
    paper.write_text("mass,limit,other\n0.1,0.5,a\n0.2,>10,b\n7,1,c\n")
    columns = ("--column", "mass=x", "--column", "limit=f")
    told = run("import", store, "scan", str(paper), "--fidelity", "paper", *columns)
    assert told == "2 rows used; left out: 1 outside the space; no column for g\n"
    assert run("import", store, "scan", str(paper), "--fidelity", "paper", *columns).startswith("0 rows used")
    assert "table holds one of the fidelities" in run("import", store, "scan", str(paper), *columns, code=2)
    assert "a column is theirs=ours, got 'mass'" in run(
        "import", store, "scan", str(paper), "--fidelity", "paper", "--column", "mass", code=2
    )
    campaign = Campaign.open(store)
    campaign.add([{"x": 0.5, "y": 0.25}, {"x": 0.75, "y": 0.5}], fidelity="fast", events=20)
    asked = campaign.trials[2:]
    assert point_lines(asked)[0] == "2  x=0.5  y=0.25  fidelity=fast  events=20"
    assert json.loads(points_json(asked))[1] == {
        "number": 3, "parameters": {"x": 0.75, "y": 0.5}, "seed": asked[1].seed, "fidelity": "fast", "events": 20,
    }  # fmt: skip
    answers = tmp_path / "answers.csv"
    lines = points_csv(campaign.problem, asked).splitlines()
    answers.write_text("\n".join([lines[0], lines[1][:-1] + "1.5,", lines[2]]))
    assert run("tell", store, "--csv", str(answers)) == "trial 2 is complete\n"
    assert Campaign.open(store).trials[2].outcome.missing == ("g",)
    assert [t.state for t in Campaign.open(store).trials] == ["complete", "censored", "complete", "queued"]
    for wrong in (("tell", store), ("tell", store, "3", "--csv", str(answers)), ("tell", store, "--csv", "no.csv")):
        run(*wrong, code=2)
    assert run("tell", store, "3", "--json", '{"f": null, "g": 2}') == "trial 3 is complete\n"
    header, first, *_ = run("export", store).splitlines()
    assert header.endswith(",fidelity,events")
    assert first.endswith(",paper,")


def test_ask_prints_a_table_to_fill_in(tmp_path: Path) -> None:
    (tmp_path / "scan.yaml").write_text("parameters: {x: [0, 1]}\ntasks: {f: 0}\n")
    store = str(tmp_path / "scan.db")
    assert CliRunner().invoke(app, ["create", str(tmp_path / "scan.yaml")]).exit_code == 0
    text = CliRunner().invoke(app, ["ask", store, "-n", "2", "--csv"]).stdout
    header, *lines = text.splitlines()
    assert header == "number,x,seed,f"
    (tmp_path / "a.csv").write_text("\n".join([header, *(f"{line}0.5" for line in lines)]))
    told = CliRunner().invoke(app, ["tell", store, "--csv", str(tmp_path / "a.csv")])
    assert told.stdout == "trial 0 is complete\ntrial 1 is complete\n"
