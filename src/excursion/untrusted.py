"""Text that programs and people hand us, read with bounds: on its kind of file, bytes, depth and size, never as code.

JSON and YAML are general: a few lines of either can hold a structure that fills the memory or overflows the stack of
whoever walks through it later. What is read here is shallow and small enough for everything that follows.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ExcursionError

__all__ = [
    "DEEPEST",
    "LARGEST",
    "LARGEST_RESULT",
    "json_value",
    "printable",
    "read_end",
    "read_result",
    "read_text",
    "require_small_yaml",
    "yaml_value",
]

#: Bytes of a file that a person names: a table of a million rows.
LARGEST = 2**28
#: Bytes of a result that a program writes.
LARGEST_RESULT = 2**24
#: Levels of nested lists and mappings.
DEEPEST = 64
#: Nodes of a YAML document, aliases counted as often as they are used.
_NODES = 2**22


def read_text(
    file: str | os.PathLike[str],
    refuse: type[ExcursionError],
    encoding: str = "utf-8",
    *,
    largest: int = LARGEST,
) -> str:
    """The text of a file that the user has named.

    Args:
        file: the path; a pipe will do.
        refuse: what to raise.
        encoding: of the text.
        largest: bytes it may have.

    Raises:
        ExcursionError: as `refuse`, where it cannot be read, is too large or is not text.
    """
    try:
        with open(file, "rb") as stream:
            data = stream.read(largest + 1)
    except OSError as error:
        raise refuse(f"{file}: must be a readable file, got {error.strerror}. Check the path") from None
    except ValueError as error:  # NUL or half a character in the path
        raise refuse(f"{os.fspath(file)!r}: must be the path of a file, got {error}. Check the path") from None
    if len(data) > largest:
        raise refuse(f"{file}: must have at most {largest} bytes, got more. Give a smaller file")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise refuse(f"{file}: must be UTF-8 text, got {error.reason} at byte {error.start}. Save it anew") from None


def read_result(path: Path, directory: Path, *, largest: int = LARGEST_RESULT) -> str:
    """The text of a file that a program was to write into its own directory.

    Args:
        path: the file, which lies in `directory`.
        directory: of the evaluation; neither the file nor what leads to it may be a link out of it.
        largest: bytes it may have.

    Raises:
        ValueError: there is no such file, it is none (a pipe, a device, a folder), lies elsewhere, is too large or no
            UTF-8 text. The message completes "the program must write its result to ..., got ".
    """
    return _inside(path, directory, largest, whole=True).decode("utf-8")


def read_end(path: Path, directory: Path, *, largest: int = 2**16) -> str:
    """As `read_result`, but only the end of a longer file; bytes that are no text become U+FFFD."""
    return _inside(path, directory, largest, whole=False).decode("utf-8", errors="replace")


def _inside(path: Path, directory: Path, largest: int, *, whole: bool) -> bytes:
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(directory)):
        raise ValueError(f"a link from {path} to {real}, outside its directory")
    try:
        # Opening a pipe would wait for a writer.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except OSError as error:
        raise ValueError(str(error.strerror)) from None
    with os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else _closed(descriptor) as stream:
        size = stream.seek(0, os.SEEK_END)
        if whole and size > largest:
            raise ValueError(f"{size} bytes, more than {largest}")
        stream.seek(0 if whole else max(0, size - largest))
        return stream.read(largest)


def _closed(descriptor: int) -> Any:
    os.close(descriptor)
    raise ValueError("something that is no file")


#: What moves a terminal's cursor or sets its colours (ECMA-48), and titles of windows.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(value: Any) -> Any:
    """JSON-compatible data whose texts can be written as UTF-8 and shown on a terminal.

    Escape sequences are removed, carriage returns end lines; other control characters and halves of characters, which
    file names that are no UTF-8 have in Python, become U+FFFD.
    """
    if isinstance(value, str):
        if value.isprintable():
            return value
        text = _ESCAPES.sub("", value).replace("\r\n", "\n").replace("\r", "\n")
        return _UNPRINTABLE.sub("\ufffd", text)
    if isinstance(value, Mapping):
        return {printable(key): printable(inner) for key, inner in value.items()}
    return [printable(inner) for inner in value] if isinstance(value, list | tuple) else value


def json_value(text: str) -> Any:
    """The value of a JSON text; NaN and infinities are numbers here.

    Raises:
        ValueError: no JSON, a key that is given twice, more than `DEEPEST` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("too many levels") from None
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} twice")
    return found


def yaml_value(text: str) -> Any:
    """The plain data of a YAML text, without objects.

    Raises:
        ValueError: no YAML, a tag that does not fit, more than `DEEPEST` levels, aliases that multiply.
    """
    import yaml

    try:
        require_small_yaml(text, _NODES)
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # What PyYAML's constructors raise for scalars that do not fit their tag, "!!int ''" for example.
        raise ValueError(f"a value that does not fit its tag ({type(error).__name__}: {error})") from None


def require_small_yaml(text: str, nodes: int) -> None:
    """Refuse what is deep or large, quickly and without a stack: safe for any text, which the loaders are not.

    (libyaml's end the process where lists are nested some ten thousand deep.)

    Args:
        text: YAML; at a mistake the check ends, as any loader will.
        nodes: scalars, lists and mappings it may hold, aliases counted as often as they are used.

    Raises:
        ValueError: more than that, more than `DEEPEST` levels, an alias inside what it stands for.

    References:
        "Billion laughs": lists of aliases of lists of aliases of ...; merge keys multiply in the same way.
    """
    import yaml

    sizes: dict[str, int] = {}
    stack: list[tuple[str | None, int]] = []
    size = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            here = f"in line {1 + (event.start_mark.line if event.start_mark else 0)}"
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append((event.anchor, size))
                size = 1
                if len(stack) > DEEPEST:
                    raise ValueError(f"more than {DEEPEST} levels {here}")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = stack.pop()
                if anchor is not None:
                    sizes[anchor] = size
                size += before
            elif isinstance(event, yaml.ScalarEvent):
                size += 1
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in stack):
                    raise ValueError(f"an alias inside what it stands for {here}")
                size += sizes.get(str(event.anchor), 1)
            if size > nodes:
                raise ValueError(f"more than {nodes} values, counting aliases, {here}")
    except yaml.YAMLError:
        return  # the loader says where
