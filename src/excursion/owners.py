"""Who runs a trial: a process, named so that others can see whether it is still there."""

from __future__ import annotations

import socket
import uuid

import psutil


def new_owner() -> str:
    """A name for a run of this process, "host:pid:start:run"; the start tells it from a later one with its number."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}:{uuid.uuid4().hex[:8]}"


def is_dead(owner: str) -> bool:
    """Whether the process of this name is known not to exist any more; of other machines nothing is known."""
    host, _, rest = owner.partition(":")
    pid, start = [*rest.split(":"), "", ""][:2]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        return bool(start) and f"{psutil.Process(int(pid)).create_time():.2f}" != start
    except (psutil.NoSuchProcess, OverflowError):
        return True
