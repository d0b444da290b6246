from __future__ import annotations

import importlib.util
import json
import math
import os
import pickle
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from excursion.data import Job
from excursion.errors import EvaluationError, InvalidSpec, MissingExtra
from excursion.evaluators import yadage as module
from excursion.evaluators.reader import Reader
from excursion.evaluators.yadage import Yadage, entry

needs_yadage = pytest.mark.skipif(importlib.util.find_spec("yadage") is None, reason='pip install "excursion[yadage]"')

LOCAL = {"environment_type": "localproc-env"}
IMAGE = {"environment_type": "docker-encapsulated", "image": "recast/analysis", "imagetag": "v1"}

#: What the first step does: the sum of its data, and everything it was given, as JSON.
SUM = """\
import json, os, sys
a, b, rest = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
print("summing", a, b)
json.dump({"sum": a + b, "rest": rest, "level": os.environ.get("LEVEL", "")}, open("sum.json", "w"))
"""


def stage(name: str, after: str, **parameters: Any) -> dict[str, Any]:
    scheduler = {
        "scheduler_type": "singlestep-stage",
        "parameters": parameters,
        "step": {"$ref": f"steps.yml#/{name}"},
    }
    return {"name": name, "dependencies": [after], "scheduler": scheduler}


def step(command: str, output: str, environment: dict[str, Any] = LOCAL, **process: Any) -> dict[str, Any]:
    return {
        "process": process or {"process_type": "string-interpolated-cmd", "cmd": command},
        "environment": environment,
        "publisher": {"publisher_type": "frompar-pub", "outputmap": {output: output}},
    }


def workflow(folder: Path, fit: str = "cp {sum} {limit}", environment: dict[str, Any] = LOCAL, **process: Any) -> Path:
    """sum: a, b -> a + b; fit: whatever is told, from {sum} to {limit}."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sum.py").write_text(SUM)
    init = {key: {"step": "init", "output": key} for key in ("a", "b", "rest")}
    stages = [
        stage("sum", "init", **init, code=str(folder / "sum.py"), sum="{workdir}/sum.json"),
        stage("fit", "sum", sum={"step": "sum", "output": "sum"}, limit="{workdir}/limit.json"),
    ]
    steps = {
        "sum": step(f"cd $(dirname {{sum}}) && {sys.executable} {{code}} {{a}} {{b}} {{rest}}", "sum", environment),
        "fit": step(fit, "limit", environment, **process),
    }
    (folder / "workflow.yml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / "steps.yml").write_text(yaml.safe_dump(steps))
    return folder


READER = Reader("fit/limit.json", {"f": "sum"})
INPUTS = {"a": "x", "b": "y"}
JOB = Job({"x": 0.1, "y": 2e-7}, number=12, seed=34)


def evaluator(folder: Path, result: Reader = READER, **more: Any) -> Yadage:
    given: dict[str, Any] = {
        "toplevel": "analysis",
        "inputs": INPUTS,
        "constants": {} if "rest" in (more.get("inputs") or {}) else {"rest": "-"},
        "parameters": ("x", "y"),
        "folder": str(folder),
    }
    return Yadage("workflow.yml", result, **{**given, **more})


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---------------------------------------------------------------------------------------------- real workflows


@needs_yadage
def test_a_workflow_of_two_steps(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    inputs = {**INPUTS, "rest": "{seed}-{number}-{x:.0e}"}
    # The directory from which it runs plays no part, nor does the way to the worker.
    recipe = pickle.loads(pickle.dumps(evaluator(tmp_path, inputs=inputs, environment={"LEVEL": "4"})))
    before = os.getcwd()
    outcome = recipe.evaluate(JOB)
    assert os.getcwd() == before
    assert outcome.values == {"f": 0.1 + 2e-7}
    directory = tmp_path / "work" / "00012-0"
    assert outcome.info["workdir"] == str(directory)
    assert 0.1 < outcome.info["seconds"] < 60
    written = json.loads((directory / "workflow" / "sum" / "sum.json").read_text())
    assert written == {"sum": 0.1 + 2e-7, "rest": ["34-12-1e-01"], "level": "4"}
    # The log is what the steps said; yadage has one of its own.
    assert (directory / "log.txt").read_text() == "summing 0.1 2e-07\n"
    assert "fit" in (directory / "yadage.log").read_text()
    names = {path.name for path in directory.iterdir()}
    assert names == {"log.txt", "request.json", "workflow", "yadage.log"}
    assert recipe.evaluate(JOB).info["workdir"] == str(tmp_path / "work" / "00012-1")


@needs_yadage
def test_python_is_the_same_one_in_local_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    workflow(tmp_path / "analysis", fit="python -c 'import sys; print(sys.prefix)'; cp {sum} {limit}")
    outcome = evaluator(tmp_path).evaluate(JOB)
    assert (Path(outcome.info["workdir"]) / "log.txt").read_text().splitlines()[-1] == sys.prefix


@needs_yadage
def test_a_step_that_fails_shows_what_it_said(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis", fit="echo no convergence of the fit >&2; cp {sum} {limit}; exit 3")
    with pytest.raises(EvaluationError) as caught:
        evaluator(tmp_path).evaluate(JOB)
    message = str(caught.value)
    assert message.startswith("yadage at trial 12: the workflow must end well, got exit code 1 after ")
    assert "in step 'fit'" in message
    assert str(tmp_path / "work" / "00012-0" / "log.txt") in message
    assert "no convergence of the fit" in message
    assert "Traceback" not in message


@needs_yadage
def test_the_timeout_ends_all_processes(tmp_path: Path) -> None:
    # The step's child ignores the polite request and is in the background.
    stubborn = "sh -c 'trap \"\" TERM; echo $$ > {sum}.pid; sleep 60; sleep 60' & wait"
    workflow(tmp_path / "analysis", fit=stubborn)
    began = time.monotonic()
    with pytest.raises(EvaluationError, match=r"must end within 5 s, got no end and killed it in step 'fit'") as caught:
        evaluator(tmp_path, timeout=5).evaluate(JOB)
    assert time.monotonic() - began < 25
    assert "summing 0.1" in str(caught.value)
    number = int((tmp_path / "work" / "00012-0" / "workflow" / "sum" / "sum.json.pid").read_text())
    deadline = time.monotonic() + 10
    while alive(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(number)


@needs_yadage
def test_a_result_that_is_not_there(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    with pytest.raises(EvaluationError, match=r"trial 12: .*work/00012-0/workflow/fit/other.json, got no such file"):
        evaluator(tmp_path, Reader("fit/other.json", {"f": "sum"})).evaluate(JOB)
    with pytest.raises(EvaluationError, match=r"must have the key limit of task 'f', got the keys .*'sum'"):
        evaluator(tmp_path, Reader("fit/limit.json", {"f": "limit"})).evaluate(JOB)


@needs_yadage
def test_bounds_come_through(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    reader = Reader("fit/limit.json", {"f": "sum", "g": "more"}, valid={"f": (0, 0.05)}, missing=("g",))
    outcome = evaluator(tmp_path, reader).evaluate(JOB)
    assert (outcome.values, outcome.bounds, outcome.missing) == ({"f": 0.05}, {"f": "above"}, ("g",))


@needs_yadage
def test_a_workflow_that_yadage_refuses(tmp_path: Path) -> None:
    folder = workflow(tmp_path / "analysis")
    (folder / "workflow.yml").write_text("stages:\n- {name: a, b: c}\n")
    with pytest.raises(EvaluationError, match="ValidationError"):
        evaluator(tmp_path, inputs={"a": "x", "b": "y"}).evaluate(JOB)


@pytest.fixture
def own_yadage_run(tmp_path: Path) -> Path:
    """yadage-run as of an environment of its own, whose jsonschema suits it."""
    schemas = tmp_path / "schemas"
    source = Path(importlib.util.find_spec("yadageschemas").submodule_search_locations[0])  # type: ignore[union-attr,index]
    for file in source.rglob("*.json"):
        copy = schemas / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "$schema"}))
    script = tmp_path / "env" / "yadage-run"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {Path(sys.executable).parent}/yadage-run --schemadir {schemas} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@needs_yadage
@pytest.mark.parametrize("containers", ["docker", "local"])
def test_yadage_in_an_environment_of_its_own(tmp_path: Path, own_yadage_run: Path, containers: str) -> None:
    workflow(tmp_path / "analysis", environment=IMAGE if containers == "local" else LOCAL)
    more = {"executable": "env/yadage-run", "containers": containers, "environment": {"LEVEL": "5"}}
    outcome = evaluator(tmp_path, **more).evaluate(JOB)
    # 2e-07 without a point is text in YAML 1.1.
    assert outcome.values == {"f": 0.1 + 2e-7}
    directory = Path(outcome.info["workdir"])
    assert yaml.safe_load((directory / "initial.yml").read_text()) == {"a": 0.1, "b": 2e-7, "rest": "-"}
    assert json.loads((directory / "workflow" / "sum" / "sum.json").read_text())["level"] == "5"
    assert not (directory / "request.json").exists()
    workflow(tmp_path / "analysis", fit="echo no convergence; exit 3")
    with pytest.raises(EvaluationError, match=r"in step 'fit'.*\n(.*\n)*no convergence"):
        evaluator(tmp_path, executable="env/yadage-run").evaluate(JOB)


@needs_yadage
def test_steps_with_an_image_run_without_one(tmp_path: Path) -> None:
    script = {"process_type": "interpolated-script-cmd", "interpreter": "sh", "script": "cp {sum} {limit}\npwd -P\n"}
    setup = tmp_path / "set up.sh"
    setup.write_text("export LEVEL=6\n")
    workflow(tmp_path / "analysis", environment={**IMAGE, "envscript": str(setup)}, **script)
    outcome = evaluator(tmp_path, containers="local").evaluate(JOB)
    assert outcome.values == {"f": 0.1 + 2e-7}
    work = Path(outcome.info["workdir"]) / "workflow"
    assert json.loads((work / "sum" / "sum.json").read_text())["level"] == "6"
    assert f"{work / 'fit'}\n" in (work.parent / "log.txt").read_text()


@needs_yadage
def test_files_at_places_of_a_container_are_refused_without_one(tmp_path: Path) -> None:
    mounts = [{"jqscript": ".", "mountpath": "/etc/forbidden"}]
    workflow(tmp_path / "analysis", environment={**IMAGE, "par_mounts": mounts})
    with pytest.raises(EvaluationError, match="step sum: par_mounts need a container"):
        evaluator(tmp_path, containers="local").evaluate(JOB)
    assert not Path("/etc/forbidden").exists()


@needs_yadage
@pytest.mark.parametrize("containers", ["docker", "singularity"])
def test_without_an_engine_the_run_stops(tmp_path: Path, containers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tmp_path / "bin"
    few.mkdir()
    for name in ("sh", "dirname"):
        (few / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(few))
    workflow(tmp_path / "analysis", environment=IMAGE)
    with pytest.raises(InvalidSpec, match=f"steps that name an image need {containers} on this machine"):
        evaluator(tmp_path, containers=containers).evaluate(JOB)


@needs_yadage
@pytest.mark.parametrize("containers", ["docker", "singularity"])
def test_the_engine_is_given_the_image_and_its_words_are_shown(
    tmp_path: Path, containers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program in place of the engine, which says what it was asked for; packtivity's part is real.
    engine = tmp_path / "bin" / containers
    engine.parent.mkdir()
    engine.write_text('#!/bin/sh\necho "engine: $@"\ntest "$1" = pull || { echo disk full; exit 9; }\n')
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{engine.parent}{os.pathsep}{os.environ['PATH']}")
    workflow(tmp_path / "analysis", environment=IMAGE)
    with pytest.raises(EvaluationError) as caught:
        evaluator(tmp_path, containers=containers).evaluate(JOB)
    message = str(caught.value)
    assert "in step 'sum'" in message
    assert "sum.run.log" in message
    assert "recast/analysis:v1" in message
    assert "disk full" in message


@needs_yadage
def test_processes_at_the_same_time(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    recipe = evaluator(tmp_path)
    jobs = [Job({"x": float(k), "y": 0.5}, number=k % 2) for k in range(4)]
    with ProcessPoolExecutor(2) as pool:
        outcomes = list(pool.map(recipe.evaluate, jobs))
    assert [outcome.values["f"] for outcome in outcomes] == [0.5, 1.5, 2.5, 3.5]
    assert len({outcome.info["workdir"] for outcome in outcomes}) == 4


@needs_yadage
def test_files_of_the_workflow(tmp_path: Path) -> None:
    # A text of the initial data that names a file of initdir becomes its path.
    workflow(tmp_path / "analysis", fit="cp {sum} {limit}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.json").write_text("{}")
    outcome = evaluator(tmp_path, initdir="data", constants={"rest": "model.json"}).evaluate(JOB)
    written = json.loads((Path(outcome.info["workdir"]) / "workflow" / "sum" / "sum.json").read_text())
    assert written["rest"] == [str(tmp_path / "data" / "model.json")]


def test_yadage_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow(tmp_path / "analysis")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"excursion\[yadage\]"):
        evaluator(tmp_path).evaluate(JOB)
    assert not (tmp_path / "work").exists()
    with pytest.raises(InvalidSpec, match=r"must be there and executable, got .*env/yadage-run"):
        evaluator(tmp_path, executable="env/yadage-run").evaluate(JOB)


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"toplevel": "github:recast-hep/workflows"}, "toplevel must be on this machine.*git clone"),
        ({"toplevel": "gitlab-cern:me/it:specs"}, "toplevel must be on this machine"),
        ({"toplevel": "https://example.org/x"}, "toplevel must be on this machine"),
        ({"toplevel": "from-github/testing"}, "toplevel must be on this machine"),
        ({"toplevel": "nowhere"}, r"got no file .*nowhere/workflow\.yml"),
        ({"inputs": {"a": "x"}}, r"must use every parameter, got no y .*Write name: y"),
        ({"inputs": {**INPUTS, "rest": "z"}}, r"input 'rest': must be a parameter \(x, y\) or one of seed, number"),
        ({"inputs": {**INPUTS, "rest": "workdir"}}, "input 'rest': must be a parameter"),
        ({"inputs": {**INPUTS, "rest": "{x.real}"}}, "placeholders must be parameters"),
        ({"inputs": {**INPUTS, "rest": "{x:9999f}"}}, "at most 100 characters"),
        ({"inputs": {**INPUTS, "rest": 3}}, "belong into constants"),
        ({"inputs": None}, r"no mention of x, y in the files of .*analysis. Write inputs"),
        ({"inputs": {**INPUTS, "c": "x"}}, "no mention of c in"),
        ({"constants": {"a": 1}}, r"got both for \['a'\]"),
        ({"constants": {"rest": {1, 2}}}, r"must be text, numbers, lists and mappings \(JSON\)"),
        ({"constants": {"rest": math.nan}}, r"must be text, numbers, lists"),
        ({"containers": "podman"}, "one of docker, singularity, local, got 'podman'"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"environment": {"N": 1}}, "environment variables must be text"),
        ({"executable": "'yadage-run"}, "Close the quotes"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    workflow(tmp_path / "analysis")
    with pytest.raises(InvalidSpec, match=message):
        evaluator(tmp_path, **given)


def test_the_workflow_may_be_named_with_its_folder(tmp_path: Path) -> None:
    folder = workflow(tmp_path / "analysis")
    recipe = Yadage("analysis/workflow.yml", READER, inputs=INPUTS, parameters=("x", "y"), folder=str(tmp_path))
    assert (recipe.toplevel, recipe.workflow) == (str(folder), "workflow.yml")


def test_what_lies_beside_a_workflow_does_no_harm(tmp_path: Path) -> None:
    folder = workflow(tmp_path / "analysis")
    (folder / "archive.yml").mkdir()
    (folder / "gone.json").symlink_to(folder / "nothing.json")
    os.mkfifo(folder / "pipe.yaml")
    with pytest.raises(InvalidSpec, match="no mention of c in"):
        evaluator(tmp_path, inputs={**INPUTS, "c": "x"})


@needs_yadage
def test_a_step_that_removes_the_log(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis", fit="rm ../../log.txt; cp {sum} {limit}; exit 3")
    with pytest.raises(EvaluationError, match=r"in step 'fit'\. There is no log: the program made of"):
        evaluator(tmp_path).evaluate(JOB)


def test_a_campaign_without_fidelities_has_none_to_give(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    recipe = evaluator(tmp_path, inputs={**INPUTS, "rest": "events"})
    with pytest.raises(InvalidSpec, match="Declare fidelities: this campaign gives no events"):
        recipe.evaluate(JOB)
    assert not (tmp_path / "work").exists()


# -------------------------------------------------------------------------------------------------- catalogue

ENTRY: dict[str, Any] = {
    "name": "examples/sums",
    "metadata": {"author": "Ada", "input requirements": "none", "short_description": "sums"},
    "spec": {"toplevel": "../analysis", "workflow": "workflow.yml"},
    "example_inputs": {
        "default": {"initdata": {"a": 1, "b": 2, "rest": "-"}},
        "other": {"initdata": {"a": 1, "b": 2, "rest": "more"}, "dataopts": {"initdir": "files"}},
    },
    "results": [{"name": "limit", "relpath": "fit/limit.json", "load_yaml": True}],
}


def put(folder: Path, content: Any) -> Path:
    file = folder / "catalogue" / "sums.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


@needs_yadage
def test_an_entry_of_a_catalogue(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    found = entry(put(tmp_path, ENTRY))
    recipe = found.evaluator(
        Reader(found.result, {"f": "sum"}), str(tmp_path), inputs={"a": "x"}, parameters=("x",), workdir="runs"
    )
    assert recipe.constants == {"b": 2, "rest": "-"}
    outcome = recipe.evaluate(Job({"x": 0.25}, number=3))
    assert outcome.values == {"f": 2.25}
    assert outcome.info["workdir"] == str(tmp_path / "runs" / "00003-0")
    other = entry(put(tmp_path, ENTRY), "other").evaluator(Reader("r.json", {"f": "sum"}), parameters=("a",))
    assert (other.initdir, other.constants["rest"]) == (str(tmp_path / "catalogue" / "files"), "more")


def test_an_entry_whose_workflow_is_elsewhere(tmp_path: Path) -> None:
    workflow(tmp_path / "clone")
    spec = {"toplevel": "github:recast-hep/sums@v1:specs", "workflow": "workflow.yml"}
    found = entry(put(tmp_path, {**ENTRY, "spec": spec}))
    more: dict[str, Any] = {"folder": str(tmp_path), "inputs": INPUTS, "parameters": ("x", "y")}
    with pytest.raises(InvalidSpec, match=r"must be on this machine, got 'github:recast-hep/sums@v1:specs'.*toplevel"):
        found.evaluator(READER, **more)
    assert found.evaluator(READER, toplevel="clone", **more).toplevel == str(tmp_path / "clone")


def test_inputs_that_an_entry_does_not_know(tmp_path: Path) -> None:
    workflow(tmp_path / "analysis")
    found = entry(put(tmp_path, ENTRY))
    with pytest.raises(InvalidSpec, match=r"must be initial data of the workflow \(a, b, rest\), got \['m_slepton'\]"):
        found.evaluator(READER, parameters=("m_slepton",))
    with pytest.raises(InvalidSpec, match=r"must be initial data of the workflow \(a, b, rest\), got \['evnts'\]"):
        found.evaluator(READER, parameters=("a",), constants={"evnts": 10})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("- 1", "must be a mapping"),
        ("a: [", "must be YAML"),
        ("a: !!python/name:os.system", "must be YAML"),
        ({"spec": None}, "spec must name workflow and toplevel"),
        ({"spec": ["workflow.yml"]}, "spec must be a mapping"),
        ({"spec": {"workflow": 3}}, "spec must name workflow"),
        ({"example_inputs": {"a": {}}}, r"there must be an example 'default', got \['a'\]"),
        ({"example_inputs": {"default": {"initdata": [1]}}}, "initdata must be a mapping"),
        ({"example_inputs": {"default": {"dataopts": {"inputarchive": "x"}}}}, "only initdir can be used"),
        ({"example_inputs": {"default": {"initdata": {"a": math.inf}}}}, "initial data must be finite"),
        ({"results": [{"name": "limit"}]}, "must have a relpath"),
        ({"results": True}, "results must be a list"),
    ],
)
def test_bad_entries(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        entry(put(tmp_path, change if isinstance(change, str) else {**ENTRY, **change}))


_KEYS = [
    "spec",
    "workflow",
    "toplevel",
    "example_inputs",
    "default",
    "initdata",
    "dataopts",
    "initdir",
    "results",
    "relpath",
    "name",
]
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(_KEYS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(section=st.sampled_from(["spec", "example_inputs", "results", None]), content=_ANY)
def test_any_entry_is_read_or_refused(tmp_path: Path, section: str | None, content: Any) -> None:
    workflow(tmp_path / "analysis")
    try:
        found = entry(put(tmp_path, content if section is None else {**ENTRY, section: content}))
        found.evaluator(Reader(found.result, {"f": "sum"}), parameters=("a",))
    except InvalidSpec as error:
        told = str(error)
    else:
        told = ""
    assert len(told) < 2000


def test_the_result_of_an_entry_must_be_clear(tmp_path: Path) -> None:
    results = [{"name": "limit", "relpath": "fit/limit.json"}, {"name": "plot", "relpath": "fit/plot.pdf"}]
    with pytest.raises(InvalidSpec, match=r"which result is read must be clear, got \{'limit'.*result: \{file"):
        _ = entry(put(tmp_path, {**ENTRY, "results": results})).result
    with pytest.raises(InvalidSpec, match="must be a readable file"):
        entry(tmp_path / "nothing.yml")


@needs_yadage
def test_the_driver_needs_nothing_of_this_package(tmp_path: Path) -> None:
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("driver", {str(Path(module.__file__).with_name("yadage_driver.py"))!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print(sorted(m for m in sys.modules if m.split(".")[0] in ("excursion", "torch", "numpy")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
