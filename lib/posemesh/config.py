"""What a node is told: every variable of the environment, read once, checked together, then frozen."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import SplitResult, urlsplit, urlunsplit

import posemesh
from posemesh.errors import ConfigError
from posemesh.secret import Secret

__all__ = ("LOG_FORMATS", "LOG_LEVELS", "NodeConfig", "normalise_version", "url_problem")

LOG_FORMATS: Final = ("json", "text")
LOG_LEVELS: Final = ("trace", "debug", "info", "warning", "error", "critical")

# A century in milliseconds fits; what is larger is a slip of the keyboard, and timers would overflow on it.
_AMOUNT_MAX: Final = 4_000_000_000_000
# The order of the curve secp256k1 (SEC 2, section 2.4.1): a private key is a scalar in 1 .. order - 1.
_CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
# semver.org, version 2.0.0, the expression it suggests, without its group names.
_NUMBER = r"(?:0|[1-9]\d*)"
_SEMVER: Final = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
    rf"(?:-(?:{_NUMBER}|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:{_NUMBER}|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)


class _Wrong(Exception):
    """What was expected of one value, and what to do."""


def _shown(value: object) -> str:
    """The value for a message. Long ones are only counted: they may be a key put under the wrong name."""
    text = repr(value)
    return text if len(text) <= 26 else f"{len(str(value))} characters"


# --- One kind of value each: text in, value out, or _Wrong ---------------------------------------------------------


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):  # int() takes no more than 4300
        raise _Wrong(f"expected a whole number, got {_shown(text)}; write digits only")
    return int(text)


def _number(text: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise _Wrong(f"expected a number, got {_shown(text)}; write digits, with a point if need be")
    return float(text)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _Wrong(f"expected true or false, got {_shown(text)}; write one of the two")
    return text.lower() == "true"


def _text(text: str) -> str:
    return text


def _word(text: str) -> str:
    return text.lower()


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _amounts(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for entry in text.split(","):
        name, colon, amount = entry.partition(":")
        if not colon:
            raise _Wrong(f"expected a name and an amount, got {_shown(entry)}; write gpu:2,camera:1")
        found.append((name.strip(), _integer(amount.strip())))
    return tuple(found)


# --- One rule each: a value in, nothing out, or _Wrong -------------------------------------------------------------


def _amount(low: float, high: float = _AMOUNT_MAX, *, above: bool = False) -> Callable[[object], None]:
    """Finite and at least ``low`` (greater with ``above``), at most ``high``."""
    least = f"above {low:g}" if above else f"of at least {low:g}"
    both = f"expected a number {least} and at most {high}"
    wanted = both if high != _AMOUNT_MAX else f"expected a number {least}"

    def rule(value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Wrong(f"{wanted}, got {_shown(value)}; give a number")
        if not low <= value <= high or (above and value == low):  # also where it is not a number
            raise _Wrong(f"{both if value > high else wanted}, got {_shown(value)}; choose one in that range")

    return rule


def _ratio(value: object) -> None:
    if isinstance(value, int | float) and value >= 1:
        raise _Wrong(f"expected a ratio between 0 and 1, got {_shown(value)}; 0.5 is a half")
    _amount(0, above=True)(value)


def _one_of(names: tuple[str, ...]) -> Callable[[object], None]:
    def rule(value: object) -> None:
        if value not in names:
            raise _Wrong(f"expected {', '.join(names[:-1])} or {names[-1]}, got {_shown(value)}; choose one of them")

    return rule


def _printable(value: object) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise _Wrong("expected text on one line; take out control characters")


def _credentials(value: object) -> None:
    if not isinstance(value, Secret) or not value.reveal().strip():
        raise _Wrong("expected the node's registration credentials; copy them from where the node was created")
    _printable(value.reveal())


def _wallet_key(value: object) -> None:
    todo = "give the wallet's private key as 64 hex digits, with or without 0x"
    digits = _key_digits(value.reveal()) if isinstance(value, Secret) else ""
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise _Wrong(f"expected 32 bytes in hex; {todo}")
    if int(digits, 16) == 0:
        raise _Wrong(
            "expected a private key, got the all-zero placeholder of an example; put your own key in its place"
        )
    if int(digits, 16) >= _CURVE_ORDER:
        raise _Wrong(f"expected a private key of the curve secp256k1, and this number is too large; {todo}")


def _key_digits(text: str) -> str:
    return text.strip().lower().removeprefix("0x")


def _resources(value: Any) -> None:
    for name, amount in value:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", name):
            raise _Wrong(f"expected names of letters, digits and . _ / -, got {_shown(name)}; write gpu:2,camera:1")
        _amount(0)(amount)
    if len(dict(value)) < len(value):
        raise _Wrong("expected each resource once; take out the other")


def _url(value: object) -> None:
    if problem := url_problem(value):
        raise _Wrong(problem)


def url_problem(value: object) -> str | None:
    """Why this is no service's URL, and what to do. Never the value: it may hold a password."""
    todo = "write it like https://host.example/path"
    if not isinstance(value, str) or not value.isprintable() or re.search(r"\s", value):
        return f"expected a URL without blanks; {todo}"
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return f"expected a URL with a valid host and port; {todo}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"expected an absolute http or https URL; {todo}"
    if parts.username is not None or parts.password is not None:
        return "expected a URL without a user name or password; take them out"
    if "?" in value or "#" in value:
        return f"expected a URL without ? and #; {todo}"
    return None


# --- The settings --------------------------------------------------------------------------------------------------


def _setting(read: Callable[[str], object], rule: Callable[[Any], None] | None = None, **default: Any) -> Any:
    """A field: how its text is read, and what a value must satisfy. Without a default it is required."""
    return field(metadata={"read": read, "rule": rule}, **default)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The settings of one node; each is the environment's variable of the same name in upper case.

    Durations carry their unit in the name. Made directly or by :meth:`from_env`, it is checked in the same
    way: all problems at once, as a :class:`posemesh.ConfigError` that never holds a secret.
    """

    dms_base_url: str = _setting(_text, _url, default="https://dms.auki.network/v1")
    dds_base_url: str = _setting(_text, _url, default="https://dds.auki.network")
    #: Where DDS reaches this node. Set, the node registers by callback and serves on all interfaces.
    node_url: str | None = _setting(_text, _url, default=None)
    reg_secret: Secret = _setting(Secret, _credentials)
    secp256k1_privhex: Secret = _setting(Secret, _wallet_key)
    request_timeout_secs: float = _setting(_number, _amount(0, above=True), default=60.0)
    #: Told to DDS; always a valid semantic version.
    node_version: str = _setting(_text, _printable, default=posemesh.__version__)
    heartbeat_jitter_ms: int = _setting(_integer, _amount(0), default=250)
    heartbeat_min_ratio: float = _setting(_number, _ratio, default=0.25)
    heartbeat_max_ratio: float = _setting(_number, _ratio, default=0.35)
    poll_backoff_ms_min: int = _setting(_integer, _amount(1), default=1000)
    poll_backoff_ms_max: int = _setting(_integer, _amount(1), default=30_000)
    token_safety_ratio: float = _setting(_number, _ratio, default=0.75)
    token_reauth_max_retries: int = _setting(_integer, _amount(0), default=3)
    token_reauth_jitter_ms: int = _setting(_integer, _amount(0), default=500)
    register_interval_secs: float = _setting(_number, _amount(0, above=True), default=120.0)
    #: -1 for no end.
    register_max_retry: int = _setting(_integer, _amount(-1), default=-1)
    max_concurrency: int = _setting(_integer, _amount(1), default=1)
    #: How much there is of what runners name as ``resources``; what is not named here is there once.
    resources: tuple[tuple[str, int], ...] = _setting(_amounts, _resources, default=())
    log_format: str = _setting(_word, _one_of(LOG_FORMATS), default="json")
    enable_noop: bool = _setting(_flag, default=False)
    noop_sleep_secs: float = _setting(_number, _amount(0), default=5.0)
    #: Names this client to the domain server; None lets the node make one up.
    client_id: str | None = _setting(_text, _printable, default=None)
    #: Where the node's own server listens: 127.0.0.1, or every interface with ``node_url``.
    node_host: str = _setting(_text, _printable, default="")
    #: None leaves it to how the node is started; 0 takes any free port.
    node_port: int | None = _setting(_integer, _amount(0, 65_535), default=None)
    #: None stands for ``${XDG_STATE_HOME:-~/.local/state}/posemesh/<address>``.
    state_dir: Path | None = _setting(_path, default=None)
    drain_timeout_secs: float = _setting(_number, _amount(0), default=30.0)
    log_level: str = _setting(_word, _one_of(LOG_LEVELS), default="info")
    #: Of one input: all that its download holds, and what is unpacked from it.
    input_bytes_max: int = _setting(_integer, _amount(1), default=64 * 1024**3)
    #: What posemesh keeps in a task's workspace at once; user code's own files do not count.
    workspace_bytes_max: int = _setting(_integer, _amount(1), default=256 * 1024**3)
    #: Of one part of an upload, which the domain server chooses.
    part_bytes_max: int = _setting(_integer, _amount(1), default=1024**3)
    #: Of the headers of one downloaded item.
    header_bytes_max: int = _setting(_integer, _amount(256), default=16 * 1024)
    #: A transfer in which no byte moves for so long has failed.
    stall_timeout_secs: float = _setting(_number, _amount(0, above=True), default=60.0)
    #: Allows plain http to and from other hosts than this one.
    allow_insecure_http: bool = _setting(_flag, default=False)
    #: Shows ``/status`` and ``/ready`` to other hosts than this one.
    expose_status: bool = _setting(_flag, default=False)
    #: The variables that were left to their defaults, as :meth:`from_env` found them.
    defaulted: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    #: What was put right and ought to be known, one sentence each.
    warnings: tuple[str, ...] = field(default=(), init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        wrong = _wrong({row.name: getattr(self, row.name) for row in _ROWS})
        if wrong:
            raise ConfigError(_lines(wrong))
        version, warning = normalise_version(self.node_version)
        self._put(
            dms_base_url=self.dms_base_url.rstrip("/"),
            dds_base_url=self.dds_base_url.rstrip("/"),
            node_url=self.node_url and _serialised(urlsplit(self.node_url)),
            secp256k1_privhex=Secret(_key_digits(self.secp256k1_privhex.reveal())),
            node_version=version,
            node_host=self.node_host or ("0.0.0.0" if self.node_url else "127.0.0.1"),
            warnings=(warning,) if warning else (),
        )

    def _put(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, *, env_file: str | Path | None = None) -> Self:
        """Read ``env`` (the process's environment by default), then ``env_file``, which must exist, or ``./.env``.

        A blank value stands for the default. The environment itself is not changed.
        Raises :class:`posemesh.ConfigError` with every problem found.
        """
        found, problems = _read_env_file(env_file)
        found.update(os.environ if env is None else env)
        values: dict[str, object] = {}
        wrong: dict[str, str] = {}
        for row in _ROWS:
            try:
                values[row.name] = _read(row, found.get(row.name.upper(), "").strip())
            except _Wrong as why:
                wrong[row.name] = str(why)
        wrong.update(_wrong(values))
        problems += _lines(wrong)
        if problems:
            raise ConfigError(problems)
        blank = (row.name.upper() for row in _ROWS if not found.get(row.name.upper(), "").strip())
        return cls(**values, defaulted=frozenset(blank))  # type: ignore[arg-type]


_ROWS: Final = tuple(row for row in dataclasses.fields(NodeConfig) if row.metadata)


def _read(row: dataclasses.Field[Any], text: str) -> object:
    if not text:
        if row.default is dataclasses.MISSING:
            raise _Wrong("expected a value, and it is not set; set it in the environment or in .env")
        return row.default
    try:
        text.encode()  # bytes that are no text come as surrogates, and could not be sent on
    except UnicodeEncodeError:
        raise _Wrong("expected text in UTF-8; write it anew") from None
    return row.metadata["read"](text)


def _wrong(values: Mapping[str, object]) -> dict[str, str]:
    """What is wrong with the values that are there, by field: each by itself, then those that must agree."""
    wrong: dict[str, str] = {}
    for row in _ROWS:
        rule, value = row.metadata["rule"], values.get(row.name)
        if rule is None or value == row.default or row.name not in values:
            continue
        try:
            rule(value)
        except _Wrong as why:
            wrong[row.name] = str(why)
    sound = {name: value for name, value in values.items() if name not in wrong}
    return wrong | _disagreements(sound)


def _disagreements(sound: Mapping[str, Any]) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for low, high in (("heartbeat_min_ratio", "heartbeat_max_ratio"), ("poll_backoff_ms_min", "poll_backoff_ms_max")):
        if low in sound and high in sound and sound[low] > sound[high]:
            got = f"which is {sound[high]}, got {sound[low]}"
            wrong[low] = f"expected at most {high.upper()}, {got}; lower the one or raise the other"
    for name in ("dms_base_url", "dds_base_url", "node_url"):
        if sound.get(name) and not sound.get("allow_insecure_http", True) and _is_exposed(urlsplit(sound[name])):
            wrong[name] = (
                "expected https, got plain http to another machine; use https, or set ALLOW_INSECURE_HTTP=true"
            )
    return wrong


def _lines(wrong: Mapping[str, str]) -> list[str]:
    return [f"{row.name.upper()}: {wrong[row.name]}" for row in _ROWS if row.name in wrong]


def _is_exposed(url: SplitResult) -> bool:
    """Whether it is plain http that leaves this machine."""
    if url.scheme == "https" or url.hostname is None:
        return False
    try:
        return not ipaddress.ip_address(url.hostname).is_loopback
    except ValueError:
        return url.hostname != "localhost" and not url.hostname.endswith(".localhost")


def _serialised(url: SplitResult) -> str:
    """As URL parsers write it back (WHATWG URL, serialising): DDS compares what it was told as text."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
    port = "" if url.port in (None, {"http": 80, "https": 443}[url.scheme]) else f":{url.port}"
    return urlunsplit((url.scheme, host + port, url.path or "/", "", ""))


def _read_env_file(path: str | Path | None) -> tuple[dict[str, str], list[str]]:
    """The variables of a ``.env`` file as it stands, without interpolation, and the lines that are none."""
    file = Path(".env" if path is None else path)
    if path is None and not file.exists():
        return {}, []
    # Only here, so that a host which builds its NodeConfig itself does not load it.
    from dotenv.parser import parse_stream

    try:
        with file.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return {}, [f"{file}: expected a file of NAME=value lines, and it cannot be read: {reason}; name another one"]
    lines = [binding.original.line for binding in bindings if binding.error]
    problems = [f"{file}: expected NAME=value on line {line}; mend the line or take it out" for line in lines]
    return {binding.key: binding.value or "" for binding in bindings if binding.key}, problems


def normalise_version(text: str) -> tuple[str, str | None]:
    """A semantic version to tell DDS, and a sentence where ``text`` was not one (DDS, wallet registration).

    One leading ``v`` is taken off; anything else gives way to the version of posemesh, as DDS refuses it.
    """
    version = text.strip()
    if _SEMVER.fullmatch(version):
        return version, None
    if _SEMVER.fullmatch(version[1:]) and version[0] in "vV":
        return version[1:], f"NODE_VERSION {version!r} is sent as {version[1:]!r}: DDS wants it without the v"
    ours = posemesh.__version__
    return ours, f"NODE_VERSION is no semantic version like 1.2.3, so posemesh's own is sent: {ours}"
