"""Are bands, conservative sets and volumes as sure as they say? On random functions, drawn from Gaussian processes.

A draw is a function on the unit square: Matern 5/2 (even seeds) or squared exponential (odd), length scales uniform in
[.15, .4], different along the two parameters for every other pair of seeds; 15, 20, 25 or 30 evaluations, so that its
level set is not yet known exactly; threshold at a quantile uniform in [.3, .7]. Functions are sums of 4096 cosines with
random frequencies and normal amplitudes (Rahimi and Recht, NIPS 2007), which are normal given the frequencies. Each is
learnt twice: by a campaign with the default strategy, and from a space-filling design. Reported are

* the part of the true contour, by length, in the bands of 95 % and 68 %, and the same with the hyperparameters
  known, which is as good as any belief can be;
* how often the conservative sets (joint probability .95) lie on their side of the true contour as a whole, on a grid of
  101 x 101 points;
* the pull of the volume: (true - mean)/sd, its mean and standard deviation over draws.

Draws count alike; errors are standard errors over draws.

Run: OMP_NUM_THREADS=1 python -m benchmarks.calibration [--first 0] [--draws 20] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import contourpy
import numpy as np

from excursion.campaign import Campaign
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.result import Result
from excursion.space import ParameterSpace

RESULTS = Path(__file__).parent / "results" / "calibration.json"
KINDS = ("campaign", "design")
LEVELS = (0.95, 0.68)
FEATURES, GRID, EVALUATIONS = 4096, 101, (15, 20, 25, 30)
SPACE = ParameterSpace.of({"x": (0.0, 1.0), "y": (0.0, 1.0)})


@dataclass(frozen=True)
class Draw:
    """A random function; see the module."""

    seed: int
    kernel: str
    lengths: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray
    quantile: float

    @classmethod
    def of(cls, seed: int) -> Draw:
        rng = np.random.default_rng(seed)
        kernel = "rbf" if seed % 2 else "matern52"
        lengths = rng.uniform(0.15, 0.4, 2)
        if seed % 4 < 2:
            lengths[1] = lengths[0]
        # Spectral densities: normal, and Student's t with 2 nu degrees of freedom.
        frequencies = rng.standard_normal((FEATURES, 2)) / lengths
        if kernel == "matern52":
            frequencies /= np.sqrt(rng.chisquare(5, FEATURES) / 5)[:, None]
        phases = rng.uniform(0, 2 * np.pi, FEATURES)
        amplitudes = rng.standard_normal(FEATURES) * math.sqrt(2 / FEATURES)
        return cls(seed, kernel, lengths, frequencies, phases, amplitudes, rng.uniform(0.3, 0.7))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Values at points (n, 2)."""
        parts = np.array_split(x, max(1, len(x) // 2000))
        return np.concatenate([np.cos(p @ self.frequencies.T + self.phases) @ self.amplitudes for p in parts])

    @property
    def evaluations(self) -> int:
        return EVALUATIONS[self.seed // 2 % 4]

    @property
    def grid(self) -> np.ndarray:
        ticks = np.linspace(0, 1, GRID)
        return np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)

    @cached_property
    def values(self) -> np.ndarray:
        return self(self.grid)

    @property
    def threshold(self) -> float:
        return float(np.quantile(self.values, self.quantile))

    def contour(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (m, 2) on the true contour, in the middle of short pieces, and the lengths of these."""
        ticks = np.linspace(0, 1, GRID)
        lines = contourpy.contour_generator(ticks, ticks, self.values.reshape(GRID, GRID).T).lines(self.threshold)
        points = np.concatenate([(line[1:] + line[:-1]) / 2 for line in lines])
        lengths = np.concatenate([np.linalg.norm(np.diff(line, axis=0), axis=1) for line in lines])
        for _ in range(2):  # Newton steps along the gradient: the band may be thinner than the grid
            step, gradient = 1e-5, np.empty_like(points)
            for axis, e in enumerate(step * np.eye(2)):
                gradient[:, axis] = (self(points + e) - self(points - e)) / (2 * step)
            off = (self(points) - self.threshold) / np.maximum((gradient**2).sum(1), 1e-6)
            points = points - np.clip(off[:, None] * gradient, -0.3 / GRID, 0.3 / GRID)
        inside = ((points >= 0) & (points <= 1)).all(1) & (np.abs(self(points) - self.threshold) < 1e-6)
        return points[inside], lengths[inside]

    def known(self, seen: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) at x of the process with the true hyperparameters, given y at seen."""
        gram, cross = self._kernel(seen, seen) + 1e-10 * np.eye(len(seen)), self._kernel(seen, x)
        weights = np.linalg.solve(gram, cross)
        return weights.T @ y, np.sqrt(np.maximum(1 - (weights * cross).sum(0), 1e-12))

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        r = np.sqrt((((a[:, None] - b) / self.lengths) ** 2).sum(-1))
        s = math.sqrt(5) * r
        return np.exp(-r * r / 2) if self.kernel == "rbf" else (1 + s + s * s / 3) * np.exp(-s)


def learnt(draw: Draw, kind: str) -> Result:
    """What is known of a draw after its evaluations, asked one at a time or all at once."""
    n = draw.evaluations
    strategy = Strategy(seed=draw.seed, design_size=n if kind == "design" else None)
    campaign = Campaign.create("memory://", kind, Problem(SPACE, Task("f", draw.threshold)), strategy)
    while len(campaign.trials) < n:
        for trial in campaign.ask(n if kind == "design" else 1):
            campaign.tell(trial.number, float(draw(np.array([[trial.x["x"], trial.x["y"]]]))[0]))
    return Result.of(campaign)


def one(seed: int, kind: str, sets: bool = True) -> dict[str, Any]:
    """All that is reported of one draw."""
    draw, began = Draw.of(seed), time.perf_counter()
    result = learnt(draw, kind)
    points, lengths = draw.contour()
    share = lengths / lengths.sum()
    seen = np.array([[t["x"], t["y"]] for t in result.trials])
    mean, sd = draw.known(seen, np.array([t["f"] for t in result.trials]), points)
    row: dict[str, Any] = {"seed": seed, "kind": kind, "kernel": draw.kernel, "evaluations": draw.evaluations}
    row |= {"lengths": draw.lengths.tolist(), "contour": float(lengths.sum())}
    z = np.abs(mean - draw.threshold) / sd
    for level, width in zip(LEVELS, (1.959964, 0.994458)):
        row[f"{level}"] = float(share @ result.band(level=level).contains(points))
        row[f"{level} known"] = float(share @ (z < width))
    if sets:
        found, p, above = result.sets(), result.excursion_probability(draw.grid), draw.values >= draw.threshold
        row["above"] = bool(above[p >= found.above.probability].all())
        row["below"] = bool((~above[p <= 1 - found.below.probability]).all())
        ticks = (np.arange(201) + 0.5) / 201
        true = float((draw(np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)) >= draw.threshold).mean())
        row["pull"] = (true - found.volume) / found.volume_sd
        row["called"] = found.above.volume + found.below.volume
    return row | {"seconds": time.perf_counter() - began}


def error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line per kind and kernel."""
    lines = [
        "| points | functions | draws | in the 95 % band | hyperparameters known | in the 68 % band | known "
        "| above holds | below holds | pull of the volume |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for kernel in ("all", "matern52", "rbf"):
            some = [r for r in rows if r["kind"] == kind and kernel in ("all", r["kernel"])]
            cells = [kind, kernel, str(len(some))]
            for level in LEVELS:
                for key in (f"{level}", f"{level} known"):
                    inside = np.array([r[key] for r in some])
                    cells.append(f"{100 * inside.mean():.1f} ± {100 * error(inside):.1f} %")
            cells += [f"{sum(r[side] for r in some)}/{len(some)}" for side in ("above", "below")]
            pull = np.array([r["pull"] for r in some])
            lines.append("| " + " | ".join([*cells, f"{pull.mean():+.2f} ± {pull.std(ddof=1):.2f}"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for seed in range(args.first, args.first + args.draws):
        for kind in KINDS:
            rows.append(row := one(seed, kind))
            print(
                f"{seed:4} {kind:8} {row['kernel']:8} n={row['evaluations']} 95 %: {row['0.95']:.3f} "
                f"68 %: {row['0.68']:.3f} above {row['above']} below {row['below']} pull {row['pull']:+.2f} "
                f"called {row['called']:.2f} {row['seconds']:.1f} s",
                flush=True,
            )
    print("\n".join(table(rows)))
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
