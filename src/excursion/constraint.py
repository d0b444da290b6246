"""Conditions between parameters: safe expressions, read as syntax trees, evaluated over many points at once."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from .errors import InvalidSpace

__all__ = ["CONSTANTS", "Constraint"]

# A truth value over points, Kleene's three-valued logic: where it surely holds, and where it surely does not.
# Neither, where a comparison met NaN. So "not log(x) > 0" is not fulfilled by x < 0, as NaN is no permission.
Truth = tuple[Any, Any]
Columns = Mapping[str, np.ndarray]

CONSTANTS = {"pi": math.pi}
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


@lru_cache(maxsize=256)
def _parse(expression: str) -> tuple[ast.expr, frozenset[str]]:
    """The checked syntax tree of an expression and the names in it; nothing is evaluated."""
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
        raise InvalidSpace(f"{where}: it must depend on a parameter, got none. Write for example 'm_chi < 100'")
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
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if isinstance(node.value, bool):
            raise _Refused(f"a number is needed, got {node.value!r}")
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
        case ast.Constant(value=int() | float() as value):
            return np.float64(value)
        case ast.Name(id=name):
            return columns[name] if name in columns else np.float64(CONSTANTS[name])
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


def _logic(node: ast.expr, compare: Callable[[ast.Compare], Truth]) -> Truth:
    """and, or and not of a checked tree, for whatever `compare` says of its comparisons."""
    match node:
        case ast.BoolOp(op=op, values=values):
            yes, no = _logic(values[0], compare)
            for value in values[1:]:
                more_yes, more_no = _logic(value, compare)
                if isinstance(op, ast.And):
                    yes, no = yes & more_yes, no | more_no
                else:
                    yes, no = yes | more_yes, no & more_no
            return yes, no
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yes, no = _logic(operand, compare)
            return no, yes
        case ast.Compare():
            return compare(node)
    raise AssertionError(f"unchecked syntax: {ast.dump(node)}")


def _truth(node: ast.expr, columns: Columns) -> Truth:
    """The truth of a checked tree at every point."""

    def compare(node: ast.Compare) -> Truth:
        numbers = [_number(value, columns) for value in (node.left, *node.comparators)]
        yes, no = np.True_, np.False_
        for comparison, a, b in zip(node.ops, numbers[:-1], numbers[1:]):
            holds, known = _COMPARISONS[type(comparison)](a, b), ~(np.isnan(a) | np.isnan(b))
            yes, no = yes & holds & known, no | (~holds & known)
        return yes, no

    return _logic(node, compare)


# Interval arithmetic: bounds of an expression over boxes (R. E. Moore, Interval Analysis, 1966). Bounds may be too
# wide and never too narrow, so a box is only ever dropped if no point in it fulfils the constraint.
Bounds = tuple[Any, Any]

_EVERYTHING = (np.float64(-np.inf), np.float64(np.inf))
_INCREASING = ("exp", "tanh", "sqrt", "log", "log10")


def _corners(function: Callable[..., Any], a: Bounds, b: Bounds) -> Bounds:
    """Bounds of a function that is monotonic in each argument; everything where a corner is NaN."""
    values = [function(x, y) for x in a for y in b]
    lower, upper = reduce(np.minimum, values), reduce(np.maximum, values)
    return np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)


def _unless(bad: Any, bounds: Bounds) -> Bounds:
    return np.where(bad, -np.inf, bounds[0]), np.where(bad, np.inf, bounds[1])


def _number_bounds(node: ast.expr, boxes: Mapping[str, Bounds]) -> Bounds:
    """Bounds of a checked arithmetic tree over every box."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return np.float64(value), np.float64(value)
        case ast.Name(id=name):
            return boxes[name] if name in boxes else (np.float64(CONSTANTS[name]),) * 2
        case ast.UnaryOp(op=op, operand=operand):
            lower, upper = _number_bounds(operand, boxes)
            return (-upper, -lower) if isinstance(op, ast.USub) else (lower, upper)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _number_bounds(left, boxes), _number_bounds(right, boxes)
            if isinstance(op, ast.Div):
                return _unless((b[0] <= 0) & (b[1] >= 0), _corners(np.divide, a, b))
            if not isinstance(op, ast.Pow):
                return _corners(_OPERATORS[type(op)], a, b)
            if isinstance(right, ast.Constant) and b[0] > 0 and b[0] % 2 == 0:
                a = _magnitude(a)
            elif isinstance(right, ast.Constant) and b[0] > 0 and b[0] % 2 == 1:
                return _corners(np.power, a, b)
            # Monotonic in base and exponent where the base is positive, or zero and the exponent is positive.
            return _unless((a[0] < 0) | ((a[0] == 0) & (b[0] <= 0)), _corners(np.power, a, b))
        case ast.Call(func=ast.Name(id=name), args=args):
            bounds = [_number_bounds(arg, boxes) for arg in args]
            if name in _FOLDS:
                result = bounds[0]
                for a in bounds[1:]:
                    result = _FOLDS[name](result[0], a[0]), _FOLDS[name](result[1], a[1])
                return result
            lower, upper = bounds[0]
            if name == "abs":
                return _magnitude(bounds[0])
            if name in ("sin", "cos"):
                return np.float64(-1), np.float64(1)
            if name not in _INCREASING:
                return _EVERYTHING
            if name in ("sqrt", "log", "log10"):
                # Outside the domain there is only NaN, which fulfils nothing: bounds of the rest will do.
                lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
            return _FUNCTIONS[name](lower), _FUNCTIONS[name](upper)
    raise AssertionError(f"unchecked syntax: {ast.dump(node)}")


def _magnitude(a: Bounds) -> Bounds:
    lower, upper = a
    least = np.where((lower <= 0) & (upper >= 0), 0.0, np.minimum(np.abs(lower), np.abs(upper)))
    return least, np.maximum(np.abs(lower), np.abs(upper))


def _possible(node: ast.expr, boxes: Mapping[str, Bounds]) -> Truth:
    """Whether a checked tree may hold, and whether it may fail, somewhere in every box."""

    def compare(node: ast.Compare) -> Truth:
        bounds = [_number_bounds(value, boxes) for value in (node.left, *node.comparators)]
        yes: Any = np.True_
        no: Any = np.False_
        for comparison, a, b in zip(node.ops, bounds[:-1], bounds[1:]):
            # Rounding of the bounds must not decide.
            scale = [np.where(np.isfinite(v), np.abs(v), 0.0) for v in (*a, *b)]
            slack = 1e-9 * reduce(np.maximum, scale)
            below, above = a[0] <= b[1] + slack, a[1] >= b[0] - slack
            match comparison:
                case ast.Lt() | ast.LtE():
                    yes, no = yes & below, no | above
                case ast.Gt() | ast.GtE():
                    yes, no = yes & above, no | below
                case ast.Eq():
                    yes, no = yes & below & above, no | True
                case _:
                    no = no | (below & above)
        return yes, no

    return _logic(node, compare)


@dataclass(frozen=True)
class Constraint:
    """A condition that allowed points fulfil.

    Attributes:
        expression: a condition on the parameters in Python's syntax, ``"m_slepton - m_chi > 20"``. It is read
            as a syntax tree and only ever evaluated by this module: comparisons of arithmetic (+ - * / **)
            on parameter names, numbers and pi, the functions abs, min, max, sqrt, exp, log, log10, sin, cos,
            tan, tanh, joined by and/or/not. All numbers are float64. Where a comparison meets NaN (the log of
            a negative number), neither it nor its negation counts as fulfilled. Or a function of a point,
            name -> value, that returns a bool; it is slower and has no JSON form.

    Raises:
        InvalidSpace: not an expression, or one that does more than the above.

    Example:
        >>> sorted(Constraint("sqrt(x) < y").names)
        ['x', 'y']
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

    def possible(self, boxes: Mapping[str, Bounds]) -> np.ndarray:
        """Whether boxes may contain a point that fulfils the condition; False is a proof, True is not.

        Args:
            boxes: parameter name -> the lower and the upper ends of its interval, each shape (n,).

        Returns:
            Booleans, shape (n,); all True for a function.
        """
        n = len(next(iter(boxes.values()))[0])
        if not isinstance(self.expression, str):
            return np.ones(n, dtype=bool)
        with np.errstate(all="ignore"):
            yes, _ = _possible(_parse(self.expression)[0], boxes)
        return np.broadcast_to(yes, (n,))

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
                    f"constraint {self.text}: the function must not fail, got "
                    f"{type(error).__name__}: {error} at {point}. "
                    "Let it return False where a point is not allowed"
                ) from error
            if not isinstance(answer, bool | np.bool_):
                raise InvalidSpace(
                    f"constraint {self.text}: the function must return a bool, got {answer!r} at {point}. "
                    "Return True where a point is allowed"
                )
            result[i] = answer
        return result
