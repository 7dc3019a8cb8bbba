"""What an app asks of the network: put data into its domain, submit a job, look at it, fetch what came of it.

Only the documented job and domain interfaces are used, so that any implementation of the services will do.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
import msgspec

from posemesh.config import url_problem
from posemesh.errors import ConfigError, PosemeshError
from posemesh.secret import Secret
from posemesh.shell.http import is_loopback
from posemesh.wire.domain import data_url, decode_metadata, infer_artifact
from posemesh.wire.multipart import upload_frame

__all__ = ("AppSettings", "Client", "Download", "JobView", "ServiceError", "Unavailable", "printable")

T = TypeVar("T")

_CHUNK_BYTES: Final = 1024 * 1024
# No limit on the whole: a file may be large. What is limited is how long nothing moves.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60)
_PARAMETER: Final = re.compile(r';\s*([A-Za-z-]+)="([^"]*)"')


class ServiceError(PosemeshError):
    """A service refused, or its answer makes no sense."""


class Unavailable(ServiceError):
    """A service did not answer, or said that it cannot now. The same request may succeed later."""


def printable(text: str) -> str:
    """``text`` on one line, without what a terminal would obey: it comes from the network."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSettings:
    """Where an app's network is, and what lets it in. Each is a variable of that name in upper case."""

    dms_base_url: str
    domain_server_url: str
    domain_id: str
    app_jwt: Secret

    @classmethod
    def from_env(cls, env_file: str | None) -> Self:
        """The environment first, then ``env_file`` or ``./.env``. Raises ConfigError with every problem."""
        found = _env_file(env_file) | os.environ
        names = ("DMS_BASE_URL", "DOMAIN_SERVER_URL", "DOMAIN_ID", "APP_JWT")
        given = {name: found.get(name, "").strip() for name in names}
        insecure = found.get("ALLOW_INSECURE_HTTP", "").strip().lower() == "true"
        checks = {name: _wrong(name, value, insecure) for name, value in given.items()}
        if problems := [f"{name}: {wrong}" for name, wrong in checks.items() if wrong]:
            raise ConfigError(problems)
        return cls(
            dms_base_url=given["DMS_BASE_URL"].rstrip("/"),
            domain_server_url=given["DOMAIN_SERVER_URL"].rstrip("/"),
            domain_id=given["DOMAIN_ID"],
            app_jwt=Secret(given["APP_JWT"]),
        )


def _env_file(path: str | None) -> dict[str, str]:
    from dotenv import dotenv_values

    file = Path(path or ".env")
    if path is None and not file.exists():
        return {}
    try:
        with file.open(encoding="utf-8") as stream:
            return {name: value or "" for name, value in dotenv_values(stream=stream, interpolate=False).items()}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError([f"{file}: cannot be read: {reason}; name another file"]) from None


def _wrong(name: str, value: str, insecure: bool) -> str | None:
    if not value:
        return "not set; set it in the environment or in .env (the local network writes app.env, see --env-file)"
    if name == "DOMAIN_ID":
        try:
            uuid.UUID(value)
        except ValueError:
            return "expected a UUID"
    if name == "APP_JWT" and not (value.isascii() and value.isprintable() and " " not in value):
        return "expected a token without blanks"
    if name.endswith("_URL"):
        if problem := url_problem(value):
            return problem
        parts = urlsplit(value)
        if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not insecure:
            return "expected https, got plain http to another machine; use https, or set ALLOW_INSECURE_HTTP=true"
    return None


class JobView(msgspec.Struct, kw_only=True):
    """A job as the job API shows it; only what every implementation has is relied upon."""

    job: dict[str, Any]
    tasks: list[dict[str, Any]] = []
    receipts: list[dict[str, Any]] = []

    @property
    def status(self) -> str:
        status = str(self.job.get("status", ""))
        return "canceled" if status == "cancelled" else status

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "canceled")

    def reason(self) -> str | None:
        """What the worker gave as the reason of a failure."""
        failed = [task for task in self.tasks if task.get("status") == "failed"]
        return next((found for record in (*failed, *self.receipts) if (found := _reason(record))), None)

    def artifacts(self) -> dict[str, str | None]:
        """The ids handed in, in order, each with its logical path where the worker told it."""
        handed = [one for record in (*self.receipts, *self.tasks) for one in _outputs(record)]
        told = {entry.get("id"): entry.get("logical_path") for record in self.receipts for entry in _told(record)}
        return {key: told.get(key) if isinstance(told.get(key), str) else None for key in handed}


def _reason(record: dict[str, Any]) -> str | None:
    for key in ("failure", "reason", "failure_reason", "fail_reason", "error", "message", "meta"):
        value = record.get(key)
        found = _reason(value) if isinstance(value, dict) else value
        if isinstance(found, str) and found.strip():
            return found
    return None


def _outputs(record: dict[str, Any]) -> list[str]:
    """Data ids; one given as a URL or path is its last segment."""
    given = record.get("outputs") or record.get("output_cids") or []
    return [one.rpartition("/")[2] for one in given if isinstance(one, str)] if isinstance(given, list) else []


def _told(record: dict[str, Any]) -> list[dict[str, Any]]:
    meta = record.get("meta")
    entries = meta.get("artifacts") if isinstance(meta, dict) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Bytes on their way here. ``size`` is None where the service does not say."""

    chunks: AsyncIterator[bytes]
    size: int | None = None
    name: str = ""
    data_type: str = ""


@dataclass(slots=True, kw_only=True)
class Client:
    """The job API and the domain API, as one app. Use as ``async with``."""

    settings: AppSettings
    _http: aiohttp.ClientSession | None = None
    _proxies: dict[str, str] = field(default_factory=getproxies_environment)

    async def __aenter__(self) -> Self:
        headers = {
            "Authorization": f"Bearer {self.settings.app_jwt.reveal()}",
            "posemesh-client-id": f"posemesh-submit/{uuid.uuid4()}",
        }
        self._http = aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._http is not None
        await self._http.close()

    async def upload(self, path: Path) -> str:
        """Store a file as new data of the domain, under a name of its own. Returns its id."""
        unique = uuid.uuid4().hex[:12]
        named = infer_artifact(None, path.name, unique)
        # The name keeps within the 128 bytes a domain server allows, its unique end included.
        name = f"{named.name[: -len(unique) - 1][:100]}_{unique}"
        boundary = f"posemesh-{uuid.uuid4().hex}"
        kind, head, tail = upload_frame(boundary=boundary, name=name, data_type=named.data_type[:64])
        url = data_url(self.settings.domain_server_url, self.settings.domain_id)
        with path.open("rb") as file:
            length = len(head) + len(tail) + os.fstat(file.fileno()).st_size

            async def body() -> AsyncIterator[bytes]:
                yield head
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                yield tail

            headers = {"Content-Type": kind, "Content-Length": str(length)}
            async with self._request("POST", url, data=body(), headers=headers) as answer:
                (item,) = decode_metadata(await answer.read())
                return item.id

    async def submit(self, job: dict[str, Any]) -> str:
        """Submit a job. Returns its id."""
        body = {"domain_id": self.settings.domain_id} | job
        async with self._request("POST", f"{self.settings.dms_base_url}/jobs", json=body) as answer:
            return _decode(await answer.read(), _Submitted, "the task service's answer").job_id

    async def job(self, job_id: str) -> JobView:
        """The job as it stands."""
        async with self._request("GET", f"{self.settings.dms_base_url}/jobs/{job_id}") as answer:
            return _decode(await answer.read(), JobView, "the task service's answer")

    @asynccontextmanager
    async def download(self, key: str) -> AsyncIterator[Download]:
        """The bytes of one item: asked for as every node does, else by the address of the item itself."""
        base = self.settings.domain_server_url
        url = data_url(base, self.settings.domain_id, ids=[key])
        async with self._request("GET", url, headers={"Accept": "multipart/form-data"}, ok=(404, 405, 406)) as answer:
            if answer.ok and answer.content_type.startswith("multipart/"):
                part = await aiohttp.MultipartReader.from_response(answer).next()
                if not isinstance(part, aiohttp.BodyPartReader):
                    raise ServiceError(f"{_shown(url)}: no data with the id {key}")
                about = dict(_PARAMETER.findall(part.headers.get("Content-Disposition", "")))
                yield Download(
                    chunks=_part_chunks(part),
                    size=int(about["size"]) if about.get("size", "").isdecimal() else None,
                    name=about.get("name", ""),
                    data_type=about.get("data-type", ""),
                )
                return
        url = f"{data_url(base, self.settings.domain_id)}/{key}?raw=true"
        async with self._request("GET", url) as answer:
            yield Download(chunks=answer.content.iter_chunked(_CHUNK_BYTES), size=answer.content_length)

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, *, ok: tuple[int, ...] = (), **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of status 2xx, or one of ``ok``; any other raises with one sentence."""
        assert self._http is not None
        where = f"{method} {_shown(url)}"
        try:
            async with self._http.request(
                method, url, allow_redirects=False, proxy=self._proxy(url), **options
            ) as answer:
                if not answer.ok and answer.status not in ok or 300 <= answer.status < 400:
                    raise await _refusal(where, answer)
                yield answer
        except TimeoutError:
            raise Unavailable(f"{where}: no answer in time") from None
        except (aiohttp.ClientError, ValueError, AssertionError) as error:  # the last two: a form cut short
            raise Unavailable(f"{where}: {printable(str(error)) or type(error).__name__}") from None

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if is_loopback(host) or proxy_bypass_environment(host, self._proxies):
            return None
        return self._proxies.get(parts.scheme)


class _Submitted(msgspec.Struct):
    job_id: str


async def _refusal(where: str, answer: aiohttp.ClientResponse) -> PosemeshError:
    said = printable((await answer.content.read(300)).decode("utf-8", "replace"))
    text = f"{where}: {answer.status} {said or answer.reason or ''}".rstrip()
    if answer.status in (401, 403):
        return ConfigError([f"APP_JWT: not accepted for this; get a new token ({text})"])
    return (Unavailable if answer.status == 429 or answer.status >= 500 else ServiceError)(text)


async def _part_chunks(part: aiohttp.BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        yield chunk


def _decode(body: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ServiceError(f"{what} cannot be read: {printable(str(error))}") from None


def _shown(url: str) -> str:
    return url.partition("?")[0]
