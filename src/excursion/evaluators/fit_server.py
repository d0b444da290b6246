"""A small HTTP server that fits the signal yields it is sent; for use within a site, one model per server.

    GET  /api/health  -> {"status": "ok", "model": hash, "fits": ..., "hits": ..., "running": ...}
    GET  /api/model   -> {"model": hash, "channels": {name: bins}, "level": ..., "mu_max": ...}
    POST /api/limits  {"nominal": [...] or {channel: [...]}, "errors": the same or null, "expect": begin of a hash}
                      -> {"values": {...}, "variances": {...}, "bounds": {...}, "info": {...}}

Errors are {"error": message, "kind": name of the exception here}: 400 for what makes no sense, 401 without the token,
409 for another model than expected, 413 and 411 for the size, 422 for yields that cannot be fitted, 503 (with
Retry-After) for "later". All are safe to repeat: the same question gives the same answer, and is computed once even if
it is asked by several at the same time.
"""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import TimeoutError as FutureTimeout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..data import Outcome
from ..errors import EvaluationError, ExcursionError, ImpossiblePoint, InvalidProblem, InvalidSpec, ShapeError
from ..untrusted import json_value
from .fitting import LARGEST_QUESTION, LocalFit, as_json, canonical, describe, digest, model_of, signal_of

__all__ = ["FittingService"]

#: Requests that are fitted or wait for it, and connections, beyond those per worker.
_WAITING, _CONNECTIONS = 64, 512
#: Seconds that a client may take to send a request, or keep an idle connection.
_IDLE = 60.0
#: Pools of workers that may break under one question before it is given up.
_BREAKS = 3


# -------------------------------------------------------------------------------------------- worker process

_FIT: LocalFit | None = None


def _begin(description: str, level: float, mu_max: float) -> None:
    global _FIT
    _FIT = LocalFit(model_of(json.loads(description)), level, mu_max)


def _compute(nominal: Any, errors: Any) -> dict[str, Any]:
    assert _FIT is not None
    return as_json(_FIT.compute(signal_of({"nominal": nominal, "errors": errors})))


# ---------------------------------------------------------------------------------------------------- server


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, kind: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers


class FittingService:
    """Answers questions about one model until it is stopped.

    Args:
        fit: model, level and cache.
        host: address to listen at; others than this machine's need a token.
        port: 0 for a free one, see `url`.
        workers: processes that fit.
        token: that clients must send (Authorization: Bearer); none if empty.
        timeout: seconds for one fit.

    Raises:
        InvalidSpec: open to others without a token, or the port is taken.
    """

    def __init__(
        self,
        fit: LocalFit,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        workers: int = 1,
        token: str = "",
        timeout: float = 600.0,
    ) -> None:
        if host not in ("127.0.0.1", "::1", "localhost") and not token:
            raise InvalidSpec(
                f"fit-server: whoever reaches it must have a token, got host {host!r} and none. Set one with "
                "--token-env, or listen at 127.0.0.1 and use a tunnel"
            )
        if workers < 1 or not timeout > 0:
            raise InvalidSpec(
                f"fit-server: workers and timeout must be positive, got {workers!r} and {timeout!r}. Correct them"
            )
        self.fit, self.token, self._workers, self._timeout = fit, token, workers, timeout
        self.description = describe(fit.model)
        self.counts = {"fits": 0, "hits": 0, "running": 0}
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_WAITING + workers)
        self._flights: dict[str, Future[Outcome]] = {}
        self._pool: Any = None
        self.stopping = False
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InvalidSpec(f"fit-server: must listen at {host}:{port}, got {error}. Choose another port") from None
        self._server.service = self

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}"

    def serve(self) -> None:
        """Answer until `stop`; then finish what is being fitted, for at most a minute, and end the workers."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self.stopping = True
            self._server.server_close()
            deadline = time.monotonic() + 60
            while self.counts["running"] and time.monotonic() < deadline:
                time.sleep(0.02)
            self._renew(self._pool)

    def stop(self) -> None:
        """End `serve`; may be called by another thread or a signal handler."""
        self.stopping = True
        # `shutdown` waits for the loop, which a signal handler has interrupted.
        threading.Thread(target=self._server.shutdown, daemon=True).start()

    # -- questions

    def model(self) -> dict[str, Any]:
        """What is known about the model."""
        channels = {channel: len(bins) for channel, bins in self.fit.question(_zero(self.fit))["nominal"].items()}
        settings = {"level": self.fit.level, "mu_max": self.fit.mu_max}
        return {"model": self.fit.model_digest, "channels": channels, **settings}

    def limits(self, asked: Any) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            _Refused: there is none.
        """
        if not isinstance(asked, dict) or "nominal" not in asked or set(asked) - {"nominal", "errors", "expect"}:
            raise _Refused(400, "limits: needs an object with nominal, and perhaps errors and expect, got other keys")
        expect = asked.pop("expect", "")
        if not isinstance(expect, str) or not self.fit.model_digest.startswith(expect):
            raise _Refused(
                409,
                f"limits: the model must be the one expected, got {self.fit.model_digest[:16]} instead of "
                f"{str(expect)[:64]!r}. Ask the right server, or correct 'expect'",
            )
        try:
            signal = signal_of(asked)
            question = self.fit.question(signal)
        except (ShapeError, EvaluationError) as error:
            raise _failure(error) from None
        if not self._slots.acquire(blocking=False):
            raise _Refused(503, "limits: too many questions wait. Ask later", Retry_After="1")
        try:
            with self._lock:
                self.counts["running"] += 1
            outcome, cached = self._once(digest(question), question)
            return as_json(self.fit.labelled(outcome, cached=cached))
        except ExcursionError as error:
            raise _failure(error) from None
        finally:
            with self._lock:
                self.counts["running"] -= 1
            self._slots.release()

    def _once(self, key: str, question: dict[str, Any]) -> tuple[Outcome, bool]:
        """From the cache, from whoever computes it now, or computed."""
        cache = self.fit.cache
        if cache is not None and (known := cache.get(key)) is not None:
            with self._lock:
                self.counts["hits"] += 1
            return known, True
        with self._lock:
            flight = self._flights.get(key)
            mine: Future[Outcome] | None = None
            if flight is None:
                mine = self._flights[key] = Future()
        if mine is None:
            assert flight is not None
            return flight.result(), False
        try:
            outcome = Outcome(**self._computed(question))
            with self._lock:
                self.counts["fits"] += 1
            if cache is not None:
                cache.put(key, outcome)
            mine.set_result(outcome)
            return outcome, False
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[key]

    def _computed(self, question: dict[str, Any]) -> dict[str, Any]:
        """Computed by a worker; a pool that has broken is made again."""
        for _ in range(_BREAKS):
            pool = self._made()
            try:
                return pool.submit(_compute, question["nominal"], question["errors"]).result(self._timeout)
            except FutureTimeout:
                # A process is ended only together with its pool; the others' questions are submitted again.
                self._renew(pool)
                raise EvaluationError(
                    f"fit: must end within {self._timeout:g} s, got no end and stopped it. Simplify the model, or give "
                    "the server a longer --timeout"
                ) from None
            except (BrokenExecutor, RuntimeError):
                self._renew(pool)
                if self.stopping:
                    raise _Refused(503, "limits: the server is being stopped. Ask later", Retry_After="1") from None
        raise EvaluationError(
            f"fit: its process must stay alive, got {_BREAKS} that died (killed, or out of memory). Give the server "
            "fewer workers or more memory"
        )

    def _made(self) -> Any:
        import loky

        with self._lock:
            if self._pool is None:
                given = (canonical(self.description), self.fit.level, self.fit.mu_max)
                # Idle ones end, so that none outlives a server that was killed.
                self._pool = loky.ProcessPoolExecutor(
                    self._workers, timeout=300, initializer=_begin, initargs=given, env={"OMP_NUM_THREADS": "1"}
                )
            return self._pool

    def _renew(self, pool: Any) -> None:
        with self._lock:
            if pool is None or self._pool is not pool:
                return
            self._pool = None
        pool.shutdown(wait=True, kill_workers=True)


def _zero(fit: LocalFit) -> Any:
    """A signal without events that fits the model's bins."""
    layout = getattr(fit.model, "layout", None) or getattr(fit.model, "channels", {})
    return signal_of({"nominal": {channel: [0.0] * int(bins) for channel, bins in layout.items()}})


def _failure(error: ExcursionError) -> _Refused:
    for kind in (ImpossiblePoint, EvaluationError):
        if isinstance(error, kind):
            return _Refused(422, str(error), kind.__name__)
    if isinstance(error, ShapeError | InvalidProblem):
        return _Refused(400, str(error), type(error).__name__)
    return _Refused(500, str(error), type(error).__name__)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    service: FittingService

    def __init__(self, *given: Any) -> None:
        self._open = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._open.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that has gone away: it asks again if it wants to know.
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "excursion"
    sys_version = ""
    timeout = _IDLE
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def _reply(self, work: Callable[[], dict[str, Any]]) -> None:
        headers: dict[str, str] = {}
        try:
            self._authorise()
            status, found = 200, work()
        except _Refused as refused:
            status, headers = refused.status, refused.headers
            found = {"error": str(refused), "kind": refused.kind}
            if self.command == "POST" and status in (401, 404, 411, 413, 415):
                # What was not read of the request must not be taken for the next one.
                self.close_connection = True
        except Exception as error:
            status, found = 500, {"error": f"{type(error).__name__}: {error}", "kind": "bug"}
            self.close_connection = True
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection or self.server.service.stopping:
            self.send_header("Connection", "close")
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _authorise(self) -> None:
        token = self.server.service.token
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            raise _Refused(401, "the token must be sent as Authorization: Bearer, got another or none")

    def _get(self) -> dict[str, Any]:
        service = self.server.service
        if self.path == "/api/health":
            return {"status": "ok", "model": service.fit.model_digest, **service.counts}
        if self.path == "/api/model":
            return service.model()
        raise _Refused(404, f"there is no {self.path[:100]!r}. Known are /api/health, /api/model, POST /api/limits")

    def _post(self) -> dict[str, Any]:
        service = self.server.service
        if self.path != "/api/limits":
            raise _Refused(404, f"there is no {self.path[:100]!r}. Post to /api/limits")
        if (self.headers.get("Content-Type") or "").split(";")[0].strip() != "application/json":
            # Web pages cannot send this to another host without asking it first.
            raise _Refused(415, "the content must be application/json")
        length = self.headers.get("Content-Length") or ""
        if not length.isdigit() or not length.isascii():
            raise _Refused(411, "the request must tell its Content-Length")
        if len(length) > 12 or int(length) > LARGEST_QUESTION:
            raise _Refused(413, f"the request must have at most {LARGEST_QUESTION} bytes, got {length[:20]}")
        data = self.rfile.read(int(length))
        if service.stopping:
            raise _Refused(503, "the server is being stopped. Ask later", Retry_After="1")
        try:
            asked = json_value(data.decode("utf-8"))
        except ValueError as error:
            raise _Refused(400, f"the request must be JSON, got {str(error)[:200]}") from None
        return service.limits(asked)
