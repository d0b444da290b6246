"""Forecasts: how many more evaluations, and how long."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from excursion import forecast as module
from excursion.acquisition import Search
from excursion.campaign import Campaign
from excursion.cli import app
from excursion.data import Outcome, Trial
from excursion.evaluators.python import Function
from excursion.forecast import Forecast, Pace, forecast, latest, milestones, pace, paid, spelt, unit
from excursion.problem import Fidelity, Problem, Task
from excursion.proposal import Strategy
from excursion.runner import run

QUICK = Strategy(search=Search(pool=256, candidates=48, integration=48, polish=1), seed=1)


def test_an_exponential_law_is_continued():
    curve = [(n, 0.5 * math.exp(-0.1 * n)) for n in range(8, 33, 2)]
    found = forecast(curve, 0.5 * math.exp(-0.1 * 42))
    assert found.more == pytest.approx(11, abs=2.5)
    assert found.low < 11 < found.high
    assert 0 < found.sd < 8


def test_forecasts_of_walks_come_true():
    """Walks with drift, stopped when they pass: the intervals hold the truth about as often as they say."""
    rng, inside, number = np.random.default_rng(3), 0, 0
    for _ in range(150):
        steps = -0.12 + 0.15 * rng.standard_normal(400)
        z = math.log(0.2) + steps.cumsum()
        end = next(i for i in range(1, 400) if max(z[i - 1], z[i]) <= math.log(0.002))
        at = 14
        if end > at + 2 and z[at] > math.log(0.002):
            found = forecast([(8 + i, math.exp(z[i])) for i in range(at + 1)], 0.002)
            number += 1
            inside += found.more is not None and found.low <= end - at <= found.high
    assert number > 100
    assert 0.85 < inside / number <= 1.0


def test_there_is_no_forecast_without_history_or_trend(monkeypatch):
    assert str(forecast([(8, 0.1), (9, 0.09)], 0.01)) == "no forecast yet (2 measurements, 4 are needed)"
    flat = forecast([(n, 0.1 * (1 + 0.3 * (-1) ** n)) for n in range(8, 60, 4)], 1e-4)
    assert flat.more is None or flat.high > 60
    rising = forecast([(n, 0.001 * n**2) for n in range(8, 60, 4)], 1e-4)
    assert rising.reason == "the measure shows no clear trend"
    assert forecast([(8, 0.1), (9, 0.001)], 0.01).more == 0
    # A median alone is none: the upper end lies beyond ten times the history.
    z = np.cumsum(-0.02 + 0.12 * np.random.default_rng(1).standard_normal(12))
    curve, limit = [(8 + i, math.exp(v)) for i, v in enumerate(z)], math.exp(z.min() - 1.5)
    assert forecast(curve, limit).reason == "the measure shows no clear trend"
    monkeypatch.setattr(module, "_FARTHEST", 1e9)
    assert forecast(curve, limit).more < 50


def test_the_slowest_of_several_counts():
    one, two = Forecast(3.0, 1.0), Forecast(12.0, 4.0, seconds=800_000.0)
    assert latest([one, two]) is two
    assert latest([one, Forecast(None, reason="r")]).more is None
    assert str(two) == "12 ± 4 more points (about 9 days at the present pace)"
    assert forecast([(n, math.exp(-n)) for n in range(1, 9)], 1e-9, Pace(8.0, 0.5)).seconds == pytest.approx(
        2 * forecast([(n, math.exp(-n)) for n in range(1, 9)], 1e-9).more
    )


def test_times_are_spelt():
    assert [spelt(s) for s in (0.5, 119, 120, 7200, 9 * 86400)] == [
        "0.5 seconds", "1.2e+02 seconds", "2 minutes", "2 hours", "9 days",
    ]  # fmt: skip


def told(number, asked, finished, criterion="SUR", fidelity=""):
    return Trial(
        number, {"x": 0.0}, 0, 0, criterion, state="complete", told=number, outcome=Outcome.of(1.0), asked=asked,
        finished=finished, fidelity=fidelity,
    )  # fmt: skip


def test_the_pace_counts_parallel_work_and_no_nights():
    trials = [told(0, 0, 10), told(1, 0, 10), told(2, 10, 20), told(3, 5000, 5010), told(4, 0, 0, "table")]
    problem = Problem({"x": (0, 1)}, Task())
    found = pace(problem, trials)
    assert found.latency == 10
    assert found.throughput == pytest.approx(4 / 30)
    assert found.each == 1
    assert paid(problem, trials) == 4
    assert unit(problem) == "points"
    assert pace(problem, []) is None


DEAR = Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6), fidelities=(Fidelity("fast", 1), Fidelity("full", 10)))


def test_with_fidelities_cost_is_counted():
    """A budget counts evaluations of the dearest fidelity: so do the pace and the forecast."""
    trials = [told(i, 10 * i, 10 * i + 10, fidelity="full" if i % 2 else "fast") for i in range(4)]
    trials.append(told(4, 0, 0, "table", fidelity="fast"))
    assert paid(DEAR, trials) == pytest.approx(2.2)
    found = pace(DEAR, trials)
    assert (found.throughput, found.each) == (pytest.approx(2.2 / 40), pytest.approx(0.55))
    assert unit(DEAR) == "evaluations of 'full'"
    # The same history in tenths: a tenth of the forecast, and the same time.
    curve = [(n, 0.5 * math.exp(-0.1 * n)) for n in range(8, 33, 2)]
    points = forecast(curve, 0.005, Pace(1.0, 0.5))
    cost = forecast([(n / 10, value) for n, value in curve], 0.005, Pace(1.0, 0.05, 0.1), unit(DEAR))
    for name in ("more", "sd", "low", "high"):
        assert getattr(cost, name) == pytest.approx(getattr(points, name) / 10)
    assert cost.seconds == pytest.approx(points.seconds)
    assert str(Forecast(1.234, 0.456, unit=cost.unit)) == "1.2 ± 0.46 more evaluations of 'full'"
    assert str(Forecast(0.2, 0.001)) == "1 ± 1 more points"


def test_a_campaign_forecasts_in_the_unit_of_its_budget(monkeypatch):
    from excursion import campaign as module

    campaign = Campaign.create("memory://", "c", DEAR, QUICK)
    campaign.warm_start([{"x": 0.1 * i, "y": 0.5, "f": wave({"x": 0.1 * i, "y": 0.5})} for i in range(5)], "fast")
    run(campaign, Function(wave), budget=6, workers=1, progress=False)
    curves = []
    monkeypatch.setattr(module, "forecast", lambda curve, *more: curves.append((curve, more)) or forecast(curve, *more))
    found = campaign.forecast("0.001 % ambiguous")
    ((curve, (limit, now, what)),) = curves
    assert what == found.unit == "evaluations of 'full'"
    assert limit == pytest.approx(1e-5)
    assert now == pace(DEAR, campaign.trials)
    assert curve[-1][0] == pytest.approx(DEAR.spent(campaign.trials))
    assert 5 < curve[-1][0] <= 6
    assert len(campaign.trials) - 5 > curve[-1][0] + 3


def test_milestones():
    assert milestones(8, 20, 4) == [8, 12, 16, 20]
    assert milestones(8, 9, 10) == [8, 9]
    assert milestones(8, 7, 10) == []


def wave(p):
    return p["x"] + 0.3 * math.sin(7 * p["y"])


def test_status_knows_goal_and_forecast(tmp_path):
    """From the store alone; without a goal nothing is forecast."""
    store = f"{tmp_path}/c.db"
    extra = {"run": {"goal": "0.05 % ambiguous"}}
    campaign = Campaign.create(store, "c", Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6)), QUICK, extra)
    run(campaign, Function(wave), budget=6, workers=1, progress=False)
    early = json.loads(CliRunner().invoke(app, ["status", store, "--json"]).stdout)
    assert early["goals"][0]["value"] is None
    assert early["forecast"] is None
    run(campaign, Function(wave), budget=13, workers=1, progress=False)
    found = json.loads(CliRunner().invoke(app, ["status", store, "--json"]).stdout)
    assert found["goals"][0] | {"value": 0, "text": ""} == {
        "text": "", "measure": "ambiguous", "limit": 0.0005, "task": "f", "parameter": "", "unit": "",
        "relative": False, "credibility": 0.95, "value": 0, "reached": False,
    }  # fmt: skip
    assert found["goals"][0]["value"] > 0.0005
    assert set(found["forecast"]) == {"more", "sd", "low", "high", "seconds", "reason", "unit"}
    text = CliRunner().invoke(app, ["status", store, "--goal", "f within 0.9 of x"]).stdout
    assert "goal f: within" in text
    assert ": reached" in text
    bad = CliRunner().invoke(app, ["status", store, "--goal", "soon"])
    assert bad.exit_code == 2
    assert campaign.forecast(()) is None


def test_the_progress_line_forecasts(capsys):
    campaign = Campaign.create("memory://", "c", Problem({"x": (0, 1), "y": (0, 1)}, Task(thresholds=0.6)), QUICK)
    from excursion import runner

    watch = runner.Watch(campaign, campaign.goals("0.01 % ambiguous"))
    run(campaign, Function(wave), budget=8, workers=1, progress=False)
    for budget in range(9, 13):
        run(campaign, Function(wave), budget=budget, workers=1, progress=False)
        assert not watch.reached(campaign.trials)
    display = runner._Display(campaign, 20, watch, None)
    display._said = -1e9
    display.show(12, 0, [])
    line = capsys.readouterr().err
    assert line.startswith("12/20 evaluated, ")
    assert "ambiguous (goal 0.01 %) |" in line
    assert "more points" in line or "no forecast yet" in line
