"""The name of a node at domain servers stays the same (weakness 37 of the reference: it was another for each task)."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from posemesh.storage.identity import client_id

MADE = re.compile(r"posemesh-compute-node/[0-9a-f-]{36}")


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    assert client_id("rig-7", tmp_path, "0xa") == "rig-7"
    assert not list(tmp_path.iterdir())


def test_it_is_made_up_once_and_kept(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "er"
    first = client_id(None, state, "0xa")
    assert MADE.fullmatch(first)
    assert client_id(None, state, "0xb") == first
    assert client_id(None, tmp_path / "other", "0xa") != first
    assert [path.name for path in state.iterdir()] == ["client-id"]


def test_nodes_that_begin_together_agree(tmp_path: Path) -> None:
    found = set()
    threads = [threading.Thread(target=lambda: found.add(client_id(None, tmp_path, "0xa"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


@pytest.mark.parametrize("content", ["", "a\nb", "ä", "x" * 201])
def test_what_is_no_id_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "client-id").write_text(content)
    found = client_id(None, tmp_path, "0xa")
    assert MADE.fullmatch(found) and client_id(None, tmp_path, "0xa") == found


def test_where_nothing_can_be_kept_it_comes_from_the_address(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for state in (None, tmp_path / "file" / "below"):
        found = client_id(None, state, "0xa")
        assert MADE.fullmatch(found)
        assert client_id(None, state, "0xa") == found != client_id(None, state, "0xb")
