"""What is known of a runtime and its inputs, as frozen records with one strict JSON form.

An input is two things. Its *seed* holds the seven facts that the machine owns; nothing but an event of the machine
changes them. Its *shell* is plain data around them, which decides nothing. A stored row is both; when it is read back
its seed is a witness: recovery sends it through the machine again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from random import Random
from typing import Final, NewType, TypeVar

import msgspec

from posemesh.errors import WireError
from posemesh.events.control import AbandonReason, InputId, Lane, RunId
from posemesh.machines.driver import RuntimeState
from posemesh.machines.input import InputPhase
from posemesh.types import JSON, Artifact, Outcome

__all__ = (
    "POLICY_VERSION",
    "TERMINAL_PHASES",
    "AbandonReason",
    "Boundary",
    "BoundaryReceipt",
    "Durability",
    "EventCategory",
    "HistoryEntry",
    "Ids",
    "Input",
    "InputId",
    "InputKind",
    "InputPhase",
    "InputState",
    "InputStateSeed",
    "Lane",
    "LogicalRuntimeId",
    "Origin",
    "OutboxEntry",
    "PolicyDecision",
    "ReceiptDraft",
    "RunId",
    "RuntimeEvent",
    "RuntimeEventEnvelope",
    "RuntimeRecord",
    "RuntimeState",
    "Signal",
    "StoredInputState",
    "TerminalOutcome",
    "decode",
    "digest_of",
    "encode",
)

T = TypeVar("T")

POLICY_VERSION: Final = 1
TERMINAL_PHASES: Final = frozenset(
    {InputPhase.CONSUMED, InputPhase.SUPERSEDED, InputPhase.COALESCED, InputPhase.ABANDONED}
)

LogicalRuntimeId = NewType("LogicalRuntimeId", str)
"""The lasting name of a hosted runtime: it survives restarts, retirement and recycling."""


class Ids:
    """Makes UUIDv7 names in rising order, also where the clock stands still or is turned back.

    ``wall`` gives seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float], rng: Random) -> None:
        self._wall = wall
        self._rng = rng
        self._latest = 0

    def __call__(self) -> str:
        """The next name. RFC 9562, version 7: milliseconds, then 74 random bits."""
        random = self._rng.getrandbits(74)
        made = (int(self._wall() * 1000) & (1 << 48) - 1) << 74 | random
        self._latest = made if made > self._latest else self._latest + 1 + (random >> 44)
        head, tail = self._latest >> 62, self._latest & (1 << 62) - 1
        text = f"{head >> 12:012x}7{head & 0xFFF:03x}{0b10 << 62 | tail:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def input(self) -> InputId:
        return InputId(self())

    def run(self) -> RunId:
        return RunId(self())


# -- What comes in --------------------------------------------------------------------------------------------------


class InputKind(StrEnum):
    """What an input is; its kind alone decides how it is treated."""

    TASK = "task"
    """A leased task."""
    PROGRESS = "progress"
    """A heartbeat, progress or telemetry of a task: only the latest counts."""
    STEER = "steer"
    """A cancellation, a revoked lease, a changed setting: taken up before any task."""
    OPERATION = "operation"
    """An acknowledgement or notice of the service: on record, and nothing to do."""
    CONTINUATION = "continuation"
    """A timer, a retry that is due, a look at a lease's expiry: the node makes it, and makes it anew after a crash."""


class Origin(StrEnum):
    """Who gave it."""

    SERVICE = "service"
    OPERATOR = "operator"
    RUNNER = "runner"
    SYSTEM = "system"


class Durability(StrEnum):
    DURABLE = "durable"
    """On record before it is acknowledged."""
    EPHEMERAL = "ephemeral"
    """May be lost with the process; it never touches the disk."""
    DERIVED = "derived"
    """Can be made anew from what is on record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a runtime is given. ``at`` is in seconds since 1970.

    ``idempotency_key`` is what it is about and not the attempt: the id of its task. ``fence`` is the local number of
    the lease, from the driver's ``next_fence``; a higher one of the same key opens the key anew. Of inputs that wait
    with one kind and ``supersession_key`` the latest takes in the others. ``lane`` asks for another lane than that of
    its kind. ``capability`` is what a task is. ``payload`` may be the lease as JSON; its ``access_token``
    is not put on record.
    """

    id: InputId
    kind: InputKind
    at: float
    origin: Origin
    durability: Durability | None
    idempotency_key: str | None = None
    fence: int = 0
    supersession_key: str | None = None
    correlation_id: str | None = None
    lane: Lane | None = None
    capability: str = ""
    payload: dict[str, JSON] = field(default_factory=dict)


class Signal(StrEnum):
    """What the run loop is to do after an admission, from the weakest to the strongest; the strongest is kept."""

    NONE = "none"
    WAKE_LOOP = "wake_loop"
    INTERRUPT_YIELDING = "interrupt_yielding"
    REQUEST_IMMEDIATE = "request_immediate"

    @property
    def rank(self) -> int:
        return list(Signal).index(self)


class Boundary(StrEnum):
    """Where in a run its inputs are taken up."""

    RUN_START = "run_start"
    RUN_CHECKPOINT = "run_checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDecision:
    """How an input is treated; stored with it, with the version of the policy that said so.

    ``lane`` is None where it is consumed on accept. ``idle`` and ``busy`` are the signals it raises.
    """

    lane: Lane | None
    apply: Boundary | None
    idle: Signal
    busy: Signal
    coalesce: bool = False
    version: int = POLICY_VERSION


# -- What is known of an input --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalOutcome:
    """How an input ended. Superseded names its successor, Coalesced what took it in, Abandoned its reason and, where
    that is the number of attempts, how many there were.
    """

    phase: InputPhase
    by: InputId | None = None
    reason: AbandonReason | None = None
    attempts: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStateSeed:
    """The machine's facts. ``last_run_id`` is the run it last took part in, also after that run's end."""

    phase: InputPhase = InputPhase.ACCEPTED
    last_run_id: RunId | None = None
    last_boundary_sequence: int | None = None
    admission_sequence: int | None = None
    terminal_outcome: TerminalOutcome | None = None
    attempt_count: int = 0
    recovery_lane: Lane | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One move: ``at`` in seconds since 1970."""

    at: float
    source: InputPhase
    dest: InputPhase
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputState:
    """The shell. ``input`` has lost its payload once it has ended; times are in seconds since 1970."""

    input: Input
    policy: PolicyDecision
    created_at: float
    updated_at: float
    recovery_count: int = 0
    history: tuple[HistoryEntry, ...] = ()

    @property
    def input_id(self) -> InputId:
        return self.input.id


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInputState:
    """One row: ``runtime_id`` and the input's id are its key."""

    runtime_id: LogicalRuntimeId
    state: InputState
    seed: InputStateSeed

    @property
    def input_id(self) -> InputId:
        return self.state.input.id

    @property
    def terminal(self) -> bool:
        return self.seed.phase in TERMINAL_PHASES


# -- What is known of a runtime -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRecord:
    """A runtime as it is stored, in a state that a dead process can leave. The rest are the last numbers given."""

    state: RuntimeState
    epoch: str = ""
    fence: int = 0
    outbox_sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryReceipt:
    """The durable record of a step that was done: which run (``run_name`` is the router's readable name of it), for
    which inputs in which order. ``sequence`` is dense within the runtime, from 1.

    ``digest`` is the SHA-256 in hex of the list of artifacts, and ``message_count`` its length.
    """

    runtime_id: LogicalRuntimeId
    run_id: RunId
    boundary: Boundary
    contributing_input_ids: tuple[InputId, ...]
    sequence: int
    run_name: str = ""
    digest: str | None = None
    message_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptDraft:
    """What whoever ran a step says of it; the driver compares it with what it knows before it makes a receipt of it.

    ``sequence`` is the driver's to give; where one is named it has to be the next.
    """

    run_id: RunId
    contributing_input_ids: tuple[InputId, ...]
    digest: str | None = None
    message_count: int = 0
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """An outcome on its way to the task service, as it stays however often it is offered; the lease it is offered under
    and how its delivery ended stand beside it in its row. ``digest`` is the SHA-256 in hex of the list of artifacts.

    ``receipt`` is the sequence of the receipt it was committed with, None where the work came to no boundary;
    ``position`` the last place that had been given to an input by then, None where that was not noted.
    """

    id: str
    input_id: InputId
    run_id: RunId | None
    outcome: Outcome
    digest: str
    receipt: int | None = None
    position: int | None = None


# -- What comes out -------------------------------------------------------------------------------------------------


class EventCategory(StrEnum):
    """What an event is about, and what its delivery changes of the runtime."""

    INPUT = "input"
    """An input moved. Told after it is on record; it changes nothing, as what moves an input is a call."""
    RUN = "run"
    """A run began or ended. It changes nothing."""
    STATE = "state"
    """The runtime went from one state to another. It changes nothing."""
    TOPOLOGY = "topology"
    """A runtime came to be, or was retired, recycled or destroyed. It changes nothing."""
    PROJECTION = "projection"
    """A view of something, such as the progress of a task: it takes the place of the runtime's latest one of that name,
    in memory only.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEvent:
    """``code`` is ``category.name``, such as ``input.staged``, and does not change."""

    category: EventCategory
    name: str
    input_id: InputId | None = None
    run_id: RunId | None = None
    details: dict[str, JSON] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return f"{self.category}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEventEnvelope:
    """An event on its way. ``timestamp`` is in seconds since 1970; ``causation`` is the id of what it follows from, and
    ``correlation`` that of the whole affair, across nodes and services.
    """

    id: str
    timestamp: float
    runtime_id: LogicalRuntimeId
    event: RuntimeEvent
    causation: str | None = None
    correlation: str | None = None


def digest_of(artifacts: tuple[Artifact, ...]) -> str:
    """The SHA-256 in hex of a list of artifacts, in its one JSON form."""
    return sha256(encode(artifacts)).hexdigest()


def encode(record: object) -> bytes:
    """``record`` as JSON. Raises WireError for a payload that JSON has no form for."""
    try:
        return msgspec.json.encode(record)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise WireError(f"{type(record).__name__} has no JSON form: {error}") from None


def decode(kind: type[T], text: bytes | str) -> T:
    """The record that ``encode`` wrote. Raises WireError, with the path of the field, for anything else."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{kind.__name__} cannot be read: {error}") from None
