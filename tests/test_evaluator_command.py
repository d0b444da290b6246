from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from excursion.data import Job
from excursion.errors import EvaluationError, ImpossiblePoint, InvalidSpec
from excursion.evaluators.command import Command

PYTHON = shlex.quote(sys.executable)
JOB = Job({"m": 0.1 + 0.2, "chi 1": -5.0}, number=7, seed=2**62)


@pytest.fixture
def program(tmp_path):
    """Writes a Python script and returns the command line that runs it."""

    def write(text: str) -> str:
        path = tmp_path / "a program.py"
        path.write_text(text)
        return f"{PYTHON} '{path}'"

    return write


@pytest.fixture
def command(tmp_path, program):
    def build(text: str, arguments: str = "{m}", **fields) -> Command:
        return Command(f"{program(text)} {arguments}", workdir=str(tmp_path / "work"), **fields)

    return build


WRITE = "import sys; open('result.json', 'w').write(sys.argv[1])"


# --- the command line


def test_placeholders_become_single_exact_words(command, tmp_path):
    evaluator = command(
        "import sys, json; json.dump({'values': {'f': 1}, 'info': {'argv': sys.argv[1:]}}, open('result.json', 'w'))",
        "{m} --m={m:.3f} '{chi 1:+.0f}' "
        "'{chi 1}' \"a b; rm -rf $HOME\" '{{x}}' {seed} {number:03d} {workdir}/y {folder}",
        folder=str(tmp_path),
    )
    info = evaluator.evaluate(JOB).info
    directory = tmp_path / "work" / "00007-0"
    assert info["argv"] == [
        "0.30000000000000004",
        "--m=0.300",
        "-5",
        "-5.0",
        "a b; rm -rf $HOME",
        "{x}",
        str(2**62),
        "007",
        f"{directory}/y",
        str(tmp_path),
    ]
    assert info["workdir"] == str(directory)
    assert 0 < info["seconds"] < 60


@pytest.mark.parametrize("value", [1e-300, 1e22, 123456789.123456789, -0.0, math.pi])
def test_numbers_arrive_exactly(command, value):
    evaluator = command("import sys, json; json.dump(float(sys.argv[1]), open('result.json', 'w'))")
    assert evaluator.evaluate(Job({"m": value})).values == {"f": value}


def test_numpy_values_are_written_as_numbers(command):
    numpy = pytest.importorskip("numpy")
    assert command(WRITE).evaluate(Job({"m": numpy.float64(0.5)})).values == {"f": 0.5}


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "run {mm}",
            r"parameters \(chi, m\) or one of workdir, folder, seed, number, fidelity, events, got \{mm\} in '\{mm\}'",
        ),
        ("run {m} {}", r"got \{\} in '\{\}'"),
        ("run {m.__class__}", r"got \{m\.__class__\}"),
        ("run {m[0]}", r"got \{m\[0\]\}"),
        ("run {m!r}", "placeholders must be {name} or {name:format}, got '{m!r}'"),
        ("run {m:{seed}}", "placeholders must be {name} or {name:format}"),
        ("run {m", "placeholders must be .*got '{m' .*Double the braces"),
        ("run m}", "placeholders must be .*Double the braces"),
        ("run {m:d}", r"formats must fit the value, got \{m:d\} for 0\.5.*Use \{name:\.0f\}"),
        ("run '{m}", r"must be words as in a shell.*Close the quotes"),
        ("  ", "must name a program, got '  '"),
    ],
)
def test_templates_are_checked_before_anything_runs(template, says, tmp_path):
    with pytest.raises(InvalidSpec, match=says):
        Command(template, parameters=("m", "chi"), workdir=str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_a_template_is_checked_at_the_first_point_if_names_are_not_given(tmp_path):
    evaluator = Command("run {mm}", workdir=str(tmp_path / "work"))
    with pytest.raises(InvalidSpec, match=r"placeholders must be parameters \(chi 1, m\)"):
        evaluator.evaluate(JOB)
    assert not (tmp_path / "work").exists()
    with pytest.raises(InvalidSpec, match="must use the point, got no placeholder in 'run it'"):
        Command("run it")


def test_parameters_with_our_names_are_refused():
    with pytest.raises(InvalidSpec, match=r"must not be called workdir, .* got \['seed'\]\. Rename"):
        Command("run {seed}", parameters=("seed", "m"))


@pytest.mark.parametrize("result", ["/etc/passwd", "../result.json", "a/../../b", "", "."])
def test_results_outside_are_refused(result):
    with pytest.raises(InvalidSpec, match=r"result must be a file in the evaluation's own directory"):
        Command("run {m}", result=result)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"timeout": 0}, "timeout must be positive, got 0"),
        ({"timeout": math.nan}, "timeout must be positive, got nan"),
        ({"impossible_exit_codes": (3, 0)}, "must not be 0"),
        ({"environment": {"OMP_NUM_THREADS": 1}}, "must be text, got 'OMP_NUM_THREADS'=1"),
    ],
)
def test_settings_out_of_range(fields, says):
    with pytest.raises(InvalidSpec, match=says):
        Command("run {m}", **fields)


# --- results


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1.5", {"f": 1.5}),
        ("2", {"f": 2.0}),
        (" .5\n", {"f": 0.5}),
        ("inf", {"f": math.inf}),
        ("-Infinity", {"f": -math.inf}),
        ('{"obs": 1, "exp μ": 0.1}', {"obs": 1.0, "exp μ": 0.1}),
        ('{"values": 3.0}', {"values": 3.0}),
    ],
)
def test_numbers_and_objects_are_values(command, text, values):
    evaluator = command(f"open('result.json', 'w', encoding='utf-8').write({text!r})")
    outcome = evaluator.evaluate(JOB)
    assert outcome.values == values
    assert outcome.variances == {}


def test_values_come_with_variances_bounds_and_info(command):
    found = {"values": {"a": 1.0, "b": 2.0}, "variances": {"a": 0.25}, "bounds": {"b": "above"}, "info": {"n": [1]}}
    evaluator = command(
        f"import os; os.mkdir('out'); open('out/y.json', 'w').write({json.dumps(found)!r})", result="out/y.json"
    )
    outcome = evaluator.evaluate(JOB)
    assert (outcome.values, outcome.variances, outcome.bounds) == ({"a": 1.0, "b": 2.0}, {"a": 0.25}, {"b": "above"})
    assert outcome.state == "censored"
    assert outcome.info["n"] == [1]


def test_the_last_line_of_stdout(command):
    evaluator = command(
        "import sys; print('1.0'); print('warning', file=sys.stderr); print('{\"obs\": 2.5}'); print()",
        result="stdout",
    )
    outcome = evaluator.evaluate(JOB)
    assert outcome.values == {"obs": 2.5}
    log = (Path(outcome.info["workdir"]) / "log.txt").read_text()
    assert log == 'warning\n1.0\n{"obs": 2.5}\n\n'


def test_a_bare_number_belongs_to_the_task(command):
    assert command("print(4)", result="stdout", task="mu_95").evaluate(JOB).values == {"mu_95": 4.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be JSON, got ''"),
        ("hello", "must be JSON, got 'hello'"),
        ('{"a": 1', "must be JSON"),
        ("null", "must be a number or an object, got None"),
        ("true", "must be a number or an object, got True"),
        ("[1.0]", r"must be a number or an object, got \[1\.0\]"),
        ("{}", r"must be a number or an object, got \{\}"),
        ('{"a": "1"}', "each task must have a number, got {'a': '1'}"),
        ('{"a": true}', "each task must have a number"),
        ('{"values": {"a": 1}, "variances": {"a": null}}', "each task must have a number"),
        (
            '{"values": {"a": 1}, "variance": {"a": 1}}',
            r"may hold \['bounds', 'info', 'variances'\], got \['variance'\]",
        ),
        ('{"values": {"a": 1}, "info": 3}', "must be objects"),
        ('{"values": {}}', "makes no sense: outcome: needs either values or an error"),
        ("NaN", "makes no sense: outcome of task 'f': the value must not be NaN"),
        ('{"values": {"a": 1}, "variances": {"a": -1}}', "makes no sense.*variance must be finite, not negative"),
        ('{"values": {"a": 1}, "bounds": {"a": "up"}}', "makes no sense.*'above' or 'below'"),
        ("1" * 400, "makes no sense"),
    ],
)
def test_results_that_make_no_sense_name_the_file(command, tmp_path, text, says):
    with pytest.raises(EvaluationError, match=says) as caught:
        command(f"open('result.json', 'w').write({text!r})").evaluate(JOB)
    assert f"{tmp_path}/work/00007-0/result.json" in str(caught.value)
    assert str(caught.value).startswith("command at trial 7: ")
    assert not isinstance(caught.value, ImpossiblePoint)


def test_a_missing_result_names_the_path_and_the_log(command):
    with pytest.raises(EvaluationError, match=r"result to .*00007-0/result\.json, got no such file.*ends with:\ndone$"):
        command("print('done')").evaluate(JOB)
    with pytest.raises(EvaluationError, match=r"got something that is no file\. See .*log\.txt, which is empty"):
        command("import os; os.mkdir('result.json')").evaluate(JOB)
    with pytest.raises(EvaluationError, match=r"got no such file\. There is no log"):
        command("import os; os.remove('log.txt')").evaluate(JOB)


def test_a_result_that_is_not_text(command):
    with pytest.raises(EvaluationError, match=r"result\.json must be readable text, got .*utf-8"):
        command(r"open('result.json', 'wb').write(b'\xff\xfe')").evaluate(JOB)


def test_a_link_out_of_the_directory_is_not_followed(command, tmp_path):
    (tmp_path / "secret.json").write_text("1.0")
    with pytest.raises(EvaluationError, match=r"got a link from .*result\.json to .*secret\.json"):
        command("import os; os.symlink('../../secret.json', 'result.json')").evaluate(JOB)
    inside = command("import os; open('a.json', 'w').write('2'); os.symlink('a.json', 'result.json')")
    assert inside.evaluate(JOB).values == {"f": 2.0}


# --- failures


def test_another_exit_code_is_a_failure_with_the_end_of_the_log(command, tmp_path):
    script = (
        "import sys\nfor i in range(2000): print('line', i, flush=True)\n"
        "print('bad thing', file=sys.stderr)\nopen('result.json', 'w').write('1')\nsys.exit(3)"
    )
    with pytest.raises(EvaluationError, match=r"must end with exit code 0, got exit code 3 after \d+\.\d s") as caught:
        command(script).evaluate(JOB)
    message = str(caught.value)
    assert not isinstance(caught.value, ImpossiblePoint)
    assert message.endswith("line 1998\nline 1999\nbad thing")
    assert message.count("\n") == 10
    assert f"See {tmp_path}/work/00007-0/log.txt" in message
    assert (tmp_path / "work/00007-0/log.txt").read_text().startswith("line 0\nline 1\n")
    with pytest.raises(ImpossiblePoint, match="got exit code 3"):
        command(script, impossible_exit_codes=[2, 3]).evaluate(JOB)


def test_a_signal_is_named(command):
    with pytest.raises(EvaluationError, match="got signal SIGSEGV"):
        command("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").evaluate(JOB)


def test_a_log_without_lines_does_not_flood_the_message(command):
    with pytest.raises(EvaluationError, match=r"exit code 1.*ends with:\nx{4096}$"):
        command("print('x' * 10**6, end=''); raise SystemExit(1)").evaluate(JOB)


def test_the_log_of_stdout_is_kept_on_failure(command):
    with pytest.raises(EvaluationError, match=r"exit code 1.*\nout$"):
        command("print('out'); raise SystemExit(1)", result="stdout").evaluate(JOB)


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(InvalidSpec, match=r"must be there and executable, got 'no-such-program-x'.*first word"):
        Command("no-such-program-x {m}", workdir=str(tmp_path)).evaluate(JOB)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InvalidSpec, match=r"must be there and executable, got .*text.*Permission denied"):
        Command("./text {m}", folder=str(tmp_path)).evaluate(JOB)


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "work").write_text("a file")
    with pytest.raises(EvaluationError, match=r"its directory .*work/00007-0 must be made, got .*Choose a workdir"):
        Command("true {m}", workdir=str(tmp_path / "work")).evaluate(JOB)


# --- directories, environment, processes


def _evaluate(evaluator, job):
    return evaluator.evaluate(job)


def test_no_directory_is_used_twice(command, tmp_path):
    evaluator = command(
        "import os; assert os.listdir() == ['log.txt']; open('result.json', 'w').write(str(os.getpid()))"
    )
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_evaluate, evaluator, Job({"m": 1.0}, number=12)) for _ in range(8)]
        outcomes = [future.result() for future in futures]
    assert sorted(os.listdir(tmp_path / "work")) == [f"00012-{i}" for i in range(8)]
    for outcome in outcomes:
        written = json.loads((Path(outcome.info["workdir"]) / "result.json").read_text())
        assert outcome.values == {"f": written}


def test_paths_are_those_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    script = tmp_path / "here" / "run.sh"
    script.write_text("#!/bin/sh\npwd > pwd.txt\ncat ../../data.txt > result.json\n")
    script.chmod(0o755)
    (tmp_path / "here" / "data.txt").write_text("6.5")
    monkeypatch.chdir(tmp_path / "here")
    evaluator = Command("./run.sh {m}")
    monkeypatch.chdir(tmp_path)
    outcome = pickle.loads(pickle.dumps(evaluator)).evaluate(JOB)
    assert outcome.values == {"f": 6.5}
    directory = tmp_path / "here" / "work" / "00007-0"
    assert (directory / "pwd.txt").read_text().strip() == str(directory)
    assert Command("./run.sh {m}", folder=str(tmp_path / "here")) == evaluator


def test_the_environment_is_passed_on(command, monkeypatch):
    monkeypatch.setenv("OURS", "1")
    monkeypatch.setenv("BOTH", "old")
    evaluator = command(
        "import os; print(os.environ['OURS'] + os.environ['BOTH'] + os.environ['NEW'])",
        result="stdout",
        environment={"BOTH": "2", "NEW": "3"},
    )
    assert evaluator.evaluate(JOB).values == {"f": 123.0}
    assert "NEW" not in os.environ


def test_the_program_does_not_wait_for_the_keyboard(command):
    # A standard input that stays open and silent, as a terminal does.
    kept, (reader, writer) = os.dup(0), os.pipe()
    os.dup2(reader, 0)
    try:
        evaluator = command("import sys; print(len(sys.stdin.read()))", result="stdout", timeout=20)
        assert evaluator.evaluate(JOB).values == {"f": 0.0}
    finally:
        os.dup2(kept, 0)
        for fd in (kept, reader, writer):
            os.close(fd)


# Ignores the polite signal, and so does its own child; both write down who they are.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("before", flush=True)
with open("pids.tmp", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
time.sleep(600)
"""


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("result", ["result.json", "stdout"])
def test_a_timeout_kills_the_grandchildren_too(command, tmp_path, result):
    evaluator = command(STUBBORN, timeout=1.5, result=result)
    start = time.monotonic()
    with pytest.raises(EvaluationError, match=r"must end within 1\.5 s, got no end and killed it\..*\nbefore$"):
        evaluator.evaluate(JOB)
    assert 1.5 <= time.monotonic() - start < 10
    pids = [int(pid) for pid in (tmp_path / "work/00007-0/pids").read_text().split()]
    assert len(pids) == 2
    assert all(_wait_until(lambda pid=pid: _gone(pid)) for pid in pids)


def test_a_program_may_clean_up_at_the_timeout(command, tmp_path):
    evaluator = command(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('cleaned', 'w').close(), sys.exit(0)))\n"
        "time.sleep(600)",
        timeout=1.0,
    )
    with pytest.raises(EvaluationError, match="must end within 1 s"):
        evaluator.evaluate(JOB)
    assert (tmp_path / "work/00007-0/cleaned").exists()


def test_a_quick_program_is_not_touched_by_the_timeout(command):
    assert command(WRITE, timeout=60).evaluate(JOB).values == {"f": 0.1 + 0.2}


def test_an_interrupt_kills_the_program(command, tmp_path):
    evaluator = command(STUBBORN)
    (tmp_path / "evaluator.pickle").write_bytes(pickle.dumps(evaluator))
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pickle, sys; from excursion.data import Job\n"
            "evaluator = pickle.load(open(sys.argv[1], 'rb'))\n"
            "try: evaluator.evaluate(Job({'m': 1.0}, number=7))\n"
            "except KeyboardInterrupt: sys.exit(42)",
            str(tmp_path / "evaluator.pickle"),
        ]
    )
    pids_file = tmp_path / "work/00007-0/pids"
    assert _wait_until(pids_file.exists, 30)
    caller.send_signal(signal.SIGINT)
    assert caller.wait(timeout=30) == 42
    assert all(_wait_until(lambda pid=pid: _gone(pid)) for pid in map(int, pids_file.read_text().split()))


# --- fidelity and events


def test_fidelity_and_events_reach_the_program(command):
    text = "import sys, json; print(json.dumps({'values': {'f': 1, 'g': None}, 'info': {'argv': sys.argv[1:]}}))"
    evaluator = command(text, "{m} {fidelity} --n={events}", result="stdout", parameters=("m",))
    for job, words in (
        (Job({"m": 1.0}, fidelity="full; rm", events=2**40), ["1.0", "full; rm", f"--n={2**40}"]),
        (Job({"m": 1.0}, fidelity="fast"), ["1.0", "fast", "--n=0"]),
    ):
        outcome = evaluator.evaluate(job)
        assert outcome.info["argv"] == words
        assert (outcome.values, outcome.missing) == ({"f": 1.0}, ("g",))
    with pytest.raises(InvalidSpec, match=r"got \{fidelity\} .*Declare fidelities: this campaign gives no fidelity"):
        evaluator.evaluate(Job({"m": 1.0}))
    with pytest.raises(InvalidSpec, match="this campaign gives no events"):
        command(text, "{m} {events}", result="stdout").evaluate(Job({"m": 1.0}))
    assert command(text, "{m} {events}", result="stdout").evaluate(Job({"m": 1.0}, events=5)).info["argv"][1] == "5"


def test_a_parameter_may_be_called_events_where_nothing_else_is(command):
    text = "import sys; print(sys.argv[1])"
    evaluator = command(text, "{events}", result="stdout", parameters=("events",))
    assert evaluator.evaluate(Job({"events": 2.5})).values == {"f": 2.5}
    with pytest.raises(InvalidSpec, match=r"parameters must not be called .*got \['events'\]"):
        evaluator.evaluate(Job({"events": 2.5}, fidelity="fast"))


@pytest.mark.parametrize("text", ['{"f": null}', '{"values": {"f": null, "g": null}}', '{"f": 1, "g": [null]}'])
def test_a_result_needs_one_number_at_least(command, text):
    evaluator = command(f"open('result.json', 'w').write({text!r})")
    with pytest.raises(EvaluationError, match="task must have a number"):
        evaluator.evaluate(JOB)
