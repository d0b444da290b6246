"""How precisely a level set is to be known, in the user's units: what `goal` means, and how far a belief is from it.

`Problem.goal` says what is sought; a `Precision` says when it is found well enough. All measures are expectations under
the belief and none needs the whole band: fractions are means over space-filling points, widths are taken along lines
through points near the band.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from . import levelset
from .acquisition.search import integration_set
from .errors import InvalidStrategy
from .problem import Problem
from .space import ParameterSpace
from .surrogate import Posterior

__all__ = ["Precision", "Reading", "ambiguous", "measure", "misclassified", "parse", "width"]

Measure = Literal["misclassified", "ambiguous", "width", "improvement"]

#: A width is that of this part of the contour: the rest may be known less well.
SHARE = 0.95
#: Space-filling points of the fractions, and those through which lines are laid.
_POINTS = 4096
#: Lines, and points on each, of a width; all of the points on the only line of a single parameter.
_LINES, _TICKS, _TICKS_1D = 192, 49, 1025
#: A score beyond this is as good as infinite, and its square does not overflow.
_SURE = 1e6
#: Halvings of a step between two ticks, before a last linear interpolation.
_HALVINGS = 10


@dataclass(frozen=True)
class Precision:
    """One condition on what is known of a level set: a measure, and the most that it may be.

    The measures of one task (of several thresholds, the worst counts):

    * "misclassified": the expected misclassified fraction of the allowed volume, mean of min(p, 1 - p) with
      p = P(f >= T);
    * "ambiguous": the fraction of the allowed volume whose class is not known at the credibility, min(p, 1 - p) >
      (1 - credibility)/2: the band around the contour;
    * "width": how far the contour may lie from where it is drawn, along one parameter, see `width`;
    * "improvement": of a search for an optimum, the largest expected improvement in units of the range of values seen.

    Attributes:
        measure: one of the four.
        limit: a fraction; of a width a distance in the parameter's unit, or a fraction of its value if ``relative``.
        task: whose.
        parameter: of a width.
        unit: of a width's limit, for people.
        relative: whether a width is a fraction of the parameter's value.
        credibility: of "ambiguous" and "width", between 0.5 and 1.
    """

    measure: Measure
    limit: float
    task: str
    parameter: str = ""
    unit: str = ""
    relative: bool = False
    credibility: float = 0.95

    def __str__(self) -> str:
        return f"{self.task}: {self.described(self.limit)}"

    def described(self, value: float, digits: int = 3) -> str:
        """A value of this measure for people: "1.2 % misclassified", "within 10 GeV of m_chi"."""
        at = "" if self.credibility == 0.95 else f" at {100 * self.credibility:g} %"
        if self.measure == "width":
            number = f"{100 * value:.{digits}g} %" if self.relative else f"{value:.{digits}g} {self.unit}".strip()
            return f"within {number} of {self.parameter}{at}"
        name = "expected improvement" if self.measure == "improvement" else self.measure
        return f"{100 * value:.{digits}g} % {name}{at if self.measure == 'ambiguous' else ''}"


@dataclass(frozen=True)
class Reading:
    """What a belief says about one condition.

    Attributes:
        goal: the condition.
        value: of its measure, in the units of its limit.
    """

    goal: Precision
    value: float

    @property
    def reached(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.goal.limit

    def __str__(self) -> str:
        found = self.goal.described(self.value)
        return f"{self.goal.task}: {found} (goal {self.goal.described(self.goal.limit).removesuffix(_tail(self.goal))})"


def _tail(goal: Precision) -> str:
    """What a reading need not say twice."""
    text = goal.described(goal.limit)
    cut = text.find(" of ") if goal.measure == "width" else text.find(" % ") + 2
    return text[cut:]


# --------------------------------------------------------------------------------------------------- the words

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_START = r"(?:(?P<task>\S.*?)\s*(?::\s*|\s+))??"
_AT = rf"(?:\s+at\s+(?P<at>{_NUMBER})\s*%)?"
_FRACTION = re.compile(
    rf"{_START}(?:(?:<=|≤|at most|below)\s*)?(?P<value>{_NUMBER})\s*(?P<percent>%)?"
    rf"(?:\s+of the \w+)?\s+(?P<measure>misclassified|ambiguous){_AT}"
)
_WIDTH = re.compile(
    rf"{_START}(?:within\s+)?(?:(?:\+-|\+/-|±)\s*)?(?P<value>{_NUMBER})\s*(?P<unit>[^\s\d]\S*)?"
    rf"\s+(?:of|in|along)\s+(?P<names>\w+(?:\s*(?:,|and)\s*\w+)*){_AT}"
)
_HOW = "Write 0.01, '1 % misclassified', '2 % ambiguous' or 'observed within 10 GeV of m_chi'"


def parse(goal: Any, problem: Problem, where: str = "goal") -> tuple[Precision, ...]:
    """The conditions that are meant by a goal, one for each task (and parameter); all must hold.

    Args:
        goal: a number, the expected misclassified fraction (for an optimum the expected improvement) of every task; a
            text such as "1 % misclassified", "1 % ambiguous", "2 % ambiguous at 99 %", "within 10 GeV of m_chi",
            "observed within 5 % of g"; a `Precision`; a mapping from task to one of these; a sequence of these. None
            and an empty sequence mean no goal. A text without a task means every task.
        problem: gives the names and the units.
        where: what messages call it.

    Raises:
        InvalidStrategy: no such measure, task, parameter or unit; a limit that makes no sense; a measure that does not
            fit what is sought.
    """
    if goal is None:
        return ()
    if isinstance(goal, Precision):
        return (_checked(goal, problem, where),)
    if isinstance(goal, Mapping):
        return tuple(c for task, each in goal.items() for c in parse(each, _only(problem, task, where), where))
    if isinstance(goal, str):
        return tuple(_checked(c, problem, where) for c in _read(goal, problem, where))
    if isinstance(goal, Sequence):
        return tuple(c for each in goal for c in parse(each, problem, where))
    if isinstance(goal, bool) or not hasattr(goal, "__float__"):
        raise InvalidStrategy(f"{where}: the goal must be a number, a text or several of them, got {goal!r}. {_HOW}")
    measure: Measure = "improvement" if problem.sign else "misclassified"
    return tuple(_checked(Precision(measure, float(goal), task), problem, where) for task in problem.task_names)


def _only(problem: Problem, task: Any, where: str) -> Problem:
    """The problem with this task alone."""
    if task not in problem.task_names:
        raise InvalidStrategy(
            f"{where}: the goal must name tasks, got {task!r}. Known are {', '.join(problem.task_names)}"
        )
    return replace(problem, tasks=(problem.task(task),))


def _read(text: str, problem: Problem, where: str) -> list[Precision]:
    plain = " ".join(text.split())
    if re.fullmatch(_NUMBER, plain):
        return list(parse(float(plain), problem, where))
    found = _FRACTION.fullmatch(plain) or _WIDTH.fullmatch(plain)
    if found is None:
        raise InvalidStrategy(f"{where}: the goal must be one that is known, got {text!r}. {_HOW}")
    given = found.groupdict()
    tasks = problem.task_names
    if given["task"]:
        tasks = _only(problem, given["task"], where).task_names
    value = float(given["value"])
    credibility = float(given["at"]) / 100 if given["at"] else 0.95
    if "measure" in given:
        value = value / 100 if given["percent"] else value
        kind: Measure = "ambiguous" if given["measure"] == "ambiguous" else "misclassified"
        return [Precision(kind, value, task, credibility=credibility) for task in tasks]
    relative = given["unit"] == "%"
    names = re.split(r"\s*(?:,|\band\b)\s*", given["names"])
    return [
        Precision("width", value / 100 if relative else value, task, name, given["unit"] or "", relative, credibility)
        for task in tasks
        for name in names
    ]


def _checked(goal: Precision, problem: Problem, where: str) -> Precision:
    """The condition with its unit, if it fits the problem."""
    _only(problem, goal.task, where)
    if (goal.measure == "improvement") != bool(problem.sign):
        raise InvalidStrategy(
            f"{where}: the goal must fit what is sought, a {problem.goal}, got {goal.measure!r}. "
            f"{'Give a number, the largest expected improvement' if problem.sign else _HOW}"
        )
    if not 0.5 < goal.credibility < 1:
        raise InvalidStrategy(
            f"{where}: the credibility must lie between 50 % and 100 %, "
            f"got {100 * goal.credibility:g} %. Write 'at 95 %'"
        )
    if goal.measure != "width":
        most = 0.5 if goal.measure != "ambiguous" else 1.0
        if not 0 < goal.limit < most:
            raise InvalidStrategy(f"{where}: the goal is a fraction between 0 and {most:g}, got {goal.limit!r}. {_HOW}")
        return goal
    if not (math.isfinite(goal.limit) and goal.limit > 0):
        raise InvalidStrategy(f"{where}: a distance must be positive, got {goal.limit!r}. Write 'within 10 GeV of m'")
    if goal.parameter not in problem.space.names:
        raise InvalidStrategy(
            f"{where}: the goal must name a parameter, got {goal.parameter!r}. "
            f"Known are {', '.join(problem.space.names)}"
        )
    parameter = problem.space.parameters[problem.space.names.index(goal.parameter)]
    if goal.relative:
        if parameter.lower <= 0 <= parameter.upper:
            raise InvalidStrategy(
                f"{where}: a distance in per cent needs a parameter that is never 0, got {parameter.name!r} in "
                f"[{parameter.lower:g}, {parameter.upper:g}]. Give it in {parameter.unit or 'its own unit'}"
            )
        return replace(goal, unit="%")
    if goal.unit and parameter.unit and goal.unit != parameter.unit:
        raise InvalidStrategy(
            f"{where}: a distance is in the parameter's unit, {parameter.unit} of {parameter.name!r}, "
            f"got {goal.unit!r}. Convert it"
        )
    return replace(goal, unit=parameter.unit or goal.unit)


# ------------------------------------------------------------------------------------------------- the measures


#: Weight of points u (n, d), (n,): the probability that an evaluation succeeds there. Nobody will ever know the rest.
Weigh = Callable[[Tensor], Tensor]


def measure(goal: Precision, problem: Problem, posterior: Posterior, weigh: Weigh | None = None) -> float:
    """What a belief says about a condition on a level set, in the units of its limit.

    Args:
        goal: the condition; not "improvement", which `campaign.improvement` gives.
        problem: with every transform settled (of a `Belief`).
        posterior: the belief.
        weigh: weight of points; 1 by default.
    """
    match goal.measure:
        case "misclassified":
            return misclassified(problem, posterior, weigh)[goal.task]
        case "ambiguous":
            return ambiguous(problem, posterior, goal.credibility, weigh)[goal.task]
        case "width":
            return width(
                problem,
                posterior,
                goal.parameter,
                goal.task,
                credibility=goal.credibility,
                relative=goal.relative,
                weigh=weigh,
            )
    raise InvalidStrategy(f"goal: the measure must be one of a level set, got {goal.measure!r}. {_HOW}")


def _filling(problem: Problem, points: int) -> Tensor:
    return problem.space.sample(0, points, 2**31 - 1)


@torch.no_grad()
def misclassified(
    problem: Problem, posterior: Posterior, weigh: Weigh | None = None, points: int = _POINTS
) -> dict[str, float]:
    """Expected misclassified fraction of the allowed volume per task: the mean of min(p, 1-p), largest threshold."""
    u = _filling(problem, points)
    mean, variance = posterior.marginal(u)
    weight, out = _share(weigh, u), {}
    for i, task in enumerate(problem.tasks):
        p = levelset.excursion_probability(mean[i][:, None], variance[i][:, None], task.levels)
        out[task.name] = float((weight @ levelset.misclassification(p)).max())
    return out


def _share(weigh: Weigh | None, u: Tensor) -> Tensor:
    """Of each point in a mean, (n,)."""
    weight = torch.ones(len(u), dtype=u.dtype) if weigh is None else weigh(u)
    return weight / weight.sum()


@torch.no_grad()
def ambiguous(
    problem: Problem,
    posterior: Posterior,
    credibility: float = 0.95,
    weigh: Weigh | None = None,
    points: int = _POINTS,
) -> dict[str, float]:
    """Fraction of the allowed volume per task whose class is not known at the credibility, largest threshold.

    That is where min(p, 1-p) > (1 - credibility)/2, the band between the quantiles' contours.
    """
    u = _filling(problem, points)
    mean, variance = posterior.marginal(u)
    reach, weight, out = float(ndtri(0.5 + credibility / 2)), _share(weigh, u), {}
    for i, task in enumerate(problem.tasks):
        lead = levelset.standardised(mean[i][:, None], variance[i][:, None], task.levels)
        out[task.name] = float((weight @ (lead.abs() < reach).double()).max())
    return out


@torch.no_grad()
def width(
    problem: Problem,
    posterior: Posterior,
    parameter: str,
    task: str,
    *,
    credibility: float = 0.95,
    relative: bool = False,
    share: float = SHARE,
    weigh: Weigh | None = None,
) -> float:
    """How far the contour {f = T} may lie from where it is drawn, along one parameter.

    On a line parallel to the parameter's axis the contour can only lie where (1-c)/2 < p < (1+c)/2 with p = P(f >= T)
    and c the credibility: in intervals. Where f is monotone through such an interval it is exactly the central
    credible interval of the crossing: the chance that the crossing lies before its first end is the chance that f is
    beyond T there. Of an interval we take the greatest distance from a place in it to the nearest crossing drawn in it
    (mean = T; where there is none, a tangent or an island that may be, the place where p is nearest to 1/2).
    Intervals end where the allowed region does.

    The result is the `share`-quantile of that distance over the contour, weighed by the number of crossings that the
    belief expects in each interval (Rice's formula, by sign changes between neighbours) over all lines. Lines parallel
    to an axis meet a piece of contour dA with normal n in proportion to |n . e| dA, so that pieces parallel to the
    axis, along which the distance means nothing, do not count.

    Lines are laid through space-filling points near the band, in any number of dimensions: a line L drawn because of
    a point u on it has weight psi(u)/int_L psi, which makes the sum an integral over all lines for whatever psi > 0.

    Args:
        problem: with every transform settled.
        posterior: the belief.
        parameter: along which.
        task: whose contour; of several thresholds the worst counts.
        credibility: c.
        relative: give the distance as a fraction of the parameter's value at the crossing drawn.
        share: the part of the contour that the result is for.
        weigh: weight of points; 1 by default. A line counts as the point that it was laid through.

    Returns:
        The distance in the parameter's unit (or a fraction); 0 where the contour is nowhere in the space.

    References:
        Rice, Bell Syst. Tech. J. 23 (1944) 282: the expected number of crossings.
        Santalo, Integral Geometry and Geometric Probability (1976), chapter 14: lines that meet a surface.
    """
    space, i = problem.space, problem.task_names.index(task)
    axis, reach = space.names.index(parameter), float(ndtri(0.5 + credibility / 2))
    pool = _filling(problem, _POINTS)
    mean, variance = posterior.marginal(pool)
    widest = 0.0
    for level in problem.tasks[i].levels:
        near = levelset.ndtr(-levelset.standardised(mean[i], variance[i], level).abs())
        cells, weight = _lines(_Scores(posterior, i, level, axis), space, pool, near, weigh)
        if distances := _distances(cells, space, reach, relative):
            found, crossings, lines = zip(*distances)
            widest = max(widest, _quantile(np.array(found), np.array(crossings) * weight[list(lines)].numpy(), share))
    return widest


@dataclass(frozen=True)
class _Scores:
    """A belief along lines parallel to an axis: (m - T)/s of a task at a threshold."""

    posterior: Posterior
    task: int
    level: Tensor
    axis: int

    def place(self, base: Tensor, t: Tensor) -> Tensor:
        """Points (n, d) of the cube: those of base (n, d) moved to t (n,) along the axis."""
        u = base.clone()
        u[:, self.axis] = t
        return u

    def __call__(self, base: Tensor, t: Tensor) -> Tensor:
        """The scores (n,) there."""
        mean, variance = self.posterior.marginal(self.place(base, t))
        return levelset.standardised(mean[self.task], variance[self.task], self.level).clamp(-_SURE, _SURE)

    def differ(self, base: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """P(f is on different sides of T at left and right), (n,)."""
        out = []
        for b, low, high in zip(base.split(64), left.split(64), right.split(64)):
            one, two = self.posterior.view(self.place(b, low)), self.posterior.view(self.place(b, high))
            spread = [v.variance[self.task].clamp_min(levelset.TINY).sqrt() for v in (one, two)]
            correlation = one.covariance(two)[self.task].diagonal() / spread[0] / spread[1]
            scores = [(v.mean[self.task] - self.level) / s for v, s in zip((one, two), spread)]
            here, there = (u.clamp(-_SURE, _SURE) for u in scores)
            out.append(levelset.disagreement(here, there, correlation))
        return torch.cat(out) if out else left


@dataclass(frozen=True)
class _Cells:
    """Stretches of lines between neighbouring ticks, all of it allowed, in the order of the lines.

    Attributes:
        scores: the belief along the lines.
        base: a point (n, d) on the line of each.
        line: number of the line, (n,).
        left, right: its ends along the axis, (n,).
        a, b: the scores there, (n,).
        follows: whether it begins where the one before ends, (n,).
    """

    scores: _Scores
    base: Tensor
    line: Tensor
    left: Tensor
    right: Tensor
    a: Tensor
    b: Tensor
    follows: Tensor


def _lines(
    scores: _Scores, space: ParameterSpace, pool: Tensor, near: Tensor, weigh: Weigh | None
) -> tuple[_Cells, Tensor]:
    """Lines through points of the pool where the belief is unsure, and their weights; see `width`.

    Args:
        scores: the belief along lines.
        space: the allowed region.
        pool: points (p, d) that fill it evenly.
        near: min(p, 1-p) there, (p,).
        weigh: see `width`.
    """
    ticks = torch.linspace(0, 1, _TICKS if space.dim > 1 else _TICKS_1D, dtype=torch.float64)
    if space.dim == 1:
        base, share = pool[:1], torch.ones(1, dtype=torch.float64)
    else:
        index, share = integration_set(pool, near, _LINES, torch.Generator().manual_seed(0))
        base = pool[index]
    cells = _cells(scores, space, base, ticks)
    if space.dim == 1:
        return cells, share

    def psi(chance: Tensor) -> Tensor:
        return 0.85 * chance / near.mean() + 0.15 if near.sum() > 0 else torch.ones_like(chance)

    along = torch.zeros(len(base), dtype=torch.float64)
    along.index_add_(0, cells.line, psi(_mean_chance(cells.a, cells.b)) * (cells.right - cells.left))
    own = psi(near[index]) * (1.0 if weigh is None else weigh(base))
    return cells, torch.where(along > 0, share * own / along.clamp_min(1e-300), 0.0)


def _mean_chance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of Phi(-|u|) for u from a to b: its primitive is u Phi(-|u|) + sign(u) (phi(0) - phi(u))."""

    def primitive(u: Tensor) -> Tensor:
        bell = math.sqrt(0.5 / math.pi) * torch.exp(-0.5 * u.square())
        return u * levelset.ndtr(-u.abs()) + u.sign() * (math.sqrt(0.5 / math.pi) - bell)

    step = b - a
    close = step.abs() < 1e-5
    mean = (primitive(b) - primitive(a)) / torch.where(close, 1.0, step)
    return torch.where(close, levelset.ndtr(-(a + b).abs() / 2), mean)


def _cells(scores: _Scores, space: ParameterSpace, base: Tensor, ticks: Tensor) -> _Cells:
    """The allowed stretches of the lines through base (L, d), cut at the ticks, at the points and at the edges."""
    t = torch.cat([ticks.expand(len(base), -1), base[:, scores.axis : scores.axis + 1]], 1).sort(1).values
    count = t.shape[1]
    every = torch.arange(len(base)).repeat_interleave(count)
    allowed = space.allowed_unit(scores.place(base[every], t.reshape(-1))).reshape(t.shape)
    row, column = (allowed[:, 1:] != allowed[:, :-1]).nonzero(as_tuple=True)
    opening = allowed[row, column + 1]
    inside = torch.where(opening, t[row, column + 1], t[row, column])
    outside = torch.where(opening, t[row, column], t[row, column + 1])
    for _ in range(30):
        middle = (inside + outside) / 2
        good = space.allowed_unit(scores.place(base[row], middle))
        inside, outside = torch.where(good, middle, inside), torch.where(good, outside, middle)
    line = torch.cat([every[allowed.reshape(-1)], row])
    place = torch.cat([t[allowed], inside])
    opens = torch.cat([torch.zeros(int(allowed.sum()), dtype=torch.bool), opening])
    # Where an edge and a tick coincide, an opening comes first and a closing last.
    rank = torch.cat([torch.zeros(int(allowed.sum())), torch.where(opening, -1.0, 1.0)])
    order = torch.from_numpy(np.lexsort((rank.numpy(), place.numpy(), line.numpy())))
    line, place, opens = line[order], place[order], opens[order]
    u = torch.cat([scores(base[some], at) for some, at in zip(line.split(4096), place.split(4096))])
    joined = (line[1:] == line[:-1]) & ~opens[1:]
    (first,) = joined.nonzero(as_tuple=True)
    follows = torch.zeros(len(first), dtype=torch.bool)
    follows[1:] = first[1:] == first[:-1] + 1
    return _Cells(
        scores, base[line[first]], line[first], place[first], place[first + 1], u[first], u[first + 1], follows
    )


def _distances(cells: _Cells, space: ParameterSpace, reach: float, relative: bool) -> list[tuple[float, float, int]]:
    """Of each interval in which the contour may lie: distance, expected crossings and line; see `width`."""
    unsure = ~((cells.a.abs() >= reach) & (cells.b.abs() >= reach) & (cells.a.sign() == cells.b.sign()))
    kept = unsure.nonzero()[:, 0]
    if not len(kept):
        return []
    base, left, right, a, b = (v[kept] for v in (cells.base, cells.left, cells.right, cells.a, cells.b))
    crossings = cells.scores.differ(base, left, right)
    begins = ~cells.follows[kept] | (a.abs() >= reach)

    def physical(which: Tensor, t: Tensor) -> np.ndarray:
        return space.from_unit(cells.scores.place(base[which], t))[:, cells.scores.axis].numpy()

    everywhere = torch.arange(len(kept))
    ends = {side: physical(everywhere, t) for side, t in (("left", left), ("right", right))}
    roots: dict[float, np.ndarray] = {}
    for level in (-reach, 0.0, reach):
        (there,) = ((a >= level) != (b >= level)).nonzero(as_tuple=True)
        roots[level] = np.full(len(kept), np.nan)
        if len(there):
            found = _root(cells.scores, base[there], left[there], right[there], a[there], b[there], level)
            roots[level][there.numpy()] = physical(there, found)
    low, high, number = a.numpy(), b.numpy(), cells.line[kept].tolist()
    out = []
    starts = [*begins.nonzero()[:, 0].tolist(), len(kept)]
    for one, behind in itertools.pairwise(starts):
        last = behind - 1
        start = ends["left"][one] if abs(low[one]) < reach else roots[math.copysign(reach, low[one])][one]
        stop = ends["right"][last] if abs(high[last]) < reach else roots[math.copysign(reach, high[last])][last]
        drawn = roots[0.0][one:behind]
        drawn = drawn[~np.isnan(drawn)]
        if not len(drawn):  # the place where p is nearest to 1/2
            places = np.concatenate([ends["left"][one:behind], ends["right"][last:behind]])
            drawn = places[[np.abs(np.concatenate([low[one:behind], high[last:behind]])).argmin()]]
        reaches = np.concatenate([drawn[:1] - start, stop - drawn[-1:], np.diff(drawn) / 2])
        scale = np.abs(np.concatenate([drawn[:1], drawn[-1:], drawn[1:]])) if relative else 1.0
        out.append((float((reaches / scale).max()), float(crossings[one:behind].sum()), number[one]))
    return out


def _root(scores: _Scores, base: Tensor, left: Tensor, right: Tensor, a: Tensor, b: Tensor, level: float) -> Tensor:
    """Where the score passes a level between left and right, (n,)."""
    above = a >= level
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        u = scores(base, middle)
        same = (u >= level) == above
        left, a = torch.where(same, middle, left), torch.where(same, u, a)
        right, b = torch.where(same, right, middle), torch.where(same, b, u)
    step = torch.where(a == b, 1.0, b - a)
    return left + (right - left) * ((level - a) / step).clamp(0.0, 1.0)


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The least value such that those up to it have this share of the weight; 0 without weight."""
    order = values.argsort()
    total = weights[order].cumsum()
    if not total[-1] > 0:
        return 0.0
    return float(values[order][min(np.searchsorted(total, share * total[-1]), len(values) - 1)])
