"""Watches over one evaluating process, so that nothing it has started outlives it, and it does not outlive the worker.

A script of the standard library alone, started by `isolation`. It forks at once, while it is still small and has no
threads: the child imports and evaluates, the parent waits. As a subreaper the parent inherits every process that loses
its own, so that also what has left the session or became a daemon is found and ended. It ends everything when the
evaluating process has died, or when the worker closes the lifeline, which a worker does that is killed in any way.

References:
    prctl(2), PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

#: Seconds between asking the programs of an evaluation to end and killing them.
GRACE = 1.0
#: Seconds after which what cannot be killed (a process in an uninterruptible wait) is left.
_PATIENCE = 15.0
_PDEATHSIG, _SUBREAPER = 1, 36


def main() -> None:
    """Fork; evaluate in the child, keep in the parent.

    The argument is JSON: "worker" (its process number), "lifeline" and "jobs" (numbers of open sockets), "path" (the
    import path) and "target" (the function that serves jobs, "module:function").
    """
    given: dict[str, Any] = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a batch system sends them to all; others need their keeper then
    keeper = os.getpid()
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    child = os.fork()
    sys.path[:] = given["path"]
    if child == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:  # it died before we could ask to be told
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd in (given["lifeline"], woken, wake):
            os.close(fd)
        os.set_inheritable(given["jobs"], False)
        sys.argv[1:] = []
        module, _, function = given["target"].partition(":")
        getattr(importlib.import_module(module), function)(given["jobs"])
        return
    os.close(given["jobs"])
    os.set_inheritable(given["lifeline"], False)
    lifeline = socket.socket(fileno=given["lifeline"])
    status: int | None = None
    while status is None:
        ready = select.select([lifeline.fileno(), woken], [], [], 1.0)[0]
        if woken in ready:
            os.read(woken, 4096)
        status = _reap(child)
        # A copy of the lifeline may be held open by a fork of the worker; whose child we are tells, too.
        if (lifeline.fileno() in ready and not lifeline.recv(64)) or os.getppid() != given["worker"]:
            break
    if status is not None:
        with contextlib.suppress(OSError):  # the worker is gone as well
            lifeline.sendall(b"%d\n" % status)
    _end(None if status is not None else child)


def _reap(child: int) -> int | None:
    """Collect whatever has ended; the wait status of the child if it is among it."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _end(child: int | None) -> None:
    """Kill the evaluating process; ask what it has started to end, and kill that soon after."""
    import psutil

    own = psutil.Process()
    known: dict[int, psutil.Process] = {p.pid: p for p in own.children(recursive=True)}
    asked: set[int] = set()
    began = time.monotonic()
    if child is not None:
        os.kill(child, signal.SIGKILL)
    while True:
        _reap(child or 0)
        known |= {p.pid: p for p in own.children(recursive=True)}
        left = [p for p in known.values() if _alive(p)]
        seconds = time.monotonic() - began
        if not left or seconds > _PATIENCE:
            return
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if seconds > GRACE:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.01)


def _alive(process: Any) -> bool:
    """Whether a process is there and not only waiting to be collected."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
