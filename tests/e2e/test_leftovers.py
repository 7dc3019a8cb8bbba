"""What a node that was killed leaves on the disk: the next one to start removes it, and nobody else's."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path
from typing import Any

from .conftest import NodeProcess, World

CAPABILITY = "/examples/keep/v1"
RUNNER = """
    import asyncio
    import os
    import posemesh
    from pathlib import Path

    node = posemesh.Node()

    @node.runner("/examples/keep/v1")
    async def keep(task):
        path = await task.input.materialize_cid_to_temp(task.lease.task.inputs_cids[0])
        deep = task.workspace / "a" / "b"
        deep.mkdir(parents=True)
        for number in range(200):
            (deep / f"{number}.bin").write_bytes(bytes(1000))
        (task.workspace / "link").symlink_to(os.environ["OTHERS"])
        (deep / "0.bin").chmod(0o400)
        deep.chmod(0o500)
        async with task.output.open_multipart("stream.bin") as part:
            await part.write(bytes(3_000_000))
            print("holding", task.workspace, flush=True)
            while not Path(os.environ["GO"]).exists():
                await asyncio.sleep(0.05)
        assert path.read_bytes() == b"abc" and len(list(deep.iterdir())) == 200
"""


def holding(node: NodeProcess) -> Path:
    """The workspace of that node's task, once it is full."""
    return Path(node.wait_line("holding ", within=15).removeprefix("holding "))


def test_what_a_killed_node_left_is_removed_and_a_living_nodes_is_not(world: World, tmp_path: Path) -> None:
    net, state, others = world.net, tmp_path / "state", tmp_path / "others"
    others.mkdir()
    (others / "precious").write_text("kept")
    (tmp_path / "tmp").mkdir()
    net.dms.ttl = 120.0
    net.dms.one_active = net.dms.judge_slots = False
    net.domain.request_max_bytes, net.domain.part_size = 0, 1_000_000
    item = net.domain.add("in", "binary", b"abc")
    plan: dict[str, Any] = {"inputs": [item], "max_attempts": 1}

    def started(key: str) -> NodeProcess:
        terms = {"STATE_DIR": state / key[:8], "TMPDIR": tmp_path / "tmp", "OTHERS": others, "GO": tmp_path / "go"}
        return world.node(RUNNER, SECP256K1_PRIVHEX=key, **terms)

    [theirs] = net.dms.add(CAPABILITY, 1, **plan)
    living = started(net.secret(secrets.token_hex(32)))
    kept = holding(living)
    [lost] = net.do(lambda: net.dms.add(CAPABILITY, 1, **plan))
    killed = started(world.key)
    gone = holding(killed)
    assert kept.is_relative_to(state) and gone.is_relative_to(state) and kept.parent != gone.parent
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert len(list((gone / "a" / "b").iterdir())) == 200, "nobody tidies up after SIGKILL"

    net.do(net.dds.forget)  # a node that starts anew registers anew
    net.do(net.dms.restarted)
    heir = started(world.key)
    heir.wait_line("crashed run", within=15)
    assert not gone.parent.exists() and not gone.parent.with_suffix(".lock").exists()
    assert (others / "precious").read_text() == "kept", "links are not followed"
    assert len(list((kept / "a" / "b").iterdir())) == 200
    (tmp_path / "go").touch()
    for task in (theirs, lost):  # the heir runs again what was under way
        net.wait(lambda task=task: task.state in ("completed", "failed"), 15, "both tasks end")
        assert task.state == "completed" and len(task.outcomes) == 1, task.outcomes
    living.stop()
    heir.stop()
    assert not [path for path in state.glob("*/*/*") if path.parent.name == "work"]
    assert not list((tmp_path / "tmp").iterdir())
