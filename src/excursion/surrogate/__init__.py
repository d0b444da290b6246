"""What we believe about f: recipes (`Surrogate`) that are fitted to observations and give beliefs (`Posterior`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ..data import Observations

__all__ = ["GaussianProcess", "Posterior", "Surrogate"]


class Posterior(ABC):
    """A belief about the transformed tasks on the unit cube. Never changes; `condition` returns a new one.

    Shapes: t tasks lead, points follow; f is the function itself, without observation noise.
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

    @property
    @abstractmethod
    def noise(self) -> Tensor:
        """Variance (t,) that an observation is expected to have around f."""

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


from .exact import GaussianProcess  # noqa: E402  (the abstractions above come first)
