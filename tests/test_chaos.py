"""Workers are killed, the database restarts, the disk for artifacts is full: every trial ends once, none is lost."""

import os
import random
import subprocess
import sys
import time
import uuid

import psutil
import pytest
from benchmarks.postgres import server

from excursion import Campaign, Parameter, ParameterSpace, Problem, Strategy, Task

TRIALS = 500
#: After so many deaths they live: where starting a worker takes all of the machine, it would go on for ever.
MOST = 40
EVALUATOR = """
import random, time

def f(p):
    print("x" * 3000)
    time.sleep(random.uniform(0.05, SLOWEST))
    return p["x"] + p["y"] ** 2
"""


class Workers:
    """Real commands, of which one is killed now and then."""

    def __init__(self, folder, store, number, *options):
        self.mark, self.folder, self.killed = uuid.uuid4().hex, folder, 0
        self.words = [sys.executable, "-m", "excursion.cli", "work", store, "chaos", "--lease", "4", *options]
        self.running = [self.start() for _ in range(number)]

    def start(self):
        with open(self.folder / "workers.log", "ab") as log:
            environment = {**os.environ, "CHAOS": self.mark}
            return subprocess.Popen(self.words, stdout=log, stderr=log, env=environment, start_new_session=True)

    def kill_one(self):
        victim = self.running.pop(random.randrange(len(self.running)))
        if victim.poll() is None:
            victim.kill()
            self.killed += 1
        victim.wait()
        self.running.append(self.start())

    def stop(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(60)

    def end(self):
        """Whatever has happened, leave nothing."""
        for process in self.family():
            process.kill()
        for process in self.running:
            process.wait(60)

    def family(self):
        """All processes that they and their evaluations are."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CHAOS") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own of 8 MB; None where we may not make one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def begin(store, folder, slowest):
    (folder / "chaos.py").write_text(EVALUATOR.replace("SLOWEST", str(slowest)))
    problem = Problem(ParameterSpace((Parameter("x", 0, 1), Parameter("y", 0, 1))), (Task("f", (0.5,)),))
    settings = {"kind": "python", "python": "chaos.py:f", "folder": str(folder)}
    extra = {"evaluator": settings, "run": {"budget": TRIALS, "batch": 25}}
    # A design as long as the campaign: asking is quick, and happens all the time.
    return Campaign.create(store, "chaos", problem, Strategy(design_size=TRIALS, retries=0), extra)


def storm(campaign, workers, happenings):
    """Kill one worker per second until all trials are finished; what was told stays as it was."""
    began, seen = time.monotonic(), {}
    due = sorted(happenings.items())
    while True:
        time.sleep(1.0)
        seconds = time.monotonic() - began
        assert seconds < 240, (campaign.store.counts("chaos"), (workers.folder / "workers.log").read_text()[-3000:])
        told = {t.number: t for t in campaign.store.trials("chaos", finished=True)}
        assert {n: told[n] for n in seen} == seen, "what was told has changed"
        seen = told
        if len(told) == TRIALS:
            return
        while due and len(told) >= due[0][0]:
            due.pop(0)[1]()
        if workers.killed < MOST:
            workers.kill_one()


def check(campaign, workers):
    trials = campaign.trials
    assert [t.number for t in trials] == list(range(TRIALS))
    assert sorted(t.told for t in trials) == list(range(TRIALS))
    assert {t.state for t in trials} <= {"complete", "failed"}
    for t in trials:
        if t.state == "complete":
            assert t.outcome.values == {"f": t.x["x"] + t.x["y"] ** 2}
        else:
            assert "died or was stopped 5 times" in t.outcome.error
    assert sum(t.state == "complete" for t in trials) > 0.98 * TRIALS
    # The log: a trial has one owner at a time, and ends once.
    owners = dict.fromkeys(range(TRIALS))
    ended, asked = set(), set()
    lost = 0
    for event in campaign.store.events("chaos"):
        n = event.number
        assert n not in ended, event
        match event.kind:
            case "ask":
                assert n not in asked, event
                asked.add(n)
            case "claim":
                assert owners[n] is None, event
                owners[n] = event.owner
            case "release" | "expire":
                assert owners[n] == event.owner, event
                owners[n] = None
                lost += 1
            case "tell":
                ended.add(n)
            case _:
                raise AssertionError(event)
    assert asked == ended == set(range(TRIALS))
    assert len({owner for owner in owners.values() if owner}) > len(workers.running)
    assert campaign.store.check("chaos") == []
    assert workers.killed >= 5
    assert lost > 0
    workers.stop()
    deadline = time.monotonic() + 20
    while left := workers.family():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_on_postgresql_survive_anything(tmp_path, small_disk, request):
    request.getfixturevalue("postgres_server")  # skips where there is none
    filler = small_disk and small_disk / "filler"

    def fill():
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 65536)
            except OSError:
                pass

    with server() as own:
        campaign = begin(own.url, tmp_path, 0.25)
        artifacts = ["--artifacts", str(small_disk / "kept")] if small_disk else []
        workers = Workers(tmp_path, own.url, 8, *artifacts)
        happenings = {100: lambda: own.restart("immediate")}
        if small_disk:
            happenings |= {200: fill, 300: lambda: os.remove(filler)}
        try:
            storm(campaign, workers, happenings)
            check(campaign, workers)
        finally:
            workers.end()
        if small_disk:
            notes = [t.outcome.info for t in campaign.trials if t.state == "complete"]
            full = [n for n, info in enumerate(notes) if "No space left" in info.get("artifacts_error", "")]
            kept = [n for n, info in enumerate(notes) if "artifacts" in info]
            assert full, "the disk was never full"
            assert len(kept) > TRIALS / 4
            assert max(kept) > max(full), "once there is space again, files are kept again"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_on_sqlite_survive_anything(tmp_path):
    store = str(tmp_path / "scan.db")
    campaign = begin(store, tmp_path, 0.1)
    workers = Workers(tmp_path, store, 4)
    try:
        storm(campaign, workers, {})
        check(campaign, workers)
    finally:
        workers.end()
