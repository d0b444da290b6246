"""What a Gaussian process could do if its hyperparameters were known: a bound on what better fits may gain.

For each kernel and transform the hyperparameters are those of 600 points; then a campaign runs as always, except that
it knows them. Printed is the best of all these choices, chosen in hindsight.

Run: OMP_NUM_THREADS=1 python -m benchmarks.suite.floor [--problems NAMES] [--seeds 3] [--jobs 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from excursion.campaign import Campaign
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.surrogate import GaussianProcess, Observations, Posterior, Surrogate
from excursion.surrogate.evidence import KERNELS

from .hartmann import BATCH, BUDGET, INITIAL
from .methods import Ours
from .problems import PROBLEMS, TEST_POINTS, TestProblem
from .run import commit, evaluations_to, follow

#: Without noise, tables and jumps: functions that one stationary process can describe.
SMOOTH = (
    *("fast_1D", "fast_2D", "fast_3D", "paraboloid_2D", "paraboloid_3D", "paraboloid_4D", "paraboloid_5D"),
    *("bichon", "branin", "ackley_2D"),
)
#: Points from which the hyperparameters are known.
KNOWN_FROM = 600


@dataclass(frozen=True)
class Known(Surrogate):
    """A process whose hyperparameters and mean are known.

    Attributes:
        process: fitted to many points.
    """

    process: Any

    def fit(self, data: Observations) -> Posterior:
        empty = data.u.new_zeros(0)
        prior = replace(self.process, u=data.u[:0], factor=empty.reshape(0, 0), white=empty)
        return prior.condition(data.u, data.z)

    def to_json(self) -> dict[str, Any]:
        return {"type": "Known"}


@dataclass
class Oracle(Ours):
    """A campaign with known hyperparameters."""

    kernel: str = "matern52"
    transform: str = "identity"

    def start(self, problem: TestProblem, batch: int, seed: int) -> None:
        task = Task("f", problem.threshold, self.transform)
        u = problem.space.sample(0, KNOWN_FROM, 3)
        z = task.map(torch.from_numpy(problem.f(problem.space.from_unit(u).numpy())))[:, None]
        zero = torch.zeros_like(z)
        recipe = GaussianProcess(kernel=self.kernel, average=False)
        known = Known(recipe.fit(Observations(u, z, zero, zero, (task.levels,))))
        strategy = replace(Strategy.from_json({**self.strategy, "seed": seed}), surrogate=known)
        self.campaign = Campaign.create("memory://", problem.name, Problem(problem.space, task), strategy)
        self.result = None


def one(name: str, kernel: str, transform: str, seed: int) -> tuple[float, float]:
    """N(1 %) at batch 5, and the error at the budget (Hartmann: as in `hartmann`)."""
    torch.set_num_threads(1)
    problem, hartmann = PROBLEMS[name], name == "hartmann6"
    oracle = Oracle({"design_size": INITIAL} if hartmann else {}, kernel=kernel, transform=transform)
    run = follow(oracle, problem, BATCH if hartmann else 5, seed, BUDGET if hartmann else problem.budget)
    if run["stopped"].startswith("error"):
        raise SystemExit(f"floor: {name}, {kernel}, {transform}: must end, got {run['stopped']!r}")
    return evaluations_to(run["curve"], 0.01 * TEST_POINTS), run["curve"][-1][1] / TEST_POINTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join([*SMOOTH, "hartmann6"]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {}
    with ProcessPoolExecutor(args.jobs) as pool:
        for name in args.problems.split(","):
            problem = PROBLEMS[name]
            positive = problem.threshold > 0 and (problem.f(problem.points(1000)) > 0).all()
            choices = [(k, t) for k in KERNELS for t in (("identity", "log") if positive else ("identity",))]
            choices = [(k, t) for k, t in choices if problem.dim > 1 or k != "additive"]
            cases = [(name, k, t, seed) for k, t in choices for seed in range(args.seeds)]
            ends = list(pool.map(one, *zip(*cases)))
            rows = []
            for i, choice in enumerate(choices):
                n, error = zip(*ends[i * args.seeds : (i + 1) * args.seeds])
                rows.append((statistics.median(n), statistics.median(error), choice, n, error))
            n, error, (kernel, transform), *each = min(rows)
            found[name] = {"n": n if math.isfinite(n) else None, "error": error, "kernel": kernel} | {
                "transform": transform,
                "all": {f"{k} {t}": [m if math.isfinite(m) else None, e] for m, e, (k, t), *_ in rows},
            }
            print(f"{name:16} N(1 %) {n:g} with {kernel}, {transform}; error {error:.2%}; each seed {each}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"commit": commit(), "seeds": args.seeds, "problems": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
