"""``posemesh-node ledger``."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from posemesh.cli._client import printable
from posemesh.config import NodeConfig
from posemesh.control import tables
from posemesh.control.audit import audit
from posemesh.control.database import reading
from posemesh.control.history import ONLY, Found, concerning, latest
from posemesh.control.soundness import FILE, has_log
from posemesh.control.store import InputRow, LedgerCorrupt, OutboxRow, Row
from posemesh.errors import ConfigError
from posemesh.shell.signer import Signer
from posemesh.storage.workspace import state_dir

__all__ = ("ledger",)

_EXAMPLES: Final = """\b
Examples:
  posemesh-node ledger ls                            what was leased, the latest first
  posemesh-node ledger ls --only waiting             what the service has not answered to
  posemesh-node ledger ls --only stuck --json        for other programs
  posemesh-node ledger show 0198c7a2                 all about a task, by the beginning of its id
  posemesh-node ledger verify --state /var/lib/node  whether all of it can be read
"""
_SECRETS: Final = frozenset({"access_token", "reg_secret", "token", "secret"})
_COUNT: Final = click.IntRange(1, 2**63 - 1)
_UNDER_WAY, _WAITING = "under way", "waiting"
_COLUMNS: Final = ("task", "capability", "leased", "state", "why")


@click.group(epilog=_EXAMPLES)
def ledger() -> None:
    """What is on record: what was leased, how it ended, what waits, what is stuck and why.

    It only reads, also while the node runs. It ends with 0 when done, 1 when something cannot be read or is not
    there, 2 when the usage or the configuration is wrong.
    """


def _state(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """As the node reads the variable."""
    text = str(value or "").strip()
    return Path(text).expanduser() if text else None


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("expected text, got bytes that are none") from None
    return value


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--env-file", metavar="F", help="Settings beside the environment's, in place of ./.env."),
        click.option(
            "--state",
            metavar="DIR",
            envvar="STATE_DIR",
            type=click.Path(file_okay=False, path_type=Path),
            callback=_state,
            help="The node's STATE_DIR; without it that of the node which the environment describes.",
        ),
    ):
        command = option(command)
    return command


@ledger.command(epilog=_EXAMPLES)
@click.option("--only", type=click.Choice(tuple(ONLY)), help="Only what is under way, waits, or ended so.")
@click.option("--runtime", metavar="NAME", callback=_name, help="Only this one of the nodes that share the ledger.")
@click.option("--limit", metavar="N", type=_COUNT, default=100, show_default=True, help="At most so many.")
@_options
def ls(
    only: str | None, runtime: str | None, limit: int, state: Path | None, env_file: str | None, as_json: bool
) -> None:
    """List what was leased, the latest first by the time on record.

    What it lists is looked over; whether all else can be read, `ledger verify` tells.
    """
    with reading(_directory(state, env_file)) as db:
        found = list(latest(db, limit, only=only, runtime=runtime))
    lines = [
        _line(row, entry if isinstance(entry, OutboxRow) else None) for row, entry in found if isinstance(row, InputRow)
    ]
    if as_json:
        click.echo(json.dumps(lines, indent=2))
    else:
        _print_table([{**line, "why": _why(line)} for line in lines])
    _complain(each for pair in found for each in pair)


@ledger.command(epilog=_EXAMPLES)
@click.argument("id", callback=_name)
@_options
def show(id: str, state: Path | None, env_file: str | None, as_json: bool) -> None:
    """Show all that is on record about a task.

    ID is a task, an input, a run, an outbox entry, or the beginning of one. Tokens are never shown.
    """
    directory = _directory(state, env_file)
    with reading(directory) as db:
        found = list(concerning(db, id))
    if not found:
        raise click.ClickException(f"nothing in {directory / FILE} begins with {id}; `ledger ls` lists what there is")
    rows = [row for row in found if not isinstance(row, LedgerCorrupt)]
    shown = [{"table": tables.NAMES[type(row)], **_shown(row)} for row in rows]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo("\n\n".join(_text(each) for each in shown))
    _complain(found)


@ledger.command(epilog=_EXAMPLES)
@_options
def verify(state: Path | None, env_file: str | None, as_json: bool) -> None:
    """Look whether all of it can be read.

    Looks over every page and row, and what rows say of one another. Nothing is changed.
    """
    directory = _directory(state, env_file)
    with reading(directory) as db:
        problems = audit(db)
        counts = {} if problems else {name: _count(db, name) for name in tables.NAMES.values()}
    if as_json:
        click.echo(json.dumps({"sound": not problems, "rows": counts, "problems": problems}, indent=2))
    elif not problems:
        click.echo(f"{directory / FILE} is sound: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    else:
        click.echo("\n".join(printable(problem) for problem in problems))
    if problems:
        raise click.ClickException(f"{directory / FILE} is damaged: {len(problems)} problem(s); restore a copy of it")


# --- Reading ------------------------------------------------------------------------------------------------------


def _directory(state: Path | None, env_file: str | None) -> Path:
    """Where the node keeps its state."""
    if state is None:
        try:
            config = NodeConfig.from_env(env_file=env_file)
        except ConfigError as error:
            raise ConfigError([*error.problems, "or name the node's directory: --state DIR"]) from None
        state = state_dir(config.state_dir, Signer(config.secp256k1_privhex).address)
    if state is None:
        raise ConfigError(["STATE_DIR: expected a directory, there is no home to look in; or give --state DIR"])
    if not (state / FILE).exists() and not has_log(state / FILE):
        raise click.UsageError(
            f"there is no ledger in {state}; expected the STATE_DIR of a node that has run (--state)"
        )
    return state


def _count(db: sqlite3.Connection, name: str) -> int:
    (count,) = db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()
    return int(count)


def _complain(found: Iterable[Found | None]) -> None:
    if problems := [printable(str(each)) for each in found if isinstance(each, LedgerCorrupt)]:
        raise click.ClickException("\n".join(problems))


# --- Showing ------------------------------------------------------------------------------------------------------


def _line(row: InputRow, delivery: OutboxRow | None) -> dict[str, Any]:
    if row.open:
        state = _UNDER_WAY
    elif delivery is None:
        state = row.phase
    else:
        state = delivery.ending or _WAITING
    return {
        "task": row.task or row.id,
        "capability": row.capability,
        "leased": _time(row.created),
        "state": state,
        "reason": row.reason if not row.open else row.phase,
        "updated": _time(max(row.updated, delivery.updated if delivery else 0)),
        "runtime": row.runtime,
        "input": row.id,
        "kind": row.kind,
        "phase": row.phase,
        "fence": row.fence,
        "run": row.run,
        "delivery": {
            "id": delivery.id if delivery else None,
            "ending": delivery.ending if delivery else None,
            "problem": delivery.problem if delivery else "",
        },
    }


def _why(line: dict[str, Any]) -> str:
    """What stood in a delivery's way until it was taken is of the past."""
    problem = "" if line["state"] == "delivered" else line["delivery"]["problem"]
    return str(problem or line["reason"])


def _print_table(lines: list[dict[str, Any]]) -> None:
    if not lines:
        click.echo("nothing is on record")
        return
    columns = _COLUMNS if len({line["runtime"] for line in lines}) == 1 else ("runtime", *_COLUMNS)
    texts = [{name: printable(str(line[name])) for name in columns} for line in lines]
    widths = {name: max(len(name), *(len(text[name]) for text in texts)) for name in columns}
    for text in [{name: name.upper() for name in columns}, *texts]:
        click.echo("  ".join(text[name].ljust(widths[name]) for name in columns).rstrip())


def _shown(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.structs.asdict(row)
    values.update((name, _time(values[name])) for name in ("created", "updated") if name in values)
    try:
        body = _without_secrets(json.loads(row.body))
    except ValueError:
        body = "no JSON"
    except RecursionError:
        body = "nested too deep to be shown"
    return {**values, "body": body}


def _without_secrets(value: Any) -> Any:
    match value:
        case dict():
            return {
                name: "***" if name in _SECRETS and each is not None else _without_secrets(each)
                for name, each in value.items()
            }
        case list():
            return [_without_secrets(each) for each in value]
    return value


def _without_blanks(value: Any) -> Any:
    """What people need not see: fields that say nothing."""
    match value:
        case dict():
            return {name: _without_blanks(each) for name, each in value.items() if each not in (None, "", [], {})}
        case list():
            return [_without_blanks(each) for each in value]
    return value


def _text(shown: dict[str, Any]) -> str:
    body = shown.pop("body")
    lines = [f"{shown.pop('table')}"]
    lines += [f"  {name:<10} {printable(str(value))}" for name, value in shown.items() if value not in (None, "")]
    lines += [f"  {line}" for line in json.dumps(_without_blanks(body), indent=2).splitlines()]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
