"""A campaign described by a YAML file: read, checked line by line, run, resumed. Only YAML importer.

Reading never executes anything: tags are refused, a Python function is only named, and everything is checked before
a store is touched. Plain scalars follow YAML 1.2 (``1e-3`` is a number, ``010`` is ten, ``no`` is text), which is what
people expect who have not read the YAML 1.1 rules.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import yaml

from . import precision
from .acquisition import CRITERIA, Search
from .campaign import Campaign
from .data import Outcome, Trial
from .errors import DuplicateCampaign, ExcursionError, InvalidOutcome, InvalidSpec
from .evaluators import Evaluator
from .evaluators.adapters import Imported, Selected
from .evaluators.command import Command
from .evaluators.reader import Quantity, Reader
from .evaluators.yadage import Containers, Entry, Yadage, entry
from .executors import RECIPES as EXECUTORS
from .executors import Parsl, Recipe, Workers
from .executors import recipe as executor_of
from .executors import settings as settings_of
from .leases import LEASE
from .problem import Fidelity, Goal, Problem, Task, TransformName
from .proposal import Strategy
from .result import table
from .runner import Report, run
from .secrets import masked, secrets_in, without_password
from .space import Parameter, ParameterSpace
from .store import Store, open_store
from .surrogate import RECIPES
from .untrusted import json_value, read_text, require_small_yaml
from .work import Shift, coordinate, work

if TYPE_CHECKING:
    from .evaluators.fitting import LocalFit

__all__ = ["Spec", "begin", "evaluator", "fit_here", "go_on", "load", "outcome", "parse", "resume", "take_part"]

#: Nodes of a document, aliases counted as often as they are used: nested aliases could fill the memory.
_LARGEST = 20_000
#: Bytes of a document.
_LONGEST = 2**20
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")

#: The keys and indices that lead to a value.
_Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Spec:
    """What a YAML file describes, checked.

    Attributes:
        file: where it was read.
        name: of the campaign.
        store: absolute path or URL of the store; not in the representation, for it may hold a password.
        problem: what is searched.
        strategy: how.
        evaluator: settings for `evaluator`, JSON-compatible; None if points are told by hand.
        run: budget, batch, workers, goal, approval as far as given.
        executor: where it is evaluated, settings for `executors.recipe`, JSON-compatible; None is this machine.
    """

    file: str
    name: str
    store: str = dataclasses.field(repr=False)
    problem: Problem
    strategy: Strategy
    evaluator: Mapping[str, Any] | None
    run: Mapping[str, Any]
    executor: Mapping[str, Any] | None = None


# ------------------------------------------------------------------------------------------------ the text


@dataclass(frozen=True)
class _Document:
    """Plain data with the line of every key, to say where something is wrong."""

    file: str
    data: Any
    lines: Mapping[_Keys, int]

    def where(self, path: _Keys) -> str:
        """File, line and key path; the line of what encloses it if the key is not there."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known)
        return ", ".join([self.file, *([f"line {line}"] if line else []), *([_dotted(path)] if path else [])])

    def invalid(self, path: _Keys, rule: str, got: Any, fix: str) -> InvalidSpec:
        """The error for a key."""
        return InvalidSpec(f"{self.where(path)}: {rule}, got {_shown(got)}. {fix}")

    @contextmanager
    def at(self, path: _Keys) -> Iterator[None]:
        """Errors about the meaning of a key name its line."""
        try:
            yield
        except (ExcursionError, ValueError, OverflowError) as error:
            raise InvalidSpec(f"{self.where(self._closer(path, str(error)))}: {error}") from error

    def _closer(self, path: _Keys, message: str) -> _Keys:
        """The key below `path` whose value the message quotes (``got step=-1.0``), if it is there."""
        inside = [key for key in self.lines if key[:-1] == path and key != path]
        return next((key for key in inside if f"got {key[-1]}=" in message), path)


def _dotted(path: _Keys) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _shown(value: Any) -> str:
    text = masked(repr(value))
    return text if len(text) <= 120 else f"{text[:117]}..."


def _read(text: str, file: str) -> _Document:
    """The document as plain data.

    Raises:
        InvalidSpec: no YAML, several documents, tags, keys given twice.
    """
    try:
        require_small_yaml(text, _LARGEST)
    except ValueError as error:
        raise InvalidSpec(f"{file}: must be short and shallow, got {error}. Write less; see docs/yaml.md") from None
    try:
        # The base loader gives every scalar as text and knows no tag that makes an object.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InvalidSpec(
            f"{file}{line}: must be YAML, got a problem {problem}. Check indentation, colons, brackets and quotes there"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidSpec(
            f"{file}: must be YAML, got {type(error).__name__}: {' '.join(str(error).split())}. Write plain text"
        ) from None
    if node is None:
        raise InvalidSpec(f"{file}: must describe a campaign, got an empty file. See docs/yaml.md")
    lines: dict[_Keys, int] = {}
    try:
        data = _plain(node, (), file, lines, set())
    except RecursionError:
        raise InvalidSpec(f"{file}: must not be nested deeply, got too many levels. See docs/yaml.md") from None
    return _Document(file, data, lines)


def _plain(node: yaml.Node, path: _Keys, file: str, lines: dict[_Keys, int], around: set[int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    where = f"{file}, line {line}" + (f", {_dotted(path)}" if path else "")
    if len(lines) > _LARGEST or id(node) in around:
        raise InvalidSpec(f"{where}: aliases must not multiply or contain themselves, got {node.tag}. Write it out")
    expected = "str" if isinstance(node, yaml.ScalarNode) else "seq" if isinstance(node, yaml.SequenceNode) else "map"
    if node.tag != f"tag:yaml.org,2002:{expected}":
        raise InvalidSpec(f"{where}: tags are not used here, got {_shown(node.tag)}. Write the value without a tag")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, where)
    inside = around | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, i), file, lines, inside) for i, child in enumerate(node.value)]
    found: dict[str, Any] = {}
    for key, value in node.value:
        here = f"{file}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise InvalidSpec(f"{here}: a key must be text, got a list or mapping. Put braces and brackets in quotes")
        name = _text(key.value, here)
        if name in found:
            raise InvalidSpec(
                f"{here}, {_dotted((*path, name))}: a key must be given once, got {name!r} again "
                f"(first in line {lines[(*path, name)]}). Remove one of them"
            )
        lines[(*path, name)] = key.start_mark.line + 1
        found[name] = _plain(value, (*path, name), file, lines, inside)
    return found


def _text(text: str, where: str) -> str:
    if any("\ud800" <= c <= "\udfff" or c == "\0" for c in text):
        raise InvalidSpec(f"{where}: text must be Unicode, got {text!r}. Remove the broken character")
    return text


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    """A quoted scalar is text; a plain one follows the core schema of YAML 1.2 (section 10.3)."""
    text = _text(node.value, where)
    if node.style is not None:
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    # Longer integers than this are not exact in float64, which is what they would become.
    if _INT.fullmatch(text) and len(text) <= 16:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITE.fullmatch(text):
        return -math.inf if match[1] == "-" else math.inf
    return math.nan if text in (".nan", ".NaN", ".NAN") else text


# ---------------------------------------------------------------------------------------------- the shape

_CONFIG = pydantic.ConfigDict(extra="forbid", strict=True)
_Text = Annotated[str, pydantic.Field(min_length=1)]
_Count = Annotated[int, pydantic.Field(ge=1)]


class _Top(pydantic.BaseModel):
    model_config = _CONFIG
    name: Annotated[str, pydantic.Field(min_length=1, max_length=200, pattern=r"\S")] | None = None
    store: _Text | None = None
    goal: Goal = "level-set"
    parameters: dict[str, Any]
    constraints: list[str] = []
    tasks: dict[str, Any]
    fidelities: list[Any] = []
    evaluator: dict[str, Any] | None = None
    strategy: dict[str, Any] = {}
    run: dict[str, Any] = {}
    executor: str | dict[str, Any] | None = None


class _Task(pydantic.BaseModel):
    model_config = _CONFIG
    threshold: float | list[float] = []
    transform: TransformName | Literal["auto"] = "auto"
    scale: float = 1.0
    weight: float = 1.0
    unit: str = ""
    label: str = ""


class _Fidelity(pydantic.BaseModel):
    model_config = _CONFIG
    name: _Text
    cost: float | None = 1.0
    parameters: list[str] | None = None
    events: list[int] | None = None
    event_cost: float = 0.0


class _Command(pydantic.BaseModel):
    model_config = _CONFIG
    command: _Text
    result: _Text = "result.json"
    workdir: _Text = "work"
    timeout: Annotated[float, pydantic.Field(gt=0)] | None = None
    impossible_exit_codes: list[int] = []
    environment: dict[str, str] = {}
    fit: dict[str, Any] | None = None


class _Python(pydantic.BaseModel):
    model_config = _CONFIG
    python: _Text
    fit: dict[str, Any] | None = None


class _Fit(pydantic.BaseModel):
    model_config = _CONFIG
    url: _Text | None = None
    expect: str = ""
    patience: Annotated[float, pydantic.Field(gt=0)] = 3600.0
    timeout: Annotated[float, pydantic.Field(gt=0)] = 600.0
    token_env: str = ""
    token_file: str = ""
    model: _Text | None = None
    patch: str = ""
    sample: _Text = "signal"
    measurement: _Text | None = None
    level: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.95
    mu_max: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 1e4
    cache: _Text | None = None


class _Result(pydantic.BaseModel):
    model_config = _CONFIG
    file: _Text | None = None
    keys: dict[str, str | list[str | int]] = {}
    quantity: Quantity | dict[str, Quantity] = "value"
    valid: list[float] | dict[str, list[float]] = {}
    scale: float | dict[str, float] = 1.0
    variances: dict[str, str | list[str | int]] = {}
    errors: dict[str, str | list[str | int]] = {}
    missing: list[str] = []


class _Workflow(pydantic.BaseModel):
    model_config = _CONFIG
    yadage: _Text | None = None
    recast: _Text | None = None
    example_inputs: _Text | None = None
    toplevel: _Text | None = None
    inputs: dict[str, Any] | None = None
    constants: dict[str, Any] = {}
    result: dict[str, Any] = {}
    executable: _Text | None = None
    backend: _Text = "foregroundasync"
    containers: Containers = "docker"
    initdir: _Text | None = None
    workdir: _Text = "work"
    timeout: Annotated[float, pydantic.Field(gt=0)] | None = None
    environment: dict[str, str] = {}


class _Reana(pydantic.BaseModel):
    model_config = _CONFIG
    reana: _Text
    server: _Text
    result: dict[str, Any] = {}
    inputs: dict[str, str] | None = None
    constants: dict[str, Any] = {}
    prefix: _Text = "excursion"
    workdir: _Text = "reana"
    runs: _Count = 1
    timeout: Annotated[float, pydantic.Field(gt=0)] | None = None
    poll: Annotated[float, pydantic.Field(gt=0)] = 60.0
    patience: Annotated[float, pydantic.Field(gt=0)] = 86400.0
    delete: bool = False
    stop_on_interrupt: bool = False
    token_env: _Text = "REANA_ACCESS_TOKEN"
    token_file: str = ""
    authentication: Literal["query", "header"] = "query"


class _Example(pydantic.BaseModel):
    model_config = _CONFIG
    example: Literal["sleptons"]
    events: _Count = 5000
    fidelity: Literal["parton", "hadron"] = "parton"
    decays: Annotated[int, pydantic.Field(ge=2, multiple_of=2)] = 10
    mu_max: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] = 1e4


class _Strategy(pydantic.BaseModel):
    model_config = _CONFIG
    acquisition: str | dict[str, Any] = "SUR"
    surrogate: str | dict[str, Any] = "GaussianProcess"
    search: dict[str, Any] = {}
    design_size: Annotated[int, pydantic.Field(ge=2)] | None = None
    exploration: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.05
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 0
    retries: Annotated[int, pydantic.Field(ge=0, le=20)] = 1
    replicates: bool = False


class _Run(pydantic.BaseModel):
    model_config = _CONFIG
    budget: _Count | None = None
    batch: _Count = 1
    workers: _Count | None = None
    goal: Any = None
    lease: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] | None = None
    approval: bool = False


_EVALUATORS: dict[str, type[pydantic.BaseModel]] = {
    "command": _Command,
    "python": _Python,
    "yadage": _Workflow,
    "recast": _Workflow,
    "reana": _Reana,
    "example": _Example,
}


@lru_cache(maxsize=32)
def _model(settings: type, without: tuple[str, ...] = ()) -> type[pydantic.BaseModel]:
    """The model of a frozen dataclass of settings: its fields are the keys."""
    hints = typing.get_type_hints(settings)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        if f.name not in without:
            hint: Any = hints[f.name]
            if typing.get_origin(hint) is tuple:
                hint = Annotated[hint, pydantic.Field(strict=False)]  # YAML knows lists only
            needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            fields[f.name] = (hint, ... if needed else None)  # only what is given is used
    return pydantic.create_model(settings.__name__, __config__=_CONFIG, **fields)


def _given(document: _Document, model: type[pydantic.BaseModel], data: Any, path: _Keys) -> dict[str, Any]:
    """The settings in `data`, checked; only those that are given.

    Raises:
        InvalidSpec: about the first line that is wrong.
    """
    if not isinstance(data, dict):
        raise document.invalid(path, "must be a mapping (key: value)", data, f"Known keys are {_keys(model)}")
    try:
        return model.model_validate(data).model_dump(exclude_unset=True)
    except pydantic.ValidationError as error:
        found = [(_known(document, (*path, *e["loc"])), e) for e in error.errors(include_url=False)]
    # A key that is missing is often one that is misspelt, so the unknown ones are named first.
    place, first = min(found, key=lambda item: (_URGENCY.get(item[1]["type"], 1), document.lines.get(item[0], 0)))
    known = list(model.model_fields)
    match first["type"]:
        case "extra_forbidden":
            raise document.invalid(place, "this key is not known", str(place[-1]), _suggestion(str(place[-1]), known))
        case "missing":
            key = first["loc"][-1]
            raise document.invalid(path, f"the key {key!r} must be given", list(data), f"Add '{key}: ...'")
    rule, fix = _rule(first)
    raise document.invalid(place, rule, first["input"], fix)


def _known(document: _Document, path: _Keys) -> _Keys:
    """The part of pydantic's path that is in the document; the rest are branches of a union."""
    while path and path not in document.lines:
        path = path[:-1]
    return path


def _keys(model: type[pydantic.BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _suggestion(word: str, known: Sequence[str]) -> str:
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f"Did you mean {lower[close[0]]!r}?" if close else f"Known are {', '.join(known)}"


_URGENCY = {"extra_forbidden": 0, "missing": 2}
_RULES = {
    "float_type": ("must be a number", "Write it without quotes and units"),
    "int_type": ("must be a whole number", "Write it without quotes, point and exponent"),
    "int_from_float": ("must be a whole number", "Write it without point and exponent"),
    "string_type": ("must be text", "Put it in quotes"),
    "tuple_type": ("must be a list", "Write [a, b] or one '- item' per line"),
    "list_type": ("must be a list", "Write [a, b] or one '- item' per line"),
    "dict_type": ("must be a mapping (key: value)", "Indent 'key: value' lines below it"),
}


def _rule(error: Any) -> tuple[str, str]:
    if error["type"] in _RULES:
        return _RULES[error["type"]]
    message = error["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return f"must {'' if message.startswith(('have', 'match')) else 'be '}{message}", "Correct the value"


# -------------------------------------------------------------------------------------------- the meaning


def load(path: str | os.PathLike[str]) -> Spec:
    """Read a YAML file; nothing is executed and no store is touched.

    Args:
        path: the file; paths in it are relative to its folder.

    Raises:
        InvalidSpec: names the file, the line, the key, the rule and the fix.
    """
    file = Path(path)
    return parse(read_text(file, InvalidSpec, largest=_LONGEST), file)


def parse(text: str, file: str | os.PathLike[str] = "campaign.yaml") -> Spec:
    """The campaign that a YAML text describes; see `load`.

    Args:
        text: the YAML.
        file: its name for messages; its folder is what paths are relative to, its stem the default name.
    """
    path = Path(os.path.abspath(file))
    document = _read(text, os.fspath(file))
    top = _given(document, _Top, document.data, ())
    _require_no_secrets(document, top)
    problem = _problem(document, top)
    settings = top.get("evaluator")
    if settings is not None:
        settings = _evaluator(document, settings, problem, path.parent)
    running = _given(document, _Run, top.get("run", {}), ("run",))
    with document.at(("run", "goal")):
        precision.parse(running.get("goal"), problem, "run")
    store = top.get("store") or f"{path.stem}.db"
    if store == "memory://":
        raise document.invalid(("store",), "the store must outlive the command", store, "Name a file, such as scan.db")
    return Spec(
        file=str(path),
        name=top.get("name") or path.stem,
        store=store if "://" in store else os.path.join(path.parent, os.path.expanduser(store)),
        problem=problem,
        strategy=_strategy(document, top.get("strategy", {}), problem),
        evaluator=settings,
        run={key: value for key, value in running.items() if value is not None},
        executor=None if top.get("executor") is None else _executor(document, top["executor"], path.parent),
    )


def _require_no_secrets(document: _Document, top: Mapping[str, Any]) -> None:
    """Refuse passwords and tokens in what goes into the store; the store's own URL does not."""
    for section in top.keys() - {"store", "name", "parameters", "constraints", "tasks", "fidelities"}:
        for path in secrets_in(top[section], (section,)):
            raise InvalidSpec(
                f"{document.where(path)}: a campaign must not hold passwords or tokens, for who reads its store sees "
                "them, got ***. Set it in the environment of the worker, from where programs have it"
            )


def _problem(document: _Document, top: Mapping[str, Any]) -> Problem:
    path: _Keys
    goal = top.get("goal", "level-set")
    optimum = goal != "level-set"
    parameters = []
    for name, value in top["parameters"].items():
        path = ("parameters", name)
        if isinstance(value, list):
            if len(value) not in (2, 3):
                raise document.invalid(
                    path, "the short form is [lower, upper] or [lower, upper, log]", value, "Correct it"
                )
            value = dict(zip(("lower", "upper", "scale"), value))
        given = _given(document, _model(Parameter, ("name",)), value, path)
        with document.at(path):
            parameters.append(Parameter(name, **given))
    tasks = []
    for name, value in top["tasks"].items():
        path = ("tasks", name)
        if optimum and value is None:
            value = {}
        given = _given(document, _Task, value if isinstance(value, dict) else {"threshold": value}, path)
        if not optimum and given.get("threshold", []) == []:
            fix = "Add 'threshold: ...', or seek an optimum with 'goal: minimum'"
            raise document.invalid(path, "the key 'threshold' must be given", list(given), fix)
        with document.at(path):
            thresholds = given.pop("threshold", [])
            tasks.append(Task(name, tuple(thresholds) if isinstance(thresholds, list) else (thresholds,), **given))
    fidelities = []
    for i, value in enumerate(top.get("fidelities", [])):
        path = ("fidelities", i)
        given = _given(document, _Fidelity, value, path)
        with document.at(path):
            fidelities.append(Fidelity(**given))
    some = (Fidelity("any"),) if fidelities else ()
    columns: set[str] = set(table(Problem(ParameterSpace((Parameter("x", 0, 1),)), fidelities=some), [_NO_TRIAL])[0])
    columns -= {"x", "f", "f_sd", "f_bound"}
    for section, suffixes in (("parameters", ("",)), ("tasks", ("", "_sd", "_bound"))):
        for name in top[section]:
            taken = columns & {f"{name}{suffix}" for suffix in suffixes}
            if taken:
                raise document.invalid(
                    (section, name), "columns of the table of trials need different names", sorted(taken), "Rename it"
                )
            columns |= {f"{name}{suffix}" for suffix in suffixes}
    texts = top.get("constraints", [])
    try:
        with document.at(("parameters",)):
            space = ParameterSpace(tuple(parameters))
        space = ParameterSpace(tuple(parameters), tuple(texts))
    except InvalidSpec:
        raise
    except ExcursionError as error:
        # The message names the constraint that is wrong by itself; a contradiction belongs to all of them.
        guilty = [i for i, t in enumerate(texts) if str(error).startswith(f"constraint {t[:200]!r}")]
        path = ("constraints", guilty[0]) if guilty else ("constraints",)
        raise InvalidSpec(f"{document.where(path)}: {error}") from error
    with document.at(("tasks",)):
        problem = Problem(space, tuple(tasks), goal)
    with document.at(("fidelities",)):
        return dataclasses.replace(problem, fidelities=tuple(fidelities))


_NO_TRIAL = Trial(number=0, x={"x": 0.0}, basis=0, after=0)


def _strategy(document: _Document, data: Any, problem: Problem) -> Strategy:
    given = _given(document, _Strategy, data, ("strategy",))
    for key, known, what, default in (
        ("acquisition", CRITERIA, "criterion", None),
        ("surrogate", RECIPES, "surrogate", "GaussianProcess"),
    ):
        if key in given:
            given[key] = _recipe(document, given[key], known, what, default, ("strategy", key))
    if "search" in given:
        settings = _given(document, _model(Search), given["search"], ("strategy", "search"))
        with document.at(("strategy", "search")):
            given["search"] = Search(**settings)
    with document.at(("strategy",)):
        strategy = Strategy(**given)
    with document.at(("strategy", "surrogate" if "acquisition" not in given else "acquisition")):
        return strategy.suited_to(problem)


def _recipe(
    document: _Document, data: Any, known: Mapping[str, Any], what: str, default: str | None, path: _Keys
) -> Any:
    """The recipe meant by a name, or by {type: name, setting: value}; its fields are the keys."""
    settings = {"type": data} if isinstance(data, str) else dict(data)
    name = settings.pop("type", default)
    if not isinstance(name, str) or name not in known:
        raise document.invalid(path, f"must be the name of a {what}", name, _suggestion(str(name), list(known)))
    settings = _given(document, _model(known[name]), settings, path)
    with document.at(path):
        return known[name](**settings)


def _evaluator(document: _Document, data: Mapping[str, Any], problem: Problem, folder: Path) -> dict[str, Any]:
    path = ("evaluator",)
    kinds = [kind for kind in _EVALUATORS if kind in data]
    if len(kinds) != 1:
        close = [_suggestion(key, list(_EVALUATORS)) for key in data]
        fix = next((c for c in close if c.startswith("Did")), "See docs/yaml.md")
        raise document.invalid(path, f"exactly one of the keys {', '.join(_EVALUATORS)} must be given", list(data), fix)
    settings = {"kind": kinds[0], **_given(document, _EVALUATORS[kinds[0]], data, path), "folder": str(folder)}
    if "result" in settings and isinstance(settings["result"], dict):
        settings["result"] = _given(document, _Result, settings["result"], (*path, "result"))
    if settings.get("fit") is not None:
        settings["fit"] = _given(document, _Fit, settings["fit"], (*path, "fit"))
    with document.at((*path, kinds[0])):
        evaluator(settings, problem)
    return settings


def _executor(document: _Document, data: Any, folder: Path) -> dict[str, Any]:
    path = ("executor",)
    made = _recipe(document, data, EXECUTORS, "kind of executor", None, path)
    if isinstance(made, Parsl) and made.config.partition(":")[0].endswith(".py"):
        file = os.path.join(folder, os.path.expanduser(made.config))
        made = dataclasses.replace(made, config=file)
    try:
        return json.loads(json.dumps(settings_of(made), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise document.invalid(
            path, f"settings must be text, finite numbers and lists ({error})", data, "Correct it"
        ) from None


def evaluator(settings: Mapping[str, Any], problem: Problem) -> Evaluator:
    """The evaluator that settings describe; nothing is executed.

    Args:
        settings: as in `Spec.evaluator`: "kind", "folder" and the keys of the YAML.
        problem: gives the names of parameters and tasks.

    Raises:
        InvalidSpec: settings that do not fit the problem.
    """
    given = dict(settings)
    kind, folder, first = given.pop("kind"), given.pop("folder"), problem.task_names[0]
    fit = given.pop("fit", None)
    if kind == "command":
        template = given.pop("command")
        if fit is not None:
            given.setdefault("result", "yields.json")
        command = Command(template, **given, parameters=problem.space.names, task=first, folder=folder)
        return command if fit is None else _fitted(command, fit, problem, folder)
    if kind == "python":
        function = Imported(given["python"], folder, first)
        return function if fit is None else _fitted(function, fit, problem, folder)
    if kind in ("yadage", "recast"):
        return _workflow(given, problem, folder)
    if kind == "reana":
        return _reana(given, problem, folder)
    return _sleptons(given, problem)


def _fitted(source: Command | Imported, settings: Mapping[str, Any], problem: Problem, folder: str) -> Evaluator:
    """Yields from a source, limits from the fit that the key "fit" describes."""
    from .evaluators.fitting import Fitted, RemoteFit
    from .evaluators.pyhf import TASKS

    if unknown := sorted(set(problem.task_names) - set(TASKS)):
        raise InvalidSpec(f"fit: tasks must be {', '.join(TASKS)}, got {unknown}. Rename them")
    given = {key: value for key, value in settings.items() if value is not None}
    kinds = [key for key in ("url", "model") if key in given]
    there = ("url", "expect", "patience", "timeout", "token_env", "token_file")
    wrong = [key for key in given if (key in there) != (kinds == ["url"])]
    if len(kinds) != 1 or wrong:
        raise InvalidSpec(
            f"fit: needs either url ({', '.join(there[1:])}) or model (patch, sample, measurement, level, mu_max, "
            f"cache), got {list(given)}. Remove the others"
        )
    how = RemoteFit(**given) if kinds == ["url"] else fit_here(**given, folder=folder)
    return Selected(Fitted(source, how), problem.task_names)


def fit_here(
    model: str,
    *,
    patch: str = "",
    sample: str = "signal",
    measurement: str | None = None,
    level: float = 0.95,
    mu_max: float = 1e4,
    cache: str | None = None,
    folder: str = "",
) -> LocalFit:
    """The fit to a model in a file, or to an example's ("example:sleptons").

    Args:
        model: path, or name of the example.
        patch, sample, measurement: see `evaluators.fitting.read_model`.
        level, mu_max: see `evaluators.fitting.LocalFit`.
        cache: folder of limits that are known.
        folder: what paths are relative to.

    Raises:
        InvalidProblem: a model that makes no sense.
    """
    from .evaluators.fitting import Cache, LocalFit, read_model
    from .evaluators.pyhf import CountsModel, HistFactoryModel

    def path(name: str) -> str:
        return os.path.join(folder, os.path.expanduser(name))

    found: HistFactoryModel
    if model == "example:sleptons":
        from .examples import sleptons

        found = CountsModel(**sleptons.background_spec())
    else:
        found = read_model(path(model), patch=patch and path(patch), sample=sample, measurement=measurement)
    return LocalFit(found, level, mu_max, None if cache is None else Cache(path(cache)))


def _reana(settings: Mapping[str, Any], problem: Problem, folder: str) -> Evaluator:
    from .evaluators.reana import Reana

    given = {key: value for key, value in settings.items() if value is not None}
    result = _reader(given.pop("result", {}), problem)
    return Reana(given.pop("reana"), result=result, **given, parameters=problem.space.names, folder=folder)


def _workflow(settings: Mapping[str, Any], problem: Problem, folder: str) -> Yadage:
    given = {key: value for key, value in settings.items() if value is not None}
    given |= {"parameters": problem.space.names, "folder": folder}
    result, example = given.pop("result", {}), given.pop("example_inputs", None)
    if not {"yadage", "recast"} & set(given):
        raise InvalidSpec("yadage: needs the file of the workflow, or recast that of an entry, got null. Name it")
    if "recast" in given:
        found = entry(os.path.join(folder, os.path.expanduser(given.pop("recast"))), example or "default")
        return found.evaluator(_reader(result, problem, found), **given)
    if example is not None:
        raise InvalidSpec(
            f"yadage: example_inputs are those of an entry, got {example!r}. Write recast: ..., or leave it"
        )
    return Yadage(given.pop("yadage"), _reader(result, problem), **given)


def _reader(settings: Mapping[str, Any], problem: Problem, found: Entry | None = None) -> Reader:
    """The reader that the key "result" describes; tasks are read under their own names by default.

    Args:
        settings: those of the YAML.
        problem: gives the names of the tasks.
        found: its only result is the file by default.

    Raises:
        InvalidSpec: no file, or keys that do not fit the tasks.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if not (file := given.pop("file", None) or (found.result if found else None)):
        raise InvalidSpec("result: needs the file of the values, got none. Write result: {file: fit/limits.json}")
    tasks = problem.task_names
    keys = given.pop("keys", None) or dict(zip(tasks, tasks))
    if set(keys) != set(tasks):
        raise InvalidSpec(f"result: keys must name the tasks ({', '.join(tasks)}), got {list(keys)}. Name each of them")
    if isinstance(valid := given.pop("valid", {}), list):
        valid = dict.fromkeys(keys, valid)
    return Reader(file, keys, valid=valid, **given)


def _sleptons(settings: Mapping[str, Any], problem: Problem) -> Evaluator:
    from .evaluators.pyhf import TASKS
    from .examples import sleptons

    spaces = [sleptons.problem(dimensions).space.names for dimensions in sleptons.BUDGETS]
    if set(problem.space.names) not in map(set, spaces):
        raise InvalidSpec(
            f"example sleptons: parameters must be {'; or '.join(map(', '.join, spaces))}, "
            f"got {list(problem.space.names)}. Rename them"
        )
    for kind, names, needed in (
        ("tasks", problem.task_names, TASKS),
        ("fidelities", tuple(f.name for f in problem.fidelities), tuple(sleptons.SECONDS)),
    ):
        if not set(names) <= set(needed):
            raise InvalidSpec(f"example sleptons: {kind} must be {', '.join(needed)}, got {list(names)}. Rename them")
    given = dict(settings)
    del given["example"]
    return Selected(sleptons.evaluator(**given), problem.task_names)


# ---------------------------------------------------------------------------------------------- the campaign


def begin(spec: Spec, store: Store | None = None) -> Campaign:
    """The campaign of a spec: made if there is none, opened if it is in the store with the same problem and strategy.

    Raises:
        InvalidSpec: the store has another campaign of this name; it is left as it is.
    """
    opened = store or open_store(spec.store)
    extra: dict[str, Any] = {"evaluator": spec.evaluator, "run": dict(spec.run), "file": spec.file}
    if spec.executor is not None:
        extra["executor"] = dict(spec.executor)
    if spec.name not in opened.names():
        try:
            return Campaign.create(opened, spec.name, spec.problem, spec.strategy, extra)
        except DuplicateCampaign:
            pass  # another process was faster
    campaign = Campaign.open(opened, spec.name)
    stored = opened.spec(spec.name)
    for part, mine in (("problem", spec.problem.to_json()), ("strategy", spec.strategy.to_json())):
        if difference := _difference(json.loads(json.dumps(mine)), stored[part], part):
            place = without_password(spec.store)
            raise InvalidSpec(
                f"{spec.file}: campaign {spec.name!r} is in {place} already with another {part}, "
                f"got {difference}. Give a new name or store, or the {part} it was begun with"
            )
    return campaign


def _difference(mine: Any, stored: Any, path: str) -> str:
    """Where two JSON values differ first; empty if they do not."""
    if isinstance(mine, dict) and isinstance(stored, dict):
        for key in sorted({*mine, *stored}):
            if found := _difference(mine.get(key), stored.get(key), f"{path}.{key}"):
                return found
        return ""
    if isinstance(mine, list) and isinstance(stored, list) and len(mine) == len(stored):
        return next((d for i, (a, b) in enumerate(zip(mine, stored)) if (d := _difference(a, b, f"{path}[{i}]"))), "")
    return "" if mine == stored else f"{path} = {_shown(mine)} instead of {_shown(stored)}"


def go_on(
    campaign: Campaign,
    settings: Mapping[str, Any] | None = None,
    running: Mapping[str, Any] | None = None,
    *,
    budget: int | None = None,
    workers: int | None = None,
    goal: Any = None,
    executor: Recipe | str | Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Report:
    """Run a campaign with the settings of its spec.

    Args:
        campaign: begun by a spec.
        settings: of the evaluator; those kept in the store by default.
        running: budget, batch, workers, goal, approval; those kept in the store by default.
        budget, workers, goal: replace those of `running`.
        executor: where to evaluate, see `executors.recipe`; by default what is kept in the store, or this machine.
            A name alone keeps the settings of the engine of this name.
        progress: see `run`.

    Raises:
        InvalidSpec: no evaluator, no budget, or a function that cannot be imported.
    """
    extra = campaign.extra
    settings = settings or extra.get("evaluator")
    running = dict(extra.get("run") or {} if running is None else running)
    running |= {k: v for k, v in (("budget", budget), ("workers", workers), ("goal", goal)) if v is not None}
    where = f"campaign {campaign.name!r}"
    if settings is None:
        raise InvalidSpec(
            f"{where}: to run it needs an evaluator, got none. Add 'evaluator:' to the YAML, "
            "or use excursion ask and tell"
        )
    if "budget" not in running:
        raise InvalidSpec(f"{where}: to run it needs a budget, got none. Add 'run: {{budget: 60}}' or --budget 60")
    running.pop("lease", None)  # for workers
    place = executor_of(chosen(executor, extra.get("executor")))
    if isinstance(place, Workers):
        return coordinate(campaign, **running, progress=progress)
    recipe = evaluator(settings, campaign.problem)
    if isinstance(recipe, Selected) and isinstance(source := getattr(recipe.evaluator, "source", None), Imported):
        source.load()
    if isinstance(recipe, Imported):
        # Better now than at the first point: a function that is not there would fail at every one of them.
        recipe.load()
    return run(campaign, recipe, **running, executor=place, progress=progress)


def chosen(
    wanted: Recipe | str | Mapping[str, Any] | None, kept: Mapping[str, Any] | None
) -> Recipe | str | Mapping[str, Any]:
    """The executor that is wanted, or the one described before; its name alone means it with its settings."""
    if kept is not None and (wanted is None or wanted == kept["type"]):
        return kept
    return "local" if wanted is None else wanted


def resume(store: str, name: str | None = None, **options: Any) -> Report:
    """Go on with a campaign from what its store says; options as in `go_on`."""
    return go_on(Campaign.open(store, name), **options)


def take_part(
    store: str,
    name: str | None = None,
    *,
    file: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    lease: float | None = None,
    **options: Any,
) -> Shift:
    """Work on a campaign as one worker of many, see `work.work`.

    Args:
        store: path or URL.
        name: of the campaign; may be left out if the store holds only one.
        file: YAML whose evaluator is used; by default the settings kept with the campaign.
        folder: what the evaluator's paths are relative to, where this machine has another one.
        lease: seconds; that of the campaign, or 60, by default.
        options: see `work.work`.

    Raises:
        InvalidSpec: no evaluator, or one that does not fit the campaign.
    """
    campaign = Campaign.open(store, name)
    extra = campaign.extra
    settings = extra.get("evaluator") if file is None else load(file).evaluator
    if settings is None:
        raise InvalidSpec(
            f"campaign {campaign.name!r}: to work on it needs an evaluator, got none. "
            "Name a YAML file that has one: --spec scan.yaml"
        )
    if folder is not None:
        settings = {**settings, "folder": os.path.abspath(os.path.expanduser(folder))}
    lease = lease or (extra.get("run") or {}).get("lease") or LEASE
    return work(campaign, evaluator(settings, campaign.problem), lease=lease, **options)


def outcome(
    problem: Problem,
    *,
    values: Sequence[str] = (),
    text: str | None = None,
    failed: str | None = None,
    permanent: bool = False,
) -> Outcome:
    """What a person tells on the command line.

    Args:
        problem: gives the names of the tasks.
        values: "0.7", or "observed=0.7" for each task.
        text: JSON instead: a number, an object task -> number, or an object with "values" and perhaps "variances",
            "bounds" and "info".
        failed: the reason of a failure instead.
        permanent: the failure would happen again.

    Raises:
        InvalidOutcome: not exactly one of the three, or not numbers.
    """
    if sum((bool(values), text is not None, failed is not None)) != 1:
        raise InvalidOutcome(
            "tell: needs either values, JSON or a failure, got none or several of them. "
            "Write for example --value 0.7, --file result.json or --failed 'no convergence'"
        )
    if failed is not None:
        return Outcome.failed(failed, permanent=permanent)
    if text is not None:
        return _outcome_of_json(problem, text)
    told: dict[str, float] = {}
    for item in values:
        task, equals, number = item.rpartition("=")
        name = task if equals else problem.task_names[0]
        try:
            value = float(number)
        except ValueError:
            raise InvalidOutcome(f"tell: a value must be a number, got {item!r}. Write task=number") from None
        if name in told or (not equals and len(problem.task_names) > 1):
            raise InvalidOutcome(
                f"tell: one value per task is needed, got {list(values)}. "
                f"Write {' '.join(f'--value {t}=...' for t in problem.task_names)}"
            )
        told[name] = value
    return Outcome.of(told)


def _outcome_of_json(problem: Problem, text: str) -> Outcome:
    def wrong(rule: str, got: Any, why: object = "") -> InvalidOutcome:
        reason = f" ({why})" if why else ""
        return InvalidOutcome(f"tell: {rule}, got {_shown(got)}{reason}. Write a number or {{task: number}}")

    def numbers(found: Any) -> bool:
        return isinstance(found, dict) and all(type(v) in (int, float) for v in found.values())

    def known(found: Any) -> Any:
        return {k: v for k, v in found.items() if v is not None} if isinstance(found, dict) else found

    try:
        found = json_value(text)
    except ValueError as error:
        raise wrong("must be JSON", text, error) from None
    if type(found) in (int, float):
        found = {problem.task_names[0]: found}
    if isinstance(found, dict) and not isinstance(found.get("values"), dict):
        found = {"values": found}
    if not isinstance(found, dict) or not found["values"]:
        raise wrong("must be a number or an object", found)
    if unknown := sorted(set(found) - {"values", "variances", "bounds", "info"}):
        raise wrong("beside 'values' there may be variances, bounds and info", unknown)
    if any(not isinstance(part, dict) for part in found.values()):
        raise wrong("values, variances, bounds and info must be objects", found)
    if not numbers(known(found["values"])) or not numbers(found.get("variances", {})) or not known(found["values"]):
        raise wrong("each task must have a number, or null where it is missing", found)
    try:
        return Outcome(**found)
    except (OverflowError, TypeError) as error:
        raise wrong(f"must make sense ({error})", found) from error
