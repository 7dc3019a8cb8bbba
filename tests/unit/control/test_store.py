"""What every store does: one suite, run on each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from posemesh.control.memory import MemoryStore
from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerClosed,
    OutboxRow,
    ReceiptRow,
    Snapshot,
    StaleRows,
    Store,
    StoreError,
)
from tests.unit.control.stores import (
    KINDS,
    RUNTIME,
    Reopen,
    a_commit,
    a_receipt,
    a_runtime,
    an_entry,
    an_input,
    opened,
)

Body = Callable[[Store, Reopen], Awaitable[None]]


@pytest.fixture(params=KINDS)
def on_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a test on one kind of store, which is opened before it and closed after it."""

    def run(body: Body) -> None:
        async def main() -> None:
            async with opened(request.param, tmp_path / "state") as (store, reopen):
                await body(store, reopen)

        asyncio.run(main())

    return run


async def whole(store: Store, runtime: str = RUNTIME) -> tuple[object, ...]:
    """All that the store holds of a runtime."""
    return (
        await store.snapshot(runtime),
        await store.inputs(runtime),
        await store.receipts(runtime),
        await store.outbox(runtime),
        await store.runtimes(),
    )


def test_a_commit_is_there_when_it_returns_and_after_the_store_was_opened_again(on_store: Any) -> None:
    rows = (a_runtime(), an_input(key="t1", run="r1"), a_receipt(), an_entry())

    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(*rows))
        runtime, accepted, receipt, entry = rows
        for each in (store, None):
            each = each or await reopen()
            assert await each.snapshot(RUNTIME) == Snapshot(
                runtime=RUNTIME, lifecycle=runtime, inputs=(accepted,), outbox=(entry,), sequence=1, position=1
            )
            assert await each.runtimes() == (runtime,)
            assert await each.input(RUNTIME, "i1") == accepted
            assert await each.holder(RUNTIME, "t1") == accepted
            assert await each.inputs(RUNTIME, run="r1") == await each.inputs(RUNTIME) == (accepted,)
            assert await each.receipt(RUNTIME, "r1", 1) == receipt
            assert await each.receipts(RUNTIME, run="r1") == await each.receipts(RUNTIME) == (receipt,)
            assert await each.outbox(RUNTIME) == (entry,)

    on_store(body)


def test_what_is_not_there_is_none_or_empty(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(an_input(key="t1", run="r1"), a_receipt()))
        for runtime, name in ((RUNTIME, "other"), ("rt:other", "i1")):
            assert await store.input(runtime, name) is None
            assert await store.holder(runtime, name) is None
            assert await store.receipt(runtime, name, 1) is None
            assert await store.inputs(runtime, run=name) == ()
            assert await store.receipts(runtime, run=name) == ()
        assert await store.receipt(RUNTIME, "r1", 2) is None
        assert await store.snapshot("rt:other") == Snapshot(runtime="rt:other")

    on_store(body)


def test_every_column_comes_back_as_it_was(on_store: Any) -> None:
    """Also what text of the network may hold, numbers at their limits, and times that no decimal fraction is."""
    accepted = InputRow(
        runtime=RUNTIME,
        version=1,
        body='{"meta":"\\u0000 \x00 ünï 🜂 \' \\" --"}',
        id="i 1",
        phase="staged",
        open=False,
        position=2**63 - 1,
        key="",
        kind="task",
        task="t\n1",
        capability="/c/v1;drop table inputs",
        fence=-1,
        run="r1",
        reason="\ufffd",
        created=0.1 + 0.2,
        updated=-0.0,
    )

    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(accepted, a_receipt(created=1e-320), an_entry(fence=7, problem="é", updated=5)))
        store = await reopen()
        assert await store.input(RUNTIME, "i 1") == accepted
        assert (await store.receipts(RUNTIME))[0].created == 1e-320
        assert (await store.outbox(RUNTIME))[0] == an_entry(fence=7, problem="é", updated=5.0)

    on_store(body)


def test_a_row_is_written_only_over_the_version_that_was_observed(on_store: Any) -> None:
    first = an_input()

    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(first))
        await store.commit(a_commit(first.next(phase="staged")))
        before = await whole(store)
        for stale in (
            an_input(phase="other"),
            first.next(phase="consumed"),
            first.next().next().next(phase="consumed"),
            an_input(id="i2", version=2),
        ):
            with pytest.raises(StaleRows, match="read"):
                await store.commit(a_commit(stale))
        assert await whole(store) == before
        await store.commit(a_commit(first.next().next(phase="consumed", open=False)))
        assert (await store.snapshot(RUNTIME)).inputs == ()

    on_store(body)


@pytest.mark.parametrize(
    "refused",
    [
        a_commit(an_input(id="i2"), an_input(phase="other")),
        a_commit(an_input(id="i2"), a_receipt(3)),
        a_commit(an_input(id="i2"), a_receipt(1, body="[]")),
        a_commit(an_input(id="i2"), an_entry(version=2, body="{}")),
        a_commit(a_runtime(), an_input(id="i2", key="t1")),
        a_commit(an_input(id="i2"), removed=(an_input(id="i3"),)),
        a_commit(an_input(id="i2"), a_receipt(2), an_entry(id="o2"), observed=frozenset()),
    ],
)
def test_a_commit_that_is_refused_changes_nothing(on_store: Any, refused: Commit) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(an_input(key="t1"), a_receipt(), an_entry()))
        before = await whole(store)
        with pytest.raises(StoreError):
            await store.commit(refused)
        assert await whole(store) == before
        assert await whole(await reopen()) == before

    on_store(body)


def test_a_commit_whose_answer_was_lost_can_be_given_again(on_store: Any) -> None:
    accepted = an_input(key="t1")
    commits = [
        a_commit(a_runtime(), accepted, observed=frozenset()),
        a_commit(accepted.next(open=False), a_receipt(), an_entry(), observed=frozenset({("i1", 1)})),
        a_commit(an_entry().next(ending="delivered")),
        a_commit(removed=(accepted.next(),)),
    ]

    async def body(store: Store, reopen: Reopen) -> None:
        for commit in commits:
            await store.commit(commit)
            once = await whole(store)
            await store.commit(commit)
            assert await whole(store) == once

    on_store(body)


def test_half_of_it_stored_is_not_the_commit_stored(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(an_input()))
        with pytest.raises(StaleRows):
            await store.commit(a_commit(an_input(), an_input(id="i2")))
        assert len(await store.inputs(RUNTIME)) == 1

    on_store(body)


def test_receipts_are_numbered_densely_within_their_runtime_and_never_change(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        with pytest.raises(Conflict, match=r"expected .* 1"):
            await store.commit(a_commit(a_receipt(2)))
        await store.commit(a_commit(a_receipt(1), a_receipt(2, run="r2")))
        await store.commit(a_commit(a_receipt(1, runtime="rt:other")))
        for refused in (a_receipt(2, run="r3"), a_receipt(1, body="[1]"), a_receipt(4), a_receipt(0)):
            with pytest.raises(Conflict):
                await store.commit(a_commit(refused))
        store = await reopen()
        await store.commit(a_commit(a_receipt(3)))
        assert [row.sequence for row in await store.receipts(RUNTIME)] == [1, 2, 3]
        assert (await store.snapshot(RUNTIME)).sequence == 3

    on_store(body)


def test_a_key_has_one_holder_in_a_runtime_also_when_it_has_ended(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(an_input(key="t1", open=False)))
        await store.commit(a_commit(an_input(runtime="rt:other", key="t1")))
        with pytest.raises(Conflict):
            await store.commit(a_commit(an_input(id="i2", key="t1")))
        await store.commit(a_commit(an_input(id="i2")))
        with pytest.raises(Conflict):
            await store.commit(a_commit(an_input(id="i2", key="t1").next()))

    on_store(body)


def test_inputs_can_hand_keys_on_to_one_another_in_one_commit(on_store: Any) -> None:
    one, two = an_input(key="a"), an_input(id="i2", key="b")

    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(one, two))
        await store.commit(a_commit(one.next(key="b"), two.next(key="a")))
        newer = an_input(id="i3", key="b")
        await store.commit(a_commit(newer, one.next().next(key=None, phase="superseded", open=False)))
        store = await reopen()
        assert await store.holder(RUNTIME, "b") == newer
        assert await store.holder(RUNTIME, "a") == two.next(key="a")

    on_store(body)


def test_a_decision_about_all_open_inputs_is_stale_where_one_came_or_went(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        seen = (await store.snapshot(RUNTIME)).observed
        await store.commit(a_commit(an_input()))
        with pytest.raises(StaleRows):  # also what began with nothing
            await store.commit(a_commit(a_runtime(), observed=seen))
        with pytest.raises(StaleRows):
            await store.commit(a_commit(observed=seen))
        seen = (await store.snapshot(RUNTIME)).observed
        await store.commit(a_commit(an_input().next(open=False)))
        with pytest.raises(StaleRows):
            await store.commit(a_commit(a_runtime(), observed=seen))
        await store.commit(a_commit(an_input(runtime="rt:other")))
        await store.commit(a_commit(a_runtime(), observed=frozenset()))

    on_store(body)


def test_open_inputs_come_in_the_order_of_their_admission(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        rows = [an_input(id=f"i{n}", position=n) for n in (3, 1, 2)]
        await store.commit(a_commit(*rows))
        await store.commit(a_commit(rows[1].next(position=4)))
        assert [row.id for row in (await store.snapshot(RUNTIME)).inputs] == ["i2", "i3", "i1"]
        assert [row.id for row in await store.inputs(RUNTIME)] == ["i2", "i3", "i1"]
        assert (await store.snapshot(RUNTIME)).position == 4

    on_store(body)


def test_an_entry_waits_until_it_ends_and_ends_once(on_store: Any) -> None:
    entry = an_entry()

    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(entry))
        await store.commit(a_commit(entry.next(problem="503", fence=2)))
        with pytest.raises(Conflict, match="says something else"):
            await store.commit(a_commit(entry.next().next(body="{}")))
        assert len((await store.snapshot(RUNTIME)).outbox) == 1
        await store.commit(a_commit(entry.next().next(ending="refused")))
        for again in ("delivered", ""):
            with pytest.raises(Conflict, match="ended"):
                await store.commit(a_commit(entry.next().next().next(ending=again)))
        store = await reopen()
        assert (await store.snapshot(RUNTIME)).outbox == ()
        assert (await store.outbox(RUNTIME))[0].ending == "refused"

    on_store(body)


def test_an_input_that_was_removed_is_gone_and_its_key_is_free(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(an_input(key="t1")))
        with pytest.raises(StaleRows):
            await store.commit(a_commit(removed=(an_input(version=2),)))
        await store.commit(a_commit(an_input(id="i2", key="t1"), removed=(an_input(),)))
        assert [row.id for row in await store.inputs(RUNTIME)] == ["i2"]

    on_store(body)


def test_a_closed_store_says_so(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.close()
        await store.close()
        for refused in (store.commit(a_commit(a_runtime())), store.snapshot(RUNTIME), store.runtimes()):
            with pytest.raises(LedgerClosed):
                await refused

    on_store(body)


def test_rows_of_another_runtime_and_one_input_twice_are_no_commit() -> None:
    with pytest.raises(ValueError, match="rt:other"):
        a_commit(a_runtime(), an_input(runtime="rt:other"))
    with pytest.raises(ValueError, match="twice"):
        a_commit(an_input(), removed=(an_input(),))


# --- The same story told to both ----------------------------------------------------------------------------------

NAMES = st.sampled_from(("a", "b", "c"))
VERSIONS = st.integers(1, 4)
INPUTS = st.builds(
    an_input,
    id=NAMES,
    phase=st.sampled_from(("queued", "staged")),
    open=st.booleans(),
    key=st.none() | NAMES,
    run=st.none() | NAMES,
    position=st.integers(1, 3),
    version=VERSIONS,
)
COMMITS = st.builds(
    Commit,
    runtime=st.just(RUNTIME),
    lifecycle=st.none() | st.builds(a_runtime, version=VERSIONS),
    inputs=st.lists(INPUTS, max_size=3, unique_by=lambda row: row.id).map(tuple),
    receipts=st.lists(st.builds(a_receipt, st.integers(1, 4), NAMES), max_size=1).map(tuple),
    outbox=st.lists(
        st.builds(an_entry, id=NAMES, version=VERSIONS, ending=st.sampled_from(("", "delivered"))), max_size=1
    ).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(story=st.lists(COMMITS, min_size=1, max_size=12), fresh=st.booleans())
def test_both_stores_take_the_same_and_refuse_the_same(
    tmp_path_factory: pytest.TempPathFactory, story: list[Commit], fresh: bool
) -> None:
    """A story is fitted to what the stores hold now and then, so that it gets further than its first refusal."""

    async def main() -> None:
        model = MemoryStore()
        async with opened("sqlite", tmp_path_factory.mktemp("both")) as (store, reopen):
            for number, commit in enumerate(story):
                fitted = await fit(model, commit) if number % 3 or fresh else commit
                assert await takes(model, fitted) == await takes(store, fitted)
                assert await whole(model) == await whole(store)
            assert await whole(model) == await whole(await reopen())

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(story=st.lists(st.lists(COMMITS, min_size=1, max_size=4), min_size=1, max_size=6))
def test_what_is_committed_together_is_taken_or_refused_each_by_itself(
    tmp_path_factory: pytest.TempPathFactory, story: list[list[Commit]]
) -> None:
    """Those that wait for the disk share a transaction, which one of them that is refused does not spoil."""

    async def main() -> None:
        model = MemoryStore()
        async with opened("sqlite", tmp_path_factory.mktemp("groups")) as (store, reopen):
            for group in story:
                fitted = [await fit(model, commit) for commit in group]
                expected = [await takes(model, commit) for commit in fitted]
                assert await asyncio.gather(*(takes(store, commit) for commit in fitted)) == expected
                assert await whole(model) == await whole(store)
            assert await whole(model) == await whole(await reopen())

    asyncio.run(main())


async def takes(store: Store, commit: Commit) -> bool:
    """Of two reasons to refuse, either may be given."""
    try:
        await store.commit(commit)
    except StoreError:
        return False
    return True


async def fit(store: Store, commit: Commit) -> Commit:
    """``commit`` with the versions and numbers that the store would take."""
    snapshot = await store.snapshot(RUNTIME)
    versions: dict[tuple[type, str], int] = {(InputRow, row.id): row.version for row in await store.inputs(RUNTIME)}
    versions |= {(OutboxRow, row.id): row.version for row in await store.outbox(RUNTIME)}
    lifecycle = commit.lifecycle
    if lifecycle is not None:
        lifecycle = replace(lifecycle, version=1 + (snapshot.lifecycle.version if snapshot.lifecycle else 0))
    return replace(
        commit,
        lifecycle=lifecycle,
        inputs=tuple(replace(row, version=versions.get((InputRow, row.id), 0) + 1) for row in commit.inputs),
        outbox=tuple(replace(row, version=versions.get((OutboxRow, row.id), 0) + 1) for row in commit.outbox),
        receipts=tuple(replace(row, sequence=snapshot.sequence + 1) for row in commit.receipts),
        observed=snapshot.observed,
    )


def test_what_is_read_are_the_rows_that_were_written() -> None:
    """The memory's rows are the rows themselves, so that a test may look at them."""

    async def main() -> None:
        store = MemoryStore()
        await store.commit(a_commit(an_input(), a_receipt()))
        assert [type(row) for row in store.rows.values()] == [InputRow, ReceiptRow]

    asyncio.run(main())
