"""All benchmarks that fit on a laptop: evaluations to accuracy, seconds per ask, seconds per limit."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = (
    ("benchmarks.levelset", "--budget", "60", "--problems", "fast_2D", "--out", "benchmarks/results/fast_2D.json"),
    ("benchmarks.levelset", "--budget", "90", "--problems", "fast_3D", "--out", "benchmarks/results/fast_3D.json"),
    ("benchmarks.ask",),
    ("benchmarks.pyhf_limits", "--ours"),
)


def main() -> None:
    for command in COMMANDS:
        print("\n$ python -m", " ".join(command), flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    main()
