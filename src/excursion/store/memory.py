"""Campaigns in the memory of this process."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..data import Approval, Outcome, Proposal, Trial
from ..errors import StoreError
from .base import (
    CLAIMABLE,
    REVIEWS,
    Event,
    Fault,
    Kind,
    Store,
    asks,
    campaign_json,
    duplicate,
    ended_leases,
    events_of,
    finished,
    outcome_json,
    outcome_of,
    positive,
    queued,
    rejection,
    release_what,
    reviewed,
    stale,
    storable,
    to_queue,
    told_trials,
    unknown_campaign,
    unknown_trial,
)


class MemoryStore(Store):
    """Campaigns in the memory of this process, gone with it. For notebooks and tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._specs: dict[str, str] = {}
        self._trials: dict[str, list[Trial]] = {}
        self._events: dict[str, list[Event]] = {}
        self._holds: dict[tuple[str, str], tuple[str, float]] = {}

    def __repr__(self) -> str:
        return "MemoryStore()"

    def __reduce__(self) -> Any:
        raise StoreError(
            "MemoryStore: cannot be sent to another process, got pickled. Use a SqlStore where processes share a store"
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held open; the campaigns stay as long as the object."""

    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """See `Store.create`."""
        text = campaign_json(name, spec)
        with self._lock:
            if name in self._specs:
                raise duplicate("MemoryStore", name)
            self._specs[name], self._trials[name], self._events[name] = text, [], []

    def names(self) -> list[str]:
        """See `Store.names`."""
        with self._lock:
            return sorted(self._specs)

    def spec(self, name: str) -> dict[str, Any]:
        """See `Store.spec`."""
        with self._lock:
            self._check(name)
            return json.loads(self._specs[name])

    def trials(self, name: str, since: int = 0, *, finished: bool = False) -> list[Trial]:
        """See `Store.trials`."""
        with self._lock:
            found = self._check(name)[max(since, 0) :]
            return [_copy(trial) for trial in found if not (finished and trial.pending)]

    def events(self, name: str, number: int | None = None) -> list[Event]:
        """See `Store.events`."""
        with self._lock:
            self._check(name)
            return [e for e in self._events[name] if number in (None, e.number)]

    def add(
        self, name: str, proposals: Sequence[Proposal], *, after: int, seeds: Sequence[int], approval: Approval = ""
    ) -> list[Trial]:
        """See `Store.add`."""
        new = queued(name, proposals, after, seeds, approval)
        with self._lock:
            trials = self._check(name)
            if len(trials) != after:
                raise stale(name, len(trials), after)
            trials.extend(new)
            self._events[name].extend(asks(new))
            return [_copy(trial) for trial in new]

    def record(
        self,
        name: str,
        proposals: Sequence[Proposal],
        outcomes: Sequence[Outcome],
        *,
        after: int,
        seeds: Sequence[int],
    ) -> list[Trial]:
        """See `Store.record`."""
        new = queued(name, proposals, after, seeds)
        with self._lock:
            trials = self._check(name)
            if len(trials) != after:
                raise stale(name, len(trials), after)
            done = told_trials(name, new, outcomes, sum(other.told is not None for other in trials))
            trials.extend(done)
            self._events[name].extend(asks(done) + events_of("tell", done))
            return [_copy(trial) for trial in done]

    def claim(self, name: str, owner: str, number: int | None = None, *, lease: float | None = None) -> Trial | None:
        """See `Store.claim`."""
        where = f"campaign {name!r}: claim"
        storable(where, "owner", owner)
        seconds = None if lease is None else positive(where, "lease", lease)
        with self._lock:
            for expired in (False, True):
                if expired and not self._expire(name):
                    break
                for trial in self._check(name) if number is None else [self._trial(name, number)]:
                    if trial.state == "queued" and trial.approval in CLAIMABLE:
                        now = time.time()
                        end = None if seconds is None else now + seconds
                        running = replace(trial, state="running", started=now, owner=owner, expires=end)
                        return self._put(name, "claim", running)
            return None

    def renew(self, name: str, owner: str, lease: float) -> frozenset[int]:
        """See `Store.renew`."""
        seconds = positive(f"campaign {name!r}: renew", "lease", lease)
        with self._lock:
            mine = [t for t in self._check(name) if t.state == "running" and t.owner == owner]
            for trial in mine:
                if trial.expires is not None:
                    self._put(name, None, replace(trial, expires=time.time() + seconds))
            return frozenset(t.number for t in mine)

    def expire(self, name: str) -> list[Trial]:
        """See `Store.expire`."""
        with self._lock:
            return self._expire(name)

    def _expire(self, name: str) -> list[Trial]:
        now = time.time()
        over = [t for t in self._check(name) if t.state == "running" and t.expires is not None and t.expires < now]
        return self._requeue(name, "expire", over)

    def _requeue(self, name: str, kind: Kind, trials: Sequence[Trial]) -> list[Trial]:
        self._events[name].extend(events_of(kind, trials))
        return [self._put(name, None, to_queue(trial)) for trial in trials]

    def release(self, name: str, *, number: int | None = None, owner: str | None = None) -> list[Trial]:
        """See `Store.release`."""
        with self._lock:
            trials = list(self._check(name)) if number is None else [self._trial(name, number)]
            release_what(name, number, owner)
            given = [t for t in trials if t.state == "running" and owner in (None, t.owner)]
            return self._requeue(name, "release", given)

    def finish(self, name: str, number: int, outcome: Outcome, *, owner: str | None = None) -> Trial:
        """See `Store.finish`."""
        kept = outcome_of(outcome_json(f"trial {number} of {name!r}", outcome))
        owner = owner and storable(f"trial {number} of {name!r}", "owner", owner)
        with self._lock:
            trial = self._trial(name, number)
            if not trial.pending:
                raise finished(name, trial)
            return self._put(name, "tell", replace(trial, outcome=kept), owner)

    def review(self, name: str, number: int, approval: Approval, *, note: str = "", owner: str | None = None) -> Trial:
        """See `Store.review`."""
        where = f"campaign {name!r}: review"
        note, owner = storable(where, "note", note), owner and storable(where, "owner", owner)
        with self._lock:
            trial = self._trial(name, number)
            if (new := reviewed(name, trial, approval, note, owner)) is None:
                return _copy(trial)
            self._events[name].extend(events_of(REVIEWS[new], [trial], owner, note))
            trial = replace(trial, approval=new)
            if new == "submitted":
                trial = replace(trial, state="running", started=time.time(), owner=owner)
            if new != "rejected":
                return self._put(name, None, trial)
            return self._put(name, "tell", replace(trial, outcome=rejection(note)), owner)

    def hold(self, name: str, what: str, owner: str, seconds: float) -> bool:
        """See `Store.hold`."""
        where = f"campaign {name!r}: hold"
        what, owner = storable(where, "lock", what), storable(where, "owner", owner)
        seconds = positive(where, "time", seconds)
        with self._lock:
            self._check(name)
            now = time.time()
            holder, end = self._holds.get((name, what), (owner, 0.0))
            if holder != owner and end >= now:
                return False
            self._holds[name, what] = (owner, now + seconds)
            return True

    def drop(self, name: str, what: str, owner: str) -> None:
        """See `Store.drop`."""
        with self._lock:
            self._check(name)
            if self._holds.get((name, what), ("", 0.0))[0] == owner:
                del self._holds[name, what]

    def counts(self, name: str) -> dict[str, int]:
        """See `Store.counts`."""
        with self._lock:
            return dict(Counter(t.state for t in self._check(name)))

    def check(self, name: str, *, repair: bool = False) -> list[Fault]:
        """See `Store.check`."""
        with self._lock:
            now = time.time()
            over = [t for t in self._check(name) if t.state == "running" and t.expires is not None and t.expires < now]
            if repair:
                self._expire(name)
            return [fault] if (fault := ended_leases(over)) else []

    def _check(self, name: str) -> list[Trial]:
        if name not in self._trials:
            raise unknown_campaign("MemoryStore", name, list(self._trials))
        return self._trials[name]

    def _trial(self, name: str, number: int) -> Trial:
        trials = self._check(name)
        if not 0 <= number < len(trials):
            raise unknown_trial(name, number, len(trials))
        return trials[number]

    def _put(self, name: str, kind: Kind | None, trial: Trial, owner: str | None = None) -> Trial:
        if kind == "tell" and trial.outcome is not None:
            told = sum(other.told is not None for other in self._trials[name])
            trial = replace(trial, state=trial.outcome.state, told=told, finished=time.time(), expires=None)
        self._trials[name][trial.number] = trial
        if kind:
            self._events[name].extend(events_of(kind, [trial], owner))
        return _copy(trial)


def _copy(trial: Trial) -> Trial:
    """A trial whose dictionaries the caller may change without changing the store."""
    kept = trial.outcome and outcome_of(outcome_json("trial", trial.outcome, stored=True))
    return replace(trial, x=dict(trial.x), predicted=dict(trial.predicted), belief=dict(trial.belief), outcome=kept)
