from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from posemesh.shell.ledger import MemoryLedger
from posemesh.types import LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity, TaskSpec

ENVELOPE = LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability="/c/v1"))


def outcome(kind: OutcomeKind) -> Outcome:
    return Outcome(kind=kind, task=TaskIdentity(task_id=str(UUID(int=1))))


@pytest.mark.parametrize("kind", [OutcomeKind.COMPLETED, OutcomeKind.FAILED])
def test_a_report_is_owed_until_it_is_settled(kind: OutcomeKind) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        ledger.commit_accepted(1, ENVELOPE)
        assert ledger.unsettled() == ()
        ledger.commit_outcome(1, outcome(kind))
        assert ledger.unsettled() == (outcome(kind),)
        ledger.settle(1, "delivered")
        ledger.settle(1, "delivered")
        assert ledger.unsettled() == ()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [OutcomeKind.CANCELLED, OutcomeKind.LOST])
def test_what_is_not_reported_is_not_owed(kind: OutcomeKind) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        ledger.commit_outcome(1, outcome(kind))
        assert ledger.unsettled() == ()

    asyncio.run(main())


def test_two_leases_of_one_task_are_two() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        for lease in (1, 2):
            ledger.commit_outcome(lease, outcome(OutcomeKind.COMPLETED))
        ledger.settle(1, "refused")
        assert len(ledger.unsettled()) == 1

    asyncio.run(main())
