"""posemesh itself: its public names, and that they load only when used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import posemesh
from posemesh import config, errors

HEAVY = ("aiohttp", "loguru", "marshmallow", "dataclasses_json", "transitions", "msgspec", "click", "asyncio")


def test_the_import_brings_in_nothing_heavy() -> None:
    program = f"import sys, posemesh; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_name_is_the_object_of_its_module() -> None:
    assert posemesh.NodeConfig is config.NodeConfig
    assert posemesh.ConfigError is errors.ConfigError
    assert posemesh.telemetry.__name__ == "posemesh.telemetry"


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(posemesh.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nodes'"):
        posemesh.Nodes  # type: ignore[attr-defined]  # noqa: B018


def test_dir_shows_the_public_names() -> None:
    assert set(posemesh.__all__) <= set(dir(posemesh))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(posemesh.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    names = [
        alias.asname or alias.name for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names
    ]
    assert sorted(names) == sorted(posemesh.__all__)
