"""The contract: what it is made of, that a user's class inherits nothing, and that its data survive their JSON."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import posemesh
from posemesh.errors import WireError
from posemesh.runners import api
from posemesh.runners.blocking import BlockingTask
from posemesh.runners.task import PortTask
from posemesh.secret import Secret
from posemesh.types import Artifact, LeaseEnvelope, TaskSpec

from . import test_blocking, test_task, user_code

ROOT = Path(__file__).parents[3]
DATA = {"posemesh.types", "posemesh.errors", "posemesh.outcomes", "posemesh.secret"}

FOUND = api.MaterializedInput(
    path=Path("/w/scan.ply"),
    data_id="d",
    name="scan",
    data_type="ply",
    domain_id="m",
    root_dir=Path("/w"),
    related_files=(Path("/w/a"), Path("/w/b")),
    extracted_paths=(Path("/w/a.d/c"),),
)
SPEC = TaskSpec(id=UUID(int=1), capability="/a/v1", job_id=UUID(int=2), meta={"a": [1, None]}, inputs_cids=["x"])
LEASE = LeaseEnvelope(task=SPEC, access_token=Secret("hush"), lease_expires_at=datetime(2026, 1, 1, tzinfo=UTC))
RECORDS = [FOUND, SPEC, LEASE, Artifact(logical_path="a/b", name="b", data_type="binary", id="i")]
NEEDED = {
    api.MaterializedInput: ("path", "data_id", "name", "data_type", "domain_id", "root_dir"),
    TaskSpec: ("id", "capability"),
    LeaseEnvelope: ("task",),
    Artifact: ("logical_path", "name", "data_type"),
}
PROTOCOLS = [
    each
    for each in (getattr(api, name) for name in api.__all__)
    if isinstance(each, type) and getattr(each, "_is_protocol", False)
]


def imported(name: str, seen: set[str]) -> Iterator[str]:
    """What a module imports when it is loaded, and what the modules of posemesh among these do."""
    tree = ast.parse(Path(import_module(name).__file__ or "").read_text(encoding="utf-8"))
    for node in tree.body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for each in names:
            if each not in seen:
                seen.add(each)
                yield each
                if each.startswith("posemesh"):
                    yield from imported(each, seen)


def test_it_stands_on_the_standard_library_and_its_own_data() -> None:
    found = set(imported("posemesh.runners.api", set()))
    assert {name for name in found if name.split(".")[0] not in sys.stdlib_module_names} == DATA


def test_loading_it_loads_nothing_else() -> None:
    program = "import sys, posemesh.runners.api; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", program]  # without what an environment loads of its own
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT / "lib")}, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name for name in done.stdout.split() if name.split(".")[0] not in {*sys.stdlib_module_names, "__main__"}}
    assert loaded == {"posemesh", "posemesh.runners", "posemesh.runners.api", *DATA}


def test_its_name_is_the_one_of_every_implementation() -> None:
    assert api.CRATE_NAME == "posemesh-compute-node-runner-api"


def test_posemesh_offers_the_same_objects() -> None:
    names = [name for name in api.__all__ if name in posemesh.__all__]
    assert {"TaskContext", "TaskCtx", "SyncTaskContext", "Runner"} <= set(names)
    assert all(getattr(posemesh, name) is getattr(api, name) for name in names)
    assert api.TaskCtx is api.TaskContext


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: str(each.__name__))
def test_each_protocol_can_be_asked_for_at_run_time(protocol: type) -> None:
    assert not isinstance(object(), protocol)


def test_what_a_runner_is_given_is_what_the_contract_says(tmp_path: Path) -> None:
    task: api.TaskContext = PortTask(LEASE, test_task.Port(), lambda: tmp_path)
    assert isinstance(task, api.TaskCtx)
    assert isinstance(task.input, api.InputSource)
    assert isinstance(task.output, api.ArtifactSink)
    assert isinstance(task.output.open_multipart("a"), api.MultipartUpload)
    assert isinstance(task.ctrl, api.ControlPlane)
    assert isinstance(task.access_token, api.AccessTokenProvider)
    plain: api.SyncTaskContext = BlockingTask(LEASE, test_blocking.Port(), lambda: tmp_path)
    assert isinstance(plain, api.SyncTaskContext)
    assert isinstance(plain.input, api.SyncInputSource)
    assert isinstance(plain.output, api.SyncArtifactSink)
    assert isinstance(plain.output.open_multipart("a"), api.SyncMultipartUpload)
    assert isinstance(plain.ctrl, api.SyncControlPlane)
    assert isinstance(plain.access_token, api.SyncAccessTokenProvider)


def test_a_user_s_classes_are_runners_without_inheriting_anything() -> None:
    assert all(isinstance(each, api.Runner) for each in user_code.RUNNERS)
    assert isinstance(user_code.SYNC_RUNNER, api.SyncRunner)
    assert isinstance(user_code.INPUT, api.InputSource)
    assert not isinstance(user_code.Class(), api.Runner), "it has no capability of its own"
    own = [each for each in vars(user_code).values() if getattr(each, "__module__", "") == user_code.__name__]
    kinds = [each for each in own if isinstance(each, type)]
    assert len(kinds) > 6
    assert all(kind.__bases__ == (object,) for kind in kinds)


def test_a_user_s_file_passes_the_strictest_check(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(user_code.__file__)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert (done.returncode, done.stdout) == (0, "Success: no issues found in 1 source file\n"), done


@pytest.mark.parametrize("record", RECORDS, ids=lambda each: type(each).__name__)
def test_a_record_survives_its_json(record: Any) -> None:
    again = type(record).from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()


@pytest.mark.parametrize("record", RECORDS, ids=lambda each: type(each).__name__)
def test_absent_null_and_unknown_fields(record: Any) -> None:
    """Absent is the default, unknown is ignored, null is None where a field may be that."""
    kind = type(record)
    written = json.loads(record.to_json())
    needed = {name: written[name] for name in NEEDED[kind]}
    least = kind.from_json(json.dumps(needed))
    assert kind.from_json(json.dumps(needed | {"unknown": [1], "P2P": None})) == least
    assert kind.from_json(least.to_json()) == least
    for field in dataclasses.fields(kind):
        if field.name in NEEDED[kind]:
            with pytest.raises(WireError, match=f"expected the field '{field.name}'"):
                kind.from_json(json.dumps({name: needed[name] for name in needed if name != field.name}))
        elif field.type == "JSON" or "None" in str(field.type):
            assert getattr(kind.from_json(json.dumps(written | {field.name: None})), field.name) is None


def test_paths_are_text_in_json() -> None:
    written = json.loads(FOUND.to_json())
    assert (written["path"], written["related_files"]) == ("/w/scan.ply", ["/w/a", "/w/b"])
