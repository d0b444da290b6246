"""Keep workers busy: evaluate what a campaign asks for on any executor, until a stop rule holds."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import rich.console
import rich.live
import rich.table

from .campaign import UNCROSSED, Campaign, Status
from .data import INFORMATIVE, Job, Outcome, Trial
from .errors import (
    EvaluationError,
    ExcursionError,
    InvalidOutcome,
    InvalidStrategy,
    SpaceExhausted,
    TrialFinished,
)
from .evaluators import Evaluator
from .evaluators.worker import evaluate, evaluate_pickled, tail
from .executors import Local, Recipe, recipe
from .forecast import Forecast, forecast, latest, pace, paid, unit
from .leases import LEASE, Heartbeat, release_dead
from .owners import new_owner
from .precision import Precision, parse

#: A trial that was in flight when this many worker pools broke, alone the last time, is recorded as failed.
_BREAKS = 2


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        reason: "budget", "goal", "exhausted" (a quantised space without a point left) or "approval" (what was asked
            for waits for a person).
        evaluations: trials finished by this run.
        failed: those of them without values.
        seconds: wall time of this run.
        status: of the campaign afterwards.
        last_error: why the last failed trial of this run has no values; empty if none failed.
    """

    reason: str
    evaluations: int
    failed: int
    seconds: float
    status: Status
    last_error: str = ""


def run(
    campaign: Campaign,
    evaluator: Evaluator,
    *,
    budget: int,
    batch: int = 1,
    executor: Executor | Recipe | str | None = None,
    workers: int | None = None,
    goal: Any = None,
    approval: bool = False,
    progress: bool = True,
) -> Report:
    """Run a campaign until its budget is spent or its goal is reached.

    Trials that are queued already are evaluated first, also those that a dead process of this host had claimed. New
    points are asked for, ``batch`` at a time, whenever that many workers (or all of them) are free: with ``batch=1``
    the run is fully asynchronous, with ``batch >= workers`` it goes in rounds and the same seed gives the same points.

    Args:
        campaign: what is searched; other processes may work on it at the same time.
        evaluator: evaluates one point; sent to the workers by cloudpickle, so lambdas work.
        budget: evaluations of the campaign in all, earlier ones included; those of a cheaper fidelity count by their
            cost (`Problem.spent`), rows of tables nothing.
        batch: points asked for together.
        executor: any `concurrent.futures.Executor`; it is not shut down. Or a recipe of one, or its name, which is
            opened for this run: see `executors`. The default is `Local`: a pool of processes that survives the death
            of a worker, or this process itself if ``workers`` is 1.
        workers: evaluations at the same time; the default is the executor's number, or the lesser of batch and cores.
        goal: stop when this has been reached at two asks in a row: a number, the expected misclassified fraction of
            every task (for an optimum, the largest expected improvement in units of the range of values seen), or a
            text such as "1 % ambiguous" or "observed within 10 GeV of m_chi", or several; see `precision.parse`.
        approval: what is asked for waits until a person has approved it (`handover.approve`); when nothing else is left
            to do the run ends, and another one goes on once something is approved.
        progress: show evaluations, failures, what is known, time per point and time left; with a goal also how many
            more evaluations it may need.

    Returns:
        Why and after how much it stopped.

    Raises:
        InvalidStrategy: a budget, batch, goal or number of workers that makes no sense.
        EngineError, MissingExtra: the engine of a recipe cannot be started, or has stopped; nothing is lost.
        KeyboardInterrupt: after the trials in flight have been queued again; run again to go on.
    """
    _check_settings(campaign, budget, batch, workers)
    watch = Watch(campaign, parse(goal, campaign.problem, f"run of campaign {campaign.name!r}"))
    store, name, owner = campaign.store, campaign.name, new_owner()
    release_dead(campaign)
    started, evaluations, failed = time.monotonic(), 0, 0
    exhausted, reason, last_error = False, "", ""
    breaks: dict[int, int] = {}

    with contextlib.ExitStack() as stack:
        pool = _Pool(evaluator, executor, workers, batch, stack)
        workers = pool.workers
        display = stack.enter_context(live_figures(campaign, budget, watch) if progress else contextlib.nullcontext())
        stack.enter_context(store.in_use())
        # Where this machine is lost, others take up what it was evaluating.
        stack.enter_context(Heartbeat(campaign, owner, LEASE))
        running: dict[Future, Trial] = {}
        suspects: list[Trial] = []  # in flight when a pool broke; evaluated alone, so that only the guilty one fails

        def start(trial: Trial) -> None:
            running[pool.submit(job_of(trial))] = trial

        try:
            while True:
                if suspects and not running:
                    start(suspects.pop(0))
                alone = bool(suspects) or any(t.number in breaks for t in running.values())
                while not alone and len(running) < workers and (trial := store.claim(name, owner, lease=LEASE)):
                    start(trial)
                free = 0 if alone else workers - len(running)
                if not reason and not exhausted and free >= min(batch, workers):
                    # Every queued trial is in flight and a batch of workers is free.
                    trials = campaign.trials
                    unapproved = any(t.pending and t.approval == "proposed" for t in trials)
                    if campaign.problem.affordable(budget - campaign.problem.spent(trials)) < 1:
                        reason = "approval" if unapproved else "budget"
                    else:
                        if evaluations and watch.reached(trials):
                            reason = "goal"
                        elif approval and unapproved:
                            reason = "" if running else "approval"
                        else:
                            try:
                                if not campaign.ask(batch, limit=budget, approval="proposed" if approval else ""):
                                    reason = "budget"  # what is worth asking for costs more than what is left
                            except SpaceExhausted:
                                exhausted = True
                            continue
                if display:
                    display.show(evaluations, failed, running.values())
                if not running:
                    if suspects or not (reason or exhausted):
                        continue
                    break
                done, _ = wait(running, timeout=0.5 if display else None, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: running[f].number):
                    trial = running.pop(future)
                    outcome = _outcome(campaign, trial, future)
                    if outcome is None:  # the pool broke while this was in flight; whose fault it was is not known
                        breaks[trial.number] = breaks.get(trial.number, 0) + 1
                        if breaks[trial.number] < _BREAKS:
                            suspects.append(trial)
                            continue
                        outcome = Outcome.failed(
                            f"the worker process died {_BREAKS} times during this evaluation (killed, out of memory "
                            "or a crash in compiled code)"
                        )
                    # Told by somebody else meanwhile: their word stands.
                    with contextlib.suppress(TrialFinished):
                        state = store.finish(name, trial.number, outcome, owner=owner).state
                        evaluations += 1
                        if state not in INFORMATIVE:
                            failed, last_error = failed + 1, outcome.error or ""
        finally:
            # Whatever is still in flight (Ctrl-C, an error) is queued again: a later run takes it up.
            for future in running:
                future.cancel()
            store.release(name, owner=owner)
    status = campaign.status(watch.goals)
    return Report(reason or "exhausted", evaluations, failed, time.monotonic() - started, status, last_error)


def job_of(trial: Trial) -> Job:
    """What an evaluator gets to know of a trial."""
    return Job(dict(trial.x), trial.number, trial.seed, trial.fidelity, trial.events)


def _check_settings(campaign: Campaign, budget: int, batch: int, workers: int | None) -> None:
    where = f"run of campaign {campaign.name!r}"
    if not _positive(budget):
        raise InvalidStrategy(f"{where}: the budget must be a positive number of evaluations, got {budget!r}")
    if not _positive(batch):
        raise InvalidStrategy(f"{where}: the batch must be a positive number of points, got {batch!r}")
    if workers is not None and not _positive(workers):
        raise InvalidStrategy(f"{where}: the number of workers must be positive, got {workers!r}")


def _positive(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def believable(campaign: Campaign, status: Status, trials: Sequence[Trial]) -> bool:
    """Whether enough is known to believe a status: a threshold that was never crossed needs `UNCROSSED` designs."""
    patience = 1 if all(status.crossed.values()) else UNCROSSED
    known = sum(t.state in INFORMATIVE for t in trials)
    return known >= patience * campaign.strategy.design(campaign.problem.space.dim)


class Watch:
    """Whether the goal has been reached, and how its measures have come down during this run."""

    def __init__(self, campaign: Campaign, goals: tuple[Precision, ...]) -> None:
        self.goals, self._campaign, self._below = goals, campaign, 0
        self._curves: list[list[tuple[float, float]]] = [[] for _ in goals]

    def reached(self, trials: Sequence[Trial]) -> bool:
        """Whether the goal holds at two asks in a row, this being one."""
        if not self.goals:
            return False
        status = self._campaign.status(self.goals)
        for curve, reading in zip(self._curves, status.readings):
            curve.append((paid(self._campaign.problem, trials), reading.value))
        self._below = self._below + 1 if believable(self._campaign, status, trials) and status.reached else 0
        return self._below >= 2

    def forecast(self) -> Forecast | None:
        """How many more evaluations the goal may need, from the asks of this run; None without a goal."""
        if not self.goals:
            return None
        problem = self._campaign.problem
        now, what = pace(problem, self._campaign.trials), unit(problem)
        # Without a time: the line says how long is left of the budget.
        found = latest(forecast(curve, goal.limit, now, what) for curve, goal in zip(self._curves, self.goals))
        return replace(found, seconds=None)


def accepted(campaign: Campaign, trial: Trial, found: Outcome) -> Outcome:
    """What came back, checked against the problem and what is known.

    What cannot be told is a failure that keeps what came back in its `info`.
    """
    try:
        return campaign.checked(trial.number, found, trial)
    except InvalidOutcome as error:
        refused = {"values": found.values, "variances": found.variances, "bounds": found.bounds}
        info = {**found.info, "refused": {k: v for k, v in refused.items() if v}}
        return Outcome(error=str(error), info=info)


def _outcome(campaign: Campaign, trial: Trial, future: Future) -> Outcome | None:
    """What came back, see `accepted`; None if the pool broke."""
    try:
        found = future.result()
    except BrokenExecutor:
        return None
    except (InvalidOutcome, EvaluationError) as error:  # the latter is an engine's word about this one
        return Outcome.failed(str(error))
    except ExcursionError:
        raise
    except Exception as error:  # the executor's own trouble (pickling, a lost node): recorded, not lost
        return Outcome.failed(f"{type(error).__name__}: {error}", traceback=tail(error))
    return accepted(campaign, trial, found)


class _Pool:
    """Where the evaluations go: an executor that was given, or one that is opened for the time of a run."""

    def __init__(
        self,
        evaluator: Evaluator,
        given: Executor | Recipe | str | None,
        workers: int | None,
        batch: int,
        stack: contextlib.ExitStack,
    ) -> None:
        cores = os.cpu_count() or 1
        made = given if isinstance(given, Executor) else recipe(given or "local")
        if isinstance(made, Local) and workers is None:
            workers = min(batch, cores)
        self._evaluator, self._executor = evaluator, None
        self._inline = made == Local() and workers == 1
        if self._inline:
            self.workers = 1
            return
        self._payload = cloudpickle.dumps(evaluator)
        self._executor = made if isinstance(made, Executor) else stack.enter_context(made.open(workers))
        known = workers or getattr(self._executor, "_max_workers", None)
        self.workers = known if isinstance(known, int) else cores

    def submit(self, job: Job) -> Future:
        """Start one evaluation; with a single worker do it here and now."""
        if self._executor is not None:
            try:
                return self._executor.submit(evaluate_pickled, self._payload, job)
            except RuntimeError as error:  # BrokenExecutor is one
                raise InvalidStrategy(
                    f"run: the executor must take work, got {type(error).__name__}: {error}. "
                    "Nothing is lost: run again with a new executor"
                ) from error
        future: Future = Future()
        try:
            future.set_result(evaluate(self._evaluator, job))
        except ExcursionError as error:
            future.set_exception(error)
        return future


class _Display:
    """Live figures of a run: one line on a terminal, a line every now and then elsewhere."""

    def __init__(self, campaign: Campaign, budget: int, watch: Watch, live: rich.live.Live | None) -> None:
        self._campaign, self._budget, self._watch, self._live = campaign, budget, watch, live
        self._start = self._said = time.monotonic()
        self._known, self._left = -1, "?"
        self._before = self._paid = paid(campaign.problem, campaign.trials)

    def show(self, evaluations: int, failed: int, running: Any) -> None:
        """Update the figures; the belief is refitted only when something has been told."""
        now = time.monotonic()
        if self._live is None and now - self._said < 10:
            return
        if evaluations != self._known:
            self._known = evaluations
            status = self._campaign.status(self._watch.goals)
            self._paid = status.spent
            left = status.uncertainty
            self._left = f"{status.measure} " + (f"{100 * max(left.values()):.2f} %" if left else "(design)")
            if status.readings:
                self._left = "; ".join(str(r) for r in status.readings)
            if (found := self._watch.forecast()) is not None:
                self._left += f" | {found}"
        seconds = (now - self._start) / evaluations if evaluations else math.nan
        paid_here = self._paid - self._before
        eta = (self._budget - self._paid) * (now - self._start) / paid_here if paid_here > 0 else math.nan
        line = (
            f"{round(self._paid, 2):g}/{self._budget} evaluated, {failed} failed, {len(running)} running | "
            f"{self._left} | {seconds:.1f} s/point | {_clock(eta)} left"
        )
        self._said = now
        if self._live is not None:
            self._live.update(line)
        else:
            print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}"


@contextlib.contextmanager
def live_figures(campaign: Campaign, budget: int, watch: Watch) -> Iterator[_Display]:
    """Show how a run goes, on standard error."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield _Display(campaign, budget, watch, None)
        return
    with rich.live.Live(console=console, refresh_per_second=4) as live:
        yield _Display(campaign, budget, watch, live)
