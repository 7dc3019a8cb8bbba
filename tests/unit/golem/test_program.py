"""What a program knows before it calls a handler."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posemesh import golem
from posemesh.golem.arguments import Leave
from posemesh.golem.errors import SettingsError
from posemesh.golem.program import main, prepare


@dataclass
class Config:
    value: int = 3


class MyRuntime(golem.Runtime):
    CONFIG = Config


class Args(golem.Env):
    def __init__(self, line: str, folder: Path) -> None:
        self._line = line
        self._folder = folder

    def args(self) -> Sequence[str]:
        return self._line.split()

    def data_directory(self, name: str) -> Path:
        return self._folder / name


def test_a_runtime_is_named_after_its_class_if_it_has_no_name(tmp_path: Path) -> None:
    setup = prepare(MyRuntime, Args("test", tmp_path))
    assert setup.conf_path == str(tmp_path / "my-runtime" / "my-runtime.json")
    assert setup.conf == Config()

    with pytest.raises(Leave) as leave:
        prepare(MyRuntime, Args("--version", tmp_path))
    assert leave.value.text == "my-runtime 0.1.0\n"


def test_the_environment_names_the_configuration_and_knows_the_command_line(tmp_path: Path) -> None:
    class Named(Args):
        name: str | None = None

        def cli(self, parser: golem.Parser) -> golem.Cli:
            cli = super().cli(parser)
            self.name = cli.runtime.name
            return cli

        def runtime_name(self) -> str | None:
            return self.name

    class Positional(MyRuntime):
        ARGUMENTS = (golem.Positional("name"),)

    assert prepare(Positional, Named("other test", tmp_path)).conf_path == str(tmp_path / "other" / "other.json")
    assert prepare(Positional, Named("test", tmp_path)).conf_path.endswith("/positional.json")


@pytest.mark.parametrize(
    ("config", "default"),
    [(None, {}), (Config, Config(3)), (Config(5), Config(5))],
)
def test_without_a_file_the_default_holds_and_with_one_the_file(tmp_path: Path, config: Any, default: Any) -> None:
    class Configured(golem.Runtime):
        NAME = "name"
        CONFIG = config

    assert prepare(Configured, Args("test", tmp_path)).conf == default
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "name.json").write_text(json.dumps({"value": 7}))
    found = prepare(Configured, Args("test", tmp_path)).conf
    assert found == ({"value": 7} if config is None else Config(7))


def test_a_configuration_without_a_default_says_how_to_have_one(tmp_path: Path) -> None:
    @dataclass
    class Needed:
        value: int

    class Configured(golem.Runtime):
        CONFIG = Needed

    with pytest.raises(SettingsError, match="set CONFIG to an instance"):
        prepare(Configured, Args("test", tmp_path))


@pytest.mark.parametrize(("line", "code"), [("--help", 0), ("--version", 0), ("", 1), ("test --what", 1)])
def test_what_is_only_printed_goes_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, code: int
) -> None:
    assert main(MyRuntime, Args(line, tmp_path)) == code
    printed = capsys.readouterr()
    assert bool(printed.err) is bool(code) and bool(printed.out) is not bool(code)


@pytest.mark.parametrize("command", ["deploy", "start", "run x", "test", "offer-template"])
def test_a_broken_configuration_fails_every_subcommand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "my-runtime").mkdir()
    path = tmp_path / "my-runtime" / "my-runtime.toml"
    path.write_text("{}")
    assert main(MyRuntime, Args(command, tmp_path)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"Error: Unable to read the configuration file: {path}\n\nCaused by:\n    ")
