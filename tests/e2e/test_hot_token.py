"""Domain tokens that heartbeats replace while data moves, and what a node needs for much data: little."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from .conftest import World
from .dms import Task
from .network import Request

CAPABILITY = "/examples/transfer/v1"
MB = 1024 * 1024
UPLOADS = ("create", "update", "initiate", "part", "finish")
LARGE = """
    import hashlib
    import posemesh

    node = posemesh.Node()

    @node.runner("/examples/transfer/v1")
    async def transfer(task):
        async def tag():
            return hashlib.sha256((await task.access_token.get()).encode()).hexdigest()[:12]

        found = await task.input.materialize_cid_with_meta(task.lease.task.inputs_cids[0])
        await task.output.put_file(f"file-{await tag()}.bin", found.path)
        async with task.output.open_multipart(f"stream-{await tag()}.bin") as part:
            with found.path.open("rb") as file:
                while piece := file.read(1024 * 1024):
                    await part.write(piece)
        await task.output.put_bytes(f"bytes-{await tag()}.bin", b"small")
"""


def noise(mib: int) -> Iterator[bytes]:
    """Bytes of which no two MiB are the same."""
    block = Random(1).randbytes(MB - 8)
    for number in range(mib):
        yield number.to_bytes(8, "big") + block


def seen(task: Task, request: Request) -> list[float]:
    """The heartbeats that were taken while that request was served."""
    assert request.answered is not None
    return [at for at in task.accepted_beats if request.at < at < request.answered]


def left_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir() and path.suffix != ".lock"]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mib", [300])
def test_much_in_and_out_with_little_memory_while_tokens_rotate(world: World, tmp_path: Path, mib: int) -> None:
    """Weaknesses 28 to 31 and 34: whole parts in memory, a stale token failed the task, files were left behind."""
    net, domain, state, tmp = world.net, world.net.domain, tmp_path / "state", tmp_path / "tmp"
    tmp.mkdir()
    net.dms.ttl = 6.0
    domain.request_max_bytes, domain.part_size, domain.pace = 0, 8 * MB, 90 * MB
    domain.only_newest = True
    item = domain.add("in", "binary", noise(mib))
    [task] = net.dms.add(CAPABILITY, 1, inputs=[item], max_attempts=1)
    node = world.node(LARGE, STATE_DIR=state, TMPDIR=tmp)
    net.wait(lambda: task.state in ("completed", "failed"), 120, "the task ends")
    assert task.state == "completed", task.outcomes
    assert node.peak_mb() < 150
    assert not left_below(state / "work") and not list(tmp.iterdir())

    artifacts = task.outcomes[0][1]["meta"]["artifacts"]
    file, stream, small = (domain.items[artifact["id"]] for artifact in artifacts)
    assert file.digest == stream.digest == domain.items[item].digest and small.data == b"small"
    served = [request for request in net.requests if request.status == 200]
    fetch, create = (next(request for request in served if request.kind == kind) for kind in ("fetch", "create"))
    parts = [request for request in served if request.kind == "part"]
    assert len(seen(task, fetch)) >= 2 and len(seen(task, create)) >= 2, "tokens rotate within one request"
    assert len({part.token for part in parts}) >= 3, "and between the parts of a session"
    issued = list(task.tokens)
    tags = [hashlib.sha256(token.encode()).hexdigest()[:12] for token in issued]
    for request in net.requests:
        if request.kind in UPLOADS:  # user code has seen the token of its tag before: none that is older will do
            [least] = [number for number, tag in enumerate(tags) if tag in request.about]
            assert issued.index(request.token) >= least
    node.stop()
    assert not list((state / "work").iterdir()) and not list(tmp.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one", "parts", "fetch"])
def test_a_token_that_is_replaced_before_the_node_knows(world: World, way: str) -> None:
    """The new token is on its way when a request with the old one is refused: it is sent again, with the new one."""
    net, domain = world.net, world.net.domain
    net.dms.ttl = 6.0
    domain.request_max_bytes, domain.part_size, domain.only_newest = 0, MB, True
    item = domain.add("in", "binary", noise(4))
    [task] = net.dms.add(CAPABILITY, 1, inputs=[item], max_attempts=1)
    net.hold = lambda request: (
        (lambda: domain.refused) if request.kind == "heartbeat" and len(net.of("heartbeat")) == 2 else None
    )
    steps = {
        "one": "await task.output.put_bytes('again.bin', bytes(4 * 1024 * 1024))",
        "parts": "await part.write(bytes(512 * 1024))",
        "fetch": "await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])",
    }
    node = world.node(f"""
        import asyncio
        import posemesh

        node = posemesh.Node()

        @node.runner("/examples/transfer/v1")
        async def transfer(task):
            first = await task.access_token.get()
            async with task.output.open_multipart("stream.bin") as part:
                await part.write(bytes(2 * 1024 * 1024))
                while await task.access_token.get() == first:
                    {steps[way]}
                    await asyncio.sleep(0.02)
    """)
    net.wait(lambda: task.state in ("completed", "failed"), 30, "the task ends")
    assert task.state == "completed", task.outcomes
    kinds = {"one": {"create", "update"}, "parts": {"part"}, "fetch": {"fetch"}}[way]
    assert domain.refused and {request.kind for request in domain.refused} <= kinds | {"part"}
    assert all(request.status == 401 for request in domain.refused)
    stored = {item.name.partition("_")[0]: item for item in domain.items.values()}
    assert not any(stored["stream"].data)
    node.stop()
