"""Where a runner runs."""

from __future__ import annotations

__all__ = ()
