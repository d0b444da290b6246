"""Leases: who runs a trial says so again and again; what a dead process ran is queued again, but not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from .campaign import Campaign
from .data import Outcome, Trial
from .errors import InvalidStrategy, StoreError, TrialFinished, UnknownCampaign
from .owners import is_dead

#: Seconds that a trial stays with whoever runs it and does not renew its lease any more.
LEASE = 60.0
#: A trial that was queued again this many times, because whoever ran it had died, is recorded as failed.
DEATHS = 5


class Heartbeat(AbstractContextManager["Heartbeat"]):
    """A thread that renews the leases of an owner every third of their time, and the locks that it holds.

    A store that cannot be reached is no reason to give an evaluation up, which may have run for days: as long as nobody
    says that somebody else has the trial, it is ours. If it is evaluated twice, the first value told stands.

    Attributes:
        error: why the leases were not renewed the last time; empty if they were.
    """

    def __init__(self, campaign: Campaign, owner: str, lease: float) -> None:
        """Start nothing yet.

        Args:
            campaign: whose trials.
            owner: who claims them.
            lease: seconds.

        Raises:
            InvalidStrategy: a lease that is not positive.
        """
        if not lease > 0:
            raise InvalidStrategy(f"lease: must be a positive number of seconds, got {lease!r}. Give 60, say")
        self.error = ""
        self._campaign, self._owner, self._lease = campaign, owner, float(lease)
        self._locks: set[str] = set()
        self._renewed: tuple[float, frozenset[int] | None] = (0.0, None)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def lost(self, number: int, since: float) -> bool:
        """Whether a trial belongs to somebody else now, or to nobody.

        Args:
            number: of the trial.
            since: when it was claimed, `time.monotonic()` after the claim.
        """
        began, ours = self._renewed
        return ours is not None and began >= since and number not in ours

    @contextmanager
    def holding(self, what: str) -> Iterator[bool]:
        """A lock of the campaign for the time of the block, see `Store.hold`; whether it was free."""
        store, name = self._campaign.store, self._campaign.name
        if not store.hold(name, what, self._owner, self._lease):
            yield False
            return
        self._locks.add(what)
        try:
            yield True
        finally:
            self._locks.discard(what)
            store.drop(name, what, self._owner)

    def _run(self) -> None:
        store, name = self._campaign.store, self._campaign.name
        while not self._end.wait(self._lease / 3):
            began = time.monotonic()
            try:
                self._renewed = (began, store.renew(name, self._owner, self._lease))
                for what in tuple(self._locks):
                    store.hold(name, what, self._owner, self._lease)
                self.error = ""
            except UnknownCampaign as error:
                self._renewed, self.error = (began, frozenset()), str(error)
            except StoreError as error:
                self.error = str(error)


def release_dead(campaign: Campaign) -> list[Trial]:
    """Queue again what processes of this host had claimed that do not exist any more."""
    released = []
    for owner in {t.owner for t in campaign.trials if t.state == "running" and t.owner}:
        if is_dead(owner):
            released += campaign.store.release(campaign.name, owner=owner)
    for trial in released:
        give_up(campaign, trial.number)
    return released


def give_up(campaign: Campaign, number: int) -> bool:
    """Record as failed what has brought down so many processes that it must be the point itself.

    Returns:
        Whether it is finished.
    """
    deaths = 0
    for event in campaign.store.events(campaign.name, number):
        own = (event.owner or "").startswith(f"{event.host}:{event.pid}:")  # a stop, no fault of the point
        deaths += event.kind == "expire" or (event.kind == "release" and not own)
    if deaths < DEATHS:
        return False
    reason = f"the process died or was stopped {deaths} times during this evaluation"
    with suppress(TrialFinished):
        campaign.store.finish(campaign.name, number, Outcome.failed(reason))
    return True
