"""How well a slepton campaign does: misclassified fraction of the plane against the dense grid of the same pipeline.

    make demo && python -m benchmarks.slepton_check out/sleptons/campaign.db
    python -m benchmarks.slepton_check --surrogate '{"kernel": "rbf"}' out/sleptons/campaign.db

Each grid point stands for an equal area; a point counts as wrong if campaign and grid lie on different sides of mu = 1.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from excursion.belief import observations
from excursion.campaign import Campaign
from excursion.examples import sleptons
from excursion.result import Result
from excursion.surrogate import GaussianProcess

GRID = Path(__file__).parents[1] / "tests" / "data" / "slepton_grid.csv"


def read_grid() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Masses (n, 2) and the limit of each task (n,)."""
    with GRID.open() as file:
        rows = list(csv.DictReader(file))
    x = np.array([[float(r["m_slepton"]), float(r["m_chi"])] for r in rows])
    return x, {task: np.array([float(r[task]) for r in rows]) for task in sleptons.WEIGHTS}


def wrong(result: Result) -> dict[str, float]:
    """Task -> fraction of the grid points on the wrong side."""
    x, limits = read_grid()
    return {
        task: float(((result.excursion_probability(x, task) > 0.5) != (mu >= 1)).mean()) for task, mu in limits.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="+")
    parser.add_argument("--surrogate", type=json.loads, default={})
    parser.add_argument("--transform")
    parser.add_argument("--first", type=int, nargs="*", default=[None], help="only so many trials, for several numbers")
    args = parser.parse_args()
    for store in args.store:
        campaign = Campaign.open(store)
        problem = campaign.problem
        if args.transform:
            problem = replace(problem, tasks=tuple(replace(t, transform=args.transform) for t in problem.tasks))
        for first in args.first:
            trials = campaign.trials[:first]
            posterior = GaussianProcess(**args.surrogate).fit(observations(problem, trials))
            result = Result(problem, posterior, tuple(trials))
            found = wrong(result)
            print(f"{result.evaluations:4d} evaluations:", ", ".join(f"{t} {100 * v:.2f} %" for t, v in found.items()))


if __name__ == "__main__":
    main()
