from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import typing
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings

from excursion.acquisition import CRITERIA, EI, PES, SUR, UCB, Search, Straddle
from excursion.campaign import Campaign
from excursion.data import Outcome
from excursion.errors import InvalidOutcome, InvalidSpec
from excursion.evaluators.adapters import Imported, Selected
from excursion.evaluators.command import Command
from excursion.evaluators.pyhf import TASKS
from excursion.evaluators.yadage import Yadage
from excursion.examples.sleptons import Reinterpretation, Simulation
from excursion.executors import RECIPES as EXECUTORS
from excursion.problem import Fidelity, Problem, Task
from excursion.proposal import Strategy
from excursion.space import Parameter, ParameterSpace
from excursion.spec import Spec, begin, evaluator, go_on, load, outcome, parse, resume
from excursion.surrogate import RECIPES, GaussianProcess, KernelSearch

GOOD = """\
name: my scan
store: scan.db
parameters:
  m_slepton: {lower: 100, upper: 800, unit: GeV, step: 1}
  m_chi:
    lower: 0
    upper: 600
constraints: ["m_slepton - m_chi > 20"]
tasks:
  observed: {threshold: 1.0, transform: log-tanh}
evaluator:
  command: "mycode --m {m_slepton} {m_chi} --out {workdir}/y.json"
  timeout: 60
strategy:
  acquisition: SUR
  surrogate: {kernel: rbf}
run: {budget: 60, batch: 2}
"""
DOCS = Path(__file__).parents[1] / "docs" / "yaml.md"


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_everything_arrives(tmp_path: Path) -> None:
    file = tmp_path / "scan.yaml"
    file.write_text(GOOD)
    spec = load(file)
    space = ParameterSpace(
        (Parameter("m_slepton", 100, 800, unit="GeV", step=1), Parameter("m_chi", 0, 600)), ("m_slepton - m_chi > 20",)
    )
    assert spec == Spec(
        file=str(file),
        name="my scan",
        store=str(tmp_path / "scan.db"),
        problem=Problem(space, (Task("observed", (1.0,), "log-tanh"),)),
        strategy=Strategy(GaussianProcess(kernel="rbf"), SUR()),
        evaluator={
            "kind": "command",
            "command": "mycode --m {m_slepton} {m_chi} --out {workdir}/y.json",
            "timeout": 60.0,
            "folder": str(tmp_path),
        },
        run={"budget": 60, "batch": 2},
    )
    assert not (tmp_path / "scan.db").exists()


def test_short_forms_mean_the_long_ones() -> None:
    short = parse("{parameters: {x: [0, 1], g: [1e-3, 1, log]}, tasks: {f: 1, g2: [1, 2]}}")
    long = parse(
        "parameters: {x: {lower: 0.0, upper: 1.0}, g: {lower: 0.001, upper: 1, scale: log}}\n"
        "tasks: {f: {threshold: 1}, g2: {threshold: [1.0, 2.0], weight: 1}}\n"
    )
    assert short.problem == long.problem
    assert [p.scale for p in short.problem.space.parameters] == ["linear", "log"]
    assert short.problem.tasks[1].thresholds == (1.0, 2.0)


def test_defaults(tmp_path: Path) -> None:
    spec = parse("parameters: {x: [0, 1]}\ntasks: {f: 0}", tmp_path / "one.yaml")
    assert (spec.name, spec.store) == ("one", str(tmp_path / "one.db"))
    assert spec.strategy == Strategy(acquisition=SUR())
    assert (spec.evaluator, spec.run) == (None, {})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("SUR", Strategy(acquisition=SUR())),
        ("{type: SUR, loss: variance}", Strategy(acquisition=SUR(loss="variance"))),
        ("{type: Straddle, kappa: 3}", Strategy(acquisition=Straddle(kappa=3.0))),
        (
            "PES, seed: 7, design_size: 12, exploration: 0",
            Strategy(PES() and GaussianProcess(), PES(), seed=7, design_size=12, exploration=0.0),
        ),
        ("SUR, search: {batch: poisson-disc, pool: 512}", Strategy(search=Search(batch="poisson-disc", pool=512))),
        ("SUR, surrogate: {mean: linear, restarts: 1}", Strategy(surrogate=GaussianProcess(mean="linear", restarts=1))),
        (
            "SUR, surrogate: {type: GaussianProcess, kernel: rbf, metric: ard}",
            Strategy(surrogate=GaussianProcess(kernel="rbf", metric="ard")),
        ),
        ("SUR, surrogate: KernelSearch", Strategy(surrogate=KernelSearch())),
        (
            "SUR, surrogate: {type: KernelSearch, families: [SE, LIN], depth: 3, names: [m]}",
            Strategy(surrogate=KernelSearch(families=("SE", "LIN"), depth=3, names=("m",))),
        ),
    ],
)
def test_strategies(text: str, meant: Strategy) -> None:
    meant = meant.suited_to(Problem(ParameterSpace.of({"x": (0, 1)}), Task("f", 0)))
    spec = parse(f"parameters: {{x: [0, 1]}}\ntasks: {{f: 0}}\nstrategy: {{acquisition: {text}}}")
    assert spec.strategy == meant
    assert Strategy.from_json(json.loads(json.dumps(spec.strategy.to_json()))) == meant


@pytest.mark.parametrize("task", ["f:", "f: {unit: GeV, transform: asinh}", "f: 3"])
def test_an_optimum_needs_no_threshold(task: str) -> None:
    text = f"goal: maximum\nparameters: {{x: [0, 1]}}\ntasks:\n  {task}\n"
    spec = parse(text)
    assert (spec.problem.goal, spec.problem.tasks[0].thresholds) == ("maximum", ())
    assert spec.strategy.acquisition == EI()
    assert parse(text + "strategy: {acquisition: {type: UCB, kappa: 3}}").strategy.acquisition == UCB(kappa=3.0)
    with pytest.raises(InvalidSpec, match=r"line 5, strategy.acquisition: .* goal 'maximum', got SUR.* EI, PI, UCB, S"):
        parse(text + "strategy: {acquisition: SUR}")
    with pytest.raises(InvalidSpec, match=r"line 3, tasks: problem: a maximum is of one task, got \['f', 'g'\]"):
        parse(text.replace(f"  {task}", f"  {task}\n  g: 1"))


def test_stores_from_before_goals_and_default_criteria_go_on(tmp_path: Path) -> None:
    """What the first version wrote: no goal, and the criterion always by name."""
    spec = parse("parameters: {x: [0, 1]}\ntasks: {f: 0}", tmp_path / "old.yaml")
    found = begin(spec)
    stored = found.store.spec("old")
    assert "goal" not in stored["problem"]
    assert stored["strategy"]["acquisition"] == {"type": "SUR", "loss": "misclassification"}
    assert begin(spec).strategy == found.strategy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("-1.5E+2", -150.0), ("010", 10.0), (".5", 0.5), ("5.", 5.0), ("+7", 7.0), ("-.inf", None),
        ("12345678901234567890", 12345678901234567890.0), ("1e400", None), ("0x10", None), ("1_000", None),
        ("1:30", None), ("yes", None), ("true", None), ("~", None), ("'1'", None), ("!!float 1", None),
    ],
)  # fmt: skip
def test_numbers_follow_yaml_1_2(text: str, value: float | None) -> None:
    document = f"parameters: {{x: [-1e30, 1e30]}}\ntasks: {{f: {text}}}"
    if value is None:
        with pytest.raises(InvalidSpec, match=r"campaign\.yaml, line 2, tasks\.f"):
            parse(document)
    else:
        assert parse(document).problem.tasks[0].thresholds == (value,)


def test_words_that_older_yaml_takes_for_truth_are_names() -> None:
    spec = parse("parameters: {y: [0, 1], no: [0, 1], on: [0, 1]}\ntasks: {off: 0}")
    assert spec.problem.space.names == ("y", "no", "on")
    assert spec.problem.task_names == ("off",)


def test_aliases_are_written_once_and_used_often() -> None:
    spec = parse("parameters: {x: &range [0, 2], y: *range}\ntasks: {f: 0}")
    assert [p.upper for p in spec.problem.space.parameters] == [2.0, 2.0]


def test_a_store_may_be_a_url() -> None:
    text = "store: 'sqlite:////tmp/a.db'\nparameters: {x: [0, 1]}\ntasks: {f: 0}"
    assert parse(text).store == "sqlite:////tmp/a.db"


BAD = [
    ("treshold: 1.0", "threshold: 1.0", 10, "this key is not known, got 'treshold'. Did you mean 'threshold'?"),
    ("lower: 900", "lower: 100", 4, "parameters.m_slepton.lower: parameter 'm_slepton': needs lower < upper"),
    ("lower: abc", "lower: 100", 4, "parameters.m_slepton.lower: must be a number, got 'abc'"),
    ("lower: 100 GeV", "lower: 100", 4, "got '100 GeV'. Write it without quotes and units"),
    ("scale: log, lower: 0", "lower: 100", 4, "a log scale needs lower > 0"),
    ("step: -1", "step: 1", 4, "parameters.m_slepton.step: parameter 'm_slepton': a step must be positive"),
    ("unit: 1", "unit: GeV", 4, "parameters.m_slepton.unit: must be text, got 1. Put it in quotes"),
    ("    uper: 600", "    upper: 600", 7, "this key is not known, got 'uper'. Did you mean 'upper'?"),
    ("", "    upper: 600\n", 5, "parameters.m_chi: the key 'upper' must be given, got ['lower']. Add 'upper: ...'"),
    ("m_chi: [0]", "m_chi:\n    lower: 0\n    upper: 600", 5, "the short form is [lower, upper]"),
    ("m_chi: 5", "m_chi:\n    lower: 0\n    upper: 600", 5, "parameters.m_chi: must be a mapping (key: value), got 5"),
    ("m_slepton:", "m_chi:", 5, "a key must be given once, got 'm_slepton' again (first in line 4)"),
    ("m chi:", "m_chi:", 5, "a name must be a Python identifier"),
    ("score:", "m_chi:", 5, "parameters.score: columns of the table of trials need different names, got ['score']"),
    ("\tm_chi:", "  m_chi:", 5, "must be YAML, got a problem"),
    ("> ", "> 20", 8, "constraints[0]: constraint 'm_slepton - m_chi > ': it must be a Python expression"),
    ("m_x > 20", "m_chi > 20", 8, "constraints[0]: constraint 'm_slepton - m_x > 20': must use the space's parameters"),
    ("> 2000", "> 20", 8, "constraints[0]: constraint 'm_slepton - m_chi > 2000'"),
    ('["m_chi > 0",\n "exec(1) > 0"]', '["m_slepton - m_chi > 20"]', 9, "constraints[1]: constraint 'exec(1) > 0'"),
    ("constraints: 5", 'constraints: ["m_slepton - m_chi > 20"]', 8, "constraints: must be a list, got 5"),
    ("logtanh", "log-tanh", 10, "transform: must be 'identity', 'log', 'asinh' or 'log-tanh', got"),
    ("threshold: -1.0", "threshold: 1.0", 10, "the threshold must be positive, got -1.0"),
    ("threshold: [2, 1]", "threshold: 1.0", 10, "thresholds must be finite and ascending"),
    ("threshold: .nan", "threshold: 1.0", 10, "thresholds must be finite and ascending"),
    ("threshold: one", "threshold: 1.0", 10, "tasks.observed.threshold: must be a number, got 'one'"),
    ("tasks: {}", "tasks:\n  observed: {threshold: 1.0, transform: log-tanh}", 9, "problem: needs at least one task"),
    ("  m_chi: {", "  observed: {", 10, "tasks.m_chi: columns of the table of trials need different names"),
    ("comand:", "command:", 11, "exactly one of the keys command, python"),
    ("comand:", "command:", 11, "Did you mean 'command'?"),
    ("python: a.py:f\n  command:", "command:", 11, "got ['python', 'command', 'timeout']"),
    ("{m_slep}", "{m_slepton}", 12, "evaluator.command: command: placeholders must be parameters (m_chi, m_slepton)"),
    ("timeout: 0", "timeout: 60", 13, "evaluator.timeout: must be greater than 0, got 0"),
    ("time_out: 60", "timeout: 60", 13, "this key is not known, got 'time_out'. Did you mean 'timeout'?"),
    ("SURR", "SUR", 15, "strategy.acquisition: must be the name of a criterion, got 'SURR'. Did you mean 'SUR'?"),
    ("{type: Straddle, kapa: 3}", "SUR", 15, "acquisition.kapa: this key is not known, got 'kapa'. Did you"),
    ("{type: Straddle, kappa: -3}", "SUR", 15, "strategy.acquisition: straddle: kappa must be positive"),
    ("kernel: matern", "kernel: rbf", 16, "surrogate.kernel: must be 'auto', 'matern52', 'matern32', 'rbf' or 'additi"),
    ("restarts: 99", "kernel: rbf", 16, "strategy.surrogate.restarts: Gaussian process: needs 1 <= restarts"),
    ("type: Forest", "kernel: rbf", 16, "must be the name of a surrogate, got 'Forest'. Known are Gaus"),
    ("type: KernelSerch", "kernel: rbf", 16, "got 'KernelSerch'. Did you mean 'KernelSearch'?"),
    ("type: KernelSearch, kernel: rbf", "kernel: rbf", 16, "surrogate.kernel: this key is not known, got 'kernel'"),
    ("type: KernelSearch, families: SE", "kernel: rbf", 16, "surrogate.families: must be a list, got 'SE'"),
    ("type: KernelSearch, families: [SX]", "kernel: rbf", 16, "kernel search: families must be some of SE, "),
    ("EI", "SUR", 15, "acquisition: strategy: the criterion must fit the goal 'level-set', got EI(). Use one of SU"),
    ("goal: minimum\ntasks:", "tasks:", 10, "tasks: task 'observed': transform 'log-tanh' is flat far from"),
    ("goal: minimun\ntasks:", "tasks:", 9, "goal: must be 'level-set', 'minimum' or 'maximum', got 'minimun'"),
    ("", "threshold: 1.0, ", 10, "tasks.observed: the key 'threshold' must be given, got ['transform']"),
    ("  seed: 1.5\nrun:", "run:", 17, "strategy.seed: must be a whole number, got 1.5"),
    ("  search: {batch: all}\nrun:", "run:", 17, "strategy.search.batch: must be 'joint', 'believer', 'poisson-disc'"),
    ("budget: 0", "budget: 60", 17, "run.budget: must be greater than or equal to 1, got 0"),
    ("budget: 6e1", "budget: 60", 17, "run.budget: must be a whole number, got 60.0"),
    ("goal: 2", "budget: 60", 17, "run.goal: run: the goal is a fraction between 0 and 0.5, got 2"),
    ("rum:", "run:", 17, "rum: this key is not known, got 'rum'. Did you mean 'run'?"),
    ("zzz: 1\nrun:", "run:", 17, "Known are name, store, goal, parameters, constraints, tasks, fidelities, evalu"),
    ("memory://", "scan.db", 2, "store: the store must outlive the command"),
    ("''", "my scan", 1, "name: must have at least 1 character, got ''"),
    ("!!python/object/apply:os.system [ls]", "my scan", 1, "name: tags are not used here"),
    ("!!python/name:os.system ''", "my scan", 1, "name: tags are not used here"),
    ("? [a]\n: b\nname:", "name:", 1, "a key must be text, got a list or mapping"),
    ('"\\ud800"', "GeV", 4, "text must be Unicode"),
    ("a: b: c\n", "name: my scan\n", 1, "must be YAML, got a problem mapping values are not allowed here"),
    ("---\nname: x\n", "strategy:\n", 14, "must be YAML, got a problem expected a single document"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "right", "line", "message"), BAD, ids=[b[0].strip()[:30] for b in BAD])
def test_errors_name_the_line_and_the_fix(wrong: str, right: str, line: int, message: str) -> None:
    assert right in GOOD
    text = GOOD.replace(right, wrong, 1) if wrong else GOOD.replace(right, "", 1)
    with pytest.raises(InvalidSpec, match=re.escape(message)) as caught:
        parse(text, "scan.yaml")
    assert str(caught.value).startswith(f"scan.yaml, line {line}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"campaign\.yaml: must describe a campaign, got an empty file"),
        ("# only a comment", "got an empty file"),
        ("- a", r"line 1: must be a mapping \(key: value\), got \['a'\]"),
        ("5", r"line 1: must be a mapping \(key: value\), got 5"),
        ("a: \0", "must be YAML, got ReaderError"),
        ("[" * 5000, "must be short and shallow, got more than 64 levels in line 1"),
        ("a: 1\nb: &a [*a]", "must be short and shallow, got an alias inside what it stands for in line 2"),
        ("parameters: {x: [0, 1]}", r"line 1: the key 'tasks' must be given, got \['parameters'\]"),
        ("x: '", "line 1: must be YAML, got a problem while scanning a quoted scalar"),
    ],
)
def test_documents_that_are_no_campaign(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse(text)


def test_nested_aliases_do_not_fill_the_memory() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 12):
        text += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    with pytest.raises(InvalidSpec, match="must be short and shallow, got more than 20000 values, counting aliases"):
        parse(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"absent\.yaml: must be a readable file, got No such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(InvalidSpec, match="must be a readable file"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: \xe9".encode("latin-1"))
    with pytest.raises(InvalidSpec, match=r"latin\.yaml: must be UTF-8 text, got .* at byte 6"):
        load(tmp_path / "latin.yaml")


def test_a_missing_python_file_is_found_at_once_but_not_executed(tmp_path: Path) -> None:
    text = "parameters: {x: [0, 1]}\ntasks: {f: 0}\nevaluator:\n  python: 'f.py:f'\n"
    with pytest.raises(InvalidSpec, match=r"line 4, evaluator\.python: python: the file must exist, got no file"):
        parse(text, tmp_path / "a.yaml")
    (tmp_path / "f.py").write_text("raise SystemExit('executed')\n")
    assert parse(text, tmp_path / "a.yaml").evaluator == {
        "kind": "python",
        "python": "f.py:f",
        "folder": str(tmp_path),
    }


# ---------------------------------------------------------------------------------------------------- documentation


def blocks() -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("block", blocks(), ids=range(len(blocks())))
def test_the_documented_files_are_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "physics.py").write_text("def limit(point):\n    return point['x'] + point['y'] - 1.6\n")
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "workflow.yml").write_text("stages: [m1, g, seed]\n")
    spec = parse(block, tmp_path / "scan.yaml")
    if spec.evaluator is not None:
        made = evaluator(json.loads(json.dumps(spec.evaluator)), spec.problem)
        kinds = {"command": Command, "python": Imported, "example": Selected, "yadage": Yadage}
        assert isinstance(made, Selected if "fit" in spec.evaluator else kinds[spec.evaluator["kind"]])
    if spec.evaluator and spec.evaluator["kind"] == "python":
        report = go_on(begin(spec), spec.evaluator, spec.run, budget=9, progress=False)
        assert (report.reason, report.evaluations, report.failed) == ("budget", 9, 0)


def test_every_key_is_documented() -> None:
    """Names of recipes, their settings and their choices come from the code, the others are listed here."""
    text = DOCS.read_text()
    listed = (
        "name store goal parameters constraints tasks fidelities evaluator strategy run threshold type budget workers "
        "result workdir timeout impossible_exit_codes environment events fidelity level-set minimum maximum"
    )
    keys = set(listed.split())
    for recipe in (
        *CRITERIA.values(),
        *RECIPES.values(),
        *EXECUTORS.values(),
        Search,
        Strategy,
        Parameter,
        Task,
        Fidelity,
    ):
        hints = typing.get_type_hints(recipe)
        for field in dataclasses.fields(recipe):
            literals = re.findall(r"'([\w-]+)'", str(hints[field.name])) if "Literal" in str(hints[field.name]) else []
            keys |= {field.name, *literals}
    keys |= {*CRITERIA, *RECIPES, *EXECUTORS}
    keys -= {"thresholds"}  # called threshold
    assert sorted(key for key in keys if not re.search(rf"(?<![\w-]){key}(?![\w-])", text)) == []


# -------------------------------------------------------------------------------------------------------- the example


SLEPTONS = """
parameters: {m_slepton: [100, 800], m_chi: [0, 600]}
constraints: [m_slepton > m_chi]
tasks: {expected: 1, observed: 1}
evaluator: {example: sleptons, events: 77, fidelity: hadron, mu_max: 100}
"""


def test_the_slepton_example_is_built_with_its_settings() -> None:
    spec = parse(SLEPTONS)
    assert spec.evaluator is not None
    made = evaluator(spec.evaluator, spec.problem)
    assert isinstance(made, Selected)
    assert made.tasks == ("expected", "observed")
    assert made.evaluator == Reinterpretation(Simulation(events=77, fidelity="hadron"), mu_max=100.0)
    assert set(TASKS) >= set(made.tasks)


def test_the_slepton_example_in_three_dimensions() -> None:
    text = SLEPTONS.replace("m_slepton: [100, 800]", "m_L: [100, 800], m_R: [100, 800]")
    spec = parse(text.replace("m_slepton > m_chi", "'min(m_L, m_R) > m_chi'"))
    assert spec.evaluator is not None
    assert isinstance(evaluator(spec.evaluator, spec.problem), Selected)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "m_chi: [0, 600]",
            "m_c: [0, 600]",
            "parameters must be m_slepton, m_chi; or m_L, m_R, m_chi; or m_L, m_R, m_chi, br, got",
        ),
        ("observed: 1", "obs: 1", r"tasks must be observed, .* got \['expected', 'obs'\]"),
        ("events: 77", "decays: 3", r"evaluator\.decays: must be a multiple of 2"),
        ("sleptons", "stops", r"evaluator\.example: must be 'sleptons', got 'stops'"),
    ],
)
def test_the_slepton_example_fits_its_problem(right: str, wrong: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse(SLEPTONS.replace(right, wrong).replace("m_slepton > m_chi", "m_slepton > 0"))


# --------------------------------------------------------------------------------------------------- the store


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name.startswith("scan.db")}


def test_the_campaign_is_made_once_and_found_again(tmp_path: Path) -> None:
    spec = parse(GOOD, tmp_path / "scan.yaml")
    campaign = begin(spec)
    campaign.tell(campaign.ask(2)[1].number, 0.5)
    again = begin(parse(GOOD.replace("budget: 60", "budget: 90"), tmp_path / "scan.yaml"))
    assert again.trials == campaign.trials
    assert (again.problem, again.strategy) == (spec.problem, spec.strategy)
    assert campaign.extra == {"evaluator": spec.evaluator, "run": dict(spec.run), "file": str(tmp_path / "scan.yaml")}


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("800", "900", r"with another problem, got problem\.space\..*upper = 900\.0 instead of 800\.0"),
        ("threshold: 1.0", "threshold: 2", r"another problem, got problem\.tasks\[0\]\.thresholds\[0\] = 2\.0 instead"),
        ("kernel: rbf", "kernel: matern32", r"another strategy, got strategy\.surrogate\.kernel = 'matern32' instead"),
    ],
)
def test_another_problem_of_the_same_name_is_refused(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    begin(parse(GOOD, tmp_path / "scan.yaml")).ask(3)
    before = files(tmp_path)
    changed = parse(GOOD.replace(right, wrong), tmp_path / "scan.yaml")
    with pytest.raises(InvalidSpec, match=message):
        begin(changed)
    assert files(tmp_path) == before


@pytest.mark.parametrize("wrong", ["budget: 0", "budgt: 3", "budget: 'x'", "budget: 60, budget: 61"])
def test_a_typo_leaves_the_store_as_it_is(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "scan.yaml"
    file.write_text(GOOD)
    begin(load(file)).ask(3)
    before = files(tmp_path)
    file.write_text(GOOD.replace("budget: 60", wrong))
    with pytest.raises(InvalidSpec, match=r"scan\.yaml, line 17, run\.budg"):
        begin(load(file))
    assert files(tmp_path) == before
    assert len(Campaign.open(str(tmp_path / "scan.db")).trials) == 3


def test_running_needs_an_evaluator_a_budget_and_a_function_that_is_there(tmp_path: Path) -> None:
    text = "parameters: {x: [0, 1]}\ntasks: {f: 0.5}\n"
    campaign = begin(parse(text, tmp_path / "bare.yaml"))
    with pytest.raises(InvalidSpec, match="campaign 'bare': to run it needs an evaluator, got none"):
        go_on(campaign, budget=3)
    (tmp_path / "f.py").write_text("def g(point):\n    return point['x']\n")
    spec = parse(f"{text}evaluator: {{python: 'f.py:f'}}", tmp_path / "typo.yaml")
    with pytest.raises(InvalidSpec, match="campaign 'typo': to run it needs a budget, got none"):
        go_on(begin(spec), spec.evaluator, spec.run)
    with pytest.raises(InvalidSpec, match=r"'f\.py:f' must be importable, got AttributeError"):
        go_on(begin(spec), spec.evaluator, spec.run, budget=3)
    assert begin(spec).trials == []


def test_resume_needs_the_store_alone(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("def h(point):\n    return point['x'] - 0.3\n")
    file = tmp_path / "scan.yaml"
    file.write_text("parameters: {x: [0, 1]}\ntasks: {f: 0}\nevaluator: {python: 'h.py:h'}\nrun: {budget: 4}")
    spec = load(file)
    go_on(begin(spec), spec.evaluator, spec.run, progress=False)
    file.unlink()
    assert resume(spec.store, progress=False).evaluations == 0
    report = resume(spec.store, "scan", budget=7, workers=1, progress=False)
    assert (report.reason, report.evaluations) == ("budget", 3)
    values = [(t.x["x"], t.outcome.values["f"]) for t in Campaign.open(spec.store).trials if t.outcome]
    assert values == [(x, x - 0.3) for x, _ in values]


# -------------------------------------------------------------------------------------------------------- outcomes

ONE = Problem(ParameterSpace((Parameter("x", 0, 1),)), (Task("f"),))
TWO = Problem(ParameterSpace((Parameter("x", 0, 1),)), (Task("a"), Task("b")))


@pytest.mark.parametrize(
    ("problem", "told", "meant"),
    [
        (ONE, {"values": ["0.7"]}, Outcome.of(0.7)),
        (ONE, {"values": ["f=-1e3"]}, Outcome.of(-1e3)),
        (ONE, {"values": ["inf"]}, Outcome.of(math.inf)),
        (TWO, {"values": ["b=2", "a=1"]}, Outcome.of({"b": 2.0, "a": 1.0})),
        (ONE, {"text": "0.25"}, Outcome.of(0.25)),
        (TWO, {"text": '{"a": 1, "b": 2}'}, Outcome.of({"a": 1.0, "b": 2.0})),
        (
            TWO,
            {
                "text": '{"values": {"a": 1, "b": 2}, "variances": {"a": 0.1}, '
                '"bounds": {"b": "above"}, "info": {"k": 1}}'
            },
            Outcome.of({"a": 1.0, "b": 2.0}, variances={"a": 0.1}, bounds={"b": "above"}, info={"k": 1}),
        ),
        (ONE, {"failed": "sparks"}, Outcome.failed("sparks")),
        (ONE, {"failed": "sparks", "permanent": True}, Outcome.failed("sparks", permanent=True)),
    ],
)
def test_what_a_person_tells(problem: Problem, told: dict[str, Any], meant: Outcome) -> None:
    assert outcome(problem, **told) == meant


@pytest.mark.parametrize(
    ("problem", "told", "message"),
    [
        (ONE, {}, "needs either values, JSON or a failure"),
        (ONE, {"values": ["1"], "failed": "no"}, "needs either values, JSON or a failure"),
        (ONE, {"values": ["one"]}, "a value must be a number, got 'one'"),
        (ONE, {"values": ["1", "2"]}, "one value per task is needed"),
        (ONE, {"values": ["nan"]}, "must not be NaN"),
        (TWO, {"values": ["1"]}, r"one value per task is needed, got \['1'\]. Write --value a=... --value b=..."),
        (ONE, {"text": "{"}, "must be JSON, got '{'"),
        (ONE, {"text": "NaN"}, "must not be NaN"),
        (ONE, {"text": "[1]"}, r"must be a number or an object, got \[1\]"),
        (ONE, {"text": "true"}, "must be a number or an object, got True"),
        (ONE, {"text": "{}"}, "must be a number or an object"),
        (ONE, {"text": '{"f": "1"}'}, "each task must have a number"),
        (ONE, {"text": '{"values": {"f": 1}, "error": "x"}'}, r"beside 'values' there may be .* got \['error'\]"),
        (ONE, {"text": '{"values": {"f": 1}, "bounds": 3}'}, "must be objects"),
        (ONE, {"text": '{"values": {"f": 1}, "bounds": {"f": "left"}}'}, "a bound must be 'above' or 'below'"),
        (ONE, {"text": f'{{"f": {10**400}}}'}, "the value must be a number"),
    ],
)
def test_what_makes_no_outcome(problem: Problem, told: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOutcome, match=message):
        outcome(problem, **told)


# ------------------------------------------------------------------------------------------------------------- fuzz

WORDS = re.findall(r"\w+", DOCS.read_text())
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([*WORDS, "x > 0.5", "x - y", "{x}", "prog {x}", "a:b", "f.py:f", "1e5", "", "{", "0.1"])
    | st.text(max_size=8)
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
sections = st.fixed_dictionaries(
    {},
    optional={
        "name": leaves,
        "store": leaves,
        "parameters": st.dictionaries(st.sampled_from(["x", "y"]), st.just([0, 1]) | trees, max_size=2),
        "constraints": st.lists(leaves, max_size=2) | trees,
        "tasks": st.dictionaries(st.sampled_from(["f", "g"]), st.just(1.0) | trees, max_size=2),
        "evaluator": trees,
        "strategy": trees,
        "run": trees,
    },
)


def only_invalid_spec(text: str) -> None:
    try:
        spec = parse(text)
    except InvalidSpec as error:
        if not str(error).startswith("campaign.yaml"):
            pytest.fail(f"the message names no file: {error}")
        return
    assert Problem.from_json(json.loads(json.dumps(spec.problem.to_json()))) == spec.problem
    json.dumps([spec.evaluator, spec.run, spec.strategy.to_json()])


FUZZ = settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(sections | trees)
def test_documents_of_any_shape(tree: Any) -> None:
    only_invalid_spec(yaml.safe_dump(tree, allow_unicode=True))


@FUZZ
@given(st.text(alphabet="ab:{}[],-&*!|>'\"#%@? \n\t\\0.1e", max_size=40))
@example("&a a: *b")
@example('"\\U00110000"')
@example('"\\xZZ"')
@example("%YAML 9.9\n---\n")
@example("%TAG ! !\n---\n!x y")
@example("a: !<> b")
def test_any_text(text: str) -> None:
    only_invalid_spec(text)


@FUZZ
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 6), st.text(alphabet=GOOD, max_size=4))
def test_mutations_of_a_good_file(at: int, cut: int, put: str) -> None:
    only_invalid_spec(GOOD[:at] + put + GOOD[at + cut :])


# -------------------------------------------------------------------------------------------------------- fidelities

WITH_FIDELITIES = """\
parameters: {x: [0, 1], y: [0, 1]}
tasks: {f: 0}
fidelities:
  - {name: paper, cost: null, parameters: [x]}
  - name: fast
    events: [10, 1000]
    event_cost: 0.5
  - {name: full, cost: 1000}
"""


def test_fidelities_arrive(tmp_path: Path) -> None:
    found = parse(WITH_FIDELITIES, tmp_path / "scan.yaml")
    assert found.problem.fidelities == (
        Fidelity("paper", None, ("x",)),
        Fidelity("fast", 1.0, events=(10, 1000), event_cost=0.5),
        Fidelity("full", 1000.0),
    )
    campaign = begin(found)
    assert begin(found).problem == campaign.problem == found.problem
    other = parse(WITH_FIDELITIES.replace("cost: 1000", "cost: 999"), tmp_path / "scan.yaml")
    with pytest.raises(InvalidSpec, match=r"another problem, got problem\.fidelities.*cost = 999\.0 instead of 1000"):
        begin(other)


@pytest.mark.parametrize(
    ("wrong", "right", "line", "message"),
    [
        ("cots: 1000", "cost: 1000", 8, "fidelities[2].cots: this key is not known, got 'cots'. Did you mean 'cost'?"),
        ("cost: 0", "cost: 1000", 8, "the cost must be a positive number, got 0"),
        ("cost: 'x'", "cost: 1000", 8, "fidelities[2].cost"),
        ("{cost: 1000}", "{name: full, cost: 1000}", 8, "the key 'name' must be given"),
        ("name: fast, cost: 1000", "name: full, cost: 1000", 4, "a fidelity's name can be used once"),
        ("parameters: [z]", "parameters: [x]", 4, "parameters must be some of ['x', 'y'], got ['z']"),
        ("events: [10]", "events: [10, 1000]", 5, "events must be two whole numbers"),
        ("events: [10, 9]", "events: [10, 1000]", 5, "1 <= least <= most, got [10, 9]"),
        ("event_cost: -1", "event_cost: 0.5", 5, "event_cost must be a number, at least 0, got -1"),
        ("cost: 1", "cost: 1000", 4, "from cheap to dear, got 'fast' for 501 before 'full' for 1"),
        ("- full", "- {name: full, cost: 1000}", 8, "must be a mapping (key: value), got 'full'"),
        ("tasks: {events: 0}", "tasks: {f: 0}", 2, "columns of the table of trials need different names"),
    ],
)
def test_fidelities_that_are_wrong_name_the_line(wrong: str, right: str, line: int, message: str) -> None:
    assert right in WITH_FIDELITIES
    with pytest.raises(InvalidSpec, match=re.escape(message)) as caught:
        parse(WITH_FIDELITIES.replace(right, wrong, 1), "scan.yaml")
    assert f"line {line}" in str(caught.value) or (line == 4 and "line 3" in str(caught.value))


def test_a_task_may_be_called_events_where_nothing_else_is() -> None:
    assert parse("parameters: {x: [0, 1]}\ntasks: {events: 3}").problem.task_names == ("events",)
