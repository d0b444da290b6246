"""Tables that somebody has made already: what they say, what is refused, and what becomes of their rows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from excursion.campaign import Campaign, WarmStart
from excursion.data import TABLE, Censored, Job, Outcome, Proposal
from excursion.errors import (
    InvalidOutcome,
    InvalidPoint,
    InvalidProblem,
    InvalidTable,
    TrialFinished,
    UnknownTrial,
)
from excursion.evaluators.python import Function
from excursion.known import known, parse_cell, read
from excursion.problem import Fidelity, Problem, Task
from excursion.report.tables import points_csv, trials_csv
from excursion.runner import run
from excursion.space import Parameter, ParameterSpace

SPACE = ParameterSpace(
    (Parameter("m", 100, 500, unit="GeV"), Parameter("g", 0.01, 1.0, "log")), ("m * g < 450", "g < 0.95", "m < 498")
)
TASKS = (Task("observed", 1.0, unit="pb"), Task("expected", 1.0))
FIDELITIES = (Fidelity("paper", None, ("m",)), Fidelity("fast", 1.0, events=(10, 100)), Fidelity("full", 10.0))
PROBLEM = Problem(SPACE, TASKS, fidelities=FIDELITIES)
PLAIN = Problem(SPACE, TASKS)
ROWS = [
    {"m": 150.0, "g": 0.1, "observed": 0.5, "expected": 0.25},
    {"m": 200.0, "g": 0.2, "observed": 2.0, "expected": 1.5},
]


def campaign(problem: Problem = PROBLEM) -> Campaign:
    return Campaign.create("memory://", "c", problem)


# --- what a cell says


@pytest.mark.parametrize(
    ("cell", "value", "side"),
    [
        (1, 1.0, None),
        ("1e-3", 1e-3, None),
        (" 2 ", 2.0, None),
        (">10", 10.0, "above"),
        ("> 10", 10.0, "above"),
        (">=10", 10.0, "above"),
        ("<0.1", 0.1, "below"),
        ("<= 0.1", 0.1, "below"),
        ("inf", math.inf, "above"),
        ("-inf", -math.inf, "below"),
        (math.inf, math.inf, "above"),
        *[(empty, None, None) for empty in ("", " ", "-", "NaN", "n/a", None, math.nan, "null")],
    ],
)
def test_cells(cell: Any, value: float | None, side: str | None) -> None:
    assert parse_cell(cell, "here") == (value, side)


@pytest.mark.parametrize("cell", ["x", "1,5", ">", "<x", ">nan", True, [1.0], {}, "10>"])
def test_cells_that_say_nothing(cell: Any) -> None:
    with pytest.raises(InvalidTable, match="here: .*must be a number"):
        parse_cell(cell, "here")


@given(st.floats(allow_nan=False), st.sampled_from(["", ">", "<"]))
def test_any_number_is_read_to_the_last_bit(x: float, mark: str) -> None:
    value, side = parse_cell(f"{mark}{x!r}", "here")
    assert value == x
    infinite = {math.inf: "above", -math.inf: "below"}.get(x)
    assert side == ({">": "above", "<": "below"}.get(mark) or infinite)


# --- files of several kinds


def test_the_same_table_in_all_forms(tmp_path: Any) -> None:
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    text = ",".join(columns) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in ROWS)
    (tmp_path / "a.csv").write_text("# made by hand\n" + text)
    (tmp_path / "b.csv").write_text(text.replace(",", ";"))
    (tmp_path / "records.json").write_text(json.dumps(ROWS))
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    (tmp_path / "columns.yaml").write_text(yaml.safe_dump(columns))
    sources = [ROWS, columns, *sorted(tmp_path.iterdir())]
    assert len(sources) == 7
    for source in sources:
        found = known(PLAIN, source)
        assert found.points == tuple({"m": row["m"], "g": row["g"]} for row in ROWS)
        assert [dict(o.values) for o in found.outcomes] == [
            {"observed": row["observed"], "expected": row["expected"]} for row in ROWS
        ]
        assert (found.outside, found.empty, found.missing) == (0, 0, ())


HEPDATA = {
    "independent_variables": [
        {"header": {"name": "M(SLEPTON)", "units": "GEV"}, "values": [{"value": 150}, {"low": 200, "high": 300}]},
        {"header": {"name": "g"}, "values": [{"value": 0.1}, {"value": "0.2"}]},
    ],
    "dependent_variables": [
        {
            "header": {"name": "Limit", "units": "PB"},
            "qualifiers": [{"name": "SQRT(S)", "units": "GEV", "value": 13000}],
            "values": [
                {"value": 0.5, "errors": [{"symerror": 0.03, "label": "stat"}, {"symerror": "8%", "label": "sys"}]},
                {"value": ">10"},
            ],
        },
        {
            "header": {"name": "Limit", "units": "PB"},
            "values": [{"value": 0.25, "errors": [{"asymerror": {"plus": 0.1, "minus": -0.3}}]}, {"value": "-"}],
        },
    ],
}
OURS = {"M(SLEPTON)": "m", "Limit": "observed", "Limit #2": "expected"}


@pytest.mark.parametrize("form", ["yaml", "json", "txt"])
def test_hepdata(tmp_path: Any, form: str) -> None:
    path = tmp_path / f"table.{form}"
    path.write_text(json.dumps(HEPDATA) if form == "json" else yaml.safe_dump(HEPDATA))
    found = known(PLAIN, path, columns=OURS)
    assert found.points == ({"m": 150.0, "g": 0.1}, {"m": 250.0, "g": 0.2})
    first, second = found.outcomes
    assert dict(first.values) == {"observed": 0.5, "expected": 0.25}
    assert dict(first.variances) == pytest.approx({"observed": 0.03**2 + 0.04**2, "expected": 0.2**2})
    assert second == Outcome.of({"expected": None}, Censored("observed", above=10.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"independent_variables": 3}, "independent_variables must be a list, got 3"),
        ({"dependent_variables": [{"values": []}]}, "needs a header with a name, and values"),
        ({"dependent_variables": [{"header": {"name": "a"}}]}, "needs a header with a name, and values"),
        ({"dependent_variables": [{"header": {"name": "a"}, "values": [1, 2]}]}, "values must be mappings"),
        (
            {"dependent_variables": [{"header": {"name": "observed"}, "values": [{"value": 1}]}]},
            "must have the same number of cells",
        ),
        (
            {
                "dependent_variables": [
                    {"header": {"name": "observed"}, "values": [{"value": 1, "errors": [{"symerror": -1}]}] * 2}
                ]
            },
            "row 1.*a symmetric error must be at least 0, got -1",
        ),
        (
            {
                "dependent_variables": [
                    {"header": {"name": "observed"}, "values": [{"value": 1, "errors": [{"symerror": "x"}]}] * 2}
                ]
            },
            "errors must be numbers",
        ),
    ],
)
def test_hepdata_that_is_none(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidTable, match=says):
        known(PLAIN, HEPDATA | change, columns={"M(SLEPTON)": "m"})


def test_units_must_agree_where_both_are_known() -> None:
    rows = [{"m [TeV]": 0.2, "g": 0.1, "observed": 1.0}]
    with pytest.raises(InvalidTable, match=r"column 'm \[TeV\]' must be in the unit of 'm', GeV, got TeV\. Convert it"):
        known(PLAIN, rows)
    with pytest.raises(InvalidTable, match=r"must be in the unit of 'observed', pb, got fb"):
        known(PLAIN, [{"m": 200.0, "g": 0.1, "observed [fb]": 1.0}])
    for header in ("m", "m [GeV]", "m [GEV]", "m [ GeV]"):
        found = known(PLAIN, [{header: 200.0, "g [1]": 0.1, "observed": 1.0}])
        assert found.points == ({"m": 200.0, "g": 0.1},)
        assert found.missing == ("expected",)


def test_errors_and_bounds_beside_the_values() -> None:
    row = {"m": 200.0, "g": 0.1, "observed": 2.0, "observed_err": 0.5, "expected": 3.0, "expected_bound": "above"}
    (outcome,) = known(PLAIN, [row]).outcomes
    assert outcome == Outcome.of({"observed": 2.0}, Censored("expected", above=3.0), variances={"observed": 0.25})
    (outcome,) = known(PLAIN, [row | {"observed_err": "", "expected_bound": None}]).outcomes
    assert outcome == Outcome.of({"observed": 2.0, "expected": 3.0})
    theirs = {"m": 200.0, "g": 0.1, "CLs": 2.0, "CLs_err": 0.5}
    (outcome,) = known(PLAIN, [theirs], columns={"CLs": "observed"}).outcomes
    assert dict(outcome.variances) == {"observed": 0.25}
    for error in (-0.5, math.inf, "x"):
        with pytest.raises(InvalidTable, match=r"table, row 1, column 'observed_err': (a standard error )?must be"):
            known(PLAIN, [row | {"observed_err": error}])
    with pytest.raises(InvalidTable, match="a bound must be 'above', 'below' or empty, got 'up'"):
        known(PLAIN, [row | {"expected_bound": "up"}])
    with pytest.raises(InvalidTable, match="'observed' must have one standard error"):
        known(PLAIN, [row | {"observed_sd": 0.5}])


def test_what_a_campaign_exports_can_be_imported(tmp_path: Any) -> None:
    first = campaign(PLAIN)
    trials = first.add([{"m": row["m"], "g": row["g"]} for row in ROWS])
    first.tell(trials[0].number, Outcome.of({"observed": 0.5, "expected": None}, variances={"observed": 0.25}))
    first.tell(trials[1].number, Outcome.of({"expected": 1.0}, Censored("observed", above=10.0)))
    first.add([{"m": 400.0, "g": 0.1}])
    (tmp_path / "trials.csv").write_text(trials_csv(first))
    second = campaign(PLAIN)
    assert second.warm_start(tmp_path / "trials.csv") == WarmStart(2, empty=1)
    assert [t.outcome for t in second.trials] == [t.outcome for t in first.trials[:2]]


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ([], {}, "must have rows, got none"),
        ([1, 2], {}, "row 1: must be a record"),
        (3, {}, "must be records or columns, got int"),
        ({"m": "abc"}, {}, "column 'm' must be a list"),
        ({"m": [1.0], "g": []}, {}, "must have the same number of cells"),
        ([{"mass": 200.0, "g": 0.1, "observed": 1.0}], {},
         r"none for \['m'\]\. Columns are \['mass', 'g', 'observed'\]: name them with columns=\{'theirs': 'm'\}"),
        ([{"m": 200.0, "g": 0.1, "obs": 1.0}], {},
         r"one of the tasks \['observed', 'expected'\] at least, got none\. Columns are \['m', 'g', 'obs'\]"),
        ([{"m": 200.0, "g": 0.1, "obs": 1.0}], {"Obs": "observed"}, r"must name a column of the table, got 'Obs'"),
        ([{"m": 200.0, "g": 0.1, "obs": 1.0}], {"obs": "limit"}, r"must be called as a parameter .*got 'limit'"),
        ([{"m": 200.0, "g": 0.1, "a": 1.0, "b": 1.0}], {"a": "observed", "b": "observed"}, "must be one column"),
        ([{"m": 200.0, "m [GeV]": 200.0, "g": 0.1, "observed": 1.0}], {}, "must be one column"),
        ([{"m": 200.0, "g": 0.1, "observed": "x"}], {}, "row 1, column 'observed': must be a number.*got 'x'"),
        ([{"m": "", "g": 0.1, "observed": 1.0}], {}, "row 1, column 'm': a parameter must be a finite number, got ''"),
        ([{"m": ">200", "g": 0.1, "observed": 1.0}], {}, "a parameter must be a finite number, got '>200'"),
        ([{"m": "inf", "g": 0.1, "observed": 1.0}], {}, "a parameter must be a finite number, got 'inf'"),
        ([{"m": 0.2, "g": 0.1, "observed": 1.0}], {}, r"m in \[100, 500\] GeV, .*got none of 1\. Check the units"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(rows: Any, columns: dict[str, str], says: str) -> None:
    c = campaign(PLAIN)
    with pytest.raises(InvalidTable, match=says):
        c.warm_start(rows, columns=columns)
    assert c.trials == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", "got an empty file"),
        ("a.csv", "m,g,observed\n1,2\n", "row 1: must have one cell for each of the 3 columns, got 2"),
        ("a.csv", "m,m,observed\n1,2,3\n", "columns must have different names"),
        ("a.json", "[1", "must be JSON"),
        ("a.json", "[1]", "row 1: must be a record"),
        ("a.yaml", "a: [", "must be YAML, got a problem"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "must be YAML, got a problem"),
        ("a.yaml", "3", "must be records or columns, got int"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Any, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidTable, match=says):
        read(tmp_path / name)
    with pytest.raises(InvalidTable, match="must be a readable file"):
        read(tmp_path / "none.csv")


def test_a_value_that_no_transform_takes_names_its_row() -> None:
    problem = Problem(SPACE, (Task("observed", 1.0, "log"),))
    rows = [{"m": 200.0, "g": 0.1, "observed": y} for y in (1.0, -1.0)]
    with pytest.raises(InvalidTable, match=r"table, row 2: outcome of task 'observed': .*needs positive values"):
        known(problem, rows)


# --- warm starts


def test_rows_become_finished_trials_that_cost_nothing() -> None:
    c = campaign()
    (before,) = c.add([{"m": 300.0, "g": 0.1}])
    told = c.warm_start([*ROWS, {"m": 250.0, "g": 0.3, "observed": None, "expected": "<2"}], "full")
    assert told == WarmStart(3)
    assert str(told) == "3 rows used"
    new = c.trials[1:]
    assert [(t.state, t.fidelity, t.criterion, t.told) for t in new] == [
        ("complete", "full", TABLE, 0),
        ("complete", "full", TABLE, 1),
        ("censored", "full", TABLE, 2),
    ]
    assert new[2].outcome == Outcome.of({"observed": None}, Censored("expected", below=2.0))
    assert len({t.seed for t in c.trials}) == 4
    assert PROBLEM.spent(c.trials) == PROBLEM.cost("full") == 1.0
    assert before.fidelity == "full"


def test_rows_outside_are_counted_and_left_out() -> None:
    rows = [
        *ROWS,
        {"m": 99.0, "g": 0.1, "observed": 1.0, "expected": 1.0},  # out of range
        {"m": 480.0, "g": 0.94, "observed": 1.0, "expected": 1.0},  # forbidden
        {"m": 200.0, "g": 0.0, "observed": 1.0, "expected": 1.0},  # has no logarithm
        {"m": 200.0, "g": 0.1, "observed": "", "expected": "nan"},  # empty
        ROWS[0],  # again
    ]
    c = campaign()
    told = c.warm_start(rows, "fast")
    assert told == WarmStart(2, outside=3, empty=1, repeated=1)
    assert str(told) == "2 rows used; left out: 3 outside the space, 1 without a value, 1 told before"
    assert len(c.trials) == 2


def test_a_table_told_twice_adds_nothing() -> None:
    c = campaign()
    assert c.warm_start(ROWS, "fast").used == 2
    assert c.warm_start(ROWS, "fast") == WarmStart(0, repeated=2)
    assert c.warm_start(ROWS, "full").used == 2  # another fidelity
    changed = [ROWS[0] | {"observed": 0.6}, ROWS[1] | {"observed_err": 0.1}]
    assert c.warm_start(changed, "fast").used == 2  # other values, other errors
    assert c.warm_start([{**ROWS[0], "expected": ""}], "fast").used == 1
    assert len(c.trials) == 7


def test_a_fidelity_that_depends_on_some_parameters_needs_only_these() -> None:
    c = campaign()
    told = c.warm_start(
        [{"m": 480.0, "observed": 1.0}, {"m": 501.0, "observed": 1.0}, {"m": 499.0, "observed": 1.0}], "paper"
    )  # the last one is forbidden
    assert told == WarmStart(1, outside=2, missing=("expected",))
    assert str(told) == "1 rows used; left out: 2 outside the space; no column for expected"
    (trial,) = c.trials
    assert trial.x == {"m": 480.0, "g": pytest.approx(0.1)}  # the middle of a log scale
    # A column of a parameter that the fidelity does not depend on is not looked at.
    assert c.warm_start([{"m": 480.0, "g": 0.5, "observed": 1.0}], "paper") == WarmStart(
        0, repeated=1, missing=("expected",)
    )


def test_it_must_be_said_which_fidelity_a_table_holds() -> None:
    c = campaign()
    with pytest.raises(InvalidProblem, match=r"a table holds one of the fidelities \['paper', 'fast', 'full'\]"):
        c.warm_start(ROWS)
    with pytest.raises(InvalidProblem, match="a fidelity must be one of .*, got 'slow'"):
        c.warm_start(ROWS, "slow")
    with pytest.raises(InvalidProblem, match="a fidelity must be one of none, got 'full'"):
        campaign(PLAIN).warm_start(ROWS, "full")
    assert c.trials == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(100, 500),
            st.floats(0.01, 0.9),
            st.none() | st.floats(-1e30, 1e30) | st.sampled_from([math.inf, -math.inf]),
            st.floats(0, 1e10),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda r: r[0],
    )
)
def test_any_table_survives_csv(tmp_path_factory: Any, rows: list[tuple[Any, ...]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    lines = [f"{m!r},{g!r},{'' if y is None else repr(y)},{e!r},1" for m, g, y, e in rows]
    path.write_text("\n".join(["m,g,observed,observed_err,expected", *lines]))
    space = ParameterSpace(SPACE.parameters)
    c = campaign(Problem(space, TASKS))
    assert c.warm_start(path).used == len(rows)
    for trial, (m, g, y, e) in zip(c.trials, rows):
        assert trial.x == {"m": m, "g": g}
        assert trial.outcome == Outcome.of(
            {"observed": y, "expected": 1.0}, variances={} if y is None else {"observed": e**2}
        )
    assert c.warm_start(path).repeated == len(rows)


# --- points of one's own, limits


def test_points_of_ones_own_have_fidelity_and_events() -> None:
    c, point = campaign(), {"m": 200.0, "g": 0.1}
    trials = c.add([point, point]) + c.add([point], fidelity="fast") + c.add([point], fidelity="fast", events=20)
    assert [(t.fidelity, t.events) for t in trials] == [("full", None), ("full", None), ("fast", 100), ("fast", 20)]
    assert len({t.seed for t in trials}) == 4
    with pytest.raises(InvalidPoint, match="known from tables only, got points to evaluate"):
        c.add([point], fidelity="paper")
    with pytest.raises(InvalidProblem, match="got 'slow'"):
        c.add([point], fidelity="slow")
    for events in (0, -1, 1.5, True, "5"):
        with pytest.raises(InvalidPoint, match="the events must be a positive whole number"):
            c.add([point], events=events)
    assert len(c.trials) == 4
    (plain,) = campaign(PLAIN).add([point], events=7)
    assert (plain.fidelity, plain.events) == ("", 7)


def test_the_limit_counts_evaluations_and_not_rows_of_tables() -> None:
    c = campaign(PLAIN)
    c.warm_start([{"m": 110.0 + i, "g": 0.1, "observed": 1.0, "expected": 1.0 + i} for i in range(5)])
    assert len(c.ask(3, limit=2)) == 2
    assert c.ask(3, limit=2) == []


def test_what_is_left_pays_for_so_many() -> None:
    assert PROBLEM.affordable(math.inf) == math.inf
    assert PLAIN.affordable(2.0) == 2
    assert PLAIN.affordable(0.999) == 0
    assert PROBLEM.affordable(1.0) == 10  # one full evaluation pays for ten fast ones; the paper is not for sale
    by_events = replace(PROBLEM, fidelities=(Fidelity("full", 1.0, events=(1, 9), event_cost=1.0),))
    assert by_events.affordable(1.0) == 5  # one event costs 2, the most 10
    mixed = [Proposal({}, 0, fidelity=name) for name in ("fast", "full", "fast")]
    assert [len(PROBLEM.within(mixed, left)) for left in (0.05, 0.1, 1.0, 1.1, 1.2, 9.0)] == [0, 1, 1, 2, 3, 3]


def test_a_run_spends_its_budget_by_cost() -> None:
    seen = []

    def function(p: dict[str, float], fidelity: str, events: int | None) -> dict[str, float]:
        seen.append((fidelity, events))
        return {"observed": p["m"] / 300, "expected": p["g"]}

    problem = replace(PROBLEM, fidelities=(FIDELITIES[1], Fidelity("full", 10.0, events=(5, 50))))
    c = campaign(problem)
    c.warm_start(ROWS, "full")
    point = {"m": 200.0, "g": 0.1}
    c.add([point] * 5, fidelity="fast")  # each a tenth of a full one
    report = run(c, Function(function), budget=2, workers=1, progress=False)
    # Whatever is asked for, what is left in the end pays for no more of it and is not waited for.
    assert (report.reason, report.evaluations) == ("budget", len(seen))
    assert seen[:5] == [("fast", 100)] * 5
    assert len(seen) > 5
    assert {name for name, _ in seen} <= {"fast", "full"}
    spent = sum(problem.cost(*job) for job in seen)
    assert problem.spent(c.trials) == pytest.approx(spent)
    assert 1.0 < spent <= 2.0 + 1e-9
    again = run(c, Function(function), budget=2, workers=1, progress=False)
    assert (again.reason, again.evaluations) == ("budget", 0)


# --- bounds that contradict what is known


def test_a_bound_on_the_wrong_side_is_refused() -> None:
    c, point = campaign(), {"m": 200.0, "g": 0.1}
    exact, noisy, again, elsewhere, fast = (
        *c.add([point, point, point, {"m": 201.0, "g": 0.1}]),
        *c.add([point], fidelity="fast"),
    )
    c.tell(exact.number, {"observed": 2.0, "expected": None})
    for bound in (Censored("observed", above=10.0), Censored("observed", above=2.01), Censored("observed", below=1.9)):
        with pytest.raises(InvalidOutcome, match=r"'observed': a bound must agree.*trial 0, where it is 2\."):
            c.tell(again.number, Outcome.of({"expected": 1.0}, bound))
    with pytest.raises(InvalidOutcome, match="where it is 2"):
        c.tell(again.number, {"observed": math.inf, "expected": 1.0})
    assert [t.state for t in c.trials] == ["complete", *["queued"] * 4]
    # Not contradicted: another point, another fidelity, another task, the right side.
    c.tell(elsewhere.number, Outcome.of({"expected": 1.0}, Censored("observed", above=10.0)))
    c.tell(fast.number, Outcome.of({"expected": 1.0}, Censored("observed", above=10.0)))
    c.tell(noisy.number, Outcome.of({"observed": 2.5}, Censored("expected", above=10.0)))
    assert c.tell(again.number, Outcome.of({"expected": None}, Censored("observed", above=2.0))).state == "censored"


def test_bounds_do_not_contradict_each_other() -> None:
    c, point = campaign(PLAIN), {"m": 200.0, "g": 0.1}
    first, second = c.add([point, point])
    c.tell(first.number, Outcome.of({"expected": 1.0}, Censored("observed", above=5.0)))
    assert c.tell(second.number, Outcome.of({"expected": 1.0}, Censored("observed", above=10.0))).state == "censored"


def test_a_bound_may_differ_by_five_standard_deviations() -> None:
    c, point = campaign(PLAIN), {"m": 200.0, "g": 0.1}
    first, second = c.add([point, point])
    c.tell(first.number, Outcome.of({"observed": 2.0, "expected": 1.0}, variances={"observed": 0.04}))
    with pytest.raises(InvalidOutcome, match=r"where it is 2 \+- 0\.2"):
        c.tell(second.number, Outcome.of({"expected": 1.0}, Censored("observed", above=3.01)))
    assert c.tell(second.number, Outcome.of({"expected": 1.0}, Censored("observed", above=2.99))).state == "censored"


def test_a_value_on_the_wrong_side_of_a_bound_is_refused() -> None:
    c, point = campaign(PLAIN), {"m": 200.0, "g": 0.1}
    first, second = c.add([point, point])
    c.tell(first.number, Outcome.of({"expected": 1.0}, Censored("observed", above=5.0)))
    with pytest.raises(
        InvalidOutcome, match=r"'observed': a value must agree.*got 4 at .*trial 0, where it is above 5"
    ):
        c.tell(second.number, {"observed": 4.0, "expected": 1.0})
    with pytest.raises(InvalidOutcome, match="a value must agree"):
        c.tell(second.number, Outcome.of({"observed": 4.0, "expected": 1.0}, variances={"observed": 0.03}))
    noisy = Outcome.of({"observed": 4.0, "expected": 1.0}, variances={"observed": 0.05})
    assert c.tell(second.number, noisy).state == "complete"


def test_a_table_that_contradicts_what_is_known_is_refused() -> None:
    c = campaign()
    trials = c.add([{"m": 200.0, "g": 0.1}, {"m": 300.0, "g": 0.1}], fidelity="fast")
    c.tell(trials[0].number, {"observed": 2.0, "expected": None})
    c.tell(trials[1].number, Outcome.of({"expected": None}, Censored("observed", below=1.0)))
    before = c.trials

    def told(*rows: tuple[float, Any], fidelity: str = "fast") -> Any:
        return c.warm_start([{"m": m, "g": 0.1, "observed": value} for m, value in rows], fidelity)

    outside = (9e9, 1.0)
    with pytest.raises(InvalidTable, match=r"table, row 3: .* got above 10 at the point of trial 0, where it is 2\. C"):
        told((400.0, 1.0), outside, (200.0, ">10"))
    with pytest.raises(
        InvalidTable, match=r"table, row 1: .* got 1.5 at the point of trial 1, where it is below 1\. C"
    ):
        told((300.0, 1.5))
    with pytest.raises(InvalidTable, match=r"table, row 3: .* got below 3 at the point of row 2, where it is 4\. C"):
        told(outside, (350.0, 4.0), (350.0, "<3"))
    assert c.trials == before
    # Another fidelity may.
    assert told((200.0, ">10"), (300.0, 1.5), fidelity="full").used == 2


def test_answers_in_a_table_must_agree_with_each_other() -> None:
    c, point = campaign(PLAIN), {"m": 200.0, "g": 0.1}
    c.add([point, point])
    rows = [{"number": i, "observed": value, "expected": 1.0} for i, value in enumerate(("2.0", ">3"))]
    with pytest.raises(InvalidOutcome, match="got above 3 at the point of trial 0, where it is 2"):
        c.tell_table(rows)
    assert all(t.pending for t in c.trials)


def test_bounds_of_a_fidelity_compare_the_parameters_it_depends_on() -> None:
    c = campaign()
    c.warm_start([{"m": 200.0, "observed": 2.0}], "paper")
    proposal = Proposal({"m": 200.0, "g": 0.5}, 0, fidelity="paper")
    (trial,) = c.store.add("c", [proposal], after=1, seeds=[0])
    with pytest.raises(InvalidOutcome, match="a bound must agree"):
        c.tell(trial.number, Outcome.of({"expected": None}, Censored("observed", above=3.0)))


# --- several answers in a table


def test_a_table_that_was_asked_for_comes_back_filled_in(tmp_path: Any) -> None:
    c = campaign()
    trials = c.add([{"m": row["m"], "g": row["g"]} for row in ROWS], fidelity="fast", events=50)
    trials += c.add([{"m": 1 / 3 + 200, "g": 0.1}])
    header, *lines = points_csv(PROBLEM, trials).splitlines()
    assert header == "number,m,g,fidelity,events,seed,observed,expected"
    assert lines[0] == f"0,150.0,0.1,fast,50,{trials[0].seed},,"
    assert lines[2].startswith("2,200.33333333333334,0.1,full,,")
    filled = [header, lines[0][:-1] + ">10,", lines[1], lines[2][:-1] + "0.5,0.25"]
    (tmp_path / "a.csv").write_text("\n".join(filled))
    told = c.tell_table(tmp_path / "a.csv")
    assert [t.number for t in told] == [0, 2]
    assert told[0].outcome == Outcome.of({"expected": None}, Censored("observed", above=10.0))
    assert told[1].outcome == Outcome.of({"observed": 0.5, "expected": 0.25})
    assert [t.state for t in c.trials] == ["censored", "queued", "complete"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"number": 7}, UnknownTrial, "no trial of this number, got 7"),
        ({"number": -1}, UnknownTrial, "no trial of this number, got -1"),
        ({"number": 0}, InvalidTable, "once each"),
        ({"number": 0.5}, InvalidTable, "must be the number of a trial"),
        ({"number": "inf"}, InvalidTable, "must be the number of a trial"),
        ({"number": 2}, TrialFinished, "a finished trial cannot change, .* trial 2"),
        ({"fidelity": "full"}, InvalidTable, "trial 1: 'fidelity' must be what was asked for, 'fast', got 'full'"),
        ({"events": "51"}, InvalidTable, "trial 1: 'events' must be what was asked for, 50, got '51'"),
        ({"m": 200.5}, InvalidTable, "trial 1: 'm' must be what was asked for"),
        ({"observed": "x"}, InvalidTable, "row 2, column 'observed': must be a number"),
    ],
)
def test_answers_that_fit_no_question_change_nothing(change: dict[str, Any], error: type, says: str) -> None:
    c = campaign()
    c.add([{"m": 150.0, "g": 0.1}, {"m": 200.0, "g": 0.2}], fidelity="fast", events=50)
    (other,) = c.add([{"m": 150.0, "g": 0.1}])
    c.tell(other.number, {"observed": 1.0, "expected": 1.0})
    rows = [{"number": i, "fidelity": "fast", "events": "50"} | row for i, row in enumerate(ROWS)]
    rows[1] |= change
    if change == {"number": 2}:
        rows[1] |= {"m": 150.0, "g": 0.1, "fidelity": "full", "events": ""}
    with pytest.raises(error, match=says):
        c.tell_table(rows)
    assert [t.state for t in c.trials] == ["queued", "queued", "complete"]
    with pytest.raises(InvalidTable, match=r"needs the columns 'number' and .*got none for \['number', 'expected'\]"):
        c.tell_table([{"observed": 1.0}])


# --- what docs/fidelities.md shows


def test_the_documented_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "fidelities.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    promised = [line.split("# ", 1)[1].split(": a")[0] for line in text.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == promised == ["3 rows used; left out: 1 outside the space", "0.01"]
    assert [t.state for t in names["campaign"].trials] == ["complete", "censored"]
    outcome = Function(names["limit"]).evaluate(Job({"m_slepton": 420.0}, fidelity="fast", events=100, seed=2))
    assert outcome.values["f"] == pytest.approx(1.11)
