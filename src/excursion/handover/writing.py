"""Requests as files for people: CSV, YAML, a spreadsheet, SLHA. Text that a spreadsheet might run stays text.

References:
    https://owasp.org/www-community/attacks/CSV_Injection
    Skands et al., JHEP 07 (2004) 036: the SUSY Les Houches Accord (SLHA).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ..errors import InvalidTable, MissingExtra, StoreError
from ..problem import Problem
from .request import Request, cell, columns, key, one_line

__all__ = ["FORMATS", "Format", "check_free", "files", "guarded", "save", "to_csv", "to_slha", "to_xlsx", "to_yaml"]

Format = Literal["csv", "slha", "yaml", "spreadsheet"]
FORMATS: tuple[Format, ...] = ("csv", "slha", "yaml", "spreadsheet")
_SUFFIX = {"csv": ".csv", "yaml": ".yaml", "spreadsheet": ".xlsx"}
#: What people may write into the column of the status.
STATUSES = ("done", "failed", "rejected", "running")
#: Longest text that a cell of a spreadsheet takes, and the name of the sheet with the requests.
_LONGEST, SHEET = 32000, "requests"
#: Keys of the blocks that hold a request and its results in an SLHA file; errors come at _ERRORS_FROM + key.
BLOCK, RESULT, ERRORS_FROM = "EXCURSION", "EXCURSIONRESULT", 100


def guarded(text: str) -> str:
    """Text for a cell of a CSV file that no spreadsheet takes for a formula: a ' comes before = + - @.

    >>> guarded("=1+1"), guarded("-x"), guarded("plain")
    ("'=1+1", "'-x", 'plain')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def to_csv(problem: Problem, requests: Sequence[Request]) -> str:
    """One row per request; the columns of the results are empty."""
    found = columns(problem)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([guarded(column.header) for column in found])
    for asked in requests:
        cells = [cell(column, asked) for column in found]
        writer.writerow([guarded(c) if isinstance(c, str) else "" if c is None else c for c in cells])
    return text.getvalue()


def to_yaml(problem: Problem, requests: Sequence[Request]) -> str:
    """A list with one entry per request; results are null."""
    import yaml

    found = columns(problem)
    described = {p.name: one_line(p.unit) for p in problem.space.parameters if p.unit}
    labels = {p.name: one_line(p.label) for p in problem.space.parameters if p.label}
    described |= {one_line(t.name): one_line(t.unit) for t in problem.tasks if t.unit}
    labels |= {one_line(t.name): one_line(t.label) for t in problem.tasks if t.label}
    entries = []
    for asked in requests:
        entry: dict[str, Any] = {c.header: asked.id for c in found if c.role == "request"}
        entry["parameters"] = dict(asked.x)
        entry |= {"units": described} if described else {}
        entry |= {"labels": labels} if labels else {}
        entry |= {c.header: cell(c, asked) for c in found if c.role in _DESCRIBED}
        entry["results"] = {
            one_line(c.name) if c.role == "value" else c.header: None for c in found if c.role in _RESULTS
        }
        entry |= {c.header: None for c in found if c.role in ("status", "comment")}
        entries.append(entry)
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    return yaml.dump(entries, Dumper=dumper, sort_keys=False, allow_unicode=True)


_DESCRIBED = ("fidelity", "events", "seed", "state", "reason", "asked")
_RESULTS = ("value", "error", "bound")


# ------------------------------------------------------------------------------------------------- spreadsheet


def to_xlsx(problem: Problem, requests: Sequence[Request]) -> bytes:
    """A workbook with a sheet of requests, in which only the results can be changed, and one of instructions.

    Raises:
        MissingExtra: openpyxl is not installed.
    """
    try:
        import openpyxl
        from openpyxl.styles import Font, PatternFill, Protection
        from openpyxl.utils import get_column_letter
        from openpyxl.worksheet.datavalidation import DataValidation
    except ImportError as error:
        raise MissingExtra(
            "spreadsheet: needs openpyxl, got no such module. Run pip install 'excursion[spreadsheet]', or use csv"
        ) from error
    book = openpyxl.Workbook()
    sheet, found = book.active, columns(problem)
    sheet.title = SHEET
    bold, filled = Font(bold=True), PatternFill("solid", fgColor="FFF2CC")
    for j, column in enumerate(found, 1):
        _put(sheet, 1, j, column.header).font = bold
        width = max([len(column.header), *(len(str(cell(column, asked) or "")) for asked in requests)])
        sheet.column_dimensions[get_column_letter(j)].width = min(max(width + 2, 10), 40)
        for i, asked in enumerate(requests, 2):
            there = _put(sheet, i, j, cell(column, asked))
            if column.role in (*_RESULTS, "status", "comment"):
                there.protection, there.fill = Protection(locked=False), filled
    last = max(len(requests) + 1, 2)
    for role, choices in (("status", STATUSES), ("bound", ("above", "below"))):
        rule = DataValidation(type="list", formula1=f'"{",".join(choices)}"', allow_blank=True)
        for j, column in enumerate(found, 1):
            if column.role == role:
                rule.add(f"{get_column_letter(j)}2:{get_column_letter(j)}{last}")
        sheet.add_data_validation(rule)
    sheet.freeze_panes = "B2"
    # Without a password: it keeps hands from slipping, no more.
    sheet.protection.sheet = True
    sheet.protection.formatColumns = sheet.protection.sort = sheet.protection.autoFilter = False
    guide = book.create_sheet("instructions")
    guide.column_dimensions["A"].width = 110
    for i, line in enumerate(instructions(problem), 1):
        _put(guide, i, 1, line)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def _put(sheet: Any, row: int, column: int, value: Any) -> Any:
    """Write a number or text, which stays text whatever it begins with."""
    there = sheet.cell(row, column)
    if isinstance(value, str):
        text = (value if value.isprintable() else one_line(value))[:_LONGEST]
        there.value = text
        there.data_type = "s"
        there.quotePrefix = text.startswith(("=", "+", "-", "@"))
    else:
        there.value = value
    return there


def instructions(problem: Problem) -> list[str]:
    """What the people who fill in a table have to know, a line each."""
    lines = ["Each row is one evaluation. Leave the columns up to 'asked' as they are; fill in the others:"]
    for task in problem.tasks:
        unit = f" in {task.unit}" if task.unit else ""
        label = f" ({task.label})" if task.label else ""
        lines.append(f"  {task.name}{label}: the value{unit}. '>10' or '<0.1' is a bound, 'inf' is beyond anything.")
        lines.append(f"  {task.name}_err: its standard error{unit}, if known. {task.name}_bound: 'above' or 'below'.")
    lines += [
        "  status: 'done'; 'failed' (another try may succeed) or 'rejected' (never), with the reason in 'comment';",
        "      'running' or empty: nothing is known yet, the row is left alone.",
        "A row with some values counts once its status is 'done', or every value is there or is '-'.",
        "Write numbers, not formulas. Send the file back at any time, with some rows filled in, as often as you like.",
        "Parameters:",
    ]
    for p in problem.space.parameters:
        unit, label = f" {p.unit}" if p.unit else "", f" ({p.label})" if p.label else ""
        scale = ", on a log scale" if p.scale == "log" else ""
        lines.append(f"  {p.name}{label}: {p.lower:g} to {p.upper:g}{unit}{scale}")
    return [one_line(line) if not line.startswith(" ") else "  " + one_line(line) for line in lines]


# -------------------------------------------------------------------------------------------------------- SLHA


def to_slha(
    problem: Problem, requests: Sequence[Request], template: str | None = None, entries: Sequence[str] = ()
) -> dict[str, str]:
    """One SLHA file per request: file name -> text.

    Every file begins with comments that hold the id and the parameters, so that it can be told when it comes back.

    Args:
        problem: gives names and units.
        requests: what is asked.
        template: an SLHA file in which {name} (or {name:.6E}) is a parameter, and {request}, {number}, {seed},
            {events} and {fidelity} are known too.
        entries: "BLOCK:KEY=name" sets an entry, in the template or in a block of its own: "MASS:1000022=m_chi",
            "NMIX:1,1=x". Without a template or entries all parameters are in a block EXCURSION.

    Raises:
        InvalidTable: placeholders or entries that make no sense.
    """
    found: dict[str, str] = {}
    wanted = [_entry(text, problem) for text in entries]
    for asked in requests:
        head = _heading(problem, asked)
        body = "" if template is None else _filled(template, asked)
        if template is None and not wanted:
            body = "\n".join(
                [
                    f"BLOCK {BLOCK}",
                    *(
                        f"    {i:3d}   {asked.x[p.name]:<24.17G} # {_with_unit(p.name, p.unit)}"
                        for i, p in enumerate(problem.space.parameters, 1)
                    ),
                ]
            )
        for block, keys, name in wanted:
            body = _set(body, block, keys, asked.x[name], name)
        found[f"{key(asked.campaign).replace(' ', '_')}-{asked.number:06d}.slha"] = f"{head}\n{body.rstrip()}\n"
    return found


def _with_unit(name: str, unit: str) -> str:
    return one_line(f"{name} [{unit}]" if unit else name)


def _heading(problem: Problem, asked: Request) -> str:
    campaign = json.dumps(asked.campaign)
    how = [f"fidelity {json.dumps(asked.fidelity)}"] if asked.fidelity else []
    how += [f"{asked.events} events"] if asked.events else []
    lines = [f"excursion request: {asked.id}", f"campaign {campaign}, point {asked.number}"]
    lines += [", ".join([*how, f"seed {asked.seed}", f"asked {asked.asked}"]), f"reason: {asked.reason}"]
    lines += [f"excursion parameter: {n} = {v!r}" for n, v in asked.x.items()]
    lines.append(f"To send results back in this file add BLOCK {RESULT}, one line 'key value' for each of:")
    for i, task in enumerate(problem.tasks, 1):
        lines.append(f"  {i}: {_with_unit(task.name, task.unit)}; {ERRORS_FROM + i}: its standard error")
    lines.append("  0: 'done', 'failed' or 'rejected', with the reason after a #")
    return "\n".join(f"# {one_line(line) if not line.startswith(' ') else '  ' + one_line(line)}" for line in lines)


def _filled(template: str, asked: Request) -> str:
    """The template with the placeholders replaced."""
    known: dict[str, Any] = {
        "request": asked.id,
        "number": asked.number,
        "seed": asked.seed,
        "events": asked.events or "",
        "fidelity": one_line(asked.fidelity),
        **asked.x,
    }

    def value(match: re.Match[str]) -> str:
        name, spec = match[1], match[2] or ""
        if name not in known:
            raise InvalidTable(
                f"template: {{{name}}} must be a parameter or one of request, number, seed, events, fidelity, got "
                f"{match[0]!r}. Parameters are {list(asked.x)}"
            )
        try:
            return format(known[name], spec) if spec else str(known[name])
        except (ValueError, OverflowError, MemoryError) as error:
            raise InvalidTable(f"template: a placeholder is {{name:.6E}}, got {match[0]!r} ({error})") from None

    return re.sub(r"\{(\w+)(?::([^{}\n]{0,12}))?\}", value, template)


def _entry(text: str, problem: Problem) -> tuple[str, tuple[str, ...], str]:
    match = re.fullmatch(r"\s*([A-Za-z]\w*):(\d+(?:,\d+)*)\s*=\s*(\w+)\s*", text)
    if match is None or match[3] not in problem.space.names:
        raise InvalidTable(
            f"slha: an entry is BLOCK:KEY=parameter with one of {list(problem.space.names)}, got {text!r}. "
            "Write --slha MASS:1000022=m_chi"
        )
    return match[1].upper(), tuple(match[2].split(",")), match[3]


def _set(text: str, block: str, keys: tuple[str, ...], value: float, name: str) -> str:
    """The text with an entry of a block set; entry and block are added where they are not there."""
    lines = text.splitlines()
    inside, end = False, None
    new = f"    {' '.join(keys)}   {value:.10E}   # {name}"
    for i, line in enumerate(lines):
        words = line.split("#", 1)[0].split()
        if words and words[0].upper() in ("BLOCK", "DECAY"):
            inside = words[0].upper() == "BLOCK" and len(words) > 1 and words[1].upper() == block
        elif inside and tuple(words[: len(keys)]) == keys and len(words) == len(keys) + 1:
            comment = line.split("#", 1)[1].strip() if "#" in line else name
            lines[i] = f"    {' '.join(keys)}   {value:.10E}   # {comment}"
            return "\n".join(lines)
        if inside:
            end = i
    if end is None:
        lines += [f"BLOCK {block}", new]
    else:
        lines.insert(end + 1, new)
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- files


def files(
    problem: Problem,
    campaign: str,
    requests: Sequence[Request],
    how: Format,
    out: Path,
    template: str | None = None,
    entries: Sequence[str] = (),
) -> dict[Path, bytes]:
    """What to write where.

    Args:
        problem, requests, template, entries: see the functions above.
        campaign: its name, for the name of the file.
        how: one of `FORMATS`.
        out: a file, or a folder (which exists, or for SLHA) in which the file is named after the campaign.
    """
    if how == "slha":
        texts = to_slha(problem, requests, template, entries)
        return {out / name: text.encode() for name, text in texts.items()}
    content = {"csv": to_csv, "yaml": to_yaml}.get(how)
    data = content(problem, requests).encode() if content else to_xlsx(problem, requests)
    return {target(campaign, how, out): data}


def target(campaign: str, how: Format, out: Path) -> Path:
    """The file for a table of requests."""
    return out / f"{key(campaign).replace(' ', '_')}{_SUFFIX[how]}" if out.is_dir() else out


def check_free(paths: Mapping[Path, bytes] | Sequence[Path]) -> None:
    """Refuse to write over a file that may hold somebody's results; one with the same content is fine.

    Raises:
        StoreError: there is such a file.
    """
    for path in paths:
        same = isinstance(paths, Mapping) and path.is_file() and path.read_bytes() == paths[path]
        if path.exists() and not same:
            raise StoreError(f"export: {path} is there already, and may hold results. Choose another name or remove it")


def save(content: Mapping[Path, bytes]) -> None:
    """Write files that are complete or not there.

    Raises:
        StoreError: one cannot be written.
    """
    for path, data in content.items():
        draft = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise StoreError(f"export: {path} must be writable, got {error.strerror}. Choose another place") from error
