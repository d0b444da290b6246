"""Hand-over to people: requests in files that a production team fills in, approvals, and the results that come back.

A request is a trial: "proposed" where a person has to approve it, "approved", "submitted" (a team works on it), and
then told, or rejected with a reason. The store's log says who did what, when.
"""

from __future__ import annotations

import getpass
import re
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from ..campaign import Campaign
from ..data import Trial
from ..errors import InvalidPoint, InvalidTable, StoreError, TrialFinished
from ..store import Event
from ..untrusted import read_text
from .reading import Refusal
from .request import Request, key, one_line, request, standing
from .results import Import, import_results
from .writing import FORMATS, Format, check_free, files, save

__all__ = [
    "FORMATS",
    "Import",
    "Refusal",
    "Request",
    "Wanted",
    "approve",
    "export_requests",
    "import_results",
    "numbers",
    "person",
    "reject",
    "request",
    "requests",
    "requests_lines",
    "withdraw",
]

#: Which requests: "open" are those that nobody works on; "all" adds those that are submitted.
Wanted = Literal["open", "proposed", "approved", "submitted", "all"]


def person() -> str:
    """Who sits here, "user@host"."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def needs_approval(campaign: Campaign) -> bool:
    """Whether people have to approve what this campaign asks for (`run: {approval: true}`)."""
    return bool((campaign.extra.get("run") or {}).get("approval"))


def _wanted(campaign: Campaign, wanted: Wanted) -> list[Trial]:
    """Requests that people can work on: what a worker has is none."""
    pending = [t for t in campaign.trials if t.pending and (t.state == "queued" or t.approval == "submitted")]
    match wanted:
        case "all":
            return pending
        case "open":
            return [t for t in pending if t.approval != "submitted"]
        case _:
            return [t for t in pending if t.approval == wanted]


def export_requests(
    campaign: Campaign,
    how: Format,
    out: Path,
    *,
    n: int = 0,
    wanted: Wanted = "open",
    submit: bool = False,
    template: Path | None = None,
    entries: Sequence[str] = (),
    who: str | None = None,
) -> tuple[list[Request], list[Path]]:
    """Write requests for the people who evaluate them.

    Args:
        campaign: that asks.
        how: the format of the files.
        out: a file or a folder; see `writing.files`.
        n: ask for so many new points first; they are proposed.
        wanted: which requests.
        submit: note that a team has them: nobody else evaluates them then. Where the campaign needs approval, only
            what is approved is submitted.
        template, entries: for SLHA, see `writing.to_slha`.
        who: has them; this person by default.

    Returns:
        The requests and the files.

    Raises:
        InvalidPoint: there is nothing to write.
        InvalidTable: a template or entries that make no sense.
        StoreError: a file is there already, or cannot be written.
    """
    if how not in FORMATS:
        raise InvalidTable(f"export: the format must be one of {', '.join(FORMATS)}, got {how!r}")
    if how != "slha" and (template is not None or entries):
        raise InvalidTable(f"export: a template is for the format slha, got {how!r}. Leave it out")
    if submit and needs_approval(campaign):
        if n or wanted not in ("open", "approved"):
            raise InvalidPoint(
                f"campaign {campaign.name!r}: needs approval before anything is submitted, got new or unapproved "
                "points. Run excursion approve first"
            )
        wanted = "approved"
    text = None if template is None else read_text(template, InvalidTable)
    problem, name = campaign.problem, campaign.name
    # Before anything happens: is there a place, is openpyxl there, is the template understood?
    example = request(name, problem, Trial(0, dict.fromkeys(problem.space.names, 1.0), 0, 0))
    trial_run = files(problem, name, [example], how, out, text, entries)
    if how != "slha":
        check_free(list(trial_run))
    if n:
        campaign.ask(n, approval="proposed")
    trials = _wanted(campaign, wanted)
    if not trials:
        what = "" if wanted in ("open", "all") else f" that is {wanted}"
        raise InvalidPoint(f"campaign {name!r}: there must be a request{what} to export, got none. Ask with -n")

    def written() -> dict[Path, bytes]:
        return files(problem, name, [request(name, problem, t) for t in trials], how, out, text, entries)

    content = written()
    check_free(content if how == "slha" else list(content))
    if submit:
        owner = who or person()
        trials = [t for given in trials if (t := _submitted(campaign, given, owner)) is not None]
        content = written()
    try:
        save(content)
    except StoreError as error:
        if not submit:
            raise
        raise StoreError(f"{error}. They are noted as submitted: export them with --state submitted") from error
    return [request(name, problem, t) for t in trials], list(content)


def _submitted(campaign: Campaign, trial: Trial, owner: str) -> Trial | None:
    """The trial, with its new owner; None if somebody else has it since a moment ago."""
    try:
        return campaign.store.review(campaign.name, trial.number, "submitted", owner=owner)
    except StoreError:
        now = campaign.trials[trial.number]
        if now.state == "queued" or now.approval == "submitted":
            raise
        return None


# ---------------------------------------------------------------------------------------------------- approvals


def numbers(campaign: Campaign, words: Iterable[str]) -> list[int]:
    """The numbers that people write: "3", "5-9", "1,4", "scan#17".

    Raises:
        InvalidPoint: something else, or a request of another campaign.
    """
    found: dict[int, None] = {}
    for word in [part for text in words for part in text.split(",") if part.strip()]:
        name, hash_, digits = word.strip().rpartition("#")
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", digits)
        if match is None or (hash_ and name and name != key(campaign.name)):
            raise InvalidPoint(
                f"campaign {campaign.name!r}: requests are given by numbers (3 5-9) or ids ({key(campaign.name)}#3), "
                f"got {word!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 100_000:
            raise InvalidPoint(f"campaign {campaign.name!r}: a range goes up, got {word!r}. Write first-last")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def approve(campaign: Campaign, which: Sequence[int] | None = None, who: str | None = None) -> list[Trial]:
    """Let workers evaluate what is proposed.

    Args:
        campaign: that asks.
        which: numbers; None: all that are proposed.
        who: approves; this person by default.

    Returns:
        The trials that are approved now.

    Raises:
        UnknownTrial, TrialFinished, StoreError: one cannot be approved; those before it are.
    """
    if which is None:
        which = [t.number for t in campaign.trials if t.pending and t.approval == "proposed"]
    owner = who or person()
    return [campaign.store.review(campaign.name, number, "approved", owner=owner) for number in which]


def reject(campaign: Campaign, which: Sequence[int], reason: str, who: str | None = None) -> list[Trial]:
    """Refuse requests for good: they will not be evaluated, and the campaign learns that its points are not possible.

    Args:
        campaign: that asks.
        which: numbers.
        reason: why; it is kept.
        who: rejects; this person by default.

    Raises:
        UnknownTrial, TrialFinished, StoreError: one cannot be rejected (or no reason is given); those before it are.
    """
    owner = who or person()
    found = []
    for number in which:
        try:
            found.append(campaign.store.review(campaign.name, number, "rejected", note=reason, owner=owner))
        except TrialFinished:
            # Rejected before: nothing more to do.
            if campaign.trials[number].approval != "rejected":
                raise
    return found


def withdraw(campaign: Campaign, which: Sequence[int]) -> list[Trial]:
    """Take requests back from the people who have them: they are approved, and workers may evaluate them.

    Args:
        campaign: that asked.
        which: numbers.

    Raises:
        UnknownTrial: there is no trial of this number.
        StoreError: one is not with people; nothing is taken back.
    """
    trials = campaign.trials
    for number in which:
        if number < len(trials) and standing(trials[number]) != "submitted":
            raise StoreError(
                f"request {key(campaign.name)}#{number}: only what is submitted can be withdrawn, got one that is "
                f"{standing(trials[number])}. See excursion requests"
            )
    return [t for number in which for t in campaign.store.release(campaign.name, number=number)]


# -------------------------------------------------------------------------------------------------------- table


def requests(campaign: Campaign, pending: bool = False) -> list[dict[str, Any]]:
    """All requests with their states, and who did what when, from the log.

    Args:
        campaign: that asked.
        pending: only those that are not finished.
    """
    trials = campaign.trials
    said: dict[int, list[Event]] = {}
    for event in campaign.store.events(campaign.name):
        said.setdefault(event.number, []).append(event)
    found = []
    for t in trials:
        if pending and not t.pending:
            continue
        asked = request(campaign.name, campaign.problem, t)
        found.append(
            {
                "request": asked.id,
                "number": t.number,
                "state": standing(t),
                "parameters": dict(t.x),
                **({"fidelity": t.fidelity} if t.fidelity else {}),
                **({"events": t.events} if t.events else {}),
                "reason": asked.reason,
                "error": t.outcome.error if t.outcome is not None else None,
                "log": [
                    {
                        "kind": e.kind,
                        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(e.time)),
                        "by": e.owner or f"{e.host}:{e.pid}",
                        **({"note": e.note} if e.note else {}),
                    }
                    for e in said.get(t.number, ())
                ],
            }
        )
    return found


def requests_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """The same for people: one line each, with the last thing that happened."""
    if not found:
        return ["no requests"]
    lines = []
    wide = max(len(r["request"]) for r in found)
    for r in found:
        point = " ".join(f"{name}={value:.6g}" for name, value in r["parameters"].items())
        how = " ".join(f"{k}={r[k]}" for k in ("fidelity", "events") if k in r)
        last = r["log"][-1] if r["log"] else None
        when = f"{last['kind']} {last['time']} by {last['by']}" if last else ""
        why = f": {' '.join(str(r['error']).split())[:100]}" if r["error"] else ""
        lines.append(
            "  ".join(part for part in (f"{r['request']:<{wide}}", f"{r['state']:<9}", point, how, when) if part)
        )
        lines[-1] += why
    return [line if line.isprintable() else one_line(line) for line in lines]
