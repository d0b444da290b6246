"""Requests go out to people and results come back, whatever the format, the order and the program they used."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import shlex
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from excursion import Campaign, Parameter, Problem, Sobol, Strategy, Task
from excursion.cli import app
from excursion.data import Outcome, Trial
from excursion.doctor import diagnose
from excursion.errors import ExcursionError, InvalidPoint, InvalidTable, StoreError, TrialFinished
from excursion.evaluators.python import Function
from excursion.handover import (
    Import,
    approve,
    export_requests,
    import_results,
    numbers,
    reject,
    requests,
    requests_lines,
    withdraw,
)
from excursion.handover.reading import rows_of
from excursion.handover.request import columns, request
from excursion.handover.results import number, same_parameter
from excursion.handover.results import tell as tell_rows
from excursion.handover.writing import guarded, to_csv, to_slha, to_xlsx
from excursion.problem import Fidelity
from excursion.report.tables import ended
from excursion.runner import run
from excursion.space import ParameterSpace
from excursion.spec import begin, load
from excursion.store import MemoryStore

PROBLEM = Problem(
    ParameterSpace(
        (
            Parameter("m_slepton", 100, 800, unit="GeV", step=1, label=r"$m_{\tilde\ell}$"),
            Parameter("coupling", 1e-3, 1, scale="log"),
        )
    ),
    (Task("observed", thresholds=1.0, unit="fb"), Task("expected", thresholds=1.0)),
)
STRATEGY = Strategy(acquisition=Sobol(), seed=3)
HEADERS = [c.header for c in columns(PROBLEM)]
KNOWN = [*HEADERS, "m_slepton", "number"]


def campaign(n: int = 6, name: str = "slepton scan", problem: Problem = PROBLEM) -> Campaign:
    made = Campaign.create("memory://", name, problem, STRATEGY)
    if n:
        made.ask(n, approval="proposed")
    return made


def value(trial: Trial) -> float:
    return round(trial.x["m_slepton"] / 300 + trial.x["coupling"] / 3, 6)  # openpyxl writes 16 digits


def told(c: Campaign) -> dict[int, tuple[Any, ...]]:
    """What the campaign knows, without the order in which it was told."""
    found = {}
    for t in c.trials:
        if t.outcome is not None:
            o = t.outcome
            found[t.number] = (t.state, dict(o.values), dict(o.variances), dict(o.bounds), set(o.missing), o.error)
    return found


def sheet(c: Campaign) -> list[dict[str, Any]]:
    """The rows of the CSV file, to be filled in."""
    return list(csv.DictReader(io.StringIO(to_csv(c.problem, [request(c.name, c.problem, t) for t in c.trials]))))


def text_of(rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def give(c: Campaign, data: str | bytes, file: str = "back.csv") -> Import:
    """Tell what a file with this content holds."""
    content = data.encode() if isinstance(data, str) else data
    return tell_rows(c, [rows_of(file, content, KNOWN)])


# ------------------------------------------------------------------------------------------------- the full cycle


def fill(path: Path, c: Campaign) -> None:
    """What a production team does with the file: values for all but the last two, which fail and are rejected."""
    answers: dict[str, dict[str, Any]] = {}
    for t in c.trials:
        name = request(c.name, c.problem, t).id
        answers[name] = {"observed [fb]": value(t), "observed_err": 0.125, "expected": ">10", "status": "done"}
    *_, failing, rejected = answers
    answers[failing] = {"status": "failed", "comment": "=HYPERLINK(1): queue full"}
    answers[rejected] = {"status": "rejected", "comment": "no model, here"}
    if path.is_dir():
        for file in path.iterdir():
            name = re.search(r"request: (.*)", file.read_text())[1]
            a = answers[name]
            lines = ["BLOCK EXCURSIONRESULT"]
            if "observed [fb]" in a:
                lines += [f" 1 {a['observed [fb]']!r}", " 101 0.125 # error", " 2 >10"]
            lines.append(f" 0 {a['status']}  # {a.get('comment', '')}")
            file.write_text(file.read_text() + "\n".join(lines) + "\n")
    elif path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        path.write_text(text_of([row | answers[row["request"]] for row in rows]))
    elif path.suffix == ".yaml":
        entries = yaml.safe_load(path.read_text())
        for entry in entries:
            a = answers[entry["request"]]
            entry |= {k: a[k] for k in ("status", "comment") if k in a}
            entry["results"] |= {k.split(" ")[0]: v for k, v in a.items() if k not in ("status", "comment")}
        path.write_text(yaml.safe_dump(entries))
    else:
        book = openpyxl.load_workbook(path)
        table = book["requests"]
        header = [cell.value for cell in table[1]]
        for row in table.iter_rows(min_row=2):
            for name, cell in answers[row[0].value].items():
                there = row[header.index(name)]
                there.value = cell
                there.data_type = "s" if isinstance(cell, str) else "n"
        book.save(path)


@pytest.mark.parametrize("how", ["csv", "yaml", "spreadsheet", "slha"])
def test_a_batch_goes_out_and_comes_back(how, tmp_path):
    c = campaign(0)
    out = tmp_path / {"csv": "b.csv", "yaml": "b.yaml", "spreadsheet": "b.xlsx", "slha": "cards"}[how]
    asked, files = export_requests(c, how, out, n=6, submit=True, who="production")
    assert [r.state for r in asked] == ["submitted"] * 6
    assert len(files) == (6 if how == "slha" else 1)
    assert c.store.claim(c.name, "worker") is None  # nobody else evaluates what the team has
    untouched = import_results(c, [out])
    assert untouched == Import(waiting=tuple(range(6)))
    fill(out, c)
    found = import_results(c, [out], "alice")
    assert found.told == tuple(range(6)), found.lines()
    assert not found.refused
    assert not found.notes
    for t in c.trials[:4]:
        assert t.state == "censored"
        assert t.outcome.values == {"observed": value(t), "expected": 10.0}
        assert t.outcome.bounds == {"expected": "above"}
        assert t.outcome.variances == {"observed": 0.125**2}
    assert [(t.state, t.outcome.error, t.approval) for t in c.trials[4:]] == [
        ("failed", "=HYPERLINK(1): queue full", "submitted"),
        ("invalid", "rejected: no model, here", "rejected"),
    ]
    before = told(c)
    again = import_results(c, [out])
    assert again.known == tuple(range(6))
    assert not again.refused
    assert told(c) == before
    assert {e.owner for e in c.store.events(c.name) if e.kind in ("tell", "reject")} == {"alice"}


def test_rejected_rows_are_reviews(tmp_path):
    c = campaign(2)
    rows = sheet(c)
    rows[1] |= {"status": "rejected", "comment": "x"}
    give(c, text_of(rows))
    assert requests(c)[1]["state"] == "rejected"


def test_parts_come_back_one_after_the_other(tmp_path):
    c = campaign(4)
    rows = sheet(c)
    rows[2] |= {"observed [fb]": "0.5", "expected": "0.6"}
    assert give(c, text_of(rows)).told == (2,)
    rows[0] |= {"observed [fb]": "0.25", "expected": "inf", "status": "done"}
    rows[3] |= {"observed [fb]": "0.1"}  # the other task is still to come
    found = give(c, text_of(rows[::-1]))
    assert (found.told, found.known, found.waiting) == ((0,), (2,), (3, 1))
    rows[3] |= {"expected": "-"}  # there is none
    assert give(c, text_of(rows)).told == (3,)
    assert c.trials[3].outcome.missing == ("expected",)
    rows[1] |= {"observed [fb]": "0.7", "status": "Done"}  # what is empty is missing
    assert give(c, text_of(rows)).told == (1,)
    assert c.trials[1].outcome.missing == ("expected",)
    assert told(c)[0][1:4] == ({"observed": 0.25, "expected": math.inf}, {}, {"expected": "above"})


def test_another_value_for_what_is_told_is_refused_and_both_are_shown():
    c = campaign(2)
    rows = sheet(c)
    rows[0] |= {"observed [fb]": "0.5", "expected": "<0.6", "observed_err": "0.1"}
    give(c, text_of(rows))
    before = told(c)
    for change in ({"observed [fb]": "0.51"}, {"expected": "0.6"}, {"observed_err": ""}, {"observed_err": "0.2"}):
        found = give(c, text_of([rows[0] | change, rows[1] | {"status": "failed"}]))
        assert len(found.refused) == 1, change
        assert "observed = 0.5 +- 0.1, expected = <0.6" in found.refused[0].reason
        assert found.refused[0].row == 2
        assert found.refused[0].request == "slepton scan#0"
    assert told(c)[0] == before[0]
    assert c.trials[1].state == "failed"  # the good row of the same file


def test_a_failure_is_not_a_rejection():
    c = campaign(1)
    (row,) = sheet(c)
    assert give(c, text_of([row | {"status": "failed", "comment": "disk full"}])).told == (0,)
    assert give(c, text_of([row | {"status": "failed"}])).known == (0,)
    for other in ({"status": "rejected"}, ROW):
        (refusal,) = give(c, text_of([row | other])).refused
        assert "where failed (disk full) was told" in refusal.reason


# ------------------------------------------------------------------------------------------------ refused, understood

ROW = {"observed [fb]": "0.5", "expected": "0.6"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"request": "slepton scan#9"}, "number 9"),
        ({"request": "other#0"}, "other campaign"),
        ({"request": "0"}, "id of a request"),
        ({"request": ""}, "which request"),
        ({"request": "slepton scan#-1"}, "id of a request"),
        ({"m_slepton [GeV]": "101"}, "m_slepton must be what was asked for"),
        ({"coupling": "0.5"}, "coupling must be what was asked for"),
        ({"coupling": "0"}, "coupling must be what was asked for"),
        ({"coupling": "much"}, "must be a number"),
        ({"observed [fb]": "large"}, "must be a number"),
        ({"observed [fb]": "01.05.2026"}, "must be a number"),
        ({"observed [fb]": "1-May"}, "must be a number"),
        ({"observed [fb]": "=1+1"}, "must be a number"),
        ({"observed [fb]": "1_000"}, "must be a number"),
        ({"observed [fb]": "0x10"}, "must be a number"),
        ({"observed [fb]": "5 %"}, "must be a number"),
        ({"observed [fb]": "0.5 fb"}, "must be a number"),
        ({"observed [fb]": "#N/A"}, "must be a number"),
        ({"observed [fb]": "true"}, "must be a number"),
        ({"observed [fb]": "1e999"}, "below 1.8e308"),
        ({"observed [fb]": "1,234"}, "must be clear"),
        ({"observed [fb]": "1.234,5"}, "must be a number"),
        ({"observed [fb]": "0,5", "expected": "1.234"}, "must be clear"),
        ({"observed [fb]": ">inf"}, "must be a number"),
        ({"observed_err": "-0.1"}, "standard error"),
        ({"observed_err": "inf"}, "standard error"),
        ({"observed_err": "1e200"}, "standard error"),
        ({"observed [fb]": "", "observed_err": "0.1"}, "needs a value"),
        ({"observed_bound": "beyond"}, "'above', 'below'"),
        ({"observed [fb]": ">3", "observed_bound": "below"}, "'above', 'below'"),
        ({"status": "failed"}, "has no values"),
        ({"status": "running"}, "has no values yet"),
        ({"status": "perhaps"}, "the status must be"),
        ({"observed [fb]": "", "expected": "", "status": "done"}, "must have a value"),
        ({"observed [fb]": "-", "expected": "nan"}, "must have a value"),
    ],
)
def test_rows_that_make_no_sense_are_refused(change, reason):
    c = campaign(2)
    rows = sheet(c)
    rows[0] |= ROW | change
    rows[1] |= ROW
    found = give(c, text_of(rows))
    assert found.told == (1,)
    assert [r.row for r in found.refused] == [2]
    assert reason in found.refused[0].reason
    assert c.trials[0].outcome is None


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({}, (0.5, 0.6)),
        ({"observed [fb]": " 0,5 ", "expected": "1,234"}, (0.5, 1.234)),
        ({"observed [fb]": "−5e-1"}, (-0.5, 0.6)),
        ({"observed [fb]": "\u00a0.5"}, (0.5, 0.6)),
        ({"observed [fb]": "+Inf"}, (math.inf, 0.6)),
        ({"observed [fb]": "-.inf"}, (-math.inf, 0.6)),
        ({"request": "slepton  scan#0 "}, (0.5, 0.6)),
        ({"m_slepton [GeV]": "", "coupling": ""}, (0.5, 0.6)),
        ({"status": " OK "}, (0.5, 0.6)),
    ],
)
def test_rows_that_make_sense_are_understood(change, values):
    c = campaign(1)
    rows = sheet(c)
    rows[0] |= ROW | change
    found = give(c, text_of(rows))
    assert found.told == (0,), found.lines()
    assert tuple(c.trials[0].outcome.values.values()) == values


def test_numbers():
    assert number("≥ 10", "") == (10, "above")
    assert number("<=0,1", "") == (0.1, "below")
    assert number(3, "") == (3, None)
    assert number(2.5, "") == (2.5, None)
    for bad in (True, datetime(2026, 5, 1), float("inf"), float("nan"), 10**400, "", "--", "1e5000"):
        with pytest.raises(InvalidTable):
            number(bad, "cell")


def test_parameters_may_be_rounded_as_far_as_their_digits_say():
    linear, log = Parameter("m", 100, 800), Parameter("g", 1e-3, 1, scale="log")
    asked = 312.4567890123457
    assert same_parameter(linear, asked, asked, repr(asked))
    for text in ("312.456789012346", "312.456789012345", "312.457", "312.46", "312.5", "312", "3.125e2", "312,46"):
        assert same_parameter(linear, float(text.replace(",", ".")), asked, text), text
    for text in ("312.47", "313", "310", "3e2", "312.4567890130457", "312.456789"):
        assert same_parameter(linear, float(text), asked, text) == (text == "312.456789"), text
    assert same_parameter(log, 0.0012, 0.00123, "0.0012")
    assert not same_parameter(log, 0.001, 0.00123, "0.001")  # well inside half a digit, but a fifth less
    assert not same_parameter(log, 0.0, 0.00123, "0.00")


def test_fidelity_and_events_are_those_that_were_asked_for():
    fidelities = (Fidelity("fast", 1.0, events=(10, 1000), event_cost=0.01), Fidelity("full", 2000.0))
    c = Campaign.create("memory://", "two", Problem({"x": (0, 1)}, Task("f", thresholds=0.5), fidelities=fidelities))
    c.add([{"x": 0.25}, {"x": 0.5}], fidelity="fast", events=500)
    rows = [row | {"f": "1"} for row in sheet(c)]
    assert [(row["fidelity"], row["events"]) for row in rows] == [("fast", "500")] * 2
    for change, reason in (({"fidelity": "full"}, "'fast', got 'full'"), ({"events": "400"}, "500, got '400'")):
        assert reason in give(c, text_of([rows[0] | change])).refused[0].reason
    assert give(c, text_of([rows[0], rows[1] | {"fidelity": "", "events": ""}])).told == (0, 1)


def test_rows_at_one_place_must_agree():
    c = campaign(2)
    c.add([c.trials[0].x, c.trials[0].x])  # evaluated three times
    rows = sheet(c)
    for i, said in enumerate(("2.5", "7", ">3", ">2")):
        rows[i] |= {"observed [fb]": said, "expected": "1"}
    found = give(c, text_of(rows))
    assert found.told == (0, 1, 3)
    assert "must agree with what is known" in found.refused[0].reason
    assert found.refused[0].row == 4
    rows[2]["observed [fb]"] = ">1"
    assert give(c, text_of(rows)).told == (2,)


def test_duplicates_in_a_file():
    c = campaign(2)
    rows = sheet(c)
    rows[0] |= ROW
    found = give(c, text_of([rows[0], rows[1], rows[0]]))
    assert (found.told, found.known, found.waiting) == ((0,), (0,), (1,))
    rows[1] |= ROW
    found = give(c, text_of([rows[1], rows[1] | {"expected": "7"}]))
    assert not found.told
    assert [r.row for r in found.refused] == [2, 3]
    assert "expected = 0.6 and observed = 0.5, expected = 7.0" in found.refused[0].reason


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_separators_and_encodings(delimiter, encoding):
    c = campaign(1)
    rows = sheet(c)
    rows[0] |= ROW | {"comment": "für Jürgen"}
    if delimiter != ",":
        rows[0]["observed [fb]"] = "0,5"
    text = text_of(rows, delimiter)
    found = give(c, text.replace("\n", "\r\n").encode(encoding))
    assert found.told == (0,), found.lines()
    assert c.trials[0].outcome.info == {"comment": "für Jürgen"}
    assert bool(found.notes) == (encoding in ("cp1252", "latin-1"))


def test_encodings_of_long_ago():
    c = campaign(2)
    rows = [row | ROW | {"comment": mark} for row, mark in zip(sheet(c), ("dash", "odd"))]
    data = text_of(rows).encode()
    assert "Windows-1252" in give(c, data.replace(b"dash", b"a \x96 b").replace(b"#1", b"#7")).notes[0]
    assert "Latin-1" in give(c, data.replace(b"odd", b"\x81 \xfc")).notes[0]
    assert [t.outcome.info["comment"] for t in c.trials] == ["a – b", "ü"]


def test_excel_says_which_separator_it_takes():
    c = campaign(1)
    rows = sheet(c)
    rows[0] |= ROW
    assert give(c, "sep=;\n" + text_of(rows, ";")).told == (0,)


@pytest.mark.parametrize(
    ("damage", "told_", "reason"),
    [
        (lambda text: text.rstrip()[:-20], (0,), "one cell for each"),  # cut off
        (lambda text: text.replace(",0.6,", ',"0.6,', 1), (), "quotes"),
        (
            lambda text: text.replace(",,\n", ',,"oops\n', 2).replace('"oops', "", 1),
            (0,),
            "from here on nothing was read",
        ),
        (lambda text: text.replace("0.5", "0,5", 1), (1,), "one cell for each"),
        (lambda text: text.replace("request,", "status,"), (), "different names"),
        (lambda text: text.replace("request,", "other,"), (), "needs columns"),
        (lambda text: text.replace("[fb]", "[pb]"), (), "must be in fb, got pb"),
        (lambda text: text.replace("[GeV]", "[TeV]"), (), "must be in GeV, got TeV"),
        (lambda text: text + "\0", (), "zero bytes"),
        (lambda text: "\n", (), "empty file"),
        (lambda text: "\xd0\xcf\x11\xe0" + text, (), ".xls"),
        (lambda text: "PK\x03\x04" + text, (), "must be a workbook"),
        (lambda text: "{" + text, (), "must be JSON"),
    ],
)
def test_damaged_files(damage, told_, reason):
    c = campaign(2)
    text = damage(text_of([row | ROW for row in sheet(c)]))
    found = give(c, text.encode("latin-1"))
    assert found.told == told_, found.lines()
    assert any(reason in r.reason for r in found.refused), found.lines()


def test_a_comment_may_have_lines_and_quotes():
    c = campaign(2)
    rows = [row | ROW for row in sheet(c)]
    rows[0]["comment"] = 'two\nlines, "quoted"'
    found = give(c, text_of(rows))
    assert found.told == (0, 1)
    assert c.trials[0].outcome.info["comment"] == 'two lines, "quoted"'


def test_columns_that_are_not_read_are_named():
    c = campaign(1)
    (row,) = sheet(c)
    found = give(c, text_of([{"request": row["request"], "Observed cross section": "1", "expected": "2"}]))
    assert found.waiting == (0,)
    assert "Observed cross section" in found.notes[0]


def test_the_table_of_ask_is_understood(tmp_path):
    from excursion.report.tables import points_csv

    c = campaign(3)
    rows = list(csv.DictReader(io.StringIO(points_csv(c.problem, c.trials))))
    for row in rows:
        row |= {"observed": "0.5", "expected": "0.25"}
    assert give(c, text_of(rows)).told == (0, 1, 2)


# ----------------------------------------------------------------------------------------------------- spreadsheets


def workbook(c: Campaign) -> openpyxl.Workbook:
    data = to_xlsx(c.problem, [request(c.name, c.problem, t) for t in c.trials])
    return openpyxl.load_workbook(io.BytesIO(data))


def saved(book: openpyxl.Workbook) -> bytes:
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def test_a_spreadsheet_locks_what_was_asked_and_offers_the_statuses():
    book = workbook(campaign(2))
    table = book["requests"]
    header = [cell.value for cell in table[1]]
    assert header == HEADERS
    assert table.protection.sheet
    assert table["A2"].protection.locked
    assert not table.cell(2, header.index("expected") + 1).protection.locked
    lists = {rule.formula1 for rule in table.data_validations.dataValidation}
    assert lists == {'"done,failed,rejected,running"', '"above,below"'}
    words = " ".join(cell.value for (cell,) in book["instructions"].iter_rows())
    assert "observed_err" in words
    assert r"$m_{\tilde\ell}$" in words
    assert table["C2"].value == pytest.approx(campaign(2).trials[0].x["coupling"], rel=1e-15)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (datetime(2026, 5, 1), "the date 2026-05-01"),
        ("=1+1", "the formula '=1+1'"),
        (True, "must be a number"),
        ("#DIV/0!", "must be a number"),
        ("1,234", "must be clear"),
    ],
)
def test_cells_that_a_spreadsheet_has_changed(cell, reason):
    c = campaign(2)
    book = workbook(c)
    column = HEADERS.index("observed [fb]") + 1
    for row in (2, 3):
        book["requests"].cell(row, column + 3).value = 0.5
        book["requests"].cell(row, column).value = cell if row == 2 else "0,5"
    found = give(c, saved(book), "back.xlsx")
    assert found.told == (1,)
    assert found.refused[0].row == 2
    assert reason in found.refused[0].reason
    assert c.trials[1].outcome.values["observed"] == 0.5


def test_other_sheets_and_cells_beside_the_table():
    c = campaign(2)
    book = workbook(c)
    table = book["requests"]
    book.create_sheet("notes")["A1"] = "x"
    for row in (2, 3):
        table.cell(row, HEADERS.index("status") + 1).value = "failed"
    table.cell(3, len(HEADERS) + 2).value = "by Alice: 0.7"
    table.cell(40, 1).value = "slepton scan#77"
    found = give(c, saved(book), "back.xlsx")
    assert found.told == (0,)
    assert [r.row for r in found.refused] == [3, 40]
    assert "notes" in found.notes[0]


def repacked(data: bytes, part: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, content if name == part else old.read(name))
    return stream.getvalue()


def test_workbooks_that_grow_when_they_are_read():
    c = campaign(1)
    book, first = saved(workbook(c)), "xl/worksheets/sheet1.xml"
    laughs = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi"))
    rows = '<sheetData><row r="1"><c r="A1" t="inlineStr"><is><t>&i;</t></is></c></row></sheetData>'
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">{laughs}]><worksheet>{rows}</worksheet>'
    outside = '<!DOCTYPE x [<!ENTITY i SYSTEM "file:///etc/hostname">]><worksheet>' + rows + "</worksheet>"
    for content in (bomb.encode(), outside.encode(), b"<worksheet>" + b" " * (65 << 20)):
        found = give(c, repacked(book, first, content), "x.xlsx")
        assert not found.waiting
        assert "must" in found.refused[0].reason


NASTY = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-x",
    "@SUM(A1)",
    "../../etc/passwd",
    "a\nb",
    "#5",
    "µ[GeV]",
    "x" * 200,
    "17",
    "..",
]


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("how", ["csv", "yaml", "spreadsheet", "slha"])
def test_no_name_is_a_formula_or_a_path(name, how, tmp_path):
    task = name[:40]
    problem = Problem(
        {"request": (0, 1), "status": (0, 1)},
        (Task(task, thresholds=0.0, unit="=1+1", label=name), Task("number", thresholds=0.0)),
        fidelities=(Fidelity("rough", 1.0), Fidelity(f"{name}!", 2.0)),
    )
    c = Campaign.create("memory://", name, problem, Strategy(acquisition=Sobol(), design_size=2))
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    _, files = export_requests(c, how, folder, n=3)
    assert all(f.parent == folder for f in files)
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "deep", folder, *files])
    if how == "spreadsheet":
        book = openpyxl.load_workbook(files[0])
        cells = [cell for table in book for row in table.iter_rows() for cell in row]
        assert {cell.data_type for cell in cells} <= {"s", "n"}
        assert all(c.quotePrefix for c in cells if isinstance(c.value, str) and c.value[0] in "=+-@")
    elif how == "csv":
        for row in csv.reader(io.StringIO(files[0].read_text())):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    untouched = import_results(c, files)
    assert untouched == Import(waiting=(0, 1, 2)), untouched.lines()


def test_a_task_that_is_called_like_the_error_of_another():
    c = campaign(1, problem=Problem({"x": (0, 1)}, (Task("f", thresholds=1.0), Task("f_err", thresholds=1.0))))
    (row,) = sheet(c)
    assert [name for name in row if name.startswith("f")] == ["f", "f_bound", "f_err", "f_err_err", "f_err_bound"]
    found = give(c, text_of([row | {"f": "1", "f_err": "2", "f_err_err": "0.5"}]))
    assert found.told == (0,), found.lines()
    assert c.trials[0].outcome.values == {"f": 1, "f_err": 2}
    assert c.trials[0].outcome.variances == {"f_err": 0.25}


def test_text_is_guarded_and_numbers_are_not():
    assert guarded("-5") == "'-5"
    assert ",-5.0," in to_csv(
        Problem({"x": (-6, 6)}, Task("f", thresholds=0.0)),
        [request("c", PROBLEM, Trial(0, {"x": -5.0}, 0, 0))],
    )


# ------------------------------------------------------------------------------------------------------- YAML, JSON


def test_json_of_a_program_and_a_folder(tmp_path):
    c = campaign(4)
    a, b, d, e = (request(c.name, c.problem, t).id for t in c.trials)
    (tmp_path / "1.json").write_text(json.dumps({"request": a, "observed": 0.1, "expected": 0.2}))
    (tmp_path / "2.json").write_text(json.dumps([{"number": 1, "observed": 0.3, "expected": None, "status": "done"}]))
    (tmp_path / "3.json").write_text(json.dumps({"request": [d], "observed": [0.4], "expected": [math.inf]}))
    (tmp_path / "4.yml").write_text(f"requests:\n- {{request: '{e}', results: {{observed: 010, expected: 1:30}}}}\n")
    (tmp_path / "readme.md").write_text("not read")
    found = import_results(c, [tmp_path])
    assert found.told == (0, 1, 2), found.lines()
    assert "1:30" in found.refused[0].reason  # neither 90 nor a time
    assert c.trials[2].outcome.bounds == {"expected": "above"}
    assert b == "slepton scan#1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"request": "slepton scan#0", "observed": 1, "observed": 2, "expected": 1}]', "'observed' again"),
        ("- {request: slepton scan#0, observed: 1, observed: 2, expected: 1}", "'observed' again"),
        ("- {request: slepton scan#0, observed: 1, results: {observed: 2}, expected: 1}", "'observed' again"),
        ("- {request: slepton scan#0, observed: [1, 2], expected: 1}", "must be a number or text"),
        ("- {request: slepton scan#0, observed: 2026-05-01, expected: 1}", "must be a number"),
        ("- {request: slepton scan#0, observed: yes, expected: 1}", "must be a number"),
        ("- &a [1]\n- *a", "aliases"),
        ("- just text", "must be a record"),
        ("[" * 100_000, "nested"),
        ("[" * 90 + "]" * 90, "nested deeply"),
        ("- " * 100_000, "too many levels"),
        ('{"a":' * 100_000, "nested"),
        ("- !!python/object/apply:os.system [echo]", "must be a record"),
        ("a: [b", "must be YAML"),
        ('[{"request": "slepton scan#0", "observed": 1e999, "expected": 1}]', "1.8e308"),
        ("12", "must be a list"),
        ("a: [1]\nb: [1, 2]", "same number of cells"),
    ],
)
def test_entries_that_make_no_sense(text, reason):
    c = campaign(1)
    found = give(c, text, "back.json" if text[0] in '[{"' else "back.yaml")
    assert not found.told
    assert any(reason in r.reason for r in found.refused), found.lines()


def test_null_is_not_yet_and_text_is_an_answer():
    c = campaign(1)
    row = "- {request: slepton scan#0, observed: 1, expected: %s}"
    for nothing in ("null", "~", "", "''"):
        assert give(c, row % nothing, "x.yaml").waiting == (0,)
    assert give(c, row % "'null'", "x.yaml").told == (0,)


# ------------------------------------------------------------------------------------------------------------- SLHA

TEMPLATE = """\
BLOCK MODSEL  # {request}
    1   1
BLOCK MASS  # masses
   1000011   {m_slepton:.4E}  # ~e_L
   1000022   9.0E+01  # ~chi_10
DECAY 1000022 0.0
"""


def test_slha_cards_are_filled_in():
    c = campaign(1)
    (t,) = c.trials
    asked = [request(c.name, c.problem, t)]
    ((name, text),) = to_slha(c.problem, asked, TEMPLATE, ["MASS:1000022=coupling", "NMIX:1,2=coupling"]).items()
    assert name == "slepton_scan-000000.slha"
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    assert ["1000011", f"{t.x['m_slepton']:.4E}"] in lines
    assert ["1000022", f"{t.x['coupling']:.10E}"] in lines
    assert lines[-2:] == [["BLOCK", "NMIX"], ["1", "2", f"{t.x['coupling']:.10E}"]]
    assert ["DECAY", "1000022", "0.0"] in lines
    assert f"BLOCK MODSEL  # {asked[0].id}" in text
    # New entries go into the block that is there, before the next one.
    inside = to_slha(c.problem, asked, TEMPLATE, ["MASS:1000023=coupling"])[name].splitlines()
    assert inside.index("DECAY 1000022 0.0") == next(i for i, line in enumerate(inside) if "1000023" in line) + 1
    plain = to_slha(c.problem, asked)[name]
    assert f"1   {t.x['m_slepton']:.17G}" in plain
    assert "# m_slepton [GeV]" in plain


@pytest.mark.parametrize(
    ("template", "entries", "reason"),
    [
        ("{m_typo}", [], "must be a parameter"),
        ("{m_slepton.__class__}", ["MASS:x=m_slepton"], "an entry is"),
        ("{m_slepton:zz}", [], "a placeholder is"),
        ("{m_slepton:999999999999}", [], "a placeholder is"),
        (None, ["MASS:1=m_typo"], "an entry is"),
    ],
)
def test_templates_that_make_no_sense(template, entries, reason, tmp_path):
    c = campaign(0)
    file = tmp_path / "card.slha"
    file.write_text(template or "")
    with pytest.raises(InvalidTable, match=reason):
        export_requests(c, "slha", tmp_path / "o", n=2, template=file if template else None, entries=entries)
    assert not c.trials  # nothing was asked for


def test_a_template_runs_nothing():
    c = campaign(1)
    asked = [request(c.name, c.problem, c.trials[0])]
    harmless = "{m_slepton.__class__} {request.x} {} {m_slepton!r}"
    (text,) = to_slha(c.problem, asked, harmless).values()
    assert text.endswith(f"\n{harmless}\n")


# ------------------------------------------------------------------------------------------------------- approvals


def test_nobody_evaluates_before_somebody_approves():
    c = campaign(5)
    assert c.store.claim(c.name, "w") is None
    assert [t.number for t in approve(c, [3, 1], "alice")] == [3, 1]
    assert [c.store.claim(c.name, "w").number for _ in range(2)] == [1, 3]
    assert c.store.claim(c.name, "w") is None
    reject(c, [0], "=too dear", "bob")
    reject(c, [0], "again", "carol")  # nothing more to do
    with pytest.raises(TrialFinished):
        approve(c, [0])
    with pytest.raises(StoreError, match="reason"):
        reject(c, [2], " ")
    approve(c)
    table = requests(c)
    assert [r["state"] for r in table] == ["rejected", "running", "approved", "running", "approved"]
    (said,) = [e for e in c.store.events(c.name) if e.kind == "reject"]
    assert (said.owner, said.note, said.number) == ("bob", "=too dear", 0)
    assert table[0]["error"] == "rejected: =too dear"
    assert "rejected: =too dear" in requests_lines(table)[0]
    c.tell(1, {"observed": 1, "expected": 1})
    with pytest.raises(TrialFinished):
        reject(c, [1], "too late")
    assert requests_lines([]) == ["no requests"]
    assert c.status().requests == {"approved": 3}


def test_numbers_as_people_write_them():
    c = campaign(0)
    assert numbers(c, ["3", "5-7,1", "slepton scan#9", "#2"]) == [3, 5, 6, 7, 1, 9, 2]
    for bad in ("x", "3-", "7-5", "-1", "other#3", "1.5", "0-99999999"):
        with pytest.raises(InvalidPoint):
            numbers(c, [bad])


def test_what_is_exported(tmp_path):
    c = campaign(4)
    approve(c, [1, 2])
    c.store.claim(c.name, "worker", 2)

    def exported(**options: Any) -> list[int]:
        exported.count += 1
        asked, _ = export_requests(c, "csv", tmp_path / f"{exported.count}.csv", **options)
        return [r.number for r in asked]

    exported.count = 0
    assert exported(wanted="proposed") == [0, 3]
    assert exported(wanted="approved") == [1]  # a worker has the other
    assert exported(wanted="approved", submit=True, who="team") == [1]
    assert exported() == [0, 3]
    assert exported(wanted="all") == [0, 1, 3]
    assert exported(wanted="submitted") == [1]
    assert c.trials[1].owner == "team"
    assert exported(n=2) == [0, 3, 4, 5]
    with pytest.raises(InvalidPoint, match="that is approved"):
        exported(wanted="approved")
    with pytest.raises(InvalidTable, match="format slha"):
        export_requests(c, "csv", tmp_path / "x.csv", entries=["MASS:1=m_slepton"])


def test_a_file_that_may_hold_results_is_not_written_over(tmp_path):
    c = campaign(2)
    for how, out in (("csv", tmp_path / "a.csv"), ("slha", tmp_path / "cards")):
        _, files = export_requests(c, how, out)
        files[0].write_text("results")
        with pytest.raises(StoreError, match="may hold results"):
            export_requests(c, how, out, n=1 if how == "csv" else 0, submit=True)
        assert files[0].read_text() == "results"
    assert len(c.trials) == 2
    assert all(t.approval == "proposed" for t in c.trials)
    with pytest.raises(StoreError, match="writable") as told_:
        export_requests(c, "csv", tmp_path / "a.csv" / "b.csv", submit=True)
    assert "--state submitted" in str(told_.value)  # so that they are not lost
    assert [r.number for r in export_requests(c, "csv", tmp_path / "c.csv", wanted="submitted")[0]] == [0, 1]


def test_requests_can_be_taken_back(tmp_path):
    c = campaign(3)
    export_requests(c, "csv", tmp_path / "a.csv", submit=True)
    c.tell(2, {"observed": 1, "expected": 1})
    with pytest.raises(StoreError, match="that is complete"):
        withdraw(c, [0, 2])
    assert [t.number for t in withdraw(c, [1])] == [1]
    assert c.store.claim(c.name, "worker").number == 1


def test_people_are_not_taken_for_workers_that_hang(tmp_path):
    c = campaign(9)
    approve(c, [0, 1, 2, 3, 4, 5])
    for n in range(6):
        c.store.claim(c.name, "worker", n)
        if n < 5:
            c.tell(n, {"observed": n, "expected": 1})
    export_requests(c, "csv", tmp_path / "a.csv", wanted="proposed", submit=True, who="team")
    slow = [f for f in diagnose(c.problem, c.trials, time.time() + 864_000) if f.kind == "slow"]
    assert [f.trials for f in slow] == [(5,)]


def test_what_a_worker_takes_meanwhile_is_not_submitted(tmp_path):
    class Race(MemoryStore):
        """A worker claims trial 1 in the moment before it is submitted."""

        def review(self, name, number, approval, *, note="", owner=None):
            if approval == "submitted" and number == 1:
                assert self.claim(name, "worker", 1)
            return super().review(name, number, approval, note=note, owner=owner)

    c = Campaign.create(Race(), "race", PROBLEM, STRATEGY)
    c.ask(3)
    asked, _ = export_requests(c, "csv", tmp_path / "a.csv", submit=True)
    assert [r.number for r in asked] == [0, 2]
    assert [r["request"] for r in csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text()))] == ["race#0", "race#2"]


SPEC = """\
name: approved
parameters: {x: [0, 1], y: [0, 1]}
tasks: {f: 0.5}
strategy: {seed: 1, acquisition: Sobol}
evaluator: {python: "physics:f"}
run: {budget: 6, batch: 2, approval: true}
"""


def test_a_run_that_needs_approval_ends_and_says_so(tmp_path):
    (tmp_path / "scan.yaml").write_text(SPEC)
    spec = load(tmp_path / "scan.yaml")
    c = begin(spec)
    evaluator = Function(lambda point: point["x"] + point["y"])
    reports = []
    for count in (0, 2, 4, 6):
        report = run(c, evaluator, **spec.run, progress=False)
        assert sum(not t.pending for t in c.trials) == count
        reports.append(report)
        approve(c)
    assert [r.reason for r in reports] == ["approval", "approval", "approval", "budget"]
    assert [len(c.trials), reports[-1].evaluations] == [6, 2]
    assert "2 requests wait for approval" in ended(reports[0], "s")
    with pytest.raises(InvalidPoint, match="approval"):
        export_requests(c, "csv", tmp_path / "x.csv", n=2, submit=True)


def test_a_run_leaves_the_team_its_points():
    c = campaign(3, problem=Problem({"x": (0, 1)}, Task("f", thresholds=0.5)))
    c.store.review(c.name, 1, "submitted", owner="team")
    report = run(c, Function(lambda p: p["x"]), budget=5, progress=False)
    assert report.reason == "approval"
    assert [t.state for t in c.trials] == ["queued", "running", "queued", "complete", "complete"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_file_that_two_people_import_at_once_is_told_once(kind, tmp_path, request):
    url = request.getfixturevalue("postgres") if kind == "postgres" else str(tmp_path / "c.db")
    c = Campaign.create(url, "both", PROBLEM, STRATEGY)
    export_requests(c, "csv", tmp_path / "a.csv", n=12, submit=True)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    for i, row in enumerate(rows):
        row |= ROW | {"observed [fb]": str(i)} if i % 4 else {"status": "rejected", "comment": "half \ud800"}
    (tmp_path / "a.csv").write_bytes(text_of(rows).encode("utf-8", "replace"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda who: import_results(Campaign.open(url, "both"), [tmp_path / "a.csv"], who), "abc"))
    assert sorted(n for f in found for n in f.told) == list(range(12))
    assert sum(len(f.known) for f in found) == 24
    assert not any(f.refused for f in found)
    kinds = [e.kind for e in c.store.events("both") if e.kind in ("tell", "reject")]
    assert sorted(kinds).count("reject") == 3
    assert {t.outcome.values.get("observed") for t in c.trials} == {None, *(i for i in range(12) if i % 4)}


# -------------------------------------------------------------------------------------------------------- commands


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hand.yaml").write_text(SPEC.replace('evaluator: {python: "physics:f"}\n', ""))

    def command(text: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, text.split())
        assert done.exit_code == code, (text, done.output)
        return done.output

    command("create hand.yaml")
    assert "4 requests in batch.csv" in command("export-requests hand.db -n 4 --out batch.csv")
    assert "2 requests are approved" in command("approve hand.db approved 0-1")
    assert "1 request is rejected" in command("reject hand.db 3 --reason no")
    assert "both or neither" in command("approve hand.db", 2)
    assert "2 requests in team.csv: submitted" in command("export-requests hand.db --submit --to team --out team.csv")
    assert "1 request is approved" in command("approve hand.db --all")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "team.csv").read_text())))
    rows[0]["f"] = "0.25"
    rows[1]["f"] = "a lot"
    (tmp_path / "team.csv").write_text(text_of(rows))
    said = command("import-results hand.db team.csv", 1)
    assert said.splitlines()[0] == "1 told, 0 already known, 0 not yet, 1 refused"
    assert "refused: team.csv, row 3 (approved#1): column 'f'" in said
    said = json.loads(command("import-results hand.db approved team.csv --json", 1))
    assert (said["known"], said["refused"][0]["row"]) == ([0], 3)
    assert "no such" in command("import-results hand.db nowhere.csv", 2).lower()
    assert [r["state"] for r in json.loads(command("requests hand.db --json"))] == [
        "complete",
        "submitted",
        "approved",
        "rejected",
    ]
    lines = command("requests hand.db approved --pending").splitlines()
    assert len(lines) == 2
    assert re.search(r"approved#1 +submitted +x=.* submit .* by team", lines[0])
    assert "1 approved, 1 submitted" in command("status hand.db")
    assert "1 request is withdrawn" in command("withdraw hand.db 1")
    assert "that is approved" in command("withdraw hand.db 1", 2)
    Campaign.create("hand.db", "other", PROBLEM)
    assert "which campaign" in command("requests hand.db", 2)
    assert "Choose one of" in command("approve hand.db nobody 3", 2)


# ------------------------------------------------------------------------------------------------------------ laws

OUTCOMES = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"status": st.sampled_from(["failed", "rejected"]), "comment": st.sampled_from(["", "why"])}),
    st.fixed_dictionaries(
        {
            "observed [fb]": st.one_of(
                st.floats(0.01, 100).map(repr), st.sampled_from(["inf", ">10", "<0.1", "0,5", "-", ""])
            ),
            "observed_err": st.sampled_from(["", "0.1"]),
            "expected": st.one_of(st.floats(0.01, 100).map(repr), st.sampled_from(["", "-", ">2.5"])),
            "status": st.sampled_from(["", "done"]),
        }
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), results=st.lists(OUTCOMES, min_size=5, max_size=5))
def test_any_partition_order_and_repetition_gives_the_same_campaign(data, results):
    once, parts = campaign(5), campaign(5)
    rows = [row | result for row, result in zip(sheet(once), results)]
    whole = give(once, text_of(rows))
    again = data.draw(st.lists(st.sampled_from(rows), max_size=8))
    mixed = data.draw(st.permutations([*rows, *again]))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(mixed) - 1), max_size=4)))
    pieces = [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(mixed)])]
    found = []
    for i, piece in enumerate(pieces):
        match data.draw(st.sampled_from(["csv", "semicolon", "json"])):
            case "json":
                found.append(give(parts, json.dumps(piece), f"{i}.json"))
            case kind:
                found.append(give(parts, text_of(piece, ";" if kind == "semicolon" else ",")))
        accounted(found[-1], len(piece))
    assert told(parts) == told(once)
    assert sorted(n for f in found for n in f.told) == sorted(whole.told)
    assert {r.request for f in found for r in f.refused} == {r.request for r in whole.refused}


def accounted(found: Import, rows: int) -> None:
    """Every row is told, known, waiting or refused."""
    counts = [found.told, found.known, found.waiting, [r for r in found.refused if r.row is not None]]
    assert sum(map(len, counts)) == rows


# --------------------------------------------------------------------------------------------------------- fuzzing

FUZZ = int(os.environ.get("EXCURSION_FUZZ", "300"))
CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            "0.5",
            "0,5",
            "1,234",
            ">10",
            "<0.1",
            "inf",
            "-inf",
            "nan",
            "-",
            "1e999",
            "=1+1",
            "done",
            "failed",
            "running",
            *("rejected", "01.05.2026", "true", "null", "above", "NaN", "\ufeff", "'", '"', "#", "\x00"),
            "slepton scan#1",
        ]
    ),
    st.floats(width=64),
    st.integers(-(10**30), 10**30),
    st.booleans(),
    st.none(),
)
HEADER = st.one_of(st.sampled_from([*KNOWN, "#request", "#1", "results", "parameters"]), st.text(max_size=8))
TREES = st.recursive(
    CELLS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HEADER.map(str), inner, max_size=5),
    max_leaves=20,
)


@st.composite
def tables(draw: Any) -> list[dict[str, Any]]:
    """Rows as they came from the campaign, some of whose cells have changed, some lost, some made up."""
    rows = [dict(row) for row in sheet(campaign(4))]
    for row in rows:
        row |= draw(st.sampled_from([{}, {}, ROW]))
        row |= draw(st.dictionaries(st.sampled_from(HEADERS), CELLS, max_size=draw(st.sampled_from([0, 1, 8]))))
    rows += draw(st.lists(st.dictionaries(HEADER, CELLS, max_size=6), max_size=2))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in draw(st.permutations(rows))]


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """The name and the content of a file that may be a result file."""
    kind = draw(st.sampled_from(["csv", "json", "yaml", "xlsx", "slha", "tree", "bytes"]))
    if kind == "bytes":
        start = draw(
            st.sampled_from([b"", b"PK\x03\x04", b"request,expected\n", b"- ", b"{", b"[", b"\xff\xfe", b"a: &b "])
        )
        return f"x.{draw(st.sampled_from(['csv', 'xlsx', 'yaml', 'json', 'slha', 'tsv', '']))}", start + draw(
            st.binary(max_size=200)
        )
    if kind == "tree":
        tree = draw(TREES)
        if draw(st.booleans()):
            return "x.json", json.dumps(tree).encode("utf-8", "replace")
        return "x.yaml", yaml.safe_dump(tree).encode("utf-8", "replace")
    if kind == "slha":
        c = campaign(1)
        (text,) = to_slha(c.problem, [request(c.name, c.problem, c.trials[0])]).values()
        keys = draw(st.lists(st.sampled_from([0, 1, 2, 101, 102, 7, -1]), max_size=5))
        lines = draw(st.sampled_from([[], [" 1 0.5", " 2 >3 # x"]]))
        lines += [f" {k} {draw(st.sampled_from(['0.5', '>3', 'done']) | CELLS)} # {draw(CELLS)}" for k in keys]
        return "x.slha", damaged(draw, "\n".join([text, "BLOCK EXCURSIONRESULT", *lines]).encode("utf-8", "replace"))
    rows = draw(tables())
    if kind == "csv":
        text = text_of(rows, draw(st.sampled_from(",;\t")))
        data = text.encode(draw(st.sampled_from(["utf-8", "utf-16", "cp1252"])), "replace")
    elif kind == "json":
        data = json.dumps(rows).encode("utf-8", "replace")
    elif kind == "yaml":
        data = yaml.safe_dump(rows).encode("utf-8", "replace")
    else:
        book = openpyxl.Workbook()
        clean = [
            [openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", c) if isinstance(c, str) else c for c in row]
            for row in [list(rows[0]), *[list(row.values()) for row in rows]]
        ]
        for row in clean:
            book.active.append([None if isinstance(c, float) and not math.isfinite(c) else c for c in row])
        data = saved(book)
    return f"x.{kind}", damaged(draw, data)


def damaged(draw: Any, data: bytes) -> bytes:
    """The content as it is, or cut off, or with a byte changed."""
    how = draw(st.sampled_from(["", "", "cut", "change"]))
    if not how or not data:
        return data
    at = draw(st.integers(0, 10**6)) % len(data)  # the size depends on the time of the day
    return data[:at] if how == "cut" else data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]


def says(row: Row, trial: Trial) -> bool:
    """Whether a row has the trial's id and, in some cells, all its values: read without anything of ours."""
    cells = [str(cell).strip() for cell in row.cells.values()]
    numbers_ = set()
    for cell in cells:
        with contextlib.suppress(ValueError):
            numbers_.add(float(cell.lstrip("<>=≤≥ ").replace(",", ".").replace("−", "-").replace(".inf", "inf")))
    named = any(cell in (f"slepton scan#{trial.number}", str(trial.number)) for cell in cells)
    return named and set(trial.outcome.values.values()) <= numbers_


@pytest.mark.slow
@settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(file=files())
def test_no_file_makes_trouble(file):
    name, data = file
    c = campaign(4)
    c.tell(3, Outcome.of({"observed": 0.5, "expected": 0.6}))
    kept = c.trials[3]
    read = rows_of(name, data, KNOWN)
    try:
        found = tell_rows(c, [read])
    except ExcursionError as error:
        pytest.fail(f"the file as a whole was refused by {error!r}")
    assert c.trials[3] == kept
    rows = len(read.rows) + sum(r.row is not None for r in read.refused)
    accounted(found, rows)
    assert {t.number for t in c.trials if not t.pending} == {3, *found.told}
    for trial in c.trials[:3]:
        if trial.outcome is not None and trial.outcome.error is None:
            assert any(says(row, trial) for row in read.rows)
    before = c.trials
    again = tell_rows(c, [read])
    assert not again.told
    assert c.trials == before
    assert sorted(again.known) == sorted([*found.told, *found.known])
    assert all(line.isprintable() for line in found.lines())


# --------------------------------------------------------------------------------------------------- documentation

DOCS = Path(__file__).parents[1] / "docs" / "handover.md"


def test_the_ten_days(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    said: list[str] = []
    (tmp_path / "card.slha").write_text("BLOCK MASS\n   1000022   {m_chi:.6E}\n   1000011   {m_slepton}\n")
    blocks = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    specs = [code for kind, code in blocks if kind == "yaml"]
    (tmp_path / "sleptons.yaml").write_text(specs[0])
    for kind, code in blocks:
        if kind == "python":
            exec(code, names)
        for line in code.splitlines() if kind == "console" else ():
            command, _, comment = line.partition(" #")
            done = CliRunner().invoke(app, shlex.split(command)[1:])
            assert done.exit_code == ("exit code 1" in comment), (line, done.output)
            said.append(done.output)
        if kind == "text":
            shown, printed = code.splitlines(), said[-1].splitlines()
            if shown[0].startswith("request,"):
                printed = (tmp_path / "meeting.csv").read_text().splitlines()[:2]
                shown, printed = ([re.sub(r"[\d.:T-]{3,}", "", line) for line in t] for t in (shown, printed))
            assert shown == printed
    c = Campaign.open("sleptons.db")
    states = [t.state for t in c.trials]
    assert states[:6] == ["complete", "censored", "complete", "failed", "queued", "invalid"]
    assert len(states) == 12
    assert [t.number for t in c.trials if t.criterion == "retry" and t.x == c.trials[3].x]
    assert len(list((tmp_path / "cards").iterdir())) == 4
    (tmp_path / "waits.yaml").write_text(specs[1])
    assert load(tmp_path / "waits.yaml").run["approval"] is True
