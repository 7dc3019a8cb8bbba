"""posemesh.target: what `run TARGET` finds, and what it says when it does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posemesh.errors import TargetError
from posemesh.target import importing, load_target


class Node:
    """Stands in for posemesh.Node: this module only asks whether a thing is one."""


@pytest.fixture(autouse=True)
def a_clean_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "doubles", sys.modules[__name__])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(name: str, *lines: str) -> Path:
    file = Path(name).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(("from doubles import Node", *lines, "")))
    return file


def refusal(spec: str) -> str:
    with pytest.raises(TargetError) as raised:
        load_target(spec, Node)
    return str(raised.value)


def test_a_file_gives_its_node() -> None:
    write("app/hello.py", "node = Node()")
    assert isinstance(load_target("app/hello.py", Node), Node)


def test_an_absolute_path_and_another_attribute() -> None:
    file = write("hello.py", "node = None", "gpu = Node()")
    assert isinstance(load_target(f"{file}:gpu", Node), Node)


def test_a_file_need_not_end_in_py() -> None:
    write("app/hello", "node = Node()")
    assert isinstance(load_target("app/hello", Node), Node)


def test_a_module_of_the_current_directory() -> None:
    write("fleet/nodes.py", "node = Node()", "gpu = Node()")
    assert load_target("fleet.nodes", Node) is sys.modules["fleet.nodes"].node
    assert load_target("fleet.nodes:gpu", Node) is sys.modules["fleet.nodes"].gpu


def test_the_file_finds_its_neighbours_also_later() -> None:
    write("app/neighbour.py", "value = 1")
    write("app/hello.py", "import neighbour", "node = Node()")
    load_target("app/hello.py", Node)
    assert sys.path[0] == str(Path("app").resolve())


def test_a_file_named_like_a_module_does_not_take_its_place() -> None:
    import json

    write("json.py", "import json as real", "assert real.dumps", "node = Node()")
    assert isinstance(load_target("./json.py", Node), Node)
    assert sys.modules["json"] is json


def test_a_dataclass_in_the_file_works() -> None:
    write(
        "hello.py",
        "from __future__ import annotations",
        "import dataclasses",
        "@dataclasses.dataclass",
        "class A:",
        "    a: dataclasses.KW_ONLY",
        "node = Node()",
    )
    source = Path("hello.py").read_text().splitlines()
    Path("hello.py").write_text("\n".join([source[1], source[0], *source[2:]]))
    assert isinstance(load_target("hello.py", Node), Node)


def test_the_file_can_tell_that_it_is_imported_and_only_then() -> None:
    write("hello.py", "from posemesh.target import importing", "seen = importing(), __name__", "node = Node()")
    load_target("hello.py", Node)
    assert sys.modules["hello"].seen == (True, "hello")
    assert not importing()


@pytest.mark.parametrize("spec", ["missing.py", "app/missing", "/nowhere/hello.py:node"])
def test_no_such_file(spec: str) -> None:
    assert "is not a file; name a Python file" in refusal(spec)


@pytest.mark.parametrize("spec", ["missing", "missing.deep", "missing:node", "fleet.missing"])
def test_no_such_module(spec: str) -> None:
    write("fleet/nodes.py")
    assert refusal(spec).startswith("there is no module")


@pytest.mark.parametrize("spec", ["", ":", ":node", "hello:", "hello:a.b", ".", ".hello", "a b"])
def test_what_is_no_target_at_all(spec: str) -> None:
    assert "names no target; write file.py" in refusal(spec)


def test_a_missing_attribute_names_what_there_is() -> None:
    write("hello.py", "gpu = Node()")
    assert refusal("hello.py") == ("hello.py has no attribute 'node', and a Node was expected; try hello.py:gpu")


def test_an_attribute_of_another_kind() -> None:
    write("hello.py", "node = 3")
    assert refusal("hello.py") == (
        "hello.py holds a int as 'node', and a Node was expected; write there: node = posemesh.Node()"
    )


def test_an_error_of_the_file_shows_its_line_and_not_ours() -> None:
    file = write("app/hello.py", "def make():", "    return undefined", "node = make()")
    message = refusal("app/hello.py")
    assert message.splitlines() == [
        "app/hello.py failed while it was imported: NameError: name 'undefined' is not defined; mend it:",
        f"  {file}:4: node = make()",
        f"  {file}:3: return undefined",
    ]
    assert "hello" not in sys.modules


def test_an_error_that_the_library_raises_shows_the_line_that_led_to_it() -> None:
    """The last lines were the library's own, and there was nothing to mend in them."""
    file = write("hello.py", "import posemesh", 'posemesh.Node().command("/a/v1", "ls -l")')
    assert refusal("hello.py").splitlines()[1:] == [f'  {file}:3: posemesh.Node().command("/a/v1", "ls -l")']


def test_a_missing_import_of_the_file_is_its_own_error() -> None:
    write("hello.py", "import not_installed_here")
    assert "No module named 'not_installed_here'" in refusal("hello.py")
    assert "No module named 'not_installed_here'" in refusal("hello")


def test_a_file_that_is_not_python() -> None:
    write("hello.py", "def (:")
    assert "hello.py is not valid Python" in refusal("hello.py")
    assert 'hello.py", line 2' in refusal("hello.py")


def test_a_file_that_leaves_the_process() -> None:
    write("hello.py", "raise SystemExit(3)")
    assert "SystemExit: 3" in refusal("hello.py")
    assert not importing()
