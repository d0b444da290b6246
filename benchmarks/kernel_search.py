"""Kernel search on the airline series: the BIC that the search finds, and the seconds it takes on one thread.

Run: OMP_NUM_THREADS=1 python -m benchmarks.kernel_search [--seeds 1] [--depth 8] [--out FILE]

Duvenaud et al. (ICML 2013) find SE x (LIN + LIN x (PER + RQ)) for this series, Lloyd et al. (AAAI 2014) the like.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from excursion.surrogate import Observations, search_kernel

#: International airline passengers per month, in thousands, 1949 to 1960: Box, Jenkins and Reinsel, Time Series
#: Analysis: Forecasting and Control, series G.
AIRLINE = (
    (112, 118, 132, 129, 121, 135, 148, 148, 136, 119, 104, 118),
    (115, 126, 141, 135, 125, 149, 170, 170, 158, 133, 114, 140),
    (145, 150, 178, 163, 172, 178, 199, 199, 184, 162, 146, 166),
    (171, 180, 193, 181, 183, 218, 230, 242, 209, 191, 172, 194),
    (196, 196, 236, 235, 229, 243, 264, 272, 237, 211, 180, 201),
    (204, 188, 235, 227, 234, 264, 302, 293, 259, 229, 203, 229),
    (242, 233, 267, 269, 270, 315, 364, 347, 312, 274, 237, 278),
    (284, 277, 317, 313, 318, 374, 413, 405, 355, 306, 271, 306),
    (315, 301, 356, 348, 355, 422, 465, 467, 404, 347, 305, 336),
    (340, 318, 362, 348, 363, 435, 491, 505, 404, 359, 310, 337),
    (360, 342, 406, 396, 420, 472, 548, 559, 463, 407, 362, 405),
    (417, 391, 419, 461, 472, 535, 622, 606, 508, 461, 390, 432),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    z = torch.tensor(AIRLINE, dtype=torch.float64).flatten()
    data = Observations.exact(torch.linspace(0, 1, len(z), dtype=torch.float64)[:, None], z)
    results = []
    for seed in range(args.seeds):
        start = time.perf_counter()
        found = search_kernel(data, depth=args.depth, seed=seed, names=("time",))
        seconds = time.perf_counter() - start
        print(f"seed {seed}: BIC {found.bic:.2f} in {seconds:.0f} s, {found.expression}\n  {found.name}", flush=True)
        atoms = found.hyperparameters[0]["atoms"]
        results.append({"seed": seed, "bic": found.bic, "seconds": seconds, "kernel": found.expression, "atoms": atoms})
    if args.out:
        command = f"OMP_NUM_THREADS=1 python -m benchmarks.kernel_search --seeds {args.seeds} --depth {args.depth}"
        args.out.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
