"""DDS, the discovery service: wallet registration, sign-in, and the callback flow of a node with a URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar
from urllib.parse import urlsplit

from posemesh.errors import CallbackRefused, WireError
from posemesh.secret import Secret
from posemesh.types import JSON
from posemesh.wire import _json, _url
from posemesh.wire._url import join
from posemesh.wire.siwe import Challenge

__all__ = (
    "CALLBACK_BYTES_MAX",
    "SECRET_BYTES_MAX",
    "Callback",
    "challenge_request_body",
    "decode_callback",
    "decode_challenge",
    "decode_token",
    "is_health_probe",
    "legacy_signing_input",
    "legacy_timestamp",
    "register_body",
    "register_url",
    "register_wallet_body",
    "register_wallet_url",
    "registered_url",
    "siwe_request_url",
    "verify_body",
    "verify_url",
)

T = TypeVar("T")

CALLBACK_BYTES_MAX: Final = 2 * 1024 * 1024
SECRET_BYTES_MAX: Final = 4096
_JSON_TYPE: Final = re.compile(r"application/(?:[^\s/;]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)


def siwe_request_url(base: str) -> str:
    """Where a challenge is asked for; each flow needs its own, a nonce counts once."""
    return join(base, "internal/v1/auth/siwe/request")


def verify_url(base: str) -> str:
    """Where a signed challenge becomes the node's token."""
    return join(base, "internal/v1/auth/siwe/verify")


def register_wallet_url(base: str) -> str:
    """Where a signed challenge registers the wallet (no callback)."""
    return join(base, "internal/v1/nodes/register-wallet")


def register_url(base: str) -> str:
    """Where a node with a URL registers, to be called back."""
    return join(base, "internal/v1/nodes/register")


# -- Challenge and token ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChallengeAnswer:
    nonce: str | None = None
    domain: str | None = None
    uri: str | None = None
    version: str | None = None
    chainId: int | None = None
    issuedAt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _TokenAnswer:
    access_token: Secret | None = None
    access_expires_at: datetime | None = None
    expires_at: datetime | None = None


def challenge_request_body(address: str) -> bytes:
    """Ask for a challenge for this wallet."""
    return _json.encode({"wallet": address}, "wallet")


def decode_challenge(body: bytes, *, limit: int = _json.BODY_BYTES_MAX) -> Challenge:
    """The challenge, unchecked. :class:`WireError` names the field that is missing; an empty nonce is missing."""
    what = "sign-in challenge"
    answer = _json.decode(_ChallengeAnswer, body, what, limit=limit)
    return Challenge(
        nonce=_present(answer.nonce or None, what, "nonce"),
        domain=_present(answer.domain, what, "domain"),
        uri=_present(answer.uri, what, "uri"),
        version=_present(answer.version, what, "version"),
        chain_id=_present(answer.chainId, what, "chainId"),
        issued_at=_present(answer.issuedAt, what, "issuedAt"),
    )


def verify_body(address: str, message: str, signature: str) -> bytes:
    """The signed challenge, for a token."""
    return _json.encode({"address": address, "message": message, "signature": signature}, "sign-in")


def decode_token(body: bytes, *, limit: int = _json.BODY_BYTES_MAX) -> tuple[Secret, datetime | None]:
    """The node's token and when it expires; None where DDS does not say."""
    answer = _json.decode(_TokenAnswer, body, "sign-in answer", limit=limit)
    token = _present(answer.access_token or None, "sign-in answer", "access_token")
    return token, answer.access_expires_at or answer.expires_at


def _present(value: T | None, what: str, field: str) -> T:
    if value is None:
        raise WireError(f"{what}: expected the field `{field}`, it is missing or empty")
    return value


# -- Registration -------------------------------------------------------------------------------


def register_wallet_body(
    *,
    message: str,
    signature: str,
    registration_credentials: Secret,
    capabilities: Sequence[str],
    version: str,
    max_concurrency: int = 1,
) -> bytes:
    """A wallet's registration. ``max_concurrency`` is told only where it is more than one task at a time."""
    body: dict[str, JSON] = {
        "message": message,
        "signature": signature,
        "registration_credentials": registration_credentials.reveal(),
        "capabilities": list(capabilities),
        "version": version,
    }
    if max_concurrency > 1:
        body["max_concurrency"] = max_concurrency
    return _json.encode(body, "registration")


def registered_url(node_url: str) -> str:
    """``NODE_URL`` as it is registered and signed: a bare origin gains its slash, scheme and host are lower case."""
    origin = _url.origin_of(node_url)
    if origin is None:
        raise WireError("node URL: expected an absolute http or https URL")
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    port = "" if origin.effective_port == origin._replace(port=None).effective_port else f":{origin.port}"
    parts = urlsplit(node_url)
    return parts._replace(scheme=origin.scheme, netloc=host + port, path=parts.path or "/").geturl()


def legacy_timestamp(epoch_ns: int) -> str:
    """Nanoseconds since the epoch in RFC 3339, UTC, always with nine digits of fraction and ``Z``."""
    seconds, nanoseconds = divmod(epoch_ns, 1_000_000_000)
    time = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    return f"{time}.{nanoseconds:09d}Z"


def legacy_signing_input(url: str, timestamp: str) -> bytes:
    """What the signature of a registration with a URL covers: the two field values, nothing between them."""
    return (url + timestamp).encode()


def register_body(
    *,
    url: str,
    version: str,
    registration_credentials: Secret,
    signature: str,
    timestamp: str,
    public_key: str,
    capabilities: Sequence[str],
) -> bytes:
    """The registration of a node with a URL; ``url`` and ``timestamp`` exactly as they were signed."""
    body: dict[str, JSON] = {
        "url": url,
        "version": version,
        "registration_credentials": registration_credentials.reveal(),
        "signature": signature,
        "timestamp": timestamp,
        "public_key": public_key,
        "capabilities": list(capabilities),
    }
    return _json.encode(body, "registration")


# -- DDS calls the node -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """What DDS sends to ``/internal/v1/registrations``; the rest of it has no use here."""

    id: str
    secret: Secret
    organization_id: str | None = None


def decode_callback(content_type: str | None, body: bytes) -> Callback:
    """The callback, or :class:`CallbackRefused` with the answer it gets. The order of the checks is the contract's."""
    if content_type is None or not _JSON_TYPE.fullmatch(content_type.strip()):
        raise CallbackRefused(415, "expected Content-Type: application/json")
    if len(body) > CALLBACK_BYTES_MAX:
        raise CallbackRefused(413, f"expected at most {CALLBACK_BYTES_MAX} bytes")
    try:
        fields = _json.parse_json(body, "registration callback")
    except WireError:
        raise CallbackRefused(400, "expected a JSON object") from None
    if not isinstance(fields, dict):
        raise CallbackRefused(422, "expected a JSON object")
    node_id, secret = _text(fields, "id"), _text(fields, "secret")
    organization_id = None if fields.get("organization_id") is None else _text(fields, "organization_id")
    if not node_id.strip():
        raise CallbackRefused(422, "missing id")
    if not secret.strip():
        raise CallbackRefused(422, "missing secret")
    if len(secret.encode()) > SECRET_BYTES_MAX:
        raise CallbackRefused(403, "secret too large")
    return Callback(id=node_id, secret=Secret(secret), organization_id=organization_id)


def _text(fields: dict[str, JSON], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise CallbackRefused(422, f"expected a string in the field `{name}`")
    return value


def is_health_probe(user_agent: str | None) -> bool:
    """Whether ``GET /health`` came from DDS itself, which keeps a registration with a URL alive."""
    return user_agent is not None and user_agent.startswith("DDS v")
