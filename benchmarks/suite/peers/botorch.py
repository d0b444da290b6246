"""BoTorch: its default Gaussian process (SingleTaskGP) and the straddle criterion, written as its users would.

BoTorch has no criterion for level sets of its own; straddle, 1.96 s(x) - |m(x) - T| (Bryan et al. 2005), is the one
that the literature puts on top of it. Initial design: 2 (d + 1) Sobol points. Restarts and raw samples as in its
tutorials.

Batches are greedy (`optimize_acqf(sequential=True)`) with s(x) given the pending points. The Monte Carlo form in the
manner of `qUpperConfidenceBound`, E max_i (sqrt(1.96^2 pi/2) |Y_i - m_i| - |m_i - T|), was tried as well: both need 26
evaluations for Branin = 80 in batches of 5, and 22 one at a time (medians of three seeds).
"""

from _serve import serve  # isort: skip  (first: it takes this folder off the search path)

import warnings

import botorch
import numpy as np
import torch
from botorch.acquisition import AcquisitionFunction
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.utils.sampling import draw_sobol_samples
from botorch.utils.transforms import t_batch_mode_transform
from gpytorch.mlls import ExactMarginalLogLikelihood


class Straddle(AcquisitionFunction):
    """1.96 s(x) - |m(x) - T|, with s given that the pending points will be observed; m does not change by them."""

    def __init__(self, model: SingleTaskGP, threshold: float):
        super().__init__(model)
        self.threshold = threshold
        self.X_pending = None

    def set_X_pending(self, X_pending: torch.Tensor | None = None) -> None:
        self.X_pending = X_pending
        if X_pending is not None:
            with torch.no_grad():
                covariance = self.model.posterior(X_pending, observation_noise=True).distribution.covariance_matrix
                self.chol = torch.linalg.cholesky(covariance)

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if self.X_pending is None:
            posterior = self.model.posterior(X)
            mean, variance = posterior.mean[..., 0, 0], posterior.variance[..., 0, 0]
        else:
            pending = self.X_pending.expand(*X.shape[:-2], -1, -1)
            posterior = self.model.posterior(torch.cat([X, pending], -2))
            covariance = posterior.distribution.covariance_matrix
            learnt = torch.linalg.solve_triangular(self.chol, covariance[..., 1:, :1], upper=False)
            mean, variance = posterior.mean[..., 0, 0], covariance[..., 0, 0] - learnt.square().sum((-1, -2))
        # A floor relative to the prior: the square root's slope has no bound at an observed point.
        floor = 1e-12 * self.model.outcome_transform.stdvs.square().item()
        return 1.96 * variance.clamp_min(floor).sqrt() - (mean - self.threshold).abs()


class BoTorch:
    """SingleTaskGP with normalised inputs and standardised outcomes, refitted at every tell."""

    def __init__(self, bounds: np.ndarray, threshold: float, batch: int, seed: int):
        torch.manual_seed(seed)
        self.version = f"botorch {botorch.__version__}"
        self.bounds = torch.tensor(bounds.T, dtype=torch.float64)
        self.threshold, self.seed = threshold, seed
        self.x = torch.empty(0, len(bounds), dtype=torch.float64)
        self.y = torch.empty(0, 1, dtype=torch.float64)
        self.model: SingleTaskGP | None = None

    def ask(self, n: int) -> np.ndarray:
        d = self.bounds.shape[1]
        if self.model is None:
            return draw_sobol_samples(self.bounds, 2 * (d + 1), 1, seed=self.seed)[:, 0].numpy()
        straddle = Straddle(self.model, self.threshold)
        with warnings.catch_warnings():
            # The kink of |m - T| ends line searches; it then tries again by itself.
            warnings.filterwarnings("ignore", "Optimization failed", RuntimeWarning)
            x, _ = optimize_acqf(straddle, self.bounds, q=n, num_restarts=10, raw_samples=512, sequential=True)
        return x.numpy()

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x = torch.cat([self.x, torch.from_numpy(x)])
        self.y = torch.cat([self.y, torch.from_numpy(y)[:, None]])
        model = SingleTaskGP(
            self.x,
            self.y,
            input_transform=Normalize(len(self.bounds.T), bounds=self.bounds),
            outcome_transform=Standardize(1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        self.model = model

    def classify(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return (self.model.posterior(torch.from_numpy(x)).mean[:, 0] >= self.threshold).numpy()


if __name__ == "__main__":
    serve(BoTorch)
