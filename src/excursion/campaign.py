"""The loop's memory: ask for points, tell what came back. All state is in the store; the rest is pure functions."""

from __future__ import annotations

import math
import numbers
import os
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import levelset
from .acquisition import EI, Prospect
from .belief import Belief, believe, observations
from .data import FINISHED, INFORMATIVE, TABLE, Approval, Outcome, Proposal, Trial
from .errors import (
    ExcursionError,
    InvalidOutcome,
    InvalidPoint,
    InvalidProblem,
    InvalidTable,
    SchemaMismatch,
    StaleHistory,
    StoreError,
    TrialFinished,
    UnknownCampaign,
    UnknownTrial,
)
from .fidelities import Help, helps
from .forecast import Forecast, forecast, latest, milestones, pace, paid, unit
from .known import Source, answers, known, parse_cell
from .precision import Precision, Reading, measure, misclassified, parse
from .problem import Problem
from .proposal import Strategy, propose, target, to_design, whole
from .space import ParameterSpace
from .store import Store, open_store
from .surrogate import Observations, Posterior
from .threads import one_thread
from .viability import ALWAYS, Viability, viability

#: Version of the JSON that describes problem and strategy.
SPEC_VERSION = 1
#: A threshold that was never crossed needs so many times the design to be believed.
UNCROSSED = 3
#: Points that can be asked for at once.
MOST = 100_000
#: `status` fits a belief to at most so many trials of the dearest fidelity: minutes for more.
BELIEVED = 3000
#: Beliefs of the past that a forecast looks at.
_MILESTONES = 10


@torch.no_grad()
def improvement(problem: Problem, posterior: Posterior, data: Observations) -> dict[str, float]:
    """Largest expected improvement over the best value believed at a point seen, in units of the range of values seen.

    Of the transformed values, over space-filling points and points around the three best ones; 1 while all values are
    the same.
    """
    space, name = problem.space, problem.tasks[0].name
    sought = target(problem, posterior, data.u)
    mean = posterior.marginal(data.u)[0][0]
    best = data.u[(problem.sign * mean).topk(min(3, len(data))).indices]
    generator = torch.Generator().manual_seed(0)
    scatter = torch.randn(4, len(best), 128, space.dim, generator=generator, dtype=torch.float64)
    width = torch.tensor([0.2, 0.05, 0.01, 0.002], dtype=torch.float64)[:, None, None, None]
    near = space.snap((best[:, None] + width * scatter).clamp(0.0, 1.0).reshape(-1, space.dim))
    u = torch.cat([space.sample(0, 4096, 2**31 - 1), near[space.allowed_unit(near)]])
    m, v = posterior.marginal(u)
    at, weight, cross = m[:, :0], m[0, :0], m[:, None, :][:, :0]  # the criterion does not look ahead
    look = Prospect(
        m, v, posterior.noise, sought.levels, sought.weights, at, at, weight, cross, sought.best, sought.sign
    )
    span = float(data.z.max() - data.z.min())
    return {name: float(EI().score(look).max()) / span if span > 0 else 1.0}


def remaining(
    problem: Problem, posterior: Posterior, data: Observations, viable: Viability = ALWAYS
) -> dict[str, float]:
    """What is left to do per task: `misclassified` of level sets, `improvement` of an optimum.

    What cannot be evaluated is not left to do: fractions are of the volume times the probability of success.
    """
    if problem.sign:
        return improvement(problem, posterior, data)
    return misclassified(problem, posterior, None if viable.sure else viable)


def readings(goals: Sequence[Precision], belief: Belief, viable: Viability = ALWAYS) -> tuple[Reading, ...]:
    """What a belief says about each condition of a goal, where evaluations succeed."""
    problem, posterior = belief.problem, belief.posterior
    left = remaining(problem, posterior, belief.data, viable) if goals else {}
    plain, weigh = ("misclassified", "improvement"), None if viable.sure else viable
    return tuple(
        Reading(g, left[g.task] if g.measure in plain else measure(g, problem, posterior, weigh)) for g in goals
    )


@torch.no_grad()
def one_sided(problem: Problem, posterior: Posterior, data: Observations) -> tuple[str, ...]:
    """A sentence for each threshold that has no value on one side, with the highest probability of that side."""
    notes = []
    mean, variance = posterior.marginal(problem.space.sample(0, 4096, 2**31 - 1))
    for i, task in enumerate(problem.tasks):
        above, below = _sides(data, i, task.levels)
        for j, threshold in enumerate(task.thresholds):
            p = levelset.excursion_probability(mean[i], variance[i], task.levels[j])
            for seen, side, chance in ((above[j], "at or above", p), (below[j], "below", 1 - p)):
                if not seen:
                    highest = float(chance.max())
                    likely = f"= {highest:.2g}" if highest >= 1e-4 else "< 0.0001"
                    notes.append(f"{task.name}: no point {side} {threshold:g} seen yet; highest P {likely}")
    return tuple(notes)


def _sides(data: Observations, task: int, levels: Tensor) -> tuple[list[bool], list[bool]]:
    """Whether each threshold (k,) has a value surely at or above it, and one surely below."""
    z, side = data.z[:, task : task + 1], data.side[:, task : task + 1]
    above = (z >= levels) & (side >= 0)
    below = ((z < levels) & (side <= 0)) | ((z <= levels) & (side < 0))
    return above.any(0).tolist(), below.any(0).tolist()


def best_trial(problem: Problem, trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best value, the first of equal ones; exact values before bounds. None without values.

    Only the dearest fidelity counts: the others are not what is sought.
    """
    name = problem.tasks[0].name
    known = problem.valued(trials, name)
    exact = [t for t in known if t.state == "complete"] or known
    return max(exact, key=lambda t: problem.sign * t.outcome.values[name] if t.outcome else 0.0, default=None)


@dataclass(frozen=True)
class Status:
    """How a campaign stands.

    Attributes:
        name: of the campaign.
        counts: state -> number of trials.
        uncertainty: task -> expected misclassified fraction of the allowed volume; for an optimum the largest expected
            improvement in units of the range of values seen (`improvement`). Empty while the design runs.
        crossed: task -> whether values on both sides of each threshold are known; empty for an optimum.
        notes: once the design is complete: thresholds with values on one side only, and what a cheaper fidelity does
            for each task, a sentence each.
        readings: once the design is complete: what is known of each condition of the goal.
        best: where an optimum is sought: the trial with the best value.
        spent: cost of the finished trials, in evaluations of the dearest fidelity; rows of tables cost nothing.
        fidelities: fidelity -> number of finished trials, rows of tables included; empty where none are declared.
        cheaper: once the design is complete: what the cheaper fidelity does for each task; also in the notes.
        requests: what people decided ("proposed", "approved", "submitted") -> number of trials that are not finished.
    """

    name: str
    counts: Mapping[str, int]
    uncertainty: Mapping[str, float]
    crossed: Mapping[str, bool]
    notes: tuple[str, ...] = ()
    best: Trial | None = None
    readings: tuple[Reading, ...] = ()
    spent: float = 0.0
    fidelities: Mapping[str, int] = field(default_factory=dict)
    cheaper: tuple[Help, ...] = ()
    requests: Mapping[str, int] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether there is a goal and all of its conditions hold."""
        return bool(self.readings) and all(r.reached for r in self.readings)

    @property
    def measure(self) -> str:
        """What `uncertainty` is, for people."""
        return "expected misclassified" if self.crossed else "expected improvement"

    @property
    def finished(self) -> int:
        """Trials that will not change any more."""
        return sum(self.counts.get(s, 0) for s in FINISHED)


class Campaign:
    """A persisted search: a problem, a strategy and their history in a store. Holds no state of its own.

    Use `create` or `open`, then `ask` and `tell`; any number of processes may do so at the same time.

    Attributes:
        store: where it lives.
        name: its name there.
        problem: what is searched.
        strategy: how.
    """

    def __init__(self, store: Store, name: str, problem: Problem, strategy: Strategy) -> None:
        self.store, self.name, self.problem, self.strategy = store, name, problem, strategy.suited_to(problem)

    def __repr__(self) -> str:
        return f"<Campaign {self.name!r}: {', '.join(self.problem.task_names)} over {self.problem.space.names}>"

    @classmethod
    def create(
        cls,
        url: Store | str | os.PathLike[str],
        name: str,
        problem: Problem,
        strategy: Strategy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Campaign:
        """Start a campaign.

        Args:
            url: a database URL ("sqlite:///scan.db"), a file name, "memory://", or an open store.
            name: unique in the store.
            problem: what is searched. Constraints given as Python functions are not written to the store: whoever
                opens the campaign gives the same problem again.
            strategy: how; the default is good.
            extra: anything to keep with the description, JSON-compatible (the evaluator's settings, say).

        Raises:
            DuplicateCampaign: the name is taken.
            InvalidStrategy: the criterion does not fit the problem's goal, or the surrogate its fidelities.
        """
        strategy = (strategy or Strategy()).suited_to(problem)
        store = url if isinstance(url, Store) else open_store(url)
        spec = {
            "version": SPEC_VERSION,
            "problem": _storable(problem).to_json(),
            "callables": problem.space.has_callables,
            "strategy": strategy.to_json(),
            "extra": dict(extra or {}),
        }
        store.create(name, spec)
        return cls(store, name, problem, strategy)

    @classmethod
    def open(
        cls, url: Store | str | os.PathLike[str], name: str | None = None, problem: Problem | None = None
    ) -> Campaign:
        """Open a campaign that exists.

        Args:
            url: as in `create`; nothing is created.
            name: its name; may be left out if the store holds only one.
            problem: needed only if its constraints are Python functions.

        Raises:
            UnknownCampaign: no such campaign; the known ones are listed.
            InvalidProblem: the problem must be given.
            SchemaMismatch: it was written by another version of this package.
            StoreError: its description is damaged.
        """
        store = url if isinstance(url, Store) else open_store(url, create=False)
        names = store.names()
        if name is None:
            if len(names) != 1:
                raise UnknownCampaign(f"store: which campaign is meant must be clear, got {names}. Give its name")
            name = names[0]
        spec = store.spec(name)
        if spec.get("version") != SPEC_VERSION:
            raise SchemaMismatch(
                f"campaign {name!r}: its description must be of version {SPEC_VERSION}, got {spec.get('version')!r}. "
                "Open it with the excursion that wrote it; the store has not been changed"
            )
        stored, strategy = _described(name, spec)
        if problem is None:
            if spec.get("callables"):
                raise InvalidProblem(
                    f"campaign {name!r}: its constraints are Python functions, which are not stored, got no problem. "
                    "Open it with problem=..., or use expressions as constraints"
                )
            problem = stored
        elif _storable(problem) != stored:
            raise InvalidProblem(
                f"campaign {name!r}: is in the store with another problem, got {problem}, there {stored}. "
                "Give another name or the same problem"
            )
        return cls(store, name, problem, strategy)

    @property
    def extra(self) -> dict[str, Any]:
        """What was kept with the description."""
        return self.store.spec(self.name).get("extra", {})

    @property
    def trials(self) -> list[Trial]:
        """The history, ordered by number."""
        return self.store.trials(self.name)

    def ask(self, n: int = 1, *, limit: float | None = None, approval: Approval = "") -> list[Trial]:
        """Ask for the next n points; they are stored as queued trials.

        Args:
            n: how many.
            limit: no more than so many evaluations in the campaign, whoever asks, counted in those of the dearest
                fidelity (`Problem.spent`); nothing is asked for beyond.
            approval: "proposed" if nobody shall evaluate them before a person has approved (`Store.review`).

        Raises:
            InvalidPoint: n is not positive.
            SpaceExhausted: a quantised space has no point left; one with fewer than n gives what it has.
        """
        if not 1 <= (n := whole("ask: the number of points", n)) <= MOST:
            rule = "at least 1" if n < 1 else f"at most {MOST}"
            raise InvalidPoint(f"ask: the number of points must be {rule}, got {n!r:.80}")
        while True:
            trials = self.trials
            left = math.inf if limit is None else limit - self.problem.spent(trials)
            if (n := int(min(n, self.problem.affordable(left)))) < 1:
                return []
            try:
                with one_thread(len(trials)):
                    proposals = propose(self.problem, self.strategy, trials, n)
                return self._add(self.problem.within(proposals, left), len(trials), approval)
            except StaleHistory:
                continue  # another process asked at the same time: propose again, knowing its points

    def add(
        self, points: Sequence[Mapping[str, float]], *, fidelity: str = "", events: int | None = None
    ) -> list[Trial]:
        """Queue points of one's own choice, in physical units; one that was evaluated before is evaluated again.

        Args:
            points: parameter name -> value.
            fidelity: how to evaluate; the dearest fidelity by default.
            events: how many Monte Carlo events; the most that the fidelity takes by default.

        Raises:
            InvalidPoint: unknown or missing names, outside the range, forbidden by a constraint; a number of events
                that is none; a fidelity that is known from tables only.
            InvalidProblem: nobody declared this fidelity.
        """
        where = f"campaign {self.name!r}"
        checked = [self.problem.space.check(p, where) for p in points]
        if events is not None and (isinstance(events, bool) or not isinstance(events, numbers.Integral) or events < 1):
            raise InvalidPoint(f"{where}: the events must be a positive whole number, got {events!r}")
        self.problem.level(fidelity)
        if self.problem.fidelities:
            chosen = self.problem.fidelity(fidelity)
            if chosen.cost is None:
                raise InvalidPoint(
                    f"{where}: fidelity {fidelity!r} is known from tables only, got points to evaluate. "
                    "Use warm_start, or give it a cost"
                )
            fidelity = chosen.name
            events = chosen.events[1] if events is None and chosen.events else events
        while True:
            trials = self.trials
            basis = sum(t.state in FINISHED for t in trials)
            proposals = [Proposal(p, basis, "given", fidelity=fidelity, events=events) for p in checked]
            try:
                return self._add(proposals, len(trials))
            except StaleHistory:
                continue

    def _settled(self, proposal: Proposal) -> Proposal:
        """The proposal with the name of its fidelity; raises where nobody declared it."""
        if proposal.fidelity or not self.problem.fidelities:
            self.problem.level(proposal.fidelity)
            return proposal
        dearest = self.problem.fidelity()
        most = dearest.events[1] if dearest.events else None
        return replace(proposal, fidelity=dearest.name, events=most if proposal.events is None else proposal.events)

    def warm_start(
        self,
        table: Source,
        fidelity: str = "",
        columns: Mapping[str, str] | None = None,
    ) -> WarmStart:
        """Tell what a table knows already: its rows become finished trials, which cost nothing.

        Rows that were told before (same point, fidelity and values) are left out, and so are rows outside the space
        and rows without a value; all are counted. It happens in one transaction.

        Args:
            table: path of a CSV, JSON or HEPData file, a list of dicts or a dict of columns, see `known.read`.
            fidelity: which one the table holds. Where it depends on some parameters only, the others are stored at the
                middle of their range and mean nothing.
            columns: the table's name of a column -> ours, where they differ.

        Returns:
            How many rows were used, and how many were not, for which reason.

        Raises:
            InvalidTable: it cannot be used: columns, units, cells, a row that contradicts another or what is known at
                its point (see `tell`); nothing is stored.
            InvalidProblem: nobody declared this fidelity, or it is not said which one the table holds.
        """
        if self.problem.fidelities and not fidelity:
            raise InvalidProblem(
                f"campaign {self.name!r}: a table holds one of the fidelities "
                f"{[f.name for f in self.problem.fidelities]}, got none. Say which: fidelity=..."
            )
        found = known(self.problem, table, fidelity, columns)
        while True:
            trials = self.trials
            basis = sum(t.state in FINISHED for t in trials)
            told = {_row(t.fidelity, t.x, t.outcome) for t in trials if t.outcome is not None and t.criterion == TABLE}
            proposals, outcomes = [], []
            seen = _outcomes(self.problem, trials)
            for number, x, outcome in zip(found.rows, found.points, found.outcomes):
                if (row := _row(fidelity, x, outcome)) not in told:
                    told.add(row)
                    there = seen.setdefault(_place(self.problem, fidelity, x), [])
                    if wrong := _contradiction(outcome, there):
                        raise InvalidTable(f"table, row {number}: {wrong}. Correct the row, or leave it out")
                    there.append((f"row {number}", outcome))
                    proposals.append(Proposal(x, basis, TABLE, fidelity=fidelity))
                    outcomes.append(outcome)
            seeds = [evaluation_seed(self.strategy.seed, len(trials) + i) for i in range(len(proposals))]
            try:
                self.store.record(self.name, proposals, outcomes, after=len(trials), seeds=seeds)
            except StaleHistory:
                continue
            repeated = len(found.points) - len(proposals)
            return WarmStart(len(proposals), found.outside, found.empty, repeated, found.missing)

    def _add(self, proposals: Sequence[Proposal], after: int, approval: Approval = "") -> list[Trial]:
        proposals = [self._settled(proposal) for proposal in proposals]
        seeds = [evaluation_seed(self.strategy.seed, after + i) for i in range(len(proposals))]
        return self.store.add(self.name, proposals, after=after, seeds=seeds, approval=approval)

    def tell(self, number: int, outcome: Outcome | float | Mapping[str, float]) -> Trial:
        """Record what came back; a finished trial never changes.

        Args:
            number: of the trial.
            outcome: an `Outcome`; a dict task -> value, or one number if there is one task.

        Raises:
            InvalidOutcome: NaN, missing or unknown tasks, a bound and an exact value at the same point and fidelity
                that contradict each other (by five standard deviations, where variances are known), whichever was told
                first; the trial stays pending.
            TrialFinished: it was told before.
            UnknownTrial: there is no such trial.
        """
        if not isinstance(number, numbers.Integral):
            raise UnknownTrial(f"campaign {self.name!r}: a trial's number must be a whole number, got {number!r}")
        told = self.checked(int(number), self.outcome(outcome))
        return self.store.finish(self.name, int(number), told)

    def tell_table(self, table: Source) -> list[Trial]:
        """Record what came back from several trials, from a table as `excursion ask --csv` writes it, filled in.

        Args:
            table: columns "number" and each task; a cell may be empty (missing), ">10" or "<0.1" (a bound). Columns
                "<task>_err" hold standard errors. Where there are columns of parameters, "fidelity" and "events" they
                must be those that were asked for. Rows without any value are left pending.

        Returns:
            The finished trials.

        Raises:
            InvalidTable: columns or cells that make no sense; another point than was asked for.
            InvalidOutcome, TrialFinished, UnknownTrial: as `tell`; nothing is told.
        """
        rows = answers(self.problem, table)
        trials = self.trials
        for number, outcome, cells in rows:
            if not 0 <= number < len(trials):
                there = f"0 to {len(trials) - 1}" if trials else "none yet"
                raise UnknownTrial(
                    f"campaign {self.name!r}: no trial of this number, got {number}. Trials are: {there}"
                )
            trial = trials[number]
            if not trial.pending:
                raise TrialFinished(
                    f"campaign {self.name!r}: a finished trial cannot change, got another outcome for trial {number}, "
                    f"which is {trial.state}. Take the row out"
                )
            check_bounds(self.problem, trials, trial, outcome)
            trials[number] = replace(trial, outcome=outcome)  # rows must agree with each other, too
            asked: dict[str, Any] = {**trial.x, "fidelity": trial.fidelity, "events": trial.events}
            for name in asked.keys() & cells.keys():
                told, was = cells[name], asked[name]
                same = str(told or "") == str(was or "") if name == "fidelity" else _number(told) == _number(was)
                if not same:
                    raise InvalidTable(
                        f"table, trial {number}: {name!r} must be what was asked for, {was!r}, got {told!r}. "
                        "Check the numbers of the rows"
                    )
        return [self.store.finish(self.name, number, outcome) for number, outcome, _ in rows]

    def checked(self, number: int, outcome: Outcome, trial: Trial | None = None) -> Outcome:
        """The outcome, if it fits the problem and does not contradict what is known; raises what `tell` does.

        Args:
            number: of the trial.
            outcome: what came back.
            trial: the trial, where it is at hand: the others that are pending need not be read then.
        """
        self.problem.check(outcome)
        if outcome.error is None:
            trials = self.trials if trial is None else self.store.trials(self.name, finished=True)
            if trial is None and 0 <= number < len(trials):
                trial = trials[number]
            if trial is not None:
                check_bounds(self.problem, trials, trial, outcome)
        return outcome

    def outcome(self, value: Outcome | float | Mapping[str, float]) -> Outcome:
        """The outcome meant by a number, a dict or an outcome."""
        if isinstance(value, Outcome):
            return value
        return Outcome.of(value if isinstance(value, Mapping) else {self.problem.tasks[0].name: value})

    def belief(self) -> Belief:
        """What is believed from what is known now; pending points play no part.

        Raises:
            FitError: fewer than two trials hold values.
        """
        trials = self.trials
        with one_thread(len(trials)):
            return believe(self.problem, self.strategy.surrogate, trials)

    def goals(self, goal: Any = None) -> tuple[Precision, ...]:
        """The conditions that a goal means, see `precision.parse`; None means the one kept with the description.

        Raises:
            InvalidStrategy: a goal that makes no sense.
        """
        kept = (self.extra.get("run") or {}).get("goal") if goal is None else goal
        return parse(kept, self.problem, f"campaign {self.name!r}")

    def forecast(self, goal: Any = None) -> Forecast | None:
        """How many more evaluations the goal may need, from beliefs at some moments of the past; None without a goal.

        It fits the surrogate anew for each of these moments, which takes some times as long as an ask.

        Args:
            goal: see `goals`.

        Raises:
            InvalidStrategy: a goal that makes no sense.
        """
        goals, trials = self.goals(goal), self.trials
        if not goals:
            return None
        done = sorted((t for t in trials if t.told is not None), key=lambda t: t.told or 0)
        useful = [k + 1 for k, t in enumerate(done) if t.state in INFORMATIVE]
        # Nothing is believed before the design of every fidelity is complete.
        designed = bisect_left(useful, True, key=lambda k: to_design(self.problem, self.strategy, done[:k]) is None)
        useful = useful[designed:]
        curves: list[list[tuple[float, float]]] = [[] for _ in goals]
        with one_thread(len(trials)):
            for k in milestones(1, len(useful), _MILESTONES):
                past = done[: useful[k - 1]]
                found = readings(goals, believe(self.problem, self.strategy.surrogate, past))
                for curve, reading in zip(curves, found):
                    curve.append((paid(self.problem, past), reading.value))
        now, what = pace(self.problem, trials), unit(self.problem)
        return latest(forecast(curve, g.limit, now, what) for curve, g in zip(curves, goals))

    def status(self, goal: Any = None, *, belief: bool | None = None) -> Status:
        """Counts, what is left to do, and whether the thresholds are crossed or which value is best.

        Args:
            goal: see `goals`; what is known of its conditions is in `Status.readings`.
            belief: whether to fit what is believed, which says what is left to do; by default if no more than
                `BELIEVED` trials of the dearest fidelity hold values.

        Raises:
            InvalidStrategy: a goal that makes no sense.
        """
        problem, trials, goals = self.problem, self.trials, self.goals(goal)
        read: tuple[Reading, ...] = ()
        counts: dict[str, int] = {}
        for t in trials:
            counts[t.state] = counts.get(t.state, 0) + 1
        people: dict[str, int] = {}
        for t in trials:
            if t.pending and t.approval:
                people[t.approval] = people.get(t.approval, 0) + 1
        left: Mapping[str, float] = {}
        notes: tuple[str, ...] = ()
        cheaper: tuple[Help, ...] = ()
        dear = sum(t.state in INFORMATIVE and problem.level(t.fidelity) == 0 for t in trials)
        designed = to_design(problem, self.strategy, trials) is None
        if belief is False or (belief is None and dear > BELIEVED):
            if designed:
                notes = (f"what is believed from {dear} points is left out: status --belief fits it all the same",)
        elif designed:
            with one_thread(len(trials)):
                known, viable = believe(problem, self.strategy.surrogate, trials), viability(problem.space, trials)
                left = remaining(known.problem, known.posterior, known.data, viable)
                cheaper = helps(known.problem, known.posterior, trials)
                notes = one_sided(known.problem, known.posterior, known.data) + tuple(map(str, cheaper))
                read = readings(goals, known, viable)
        done = [problem.fidelity(t.fidelity).name for t in trials if problem.fidelities and t.state in FINISHED]
        each = {f.name: done.count(f.name) for f in problem.fidelities}
        if problem.sign:
            best = best_trial(problem, trials)
            return Status(self.name, counts, left, {}, notes, best, read, paid(problem, trials), each, cheaper, people)
        plain = replace(problem, tasks=tuple(replace(t, transform="identity") for t in problem.tasks))
        seen = observations(plain, trials)
        sides = {task.name: _sides(seen, i, task.levels) for i, task in enumerate(plain.tasks)}
        crossed = {name: all(above) and all(below) for name, (above, below) in sides.items()}
        return Status(self.name, counts, left, crossed, notes, None, read, paid(problem, trials), each, cheaper, people)


@dataclass(frozen=True)
class WarmStart:
    """What became of the rows of a table.

    Attributes:
        used: rows that are trials now.
        outside: rows that lie outside the space or that a constraint forbids.
        empty: rows without any value.
        repeated: rows that had been told before.
        missing: tasks that the table has no column for.
    """

    used: int
    outside: int = 0
    empty: int = 0
    repeated: int = 0
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = (("outside the space", self.outside), ("without a value", self.empty), ("told before", self.repeated))
        left = [f"{n} {why}" for why, n in reasons if n]
        return "; ".join(
            [
                f"{self.used} rows used",
                *([f"left out: {', '.join(left)}"] if left else []),
                *([f"no column for {', '.join(self.missing)}"] if self.missing else []),
            ]
        )


def _number(cell: Any) -> float | None:
    return parse_cell(cell, "table")[0]


def _row(fidelity: str, x: Mapping[str, float], outcome: Outcome) -> Hashable:
    """What makes two rows of a table the same."""
    parts = (x, outcome.values, outcome.variances, outcome.bounds)
    return (fidelity, *(tuple(sorted(part.items())) for part in parts))


def _place(problem: Problem, fidelity: str, x: Mapping[str, float]) -> Hashable:
    """What makes two evaluations those of the same point and fidelity."""
    return (problem.level(fidelity), *(x[n] for n in _names(problem, fidelity)))


def _names(problem: Problem, fidelity: str) -> tuple[str, ...]:
    """The parameters that an evaluation at this fidelity depends on."""
    return (problem.fidelity(fidelity).parameters if problem.fidelities else None) or problem.space.names


def _outcomes(problem: Problem, trials: Iterable[Trial]) -> dict[Hashable, list[tuple[str, Outcome]]]:
    """What is known at each place, with the names of the trials."""
    seen: dict[Hashable, list[tuple[str, Outcome]]] = {}
    for t in trials:
        if t.outcome is not None and t.outcome.error is None:
            seen.setdefault(_place(problem, t.fidelity, t.x), []).append((f"trial {t.number}", t.outcome))
    return seen


def check_bounds(problem: Problem, trials: Sequence[Trial], trial: Trial, outcome: Outcome) -> None:
    """Refuse a bound and an exact value of the same point, fidelity and task that contradict each other."""
    # Most are elsewhere already in one parameter, which is quicker to see than whether they are at the same place.
    name = _names(problem, trial.fidelity)[0]
    near = (t for t in trials if t.x[name] == trial.x[name] and t.number != trial.number)
    seen = _outcomes(problem, near)
    if wrong := _contradiction(outcome, seen.get(_place(problem, trial.fidelity, trial.x), ())):
        raise InvalidOutcome(f"{wrong}. Tell the value, or a failure")


def _contradiction(outcome: Outcome, known: Iterable[tuple[str, Outcome]]) -> str:
    """How an outcome contradicts one of those known at the same place; empty if it does not.

    Of a bound and an exact value that lies beyond it by more than five standard deviations one must be wrong; two
    exact values may differ (noise), and of two bounds the truth may lie between.
    """
    for name, other in known:
        for task in outcome.values.keys() & other.values.keys():
            sides = outcome.bounds.get(task), other.bounds.get(task)
            if (sides[0] is None) == (sides[1] is None):
                continue
            told, there = outcome.values[task], other.values[task]
            bound, exact = (told, there) if sides[0] else (there, told)
            excess = bound - exact if "above" in sides else exact - bound
            if excess > 5 * math.sqrt(sum(o.variances.get(task, 0.0) for o in (outcome, other))):
                texts = [
                    f"{value:g}" if side is None else f"{side} {value:g}" for side, value in zip(sides, (told, there))
                ]
                if task in other.variances:
                    texts[1] += f" +- {math.sqrt(other.variances[task]):g}"
                return (
                    f"outcome of task {task!r}: {'a bound' if sides[0] else 'a value'} must agree with what is known, "
                    f"got {texts[0]} at the point of {name}, where it is {texts[1]}"
                )
    return ""


def _described(name: str, spec: Mapping[str, Any]) -> tuple[Problem, Strategy]:
    """Problem and strategy of a description."""
    try:
        extra = spec.get("extra", {})
        if not isinstance(extra, dict) or not isinstance(extra.get("run") or {}, dict):
            raise TypeError("settings that are no object")
        return Problem.from_json(spec["problem"]), Strategy.from_json(spec["strategy"])
    except ExcursionError:
        raise  # says what is wrong itself
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(
            f"campaign {name!r}: its description must be as excursion writes it, got {type(error).__name__}: {error}. "
            "The store is damaged: restore it from a backup"
        ) from error


def _storable(problem: Problem) -> Problem:
    """The problem without the constraints that are Python functions."""
    space = problem.space
    if not space.has_callables:
        return problem
    kept = tuple(c for c in space.constraints if isinstance(c.expression, str))
    return replace(problem, space=ParameterSpace(space.parameters, kept))


def evaluation_seed(seed: int, number: int) -> int:
    """Seed of the evaluation of a trial: fixed by the strategy's seed and the number, below 9e8 (Pythia's limit)."""
    return (seed * 1_000_003 + 7_368_787 * (number + 1)) % 900_000_000
