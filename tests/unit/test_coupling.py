"""The coupling rules: each is about machines and states that are there, fires in some scenario, and ends by firing."""

from __future__ import annotations

from collections import Counter

import pytest

import posemesh.engine
from posemesh import coupling
from posemesh.coupling import LAST_RULES, LEASE_RULES, NODE_RULES, Joint, Rule, Rules, concerns_auth
from posemesh.events import (
    AskFailed,
    Emptied,
    HeartbeatFailed,
    NoWork,
    OutcomeRejected,
    RegistrationAccepted,
    TokenRejected,
)
from posemesh.machines.auth import Auth
from posemesh.machines.lease import Lease
from posemesh.machines.poller import Poller, PollerState
from posemesh.machines.registration import Registration, RegistrationState

from ..stage import Stage, failure
from . import test_engine

RULES = (*NODE_RULES, *LEASE_RULES, *LAST_RULES)
MACHINES = posemesh.engine.NODE_MACHINES | posemesh.engine.LEASE_MACHINES
SCENARIOS = {
    name: test
    for name, test in vars(test_engine).items()
    if name.startswith("test_") and callable(test) and not test.__code__.co_argcount
}


def test_a_rule_is_about_what_is_there() -> None:
    for rule in RULES:
        assert rule.why.strip() and rule.tell
        assert set(rule.where) <= set(MACHINES) and {machine for machine, _ in rule.tell} <= set(MACHINES)
        for machine, states in rule.where.items():
            assert states and set(states) <= {*MACHINES[machine].states, None}


def test_no_two_rules_are_one() -> None:
    assert len({rule.why for rule in RULES}) == len(RULES)


def test_every_rule_fires_and_none_fires_twice_on_one_joint_state(monkeypatch: pytest.MonkeyPatch) -> None:
    fired: Counter[str] = Counter()
    seen: list[object] = []

    first_that_holds = Rules.first_that_holds

    def watch(rules: Rules, joint: Joint) -> Rule | None:
        rule = first_that_holds(rules, joint)
        if rule is not None:
            fired[rule.why] += 1
            held = repr((joint.registration, joint.auth, joint.poller, joint.lease, joint.session, joint.delivery))
            now = (rule, joint.census, held, joint.registration)  # the last stands for the engine
            assert now not in seen[-3:], f"{rule.why} does not make itself false"
            seen.append(now)
        return rule

    monkeypatch.setattr(Rules, "first_that_holds", watch)
    for test in SCENARIOS.values():
        test()
    assert [rule.why for rule in RULES if not fired[rule.why]] == []


def test_a_rule_that_does_not_make_itself_false_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Rule({"poller": (PollerState.WAITING,)}, (("registration", lambda j: coupling.WalletDisowned()),), "no end")
    monkeypatch.setattr(posemesh.engine, "NODE_RULES", Rules(loop))
    stage = Stage()
    with pytest.raises(AssertionError, match="do not converge"):
        stage.engine.handle(test_engine.NodeStarted(), 0.0)


def test_the_upper_rule_wins_and_none_stands_for_a_machine_that_is_not_there() -> None:
    joint = Joint(Registration(), Auth(), Poller())
    upper = Rule({"registration": (RegistrationState.IDLE,), "lease": (None,)}, (("poller", lambda j: Emptied()),), "a")
    lower = Rule({}, (("poller", lambda j: Emptied()),), "b")
    table = Rules(upper, lower)
    assert table.first_that_holds(joint) is upper
    joint.lease = Lease()
    assert table.first_that_holds(joint) is lower
    never = Rule({}, (("poller", lambda j: Emptied()),), "c", lambda j: False)
    assert Rules(never).first_that_holds(joint) is None
    assert joint.states()[:3] == ("idle", "signed_out", "waiting") and joint.states()[4:] == (None, None)


def test_a_table_about_the_machines_of_the_node_holds_whatever_lease_is_looked_at() -> None:
    joint = Joint(Registration(), Auth(), Poller())
    rule = Rule({"poller": (PollerState.WAITING,)}, (("poller", lambda j: Emptied()),), "a")
    table = Rules(rule)
    assert list(table) == [rule]
    for joint.lease in (None, Lease()):
        assert table.first_that_holds(joint) is rule
    joint.poller.state = PollerState.FULL
    assert table.first_that_holds(joint) is None


@pytest.mark.parametrize(
    ("event", "concern"),
    [
        (AskFailed(failure=failure(401, generation=3)), TokenRejected(generation=3)),
        (HeartbeatFailed(lease=1, failure=failure(401, generation=3)), TokenRejected(generation=3)),
        (OutcomeRejected(lease=1, failure=failure(401, generation=3)), TokenRejected(generation=3)),
        (AskFailed(failure=failure(401)), None),
        (AskFailed(failure=failure(403, generation=3)), None),
        (NoWork(), None),
        (RegistrationAccepted(), None),
    ],
)
def test_whose_401_concerns_the_token(event: object, concern: object) -> None:
    assert concerns_auth(event) == concern
