"""Ours against pyhf's `toms748_scan` on the 18-bin slepton model: time and largest deviation per signal shape.

    python benchmarks/pyhf_limits.py [--shapes N] [--ours]

The reference rescales the signal so that the expected limit is 1, widens the bounds of mu, and asks for tight roots;
it uses minuit where iminuit is installed, else scipy's SLSQP with several starts. `--ours` skips it.
"""

from __future__ import annotations

import argparse
import importlib.util
import time

import numpy as np

from excursion.evaluators.pyhf import CountsModel, Limits, Signal, limits

#: ATLAS-SUSY-2018-32 (arXiv:1908.08215), same-flavour regions, nine bins of mT2 each.
SLEPTONS = CountsModel(
    observed=[14, 15, 24, 37, 20, 12, 12, 5, 8, 12, 13, 30, 21, 15, 11, 8, 5, 5],
    background=[
        *(15.8, 13.9, 26.9, 33.3, 17.4, 10.4, 13.4, 6.7, 6.8),
        *(17.0, 13.7, 17.0, 23.3, 17.0, 9.4, 12.3, 6.5, 8.0),
    ],
    background_error=[
        *(2.3, 1.9, 3.2, 3.4, 2.4, 1.2, 1.6, 1.1, 1.0),
        *(4.0, 2.5, 4.0, 2.8, 2.3, 1.9, 1.6, 1.4, 2.7),
    ],
    channels={"SR-SF-0J": 9, "SR-SF-1J": 9},
)


def shapes() -> dict[str, Signal]:
    """Signals like those of sleptons: from soft (compressed) to hard (heavy, light neutralino), and odd ones."""
    edges = np.array([100, 105, 110, 120, 140, 160, 180, 220, 260, 400.0])
    widths, centres = np.diff(edges), (edges[:-1] + edges[1:]) / 2
    result = {}
    for name, scale, events, jets in (
        ("soft", 20.0, 60.0, 0.5),
        ("medium", 60.0, 25.0, 0.5),
        ("hard", 300.0, 15.0, 0.6),
        ("weak", 80.0, 0.05, 0.5),
    ):
        one = widths * np.exp(-(centres - 100) / scale)
        flat = np.concatenate([one, jets * one]) / (one.sum() * (1 + jets)) * events
        result[name] = Signal(flat, flat / np.sqrt(2000 * flat / flat.sum()))
    last = np.zeros(18)
    last[[8, 17]] = 8.0, 4.0
    result["last bin"] = Signal(last, np.where(last > 0, 0.1 * last, 0.0))
    excess = np.zeros(18)
    excess[[2, 11, 3, 12]] = 5.0, 10.0, 4.0, 3.0
    result["where data exceed"] = Signal(excess, 0.15 * excess)
    return result


def reference(model: CountsModel, signal: Signal, scale: float) -> np.ndarray:
    """Observed and five expected limits by pyhf, in units of 1 / scale; `scale` makes them of order one."""
    import pyhf

    scaled = Signal(np.asarray(signal.nominal) * scale, np.asarray(signal.errors) * scale)
    workspace = pyhf.Workspace(model.workspace(scaled))
    pdf = workspace.model()
    optimizer = "minuit" if importlib.util.find_spec("iminuit") else "scipy"
    before = pyhf.get_backend()
    pyhf.set_backend("numpy", optimizer)
    bounds = pdf.config.suggested_bounds()
    bounds[pdf.config.poi_index] = (0, 20)
    try:
        observed, expected = pyhf.infer.intervals.upper_limits.toms748_scan(
            workspace.data(pdf), pdf, 0.02, 20, rtol=1e-5, atol=1e-5, par_bounds=bounds
        )
    finally:
        pyhf.set_backend(*before)
    return scale * np.array([float(observed), *map(float, expected)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=6)
    parser.add_argument("--ours", action="store_true")
    options = parser.parse_args()
    limits(SLEPTONS.workspace(Signal(np.ones(18), np.full(18, 0.1))))  # imports and schema caches
    print(f"{'signal':>18} {'observed':>9} {'expected':>9} {'fits':>5} {'ours/s':>7} {'pyhf/s':>7} {'deviation':>10}")
    times = []
    for name, signal in list(shapes().items())[: options.shapes]:
        began = time.perf_counter()
        ours: Limits = limits(SLEPTONS.workspace(signal))
        times.append(time.perf_counter() - began)
        row = f"{name:>18} {ours.observed:9.4g} {ours.expected[2]:9.4g} {ours.fits:5d} {times[-1]:7.3f}"
        if options.ours:
            print(row)
            continue
        began = time.perf_counter()
        try:
            theirs = reference(SLEPTONS, signal, ours.expected[2])
        except Exception as error:  # the benchmark reports what the reference does
            print(f"{row} {time.perf_counter() - began:7.1f} failed: {type(error).__name__}: {str(error)[:60]}")
            continue
        deviation = np.abs(np.array(list(ours.values.values())) / theirs - 1).max()
        print(f"{row} {time.perf_counter() - began:7.1f} {100 * deviation:8.3f} %", flush=True)
    print(f"mean {np.mean(times):.3f} s a point")


if __name__ == "__main__":
    main()
