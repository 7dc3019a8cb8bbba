"""The protocol's bytes and nothing else: each module turns requests into bytes and answers into records.

No sockets, no clock, no state. What does not have the protocol's form raises
:class:`posemesh.errors.WireError` (or a class below it) with the field and what was expected, never a token.
"""

from __future__ import annotations

__all__ = ()
