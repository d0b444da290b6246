"""The peers' side of the comparison: the loop that serves them, and every peer whose environment is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "suite" / "peers"
PEERS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
LOWER, UPPER = np.array([-2.0, 100.0]), np.array([2.0, 300.0])


class Answers:
    """A peer's process, asked line by line."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def raw(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended at {request}"
        return json.loads(line)

    def __call__(self, **request: Any) -> dict[str, Any]:
        answer = self.raw(**request)
        assert "error" not in answer, answer
        return answer


@contextmanager
def served(python: str | Path, script: Path, stderr: Path) -> Iterator[Answers]:
    with (
        stderr.open("w") as errors,
        subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        try:
            yield Answers(process)
        finally:
            process.kill()


# --- the loop ------------------------------------------------------------------------------------------------------

# Named like a module of the standard library that it imports, as the adapters are named like their packages.
NEAREST = """
from _serve import serve
import statistics
import sys
import time
import numpy as np

now = 0.0
time.perf_counter = lambda: now

def spend(seconds):
    global now
    now += seconds

class Nearest:
    def __init__(self, bounds, threshold, batch, seed):
        self.version = f"nearest {statistics.median([1, 2, 9])}"
        self.rng, self.bounds, self.threshold = np.random.default_rng(seed), bounds, threshold
        self.x, self.y = np.empty((0, len(bounds))), np.empty(0)
        print("noise on stdout")

    def ask(self, n):
        spend(1)
        if n == 13:
            return np.array([[1.5], [np.nan]])
        if n == 14:
            return np.array([[np.nextafter(1, 2)], [-1e-20]])
        return self.rng.uniform(*self.bounds.T, (n, len(self.bounds)))

    def tell(self, x, y):
        spend(10)
        self.x, self.y = np.concatenate([self.x, x]), np.append(self.y, y)

    def classify(self, x):
        spend(100)
        if x[0, 0] == 99:
            raise RuntimeError(f"told {self.y.min():g} to {self.y.max():g}")
        nearest = ((x[:, None] - self.x) ** 2).sum(-1).argmin(1)
        return self.y[nearest] >= self.threshold

serve(Nearest)
"""


@pytest.fixture
def nearest(tmp_path: Path) -> Iterator[Answers]:
    shutil.copy(FOLDER / "_serve.py", tmp_path)
    (tmp_path / "statistics.py").write_text(NEAREST)
    with served(sys.executable, tmp_path / "statistics.py", tmp_path / "stderr") as answers:
        yield answers


def test_a_run_by_the_protocol(nearest: Answers) -> None:
    assert nearest(do="start", bounds=[[0, 1], [5, 6]], threshold=0.5, batch=2, seed=3) == {
        "ok": True,
        "version": "nearest 2",
    }
    first = nearest(do="ask", n=2)
    assert first["seconds"] == 1
    x = np.array(first["x"])
    np.testing.assert_array_equal(x, np.random.default_rng(3).uniform([0, 5], [1, 6], (2, 2)))  # no digit lost
    assert nearest(do="tell", x=first["x"], y=[0.4, 0.5]) == {"ok": True}
    assert nearest(do="classify", x=[*first["x"], first["x"][0]]) == {"above": "010"}
    # A suggestion costs the update and the search, not what the harness wants to know in between.
    assert nearest(do="ask", n=2)["seconds"] == 11
    assert nearest(do="ask", n=2)["seconds"] == 1
    assert nearest.process.stdin
    nearest.process.stdin.write('{"do": "stop"}\n')
    nearest.process.stdin.flush()
    assert nearest.process.wait(timeout=20) == 0


def test_it_ends_with_its_input(nearest: Answers) -> None:
    assert nearest.process.stdin
    nearest.process.stdin.close()
    assert nearest.process.wait(timeout=20) == 0


def test_errors_are_answers_and_the_loop_goes_on(nearest: Answers, tmp_path: Path) -> None:
    assert nearest.raw(do="ask", n=1) == {"error": "ValueError: the first request must be 'start', got 'ask'"}
    nearest(do="start", bounds=[[0, 1]], threshold=0, batch=1, seed=0)
    assert "'guess'" in nearest.raw(do="guess", x=[])["error"]
    assert "KeyError" in nearest.raw(do="ask")["error"]
    nearest(do="tell", x=[[0.1], [0.2]], y=[1e100, -1e300])
    # Every peer is told at most 1e30.
    assert nearest.raw(do="classify", x=[[99.0]]) == {"error": "RuntimeError: told -1e+30 to 1e+30"}
    assert nearest(do="classify", x=[[0.11], [0.19]]) == {"above": "10"}
    assert "nan" in nearest.raw(do="ask", n=13)["error"]
    assert nearest(do="ask", n=14)["x"] == [[1.0], [0.0]]
    errors = (tmp_path / "stderr").read_text()
    assert "noise on stdout" in errors
    assert "Traceback" in errors


# --- the peers -----------------------------------------------------------------------------------------------------


def bowl(x: np.ndarray) -> np.ndarray:
    """A parabola in two parameters of different size; {bowl < 1} is an ellipse, a fifth of the box."""
    u = (x - [0.3, 200]) / [1, 50]
    return (u**2).sum(1)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Answers]:
    python = ROOT / "out" / "peers" / request.param / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment of {request.param}: run benchmarks/suite/peers/setup.sh {request.param}")
    with served(python, FOLDER / f"{request.param}.py", tmp_path / "stderr") as answers:
        yield answers


@pytest.mark.slow
def test_every_peer_keeps_the_contract(peer: Answers) -> None:
    start: dict[str, Any] = {
        "do": "start",
        "bounds": np.stack([LOWER, UPPER], 1).tolist(),
        "threshold": 1.0,
        "batch": 4,
        "seed": 5,
    }
    assert peer(**start)["version"]
    told: list[list[float]] = []
    rng = np.random.default_rng(0)
    test = rng.uniform(LOWER, UPPER, (500, 2))
    errors = []
    while len(told) < 26:
        asked = peer(do="ask", n=4)
        assert asked["seconds"] > 0
        x = np.array(asked["x"])
        assert x.shape == (len(x), 2)
        assert len(x) == 4 if told else len(x) >= 3  # the initial design comes out in one piece
        assert ((x >= LOWER) & (x <= UPPER)).all()
        told += x.tolist()
        peer(do="tell", x=x.tolist(), y=bowl(x).tolist())
        above = peer(do="classify", x=test.tolist())["above"]
        assert set(above) <= {"0", "1"}
        errors.append(np.mean((np.array(list(above)) == "1") != (bowl(test) >= 1)))
    assert len({tuple(x) for x in told}) == len(told)
    assert errors[-1] <= 0.06, errors
    # The same seed gives the same design, and what was told before is forgotten.
    peer(**start)
    again = peer(do="ask", n=4)["x"]
    assert again == told[: len(again)]
    # A limit over a hundred decades is answered, if only by an error.
    huge = 10 ** (np.array(again)[:, 0] * 50)
    for request in ({"do": "tell", "x": again, "y": huge.tolist()}, {"do": "classify", "x": test.tolist()}):
        assert {"ok", "above", "error"} & set(peer.raw(**request))
    assert peer(**start)["ok"]
