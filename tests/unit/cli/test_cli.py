"""posemesh.cli: exit codes, one message on stderr, and nothing imported that is not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

import posemesh
from posemesh import cli, errors

ROOT = Path(__file__).parents[3]
PAGE = Path("lib/posemesh/machines/MACHINES.md")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(list(args))
    done = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, done.out, done.err


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes the command `submit` raise what it is given."""

    def use(error: BaseException | None) -> None:
        @click.command()
        def submit() -> None:
            if error is not None:
                raise error

        module = ModuleType("posemesh.cli.submit")
        module.submit = submit  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "posemesh.cli.submit", module)

    return use


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Stands in for posemesh.machines, with its page in a directory of the test."""
    machines = ModuleType("posemesh.machines")
    (tmp_path / PAGE).parent.mkdir(parents=True)
    (tmp_path / "setup.cfg").touch()
    machines.__path__ = [str((tmp_path / PAGE).parent)]
    diagram = ModuleType("posemesh.machines.diagram")
    diagram.render_markdown = lambda: "# machines\n"  # type: ignore[attr-defined]
    diagram.render_json = lambda: '{"machines": []}'  # type: ignore[attr-defined]
    diagram.lint = lambda: []  # type: ignore[attr-defined]
    machines.diagram = diagram  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "posemesh.machines", machines)
    monkeypatch.setattr(posemesh, "machines", machines, raising=False)
    monkeypatch.setitem(sys.modules, "posemesh.machines.diagram", diagram)
    monkeypatch.delitem(sys.modules, "posemesh.cli.diagram", raising=False)
    yield diagram  # type: ignore[misc]
    sys.modules.pop("posemesh.cli.diagram", None)


def test_help_names_every_command_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("devnet", "diagram", "run", "submit", "Examples:"):
        assert name in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[:2] == (0, f"posemesh-node, version {posemesh.__version__}\n")


@pytest.mark.parametrize("args", [["nope"], ["--nope"], ["diagram", "--nope"]])
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], tables: ModuleType, args: list[str]) -> None:
    code, _, err = run(capsys, *args)
    assert code == 2
    assert "nope" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (errors.ConfigError(["A: expected b"]), 2),
        (errors.TargetError("no node"), 2),
        (errors.RegistrationRefused("refused"), 1),
        (errors.NodeStartError("not started"), 1),
        (OSError(98, "Address already in use"), 1),
        (ZeroDivisionError("by zero"), 1),
        (KeyboardInterrupt(), 1),
        (click.ClickException("did not work"), 1),
        (click.UsageError("wrongly used"), 2),
    ],
)
def test_an_error_is_an_exit_code_and_one_message(  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str], raising, error: BaseException | None, code: int
) -> None:
    raising(error)
    found, out, err = run(capsys, "submit")
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert bool(err) == (error is not None)
    if isinstance(error, errors.PosemeshError):
        assert err == f"posemesh-node: {error}\n"


def test_an_unexpected_error_says_where_and_holds_no_secret(  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str], raising
) -> None:
    raising(ValueError("with Bearer abc.def"))
    _, _, err = run(capsys, "submit")
    assert "ValueError: with Bearer ***" in err
    assert f"{Path(__file__).name}:" in err


@pytest.mark.parametrize("args", [["{}"], ["submit", "--{}"], ["diagram", "{}"], ["run", "a", "{}"]])
def test_wrong_usage_shows_no_key(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    """What click says of its own holds what was typed, which may be a key in the wrong place."""
    key = "0123456789abcdef" * 4
    code, out, err = run(capsys, *(arg.format(key) for arg in args))
    assert (code, out) == (2, "")
    assert key not in err and "***" in err and err.startswith("Usage: posemesh-node")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["--help"], ["diagram", "--json"], ["devnet", "--port", "0"]])
def test_output_that_cannot_be_written_is_named(tmp_path: Path, args: list[str], unbuffered: str) -> None:
    """The system's error alone names no file."""
    program = [sys.executable, "-c", "from posemesh.cli import main; main()", *args]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            program, cwd=tmp_path, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (
        1,
        "posemesh-node: what it prints cannot be written: No space left on device; make room, or send it elsewhere\n",
    )


def test_a_file_that_the_system_refuses_is_named_first(capsys: pytest.CaptureFixture[str], raising) -> None:  # type: ignore[no-untyped-def]
    raising(FileNotFoundError(2, "No such file or directory", "a"))
    assert run(capsys, "submit") == (1, "", "posemesh-node: a: No such file or directory\n")


def test_a_command_s_own_code_is_kept(capsys: pytest.CaptureFixture[str], raising) -> None:  # type: ignore[no-untyped-def]
    raising(click.exceptions.Exit(1))
    assert run(capsys, "submit")[0] == 1


def test_diagram_writes_the_page_and_prints_its_path(
    capsys: pytest.CaptureFixture[str], tables: ModuleType, tmp_path: Path
) -> None:
    page = tmp_path / PAGE
    assert run(capsys, "diagram") == (0, f"{page}\n", "")
    assert page.read_text() == "# machines\n"
    assert run(capsys, "diagram", "--check") == (0, "", "")


def test_diagram_of_an_installed_package_prints_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tables: ModuleType, tmp_path: Path
) -> None:
    """It wrote into site-packages."""
    (tmp_path / "setup.cfg").unlink()
    assert run(capsys, "diagram") == (0, "# machines\n", "")
    assert not (tmp_path / PAGE).exists()


@pytest.mark.parametrize("before", [None, "# old\n"])
def test_diagram_check_fails_on_a_stale_page_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tables: ModuleType, tmp_path: Path, before: str | None
) -> None:
    page = tmp_path / PAGE
    if before is not None:
        page.write_text(before)
    code, _, err = run(capsys, "diagram", "--check")
    assert code == 1
    assert "is stale; run: bin/posemesh-node diagram" in err
    assert (page.read_text() if page.exists() else None) == before


def test_diagram_check_fails_on_a_faulty_table(capsys: pytest.CaptureFixture[str], tables: ModuleType) -> None:
    run(capsys, "diagram")
    tables.lint = lambda: ["lease: no why"]  # type: ignore[attr-defined]
    code, _, err = run(capsys, "diagram", "--check")
    assert code == 1
    assert "lease: no why" in err


def test_diagram_prints_json(capsys: pytest.CaptureFixture[str], tables: ModuleType, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "diagram", "--json")
    assert (code, json.loads(out)) == (0, {"machines": []})
    assert not (tmp_path / PAGE).exists()
    assert run(capsys, "diagram", "--json", "--check")[0] == 2


def test_run_gives_the_target_its_settings_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[str | None] = []

    class Node:
        def run(self, *, env_file: str | None = None) -> None:
            given.append(env_file)

    node_module = ModuleType("posemesh.node")
    node_module.Node = Node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "posemesh.node", node_module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "offers_nothing.py"
    file.write_text("import posemesh\nnode = posemesh.Node()\n")
    assert run(capsys, "run", str(file), "--env-file", "node.env") == (0, "", "")
    assert run(capsys, "run") == (0, "", "")
    assert run(capsys, "run", str(tmp_path / "none.py"))[0] == 2
    assert given == ["node.env", None]
    sys.modules.pop("offers_nothing")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from posemesh import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'aiohttp', 'loguru', 'marshmallow', 'transitions', 'rich', 'msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def checkout(tmp_path: Path, *, ready: bool) -> Path:
    """A tree with the program of bin/ and an environment that prints where it was called with what."""
    root = tmp_path / "check out"
    (root / "bin").mkdir(parents=True)
    program = root / "bin" / "posemesh-node"
    program.write_bytes((ROOT / "bin" / "posemesh-node").read_bytes())
    program.chmod(0o755)
    if ready:
        (root / ".venv" / "bin").mkdir(parents=True)
        console = root / ".venv" / "bin" / "posemesh-node"
        console.write_text('#!/bin/sh\necho "$PWD|$*|$POSEMESH_PROGRAM|${PATH%%:*}"\nexit 7\n')
        console.chmod(0o755)
    return program


def test_the_program_of_a_checkout_works_from_anywhere_and_through_links(tmp_path: Path) -> None:
    program = checkout(tmp_path, ready=True)
    elsewhere = tmp_path / "else"
    elsewhere.mkdir()
    (tmp_path / "absolute").symlink_to(program)
    (elsewhere / "relative").symlink_to(os.path.join("..", "absolute"))
    for name in (str(program), str(tmp_path / "absolute"), "./relative"):
        # Examples that begin with "env python3" found one without posemesh.
        said = f"{elsewhere}|run a b|{name}|{program.parents[1] / '.venv' / 'bin'}\n"
        done = subprocess.run([name, "run", "a b"], cwd=elsewhere, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (7, said, "")


def test_the_program_of_a_checkout_says_when_it_is_not_set_up(tmp_path: Path) -> None:
    program = checkout(tmp_path, ready=False)
    done = subprocess.run([str(program)], cwd="/", capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"posemesh-node: this checkout is not set up yet; run once: make -C '{program.parent.parent}' setup\n"
    )
