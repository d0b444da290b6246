"""Error against evaluations for problems x methods x batch sizes x seeds, into one JSON file per method and batch size.

Run: python -m benchmarks.suite.run --methods excursion,sobol --batches 1,5 --seeds 10 --jobs 2

What a file holds is not run again (`--fresh` redoes it); several invocations may run at once. Methods: excursion,
sobol, forest, grid, excursion[EFF] and so on ("criteria": all of these) and the files of peers/ ("peers": all of these;
`benchmarks/suite/peers/setup.sh` installs them); trieste[log] is told ln f, where f > 0. To try settings of ours:
--methods mine --strategy '{"exploration": 0.1}' --out /tmp/mine, then benchmarks.suite.report --results /tmp/mine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from .methods import OURS, Forest, Method, Ours
from .problems import PROBLEMS, TEST_POINTS, TestProblem

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "suite"
PEERS = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS = ROOT / "out" / "peers"

#: Evaluations of the largest grid.
LARGEST_GRID = 300_000
#: A run ends early when the error has been this small for so many evaluations: N(1 %) does not change any more.
SETTLED, FOR = 0.005, 15

Curve = Sequence[tuple[int, float]]


class PeerFailed(RuntimeError):
    """A peer answered with an error, died or took too long."""


@dataclass
class Peer:
    """A method in another environment, spoken to in lines of JSON.

    Attributes:
        name: of the file under peers/ and of its environment under out/peers/.
        log: whether it is told ln f and ln T, as a practitioner would tell it limits.
        patience: seconds that one answer may take.
    """

    name: str
    log: bool = False
    patience: float = 600.0
    version: str = ""

    def start(self, problem: TestProblem, batch: int, seed: int) -> None:
        python = ENVIRONMENTS / self.name / "bin" / "python"
        if not python.exists():
            raise PeerFailed(f"peer {self.name}: needs its environment, got no {python}. Run {PEERS}/setup.sh")
        self.process = subprocess.Popen(
            [str(python), str(PEERS / f"{self.name}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        )
        bounds = [[float(a), float(b)] for a, b in problem.bounds]
        threshold = math.log(problem.threshold) if self.log else problem.threshold
        answer = self._call(do="start", bounds=bounds, threshold=threshold, batch=batch, seed=seed)
        self.version = answer.get("version", "")

    def _call(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(self.patience, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            code = self.process.wait()
            raise PeerFailed(
                f"peer {self.name}: must answer {request['do']!r} within {self.patience:g} s, got exit status {code}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"peer {self.name}: {request['do']}: {answer['error']}")
        return answer

    def ask(self, n: int) -> np.ndarray:
        return np.array(self._call(do="ask", n=n)["x"], dtype=float)

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self._call(do="tell", x=x.tolist(), y=(np.log(y) if self.log else y).tolist())

    def classify(self, x: np.ndarray) -> np.ndarray | None:
        above = self._call(do="classify", x=x.tolist())["above"]
        return None if above is None else np.frombuffer(above.encode(), dtype=np.uint8) == ord("1")

    def stop(self) -> None:
        if not hasattr(self, "process"):
            return
        # Leaving the context closes the pipes and waits; a peer that does not go is killed after ten seconds.
        timer = threading.Timer(10, self.process.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError), self.process as process:
            assert process.stdin is not None
            if process.poll() is None:
                process.stdin.write('{"do": "stop"}\n')
        timer.cancel()


def make(name: str, strategy: dict[str, Any] | None = None) -> Method:
    """The method of that name; with a strategy it is ours with these settings, whatever the name."""
    if strategy is not None:
        return Ours(strategy)
    if name in OURS:
        return Ours(OURS[name])
    if name == "forest":
        return Forest()
    if name.removesuffix("[log]") in peers():
        return Peer(name.removesuffix("[log]"), log=name.endswith("[log]"))
    raise SystemExit(f"run: methods must be among {', '.join([*OURS, 'forest', 'grid', *peers()])}, got {name!r}")


def peers() -> list[str]:
    """Names of the peers, whether they are installed or not."""
    return sorted(p.stem for p in PEERS.glob("[a-z]*.py"))


def evaluations_to(curve: Curve, goal: float) -> float:
    """The first n from which on the error stays at or below the goal; infinite if it never does.

    Args:
        curve: (n, error), n ascending.
        goal: in the units of the error.
    """
    reached = math.inf
    for n, error in reversed(curve):
        if error > goal:
            break
        reached = n
    return reached


def settled(curve: Curve) -> bool:
    """Whether N(1 %) is known: the error, in points, stayed at most 0.5 % over the last 15 evaluations."""
    return curve[-1][0] - evaluations_to(curve, SETTLED * TEST_POINTS) >= FOR


def follow(
    method: Method,
    problem: TestProblem,
    batch: int,
    seed: int,
    budget: int,
    *,
    early: bool = True,
    seconds_limit: float = math.inf,
) -> dict[str, Any]:
    """One run: [n, wrong points] after each batch, seconds per suggestion, and why it ended.

    Args:
        method: starts anew.
        problem: what is searched.
        batch: points per ask.
        seed: of the method and of the noise.
        budget: evaluations after which it ends.
        early: whether it ends as soon as N(1 %) is settled.
        seconds_limit: wall time after which it ends.
    """
    points, rng = problem.points(), problem.generator(seed)
    truth = problem.above(points)
    curve: list[tuple[int, int]] = []
    seconds: list[float] = []
    n, checked, stopped = 0, 0, "budget"
    begun = time.perf_counter()
    try:
        method.start(problem, batch, seed)
        while n < budget:
            start = time.perf_counter()
            x = method.ask(min(batch, budget - n))
            asked = time.perf_counter() - start
            x = x[: budget - n]
            y = problem.observe(x, rng)
            start = time.perf_counter()
            method.tell(x, y)
            asked += time.perf_counter() - start
            n += len(x)
            if curve:  # not while the design runs
                seconds.append(asked / len(x))
            if n > 60 and n - checked < 2 and n < budget:
                continue
            checked = n
            if (above := method.classify(points)) is not None:
                curve.append((n, int((above != truth).sum())))
                if early and settled(curve):
                    stopped = "settled"
                    break
            if time.perf_counter() - begun > seconds_limit:
                stopped = "time"
                break
    except Exception as error:  # one run of thousands: it is kept, printed and makes the exit status 1
        stopped = f"error: {type(error).__name__}: {error}"[:500]
    finally:
        method.stop()
    return {
        "curve": curve,
        "n": n,
        "stopped": stopped,
        "seconds": float(f"{statistics.median(seconds):.3g}") if seconds else None,
        "wall": round(time.perf_counter() - begun, 1),
        "version": method.version,
    }


def grids(problem: TestProblem, seed: int) -> dict[str, Any]:
    """Errors of regular grids of k^d points with linear interpolation, each grid by itself, as one curve."""
    points, rng = problem.points(), problem.generator(seed)
    truth = problem.above(points)
    curve: list[tuple[int, int]] = []
    k, settled_for = 2, 0
    begun = time.perf_counter()
    while k**problem.dim <= LARGEST_GRID and settled_for < 3:
        axes = [np.linspace(a, b, k) for a, b in problem.bounds]
        x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, problem.dim)
        y = problem.observe(x, rng).reshape((k,) * problem.dim)
        above = RegularGridInterpolator(axes, y)(points) >= problem.threshold
        curve.append((k**problem.dim, int((above != truth).sum())))
        settled_for = settled_for + 1 if curve[-1][1] <= SETTLED * TEST_POINTS else 0
        k = max(k + 1, int(1.1 * k))
    stopped = "settled" if settled_for else "budget"
    wall = round(time.perf_counter() - begun, 1)
    return {"curve": curve, "n": curve[-1][0], "stopped": stopped, "seconds": None, "wall": wall, "version": "scipy"}


def one(
    problem: str, name: str, batch: int, seed: int, scale: float, limit: float, strategy: dict[str, Any] | None
) -> dict[str, Any]:
    """One run by name, in a process of its own."""
    p = PROBLEMS[problem]
    if name == "grid":
        run = grids(p, seed)
    else:
        run = follow(make(name, strategy), p, batch, seed, max(1, round(p.budget * scale)), seconds_limit=limit)
    return {"problem": problem, "seed": seed, **run, "commit": commit()}


# --- files ------------------------------------------------------------------------------------------------------------


def commit() -> str:
    """The git commit of this checkout, with a + if the code differs from it; "unknown" without git."""

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def path_of(directory: Path, method: str, batch: int) -> Path:
    """Where the runs of a method with a batch size are."""
    return directory / f"{method.replace('[', '-').replace(']', '')}-b{batch}.json"


def pack(curve: Curve) -> dict[str, Any]:
    """A curve in a fifth of the letters: its n as runs of [first, step, how many], and its wrong points."""
    stretches: list[list[int]] = []
    for n, _ in curve:
        if stretches and stretches[-1][2] == 1:
            stretches[-1][1:] = [n - stretches[-1][0], 2]
        elif stretches and n == stretches[-1][0] + stretches[-1][1] * stretches[-1][2]:
            stretches[-1][2] += 1
        else:
            stretches.append([n, 1, 1])
    return {"n": stretches, "wrong": [wrong for _, wrong in curve]}


def unpack(packed: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The curve that `pack` wrote."""
    n = [first + step * i for first, step, k in packed["n"] for i in range(k)]
    return list(zip(n, packed["wrong"], strict=True))


def load(path: Path) -> dict[str, Any]:
    """A file of runs as `add` was given them; without runs if there is no file."""
    if not path.exists():
        return {"runs": []}
    data = json.loads(path.read_text())
    for run in data["runs"]:
        run["curve"] = unpack(run["curve"])
        run["version"], run["commit"] = data["code"][run.pop("code")]
    return data


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other invocations from writing into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def add(path: Path, method: str, batch: int, run: Mapping[str, Any]) -> None:
    """Put a run into its file, in place of one of the same problem and seed."""
    with locked(path.parent):
        before = load(path)
        runs = [r for r in before["runs"] if (r["problem"], r["seed"]) != (run["problem"], run["seed"])]
        runs = sorted([*runs, run], key=lambda r: (r["seed"], r["problem"]))
        command = shlex.join(["python", "-m", "benchmarks.suite.run", *sys.argv[1:]])
        code = sorted({(r["version"], r["commit"]) for r in runs})
        head = {
            "method": method,
            "batch": batch,
            "commands": [c for c in before.get("commands", []) if c != command] + [command],
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}",
            "test_points": TEST_POINTS,
            "code": code,
        }
        lines = []
        for r in runs:
            record = {k: v for k, v in r.items() if k not in ("version", "commit", "curve")}
            record |= {"code": code.index((r["version"], r["commit"])), "curve": pack(r["curve"])}
            lines.append(json.dumps(record, separators=(",", ":")))
        text = json.dumps(head)[:-1] + ', "runs": [\n' + ",\n".join(lines) + "\n]}\n"
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)


def finished(run: Mapping[str, Any], budget: int) -> bool:
    """Whether a run need not be done again."""
    return run["stopped"] in ("settled", "time") or (run["stopped"] == "budget" and run["n"] >= budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="excursion")
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="names, or 'main' or 'high' for a group")
    parser.add_argument("--batches", default="1,5")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget-scale", type=float, default=1.0)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a run ends, unfinished")
    parser.add_argument("--strategy", type=json.loads, help="run ours with this strategy, JSON over the default")
    parser.add_argument("--fresh", action="store_true", help="redo what the files hold")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the workers start

    named = args.problems.split(",")
    chosen = [p.name for p in PROBLEMS.values() if {p.name, p.group} & set(named)]
    if unknown := set(named) - set(PROBLEMS) - {p.group for p in PROBLEMS.values()}:
        parser.error(f"problems must be among {', '.join(PROBLEMS)}, got {sorted(unknown)}")
    sets = {"criteria": [name for name in OURS if "[" in name], "peers": peers()}
    methods = [m for name in args.methods.split(",") for m in sets.get(name, [name])]
    batches = [int(b) for b in args.batches.split(",")]
    cases = []
    for seed in range(args.seeds):
        for problem in chosen:
            for method in methods:
                for batch in batches if method != "grid" else [1]:
                    held = [] if args.fresh else load(path_of(args.out, method, batch))["runs"]
                    budget = round(PROBLEMS[problem].budget * args.budget_scale)
                    same = [r for r in held if (r["problem"], r["seed"]) == (problem, seed)]
                    if not any(finished(r, budget) for r in same):
                        cases.append((problem, method, batch, seed))
    for method in methods:
        if method != "grid":
            make(method, args.strategy)  # an unknown name is told before hours are spent
    print(f"{len(cases)} runs", flush=True)
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        futures = {pool.submit(one, *case, args.budget_scale, args.limit, args.strategy): case for case in cases}
        for future in as_completed(futures):
            problem, method, batch, seed = futures[future]
            run = future.result()
            failed += run["stopped"].startswith("error")
            add(path_of(args.out, method, batch), method, batch, run)
            last = f"{run['curve'][-1][1] / TEST_POINTS:.2%}" if run["curve"] else "-"
            print(
                f"{method:20} b{batch} {problem:16} seed {seed}: {last} wrong after {run['n']:4d}, "
                f"{run['wall']:6.1f} s, {run['stopped']}",
                flush=True,
            )
    if failed:
        sys.exit(f'run: every run must end, got {failed} that did not. See "stopped" in {args.out}; run again to retry')


if __name__ == "__main__":
    main()
