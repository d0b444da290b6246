from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import matplotlib.path
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from excursion.acquisition import Sobol
from excursion.belief import observations
from excursion.campaign import Campaign
from excursion.contours import Slice
from excursion.data import Outcome
from excursion.errors import FitError, InvalidPoint, InvalidProblem, InvalidStrategy, MissingExtra
from excursion.precision import misclassified
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.report import drawing
from excursion.report.plot import (
    plot,
    plot_band,
    plot_convergence,
    plot_exclusion,
    plot_points,
    plot_probability,
    plot_slices,
)
from excursion.result import Result, find_level_set
from excursion.space import Parameter, ParameterSpace
from excursion.surrogate import GaussianProcess, Surrogate

LIMITS = ("observed", "expected", *(f"expected_{side}_{k}" for side in ("minus", "plus") for k in (1, 2)))
SHIFT = {"expected_minus_2": -0.5, "expected_minus_1": -0.25, "expected_plus_1": 0.25, "expected_plus_2": 0.5}


def exponent(m: Any, chi: Any) -> Any:
    """log10 of the expected limit: one on an arc through (500, 0) and (250, ~190)."""
    return (m - 500) / 200 + (chi / 220) ** 2


def limits(p: dict[str, float]) -> Outcome:
    values = {t: 10 ** (exponent(p["m"], p["chi"]) + SHIFT.get(t, 0.1 if t == "observed" else 0.0)) for t in LIMITS}
    return Outcome.of(
        {t: min(v, 50.0) for t, v in values.items()}, bounds={t: "above" for t, v in values.items() if v > 50}
    )


def search(
    function: Any,
    space: Any,
    threshold: Any = 0.0,
    *,
    learn: bool = False,
    surrogate: Surrogate = GaussianProcess(),  # noqa: B008 - settings, which do not change
    **more: Any,
) -> Result:
    strategy = Strategy(surrogate) if learn else Strategy(surrogate, acquisition=Sobol())
    with ThreadPoolExecutor(1) as executor:
        return find_level_set(function, space, threshold, strategy=strategy, executor=executor, **more)


@pytest.fixture(scope="module")
def line() -> Result:
    return search(lambda p: math.cos(3 * p["x"]), [Parameter("x", 0, 2, unit="TeV", label="$m_X$")], budget=10)


@pytest.fixture(scope="module")
def circle() -> Result:
    return search(lambda p: p["x"] ** 2 + p["y"] ** 2, {"x": (-2, 2), "y": (-2, 2)}, 1.0, budget=20, learn=True)


@pytest.fixture(scope="module")
def two_tasks() -> Result:
    def function(p: dict[str, float]) -> dict[str, float]:
        return {"a": p["x"] ** 2 + math.log10(p["y"]) ** 2, "b": p["x"] + math.log10(p["y"])}

    return search(function, {"x": (-1, 1), "y": (0.1, 10, "log")}, {"a": [0.4, 0.8], "b": 0.5}, budget=25)


@pytest.fixture(scope="module")
def limit() -> Result:
    space = [Parameter("m", 100, 700, unit="GeV", label=r"$m_{\tilde{\ell}}$"), Parameter("chi", 0, 400, unit="GeV")]
    thresholds = dict.fromkeys(LIMITS, 1.0)
    return search(limits, space, thresholds, constraints=["m - chi > 10"], transform="log-tanh", budget=25)


@pytest.fixture(scope="module")
def ball() -> Result:
    space = {"x": (-1, 1), "y": (-1, 1), "z": (-1, 1)}
    return search(lambda p: p["x"] ** 2 + p["y"] ** 2 + p["z"] ** 2, space, 0.5, budget=25)


@pytest.fixture(scope="module")
def flat() -> Result:
    return search(lambda p: p["x"] ** 2 + p["y"], {"x": (0, 1), "y": (0, 1)}, 100.0, budget=8)


@pytest.fixture(scope="module")
def states() -> Result:
    space = ParameterSpace.of({"x": (0, 1), "y": (0, 1)}, ["x + y > 0.2"])
    campaign = Campaign.create("memory://", "states", Problem(space, Task("f", 1.0)), Strategy(design_size=20))
    trials = campaign.ask(12)
    order = [*range(11, 3, -1), 1, 0]  # told backwards; 2 and 3 stay pending
    for n in order:
        x = trials[n].x
        outcome: Any = x["x"] + x["y"]
        if n in (4, 5):
            outcome = math.inf if n == 4 else Outcome.of(3.0, bounds={"f": "above"})
        elif n in (6, 7, 8):
            outcome = Outcome.failed("diverged")
        elif n == 9:
            outcome = Outcome.failed("no such mass", permanent=True)
        campaign.tell(n, outcome)
    return Result.of(campaign)


def vertices(ax: Axes, label: str) -> np.ndarray:
    found = [artist.get_xydata() for artist in ax.lines if artist.get_label() == label]
    return np.concatenate(found) if found else np.empty((0, 2))


def collection(ax: Axes, label: str) -> Any:
    found = [c for c in ax.collections if c.get_label() == label]
    assert len(found) <= 1
    return found[0] if found else None


def holds(artist: Any, x: float, y: float) -> bool:
    rings = [matplotlib.path.Path(ring) for path in artist.get_paths() for ring in path.to_polygons()]
    return sum(ring.contains_point((x, y)) for ring in rings) % 2 == 1  # a hole is a ring in a ring


def entries(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def colour(ax: Axes, x: float, y: float) -> np.ndarray:
    """Of the pixel at a point of the data, 0 to 255."""
    image = pixels(drawing.figure_of(ax))
    column, row = ax.transData.transform((x, y))
    return image[len(image) - 1 - round(row), round(column)].astype(int)


# --- contours


def test_circle_is_a_circle(circle: Result) -> None:
    ax = plot_exclusion(circle)
    points = vertices(ax, "_f 1")
    assert len(points) > 100
    assert np.abs(np.hypot(*points.T) - 1).max() < 0.03
    angles = np.arctan2(*points.T)
    assert np.histogram(angles, 8, (-math.pi, math.pi))[0].min() > 5
    assert entries(ax)[0] == "f = 1"
    assert "complete (20)" in entries(ax)
    assert collection(ax, "_forbidden") is None
    assert not texts(ax)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-2, 2))


def test_band_of_the_belief_surrounds_the_contour() -> None:
    circle = search(lambda p: p["x"] ** 2 + p["y"] ** 2, {"x": (-2, 2), "y": (-2, 2)}, 1.0, budget=12, learn=True)
    ax = plot_exclusion(circle)
    band = collection(ax, "_uncertainty f 1")
    middle = vertices(ax, "_f 1")[::25]
    assert all(holds(band, *point) for point in middle)
    assert not holds(band, 0, 0)
    inner, outer = (np.concatenate(circle.contours(sigmas=s).lines) for s in (1, -1))
    assert np.hypot(*inner.T).mean() < np.hypot(*middle.T).mean() < np.hypot(*outer.T).mean()


def test_every_task_and_threshold_on_a_log_axis(two_tasks: Result) -> None:
    ax = plot_exclusion(two_tasks, order=None)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim() == (0.1, 10)
    for threshold in (0.4, 0.8):
        x, y = vertices(ax, f"_a {threshold:g}").T
        assert np.abs(x**2 + np.log10(y) ** 2 - threshold).max() < 0.06
    x, y = vertices(ax, "_b 0.5").T
    assert np.abs(x + np.log10(y) - 0.5).max() < 0.02
    colors = {artist.get_label(): artist.get_color() for artist in ax.lines}
    assert len(set(colors.values())) == 3
    assert {"a = 0.4", "a = 0.8", "b = 0.5"} <= set(entries(ax))


def test_exclusion_style(limit: Result) -> None:
    ax = plot_exclusion(limit, label="Reinterpretation", luminosity=139, energy=13)
    solid, dashed = vertices(ax, "_observed 1"), vertices(ax, "_expected 1")
    assert np.abs(exponent(*solid.T) + 0.1).max() < 0.06
    assert np.abs(exponent(*dashed.T)).max() < 0.06
    looks = {artist.get_label(): artist for artist in ax.lines}
    assert set(looks) == {"_observed 1", "_expected 1"}
    assert not looks["_observed 1"].is_dashed()
    assert looks["_expected 1"].is_dashed()
    assert {a.get_color() for a in looks.values()} == {drawing.BLACK}
    green, yellow = collection(ax, "_band 1"), collection(ax, "_band 2")
    assert matplotlib.colors.to_hex(green.get_facecolor()[0]) == drawing.GREEN
    assert matplotlib.colors.to_hex(yellow.get_facecolor()[0]) == drawing.YELLOW
    for shift, inside in (
        (-0.6, (0, 0)),
        (-0.4, (0, 1)),
        (-0.15, (1, 1)),
        (0.15, (1, 1)),
        (0.4, (0, 1)),
        (0.6, (0, 0)),
    ):
        for chi in (20.0, 100.0):
            m = 500 + 200 * (shift - (chi / 220) ** 2)
            assert (holds(green, m, chi), holds(yellow, m, chi)) == inside, (shift, chi)
    assert entries(ax)[:5] == [
        "Observed (threshold 1)",
        "Expected (threshold 1)",
        r"Expected $\pm$1$\sigma$",
        r"Expected $\pm$2$\sigma$",
        "Forbidden",
    ]
    assert ax.get_title("left") == "Reinterpretation"
    assert ax.get_title("right") == r"$\sqrt{s}$ = 13 TeV, 139 fb$^{-1}$"
    assert (ax.get_xlabel(), ax.get_ylabel()) == (r"$m_{\tilde{\ell}}$ [GeV]", "chi [GeV]")


def test_edges_of_the_band_are_contours(limit: Result) -> None:
    (path,) = collection(plot_exclusion(limit, n=101), "_band 1").get_paths()
    m, chi = path.vertices.T
    inside = (m - chi > 30) & (m > 101) & (m < 699) & (chi > 1) & (chi < 399)
    points = path.vertices[inside]
    off = [np.abs(np.log10(limit.mean_and_sd(points, t)[0])) for t in ("expected_minus_1", "expected_plus_1")]
    assert len(points) > 50
    assert np.minimum(*off).max() < 0.01
    assert min(o.min() for o in off) < 1e-3


def test_bands_of_ones_own(limit: Result) -> None:
    ax = plot_exclusion(limit, bands={1: ("observed", "expected_plus_2")}, show_points=False, order=None)
    assert holds(collection(ax, "_band 1"), 500 - 200 * 0.3, 10)
    assert not holds(collection(ax, "_band 1"), 500, 10)
    assert collection(ax, "_band 2") is None
    with pytest.raises(InvalidProblem, match="no task 'nothing'"):
        plot_exclusion(limit, bands={1: ("observed", "nothing")})
    with pytest.raises(InvalidProblem, match=r"bands are of 1 or 2 standard deviations, got \[3\]"):
        plot_exclusion(limit, bands={3: ("observed", "expected")})


def test_threshold_in_the_legend_uses_label_and_unit(limit: Result) -> None:
    labelled = Task("observed", 2e-5, label=r"$\sigma_{95}$", unit="pb")
    assert drawing.short_level(labelled, 2e-5) == r"$\sigma_{95}$ = $2 \times 10^{-5}$ pb"
    assert drawing.level_text(Task("f"), -1.5) == "f = −1.5"


def test_never_crossed(flat: Result) -> None:
    for ax in (plot_exclusion(flat), plot_probability(flat)):
        assert texts(ax) == ["threshold not crossed"]
        assert entries(ax)[0] == "f = 100: not crossed"
        assert not ax.lines


# --- what is forbidden


def test_forbidden_region_is_hatched_and_covers(limit: Result) -> None:
    for ax in (plot_exclusion(limit), plot_probability(limit), plot_points(limit)):
        region = collection(ax, "_forbidden")
        assert region.hatches == ["/////"]
        assert holds(region, 150, 300)
        assert holds(region, 200, 195)
        assert not holds(region, 200, 185)
        assert "Forbidden" in entries(ax)
    ax = plot_probability(limit, show_points=False)
    for x, y in ((110, 390), (150, 200), (300, 330)):
        r, g, b = colour(ax, x, y)
        assert r == g == b, "no probability is shown there"
    assert np.ptp(colour(ax, 600, 100)) > 50


def test_contours_end_at_the_forbidden_region(limit: Result) -> None:
    m, chi = vertices(plot_exclusion(limit), "_observed 1").T
    assert (m - chi).min() > 10
    assert (m - chi).min() < 16


# --- points


def test_points_by_state(states: Result) -> None:
    ax = plot_points(states)
    expected = {"complete": 4, "censored": 2, "failed": 3, "invalid": 1, "pending": 2}
    for state, count in expected.items():
        drawn = collection(ax, f"_{state}")
        members = [t for t in states.history if t.state == state or (state == "pending" and t.pending)]
        assert np.array_equal(drawn.get_offsets(), [[t.x["x"], t.x["y"]] for t in members])
        assert len(members) == count
        assert f"{state} ({count})" in entries(ax)
    shapes = [collection(ax, f"_{s}").get_paths()[0].vertices for s in expected]
    assert len({shape.tobytes() for shape in shapes}) == 5
    assert holds(collection(ax, "_forbidden"), 0.05, 0.05)


@pytest.mark.parametrize("order", ["told", "number"])
def test_points_by_order(states: Result, order: Any) -> None:
    ax = plot_points(states, order=order)
    for state in ("complete", "censored", "failed"):
        ranks = [getattr(t, order) + 1 for t in states.history if t.state == state]
        drawn = collection(ax, f"_{state}")
        assert drawn.get_array().tolist() == ranks
        assert (drawn.norm.vmin, drawn.norm.vmax) == (1, 10 if order == "told" else 12)
    assert len(collection(ax, "_pending").get_facecolor()) == 0
    (bar,) = [a for a in drawing.figure_of(ax).axes if a is not ax]
    assert bar.get_ylabel() == f"Evaluation, in order of {'completion' if order == 'told' else 'asking'}"
    assert bar.get_yticks()[0] == 1


def test_points_on_swapped_axes(two_tasks: Result) -> None:
    ax = plot_points(two_tasks, names=("y", "x"))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert (ax.get_xlim(), ax.get_ylim()) == ((0.1, 10), (-1, 1))
    assert np.array_equal(collection(ax, "_complete").get_offsets(), [[t.x["y"], t.x["x"]] for t in two_tasks.history])


def test_points_without_order(states: Result) -> None:
    ax = plot_points(states, order=None)
    assert collection(ax, "_complete").get_array() is None
    assert drawing.figure_of(ax).axes == [ax]
    with pytest.raises(InvalidStrategy, match="order must be 'told', 'number' or None, got 'size'"):
        plot_points(states, order="size")  # type: ignore[arg-type]


def test_points_fade_off_the_slice(ball: Result) -> None:
    ax = plot_points(ball, names=("x", "z"), fixed={"y": 0.25})
    alpha = collection(ax, "_complete").get_alpha()
    distance = np.array([abs(t.x["y"] - 0.25) for t in ball.history])
    assert (np.diff(alpha[np.argsort(distance)]) <= 1e-12).all()
    assert alpha.min() == pytest.approx(0.08)
    assert alpha[distance.argmin()] > 0.9


# --- probability


def test_probability_map(circle: Result) -> None:
    ax = plot_probability(circle, n=51)
    p = ax.collections[0].get_array().reshape(51, 51)
    assert p[25, 25] < 0.01
    assert p[0, 0] > 0.99
    assert np.abs(np.hypot(*vertices(ax, "_level set").T) - 1).max() < 0.03
    red, _, blue = colour(plot_probability(circle, show_points=False), -1.8, 1.8)
    assert red > blue, "above the threshold is orange"
    (bar,) = [a for a in drawing.figure_of(ax).axes if a is not ax]
    assert bar.get_ylabel() == "P(f ≥ 1)"


def test_probability_map_is_not_mirrored(limit: Result) -> None:
    ax = plot_probability(limit, "expected", n=51)
    grid = Slice.of(limit.problem.space, n=51)
    drawn = ax.collections[0].get_array().reshape(51, 51).T.ravel()[grid.allowed.numpy()]
    expected = limit.excursion_probability(grid.x[grid.allowed], "expected")
    assert np.abs(np.asarray(drawn) - expected).max() < 1e-12


def test_probability_edges_lie_on_both_sides() -> None:
    # A rough kernel, so that the band is wider than a pixel.
    kernel = GaussianProcess(kernel="matern32", metric="ard", average=False)
    box = {"x": (-1, 1), "y": (-1, 1), "z": (-1, 1)}
    rough = search(lambda p: p["x"] ** 2 + p["y"] ** 2 + p["z"] ** 2, box, 0.5, budget=25, surrogate=kernel)
    ax = plot_probability(rough, names=["x", "y"], fixed={"z": 0.1}, n=101)
    p = rough.excursion_probability([[x, y, 0.1] for x, y in vertices(ax, "_edge")])
    low, high = p[p < 0.5], p[p > 0.5]
    assert len(low) > 20
    assert len(high) > 20
    assert low.mean() == pytest.approx(0.159, abs=0.02)
    assert high.mean() == pytest.approx(0.841, abs=0.02)


def test_probability_along_a_line(line: Result) -> None:
    ax = plot_probability(line)
    x, p = vertices(ax, "_probability").T
    assert p == pytest.approx(line.excursion_probability(x[:, None]), abs=1e-12)
    assert ax.get_ylabel() == "P(f ≥ 0)"


def test_another_threshold(circle: Result) -> None:
    ax = plot_probability(circle, threshold=2.0, order="told")
    assert np.abs(np.hypot(*vertices(ax, "_level set").T) - math.sqrt(2)).max() < 0.06
    assert entries(ax)[0] == "f = 2"


# --- band


def test_band(line: Result) -> None:
    ax = plot_band(line)
    x, y = vertices(ax, "_median").T
    assert np.abs(y - np.cos(3 * x)).max() < 0.1
    crossings = vertices(ax, "_crossing 0")
    assert crossings[:, 0] == pytest.approx([math.pi / 6, math.pi / 2], abs=0.01)
    assert (crossings[:, 1] == 0).all()
    mean, sd = line.mean_and_sd(x[:, None])
    one, two = (collection(ax, f"_band {k}").get_paths()[0].get_extents() for k in (1, 2))
    assert one.ymin == pytest.approx((mean - sd).min(), abs=1e-6)
    assert two.ymax == pytest.approx((mean + 2 * sd).max(), abs=1e-6)
    assert collection(ax, "_complete").get_offsets().shape == (10, 2)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$m_X$ [TeV]", "f")
    assert f"at {crossings[0, 0]:.4g}, {crossings[1, 0]:.4g} TeV" in entries(ax)


def test_band_of_a_transformed_task_through_two_dimensions(limit: Result) -> None:
    ax = plot_band(limit, "expected", names=["m"], fixed={"chi": 150.0})
    assert ax.get_yscale() == "log"
    (crossing,) = vertices(ax, "_crossing 1")
    assert exponent(crossing[0], 150.0) == pytest.approx(0, abs=0.05)
    hidden = collection(ax, "_forbidden").get_paths()[0].get_extents()
    assert (hidden.x0, hidden.x1) == (pytest.approx(100), pytest.approx(160, abs=2))
    x, y = vertices(ax, "_median").T
    assert np.isnan(y[x < 159]).all()
    assert np.isfinite(y[x > 161]).all()
    assert f"censored ({sum(t.state == 'censored' for t in limit.history)})" in entries(ax)


def test_band_keeps_infinite_limits_in_sight(states: Result) -> None:
    ax = plot_band(states, fixed={"y": 0.5})
    y = collection(ax, "_censored").get_offsets()[:, 1]
    assert y.tolist() == [ax.get_ylim()[1], 3.0]


def test_band_never_crossed(flat: Result) -> None:
    ax = plot_band(flat, fixed={"y": 0.5}, show_points=False)
    assert texts(ax) == ["threshold not crossed"]
    assert not any(entry.startswith("at ") for entry in entries(ax))
    assert ax.get_ylim()[1] > 100


# --- slices


def test_slices(ball: Result) -> None:
    axes = plot_slices(ball, at={"z": 0.25}, n=61)
    assert axes.shape == (2, 2)
    assert axes[0, 1] is None
    assert (axes[0, 0].get_ylabel(), axes[1, 0].get_xlabel(), axes[1, 0].get_ylabel()) == ("y", "x", "z")
    assert (axes[0, 0].get_xlabel(), axes[1, 1].get_ylabel(), axes[1, 1].get_xlabel()) == ("", "", "y")
    near = sorted(ball.history, key=lambda t: abs(t.outcome.values["f"] - 0.5))[:4]
    through = min(near, key=lambda t: sum(v**2 for v in t.x.values()))
    assert through is not near[0]
    for ax, a, b, held in (
        (axes[0, 0], "x", "y", 0.25),
        (axes[1, 0], "x", "z", through.x["y"]),
        (axes[1, 1], "y", "z", through.x["x"]),
    ):
        points = vertices(ax, "_level set")
        assert np.abs(np.hypot(*points.T) - math.sqrt(0.5 - held**2)).max() < 0.1, (a, b)
        assert len(collection(ax, "_complete").get_offsets()) == 25
    alpha = collection(axes[0, 0], "_complete").get_alpha()
    assert alpha == pytest.approx([max(math.exp(-0.5 * ((t.x["z"] - 0.25) / 0.3) ** 2), 0.08) for t in ball.history])
    (legend,) = [c for a in drawing.figure_of(axes[0, 0]).axes for c in a.get_children() if isinstance(c, Legend)]
    assert "z = 0.25" in legend.get_title().get_text()
    assert "f = 0.5" in [t.get_text() for t in legend.get_texts()]


def test_slices_of_two_dimensions_and_bad_points(circle: Result, line: Result, ball: Result) -> None:
    assert plot_slices(circle, n=21).shape == (1, 1)
    with pytest.raises(InvalidPoint, match="plot_slices: needs two or more parameters"):
        plot_slices(line)
    with pytest.raises(InvalidPoint, match="plot_slices"):
        plot_slices(ball, at={"z": 3.0})


# --- convergence


def test_convergence(circle: Result) -> None:
    ax = plot_convergence(circle, steps=4)
    k, left = vertices(ax, "_f").T
    assert k.tolist() == [4, 9, 15, 20]
    assert left[-1] < 0.5 * left[0]
    assert left[-1] == pytest.approx(misclassified(circle.problem, circle.posterior)["f"], rel=0.05)
    assert ax.get_yscale() == "log"
    assert ax.get_legend() is None


def test_convergence_counts_failures_as_evaluations(states: Result) -> None:
    ax = plot_convergence(states, steps=2)
    k, left = vertices(ax, "_f").T
    # told: 11, 10 complete, 9 invalid, 8, 7, 6 failed, 5, 4 censored, 1, 0 complete
    assert k.tolist() == [8, 10]
    told = sorted((t for t in states.history if t.told is not None), key=lambda t: t.told or 0)
    belief = Strategy().surrogate.fit(observations(states.problem, told[:8]))
    assert left[0] == pytest.approx(misclassified(states.problem, belief)["f"], rel=1e-6)
    with pytest.raises(InvalidStrategy, match="steps must be at least 2, got 1"):
        plot_convergence(states, steps=1)
    few = Result(states.problem, states.posterior, states.history[2:6])
    with pytest.raises(FitError, match="needs at least 3 trials with values, got 2"):
        plot_convergence(few)


# --- files, styles, errors


@pytest.mark.parametrize(
    ("name", "kind", "style"),
    [
        ("line", "auto", "ATLAS"),
        ("circle", "auto", "CMS"),
        ("limit", "auto", "plain"),
        ("ball", "auto", "CMS"),
        ("states", "points", "ATLAS"),
    ],
)
def test_png(name: str, kind: Any, style: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(name)
    before = dict(matplotlib.rcParams)
    axes = plot(result, tmp_path / "figure.png", kind, dpi=80, style=style)
    assert dict(matplotlib.rcParams) == before
    figure = drawing.figure_of(axes[0, 0] if isinstance(axes, np.ndarray) else axes)
    image = matplotlib.image.imread(tmp_path / "figure.png")
    width, height = figure.get_size_inches() * 80
    assert image.shape[:2] == (pytest.approx(height, abs=1), pytest.approx(width, abs=1))
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50
    assert (image[..., :3].min(-1) < 0.5).mean() > 0.01


def test_kinds_by_dimension(line: Result, circle: Result, two_tasks: Result, ball: Result) -> None:
    assert plot(line).get_label() is not None
    assert vertices(plot(line), "_median").size
    assert vertices(plot(circle), "_level set").size
    assert vertices(plot(two_tasks), "_b 0.5").size
    assert plot(ball, n=21).shape == (2, 2)


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_vector_files(limit: Result, tmp_path: Path, suffix: str) -> None:
    plot(limit, tmp_path / f"figure.{suffix}", label="Reinterpretation", luminosity=139)
    head = (tmp_path / f"figure.{suffix}").read_bytes()
    assert head.startswith(b"%PDF" if suffix == "pdf" else b"<?xml")
    assert 10_000 < len(head) < 2_000_000


@pytest.mark.parametrize(
    ("style", "draw"),
    [
        ("ATLAS", lambda limit, ball: plot_exclusion(limit, style="ATLAS", luminosity=139, energy=13)),
        ("CMS", lambda limit, ball: plot_slices(ball, n=11, style="CMS")[0, 0]),
    ],
)
def test_a_figure_looks_the_same_after_its_style(limit: Result, ball: Result, style: Any, draw: Any) -> None:
    first, second = (draw(limit, ball) for _ in range(2))
    with drawing.style(style):
        inside = pixels(drawing.figure_of(first))
    outside = pixels(drawing.figure_of(second))
    assert (np.abs(inside.astype(int) - outside).max(-1) > 30).mean() < 1e-3


def test_no_state_of_pyplot_is_touched(circle: Result) -> None:
    import matplotlib.pyplot as plt

    backend = matplotlib.get_backend(auto_select=False)
    plot_exclusion(circle)
    assert plt.get_fignums() == []
    assert matplotlib.get_backend(auto_select=False) == backend


def test_axes_of_ones_own(circle: Result, line: Result, limit: Result) -> None:
    figure = Figure(figsize=(12, 8))
    axes = figure.subplots(2, 3).ravel()
    assert plot_band(line, ax=axes[0]) is axes[0]
    assert plot_probability(circle, ax=axes[1], n=31, colorbar=False) is axes[1]
    assert plot_exclusion(limit, ax=axes[2], n=31, colorbar=False, legend=False) is axes[2]
    assert plot_points(circle, axes[3], colorbar=False) is axes[3]
    assert plot_convergence(circle, axes[4], steps=2) is axes[4]
    assert figure.axes == list(axes)
    assert axes[2].get_legend() is None


@pytest.fixture
def _no_mplhep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mplhep", None)


@pytest.mark.usefixtures("_no_mplhep")
def test_without_the_extra(line: Result, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r'needs matplotlib and mplhep.*pip install "excursion\[plot\]"'):
        plot(line, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
    plot(line, tmp_path / "figure.png", style="plain")


def test_bad_settings(line: Result, ball: Result, tmp_path: Path) -> None:
    with pytest.raises(InvalidStrategy, match=r"kind must be one of auto, band, .*got 'pie'"):
        plot(line, kind="pie")  # type: ignore[arg-type]
    with pytest.raises(InvalidStrategy, match="style must be one of ATLAS, CMS, plain, got 'atlas'"):
        plot_band(line, style="atlas")  # type: ignore[arg-type]
    with pytest.raises(InvalidStrategy, match=r"file name must end in one of .*\.pdf.*got .*figure\.xls"):
        plot(line, tmp_path / "figure.xls")
    with pytest.raises(InvalidPoint, match="needs 2 parameters to vary, got \\['x'\\]"):
        plot_exclusion(line)
    with pytest.raises(InvalidPoint, match="slice: needs one or two of the parameters"):
        plot_exclusion(ball)
    with pytest.raises(InvalidProblem, match="no task 'g'"):
        plot_band(line, "g")


# --- the belief on a slice


def test_belief_on_a_slice(limit: Result) -> None:
    grid = Slice.of(limit.problem.space, n=11)
    mean, sd = limit.on(grid)
    assert mean.shape == sd.shape == (6, 11, 11)
    known = ~np.isnan(mean[1])
    assert np.array_equal(known.ravel(), grid.allowed.numpy())
    p = torch.special.ndtr(torch.from_numpy(mean[1] / sd[1])).numpy().ravel()
    assert p[known.ravel()] == pytest.approx(limit.excursion_probability(grid.x, "expected")[known.ravel()], abs=1e-12)
    everywhere, _ = limit.on(grid, forbidden=True)
    assert np.isfinite(everywhere).all()
    assert np.array_equal(everywhere[1][known], mean[1][known])
