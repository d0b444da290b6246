"""A synthetic campaign shaped like those of a large experiment: four parameters, six limits, two fidelities, failures.

    python -m benchmarks.atlas rounds [--seeds 3]     # a table of 5000 cheap points, then dear points in rounds of 200
    python -m benchmarks.atlas cheap [--seeds 5]      # dear evaluations needed with and without the cheap fidelity
    python -m benchmarks.atlas missing [--seeds 5]    # the same where 60 % of the observed limits are missing

Each prints its table and goes on where it stopped. All functions are analytic, so that the true contours are known
everywhere; all random numbers are fixed by seeds.

The model (masses in GeV) resembles a Z' that emits a dark Higgs boson s -> bb and vanishes into dark matter:

    ln s = 7 + 2 ln g - m_zp / 700 + ln B(m_s) + ln T(tan beta) - K(p)        events at signal strength 1
    B    = .15 + .75 / (1 + exp((m_s - 150) / 10))          the channel s -> WW opens: a kinematic edge
    T    = 4 t^2 / (1 + t^2)^2,  t = tan beta               mixing, largest at tan beta = 1
    K    = 240 tanh((700 / p)^4 / 240),  p = max(m_zp^2 - m_s^2, 0) / (2 m_zp)        no event passes where p is small

and the expected limit is (3 + 8 exp(-m_zp / 900)) / s: it spans more than a hundred decades, and light m_zp have no
sensitivity at all. The bands are the expected limit times e^(n w), of a width w that changes slowly; the observed limit
is the expected one times e^(w F), a fluctuation F(x) of about one standard deviation.

The dear fidelity has a Monte Carlo error of 5 % (more where few of `GENERATED` events pass), common to the six limits
as it comes from their common signal, and told with them. Limits above `BRACKET`, or without any event, are told as the
bound "above": 30 % of the values. In a corner of large couplings and large tan beta evaluations crash: 25 % of the
volume; errors are counted where they do not. The cheap fidelity is the table of a scan at truth level: the same limits
times a factor between .6 and 1.6, a smooth function of all four parameters, with 3 % noise, without a bracket and
without crashes. Where the cheap contours are taken for the dear ones, 5 % (observed) and 4.4 % (expected) of the volume
is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.play import Game, needed, play
from excursion.data import Outcome, Trial
from excursion.problem import Fidelity, Problem, Task
from excursion.proposal import Strategy
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import RECIPES, GaussianProcess, MultiTask, Observations, Posterior, Surrogate
from excursion.surrogate.joined import Independent

TASKS = ("observed", "expected_minus_2", "expected_minus_1", "expected", "expected_plus_1", "expected_plus_2")
SIGMAS = dict(zip(TASKS[1:], (-2, -1, 0, 1, 2)))
BANDS = tuple(t for t, n in SIGMAS.items() if n)
#: Misclassified fractions of the volume that are asked for.
GOALS = (0.05, 0.03, 0.02, 0.015)
#: Importance of the level sets: the observed and the expected one are what is wanted.
WEIGHTS = dict(zip(TASKS, (1.0, 0.25, 0.5, 1.0, 0.5, 0.25)))
#: Largest signal strength that a dear evaluation tries.
BRACKET = 20.0
#: Events that a dear evaluation generates.
GENERATED = 20_000
CHEAP_NOISE, DEAR_NOISE = 0.03, 0.05
TEST_POINTS = 30_000

SPACE = ParameterSpace(
    (
        Parameter("m_zp", 400.0, 4000.0, unit="GeV"),
        Parameter("m_s", 20.0, 600.0, unit="GeV"),
        Parameter("g", 0.4, 2.0, scale="log"),
        Parameter("tan_beta", 0.5, 10.0, scale="log"),
    )
)


# ------------------------------------------------------------------------------------------------ the functions


def _unit(x: np.ndarray) -> np.ndarray:
    return SPACE.to_unit(torch.from_numpy(x)).numpy()


def _momentum(x: np.ndarray) -> np.ndarray:
    """p (n,) in GeV."""
    return np.maximum(x[:, 0] ** 2 - x[:, 1] ** 2, 0.0) / (2 * x[:, 0])


def log_signal(x: np.ndarray) -> np.ndarray:
    """ln of the events at signal strength 1, (n,), at points x (n, 4)."""
    m_zp, m_s, g, t = x.T
    branching = 0.15 + 0.75 / (1 + np.exp((m_s - 150) / 10))
    mixing = 4 * t**2 / (1 + t**2) ** 2
    return 7 + 2 * np.log(g) - m_zp / 700 + np.log(branching) + np.log(mixing) - log_loss(_momentum(x))


def log_loss(p: np.ndarray) -> np.ndarray:
    """-ln of the share of events that pass the requirement on missing momentum, given the typical momentum in GeV."""
    return 240 * np.tanh((700 / np.maximum(p, 1e-3)) ** 4 / 240)


def log_limits(x: np.ndarray) -> np.ndarray:
    """ln of the true limits, (n, 6) in the order of `TASKS`."""
    u = _unit(x)
    expected = np.log(3 + 8 * np.exp(-x[:, 0] / 900)) - log_signal(x)
    width = 0.38 + 0.10 * np.tanh(2 * (u[:, 0] - 0.5)) + 0.04 * np.sin(3 * u[:, 1])
    fluctuation = np.sin(5.0 * u[:, 0] + 1.5 * u[:, 1] + 0.4) + 0.6 * np.cos(4.0 * u[:, 1] - 2.0 * u[:, 0])
    columns = [expected + width * fluctuation, *(expected + n * width for n in SIGMAS.values())]
    return np.stack(columns, axis=1)


def log_distortion(x: np.ndarray) -> np.ndarray:
    """ln of the factor between the cheap and the dear limits, (n,), from ln .6 to ln 1.6."""
    u = _unit(x)
    wave = np.sin(3.0 * u[:, 0] - 1.0) + 0.7 * np.cos(2.5 * u[:, 1] + u[:, 3]) + 0.5 * np.sin(4.0 * u[:, 2] * u[:, 3])
    return 0.5 * math.log(1.6 * 0.6) + 0.5 * math.log(1.6 / 0.6) * np.tanh(1.2 * wave)


def crash_probability(x: np.ndarray) -> np.ndarray:
    """Probability (n,) that an evaluation crashes: a corner of large g and large tan beta, of fuzzy edge."""
    u = _unit(x)
    return 1 / (1 + np.exp(-(u[:, 2] + u[:, 3] - 1.29) / 0.02))


# ---------------------------------------------------------------------------------------------- the evaluations


def dear(x: np.ndarray, seed: int, missing: float = 0.0, crashes: bool = True) -> Outcome:
    """A dear evaluation of one point (4,): the limits with their Monte Carlo error, bounds, or a crash.

    Args:
        x: the point.
        seed: of the evaluation.
        missing: probability that there is no observed limit.
        crashes: whether it may crash.
    """
    rng = np.random.default_rng(seed)
    crash, lost, shift = rng.random(), rng.random(), rng.standard_normal()
    x = x[None]
    if crashes and crash < crash_probability(x)[0]:
        return Outcome.failed("the width of the mediator exceeds its mass")
    passing = GENERATED * float(np.exp(-log_loss(_momentum(x)))[0])
    error = math.hypot(DEAR_NOISE, 1 / math.sqrt(max(passing, 4.0)))
    limits = np.exp(log_limits(x)[0] + error * shift) if passing >= 1 else np.full(len(TASKS), np.inf)
    values: dict[str, Any] = {t: min(float(mu), BRACKET) for t, mu in zip(TASKS, limits)}
    bounds = {t: "above" for t, mu in zip(TASKS, limits) if mu > BRACKET}
    variances = {t: (error * mu) ** 2 for t, mu in values.items() if t not in bounds}
    if lost < missing:
        values["observed"] = None
        bounds.pop("observed", None), variances.pop("observed", None)
    return Outcome.of(values, bounds=bounds, variances=variances)


def cheap_table(rows: int, seed: int, missing: float = 0.0) -> list[dict[str, float | None]]:
    """Rows of a scan at truth level: parameters and limits at space-filling points."""
    rng = np.random.default_rng(seed)
    x = SPACE.from_unit(SPACE.sample(0, rows, 40_000 + seed)).numpy()
    noise = CHEAP_NOISE * rng.standard_normal(rows)
    limits = np.exp(log_limits(x) + (log_distortion(x) + noise)[:, None])
    lost = rng.random(rows) < missing
    table = []
    for point, mu, gone in zip(x.tolist(), limits.tolist(), lost):
        row: dict[str, float | None] = dict(zip(SPACE.names, point)) | dict(zip(TASKS, mu))
        table.append(row | {"observed": None} if gone else row)
    return table


def where_counted(n: int = TEST_POINTS) -> tuple[torch.Tensor, np.ndarray]:
    """Points (m, 4) of the unit cube where evaluations do not crash, and whether each limit is >= 1 there, (m, 6)."""
    u = SPACE.sample(0, n, 987_654)
    x = SPACE.from_unit(u).numpy()
    viable = crash_probability(x) < 0.5
    return u[torch.from_numpy(viable)], log_limits(x[viable]) >= 0


# ------------------------------------------------------------------------------------------------- the campaigns


@dataclass(frozen=True)
class Apart(Surrogate):
    """A Gaussian process for each task that knows nothing of the other tasks: what correlations are compared with."""

    def to_json(self) -> dict[str, Any]:
        return {"type": "Apart"}

    def fit(self, data: Observations) -> Posterior:
        return Independent(tuple(GaussianProcess().fit(data.task(i)) for i in range(data.z.shape[1])))


@dataclass(frozen=True)
class Setting:
    """One way to run the campaign.

    Attributes:
        name: for tables and files.
        batch: dear points of a round.
        dear: points in all.
        cheap: rows of the table.
        missing: share of the observed limits that are.
        surrogate: the recipe of the belief.
    """

    name: str
    batch: int
    dear: int
    cheap: int = 0
    missing: float = 0.0
    surrogate: Surrogate = field(default_factory=GaussianProcess)


#: What each command runs.
EXPERIMENTS: dict[str, tuple[Setting, ...]] = {
    "rounds": (Setting("rounds", 200, 800, cheap=5000),),
    "cheap": (
        Setting("with the table", 20, 100, cheap=5000),
        Setting("dear only", 50, 600),
    ),
    "missing": (
        Setting("correlated", 25, 400, missing=0.6),
        Setting("independent", 25, 600, missing=0.6, surrogate=Apart()),
        Setting("one process", 25, 200, missing=0.6, surrogate=MultiTask()),
    ),
}


def problem(setting: Setting) -> Problem:
    """Six level sets mu_95 = 1, with the table as a fidelity where there is one."""
    tasks = tuple(Task(name, (1.0,), weight=WEIGHTS[name]) for name in TASKS)
    fidelities = (Fidelity("truth", cost=None), Fidelity("reconstructed")) if setting.cheap else ()
    return Problem(SPACE, tasks, fidelities=fidelities)


def game(setting: Setting, seed: int) -> Game:
    """The campaign of a setting; the seed fixes the table, the strategy and the evaluations."""

    def evaluate(trial: Trial) -> Outcome:
        return dear(np.array([trial.x[name] for name in SPACE.names]), trial.seed, setting.missing)

    points, above = where_counted()
    table = (cheap_table(setting.cheap, seed, setting.missing), "truth") if setting.cheap else None
    strategy = Strategy(surrogate=setting.surrogate, seed=seed)
    name = f"{setting.name.replace(' ', '-')}-{seed}"
    return Game(name, problem(setting), strategy, evaluate, points, above, setting.batch, setting.dear, table)


def one(setting: Setting, seed: int, out: Path, minutes: float) -> dict[str, Any]:
    """The curve of one campaign."""
    RECIPES["Apart"] = Apart  # so that a store with it can be opened
    lines = play(game(setting, seed), out, minutes)
    return {"setting": setting.name, "seed": seed, "curve": lines}


def show(results: Sequence[Mapping[str, Any]]) -> str:
    """Medians over seeds: errors of the two main contours after n dear evaluations, and what some errors take."""
    rows = []
    for setting in dict.fromkeys(r["setting"] for r in results):
        curves = [r["curve"] for r in results if r["setting"] == setting]
        rows.append(f"{setting}, {len(curves)} seeds")
        rows.append(f"{'dear':>6} {'observed':>9} {'worst':>7} {'expected':>9} {'worst':>7} {'bands':>7} {'ask/s':>7}")
        for n in sorted({line["dear"] for curve in curves for line in curve}):
            at = [line for curve in curves for line in curve if line["dear"] == n]
            observed, expected = ([line["errors"][t] for line in at] for t in ("observed", "expected"))
            bands = [np.mean([line["errors"][t] for t in BANDS]) for line in at]
            rows.append(
                f"{n:6d} {100 * median(observed):7.2f} % {100 * max(observed):5.2f} % {100 * median(expected):7.2f} % "
                f"{100 * max(expected):5.2f} % {100 * median(bands):5.2f} % "
                f"{median([line['ask_seconds'] for line in at]):7.1f}"
            )
        for goal in GOALS:
            need = [needed(curve, goal, ("observed", "expected")) for curve in curves]
            alone = [needed(curve, goal, ("observed",)) for curve in curves]
            rows.append(
                f"  dear evaluations to {100 * goal:g} %: both contours {median(need):g} {sorted(need)}, "
                f"observed {median(alone):g} {sorted(alone)}"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", help="only these, by name, separated by commas")
    parser.add_argument("--minutes", type=float, default=60.0, help="of one campaign; the next call goes on")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/atlas"))
    parser.add_argument("--results", type=Path, help="write the curves to this JSON file")
    args = parser.parse_args()
    only = args.settings.split(",") if args.settings else None
    settings = [s for s in EXPERIMENTS[args.experiment] if only is None or s.name in only]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(one, s, k, args.out, args.minutes) for k in range(args.seeds) for s in settings]
        results = [f.result() for f in futures]
    print(show(results))
    if args.results:
        command = f"python -m benchmarks.atlas {args.experiment} --seeds {args.seeds}"
        lines = ",\n".join(json.dumps(r) for r in results)
        args.results.write_text(json.dumps({"command": command})[:-1] + ', "results": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
