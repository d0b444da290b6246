import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from excursion.data import TABLE, Censored, Outcome, Trial
from excursion.errors import InvalidOutcome, InvalidProblem
from excursion.problem import TRANSFORMS, Fidelity, Problem, Task, Transform
from excursion.space import ParameterSpace

SPACE = ParameterSpace.of({"x": (0, 1)})


def number(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return Transform(request.param, center=2.0, scale=0.5)


def test_transforms_are_increasing_and_invertible(transform):
    y = torch.logspace(-2, 2, 50, dtype=torch.float64)
    y = y if transform.positive else torch.cat([-y.flip(0), y])
    z = transform(y)
    assert (z.diff() > 0).all()
    assert torch.allclose(transform.inverse(z), y, rtol=1e-6)


def test_the_slope_is_the_derivative(transform):
    y = torch.linspace(0.3, 9, 30, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(transform(y).sum(), y)
    assert torch.allclose(transform.slope(y.detach()), gradient, rtol=1e-10)


@given(st.floats(1e-3, 1e3))
def test_log_tanh_knows_ratios_to_the_threshold_only(ratio):
    a, b = (Transform("log-tanh", center=c)(number(c * ratio)) for c in (1.0, 20.0))
    assert float(a) == pytest.approx(float(b), abs=1e-12)
    assert float(a) == pytest.approx(math.tanh(math.log10(ratio)), abs=1e-12)


def test_infinities_have_an_image():
    inf = number(math.inf)
    assert Transform("log-tanh", 1.0)(inf) == 1.0
    assert Transform("log-tanh", 1.0).inverse(number(1.5)) == math.inf
    assert Transform("log-tanh", 1.0).inverse(number(-1.5)) == 0.0
    assert Transform("asinh")(inf) == math.inf


def test_the_threshold_is_the_centre():
    assert Task("mu", 3.0, "log-tanh").levels.tolist() == [0.0]
    assert Task("mu", 3.0, "asinh", scale=0.1).levels.tolist() == [0.0]
    assert Task("mu", (1.0, 10.0, 100.0), "log-tanh").levels.tolist() == pytest.approx([math.tanh(-1), 0, math.tanh(1)])
    assert Task("mu", (1.0, 2.0), "identity").levels.tolist() == [1.0, 2.0]
    with pytest.raises(InvalidProblem, match="task 'mu': the transform must have been settled, got 'auto'"):
        Task("mu", 1.0).levels  # noqa: B018


def test_the_log_of_the_slope(transform):
    y = torch.logspace(-1, 1, 30, dtype=torch.float64)
    assert torch.allclose(transform.log_slope(y), transform.slope(y).log(), rtol=1e-9, atol=1e-12)


def test_what_saturates_is_not_held_against_the_transform():
    far = torch.tensor([1e100, 1e-100], dtype=torch.float64)
    squash, log = Transform("log-tanh", 1.0).log_slope(far), Transform("log").log_slope(far)
    assert torch.allclose(squash - log, torch.full((2,), -12.0, dtype=torch.float64))


def test_the_transforms_that_values_allow():
    def names(task, y):
        return [t.transform for t in task.choices(torch.tensor(y, dtype=torch.float64))]

    assert names(Task("f", 1.0), [0.5, 2.0]) == ["identity", "asinh", "log", "log-tanh"]
    assert names(Task("f", 1.0), [0.5, math.inf]) == ["identity", "asinh", "log", "log-tanh"]
    assert names(Task("f", 0.0), [0.5, 2.0]) == ["identity", "asinh"]
    assert names(Task("f", 1.0), [-0.5, 2.0]) == ["identity", "asinh"]
    assert names(Task("f", 1.0), [1.0, 1.0]) == ["identity", "log", "log-tanh"]
    assert Task("f", 1.0).choices(torch.tensor([0.0, 4.0, 5.0, 1e300], dtype=torch.float64))[1].scale == pytest.approx(
        3.5
    )


def test_problems_survive_json():
    problem = Problem(
        ParameterSpace.of({"x": (0, 1), "y": (1, 10, "log")}, ["x < y"]),
        (Task("a", 1.0, "log", unit="fb", label=r"$\sigma$", weight=2), Task("b", (-1, 1.5), "asinh", scale=3)),
    )
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_short_forms():
    problem = Problem({"x": (0, 1)}, Task())
    assert problem.task_names == ("f",)
    assert problem.task().thresholds == (0.0,)
    assert problem.space == SPACE


def test_failures_always_fit():
    assert Problem(SPACE).check(Outcome.failed("x")).error == "x"


def test_unknown_tasks_in_an_outcome():
    with pytest.raises(InvalidOutcome, match=r"missing=\['f'\], unknown=\['g'\]. Rename the values"):
        Problem(SPACE).check(Outcome.of({"g": 1.0}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task(""), "name must be a non-empty string, got ''"),
        (lambda: Problem(SPACE, Task("a", ())), r"at least one threshold per task, got none for \['a'\]. Give one, or"),
        (lambda: Problem(SPACE, goal="optimum"), "goal must be one of level-set, minimum, maximum, got 'optimum'"),
        (lambda: Problem(SPACE, (Task("a"), Task("b")), "maximum"), r"a maximum is of one task, got \['a', 'b'\]"),
        (
            lambda: Problem(SPACE, Task("a", 1, "log-tanh"), "minimum"),
            "'log-tanh' is flat far from a threshold, got goal",
        ),
        (lambda: Task("a", (1.0, 1.0)), "finite and ascending"),
        (lambda: Task("a", math.inf), "finite and ascending"),
        (lambda: Task("a", "high"), "thresholds must be numbers, got 'high'"),
        (lambda: Task("a", 1.0, weight=0), "weight must be positive and finite, got 0"),
        (lambda: Task("a", 0.0, "log"), "needs positive thresholds, got \\(0.0,\\)"),
        (lambda: Task("a", 0.0, "log-tanh"), "the threshold must be positive, got 0.0"),
        (lambda: Task("a", 0.0, "asinh", scale=0), "the scale must be positive and finite, got 0"),
        (lambda: Transform("sqrt"), "must be one of identity, log, asinh, log-tanh, got 'sqrt'"),
        (lambda: Problem(SPACE, ()), "at least one task and no repeated name, got \\[\\]"),
        (lambda: Problem(SPACE, (Task("a"), Task("a"))), "no repeated name, got \\['a', 'a'\\]"),
        (lambda: Problem(SPACE).task("g"), "no task 'g', got tasks \\['f'\\]"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(InvalidProblem, match=message):
        make()


def test_an_optimum_has_no_threshold():
    problem = Problem(SPACE, Task("a", (1.0, 2.0), "asinh", unit="GeV"), "minimum")
    assert problem.task().thresholds == ()
    assert problem.task().levels.shape == (0,)
    assert (problem.sign, Problem(SPACE, goal="maximum").sign, Problem(SPACE).sign) == (-1, 1, 0)
    assert problem.task().map(torch.zeros(1)) == 0


def test_goals_survive_json_and_older_descriptions_are_level_sets():
    for goal in ("level-set", "minimum", "maximum"):
        problem = Problem(SPACE, Task("a", 1.0), goal)
        data = json.loads(json.dumps(problem.to_json()))
        assert Problem.from_json(data) == problem
        assert ("goal" in data) == (goal != "level-set")


# --- what is missing, what is censored


def test_a_missing_value_is_not_a_value():
    outcome = Outcome.of({"observed": None, "expected": 1.2}, variances={"expected": 0.1})
    assert (dict(outcome.values), outcome.missing, outcome.state) == ({"expected": 1.2}, ("observed",), "complete")
    assert outcome == Outcome(values={"expected": 1.2}, variances={"expected": 0.1}, missing=("observed",))
    assert outcome == Outcome.of({"expected": 1.2}, variances={"expected": 0.1}, missing=["observed", "observed"])


def test_a_censored_value_is_a_bound():
    outcome = Outcome.of({"expected": 1.3}, Censored("observed", above=10), Censored("low", below=0.1))
    assert dict(outcome.values) == {"expected": 1.3, "observed": 10.0, "low": 0.1}
    assert dict(outcome.bounds) == {"observed": "above", "low": "below"}
    assert outcome.state == "censored"
    assert Outcome.of({}, Censored("observed", above=10.0)).values["observed"] == 10.0
    assert Outcome.of({"a": 1.0}, Censored("b", below=2.0), bounds={"a": "above"}).bounds == {
        "a": "above",
        "b": "below",
    }


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Censored("f"), "a censored value has one bound, got above=None, below=None"),
        (lambda: Censored("f", above=1.0, below=2.0), "has one bound, got above=1.0, below=2.0"),
        (lambda: Censored("f", above=math.nan), "must not be NaN"),
        (lambda: Censored("f", below="x"), "the value must be a number, got 'x'"),
        (lambda: Outcome.of({"f": 1.0}, Censored("f", above=10.0)), "it has a value or is censored, got 1.0"),
        (lambda: Outcome.of({"f": None}, Censored("f", above=10.0)), "it has a value or is censored, got None"),
        (lambda: Outcome.of({}, Censored("f", above=1.0), Censored("f", below=2.0)), "has a value or is censored"),
        (lambda: Outcome.of({"f": None, "g": None}), r"either values or an error.*missing=\['f', 'g'\]"),
        (lambda: Outcome.of({"f": 1.0}, missing=("f",)), r"either missing or has a value, got both for \['f'\]"),
        (lambda: Outcome(error="no", missing=("f",)), "either values or an error"),
        (lambda: Outcome.of({"f": 1.0, "g": None}, variances={"g": 1.0}), "a variance must .* belong to a value"),
        (lambda: Outcome.of({"f": 1.0, "g": None}, bounds={"g": "above"}), "a bound must .* belong to a value"),
    ],
)
def test_outcomes_that_contradict_themselves(make, says):
    with pytest.raises(InvalidOutcome, match=says):
        make()


def test_a_problem_takes_what_is_missing_on_purpose():
    problem = Problem(SPACE, (Task("observed", 1.0, "log"), Task("expected", 1.0)))
    outcome = Outcome.of({"observed": None, "expected": 1.2})
    assert problem.check(outcome) is outcome
    with pytest.raises(InvalidOutcome, match=r"missing=\['observed'\], unknown=\[\]\. .*give None"):
        problem.check(Outcome.of({"expected": 1.2}))
    with pytest.raises(InvalidOutcome, match=r"missing=\['observed'\], unknown=\['obs'\]"):
        problem.check(Outcome.of({"obs": None, "expected": 1.2}))


# --- fidelities

FAST = Fidelity("fast", cost=2, parameters=["x"], events=(100, 1000), event_cost=0.01)
FULL = Fidelity("full", cost=10.0, events=(1000, 100_000), event_cost=0.1)
PLANE = ParameterSpace.of({"x": (0, 1), "y": (0, 1)})
TWO = Problem(PLANE, (Task(),), fidelities=(Fidelity("paper", None, ("y",)), FAST, FULL))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fidelity(""), "the name must be a non-empty string, got ''"),
        (lambda: Fidelity(3), "the name must be a non-empty string, got 3"),
        (lambda: Fidelity("a", cost=0.0), "the cost must be a positive number, got 0.0. Use None"),
        (lambda: Fidelity("a", cost=-1), "the cost must be a positive number, got -1"),
        (lambda: Fidelity("a", cost=math.nan), "the cost must be a positive number, got nan"),
        (lambda: Fidelity("a", cost=math.inf), "the cost must be a positive number, got inf"),
        (lambda: Fidelity("a", cost="1"), "the cost must be a positive number, got '1'"),
        (lambda: Fidelity("a", cost=True), "the cost must be a positive number, got True"),
        (lambda: Fidelity("a", parameters="x"), "parameters must be a list of names, got 'x'"),
        (lambda: Fidelity("a", parameters=3), "parameters must be a list of names, got 3"),
        (lambda: Fidelity("a", parameters=[1]), r"parameters must be a list of names, got \[1\]"),
        (lambda: Fidelity("a", parameters=()), r"named once each, at least one, got \[\]"),
        (lambda: Fidelity("a", parameters=("x", "x")), "named once each"),
        (lambda: Fidelity("a", events=(0, 5)), r"1 <= least <= most, got \(0, 5\)"),
        (lambda: Fidelity("a", events=(5, 4)), r"1 <= least <= most, got \(5, 4\)"),
        (lambda: Fidelity("a", events=(1.0, 4)), "two whole numbers"),
        (lambda: Fidelity("a", events=5), "two whole numbers"),
        (lambda: Fidelity("a", events=(1, 2, 3)), "two whole numbers"),
        (lambda: Fidelity("a", events=(True, 3)), "two whole numbers"),
        (lambda: Fidelity("a", events=(1, 2), event_cost=-0.1), "event_cost must be a number, at least 0, got -0.1"),
        (lambda: Fidelity("a", event_cost=0.1), "event_cost needs events"),
        (lambda: Fidelity("a", None, events=(1, 2)), "known from tables only has no events to choose"),
        (lambda: Problem(PLANE, fidelities=("fast",)), r"must be Fidelity objects, got \['fast'\]"),
        (lambda: Problem(PLANE, fidelities=(Fidelity("a"), Fidelity("a"))), "name can be used once"),
        (lambda: Problem(PLANE, fidelities=(Fidelity("a", 1, ["z"]), FULL)), r"some of \['x', 'y'\], got \['z'\]"),
        (lambda: Problem(PLANE, fidelities=(FAST, Fidelity("b", None))), "the last fidelity is the one.*must have"),
        (lambda: Problem(PLANE, fidelities=(Fidelity("a", 1, ("x",)),)), "depend on all parameters"),
        (lambda: Problem(PLANE, fidelities=(Fidelity("a", 2), Fidelity("b", 1))), "got 'a' for 2 before 'b' for 1"),
    ],
)  # fmt: skip
def test_fidelities_that_make_no_sense(make, says):
    with pytest.raises(InvalidProblem, match=says):
        make()


def test_levels_count_from_the_dearest():
    assert [TWO.level(name) for name in ("full", "fast", "paper", "")] == [0, 1, 2, 0]
    assert TWO.fidelity("fast") == FAST
    assert TWO.fidelity() == FULL
    assert FAST.parameters == ("x",)
    assert Problem(SPACE).level("") == 0
    for problem, known in ((TWO, r"\['paper', 'fast', 'full'\]"), (Problem(SPACE), "none")):
        with pytest.raises(InvalidProblem, match=f"a fidelity must be one of {known}, got 'slow'"):
            problem.level("slow")
    with pytest.raises(InvalidProblem, match="no fidelity was declared"):
        Problem(SPACE).fidelity()


def test_costs_are_counted_in_evaluations_of_the_dearest_fidelity():
    dearest = 10 + 0.1 * 100_000
    assert TWO.cost() == 1.0
    assert TWO.cost("full", 1000) == pytest.approx(110 / dearest)
    assert TWO.cost("fast", 100) == pytest.approx(3 / dearest)
    assert TWO.cost("fast") == pytest.approx(12 / dearest)
    assert TWO.cost("paper") == 0.0
    trials = [
        Trial(0, {}, 0, 0, fidelity="full", events=1000),
        Trial(1, {}, 0, 0, fidelity="fast", events=100),
        Trial(2, {}, 0, 0, TABLE, fidelity="full"),
        Trial(3, {}, 0, 0, TABLE, fidelity="paper"),
    ]
    assert TWO.spent(trials) == pytest.approx(113 / dearest)
    assert Problem(SPACE).spent([Trial(0, {}, 0, 0), Trial(1, {}, 0, 0), Trial(2, {}, 0, 0, TABLE)]) == 2.0


def test_values_of_the_dearest_fidelity():
    problem = Problem(PLANE, (Task("f"), Task("g")), fidelities=(FAST, FULL))
    known = {"x": 0.1, "y": 0.2}
    trials = [
        Trial(0, known, 0, 0, state="complete", outcome=Outcome.of({"f": 1.0, "g": None}), fidelity="full"),
        Trial(1, known, 0, 0, state="complete", outcome=Outcome.of({"f": 1.0, "g": 2.0}), fidelity="fast"),
        Trial(2, known, 0, 0, state="failed", outcome=Outcome.failed("no"), fidelity="full"),
        Trial(3, known, 0, 0, state="censored", outcome=Outcome.of({"f": None, "g": math.inf})),
        Trial(4, known, 0, 0),
    ]
    assert [t.number for t in problem.valued(trials)] == [0, 3]
    assert [t.number for t in problem.valued(trials, "g")] == [3]


def test_fidelities_survive_json_and_are_not_written_without_any():
    assert Problem.from_json(json.loads(json.dumps(TWO.to_json()))) == TWO
    assert set(Problem(PLANE).to_json()) == {"space", "tasks"}


@given(
    cost=st.none() | st.floats(min_value=5e-324, max_value=1e300),
    parameters=st.none() | st.permutations(["x", "y"]) | st.just(["y"]),
    events=st.none() | st.tuples(st.integers(1, 1000), st.integers(1000, 2**62)),
    event_cost=st.floats(0, 1e200),
    name=st.text(min_size=1).filter(str.strip),
)
def test_any_fidelity_survives_json(cost, parameters, events, event_cost, name):
    fidelity = Fidelity(name, cost, parameters, events if cost else None, event_cost if cost and events else 0.0)
    last = Fidelity(name + "2", max(fidelity.price() * 2, 1e-300))
    problem = Problem(PLANE, (Task(),), fidelities=(fidelity, last))
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem
