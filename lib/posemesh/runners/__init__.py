"""How user code meets the node."""

from __future__ import annotations

__all__ = ()
