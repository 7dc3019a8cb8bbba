"""What every runner of a router is built with: variables for programs, and where to count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from posemesh.runners.metrics import MetricsHandle, noop_metrics

__all__ = ("BuildContext", "Env", "merge_env")

Env: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Environment variables. Of pairs with one name the last counts."""


@dataclass(frozen=True, slots=True, repr=False)
class BuildContext:
    """``env`` may hold secrets, so nothing shows its values. ``slot`` is the lane of the runner that the task gets, for
    its :class:`RunId`: the lowest free number, as text.
    """

    env: tuple[tuple[str, str], ...] = ()
    metrics: MetricsHandle = field(default_factory=noop_metrics)
    slot: str = "0"

    def __repr__(self) -> str:
        return f"<BuildContext slot {self.slot}, {len(self.env)} environment variables, {self.metrics!r}>"


def merge_env(*, task: Env = (), context: Env = (), runner: Env = ()) -> dict[str, str]:
    """One environment, its names sorted: what the runner says beats the context, which beats the task."""
    merged: dict[str, str] = {}
    for layer in (task, context, runner):
        merged.update(layer)
    return dict(sorted(merged.items()))
