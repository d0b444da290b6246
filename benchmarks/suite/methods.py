"""Our default, each of our criteria by itself, and baselines, behind one protocol of ask, tell and classify.

A method never sees the function, its noise or its level-set fraction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol

import numpy as np
from scipy.stats import qmc
from sklearn.ensemble import RandomForestClassifier

from excursion.acquisition import CRITERIA
from excursion.campaign import Campaign
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.result import Result

from .problems import TestProblem


class Method(Protocol):
    """What finds a level set, point by point."""

    version: str

    def start(self, problem: TestProblem, batch: int, seed: int) -> None:
        """Begin anew: bounds, threshold and, for methods that know such, names and constraint of the problem."""

    def ask(self, n: int) -> np.ndarray:
        """The next points, (k, d) in physical units with k >= 1; n are wanted."""

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        """The values (k,) of the points (k, d) that were asked last."""

    def classify(self, x: np.ndarray) -> np.ndarray | None:
        """Mask (n,) of points (n, d): f >= threshold by the method's own model; None as long as it has none."""

    def stop(self) -> None:
        """Release what the method holds."""


@dataclass
class Ours:
    """A campaign in memory.

    Attributes:
        strategy: settings over the default, as in `Strategy.to_json`.
    """

    strategy: Mapping[str, Any] = field(default_factory=dict)
    version: str = f"excursion {metadata.version('excursion')}"

    def start(self, problem: TestProblem, batch: int, seed: int) -> None:
        strategy = Strategy.from_json({**self.strategy, "seed": seed})
        self.campaign = Campaign.create(
            "memory://", problem.name, Problem(problem.space, Task("f", problem.threshold)), strategy
        )
        self.result: Result | None = None

    def ask(self, n: int) -> np.ndarray:
        self.asked = self.campaign.ask(n)
        return self.campaign.problem.space.tensor([t.x for t in self.asked]).numpy()

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        for trial, value in zip(self.asked, y, strict=True):
            self.campaign.tell(trial.number, float(value))
        # The fit is remembered for the next ask: it is done here so that its time counts, and counts once.
        if len(self.campaign.trials) >= 2:
            self.result = Result.of(self.campaign)

    def classify(self, x: np.ndarray) -> np.ndarray | None:
        return None if self.result is None else self.result.excursion_probability(x) >= 0.5

    def stop(self) -> None:
        pass


@dataclass
class Forest:
    """A random forest that asks where its trees disagree most: the idea of the Contur oracle.

    Refitted after each batch; 10 d Latin-hypercube points first, then the candidates with the most uncertain vote.

    Attributes:
        trees: in the forest.
        candidates: random points among which the next ones are chosen.
    """

    trees: int = 200
    candidates: int = 5000
    version: str = f"scikit-learn {metadata.version('scikit-learn')}"

    def start(self, problem: TestProblem, batch: int, seed: int) -> None:
        self.lower, self.upper = np.array(problem.bounds, dtype=float).T
        self.threshold, self.seed = problem.threshold, seed
        self.rng = np.random.default_rng(seed)
        design = qmc.LatinHypercube(problem.dim, rng=self.rng).random(10 * problem.dim)
        self.design = self.lower + (self.upper - self.lower) * design
        self.x = np.empty((0, problem.dim))
        self.label = np.empty(0, dtype=bool)
        self.forest: RandomForestClassifier | None = None

    def _probability(self, x: np.ndarray) -> np.ndarray:
        assert self.forest is not None
        classes = list(self.forest.classes_)
        votes = self.forest.predict_proba(x)
        return votes[:, classes.index(True)] if True in classes else np.zeros(len(x))

    def ask(self, n: int) -> np.ndarray:
        if len(self.x) < len(self.design) or self.forest is None:
            return self.design[len(self.x) : len(self.x) + n]
        x = self.lower + (self.upper - self.lower) * self.rng.random((self.candidates, len(self.lower)))
        # Votes are multiples of 1/trees: the candidates are in random order, and a stable sort keeps ties so.
        return x[np.argsort(np.abs(self._probability(x) - 0.5), kind="stable")[:n]]

    def tell(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x = np.concatenate([self.x, x])
        self.label = np.concatenate([self.label, y >= self.threshold])
        self.forest = RandomForestClassifier(self.trees, random_state=self.seed).fit(self.x, self.label)

    def classify(self, x: np.ndarray) -> np.ndarray | None:
        return None if self.forest is None else self._probability(x) >= 0.5

    def stop(self) -> None:
        pass


#: Methods that run in this process: name -> settings of `Ours`. "forest", "grid" and peers are made by `run`.
OURS: dict[str, dict[str, Any]] = {
    "excursion": {},
    **{f"excursion[{name}]": {"acquisition": {"type": name}} for name, c in CRITERIA.items() if c.seeks == "level set"},
    "sobol": {"acquisition": {"type": "Sobol"}},
}
