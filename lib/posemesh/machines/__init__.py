"""The lifecycles of a node, one file each. MACHINES.md beside this file draws them."""

from __future__ import annotations

__all__ = ()
