"""What docs/workers.md shows works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from excursion import cli, spec

TEXT = (Path(__file__).parents[1] / "docs" / "workers.md").read_text()
BLOCKS = re.findall(r"(<!-- run -->\n)?```(\w+)\n(.*?)```", TEXT, re.DOTALL)
YAML = [code for _, kind, code in BLOCKS if kind == "yaml"]


@pytest.mark.parametrize("text", YAML)
def test_the_yaml_is_valid(text, tmp_path):
    (tmp_path / "physics.py").write_text("def limit(p): return p['mass'] / 300 * p['coupling']\n")
    assert spec.parse(text, tmp_path / "scan.yaml").problem.task_names == ("limit",)


def test_the_commands_run(tmp_path):
    (tmp_path / "physics.py").write_text("def limit(p): return p['mass'] / 300 + p['coupling']\n")
    (tmp_path / "scan.yaml").write_text(YAML[0])
    (tmp_path / "excursion").write_text(f'#!/bin/sh\nexec {sys.executable} -m excursion.cli "$@"\n')
    (tmp_path / "excursion").chmod(0o755)
    (text,) = (code for run, kind, code in BLOCKS if run and kind == "sh")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-e", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 finished" in done.stdout


def test_every_command_line_is_understood():
    parser = typer.main.get_command(cli.app).commands["work"]
    joined = TEXT.replace("arguments  = work", "excursion work")
    lines = re.findall(r"excursion work (\S+.*?)(?:\s+#.*|[\"`]|\Z)*$", joined, re.MULTILINE)
    shown = [line for line in lines if "STORE" not in line]
    assert len(shown) >= 5
    for line in shown:
        words = shlex.split(line.split('"')[0].split("`")[0], comments=True)
        assert parser.make_context("work", words).params["store"]


def test_the_options_it_names_exist():
    known = {
        option
        for p in typer.main.get_command(cli.app).commands["work"].params
        for option in [*p.opts, *p.secondary_opts]
    }
    named = {word for word in re.findall(r"`(--[a-z-]+)", TEXT)}
    assert named <= known, named - known
    assert {"--jobs", "--lease", "--timeout", "--memory", "--artifacts", "--no-ask", "--idle", "--grace"} <= named


def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, kind, code in BLOCKS:
        if run and kind == "python":
            exec(code, {})
