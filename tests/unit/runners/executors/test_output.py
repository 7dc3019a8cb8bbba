"""What becomes of what a program writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from posemesh.runners.executors.lines import LINE_BYTES_MAX, TAIL_LINES
from posemesh.runners.executors.output import LOG_LINES_PER_SEC, ProgramOutput
from posemesh.runners.port import LogEvent, Progress
from posemesh.runners.task import PortTask
from posemesh.telemetry import logger
from posemesh.types import LeaseEnvelope, TaskSpec


class Rig:
    """The program's output, with what was reported and logged of it, and a clock that a test sets."""

    def __init__(self) -> None:
        self.reported: list[Any] = []
        self.logged: list[tuple[str, str]] = []
        self.now = 0.0
        lease = LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability="/a/v1"))
        task: Any = PortTask(lease, self, NotImplemented)  # type: ignore[arg-type]
        self.output = ProgramOutput(task.ctrl, lambda: self.now)

    cancelled = False

    def post(self, message: Any) -> None:
        self.reported.append(message)

    async def call(self, message: Any) -> Any:
        raise NotImplementedError

    def stdout(self, *lines: str) -> None:
        for line in lines:
            self.output.take("stdout", line.encode() + b"\n")


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()

    def take(message: Any) -> None:
        rig.logged.append((message.record["level"].name, message.record["message"]))

    log = logger()
    log.enable("posemesh")
    sink = log.add(take, level="DEBUG")
    try:
        yield rig
    finally:
        log.remove(sink)
        log.disable("posemesh")


def test_lines_of_one_key_are_reports(rig: Rig) -> None:
    rig.stdout('{"progress": {"pct": 1}}', ' {"event":"begun"} \r', '{"event": null}')
    assert rig.reported == [Progress(value={"pct": 1}), LogEvent(value="begun"), LogEvent(value=None)]
    assert rig.logged == [] and rig.output.tail == []


@pytest.mark.parametrize(
    "line",
    [
        "done",
        "",
        '["progress"]',
        '"progress"',
        '{"progress": 1, "event": 2}',
        '{"progress": 1, "more": 2}',
        '{"Progress": 1}',
        "{}",
        '{"progress": }',
        "{progress}",
    ],
)
def test_all_other_lines_are_output(rig: Rig, line: str) -> None:
    rig.stdout(line)
    assert rig.reported == []
    assert rig.logged == [("INFO", line)] and rig.output.tail == [line]


def test_what_comes_on_stderr_is_no_report(rig: Rig) -> None:
    rig.output.take("stderr", b'{"progress": 1}\n')
    assert rig.reported == []
    assert rig.logged == [("WARNING", '{"progress": 1}')] and rig.output.tail == ['{"progress": 1}']


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("NaN", "expected JSON"),
        ("1e999", "expected JSON"),
        ('"\\ud800"', "expected JSON"),
        ('"' + "x" * (64 * 1024 - 16) + '"', None),
        ("[" * 30_000 + "]" * 30_000, "refused"),
        ("1" * 5000, "refused"),
    ],
    ids=["nan", "infinite", "no text", "as large as can be", "too deep", "too many digits"],
)
def test_what_no_heartbeat_could_carry_is_refused_and_logged(rig: Rig, value: str, why: str | None) -> None:
    line = f'{{"event":{value}}}'
    rig.stdout(line)
    assert len(rig.reported) == (why is None)
    if why is not None:
        assert rig.logged[0][0] == "WARNING" and why in rig.logged[0][1]
        assert rig.logged[1][1].startswith('{"event":') and len(rig.output.tail) == 1


def test_a_line_over_the_cap_is_cut_and_the_next_is_whole(rig: Rig) -> None:
    rig.output.take("stdout", b"x" * (LINE_BYTES_MAX + 1))
    rig.stdout("", "next")
    (_, first), (_, second) = rig.logged
    assert first.startswith("xxx") and first.endswith("[cut]") and len(first) < 4200
    assert second == "next"


def test_what_is_no_text_is_replaced_and_escaped(rig: Rig) -> None:
    rig.output.take("stdout", b"a\xff\x1b[2J\x00b\n")
    rig.output.take("stdout", b"Bearer abc.def\n")
    assert [text for _, text in rig.logged] == ["a\ufffd\\x1b[2J\\x00b", "Bearer ***"]
    assert rig.output.tail == ["a\ufffd\\x1b[2J\\x00b", "Bearer ***"]


def test_the_tail_is_of_both_streams_in_their_order(rig: Rig) -> None:
    for number in range(30):
        rig.output.take(("stdout", "stderr")[number % 2], f"line {number}\n".encode())
        rig.stdout(json.dumps({"progress": number}))
    rig.output.take("stderr", b"no end")
    rig.output.close()
    assert rig.output.tail == [f"line {number}" for number in range(31 - TAIL_LINES, 30)] + ["no end"]


def test_a_program_that_writes_without_end_does_not_fill_the_log(rig: Rig) -> None:
    rig.output.take("stdout", b"y\n" * (LOG_LINES_PER_SEC + 7))
    assert rig.logged == [("INFO", "y")] * LOG_LINES_PER_SEC
    rig.now = 1.0
    rig.stdout("later")
    said = f"7 more lines of the program are not logged, only {LOG_LINES_PER_SEC} a second"
    assert rig.logged[LOG_LINES_PER_SEC:] == [("WARNING", said), ("INFO", "later")]
    rig.output.take("stderr", b"y\n" * LOG_LINES_PER_SEC)
    rig.output.close()
    assert rig.logged[-1] == ("WARNING", said.replace("7", "1"))


def test_braces_of_a_line_are_no_places_to_fill(rig: Rig) -> None:
    rig.stdout("{record} {0} <red>x</red> %s")
    assert rig.logged == [("INFO", "{record} {0} <red>x</red> %s")]
