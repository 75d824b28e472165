"""The scenario's models: their schema says what they take, and an order of guests is found whenever there is one."""

import graphlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dom0.scenario.model import MISPLACED, GuestSpec, Scenario

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([*ROOT.glob("scenarios/*.yaml"), *ROOT.glob("examples/*.yaml")])


def schema_accepts(data: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(Scenario.model_json_schema()).is_valid(data))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_schema_takes_what_is_shipped(file: Path) -> None:
    assert SHIPPED
    data = yaml.safe_load(file.read_text())
    jsonschema.validate(data, Scenario.model_json_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "change",
    [
        {"loop": "uvloop"},
        {"guests": []},
        {"unknown": 1},
        {"guests": [{"name": "a b", "program": "hello"}]},
        {"guests": [{"name": "a", "program": "hello", "start_after": 3}]},
        {"guests": [{"name": "a", "program": "hello", "disks": [{"mode": "r"}]}]},
        {"guests": [{"name": "a", "program": "hello", "expect": {"console": 3}}]},
    ],
)
def test_the_schema_refuses_what_the_models_refuse(change: dict[str, Any]) -> None:
    right = {"name": "x", "guests": [{"name": "a", "program": "hello"}]}
    assert schema_accepts(right)
    assert not schema_accepts(right | change)
    with pytest.raises(ValidationError):
        Scenario.model_validate(right | change)


def test_one_word_stands_for_a_list_of_one() -> None:
    guest = {"name": "b", "program": "hello", "start_after": "a", "expect": {"console": "x"}}
    assert GuestSpec.model_validate(guest).start_after == ("a",)
    assert GuestSpec.model_validate(guest).expect.console == ("x",)
    assert schema_accepts({"name": "x", "guests": [guest]})


@given(st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef")), min_size=1))
def test_start_after_is_refused_exactly_if_it_goes_in_a_circle(graph: dict[str, set[str]]) -> None:
    graph = {name: {other for other in after if other in graph} for name, after in graph.items()}
    data = {
        "name": "x",
        "guests": [
            {"name": name, "program": "hello", "start_after": sorted(after)} for name, after in graph.items()
        ],
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        with pytest.raises(ValidationError) as caught:
            Scenario.model_validate(data)
        (error,) = caught.value.errors()
        assert error["type"] == MISPLACED
        circle = error["msg"].partition("(")[2].rstrip(")").split(" after ")
        assert circle[0] == circle[-1]
        assert all(second in graph[first] for first, second in pairwise(circle))
    else:
        Scenario.model_validate(data)
