"""What survives: campaigns, their trials and the log of who did what. Knows no tensors.

A store holds, for each campaign, a specification (JSON) and a growing list of trials. Every method is one transaction:
it happens entirely or not at all, and what it has returned survives the death of the process and, on a disk that
honours flushes, a power cut.
"""

from __future__ import annotations

import os

from .base import Event, Fault, Store, this_process
from .memory import MemoryStore
from .sql import SqlStore
from .tables import SCHEMA

__all__ = ["SCHEMA", "Event", "Fault", "MemoryStore", "SqlStore", "Store", "open_store", "this_process"]


def open_store(url: str | os.PathLike[str], *, create: bool = True) -> Store:
    """The store at a URL: "memory://" for a new `MemoryStore`, anything else for a `SqlStore`."""
    return MemoryStore() if os.fspath(url) == "memory://" else SqlStore(url, create=create)
