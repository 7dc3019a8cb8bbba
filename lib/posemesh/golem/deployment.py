"""What a runtime prints at its deploy and for its offer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from posemesh.golem.failures import RuntimeGarbled, StepFailed
from posemesh.golem.runtime import RuntimeMode, Volume

__all__ = ("Deployment", "Offer", "read_deploy", "read_offer")

SHOWN_CHARS: Final = 200
_START_MODES: Final = tuple(mode.value for mode in RuntimeMode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """``mode`` is None where the runtime did not say. ``message`` is its own; ``custom`` is all else it printed."""

    mode: RuntimeMode | None = None
    message: str = ""
    volumes: tuple[Volume, ...] = ()
    custom: Mapping[str, Any] = field(default_factory=dict)

    def volume_of(self, path: str) -> Volume | None:
        """The volume that a path of the runtime's lies in, the innermost one."""
        sought = PurePosixPath(path)
        found = [volume for volume in self.volumes if sought.is_relative_to(volume.path)]
        return max(found, key=lambda volume: len(PurePosixPath(volume.path).parts), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    properties: Mapping[str, Any] = field(default_factory=dict)
    constraints: str = ""


def read_deploy(data: bytes, workdir: Path) -> Deployment:
    """What comes before the first brace is skipped; nothing at all is a deployment without volumes.

    Raises RuntimeGarbled for what is none, StepFailed where it says that the deploy failed.
    """
    text = data.decode("utf-8", "replace")
    if not text.strip():
        return Deployment()
    known = _object("deploy", text[text.find("{") :] if "{" in text else text)
    valid, mode = known.pop("valid", None), known.pop("startMode", None)
    match valid:
        case {"Err": reason, **others} if not others:
            raise StepFailed("deploy", f"deploy: the runtime says that it failed: {reason}", 0)
        case {"Ok": str(message), **others} if not others:
            pass
        case _:
            raise _unfit("deploy", 'valid as {"Ok": text} or {"Err": text}', valid)
    if mode not in (None, *_START_MODES):
        raise _unfit("deploy", "startMode blocking or empty", mode)
    volumes = known.pop("vols", [])
    if not isinstance(volumes, list):
        raise _unfit("deploy", "vols as a list", volumes)
    return Deployment(
        mode=None if mode is None else RuntimeMode(mode),
        message=message,
        volumes=tuple(_volume(each, workdir) for each in volumes),
        custom=known,
    )


def read_offer(data: bytes) -> Offer:
    """What follows the object is cut off. Raises RuntimeGarbled for what is none."""
    known = _object("offer-template", data.decode("utf-8", "replace"), cut=True)
    properties, constraints = known.get("properties"), known.get("constraints")
    if not isinstance(properties, dict) or not isinstance(constraints, str):
        raise _unfit("offer-template", "properties as an object and constraints as text", known)
    return Offer(properties=properties, constraints=constraints)


def _object(step: str, text: str, *, cut: bool = False) -> dict[str, Any]:
    try:
        found, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        raise _unfit(step, "one JSON object on stdout", text) from None
    rest = text.lstrip()[end:]
    if not isinstance(found, dict) or (rest.strip() and not cut):
        raise _unfit(step, "one JSON object on stdout and nothing after it", text)
    return found


def _volume(value: Any, workdir: Path) -> Volume:
    match value:
        case {"name": str(name), "path": str(path)} if path.startswith("/") and _is_below(name, workdir):
            return Volume(name, path)
    raise _unfit("deploy", "volumes with the name of a directory in the work directory and an absolute path", value)


def _is_below(name: str, workdir: Path) -> bool:
    try:
        base = workdir.resolve()
        place = (base / name).resolve()
    except (OSError, ValueError, RuntimeError):  # too long, no text, a loop of links
        return False
    return place != base and place.is_relative_to(base)


def _unfit(step: str, wanted: str, got: Any) -> RuntimeGarbled:
    return RuntimeGarbled(step, f"{step}: expected {wanted}, the runtime gave {str(got)[:SHOWN_CHARS]!r}")
