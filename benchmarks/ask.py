"""Seconds of an ask in four dimensions: the fit of the surrogate, and the search for the batch.

Small: ask(5) with 100 data of one task, default settings, on one thread. Large: ask(200) with 1000 data of four tasks,
4000 candidates and 4000 integration points, on two threads.

Run: python -m benchmarks.ask [--cases small,large] [--repeats 5] [--batch joint] [--acquisition SUR]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from excursion.acquisition import CRITERIA, Search, Target, select
from excursion.space import ParameterSpace
from excursion.surrogate import GaussianProcess, Observations
from excursion.threads import one_thread

SPACE = ParameterSpace.of({name: (0, 1) for name in "abcd"})
SLOPES = ((3.0, 2.0, 1.0, 0.5), (1.0, 3.0, 2.0, 0.5), (0.5, 1.0, 3.0, 2.0), (2.0, 0.5, 1.0, 3.0))


def data(n: int, tasks: int, seed: int) -> tuple[Observations, Target]:
    """Smooth functions of all parameters at space-filling points, and the thresholds that are sought."""
    u = SPACE.sample(0, n, seed)
    slopes = torch.tensor(SLOPES[:tasks], dtype=torch.float64)
    z = torch.sin(u @ slopes.T) + u[:, :1] * u[:, 1:2] + 0.3 * torch.cos(7 * u[:, 2:3] * u[:, 3:4])
    levels = (torch.tensor([0.8], dtype=torch.float64),) * tasks
    observed = Observations(u, z, torch.full_like(z, 1e-6), torch.zeros_like(z), levels)
    return observed, Target(levels, torch.full((tasks,), 1 / tasks, dtype=torch.float64))


CASES = {
    "small": {"n": 100, "tasks": 1, "batch": 5, "threads": 1, "search": {}},
    "large": {
        "n": 1000,
        "tasks": 4,
        "batch": 200,
        "threads": 2,
        "search": {"candidates": 4000, "integration": 4000},
    },
}


def ask(case: dict, seed: int, batch: str, acquisition: str) -> tuple[float, float]:
    """Seconds of the fit and of the search."""
    observed, target = data(case["n"], case["tasks"], seed)
    torch.set_num_threads(case["threads"])
    with one_thread(len(observed)):
        start = time.perf_counter()
        posterior = GaussianProcess().fit(observed)
        fitted = time.perf_counter()
        select(
            CRITERIA[acquisition](),
            posterior,
            SPACE,
            target,
            case["batch"],
            seed=seed,
            taken=observed.u,
            search=Search(batch=batch, **case["search"]),
        )
        return fitted - start, time.perf_counter() - fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="small,large")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", default="joint", choices=("joint", "poisson-disc", "top"))
    parser.add_argument("--acquisition", default="SUR", choices=list(CRITERIA))
    args = parser.parse_args()
    for name in args.cases.split(","):
        case = CASES[name]
        seconds = [ask(case, seed, args.batch, args.acquisition) for seed in range(args.repeats)]
        fit, search, both = (statistics.median(s) for s in zip(*((f, s, f + s) for f, s in seconds)))
        print(
            f"{name}: ask({case['batch']}), {case['n']} data, {case['tasks']} tasks, 4-D, {case['threads']} threads: "
            f"median {both:.2f} s (fit {fit:.2f} s, search {search:.2f} s) of {args.repeats}"
        )


if __name__ == "__main__":
    main()
