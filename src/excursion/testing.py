"""Contract suites: what every implementation of an abstraction must do. Only tests import this."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
import torch

from .acquisition import Acquisition, Prospect, acquisition_from_json
from .acquisition.criteria import acquisition_to_json
from .data import Outcome, Proposal
from .errors import (
    DuplicateCampaign,
    FitError,
    InvalidOutcome,
    StaleHistory,
    StoreError,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)
from .store import Store, this_process
from .surrogate import GaussianProcess, Observations, Posterior, Surrogate

__all__ = ["AcquisitionContract", "StoreContract", "SurrogateContract"]


def _points(n: int) -> list[Proposal]:
    return [Proposal({"m": 0.1 * i, "μ": -1.0}, basis=0) for i in range(n)]


def _with_trials(store: Store, n: int, name: str = "a") -> None:
    store.create(name, {})
    store.add(name, _points(n), after=0, seeds=range(n))


class StoreContract:
    """What every `Store` must do. Subclass it in a test module with a fixture `store`: an empty one."""

    # -- campaigns

    def test_a_new_store_is_empty(self, store: Store) -> None:
        """No names."""
        assert store.names() == []

    def test_a_specification_comes_back_as_it_was(self, store: Store) -> None:
        """Nested JSON, any script, floats to the last bit."""
        spec = {
            "x": [0.1 + 0.2, 1e-308, -0.0, math.inf],
            "ß": {"k": None, "t": True, "n": 10**20},
            "s": "\ud83d\ude00",
        }
        spec["s"] = "\N{GRINNING FACE} 'quoted' \"x\"; DROP TABLE trial"
        store.create("slepton ẽ → χ̃ 'a\"b", spec)
        assert store.spec("slepton ẽ → χ̃ 'a\"b") == spec
        assert math.copysign(1.0, store.spec("slepton ẽ → χ̃ 'a\"b")["x"][2]) == -1.0

    def test_the_store_keeps_its_own_copy_of_the_specification(self, store: Store) -> None:
        """Changing what was passed in, or what came back, changes nothing."""
        spec: dict[str, Any] = {"a": [1]}
        store.create("a", spec)
        spec["a"].append(2)
        store.spec("a")["a"].append(3)
        assert store.spec("a") == {"a": [1]}

    def test_names_are_sorted(self, store: Store) -> None:
        """By code point, whatever the database's collation."""
        for name in ["b", "é", "B", "a b", "a"]:
            store.create(name, {})
        assert store.names() == ["B", "a", "a b", "b", "é"]

    def test_a_name_is_used_once(self, store: Store) -> None:
        """And the first specification stays."""
        store.create("a", {"k": 1})
        with pytest.raises(DuplicateCampaign, match=r"name can be used once, got 'a' again\. Open the campaign"):
            store.create("a", {"k": 2})
        assert store.spec("a") == {"k": 1}

    @pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\0b", "\ud800"])
    def test_names_that_cannot_be_stored(self, store: Store, name: str) -> None:
        """Are refused."""
        with pytest.raises(StoreError, match="name must be 1 to 200 characters of text, got"):
            store.create(name, {})
        assert store.names() == []

    def test_a_specification_that_is_not_json(self, store: Store) -> None:
        """Is refused and leaves no campaign."""
        with pytest.raises(StoreError, match=r"campaign 'a': the specification must be JSON-compatible, got .*set"):
            store.create("a", {"k": {1, 2}})
        assert store.names() == []

    def test_an_unknown_campaign_lists_the_known(self, store: Store) -> None:
        """In every method that names one."""
        calls: list[Any] = [
            lambda: store.spec("b"),
            lambda: store.trials("b"),
            lambda: store.events("b"),
            lambda: store.add("b", _points(1), after=0, seeds=[0]),
            lambda: store.record("b", _points(1), [Outcome.of(1.0)], after=0, seeds=[0]),
            lambda: store.claim("b", "me"),
            lambda: store.claim("b", "me", 0),
            lambda: store.release("b", owner="me"),
            lambda: store.release("b", number=0),
            lambda: store.finish("b", 0, Outcome.of(1.0)),
            lambda: store.renew("b", "me", 1.0),
            lambda: store.expire("b"),
            lambda: store.review("b", 0, "approved"),
            lambda: store.hold("b", "ask", "me", 1.0),
            lambda: store.drop("b", "ask", "me"),
            lambda: store.counts("b"),
        ]
        with pytest.raises(UnknownCampaign, match=r"no campaign of this name, got 'b'\. The store is empty"):
            store.trials("b")
        store.create("z", {})
        store.create("a", {})
        for call in calls:
            with pytest.raises(UnknownCampaign, match=r"got 'b'\. Choose one of \['a', 'z'\]"):
                call()

    # -- adding

    def test_added_trials_are_numbered_and_complete(self, store: Store) -> None:
        """Every field of a proposal arrives."""
        store.create("a", {})
        assert store.trials("a") == []
        first = store.add("a", _points(2), after=0, seeds=[5, 2**63 - 1])
        proposal = Proposal({"m": 0.1 + 0.2}, basis=1, criterion="SUR", score=1 / 3, predicted={"obs": 1e-17})
        second = store.add("a", [proposal], after=2, seeds=[7])
        trials = store.trials("a")
        assert trials == first + second
        assert [t.number for t in trials] == [0, 1, 2]
        assert [t.after for t in trials] == [0, 0, 2]
        assert [t.seed for t in trials] == [5, 2**63 - 1, 7]
        assert [t.state for t in trials] == ["queued"] * 3
        last = trials[2]
        assert (last.x, last.basis, last.criterion) == ({"m": 0.1 + 0.2}, 1, "SUR")
        assert (last.score, last.predicted) == (1 / 3, {"obs": 1e-17})
        assert (last.told, last.outcome, last.started, last.finished, last.owner) == (None,) * 5
        assert last.asked is not None
        assert last.asked > 1.7e9
        assert list(trials[0].x) == ["m", "μ"]

    def test_trials_since(self, store: Store) -> None:
        """Only those numbered so or above."""
        _with_trials(store, 4)
        assert [t.number for t in store.trials("a", 2)] == [2, 3]
        assert store.trials("a", since=9) == []

    @pytest.mark.parametrize("after", [0, 2, 4, -1])
    def test_another_history_is_stale_and_adds_nothing(self, store: Store, after: int) -> None:
        """All or nothing."""
        _with_trials(store, 3)
        with pytest.raises(StaleHistory, match=rf"got after={after} for 3 trials\. Read the trials and ask again"):
            store.add("a", _points(5), after=after, seeds=range(5))
        assert [t.number for t in store.trials("a")] == [0, 1, 2]
        assert len(store.events("a")) == 3

    def test_adding_nothing_is_allowed(self, store: Store) -> None:
        """And does nothing."""
        _with_trials(store, 1)
        assert store.add("a", [], after=1, seeds=[]) == []
        assert len(store.trials("a")) == 1

    def test_one_seed_per_proposal(self, store: Store) -> None:
        """Or nothing is added."""
        store.create("a", {})
        with pytest.raises(StoreError, match="one seed per proposal, got 1 seeds for 2 proposals"):
            store.add("a", _points(2), after=0, seeds=[1])
        for seed in (-1, 2**63):
            with pytest.raises(StoreError, match=rf"a seed must lie in \[0, 2\^63\), got {seed}"):
                store.add("a", _points(2), after=0, seeds=[0, seed])
        assert store.trials("a") == []

    def test_points_must_be_numbers(self, store: Store) -> None:
        """A NaN would come back as something else from a database."""
        store.create("a", {})
        for bad in (Proposal({"m": math.nan}, 0), Proposal({"m": 1.0}, 0, score=math.nan)):
            with pytest.raises(StoreError, match="point and score must not be NaN"):
                store.add("a", [bad], after=0, seeds=[0])
        assert store.trials("a") == []

    def test_campaigns_do_not_mix(self, store: Store) -> None:
        """Two campaigns in one store have their own numbers, places and log."""
        _with_trials(store, 2, "a")
        _with_trials(store, 3, "b")
        claimed = store.claim("b", "me")
        assert claimed is not None
        assert store.finish("b", 0, Outcome.of(1.0)).told == 0
        assert store.finish("a", 1, Outcome.of(2.0)).told == 0
        store.claim("a", "me")
        assert [t.number for t in store.release("a", owner="me")] == [0]
        assert [t.state for t in store.trials("a")] == ["queued", "complete"]
        assert [t.state for t in store.trials("b")] == ["complete", "queued", "queued"]
        assert [e.kind for e in store.events("b")] == ["ask"] * 3 + ["claim", "tell"]

    def test_fidelity_and_events_arrive(self, store: Store) -> None:
        """Those of the proposal; by default none."""
        store.create("a", {})
        proposals = [Proposal({"m": 1.0}, 0), Proposal({"m": 1.0}, 0, fidelity="schnell µ", events=2**40)]
        added = store.add("a", proposals, after=0, seeds=[0, 1])
        assert [(t.fidelity, t.events) for t in added] == [("", None), ("schnell µ", 2**40)]
        assert store.trials("a") == added
        for events in (0, -1, 2**63):
            with pytest.raises(StoreError, match=rf"the events must lie in \[1, 2\^63\), got {events}"):
                store.add("a", [Proposal({"m": 1.0}, 0, events=events)], after=2, seeds=[2])
        claimed = store.claim("a", "me", 1)
        assert claimed is not None
        assert (claimed.fidelity, claimed.events) == ("schnell µ", 2**40)

    # -- recording what is known already

    def test_recorded_trials_are_finished(self, store: Store) -> None:
        """In the order given, after all others, in one step."""
        _with_trials(store, 2)
        store.finish("a", 1, Outcome.of(1.0))
        outcomes = [
            Outcome.of({"f": 2.0, "g": None}, variances={"f": 0.25}),
            Outcome.of({"f": math.inf}),
            Outcome.failed("no"),
        ]
        proposals = [Proposal({"m": float(i)}, 1, "table", fidelity="LO") for i in range(3)]
        done = store.record("a", proposals, outcomes, after=2, seeds=[7, 8, 9])
        assert store.trials("a")[2:] == done
        assert [t.outcome for t in done] == outcomes
        assert [t.state for t in done] == ["complete", "censored", "failed"]
        assert [(t.number, t.told, t.seed, t.criterion) for t in done] == [
            (2, 1, 7, "table"),
            (3, 2, 8, "table"),
            (4, 3, 9, "table"),
        ]
        assert [t.started for t in done] == [None] * 3
        assert all(t.finished is not None for t in done)
        assert [(e.kind, e.number) for e in store.events("a")[3:]] == [
            ("ask", 2),
            ("ask", 3),
            ("ask", 4),
            ("tell", 2),
            ("tell", 3),
            ("tell", 4),
        ]
        assert store.finish("a", 0, Outcome.of(3.0)).told == 4
        with pytest.raises(TrialFinished):
            store.finish("a", 2, Outcome.of(3.0))

    def test_recording_is_all_or_nothing(self, store: Store) -> None:
        """A stale history, a bad number or a lack of outcomes adds no trial."""
        _with_trials(store, 2)
        good = [Outcome.of(1.0), Outcome.of(2.0)]
        with pytest.raises(StaleHistory, match="got after=1 for 2 trials"):
            store.record("a", _points(2), good, after=1, seeds=range(2))
        with pytest.raises(StoreError, match="one outcome per proposal, got 1 outcomes for 2 proposals"):
            store.record("a", _points(2), good[:1], after=2, seeds=range(2))
        with pytest.raises(StoreError, match="one seed per proposal"):
            store.record("a", _points(2), good, after=2, seeds=range(1))
        with pytest.raises(StoreError, match="must not be NaN"):
            store.record("a", [*_points(1), Proposal({"m": math.nan}, 0)], good, after=2, seeds=range(2))
        assert store.record("a", [], [], after=2, seeds=[]) == []
        assert len(store.trials("a")) == 2
        assert len(store.events("a")) == 2

    # -- claiming and releasing

    def test_each_trial_is_claimed_once_in_order(self, store: Store) -> None:
        """Until none is queued."""
        _with_trials(store, 3)
        claimed = [store.claim("a", f"w{i}") for i in range(4)]
        assert claimed[3] is None
        assert claimed[:3] == store.trials("a")
        assert [(t.number, t.state, t.owner) for t in store.trials("a")] == [(i, "running", f"w{i}") for i in range(3)]
        assert all(t.started is not None and t.started >= (t.asked or 0) for t in store.trials("a"))

    def test_a_trial_is_claimed_by_number(self, store: Store) -> None:
        """None if it is not queued, an error if it does not exist."""
        _with_trials(store, 3)
        claimed = store.claim("a", "me", 1)
        assert claimed is not None
        assert (claimed.number, claimed.owner) == (1, "me")
        assert store.claim("a", "you", 1) is None
        assert store.trials("a")[1].owner == "me"
        store.finish("a", 2, Outcome.of(1.0))
        assert store.claim("a", "you", 2) is None
        for number in (3, -1):
            with pytest.raises(UnknownTrial, match=rf"no trial of this number, got {number}\. Its trials are: 0 to 2"):
                store.claim("a", "me", number)
        zero = store.claim("a", "me")
        assert zero is not None
        assert zero.number == 0
        assert store.claim("a", "me") is None

    def test_released_trials_are_queued_again(self, store: Store) -> None:
        """By owner or by number; what is finished, queued or somebody else's stays."""
        _with_trials(store, 5)
        for owner in ["dead", "alive", "dead", "dead"]:
            store.claim("a", owner)
        store.finish("a", 3, Outcome.of(1.0))
        before = store.trials("a")
        released = store.release("a", owner="dead")
        assert [(t.number, t.state, t.owner, t.started) for t in released] == [
            (0, "queued", None, None),
            (2, "queued", None, None),
        ]
        after = store.trials("a")
        assert [after[0], after[2]] == released
        assert [after[i] for i in (1, 3, 4)] == [before[i] for i in (1, 3, 4)]
        assert store.release("a", number=1, owner="dead") == []
        assert [t.number for t in store.release("a", number=1)] == [1]
        assert store.release("a", number=3) == []
        assert store.release("a", number=4) == []
        assert store.trials("a")[3].owner == "dead"
        again = store.claim("a", "new")
        assert again is not None
        assert (again.number, again.seed, again.asked) == (0, before[0].seed, before[0].asked)

    def test_a_release_says_what(self, store: Store) -> None:
        """Never everything by accident."""
        _with_trials(store, 1)
        store.claim("a", "me")
        with pytest.raises(StoreError, match="release needs a trial number or an owner, got neither"):
            store.release("a")
        with pytest.raises(UnknownTrial, match="got 1"):
            store.release("a", number=1)
        assert store.trials("a")[0].state == "running"

    # -- finishing

    def test_finished_trials_are_ordered_by_completion(self, store: Store) -> None:
        """Whether they were claimed or not."""
        _with_trials(store, 3)
        store.claim("a", "me", 2)
        assert store.finish("a", 2, Outcome.of(1.0)).told == 0
        assert store.finish("a", 0, Outcome.failed("crashed")).told == 1
        done = store.finish("a", 1, Outcome.of({"f": 3.0}, bounds={"f": "above"}))
        assert done.told == 2
        trials = store.trials("a")
        assert trials[1] == done
        assert [t.told for t in trials] == [1, 2, 0]
        assert [t.state for t in trials] == ["failed", "censored", "complete"]
        assert [t.owner for t in trials] == [None, None, "me"]
        assert all(t.finished is not None and t.finished >= (t.asked or 0) for t in trials)

    def test_an_outcome_comes_back_as_it_was(self, store: Store) -> None:
        """Every field, floats to the last bit."""
        outcome = Outcome(
            values={"obs": 0.1 + 0.2, "exp μ": math.inf, "low": -math.inf, "tiny": 5e-324},
            variances={"obs": 1e-300},
            bounds={"obs": "below"},
            missing=("later", "ß"),
            info={"yields": [1, 2.5, None], "log": "a\nb\0c \N{SNOWMAN}", "nested": {"k": [{}]}},
        )
        _with_trials(store, 3)
        assert store.finish("a", 0, outcome).outcome == outcome
        failed = Outcome.failed("Pythia: no event passed", permanent=True, code=3)
        assert store.finish("a", 1, failed).outcome == failed
        trials = store.trials("a")
        assert [t.outcome for t in trials] == [outcome, failed, None]
        assert [t.state for t in trials] == ["censored", "invalid", "queued"]

    @pytest.mark.parametrize("first", [Outcome.of(1.0), Outcome.failed("no"), Outcome.failed("no", permanent=True)])
    def test_a_finished_trial_never_changes(self, store: Store, first: Outcome) -> None:
        """Not by telling, claiming or releasing."""
        _with_trials(store, 1)
        store.claim("a", "me")
        done = store.finish("a", 0, first)
        with pytest.raises(TrialFinished, match=rf"trial 0 of 'a': a finished trial cannot change.*{first.state}"):
            store.finish("a", 0, Outcome.of(2.0))
        assert store.claim("a", "me", 0) is None
        assert store.release("a", owner="me") == []
        assert store.trials("a") == [done]
        assert [e.kind for e in store.events("a")] == ["ask", "claim", "tell"]

    def test_an_unknown_trial_is_not_finished(self, store: Store) -> None:
        """And the message says which there are."""
        store.create("a", {})
        with pytest.raises(UnknownTrial, match=r"got 0\. Its trials are: none yet"):
            store.finish("a", 0, Outcome.of(1.0))
        store.add("a", _points(2), after=0, seeds=range(2))
        for number in (2, -1):
            with pytest.raises(UnknownTrial, match=rf"got {number}\. Its trials are: 0 to 1"):
                store.finish("a", number, Outcome.of(1.0))
        assert all(t.pending for t in store.trials("a"))

    def test_info_that_is_not_json(self, store: Store) -> None:
        """Is refused; the trial can still be told."""
        _with_trials(store, 1)
        with pytest.raises(InvalidOutcome, match="must be text, numbers, lists and dicts"):
            store.finish("a", 0, Outcome.of(1.0, info={"model": object()}))
        assert store.finish("a", 0, Outcome.of(1.0)).told == 0

    def test_what_was_told_is_the_stores_own(self, store: Store) -> None:
        """Changing afterwards what was passed in changes nothing."""
        store.create("a", {})
        x, info = {"m": 0.0}, {"k": [1]}
        store.add("a", [Proposal(x, basis=0)], after=0, seeds=[0])
        outcome = Outcome.of(1.0, info=info)
        store.finish("a", 0, outcome)
        x["m"] = 9.0
        info["k"].append(2)
        outcome.info["k"].append(3)
        trial = store.trials("a")[0]
        assert trial.x["m"] == 0.0
        assert trial.outcome is not None
        assert trial.outcome.info == {"k": [1]}

    # -- leases

    def test_an_expired_lease_is_claimed_again(self, store: Store) -> None:
        """By whoever comes once nothing else is queued; what has no lease stays with its owner."""
        _with_trials(store, 3)
        store.claim("a", "for good")
        dead = store.claim("a", "dead", lease=1.0)
        assert dead is not None
        assert dead.expires is not None
        assert dead.expires > (dead.started or 0)
        alive = store.claim("a", "alive", lease=60)
        assert store.claim("a", "next") is None
        assert store.claim("a", "next", 1) is None
        time.sleep(1.1)
        again = store.claim("a", "next", lease=60)
        assert again is not None
        assert (again.number, again.owner, again.seed) == (1, "next", dead.seed)
        assert store.trials("a")[2] == alive
        assert store.claim("a", "late") is None
        kinds = [(e.kind, e.owner) for e in store.events("a", 1)]
        assert kinds == [("ask", None), ("claim", "dead"), ("expire", "dead"), ("claim", "next")]

    def test_leases_expire_when_asked(self, store: Store) -> None:
        """And only those that have ended."""
        _with_trials(store, 3)
        store.claim("a", "one", lease=1.0)
        store.claim("a", "two", lease=60)
        store.claim("a", "three")
        assert store.expire("a") == []
        time.sleep(1.1)
        (expired,) = store.expire("a")
        assert (expired.number, expired.state, expired.owner, expired.expires) == (0, "queued", None, None)
        assert [t.state for t in store.trials("a")] == ["queued", "running", "running"]

    def test_a_renewed_lease_goes_on(self, store: Store) -> None:
        """For all trials of its owner; nobody gets back what was lost."""
        _with_trials(store, 4)
        for _ in range(2):
            store.claim("a", "me", lease=0.2)
        store.claim("a", "you", lease=0.2)
        store.claim("a", "me")
        assert store.renew("a", "me", 60) == {0, 1, 3}
        time.sleep(0.3)
        assert [t.number for t in store.expire("a")] == [2]
        assert store.renew("a", "you", 60) == frozenset()
        assert store.renew("a", "nobody", 60) == frozenset()
        assert [t.expires is None for t in store.trials("a")] == [False, False, True, True]
        store.finish("a", 0, Outcome.of(1.0))
        assert store.renew("a", "me", 60) == {1, 3}
        assert store.trials("a")[0].expires is None

    def test_a_late_word_counts(self, store: Store) -> None:
        """Whoever lost a trial may tell it first; the log says who did."""
        _with_trials(store, 1)
        store.claim("a", "slow", lease=0.05)
        time.sleep(0.1)
        store.claim("a", "fast", lease=60)
        done = store.finish("a", 0, Outcome.of(1.0), owner="slow")
        assert (done.state, done.owner, done.told) == ("complete", "fast", 0)
        assert store.events("a")[-1].owner == "slow"
        with pytest.raises(TrialFinished):
            store.finish("a", 0, Outcome.of(1.0), owner="fast")

    @pytest.mark.parametrize("lease", [0, -1.0, math.inf, math.nan, True, "1"])
    def test_a_lease_is_a_positive_time(self, store: Store, lease: Any) -> None:
        """Of seconds."""
        _with_trials(store, 1)
        for call in (lambda: store.claim("a", "me", lease=lease), lambda: store.renew("a", "me", lease)):
            with pytest.raises(StoreError, match="the lease must be a positive number of seconds, got"):
                call()
        with pytest.raises(StoreError, match="the time must be a positive number of seconds, got"):
            store.hold("a", "ask", "me", lease)
        assert store.trials("a")[0].state == "queued"

    def test_owners_are_text_that_any_database_holds(self, store: Store) -> None:
        """And so are notes and locks."""
        _with_trials(store, 1)
        calls: list[Any] = [
            lambda: store.claim("a", "a\0b"),
            lambda: store.claim("a", "\ud800"),
            lambda: store.finish("a", 0, Outcome.of(1.0), owner="a\0b"),
            lambda: store.review("a", 0, "rejected", note="a\0b"),
            lambda: store.hold("a", "ask", "a\0b", 1.0),
            lambda: store.hold("a", "a\0b", "me", 1.0),
        ]
        for call in calls:
            with pytest.raises(StoreError, match="must be Unicode text without NUL"):
                call()
        assert store.trials("a")[0].state == "queued"

    # -- people

    def test_what_is_proposed_waits_for_approval(self, store: Store) -> None:
        """Nobody can claim it before."""
        store.create("a", {})
        (first,) = store.add("a", _points(1), after=0, seeds=[0], approval="proposed")
        store.add("a", _points(1), after=1, seeds=[1])
        assert first.approval == "proposed"
        assert store.claim("a", "w", 0) is None
        claimed = store.claim("a", "w")
        assert claimed is not None
        assert claimed.number == 1
        assert store.claim("a", "w") is None
        approved = store.review("a", 0, "approved", owner="Ada", note="good point")
        assert (approved.state, approved.approval) == ("queued", "approved")
        assert store.review("a", 0, "approved", owner="Bob") == approved
        claimed = store.claim("a", "w")
        assert claimed is not None
        assert (claimed.number, claimed.approval) == (0, "approved")
        found = [(e.kind, e.owner, e.note) for e in store.events("a", 0)]
        assert found == [
            ("ask", None, ""),
            ("propose", None, ""),
            ("approve", "Ada", "good point"),
            ("claim", "w", ""),
        ]
        with pytest.raises(StoreError, match="new trials are proposed, approved or need no approval, got 'submitted'"):
            store.add("a", _points(1), after=2, seeds=[2], approval="submitted")

    def test_what_was_submitted_is_with_people(self, store: Store) -> None:
        """Until it is told or released; it has no lease."""
        _with_trials(store, 3)
        with pytest.raises(StoreError, match="whoever evaluates it must be named"):
            store.review("a", 0, "submitted")
        for number in (0, 1):
            trial = store.review("a", number, "submitted", owner="production")
            assert (trial.state, trial.approval, trial.owner, trial.expires) == (
                "running",
                "submitted",
                "production",
                None,
            )
        assert store.review("a", 0, "submitted", owner="production").started == store.trials("a")[0].started
        assert store.claim("a", "w", 0) is None
        assert store.expire("a") == []
        done = store.finish("a", 0, Outcome.of(1.0))
        assert (done.state, done.approval) == ("complete", "submitted")
        (back,) = store.release("a", number=1)
        assert (back.state, back.approval) == ("queued", "approved")
        store.claim("a", "w", 2)
        with pytest.raises(StoreError, match=r"only a queued trial can become submitted, got .* running with w"):
            store.review("a", 2, "submitted", owner="production")

    def test_a_rejection_is_for_good(self, store: Store) -> None:
        """With its reason; of what waits, is approved, or runs."""
        _with_trials(store, 4)
        store.review("a", 0, "proposed")
        store.review("a", 1, "approved")
        store.claim("a", "w", 2)
        with pytest.raises(StoreError, match="a rejection needs a reason, got none"):
            store.review("a", 0, "rejected", note=" ")
        for number in range(3):
            trial = store.review("a", number, "rejected", note="excluded by LEP", owner="Ada")
            assert (trial.state, trial.approval, trial.told) == ("invalid", "rejected", number)
            assert trial.outcome == Outcome.failed("rejected: excluded by LEP", permanent=True)
        assert store.trials("a")[:3] == [t for t in store.trials("a") if t.state == "invalid"]
        assert [(e.kind, e.owner) for e in store.events("a", 0)][-2:] == [("reject", "Ada"), ("tell", "Ada")]
        with pytest.raises(TrialFinished):
            store.review("a", 0, "approved")
        with pytest.raises(UnknownTrial):
            store.review("a", 9, "approved")
        with pytest.raises(StoreError, match="a decision is one of proposed, approved, submitted, rejected, got 'yes'"):
            store.review("a", 3, "yes")  # type: ignore[arg-type]

    # -- locks and counts

    def test_one_holds_a_lock(self, store: Store) -> None:
        """Until it lets go or its time is over; each campaign has its own."""
        store.create("a", {})
        store.create("b", {})
        assert store.hold("a", "ask", "me", 60)
        assert store.hold("a", "ask", "me", 1.0)
        assert not store.hold("a", "ask", "you", 60)
        assert store.hold("b", "ask", "you", 60)
        assert store.hold("a", "else", "you", 60)
        store.drop("a", "ask", "you")
        assert not store.hold("a", "ask", "you", 60)
        time.sleep(1.1)
        assert store.hold("a", "ask", "you", 60)
        assert not store.hold("a", "ask", "me", 60)
        store.drop("a", "ask", "you")
        assert store.hold("a", "ask", "me", 60)

    def test_counts(self, store: Store) -> None:
        """Of the states that occur."""
        store.create("a", {})
        assert store.counts("a") == {}
        store.add("a", _points(4), after=0, seeds=range(4))
        store.claim("a", "me")
        store.finish("a", 1, Outcome.of(1.0))
        assert store.counts("a") == {"queued": 2, "running": 1, "complete": 1}

    def test_another_process_sees_what_is_new(self, store: Store) -> None:
        """Whatever was read before."""
        _with_trials(store, 4)
        assert len(store.trials("a")) == 4
        store.finish("a", 3, Outcome.of(1.0))
        assert [t.told for t in store.trials("a")] == [None, None, None, 0]
        store.finish("a", 0, Outcome.of(2.0))
        claimed = store.claim("a", "me")
        trials = store.trials("a")
        assert trials[1] == claimed
        assert [t.told for t in trials] == [1, None, None, 0]
        assert store.trials("a") == trials

    # -- the log, threads, closing

    def test_the_log_tells_who_did_what(self, store: Store) -> None:
        """In order, with time, machine and process."""
        _with_trials(store, 2)
        store.claim("a", "one", 1)
        store.release("a", owner="one")
        store.claim("a", "two", 1)
        store.finish("a", 1, Outcome.of(1.0))
        events = store.events("a")
        assert [(e.kind, e.number, e.owner) for e in events] == [
            ("ask", 0, None),
            ("ask", 1, None),
            ("claim", 1, "one"),
            ("release", 1, "one"),
            ("claim", 1, "two"),
            ("tell", 1, "two"),
        ]
        assert all(f"{e.host}:{e.pid}" == this_process() for e in events)
        assert {e.version for e in events} == {version("excursion")}
        assert [e.seed for e in events] == [0, 1, 1, 1, 1, 1]
        assert store.events("a", 0) == events[:1]
        assert [e.time for e in events] == sorted(e.time for e in events)

    def test_threads_share_a_store(self, store: Store) -> None:
        """Each trial is run once; no place in the order is missing."""
        _with_trials(store, 24)
        ran: list[int] = []
        trouble: list[BaseException] = []

        def work(owner: str) -> None:
            try:
                while (trial := store.claim("a", owner)) is not None:
                    store.finish("a", trial.number, Outcome.of(1.0))
                    ran.append(trial.number)
            except BaseException as error:
                trouble.append(error)

        threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert trouble == []
        assert sorted(ran) == list(range(24))
        assert sorted(t.told for t in store.trials("a") if t.told is not None) == list(range(24))

    def test_a_store_is_a_context_manager(self, store: Store) -> None:
        """And may be closed twice."""
        with store as same:
            assert same is store
            json.dumps(same.names())
        store.close()


def _unit_points(n: int, d: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)


class SurrogateContract:
    """What every `Surrogate` must do. Subclass it in a test module with a fixture `surrogate`."""

    @pytest.fixture
    def data(self) -> Observations:
        """Two tasks at 18 points, with small known variances."""
        u = _unit_points(18)
        z = torch.stack([torch.sin(5 * u[:, 0]) + u[:, 1], 30 * u[:, 0] * u[:, 1] - 7], 1)
        return Observations.exact(u, z, torch.full_like(z, 1e-4))

    def test_shapes(self, surrogate: Surrogate, data: Observations) -> None:
        """Tasks lead, points follow."""
        posterior, at, other = surrogate.fit(data), _unit_points(7, seed=2), _unit_points(4, seed=3)
        mean, variance = posterior.marginal(at)
        joint_mean, covariance = posterior.joint(at)
        assert mean.shape == variance.shape == joint_mean.shape == (2, 7)
        assert covariance.shape == (2, 7, 7)
        assert posterior.cross(at, other).shape == (2, 7, 4)
        assert posterior.noise.shape == (2,)
        assert len(posterior.hyperparameters) == 2

    def test_marginal_joint_and_cross_agree(self, surrogate: Surrogate, data: Observations) -> None:
        """One belief, three views of it."""
        posterior, at = surrogate.fit(data), _unit_points(7, seed=2)
        mean, variance = posterior.marginal(at)
        joint_mean, covariance = posterior.joint(at)
        assert torch.allclose(mean, joint_mean, rtol=1e-10)
        assert torch.allclose(variance, covariance.diagonal(dim1=-2, dim2=-1), rtol=1e-6, atol=1e-10)
        assert torch.allclose(posterior.cross(at, at), covariance, rtol=1e-6, atol=1e-10)
        assert torch.allclose(covariance, covariance.mT, atol=1e-10)
        here, there = posterior.view(at), posterior.view(_unit_points(4, seed=3))
        assert torch.allclose(here.mean, mean, rtol=1e-10)
        assert torch.allclose(here.variance, variance, rtol=1e-10)
        assert torch.allclose(here.covariance(there), posterior.cross(at, _unit_points(4, seed=3)), rtol=1e-10)
        assert torch.allclose(here.covariance(here), covariance, rtol=1e-6, atol=1e-10)

    def test_it_learns_the_values(self, surrogate: Surrogate, data: Observations) -> None:
        """The mean passes near the data, and is nearly certain there."""
        mean, variance = surrogate.fit(data).marginal(data.u)
        assert (mean.T - data.z).abs().max() < 0.1
        assert variance.max() < 0.02

    def test_conditioning_is_gaussian_algebra(self, surrogate: Surrogate, data: Observations) -> None:
        """`condition` equals the dense textbook formula, for the mean and the variance.

        Of one task after the other: the observations of the others have an enormous variance and tell nothing.
        """
        posterior, new, at = surrogate.fit(data), _unit_points(3, seed=4), _unit_points(20, seed=5)
        z = torch.tensor([[0.3, 1.0], [-0.5, 2.0], [1.0, -3.0]], dtype=torch.float64)
        noise = torch.tensor([[0.1, 0.5], [0.2, 0.1], [0.05, 1.0]], dtype=torch.float64)
        other = _unit_points(4, seed=3)
        for i in range(2):
            alone = torch.full_like(noise, 1e16)
            alone[:, i] = noise[:, i]
            after = posterior.condition(new, z, alone)
            after_mean, after_variance = after.marginal(at)
            gram = posterior.joint(new)[1][i] + torch.diag(noise[:, i])
            gain = torch.linalg.solve(gram, posterior.cross(new, at)[i]).T
            mean, variance = (m[i] for m in posterior.marginal(at))
            expect = mean + gain @ (z[:, i] - posterior.marginal(new)[0][i])
            assert torch.allclose(after_mean[i], expect, rtol=1e-6, atol=1e-8)
            expect = variance - (gain * posterior.cross(new, at)[i].T).sum(1)
            assert torch.allclose(after_variance[i], expect, rtol=1e-5, atol=1e-8)
            expect = posterior.cross(at, other)[i] - gain @ posterior.cross(new, other)[i]
            assert torch.allclose(after.cross(at, other)[i], expect, rtol=1e-5, atol=1e-8)

    def test_pending_points_shrink_the_variance_and_leave_the_mean(
        self, surrogate: Surrogate, data: Observations
    ) -> None:
        """Without z the mean stays, no variance grows, and the old belief is untouched."""
        posterior, new, at = surrogate.fit(data), _unit_points(4, seed=4), _unit_points(50, seed=5)
        before = [m.clone() for m in posterior.marginal(at)]
        mean, variance = posterior.condition(new).marginal(at)
        assert torch.allclose(mean, before[0], atol=1e-8)
        assert (variance <= before[1] + 1e-9).all()
        assert (variance < before[1] - 1e-6).any()
        for was, now in zip(before, posterior.marginal(at)):
            assert torch.equal(was, now)

    def test_the_order_of_conditioning_is_irrelevant(self, surrogate: Surrogate, data: Observations) -> None:
        """One after the other equals both at once."""
        posterior, new, at = surrogate.fit(data), _unit_points(2, seed=4), _unit_points(20, seed=5)
        one = posterior.condition(new[:1]).condition(new[1:]).marginal(at)[1]
        both = posterior.condition(new.flip(0)).marginal(at)[1]
        assert torch.allclose(one, both, rtol=1e-6, atol=1e-10)

    def test_fitting_is_deterministic(self, surrogate: Surrogate, data: Observations) -> None:
        """The same data give the same belief to the last bit."""
        at = _unit_points(10, seed=5)
        assert torch.equal(surrogate.fit(data).marginal(at)[0], surrogate.fit(data).marginal(at)[0])

    def test_units_of_z_change_nothing(self, surrogate: Surrogate, data: Observations) -> None:
        """Scaling and shifting the values scales and shifts the belief."""
        at = _unit_points(10, seed=5)
        mean, variance = surrogate.fit(data).marginal(at)
        scaled = Observations(data.u, 1000 * data.z + 5, 1e6 * data.variance, data.side)
        far_mean, far_variance = surrogate.fit(scaled).marginal(at)
        assert torch.allclose(far_mean, 1000 * mean + 5, rtol=1e-4)
        assert torch.allclose(far_variance, 1e6 * variance, rtol=1e-2)

    def test_censored_values_are_known_to_lie_beyond(self, surrogate: Surrogate, data: Observations) -> None:
        """A bound pulls the belief to its own side and no further than needed."""
        z, side = data.z.clone(), torch.zeros_like(data.z)
        side[3, 0], z[3, 0] = 1.0, z[3, 0] - 3.0  # true, but weak
        mean, variance = surrogate.fit(Observations(data.u, z, data.variance, side)).marginal(data.u[3:4])
        assert mean[0, 0] > z[3, 0] + 1.0
        exact = surrogate.fit(data).marginal(data.u[3:4])[1]
        assert variance[0, 0] > exact[0, 0]

    def test_too_little_to_fit(self, surrogate: Surrogate, data: Observations) -> None:
        """One observation is an error that says so."""
        one = Observations(data.u[:1], data.z[:1], data.variance[:1], data.side[:1])
        with pytest.raises(FitError, match="needs at least 2 observations, got 1"):
            surrogate.fit(one)

    def test_awkward_data(self, surrogate: Surrogate) -> None:
        """Constant, huge, tiny and repeated values give finite beliefs."""
        u, at = _unit_points(8), _unit_points(5, seed=5)
        for z in (torch.ones(8), 1e100 * u[:, 0], 1e-100 * u[:, 0], torch.full((8,), -1e12)):
            for points in (u, u[[0, 0, 1, 1, 2, 2, 3, 3]]):
                mean, variance = surrogate.fit(Observations.exact(points, z.double())).marginal(at)
                assert torch.isfinite(mean).all()
                assert (variance >= 0).all()


class AcquisitionContract:
    """What every `Acquisition` must do. Subclass it in a test module with a fixture `acquisition`."""

    @pytest.fixture
    def posterior(self) -> Posterior:
        """Two tasks, wide beliefs."""
        u = _unit_points(9)
        return GaussianProcess().fit(Observations.exact(u, torch.stack([torch.sin(5 * u[:, 0]), u[:, 1] - 0.5], 1)))

    @staticmethod
    def prospect(posterior: Posterior, candidates: torch.Tensor, levels: Any = ((0.3,), (0.0, 0.2))) -> Prospect:
        """What a criterion sees of the candidates."""
        at = _unit_points(40, seed=6)
        mean, variance = posterior.marginal(candidates)
        at_mean, at_variance = posterior.marginal(at)
        return Prospect(
            mean,
            variance,
            posterior.noise,
            tuple(torch.tensor(level, dtype=torch.float64) for level in levels),
            torch.tensor([0.7, 0.3], dtype=torch.float64),
            at_mean,
            at_variance,
            torch.full((40,), 1 / 40, dtype=torch.float64),
            posterior.cross(at, candidates),
            best=at_mean.amax(1),
        )

    def test_one_finite_score_per_candidate(self, acquisition: Acquisition, posterior: Posterior) -> None:
        """Also at points that are known already."""
        score = acquisition.score(self.prospect(posterior, torch.cat([_unit_points(9), _unit_points(6, seed=7)])))
        assert score.shape == (15,)
        assert torch.isfinite(score).all()

    def test_scores_do_not_depend_on_the_other_candidates(self, acquisition: Acquisition, posterior: Posterior) -> None:
        """Each candidate is judged on its own."""
        u = _unit_points(12, seed=7)
        all_of_them = acquisition.score(self.prospect(posterior, u))
        assert torch.allclose(all_of_them[4:7], acquisition.score(self.prospect(posterior, u[4:7])), rtol=1e-9)

    def test_tasks_count_by_their_weights(self, acquisition: Acquisition, posterior: Posterior) -> None:
        """The score of both tasks is the weighted sum of the scores of each alone."""
        p = self.prospect(posterior, _unit_points(12, seed=7))
        alone = [replace(p, weights=torch.tensor(w, dtype=torch.float64)) for w in ([1.0, 0.0], [0.0, 1.0])]
        first, second = (acquisition.score(q) for q in alone)
        assert torch.allclose(acquisition.score(p), 0.7 * first + 0.3 * second, rtol=1e-9, atol=1e-15)
        assert not torch.allclose(first, second) or (first == 0).all()  # Sobol scores nothing

    def test_settings_survive_json(self, acquisition: Acquisition) -> None:
        """Name and settings make the same criterion again."""
        assert acquisition_from_json(json.loads(json.dumps(acquisition_to_json(acquisition)))) == acquisition

    def test_the_unit_of_a_task_does_not_matter(self, acquisition: Acquisition, posterior: Posterior) -> None:
        """Scaling values, levels and noise of all tasks leaves the ranking of the candidates."""
        p = self.prospect(posterior, _unit_points(30, seed=7))
        scaled = Prospect(
            1000 * p.mean,
            1e6 * p.variance,
            1e6 * p.noise,
            tuple(1000 * level for level in p.levels),
            p.weights,
            1000 * p.at_mean,
            1e6 * p.at_variance,
            p.at_weight,
            1e6 * p.cross,
            best=None if p.best is None else 1000 * p.best,
        )
        assert acquisition.score(p).argmax() == acquisition.score(scaled).argmax()
