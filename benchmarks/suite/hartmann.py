"""Error on Hartmann 6-D after 210 evaluations: 30 initial points, then batches of 10.

Run: OMP_NUM_THREADS=1 python -m benchmarks.suite.hartmann [--seeds 10] [--strategy JSON] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from .methods import Ours
from .problems import PROBLEMS, TEST_POINTS
from .run import commit, follow

INITIAL, BATCH, BUDGET = 30, 10, 210


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--strategy", type=json.loads, default={}, help="JSON over the default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    strategy = {"design_size": INITIAL, **args.strategy}
    runs, errors = [], []
    for seed in range(args.seeds):
        run = follow(Ours(strategy), PROBLEMS["hartmann6"], BATCH, seed, BUDGET, early=False)
        if run["stopped"] != "budget":
            raise SystemExit(f"hartmann: seed {seed} must end at its budget, got {run['stopped']!r}")
        runs.append({"seed": seed, **run, "commit": commit()})
        errors.append(run["curve"][-1][1] / TEST_POINTS)
        print(f"seed {seed}: {errors[-1]:.2%} wrong after {run['n']}, {run['seconds']:.2f} s a point", flush=True)
    print(f"median {statistics.median(errors):.2%}, from {min(errors):.2%} to {max(errors):.2%}")
    if args.out:
        lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in runs)
        args.out.write_text(f'{{"strategy": {json.dumps(strategy)}, "runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
