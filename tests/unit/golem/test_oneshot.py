"""What deploy and offer print of what a handler returned."""

from __future__ import annotations

import os
from typing import Any

import pytest

from posemesh.golem.errors import HandlerError
from posemesh.golem.oneshot import PlainEmitter, deployed, offered
from posemesh.golem.runtime import Deployed, RuntimeMode, Volume
from posemesh.golem.text import compact

SERVER, COMMAND = RuntimeMode.SERVER, RuntimeMode.COMMAND


def test_the_default_of_deploy_is_fifty_two_bytes_or_forty_nine() -> None:
    server, command = compact(deployed(None, SERVER)), compact(deployed(None, COMMAND))
    assert server == '{"startMode":"blocking","valid":{"Ok":""},"vols":[]}' and len(server) == 52
    assert command == '{"startMode":"empty","valid":{"Ok":""},"vols":[]}' and len(command) == 49


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            Deployed("fine", [Volume("vol-1", "/in")], z=1, a=None),
            '{"a":null,"startMode":"blocking","valid":{"Ok":"fine"},"vols":[{"name":"vol-1","path":"/in"}],"z":1}',
        ),
        (Deployed({"Err": "no disk"}), '{"startMode":"blocking","valid":{"Err":"no disk"},"vols":[]}'),
        ({"valid": {"Ok": ""}}, '{"startMode":"blocking","valid":{"Ok":""}}'),
        ({"valid": {"Ok": ""}, "startMode": "empty"}, '{"startMode":"empty","valid":{"Ok":""}}'),
        (
            {"valid": {"Ok": ""}, "vols": ({"name": "a", "path": "/a", "more": 1}, Volume("b", "/b"))},
            (
                '{"startMode":"blocking","valid":{"Ok":""},'
                '"vols":[{"more":1,"name":"a","path":"/a"},{"name":"b","path":"/b"}]}'
            ),
        ),
    ],
)
def test_what_deploy_returns_is_passed_on_with_the_mode(answer: Any, text: str) -> None:
    assert compact(deployed(answer, SERVER)) == text


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([], "a Deployed, a dict or None, got list"),
        ("fine", "a Deployed, a dict or None, got str"),
        ({}, '"valid" is'),
        ({"valid": True}, '"valid" is'),
        ({"valid": {"Ok": 1}}, '"valid" is'),
        ({"valid": {"Ok": "", "Err": ""}}, '"valid" is'),
        ({"valid": {"Yes": ""}}, '"valid" is'),
        ({"valid": {"Ok": ""}, "startMode": "server"}, '"startMode" is'),
        ({"valid": {"Ok": ""}, "vols": {}}, '"vols" is a list'),
        ({"valid": {"Ok": ""}, "vols": Volume("a", "/a")}, '"vols" is a list'),
        ({"valid": {"Ok": ""}, "vols": [{"name": "a"}]}, 'each of "vols" is'),
        ({"valid": {"Ok": ""}, "vols": [("a", "/a")]}, 'each of "vols" is'),
        ({"valid": {"Ok": ""}, "vols": [Volume("a", 1)]}, 'each of "vols" is'),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_shape_is_an_error(answer: Any, problem: str) -> None:
    with pytest.raises(HandlerError, match=problem):
        deployed(answer, SERVER)


def test_an_offer_has_both_of_its_parts() -> None:
    assert compact(offered(None)) == '{"constraints":"","properties":{}}'
    assert compact(offered({"properties": {"golem.a": [1]}, "x": 2})) == (
        '{"constraints":"","properties":{"golem.a":[1]},"x":2}'
    )


@pytest.mark.parametrize("answer", ["", [], {"properties": []}, {"constraints": None}])
def test_what_is_no_offer_is_an_error(answer: Any) -> None:
    with pytest.raises(HandlerError, match="offer"):
        offered(answer)


async def _tell(emitter: PlainEmitter) -> None:
    await emitter.state("a", {"b": 1})
    await emitter.counter("c", 1.0)
    emitter.started(4)
    await emitter.stdout(4, "out ")
    await emitter.stderr(4, b"err")
    emitter.exited(4, 3)


def test_both_streams_of_a_program_of_its_own_go_out_together_and_nothing_else_does() -> None:
    import asyncio

    read, write = os.pipe()
    emitter = PlainEmitter(write)
    asyncio.run(_tell(emitter))
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"out err"
    assert emitter.codes == {4: 3}
