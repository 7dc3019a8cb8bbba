"""A runtime's configuration: a dataclass in a file of JSON, TOML or YAML.

A file is read strictly: a field that is missing and has no default, or has another type, is an error; fields that the
dataclass lacks are ignored. What reads or writes a format is imported when a file has it; YAML needs the extra
``golem``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posemesh.golem.environment import EXTENSIONS
from posemesh.golem.errors import HandlerError, SettingsError

__all__ = ("read", "write")


def read(path: str | Path, into: Any) -> Any:
    """The file ``path`` as ``into``, a dataclass or an instance of one; as an object where it is None."""
    path = Path(path)
    extension = _extension(path)
    try:
        data = path.read_bytes()
        if into is None:
            value = _decode(extension, data)
            if not isinstance(value, Mapping):
                raise ValueError(f"expected an object, got {type(value).__name__}")
            return value
        return _into(into if isinstance(into, type) else type(into), extension, data)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise SettingsError(f"Unable to read the configuration file: {path}", str(error)) from error


def write(conf: Any, path: str | Path) -> None:
    """Raises TypeError or ValueError for what the format cannot hold, and OSError."""
    path = Path(path)
    extension = _extension(path)
    plain = _plain(conf)
    if extension == "json":
        from posemesh.golem import text

        written = text.pretty(plain)
    elif extension == "toml":
        from posemesh.golem import toml

        written = toml.write(plain)
    else:
        written = _yaml().safe_dump(plain, sort_keys=False, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written, encoding="utf-8")


def _extension(path: Path) -> str:
    extension = path.suffix[1:].lower()
    if not extension:
        raise HandlerError("Invalid config path")
    if extension not in EXTENSIONS:
        raise HandlerError(f"Unsupported extension: {path.suffix[1:]}")
    return extension


def _decode(extension: str, data: bytes) -> Any:
    if extension == "json":
        import msgspec

        return msgspec.json.decode(data)
    if extension == "toml":
        import tomllib

        return tomllib.loads(data.decode())
    yaml = _yaml()
    try:
        return yaml.safe_load(data.decode())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _into(kind: type, extension: str, data: bytes) -> Any:
    import msgspec

    return msgspec.convert(_decode(extension, data), kind)


def _plain(value: Any) -> Any:
    """Objects, lists, text, numbers and booleans; fields of dataclasses in their order."""
    import msgspec

    return msgspec.to_builtins(value, str_keys=True)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        hint = 'install it by: pip install "posemesh[golem]"'
        raise SettingsError("YAML needs a package that is not installed", hint) from None
    return yaml
