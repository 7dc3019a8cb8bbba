"""Another interpreter finds user code: in a program, a module, a package, or it is said why not."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from posemesh.runners.executors.frames import Load
from posemesh.runners.executors.locating import command_of, environment, is_found, located

from . import process_code as code

WHERE = """
import json, sys
from posemesh.runners.executors.locating import located

def run(task):
    pass

class Outer:
    class Inner:
        def run(self, task):
            pass

ready = Outer.Inner()

if __name__ == "__main__":
    found = [located(each) for each in (run, Outer.Inner, ready)]
    print(json.dumps([[each.module, each.file, each.name] for each in found]))
    print(json.dumps(sys.path))
"""
AGAIN = """
import json, sys
from posemesh.target import importing, load_user_module
told, path = map(json.loads, sys.argv[1:])
sys.path[:] = path
for module, file, name in told:
    found = load_user_module(module, file)
    for part in name.split("."):
        found = getattr(found, part)
    print(name, found.__class__.__name__)
assert not importing()
"""


def printed(*arguments: str, cwd: Path) -> list[str]:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["file", "module", "package"])
def test_what_a_program_defines_is_found_again(tmp_path: Path, how: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "beside.py").touch()
    (package / "__main__.py").write_text(f"from . import beside\n{WHERE}")
    (tmp_path / "program.py").write_text(WHERE)
    arguments = {"file": ["program.py"], "module": ["-m", "program"], "package": ["-m", "package"]}[how]
    told, path = printed(*arguments, cwd=tmp_path)
    assert printed("-c", AGAIN, told, path, cwd=Path("/")) == ["run function", "Outer.Inner type", "ready Inner"]


def test_what_was_typed_at_a_prompt_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", dedent(WHERE)], capture_output=True, text=True, check=False)
    assert "run cannot run in a process of its own: its module __main__ has no file; put it into one" in done.stderr


def test_what_was_loaded_from_a_file_is_loaded_from_it_again(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(WHERE)  # a name that is taken
    load = "from posemesh.target import load_user_module; import sys, json as j; m = load_user_module('', sys.argv[1])"
    show = (
        "from posemesh.runners.executors.locating import located as l; f = l(m.run); print(j.dumps([f.file, f.name]))"
    )
    (line,) = printed("-c", f"{load}; {show}", str(tmp_path / "json.py"), cwd=tmp_path.parent)
    assert json.loads(line) == [str(tmp_path / "json.py"), "run"]


@pytest.mark.parametrize(
    "target", [lambda task: None, code.WithSetup(), code.instance.run, functools.partial(code.plain)]
)
def test_what_has_no_name_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="cannot run in a process of its own"):
        located(target)


def test_a_name_that_another_definition_took_is_noticed() -> None:
    assert is_found(code.plain, located(code.plain))
    assert is_found(code.instance, located(code.instance))
    assert not is_found(code.first_twice, located(code.first_twice))
    assert not is_found(code.plain, Load("m", None, "no.such.name"))


def test_a_child_has_the_flags_and_the_path_of_its_node() -> None:
    show = (
        "import json, sys; from posemesh.runners.executors.locating import command_of; sys.path.append('here'); "
        "print(json.dumps(command_of('r', 5)))"
    )
    (line,) = printed("-OO", "-B", "-Werror", "-Xdev", "-c", show, cwd=Path("/"))
    executable, *arguments = json.loads(line)
    at = arguments.index("-c")
    assert executable == sys.executable
    assert {"-OO", "-B", "-Werror", "dev"} <= set(arguments[:at])
    told = json.loads(arguments[at + 2])
    assert (told["path"][-1], told["path"][0], told["socket"]) == ("here", "/", 5)
    assert command_of("r", 5)[-1] == "runner=r"


def test_the_environment_is_without_the_nodes_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REG_SECRET", "SECP256K1_PRIVHEX", "reg_secret", "OTHER"):
        monkeypatch.setenv(name, "x")
    found = environment()
    assert found["OTHER"] == "x"
    assert not {"REG_SECRET", "SECP256K1_PRIVHEX", "reg_secret"} & set(found)
