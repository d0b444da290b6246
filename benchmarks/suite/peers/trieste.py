"""Trieste: expected feasibility (Bichon et al. 2008) on its Gaussian process, as in its notebook on feasible sets.

`build_gpr` in the unit cube, which it asks for; `ExpectedFeasibility(delta=1)`; 2 (d + 1) Halton points. Choices:

- The noise is learnt (`trainable_likelihood`): by default it is held at 1 % of the variance of the first values. Branin
  takes 24 evaluations either way; after 45, 0.0 % of it is wrong instead of 0.18 % (one seed).
- Batches by `Fantasizer` (kriging believer). `IntegratedVarianceReduction` with a threshold, the notebook's other
  criterion, takes as many evaluations of Branin = 80 in batches of 5 (28.5, median of two seeds), at 8 s instead of 2 s
  a batch.
- The fit runs eagerly, half the time of the default, which compiles it anew at every tell.
"""

from _serve import serve  # isort: skip  (first: it takes this folder off the search path)

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)  # too late once trieste is imported
tf.config.threading.set_inter_op_parallelism_threads(1)

from importlib.metadata import version  # noqa: E402

import gpflow  # noqa: E402
import numpy as np  # noqa: E402
from trieste.acquisition.function import ExpectedFeasibility, Fantasizer  # noqa: E402
from trieste.acquisition.rule import EfficientGlobalOptimization  # noqa: E402
from trieste.ask_tell_optimization import AskTellOptimizer  # noqa: E402
from trieste.data import Dataset  # noqa: E402
from trieste.models.gpflow import GaussianProcessRegression, build_gpr  # noqa: E402
from trieste.models.optimizer import Optimizer  # noqa: E402
from trieste.space import Box  # noqa: E402


class Trieste:
    """AskTellOptimizer in the unit cube."""

    def __init__(self, bounds: np.ndarray, threshold: float, batch: int, seed: int):
        np.random.seed(seed)  # noqa: NPY002  (trieste draws from the global generators)
        tf.random.set_seed(seed)
        self.version = f"trieste {version('trieste')}"
        self.lower, self.span, self.threshold, self.seed = bounds[:, 0], np.diff(bounds).ravel(), threshold, seed
        self.cube = Box([0.0] * len(bounds), [1.0] * len(bounds))
        criterion = ExpectedFeasibility(threshold, delta=1)
        builder = Fantasizer(criterion) if batch > 1 else criterion
        self.rule = EfficientGlobalOptimization(builder=builder, num_query_points=batch)
        self.optimizer: AskTellOptimizer | None = None

    def ask(self, n: int) -> np.ndarray:
        if self.optimizer is None:
            u = self.cube.sample_halton(2 * (len(self.span) + 1), seed=self.seed)
        else:
            u = self.optimizer.ask()[:n]  # the last batch of a run may be smaller
        return self.lower + u.numpy() * self.span

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        data = Dataset(tf.constant((x - self.lower) / self.span), tf.constant(y[:, None]))
        if self.optimizer is None:
            gpr = build_gpr(data, self.cube, trainable_likelihood=True)
            model = GaussianProcessRegression(gpr, Optimizer(gpflow.optimizers.Scipy(), compile=False))
            self.optimizer = AskTellOptimizer(self.cube, data, model, self.rule)
        else:
            self.optimizer.tell(data)

    def classify(self, x: np.ndarray) -> np.ndarray:
        mean, _ = self.optimizer.model.predict(tf.constant((x - self.lower) / self.span))
        return mean.numpy()[:, 0] >= self.threshold


if __name__ == "__main__":
    serve(Trieste)
