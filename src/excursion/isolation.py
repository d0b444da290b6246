"""An evaluation in a process of its own: it can take too long, fill the memory or crash, and only its trial fails."""

from __future__ import annotations

import json
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import psutil

from .data import Job, Outcome
from .errors import EvaluationError, ExcursionError, InvalidSpec, InvalidStrategy, MissingExtra
from .evaluators import Evaluator
from .evaluators.worker import evaluate
from .keeper import GRACE

__all__ = ["Isolated", "Log", "bytes_of"]

#: Seconds between two looks at the time, the caller's wish to abandon, and the memory.
_TICK, _MEMORY_TICK = 0.1, 0.25
#: Seconds that a new process may take to load the evaluator, modules on slow file systems included.
_START = 300.0
#: Bytes of output per evaluation that are written down, and how many of the last are kept for the outcome of a failure.
LOG_LIMIT = 100_000_000
_TAIL = 2000
#: What is wrong at every point: raised here again.
_REFUSALS: Mapping[str, type[ExcursionError]] = {"InvalidSpec": InvalidSpec, "MissingExtra": MissingExtra}


def bytes_of(text: str) -> int:
    """The number of bytes meant by "2GB", "500 MB", "1.5GiB" or a plain number.

    Raises:
        InvalidStrategy: it means none.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kKMGT])(i?)B?|B?)\s*", text)
    number = 0.0
    if found:
        base = 1024 if found[3] else 1000
        number = float(found[1]) * base ** (" KMGT".index(found[2].upper()) if found[2] else 0)
    if not number >= 1:
        raise InvalidStrategy(f"memory limit: must be a number of bytes, got {text!r}. Write for example 2GB or 500MB")
    return int(number)


class Log:
    """What an evaluation prints, in a file that is made when the first of it arrives.

    A file that cannot be written (a full disk) never disturbs the evaluation: `error` tells.

    Attributes:
        path: the file; None to keep only the last lines.
        error: why something was not written; empty if all was.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path, self.error = None if path is None else Path(path), ""
        self._last, self._written = b"", 0

    def write(self, data: bytes) -> None:
        """Append."""
        if not data:
            return
        self._last = (self._last + data)[-_TAIL:]
        if self.path is None or self.error:
            return
        try:
            with open(self.path, "ab") as file:
                self._written += file.write(data[: LOG_LIMIT - self._written])
            if self._written == LOG_LIMIT:
                raise OSError(f"cut after {LOG_LIMIT / 1e6:g} MB")
        except OSError as error:
            self.error = f"log: {error}"

    @property
    def tail(self) -> str:
        """The end of it."""
        return self._last.decode("utf-8", errors="replace").strip()


@dataclass(frozen=True)
class _Process:
    """A keeper with its evaluating process, and our ends of what leads to them."""

    keeper: subprocess.Popen[bytes]
    lifeline: socket.socket
    jobs: Connection
    output: int

    def close(self) -> None:
        """End the process and all that it has started; on return they are gone."""
        self.lifeline.close()
        self.jobs.close()
        try:
            self.keeper.wait(GRACE + 20)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            self.keeper.wait()
        os.close(self.output)


class Isolated(AbstractContextManager["Isolated"]):
    """Evaluates in a child process that is used again for the next point, and made again when it has died.

    Around the child there is a keeper (`keeper`), which ends it with all that it has started, whatever session these
    are in: on `close`, after a timeout, and when this process dies, also by ``kill -9``. The child comes from a new
    interpreter, not from a fork of this one. Jobs and outcomes travel as JSON, so that nothing the evaluator returns
    is unpickled here.

    The child has one thread for linear algebra unless OMP_NUM_THREADS says otherwise, the folder and the environment of
    this process, and a session of its own: Ctrl-C does not reach it.

    Example:
        >>> from excursion.evaluators.python import Function
        >>> with Isolated(Function(lambda p: p["x"] ** 2)) as isolated:
        ...     isolated.evaluate(Job({"x": 3.0})).values
        {'f': 9.0}
    """

    def __init__(self, evaluator: Evaluator, *, memory: int | None = None) -> None:
        """Start nothing yet.

        Args:
            evaluator: what evaluates; sent to the child by cloudpickle, so lambdas work.
            memory: bytes that the child and all it has started may hold in memory together (the sum of their resident
                sets, looked at a few times per second); None for no limit.

        Raises:
            InvalidStrategy: a limit that is not positive.
        """
        if memory is not None and not memory > 0:
            raise InvalidStrategy(f"memory limit: must be positive, got {memory!r} bytes. Leave it out for no limit")
        self._evaluator, self._memory = evaluator, memory
        self._payload = cloudpickle.dumps(evaluator)
        self._process: _Process | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, abandon: Callable[[], bool] = lambda: False) -> bool:
        """Start the child if there is none, and let it load the evaluator.

        Args:
            abandon: asked a few times per second; if true, the child is ended.

        Returns:
            Whether it is ready; False if it was abandoned.

        Raises:
            InvalidSpec, MissingExtra: the evaluator cannot work at any point.
            EvaluationError: the child died or took too long.
        """
        if self._process is not None:
            if not select.select([self._process.lifeline], [], [], 0)[0]:
                return True
            self.close()  # it has died since the last evaluation, which is the fault of none
        log = Log()
        self._process = _start()
        reply, reason = self._ask(self._payload, _START, log, abandon)
        if reason == "abandoned":
            return False
        if reply is None:
            raise EvaluationError(
                f"evaluator: its process must start, got {reason}. " + (log.tail or "It has printed nothing")
            )
        _raise_refusal(reply)
        return True

    def evaluate(
        self,
        job: Job,
        *,
        timeout: float | None = None,
        log: Log | None = None,
        abandon: Callable[[], bool] = lambda: False,
    ) -> Outcome | None:
        """Evaluate one point.

        Args:
            job: the point.
            timeout: seconds after which the evaluation is ended; None for no limit.
            log: takes what is printed, also by compiled code and other programs.
            abandon: asked a few times per second; if true, the evaluation is ended.

        Returns:
            The outcome. That of an evaluation which took too long, used too much memory or whose process died is a
            failure; every failure has the last lines of the log as "output" in its `info`. None if it was abandoned.

        Raises:
            InvalidSpec, MissingExtra: the evaluator cannot work at any point.
            EvaluationError: no process can be started.
        """
        log = log or Log()
        if not self.prepare(abandon):
            return None
        began = time.monotonic()
        message = {f.name: getattr(job, f.name) for f in fields(job)} | {"x": dict(job.x)}
        reply, reason = self._ask(json.dumps(message).encode(), timeout, log, abandon)
        if reason == "abandoned":
            return None
        if reply is not None:
            _raise_refusal(reply)
            outcome = Outcome(**reply["outcome"])
        else:
            outcome = Outcome.failed(
                f"evaluation: its process must live to the end, got {reason} after {time.monotonic() - began:.1f} s. "
                "All that it had started was ended"
            )
        if outcome.error is not None and log.tail:
            outcome = replace(outcome, info={**outcome.info, "output": log.tail})
        return outcome

    def close(self) -> None:
        """End the child and all that it has started."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _ask(
        self, message: bytes, timeout: float | None, log: Log, abandon: Callable[[], bool]
    ) -> tuple[dict[str, Any] | None, str]:
        """Send a message and wait for the reply; if there is none the reason, and the process is gone."""
        process = self._process
        assert process is not None
        _drain(process.output)  # what was printed since the last evaluation belongs to none
        began = looked = time.monotonic()
        reason, reply, closed = "", None, 0.0
        with selectors.DefaultSelector() as selector:
            for source in (process.jobs, process.lifeline, process.output):
                selector.register(source, selectors.EVENT_READ)
            with suppress(BrokenPipeError, ConnectionResetError):  # it died before; its status says how
                process.jobs.send_bytes(message)
            while not reason:
                left = _TICK if timeout is None else min(_TICK, max(0.0, began + timeout - time.monotonic()))
                ready = {key.fileobj for key, _ in selector.select(left)}
                if process.output in ready:
                    log.write(_drain(process.output))
                if process.jobs in ready:
                    try:
                        reply = json.loads(process.jobs.recv_bytes())
                        break
                    except (EOFError, OSError):
                        # Dead, as the keeper says in a moment; or alive, but nobody will hear of it.
                        selector.unregister(process.jobs)
                        closed = time.monotonic()
                now = time.monotonic()
                if process.lifeline in ready:
                    reason = _status(process.lifeline.recv(64))
                elif closed and now >= closed + GRACE:
                    reason = "the socket to it closed"
                elif abandon():
                    reason = "abandoned"
                elif timeout is not None and now >= began + timeout:
                    reason = f"no end within {timeout:g} s"
                elif self._memory is not None and now >= looked + _MEMORY_TICK:
                    looked = now
                    if (used := _memory(process.keeper.pid)) > self._memory:
                        reason = f"{used / 1e9:.3g} GB of memory where {self._memory / 1e9:.3g} GB are allowed"
            log.write(_drain(process.output))
        if reply is None:
            self.close()
        return reply, reason


def serve(fd: int) -> None:
    """What the child does: load the evaluator, then evaluate job after job until the worker goes.

    Args:
        fd: the socket on which the evaluator (cloudpickle) and then the jobs (JSON) come and the outcomes go.
    """
    import faulthandler

    faulthandler.enable()
    jobs = Connection(fd)
    evaluator: Evaluator | None = None
    while True:
        try:
            message = jobs.recv_bytes()
        except EOFError:
            return
        reply: dict[str, Any]
        try:
            if evaluator is None:
                evaluator = cloudpickle.loads(message)
                if hasattr(evaluator, "load"):
                    evaluator.load()  # a function that is not there would fail at every point
                reply = {"ready": True}
            else:
                outcome = evaluate(evaluator, Job(**json.loads(message)))
                reply = {"outcome": {f.name: getattr(outcome, f.name) for f in fields(outcome)}}
        except (InvalidSpec, MissingExtra) as error:
            reply = {"refused": [type(error).__name__, str(error)]}
        sys.stdout.flush()
        sys.stderr.flush()
        jobs.send_bytes(json.dumps(reply).encode())


def _start() -> _Process:
    ours, theirs = socket.socketpair()
    lifeline, end = socket.socketpair()
    output, out = os.pipe()
    os.set_blocking(output, False)
    given = {
        "worker": os.getpid(),
        "lifeline": end.fileno(),
        "jobs": theirs.fileno(),
        "path": [path or os.getcwd() for path in sys.path],
        "target": f"{__name__}:{serve.__name__}",
    }
    script = str(Path(__file__).with_name("keeper.py"))
    with theirs, end:
        try:
            keeper = subprocess.Popen(
                # -u: nothing is lost in buffers, also those of C, when the process dies.
                [sys.executable, "-u", "-P", script, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                pass_fds=(theirs.fileno(), end.fileno()),
                start_new_session=True,
            )
        except OSError as error:
            os.close(output)
            lifeline.close()
            ours.close()
            raise EvaluationError(
                f"evaluator: a process must be started, got {error}. Free some memory, or allow more processes"
            ) from error
        finally:
            os.close(out)
    return _Process(keeper, lifeline, Connection(ours.detach()), output)


def _drain(fd: int) -> bytes:
    """What can be read without waiting, but not for ever."""
    parts: list[bytes] = []
    with suppress(BlockingIOError):
        while len(parts) < 64 and (part := os.read(fd, 65536)):
            parts.append(part)
    return b"".join(parts)


def _status(message: bytes) -> str:
    """How the child ended, from what the keeper says."""
    if not message:
        return "its keeper killed"
    code = os.waitstatus_to_exitcode(int(message))
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    cause = {"SIGKILL": " (killed, perhaps by the system for want of memory)", "SIGSEGV": " (a crash in compiled code)"}
    return f"signal {name}{cause.get(name, '')}"


def _memory(keeper: int) -> int:
    """Bytes that all processes below the keeper hold in memory."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(keeper).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _raise_refusal(reply: Mapping[str, Any]) -> None:
    if "refused" in reply:
        kind, text = reply["refused"]
        raise _REFUSALS[kind](text)
