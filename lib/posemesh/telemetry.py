"""Logging: one line a record, as compact JSON or as text, with every secret taken out of the finished line.

The library stays silent until :func:`init_from_env` (or ``posemesh-node run``) turns it on.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import threading
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from posemesh.config import LOG_FORMATS, LOG_LEVELS
from posemesh.secret import Secret

if TYPE_CHECKING:
    from loguru import Logger

    from posemesh.types import LeaseEnvelope

__all__ = ("hears_debug", "init", "init_from_env", "logger", "register_secret", "scrub", "task_span")

_NAMESPACE: Final = "posemesh"
_DEBUG: Final = 10  # loguru's number of that level
# Tokens come and go with each lease; the newest so many are known by their text, all others by their form.
_PASSING_SECRETS_MAX: Final = 256
# A shorter one would take words out of every line.
_SECRET_CHARS_MIN: Final = 6
# What a text must hold, in lower case, for the form to be looked for: most lines hold none.
_FORMS: Final = (
    ("bearer", re.compile(r"(?i)\bbearer\s+[^\s\"'\\,;)\]}]+"), "Bearer ***"),
    ("eyj", re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "***"),  # a JSON Web Token
)
_KEY: Final = re.compile(r"(?<![0-9a-fA-F])(?:0x)?[0-9a-fA-F]{64}(?![0-9a-fA-F])")  # a private key in hex
_LONG_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")  # a third of the time, in a line that holds none

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a line of others' making must stay one line

_encode: Final = json.JSONEncoder(default=str, separators=(",", ":"), allow_nan=False).encode

_lasting: dict[str, None] = {}
_passing: OrderedDict[str, None] = OrderedDict()
# All of these by how they begin. The tokens of a service begin alike: one look tells that a text holds none of them.
_known: defaultdict[str, set[str]] = defaultdict(set)
_lock = threading.Lock()
_installed: tuple[int, str, str] | None = None  # loguru's id of our sink, its format and its level


def register_secret(secret: Secret, *, lasting: bool = False) -> None:
    """Have ``secret`` taken out of every later line. ``lasting`` ones, such as the wallet key, are never forgotten."""
    text = secret.reveal()
    if len(text) < _SECRET_CHARS_MIN:
        return
    with _lock:
        for form in {text, json.dumps(text)[1:-1]}:
            _known[form[:_SECRET_CHARS_MIN]].add(form)
            if lasting:
                _lasting[form] = None
                continue
            _passing[form] = None
            _passing.move_to_end(form)
        while len(_passing) > _PASSING_SECRETS_MAX:
            _forget(_passing.popitem(last=False)[0])


def _forget(secret: str) -> None:
    if secret in _lasting:
        return
    alike = _known[secret[:_SECRET_CHARS_MIN]]
    alike.discard(secret)
    if not alike:
        del _known[secret[:_SECRET_CHARS_MIN]]


def scrub(text: str) -> str:
    """``text`` without registered secrets, bearer tokens and what looks like a private key."""
    if len(text) < _SECRET_CHARS_MIN:
        return text
    with _lock:
        known = [secret for begin, alike in _known.items() if begin in text for secret in alike if secret in text]
    for secret in sorted(known, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "***")
    lower = text.lower()
    for sign, form, instead in _FORMS:
        if sign in lower:
            text = form.sub(instead, text)
    return _KEY.sub("***", text) if _LONG_HEX.search(text) else text


@functools.cache
def logger() -> Logger:
    """posemesh's loguru logger. Loaded at the first use, and silent until :func:`init`."""
    from loguru import logger

    if _installed is None:
        logger.disable(_NAMESPACE)
    return logger


def hears_debug() -> bool:
    """Whether a debug line could reach any sink, ours or a host's; where not, what it says need not be gathered."""
    # Another version of loguru may keep it elsewhere: then it is gathered, and loguru decides.
    return bool(getattr(getattr(logger(), "_core", None), "min_level", 0) <= _DEBUG)


def init_from_env() -> None:
    """Log to stderr as ``LOG_FORMAT`` (json, text) and ``LOG_LEVEL`` say. A second call changes nothing.

    A value that is none of the allowed gives way to the default: telling so is the configuration's part.
    """
    form = os.environ.get("LOG_FORMAT", "").strip().lower()
    level = os.environ.get("LOG_LEVEL", "").strip().lower()
    init(format=form if form in LOG_FORMATS else "json", level=level if level in LOG_LEVELS else "info")


def init(*, format: str = "json", level: str = "info") -> None:
    """Log to stderr in this format and from this level on. Calling it again with the same changes nothing.

    The default sink of loguru is replaced by one that scrubs; sinks a host has added stay.
    """
    global _installed
    log = logger()
    if _installed is not None:
        if _installed[1:] == (format, level):
            return
        log.remove(_installed[0])
    else:
        with suppress(ValueError):  # the host has taken it out already
            log.remove(0)
    write = functools.partial(_write, _text_line if format == "text" else _json_line)
    # The line is made in the sink: what loguru formats holds the text of exceptions before it could be scrubbed.
    sink = log.add(write, format=lambda _: "", level=level.upper(), backtrace=False, diagnose=False, catch=False)
    log.enable(_NAMESPACE)
    _installed = (sink, format, level)


@contextmanager
def task_span(lease: LeaseEnvelope) -> Iterator[None]:
    """Bind task_id, job_id, capability and domain_id to every line logged inside, also after an await."""
    task = lease.task
    names = {"task_id": task.id, "job_id": task.job_id, "capability": task.capability, "domain_id": lease.domain_id}
    span = logger().contextualize(**{name: str(value) for name, value in names.items() if value is not None})
    span.__enter__()
    try:
        yield
    finally:
        with suppress(ValueError):  # user code that never ended is thrown away with its loop, from another context
            span.__exit__(None, None, None)


def _write(make: Any, message: Any) -> None:
    """The sink. It never raises: a line that cannot be made or written must not stop a task."""
    with suppress(Exception):
        try:
            line = make(message.record)
        except Exception as error:  # an extra whose repr fails, say
            line = json.dumps({"level": "error", "msg": f"a record could not be written: {type(error).__name__}"})
        sys.stderr.write(scrub(line) + "\n")
        sys.stderr.flush()


def _json_line(record: Any) -> str:
    line: dict[str, object] = {"ts": _time(record), "level": record["level"].name.lower(), "msg": record["message"]}
    for name, value in record["extra"].items():
        line.setdefault(name, value)
    if record["exception"] is not None:
        line.setdefault("exception", _exception(record))
    try:
        return _encode(line)
    except ValueError:  # not a number, infinite or circular: none of them is JSON
        plain = {name: value if isinstance(value, str) else repr(value) for name, value in line.items()}
        return json.dumps(plain, separators=(",", ":"))


def _text_line(record: Any) -> str:
    extras = "".join(f"  {name}={value}" for name, value in record["extra"].items())
    said = f"{record['message']}{extras}"
    if not said.isprintable():
        said = _CONTROL.sub(lambda found: repr(found[0])[1:-1], said)
    line = f"{_time(record)} {record['level'].name:<8} {said}"
    return line if record["exception"] is None else f"{line}\n{_exception(record)}"


def _time(record: Any) -> str:
    return str(record["time"].astimezone(UTC).isoformat(timespec="milliseconds")).replace("+00:00", "Z")


def _exception(record: Any) -> str:
    kind, value, trace = record["exception"]
    return "".join(traceback.format_exception(kind, value, trace)).rstrip()
