"""Drawn lines of a level set: from values on a regular grid to polylines in physical units. Only contourpy importer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import contourpy
import numpy as np
import torch

from .errors import InvalidPoint
from .space import ParameterSpace


@dataclass(frozen=True)
class Contour:
    """Where a quantity crosses a level, in one or two parameters.

    Attributes:
        task: whose level set it is.
        threshold: the level, in the task's units.
        names: the one or two parameters that vary.
        fixed: the values of the others.
        lines: polylines, each (n, 2) in physical units; closed where the first point equals the last. With one
            parameter: a single (n, 1) array of the crossing points.
    """

    task: str
    threshold: float
    names: tuple[str, ...]
    fixed: Mapping[str, float]
    lines: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Slice:
    """A regular grid (in the coordinate of each scale) over one or two parameters, the others held.

    Attributes:
        names: the parameters that vary.
        axes: their values, ascending, one array each.
        x: all points in physical units, (n, d) over all parameters; the first name varies slowest.
        allowed: whether each point is, (n,).
        fixed: the values of the others.
        space: the whole space.
        base: where the others are held, in the unit cube, (d,).
    """

    names: tuple[str, ...]
    axes: tuple[np.ndarray, ...]
    x: torch.Tensor
    allowed: torch.Tensor
    fixed: Mapping[str, float]
    space: ParameterSpace
    base: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis."""
        return tuple(len(a) for a in self.axes)

    @classmethod
    def of(
        cls,
        space: ParameterSpace,
        names: tuple[str, ...] | None = None,
        fixed: Mapping[str, float] | None = None,
        n: int = 201,
    ) -> Slice:
        """The slice of a space in which ``names`` vary and everything else is fixed.

        Args:
            space: the space.
            names: one or two parameters; by default those that are not fixed.
            fixed: parameter -> value; parameters neither named nor fixed are held at the middle of their range.
            n: points per axis.

        Raises:
            InvalidPoint: unknown names, or not one or two parameters left to vary.
        """
        fixed = dict(fixed or {})
        names = tuple(names) if names is not None else tuple(p for p in space.names if p not in fixed)
        unknown = sorted((set(names) | set(fixed)) - set(space.names))
        if unknown or not 1 <= len(names) <= 2 or len(set(names)) < len(names) or set(names) & set(fixed):
            raise InvalidPoint(
                f"slice: needs one or two of the parameters {list(space.names)} to vary and the others fixed, got "
                f"varying {list(names)}, fixed {fixed}. Fix others by fixed={{name: value}}"
            )
        if not isinstance(n, int) or n < 2:
            raise InvalidPoint(f"slice: the points per axis must be at least 2, got {n!r}")
        middle = space.point(space.from_unit(torch.full((1, space.dim), 0.5, dtype=torch.float64))[0])
        given = space.tensor([middle | fixed], where="slice")[0]
        for value, p in zip(given.tolist(), space.parameters):
            if not p.lower <= value <= p.upper:
                raise InvalidPoint(
                    f"slice: {p.name} must lie in [{p.lower:g}, {p.upper:g}], got {value!r}. Fix it inside"
                )
        base, ticks = space.to_unit(given), torch.linspace(0, 1, n, dtype=torch.float64)
        mesh = torch.stack(torch.meshgrid(*[ticks] * len(names), indexing="ij"), -1).reshape(-1, len(names))
        x = _place(space, base, names, mesh)
        columns = [space.names.index(p) for p in names]
        axes = tuple(_place(space, base, names, ticks[:, None].repeat(1, len(names)))[:, c].numpy() for c in columns)
        held = {p: float(given[i]) for i, p in enumerate(space.names) if p not in names}
        return cls(names, axes, x, space.allowed(x), held, space, base)

    def physical(self, u: np.ndarray) -> np.ndarray:
        """Values (k, 1 or 2) of the varying parameters at points of the unit square, exact on each scale."""
        x = _place(self.space, self.base, self.names, torch.from_numpy(np.ascontiguousarray(u)))
        return x[:, [self.space.names.index(p) for p in self.names]].numpy()


def _place(space: ParameterSpace, base: torch.Tensor, names: tuple[str, ...], u: torch.Tensor) -> torch.Tensor:
    """Physical points (k, d): ``names`` at u (k, 1 or 2), the others at ``base``; not snapped, lines run between."""
    full = base.repeat(len(u), 1)
    full[:, [space.names.index(p) for p in names]] = u
    return space.from_unit(full)


def trace(grid: Slice, values: np.ndarray, level: float, task: str = "f", threshold: float | None = None) -> Contour:
    """The lines {values = level} on a slice; forbidden points are left out, so lines end at the edge of the region.

    Args:
        grid: where.
        values: at ``grid.x``, shape (n,).
        level: of the values.
        task, threshold: recorded in the result; the threshold defaults to the level.
    """
    threshold = level if threshold is None else threshold
    masked = np.where(grid.allowed.numpy(), values, np.nan).reshape(grid.shape)
    ticks = [np.linspace(0, 1, k) for k in grid.shape]
    if len(grid.names) == 1:
        y, u = masked - level, ticks[0]
        cross = np.flatnonzero((y[:-1] < 0) != (y[1:] < 0))
        cross = cross[np.isfinite(y[cross]) & np.isfinite(y[cross + 1])]
        step = y[cross] / (y[cross] - y[cross + 1])
        points = u[cross] + step * (u[cross + 1] - u[cross])
        found = [points[:, None]] if len(points) else []
    else:
        generator = contourpy.contour_generator(ticks[0], ticks[1], np.ma.masked_invalid(masked.T), corner_mask=True)
        found = [np.asarray(line) for line in generator.lines(level) if len(line) > 1]
    return Contour(task, threshold, grid.names, grid.fixed, tuple(grid.physical(line) for line in found))
