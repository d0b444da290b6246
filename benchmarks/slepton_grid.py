"""The slepton plane on a dense grid of the same pipeline: the reference for the campaign's contours.

    python -m benchmarks.slepton_grid [--step 20] [--events 20000] [--processes 2]

Writes tests/data/slepton_grid.csv: the masses and the six limits on mu ("above" the largest tried: inf).
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from excursion.campaign import evaluation_seed
from excursion.data import Job
from excursion.examples import sleptons

OUT = Path(__file__).parents[1] / "tests" / "data" / "slepton_grid.csv"


def limits(point: tuple[int, tuple[float, float]], events: int) -> list[float]:
    number, (m_slepton, m_chi) = point
    job = Job({"m_slepton": m_slepton, "m_chi": m_chi}, number, evaluation_seed(2**30, number))
    outcome = sleptons.evaluator(events).evaluate(job)
    return [math.inf if task in outcome.bounds else outcome.values[task] for task in sleptons.WEIGHTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=20.0)
    parser.add_argument("--events", type=int, default=20000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    space = sleptons.problem().space
    shape = [int((p.upper - p.lower) // args.step) + 1 for p in space.parameters]
    x = space.grid(shape)
    x = x[space.allowed(x)].round()
    points = [tuple(row) for row in x.tolist()]
    started = time.perf_counter()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.processes) as pool, args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*space.names, *sleptons.WEIGHTS])
        for point, row in zip(points, pool.map(partial(limits, events=args.events), enumerate(points))):
            writer.writerow([*(f"{v:g}" for v in point), *(f"{v:.5g}" for v in row)])
            file.flush()
    print(f"{len(points)} points in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
