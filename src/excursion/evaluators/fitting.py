"""Signals computed anywhere, fitted here or by a server elsewhere (`fit_server`), each only once.

Whoever computes the events need not have the likelihood, nor pyhf: it hands over the yields of each bin and their
errors. The same yields with the same model, settings and code give the same limits, so these are kept under a hash of
all of that.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..data import Job, Outcome
from ..errors import EvaluationError, ImpossiblePoint, InvalidOutcome, InvalidProblem, InvalidSpec, ShapeError
from ..untrusted import json_value, read_text
from . import Evaluator, histfactory, pyhf
from .adapters import Imported
from .command import Command
from .pyhf import CountsModel, HistFactoryModel, Signal, WorkspaceModel, Yields, fitted
from .python import Function
from .remote import Answer, Connection, Unavailable, checked_url, read_token

__all__ = [
    "Cache",
    "Fitted",
    "Fitter",
    "LocalFit",
    "RemoteFit",
    "describe",
    "digest",
    "model_of",
    "read_model",
    "signal_of",
]

#: Bytes of a question or an answer about one signal.
LARGEST_QUESTION = 2**22
#: Bytes of a model's file.
_LARGEST_MODEL = 2**27


# --------------------------------------------------------------------------------------------- as plain JSON


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text; floats keep all their digits.

    Raises:
        EvaluationError: a number that is not finite, or something that is no JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"fit: models and yields must be plain JSON with finite numbers, got {error}. Convert them"
        ) from None


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def describe(model: HistFactoryModel) -> dict[str, Any]:
    """A model as plain JSON, from which `model_of` makes it again.

    Raises:
        InvalidProblem: it has a function for a patch, which has no JSON.
    """
    if isinstance(model, CountsModel):
        given = {name: getattr(model, name) for name in model.__dataclass_fields__}
        # The order of the channels is that of the flat numbers; JSON's objects have none.
        return {"kind": "counts", **given, "channels": [[name, bins] for name, bins in model.channels.items()]}
    if isinstance(model, WorkspaceModel) and model.patch is None:
        return {
            "kind": "workspace", "spec": dict(model.spec), "sample": model.sample, "measurement": model.measurement
        }  # fmt: skip
    raise InvalidProblem(
        f"fit: the model must be plain data, got {type(model).__name__} with a function. Use a CountsModel, or a "
        "WorkspaceModel without patch"
    )


def model_of(description: Mapping[str, Any]) -> HistFactoryModel:
    """The model that `describe` described."""
    given = dict(description)
    if given.pop("kind") == "counts":
        return CountsModel(**{**given, "channels": dict(given["channels"])})
    return WorkspaceModel(**given)


def read_model(
    file: str | os.PathLike[str], *, patch: str = "", sample: str = "signal", measurement: str | None = None
) -> HistFactoryModel:
    """The model in a JSON file: a pyhf workspace, or the fields of a `CountsModel`.

    Args:
        file: the path.
        patch: a file with a JSON patch (RFC 6902) for the workspace, such as one that adds a signal with its
            systematic uncertainties; of a pyhf patchset one is named, "patchset.json#name".
        sample: name of the signal sample, whose yields are replaced.
        measurement: which one of the workspace; the first by default.

    Raises:
        InvalidProblem: a file that holds neither, or a patch that does not fit.
    """
    found = _json_file(file)
    if isinstance(found, dict) and "background" in found:
        known = set(CountsModel.__dataclass_fields__)
        if unknown := sorted(set(found) - known):
            raise InvalidProblem(f"{file}: a model of counts has {', '.join(sorted(known))}, got {unknown}. Correct it")
        if missing := sorted({"observed", "background", "background_error"} - set(found)):
            raise InvalidProblem(f"{file}: a model of counts needs {missing}, got {sorted(found)}. Add them")
        if patch:
            raise InvalidProblem(f"{file}: only workspaces are patched, got a patch {patch!r}. Leave it out")
        if not isinstance(found.get("channels", {}), dict):
            raise InvalidProblem(f"{file}: channels must be name -> number of bins, got a list. Correct it")
        return CountsModel(**found)
    if not isinstance(found, dict) or "channels" not in found:
        raise InvalidProblem(
            f"{file}: must be a pyhf workspace, or counts with observed, background and background_error, got neither. "
            "Give one of them"
        )
    return WorkspaceModel(_patched(found, patch) if patch else found, sample, measurement)


def _json_file(file: str | os.PathLike[str]) -> Any:
    try:
        return json_value(read_text(file, InvalidProblem, largest=_LARGEST_MODEL))
    except ValueError as error:
        if isinstance(error, InvalidProblem):
            raise
        raise InvalidProblem(f"{file}: must be JSON, got {error}. Correct it") from None


def _patched(workspace: dict[str, Any], patch: str) -> dict[str, Any]:
    import jsonpatch  # comes with pyhf

    path, _, name = patch.partition("#")
    found = _json_file(path)
    if isinstance(found, dict) and isinstance(found.get("patches"), list):
        by_name = {p.get("metadata", {}).get("name"): p.get("patch") for p in found["patches"] if isinstance(p, dict)}
        if name not in by_name:
            raise InvalidProblem(
                f"{path}: a patchset needs the name of one of its patches, got {name!r} instead of "
                f"{', '.join(map(str, list(by_name)[:5]))}, ... Write {path}#name"
            )
        found = by_name[name]
    try:
        return jsonpatch.apply_patch(workspace, found)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError) as error:
        raise InvalidProblem(f"{patch}: the patch must fit the workspace, got {error}. Give the one for it") from None


def signal_of(value: Any, where: str = "yields") -> Signal:
    """The signal in what a function or a program gave.

    Args:
        value: an object with `nominal` and perhaps `errors` and `info`; a mapping with these keys; or only the
            nominal yields, flat or channel -> bins.
        where: begins the message.

    Raises:
        EvaluationError: it is none of these.
    """
    if isinstance(value, Mapping) and "nominal" in value:
        if unknown := sorted(set(map(str, value)) - {"nominal", "errors", "info"}):
            raise EvaluationError(f"{where}: beside nominal there may be errors and info, got {unknown}. Remove them")
        nominal, errors, info = value["nominal"], value.get("errors"), value.get("info") or {}
    elif hasattr(value, "nominal"):
        nominal, errors, info = value.nominal, getattr(value, "errors", None), getattr(value, "info", None) or {}
    else:
        nominal, errors, info = value, None, {}
    if not isinstance(info, Mapping):
        raise EvaluationError(f"{where}: info must be a mapping, got {type(info).__name__}. Leave it out")
    return Signal(_bins(nominal, where), None if errors is None else _bins(errors, where), dict(info))


def _bins(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(channel): _bins(bins, where) for channel, bins in value.items()}
    plain = value.tolist() if hasattr(value, "tolist") else value
    numbers = [plain] if isinstance(plain, int | float) else plain
    if not isinstance(numbers, list | tuple) or any(
        isinstance(n, bool) or not isinstance(n, int | float) for n in numbers
    ):
        raise EvaluationError(
            f"{where}: must be numbers per bin, flat or channel -> bins, got {value!r:.100}. Return "
            "{'nominal': [...], 'errors': [...]}"
        )
    try:
        return [float(n) for n in numbers]
    except OverflowError:
        raise EvaluationError(
            f"{where}: must be numbers that a float can hold, got larger ones. Correct them"
        ) from None


def as_json(outcome: Outcome) -> dict[str, Any]:
    """A successful outcome as JSON."""
    return {
        "values": dict(outcome.values), "variances": dict(outcome.variances), "bounds": dict(outcome.bounds),
        "info": dict(outcome.info),
    }  # fmt: skip


def _outcome(found: Any) -> Outcome:
    """What `as_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(found, dict) or set(found) != {"values", "variances", "bounds", "info"}:
        raise ValueError("no outcome")
    if not all(isinstance(part, dict) for part in found.values()) or not found["values"]:
        raise ValueError("parts that are no objects")
    if any(type(v) not in (int, float) for part in ("values", "variances") for v in found[part].values()):
        raise ValueError("values that are no numbers")
    try:
        return Outcome(**found)
    except (InvalidOutcome, TypeError) as error:
        raise ValueError(str(error)) from None


# ------------------------------------------------------------------------------------------------ the cache


@lru_cache(maxsize=1)
def code() -> str:
    """What computes the limits: versions, and a hash of our two modules."""
    text = hashlib.sha256()
    for module in (pyhf, histfactory):
        text.update(Path(str(module.__file__)).read_bytes())
    versions = []
    for package in ("pyhf", "numpy", "scipy"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} missing")
    return f"{text.hexdigest()[:16]}, {', '.join(versions)}"


@dataclass(frozen=True)
class Cache:
    """Limits that are known already: one JSON file each, in a folder that many processes and hosts may share.

    Files appear whole or not at all (written aside, then renamed). One that is damaged is as if it were not there, and
    is written anew.

    Attributes:
        folder: where they are; made on the first use.
    """

    folder: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", os.path.abspath(os.path.expanduser(self.folder)))

    def get(self, key: str) -> Outcome | None:
        """What is known under a key; None if nothing is, or what is there is damaged."""
        try:
            found = json_value(self._path(key).read_text(encoding="utf-8"))
            if found["key"] != key or found["check"] != digest(found["outcome"]):
                return None
            return _outcome(found["outcome"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise EvaluationError(
                f"cache: the folder {self.folder} must be readable, got {error}. Choose another"
            ) from error
        except (ValueError, LookupError, TypeError, EvaluationError):
            # Cut off, edited, of another program: computed again.
            return None

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep an outcome.

        Raises:
            EvaluationError: the folder cannot be written.
        """
        path, found = self._path(key), as_json(outcome)
        text = canonical({"key": key, "check": digest(found), "outcome": found})
        scratch = path.with_name(f".{key}.{os.getpid()}.{random.getrandbits(32):08x}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_text(text, encoding="utf-8")
                os.replace(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise EvaluationError(
                f"cache: the folder {self.folder} must be writable, got {error}. Choose another, or make room"
            ) from error

    def _path(self, key: str) -> Path:
        return Path(self.folder) / key[:2] / f"{key}.json"

    def files(self) -> Iterator[Path]:
        """All entries."""
        for path in sorted(Path(self.folder).glob("[0-9a-f][0-9a-f]/*.json")):
            if re.fullmatch(r"[0-9a-f]{64}", path.stem):
                yield path

    def clear(self) -> int:
        """Remove all entries, and nothing else; how many there were."""
        count = 0
        for path in list(self.files()):
            path.unlink(missing_ok=True)
            count += 1
        return count


# ----------------------------------------------------------------------------------------------------- fits


class Fitter(ABC):
    """How signal yields become limits on the signal strength; picklable."""

    @abstractmethod
    def fit(self, signal: Yields) -> Outcome:
        """The limits of a signal, as `excursion.evaluators.pyhf.fitted`.

        `info` tells the `model` (the first digits of its hash) and whether the limits were `cached`.

        Raises:
            EvaluationError: the yields cannot be fitted.
            ShapeError: they do not fit the model's bins.
            InvalidSpec: the settings cannot work at any point.
        """


@dataclass(frozen=True)
class LocalFit(Fitter):
    """Fits in this process.

    Attributes:
        model: what signals are compared with, plain data (for one with a function there is `PyhfEvaluator`).
        level: confidence level.
        mu_max: the largest signal strength that is tried.
        cache: limits that are known; None to compute each time.
    """

    model: HistFactoryModel
    level: float = 0.95
    mu_max: float = 1e4
    cache: Cache | None = None
    model_digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_digest", digest(describe(self.model)))

    def question(self, signal: Yields) -> dict[str, Any]:
        """Everything that the limits depend on, as JSON.

        Raises:
            EvaluationError: yields that are negative or not finite.
            ShapeError: they do not fit the model's bins.
        """
        nominal, errors = pyhf.checked(self.model, signal)
        return {
            "model": self.model_digest,
            "nominal": {channel: bins.tolist() for channel, bins in nominal.items()},
            "errors": None if errors is None else {channel: bins.tolist() for channel, bins in errors.items()},
            "level": float(self.level),
            "mu_max": float(self.mu_max),
            "code": code(),
        }

    def fit(self, signal: Yields) -> Outcome:
        """See `Fitter.fit`."""
        key = digest(self.question(signal))
        found = None if self.cache is None else self.cache.get(key)
        outcome = found or self.compute(signal)
        if found is None and self.cache is not None:
            self.cache.put(key, outcome)
        return self.labelled(outcome, cached=found is not None)

    def compute(self, signal: Yields) -> Outcome:
        """The limits, without the cache."""
        return fitted(self.model, Signal(signal.nominal, signal.errors), level=self.level, mu_max=self.mu_max)

    def labelled(self, outcome: Outcome, *, cached: bool) -> Outcome:
        """With what they were made of."""
        return replace(outcome, info={**outcome.info, "model": self.model_digest[:16], "cached": cached})


@dataclass(frozen=True)
class RemoteFit(Fitter):
    """Fits on a server that `excursion fit-server` has started.

    Attributes:
        url: of the server; https where a token is sent, except to this machine.
        expect: the first digits (at least 8) of the hash of its model, which it prints when it starts; any if empty.
        patience: seconds for which a server that is down or busy is waited for.
        timeout: seconds to wait for one answer.
        token_env: environment variable with the server's token; none if empty.
        token_file: file with the token instead, readable by its owner only.
    """

    url: str
    expect: str = ""
    patience: float = 3600.0
    timeout: float = 600.0
    token_env: str = ""
    token_file: str = ""

    def __post_init__(self) -> None:
        with_token = bool(self.token_env or self.token_file)
        object.__setattr__(self, "url", checked_url(self.url, "fit", trusted=not with_token))
        if self.expect and not re.fullmatch(r"[0-9a-f]{8,64}", self.expect):
            raise InvalidSpec(
                f"fit: expect must be the first 8 to 64 digits of a model's hash, got {self.expect!r}. "
                "Copy what the server prints"
            )
        for name in ("patience", "timeout"):
            if not getattr(self, name) > 0:
                raise InvalidSpec(f"fit: {name} must be positive, got {getattr(self, name)!r}. Correct it")

    def fit(self, signal: Yields) -> Outcome:
        """See `Fitter.fit`; waits while the server is away."""
        plain = signal_of(signal, "fit")
        asked: dict[str, Any] = {"nominal": plain.nominal, "errors": plain.errors}
        if self.expect:
            asked["expect"] = self.expect
        body = canonical(asked).encode()
        token = read_token(self.token_env, self.token_file, "fit") if self.token_env or self.token_file else ""
        with Connection(self.url, "fit", token=token, patience=self.patience) as to:
            return to.persist(lambda: self._ask(to, body))

    def _ask(self, to: Connection, body: bytes) -> Outcome:
        answer = to.once(
            "POST", "/api/limits", data=body, kind="application/json", read=self.timeout,
            largest=LARGEST_QUESTION, allowed=(400, 404, 405, 409, 411, 413, 415, 422, 500),
        )  # fmt: skip
        said = answer.json()
        if answer.status == 200:
            try:
                return _outcome(said)
            except ValueError as error:
                raise Unavailable(f"an answer that holds no limits ({error})") from None
        raise _refusal(answer, said)


def _refusal(answer: Answer, said: Any) -> Exception:
    """What the server raised, of the same kind as here."""
    kind = said.get("kind") if isinstance(said, dict) else None
    message = answer.message()
    if answer.status == 500 and kind != "bug":
        return Unavailable(f"status 500 ({message})")
    if kind in _KINDS:
        return _KINDS[kind](message)
    return InvalidSpec(f"fit: the server must accept the request, got status {answer.status}: {message}. Correct it")


_KINDS: dict[str, type[Exception]] = {
    "EvaluationError": EvaluationError,
    "ImpossiblePoint": ImpossiblePoint,
    "ShapeError": ShapeError,
    "InvalidProblem": InvalidProblem,
    "bug": EvaluationError,
}


# ------------------------------------------------------------------------------------------------ evaluator


@dataclass(frozen=True)
class Fitted(Evaluator):
    """Signal yields from a function or a program, limits from a fit here or elsewhere.

    Attributes:
        source: a `Command` whose result is `{"nominal": ..., "errors": ..., "info": ...}` (or only the nominal yields),
            flat or by channel; an `Imported` function; or any function of a point, and of seed, fidelity and events if
            it has such parameters, that returns the same, or an object with these attributes.
        how: the fit.
    """

    source: Command | Imported | Callable[..., Any]
    how: Fitter

    def evaluate(self, job: Job) -> Outcome:
        """See `Evaluator.evaluate`."""
        began = time.perf_counter()
        where = f"yields at trial {job.number}"
        info: dict[str, Any] = {}
        if isinstance(self.source, Command):
            text, path, info = self.source.output(job)
            try:
                found = json_value(text)
            except ValueError as error:
                raise EvaluationError(
                    f"{where}: {path} must be JSON, got {error}. See what the program wrote"
                ) from None
        else:
            source = self.source.load() if isinstance(self.source, Imported) else self.source
            found = Function(source).call(job)
        signal = signal_of(found, where)
        computed = time.perf_counter()
        outcome = self.how.fit(signal)
        info |= {**signal.info, **outcome.info, "seconds_signal": computed - began}
        return replace(outcome, info={**info, "seconds_fit": time.perf_counter() - computed})
