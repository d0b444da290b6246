"""Workflows of yadage, in which preserved analyses (RECAST) are written, as evaluators.

A workflow is a graph of steps, each a command with its environment and its outputs (Cranmer, Heinrich,
arXiv:1706.01878). The point becomes the workflow's initial data, and the result is read from a file that one of its
steps writes.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ..data import Job, Outcome
from ..errors import EvaluationError, InvalidSpec, MissingExtra
from ..untrusted import read_end, read_text, yaml_value
from . import Evaluator
from .program import OPTIONAL, RESERVED, about, exit_text, fill, log_advice, new_directory, pieces, split, wait
from .reader import Reader

__all__ = ["Containers", "Entry", "Yadage", "entry"]

#: What runs the steps that name a container image.
Containers = Literal["docker", "singularity", "local"]
#: Bytes of a catalogue entry.
_LARGEST = 2**20
#: Files in the folder of a workflow; with more of them it is something else, too, such as a home directory.
_MANY = 2000
_REMOTE = re.compile(r"[A-Za-z][A-Za-z-]+:|from-(github|cap)")
#: In an evaluation's directory: what the workflow makes, and what yadage says.
_WORK, _LOG = "workflow", "yadage.log"


@dataclass(frozen=True)
class Yadage(Evaluator):
    """Runs a workflow once per point, each time in a directory and a process of its own.

    What the steps print is kept in `log.txt` of that directory, what they write in its `workflow` folder, yadage's own
    messages in `yadage.log`.

    Attributes:
        workflow: the workflow's file, relative to `toplevel`.
        result: where the values are; its file is relative to what yadage calls the work directory:
            ``fit/limits.json`` for the file `limits.json` of the stage `fit`.
        toplevel: the folder in which workflow and steps are looked for; by default the one of the workflow's file.
        inputs: initial datum -> the parameter whose value it is; or `seed`, `number`, `fidelity` or `events` of the
            trial; or a text with placeholders as in `Command`, such as ``"{m_slepton:.0f}"``, which gives text. None:
            all parameters under their own names.
        constants: initial datum -> its value at every point, JSON-compatible.
        executable: the command line of yadage-run, for a yadage that has an environment of its own; the one of this
            environment by default, which then has to have the extra "yadage".
        backend: of packtivity. The default runs one step after the other in the workflow's process; "multiproc:2" two
            at a time.
        containers: what runs steps that name an image: docker; singularity (also Apptainer's command of that name);
            "local": nothing, the command is run on this machine as it is, in whatever environment that has.
            Useful where the environment *is* the image, and in tests; not the preserved software.
        initdir: folder in which the workflow finds files that its initial data name.
        workdir: the directory under which each evaluation gets its own, as in `Command`.
        timeout: seconds after which workflow and steps are killed; None for no limit. A container may live on: its
            engine, not we, is its parent.
        environment: variables that yadage and the steps see besides those of this process. Without an executable, PATH
            begins with the folder of this Python, so that local steps find it and its programs.
        parameters: the names of the space's parameters, to check `inputs`; None to find out at the first evaluation.
        folder: what the other paths are relative to; the current directory if empty.

    Raises:
        InvalidSpec: no such workflow, a toplevel that is not on this machine, inputs that do not fit the parameters or
            that no file of the workflow mentions (yadage itself would ignore them).
    """

    workflow: str
    result: Reader
    toplevel: str = ""
    inputs: Mapping[str, str] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    executable: str = ""
    backend: str = "foregroundasync"
    containers: Containers = "docker"
    initdir: str = ""
    workdir: str = "work"
    timeout: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[str, ...] | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        # Absolute from now on: worker processes may run elsewhere.
        folder = os.path.abspath(os.path.expanduser(self.folder))
        object.__setattr__(self, "folder", folder)
        object.__setattr__(self, "workdir", os.path.join(folder, os.path.expanduser(self.workdir)))
        if self.initdir:
            object.__setattr__(self, "initdir", os.path.join(folder, os.path.expanduser(self.initdir)))
        self._find(folder)
        object.__setattr__(self, "environment", dict(self.environment))
        object.__setattr__(self, "constants", dict(self.constants))
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(self.parameters))
        if self.inputs is not None:
            object.__setattr__(self, "inputs", dict(self.inputs))
        if self.executable:
            split(self.executable, "yadage, executable")
        if self.containers not in get_args(Containers):
            raise InvalidSpec(
                f"yadage: containers must be one of {', '.join(get_args(Containers))}, got {self.containers!r}. "
                "Choose one"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidSpec(f"yadage: the timeout must be positive, got {self.timeout!r}. Leave it out for no limit")
        for name, value in self.environment.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise InvalidSpec(
                    f"yadage: environment variables must be text, got {name!r}={value!r}. Put it in quotes"
                )
        self._check_inputs()

    def _find(self, folder: str) -> None:
        for name, path in (("workflow", self.workflow), ("toplevel", self.toplevel)):
            if _REMOTE.match(path):
                raise InvalidSpec(
                    f"yadage: the {name} must be on this machine, got {path!r}. Fetch it (git clone) and give the "
                    "folder as toplevel"
                )
        workflow, toplevel = os.path.expanduser(self.workflow), os.path.expanduser(self.toplevel)
        if not toplevel:
            toplevel, workflow = os.path.split(workflow)
        toplevel = os.path.join(folder, toplevel)
        if not os.path.isfile(path := os.path.join(toplevel, workflow)):
            raise InvalidSpec(
                f"yadage: the workflow must exist, got no file {path}. Its path is relative to toplevel, "
                "and toplevel's to the folder of the campaign's file"
            )
        object.__setattr__(self, "workflow", workflow)
        object.__setattr__(self, "toplevel", toplevel)

    def _check_inputs(self) -> None:
        if both := sorted(set(self.inputs or {}) & set(self.constants)):
            raise InvalidSpec(f"yadage: initial data are inputs or constants, got both for {both}. Choose one")
        try:
            json.dumps(self.constants, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidSpec(
                f"yadage: constants must be text, numbers, lists and mappings (JSON), got {error}. Correct them"
            ) from error
        if self.inputs is not None and (
            wrong := {k: v for k, v in self.inputs.items() if not isinstance(k, str) or not isinstance(v, str) or not v}
        ):
            raise InvalidSpec(f"yadage: inputs must name parameters, got {wrong}. Other values belong into constants")
        names = self.parameters or () if self.inputs is None else self.inputs
        if ignored := _not_mentioned(names, Path(self.toplevel)):
            raise InvalidSpec(
                f"yadage: the workflow must use its initial data, got no mention of {', '.join(ignored)} in the files "
                f"of {self.toplevel}. Write inputs: {{name in the workflow: parameter}}"
            )
        if self.parameters is None:
            return
        known = {**about(Job({}, fidelity="x", events=1)), **dict.fromkeys(self.parameters, 0.5)}
        self._initial(dict.fromkeys(self.parameters, 0.5), known)
        if self.inputs is not None and (missing := sorted(set(self.parameters) - self._used())):
            raise InvalidSpec(
                f"yadage: the inputs must use every parameter, got no {', '.join(missing)} in {self.inputs}. "
                f"Write name: {missing[0]}"
            )

    def _used(self) -> set[str]:
        return {
            name
            for text in (self.inputs or {}).values()
            for name in ([n for _, n, _ in pieces(text, "yadage")] if "{" in text else [text])
            if name is not None
        }

    def _initial(self, x: Mapping[str, float], known: Mapping[str, Any]) -> dict[str, Any]:
        """The workflow's initial data."""
        names = dict(zip(x, x)) if self.inputs is None else self.inputs
        data: dict[str, Any] = dict(self.constants)
        for key, text in names.items():
            where = f"yadage, input {key!r}"
            if "{" in text:
                data[key] = fill(text, known, sorted(x), where)
            elif text in known:
                data[key] = known[text]
            else:
                advice = (
                    f"Declare fidelities: this campaign gives no {text}"
                    if text in OPTIONAL
                    else "Correct the name; a text that is the same at every point belongs into constants"
                )
                raise InvalidSpec(
                    f"{where}: must be a parameter ({', '.join(sorted(x)) or 'none'}) or one of "
                    f"{', '.join(n for n in RESERVED if n not in ('workdir', 'folder'))}, got {text!r}. {advice}"
                )
        return data

    def evaluate(self, job: Job) -> Outcome:
        """Run the workflow at one point and read its result.

        Args:
            job: the point in physical units, the trial's number and its seed.

        Returns:
            The values; `info` tells the directory and the seconds.

        Raises:
            EvaluationError: the workflow fails (the message ends with what the step printed last), takes too long, or
                its result is missing or makes no sense.
            InvalidSpec: inputs that do not fit the point's parameters, no such executable, no engine for containers.
            MissingExtra: yadage is not installed here and no executable is given.
        """
        where = f"yadage at trial {job.number}"
        if clash := sorted(set(job.x) & set(about(job))):
            raise InvalidSpec(f"{where}: parameters must not be called {', '.join(RESERVED)}, got {clash}. Rename them")
        x = {name: float(value) for name, value in job.x.items()}
        initial = self._initial(x, {**about(job), **x})
        if not self.executable and importlib.util.find_spec("yadage") is None:
            raise MissingExtra(
                f"{where}: yadage must be installed, got no such module. "
                'Run: pip install "excursion[yadage]", or name an executable of another environment'
            )
        directory = new_directory(Path(self.workdir), job.number, where)
        words, environment = self._prepared(directory, initial)
        start = time.monotonic()
        try:
            with open(directory / "log.txt", "ab") as log:
                code = wait(words, directory, log, log, environment=environment, timeout=self.timeout, where=where)
        except subprocess.TimeoutExpired:
            raise EvaluationError(
                f"{where}: the workflow must end within {self.timeout:g} s, got no end and killed it"
                f"{_running(directory)}. {log_advice(directory)}"
            ) from None
        seconds = time.monotonic() - start
        if code != 0:
            raise self._failure(where, directory, code, seconds)
        outcome = self.result.read(directory / _WORK, where)
        info = {**outcome.info, "workdir": str(directory), "seconds": seconds}
        return Outcome(outcome.values, outcome.variances, outcome.bounds, info=info, missing=outcome.missing)

    def _prepared(self, directory: Path, initial: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
        """The command line and the variables; writes what yadage reads."""
        work = str(directory / _WORK)
        dataopts = {"initdir": self.initdir} if self.initdir else {}
        # A step's failure would otherwise come with a traceback of packtivity behind what the step itself said.
        environment = {"PACKTIVITY_LOGGING_STREAM_LEVEL": "CRITICAL"}
        if not self.executable:
            # As in an environment that has been activated: "python" is this one for steps, too.
            paths = [os.path.dirname(sys.executable), *([path] if (path := os.environ.get("PATH")) else [])]
            environment["PATH"] = os.pathsep.join(paths)
        environment |= self.environment
        if self.containers == "singularity":
            environment["PACKTIVITY_CONTAINER_RUNTIME"] = "singularity"
        plugin = []
        if self.containers == "local":
            plugin = ["excursion_packtivity_local"]
            folder = directory / "plugin"
            folder.mkdir()
            shutil.copyfile(Path(__file__).with_name("packtivity_local.py"), folder / f"{plugin[0]}.py")
            (folder / "select.yml").write_text("executor: {docker-encapsulated: local}\n", encoding="utf-8")
            before = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
            environment["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
            environment["PACKTIVITY_PLUGINS"] = plugin[0]
            environment["PACKTIVITY_SYNCCONFIGFILE"] = str(folder / "select.yml")
        if self.executable:
            # YAML, as yadage-run reads it: "1e-07", which JSON would write, is text there.
            (directory / "initial.yml").write_text(yaml.safe_dump(dict(initial)), encoding="utf-8")
            words = split(self.executable, "yadage, executable")
            if os.sep in words[0]:
                words[0] = os.path.join(self.folder, os.path.expanduser(words[0]))
            words += ["--verbosity", "CRITICAL", "--backend", self.backend, "--toplevel", self.toplevel]
            words += [word for name, value in dataopts.items() for word in ("--dataopt", f"{name}={value}")]
            words += ["--plugins", *plugin] if plugin else []
            return [*words, f"local:{work}", self.workflow, str(directory / "initial.yml")], environment
        request = {
            "workflow": self.workflow,
            "toplevel": self.toplevel,
            "workdir": work,
            "initdata": initial,
            "dataopts": dataopts,
            "backend": self.backend,
            "log": str(directory / _LOG),
            "schemas": str(directory / "schemas"),
        }
        (directory / "request.json").write_text(json.dumps(request), encoding="utf-8")
        driver = Path(__file__).with_name("yadage_driver.py")
        # Without -P the driver's own folder would come first among those that modules are looked for in.
        return [sys.executable, "-P", str(driver), str(directory / "request.json")], environment

    def _failure(self, where: str, directory: Path, code: int, seconds: float) -> Exception:
        said = log_advice(directory)
        if f"No such file or directory: '{self.containers}'" in said and not shutil.which(self.containers):
            return InvalidSpec(  # at every point: the run stops before the budget is spent on it
                f"{where}: steps that name an image need {self.containers} on this machine, got no such program. "
                "Install it, or choose another of 'containers'"
            )
        log, step = _last_step(directory)
        parts = [
            f"{where}: the workflow must end well, got {exit_text(code)} after {seconds:.1f} s"
            + (f" in step {step!r}" if step else ""),
            said,
        ]
        if log is not None:
            parts.append(log_advice(log.parent, log.name))
        return EvaluationError(". ".join(parts))


def _not_mentioned(names: Iterable[str], toplevel: Path) -> list[str]:
    """Those that no YAML or JSON file of a workflow has as a word; none where there are too many files to tell."""
    rest = sorted(set(names))
    for visited, path in enumerate(toplevel.rglob("*")):
        if visited >= _MANY or not rest:
            return []
        if path.suffix in (".yml", ".yaml", ".json"):
            try:
                text = read_end(path, Path("/"), largest=_LARGEST)
            except ValueError:  # a folder of that name, or not ours to read: yadage will tell if it needs it
                continue
            rest = [name for name in rest if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    return rest


def _last_step(directory: Path) -> tuple[Path | None, str]:
    """Of the step that began last: the log of its container, if it ran in one, and its name; "" if none began."""
    began = []
    for log in (directory / _WORK).rglob("_packtivity/*.step.log"):
        try:
            began.append((log.stat().st_mtime_ns, log))
        except OSError:  # a step may remove it
            continue
    if not began:
        return None, ""
    latest = max(began)[1]
    step = latest.name.removesuffix(".step.log")
    for topic in ("run", "pull"):
        if (log := latest.with_name(f"{step}.{topic}.log")).is_file():
            return log, step
    return None, step


def _running(directory: Path) -> str:
    step = _last_step(directory)[1]
    return f" in step {step!r}" if step else ""


# --------------------------------------------------------------------------------------------- the catalogue


@dataclass(frozen=True)
class Entry:
    """What an entry of a RECAST catalogue says about a workflow.

    Attributes:
        file: the entry.
        workflow: file of the workflow, relative to `toplevel`.
        toplevel: as in the entry: a folder, relative to the entry's; or something like "github:owner/repository".
        constants: initial data of one of its examples.
        initdir: folder of the example's files, relative to the entry's, or "".
        results: name -> path of a result, relative to the work directory.
    """

    file: str
    workflow: str
    toplevel: str
    constants: Mapping[str, Any]
    initdir: str
    results: Mapping[str, str]

    @property
    def result(self) -> str:
        """The path of its only result.

        Raises:
            InvalidSpec: it has none or several.
        """
        if len(self.results) != 1:
            raise InvalidSpec(
                f"recast, {self.file}: which result is read must be clear, got {self.results}. "
                "Write result: {file: ...}"
            )
        return next(iter(self.results.values()))

    def evaluator(self, result: Reader, folder: str = "", **settings: Any) -> Yadage:
        """The workflow as an evaluator: the entry's initial data, with those replaced that depend on the point.

        Args:
            result: see `Yadage`.
            folder: what paths in the settings are relative to.
            **settings: further attributes of `Yadage`. `toplevel` replaces the entry's.

        Raises:
            InvalidSpec: see `Yadage`; also inputs or constants that the entry's example does not have.
        """
        folder, beside = os.path.abspath(os.path.expanduser(folder)), os.path.dirname(os.path.abspath(self.file))
        inputs = settings.get("inputs")
        varied = set(settings.get("parameters") or () if inputs is None else inputs)
        given = varied | set(settings.get("constants", {}))
        if self.constants and (unknown := sorted(map(str, given - set(self.constants)))):
            raise InvalidSpec(
                f"recast, {self.file}: inputs and constants must be initial data of the workflow "
                f"({', '.join(self.constants)}), got {unknown}. Write inputs: {{name in the workflow: parameter}}"
            )
        constants = {**self.constants, **settings.pop("constants", {})}
        toplevel = settings.pop("toplevel", "")
        if toplevel:
            toplevel = os.path.join(folder, os.path.expanduser(toplevel))
        elif not _REMOTE.match(self.toplevel):
            toplevel = os.path.join(beside, self.toplevel)
        else:
            toplevel = self.toplevel
        if self.initdir:
            settings.setdefault("initdir", os.path.join(beside, self.initdir))
        fixed = {key: value for key, value in constants.items() if key not in varied}
        return Yadage(self.workflow, result, toplevel, constants=fixed, folder=folder, **settings)


def entry(path: str | os.PathLike[str], example: str = "default") -> Entry:
    """Read an entry of a RECAST catalogue (the YAML files of recast-atlas).

    Args:
        path: the file.
        example: which of its `example_inputs` gives the initial data that the point does not.

    Raises:
        InvalidSpec: it cannot be read, or says no workflow, or has no such example.
    """
    where = f"recast, {os.fspath(path)}"

    def wrong(rule: str, got: object, fix: str) -> InvalidSpec:
        shown = repr(got)
        return InvalidSpec(f"{where}: {rule}, got {shown if len(shown) <= 200 else shown[:197] + '...'}. {fix}")

    def mapping(of: Any, key: str) -> Any:
        found = of.get(key)
        if found is not None and not isinstance(found, dict):
            raise wrong(f"{key} must be a mapping", found, "Compare with an entry of recast-atlas")
        return found or {}

    text = read_text(path, InvalidSpec, largest=_LARGEST)
    try:
        found = yaml_value(text)
    except ValueError as error:
        raise wrong("must be YAML", str(error), "Correct it") from error
    if not isinstance(found, dict):
        raise wrong("must be a mapping", found, "Compare with an entry of recast-atlas")
    spec = mapping(found, "spec")
    workflow, toplevel = spec.get("workflow"), spec.get("toplevel", "")
    if not isinstance(workflow, str) or not isinstance(toplevel, str):
        raise wrong("spec must name workflow and toplevel", spec, "Compare with an entry of recast-atlas")
    examples = mapping(found, "example_inputs")
    if example not in examples and (examples or example != "default"):
        raise wrong(f"there must be an example {example!r}", sorted(map(str, examples)), "Name one of these")
    inputs = mapping(examples, example)
    dataopts = mapping(inputs, "dataopts")
    if unknown := sorted(map(str, set(dataopts) - {"initdir"})):
        raise wrong("of dataopts only initdir can be used here", unknown, "Give a copy of the entry without them")
    results: dict[str, str] = {}
    listed = found.get("results") or []
    if not isinstance(listed, list):
        raise wrong("results must be a list", listed, "Compare with an entry of recast-atlas")
    for i, result in enumerate(listed):
        if not isinstance(result, dict) or not isinstance(result.get("relpath"), str):
            raise wrong("each of results must have a relpath", result, "Compare with an entry of recast-atlas")
        results[str(result.get("name", i))] = result["relpath"]
    constants = {str(key): value for key, value in mapping(inputs, "initdata").items()}
    if bad := [key for key, value in constants.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise wrong("initial data must be finite", bad, "Correct them")
    initdir = dataopts.get("initdir", "")
    return Entry(os.fspath(path), workflow, toplevel, constants, str(initdir or ""), results)
