"""A runtime that is kept ready for tasks, and the places of their files in its volumes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from posemesh.golem.deployment import Deployment
from posemesh.golem.failures import GolemError, RuntimeGarbled
from posemesh.golem.supervisor import Supervisor
from posemesh.machines.activity import ActivityState
from posemesh.policy import CHILD_GRACE_SECS
from posemesh.runners.context import BuildContext
from posemesh.runners.executors.output import ProgramOutput
from posemesh.runners.executors.program import aside
from posemesh.telemetry import logger

__all__ = ("INPUTS", "OUTPUTS", "Hosted", "Place", "place_of")

INPUTS: Final = ("in", "input", "inputs")
OUTPUTS: Final = ("out", "output", "outputs")


class Place(NamedTuple):
    """A folder, and where the runtime finds it."""

    path: Path
    shown: PurePosixPath


@dataclass(eq=False, slots=True)
class Hosted:
    """A runtime that is ready for tasks, one at a time."""

    root: Path
    supervisor: Supervisor
    context: BuildContext
    said: ProgramOutput
    places: dict[str, Place] = field(default_factory=dict)

    def is_usable(self, context: BuildContext) -> bool:
        return self.supervisor.state is ActivityState.READY and self.context.env == context.env and self.root.is_dir()

    async def cleared(self) -> bool:
        """Empty the places of inputs and outputs. False where that does not work."""
        try:
            for place in self.places.values():
                await aside(partial(_empty, place.path))
        except OSError as error:
            logger().warning(f"a runtime's files cannot be removed, so it is not kept: {error}")
            return False
        return True

    async def end(self) -> None:
        """Stop it, and remove what it left."""
        with suppress(GolemError):
            await self.supervisor.stop(CHILD_GRACE_SECS)
        self.said.close()
        await aside(partial(shutil.rmtree, self.root, ignore_errors=True))


def place_of(deployment: Deployment, workdir: Path, what: str, path: str | None, names: Sequence[str]) -> Place:
    """Where the inputs or outputs are. Raises RuntimeGarbled where the runtime has no place for them."""
    volumes = deployment.volumes
    if path is None:
        named = [volume.path for volume in volumes if PurePosixPath(volume.path).name in names]
        if not volumes:
            return Place(workdir / what, PurePosixPath(workdir / what))
        if len(named) != 1 and len(volumes) != 1:
            known = [volume.path for volume in volumes]
            raise RuntimeGarbled("deploy", f"deploy: which of the volumes {known} is for {what}? Give {what}=PATH")
        path = named[0] if named else f"{volumes[0].path.rstrip('/')}/{what}"
    volume = deployment.volume_of(path)
    if volume is None:
        raise RuntimeGarbled("deploy", f"deploy: expected a volume for {what} that holds {path}, there is none")
    return Place(workdir / volume.name / PurePosixPath(path).relative_to(volume.path), PurePosixPath(path))


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != folder:
        raise OSError(f"{folder} was made a link, which may lead anywhere")
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
