"""Seconds to ask for 5 points with 100 data in four dimensions, on one thread.

Run: python -m benchmarks.ask [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from excursion.campaign import Campaign, Strategy
from excursion.problem import Problem, Task
from excursion.space import ParameterSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    space = ParameterSpace.of({name: (0, 1) for name in "abcd"})
    seconds = []
    for seed in range(args.repeats):
        problem = Problem(space, Task("f", 0.8))
        campaign = Campaign.create("memory://", "c", problem, Strategy(seed=seed, design_size=100))
        for t in campaign.ask(100):
            x = np.array(list(t.x.values()))
            campaign.tell(t.number, float(np.sin(x @ [3.0, 2.0, 1.0, 0.5]) + x[0] * x[1]))
        start = time.perf_counter()
        campaign.ask(5)
        seconds.append(time.perf_counter() - start)
    print(f"ask(5), 100 data, 4-D: median {statistics.median(seconds):.2f} s of {[f'{s:.2f}' for s in seconds]}")


if __name__ == "__main__":
    main()
