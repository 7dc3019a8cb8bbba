"""The ledger's file through crashes, damage, full disks and strangers. The store in memory says what it should hold."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posemesh.control import tables
from posemesh.control.database import FILE, LOCK, Database, reading
from posemesh.control.memory import MemoryStore
from posemesh.control.store import (
    Commit,
    InputRow,
    LedgerBusy,
    LedgerClosed,
    LedgerCorrupt,
    LedgerFailed,
    LedgerFull,
    LedgerTooNew,
    LedgerUnfit,
    OutboxRow,
    ReceiptRow,
    Row,
    RuntimeRow,
    StaleRows,
    StoreError,
)
from tests.unit.control.crashing import STORY, finished, taken
from tests.unit.control.stores import a_commit, a_receipt, a_runtime, an_entry, an_input, connecting

ROOT = Path(__file__).parents[3]
Rows = list[Row]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, where there is one: what is tested here is the order of writes, not the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def stored(db: sqlite3.Connection) -> Rows:
    """Every row, read strictly, as the queries of a store find them too."""
    found: Rows = []
    for kind in (RuntimeRow, InputRow, ReceiptRow, OutboxRow):
        rows: Sequence[Row] = tables.rows(db, kind, f"ORDER BY {', '.join(tables.KEYS[kind])}")
        found += rows
    for runtime in {row.runtime for row in found}:
        now = tables.snapshot(db, runtime)
        waits = [row for row in found if isinstance(row, OutboxRow) and not row.ending]
        is_open = [row for row in found if isinstance(row, InputRow) and row.open]
        assert sorted((*now.inputs, *now.outbox), key=name) == sorted((*is_open, *waits), key=name)
    return found


def states() -> list[Rows]:
    """What may be stored after each transaction of the story, the first of them after none."""

    async def tell() -> list[Rows]:
        store, told = MemoryStore(), [[]]
        for group in STORY:
            for commit in group:
                await store.commit(commit)
            kinds = (RuntimeRow, InputRow, ReceiptRow, OutboxRow)
            rows = sorted(store.rows.values(), key=lambda row: (kinds.index(type(row)), name(row)))
            told.append(rows)
        return told

    return asyncio.run(tell())


def name(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, column) for column in tables.KEYS[type(row)])


def told_to(place: Path, groups: Sequence[Sequence[Commit]] = STORY) -> None:
    database = Database.open(place)
    for group in groups:
        assert database.write(group) == [None] * len(group)
    database.close()


def contents(place: Path) -> dict[str, bytes]:
    """The files that hold what is on record; the index of the log beside them does not."""
    files = {path.name: path.read_bytes() for path in place.iterdir() if path.name in (FILE, f"{FILE}-wal")}
    return {name: content for name, content in files.items() if content}


# --- Crashes ------------------------------------------------------------------------------------------------------


def crashing(place: Path, way: str, first: int, last: int, step: int, *before: str) -> str:
    """Run the processes that die, and give the number of the first that came through."""
    numbers = (str(number) for number in (first, last, step))
    command = [*before, sys.executable, "-m", "tests.unit.control.crashing", str(place), way, *numbers]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'lib'}:{ROOT}"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, ended.stderr
    number, _, code = ended.stdout.strip().partition(" ")
    assert code in ("0", "through"), f"{ended.stdout}{ended.stderr}"
    return number


def outlived(runs: Sequence[Path]) -> set[tuple[int, int]]:
    """How many commits each of the dead told of, and how many are there; then the survivor goes on."""
    expected, found = states(), set()
    for run in runs:
        told = len((run / "told").read_bytes()) if (run / "told").exists() else 0
        database = Database.open(run)
        rows = database.read(stored)
        database.close()
        assert rows in expected[told : told + 2], f"killed at {run.name}, {told} told"
        found.add((told, expected.index(rows)))
        told_to_the_end(run, expected.index(rows))
    return found


def numbered(place: Path) -> list[Path]:
    return sorted(place.iterdir(), key=lambda path: int(path.name))


def test_a_process_killed_at_any_statement_leaves_whole_transactions_and_loses_none_it_told_of(place: Path) -> None:
    through = crashing(place, "statement", 0, 2000, 1)
    assert numbered(place)[-1].name == through
    found = outlived(numbered(place))
    assert {there for _, there in found} == set(range(len(states()) - 1)), "a state between was never seen"
    assert any(there > told for told, there in found), "no commit was cut off from its answer"


def test_a_process_killed_within_a_write_leaves_whole_transactions_and_loses_none_it_told_of(place: Path) -> None:
    """By the limit on a file's size, which ends a process at the write that would pass it."""
    through = crashing(place, "write", 0, 400_000, 2500)
    assert numbered(place)[-1].name == through
    # The file itself is as long as the log of the first commits, so that writes to these are not cut off.
    assert {there for _, there in outlived(numbered(place))} >= {0, 4, 5}


@pytest.mark.slow
def test_a_process_killed_at_any_sync_leaves_whole_transactions_and_loses_none_it_told_of(place: Path) -> None:
    def killed_at(sync: int) -> list[str]:
        kill = f"inject=fsync,fdatasync:signal=KILL:when={sync}"
        return ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fsync,fdatasync", "-e", kill]

    if not shutil.which("strace") or subprocess.run([*killed_at(1), "true"], capture_output=True).returncode:
        pytest.skip("strace is not here, or may not trace")
    unlimited = 2**40
    for sync in range(1, 200):
        (place / "run").mkdir()
        through = crashing(place / "run", "write", unlimited, unlimited + 1, 1, *killed_at(sync))
        (place / "run" / str(unlimited)).rename(place / str(sync))
        (place / "run").rmdir()
        if through == str(unlimited):
            break
    found = outlived(numbered(place))
    assert {there for _, there in found} >= set(range(len(states()) - 1)), "a state between was never seen"


def told_to_the_end(place: Path, done: int) -> None:
    """A ledger that survived takes the rest of the story, and a commit that may have happened before the crash."""
    again = [group for group in STORY[max(0, done - 1) : done] if len(group) == 1]
    told_to(place, (*again, *STORY[done:]))
    with reading(place) as db:
        assert stored(db) == states()[-1]


def test_a_log_that_is_cut_anywhere_gives_whole_transactions(place: Path) -> None:
    """What a power cut leaves where the disk had not got everything: the log's end is missing or rubbish."""
    database = Database.open(place / "whole")
    for group in STORY:
        database.write(group)
    kept = contents(place / "whole")
    database.close()
    log, expected, seen = kept[f"{FILE}-wal"], states(), set()
    frames = range(32, len(log) + 1, 4096 + 24)
    assert len(frames) > 20 and frames[-1] == len(log)
    for cut in sorted({*frames, *(frame + 2000 for frame in frames[:-1]), 0, 16}):
        for end in (b"", b"\xa5" * (len(log) - cut)):
            copy = place / f"{cut}-{len(end)}"
            copy.mkdir()
            (copy / FILE).write_bytes(kept[FILE])
            (copy / f"{FILE}-wal").write_bytes(log[:cut] + end)
            opened = Database.open(copy)
            rows = opened.read(stored)
            opened.close()
            assert rows in expected
            seen.add(expected.index(rows))
            shutil.rmtree(copy)
    assert seen == set(range(len(expected) - 1)) | {len(expected) - 2}


# --- Damage -------------------------------------------------------------------------------------------------------


def opened_and_read(place: Path) -> Rows:
    database = Database.open(place)
    try:
        return database.read(stored)
    finally:
        database.close()


@pytest.mark.parametrize("damage", [bytes.fromhex("00" * 64), bytes.fromhex("a5")], ids=["zeros", "one byte"])
def test_damage_is_refused_or_harmless_and_never_believed(place: Path, damage: bytes) -> None:
    told_to(place / "whole")
    whole, expected = (place / "whole" / FILE).read_bytes(), states()[-1]
    copy = place / "copy"
    refused = 0
    for at in range(0, len(whole) - len(damage), 149):
        copy.mkdir()
        hurt = whole[:at] + damage + whole[at + len(damage) :]
        (copy / FILE).write_bytes(hurt)
        try:
            assert opened_and_read(copy) == expected
        except StoreError as error:
            refused += 1
            assert isinstance(error, LedgerCorrupt | LedgerTooNew | LedgerFailed), error
            assert (copy / FILE).read_bytes() == hurt, f"byte {at}"
        shutil.rmtree(copy)
    assert refused > 20


@pytest.mark.parametrize(
    "content", [b"", b"no database at all", bytes(range(256)) * 32], ids=["empty", "text", "bytes"]
)
def test_a_file_that_is_no_ledger_is_refused_and_stays(place: Path, content: bytes) -> None:
    (place / FILE).write_bytes(content)
    for attempt in (lambda: Database.open(place), lambda: reading(place).__enter__()):
        with pytest.raises(LedgerCorrupt, match="left as it is"):
            attempt()
    assert (place / FILE).read_bytes() == content


def test_a_file_that_is_gone_while_its_log_is_there_is_no_new_ledger(place: Path) -> None:
    database = Database.open(place)
    database.write(STORY[0])
    log = (place / f"{FILE}-wal").read_bytes()
    database.close()
    for left in (None, b""):
        (place / FILE).unlink(missing_ok=True)
        if left is not None:
            (place / FILE).write_bytes(left)
        (place / f"{FILE}-wal").write_bytes(log)
        with pytest.raises(LedgerCorrupt):
            Database.open(place)
        assert (place / f"{FILE}-wal").read_bytes() == log


def test_a_link_that_leads_nowhere_is_no_new_ledger(place: Path) -> None:
    """As where the disk it leads to is not mounted. It was replaced by an empty ledger."""
    (place / FILE).symlink_to(place / "disk" / FILE)
    for _ in range(2):
        with pytest.raises(LedgerUnfit, match="leads to .*which is not there"):
            Database.open(place)
    with pytest.raises(LedgerUnfit, match="leads to"), reading(place):
        pass
    assert (place / FILE).is_symlink()
    Database.open(place / "disk").close()
    Database.open(place).close()
    assert (place / FILE).is_symlink()


def test_another_programs_database_is_refused_and_stays(place: Path) -> None:
    other = sqlite3.connect(place / FILE)
    other.execute("CREATE TABLE inputs (id TEXT)")
    other.close()
    before = contents(place)
    with pytest.raises(LedgerCorrupt, match="another database"):
        Database.open(place)
    assert contents(place) == before


def test_a_later_versions_ledger_is_refused_and_stays(place: Path) -> None:
    told_to(place)
    db = sqlite3.connect(place / FILE)
    db.execute(f"PRAGMA user_version = {tables.VERSION + 1}")
    db.close()
    before = contents(place)
    for attempt in (lambda: Database.open(place), lambda: reading(place).__enter__()):
        with pytest.raises(LedgerTooNew, match=f"{tables.VERSION + 1} of a later posemesh"):
            attempt()
    assert contents(place) == before


@pytest.mark.parametrize("column", ["phase = 'consumed'", "open = 0", "version = 9", "body = x'00'", "key = NULL"])
def test_a_row_that_was_changed_by_hand_is_found(place: Path, column: str) -> None:
    told_to(place, STORY[:3])
    db = sqlite3.connect(place / FILE)
    db.execute(f"UPDATE inputs SET {column} WHERE id = 'i2'")
    db.commit()
    db.close()
    database = Database.open(place)
    with pytest.raises(LedgerCorrupt, match=r"inputs rt:node:1/i2: .*left as it is"):
        database.read(lambda db: tables.read(db, InputRow, "rt:node:1", "i2"))
    assert database.read(lambda db: tables.read(db, InputRow, "rt:node:1", "i1")) is not None
    assert database.write([taken(5)]) == [None], "the others' work goes on"
    database.close()


@pytest.mark.parametrize(
    "column", ["body = '{}'", "input = 'i9'", "sequence = 9", "ending = 'delivered'", "version = 9"]
)
def test_an_entry_that_was_changed_by_hand_is_not_written_over(place: Path, column: str) -> None:
    told_to(place, STORY[:4])
    db = sqlite3.connect(place / FILE)
    db.execute(f"UPDATE outbox SET {column}")
    db.commit()
    changed = db.execute("SELECT * FROM outbox").fetchall()
    db.close()
    database = Database.open(place)
    [result] = database.write([a_commit(finished(1).outbox[0].next(ending="refused"))])
    assert isinstance(result, LedgerCorrupt)
    assert database.read(lambda db: db.execute("SELECT * FROM outbox").fetchall()) == changed
    database.close()


def test_rows_are_written_as_they_were_by_earlier_versions(place: Path) -> None:
    """The digest is of numbers as SQLite gives them back: 5 as 5.0, -0.0 as 0.0, False as 0."""
    rows = (
        a_runtime(updated=5),
        an_input(key="t1", run="r1", reason="é", open=False, updated=-0.0),
        a_receipt(created=0.1),
        an_entry(problem='"', fence=7),
    )
    told_to(place, [[a_commit(*rows)]])
    with reading(place) as db:
        digests = [db.execute(f"SELECT HEX(digest) FROM {table}").fetchone()[0] for table in tables.NAMES.values()]
        assert stored(db) == list(rows)
    assert digests == [
        "170514003E5911899F254C09BB64BA40",
        "9A194CD67F9571CA90BA40CFD62E9AEA",
        "9811C45FE5C1593E8ECD7A55834DECB2",
        "C3DE4904ED39672A2453893048C5333F",
    ]


def test_receipts_cannot_be_changed_or_removed_by_a_statement(place: Path) -> None:
    told_to(place)
    db = sqlite3.connect(place / FILE)
    for statement in ("DELETE FROM receipts", "UPDATE receipts SET body = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="only added"):
            db.execute(statement)
    db.close()


# --- Writers and readers ------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_whoever_it_is_and_the_first_goes_on(place: Path) -> None:
    first = Database.open(place)
    with pytest.raises(LedgerBusy, match=f"process {os.getpid()}"):
        Database.open(place)
    code = (
        f"from pathlib import Path; from posemesh.control.database import Database; Database.open(Path({str(place)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "LedgerBusy" in other.stderr
    assert first.write(STORY[0]) == [None]
    first.close()
    first.close()
    Database.open(place).close()


def test_a_reader_sees_committed_rows_beside_the_writer_and_after_it(place: Path) -> None:
    database = Database.open(place)
    for group in STORY:
        database.write(group)
    with reading(place) as db:
        assert stored(db) == states()[-1]
        database.write([taken(7)])
        assert stored(db) == states()[-1], "one moment"
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM inputs")
    database.close()
    before = contents(place)
    with reading(place) as db:
        assert len(stored(db)) == len(states()[-1]) + 1
    assert contents(place)[FILE] == before[FILE]


def test_reading_begins_no_ledger(place: Path) -> None:
    with pytest.raises(LedgerUnfit, match="no ledger"), reading(place):
        pass
    assert list(place.iterdir()) == []


def test_files_are_the_users_alone(place: Path) -> None:
    database = Database.open(place / "a" / "b")
    database.write(STORY[0])
    files = list((place / "a" / "b").iterdir())
    assert {path.name for path in files} == {FILE, LOCK, f"{FILE}-wal", f"{FILE}-shm"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    for directory in (place / "a" / "b", place / "a"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    database.close()
    (place / "a" / "b" / FILE).chmod(0o644)
    Database.open(place / "a" / "b").close()
    assert stat.S_IMODE((place / "a" / "b" / FILE).stat().st_mode) == 0o600


def test_a_ledger_that_was_removed_while_in_use_takes_nothing_more(place: Path) -> None:
    database = Database.open(place)
    (place / FILE).rename(place / "elsewhere")
    with pytest.raises(LedgerFailed, match="removed or replaced"):
        database.write(STORY[0])
    database.close()


def test_a_closed_ledger_says_so(place: Path) -> None:
    database = Database.open(place)
    database.close()
    with pytest.raises(LedgerClosed):
        database.write(STORY[0])
    with pytest.raises(LedgerClosed):
        database.read(stored)


# --- Disks --------------------------------------------------------------------------------------------------------


class Small(sqlite3.Connection):
    """A disk with room for so many pages."""

    pages = 24

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "BEGIN IMMEDIATE":
            super().execute(f"PRAGMA max_page_count = {self.pages}")
        return super().execute(sql, *args)


def test_a_full_disk_refuses_the_commit_and_takes_it_again_when_there_is_room(place: Path) -> None:
    database = Database.open(place, connecting(Small))
    number = 0
    with pytest.raises(LedgerFull, match="make room"):
        for number in range(1, 500):
            database.write([taken(number)])
    before = database.read(stored)
    assert len(before) == number - 1 > 0
    with pytest.raises(LedgerFull):
        database.write([taken(number)])
    assert database.read(stored) == before
    Small.pages = 200
    try:
        assert database.write([taken(number)]) == [None]
    finally:
        Small.pages = 24
    database.close()
    told_to(place, [[taken(number + 1)]])


def test_of_a_group_that_does_not_fit_each_is_tried_alone(place: Path) -> None:
    database = Database.open(place, connecting(Small))
    huge = a_commit(an_input(id="huge", body="x" * 4096 * 50))
    results = database.write([taken(1), huge, taken(1).__class__(runtime="rt:node:1", inputs=(an_input(version=3),))])
    assert results[0] is None
    assert isinstance(results[1], LedgerFull)
    assert isinstance(results[2], StaleRows)
    assert len(database.read(stored)) == 1
    database.close()


def test_a_commit_that_is_taken_is_one_statement_for_each_row(place: Path) -> None:
    """Each costs a thread the interpreter, which it gives up and takes back."""
    database = Database.open(place)
    statements: list[str] = []
    database._writer.set_trace_callback(statements.append)
    held = taken(1).inputs[0].next(phase="consumed", open=False)
    ended = a_commit(held, a_receipt(1), an_entry())
    noted = a_commit(held.next(key=None), an_entry().next(ending="delivered"), an_input(id="i2", key="t2"))
    for group, rows in (([taken(1)], 1), ([ended], 3), ([noted, taken(3)], 4)):
        statements.clear()
        assert database.write(group) == [None] * len(group)
        assert len(statements) == 2 + rows, statements
    database.close()


def test_one_of_a_group_that_is_refused_does_not_harm_the_others(place: Path) -> None:
    database = Database.open(place)
    strange = a_commit(an_input(id="\ud800"))
    too_large = a_commit(an_input(id="i9", position=2**63))
    results = database.write([taken(1), taken(1), a_commit(an_input(version=5)), strange, too_large, taken(2)])
    assert [type(result) for result in results[2:5]] == [StaleRows, UnicodeEncodeError, OverflowError]
    assert [*results[:2], results[5]] == [None] * 3
    assert len(database.read(stored)) == 2
    database.close()


FAILING = """
import resource, sys
from pathlib import Path
from posemesh.control.database import Database
from posemesh.control.store import LedgerFailed, LedgerFull, StoreError
from tests.unit.control.crashing import taken
place, way = Path(sys.argv[1]), sys.argv[2]
database, number = Database.open(place), 0
if way == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
try:
    for number in range(1, 2000):
        database.write([taken(number)])
except StoreError as error:
    print(type(error).__name__, number)
if way != "room":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(database.write([taken(number)]))
rows = database.read(lambda db: db.execute("SELECT COUNT(*) FROM inputs").fetchone())
database.close()
again = Database.open(place)
assert again.read(lambda db: db.execute("SELECT COUNT(*) FROM inputs").fetchone()) == rows
again.close()
print(rows[0] - number)
"""


def failing(place: Path, way: str, *before: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'lib'}:{ROOT}"}
    command = [*before, sys.executable, "-c", FAILING, str(place), way]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_a_write_that_fails_is_told_and_the_commit_can_be_given_again(place: Path) -> None:
    kind, number, again, difference = failing(place, "limit")
    assert (kind, again, difference) == ("LedgerFailed", "[None]", "0")
    assert int(number) > 1


def test_a_sync_that_fails_is_told_and_the_commit_can_be_given_again(place: Path) -> None:
    break_one = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync"]
    break_one += ["-e", "inject=fdatasync:error=EIO:when=30"]
    if not shutil.which("strace") or subprocess.run([*break_one, "true"], capture_output=True).returncode:
        pytest.skip("strace is not here, or may not trace")
    kind, number, again, difference = failing(place, "sync", *break_one)
    assert (kind, again, difference) == ("LedgerFailed", "[None]", "0")
    assert 1 < int(number) < 31


def test_a_disk_without_room_is_told(place: Path) -> None:
    inside = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=600k tmpfs {place} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file system of our own can be mounted here")
    kind, number, difference = failing(place, "room", *inside)
    assert (kind, difference) == ("LedgerFull", "-1")
    assert int(number) > 1


NOBODY = """
import os, sys
from pathlib import Path
from posemesh.control.database import Database, reading
from posemesh.control.store import StoreError
if os.getuid() == 0:
    os.setuid(65534)
try:
    Database.open(Path(sys.argv[1]))
except StoreError as error:
    print(type(error).__name__)
with reading(Path(sys.argv[1])) as db:
    print(db.execute("SELECT COUNT(*) FROM inputs").fetchone()[0])
"""


def test_a_directory_that_cannot_be_written_to_is_refused_and_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        state = Path(name) / "state"
        told_to(state)
        for path in (*state.iterdir(), state, Path(name)):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = {path.name: path.read_bytes() for path in state.iterdir()}
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
        command = [sys.executable, "-c", NOBODY, str(state)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        for path in (Path(name), state):
            path.chmod(0o700)
        assert ended.stdout.split() == ["LedgerUnfit", "3"], ended.stderr
        assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_a_file_where_the_directory_should_be_is_told(place: Path) -> None:
    (place / "state").write_text("")
    with pytest.raises(LedgerUnfit, match="directory"):
        Database.open(place / "state")
