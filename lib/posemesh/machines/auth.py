"""Auth: the node token, got by signing in with Ethereum (SIWE) at DDS.

Rules:
1. One sign-in is in flight at a time, whoever asks. A round is 1 + TOKEN_REAUTH_MAX_RETRIES attempts; rounds that fail
   are at least 10 s apart.
2. A token serves until its true expiry, also while its successor is fetched: an outage of DDS stops nothing before
   that.
3. A 401 concerns the generation it was given for: only one on the current token starts a sign-in. While that sign-in
   lasts the rejected token is not sent, for DOUBT_SECS at most; then it serves again, since the 401 may have been the
   error, and leases must not be lost to a DDS that hangs.
4. Only at start, that is before the first token, and only when every answer of the round was a refusal (400, 401,
   403), does a failed round end the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from posemesh.commands import Command, GiveUp, SignIn, Warn
from posemesh.errors import SignInRefused
from posemesh.events import (
    AttemptDue,
    Event,
    NodeLeft,
    RearmNoted,
    RefreshDue,
    SignedIn,
    SignInFailed,
    SignInWanted,
    TokenExpired,
    TokenRejected,
)
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject
from posemesh.policy import DOUBT_SECS, token_attempt_delay, token_margin, token_refresh_delay, token_round_delay
from posemesh.secret import Secret

__all__ = ("MACHINE", "Auth", "AuthState", "invariants")


class AuthState(State):
    SIGNED_OUT = "signed_out", "The wallet is not registered yet; nothing was tried."
    SIGNING_IN = "signing_in", "A sign-in is in flight and no token serves."
    RETRYING = "retrying", "No token serves; the next attempt or the next round waits for its time."
    SIGNED_IN = "signed_in", "A token serves."
    REFRESHING = "refreshing", "A round for the next token is under way; the present one serves until its true expiry."
    STOPPED = "stopped", "The node is over, or DDS refused it its first token."


SIGNED_OUT, SIGNING_IN, RETRYING, SIGNED_IN, REFRESHING, STOPPED = AuthState


@dataclass(eq=False, slots=True, kw_only=True)
class Auth(Subject):
    """``attempts`` and ``refusals`` count in this round, ``rounds`` failed rounds in a row; ``disowned`` waits to be
    told on.

    ``rejected`` while a sign-in lasts that a 401 on this token began. ``expires_at`` is monotonic, a margin before the
    true expiry; None is unknown: the token serves until a 401.
    """

    state: State = SIGNED_OUT
    token: Secret | None = None
    generation: int = 0
    expires_at: float | None = None
    rejected: bool = False
    doubted_until: float = 0.0
    attempts: int = 0
    refusals: int = 0
    rounds: int = 0
    disowned: bool = False

    def usable(self, now: float) -> tuple[Secret, int] | None:
        """The token to send now with its generation, None where there is none."""
        if self.token is None or (self.rejected and now < self.doubted_until):
            return None
        if self.expires_at is not None and now >= self.expires_at:
            return None
        return self.token, self.generation


def live(auth: Auth, step: Step[SignedIn]) -> bool:
    return step.event.ttl is None or step.event.ttl > 0


def hopeless(auth: Auth, step: Step[SignInFailed]) -> bool:
    return auth.generation == 0 and round_spent(auth, step) and auth.refusals + _refusals(step) == auth.attempts


def round_spent(auth: Auth, step: Step[SignedIn | SignInFailed]) -> bool:
    return auth.attempts > step.config.token_reauth_max_retries


def current(auth: Auth, step: Step[TokenRejected]) -> bool:
    return step.event.generation == auth.generation and auth.rounds == 0


def between_attempts(auth: Auth, step: Step[TokenExpired]) -> bool:
    return AttemptDue in auth.timers


def _refusals(step: Step[SignedIn | SignInFailed]) -> int:
    return int(isinstance(step.event, SignInFailed) and step.event.failure.status in (400, 401, 403))


def start_round(auth: Auth, step: Step[Event]) -> Command:
    auth.attempts = auth.refusals = 0
    auth.disarm(RefreshDue)
    return attempt(auth, step)


def attempt(auth: Auth, step: Step[Event]) -> Command:
    auth.attempts += 1
    auth.disarm(AttemptDue)
    return SignIn()


def keep_token(auth: Auth, step: Step[SignedIn]) -> None:
    auth.token, auth.generation = step.event.token, auth.generation + 1
    auth.rounds = auth.attempts = auth.refusals = 0
    auth.rejected = auth.disowned = False
    auth.disarm(AttemptDue, RefreshDue, TokenExpired)
    auth.expires_at = None
    if (ttl := step.event.ttl) is not None:
        auth.expires_at = step.now + ttl - token_margin(ttl)
        auth.arm(TokenExpired, auth.expires_at)
        wait = token_refresh_delay(ttl, step.config.token_safety_ratio, step.config.token_reauth_jitter_ms, step.rng)
        auth.arm(RefreshDue, step.now + wait)


def note_failure(auth: Auth, step: Step[SignedIn | SignInFailed]) -> None:
    auth.refusals += _refusals(step)
    if isinstance(step.event, SignInFailed):
        auth.disowned |= step.event.at_verify and step.event.failure.status in (403, 404)


def pause(auth: Auth, step: Step[Event]) -> None:
    auth.arm(AttemptDue, step.now + token_attempt_delay(step.config.token_reauth_jitter_ms, step.rng))


def _rest(auth: Auth, step: Step[SignedIn | SignInFailed], due: type[Event]) -> Command:
    auth.rounds += 1
    wait = token_round_delay(auth.rounds, step.rng)
    auth.attempts = auth.refusals = 0
    auth.arm(due, step.now + wait)
    what = (
        step.event.failure.message
        if isinstance(step.event, SignInFailed)
        else "DDS gave a token that has expired already"
    )
    return Warn(message=f"sign-in failed: {what}; next round in {wait:.0f} s")


def rest(auth: Auth, step: Step[SignedIn | SignInFailed]) -> Command:
    return _rest(auth, step, AttemptDue)


def rest_on_token(auth: Auth, step: Step[SignedIn | SignInFailed]) -> Command:
    auth.rejected = False
    return _rest(auth, step, RefreshDue)


def begin_round(auth: Auth, step: Step[Event]) -> Command:
    return start_round(auth, step) if auth.attempts == 0 else attempt(auth, step)


def mark_rejected(auth: Auth, step: Step[TokenRejected]) -> None:
    auth.rejected, auth.doubted_until = True, step.now + DOUBT_SECS


def drop_token(auth: Auth, step: Step[Event]) -> None:
    auth.token = auth.expires_at = None
    auth.rejected = False
    auth.disarm(TokenExpired)


def drop_and_wait(auth: Auth, step: Step[TokenExpired]) -> None:
    drop_token(auth, step)
    auth.arm(AttemptDue, auth.timers.pop(RefreshDue, step.now))


def clear_disowned(auth: Auth, step: Step[RearmNoted]) -> None:
    auth.disowned = False


def give_up(auth: Auth, step: Step[SignInFailed]) -> Command:
    return GiveUp(
        error=SignInRefused(
            f"DDS refused the sign-in {auth.attempts} times: {step.event.failure.message}. "
            "Check that this wallet (SECP256K1_PRIVHEX) belongs to the node that REG_SECRET was issued for."
        )
    )


def _failed_attempt(event: type[Event]) -> tuple[Edge, ...]:
    return (
        Edge(event, SIGNING_IN, RETRYING, "the round is spent: DDS gets a rest", round_spent, (note_failure, rest)),
        Edge(event, SIGNING_IN, RETRYING, "an attempt may fail in passing", do=(note_failure, pause)),
        Edge(
            event,
            REFRESHING,
            SIGNED_IN,
            "the round is spent, but the token serves on",
            round_spent,
            (note_failure, rest_on_token),
        ),
        Edge(event, REFRESHING, None, "an attempt may fail in passing", do=(note_failure, pause)),
        Edge(event, STOPPED, None, "an answer may outlive the node"),
    )


_LIVE = (SIGNED_OUT, SIGNING_IN, RETRYING, SIGNED_IN, REFRESHING)

TABLE = (
    Edge(SignInWanted, SIGNED_OUT, SIGNING_IN, "the wallet is registered, so DDS will give a token", do=(start_round,)),
    Edge(SignedIn, (SIGNING_IN, REFRESHING), SIGNED_IN, "a new generation begins", live, (keep_token,)),
    *_failed_attempt(SignedIn),
    Edge(
        SignInFailed,
        SIGNING_IN,
        STOPPED,
        "DDS refused all of a round before there was a token: waiting mends nothing",
        hopeless,
        (give_up,),
    ),
    *_failed_attempt(SignInFailed),
    Edge(AttemptDue, RETRYING, SIGNING_IN, "the pause is over", do=(begin_round,)),
    Edge(AttemptDue, REFRESHING, None, "the pause within the round is over", do=(attempt,)),
    Edge(
        RefreshDue, SIGNED_IN, REFRESHING, "a successor is fetched while there is time for failures", do=(start_round,)
    ),
    Edge(
        TokenExpired, SIGNED_IN, RETRYING, "rounds have failed until now; the next keeps its time", do=(drop_and_wait,)
    ),
    Edge(TokenExpired, REFRESHING, RETRYING, "the round goes on without a token", between_attempts, (drop_token,)),
    Edge(TokenExpired, REFRESHING, SIGNING_IN, "the round goes on without a token", do=(drop_token,)),
    Edge(
        TokenRejected,
        SIGNED_IN,
        REFRESHING,
        "the service does not take the current token, so another is needed",
        current,
        (mark_rejected, start_round),
    ),
    Edge(TokenRejected, SIGNED_IN, None, "an older token was meant, or DDS is given its rest after a failed round"),
    Edge(
        TokenRejected,
        (SIGNED_OUT, SIGNING_IN, RETRYING, REFRESHING, STOPPED),
        None,
        "a sign-in is under way or due already, or none is wanted",
    ),
    Edge(RearmNoted, tuple(AuthState), None, "registration knows", do=(clear_disowned,)),
    Edge(NodeLeft, _LIVE, STOPPED, "the node is over", do=(drop_token,)),
    Edge(NodeLeft, STOPPED, None, "it has stopped already"),
)

MACHINE = Lifecycle("auth", AuthState, TABLE, subject=Auth, initial=SIGNED_OUT, ends=(STOPPED,))


def invariants(auth: Auth) -> Iterator[str]:
    """What does not hold and should."""
    if auth.state in (SIGNED_OUT, SIGNING_IN, RETRYING, STOPPED) and auth.token is not None:
        yield f"{auth.state} with a token"
    if auth.state in (SIGNED_IN, REFRESHING) and auth.token is None:
        yield f"{auth.state} without a token"
    if auth.state is RETRYING and AttemptDue not in auth.timers:
        yield "retrying without a next attempt"
    if auth.state is SIGNED_IN and auth.expires_at is not None and RefreshDue not in auth.timers:
        yield "signed in with an expiry and no refresh"
    if auth.state is SIGNING_IN and auth.timers:
        yield f"signing in with timers {auth.timers}"
    if auth.rejected and auth.state is not REFRESHING:
        yield f"{auth.state} with a token marked as rejected"
