"""The belief while the points of a batch are chosen one after the other: Gaussian algebra on covariances known once.

References:
    Chevalier, Ginsbourger, Emery, in Mathematics of Planet Earth (2014) 375: update formulae of kriging.
    Ginsbourger, Le Riche, Carraro, in Computational Intelligence in Expensive Optimization Problems (2010) 131: the
    kriging believer (section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..surrogate import Posterior, View
from .criteria import Prospect
from .target import Target


@dataclass(frozen=True)
class Offer:
    """One way to look at a point.

    Attributes:
        level: of the fidelity, see `Posterior`.
        cost: of a look, positive, in any unit.
        noise: variance of what is seen around f, (t,); None for what the belief expects.
    """

    level: int = 0
    cost: float = 1.0
    noise: Tensor | None = None


@dataclass(frozen=True)
class Offers:
    """The ways to look at a point. Where there are several, points carry two more columns: level and number."""

    ways: tuple[Offer, ...] = (Offer(),)

    @property
    def columns(self) -> int:
        """How many columns points have beyond the parameters."""
        return 0 if self.ways == (Offer(),) else 2

    def of(self, u: Tensor) -> Tensor:
        """Each of the points u (n, d) with each offer, (n k, d + columns): all with the first, all with the next ..."""
        if not self.columns:
            return u
        number = torch.arange(len(self.ways)).repeat_interleave(len(u))
        level = torch.tensor([w.level for w in self.ways])[number]
        return torch.cat([u.repeat(len(self.ways), 1), torch.stack([level, number], 1).to(u.dtype)], 1)

    def place(self, u: Tensor) -> Tensor:
        """Where the looks are, (n, d)."""
        return u[:, : u.shape[1] - self.columns]

    def at(self, u: Tensor) -> Tensor:
        """The points as posteriors take them: with the level, if there is more than the dearest."""
        return self.place(u) if all(w.level == 0 for w in self.ways) else u[:, :-1]

    def _number(self, u: Tensor) -> Tensor:
        return u[:, -1].long() if self.columns else torch.zeros(len(u), dtype=torch.long)

    def cost(self, u: Tensor) -> Tensor:
        """Of each look, (n,)."""
        return torch.tensor([w.cost for w in self.ways], dtype=u.dtype)[self._number(u)]

    def noise(self, u: Tensor, expected: Tensor) -> Tensor:
        """Variance of what each look sees around f, (t, n), from what the belief expects."""
        for i, way in enumerate(self.ways):
            if way.noise is not None:
                expected = torch.where(self._number(u) == i, way.noise[:, None], expected)
        return expected


#: The only way to look at a point where there are no fidelities.
ALONE = Offers()


@dataclass(frozen=True)
class Points:
    """What is believed about f at b points before the batch, and what its k picks tell about them.

    Attributes:
        u: the points, (b, d), with further columns where there are several offers (see `search.Offer`).
        mean, variance: of f before the batch, (t, b).
        noise: variance of an observation around f, (t, b).
        cross: covariance with the integration points before the batch, (t, b, m).
        rows: L^-1 Cov(picks, points), see `Batch`, (t, k, b).
    """

    u: Tensor
    mean: Tensor
    variance: Tensor
    noise: Tensor
    cross: Tensor
    rows: Tensor

    def __getitem__(self, i: Tensor | slice) -> Points:
        """Some of the points."""
        return Points(
            self.u[i],
            self.mean[:, i],
            self.variance[:, i],
            self.noise[:, i],
            self.cross[:, i],
            self.rows[:, :, i],
        )


class Batch:
    """The picks so far and the belief at the integration points that they leave.

    A pick is an observation to come: it shrinks variances and leaves means, as if the mean were seen (the kriging
    believer). With L L^T = Cov(picks) + noise and rows = L^-1 Cov(picks, .), covariances are those before minus
    rows^T rows.

    Attributes:
        picks: their points, (k, d), with the further columns of `Points.u`.
    """

    def __init__(
        self,
        posterior: Posterior,
        at: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        n: int,
        offers: Offers = ALONE,
    ) -> None:
        """No picks yet.

        Args:
            posterior: the belief before the batch.
            at: integration points, (m, d); m = 0 for criteria that do not look ahead.
            mean, variance: of f there, (t, m).
            weight: of the integration points, (m,).
            n: how many picks there may be.
            offers: what may be asked for.
        """
        self._posterior, self._offers = posterior, offers
        self._mean, self._variance, self._weight = mean, variance, weight
        self._at = posterior.view(at) if len(at) else None
        self._k = 0
        self._picks = at.new_empty(n, at.shape[1] + offers.columns)
        self._factor = at.new_zeros(len(mean), n, n)
        self._rows = at.new_empty(len(mean), n, len(at))

    @property
    def picks(self) -> Tensor:
        """See the class."""
        return self._picks[: self._k]

    @property
    def size(self) -> int:
        """How many picks there may be."""
        return len(self._picks)

    @property
    def pairs(self) -> int:
        """Covariances per candidate: tasks times integration points."""
        return self._mean.numel()

    def view(self, u: Tensor) -> View:
        """What the posterior says of looks at u (b, d + further columns)."""
        return self._posterior.view(self._offers.at(u))

    def points(self, view: View, u: Tensor) -> Points:
        """The belief at u (b, d + further columns), of which the posterior has this `view`."""
        cross = view.mean.new_empty(*view.mean.shape, 0) if self._at is None else view.covariance(self._at)
        rows = view.mean.new_empty(len(view.mean), 0, len(u))
        if self._k:
            factor = self._factor[:, : self._k, : self._k]
            known = self.view(self.picks).covariance(view)
            rows = torch.linalg.solve_triangular(factor, known, upper=False)
        return Points(u, view.mean, view.variance, self._offers.noise(u, view.noise), cross, rows)

    def prospect(self, points: Points, target: Target) -> Prospect:
        """What a criterion sees of the points."""
        cross = points.cross
        if self._k and cross.shape[2]:
            cross = torch.baddbmm(cross, points.rows.mT, self._rows[:, : self._k], alpha=-1)
        return Prospect(
            points.mean,
            (points.variance - points.rows.square().sum(1)).clamp_min(1e-300),
            points.noise,
            target.levels,
            target.weights,
            self._mean,
            self._variance,
            self._weight,
            cross.mT,
            target.best,
            target.sign,
        )

    def pick(self, points: Points, i: int) -> Tensor:
        """Pick one of the points; returns the new last line of L, (t, k + 1), see `next_row`."""
        k, row = self._k, points.rows[:, :, i]
        self._factor[:, k, :k] = row
        left = (points.variance[:, i] - row.square().sum(1)).clamp_min(0.0)
        self._factor[:, k, k] = left.add(points.noise[:, i]).sqrt()
        line = self._factor[:, k, : k + 1]
        self._picks[k] = points.u[i]
        self._rows[:, k] = new = next_row(line, points.cross[:, i], self._rows[:, :k])
        self._variance = (self._variance - new.square()).clamp_min(1e-300)
        self._k = k + 1
        return line


def next_row(line: Tensor, covariance: Tensor, rows: Tensor) -> Tensor:
    """The row of L^-1 Cov(picks, points) that a new pick adds, (t, b): forward substitution.

    Args:
        line: of L, for the pick, (t, k + 1).
        covariance: between the pick and the points before the batch, (t, b).
        rows: those of the picks before, (t, k, b).
    """
    return (covariance - (line[:, None, :-1] @ rows)[:, 0]) / line[:, -1:]


class Shortlist:
    """The best candidates, whose covariances with the integration points and with each other are kept at hand.

    Grows when a candidate further down the list is looked at, so that memory follows what the search looks at.
    """

    def __init__(self, batch: Batch, u: Tensor) -> None:
        """Nothing loaded yet.

        Args:
            batch: what is chosen so far.
            u: the candidates, (c, d + further columns), the best first.
        """
        self._batch, self._u = batch, u
        self._views: list[View] = []
        self._strips: list[Tensor] = []  # of each view its covariances with all views up to itself
        self._points = batch.points(batch.view(u[:0]), u[:0])
        self._rows = u.new_empty(len(self._points.mean), batch.size, 0)

    def __getitem__(self, i: Tensor | slice) -> Points:
        """Some of the candidates."""
        have, stop = len(self._points.u), len(self._u) if isinstance(i, slice) else int(i.max()) + 1
        if stop > have:
            self._load(min(len(self._u), max(stop, 64, have * 3 // 2)))
        return replace(self._points, rows=self._rows[:, : len(self._batch.picks)])[i]

    def _load(self, stop: int) -> None:
        old, u = self._points, self._u[len(self._points.u) : stop]
        view = self._batch.view(u)
        new = self._batch.points(view, u)
        self._views.append(view)
        self._strips.append(torch.cat([view.covariance(v) for v in self._views], 2))
        more = self._rows.new_empty(*self._rows.shape[:2], len(u))
        more[:, : new.rows.shape[1]] = new.rows
        self._rows = torch.cat([self._rows, more], 2)
        self._points = Points(
            self._u[:stop],
            torch.cat([old.mean, new.mean], 1),
            torch.cat([old.variance, new.variance], 1),
            torch.cat([old.noise, new.noise], 1),
            torch.cat([old.cross, new.cross], 1),
            old.rows,
        )

    def after(self, line: Tensor, i: int | None) -> None:
        """Learn of the batch's last pick, candidate i or a point of its own, with its line of L."""
        if i is None:
            pick = self._batch.view(self._batch.picks[-1:])
            covariance = torch.cat([pick.covariance(v) for v in self._views], 2)[:, 0]
        else:
            own = next(k for k, strip in enumerate(self._strips) if i < strip.shape[2])
            place = i - self._strips[own].shape[2]  # from the end
            later = [strip[:, :, i] for strip in self._strips[own + 1 :]]
            covariance = torch.cat([self._strips[own][:, place], *later], 1)
        k = len(self._batch.picks) - 1
        self._rows[:, k] = next_row(line, covariance, self._rows[:, :k])
