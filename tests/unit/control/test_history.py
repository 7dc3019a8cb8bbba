"""What operators ask of a ledger, beside a hand-written answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from posemesh.control import tables
from posemesh.control.database import Database, reading
from posemesh.control.history import ONLY, concerning, latest
from posemesh.control.store import InputRow, LedgerCorrupt, OutboxRow, Row
from tests.unit.control.stores import RUNTIME, a_commit, a_receipt, a_runtime, an_entry, an_input

ENDINGS = ("", "delivered", "stuck", "refused", "unconfirmed", "withdrawn")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Of each ending two inputs, one that is open, and one that ended without a word to the service."""
    rows: list[Row] = [a_runtime()]
    for number, ending in enumerate(ENDINGS * 2):
        rows.append(an_input(id=f"i{number:02}", position=number, open=False, created=float(number), run=f"r{number}"))
        rows.append(an_entry(id=f"o{number:02}", input=f"i{number:02}", sequence=number + 1, ending=ending))
        rows.append(a_receipt(number + 1, run=f"r{number}"))
    rows.append(an_input(id="open", position=50, created=50.0))
    rows.append(an_input(id="silent", position=51, open=False, phase="abandoned", created=51.0))
    database = Database.open(tmp_path)
    assert database.write([a_commit(*rows), a_commit(an_input(runtime="rt:node:2", id="other"))]) == [None, None]
    database.close()
    with reading(tmp_path) as db:
        yield db


def listed(db: sqlite3.Connection, only: str | None = None, limit: int = 100) -> list[str]:
    return [row.id for row, _ in latest(db, limit, only=only, runtime=RUNTIME) if isinstance(row, InputRow)]


def test_the_latest_come_first_with_their_deliveries(db: sqlite3.Connection) -> None:
    found = list(latest(db, 4))
    assert [row.id for row, _ in found if isinstance(row, InputRow)] == ["silent", "open", "i11", "i10"]
    assert [isinstance(entry, OutboxRow) and entry.ending for _, entry in found] == [
        False,
        False,
        "withdrawn",
        "unconfirmed",
    ]
    assert len(list(latest(db, 100))) == 15


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("open", ["open"]),
        ("waiting", ["i06", "i00"]),
        ("stuck", ["i08", "i02"]),
        ("refused", ["i10", "i09", "i04", "i03"]),
        ("ended", ["silent", "i11", "i10", "i09", "i08", "i07", "i05", "i04", "i03", "i02", "i01"]),
    ],
)
def test_a_list_can_be_narrowed(db: sqlite3.Connection, only: str, wanted: list[str]) -> None:
    assert listed(db, only) == wanted
    assert listed(db, only, limit=1) == wanted[:1]
    assert only in ONLY


def test_it_reads_no_more_than_it_gives(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a large ledger was read, and kept, to list its last hundred leases."""
    read: list[object] = []
    before = tables.read
    monkeypatch.setattr(tables, "read", lambda *of: (read.append(of), before(*of))[1])
    assert len(listed(db, limit=3)) == 3
    assert len(read) == 4  # one of them has a delivery


def test_what_is_concerned_is_found_by_the_beginning_of_any_of_its_names(db: sqlite3.Connection) -> None:
    for name in ("i07", "r7"):
        kinds = sorted(type(row).__name__ for row in concerning(db, name))
        assert kinds == ["InputRow", "OutboxRow", "ReceiptRow"], name
    [entry] = concerning(db, "o07")
    assert isinstance(entry, OutboxRow) and entry.id == "o07"
    assert len(list(concerning(db, "i0"))) == 30
    for name in ("nobody", "%", "_", "i*", "I07"):
        assert not list(concerning(db, name)), name


def test_what_cannot_be_read_is_told_in_its_place(tmp_path: Path) -> None:
    database = Database.open(tmp_path)
    database.write([a_commit(a_runtime(), an_input(id="i1"), an_entry(id="o1", input="i1"))])
    database.close()
    with sqlite3.connect(tmp_path / "ledger.db") as damaged:
        damaged.execute("UPDATE outbox SET problem = 'none at all'")
    damaged.close()
    with reading(tmp_path) as db:
        [(row, entry)] = latest(db, 9)
        assert isinstance(row, InputRow) and isinstance(entry, LedgerCorrupt)
        assert [type(each) for each in concerning(db, "i1")] == [InputRow, LedgerCorrupt]


def test_a_list_takes_a_few_steps_for_each_lease_on_record(tmp_path: Path) -> None:
    """SQLite went through all entries of the outbox for each input: a minute for some thousands."""
    rows: list[Row] = [a_runtime()]
    for number in range(1000):
        rows.append(an_input(id=f"i{number:04}", position=number, open=False, created=float(number)))
        rows.append(an_entry(id=f"o{number:04}", input=f"i{number:04}", sequence=number + 1, ending="delivered"))
    database = Database.open(tmp_path)
    assert database.write([a_commit(*rows)]) == [None]
    database.close()
    with reading(tmp_path) as db:
        steps = []
        db.set_progress_handler(lambda: steps.append(1), 1000)
        for only in (None, *ONLY):
            assert len(listed(db, only, limit=2)) == (2 if only in (None, "ended") else 0)
        assert len(steps) < 1000, "a thousand steps of each lease"


def test_text_that_is_none_hides_no_other_row(tmp_path: Path) -> None:
    """One such row, and nothing was listed."""
    database = Database.open(tmp_path)
    database.write([a_commit(a_runtime(), an_input(id="i1"), an_input(id="i2", position=2, created=5.0))])
    database.close()
    with sqlite3.connect(tmp_path / "ledger.db") as damaged:
        damaged.execute("UPDATE inputs SET reason = CAST(x'ff' AS TEXT) WHERE id = 'i1'")
    damaged.close()
    with reading(tmp_path) as db:
        found = [row for row, _ in latest(db, 9)]
        assert [type(each) for each in concerning(db, "i1")] == [LedgerCorrupt]
        with pytest.raises(LedgerCorrupt, match="inputs rt:node:1/i1"):
            tables.snapshot(db, RUNTIME)
    assert [type(row) for row in found] == [InputRow, LedgerCorrupt]
    assert "inputs rt:node:1/i1" in str(found[1])


@pytest.mark.parametrize("column", ["id", "runtime"])
def test_a_key_that_is_no_text_hides_no_other_row(tmp_path: Path, column: str) -> None:
    database = Database.open(tmp_path)
    database.write([a_commit(a_runtime(), an_input(id="i1"), an_input(id="i2", position=2, created=5.0))])
    database.close()
    with sqlite3.connect(tmp_path / "ledger.db") as damaged:
        damaged.execute(f"UPDATE inputs SET {column} = CAST(x'ff41' AS TEXT) WHERE id = 'i1'")
    damaged.close()
    with reading(tmp_path) as db:
        found = [row for row, _ in latest(db, 9)]
    assert [type(row) for row in found] == [InputRow, LedgerCorrupt]
    assert "\\udcffA" in str(found[1])


def test_of_several_deliveries_the_latest_counts(tmp_path: Path) -> None:
    database = Database.open(tmp_path)
    rows = [
        an_entry(id=f"o{number}", input="i1", sequence=number, ending=end) for number, end in enumerate(("stuck", ""))
    ]
    one, other = an_input(id="i1", open=False), an_input(id="i2", position=2)
    database.write([a_commit(a_runtime(), one, other, an_entry(id="o9", input="i2", sequence=9), *rows)])
    database.close()
    with reading(tmp_path) as db:
        assert [
            (row.id, entry.id)
            for row, entry in latest(db, 9)
            if isinstance(row, InputRow) and isinstance(entry, OutboxRow)
        ] == [("i1", "o1"), ("i2", "o9")]
        assert listed(db, "waiting") == ["i1"], "what is under way does not wait, whatever was said of it"
        assert listed(db, "stuck") == [] == listed(db, "refused")
        assert [type(each) for each in concerning(db, "i2")] == [InputRow, OutboxRow]


def test_a_receipt_is_found_by_its_run_alone(tmp_path: Path) -> None:
    database = Database.open(tmp_path)
    database.write([a_commit(a_runtime(), an_input(id="i1", run="r2"), a_receipt(1, run="r1"), a_receipt(2, run="r2"))])
    database.close()
    with reading(tmp_path) as db:
        assert [type(each).__name__ for each in concerning(db, "r1")] == ["ReceiptRow"]
        assert sorted(type(each).__name__ for each in concerning(db, "i1")) == ["InputRow", "ReceiptRow"]
