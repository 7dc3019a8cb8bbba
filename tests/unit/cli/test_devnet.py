"""``posemesh-node devnet`` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from dotenv import dotenv_values

COMMAND = [sys.executable, "-c", "from posemesh.cli import main; main()", "devnet"]


@contextmanager
def devnet(tmp_path, *arguments, end=signal.SIGTERM):
    """The process, once it is up; it must end well."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        while not lines or "submit" not in lines[-1]:
            line = process.stdout.readline()
            assert line, lines
            lines.append(line)
        yield "".join(lines)
        process.send_signal(end)
        rest = process.communicate(timeout=10)[0]
        assert (process.returncode, rest) == (0, "the network has ended\n")
    finally:
        process.kill()
        process.communicate()


def test_it_writes_settings_for_its_owner_alone_and_keeps_the_wallet(tmp_path):
    with devnet(tmp_path, "--port", "0") as said:
        first = dotenv_values(tmp_path / ".devnet" / "node.env")
        app = dotenv_values(tmp_path / ".devnet" / "app.env")
        for name in ("node.env", "app.env"):
            assert (tmp_path / ".devnet" / name).stat().st_mode & 0o777 == 0o600
        for url in (first["DDS_BASE_URL"], first["DMS_BASE_URL"], app["DOMAIN_SERVER_URL"], app["DOMAIN_ID"]):
            assert url in said
        assert "--env-file .devnet/node.env" in said
        assert "--env-file .devnet/app.env" in said
        assert not any(secret in said for secret in (first["SECP256K1_PRIVHEX"], first["REG_SECRET"], app["APP_JWT"]))
        assert "\x1b" not in said
    with devnet(tmp_path, "--port", "0", "--data", str(tmp_path / ".devnet"), end=signal.SIGINT):
        second = dotenv_values(tmp_path / ".devnet" / "node.env")
    assert second["SECP256K1_PRIVHEX"] == first["SECP256K1_PRIVHEX"]
    assert second["REG_SECRET"] == first["REG_SECRET"]


@pytest.mark.parametrize("same", ["port", "data"])
def test_what_is_in_use_is_one_sentence(tmp_path, same):
    with devnet(tmp_path, "--port", "0", "--data", "one"):
        port = dotenv_values(tmp_path / "one" / "app.env")["DOMAIN_SERVER_URL"].rpartition(":")[2]
        arguments = ["--port", port, "--data", "two"] if same == "port" else ["--port", "0", "--data", "one"]
        second = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr.count("\n") == 1
        assert f"--{same}" in second.stderr
