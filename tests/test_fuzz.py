"""Whatever text comes in, what comes out is an answer or one of our errors, soon, and no row is lost or changed.

EXCURSION_FUZZ is the number of examples of each test; `EXCURSION_FUZZ=10000 pytest tests/test_fuzz.py` takes hours.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import math
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import psutil
import pytest
import sqlalchemy as sa
import yaml
from hypothesis import HealthCheck, given, settings
from typer.testing import CliRunner

from excursion.acquisition import Search
from excursion.campaign import Campaign
from excursion.cli import app
from excursion.data import Job, Outcome, Trial
from excursion.errors import EvaluationError, ExcursionError, InvalidOutcome, InvalidSpec
from excursion.evaluators.command import Command
from excursion.evaluators.reader import Reader
from excursion.problem import Problem, Task
from excursion.proposal import Strategy
from excursion.report.tables import exported
from excursion.spec import begin, outcome, parse
from excursion.store import MemoryStore

EXAMPLES = int(os.environ.get("EXCURSION_FUZZ", "0"))
SECONDS = 2.0
BYTES = 2**29
#: Characters of a message: it may quote what it is about, not a file.
ROOM = 20_000


def fuzz(share: int) -> settings:
    """`share` examples by default; EXCURSION_FUZZ of them where that is given."""
    return settings(
        deadline=None,
        max_examples=EXAMPLES or share,
        suppress_health_check=list(HealthCheck),
        derandomize=not EXAMPLES,
        database=None,
    )


@contextmanager
def soon(seconds: float = SECONDS) -> Iterator[None]:
    """Neither time nor memory run away. Processor time counts, for the machine may be busy; a hang is interrupted."""

    def hang(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before, rss = time.process_time(), psutil.Process().memory_info().rss
    handler = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, 30 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    spent = time.process_time() - before
    assert spent < seconds, f"took {spent:.1f} s"
    assert psutil.Process().memory_info().rss - rss < BYTES


# ------------------------------------------------------------------------------------------------- odd things

WORDS = re.findall(r"\w+", (Path(__file__).parents[1] / "docs" / "yaml.md").read_text())
TEXTS = [
    "",
    " ",
    "x",
    "y",
    "f",
    "é",
    "💥",
    "𝐱",
    "ｘ",
    "\0",
    "\u2028",
    "\ufeff",
    "a\nb",
    "\x1b[31m",
    "%s",
    "{x}",
    "{x:999999999d}",
    "{x!r}",
    "{x.__class__}",
    "{",
    "'",
    '"',
    "*a",
    "&a",
    "!!python/name:os.system",
    "../../x",
    "/dev/zero",
    "/",
    ".",
    "..",
    "memory://",
    "sqlite://",
    "sqlite:///:memory:",
    "mysql://u:p@h/d",
    "http://[",
    "postgresql://",
    "x > y",
    "x > 0.5",
    "x > 0.999",
    "9**9**9**9 > x",
    "x == x",
    "x != x",
    "__import__('os').system('true') > x",
    "x.real > 0",
    "max(x, y) < 1",
    "1/0 < x",
    "(" * 90 + "x" + ")" * 90 + " > 0",
    "-" * 500 + "x > 0",
    "1e999",
    "-1e999",
    "nan",
    "inf",
    "-inf",
    ">10",
    "<0.1",
    "1_0",
    "１",
    "0x10",
    "1,5",
    "1 % ambiguous",
    "f within 10 of x",
    "log",
    "auto",
    "EI",
    "SUR",
    "KernelSearch",
    "=1+1",
    "a" * 3000,
]
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    17,
    0.5,
    0.1,
    1e-3,
    1e308,
    -1e308,
    1e-308,
    5e-324,
    1e60,
    1e-60,
    2**31,
    2**53,
    2**63,
    -(2**63),
    10**30,
    10**400,
    math.inf,
    -math.inf,
    math.nan,
]
OTHERS: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"": ""},
    [0, 1],
    [1, 0],
    [0, 1, "log"],
    ["x"],
    {"lower": 0, "upper": 1},
]
OTHERS += [datetime.date(2026, 11, 22), [None] * 60, {"threshold": [1, 2]}, {"type": "SUR"}, {"f": 1}, b"\xff\xfe"]


def odd(pick: random.Random) -> Any:
    """A value that nobody expects there."""
    kind = pick.random()
    if kind < 0.3:
        return pick.choice(TEXTS)
    if kind < 0.4:
        return pick.choice(WORDS)
    if kind < 0.7:
        return pick.choice(NUMBERS)
    if kind < 0.75:
        return pick.uniform(-10, 10) * 10.0 ** pick.randint(-12, 12)
    if kind < 0.8:
        return [odd(pick) for _ in range(pick.randint(1, 4))]
    return copy.deepcopy(pick.choice(OTHERS))


def like(value: Any, pick: random.Random) -> Any:
    """Another value of the same type, more often one that makes sense."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return copy.deepcopy(value)
    if not isinstance(value, str) and not abs(value) < 1e300:
        return pick.choice(NUMBERS)
    if isinstance(value, str):
        return pick.choice(
            [value + "!", value[: len(value) // 2], value + value, pick.choice(WORDS), pick.choice(TEXTS)]
        )
    return pick.choice(
        [-value, value * 1e-9, value * 1e9, value + 1, 0, int(value), float(value), pick.choice(NUMBERS)]
    )


def places(tree: Any) -> list[tuple[Any, Any]]:
    """All (container, key or index) pairs of a tree."""
    found: list[tuple[Any, Any]] = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += [(tree, key), *places(value)]
    return found


def mutated(tree: Any, pick: random.Random) -> Any:
    """A tree with one to four changes: values replaced, removed, wrapped, moved or copied; keys renamed."""
    root = [copy.deepcopy(tree)]
    for _ in range(pick.choice([1, 1, 1, 2, 3, 4])):
        where, key = pick.choice(places(root))
        other, source = pick.choice(places(root))
        match pick.randrange(8):
            case 0 | 1 | 2:
                where[key] = like(where[key], pick) if pick.random() < 0.6 else odd(pick)
            case 3 if where is not root:
                del where[key]
            case 4:
                where[key] = [where[key]]
            case 5:
                where[key] = copy.deepcopy(other[source])
            case 6 if isinstance(where, dict):
                where[str(odd(pick)) if pick.random() < 0.7 else pick.choice(WORDS)] = where.pop(key)
            case _ if isinstance(where, dict):
                where[pick.choice(WORDS)] = odd(pick)
    return root[0]


def garbled(text: str, pick: random.Random) -> str:
    """A text with a few characters or lines removed, repeated or put in."""
    for _ in range(pick.randint(1, 3)):
        at = pick.randrange(len(text) + 1)
        end = min(len(text), at + pick.randint(0, 12))
        put = pick.choice(
            [
                "",
                text[at:end] * 2,
                str(pick.choice(TEXTS)),
                repr(pick.choice(NUMBERS)),
                pick.choice(":{}[],-&*!|>'\"#%@\t\n"),
            ]
        )
        text = text[:at] + put + text[end:]
    return text


SEEDS = st.integers(0, 2**63 - 1)


# --------------------------------------------------------------------------------------------- (1) YAML campaigns

DOCS = Path(__file__).parents[1] / "docs"
SPECS = [
    yaml.safe_load(block)
    for name in ("yaml.md", "fidelities.md", "goals.md")
    for block in re.findall(r"^```yaml\n(.*?)^```", (DOCS / name).read_text(), flags=re.M | re.S)
]
for tree in SPECS:
    if "python" in tree.get("evaluator", {}):
        tree["evaluator"]["python"] = "math:sqrt"  # never imported
SPECS = [tree for tree in SPECS if isinstance(tree, dict) and {"parameters", "tasks"} <= set(tree)]


def spec_text(pick: random.Random) -> str:
    tree = mutated(pick.choice(SPECS), pick)
    try:
        text = yaml.safe_dump(
            tree, allow_unicode=True, sort_keys=False, default_flow_style=pick.choice([None, True, False])
        )
    except (yaml.YAMLError, ValueError):  # what cannot be written cannot be read
        text = repr(tree)
    return garbled(text, pick) if pick.random() < 0.3 else text


def lawful(text: str, file: Path, ask: bool) -> None:
    """A text is refused, or is a campaign that can be stored, opened, shown and asked."""
    try:
        spec = parse(text, file)
    except InvalidSpec as error:
        assert str(file) in str(error)
        assert len(str(error)) < ROOM
        return
    assert Problem.from_json(json.loads(json.dumps(spec.problem.to_json()))) == spec.problem
    try:
        campaign = begin(spec, MemoryStore())
        campaign.status()
        campaign = Campaign.open(campaign.store, spec.name)
        if ask:
            (trial,) = campaign.ask(1)
            assert campaign.problem.space.check(trial.x, "asked") == trial.x
            campaign.tell(trial.number, {task: 1.0 for task in campaign.problem.task_names})
            assert campaign.status().finished == 1
            exported(campaign, "trials", "json")
    except ExcursionError as error:
        assert len(str(error)) < ROOM


@fuzz(600)
@given(SEEDS)
def test_campaigns(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    pick = random.Random(seed)
    text = spec_text(pick)
    with soon():
        lawful(text, Path("fuzz.yaml"), ask=pick.random() < 0.2)


def described(tree: Any) -> dict[str, Any] | None:
    """What a store holds of a campaign."""
    try:
        spec = parse(yaml.safe_dump(tree))
    except InvalidSpec:  # a file that it names is not here
        return None
    store = MemoryStore()
    return store.spec(begin(spec, store).name)


DESCRIPTIONS = [found for tree in SPECS if (found := described(tree)) is not None]


@fuzz(250)
@given(SEEDS)
def test_descriptions_in_a_store(seed: int) -> None:
    """Somebody has tampered with what the store says."""
    pick = random.Random(seed)
    store = MemoryStore()
    with soon():
        try:
            store.create("fuzz", {"version": 1} | dict(mutated(pick.choice(DESCRIPTIONS), pick)))
            campaign = Campaign.open(store)
            campaign.status()
            campaign.tell(campaign.ask(1)[0].number, Outcome.failed("no"))
            assert campaign.status().finished == 1
        except (ExcursionError, ValueError, TypeError) as error:
            # What is no object cannot be given to a store at all.
            assert isinstance(error, ExcursionError) or store.names() == []


@fuzz(25)
@given(SEEDS)
def test_rows_in_a_store(folder: Path, seed: int) -> None:
    """Somebody has tampered with a row: it is read or refused, the doctor looks at it, and repair keeps the others."""
    pick = random.Random(seed)
    path = folder / "rows.db"
    path.unlink(missing_ok=True)
    campaign_of(path, 4).store.close()
    before = {t.number: t for t in Campaign.open(path).trials}
    engine = sa.create_engine(f"sqlite:///{path}")
    columns = ["x", "predicted", "belief", "outcome", "criterion", "owner", "fidelity", "score", "asked", "basis"]
    with engine.begin() as c:
        number, column = pick.randrange(4), pick.choice(columns)
        old = c.scalar(sa.text(f"SELECT {column} FROM trial WHERE number = {number}"))
        value: Any = pick.choice([garbled(str(old), pick), json.dumps(mutated({"f": 1, "x": [1]}, pick), default=str)])
        with contextlib.suppress(sa.exc.DBAPIError, UnicodeError, OverflowError):
            c.execute(sa.text(f"UPDATE trial SET {column} = :value WHERE number = {number}"), {"value": value})
    engine.dispose()
    with contextlib.suppress(ExcursionError):
        if any(set(t.x) != {"x", "y"} for t in Campaign.open(path).trials):
            return  # a row that makes sense, of another campaign: whoever may write to a store is trusted with that
    with soon(4 * SECONDS):
        for line in ("list", "log", "doctor", "doctor --repair"):
            done = CliRunner().invoke(app, [*line.split(), str(path)])
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise AssertionError(f"{line} with {column} = {value!r}") from done.exception
        try:
            after = {t.number: t for t in Campaign.open(path).trials}
        except ExcursionError:
            return
        assert all(after[n] == before[n] for n in before if n != number and not before[n].pending)


# ------------------------------------------------------------------------------------------- (2) results and tables

SEARCH = Search(pool=64, candidates=16, integration=16)


def campaign_of(store: Any, trials: int) -> Campaign:
    """Two tasks over two parameters; some trials are told, some are not."""
    problem = Problem({"x": (0, 1), "y": (1, 10, "log")}, (Task("f", 0.5), Task("g", 1.0, "log")))
    campaign = Campaign.create(store, "fuzz", problem, Strategy(design_size=10**6, search=SEARCH))
    for trial in campaign.ask(trials):
        if trial.number % 2:
            campaign.tell(trial.number, {"f": trial.x["x"], "g": trial.x["y"]})
    return campaign


def require_kept(before: list[Trial], after: list[Trial]) -> None:
    """Finished trials are as they were, and no trial is gone."""
    assert len(after) >= len(before)
    for old, new in zip(before, after):
        assert (old.number, old.x, old.seed) == (new.number, new.x, new.seed)
        if not old.pending:
            assert old == new
    assert [t.number for t in after] == list(range(len(after)))
    places = sorted(t.told for t in after if t.told is not None)
    assert places == list(range(len(places)))


RESULTS: list[Any] = [
    1.5,
    {"f": 0.7, "g": 2.0},
    {
        "values": {"f": 0.7, "g": 2},
        "variances": {"f": 0.01},
        "bounds": {"g": "above"},
        "info": {"seconds": 3, "yields": [1, 2]},
    },
    {"f": None, "g": 1.0},
]


def result_text(pick: random.Random) -> bytes:
    tree = pick.choice(RESULTS)
    if pick.random() < 0.8:
        tree = mutated(tree, pick)
    try:
        text = json.dumps(tree, ensure_ascii=pick.random() < 0.5)
    except (TypeError, ValueError):
        text = str(tree)
    if pick.random() < 0.1:
        text = text.replace(":", ":" + "[" * (deep := pick.choice([10, 80, 900, 30000]))).replace(",", "]" * deep + ",")
    if pick.random() < 0.3:
        text = garbled(text, pick)
    return text.encode(pick.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"]), "surrogatepass")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return campaign_of(tmp_path_factory.mktemp("store") / "fuzz.db", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@fuzz(150)
@given(SEEDS)
def test_results_of_programs(campaign: Campaign, folder: Path, seed: int) -> None:
    """A real program writes them; what the evaluator makes of them is told."""
    pick = random.Random(seed)
    (folder / "payload").write_bytes(result_text(pick))
    stdout = pick.random() < 0.3
    program = "cat {folder}/payload" if stdout else "cp {folder}/payload result.json"
    command = Command(program, result="stdout" if stdout else "result.json", workdir="work", folder=str(folder))
    before = campaign.trials
    with soon():
        try:
            found = command.evaluate(Job({"x": 0.5, "y": 2.0}, number=1))
        except EvaluationError as error:
            assert len(str(error)) < ROOM
            return
        (trial,) = campaign.add([{"x": pick.random(), "y": 2.0}])
        try:
            told = campaign.tell(trial.number, found)
            assert told.outcome is not None
            assert (told.outcome.values, told.outcome.bounds) == (found.values, found.bounds)
            assert told.outcome.variances == found.variances
        except InvalidOutcome:
            campaign.tell(trial.number, {"f": 1.0, "g": 1.0})
        after = campaign.trials
        require_kept(before, after)
        if len(after) < 200:  # another process sees the same
            assert Campaign.open(campaign.store.url, "fuzz").trials == after


LIMITS = {
    "limits": {"obs": 1.2, "exp": [0.5, "1.1", 2.0]},
    "errors": {"obs": 0.1},
    "CLs": 0.03,
    "note": None,
    "big": "inf",
}


@fuzz(400)
@given(SEEDS)
def test_results_read_by_keys(folder: Path, seed: int) -> None:
    pick = random.Random(seed)
    yml = pick.random() < 0.4
    tree = mutated(LIMITS, pick) if pick.random() < 0.8 else LIMITS
    try:
        text = yaml.safe_dump(tree, allow_unicode=True) if yml else json.dumps(tree, default=str)
    except (yaml.YAMLError, ValueError):
        text = repr(tree)
    file = folder / ("limits.yaml" if yml else "limits.json")
    file.write_bytes((garbled(text, pick) if pick.random() < 0.3 else text).encode("utf-8", "replace"))
    keys = [
        "limits.obs",
        "limits.exp.1",
        "limits.exp.-1",
        "CLs",
        "big",
        "note",
        "limits",
        "errors.obs",
        "no.such",
        "limits.exp.99",
    ]
    with soon():
        try:
            reader = Reader(
                file.name,
                {"f": pick.choice(keys), "g": pick.choice(keys)},
                quantity=pick.choice(["value", "mu_95", "CLs"]),
                valid=pick.choice([{}, {"f": (0, 1)}, {"g": (-math.inf, 2)}]),
                scale=pick.choice([1.0, -1e3, 1e200, {"f": 1e-200}]),
                errors=pick.choice([{}, {"f": "errors.obs"}, {"g": "limits.obs"}]),
                missing=pick.choice([(), ("f",), ("g",)]),
            )
            found = reader.read(folder)
        except (EvaluationError, InvalidSpec) as error:
            assert len(str(error)) < ROOM
            return
        assert set(found.values) | set(found.missing) == {"f", "g"}


@fuzz(300)
@given(SEEDS)
def test_results_that_people_tell(seed: int) -> None:
    pick = random.Random(seed)
    campaign = campaign_of("memory://", 2)
    told: dict[str, Any] = {}
    if pick.random() < 0.5:
        told["text"] = result_text(pick).decode("utf-8", "surrogateescape")
    if pick.random() < 0.5:
        told["values"] = [f"{pick.choice(['f=', 'g=', '', 'h='])}{odd(pick)}" for _ in range(pick.randint(0, 3))]
    if pick.random() < 0.2:
        told["failed"] = str(odd(pick))
    before = campaign.trials
    with soon():
        try:
            campaign.tell(pick.choice([0, 0, 0, 1, 2, -1, 10**20]), outcome(campaign.problem, **told))
        except ExcursionError as error:
            assert len(str(error)) < ROOM
        require_kept(before, campaign.trials)
        exported(campaign, "trials", "csv"), exported(campaign, "trials", "json")


HEPDATA = {
    "independent_variables": [
        {"header": {"name": "x"}, "values": [{"value": 0.2}, {"low": 0.4, "high": 0.6}]},
        {"header": {"name": "y"}, "values": [{"value": 2}, {"value": 3}]},
    ],
    "dependent_variables": [
        {
            "header": {"name": "f", "units": "GeV"},
            "values": [
                {"value": 1.0, "errors": [{"symerror": 0.1}, {"asymerror": {"plus": 1, "minus": "-2%"}}]},
                {"value": "-"},
            ],
        }
    ],
}
ANSWERS = [{"number": n, "f": 0.5 * n, "f_err": 0.1, "g": 1.0, "g_bound": "above"} for n in (0, 2)]
ROWS = [{"number": n, "x": 0.1 * n, "y": 1 + n, "f": 0.5 * n, "f_err": 0.1, "g": 1.0, "g_bound": ""} for n in range(4)]


def table_file(pick: random.Random, folder: Path) -> Path:
    form = pick.choice(["csv", "csv", "json", "columns", "hepdata"])
    rows = pick.choice([ROWS, ANSWERS])
    tree: Any = HEPDATA if form == "hepdata" else rows
    if form == "columns":
        tree = {name: [row[name] for row in rows] for name in rows[0]}
    if pick.random() < 0.9:
        tree = mutated(tree, pick)
    if form == "csv" and isinstance(tree, list):
        rows = [row if isinstance(row, dict) else {"number": row} for row in tree]
        names = list(dict.fromkeys(name for row in rows for name in row))
        delimiter = pick.choice(",;\t")
        text = "\n".join(
            delimiter.join(map(str, line)) for line in [names, *([r.get(n, "") for n in names] for r in rows)]
        )
    elif form == "hepdata":
        try:
            text = yaml.safe_dump(tree, allow_unicode=True)
        except (yaml.YAMLError, ValueError):
            text = repr(tree)
    else:
        text = json.dumps(tree, default=str)
    if pick.random() < 0.3:
        text = garbled(text, pick)
    file = folder / ("table." + ("yaml" if form == "hepdata" else pick.choice(["csv", "json", "txt"])))
    file.write_bytes(text.encode(pick.choice(["utf-8"] * 8 + ["utf-16", "latin-1"]), "replace"))
    return file


@fuzz(400)
@given(SEEDS)
def test_tables(folder: Path, seed: int) -> None:
    pick = random.Random(seed)
    campaign = campaign_of("memory://", 4)
    file = table_file(pick, folder)
    before = campaign.trials
    with soon():
        for use in (campaign.tell_table, campaign.warm_start):
            try:
                use(file)
            except ExcursionError as error:
                assert len(str(error)) < ROOM
        after = campaign.trials
        require_kept(before, after)
        exported(campaign, "trials", "json")


# ------------------------------------------------------------------------------------------------ (3) the command

OPTIONS = [
    "--json",
    "--csv",
    "-n",
    "--value",
    "--file",
    "--failed",
    "--impossible",
    "--name",
    "--format",
    "--out",
    "--what",
    "--fix",
]
OPTIONS += [
    "--fidelity",
    "--column",
    "--goal",
    "--help",
    "--task",
    "--threshold",
    "--transform",
    "--constraint",
    "--where",
    "--seed",
]
OPTIONS += [
    "--all",
    "--reason",
    "--state",
    "--submit",
    "--template",
    "--slha",
    "--to",
    "--pending",
    "--belief",
    "--repair",
]
OPTIONS += ["--budget", "--workers", "--no-progress"]
LINES = [
    line.split()
    for line in (
        "list scan.db",
        "status scan.db fuzz --goal 0.01 --json",
        "doctor scan.db --repair",
        "log scan.db",
        "ask scan.db -n 2 --csv",
        "ask scan.db fuzz --json",
        "tell scan.db 0 --value f=1 --value g=2",
        "tell scan.db 2 --failed no",
        "tell scan.db 0 --json {}",
        "tell scan.db 0 --file answer.json --name fuzz",
        "tell scan.db --csv table.csv",
        "import scan.db fuzz known.csv --column m=x --column n=y",
        "import scan.db fuzz table.csv",
        "export scan.db --format json",
        "export scan.db fuzz --what trials --out trials.csv",
        "create scan.yaml",
        "run scan.yaml --budget 3 --no-progress",
        "resume scan.db --budget 1",
        "replay table.csv --threshold 1 --parameters x,y --output f",
        "approve scan.db fuzz --all",
        "approve scan.db 0 2-3",
        "reject scan.db 2 --reason no",
        "withdraw scan.db 2",
        "requests scan.db --pending --json",
        "export-requests scan.db -n 1 --format yaml --out requests.yaml --submit --to me",
        "export-requests scan.db --format slha --out requests --slha MASS:1=x",
        "import-results scan.db table.csv answer.json",
        "nonsense",
        "--version",
    )
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder deep enough that '../..' stays inside, with a store, a table and some odd files."""
    desk = tmp_path_factory.mktemp("desk") / "a" / "b" / "c"
    desk.mkdir(parents=True)
    campaign_of(desk / "scan.db", 4).store.close()
    (desk / "table.csv").write_text("number,x,y,f,g\n0,0.1,2,1,1\n")
    (desk / "scan.yaml").write_text("parameters: {x: [0, 1]}\ntasks: {f: 0}\nstore: new.db\n")
    (desk / "known.csv").write_text("m,n,f\n0.3,2,1\n0.4,5,2\n")
    (desk / "answer.json").write_text('{"values": {"f": 1, "g": 2}, "info": {"a": [1]}}')
    (desk / "binary").write_bytes(bytes(range(256)))
    (desk / "empty").write_bytes(b"")
    return desk


def arguments(pick: random.Random) -> list[str]:
    names = [
        "scan.db",
        "scan.db",
        "scan.db",
        "fuzz",
        "table.csv",
        "scan.yaml",
        "binary",
        "empty",
        "0",
        "1",
        "none.db",
        "sqlite:///scan.db",
    ]
    names += ["postgresql://u:p@127.0.0.1:1/d", "f=1", "x=y", '{"f": 1, "g": 2}']
    words = list(pick.choice(LINES))
    for _ in range(pick.choice([0, 1, 1, 1, 2, 4])):
        at = pick.randrange(1, len(words) + 1)
        put = pick.choice([*names, pick.choice(OPTIONS), str(odd(pick)), str(odd(pick)), str(odd(pick))])
        words[at : at + pick.randint(0, 1)] = pick.choice([[put], [put], [put], [], [words[at % len(words)]]])
    return [word for word in words if word not in ("/dev/zero", "/")]


@fuzz(75)
@given(SEEDS)
def test_arguments(desk: Path, seed: int) -> None:
    pick = random.Random(seed)
    words = arguments(pick)
    here = os.getcwd()
    os.chdir(desk)
    try:
        before = Campaign.open("scan.db").trials
        with soon(4 * SECONDS):
            done = CliRunner().invoke(app, words, input="")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(f"excursion {words}") from done.exception
        assert done.exit_code in (0, 1, 2), done.output
        require_kept(before, Campaign.open("scan.db").trials)
    finally:
        os.chdir(here)
