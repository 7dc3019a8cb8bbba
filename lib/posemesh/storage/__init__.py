"""Inputs and artifacts of a task, on the lease's domain server."""

from __future__ import annotations

__all__ = ()
