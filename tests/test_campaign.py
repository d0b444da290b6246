import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from excursion.acquisition import SUR, ExclusionEntropy, Search, Sobol, Straddle
from excursion.belief import believe, observations
from excursion.campaign import Campaign, evaluation_seed
from excursion.data import FINISHED, Outcome, Proposal, Trial
from excursion.errors import (
    DuplicateCampaign,
    FitError,
    InvalidOutcome,
    InvalidPoint,
    InvalidProblem,
    InvalidStrategy,
    SchemaMismatch,
    SpaceExhausted,
    StoreError,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)
from excursion.problem import TRANSFORMS, Fidelity, Problem, Task
from excursion.proposal import Strategy, conditioned, propose
from excursion.space import Parameter, ParameterSpace
from excursion.store import MemoryStore
from excursion.surrogate import GaussianProcess, KernelSearch

SPACE = ParameterSpace(
    (Parameter("m", 100, 2000, unit="GeV"), Parameter("g", 1e-3, 1.0, scale="log")), ("m * g < 1500",)
)
PROBLEM = Problem(SPACE, (Task("observed", 0.2), Task("expected", (0.0, 0.4), weight=0.5)))
STRATEGY = Strategy(design_size=6, seed=3, search=Search(pool=256, candidates=48, integration=48, polish=1))


def f(x):
    value = math.sin(x["m"] / 300) + 0.5 * math.log10(x["g"]) + 0.8
    return {"observed": value, "expected": value + 0.1 * math.cos(x["m"] / 200)}


def drive(campaign, rounds, n=1):
    for _ in range(rounds):
        for t in campaign.ask(n):
            campaign.tell(t.number, f(t.x))


def points(campaign):
    return [dict(t.x) for t in campaign.trials]


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/c.db"


# --- laws


def test_stopping_and_resuming_changes_nothing(tmp_path):
    whole = Campaign.create("memory://", "c", PROBLEM, STRATEGY)
    drive(whole, 12)
    url = f"sqlite:///{tmp_path}/c.db"
    Campaign.create(url, "c", PROBLEM, STRATEGY).store.close()
    for _ in range(6):  # a new view of the store every time, as after a crash
        campaign = Campaign.open(url, "c")
        drive(campaign, 2)
        campaign.store.close()
    assert points(whole) == points(Campaign.open(url))


def test_replay_reproduces_every_proposal():
    campaign = Campaign.create("memory://", "c", PROBLEM, STRATEGY)
    rng, waiting = random.Random(1), []
    for i in range(9):
        waiting += campaign.ask(1 + i % 3)
        rng.shuffle(waiting)
        while len(waiting) > 3:
            t = waiting.pop()
            campaign.tell(t.number, Outcome.failed("crash") if t.number % 5 == 4 else f(t.x))
    trials = campaign.trials
    for after in sorted({t.after for t in trials}):
        batch = [t for t in trials if t.after == after]
        past = [
            t if t.told is not None and t.told < batch[0].basis else replace(t, state="queued", told=None, outcome=None)
            for t in trials[:after]
        ]
        again = propose(PROBLEM, STRATEGY, past, len(batch))
        assert [dict(p.x) for p in again] == [dict(t.x) for t in batch]
        assert [(p.criterion, p.score, dict(p.predicted)) for p in again] == [
            (t.criterion, t.score, dict(t.predicted)) for t in batch
        ]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), told=st.integers(6, 8))
def test_the_order_of_tells_is_irrelevant(order, told):
    a, b = (Campaign.create("memory://", "c", PROBLEM, STRATEGY) for _ in range(2))
    trials = a.ask(8)
    b.ask(8)
    for i in order[:told]:
        a.tell(i, f(trials[i].x))
    for i in sorted(order[:told]):
        b.tell(i, f(trials[i].x))
    assert [p.x for p in a.ask(2)] == [p.x for p in b.ask(2)]


def test_a_change_of_units_changes_no_decision():
    tev = ParameterSpace(
        (Parameter("m", 0.1, 2.0, unit="TeV"), Parameter("g", 1e-3, 1.0, scale="log")), ("m * g < 1.5",)
    )
    tasks = (Task("observed", 200.0), Task("expected", (0.0, 400.0), weight=5.0, unit="m"))
    a = Campaign.create(
        "memory://",
        "c",
        replace(PROBLEM, tasks=(replace(PROBLEM.tasks[0], weight=10), replace(PROBLEM.tasks[1], weight=5))),
        STRATEGY,
    )
    b = Campaign.create("memory://", "c", Problem(tev, (replace(tasks[0], weight=10), tasks[1])), STRATEGY)
    for _ in range(10):
        (t,), (s,) = a.ask(), b.ask()
        assert s.x["m"] * 1000 == pytest.approx(t.x["m"], rel=1e-6)
        assert s.x["g"] == pytest.approx(t.x["g"], rel=1e-6)
        a.tell(t.number, f(t.x))
        b.tell(s.number, {k: 1000 * v for k, v in f(t.x).items()})


def test_pending_points_are_not_asked_again(url):
    campaign = Campaign.create(url, "c", PROBLEM, STRATEGY)
    drive(campaign, 7)
    asked = [campaign.ask()[0] for _ in range(5)]
    u = SPACE.to_unit(SPACE.tensor([t.x for t in asked]))
    assert torch.nn.functional.pdist(u).min() > 0.02


def test_where_points_fail_no_more_are_asked():
    """Where crashes begin is learnt, and points beyond are left alone."""
    campaign = Campaign.create("memory://", "c", PROBLEM, replace(STRATEGY, retries=0))
    for _ in range(22):
        (t,) = campaign.ask()
        campaign.tell(t.number, Outcome.failed("segmentation fault") if t.x["g"] > 0.1 else f(t.x))
    failed = [t.number for t in campaign.trials if t.state == "failed"]
    assert sum(n < 11 for n in failed) >= 3
    assert sum(n >= 11 for n in failed) <= 3
    # The belief is not told anything by them: a failure is no value.
    belief = campaign.belief()
    assert conditioned(belief, campaign.trials) is belief.posterior


# --- points that failed are tried again


def failing(strategy=STRATEGY, known=8):
    """A campaign with values, then one trial that failed."""
    campaign = Campaign.create("memory://", "c", PROBLEM, strategy)
    drive(campaign, known)
    (t,) = campaign.ask()
    campaign.tell(t.number, Outcome.failed("lost node"))
    return campaign, t


def test_a_point_that_failed_is_asked_again_with_another_seed():
    campaign, t = failing()
    (other,) = campaign.ask()  # not at once: the trouble may still be there
    assert other.x != t.x
    campaign.tell(other.number, f(other.x))
    (again,) = campaign.ask()
    assert (again.x, again.criterion) == (t.x, "retry")
    assert again.seed != t.seed
    assert again.predicted == t.predicted
    assert (again.fidelity, again.events) == (t.fidelity, t.events)
    assert campaign.trials[t.number].state == "failed"
    campaign.tell(again.number, f(again.x))
    assert all(new.x != t.x for new in campaign.ask(3))


@pytest.mark.parametrize("retries", [0, 3])
def test_attempts_are_counted_and_ever_further_apart(retries):
    """One point fails for ever: retry k waits for 2^(k - 1) further trials that have ended."""
    campaign, bad = failing(replace(STRATEGY, retries=retries, exploration=0.0), known=12)
    for _ in range(14):
        (t,) = campaign.ask()
        campaign.tell(t.number, Outcome.failed("lost node") if t.x == bad.x else f(t.x))
    attempts = [t.number - bad.number for t in campaign.trials if t.x == bad.x]
    assert attempts == [0, 2, 5, 10][: retries + 1]


def test_what_can_never_succeed_is_not_tried_again():
    campaign = Campaign.create("memory://", "c", PROBLEM, replace(STRATEGY, retries=3))
    drive(campaign, 8)
    (t,) = campaign.ask()
    campaign.tell(t.number, Outcome.failed("outside the kinematic range", permanent=True))
    for _ in range(6):
        (new,) = campaign.ask()
        assert new.x != t.x
        campaign.tell(new.number, f(new.x))


def test_where_all_points_fail_none_is_tried_again():
    campaign = Campaign.create("memory://", "c", PROBLEM, replace(STRATEGY, retries=5))
    for _ in range(6):
        (t,) = campaign.ask()
        campaign.tell(t.number, Outcome.failed("no licence"))
    assert {t.criterion for t in campaign.trials} == {"design"}
    drive(campaign, 10)  # the licence is back
    assert [t.criterion for t in campaign.trials].count("retry") >= 1


def test_retries_and_new_points_share_a_batch():
    campaign, t = failing()
    drive(campaign, 1)
    batch = campaign.ask(4)
    assert [p.criterion for p in batch] == ["retry", "SUR", "SUR", "SUR"]
    u = SPACE.to_unit(SPACE.tensor([p.x for p in batch]))
    assert torch.nn.functional.pdist(u).min() > 0.02  # the retry is pending for the others
    assert batch[0].x == t.x


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(10)))
def test_retries_do_not_depend_on_the_order_of_tells(order):
    strategy = replace(STRATEGY, retries=2)
    a, b = (Campaign.create("memory://", "c", PROBLEM, strategy) for _ in range(2))
    trials = a.ask(10)
    b.ask(10)

    def outcome(i):
        return Outcome.failed("crash") if i in (2, 9) else f(trials[i].x)

    for i in order:
        a.tell(i, outcome(i))
    for i in range(10):
        b.tell(i, outcome(i))
    ours, theirs = a.ask(4), b.ask(4)
    assert [p.x for p in ours] == [p.x for p in theirs]
    assert [p.x for p in ours if p.criterion == "retry"] == [trials[2].x]  # nothing ended after 9


def test_on_a_lattice_that_is_used_up_a_point_that_failed_need_not_wait():
    space = ParameterSpace((Parameter("a", 0, 3, step=1), Parameter("b", 0, 2, step=1)))
    campaign = Campaign.create("memory://", "c", Problem(space, Task(thresholds=2.5)), STRATEGY)
    for i in range(12):
        (t,) = campaign.ask()
        campaign.tell(t.number, Outcome.failed("lost node") if i == 11 else t.x["a"] + t.x["b"])
    again = campaign.ask(3)
    assert [(p.x, p.criterion) for p in again] == [(t.x, "retry")]
    campaign.tell(again[0].number, 1.0)
    with pytest.raises(SpaceExhausted, match="12"):
        campaign.ask()


def test_design_points_avoid_a_region_that_is_dead():
    space = ParameterSpace((Parameter("a", 0, 1), Parameter("b", 0, 1)))
    strategy = replace(STRATEGY, design_size=40, retries=0)
    campaign = Campaign.create("memory://", "c", Problem(space, Task(thresholds=0.5)), strategy)
    for _ in range(60):
        (t,) = campaign.ask()
        campaign.tell(t.number, Outcome.failed("crash") if t.x["a"] < 0.5 else t.x["a"] * t.x["b"])
    states = [t.state for t in campaign.trials]
    assert states[:20].count("failed") >= 6
    assert states[30:].count("failed") <= 8  # fifteen by a design that does not look
    assert {t.criterion for t in campaign.trials[:40]} == {"design"}


@pytest.mark.parametrize("retries", [-1, 21, 1.5, True])
def test_retries_are_few(retries):
    with pytest.raises(InvalidStrategy, match=r"retries must (lie in \[0, 20\]|be a whole number)"):
        Strategy(retries=retries)


def test_the_design_goes_on_until_enough_trials_hold_values():
    campaign = Campaign.create("memory://", "c", PROBLEM, replace(STRATEGY, retries=0))
    for i in range(10):
        (t,) = campaign.ask()
        assert t.criterion == "design"
        campaign.tell(t.number, Outcome.failed("no licence") if i < 5 else f(t.x))
    drive(campaign, 1)
    assert campaign.ask()[0].criterion == "SUR"


def test_a_batch_as_large_as_one_likes(url):
    campaign = Campaign.create(url, "c", PROBLEM, STRATEGY)
    for t in campaign.ask(40)[::3]:
        campaign.tell(t.number, f(t.x))
    assert len(campaign.ask(30)) == 30
    assert SPACE.allowed(SPACE.tensor(points(campaign))).all()


@pytest.mark.parametrize("acquisition", [SUR(), ExclusionEntropy(), Straddle(), Sobol()], ids=repr)
@pytest.mark.parametrize("batch", ["joint", "poisson-disc"])
def test_every_point_is_allowed_and_a_multiple_of_its_step(acquisition, batch):
    space = ParameterSpace((Parameter("a", 0, 10, step=0.5), Parameter("b", 0, 10, step=1)), ("a + b < 12",))
    strategy = replace(STRATEGY, acquisition=acquisition, search=replace(STRATEGY.search, batch=batch), exploration=0.3)
    campaign = Campaign.create("memory://", "c", Problem(space, Task(thresholds=20)), strategy)
    for _ in range(8):
        for t in campaign.ask(3):
            campaign.tell(t.number, t.x["a"] * t.x["b"])
    xs = points(campaign)
    assert all((2 * p["a"]).is_integer() and p["b"].is_integer() and p["a"] + p["b"] < 12 for p in xs)
    assert len({tuple(p.values()) for p in xs}) == 24


def test_a_lattice_ends_with_a_clear_error_and_nothing_is_lost():
    space = ParameterSpace((Parameter("a", 0, 3, step=1), Parameter("b", 0, 2, step=1)))
    campaign = Campaign.create("memory://", "c", Problem(space, Task(thresholds=2.5)), STRATEGY)
    for _ in range(12):
        (t,) = campaign.ask()
        campaign.tell(t.number, t.x["a"] + t.x["b"])
    with pytest.raises(SpaceExhausted, match="12"):
        campaign.ask()
    assert len({tuple(p.values()) for p in points(campaign)}) == 12


def test_some_points_explore(url):
    campaign = Campaign.create(url, "c", PROBLEM, replace(STRATEGY, exploration=0.25))
    drive(campaign, 6)
    drive(campaign, 4, n=5)
    kinds = [t.criterion for t in campaign.trials[6:]]
    assert kinds.count("exploration") == 5
    assert kinds.count("SUR") == 15


@pytest.mark.parametrize("acquisition", [SUR(), Sobol()], ids=repr)
def test_proposals_among_given_points(acquisition):
    """Design, criterion and exploration alike; each point once, then SpaceExhausted."""
    u = SPACE.sample(0, 30, 5)
    strategy = replace(STRATEGY, acquisition=acquisition, exploration=0.3)
    trials, rows = [], []
    while len(rows) < 30:
        for p in propose(PROBLEM, strategy, trials, 4, u):
            distance = (SPACE.to_unit(SPACE.tensor([p.x])) - u).abs().amax(1)
            assert distance.min() < 1e-9
            rows.append(int(distance.argmin()))
            trials.append(
                Trial(len(trials), p.x, p.basis, p.basis, p.criterion, state="complete", outcome=Outcome.of(f(p.x)))
            )
    assert sorted(rows) == list(range(30))
    kinds = {t.criterion for t in trials}
    assert kinds == ({"design"} if acquisition == Sobol() else {"design", "SUR", "exploration"})
    with pytest.raises(SpaceExhausted, match="all 30 allowed points have been"):
        propose(PROBLEM, strategy, trials, 1, u)


# --- what a trial remembers


def test_trials_say_why_they_were_asked(url):
    campaign = Campaign.create(url, "c", PROBLEM, STRATEGY)
    drive(campaign, 6)
    a, b = campaign.ask(2)
    assert (a.criterion, a.basis, a.after, b.after) == ("SUR", 6, 6, 6)
    assert a.score is not None
    assert a.score > 0
    belief = believe(PROBLEM, STRATEGY.surrogate, campaign.trials[:6])
    mean, variance = belief.posterior.marginal(SPACE.to_unit(SPACE.tensor([a.x])))
    p = torch.special.ndtr((mean[0] - belief.problem.tasks[0].levels) / variance[0].sqrt())
    assert a.belief == belief.summary()
    assert a.belief["observed"]["transform"] in TRANSFORMS
    assert a.predicted["observed"] == pytest.approx(float(p), abs=1e-6)
    assert a.seed == evaluation_seed(3, 6)
    assert a.seed != b.seed


# --- data


def test_observations_are_ordered_transformed_and_censored():
    problem = Problem({"x": (0, 10)}, Task("mu", 1.0, "log-tanh"))
    campaign = Campaign.create("memory://", "c", problem)
    told = {
        3.0: Outcome.of({"mu": 10.0}, variances={"mu": 4.0}),
        1.0: Outcome.of({"mu": math.inf}),
        2.0: Outcome.of({"mu": 30.0}, bounds={"mu": "above"}),
        4.0: Outcome.failed("x"),
    }
    for t in reversed(campaign.add([{"x": v} for v in told])):
        campaign.tell(t.number, told[t.x["x"]])
    data = observations(problem, campaign.trials)
    assert data.u[:, 0].tolist() == pytest.approx([0.3, 0.1, 0.2])
    assert data.side[:, 0].tolist() == [0, 1, 1]
    assert data.z[:, 0].tolist() == pytest.approx([math.tanh(1), 1.0, math.tanh(math.log10(30))])
    slope = (1 - math.tanh(1) ** 2) / (10 * math.log(10))
    assert data.variance[:, 0].tolist() == pytest.approx([4 * slope**2, 0, 0])


def test_an_infinite_value_lies_beyond_everything_measured():
    problem = Problem({"x": (0, 10)}, Task("f", 5.0, "identity"))
    campaign = Campaign.create("memory://", "c", problem)
    for t, value in zip(campaign.add([{"x": float(i)} for i in range(5)]), [1.0, -math.inf, 1e300, math.inf, 2.0]):
        campaign.tell(t.number, value)
    data = observations(problem, campaign.trials)
    assert data.z[:, 0].tolist() == [1.0, 1.0, 5.0, 5.0, 2.0]
    assert data.side[:, 0].tolist() == [0, -1, 1, 1, 0]
    assert campaign.status().counts == {"complete": 3, "censored": 2}


def test_status_counts_and_expects(url):
    campaign = Campaign.create(url, "c", PROBLEM, STRATEGY)
    assert campaign.status().counts == {}
    assert campaign.status().crossed == {"observed": False, "expected": False}
    drive(campaign, 6)
    campaign.tell(campaign.ask()[0].number, Outcome.failed("x"))
    campaign.ask()
    status = campaign.status()
    assert status.counts == {"complete": 6, "failed": 1, "queued": 1}
    assert status.finished == 7
    assert set(status.uncertainty) == {"observed", "expected"}
    assert all(0 < v < 0.5 for v in status.uncertainty.values())
    assert status.crossed == {"observed": True, "expected": True}


def test_the_description_survives_the_store(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    strategy = Strategy(
        GaussianProcess(kernel="rbf", mean="linear"), Straddle(kappa=3), Search(batch="poisson-disc"), 9, 0.2, 11
    )
    with Campaign.create(url, "c", PROBLEM, strategy, extra={"a": [1]}).store:
        pass
    again = Campaign.open(url)
    assert (again.name, again.problem, again.strategy, again.extra) == ("c", PROBLEM, strategy, {"a": [1]})


# --- bad input: a clear error, and the store as it was


def test_bad_outcomes_leave_the_trial_pending(url):
    campaign = Campaign.create(url, "c", PROBLEM, STRATEGY)
    (t,) = campaign.ask()
    for bad, message in [
        ({"observed": math.nan, "expected": 1.0}, "task 'observed': the value must not be NaN"),
        ({"observed": 1.0}, r"needs a value for each task .* missing=\['expected'\], unknown=\[\]"),
        ({"observed": 1.0, "expekted": 1.0}, r"missing=\['expected'\], unknown=\['expekted'\]"),
        ({"observed": "high", "expected": 1.0}, "the value must be a number, got 'high'"),
        (1.0, r"missing=\['expected'\]"),
    ]:
        with pytest.raises(InvalidOutcome, match=message):
            campaign.tell(t.number, bad)
        assert campaign.trials[0].state == "queued"
    campaign.tell(t.number, f(t.x))
    with pytest.raises(TrialFinished):
        campaign.tell(t.number, f(t.x))
    assert campaign.trials[0].outcome.values == f(t.x)
    with pytest.raises(UnknownTrial):
        campaign.tell(17, f(t.x))


def test_values_a_transform_cannot_take():
    campaign = Campaign.create("memory://", "c", Problem({"x": (0, 1)}, Task("mu", 1.0, "log")))
    (t,) = campaign.ask()
    with pytest.raises(InvalidOutcome, match="task 'mu': transform 'log' needs positive values, got 0.0"):
        campaign.tell(t.number, 0.0)
    assert campaign.trials[0].pending


def test_bad_points_are_refused_whole(url):
    campaign = Campaign.create(url, "c", PROBLEM, STRATEGY)
    good = {"m": 200.0, "g": 0.1}
    for bad, message in [
        ({"m": 200.0}, "g"),
        ({"m": 200.0, "g": 0.1, "q": 1.0}, "q"),
        ({"m": 20.0, "g": 0.1}, "20"),
        ({"m": 1900.0, "g": 1.0}, r"m \* g < 1500"),
    ]:
        with pytest.raises(InvalidPoint, match=message):
            campaign.add([good, bad])
        assert campaign.trials == []
    with pytest.raises(InvalidPoint, match="at least 1, got 0"):
        campaign.ask(0)


def test_campaigns_are_found_by_name(tmp_path):
    url = f"sqlite:///{tmp_path}/c.db"
    with pytest.raises(StoreError):
        Campaign.open(url, "c")
    assert not (tmp_path / "c.db").exists()
    with Campaign.create(url, "b", PROBLEM, STRATEGY).store as store:
        with pytest.raises(DuplicateCampaign):
            Campaign.create(store, "b", PROBLEM)
        Campaign.create(store, "a", PROBLEM)
        with pytest.raises(UnknownCampaign, match=r"\['a', 'b'\]"):
            Campaign.open(store)
        with pytest.raises(UnknownCampaign, match="'q'"):
            Campaign.open(store, "q")


def test_constraints_in_python_must_be_given_again():
    problem = Problem(ParameterSpace.of({"x": (0, 1)}, [lambda p: p["x"] < 0.5]), Task(thresholds=0.2))
    store = MemoryStore()
    Campaign.create(store, "c", problem)
    with pytest.raises(InvalidProblem, match="its constraints are Python functions"):
        Campaign.open(store, "c")
    assert Campaign.open(store, "c", problem).ask()[0].x["x"] < 0.5


def test_too_little_for_a_belief():
    campaign = Campaign.create("memory://", "c", PROBLEM, STRATEGY)
    drive(campaign, 1)
    with pytest.raises(FitError, match="needs at least 2 observations, got 1"):
        campaign.belief()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"design_size": 1}, "design_size must be at least 2, got 1"),
        ({"exploration": 1.5}, r"exploration must lie in \[0, 1\], got 1.5"),
        ({"seed": -1}, "seed must lie in .* got -1"),
        ({"acquisition": {"type": "EI2"}}, "criterion: must be one of SUR"),
        (
            {"surrogate": {"type": "Forest"}},
            "surrogate: must be one of GaussianProcess, KernelSearch, MultiTask, got 'Forest'",
        ),
        ({"surrogate": {"kernel": "periodic"}}, "kernel must be auto, matern52"),
        ({"colour": "red"}, "settings must exist and fit"),
    ],
)
def test_strategies_are_checked(settings, message):
    with pytest.raises(InvalidStrategy, match=message):
        Strategy.from_json(settings)


def test_seeds_differ_and_fit_pythia():
    seeds = {evaluation_seed(s, n) for s in range(20) for n in range(500)}
    assert len(seeds) == 10000
    assert all(0 <= s < 900_000_000 for s in seeds)


def test_finished_states_are_final():
    assert set(FINISHED) == {"complete", "censored", "failed", "invalid"}


def test_crossed_means_known_on_both_sides():
    def crossed(*outcomes):
        campaign = Campaign.create("memory://", "c", Problem({"x": (0, 10)}, Task("f", 1.0)))
        for t, o in zip(campaign.add([{"x": float(i)} for i in range(len(outcomes))]), outcomes):
            campaign.tell(t.number, o)
        return campaign.status().crossed["f"]

    assert crossed(2.0, -math.inf)
    assert crossed(0.0, math.inf)
    assert crossed(0.0, 2.0)
    assert not crossed(2.0, Outcome.of(0.5, bounds={"f": "above"}))
    assert not crossed(0.5, Outcome.of(3.0, bounds={"f": "below"}))
    assert not crossed(0.5, 0.7)


@pytest.mark.parametrize("settings", [{"seed": 1.5}, {"seed": None}, {"design_size": "a"}, {"design_size": 2.5}])
def test_whole_numbers_are_whole(settings):
    with pytest.raises(InvalidStrategy, match="must be a whole number, got"):
        Strategy(**settings)


def test_points_given_twice_on_a_lattice():
    campaign = Campaign.create(
        "memory://", "c", Problem(ParameterSpace((Parameter("n", 1, 6, step=1),)), Task(thresholds=2.5))
    )
    for t in campaign.add([{"n": 3.0}] * 3):
        campaign.tell(t.number, 3.0)
    assert len({t.x["n"] for t in campaign.ask(9)} | {3.0}) == 6


def test_a_description_of_another_version_is_refused():
    store = MemoryStore()
    Campaign.create(store, "c", PROBLEM, STRATEGY)
    store.create("d", store.spec("c") | {"version": 99})
    with pytest.raises(SchemaMismatch, match="must be of version 1, got 99"):
        Campaign.open(store, "d")


def test_a_problem_given_to_open_must_be_the_stored_one():
    constraint = lambda p: p["x"] < 0.5  # noqa: E731
    store = MemoryStore()
    Campaign.create(store, "c", Problem(ParameterSpace.of({"x": (0, 1)}, [constraint]), Task(thresholds=0.2)))
    for other in (
        Problem(ParameterSpace.of({"x": (0, 100)}, [constraint]), Task(thresholds=0.2)),
        Problem(ParameterSpace.of({"x": (0, 1)}, [constraint]), Task(thresholds=5)),
    ):
        with pytest.raises(InvalidProblem, match="is in the store with another problem"):
            Campaign.open(store, "c", other)


def test_every_recipe_survives_the_store():
    for recipe in (GaussianProcess(metric="ard"), KernelSearch(depth=2)):
        strategy = Strategy(surrogate=recipe)
        assert Strategy.from_json(strategy.to_json()) == strategy


def test_a_fidelity_nobody_declared_is_refused():
    problem = Problem({"x": (0, 1)}, fidelities=(Fidelity("fast", 0.1), Fidelity("full")))
    campaign = Campaign.create("memory://", "c", problem)
    good, bad = Proposal({"x": 0.5}, 0, fidelity="fast"), Proposal({"x": 0.5}, 0, fidelity="slow")
    with pytest.raises(InvalidProblem, match=r"a fidelity must be one of \['fast', 'full'\], got 'slow'"):
        campaign._add([good, bad], 0)
    assert campaign.trials == []
    assert Campaign.open(campaign.store).problem == problem
    assert [t.fidelity for t in campaign._add([good], 0)] == ["fast"]


def test_what_is_believed_may_be_left_out(monkeypatch):
    campaign = Campaign.create("memory://", "a", Problem({"x": (0, 1)}, Task("f", 0.5)))
    campaign.warm_start([{"x": x / 40, "f": x / 40} for x in range(41)])
    full, quick = campaign.status(), campaign.status(belief=False)
    assert set(full.uncertainty) == {"f"}
    assert quick.uncertainty == {}
    assert (quick.counts, quick.crossed, quick.spent) == (full.counts, full.crossed, full.spent)
    assert quick.notes == ("what is believed from 41 points is left out: status --belief fits it all the same",)
    monkeypatch.setattr("excursion.campaign.BELIEVED", 40)
    assert campaign.status() == quick
    assert campaign.status(belief=True).uncertainty == full.uncertainty
