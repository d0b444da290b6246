"""adaptive (python-adaptive): piecewise linear interpolation on a triangulation that is refined where the threshold is.

LearnerND, and Learner1D for one parameter. The loss of a simplex is its volume, times 0.1 where its corners are all on
the same side of the threshold: the rule, and the factor, of the package's `learner2D.thresholded_loss_function`, in any
number of dimensions. Evaluations until the error stays <= 1 % on Branin = 80 and on |x|^2 = 1 (batch 1), for what its
documentation and its maintainers offer:

    Learner2D with thresholded_loss_function(T, T)          53, 49
    LearnerND, that rule on default_loss                    44, 50
    LearnerND, that rule on uniform_loss (used here)        42, 48
    LearnerND, isoline loss of pull request #219            58, 77

It learns f - T in the unit cube: its own interpolation does not scale the parameters. It evaluates the 2^d corners
first, and is deterministic: without noise every seed gives the same run.
"""

from _serve import serve  # isort: skip  (first: it takes this folder off the search path)

import adaptive
import numpy as np
from adaptive.learner import learner1D, learnerND
from adaptive.learner.triangulation_backend import TRIANGULATION_BACKEND

#: Beyond this many parameters the corners alone, and the triangulation, are out of reach.
MOST_PARAMETERS = 7


def priority(values) -> float:
    """What the loss is multiplied by, given f - T at the corners."""
    return 1.0 if min(values) <= 0 <= max(values) else 0.1


class Adaptive:
    """LearnerND or Learner1D on the unit cube."""

    def __init__(self, bounds: np.ndarray, threshold: float, batch: int, seed: int):
        d = len(bounds)
        if d > MOST_PARAMETERS:
            raise ValueError(f"adaptive: starts with the 2^d corners, at most {MOST_PARAMETERS} parameters, got {d}")
        self.version = f"adaptive {adaptive.__version__} ({TRIANGULATION_BACKEND} triangulation)"
        self.lower, self.span, self.threshold = bounds[:, 0], np.diff(bounds).ravel(), threshold
        if d == 1:
            self.learner = adaptive.Learner1D(
                None, (0.0, 1.0), loss_per_interval=lambda xs, ys: learner1D.uniform_loss(xs, ys) * priority(ys)
            )
        else:
            self.learner = adaptive.LearnerND(
                None,
                [(0.0, 1.0)] * d,
                loss_per_simplex=lambda xs, ys, scale: learnerND.uniform_loss(xs, ys, scale) * priority(ys),
            )
        self.corners = 2**d

    def ask(self, n: int) -> np.ndarray:
        n = n if self.learner.data else self.corners
        self.asked, _ = self.learner.ask(n)  # told as asked: a point in physical units may not come back exactly
        return self.lower + np.array(self.asked, dtype=float).reshape(n, -1) * self.span

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        for u, v in zip(self.asked, y):
            self.learner.tell(u, float(v) - self.threshold)

    def classify(self, x: np.ndarray) -> np.ndarray:
        u = (x - self.lower) / self.span
        if len(self.span) == 1:
            told = self.learner.to_numpy()
            return np.interp(u[:, 0], told[:, 0], told[:, 1]) >= 0
        return np.ravel(self.learner._ip()(u)) >= 0


if __name__ == "__main__":
    serve(Adaptive)
