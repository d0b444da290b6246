"""Workers: any number of processes, on any machines, that evaluate what one campaign asks for.

They meet in the store alone. Each claims a trial for the time of a lease, which its heartbeat renews; one that is
killed loses its lease, and the trial is queued again. When nothing is queued one of them asks, while the others wait.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from .artifacts import Artifacts, work_directory
from .belief import believe
from .campaign import Campaign, readings
from .data import INFORMATIVE, TABLE, Outcome, Trial
from .errors import (
    InvalidOutcome,
    InvalidStrategy,
    SpaceExhausted,
    StoreError,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)
from .evaluators import Evaluator
from .isolation import Isolated, Log
from .leases import LEASE, Heartbeat, give_up, release_dead
from .owners import new_owner
from .precision import Precision, parse
from .proposal import to_design
from .runner import Report, Watch, accepted, believable, job_of, live_figures
from .secrets import masked_data
from .threads import one_thread
from .viability import viability

__all__ = ["Shift", "coordinate", "supervise", "work"]

T = TypeVar("T")
#: Seconds between two looks for work: at first, and at most.
_SOON, _LATE = 0.05, 10.0
#: Seconds before the store is tried again when it could not be reached or written.
_AGAIN = 30.0
#: Seconds a worker must have lived to be started again at once, and those that others wait.
_LIVED, _PAUSE = 10.0, 5.0


@dataclass(frozen=True)
class Shift:
    """How a worker ended.

    Attributes:
        reason: "budget", "goal" or "exhausted" (of the campaign: nothing is left to do); "limit" or "idle" (of this
            worker); "stopped" (by a signal).
        evaluations: trials that it told.
        failed: those of them without values.
        given_back: trials that it abandoned: because it was stopped, or because it had lost them.
        seconds: wall time.
        last_error: why the last failed trial has no values; empty if none failed.
    """

    reason: str
    evaluations: int
    failed: int
    given_back: int
    seconds: float
    last_error: str = ""


@dataclass(frozen=True)
class _Plan:
    """When new points are asked for.

    Attributes:
        ask: whether to ask at all, or only to see whether there is nothing left to do.
        budget: evaluations in all; None if that is not known.
        batch: points asked for together.
        workers: trials in flight at most; None to ask whenever nothing is queued.
        goals: when to stop asking.
        approval: what is asked for waits for a person.
    """

    ask: bool
    budget: int | None
    batch: int
    workers: int | None
    goals: tuple[Precision, ...]
    approval: bool


def work(
    campaign: Campaign,
    evaluator: Evaluator,
    *,
    lease: float = LEASE,
    ask: bool = True,
    budget: int | None = None,
    batch: int | None = None,
    goal: Any = None,
    timeout: float | None = None,
    memory: int | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    idle: float | None = None,
    grace: float = 30.0,
    say: Callable[[str], None] = lambda line: None,
) -> Shift:
    """Evaluate trials of a campaign in a child process (`isolation`), one at a time, as one worker of many.

    It ends when the campaign's budget is spent, or its goal reached, and nothing is pending; or as the arguments say.
    SIGTERM or Ctrl-C stop it: the evaluation may go on for `grace` seconds; a trial that has not ended then is queued
    again. A second signal stops at once.

    What can go wrong costs at most one trial: an evaluation that takes too long, uses too much memory or crashes is a
    failed trial. One that brings down the worker itself is tried again by others, and given up after `leases.DEATHS`
    times. While the store cannot be reached the value is kept, and told when it can.

    Args:
        campaign: in a store that all workers reach.
        evaluator: sent to the child by cloudpickle.
        lease: seconds after which others may take over a trial of a worker that is not heard of any more.
        ask: ask for new points when nothing is queued; if not, only evaluate.
        budget, batch, goal: see `runner.run`; those kept with the campaign by default. The goal must hold now, and have
            held with what was known at an ask before. Without a budget nothing is asked for.
        timeout: seconds per evaluation.
        memory: bytes that an evaluation may hold in memory.
        artifacts: folder or URL for the log and the files of each evaluation (`artifacts`). Trouble with it is told as
            "artifacts_error" in the outcome's `info`, never instead of a value.
        limit: trials to evaluate at most.
        idle: seconds without work after which it ends; None to wait.
        grace: seconds.
        say: takes lines about what happens.

    Returns:
        Why it ended, and what it did.

    Raises:
        InvalidStrategy: settings that make no sense.
        InvalidSpec, MissingExtra: the evaluator cannot work at any point; its trial is queued again.
        EvaluationError: no process can be started for the evaluation.
        KeyboardInterrupt: at the second signal, after its trial has been queued again.
    """
    where = f"work on campaign {campaign.name!r}"
    for what, value in (("timeout", timeout), ("limit", limit), ("idle", idle)):
        if value is not None and not value > 0:
            raise InvalidStrategy(f"{where}: {what} must be positive, got {value!r}. Leave it out for no limit")
    plan = _plan(campaign, where, budget, batch, goal, ask=ask)
    store, name, owner = campaign.store, campaign.name, new_owner()
    place = None if artifacts is None else Artifacts(artifacts, name)
    began = idle_since = last_line = time.monotonic()
    done = failed = given_back = 0
    reason, last_error, pause = "", "", _SOON
    with _Stop(grace) as stop, contextlib.ExitStack() as stack:
        isolated = stack.enter_context(Isolated(evaluator, memory=memory))
        stack.enter_context(store.in_use())
        beat = stack.enter_context(Heartbeat(campaign, owner, lease))
        # Whatever ends this, its trial is queued again; first of all, when the evaluation has not ended yet.
        stack.callback(_release, campaign, owner, say)
        stack.callback(isolated.close)
        isolated.prepare(lambda: stop.asked)  # before anything is claimed
        _insist(lambda: release_dead(campaign), stop, say)
        while not reason:
            if stop.asked:
                reason = "stopped"
                continue
            if limit is not None and done >= limit:
                reason = "limit"
                continue
            trial = _insist(lambda: store.claim(name, owner, lease=lease), stop, say)
            since = time.monotonic()
            if trial is None:
                reason, asked = _insist(lambda: _go_on(campaign, plan, beat), stop, say)
                if asked:
                    pause = _SOON
                elif not reason:
                    if idle is not None and since - idle_since >= idle:
                        reason = "idle"
                    stop.wait(pause * random.uniform(0.5, 1.0))
                    pause = min(1.5 * pause, max(1.0, (since - idle_since) / 20), _LATE)
                continue
            pause = _SOON
            if time.time() - (trial.asked or 0.0) > lease and _insist(
                lambda t=trial: give_up(campaign, t.number),  # type: ignore[misc]
                stop,
                say,
            ):
                say(f"trial {trial.number}: given up")
                continue
            attempt = place.attempt(trial.number) if place is not None else None
            log, started = Log(attempt.log if attempt else None), time.time()
            outcome = isolated.evaluate(
                job_of(trial),
                timeout=timeout,
                log=log,
                abandon=lambda t=trial, s=since: stop.now or beat.lost(t.number, s),  # type: ignore[misc]
            )
            # A batch system's SIGTERM may have reached the evaluation before it reached us.
            shot = outcome is not None and "signal SIGTERM" in (outcome.error or "")
            if outcome is None or (outcome.error is not None and (stop.asked or (shot and stop.wait(1.0)))):
                given_back += 1
                say(f"trial {trial.number}: {'left to others' if stop.asked else 'its lease was lost'}")
                if attempt:
                    attempt.discard()
                if not beat.lost(trial.number, since):
                    store.release(name, number=trial.number, owner=owner)
                continue
            seconds = time.monotonic() - since
            # The store may be out of reach just now: the value is kept until it is back.
            found = outcome
            outcome = _insist(lambda f=found, t=trial: accepted(campaign, t, f), stop, say, anyhow=True)  # type: ignore[misc]
            if attempt is not None:
                files = work_directory(evaluator, outcome.info, trial.number, started)
                kept, trouble = attempt.keep(_about(campaign, trial, outcome, owner), files)
                note = {"artifacts": kept} if kept else {"artifacts_error": trouble}
                if log.error:
                    note["artifacts_error"] = log.error
                outcome = replace(outcome, info={**outcome.info, **note})
            told = _tell(campaign, trial, outcome, owner, stop, say)
            idle_since = time.monotonic()
            if told is None:
                say(f"trial {trial.number}: was told by others meanwhile")
                continue
            done += 1
            if told.state not in INFORMATIVE:
                failed, last_error = failed + 1, outcome.error or ""
            if idle_since - last_line > 1.0 or outcome.error:
                last_line = idle_since
                say(f"trial {trial.number}: {told.state} after {seconds:.2f} s" + _why(outcome))
    return Shift(reason, done, failed, given_back, time.monotonic() - began, last_error)


def coordinate(
    campaign: Campaign,
    *,
    budget: int,
    batch: int = 1,
    goal: Any = None,
    workers: int | None = None,
    approval: bool = False,
    progress: bool = True,
) -> Report:
    """Ask for points that workers elsewhere evaluate, until the budget is spent or the goal reached; evaluate nothing.

    Args:
        campaign: the workers' (`work`).
        budget, batch, goal, approval, progress: see `runner.run`.
        workers: how many trials may be in flight; a batch is asked for when that many of them are free, or all, so that
            with ``batch >= workers`` it goes in rounds. None: when nothing is queued.

    Returns:
        Why it stopped; `evaluations` are those that came back meanwhile, whoever asked.

    Raises:
        InvalidStrategy: settings that make no sense.
    """
    where = f"campaign {campaign.name!r}"
    plan = replace(_plan(campaign, where, budget, batch, goal, ask=True), workers=workers, approval=approval)
    store, name, owner = campaign.store, campaign.name, new_owner()
    started, pause, reason = time.monotonic(), _SOON, ""
    told_before = {t.number for t in campaign.trials if not t.pending}
    watch = Watch(campaign, plan.goals)
    new: list[Trial] = []
    with contextlib.ExitStack() as stack:
        beat = stack.enter_context(Heartbeat(campaign, owner, LEASE))
        display = stack.enter_context(live_figures(campaign, budget, watch)) if progress else None
        while not reason:
            store.expire(name)
            release_dead(campaign)
            reason, asked = _go_on(campaign, plan, beat)
            trials = campaign.trials
            told = [t for t in trials if not t.pending and t.number not in told_before]
            pause = _SOON if asked or len(told) > len(new) else min(1.5 * pause, 2.0)
            new = told
            if display:
                failed = sum(t.state not in INFORMATIVE for t in new)
                display.show(len(new), failed, [t for t in trials if t.state == "running"])
            if not reason and not asked:
                time.sleep(pause)
    bad = [t for t in new if t.state not in INFORMATIVE]
    last = max(bad, key=lambda t: t.told or 0, default=None)
    error = (last.outcome.error or "") if last is not None and last.outcome is not None else ""
    return Report(reason, len(new), len(bad), time.monotonic() - started, campaign.status(plan.goals), error)


def supervise(command: Sequence[str], jobs: int, say: Callable[[str], None] = lambda line: None) -> int:
    """Run the same worker command several times at once, and start again what dies.

    A worker that ends by itself (also with an error of ours, exit code 2) is not started again. Signals are passed on.

    Args:
        command: the words.
        jobs: how many.
        say: takes lines about what happens.

    Returns:
        The largest exit code of those that ended by themselves.

    Raises:
        InvalidStrategy: fewer than one.
    """
    if jobs < 1:
        raise InvalidStrategy(f"work: jobs must be at least 1, got {jobs}. Give the number of evaluations at a time")

    def start() -> tuple[subprocess.Popen[bytes], float]:
        # A session of its own: Ctrl-C comes from us, once. And it must not outlive us.
        environment = {**os.environ, _SUPERVISOR: str(os.getpid())}
        return subprocess.Popen(command, start_new_session=True, env=environment), time.monotonic()

    worst, signals = 0, 0
    passed_on = 0
    with _Stop(math.inf, raising=False) as stop:
        running = [start() for _ in range(jobs)]
        later: list[float] = []
        try:
            while running or later:
                signals = stop.signals
                for process, _ in running if signals > passed_on else ():
                    process.send_signal(signal.SIGTERM)
                passed_on = signals
                if signals:
                    later = []
                for entry in [e for e in running if e[0].poll() is not None]:
                    running.remove(entry)
                    code, lived = entry[0].returncode, time.monotonic() - entry[1]
                    if code in (0, 2, 130) or signals:
                        # One that was still starting when it was stopped says 130.
                        worst = max(worst, 0 if signals and code == 130 else code if code >= 0 else 128 - code)
                        continue
                    say(f"a worker died ({_ending(code)}) and is started again")
                    later.append(time.monotonic() + (0.0 if lived > _LIVED else _PAUSE))
                due = [t for t in later if t <= time.monotonic()]
                later = [t for t in later if t not in due]
                running += [start() for _ in due]
                time.sleep(0.1)
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
    return worst


# ---------------------------------------------------------------------------------------------------- asking


def _plan(
    campaign: Campaign,
    where: str,
    budget: int | None,
    batch: int | None,
    goal: Any,
    *,
    ask: bool,
) -> _Plan:
    kept = campaign.extra.get("run") or {}
    budget = budget or kept.get("budget")
    batch = batch or kept.get("batch") or 1
    workers = kept.get("workers")
    for what, value in (("budget", budget), ("batch", batch), ("workers", workers)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidStrategy(f"{where}: {what} must be a positive whole number, got {value!r}. Correct it")
    goals = parse(kept.get("goal") if goal is None else goal, campaign.problem, where) if ask else ()
    return _Plan(ask, budget, batch, workers, goals, bool(kept.get("approval")))


def _go_on(campaign: Campaign, plan: _Plan, beat: Heartbeat) -> tuple[str, bool]:
    """What to do when there is nothing to claim: the reason to end, if there is one, and whether there is work now."""
    reason, asked = _ask(campaign, plan, beat)
    if asked or not reason:
        return "", asked
    # What is pending may come back with nothing, or not at all, and be asked for again.
    return ("" if any(t.pending for t in campaign.trials) else reason), False


def _ask(campaign: Campaign, plan: _Plan, beat: Heartbeat) -> tuple[str, bool]:
    """Ask for points if it is time to: the reason why there will be none, and whether some are queued now."""
    if plan.budget is None:
        return "", False
    trials, problem = campaign.trials, campaign.problem
    if problem.affordable(plan.budget - problem.spent(trials)) < 1:
        return "budget", False
    if not plan.ask:
        return "", False
    waiting = [t for t in trials if t.pending and t.approval in ("proposed", "submitted")]
    if plan.approval and waiting:
        return "", False
    if any(_free(t) for t in trials):
        return "", True
    if plan.workers is not None:
        in_flight = sum(t.pending for t in trials) - len(waiting)
        if in_flight and plan.workers - in_flight < min(plan.batch, plan.workers):
            return "", False
    with beat.holding("ask") as mine:
        if not mine:
            return "", False
        trials = campaign.trials
        if any(_free(t) for t in trials):  # somebody else has asked a moment ago
            return "", True
        if _reached(campaign, plan.goals, trials):
            return "goal", False
        try:
            new = campaign.ask(plan.batch, limit=plan.budget, approval="proposed" if plan.approval else "")
        except SpaceExhausted:
            return "exhausted", False
    return ("", not plan.approval) if new else ("budget", False)


def _free(trial: Trial) -> bool:
    return trial.state == "queued" and trial.approval in ("", "approved")


def _reached(campaign: Campaign, goals: tuple[Precision, ...], trials: Sequence[Trial]) -> bool:
    """Whether the goal holds, and held with what was known at the last ask at which less was known.

    It depends on the history alone: whoever looks, and whenever, comes to the same conclusion.
    """
    if not goals:
        return False
    status = campaign.status(goals)
    if not status.reached or not believable(campaign, status, trials):
        return False
    done = sorted((t for t in trials if t.told is not None), key=lambda t: t.told or 0)
    before = max((t.basis for t in trials if t.criterion != TABLE and t.basis < len(done)), default=0)
    past, problem = done[:before], campaign.problem
    if to_design(problem, campaign.strategy, past) is not None:
        return False
    with one_thread(len(past)):
        belief = believe(problem, campaign.strategy.surrogate, past)
        return all(r.reached for r in readings(goals, belief, viability(problem.space, past)))


# ---------------------------------------------------------------------------------------------------- telling


def _release(campaign: Campaign, owner: str, say: Callable[[str], None]) -> None:
    try:
        campaign.store.release(campaign.name, owner=owner)
    except StoreError as error:
        say(f"what was claimed is queued again when its lease ends: {error}")


def _tell(
    campaign: Campaign, trial: Trial, outcome: Outcome, owner: str, stop: _Stop, say: Callable[[str], None]
) -> Trial | None:
    """Record an outcome, however long it takes; None if somebody else was faster."""
    try:
        return _insist(
            lambda: campaign.store.finish(campaign.name, trial.number, outcome, owner=owner), stop, say, anyhow=True
        )
    except TrialFinished:
        return None
    except BaseException:
        say(f"trial {trial.number} was not told; by hand: excursion tell ... {trial.number} --json '{_json(outcome)}'")
        raise


def _json(outcome: Outcome) -> str:
    found = {key: value for key in ("values", "variances", "bounds") if (value := getattr(outcome, key))}
    return json.dumps(found or {"error": outcome.error})


def _insist(call: Callable[[], T], stop: _Stop, say: Callable[[str], None], *, anyhow: bool = False) -> T:
    """Do something with the store until it works: it may be out of reach, or its disk full, for hours.

    A stop ends the trying, unless it has to be done anyhow; then the second signal does.
    """
    pause = 1.0
    while True:
        try:
            return call()
        except (UnknownCampaign, UnknownTrial, TrialFinished, InvalidOutcome):
            raise
        except StoreError as error:
            if stop.asked and not anyhow:
                raise
            say(f"the store is tried again in {pause:g} s: {error}")
        if anyhow:
            time.sleep(pause)
        else:
            stop.wait(pause)
        pause = min(2 * pause, _AGAIN)


def _about(campaign: Campaign, trial: Trial, outcome: Outcome, owner: str) -> dict[str, Any]:
    fields = ("number", "x", "seed", "fidelity", "events", "started")
    values = {name: getattr(trial, name) for name in fields}
    return {
        "campaign": campaign.name,
        **values,
        "x": dict(trial.x),
        "owner": owner,
        "outcome": masked_data(asdict(outcome)),
    }


def _why(outcome: Outcome) -> str:
    return f": {outcome.error.splitlines()[0]}" if outcome.error else ""


# ---------------------------------------------------------------------------------------------------- signals

_SUPERVISOR = "EXCURSION_SUPERVISOR"


class _Stop(AbstractContextManager["_Stop"]):
    """SIGTERM and Ctrl-C, as far as this is the main thread; and the death of a supervisor.

    Attributes:
        signals: how many came.
    """

    def __init__(self, grace: float, *, raising: bool = True) -> None:
        self.signals, self._grace, self._raising = 0, grace, raising
        self._event, self._since = threading.Event(), math.inf
        parent = os.environ.pop(_SUPERVISOR, "")  # not for what is started here
        self._parent = int(parent) if parent.isdecimal() else None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        self.signals += 1
        if self.signals > 1 and self._raising:
            raise KeyboardInterrupt
        self._set()

    def _set(self) -> None:
        if not self._event.is_set():
            self._since = time.monotonic()
            self._event.set()

    @property
    def asked(self) -> bool:
        """Whether to stop soon."""
        if self._parent is not None and os.getppid() != self._parent:
            self._set()
        return self._event.is_set()

    @property
    def now(self) -> bool:
        """Whether to stop without waiting any longer."""
        return self.asked and time.monotonic() - self._since >= self._grace

    def wait(self, seconds: float) -> bool:
        """Wait, until the end of the time or a signal; whether to stop."""
        self._event.wait(seconds)
        return self.asked


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
