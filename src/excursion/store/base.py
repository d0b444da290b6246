"""What every store does, and the records and checks that all of them share."""

from __future__ import annotations

import json
import math
import operator
import os
import socket
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any, Literal

from ..data import Approval, Outcome, Proposal, Trial
from ..errors import (
    DuplicateCampaign,
    InvalidOutcome,
    StaleHistory,
    StoreError,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)
from ..secrets import masked, masked_data

#: What reading a row raises that somebody has damaged or tampered with.
DAMAGE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
#: Characters of a campaign's name.
NAME_LENGTH = 200
Kind = Literal["ask", "retry", "claim", "release", "expire", "tell", "propose", "approve", "submit", "reject"]
#: What a review makes of a trial -> how the log calls it.
REVIEWS: Mapping[str, Kind] = {
    "proposed": "propose",
    "approved": "approve",
    "submitted": "submit",
    "rejected": "reject",
}
#: Trials that may be claimed are queued and have one of these.
CLAIMABLE: tuple[Approval, ...] = ("", "approved")


@dataclass(frozen=True)
class Event:
    """One line of a campaign's log, which only grows.

    Attributes:
        kind: "ask" or "retry" (a trial was added), "claim" (somebody runs it), "release" (queued again by its owner or
            because that died), "expire" (queued again because nobody renewed its lease), "tell" (it is finished);
            "propose", "approve", "submit", "reject" (see `Store.review`).
        number: the trial's number.
        time: seconds since the epoch.
        host: name of the machine that did it.
        pid: its process there.
        owner: who runs (or ran, for what ends that) the trial, or reviewed it; None if nobody did.
        version: of excursion there.
        seed: the trial's seed.
        note: why, for a rejection.
    """

    kind: Kind
    number: int
    time: float
    host: str
    pid: int
    owner: str | None = None
    version: str = ""
    seed: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Fault:
    """Something in a store that must not be.

    Attributes:
        kind: "file", "index", "campaign", "row", "gap", "order", "state", "log" or "lease".
        text: a sentence for people.
        trials: numbers of the trials it is about.
        repair: what a repair does about it (or has done); empty where nothing can be done.
    """

    kind: str
    text: str
    trials: tuple[int, ...] = ()
    repair: str = ""


class Store(AbstractContextManager["Store"]):
    """Where campaigns live. Safe for several threads; `SqlStore` also for several processes.

    Every method but `names`, `create` and `close` raises `UnknownCampaign` for a name that is not there.
    """

    @abstractmethod
    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """Start a campaign without trials.

        Args:
            name: its name, at most 200 characters of any script.
            spec: what the campaign is about, JSON-compatible; the store does not look inside.

        Raises:
            DuplicateCampaign: the name is taken.
            StoreError: the name is empty or too long, or `spec` is not JSON.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all campaigns, sorted."""

    @abstractmethod
    def spec(self, name: str) -> dict[str, Any]:
        """The specification given to `create`."""

    @abstractmethod
    def trials(self, name: str, since: int = 0, *, finished: bool = False) -> list[Trial]:
        """The trials numbered `since` and above, ordered by number, as they are at one moment.

        A trial may be shared with later calls: never change what is in it.

        Args:
            name: the campaign.
            since: the lowest number.
            finished: leave out those that are pending, which is quicker where many are.
        """

    @abstractmethod
    def events(self, name: str, number: int | None = None) -> list[Event]:
        """The log of the campaign, or of one of its trials, oldest first."""

    @abstractmethod
    def add(
        self, name: str, proposals: Sequence[Proposal], *, after: int, seeds: Sequence[int], approval: Approval = ""
    ) -> list[Trial]:
        """Append queued trials numbered `after`, `after` + 1, ...: all of them or none.

        Args:
            name: the campaign.
            proposals: the points to append.
            after: how many trials there were in the history the proposals were made from.
            seeds: one seed for each proposal, 0 <= seed < 2^63.
            approval: "proposed" if they wait for a person's approval, see `review`.

        Returns:
            The new trials.

        Raises:
            StaleHistory: the campaign does not have exactly `after` trials (any more); read and propose
                again.
            StoreError: not one seed per proposal, or a point or score that is not a number.
        """

    @abstractmethod
    def record(
        self,
        name: str,
        proposals: Sequence[Proposal],
        outcomes: Sequence[Outcome],
        *,
        after: int,
        seeds: Sequence[int],
    ) -> list[Trial]:
        """Append trials that are finished already, such as the rows of a table: all of them or none.

        Args:
            name: the campaign.
            proposals: the points to append.
            outcomes: what is known there, one for each proposal.
            after, seeds: as for `add`.

        Returns:
            The new trials, told in this order after all others.

        Raises:
            StaleHistory, StoreError: as `add`; not one outcome per proposal.
            InvalidOutcome: an outcome's `info` is not JSON-compatible.
        """

    @abstractmethod
    def claim(self, name: str, owner: str, number: int | None = None, *, lease: float | None = None) -> Trial | None:
        """Turn one queued trial into a running one that belongs to `owner`; nobody else can claim it then.

        Trials that wait for a person (see `review`) are not claimed. Where nothing is left to claim, trials whose
        lease has ended are queued again (see `expire`) and claimed.

        Args:
            name: the campaign.
            owner: who is going to run it, such as `this_process()`.
            number: which trial; the queued one with the lowest number if None.
            lease: seconds after which it may be queued again unless it is renewed; None: it stays with the owner.

        Returns:
            The running trial; None if no trial (or not this one) is queued.

        Raises:
            UnknownTrial: there is no trial of this number.
            StoreError: a lease that is not positive.
        """

    @abstractmethod
    def renew(self, name: str, owner: str, lease: float) -> frozenset[int]:
        """Let the leases of all trials that `owner` runs end `lease` seconds from now.

        Returns:
            The numbers of the trials that belong to this owner. Who runs another one has lost it.
        """

    @abstractmethod
    def expire(self, name: str) -> list[Trial]:
        """Queue again the running trials whose lease has ended.

        Returns:
            These trials.
        """

    @abstractmethod
    def release(self, name: str, *, number: int | None = None, owner: str | None = None) -> list[Trial]:
        """Queue running trials again because whoever ran them has died.

        Args:
            name: the campaign.
            number: only this trial.
            owner: only trials of this owner.

        Returns:
            The trials that are queued again. Trials which are not running are left as they are.

        Raises:
            UnknownTrial: there is no trial of this number.
            StoreError: neither a number nor an owner is given.
        """

    @abstractmethod
    def finish(self, name: str, number: int, outcome: Outcome, *, owner: str | None = None) -> Trial:
        """Record what came back from a queued or running trial, for good.

        Args:
            name: the campaign.
            number: the trial's number.
            outcome: what came back.
            owner: who tells it, for the log; by default whoever runs it. A trial that was queued again, or is run by
                somebody else now, is told all the same: its value is as good as theirs.

        Returns:
            The finished trial; its `told` is the number of trials finished before it.

        Raises:
            UnknownTrial: there is no trial of this number.
            TrialFinished: the trial has an outcome already, which stays as it is.
            InvalidOutcome: the outcome's `info` is not JSON-compatible.
        """

    @abstractmethod
    def review(self, name: str, number: int, approval: Approval, *, note: str = "", owner: str | None = None) -> Trial:
        """Record what a person decided about a trial that is not finished.

        Args:
            name: the campaign.
            number: the trial's number.
            approval: "proposed": a queued trial waits for approval, and nobody can claim it; "approved": a queued trial
                can be claimed; "submitted": a queued trial is with `owner`, running without a lease, until it is told
                or released; "rejected": it will not be evaluated, and is "invalid" with the note as its error.
            note: why; needed for a rejection.
            owner: who says so; for "submitted" who evaluates.

        Returns:
            The trial. What holds already is left as it is, and so is the log.

        Raises:
            UnknownTrial: there is no trial of this number.
            TrialFinished: it has an outcome.
            StoreError: a decision that does not fit the trial's state, or lacks its note or owner.
        """

    @abstractmethod
    def hold(self, name: str, what: str, owner: str, seconds: float) -> bool:
        """Take a lock of the campaign, or keep it, for so long.

        Args:
            name: the campaign.
            what: the lock's name, such as "ask".
            owner: who wants it.
            seconds: after which it is free unless it is taken again by its owner.

        Returns:
            Whether `owner` has it now.
        """

    @abstractmethod
    def drop(self, name: str, what: str, owner: str) -> None:
        """Let a lock go; nothing happens if somebody else has it."""

    @abstractmethod
    def counts(self, name: str) -> dict[str, int]:
        """State -> number of trials, for the states that occur; quick, whatever their number."""

    @abstractmethod
    def check(self, name: str, *, repair: bool = False) -> list[Fault]:
        """Look for what must not be in a campaign: damaged rows, gaps, lines missing in the log, leases that ended.

        Args:
            name: the campaign.
            repair: do what `Fault.repair` says, in one transaction. Nothing is thrown away.

        Returns:
            What was found; nothing in a healthy campaign.
        """

    def in_use(self) -> AbstractContextManager[None]:
        """For the time of the block many transactions follow each other: what makes them quicker is held open."""
        return nullcontext()

    @abstractmethod
    def close(self) -> None:
        """Let go of what the store holds open."""


def this_process() -> str:
    """The name of the calling process, "host:pid", as the owner of trials."""
    return f"{socket.gethostname()}:{os.getpid()}"


# --- What all stores share: records <-> JSON, checks, messages ----------------------------------------------


def campaign_json(name: str, spec: Mapping[str, Any]) -> str:
    """The specification as text, once name and specification are known to be storable."""
    # NUL and lone surrogates cannot be written as UTF-8 text in every database.
    good = isinstance(name, str) and "\0" not in name and not any("\ud800" <= c <= "\udfff" for c in name)
    if not good or not name.strip() or len(name) > NAME_LENGTH:
        raise StoreError(
            f"store: a campaign's name must be 1 to {NAME_LENGTH} characters of text, got {name!r}. Choose another"
        )
    try:
        return json.dumps(dict(spec))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"campaign {name!r}: the specification must be JSON-compatible, got {error}. "
            "Use dicts with text keys, lists, text, numbers, booleans and None only"
        ) from error


def outcome_json(where: str, outcome: Outcome, *, stored: bool = False) -> str:
    """An outcome as text; without secrets, unless it comes from a store, where none are."""
    error, info = outcome.error, dict(outcome.info)
    if not stored:
        error, info = error and masked(error), masked_data(info)
    # Python's JSON writes floats by repr, hence exactly, and infinities as Infinity.
    try:
        return json.dumps(
            {
                "values": dict(outcome.values),
                "variances": dict(outcome.variances),
                "bounds": dict(outcome.bounds),
                "error": error,
                "permanent": bool(outcome.permanent),
                "info": info,
                "missing": list(outcome.missing),
            }
        )
    except (TypeError, ValueError) as error:
        raise InvalidOutcome(
            f"{where}: the outcome's info must be JSON-compatible, got {error}. "
            "Use dicts with text keys, lists, text, numbers, booleans and None only"
        ) from error


def outcome_of(text: str | None) -> Outcome | None:
    """The outcome in a text."""
    return None if text is None else Outcome(**json.loads(text))


def queued(
    name: str, proposals: Sequence[Proposal], after: int, seeds: Sequence[int], approval: Approval = ""
) -> list[Trial]:
    """The trials that `add` appends, with plain floats (numpy's would not all be JSON)."""
    if approval not in (*CLAIMABLE, "proposed"):
        raise StoreError(
            f"campaign {name!r}: new trials are proposed, approved or need no approval, got {approval!r}. Choose one"
        )
    if len(seeds) != len(proposals):
        raise StoreError(
            f"campaign {name!r}: add needs one seed per proposal, got {len(seeds)} seeds for {len(proposals)} proposals"
        )
    now = time.time()
    trials = []
    for number, (proposal, seed) in enumerate(zip(proposals, seeds), start=after):
        if not 0 <= seed < 2**63:
            raise StoreError(f"trial {number} of {name!r}: a seed must lie in [0, 2^63), got {seed}")
        score = None if proposal.score is None else float(proposal.score)
        x = {key: float(value) for key, value in proposal.x.items()}
        if any(map(math.isnan, x.values())) or (score is not None and math.isnan(score)):
            raise StoreError(f"trial {number} of {name!r}: point and score must not be NaN, got {x}, score {score}")
        events = None if proposal.events is None else operator.index(proposal.events)
        if events is not None and not 1 <= events < 2**63:
            raise StoreError(f"trial {number} of {name!r}: the events must lie in [1, 2^63), got {events}")
        trials.append(
            Trial(
                number=number,
                x=x,
                basis=operator.index(proposal.basis),
                after=after,
                criterion=proposal.criterion,
                score=score,
                predicted={key: float(value) for key, value in proposal.predicted.items()},
                belief={key: dict(value) for key, value in proposal.belief.items()},
                seed=operator.index(seed),
                asked=now,
                fidelity=proposal.fidelity,
                events=events,
                approval=approval,
            )
        )
    return trials


def told_trials(name: str, new: Sequence[Trial], outcomes: Sequence[Outcome], told: int) -> list[Trial]:
    """The trials that `record` appends: the queued ones with their outcomes, told from this place on."""
    if len(outcomes) != len(new):
        raise StoreError(
            f"campaign {name!r}: record needs one outcome per proposal, got {len(outcomes)} outcomes for "
            f"{len(new)} proposals"
        )
    return [
        replace(
            trial,
            state=outcome.state,
            told=told + i,
            outcome=outcome_of(outcome_json(f"trial {trial.number} of {name!r}", outcome)),
            finished=trial.asked,
        )
        for i, (trial, outcome) in enumerate(zip(new, outcomes))
    ]


def events_of(kind: Kind, trials: Sequence[Trial], owner: str | None = None, note: str = "") -> list[Event]:
    """The lines of the log for something that happens to trials now, by default to their owners."""
    now, host, pid = time.time(), socket.gethostname(), os.getpid()
    return [Event(kind, t.number, now, host, pid, owner or t.owner, _version(), t.seed, masked(note)) for t in trials]


def asks(trials: Sequence[Trial]) -> list[Event]:
    """The lines of the log for trials that are added."""
    lines = [e for t in trials for e in events_of("retry" if t.criterion == "retry" else "ask", [t])]
    return lines + events_of("propose", [t for t in trials if t.approval == "proposed"])


@cache
def _version() -> str:
    try:
        return installed("excursion")
    except PackageNotFoundError:  # used from its source
        return "unknown"


def unknown_campaign(where: str, name: str, known: Sequence[str]) -> UnknownCampaign:
    """The error for a name that is not there."""
    return UnknownCampaign(
        f"{where}: no campaign of this name, got {name!r}. "
        + (f"Choose one of {sorted(known)}" if known else "The store is empty: create a campaign first")
    )


def unknown_trial(name: str, number: int, count: int) -> UnknownTrial:
    """The error for a number that is not there."""
    there = f"0 to {count - 1}" if count else "none yet"
    return UnknownTrial(f"campaign {name!r}: no trial of this number, got {number}. Its trials are: {there}")


def stale(name: str, count: int, after: int) -> StaleHistory:
    """The error for a history that has grown."""
    return StaleHistory(
        f"campaign {name!r}: trials can only be added to the history they were proposed from, "
        f"got after={after} for {count} trials. Read the trials and ask again"
    )


def finished(name: str, trial: Trial) -> TrialFinished:
    """The error for a trial that has an outcome."""
    return TrialFinished(
        f"trial {trial.number} of {name!r}: a finished trial cannot change, got another outcome for a trial "
        f"that is {trial.state}. Ask for a new trial to evaluate the point again"
    )


def release_what(name: str, number: int | None, owner: str | None) -> None:
    """Refuse a release that says nothing."""
    if number is None and owner is None:
        raise StoreError(f"campaign {name!r}: release needs a trial number or an owner, got neither. Give one")


def reviewed(name: str, trial: Trial, approval: Approval, note: str, owner: str | None) -> Approval | None:
    """The new approval of a trial that a person decides about; None if it has it already.

    Raises:
        TrialFinished, StoreError: see `Store.review`.
    """
    where = f"trial {trial.number} of {name!r}"
    if approval not in REVIEWS:
        raise StoreError(f"{where}: a decision is one of {', '.join(REVIEWS)}, got {approval!r}. Choose one")
    if not trial.pending:
        raise finished(name, trial)
    if approval == "rejected" and not note.strip():
        raise StoreError(f"{where}: a rejection needs a reason, got none. Give the note")
    if approval == "submitted" and not owner:
        raise StoreError(f"{where}: whoever evaluates it must be named, got no owner. Give the owner")
    if trial.approval == approval and (approval != "submitted" or trial.state == "running"):
        return None
    if approval != "rejected" and trial.state != "queued":
        raise StoreError(
            f"{where}: only a queued trial can become {approval}, got one that is running with {trial.owner}. "
            "Release it first"
        )
    return approval


def rejection(note: str) -> Outcome:
    """The outcome of a trial that people will not evaluate."""
    return Outcome.failed(f"rejected: {masked(note.strip())}", permanent=True)


def to_queue(trial: Trial) -> Trial:
    """A running trial as it was before; one that people had is approved, for somebody may claim it now."""
    approval: Approval = "approved" if trial.approval == "submitted" else trial.approval
    return replace(trial, state="queued", started=None, owner=None, expires=None, approval=approval)


def positive(where: str, what: str, seconds: float) -> float:
    """The seconds as a float.

    Raises:
        StoreError: they are not a positive number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise StoreError(f"{where}: the {what} must be a positive number of seconds, got {seconds!r}")
    return float(seconds)


def storable(where: str, what: str, text: str) -> str:
    """The text, if any database can hold it.

    Raises:
        StoreError: it holds NUL or a lone surrogate.
    """
    if not isinstance(text, str) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise StoreError(f"{where}: the {what} must be Unicode text without NUL, got {text!r}. Choose another")
    return text


def duplicate(where: str, name: str) -> DuplicateCampaign:
    """The error for a name that is taken."""
    return DuplicateCampaign(
        f"{where}: a campaign's name can be used once, got {name!r} again. Open the campaign or choose another name"
    )


def ended_leases(over: Sequence[Trial]) -> Fault | None:
    """What is wrong with running trials whose lease has ended."""
    if not over:
        return None
    who = sorted({t.owner or "nobody" for t in over})
    text = f"{len(over)} running trials have leases that ended, of {listed(who)}; whoever ran them is dead or cut off"
    return Fault("lease", text, tuple(t.number for t in over), "they are queued again")


def listed(items: Sequence[Any], most: int = 12) -> str:
    """The first of some items."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
