"""What the cheap fidelity saves: the slepton contour with hadronised events, with and without the parton level.

python -m benchmarks.slepton_fidelities generate     # an hour on one core; goes on where it stopped
python -m benchmarks.slepton_fidelities tabulate     # minutes
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from excursion.examples import sleptons

EVENTS = Path(__file__).parents[1] / "out" / "slepton_events"

#: Slepton masses of the lattice in GeV, from coarse to fine.
MASSES = tuple(sorted(range(200, 801, 20), key=lambda m: (m % 80 != 0, m % 40 != 0, m)))

#: Pairs generated per mass and fidelity, in runs of so many with a seed of their own.
GENERATED = {"parton": 20000, "hadron": 10000}
RUN = 2500


def generate(folder: Path = EVENTS) -> None:
    """Generate the events of each slepton mass, once for all neutralino masses: production does not depend on these."""
    folder.mkdir(parents=True, exist_ok=True)
    for mass in MASSES:
        for fidelity in ("parton", "hadron"):
            path = folder / f"{fidelity}-{mass}.npz"
            if path.exists():
                continue
            started = time.perf_counter()
            runs = [
                sleptons.generate(float(mass), 1.0, RUN, fidelity, 1000 * mass + 100 * (fidelity == "hadron") + k)
                for k in range(GENERATED[fidelity] // RUN)
            ]
            most = max(run.jets.shape[1] for run in runs)
            padded = [np.pad(run.jets, ((0, 0), (0, most - run.jets.shape[1]), (0, 0))) for run in runs]
            part = path.with_suffix(f".{os.getpid()}.npz")
            np.savez_compressed(
                part,
                sleptons=np.concatenate([run.sleptons for run in runs]),
                jets=np.concatenate(padded).astype(np.float32),
                soft=np.concatenate([run.soft for run in runs]).astype(np.float32),
                lengths=[len(run.sleptons) for run in runs],
            )
            part.rename(path)
            print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("generate",))
    arguments = parser.parse_args()
    {"generate": generate}[arguments.what]()


if __name__ == "__main__":
    main()
