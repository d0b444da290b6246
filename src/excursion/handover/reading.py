"""Result files as rows of cells: CSV, spreadsheets, YAML, JSON, SLHA, from any program and country. Interprets nothing.

A cell is text wherever the file has text, so that the digits that somebody wrote are known. What a row or a file makes
impossible to understand is refused with the reason; nothing is skipped.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidTable, MissingExtra
from .writing import RESULT, SHEET

__all__ = ["Refusal", "Row", "Rows", "expand", "read_rows"]

#: Largest file, and largest content of a packed one, in bytes; most rows of a sheet; deepest nesting.
LARGEST, UNPACKED, MOST, DEEPEST = 32 << 20, 64 << 20, 200_000, 30
#: Longest cell that messages show.
_SHOWN = 80
_KINDS = (".csv", ".tsv", ".txt", ".xlsx", ".yaml", ".yml", ".json", ".slha", ".spc", ".lha")


@dataclass(frozen=True)
class Refusal:
    """Something in a file that was not told.

    Attributes:
        file: its path.
        row: the line of a text file or the row of a sheet, the number of an entry of YAML or JSON (1 is the first);
            None: the whole file.
        request: what the row says that it answers, "" if that is not known.
        reason: why, with what to do.
    """

    file: str
    row: int | None
    request: str
    reason: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{place}{f' ({self.request})' if self.request else ''}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and header -> cell; cells that are empty may be absent."""

    file: str
    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """What is in a file.

    Attributes:
        file: its path.
        headers: of all columns.
        rows: those that can be read.
        refused: those that cannot.
        notes: how the file was understood, where that is not clear; a sentence each.
    """

    file: str
    headers: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    refused: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = field(default=())


class _Refused(Exception):
    """A file, or what comes after a place in it, cannot be read."""


def expand(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files meant by paths, of which some are folders; sorted inside a folder.

    Raises:
        InvalidTable: a path that is not there, a folder without a result file.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        try:
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in _KINDS and f.is_file())
        except NotADirectoryError:
            found.append(path)
            continue
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidTable(f"{path}: must be a result file or a folder, got {reason}. Check the path") from None
        inside = [f for f in inside if not f.name.startswith(("~$", ".~lock"))]
        if not inside:
            raise InvalidTable(f"{path}: must hold result files ({' '.join(_KINDS)}), got none. Check the path")
        found += inside
    return found


def read_rows(path: Path, known: Sequence[str]) -> Rows:
    """The rows of a file, whatever its kind, which is told from its content.

    Args:
        path: a file.
        known: headers, of which a table has at least one.
    """
    file = str(path)
    try:
        if path.stat().st_size > LARGEST:
            raise _Refused(f"must be smaller than {LARGEST >> 20} MiB, got {path.stat().st_size >> 20}. Split it")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return Rows(file, refused=(Refusal(file, None, "", f"must be readable, got {reason}. Check the path"),))
    except _Refused as error:
        return Rows(file, refused=(Refusal(file, None, "", str(error)),))
    return rows_of(file, data, known)


def rows_of(file: str, data: bytes, known: Sequence[str]) -> Rows:
    """The rows of a file's content; see `read_rows`."""
    try:
        if data.startswith(b"PK"):
            return _sheet(file, data, known)
        if data.startswith(b"\xd0\xcf\x11\xe0"):
            raise _Refused("must be a workbook of today (.xlsx), got one of Excel 97 (.xls). Save it as .xlsx or CSV")
        text, notes = _decoded(data)
        if not text.strip():
            raise _Refused("must hold rows, got an empty file. Check that it was saved")
        suffix = Path(file).suffix.lower()
        if suffix in (".slha", ".spc", ".lha") or re.search(r"^\s*#\s*excursion request:", text, re.MULTILINE):
            found = _slha(file, text)
        elif text.lstrip()[:1] in ("[", "{"):
            found = _entries(file, _json(text))
        elif suffix in (".yaml", ".yml") or (suffix not in (".csv", ".tsv") and re.match(r"(---|-)\s", text.lstrip())):
            found = _entries(file, _yaml(text))
        else:
            found = _csv(file, text, known)
        return Rows(file, found.headers, found.rows, found.refused, (*notes, *found.notes))
    except _Refused as error:
        return Rows(file, refused=(Refusal(file, None, "", str(error)),))


def _decoded(data: bytes) -> tuple[str, list[str]]:
    """The text, and a note if its encoding had to be guessed."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    notes = []
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise _Refused(f"must be text, got {error.reason} at byte {error.start}. Save it as UTF-8") from None
        # Every byte is a letter in Latin-1; Windows-1252 differs in the letters that people write.
        try:
            text = data.decode("cp1252")
            notes.append("read as Windows-1252, for it is not UTF-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
            notes.append("read as Latin-1, for it is neither UTF-8 nor Windows-1252")
    if "\0" in text:
        raise _Refused("must be text, a table or a workbook, got zero bytes. Check the file")
    return text, notes


# --------------------------------------------------------------------------------------------------------- CSV


def _csv(file: str, text: str, known: Sequence[str]) -> Rows:
    """Comma, semicolon or tab. Lines before the header that begin with # are comments."""
    lines = list(io.StringIO(text, newline=""))  # str.splitlines knows more ends of lines than CSV does
    skipped, separator = 0, ""
    while skipped < len(lines) and (lines[skipped].startswith("#") or not lines[skipped].strip() or not separator):
        line = lines[skipped].strip()
        if match := re.fullmatch(r"sep=(.)", line, re.IGNORECASE):
            separator = match[1]  # Excel writes it so
        elif line and not line.startswith("#"):
            break
        skipped += 1
    if skipped == len(lines):
        raise _Refused("must have a header and rows, got comments only. Check the file")
    if not separator:
        choices = {d: _header(lines[skipped], d) for d in ",;\t"}
        separator = max(choices, key=lambda d: (len({*choices[d]} & {*known}), len(choices[d])))
    try:
        reader = csv.reader(iter(lines[skipped:]), delimiter=separator, skipinitialspace=True, strict=True)
    except TypeError:
        raise _Refused(f"the separator must be one of , ; tab, got {separator!r}. Save it as CSV") from None
    headers: list[str] = []
    rows, refused = [], []
    start = line_number = skipped + 1
    try:
        for cells in reader:
            start, line_number = line_number, skipped + reader.line_num + 1
            if not headers:
                headers = _headers(cells)
            elif not any(c.strip() for c in cells):
                continue
            elif reason := _odd(headers, cells):
                refused.append(Refusal(file, start, cells[0].strip()[:_SHOWN], reason))
            else:
                rows.append(Row(file, start, {h: c for h, c in zip(headers, cells) if h}))
    except csv.Error as error:
        if not headers:
            raise _Refused(f"must be CSV, got {error} in the header. Correct it") from None
        reason = f"must be CSV, got {error}: from here on nothing was read. Correct the quotes, and import it again"
        refused.append(Refusal(file, line_number, "", reason))
    return Rows(file, tuple(h for h in headers if h), tuple(rows), tuple(refused))


def _odd(headers: Sequence[str], cells: Sequence[Any]) -> str:
    """Why cells do not fit below headers; empty if they do."""
    # One empty cell too many will not do either: a decimal comma may have moved the others.
    if len(cells) != len(headers):
        return (
            f"must have one cell for each of the {len(headers)} columns, got {len(cells)}. Is the line cut off, or a "
            "comma not in quotes?"
        )
    beside = next((str(c)[:_SHOWN] for h, c in zip(headers, cells) if not h and c is not None and str(c).strip()), "")
    return f"a cell must have a header, got {beside!r} beside the table. Move it to 'comment'" if beside else ""


def _header(line: str, separator: str) -> list[str]:
    try:
        return [h.strip() for h in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error:
        return []


def _headers(cells: Sequence[Any]) -> list[str]:
    """The headers as text, each once; empty ones are empty.

    Raises:
        _Refused: one occurs twice.
    """
    found = ["" if c is None else " ".join(str(c).split()) for c in cells]
    found = [h[1:] if re.match(r"'[=+\-@']", h) else h for h in found]
    if repeated := sorted({h for h in found if h and found.count(h) > 1}):
        raise _Refused(f"columns must have different names, got {repeated} twice. Rename or remove one of each")
    return found


# ------------------------------------------------------------------------------------------------- spreadsheet


def _sheet(file: str, data: bytes, known: Sequence[str]) -> Rows:
    """The sheet of requests of a workbook, or the first one that looks like it. Formulas are not computed."""
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtra(
            f"{file}: needs openpyxl, got no such module. Run pip install 'excursion[spreadsheet]', or save it as CSV"
        ) from error
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size = sum(part.file_size for part in packed.infolist())
            names = set(packed.namelist())
        if size > UNPACKED:
            raise _Refused(f"must hold less than {UNPACKED >> 20} MiB, got {size >> 20}. Send the sheet alone")
        if "xl/workbook.xml" not in names:
            raise _Refused("must be a workbook (.xlsx), got another kind of archive. Save it as .xlsx or CSV")
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, keep_links=False)
        titles = [SHEET] if SHEET in book.sheetnames else book.sheetnames
        first: Rows | None = None
        for title in titles:
            found = _sheet_rows(file, book[title])
            if {*found.headers} & {*known}:
                left = [t for t in book.sheetnames if t not in (title, "instructions")]
                note = (f"only the sheet {title!r} was read, not {left}",) if left else ()
                return Rows(file, found.headers, found.rows, found.refused, note)
            first = first or found
        return first or Rows(file)
    except _Refused:
        raise
    except Exception as error:  # a broken archive or XML: openpyxl, zipfile, zlib and expat raise whatever they like
        raise _Refused(
            f"must be a workbook, got {type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}. Save it again"
        ) from None


def _sheet_rows(file: str, sheet: Any) -> Rows:
    headers: list[str] = []
    rows, refused = [], []
    # Some programs declare fewer cells than they write.
    if hasattr(sheet, "reset_dimensions"):
        sheet.reset_dimensions()
    if not hasattr(sheet, "iter_rows"):  # a chart
        return Rows(file)
    blank = 0
    for number, cells in enumerate(sheet.iter_rows(), 1):
        if all(c.value is None or (isinstance(c.value, str) and not c.value.strip()) for c in cells):
            blank += 1
            if number > MOST:
                break
            continue
        if not headers:
            headers = _headers([c.value for c in cells])
            continue
        values = [_formula(c) for c in cells]
        if number > MOST:
            refused.append(Refusal(file, number, "", f"a sheet must have fewer than {MOST} rows. Split it"))
            break
        wide = max(len(headers), len(values))
        if reason := _odd(headers + [""] * (wide - len(headers)), values + [None] * (wide - len(values))):
            refused.append(Refusal(file, number, str(values[0] or "")[:_SHOWN], reason))
            continue
        rows.append(Row(file, number, {h: c for h, c in zip(headers, values) if h and c is not None}))
    return Rows(file, tuple(h for h in headers if h), tuple(rows), tuple(refused))


@dataclass(frozen=True)
class Formula:
    """A cell that is not a value but how to compute one."""

    text: str

    def __str__(self) -> str:
        return self.text


def _formula(cell: Any) -> Any:
    return Formula(str(cell.value)) if cell.data_type == "f" else cell.value


# ------------------------------------------------------------------------------------------------- YAML, JSON


class _Twice(list):
    """The pairs of a mapping in which a key is given twice."""


def _json(text: str) -> Any:
    """Numbers stay text, keys that are given twice are seen."""

    def pairs(found: list[tuple[str, Any]]) -> Any:
        return dict(found) if len({k for k, _ in found}) == len(found) else _Twice(found)

    def same(number: str) -> str:
        return number

    try:
        found = json.loads(text, parse_float=same, parse_int=same, parse_constant=same, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise _Refused(f"must be JSON, got {what}. Write a list of objects") from None
    level, depth = [found], 0
    while level := [v for v in level if isinstance(v, dict | list | tuple)]:
        if (depth := depth + 1) > DEEPEST:
            raise _Refused("must not be nested deeply, got too many levels. Write a list of objects")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return found


def _yaml(text: str) -> Any:
    """All scalars stay text. Built from events, which neither recurse nor multiply aliases."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    stack: list[tuple[Any, list[Any]]] = []
    documents: list[Any] = []

    def put(value: Any) -> None:
        (stack[-1][1] if stack else documents).append(value)

    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise _Refused(f"aliases are not read, got *{event.anchor}. Write the value out")
            if isinstance(event, yaml.ScalarEvent):  # a plain one is implicitly what it looks like
                plain = event.implicit[0]
                put(None if plain and event.value in ("", "~", "null", "Null", "NULL") else event.value)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                if len(stack) >= DEEPEST:
                    raise _Refused("must not be nested deeply, got too many levels. Write a list of mappings")
                stack.append((event, []))
            elif isinstance(event, yaml.SequenceEndEvent):
                put(stack.pop()[1])
            elif isinstance(event, yaml.MappingEndEvent):
                items = stack.pop()[1]
                keys = [k if isinstance(k, str) else str(k)[:_SHOWN] for k in items[::2]]
                found = list(zip(keys, items[1::2]))
                put(dict(found) if len(set(keys)) == len(keys) else _Twice(found))
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise _Refused(f"must be YAML, got {' '.join(str(error).split())[:200]}. Correct it") from None
    # Several documents are as good as a list of them.
    return documents[0] if len(documents) == 1 else documents


def _entries(file: str, data: Any) -> Rows:
    """Records: a list of mappings, {"requests": [...]}, or a single mapping; or a mapping of columns."""
    if isinstance(data, dict) and isinstance(data.get("requests"), list):
        data = data["requests"]
    if (
        isinstance(data, dict)
        and data
        and all(isinstance(v, list) and not isinstance(v, _Twice) for v in data.values())
    ):
        if len({len(v) for v in data.values()}) > 1:
            lengths = {k: len(v) for k, v in data.items()}
            raise _Refused(f"columns must have the same number of cells, got {str(lengths)[:200]}. Fill the gaps")
        data = [dict(zip(data, cells)) for cells in zip(*data.values())]
    if isinstance(data, dict | _Twice):
        data = [data]
    if not isinstance(data, list):
        raise _Refused(f"must be a list of records, got {str(data)[:_SHOWN]!r}. See docs/handover.md")
    rows, refused = [], []
    headers: dict[str, None] = {}
    for number, entry in enumerate(data, 1):
        try:
            cells = _flat(entry)
        except _Refused as error:
            name = entry.get("request") if isinstance(entry, dict) else None
            refused.append(Refusal(file, number, name[:_SHOWN] if isinstance(name, str) else "", str(error)))
            continue
        headers |= dict.fromkeys(cells)
        rows.append(Row(file, number, cells))
    return Rows(file, tuple(headers), tuple(rows), tuple(refused))


#: Mappings inside an entry whose keys are columns, and those that only describe.
_GROUPS, _TALK = ("parameters", "results"), ("units", "labels")


def _flat(entry: Any) -> dict[str, Any]:
    """The cells of an entry."""
    if isinstance(entry, _Twice):
        raise _Refused(f"a key must be given once, got {_repeated(entry)!r} again. Remove one of them")
    if not isinstance(entry, dict):
        raise _Refused(f"must be a record (a mapping), got {str(entry)[:_SHOWN]!r}. See docs/handover.md")
    found: dict[str, Any] = {}
    for name, value in entry.items():
        header = " ".join(name.split())
        if header in _TALK and isinstance(value, dict):
            continue
        if header in _GROUPS and isinstance(value, _Twice):
            raise _Refused(f"a key must be given once, got {_repeated(value)!r} again. Remove one of them")
        inside = list(value.items()) if header in _GROUPS and isinstance(value, dict) else [(header, value)]
        for inner, cell in inside:
            inner = " ".join(inner.split())
            if isinstance(cell, list | dict):
                raise _Refused(f"{inner!r} must be a number or text, got {str(cell)[:_SHOWN]}. Write one value")
            if inner in found and found[inner] != cell:
                raise _Refused(f"a key must be given once, got {inner!r} again. Remove one of them")
            found[inner] = cell
    return found


def _repeated(pairs: _Twice) -> str:
    names = [k for k, _ in pairs]
    return next(k for k in names if names.count(k) > 1)


# -------------------------------------------------------------------------------------------------------- SLHA


def _slha(file: str, text: str) -> Rows:
    """One request: id and parameters from the comments, results from a block; keys of tasks are "#1", "#101"."""
    cells: dict[str, Any] = {}
    block = ""

    def put(name: str, value: str, number: int) -> None:
        if name in cells and cells[name] != value:
            raise _Refused(f"line {number}: {name!r} must be given once, got {value!r} and {cells[name]!r}")
        cells[name] = value

    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*#\s*excursion request:\s*(\S.*?)\s*$", line):
            put("#request", match[1], number)
        elif match := re.match(r"\s*#\s*excursion parameter:\s*(\w+)\s*=\s*(\S+)\s*$", line):
            put(match[1], match[2], number)
        content, _, comment = line.partition("#")
        words = content.split()
        if words and words[0].upper() in ("BLOCK", "DECAY"):
            block = words[1].upper() if words[0].upper() == "BLOCK" and len(words) > 1 else ""
        elif words and block == RESULT:
            if len(words) != 2 or not words[0].isascii() or not words[0].isdigit():
                raise _Refused(f"line {number}: an entry of BLOCK {RESULT} is 'key value', got {content.strip()!r}")
            if words[0] == "0":
                put("#status", words[1], number)
                put("#comment", comment.strip(), number)
            else:
                put(f"#{int(words[0])}", words[1], number)
    if "#request" not in cells:
        raise _Refused("must have the comment '# excursion request: ...', got none. Copy it from the request")
    return Rows(file, tuple(dict.fromkeys([*cells, "#status"])), (Row(file, 1, cells),))
