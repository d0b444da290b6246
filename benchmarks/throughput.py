"""How many trials per second real workers claim and tell, and how a store grows with its trials.

    python -m benchmarks.throughput --postgres auto --workers 8 --trials 2000 --out benchmarks/results/throughput.json

`--postgres auto` starts a server of its own (see `benchmarks.postgres`); a URL names an empty database. The rate is
that of `excursion work --no-ask` processes with an evaluator that does nothing, from the first claim to the last value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from excursion import Campaign, Parameter, ParameterSpace, Problem, Strategy, Task
from excursion.data import Outcome, Proposal
from excursion.store import open_store

from .postgres import server


def make(store: str, folder: Path, name: str = "throughput") -> Campaign:
    """An empty campaign in two parameters whose evaluator does nothing, in Python."""
    (folder / "nothing.py").write_text("def f(p):\n    return p['x'] + p['y']\n")
    problem = Problem(ParameterSpace((Parameter("x", 0, 1), Parameter("y", 0, 1))), (Task("f", (0.5,)),))
    settings = {"kind": "python", "python": "nothing.py:f", "folder": str(folder)}
    return Campaign.create(store, name, problem, Strategy(), {"evaluator": settings, "run": {}})


def proposals(campaign: Campaign, n: int) -> list[Proposal]:
    """Space-filling points."""
    u = campaign.problem.space.sample(0, n, 0)
    return [Proposal({"x": float(a), "y": float(b)}, 0) for a, b in u]


def rate(store: str, folder: Path, workers: int, trials: int) -> dict[str, Any]:
    """Trials per second that worker processes claim, evaluate and tell."""
    campaign = make(store, folder)
    log = open(folder / "workers.log", "wb")  # noqa: SIM115
    words = [sys.executable, "-m", "excursion.cli", "work", store, campaign.name, "--no-ask"]
    started = [subprocess.Popen(words, stdout=log, stderr=log) for _ in range(workers)]
    try:
        # All are there before the work is: each does one trial, which takes a while.
        time.sleep(5.0 + workers)
        campaign.store.add(campaign.name, proposals(campaign, trials), after=0, seeds=range(trials))
        deadline = time.monotonic() + 600
        while campaign.store.counts(campaign.name).get("complete", 0) < trials:
            if time.monotonic() > deadline or all(p.poll() is not None for p in started):
                raise RuntimeError(f"{campaign.store.counts(campaign.name)}: {(folder / 'workers.log').read_text()}")
            time.sleep(0.2)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        log.close()
    events = campaign.store.events(campaign.name)
    claims, tells = ([e for e in events if e.kind == kind] for kind in ("claim", "tell"))
    done = campaign.trials
    assert sorted(t.told for t in done) == list(range(trials))
    seconds = max(e.time for e in tells) - min(e.time for e in claims)
    shares = [sum(t.owner == owner for t in done) for owner in {t.owner for t in done}]
    return {
        "workers": workers,
        "trials": trials,
        "seconds": round(seconds, 3),
        "per_second": round(trials / seconds, 1),
        "shares": sorted(shares),
    }


def growth(store: str, folder: Path, sizes: tuple[int, ...], size: Any) -> list[dict[str, Any]]:
    """Bytes, and seconds to open a campaign, to count, to read all, to claim and tell one, at several sizes."""
    campaign = make(store, folder, "growth")
    found = []
    before, there = size(), 0
    for n in sizes:
        points, outcome = proposals(campaign, n)[there:], Outcome.of(0.5, variances={"f": 0.01}, info={"seconds": 1.0})
        began = time.perf_counter()
        for start in range(0, len(points), 5000):
            part = points[start : start + 5000]
            campaign.store.record(
                campaign.name, part, [outcome] * len(part), after=there, seeds=range(there, there + len(part))
            )
            there += len(part)
        filled = time.perf_counter() - began
        timed: dict[str, float] = {}
        opened: list[Campaign] = []

        def measure(what: str, call: Any, timed: dict[str, float] = timed) -> Any:
            t = time.perf_counter()
            value = call()
            timed[what] = round(time.perf_counter() - t, 5)
            return value

        measure("open", lambda o=opened: o.append(Campaign.open(open_store(store, create=False), campaign.name)))
        fresh = opened[0]
        counts = measure("counts", lambda f=fresh: f.store.counts(f.name))
        assert counts == {"complete": n}, counts
        measure("trials_first", lambda f=fresh: f.trials)
        measure("trials_again", lambda f=fresh: f.trials)
        measure("events", lambda f=fresh: f.store.events(f.name))
        fresh.store.add(fresh.name, proposals(fresh, 1), after=n, seeds=[0])
        trial = measure("claim", lambda f=fresh: f.store.claim(f.name, "benchmark", lease=60))
        measure("checked", lambda f=fresh, t=trial, o=outcome: f.checked(t.number, o))
        measure("tell", lambda f=fresh, t=trial, o=outcome: f.store.finish(f.name, t.number, o))
        there += 1
        row = {"trials": n, "bytes": size() - before, "fill_per_second": round(len(points) / filled), "seconds": timed}
        print(json.dumps(row), flush=True)
        found.append(row)
    return found


def sqlite_size(path: str) -> int:
    return sum(os.path.getsize(p) for p in (path, f"{path}-wal") if os.path.exists(p))


def postgres_size(url: str) -> int:
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", help="URL of an empty database, or 'auto'")
    parser.add_argument("--no-sqlite", action="store_true")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--out")
    given = parser.parse_args()
    sizes = tuple(int(n) for n in given.sizes.split(",") if n)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    result: dict[str, Any] = {"machine": machine, "load_before": round(os.getloadavg()[0], 2)}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not given.no_sqlite:
            for workers in sorted({1, 4, given.workers}):
                here = folder / f"sqlite{workers}"
                here.mkdir()
                row = rate(str(here / "a.db"), here, workers, given.trials)
                print("sqlite", json.dumps(row), flush=True)
                result.setdefault("sqlite", []).append(row)
            if sizes:
                path = str(folder / "growth.db")
                result["sqlite_growth"] = growth(path, folder, sizes, lambda: sqlite_size(path))
        if given.postgres:
            own = stack.enter_context(server()) if given.postgres == "auto" else None
            for workers in sorted({1, given.workers}) if own else [given.workers]:
                here = folder / f"postgres{workers}"
                here.mkdir()
                row = rate(own.new().url if own else given.postgres, here, workers, given.trials)
                print("postgres", json.dumps(row), flush=True)
                result.setdefault("postgres", []).append(row)
            if own and sizes:
                url = own.new().url
                result["postgres_growth"] = growth(url, folder, sizes, lambda: postgres_size(url))
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
