"""Tables and figures of what `benchmarks.suite.run` measured.

Run: python -m benchmarks.suite.report [--results DIR] [--problems main]
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from .problems import PROBLEMS, TEST_POINTS
from .run import GOAL, RESULTS, load


def evaluations_to(curve: list[list[int]], goal: float = GOAL) -> float:
    """The first n from which on the error stays at or below the goal; infinite if it never does."""
    reached = math.inf
    for n, wrong in reversed(curve):
        if wrong > goal * TEST_POINTS:
            break
        reached = n
    return reached


Runs = dict[tuple[str, int], dict[str, list[dict[str, Any]]]]


def read(directory: Path) -> Runs:
    """(method, batch) -> problem -> runs."""
    out: Runs = {}
    for path in sorted(directory.glob("*-b*.json")):
        data = load(path)
        runs = out.setdefault((data["method"], data["batch"]), {})
        for run in data["runs"]:
            runs.setdefault(run["problem"], []).append(run)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = read(args.results)
    for (method, batch), by_problem in runs.items():
        print(f"{method}, batch {batch}")
        for problem in [p for p in PROBLEMS.values() if p.name in by_problem]:
            rows = by_problem[problem.name]
            reached = sorted(evaluations_to(r["curve"]) for r in rows)
            end = statistics.median(r["curve"][-1][1] / TEST_POINTS if r["curve"] else math.nan for r in rows)
            seconds = statistics.median(r["seconds"] or math.nan for r in rows)
            print(
                f"  {problem.name:16} budget {problem.budget:4d}  N(1 %) {statistics.median(reached):6g}  "
                f"all {reached}  error at the end {end:.2%}  s/point {seconds:.3g}"
            )


if __name__ == "__main__":
    main()
