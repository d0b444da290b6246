"""What the cheap fidelity saves: the slepton contour of hadronised events, with and without the parton level.

    python -m benchmarks.slepton_fidelities generate    # an hour on one core; goes on where it stopped
    python -m benchmarks.slepton_fidelities tabulate    # half an hour; goes on where it stopped
    python -m benchmarks.slepton_fidelities compare     # how the two levels differ
    python -m benchmarks.slepton_fidelities run --seeds 5 --arms dear both
    python -m benchmarks.slepton_fidelities report

The plane is a lattice of 20 GeV in both masses, and each of its points is known at
both fidelities: campaigns on the table take seconds per ask, and every seed meets the same physics. Production does not
depend on the neutralino mass, so that the events of a slepton mass are generated once; each neutralino mass decays and
measures them with random numbers of its own.

* "bare" replaces the parton level by a rougher one, without jets and soft momentum: no event has one jet.
* What an evaluation returns comes from 5000 pairs, as in the example, with its Monte Carlo error.
* The reference is the limit of all hadronised pairs, 10000 a point: these include the 5000 of the evaluation.
* Error: fraction of the lattice on the other side of mu = 1 than the reference. Points whose reference lies within two
  of its Monte Carlo errors of 1 are not counted: nobody knows their side.
* Cost: seconds of `excursion.examples.sleptons.SECONDS`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from excursion.campaign import Campaign, Strategy
from excursion.data import Job, Outcome
from excursion.evaluators.pyhf import CountsModel, PyhfEvaluator
from excursion.examples import sleptons
from excursion.problem import Problem
from excursion.result import Result
from excursion.space import Parameter, ParameterSpace

ROOT = Path(__file__).parents[1]
#: Generated events, not for the repository.
EVENTS = ROOT / "out" / "slepton_events"
TABLE = ROOT / "benchmarks" / "results" / "slepton_fidelities.csv"
CURVES = ROOT / "benchmarks" / "results" / "slepton_fidelities.json"

TASKS = ("observed", "expected")
_COLUMNS = (
    "parton",
    "parton_sd",
    "parton_bare",
    "parton_bare_sd",
    "hadron",
    "hadron_sd",
    "hadron_all",
    "hadron_all_sd",
)
FIDELITIES: tuple[sleptons.Fidelity, ...] = ("parton", "hadron")

#: Slepton masses of the lattice in GeV, from coarse to fine.
MASSES = tuple(sorted(range(200, 801, 20), key=lambda m: (m % 80 != 0, m % 40 != 0, m)))
NEUTRALINOS = tuple(range(0, 501, 20))
GAP = 20.0

#: Pairs generated per mass, in runs of so many with a seed of their own; of one evaluation; of the reference.
GENERATED = {"parton": 20000, "hadron": 10000}
RUN, ASKED = 2500, 5000
DECAYS = 4


# -------------------------------------------------------------------------------------------------- the table


def generate() -> None:
    """Generate the events of each slepton mass."""
    EVENTS.mkdir(parents=True, exist_ok=True)
    for mass in MASSES:
        for fidelity in FIDELITIES:
            path = EVENTS / f"{fidelity}-{mass}.npz"
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
            )
            part.rename(path)
            print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


@dataclass(frozen=True)
class Stored:
    """Yields from stored events: what `Simulation` would have found with them."""

    production: sleptons.Production

    def __call__(self, x: Mapping[str, float], seed: int) -> sleptons.SignalYields:
        events = sleptons.detect(self.production, x["m_chi"], DECAYS, np.random.default_rng(seed))
        produced = 1000.0 * sleptons.cross_section(x["m_slepton"]) * sleptons.LUMINOSITY
        nominal, errors = sleptons.fill(*sleptons.select(events), len(self.production.sleptons), produced)
        return sleptons.SignalYields(tuple(nominal.tolist()), tuple(errors.tolist()))


def stored(fidelity: str, mass: int) -> sleptons.Production:
    """All generated events of a slepton mass."""
    with np.load(EVENTS / f"{fidelity}-{mass}.npz") as found:
        return sleptons.Production(*(found[name].astype(float) for name in ("sleptons", "jets", "soft")))


def part(production: sleptons.Production, start: int, events: int) -> sleptons.Production:
    """Some of the events."""
    chosen = slice(start, start + events)
    return sleptons.Production(production.sleptons[chosen], production.jets[chosen], production.soft[chosen])


def bare(production: sleptons.Production) -> sleptons.Production:
    """Pairs that recoil from nothing seen: no jets, no soft momentum. Wrong about both regions."""
    return replace(production, jets=np.zeros_like(production.jets), soft=np.zeros_like(production.soft))


def tabulate() -> None:
    """The limits of every point: of an evaluation at each fidelity, and of all events."""
    folder = EVENTS.parent / "slepton_limits"
    folder.mkdir(parents=True, exist_ok=True)
    model = CountsModel(**sleptons.background_spec())
    for mass in MASSES:
        path = folder / f"{mass}.json"
        if path.exists() or not all((EVENTS / f"{f}-{mass}.npz").exists() for f in FIDELITIES):
            continue
        started, rows = time.perf_counter(), []
        events = {f: stored(f, mass) for f in FIDELITIES}
        for i, chi in enumerate(NEUTRALINOS):
            if mass - chi <= GAP:
                continue
            row: dict[str, Any] = {"m_slepton": mass, "m_chi": chi}
            used = [(f, "", part(events[f], i % (GENERATED[f] // ASKED) * ASKED, ASKED)) for f in FIDELITIES]
            used.append(("hadron", "_all", events["hadron"]))
            used.append(("parton", "_bare", bare(used[0][2])))
            for number, (fidelity, name, pairs) in enumerate(used):
                job = Job({"m_slepton": float(mass), "m_chi": float(chi)}, seed=10 * i + number)
                outcome = PyhfEvaluator(Stored(pairs), model).evaluate(job)
                for task, value in outcome.values.items():
                    known = task not in outcome.bounds
                    row[f"{task}_{fidelity}{name}"] = value if known else math.inf
                    row[f"{task}_{fidelity}{name}_sd"] = math.sqrt(outcome.variances.get(task, 0.0))
            rows.append(row)
        path.write_text(json.dumps(rows))
        print(f"{mass} GeV: {len(rows)} points in {time.perf_counter() - started:.0f} s", flush=True)
    columns = ["m_slepton", "m_chi"]
    columns += [f"{t}_{f}" for t in TASKS for f in _COLUMNS]
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for mass in sorted(MASSES):
            path = folder / f"{mass}.json"
            if path.exists():
                writer.writerows([[f"{row[c]:.4g}" for c in columns] for row in json.loads(path.read_text())])


@dataclass(frozen=True)
class Lattice:
    """The table: points (n, 2) and named columns (n,)."""

    x: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, path: Path = TABLE) -> Lattice:
        """From the file that `tabulate` wrote."""
        with path.open() as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
        return cls(np.stack([columns["m_slepton"], columns["m_chi"]], axis=1), columns)

    @property
    def rows(self) -> dict[tuple[float, float], int]:
        """Where a point is."""
        return {(a, b): i for i, (a, b) in enumerate(self.x.tolist())}

    def known(self, task: str) -> np.ndarray:
        """Where the reference is sure of its side: farther from 1 than two Monte Carlo errors, (n,) bool."""
        mu, sd = (self.columns[f"{task}_{name}"] for name in ("hadron_all", "hadron_all_sd"))
        return np.abs(mu - 1) > 2 * sd

    def outcome(self, row: int, fidelity: str) -> Outcome:
        """What an evaluation returns, by the name of its column."""
        values = {task: float(self.columns[f"{task}_{fidelity}"][row]) for task in TASKS}
        spread = {task: float(self.columns[f"{task}_{fidelity}_sd"][row]) for task in TASKS}
        return Outcome.of(values, variances={t: spread[t] ** 2 for t in TASKS if math.isfinite(values[t])})


def compare() -> None:
    """How the limits of the two levels differ."""
    lattice = Lattice.read()
    split = lattice.x[:, 0] - lattice.x[:, 1]
    print(f"{len(lattice.x)} points")
    for cheap, task in itertools.product(("parton", "parton_bare"), TASKS):
        parton, hadron, known = (
            lattice.columns[f"{task}_{cheap}"],
            lattice.columns[f"{task}_hadron_all"],
            lattice.known(task),
        )
        both = np.isfinite(parton) & np.isfinite(hadron)
        a, b = np.log10(parton[both]), np.log10(hadron[both])
        near, ratio = np.abs(b) < 0.5, 10 ** (a - b)
        print(
            f"{task}, {cheap}: correlation of log mu {np.corrcoef(a, b)[0, 1]:.4f}, of tanh log10 mu "
            f"{np.corrcoef(np.tanh(a), np.tanh(b))[0, 1]:.4f}; mu cheap / mu dear within a factor 3 of the contour: "
            f"median {np.median(ratio[near]):.3f}, 5 % to 95 % {np.quantile(ratio[near], [0.05, 0.95]).round(3)}; "
            f"on the other side of mu = 1: {np.mean(((parton >= 1) != (hadron >= 1))[known]):.2%} of {known.sum()}"
        )
        print("  ratio by mass splitting:", end="")
        for low, high in ((20, 60), (60, 100), (100, 150), (150, 250), (250, 400), (400, 800)):
            inside = (split[both] > low) & (split[both] <= high)
            print(
                f"  {low}-{high} GeV: {np.median(ratio[inside]):.3f} +- {np.std(a[inside] - b[inside]):.3f} dex", end=""
            )
        print()


# ----------------------------------------------------------------------------------------------- the campaigns


def problem(fidelities: tuple[sleptons.Fidelity, ...]) -> Problem:
    """The example's, on the lattice and with the two limits that are read most."""
    whole = sleptons.problem(2, fidelities, ASKED)
    space = ParameterSpace(
        (
            Parameter("m_slepton", 200, 800, unit="GeV", step=20),
            Parameter("m_chi", 0, 500, unit="GeV", step=20),
        ),
        whole.space.constraints,
    )
    return replace(whole, space=space, tasks=tuple(t for t in whole.tasks if t.name in TASKS))


#: Which fidelities an arm may ask, and what stands for them in the table.
ARMS: dict[str, dict[sleptons.Fidelity, str]] = {
    "dear": {},
    "both": {"parton": "parton", "hadron": "hadron"},
    "bare": {"parton": "parton_bare", "hadron": "hadron"},
}


def errors(result: Result, lattice: Lattice) -> dict[str, float]:
    """Task -> fraction of the lattice on the wrong side."""
    found = {}
    for task in TASKS:
        mu, known = lattice.columns[f"{task}_hadron_all"], lattice.known(task)
        found[task] = float(np.mean((result.excursion_probability(lattice.x[known], task) > 0.5) != (mu[known] >= 1)))
    return found


def curve(arm: str, seed: int, budget: float, batch: int, lattice: Lattice) -> list[dict[str, Any]]:
    """One campaign: after each batch the trials of each fidelity, their cost in dear ones, the errors, seconds."""
    levels, rows = ARMS[arm], lattice.rows
    sought = problem(tuple(levels))
    campaign = Campaign.create("memory://", f"{arm} {seed}", sought, Strategy(seed=seed))
    steps: list[dict[str, Any]] = []
    while sought.spent(campaign.trials) < budget:
        started = time.perf_counter()
        asked = campaign.ask(batch)
        seconds = time.perf_counter() - started
        for trial in asked:
            row = rows[trial.x["m_slepton"], trial.x["m_chi"]]
            campaign.tell(trial.number, lattice.outcome(row, levels.get(trial.fidelity, "hadron")))
        trials = campaign.trials
        dear = sum(sought.level(t.fidelity) == 0 for t in trials)
        step = {"dear": dear, "cheap": len(trials) - dear, "cost": round(sought.spent(trials), 4)}
        if dear >= 2:
            step |= {task: round(e, 5) for task, e in errors(Result.of(campaign), lattice).items()}
        steps.append(step | {"seconds": round(seconds, 2)})
    return steps


def run(arms: list[str], seeds: int, budget: float, batch: int) -> None:
    """Run campaigns that are not in the file of curves."""
    lattice = Lattice.read()
    curves = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    for seed in range(seeds):
        for arm in arms:
            key = f"{arm}/{seed}"
            if key in curves:
                continue
            started = time.perf_counter()
            curves[key] = curve(arm, seed, budget, batch, lattice)
            CURVES.write_text(json.dumps(curves, indent=None, separators=(",", ":")))
            last = curves[key][-1]
            print(f"{key}: {time.perf_counter() - started:.0f} s, {last}", flush=True)


def needed(steps: list[dict[str, Any]], goal: float, error: Callable[[Mapping[str, Any]], float], what: str) -> float:
    """From how much of `what` on the error stays at or below the goal; infinite if it does not."""
    found = math.inf
    for step in steps:
        if "observed" in step:
            found = math.inf if error(step) > goal else min(found, step[what])
    return found


def report() -> None:
    """Evaluations to reach and keep an error: median and range over the seeds."""
    curves = json.loads(CURVES.read_text())
    for goal in (0.02, 0.01, 0.005):
        for name, error in (
            ("observed", lambda s: s["observed"]),
            ("expected", lambda s: s["expected"]),
            ("the worse of both", lambda s: max(s["observed"], s["expected"])),
        ):
            for arm in ARMS:
                found = [steps for key, steps in curves.items() if key.startswith(f"{arm}/")]
                if not found:
                    continue
                line = f"{100 * goal:g} % of {name:18s} {arm:5s} {len(found)} seeds:"
                for what in ("dear", "cheap", "cost"):
                    n = [needed(steps, goal, error, what) for steps in found]
                    line += f"  {what} {np.median(n):g} ({min(n):g} to {max(n):g})"
                print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("generate", "tabulate", "compare", "run", "report"))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60, help="in dear evaluations")
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.arms, arguments.seeds, arguments.budget, arguments.batch)
    else:
        {"generate": generate, "tabulate": tabulate, "compare": compare, "report": report}[arguments.what]()


if __name__ == "__main__":
    main()
