from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

import excursion
from excursion.acquisition import Search, Sobol
from excursion.belief import observations
from excursion.cli import app
from excursion.data import Outcome, Trial
from excursion.errors import InvalidProblem, InvalidSpace, InvalidStrategy, InvalidTable
from excursion.proposal import Strategy
from excursion.report.plot import plot_replay
from excursion.report.tables import replayed, replayed_json
from excursion.shadow import Curve, read_table, replay
from excursion.surrogate import GaussianProcess

QUICK = Strategy(
    surrogate=GaussianProcess(kernel="matern52", metric="ard", restarts=1),
    search=Search(candidates=64, integration=64, polish=0),
)


def value(m: float, g: float) -> float:
    return (m / 100 - 2.4) ** 2 + 2 * (g - 0.3) ** 2


def scan(columns: int = 12, rows: int = 10) -> list[dict[str, float]]:
    return [
        {"id": float(i * rows + j), "m": m, "g": g, "lumi": 139.0, "mu": value(m, g)}
        for i, m in enumerate(np.linspace(100, 400, columns))
        for j, g in enumerate(np.linspace(0, 1, rows))
    ]


def write(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def found() -> excursion.Replay:
    return replay(scan(), 1.0, parameters=["m", "g"], transform="identity", strategy=QUICK, batch=2)


# --- what is found


def test_a_fraction_of_the_table_is_enough(found: excursion.Replay) -> None:
    assert found.points == 120
    assert found.failed == 0
    assert 8 < found.needed < 45
    assert found.random.needed(0.01) is None or found.random.needed(0.01) > found.needed
    assert found.curve.error[0] > 0.1
    assert f"{found.needed} of 120 points" in repr(found)
    assert found.problem.space.names == ("m", "g")
    assert found.problem.tasks[0].thresholds == (1.0,)


def test_only_points_of_the_table_are_asked_each_once_and_the_table_answers(found: excursion.Replay) -> None:
    table = {(row["m"], row["g"]): row["mu"] for row in scan()}
    asked = [(t.x["m"], t.x["g"]) for t in found.history]
    assert len(set(asked)) == len(asked)
    assert all(t.outcome.values["mu"] == table[tuple(t.x.values())] for t in found.history)
    assert [t.number for t in found.history] == [t.told for t in found.history] == list(range(len(asked)))
    assert [t.after for t in found.history[:6]] == [0, 0, 2, 2, 4, 4]
    criteria = [t.criterion for t in found.history]
    assert criteria[:8] == ["design"] * 8
    assert set(criteria[8:]) <= {"SUR", "exploration"}
    assert "SUR" in criteria


def error_of(problem: excursion.Problem, asked: list[dict[str, float]]) -> float:
    """From the definition: a fit to these rows of the scan, and a loop over the table."""
    trials = [
        Trial(i, {k: row[k] for k in "mg"}, 0, 0, state="complete", outcome=Outcome.of({"mu": row["mu"]}))
        for i, row in enumerate(asked)
    ]
    belief = QUICK.surrogate.fit(observations(problem, trials))
    wrong = 0
    for row in scan():
        u = problem.space.to_unit(torch.tensor([[row["m"], row["g"]]], dtype=torch.float64))
        wrong += row not in asked and (float(belief.marginal(u)[0][0, 0]) >= 1.0) != (row["mu"] >= 1.0)
    return wrong / 120


def test_the_error_is_that_of_the_belief(found: excursion.Replay) -> None:
    points = [tuple(t.x.values()) for t in found.history[:10]]
    error = error_of(found.problem, [row for p in points for row in scan() if (row["m"], row["g"]) == p])
    assert error > 0
    assert found.curve.at(10) == pytest.approx(error)


def test_random_orders_are_compared_by_their_median(found: excursion.Replay) -> None:
    rows = scan()
    n = found.random.evaluations[5]
    errors = [
        error_of(found.problem, [rows[j] for j in np.random.default_rng((0, i)).permutation(120)[:n]]) for i in range(3)
    ]
    assert len(set(errors)) == 3
    assert found.random.at(n) == pytest.approx(sorted(errors)[1])


def test_known_points_count_by_their_value_where_the_belief_smooths_over_them() -> None:
    values = np.arange(60) / 30 + np.random.default_rng(5).normal(0, 0.5, 60)
    rows = [{"x": float(i), "f": float(v)} for i, v in enumerate(values)]
    strategy = Strategy(surrogate=GaussianProcess(kernel="rbf", restarts=1), search=QUICK.search)
    result = replay(rows, 1.0, strategy=strategy, batch=20, goal=0.001, orders=0, transform="identity")
    assert result.curve.evaluations[-1] == 60
    belief = strategy.surrogate.fit(observations(result.problem, result.history))
    mean = belief.marginal(result.problem.space.to_unit(torch.arange(60.0, dtype=torch.float64)[:, None]))[0][0]
    assert ((mean >= 1).numpy() != (values >= 1)).any()
    assert result.curve.error[-1] == 0.0


def test_it_goes_on_until_the_error_has_stayed_below(found: excursion.Replay) -> None:
    assert len(found.history) == found.curve.evaluations[-1]
    assert found.needed + 10 <= len(found.history) <= found.needed * 1.25 + 12
    assert found.random.evaluations[-1] == min(3 * found.needed, 120)
    assert found.needed in found.random.evaluations


def test_a_seed_fixes_everything_and_another_changes_it(found: excursion.Replay) -> None:
    again = replay(scan(), 1.0, parameters=["m", "g"], transform="identity", strategy=QUICK, batch=2)
    assert (again.curve, again.random) == (found.curve, found.random)
    other = replay(scan(), 1.0, parameters=["m", "g"], transform="identity", strategy=QUICK, batch=2, seed=1, orders=0)
    assert [t.x for t in other.history] != [t.x for t in found.history]
    assert other.random.evaluations == ()


def test_the_design_does_not_depend_on_the_batch(found: excursion.Replay) -> None:
    one = replay(scan(), 1.0, parameters=["m", "g"], strategy=QUICK, batch=1, orders=0)
    assert [t.x for t in one.history[:8]] == [t.x for t in found.history[:8]]
    u = found.problem.space.to_unit(found.problem.space.tensor([t.x for t in one.history[:8]]))
    assert torch.nn.functional.pdist(u).min() > 0.2


def test_the_table_may_be_used_up() -> None:
    """A value that follows no rule: every point is needed, and the error ends at 0."""
    rng = np.random.default_rng(3)
    rows = [{"x": float(x), "f": float(v)} for x, v in zip(range(16), rng.permutation([0.0, 2.0] * 8))]
    result = replay(rows, 1.0, strategy=QUICK, batch=3, goal=0.001, orders=1)
    assert result.curve.evaluations[-1] == 16
    assert result.curve.error[-1] == result.random.error[-1] == 0.0
    assert len({t.x["x"] for t in result.history}) == 16


@pytest.mark.parametrize(("error", "needed"), [((0.3, 0.01, 0.2, 0.01), 4), ((0.3, 0.0, 0.0), 2), ((0.3, 0.02), None)])
def test_needed_means_from_there_on(error: tuple[float, ...], needed: int | None) -> None:
    curve = Curve(tuple(range(1, len(error) + 1)), error)
    assert curve.needed(0.01) == needed
    assert curve.at(2) == error[1]
    assert curve.at(99) == error[-1]
    assert math.isnan(curve.at(0))


# --- failures, infinite values, columns


def test_failed_points_cost_and_tell_nothing_and_infinite_ones_count() -> None:
    rows = scan()
    for row in rows:
        if row["m"] > 330 and row["g"] > 0.8:
            row["mu"] = math.nan
        elif row["m"] > 370:
            row["mu"] = math.inf
    missing = sum(math.isnan(row["mu"]) for row in rows)
    result = replay(rows, 1.0, parameters=["m", "g"], strategy=QUICK, batch=4, orders=1)
    assert (result.points, result.failed) == (120, missing)
    assert result.needed < 70
    states = {t.state for t in result.history}
    assert states <= {"complete", "invalid", "censored"}
    for t in result.history:
        assert (t.state == "invalid") == (t.x["m"] > 330 and t.x["g"] > 0.8)
    # The error is a fraction of the points with values.
    wrong = np.array(result.curve.error) * (120 - missing)
    assert np.allclose(wrong, wrong.round())


def test_rows_and_values_can_be_left_out_by_expressions() -> None:
    rows = [{**row, "status": float(row["g"] > 0.95)} for row in scan()]
    rows = [{k: row[k] for k in ("m", "g", "status", "mu")} for row in rows]
    result = replay(
        rows, 1.0, parameters=["m", "g"], constraints=["m > 150", "g < 0.99"], where="status == 0",
        strategy=Strategy(acquisition=Sobol(), surrogate=QUICK.surrogate), batch=10, goal=0.2, orders=0,
    )  # fmt: skip
    assert (result.points, result.failed) == (90, 0)
    result = replay(
        rows, 1.0, parameters=["m", "g"], where="status == 0",
        strategy=Strategy(acquisition=Sobol(), surrogate=QUICK.surrogate), batch=10, goal=0.2, orders=0,
    )  # fmt: skip
    assert (result.points, result.failed) == (120, 12)


def test_columns_are_chosen_and_renamed() -> None:
    rows = [{"m(Z') [GeV]": row["m"], "g": row["g"] + 0.1, "lumi": 139.0, "mu": row["mu"]} for row in scan(8, 6)]
    result = replay(
        rows, 1.0, log=["g"], constraints=["m_Z_GeV > 110"], strategy=QUICK, batch=10, goal=0.3, orders=0,
        transform="log",
    )  # fmt: skip
    m, g = result.problem.space.parameters
    assert (m.name, m.label, m.lower, m.upper) == ("m_Z_GeV", "m(Z') [GeV]", pytest.approx(1000 / 7), 400)
    assert (g.name, g.scale, g.lower) == ("g", "log", pytest.approx(0.1))
    assert result.problem.tasks[0].transform == "log"
    last = list(rows[0])[:1]
    result = replay(rows, 250, parameters=["g", "mu"], output=last[0], strategy=QUICK, batch=10, goal=0.3, orders=0)
    assert result.problem.task_names == ("m(Z') [GeV]",)


def test_repeated_rows_count_once() -> None:
    rows = scan(6, 5)
    again = replay([*rows, *rows[:7]], 1.0, parameters=["m", "g"], strategy=QUICK, batch=10, goal=0.3, orders=0)
    assert again.points == 30
    with pytest.raises(InvalidTable, match="needs at least 10 different points, got 9 in 18 rows"):
        replay(scan(3, 3) * 2, 1.0, parameters=["m", "g"])


# --- reading


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path: Path, delimiter: str) -> None:
    rows: list[dict[str, object]] = [{"m": 1.5, "note": "a b", "mu": ""}, {"m": 2, "note": "c", "mu": "inf"}]
    path = write(tmp_path / "scan.csv", rows, delimiter)
    path.write_text("\ufeff# from HEPData\n" + path.read_text() + "\n")
    assert read_table(path) == [{"m": "1.5", "note": "a b", "mu": ""}, {"m": "2", "note": "c", "mu": "inf"}]


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    rows = [{"m": row["m"], "g": row["g"], "mu": row["mu"]} for row in scan(8, 6)]
    (tmp_path / "scan.json").write_text(json.dumps([*rows[:-1], rows[-1] | {"mu": None}]))
    write(tmp_path / "scan.csv", [*rows[:-1], rows[-1] | {"mu": ""}])
    settings = {"strategy": QUICK, "batch": 10, "goal": 0.3, "orders": 0}
    a, b = (replay(tmp_path / name, 1.0, **settings) for name in ("scan.csv", "scan.json"))
    assert a == b
    assert (a.points, a.failed) == (48, 1)


BAD = [
    ({"output": "CLs"}, r"output must name a column, got 'CLs'. Columns are \['id', 'm', 'g', 'lumi', 'mu'\]"),
    ({"parameters": ["m", "gg"]}, "parameters must name a column, got 'gg'"),
    ({"parameters": ["m", "mu"]}, "parameters must be different columns and not the output 'mu'"),
    ({"parameters": ["m", "lumi"]}, r"parameters must vary, got one value only in \['lumi'\]"),
    ({"parameters": ["m"]}, r"a point must have one value, got 2.14 in row 1 and 2.03136 in row 2 at m=100"),
    ({"log": ["lumi"]}, r"log scales are for parameters, got \['lumi'\]"),
    ({"threshold": 50.0}, "must have values on both sides of the threshold 50, got 120 values from 0.0"),
    ({"where": "mu < 0"}, "on both sides of the threshold 1, got no value at all"),
    ({"constraints": ["m < 110"]}, r"parameters must vary, got one value only in \['m'\]"),
    (
        {"constraints": ["m < 140", "g < 0.4"]},
        r"needs at least 10 rows, got 8 of 120 in which \['m < 140', 'g < 0.4'\]",
    ),
    ({"where": "status == 0"}, "must use the columns, got status. Columns are called id, m, g, lumi, mu"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_tables_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidTable, match=message):
        replay(scan(), **({"parameters": ["m", "g"]} | settings), strategy=QUICK)


def test_cells_that_are_no_numbers(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [dict(row) for row in scan(4, 4)]
    for column, cell, message in (
        ("mu", "n/a", r"scan.csv, row 6, column 'mu': must be a number, got 'n/a'. Leave it empty if"),
        ("m", "", r"row 6, column 'm': must be a finite number, got ''. Correct it, or name other parameters"),
        ("g", "inf", "row 6, column 'g': must be a finite number, got 'inf'"),
    ):
        bad = [*rows[:5], rows[5] | {column: cell}, *rows[6:]]
        with pytest.raises(InvalidTable, match=message):
            replay(write(tmp_path / "scan.csv", bad), 1.0, parameters=["m", "g"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a readable file, got No such file"),
        ("", "must have a header and rows, got an empty file"),
        ("a,b\n1,2\n3\n", r"row 2: must have one cell for each of the 2 columns, got 1"),
        ("a,a\n1,2\n", r"columns must have different names, got \['a', 'a'\]"),
        ("a,b\n1,2\n", "needs at least 10 rows, got 1. Give a larger scan"),
        ("[1, 2]", r"must be a list of objects, got \[1, 2\]"),
        ("[{", "must be JSON, got Expecting"),
        (b"\xff\xfe", "must be UTF-8 text, got invalid start byte at byte 0"),
        (json.dumps([{"a": 1, "b": 2}] * 10 + [{"a": 1}]), r"row 11: must have the columns of the first row"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "scan.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidTable, match=message):
        replay(path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"goal": 0.7}, InvalidStrategy, "the goal is a fraction of the points between 0 and 0.5, got 0.7"),
        ({"batch": 0}, InvalidStrategy, "batch must be a whole number and at least 1, got 0"),
        ({"orders": -1}, InvalidStrategy, "orders must be a whole number and at least 0, got -1"),
        ({"transform": "square"}, InvalidProblem, "square"),
        ({"constraints": ["m >"]}, InvalidSpace, "it must be a Python expression"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replay(scan(), 1.0, **({"parameters": ["m", "g"]} | settings))


def test_values_that_a_transform_cannot_take() -> None:
    rows = [row | {"mu": row["mu"] - 0.5} for row in scan()]
    with pytest.raises(InvalidTable, match="transform 'log' needs positive values, got -"):
        replay(rows, 1.0, parameters=["m", "g"], transform="log")


# --- what people see


def test_words(found: excursion.Replay) -> None:
    first, head, *rows, last = replayed(found)
    assert first == (
        f"mu = 1 over m, g: you would have needed {found.needed} of 120 points to misclassify at most 1 % of them"
    )
    assert head.split() == ["points", "asked", "wrong:", "campaign", "random", "order"]
    cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
    assert str(found.needed) in [cell[0] for cell in cells]
    n, campaign, random = next(cell for cell in cells if cell[0] == str(found.needed))
    assert campaign == f"{100 * found.curve.at(int(n)):.2f} %"
    assert random == f"{100 * found.random.at(int(n)):.2f} %"
    assert last.startswith("  in random order ")
    data = json.loads(replayed_json(found))
    assert data["needed"] == found.needed
    assert len(data["asked"]) == len(found.history)
    assert data["campaign"]["error"] == list(found.curve.error)


def test_figure(found: excursion.Replay, tmp_path: Path) -> None:
    ax = plot_replay(found, tmp_path / "replay.png")
    assert (tmp_path / "replay.png").stat().st_size > 10_000
    assert isinstance(ax.figure, Figure)
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert lines["_Campaign"].tolist() == [list(p) for p in zip(found.curve.evaluations, found.curve.error)]
    assert lines["_Random order"][-1].tolist() == [found.random.evaluations[-1], found.random.error[-1]]
    assert lines["_needed"].tolist() == [[found.needed, found.curve.at(found.needed)]]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["Campaign", "Random order", "1 % wrong", f"{found.needed} of 120 points"]
    assert ax.get_ylim()[0] == 0


def test_the_command(tmp_path: Path) -> None:
    table = write(tmp_path / "scan.csv", [dict(row) for row in scan(8, 6)])

    def call(*args: object) -> str:
        result = CliRunner().invoke(app, ["replay", str(table), *map(str, args)], prog_name="excursion")
        assert result.exit_code == 0, result.output
        return result.stdout

    settings = ("--parameters", "m, g", "--batch", 12, "--goal", 0.2, "--transform", "log")
    text = call(*settings, "--plot", tmp_path / "a.png")
    assert re.match(r"mu = 1 over m, g: you would have needed \d+ of 48 points to misclassify at most 20 %", text)
    assert (tmp_path / "a.png").exists()
    data = json.loads(call(*settings, "--json", "--where", "m < 390", "--constraint", "g < 0.9", "--threshold", 0.8))
    assert (data["points"], data["failed"], data["threshold"]) == (40, 5, 0.8)
    result = CliRunner().invoke(app, ["replay", str(table), "--output", "nu"])
    assert result.exit_code == 2
    assert "output must name a column, got 'nu'" in result.output


def test_the_module_does_not_hide_the_function() -> None:
    import excursion.shadow

    assert callable(excursion.replay)
    assert excursion.replay is replay


def test_the_documented_example_runs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "replay.md").read_text()
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert names["found"].points == 150
    assert names["found"].needed < 60
    options = {option for command in app.registered_commands if command.callback.__name__ == "replay"
               for option in command.callback.__annotations__}  # fmt: skip
    for option in options - {"table", "return", "plot", "as_json"}:
        assert f"--{option}" in text, option


# --- public scans, where they are


def data(name: str) -> Path:
    folder = os.environ.get("EXCURSION_DATA")
    path = (Path(folder) if folder else Path(__file__).parents[2] / "shared" / "data") / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def test_mono_sbb() -> None:
    """42 limits of ATL-PHYS-PUB-2019-032 on a 7 x 6 grid."""
    result = replay(data("mono_sbb_limits.csv"), parameters=["mzp", "ms"], output="exp", transform="log-tanh", orders=0)
    assert result.points == 42
    assert result.needed < 20


def test_checkmate() -> None:
    """1712 points with Monte Carlo noise, 506 of which have no CLs."""
    rows = []
    for (m_stop, m_lsp), _, (_, found) in json.loads(data("checkmate_stop_scan.json").read_text())["precomputed"]:
        cell = (found or {}).get("observed_CLs")
        rows.append({"m_stop": m_stop, "m_lsp": m_lsp, "CLs": cell or None})
    result = replay(rows, 0.05, goal=0.03, batch=5, orders=0)
    assert (result.points, result.failed) == (1712, 506)
    assert result.needed < 120
