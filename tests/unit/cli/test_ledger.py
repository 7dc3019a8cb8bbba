"""posemesh-node ledger: what it says of what a node has left, to people and to programs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from posemesh import cli
from posemesh.control.database import FILE, Database
from posemesh.control.ledger import SqliteStore
from posemesh.shell.offload import InlineOffload
from tests.unit.control.stores import RUNTIME, a_commit, a_receipt, a_runtime, an_entry, an_input

BODY = json.dumps({"task": {"id": "t2"}, "access_token": "very-secret", "deep": [{"access_token": "very-secret"}]})


def an_ended(number: int, **changes: Any) -> Any:
    columns = {"task": f"t{number}", "created": 1000.0 * number, "open": False, "phase": "consumed", **changes}
    return an_input(id=f"i{number}", position=number, **columns)


ROWS = (
    a_runtime(),
    an_ended(1, reason="completed", run="r1"),
    an_ended(2, open=True, phase="staged", reason="", body=BODY),
    an_ended(3, reason="runner_error: it broke"),
    an_ended(4, reason="completed"),
    an_ended(5, reason="cancelled", phase="abandoned"),
    an_ended(6, reason="completed", capability="/évil\x1b[31m\n"),
    a_receipt(1, run="r1"),
    an_entry(id="o1", input="i1", ending="delivered"),
    an_entry(id="o3", input="i3", sequence=2, problem="503 from the service"),
    an_entry(id="o4", input="i4", sequence=3, ending="stuck", problem="422: no such field"),
    an_entry(id="o6", input="i6", sequence=4, ending="refused", problem="410"),
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The directory of a node that has run."""
    database = Database.open(tmp_path / "state")
    assert database.write([a_commit(*ROWS), a_commit(an_input(runtime="rt:node:2", task="other"))]) == [None, None]
    database.close()
    return tmp_path / "state"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATE_DIR", raising=False)

    def use(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["ledger", *map(str, args)])
        done = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, done.out, done.err

    return use


def test_ls_says_what_became_of_each_lease(run: Any, state: Path) -> None:
    code, out, err = run("ls", "--state", state, "--runtime", RUNTIME)
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["TASK", "CAPABILITY", "LEASED", "STATE", "WHY"]
    assert [line.split(maxsplit=1)[0] for line in lines] == ["t6", "t5", "t4", "t3", "t2", "t1"]
    for line, end in zip(
        lines,
        (
            "refused    410",
            "abandoned  cancelled",
            "stuck      422: no such field",
            "waiting    503 from the service",
            "under way  staged",
            "delivered  completed",
        ),
        strict=True,
    ):
        assert line.endswith(end)
    assert "1970-01-01T00:16:40Z" in lines[-1]
    assert "\x1b" not in out, "what the network called it is not for the terminal to obey"


@pytest.mark.parametrize(
    ("args", "tasks"),
    [
        (("--only", "waiting"), ["t3"]),
        (("--only", "stuck"), ["t4"]),
        (("--only", "refused"), ["t6"]),
        (("--only", "open"), ["t2", "other"]),
        (("--only", "ended"), ["t6", "t5", "t4", "t1"]),
        (("--limit", "2"), ["t6", "t5"]),
        (("--runtime", "rt:node:2"), ["other"]),
        (("--runtime", "rt:nobody"), []),
    ],
)
def test_ls_can_be_narrowed_and_read_by_programs(
    run: Any, state: Path, args: tuple[str, ...], tasks: list[str]
) -> None:
    code, out, _ = run("ls", "--state", state, "--json", *args)
    assert (code, [line["task"] for line in json.loads(out)]) == (0, tasks)
    code, out, _ = run("ls", "--state", state, *args)
    assert code == 0
    assert out if tasks else out == "nothing is on record\n"


@pytest.mark.parametrize("args", [("--json",), ()])
def test_show_has_all_about_a_task_but_its_tokens(run: Any, state: Path, args: tuple[str, ...]) -> None:
    code, out, err = run("show", "t2", "--state", state, *args)
    assert (code, err) == (0, "")
    assert "very-secret" not in out
    assert out.count("***") == 2
    assert "staged" in out


@pytest.mark.parametrize("id", ["t1", "i1", "r1"])
def test_show_finds_by_whatever_names_it(run: Any, state: Path, id: str) -> None:
    code, out, _ = run("show", id, "--state", state, "--json")
    assert code == 0
    assert {each["table"] for each in json.loads(out)} == {"inputs", "receipts", "outbox"}
    code, out, _ = run("show", id, "--state", state)
    assert (code, "delivered" in out) == (0, True)


def test_show_of_what_is_not_there_says_where_to_look(run: Any, state: Path) -> None:
    code, out, err = run("show", "nope", "--state", state)
    assert (code, out) == (1, "")
    assert "ledger ls" in err


def test_verify_of_a_sound_ledger(run: Any, state: Path) -> None:
    code, out, _ = run("verify", "--state", state)
    assert code == 0
    assert "is sound: 1 runtimes, 7 inputs, 1 receipts, 4 outbox" in out
    code, out, _ = run("verify", "--state", state, "--json")
    assert (code, json.loads(out)["sound"]) == (0, True)


def test_a_row_that_was_changed_is_told_and_the_others_are_shown(run: Any, state: Path) -> None:
    db = sqlite3.connect(state / FILE)
    db.execute("UPDATE inputs SET reason = 'all is well' WHERE id = 'i3'")
    db.commit()
    db.close()
    before = (state / FILE).read_bytes()
    for args in (("ls",), ("ls", "--json"), ("show", "t3"), ("verify",), ("verify", "--json")):
        code, out, err = run(*args, "--state", state)
        assert code == 1
        assert "inputs rt:node:1/i3" in out + err
        assert args[0] != "ls" or "t1" in out
        assert args[0] != "show" or "503 from the service" in out
        assert "all is well" not in out
    assert run("show", "t1", "--state", state)[0] == 0, "it was not asked for"
    assert (state / FILE).read_bytes() == before


def test_it_reads_beside_a_running_node(run: Any, state: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(state, InlineOffload())
        await store.commit(a_commit(an_ended(9)))
        for args in (("ls",), ("show", "t9"), ("verify",)):
            code, out, _ = run(*args, "--state", state)
            assert code == 0
            assert "t9" in out or args == ("verify",)
        await store.commit(a_commit(an_ended(10)))
        await store.close()

    asyncio.run(main())


def test_the_directory_is_given_or_the_nodes(run: Any, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIR", str(state))
    assert run("verify")[0] == 0
    monkeypatch.delenv("STATE_DIR")
    for name in ("REG_SECRET", "SECP256K1_PRIVHEX"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = run("ls")
    assert code == 2
    assert "SECP256K1_PRIVHEX" in err
    assert "--state DIR" in err
    key = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
    Path("node.env").write_text(f"REG_SECRET=a-secret\nSECP256K1_PRIVHEX={key}\nSTATE_DIR={state}\n")
    assert run("verify", "--env-file", "node.env")[0] == 0
    Path(".env").write_text(f"REG_SECRET=a-secret\nSECP256K1_PRIVHEX={key}\n")
    code, _, err = run("ls")
    assert code == 2
    assert "no ledger in" in err
    assert "/posemesh/0x" in err


def test_no_ledger_is_wrong_usage_and_none_is_made(run: Any, tmp_path: Path) -> None:
    code, _, err = run("ls", "--state", tmp_path)
    assert code == 2
    assert "STATE_DIR of a node that has run" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [(), ("ls",), ("show",), ("verify",)])
def test_help_has_examples(run: Any, args: tuple[str, ...]) -> None:
    code, out, _ = run(*args, "--help")
    assert code == 0
    assert "posemesh-node ledger verify" in out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("ls", "--limit", "99999999999999999999"), 2, "99999999999999999999 is not in the range"),
        (("ls", "--runtime", "\udcff"), 2, "expected text, got bytes that are none"),
        (("show", "\udcff"), 2, "expected text, got bytes that are none"),
    ],
)
def test_odd_words_are_wrong_usage(run: Any, state: Path, args: tuple[str, ...], code: int, said: str) -> None:
    """They were called a fault of posemesh."""
    found, out, err = run(*args, "--state", state)
    assert (found, out) == (code, "")
    assert said in err


def test_the_directory_is_read_as_the_node_reads_it(run: Any, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(state.parent))
    for given in ("~/state", f" {state} "):
        monkeypatch.setenv("STATE_DIR", given)
        assert run("verify")[0] == 0
    monkeypatch.setenv("STATE_DIR", "  ")
    for name in ("REG_SECRET", "SECP256K1_PRIVHEX"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = run("verify")
    assert (code, "SECP256K1_PRIVHEX" in err) == (2, True), "a blank value is the default"


def test_a_ledger_that_is_missing_beside_its_log_is_damage(run: Any, state: Path) -> None:
    (state / FILE).rename(state / f"{FILE}-wal")
    code, _, err = run("verify", "--state", state)
    assert code == 1
    assert "is missing, and its log is not" in err


def test_a_body_that_is_nested_too_deep_is_not_shown(run: Any, state: Path) -> None:
    database = Database.open(state)
    assert database.write([a_commit(an_input(id="deep", position=90, body="[" * 900 + "]" * 900))]) == [None]
    database.close()
    code, out, _ = run("show", "deep", "--state", state)
    assert code == 0
    assert "nested too deep to be shown" in out


def test_leases_of_several_nodes_are_told_apart(run: Any, state: Path) -> None:
    code, out, _ = run("ls", "--state", state)
    assert code == 0
    assert out.split()[:2] == ["RUNTIME", "TASK"]
    assert "rt:node:2" in out
    assert "RUNTIME" not in run("ls", "--state", state, "--runtime", RUNTIME)[1]


def test_a_delivery_that_was_changed_is_told(run: Any, state: Path) -> None:
    db = sqlite3.connect(state / FILE)
    db.execute("UPDATE outbox SET problem = 'none' WHERE id = 'o4'")
    db.commit()
    db.close()
    code, out, err = run("ls", "--state", state)
    assert (code, "t4" in out) == (1, True)
    assert "outbox rt:node:1/o4" in err
