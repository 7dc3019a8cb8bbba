"""``posemesh-node devnet``."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import shlex
import shutil
import signal
import sqlite3
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
    try:
        asyncio.run(_run(port, data))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise _WrongUsage(f"port {port} is in use; end what uses it, or take another with --port") from None
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise _WrongUsage(f"{data} cannot be used: {error}; end its other user, or take another with --data") from None


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
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in settings.items())
    part.replace(path)


def _announce(console: Console, net: Devnet, node_env: Path, app_env: Path) -> None:
    program = "posemesh-node" if shutil.which("posemesh-node") else "bin/posemesh-node"
    run = f"{program} run --env-file {shlex.quote(str(node_env))}"
    submit = f"{program} submit /posemesh/noop/v1 --wait --env-file {shlex.quote(str(app_env))}"
    where = Table.grid(padding=(0, 2))
    for what, url in (("DDS", net.url), ("DMS", net.dms_url), ("domain server", net.url), ("domain", net.domain_id)):
        where.add_row(what, url)
    console.print("a local network is up; Ctrl-C ends it")
    console.print(where)
    console.print("\nin a second terminal, a node (with a file of yours after `run` instead of the no-op):")
    console.print(f"  ENABLE_NOOP=true {run}\nin a third, a job for it:\n  {submit}")
