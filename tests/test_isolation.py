"""An evaluation in a process of its own, and what happens to it when things go wrong. Real processes, really killed."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from excursion.data import Job, Outcome
from excursion.errors import ImpossiblePoint, InvalidSpec, InvalidStrategy, MissingExtra
from excursion.evaluators import Evaluator
from excursion.evaluators.adapters import Imported
from excursion.evaluators.command import Command
from excursion.evaluators.python import Function
from excursion.isolation import Isolated, Log


def job(x=1.0, number=0, **more):
    return Job({"x": x}, number, **more)


def wait_until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.02)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_jobs_and_outcomes_come_through_whole():
    def function(p, seed, fidelity, events):
        return Outcome(
            values={"a": p["x"] / 3, "b": float("inf"), "c": None},
            variances={"a": 1e-300},
            bounds={"a": "below"},
            info={"seed": seed, "fidelity": fidelity, "events": events, "deep": [{"ü": None, "v": float("nan")}]},
        )

    with Isolated(Function(function)) as isolated:
        found = isolated.evaluate(job(0.1, 7, seed=2**62 + 1, fidelity="hadron", events=5))
    assert dict(found.values) == {"a": 0.1 / 3, "b": float("inf")}
    assert found.variances == {"a": 1e-300}
    assert found.bounds == {"a": "below", "b": "above"}
    assert found.missing == ("c",)
    assert (found.info["seed"], found.info["fidelity"], found.info["events"]) == (2**62 + 1, "hadron", 5)
    assert json.dumps(found.info["deep"]) == '[{"\\u00fc": null, "v": NaN}]'


def test_the_process_is_kept_and_quick():
    with Isolated(Function(lambda p: os.getpid())) as isolated:
        pids = {isolated.evaluate(job()).values["f"]}
        began = time.perf_counter()
        pids |= {isolated.evaluate(job(number=i)).values["f"] for i in range(200)}
        each = (time.perf_counter() - began) / 200
    assert len(pids) == 1
    assert pids != {float(os.getpid())}
    assert each < 3e-3, f"{1e3 * each:.2f} ms"


def test_a_failure_has_its_reason_traceback_and_output():
    def function(p):
        print("about to fail")
        if p["x"] > 1:
            raise ImpossiblePoint("kinematically closed")
        raise OSError("no such thing")

    with Isolated(Function(function)) as isolated:
        failed, impossible = isolated.evaluate(job(1.0)), isolated.evaluate(job(2.0))
    assert failed.state == "failed"
    assert "no such thing" in failed.error
    assert "OSError" in failed.info["traceback"]
    assert failed.info["output"] == "about to fail"
    assert impossible.state == "invalid"


def test_what_is_printed_goes_to_the_log_of_its_evaluation_alone(tmp_path):
    def function(p):
        print(f"python {p['x']}")
        ctypes.CDLL(None).puts(b"compiled code, buffered")
        os.write(2, b"file descriptor 2\n")
        subprocess.run(["sh", "-c", "echo a program"], check=True)
        return p["x"]

    with Isolated(Function(function)) as isolated:
        for x in (1.0, 2.0):
            isolated.evaluate(job(x), log=Log(tmp_path / f"{x}"))
    for x in (1.0, 2.0):
        lines = (tmp_path / f"{x}").read_text().splitlines()
        assert sorted(lines) == sorted([f"python {x}", "compiled code, buffered", "file descriptor 2", "a program"])


def test_nothing_printed_makes_no_file_and_a_log_that_cannot_be_written_disturbs_nothing(tmp_path):
    with Isolated(Function(lambda p: print("word") or 1.0)) as isolated:
        log = Log(tmp_path / "no folder" / "log.txt")
        assert isolated.evaluate(job(), log=log).values == {"f": 1.0}
        assert "No such file" in log.error
        full = Log("/dev/full")
        assert isolated.evaluate(job(), log=full).values == {"f": 1.0}
        assert "No space left" in full.error
    with Isolated(Function(lambda p: 1.0)) as isolated:
        isolated.evaluate(job(), log=Log(tmp_path / "log.txt"))
    assert not (tmp_path / "log.txt").exists()


def test_much_output_neither_blocks_nor_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("excursion.isolation.LOG_LIMIT", 3_000_000)

    def function(p):
        for _ in range(50):
            os.write(1, b"x" * 100_000)
        print("the end")
        raise ValueError

    log = Log(tmp_path / "log.txt")
    with Isolated(Function(function)) as isolated:
        found = isolated.evaluate(job(), log=log)
    assert found.info["output"].endswith("the end")
    assert (tmp_path / "log.txt").stat().st_size == 3_000_000
    assert log.error == "log: cut after 3 MB"


DEATHS = {
    "exit code 3": lambda: os._exit(3),
    "signal SIGKILL (killed, perhaps by the system for want of memory)": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "signal SIGSEGV (a crash in compiled code)": lambda: ctypes.string_at(0),
}


@pytest.mark.parametrize("reason", DEATHS)
def test_a_death_costs_its_own_evaluation_only(reason):
    die = DEATHS[reason]

    def function(p):
        if p["x"] < 0:
            print("last words", flush=True)
            die()
        return p["x"]

    with Isolated(Function(function)) as isolated:
        assert isolated.evaluate(job(1.0)).values == {"f": 1.0}
        dead = isolated.evaluate(job(-1.0))
        assert dead.state == "failed"
        assert f"got {reason} after" in dead.error
        assert "last words" in dead.info["output"]
        assert isolated.evaluate(job(2.0)).values == {"f": 2.0}


def test_a_death_between_two_evaluations_is_mended():
    with Isolated(Function(lambda p: os.getpid())) as isolated:
        pid = int(isolated.evaluate(job()).values["f"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(isolated._process.keeper.pid))
        found = isolated.evaluate(job())
        assert found.state == "complete"
        assert found.values["f"] != pid


FAMILY = """
    import os, subprocess, sys, time
    def start(p):
        # A program in a session of its own; one that ignores SIGTERM; a daemon, whose parent has gone.
        hard = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"]
        pids = [subprocess.Popen(w, start_new_session=True).pid for w in (["sleep", "300"], hard)]
        daemon = "import subprocess as s; print(s.Popen(['sleep', '300'], stdout=-3, start_new_session=True).pid)"
        pids += [int(subprocess.run([sys.executable, "-c", daemon], stdout=subprocess.PIPE).stdout)]
        path = os.environ["FAMILY"]
        with open(path + ".new", "w") as file:
            file.write(" ".join(map(str, [os.getpid(), *pids])))
        os.rename(path + ".new", path)
        time.sleep(p["x"])
        return 1.0
"""


@pytest.fixture
def family(tmp_path, monkeypatch):
    """An evaluator that starts programs of all kinds, and the file with the numbers of the processes."""
    (tmp_path / "family.py").write_text(textwrap.dedent(FAMILY))
    monkeypatch.setenv("FAMILY", str(tmp_path / "pids"))
    return Imported("family.py:start", str(tmp_path)), tmp_path / "pids"


def pids_in(path):
    wait_until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


def test_a_timeout_ends_all_that_was_started(family):
    evaluator, path = family
    with Isolated(evaluator) as isolated:
        began = time.monotonic()
        found = isolated.evaluate(job(300.0), timeout=1.5)
        assert 1.5 < time.monotonic() - began < 8
        assert "no end within 1.5 s" in found.error
        pids = pids_in(path)
        assert len(pids) == 4
        assert not any(map(alive, pids))
        assert isolated.evaluate(job(0.0), timeout=30).values == {"f": 1.0}


def test_an_evaluation_can_be_abandoned(family):
    evaluator, path = family
    with Isolated(evaluator) as isolated:
        assert isolated.evaluate(job(300.0), abandon=path.exists) is None
        assert not any(map(alive, pids_in(path)))
        path.unlink()
        assert isolated.evaluate(job(0.0)).values == {"f": 1.0}


def test_closing_ends_all_that_was_started(family):
    evaluator, path = family
    with Isolated(evaluator) as isolated:
        isolated.evaluate(job(0.0))
        assert all(map(alive, pids_in(path)))
    assert not any(map(alive, pids_in(path)))


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP the evaluation first"])
def test_kill_9_on_the_worker_ends_all_that_was_started(family, how, tmp_path):
    _, path = family
    code = (
        "import sys\nfrom excursion.isolation import Isolated\nfrom excursion.evaluators.adapters import Imported\n"
        "from excursion.data import Job\n"
        f"with Isolated(Imported('family.py:start', {str(tmp_path)!r})) as i: i.evaluate(Job({{'x': 300.0}}))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code])
    pids = pids_in(path)
    everybody = [p.pid for p in psutil.Process(worker.pid).children(recursive=True)]
    assert set(pids) < set(everybody), "the daemon, too, has stayed in the family"
    if how != "SIGKILL":
        os.kill(pids[0], signal.SIGSTOP)
    worker.kill()
    worker.wait()
    wait_until(lambda: not any(map(alive, everybody)))


def test_the_evaluation_ends_when_the_keeper_is_killed(family):
    evaluator, path = family
    with Isolated(evaluator) as isolated:
        killed = []

        def kill():
            if path.exists() and not killed:
                killed.append(psutil.Process(isolated._process.keeper.pid).kill())
            return False

        found = isolated.evaluate(job(300.0), abandon=kill)
        assert "its keeper killed" in found.error
        pids = pids_in(path)
        wait_until(lambda: not alive(pids[0]))
    for pid in pids[1:]:  # whom nobody keeps any more
        os.kill(pid, signal.SIGKILL)


def test_memory_is_that_of_all_processes_together():
    def function(p):
        hog = "import time; kept = bytearray(80_000_000); time.sleep(60)"
        if p["x"] > 0:
            started = [subprocess.Popen([sys.executable, "-c", hog]) for _ in range(int(p["x"]))]
            started[0].wait()
        return 1.0

    with Isolated(Function(function), memory=300_000_000) as isolated:
        assert isolated.evaluate(job(0.0), timeout=30).values == {"f": 1.0}
        found = isolated.evaluate(job(6.0), timeout=30)
        assert "GB of memory where 0.3 GB are allowed" in found.error
        assert "no end within 1" in isolated.evaluate(job(1.0), timeout=1.5).error  # alone it is small enough
    with pytest.raises(InvalidStrategy, match="memory limit: must be positive"):
        Isolated(Function(function), memory=0)


def test_sigterm_to_everybody_ends_the_evaluation_but_not_its_keeper(family):
    """A batch system's warning goes to each process; what ignores it must not be left."""
    evaluator, path = family
    with Isolated(evaluator) as isolated:
        isolated.prepare()
        keeper = psutil.Process(isolated._process.keeper.pid)
        told = []

        def warn():
            if path.exists() and not told:
                told.extend(p.terminate() for p in [keeper, *keeper.children(recursive=True)])
            return False

        assert "got signal SIGTERM after" in isolated.evaluate(job(300.0), abandon=warn).error
        assert len(told) == 5
        assert not any(map(alive, pids_in(path)))


def test_programs_that_need_all_of_the_api_work(tmp_path):
    command = Command("echo {x}", result="stdout", workdir=str(tmp_path), parameters=("x",))
    with Isolated(command) as isolated:
        found = isolated.evaluate(job(0.5, 12))
    assert found.values == {"f": 0.5}
    assert found.info["workdir"] == str(tmp_path / "00012-0")


def test_what_is_wrong_at_every_point_is_raised(tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\ndef f(p): return 1.0\n")
    bad = Imported("bad.py:f", str(tmp_path))
    with Isolated(bad) as isolated, pytest.raises(InvalidSpec, match="nothing_of_this_name"):
        isolated.prepare()

    class Needy(Evaluator):
        def evaluate(self, job):
            raise MissingExtra("limits: pyhf must be installed, got none. Install it")

    with Isolated(Needy()) as isolated, pytest.raises(MissingExtra, match="limits: pyhf"):
        isolated.evaluate(job())
    absent = Command("no-such-program {x}", workdir=str(tmp_path / "w"))
    with Isolated(absent) as isolated, pytest.raises(InvalidSpec, match="no-such-program"):
        isolated.evaluate(job())


def test_functions_of_the_callers_modules_are_found(tmp_path):
    """What can be imported here can be imported there, whatever made it so."""
    (tmp_path / "mine.py").write_text("def double(p): return 2 * p['x']\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import mine\nfrom excursion.isolation import Isolated\nfrom excursion.evaluators.python import Function\n"
        "from excursion.data import Job\n"
        "with Isolated(Function(mine.double)) as i: print(i.evaluate(Job({'x': 4.0})).values['f'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout == "8.0\n", done.stderr


def test_no_file_descriptor_or_process_is_left():
    def count():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    others = set(psutil.Process().children(recursive=True))  # pools of other tests
    with Isolated(Function(lambda p: os._exit(1))) as isolated:
        isolated.evaluate(job())
        before = count()
        for _ in range(5):
            isolated.evaluate(job())
        assert count() == before
    assert set(psutil.Process().children(recursive=True)) <= others
