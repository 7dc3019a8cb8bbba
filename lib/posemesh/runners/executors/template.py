"""A program's command line, with places for what each task brings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Final

__all__ = ("PLACES", "Template")

PLACES: Final = ("capability", "input", "inputs", "outputs", "task", "task_id", "workspace")
"""The placeholders, beside ``{inputs[0]}``, ``{inputs[1]}`` and so on."""

_BRACES: Final = "write {{ and }} for braces"
_NUMBERED: Final = re.compile(r"inputs\[(0|[1-9][0-9]{0,3})\]")


class Template:
    """The arguments of a program, the program first. ``{{`` and ``}}`` stand for braces.

    There is no shell: an argument stays one argument, whatever its placeholders bring. Raises ValueError for what is
    no list of texts, and for a placeholder that is not known.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        if isinstance(argv, str | bytes) or not argv or not argv[0]:
            raise ValueError(f"argv: expected a list of arguments, the program first, got {argv!r}; no shell splits it")
        self._arguments = [list(_pieces(number, argument)) for number, argument in enumerate(argv)]
        places = [place for pieces in self._arguments for _, place in pieces]
        self.inputs_min = max((place + 1 for place in places if isinstance(place, int)), default=0)
        """How many inputs a task must have."""
        self.names = frozenset(place for place in places if isinstance(place, str))
        """The placeholders in it, but for those of single inputs."""

    def fill(self, values: Mapping[str, str], inputs: Sequence[str]) -> list[str]:
        """The arguments for one task: ``values`` for the placeholders, ``inputs`` for the numbered ones, and for
        ``{input}`` the first. A program that is given by a relative path is looked for where the node was started.
        """
        filled = ["".join(_filled(piece, values, inputs) for piece in pieces) for pieces in self._arguments]
        if os.sep in filled[0]:
            filled[0] = os.path.abspath(filled[0])
        return filled


def _pieces(number: int, argument: str) -> list[tuple[str, str | int | None]]:
    """The argument as texts, each with the placeholder that follows it: a name, an input's number, or none."""
    where = f"argv[{number}]"
    if type(argument) is not str or "\0" in argument:
        raise ValueError(f"{where}: expected text without NUL, got {argument!r}; str() makes one of a path")
    try:
        parsed = list(Formatter().parse(argument))
    except ValueError as error:
        raise ValueError(f"{where} {argument!r}: {error}; {_BRACES}") from None
    return [(text, _place(where, name, form, flag)) for text, name, form, flag in parsed]


def _place(where: str, name: str | None, form: str | None, flag: str | None) -> str | int | None:
    if name is None:
        return None
    if form or flag:
        raise ValueError(f"{where}: expected a bare placeholder, got {{{name}}} with a format; {_BRACES}")
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        return int(numbered[1])
    if name not in PLACES:
        known = ", ".join(f"{{{place}}}" for place in (*PLACES, "inputs[0]"))
        raise ValueError(f"{where}: no placeholder {{{name}}}; expected one of {known}; {_BRACES}")
    return 0 if name == "input" else name


def _filled(piece: tuple[str, str | int | None], values: Mapping[str, str], inputs: Sequence[str]) -> str:
    text, place = piece
    if place is None:
        return text
    return text + (inputs[place] if isinstance(place, int) else values[place])
