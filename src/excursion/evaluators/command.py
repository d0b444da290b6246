"""Any program as an evaluator: parameters go in on the command line, a small JSON file comes out."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import Job, Outcome
from ..errors import EvaluationError, ImpossiblePoint, InvalidOutcome, InvalidSpec
from ..untrusted import LARGEST_RESULT, json_value, read_end, read_result
from . import Evaluator
from .program import OPTIONAL, RESERVED, about, exit_text, fill, log_advice, new_directory, pieces, split, wait

__all__ = ["Command"]

_OUTCOME_KEYS = {"values", "variances", "bounds", "info"}


@dataclass(frozen=True)
class Command(Evaluator):
    """Runs a program once per point, each time in a directory of its own.

    The template is split into words as a shell would do, and only then are the placeholders filled in, so
    that no value can become two words or another command; there is no shell. `{name}` is the parameter's
    value with all its digits, `{name:.3f}` is formatted as Python does; `{workdir}` is the directory of
    this evaluation (where the program runs), `{folder}` the field `folder`, `{seed}`, `{number}`, `{fidelity}` and
    `{events}` are those of the trial (0 events where the campaign declares fidelities but does not choose events for
    this one). Braces are doubled where they are meant.

    The program's result is JSON: a number; or an object `{"task": number, ...}`; or an object with the keys
    "values" and, if known, "variances", "bounds" and "info", each (but info) with one entry per task (see
    `Outcome`). A task with null is missing.

    Attributes:
        template: the command line, such as `mycode --m {m_slepton} --out {workdir}/result.json`.
        result: the file that holds the result, relative to the evaluation's directory; or "stdout" for the
            last line that the program prints.
        workdir: the directory under which each evaluation gets its own, `00012-0` for the first try of
            trial 12. None is ever used twice or removed. What the program prints is kept there in
            `log.txt`.
        timeout: seconds after which the program and all processes of its group are killed; None for no limit.
        impossible_exit_codes: exit codes by which the program says that it can never succeed at this point.
        environment: variables the program sees besides those of this process.
        parameters: the names of the space's parameters, to check the template before anything runs; None to
            find out at the first evaluation.
        task: the task a bare number belongs to.
        folder: what `workdir` and the program's own path are relative to; the current directory if empty.

    Raises:
        InvalidSpec: a template that cannot be split or filled in, a result outside the evaluation's
            directory, a timeout that is not positive.

    Example:
        >>> import tempfile
        >>> command = Command("echo {x:.1f}", result="stdout", workdir=tempfile.mkdtemp(), parameters=("x",))
        >>> command.evaluate(Job({"x": 0.25})).values
        {'f': 0.2}
    """

    template: str
    result: str = "result.json"
    workdir: str = "work"
    timeout: float | None = None
    impossible_exit_codes: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[str, ...] | None = None
    task: str = "f"
    folder: str = ""

    def __post_init__(self) -> None:
        # Absolute from now on: worker processes may run elsewhere.
        folder = os.path.abspath(os.path.expanduser(self.folder))
        object.__setattr__(self, "folder", folder)
        object.__setattr__(self, "workdir", os.path.join(folder, os.path.expanduser(self.workdir)))
        object.__setattr__(self, "impossible_exit_codes", tuple(self.impossible_exit_codes))
        object.__setattr__(self, "environment", dict(self.environment))
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(self.parameters))
        used = {
            name
            for word in split(self.template, "command")
            for _, name, _ in pieces(word, "command")
            if name is not None
        }
        if self.parameters is not None:
            # Numbers of the kind that will come; the result is not used.
            x, job = dict.fromkeys(self.parameters, 0.5), Job({}, fidelity="x", events=1)
            self._words(
                x, {k: v for k, v in self._reserved(Path(folder), job).items() if k not in OPTIONAL or k not in x}
            )
            if missing := sorted(set(self.parameters) - used):
                raise InvalidSpec(
                    f"command: the template must use every parameter, got no {', '.join(missing)} in "
                    f"{self.template!r}. Write {{{missing[0]}}} where its value belongs"
                )
        elif not used:
            raise InvalidSpec(
                f"command: the template must use the point, got no placeholder in {self.template!r}. "
                "Write {name} where the value of a parameter belongs"
            )
        path = Path(self.result)
        if not self.result or path.is_absolute() or ".." in path.parts or path == Path("."):
            raise InvalidSpec(
                f"command: the result must be a file in the evaluation's own directory, got {self.result!r}. "
                "Give a relative path without '..', or 'stdout'"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidSpec(f"command: the timeout must be positive, got {self.timeout!r}. Leave it out for no limit")
        if 0 in self.impossible_exit_codes:
            raise InvalidSpec("command: exit codes of impossible points must not be 0, got 0. It means success")
        for name, value in self.environment.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise InvalidSpec(
                    f"command: environment variables must be text, got {name!r}={value!r}. Put it in quotes"
                )

    def evaluate(self, job: Job) -> Outcome:
        """Run the program at one point and read what it has written.

        Args:
            job: the point in physical units, the trial's number and its seed.

        Returns:
            The values; `info` tells the directory and the seconds.

        Raises:
            EvaluationError: the program cannot be started, takes too long, ends with an exit code other
                than 0, or its result is missing or makes no sense.
            ImpossiblePoint: it ends with one of `impossible_exit_codes`.
            InvalidSpec: the template does not fit the point's parameters.
        """
        text, path, info = self.output(job)
        return self._outcome(f"command at trial {job.number}", text, path, info)

    def output(self, job: Job) -> tuple[str, Path, dict[str, Any]]:
        """Run the program at one point: the text of its result, the file, directory and seconds.

        Raises:
            As `evaluate`, but the text may make no sense.
        """
        where = f"command at trial {job.number}"
        # Before the directory is made: a template that does not fit shall leave no trace.
        self._words(job.x, self._reserved(Path(self.workdir), job))
        directory = new_directory(Path(self.workdir), job.number, where)
        words = self._words(job.x, self._reserved(directory, job))
        start = time.monotonic()
        try:
            code = self._run(where, words, directory)
        except subprocess.TimeoutExpired:
            raise EvaluationError(
                f"{where}: the program must end within {self.timeout:g} s, got no end and killed it. "
                + log_advice(directory)
            ) from None
        seconds = time.monotonic() - start
        if code != 0:
            kind = ImpossiblePoint if code in self.impossible_exit_codes else EvaluationError
            raise kind(
                f"{where}: the program must end with exit code 0, got {exit_text(code)} after {seconds:.1f} s. "
                + log_advice(directory)
            )
        text, path = self._result(where, directory)
        return text, path, {"workdir": str(directory), "seconds": seconds}

    # -- the command line

    def _reserved(self, directory: Path, job: Job) -> dict[str, Any]:
        return {"workdir": str(directory), "folder": self.folder, **about(job)}

    def _words(self, x: Mapping[str, float], reserved: Mapping[str, Any]) -> list[str]:
        """The words of the command line, filled in."""
        if clash := sorted(set(x) & set(reserved)):
            raise InvalidSpec(
                f"command: parameters must not be called {', '.join(RESERVED)}, got {clash}. Rename the parameter"
            )
        values = {**{name: float(value) for name, value in x.items()}, **reserved}
        words = [fill(word, values, sorted(x), "command") for word in split(self.template, "command")]
        if os.sep in words[0]:
            # A program's path is the user's, who thinks of `folder`; the process will run elsewhere.
            words[0] = os.path.join(self.folder, os.path.expanduser(words[0]))
        return words

    # -- the process

    def _run(self, where: str, words: Sequence[str], directory: Path) -> int:
        """Run until the end or the timeout (`TimeoutExpired`); returns the exit code, negative for a signal."""
        limits: dict[str, Any] = {"environment": self.environment, "timeout": self.timeout, "where": where}
        with open(directory / "log.txt", "ab") as log:
            if self.result != "stdout":
                return wait(words, directory, log, log, **limits)
            with open(directory / "stdout.txt", "w+b") as out:
                try:
                    return wait(words, directory, out, log, **limits)
                finally:
                    # What is kept of it a second time is bounded; all of it is in stdout.txt.
                    out.seek(max(0, out.seek(0, os.SEEK_END) - LARGEST_RESULT))
                    shutil.copyfileobj(out, log)

    # -- the result

    def _result(self, where: str, directory: Path) -> tuple[str, Path]:
        path = directory / ("stdout.txt" if self.result == "stdout" else self.result)
        try:
            text = (read_end if self.result == "stdout" else read_result)(path, directory)
        except UnicodeDecodeError as error:
            raise EvaluationError(
                f"{where}: the result {path} must be readable text, got {error}. " + log_advice(directory)
            ) from error
        except ValueError as error:
            raise EvaluationError(
                f"{where}: the program must write its result to {path}, got {error}. " + log_advice(directory)
            ) from error
        if self.result == "stdout":
            lines = [line for line in text.splitlines() if line.strip()]
            text = lines[-1] if lines else ""
        return text.strip(), path

    def _outcome(self, where: str, text: str, path: Path, info: dict[str, Any]) -> Outcome:
        def wrong(rule: str, got: object, why: object = "") -> EvaluationError:
            shown = repr(got) if len(repr(got)) <= 200 else repr(got)[:200] + "..."
            reason = f" ({why})" if why else ""
            return EvaluationError(
                f"{where}: {rule}, got {shown} in {path}{reason}. Write a number or {{task: number}}"
            )

        try:
            found = json_value(text)
        except ValueError as error:
            try:
                # "inf" and ".5" are numbers to most programs, though not to JSON.
                found = float(text)
            except ValueError:
                raise wrong("the result must be JSON", text, error) from None
        if _is_number(found):
            found = {self.task: found}
        if not isinstance(found, dict) or not found:
            raise wrong("the result must be a number or an object", found)
        if not isinstance(found.get("values"), dict):
            found = {"values": found}
        if unknown := sorted(set(found) - _OUTCOME_KEYS):
            raise wrong(f"beside 'values' the result may hold {sorted(_OUTCOME_KEYS - {'values'})}", unknown)
        if any(not isinstance(part, dict) for part in found.values()):
            raise wrong("values, variances, bounds and info must be objects", found)
        missing = {task for task, value in found["values"].items() if value is None}
        for part, numbers in (("values", found["values"]), ("variances", found.get("variances", {}))):
            if not all(_is_number(v) or (part == "values" and v is None) for v in numbers.values()):
                raise wrong("each task must have a number", numbers)
        if missing and missing == set(found["values"]):
            raise wrong("a task must have a number", found["values"])
        found["info"] = {**found.get("info", {}), **info}
        try:
            return Outcome(**found)
        except (InvalidOutcome, OverflowError) as error:
            raise EvaluationError(f"{where}: the result in {path} makes no sense: {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
