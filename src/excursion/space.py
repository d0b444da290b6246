"""Where we look: parameters, their ranges, scales and steps, the constraints between them, and the unit cube.

``x`` is a point in physical units, ``u`` the same point in the unit cube. Only this module converts between
them. Both are float64 tensors whose last axis runs over the parameters, shape (..., d).

Space-filling points are rows of a scrambled Sobol sequence: I. M. Sobol', USSR Comput. Math. Math. Phys. 7
(1967) 86; S. Joe and F. Y. Kuo, SIAM J. Sci. Comput. 30 (2008) 2635, for the direction numbers; J. Matousek,
J. Complexity 14 (1998) 527, for the scrambling.
"""

from __future__ import annotations

import keyword
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .constraint import CONSTANTS, Constraint
from .errors import InvalidPoint, InvalidSpace, ShapeError, SpaceExhausted

__all__ = ["Constraint", "Parameter", "ParameterSpace"]

# Relative tolerance at the ends of a range: a point that went through a text file is still inside.
_EDGE = 1e-9
# A lattice of at most this many points is enumerated where sampling would be a gamble.
_ENUMERABLE = 2**20
# A space is refused if none of this many space-filling points is allowed.
_PROBES = 2**15
# Sampling gives up after this many candidates, about a minute's work.
_PATIENCE = 2**26
_BLOCK = 2**17
# Where fewer than one in so many candidates is allowed, candidates are drawn from boxes around the allowed region.
_RARE = 32
_BOXES = 1024


@dataclass(frozen=True)
class Parameter:
    """One axis of the space: a named physical quantity with a range.

    Attributes:
        name: a Python identifier; constraints and evaluators use it.
        lower, upper: ends of the range, both included, in ``unit``.
        scale: "linear", or "log" if equal ratios matter equally; log needs ``lower > 0``.
        unit: for people, e.g. "GeV".
        step: allowed values are multiples of it, 0, ±step, ±2 step ... in the range; None for a continuum.
        label: how plots call it, e.g. r"$m_{\\tilde\\ell}$"; the name if empty.

    Raises:
        InvalidSpace: a name that is no identifier; an empty, inverted or infinite range; a log scale that
            reaches zero; a step that is not positive or has no multiple in the range.

    Example:
        >>> Parameter("m_slepton", 100, 500, unit="GeV", step=5).name
        'm_slepton'
    """

    name: str
    lower: float
    upper: float
    scale: Literal["linear", "log"] = "linear"
    unit: str = ""
    step: float | None = None
    label: str = ""

    def __post_init__(self) -> None:
        name = self.name
        if (
            not isinstance(name, str)
            or not name.isidentifier()
            or keyword.iskeyword(name)
            or name.startswith("__")
            or unicodedata.normalize("NFKC", name) != name
        ):
            raise InvalidSpace(
                f"parameter {name!r}: a name must be a Python identifier and no keyword, got {name!r}. "
                "Use letters, digits and underscores, and put anything else into label"
            )
        for key in ("lower", "upper", "step"):
            value = getattr(self, key)
            if key == "step" and value is None:
                continue
            try:
                if isinstance(value, str | bool):
                    raise TypeError
                object.__setattr__(self, key, float(value))
            except (TypeError, ValueError, OverflowError):
                raise InvalidSpace(
                    f"parameter {name!r}: {key} must be a number, got {key}={value!r}. Write it as a float"
                ) from None
        if self.scale not in ("linear", "log"):
            raise InvalidSpace(
                f"parameter {name!r}: the scale must be 'linear' or 'log', got scale={self.scale!r}. Choose one of them"
            )
        if not (math.isfinite(self.lower) and math.isfinite(self.upper)) or self.lower >= self.upper:
            raise InvalidSpace(
                f"parameter {name!r}: needs lower < upper, both finite, "
                f"got lower={self.lower!r}, upper={self.upper!r}. Give the range as (lower, upper)"
            )
        if self.scale == "log" and self.lower <= 0:
            raise InvalidSpace(
                f"parameter {name!r}: a log scale needs lower > 0, got lower={self.lower!r}. "
                "Raise lower or use scale='linear'"
            )
        if not math.isfinite(self.upper - self.lower):
            raise InvalidSpace(
                f"parameter {name!r}: the range must have a finite width, "
                f"got lower={self.lower!r}, upper={self.upper!r}. Use a larger unit"
            )
        if self.step is None:
            return
        if not (math.isfinite(self.step) and self.step > 0):
            raise InvalidSpace(
                f"parameter {name!r}: a step must be positive and finite, got step={self.step!r}. "
                "Use None for a continuous parameter"
            )
        first, last = self._multiples
        if first > last:
            raise InvalidSpace(
                f"parameter {name!r}: no multiple of the step lies in the range, got step={self.step!r}, "
                f"lower={self.lower!r}, upper={self.upper!r}. Use a smaller step or a wider range"
            )
        if max(abs(first), abs(last)) > 2**52:
            raise InvalidSpace(
                f"parameter {name!r}: the step is lost in float64's rounding, got step={self.step!r}, "
                f"lower={self.lower!r}, upper={self.upper!r}. Use None for a continuous parameter"
            )

    @property
    def _multiples(self) -> tuple[int, int]:
        """The first and the last k with k * step inside the range."""
        step = _simplest(self.step or 1.0)
        return math.ceil(_simplest(self.lower) / step), math.floor(_simplest(self.upper) / step)


def _simplest(value: float) -> Fraction:
    """The fraction people mean by a float: 1/10 for 0.1, not 3602879701896397/36028797018963968."""
    exact = Fraction(value)
    for digits in (0, 3, 6, 9, 12):
        simple = exact.limit_denominator(10**digits)
        if float(simple) == value:
            return simple
    return exact


@dataclass(frozen=True)
class ParameterSpace:
    """The parameters, in order, and the conditions between them.

    Attributes:
        parameters: at least one, names all different.
        constraints: all must hold; strings and functions are turned into `Constraint`.

    Raises:
        InvalidSpace: no parameter, a repeated name, a constraint with an unknown name, constraints that no
            point fulfils.

    Example:
        >>> space = ParameterSpace(
        ...     (Parameter("m", 100, 500, unit="GeV"), Parameter("g", 1e-3, 1, scale="log")), ("m * g < 250",)
        ... )
        >>> space.to_unit(torch.tensor([[300.0, 1.0]], dtype=torch.float64)).tolist()
        [[0.5, 1.0]]
        >>> space.allowed(torch.tensor([[300.0, 1.0]], dtype=torch.float64)).tolist()
        [False]
    """

    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "constraints", _listed(self.constraints))
        for parameter in self.parameters:
            if not isinstance(parameter, Parameter):
                raise InvalidSpace(
                    f"space: parameters must be of type Parameter, got {parameter!r}. "
                    "Use ParameterSpace.of for the short forms"
                )
        if not self.parameters or len(set(self.names)) < self.dim:
            raise InvalidSpace(
                f"space: needs at least one parameter and no repeated name, got {list(self.names)}. "
                "Give every parameter a name of its own"
            )
        for constraint in self.constraints:
            unknown = sorted(constraint.names - set(self.names) - set(CONSTANTS))
            if unknown:
                raise InvalidSpace(
                    f"constraint {constraint.text!r}: must use the space's parameters, got unknown "
                    f"{', '.join(unknown)}. Known are {', '.join(self.names)}"
                )
            if constraint.names and not constraint.names & set(self.names):
                raise InvalidSpace(
                    f"constraint {constraint.text!r}: must depend on a parameter, got none. "
                    f"Known are {', '.join(self.names)}"
                )
        self._require_allowed_points()

    @classmethod
    def of(cls, given: Any, constraints: Any = ()) -> ParameterSpace:
        """The space meant by a short form.

        Args:
            given: a space (returned as it is), a `Parameter`, a sequence of them, or a mapping from name to
                (lower, upper), (lower, upper, scale), the fields of a Parameter as a mapping, or a Parameter.
            constraints: as in `ParameterSpace`, or a single one; added to those of a space.

        Raises:
            InvalidSpace: anything else.

        Example:
            >>> ParameterSpace.of({"x": (0, 1.5), "y": (1, 10, "log")}).names
            ('x', 'y')
        """
        if isinstance(given, ParameterSpace):
            return cls(given.parameters, (*given.constraints, *_listed(constraints))) if constraints else given
        if isinstance(given, Parameter):
            return cls((given,), _listed(constraints))
        if isinstance(given, Mapping):
            return cls(tuple(_parameter(name, value) for name, value in given.items()), _listed(constraints))
        if isinstance(given, Sequence) and not isinstance(given, str):
            return cls(tuple(given), _listed(constraints))
        raise InvalidSpace(
            f"space: needs a ParameterSpace, parameters or a mapping, got {given!r}. "
            "Write for example {'x': (0, 1.5), 'y': (1, 10, 'log')}"
        )

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return len(self.parameters)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in the order of the coordinates."""
        return tuple(p.name for p in self.parameters)

    @property
    def has_callables(self) -> bool:
        """Whether a constraint is a function, so that the space has no JSON form."""
        return any(not isinstance(c.expression, str) for c in self.constraints)

    # --- x <-> u --------------------------------------------------------------------------------------------

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of the ranges in the coordinate of the scale, and which scales are log; each shape (d,)."""
        log = torch.tensor([p.scale == "log" for p in self.parameters])
        lower = torch.tensor([p.lower for p in self.parameters], dtype=torch.float64)
        upper = torch.tensor([p.upper for p in self.parameters], dtype=torch.float64)
        return torch.where(log, lower.log(), lower), torch.where(log, upper.log(), upper), log

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        """Ends of the ranges in physical units, each shape (d,)."""
        return (
            torch.tensor([p.lower for p in self.parameters], dtype=torch.float64),
            torch.tensor([p.upper for p in self.parameters], dtype=torch.float64),
        )

    @cached_property
    def _logs(self) -> tuple[int, ...]:
        """Which parameters have a log scale."""
        return tuple(i for i, p in enumerate(self.parameters) if p.scale == "log")

    @cached_property
    def _stepped(self) -> tuple[int, ...]:
        """Which parameters are quantised."""
        return tuple(i for i, p in enumerate(self.parameters) if p.step is not None)

    @cached_property
    def _lattice(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the quantised parameters: numerator and denominator of the step, first and last multiple."""
        steps = [_simplest(self.parameters[i].step or 1.0) for i in self._stepped]
        # A step whose fraction does not fit into float64 exactly is used as the float it is.
        exact = [max(s.numerator, s.denominator) <= 2**53 for s in steps]
        numbers = [
            [s.numerator if e else float(s) for s, e in zip(steps, exact)],
            [s.denominator if e else 1 for s, e in zip(steps, exact)],
            [self.parameters[i]._multiples[0] for i in self._stepped],
            [self.parameters[i]._multiples[1] for i in self._stepped],
        ]
        a, b, c, d = (torch.tensor(row, dtype=torch.float64) for row in numbers)
        return a, b, c, d

    def _check_shape(self, points: Any, what: str) -> Tensor:
        tensor = torch.as_tensor(points, dtype=torch.float64)
        if tensor.dim() == 0 or tensor.shape[-1] != self.dim:
            raise ShapeError(
                f"{what}: needs shape (..., {self.dim}), one number per parameter {', '.join(self.names)}, "
                f"got {tuple(tensor.shape)}. Put the parameters on the last axis"
            )
        return tensor

    def to_unit(self, x: Tensor) -> Tensor:
        """Coordinates in the unit cube, (x - lower)/(upper - lower), of the logarithms on a log scale.

        Args:
            x: physical values, shape (..., d); points outside the ranges land outside the cube.

        Returns:
            u, shape (..., d). On a log scale -inf for 0 and NaN for negative values.
        """
        x = self._check_shape(x, "x")
        lower, upper, log = self._ends
        return (torch.where(log, torch.where(log, x, 1.0).log(), x) - lower) / (upper - lower)

    def from_unit(self, u: Tensor) -> Tensor:
        """Physical values of points in the unit cube, the inverse of `to_unit`.

        The ends 0 and 1 give the ends of the range to the last bit, and a point that `snap` returned gives
        exact multiples of the steps (0.3, not 0.30000000000000004).

        Args:
            u: shape (..., d).

        Returns:
            x, shape (..., d).
        """
        u = self._check_shape(u, "u")
        x = self._unsnapped(u)
        if self._stepped:
            columns = list(self._stepped)
            near_x, near_u = self._nearest(u, x)
            # u is known to 1e-16 or so; a point this close to a multiple is meant to be one.
            close = (near_u - u[..., columns]).abs() <= 1e-13
            x[..., columns] = torch.where(close, near_x, x[..., columns])
        return x

    def _unsnapped(self, u: Tensor) -> Tensor:
        """`from_unit` without regard to steps, a new tensor."""
        lower, upper, _ = self._ends
        # lerp is exact at both ends and never leaves the range between them; the exponential needs help.
        x = torch.lerp(lower, upper, u)
        if self._logs:
            columns = list(self._logs)
            first, last = (end[columns] for end in self._range)
            w, v = u[..., columns], x[..., columns].exp()
            v = torch.where((w >= 0) & (w <= 1), v.clamp(first, last), v)
            x[..., columns] = torch.where(w == 0, first, torch.where(w == 1, last, v))
        return x

    def _nearest(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The multiples of the steps that are nearest in the cube: physical values and coordinates."""
        columns = list(self._stepped)
        numerator, denominator, first, last = self._lattice
        below = torch.minimum(torch.maximum((x[..., columns] * denominator / numerator).floor(), first), last)
        # Exact integers divided once: the float that is closest to the multiple.
        low = below * numerator / denominator
        high = torch.minimum(below + 1, last) * numerator / denominator
        ends_low, ends_high, log = (end[columns] for end in self._ends)
        u_low, u_high = (
            (torch.where(log, torch.where(log, v, 1.0).log(), v) - ends_low) / (ends_high - ends_low)
            for v in (low, high)
        )
        # The floor is one too low if x is a multiple up to rounding; then the upper neighbour is the nearest.
        up = (u_high - u[..., columns]).abs() < (u[..., columns] - u_low).abs()
        return torch.where(up, high, low), torch.where(up, u_high, u_low)

    def snap(self, u: Tensor) -> Tensor:
        """The nearest points of the cube whose quantised parameters are multiples of their steps.

        Args:
            u: shape (..., d).

        Returns:
            u, shape (..., d); parameters without a step are unchanged. Constraints are not looked at.
        """
        u = self._check_shape(u, "u")
        if not self._stepped:
            return u
        _, near = self._nearest(u, self._unsnapped(u))
        result = u.clone()
        result[..., list(self._stepped)] = near
        return result

    # --- what is allowed ------------------------------------------------------------------------------------

    def allowed(self, x: Tensor) -> Tensor:
        """Whether points lie in all ranges, up to 1e-9 of their width, and fulfil all constraints.

        Steps are not looked at: any point between two multiples can be told.

        Args:
            x: physical values, shape (..., d).

        Returns:
            Booleans, shape (...).
        """
        x = self._check_shape(x, "x").detach()
        u = self.to_unit(x)
        inside = ((u >= -_EDGE) & (u <= 1 + _EDGE)).all(-1)
        return inside & self._fulfilled(x) if self.constraints else inside

    def allowed_unit(self, u: Tensor) -> Tensor:
        """`allowed` for points of the unit cube, shape (..., d) -> (...)."""
        return self.allowed(self.from_unit(u))

    def _columns(self, x: Tensor) -> dict[str, np.ndarray]:
        flat = np.ascontiguousarray(x.detach().reshape(-1, self.dim).numpy().T)
        return dict(zip(self.names, flat))

    def _fulfilled(self, x: Tensor) -> Tensor:
        columns = self._columns(x)
        result = np.ones(x.shape[:-1].numel(), dtype=bool)
        for constraint in self.constraints:
            result &= constraint.holds(columns)
        return torch.from_numpy(result).reshape(x.shape[:-1])

    def _require_allowed_points(self) -> None:
        """Raise InvalidSpace if the constraints leave nothing."""
        if not self.constraints:
            return
        seen = 0
        for seen, good in self._candidates(seed=0, first=64):
            if len(good):
                return
            if seen >= _PROBES:
                break
        tried = f"{seen} points spread over the ranges"
        u = next(_sobol(self.dim, 0, 0, _PROBES))
        lattice = self._enumerate()
        if lattice is not None:
            if bool(self._fulfilled(self.from_unit(lattice)).any()):
                return
            u, tried = lattice, f"all {len(lattice)} multiples of the steps"
        columns = self._columns(self.from_unit(self.snap(u)))
        culprits = [c.text for c in self.constraints if not c.holds(columns).any()]
        if culprits:
            named = ", ".join(repr(c) for c in culprits)
            raise InvalidSpace(
                f"constraint {named}: no point may be left over, got none allowed of {tried}. "
                "Correct the expression or widen the ranges"
            )
        named = ", ".join(repr(c.text) for c in self.constraints)
        raise InvalidSpace(
            f"space: the constraints {named} together must leave points, got none allowed of {tried}. "
            "Drop one of them or widen the ranges"
        )

    @property
    def _lattice_size(self) -> int | None:
        """The number of points, allowed or not, if all parameters are quantised; else None."""
        if len(self._stepped) < self.dim:
            return None
        return math.prod(last - first + 1 for first, last in (p._multiples for p in self.parameters))

    def _enumerate(self) -> Tensor | None:
        """All points of a small lattice in the cube, allowed or not, shape (n, d); None if not small."""
        size = self._lattice_size
        if size is None or size > _ENUMERABLE:
            return None
        numerator, denominator, first, last = self._lattice
        axes = [
            torch.arange(int(a), int(b) + 1, dtype=torch.float64) * p / q
            for a, b, p, q in zip(first, last, numerator, denominator)
        ]
        return self.snap(self.to_unit(torch.cartesian_prod(*axes).reshape(-1, self.dim)))

    def lattice(self) -> Tensor | None:
        """All allowed points of a space whose parameters all have steps, if it has at most 2**20 points.

        Returns:
            u, shape (n, d), in lexicographic order; None with a continuous parameter or too many points.
        """
        points = self._enumerate()
        return None if points is None else points[self.allowed_unit(points)]

    # --- space-filling points -------------------------------------------------------------------------------

    def _candidates(self, seed: int, first: int, wanted: int = 2**62) -> Iterator[tuple[int, Tensor]]:
        """Blocks of the snapped and allowed points of one Sobol sequence, with the points drawn so far."""
        drawn, kept, block = 0, 0, first
        while drawn < _PATIENCE:
            u = self.snap(self._spread(seed, drawn, block))
            drawn += block
            if self.constraints:
                u = u[self._fulfilled(self.from_unit(u))]
            kept += len(u)
            yield drawn, u
            missing = max(wanted - kept, 1)
            block = max(64, min(_BLOCK, drawn, math.ceil(1.1 * missing * drawn / max(kept, 1))))

    @cached_property
    def _boxes(self) -> tuple[Tensor, Tensor] | None:
        """Equal boxes that contain all allowed points: lower corners, (m, d), and edges, (d,), in the cube.

        None if the allowed region is not small. Found by halving boxes and dropping those that interval arithmetic
        proves to be forbidden; next to be halved is the edge whose halving drops most.
        """
        if not self.constraints:
            return None
        u = self.snap(next(_sobol(self.dim, 0, 0, 2**12)))
        if int(self._fulfilled(self.from_unit(u)).sum()) * _RARE > len(u):
            return None
        used = set().union(*(c.names for c in self.constraints))
        # Snapping moves a point out of its box, unless the box spans the whole range of the quantised parameter.
        axes = [i for i, p in enumerate(self.parameters) if p.name in used and p.step is None]
        corners, edges = torch.zeros(1, self.dim, dtype=torch.float64), torch.ones(self.dim, dtype=torch.float64)
        idle = 0
        while axes and len(corners) and idle <= len(axes):
            best: tuple[int, float, Tensor, Tensor] | None = None
            for axis in axes:
                half = edges.clone()
                half[axis] /= 2
                shift = torch.zeros_like(edges)
                shift[axis] = half[axis]
                halves = torch.cat([corners, corners + shift])
                halves = halves[self._possible(halves, half)]
                if best is None or (len(halves), -edges[axis].item()) < best[:2]:
                    best = len(halves), -edges[axis].item(), halves, half
            assert best is not None
            idle = idle + 1 if best[0] == 2 * len(corners) else 0
            if best[0] > _BOXES or min(best[3]) < 2**-40:
                break
            corners, edges = best[2:]
        return corners, edges

    def _possible(self, corners: Tensor, edges: Tensor) -> Tensor:
        """Whether boxes of the cube may contain an allowed point, shape (m,)."""
        if not len(corners):
            return torch.empty(0, dtype=torch.bool)
        lower, upper = self._columns(self._unsnapped(corners)), self._columns(self._unsnapped(corners + edges))
        boxes = {name: (lower[name], upper[name]) for name in self.names}
        result = np.ones(len(corners), dtype=bool)
        for constraint in self.constraints:
            result &= constraint.possible(boxes)
        return torch.from_numpy(result)

    def _spread(self, seed: int, start: int, n: int) -> Tensor:
        """Candidates start ... start + n - 1: evenly over the cube, or over the boxes of a small region."""
        if self._boxes is None or not len(self._boxes[0]):
            return next(_sobol(self.dim, seed, start, n))
        corners, edges = self._boxes
        w = next(_sobol(self.dim + 1, seed, start, n))
        return corners[(w[:, 0] * len(corners)).long().clamp_max(len(corners) - 1)] + w[:, 1:] * edges

    def sample(self, start: int, n: int, seed: int, *, distinct: bool = False) -> Tensor:
        """Rows start ... start + n - 1 of one endless sequence that fills the allowed region evenly.

        A scrambled Sobol sequence, snapped to the steps, of which the allowed points are kept. It depends on
        the space and the seed alone, so ``sample(0, 10)`` is ``sample(0, 5)`` followed by ``sample(5, 5)``.

        Args:
            start: the first row.
            n: how many rows.
            seed: of the scrambling.
            distinct: leave out points that came before, as a design needs it in a quantised space.

        Returns:
            u, shape (n, d).

        Raises:
            SpaceExhausted: the space has fewer (distinct) points than asked for.
        """
        if start < 0 or n < 0:
            raise ShapeError(f"sample: start and n must not be negative, got start={start}, n={n}. Count from 0")
        if n == 0:
            return torch.empty(0, self.dim, dtype=torch.float64)
        if distinct and len(self._stepped) == self.dim:
            return self._sample_distinct(start, n, seed)
        if not self.constraints:
            return self.snap(next(_sobol(self.dim, seed, start, n)))
        stop, blocks, have = start + n, [], 0
        for _, u in self._candidates(seed, min(_BLOCK, max(64, math.ceil(1.1 * stop))), stop):
            blocks.append(u[max(0, start - have) : max(0, stop - have)])
            have += len(u)
            if have >= stop:
                return torch.cat(blocks)
        raise SpaceExhausted(
            f"space: {stop} allowed points were asked for, got {have} among {_PATIENCE} tried. "
            "Narrow the ranges to the allowed region"
        )

    def _sample_distinct(self, start: int, n: int, seed: int) -> Tensor:
        """`sample` without repetitions, all parameters quantised."""
        stop = start + n
        size = self._lattice_size
        assert size is not None
        small = size <= _ENUMERABLE
        # Sobol points would take forever to hit the last ones of a small lattice: these come in random order.
        patience = min(4 * size, 2 * _BLOCK) if small else _PATIENCE
        seen: set[bytes] = set()
        rows: list[Tensor] = []
        drawn = 0
        while drawn < patience and len(rows) < stop:
            block = min(_BLOCK, patience - drawn, max(64, 2 * (stop - len(rows)), drawn))
            u = self.snap(next(_sobol(self.dim, seed, drawn, block)))
            drawn += block
            _append_new(rows, seen, u[self._fulfilled(self.from_unit(u))] if self.constraints else u)
        if len(rows) < stop and small:
            left = self.lattice()
            assert left is not None
            order = np.random.default_rng(seed).permutation(len(left))
            _append_new(rows, seen, left[torch.from_numpy(order)])
        if len(rows) < stop:
            raise SpaceExhausted(
                f"space: {stop} distinct allowed points were asked for, got {len(rows)}"
                f"{'' if small else f' among {drawn} tried'}. Use smaller steps or fewer points"
            )
        return torch.stack(rows[start:stop])

    @cached_property
    def volume_fraction(self) -> float:
        """The allowed fraction of the unit cube, from at least 2**14 Sobol points, to some per cent."""
        if not self.constraints:
            return 1.0
        kept = 0
        for drawn, u in self._candidates(0, 2**14):
            kept += len(u)
            if kept >= 1000 or drawn >= 2**20:
                break
        if self._boxes is None or not len(self._boxes[0]):
            return kept / drawn
        corners, edges = self._boxes
        return kept / drawn * len(corners) * edges.prod().item()

    def grid(self, shape: int | Sequence[int]) -> Tensor:
        """A regular grid over the ranges, ends included, regular in the logarithm on a log scale.

        Args:
            shape: points per parameter, one number for all or one each; a single point sits in the middle.

        Returns:
            x, shape (product of ``shape``, d), the last parameter fastest. Nothing is snapped or left out.
        """
        counts = [shape] * self.dim if isinstance(shape, int) else list(shape)
        if len(counts) != self.dim or min(counts) < 1 or math.prod(counts) > 10**8:
            raise ShapeError(
                f"grid: needs {self.dim} positive numbers of points with a product up to 1e8, got {counts}. "
                "Give one number per parameter"
            )
        axes = [
            torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.tensor([0.5], dtype=torch.float64)
            for count in counts
        ]
        return self.from_unit(torch.cartesian_prod(*axes).reshape(-1, self.dim))

    # --- points with names ----------------------------------------------------------------------------------

    def point(self, x: Tensor) -> dict[str, float]:
        """One physical point, shape (d,), with the parameters' names."""
        x = self._check_shape(x, "point")
        if x.dim() != 1:
            raise ShapeError(f"point: needs one row, shape ({self.dim},), got {tuple(x.shape)}. Pick a row")
        return dict(zip(self.names, x.tolist()))

    def _row(self, point: Mapping[str, float], where: str) -> list[float]:
        if not isinstance(point, Mapping):
            raise InvalidPoint(
                f"{where}: must be a mapping from parameter name to value, got {point!r}. "
                f"Known are {', '.join(self.names)}"
            )
        unknown = [str(name) for name in point if name not in self.names]
        missing = [name for name in self.names if name not in point]
        if unknown or missing:
            got = [f"{what} {', '.join(n)}" for what, n in (("unknown", unknown), ("missing", missing)) if n]
            raise InvalidPoint(
                f"{where}: needs a value for every parameter and nothing else, got {'; '.join(got)}. "
                f"Known are {', '.join(self.names)}"
            )
        row = []
        for name in self.names:
            value = point[name]
            try:
                number = math.nan if isinstance(value, str | bytes) else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise InvalidPoint(
                    f"{where}: parameter {name!r} must be a finite number, got {value!r}. Give it a value"
                )
            row.append(number)
        return row

    def tensor(self, points: Sequence[Mapping[str, float]], where: str = "point") -> Tensor:
        """Points with names as an array.

        Args:
            points: each a mapping from parameter name to physical value, inside the ranges or not.
            where: what messages call a point; its position is added.

        Returns:
            x, shape (n, d).

        Raises:
            InvalidPoint: an unknown or a missing name, or a value that is not finite.
        """
        rows = [self._row(point, f"{where} {i}") for i, point in enumerate(points)]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, self.dim)

    def check(self, point: Mapping[str, float], where: str = "point") -> dict[str, float]:
        """A point that may be evaluated, its parameters in the space's order.

        Args:
            point: parameter name -> physical value.
            where: what messages call it.

        Returns:
            The same point with plain floats.

        Raises:
            InvalidPoint: an unknown or a missing name, a value that is not finite or outside the range, or a
                point that a constraint forbids.
        """
        row = self._row(point, where)
        x = torch.tensor(row, dtype=torch.float64)
        u = self.to_unit(x).tolist()
        for p, value, coordinate in zip(self.parameters, row, u):
            if not -_EDGE <= coordinate <= 1 + _EDGE:
                unit = f" {p.unit}" if p.unit else ""
                raise InvalidPoint(
                    f"{where}: parameter {p.name!r} must lie in [{p.lower!r}, {p.upper!r}]{unit}, "
                    f"got {value!r}. Choose a point inside or widen the range"
                )
        columns = self._columns(x)
        for constraint in self.constraints:
            if not constraint.holds(columns).all():
                raise InvalidPoint(
                    f"{where}: constraint {constraint.text!r} forbids it, got "
                    f"{', '.join(f'{n}={v!r}' for n, v in zip(self.names, row))}. Choose an allowed point"
                )
        return dict(zip(self.names, row))

    # --- JSON -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The space as JSON-compatible data, the inverse of `from_json`.

        Raises:
            InvalidSpace: a constraint is a function.
        """
        for constraint in self.constraints:
            if not isinstance(constraint.expression, str):
                raise InvalidSpace(
                    f"constraint {constraint.text}: a function has no JSON form, got "
                    f"{constraint.expression!r}. Write it as an expression, 'm_slepton - m_chi > 20'"
                )
        return {
            "parameters": [{f.name: getattr(p, f.name) for f in fields(p)} for p in self.parameters],
            "constraints": [c.expression for c in self.constraints],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ParameterSpace:
        """The space that `to_json` described.

        Raises:
            InvalidSpace: data of another form.
        """
        try:
            parameters = [dict(p) for p in data["parameters"]]
            constraints = list(data.get("constraints", ()))
            names = [p.pop("name") for p in parameters]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidSpace(
                f"space: needs 'parameters', a list of mappings with a name each, got {data!r}. "
                "Write it with ParameterSpace.to_json"
            ) from None
        return cls(tuple(_parameter(name, p) for name, p in zip(names, parameters)), tuple(constraints))


def _parameter(name: Any, value: Any) -> Parameter:
    """A parameter from its short form."""
    if isinstance(value, Parameter):
        if value.name != name:
            raise InvalidSpace(
                f"parameter {name!r}: the key must be the parameter's name, got {value.name!r}. Use one of them"
            )
        return value
    known = [f.name for f in fields(Parameter)]
    if isinstance(value, Mapping):
        unknown = [str(key) for key in value if key not in known or key == "name"]
        missing = [key for key in ("lower", "upper") if key not in value]
        if unknown or missing:
            got = [f"{what} {', '.join(n)}" for what, n in (("unknown", unknown), ("missing", missing)) if n]
            raise InvalidSpace(
                f"parameter {name!r}: needs lower and upper, and may have {', '.join(known[3:])}, "
                f"got {'; '.join(got)}. Correct the keys"
            )
        return Parameter(name, **value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (2, 3):
        return Parameter(name, *value)
    raise InvalidSpace(
        f"parameter {name!r}: needs (lower, upper) or (lower, upper, scale), got {value!r}. "
        "Use a Parameter for units, steps and labels"
    )


def _listed(constraints: Any) -> tuple[Constraint, ...]:
    """One or several constraints, expressions or functions, as a tuple of constraints."""
    if isinstance(constraints, str | Constraint) or callable(constraints):
        constraints = (constraints,)
    return tuple(c if isinstance(c, Constraint) else Constraint(c) for c in constraints)


def _append_new(rows: list[Tensor], seen: set[bytes], u: Tensor) -> None:
    """Append the rows of u that were not seen before."""
    for row, key in zip(u, (r.tobytes() for r in u.numpy())):
        if key not in seen:
            seen.add(key)
            rows.append(row)


def _sobol(dim: int, seed: int, start: int, n: int) -> Iterator[Tensor]:
    """Consecutive blocks of n rows of one scrambled Sobol sequence, each shape (n, dim)."""
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    if start:
        engine.fast_forward(start)
    while True:
        yield engine.draw(n, dtype=torch.float64)
