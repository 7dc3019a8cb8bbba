"""``posemesh-node run``."""

from __future__ import annotations

import click

import posemesh
from posemesh.target import load_target

__all__ = ("run",)

_EXAMPLES = """\b
Examples:
  posemesh-node run hello.py                         the `node` in hello.py
  posemesh-node run fleet.nodes:gpu                  `gpu` in the module fleet.nodes
  posemesh-node run hello.py --env-file node.env     with the settings of node.env
  ENABLE_NOOP=true posemesh-node run                 a node of the environment alone
"""


@click.command(epilog=_EXAMPLES)
@click.argument("target", required=False)
@click.option("--env-file", metavar="F", help="Settings beside the environment's, in place of ./.env.")
def run(target: str | None, env_file: str | None) -> None:
    """Run a node until it is told to stop.

    TARGET is a Python file or a module, either with :attribute, that holds a posemesh.Node; the attribute is
    `node` where it is left out. Without TARGET the node offers what the environment says.

    SIGTERM or Ctrl-C lets running tasks end within DRAIN_TIMEOUT_SECS; a second one cancels them.
    """
    node = posemesh.Node() if target is None else load_target(target, posemesh.Node)
    node.run(env_file=env_file)
