"""How a task finds its runner."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from posemesh.errors import DuplicateRunner, InvalidSpec, MissingField, NoRunner
from posemesh.runners.context import BuildContext
from posemesh.runners.ids import make_run_id
from posemesh.runners.router import RoutedRunner, RunnerRouter, Verdict

from .routing import CAPABILITY, Stub, logged, spec, wanting

BAD: Any = {"runner_selector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}}


def routed(*runners: Stub, **labels: dict[str, str]) -> RunnerRouter:
    router = RunnerRouter()
    for runner in runners:
        router.register(runner, labels.get(runner.name))
    return router


# --- Selection --------------------------------------------------------------------------------------------------


def test_the_first_registered_of_two_that_match_is_picked() -> None:
    a, b = Stub("a"), Stub("b")
    assert routed(a, b).pick(spec()).runner is a
    assert routed(b, a).pick(spec()).runner is b


def test_labels_do_not_help_a_runner_that_does_not_support_the_task_nor_the_other_way_round() -> None:
    unwilling, unlabelled, both = Stub("unwilling", takes=False), Stub("unlabelled"), Stub("both")
    router = routed(unwilling, unlabelled, both, unwilling={"tier": "a"}, both={"tier": "a"})
    assert router.pick(wanting(tier="a")).runner is both


@pytest.mark.parametrize("meta", [None, {}, {"runner_selector": {}}, {"runner_selector": None}])
@pytest.mark.parametrize("labels", [{}, {"tier": "a"}])
def test_no_selector_and_an_empty_one_match_labelled_and_unlabelled_runners(meta: Any, labels: dict[str, str]) -> None:
    assert routed(Stub("a"), a=labels).pick(spec(meta=meta)).name == "a"


def test_labels_match_exactly_and_more_of_them_do_no_harm() -> None:
    router = routed(Stub("a"), a={"tier": "gold", "zone": "eu"})
    assert router.pick(wanting(tier="gold")).name == "a"
    for labels in ({"tier": "silver"}, {"tier": "gold", "rack": "1"}):
        with pytest.raises(NoRunner):
            router.pick(wanting(**labels))


def test_a_runner_for_another_capability_is_not_asked() -> None:
    other, mine = Stub("other"), Stub("mine")
    router = RunnerRouter()
    router.register(other, capability="/y/v1")
    router.register(mine, capability=CAPABILITY)
    assert router.pick(spec()).runner is mine
    assert other.asked == 0


def test_a_runner_for_no_capability_in_particular_is_asked_for_all() -> None:
    router = routed(Stub("any"))
    for capability in (CAPABILITY, "/y/v1"):
        assert router.pick(spec(capability)).name == "any"


@pytest.mark.parametrize("capability", ["", "  ", None])
def test_a_task_without_a_capability_is_refused_even_where_a_runner_claims_everything(capability: Any) -> None:
    greedy = Stub("greedy")
    router = routed(greedy)
    for refused in (router.pick, router.build):
        with pytest.raises(NoRunner, match="needs a capability"):
            refused(spec(capability))
    assert "needs a capability" in router.explain(spec(capability)).problem
    assert greedy.asked == 0 and greedy.contexts == []


def test_no_match_names_the_capability_and_builds_nothing() -> None:
    never = Stub("never", takes=False)
    router = routed(never)
    with pytest.raises(NoRunner) as caught:
        router.build(spec())
    assert caught.value.capability == CAPABILITY
    assert str(caught.value) == "no runner for '/x/v1': never: its supports() says no"
    assert never.contexts == []
    with pytest.raises(NoRunner, match="no runner for '/x/v1': none is registered for it"):
        RunnerRouter().pick(spec())


def test_of_many_that_came_near_a_few_are_named() -> None:
    router = routed(*(Stub(f"r{at}", takes=False) for at in range(8)))
    with pytest.raises(NoRunner) as caught:
        router.pick(spec())
    assert "r4" in str(caught.value) and "r5" not in str(caught.value)
    assert str(caught.value).endswith("and 3 more")


def test_a_supports_that_raises_counts_as_no_and_is_logged_once() -> None:
    broken, good = Stub("broken", takes=ValueError("what?")), Stub("good")
    router = routed(broken, good)
    with logged() as lines:
        for _ in range(3):
            assert router.pick(spec()).runner is good
            router.build(spec())
            assert "broken: skipped: its supports() raised ValueError: what?" in str(router.explain(spec()))
    assert len(lines) == 1
    assert "runner broken: supports() raised" in lines[0] and "what?" in lines[0]


class Vague:
    """What numpy gives for a comparison of arrays."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


@pytest.mark.parametrize("answer", [Vague(), asyncio.CancelledError(), SystemExit(3)])
def test_whatever_supports_does_counts_as_no(answer: Any) -> None:
    """A lease was lost without a word, and with sys.exit() the node and what it had finished."""

    class Broken(Stub):
        def supports(self, spec: Any) -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return answer

    good = Stub("good")
    for router in (routed(Broken("broken"), good), routed(good, Broken("broken"))):
        with logged() as lines:
            assert router.pick(spec()).runner is good
            router.build(spec())
            assert "broken: skipped: its supports() raised" in str(router.explain(spec()))
        assert len(lines) == 1


def test_a_selector_that_is_none_is_an_error_whatever_runners_there_are() -> None:
    asked = Stub("a")
    router = routed(asked)
    for refused in (router.pick, router.build):
        with pytest.raises(
            InvalidSpec, match=r"meta.runner_selector.matchExpressions\[0\].operator: expected one of In"
        ):
            refused(spec(meta=BAD))
    assert asked.asked == 0


# --- Building ---------------------------------------------------------------------------------------------------


def test_the_error_of_the_chosen_runner_is_raised_as_it_is_and_no_other_is_built() -> None:
    error = MissingField("image", CAPABILITY)
    first, second = Stub("first", fails=error), Stub("second")
    with pytest.raises(MissingField) as caught:
        routed(first, second).build(spec())
    assert caught.value is error
    assert second.contexts == []


def test_a_runner_is_built_with_the_one_context_and_its_slot() -> None:
    runner = Stub("a")
    router = RunnerRouter(BuildContext(env=(("A", "1"),)))
    router.register(runner)
    router.build(spec())
    ref = router.build(spec(), slot="2")
    assert [context.slot for context in runner.contexts] == ["0", "2"]
    assert {context.env for context in runner.contexts} == {(("A", "1"),)}
    assert ref.run_id.name == f"a-2-{ref.run_id.seq}"


def test_what_was_picked_is_built_even_if_another_would_be_picked_now() -> None:
    first, second = Stub("first"), Stub("second")
    router = routed(first, second)
    first.takes = False
    picked = router.pick(spec())
    first.takes = True
    router.build(spec(), picked=picked)
    assert (len(first.built), len(second.built)) == (0, 1)


def test_a_pick_and_an_explanation_change_nothing() -> None:
    router = routed(Stub("a"), Stub("b"))
    with logged() as lines:
        before = make_run_id("x", "0").seq
        for _ in range(3):
            router.pick(spec())
            router.explain(spec())
        assert make_run_id("x", "0").seq == before + 1
    assert lines == []
    assert [entry.runner.contexts for entry in router.catalog() if isinstance(entry.runner, Stub)] == [[], []]


def test_a_second_that_would_do_is_told_once() -> None:
    router = routed(Stub("a"), Stub("no", takes=False), Stub("b"), Stub("c"), c={"tier": "gold"}, a={"tier": "gold"})
    with logged() as lines:
        for _ in range(3):
            router.build(spec())
        assert len(lines) == 1
        assert "/x/v1: runner a gets the task, and b would do as well" in lines[0]
        router.build(wanting(tier="gold"))
        router.build(spec("/y/v1"))
        assert len(lines) == 2, "another pair is another warning"
        assert "c would do as well" in lines[1]


def test_where_labels_tell_runners_apart_there_is_nothing_to_warn_of() -> None:
    router = routed(Stub("a"), Stub("b"), a={"tier": "gold"}, b={"tier": "iron"})
    with logged() as lines:
        router.build(wanting(tier="gold"))
        router.build(wanting(tier="iron"))
    assert lines == []


# --- Registration -----------------------------------------------------------------------------------------------


def test_a_second_runner_of_a_name_is_refused_and_nothing_changes() -> None:
    first, second = Stub("a"), Stub("a")
    router = routed(first)
    before = router.catalog()
    with pytest.raises(DuplicateRunner, match="a runner named 'a' is registered already"):
        router.register(second, {"tier": "gold"}, capability="/y/v1")
    assert router.catalog() == before
    assert router.pick(spec()).runner is first


def test_a_catalog_does_not_learn_of_later_runners() -> None:
    router = routed(Stub("a"))
    before = router.catalog()
    router.register(Stub("b"))
    assert [each.name for each in before] == ["a"]
    assert [each.name for each in router.catalog()] == ["a", "b"]
    assert repr(router) == "<RunnerRouter ['a', 'b']>"


def test_name_and_labels_are_those_at_the_registration() -> None:
    runner, labels = Stub("a"), {"zone": "eu", "tier": "gold"}
    router = RunnerRouter()
    router.register(runner, labels)
    runner.name = "b"
    labels["tier"] = "iron"
    (entry,) = router.catalog()
    assert entry.name == "a"
    assert list(entry.labels.items()) == [("tier", "gold"), ("zone", "eu")]
    with pytest.raises(TypeError):
        entry.labels["tier"] = "iron"  # type: ignore[index]
    with pytest.raises(DuplicateRunner):
        router.register(Stub("a"))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ({"a": 1}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": None}, TypeError),
        ([("a", "b")], TypeError),
        ({"": "a"}, ValueError),
    ],
)
def test_labels_are_text(labels: Any, kind: type[Exception]) -> None:
    router = RunnerRouter()
    with pytest.raises(kind, match="label"):
        router.register(Stub("a"), labels)
    assert router.catalog() == ()


@pytest.mark.parametrize(("name", "kind"), [("", ValueError), (" ", ValueError), (None, TypeError), (7, TypeError)])
def test_names_and_capabilities_are_text(name: Any, kind: type[Exception]) -> None:
    router = RunnerRouter()
    with pytest.raises(kind, match="name"):
        router.register(Stub(name))
    if name is not None:
        with pytest.raises(kind, match="capability"):
            router.register(Stub("a"), capability=name)
    assert router.catalog() == ()


def test_what_is_no_runner_is_refused() -> None:
    assert isinstance(Stub(), RoutedRunner)
    with pytest.raises(TypeError, match="name, supports and build_task, got function"):
        RunnerRouter().register(lambda task: None)  # type: ignore[arg-type]


# --- Explanations -----------------------------------------------------------------------------------------------


def test_an_explanation_has_a_line_for_each_runner() -> None:
    router = RunnerRouter()
    router.register(Stub("far"), capability="/y/v1")
    router.register(Stub("unwilling", takes=False))
    router.register(Stub("iron"), {"tier": "iron"})
    router.register(Stub("bare"))
    router.register(Stub("gold"), {"tier": "gold"}, capability=CAPABILITY)
    router.register(Stub("late"), {"tier": "gold"})
    explained = router.explain(wanting(tier="gold"))
    assert explained.picked == "gold" and explained.problem == ""
    assert [(each.runner, each.verdict) for each in explained.runners] == [
        ("far", Verdict.OTHER_CAPABILITY),
        ("unwilling", Verdict.UNSUPPORTED),
        ("iron", Verdict.LABELS),
        ("bare", Verdict.LABELS),
        ("gold", Verdict.PICKED),
        ("late", Verdict.SHADOWED),
    ]
    assert str(explained).splitlines() == [
        "/x/v1 goes to gold",
        "  far: skipped: it is for /y/v1",
        "  unwilling: skipped: its supports() says no",
        "  iron: skipped: the task asks for tier In ['gold'], it has 'iron'",
        "  bare: skipped: the task asks for tier In ['gold'], it has no such label",
        "  gold: picked",
        "  late: skipped: gold comes first",
    ]


def test_an_explanation_of_no_match_says_what_the_error_says() -> None:
    router = routed(Stub("a", takes=False))
    explained = router.explain(spec())
    with pytest.raises(NoRunner) as caught:
        router.pick(spec())
    assert explained.picked is None
    assert explained.problem == str(caught.value)
    assert str(explained).splitlines() == [explained.problem, "  a: skipped: its supports() says no"]


def test_of_a_task_that_cannot_be_routed_each_runner_was_not_asked() -> None:
    explained = routed(Stub("a"), Stub("b")).explain(spec(meta=BAD))
    assert "meta.runner_selector" in explained.problem
    assert [each.verdict for each in explained.runners] == [Verdict.NOT_ASKED] * 2
    assert str(explained).splitlines()[1:] == ["  a: skipped: it was not asked", "  b: skipped: it was not asked"]
