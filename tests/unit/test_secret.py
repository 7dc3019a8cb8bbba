"""posemesh.secret: the text is reached by reveal() and by nothing else."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from dataclasses import dataclass

import pytest

from posemesh.secret import Secret

TEXT = "correct-horse-battery"


def test_reveal_gives_the_text() -> None:
    assert Secret(TEXT).reveal() == TEXT


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r:>10}".format, "%s".__mod__, ascii])
def test_no_way_of_showing_it_shows_the_text(show) -> None:  # type: ignore[no-untyped-def]
    assert TEXT not in show(Secret(TEXT))
    assert "***" in show(Secret(TEXT))


def test_it_is_hidden_inside_other_values() -> None:
    @dataclass
    class Holder:
        token: Secret

    assert repr(Holder(Secret(TEXT))).endswith("Holder(token=***)")
    assert str([Secret(TEXT), {"a": Secret(TEXT)}]) == "[***, {'a': ***}]"


def test_a_format_specification_does_not_bring_it_out() -> None:
    assert f"{Secret(TEXT):>30}" == "***"


def test_equal_texts_are_equal_and_hash_alike() -> None:
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret("other")
    assert Secret(TEXT) != TEXT
    assert len({Secret(TEXT), Secret(TEXT)}) == 1


def test_an_empty_one_is_false() -> None:
    assert not Secret("")
    assert Secret(TEXT)


def test_it_is_not_serialised() -> None:
    for attempt in (pickle.dumps, json.dumps, copy.deepcopy):
        with pytest.raises(TypeError) as raised:
            attempt(Secret(TEXT))
        assert TEXT not in "".join(traceback.format_exception(raised.value))


def test_it_has_no_room_for_attributes() -> None:
    assert not hasattr(Secret(TEXT), "__dict__")
