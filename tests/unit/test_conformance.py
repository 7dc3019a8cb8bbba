"""The vectors themselves: all of them are there, in one form, with actions that the README explains."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from posemesh.conformance import VECTOR_SETS, load_vectors

FOLDER = files("posemesh.conformance") / "vectors"


def test_every_vector_of_the_protocol_is_there() -> None:
    found = {vector.id for name in VECTOR_SETS for vector in load_vectors(name)}
    assert found == {f"V{number}" for number in range(1, 13)} | {f"D{number}" for number in range(1, 9)}


def test_every_file_is_a_set() -> None:
    names = {entry.name.removesuffix(".json") for entry in FOLDER.iterdir() if entry.name.endswith(".json")}
    assert names == set(VECTOR_SETS)


@pytest.mark.parametrize("name", VECTOR_SETS)
def test_one_form(name: str) -> None:
    document = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert set(document) == {"about", "vectors"}
    readme = (FOLDER / "README.md").read_text("utf-8")
    for vector in load_vectors(name):
        assert f"`{vector.action}`" in readme
        assert vector.given and vector.expect


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ValueError, match="'../keys'; there are capabilities"):
        load_vectors("../keys")
