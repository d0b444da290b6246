from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import pytest

from excursion.data import Job, Outcome
from excursion.errors import EvaluationError, InvalidSpec
from excursion.evaluators import Evaluator
from excursion.evaluators.adapters import Imported, Selected

SOURCE = """
from beside_it import shift

def limit(point, seed):
    return {"a": point["x"] + shift, "b": float(seed)}

def scalar(point):
    return 2 * point["x"]

nothing = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "physics.py").write_text(SOURCE)
    (tmp_path / "beside_it.py").write_text("shift = 10.0\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "module.py").write_text("def f(point):\n    return -point['x']\n")
    (tmp_path / "broken.py").write_text("1/0\n")
    return tmp_path


def test_function_of_a_file_with_its_neighbours_and_seed(folder: Path) -> None:
    outcome = Imported("physics.py:limit", str(folder)).evaluate(Job({"x": 1.5}, seed=7))
    assert outcome.values == {"a": 11.5, "b": 7.0}


def test_a_bare_number_belongs_to_the_task(folder: Path) -> None:
    assert Imported("physics.py:scalar", str(folder), task="g").evaluate(Job({"x": 1.5})).values == {"g": 3.0}


def test_function_of_a_module_in_the_folder(folder: Path) -> None:
    assert Imported("package.module:f", str(folder)).evaluate(Job({"x": 2.0})).values == {"f": -2.0}


def test_a_file_may_have_the_name_of_a_loaded_module(folder: Path) -> None:
    (folder / "json.py").write_text("def f(point):\n    return 1.0\n")
    assert Imported("json.py:f", str(folder)).evaluate(Job({"x": 2.0})).values == {"f": 1.0}
    assert "loads" in dir(sys.modules["json"])


def test_naming_a_function_executes_nothing(folder: Path) -> None:
    (folder / "trap.py").write_text(f"import os\nos.mkdir({str(folder / 'sprung')!r})\ndef f(point):\n    return 0.0\n")
    evaluator = cloudpickle.loads(cloudpickle.dumps(Imported("trap.py:f", str(folder))))
    assert not (folder / "sprung").exists()
    evaluator.load()
    assert (folder / "sprung").exists()


def test_another_process_imports_the_function(folder: Path) -> None:
    (folder / "recipe").write_bytes(cloudpickle.dumps(Imported("physics.py:scalar", str(folder))))
    code = (
        "import cloudpickle, sys; from excursion.data import Job\n"
        "print(cloudpickle.load(open(sys.argv[1], 'rb')).evaluate(Job({'x': 4.0})).values)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "recipe")], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.strip() == "{'f': 8.0}"


@pytest.mark.parametrize("target", ["physics.py", "physics:", ":f", "a b:f", "physics.py:1", "", "os.system('x'):f"])
def test_the_form_of_the_name(folder: Path, target: str) -> None:
    with pytest.raises(InvalidSpec, match=r"must be named as module:function or file\.py:function, got"):
        Imported(target, str(folder))


def test_the_file_must_exist(folder: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"python: the file must exist, got no file .*absent\.py"):
        Imported("absent.py:f", str(folder))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("broken.py:f", "must be importable, got ZeroDivisionError: division by zero"),
        ("physics.py:absent", "must be importable, got AttributeError"),
        ("no_such_module_at_all:f", "must be importable, got ModuleNotFoundError"),
        ("physics.py:nothing", "must be a function, got int"),
    ],
)
def test_what_cannot_be_loaded(folder: Path, target: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        Imported(target, str(folder)).load()
    assert "broken" not in sys.modules


@dataclass(frozen=True)
class Fixed(Evaluator):
    outcome: Outcome

    def evaluate(self, job: Job) -> Outcome:
        return self.outcome


def test_selected_keeps_the_tasks_it_is_told() -> None:
    whole = Outcome.of(
        {"a": 1.0, "b": 2.0, "c": 3.0}, variances={"a": 0.1, "b": 0.2}, bounds={"b": "above"}, info={"k": 1}
    )
    kept = Selected(Fixed(whole), ("a", "c")).evaluate(Job({}))
    assert kept == Outcome.of({"a": 1.0, "c": 3.0}, variances={"a": 0.1}, info={"k": 1})
    assert kept.state == "complete"
    assert Selected(Fixed(whole), ("b",)).evaluate(Job({})).bounds == {"b": "above"}


def test_selected_leaves_failures_and_strangers_alone() -> None:
    failure = Outcome.failed("no", permanent=True)
    assert Selected(Fixed(failure), ("a",)).evaluate(Job({})) is failure
    strange = Outcome.of({"z": 1.0})
    assert Selected(Fixed(strange), ("a",)).evaluate(Job({})) is strange


def test_what_the_function_raises_is_an_evaluation_error(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="must not raise, got KeyError: 'x'"):
        Imported("physics.py:scalar", str(folder)).evaluate(Job({"y": 1.0}))
