"""Registration: event in, list of commands out."""

from __future__ import annotations

import pytest

from posemesh.commands import AnswerCallback, GiveUp, Register, StoreSecret, Warn
from posemesh.errors import RegistrationRefused
from posemesh.events import (
    CallbackArrived,
    CallbackOverdue,
    HealthProbed,
    NodeLeft,
    NodeStarted,
    ProbeOverdue,
    RegistrationAccepted,
    RegistrationDue,
    RegistrationRejected,
    SecretStored,
    SecretUnstored,
    WalletDisowned,
)
from posemesh.machines import registration
from posemesh.machines.registration import RegistrationState
from posemesh.secret import Secret

from ...stage import CALLBACK, Bench, config, failure, names, sweep, untaken

IDLE, REGISTERING, AWAITING, REGISTERED, BACKING_OFF, COOLING_DOWN, STOPPED = RegistrationState
INTERVAL = 120.0


def bench(*events: object, callback: bool = False, **settings: object) -> Bench:
    made = Bench(registration, settings=CALLBACK if callback else config(**settings))
    made(*events)
    return made


def rejected(status: int | None = 503, lasting: bool | None = None) -> RegistrationRejected:
    return RegistrationRejected(failure=failure(status), lasting=lasting)


def called(node_id: str = "node", request: int = 1) -> CallbackArrived:
    return CallbackArrived(request=request, node_id=node_id, secret=Secret("s"))


def stored(node_id: str = "node", request: int = 1) -> SecretStored:
    return SecretStored(request=request, node_id=node_id)


def answer(status: int, text: str = "", request: int = 1) -> AnswerCallback:
    return AnswerCallback(request=request, status=status, text=text)


REACH = {
    IDLE: lambda: bench(),
    REGISTERING: lambda: bench(NodeStarted()),
    AWAITING: lambda: bench(NodeStarted(), RegistrationAccepted(), callback=True),
    REGISTERED: lambda: bench(NodeStarted(), RegistrationAccepted()),
    BACKING_OFF: lambda: bench(NodeStarted(), rejected(503)),
    COOLING_DOWN: lambda: bench(NodeStarted(), rejected(409)),
    STOPPED: lambda: bench(NodeLeft()),
}


def test_every_event_in_every_state() -> None:
    sweep(REACH)


def test_a_stranger_who_calls_where_nobody_was_asked_to_is_refused() -> None:
    """In the wallet flow the secret of anybody who called in time was stored."""
    reg = bench(NodeStarted())
    assert reg(called()) == [answer(409, "no callback is expected")]


def test_the_wallet_flow() -> None:
    reg = bench()
    assert reg(NodeStarted()) == [Register()]
    assert reg(RegistrationAccepted()) == []
    assert reg.state is REGISTERED and reg.wait(1e6) == []


def test_the_callback_flow() -> None:
    reg = bench(callback=True)
    assert reg(NodeStarted(), RegistrationAccepted()) == [Register()]
    assert reg.state is AWAITING
    assert reg(called()) == [StoreSecret(request=1, node_id="node", secret=Secret("s"))]
    assert reg.state is AWAITING
    assert reg(stored()) == [answer(200)]
    assert reg.state is REGISTERED


def test_a_callback_inside_the_register_request_counts() -> None:
    reg = bench(NodeStarted(), called(), callback=True)
    assert reg(stored()) == [answer(200)]
    assert reg.state is REGISTERING
    assert reg(RegistrationAccepted()) == []
    assert reg.state is REGISTERED


def test_a_callback_whose_secret_is_not_stored_in_time_does_not_count_before() -> None:
    reg = bench(NodeStarted(), called(), RegistrationAccepted(), callback=True)
    assert reg.state is AWAITING
    reg(stored())
    assert reg.state is REGISTERED


@pytest.mark.parametrize("problem", ["persist failed", "persist verify failed"])
def test_a_secret_that_is_not_kept(problem: str) -> None:
    reg = bench(NodeStarted(), RegistrationAccepted(), called(), callback=True)
    assert reg(SecretUnstored(request=1, problem=problem)) == [answer(409, problem)]
    assert reg.state is AWAITING


def test_a_callback_that_never_comes_makes_it_register_again() -> None:
    reg = bench(NodeStarted(), RegistrationAccepted(), callback=True)
    assert reg.left(CallbackOverdue) == INTERVAL
    [told] = reg.due(CallbackOverdue)
    assert isinstance(told, Warn) and "did not call https://node.example/ back; blocked for 0 s" in told.message
    assert reg.state is BACKING_OFF
    assert reg.due(RegistrationDue) == [Register()]


def test_a_lost_callback_backs_off_also_without_retries() -> None:
    reg = Bench(registration, settings=config(node_url="https://node.example", register_max_retry=0))
    reg(NodeStarted(), RegistrationAccepted())
    reg.due(CallbackOverdue)
    assert reg.state is BACKING_OFF


def test_a_callback_for_a_try_that_has_ended_does_not_count() -> None:
    reg = bench(NodeStarted(), called(), rejected(503), callback=True)
    assert reg(stored()) == [answer(409, "no callback is expected")]
    reg.due(RegistrationDue)
    reg(RegistrationAccepted())
    assert reg.state is AWAITING


def test_a_callback_that_counted_for_a_try_that_failed_does_not_count_for_the_next() -> None:
    reg = bench(NodeStarted(), called(), stored(), rejected(503), callback=True)
    reg.due(RegistrationDue)
    reg(RegistrationAccepted())
    assert reg.state is AWAITING


@pytest.mark.parametrize("state", [IDLE, BACKING_OFF, COOLING_DOWN, STOPPED])
def test_a_callback_nobody_asked_for(state: RegistrationState) -> None:
    """Weakness 50 of the reference: any caller makes the node take itself for registered."""
    reg = REACH[state]()
    assert reg(called()) == [answer(409, "no callback is expected")]
    assert reg.state is state


def test_callbacks_to_a_registered_node() -> None:
    reg = bench(NodeStarted(), RegistrationAccepted(), called(), stored(), callback=True)
    assert reg(called(request=2)) == [answer(200, request=2)]
    assert reg(called("stranger", request=3)) == [answer(409, "already registered", request=3)]
    assert reg.state is REGISTERED and reg.subject.caller == "node"


def test_two_callbacks_of_one_try() -> None:
    reg = bench(
        NodeStarted(), RegistrationAccepted(), called(), called(request=2), called("stranger", 3), callback=True
    )
    assert reg(stored()) == [answer(200)]
    assert reg(stored(request=2)) == [answer(200, request=2)]
    assert reg(stored("stranger", 3)) == [answer(409, "already registered", request=3)]
    assert reg.subject.caller == "node"


def test_a_registered_node_without_probes_registers_again() -> None:
    reg = bench(NodeStarted(), RegistrationAccepted(), called(), stored(), callback=True)
    for _ in range(3):
        reg.wait(INTERVAL - 1)
        assert reg(HealthProbed()) == []
    assert reg.wait(INTERVAL - 1) == []
    assert reg.due(ProbeOverdue) == [Register()]
    assert reg.subject.caller is None


def test_a_probe_in_the_wallet_flow_says_nothing() -> None:
    reg = bench(NodeStarted(), RegistrationAccepted())
    assert reg(HealthProbed()) == [] and reg.subject.timers == {}


def test_passing_failures_are_tried_again_sooner_and_later() -> None:
    reg = bench(NodeStarted())
    for bound in (2, 4, 8, 16, 32, 60, 60):
        said = [command.message for command in reg(rejected(503)) if isinstance(command, Warn)]
        assert len(said) == (bound == 2), "the operator is told at once, and not each time"
        assert not said or said[0].endswith(f"blocked for 0 s, next try in {reg.left(RegistrationDue):.3g} s")
        assert reg.state is BACKING_OFF and 0.8 * bound <= reg.left(RegistrationDue) <= 1.2 * bound
        assert reg.due(RegistrationDue) == [Register()]


@pytest.mark.parametrize("status", [None, 408, 429, 500, 502, 503, 599])
def test_what_passes(status: int | None) -> None:
    assert bench(NodeStarted(), rejected(status)).state is BACKING_OFF


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 418])
def test_what_lasts(status: int) -> None:
    reg = bench(NodeStarted())
    assert names(reg(rejected(status))) == ["Warn"]
    assert reg.state is COOLING_DOWN and reg.left(RegistrationDue) == INTERVAL


@pytest.mark.parametrize(("status", "lasting", "state"), [(200, False, BACKING_OFF), (None, True, COOLING_DOWN)])
def test_an_answer_that_cannot_be_used_has_its_own_class(
    status: int | None, lasting: bool, state: RegistrationState
) -> None:
    assert bench(NodeStarted(), rejected(status, lasting)).state is state


@pytest.mark.parametrize(("retries", "quick"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_quick_tries_are_counted(retries: int, quick: int) -> None:
    reg = bench(NodeStarted(), register_max_retry=retries)
    for _ in range(2):
        for _ in range(quick):
            reg(rejected(503))
            assert reg.state is BACKING_OFF
            reg.due()
        reg(rejected(503))
        assert reg.state is COOLING_DOWN and reg.left(RegistrationDue) == INTERVAL
        reg.due()


def test_quick_tries_are_spent() -> None:
    test_quick_tries_are_counted(2, 1)


def test_three_refusals_before_the_first_success_end_the_start() -> None:
    reg = bench(NodeStarted())
    for status in (400, 401):
        assert names(reg(rejected(status))) in (["Warn"], [])
        reg.due(RegistrationDue)
    (command,) = reg(rejected(403))
    assert isinstance(command, GiveUp) and isinstance(command.error, RegistrationRefused)
    assert "REG_SECRET" in str(command.error)
    assert reg.state is STOPPED and reg.wait(1e6) == []


@pytest.mark.parametrize("between", [409, 503, 404, None])
def test_the_three_must_come_in_a_row(between: int | None) -> None:
    reg = bench(NodeStarted())
    for status in (403, 403, between, 403, 403):
        reg(rejected(status))
        assert reg.state is not STOPPED
        reg.due(RegistrationDue)
    reg(rejected(403))
    assert reg.state is STOPPED


def test_after_the_first_success_nothing_ends_it() -> None:
    reg = bench(NodeStarted(), RegistrationAccepted(), WalletDisowned())
    for _ in range(10):
        reg(rejected(403))
        assert reg.state is COOLING_DOWN
        reg.due(RegistrationDue)


def test_a_standing_conflict_is_told_every_three_minutes() -> None:
    reg, told = bench(NodeStarted()), []
    for _ in range(9):
        told += [(reg.now, command.message) for command in reg(rejected(409)) if isinstance(command, Warn)]
        reg.due(RegistrationDue)
    times = [when for when, _ in told]
    assert times == [1000.0, 1240.0, 1480.0, 1720.0, 1960.0]
    assert "blocked for 240 s" in told[1][1]


def test_after_a_success_a_new_conflict_is_told_at_once() -> None:
    reg = bench(NodeStarted(), rejected(409))
    reg.due(RegistrationDue)
    reg(RegistrationAccepted(), WalletDisowned())
    assert names(reg(rejected(409))) == ["Warn"]


def test_a_disowned_wallet_is_registered_again() -> None:
    reg = bench(NodeStarted(), RegistrationAccepted())
    assert reg(WalletDisowned()) == [Register()]
    assert reg(WalletDisowned()) == [] and reg.state is REGISTERING


def test_a_node_that_left_answers_nothing_but_callbacks() -> None:
    for arrive in REACH.values():
        reg = arrive()
        assert reg(NodeLeft()) == []
        assert reg.state is STOPPED and reg.subject.timers == {}


def test_every_edge_is_taken() -> None:
    assert not untaken(registration, globals())
