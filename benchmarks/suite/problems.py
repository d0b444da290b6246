"""Problems with known level sets: test functions, shapes that exclusion searches meet, and two published tables.

One default for all methods, nothing tuned for one of them. A problem is a vectorised function on a box, a threshold and
the region where classification errors are counted. `python -m benchmarks.suite.problems` prints the list.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.stats import qmc

from excursion.examples.analytic import fast_limit
from excursion.space import ParameterSpace

Bounds = tuple[tuple[float, float], ...]

#: Size of the set of points on which errors are counted.
TEST_POINTS = 10_000


@dataclass(frozen=True)
class TestProblem:
    """A function with a known excursion set {f >= threshold}.

    Attributes:
        name: of the problem.
        bounds: the box that is searched, one (lower, upper) per parameter.
        threshold: T.
        f: noise-free values (n,) of points (n, d) in physical units, anywhere in the box.
        fraction: the volume fraction of {f >= T} where errors are counted: documentation, checked by the tests.
        budget: evaluations after which a run ends.
        doc: what it is and where it comes from.
        names: of the parameters.
        constraint: an expression in these names that allowed points fulfil; methods without constraints see the box.
        counted: bounds of the region where errors are counted; None means all of the box.
        hull: mask (n,) of points (n, d) at which the truth is known; None means everywhere.
        noise: standard deviation of an observed value relative to the true one; no method is told.
        group: "main", or "high" for many dimensions.
    """

    __test__: ClassVar[bool] = False  # not a test class, whatever pytest makes of the name

    name: str
    bounds: Bounds
    threshold: float
    f: Callable[[np.ndarray], np.ndarray]
    fraction: float
    budget: int
    doc: str
    names: tuple[str, ...] = ()
    constraint: str | None = None
    counted: Bounds | None = None
    hull: Callable[[np.ndarray], np.ndarray] | None = None
    noise: float = 0.0
    group: str = "main"

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(f"x{i + 1}" for i in range(self.dim)))

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return len(self.bounds)

    @property
    def space(self) -> ParameterSpace:
        """The box with the constraint."""
        return ParameterSpace.of(dict(zip(self.names, self.bounds)), self.constraint or ())

    def allowed(self, x: np.ndarray) -> np.ndarray:
        """Mask (n,): points (n, d) that fulfil the constraint and at which the truth is known."""
        inside = self.space.allowed(x).numpy()
        return inside & self.hull(x) if self.hull is not None else inside

    def above(self, x: np.ndarray) -> np.ndarray:
        """Mask (n,): the truth, f >= threshold."""
        return self.f(x) >= self.threshold

    def observe(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What an evaluation at the points (n, d) returns, shape (n,): the function with its noise."""
        y = self.f(x)
        return y * (1 + self.noise * rng.standard_normal(len(y))) if self.noise else y

    def generator(self, seed: int) -> np.random.Generator:
        """Random numbers of the noise of one run."""
        return np.random.default_rng([zlib.crc32(self.name.encode()), seed])

    def points(self, n: int = TEST_POINTS) -> np.ndarray:
        """The points (n, d) on which errors are counted: scrambled Sobol, the allowed ones."""
        lower, upper = np.array(self.counted or self.bounds).T
        sobol = qmc.Sobol(self.dim, scramble=True, rng=np.random.default_rng(987654))
        found: list[np.ndarray] = []
        while sum(map(len, found)) < n:
            x = lower + (upper - lower) * sobol.random(1 << 14)
            found.append(x[self.allowed(x)])
        return np.concatenate(found)[:n]


def box(lower: float, upper: float, d: int) -> Bounds:
    """The same range for each of d parameters."""
    return ((lower, upper),) * d


# --- test functions ---------------------------------------------------------------------------------------------


def fast_1d(x: np.ndarray) -> np.ndarray:
    return x[:, 0] + 2.5 * np.sin(3 * x[:, 0])


def fast_nd(x: np.ndarray) -> np.ndarray:
    return np.asarray(fast_limit(dict(zip("xyz", x.T))))


def paraboloid(x: np.ndarray) -> np.ndarray:
    return (x**2).sum(1)


def ellipsoid(x: np.ndarray) -> np.ndarray:
    d = x.shape[1]
    center = 0.6 * np.cos(1 + 2.0 * np.arange(d))
    weight = 10.0 ** np.linspace(0.5, -1.5, d)
    return ((x - center) ** 2 * weight).sum(1)


def bichon(x: np.ndarray) -> np.ndarray:
    return (x[:, 0] ** 2 + 4) * (x[:, 1] - 1) / 20 - np.sin(2.5 * x[:, 0]) - 2


def branin(x: np.ndarray) -> np.ndarray:
    a, b = x[:, 0], x[:, 1]
    return (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10


def branin_embedded(x: np.ndarray) -> np.ndarray:
    return branin(x[:, [2, 7]] * 15 + np.array([-5.0, 0.0]))


def ackley(x: np.ndarray) -> np.ndarray:
    r = np.sqrt((x**2).mean(1))
    return -20 * np.exp(-0.2 * r) - np.exp(np.cos(2 * np.pi * x).mean(1)) + 20 + np.e


_HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])


def hartmann6(x: np.ndarray) -> np.ndarray:
    squares = (_HARTMANN_A * (x[:, None, :] - _HARTMANN_P) ** 2).sum(2)
    return np.exp(-squares) @ _HARTMANN_ALPHA


# --- shapes that exclusion searches meet --------------------------------------------------------------------------


def logistic(t: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-t))


def cliff(x: np.ndarray) -> np.ndarray:
    u, v = x[:, 0], x[:, 1]
    smooth = -2 + 2.6 * u**1.5 + 0.9 * v
    beyond = v - 0.35 - 0.45 * np.sqrt(u) - 0.08 * np.sin(5 * u)  # where the acceptance is lost
    return 10 ** (smooth + 98 * logistic(beyond / 0.03))


def plateau(x: np.ndarray) -> np.ndarray:
    u, v = x[:, 0], x[:, 1]
    t = np.clip(0.5 + (v - 0.85 + 0.75 * u**2 - 0.1 * np.sin(6 * u)) / 0.25, 0, 1)
    return t * t * (3 - 2 * t)


def kinematic_step(x: np.ndarray) -> np.ndarray:
    heavy, light = x[:, 0], x[:, 1]
    limit = 0.12 * np.exp((heavy - 200) / 230) * (1 + (light / 420) ** 2)
    return np.where(heavy - light < 175, 5.0, 1.0) * limit


def two_islands(x: np.ndarray) -> np.ndarray:
    u, v = x[:, 0], x[:, 1]
    large = np.exp(-(((u - 0.3) / 0.26) ** 2) - ((v - 0.65) / 0.2) ** 2)
    small = np.exp(-(((u - 0.82) / 0.12) ** 2) - ((v - 0.2) / 0.115) ** 2)
    return large + small


def exponential_cls(x: np.ndarray) -> np.ndarray:
    u, v = x[:, 0], x[:, 1]
    return np.exp(-9 * np.exp(-1.6 * u) * np.tanh(2.2 * (1.2 - v) + 0.25 * np.sin(4 * u)))


# --- published tables -----------------------------------------------------------------------------------------------


def data_directory() -> Path | None:
    """Where the tables are: $EXCURSION_DATA, or shared/data beside the checkout; None if there is neither."""
    given = os.environ.get("EXCURSION_DATA")
    path = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    return path if path.is_dir() else None


@dataclass(frozen=True)
class Table:
    """A table of values as a function: piecewise linear over a Delaunay triangulation, nearest row outside.

    Attributes:
        x: points, shape (n, 2).
        y: values, shape (n,).
        log: whether ln y is interpolated.
    """

    x: np.ndarray
    y: np.ndarray
    log: bool

    @functools.cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, LinearNDInterpolator, NearestNDInterpolator]:
        lower, span = self.x.min(0), np.ptp(self.x, axis=0)
        u = (self.x - lower) / span
        z = np.log(self.y) if self.log else self.y
        return lower, span, LinearNDInterpolator(u, z), NearestNDInterpolator(u, z)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        lower, span, linear, nearest = self._parts
        z = linear((x - lower) / span)
        outside = np.isnan(z)
        z[outside] = nearest((x[outside] - lower) / span)
        return np.exp(z) if self.log else z

    def hull(self, x: np.ndarray) -> np.ndarray:
        """Mask (n,): inside the convex hull of the rows."""
        lower, span, linear, _ = self._parts
        return ~np.isnan(linear((x - lower) / span))


def _mono_sbb(directory: Path) -> Table:
    with (directory / "mono_sbb_limits.csv").open() as file:
        rows = [(float(r["mzp"]), float(r["ms"]), float(r["obs"])) for r in csv.DictReader(file)]
    a = np.array(rows)
    return Table(a[:, :2], a[:, 2], log=True)


def _checkmate(directory: Path) -> Table:
    rows: list[Any] = json.loads((directory / "checkmate_stop_scan.json").read_text())["precomputed"]
    done = [(*x, float(values["observed_CLs"])) for x, _, (state, values) in rows if state.strip('"') == "SUCCESS"]
    a = np.array(done)
    return Table(a[:, :2], a[:, 2], log=False)


def tables() -> list[TestProblem]:
    """The problems made of published tables; none where the tables are absent."""
    if (directory := data_directory()) is None:
        return []
    mono, stop = _mono_sbb(directory), _checkmate(directory)
    return [
        TestProblem(
            "mono_sbb",
            ((500, 3500), (50, 150)),
            1.0,
            mono,
            0.196,
            80,
            "ATLAS mono-s(bb) reinterpretation: observed limits on mu of 42 points (ATL-PHYS-PUB-2019-032)",
            names=("m_zp", "m_s"),
            hull=mono.hull,
        ),
        TestProblem(
            "checkmate_stop",
            ((200, 800), (0, 500)),
            0.05,
            stop,
            0.671,
            100,
            "CheckMATE scan of stop -> t + LSP: observed CLs of 1206 points with Monte Carlo noise; wedge forbidden",
            names=("m_stop", "m_lsp"),
            constraint="m_stop >= m_lsp + 200",
            hull=stop.hull,
        ),
    ]


def _functions() -> list[TestProblem]:
    old = "the excursion package of 2018-21"
    return [
        TestProblem("fast_1D", ((0, 5),), 2.0, fast_1d, 0.596, 40, f"x + 2.5 sin 3x, {old}"),
        TestProblem("fast_2D", box(0, 1.5, 2), 0.0, fast_nd, 0.597, 80, f"toy search, {old}"),
        TestProblem("fast_3D", box(0, 1.5, 3), 0.0, fast_nd, 0.877, 120, f"toy search, {old}"),
        TestProblem("paraboloid_2D", box(-2, 2, 2), 1.0, paraboloid, 0.804, 80, f"|x|^2 = 1, {old}"),
        TestProblem("paraboloid_3D", box(-2, 2, 3), 1.0, paraboloid, 0.934, 120, f"|x|^2 = 1, {old}"),
        # In all of the box the ball is 1.9 % (4-D) and 0.5 % (5-D): calling everything outside would be nearly right.
        TestProblem(
            "paraboloid_4D",
            box(-2, 2, 4),
            1.0,
            paraboloid,
            0.874,
            150,
            f"|x|^2 = 1, {old}; error counted in [-1.25, 1.25]^4",
            counted=box(-1.25, 1.25, 4),
        ),
        TestProblem(
            "paraboloid_5D",
            box(-2, 2, 5),
            1.0,
            paraboloid,
            0.946,
            200,
            f"|x|^2 = 1, {old}; error counted in [-1.25, 1.25]^5",
            counted=box(-1.25, 1.25, 5),
        ),
        TestProblem(
            "bichon",
            ((-4, 7), (-3, 8)),
            0.0,
            bichon,
            0.302,
            80,
            "multimodal function of Bichon et al., AIAA J. 46 (2008)",
        ),
        TestProblem("branin", ((-5, 10), (0, 15)), 80.0, branin, 0.254, 80, "Branin = 80 (Dixon and Szego 1978)"),
        TestProblem("ackley_2D", box(-2, 2, 2), 4.5, ackley, 0.728, 100, "Ackley = 4.5 (Ackley 1987)"),
        TestProblem(
            "hartmann6",
            box(0, 1, 6),
            0.5364,
            hartmann6,
            0.150,
            210,
            "Hartmann 6-D at the level that 15 % of the volume exceed (Dixon and Szego 1978)",
        ),
        TestProblem(
            "cliff", box(0, 1, 2), 1.0, cliff, 0.614, 80, "a limit that is smooth, then loses acceptance: 1e-2 to 1e100"
        ),
        TestProblem(
            "plateau", box(0, 1, 2), 0.05, plateau, 0.490, 80, "a CLs that is exactly 0 and 1 away from a curved edge"
        ),
        TestProblem(
            "kinematic_step",
            ((200, 1000), (0, 600)),
            1.0,
            kinematic_step,
            0.751,
            100,
            "a smooth limit, five times weaker where m_heavy - m_light < 175",
            names=("m_heavy", "m_light"),
        ),
        TestProblem(
            "two_islands",
            box(0, 1, 2),
            0.5,
            two_islands,
            0.143,
            80,
            "two disjoint regions, the smaller 3 % of the volume",
        ),
        TestProblem(
            "noisy_CLs",
            box(0, 1, 2),
            0.05,
            exponential_cls,
            0.391,
            100,
            "CLs = exp(-s(x)) with 5 % Monte Carlo noise that no method is told",
            noise=0.05,
        ),
        TestProblem(
            "ellipsoid_7D",
            box(-2, 2, 7),
            4.5,
            ellipsoid,
            0.756,
            250,
            "off-centre ellipsoid, curvatures over two decades",
            group="high",
        ),
        TestProblem(
            "ellipsoid_10D",
            box(-2, 2, 10),
            7.2,
            ellipsoid,
            0.750,
            300,
            "off-centre ellipsoid, curvatures over two decades",
            group="high",
        ),
        TestProblem(
            "branin_10D",
            box(0, 1, 10),
            80.0,
            branin_embedded,
            0.254,
            200,
            "Branin = 80 in the third and eighth of ten parameters",
            group="high",
        ),
    ]


#: Name -> problem, those whose data are here.
PROBLEMS: dict[str, TestProblem] = {p.name: p for p in _functions() + tables()}


def main() -> None:
    print(f"{'problem':16} {'d':>2} {'budget':>6} {'f >= T':>7}  what")
    for p in PROBLEMS.values():
        fraction = p.above(p.points(100_000)).mean()
        print(f"{p.name:16} {p.dim:2d} {p.budget:6d} {fraction:7.4f}  {p.doc}")


if __name__ == "__main__":
    main()
