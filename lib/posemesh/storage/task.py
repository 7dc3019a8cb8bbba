"""What a node's tasks are given of domain storage: one :class:`TaskStorage` each, and what they share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from posemesh.config import NodeConfig
from posemesh.errors import StorageError
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetBytes,
    ListArtifacts,
    Materialize,
    OpenUpload,
    PutArtifact,
    StorageQuestion,
    WriteUpload,
)
from posemesh.shell.clock import Clock
from posemesh.shell.http import Http
from posemesh.shell.offload import Offload
from posemesh.shell.pool import Pool
from posemesh.storage.artifacts import Artifacts, Writer
from posemesh.storage.client import DomainClient, Holder, InfoCache
from posemesh.storage.identity import client_id
from posemesh.storage.inputs import Inputs
from posemesh.storage.uploads import exists
from posemesh.storage.workspace import Workplace, Workspace, state_dir
from posemesh.telemetry import logger
from posemesh.terms import missing
from posemesh.types import Artifact, LeaseEnvelope
from posemesh.wire.domain import ArtifactName

__all__ = ("NodeStorage", "TaskStorage")

LOOK_SECS = 5.0
"""A task that is leased again waits no longer for word of the artifacts it has already."""


class _Reporting(Holder, Protocol):
    """A task that wants to know how far its transfers are."""

    def transferred(self, name: str, way: str, done: int, total: int | None) -> None: ...


class NodeStorage:
    """One node's. It reads and writes nothing before a task, or :meth:`sweep`, asks for it.

    ``state`` is where the node keeps things, by default STATE_DIR; ``pool`` has connections that it shares with others.
    """

    def __init__(
        self,
        config: NodeConfig,
        address: str,
        clock: Clock,
        offload: Offload,
        rng: Random,
        *,
        state: Path | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._config = config
        self._address = address
        self._clock = clock
        self._offload = offload
        self._rng = rng
        self._state = state or state_dir(config.state_dir, address)
        self._place = Workplace(self._state)
        self._infos = InfoCache()
        self._client_id: str | None = None
        # Its URLs come from the network, which those of the node's own services do not.
        wary = not config.allow_insecure_http
        self._http = Http(
            clock,
            offload,
            user_agent=f"posemesh/{config.node_version}",
            wary=wary,
            connector=None if pool is None else pool.domains(wary=wary),
        )

    async def sweep(self) -> int:
        """Remove the workspaces that a crashed node left; how many nodes' there were."""
        return await self._offload.call(self._place.sweep)

    async def close(self) -> None:
        await self._http.close()
        self._place.close()

    def task(self, holder: _Reporting) -> TaskStorage:
        """The storage of one task."""
        client = self._client(holder)
        workspace = Workspace(self._place, self._config.workspace_bytes_max)
        inputs = Inputs(client, workspace, self._config, self._offload, holder.transferred)
        artifacts = Artifacts(client, workspace, self._offload, self._config, holder.transferred)
        return TaskStorage(holder, inputs, artifacts, workspace, self._offload)

    async def stands(self, envelope: LeaseEnvelope, artifacts: Iterable[Artifact]) -> bool:
        """Whether none of ``artifacts`` is known to be gone from the lease's domain. Uploads were acknowledged, so a
        server that does not say, or not soon, is no reason to make them again.
        """
        lasting = [each for each in artifacts if each.id is not None]
        if not lasting or missing(envelope) is not None:
            return not lasting
        client = self._client(_Held(envelope))
        try:
            async with asyncio.timeout(LOOK_SECS):
                for each in lasting:
                    named = ArtifactName(each.logical_path, each.name, each.data_type)
                    if not await exists(client, named, str(each.id)):
                        return False
        except (TimeoutError, StorageError) as error:
            said = str(error) or f"no answer within {LOOK_SECS:g} s"
            logger().warning(f"task {envelope.task.id}: its artifacts are taken to stand ({said})")
        return True

    def _client(self, holder: Holder) -> DomainClient:
        if self._client_id is None:
            self._client_id = client_id(self._config.client_id, self._state, self._address)
        return DomainClient(self._http, self._config, self._clock, self._client_id, self._infos, holder, self._rng)


@dataclass(frozen=True, slots=True)
class _Held:
    """A lease that is only looked at."""

    envelope: LeaseEnvelope
    cancelled: bool = False
    stop_reason: str | None = None


class TaskStorage:
    """Answers a task's messages about inputs and artifacts."""

    def __init__(
        self, holder: Holder, inputs: Inputs, artifacts: Artifacts, workspace: Workspace, offload: Offload
    ) -> None:
        self._holder = holder
        self._inputs = inputs
        self._artifacts = artifacts
        self._workspace = workspace
        self._offload = offload
        self._writers: dict[int, Writer] = {}
        self._numbers = itertools.count(1)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What was uploaded, in the order in which each path was first put."""
        return self._artifacts.stored

    def workspace(self) -> Path:
        """The task's directory, made at the first use. From any thread."""
        return self._workspace.path()

    def stop(self) -> None:
        """The task was told to stop, so no upload of it can be finished: their sessions are aborted at once."""
        self._artifacts.stop()

    async def close(self) -> None:
        """End unfinished uploads and remove the workspace. No more is sent than that they come to nothing.

        Raises StorageError where files stay.
        """
        try:  # each whatever becomes of the others
            await self._abort()
        finally:
            try:
                await self._artifacts.close()
            finally:
                try:
                    await self._inputs.close()
                finally:
                    await self._remove()

    async def _abort(self) -> None:
        if not self._writers:
            return
        writers, self._writers = self._writers, {}
        failures = await asyncio.gather(*(writer.abort() for writer in writers.values()), return_exceptions=True)
        for failure in filter(None, failures):
            raise failure

    async def _remove(self) -> None:
        if self._workspace.end():
            await self._offload.call(self._workspace.remove)

    async def answer(self, message: StorageQuestion) -> Any:
        """Raises StorageError, InvalidCid, TaskStopped."""
        match message:
            case GetBytes(cid=cid):
                return await self._inputs.get_bytes(cid)
            case Materialize(cid=cid, extract=extract):
                return await self._inputs.materialize(cid, unpack=extract)
            case PutArtifact():
                return await self._artifacts.put(message, self._task())
            case OpenUpload(rel_path=rel_path):
                number = next(self._numbers)
                self._writers[number] = self._artifacts.open(rel_path, self._task())
                return number
            case WriteUpload(upload=upload, data=data):
                return await self._writer(upload).write(data)
            case FinishUpload(upload=upload):
                writer = self._writer(upload)
                del self._writers[upload]
                return await writer.finish()
            case AbortUpload(upload=upload):
                writer = self._writer(upload)
                del self._writers[upload]
                return await writer.abort()
            case ListArtifacts():
                return self.artifacts

    def _writer(self, upload: int) -> Writer:
        if upload not in self._writers:
            raise StorageError("that upload is not open")
        return self._writers[upload]

    def _task(self) -> tuple[str | None, str]:
        task = self._holder.envelope.task
        return task.outputs_prefix, str(task.id)
