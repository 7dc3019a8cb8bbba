"""The services as the engine sees them: each method carries one command out and returns the event that answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from posemesh.commands import Ask, OfferOutcome, SendHeartbeat
from posemesh.config import NodeConfig
from posemesh.errors import ChallengeRefused, PosemeshError, UndecodableLease, WireError
from posemesh.events import (
    AskFailed,
    Event,
    Failure,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseOffered,
    LeaseUnreadable,
    NoWork,
    OutcomeAccepted,
    OutcomeRejected,
    RegistrationAccepted,
    RegistrationRejected,
    SignedIn,
    SignInFailed,
)
from posemesh.policy import lease_ttl
from posemesh.runners.registry import Route
from posemesh.secret import Secret
from posemesh.shell.clock import Clock
from posemesh.shell.http import Http, Reply, TransportError
from posemesh.shell.signer import Signer
from posemesh.telemetry import register_secret, scrub
from posemesh.types import HeartbeatAnswer, OutcomeKind, TaskSpec
from posemesh.wire import dds, dms, siwe

__all__ = ("Network",)


class _Refused(PosemeshError):
    """An answer that is not 2xx."""

    def __init__(self, what: str, reply: Reply) -> None:
        self.reply = reply
        said = f": {reply.excerpt}" if reply.excerpt else ""
        super().__init__(f"{what} answered {reply.status}{said}")


class Network:
    """DDS and DMS for one node."""

    def __init__(
        self,
        http: Http,
        config: NodeConfig,
        signer: Signer,
        capabilities: Sequence[str],
        clock: Clock,
        route: Callable[[TaskSpec], Route],
        timeouts: Mapping[str, float | None],
    ) -> None:
        self._http = http
        self._config = config
        self._signer = signer
        self._capabilities = sorted(capabilities)
        self._clock = clock
        self._route = route
        self._timeouts = timeouts
        self._dds_ahead = 0.0

    # -- DDS

    async def register(self) -> Event:
        """The two calls of the wallet flow, or the one of the callback flow."""
        try:
            if self._config.node_url is None:
                await self._register_wallet()
            else:
                await self._register_url(dds.registered_url(self._config.node_url))
        except ChallengeRefused as error:
            return RegistrationRejected(failure=Failure(message=str(error)), lasting=True)
        except WireError as error:
            return RegistrationRejected(failure=Failure(message=str(error)), lasting=False)
        except (TransportError, _Refused) as error:
            return RegistrationRejected(failure=_failure(error))
        return RegistrationAccepted()

    async def _register_wallet(self) -> None:
        message, signature = await self._signed_challenge()
        body = dds.register_wallet_body(
            message=message,
            signature=signature,
            registration_credentials=self._config.reg_secret,
            capabilities=self._capabilities,
            version=self._config.node_version,
            max_concurrency=self._config.max_concurrency,
        )
        await self._post("DDS registration", dds.register_wallet_url(self._config.dds_base_url), body)

    async def _register_url(self, url: str) -> None:
        timestamp = dds.legacy_timestamp(int((self._clock.wall() + self._dds_ahead) * 1e9))
        signature = self._signer.sign_legacy(dds.legacy_signing_input(url, timestamp))
        body = dds.register_body(
            url=url,
            version=self._config.node_version,
            registration_credentials=self._config.reg_secret,
            signature=signature,
            timestamp=timestamp,
            public_key=self._signer.public_key_hex,
            capabilities=self._capabilities,
        )
        try:
            await self._post("DDS registration", dds.register_url(self._config.dds_base_url), body)
        except _Refused as error:
            # A timestamp too far off is refused: the next one is by the clock of DDS.
            self._dds_ahead = error.reply.service_now - self._clock.wall()
            raise

    async def _signed_challenge(self) -> tuple[str, str]:
        """A fresh challenge, checked to be ours, and its signature."""
        base, address = self._config.dds_base_url, self._signer.address
        body = dds.challenge_request_body(address)
        reply = await self._post("DDS challenge", dds.siwe_request_url(base), body)
        challenge = dds.decode_challenge(reply.body)
        siwe.check(challenge, dds_base_url=base, address=address, service_now=reply.service_now)
        message = siwe.compose(challenge, address)
        return message, self._signer.sign_eip191(message)

    async def sign_in(self) -> Event:
        """Challenge, signature, verify."""
        at_verify = False
        try:
            message, signature = await self._signed_challenge()
            at_verify = True
            body = dds.verify_body(self._signer.address, message, signature)
            reply = await self._post("DDS sign-in", dds.verify_url(self._config.dds_base_url), body)
            token, expires = dds.decode_token(reply.body)
        except WireError as error:
            return SignInFailed(failure=Failure(message=str(error)), at_verify=at_verify)
        except (TransportError, _Refused) as error:
            return SignInFailed(failure=_failure(error), at_verify=at_verify)
        register_secret(token)
        return SignedIn(token=token, ttl=None if expires is None else expires.timestamp() - reply.service_now)

    # -- DMS

    async def ask(self, command: Ask) -> Event:
        """``GET /tasks``."""
        try:
            reply = await self._get_task(command)
        except TransportError as error:
            return AskFailed(failure=_failure(error, command.generation))
        if reply.status in (204, 409):
            return NoWork(retry_after=reply.retry_after)
        if not reply.ok:
            return AskFailed(failure=_failure(_Refused("DMS lease", reply), command.generation))
        try:
            envelope = dms.decode_lease(reply.body)
        except UndecodableLease as error:
            if error.task_id is None:
                return AskFailed(failure=Failure(message=str(error)))
            return LeaseUnreadable(task_id=error.task_id, problem=error.reason)
        if envelope.access_token is not None:
            register_secret(envelope.access_token)
        route = self._route(envelope.task)
        return LeaseOffered(
            envelope=envelope,
            ttl=_ttl(envelope.lease_expires_at, reply),
            runner=route.runner,
            timeout=self._timeouts.get(route.runner),
            problem=route.problem,
        )

    async def _get_task(self, command: Ask) -> Reply:
        return await self._http.request(
            "GET",
            dms.tasks_url(self._config.dms_base_url, command.capability),
            headers=_bearer(command.token),
            within=self._config.request_timeout_secs,
        )

    async def heartbeat(self, command: SendHeartbeat) -> Event:
        """``POST /tasks/{id}/heartbeat``."""
        url = dms.heartbeat_url(self._config.dms_base_url, command.task_id)
        try:
            body = dms.heartbeat_body(command.progress, command.events)
            reply = await self._post("DMS heartbeat", url, body, command.token, command.timeout)
            # A service that has nothing to say may answer 204: it accepted.
            answer = dms.decode_heartbeat(reply.body) if reply.body else HeartbeatAnswer()
        except WireError as error:
            return HeartbeatFailed(lease=command.lease, failure=Failure(message=str(error)))
        except (TransportError, _Refused) as error:
            return HeartbeatFailed(lease=command.lease, failure=_failure(error, command.generation))
        if answer.access_token is not None:
            register_secret(answer.access_token)
        return HeartbeatAccepted(lease=command.lease, answer=answer, ttl=_ttl(answer.lease_expires_at, reply))

    async def offer(self, command: OfferOutcome) -> Event:
        """``POST /tasks/{id}/complete`` or ``/fail``."""
        base, outcome = self._config.dms_base_url, command.outcome
        try:
            if outcome.kind is OutcomeKind.COMPLETED:
                url, body = (
                    dms.complete_url(base, outcome.task.task_id),
                    dms.complete_body(outcome.task, outcome.artifacts),
                )
            else:
                url = dms.fail_url(base, outcome.task.task_id)
                details = {**outcome.details, **dms.task_report(outcome.task, outcome.artifacts)}
                body = dms.fail_body(scrub(outcome.reason), details)
            await self._post("DMS report", url, body, command.token)
        except WireError as error:
            # What cannot be written down will not be taken either.
            return OutcomeRejected(lease=command.lease, failure=Failure(message=str(error), status=422, sent=False))
        except (TransportError, _Refused) as error:
            return OutcomeRejected(lease=command.lease, failure=_failure(error, command.generation))
        return OutcomeAccepted(lease=command.lease)

    async def _post(
        self, what: str, url: str, body: bytes, token: Secret | None = None, within: float | None = None
    ) -> Reply:
        reply = await self._http.request(
            "POST",
            url,
            body=body,
            headers=_bearer(token),
            within=self._config.request_timeout_secs if within is None else within,
        )
        if not reply.ok:
            raise _Refused(what, reply)
        return reply


def _bearer(token: Secret | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}


def _ttl(expires: datetime | None, reply: Reply) -> float | None:
    return lease_ttl(None if expires is None else expires.timestamp(), reply.service_now)


def _failure(error: TransportError | _Refused, generation: int = 0) -> Failure:
    if isinstance(error, TransportError):
        return Failure(message=str(error), sent=error.sent, generation=generation)
    reply = error.reply
    return Failure(message=str(error), status=reply.status, retry_after=reply.retry_after, generation=generation)
