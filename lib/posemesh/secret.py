"""A value that never shows itself."""

from __future__ import annotations

import hmac
from typing import Final

__all__ = ("Secret",)


class Secret:
    """Text that must not reach a log, an exception, a metric or a child's environment.

    Its ``repr`` and ``str`` are ``***``; :meth:`reveal` is the one way to the text, so a reader can
    find every place that uses it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text: Final = text

    def reveal(self) -> str:
        """The text itself. Call it only where the text goes on the wire or into a signature."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not pickled: pass the text on with reveal() where it is meant to go")
