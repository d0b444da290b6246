"""AEPsych: straddle by Monte Carlo (MCLevelSetEstimation) on its Gaussian process for continuous outcomes.

As in its example configurations: 10 scrambled Sobol points, then OptimizeAcqfGenerator with GPRegressionModel refitted
at every tell, everything else by default; the identity as objective, which its look-ahead criteria do not take.

Two things are done for it (medians of two seeds). Its kernel has a fixed amplitude of 1, so outcomes are standardised,
and the target with them: without, 24 % of Branin = 80 is wrong after 50 evaluations; with it, 1 % after 21.5. And a
batch asked for at once, `gen(5)`, maximises the best point's straddle alone and leaves the others anywhere; so batches
are asked for point by point, each told as its predicted mean before the next: Branin takes 25 instead of 32.5, |x|^2
= 1 12.5 instead of 15, at four times the cost.
"""

from _serve import serve  # isort: skip  (first: it takes this folder off the search path)

import logging
import os
import tempfile

HERE = tempfile.TemporaryDirectory()  # it writes a folder of logs wherever it is imported
os.chdir(HERE.name)

import aepsych.version  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from aepsych.acquisition import MCLevelSetEstimation  # noqa: E402
from aepsych.generators import OptimizeAcqfGenerator, SobolGenerator  # noqa: E402
from aepsych.models import GPRegressionModel  # noqa: E402
from aepsych.strategy import Strategy  # noqa: E402
from botorch.acquisition.objective import IdentityMCObjective  # noqa: E402

logging.disable(logging.INFO)

#: Of its example configurations.
INITIAL_POINTS = 10


class AEPsych:
    """Its Strategy on the unit cube and standardised outcomes."""

    def __init__(self, bounds: np.ndarray, threshold: float, batch: int, seed: int):
        torch.manual_seed(seed)
        d = len(bounds)
        self.version = f"aepsych {aepsych.version.__version__}"
        self.lower, self.span, self.threshold, self.seed = bounds[:, 0], np.diff(bounds).ravel(), threshold, seed
        self.cube = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
        self.u, self.y = np.empty((0, d)), np.empty(0)
        self.strategy = Strategy(
            self._generator(0.0),
            *self.cube,
            outcome_types=["continuous"],
            model=GPRegressionModel(d),
            min_asks=1,
        )

    def _generator(self, target: float) -> OptimizeAcqfGenerator:
        arguments = {"target": target, "objective": IdentityMCObjective()}
        return OptimizeAcqfGenerator(*self.cube, acqf=MCLevelSetEstimation, acqf_kwargs=arguments)

    def _fit(self, u: np.ndarray, y: np.ndarray) -> None:
        self.mean, self.scale = y.mean(), y.std() or 1.0
        self.strategy.generator = self._generator((self.threshold - self.mean) / self.scale)
        self.strategy.x = self.strategy.y = None
        self.strategy.add_data(u, (y - self.mean) / self.scale)

    def _predict(self, u: np.ndarray) -> np.ndarray:
        """Means (n,) at points (n, d) of the cube; the first call after new data fits the model."""
        mean, _ = self.strategy.predict(torch.from_numpy(u))
        return self.mean + self.scale * mean.numpy().reshape(len(u))

    def ask(self, n: int) -> np.ndarray:
        if not len(self.u):
            return self.lower + SobolGenerator(*self.cube, seed=self.seed).gen(INITIAL_POINTS).numpy() * self.span
        u, y = self.u, self.y
        while True:
            u = np.concatenate([u, self.strategy.gen(1).detach().numpy()])
            if len(u) == len(self.u) + n:
                break
            y = np.append(y, self._predict(u[-1:]))
            self._fit(u, y)
        return self.lower + u[-n:] * self.span

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self.u = np.concatenate([self.u, (x - self.lower) / self.span])
        self.y = np.append(self.y, y)
        self._fit(self.u, self.y)
        self._predict(self.u[:1])

    def classify(self, x: np.ndarray) -> np.ndarray:
        return self._predict((x - self.lower) / self.span) >= self.threshold


if __name__ == "__main__":
    serve(AEPsych)
