"""How a job's progress looks: a live line on a terminal, a plain line for each change elsewhere."""

from __future__ import annotations

import json
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posemesh.cli._client import JobView, printable

__all__ = ("Progress",)

_PERCENT: Final = ("pct", "percent")
_TEXT_CHARS: Final = 200


class Progress:
    """Writes to stderr, so that stdout holds nothing but results. Use as ``with``."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True) if self._console.is_terminal else None
        self._last = ""
        self._events_shown: dict[str, int] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, view: JobView) -> None:
        """The job as it stands now, and the events that are new."""
        for task in view.tasks:
            self._show_events(task)
        self._update(describe(view), percent(view))

    def trouble(self, text: str) -> None:
        """A passing trouble of the service."""
        self._update(f"waiting for the service: {printable(text)}", None)

    def _show_events(self, task: dict[str, Any]) -> None:
        events = _meta(task).get("events")
        if not isinstance(events, list):
            return
        key = str(task.get("id", ""))
        shown = self._events_shown.get(key, 0)
        # Services keep the latest events only: fewer than were shown means that the count began anew.
        for event in events[shown if shown <= len(events) else 0 :]:
            self._line(f"  {_compact(event)}")
        self._events_shown[key] = len(events)

    def _update(self, line: str, done: float | None) -> None:
        if self._live is not None:
            row = Table.grid(padding=(0, 1))
            bar = "" if done is None else ProgressBar(total=100, completed=done, width=24)
            row.add_row(Spinner("dots"), Text(line, overflow="ellipsis", no_wrap=True), bar)
            self._live.update(row, refresh=True)
        elif line != self._last:
            self._line(line)
        self._last = line

    def _line(self, line: str) -> None:
        if self._live is not None:
            self._console.print(Text(line), soft_wrap=True)
        else:
            click.echo(line, err=True)


def describe(view: JobView) -> str:
    """One line: where the job is, how often it was tried, and what its workers last said."""
    parts = [view.status]
    done = sum(task.get("status") == "completed" for task in view.tasks)
    if len(view.tasks) > 1:
        parts.append(f"{done}/{len(view.tasks)} tasks")
    for task in view.tasks:
        if not view.ended and task.get("status") not in ("completed", "canceled", view.status):
            parts.append(str(task.get("status")))
        attempts = task.get("attempts")
        if isinstance(attempts, int) and attempts > 1:
            parts.append(f"attempt {attempts}")
        if (progress := _meta(task).get("progress")) not in (None, {}, []):
            parts.append(_compact(progress))
    return printable(" · ".join(parts))


def percent(view: JobView) -> float | None:
    """How much of a one-task job is done, where its worker says so as ``pct`` or ``percent``."""
    progress = _meta(view.tasks[0]).get("progress") if len(view.tasks) == 1 else None
    values = [progress.get(key) for key in _PERCENT] if isinstance(progress, dict) else []
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return min(100.0, max(0.0, float(numbers[0]))) if numbers else None


def _meta(task: dict[str, Any]) -> dict[str, Any]:
    meta = task.get("meta")
    return meta if isinstance(meta, dict) else {}


def _compact(value: Any) -> str:
    """JSON for a human: an object's fields as ``name value``, all on one short line."""
    if isinstance(value, dict):
        text = " ".join(f"{key} {_compact(inner)}" for key, inner in value.items())
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = printable(text)
    return text if len(text) <= _TEXT_CHARS else text[: _TEXT_CHARS - 1] + "…"
