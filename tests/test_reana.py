from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests import reana_server

from excursion import Campaign, Parameter, ParameterSpace, Problem, Strategy, Task
from excursion.data import Job
from excursion.errors import EvaluationError, ExcursionError, InvalidSpec
from excursion.evaluators.reader import Reader
from excursion.evaluators.reana import Reana
from excursion.evaluators.remote import checked_url, read_token
from excursion.evaluators.worker import evaluate
from excursion.runner import run
from excursion.spec import _Reana, begin, go_on, load
from excursion.spec import evaluator as evaluator_of

TOKEN = "s3cr3t-t0ken"
SPECIFICATION = """
version: 0.9.0
inputs:
  files: [code/limit.py]
  parameters: {mass: 0, coupling: 1.0, seed: 0}
workflow:
  type: serial
  specification:
    steps:
      - name: limit
        environment: python:3.11
        commands:
          - PYTHON code/limit.py ${mass} ${coupling} ${seed}
outputs: {files: [limit.json]}
"""
CODE = """
import json, os, sys, time
mass, coupling, seed = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print("mass", mass, "token", os.environ.get("SHOWN", ""))
open("count.txt", "a").write("x")
time.sleep(float(os.environ.get("SLOW", 0)))
if mass > 900:
    sys.exit("no spectrum at this mass")
json.dump({"limits": {"obs": mass / 100 * coupling}, "seed": seed}, open("limit.json", "w"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "analysis" / "code").mkdir(parents=True)
    (tmp_path / "analysis" / "reana.yaml").write_text(SPECIFICATION.replace("PYTHON", sys.executable))
    (tmp_path / "analysis" / "code" / "limit.py").write_text(CODE)
    monkeypatch.setenv("REANA_ACCESS_TOKEN", TOKEN)
    monkeypatch.setattr("excursion.evaluators.reana._SOON", 0.02)
    return tmp_path / "analysis"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[reana_server.Reana, str]]:
    with reana_server.serving(tmp_path / "server") as found:
        yield found


def made(folder: Path, url: str, **changes: object) -> Reana:
    result = Reader("limit.json", {"observed": "limits.obs"}, valid={"observed": (0, 8)})
    given = {"poll": 0.1, "patience": 20, "parameters": ("mass", "coupling"), "folder": str(folder), **changes}
    return Reana("reana.yaml", url, result, **given)


def job(mass: float = 250.0, number: int = 3, seed: int = 11) -> Job:
    return Job({"mass": mass, "coupling": 0.5}, number, seed)


def test_a_point_is_a_workflow(folder: Path, server: tuple) -> None:
    reana, url = server
    evaluator = made(folder, url)
    outcome = evaluator.evaluate(job())
    assert outcome.values == {"observed": 1.25}
    (only,) = reana.runs
    assert only.parameters == {"mass": 250.0, "coupling": 0.5, "seed": 11}
    assert only.name == evaluator.name(job()) == outcome.info["workflow"]
    assert only.name.startswith("excursion-3-11-")
    assert json.loads((folder / "reana" / only.name / "limit.json").read_text())["seed"] == 11
    # Read from here another time.
    before = len(reana.requests)
    assert evaluator.evaluate(job()).values == outcome.values
    assert len(reana.requests) == before


def test_bounds_come_from_the_reader(folder: Path, server: tuple) -> None:
    assert made(folder, server[1]).evaluate(Job({"mass": 880.0, "coupling": 1.0})).bounds == {"observed": "above"}


def test_the_name_tells_everything_that_is_sent(folder: Path) -> None:
    evaluator = made(folder, "http://localhost:1")
    names = {
        evaluator.name(job()),
        evaluator.name(job(251)),
        evaluator.name(job(number=4)),
        evaluator.name(job(seed=1)),
    }
    assert len(names) == 4
    assert evaluator.name(job()) == made(folder, "http://localhost:1").name(job())
    with open(folder / "code" / "limit.py", "a") as file:
        file.write("# changed\n")
    names.add(evaluator.name(job()))
    text = (folder / "reana.yaml").read_text()
    (folder / "reana.yaml").write_text(text.replace("name: limit", "name: other"))
    assert evaluator.name(job()) not in names
    assert len(names) == 5


def test_inputs_may_have_other_names_and_formats(folder: Path, server: tuple) -> None:
    reana, url = server
    inputs = {"mass": "{mass:.0f}", "coupling": "coupling"}
    assert made(folder, url, inputs=inputs, constants={"seed": 7}).evaluate(job(250.4)).values == {"observed": 1.25}
    assert reana.runs[0].parameters == {"mass": "250", "coupling": 0.5, "seed": 7}


@pytest.mark.parametrize("kind", reana_server.TROUBLES)
@pytest.mark.parametrize(
    "request_", ["GET .*/status", "POST /api/workflows", "POST .*/workspace", "POST .*/start", "GET .*/workspace/.*"]
)
def test_troubles_on_the_way_are_waited_for(folder: Path, server: tuple, kind: str, request_: str) -> None:
    if kind == "page" and request_ == "GET .*/workspace/.*":
        pytest.skip("a file may be a page")
    reana, url = server
    reana.troubles = [(request_, kind)]
    assert made(folder, url).evaluate(job()).values == {"observed": 1.25}
    assert not reana.troubles
    started = [r for r in reana.runs if r.status != "created"]
    assert [(r.workspace / "count.txt").read_text() for r in started] == ["x"]  # started once, run once
    assert len(reana.runs) == 1


def test_a_server_in_trouble_is_asked_less_and_less(folder: Path, server: tuple) -> None:
    reana, url = server
    reana.troubles = [(".*", "503")] * 1000
    with pytest.raises(EvaluationError, match="status 503"):
        made(folder, url, patience=6).evaluate(job())
    assert 3 <= len(reana.requests) <= 7  # after .25, .5, 1, 2 s, give or take a half
    reana.requests.clear()
    reana.troubles = [(".*", "later")]
    began = time.monotonic()
    assert made(folder, url).evaluate(job()).values == {"observed": 1.25}
    assert time.monotonic() - began > 2


def test_no_request_too_many(folder: Path, server: tuple) -> None:
    reana, url = server
    reana.delay = 0.5
    evaluator = made(folder, url)
    evaluator.submit(job())
    evaluator.submit(job())
    name = evaluator.name(job())
    changes = [r for r in reana.requests if r.startswith("P")]
    path = f"/api/workflows/{name}"
    assert changes == ["POST /api/workflows", f"POST {path}/workspace", f"POST {path}/start"]
    assert evaluator.status(job()).status == "queued"
    assert evaluator.status(job(number=4)) is None
    with pytest.raises(EvaluationError, match="got no such file"):
        evaluator.collect(job())
    evaluator.evaluate(job())
    assert [r for r in reana.requests if r.startswith("P")] == changes
    assert evaluator.collect(job()).values == {"observed": 1.25}


def test_the_token_does_not_follow_redirects(folder: Path, server: tuple, tmp_path: Path) -> None:
    reana, url = server
    with reana_server.serving(tmp_path / "other") as (other, elsewhere):
        reana.redirect = elsewhere
        with pytest.raises(InvalidSpec, match=r"must answer itself, got status 302"):
            made(folder, url).evaluate(job())
        assert other.requests == []


def test_a_server_that_is_down_is_waited_for(folder: Path, tmp_path: Path) -> None:
    with reana_server.serving(tmp_path / "a") as (_, url):
        port = int(url.rsplit(":", 1)[1])
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(made(folder, url).evaluate, job())
        time.sleep(1.0)
        with reana_server.serving(tmp_path / "b", port=port):
            assert found.result(timeout=20).values == {"observed": 1.25}


def test_patience_has_an_end(folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"must be available, got Connection refused for 0.5 s"):
        made(folder, "http://127.0.0.1:9", patience=0.5).evaluate(job())


def test_a_driver_that_was_killed_finds_its_workflow(
    folder: Path, server: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    reana, url = server
    reana.delay = 2.0
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from tests.test_reana import made, job
made(Path({str(folder)!r}), {url!r}).evaluate(job())
"""
    driver = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not (reana.runs and reana.runs[0].status == "queued"):
            assert time.monotonic() < deadline
            assert driver.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert made(folder, url).evaluate(job()).values == {"observed": 1.25}
    assert len(reana.runs) == 1
    assert (reana.runs[0].workspace / "count.txt").read_text() == "x"


def test_what_was_left_half_submitted_is_completed(folder: Path, server: tuple) -> None:
    reana, url = server
    evaluator = made(folder, url)
    reana.troubles = [("POST .*/workspace", "500")] * 50
    with pytest.raises(EvaluationError, match="status 500"):
        dataclasses.replace(evaluator, patience=0.3).evaluate(job())
    assert [r.status for r in reana.runs] == ["created"]
    reana.troubles = []
    assert evaluator.evaluate(job()).values == {"observed": 1.25}
    assert len(reana.runs) == 1


def test_failures_tell_the_end_of_the_log(folder: Path, server: tuple) -> None:
    reana, url = server
    evaluator = made(folder, url, runs=2)
    outcome = evaluate(evaluator, job(950))
    assert outcome.state == "failed"
    assert "got failed" in outcome.error
    assert outcome.error.endswith("no spectrum at this mass")
    assert [r.status for r in reana.runs] == ["failed", "failed"]
    assert "no spectrum" in (folder / "reana" / evaluator.name(job(950)) / "log.txt").read_text()
    # It has failed as often as it may: nothing is started any more.
    assert evaluator.submit(job(950)).status == "failed"
    assert len(reana.runs) == 2


def test_a_failed_workflow_is_run_again(folder: Path, server: tuple) -> None:
    reana, url = server
    once = "if not os.path.exists(sys.argv[0] + '.second'):\n    open(r'{}', 'w'); sys.exit('once')\n"
    marker = folder / "marker"
    text = once.replace("sys.argv[0] + '.second'", f"r'{marker}'").format(marker)
    (folder / "code" / "limit.py").write_text("import os, sys\n" + text + CODE)
    with pytest.raises(EvaluationError, match="once"):
        made(folder, url).evaluate(job())
    marker.unlink()
    assert made(folder, url, runs=3).evaluate(job(number=4)).values == {"observed": 1.25}
    assert [r.status for r in reana.runs] == ["failed", "failed", "finished"]


def test_too_long_is_stopped(folder: Path, server: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    reana, url = server
    monkeypatch.setenv("SLOW", "30")
    began = time.monotonic()
    with pytest.raises(EvaluationError, match=r"must end within 0.6 s, got running after .* and stopped it"):
        made(folder, url, timeout=0.6).evaluate(job())
    assert time.monotonic() - began < 10
    assert reana.runs[0].status == "stopped"


def test_the_time_of_a_workflow_begins_with_its_creation(
    folder: Path, server: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    reana, url = server
    reana.past = 10 * 86400
    monkeypatch.setenv("SLOW", "30")
    evaluator = made(folder, url, timeout=9 * 86400)
    with pytest.raises(EvaluationError, match=r"after 86400\d s and stopped it"):
        evaluator.evaluate(job())


def test_stopped_by_somebody(folder: Path, server: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    reana, url = server
    reana.delay = 30
    evaluator = made(folder, url)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(evaluator.evaluate, job())
        while not (reana.runs and reana.stop(reana.runs[0])):
            time.sleep(0.02)
        with pytest.raises(EvaluationError, match="must finish, got stopped"):
            found.result(timeout=20)
    reana.delay = 0
    assert evaluator.evaluate(job()).values == {"observed": 1.25}  # asked for anew, it is started anew
    assert [r.full_name[-2:] for r in reana.runs] == [".1", ".2"]


@pytest.mark.parametrize("stop", [False, True])
def test_interrupt(folder: Path, server: tuple, monkeypatch: pytest.MonkeyPatch, stop: bool) -> None:
    reana, url = server
    monkeypatch.setenv("SLOW", "30")

    def interrupt() -> None:
        while not (reana.runs and reana.runs[0].status == "running"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        made(folder, url, stop_on_interrupt=stop).evaluate(job())
    assert reana.runs[0].status == ("stopped" if stop else "running")


def test_delete_when_it_has_been_read(folder: Path, server: tuple) -> None:
    reana, url = server
    evaluator = made(folder, url, delete=True)
    assert evaluator.evaluate(job()).values == evaluator.evaluate(job()).values == {"observed": 1.25}
    assert [r.status for r in reana.runs] == ["deleted"]
    # A result that cannot be read is kept there.
    (folder / "code" / "limit.py").write_text(CODE.replace('"obs"', '"other"'))
    with pytest.raises(EvaluationError, match=r"must have the key limits.obs"):
        evaluator.evaluate(job())
    assert reana.runs[-1].status == "finished"


def test_a_workflow_without_result(folder: Path, server: tuple) -> None:
    (folder / "code" / "limit.py").write_text("print('forgot to write')")
    with pytest.raises(EvaluationError, match=r"(?s)must write limit.json, got no such file.*forgot to write"):
        made(folder, server[1]).evaluate(job())


# ------------------------------------------------------------------------------------------------ the token


def said(evaluator: Reana) -> str:
    """Everything that is told about a failure."""
    try:
        outcome = evaluate(evaluator, job())
    except ExcursionError as error:
        import traceback

        return "".join(traceback.format_exception(error))
    return repr(outcome)


@pytest.mark.parametrize("token_in", ["query", "header"])
def test_the_token_never_shows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, token_in: str
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "another-s3cret"
    monkeypatch.setenv("REANA_ACCESS_TOKEN", secret)
    (folder / "code" / "limit.py").write_text(f"import sys; sys.exit('my token is {secret}')")
    with reana_server.serving(tmp_path / "a", secret, token_in) as (reana, url):
        evaluator = made(folder, url, authentication=token_in, patience=0.3)
        texts = [said(evaluator), repr(evaluator)]
        assert "my token is ***" in texts[0]
        reana.token = "changed"
        texts.append(said(evaluator))
        assert "must allow this, got status 403: Token not valid: ***" in texts[-1]
        for kind in ("drop", "503", "500", "429"):
            reana.troubles = [(".*", kind)] * 50
            texts.append(said(evaluator))
            assert "must be available" in texts[-1]
        assert any(secret in q for q in reana.queries) == (token_in == "query")
    texts.append(said(evaluator))
    assert "Connection refused" in texts[-1]
    assert any("/api/workflows" in r.getMessage() for r in caplog.records)  # urllib3 does log requests
    for text in (*texts, caplog.text):
        assert secret not in text
    written = [p for p in folder.rglob("*") if p.is_file() and p.name != "limit.py"]
    assert written
    assert not any(secret in p.read_text() for p in written)


def test_where_the_token_comes_from(folder: Path, server: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    monkeypatch.delenv("REANA_ACCESS_TOKEN")
    with pytest.raises(InvalidSpec, match=r"owner only, got mode 644. Run: chmod 600"):
        read_token("X", str(file), "here")
    file.chmod(0o600)
    assert made(folder, server[1], token_file=str(file)).evaluate(job()).values == {"observed": 1.25}
    with pytest.raises(InvalidSpec, match=r"REANA_ACCESS_TOKEN must hold the access token, got none"):
        made(folder, server[1]).evaluate(job(number=9))
    monkeypatch.setenv("MINE", "a b")
    with pytest.raises(InvalidSpec, match=r"MINE must hold .*, got characters that"):
        read_token("MINE", "", "here")
    with pytest.raises(InvalidSpec, match=r"must be readable, got No such file"):
        read_token("MINE", str(folder / "none"), "here")


@pytest.mark.parametrize(
    "url",
    [
        "http://reana.cern.ch",
        "ftp://x",
        "reana.cern.ch",
        "https://me:pw@x",
        "https://x?access_token=pw",
        "",
        "http://[",
        "https://x:y",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        checked_url(url, "here")
    assert "pw" not in str(error.value)


def test_urls_that_are_not() -> None:
    assert checked_url("https://reana.cern.ch/", "here") == "https://reana.cern.ch"
    assert checked_url("http://localhost:8080", "here") == "http://localhost:8080"
    assert checked_url("http://elsewhere:8080", "here", trusted=True) == "http://elsewhere:8080"


def test_a_server_that_refuses_stops_the_run(folder: Path, server: tuple) -> None:
    (folder / "reana.yaml").write_text("workflow: {type: serial, specification: {steps: []}}")
    evaluator = dataclasses.replace(made(folder, server[1], parameters=None), inputs=None)
    with pytest.raises(InvalidSpec, match=r"must accept the request, got status 400: 'steps' is a required"):
        evaluate(evaluator, job())


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": "a.b"}, "the prefix must be letters"),
        ({"prefix": "../x"}, "the prefix must be letters"),
        ({"runs": 0}, "runs must be at least 1"),
        ({"timeout": -1}, "timeout must be at least 0"),
        ({"authentication": "body"}, "authentication must be query or header"),
        ({"inputs": {"m": "{mass}"}}, "inputs must be declared under inputs.parameters"),
        ({"inputs": {"mass": "{mas}"}}, "placeholders must be parameters"),
        ({"inputs": {"mass": "mass"}}, "must get every parameter, got no coupling"),
        ({"inputs": {"mass": "mas"}}, "placeholders must be parameters"),
        ({"inputs": {"seed": "seed"}, "constants": {"seed": 1}}, "either constant or not"),
        ({"constants": {"nothing": 1}}, "inputs must be declared"),
        ({"constants": {"mass": 1.0}}, "must get every parameter, got no mass"),
        ({"parameters": ("mass", "coupling", "width")}, "must get every parameter, got no width"),
    ],
)
def test_settings_that_are_refused(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        made(folder, "https://x", **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "must hold its workflow"),
        ("workflow: {type: cwl, file: x.cwl}", "must hold its workflow"),
        ("a: [", "must be YAML"),
        ("when: 2026-01-01\nworkflow: {specification: {steps: []}}", "must be plain data"),
    ],
)
def test_specifications_that_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / "reana.yaml").write_text(text)
    with pytest.raises(InvalidSpec, match=message):
        made(folder, "https://x")


def test_uploads_stay_inside(folder: Path, server: tuple) -> None:
    text = (folder / "reana.yaml").read_text()
    (folder.parent / "outside.txt").write_text("private")
    (folder / "reana.yaml").write_text(text.replace("code/limit.py]", "code/limit.py, ../outside.txt]"))
    with pytest.raises(InvalidSpec, match=r"must lie beside reana.yaml, got '../outside.txt'"):
        made(folder, server[1]).evaluate(job())
    (folder / "reana.yaml").write_text(text.replace("files: [code/limit.py]", "directories: [code]"))
    (folder / "code" / "more").mkdir()
    (folder / "code" / "more" / "data.txt").write_text("data")
    assert made(folder, server[1]).evaluate(job()).values == {"observed": 1.25}
    assert (server[0].runs[0].workspace / "code" / "more" / "data.txt").read_text() == "data"
    (folder / "code" / "link").symlink_to(folder.parent / "outside.txt")
    with pytest.raises(InvalidSpec, match="a link must not lead out"):
        made(folder, server[1]).evaluate(job())


# ------------------------------------------------------------------------------------------------ campaigns


def test_a_campaign_waits_for_many_workflows_at_a_time(folder: Path, server: tuple) -> None:
    reana, url = server
    reana.delay = 0.5
    space = ParameterSpace((Parameter("mass", 100, 800), Parameter("coupling", 0.1, 1)))
    campaign = Campaign.create("memory://", "c", Problem(space, (Task("observed", (1.0,)),)), Strategy(design_size=8))
    with ThreadPoolExecutor(8) as threads:
        report = run(campaign, made(folder, url), budget=8, batch=8, executor=threads, workers=8, progress=False)
    assert (report.evaluations, report.failed) == (8, 0)
    assert len(reana.runs) == 8
    assert reana.most_running > 1
    for trial in campaign.trials:
        expected = trial.x["mass"] / 100 * trial.x["coupling"]
        assert trial.outcome.values["observed"] == pytest.approx(expected, rel=1e-12)


def test_yaml(folder: Path, server: tuple) -> None:
    _, url = server
    file = folder / "scan.yaml"
    file.write_text(
        f"""
parameters: {{mass: [100, 800], coupling: [0.1, 1]}}
tasks: {{observed: 1.0}}
evaluator:
  reana: reana.yaml
  server: {url}
  result: {{file: limit.json, keys: {{observed: limits.obs}}, valid: {{observed: [0, 2]}}}}
  poll: 0.1
strategy: {{acquisition: Sobol, design_size: 3}}
run: {{budget: 3}}
"""
    )
    spec = load(file)
    campaign = begin(spec)
    report = go_on(campaign, spec.evaluator, spec.run, progress=False)
    assert (report.evaluations, report.failed) == (3, 0)
    assert TOKEN not in (folder / "scan.db").read_bytes().decode("latin-1")
    text = file.read_text()
    for old, new, message in (
        ("limits.obs}", "limits.obs, other: b}", r"line 5, evaluator.reana: result: keys must name the tasks"),
        ("poll: 0.1", "pol: 0.1", r"line 8, evaluator.pol: this key is not known.*Did you mean 'poll'"),
        ("valid:", "vaild:", r"line 7, evaluator.result.vaild: this key is not known"),
        (f"server: {url}", "server: http://reana.cern.ch", r"over https only"),
        ("reana: reana.yaml", "reana: none.yaml", r"none.yaml: must be a readable file"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(InvalidSpec, match=message):
            load(file)


def test_docs(folder: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "reana.md").read_text()
    (folder / "reana.yaml").write_text(
        (folder / "reana.yaml").read_text().replace("{mass: 0, coupling: 1.0, seed: 0}", "{mass: 0, lsp: 0, seed: 0}")
    )
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (folder.parent / "scan.yaml").write_text(block)
    spec = load(folder.parent / "scan.yaml")
    assert isinstance(evaluator_of(spec.evaluator, spec.problem), Reana)
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for piece in code:
        exec(compile(piece, "docs/reana.md", "exec"), {})
    keys = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    named = {key for line in keys for key in re.findall(r"`(\w+)`", line)}
    assert named == set(_Reana.model_fields)


@pytest.mark.parametrize("settings", ["authentication: header", "token_env: MINE", "token_file: ~/.reana"])
def test_settings_about_the_token_are_no_secrets(folder: Path, settings: str) -> None:
    text = "parameters: {mass: [100, 800], coupling: [0.1, 1]}\ntasks: {observed: 1.0}\nevaluator:\n"
    text += f"  reana: reana.yaml\n  server: https://x\n  result: {{file: limit.json}}\n  {settings}\n"
    (folder / "scan.yaml").write_text(text)
    assert load(folder / "scan.yaml").evaluator is not None
    (folder / "scan.yaml").write_text(text.replace(settings, "access_token: abcdef123"))
    with pytest.raises(InvalidSpec) as error:
        load(folder / "scan.yaml")
    assert "abcdef123" not in str(error.value)


@pytest.mark.parametrize("executor", ["local", "{type: local, threads: true}"])
def test_an_interrupted_run_ends_at_once_and_goes_on(folder: Path, server: tuple, executor: str) -> None:
    """Ctrl-C while three workflows wait for hours; they are found again by the next run."""
    reana, url = server
    reana.delay = 3600
    (folder / "scan.yaml").write_text(
        "parameters: {mass: [100, 800], coupling: [0.1, 1]}\ntasks: {observed: 1.0}\n"
        f"evaluator:\n  reana: reana.yaml\n  server: {url}\n"
        "  result: {file: limit.json, keys: {observed: limits.obs}}\n"
        f"executor: {executor}\nrun: {{budget: 3, batch: 3, workers: 3}}\n"
    )
    words = [sys.executable, "-m", "excursion.cli", "run", str(folder / "scan.yaml"), "--no-progress"]
    driver = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert driver.stderr is not None
    try:
        deadline = time.monotonic() + 60
        while sum(r.status == "queued" for r in reana.runs) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(20) == 130
        assert "interrupted: go on with" in driver.stderr.read()
    finally:
        driver.kill()
        driver.wait()
        driver.stderr.close()
    for run_ in reana.runs:
        reana.hurry(run_)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "0 failed, 3 finished in all" in done.stdout
    assert [r.full_name[-2:] for r in reana.runs] == [".1", ".1", ".1"]
