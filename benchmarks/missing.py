"""A missing observed limit, from the expected ones of the same point: leave-one-out errors with and without them.

Run: OMP_NUM_THREADS=1 python -m benchmarks.missing [--data DIR] [--every 1] [--recipe JSON ...] [--out FILE]

The 42 limits on mu of the ATLAS mono-s(bb) reinterpretation (ATL-PHYS-PUB-2019-032): m_Z' and m_s at one dark-matter
mass, an observed limit and five expected ones (median, 1 and 2 sigma) at each point. Of one point after the other the
observed limit is left out; its expected limits stay. The error is that of ln(limit). One task: the observed limits
alone. The table is looked for in DIR, in $EXCURSION_DATA and in ../shared/data.

Any other recipe sees all six with --recipe '{"type": "MultiTask", "rank": 1}'.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from excursion.surrogate import RECIPES, GaussianProcess, MultiTask, Observations, Surrogate

#: Columns of the table: the task that is left out, and the others.
OBSERVED, EXPECTED = "obs", ("exp_p2", "exp_p1", "exp", "exp_m1", "exp_m2")
#: All tasks by each of these; and the observed limit alone by the package's own process.
TOGETHER: Mapping[str, Surrogate] = {
    "MultiTask": MultiTask(),
    "MultiTask, RBF, linear mean": MultiTask(kernel="rbf", mean="linear"),
}
SINGLE: Mapping[str, Surrogate] = {
    "GaussianProcess": GaussianProcess(),
    "GaussianProcess, Matern 5/2": GaussianProcess(kernel="matern52", metric="ard", average=False),
}


@dataclass(frozen=True)
class Errors:
    """Of ln(limit), and the mean squared error in units of the variance that was claimed (1 is honest)."""

    points: int
    rms: float
    mean_absolute: float
    largest: float
    pull: float
    seconds: float


def table(folder: Path | None = None) -> Path | None:
    """The file, if it is anywhere."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    known = os.environ.get("EXCURSION_DATA")
    folders = [folder, Path(known) if known else None, beside]
    files = [f / "mono_sbb_limits.csv" for f in folders if f]
    return next((f for f in files if f.exists()), None)


def limits(file: Path) -> tuple[Tensor, Tensor]:
    """Points in the unit square, (42, 2), and ln of the limits, the observed first, (42, 6)."""
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    x = torch.tensor([[float(r[k]) for k in ("mzp", "ms")] for r in rows], dtype=torch.float64)
    y = torch.tensor([[float(r[k]) for k in (OBSERVED, *EXPECTED)] for r in rows], dtype=torch.float64)
    lower, upper = x.amin(0), x.amax(0)
    return (x - lower) / (upper - lower), y.log()


def left_out(recipe: Surrogate, u: Tensor, z: Tensor, rows: range) -> Errors:
    """Errors of the first task where it is left out at one of the rows; the other tasks of the row stay known.

    With a single task the row is left out altogether.
    """
    misses, variances, start = [], [], time.perf_counter()
    for row in rows:
        if z.shape[1] == 1:
            others = torch.arange(len(u)) != row
            data = Observations.exact(u[others], z[others])
        else:
            known = torch.ones_like(z, dtype=torch.bool)
            known[row, 0] = False
            zero = torch.zeros_like(z)
            data = Observations(u, z.where(known, zero), zero, zero, known=known)
        belief = recipe.fit(data)
        mean, variance = belief.marginal(u[row : row + 1])
        misses.append(float(mean[0, 0] - z[row, 0]))
        variances.append(float(variance[0, 0] + belief.noise[0]))
    miss = torch.tensor(misses, dtype=torch.float64)
    pull = (miss.square() / torch.tensor(variances, dtype=torch.float64)).mean()
    return Errors(
        len(rows),
        math.sqrt(miss.square().mean()),
        float(miss.abs().mean()),
        float(miss.abs().max()),
        float(pull),
        time.perf_counter() - start,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--every", type=int, default=1, help="leave out every so many rows only")
    parser.add_argument("--recipe", type=json.loads, action="append", default=[], help="settings of one more")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    file = table(args.data)
    if file is None:
        raise SystemExit("benchmarks.missing: needs mono_sbb_limits.csv, found none. Give --data or EXCURSION_DATA")
    torch.set_num_threads(1)
    u, z = limits(file)
    rows = range(0, len(u), args.every)
    results = {}
    more = {json.dumps(r): RECIPES[r["type"]](**{k: v for k, v in r.items() if k != "type"}) for r in args.recipe}
    print(f"{'ln(observed limit), left out':44} {'RMS':>7} {'mean |.|':>9} {'largest':>8} {'pull^2':>7} {'s a fit':>8}")
    for tasks, recipes in ((slice(0, 1), SINGLE), (slice(None), {**TOGETHER, **more})):
        for name, recipe in recipes.items():
            label = f"{name}, {'observed alone' if tasks.stop else 'all six'}"
            found = left_out(recipe, u, z[:, tasks], rows)
            results[label] = asdict(found)
            print(
                f"{label:44} {found.rms:7.4f} {found.mean_absolute:9.4f} {found.largest:8.4f} {found.pull:7.2f} "
                f"{found.seconds / found.points:8.2f}",
                flush=True,
            )
    alone = min(v["rms"] for k, v in results.items() if k.endswith("alone"))
    for label, found in results.items():
        if label.endswith("all six"):
            print(f"{label}: RMS {1 - found['rms'] / alone:.0%} lower than that of the best single task")
    if args.out:
        command = f"OMP_NUM_THREADS=1 python -m benchmarks.missing --every {args.every}"
        args.out.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
