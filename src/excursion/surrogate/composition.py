"""Kernels as trees of sums and products of simple ones: values, derivatives, formulas and words.

The simple kernels, each on one parameter, with r = u - u':

* SE, squared-exponential: s exp(-r^2 / (2 l^2)), a smooth trend;
* RQ, rational-quadratic: s (1 + r^2 / (2 a l^2))^-a, a trend on many scales;
* LIN, linear: s (u - c)(u' - c), a straight line through c;
* PER, periodic: s exp(-2 sin^2(pi r / p) / l^2), a function of period p.

References:
    Duvenaud et al., Structure Discovery in Nonparametric Regression through Compositional Kernel Search, ICML 2013
    (arXiv:1302.4922), section 2 and appendix A: the kernels and what they express.
    Lloyd et al., Automatic Construction and Natural-Language Description of Nonparametric Regression Models, AAAI 2014
    (arXiv:1402.4304): sums of products in words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

#: The simple kernels, in the order in which they are written.
FAMILIES = ("SE", "RQ", "LIN", "PER")
#: An empty theta: this part is new, its parameters are still to be drawn.
_NEW: tuple[float, ...] = ()


@dataclass(frozen=True)
class Atom:
    """A simple kernel on one parameter.

    Attributes:
        family: one of `FAMILIES`.
        axis: which parameter, 0 to d - 1.
        theta: log s (a variance), then SE: log l; RQ: log l, log a; LIN: c; PER: log l, log p. Lengths l, p and
            centres c are in units of the cube, but the l of PER has none.
    """

    family: str
    axis: int
    theta: tuple[float, ...] = _NEW


@dataclass(frozen=True)
class Sum:
    """The sum of kernels: a sum of independent functions."""

    parts: tuple[Kernel, ...]


@dataclass(frozen=True)
class Product:
    """The product of kernels."""

    parts: tuple[Kernel, ...]


Kernel: TypeAlias = Atom | Sum | Product


def atoms(kernel: Kernel) -> list[Atom]:
    """The simple kernels of a tree, from left to right."""
    return [kernel] if isinstance(kernel, Atom) else [a for part in kernel.parts for a in atoms(part)]


def change_atoms(change: Callable[[Atom], Atom], kernel: Kernel) -> Kernel:
    """The tree with each simple kernel changed, from left to right."""
    if isinstance(kernel, Atom):
        return change(kernel)
    return type(kernel)(tuple(change_atoms(change, part) for part in kernel.parts))


def expression(kernel: Kernel, names: Sequence[str] = ()) -> str:
    """The kernel as a formula, such as "SE × (LIN + PER)"; with several names as "SE(x) × LIN(y)"."""
    if isinstance(kernel, Atom):
        return kernel.family if len(names) < 2 else f"{kernel.family}({names[kernel.axis]})"
    if isinstance(kernel, Sum):
        return " + ".join(expression(part, names) for part in kernel.parts)
    texts = (expression(part, names) for part in kernel.parts)
    return " × ".join(f"({t})" if isinstance(p, Sum) else t for t, p in zip(texts, kernel.parts))


def order(kernel: Kernel) -> tuple[Any, ...]:
    """What the parts of a sum or a product are sorted by; equal for kernels of equal structure."""
    if isinstance(kernel, Atom):
        return (0, kernel.axis, FAMILIES.index(kernel.family))
    return (1 if isinstance(kernel, Product) else 2, *(order(part) for part in kernel.parts))


def canonical(kernel: Kernel) -> Kernel:
    """The same kernel without sums in sums and products in products, sorted, equal SE factors as one.

    SE × SE on one parameter is SE with 1/l^2 = 1/l1^2 + 1/l2^2.
    """
    if isinstance(kernel, Atom):
        return kernel
    kind = type(kernel)
    flat: list[Kernel] = []
    for part in map(canonical, kernel.parts):
        flat += part.parts if isinstance(part, kind) else [part]
    flat.sort(key=order)
    if kind is Product:
        merged: list[Kernel] = []
        for part in flat:
            last = merged[-1] if merged else None
            if isinstance(last, Atom) and isinstance(part, Atom) and last.family == "SE" and order(last) == order(part):
                merged[-1] = _as_one(last, part)
            else:
                merged.append(part)
        flat = merged
    return flat[0] if len(flat) == 1 else kind(tuple(flat))


def _as_one(a: Atom, b: Atom) -> Atom:
    """The product of two SE on the same parameter; new if one of them is."""
    if not a.theta or not b.theta:
        return replace(a, theta=a.theta or b.theta)
    log_length = -0.5 * np.logaddexp(-2 * a.theta[1], -2 * b.theta[1])
    return replace(a, theta=(a.theta[0] + b.theta[0], float(log_length)))


def expand(kernel: Kernel) -> list[tuple[Atom, ...]]:
    """The kernel multiplied out: a sum of products of simple kernels."""
    if isinstance(kernel, Atom):
        return [(kernel,)]
    terms = [expand(part) for part in kernel.parts]
    if isinstance(kernel, Sum):
        return [term for part in terms for term in part]
    return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*terms)]


# -- scales: a product needs one of them only


def free_parameters(kernel: Kernel, pinned: bool = False) -> list[bool]:
    """Per parameter whether it is free: of the m scales of a product, m - 1 are not."""
    if isinstance(kernel, Atom):
        return [not pinned] + [True] * (len(kernel.theta) - 1)
    first, *others = kernel.parts
    alone = isinstance(kernel, Product)
    return free_parameters(first, pinned) + [f for part in others for f in free_parameters(part, alone)]


def _lead(kernel: Kernel) -> float:
    """Log scale of the leftmost simple kernel."""
    return atoms(kernel)[0].theta[0]


def _rescale(kernel: Kernel, log_factor: float) -> Kernel:
    """The kernel times a number, kept in its leftmost factors."""
    if isinstance(kernel, Atom):
        return replace(kernel, theta=(kernel.theta[0] + log_factor, *kernel.theta[1:]))
    first, *others = kernel.parts
    if isinstance(kernel, Sum):
        others = [_rescale(part, log_factor) for part in others]
    return type(kernel)((_rescale(first, log_factor), *others))


def normalise(kernel: Kernel) -> Kernel:
    """The same function of u, with all scales that `free_parameters` does not call free at log s = 0."""
    if isinstance(kernel, Atom):
        return kernel
    first, *others = (normalise(part) for part in kernel.parts)
    if isinstance(kernel, Product):
        leads = [_lead(part) for part in others]
        others = [_rescale(part, -lead) for part, lead in zip(others, leads)]
        first = _rescale(first, sum(leads))
    return type(kernel)((first, *others))


def parameters(kernel: Kernel) -> np.ndarray:
    """All theta of the tree, from left to right."""
    return np.array([t for atom in atoms(kernel) for t in atom.theta])


def with_parameters(kernel: Kernel, theta: np.ndarray) -> Kernel:
    """The same tree with other theta, from left to right."""
    values = iter(theta.tolist())
    return change_atoms(lambda a: replace(a, theta=tuple(next(values) for _ in a.theta)), kernel)


# -- values and slopes

Columns: TypeAlias = Sequence[np.ndarray]


def evaluate(kernel: Kernel, a: Columns, b: Columns) -> np.ndarray:
    """k(a, b), element by element; a and b hold one array per parameter, of shapes that broadcast."""
    if isinstance(kernel, Atom):
        return _atom(kernel, a, b)[0]
    values = [evaluate(part, a, b) for part in kernel.parts]
    return sum(values[1:], values[0]) if isinstance(kernel, Sum) else math.prod(values[1:], start=values[0])


def slopes(kernel: Kernel, a: Columns, b: Columns) -> tuple[np.ndarray, list[np.ndarray]]:
    """k(a, b) and its derivatives by all parameters, in the order of the simple kernels and their theta."""
    if isinstance(kernel, Atom):
        return _atom(kernel, a, b)
    values, partials = zip(*(slopes(part, a, b) for part in kernel.parts))
    if isinstance(kernel, Sum):
        return sum(values[1:], values[0]), [p for part in partials for p in part]
    rest = [math.prod(values[:i] + values[i + 1 :]) for i in range(len(values))]
    return rest[0] * values[0], [p * r for part, r in zip(partials, rest) for p in part]


def _atom(atom: Atom, a: Columns, b: Columns) -> tuple[np.ndarray, list[np.ndarray]]:
    x, y = a[atom.axis], b[atom.axis]
    scale = math.exp(atom.theta[0])
    if atom.family == "LIN":
        left, right = x - atom.theta[1], y - atom.theta[1]
        k = scale * left * right
        return k, [k, -scale * (left + right)]
    length = math.exp(atom.theta[1])
    if atom.family == "PER":
        phase = math.pi * (x - y) * math.exp(-atom.theta[2])
        s = np.sin(phase)
        q = (2 / length**2) * s * s
        k = scale * np.exp(-q)
        return k, [k, 2 * q * k, (2 / length**2) * phase * np.sin(2 * phase) * k]
    r2 = ((x - y) / length) ** 2
    if atom.family == "SE":
        k = scale * np.exp(-0.5 * r2)
        return k, [k, r2 * k]
    alpha = math.exp(atom.theta[2])
    q = r2 / (2 * alpha)
    log = np.log1p(q)
    k = scale * np.exp(-alpha * log)
    ratio = q / (1 + q)
    return k, [k, 2 * alpha * ratio * k, alpha * (ratio - log) * k]


# -- English

_WORDS = {"SE": "smooth trend", "RQ": "trend on many scales", "PER": "periodic function"}
_POLYNOMIAL = {1: "linear function", 2: "quadratic function", 3: "cubic function"}


def term_in_words(term: Sequence[Atom], names: Sequence[str]) -> str:
    """A product of simple kernels in English."""
    groups = []
    for axis in sorted({atom.axis for atom in term}):
        count = {family: sum(a.axis == axis and a.family == family for a in term) for family in FAMILIES}
        words = []
        for family in FAMILIES:
            n = count[family]
            if family == "LIN" and n:
                words.append(_POLYNOMIAL.get(n, f"polynomial of degree {n}"))
            elif n:  # a product of several SE is one SE
                words += [_WORDS[family]] * (1 if family == "SE" else n)
        groups.append(" times ".join(f"a {word}" for word in words) + f" of {names[axis]}")
    return " times ".join(groups)


def in_words(kernel: Kernel, names: Sequence[str]) -> str:
    """The kernel in English, multiplied out: "a smooth trend times a periodic function of x plus ..."."""
    return " plus ".join(term_in_words(term, names) for term in expand(kernel))


def local_length(atom: Atom) -> float:
    """The l for which the kernel is s (1 - r^2 / (2 l^2)) at small distances."""
    if atom.family == "LIN":
        return math.inf
    if atom.family == "PER":
        return math.exp(atom.theta[1] + atom.theta[2]) / (2 * math.pi)
    return math.exp(atom.theta[1])
