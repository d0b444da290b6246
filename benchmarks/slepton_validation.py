"""The slepton example against what ATLAS published: limits at points, and where the contour crosses a few lines.

    python -m benchmarks.slepton_validation [--events N] [--fidelity parton|hadron] [--seed S] [--processes P]

1. The observed upper limit on the signal strength at points for which ATLAS-SUSY-2018-32 published one on the
   cross-section (divided by the cross-section used here, selectrons + smuons).
2. The observed limit along the published observed contour, where ATLAS has mu_95 = 1.
3. Where our observed contour crosses lines of constant m_slepton or m_chi, beside the published crossing. The splitting
   between the two masses says how much room there is for an error in m_chi.

Published contour: HEPData, doi:10.17182/hepdata.89413.v4/t23 (CC0), every second or third point.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise

from scipy.optimize import brentq

from excursion.evaluators.pyhf import CountsModel, limits
from excursion.examples.sleptons import Simulation, background_spec, cross_section

#: (m_slepton, m_chi) -> published observed limit, as a signal strength of selectrons + smuons.
PUBLISHED = {
    (200, 1): 0.26,
    (400, 1): 0.11,
    (500, 1): 0.22,
    (600, 1): 0.54,
    (700, 1): 0.80,
    (400, 200): 0.60e-3 / cross_section(400.0),
    (500, 300): 0.52e-3 / cross_section(500.0),
}

#: The published observed contour, m_slepton and m_chi in GeV, from the left end to the right one.
CONTOUR = (
    *((101.7, 17.3), (115.1, 25.2), (131.4, 31.7), (147.7, 44.0), (158.2, 66.2), (157.3, 82.5), (164.0, 105.7)),
    *((180.3, 118.1), (196.6, 132.0), (212.9, 139.4), (228.7, 164.1), (249.5, 180.4), (267.8, 196.7), (278.2, 218.9)),
    *((297.8, 229.3), (310.8, 235.0), (322.6, 245.6), (343.4, 267.0), (376.0, 283.5), (392.3, 297.9), (411.5, 310.8)),
    *((441.2, 331.5), (473.9, 351.3), (506.5, 370.4), (539.0, 392.4), (555.4, 402.5), (588.0, 406.3), (620.6, 401.6)),
    *((653.5, 376.1), (674.0, 343.5), (688.7, 294.5), (692.4, 229.3), (695.9, 164.1), (698.1, 98.8), (699.9, 1.0)),
)

#: Lines, as (name of the fixed mass, its value, bracket of the other one).
LINES = (
    *(("m_slepton", mass, (0.3 * mass, mass - 25.0)) for mass in (200.0, 250.0, 300.0, 400.0, 500.0, 600.0)),
    *(("m_chi", mass, (600.0, 790.0)) for mass in (1.0, 100.0, 200.0, 300.0)),
)


def limit(simulation: Simulation, point: tuple[float, float], seed: int) -> tuple[float, float, float, float]:
    """Observed and expected limit, its relative Monte Carlo error, acceptance."""
    signal = simulation({"m_slepton": point[0], "m_chi": point[1]}, seed)
    result = limits(CountsModel(**background_spec()).workspace(signal))
    weights = [-e for bins in result.elasticities.get("observed", {}).values() for e in bins]
    relative = [error / n if n > 0 else 0.0 for n, error in zip(signal.nominal, signal.errors)]
    error = math.hypot(*(w * r for w, r in zip(weights, relative))) if weights else math.nan
    return result.observed, result.expected[2], error, signal.info["acceptance"]


def published_crossing(fixed: str, value: float) -> float:
    """Where the published contour crosses the line, linear between its points."""
    ours, other = (0, 1) if fixed == "m_slepton" else (1, 0)
    # Along m_chi = const the contour's right end is meant, along m_slepton = const its only crossing above 200 GeV.
    points = CONTOUR if fixed == "m_slepton" else CONTOUR[-9:]
    for a, b in pairwise(points):
        if min(a[ours], b[ours]) <= value <= max(a[ours], b[ours]):
            return a[other] + (value - a[ours]) / (b[ours] - a[ours]) * (b[other] - a[other])
    raise ValueError(f"published contour: must cross {fixed} = {value:g}, got no crossing. Choose another line")


def crossing(simulation: Simulation, seed: int, line: tuple[str, float, tuple[float, float]]) -> float:
    """Where our observed contour crosses the line."""
    fixed, value, bracket = line

    def log_limit(other: float) -> float:
        point = (value, other) if fixed == "m_slepton" else (other, value)
        return math.log(limit(simulation, point, seed)[0])

    return brentq(log_limit, *bracket, xtol=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=Simulation.events)
    parser.add_argument("--fidelity", choices=("parton", "hadron"), default="parton")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    simulation = Simulation(events=arguments.events, fidelity=arguments.fidelity)
    with ProcessPoolExecutor(arguments.processes) as pool:
        one = partial(limit, simulation, seed=arguments.seed)
        print("m_slepton  m_chi   observed  expected  MC error  acceptance   ATLAS  ours/ATLAS")
        for (point, atlas), (observed, expected, error, accepted) in zip(PUBLISHED.items(), pool.map(one, PUBLISHED)):
            print(
                f"{point[0]:9g} {point[1]:6g} {observed:10.3f} {expected:9.3f} {error:8.1%} {accepted:11.4f} "
                f"{atlas:7.3f} {observed / atlas:11.2f}"
            )
        print("\nAlong the published contour (ATLAS: 1)\nm_slepton  m_chi   splitting  observed  expected")
        for at, (observed, expected, _, _) in zip(CONTOUR, pool.map(one, CONTOUR)):
            print(f"{at[0]:9g} {at[1]:6g} {at[0] - at[1]:11.1f} {observed:9.3f} {expected:9.3f}")
        print("\nCrossings of the observed contour\nline                ours   ATLAS  ours - ATLAS")
        for line, ours in zip(LINES, pool.map(partial(crossing, simulation, arguments.seed), LINES)):
            atlas = published_crossing(*line[:2])
            print(f"{line[0]:>9} = {line[1]:3g} {ours:9.1f} {atlas:7.1f} {ours - atlas:+13.1f}")


if __name__ == "__main__":
    main()
