"""Other people's programs: words with placeholders filled in, a directory for each run, a log, an end that is sure."""

from __future__ import annotations

import os
import re
import shlex
import signal
import string
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..data import Job
from ..errors import EvaluationError, InvalidSpec
from ..untrusted import read_end

__all__ = [
    "OPTIONAL",
    "RESERVED",
    "about",
    "exit_text",
    "fill",
    "log_advice",
    "new_directory",
    "pieces",
    "split",
    "wait",
]

#: Placeholders that are not parameters.
RESERVED = ("workdir", "folder", "seed", "number", "fidelity", "events")
#: Of these, the ones that only some campaigns give; elsewhere parameters may be called so.
OPTIONAL = ("fidelity", "events")
#: Characters that a format may ask for.
_WIDEST = 100
#: Seconds between asking a program to end and killing it.
_GRACE = 1.0


# ------------------------------------------------------------------------------------------------ the words


def about(job: Job) -> dict[str, Any]:
    """The values of those placeholders of `RESERVED` that tell about the trial."""
    known: dict[str, Any] = {"seed": int(job.seed), "number": int(job.number)}
    if job.fidelity:
        known["fidelity"] = job.fidelity
    if job.fidelity or job.events is not None:
        known["events"] = int(job.events or 0)
    return known


def split(template: str, where: str) -> list[str]:
    """The words of a command line, as a shell would find them; there is no shell.

    Raises:
        InvalidSpec: quotes that are not closed, or no words.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InvalidSpec(
            f"{where}: the template must be words as in a shell, got {template!r} ({error}). Close the quotes"
        ) from error
    if not words:
        raise InvalidSpec(f"{where}: the template must name a program, got {template!r}. Write 'program --x {{x}}'")
    return words


def pieces(word: str, where: str) -> Iterator[tuple[str, str | None, str]]:
    """The literal text, placeholder (or None) and format of each piece of a word.

    Raises:
        InvalidSpec: braces that are no placeholders, or a format that asks for very many characters.
    """
    try:
        found = list(string.Formatter().parse(word))
    except ValueError as error:
        raise InvalidSpec(
            f"{where}: placeholders must be {{name}} or {{name:format}}, got {word!r} ({error}). "
            "Double the braces that are meant as braces"
        ) from error
    for text, name, form, conversion in found:
        if conversion or "{" in (form or ""):
            raise InvalidSpec(f"{where}: placeholders must be {{name}} or {{name:format}}, got {word!r}. Simplify it")
        if any(int(digits) > _WIDEST for digits in re.findall("[0-9]+", form or "")):
            raise InvalidSpec(
                f"{where}: a format must ask for at most {_WIDEST} characters or digits, got {{{name}:{form}}}. "
                "Use {name} for all digits"
            )
        yield text, name, form or ""


def fill(word: str, values: Mapping[str, Any], parameters: Sequence[str], where: str) -> str:
    """The word with its placeholders replaced; names are looked up whole, never as attributes or indices.

    Args:
        word: the text.
        values: of the parameters and of whatever is known else.
        parameters: names for the message.
        where: begins the message.

    Raises:
        InvalidSpec: a placeholder that is not among the values, or a format that does not fit.
    """
    filled = []
    for text, name, form in pieces(word, where):
        filled.append(text)
        if name is None:
            continue
        if name not in values:
            raise InvalidSpec(
                f"{where}: placeholders must be parameters ({', '.join(parameters) or 'none'}) or one of "
                f"{', '.join(RESERVED)}, got {{{name}}} in {word!r}. "
                + (f"Declare fidelities: this campaign gives no {name}" if name in OPTIONAL else "Correct the template")
            )
        value = values[name]
        try:
            filled.append(format(value, form) if form else value if isinstance(value, str) else repr(value))
        except ValueError as error:
            raise InvalidSpec(
                f"{where}: formats must fit the value, got {{{name}:{form}}} for {value!r} ({error}). "
                "Use {name:.0f} for a number without digits"
            ) from error
    return "".join(filled)


# ------------------------------------------------------------------------------------------------ the run


def new_directory(root: Path, number: int, where: str) -> Path:
    """A new directory under `root`: `00012-0` for the first try of trial 12, `00012-1` for the next.

    Raises:
        EvaluationError: it cannot be made.
    """
    attempt = 0
    while True:
        directory = root / f"{number:05d}-{attempt}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Making a directory is atomic: of two processes that try, one goes on to the next name.
            directory.mkdir()
            return directory
        except OSError as error:
            if not directory.is_dir():
                raise EvaluationError(
                    f"{where}: its directory {directory} must be made, got {error}. "
                    "Choose a workdir in which you may write"
                ) from error
            attempt += 1


def wait(
    words: Sequence[str],
    directory: Path,
    out: IO[bytes],
    log: IO[bytes],
    *,
    environment: Mapping[str, str],
    timeout: float | None,
    where: str,
) -> int:
    """Run a program until its end or the timeout, when it is killed with all processes of its group.

    Args:
        words: the command line.
        directory: where it runs.
        out: where its standard output goes.
        log: where its standard error goes.
        environment: variables besides those of this process.
        timeout: seconds, or None.
        where: begins the messages.

    Returns:
        Its exit code, negative for a signal.

    Raises:
        subprocess.TimeoutExpired: it was killed.
        InvalidSpec: there is no such program.
        EvaluationError: it cannot be started.
    """
    try:
        process = subprocess.Popen(
            words,
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise InvalidSpec(  # at every point: the run stops before the budget is spent on it
            f"{where}: the program must be there and executable, got {words[0]!r}: {error}. "
            "Check the template's first word"
        ) from error
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{where}: the program must be there and executable, got {words[0]!r}: {error}. "
            "Check the template's first word"
        ) from error
    try:
        return process.wait(timeout)
    except BaseException:
        # The timeout; or Ctrl-C, which does not reach a process of another session.
        _end_group(process)
        raise


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: asked first, killed soon after.

    The process is not waited for until the end: as long as it is not, its number and its group's cannot be
    given to another program, which we would kill.
    """
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(_GRACE)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exit_text(code: int) -> str:
    """How a program ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def log_advice(directory: Path, log: str = "log.txt", lines: int = 10) -> str:
    """Where the log is, and its end."""
    path = directory / log
    try:
        text = read_end(path, directory, largest=4096)
    except ValueError as error:
        return f"There is no log: the program made of {path} {error}"
    tail = text.rstrip().splitlines()[-lines:]
    return f"See {path}" + (", which ends with:\n" + "\n".join(tail) if tail else ", which is empty")
