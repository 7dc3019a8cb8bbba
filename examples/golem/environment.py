#!/usr/bin/env python3
"""A Golem runtime whose name, and with it the place of its configuration, is an argument.

python environment.py [NAME] --workdir W deploy
python environment.py [NAME] --workdir W start
"""

from __future__ import annotations

import unicodedata

from posemesh import golem


class EnvironmentRuntime(golem.Runtime):
    """An example of a runtime that is named by its command line."""

    NAME = "environment"
    VERSION = "0.1.0"
    ARGUMENTS = (golem.Positional("name", help="What the runtime and its configuration are called"),)

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[None]) -> int:
        return ctx.command(lambda run: run.stdout(f"[{shown(command)}] stdout"))


class NamedByArgument(golem.Env):
    def __init__(self) -> None:
        self._name: str | None = None

    def cli(self, parser: golem.Parser) -> golem.Cli:
        cli = super().cli(parser)
        self._name = cli.runtime.name
        return cli

    def runtime_name(self) -> str | None:
        return self._name


def shown(command: golem.RunProcess) -> str:
    """A request as Rust's Debug writes it."""
    args = ", ".join(map(quoted, command.args))
    streams = f"stdout: {capture(command.stdout)}, stderr: {capture(command.stderr)}"
    return (
        f"RunProcess {{ bin: {quoted(command.bin)}, args: [{args}], work_dir: {quoted(command.work_dir)}, {streams} }}"
    )


def capture(output: golem.Output | None) -> str:
    if output is None:
        return "None"
    kind = "None" if output.at_end is None else f"Some(AtEnd({output.at_end}))"
    return f"Some(Output {{ r#type: {kind} }})"


ESCAPES = {"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def quoted(text: str) -> str:
    return f'"{"".join(map(shown_char, text))}"'


def shown_char(char: str) -> str:
    # What is put over the character before it has no place of its own.
    plain = char.isprintable() and unicodedata.category(char) not in ("Mn", "Me")
    return ESCAPES.get(char) or (char if plain else f"\\u{{{ord(char):x}}}")


if __name__ == "__main__":
    golem.run(EnvironmentRuntime, NamedByArgument())
