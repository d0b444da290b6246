"""Do forecasts come true, and does a contour lie as near as it is said to?

Run: python -m benchmarks.forecast --seeds 4 (records campaigns, a minute each; what is in the file is not run again)
     python -m benchmarks.forecast --judge (reads the file only)

A campaign asks one point at a time. After each, every measure of `excursion.precision` is taken, and along two axes the
distance from the true contour to the one drawn, on random lines. The forecasts are then made from what was known at
each moment and compared with when the goal was reached.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from excursion.belief import believe
from excursion.campaign import Campaign
from excursion.forecast import forecast, milestones
from excursion.precision import ambiguous, misclassified, width
from excursion.problem import Problem, Task
from excursion.proposal import Strategy

from .suite.problems import PROBLEMS, TestProblem

RESULTS = Path(__file__).resolve().parent / "results" / "forecast.json"
#: A recording ends when a hundredth of a per cent is expected to be misclassified, or at the budget.
ENOUGH = 1e-4


def record(test: TestProblem, seed: int) -> list[dict[str, Any]]:
    """One row for each number of evaluations: measures, and the part of the true contour within each width."""
    campaign = Campaign.create("memory://", "c", Problem(test.space, Task("f", test.threshold)), Strategy(seed=seed))
    rng, rows = test.generator(seed), []
    while len(campaign.trials) < test.budget:
        for trial in campaign.ask(1):
            x = test.space.tensor([trial.x]).numpy()
            campaign.tell(trial.number, float(test.observe(x, rng)[0]))
        n = len(campaign.trials)
        if n < campaign.strategy.design(test.dim):
            continue
        belief = believe(campaign.problem, campaign.strategy.surrogate, campaign.trials)
        row: dict[str, Any] = {
            "n": n,
            "misclassified": misclassified(belief.problem, belief.posterior)["f"],
            "ambiguous": ambiguous(belief.problem, belief.posterior)["f"],
        }
        for k, parameter in enumerate(test.space.parameters[:2]):
            found = width(belief.problem, belief.posterior, parameter.name, "f")
            row[f"width_{k}"] = found / (parameter.upper - parameter.lower)
            row[f"kept_{k}"] = kept(test, belief, k, found)
        rows.append(row)
        if row["misclassified"] < ENOUGH:
            break
    return rows


@torch.no_grad()
def kept(test: TestProblem, belief: Any, axis: int, distance: float, lines: int = 150, ticks: int = 801) -> float:
    """The part of the true contour that lies within a distance of the one drawn, along an axis, on random lines."""
    space = test.space
    base = space.sample(0, lines, 777)
    t = torch.linspace(0, 1, ticks, dtype=torch.float64)
    inside = crossings = 0
    for one in base.split(10):
        u = one[:, None].repeat(1, ticks, 1)
        u[:, :, axis] = t
        flat = u.reshape(-1, space.dim)
        x = space.from_unit(flat)
        allowed = space.allowed_unit(flat).reshape(len(one), ticks).numpy()
        truth = test.above(x.numpy()).reshape(len(one), ticks)
        drawn = (belief.posterior.marginal(flat)[0][0] >= belief.problem.tasks[0].levels[0]).reshape(len(one), ticks)
        at = x[:, axis].reshape(len(one), ticks).numpy()
        for row in range(len(one)):
            ours, theirs = (crossed(s[row], allowed[row], at[row]) for s in (drawn.numpy(), truth))
            crossings += len(theirs)
            if len(ours) and len(theirs):
                step = at[row, -1] - at[row, 0]
                gap = np.abs(theirs[:, None] - ours).min(1)
                inside += int((gap <= distance + step / ticks).sum())
    return inside / crossings if crossings else float("nan")


def crossed(sides: np.ndarray, allowed: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Where the side changes between allowed neighbours."""
    (here,) = np.nonzero((sides[1:] != sides[:-1]) & allowed[1:] & allowed[:-1])
    return (at[here] + at[here + 1]) / 2


#: Measure -> goals that are judged; widths in units of the range.
GOALS = {
    "misclassified": (0.02, 0.01, 0.005),
    "ambiguous": (0.05, 0.02, 0.01),
    "width_0": (0.05, 0.02),
    "width_1": (0.05, 0.02),
}


def judge(found: dict[str, list[dict[str, Any]]], steps: int = 10) -> None:
    """Print how often forecasts held, and which part of the contour was within the width where a goal was reached."""
    made, total, kept_at_goal = [], 0, []
    for rows in found.values():
        n = [r["n"] for r in rows]
        for name, limits in GOALS.items():
            values = [r[name] for r in rows]
            for limit in limits:
                ends = [i for i in range(1, len(n)) if max(values[i - 1 : i + 1]) <= limit]
                if not ends:
                    continue
                if name.startswith("width"):
                    kept_at_goal.append(rows[ends[0]][f"kept_{name[-1]}"])
                for i in range(4, ends[0] - 1, 3):
                    past = [n.index(k) for k in milestones(n[0], n[i], steps)]
                    ahead = forecast([(n[j], values[j]) for j in past], limit)
                    total += 1
                    if ahead.more:
                        made.append((n[ends[0]] - n[i], ahead))
    print(f"forecasts made: {len(made)} of {total}")
    print(f"truth within 2 sd: {np.mean([abs(t - f.more) <= 2 * f.sd for t, f in made]):.3f}")
    print(f"truth within the 95 % interval: {np.mean([f.low <= t <= f.high for t, f in made]):.3f}")
    print(f"truth / forecast: median {np.median([t / f.more for t, f in made]):.2f}")
    print(f"sd / forecast: median {np.median([f.sd / f.more for _, f in made]):.2f}")
    good = np.array(kept_at_goal)
    print(
        f"true contour within the width where the goal was reached: mean {good.mean():.3f}, least {good.min():.3f}, "
        f"at least .90 in {np.mean(good >= 0.9):.2f} of {len(good)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="fast_2D,branin,bichon,plateau,kinematic_step,two_islands,fast_3D")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", action="store_true", help="only read the file")
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    for seed in range(0 if given.judge else given.seeds):
        for name in given.problems.split(","):
            key = f"{name} {seed}"
            if key not in found:
                found[key] = record(PROBLEMS[name], seed)
                given.out.write_text(json.dumps(found))
                print(key, found[key][-1], flush=True)
    judge(found)


if __name__ == "__main__":
    main()
