"""The command lines, word by word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posemesh.golem.command_line import CommandLine

BIN = "/opt/ya-runtime"
WORK = ["--workdir", "/w"]


def line(**options: Any) -> CommandLine:
    return CommandLine(binary=BIN, workdir=Path("/w"), **options)


def test_the_steps_of_a_bare_runtime() -> None:
    bare = line()
    assert bare.test() == [BIN, "test"]
    assert bare.offer_template() == [BIN, "offer-template"]
    assert bare.deploy() == [BIN, *WORK, "deploy", "--"]
    assert bare.start(["-a"]) == [BIN, *WORK, "start", "--", "-a"]
    assert bare.serve(["a"]) == [BIN, *WORK, "start", "a"]
    assert bare.run("/bin/ls", ["-l"]) == [BIN, *WORK, "run", "--entrypoint", "/bin/ls", "--", "-l"]
    assert line(plain_run=True).run("/bin/ls", ["-l"]) == [BIN, *WORK, "run", "--", "/bin/ls", "-l"]


def test_all_that_a_provider_may_add_is_in_its_place() -> None:
    full = line(
        args=["--own", "x"],
        package="/p",
        cpu_cores=2,
        mem_gib=0.5,
        storage_gib=10.0,
        volume_override="{}",
        hostname="h",
        vpn_endpoint="udp://127.0.0.1:1",
        inet_endpoint="udp://127.0.0.1:2",
    )
    common = [*WORK, "--task-package", "/p", "--cpu-cores", "2", "--mem-gib", "0.5", "--storage-gib", "10"]
    assert full.test() == [BIN, "--own", "x", "test"]
    assert full.deploy() == [
        BIN, *common, "--own", "x", "--volume-override", "{}", "--hostname", "h", "deploy", "--"
    ]  # fmt: skip
    assert full.serve() == [
        BIN, *common, "--own", "x", "--vpn-endpoint", "udp://127.0.0.1:1", "--inet-endpoint", "udp://127.0.0.1:2",
        "start",
    ]  # fmt: skip
    assert full.start() == [BIN, *common, "--own", "x", "start", "--"]


@pytest.mark.parametrize(("value", "text"), [(0.00001, "0.00001"), (1e16, "10000000000000000"), (1.25, "1.25")])
def test_numbers_are_decimals(value: float, text: str) -> None:
    assert line(mem_gib=value).deploy()[3:5] == ["--mem-gib", text]


def test_a_relative_path_is_this_processs_and_a_name_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CommandLine(binary="./bin", workdir=Path("/w")).test()[0] == str(tmp_path / "bin")
    assert CommandLine(binary="bin", workdir=Path("/w")).test()[0] == "bin"
