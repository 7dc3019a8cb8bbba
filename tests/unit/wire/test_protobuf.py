"""Messages as tables: values that behave, and bytes that are skipped, put together or refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import pytest

from posemesh.wire._protobuf import Message, decode, encode, mapping, oneof, optional, repeated, scalar
from posemesh.wire._scalars import BOOL, DOUBLE, STRING, UINT32, UINT64, GolemWireError


class Leaf(Message):
    number: int = scalar(1, UINT64)


class Other(Message):
    number: int = scalar(1, UINT64)


class Tree(Message):
    name: str = scalar(1, STRING)
    leaf: Leaf | None = optional(2, Leaf)
    leaves: tuple[Leaf, ...] = repeated(3, Leaf)
    notes: Mapping[str, str] = mapping(4)
    size: float = scalar(5, DOUBLE)
    kept: bool = scalar(6, BOOL)
    last: int | None = optional(7, UINT32)
    one: Leaf | Other | None = oneof({20: Leaf, 21: Other})


FULL = Tree("oak", Leaf(1), (Leaf(), Leaf(2)), {"a": "b"}, 0.5, True, 0, Other(3))


def test_fields_are_given_by_place_or_by_name_and_lists_become_tuples() -> None:
    assert Tree("oak", leaves=[Leaf(1)]) == Tree(name="oak", leaves=(Leaf(number=1),))  # type: ignore[arg-type]
    assert repr(Tree("oak", last=0)) == (
        "Tree(name='oak', leaf=None, leaves=(), notes={}, size=0.0, kept=False, last=0, one=None)"
    )


def test_a_message_holds_nothing_of_what_it_was_made_of() -> None:
    notes = {"a": "b"}
    tree = Tree(notes=notes)
    notes.clear()
    assert tree.notes == {"a": "b"} and Tree().notes is not Tree().notes


def test_messages_of_two_classes_are_not_equal_though_their_fields_are() -> None:
    assert Leaf(1) != Other(1) and Leaf(1) != (1,)
    assert len({Leaf(1), Leaf(1), Other(1), Leaf(2)}) == 3


def test_a_message_is_not_changed_and_takes_no_more_than_its_fields() -> None:
    leaf = Leaf(1)
    with pytest.raises(AttributeError, match="its number cannot be set"):
        leaf.number = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="its number cannot be deleted"):
        del leaf.number
    with pytest.raises(AttributeError):
        leaf.size = 2  # type: ignore[attr-defined]
    assert leaf == Leaf(1)


@pytest.mark.parametrize(("values", "by_name"), [((1, 2), {}), ((), {"size": 1}), ((1,), {"number": 1})])
def test_wrong_fields_are_an_error_of_the_program(values: tuple[int, ...], by_name: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Leaf"):
        Leaf(*values, **by_name)


def test_messages_are_copied_and_sent_to_other_processes() -> None:
    assert copy.deepcopy(FULL) == pickle.loads(pickle.dumps(FULL)) == FULL


def test_messages_are_taken_apart_by_patterns() -> None:
    match FULL:
        case Tree(name, Leaf(number)):
            assert (name, number) == ("oak", 1)


def test_fields_are_written_in_the_order_of_their_numbers_and_defaults_are_not() -> None:
    assert encode(Tree()) == b""
    assert encode(FULL).hex(" ") == (
        "0a 03 6f 61 6b 12 02 08 01 1a 00 1a 02 08 02 22 06 0a 01 61 12 01 62"
        " 29 00 00 00 00 00 00 e0 3f 30 01 38 00 aa 01 02 08 03"
    )
    assert decode(Tree, encode(FULL)) == FULL


# Fields that a Tree does not have, one of each wire type, among them groups in groups.
UNKNOWN = ("5801", "590102030405060708", "5a020102", "5b 5301 54 0a0161 5c".replace("5301", "53 5801"), "5d01020304")


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_fields_that_nobody_knows_are_skipped(unknown: str) -> None:
    data = bytes.fromhex(unknown)
    assert decode(Tree, data + encode(FULL) + data) == FULL
    assert decode(Tree, b"\x12" + bytes((len(data) + 2,)) + data + b"\x08\x01").leaf == Leaf(1)


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_field_that_nobody_knows_is_whole_all_the_same(unknown: str) -> None:
    data = bytes.fromhex(unknown)
    for end in range(1, len(data)):
        with pytest.raises(GolemWireError):
            decode(Tree, data[:end])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("00", "no field has the number 0"),
        ("0e", "wire type 6"),
        ("5f", "wire type 7"),
        ("8080808010", "no field has the number 536870912"),
        ("0801", "field 1 came as varint"),
        ("0d00000000", "field 1 came as 32 bits"),
        ("13 14", "field 2 came as group"),
        ("14", "field 2 came as end of a group"),
        ("5c", "a group 11 ends that did not begin"),
        ("5b 64", "a group 12 ends that did not begin"),
        ("12020a00", "Tree.leaf: Leaf: field 1 came as length-delimited"),
        ("12ffffffffffffffffff01", "18446744073709551615 bytes, and 0 are left"),
        ("0a01ff", "Tree.name: text is not in UTF-8"),
        ("0a03eda080", "Tree.name: text is not in UTF-8"),
    ],
)
def test_what_is_wrong_is_named(data: str, why: str) -> None:
    with pytest.raises(GolemWireError, match=why):
        decode(Tree, bytes.fromhex(data))


def test_a_group_of_any_depth_is_skipped() -> None:
    """A reader that calls itself for each would end in a RecursionError."""
    assert decode(Tree, b"\x5b" * 50_000 + b"\x5c" * 50_000) == Tree()


def test_a_message_in_many_pieces_is_put_together_in_linear_time() -> None:
    """Joined piece by piece to what is there, this many would take minutes."""
    pieces = 60_000
    assert decode(Tree, b"\xa2\x01\x02\x08\x07" * pieces).one == Leaf(7)
    assert len(decode(Tree, b"\x1a\x00" * pieces).leaves) == pieces
