"""Figures of a result: bands, probabilities, exclusion contours, slices, convergence.

Every function returns the `matplotlib.axes.Axes` it drew on. Without ``ax`` it makes a `matplotlib.figure.Figure` of
its own, outside pyplot's memory, so that it works without a display and leaks nothing; in a notebook either show
``ax.figure`` or pass axes of ``plt.subplots()``. Settings of matplotlib stay as they were: a style holds only while a
figure is drawn. matplotlib and mplhep are loaded on the first call.

Colours are those of Okabe and Ito, which colour-blind readers tell apart, except for the green and yellow bands of one
and two standard deviations, which this field knows by their colours.

References:
    M. Okabe, K. Ito, Color Universal Design (2008).
    G. Cowan et al., Eur. Phys. J. C 71 (2011) 1554, for the bands of expected limits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from .. import levelset
from ..belief import believe
from ..contours import Slice, trace
from ..data import INFORMATIVE, Trial
from ..errors import FitError, InvalidPoint, InvalidProblem, InvalidStrategy, StoreError
from ..precision import misclassified
from ..problem import Task
from ..result import Optimum, Result
from ..shadow import Replay
from ..surrogate import GaussianProcess, Surrogate
from . import drawing as draw
from .drawing import Order, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["auto", "band", "probability", "exclusion", "optimum", "points", "slices", "convergence"]


def plot(
    result: Result, path: str | Path | None = None, kind: Kind = "auto", *, dpi: float = 200, **settings: Any
) -> Any:
    """Draw what a search has found, and save it.

    Args:
        result: what to draw.
        path: file to write, by its suffix as PNG, PDF, SVG ...; None writes nothing.
        kind: which figure. "auto": a band in one dimension; in two the probability of one task, the exclusion plot
            of several, or the optimum where one is sought; slices in more.
        dpi: of a PNG.
        **settings: of the function that draws: `plot_band`, `plot_probability`, `plot_exclusion`, `plot_optimum`,
            `plot_points`, `plot_slices`, `plot_convergence`.

    Returns:
        The axes; an array of them for slices.

    Raises:
        InvalidStrategy: an unknown kind, style or suffix.
        MissingExtra: matplotlib or mplhep is not installed.
    """
    if kind not in get_args(Kind):
        raise InvalidStrategy(
            f"plot: kind must be one of {', '.join(get_args(Kind))}, got {kind!r}. Choose one of them"
        )
    style = settings.get("style", "ATLAS")
    draw.require(style)
    if path is not None:
        draw.check_suffix(Path(path))
    tasks = result.problem.tasks
    if kind == "auto":
        flat: Kind = "exclusion" if len(tasks) > 1 or len(tasks[0].thresholds) > 1 else "probability"
        flat = "optimum" if result.problem.sign else flat
        kind = "band" if result.problem.space.dim == 1 else flat if result.problem.space.dim == 2 else "slices"
    axes = _DRAW[kind](result, **settings)
    if path is not None:
        labels = [p.label for p in result.problem.space.parameters if p.label]
        labels += [t.label for t in tasks if t.label]
        _save(axes[0, 0] if isinstance(axes, np.ndarray) else axes, path, style, dpi, labels)
    return axes


def plot_band(
    result: Result,
    task: str | None = None,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    style: Style = "ATLAS",
    show_points: bool = True,
    legend: bool = True,
    n: int = 401,
) -> Axes:
    """The belief about one task along one parameter: median, 68 % and 95 % bands, thresholds and crossings, or the
    best point where an optimum is sought.

    Args:
        result: what to draw.
        task: which output; the first by default.
        ax: where; a figure of its own by default.
        names, fixed: the parameter that varies and the values of the others, see `Slice.of`; needed in two or more
            dimensions. Points off the slice fade with their distance.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        show_points: also draw the trials with values.
        legend: also draw the legend, above the axes.
        n: points of the curve.

    Raises:
        InvalidPoint: not exactly one parameter varies.
    """
    chosen, i = _task(result, task)
    space = result.problem.space
    grid = draw.slice_of(space, names, fixed, n, 1)
    with draw.canvas(ax, style) as ax:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        mean, sd = (a[i] for a in result.on(grid))
        x = grid.axes[0]

        def curve(k: float) -> np.ndarray:
            return chosen.map.inverse(torch.from_numpy(mean + k * sd)).numpy()

        known = result.problem.valued(result.history, chosen.name)
        values = np.array([t.outcome.values[chosen.name] for t in known if t.outcome])
        log = chosen.map.positive
        low, high = _value_range(chosen, curve(0), values, log)
        # A band may reach infinity where a transform saturates; it is cut where nobody sees it.
        floor, ceiling = (low / 1e3, high * 1e3) if log else (low - 9 * (high - low), high + 9 * (high - low))
        for k, color in ((2, draw.YELLOW), (1, draw.GREEN)):
            ax.fill_between(
                x, curve(-k).clip(floor, ceiling), curve(k).clip(floor, ceiling), color=color, lw=0, label=f"_band {k}"
            )
        (line,) = ax.plot(x, curve(0).clip(floor, ceiling), color=draw.BLACK, label="_median")
        handles: list[Any] = [
            (line, "Median"),
            (Patch(color=draw.GREEN, lw=0), "68 % band"),
            (Patch(color=draw.YELLOW, lw=0), "95 % band"),
        ]
        crossed = False
        for color, threshold in zip(itertools.cycle(draw.PALETTE), chosen.thresholds):
            level = ax.axhline(threshold, color=color, ls="--", lw=1.2)
            contour = trace(grid, mean.ravel(), float(chosen.map(torch.tensor(threshold, dtype=torch.float64))))
            crossings = contour.lines[0][:, 0] if contour.lines else np.empty(0)
            crossed |= len(crossings) > 0
            (mark,) = ax.plot(
                crossings, np.full(len(crossings), threshold), "d", color=color, mec="white", ms=7, zorder=5,
                label=f"_crossing {threshold:g}",
            )  # fmt: skip
            handles.append((level, draw.level_text(chosen, threshold)))
            if len(crossings):
                at = ", ".join(f"{c:.4g}" for c in crossings[:3]) + (" …" if len(crossings) > 3 else "")
                handles.append(
                    (mark, f"at {at}{draw.unit_after(space.parameters[space.names.index(grid.names[0])].unit)}")
                )
        if show_points and known:
            alpha = draw.nearness(space, known, grid)
            places = np.array([t.x[grid.names[0]] for t in known])
            for state in ("complete", "censored"):
                of = np.array([t.state == state for t in known])
                if of.any():
                    y = values[of].clip(low, high)  # an infinite limit sits on the edge
                    ax.scatter(
                        places[of], y, s=22, marker=draw.MARKERS[state], c=draw.BLACK, alpha=alpha[of], lw=0, zorder=4,
                        label=f"_{state}", clip_on=False,
                    )  # fmt: skip
                    handles.append(
                        (
                            Line2D([], [], ls="", marker=draw.MARKERS[state], color=draw.BLACK, ms=5),
                            f"{state} ({of.sum()})",
                        )
                    )
        if grid.allowed.logical_not().any():
            handles.append((draw.hatch(ax, space, grid), "Forbidden"))
        if result.problem.sign and space.dim == 1:
            optimum = result.optimum()
            (x_best,) = optimum.x.values()
            handles.append(draw.star(ax, (x_best, optimum.value), _optimum_text(result, optimum)))
        if chosen.thresholds and not crossed:
            draw.note(ax, "threshold not crossed")
        draw.frame(ax, space, grid)
        if log:
            ax.set_yscale("log")
        ax.set_ylim(low, high)
        ax.set_ylabel(draw.with_unit(chosen.label or chosen.name, chosen.unit))
        if legend:
            draw.legend(ax, handles)
    return ax


def plot_probability(
    result: Result,
    task: str | None = None,
    names: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    ax: Axes | None = None,
    *,
    threshold: float | None = None,
    style: Style = "ATLAS",
    show_points: bool = True,
    order: Order | None = None,
    colorbar: bool = True,
    legend: bool = True,
    n: int = 201,
) -> Axes:
    """P(f >= T) in one or two parameters, with the level set and the lines of 16 % and 84 % around it.

    Args:
        result: what to draw.
        task: which output; the first by default.
        names, fixed: the slice, see `Slice.of`; needed in three or more dimensions.
        ax: where; a figure of its own by default.
        threshold: T in the task's units; its first threshold by default.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        show_points: also draw the trials, by state.
        order: colour them by order of completion ("told") or of asking ("number").
        colorbar, legend: draw them.
        n: grid points per axis.

    Raises:
        InvalidPoint: more than two parameters vary.
    """
    draw.check_order(order)
    chosen, i = _task(result, task)
    level = chosen.threshold(threshold)
    grid = draw.slice_of(result.problem.space, names, fixed, n, 1, 2)
    with draw.canvas(ax, style, 1.12 if colorbar else 1.0) as ax:
        mean, sd = (a[i] for a in result.on(grid, forbidden=len(grid.names) == 2))
        difference = mean - float(chosen.map(torch.tensor(level, dtype=torch.float64)))
        label = draw.probability_text(chosen, level)
        handles: list[Any] = []
        if len(grid.names) == 1:
            p = levelset.excursion_probability(torch.from_numpy(difference), torch.from_numpy(sd**2), 0.0).numpy()
            ax.plot(grid.axes[0], p, color=draw.BLUE, label="_probability")
            ax.axhline(0.5, color="0.5", lw=0.8, ls=":")
            ax.set_ylabel(label)
            if grid.allowed.logical_not().any():
                handles.append((draw.hatch(ax, result.problem.space, grid), "Forbidden"))
            draw.frame(ax, result.problem.space, grid)
            ax.set_ylim(-0.02, 1.02)
        else:
            mesh, handles = draw.probability(
                ax, result.problem.space, grid, difference, sd, draw.level_text(chosen, level)
            )
            if show_points:
                handles += draw.points(ax, result.problem.space, result.history, grid, order)
            draw.frame(ax, result.problem.space, grid)
            if colorbar:
                bar = draw.figure_of(ax).colorbar(mesh, ax=ax, pad=0.02, fraction=0.06, aspect=25)
                bar.set_label(label)
        if legend:
            draw.legend(ax, handles)
    return ax


def plot_exclusion(
    result: Result,
    ax: Axes | None = None,
    observed: str = "observed",
    expected: str = "expected",
    bands: Mapping[int, tuple[str, str]] | None = None,
    *,
    names: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    style: Style = "ATLAS",
    label: str | None = None,
    luminosity: float | None = None,
    energy: float | None = None,
    show_points: bool = True,
    order: Order | None = "told",
    colorbar: bool = True,
    legend: bool = True,
    n: int = 201,
) -> Axes:
    """The contours of all tasks, as searches publish them.

    The observed contour is solid, the expected one dashed; between the contours of the tasks "expected_minus_1" and
    "expected_plus_1" lies the green band of one standard deviation, between those of 2 the yellow one. Tasks of other
    names are drawn as solid lines in colours of their own, each in its 68 % band {|mean - T| < sd} of the belief.

    Args:
        result: what to draw.
        ax: where; a figure of its own by default.
        observed, expected: names of the tasks.
        bands: number of standard deviations (1 or 2) -> the two tasks that bound the band; by default
            (expected + "_minus_1", expected + "_plus_1") and so on, where these exist.
        names, fixed: the slice, see `Slice.of`; needed in three or more dimensions.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        label: text above the left corner, "My reinterpretation" say.
        luminosity, energy: in 1/fb and TeV, for the text above the right corner.
        show_points: also draw the trials, by state.
        order: colour them by order of completion ("told") or of asking ("number"); None draws them grey.
        colorbar, legend: draw them.
        n: grid points per axis.

    Raises:
        InvalidPoint: not exactly two parameters vary.
        InvalidProblem: a band of unknown tasks; an optimum was sought.
    """
    draw.check_order(order)
    problem = result.problem
    problem.tasks[0].threshold()
    grid = draw.slice_of(problem.space, names, fixed, n, 2)
    if bands is None:
        pairs = {k: (f"{expected}_minus_{k}", f"{expected}_plus_{k}") for k in (1, 2)}
        bands = {k: pair for k, pair in pairs.items() if set(pair) <= set(problem.task_names)}
    if unknown := sorted(set(bands) - {1, 2}):
        raise InvalidProblem(
            f"plot_exclusion: bands are of 1 or 2 standard deviations, got {unknown}. Use these as keys"
        )
    for pair in bands.values():
        for name in pair:
            problem.task(name)
    bounding = {name for pair in bands.values() for name in pair}
    with draw.canvas(ax, style, 1.12 if show_points and order and colorbar else 1.0) as ax:
        from matplotlib.patches import Patch

        mean, sd = result.on(grid, forbidden=True)

        def above(name: str, threshold: float | None = None) -> np.ndarray:
            task, i = _task(result, name)
            level = task.threshold(threshold)
            return mean[i] - float(task.map(torch.tensor(level, dtype=torch.float64)))

        shading: list[Any] = []
        for k in sorted(bands, reverse=True):
            a, b = (above(name) for name in bands[k])
            if draw.fill(ax, grid, a, b, (draw.GREEN, draw.YELLOW)[k - 1], f"_band {k}"):
                shading.insert(0, (Patch(color=(draw.GREEN, draw.YELLOW)[k - 1], lw=0), rf"Expected $\pm${k}$\sigma$"))
        lines: list[Any] = []
        found = False
        colors = itertools.cycle(draw.PALETTE)
        fuzzy = False
        for task in problem.tasks:
            if task.name in bounding:
                continue
            for threshold in task.thresholds:
                if task.name == observed:
                    look: dict[str, Any] = {"color": draw.BLACK, "ls": "-", "lw": 2.0, "zorder": 3.2}
                    title = f"Observed ({draw.short_level(task, threshold)})"
                elif task.name == expected:
                    look = {"color": draw.BLACK, "ls": (0, (4, 2)), "lw": 1.5, "zorder": 3.1}
                    title = f"Expected ({draw.short_level(task, threshold)})"
                else:
                    look = {"color": next(colors), "ls": "-", "lw": 1.8, "zorder": 3}
                    title = draw.level_text(task, threshold)
                    i = problem.task_names.index(task.name)
                    middle, color = above(task.name, threshold), look["color"]
                    named = f"_uncertainty {task.name} {threshold:g}"
                    fuzzy |= draw.fill(ax, grid, *levelset.band_edges(middle, sd[i]), color, named, alpha=0.25)
                crossed, handle = draw.lines(
                    ax, grid, above(task.name, threshold), f"_{task.name} {threshold:g}", **look
                )
                found |= crossed
                lines.append((handle, title if crossed else f"{title}: not crossed"))
        handles = lines + shading
        if fuzzy:
            handles.append((Patch(color="0.4", alpha=0.3, lw=0), "68 % band of the belief"))
        if not found:
            draw.note(ax, "threshold not crossed")
        if grid.allowed.logical_not().any():
            handles.append((draw.hatch(ax, problem.space, grid), "Forbidden"))
        if show_points:
            handles += draw.points(ax, result.problem.space, result.history, grid, order)
            if order and colorbar:
                draw.order_bar(ax, result.history, order)
        draw.frame(ax, problem.space, grid)
        header = draw.header(ax, label, luminosity, energy)
        if legend:
            draw.legend(ax, handles, header)
    return ax


def plot_optimum(
    result: Result,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    style: Style = "ATLAS",
    show_points: bool = True,
    order: Order | None = None,
    colorbar: bool = True,
    legend: bool = True,
    n: int = 201,
) -> Axes:
    """The median of the belief in two parameters, and the best point of it.

    Args:
        result: what to draw.
        ax: where; a figure of its own by default.
        names, fixed: the slice, see `Slice.of`; parameters that are neither named nor fixed are held at the optimum.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        show_points: also draw the trials, by state.
        order: colour them by order of completion ("told") or of asking ("number").
        colorbar, legend: draw them.
        n: grid points per axis.

    Raises:
        InvalidPoint: not exactly two parameters vary.
        InvalidProblem: level sets were sought.
    """
    draw.check_order(order)
    optimum = result.optimum()
    space, task = result.problem.space, result.problem.tasks[0]
    if names is not None:
        fixed = {p: v for p, v in optimum.x.items() if p not in names} | dict(fixed or {})
    grid = draw.slice_of(space, names, fixed, n, 2)
    with draw.canvas(ax, style, 1.12 if colorbar else 1.0) as ax:
        # Matplotlib's colour scale overflows where the range of the values does.
        median = np.clip(_median(result, grid), -1e300, 1e300)
        mesh, handles = draw.median(ax, space, grid, median)
        handles.insert(0, draw.star(ax, [optimum.x[p] for p in grid.names], _optimum_text(result, optimum)))
        if show_points:
            handles += draw.points(ax, space, result.history, grid, order)
        draw.frame(ax, space, grid)
        if colorbar:
            bar = draw.figure_of(ax).colorbar(mesh, ax=ax, pad=0.02, fraction=0.06, aspect=25)
            bar.set_label(draw.with_unit(task.label or task.name, task.unit))
        if legend:
            draw.legend(ax, handles)
    return ax


def plot_points(
    result: Result,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    order: Order | None = "told",
    style: Style = "ATLAS",
    colorbar: bool = True,
    legend: bool = True,
) -> Axes:
    """Where the function was evaluated: a marker per state, a colour by order.

    Args:
        result: what to draw.
        ax: where, also on top of something; a figure of its own by default.
        names, fixed: the slice, see `Slice.of`; needed in three or more dimensions. Points off it fade with their
            distance.
        order: colour by order of completion ("told") or of asking ("number"); None for one colour.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        colorbar, legend: draw them.

    Raises:
        InvalidPoint: not exactly two parameters vary.
    """
    draw.check_order(order)
    grid = draw.slice_of(result.problem.space, names, fixed, 2, 2)
    with draw.canvas(ax, style, 1.12 if order and colorbar else 1.0) as ax:
        handles = draw.points(ax, result.problem.space, result.history, grid, order)
        if result.problem.space.constraints:
            handles.append((draw.hatch(ax, result.problem.space, grid), "Forbidden"))
        if order and colorbar:
            draw.order_bar(ax, result.history, order)
        draw.frame(ax, result.problem.space, grid)
        if legend:
            draw.legend(ax, handles)
    return ax


def plot_slices(
    result: Result,
    task: str | None = None,
    at: Mapping[str, float] | None = None,
    *,
    threshold: float | None = None,
    style: Style = "ATLAS",
    show_points: bool = True,
    n: int = 101,
) -> np.ndarray:
    """P(f >= T) in all planes of two parameters through one point, as the lower triangle of a square of panels.

    Where an optimum is sought it is the median of the belief, through the best point.

    Args:
        result: what to draw.
        task: which output; the first by default.
        at: the point; parameters left out, and all by default, come from a complete trial: of the eighth with values
            nearest to the threshold, the one nearest to the middle of the space; or they are those of the optimum.
        threshold: T in the task's units; its first threshold by default.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        show_points: also draw the trials, fading with the distance from the plane.
        n: grid points per axis of a panel.

    Returns:
        Array of axes, (d - 1, d - 1); None above the diagonal.

    Raises:
        InvalidPoint: fewer than two parameters, or a point outside of the space.
    """
    space = result.problem.space
    if space.dim < 2:
        raise InvalidPoint(f"plot_slices: needs two or more parameters, got {list(space.names)}. Use plot_band")
    chosen, i = _task(result, task)
    optimum = result.optimum() if result.problem.sign and threshold is None else None
    level = math.nan if optimum else chosen.threshold(threshold)
    middle = optimum.x if optimum else _telling(result, chosen, level)
    through = space.check({**middle, **(at or {})}, "plot_slices")
    pairs = [(row, column) for row in range(space.dim - 1) for column in range(row + 1)]
    planes = []
    for row, column in pairs:
        pair = (space.names[column], space.names[row + 1])
        planes.append(Slice.of(space, pair, {p: v for p, v in through.items() if p not in pair}, n))
    if optimum:
        title, label = _optimum_text(result, optimum), draw.with_unit(chosen.label or chosen.name, chosen.unit)
        medians = [_median(result, grid) for grid in planes]
        seen = np.concatenate([m[grid.allowed.numpy().reshape(m.shape)] for m, grid in zip(medians, planes)])
    else:
        title, label = draw.level_text(chosen, level), draw.probability_text(chosen, level)
        z = float(chosen.map(torch.tensor(level, dtype=torch.float64)))
    with draw.style(style):
        from matplotlib.figure import Figure

        k = space.dim - 1
        figure = Figure(figsize=(max(2.1 * k + 1.3, 4.6), max(2.0 * k + 0.9, 3.6)), layout="constrained")
        axes = np.full((k, k), None, dtype=object)
        entries: dict[str, Any] = {}
        for j, ((row, column), grid) in enumerate(zip(pairs, planes)):
            ax = axes[row, column] = figure.add_subplot(k, k, row * k + column + 1)
            if optimum:
                mesh, drawn = draw.median(ax, space, grid, medians[j], (seen.min(), seen.max()))
                if not at:
                    drawn.append(draw.star(ax, [optimum.x[p] for p in grid.names], title))
            else:
                mean, sd = (a[i] for a in result.on(grid, forbidden=True))
                mesh, drawn = draw.probability(ax, space, grid, mean - z, sd, title, small=True)
            if show_points:
                drawn += draw.points(ax, space, result.history, grid, None, size=12)
            for place, line in zip(grid.names, (ax.axvline, ax.axhline)):
                line(through[place], color="0.35", lw=0.7, ls=":", zorder=2.5)
            entries |= {text: handle for handle, text in drawn}
            draw.frame(ax, space, grid)
            if row < k - 1:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False, which="both")
            if column:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False, which="both")
        if title in entries:  # crossed in one plane at least
            entries.pop(f"{title}: not crossed", None)
        shown = [ax for ax in axes.ravel() if ax is not None]
        bar = figure.colorbar(mesh, ax=shown, pad=0.02, fraction=0.05, aspect=30)
        bar.set_label(label)
        point = "\n".join(
            f"{p.label or p.name} = {draw.number(through[p.name])}{draw.unit_after(p.unit)}" for p in space.parameters
        )
        if k > 1:
            corner = figure.add_subplot(k, k, k)
            corner.set_axis_off()
            corner.legend(
                list(entries.values()), list(entries), loc="upper left", bbox_to_anchor=(-0.1, 1.0), borderaxespad=0,
                title=f"Slices through\n{point}", alignment="left",
            )  # fmt: skip
        else:
            draw.legend(axes[0, 0], [(handle, text) for text, handle in entries.items()])
        figure.draw_without_rendering()
    return axes


def plot_convergence(
    result: Result,
    ax: Axes | None = None,
    *,
    surrogate: Surrogate | None = None,
    steps: int = 15,
    style: Style = "ATLAS",
    legend: bool = True,
) -> Axes:
    """Expected misclassified fraction of the allowed volume after the first k evaluations, per task.

    Where an optimum is sought, the best value seen.

    Args:
        result: what to draw.
        ax: where; a figure of its own by default.
        surrogate: recipe that is fitted again to the first k trials with values in order of completion, about half a
            second each; the default Gaussian process by default.
        steps: how many values of k.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        legend: also draw the legend, above the axes.

    Raises:
        FitError: fewer than three trials hold values.
    """
    done = sorted((t for t in result.history if t.told is not None), key=lambda t: t.told or 0)
    dear = [t.state in INFORMATIVE and result.problem.level(t.fidelity) == 0 for t in done]
    useful = [j + 1 for j, own in enumerate(dear) if own]
    if len(useful) < 3:
        raise FitError(
            f"plot_convergence: needs at least 3 trials with values, got {len(useful)}. Evaluate more points"
        )
    if steps < 2:
        raise InvalidStrategy(f"plot_convergence: steps must be at least 2, got {steps!r}")
    if result.problem.sign:
        return _best_so_far(result, done, ax, style, legend)
    first = min(2 + result.problem.space.dim, len(useful) - 1)
    ks = np.unique(np.linspace(first, len(useful), steps).round().astype(int))
    recipe = surrogate or GaussianProcess()
    left: dict[str, list[float]] = {name: [] for name in result.problem.task_names}
    for k in ks:
        belief = believe(result.problem, recipe, done[: useful[k - 1]])
        for name, value in misclassified(result.problem, belief.posterior).items():
            left[name].append(max(value, 1e-9))  # less is none, and none has no place on a log scale
    with draw.canvas(ax, style) as ax:
        from matplotlib.ticker import MaxNLocator

        counts = [useful[k - 1] for k in ks]
        handles = []
        for color, marker, task in zip(itertools.cycle(draw.PALETTE), itertools.cycle("osD^vPX"), result.problem.tasks):
            (line,) = ax.plot(counts, left[task.name], color=color, marker=marker, ms=4, label=f"_{task.name}")
            handles.append((line, task.label or task.name))
        ax.set_yscale("log")
        seen = [value for values in left.values() for value in values]
        ax.set_ylim(min(seen) / 2, max(seen) * 2)
        ax.set_xlim(0, counts[-1] * 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("Evaluations")
        ax.set_ylabel("Expected misclassified fraction")
        if legend and len(handles) > 1:
            draw.legend(ax, handles)
    return ax


def _best_so_far(result: Result, done: Sequence[Trial], ax: Axes | None, style: Style, legend: bool) -> Axes:
    """The best exact value among the first k evaluations."""
    known = [t for t in result.problem.valued(done, result.problem.tasks[0].name) if t.state == "complete"]
    if not known:
        raise FitError("plot_convergence: needs a trial with an exact value, got bounds only. Evaluate more points")
    task, sign = result.problem.tasks[0], result.problem.sign
    values = [t.outcome.values[task.name] for t in known if t.outcome]
    best = sign * np.maximum.accumulate(sign * np.array(values))
    with draw.canvas(ax, style) as ax:
        from matplotlib.ticker import MaxNLocator

        counts = [j + 1 for j, t in enumerate(done) if t in known]
        (line,) = ax.step([*counts, len(done)], [*best, best[-1]], where="post", color=draw.BLUE, lw=2.0, label="_best")
        (dots,) = ax.plot(counts, values, "o", color="0.6", ms=4, label="_values")
        if task.map.positive:
            ax.set_yscale("log")
        ax.set_xlim(0, len(done) * 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("Evaluations")
        ax.set_ylabel(draw.with_unit(task.label or task.name, task.unit))
        if legend:
            draw.legend(ax, [(line, "Best value seen"), (dots, "Value")])
    return ax


def plot_replay(
    replay: Replay,
    path: str | Path | None = None,
    ax: Axes | None = None,
    *,
    style: Style = "ATLAS",
    legend: bool = True,
    dpi: float = 200,
) -> Axes:
    """How the error of a replayed campaign fell, against the same belief with points in random order.

    Args:
        replay: what to draw.
        path: file to write, by its suffix as PNG, PDF, SVG ...; None writes nothing.
        ax: where; a figure of its own by default.
        style: "ATLAS", "CMS", or "plain" for matplotlib's present settings.
        legend: also draw the legend, above the axes.
        dpi: of a PNG.

    Raises:
        InvalidStrategy: an unknown style or suffix.
        MissingExtra: matplotlib or mplhep is not installed.
    """
    draw.require(style)
    if path is not None:
        draw.check_suffix(Path(path))
    with draw.canvas(ax, style) as ax:
        from matplotlib.ticker import MaxNLocator

        handles: list[Any] = []
        campaign, random, task = replay.curve, replay.random, replay.problem.tasks[0]
        looks: tuple[dict[str, Any], ...] = ({"color": draw.BLUE, "lw": 2.0}, {"color": "0.5", "ls": "--", "lw": 1.6})
        for curve, look, name in zip((campaign, random), looks, ("Campaign", "Random order")):
            if curve.evaluations:
                (line,) = ax.plot(curve.evaluations, curve.error, label=f"_{name}", clip_on=False, **look)
                handles.append((line, name))
        handles.append((ax.axhline(replay.goal, color=draw.BLACK, lw=0.8, ls=":"), f"{100 * replay.goal:g} % wrong"))
        if (needed := replay.needed) is not None:
            (mark,) = ax.plot(
                [needed], [campaign.at(needed)], "o", color=draw.RED, mec="white", ms=8, zorder=4, clip_on=False,
                label="_needed",
            )  # fmt: skip
            handles.append((mark, f"{needed} of {replay.points} points"))
        # Linear below one wrong point, so that none at all has a place.
        one = 1 / max(replay.points - replay.failed, 1)
        ax.set_yscale("symlog", linthresh=one, linscale=0.4)
        ax.set_ylim(0, 1.3 * max(*campaign.error, *random.error, replay.goal))
        ax.set_xlim(0, 1.03 * max(*campaign.evaluations, *random.evaluations))
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(f"Points asked for, of {replay.points}")
        ax.set_ylabel(f"Wrong side of {draw.level_text(task, task.thresholds[0])}")
        if legend:
            draw.legend(ax, handles)
    if path is not None:
        _save(ax, path, style, dpi, [task.name])
    return ax


def _save(ax: Axes, path: str | Path, style: str, dpi: float, labels: Sequence[str]) -> None:
    """Write the figure of these axes; ``labels`` are what a person wrote into it."""
    try:
        with draw.style(style):
            draw.figure_of(ax).savefig(path, dpi=dpi)
    except OSError as error:
        raise StoreError(f"plot: {path} must be writable, got {error.strerror}. Choose another file") from error
    except ValueError as error:
        raise InvalidProblem(
            f"plot: labels must be text or formulae that matplotlib reads, got {list(labels)} ({error}). "
            "Change the label"
        ) from error


def _telling(result: Result, task: Task, level: float) -> dict[str, float]:
    """Of the eighth of the complete trials nearest to the threshold (transformed), the one nearest to the middle."""
    valued = result.problem.valued(result.history, task.name)
    known = [t for t in valued if t.state == "complete"] or valued
    if not known:  # this task is missing everywhere: the trial nearest to the middle
        known, near = list(result.history), list(range(len(result.history)))
    else:
        values = torch.tensor([t.outcome.values[task.name] for t in known if t.outcome], dtype=torch.float64)
        z = task.map(torch.tensor(level, dtype=torch.float64))
        near = (task.map(values) - z).abs().argsort()[: math.ceil(len(known) / 8)].tolist()
    space = result.problem.space
    off = (space.to_unit(space.tensor([known[j].x for j in near])) - 0.5).square().sum(1)
    return dict(known[near[int(off.argmin())]].x)


def _median(result: Result, grid: Slice) -> np.ndarray:
    """The median of the only task's belief on a slice, in its units; also at forbidden points."""
    mean, _ = result.on(grid, forbidden=True)
    return result.problem.tasks[0].map.inverse(torch.from_numpy(mean[0])).numpy()


def _optimum_text(result: Result, optimum: Optimum) -> str:
    task = result.problem.tasks[0]
    value = f"{draw.number(optimum.value)}{draw.unit_after(task.unit)}"
    return f"{result.problem.goal.capitalize()} of {task.label or task.name}: {value}"


def _value_range(task: Task, median: np.ndarray, values: np.ndarray, log: bool) -> tuple[float, float]:
    """Ends of the vertical axis: thresholds, values and median in sight, but not all decades of a saturated limit."""
    level = np.asarray(task.thresholds)
    seen = np.concatenate([level, values, median])
    seen = seen[np.isfinite(seen) & (seen > 0 if log else True)]
    if log:
        ends = np.log10(seen)
        if len(level):
            ends = ends.clip(np.log10(level.min()) - 4, np.log10(level.max()) + 4)
        margin = 0.1 * max(np.ptp(ends), 0.5)
        return float(10 ** (ends.min() - margin)), float(10 ** (ends.max() + margin))
    margin = 0.08 * (np.ptp(seen) or 1.0)
    return float(seen.min() - margin), float(seen.max() + margin)


def _task(result: Result, name: str | None) -> tuple[Task, int]:
    task = result.problem.task(name)
    return task, result.problem.task_names.index(task.name)


_DRAW: Mapping[str, Callable[..., Any]] = {
    "band": plot_band,
    "probability": plot_probability,
    "exclusion": plot_exclusion,
    "optimum": plot_optimum,
    "points": plot_points,
    "slices": plot_slices,
    "convergence": plot_convergence,
}
