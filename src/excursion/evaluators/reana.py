"""Workflows on a REANA server, one per point, through its REST API.

A workflow's name is made of the trial's number, its seed and a hash of everything that is sent. Whoever evaluates the
same trial again, after a driver was killed or a lease has expired, finds the workflow that runs already (or has ended)
instead of starting another one; nothing about it need be remembered here.

References:
    REANA's REST API, reana-server 0.9, docs/openapi.json: POST /api/workflows, POST /api/workflows/{name}/workspace,
        POST /api/workflows/{name}/start, GET and PUT /api/workflows/{name}/status, GET /api/workflows/{name}/logs,
        GET /api/workflows/{name}/workspace/{file}. It takes the token as the query's access_token; later servers, with
        OpenID Connect, in the header.
    T. Simko et al., REANA: a system for reusable research data analyses, EPJ Web Conf. 214 (2019) 06034.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ..data import Job, Outcome
from ..errors import EvaluationError, InvalidSpec
from ..untrusted import read_text, yaml_value
from . import Evaluator
from .program import about, fill, pieces
from .reader import Reader
from .remote import Answer, Connection, Unavailable, checked_url, read_token

__all__ = ["Reana", "Workflow"]

#: Bytes of a reana.yaml.
_LARGEST_SPEC = 2**20
#: Bytes of the logs that are looked at and kept.
_LARGEST_LOGS = 2**23
#: States in which a workflow is on its way.
_PENDING = ("created", "queued", "pending", "running")
#: Seconds between the first two questions how it stands; they grow to `Reana.poll`.
_SOON = 0.5


@dataclass(frozen=True)
class Workflow:
    """How a workflow stands on the server.

    Attributes:
        name: with the number of its run, "excursion-12-34567-0a1b2c3d4e.1".
        status: created, queued, pending, running, finished, failed, stopped or deleted.
        age: seconds since it was created, by the server's clock; None if the server does not tell.
    """

    name: str
    status: str
    age: float | None = None

    @property
    def run(self) -> int:
        """Number of the run: the first workflow of a name has 1, the next 2."""
        number = re.search(r"\.([0-9]+)(\.[0-9]+)?$", self.name)
        return int(number[1]) if number else 1


@dataclass(frozen=True)
class Reana(Evaluator):
    """Runs a workflow on a REANA server for each point and reads its result.

    `evaluate` waits for the end, which may take days: it sleeps between questions, and threads of one process can wait
    for hundreds of workflows (executor "local" with threads). `submit`, `status` and `collect` are its parts, for those
    who keep the books themselves.

    The files and directories under `inputs` of the specification are uploaded. Each input parameter of the workflow
    gets its value by `inputs`; by default those that are called like a parameter of the space, or seed, number,
    fidelity, events.

    Attributes:
        specification: the reana.yaml, relative to `folder`; its workflow must be in it (workflow.specification), for
            files of other languages are only read by reana-client.
        server: the server's URL; https, except on this machine.
        result: where in the workspace the values are.
        inputs: input parameter of the workflow -> a parameter of the space, seed, number, fidelity, events (its number
            is sent), or a template with such names in braces, "{m_slepton:.1f}" (text is sent).
        constants: input parameter of the workflow -> what is sent at every point.
        prefix: begins the workflows' names.
        workdir: the results are downloaded to `workdir/<name>`, and read from there another time.
        runs: workflows that are started for one point, if they fail.
        timeout: seconds from creation after which a workflow is stopped and the point failed; None for no limit.
        poll: longest time between two questions how a workflow stands, in seconds.
        patience: seconds for which a server that is down or busy is waited for.
        delete: delete the workflow and its workspace when the result has been read here.
        stop_on_interrupt: stop the workflow on Ctrl-C; else it goes on and the next run of the campaign finds it.
        token_env: environment variable that holds the access token.
        token_file: file that holds it instead, readable by its owner only.
        authentication: where the token is sent: "query", as REANA 0.9 wants it, or "header" (Bearer).
        parameters: the names of the space's parameters, to check the inputs before anything runs; None to find out at
            the first point.
        folder: what paths are relative to; the current directory if empty.

    Raises:
        InvalidSpec: settings that cannot work.
    """

    specification: str
    server: str
    result: Reader
    inputs: Mapping[str, str] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = "excursion"
    workdir: str = "reana"
    runs: int = 1
    timeout: float | None = None
    poll: float = 60.0
    patience: float = 86400.0
    delete: bool = False
    stop_on_interrupt: bool = False
    token_env: str = "REANA_ACCESS_TOKEN"
    token_file: str = ""
    authentication: Literal["query", "header"] = "query"
    parameters: tuple[str, ...] | None = None
    folder: str = ""

    def __post_init__(self) -> None:
        folder = os.path.abspath(os.path.expanduser(self.folder))
        object.__setattr__(self, "folder", folder)
        object.__setattr__(self, "workdir", os.path.join(folder, os.path.expanduser(self.workdir)))
        object.__setattr__(self, "server", checked_url(self.server, "reana"))
        if self.parameters is not None:
            object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "constants", dict(self.constants))
        if self.inputs is not None:
            object.__setattr__(self, "inputs", dict(self.inputs))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", self.prefix):
            raise InvalidSpec(
                f"reana: the prefix must be letters, digits, - and _, at most 60, got {self.prefix!r}. Choose another"
            )
        for name, least in (("runs", 1), ("timeout", 0), ("poll", 0), ("patience", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InvalidSpec(f"reana: {name} must be at least {least}, got {value!r}. Correct it")
        if self.authentication not in ("query", "header"):
            raise InvalidSpec(
                f"reana: authentication must be query or header, got {self.authentication!r}. REANA 0.9 has query"
            )
        declared = self._declared(self._specification())
        if self.parameters is not None:
            self._values(Job(dict.fromkeys(self.parameters, 0.5), fidelity="x", events=1), declared, checking=True)

    # -- the parts

    def evaluate(self, job: Job) -> Outcome:
        """Run the workflow of a point, or find the one that runs, and read its result.

        Args:
            job: the point in physical units, the trial's number and its seed.

        Raises:
            EvaluationError: the workflow fails (its log's end is told), is stopped by somebody, takes too long, has no
                proper result; or the server is away for longer than the patience.
            InvalidSpec: the server refuses the token or the specification.
        """
        where, name, began = f"reana at trial {job.number}", self.name(job), time.monotonic()
        if not self._file(name).is_file():
            with self._connection(where) as to:
                self._follow(to, job, name, where)
        outcome = self.collect(job)
        return replace(outcome, info={**outcome.info, "seconds": time.monotonic() - began})

    def name(self, job: Job) -> str:
        """The workflow's name at a point, the same each time: prefix, number, seed, hash of what is sent."""
        specification = self._specification()
        files = {relative: _digest(path) for relative, path in self._uploads(specification)}
        sent = [specification, self._values(job, self._declared(specification)), files]
        text = json.dumps(sent, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"{self.prefix}-{job.number}-{job.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def submit(self, job: Job) -> Workflow:
        """Start the workflow of a point unless it is there already, at most `runs` times if it fails.

        Returns:
            How it stands: "failed" if it has failed as often as it may.
        """
        with self._connection(f"reana at trial {job.number}") as to:
            return to.persist(lambda: self._submit(to, job, self.name(job)))

    def status(self, job: Job) -> Workflow | None:
        """How the workflow of a point stands; None if there is none."""
        with self._connection(f"reana at trial {job.number}") as to:
            return to.persist(lambda: self._status(to, self.name(job)))

    def collect(self, job: Job) -> Outcome:
        """The outcome of a workflow that has finished; what was downloaded before is read again.

        Raises:
            EvaluationError: it has no proper result.
        """
        where, name = f"reana at trial {job.number}", self.name(job)
        if not self._file(name).is_file():
            with self._connection(where) as to:
                self._download(to, name, where)
        outcome = self.result.read(self._directory(name), where)
        if self.delete:
            with self._connection(where) as to:
                to.persist(lambda: self._put(to, name, "deleted", {"workspace": True}))
        info = {"workflow": name, "server": self.server, "workdir": str(self._directory(name))}
        return replace(outcome, info={**outcome.info, **info})

    # -- the server

    def _connection(self, where: str) -> Connection:
        token = read_token(self.token_env, self.token_file, where)
        return Connection(self.server, where, token=token, token_in=self.authentication, patience=self.patience)

    def _follow(self, to: Connection, job: Job, name: str, where: str) -> None:
        """Return when the workflow has finished."""
        try:
            began, pause = time.monotonic(), _SOON
            found = to.persist(lambda: self._submit(to, job, name))
            while found.status in _PENDING:
                age = max(found.age or 0.0, time.monotonic() - began)
                if self.timeout is not None and age > self.timeout:
                    to.persist(lambda: self._put(to, name, "stop", {}))
                    raise EvaluationError(
                        f"{where}: the workflow {found.name} must end within {self.timeout:g} s, got {found.status} "
                        f"after {age:.0f} s and stopped it. {self._logged(to, name)}"
                    )
                time.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(1.5 * pause, self.poll)
                now = to.persist(lambda: self._status(to, name))
                if now is not None and now.status == "failed":
                    now = to.persist(lambda: self._submit(to, job, name))
                if now is None:
                    raise EvaluationError(
                        f"{where}: the workflow {name} must stay on the server, got none. See who has deleted it"
                    )
                pause = _SOON if now.name != found.name else pause
                found = now
        except (KeyboardInterrupt, SystemExit):
            if self.stop_on_interrupt:
                with contextlib.suppress(Unavailable, EvaluationError):
                    self._put(to, name, "stop", {})
            raise
        if found.status != "finished":
            raise EvaluationError(
                f"{where}: the workflow {found.name} must finish, got {found.status}. {self._logged(to, name)}"
            )

    def _submit(self, to: Connection, job: Job, name: str) -> Workflow:
        """Look, create, upload, start: whatever of it has not been done yet."""
        specification = self._specification()
        found = self._status(to, name)
        again = found is not None and found.status == "failed" and found.run < self.runs
        if found is None or found.status in ("stopped", "deleted") or again:
            to.once("POST", "/api/workflows", query={"workflow_name": name}, json=specification)
            found = self._required(to, name)
        if found.status != "created":
            return found
        for relative, path in self._uploads(specification):
            with open(path, "rb") as stream:
                # The page of a gateway is no success: what REANA says is JSON.
                to.once("POST", f"{_path(name)}/workspace", query={"file_name": relative}, data=stream, read=600).json()
        values = self._values(job, self._declared(specification))
        body = {"input_parameters": values, "operational_options": {}}
        try:
            to.once("POST", f"{_path(name)}/start", json=body, allowed=(409,)).json()
        except InvalidSpec:
            # A request whose answer was lost may have started it: then the server refuses to do so again.
            found = self._required(to, name)
            if found.status == "created":
                raise
            return found
        return self._required(to, name)

    def _status(self, to: Connection, name: str) -> Workflow | None:
        answer = to.once("GET", f"{_path(name)}/status", allowed=(404,))
        if answer.status == 404:
            return None
        said = answer.json()
        if not isinstance(said, dict) or not isinstance(said.get("status"), str):
            raise Unavailable(f"an answer without status: {answer.message()}")
        return Workflow(str(said.get("name") or name), said["status"], _age(answer, said.get("created")))

    def _required(self, to: Connection, name: str) -> Workflow:
        found = self._status(to, name)
        if found is None:
            raise Unavailable(f"no workflow {name} although it was created")
        return found

    def _put(self, to: Connection, name: str, status: str, body: Mapping[str, Any]) -> None:
        # What has ended meanwhile cannot be stopped, what is gone cannot be deleted.
        to.once("PUT", f"{_path(name)}/status", query={"status": status}, json=body, allowed=(404, 409))

    def _download(self, to: Connection, name: str, where: str) -> None:
        """The result, complete or not at all."""
        path = f"{_path(name)}/workspace/{quote(self.result.file)}"
        answer = to.persist(lambda: to.once("GET", path, allowed=(404,)))
        if answer.status == 404:
            raise EvaluationError(
                f"{where}: the workflow {name} must write {self.result.file}, got no such file in its workspace. "
                + self._logged(to, name)
            )
        _write(self._file(name), answer.body)

    def _logged(self, to: Connection, name: str) -> str:
        """The end of the logs, which are kept beside the result."""
        try:
            answer = to.once("GET", f"{_path(name)}/logs", largest=_LARGEST_LOGS)
            text = to.masked(_log_text(answer))
        except (Unavailable, EvaluationError, InvalidSpec) as error:
            return f"Its logs cannot be read: {error}"
        path = self._directory(name) / "log.txt"
        _write(path, text.encode("utf-8", errors="replace"))
        tail = text.rstrip().splitlines()[-10:]
        return f"See {path}" + (", which ends with:\n" + "\n".join(tail) if tail else ", which is empty")

    # -- what is sent

    def _specification(self) -> dict[str, Any]:
        path = os.path.join(self.folder, os.path.expanduser(self.specification))
        text = read_text(path, InvalidSpec, largest=_LARGEST_SPEC)
        try:
            found = yaml_value(text)
        except ValueError as error:
            raise InvalidSpec(f"reana: {path} must be YAML, got {error}. Correct it") from error
        workflow = found.get("workflow") if isinstance(found, dict) else None
        if not isinstance(workflow, dict) or not isinstance(workflow.get("specification"), dict):
            raise InvalidSpec(
                f"reana: {path} must hold its workflow, got no workflow.specification. Write the steps in this file "
                "(type: serial), or put there what 'reana-client' makes of the file it names"
            )
        try:
            json.dumps(found, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidSpec(f"reana: {path} must be plain data, got {error}. Put dates in quotes") from None
        return found

    def _declared(self, specification: Mapping[str, Any]) -> tuple[str, ...]:
        inputs = specification.get("inputs")
        parameters = inputs.get("parameters") if isinstance(inputs, dict) else None
        return tuple(map(str, parameters)) if isinstance(parameters, dict) else ()

    def _values(self, job: Job, declared: tuple[str, ...], *, checking: bool = False) -> dict[str, Any]:
        """Input parameters of the workflow at a point."""
        known = {**{name: float(x) for name, x in job.x.items()}, **about(job)}
        inputs = self.inputs
        if inputs is None:
            inputs = {name: name for name in declared if name in known and name not in self.constants}
        if both := sorted(set(inputs) & set(self.constants)):
            raise InvalidSpec(f"reana: an input is either constant or not, got both for {both}. Choose one")
        if unknown := sorted({*inputs, *self.constants} - set(declared)):
            raise InvalidSpec(
                f"reana: inputs must be declared under inputs.parameters of {self.specification} "
                f"({', '.join(declared) or 'none'}), got {unknown}. Declare them there"
            )
        values: dict[str, Any] = dict(self.constants)
        used = set()
        for name, template in inputs.items():
            parts = list(pieces(template, "reana"))
            if all(placeholder is None for _, placeholder, _ in parts):
                # A name without braces: its value as it is.
                parts = [("", template, "")]
                fill(f"{{{template}}}", known, sorted(job.x), "reana")
                values[name] = known[template]
            else:
                values[name] = fill(template, known, sorted(job.x), "reana")
            used |= {placeholder for _, placeholder, _ in parts}
        if checking and (missing := sorted(set(job.x) - used)):
            raise InvalidSpec(
                f"reana: the workflow must get every parameter, got no {', '.join(missing)}. Declare "
                f"{missing[0]} under inputs.parameters of {self.specification}, or write inputs: "
                f"{{its name there: {missing[0]}}}"
            )
        return values

    def _uploads(self, specification: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
        """Name in the workspace and path here of everything that the specification lists."""
        inputs = specification.get("inputs")
        listed = inputs if isinstance(inputs, dict) else {}
        root = Path(os.path.join(self.folder, os.path.expanduser(self.specification))).resolve().parent
        for kind in ("files", "directories"):
            for entry in listed.get(kind) or ():
                path = (root / str(entry)).resolve()
                if not path.is_relative_to(root) or not (path.is_file() if kind == "files" else path.is_dir()):
                    raise InvalidSpec(
                        f"reana: inputs.{kind} must lie beside {self.specification}, got {entry!r}. "
                        f"Put them into {root}"
                    )
                inside = [path] if kind == "files" else sorted(p for p in path.rglob("*") if p.is_file())
                for file in inside:
                    if not file.resolve().is_relative_to(root):
                        raise InvalidSpec(f"reana: a link must not lead out of {root}, got {file}. Copy the file")
                    yield file.relative_to(root).as_posix(), file

    def _directory(self, name: str) -> Path:
        return Path(self.workdir) / name

    def _file(self, name: str) -> Path:
        return self._directory(name) / self.result.file


def _path(name: str) -> str:
    return f"/api/workflows/{quote(name, safe='')}"


def _age(answer: Answer, created: object) -> float | None:
    """Seconds since a workflow was created (in UTC), by the server's own clock."""
    now = answer.time()
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None if now is None else now - moment.timestamp()


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{random.getrandbits(32):08x}")
    scratch.write_bytes(data)
    os.replace(scratch, path)


def _log_text(answer: Answer) -> str:
    """The workflow's and its jobs' logs as text; REANA sends JSON inside JSON."""
    said = answer.json()
    logs = said.get("logs") if isinstance(said, dict) else said
    if isinstance(logs, str):
        with contextlib.suppress(ValueError):
            logs = json.loads(logs)
    if not isinstance(logs, dict):
        return str(logs or "")
    parts = [str(logs.get("workflow_logs") or ""), str(logs.get("engine_specific") or "")]
    jobs = logs.get("job_logs")
    for job in jobs.values() if isinstance(jobs, dict) else ():
        if isinstance(job, dict):
            parts.append(f"--- {job.get('job_name')}: {job.get('status')}\n{job.get('logs') or ''}")
    return "\n".join(part for part in parts if part)
