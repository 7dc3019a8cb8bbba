"""The directory of a program's task: its inputs and what it leaves."""

from __future__ import annotations

import inspect
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from uuid import UUID

import pytest

from posemesh.runners.api import LeaseEnvelope, MaterializedInput, TaskSpec
from posemesh.runners.executors import layout
from posemesh.runners.executors.layout import Layout
from posemesh.secret import Secret

TASK = TaskSpec(id=UUID(int=1), capability="/a/v1", inputs_cids=["one", "two"], meta={"depth": 3})


@pytest.fixture
def desk(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def downloaded(tmp_path: Path, name: str, *related: str) -> MaterializedInput:
    root = Path(mkdtemp(dir=tmp_path))
    files = []
    for number, each in enumerate((name, *related)):
        files.append(root / str(number) / each)
        files[-1].parent.mkdir()
        files[-1].write_text(each)
    return MaterializedInput(
        path=files[0],
        data_id="7",
        name="scan",
        data_type="ply",
        domain_id="9",
        root_dir=root,
        related_files=tuple(files[1:]),
    )


def test_inputs_are_found_by_their_number(desk: Layout, tmp_path: Path) -> None:
    assert desk.place(downloaded(tmp_path, "scan.ply", "same.csv", "same.csv")) == desk.inputs / "0-scan.ply"
    assert desk.place(downloaded(tmp_path, "scan.ply2")) == desk.inputs / "1-scan.ply2"
    held = {str(path.relative_to(desk.inputs)): path.read_text() for path in desk.inputs.rglob("*") if path.is_file()}
    assert held == {
        "0-scan.ply": "scan.ply",
        "0-related/0-same.csv": "same.csv",
        "0-related/1-same.csv": "same.csv",
        "1-scan.ply2": "scan.ply2",
    }


def test_no_name_of_an_input_means_anything_to_a_shell(desk: Layout, tmp_path: Path) -> None:
    odd = desk.place(downloaded(tmp_path, "$(x) ; é\n-rf"))
    assert odd.name == "0-__x______-rf"
    assert len(desk.place(downloaded(tmp_path, "x" * 240 + ".ply")).name) < 210


def test_the_task_is_described_without_its_secrets(desk: Layout, tmp_path: Path) -> None:
    desk.place(downloaded(tmp_path, "a.ply", "b.csv"))
    desk.place(downloaded(tmp_path, "c.ply"))
    lease = LeaseEnvelope(
        task=TASK, access_token=Secret("token-123"), domain_id=UUID(int=9), domain_server_url="https://domain"
    )
    desk.describe(lease)
    text = desk.task.read_text()
    known = json.loads(text)
    assert "token-123" not in text
    assert known["task"]["id"] == str(UUID(int=1)) and known["task"]["meta"] == {"depth": 3}
    assert (known["domain_id"], known["domain_server_url"]) == (str(UUID(int=9)), "https://domain")
    assert known["inputs"][0] == {
        "cid": "one",
        "path": str(desk.inputs / "0-a.ply"),
        "related_paths": [str(desk.inputs / "0-related" / "0-b.csv")],
        "data_id": "7",
        "name": "scan",
        "data_type": "ply",
    }
    assert [each["cid"] for each in known["inputs"]] == ["one", "two"]


def test_every_file_is_collected_in_the_order_of_names(desk: Layout) -> None:
    for name in ("b.txt", "a/z.bin", "a/y/x", ".hidden"):
        path = desk.outputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (desk.outputs / "empty").mkdir()
    (desk.outputs / "latest").symlink_to("a/z.bin")
    found = desk.collect()
    assert [name for name, _ in found] == [".hidden", "a/y/x", "a/z.bin", "b.txt", "latest"]
    assert [path.read_text() for _, path in found] == [".hidden", "a/y/x", "a/z.bin", "b.txt", "a/z.bin"]


def test_nothing_is_collected_where_nothing_is(desk: Layout) -> None:
    assert desk.collect() == []


def bind(path: Path) -> None:
    """A socket; its path would be too long for one where tests keep their files."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.symlink_to("/etc/hostname"), "outputs/x: .* a link that leads out of outputs"),
        (lambda path: path.symlink_to("../task.json"), "leads out of outputs"),
        (lambda path: path.symlink_to("../outputs2/secret"), "leads out of outputs"),
        (lambda path: path.symlink_to("/etc"), "leads out of outputs"),
        (lambda path: path.symlink_to("."), "expected a plain file"),
        (lambda path: path.symlink_to("nowhere"), "expected a plain file"),
        (lambda path: path.symlink_to("x"), "expected a plain file"),
        (os.mkfifo, "outputs/x: expected a plain file"),
        (bind, "outputs/x: expected a plain file"),
    ],
)
def test_what_is_no_file_of_its_own_is_refused(desk: Layout, make: Callable[[Path], None], problem: str) -> None:
    (desk.root / "outputs2").mkdir()
    (desk.root / "outputs2" / "secret").touch()
    make(desk.outputs / "x")
    with pytest.raises(ValueError, match=problem):
        desk.collect()


def test_a_directory_of_links_does_not_stand_in_for_outputs(desk: Layout) -> None:
    desk.outputs.rmdir()
    desk.outputs.symlink_to("/etc")
    with pytest.raises(ValueError, match="it is a link"):
        desk.collect()


@pytest.mark.parametrize("name", [b"a\xff", b"a\nb", b"\x1b[2J", b"dir\x07/file"])
def test_a_name_that_is_no_text_is_refused(desk: Layout, name: bytes) -> None:
    path = os.path.join(os.fsencode(desk.outputs), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    with pytest.raises(ValueError, match="expected a name of printable text") as caught:
        desk.collect()
    assert str(caught.value).isascii() and str(caught.value).isprintable()


def test_two_files_of_one_name_there_are_refused(desk: Layout) -> None:
    """The second took the place of the first: the server's names hold neither slashes nor dots."""
    (desk.outputs / "a").mkdir()
    for name in ("a/b.txt", "a_b.txt"):
        (desk.outputs / name).touch()
    with pytest.raises(ValueError, match="have one name on the domain server"):
        desk.collect()


@pytest.mark.parametrize("made", [Path.touch, Path.mkdir])
def test_more_than_the_limit_is_refused(
    desk: Layout, made: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "OUTPUTS_MAX", 3)
    for number in range(3):
        made(desk.outputs / str(number))
    desk.collect()
    made(desk.outputs / "one more")
    with pytest.raises(ValueError, match="expected at most 3 files; pack them"):
        desk.collect()


def test_a_tree_may_be_deeper_than_recursion(desk: Layout) -> None:
    here = desk.outputs
    for _ in range(200):
        here = here / "d"
        here.mkdir()
    (here / "f").touch()
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        assert len(desk.collect()) == 1
    finally:
        sys.setrecursionlimit(usual)
