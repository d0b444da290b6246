"""What we believe about f: recipes (`Surrogate`) that are fitted to observations and give beliefs (`Posterior`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import ShapeError

__all__ = [
    "RECIPES",
    "GaussianProcess",
    "KernelSearch",
    "MultiTask",
    "Observations",
    "Posterior",
    "Surrogate",
    "Tempered",
    "View",
    "search_kernel",
    "telling",
]


@dataclass(frozen=True)
class Observations:
    """What a surrogate is fitted to: finite values of all tasks at points of the unit cube.

    Attributes:
        u: points, shape (n, d).
        z: transformed values per task, shape (n, t).
        variance: known variances of z, shape (n, t); 0 where none is known.
        side: shape (n, t); 0: z is the value, +1 (-1): the true value lies above (below) z.
        levels: per task the thresholds (k,) that matter, on the scale of z; empty if none is known.
        known: shape (n, t), bool; False where the value of a task is missing, z, variance and side being 0 there. None:
            all are known.
        cheaper: what the next cheaper fidelity told about the same tasks; None if there is none.
        columns: the parameters that these observations depend on; None for all. Only for cheaper fidelities.

    Raises:
        ShapeError: shapes that do not fit, values that are not finite, negative variances.
    """

    u: Tensor
    z: Tensor
    variance: Tensor
    side: Tensor
    levels: tuple[Tensor, ...] = ()
    known: Tensor | None = None
    cheaper: Observations | None = None
    columns: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(a.shape) for a in (self.u, self.z, self.variance, self.side)]
        if self.u.ndim != 2 or self.z.ndim != 2 or len(self.u) != len(self.z) or len(set(shapes[1:])) > 1:
            raise ShapeError(f"observations: need u (n, d) and z, variance, side (n, t), got {shapes}")
        if not all(torch.isfinite(a).all() for a in (self.u, self.z, self.variance)) or (self.variance < 0).any():
            raise ShapeError(
                f"observations: must be finite with variances >= 0, got z={self.z.tolist()}, "
                f"variance={self.variance.tolist()}. Leave out failed trials"
            )
        if self.known is not None and (self.known.shape != self.z.shape or self.known.dtype != torch.bool):
            raise ShapeError(
                f"observations: known must be true or false for each of {tuple(self.z.shape)} values, got "
                f"{tuple(self.known.shape)} of {self.known.dtype}"
            )
        if self.cheaper is not None and self.cheaper.z.shape[1] != self.z.shape[1]:
            raise ShapeError(
                f"observations: a cheaper fidelity has the same tasks, got {self.cheaper.z.shape[1]} "
                f"for {self.z.shape[1]}"
            )

    def task(self, i: int) -> Observations:
        """What is known of task i, as observations of one task; the cheaper fidelities left out."""
        rows = slice(None) if self.known is None else self.known[:, i]
        one = slice(i, i + 1)
        columns = (self.z[rows, one], self.variance[rows, one], self.side[rows, one])
        return Observations(self.u[rows], *columns, self.levels[i : i + 1], columns=self.columns)

    def rows(self, index: Any) -> Observations:
        """Some of the observations."""
        some = None if self.known is None else self.known[index]
        return replace(
            self, u=self.u[index], z=self.z[index], variance=self.variance[index], side=self.side[index], known=some
        )

    @classmethod
    def exact(cls, u: Tensor, z: Tensor, variance: Tensor | None = None) -> Observations:
        """Observations without censoring; z of shape (n,) is one task."""
        z = z if z.ndim == 2 else z[:, None]
        variance = torch.zeros_like(z) if variance is None else variance.reshape(z.shape)
        return cls(u, z, variance, torch.zeros_like(z))

    def __len__(self) -> int:
        return len(self.u)


class View(ABC):
    """A belief at n points, with what covariances need worked out once.

    Attributes:
        mean, variance: of f, (t, n).
        noise: variance that an observation there is expected to have around f, (t, n).
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor

    @abstractmethod
    def covariance(self, other: Self) -> Tensor:
        """Covariance (t, n, m) between f at these points and at those of another view of the same posterior."""


class Posterior(ABC):
    """A belief about the transformed tasks on the unit cube. Never changes; `condition` returns a new one.

    Shapes: t tasks lead, points follow; f is the function itself, without observation noise.

    Where there are cheaper fidelities, points may have one more column, the level: 0 for the dearest one, 1 for the
    next cheaper, and so on. Without it all are points of the dearest.
    """

    @abstractmethod
    def marginal(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (t, n) and variance (t, n) of f at u (n, d)."""

    @abstractmethod
    def joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (t, n) and covariance (t, n, n) of f at u (n, d)."""

    @abstractmethod
    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariance (t, n, m) between f at a (n, d) and f at b (m, d)."""

    @abstractmethod
    def view(self, u: Tensor) -> View:
        """The belief at u (n, d), kept for many covariances."""

    @property
    @abstractmethod
    def noise(self) -> Tensor:
        """Variance (t,) that an observation (of the dearest fidelity) is expected to have around f."""

    @abstractmethod
    def condition(self, u: Tensor, z: Tensor | None = None, variance: Tensor | None = None) -> Posterior:
        """The belief after also seeing z (m, t) at u (m, d), hyperparameters held.

        Without z the present mean is taken as seen, which is exact for the variance and leaves the mean. The
        observation's variance (m, t) is `noise` unless given.
        """

    @property
    @abstractmethod
    def hyperparameters(self) -> tuple[dict[str, Any], ...]:
        """Per task: length scales in units of the cube, amplitude, nugget and mean in units of z."""


class Surrogate(ABC):
    """How to turn observations into a belief. Settings only; holds no data."""

    @abstractmethod
    def fit(self, data: Observations) -> Posterior:
        """Fit the hyperparameters and condition on the data.

        Raises:
            FitError: too few observations, or numerical trouble that the jitter ladder does not cure.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Settings as JSON-compatible data."""


from .exact import GaussianProcess, telling  # noqa: E402  (the abstractions above come first)
from .joined import Tempered  # noqa: E402
from .multitask import MultiTask  # noqa: E402
from .search import KernelSearch, search_kernel  # noqa: E402

#: Recipes that a strategy's JSON may name.
RECIPES: dict[str, type[Surrogate]] = {c.__name__: c for c in (GaussianProcess, KernelSearch, MultiTask)}
