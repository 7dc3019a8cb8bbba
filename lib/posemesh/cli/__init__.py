"""The command line, ``posemesh-node``. A command's module is imported when the command is used."""

from __future__ import annotations

import io
import os
import sys
import traceback
from importlib import import_module
from typing import Final

import click

import posemesh
from posemesh.errors import ConfigError, PosemeshError, TargetError
from posemesh.telemetry import scrub

__all__ = ("cli", "main")

_DONE: Final = 0
_FAILED: Final = 1
_WRONG_USAGE: Final = 2

# Each is the object of that name in posemesh.cli.<name>. The help is here so that `--help` imports none of them.
_COMMANDS: Final = {
    "devnet": "A whole local network: DDS, DMS and a domain server on loopback.",
    "diagram": "The machines' tables: write their page, check it, or print them.",
    "golem": "Golem runtimes: try one by hand, and describe it to a provider.",
    "ledger": "What a ledger has on record: what was leased, how it ended, what waits.",
    "run": "Run a node.",
    "submit": "Submit a job, and see it through.",
}

_EXAMPLES: Final = """\b
Examples:
  posemesh-node devnet --data /tmp/net                       a network to try things on
  posemesh-node run hello.py --env-file /tmp/net/node.env    a node that offers what hello.py holds
  posemesh-node submit /examples/hello/v1 --input a.txt --wait --out results
"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"posemesh.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(posemesh.__version__, prog_name="posemesh-node")
def cli() -> None:
    """A compute node for the posemesh.

    It leases tasks, runs them, and reports what came of them.
    It ends with 0 when done, 1 when it failed, 2 when the usage or the configuration is wrong.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(_code(args))


def _code(args: list[str] | None) -> int:
    try:
        code = cli.main(args=args, prog_name="posemesh-node", standalone_mode=False)
        return code if isinstance(code, int) else _DONE
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(scrub(shown.getvalue()), nl=False, err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted")
    except BrokenPipeError:  # `| head` has seen enough
        _give_up_output()
        return _FAILED
    except (ConfigError, TargetError) as error:
        return _failed(str(error), code=_WRONG_USAGE)
    except PosemeshError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(_refused_by_the_system(error))
    except Exception as error:
        return _failed(_unexpected(error))


def _failed(message: str, *, code: int = _FAILED) -> int:
    click.echo(scrub(f"posemesh-node: {message}"), err=True)
    return code


def _refused_by_the_system(error: OSError) -> str:
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals["__name__"] in ("click.utils", "rich.console"):  # they write nothing else
        _give_up_output()
        return f"what it prints cannot be written: {error.strerror}; make room, or send it elsewhere"
    if isinstance(error.filename, str) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _give_up_output() -> None:
    """Else the interpreter would write what is left once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"a fault of posemesh, please report it: {what} (at {last.filename}:{last.lineno})"
