"""A campaign played against a known function: asked in rounds, told in any order, its error measured after each round.

All state is in a store and a file of lines, so that a run goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from excursion.belief import Belief
from excursion.campaign import Campaign
from excursion.data import Outcome, Trial
from excursion.problem import Problem
from excursion.proposal import Strategy


@dataclass(frozen=True)
class Game:
    """What is played.

    Attributes:
        name: unique in the folder.
        problem, strategy: of the campaign.
        evaluate: what the function answers.
        above: points (n, d) of the unit cube where errors are counted -> whether each task's value is at or above its
            threshold there, (n, t).
        batch: points of a round.
        until: evaluations of the dearest fidelity (or their worth) in all.
        table: rows known before, and their fidelity.
    """

    name: str
    problem: Problem
    strategy: Strategy
    evaluate: Callable[[Trial], Outcome]
    points: torch.Tensor
    above: np.ndarray
    batch: int
    until: float
    table: tuple[Sequence[Mapping[str, Any]], str] | None = None


def errors(belief: Belief, points: torch.Tensor, above: np.ndarray) -> dict[str, float]:
    """Task -> fraction of the points that the mean of the belief puts on the wrong side."""
    with torch.no_grad():
        mean = torch.cat([belief.posterior.marginal(part)[0] for part in points.split(4096)], dim=1)
    tasks = belief.problem.tasks
    return {t.name: float(((mean[i] >= t.levels[0]).numpy() != above[:, i]).mean()) for i, t in enumerate(tasks)}


def play(game: Game, out: Path, minutes: float = 60.0) -> list[dict[str, Any]]:
    """Play, or go on, until the budget is spent or the time is over; one line per round, also in a file.

    A line has the number of trials and of dear ones, what was spent (`Problem.spent`), the seconds of the ask and of
    the belief, and the errors.
    """
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    store, record = out / f"{game.name}.db", out / f"{game.name}.jsonl"
    if store.exists():
        campaign = Campaign.open(store, game.name)
    else:
        campaign = Campaign.create(store, game.name, game.problem, game.strategy)
    if game.table and not campaign.trials:
        campaign.warm_start(game.table[0], fidelity=game.table[1])
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    asked = 0.0
    while True:
        pending = [t for t in campaign.trials if t.pending]
        order = np.random.default_rng(len(campaign.trials)).permutation(len(pending))
        for i in order:
            campaign.tell(pending[i].number, game.evaluate(pending[i]))
        trials = campaign.trials
        known = game.problem.valued(trials)
        if len(known) >= 2 and (not lines or lines[-1]["trials"] < len(trials)):
            began = time.perf_counter()
            belief = campaign.belief()
            lines.append(
                {
                    "trials": len(trials),
                    "dear": sum(game.problem.level(t.fidelity) == 0 and t.criterion != "table" for t in trials),
                    "spent": round(game.problem.spent(trials), 4),
                    "ask_seconds": round(asked, 2),
                    "belief_seconds": round(time.perf_counter() - began, 2),
                    "errors": {t: round(e, 6) for t, e in errors(belief, game.points, game.above).items()},
                }
            )
            with record.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(game.name, json.dumps(lines[-1]), flush=True)
        if game.problem.spent(trials) > game.until - 1e-9:
            return lines
        if time.monotonic() > deadline:
            print(f"{game.name}: the time is over, {lines[-1:]}; run it again to go on", flush=True)
            return lines
        began = time.perf_counter()
        asking = campaign.ask(game.batch, limit=int(game.until))
        asked = time.perf_counter() - began
        if not asking:
            return lines


def needed(lines: Sequence[Mapping[str, Any]], goal: float, tasks: Sequence[str], what: str = "dear") -> float:
    """How many (dear) evaluations until the mean error of the tasks stays at or below the goal; infinite if never."""
    reached = float("inf")
    for line in lines:
        if np.mean([line["errors"][t] for t in tasks]) > goal:
            reached = float("inf")
        elif reached == float("inf"):
            reached = line[what]
    return reached
