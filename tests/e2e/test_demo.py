"""`make demo`'s program and README's three terminals, as real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

pytest.importorskip("plyfile")
from PIL import Image
from plyfile import PlyData

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "pointcloud" / "demo.py"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SECS_MAX = 60


def left_behind(mark: Path) -> list[str]:
    """The command lines of processes that name ``mark``."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(mark) in line]


def environment(home: Path) -> dict[str, str]:
    """Settings that a user's shell may hold, for another network; and a place for temporary files."""
    home.mkdir(exist_ok=True)
    other = {"DMS_BASE_URL": "https://dms.invalid/v1", "DDS_BASE_URL": "https://dds.invalid", "ENABLE_NOOP": "maybe"}
    return dict(os.environ) | other | {"TMPDIR": str(home), "COLUMNS": "40"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demo_ends_with_three_valid_artifacts(tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    done = subprocess.run(
        (sys.executable, DEMO, "--out", out), env=environment(temporary), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said, *paths = done.stdout.splitlines()
    assert re.match(r"job [0-9a-f-]{36} completed", said)
    assert sorted(Path(path).name for path in paths) == ["downsampled.ply", "preview.png", "statistics.json"]
    assert {Path(path).parent for path in paths} == {out}

    statistics = json.loads((out / "statistics.json").read_text())
    before, after = (len(PlyData.read(out / name)["vertex"].data) for name in ("scan.ply", "downsampled.ply"))
    assert before >= 100_000
    assert (statistics["points_in"], statistics["points_out"]) == (before, after)
    assert 0 < after < before / 2
    with Image.open(out / "preview.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    assert "job: drawing" in done.stderr
    assert not left_behind(temporary)
    assert not list(temporary.iterdir())


@contextmanager
def process(*words: str | Path, **options: object) -> Iterator[tuple[subprocess.Popen[str], Queue[str | None]]]:
    """A running command, and the lines it prints as they come; None when it prints no more."""
    running = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )  # type: ignore[call-overload]
    lines: Queue[str | None] = Queue()

    def read() -> None:
        for line in running.stdout:
            lines.put(line.rstrip())
        lines.put(None)

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        yield running, lines
    finally:
        running.kill()
        running.wait()
        reader.join(SECS_MAX)
        running.stdout.close()


def wait_for(sign: str, lines: Queue[str | None]) -> None:
    seen = []
    until = time.monotonic() + SECS_MAX
    while (line := lines.get(timeout=max(0.0, until - time.monotonic()))) is not None:
        seen.append(line)
        if sign in line:
            return
    raise AssertionError("\n".join((f"{sign!r} never came:", *seen)))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("sign", ["starting posemesh-node devnet", "scan:", "starting posemesh-node run", "job:"])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, sign: str) -> None:
    temporary = tmp_path / "tmp"
    command = (sys.executable, DEMO, "--out", tmp_path / "out")
    with process(*command, env=environment(temporary), cwd=tmp_path) as (demo, lines):
        wait_for(sign, lines)
        demo.send_signal(signal.SIGINT)
        demo.send_signal(signal.SIGTERM)
        wait_for("interrupted", lines)
        assert demo.wait(SECS_MAX) == 130
    assert not left_behind(temporary)
    assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_failing_demo_says_which_command_failed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary, out = tmp_path / "tmp", tmp_path / "out"
    (out / "preview.png").mkdir(parents=True)  # where an artifact is to go
    command = (sys.executable, DEMO, "--out", out)
    done = subprocess.run(command, env=environment(temporary), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "demo: failed: a command ended with 1\n  posemesh-node submit /examples/voxel-downsample/v1" in done.stderr
    assert "preview.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not left_behind(temporary)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_three_terminals_and_the_program_of_the_readme(tmp_path: Path) -> None:
    devnet, run, submit = (shlex.split(block) for block in BLOCKS[1:4])
    for command in (devnet, run, submit):
        command[0] = str(Path(sys.executable).with_name(Path(command[0]).name))
    for name in ("examples", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    with process(*devnet, "--port", "0", cwd=tmp_path) as (network, network_lines):
        wait_for("network is up", network_lines)
        with process(*run, cwd=tmp_path, env=dict(os.environ) | {"NODE_PORT": "0"}) as (node, node_lines):
            wait_for("/examples/hello/v1", node_lines)
            done = subprocess.run(submit, cwd=tmp_path, capture_output=True, text=True, timeout=SECS_MAX)
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == "results/outputs/hello.bin"
            assert (tmp_path / "results" / "outputs" / "hello.bin").read_bytes() == (ROOT / "README.md").read_bytes()
            node.send_signal(signal.SIGINT)
            assert node.wait(SECS_MAX) == 0
        (program,) = (each for each in PROGRAMS if "async with node" in each)
        (tmp_path / "host.py").write_text(program)
        with process(sys.executable, "host.py", cwd=tmp_path) as (host, host_lines):
            done = subprocess.run(submit, cwd=tmp_path, capture_output=True, text=True, timeout=SECS_MAX)
            assert done.stdout.splitlines()[-1] == "results/hello.txt"
            assert host.wait(SECS_MAX) == 0
        network.send_signal(signal.SIGINT)
        assert network.wait(SECS_MAX) == 0
