from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from excursion.report.plot import plot
from excursion.result import find_level_set


def test_saves_a_band(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        result = find_level_set(lambda p: math.cos(3 * p["x"]), {"x": (0.0, 1.0)}, budget=8, executor=executor)
    plot(result, tmp_path / "band.png")
    assert (tmp_path / "band.png").stat().st_size > 10_000
