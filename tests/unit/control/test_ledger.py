"""The durable store on a loop: who waits for whom, and what one transaction takes in."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from posemesh.control.ledger import GROUP_CHARS, GROUP_MAX, SqliteStore
from posemesh.control.store import Commit, LedgerBusy, LedgerClosed, LedgerCorrupt, LedgerFailed, LedgerFull, StaleRows
from posemesh.shell.offload import HostOffload, InlineOffload, ThreadOffload
from tests.unit.control.stores import RUNTIME, a_commit, an_input, connecting
from tests.unit.control.test_database import Small

LIMIT_SECS = 60


class Slow(sqlite3.Connection):
    """A disk whose commits wait until they are let go, and how many there were."""

    commits = 0
    going: threading.Semaphore | None = None
    failing: Callable[[], None] | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and Slow.going is not None:
            assert Slow.going.acquire(timeout=LIMIT_SECS)
            Slow.commits += 1
            if Slow.failing is not None:
                Slow.failing()
        return super().execute(sql, *args)


async def on_slow_disk(place: Path) -> tuple[SqliteStore, threading.Semaphore]:
    """A store on a disk that waits, from now on."""
    Slow.going, Slow.failing = None, None
    store = await SqliteStore.open(place, HostOffload(), connect=connecting(Slow))
    Slow.commits, Slow.going = 0, threading.Semaphore(0)
    return store, Slow.going


def a_new(number: int) -> Commit:
    return a_commit(an_input(id=f"i{number}", position=number))


async def ids(store: SqliteStore) -> list[str]:
    return [row.id for row in await store.inputs(RUNTIME)]


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_all_commits_that_wait_are_one_transaction(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        first = asyncio.ensure_future(store.commit(a_new(1)))
        await turns()  # the disk is at it
        others = [asyncio.ensure_future(store.commit(a_new(number))) for number in range(2, 66)]
        await turns()
        assert not any(each.done() for each in (first, *others))
        assert await ids(store) == [], "nothing is seen before it is on the disk"
        going.release()
        await asyncio.wait_for(first, LIMIT_SECS)
        assert not any(each.done() for each in others)
        going.release()
        await asyncio.wait_for(asyncio.gather(*others), LIMIT_SECS)
        assert Slow.commits == 2
        assert len(await ids(store)) == 65
        await store.close()

    asyncio.run(main())


def test_a_flood_is_taken_in_parts_and_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())
        row = an_input()
        chain = [row]
        for _ in range(2 * GROUP_MAX):
            chain.append(chain[-1].next())
        await asyncio.gather(*(store.commit(a_commit(each)) for each in chain))
        found = await store.input(RUNTIME, "i1")
        assert found is not None and found.version == 2 * GROUP_MAX + 1
        await store.close()

    asyncio.run(main())


def test_the_loop_goes_on_while_the_disk_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        commit = asyncio.ensure_future(store.commit(a_new(1)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not commit.done()
        going.release()
        await asyncio.wait_for(commit, LIMIT_SECS)
        await store.close()

    asyncio.run(main())


def test_another_program_that_holds_the_file_is_waited_for_and_not_by_the_loop(tmp_path: Path) -> None:
    patience: list[tuple[bool, int]] = []

    class Told(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "BEGIN IMMEDIATE":
                (wait,) = super().execute("PRAGMA busy_timeout").fetchone()
                patience.append((threading.current_thread() is threading.main_thread(), wait))
            return super().execute(sql, *args)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload(), connect=connecting(Told))
        patience.clear()
        await store.commit(a_new(1))
        other = sqlite3.connect(store._database.path, isolation_level=None)
        for number in (2, 3):  # what was waited for once is waited for again
            other.execute("BEGIN IMMEDIATE")
            commit = asyncio.ensure_future(store.commit(a_new(number)))
            await turns(100)
            assert not commit.done()
            other.execute("ROLLBACK")
            await asyncio.wait_for(commit, LIMIT_SECS)
        other.close()
        assert await ids(store) == ["i1", "i2", "i3"]
        assert {wait for on_loop, wait in patience if on_loop} == {0}
        assert [wait > 0 for on_loop, wait in patience if not on_loop] == [True, True]
        await store.close()

    asyncio.run(main())


def test_a_thread_has_nothing_to_do_but_to_wait_for_the_disk(tmp_path: Path) -> None:
    """It would give the interpreter up and take it back at each statement, which cost more than the statements."""
    made: list[tuple[str, bool]] = []

    class Told(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            made.append((sql.split()[0], threading.current_thread() is threading.main_thread()))
            return super().execute(sql, *args)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload(), connect=connecting(Told))
        made.clear()
        await asyncio.gather(store.commit(a_new(1)), store.commit(a_new(2)))
        assert [sql for sql, here in made if not here] == ["COMMIT"]
        assert [sql for sql, here in made if here].count("INSERT") == 2
        await store.close()

    asyncio.run(main())


def test_a_transaction_is_in_memory_until_the_thread_ends_it(tmp_path: Path) -> None:
    """SQLite would write what its cache has no room for, and the loop would wait."""

    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        commit = asyncio.ensure_future(store.commit(a_commit(an_input(body='"' + "x" * 8_000_000 + '"'))))
        await turns(20)
        assert not commit.done() and (tmp_path / "ledger.db-wal").stat().st_size < 1_000_000
        going.release()
        await asyncio.wait_for(commit, LIMIT_SECS)
        assert (tmp_path / "ledger.db-wal").stat().st_size > 8_000_000
        await store.close()

    asyncio.run(main())


def test_a_thread_that_comes_late_leaves_the_work_to_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posemesh.control.ledger.LINGER_SECS", 3600.0)
    late: list[Callable[[], None]] = []

    class Slowly(HostOffload):
        async def call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
            if function.__name__ == "_work" and not late:
                late.append(partial(function, *args))
                raise RuntimeError("can't start new thread")
            return await super().call(function, *args, **named)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, Slowly())
        with pytest.raises(LedgerFailed):
            await store.commit(a_new(1))
        await store.commit(a_new(2))
        late[0]()
        threads = threading.active_count()
        await store.commit(a_new(3))
        assert threading.active_count() == threads
        await asyncio.wait_for(store.close(), LIMIT_SECS)

    asyncio.run(main())


def test_what_does_not_fit_is_refused_and_what_came_with_it_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload(), connect=connecting(Small))
        huge = a_commit(an_input(id="huge", body="x" * 4096 * 50))
        results = await asyncio.gather(*map(store.commit, (a_new(1), huge, a_new(2))), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), LedgerFull, type(None)]
        assert await ids(store) == ["i1", "i2"]
        await store.close()

    asyncio.run(main())


def test_one_that_is_refused_does_not_refuse_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())
        commits = (a_new(1), a_commit(an_input(id="i2", version=7)), a_new(3))
        results = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), StaleRows, type(None)]
        assert await ids(store) == ["i1", "i3"]
        await store.close()

    asyncio.run(main())


def test_a_disk_that_fails_fails_all_of_the_group_and_the_next_one_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)

        def fail() -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC  # type: ignore[misc]
            raise error

        Slow.failing = fail
        commits = [a_new(1), a_new(2)]
        going.release()
        results = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
        assert [type(result) for result in results] == [LedgerFailed] * 2
        assert await ids(store) == []
        Slow.failing = None
        going.release()
        await asyncio.gather(*map(store.commit, commits))
        assert await ids(store) == ["i1", "i2"]
        await store.close()

    asyncio.run(main())


def test_after_damage_was_met_nothing_more_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)

        def fail() -> None:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # type: ignore[misc]
            raise error

        Slow.failing = fail
        for _ in range(2):
            going.release()
            with pytest.raises(LedgerCorrupt, match="left as it is"):
                await store.commit(a_new(1))
        assert Slow.commits == 1, "not even tried"
        await store.close()

    asyncio.run(main())


class Crowded(HostOffload):
    """While it is ``full`` no thread can be had."""

    full = False

    async def call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if self.full:
            raise RuntimeError("can't start new thread")
        return await super().call(function, *args, **named)


def test_where_no_thread_can_be_had_nobody_waits_for_ever(tmp_path: Path) -> None:
    """A node with one slot would commit nothing else that could wake who waits."""

    async def main() -> None:
        offload = Crowded()
        store = await SqliteStore.open(tmp_path, offload)
        offload.full = True
        commits = asyncio.gather(*(store.commit(a_new(number)) for number in (1, 2)), return_exceptions=True)
        answers = await asyncio.wait_for(commits, LIMIT_SECS)
        assert [(type(each), "start new thread" in str(each)) for each in answers] == [(LedgerFailed, True)] * 2
        offload.full = False
        await store.commit(a_new(3))
        assert await ids(store) == ["i3"], "what nobody could finish is undone"
        await store.close()

    asyncio.run(main())


def test_a_close_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    """It had failed for ever, and kept the lock: this process could not open the directory again."""

    async def main() -> None:
        offload = Crowded()
        store = await SqliteStore.open(tmp_path, offload)
        offload.full = True
        with pytest.raises(RuntimeError, match="new thread"):
            await store.close()
        offload.full = False
        await store.close()
        await store.close()
        await (await SqliteStore.open(tmp_path, offload)).close()

    asyncio.run(main())


def test_what_no_thread_could_end_is_taken_back_at_once(tmp_path: Path) -> None:
    """It held the file until the next commit, which may be hours away."""

    class Unfit(HostOffload):
        async def call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
            if function.__name__ == "_work":
                raise RuntimeError("can't start new thread")
            return await super().call(function, *args, **named)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, Unfit())
        with pytest.raises(LedgerFailed):
            await store.commit(a_new(1))
        other = sqlite3.connect(store._database.path, isolation_level=None, timeout=0)
        other.execute("BEGIN IMMEDIATE")
        other.close()
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("after", range(6))
def test_a_host_that_cancels_all_its_tasks_can_close_the_store_all_the_same(tmp_path: Path, after: int) -> None:
    """Among them may be the one that was to start the thread."""

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())
        commit = asyncio.ensure_future(store.commit(a_new(1)))
        await turns(after)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait((commit,))
        with suppress(LedgerFailed):  # where the thread was not there yet
            await asyncio.wait_for(store.commit(a_new(2)), LIMIT_SECS)
        await asyncio.wait_for(store.close(), LIMIT_SECS)

    asyncio.run(main())


def test_a_loop_that_ends_while_a_store_is_closed_leaves_one_that_can_be_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> SqliteStore:
        store, _ = await on_slow_disk(tmp_path)
        commit = asyncio.ensure_future(store.commit(a_new(1)))
        closing = asyncio.ensure_future(store.close())
        await turns(20)
        assert not commit.done() and not closing.done()
        return store

    left = asyncio.run(leave())
    assert Slow.going is not None
    Slow.going.release()

    async def close() -> list[str]:
        await asyncio.wait_for(left.close(), LIMIT_SECS)
        store = await SqliteStore.open(tmp_path, HostOffload())
        found = await ids(store)
        await store.close()
        return found

    assert asyncio.run(close()) == ["i1"]
    assert "Exception in callback" not in caplog.text


def test_nothing_is_committed_on_another_loop_than_the_one_that_left_something_behind(tmp_path: Path) -> None:
    async def leave() -> SqliteStore:
        store, _ = await on_slow_disk(tmp_path)
        commit = asyncio.ensure_future(store.commit(a_new(1)))
        await turns(20)
        assert not commit.done()
        return store

    async def go_on(left: SqliteStore) -> None:
        with pytest.raises(LedgerClosed, match="open it anew"):
            await left.commit(a_new(2))
        await asyncio.wait_for(left.close(), LIMIT_SECS)

    left = asyncio.run(leave())
    assert Slow.going is not None
    Slow.going.release()
    asyncio.run(go_on(left))


def test_a_closed_store_has_no_task_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posemesh.control.ledger.LINGER_SECS", 3600.0)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())
        await store.commit(a_new(1))
        await asyncio.wait_for(store.close(), LIMIT_SECS)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_damage_that_is_met_once_is_not_written_over(tmp_path: Path) -> None:
    """A statement met it on the loop, and the thread, which tries again, did not."""
    told: list[str] = []

    class Damaged(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith("INSERT") and not told:
                told.append(sql)
                error = sqlite3.DatabaseError("database disk image is malformed")
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # type: ignore[misc]
                raise error
            return super().execute(sql, *args)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload(), connect=connecting(Damaged))
        told.clear()
        for number in (1, 2):
            with pytest.raises(LedgerCorrupt):
                await store.commit(a_new(number))
        assert await ids(store) == []
        await store.close()

    asyncio.run(main())


def test_those_behind_one_that_waited_in_vain_for_another_program_do_not_wait_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posemesh.control.database._BUSY_SECS", 0.05)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())
        other = sqlite3.connect(store._database.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        tries: list[int] = []
        write = store._database.write
        monkeypatch.setattr(store._database, "write", lambda group: (tries.append(len(group)), write(group))[1])
        commits = [store.commit(a_new(number)) for number in range(3 * GROUP_MAX)]
        results = await asyncio.gather(*commits, return_exceptions=True)
        assert {type(each) for each in results} == {LedgerBusy} and tries == [GROUP_MAX]
        other.close()
        await store.commit(a_new(1))
        await store.close()

    asyncio.run(main())


def test_long_rows_share_no_transaction_with_many_others(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        going.release(100)
        body = '"' + "x" * (GROUP_CHARS // 2) + '"'
        await asyncio.gather(*(store.commit(a_commit(an_input(id=f"i{each}", body=body))) for each in range(8)))
        assert Slow.commits == 4
        assert len(await ids(store)) == 8
        await store.close()

    asyncio.run(main())


def test_a_caller_that_gives_up_does_not_harm_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        given_up, staying = (asyncio.ensure_future(store.commit(a_new(number))) for number in (1, 2))
        await turns()
        given_up.cancel()
        await turns()
        going.release()
        await asyncio.wait_for(staying, LIMIT_SECS)
        assert given_up.cancelled()
        assert await ids(store) == ["i1", "i2"], "it happened all the same"
        await store.close()

    asyncio.run(main())


def test_close_lets_what_was_asked_for_end(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        commits = [asyncio.ensure_future(store.commit(a_new(number))) for number in (1, 2)]
        await turns()
        closing = [asyncio.ensure_future(store.close()) for _ in range(2)]
        await turns()
        with pytest.raises(LedgerClosed):
            await store.commit(a_new(3))
        with pytest.raises(LedgerBusy):
            await SqliteStore.open(tmp_path, HostOffload())
        assert not any(each.done() for each in (*commits, *closing))
        going.release(2)
        await asyncio.wait_for(asyncio.gather(*commits, *closing), LIMIT_SECS)
        again = await SqliteStore.open(tmp_path, HostOffload())
        assert await ids(again) == ["i1", "i2"]
        await again.close()

    asyncio.run(main())


def test_nodes_of_one_process_share_one_store(tmp_path: Path) -> None:
    async def main() -> None:
        store, going = await on_slow_disk(tmp_path)
        going.release(100)
        hosted = [a_commit(an_input(runtime=f"rt:node:{number}", key="t1")) for number in range(20)]
        await asyncio.gather(*map(store.commit, hosted))
        assert Slow.commits == 1
        for number in range(20):
            assert len(await store.inputs(f"rt:node:{number}")) == 1
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("offload", [InlineOffload, HostOffload, ThreadOffload])
def test_it_works_wherever_blocking_calls_go(tmp_path: Path, offload: Callable[[], Any]) -> None:
    async def main() -> None:
        place = offload()
        store = await SqliteStore.open(tmp_path, place)
        await asyncio.gather(*(store.commit(a_new(number)) for number in range(9)))
        assert len(await ids(store)) == 9
        assert "0 waiting" in repr(store)
        await store.close()
        place.close()

    asyncio.run(main())


@pytest.mark.parametrize("linger", [0.0, 1e-9, 1e-4])
def test_none_is_forgotten_just_when_the_writing_thread_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linger: float
) -> None:
    monkeypatch.setattr("posemesh.control.ledger.LINGER_SECS", linger)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())

        async def some(name: str) -> None:
            for number in range(60):
                await store.commit(a_commit(an_input(id=f"{name}{number}")))

        await asyncio.wait_for(asyncio.gather(some("a"), some("b")), LIMIT_SECS)
        assert len(await ids(store)) == 120
        await store.close()

    asyncio.run(main())


def test_a_loop_that_ends_without_closing_leaves_a_ledger_that_can_be_opened(tmp_path: Path) -> None:
    """As when a program ends by an error. What was told as committed is there."""

    async def leave() -> SqliteStore:
        store = await SqliteStore.open(tmp_path, HostOffload())
        await store.commit(a_new(1))
        return store

    async def find(left: SqliteStore) -> list[str]:
        with pytest.raises(LedgerBusy):
            await SqliteStore.open(tmp_path, HostOffload())
        await left.close()
        store = await SqliteStore.open(tmp_path, HostOffload())
        found = await ids(store)
        await store.close()
        return found

    left = asyncio.run(leave())
    assert asyncio.run(find(left)) == ["i1"]
