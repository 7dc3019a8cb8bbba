"""Hosted nodes: what each has taken, how it ended, and what the service is still to hear."""

from __future__ import annotations

__all__ = ()
