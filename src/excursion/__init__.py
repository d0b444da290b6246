"""Find level sets (exclusion contours) of expensive functions with few evaluations.

>>> import excursion
>>> result = excursion.find_level_set(lambda p: p["x"] - 0.3, {"x": (0.0, 1.0)}, budget=8)
>>> bool(abs(result.contours().lines[0][0, 0] - 0.3) < 0.01)
True

Names are loaded on first use, so that ``import excursion`` is quick and workers load only what they need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acquisition import PES, SUR, ExclusionEntropy, MutualInformation, Search, Sobol, Straddle
    from .campaign import Campaign
    from .contours import Contour
    from .data import Censored, Job, Outcome, Trial
    from .errors import ExcursionError
    from .evaluators import Evaluator
    from .evaluators.command import Command
    from .evaluators.python import Function
    from .problem import Fidelity, Problem, Task
    from .proposal import Strategy
    from .result import Result, find_level_set, find_optimum
    from .runner import Report, run
    from .shadow import Replay, replay
    from .space import Constraint, Parameter, ParameterSpace
    from .store import MemoryStore, SqlStore, Store, open_store
    from .surrogate import GaussianProcess, MultiTask

__version__ = "0.1.0"

_HOME = {
    "acquisition": ("PES", "SUR", "ExclusionEntropy", "MutualInformation", "Search", "Sobol", "Straddle"),
    "campaign": ("Campaign",),
    "contours": ("Contour",),
    "data": ("Censored", "Job", "Outcome", "Trial"),
    "errors": ("ExcursionError",),
    "evaluators": ("Evaluator",),
    "evaluators.command": ("Command",),
    "evaluators.python": ("Function",),
    "problem": ("Fidelity", "Problem", "Task"),
    "proposal": ("Strategy",),
    "result": ("Result", "find_level_set", "find_optimum"),
    "runner": ("Report", "run"),
    "shadow": ("Replay", "replay"),
    "space": ("Constraint", "Parameter", "ParameterSpace"),
    "store": ("MemoryStore", "SqlStore", "Store", "open_store"),
    "surrogate": ("GaussianProcess", "MultiTask"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "PES",
    "SUR",
    "Campaign",
    "Censored",
    "Command",
    "Constraint",
    "Contour",
    "Evaluator",
    "ExclusionEntropy",
    "ExcursionError",
    "Fidelity",
    "Function",
    "GaussianProcess",
    "Job",
    "MemoryStore",
    "MultiTask",
    "MutualInformation",
    "Outcome",
    "Parameter",
    "ParameterSpace",
    "Problem",
    "Replay",
    "Report",
    "Result",
    "Search",
    "Sobol",
    "SqlStore",
    "Store",
    "Straddle",
    "Strategy",
    "Task",
    "Trial",
    "find_level_set",
    "find_optimum",
    "open_store",
    "replay",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'excursion' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
