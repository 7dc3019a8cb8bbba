"""One task's storage on the local network's domain server, or on a server that answers whatever a test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from aiohttp import web

from posemesh.config import NodeConfig
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.runners.task import PortTask
from posemesh.secret import Secret
from posemesh.shell.offload import InlineOffload
from posemesh.storage.task import NodeStorage, TaskStorage
from posemesh.testing import LoopClock, run_virtual
from posemesh.types import LeaseEnvelope, TaskSpec

TASK = UUID(int=7)
DOMAIN = UUID(int=9)
ITEM = str(UUID(int=11))


def config(**fields: Any) -> NodeConfig:
    # Bytes that the kernel is slow to pass on cost much virtual time.
    usual = {"client_id": "c-1", "stall_timeout_secs": 600.0}
    return NodeConfig(reg_secret=Secret("x" * 8), secp256k1_privhex=Secret("aa" * 32), **(usual | fields))


def envelope(url: str, token: str | None = "t", domain_id: UUID = DOMAIN, **fields: Any) -> LeaseEnvelope:
    task = TaskSpec(id=TASK, capability="/a/v1", **fields.pop("task", {}))
    secret = None if token is None else Secret(token)
    return LeaseEnvelope(task=task, access_token=secret, domain_id=domain_id, domain_server_url=url, **fields)


class Holder:
    """The task's host: its lease, and what it is told."""

    def __init__(self, lease: LeaseEnvelope) -> None:
        self.envelope = lease
        self.cancelled = False
        self.stop_reason: str | None = None
        self.moves: list[tuple[str, str, int, int | None]] = []

    def transferred(self, name: str, way: str, done: int, total: int | None) -> None:
        self.moves.append((name, way, done, total))


class Rig:
    """``task`` is what user code has; ``files`` lists what is in the state directory's workspaces."""

    def __init__(self, lease: LeaseEnvelope, state: Path, **fields: Any) -> None:
        self.state = state
        offload = fields.pop("offload", InlineOffload())
        self.holder = Holder(lease)
        settings = config(**({"state_dir": state} | fields))
        self.node = NodeStorage(settings, "0xabc", LoopClock(), offload, Random(1))
        self.storage: TaskStorage = self.node.task(self.holder)
        self.task = PortTask(lease, _Port(self), self.storage.workspace)

    @property
    def files(self) -> list[Path]:
        return [path for path in self.state.glob("work/*/*/**/*") if path.is_file()]

    def write(self, name: str, data: bytes) -> Path:
        path = self.state / name
        path.write_bytes(data)
        return path


class _Port:
    cancelled = False

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def post(self, message: Any) -> None: ...

    async def call(self, message: Any) -> Any:
        return await self._rig.storage.answer(message)


@contextmanager
def _directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="posemesh-test-") as name:
        yield Path(name)


async def _with_rig(rig: Rig, test: Callable[..., Awaitable[None]], *given: Any) -> None:
    try:
        await test(rig, *given)
    finally:
        await rig.storage.close()
        await rig.node.close()
    assert not list(rig.state.glob("work/*")), "nothing is left behind"


def with_net(
    test: Callable[[Rig, Devnet], Awaitable[None]],
    *,
    net: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Run ``test`` in virtual time against a devnet that must see no violation."""

    async def main(state: Path) -> None:
        async with Devnet(DevnetConfig(**(net or {})), clock=LoopClock(), rng=Random(1)) as network:
            lease = envelope(network.url, network.app_token(), UUID(network.domain_id), task=task or {})
            await _with_rig(Rig(lease, state, **fields), test, network)
            assert network.violations == []

    with _directory() as state:
        run_virtual(main(state), limit=7200)


def with_server(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
    test: Callable[[Rig], Awaitable[None]],
    **fields: Any,
) -> None:
    """Run ``test`` in virtual time against a server that answers by ``answer``."""

    async def main(state: Path) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            await _with_rig(Rig(envelope(url), state, **fields), test)
        finally:
            await runner.cleanup()

    with _directory() as state:
        run_virtual(main(state), limit=7200)
