"""Where we look: parameters, their ranges, scales and steps, the constraints between them, and the unit cube.

``x`` is a point in physical units, ``u`` the same point in the unit cube. Only this module converts between them.
Both are float64 tensors whose last axis runs over the parameters, shape (..., d).

Space-filling points are rows of a Sobol sequence with Owen-type scrambling: I. M. Sobol', USSR Comput. Math. Math.
Phys. 7 (1967) 86; S. Joe and F. Y. Kuo, SIAM J. Sci. Comput. 30 (2008) 2635, for the direction numbers;
J. Matousek, J. Complexity 14 (1998) 527, for the scrambling.
"""

from __future__ import annotations

import ast
import keyword
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Parameter:
    """One axis of the space: a named physical quantity with a range.

    Attributes:
        name: a Python identifier; constraints and evaluators use it.
        lower, upper: ends of the range, both included, in ``unit``.
        scale: "linear", or "log" if equal ratios matter equally; log needs ``lower > 0``.
        unit: for people, e.g. "GeV".
        step: allowed values are multiples of it, 0, ±step, ±2 step ... inside the range; None for a continuum.
        label: how plots call it, e.g. r"$m_{\\tilde\\ell}$"; the name if empty.

    Raises:
        InvalidSpace: a name that is no identifier; an empty, inverted or infinite range; a log scale that reaches
            zero; a step that is not positive or has no multiple in the range.

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


# A truth value over points, Kleene's three-valued logic: where it surely holds, and where it surely does not.
# Neither, where a comparison met NaN. So "not log(x) > 0" is not fulfilled by x < 0, as NaN is no permission.
Truth = tuple[np.ndarray, np.ndarray]
Columns = Mapping[str, np.ndarray]

_CONSTANTS = {"pi": math.pi}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
}
_FOLDS: dict[str, Callable[..., Any]] = {"min": np.minimum, "max": np.maximum}
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_LONGEST = 2000
_DEEPEST = 60


class _Refused(Exception):
    """Why a syntax tree is no constraint."""


def _parse(expression: str) -> tuple[ast.expr, frozenset[str]]:
    """The checked syntax tree of an expression and the names in it; nothing is evaluated."""
    return _parse_cached(expression)


@lru_cache(maxsize=256)
def _parse_cached(expression: str) -> tuple[ast.expr, frozenset[str]]:
    where = f"constraint {expression[:200]!r}"
    try:
        if len(expression) > _LONGEST:
            raise _Refused(f"it must have at most {_LONGEST} characters, got {len(expression)}")
        tree = ast.parse(expression.strip(), mode="eval").body
        names: set[str] = set()
        _require_truth(tree, names, 0)
    except _Refused as refused:
        raise InvalidSpace(
            f"{where}: {refused}. Use parameter names, numbers, + - * / **, comparisons, and/or/not, pi, "
            f"{', '.join((*_FUNCTIONS, *_FOLDS))}"
        ) from None
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise InvalidSpace(
            f"{where}: it must be a Python expression, got {type(error).__name__}: {error}. "
            "Write for example 'm_slepton - m_chi > 20'"
        ) from None
    if not names:
        raise InvalidSpace(
            f"{where}: it must depend on a parameter, got none. Write for example 'm_chi < 100'"
        )
    return tree, frozenset(names)


def _require_truth(node: ast.expr, names: set[str], depth: int) -> None:
    """Refuse any tree that is not a comparison, or comparisons joined by and/or/not."""
    if depth > _DEEPEST:
        raise _Refused(f"it must be nested at most {_DEEPEST} deep, got more")
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _require_truth(value, names, depth + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _require_truth(node.operand, names, depth + 1)
    elif isinstance(node, ast.Compare):
        for op in node.ops:
            if type(op) not in _COMPARISONS:
                raise _Refused(f"numbers are compared with < <= > >= == !=, got {type(op).__name__}")
        for value in (node.left, *node.comparators):
            _require_number(value, names, depth + 1)
    elif isinstance(node, ast.BinOp | ast.Constant | ast.Name | ast.Call | ast.UnaryOp):
        _require_number(node, names, depth)
        raise _Refused(f"it must be true or false, got the number {ast.unparse(node)!r}")
    else:
        raise _Refused(f"this is not allowed in a constraint, got {_excerpt(node)!r} ({type(node).__name__})")


def _require_number(node: ast.expr, names: set[str], depth: int) -> None:
    """Refuse any tree that is not arithmetic on numbers and names."""
    if depth > _DEEPEST:
        raise _Refused(f"it must be nested at most {_DEEPEST} deep, got more")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            finite = math.isfinite(float(node.value))
        except OverflowError:
            finite = False
        if not finite:
            raise _Refused("a number must fit into a float, got one that is too large")
    elif isinstance(node, ast.Name):
        if node.id.startswith("__"):
            raise _Refused(f"a name must not start with two underscores, got {node.id!r}")
        names.add(node.id)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _require_number(node.operand, names, depth + 1)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _require_number(node.left, names, depth + 1)
        _require_number(node.right, names, depth + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name, args = node.func.id, node.args
        if name not in _FUNCTIONS and name not in _FOLDS:
            raise _Refused(f"only known functions can be called, got {name!r}")
        least, most = (1, 1) if name in _FUNCTIONS else (2, 100)
        if node.keywords or not least <= len(args) <= most:
            raise _Refused(f"{name} takes {'one number' if most == 1 else 'two or more numbers'}, got "
                           f"{_excerpt(node)!r}")  # fmt: skip
        for arg in args:
            _require_number(arg, names, depth + 1)
    else:
        raise _Refused(f"this is not allowed in arithmetic, got {_excerpt(node)!r} ({type(node).__name__})")


def _excerpt(node: ast.expr) -> str:
    return ast.unparse(node)[:80]


def _number(node: ast.expr, columns: Columns) -> Any:
    """The value of a checked arithmetic tree at every point, float64."""
    match node:
        case ast.Constant(value=value):
            return np.float64(value)
        case ast.Name(id=name):
            return columns[name] if name in columns else np.float64(_CONSTANTS[name])
        case ast.UnaryOp(op=op, operand=operand):
            value = _number(operand, columns)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_number(left, columns), _number(right, columns))
        case ast.Call(func=ast.Name(id=name), args=args):
            values = [_number(arg, columns) for arg in args]
            if name in _FUNCTIONS:
                return _FUNCTIONS[name](values[0])
            result = values[0]
            for value in values[1:]:
                result = _FOLDS[name](result, value)
            return result
    raise AssertionError(f"unchecked syntax: {ast.dump(node)}")


def _truth(node: ast.expr, columns: Columns) -> Truth:
    """The truth of a checked tree at every point."""
    match node:
        case ast.BoolOp(op=op, values=values):
            yes, no = _truth(values[0], columns)
            for value in values[1:]:
                more_yes, more_no = _truth(value, columns)
                if isinstance(op, ast.And):
                    yes, no = yes & more_yes, no | more_no
                else:
                    yes, no = yes | more_yes, no & more_no
            return yes, no
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yes, no = _truth(operand, columns)
            return no, yes
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            numbers = [_number(value, columns) for value in (left, *comparators)]
            yes, no = np.True_, np.False_
            for op, a, b in zip(ops, numbers[:-1], numbers[1:]):
                holds, known = _COMPARISONS[type(op)](a, b), ~(np.isnan(a) | np.isnan(b))
                yes, no = yes & holds & known, no | (~holds & known)
            return yes, no
    raise AssertionError(f"unchecked syntax: {ast.dump(node)}")


@dataclass(frozen=True)
class Constraint:
    """A condition that allowed points fulfil.

    Attributes:
        expression: a condition on the parameters in Python's syntax, ``"m_slepton - m_chi > 20"``. It is read as a
            syntax tree and only ever evaluated by this module: comparisons of arithmetic (``+ - * / **``) on
            parameter names, numbers and pi, the functions abs, min, max, sqrt, exp, log, log10, sin, cos, tan, tanh,
            joined by and/or/not. All numbers are float64. Where a comparison meets NaN (the log of a negative
            number), it counts as not fulfilled. Or a function of a point, name -> value, that returns a bool; it
            is slower and has no JSON form.

    Raises:
        InvalidSpace: not an expression, or one that does more than the above.

    Example:
        >>> Constraint("sqrt(x) < y").names
        frozenset({'x', 'y'})
    """

    expression: str | Callable[[dict[str, float]], bool]

    def __post_init__(self) -> None:
        if isinstance(self.expression, str):
            _parse(self.expression)
        elif not callable(self.expression):
            raise InvalidSpace(
                f"constraint {self.expression!r}: needs an expression or a function of a point, "
                f"got {type(self.expression).__name__}. Write for example 'm_slepton - m_chi > 20'"
            )

    @property
    def names(self) -> frozenset[str]:
        """The names an expression uses, constants included; unknown, hence empty, for a function."""
        return _parse(self.expression)[1] if isinstance(self.expression, str) else frozenset()

    @property
    def text(self) -> str:
        """The expression, or the function's name."""
        if isinstance(self.expression, str):
            return self.expression
        return getattr(self.expression, "__qualname__", repr(self.expression))

    def holds(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether each point fulfils the condition.

        Args:
            columns: parameter name -> its physical values, shape (n,).

        Returns:
            Booleans, shape (n,).

        Raises:
            InvalidSpace: the function failed or returned something else than a bool.
        """
        n = len(next(iter(columns.values())))
        if isinstance(self.expression, str):
            with np.errstate(all="ignore"):
                yes, _ = _truth(_parse(self.expression)[0], columns)
            return np.broadcast_to(yes, (n,))
        rows = np.stack(list(columns.values()), axis=-1).tolist()
        result = np.empty(n, dtype=bool)
        for i, row in enumerate(rows):
            point = dict(zip(columns, row))
            try:
                answer = self.expression(point)
            except Exception as error:
                raise InvalidSpace(
                    f"constraint {self.text}: the function must not fail, got {type(error).__name__}: {error} "
                    f"at {point}. Let it return False where a point is not allowed"
                ) from error
            if not isinstance(answer, bool | np.bool_):
                raise InvalidSpace(
                    f"constraint {self.text}: the function must return a bool, got {answer!r} at {point}. "
                    "Return True where a point is allowed"
                )
            result[i] = answer
        return result


@dataclass(frozen=True)
class ParameterSpace:
    """The parameters, in order, and the conditions between them.

    Attributes:
        parameters: at least one, names all different.
        constraints: all must hold; strings and functions are turned into `Constraint`.

    Raises:
        InvalidSpace: no parameter, a repeated name, a constraint with an unknown name, constraints that no point
            fulfils.

    Example:
        >>> space = ParameterSpace(
        ...     (Parameter("m", 100, 500, unit="GeV"), Parameter("g", 1e-3, 1, scale="log")), ("m * g < 250",)
        ... )
        >>> space.to_unit(torch.tensor([[300.0, 1.0]], dtype=torch.float64))
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
        >>> space.allowed(torch.tensor([[300.0, 1.0]], dtype=torch.float64))
        tensor([False])
    """

    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        constraints: Any = self.constraints
        if isinstance(constraints, str | Constraint) or callable(constraints):
            constraints = (constraints,)
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(
            self, "constraints", tuple(c if isinstance(c, Constraint) else Constraint(c) for c in constraints)
        )
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
            unknown = sorted(constraint.names - set(self.names) - set(_CONSTANTS))
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
    def of(cls, given: Any, constraints: Sequence[Any] = ()) -> ParameterSpace:
        """The space meant by a short form.

        Args:
            given: a space (returned as it is), a `Parameter`, a sequence of them, or a mapping from name to
                (lower, upper), (lower, upper, scale), the fields of a Parameter as a mapping, or a Parameter.
            constraints: as in `ParameterSpace`; added to those of a space.

        Raises:
            InvalidSpace: anything else.

        Example:
            >>> ParameterSpace.of({"x": (0, 1.5), "y": (1, 10, "log")}).names
            ('x', 'y')
        """
        if isinstance(given, ParameterSpace):
            return cls(given.parameters, (*given.constraints, *constraints)) if constraints else given
        if isinstance(given, Parameter):
            return cls((given,), tuple(constraints))
        if isinstance(given, Mapping):
            return cls(tuple(_parameter(name, value) for name, value in given.items()), tuple(constraints))
        if isinstance(given, Sequence) and not isinstance(given, str):
            return cls(tuple(given), tuple(constraints))
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

    # --- x <-> u ---------------------------------------------------------------------------------------------

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

        The ends 0 and 1 give the ends of the range to the last bit, and a point that `snap` returned gives exact
        multiples of the steps (0.3, not 0.30000000000000004).

        Args:
            u: shape (..., d).

        Returns:
            x, shape (..., d).
        """
        u = self._check_shape(u, "u")
        lower, upper, log = self._ends
        v = lower + u * (upper - lower)
        x = torch.where(log, torch.where(log, v, 0.0).exp(), v)
        first, last = self._range
        x = torch.where((u >= 0) & (u <= 1), x.clamp(first, last), x)
        x = torch.where(u == 0, first, torch.where(u == 1, last, x))
        if self._stepped:
            columns = list(self._stepped)
            near_x, near_u = self._nearest(u, x)
            # Rounding of u is 1e-16; a step can be as small as 1e-15 of the range only in theory.
            close = (near_u - u[..., columns]).abs() <= 1e-13
            x = x.clone()
            x[..., columns] = torch.where(close, near_x, x[..., columns])
        return x

    def _nearest(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The multiples of the steps that are nearest in the cube: physical values and coordinates, (..., s)."""
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
        lower, upper, log = self._ends
        v = lower + u * (upper - lower)
        _, near = self._nearest(u, torch.where(log, torch.where(log, v, 0.0).exp(), v))
        result = u.clone()
        result[..., list(self._stepped)] = near
        return result

    # --- what is allowed -------------------------------------------------------------------------------------

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
        """All points of a small lattice in the cube, allowed or not, shape (n, d); None if it is not small."""
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
        """All allowed points of a space whose parameters all have steps, if there are at most 2**20 multiples.

        Returns:
            u, shape (n, d), in lexicographic order; None for a space with a continuous parameter or too many points.
        """
        points = self._enumerate()
        return None if points is None else points[self.allowed_unit(points)]

    # --- space-filling points --------------------------------------------------------------------------------

    def _candidates(self, seed: int, first: int, wanted: int = 2**62) -> Iterator[tuple[int, Tensor]]:
        """Blocks of the snapped and allowed points of one Sobol sequence, with the points drawn so far."""
        drawn, kept, block = 0, 0, first
        while drawn < _PATIENCE:
            u = self.snap(next(_sobol(self.dim, seed, drawn, block)))
            drawn += block
            if self.constraints:
                u = u[self._fulfilled(self.from_unit(u))]
            kept += len(u)
            yield drawn, u
            missing = max(wanted - kept, 1)
            block = max(64, min(_BLOCK, drawn, math.ceil(1.1 * missing * drawn / max(kept, 1))))

    def sample(self, start: int, n: int, seed: int, *, distinct: bool = False) -> Tensor:
        """Rows start ... start + n - 1 of one endless sequence that fills the allowed region evenly.

        A scrambled Sobol sequence, snapped to the steps, of which the allowed points are kept. The sequence depends
        on the space and the seed alone, so ``sample(0, 10)`` is ``sample(0, 5)`` followed by ``sample(5, 5)``.

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
            raise ShapeError(
                f"sample: start and n must not be negative, got start={start}, n={n}. Count from 0"
            )
        if n == 0:
            return torch.empty(0, self.dim, dtype=torch.float64)
        if distinct and len(self._stepped) == self.dim:
            return self._sample_distinct(start, n, seed)
        if not self.constraints:
            return self.snap(next(_sobol(self.dim, seed, start, n)))
        stop, blocks, have = start + n, [], 0
        for drawn, u in self._candidates(seed, max(64, math.ceil(1.1 * stop)), stop):
            blocks.append(u[max(0, start - have) : max(0, stop - have)])
            have += len(u)
            if have >= stop:
                return torch.cat(blocks)
        raise SpaceExhausted(
            f"space: {stop} allowed points were asked for, got {have} among {drawn} tried. "
            "Narrow the ranges to the allowed region"
        )

    def _sample_distinct(self, start: int, n: int, seed: int) -> Tensor:
        """`sample` without repetitions, all parameters quantised."""
        stop = start + n
        size = self._lattice_size
        assert size is not None
        small = size <= _ENUMERABLE
        # In a small lattice the Sobol points would take forever to hit the last ones; they come in random order.
        patience = 4 * size + 64 if small else _PATIENCE
        seen: set[bytes] = set()
        rows: list[Tensor] = []
        drawn = 0
        while drawn < patience and len(rows) < stop:
            block = min(_BLOCK, patience - drawn, max(64, 2 * (stop - len(rows)), drawn))
            u = self.snap(next(_sobol(self.dim, seed, drawn, block)))
            drawn += block
            _append_new(rows, seen, u[self._fulfilled(self.from_unit(u))] if self.constraints else u)
        if len(rows) < stop and small:
            u = self.lattice()
            assert u is not None
            _append_new(rows, seen, u[torch.from_numpy(np.random.default_rng(seed).permutation(len(u)))])
        if len(rows) < stop:
            raise SpaceExhausted(
                f"space: {stop} distinct allowed points were asked for, got {len(rows)}"
                f"{'' if small else f' among {drawn} tried'}. Use smaller steps or fewer points"
            )
        return torch.stack(rows[start:stop])

    @cached_property
    def volume_fraction(self) -> float:
        """The allowed fraction of the unit cube, estimated with Sobol points (at least 2**14, to some per cent)."""
        if not self.constraints:
            return 1.0
        kept = 0
        for drawn, u in self._candidates(0, 2**14):
            kept += len(u)
            if kept >= 1000 or drawn >= 2**20:
                break
        return kept / drawn

    def grid(self, shape: int | Sequence[int]) -> Tensor:
        """A regular grid over the ranges, ends included, regular in the logarithm on a log scale.

        Args:
            shape: points per parameter, one number for all or one each; a single point sits in the middle.

        Returns:
            x, shape (product of ``shape``, d); the last parameter varies fastest. Nothing is snapped or left out.
        """
        counts = [shape] * self.dim if isinstance(shape, int) else list(shape)
        if len(counts) != self.dim or min(counts) < 1 or math.prod(counts) > 10**8:
            raise ShapeError(
                f"grid: needs {self.dim} positive numbers of points with a product up to 1e8, got {counts}. "
                "Give one number per parameter"
            )
        axes = [
            torch.linspace(0, 1, count, dtype=torch.float64)
            if count > 1
            else torch.tensor([0.5], dtype=torch.float64)
            for count in counts
        ]
        return self.from_unit(torch.cartesian_prod(*axes).reshape(-1, self.dim))

    # --- points with names -----------------------------------------------------------------------------------

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
            InvalidPoint: an unknown or a missing name, a value that is not finite or outside the range, or a point
                that a constraint forbids.
        """
        row = self._row(point, where)
        x = torch.tensor(row, dtype=torch.float64)
        u = self.to_unit(x).tolist()
        for p, value, coordinate in zip(self.parameters, row, u):
            if not -_EDGE <= coordinate <= 1 + _EDGE:
                unit = f" {p.unit}" if p.unit else ""
                raise InvalidPoint(
                    f"{where}: parameter {p.name!r} must lie in [{p.lower!r}, {p.upper!r}]{unit}, got {value!r}. "
                    "Choose a point inside or widen the range"
                )
        columns = self._columns(x)
        for constraint in self.constraints:
            if not constraint.holds(columns).all():
                raise InvalidPoint(
                    f"{where}: constraint {constraint.text!r} forbids it, got "
                    f"{', '.join(f'{n}={v!r}' for n, v in zip(self.names, row))}. Choose an allowed point"
                )
        return dict(zip(self.names, row))

    # --- JSON ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The space as JSON-compatible data, the inverse of `from_json`.

        Raises:
            InvalidSpace: a constraint is a function.
        """
        for constraint in self.constraints:
            if not isinstance(constraint.expression, str):
                raise InvalidSpace(
                    f"constraint {constraint.text}: a function has no JSON form, got {constraint.expression!r}. "
                    "Write it as an expression, for example 'm_slepton - m_chi > 20'"
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
