"""What README.md shows works."""

import re
from pathlib import Path

import numpy as np
import pytest

from excursion import spec

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language):
    return [code for kind, code in BLOCKS if kind == language]


def test_the_ten_lines_find_the_ellipse():
    names = {}
    exec(blocks("python")[0], names)
    line = np.concatenate(names["result"].contours().lines)
    x, y = line.T
    assert np.allclose(x**2 + 0.5 * y**2 + 0.3 * x * y, 1.0, atol=0.05)
    p = names["result"].excursion_probability([[0.5, 0.5], [1.5, 0.0]])
    assert p[0] < 0.01
    assert p[1] > 0.99


def test_an_evaluator_of_ones_own_runs():
    names = {}
    exec(blocks("python")[1], names)
    assert names["report"].status.counts == {"complete": 12}


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_yaml_is_valid(text, tmp_path):
    path = tmp_path / "scan.yaml"
    path.write_text(text)
    assert spec.load(path).problem.task_names == ("observed",)


def test_the_links_lead_somewhere():
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 8
    for target in targets:
        assert (root / target).exists(), target
