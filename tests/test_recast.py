"""The example of a preserved analysis, and what docs/recast.md shows."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import typing
from pathlib import Path

import pytest
import yaml

from excursion.campaign import Campaign
from excursion.cli import app
from excursion.data import Job
from excursion.errors import EvaluationError, InvalidSpec
from excursion.evaluators.reader import Reader
from excursion.evaluators.yadage import Yadage
from excursion.examples import sleptons
from excursion.examples.recast import FILES, steps, write
from excursion.spec import evaluator, load, parse

EXTRAS = all(importlib.util.find_spec(name) for name in ("yadage", "pythia8mc", "mt2", "fastjet", "pyhf"))
needs_extras = pytest.mark.skipif(not EXTRAS, reason='pip install "excursion[yadage,pythia]"')
DOCS = Path(__file__).parents[1] / "docs" / "recast.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), flags=re.M | re.S)


# ------------------------------------------------------------------------------------------------ the example


def fewer_events(folder: Path, events: int) -> Path:
    file = write(folder)
    file.write_text(file.read_text().replace("events: 2000", f"events: {events}"))
    return file


def test_the_files_are_part_of_the_package(tmp_path: Path) -> None:
    import excursion.examples.recast as package

    data = Path(package.__file__).parent / "data"
    assert {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()} == set(FILES)
    file = write(tmp_path / "new" / "folder")
    spec = load(file)
    made = evaluator(json.loads(json.dumps(spec.evaluator)), spec.problem)
    assert isinstance(made, Yadage)
    assert made.constants == {"events": 2000}
    assert made.result.file == "fit/limits.json"
    assert spec.store == str(tmp_path / "new" / "folder" / "campaign.db")


def test_what_was_edited_is_kept(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text("name: mine\n")
    assert write(tmp_path) == file
    assert file.read_text() == "name: mine\n"
    file.unlink()
    assert "RECAST" in write(tmp_path).read_text()
    with pytest.raises(InvalidSpec, match="must be a folder to write in"):
        write(file)


@needs_extras
def test_the_workflow_gives_what_the_evaluator_gives(tmp_path: Path) -> None:
    spec = load(fewer_events(tmp_path, 300))
    assert spec.evaluator is not None
    job = Job({"m_slepton": 400.0, "m_chi": 100.0}, number=3, seed=11)
    outcome = evaluator(spec.evaluator, spec.problem).evaluate(job)
    direct = sleptons.evaluator(events=300, mu_max=20.0).evaluate(job)
    for task in ("observed", "expected"):
        assert outcome.values[task] == direct.values[task]
        assert outcome.variances[task] == direct.variances[task] > 0
    # Little to see: beyond what the fit tries.
    job = Job({"m_slepton": 300.0, "m_chi": 279.0}, number=4, seed=12)
    outcome = evaluator(spec.evaluator, spec.problem).evaluate(job)
    direct = sleptons.evaluator(events=300, mu_max=20.0).evaluate(job)
    assert outcome.bounds == {"observed": "above", "expected": "above"}
    assert outcome.bounds.items() <= direct.bounds.items()
    assert outcome.values == {"observed": 20.0, "expected": 20.0}


@needs_extras
def test_a_step_says_why_it_fails(tmp_path: Path) -> None:
    spec = load(fewer_events(tmp_path, 300))
    assert spec.evaluator is not None
    recipe = evaluator(spec.evaluator, spec.problem)
    with pytest.raises(EvaluationError, match=r"in step 'generate'.*\n.*0 <= m_chi < m_slepton"):
        recipe.evaluate(Job({"m_slepton": 300.0, "m_chi": 400.0}))


@needs_extras
@pytest.mark.slow
def test_the_example_runs_and_goes_on(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    fewer_events(tmp_path, 300)
    for budget in (3, 4):
        done = CliRunner().invoke(app, ["example", "recast", "--out", str(tmp_path), "--budget", str(budget)])
        assert done.exit_code == 0, done.output
    trials = Campaign.open(str(tmp_path / "campaign.db")).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in trials} <= {"complete", "censored"}
    seeds = [
        json.loads((Path(trial.outcome.info["workdir"]) / "request.json").read_text())["initdata"]["seed"]
        for trial in trials
        if trial.outcome is not None
    ]
    assert seeds == [trial.seed for trial in trials]


def test_the_steps_refuse_what_they_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "yields.json"
    for text in ("{", "[]", '{"nominal": [1]}', '{"nominal": 3, "errors": 4}', '{"nominal": ["a"], "errors": []}'):
        file.write_text(text)
        with pytest.raises(SystemExit) as caught:
            steps.main(["fit", "--yields", str(file), "--mu-max", "20", "--out", str(tmp_path / "limits.json")])
        assert caught.value.code == 1
        assert "must hold nominal and errors" in capsys.readouterr().err
    assert not (tmp_path / "limits.json").exists()


# ------------------------------------------------------------------------------------------------ the settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("analysis", "checkouts/analysis"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "workflow.yml").write_text("stages: [m1, m2, seed, tag, events, mass]\n")
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "entry.yml").write_text("""\
name: an analysis
spec: {toplevel: 'github:somebody/analysis', workflow: workflow.yml}
example_inputs: {default: {initdata: {m1: 1, m2: 2, events: 100}}}
results: [{name: limits, relpath: fit/limit.json, load_yaml: true}]
""")
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_documented_files_are_valid(block: str, folder: Path) -> None:
    spec = parse(block, folder / "scan.yaml")
    assert spec.evaluator is not None
    made = evaluator(json.loads(json.dumps(spec.evaluator)), spec.problem)
    assert isinstance(made, Yadage)
    assert set(made.result.keys) == set(spec.problem.task_names)
    if spec.evaluator["kind"] == "recast":
        assert made.toplevel == str(folder / "checkouts" / "analysis")
        assert made.constants == {"events": 100}
        assert (made.result.file, made.result.valid) == ("fit/limit.json", {"observed": (0.0, 2.0)})


def test_every_key_is_documented() -> None:
    text = DOCS.read_text()
    keys = {"recast", "example_inputs", "yadage"}
    for recipe in (Reader, Yadage):
        hints = typing.get_type_hints(recipe)
        for field in dataclasses.fields(recipe):
            choices = re.findall(r"'([\w-]+)'", str(hints[field.name])) if "Literal" in str(hints[field.name]) else []
            keys |= {field.name, *choices}
    keys -= {"workflow", "folder", "parameters"}
    assert sorted(key for key in keys if not re.search(rf"`[^`]*(?<![\w-]){key}(?![\w-])[^`]*`", text)) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "toplevel: checkouts/analysis",
            "timeout: 5",
            r"scan.yaml, line 5, evaluator\.recast: .*must be on this machine",
        ),
        (
            "{m1: m_slepton, m2: m_chi}",
            "{m1: m_slepton, m3: m_chi}",
            r"initial data of the workflow \(m1, m2, events\)",
        ),
        ("{m1: m_slepton, m2: m_chi}", "{m1: m_slepton}", "must use every parameter, got no m_chi"),
        ("{m1: m_slepton, m2: m_chi}", "{m1: m_slepton, m2: 3}", "Other values belong into constants"),
        ("default ", "special ", "there must be an example 'special'"),
        ("entry.yml", "other.yml", "must be a readable file"),
        ("catalogue/entry.yml", "null", "needs the file of the workflow"),
        ("valid: [0, 2]", "vald: [0, 2]", r"line 9, evaluator\.result\.vald: this key is not known.*'valid'"),
        ("valid: [0, 2]", "valid: [2, 0]", r"valid range of 'observed'"),
        ("valid: [0, 2]", "file: ../limit.json", "own directory"),
        (
            "keys: {observed: obs}",
            "keys: {expected: obs}",
            r"keys must name the tasks \(observed\), got \['expected'\]",
        ),
        ("quantity: mu_95", "quantity: mu", r"evaluator\.result\.quantity: must be"),
        ("recast: catalogue/entry.yml", "yadage: analysis/workflow.yml", "example_inputs are those of an entry"),
    ],
)
def test_mistakes_are_told(folder: Path, old: str, new: str, message: str) -> None:
    text = BLOCKS[1]
    assert old in text
    with pytest.raises(InvalidSpec, match=message):
        parse(text.replace(old, new), folder / "scan.yaml")


def test_a_result_needs_a_file(folder: Path) -> None:
    tree = yaml.safe_load(BLOCKS[0])
    del tree["evaluator"]["result"]
    with pytest.raises(InvalidSpec, match=r"evaluator\.yadage: result: needs the file of the values"):
        parse(yaml.safe_dump(tree), folder / "scan.yaml")
