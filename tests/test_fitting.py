from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from typer.testing import CliRunner

from excursion.cli import app
from excursion.data import Job, Outcome
from excursion.errors import EvaluationError, InvalidProblem, InvalidSpec, ShapeError
from excursion.evaluators import fitting
from excursion.evaluators.command import Command
from excursion.evaluators.fit_server import FittingService
from excursion.evaluators.fitting import Cache, Fitted, LocalFit, RemoteFit, describe, model_of, read_model, signal_of
from excursion.evaluators.pyhf import CountsModel, PyhfEvaluator, Signal, WorkspaceModel, fitted
from excursion.evaluators.worker import evaluate
from excursion.spec import _Fit, begin, fit_here, go_on, load

ONE_BIN = CountsModel([5], [4.0], [1.0])
SLEPTONS = fit_here("example:sleptons").model
WORKSPACE = {
    "channels": [
        {"name": "b", "samples": [{"name": "bkg", "data": [50.0, 20.0], "modifiers": [
            {"name": "u", "type": "shapesys", "data": [5.0, 3.0]}]}]},
        {"name": "a", "samples": [{"name": "bkg", "data": [10.0], "modifiers": [
            {"name": "n", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}]}]},
    ],
    "observations": [{"name": "b", "data": [52.0, 18.0]}, {"name": "a", "data": [9.0]}],
    "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": []}}],
    "version": "1.0.0",
}  # fmt: skip


def sleptons(shift: float = 0.0) -> Signal:
    return Signal([1.0 + 0.1 * i + shift for i in range(18)], [0.1 + 0.01 * i for i in range(18)])


def same(one: Outcome, other: Outcome) -> bool:
    """Bit by bit."""
    return (one.values, one.variances, one.bounds) == (other.values, other.variances, other.bounds)


@contextmanager
def serving(fit: LocalFit, **settings: object) -> Iterator[FittingService]:
    service = FittingService(fit, **settings)
    thread = threading.Thread(target=service.serve)
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def process(*options: str, port: int = 0, **environment: str) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """`excursion fit-server` as people start it: the process, the URL, the model's hash."""
    words = [sys.executable, "-m", "excursion.cli", "fit-server", *options, "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(r"fitting model ([0-9a-f]{16}) at (http://\S+)\n", line)
        assert found, line
        yield server, found[2], found[1]
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGKILL)
        assert server.stdout is not None
        server.stdout.close()


def health(url: str) -> dict:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", "/api/health")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def post(url: str, data: bytes, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    given = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request("POST", "/api/limits", data, given)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


# ------------------------------------------------------------------------------------------------ as JSON


@pytest.mark.parametrize(
    "model", [ONE_BIN, SLEPTONS, WorkspaceModel(WORKSPACE), replace(SLEPTONS, signal_error="none")]
)
def test_models_survive_json(model: CountsModel | WorkspaceModel) -> None:
    described = json.loads(json.dumps(describe(model)))
    assert fitting.digest(described) == fitting.digest(describe(model))
    again = model_of(described)
    assert again == model
    bins = [2.0] * sum(len(v) for v in model.split([2.0] * _bins(model), "x").values())
    assert same(fitted(again, Signal(bins)), fitted(model, Signal(bins)))


def _bins(model: CountsModel | WorkspaceModel) -> int:
    return sum((model.layout if isinstance(model, WorkspaceModel) else model.channels).values())


def test_the_hash_tells_models_apart() -> None:
    digests = {
        LocalFit(model).model_digest
        for model in (
            ONE_BIN, SLEPTONS, replace(ONE_BIN, observed=[6]), replace(ONE_BIN, signal_error="none"),
            replace(SLEPTONS, channels=dict(reversed(SLEPTONS.channels.items()))),
            WorkspaceModel(WORKSPACE), WorkspaceModel(WORKSPACE, "other"),
        )
    }  # fmt: skip
    assert len(digests) == 7
    with pytest.raises(InvalidProblem, match="must be plain data"):
        LocalFit(WorkspaceModel(WORKSPACE, patch=lambda w, s: w))


@pytest.mark.parametrize(
    "value",
    [
        {"nominal": [1, 2.5], "errors": None}, [1, 2.5], np.array([1, 2.5]), Signal([1, 2.5]),
        {"nominal": np.array([1, 2.5]), "info": {"a": 1}},
    ],
)  # fmt: skip
def test_forms_of_yields(value: object) -> None:
    found = signal_of(value)
    assert (found.nominal, found.errors) == ([1.0, 2.5], None)


def test_forms_by_channel() -> None:
    assert signal_of({"SR": [1], "CR": 2}).nominal == {"SR": [1.0], "CR": [2.0]}
    assert signal_of({"nominal": {"SR": [1]}, "errors": {"SR": [0.5]}}).errors == {"SR": [0.5]}


@pytest.mark.parametrize(
    "value", ["3", None, True, [True], ["1"], [[1.0]], {"nominal": [1], "error": [1]}, {"nominal": None}, [10**400],
              {"nominal": [1], "info": 3}],
)  # fmt: skip
def test_forms_that_are_refused(value: object) -> None:
    with pytest.raises(EvaluationError, match=r"^here: "):
        signal_of(value, "here")


# ------------------------------------------------------------------------------------------------ the cache


def test_the_cache_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path / "c"))
    fit = LocalFit(SLEPTONS, cache=cache)
    first = fit.fit(sleptons())
    assert same(first, fitted(SLEPTONS, sleptons()))
    monkeypatch.setattr(fitting, "fitted", None)  # nothing is fitted any more
    again = fit.fit(sleptons())
    assert same(first, again)
    assert (first.info["cached"], again.info["cached"]) == (False, True)
    assert first.info["yields"] == again.info["yields"]
    assert len(list(cache.files())) == 1
    assert fit.fit(Signal(fit.question(sleptons())["nominal"], fit.question(sleptons())["errors"])).info["cached"]


def test_everything_that_matters_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(str(tmp_path))
    base = LocalFit(ONE_BIN, cache=cache)
    keys = {
        fitting.digest(fit.question(s))
        for fit, s in (
            (base, Signal([1.0], [0.1])), (base, Signal([1.0])), (base, Signal([1.0 + 2**-52], [0.1])),
            (base, Signal([1.0], [0.2])), (replace(base, level=0.9), Signal([1.0], [0.1])),
            (replace(base, mu_max=10.0), Signal([1.0], [0.1])),
            (LocalFit(replace(ONE_BIN, observed=[6])), Signal([1.0], [0.1])),
        )
    }  # fmt: skip
    assert len(keys) == 7
    monkeypatch.setattr(fitting, "code", lambda: "another version")
    assert fitting.digest(base.question(Signal([1.0], [0.1]))) not in keys


@pytest.mark.parametrize("damage", ["cut", "empty", "digit", "not JSON", "other key", "binary", "list", "forged"])
def test_damaged_entries_are_computed_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(str(tmp_path))
    fit = LocalFit(ONE_BIN, cache=cache)
    first = fit.fit(Signal([3.0], [0.2]))
    (path,) = cache.files()
    text = path.read_text()
    digit = text.replace(repr(first.values["observed"]), repr(first.values["observed"] * 1.5))
    assert digit != text
    forged = json.loads(digit)
    forged["outcome"]["values"] = {"observed": "1"}
    forged["check"] = fitting.digest(forged["outcome"])
    path.write_bytes(
        {
            "cut": text[:100].encode(), "empty": b"", "digit": digit.encode(), "not JSON": b"{", "list": b"[1]",
            "other key": text.replace(path.stem, "0" * 64).encode(), "binary": b"\xff\x00\x80",
            "forged": json.dumps(forged).encode(),
        }[damage]
    )  # fmt: skip
    again = fit.fit(Signal([3.0], [0.2]))
    assert same(first, again)
    assert not again.info["cached"]
    assert fit.fit(Signal([3.0], [0.2])).info["cached"]  # and mended


def _fit_many(folder: str) -> list[Outcome]:
    fit = LocalFit(ONE_BIN, cache=Cache(folder))
    return [fit.fit(Signal([1.0 + i], [0.1])) for i in range(10)]


def test_many_processes_share_a_cache(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(_fit_many, [str(tmp_path)] * 4))
    assert all(same(a, b) for one in found for a, b in zip(found[0], one))
    cache = Cache(str(tmp_path))
    assert len(list(cache.files())) == 10
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.name.startswith(".")] == []
    assert all(o.info["cached"] for o in _fit_many(str(tmp_path)))


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cache: the folder .* must be writable"):
        LocalFit(ONE_BIN, cache=Cache(str(tmp_path / "file"))).fit(Signal([1.0]))


def test_commands_about_the_cache(tmp_path: Path) -> None:
    _fit_many(str(tmp_path))
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "notes.json").write_text("mine")
    said = CliRunner().invoke(app, ["fit-cache", str(tmp_path)])
    assert re.match(r"10 entries, 0\.0\d+ MB", said.output)
    assert "10 entries removed" in CliRunner().invoke(app, ["fit-cache", str(tmp_path), "--clear"]).output
    assert not list(Cache(str(tmp_path)).files())
    assert (tmp_path / "ab" / "notes.json").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ the server


def test_a_server_process_gives_the_same_bits(tmp_path: Path) -> None:
    with process("example:sleptons", "--workers", "2", "--cache", str(tmp_path)) as (_, url, digest):
        remote = RemoteFit(url, expect=digest)
        for shift in (0.0, 0.3, 1e-9):
            assert same(remote.fit(sleptons(shift)), fitted(SLEPTONS, sleptons(shift)))
        hard = Signal([1e-6] * 18, [1e-7] * 18)
        assert remote.fit(hard).bounds == fitted(SLEPTONS, hard).bounds != {}
        assert remote.fit(Signal([0.0] * 18)).bounds["observed"] == "above"
        assert health(url) | {"running": 0} == {
            "status": "ok", "model": LocalFit(SLEPTONS).model_digest, "fits": 5, "hits": 0, "running": 0
        }  # fmt: skip
        assert remote.fit(sleptons()).info["cached"]
        assert health(url)["hits"] == 1
        # The folder is shared with fits here.
        assert LocalFit(SLEPTONS, cache=Cache(str(tmp_path))).fit(sleptons(0.3)).info["cached"]
        with pytest.raises(InvalidSpec, match=r"the model must be the one expected, got .* instead of 'abcdef0123'"):
            RemoteFit(url, expect="abcdef0123").fit(sleptons())


def test_one_bin_and_a_workspace() -> None:
    with serving(LocalFit(ONE_BIN, level=0.9, mu_max=3.0)) as service:
        for s, e in ((3.0, 0.2), (0.5, None), (0.0, None)):
            signal_ = Signal([s], None if e is None else [e])
            assert same(RemoteFit(service.url).fit(signal_), fitted(ONE_BIN, signal_, level=0.9, mu_max=3.0))
        assert service.model()["channels"] == {"counts": 1}
    model = WorkspaceModel(WORKSPACE)
    with serving(LocalFit(model)) as service:
        signal_ = Signal({"a": [4.0], "b": [3.0, 2.0]}, {"a": [0.4], "b": [0.3, 0.2]})
        assert same(RemoteFit(service.url).fit(signal_), fitted(model, signal_))


def test_the_same_question_is_computed_once(tmp_path: Path) -> None:
    with serving(LocalFit(SLEPTONS), workers=2) as service, ThreadPoolExecutor(16) as threads:
        remote = RemoteFit(service.url)
        found = list(threads.map(lambda _: remote.fit(sleptons()), range(16)))
        assert all(same(found[0], other) for other in found)
        first = service.counts["fits"]
        assert first < 16  # those that came while it was computed waited for it
        different = list(threads.map(lambda i: remote.fit(sleptons(0.01 * (i + 1))), range(24)))
        assert service.counts == {"fits": first + 24, "hits": 0, "running": 0}
        assert same(different[5], fitted(SLEPTONS, sleptons(0.06)))


def test_failures_are_those_of_a_fit_here() -> None:
    with serving(LocalFit(ONE_BIN)) as service:
        remote, here = RemoteFit(service.url, patience=1), LocalFit(ONE_BIN)
        for signal_ in (Signal([-1.0]), Signal([1.0, 2.0]), Signal([1.0], [-0.1]), Signal({"x": [1.0]})):
            with pytest.raises((EvaluationError, ShapeError)) as expected:
                here.fit(signal_)
            with pytest.raises(type(expected.value)) as got:
                remote.fit(signal_)
            assert str(got.value)[:500] == " ".join(str(expected.value).split())[:500]
        with pytest.raises(EvaluationError, match="finite numbers"):
            remote.fit(Signal([float("nan")]))
        assert service.counts["fits"] == 0


@pytest.mark.parametrize(
    ("data", "headers", "status", "message"),
    [
        (b"{", {}, 400, "must be JSON"),
        (b"\xff", {}, 400, "must be JSON"),
        (b"[" * 5000, {}, 400, "must be JSON"),
        (b"[1]", {}, 400, "needs an object with nominal"),
        (b"{}", {}, 400, "needs an object with nominal"),
        (b'{"nominal": [1], "model": 1}', {}, 400, "got other keys"),
        (b'{"nominal": "x"}', {}, 422, "must be numbers per bin"),
        (b'{"nominal": [NaN]}', {}, 422, "must be finite"),
        (b'{"nominal": [1], "expect": 3}', {}, 409, "the one expected"),
        (b'{"nominal": [1]}', {"Content_Type": "text/plain"}, 415, "application/json"),
        (b'{"nominal": [1]}', {"Content_Length": "99999999999"}, 413, "at most"),
        (b'{"nominal": [1]}', {"Content_Length": "-1"}, 411, "Content-Length"),
    ],
)
def test_requests_that_are_refused(data: bytes, headers: dict, status: int, message: str) -> None:
    with serving(LocalFit(ONE_BIN)) as service:
        got, said = post(service.url, data, **headers)
        assert (got, set(said)) == (status, {"error", "kind"})
        assert message in said["error"]
        assert post(service.url, b'{"nominal": [3.0]}')[0] == 200


def test_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSpec, match=r"must have a token, got host '0.0.0.0' and none"):
        FittingService(LocalFit(ONE_BIN), host="0.0.0.0")
    monkeypatch.setenv("FIT_TOKEN", "right")
    with process("example:sleptons", "--token-env", "FIT_TOKEN", "--workers", "1") as (_, url, _):
        remote = RemoteFit(url, token_env="FIT_TOKEN", patience=1)
        assert remote.fit(sleptons()).values == fitted(SLEPTONS, sleptons()).values
        monkeypatch.setenv("FIT_TOKEN", "wr0ng")
        with pytest.raises(InvalidSpec, match="status 401") as error:
            remote.fit(sleptons())
        assert "wr0ng" not in str(error.value)
        with pytest.raises(InvalidSpec, match="status 401"):
            RemoteFit(url, patience=1).fit(sleptons())
    with pytest.raises(InvalidSpec, match="over https only"):
        RemoteFit("http://fit.example.org", token_env="FIT_TOKEN")


def test_kill_and_restart_lose_nothing(tmp_path: Path) -> None:
    """kill -9 of the server and its workers while sixteen clients ask; another is started at the same port."""
    signals = [sleptons(0.01 * i) for i in range(40)]
    options = ("example:sleptons", "--workers", "2", "--cache", str(tmp_path))
    with ThreadPoolExecutor(16) as threads:
        with process(*options) as (server, url, _):
            remote = RemoteFit(url, patience=60)
            remote.fit(signals[0])
            futures = [threads.submit(remote.fit, s) for s in signals]
            while sum(f.done() for f in futures) < 8:
                time.sleep(0.005)
            server.kill()
            server.wait()
        assert sum(f.done() for f in futures) < 40
        before = len(list(Cache(str(tmp_path)).files()))
        with process(*options, port=int(url.rsplit(":", 1)[1])) as (_, again, _):
            assert again == url
            found = [f.result(timeout=60) for f in futures]
            counts = health(url)
    assert len(list(Cache(str(tmp_path)).files())) == 40
    assert before + counts["fits"] == 40
    here = LocalFit(SLEPTONS, cache=None)
    assert all(same(a, here.fit(s)) for a, s in list(zip(found, signals))[::8])


def test_a_worker_that_dies_is_replaced() -> None:
    import psutil

    with serving(LocalFit(SLEPTONS), workers=2) as service, ThreadPoolExecutor(8) as threads:
        remote = RemoteFit(service.url)
        remote.fit(sleptons())
        futures = [threads.submit(remote.fit, sleptons(0.01 * i)) for i in range(1, 30)]
        while sum(f.done() for f in futures) < 3:
            time.sleep(0.005)
        workers = [p for p in psutil.Process().children() if "popen_loky" in " ".join(p.cmdline())]
        workers[0].kill()
        found = [f.result(timeout=60) for f in futures]
    assert same(found[10], fitted(SLEPTONS, sleptons(0.11)))


def test_a_fit_that_does_not_end() -> None:
    slow = serving(LocalFit(SLEPTONS), timeout=0.001)
    with slow as service, pytest.raises(EvaluationError, match=r"must end within 0.001 s, got no end and stopped it"):
        RemoteFit(service.url, patience=5).fit(sleptons())


def test_a_graceful_stop_finishes_what_is_fitted(tmp_path: Path) -> None:
    with process("example:sleptons", "--workers", "1", "--cache", str(tmp_path)) as (server, url, _):
        with ThreadPoolExecutor(1) as threads:
            found = threads.submit(RemoteFit(url, patience=1).fit, sleptons())
            while not health(url)["running"]:
                time.sleep(0.005)
            server.send_signal(signal.SIGTERM)
            assert same(found.result(timeout=30), fitted(SLEPTONS, sleptons()))
        assert server.wait(30) == 0


def test_somebody_else_at_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSpec, match=f"must listen at 127.0.0.1:{port}"):
            FittingService(LocalFit(ONE_BIN), port=port)


# ------------------------------------------------------------------------------------------------ evaluators


def yields(x: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"nominal": rng.poisson(50 * x["s"], 18) / 10, "errors": np.full(18, 0.1), "info": {"seed": seed}}


def test_a_function_here_and_fits_here_or_there() -> None:
    job = Job({"s": 1.5}, 3, 11)
    plain = PyhfEvaluator(lambda x, seed: signal_of(yields(x, seed)), SLEPTONS).evaluate(job)
    local = Fitted(yields, LocalFit(SLEPTONS)).evaluate(job)
    assert same(local, plain)
    assert local.info["seed"] == 11
    with serving(LocalFit(SLEPTONS)) as service:
        assert same(Fitted(yields, RemoteFit(service.url)).evaluate(job), plain)
    assert evaluate(Fitted(lambda x: [1.0], LocalFit(SLEPTONS)), job).state == "failed"


PROGRAM = """
import json, sys
s, seed = float(sys.argv[1]), int(sys.argv[2])
json.dump({"nominal": [s * (1 + 0.1 * i) for i in range(18)], "errors": [0.1] * 18, "info": {"seed": seed}},
          open("yields.json", "w"))
"""


@pytest.mark.parametrize("where", ["url", "model", "python"])
def test_yaml(tmp_path: Path, where: str) -> None:
    (tmp_path / "generate.py").write_text(PROGRAM)
    (tmp_path / "physics.py").write_text(
        "def yields(x, seed):\n"
        "    return {'nominal': [x['s'] * (1 + 0.1 * i) for i in range(18)], 'errors': [0.1] * 18}\n"
    )
    with serving(LocalFit(SLEPTONS), workers=2) as service:
        fit = f"{{url: '{service.url}', expect: {service.fit.model_digest[:16]}}}"
        if where != "url":
            fit = "{model: example:sleptons, cache: known}"
        source = f"command: '{sys.executable} {{folder}}/generate.py {{s}} {{seed}}'"
        if where == "python":
            source = "python: physics.py:yields"
        text = f"""
parameters: {{s: [0.5, 5]}}
tasks: {{observed: 1.0, expected: 1.0}}
evaluator:
  {source}
  fit: {fit}
run: {{budget: 4}}
"""
        (tmp_path / "scan.yaml").write_text(text)
        spec = load(tmp_path / "scan.yaml")
        campaign = begin(spec)
        report = go_on(campaign, spec.evaluator, spec.run, workers=1, progress=False)
        assert (report.evaluations, report.failed) == (4, 0), report.last_error
        for trial in campaign.trials:
            signal_ = Signal([trial.x["s"] * (1 + 0.1 * i) for i in range(18)], [0.1] * 18)
            expected = fitted(SLEPTONS, signal_)
            assert trial.outcome is not None
            assert trial.outcome.values == {t: expected.values[t] for t in ("observed", "expected")}
        assert service.counts["fits"] == (4 if where == "url" else 0)
        assert len(list(Cache(str(tmp_path / "known")).files())) == (0 if where == "url" else 4)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ("{}", "fit: needs either url"),
        ("{url: http://localhost:1, model: x.json}", "fit: needs either url"),
        ("{url: http://localhost:1, cache: x}", "Remove the others"),
        ("{model: example:sleptons, patience: 3}", "Remove the others"),
        ("{url: http://localhost:1, expect: xyz}", "expect must be the first"),
        ("{model: none.json}", "none.json: must be a readable file"),
        ("{modell: x}", "Did you mean 'model'"),
        ("{model: example:sleptons, level: 2}", "evaluator.fit.level"),
        ("3", "evaluator.fit"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, fit: str, message: str) -> None:
    file = tmp_path / "scan.yaml"
    file.write_text(
        "parameters: {s: [0, 1]}\ntasks: {observed: 1}\nevaluator:\n  python: math:fsum\n"
        f"  fit: {fit}\nrun: {{budget: 2}}\n"
    )
    with pytest.raises(InvalidSpec, match=re.escape(message)):
        load(file)
    file.write_text(file.read_text().replace(fit, "{model: example:sleptons}").replace("observed", "limit"))
    with pytest.raises(InvalidSpec, match=r"tasks must be observed, .*got \['limit'\]"):
        load(file)


def test_a_program_whose_yields_make_no_sense(tmp_path: Path) -> None:
    command = Command("echo {s} nonsense", result="stdout", workdir=str(tmp_path))
    with pytest.raises(EvaluationError, match=r"yields at trial 0: .*stdout.txt must be JSON"):
        Fitted(command, LocalFit(ONE_BIN)).evaluate(Job({"s": 1.0}))
    command = Command("echo [{s}]", result="stdout", workdir=str(tmp_path))
    assert Fitted(command, LocalFit(ONE_BIN)).evaluate(Job({"s": 2.0})).values == fitted(ONE_BIN, Signal([2.0])).values


# ------------------------------------------------------------------------------------------------ model files


def test_models_in_files(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps(WORKSPACE))
    assert read_model(tmp_path / "w.json") == WorkspaceModel(WORKSPACE)
    counts = {"observed": [5], "background": [4.0], "background_error": [1.0], "channels": {"SR": 1}}
    (tmp_path / "c.json").write_text(json.dumps(counts))
    assert read_model(tmp_path / "c.json") == CountsModel(**counts)
    add = [{"op": "add", "path": "/channels/1/samples/-", "value": {"name": "signal", "data": [1.0], "modifiers": [
        {"name": "mu", "type": "normfactor", "data": None},
        {"name": "s", "type": "normsys", "data": {"hi": 1.2, "lo": 0.8}}]}}]  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(add))
    (tmp_path / "set.json").write_text(json.dumps({"patches": [{"metadata": {"name": "p1"}, "patch": add}]}))
    one = read_model(tmp_path / "w.json", patch=str(tmp_path / "p.json"))
    assert one == read_model(tmp_path / "w.json", patch=f"{tmp_path / 'set.json'}#p1")
    assert one.layout == {"a": 1}
    # The patch's systematic uncertainty counts.
    free = WorkspaceModel(WORKSPACE)
    with_it = fitted(one, Signal({"a": [4.0]})).values["expected"]
    assert with_it > fitted(free, Signal({"a": [4.0], "b": [0.0, 0.0]})).values["expected"] * 1.001


@pytest.mark.parametrize(
    ("text", "patch", "message"),
    [
        ("{", "", "must be JSON"),
        ("[]", "", "must be a pyhf workspace, or counts"),
        ('{"channels": []}', "", "needs channels, observations and measurements"),
        ('{"background": [1]}', "", r"needs \['background_error', 'observed'\]"),
        ('{"background": [1], "observed": [1], "background_error": [1], "x": 1}', "", r"got \['x'\]"),
        ('{"background": [1], "observed": [1], "background_error": [1], "channels": [1]}', "", "channels must be name"),
        (json.dumps(WORKSPACE), "set.json", "needs the name of one of its patches"),
        (json.dumps(WORKSPACE), "bad.json", "the patch must fit the workspace"),
    ],
)
def test_model_files_that_are_refused(tmp_path: Path, text: str, patch: str, message: str) -> None:
    (tmp_path / "m.json").write_text(text)
    (tmp_path / "set.json").write_text('{"patches": [{"metadata": {"name": "p1"}, "patch": []}]}')
    (tmp_path / "bad.json").write_text('[{"op": "remove", "path": "/nothing/3"}]')
    with pytest.raises(InvalidProblem, match=message):
        read_model(tmp_path / "m.json", patch=str(tmp_path / patch) if patch else "")


def test_docs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "fitting.md").read_text()
    (tmp_path / "workspace.json").write_text(json.dumps(WORKSPACE))
    (tmp_path / "physics.py").write_text("")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for i, block in enumerate(blocks):
        (tmp_path / f"{i}.yaml").write_text(block)
        assert load(tmp_path / f"{i}.yaml").evaluator is not None
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert signal_of(json.loads(example)).errors == {"SR0J": [0.1, 0.1], "SR1J": [0.05]}
    rows = re.findall(r"^\| (`.*?`) \| ", text.split("## A server")[0], re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(_Fit.model_fields)


def test_a_gateway_in_trouble_is_no_answer() -> None:
    fit = LocalFit(ONE_BIN)
    right = json.dumps(fitting.as_json(fit.fit(Signal([3.0])))).encode()
    answers = [
        (500, b'{"message": "upstream"}'),
        (200, b"<html>"),
        (200, b'{"values": {"observed": "1"}}'),
        (200, right),
    ]

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        thread = threading.Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            assert same(RemoteFit(f"http://127.0.0.1:{gateway.server_port}").fit(Signal([3.0])), fit.fit(Signal([3.0])))
        finally:
            gateway.shutdown()
            thread.join()
    assert not answers
