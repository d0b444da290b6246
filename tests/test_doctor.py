import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from excursion.campaign import Campaign
from excursion.cli import app
from excursion.data import Censored, Outcome, Trial
from excursion.doctor import _best_cuts, _round_between, diagnose
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.space import Parameter, ParameterSpace

SPACE = ParameterSpace(
    (
        Parameter("m_slepton", 100, 500, unit="GeV"),
        Parameter("m_chi", 0, 400, unit="GeV"),
        Parameter("g", 0.01, 1, scale="log"),
    ),
    ("m_slepton > m_chi",),
)
PROBLEM = Problem(SPACE, Task("mu", 1.0))


def history(n, crash, error="MadGraph: no phase space", values=lambda x: x["m_chi"] / 200):
    u = SPACE.sample(0, n, 7)
    trials = []
    for i, x in enumerate(SPACE.from_unit(u)):
        x = SPACE.point(x)
        outcome = Outcome.failed(error) if crash(x, i) else Outcome.of({"mu": values(x)})
        trials.append(
            Trial(i, x, 0, 0, state=outcome.state, outcome=outcome, started=100.0 * i, finished=100.0 * i + 60)
        )
    return trials


def of(kind, findings):
    return [f for f in findings if f.kind == kind]


def test_nothing_is_odd():
    assert diagnose(PROBLEM, []) == []
    assert diagnose(PROBLEM, history(40, lambda x, i: False), now=1e9) == []


def test_failures_beyond_a_mass_difference_suggest_a_constraint():
    trials = history(80, lambda x, i: x["m_slepton"] - x["m_chi"] < 60 or i in (3, 11))
    (found,) = of("cluster", diagnose(PROBLEM, trials))
    gap = np.array([t.x["m_slepton"] - t.x["m_chi"] for t in trials])
    inside = {t.number for t, d in zip(trials, gap) if d < 60}
    assert found.constraint is not None
    name, value = found.constraint.split(" >= ")
    assert name == "m_slepton - m_chi"
    assert max(gap[gap < 60]) < float(value) <= min(gap[gap >= 60])
    assert set(found.trials) == inside
    assert found.text.startswith(f"{len(inside)} of {len(inside)} points with m_slepton - m_chi < {value} fail (2 of ")
    assert f"Declare a constraint '{found.constraint}'?" in found.text
    # The space takes the suggestion, and it removes just these.
    tighter = ParameterSpace(SPACE.parameters, (*(c.expression for c in SPACE.constraints), found.constraint))
    allowed = tighter.allowed(tighter.tensor([t.x for t in trials])).tolist()
    assert {t.number for t, ok in zip(trials, allowed) if not ok} == inside


@pytest.mark.parametrize(
    ("crash", "expected"),
    [
        (lambda x: x["g"] > 0.5, "g <= "),
        (lambda x: x["m_chi"] < 60, "m_chi >= "),
        (lambda x: x["m_slepton"] + x["m_chi"] > 620, "m_slepton + m_chi <= "),
    ],
)
def test_other_quantities_and_sides(crash, expected):
    (found, *_) = of("cluster", diagnose(PROBLEM, history(120, lambda x, i: crash(x))))
    assert found.constraint.startswith(expected)


def test_parameters_of_different_units_are_not_added():
    def crash(x, i):
        return x["m_chi"] > 250 and x["g"] > 0.1

    found = of("cluster", diagnose(PROBLEM, history(120, crash)))
    assert found
    assert not any(f"{sign} g" in f.text for f in found for sign in "+-/")


def test_two_corners_are_two_findings():
    trials = history(150, lambda x, i: x["g"] > 0.5 or x["m_chi"] < 40)
    assert {f.constraint.split()[0] for f in of("cluster", diagnose(PROBLEM, trials))} == {"g", "m_chi"}


def test_where_only_some_fail_no_constraint_is_suggested():
    rng = np.random.default_rng(0)
    trials = history(300, lambda x, i: rng.random() < (0.5 if x["g"] > 0.3 else 0.02))
    (found,) = of("cluster", diagnose(PROBLEM, trials))
    assert found.constraint is None
    assert "points with g > " in found.text


@pytest.mark.parametrize("seed", range(20))
def test_failures_by_chance_are_no_cluster(seed):
    rng = np.random.default_rng(seed)
    trials = history(80, lambda x, i: rng.random() < 0.2)
    assert not of("cluster", diagnose(PROBLEM, trials))


def test_the_probability_is_that_of_fishers_table():
    """Seven failures among ten points, six of them in the first six: sums of products of binomials."""
    values = np.arange(10.0)
    failed = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0], dtype=bool)
    cuts, count = _best_cuts({"q": values}, failed)
    assert count == 18
    expected = Fraction(math.comb(7, 6) * math.comb(3, 0), math.comb(10, 6))
    assert cuts[0].tail == pytest.approx(float(expected))
    assert cuts[0].inside.tolist() == [True] * 6 + [False] * 4
    assert (cuts[0].last, cuts[0].first, cuts[0].below) == (5.0, 6.0, True)


@pytest.mark.parametrize(
    ("last", "first", "expected"),
    [
        (27.3, 32.1, 30),
        (0.013, 0.0171, 0.015),
        (32.1, 27.3, 30),
        (-4.2, 3.0, 0),
        (99.2, 100.0, 100),
        (100.0, 99.2, 99.5),
    ],
)
def test_cuts_are_at_round_numbers(last, first, expected):
    assert _round_between(last, first) == pytest.approx(expected)


def test_errors_are_counted_alike():
    trials = history(30, lambda x, i: i % 5 == 0)
    trials = [
        Trial(t.number, t.x, 0, 0, state="failed", outcome=Outcome.failed(f"ValueError: no root at {t.x['g']}"))
        if t.number % 10 == 0
        else t
        for t in trials
    ]
    first, second = of("error", diagnose(PROBLEM, trials))
    assert first.text.startswith("3 trials end with: ")
    assert {first.trials, second.trials} == {(0, 10, 20), (5, 15, 25)}
    texts = first.text + second.text
    assert "no phase space (trials 5, 15, 25)" in texts
    assert " and alike (trials 0, 10, 20)" in texts


def test_failures_that_a_retry_mended():
    trials = history(20, lambda x, i: i in (4, 9))
    trials += [
        Trial(20, trials[4].x, 0, 0, "retry", state="complete", outcome=Outcome.of({"mu": 0.1})),
        Trial(21, trials[9].x, 0, 0, "retry", state="failed", outcome=Outcome.failed("again")),
    ]
    (found,) = of("chance", diagnose(PROBLEM, trials))
    assert found.text.startswith("1 of 2 points")
    assert found.trials == (4,)


@pytest.mark.parametrize(("seconds", "slow"), [(550, False), (700, True)])
def test_a_trial_that_hangs(seconds, slow):
    trials = [*history(9, lambda x, i: False), Trial(9, {}, 0, 0, state="running", started=1000.0, owner="node7:31")]
    trials[-1] = Trial(9, trials[0].x, 0, 0, state="running", started=1000.0, owner="node7:31")
    found = of("slow", diagnose(PROBLEM, trials, now=1000.0 + seconds))
    assert bool(found) == slow
    if slow:
        assert "trial 9 has run for 11.7 min (node7:31)" in found[0].text
    assert not of("slow", diagnose(PROBLEM, trials[5:], now=1e9))  # four have ended: too few to tell


@pytest.mark.parametrize(
    ("outcomes", "side"),
    [
        ([0.2, 0.5, 0.9], "at or above"),
        ([1.0, 1.5, math.inf], "below"),
        ([0.5, Outcome.of({}, Censored("mu", below=1.4))], "at or above"),
        ([1.5, Outcome.of({}, Censored("mu", above=0.4))], "below"),
        ([0.5, 1.0], None),
        ([1.5, Outcome.of({}, Censored("mu", below=1.0))], None),
        ([0.5], None),
    ],
)
def test_thresholds_never_crossed(outcomes, side):
    told = [o if isinstance(o, Outcome) else Outcome.of({"mu": o}) for o in outcomes]
    trials = [
        Trial(i, {"m_slepton": 200.0, "m_chi": float(i), "g": 0.1}, 0, 0, state=o.state, outcome=o)
        for i, o in enumerate(told)
    ]
    found = of("one-sided", diagnose(PROBLEM, trials))
    assert [f.text.startswith(f"mu: no value {side} the threshold 1 among") for f in found] == [True] * (
        side is not None
    )


def test_infinite_and_missing_values():
    problem = Problem(SPACE, (Task("mu", 1.0), Task("expected", 1.0)))
    x = {"m_slepton": 200.0, "m_chi": 50.0, "g": 0.1}
    outcomes = [{"mu": 0.5, "expected": 2.0}, {"mu": math.inf, "expected": 0.3}, {"mu": 2.0, "expected": None}]
    told = [Outcome.of(o) for o in outcomes]
    trials = [Trial(i, {**x, "m_chi": i}, 0, 0, state=o.state, outcome=o) for i, o in enumerate(told)]
    found = diagnose(problem, trials)
    assert [(f.kind, f.trials) for f in found] == [("infinite", (1,)), ("missing", (2,))]
    assert found[0].text.startswith("mu: 1 of 3 values are infinite (trials 1)")
    assert found[1].text == "expected: 1 of 3 points have no value (trials 2)."


def test_predictions_that_fail():
    def predicted(p):
        return [
            Trial(
                i,
                {"m_slepton": 200.0, "m_chi": float(i), "g": 0.1},
                0,
                0,
                "SUR",
                predicted={"mu": p},
                state=o.state,
                outcome=o,
            )
            for i in range(20)
            for o in [Outcome.of({"mu": 0.5 if i % 3 else 1.5})]
        ]

    (found,) = of("overconfident", diagnose(PROBLEM, predicted(0.999)))
    assert "mu: predictions fail more often than they say" in found.text
    assert not of("overconfident", diagnose(PROBLEM, predicted(0.4)))


def test_the_command(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    campaign = Campaign.create(url, "c", PROBLEM, Strategy(design_size=60, retries=0))
    for t in campaign.ask(50):
        bad = t.x["m_slepton"] - t.x["m_chi"] < 90
        campaign.tell(t.number, Outcome.failed("no phase space") if bad else {"mu": t.x["m_chi"] / 200})
    expected = diagnose(PROBLEM, campaign.trials)
    campaign.store.close()
    said = CliRunner().invoke(app, ["doctor", url, "c"])
    assert said.exit_code == 0
    assert said.output.splitlines() == [f"{f.kind}: {f.text}" for f in expected]
    assert said.output.startswith("cluster: ")
    said = CliRunner().invoke(app, ["doctor", url, "--json"])
    rows = json.loads(said.output)
    assert [(r["kind"], r["constraint"], tuple(r["trials"])) for r in rows] == [
        (f.kind, f.constraint, f.trials) for f in expected
    ]
    assert CliRunner().invoke(app, ["doctor", url, "nobody"]).exit_code == 2
    quiet = Campaign.create(f"sqlite:///{tmp_path}/quiet.db", "q", PROBLEM)
    quiet.store.close()
    assert CliRunner().invoke(app, ["doctor", f"sqlite:///{tmp_path}/quiet.db"]).output == "nothing is odd\n"


def test_the_page_on_failures_runs(capsys):
    text = (Path(__file__).parents[1] / "docs" / "failures.md").read_text()
    names = {}
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, names)
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"\d+ of \d+ points with m_slepton - m_chi < \d+ fail \(0 of ", first)
    assert names["campaign"].status().counts["complete"] >= 25
