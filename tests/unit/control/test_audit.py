from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from posemesh.control.audit import audit
from posemesh.control.database import FILE, reading
from tests.unit.control.crashing import STORY
from tests.unit.control.stores import RUNTIME
from tests.unit.control.test_database import told_to


def hurt(place: Path, *statements: str) -> list[str]:
    """What is found after somebody did that to the file."""
    told_to(place)
    db = sqlite3.connect(place / FILE)
    db.execute("DROP TRIGGER receipts_stay")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    with reading(place) as reader:
        return audit(reader)


def test_a_sound_ledger_has_no_problem(tmp_path: Path) -> None:
    assert hurt(tmp_path) == []
    assert len(STORY) > 3


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE outbox SET ending = 'delivered'", f"rows: outbox {RUNTIME}/o1: the row is not as it was written"),
        ("DELETE FROM receipts WHERE sequence = 2", f"receipts: {RUNTIME} has 2, numbered 1 to 3; expected 1 to 2"),
        ("DELETE FROM inputs WHERE id = 'i3'", f"outbox: {RUNTIME}/o3 is of the input i3, which is missing"),
    ],
)
def test_what_does_not_hold_together_is_told(tmp_path: Path, statement: str, problem: str) -> None:
    assert any(line.startswith(problem) for line in hurt(tmp_path, statement))


def test_damaged_pages_are_told_beside_the_rows_that_can_be_read(tmp_path: Path) -> None:
    told_to(tmp_path)
    whole = bytearray((tmp_path / FILE).read_bytes())
    at = whole.find(b"y" * 600)
    whole[at : at + 9] = b"z" * 9
    (tmp_path / FILE).write_bytes(whole)
    with reading(tmp_path) as db:
        assert any("outbox" in line for line in audit(db))
    whole[4096 * 2 : 4096 * 3] = b"\xff" * 4096
    (tmp_path / FILE).write_bytes(whole)
    with reading(tmp_path) as db:
        assert any(line.startswith("pages:") for line in audit(db))
