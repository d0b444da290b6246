"""What a fit by a server costs more than one here: the slepton model, 18 bins, on one machine.

python -m benchmarks.fit_server [--fits 40] [--workers 1 2]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from excursion.evaluators.fit_server import FittingService
from excursion.evaluators.fitting import Cache, RemoteFit
from excursion.evaluators.pyhf import Signal
from excursion.spec import fit_here


@dataclass(frozen=True)
class Row:
    """Milliseconds per fit (median), or fits per second."""

    what: str
    number: float
    unit: str


def signals(n: int, offset: float = 0.0) -> list[Signal]:
    return [Signal([1.0 + 0.1 * j + 0.01 * i + offset for j in range(18)], [0.1] * 18) for i in range(n)]


def median_ms(work: Callable[[Signal], object], given: Sequence[Signal]) -> float:
    times = []
    for signal in given:
        began = time.perf_counter()
        work(signal)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


@contextmanager
def running(service: FittingService):
    thread = threading.Thread(target=service.serve)
    thread.start()
    try:
        yield RemoteFit(service.url)
    finally:
        service.stop()
        thread.join()


def measure(fits: int = 40, workers: Sequence[int] = (1, 2)) -> list[Row]:
    fit = fit_here("example:sleptons")
    fit.fit(signals(1)[0])
    rows = [Row("here", median_ms(fit.fit, signals(fits)), "ms")]
    with tempfile.TemporaryDirectory() as folder:
        kept = replace(fit, cache=Cache(folder))
        for signal in signals(fits):
            kept.fit(signal)
        rows.append(Row("here, known", median_ms(kept.fit, signals(fits)), "ms"))
        with running(FittingService(kept)) as remote:
            remote.fit(signals(1, 0.005)[0])
            rows.append(Row("server", median_ms(remote.fit, signals(fits, 0.003)), "ms"))
            rows.append(Row("server, known", median_ms(remote.fit, signals(fits)), "ms"))
    for number in workers:
        with running(FittingService(fit, workers=number)) as remote, ThreadPoolExecutor(8) as threads:
            list(threads.map(remote.fit, signals(2 * number)))
            began = time.perf_counter()
            list(threads.map(remote.fit, signals(fits, 0.003)))
            rows.append(Row(f"server, {number} workers, 8 clients", fits / (time.perf_counter() - began), "fits/s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    for row in measure(options.fits, options.workers):
        print(f"{row.what:32} {row.number:8.2f} {row.unit}")


if __name__ == "__main__":
    main()
