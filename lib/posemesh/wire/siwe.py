"""Sign-In with Ethereum (EIP-4361) as DDS asks for it: check the challenge, then compose the message.

The wallet that signs may hold a stake, so a message is composed only of a challenge that is ours in
every part: for the configured DDS, fresh, and with nothing in a field that could start another line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from posemesh.errors import ChallengeRefused, WireError
from posemesh.wire import _json, _url
from posemesh.wire._url import Origin

__all__ = ("CHALLENGE_AGE_MAX_SECS", "Challenge", "check", "compose")

CHALLENGE_AGE_MAX_SECS: Final = 600.0
"""How far ``issued_at`` may lie from the service's time, before or after."""

_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,2048}")
_NONCE: Final = re.compile(r"[\x21-\x7e]{1,256}")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What DDS wants signed (``auth/siwe/request``), verbatim."""

    nonce: str
    domain: str
    uri: str
    version: str
    chain_id: int
    issued_at: str


def compose(challenge: Challenge, address: str, resources: Sequence[str] = ()) -> str:
    """The message to sign: LF line ends, no statement, no line end after the last line.

    Call :func:`check` first; this writes whatever the challenge holds.
    """
    lines = [
        f"{challenge.domain} wants you to sign in with your Ethereum account:",
        address,
        "",
        f"URI: {challenge.uri}",
        f"Version: {challenge.version}",
        f"Chain ID: {challenge.chain_id}",
        f"Nonce: {challenge.nonce}",
        f"Issued At: {challenge.issued_at}",
    ]
    if resources:
        lines += ["Resources:", *(f"- {resource}" for resource in resources)]
    return "\n".join(lines)


def check(challenge: Challenge, *, dds_base_url: str, address: str, service_now: float) -> None:
    """Raise :class:`ChallengeRefused` unless this node may sign the challenge.

    ``dds_base_url`` is the configured DDS, ``address`` the wallet's, ``service_now`` the service's time in
    epoch seconds.
    """
    dds = _url.origin_of(dds_base_url)
    if dds is None:
        _refuse("dds_base_url", "the configured DDS to be an absolute http or https URL")
    if not _ADDRESS.fullmatch(address):
        _refuse("address", "this wallet's address, 0x and 40 hex digits")
    _check_text(challenge)
    _check_domain(challenge.domain, dds)
    _check_uri(challenge.uri, dds)
    _check_age(challenge.issued_at, service_now)


def _check_text(challenge: Challenge) -> None:
    """EIP-4361 builds the message of lines, so a line break within a field would forge another field."""
    for name in ("domain", "uri", "version", "issued_at"):
        if not _VISIBLE.fullmatch(getattr(challenge, name)):
            _refuse(name, "1 to 2048 visible ASCII characters, no blanks")
    if not _NONCE.fullmatch(challenge.nonce):
        _refuse("nonce", "1 to 256 visible ASCII characters, no blanks")
    if not 0 < challenge.chain_id < 2**63:
        _refuse("chain_id", "a positive integer")


def _check_domain(domain: str, dds: Origin) -> None:
    claimed = _url.authority_of(domain)
    if claimed is None or not _belongs(claimed, dds):
        _refuse("domain", f"the configured DDS, {_named(dds)}")


def _check_uri(uri: str, dds: Origin) -> None:
    claimed = _url.origin_of(uri)
    if claimed is None or not _belongs(claimed, dds):
        _refuse("uri", f"an absolute URL of the configured DDS, {_named(dds)}, without user and password")
    if dds.scheme == "https" and claimed.scheme != "https":
        _refuse("uri", "https, as the configured DDS has it")


def _check_age(issued_at: str, service_now: float) -> None:
    try:
        age = service_now - _json.parse_time(issued_at, "issued_at").timestamp()
    except WireError:
        _refuse("issued_at", "an RFC 3339 time with an offset")
    if not abs(age) <= CHALLENGE_AGE_MAX_SECS:
        _refuse("issued_at", f"a time within {CHALLENGE_AGE_MAX_SECS:.0f} s of the service's; it is {age:+.0f} s old")


def _belongs(claimed: Origin, dds: Origin) -> bool:
    return _url.same_host(claimed.host, dds.host) and claimed.port in (None, dds.effective_port)


def _named(dds: Origin) -> str:
    return f"{dds.host}:{dds.effective_port}"


def _refuse(field: str, expected: str) -> NoReturn:
    raise ChallengeRefused(f"sign-in challenge not signed: {field}: expected {expected}")
