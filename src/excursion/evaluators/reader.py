"""Results that others write: a JSON or YAML file of any layout -> the values of the tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..data import Outcome
from ..errors import EvaluationError, InvalidOutcome, InvalidSpec
from ..untrusted import json_value, read_result, yaml_value

__all__ = ["Quantity", "Reader"]

#: What a number of a result is: anything, a 95 % CL upper limit on the signal strength, a CLs value.
Quantity = Literal["value", "mu_95", "CLs"]
#: The largest YAML in bytes; it takes a second for each MB.
_LARGEST_YAML = 2**21
_NUMBER = re.compile(
    r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.?(inf|infinity)|\.?nan", re.IGNORECASE
)
_NULL = ("", "~", "null", "Null", "NULL")

Key = str | Sequence[str | int]


@dataclass(frozen=True)
class Reader:
    """Where in a result file the tasks' values are, and how far they are to be trusted.

    A key is a path through the objects and lists of the file: "limits.observed", "channels.0.obs", or a list of its
    steps where a name has a dot in it. A number may be text ("inf", "0.31"). Infinity is a bound, as in `Outcome`; null
    is a missing task; NaN is an error, for it says that something went wrong.

    Attributes:
        file: the result, relative to the evaluation's directory; YAML if it ends in .yml or .yaml, else JSON.
        keys: task -> key of its value.
        quantity: what the values are, for all tasks or for each (task -> quantity): "mu_95" must be positive, "CLs"
            lie between 0 and 1, anything else is an error of the evaluation.
        valid: task -> (lowest, highest), the range within which a value in the file is to be trusted, such as that of a
            scan. A value at its ends or beyond is only a bound: the true one lies below (above) that end.
        scale: factor from the file's units to the task's, for all tasks or for each (task -> factor).
        variances: task -> key of the variance of its value.
        errors: task -> key of the standard deviation of its value, instead.
        missing: tasks that the file need not have; they are missing, too, where it has NaN.

    Raises:
        InvalidSpec: a file outside the directory, no keys, a task with settings but no key, an empty range, an unknown
            quantity.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "limit.json").write_text('{"obs": 2.4, "exp": [0.9, 1.3, 1.9]}')
        >>> reader = Reader("limit.json", {"observed": "obs", "expected": "exp.1"}, valid={"observed": (0, 2)})
        >>> outcome = reader.read(folder)
        >>> outcome.values, outcome.bounds
        ({'observed': 2.0, 'expected': 1.3}, {'observed': 'above'})
    """

    file: str
    keys: Mapping[str, Key]
    quantity: Quantity | Mapping[str, Quantity] = "value"
    valid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scale: float | Mapping[str, float] = 1.0
    variances: Mapping[str, Key] = field(default_factory=dict)
    errors: Mapping[str, Key] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        path = Path(self.file)
        if not self.file or path.is_absolute() or ".." in path.parts or path == Path(".") or "\0" in self.file:
            raise InvalidSpec(
                f"result: the file must lie in the evaluation's own directory, got {self.file!r}. "
                "Give a relative path without '..'"
            )
        if not self.keys:
            raise InvalidSpec("result: each task needs a key of the file, got none. Write keys: {task: name}")
        for name in ("keys", "variances", "errors"):
            object.__setattr__(self, name, {t: _steps(name, t, key) for t, key in getattr(self, name).items()})
        object.__setattr__(self, "missing", tuple(self.missing))
        for name in ("quantity", "valid", "scale", "variances", "errors", "missing"):
            given = getattr(self, name)
            if not isinstance(given, str | int | float) and (unknown := sorted(set(given) - set(self.keys))):
                raise InvalidSpec(
                    f"result: {name} must belong to tasks that have keys ({', '.join(self.keys)}), got {unknown}. "
                    "Correct the names"
                )
        if both := sorted(set(self.variances) & set(self.errors)):
            raise InvalidSpec(f"result: a task has either a variance or an error, got both for {both}. Choose one")
        for task in self.keys:
            if (quantity := self._of(self.quantity, task, "value")) not in get_args(Quantity):
                raise InvalidSpec(
                    f"result: the quantity of {task!r} must be one of {', '.join(get_args(Quantity))}, "
                    f"got {quantity!r}. Choose one"
                )
            scale = self._of(self.scale, task, 1.0)
            if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < abs(scale) < math.inf:
                raise InvalidSpec(
                    f"result: the scale of {task!r} must be a finite number, not 0, got {scale!r}. Correct it"
                )
        ranges = {}
        for task, ends in self.valid.items():
            numbers = ends if isinstance(ends, list | tuple) and len(ends) == 2 else ()
            if not numbers or any(type(end) not in (int, float) for end in numbers) or not ends[0] < ends[1]:
                raise InvalidSpec(
                    f"result: the valid range of {task!r} must be [lowest, highest], got {ends!r}. Correct it"
                )
            ranges[task] = (float(ends[0]), float(ends[1]))
        object.__setattr__(self, "valid", ranges)

    @staticmethod
    def _of(setting: Any, task: str, default: Any) -> Any:
        return setting.get(task, default) if isinstance(setting, Mapping) else setting

    def read(self, directory: Path, where: str = "result") -> Outcome:
        """The outcome in a directory.

        Args:
            directory: of the evaluation.
            where: begins the messages.

        Raises:
            EvaluationError: there is no such file in this directory, it is not JSON or YAML, too large, a key is not in
                it, a value is no number or not the quantity it should be.
        """
        path = Path(directory) / self.file
        document = self._document(path, Path(directory), where)
        values: dict[str, float | None] = {}
        variances: dict[str, float] = {}
        bounds: dict[str, Literal["above", "below"]] = {}
        for task, key in self.keys.items():
            optional = task in self.missing
            value = self._number(document, key, task, f"{where}: {path}", optional)
            values[task] = value
            if value is None:
                continue
            self._check(value, task, f"{where}: {path}")
            scale = self._of(self.scale, task, 1.0)
            low, high = self.valid.get(task, (-math.inf, math.inf))
            if value <= low or value >= high:
                above = value >= high
                values[task] = scale * (high if above else low)
                bounds[task] = "above" if above == (scale > 0) else "below"
                continue
            values[task] = scale * value
            for found, power in ((self.variances, 1), (self.errors, 2)):
                if task not in found:
                    continue
                number = self._number(document, found[task], task, f"{where}: {path}", optional)
                if number is not None and not 0 <= number < math.inf:
                    raise EvaluationError(
                        f"{where}: {path}, {_dotted(found[task])}: a variance or error must be finite and not "
                        f"negative, got {number!r}. Leave its key out if it is unknown"
                    )
                if number is not None:
                    # Products, for a power that is too large is an exception; infinity is refused below.
                    variances[task] = (number if power == 1 else number * number) * scale * scale
        try:
            return Outcome(values=values, variances=variances, bounds=bounds)  # type: ignore[arg-type]
        except InvalidOutcome as error:
            raise EvaluationError(
                f"{where}: {path} must have a value, got none of {', '.join(self.keys)} ({error}). Check the program"
            ) from error

    def _document(self, path: Path, directory: Path, where: str) -> Any:
        kind = "YAML" if path.suffix.lower() in (".yml", ".yaml") else "JSON"
        try:
            if kind == "YAML":
                text = read_result(path, directory, largest=_LARGEST_YAML)
            else:
                text = read_result(path, directory)
        except ValueError as error:
            raise EvaluationError(
                f"{where}: the program must write its result to {path}, got {error}. Correct the file's name, or see "
                "what the program did"
            ) from error
        try:
            return yaml_value(text) if kind == "YAML" else json_value(text)
        except ValueError as error:
            raise EvaluationError(
                f"{where}: {path} must be {kind}, got {str(error)[:200]}. See what the program wrote"
            ) from error

    def _number(self, document: Any, key: Sequence[str | int], task: str, where: str, optional: bool) -> float | None:
        """The number at a key; None where it is null, or where an optional one is absent or NaN."""
        found = document
        for i, step in enumerate(key):
            here = _dotted(key[: i + 1])
            # In YAML a key may be a number.
            by_name = {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
            if str(step) in by_name:
                found = by_name[str(step)]
            elif (
                isinstance(found, list)
                and re.fullmatch(r"-?[0-9]{1,9}", str(step))
                and (-len(found) <= int(step) < len(found))
            ):
                found = found[int(step)]
            elif optional:
                return None
            else:
                there = (
                    f"the keys {_shown(sorted(by_name))}"
                    if isinstance(found, dict)
                    else f"a list of {len(found)}"
                    if isinstance(found, list)
                    else _shown(found)
                )
                raise EvaluationError(
                    f"{where} must have the key {here} of task {task!r}, got {there}. Correct the keys, or list the "
                    "task under 'missing'"
                )
        if found is None or (isinstance(found, str) and found.strip() in _NULL):
            return None
        number = _as_number(found)
        if number is None:
            raise EvaluationError(
                f"{where}, {_dotted(key)}: task {task!r} must be a number, got {_shown(found)}. Correct the keys"
            )
        if math.isnan(number):
            if optional:
                return None
            raise EvaluationError(
                f"{where}, {_dotted(key)}: task {task!r} must not be NaN, got {_shown(found)}. See why the program "
                "found no value, or list the task under 'missing'"
            )
        return number

    def _check(self, value: float, task: str, where: str) -> None:
        quantity = self._of(self.quantity, task, "value")
        if quantity == "mu_95" and not value > 0:
            raise EvaluationError(
                f"{where}: {task!r}, a limit on the signal strength, must be positive, got {value!r}. Check the fit"
            )
        if quantity == "CLs" and not 0 <= value <= 1:
            raise EvaluationError(f"{where}: {task!r}, a CLs value, must lie in [0, 1], got {value!r}. Check the fit")


def _steps(name: str, task: str, key: object) -> tuple[str | int, ...]:
    steps = key.split(".") if isinstance(key, str) else key
    if (
        isinstance(steps, Sequence)
        and (not isinstance(key, str) or all(steps))
        and all(isinstance(s, str | int) and not isinstance(s, bool) for s in steps)
    ):
        return tuple(steps)
    raise InvalidSpec(
        f"result: a key must be text such as 'limits.observed', or a list of names and indices, got {key!r} for "
        f"{task!r} in {name}. Correct it"
    )


def _dotted(key: Sequence[str | int]) -> str:
    return ".".join(map(str, key)) or "(the whole file)"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _as_number(found: object) -> float | None:
    """A number, or text that is one; None for anything else."""
    if isinstance(found, str):
        text = found.strip().lower()
        # float() would take "1_000" and digits of other scripts.
        return float(text.replace(".inf", "inf").replace(".nan", "nan")) if _NUMBER.fullmatch(text) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        return float(found)
    except OverflowError:
        return None
