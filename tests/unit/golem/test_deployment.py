"""What runtimes print, as it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from posemesh.golem.deployment import Deployment, Offer, read_deploy, read_offer
from posemesh.golem.failures import RuntimeGarbled, StepFailed
from posemesh.golem.runtime import RuntimeMode, Volume


def test_a_deploy_with_everything(tmp_path: Path) -> None:
    text = 'Downloading… {"startMode":"blocking","valid":{"Ok":"ok"},"vols":[{"name":"v","path":"/v"}],"extra":[1]}\n'
    assert read_deploy(text.encode(), tmp_path) == Deployment(
        mode=RuntimeMode.SERVER, message="ok", volumes=(Volume("v", "/v"),), custom={"extra": [1]}
    )


@pytest.mark.parametrize("text", ["", "\n ", '{"valid":{"Ok":""}}'])
def test_a_deploy_may_say_little(text: str, tmp_path: Path) -> None:
    assert read_deploy(text.encode(), tmp_path) == Deployment()


def test_a_deploy_may_say_that_it_failed(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no such image") as raised:
        read_deploy(b'{"valid":{"Err":"no such image"}}', tmp_path)
    assert raised.value.code == 0


@pytest.mark.parametrize(
    "text",
    [
        "done",
        "{",
        "{}",
        "{} {}",
        '{"valid":{"Ok":""}} more',
        '{"valid":"Ok"}',
        '{"valid":{"Ok":"","Err":""}}',
        '{"valid":{"Ok":1}}',
        '{"valid":{"Ok":""},"startMode":"other"}',
        '{"valid":{"Ok":""},"startMode":["blocking"]}',
        '{"valid":{"Ok":""},"vols":{}}',
        '{"valid":{"Ok":""},"vols":[1]}',
        '{"valid":{"Ok":""},"vols":[{"name":"v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"v","path":"v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":".","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"../v","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"/etc","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"out","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"\\u0000","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"\\ud800","path":"/v"}]}',
        '{"valid":{"Ok":""},"vols":[{"name":"loop/x","path":"/v"}]}',
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_no_deploy(text: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "out").symlink_to("/etc")  # a volume is a directory of the work directory's
    with pytest.raises(RuntimeGarbled, match="deploy: expected"):
        read_deploy(text.encode(), tmp_path)


def test_the_innermost_volume_holds_a_path() -> None:
    outer, inner = Volume("a", "/data"), Volume("b", "/data/out/")
    deployed = Deployment(volumes=(outer, inner))
    assert deployed.volume_of("/data/out/x/y") == inner
    assert deployed.volume_of("/data/outer") == outer
    assert deployed.volume_of("/dat") is None


def test_offers() -> None:
    text = b'{"properties":{"a":1},"constraints":"(b=2)","more":0} junk after it'
    assert read_offer(text) == Offer(properties={"a": 1}, constraints="(b=2)")
    for broken in (b"", b"{}", b"[]", b'{"properties":{}}', b'{"properties":[],"constraints":""}', b"log {}"):
        with pytest.raises(RuntimeGarbled, match="offer-template: expected"):
            read_offer(broken)
