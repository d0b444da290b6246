"""The command `excursion`: parse, call one function, print. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from .errors import ExcursionError, InvalidOutcome, InvalidPoint, InvalidTable
from .secrets import masked, without_password
from .untrusted import LARGEST_RESULT, printable, read_text

if TYPE_CHECKING:
    from .campaign import Campaign

app = typer.Typer(
    help="Find level sets (exclusion contours) of expensive functions with few evaluations.\n\n"
    "A campaign is one search: its parameters, the thresholds that matter and every point evaluated so far, kept in a "
    "store (an SQLite file). Several commands may work on the same store at the same time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
examples = typer.Typer(help="Run a complete example with real physics.", no_args_is_help=True)
app.add_typer(examples, name="example")

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Store: an SQLite file or a database URL.")]
NameArgument = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Campaign; not needed if the store holds only one.")
]
SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC.yaml", help="Description of the campaign; see docs/yaml.md.")
]
Budget = Annotated[int | None, typer.Option(help="Evaluations in all, earlier ones included.")]
Workers = Annotated[int | None, typer.Option(help="Evaluations at the same time.")]
Goal = Annotated[
    list[str] | None,
    typer.Option(
        help="When it is known well enough: 0.01, '1 % ambiguous', 'observed within 10 GeV of m_chi'; may be repeated.",
    ),
]
Executor = Annotated[
    str | None,
    typer.Option(
        help="Where to evaluate: local, dask, parsl, globus-compute, mpi, workers; see docs/executors.md.",
        metavar="NAME",
    ),
]
Progress = Annotated[bool, typer.Option(help="Show live figures.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@contextmanager
def _reported() -> Iterator[None]:
    """Our errors become one line and exit code 2; anything else is a bug and shows its traceback."""
    try:
        yield
    except ExcursionError as error:
        _say(f"error: {_line(str(error))}", err=True)
        raise typer.Exit(2) from None


def _say(text: Any, *, err: bool = False, nl: bool = True) -> None:
    """Print, but for what would steer the terminal or is no character: texts of programs may hold anything."""
    typer.echo(printable(str(text)), err=err, nl=nl)


def _line(text: str) -> str:
    """A text on one line, without secrets."""
    return " ".join(masked(text).split())


@contextmanager
def _interruptible(command: str) -> Iterator[None]:
    """Ctrl-C, or a batch system's SIGTERM, ends a run with exit code 130 and the command that goes on with it."""

    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _reported():
            yield
    except KeyboardInterrupt:
        _say(_line(f"interrupted: go on with: excursion {without_password(command)}"), err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _say(f"excursion {version('excursion')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("run")
def run_spec(
    spec: SpecArgument,
    budget: Budget = None,
    workers: Workers = None,
    goal: Goal = None,
    executor: Executor = None,
    progress: Progress = True,
) -> None:
    """Run the campaign that a YAML file describes, or go on with it.

    The campaign is created in its store if it is not there. If it is, it goes on where it stopped, provided that
    problem and strategy are the same.
    """
    with _interruptible(f"run {shlex.quote(str(spec))}"):
        from .report.tables import ended
        from .spec import begin, chosen, go_on, load

        found = load(spec)
        campaign = begin(found)
        options: dict[str, Any] = {"budget": budget, "workers": workers, "goal": goal or None}
        options["executor"] = chosen(executor, found.executor)
        report = go_on(campaign, found.evaluator, found.run, **options, progress=progress)
        _say(_line(ended(report, without_password(found.store))))


@app.command()
def create(spec: SpecArgument) -> None:
    """Create the campaign that a YAML file describes without running it, for ask and tell by hand."""
    with _reported():
        from .spec import begin, load

        found = load(spec)
        _say(f"campaign {begin(found).name!r} is in {without_password(found.store)}")


@app.command()
def resume(
    store: StoreArgument,
    name: NameArgument = None,
    budget: Budget = None,
    workers: Workers = None,
    goal: Goal = None,
    executor: Executor = None,
    progress: Progress = True,
) -> None:
    """Go on with a campaign from its store alone; the YAML file is not needed.

    Points that were in flight when a run died are evaluated again; everything that was told is kept.
    """
    with _interruptible(shlex.join(["resume", store, *([name] if name else [])])):
        from .report.tables import ended
        from .spec import resume as go_on

        options: dict[str, Any] = {"budget": budget, "workers": workers, "goal": goal or None, "executor": executor}
        _say(_line(ended(go_on(store, name, **options, progress=progress), without_password(store))))


@app.command()
def work(
    store: StoreArgument,
    name: NameArgument = None,
    spec: Annotated[
        Path | None, typer.Option(help="Take the evaluator from this file, not from the store.", metavar="SPEC.yaml")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="What the evaluator's paths are relative to, if it is elsewhere here.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Workers to run; one that dies is started again.")] = 1,
    lease: Annotated[
        float | None,
        typer.Option(help="Seconds after which others take over from a worker that has gone. [default: 60]"),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that an evaluation may take.")] = None,
    memory: Annotated[str | None, typer.Option(help="What an evaluation may hold in memory: 2GB.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Keep logs and files of the evaluations there.", metavar="FOLDER|URL")
    ] = None,
    ask: Annotated[bool, typer.Option(help="Ask for new points when nothing is queued.")] = True,
    budget: Budget = None,
    goal: Goal = None,
    limit: Annotated[int | None, typer.Option(help="Evaluations that this worker does at most.")] = None,
    idle: Annotated[float | None, typer.Option(help="End after so many seconds without work.")] = None,
    grace: Annotated[float, typer.Option(help="Seconds that an evaluation may go on after SIGTERM or Ctrl-C.")] = 30.0,
) -> None:
    """Evaluate what a campaign asks for, as one worker of any number, on this machine or others.

    It ends when the campaign's budget is spent or its goal reached. SIGTERM or Ctrl-C stop it after the evaluation that
    runs, if that ends within the grace period; a second one stops it at once. What has not ended is left to others.
    """
    again = [arg for arg in sys.argv[1:] if not arg.startswith("--jobs=")]
    while "--jobs" in again:
        del again[(at := again.index("--jobs")) : at + 2]
    with _interruptible(shlex.join(again)):
        if jobs != 1:
            from .work import supervise

            raise typer.Exit(supervise([sys.executable, "-m", "excursion.cli", *again], jobs, _log))
        from .isolation import bytes_of
        from .spec import take_part

        found = take_part(
            store,
            name,
            file=spec,
            folder=folder,
            lease=lease,
            timeout=timeout,
            memory=None if memory is None else bytes_of(memory),
            artifacts=artifacts,
            ask=ask,
            budget=budget,
            goal=goal or None,
            limit=limit,
            idle=idle,
            grace=grace,
            say=_log,
        )
        lost = f", {found.given_back} given back" if found.given_back else ""
        _say(
            f"{found.reason}: {found.evaluations} evaluations, {found.failed} failed{lost}, {found.seconds:.1f} s"
            + (f"; the last error: {_line(found.last_error)}" if found.last_error else "")
        )


def _log(line: str) -> None:
    _say(f"{time.strftime('%H:%M:%S')} {os.getpid()} {_line(line)}", err=True)


@app.command("list")
def list_campaigns(store: StoreArgument) -> None:
    """List the campaigns of a store."""
    with _reported():
        from .report.tables import listing

        for line in listing(store):
            _say(line)


@app.command()
def status(
    store: StoreArgument,
    name: NameArgument = None,
    goal: Goal = None,
    belief: Annotated[
        bool | None, typer.Option(help="Fit what is believed; by default up to 3000 points, where it takes a minute.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a campaign stands, also while it runs, and how many more points its goal may need."""
    with _reported():
        from .campaign import Campaign
        from .report.tables import standing, standing_lines, strict_json

        found = standing(Campaign.open(store, name), goal or None, belief)
        _say(strict_json(found) if as_json else "\n".join(standing_lines(found)))


@app.command()
def sets(
    store: StoreArgument,
    name: NameArgument = None,
    task: Annotated[str | None, typer.Option(help="One output; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """How well {f >= threshold} is known: volume with error, bands, conservative sets, pieces, unexplored holes."""
    with _reported():
        from .campaign import Campaign
        from .report.tables import sets as summaries
        from .report.tables import sets_json, sets_lines
        from .result import Result

        found = summaries(Result.of(Campaign.open(store, name)), task)
        _say(sets_json(found) if as_json else "\n".join(sets_lines(found)))


@app.command()
def doctor(
    store: StoreArgument,
    name: NameArgument = None,
    repair: Annotated[bool, typer.Option("--repair", help="Repair in the store what can be repaired.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong or odd: failures that cluster, errors, trials that hang, thresholds that nothing crosses.

    The store is checked, too: damaged rows, gaps, lines missing in the log, leases that ended, processes that died.
    """
    with _reported():
        from dataclasses import asdict

        from .campaign import Campaign
        from .doctor import examine
        from .report.tables import strict_json

        found = examine(Campaign.open(store, name), time.time(), repair=repair)
        if as_json:
            _say(strict_json([asdict(finding) for finding in found]))
        else:
            _say("\n".join(f"{f.kind}: {f.text}" for f in found) or "nothing is odd")


@app.command()
def log(
    store: StoreArgument,
    name: NameArgument = None,
    number: Annotated[int | None, typer.Option(help="Of one trial only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show who did what and when: every ask, claim, retry and value, with machine, version and seed."""
    with _reported():
        from .campaign import Campaign
        from .report.tables import log_json, log_lines

        campaign = Campaign.open(store, name)
        events = campaign.store.events(campaign.name, number)
        _say(log_json(events) if as_json else "\n".join(log_lines(events)))


@app.command()
def ask(
    store: StoreArgument,
    name: NameArgument = None,
    n: Annotated[int, typer.Option("-n", help="How many points.")] = 1,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table to fill in; tell --csv reads it.")] = False,
) -> None:
    """Ask for the next points, to evaluate them by any means and `tell` the values.

    Each line holds the number to tell and the parameters, and the fidelity and number of events where the campaign
    chooses them. The points are queued: a run takes them up, too.
    """
    with _reported():
        from .campaign import Campaign
        from .report.tables import point_lines, points_csv, points_json

        campaign = Campaign.open(store, name)
        trials = campaign.ask(n)
        if as_csv:
            _say(points_csv(campaign.problem, trials), nl=False)
        else:
            _say(points_json(trials) if as_json else "\n".join(point_lines(trials)))


@app.command()
def tell(
    store: StoreArgument,
    number: Annotated[
        int | None, typer.Argument(metavar="NUMBER", help="Number of the point, as printed by ask.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="Value, or task=value for each of several tasks.", metavar="[TASK=]VALUE")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--json", help='JSON: {"task": value}, or {"values": ..., "variances": ...}.', metavar="JSON"),
    ] = None,
    file: Annotated[str | None, typer.Option(help="File with such JSON; - for standard input.", metavar="FILE")] = None,
    failed: Annotated[str | None, typer.Option(help="There is no value, for this reason.", metavar="REASON")] = None,
    impossible: Annotated[bool, typer.Option("--impossible", help="With --failed: it would fail again.")] = False,
    table: Annotated[
        str | None,
        typer.Option("--csv", help="The table of ask --csv, filled in; empty cells are missing.", metavar="TABLE"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Campaign; not needed if the store holds only one.")] = None,
) -> None:
    """Tell what came back from a point, or from all points of a table. A finished point never changes."""
    with _reported():
        if (number is None) == (table is None) or (table and (value or text or file or failed)):
            raise InvalidOutcome("tell: needs the number of a point and its value, or a table, got both or neither")
        from .campaign import Campaign
        from .spec import outcome

        campaign = Campaign.open(store, name)
        if table is not None or number is None:
            for trial in campaign.tell_table(table or ""):
                _say(f"trial {trial.number} is {trial.state}")
            return
        if file is not None and text is None:
            piped = sys.stdin.read(LARGEST_RESULT) if file == "-" else None
            text = piped if piped is not None else read_text(file, InvalidOutcome, largest=LARGEST_RESULT)
        told = outcome(campaign.problem, values=value or (), text=text, failed=failed, permanent=impossible)
        _say(f"trial {number} is {campaign.tell(number, told).state}")


@app.command("import")
def import_table(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Campaign.")],
    table: Annotated[str, typer.Argument(metavar="TABLE", help="CSV with a header, JSON, or HEPData's YAML.")],
    fidelity: Annotated[str, typer.Option(help="Which fidelity the table holds, where the campaign has some.")] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(help="The table's name of a column and ours, where they differ.", metavar="THEIRS=OURS"),
    ] = None,
) -> None:
    """Tell a campaign what a table knows already; its rows cost nothing. Rows told before are left out."""
    with _reported():
        from .campaign import Campaign

        columns = {}
        for item in column or ():
            theirs, equals, ours = item.rpartition("=")
            if not equals or not theirs or not ours:
                raise InvalidTable(f"import: a column is theirs=ours, got {item!r}. Write --column theirs=ours")
            columns[theirs.strip()] = ours.strip()
        _say(Campaign.open(store, name).warm_start(table, fidelity, columns))


@app.command("export-requests")
def export_requests(
    store: StoreArgument,
    name: NameArgument = None,
    format_: Annotated[
        Literal["csv", "slha", "yaml", "spreadsheet"], typer.Option("--format", help="What the people work with.")
    ] = "csv",
    out: Annotated[Path | None, typer.Option(help="File to write, or folder; SLHA always goes into a folder.")] = None,
    n: Annotated[int, typer.Option("-n", min=0, help="Ask for so many new points first; they are proposed.")] = 0,
    state: Annotated[
        Literal["open", "proposed", "approved", "submitted", "all"],
        typer.Option(help="Which requests; open: all that nobody works on."),
    ] = "open",
    submit: Annotated[bool, typer.Option("--submit", help="They have them now: nobody else evaluates them.")] = False,
    to: Annotated[str | None, typer.Option(help="With --submit: who has them; you by default.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="SLHA file in which {name} or {name:.6E} is a parameter.")
    ] = None,
    slha: Annotated[
        list[str] | None,
        typer.Option(help="Entry of the SLHA file that is a parameter; may be repeated.", metavar="BLOCK:KEY=NAME"),
    ] = None,
) -> None:
    """Write requests for a production team: a table to fill in, or one SLHA file for each point.

    What comes back is read by import-results. A file that is there already is not touched.
    """
    with _reported():
        from .campaign import Campaign
        from .handover import export_requests as write_requests

        campaign = Campaign.open(store, name)
        place = out if out is not None else Path(".") if format_ != "slha" else Path("requests")
        asked, files = write_requests(
            campaign, format_, place, n=n, wanted=state, submit=submit, template=template, entries=slha or (), who=to
        )
        where = str(files[0]) if len(files) == 1 else f"{place} ({len(files)} files)"
        _say(f"{_counted(len(asked))} in {where}{': submitted' if submit else ''}")


@app.command("import-results")
def import_results(
    store: StoreArgument,
    names: Annotated[
        list[str],
        typer.Argument(metavar="[NAME] FILE...", help="Campaign, if there are several; result files, or folders."),
    ],
    as_json: AsJson = False,
) -> None:
    """Tell what came back from people: CSV, spreadsheets, YAML, JSON, SLHA; parts of them, in any order, twice.

    Every row that makes sense is told, and every other one refused with the reason; then the exit code is 1.
    """
    with _reported():
        from dataclasses import asdict

        from .handover import import_results as read_results
        from .handover import person
        from .report.tables import strict_json

        campaign, files = _campaign_and(store, names, lambda word: len(names) == 1 and Path(word).exists())
        if not files:
            raise InvalidTable("import-results: needs a result file, got none. Name a file or a folder")
        found = read_results(campaign, files, person())
        _say(strict_json(asdict(found)) if as_json else "\n".join(found.lines()))
        if found.refused:
            raise typer.Exit(1)


@app.command()
def approve(
    store: StoreArgument,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] NUMBERS...", help="Campaign, if there are several; 3 5-9.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are proposed.")] = False,
) -> None:
    """Let workers evaluate requests that are proposed."""
    with _reported():
        from .handover import approve as let
        from .handover import numbers

        campaign, words = _campaign_and(store, names or [], _is_numbers)
        if everything == bool(words):
            raise InvalidPoint("approve: needs the numbers of requests or --all, got both or neither")
        done = let(campaign, None if everything else numbers(campaign, words))
        _say(f"{_counted(len(done))} {'is' if len(done) == 1 else 'are'} approved")


@app.command()
def reject(
    store: StoreArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME] NUMBERS...", help="Campaign, if there are several; 3 5-9.")
    ],
    reason: Annotated[str, typer.Option(help="Why; it is kept.")],
) -> None:
    """Refuse requests: they will never be evaluated, and the campaign learns that their points are not possible."""
    with _reported():
        from .handover import numbers
        from .handover import reject as refuse

        campaign, words = _campaign_and(store, names, _is_numbers)
        done = refuse(campaign, numbers(campaign, words), reason)
        _say(f"{_counted(len(done))} {'is' if len(done) == 1 else 'are'} rejected")


@app.command()
def withdraw(
    store: StoreArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="[NAME] NUMBERS...", help="Campaign, if there are several; 3 5-9.")
    ],
) -> None:
    """Take submitted requests back from the people who have them: workers may evaluate them."""
    with _reported():
        from .handover import numbers
        from .handover import withdraw as take_back

        campaign, words = _campaign_and(store, names, _is_numbers)
        done = take_back(campaign, numbers(campaign, words))
        _say(f"{_counted(len(done))} {'is' if len(done) == 1 else 'are'} withdrawn")


@app.command()
def requests(
    store: StoreArgument,
    name: NameArgument = None,
    pending: Annotated[bool, typer.Option("--pending", help="Only those that are not finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what was asked for: how far it is, and who did what, when."""
    with _reported():
        from .campaign import Campaign
        from .handover import requests as listed
        from .handover import requests_lines
        from .report.tables import strict_json

        found = listed(Campaign.open(store, name), pending)
        _say(strict_json(found) if as_json else "\n".join(requests_lines(found)))


def _counted(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _campaign_and(store: str, words: list[str], belongs: Callable[[str], bool]) -> tuple[Campaign, list[str]]:
    """The campaign, and the words without its name, which may come first.

    Args:
        store: its URL.
        words: what stands after it.
        belongs: whether a word is one of those that come after the name.
    """
    from .campaign import Campaign
    from .store import open_store

    opened = open_store(store, create=False)
    if words and words[0] in opened.names() and not belongs(words[0]):
        return Campaign.open(opened, words[0]), words[1:]
    if words and not belongs(words[0]) and len(opened.names()) != 1:
        return Campaign.open(opened, words[0]), words[1:]  # raises, and lists the names
    return Campaign.open(opened, None), words


def _is_numbers(word: str) -> bool:
    return bool(re.fullmatch(r"(.*#)?[0-9]+(-[0-9]+)?(,.*)?", word))


@app.command()
def plot(
    store: StoreArgument,
    name: NameArgument = None,
    out: Annotated[str, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = "excursion.png",
) -> None:
    """Draw contours, excursion probability and evaluated points."""
    with _reported():
        from .campaign import Campaign
        from .report.plot import plot as draw
        from .result import Result

        draw(Result.of(Campaign.open(store, name)), out)
        _say(out)


@app.command()
def export(
    store: StoreArgument,
    name: NameArgument = None,
    what: Annotated[Literal["trials", "contours"], typer.Option(help="All points, or the lines found.")] = "trials",
    format_: Annotated[
        Literal["csv", "json"], typer.Option("--format", help="JSON holds units and ranges, too.")
    ] = "csv",
    out: Annotated[str, typer.Option(help="File to write; - for standard output.")] = "-",
    fix: Annotated[
        list[str] | None,
        typer.Option(help="Contours in more than two parameters: hold one, name=value.", metavar="NAME=VALUE"),
    ] = None,
) -> None:
    """Export trials or contours as CSV or JSON."""
    with _reported():
        from .campaign import Campaign
        from .report.tables import exported, write

        text = exported(Campaign.open(store, name), what, format_, fix or ())
        if out == "-":
            _say(text, nl=not text.endswith("\n"))
        else:
            write(text, out)


@app.command()
def replay(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="The scan: CSV with a header, or a JSON list.")],
    threshold: Annotated[float, typer.Option(help="The value that divides the space.")] = 1.0,
    parameters: Annotated[
        str | None, typer.Option(help="Columns that were scanned, by commas; all that vary by default.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Column of the values; the last by default.")] = None,
    transform: Annotated[str | None, typer.Option(help="What the belief learns; see docs/yaml.md.")] = None,
    log: Annotated[str | None, typer.Option(help="Parameters on a log scale, by commas.", metavar="NAMES")] = None,
    constraint: Annotated[
        list[str] | None, typer.Option(help="Use rows only where this holds: 'm1 > m2'.", metavar="EXPRESSION")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="A value counts only where this holds: 'status == 0'. Elsewhere, as in empty cells, there is none.",
            metavar="EXPRESSION",
        ),
    ] = None,
    goal: Annotated[float, typer.Option(help="Wrong fraction of the points to stay at or below.")] = 0.01,
    batch: Annotated[int, typer.Option(help="Points asked for together.")] = 1,
    seed: Annotated[int, typer.Option(help="Fixes the result.")] = 0,
    plot: Annotated[str | None, typer.Option(help="Picture of the error to write: .png, .pdf or .svg.")] = None,
    as_json: AsJson = False,
) -> None:
    """How many points of a scan that you have would have been enough?

    A campaign that may ask only for points of the table is run on it; the wrong fraction counts all its points.
    """
    with _reported():
        from .report.tables import replayed, replayed_json
        from .shadow import replay as run_again

        found = run_again(
            table,
            threshold,
            parameters=_names(parameters),
            output=output,
            transform=transform,
            log=_names(log) or (),
            constraints=constraint or (),
            where=where,
            batch=batch,
            seed=seed,
            goal=goal,
        )
        if plot is not None:
            from .report.plot import plot_replay

            plot_replay(found, plot)
        _say(replayed_json(found) if as_json else "\n".join(replayed(found)))


@app.command("fit-server")
def fit_server(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="pyhf workspace or counts (JSON), or example:sleptons.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8765,
    workers: Annotated[int, typer.Option(min=1, help="Processes that fit.")] = 2,
    cache: Annotated[str | None, typer.Option(help="Folder of limits that are known; may be shared.")] = None,
    token_env: Annotated[
        str, typer.Option(help="Variable of the environment that holds the token clients must send.")
    ] = "",
    patch: Annotated[str, typer.Option(help="JSON patch for the workspace, or patchset.json#name.")] = "",
    sample: Annotated[str, typer.Option(help="Sample whose yields are replaced.")] = "signal",
    measurement: Annotated[str | None, typer.Option(help="Of the workspace; its first by default.")] = None,
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    mu_max: Annotated[float, typer.Option(help="Largest signal strength that is tried.")] = 1e4,
    timeout: Annotated[float, typer.Option(help="Seconds for one fit.")] = 600.0,
) -> None:
    """Fit signal yields that evaluators elsewhere send; see docs/fitting.md. Ctrl-C finishes what is being fitted."""
    with _reported():
        from .evaluators.fit_server import FittingService
        from .evaluators.remote import read_token
        from .spec import fit_here

        token = read_token(token_env, "", "fit-server") if token_env else ""
        fit = fit_here(
            model, patch=patch, sample=sample, measurement=measurement, level=level, mu_max=mu_max, cache=cache
        )
        service = FittingService(fit, host=host, port=port, workers=workers, token=token, timeout=timeout)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: service.stop())
        _say(f"fitting model {fit.model_digest[:16]} at {service.url}")
        service.serve()


@app.command("fit-cache")
def fit_cache(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder given as cache.")],
    clear: Annotated[bool, typer.Option("--clear", help="Remove all entries.")] = False,
) -> None:
    """Show how many limits a cache of fits holds, or clear it."""
    with _reported():
        from .evaluators.fitting import Cache

        cache = Cache(folder)
        if clear:
            _say(f"{cache.clear()} entries removed")
            return
        sizes = [path.stat().st_size for path in cache.files()]
        _say(f"{len(sizes)} entries, {sum(sizes) / 1e6:.3f} MB, in {cache.folder}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@examples.callback()
def _examples() -> None:
    pass


@examples.command()
def sleptons(
    out: Annotated[Path, typer.Option(help="Folder for the store, the figures and the tables.")] = Path("sleptons"),
    dimensions: Annotated[
        int, typer.Option(min=2, max=4, help="3: left and right sleptons have masses of their own; 4: branching ratio.")
    ] = 2,
    fidelity: Annotated[
        Literal["parton", "hadron", "both"], typer.Option(help="Events; 'both': the campaign chooses at each point.")
    ] = "parton",
    budget: Budget = None,
    workers: Workers = None,
) -> None:
    """The exclusion contour of the ATLAS slepton search, from Pythia 8 events."""
    again = ["example", "sleptons", "--out", str(out), "--dimensions", str(dimensions), "--fidelity", fidelity]
    with _interruptible(shlex.join(again)):
        from .examples.sleptons import main as example

        given: dict[str, Any] = {} if workers is None else {"workers": workers}
        example(out=out, dimensions=dimensions, fidelity=fidelity, budget=budget, **given)


@examples.command()
def recast(
    out: Annotated[Path, typer.Option(help="Folder for the workflow, its catalogue, the campaign.")] = Path("recast"),
    budget: Budget = None,
    workers: Workers = None,
) -> None:
    """The same limits by a workflow as RECAST preserves them; writes its files and runs the campaign."""
    from .examples.recast import write

    with _reported():
        spec = write(out)
    run_spec(spec, budget, workers)


def main() -> None:
    """Entry point of the command."""
    app(prog_name="excursion")


if __name__ == "__main__":
    main()
