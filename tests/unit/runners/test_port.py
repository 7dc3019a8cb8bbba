from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from posemesh.runners.port import GetToken, LogEvent, Message, Progress, PutArtifact, StorageQuestion


def test_messages_are_records_that_could_travel() -> None:
    """They carry nothing but plain values, so that a process or a pipe can lie between."""
    assert set(get_args(Message)) == {Progress, LogEvent, GetToken, *get_args(StorageQuestion)}
    for kind in get_args(Message):
        assert dataclasses.is_dataclass(kind)
        assert {field.type for field in dataclasses.fields(kind)} <= {
            *("JSON", "str", "str | None", "int", "bool", "bytes", "bytes | Path")
        }


def test_messages_are_frozen() -> None:
    message = PutArtifact(rel_path="a", content=b"")
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.rel_path = "b"  # type: ignore[misc]
