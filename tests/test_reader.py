from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excursion.data import Outcome
from excursion.errors import EvaluationError, InvalidSpec
from excursion.evaluators.reader import Reader

#: What the public demo of a reinterpretation writes: limits from a scan on mu in [0, 2].
DEMO = {"obs": 0.83, "exp": 1.21, "exp_p1": 1.74, "exp_m1": 0.85, "exp_p2": 2.51, "exp_m2": 0.63}


def put(folder: Path, content: Any, name: str = "r.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def read(folder: Path, content: Any, name: str = "r.json", **more: Any) -> Outcome:
    return Reader(name, **{"keys": {"f": "y"}, **more}).read(put(folder, content, name))


def test_the_demo_of_a_reinterpretation(tmp_path: Path) -> None:
    keys = {"observed": "obs", "expected": "exp", "expected_plus_2": "exp_p2"}
    reader = Reader("r.json", keys, quantity="mu_95", valid=dict.fromkeys(keys, (0, 2)))
    outcome = reader.read(put(tmp_path, DEMO))
    assert outcome.values == {"observed": 0.83, "expected": 1.21, "expected_plus_2": 2.0}
    assert outcome.bounds == {"expected_plus_2": "above"}
    assert outcome.state == "censored"
    assert pickle.loads(pickle.dumps(reader)) == reader


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a.b", 1.0),
        (["a", "b"], 1.0),
        ("list.1", 3.0),
        ("list.-1", 4.0),
        (["list", 0], 2.0),
        (["with.dot", "x"], 5.0),
        ("7", 6.0),
    ],
)
def test_keys_are_paths(tmp_path: Path, key: Any, value: float) -> None:
    document = {"a": {"b": 1}, "list": [2, 3, 4], "with.dot": {"x": 5}, "7": 6}
    assert read(tmp_path, document, keys={"f": key}).values == {"f": value}
    assert read(tmp_path, document, "r.yaml", keys={"f": key}).values == {"f": value}


def test_the_whole_file_is_a_number(tmp_path: Path) -> None:
    assert read(tmp_path, "0.25\n", keys={"f": []}).values == {"f": 0.25}
    assert read(tmp_path, "0.25\n", "r.yml", keys={"f": []}).values == {"f": 0.25}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("+Infinity", math.inf),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("1e-3", 1e-3),
        (" .5 ", 0.5),
        ("-2.", -2.0),
        ("1E5", 1e5),
    ],
)
def test_numbers_may_be_text(tmp_path: Path, text: str, number: float) -> None:
    outcome = read(tmp_path, {"y": text})
    assert outcome.values == {"f": number}
    assert outcome.bounds == ({"f": "above" if number > 0 else "below"} if math.isinf(number) else {})
    assert read(tmp_path, f"y: {text}", "r.yaml").values == {"f": number}


def test_infinities_of_json_are_bounds(tmp_path: Path) -> None:
    assert read(tmp_path, '{"y": Infinity}').bounds == {"f": "above"}
    assert read(tmp_path, '{"y": 1e999}').values == {"f": math.inf}
    # Known to lie beyond the range, which says more than "beyond everything".
    ended = read(tmp_path, '{"y": Infinity}', valid={"f": (0, 2)})
    assert (ended.values, ended.bounds) == ({"f": 2.0}, {"f": "above"})


@pytest.mark.parametrize(
    ("value", "told", "bound"),
    [(0.5, 0.5, None), (2.0, 2.0, "above"), (7, 2.0, "above"), (0.1, 0.1, "below"), (-3, 0.1, "below")],
)
def test_outside_the_valid_range_a_value_is_a_bound(
    tmp_path: Path, value: float, told: float, bound: str | None
) -> None:
    outcome = read(tmp_path, {"y": value, "v": 0.04}, valid={"f": [0.1, 2]}, variances={"f": "v"})
    assert outcome.values == {"f": told}
    assert outcome.bounds == ({"f": bound} if bound else {})
    # The variance is that of the value in the file, which is not told.
    assert outcome.variances == ({} if bound else {"f": 0.04})


def test_scale_turns_units_and_bounds(tmp_path: Path) -> None:
    outcome = read(tmp_path, {"y": 3.0, "e": 0.5}, scale=1000, errors={"f": "e"})
    assert outcome.values == {"f": 3000.0}
    assert outcome.variances == {"f": pytest.approx(0.25e6)}
    turned = read(tmp_path, {"y": 3.0}, scale={"f": -1.0}, valid={"f": (0, 2)})
    assert (turned.values, turned.bounds) == ({"f": -2.0}, {"f": "below"})
    assert read(tmp_path, {"y": "inf"}, scale=-2.0).bounds == {"f": "below"}


def test_variances_and_errors(tmp_path: Path) -> None:
    document = {"y": 1.0, "z": 2.0, "var": 0.09, "sd": 0.2}
    outcome = read(tmp_path, document, keys={"f": "y", "g": "z"}, variances={"f": "var"}, errors={"g": "sd"})
    assert outcome.variances == {"f": 0.09, "g": pytest.approx(0.04)}
    for bad in (-0.1, math.inf):
        with pytest.raises(EvaluationError, match=r"r\.json, v: a variance or error must be finite and not negative"):
            read(tmp_path, {"y": 1.0, "v": bad}, variances={"f": "v"})
    assert read(tmp_path, {"y": 1.0, "v": None}, variances={"f": "v"}).variances == {}


def test_missing_tasks(tmp_path: Path) -> None:
    keys = {"f": "y", "g": "z"}
    for rest in ({}, {"z": None}, {"z": math.nan}, {"z": "nan"}):
        assert read(tmp_path, {"y": 1.0, **rest}, keys=keys, missing=["g"]).missing == ("g",)
    assert read(tmp_path, {"y": 1.0, "z": None}, keys=keys).missing == ("g",)
    with pytest.raises(EvaluationError, match=r"must have the key z of task 'g', got the keys \['y'\]"):
        read(tmp_path, {"y": 1.0}, keys=keys)
    with pytest.raises(EvaluationError, match=r"task 'g' must not be NaN"):
        read(tmp_path, {"y": 1.0, "z": math.nan}, keys=keys)
    with pytest.raises(EvaluationError, match="must have a value, got none of f, g"):
        read(tmp_path, {"y": None, "z": None}, keys=keys)


def test_quantities(tmp_path: Path) -> None:
    assert read(tmp_path, {"y": 0.05}, quantity="CLs").values == {"f": 0.05}
    for bad in (-0.01, 1.01, "inf"):
        with pytest.raises(EvaluationError, match=r"'f', a CLs value, must lie in \[0, 1\]"):
            read(tmp_path, {"y": bad}, quantity="CLs")
    for bad in (0, -1.5, "-inf"):
        with pytest.raises(EvaluationError, match="'f', a limit on the signal strength, must be positive"):
            read(tmp_path, {"y": bad}, quantity="mu_95", valid={"f": (0, 2)})
    assert read(tmp_path, {"y": "inf"}, quantity={"f": "mu_95"}).bounds == {"f": "above"}
    both = read(tmp_path, {"y": -1, "p": 0.3}, keys={"f": "y", "g": "p"}, quantity={"g": "CLs"})
    assert both.values == {"f": -1.0, "g": 0.3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ('{"y": 1, "y": 2}', "the key 'y' twice"),
        ("[" * 100_000, "must be JSON"),
        ('{"y": "much"}', "r.json, y: task 'f' must be a number, got 'much'"),
        ('{"y": true}', "must be a number, got True"),
        ('{"y": {"a": 1}}', "must be a number, got {'a': 1}"),
        ('{"y": [1]}', "must be a number"),
        ('{"y": "1_000"}', "must be a number"),
        ('{"y": "١٢"}', "must be a number"),
        ('{"y": ' + "9" * 4000 + "}", "must be a number"),
        ('{"y": NaN}', "must not be NaN"),
        ('{"x": 1}', "must have the key y of task 'f'"),
        ("[1]", "must have the key y of task 'f', got a list of 1"),
        ("3", "must have the key y of task 'f', got 3"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).startswith("result: ")


@pytest.mark.parametrize(
    "content",
    [
        "y: !!python/object/apply:os.system [echo]",
        "y: !important 3",
        "a: &a [*a]\ny: 1",
        "y: 1\nb: " + "[" * 5000,
        "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        + "".join(f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("bcdefgh", "cdefghi"))
        + "y: 1",
        "y: [1\n",
        "y: 1\n---\ny: 2\n",
    ],
    ids=["object", "tag", "loop", "deep", "laughs", "open", "two documents"],
)
def test_bad_yaml(tmp_path: Path, content: str) -> None:
    with pytest.raises(EvaluationError, match=r"^trial 3: .*r\.yaml must be YAML, got"):
        Reader("r.yaml", {"f": "y"}).read(put(tmp_path, content, "r.yaml"), "trial 3")


def test_no_way_out_of_the_directory(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    put(tmp_path, {"y": 1.0})
    (inside / "r.json").symlink_to(tmp_path / "r.json")
    (inside / "out").symlink_to(tmp_path)
    for name in ("r.json", "out/r.json"):
        with pytest.raises(EvaluationError, match="outside its directory"):
            Reader(name, {"f": "y"}).read(inside)
    put(inside, {"y": 2.0}, "own.json")
    (inside / "link.json").symlink_to("own.json")
    assert Reader("link.json", {"f": "y"}).read(inside).values == {"f": 2.0}
    for name in ("../r.json", str(tmp_path / "r.json"), "", ".", "a/../../r.json", "a\0b"):
        with pytest.raises(InvalidSpec, match="own directory"):
            Reader(name, {"f": "y"})


def test_only_files_are_read(tmp_path: Path) -> None:
    reader = Reader("r.json", {"f": "y"})
    with pytest.raises(EvaluationError, match="got no such file"):
        reader.read(tmp_path)
    os.mkfifo(tmp_path / "r.json")
    with pytest.raises(EvaluationError, match="got something that is no file"):
        reader.read(tmp_path)
    os.remove(tmp_path / "r.json")
    with open(tmp_path / "r.json", "wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(EvaluationError, match="more than 16777216"):
        reader.read(tmp_path)
    (tmp_path / "r.json").write_bytes(b'{"y": "\xff"}')
    with pytest.raises(EvaluationError, match="utf-8"):
        reader.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": {}}, "each task needs a key"),
        ({"keys": {"f": ""}}, "a key must be text"),
        ({"keys": {"f": "a..b"}}, "a key must be text"),
        ({"keys": {"f": 3}}, "a key must be text"),
        ({"keys": {"f": [True]}}, "a key must be text"),
        ({"valid": {"f": [2, 0]}}, r"valid range of 'f' must be \[lowest, highest\]"),
        ({"valid": {"f": [0, math.nan]}}, "valid range"),
        ({"valid": {"f": [0]}}, "valid range"),
        ({"valid": {"f": 3}}, "valid range"),
        ({"valid": {"f": ["0", "2"]}}, "valid range"),
        ({"valid": {"g": [0, 2]}}, r"valid must belong to tasks that have keys \(f\), got \['g'\]"),
        ({"missing": ["g"]}, "missing must belong"),
        ({"variances": {"g": "v"}}, "variances must belong"),
        ({"scale": {"g": 1.0}}, "scale must belong"),
        ({"quantity": {"g": "CLs"}}, "quantity must belong"),
        ({"quantity": "mu"}, "must be one of value, mu_95, CLs, got 'mu'"),
        ({"scale": 0}, "must be a finite number, not 0"),
        ({"scale": math.nan}, "must be a finite number, not 0"),
        ({"variances": {"f": "v"}, "errors": {"f": "e"}}, "either a variance or an error"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        Reader("r.json", **{"keys": {"f": "y"}, **settings})


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["inf", "nan", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(document=_ANY | st.text(max_size=60), yaml=st.booleans(), missing=st.booleans())
def test_any_file_is_an_outcome_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, document: Any, yaml: bool, missing: bool
) -> None:
    folder, name = tmp_path_factory.getbasetemp(), "any.yaml" if yaml else "any.json"
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / name).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    reader = Reader(name, {"f": "y", "g": "y.0.x"}, valid={"f": (-5, 5)}, missing=("f", "g") if missing else ("g",))
    try:
        outcome = reader.read(folder)
    except EvaluationError:
        return
    assert outcome.values
    assert abs(outcome.values.get("f", 0)) <= 5
