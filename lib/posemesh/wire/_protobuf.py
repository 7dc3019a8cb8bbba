"""Protocol Buffers (proto3) from tables: as much of the format as the protocol of Golem's runtimes uses.

A message is a frozen value whose class body is its table. Bytes are those that Rust's ``prost`` writes: fields in the
order of their numbers, and none that has its default value, in the entries of maps too. What is read may be written
in any legal way: in any order, with fields that nobody knows, with integers longer than they need be.

The classes are made by hand and not by ``dataclasses``: they are loaded by programs that are started for each task,
and twenty dataclasses take longer to make than everything else here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar, dataclass_transform

from posemesh.wire._scalars import (
    DELIMITED,
    FIXED32,
    FIXED64,
    GROUP,
    GROUP_END,
    STRING,
    VARINT,
    Buffer,
    Codec,
    Cut,
    GolemWireError,
    delimited,
    read_varint,
    refuse,
    write_varint,
)

__all__ = ("Message", "decode", "encode", "mapping", "named", "oneof", "optional", "repeated", "scalar")

_WIRE_NAMES: Final = ("varint", "64 bits", "length-delimited", "group", "end of a group", "32 bits")


class _Nested(Codec):
    """A message in a message. One that comes in pieces is put together, which is why it is not made at once."""

    __slots__ = ("kind",)

    def __init__(self, kind: type[Message]) -> None:
        super().__init__(DELIMITED, None, self._write, lambda value: decode(kind, value))
        self.kind = kind

    def _write(self, value: Any) -> bytes:
        if type(value) is not self.kind:
            refuse(value, self.kind.__name__)
        return delimited(encode(value))

    def merge(self, raw: Any, value: Any) -> Any:
        return _parse(self.kind, value, {} if raw is None else raw)

    def finish(self, raw: Any) -> Any:
        return _build(self.kind, raw)


# -- Fields ---------------------------------------------------------------------------------------------------------


class _Member:
    """One number of a message: how it is written and read."""

    __slots__ = ("codec", "key", "number", "tag")

    def __init__(self, number: int, codec: Codec) -> None:
        self.number, self.codec = number, codec
        self.key = number << 3 | codec.wire
        self.tag = write_varint(self.key)


class _Field:
    """One attribute of a message, and by itself one that holds its type's default where nothing was said."""

    __slots__ = ("members", "name", "put")
    name: str
    put: Callable[[Message, Any], None]

    def __init__(self, *members: _Member) -> None:
        self.members = members

    def empty(self) -> Any:
        return self.members[0].codec.default

    def keep(self, value: Any) -> Any:
        """``value`` as the message holds it."""
        return value

    def write(self, value: Any, out: list[bytes]) -> None:
        if value:
            member = self.members[0]
            out += (member.tag, member.codec.write(value))

    def add(self, raw: dict[str, Any], member: _Member, value: Any) -> None:
        raw[self.name] = member.codec.merge(raw.get(self.name), value)

    def finish(self, raw: Any) -> Any:
        return self.members[0].codec.finish(raw)


class _Optional(_Field):
    __slots__ = ()

    def empty(self) -> Any:
        return None

    def write(self, value: Any, out: list[bytes]) -> None:
        if value is not None:
            member = self.members[0]
            out += (member.tag, member.codec.write(value))


class _Repeated(_Field):
    __slots__ = ()

    def empty(self) -> Any:
        return ()

    def keep(self, value: Any) -> Any:
        return tuple(value)

    def write(self, value: Any, out: list[bytes]) -> None:
        member = self.members[0]
        for item in value:
            out += (member.tag, member.codec.write(item))

    def add(self, raw: dict[str, Any], member: _Member, value: Any) -> None:
        raw.setdefault(self.name, []).append(member.codec.read(value))

    def finish(self, raw: Any) -> Any:
        return tuple(raw)


class _Mapping(_Repeated):
    __slots__ = ()

    def empty(self) -> Any:
        return {}

    def keep(self, value: Any) -> Any:
        return dict(value)

    def write(self, value: Any, out: list[bytes]) -> None:
        super().write([_Entry(*item) for item in value.items()], out)

    def finish(self, raw: Any) -> Any:
        return {entry.key: entry.value for entry in raw}


class _Oneof(_Optional):
    """At most one of several; the last one that came holds. ``choose`` tells a value's member and what is written;
    ``wrap`` makes the value again.
    """

    __slots__ = ("choose", "wrap")

    def __init__(
        self,
        members: tuple[_Member, ...],
        choose: Callable[[Any], tuple[_Member, Any] | None],
        wrap: Callable[[_Member, Any], Any],
    ) -> None:
        super().__init__(*members)
        self.choose, self.wrap = choose, wrap

    def write(self, value: Any, out: list[bytes]) -> None:
        if value is None:
            return
        chosen = self.choose(value)
        if chosen is None:
            refuse(value, "one of what may stand here")
        member, content = chosen
        out += (member.tag, member.codec.write(content))

    def add(self, raw: dict[str, Any], member: _Member, value: Any) -> None:
        before, content = raw.get(self.name, (None, None))
        raw[self.name] = member, member.codec.merge(content if before is member else None, value)

    def finish(self, raw: Any) -> Any:
        member, content = raw
        return self.wrap(member, member.codec.finish(content))


# The makers of fields are typed as what the attribute holds, as those of dataclasses are.
def scalar(number: int, codec: Codec) -> Any:
    return _Field(_Member(number, codec))


def optional(number: int, codec: Codec | type[Message]) -> Any:
    """Absent is None, and differs from the default."""
    return _Optional(_Member(number, _codec(codec)))


def repeated(number: int, codec: Codec | type[Message]) -> Any:
    return _Repeated(_Member(number, _codec(codec)))


def mapping(number: int) -> Any:
    """From text to text."""
    return _Mapping(_Member(number, _Nested(_Entry)))


def oneof(members: Mapping[int, type[Message]]) -> Any:
    """One of several messages, told apart by their classes."""
    made = {kind: _Member(number, _Nested(kind)) for number, kind in members.items()}

    def choose(value: Any) -> tuple[_Member, Any] | None:
        member = made.get(type(value))
        return (member, value) if member else None

    return _Oneof(tuple(made.values()), choose, lambda member, value: value)


def named(members: Mapping[int, str], codec: Codec, wrap: Callable[[str, Any], Any]) -> Any:
    """One of several of the same type, told apart by their names; the value is a pair of name and content."""
    made = {name: _Member(number, codec) for number, name in members.items()}

    def choose(value: Any) -> tuple[_Member, Any] | None:
        if not isinstance(value, tuple) or len(value) != 2 or value[0] not in made:
            return None
        return made[value[0]], value[1]

    return _Oneof(tuple(made.values()), choose, lambda member, value: wrap(members[member.number], value))


def _codec(of: Codec | type[Message]) -> Codec:
    return of if isinstance(of, Codec) else _Nested(of)


# -- Messages -------------------------------------------------------------------------------------------------------

M = TypeVar("M", bound="Message")


@dataclass_transform(frozen_default=True)
class _Table(type):
    """Makes a class of messages of its table: fields in the order of their numbers, as attributes with slots."""

    fields: tuple[_Field, ...]
    by_key: dict[int, tuple[_Field, _Member]]
    numbers: frozenset[int]

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        fields = {key: value for key, value in body.items() if isinstance(value, _Field)}
        rest = {key: value for key, value in body.items() if key not in fields}
        made = super().__new__(mcs, name, bases, {**rest, "__slots__": tuple(fields), "__match_args__": tuple(fields)})
        for key, field in fields.items():
            field.name, field.put = key, made.__dict__[key].__set__
        made.fields = tuple(fields.values())
        made.by_key = {member.key: (field, member) for field in made.fields for member in field.members}
        made.numbers = frozenset(member.number for field in made.fields for member in field.members)
        return made


class Message(metaclass=_Table):
    """A value of named fields, given by place or by name, that nobody changes. Equal where class and fields are."""

    def __init__(self, *values: Any, **by_name: Any) -> None:
        fields = type(self).fields
        if len(values) > len(fields):
            raise TypeError(f"{type(self).__name__} has {len(fields)} fields, got {len(values)} values")
        for field, value in zip(fields, values, strict=False):
            field.put(self, field.keep(value))
        for field in fields[len(values) :]:
            field.put(self, field.keep(by_name.pop(field.name)) if field.name in by_name else field.empty())
        if by_name:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(map(repr, by_name))}, or has it already")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} is not changed, so its {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} is not changed, so its {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash((type(self), *_values(self)))

    def __repr__(self) -> str:
        fields = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in type(self).fields)
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(_values(self))


def _values(message: Message) -> list[Any]:
    return [getattr(message, field.name) for field in type(message).fields]


class _Entry(Message):
    key: str = scalar(1, STRING)
    value: str = scalar(2, STRING)


def encode(message: Message) -> bytes:
    """The bytes of ``message``. Raises GolemWireError for a value that its field cannot hold."""
    kind = type(message)
    out: list[bytes] = []
    for field in kind.fields:
        try:
            field.write(getattr(message, field.name), out)
        except GolemWireError as error:
            raise GolemWireError(f"{kind.__name__}.{field.name}: {error}") from None
    return b"".join(out)


def decode(kind: type[M], data: Buffer) -> M:
    """The message of ``data``, which is all of it. Raises GolemWireError where it is none."""
    return _build(kind, _parse(kind, data, {}))


def _parse(kind: type[Message], data: Buffer, raw: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with what ``data`` adds to it."""
    at, by_key = 0, kind.by_key
    while at < len(data):
        key, at = read_varint(data, at)
        found = by_key.get(key)
        if found is None:
            at = _skip(kind, data, at, key)
            continue
        field, member = found
        value, at = _content(data, at, key & 7)
        try:
            field.add(raw, member, value)
        except GolemWireError as error:
            raise GolemWireError(f"{kind.__name__}.{field.name}: {error}") from None
    return raw


def _build(kind: type[M], raw: dict[str, Any]) -> M:
    message = object.__new__(kind)
    for field in kind.fields:
        field.put(message, field.finish(raw[field.name]) if field.name in raw else field.empty())
    return message


def _content(data: Buffer, at: int, wire: int) -> tuple[Any, int]:
    """What a field of that wire type holds at ``at``, and where the next one begins."""
    if wire == VARINT:
        return read_varint(data, at)
    if wire == DELIMITED:
        size, at = read_varint(data, at)
    elif wire == FIXED64:
        size = 8
    elif wire == FIXED32:
        size = 4
    else:
        raise GolemWireError(f"there is no content of wire type {wire} here")
    end = at + size
    if end > len(data):
        raise Cut(f"a field has {size} bytes, and {len(data) - at} are left")
    return data[at:end], end


def _skip(kind: type[Message], data: Buffer, at: int, key: int) -> int:
    """Where the next field begins, after one that ``kind`` does not have."""
    groups: list[int] = []
    while True:
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29 or wire > FIXED32:
            raise GolemWireError(f"{kind.__name__}: no field has the number {number} and the wire type {wire}")
        if not groups and number in kind.numbers:
            raise GolemWireError(f"{kind.__name__}: field {number} came as {_WIRE_NAMES[wire]}")
        if wire == GROUP:
            groups.append(number)
        elif wire != GROUP_END:
            at = _content(data, at, wire)[1]
        elif not groups or groups.pop() != number:
            raise GolemWireError(f"{kind.__name__}: a group {number} ends that did not begin")
        if not groups:
            return at
        key, at = read_varint(data, at)
