"""Tables and figures of what `benchmarks.suite.run` measured.

Run: python -m benchmarks.suite.report [--results DIR] [--docs DIR]

Prints the tables as Markdown. With --docs docs they also replace what stands between the two marks in
docs/benchmarks.md, and the figures go to docs/figures/.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .problems import PROBLEMS, TEST_POINTS, TestProblem
from .run import RESULTS, evaluations_to, load

#: The misclassified fraction that is to be reached.
GOAL = 0.01
BEGIN, END = "<!-- begin: benchmarks.suite.report -->", "<!-- end: benchmarks.suite.report -->"
#: In this order after the peers; the forest counts as one, points of ours without a criterion and a grid do not.
BASELINES = ("forest", "sobol", "grid")
BATCHES = (1, 5)
#: Errors at which ours and a grid are compared; None: that of ours at the end of its runs.
GRID_GOALS = (0.01, 0.005, 0.002, None)


@dataclass(frozen=True)
class Results:
    """All runs, by (method, batch, problem).

    Attributes:
        runs: what `run.add` wrote. A grid has no batches and stands under both batch sizes.
        problems: the problems that anything was run on, in the suite's order.
    """

    runs: Mapping[tuple[str, int, str], Sequence[Mapping[str, Any]]]
    problems: tuple[TestProblem, ...]

    @classmethod
    def read(cls, directory: Path) -> Results:
        """Everything in a directory of `run`."""
        runs: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
        for path in sorted(directory.glob("*-b*.json")):
            data = load(path)
            for run in data["runs"]:
                for batch in BATCHES if data["method"] == "grid" else (data["batch"],):
                    runs.setdefault((data["method"], batch, run["problem"]), []).append(run)
        known = {problem for _, _, problem in runs}
        return cls(runs, tuple(p for p in PROBLEMS.values() if p.name in known))

    def methods(self, *, criteria: bool = False) -> list[str]:
        """Ours first, peers, then baselines; or ours with each criterion by itself."""
        held = {method for method, _, _ in self.runs}
        if criteria:
            return ["excursion", *sorted(m for m in held if m.startswith("excursion["))]
        others = sorted(m for m in held if m != "excursion" and m not in BASELINES and "[" not in m)
        return [m for m in ("excursion", *others, *BASELINES) if m in held]

    def get(self, method: str, batch: int, problem: str) -> Sequence[Mapping[str, Any]]:
        """The runs of one cell, none if it was not run."""
        return self.runs.get((method, batch, problem), ())

    def evaluations(self, method: str, batch: int, problem: str, goal: float = GOAL) -> float | None:
        """Median over seeds of N(goal); infinite if the budget does not suffice; None without runs."""
        runs = self.get(method, batch, problem)
        return statistics.median(evaluations_to(r["curve"], goal * TEST_POINTS) for r in runs) if runs else None

    def censored(self, method: str, batch: int, problem: TestProblem) -> float | None:
        """As `evaluations`, with the budget in place of infinity (for a grid: the largest grid)."""
        n = self.evaluations(method, batch, problem.name)
        if n is None or math.isfinite(n):
            return n
        return max([problem.budget, *(r["n"] for r in self.get("grid", batch, problem.name) if method == "grid")])

    def last_error(self, method: str, batch: int, problem: str) -> float:
        """Median over seeds of the error at the end of the run; NaN without a curve."""
        runs = [r for r in self.get(method, batch, problem) if r["curve"]]
        return statistics.median(r["curve"][-1][1] / TEST_POINTS for r in runs) if runs else math.nan

    def seconds(self, method: str, batch: int, dims: Callable[[int], bool]) -> float:
        """Median over problems of such dimension of the median over seeds of seconds per suggested point."""
        medians = []
        for p in self.problems:
            known = [r["seconds"] for r in self.get(method, batch, p.name) if r["seconds"] is not None]
            if known and dims(p.dim):
                medians.append(statistics.median(known))
        return statistics.median(medians) if medians else math.nan


def geometric_mean(ratios: Iterable[float]) -> float:
    """exp of the mean logarithm; NaN of nothing."""
    logs = [math.log(r) for r in ratios]
    return math.exp(statistics.mean(logs)) if logs else math.nan


# --- tables -----------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A Markdown table; the columns of these indices are text, the others are numbers and aligned right."""
    lines = [header, ["---" if i in text else "---:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def count(n: float | None, budget: float) -> str:
    """A number of evaluations; > budget where it was not reached."""
    return "–" if n is None else f"{n:g}" if math.isfinite(n) else f"> {budget:g}"


def percent(error: float) -> str:
    """An error as per cent, two digits."""
    return "–" if math.isnan(error) else f"{100 * error:.2g} %" if error < 0.1 else f"{100 * error:.0f} %"


def times(ratio: float) -> str:
    """A ratio, two decimals or two digits."""
    return "–" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):.0f}"


def best(results: Results, batch: int, problem: TestProblem, methods: Sequence[str]) -> float | None:
    """The fewest evaluations that any of the methods needs; the budget if none suffices."""
    known = [n for m in methods if (n := results.censored(m, batch, problem)) is not None]
    return min(known) if known else None


def ratios(results: Results, batch: int, others: Sequence[str], ours: str = "excursion") -> dict[str, float]:
    """Problem of the main group -> evaluations of ours over those of the best of the others."""
    out = {}
    for p in results.problems:
        mine, theirs = results.censored(ours, batch, p), best(results, batch, p, others)
        if p.group == "main" and mine is not None and theirs is not None:
            out[p.name] = mine / theirs
    return out


def counts_table(results: Results, batch: int) -> str:
    """N(1 %) of each problem and method, the fewest in bold, with geometric means of ratios below."""
    methods = results.methods()
    competitors = [m for m in methods if m not in ("excursion", "sobol", "grid")]
    rows = []
    for p in results.problems:
        cells = [results.evaluations(m, batch, p.name) for m in methods]
        fewest = min((c for c in cells if c is not None), default=math.inf)
        limits = [results.censored(m, batch, p) or math.inf for m in methods]
        shown = [
            f"**{count(c, limit)}**" if c == fewest and math.isfinite(fewest) else count(c, limit)
            for c, limit in zip(cells, limits)
        ]
        ratio = ratios(results, batch, competitors).get(p.name, math.nan)
        name = p.name if p.group == "main" else f"{p.name} †"
        rows.append([name, str(p.dim), *shown, *([times(ratio)] if competitors else [])])
    means = [times(geometric_mean(ratios(results, batch, [m]).values())) if m != "excursion" else "" for m in methods]
    overall = times(geometric_mean(ratios(results, batch, competitors).values()))
    rows.append(["*ours / method, geometric mean*", "", *means, *([f"**{overall}**"] if competitors else [])])
    header = ["problem", "d", *methods, *(["ours / best peer"] if competitors else [])]
    return markdown(header, rows)


def log_table(results: Results, batch: int) -> str:
    """N(1 %) where f is positive: peers told ln f in place of f, beside ours, which is told f."""
    told = sorted({m for m, b, _ in results.runs if m.endswith("[log]") and b == batch})
    rows = []
    for p in results.problems:
        pairs = [results.evaluations(name, batch, p.name) for m in told for name in (m.removesuffix("[log]"), m)]
        if any(results.get(m, batch, p.name) for m in told):
            cells = [results.evaluations("excursion", batch, p.name), *pairs]
            rows.append([p.name, *(count(c, p.budget) for c in cells)])
    header = [
        "problem",
        "excursion",
        *(name for m in told for name in (m.removesuffix("[log]"), f"{m[:-5]} told ln f")),
    ]
    return markdown(header, rows) if rows else ""


def errors_table(results: Results, batch: int) -> str:
    """Error when the run ended, for the problems on which ours or half of the methods do not reach the goal."""
    methods = [m for m in results.methods() if m != "grid"]
    rows = []
    for p in results.problems:
        reached = [n for m in methods if (n := results.evaluations(m, batch, p.name)) is not None]
        ours = results.evaluations("excursion", batch, p.name)
        if reached and (sum(map(math.isinf, reached)) * 2 >= len(reached) or ours == math.inf):
            rows.append([p.name, str(p.budget), *(percent(results.last_error(m, batch, p.name)) for m in methods)])
    return markdown(["problem", "budget", *methods], rows) if rows else ""


def criteria_table(results: Results, batch: int) -> str:
    """N(1 %) of the default and of each criterion by itself: geometric mean over the main group, and seconds."""
    rows = []
    for m in results.methods(criteria=True):
        pairs = [
            (n, default)
            for p in results.problems
            if p.group == "main"
            and (n := results.censored(m, batch, p)) is not None
            and (default := results.censored("excursion", batch, p)) is not None
        ]
        if pairs:
            missed = sum(
                math.isinf(results.evaluations(m, batch, p.name) or 0) for p in results.problems if p.group == "main"
            )
            name = "default" if m == "excursion" else m.removeprefix("excursion[").removesuffix("]")
            mean = times(geometric_mean(n / default for n, default in pairs))
            rows.append([name, mean, f"{missed} of {len(pairs)}", f"{results.seconds(m, batch, lambda d: d <= 3):.2f}"])
    header = ["criterion", "N(1 %) / default, geometric mean", "budget does not suffice", "s per point, d ≤ 3"]
    return markdown(header, rows) if len(rows) > 1 else ""


def seconds_table(results: Results) -> str:
    """Median seconds per suggested point, fit included."""
    rows = []
    for m in [m for m in results.methods() if m not in ("grid", "sobol")]:
        cells = [results.seconds(m, b, dims) for b in BATCHES for dims in (lambda d: d <= 3, lambda d: d > 3)]
        rows.append([m, *("–" if math.isnan(c) else f"{c:.2g}" for c in cells)])
    return markdown(["seconds per point", "batch 1, d ≤ 3", "batch 1, d > 3", "batch 5, d ≤ 3", "batch 5, d > 3"], rows)


def grid_ratio(results: Results, batch: int, problem: TestProblem) -> float:
    """Evaluations of a grid with linear interpolation over ours, at the same error.

    The error is 1 %, or that of ours at the budget where ours does not reach 1 %. NaN without runs; where the largest
    grid does not suffice its size is used, so that the ratio is a lower bound.
    """
    mine = results.censored("excursion", batch, problem)
    if mine is None or not (grid := results.get("grid", batch, problem.name)):
        return math.nan
    goal = max(GOAL, results.last_error("excursion", batch, problem.name)) if mine == problem.budget else GOAL
    needed = results.evaluations("grid", batch, problem.name, goal)
    return (needed if needed is not None and math.isfinite(needed) else max(r["n"] for r in grid)) / mine


def grid_sentence(results: Results, batch: int) -> str:
    """The saving against a grid, by dimension."""
    parts = []
    for d in sorted({p.dim for p in results.problems if p.group == "main"}):
        known = [grid_ratio(results, batch, p) for p in results.problems if p.group == "main" and p.dim == d]
        known = [k for k in known if not math.isnan(k)]
        if known:
            span = f" ({times(min(known))} to {times(max(known))})" if len(known) > 1 else ""
            parts.append(f"{d}-D {times(geometric_mean(known))}{span}")
    return "; ".join(parts)


def against_grid(results: Results, batch: int, problem: TestProblem, goal: float | None) -> tuple[float, float] | None:
    """Evaluations of ours and of a grid with linear interpolation that end at or below an error.

    Args:
        results: of the runs.
        batch: size of ours.
        problem: to be compared on.
        goal: the error; None means that of ours at the end of its runs (medians over seeds, at least one test point).

    Returns:
        None without runs, or where ours does not reach the goal. The grid's is infinite where the largest one does
        not suffice.
    """
    ours, grid = results.get("excursion", batch, problem.name), results.get("grid", batch, problem.name)
    if not ours or not grid:
        return None
    if goal is None:
        mine = statistics.median(r["n"] for r in ours)
        goal = max(results.last_error("excursion", batch, problem.name), 1 / TEST_POINTS)
    else:
        mine = results.evaluations("excursion", batch, problem.name, goal) or math.inf
    theirs = results.evaluations("grid", batch, problem.name, goal)
    return None if theirs is None or not math.isfinite(mine) or math.isnan(goal) else (mine, theirs)


def grid_table(results: Results, batch: int) -> str:
    """Grid and ours at the same error in two to four dimensions: evaluations, ratios, geometric means per dimension.

    A grid that never gets there counts with the largest one tried: such a ratio, and its mean, is a lower bound.
    """
    rows = []
    for d in (2, 3, 4):
        found: list[list[tuple[float, bool]]] = [[] for _ in GRID_GOALS]
        for p in (p for p in results.problems if p.dim == d and p.group == "main"):
            cells = []
            for goal, ratios in zip(GRID_GOALS, found):
                if (pair := against_grid(results, batch, p, goal)) is None:
                    cells.append("–")
                    continue
                mine, theirs = pair
                largest = max(r["curve"][-1][0] for r in results.get("grid", batch, p.name))
                bound = math.isinf(theirs)
                ratios.append((min(theirs, largest) / mine, bound))
                cells.append(f"{count(theirs, largest)} / {mine:g} = {'> ' * bound}{times(ratios[-1][0])}")
            if any(c != "–" for c in cells):
                rows.append([p.name, str(d), *cells])
        if any(found):
            means = [
                f"**{'> ' * any(b for _, b in ratios)}{times(geometric_mean(r for r, _ in ratios))}** of {len(ratios)}"
                if ratios
                else "–"
                for ratios in found
            ]
            rows.append(["*geometric mean*", str(d), *means])
    goals = ["ours at its end" if g is None else f"{100 * g:g} %" for g in GRID_GOALS]
    return markdown(["grid / ours", "d", *goals], rows) if rows else ""


def versions(results: Results) -> str:
    """Versions and commits that the runs name, how many seeds, and what went wrong."""
    seen: dict[str, set[str]] = {}
    seeds: dict[str, set[int]] = {}
    bad: dict[tuple[str, str], int] = {}
    for (m, _, _), runs in results.runs.items():
        for r in runs:
            own = m in ("excursion", "sobol") or m.startswith("excursion[")
            seen.setdefault(m, set()).add(f"{r['version']} at {r['commit']}" if own else r["version"])
            seeds.setdefault(m, set()).add(r["seed"])
            if r["stopped"] == "time" or r["stopped"].startswith("error"):
                key = m, r["stopped"].split(":")[0]
                bad[key] = bad.get(key, 0) + 1
    lines = []
    logs = sorted(m for m in seen if m.endswith("[log]"))
    for m in results.methods() + logs + results.methods(criteria=True)[1:]:
        trouble = "".join(f"; {k} runs ended by {why}" for (which, why), k in bad.items() if which == m)
        lines.append(f"- {m}: {', '.join(sorted(seen[m]))}; {len(seeds[m])} seeds{trouble}")
    return "\n".join(lines)


def problems_table(results: Results) -> str:
    """What the problems are."""
    return markdown(
        ["problem", "d", "budget", "f ≥ T", "what"],
        [
            [
                p.name if p.group == "main" else f"{p.name} †",
                str(p.dim),
                str(p.budget),
                f"{p.fraction:.1%}",
                p.doc.replace("|", "\\|"),
            ]
            for p in results.problems
        ],
        text=(0, 4),
    )


def fragment(results: Results, figures: Sequence[str] = ()) -> str:
    """The section of docs/benchmarks.md."""
    parts = []
    for batch in BATCHES:
        if any(b == batch and m != "grid" for m, b, _ in results.runs):
            parts += [f"### N(1 %), batches of {batch}" if batch > 1 else "### N(1 %), one at a time"]
            parts += [counts_table(results, batch)]
            if table := errors_table(results, batch):
                parts += [f"Error at the end of the budget where that does not suffice, batches of {batch}:", table]
            if table := log_table(results, batch):
                parts += [f"Peers told ln f, as a practitioner would, batches of {batch}:", table]
            if sentence := grid_sentence(results, batch):
                parts += [f"A regular grid with linear interpolation needs so many times our evaluations: {sentence}."]
            if table := grid_table(results, batch):
                parts += [f"Evaluations of a grid and of ours at the same error, batches of {batch}:", table]
            if table := criteria_table(results, batch):
                parts += [f"Our criteria, each by itself, batches of {batch}:", table]
    parts += ["### Seconds per suggested point", seconds_table(results)]
    parts += [f"![{name}](figures/{name})" for name in figures]
    parts += ["### The problems", problems_table(results), "### Versions", versions(results)]
    return "\n\n".join(parts) + "\n"


# --- figures ----------------------------------------------------------------------------------------------------------

#: Okabe and Ito's colours, which the colour-blind can tell apart; a dash pattern and a marker say the same again.
OURS_STYLE = ("#D55E00", "-", "o")
PEER_STYLES = (
    ("#0072B2", (0, (5, 1.2)), "s"),
    ("#009E73", (0, (3, 1, 1, 1)), "^"),
    ("#CC79A7", (0, (1.2, 1)), "D"),
    ("#56B4E9", (0, (7, 1.5, 1.5, 1.5)), "v"),
    ("#E69F00", (0, (3.5, 1.2)), "P"),
)
BASELINE_STYLES = {
    "forest": ("#8B7500", (0, (1, 2)), "X"),
    "sobol": ("#777777", "-", "d"),
    "grid": ("#000000", (0, (1, 1.5)), "+"),
}


def styles(methods: Sequence[str]) -> dict[str, tuple[str, Any, str]]:
    """Method -> colour, dashes and marker, the same in every figure."""
    others = [m for m in methods if m != "excursion" and m not in BASELINES]
    peer_styles = {m: PEER_STYLES[i % len(PEER_STYLES)] for i, m in enumerate(others)}
    return {m: OURS_STYLE if m == "excursion" else {**peer_styles, **BASELINE_STYLES}[m] for m in methods}


def quartiles(runs: Sequence[Mapping[str, Any]], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of evaluations (k,) and quartiles (3, k) of the error; a run that ended early keeps its last error."""
    curves = [np.array(r["curve"], dtype=float) for r in runs if r["curve"]]
    if not curves:
        return np.empty(0), np.empty((3, 0))
    first = max(c[0, 0] for c in curves)
    n = np.unique(np.concatenate([*(c[:, 0] for c in curves), [end]]))
    n = n[(n >= first) & (n <= end)]
    errors = np.array([c[np.searchsorted(c[:, 0], n, side="right") - 1, 1] for c in curves]) / TEST_POINTS
    return n, np.quantile(errors, (0.25, 0.5, 0.75), axis=0)


def curves_figure(results: Results, batch: int, path: Path) -> None:
    """Small multiples: median error against evaluations with the quartiles of ours, a panel per problem."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    methods = results.methods()
    style = styles(methods)
    columns = 4
    rows = math.ceil((len(results.problems) + 1) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 2.15 * rows), squeeze=False, layout="constrained")
    for panel, problem in zip(axes.flat, results.problems):
        for m in reversed(methods):
            if not (runs := results.get(m, batch, problem.name)):
                continue
            # Only as far as half of the runs went; a dot where they ended because N(1 %) was settled.
            end = statistics.median_low(r["n"] for r in runs)
            n, (low, middle, high) = quartiles(runs, min(end, problem.budget))
            low, middle, high = (np.maximum(q, 0.9e-4) for q in (low, middle, high))
            color, dashes, _ = style[m]
            own = m == "excursion"
            panel.plot(n, middle, color=color, ls=dashes, lw=2.2 if own else 1.3, zorder=2 + own, clip_on=False)
            if end < problem.budget and len(n):
                panel.plot(n[-1], middle[-1], "o", color=color, ms=4.5 if own else 3, zorder=2 + own, clip_on=False)
            if m not in BASELINES:
                panel.fill_between(n, low, high, color=color, alpha=0.25 if own else 0.1, lw=0)
        panel.axhline(GOAL, color="black", lw=0.6)
        panel.set_yscale("log")
        panel.set_ylim(0.8e-4, 0.6)
        panel.set_xlim(0, problem.budget)
        panel.set_yticks([1e-4, 1e-3, 1e-2, 1e-1], ["0.01 %", "0.1 %", "1 %", "10 %"])
        panel.minorticks_off()
        panel.tick_params(labelsize=7.5)
        panel.grid(axis="y", lw=0.3, color="0.85")
        panel.set_title(problem.name, fontsize=9, pad=3)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    spare = axes.flat[len(results.problems) :]
    for panel in spare:
        panel.axis("off")
    handles = [Line2D([], [], color=c, ls=d, lw=2.2 if m == "excursion" else 1.5) for m, (c, d, _) in style.items()]
    spare[0].legend(handles, methods, loc="center left", frameon=False, fontsize=9, handlelength=3.5, ncols=1)
    size = "one point at a time" if batch == 1 else f"batches of {batch}"
    figure.supxlabel(f"evaluations, {size}; a dot: N(1 %) is known and the run ended", fontsize=10)
    figure.supylabel("misclassified fraction of the volume, median and quartiles", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def summary_figure(results: Results, path: Path) -> None:
    """N(1 %) of every method on every problem, a row per problem, a panel per batch size."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    methods = [m for m in results.methods() if m != "grid"]
    style = styles(results.methods())
    batches = [b for b in BATCHES if any(k == b and m != "grid" for m, k, _ in results.runs)]
    problems = results.problems[::-1]
    size = (5.2 * len(batches) + 1.2, 0.37 * len(problems) + 1.5)
    figure, axes = plt.subplots(1, len(batches), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel, batch in zip(axes[0], batches):
        for y, problem in enumerate(problems):
            known = {m: n for m in methods if (n := results.evaluations(m, batch, problem.name)) is not None}
            reached = [n for n in known.values() if math.isfinite(n)]
            if reached:
                panel.plot([min(reached), max(reached)], [y, y], color="0.85", lw=1, zorder=1)
            panel.plot([problem.budget] * 2, [y - 0.32, y + 0.32], color="0.45", lw=1.2, zorder=1)
            # Side by side beyond the bar of the budget where it does not suffice.
            missing = [m for m, n in known.items() if math.isinf(n)]
            beyond = {m: problem.budget * 1.085 ** (i + 1) for i, m in enumerate(missing)}
            places = known | beyond
            for m, x in places.items():
                near = [k for k in places if abs(math.log(places[k] / x)) < 0.05]  # markers that would overlap
                up = 0.2 * ((len(near) - 1) / 2 - near.index(m)) * min(1, 4 / len(near))
                color, _, marker = style[m]
                own = m == "excursion"
                face, edge = ("white", color) if m in beyond else (color, "white")
                look = {"ms": 7 if own else 5, "mfc": face, "mec": edge, "mew": 0.9}
                panel.plot(x, y + up, marker, zorder=3 + own, **look)
        panel.set_xscale("log")
        ticks = [10, 20, 50, 100, 200, 500]
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.minorticks_off()
        panel.set_ylim(-0.7, len(problems) - 0.3)
        panel.set_yticks(range(len(problems)), [p.name for p in problems], fontsize=8.5)
        panel.grid(axis="x", lw=0.3, color="0.85")
        panel.set_title("one point at a time" if batch == 1 else f"batches of {batch}", fontsize=10)
        panel.set_xlabel("evaluations until 1 % of the volume is misclassified (median)")
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    handles = [Line2D([], [], color=style[m][0], marker=style[m][2], ls="", ms=7) for m in methods]
    handles += [
        Line2D([], [], color="0.45", marker="|", ls="", ms=9),
        Line2D([], [], color="0.3", marker="o", mfc="none", ls="", ms=6),
    ]
    labels = [*methods, "budget", "hollow: not within the budget"]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw(results: Results, directory: Path) -> list[str]:
    """All figures into a directory; their names."""
    directory.mkdir(parents=True, exist_ok=True)
    names = []
    for batch in BATCHES:
        if any(b == batch and m != "grid" for m, b, _ in results.runs):
            names.append(f"suite_batch{batch}.png")
            curves_figure(results, batch, directory / names[-1])
    names.append("suite_summary.png")
    summary_figure(results, directory / names[-1])
    return names


def insert(page: Path, text: str) -> None:
    """Put the text between the two marks of a page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"report: {page} must hold {BEGIN} and {END}, got neither or one. Write them where it belongs")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, help="write into benchmarks.md and figures/ of this directory")
    parser.add_argument("--figures", type=Path, help="only draw, into this directory")
    args = parser.parse_args()
    results = Results.read(args.results)
    if not results.runs:
        parser.error(f"no runs in {args.results}. Run python -m benchmarks.suite.run first")
    figures = draw(results, args.docs / "figures") if args.docs else []
    if args.figures:
        draw(results, args.figures)
    text = fragment(results, figures)
    print(text)
    if args.docs:
        insert(args.docs / "benchmarks.md", text)


if __name__ == "__main__":
    main()
