"""What docs/goals.md shows works."""

import re
from pathlib import Path

from excursion import spec

TEXT = (Path(__file__).parents[1] / "docs" / "goals.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run(capsys):
    names = {}
    for kind, code in BLOCKS:
        if kind == "python":
            exec(code, names)
    assert names["result"].evaluations < 50
    printed = capsys.readouterr().out
    assert "more points" in printed or "goal reached" in printed or "no forecast yet" in printed


def test_the_yaml_is_valid(tmp_path):
    (text,) = (code for kind, code in BLOCKS if kind == "yaml")
    found = spec.parse(text, tmp_path / "scan.yaml")
    assert len(found.run["goal"]) == 3
