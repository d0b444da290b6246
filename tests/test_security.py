"""Nothing that comes from a store, a file or a program is executed, escapes, hangs or gives a secret away."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from benchmarks.postgres import Server
from typer.testing import CliRunner

from excursion import untrusted
from excursion.campaign import Campaign
from excursion.cli import app
from excursion.constraint import Constraint
from excursion.data import Job, Outcome, Proposal
from excursion.errors import EvaluationError, ExcursionError, InvalidOutcome, InvalidSpec, InvalidTable, StoreError
from excursion.evaluators.command import Command
from excursion.known import read
from excursion.problem import Problem, Task
from excursion.report.tables import exported
from excursion.secrets import is_secret, masked, masked_data, secrets_in, without_password
from excursion.space import ParameterSpace
from excursion.spec import begin, load, parse
from excursion.store import MemoryStore, SqlStore, open_store
from excursion.untrusted import json_value, printable, read_text, yaml_value

SRC = Path(__file__).parents[1] / "src" / "excursion"
FILES = sorted(SRC.rglob("*.py"))

# ------------------------------------------------------------------------------------------- nothing is executed

#: Calls that execute what they are given, or make objects of it.
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "breakpoint",
    "input",
    "os.system",
    "os.popen",
    "os.execv",
    "os.execve",
    "os.execvp",
    "os.spawnv",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "torch.load",
    "torch.jit.load",
    "numpy.load",
    "np.load",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "runpy.run_path",
    "code.interact",
    "tempfile.mktemp",
}
#: What a worker process of ours gets from its parent; nothing else is ever unpickled.
ALLOWED = {(file, "cloudpickle.loads") for file in ("evaluators/worker.py", "isolation.py")}
SAFE_LOADERS = {"yaml.BaseLoader", "yaml.SafeLoader", "loader", "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"}


def executions(path: Path, root: Path = SRC) -> Iterator[str]:
    """The calls of a file that could execute what they are given."""
    tree = ast.parse(path.read_text())
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = "" if isinstance(node, ast.Import) else f"{node.module or ''}."
            names |= {alias.asname or alias.name: f"{module}{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call | ast.Attribute | ast.Name):
            continue
        text = ast.unparse(node.func if isinstance(node, ast.Call) else node)
        head, dot, rest = text.partition(".")
        full = f"{names.get(head, head)}{dot}{rest}"
        place = f"{path}:{node.lineno}: {full}"
        if full in FORBIDDEN and (path.relative_to(root).as_posix(), full) not in ALLOWED:
            yield place
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
            yield place
        if full in ("yaml.load", "yaml.compose", "yaml.parse") and given.get("Loader") not in SAFE_LOADERS:
            yield place


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_from_outside_is_executed(path: Path) -> None:
    assert list(executions(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "from pickle import loads\nloads(b'')",
        "import pickle as p\np.load(f)",
        "import os\nos.system('x')",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import torch\ntorch.load(f)",
        "subprocess.run('x', shell=True)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "run = exec\nrun(text)",
        "from cloudpickle import loads as l\nl(x)",
        "Popen(words, shell=flag)",
    ],
)
def test_the_check_sees_what_it_looks_for(code: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(code)
    assert list(executions(tmp_path / "bad.py", tmp_path))


ATTACKS = [
    "__import__('os').system('touch pwned') > x",
    "().__class__.__bases__[0].__subclasses__() > x",
    "x.__class__ > 0",
    "x.real > 0",
    "(lambda: x)() > 0",
    "[x for x in (1, 2)] > x",
    "x if x else x",
    "f'{x}' > x",
    "f'{x.__class__}' == x",
    "'a' * 10**9 > x",
    "x[0] > 0",
    "(x := 3) > 0",
    "eval('x') > 0",
    "open('/etc/passwd') > x",
    "globals() > x",
    "max(*x, 1) > 0",
    "sqrt(x, out=x) > 0",
    "x @ x > 0",
    "x << 99999 > 0",
    "x // 0 > 0",
    "x > 0; import os",
    "x > 0\nimport os",
    "x > 0 #\nimport os",
    "yield x",
    "await x",
    "x > 1j",
    "x > b'1'",
    "x > ...",
    "еxp(x) > 0",  # the first letter is Cyrillic
    "ｅval(x) > 0",  # NFKC makes it eval
    "＿＿import＿＿('os') > x",
    "ﬁle > x",  # a ligature: two letters
    "x > 0x" + "f" * 1900,
    "x > " + "9" * 1900,
    "(" * 300 + "x" + ")" * 300 + " > 0",
    "-" * 1900 + "x > 0",
    "not " * 480 + "x > 0",
    "+".join("x" for _ in range(900)) + " > 0",
    "abs(" * 300 + "x" + ")" * 300 + " > 0",
    "x > 0" + " or x > 0" * 300,
]
BOMBS = [
    "9**9**9**9 > x",
    "x**9**9**9 > 1",
    "1e308*1e308 > x",
    "2**-2**-2**x < 9",
    "exp(exp(exp(exp(x + 9)))) > 1",
    "1/0 > x",
]


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_constraints_are_read_never_executed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begin = time.process_time()
    quoted = json.dumps(text)
    with pytest.raises(InvalidSpec, match=r"constraints"):
        parse(f"parameters: {{x: [0, 1]}}\ntasks: {{f: 0}}\nconstraints: [{quoted}]")
    assert time.process_time() - begin < 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", BOMBS)
def test_constraints_compute_in_floats(text: str) -> None:
    begin = time.process_time()
    Constraint(text).holds(
        ParameterSpace.of({"x": (0, 1)})._columns(ParameterSpace.of({"x": (0, 1)}).sample(0, 1000, 1))
    )
    assert time.process_time() - begin < 1


def test_lookalikes_are_the_letters_that_they_stand_for() -> None:
    """Python's own rule (NFKC): a name in mathematical letters is the parameter, not a hole."""
    assert Constraint("𝐱 > 0").names == {"x"}


# --------------------------------------------------------------------------------------------- command templates


def words_of(template: str, x: dict[str, float], tmp_path: Path) -> list[str]:
    """What a program gets, by a program that says so."""
    show = tmp_path / "show.py"
    show.write_text("import json, sys\nprint(json.dumps({'values': {'f': 1}, 'info': {'words': sys.argv[1:]}}))\n")
    command = Command(f"{sys.executable} {show} {template}", result="stdout", workdir=str(tmp_path / "w"))
    return command.evaluate(Job(x)).info["words"]


@pytest.mark.parametrize(
    "hostile", ["; touch pwned", "$(touch pwned)", "`touch pwned`", "| touch pwned", "&& touch pwned", "> pwned"]
)
def test_no_shell(hostile: str, tmp_path: Path) -> None:
    assert words_of(f"{{x}} {hostile}", {"x": 0.5}, tmp_path)[0] == "0.5"
    assert words_of(f"'{{x}} {hostile}'", {"x": 0.5}, tmp_path) == [f"0.5 {hostile}"]
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "placeholder",
    [
        "{x.__class__}",
        "{x.__init__.__globals__}",
        "{x[0]}",
        "{x!r}",
        "{x!s:>9}",
        "{x:{seed}}",
        "{}",
        "{0}",
        "{x:999999999d}",
        "{x:.999999999f}",
        "{x:999999999.3f}",
        "{number:>101}",
        "{workdir:>999999999}",
        "{x:0>{number}}",
        "{workdir.__class__}",
        "{self}",
        "{os}",
        "{environment}",
        "{x",
        "x}",
        "{x:.3.3f}",
        "{x:%n%n%n}",
    ],
)
def test_placeholders_are_names_and_short_formats(placeholder: str, tmp_path: Path) -> None:
    begin = time.process_time()
    with pytest.raises(InvalidSpec):
        Command(f"prog {{x}} {placeholder}", parameters=("x",), workdir=str(tmp_path))
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    "name", ["x;ls", "a b", "$(ls)", "--help", "x\n", "x\0", "../x", "{x}", "__class__", "ｘ", "import"]
)
def test_parameter_names_are_identifiers(name: str) -> None:
    with pytest.raises(InvalidSpec, match="a name must be a Python identifier|text must be Unicode"):
        parse(f"parameters: {{{json.dumps(name)}: [0, 1]}}\ntasks: {{f: 0}}")


# ------------------------------------------------------------------------------------------------------- results


def evaluated(body: str, tmp_path: Path, **settings: Any) -> Outcome:
    program = tmp_path / "program.py"
    program.write_text(f"import os, sys\n{body}\n")
    command = Command(f"{sys.executable} {program} {{x}}", workdir=str(tmp_path / "w"), timeout=20, **settings)
    return command.evaluate(Job({"x": 0.5}))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os.symlink('/etc/hostname', 'result.json')", "outside its directory"),
        ("os.symlink('../../outside.json', 'result.json')", "outside its directory"),
        (
            "os.mkdir('d'); os.symlink('/etc', 'd/e'); os.symlink('d/e/hostname', 'result.json')",
            "outside its directory",
        ),
        ("os.symlink('result.json', 'result.json')", "must write its result to .*, got "),
        ("os.mkfifo('result.json')", "something that is no file"),
        ("os.symlink('/dev/zero', 'result.json')", "outside its directory"),
        ("os.mkdir('result.json')", "something that is no file"),
        ("open('result.json', 'w').truncate(2**34)", "17179869184 bytes, more than 16777216"),
        ("open('result.json', 'w').write('[' * 10**6)", "too many levels"),
        (
            "open('result.json', 'w').write('{\"values\": {\"f\": 1}, \"info\": {\"a\": ' + '['*99 + ']'*99 + '}}')",
            "than 64 levels",
        ),
        ("open('result.json', 'w').write('{\"f\": 1, \"f\": 2}')", "the key 'f' twice"),
        ("open('result.json', 'w').write('{\"f\": NaN}')", "must not be NaN"),
        ("open('result.json', 'wb').write(b'\\xff\\xfe1')", "must be readable text"),
        ("os.remove('log.txt'); os.mkfifo('log.txt'); sys.exit(1)", "something that is no file"),
        ("os.remove('log.txt'); os.symlink('/etc/passwd', 'log.txt'); sys.exit(1)", "outside its directory"),
    ],
)
def test_results_stay_in_their_directory_and_are_small(body: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("1")
    begin = time.monotonic()
    with pytest.raises(EvaluationError, match=says) as caught:
        evaluated(body, tmp_path)
    assert time.monotonic() - begin < 10
    assert len(str(caught.value)) < 6000
    assert "root:" not in str(caught.value)


def test_a_gigabyte_on_stdout(tmp_path: Path) -> None:
    begin = time.process_time()
    found = evaluated("os.ftruncate(1, 2**30)\nos.lseek(1, 0, 2)\nprint()\nprint(1.5)", tmp_path, result="stdout")
    assert found.values == {"f": 1.5}
    assert time.process_time() - begin < 5
    assert (tmp_path / "w" / "00000-0" / "log.txt").stat().st_size <= 2**24


@pytest.mark.parametrize("result", ["/etc/passwd", "../x.json", "a/../../x", ".", "", "a/..", "/dev/stdin"])
def test_result_paths_cannot_leave(result: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="must be a file in the evaluation's own directory"):
        Command("prog {x}", result=result, workdir=str(tmp_path))


@pytest.mark.parametrize("info", [{"a": 10**5000}, {"a": [{"b": 10**9999}]}])
def test_numbers_that_are_no_text(info: Any) -> None:
    with pytest.raises(InvalidOutcome, match="must have at most 8192 bits"):
        Outcome.of(1.0, info=info)


def test_deep_info_is_refused_before_it_is_stored() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidOutcome, match="nested at most 64 deep"):
        Outcome.of(1.0, info={"a": deep})


# --------------------------------------------------------------------------------------------- tables and documents

MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
HEPDATA = "independent_variables: []\ndependent_variables: [{header: {name: f}, values: [{value: 1, errors: %s}]}]"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.yaml", "dependent_variables: " + "[" * 200_000, "more than 64 levels in line 1"),
        ("t.yaml", LAUGHS + "dependent_variables: *a11", "counting aliases, in line"),
        ("t.yaml", MERGES + "dependent_variables: *a11", "counting aliases, in line"),
        ("t.yaml", "dependent_variables: &a [*a]", "an alias inside what it stands for in line 1"),
        *(
            ("t.yaml", f"dependent_variables: {value}", "must be YAML, got a problem")
            for value in (
                "!!int ''",
                "!!float ''",
                "!!timestamp x",
                "!!bool x",
                "!!python/object/apply:os.system [ls]",
                "2001-99-99",
                "1:" + ":".join(["59"] * 999) + ".5",
                "{[1]: 2}",
            )
        ),
        ("t.json", "[" * 10**6, "too many levels"),
        ("t.json", '[{"x": ' + "[" * 99 + "]" * 99 + "}]", "more than 64 levels"),
        ("t.json", '[{"x": 1, "x": 2}]', "the key 'x' twice"),
        ("t.csv", 'x,f\n"' + "a" * 200_000 + '",1\n', "must be a table of short cells"),
        (
            "t.yaml",
            HEPDATA % 2,
            "errors must be a list, got 2",
        ),
        *(
            ("t.yaml", HEPDATA % f"[{error}]", "errors must be numbers")
            for error in ("{symerror: 1" + "0" * 400 + "}", "{asymerror: {}}", "{symerror: []}", "x")
        ),
    ],
)
def test_bombs_in_tables(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    begin = time.process_time()
    with pytest.raises(InvalidTable, match=says) as caught:
        read(tmp_path / name)
    assert time.process_time() - begin < 5
    assert len(str(caught.value)) < 1000


def test_an_error_whose_square_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,f,f_err\n0.5,1,1e308\n")
    campaign = Campaign.create("memory://", "c", Problem({"x": (0, 1)}, (Task("f"),)))
    with pytest.raises(InvalidTable, match="a standard error must be at least 0, got '1e308'"):
        campaign.warm_start(tmp_path / "t.csv")


def test_a_table_may_be_large_and_use_aliases() -> None:
    rows = "".join(f"- {{value: {i}, errors: *e}}\n" for i in range(20_000))
    found = yaml_value(f"e: &e [{{symerror: 0.1}}]\nvalues:\n{rows}")
    assert len(found["values"]) == 20_000
    assert json_value(json.dumps([[i] for i in range(10_000)]))[-1] == [9999]


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "x," * 400_000 + "]",
        "- " * 400_000,
        "? " * 400_000,
        "".join(f"k{i}: 1\n" for i in range(80_000)),
        "{" * 10**6,
        LAUGHS,
        MERGES,
    ],
    ids=range(7),
)  # fmt: skip
def test_bombs_in_campaigns(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(InvalidSpec, match="must be short and shallow|must be YAML"):
        parse(text)
    assert time.process_time() - begin < 2


def test_files_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="must have at most 1048576 bytes, got more"):
        load("/dev/zero")
    with pytest.raises(InvalidTable, match="must have at most 1000 bytes, got more"):
        read_text("/dev/zero", InvalidTable, largest=1000)
    with pytest.raises(InvalidTable, match="must be the path of a file"):
        read_text("a\0b", InvalidTable)


def test_texts_that_terminals_obey() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07a\rb\r\nc\td\x08\x9b\udcff\0"
    assert printable(text) == "red a\nb\nc\td" + "\ufffd" * 4
    assert printable({"\x1b[1mk": [text[:12], 1.5, None]}) == {"k": ["red", 1.5, None]}


def test_surrogates_do_not_stop_the_way_out(tmp_path: Path) -> None:
    """Half a character cannot be written as UTF-8; what holds one is kept and shown all the same."""
    campaign = Campaign.create(tmp_path / "s.db", "c", Problem({"x": (0, 1)}, (Task("f"),)))
    (trial,) = campaign.ask()
    campaign.tell(trial.number, Outcome.failed("file \udcff\x1b[31m \0 is odd", where="\ud800"))
    for words in (
        ["status"],
        ["doctor"],
        ["export"],
        ["export", "--format", "json"],
        ["export", "--out", str(tmp_path / "o.csv")],
    ):
        done = CliRunner().invoke(app, [words[0], str(tmp_path / "s.db"), *words[1:]])
        assert done.exit_code in (0, 2), words
        assert done.exception is None or isinstance(done.exception, SystemExit), words


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-2", "@SUM(1)"])
def test_a_spreadsheet_takes_no_text_of_a_program_for_a_formula(text: str) -> None:
    campaign = Campaign.create("memory://", "c", Problem({"x": (0, 1)}, (Task("f"),)))
    campaign.tell(campaign.ask()[0].number, Outcome.failed(text))
    (row,) = csv.DictReader(io.StringIO(exported(campaign, "trials", "csv")))
    assert row["error"] == f"'{text}"
    assert json.loads(exported(campaign, "trials", "json"))["trials"][0]["error"] == text


# ------------------------------------------------------------------------------------------------------- secrets

SECRETS = [
    ("postgresql://me:hunter22@host/db?x=1", "postgresql://me:***@host/db?x=1"),
    ("postgresql+psycopg://me:hun@ter/22@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
    (
        "postgresql://me@host/db?password=hunter22&sslmode=require",
        "postgresql://me@host/db?password=***&sslmode=require",
    ),
    ("https://me:hunter22@gitlab.cern.ch/x.git", "https://me:***@gitlab.cern.ch/x.git"),
    ("https://hunter22@github.com/x", "https://***@github.com/x"),
    ("GET /api/workflows?access_token=hunter22&page=1", "GET /api/workflows?access_token=***&page=1"),
    ("host=h password='hunt er22' user=x", "host=h password=*** user=x"),
    ("Authorization: Bearer hunter22", "Authorization: Bearer ***"),
    ("{'Authorization': 'Bearer hunter22'}", "{'Authorization': 'Bearer ***'}"),
    ("Basic aHVudGVyMjJodW50ZXIyMg==", "Basic ***"),
    ('{"token": "hunt\\"er22", "x": 1}', '{"token": ***, "x": 1}'),
    ("{'password': 'hunter22'}", "{'password': ***}"),
    ("X-Auth-Token: hunter22", "X-Auth-Token: ***"),
    ("password: hunter22", "password: ***"),
    ("prog --api-key hunter22 --x 1", "prog --api-key *** --x 1"),
    ("export AWS_SECRET_ACCESS_KEY=hunter22/x+y", "export AWS_SECRET_ACCESS_KEY=***"),
    ("glpat-hunter22hunter22hunter", "***"),
    ("ghp_hunter22hunter22hunter22", "***"),
    ("eyJhbGciOiJI.hunter22hunter.sig", "***"),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nhunter22\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
    ),
]
INNOCENT = [
    "http://host:8080/me@there",
    "sqlite:////data/a:b@c.db",
    "me@cern.ch",
    "unexpected token: '}'",
    "no password given",
    "--token={seed}",
    "postgresql://me@host/db",
    "ssh://git@github.com/x",
    "tokens 5",
    "The secretary: x",
    "the basic idea of authentication",
    "f = 0.5 +- 0.1",
    "s3://bucket/key",
    "trial 3: the program must end with exit code 0, got exit code 1. See /work/log.txt, which ends with:\nx",
]


@pytest.mark.parametrize(("text", "shown"), SECRETS, ids=range(len(SECRETS)))
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert masked(f"got {text}, then") == f"got {shown}, then" or "PRIVATE" in text
    assert "unter22" not in masked(repr(text))
    assert list(secrets_in({"a": ["x", text]})) == [("a", 1)]


@pytest.mark.parametrize("text", INNOCENT)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert masked(text) == text
    assert list(secrets_in({"a": text})) == []


@pytest.mark.parametrize(
    "text",
    [
        "://a:" * 20_000,
        "a.b-" * 50_000,
        "password" * 20_000,
        "-----BEGIN PRIVATE KEY-----" * 5000,
        "--" * 60_000,
        '"token": "' * 20_000,
    ],
    ids=range(6),
)
def test_masking_is_quick(text: str) -> None:
    begin = time.process_time()
    masked(text)
    assert time.process_time() - begin < 3


def test_names_of_secrets() -> None:
    yes = (
        "PGPASSWORD MYSQL_PWD GITHUB_TOKEN token AWS_SECRET_ACCESS_KEY DB_PASS accessToken access-token api_key APIKEY"
    )
    no = "PWD OLDPWD TOKENIZERS_PARALLELISM BEARER_TOKEN_FILE SSH_AUTH_SOCK KEY COMPASS PYTHONPATH X509_USER_PROXY keys"
    assert [name for name in yes.split() if not is_secret(name)] == []
    assert [name for name in no.split() if is_secret(name)] == []


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REANA_ACCESS_TOKEN", "hunter/22 x")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("TOKEN_FILE", "/home/me/token")
    text = "a hunter/22 x, b hunter%2F22%20x, true, /home/me/token"
    assert masked(text) == "a ***, b ***, true, /home/me/token"
    data = {
        "a": ["hunter/22 x", 1, None],
        "password": "abc",
        "n": 2.5,
        "token": 3,
        "nested": {"api_key": "x", "y": "z"},
    }
    assert masked_data(data) == {
        "a": ["***", 1, None],
        "password": "***",
        "n": 2.5,
        "token": 3,
        "nested": {"api_key": "***", "y": "z"},
    }


def test_values_of_the_environment_inside_other_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    value = 'hun"ter\\22\u00e9'
    monkeypatch.setenv("MY_SECRET", value)
    assert masked(f"{json.dumps(value)} {value!r}") == "\"***\" '***'"


def test_a_url_to_go_on_with() -> None:
    for url, shown in (
        ("postgresql://me:hunter22@h:1/d", "postgresql://me@h:1/d"),
        ("postgresql://me:hun@ter22@h/d", "postgresql://me@h/d"),
        ("postgresql://me@h/d?password=hunter22&sslmode=require", "postgresql://me@h/d?sslmode=require"),
        ("postgresql://me@h/d?password=hunter22", "postgresql://me@h/d"),
        ("scan.db", "scan.db"),
        ("/data/a:b@c.db", "/data/a:b@c.db"),
    ):
        assert without_password(url) == shown


STORES = {"memory": lambda _: MemoryStore(), "sqlite": lambda folder: SqlStore(folder / "s.db")}


@pytest.mark.parametrize("kind", STORES)
def test_what_enters_a_store_is_masked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter22")
    store = STORES[kind](tmp_path)
    campaign = Campaign.create(store, "c", Problem({"x": (0, 1)}, (Task("f"),)))
    campaign.ask(3)
    told = campaign.tell(0, Outcome.failed("no hunter22", traceback="at https://me:pa55word@h\n", log=["hunter22"]))
    assert told.outcome == Outcome.failed("no ***", traceback="at https://me:***@h\n", log=["***"])
    campaign.tell(1, Outcome.of(1.0, info={"token": "abc", "seconds": 3}))
    store.review("c", 2, "rejected", note="password=abc is wrong", owner="me")
    proposal = Proposal({"x": 0.5}, 3)
    store.record("c", [proposal], [Outcome.failed("hunter22")], after=3, seeds=[1])
    text = repr(campaign.trials) + repr(store.events("c"))
    assert "hunter22" not in text
    assert "pa55word" not in text
    assert "abc" not in text
    assert campaign.trials == Campaign.open(store).trials
    if kind == "sqlite":
        store.close()
        data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert b"hunter22" not in data
        assert b"pa55word" not in data


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("evaluator: {command: 'prog {x}', environment: {REANA_ACCESS_TOKEN: hunter22}}", 3),
        ("evaluator:\n  command: 'prog {x}'\n  environment:\n    OK: a\n    DB_PASSWORD: hunter22", 7),
        ("evaluator: {command: 'prog {x} --token hunter22'}", 3),
        ("evaluator: {command: 'curl https://me:hunter22@host/{x}'}", 3),
        ("evaluator: {command: 'prog {x}', environment: {URL: 'postgresql://me:hunter22@host/d'}}", 3),
    ],
)
def test_a_campaign_holds_no_secrets(section: str, line: int) -> None:
    with pytest.raises(
        InvalidSpec, match=rf"line {line}, evaluator.*must not hold passwords.*environment of the worker"
    ) as caught:
        parse(f"parameters: {{x: [0, 1]}}\ntasks: {{f: 0}}\n{section}")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800", "a/" * 3000, "x\x1b[31m"])
def test_names_that_no_store_can_have(name: str, create: bool, tmp_path: Path) -> None:
    url = f"{tmp_path}/{name}"
    if create and name.startswith("x"):
        open_store(url).close()
    else:
        with pytest.raises(StoreError):
            open_store(url, create=create)
        with pytest.raises(StoreError):
            open_store(f"sqlite:///{url}", create=create)


def test_errors_about_urls_do_not_show_the_password() -> None:
    for url in (
        "mysql://me:hunter22@h/d",
        "postgresql://me:hunter22@h:port/d",
        "sqlite://me:hunter22@h/d",
        "postgresql://me:h:unter22@:x/d",
    ):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        error: BaseException | None = caught.value
        while error is not None:
            assert "unter22" not in f"{error!r} {error}"
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


# ----------------------------------------------------------------------------- a real campaign with a real password

SCAN = """\
name: scan
store: {url}
parameters: {{x: [0, 1], y: [0, 1]}}
tasks: {{f: 0.5}}
evaluator: {{command: "{python} {folder}/program.py {{x}} {{y}}", result: stdout, timeout: 60}}
run: {{budget: 8, batch: 4, workers: 2}}
"""


def excursion(*words: str) -> tuple[int, str]:
    """Exit code and everything printed; an exception that is not ours is raised here."""
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def everything(folder: Path) -> str:
    return "\n".join(
        p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file() and p.name != "scan.yaml"
    )


def test_no_secret_of_a_real_campaign_is_left_anywhere(
    postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password of the database in the YAML, a token in the environment, programs that print both."""
    server = postgres_server.new()
    token = "tok-hunter22-hunter22"
    folder = tmp_path / "scan"
    folder.mkdir()
    (folder / "scan.yaml").write_text(SCAN.format(url=server.url, python=sys.executable, folder=folder))
    (folder / "program.py").write_text(
        "import os, sys\nx, y = map(float, sys.argv[1:])\n"
        f"if x > 0.5: sys.exit('cannot log in to {server.url} with ' + os.environ['MY_TOKEN'])\n"
        'print(\'{"values": {"f": %r}, "info": {"url": "\' % (x + y) + os.environ[\'MY_TOKEN\'] + \'"}}\')\n'
    )
    monkeypatch.setenv("MY_TOKEN", token)
    monkeypatch.chdir(folder)
    outputs = []
    for words in (
        ["run", "scan.yaml"],
        ["status", server.url],
        ["doctor", server.url],
        ["export", server.url, "--out", "trials.csv"],
        ["export", server.url, "--format", "json"],
        ["resume", server.url, "--budget", "9"],
        ["list", server.url.replace(server.database, "nowhere")],
        ["status", server.url.replace(server.password, "wrong" + server.password)],
        ["status", server.url, "no such campaign"],
    ):
        code, said = excursion(*words)
        assert code in (0, 2), said
        outputs.append(said)
    assert "store postgresql://excursion@127.0.0.1" in outputs[0]
    dump = server.dump()
    assert "cannot log in to" in dump
    trials = Campaign.open(server.url).trials
    assert {t.state for t in trials} == {"complete", "failed"}
    for kept in (dump, *outputs, (folder / "trials.csv").read_text(), repr(load(folder / "scan.yaml"))):
        assert server.password not in kept
        assert token not in kept
    store = SqlStore(server.url)
    assert server.password not in f"{store!r} {store.url} {store._engine!r}"
    assert pickle.loads(pickle.dumps(store)).names() == ["scan"]
    # What programs print lies in their own directories, as they wrote it.
    shutil.rmtree(folder / "work")
    (folder / "program.py").unlink()
    assert server.password not in everything(folder)
    assert token not in everything(folder)


def test_the_password_may_come_from_the_environment_or_a_file(
    postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = postgres_server.new()
    bare = server.url.replace(f":{server.password}", "")
    assert server.password not in bare
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    (tmp_path / "hand.yaml").write_text(f"name: c\nstore: {bare}\nparameters: {{x: [0, 1]}}\ntasks: {{f: 0}}\n")
    code, said = excursion("create", str(tmp_path / "hand.yaml"))
    assert code == 2
    assert "password" in said
    monkeypatch.setenv("PGPASSWORD", server.password)
    assert excursion("create", str(tmp_path / "hand.yaml")) == (0, f"campaign 'c' is in {bare}\n")
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / "pgpass").write_text(f"127.0.0.1:*:*:*:{server.password}\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    assert excursion("list", bare)[0] == 0


def test_who_may_only_read_can_look_and_change_nothing(postgres_server: Server) -> None:
    """The SQL of docs/security.md."""
    server = postgres_server.new()
    campaign = Campaign.create(server.url, "c", Problem({"x": (0, 1)}, (Task("f"),)))
    campaign.ask(2)
    campaign.tell(0, 1.0)
    text = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    (sql,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    role = f"reader_{server.database}"
    server.sql(sql.replace("reader", role).replace(" LOGIN", " LOGIN PASSWORD 'pw'").partition("--")[0])
    looking = server.url.replace(f"excursion:{server.password}", f"{role}:pw")
    assert Campaign.open(looking).trials == campaign.trials
    for words in (["status", looking], ["export", looking], ["list", looking], ["log", looking]):
        assert excursion(*words)[0] == 0
    for words in (["tell", looking, "1", "--value", "2"], ["ask", looking]):
        code, said = excursion(*words)
        assert code == 2
        assert "permission denied" in said
    assert [t.state for t in campaign.trials] == ["complete", "queued"]


@pytest.mark.parametrize("command", ["resume", "work"])
def test_an_interrupted_run_says_how_to_go_on_without_the_password(
    command: str, postgres_server: Server, tmp_path: Path
) -> None:
    server = postgres_server.new()
    (tmp_path / "program.py").write_text("import time; time.sleep(60)")
    (tmp_path / "scan.yaml").write_text(SCAN.format(url=server.url, python=sys.executable, folder=tmp_path))
    begin(load(tmp_path / "scan.yaml"))
    words = [sys.executable, "-m", "excursion.cli", command, server.url, "scan"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    campaign = Campaign.open(server.url)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(t.state == "running" for t in campaign.trials):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    if command == "work":  # the first lets the evaluation end
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    bare = server.url.replace(f":{server.password}", "")
    assert re.search(rf"interrupted: go on with: excursion {command} {re.escape(bare)} scan", stderr), stderr
    assert server.password not in stderr


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("x", "cos\nsystem\n(S'touch pwned'\ntR." + pickle.dumps(print).hex(), "must hold JSON"),
        ("x", "[1]", "no object of numbers"),
        ("x", '{"x": [1]}', "no object of numbers"),
        ("belief", '{"f": 1}', "no object of objects"),
        ("outcome", '{"values": [1]}', "must hold JSON"),
        ("outcome", '{"evil": 1}', "must hold JSON"),
        ("outcome", "[" * 5000, "must hold JSON"),
        ("basis", "many", "basis = 'many'"),
        ("asked", "now", "asked = 'now'"),
    ],
)
def test_a_row_that_somebody_has_tampered_with(column: str, value: str, says: str, tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "s.db")
    campaign = Campaign.create(store, "c", Problem({"x": (0, 1)}, (Task("f"),)))
    campaign.ask(2)
    campaign.tell(0, 1.0)
    with sa.create_engine(f"sqlite:///{tmp_path}/s.db").begin() as c:
        c.execute(sa.text(f"UPDATE trial SET {column} = :value WHERE number = 0"), {"value": value})
    with pytest.raises(StoreError, match=says):
        _ = Campaign.open(tmp_path / "s.db").trials
    code, said = excursion("doctor", str(tmp_path / "s.db"))
    assert code in (0, 1, 2)
    assert "trial 0: " in said


@pytest.mark.parametrize(
    "change",
    [
        {"problem": 3},
        {"problem": {}},
        {"problem": {"tasks": [1]}},
        {"strategy": [1]},
        {"strategy": {"acquisition": "x"}},
        {"extra": [1]},
        {"extra": {"run": "x"}},
    ],
)
def test_a_description_that_somebody_has_tampered_with(change: dict[str, Any]) -> None:
    store = MemoryStore()
    campaign = Campaign.create(store, "c", Problem({"x": (0, 1)}, (Task("f"),)))
    store.create("d", store.spec(campaign.name) | change)
    with pytest.raises(ExcursionError):
        Campaign.open(store, "d")


def test_the_table_of_the_documentation_is_true() -> None:
    """docs/security.md gives the limits that the code has."""
    text = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    assert f"at most {untrusted.LARGEST_RESULT >> 20} MiB (results) or {untrusted.LARGEST >> 20} MiB (tables)" in text
    assert f"at most {untrusted.DEEPEST} levels" in text
