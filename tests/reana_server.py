"""A small REANA: the REST API of reana-server 0.9 as its openapi.json documents it, on this machine and in threads.

Workspaces are directories, and a workflow is run by really executing the commands of its serial steps there.
"""

from __future__ import annotations

import json
import re
import string
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: What may go wrong with a request: a status instead of an answer; no answer, before or after it was carried out;
#: a page of a gateway; half of the answer.
TROUBLES = ("429", "503", "500", "drop", "lost answer", "page", "half")


@dataclass
class Run:
    """One workflow on the server."""

    id: str
    name: str
    number: int
    specification: dict[str, Any]
    workspace: Path
    created: float
    status: str = "created"
    logs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    turn: threading.Event = field(default_factory=threading.Event)

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.number}"


class Reana:
    """The state of the server.

    Attributes:
        token: the only valid one.
        token_in: "query" (0.9) or "header".
        delay: seconds that a workflow waits in the queue.
        troubles: (pattern of "METHOD path", one of `TROUBLES`) pairs, each used once, the first that matches.
        requests: "METHOD path" of all requests, without query.
        queries: the whole request lines.
        past: seconds by which `created` is put back.
        redirect: another server, to which everything is redirected.
    """

    def __init__(self, root: Path, token: str, token_in: str = "query") -> None:
        self.root, self.token, self.token_in = root, token, token_in
        self.delay, self.past = 0.0, 0.0
        self.troubles: list[tuple[str, str]] = []
        self.runs: list[Run] = []
        self.requests: list[str] = []
        self.queries: list[str] = []
        self.most_running = 0
        self.redirect = ""
        self.lock = threading.RLock()

    def trouble(self, request: str) -> str | None:
        with self.lock:
            for i, (pattern, kind) in enumerate(self.troubles):
                if re.fullmatch(pattern, request):
                    del self.troubles[i]
                    return kind
        return None

    def find(self, name: str) -> Run | None:
        with self.lock:
            for run in reversed(self.runs):
                if name in (run.id, run.full_name, run.name):
                    return run
        return None

    def create(self, name: str, specification: dict[str, Any]) -> Run:
        with self.lock:
            number = 1 + sum(run.name == name for run in self.runs)
            workspace = self.root / f"{name}.{number}"
            workspace.mkdir(parents=True)
            run = Run(str(uuid.uuid4()), name, number, specification, workspace, time.time() - self.past)
            self.runs.append(run)
            return run

    def start(self, run: Run, parameters: dict[str, Any]) -> None:
        run.status, run.parameters = "queued", parameters
        threading.Thread(target=self._execute, args=(run,), daemon=True).start()

    def hurry(self, run: Run) -> None:
        """End a workflow's time in the queue."""
        run.turn.set()

    def _execute(self, run: Run) -> None:
        run.turn.wait(self.delay)
        with self.lock:
            if run.status != "queued":
                return
            run.status = "running"
            self.most_running = max(self.most_running, sum(r.status == "running" for r in self.runs))
        given = {**run.specification.get("inputs", {}).get("parameters", {}), **run.parameters}
        for step in run.specification["workflow"]["specification"]["steps"]:
            for command in step["commands"]:
                filled = string.Template(command).safe_substitute({k: str(v) for k, v in given.items()})
                run.process = subprocess.Popen(
                    filled, shell=True, cwd=run.workspace, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                out, _ = run.process.communicate()
                code = run.process.returncode
                text = f"$ {filled}\n{out.decode()}"
                run.logs[str(uuid.uuid4())] = {
                    "job_name": step.get("name", "step"), "logs": text, "status": "finished" if code == 0 else "failed",
                }  # fmt: skip
                if code != 0:
                    with self.lock:
                        run.status = "failed" if run.status == "running" else run.status
                    return
        with self.lock:
            run.status = "finished" if run.status == "running" else run.status

    def stop(self, run: Run) -> bool:
        with self.lock:
            if run.status not in ("queued", "pending", "running"):
                return False
            run.status = "stopped"
        if run.process is not None:
            run.process.kill()
        return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        reana = self.server.reana
        parts = urlsplit(self.path)
        self.query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {parts.path}"
        reana.requests.append(request)
        reana.queries.append(self.path)
        self.kind = reana.trouble(request)
        if self.kind == "drop":
            self.close_connection = True
            return
        if self.kind == "page":
            self.kind = None
            return self._send(200, b"<html>please wait</html>", "text/html")
        if reana.redirect:
            return self._say(302, {}, {"Location": reana.redirect + self.path})
        if self.kind == "later":
            self.kind = None
            return self._say(429, {"message": "later"}, {"Retry-After": "2"})
        if self.kind is not None and self.kind.isdigit():
            status, self.kind = int(self.kind), None
            return self._say(status, {"message": "not now"}, {"Retry-After": "0"} if status == 429 else {})
        given = self.query.get("access_token")
        if reana.token_in == "header":
            given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if request != "GET /api/ping" and given is None:
            return self._say(401, {"message": "User not signed in"})
        if request != "GET /api/ping" and given != reana.token:
            return self._say(403, {"message": f"Token not valid: {given}"})
        self._answer(parts.path)

    def _answer(self, path: str) -> None:
        reana = self.server.reana
        if path == "/api/ping":
            return self._say(200, {"message": "OK", "status": "200"})
        if path == "/api/workflows" and self.command == "POST":
            if "." in self.query["workflow_name"]:
                return self._say(400, {"message": "Workflow name cannot contain dots"})
            specification = json.loads(self.body)
            if not specification.get("workflow", {}).get("specification", {}).get("steps"):
                return self._say(400, {"message": "'steps' is a required property"})
            run = reana.create(self.query["workflow_name"], specification)
            return self._say(201, {"message": "created", "workflow_id": run.id, "workflow_name": run.full_name})
        found = re.fullmatch(r"/api/workflows/([^/]+)/(status|start|logs|workspace)(?:/(.+))?", path)
        if found is None:
            return self._say(404, {"message": "no such resource"})
        name, what, rest = unquote(found[1]), found[2], unquote(found[3] or "")
        run = reana.find(name)
        if run is None:
            return self._say(404, {"message": f"REANA_WORKON is set to {name}, but that workflow does not exist."})
        match self.command, what:
            case "GET", "status":
                created = datetime.fromtimestamp(run.created, UTC).strftime("%Y-%m-%dT%H:%M:%S")
                self._say(200, {"id": run.id, "name": run.full_name, "status": run.status, "created": created,
                                "user": "0", "progress": {}, "logs": "{}"})  # fmt: skip
            case "PUT", "status":
                self._set(run, self.query["status"])
            case "POST", "start":
                self._start(run)
            case "GET", "logs":
                logs = json.dumps({"workflow_logs": "", "job_logs": run.logs, "engine_specific": None})
                self._say(200, {"workflow_id": run.id, "workflow_name": run.full_name, "user": "0", "logs": logs})
            case "POST", "workspace":
                self._upload(run)
            case "GET", "workspace":
                file = run.workspace / rest
                if not file.is_file():
                    return self._say(404, {"message": f"{rest} does not exist."})
                self._send(200, file.read_bytes(), "application/octet-stream")

    def _set(self, run: Run, status: str) -> None:
        reana = self.server.reana
        if status == "deleted":
            run.status = "deleted"
        elif status != "stop" or not reana.stop(run):
            return self._say(409, {"message": f"Workflow {run.full_name} is not running."})
        self._say(200, {"message": "done", "workflow_id": run.id, "status": run.status})

    def _start(self, run: Run) -> None:
        given = json.loads(self.body)["input_parameters"]
        if unknown := set(given) - set(run.specification.get("inputs", {}).get("parameters", {})):
            return self._say(400, {"message": f"Input parameters {sorted(unknown)} are not in reana.yaml"})
        with self.server.reana.lock:
            if run.status != "created":
                message = f"Workflow {run.full_name} is already {run.status} and cannot be started again."
                return self._say(403, {"message": message})
            self.server.reana.start(run, given)
        self._say(200, {"message": "Workflow submitted.", "workflow_id": run.id, "status": "queued", "run_number": 1})

    def _upload(self, run: Run) -> None:
        if self.headers.get("Content-Type") != "application/octet-stream":
            return self._say(400, {"message": "Wrong Content-Type"})
        file = (run.workspace / self.query["file_name"]).resolve()
        assert file.is_relative_to(run.workspace.resolve())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.body)
        self._say(200, {"message": f"{self.query['file_name']} has been successfully uploaded."})

    def _say(self, status: int, found: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(found).encode(), "application/json", headers)

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        if self.kind == "lost answer":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.kind == "half":
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    reana: Reana


@contextmanager
def serving(
    root: Path, token: str = "s3cr3t-t0ken", token_in: str = "query", port: int = 0
) -> Iterator[tuple[Reana, str]]:
    """The server's state and its URL; ends with the context."""
    server = _Server(("127.0.0.1", port), _Handler)
    server.reana = Reana(root, token, token_in)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.reana, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        for run in server.reana.runs:
            if run.process is not None and run.process.poll() is None:
                run.process.kill()
        thread.join()
