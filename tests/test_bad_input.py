"""Whatever values come back, asking, status, result, figures and exports work and nothing is silently NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import excursion
from excursion.acquisition import Search
from excursion.campaign import Campaign
from excursion.data import Outcome
from excursion.errors import FitError, InvalidOutcome, InvalidProblem, InvalidStrategy
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.report.plot import plot
from excursion.report.tables import exported, standing, standing_lines, strict_json
from excursion.result import Result
from excursion.surrogate import KernelSearch

PLANE = {"x": (0, 1), "y": (0, 1)}
STRATEGY = Strategy(seed=1, search=Search(pool=256, candidates=48, integration=48))
SEARCH = KernelSearch(families=("SE",), depth=1, restarts=1, max_iter=20)
SLOPE = lambda p: p["x"] + p["y"] - 0.5  # noqa: E731
HERE = {"x": 0.1, "y": 0.2}
ROW = [{"x": 0.1 * i, "y": 0.2} for i in range(5)]


def told(
    values: Sequence[Any], task: Task, points: Sequence[dict[str, float]] | None = None, goal: Any = "level-set",
    strategy: Strategy = STRATEGY,
) -> Campaign:  # fmt: skip
    """A campaign whose first trials have these values, and then two asks more."""
    campaign = Campaign.create("memory://", "c", Problem(PLANE, (task,), goal), strategy)
    trials = campaign.add(points) if points else campaign.ask(len(values))
    for _ in range(3):
        for t in trials:
            value = values[t.number % len(values)]
            campaign.tell(t.number, value(t.x) if callable(value) else value)
        trials = campaign.ask(2)
    assert all(t.criterion != "design" for t in trials)
    assert all(math.isfinite(v) for t in trials for v in t.x.values())
    assert all(t.score is None or math.isfinite(t.score) for t in trials)
    assert all(0 <= p <= 1 for t in trials for p in t.predicted.values())
    return campaign


def unknown(found: Any, path: str = "") -> Iterator[str]:
    """Where NaN is."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from unknown(value, f"{path}.{key}")
    elif isinstance(found, list | tuple):
        for i, value in enumerate(found):
            yield from unknown(value, f"{path}[{i}]")
    elif isinstance(found, float) and math.isnan(found):
        yield path


CASES: dict[str, tuple[list[Any], Task]] = {
    "constant": ([3.0] * 8, Task()),
    "constant, zero": ([0.0] * 8, Task(thresholds=0.5)),
    "constant, at the threshold": ([0.5] * 8, Task(thresholds=0.5)),
    "below the threshold": ([lambda p: SLOPE(p) - 5] * 8, Task()),
    "above the threshold": ([lambda p: SLOPE(p) + 5] * 8, Task()),
    "one value of another sign": ([-1.0] * 7 + [1.0], Task()),
    "huge among ordinary": ([SLOPE, 1e300, SLOPE, -1e300] * 2, Task(transform="identity")),
    "huge among ordinary, asinh": ([SLOPE, 1e300, SLOPE, -1e300] * 2, Task(transform="asinh")),
    "huge only": ([1e300] * 8, Task(transform="identity")),
    "large among ordinary": ([SLOPE, 1e50, SLOPE, -1e50] * 2, Task(transform="identity")),
    "infinite, both signs": ([SLOPE, math.inf, SLOPE, -math.inf] * 2, Task()),
    "infinite only": ([math.inf] * 8, Task()),
    "infinite only, both signs": ([math.inf, -math.inf] * 4, Task()),
    "limits, all infinite": ([math.inf] * 8, Task(thresholds=1.0, transform="log-tanh")),
    "limits over decades": (
        [lambda p: 10 ** (8 * SLOPE(p)), 1e300, 1e-30, math.inf] * 2,
        Task(thresholds=1.0, transform="log"),
    ),
    "limits near zero, log": ([lambda p: 10 ** (8 * SLOPE(p)), 1e-300, 1e300, 5e-324] * 2, Task("f", 1.0, "log")),
    "limits near zero with errors": (
        [lambda p: 10 ** (8 * SLOPE(p)), Outcome.of(1e-300, variances={"f": 0.01})] * 4,
        Task("f", 1.0, "log"),
    ),
    "limits, zero sensitivity": (
        [lambda p: 10 ** (8 * SLOPE(p)), 1e-300, math.inf] * 3,
        Task(thresholds=1.0, transform="log-tanh"),
    ),
    "several thresholds, one out of reach": ([SLOPE] * 8, Task(thresholds=(0.0, 0.3, 40.0))),
}


@pytest.mark.parametrize("name", CASES)
def test_any_values(name: str, tmp_path: Any) -> None:
    values, task = CASES[name]
    campaign = told(values, task)
    status, result = standing(campaign), Result.of(campaign)
    assert list(unknown(status)) == []
    assert "nan" not in strict_json(status).lower()
    assert all(0 <= v <= 0.5 for v in status["expected_misclassified"].values())
    grid = campaign.problem.space.grid(11).numpy()
    for array in (result.excursion_probability(grid), *result.mean_and_sd(grid), np.array(result.volume_fraction())):
        assert not np.isnan(array).any()
    assert all(np.isfinite(line).all() for t in task.thresholds for line in result.contours(threshold=t, n=51).lines)
    for kind in ("probability", "exclusion", "convergence"):
        plot(result, tmp_path / "a.png", kind, **({"steps": 2} if kind == "convergence" else {"n": 31}), dpi=50)
    plot(result, kind="band", names=("x",), fixed={"y": 0.5}, n=31)
    for what in ("trials", "contours"):
        assert "nan" not in exported(campaign, what, "json").lower()


@pytest.mark.parametrize(
    "name", ["constant", "huge among ordinary", "infinite, both signs", "one value of another sign"]
)
def test_any_values_with_a_kernel_search(name: str) -> None:
    values, task = CASES[name]
    strategy = Strategy(surrogate=SEARCH, seed=1, search=STRATEGY.search)
    result = Result.of(told(values, task, strategy=strategy))
    assert not np.isnan(result.excursion_probability(result.problem.space.grid(5).numpy())).any()


@pytest.mark.parametrize("name", [n for n in CASES if "limits" not in n and "thresholds" not in n])
def test_any_values_in_a_search_for_an_optimum(name: str) -> None:
    values, task = CASES[name]
    campaign = told(values, task, goal="maximum")
    assert list(unknown(standing(campaign))) == []
    assert all(v >= 0 for v in campaign.status().uncertainty.values())
    optimum = Result.of(campaign).optimum()
    assert not any(map(math.isnan, (optimum.value, optimum.sd, optimum.best_value)))
    plot(Result.of(campaign), n=31)


@pytest.mark.parametrize(
    "values", [[SLOPE] * 10, [0.0, 1.0, 2.0, 0.5, 0.7, 0.1, -0.2, 0.3, 0.9, 1.1]], ids=["equal", "unequal"]
)
def test_points_given_several_times(values: list[Any]) -> None:
    """Unequal values at one point are noise: the belief there lies among them."""
    result = Result.of(told(values, Task(), [HERE] * 5 + ROW))
    mean, sd = (float(a[0]) for a in result.mean_and_sd([HERE]))
    here = [t.outcome.values["f"] for t in result.history if dict(t.x) == HERE and t.outcome]
    assert min(here) - 0.05 <= mean <= max(here) + 0.05
    assert 0 < sd < 1


def test_a_single_point_given_again_and_again() -> None:
    result = Result.of(told([0.0, 1.0] * 5, Task(thresholds=0.5), [HERE] * 10))
    assert float(result.mean_and_sd([HERE])[0][0]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("value", "side", "first"), [(-5, "at or above", "no point at or above 0.3"), (5, "below", "no point below 0.3")]
)
def test_a_threshold_that_was_never_crossed_is_said_to_be(value: float, side: str, first: str) -> None:
    campaign = told([lambda p: SLOPE(p) + value] * 8, Task("mu", thresholds=0.3))
    status = campaign.status()
    assert status.crossed == {"mu": False}
    (note,) = status.notes
    assert note.startswith(f"mu: no point {side} 0.3 seen yet; highest P < 0.0001")
    assert f"  {note}" in standing_lines(standing(campaign))
    result = Result.of(campaign)
    assert result.notes == (note,)
    assert note in repr(result)
    assert result.contours().lines == ()
    assert "threshold not crossed" in [text.get_text() for text in plot(result, n=31).texts]


def test_the_highest_probability_of_the_other_side_is_that_of_the_belief() -> None:
    campaign = told(np.random.default_rng(0).uniform(0, 0.3, 8).tolist(), Task(thresholds=0.31))
    result = Result.of(campaign)
    (note,) = result.notes
    u = campaign.problem.space.sample(0, 4096, 2**31 - 1)
    p = result.excursion_probability(campaign.problem.space.from_unit(u).numpy())
    assert 1e-4 < p.max() < 1
    assert note == f"f: no point at or above 0.31 seen yet; highest P = {p.max():.2g}"


def test_nothing_is_said_before_the_design_is_complete_or_after_a_crossing() -> None:
    campaign = Campaign.create("memory://", "c", Problem(PLANE), STRATEGY)
    for t in campaign.ask(7):
        campaign.tell(t.number, -1.0)
    assert campaign.status().notes == ()
    assert told([SLOPE] * 8, Task()).status().notes == ()


# --- what is refused


def test_nan_is_refused_when_told_and_a_failure_when_returned() -> None:
    campaign = Campaign.create("memory://", "c", Problem(PLANE), STRATEGY)
    (t,) = campaign.ask()
    with pytest.raises(InvalidOutcome, match=r"task 'f': the value must not be NaN, got nan. Tell a failure"):
        campaign.tell(t.number, math.nan)
    result = excursion.find_level_set(
        lambda p: math.nan if p["x"] > 0.7 else SLOPE(p), PLANE, budget=12, workers=1, strategy=STRATEGY
    )
    failed = [t for t in result.history if t.state == "failed"]
    assert failed
    assert all(t.x["x"] > 0.7 and "NaN" in t.outcome.error for t in failed)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_observations(n: int) -> None:
    campaign = Campaign.create("memory://", "c", Problem(PLANE), STRATEGY)
    for t in campaign.ask(3):
        campaign.tell(t.number, 1.0 if t.number < n else Outcome.failed("no licence"))
    assert campaign.status().uncertainty == {}
    message = (
        f"a result needs at least 2 trials with values, got {n} of 3. Evaluate more points; the last failure was: no"
    )
    with pytest.raises(FitError, match=message):
        Result.of(campaign)
    with pytest.raises(FitError, match=f"needs at least 2 observations, got {n}. Evaluate more points"):
        campaign.belief()


def test_thresholds_that_no_value_can_be_told_from() -> None:
    with pytest.raises(
        InvalidProblem, match=r"thresholds must be smaller than 1e60, got \(1e\+60,\). Use another unit"
    ):
        Task(thresholds=1e60)


def test_unknown_names_list_the_known_ones() -> None:
    unknown_names: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: Strategy.from_json({"acquisition": {"type": "MES"}}), "SUR, .*EI, PI, UCB, Sobol, got 'MES'"),
        (
            lambda: Strategy.from_json({"surrogate": {"type": "Forest"}}),
            "GaussianProcess, KernelSearch.*, got 'Forest'",
        ),
    )
    for make, message in unknown_names:
        with pytest.raises(InvalidStrategy, match=message):
            make()
