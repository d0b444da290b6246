"""The loop between the harness and a peer: one JSON object per line in, one per line out.

A peer is a class made by `peer(bounds, threshold, batch, seed)` with `version`, `ask(n) -> (k, d)`, `tell(x, y)` and
`classify(x) -> (n,) bool`, all in physical units. It updates its model in `tell`: the seconds of a suggestion are those
of the last `tell` and of `ask` together. The first `ask` gives all of its initial design. Standard library and numpy
only: this file runs in every peer's environment.

Requests and answers:
    {"do": "start", "bounds": [[lo, hi], ...], "threshold": T, "batch": b, "seed": s} -> {"ok": true, "version": "..."}
    {"do": "ask", "n": b}                 -> {"x": [[...], ...], "seconds": s}
    {"do": "tell", "x": [...], "y": [...]} -> {"ok": true}
    {"do": "classify", "x": [...]}        -> {"above": "0101..."}
    {"do": "stop"}                        -> the process ends
What fails answers {"error": "..."}, with the traceback on stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The adapters carry the names of the packages that they import: this folder must not be searched.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import json  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any, Protocol, TextIO  # noqa: E402

import numpy as np  # noqa: E402

#: Larger values are told as this, to every peer: no comparison should hang on an overflow.
LARGEST = 1e30


class Peer(Protocol):
    """A method that finds {f >= threshold} by asking for evaluations."""

    version: str

    def ask(self, n: int) -> np.ndarray: ...

    def tell(self, x: np.ndarray, y: np.ndarray) -> None: ...

    def classify(self, x: np.ndarray) -> np.ndarray: ...


class Session:
    """Answers requests with one peer.

    Args:
        make: from (bounds (d, 2), threshold, batch, seed) to a peer.
    """

    def __init__(self, make: Callable[[np.ndarray, float, int, int], Peer]):
        self.make = make
        self.peer: Peer | None = None
        self.updating = 0.0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to any request but "stop"; raises whatever the peer raises."""
        do = request["do"]
        if do == "start":
            self.peer, self.updating = None, 0.0
            self.bounds = np.array(request["bounds"], dtype=float)
            threshold, batch, seed = float(request["threshold"]), int(request["batch"]), int(request["seed"])
            self.peer = self.make(self.bounds, threshold, batch, seed)
            return {"ok": True, "version": self.peer.version}
        if self.peer is None:
            raise ValueError(f"the first request must be 'start', got {do!r}")
        if do == "ask":
            begin = time.perf_counter()
            x = np.asarray(self.peer.ask(int(request["n"])), dtype=float)
            seconds, self.updating = self.updating + time.perf_counter() - begin, 0.0
            if not np.isfinite(x).all():
                raise ValueError(f"ask must give finite points, got {x.tolist()}")
            # Scaled from a unit cube, a point on the edge may lie one rounding outside.
            return {"x": np.clip(x, *self.bounds.T).tolist(), "seconds": seconds}
        x = np.array(request["x"], dtype=float)
        if do == "tell":
            y = np.clip(np.array(request["y"], dtype=float), -LARGEST, LARGEST)
            begin = time.perf_counter()
            self.peer.tell(x, y)
            self.updating += time.perf_counter() - begin
            return {"ok": True}
        if do == "classify":
            return {"above": "".join("1" if a else "0" for a in np.asarray(self.peer.classify(x)))}
        raise ValueError(f"a request is start, ask, tell, classify or stop, got {do!r}")


def serve(make: Callable[[np.ndarray, float, int, int], Peer], requests: TextIO | None = None) -> None:
    """Answers the requests on stdin until "stop" or the end of the input.

    What a package prints goes to stderr: stdout belongs to the answers.

    Args:
        make: from (bounds (d, 2), threshold, batch, seed) to a peer.
        requests: instead of stdin.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session(make)
    for line in requests or sys.stdin:
        try:
            request = json.loads(line)
            if request["do"] == "stop":
                break
            answer = session.answer(request)
        except Exception as e:  # the harness records it: a peer that fails is a result
            traceback.print_exc()
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), file=answers, flush=True)
