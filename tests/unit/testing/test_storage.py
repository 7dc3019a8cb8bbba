"""A task's storage in memory keeps to what the contract says of the domain's."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from posemesh.errors import BadInput, InvalidCid, StorageError, UploadFailed
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
from posemesh.testing.storage import MemoryStorage
from posemesh.types import Artifact, TaskSpec

TASK = TaskSpec(id=UUID(int=1), capability="/a/v1", outputs_prefix="out")


def packed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b.txt", "in the archive")
    return file.getvalue()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[MemoryStorage]:
    (tmp_path / "scan.ply").write_bytes(b"points")
    storage = MemoryStorage(TASK, {"a": b"bytes", "file": tmp_path / "scan.ply", "archive": packed()})
    yield storage
    storage.remove()


def test_inputs_are_bytes_or_files(storage: MemoryStorage) -> None:
    assert storage.respond(GetBytes(cid="a")) == b"bytes"
    assert storage.respond(GetBytes(cid="file")) == b"points"
    found = storage.respond(Materialize(cid="file"))
    assert (found.path.read_bytes(), found.data_id, found.data_type) == (b"points", "file", "ply")
    assert found.path.is_relative_to(found.root_dir) and found.root_dir.is_relative_to(storage.workspace())
    assert storage.respond(Materialize(cid="file")).root_dir != found.root_dir


def test_an_archive_is_unpacked_on_request(storage: MemoryStorage) -> None:
    found = storage.respond(Materialize(cid="archive", extract=True))
    (file,) = found.extracted_paths
    assert file.read_text() == "in the archive"
    assert file.is_relative_to(found.root_dir)
    with pytest.raises(BadInput, match="expected a zip archive"):
        storage.respond(Materialize(cid="a", extract=True))


@pytest.mark.parametrize(("cid", "error"), [("b", StorageError), ("", InvalidCid), (" ", InvalidCid)])
def test_an_input_that_there_is_not(storage: MemoryStorage, cid: str, error: type[Exception]) -> None:
    for message in (GetBytes(cid=cid), Materialize(cid=cid)):
        with pytest.raises(error, match="this test gives a, file, archive|expected an input id"):
            storage.respond(message)


def test_artifacts_are_kept_by_their_path_and_updated(storage: MemoryStorage, tmp_path: Path) -> None:
    first = storage.respond(PutArtifact(rel_path="x.bin", content=b"1"))
    assert storage.respond(PutArtifact(rel_path="/x.bin", content=tmp_path / "scan.ply")) == first
    other = storage.respond(PutArtifact(rel_path="y", content=b"2", name="n", data_type="t"))
    assert other != first
    assert storage.respond(PutArtifact(rel_path="z", content=b"3", data_id="given")) == "given"
    assert storage.contents == {"out/x.bin": b"points", "out/y": b"2", "out/z": b"3"}
    assert storage.respond(ListArtifacts()) == storage.artifacts
    assert storage.artifacts[1] == Artifact(logical_path="out/y", name="n", data_type="t", id=other)


@pytest.mark.parametrize(
    "message",
    [
        PutArtifact(rel_path="x", content=Path("/does/not/exist")),
        PutArtifact(rel_path="x", content=b"", name="x" * 200),
        PutArtifact(rel_path="x" * 200, content=b""),
        OpenUpload(rel_path="x" * 200),
    ],
    ids=str,
)
def test_what_the_server_would_not_take(storage: MemoryStorage, message: StorageQuestion) -> None:
    with pytest.raises(UploadFailed, match="x"):
        storage.respond(message)
    assert storage.contents == {}


def test_an_upload_of_unknown_size(storage: MemoryStorage) -> None:
    upload = storage.respond(OpenUpload(rel_path="x"))
    other = storage.respond(OpenUpload(rel_path="y"))
    storage.respond(WriteUpload(upload=upload, data=b"1"))
    storage.respond(WriteUpload(upload=upload, data=b"2"))
    assert storage.contents == {}
    stored = storage.respond(FinishUpload(upload=upload))
    storage.respond(AbortUpload(upload=other))
    assert storage.contents == {"out/x": b"12"}
    assert [artifact.id for artifact in storage.artifacts] == [stored]
    for late in (WriteUpload(upload=upload, data=b""), FinishUpload(upload=other), AbortUpload(upload=other)):
        with pytest.raises(StorageError, match="not open"):
            storage.respond(late)


def test_the_workspace_is_made_when_it_is_asked_for_and_goes(storage: MemoryStorage) -> None:
    storage.remove()
    path = storage.workspace()
    assert path.is_dir() and storage.workspace() == path
    (path / "left").write_bytes(b"")
    storage.remove()
    storage.remove()
    assert not path.exists()


def test_an_input_that_is_not_there_is_a_bad_one_as_on_a_node(storage: MemoryStorage) -> None:
    with pytest.raises(BadInput, match="no such item; this test gives a, file, archive"):
        storage.respond(GetBytes(cid="b"))


def test_two_paths_with_one_name_are_refused_as_on_a_node(storage: MemoryStorage) -> None:
    storage.respond(PutArtifact(rel_path="a/b.txt", content=b"first"))
    storage.respond(PutArtifact(rel_path="a/b.txt", content=b"again"))
    with pytest.raises(UploadFailed, match="is that of 'out/a/b.txt' too; choose another path"):
        storage.respond(PutArtifact(rel_path="a_b.txt", content=b"second"))
    assert storage.contents == {"out/a/b.txt": b"again"}
    first, _ = storage.artifacts[0], storage.respond(PutArtifact(rel_path="c", content=b"", name="own", data_type="t"))
    storage.respond(PutArtifact(rel_path="d", content=b"", name="own", data_type="t"))
    assert first.name != "own" and len(storage.contents) == 3, "who names it himself may name two alike"


@pytest.mark.parametrize("wrong", ["README.md", 3, None])
def test_an_input_is_bytes_or_a_path(wrong: Any) -> None:
    """A number became so many zero bytes."""
    with pytest.raises(TypeError, match="input 'a': expected bytes, or the Path of a file"):
        MemoryStorage(TASK, {"a": wrong})
