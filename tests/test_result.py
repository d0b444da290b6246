import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch

import excursion
from excursion.campaign import Campaign, best_trial
from excursion.data import Outcome, Proposal
from excursion.errors import FitError, InvalidPoint, InvalidProblem, InvalidSpace, InvalidStrategy
from excursion.examples.analytic import fast_limit
from excursion.problem import Fidelity, Problem, Task
from excursion.report.tables import trials_csv
from excursion.result import Result, find_level_set, table
from excursion.space import Parameter, ParameterSpace

SQUARE = {"x": (-2.0, 2.0), "y": (-2.0, 2.0)}


def disc(p):
    return p["x"] ** 2 + p["y"] ** 2


@pytest.fixture(scope="module")
def result():
    return find_level_set(disc, SQUARE, 1.0, budget=25, seed=2)


def test_the_circle_is_found(result):
    angle = np.linspace(0, 2 * np.pi, 100)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert (result.excursion_probability(1.1 * ring) > 0.95).all()
    assert (result.excursion_probability(0.9 * ring) < 0.05).all()
    mean, sd = result.mean_and_sd(ring)
    assert np.allclose(mean, 1.0, atol=0.05)
    assert (sd < 0.1).all()
    fraction, wrong = result.volume_fraction()
    assert fraction == pytest.approx(1 - math.pi / 16, abs=0.003)
    assert wrong < 0.01
    assert result.evaluations == 25


def test_probabilities_have_the_shape_of_the_points(result):
    x = np.random.default_rng(0).uniform(-2, 2, (7, 2))
    p = result.excursion_probability(x)
    assert p.shape == (7,)
    assert p.dtype == np.float64
    assert ((p >= 0) & (p <= 1)).all()
    assert [m.shape for m in result.mean_and_sd(x)] == [(7,), (7,)]
    assert result.excursion_probability({"x": 0.0, "y": 0.0})[0] == result.excursion_probability([[0.0, 0.0]])[0]
    assert result.excursion_probability([0.0, 0.0]).shape == (1,)
    assert (result.excursion_probability(x, threshold=-5.0) > 0.99).all()


@pytest.mark.parametrize("x", [[[1.0]], [[1.0, 2.0, 3.0]], [[math.nan, 1.0]], 3.0, {"x": 1.0}])
def test_points_must_fit(result, x):
    with pytest.raises(InvalidPoint, match=r"x"):
        result.excursion_probability(x)


def test_contours_are_closed_lines_on_the_circle(result):
    contour = result.contours()
    assert (contour.task, contour.threshold, contour.names) == ("f", 1.0, ("x", "y"))
    (line,) = contour.lines
    assert np.allclose(np.hypot(*line.T), 1.0, atol=0.02)
    assert (line[0] == line[-1]).all()
    inner, outer = (result.contours(sigmas=s).lines[0] for s in (2.0, -2.0))
    assert np.hypot(*inner.T).mean() < np.hypot(*outer.T).mean()


def test_crossings_in_one_dimension_and_on_a_slice(result):
    one = find_level_set(lambda p: math.sin(6 * p["x"]), {"x": (0, 1)}, 0.5, budget=14)
    roots = [scipy.optimize.brentq(lambda x: math.sin(6 * x) - 0.5, *ab) for ab in ((0, 0.25), (0.25, 0.7))]
    assert np.allclose(one.contours().lines[0][:, 0], roots, atol=2e-3)
    cut = result.contours(fixed={"y": 0.6})
    assert cut.names == ("x",)
    assert np.allclose(sorted(cut.lines[0][:, 0]), [-0.8, 0.8], atol=0.02)
    assert result.contours(fixed={"y": 1.9}).lines == ()


def test_three_dimensions_are_drawn_in_slices():
    ball = find_level_set(
        lambda p: p["a"] ** 2 + p["b"] ** 2 + p["c"] ** 2,
        {k: (-1.5, 1.5) for k in "abc"},
        1.0,
        budget=45,
        batch=3,
        workers=1,
    )
    line = ball.contours(fixed={"c": 0.6}).lines[0]
    assert np.allclose(np.hypot(*line.T), 0.8, atol=0.06)
    with pytest.raises(InvalidPoint, match="needs one or two of the parameters"):
        ball.contours()
    with pytest.raises(InvalidPoint, match=r"needs one or two"):
        ball.contours(fixed={"q": 1.0, "c": 0.0})


def test_forbidden_points_are_never_known():
    asked = []

    def f(p):
        asked.append(p)
        return p["x"] - 0.5

    result = find_level_set(f, {"x": (0, 1), "y": (0, 1)}, constraints=["y < 0.8 - 0.5*x"], budget=14)
    assert all(p["y"] < 0.8 - 0.5 * p["x"] for p in asked)
    p = result.excursion_probability([[0.2, 0.9], [0.2, 0.2]])
    assert math.isnan(p[0])
    assert p[1] < 0.1
    assert math.isnan(result.mean_and_sd([[0.2, 0.9]])[0][0])
    (line,) = result.contours().lines
    assert line[:, 1].max() == pytest.approx(0.55, abs=0.01)


def test_several_tasks_thresholds_and_a_transform():
    def limits(p):
        mu = 10 ** (4 * p["x"] - 2 + p["y"])
        return {"observed": mu, "expected": 1.5 * mu}

    result = find_level_set(
        limits, {"x": (0, 1), "y": (0, 1)}, {"observed": 1.0, "expected": (0.5, 1.0)}, transform="log-tanh", budget=24
    )
    for task, t, at in (("observed", 1.0, 0.5), ("expected", 0.5, 0.5 - math.log10(3) / 4)):
        line = np.concatenate(result.contours(task, t).lines)
        assert np.allclose(line[:, 0] + line[:, 1] / 4, at, atol=0.01)
    mean, sd = result.mean_and_sd([[0.5, 0.0]], "observed")
    assert mean[0] == pytest.approx(1.0, rel=0.05)
    assert 0 < sd[0] < 0.2
    with pytest.raises(InvalidProblem, match=r"no task 'obs', got tasks \['observed', 'expected'\]"):
        result.contours("obs")


def test_the_table_goes_into_pandas():
    def f(p, seed):
        if p["x"] > 1.5:
            raise RuntimeError("licence server down")
        if p["y"] > 1.0:
            return Outcome.of(9.0, bounds={"f": "above"})
        return Outcome.of(disc(p) + 1e-9 * seed % 1, variances={"f": 0.01})

    result = find_level_set(f, SQUARE, 1.0, budget=16)
    frame = pd.DataFrame(result.trials)
    assert list(frame.columns[:7]) == ["number", "state", "x", "y", "f", "f_sd", "f_bound"]
    assert list(frame.number) == list(range(16))
    failed = frame[frame.x > 1.5]
    assert len(failed) > 0
    assert (failed.state == "failed").all()
    assert failed.f.isna().all()
    assert failed.error.str.contains("licence server down").all()
    fine = frame[frame.state == "complete"]
    assert np.allclose(fine.f, fine.x**2 + fine.y**2, atol=1)
    assert np.allclose(fine.f_sd, 0.1)
    assert (frame[(frame.x <= 1.5) & (frame.y > 1)].f_bound == "above").all()


def test_the_same_seed_gives_the_same_search():
    runs = [find_level_set(fast_limit, {"x": (0, 1.5), "y": (0, 1.5)}, budget=14, batch=2, seed=s) for s in (4, 4, 5)]
    xs = [[(t["x"], t["y"]) for t in r.trials] for r in runs]
    assert xs[0] == xs[1] != xs[2]


def test_numpy_scalars_lists_of_parameters_and_design_size():
    space = [Parameter("x", 0, 1), Parameter("y", 0.1, 10, scale="log", step=0.1)]
    result = find_level_set(lambda p: np.float32(p["x"] * p["y"]), space, np.float64(1.0), budget=12, design_size=5)
    assert [t["criterion"] for t in result.trials][:6] == ["design"] * 5 + ["SUR"]
    assert all(round(10 * t["y"], 9).is_integer() for t in result.trials)


def test_a_search_in_a_file_goes_on(tmp_path):
    calls = []

    def f(p):
        calls.append(p)
        return disc(p)

    url = f"sqlite:///{tmp_path}/scan.db"
    find_level_set(f, SQUARE, 1.0, budget=8, store=url)
    result = find_level_set(f, SQUARE, 1.0, budget=12, store=url)
    assert len(calls) == result.evaluations == 12
    with pytest.raises(InvalidProblem, match="is in the store with another problem"):
        find_level_set(f, SQUARE, 2.0, budget=12, store=url)
    assert len(calls) == 12


def test_noisy_values():
    rng = np.random.default_rng(1)
    result = find_level_set(lambda p: disc(p) + 0.1 * rng.normal(), SQUARE, 1.0, budget=50)
    fraction, _ = result.volume_fraction()
    assert fraction == pytest.approx(1 - math.pi / 16, abs=0.02)


def test_a_threshold_never_crossed_says_so():
    result = find_level_set(disc, SQUARE, 100.0, budget=10)
    assert result.contours().lines == ()
    assert result.volume_fraction()[0] < 0.05


# --- bad input


def test_a_function_that_always_fails():
    def broken(p):
        raise OSError("no such file: events.hepmc")

    with pytest.raises(FitError, match=r"needs at least 2 trials with values, got 0 of 5.*no such file: events.hepmc"):
        find_level_set(broken, SQUARE, budget=5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"space": {}}, InvalidSpace, "at least one parameter"),
        ({"space": {"x": (2, 1)}}, InvalidSpace, "needs lower < upper"),
        ({"space": {"x": (0, 1, "log")}}, InvalidSpace, "a log scale needs lower > 0"),
        ({"constraints": ["x > 5"]}, InvalidSpace, "x > 5"),
        ({"constraints": ["z > 5"]}, InvalidSpace, "unknown z"),
        ({"threshold": math.nan}, InvalidProblem, "thresholds must be finite"),
        ({"threshold": "12"}, InvalidProblem, "thresholds must be numbers, got"),
        ({"threshold": [2.0, 1.0]}, InvalidProblem, "ascending"),
        ({"threshold": -1.0, "transform": "log"}, InvalidProblem, "needs positive thresholds"),
        ({"transform": "sqrt"}, InvalidProblem, "must be one of identity, log, asinh, log-tanh, got 'sqrt'"),
        ({"budget": 0}, InvalidStrategy, "budget must be a positive number"),
        ({"design_size": 1}, InvalidStrategy, "design_size must be at least 2"),
        ({"batch": 0}, InvalidStrategy, "batch must be a positive number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    given = {"space": SQUARE, "threshold": 1.0, "budget": 5} | arguments
    space, threshold = given.pop("space"), given.pop("threshold")
    with pytest.raises(error, match=message):
        find_level_set(disc, space, threshold, **given)


def test_a_result_needs_values():
    campaign = Campaign.create("memory://", "c", Problem(ParameterSpace.of(SQUARE), Task()))
    campaign.tell(campaign.ask()[0].number, 1.0)
    with pytest.raises(FitError, match="needs at least 2 trials with values, got 1 of 1"):
        Result.of(campaign)


def test_the_front_page_offers_what_it_lists():
    assert sorted(excursion.__all__) == sorted(excursion._MODULE)
    for name in excursion.__all__:
        assert getattr(excursion, name).__name__ == name
    assert set(excursion.__all__) <= set(dir(excursion))
    with pytest.raises(AttributeError, match="no attribute 'find_levelset'"):
        excursion.find_levelset  # noqa: B018


# --- found by users


def test_tiny_units_are_no_constant():
    """Cross-sections in barn: 1e-13."""
    result = find_level_set(lambda p: 1e-13 * (p["x"] - 0.3), {"x": (0, 1)}, budget=10)
    assert result.excursion_probability([[0.2], [0.4]]).round(6).tolist() == [0.0, 1.0]
    assert result.contours().lines[0][0, 0] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("size", [1e-100, 1e-30, 1e30, 1e50, 1e90, 1e300])
def test_values_of_any_size(size):
    result = find_level_set(lambda p: size * (p["x"] - 0.3), {"x": (0, 1)}, budget=10)
    p = result.excursion_probability([[0.02], [0.98]])
    assert p[0] < 0.5 < p[1]


def test_contours_are_straight_on_the_scale_of_the_axis():
    result = find_level_set(
        lambda p: math.log10(p["g"]), {"g": (1e-10, 1.0, "log")}, math.log10(3e-6), budget=10, design_size=5
    )
    assert result.contours(n=21).lines[0][0, 0] == pytest.approx(3e-6, rel=1e-3)
    flat = find_level_set(
        lambda p: math.log10(p["g"]) + p["x"], {"g": (1e-6, 1.0, "log"), "x": (0, 1)}, -3.0, budget=16
    )
    line = flat.contours(n=31).lines[0]
    assert np.allclose(np.log10(line[:, 0]) + line[:, 1], -3, atol=0.01)


def test_saturated_values_have_an_infinite_spread():
    result = find_level_set(lambda p: 10 ** (20 * (p["x"] - 0.5)), {"x": (0, 1)}, 1.0, transform="log-tanh", budget=12)
    mean, sd = result.mean_and_sd([[0.5], [1.0]])
    assert np.isfinite([mean[0], sd[0]]).all()
    z, variance = (float(m) for m in result.posterior.marginal(torch.tensor([[0.5]], dtype=torch.float64)))
    low, high = (10 ** math.atanh(z + k * math.sqrt(variance)) for k in (-1, 1))
    assert sd[0] == pytest.approx((high - low) / 2, rel=1e-9)
    assert not np.isnan(sd).any()


def test_lists_of_dicts_are_points(result):
    points = [{"x": 0.0, "y": 0.0}, {"y": 2.0, "x": 2.0}]
    assert (result.excursion_probability(points) == result.excursion_probability([[0, 0], [2, 2]])).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fixed": {"y": 5.0}}, InvalidPoint, r"slice: y must lie in \[-2, 2\], got 5.0"),
        ({"fixed": {"y": math.nan}}, InvalidPoint, "y"),
        ({"fixed": {"y": "a"}}, InvalidPoint, "y"),
        ({"names": ("x", "x")}, InvalidPoint, "needs one or two of the parameters"),
        ({"n": 1}, InvalidPoint, "points per axis must be at least 2, got 1"),
        ({"threshold": math.nan}, InvalidProblem, "thresholds must be finite"),
        ({"threshold": "12"}, InvalidProblem, "thresholds must be numbers, got"),
    ],
)
def test_contours_of_nonsense(result, arguments, error, message):
    with pytest.raises(error, match=message):
        result.contours(**arguments)


def test_points_in_words_are_refused(result):
    with pytest.raises(InvalidPoint, match="must be numbers"):
        result.excursion_probability("abc")


def test_a_lattice_is_evaluated_to_the_last_point():
    result = find_level_set(
        lambda p: p["n"] - 3.5, [Parameter("n", 1, 6, step=1)], budget=100, batch=4, workers=1, design_size=3
    )
    assert sorted(t["n"] for t in result.trials) == [1, 2, 3, 4, 5, 6]


def test_numpy_in_info_and_exits_in_the_function_are_taken():
    def f(p):
        if p["x"] > 0.9:
            raise SystemExit(3)
        if p["x"] < 0.1:
            return Outcome.of(1.0, info={"what": object()})
        return Outcome.of(p["x"], info={"yields": np.ones(2, dtype=np.float32), "n": np.int64(3)})

    result = find_level_set(f, {"x": (0, 1)}, 0.5, budget=12, seed=np.int64(5))
    for t in result.history:
        if t.x["x"] > 0.9:
            assert "SystemExit: 3" in t.outcome.error
        elif t.x["x"] < 0.1:
            assert "must be text, numbers, lists and dicts (JSON), got object" in t.outcome.error
        else:
            assert t.outcome.info == {"yields": [1.0, 1.0], "n": 3}


def test_a_search_in_a_file_keeps_its_strategy(tmp_path):
    url = str(tmp_path / "scan.db")
    find_level_set(disc, SQUARE, 1.0, budget=3, store=url, seed=1)
    with pytest.raises(InvalidStrategy, match="in the store already with another strategy"):
        find_level_set(disc, SQUARE, 1.0, budget=4, store=url, seed=2)


def test_results_are_short_in_a_notebook(result):
    assert repr(result) == "<Result: f over (x, y) from 25 evaluations>"
    assert len(repr(Campaign.create("memory://", "c", result.problem))) < 100


def test_what_is_missing_is_empty_in_tables_and_is_never_the_best():
    problem = Problem(
        {"x": (0, 1)}, (Task("f"),), "maximum", fidelities=(Fidelity("fast", 0.1, events=(1, 9)), Fidelity("full"))
    )
    campaign = Campaign.create("memory://", "c", problem)
    proposals = [Proposal({"x": 0.1 * i}, 0, fidelity=("fast", "full")[i % 2], events=i + 1) for i in range(4)]
    outcomes = [Outcome.of({"f": v}) for v in (9.0, 1.0, 8.0, 2.0)]
    campaign.store.record("c", proposals, outcomes, after=0, seeds=range(4))
    assert best_trial(problem, campaign.trials).number == 3
    rows = table(problem, campaign.trials)
    assert [(row["fidelity"], row["events"]) for row in rows] == [("fast", 1), ("full", 2), ("fast", 3), ("full", 4)]
    assert "fidelity" not in table(replace(problem, fidelities=()), campaign.trials)[0]

    two = Problem({"x": (0, 1)}, (Task("f"), Task("g")))
    campaign = Campaign.create("memory://", "c", two)
    (trial,) = campaign.add([{"x": 0.5}])
    campaign.tell(trial.number, {"f": None, "g": 2.0})
    (row,) = table(two, campaign.trials)
    assert math.isnan(row["f"])
    assert (row["g"], row["f_bound"], row["state"]) == (2.0, "", "complete")
    assert trials_csv(campaign).splitlines()[1].split(",")[3:7] == ["", "", "", "2.0"]


# --- sets


def test_the_band_is_where_no_side_can_be_told():
    result = find_level_set(disc, SQUARE, 1.0, budget=10, seed=2)
    x = np.random.default_rng(0).uniform(-2, 2, (4000, 2))
    wide, narrow = result.band(level=0.999), result.band(level=0.68)
    assert (wide.task, wide.threshold, wide.level) == ("f", 1.0, 0.999)
    p = result.excursion_probability(x)
    assert (wide.contains(x) == ((p > 0.0005) & (p < 0.9995))).all()
    assert not (narrow.contains(x) & ~wide.contains(x)).any()
    assert 0 < narrow.volume < wide.volume == pytest.approx(wide.contains(x).mean(), abs=0.03)
    low, high = wide.edges(n=101)
    for edge, expected in ((low, 0.9995), (high, 0.0005)):
        points = np.concatenate(edge.lines)
        assert np.allclose(result.excursion_probability(points), expected, atol=2e-3)
    with pytest.raises(InvalidProblem, match=r"level: must lie between 0 and 1, got 95"):
        result.band(level=95)


def test_forbidden_points_are_in_no_band():
    found = find_level_set(lambda p: p["x"] - 0.4, {"x": (0, 1), "y": (0, 1)}, budget=8, constraints="x + y < 1")
    assert found.band(level=0.5).contains([[0.4, 0.1], [0.4, 0.9], [0.1, 0.1]]).tolist() == [True, False, False]


def test_the_summary_of_sets(result):
    found = result.sets()
    assert found.volume == pytest.approx(1 - math.pi / 16, abs=0.003)
    assert found.volume_sd < 0.01
    assert found.physical_volume == pytest.approx(16 - math.pi, abs=0.05)
    assert found.components == 1
    assert found.above.volume + found.below.volume > 0.95
    truth = np.random.default_rng(1).uniform(-2, 2, (5000, 2))
    p, r = result.excursion_probability(truth), (truth**2).sum(1)
    assert (r[p >= found.above.probability] >= 1).all()
    assert (r[p <= 1 - found.below.probability] < 1).all()
    edge = np.concatenate(result.contours(sigmas=-found.above.sigmas).lines)
    assert np.allclose(result.excursion_probability(edge), found.above.probability, atol=1e-3)
    center = np.array([found.hole["x"], found.hole["y"]])
    seen = np.array([[t["x"], t["y"]] for t in result.trials])
    assert np.linalg.norm((seen - center) / 4, axis=1).min() == pytest.approx(found.hole_radius)
    higher = result.sets(threshold=2.0)
    assert higher.volume < found.volume
    assert str(found).startswith("f >= 1: ")
