"""The pieces that figures are made of: lines, fillings, points, frames, legends, words and styles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from .. import levelset
from ..contours import Slice, trace
from ..data import INFORMATIVE, State, Trial
from ..errors import InvalidPoint, InvalidStrategy, MissingExtra
from ..problem import Task
from ..space import ParameterSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = Literal["ATLAS", "CMS", "plain"]
Order = Literal["told", "number"]

BLACK, ORANGE, SKY, TEAL, BLUE, RED, PINK = "#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"
PALETTE = (BLUE, RED, TEAL, PINK, ORANGE, SKY, BLACK)
#: Fill of the bands of 1 and 2 standard deviations.
GREEN, YELLOW = "#00cc00", "#ffee33"
#: Marker of each state; both pending states look alike.
MARKERS: Mapping[State, str] = {
    "complete": "o",
    "censored": "^",
    "failed": "X",
    "invalid": "P",
    "queued": "D",
    "running": "D",
}
STATES: tuple[tuple[str, tuple[State, ...]], ...] = (
    ("complete", ("complete",)),
    ("censored", ("censored",)),
    ("failed", ("failed",)),
    ("invalid", ("invalid",)),
    ("pending", ("queued", "running")),
)
# The experiments' styles are made for slides; these sizes suit one column of a paper.
_SIZES = {
    "font.size": 10.5,
    "axes.labelsize": "large",
    "axes.titlesize": "medium",
    "axes.labelpad": 4.0,
    "axes.linewidth": 0.9,
    "xtick.labelsize": "medium",
    "ytick.labelsize": "medium",
    "xtick.major.size": 6.0,
    "ytick.major.size": 6.0,
    "xtick.minor.size": 3.0,
    "ytick.minor.size": 3.0,
    "xtick.major.pad": 4.0,
    "ytick.major.pad": 4.0,
    "legend.fontsize": "small",
    "legend.handlelength": 2.2,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    # Drawn alike after the style is gone, in a notebook say: no font is looked up by a setting.
    "mathtext.fontset": "stixsans",
    "mathtext.default": "it",
    "axes.unicode_minus": True,
    "font.family": ["TeX Gyre Heros", "DejaVu Sans"],
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
}
_WIDTH, _HEIGHT = 5.0, 4.3  # inches


def probability(
    ax: Axes,
    space: ParameterSpace,
    grid: Slice,
    difference: np.ndarray,
    sd: np.ndarray,
    title: str,
    small: bool = False,
) -> tuple[Any, list[Any]]:
    """The map of P, the level set, the lines of 16 % and 84 %, the forbidden region; the map and legend entries."""
    from matplotlib.colors import LinearSegmentedColormap

    # Also below the cover of the forbidden region, so that no seam shows.
    p = levelset.excursion_probability(torch.from_numpy(difference), torch.from_numpy(sd**2), 0.0).numpy()
    colors = LinearSegmentedColormap.from_list("probability", ["#7fb2da", "#bcd8ec", "#fafafa", "#f9d8b0", "#f0a860"])
    mesh = ax.pcolormesh(*grid.axes, p.T, cmap=colors, vmin=0, vmax=1, shading="nearest", rasterized=True, zorder=1)
    crossed, line = lines(ax, grid, difference, "_level set", color=BLACK, lw=1.8, zorder=3)
    handles: list[Any] = [(line, title if crossed else f"{title}: not crossed")]
    fuzzy = False
    for values in levelset.band_edges(difference, sd):
        drawn, edge = lines(ax, grid, values, "_edge", color=BLACK, lw=0.9, ls=":", zorder=3)
        fuzzy |= drawn
    if fuzzy:
        handles.append((edge, "68 % band"))
    if not crossed:
        note(ax, "threshold not crossed", "x-small" if small else "medium")
    if grid.allowed.logical_not().any():
        handles.append((hatch(ax, space, grid), "Forbidden"))
    return mesh, handles


def median(
    ax: Axes, space: ParameterSpace, grid: Slice, values: np.ndarray, shown: tuple[float, float] | None = None
) -> tuple[Any, list[Any]]:
    """The map of the belief's median between the ends shown, lines of equal value, the forbidden region; the map and
    legend entries."""
    from matplotlib.ticker import MaxNLocator

    allowed = values[grid.allowed.numpy().reshape(grid.shape)]
    low, high = shown or (float(allowed.min()), float(allowed.max()))
    values = values.clip(low, high)
    mesh = ax.pcolormesh(
        *grid.axes, values.T, cmap="cividis", vmin=low, vmax=high, shading="nearest", rasterized=True, zorder=1
    )
    handles: list[Any] = []
    if high > low:
        levels = MaxNLocator(9).tick_values(low, high)
        ax.contour(
            *grid.axes,
            values.T,
            levels=levels,
            colors="white",
            linestyles="solid",
            linewidths=0.6,
            alpha=0.6,
            zorder=1.5,
        )
    if grid.allowed.logical_not().any():
        handles.append((hatch(ax, space, grid), "Forbidden"))
    return mesh, handles


def star(ax: Axes, point: Sequence[float], text: str) -> tuple[Any, str]:
    """Mark the best point; a legend entry."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"marker": "*", "color": RED, "mec": "white", "ls": ""}
    ax.plot(*([value] for value in point), ms=15, zorder=5, clip_on=False, label="_optimum", **look)
    return Line2D([], [], ms=11, **look), text


def lines(ax: Axes, grid: Slice, values: np.ndarray, label: str, **look: Any) -> tuple[bool, Any]:
    """Draw {values = 0}; whether there is any, and a legend entry."""
    from matplotlib.lines import Line2D

    found = trace(grid, values.ravel(), 0.0).lines
    for line in found:
        ax.plot(line[:, 0], line[:, 1], label=label, **look)
    return bool(found), Line2D([], [], **{k: v for k, v in look.items() if k != "zorder"})


def fill(ax: Axes, grid: Slice, a: np.ndarray, b: np.ndarray, color: str, label: str, alpha: float = 1.0) -> bool:
    """Fill between {a = 0} and {b = 0}, also below the cover of the forbidden region; whether there is any."""
    # a and b differ in sign where |a + b| < |a - b|. The ratio keeps a band in one piece that is thinner than the grid.
    ratio = (a + b) / np.maximum(np.abs(a - b), 1e-9)
    seen = ratio.ravel()[grid.allowed.numpy()]
    if not len(seen) or seen.min() > 1 or seen.max() < -1:
        return False
    filled = ax.contourf(
        *grid.axes, ratio.T, levels=[-1.0, 1.0], colors=[color], alpha=alpha, zorder=1.5, antialiased=True
    )
    filled.set_label(label)
    return True


def hatch(ax: Axes, space: ParameterSpace, grid: Slice) -> Any:
    """Cover and hatch what the constraints forbid; a legend entry."""
    from matplotlib.patches import Patch

    look: dict[str, Any] = {"facecolor": "0.94", "edgecolor": "0.6", "hatch": "/////", "linewidth": 0.0}
    if len(grid.names) == 1:
        forbidden = ~grid.allowed.numpy()
        ax.fill_between(
            grid.axes[0], 0, 1, where=forbidden, step="mid", transform=ax.get_xaxis_transform(), zorder=2,
            label="_forbidden", **look,
        )  # fmt: skip
    else:
        # Finer than the picture: the edge must look straight.
        fine = Slice.of(space, grid.names, grid.fixed, 601)
        forbidden = ~fine.allowed.numpy().reshape(fine.shape).T
        if forbidden.any():
            region = ax.contourf(
                *fine.axes, forbidden.astype(float), levels=[0.5, 1.5], colors=[look["facecolor"]],
                hatches=[look["hatch"]], zorder=2, antialiased=True,
            )  # fmt: skip
            region.set_edgecolor(look["edgecolor"])
            region.set_linewidth(0.0)
            region.set_label("_forbidden")
    return Patch(**look)


def points(
    ax: Axes, space: ParameterSpace, trials: Sequence[Trial], grid: Slice, order: Order | None, size: float = 24
) -> list[Any]:
    """Draw the trials on a slice of two parameters, one collection per state; legend entries."""
    from matplotlib.lines import Line2D

    ranks = _ranks(trials, order)
    near = nearness(space, trials, grid)
    handles = []
    for state, members in STATES:
        of = np.array([t.state in members for t in trials], dtype=bool)
        if not of.any():
            continue
        x, y = (np.array([t.x[name] for t in trials])[of] for name in grid.names)
        pending = state == "pending"
        marker = MARKERS[members[0]]
        look: dict[str, Any] = {"s": size, "marker": marker, "linewidths": 0.7, "zorder": 4, "label": f"_{state}"}
        # The farther off the slice, the paler, but never gone; whole also on the edge of the axes.
        look |= {"alpha": near[of], "clip_on": False}
        if pending:
            # Hollow, which an array of alpha would undo.
            look |= {"alpha": None, "facecolors": "none", "edgecolors": [(0.3, 0.3, 0.3, a) for a in near[of]]}
        elif order:
            colors, norm = _order_colors(ranks)
            look |= {"c": ranks[of], "cmap": colors, "norm": norm, "edgecolors": BLACK}
        else:
            look |= {"facecolors": "0.25" if state in INFORMATIVE else "white", "edgecolors": BLACK}
        ax.scatter(x, y, **look)
        face = "none" if pending else ("0.25" if state in INFORMATIVE else "white") if not order else "#8a7fb9"
        handles.append(
            (
                Line2D([], [], ls="", marker=marker, ms=5, mfc=face, mec="0.3" if pending else BLACK, mew=0.7),
                f"{state} ({of.sum()})",
            )
        )
    return handles


def order_bar(ax: Axes, trials: Sequence[Trial], order: Order) -> None:
    """The colour bar of `points`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    colors, norm = _order_colors(_ranks(trials, order))
    ticks = [1, *(t for t in MaxNLocator(5, integer=True).tick_values(1, norm.vmax) if 1.5 < t <= norm.vmax)]
    bar = figure_of(ax).colorbar(ScalarMappable(norm, colors), ax=ax, pad=0.02, fraction=0.05, aspect=28, ticks=ticks)
    bar.ax.minorticks_off()
    bar.set_label("Evaluation, in order of " + ("completion" if order == "told" else "asking"), size="medium")


def _ranks(trials: Sequence[Trial], order: Order | None) -> np.ndarray:
    """1, 2, 3 ... in the order; NaN for a pending trial in the order of completion."""
    values = [t.told if order == "told" else t.number for t in trials]
    return np.array([math.nan if v is None else v + 1.0 for v in values])


def _order_colors(ranks: np.ndarray) -> tuple[Any, Any]:
    """Colours from pale to dark, and the range of ranks they span."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    known = ranks[np.isfinite(ranks)]
    colors = ListedColormap(colormaps["Purples"](np.linspace(0.05, 1.0, 256)), name="order")
    return colors, Normalize(1, max(known.max(initial=1.0), 2.0))


def nearness(space: ParameterSpace, trials: Sequence[Trial], grid: Slice) -> np.ndarray:
    """1 on the slice, falling with the distance from it in the unit cube to 0.08."""
    others = [i for i, p in enumerate(space.names) if p not in grid.names]
    if not others or not trials:
        return np.ones(len(trials))
    u = space.to_unit(space.tensor([t.x for t in trials]))
    held = space.to_unit(grid.x[:1])
    distance = (u - held)[:, others].square().sum(1).sqrt().numpy()
    return np.maximum(np.exp(-0.5 * (distance / 0.15) ** 2), 0.08)


# ----------------------------------------------------------------------------------------------- words and frame


def slice_of(
    space: ParameterSpace, names: Sequence[str] | None, fixed: Mapping[str, float] | None, n: int, *dims: int
) -> Slice:
    """The slice, if it has one of these numbers of parameters."""
    grid = Slice.of(space, tuple(names) if names is not None else None, fixed, n)
    if len(grid.names) not in dims:
        raise InvalidPoint(
            f"plot: this figure needs {' or '.join(map(str, dims))} parameters to vary, got {list(grid.names)}. "
            "Use names=(...) and fixed={name: value}, or another figure"
        )
    return grid


def check_order(order: Order | None) -> None:
    """Raise InvalidStrategy for an unknown order."""
    if order is not None and order not in get_args(Order):
        raise InvalidStrategy(f"plot: order must be 'told', 'number' or None, got {order!r}. Choose one of them")


def number(value: float) -> str:
    """A number as people write it, in mathtext if it has an exponent."""
    text = f"{value:.4g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
    return text.replace("-", "−")


def unit_after(unit: str) -> str:
    """The unit behind a number."""
    return f" {unit}" if unit else ""


def with_unit(text: str, unit: str) -> str:
    """The label of an axis."""
    return f"{text} [{unit}]" if unit else text


def level_text(task: Task, threshold: float) -> str:
    """The level set's equation."""
    return f"{task.label or task.name} = {number(threshold)}{unit_after(task.unit)}"


def probability_text(task: Task, threshold: float) -> str:
    """P(f ≥ T), in words of the task."""
    return f"P({task.label or task.name} ≥ {number(threshold)}{unit_after(task.unit)})"


def short_level(task: Task, threshold: float) -> str:
    """For "Observed (...)": the label if it says more than the name does."""
    return level_text(task, threshold) if task.label else f"threshold {number(threshold)}{unit_after(task.unit)}"


@contextmanager
def canvas(ax: Axes | None, name: str, stretch: float = 1.0) -> Iterator[Axes]:
    """Axes to draw on while a style holds: those given, or of a figure of its own; errors as of `require`."""
    with style(name):
        if ax is not None:
            yield ax
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH * stretch, _HEIGHT), layout="constrained")
        yield figure.add_subplot()
        figure.draw_without_rendering()  # what is made late (ticks, layout) is made now, while the style holds


def frame(ax: Axes, space: ParameterSpace, grid: Slice) -> None:
    """Scales, limits and labels of the axes."""
    p = space.parameters[space.names.index(grid.names[0])]
    ax.set(xscale=p.scale, xlim=(p.lower, p.upper), xlabel=with_unit(p.label or p.name, p.unit))
    if len(grid.names) == 2:
        p = space.parameters[space.names.index(grid.names[1])]
        ax.set(yscale=p.scale, ylim=(p.lower, p.upper), ylabel=with_unit(p.label or p.name, p.unit))


def header(ax: Axes, label: str | None, luminosity: float | None, energy: float | None) -> bool:
    """Texts above the corners; whether there are any."""
    beam = [rf"$\sqrt{{s}}$ = {energy:g} TeV"] if energy is not None else []
    beam += [rf"{luminosity:g} fb$^{{-1}}$"] if luminosity is not None else []
    if label:
        ax.set_title(label, loc="left", fontweight="bold", pad=5)
    if beam:
        ax.set_title(", ".join(beam), loc="right", pad=5)
    return bool(label or beam)


def legend(ax: Axes, handles: Sequence[tuple[Any, str]], header: bool = False) -> None:
    """A legend above the axes, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    if not handles:
        return
    lift = ScaledTranslation(0, (20 if header else 4) / 72, figure_of(ax).dpi_scale_trans)
    artists, texts = zip(*handles)
    ax.legend(
        artists, texts, loc="lower left", bbox_to_anchor=(0.0, 1.0), bbox_transform=ax.transAxes + lift,
        ncols=2 if max(map(len, texts)) > 16 else 3, borderaxespad=0.0, borderpad=0.0, columnspacing=1.4,
        labelspacing=0.35, frameon=False,
    )  # fmt: skip


def note(ax: Axes, text: str, size: str = "medium") -> None:
    """A remark in the middle of the axes."""
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", zorder=3.5, size=size,
        bbox={"facecolor": "white", "edgecolor": "0.6", "alpha": 0.9, "boxstyle": "round"},
    )  # fmt: skip


def figure_of(ax: Axes) -> Figure:
    """The whole figure of the axes."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise InvalidStrategy(f"plot: the axes must belong to a figure, got {ax!r}. Give axes that were not removed")
    return figure


# -------------------------------------------------------------------------------------------------- matplotlib


def require(style: str) -> None:
    """Load what a style needs, or say how to install it.

    Raises:
        InvalidStrategy: an unknown style.
        MissingExtra: matplotlib or mplhep is not installed.
    """
    if style not in get_args(Style):
        raise InvalidStrategy(
            f"plot: style must be one of {', '.join(get_args(Style))}, got {style!r}. Choose one of them"
        )
    try:
        import matplotlib  # noqa: F401

        if style != "plain":
            import mplhep  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f'plot: style {style!r} needs matplotlib and mplhep, got "{error}". Run: pip install "excursion[plot]"'
        ) from error


@contextmanager
def style(name: str) -> Iterator[None]:
    """Hold a style, and put every setting back; errors as of `require`."""
    require(name)
    import matplotlib

    settings: Any = {}
    if name != "plain":
        import mplhep

        settings = {**getattr(mplhep.style, name), **_SIZES}
    with matplotlib.rc_context(settings):
        yield


def check_suffix(path: Path) -> None:
    """Raise InvalidStrategy for a kind of file that matplotlib does not write."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise InvalidStrategy(
            f"plot: the file name must end in one of {', '.join('.' + k for k in sorted(known))}, got {str(path)!r}. "
            "Use .png or .pdf"
        )
