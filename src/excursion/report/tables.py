"""A campaign as text: how it stands, its trials and contours as CSV and strict JSON. Needs no optional package."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..campaign import Campaign, Status
from ..contours import Contour
from ..data import Trial
from ..errors import InvalidPoint, InvalidProblem, StoreError
from ..forecast import Forecast
from ..precision import Precision
from ..problem import Problem
from ..result import Result, table
from ..runner import Report
from ..shadow import Replay
from ..store import Event, Store, open_store
from ..uncertainty import SetSummary
from ..untrusted import printable

__all__ = [
    "contours",
    "contours_csv",
    "contours_json",
    "ended",
    "exported",
    "listing",
    "point_lines",
    "points_csv",
    "points_json",
    "replayed",
    "replayed_json",
    "sets",
    "sets_json",
    "sets_lines",
    "standing",
    "standing_lines",
    "strict_json",
    "trials_csv",
    "trials_json",
    "write",
]


def strict_json(value: Any) -> str:
    """JSON that every reader takes: NaN becomes null, infinities become "inf" and "-inf"."""
    return json.dumps(_strict(value), indent=2, allow_nan=False, ensure_ascii=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


# --------------------------------------------------------------------------------------------- trials


def trials_csv(campaign: Campaign) -> str:
    """All trials, one per line; the columns of `Result.trials`. Missing numbers are empty, infinities "inf".

    What a program has said gets a quote in front where a spreadsheet would take it for a formula.
    """
    rows = table(campaign.problem, campaign.trials)
    for row in rows:
        if row["error"].startswith(("=", "+", "-", "@", "\t", "\r")):
            row["error"] = f"'{row['error']}"
    names = dict.fromkeys(campaign.problem.space.names, 0.0)
    columns = list(table(campaign.problem, [Trial(number=0, x=names, basis=0, after=0)])[0])
    return _csv(columns, rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return text.getvalue()


def trials_json(campaign: Campaign) -> str:
    """All trials with the description of parameters and tasks: units, ranges, thresholds."""
    rows = table(campaign.problem, campaign.trials)
    return strict_json(_description(campaign.name, campaign.problem) | {"trials": rows})


def _description(name: str, problem: Problem) -> dict[str, Any]:
    return {
        "excursion": version("excursion"),
        "campaign": name,
        "parameters": [asdict(p) for p in problem.space.parameters],
        "constraints": [c.text for c in problem.space.constraints],
        "tasks": [asdict(t) for t in problem.tasks],
        **({"fidelities": [asdict(f) for f in problem.fidelities]} if problem.fidelities else {}),
        **({"goal": problem.goal} if problem.sign else {}),
    }


# -------------------------------------------------------------------------------------------- contours


def contours(result: Result, fixed: Sequence[str] = ()) -> list[Contour]:
    """The level sets of all tasks and thresholds.

    Args:
        result: what is known.
        fixed: "name=value" for all but two parameters, where there are more.

    Raises:
        InvalidPoint: more than two parameters vary, or a value that is no number.
        InvalidProblem: an optimum was sought.
    """
    if result.problem.sign:
        raise InvalidProblem(
            f"contours: level sets must have been sought, got the goal {result.problem.goal!r}. Export the trials"
        )
    values = {}
    for item in fixed:
        name, _, number = item.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise InvalidPoint(f"contours: a fixed parameter needs a value, got {item!r}. Write name=number") from None
    return [result.contours(task.name, t, fixed=values) for task in result.problem.tasks for t in task.thresholds]


def contours_csv(lines: Sequence[Contour], problem: Problem) -> str:
    """One point per line: task, threshold, number of the line, then all parameters."""
    rows = [
        {"task": contour.task, "threshold": contour.threshold, "line": i, **contour.fixed}
        | dict(zip(contour.names, point.tolist()))
        for contour in lines
        for i, line in enumerate(contour.lines)
        for point in line
    ]
    return _csv(["task", "threshold", "line", *problem.space.names], rows)


def contours_json(lines: Sequence[Contour], name: str, problem: Problem) -> str:
    """Polylines in physical units, with the description of parameters and tasks."""
    found = [asdict(contour) | {"lines": [line.tolist() for line in contour.lines]} for contour in lines]
    return strict_json(_description(name, problem) | {"contours": found})


def exported(campaign: Campaign, what: str = "trials", form: str = "csv", fixed: Sequence[str] = ()) -> str:
    """The text of an export.

    Args:
        campaign: whose.
        what: "trials" or "contours".
        form: "csv" or "json".
        fixed: see `contours`.
    """
    if what == "trials":
        return trials_csv(campaign) if form == "csv" else trials_json(campaign)
    found = contours(Result.of(campaign), fixed)
    if form == "csv":
        return contours_csv(found, campaign.problem)
    return contours_json(found, campaign.name, campaign.problem)


# ----------------------------------------------------------------------------------------------- sets


def sets(result: Result, task: str | None = None) -> list[SetSummary]:
    """How well the sets of all thresholds are known, of one task or of all.

    Raises:
        InvalidProblem: no such task; an optimum was sought.
    """
    if result.problem.sign:
        raise InvalidProblem(
            f"sets: level sets must have been sought, got the goal {result.problem.goal!r}. Use `status`"
        )
    chosen = result.problem.tasks if task is None else (result.problem.task(task),)
    return [result.sets(t.name, threshold) for t in chosen for threshold in t.thresholds]


def sets_lines(found: Sequence[SetSummary]) -> list[str]:
    """The same for people."""
    return [line for one in found for line in one.lines()]


def sets_json(found: Sequence[SetSummary]) -> str:
    """The same for programs."""
    return strict_json([asdict(one) for one in found])


# ------------------------------------------------------------------------------------------- standing


def standing(campaign: Campaign, goal: Any = None, belief: bool | None = None) -> dict[str, Any]:
    """How a campaign stands.

    Args:
        campaign: whose.
        goal: see `Campaign.goals`; by default the one kept with its description.
        belief: see `Campaign.status`.

    Returns:
        "counts" (state -> trials), "requests" (those of them that are with people), "finished", "spent" (cost of the
        finished ones, as a budget counts it), "fidelities" (fidelity -> finished trials), "cheaper" (for each task
        what the cheaper fidelity does, see `fidelities.Help`),
        "expected_misclassified" (task -> fraction of the allowed volume, None while the
        design runs), "crossed" (task -> whether values on both sides are known), "notes" (sentences on thresholds with
        values on one side only), "seconds_per_point" (mean from claim to outcome, None if nothing was evaluated),
        "failures" (the last three, latest first), "budget" (or None). For an optimum, instead of the second and the
        third: "goal" ("minimum" or "maximum"), "expected_improvement" (task -> the largest, in units of the range of
        values seen) and "best" (number, parameters and value of the best trial, or None). With a goal also "goals" (for
        each condition: text, measure, task, parameter, unit, credibility, limit, and value and reached, None while the
        design runs) and "forecast" (more, sd, low, high, seconds, reason; see `Forecast`).
    """
    goals = campaign.goals(goal)
    status, trials = campaign.status(goals, belief=belief), campaign.trials
    ahead = campaign.forecast(goals) if status.readings and not status.reached else None
    left = {t: status.uncertainty.get(t) for t in campaign.problem.task_names}
    seconds = [t.finished - t.started for t in trials if t.finished is not None and t.started is not None]
    failed = [t for t in trials if t.outcome is not None and t.outcome.error is not None]
    failed.sort(key=lambda t: -1 if t.told is None else t.told, reverse=True)
    return {
        "campaign": campaign.name,
        "counts": dict(sorted(status.counts.items())),
        "requests": dict(sorted(status.requests.items())),
        "finished": status.finished,  # as all of this, of one moment: a run may go on meanwhile
        "spent": status.spent,
        "fidelities": dict(status.fidelities),
        "budget": (campaign.extra.get("run") or {}).get("budget"),
        **(_optimum(campaign.problem, status, left) if campaign.problem.sign else _level_set(status, left)),
        **({"goals": _conditions(goals, status), "forecast": ahead and asdict(ahead)} if goals else {}),
        "cheaper": [asdict(h) | {"text": str(h)} for h in status.cheaper],
        "notes": list(status.notes),
        "seconds_per_point": sum(seconds) / len(seconds) if seconds else None,
        "failures": [
            {"number": t.number, "state": t.state, "reason": t.outcome.error} for t in failed[:3] if t.outcome
        ],
    }


def _conditions(goals: Sequence[Precision], status: Status) -> list[dict[str, Any]]:
    known = {reading.goal: reading for reading in status.readings}
    return [
        {"text": str(known.get(g, g)), **asdict(g)}
        | {"value": known[g].value if g in known else None, "reached": known[g].reached if g in known else None}
        for g in goals
    ]


def _level_set(status: Status, left: Mapping[str, float | None]) -> dict[str, Any]:
    return {"expected_misclassified": dict(left), "crossed": dict(status.crossed)}


def _optimum(problem: Problem, status: Status, left: Mapping[str, float | None]) -> dict[str, Any]:
    found, best = None, status.best
    if best is not None and best.outcome is not None:
        found = {"number": best.number, "x": dict(best.x), "value": best.outcome.values[problem.task_names[0]]}
    return {"goal": problem.goal, "expected_improvement": dict(left), "best": found}


def standing_lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    counts = ", ".join(f"{n} {state}" for state, n in found["counts"].items()) or "no trials"
    people = ", ".join(f"{n} {state}" for state, n in found["requests"].items())
    counts += f"; of these with people: {people}" if people else ""
    of = f" of {found['budget']}" if found["budget"] else ""
    if found["fidelities"]:
        each = ", ".join(f"{name} {n}" for name, n in found["fidelities"].items())
        what = f"{each} (cost {found['spent']:.1f}{of})"
    else:
        tables = found["finished"] - round(found["spent"])
        what = f"{found['spent']:.0f}{of} finished" + (f" and {tables} from tables" if tables else "")
    lines = [f"{found['campaign']}: {what} ({counts})"]
    left_out = any("is left out" in note for note in found["notes"])
    unknown = "left out" if left_out else "not known before the design is complete"
    for task, left in found.get("expected_misclassified", {}).items():
        crossed = "threshold crossed" if found["crossed"][task] else "threshold not crossed yet"
        lines.append(f"  {task}: {crossed}, expected misclassified {_share(left, 'the volume') or unknown}")
    for task, left in found.get("expected_improvement", {}).items():
        if (best := found["best"]) is not None:
            point = ", ".join(f"{name}={value:g}" for name, value in best["x"].items())
            lines.append(f"  {task}: best value {best['value']:g} in trial {best['number']} at {point}")
        lines.append(f"  {task}: expected improvement {_share(left, 'the range of values seen') or unknown}")
    for condition in found.get("goals", ()):
        state = {True: "reached", False: "not reached", None: "not known before the design is complete"}
        lines.append(f"  goal {condition['text']}: {state[condition['reached']]}")
    if found.get("forecast"):
        lines.append(f"  {Forecast(**found['forecast'])}")
    lines += [f"  {note}" for note in found["notes"]]
    if found["seconds_per_point"] is not None:
        lines.append(f"  {found['seconds_per_point']:.2f} s per point")
    for failure in found["failures"]:
        lines.append(f"  trial {failure['number']} {failure['state']}: {' '.join(failure['reason'].split())}")
    return lines


def _share(value: float | None, of: str) -> str:
    return "" if value is None else f"{100 * value:.2f} % of {of}"


def log_lines(events: Sequence[Event]) -> list[str]:
    """A campaign's log, one line each: time (UTC), what, which trial, who, on which machine, with which version."""
    return [
        f"{datetime.fromtimestamp(e.time, UTC).isoformat(timespec='milliseconds')}  {e.kind:<7} {e.number:>5}"
        + (f"  seed {e.seed}" if e.seed is not None else "")
        + f"  {e.host}:{e.pid}"
        + (f" for {e.owner}" if e.owner else "")
        + (f"  excursion {e.version}" if e.version else "")
        + (f"  {' '.join(e.note.split())}" if e.note else "")
        for e in events
    ]


def log_json(events: Sequence[Event]) -> str:
    """The same for programs."""
    return strict_json([asdict(e) for e in events])


def listing(url: str) -> list[str]:
    """The campaigns of a store with their number of trials."""
    store: Store = open_store(url, create=False)
    return [f"{name}: {sum(store.counts(name).values())} trials" for name in store.names()]


def ended(report: Report, store: str) -> str:
    """How a run ended, in one line."""
    why = {
        "budget": "the budget is spent",
        "goal": "the goal is reached",
        "exhausted": "no point is left in the quantised space",
        "approval": f"{report.status.requests.get('proposed', 0)} requests wait for approval (excursion approve)",
    }[report.reason]
    left = ", ".join(f"{task} {100 * value:.2f} %" for task, value in report.status.uncertainty.items())
    goals = "".join(f"; {r}" for r in report.status.readings if r.goal.measure in ("ambiguous", "width"))
    notes = "".join(f"; {note}" for note in report.status.notes)
    last = f" (the last one: {' '.join(report.last_error.split())[:300]})" if report.last_error else ""
    return (
        f"{report.status.name}: {why}; {report.evaluations} evaluations in {report.seconds:.1f} s, "
        f"{report.failed} failed{last}, {report.status.finished} finished in all; "
        f"{report.status.measure}: {left or 'not known before the design is complete'}{goals}{notes}; store {store}"
    )


def replayed(replay: Replay) -> list[str]:
    """What a campaign would have needed of a scan, and how the error fell, for people."""
    task, names = replay.problem.tasks[0], ", ".join(replay.problem.space.names)
    goal, needed = f"{100 * replay.goal:g} %", replay.needed
    what = f"{task.name} = {task.thresholds[0]:g} over {names}"
    if needed is None:
        lines = [f"{what}: all {replay.points} points are needed to misclassify at most {goal} of them"]
    else:
        lines = [
            f"{what}: you would have needed {needed} of {replay.points} points to misclassify at most {goal} of them"
        ]
    if replay.failed:
        lines.append(f"  {replay.failed} points have no value: each costs an evaluation, and none counts in the error")
    campaign, random = replay.curve, replay.random
    counts = random.evaluations or campaign.evaluations
    shown = sorted({counts[round(i * (len(counts) - 1) / 11)] for i in range(12)} | ({needed} if needed else set()))
    lines.append("  points asked   wrong: campaign" + ("   random order" if random.evaluations else ""))
    last = max(campaign.evaluations)
    for n in shown:
        here = "-" if n > last else f"{100 * campaign.at(n):.2f} %"
        there = f"{100 * random.at(n):.2f} %" if random.evaluations else ""
        lines.append(f"  {n:12}   {here:>15}   {there:>12}".rstrip())
    if random.evaluations:
        found = random.needed(replay.goal)
        most = random.evaluations[-1]
        lines.append(f"  in random order {f'more than {most}' if found is None else found} points are needed")
    return lines


def replayed_json(replay: Replay) -> str:
    """The same for programs, with the points in the order in which they were asked for."""
    task = replay.problem.tasks[0]
    return strict_json(
        {
            "output": task.name,
            "threshold": task.thresholds[0],
            "goal": replay.goal,
            "points": replay.points,
            "failed": replay.failed,
            "needed": replay.needed,
            "needed_in_random_order": replay.random.needed(replay.goal),
            "campaign": asdict(replay.curve),
            "random": asdict(replay.random),
            "asked": [dict(t.x) for t in replay.history],
        }
    )


def points_json(trials: Sequence[Trial]) -> str:
    """Number, parameters and seed of trials; fidelity and events where the campaign gives them."""
    return strict_json([{"number": t.number, "parameters": dict(t.x), "seed": t.seed, **_how(t)} for t in trials])


def _how(trial: Trial) -> dict[str, Any]:
    given = {"fidelity": trial.fidelity, "events": trial.events}
    return {name: value for name, value in given.items() if value}


def point_lines(trials: Sequence[Trial]) -> list[str]:
    """The same, one line each."""
    return [
        f"{t.number}  "
        + "  ".join([*(f"{name}={value!r}" for name, value in t.x.items()), *(f"{k}={v}" for k, v in _how(t).items())])
        for t in trials
    ]


def points_csv(problem: Problem, trials: Sequence[Trial]) -> str:
    """The same as a table to fill in: parameters, fidelity and events where declared, then an empty column per task."""
    how = ["fidelity", "events"] if problem.fidelities else []
    columns = ["number", *problem.space.names, *how, "seed", *problem.task_names]
    rows = [
        {"number": t.number, **t.x, "seed": t.seed}
        | ({"fidelity": t.fidelity, "events": "" if t.events is None else t.events} if how else {})
        for t in trials
    ]
    return _csv(columns, rows)


def write(text: str, out: str) -> None:
    """Write text to a file that is complete or not there.

    Raises:
        StoreError: it cannot be written.
    """
    path, text = Path(out), printable(text)  # what is no character cannot be written as UTF-8
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"export: {out} must be writable, got {error.strerror}. Choose another file") from error
