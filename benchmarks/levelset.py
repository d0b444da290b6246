"""Evaluations to accuracy: how many evaluations until the misclassified volume stays at or below 1 %.

Run: python -m benchmarks.levelset [--problems fast_2D,fast_3D] [--batches 2,5] [--seeds 5] [--budget 75]

Quick and ours only; `benchmarks.suite` compares many methods on many problems.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.suite.problems import PROBLEMS
from benchmarks.suite.run import evaluations_to
from excursion.campaign import Campaign
from excursion.problem import Problem, Task
from excursion.proposal import Strategy


def one(name: str, batch: int, seed: int, budget: int, settings: dict) -> dict:
    """Error after each batch, and the seconds each ask took."""
    torch.set_num_threads(1)
    problem = PROBLEMS[name]
    space, threshold = problem.space, problem.threshold
    test_u = space.sample(0, 20000, 987654)
    truth = torch.from_numpy(problem.above(space.from_unit(test_u).numpy()))
    rng = problem.generator(seed)
    strategy = Strategy.from_json({**settings, "seed": seed})
    campaign = Campaign.create("memory://", "c", Problem(space, Task("f", threshold)), strategy)
    curve, seconds = [], []
    while len(campaign.trials) < budget:
        start = time.perf_counter()
        asked = campaign.ask(batch)
        seconds.append(time.perf_counter() - start)
        for t, y in zip(asked, problem.observe(space.tensor([t.x for t in asked]).numpy(), rng)):
            campaign.tell(t.number, float(y))
        n = len(campaign.trials)
        if n >= strategy.design(space.dim):
            with torch.no_grad():
                belief = campaign.belief()
                mean = belief.posterior.marginal(test_u)[0][0]
            level = belief.problem.tasks[0].levels
            curve.append((n, float(((mean >= level) != truth).double().mean())))
    return {"problem": name, "batch": batch, "seed": seed, "curve": curve, "seconds": seconds}


def error(rows: list[dict], n: int) -> float:
    """Median error after at most n evaluations."""
    return statistics.median([e for m, e in r["curve"] if m <= n][-1] for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default="fast_2D,fast_3D")
    parser.add_argument("--batches", default="2,5")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=90)
    parser.add_argument("--goal", type=float, default=0.01)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--strategy", type=json.loads, default={}, help="strategy as JSON, over the default")
    parser.add_argument("--out", type=Path, help="write the curves to this JSON file")
    args = parser.parse_args()
    cases = [
        (p, int(b), s) for p in args.problems.split(",") for b in args.batches.split(",") for s in range(args.seeds)
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(one, p, b, s, args.budget, args.strategy) for p, b, s in cases]
        results = [f.result() for f in futures]
    print(
        f"{'problem':10} {'batch':>5} {'median N(1 %)':>14} {'all':24} {'err@40':>9} {'err@60':>9} {'err@end':>9} "
        f"{'s/ask':>6}"
    )
    for p, b in dict.fromkeys((p, b) for p, b, _ in cases):
        rows = [r for r in results if (r["problem"], r["batch"]) == (p, b)]
        reached = sorted(evaluations_to(r["curve"], args.goal) for r in rows)

        ask = statistics.median(s for r in rows for s in r["seconds"][3:])
        print(
            f"{p:10} {b:5d} {statistics.median(reached):14.0f} {[int(x) if x < 1e9 else x for x in reached]!s:24}"
            f" {error(rows, 40):9.2e} {error(rows, 60):9.2e} {error(rows, args.budget):9.2e} {ask:6.2f}"
        )
    if args.out:
        args.out.write_text(json.dumps({"command": vars(args) | {"out": str(args.out)}, "results": results}, indent=1))


if __name__ == "__main__":
    main()
