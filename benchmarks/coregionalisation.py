"""Several tasks at the same points: seconds for evidence and gradient from eigenvalues, and with the dense matrix.

Run: OMP_NUM_THREADS=1 python -m benchmarks.coregionalisation [--most 1600]

The numbers are the same to rounding (the largest difference relative to the value is printed).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from excursion.surrogate.multitask import JointEvidence


def evidence(n: int, t: int) -> JointEvidence:
    """Of t similar waves at n points of the unit square."""
    u = torch.quasirandom.SobolEngine(2, scramble=True, seed=1).draw(n, dtype=torch.float64).numpy()
    y = np.concatenate([np.sin((3 + 0.2 * i) * u[:, 0]) + u[:, 1] for i in range(t)])
    task, point = np.repeat(np.arange(t), n), np.tile(np.arange(n), t)
    return JointEvidence("matern52", 1, u, np.ones((n, 1)), t, task, point, y, np.zeros(n * t), np.ones(n * t))


def timed(e: JointEvidence, theta: np.ndarray, repeats: int = 3) -> tuple[float, float]:
    """The least seconds of some calls, and the value."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value, _ = e(theta)
        seconds.append(time.perf_counter() - start)
    return min(seconds), value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1600, help="values, at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("  n  t  eigenvalues/s   dense/s   ratio  difference")
    for n, t in ((30, 2), (100, 2), (100, 6), (200, 2), (200, 6), (200, 8), (400, 4)):
        if n * t > args.most:
            continue
        e = evidence(n, t)
        theta = e.first_guesses(2, 1)[0]
        fast, value = timed(e, theta)
        dense = replace(e)
        dense.__dict__["whole"] = False
        slow, same = timed(dense, theta)
        print(f"{n:3} {t:2} {fast:14.4f} {slow:9.4f} {slow / fast:7.1f} {abs(value / same - 1):11.1e}", flush=True)


if __name__ == "__main__":
    main()
