"""``posemesh-node golem``."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from posemesh.cli._client import printable
from posemesh.cli._debugger import Debugger
from posemesh.golem.supervisor import CommandLine, RuntimeMode

__all__ = ("golem",)

VERSION_SECS: Final = 30.0
_DEBUG_EXAMPLES: Final = """\b
Examples:
  posemesh-node golem debug -- ./ya-runtime-thing                      each line is one for bash
  posemesh-node golem debug --exec-mode exec -w /tmp/w -- ./runtime    each line is a program and its arguments
  echo 'ls -l' | posemesh-node golem debug -- ./runtime --own-option
"""
_DESCRIBE_EXAMPLES: Final = """\b
Examples:
  posemesh-node golem describe ./ya-runtime-thing > ~/.local/lib/yagna/plugins/ya-runtime-thing.json
  posemesh-node golem describe ./ya-runtime-thing --preset      an entry for presets.json
"""
_SEMVER: Final = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_COUNTERS: Final[dict[str, Any]] = {
    "golem.usage.duration_sec": {"name": "duration", "description": "Seconds since the start", "price": True},
    "golem.usage.cpu_sec": {"name": "cpu", "description": "Seconds of CPU time", "price": True},
    "golem.usage.storage_gib": {"name": "storage", "description": "GiB of storage", "price": False},
}
"""What providers count where a descriptor says nothing of counters."""


@click.group()
def golem() -> None:
    """Golem runtimes: try one by hand, and describe it to a provider.

    It ends with 0 when done, 1 when the runtime failed, 2 when the usage is wrong.
    """


@golem.command(epilog=_DEBUG_EXAMPLES)
@click.option("-w", "--workdir", metavar="DIR", help="Its work directory; without it a new one, gone at the end.")
@click.option("-t", "--task-package", metavar="PACKAGE", help="What it is to deploy.")
@click.option(
    "--exec-mode", type=click.Choice(["shell", "exec"]), default="shell", show_default=True, help="What a line is."
)
@click.option("--exec-shell", metavar="NAME", default="bash", show_default=True, help="The shell in the runtime.")
@click.option("--no-deploy", is_flag=True, help="The work directory was deployed before.")
@click.option("--mode", type=click.Choice(["server", "command"]), help="How it runs, whatever its deploy would say.")
@click.option("--deploy-arg", "deploy_args", metavar="ARG", multiple=True, help="For its deploy; repeatable.")
@click.option("--start-arg", "start_args", metavar="ARG", multiple=True, help="For its start; repeatable.")
@click.argument("binary")
@click.argument("runtime_args", nargs=-1, type=click.UNPROCESSED)
def debug(
    workdir: str | None,
    task_package: str | None,
    exec_mode: str,
    exec_shell: str,
    no_deploy: bool,
    mode: str | None,
    deploy_args: tuple[str, ...],
    start_args: tuple[str, ...],
    binary: str,
    runtime_args: tuple[str, ...],
) -> None:
    """Deploy and start a runtime, and run each line of the input as a command of it.

    What commands write is shown as it comes, counters and states on stderr. C-c kills a command, a
    second one the runtime; C-d stops that.
    """
    if "/" not in binary and shutil.which(binary) is None and Path(binary).is_file():
        raise click.UsageError(
            f"expected a program on the PATH, got {binary}; for the file that is here give ./{binary}"
        )
    with tempfile.TemporaryDirectory(prefix="posemesh-golem-", ignore_cleanup_errors=True) as temporary:
        line = CommandLine(
            binary=binary,
            workdir=Path(workdir or temporary).resolve(),
            args=runtime_args,
            package=task_package,
        )
        shell = None if exec_mode == "exec" else exec_shell if "/" in exec_shell else f"/bin/{exec_shell}"
        debugger = Debugger(line, None if mode is None else RuntimeMode[mode.upper()], shell)
        asyncio.run(debugger.run(deploy=None if no_deploy else deploy_args, start=start_args))


@golem.command(epilog=_DESCRIBE_EXAMPLES)
@click.option("--name", metavar="NAME", help="Of the runtime; without it the one that `BINARY --version` says.")
@click.option("--version", metavar="X.Y.Z", help="Likewise.")
@click.option("--description", metavar="TEXT", help="A line for people.")
@click.option(
    "--supervisor-path",
    metavar="PATH",
    default="exe-unit",
    show_default=True,
    help="The exe-unit, as seen from the descriptor.",
)
@click.option("--runtime-arg", "runtime_args", metavar="ARG", multiple=True, help="An option of its own; repeatable.")
@click.option("--property", "properties", metavar="KEY=JSON", multiple=True, help="For its offers; repeatable.")
@click.option("--counter", "counters", metavar="KEY=NAME", multiple=True, help="A counter of its own; repeatable.")
@click.option("--price", "prices", metavar="KEY=NUMBER", multiple=True, help="Of a counter's unit, for --preset.")
@click.option("--preset", is_flag=True, help="Print the entry for presets.json instead.")
@click.argument("binary", type=click.Path(exists=True, dir_okay=False))
def describe(
    name: str | None,
    version: str | None,
    description: str | None,
    supervisor_path: str,
    runtime_args: tuple[str, ...],
    properties: tuple[str, ...],
    counters: tuple[str, ...],
    prices: tuple[str, ...],
    preset: bool,
    binary: str,
) -> None:
    """Print a runtime's descriptor, for the plugins directory of a provider, as a file named ya-*.json.

    The directory is ~/.local/lib/yagna/plugins for golemsp, /usr/lib/yagna/plugins for ya-provider. The runtime must
    stay where it is. A preset, which --preset prints, goes to "presets" in ~/.local/share/ya-provider/presets.json,
    and its name to "active" there.
    """
    path = Path(binary).resolve()
    if name is None or (version is None and not preset):
        known = _said_of_itself(str(path))
        name, version = name or known[0], version or known[1]
    own = dict(_pair("--counter", each) for each in counters)
    if preset:
        costs = {key: _number(key, value) for key, value in (_pair("--price", each) for each in prices)}
        shown: Any = _preset(name, [*own], costs)
    else:
        if version is None or not _SEMVER.fullmatch(version):
            raise click.UsageError(f"expected a version as 1.2.3, got {version}; give one with --version")
        shown = [
            {
                "name": name,
                "version": version,
                "supervisor-path": supervisor_path,
                "runtime-path": str(path),
                **({"description": description} if description else {}),
                "extra-args": ["--runtime-managed-image", *_passed_on(runtime_args)],
                **({"properties": dict(_property(each) for each in properties)} if properties else {}),
                **({"config": {"counters": _counters(own)}} if own else {}),
            }
        ]
    try:
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False))
    except ValueError:
        raise click.UsageError("expected numbers that JSON can hold, got one that is none or infinite") from None


def _said_of_itself(binary: str) -> tuple[str, str]:
    """The name and version that a runtime prints."""
    try:
        done = subprocess.run(
            [binary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=VERSION_SECS
        )
        words = done.stdout.split()
        if done.returncode == 0 and len(words) >= 2:
            return " ".join(words[:-1]), words[-1]
        problem = f"printed {done.stdout!r:.100} and ended with exit code {done.returncode}"
        if said := done.stderr.strip():
            problem += f"; the last line of its stderr: {printable(said.splitlines()[-1]):.300}"
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    raise click.UsageError(f"{binary} --version: expected a name and a version: {problem}; give --name and --version")


def _preset(name: str, counters: Sequence[str], prices: dict[str, float]) -> dict[str, Any]:
    priced = [key for key, counter in _COUNTERS.items() if counter["price"]]
    unknown = prices.keys() - {*priced, *counters}
    if unknown:
        raise click.UsageError(f"--price: no counter {', '.join(sorted(unknown))}; add it with --counter")
    return {
        "name": name,
        "exeunit-name": name,
        "pricing-model": "linear",
        "initial-price": 0.0,
        "usage-coeffs": {key: prices.get(key, 0.0) for key in (*priced, *counters)},
    }


def _counters(own: dict[str, str]) -> dict[str, Any]:
    """All of them: a descriptor that names any names all."""
    return _COUNTERS | {key: {"name": name, "description": name, "price": True} for key, name in own.items()}


def _passed_on(args: Sequence[str]) -> list[str]:
    return [word for arg in args for word in ("--runtime-arg", arg)]


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.UsageError(f"{option}: expected KEY=VALUE, got {text}")
    return key, value


def _property(text: str) -> tuple[str, Any]:
    key, value = _pair("--property", text)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise click.UsageError(f"--price {key}: expected a number, got {value}") from None
