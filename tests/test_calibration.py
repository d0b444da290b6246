"""Bands hold what they promise on random functions, within limits wider than what the benchmark reports."""

import numpy as np
import pytest
from benchmarks.calibration import Draw, one

SEEDS = range(100, 104)


def test_draws_are_of_the_process_that_they_claim():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (30, 2))
    for seed in (4, 5, 6, 7):
        draw = Draw.of(seed)
        # Given the frequencies the covariance is sum_k (2/n) cos cos, whose mean over phases is the kernel.
        waves = np.cos(x @ draw.frequencies.T + draw.phases)
        covariance = 2 / waves.shape[1] * waves @ waves.T
        assert np.abs(covariance - draw._kernel(x, x)).max() < 0.08
        assert draw.evaluations in (25, 30)
        points, lengths = draw.contour()
        assert np.abs(draw(points) - draw.threshold).max() < 1e-6
        assert 0.3 < (draw.values >= draw.threshold).mean() < 0.7
        assert (lengths > 0).all()
        mean, sd = draw.known(x, draw(x), x)
        assert np.allclose(mean, draw(x), atol=1e-3)
        assert sd.max() < 1e-3
    assert Draw.of(4).lengths[0] == Draw.of(4).lengths[1]
    assert Draw.of(6).lengths[0] != Draw.of(6).lengths[1]


@pytest.mark.slow
def test_bands_cover_the_contour():
    rows = [one(seed, kind, sets=False) for seed in SEEDS for kind in ("campaign", "design")]
    wide, narrow = (np.mean([row[level] for row in rows]) for level in ("0.95", "0.68"))
    assert wide > 0.87
    assert 0.5 < narrow < 0.9
    assert all(row["0.68"] <= row["0.95"] for row in rows)
