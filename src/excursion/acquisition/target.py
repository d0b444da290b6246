"""What is sought: level sets, or an optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.special import log_ndtr

from .. import levelset
from ..surrogate import Posterior


@dataclass(frozen=True)
class Target:
    """What is sought, as the surrogate sees it: level sets, or an optimum.

    Attributes:
        levels: per task the transformed thresholds, (k,); empty ones where an optimum is sought.
        weights: of the tasks, (t,).
        best: per task the incumbent of the search for an optimum, see `incumbent`, (t,); None for level sets.
        sign: +1 seeks a maximum, -1 a minimum.
    """

    levels: tuple[Tensor, ...]
    weights: Tensor
    best: Tensor | None = None
    sign: float = 1.0

    def log_interest(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Logarithm of `interest`, finite where that underflows."""
        terms = [torch.full_like(mean[0], -math.inf)]
        for i, log_weight in enumerate(self.weights.log()):
            if self.best is not None:
                u = self.sign * levelset.standardised(mean[i], variance[i], self.best[i])
                terms.append(log_weight + log_ndtr(u))
                continue
            for level in self.levels[i]:
                u = levelset.standardised(mean[i], variance[i], level)
                terms.append(log_weight + log_ndtr(-u.abs()))
        return torch.stack(terms).logsumexp(0)

    def interest(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Where the search should look, shape (n,), for mean and variance (t, n).

        Weighted sum over tasks and thresholds of min(p, 1-p), the probability of misclassification; for an optimum, of
        the probability of beating the incumbent.
        """
        return self.log_interest(mean, variance).exp()

    def after(self, mean: Tensor) -> Target:
        """The target when a point of this mean (t,) is added to those observed: the incumbent may be another."""
        if self.best is None:
            return self
        return replace(self, best=self.sign * torch.maximum(self.sign * self.best, self.sign * mean))


@torch.no_grad()
def incumbent(posterior: Posterior, observed: Tensor, sign: float = 1.0) -> Tensor:
    """Per task the best posterior mean at observed points (n, d), shape (t,): no lucky noise, unlike the best value.

    References:
        Vazquez et al., J. Phys. Conf. Ser. 135 (2008) 012100.
    """
    return sign * (sign * posterior.marginal(observed)[0]).amax(1)
