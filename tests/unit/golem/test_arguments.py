"""The command line: what supervisors pass, what a runtime adds, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from posemesh.golem.arguments import Cli, Leave, Option, Parser, Positional

OWN = (
    Option("--level", "-l", kind=int, default=3, help="How much"),
    Option("--verbose", "-v", flag=True),
    Option("--mount", many=True),
    Positional("path", help="Where"),
)
PARSER = Parser("render", "1.2.3", "Renders.", OWN)


def parse(line: str, parser: Parser = PARSER) -> Cli:
    return parser.parse(line.split())


def refused(line: str, parser: Parser = PARSER) -> str:
    with pytest.raises(Leave) as leave:
        parse(line, parser)
    assert leave.value.code == 1
    return leave.value.text


def test_what_nobody_says_has_its_default() -> None:
    cli = parse("test")
    assert (cli.command, cli.args, cli.workdir) == ("test", (), None)
    assert vars(cli.runtime) == {"level": 3, "verbose": False, "mount": [], "path": None}
    assert cli.task_package is cli.cpu_cores is cli.volume_override is None


@pytest.mark.parametrize("form", ["-w /W", "-w/W", "-w=/W", "--workdir /W", "--workdir=/W"])
def test_the_work_directory_has_every_form(form: str) -> None:
    assert parse(f"{form} deploy").workdir == Path("/W")


@pytest.mark.parametrize("command", ["deploy", "start", "run x", "offer-template", "test"])
def test_what_supervisors_pass_is_taken_before_any_subcommand(command: str) -> None:
    cli = parse(
        "--workdir /W --task-package hash:sha3:00:http://a/b --cpu-cores 4 --mem-gib 0.5 --storage-gib 10"
        ' --volume-override {"/a":{"host":{}}} --hostname here --vpn-endpoint udp://127.0.0.1:1'
        f" --inet-endpoint udp://127.0.0.1:2 {command}"
    )
    assert cli.command == command.split()[0]
    assert (cli.task_package, cli.cpu_cores, cli.mem_gib) == ("hash:sha3:00:http://a/b", 4, 0.5)
    assert (cli.storage_gib, cli.volume_override, cli.hostname) == (10.0, {"/a": {"host": {}}}, "here")
    assert (cli.vpn_endpoint, cli.inet_endpoint) == ("udp://127.0.0.1:1", "udp://127.0.0.1:2")


def test_a_runtime_has_options_and_positionals_of_its_own() -> None:
    cli = parse("--mount a -vl7 --mount=b here deploy")
    assert vars(cli.runtime) == {"level": 7, "verbose": True, "mount": ["a", "b"], "path": "here"}
    assert vars(parse("-w /W here -v -l 1 deploy").runtime)["path"] == "here"


def test_an_option_that_a_runtime_declares_is_its_own() -> None:
    parser = Parser("render", "1", own=[Option("--hostname", required=True)])
    assert parse("--hostname x test", parser).runtime.hostname == "x"
    assert parse("--hostname x test", parser).hostname is None
    assert "required arguments were not provided:\n    --hostname <hostname>" in refused("test", parser)


def test_the_first_word_that_is_a_subcommand_is_one() -> None:
    assert parse("deploy").runtime.path is None
    assert parse("here deploy").args == ()


@pytest.mark.parametrize(
    ("line", "args"),
    [
        ("run ls", ("ls",)),
        ("run ls a b", ("ls", "a", "b")),
        ("run -- ls -la", ("ls", "-la")),
        ("run ls -- -la -- x", ("ls", "-la", "--", "x")),
        ("run --entrypoint ls -- -la", ("ls", "-la")),
        ("run --entrypoint=ls", ("ls",)),
        ("deploy --", ()),
        ("deploy -- --what", ("--what",)),
        ("start -- --foo", ("--foo",)),
        ("start --foo -x bar", ("--foo", "-x", "bar")),  # servers are started so
        ("start a -- b", ("a", "b")),
        ("run -", ("-",)),
    ],
)
def test_what_stands_behind_the_subcommand(line: str, args: tuple[str, ...]) -> None:
    assert parse(line).args == args


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("run -l", "Found argument '-l' which wasn't expected, or isn't valid in this context"),
        ("deploy --workdir /W", "Found argument '--workdir' which wasn't expected, or isn't valid in this context"),
        ("--unknown=1 deploy", "Found argument '--unknown' which wasn't expected, or isn't valid in this context"),
        ("-w a --workdir b test", "'--workdir <DIR>' was provided more than once, but cannot be used multiple times"),
        ("test --entrypoint x", "Found argument '--entrypoint' which wasn't expected, or isn't valid in this context"),
        ("run --entrypoint", "'--entrypoint <PROGRAM>' is given once, with a value"),
        ("--workdir", "'--workdir <DIR>' requires a value but none was supplied"),
        ("--workdir --verbose test", "'--workdir <DIR>' requires a value but none was supplied"),
        ("--verbose=1 test", "'--verbose' takes no value"),
        ("--cpu-cores many test", "Invalid value for '--cpu-cores <N>'"),
        ("--volume-override [] test", "Invalid value for '--volume-override <JSON>': expected a JSON object"),
        ("--level x test", "Invalid value for '--level <level>'"),
    ],
)
def test_a_wrong_line_says_what_is_wrong_and_how_to_use_it(line: str, problem: str) -> None:
    text = refused(line)
    assert text.startswith("error: ") and problem in text.splitlines()[0]
    assert text.endswith("\n\nUSAGE:\n    render [OPTIONS] [path] <SUBCOMMAND>\n\nFor more information try --help\n")


@pytest.mark.parametrize("line", ["", "-w /W", "here", "here there", "-- deploy", "-- here deploy"])
def test_without_a_subcommand_that_is_one_all_of_the_help_is_printed(line: str) -> None:
    assert refused(line).endswith(PARSER.help())


def test_a_run_of_nothing_has_its_own_words() -> None:
    assert refused("run") == "Error: not enough arguments\n"
    assert refused("run --") == "Error: not enough arguments\n"


@pytest.mark.parametrize("line", ["-h", "--help", "help", "-w /W --help", "deploy --help", "run -h"])
def test_help_is_no_error(line: str) -> None:
    with pytest.raises(Leave) as leave:
        parse(line)
    assert (leave.value.text, leave.value.code) == (PARSER.help(), 0)


@pytest.mark.parametrize("line", ["-V", "--version"])
def test_the_version_is_one_line(line: str) -> None:
    with pytest.raises(Leave) as leave:
        parse(line)
    assert (leave.value.text, leave.value.code) == ("render 1.2.3\n", 0)


def test_help_names_all_there_is() -> None:
    text = PARSER.help()
    assert text.startswith("render 1.2.3\nRenders.\n\nUSAGE:\n")
    for part in ("-w, --workdir <DIR>", "-l, --level <level>", "<path>", "offer-template", "--task-package <PACKAGE>"):
        assert part in text


def test_an_option_without_a_name_that_is_one_is_refused() -> None:
    with pytest.raises(ValueError, match="named --NAME or -N"):
        Option("level")
