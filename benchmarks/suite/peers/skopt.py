"""scikit-optimize, the way an optimiser is used for contours: minimise |f - T|, then model f with what was evaluated.

`skopt.Optimizer` with all its defaults (10 random points, gp_hedge, constant liar with the minimum for batches). The
excursion set is read from its default Gaussian process (`cook_estimator("GP")`) fitted to f itself.
"""

from _serve import serve  # isort: skip  (first: it takes this folder off the search path)

import warnings

import numpy as np
import skopt
from skopt import Optimizer
from skopt.utils import cook_estimator


class ScikitOptimize:
    """An Optimizer of |f - T|, and its default estimator of f for the classification."""

    def __init__(self, bounds: np.ndarray, threshold: float, batch: int, seed: int):
        self.version = f"scikit-optimize {skopt.__version__}"
        self.threshold = threshold
        dimensions = [(low, high) for low, high in bounds.tolist()]
        self.optimizer = Optimizer(dimensions, random_state=seed)
        self.estimator = cook_estimator("GP", space=dimensions, random_state=seed)
        self.x: list[list[float]] = []
        self.y: list[float] = []
        self.fitted = 0

    def ask(self, n: int) -> np.ndarray:
        n = n if self.x else self.optimizer.n_initial_points_
        return np.array([self.optimizer.ask()] if n == 1 else self.optimizer.ask(n_points=n))

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x += x.tolist()
        self.y += y.tolist()
        self.optimizer.tell(x.tolist(), np.abs(y - self.threshold).tolist())

    def classify(self, x: np.ndarray) -> np.ndarray:
        space = self.optimizer.space
        if self.fitted < len(self.x):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of convergence, as the Optimizer does
                self.estimator.fit(space.transform(self.x), self.y)
            self.fitted = len(self.x)
        return self.estimator.predict(space.transform(x.tolist())) >= self.threshold


if __name__ == "__main__":
    serve(ScikitOptimize)
