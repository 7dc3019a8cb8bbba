"""The command line of a runtime: ``PROGRAM [options] [the runtime's own] SUBCOMMAND [arguments]``.

Options stand before the subcommand. Those that supervisors pass are taken before any of them, whether the runtime cares
or not. What stands behind ``start`` is arguments, with or without ``--`` before it, since a requestor chose it; behind
the others whatever begins with a dash needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("SUBCOMMANDS", "Argument", "Cli", "Leave", "Option", "Parser", "Positional")

SUBCOMMANDS: Final = {
    "deploy": "Deploy the runtime",
    "start": "Start the runtime",
    "run": "Run a command: run [--entrypoint PROGRAM] -- [PROGRAM] [ARGUMENTS]",
    "offer-template": "Print what the runtime adds to an offer",
    "test": "Test whether the runtime can work here",
    "help": "Print this text",
}


class Leave(Exception):
    """The program is over: ``text`` goes to stdout where ``code`` is 0, to stderr where it is not."""

    def __init__(self, text: str, code: int) -> None:
        self.text = text
        self.code = code
        super().__init__(text)


class Option:
    """``Option("--level", "-l", kind=int, default=3)`` is ``ctx.cli.runtime.level``.

    ``kind`` makes its value of text and raises ValueError where it cannot. A ``flag`` has none: it is True or False.
    What may be given ``many`` times is a list.
    """

    def __init__(
        self,
        *names: str,
        kind: Callable[[str], Any] = str,
        default: Any = None,
        required: bool = False,
        flag: bool = False,
        many: bool = False,
        metavar: str = "",
        help: str = "",
    ) -> None:
        if not names or not all(name.startswith("--") or (len(name) == 2 and name[0] == "-") for name in names):
            raise ValueError(f"an option is named --NAME or -N, got {', '.join(names) or 'no name'}")
        self.names = names
        self.title = next((name for name in names if name.startswith("--")), names[0])
        self.name = self.title.lstrip("-").replace("-", "_")
        self.kind = kind
        self.default = [] if many and default is None else False if flag and default is None else default
        self.required = required
        self.flag = flag
        self.many = many
        self.metavar = metavar or self.name
        self.help = help

    def __str__(self) -> str:
        return self.title if self.flag else f"{self.title} <{self.metavar}>"


class Positional:
    """``Positional("path")`` is ``ctx.cli.runtime.path``; ``kind`` as in :class:`Option`."""

    def __init__(
        self,
        name: str,
        *,
        kind: Callable[[str], Any] = str,
        default: Any = None,
        required: bool = False,
        help: str = "",
    ) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.required = required
        self.help = help

    def __str__(self) -> str:
        return f"<{self.name}>"


Argument: TypeAlias = Option | Positional


def _json_object(text: str) -> dict[str, Any]:
    import json

    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


_COMMON: Final = (
    Option("-w", "--workdir", metavar="DIR", help="Where the runtime keeps its files"),
    Option("--task-package", metavar="PACKAGE", help="What to deploy"),
    Option("--cpu-cores", kind=int, metavar="N", help="How many cores the runtime may use"),
    Option("--mem-gib", kind=float, metavar="GIB", help="How much memory it may use"),
    Option("--storage-gib", kind=float, metavar="GIB", help="How much storage it may use"),
    Option("--volume-override", kind=_json_object, metavar="JSON", help="What volumes are, by path"),
    Option("--hostname", metavar="NAME", help="The name of the machine inside"),
    Option("--vpn-endpoint", metavar="URL", help="Where packets of the private network come from"),
    Option("--inet-endpoint", metavar="URL", help="Where packets of the internet come from"),
)
_HELP: Final = Option("-h", "--help", flag=True, help="Print this text")
_VERSION: Final = Option("-V", "--version", flag=True, help="Print the version")


class Cli:
    """The command line as it was understood.

    ``command`` is the subcommand and ``args`` what it got: for ``run``, the program first, whichever way it was named.
    ``runtime`` has the runtime's own arguments, by their names. The rest is what the supervisor says, None where it
    does not.
    """

    command: str
    args: tuple[str, ...]
    runtime: SimpleNamespace
    task_package: str | None = None
    cpu_cores: int | None = None
    mem_gib: float | None = None
    storage_gib: float | None = None
    volume_override: dict[str, Any] | None = None
    hostname: str | None = None
    vpn_endpoint: str | None = None
    inet_endpoint: str | None = None

    def __init__(
        self, command: str, args: Sequence[str], runtime: SimpleNamespace, workdir: str | None = None, **common: Any
    ) -> None:
        self.command = command
        self.args = tuple(args)
        self.runtime = runtime
        self._workdir = workdir
        for name, value in common.items():
            setattr(self, name, value)

    @property
    def workdir(self) -> Path | None:
        """Where the runtime keeps its files."""
        from pathlib import Path  # not worth its time to a runtime that has no need of it

        return None if self._workdir is None else Path(self._workdir)

    def __repr__(self) -> str:
        return f"Cli({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Parser:
    """Reads the command line of the program ``name``, whose runtime has arguments of its own."""

    def __init__(self, name: str, version: str, about: str = "", own: Iterable[Argument] = ()) -> None:
        self.name = name
        self.version = version
        self.about = about
        own = tuple(own)
        self._own = own
        self._positionals = [each for each in own if isinstance(each, Positional)]
        mine = {each.name for each in own}
        self._common = [each for each in _COMMON if each.name not in mine]
        self._options = [*(each for each in own if isinstance(each, Option)), *self._common, _HELP, _VERSION]
        self._by_name: dict[str, Option] = {}
        for option in self._options:
            for each in option.names:
                self._by_name.setdefault(each, option)

    def parse(self, argv: Sequence[str]) -> Cli:
        """Raises Leave where there is something to print instead of something to do."""
        left = list(argv)
        given: dict[str, Any] = {}
        free = list(self._positionals)
        only_positionals = False
        while left:
            word = left.pop(0)
            if only_positionals or word == "-" or not word.startswith("-"):
                if word in SUBCOMMANDS and not only_positionals:
                    return self._subcommand(word, left, given)
                if not free:
                    raise Leave(f"error: {word!r} is no subcommand\n\n{self.help()}", 1)
                self._give(given, free.pop(0), word)
            elif word == "--":
                only_positionals = True
            else:
                self._option(word, left, given)
        raise Leave(self.help(), 1)

    def _option(self, word: str, left: list[str], given: dict[str, Any]) -> None:
        """Take in an option, with its value from behind it if need be."""
        if word.startswith("--"):
            name, mark, value = word.partition("=")
        else:
            name, value = word[:2], word[2:]
            mark, value = ("=", value.removeprefix("=")) if value else ("", "")
        option = self._by_name.get(name)
        if option is None:
            self._unexpected(name)
        if option is _HELP or option is _VERSION:
            raise Leave(self.help() if option is _HELP else f"{self.name} {self.version}\n", 0)
        if option.flag:
            if mark and word.startswith("--"):
                self._wrong(f"The argument '{option}' takes no value")
            given[option.name] = True
            if mark:
                self._option(f"-{value}", left, given)
            return
        if not mark:
            if not left or (left[0].startswith("-") and left[0] != "-"):
                self._wrong(f"The argument '{option}' requires a value but none was supplied")
            value = left.pop(0)
        self._give(given, option, value)

    def _give(self, given: dict[str, Any], argument: Argument, text: str) -> None:
        try:
            value = argument.kind(text)
        except ValueError as error:
            self._wrong(f"Invalid value for '{argument}': {error}")
        if isinstance(argument, Option) and argument.many:
            given.setdefault(argument.name, []).append(value)
        elif argument.name in given:
            self._wrong(f"The argument '{argument}' was provided more than once, but cannot be used multiple times")
        else:
            given[argument.name] = value

    def _subcommand(self, command: str, left: list[str], given: dict[str, Any]) -> Cli:
        if command == "help":
            raise Leave(self.help(), 0)
        args = self._arguments(command, left)
        missing = [each for each in self._own if each.required and each.name not in given]
        if missing:
            listed = "".join(f"\n    {each}" for each in missing)
            self._wrong(f"The following required arguments were not provided:{listed}")
        runtime = SimpleNamespace(**{each.name: given.get(each.name, each.default) for each in self._own})
        common = {each.name: given[each.name] for each in self._common if each.name in given}
        return Cli(command, args, runtime, **common)

    def _arguments(self, command: str, left: list[str]) -> list[str]:
        """What stands behind the subcommand."""
        if command == "start":
            if "--" in left:
                left.remove("--")
            return left
        args: list[str] = []
        entrypoint: list[str] = []
        while left:
            word = left.pop(0)
            name, mark, value = word.partition("=")
            if word == "--":
                args += left
                break
            if word in _HELP.names:
                raise Leave(self.help(), 0)
            if name == "--entrypoint" and command == "run":
                if entrypoint or not (mark or left):
                    self._wrong("The argument '--entrypoint <PROGRAM>' is given once, with a value")
                entrypoint = [value if mark else left.pop(0)]
            elif word.startswith("-") and word != "-":
                self._unexpected(name if word.startswith("--") else word[:2])
            else:
                args.append(word)
        if command == "run" and not entrypoint + args:
            raise Leave("Error: not enough arguments\n", 1)
        return entrypoint + args

    def _unexpected(self, name: str) -> NoReturn:
        self._wrong(f"Found argument '{name}' which wasn't expected, or isn't valid in this context")

    def _wrong(self, problem: str) -> NoReturn:
        raise Leave(f"error: {problem}\n\n{self._usage()}\n\nFor more information try --help\n", 1)

    def _usage(self) -> str:
        own = "".join(f" {each}" if each.required else f" [{each.name}]" for each in self._positionals)
        return f"USAGE:\n    {self.name} [OPTIONS]{own} <SUBCOMMAND>"

    def help(self) -> str:
        blocks = [f"{self.name} {self.version}", self._usage()]
        if self.about:
            blocks[0] += f"\n{self.about}"
        if self._positionals:
            blocks.append(_table("ARGS", [(str(each), each.help) for each in self._positionals]))
        options = [(_spelled(each), each.help) for each in self._options]
        blocks += [_table("OPTIONS", options), _table("SUBCOMMANDS", list(SUBCOMMANDS.items()))]
        return "\n\n".join(blocks) + "\n"


def _spelled(option: Option) -> str:
    value = "" if option.flag else f" <{option.metavar}>"
    return ", ".join(sorted(option.names, key=len)) + value


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join((f"{title}:", *(f"    {name:<{width}}    {text}".rstrip() for name, text in rows)))
