"""What a node is called at domain servers: they count credits by it, so it stays the same."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

__all__ = ("client_id",)

NAMESPACE = uuid.UUID("6f0f3f0c-64c5-4d0b-9a0e-0c3d5a8f7b11")
"""Under which a wallet's address becomes the id of a node that cannot keep one."""
_KEPT = re.compile(r"[\x21-\x7e]{1,200}")


def client_id(given: str | None, state: Path | None, address: str) -> str:
    """``posemesh-client-id``: CLIENT_ID, else the one kept in ``state``, which is made up at the first use.

    Where nothing can be kept it comes from the wallet's ``address``.
    """
    if given:
        return given
    if state is not None:
        with suppress(OSError, UnicodeDecodeError):
            return _kept(state / "client-id")
    return f"posemesh-compute-node/{uuid.uuid5(NAMESPACE, address)}"


def _kept(path: Path) -> str:
    if (found := _read(path)) is not None:
        return found
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written aside and then put in place: of two nodes that begin together both take the one that came first.
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    aside.write_text(f"posemesh-compute-node/{uuid.uuid4()}\n")
    try:
        with suppress(FileExistsError):
            os.link(aside, path)
        found = _read(path)
        if found is None:  # what is there is no id
            aside.replace(path)
            found = _read(path)
    finally:
        aside.unlink(missing_ok=True)
    if found is None:
        raise OSError(f"{path} cannot be kept")
    return found


def _read(path: Path) -> str | None:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return text if _KEPT.fullmatch(text) else None
