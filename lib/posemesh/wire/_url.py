"""What the wire must know of URLs: their origin, and whether two hosts are the same."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

__all__ = ("Origin", "authority_of", "join", "origin_of", "same_host")

# urlsplit drops tabs and line ends and browsers read a backslash as a slash: neither is in a URL as sent.
_URL: Final = re.compile(r"[^\x00-\x20\x7f-\xa0\\\u2028\u2029]+")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Origin(NamedTuple):
    """Where a URL leads. ``port`` is None where the URL names none."""

    scheme: str
    host: str
    port: int | None

    @property
    def effective_port(self) -> int:
        return _DEFAULT_PORTS.get(self.scheme, 0) if self.port is None else self.port

    @property
    def key(self) -> tuple[str, str, int]:
        """What two URLs of one origin have in common (RFC 6454 section 4)."""
        return self.scheme, self.host, self.effective_port


@lru_cache(maxsize=256)
def origin_of(url: str) -> Origin | None:
    """The origin of an absolute http(s) URL without userinfo; None for any other text."""
    if not _URL.fullmatch(url):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not host or "@" in parts.netloc:
        return None
    return Origin(parts.scheme, _plain(host), port)


def authority_of(text: str) -> Origin | None:
    """The host and port of ``host[:port]``, with an empty scheme; None where it is more or less than that."""
    if re.search(r"[/?#@]", text) or not _URL.fullmatch(text):
        return None
    origin = origin_of(f"http://{text}")
    return origin and origin._replace(scheme="")


def same_host(one: str, other: str) -> bool:
    """Equal hosts; every spelling of this machine is the same host."""
    return one == other or (one in _LOOPBACK and other in _LOOPBACK)


def join(base: str, path: str) -> str:
    """``path`` below ``base``, whether or not the base ends with a slash."""
    return f"{base.rstrip('/')}/{path}"


def _plain(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower()
