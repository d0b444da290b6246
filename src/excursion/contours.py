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
    """

    names: tuple[str, ...]
    axes: tuple[np.ndarray, ...]
    x: torch.Tensor
    allowed: torch.Tensor
    fixed: Mapping[str, float]

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
        if unknown or not 1 <= len(names) <= 2 or set(names) & set(fixed):
            raise InvalidPoint(
                f"slice: needs one or two of the parameters {list(space.names)} to vary and the others fixed, got "
                f"varying {list(names)}, fixed {fixed}. Fix others by fixed={{name: value}}"
            )
        u = space.to_unit(
            torch.tensor([[fixed.get(p, 1.0) for p in space.names]], dtype=torch.float64).clamp_min(-1e300)
        )[0]
        ticks = torch.linspace(0, 1, n, dtype=torch.float64)
        columns = [space.names.index(p) for p in names]
        mesh = torch.stack(torch.meshgrid(*[ticks] * len(names), indexing="ij"), -1).reshape(-1, len(names))
        full = torch.where(torch.tensor([p in fixed for p in space.names]), u, 0.5).repeat(len(mesh), 1)
        full[:, columns] = mesh
        # Not snapped: a picture is drawn between the steps too.
        x = space.from_unit(full)
        axes = tuple(np.unique(x[:, c].numpy()) for c in columns)
        if any(len(a) != n for a in axes):  # rounding at the ends
            axes = tuple(
                x.reshape(*[n] * len(names), space.dim)[_along(i, len(names))][:, c].numpy()
                for i, c in enumerate(columns)
            )
        held = {p: float(x[0, i]) for i, p in enumerate(space.names) if p not in names}
        return cls(names, axes, x, space.allowed(x), held)


def _along(axis: int, d: int) -> tuple:
    return tuple(slice(None) if i == axis else 0 for i in range(d))


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
    if len(grid.names) == 1:
        y, x = masked - level, grid.axes[0]
        cross = np.flatnonzero((y[:-1] < 0) != (y[1:] < 0))
        cross = cross[np.isfinite(y[cross]) & np.isfinite(y[cross + 1])]
        step = y[cross] / (y[cross] - y[cross + 1])
        points = x[cross] + step * (x[cross + 1] - x[cross])
        lines: tuple[np.ndarray, ...] = (points[:, None],) if len(points) else ()
    else:
        generator = contourpy.contour_generator(
            grid.axes[0], grid.axes[1], np.ma.masked_invalid(masked.T), corner_mask=True
        )
        lines = tuple(np.asarray(line) for line in generator.lines(level) if len(line) > 1)
    return Contour(task, threshold, grid.names, grid.fixed, lines)
