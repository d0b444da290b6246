"""What each engine adds to an evaluation: ``python -m benchmarks.overhead [--trials 400] [--store sqlite]``.

Trials that cost nothing are queued beforehand and run through `runner.run`, after some that start the processes. What
is left is claiming, sending, evaluating, checking and telling: milliseconds from the first claim to the last value,
divided by the number of trials.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from excursion.campaign import Campaign
from excursion.evaluators.python import Function
from excursion.executors import Local, recipe
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.runner import run

RESULTS = Path(__file__).parent / "results" / "overhead.json"
ENGINES = ("inline", "threads", "local", "dask", "parsl")
WARM = 20


@contextlib.contextmanager
def engine(name: str, workers: int) -> Iterator[Any]:
    """What `run` takes as its executor; None evaluates in this process."""
    if name == "inline":
        yield None
        return
    with (Local(threads=True) if name == "threads" else recipe(name)).open(workers) as executor:
        yield executor


def measure(name: str, url: str, trials: int, workers: int) -> float:
    """Milliseconds per trial."""
    problem = Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6))
    campaign = Campaign.create(url, name, problem, Strategy(design_size=trials, retries=0))
    campaign.add([{"x": (i + 0.5) / (trials), "y": 0.5} for i in range(trials)])
    function = Function(lambda p: p["x"])
    with engine(name, workers) as executor:
        settings: dict[str, Any] = {"workers": 1} if executor is None else {"executor": executor, "workers": workers}
        warm = Campaign.create("memory://", name, problem, Strategy(design_size=WARM, retries=0))
        warm.add([{"x": (i + 0.5) / WARM, "y": 0.5} for i in range(WARM)])
        run(warm, function, budget=WARM, progress=False, **settings)
        report = run(campaign, function, budget=trials, progress=False, **settings)
    assert (report.evaluations, report.failed) == (trials, 0)
    told = campaign.trials
    campaign.store.close()
    return 1000 * (max(t.finished or 0 for t in told) - min(t.started or 0 for t in told)) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULTS}")
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for name in given.engines:
        for store in ("memory", "sqlite"):
            with tempfile.TemporaryDirectory() as folder:
                times = [
                    measure(name, "memory://" if store == "memory" else f"{folder}/{i}.db", given.trials, given.workers)
                    for i in range(given.repeats)
                ]
            found.setdefault(name, {})[store] = round(min(times), 3)
        print(f"{name:8s}" + "".join(f"  {store} {ms:7.2f} ms" for store, ms in found[name].items()), flush=True)
    if given.write:
        kept = {
            "what": "ms per trivial trial, runner.run, best of repeats",
            "trials": given.trials,
            "workers": given.workers,
            "repeats": given.repeats,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "ms": found,
        }
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
