"""``posemesh-node devnet``."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Final

import click
import msgspec
from dotenv import dotenv_values
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posemesh.devnet import Devnet, DevnetConfig

__all__ = ("devnet",)

PORT: Final = 8470

_EXAMPLES = """\b
Examples:
  posemesh-node devnet                              what it keeps is in .devnet
  posemesh-node devnet --data /tmp/net --port 0     elsewhere, on any free port
"""


class _WrongUsage(click.ClickException):
    exit_code = 2


@click.command(epilog=_EXAMPLES)
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes any free one.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".devnet"),
    show_default=True,
    help="What the network keeps, and the settings for a node (node.env) and for submit (app.env).",
)
def devnet(port: int, data: Path) -> None:
    """Run a whole local network: DDS, DMS and a domain server on loopback.

    It is as strict as the real one, and prints what a correct node would never send. What is in DIR survives
    a restart, the node's wallet included.
    """
    _check(port, data)
    try:
        asyncio.run(_run(port, data))
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise _WrongUsage(f"{data} cannot be used: {error}; end its other user, or take another with --data") from None


def _check(port: int, data: Path) -> None:
    """Before anything is made in ``data``."""
    try:
        str(data.resolve()).encode()  # it is written into node.env
    except UnicodeEncodeError:
        raise _WrongUsage("expected a directory whose path is UTF-8; take another with --data") from None
    try:
        socket.create_server((DevnetConfig().host, port)).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise _WrongUsage(f"port {port} cannot be used: {why}; end what uses it, or take another with --port") from None
    try:
        data.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=data).close()
    except OSError as error:
        raise _WrongUsage(f"{data} cannot be written into: {error.strerror}; take another with --data") from None


async def _run(port: int, data: Path) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    # A terminal's width must not break a command that is there to be copied.
    console = Console(highlight=False, soft_wrap=True)
    config = DevnetConfig(port=port, data_dir=data)
    async with Devnet(config, on_violation=lambda text: console.print(Text(f"violation: {text}", "red"))) as net:
        node_env, app_env = data / "node.env", data / "app.env"
        key = _wallet(node_env)
        if key is None:
            # The network knows its node by the wallet that is gone.
            net.dds.forget_wallets()
        settings = net.node_settings(key or f"{secrets.randbelow(2**255) + 1:064x}")
        _write(node_env, {**settings, "STATE_DIR": str((data / "state").resolve())})
        _write(app_env, net.app_settings())
        _announce(console, net, node_env, app_env)
        await ended.wait()
    console.print("the network has ended")


def _wallet(path: Path) -> str | None:
    """The key a node was given before, so that it stays the same node."""
    found = dotenv_values(path).get("SECP256K1_PRIVHEX") if path.exists() else None
    return found if found and re.fullmatch(r"[0-9a-f]{64}", found) else None


def _write(path: Path, settings: dict[str, str]) -> None:
    """At once and for the owner alone: it holds a wallet's key or a token."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in settings.items())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _program() -> str:
    """What starts it again from here: as it was typed where a checkout's program tells that, else by its name."""
    typed = os.environ.get("POSEMESH_PROGRAM")
    return shlex.quote(typed or ("posemesh-node" if shutil.which("posemesh-node") else sys.argv[0]))


def _announce(console: Console, net: Devnet, node_env: Path, app_env: Path) -> None:
    program = _program()
    run = f"{program} run --env-file {shlex.quote(str(node_env))}"
    submit = f"{program} submit /posemesh/noop/v1 --wait --env-file {shlex.quote(str(app_env))}"
    where = Table.grid(padding=(0, 2))
    for what, url in (("DDS", net.url), ("DMS", net.dms_url), ("domain server", net.url), ("domain", net.domain_id)):
        where.add_row(what, url)
    console.print("a local network is up; Ctrl-C ends it")
    console.print(where)
    console.print("\nin a second terminal, a node (with a file of yours after `run` instead of the no-op):")
    console.print(f"  ENABLE_NOOP=true {run}\nin a third, a job for it:\n  {submit}")
