"""Search spaces: what a file may say, and what is told of a mistake."""

import json
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.errors import InputError
from afina.search import make_space, read_space, space_schema

FULL = """
learning_rate: {type: float, low: 1e-4, high: 0.3, log: true}
momentum: {type: float, low: 0.5, high: 0.99, when: {optimizer: [sgd, nesterov]}}
optimizer: [sgd, nesterov, adamw]
model.depth: {type: int, low: 2, high: 9, step: 3}
epochs: 20
"""


def test_a_file_is_read_with_its_shorthands(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(FULL)
    space = read_space(path)
    assert list(space.parameters).index("optimizer") < list(space.parameters).index("momentum")
    assert space.parameters["learning_rate"].low == 1e-4
    assert space.parameters["model.depth"].high == 8
    assert make_space(json.loads(json.dumps(space.to_plain()))) == space


def test_trials_get_the_parameters_that_are_active():
    space = make_space({"a": ["x", "y"], "b": {"type": "float", "low": 0, "high": 1, "when": {"a": "x"}}, "c": 3})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        values = space.suggest(trial)
        assert ("b" in values) == (values["a"] == "x")
        assert values["c"] == 3
        assert space.complete(trial.params) == values
        seen.add(values["a"])
    assert seen == {"x", "y"}


def test_a_grid_has_every_combination_once():
    space = make_space(
        {
            "a": ["x", "y"],
            "b": {"type": "int", "low": 0, "high": 2, "when": {"a": "x"}},
            "c": {"type": "float", "low": 0.01, "high": 1, "log": True},
            "d": 7,
        }
    )
    found = space.combinations(points=3)
    assert len(found) == (3 + 1) * 3
    assert len({tuple(sorted(f.items())) for f in found}) == len(found)
    assert sorted({round(f["c"], 9) for f in found}) == [0.01, 0.1, 1.0]
    assert all("d" not in f for f in found)


def test_a_grid_of_millions_is_refused_with_its_number():
    space = make_space({f"p{i}": {"type": "float", "low": 0, "high": 1} for i in range(9)})
    with pytest.raises(InputError, match=r"10,077,696.*\n.*random"):
        space.combinations(points=6)


def test_a_grid_of_huge_ranges_is_made_or_refused_at_once():
    whole = make_space({"n": {"type": "int", "low": 1, "high": 2 * 10**9}})
    assert whole.combinations(points=3) == [{"n": 1}, {"n": 10**9}, {"n": 2 * 10**9}]
    assert make_space({"n": {"type": "int", "low": 1, "high": 10**8, "log": True}}).size(points=5) == 5
    fine = {"type": "float", "low": 0, "high": 100, "step": 1e-9}
    for data in ({"x": fine}, {"kind": ["a", "b"], "x": {**fine, "when": {"kind": "b"}}}):
        with pytest.raises(InputError, match=r"00,000,00\d combinations"):
            make_space(data).combinations(points=3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "is empty"),
        ({"a": 1}, "fixed values only"),
        ([1], "mapping"),
        ({"a": {"type": "flaot", "low": 0, "high": 1}}, "Did you mean float"),
        ({"a": {"low": 0, "high": 1}}, "has no type"),
        ({"a": {"type": "float", "low": 0, "hgih": 1}}, "Did you mean high"),
        ({"a": {"type": "float", "low": 0}}, "needs 'high'"),
        ({"a": {"type": "float", "low": 2, "high": 1}}, "has no values"),
        ({"a": {"type": "float", "low": 0, "high": 1, "log": True}}, "logarithm"),
        ({"a": {"type": "float", "low": "x", "high": 1}}, "finite number"),
        ({"a": {"type": "float", "low": 0, "high": float("inf")}}, "finite number"),
        ({"a": {"type": "int", "low": 0.5, "high": 1}}, "whole number"),
        ({"a": {"type": "int", "low": 0, "high": 4, "step": 0}}, "above 0"),
        ({"a": {"type": "int", "low": 1, "high": 4, "step": 2, "log": True}}, "both log and step"),
        ({"a": []}, "no choices"),
        ({"a": ["x", "x"]}, "twice"),
        ({"a": [{"x": 1}]}, "plain"),
        ({"a": {"type": "categorical", "choices": "xy"}}, "must be a list"),
        ({"optimizer": ["sgd"], "b": {"type": "fixed", "value": 1, "when": {"optimiser": "sgd"}}}, "mean optimizer"),
        ({"optimizer": ["sgd"], "b": {"type": "fixed", "value": 1, "when": {"optimizer": "sdg"}}}, "mean sgd"),
        (
            {"a": {"type": "categorical", "choices": [1], "when": {"b": 1}},
             "b": {"type": "categorical", "choices": [1], "when": {"a": 1}}},
            "circle",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(data, says):
    with pytest.raises(InputError, match=says):
        make_space(data)


def test_files_that_are_no_spaces_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_space(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(InputError, match="YAML"):
        read_space(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("a: [1, 2]\nb: [1, 2]\na: [3, 4]\n")
    with pytest.raises(InputError, match=r"a is there twice(.|\n)*line 3"):
        read_space(tmp_path / "twice.yaml")


@settings(max_examples=40, deadline=None)
@given(st.integers(-5, 5), st.integers(0, 40), st.integers(1, 7), st.integers(1, 9))
def test_grids_of_whole_numbers_stay_on_the_steps(low, width, step, points):
    p = make_space({"a": {"type": "int", "low": low, "high": low + width, "step": step}}).parameters["a"]
    grid = p.grid(points)
    every = range(low, low + width + 1, step)
    assert set(grid) <= set(every)
    assert len(grid) <= max(points, 1)
    assert p.high == every[-1]


def test_the_published_schema_is_the_one_of_the_code():
    published = Path(__file__).parents[1] / "docs" / "space.schema.json"
    assert json.loads(published.read_text()) == space_schema(), "python -m afina.search > docs/space.schema.json"
