"""The runtime of the examples that makes thumbnails, over its pipes and from the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from posemesh.wire import golem as wire

from .golem_pipes import ROOT, Runtime, serving

PROGRAM = ROOT / "examples" / "golem" / "thumbnails.py"


def one_shot(workdir: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, PROGRAM, "--workdir", workdir, *argv]
    return subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    done = one_shot(tmp_path, "deploy")
    assert done.returncode == 0, done.stderr
    for name in ("one.png", "two.jpg", "inner/three.png"):
        (tmp_path / "input" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 150)).save(tmp_path / "input" / name)
    return tmp_path


@pytest.fixture
def runtime(workdir: Path) -> Iterator[Runtime]:
    with serving(PROGRAM, workdir) as runtime:
        yield runtime


def sizes(workdir: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (workdir / "output").rglob("[!.]*.png"):
        with Image.open(path) as image:
            found[str(path.relative_to(workdir / "output"))] = image.size
    return found


SMALL = {"one.png.png": (64, 32), "two.jpg.png": (64, 32), "inner/three.png.png": (64, 32)}


def test_all_pictures_of_the_input_are_made_small(runtime: Runtime) -> None:
    pid = runtime.run("thumbnails", "64")
    assert runtime.exit(pid) == 0
    assert sizes(runtime.workdir) == SMALL
    assert runtime.stdout(pid) == b"inner/three.png: 64 x 32\none.png: 64 x 32\ntwo.jpg: 64 x 32\n"
    counted = [one.command.kind for one in runtime.said if isinstance(one.command, wire.RuntimeStatus)]
    assert [(each.name, round(each.value)) for each in counted if isinstance(each, wire.Counter)] == [
        ("thumbnails.done", 33),
        ("thumbnails.done", 67),
        ("thumbnails.done", 100),
    ]


def test_what_is_no_picture_is_named_and_the_others_are_made(runtime: Runtime) -> None:
    (runtime.workdir / "input" / "none.png").write_text("data")
    whole = (runtime.workdir / "input" / "one.png").read_bytes()
    (runtime.workdir / "input" / "half.png").write_bytes(whole[: len(whole) // 2])
    pid = runtime.run("thumbnails", "64")
    assert runtime.exit(pid) == 1
    assert [line.split(b":")[0] for line in runtime.stderr(pid).splitlines()] == [b"half.png", b"none.png"]
    assert sizes(runtime.workdir) == SMALL
    assert runtime.counters() == {"thumbnails.done": 100.0}


def test_without_pictures_it_fails(tmp_path: Path) -> None:
    one_shot(tmp_path, "deploy")
    with serving(PROGRAM, tmp_path) as runtime:
        pid = runtime.run("thumbnails")
        assert runtime.exit(pid) == 1
        assert b"found none" in runtime.stderr(pid)


def test_wrong_arguments_are_refused_before_anything_is_done(runtime: Runtime) -> None:
    answer = runtime.ask(wire.RunProcess("thumbnails", ("thumbnails", "huge")))
    assert isinstance(answer, wire.Error)
    assert answer.message.startswith("expected an edge from 1 to 4096 pixels")
    assert not runtime.events(0)


def test_it_can_be_killed(runtime: Runtime) -> None:
    for number in range(300):
        Image.new("RGB", (300, 150)).save(runtime.workdir / "input" / f"{number}.png")
    pid = runtime.run("thumbnails")
    runtime.until_stdout(pid, b"\n")
    assert runtime.ask(wire.KillProcess(pid, 9)) == wire.KillReply()
    assert runtime.exit(pid) != 0
    assert 0 < len(sizes(runtime.workdir)) < 303
    assert isinstance(runtime.ask(wire.KillProcess(pid, 9)), wire.Error)


def test_from_the_command_line(workdir: Path) -> None:
    done = one_shot(workdir, "run", "--", "thumbnails", "64")
    assert done.returncode == 0, done.stderr
    assert sizes(workdir) == SMALL
