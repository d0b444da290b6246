"""The real example as a campaign: real Pythia events, real fits, and the contour against a dense grid."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks import slepton_fidelities

from excursion.campaign import Campaign
from excursion.data import Job, Outcome
from excursion.errors import InvalidStrategy
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


@pytest.mark.parametrize(
    ("dimensions", "names"),
    [(2, ("m_slepton", "m_chi")), (3, ("m_L", "m_R", "m_chi")), (4, ("m_L", "m_R", "m_chi", "br"))],
)
def test_the_neutralino_is_the_lightest_in_every_dimension(dimensions, names):
    space = sleptons.problem(dimensions).space
    assert space.names == names
    x = space.from_unit(space.sample(0, 512, 1)).numpy()
    assert np.all(x[:, : -1 if dimensions < 4 else -2].min(axis=1) - x[:, names.index("m_chi")] > 20)


def test_fidelities_cost_what_they_take():
    found = sleptons.problem(fidelities=("parton", "hadron"), events=5000)
    assert [f.name for f in found.fidelities] == ["parton", "hadron"]
    assert found.cost("parton") == pytest.approx((0.5 + 5000 / 1800) / (0.6 + 5000 / 155))
    assert sleptons.problem().fidelities == ()
    free = sleptons.problem(3, ("parton", "hadron"), events=(1000, 20000))
    assert free.fidelity("hadron").events == (1000, 20000)
    assert free.fidelity("hadron").price(1000) == pytest.approx(0.6 + 1000 / 155)


@pytest.mark.parametrize("settings", [{"dimensions": 5}, {"fidelities": ("parton", "detector")}])
def test_other_problems_are_not_known(settings):
    with pytest.raises(InvalidStrategy, match="there are 2, 3, 4 dimensions and the fidelities parton, hadron"):
        sleptons.problem(**settings)


def test_a_job_says_which_events_and_how_many():
    recipe = sleptons.evaluator(70, "hadron")
    x = {"m_slepton": 400.0, "m_chi": 100.0}
    by_itself = recipe.evaluate(Job(x, seed=3))
    told = recipe.evaluate(Job(x, seed=3, fidelity="parton", events=90))
    assert (by_itself.info["fidelity"], by_itself.info["generated"]) == ("hadron", 70)
    assert (told.info["fidelity"], told.info["generated"]) == ("parton", 90)
    assert set(told.values) == set(sleptons.WEIGHTS)


@pytest.fixture(scope="module")
def lattice():
    return slepton_fidelities.Lattice.read()


def test_the_parton_level_is_a_good_guide(lattice):
    """Beyond a mass splitting of 100 GeV hadronisation moves limits by a per cent, less than Monte Carlo errors."""
    assert len(lattice.x) == 653
    far = lattice.x[:, 0] - lattice.x[:, 1] > 100
    for task in slepton_fidelities.TASKS:
        ratio = np.log(lattice.columns[f"{task}_parton"][far] / lattice.columns[f"{task}_hadron_all"][far])
        assert abs(np.median(ratio)) < 0.02
        assert np.quantile(np.abs(ratio), 0.95) < 0.05


def test_the_table_has_the_limits_of_the_grid_made_before(lattice):
    """638 points of parton level, 10000 events each, made by another code path (m_chi rounded to the GeV)."""
    grid = read("slepton_grid.csv")
    for task in slepton_fidelities.TASKS:
        found = []
        for row in grid:
            x = [float(row["m_slepton"]), float(row["m_chi"])]
            i = int(np.argmin(np.abs(lattice.x - x).sum(axis=1)))
            if np.abs(lattice.x[i] - x).sum() < 2.5 and x[0] - x[1] > 60:
                found.append(math.log(lattice.columns[f"{task}_parton"][i] / float(row[task])))
        assert len(found) > 60
        assert abs(np.median(found)) < 0.01
        assert np.median(np.abs(found)) < 0.03


def test_what_is_needed_is_kept():
    steps = [{"dear": 2}, *({"dear": n, "observed": e} for n, e in ((4, 0.01), (6, 0.03), (8, 0.02), (10, 0.005)))]

    def observed(step):
        return step["observed"]

    assert slepton_fidelities.needed(steps, 0.02, observed, "dear") == 8
    assert slepton_fidelities.needed(steps, 0.01, observed, "dear") == 10
    assert slepton_fidelities.needed(steps, 0.001, observed, "dear") == math.inf


def test_a_campaign_on_the_table(lattice):
    """Errors are those of the belief against the reference, and the budget counts dear evaluations."""
    steps = slepton_fidelities.curve("dear", 0, 14, 2, lattice)
    assert [s["dear"] for s in steps] == [2, 4, 6, 8, 10, 12, 14]
    assert [s["cost"] for s in steps] == [s["dear"] for s in steps]
    assert steps[-1]["observed"] < 0.6 * steps[0]["observed"]
    assert lattice.known("observed").mean() > 0.95
    row = lattice.rows[720.0, 0.0]
    outcome = lattice.outcome(row, "parton")
    assert outcome.values["observed"] == lattice.columns["observed_parton"][row]
    assert outcome.variances["observed"] == lattice.columns["observed_parton_sd"][row] ** 2


@pytest.mark.slow
def test_three_dimensions_are_run_and_drawn(tmp_path, capsys):
    sleptons.main(tmp_path, dimensions=3, budget=11, workers=1, events=120, progress=False)
    text = capsys.readouterr().out
    assert "11 evaluations (11 of them now" in text
    assert "of the volume excluded at 95 % CL" in text
    assert "left-handed sleptons (right-handed at 800 GeV) are excluded up to" in text
    for name in sleptons.FIGURES[3]:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert all(min(float(r["m_L"]), float(r["m_R"])) - float(r["m_chi"]) > 20 for r in rows)
    assert "m_L" in (tmp_path / "contours.csv").read_text()


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
