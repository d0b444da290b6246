"""What is wrong or odd with a campaign, in sentences: a pure function of problem and history.

References:
    Fisher, J. R. Stat. Soc. 85 (1922) 87: the exact test of a two-by-two table.
    Gross and Vitells, Eur. Phys. J. C 70 (2010) 525: the look-elsewhere effect. All cuts tried count (Bonferroni).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from .belief import temperature
from .campaign import Campaign
from .data import INFORMATIVE, Trial
from .owners import is_dead
from .problem import Problem
from .space import Parameter
from .viability import by_point

#: Largest chance that a cluster of failures is luck, all cuts counted.
LUCK = 1e-4
#: A constraint is suggested where at least this part of the points fails.
MOSTLY = 0.75
#: Clusters are sought one after the other, so many.
CLUSTERS = 3
#: A trial is slow if it has run for this many times the median, and twice as long as any other.
SLOW = 10.0
#: A belief whose predictions fail needs standard deviations this much wider.
WIDE = 1.5
#: Kinds of failures that are listed, and trial numbers that a sentence lists.
ERRORS, LISTED = 5, 12


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or odd.

    Attributes:
        kind: "cluster", "chance", "error", "slow", "one-sided", "infinite", "missing" or "overconfident"; of the store
            "dead" or one of `Fault.kind`.
        text: a sentence for people.
        trials: numbers of the trials it is about.
        constraint: for a cluster: what might be declared.
        repaired: whether it is no more.
    """

    kind: str
    text: str
    trials: tuple[int, ...] = ()
    constraint: str | None = None
    repaired: bool = False


def examine(campaign: Campaign, now: float | None = None, *, repair: bool = False) -> list[Finding]:
    """What is wrong with a campaign and its store, the store first; `diagnose` for what is odd with the results.

    Args:
        campaign: which.
        now: see `diagnose`.
        repair: repair in the store what can be repaired (see `Store.check`), and queue again what dead processes of
            this machine were running.
    """
    store, name = campaign.store, campaign.name
    found = []
    for fault in store.check(name, repair=repair):
        done = f"; {'repaired' if repair else 'doctor --repair would'}: {fault.repair}" if fault.repair else ""
        found.append(Finding(fault.kind, fault.text + done, fault.trials, repaired=repair and bool(fault.repair)))
    if any(f.kind in ("row", "campaign") and not f.repaired for f in found):
        return found  # the history cannot be read
    if strangers := _strangers(campaign.problem, campaign.trials):
        return [*found, strangers]  # nor understood
    for owner in sorted({t.owner for t in campaign.trials if t.state == "running" and t.owner}):
        if is_dead(owner):
            lost = tuple(t.number for t in campaign.trials if t.state == "running" and t.owner == owner)
            if repair:
                store.release(name, owner=owner)
            text = f"trials {_listed(lost)} are run by {owner}, a process that does not exist any more; "
            text += "repaired: they are queued again" if repair else "a run, or doctor --repair, would queue them again"
            found.append(Finding("dead", text, lost, repaired=repair))
    return found + diagnose(campaign.problem, campaign.trials, now)


def _strangers(problem: Problem, trials: Sequence[Trial]) -> Finding | None:
    """Rows that are those of another problem: somebody else has written them."""
    names, tasks = set(problem.space.names), set(problem.task_names)
    odd = tuple(
        t.number
        for t in trials
        if set(t.x) != names or (t.outcome is not None and not {*t.outcome.values, *t.outcome.missing} <= tasks)
    )
    if not odd:
        return None
    text = f"trials {_listed(odd)} have other parameters or tasks than the campaign. Restore a backup"
    return Finding("row", text, odd)


def diagnose(problem: Problem, trials: Sequence[Trial], now: float | None = None) -> list[Finding]:
    """What is wrong or odd, the most important first.

    Args:
        problem: what is searched.
        trials: the history.
        now: seconds since the epoch, to find trials that run for too long; None: these are not sought.
    """
    return [
        *_clusters(problem, trials),
        *_chance(trials),
        *_errors(trials),
        *(_slow([t for t in trials if t.approval != "submitted"], now) if now is not None else []),
        *(_slow([t for t in trials if t.approval == "submitted"], now) if now is not None else []),  # people take days
        *_one_sided(problem, trials),
        *_values(problem, trials),
        *_overconfident(problem, trials),
    ]


# ----------------------------------------------------------------------------------------------------- failures


@dataclass(frozen=True)
class _Cut:
    """Points at which a quantity lies on one side of a value.

    Attributes:
        name: of the quantity, an expression.
        inside: mask of the points, (n,).
        last, first: the quantity of the last point inside and of the first outside.
        tail: the probability of as many failures inside by luck.
        below: whether inside is below.
    """

    name: str
    inside: np.ndarray
    last: float
    first: float
    tail: float
    below: bool

    @property
    def value(self) -> float:
        """The roundest number that separates inside from outside."""
        return _round_between(self.last, self.first)


def _clusters(problem: Problem, trials: Sequence[Trial]) -> list[Finding]:
    """Regions beyond a cut in which more points fail than by chance."""
    tried = [p for p in by_point(trials) if not all(t.pending for t in p.trials)]
    failed = np.array([not any(t.state in INFORMATIVE for t in p.trials) for p in tried], dtype=bool)
    x = np.array([[p.trials[0].x[n] for n in problem.space.names] for p in tried]).reshape(
        len(tried), problem.space.dim
    )
    quantities = _quantities(problem.space.parameters, x)
    found = []
    left = np.ones(len(tried), dtype=bool)
    for _ in range(CLUSTERS):
        cuts, count = _best_cuts({name: q[left] for name, q in quantities.items()}, failed[left])
        if not cuts or min(c.tail for c in cuts) * count >= LUCK:
            break
        # Of cuts that explain about as much the first: a parameter before a difference before a ratio.
        best = min(c.tail for c in cuts)
        cut = next(c for c in cuts if c.tail <= 10 * best)
        inside, bad = np.flatnonzero(left)[cut.inside], failed[left][cut.inside]
        numbers = tuple(t.number for i in inside[bad] for t in tried[i].trials if t.state in ("failed", "invalid"))
        elsewhere = failed[left][~cut.inside]
        sign, other = ("<", ">=") if cut.below else (">", "<=")
        where, declared = f"{cut.name} {sign} {cut.value:g}", f"{cut.name} {other} {cut.value:g}"
        advice = (
            f"Declare a constraint '{declared}'?"
            if bad.mean() >= MOSTLY
            else "Look at what these points have in common."
        )
        found.append(
            Finding(
                "cluster",
                f"{bad.sum()} of {len(bad)} points with {where} fail ({elsewhere.sum()} of {len(elsewhere)} elsewhere; "
                f"P by luck {min(1.0, cut.tail * count):.1g}): trials {_listed(numbers)}. {advice}",
                tuple(sorted(numbers)),
                declared if bad.mean() >= MOSTLY else None,
            )
        )
        left[inside] = False
    return found


def _quantities(parameters: Sequence[Parameter], x: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters, then differences, sums and ratios of two of the same unit: expression -> values (n,)."""
    columns = {p.name: x[:, i] for i, p in enumerate(parameters)}
    pairs = [(a, b) for a, b in itertools.combinations(parameters, 2) if a.unit == b.unit]
    found = dict(columns)
    found |= {f"{a.name} - {b.name}": columns[a.name] - columns[b.name] for a, b in pairs}
    found |= {f"{a.name} + {b.name}": columns[a.name] + columns[b.name] for a, b in pairs}
    found |= {f"{a.name} / {b.name}": columns[a.name] / columns[b.name] for a, b in pairs if b.lower > 0}
    return found


def _best_cuts(quantities: dict[str, np.ndarray], failed: np.ndarray) -> tuple[list[_Cut], int]:
    """The best cut of each quantity, and how many cuts were tried in all."""
    n, bad = len(failed), int(failed.sum())
    if not 0 < bad < n:
        return [], 0
    cuts, count = [], 0
    for name, values in quantities.items():
        order = np.argsort(values, kind="stable")
        sorted_, failures = values[order], failed[order].cumsum()
        ends = np.flatnonzero(np.diff(sorted_) > 1e-9 * np.ptp(sorted_))  # a cut after each of these positions
        if not len(ends):
            continue
        sizes = ends + 1
        below = hypergeom.sf(failures[ends] - 1, n, bad, sizes)
        above = hypergeom.sf(bad - failures[ends] - 1, n, bad, n - sizes)
        count += 2 * len(ends)
        low = below.min() <= above.min()
        end = int(ends[(below if low else above).argmin()])
        inside = np.zeros(n, dtype=bool)
        inside[order[: end + 1] if low else order[end + 1 :]] = True
        edge = (sorted_[end], sorted_[end + 1])
        last, first = edge if low else edge[::-1]
        cuts.append(_Cut(name, inside, float(last), float(first), float((below if low else above).min()), bool(low)))
    return cuts, count


def _round_between(last: float, first: float) -> float:
    """The number with the fewest digits between two, the second included."""
    low, high = sorted((last, first))
    for exponent in range(math.ceil(math.log10(max(abs(low), abs(high), high - low))), -320, -1):
        for digit in (10, 5, 2, 1):
            step = digit * 10.0**exponent
            candidate = (math.floor(high / step) if first > last else math.ceil(low / step)) * step
            candidate = float(f"{candidate:.12g}")
            if (last < candidate <= first) or (first <= candidate < last):
                return candidate
    return first


def _chance(trials: Sequence[Trial]) -> list[Finding]:
    """Failures that a second attempt mended."""
    again = [
        p
        for p in by_point(trials)
        if sum(t.state in ("failed", *INFORMATIVE) for t in p.trials) > 1 and any(t.state == "failed" for t in p.trials)
    ]
    mended = [p for p in again if any(t.state in INFORMATIVE for t in p.trials)]
    if not mended:
        return []
    numbers = tuple(t.number for p in mended for t in p.trials if t.state == "failed")
    return [
        Finding(
            "chance",
            f"{len(mended)} of {len(again)} points that failed and were tried again have values now. They failed by "
            f"chance: trials {_listed(numbers)}.",
            numbers,
        )
    ]


def _errors(trials: Sequence[Trial]) -> list[Finding]:
    """The most frequent reasons, numbers in them ignored."""
    reasons: dict[str, list[Trial]] = {}
    for t in trials:
        if t.outcome is not None and t.outcome.error is not None:
            reasons.setdefault(re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", t.outcome.error), []).append(t)
    counts = Counter({reason: len(own) for reason, own in reasons.items()})
    found = []
    for reason, count in counts.most_common(ERRORS):
        own = reasons[reason]
        numbers = tuple(t.number for t in own)
        first = own[0].outcome.error if own[0].outcome is not None else None
        text = " ".join((first or "").split())
        text = text if len(text) <= 160 else text[:157] + "..."
        tail = " and alike" if len({t.outcome.error for t in own if t.outcome is not None}) > 1 else ""
        trial = "trial ends" if count == 1 else "trials end"
        found.append(Finding("error", f"{count} {trial} with: {text}{tail} (trials {_listed(numbers)}).", numbers))
    return found


# ----------------------------------------------------------------------------------------------------- the rest


def _slow(trials: Sequence[Trial], now: float) -> list[Finding]:
    """Trials that run for far longer than others did; five must have ended."""
    ended = [t.finished - t.started for t in trials if t.started is not None and t.finished is not None]
    if len(ended) < 5:
        return []
    typical, longest = float(np.median(ended)), max(ended)
    found = []
    for t in trials:
        if t.state != "running" or t.started is None:
            continue
        seconds = now - t.started
        if seconds > max(SLOW * typical, 2 * longest, 1.0):
            found.append(
                Finding(
                    "slow",
                    f"trial {t.number} has run for {_duration(seconds)} ({t.owner or 'owner unknown'}); half of the "
                    f"others took less than {_duration(typical)}, none more than {_duration(longest)}. Is it alive?",
                    (t.number,),
                )
            )
    return found


def _one_sided(problem: Problem, trials: Sequence[Trial]) -> list[Finding]:
    """Thresholds without values on one side."""
    found = []
    for task in problem.tasks:
        known = [
            (t.outcome.values[task.name], t.outcome.bounds.get(task.name))
            for t in trials
            if t.outcome is not None and task.name in t.outcome.values
        ]
        if len(known) < 2:
            continue
        for threshold in task.thresholds:
            above = any(value >= threshold and bound != "below" for value, bound in known)
            below = any(
                (value < threshold and bound != "above") or (value <= threshold and bound == "below")
                for value, bound in known
            )
            if above and below:
                continue
            sides = " or ".join(s for s, seen in (("at or above", above), ("below", below)) if not seen)
            values = [value for value, _ in known]
            found.append(
                Finding(
                    "one-sided",
                    f"{task.name}: no value {sides} the threshold {threshold:g} among {len(known)}, which lie between "
                    f"{min(values):g} and {max(values):g}. Are unit, ranges and threshold as meant?",
                )
            )
    return found


def _values(problem: Problem, trials: Sequence[Trial]) -> list[Finding]:
    """Infinite and missing values."""
    found = []
    for task in problem.tasks:
        done = [t for t in trials if t.outcome is not None and t.state in INFORMATIVE]
        infinite = tuple(t.number for t in done if t.outcome and math.isinf(t.outcome.values.get(task.name, 0.0)))
        missing = tuple(t.number for t in done if t.outcome and task.name not in t.outcome.values)
        if infinite:
            text = f"{task.name}: {len(infinite)} of {len(done)} values are infinite (trials {_listed(infinite)}); "
            text += "they count as bounds, beyond all others."
            found.append(Finding("infinite", text, infinite))
        if missing:
            text = f"{task.name}: {len(missing)} of {len(done)} points have no value (trials {_listed(missing)})."
            found.append(Finding("missing", text, missing))
    return found


def _overconfident(problem: Problem, trials: Sequence[Trial]) -> list[Finding]:
    """Tasks whose predictions fail more often than they should."""
    found = []
    for task in problem.tasks:
        factor = temperature(task, trials) if task.thresholds else 1.0
        if factor >= WIDE:
            found.append(
                Finding(
                    "overconfident",
                    f"{task.name}: predictions fail more often than they say; standard deviations are widened by "
                    f"{factor:.2g}. Is the function noisy or does it jump? Tell variances, or evaluate more points.",
                )
            )
    return found


def _listed(numbers: Sequence[int]) -> str:
    listed = ", ".join(str(n) for n in sorted(numbers)[:LISTED])
    return listed if len(numbers) <= LISTED else f"{listed}, ..."


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
