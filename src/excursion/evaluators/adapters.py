"""Evaluators made from others: a function that the worker imports by name, and one whose outcome has more tasks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..data import Job, Outcome
from ..errors import InvalidSpec
from . import Evaluator
from .python import Function

__all__ = ["Imported", "Selected"]


@dataclass(frozen=True)
class Imported(Evaluator):
    """Calls a Python function named by text; the process that evaluates imports it, on its first point.

    Attributes:
        target: "package.module:function", or "path/to/file.py:function" relative to `folder`.
        folder: where files are looked for, and put on the import path; the current directory if empty.
        task: the task a bare number belongs to.

    Raises:
        InvalidSpec: the text has another form, or there is no such file.

    Example:
        >>> Imported("math:fsum").target
        'math:fsum'
    """

    target: str
    folder: str = ""
    task: str = "f"

    def __post_init__(self) -> None:
        # Absolute from now on: worker processes may run elsewhere.
        object.__setattr__(self, "folder", os.path.abspath(os.path.expanduser(self.folder)))
        module, _, name = self.target.rpartition(":")
        if not name.isidentifier() or not (module.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", module)):
            raise InvalidSpec(
                f"python: the function must be named as module:function or file.py:function, got {self.target!r}. "
                "Write for example 'physics.py:limit'"
            )
        if module.endswith(".py") and not os.path.isfile(path := os.path.join(self.folder, module)):
            raise InvalidSpec(f"python: the file must exist, got no file {path}. Correct {self.target!r}")

    def load(self) -> Callable[..., Any]:
        """Import the function now, to see that it is there before anything depends on it.

        Raises:
            InvalidSpec: it cannot be imported, or is no function.
        """
        return _load(self.target, self.folder)

    def evaluate(self, job: Job) -> Outcome:
        """See `Function.evaluate`."""
        return Function(self.load(), self.task).evaluate(job)


@lru_cache(maxsize=16)
def _load(target: str, folder: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(":")
    is_file = module.endswith(".py")
    path = os.path.join(folder, module)
    beside = os.path.dirname(path) if is_file else folder
    # As for a script: what lies beside it can be imported.
    if beside not in sys.path:
        sys.path.insert(0, beside)
    try:
        loaded = _execute(path) if is_file else importlib.import_module(module)
        function = getattr(loaded, name)
    except Exception as error:
        raise InvalidSpec(
            f"python: {target!r} must be importable, got {type(error).__name__}: {error}. "
            f"Files and modules are looked for in {folder}, then as Python does"
        ) from error
    if not callable(function):
        raise InvalidSpec(f"python: {target!r} must be a function, got {type(function).__name__}. Name a function")
    return function


def _execute(path: str) -> Any:
    """The module in a file, under its own name if that is free, so that what it defines can be pickled."""
    name = os.path.basename(path).removesuffix(".py")
    if name in sys.modules:
        name = f"_excursion_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module in {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@dataclass(frozen=True)
class Selected(Evaluator):
    """Another evaluator whose outcomes are cut down to some tasks.

    Attributes:
        evaluator: gives the outcomes.
        tasks: what is kept; a task that an outcome lacks stays missing.
    """

    evaluator: Evaluator
    tasks: tuple[str, ...]

    def evaluate(self, job: Job) -> Outcome:
        """Evaluate with the other and drop what was not asked for."""
        outcome = self.evaluator.evaluate(job)
        if outcome.error is not None:
            return outcome
        values = {task: y for task, y in outcome.values.items() if task in self.tasks}
        variances = {task: v for task, v in outcome.variances.items() if task in self.tasks}
        bounds = {task: side for task, side in outcome.bounds.items() if task in self.tasks}
        missing = tuple(task for task in outcome.missing if task in self.tasks)
        # Without any of them the outcome is left as it is: whoever checks it can say what was there.
        return (
            replace(outcome, values=values, variances=variances, bounds=bounds, missing=missing) if values else outcome
        )
