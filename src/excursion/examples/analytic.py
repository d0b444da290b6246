"""Functions with known level sets, as fast stand-ins for expensive ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def fast_limit(x: Mapping[str, float]) -> float:
    """3 (ln CLs - ln 0.05) of a toy search, for parameters x, y and optionally z in [0, 1.5]; excluded where negative.

    f = 3 (ln stats(xsec eff) - ln 0.05), stats(n) = (1 - tanh(n - 5))/2, eff = tanh(1.3 x - y + 1),
    xsec = 12 e^{-x/2} + 0.1 cos(10 y + 1) + 0.2 cos(15 x); in three dimensions xsec is multiplied by e^{-0.3 z} and the
    phase of cos(10 y + 1) is dropped.

    Works for floats and for arrays.

    References:
        The test functions fast_2D and fast_3D of the excursion package of 2018-21.
    """
    u, v = np.asarray(x["x"], dtype=float), np.asarray(x["y"], dtype=float)
    phase = 0.0 if "z" in x else 1.0
    xsec = 12 * np.exp(-u / 2) + 0.1 * np.cos(10 * v + phase) + 0.2 * np.cos(15 * u)
    if "z" in x:
        xsec = xsec * np.exp(-0.3 * np.asarray(x["z"], dtype=float))
    n = xsec * np.tanh(1.3 * u - v + 1)
    # ln((1 - tanh(n - 5))/2) = -ln(1 + e^{2(n - 5)}), without cancellation
    value = 3 * (-np.logaddexp(0.0, 2 * (n - 5)) - math.log(0.05))
    return float(value) if value.ndim == 0 else value
