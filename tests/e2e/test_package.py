"""The wheel: built from the tree, installed in an environment of its own, every module imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import posemesh
assert pathlib.Path(posemesh.__file__).is_relative_to(sys.prefix), posemesh.__file__
names = [module.name for module in pkgutil.walk_packages(posemesh.__path__, "posemesh.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
for name in posemesh.__all__:
    getattr(posemesh, name)
print(len(names))
"""


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}


def call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree keeps no build directory whose old files would get into the next wheel."""
    work = tmp_path_factory.mktemp("wheel")
    leave_out = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", "build", "dist", ".*_cache")
    shutil.copytree(ROOT, work / "tree", ignore=leave_out)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-deps", "--wheel-dir", work, work / "tree", cwd=work)
    (built,) = work.glob("posemesh-*.whl")
    return built


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_holds_its_data_and_nothing_beside_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = [path.relative_to(ROOT / "lib").as_posix() for path in (ROOT / "lib" / "posemesh").rglob("*.json")]
    for name in ("posemesh/py.typed", "posemesh/machines/MACHINES.md", *data):
        assert name in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"posemesh"}
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    assert int(call(python, "-c", IMPORT_ALL, cwd=tmp_path)) > 10
    assert "Usage: posemesh-node" in call(tmp_path / "venv" / "bin" / "posemesh-node", "--help", cwd=tmp_path)
    program = tmp_path / "venv" / "bin" / "posemesh-node"
    call(program, "diagram", "--check", cwd=tmp_path)
    with_a_node(program, tmp_path)


def with_a_node(program: Path, work: Path) -> None:
    """Without any extra a node runs a task through, serves what it shows of itself, and keeps its ledger."""
    (work / "node.py").write_text("import posemesh\n\nnode = posemesh.Node()\n")
    with started(program, "devnet", "--port", "0", "--data", work / "net", sign="submit", cwd=work):
        terms = {"ENABLE_NOOP": "true", "NODE_PORT": "0", "NOOP_SLEEP_SECS": "0"}
        files = ("--env-file", work / "net" / "node.env")
        with started(program, "run", work / "node.py", *files, sign="offers", cwd=work, **terms):
            env = ("--env-file", work / "net" / "app.env")
            call(program, "submit", "/posemesh/noop/v1", "--wait", *env, cwd=work)
        assert "/posemesh/noop/v1" in call(program, "ledger", "ls", *files, cwd=work)


@contextmanager
def started(*command: str | Path, sign: str, cwd: Path, **terms: str) -> Iterator[None]:
    """A running program, once it has said ``sign``."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=clean() | terms,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if sign in line:
                break
        else:
            pytest.fail("".join(said))
        yield
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -15), "".join(said) + rest
