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
def devnet(tmp_path, *arguments, end=signal.SIGTERM, env=None):
    """The process, once it is up; it must end well."""
    left_out = ("FORCE_COLOR", "COLUMNS", "POSEMESH_PROGRAM")
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | (env or {})
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
        assert same == "data" or f"port {port} cannot be used: Address already in use; " in second.stderr
        assert not (tmp_path / "two").exists()  # it was left half made


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"d\xff", "whose path is UTF-8"),  # it was a fault of posemesh, and left node.env.part
        (b"file/below", "Not a directory; take another with --data"),  # that alone was said
    ],
)
def test_a_directory_that_cannot_be_used_is_one_sentence(tmp_path, data, text):
    (tmp_path / "file").touch()
    command = [*COMMAND, "--port", "0", "--data", data]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert text in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_commands_it_prints_exist_where_it_runs(tmp_path):
    """They began with bin/posemesh-node, which is in a checkout's own directory only."""
    program = tmp_path / "posemesh-node"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    on_path = {"PATH": str(tmp_path)}
    with devnet(tmp_path, "--port", "0", env=on_path | {"POSEMESH_PROGRAM": "/check out/bin/posemesh-node"}) as said:
        assert "  ENABLE_NOOP=true '/check out/bin/posemesh-node' run" in said
    with devnet(tmp_path, "--port", "0", env=on_path) as said:
        assert "\n  posemesh-node submit" in said
    program.unlink()
    with devnet(tmp_path, "--port", "0", env=on_path) as said:
        assert "\n  -c submit" in said  # what it was started as, here no file
