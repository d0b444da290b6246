"""The real example as a campaign: real Pythia events, real fits, and the contour against a dense grid."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from excursion.campaign import Campaign
from excursion.data import Job, Outcome
from excursion.examples import sleptons
from excursion.result import Result

DATA = Path(__file__).parent / "data"


def read(name):
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_small_campaign_with_real_events(tmp_path, capsys):
    result = sleptons.main(tmp_path / "run", budget=13, workers=1, events=250, progress=False)
    again = sleptons.main(tmp_path / "run", budget=14, workers=1, events=250, progress=False)
    assert (result.evaluations, again.evaluations) == (13, 14)
    text = capsys.readouterr().out
    assert "14 evaluations (1 of them now" in text
    assert "of the plane excluded at 95 % CL" in text
    for name in ("contour.png", "contour.pdf", "probability.png", "campaign.db"):
        assert (tmp_path / "run" / name).stat().st_size > 10_000
    with (tmp_path / "run" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    for row in rows:
        assert float(row["m_slepton"]) - float(row["m_chi"]) > 20
        assert float(row["m_slepton"]).is_integer()
        assert row["state"] in ("complete", "censored")
        limits = [float(row[f"expected_{k}"]) for k in ("minus_2", "minus_1", "plus_1", "plus_2")]
        assert limits == sorted(limits)


@pytest.fixture(scope="module")
def demo():
    """The 60 evaluations of `make demo`, told to a campaign."""
    campaign = Campaign.create("memory://", "sleptons", sleptons.problem())
    rows = read("slepton_trials.csv")
    tasks = campaign.problem.task_names
    trials = campaign.add([{"m_slepton": float(r["m_slepton"]), "m_chi": float(r["m_chi"])} for r in rows])
    for trial, row in zip(trials, rows):
        variances = {t: float(row[f"{t}_sd"]) ** 2 for t in tasks if row[f"{t}_sd"] not in ("", "nan")}
        bounds = {t: row[f"{t}_bound"] for t in tasks if row[f"{t}_bound"]}
        campaign.tell(trial.number, Outcome.of({t: float(row[t]) for t in tasks}, variances=variances, bounds=bounds))
    return Result.of(campaign)


@pytest.mark.parametrize("task", sleptons.WEIGHTS)
def test_sixty_evaluations_find_what_a_dense_grid_finds(demo, task):
    """Less than 2 % of the plane on the wrong side, for each of the six contours; the reference took 638 points."""
    assert demo.evaluations == 60
    grid = read("slepton_grid.csv")
    x = np.array([[float(r["m_slepton"]), float(r["m_chi"])] for r in grid])
    excluded = np.array([float(r[task]) < 1 for r in grid])
    assert len(x) == 638
    wrong = (demo.excursion_probability(x, task) < 0.5) != excluded
    assert wrong.mean() < 0.02


def test_the_observed_contour_lies_where_it_must(demo):
    """Published limits imply an end near 720 GeV for a light neutralino; within 10 %."""
    reach = demo.contours("observed", names=("m_slepton",), fixed={"m_chi": 1.0}).lines[0]
    assert float(reach[-1, 0]) == pytest.approx(720, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m_slepton", "m_chi", "published"),
    [(400, 1, 0.11), (700, 1, 0.80), (400, 200, 0.161), (500, 300, 0.386)],
)
def test_limits_are_within_a_factor_of_the_published_ones(m_slepton, m_chi, published):
    """Cross-section limits within a factor 1.4 of ATLAS's, at splittings above 100 GeV, with real events and fits."""
    outcome = sleptons.evaluator(3000).evaluate(Job({"m_slepton": m_slepton, "m_chi": m_chi}, seed=7))
    mu = outcome.values["observed"]
    assert abs(math.log(mu / published)) < math.log(1.4)
    assert 0 < math.sqrt(outcome.variances["observed"]) / mu < 0.1
