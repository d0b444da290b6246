"""How well the sets {f >= T} and {f < T} are known: bands, conservative sets, volumes with errors, components, holes.

The posterior of f makes the excursion set a random set. Its coverage function p(u) = P(f(u) >= T) is known in closed
form; what several points do together is counted in joint draws (`draws`) at the points that a draw may put on either
side. Sets are held on `Cells`, points of equal weight that fill the allowed region.

References:
    Azzimonti, Ginsbourger, Chevalier, Bect, Richet, Technometrics 63 (2021) 13: conservative estimates.
    Bolin and Lindgren, J. R. Stat. Soc. B 77 (2015) 85: excursion sets of level 1 - alpha from joint probabilities.
    Chevalier, Ginsbourger, Bect, Molchanov, mODa 10 (2013) 35: Vorob'ev expectation and deviation of level sets.
    Molchanov, Theory of Random Sets (2005), chapter 2, section 2.2: Vorob'ev quantiles and expectation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
import torch
from scipy.linalg.lapack import dpstrf
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from . import levelset
from .errors import FitError
from .problem import Problem
from .space import ParameterSpace
from .surrogate import Posterior

#: Joint draws rest on at most so many of the points, chosen among so many.
_PIVOTS, _CHOSEN = 800, 2000
#: What is left below this part of the largest variance is drawn independently: the first that rounding allows. A belief
#: that is sure to a part in 1e7 has covariances that are mostly rounding.
_TOLERANCES = (1e-11, 1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1.0)
#: Numbers held at a time while drawing.
_BLOCK = 2**23


@torch.no_grad()
def draws(posterior: Posterior, u: Tensor, n: int, seed: int, task: int = 0, degrees: float = math.inf) -> Tensor:
    """Joint draws of f at points, on the scale of z.

    A pivoted Cholesky factorisation picks the points that tell most, L L^T = C there. At all points a draw is then
    m + A e + sqrt(R) e' with A = C(points, picked) L^-T, R = diag(C - A A^T), e and e' normal. Marginal distributions
    are exact, and so are joint ones where R is rounding (jitter is added nowhere). Where more than 800 points would
    have to be picked, what they leave is drawn independently, which makes draws rougher: sets hold together less likely
    than they do.

    Args:
        posterior: the belief.
        u: points, (k, d).
        n: how many draws.
        seed: fixes them.
        task: index of the output.
        degrees: of freedom of the multivariate t that the draws have with the belief's mean and scale; infinite for
            the normal. See `degrees_of_freedom`.

    Returns:
        Shape (n, k).

    Raises:
        FitError: the covariance is not finite.

    References:
        Higham, Accuracy and Stability of Numerical Algorithms (2002), section 10.3: the factorisation.
        Azzimonti et al., SIAM/ASA J. Uncertain. Quantif. 4 (2016) 850: draws of sets from draws at few points.
    """
    return torch.cat([torch.zeros(n, 0, dtype=torch.float64), *_drawn(posterior, u, n, seed, task, degrees)], 1)


def excursions(
    posterior: Posterior,
    u: Tensor,
    threshold: Tensor | float,
    n: int,
    seed: int,
    task: int = 0,
    degrees: float = math.inf,
) -> Tensor:
    """Whether f >= T in the same `draws`, (n, k), in less memory; T on the scale of z."""
    blocks = [block >= threshold for block in _drawn(posterior, u, n, seed, task, degrees)]
    return torch.cat([torch.zeros(n, 0, dtype=torch.bool), *blocks], 1)


@torch.no_grad()
def _drawn(posterior: Posterior, u: Tensor, n: int, seed: int, task: int, degrees: float) -> Iterator[Tensor]:
    """Columns of the draws, some points at a time."""
    if not len(u):
        return
    generator = torch.Generator().manual_seed(seed)
    some = u[torch.randperm(len(u), generator=generator)[:_CHOSEN]]
    view = posterior.view(some)
    picked, factor = _picked(view.covariance(view)[task].numpy())
    base = posterior.view(some[picked])
    e = torch.randn(n, len(picked), generator=generator, dtype=torch.float64)
    # One factor for all points of a draw: the scale of the whole function is what is not known.
    factors = torch.ones(n, 1, dtype=torch.float64)
    if math.isfinite(degrees):
        chi2 = np.random.default_rng(seed).chisquare(degrees, (n, 1))
        factors = torch.from_numpy(np.sqrt(degrees / chi2))
    e.mul_(factors)
    for part in u.split(max(1, _BLOCK // max(n, len(picked)))):
        at = posterior.view(part)
        a = torch.linalg.solve_triangular(torch.from_numpy(factor), base.covariance(at)[task], upper=False)
        rest = (at.variance[task] - a.square().sum(0)).clamp_min(0.0)
        own = torch.randn(n, len(part), generator=generator, dtype=torch.float64)
        yield own.mul_(rest.sqrt()).mul_(factors).add_(at.mean[task]).addmm_(e, a)


def _picked(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the points that tell most, at most `_PIVOTS`, and the lower factor of their covariance."""
    variance = covariance.diagonal()
    largest = variance.max()
    for tolerance in _TOLERANCES:
        packed, pivots, rank, _ = dpstrf(covariance, tol=tolerance * largest, lower=1)
        factor = np.tril(packed)[:, :rank]
        left = variance[pivots - 1] - np.square(factor).sum(1)
        if left.min() >= -2 * tolerance * largest:
            rank = min(rank, _PIVOTS)
            return pivots[:rank] - 1, factor[:rank, :rank]
    raise FitError(
        f"draws: the covariance of {len(covariance)} points must be finite and have no negative eigenvalues, got a "
        f"variance of {left.min():.3g} left of {largest:.3g}. Look for duplicated points with different values"
    )


# ------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cells:
    """Points of equal weight that fill the allowed region, and which of them are neighbours.

    Attributes:
        u: (n, d) in the unit cube.
        links: pairs of neighbours, (e, 2).
    """

    u: Tensor
    links: np.ndarray


#: Points per axis of grids in d dimensions, or points of the Sobol sequence, from fine to coarse.
_GRIDS: Mapping[int, tuple[int, ...]] = {1: (2000,), 2: (201, 151, 100), 3: (33, 26, 21)}
_SOBOL = (16384, 10000)
#: A grid of which less is allowed describes the region badly.
_ALLOWED = 0.2


def resolutions(space: ParameterSpace) -> Iterator[Cells]:
    """Cells from fine to coarse, the last at most 10000.

    In up to three dimensions the centres of a regular grid, each a neighbour of the 3^d - 1 around it. In more, or
    where constraints leave less than a fifth of the grid, a Sobol sequence, each a neighbour of the 2 ln n nearest: of
    many random points all are connected by 5.18 ln n neighbours each, not by .074 ln n.

    References:
        Xue and Kumar, Wireless Networks 10 (2004) 169, for the numbers.
    """
    d = space.dim
    sizes = _GRIDS.get(d, ())
    if sizes and space.allowed_unit(_grid(sizes[-1], d)).double().mean() >= _ALLOWED:
        for k in sizes:
            u = _grid(k, d)
            allowed = space.allowed_unit(u)
            number = np.full(len(u), -1)
            number[allowed.numpy()] = np.arange(int(allowed.sum()))
            links = _adjacent(number.reshape((k,) * d))
            yield Cells(u[allowed], links[(links >= 0).all(1)])
        return
    for n in _SOBOL:
        u = space.sample(0, n, 2**31 - 1)
        k = math.ceil(2 * math.log(n))
        near = cKDTree(u.numpy()).query(u.numpy(), k + 1)[1]
        yield Cells(u, np.stack([np.repeat(np.arange(n), k), near[:, 1:].ravel()], 1))


def _grid(k: int, d: int) -> Tensor:
    ticks = (torch.arange(k, dtype=torch.float64) + 0.5) / k
    return torch.stack(torch.meshgrid(*[ticks] * d, indexing="ij"), -1).reshape(-1, d)


def _adjacent(number: np.ndarray) -> np.ndarray:
    """Pairs (e, 2) of the entries of an array that touch, corners included; each pair once."""
    pairs = []
    for offset in itertools.product((-1, 0, 1), repeat=number.ndim):
        if offset > (0,) * number.ndim:
            here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, number.shape))
            there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, number.shape))
            pairs.append(np.stack([number[here].ravel(), number[there].ravel()], 1))
    return np.concatenate(pairs)


def components(links: np.ndarray, sizes: np.ndarray, inside: np.ndarray, least: float = 0.0) -> int:
    """How many connected pieces a set of points has.

    Args:
        links: pairs of neighbours, (e, 2).
        sizes: weights of the points, (n,).
        inside: which points belong to the set, (n,).
        least: pieces that weigh less are not counted.
    """
    if not inside.any():
        return 0
    ends = links[inside[links].all(1)]
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(sizes),) * 2)
    count, label = connected_components(graph, directed=False)
    return int((np.bincount(label, np.where(inside, sizes, 0.0), count) > max(least - 1e-12, 0.0)).sum())


def _merged(cells: Cells, inside: np.ndarray, open_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The graph with each piece of the sure part of a set as one node: links and sizes.

    Args:
        cells: n points.
        inside: the set where it is sure, (n,).
        open_: indices of the k points that may be in or out. They are the first k nodes.
    """
    n, k = len(inside), len(open_)
    sure = inside.copy()
    sure[open_] = False
    ends = cells.links[sure[cells.links].all(1)]
    _, label = connected_components(coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n)), False)
    node = np.full(n, -1)
    node[open_] = np.arange(k)
    pieces, index = np.unique(label[sure], return_inverse=True)
    node[sure] = k + index
    links = node[cells.links]
    links = np.unique(links[(links >= 0).all(1) & (links[:, 0] != links[:, 1])], axis=0)
    return links, np.bincount(node[node >= 0], minlength=k + len(pieces)) / n


# ------------------------------------------------------------------------------------------------- sets


def vorobev_quantile(p: Tensor) -> float:
    """rho* of Vorob'ev's expectation: {p >= rho*} is as large as the random set is on average, to one point.

    Args:
        p: coverage function at points of equal weight, (n,).

    Returns:
        The largest of the values p with mean(p >= rho*) >= mean(p); infinite if p vanishes.

    References:
        Molchanov (2005), chapter 2, section 2.2; Chevalier et al. (2013).
    """
    count = math.ceil(float(p.sum()) - 1e-9)
    return float(p.sort(descending=True).values[count - 1]) if count > 0 else math.inf


def symmetric_difference(p: Tensor, inside: Tensor) -> float:
    """E mu(Gamma triangle Q): the part of the volume in which a random set and a fixed one are expected to differ.

    For Q = {p >= 1/2} it is the expected misclassified fraction, the least possible; for Vorob'ev's expectation it is
    Vorob'ev's deviation, the least for sets of that size.

    Args:
        p: coverage function of Gamma at points of equal weight, (n,).
        inside: whether they belong to Q, (n,).
    """
    return float(torch.where(inside, 1 - p, p).mean())


def expected_distance(p: Tensor) -> float:
    """E mu(Gamma triangle Gamma') = int 2 p (1 - p): the volume in which two independent draws of the set differ."""
    return float((2 * p * (1 - p)).mean())


def conservative_level(z: Tensor, inside: Tensor, risk: float) -> float:
    """The least c such that {z > c} lies in the random set as a whole with probability 1 - risk or more.

    A draw is violated by the level sets that reach down to the highest z at which it is outside, so one quantile over
    draws gives c: the j-th highest of these with j = risk (n + 1), rounded down. One more draw, alike to the n, exceeds
    it with probability j/(n + 1), so that the number of draws costs no confidence.

    Args:
        z: an increasing function of the coverage function at k points.
        inside: n joint draws of "belongs to the set", (n, k).
        risk: allowed probability that a point of the set is not in the random set.

    Returns:
        c; infinite if there are too few draws for so small a risk, minus infinity if no set is violated.

    References:
        Bolin and Lindgren (2015) and Azzimonti et al. (2021), whose joint probability is counted in draws here.
    """
    worst = z.new_full((len(inside),), -math.inf)
    if len(z):
        worst = torch.where(inside, worst[:, None], z).amax(1)
    j = math.floor(risk * (len(worst) + 1) + 1e-9)
    return float(worst.sort(descending=True).values[j - 1]) if j > 0 else math.inf


@dataclass(frozen=True)
class ConservativeSet:
    """Points that are all on one side of the threshold, together, with a given probability.

    Attributes:
        probability: rho: the points at which that side has at least this probability.
        sigmas: the same as Phi^-1(rho), which tells levels near one apart; infinite if the set is empty.
        volume: its part of the allowed volume.
    """

    probability: float
    sigmas: float
    volume: float


@dataclass(frozen=True)
class SetSummary:
    """How well {f >= T} is known. Volumes are fractions of the allowed volume unless said otherwise.

    Attributes:
        task, threshold: which set; the threshold in units of the task.
        volume, volume_sd: mean and standard deviation of the volume of {f >= T} over the belief; the latter holds the
            size of the cells, too.
        physical_volume, physical_volume_sd, volume_unit: the same in units of the parameters; a parameter on a log
            scale counts in decades.
        misclassified: expected volume in which {P >= 1/2} and {f >= T} differ.
        vorobev_probability, vorobev_deviation: {P >= vorobev_probability} is Vorob'ev's expectation, the set whose
            volume is the mean volume; the volume in which {f >= T} is expected to differ from it.
        distance: expected volume in which two independent draws of {f >= T} differ.
        bands: level -> volume of the band of points that cannot be called at that level.
        level: joint probability of the conservative sets.
        above, below: largest {P >= rho} ({1 - P >= rho}) that lies in {f >= T} ({f < T}) as a whole with probability
            ``level``, at the points used.
        components, components_differ: connected pieces of {P >= 1/2}, and the probability that {f >= T} has another
            number of them. Pieces below a thousandth of the volume do not count.
        hole, hole_radius, hole_lengths: the largest ball without any trial that has a value: its centre (allowed, in
            physical units), radius in the unit cube, and distance of the centre to the nearest such trial in length
            scales of the (heaviest) kernel.
        points, drawn, draws: cells of the allowed region; those at which the belief was drawn jointly (at the others a
            draw falls on the unlikely side with a probability that is accounted for, a thousandth in all); how often.
    """

    task: str
    threshold: float
    volume: float
    volume_sd: float
    physical_volume: float
    physical_volume_sd: float
    volume_unit: str
    misclassified: float
    vorobev_probability: float
    vorobev_deviation: float
    distance: float
    bands: Mapping[float, float]
    level: float
    above: ConservativeSet
    below: ConservativeSet
    components: int
    components_differ: float
    hole: Mapping[str, float]
    hole_radius: float
    hole_lengths: float
    points: int
    drawn: int
    draws: int

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """For people."""
        unit = f" {self.volume_unit}" if self.volume_unit else ""
        percent = "{:.2f} %".format
        bands = ", ".join(f"{100 * level:g} %: {percent(100 * v)}" for level, v in self.bands.items())
        center = ", ".join(f"{name}={value:.4g}" for name, value in self.hole.items())
        pieces = "1 piece" if self.components == 1 else f"{self.components} pieces"
        found = [
            f"{self.task} >= {self.threshold:g}: {100 * self.volume:.2f} +- {100 * self.volume_sd:.2f} % of the "
            f"allowed volume ({self.physical_volume:.4g} +- {self.physical_volume_sd:.2g}{unit})",
            f"  expected misclassified {percent(100 * self.misclassified)}; Vorob'ev expectation P >= "
            f"{self.vorobev_probability:.3g}, deviation {percent(100 * self.vorobev_deviation)}; two draws differ in "
            f"{percent(100 * self.distance)}",
            f"  bands that cannot be called: {bands}",
        ]
        for name, side in (("above", self.above), ("below", self.below)):
            where = f"P >= {side.probability:.6g}" if math.isfinite(side.sigmas) else "nowhere"
            found.append(
                f"  {name} as a whole with {100 * self.level:g} %: {where}, {percent(100 * side.volume)} of the volume"
            )
        found.append(f"  {pieces}; another number with probability {self.components_differ:.2g}")
        found.append(
            f"  largest unexplored ball: around {center}, radius {self.hole_radius:.3g} of the unit cube, "
            f"{self.hole_lengths:.3g} length scales"
        )
        return found


#: Levels of the bands in a summary.
BANDS = (0.68, 0.95)
#: The belief is drawn jointly at so many points at most, so often; components are counted in so many of the draws.
_DRAWN, _DRAWS, _COUNTED = 10000, 2000, 400
#: Part of the risk of conservative sets that may be spent on points where nothing is drawn.
_SPENT = 0.02
#: Pieces of less than this part of the volume are specks: rough beliefs have them all along a contour.
_SPECK = 1e-3


@torch.no_grad()
def summary(
    problem: Problem,
    posterior: Posterior,
    explored: Tensor,
    task: str | None = None,
    threshold: float | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    degrees: float = math.inf,
) -> SetSummary:
    """How well one set {f >= T} is known; see `SetSummary`.

    Args:
        problem: with settled transforms.
        posterior: the belief.
        explored: points whose value is known, (m, d) in the unit cube.
        task: which output; the first by default.
        threshold: in its units; its first threshold by default.
        level: joint probability of the conservative sets.
        seed: of the draws.
        degrees: of freedom of the draws, see `degrees_of_freedom`. Expectations of volumes are those of the normal
            belief.

    Raises:
        InvalidProblem: no such task, no threshold, a level outside (0, 1).
    """
    levelset.half_width(level)  # refuses a level that makes no sense
    chosen, space = problem.task(task), problem.space
    value = chosen.threshold(threshold)
    i = problem.task_names.index(chosen.name)
    t = chosen.map(torch.tensor(value, dtype=torch.float64))
    for cells in resolutions(space):
        mean, variance = (m[i] for m in posterior.marginal(cells.u))
        z = levelset.standardised(mean, variance, t)
        open_, spent = _open(z, _SPENT * (1 - level), degrees)
        if len(open_) <= _DRAWN:
            break
    p, inside, n = levelset.ndtr(z), z >= 0, len(z)
    drawn = excursions(posterior, cells.u[open_], t, _DRAWS, seed, i, degrees)
    volumes = (drawn.sum(1) + inside.sum() - inside[open_].sum()).double() / n
    # A cell at the edge counts as a whole or not at all.
    edge = np.unique(cells.links[inside[cells.links[:, 0]] != inside[cells.links[:, 1]]])
    volume_sd = math.sqrt(float(volumes.var()) + len(edge) / 2 / 12 / n**2)
    sides = []
    for side, ones in ((z, drawn), (-z, ~drawn)):
        c = conservative_level(side[open_], ones, 1 - level - spent)
        # No set holds together with more probability than its least certain point.
        kept = side[(side > c) & (side >= _quantile(level, degrees))]
        c = float(kept.min()) if len(kept) else math.inf
        sides.append(ConservativeSet(float(scipy.special.ndtr(c)), c, len(kept) / n))
    links, sizes = _merged(cells, inside.numpy(), open_.numpy())
    sure = np.ones(len(sizes) - len(open_), dtype=bool)
    rows = [np.concatenate([row, sure]) for row in (inside[open_][None], drawn[:_COUNTED]) for row in row.numpy()]
    pieces, *others = (components(links, sizes, row, _SPECK) for row in rows)
    rho = vorobev_quantile(p)
    factor, unit = physical_volume(space)
    center, radius = largest_hole(space, explored)
    return SetSummary(
        task=chosen.name,
        threshold=value,
        volume=float(p.mean()),
        volume_sd=volume_sd,
        physical_volume=float(p.mean()) * factor,
        physical_volume_sd=volume_sd * factor,
        volume_unit=unit,
        misclassified=symmetric_difference(p, inside),
        vorobev_probability=rho,
        vorobev_deviation=symmetric_difference(p, p >= rho),
        distance=expected_distance(p),
        bands={k: float(levelset.undecided(mean, variance, t, k).double().mean()) for k in BANDS},
        level=level,
        above=sides[0],
        below=sides[1],
        components=pieces,
        components_differ=float(np.mean(np.array(others) != pieces)),
        hole=space.point(space.from_unit(center)),
        hole_radius=radius,
        hole_lengths=_in_lengths(posterior.hyperparameters[i], center, explored),
        points=n,
        drawn=len(open_),
        draws=_DRAWS,
    )


def degrees_of_freedom(values: int, dim: int) -> float:
    """Of the joint belief about f where its hyperparameters were learnt from the values themselves.

    Given the correlations, with a flat prior on the p coefficients of the mean and 1/amplitude^2 on the variance, f at
    any points is multivariate t with n - p degrees of freedom, whose location and scale are those of the normal belief.
    Length scales and nugget have no such closed form: each is taken to use up one value, as a coefficient of the mean
    does. So n - 2 - d (slopes of a linear mean are not counted), and at least 3, for which the variance is finite.

    Args:
        values: n, how many values of f are known; bounds do not count.
        dim: d, the number of parameters.

    References:
        O'Hagan, Bayesian Statistics 4 (1992) 345; Santner, Williams, Notz, The Design and Analysis of Computer
        Experiments (2003), theorem 4.1.2: the t process.
    """
    return float(max(3, values - 2 - dim))


def _quantile(probability: float, degrees: float) -> float:
    """Of Student's t, of the normal if the degrees of freedom are infinite."""
    return float(scipy.special.stdtrit(degrees, probability))


def _open(z: Tensor, spend: float, degrees: float = math.inf) -> tuple[Tensor, float]:
    """Indices of the points that a draw may put on either side, and the probability that it does so elsewhere.

    By the union bound: the surest points are left out while their chances of the unlikely side add up to ``spend``.
    """
    wrong = torch.from_numpy(scipy.special.stdtr(degrees, -z.abs().numpy()))
    order = wrong.argsort(stable=True)
    total = wrong[order].cumsum(0)
    sure = int((total <= spend).sum())
    return order[sure:].sort().values, float(total[sure - 1]) if sure else 0.0


# ------------------------------------------------------------------------------------------------- volume, holes


def physical_volume(space: ParameterSpace) -> tuple[float, str]:
    """The allowed volume in units of the parameters, decades for those on a log scale; and the unit, "GeV^2" say."""
    volume, units = space.volume_fraction, dict[str, int]()
    for p in space.parameters:
        unit = "decade" if p.scale == "log" else p.unit
        volume *= math.log10(p.upper / p.lower) if p.scale == "log" else p.upper - p.lower
        if unit:
            units[unit] = units.get(unit, 0) + 1
    return volume, " ".join(unit if k == 1 else f"{unit}^{k}" for unit, k in units.items())


def largest_hole(space: ParameterSpace, explored: Tensor) -> tuple[Tensor, float]:
    """Centre (d,) and radius, in the unit cube, of the largest ball around an allowed point without an explored one.

    The ball may reach beyond the allowed region. Of 16384 space-filling points and the cube's corners (in up to ten
    dimensions), with ever narrower scatter around the best ones.

    Args:
        space: says what is allowed.
        explored: (m, d); none leaves an infinite radius.

    References:
        Niederreiter, Random Number Generation and Quasi-Monte Carlo Methods (1992), section 6.1: the dispersion.
    """
    d = space.dim
    generator = torch.Generator().manual_seed(0)
    corners = (
        space.snap(torch.tensor(list(itertools.product((0.0, 1.0), repeat=min(d, 10))), dtype=torch.float64))
        if d <= 10
        else torch.zeros(0, d, dtype=torch.float64)
    )
    u = torch.cat([space.sample(0, 2**14, 2**31 - 1), corners[space.allowed_unit(corners)]])
    for k in range(12):
        top = u[_clearance(u, explored).topk(min(len(u), 8)).indices]
        scatter = torch.randn(len(top), 256, d, generator=generator, dtype=torch.float64)
        near = space.snap((top[:, None] + 0.1 * 0.4**k * scatter).clamp(0.0, 1.0).reshape(-1, d))
        u = torch.cat([top, near[space.allowed_unit(near)]])
    radius = _clearance(u, explored)
    return u[radius.argmax()], float(radius.max())


def _clearance(u: Tensor, explored: Tensor) -> Tensor:
    return torch.cdist(u, explored).amin(1) if len(explored) else u.new_full((len(u),), math.inf)


def _in_lengths(kernel: Mapping[str, Any], center: Tensor, explored: Tensor) -> float:
    """Distance of a point (d,) to the nearest of others (m, d) in the metric of a kernel."""
    metric = kernel.get("metric")
    if metric is None:
        metric = np.diag(1 / np.array(kernel["lengthscales"]))
    step = (explored - center) @ torch.tensor(metric, dtype=torch.float64).T
    return float(torch.linalg.vector_norm(step, dim=1).min()) if len(explored) else math.inf
