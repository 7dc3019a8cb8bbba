"""Label selectors, as Kubernetes has them."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.errors import InvalidSpec
from posemesh.runners.selector import Operator, Requirement, Selector, parse_selector, selector_of

from .routing import spec


def expressing(key: str, operator: str, *values: str) -> Selector:
    requirement: Any = {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
    return parse_selector({"matchExpressions": [requirement]})


def test_an_empty_selector_matches_all() -> None:
    for value in ({}, {"matchLabels": {}}, {"matchExpressions": []}, {"matchLabels": None, "matchExpressions": None}):
        selector = parse_selector(value)
        assert selector.matches({}) and selector.matches({"tier": "a"})


def test_labels_need_the_exact_value_and_others_do_not_matter() -> None:
    selector = parse_selector({"matchLabels": {"tier": "a"}})
    assert selector.matches({"tier": "a", "zone": "b"})
    for labels in ({}, {"tier": "A"}, {"tier": "ab"}, {"tier": ""}, {"Tier": "a"}):
        assert not selector.matches(labels)
    assert parse_selector({"matchLabels": {"tier": ""}}).matches({"tier": ""})
    assert not parse_selector({"matchLabels": {"tier": ""}}).matches({})


@pytest.mark.parametrize(
    ("operator", "values", "absent", "same", "other", "empty"),
    [
        ("In", ("a", "b"), False, True, False, False),
        ("NotIn", ("a", "b"), True, False, True, True),
        ("Exists", (), False, True, True, True),
        ("DoesNotExist", (), True, False, False, False),
        ("In", ("",), False, False, False, True),
        ("NotIn", ("",), True, True, True, False),
    ],
)
def test_operators(operator: str, values: tuple[str, ...], absent: bool, same: bool, other: bool, empty: bool) -> None:
    selector = expressing("tier", operator, *values)
    all_labels: list[dict[str, str]] = [{}, {"tier": "a"}, {"tier": "c"}, {"tier": ""}]
    assert [selector.matches(labels) for labels in all_labels] == [absent, same, other, empty]


def test_one_clause_that_fails_is_enough() -> None:
    selector = parse_selector(
        {
            "matchLabels": {"tier": "a", "zone": "b"},
            "matchExpressions": [
                {"key": "gpu", "operator": "Exists"},
                {"key": "arch", "operator": "In", "values": ["x"]},
            ],
        }
    )
    good = {"tier": "a", "zone": "b", "gpu": "", "arch": "x"}
    assert selector.matches(good)
    for key in good:
        assert not selector.matches({**good, key: "no"}) or key == "gpu"
        assert not selector.matches({name: value for name, value in good.items() if name != key})


def test_what_is_missed_first_is_named() -> None:
    selector = parse_selector({"matchLabels": {"tier": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]})
    assert selector.missed_by({"x": ""}) == Requirement("tier", Operator.IN, ("a",))
    assert str(selector.missed_by({"x": ""})) == "tier In ['a']"
    assert str(selector.missed_by({"tier": "a"})) == "x Exists"
    assert selector.missed_by({"tier": "a", "x": ""}) is None


def clause(**fields: Any) -> dict[str, Any]:
    return {"matchExpressions": [fields]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "selector: expected an object, got []"),
        ("tier=a", "selector: expected an object"),
        ({"matchlabels": {}}, "selector: expected no fields but matchExpressions, matchLabels, got ['matchlabels']"),
        ({"matchLabels": []}, "selector.matchLabels: expected an object"),
        ({"matchLabels": {"tier": 1}}, "selector.matchLabels['tier']: expected text, got 1"),
        ({"matchLabels": {"tier": None}}, "selector.matchLabels['tier']: expected text"),
        ({"matchLabels": {"": "a"}}, "selector.matchLabels: expected a label's name that is not empty"),
        ({"matchExpressions": {}}, "selector.matchExpressions: expected a list"),
        ({"matchExpressions": ["x"]}, "selector.matchExpressions[0]: expected an object"),
        (clause(operator="Exists"), "selector.matchExpressions[0].key: expected text, got None"),
        (clause(key="", operator="Exists"), "matchExpressions[0].key: expected a label's name that is not empty"),
        (clause(key=5, operator="Exists"), "matchExpressions[0].key: expected text, got 5"),
        (clause(key="a"), "matchExpressions[0].operator: expected one of In, NotIn, Exists, DoesNotExist, got None"),
        (clause(key="a", operator="in", values=["b"]), "[0].operator: expected one of In, NotIn"),
        (clause(key="a", operator=["In"]), "[0].operator: expected one of In, NotIn"),
        (clause(key="a", operator="In"), "[0].values: expected at least one for In, got []"),
        (clause(key="a", operator="NotIn", values=[]), "[0].values: expected at least one for NotIn"),
        (clause(key="a", operator="Exists", values=["b"]), "[0].values: expected none for Exists, got ['b']"),
        (clause(key="a", operator="DoesNotExist", values=["b"]), "[0].values: expected none for DoesNotExist"),
        (clause(key="a", operator="In", values="bc"), "[0].values: expected a list, got 'bc'"),
        (clause(key="a", operator="In", values=[1]), "[0].values[0]: expected text, got 1"),
        (clause(key="a", operator="Exists", extra=1), "[0]: expected no fields but key, operator, values"),
    ],
)
def test_what_is_no_selector_is_refused_and_named(value: Any, said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_selector(value)
    assert said in str(caught.value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_selector(["x" * 10_000])
    assert len(str(caught.value)) < 300


SELECTOR: Any = {"matchLabels": {"tier": "a"}}
OTHER: Any = {"matchLabels": {"tier": "b"}}


def test_a_task_has_it_in_its_meta_else_in_its_filters() -> None:
    assert selector_of(spec(meta={"runner_selector": SELECTOR})) == parse_selector(SELECTOR)
    assert selector_of(spec(meta={"runner_selector": SELECTOR}, filters=OTHER)) == parse_selector(SELECTOR)
    assert selector_of(spec(meta={"runner_selector": {}}, filters=OTHER)) == Selector()
    assert selector_of(spec(meta={"runner_selector": None}, filters=OTHER)) == parse_selector(OTHER)
    assert selector_of(spec(meta={"more": 1}, filters=OTHER)) == parse_selector(OTHER)
    assert selector_of(spec(filters={"matchExpressions": [{"key": "x", "operator": "Exists"}]})) is not None


@pytest.mark.parametrize(
    "nothing", [None, [], "x", 5, {}, {"gpu": True}, {"matchLabels": None}, {"matchLabels": None, "gpu": 1}]
)
def test_other_filters_and_metas_say_nothing_about_runners(nothing: Any) -> None:
    assert selector_of(spec(meta=nothing, filters=nothing)) is None


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (spec(meta={"runner_selector": "gpu"}), "a task of '/x/v1': meta.runner_selector: expected an object"),
        (spec(filters={"matchLabels": 5}), "a task of '/x/v1': capability_filters.matchLabels: expected an object"),
        (spec(meta={"runner_selector": {**SELECTOR, "gpu": 1}}), "runner_selector: expected no fields but"),
    ],
)
def test_a_selector_that_is_none_names_the_task_and_the_place(task: Any, said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        selector_of(task)
    assert said in str(caught.value)


def test_what_else_capability_filters_ask_is_the_service_s_business() -> None:
    """A task with a selector and another filter was refused, and one with that filter alone was not."""
    assert selector_of(spec(filters={**SELECTOR, "min_memory": 5})) == selector_of(spec(filters=SELECTOR))
    assert selector_of(spec(filters={"matchLabels": None, "min_memory": 5})) is None
