"""Is the transform that a campaign chooses ("auto") as good as the best fixed one? On tables of real limits, infinities
included, and on smooth functions.

Some rows of a table are told, the others are held out; the error is the fraction of these on the wrong side of the
threshold. Rows are drawn at random, or as a campaign has them ("near": every other one from the third of the table that
is nearest to the threshold). A fixed transform is one of `Task.choices` for the rows told. Each table's ratio is the
geometric mean over numbers of rows and draws of (error of auto)/(error of the fixed transform that is best by the same
mean), errors averaged over tasks and seeds first.

Run: python -m benchmarks.transform [--tables slepton,branin] [--sizes 20,40,80,150] [--seeds 5] [--jobs 2] [--out FILE]

Tables other than the slepton grid are read from $EXCURSION_DATA and left out where that is absent.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.slepton_check import read_grid
from benchmarks.suite.problems import PROBLEMS, data_directory
from excursion.belief import believe, settle
from excursion.data import Outcome, Trial
from excursion.evaluators.pyhf import Signal, WorkspaceModel, limits
from excursion.problem import Problem, Task
from excursion.space import ParameterSpace
from excursion.surrogate import GaussianProcess
from excursion.threads import one_thread

RESULTS = Path(__file__).parent / "results" / "transform.json"
DESIGNS = ("random", "near")
FUNCTIONS = ("fast_2D", "bichon", "branin")
#: Held-out rows at most: functions are drawn at so many points.
ROWS = 1000


@dataclass(frozen=True)
class Table:
    """Points and values of one or more tasks with a common threshold.

    Attributes:
        x: physical points, (n, d).
        values: task -> values (n,), infinite ones allowed.
        threshold: T.
    """

    x: np.ndarray
    values: Mapping[str, np.ndarray]
    threshold: float

    @property
    def space(self) -> ParameterSpace:
        """The box of the points."""
        return ParameterSpace.of({f"x{k + 1}": (float(c.min()), float(c.max())) for k, c in enumerate(self.x.T)})


def slepton() -> Table:
    """Six limits each at 638 points; at 16 of these they are infinite."""
    x, values = read_grid()
    return Table(x, values, 1.0)


def mono_sbb() -> Table:
    """42 points of a plane, six limits each."""
    with (_directory() / "mono_sbb_limits.csv").open() as file:
        rows = list(csv.DictReader(file))
    x = np.array([[float(r["mzp"]), float(r["ms"])] for r in rows])
    names = ("obs", "exp", "exp_p2", "exp_p1", "exp_m1", "exp_m2")
    return Table(x, {k: np.array([float(r[k]) for r in rows]) for k in names}, 1.0)


def checkmate_stop() -> Table:
    """Observed and expected CLs of the points at which CheckMATE ended well, with Monte Carlo noise."""
    rows: list[Any] = json.loads((_directory() / "checkmate_stop_scan.json").read_text())["precomputed"]
    done = [(x, values) for x, _, (state, values) in rows if state.strip('"') == "SUCCESS"]
    names = ("observed_CLs", "expected_CLs")
    values = {k: np.array([float(v[k]) for _, v in done]) for k in names}
    return Table(np.array([x for x, _ in done]), values, 0.05)


def sbottom() -> Table:
    """Limits in three masses (ATLAS-SUSY-2018-31), by fits of its simplified likelihood."""
    directory = _directory() / "sbottom_3d"
    model = WorkspaceModel(json.loads((directory / "simplified_likelihood.json").read_text()))
    mass, picobarn = np.loadtxt(directory / "xsec_pb.csv", delimiter=",", comments="#").T
    with (directory / "efficiencies.csv").open() as file:
        rows = list(csv.DictReader(file))
    x, values = [], []
    for r in rows:
        events = 139e3 * math.exp(np.interp(float(r["m_sb"]), mass, np.log(picobarn)))
        signal = [events * float(r[k]) for k in ("SRA_L", "SRA_M", "SRA_H")]
        none = [0.0, 0.0, 0.0]
        x.append([float(r[k]) for k in ("m_sb", "m_n2", "m_n1")])
        workspace = model.workspace(Signal({"SR_meff": signal, "VRtt_meff": none, "CRtt_meff": none}))
        values.append(limits(workspace, mu_max=1e8, poi="mu_SIG").observed)
    return Table(np.array(x), {"observed": np.array(values)}, 1.0)


def function(name: str) -> Table:
    """A test function of the suite at space-filling points."""
    p = PROBLEMS[name]
    x = p.points(ROWS)
    return Table(x, {"f": p.f(x)}, p.threshold)


def tables() -> dict[str, Callable[[], Table]]:
    """Name -> how it is read, those whose data are here."""
    found: dict[str, Callable[[], Table]] = {"slepton": slepton}
    if data_directory() is not None:
        found |= {"mono_sbb": mono_sbb, "checkmate_stop": checkmate_stop, "sbottom": sbottom}
    return found | {name: lambda name=name: function(name) for name in FUNCTIONS}  # type: ignore[misc]


def _directory() -> Path:
    directory = data_directory()
    assert directory is not None
    return directory


def draw(y: np.ndarray, threshold: float, n: int, design: str, seed: int) -> np.ndarray:
    """Indices (n,) of the rows that are told, in the order in which they are."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    if design == "random":
        return order[:n]
    rank = np.argsort(np.argsort(y, kind="stable"), kind="stable")
    distance = np.abs(rank - np.searchsorted(np.sort(y), threshold) + 0.5)
    near = order[np.argsort(np.argsort(distance, kind="stable"), kind="stable")[order] < len(y) / 3]
    mixed = [i for pair in zip(order, near) for i in pair]
    return np.array(list(dict.fromkeys(mixed))[:n])


def history(table: Table, task: str, told: np.ndarray) -> list[Trial]:
    """The rows as a campaign's trials; the task's name there is "f"."""
    names, y = table.space.names, table.values[task]
    outcomes = [Outcome.of(float(y[i])) for i in told]
    return [
        Trial(number, dict(zip(names, table.x[i])), 0, 0, state=outcome.state, outcome=outcome)
        for number, (i, outcome) in enumerate(zip(told, outcomes))
    ]


def errors(table: Table, task: str, told: np.ndarray) -> tuple[str, dict[str, float]]:
    """The transform chosen, and transform -> fraction of held-out rows on the wrong side; "auto" is one of them.

    Half a row is added to each count: a comparison of nothing with nothing is a draw.
    """
    y, space, trials = table.values[task], table.space, history(table, task, told)
    held = np.setdiff1d(np.arange(len(y)), told)
    u = space.to_unit(torch.from_numpy(table.x[held]))
    auto = Problem(space, Task("f", (table.threshold,)))
    choices = {t.transform: t for t in auto.tasks[0].choices(torch.from_numpy(y[told]))}
    wrong = {}
    with one_thread(len(trials)), torch.no_grad():
        for name, choice in {"auto": auto.tasks[0], **choices}.items():
            belief = believe(Problem(space, choice), GaussianProcess(), trials)
            mean = belief.posterior.marginal(u)[0][0]
            above = (mean >= belief.problem.tasks[0].levels).numpy()
            wrong[name] = (float((above != (y[held] >= table.threshold)).sum()) + 0.5) / len(held)
        return settle(auto, trials).tasks[0].transform, wrong


def measure(name: str, sizes: Sequence[int], designs: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """One record per task, size and design; a size needs as many rows held out as told."""
    table = tables()[name]()
    records = []
    for task, y in table.values.items():
        for design in designs:
            for n in (n for n in sizes if 2 * n <= len(y)):
                chosen, wrong = errors(table, task, draw(y, table.threshold, n, design, seed))
                records.append(
                    {"table": name, "task": task, "n": n, "design": design, "seed": seed, "chosen": chosen}
                    | {"error": {k: round(e, 6) for k, e in wrong.items()}}
                )
    return records


def summary(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Transform -> geometric mean over sizes and designs of the mean error, of the transforms that were possible in
    every record; and "ratio" of auto to the best fixed one. Per table."""
    records = list(records)
    out = {}
    for table in dict.fromkeys(r["table"] for r in records):
        of = [r for r in records if r["table"] == table]
        names = [k for k in of[0]["error"] if all(k in r["error"] for r in of)]
        cells = sorted({(r["design"], r["n"]) for r in of})
        means = {
            k: math.exp(
                np.mean([np.log(np.mean([r["error"][k] for r in of if (r["design"], r["n"]) == c])) for c in cells])
            )
            for k in names
        }
        out[table] = means | {"ratio": means["auto"] / min(v for k, v in means.items() if k != "auto")}
    return out


def show(records: Sequence[Mapping[str, Any]]) -> str:
    """The errors as Markdown tables, per table and per number of rows."""
    names = ("identity", "asinh", "log", "log-tanh", "auto")
    lines = [f"| table | rows | {' | '.join(names)} | auto / best |", "|---|---:" + "|---:" * (len(names) + 1) + "|"]

    def row(title: str, rows: str, found: Mapping[str, float]) -> str:
        cells = [f"{found[k]:.2%}" if k in found else "–" for k in names]
        return f"| {title} | {rows} | {' | '.join(cells)} | {found['ratio']:.2f} |"

    overall = summary(records)
    for table, found in overall.items():
        of = [r for r in records if r["table"] == table]
        for design, n in sorted({(r["design"], r["n"]) for r in of}, reverse=True):
            part = summary(r for r in of if (r["design"], r["n"]) == (design, n))
            lines.append(row(f"{table}, {design}", str(n), part[table]))
        lines.append(row(f"**{table}**", "all", found))
    mean = math.exp(np.mean([math.log(found["ratio"]) for found in overall.values()]))
    return "\n".join([*lines, f"\nauto / best fixed, geometric mean over tables: {mean:.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(tables()))
    parser.add_argument("--sizes", default="20,40,80,150")
    parser.add_argument("--designs", default=",".join(DESIGNS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    sizes, designs = [int(n) for n in args.sizes.split(",")], args.designs.split(",")
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(measure, name, sizes, designs, seed)
            for name in args.tables.split(",")
            for seed in range(args.seeds)
        ]
        records = [record for future in futures for record in future.result()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in records)
    command = f"python -m benchmarks.transform --sizes {args.sizes} --designs {args.designs} --seeds {args.seeds}"
    head = {"command": command, "summary": summary(records)}
    args.out.write_text(json.dumps(head)[:-1] + ', "records": [\n' + lines + "\n]}\n")
    print(show(records))


if __name__ == "__main__":
    main()
