from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "excursion"

# A module imports from the lines above its own, and from its own package. `testing` and the front page may import all.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "keeper", "owners", "threads"),
    ("secrets", "untrusted"),
    ("constraint",),
    ("data", "space", "levelset"),
    ("contours",),
    ("problem",),
    ("known", "surrogate", "store"),
    ("acquisition",),
    ("uncertainty",),
    ("belief", "forecast", "precision", "viability"),
    ("fidelities", "proposal"),
    ("campaign",),
    ("doctor", "handover"),
    ("evaluators", "executors"),
    ("artifacts", "isolation", "leases"),
    ("runner",),
    ("work",),
    ("result",),
    ("shadow",),
    ("report",),
    ("examples",),
    ("spec",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
EXEMPT = ("__init__", "testing")
# Evaluators run on machines that know nothing of the campaign.
ONLY = {"evaluators": ("errors", "secrets", "untrusted", "data", "space", "problem")}

# Everything that is not in the standard library: who may import it, as path prefixes; "" is everybody.
OWNERS: dict[str, tuple[str, ...]] = {
    "numpy": ("",),
    "scipy": ("",),
    "torch": ("",),
    "pydantic": ("",),
    "sqlalchemy": ("store/",),
    "matplotlib": ("report/",),
    "mplhep": ("report/",),
    "contourpy": ("contours.py", "report/"),
    "pyhf": ("evaluators/pyhf.py",),
    "pythia8mc": ("examples/sleptons.py",),
    "pythia8": ("examples/sleptons.py",),
    "mt2": ("examples/sleptons.py",),
    "fastjet": ("examples/sleptons.py",),
    "awkward": ("examples/sleptons.py",),
    "psutil": ("executors.py", "isolation.py", "keeper.py", "owners.py"),
    "threadpoolctl": ("threads.py",),
    "typer": ("cli.py",),
    "rich": ("runner.py", "cli.py"),
    "yaml": ("untrusted.py", "handover/", "spec.py", "cli.py", "evaluators/yadage.py"),
    "yadage": ("evaluators/yadage_driver.py",),
    "yadageschemas": ("evaluators/yadage_driver.py",),
    "packtivity": ("evaluators/yadage_driver.py", "evaluators/packtivity_local.py"),
    "loky": ("executors.py", "evaluators/"),
    "dask": ("executors.py",),
    "distributed": ("executors.py",),
    "dask_jobqueue": ("executors.py",),
    "parsl": ("executors.py",),
    "globus_compute_sdk": ("executors.py",),
    "mpi4py": ("executors.py",),
    "fsspec": ("artifacts.py",),
    "cloudpickle": ("isolation.py", "runner.py", "evaluators/"),
    "requests": ("evaluators/remote.py",),
    "jsonpatch": ("evaluators/fitting.py",),
    "pandas": ("result.py",),
    "openpyxl": ("handover/",),
    "pytest": ("testing.py",),
    "hypothesis": ("testing.py",),
}
SLOW_TO_LOAD = (
    "pyhf",
    "yadage",
    "pythia8",
    "pythia8mc",
    "matplotlib",
    "mplhep",
    "plotly",
    "onnx",
    "dask",
    "distributed",
    "parsl",
    "globus_compute_sdk",
    "mpi4py",
    "fastjet",
    "mt2",
    "sklearn",
    "pandas",
    "openpyxl",
    "pytest",
    "hypothesis",
)

FILES = sorted(SRC.rglob("*.py"))
paths = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def layer(path: Path) -> str:
    return path.relative_to(SRC).with_suffix("").parts[0]


def imports_within(path: Path) -> Iterator[tuple[str, int]]:
    """The modules of this package that a file imports, by their first name, with the line."""
    package = path.relative_to(SRC).parts[:-1]
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        anchor = package[: len(package) - node.level + 1]
        assert len(package) - node.level + 1 >= 0, f"{path}:{node.lineno} leaves the package"
        for alias in node.names:
            target = (*anchor, *(node.module.split(".") if node.module else [alias.name]))
            yield target[0], node.lineno


def imports_outside(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports absolutely, by the first name, with the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0], node.lineno
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).split(".")[0], node.lineno


def test_every_module_has_a_layer() -> None:
    unknown = {layer(path) for path in FILES} - set(RANK) - set(EXEMPT)
    assert not unknown, f"give {unknown} a place in LAYERS"


@paths
def test_imports_point_down(path: Path) -> None:
    own = layer(path)
    if own in EXEMPT:
        return
    for name, line in imports_within(path):
        assert name in RANK, f"{path}:{line} imports {name}, which no layer may"
        assert name == own or RANK[name] < RANK[own], f"{path}:{line}: {own} must not import {name}"
        if own in ONLY:
            assert name in (own, *ONLY[own]), f"{path}:{line}: {own} imports {ONLY[own]} only, not {name}"


@paths
def test_dependencies_have_owners(path: Path) -> None:
    own = path.relative_to(SRC).as_posix()
    for name, line in imports_outside(path):
        if name in sys.stdlib_module_names:
            continue
        assert name != "excursion", f"{path}:{line}: imports inside the package are relative"
        assert name in OWNERS, f"{path}:{line}: give {name} an owner in OWNERS"
        assert own.startswith(OWNERS[name]), f"{path}:{line}: only {OWNERS[name]} may import {name}"


def test_importing_the_package_is_light() -> None:
    code = "import excursion, json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(json.loads(done.stdout))
    assert "excursion" in loaded
    assert not loaded & set(SLOW_TO_LOAD)


@paths
def test_no_drawer_for_odds_and_ends(path: Path) -> None:
    assert not {"utils", "util", "helpers", "common", "misc"} & set(path.relative_to(SRC).with_suffix("").parts)


CLASSES = {node.name: (path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}


def decorators(node: ast.stmt) -> list[ast.expr]:
    return node.decorator_list if isinstance(node, ast.FunctionDef) else []


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_classes_are_abstract_or_final(name: str) -> None:
    path, node = CLASSES[name]
    assert not name.lstrip("_").startswith("Base"), f"{path}:{node.lineno}"
    assert not name.endswith("Manager"), f"{path}:{node.lineno}"
    for base in node.bases:
        if not isinstance(base, ast.Name) or base.id not in CLASSES:
            continue
        where, parent = CLASSES[base.id]
        if layer(where) == "errors":
            continue
        abstract = any(ast.unparse(d) == "abstractmethod" for n in parent.body for d in decorators(n))
        protocol = "Protocol" in {ast.unparse(b).split("[")[0] for b in parent.bases}
        assert abstract or protocol, f"{path}:{node.lineno}: {name} subclasses the concrete {base.id}"


@paths
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            assert not (broad and silent), f"{path}:{node.lineno} swallows every error"


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "evaluators"
    package.mkdir()
    bad = package / "bad.py"
    bad.write_text(
        "from ..campaign import Campaign\nfrom .. import store\nfrom .python import f\nimport matplotlib.pyplot\n"
        "import importlib\nimportlib.import_module('pyhf.optimize')\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    assert list(imports_within(bad)) == [("campaign", 1), ("store", 2), ("evaluators", 3)]
    outside = sorted(name for name, _ in imports_outside(bad))
    assert outside == ["importlib", "matplotlib", "pyhf"]
    with pytest.raises(AssertionError, match=r"evaluators imports .* only, not campaign"):
        test_imports_point_down(bad)
    with pytest.raises(AssertionError, match="may import matplotlib"):
        test_dependencies_have_owners(bad)
    bad.write_text("from ..runner import run\n")
    with pytest.raises(AssertionError, match="evaluators must not import runner"):
        test_imports_point_down(bad)
    bad.write_text("try:\n    x = 1\nexcept Exception:\n    pass\n")
    with pytest.raises(AssertionError, match="swallows every error"):
        test_no_error_is_swallowed(bad)
