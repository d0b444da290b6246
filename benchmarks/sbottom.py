"""Two likelihoods of one search: which sbottom masses does ATLAS-SUSY-2018-31 exclude? Three masses, two fidelities.

    export EXCURSION_DATA=...   # sbottom_3d/: efficiencies, cross-sections, the simplified and the full likelihood
    python -m benchmarks.sbottom shapes               # once, ten minutes: the reference (results/sbottom_shapes.csv)
    python -m benchmarks.sbottom check                # the reference and ours against pyhf; seconds per limit
    python -m benchmarks.sbottom run [--seeds 5]      # campaigns; goes on where it stopped

sbottom -> b N2 -> b h N1 (arXiv:1908.03122), m_sbottom > m_n2 > m_n1. Region A counts events in three bins of m_eff;
its signal efficiencies are published on two planes of masses (m_n1 = 60 GeV; m_n2 = m_n1 + 130 GeV). Searched is the
convex hull of these 218 points: nothing is known outside. Between them efficiencies are interpolated,

* map "smooth": the logarithm of the efficiency (plus 1e-5, a few simulated events) as a sum of distances to the points
  and a constant (in three dimensions the interpolant of least bending energy), in m_sbottom, m_sbottom - m_n2 and
  m_n2 - m_n1: the kinematics follow the splittings;
* map "linear": the efficiency linear in the masses over a Delaunay triangulation, as reinterpretation tools do it. Its
  long thin tetrahedra between the two planes make ridges that no detector has: the hard case.

Yields are cross-section (a power law between the published values) x 139/fb x efficiency. The dear fidelity is the full
HistFactory likelihood (63 parameters), the cheap one its simplified likelihood (two parameters). Both are without VRtt,
a validation region, which is not part of the analysis's fit: the published CLs at (1400, 950, 60) GeV, .021 observed
and .065 expected (pyhf's tests), is .021 and .061 without it, .023 and .053 with it. The signal has no uncertainty and
is absent from the control region.

The reference: limits are inversely proportional to the yields, mu_95(c s) = mu_95(s) / c, so that mu_95 times the sum
of the yields is a function of two fractions. It was computed on a triangular grid of these with both likelihoods and is
interpolated (see "check" for the error).

Data: SModelS database and HEPData ins1748602; cite these, not the files.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, RBFInterpolator
from scipy.spatial import ConvexHull

from benchmarks.play import Game, needed, play
from benchmarks.suite.problems import data_directory
from excursion.data import Job, Outcome
from excursion.evaluators import Evaluator
from excursion.evaluators.pyhf import Signal, WorkspaceModel, limits
from excursion.problem import Fidelity, Problem, Task
from excursion.proposal import Strategy
from excursion.space import ParameterSpace

RESULTS = Path(__file__).parent / "results"
SHAPES = RESULTS / "sbottom_shapes.csv"

FIDELITIES = ("simplified", "full")
TASKS = ("observed", "expected")
LUMINOSITY = 139e3  # 1/pb
#: Columns of the efficiency map in the order of the bins of SR_meff.
BINS = ("SRA_L", "SRA_M", "SRA_H")
#: Added to efficiencies before their logarithm is taken: about what a few simulated events are.
FLOOR = 1e-5
#: The fractions of the yields in the first two bins of the reference are multiples of 1 / STEPS.
STEPS = 60
TEST_POINTS = 20_000
#: Misclassified fraction of the volume that is asked for, mean of the two contours.
GOAL = 0.015

Map = Literal["smooth", "linear"]


# --------------------------------------------------------------------------------------------- masses to yields


def _directory() -> Path:
    directory = data_directory()
    if directory is None or not (directory / "sbottom_3d").is_dir():
        raise FileNotFoundError("benchmarks.sbottom: needs the folder sbottom_3d, got none. Set EXCURSION_DATA")
    return directory / "sbottom_3d"


@functools.cache
def efficiency_map() -> tuple[np.ndarray, np.ndarray]:
    """Masses (n, 3) in GeV, m_sbottom, m_n2, m_n1, and efficiencies (n, 3) in the order of `BINS`."""
    with (_directory() / "efficiencies.csv").open() as file:
        rows = list(csv.DictReader(file))
    masses = np.array([[float(r[m]) for m in ("m_sb", "m_n2", "m_n1")] for r in rows])
    return masses, np.array([[float(r[b]) for b in BINS] for r in rows])


def cross_section(m_sbottom: np.ndarray) -> np.ndarray:
    """Cross-section of sbottom pairs at 13 TeV in pb, a power law of the mass between the published values."""
    lines = (_directory() / "xsec_pb.csv").read_text().splitlines()
    table = np.array([[float(v) for v in line.split(",")] for line in lines if not line.startswith("#")])
    return np.exp(np.interp(np.log(m_sbottom), np.log(table[:, 0]), np.log(table[:, 1])))


def _splittings(masses: np.ndarray) -> np.ndarray:
    """m_sbottom, m_sbottom - m_n2, m_n2 - m_n1 in 100 GeV."""
    return np.stack([masses[:, 0], masses[:, 0] - masses[:, 1], masses[:, 1] - masses[:, 2]], axis=1) / 100


@functools.cache
def _interpolant(kind: Map) -> LinearNDInterpolator | RBFInterpolator:
    masses, efficiencies = efficiency_map()
    if kind == "linear":
        return LinearNDInterpolator(masses, efficiencies)
    return RBFInterpolator(_splittings(masses), np.log(efficiencies + FLOOR), kernel="linear")


def yields(masses: np.ndarray, kind: Map = "smooth") -> np.ndarray:
    """Expected signal events (n, 3) in the bins of SR_meff at masses (n, 3) in GeV inside the map's hull."""
    masses = np.asarray(masses, dtype=np.float64)
    if kind == "linear":
        efficiency = _interpolant(kind)(masses)
    else:
        efficiency = np.maximum(np.exp(_interpolant(kind)(_splittings(masses))) - FLOOR, 0.0)
    return LUMINOSITY * cross_section(masses[:, :1]) * efficiency


@functools.cache
def space() -> ParameterSpace:
    """The convex hull of the map, .01 GeV inside its facets."""
    masses, _ = efficiency_map()
    facets = np.unique(ConvexHull(masses).equations.round(9), axis=0)
    inside = [f"{a:.9g} * m_sbottom + {b:.9g} * m_n2 + {c:.9g} * m_n1 <= {-d - 0.01:.9g}" for a, b, c, d in facets]
    ranges = dict(zip(("m_sbottom", "m_n2", "m_n1"), zip(masses.min(0).tolist(), masses.max(0).tolist())))
    return ParameterSpace.of(ranges, inside)


# -------------------------------------------------------------------------------------------- yields to limits


@functools.cache
def likelihood(fidelity: str) -> WorkspaceModel:
    """The likelihood without its validation region."""
    spec = json.loads((_directory() / f"{fidelity}_likelihood.json").read_text())
    for part in ("channels", "observations"):
        spec[part] = [channel for channel in spec[part] if not channel["name"].startswith("VR")]
    return WorkspaceModel(spec)


def workspace(signal: np.ndarray, fidelity: str) -> dict:
    """The workspace (pyhf's format) with these yields (3,) in the signal region."""
    model = likelihood(fidelity)
    bins = {name: [0.0] * n for name, n in model.layout.items()} | {"SR_meff": list(map(float, signal))}
    return model.workspace(Signal(bins))


@dataclass(frozen=True)
class Sbottom(Evaluator):
    """Masses -> observed and expected limit on the signal strength, from the likelihood that the job names."""

    map: Map = "smooth"

    def evaluate(self, job: Job) -> Outcome:
        """See `Evaluator.evaluate`; a job without a fidelity means the full likelihood."""
        fidelity = job.fidelity or "full"
        masses = np.array([[job.x[name] for name in ("m_sbottom", "m_n2", "m_n1")]])
        found = limits(workspace(yields(masses, self.map)[0], fidelity))
        bounds = {t: side for t, side in found.bounds.items() if t in TASKS}
        return Outcome.of({t: found.values[t] for t in TASKS}, bounds=bounds, info={"seconds": found.seconds})


# -------------------------------------------------------------------------------------------------- reference


def compute_shapes() -> None:
    """Limits times the sum of the yields, on the grid of fractions; goes on where it stopped."""
    done = set()
    if SHAPES.exists():
        with SHAPES.open() as file:
            done = {(int(r["first"]), int(r["second"])) for r in csv.DictReader(file)}
    with SHAPES.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(["first", "second", *(f"{f}_{t}" for f in FIDELITIES for t in TASKS)])
        for i in range(STEPS + 1):
            for j in range(STEPS + 1 - i):
                if (i, j) in done:
                    continue
                signal = np.array([i, j, STEPS - i - j]) * (10 / STEPS)
                found = [limits(workspace(signal, f)).values for f in FIDELITIES]
                writer.writerow([i, j, *(f"{10 * v[t]:.7g}" for v in found for t in TASKS)])
                file.flush()


@functools.cache
def _shapes() -> tuple[np.ndarray, np.ndarray]:
    """Fractions (n, 2) and limits times the sum of the yields (n, 2 fidelities, 2 tasks)."""
    with SHAPES.open() as file:
        rows = list(csv.DictReader(file))
    at = np.array([[int(r["first"]), int(r["second"])] for r in rows]) / STEPS
    return at, np.array([[[float(r[f"{f}_{t}"]) for t in TASKS] for f in FIDELITIES] for r in rows])


@functools.cache
def _shape_interpolant(every: int = 1) -> CloughTocher2DInterpolator:
    at, values = _shapes()
    steps = np.rint(at * STEPS).astype(int)
    kept = (steps % every == 0).all(1)
    return CloughTocher2DInterpolator(at[kept], np.log(values[kept].reshape(kept.sum(), -1)))


def reference(signal: np.ndarray, every: int = 1) -> np.ndarray:
    """Limits (n, 2 fidelities, 2 tasks) of yields (n, 3), interpolated; `every` coarsens the grid, to see the error."""
    total = signal.sum(axis=1, keepdims=True)
    # On the edge of the triangle rounding must not lead out of it.
    fractions = signal[:, :2] / total
    fractions = 1e-12 + (1 - 3e-12) * fractions
    logs = _shape_interpolant(every)(fractions)
    return (np.exp(logs) / total).reshape(len(signal), len(FIDELITIES), len(TASKS))


def where_counted(n: int = TEST_POINTS) -> np.ndarray:
    """Masses (n, 3), uniform in the region that is searched."""
    region = space()
    return region.from_unit(region.sample(0, n, 987_654)).numpy()


def check(points: int = 40, theirs: int = 3) -> None:
    """Print how exact the reference is, whether ours equals pyhf, and what a limit costs."""
    import pyhf

    x = where_counted(4000)
    near = [x[np.argsort(np.abs(np.log(reference(yields(x))[:, 1, i])))[:: 400 // points]][:points] for i in (0, 1)]
    at = yields(np.concatenate(near))
    print(f"reference, {len(at)} points near the contours: largest deviation from a fit; seconds per limit")
    for k, fidelity in enumerate(FIDELITIES):
        found = [limits(workspace(s, fidelity)) for s in at]
        exact = np.array([[f.values[t] for t in TASKS] for f in found])
        off = np.abs(reference(at)[:, k] / exact - 1).max()
        coarse = np.abs(reference(at, 2)[:, k] / exact - 1).max()
        seconds = statistics.median(f.seconds for f in found)
        print(f"  {fidelity:10}: {off:.1e} (half the steps: {coarse:.1e}); {seconds:.3f} s", flush=True)
    print("pyhf's toms748_scan (scipy): seconds, deviation of ours")
    pyhf.set_backend("numpy", "scipy")
    for fidelity in FIDELITIES:
        spent, off = [], 0.0
        for s in at[:: len(at) // theirs][:theirs]:
            work = pyhf.Workspace(workspace(s, fidelity))
            model = work.model()
            bounds = model.config.suggested_bounds()
            bounds[model.config.poi_index] = (0, 20)
            began = time.perf_counter()
            observed, expected = pyhf.infer.intervals.upper_limits.toms748_scan(
                work.data(model), model, 0.02, 20, rtol=1e-4, par_bounds=bounds
            )
            spent.append(time.perf_counter() - began)
            ours = limits(workspace(s, fidelity)).values
            off = max(off, abs(ours["observed"] / float(observed) - 1), abs(ours["expected"] / float(expected[2]) - 1))
        print(f"  {fidelity:10}: {statistics.median(spent):.2f} s, {off:.1e}", flush=True)


# -------------------------------------------------------------------------------------------------- campaigns

#: What an evaluation of the full likelihood costs in evaluations of the simplified one.
COST = 30.0


@dataclass(frozen=True)
class Setting:
    """One way to run the campaign.

    Attributes:
        name: for tables and files.
        map: how efficiencies are interpolated.
        dear: evaluations of the full likelihood, or their worth.
        batch: points of a round.
        table: evaluations of the simplified likelihood at space-filling points that are known before.
        ask_cheap: whether the campaign may ask for more of them.
    """

    name: str
    map: Map = "smooth"
    dear: int = 30
    batch: int = 2
    table: int = 0
    ask_cheap: bool = False


SETTINGS = (
    Setting("table of 1000", table=1000),
    Setting("table of 300", table=300),
    Setting("asked", ask_cheap=True, dear=15, batch=5),
    Setting("full only", dear=100),
    Setting("linear, table of 3000", map="linear", table=3000),
    Setting("linear, full only", map="linear", dear=200, batch=5),
)


def problem(setting: Setting) -> Problem:
    """The observed and the expected contour mu_95 = 1."""
    cheap = Fidelity("simplified", cost=1.0 if setting.ask_cheap else None)
    some = setting.ask_cheap or setting.table
    fidelities = (cheap, Fidelity("full", cost=COST)) if some else ()
    return Problem(space(), tuple(Task(t, (1.0,)) for t in TASKS), fidelities=fidelities)


def cheap_table(rows: int, kind: Map, seed: int, out: Path) -> list[dict[str, float]]:
    """Limits of the simplified likelihood at space-filling points; kept in a file."""
    path = out / f"{kind}-table-{rows}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    region = space()
    points = [region.point(x) for x in region.from_unit(region.sample(0, rows, 10_000 + seed))]
    evaluator = Sbottom(kind)
    table = [p | dict(evaluator.evaluate(Job(p, fidelity="simplified")).values) for p in points]
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return table


def game(setting: Setting, seed: int, out: Path) -> Game:
    """The campaign of a setting."""
    evaluator = Sbottom(setting.map)
    x = where_counted()
    return Game(
        name=f"{setting.name.replace(',', '').replace(' ', '-')}-{seed}",
        problem=problem(setting),
        strategy=Strategy(seed=seed),
        evaluate=lambda t: evaluator.evaluate(Job(t.x, t.number, t.seed, t.fidelity)),
        points=space().to_unit(torch.from_numpy(x)),
        above=reference(yields(x, setting.map))[:, 1] >= 1,
        batch=setting.batch,
        until=setting.dear,
        table=(cheap_table(setting.table, setting.map, seed, out), "simplified") if setting.table else None,
    )


def one(setting: Setting, seed: int, out: Path, minutes: float) -> dict:
    """The curve of one campaign."""
    return {"setting": setting.name, "seed": seed, "curve": play(game(setting, seed, out), out, minutes)}


def show(results: list[dict]) -> str:
    """Errors after so many evaluations of the full likelihood, or their worth: median over seeds and the worst one."""
    rows = []
    for setting in dict.fromkeys(r["setting"] for r in results):
        curves = [r["curve"] for r in results if r["setting"] == setting]
        rows.append(f"{setting}, {len(curves)} seeds")
        for n in (5, 10, 15, 20, 25, 30, 40, 60, 80, 100, 150, 200):
            at = [[line for line in c if line["spent"] <= n][-1:] for c in curves if c[-1]["spent"] > n - 2]
            if not at or not all(at):
                continue
            parts = []
            for task in TASKS:
                wrong = [line["errors"][task] for (line,) in at]
                parts.append(f"{task} {100 * statistics.median(wrong):5.2f} % (worst {100 * max(wrong):5.2f} %)")
            dear = statistics.median(line["dear"] for (line,) in at)
            rows.append(f"  worth {n:3d}, {dear:g} full: " + ", ".join(parts))
        rows.append(f"  to {100 * GOAL:g} %: {sorted(needed(c, GOAL, TASKS, 'spent') for c in curves)}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("shapes", "check", "run"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", help="only these, by name, separated by semicolons")
    parser.add_argument("--minutes", type=float, default=60.0, help="of one campaign; the next call goes on")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/sbottom"))
    parser.add_argument("--results", type=Path, help="write the curves to this JSON file")
    args = parser.parse_args()
    if args.command != "run":
        {"shapes": compute_shapes, "check": check}[args.command]()
        return
    only = args.settings.split(";") if args.settings else None
    settings = [s for s in SETTINGS if only is None or s.name in only]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(one, s, k, args.out, args.minutes) for k in range(args.seeds) for s in settings]
        results = [f.result() for f in futures]
    print(show(results))
    if args.results:
        command = f"python -m benchmarks.sbottom run --seeds {args.seeds}"
        lines = ",\n".join(json.dumps(r) for r in results)
        args.results.write_text(json.dumps({"command": command})[:-1] + ', "results": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
