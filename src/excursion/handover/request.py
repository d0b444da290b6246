"""What is asked of people: requests, their ids, and the columns of the tables that carry them there and back."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..data import Trial
from ..problem import Problem

__all__ = ["Column", "Request", "Role", "columns", "key", "one_line", "request", "standing"]

Role = Literal[
    "request",
    "parameter",
    "fidelity",
    "events",
    "seed",
    "state",
    "reason",
    "asked",
    "value",
    "error",
    "bound",
    "status",
    "comment",
]
#: Longest campaign name that is its own key.
_KEY = 60


@dataclass(frozen=True)
class Request:
    """One evaluation that people are asked for.

    Attributes:
        id: "<key of the campaign>#<number>", the same for ever; ASCII, on one line, begins with a letter or a digit.
        campaign: its name.
        number: of the trial.
        x: parameter name -> physical value.
        fidelity: how to evaluate; "" where the problem declares none.
        events: how many Monte Carlo events; None where the campaign does not choose that.
        seed: for the evaluation's random numbers.
        state: "proposed", "approved", "submitted", "rejected", or the state of the trial.
        reason: what chose the point, and what was believed there.
        asked: when, in UTC (ISO 8601).
    """

    id: str
    campaign: str
    number: int
    x: Mapping[str, float]
    fidelity: str
    events: int | None
    seed: int
    state: str
    reason: str
    asked: str


@dataclass(frozen=True)
class Column:
    """A column of the table of requests.

    Attributes:
        header: what stands above it.
        role: what it holds.
        name: of the parameter or the task, "" for the others.
        unit: of its numbers.
    """

    header: str
    role: Role
    name: str = ""
    unit: str = ""


def key(campaign: str) -> str:
    """A campaign's name for ids and files: itself if it is plain, otherwise what is plain of it and a hash.

    >>> key("slepton scan"), key("../µ = 1")
    ('slepton scan', '1-da17a7f5')
    """
    if re.fullmatch(r"[A-Za-z0-9](?:[ ._-]?[A-Za-z0-9]+)*", campaign) and len(campaign) <= _KEY:
        return campaign
    plain = re.sub(r"[^A-Za-z0-9]+", "-", campaign).strip("-")[:_KEY].strip("-")
    return f"{plain or 'campaign'}-{hashlib.sha256(campaign.encode('utf-8', 'replace')).hexdigest()[:8]}"


def one_line(text: str) -> str:
    """Text without line breaks and what cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def standing(trial: Trial) -> str:
    """How far a request has come: what people decided about it, or the trial's state."""
    holds = {"queued": ("proposed", "approved"), "running": ("submitted",), "invalid": ("rejected",)}
    return trial.approval if trial.approval in holds.get(trial.state, ()) else trial.state


def request(campaign: str, problem: Problem, trial: Trial) -> Request:
    """The request for a trial of a campaign."""
    predicted = [
        f"P({task.name} >= {task.thresholds[0]:g}) = {trial.predicted[task.name]:.2g}"
        for task in problem.tasks
        if task.name in trial.predicted and task.thresholds
    ]
    return Request(
        f"{key(campaign)}#{trial.number}",
        campaign,
        trial.number,
        trial.x,
        trial.fidelity,
        trial.events,
        trial.seed,
        standing(trial),
        one_line("; ".join([trial.criterion, *predicted])),
        "" if trial.asked is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(trial.asked)),
    )


def columns(problem: Problem) -> list[Column]:
    """The columns of a table of requests: what is asked, then what is to be filled in.

    Parameters and tasks have the first choice of a header; that of another column gets an underscore if it is taken.
    """
    names = [p.name for p in problem.space.parameters] + [t.name for t in problem.tasks]
    taken = {one_line(name) for name in names}

    def own(role: Role) -> Column:
        header: str = role
        while header in taken:
            header += "_"
        taken.add(header)
        return Column(header, role)

    before: Sequence[Role] = ("request",)
    how: Sequence[Role] = ("fidelity", "events") if problem.fidelities else ()
    after: Sequence[Role] = (*how, "seed", "state", "reason", "asked")
    found = [own(role) for role in before]
    found += [Column(_with_unit(p.name, p.unit), "parameter", p.name, p.unit) for p in problem.space.parameters]
    found += [own(role) for role in after]
    for task in problem.tasks:
        found.append(Column(_with_unit(task.name, task.unit), "value", task.name, task.unit))
        for role, suffix in (("error", "_err"), ("bound", "_bound")):
            # Where a task is called like the error of another one, that other one has no column for it.
            if (header := one_line(task.name) + suffix) not in taken:
                taken.add(header)
                found.append(Column(header, role, task.name, task.unit if role == "error" else ""))  # type: ignore[arg-type]
    return [*found, own("status"), own("comment")]


def _with_unit(name: str, unit: str) -> str:
    return one_line(f"{name} [{unit}]" if unit else name)


def cell(column: Column, asked: Request) -> Any:
    """What stands in a column for a request; None in those that are to be filled in."""
    match column.role:
        case "request":
            return asked.id
        case "parameter":
            return asked.x[column.name]
        case "fidelity":
            return one_line(asked.fidelity)
        case "events":
            return asked.events
        case "seed":
            return asked.seed
        case "state":
            return asked.state
        case "reason":
            return asked.reason
        case "asked":
            return asked.asked
        case _:
            return None
