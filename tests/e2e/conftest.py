"""A real node process beside the independent network, and the verdict on both at the end of each test."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from .checks import lag, wallet_of
from .network import Network

PROGRAM = Path(__file__).parents[2] / "bin" / "posemesh-node"
NOOP = "/posemesh/noop/v1"
QUICK = {"POLL_BACKOFF_MS_MIN": "20", "POLL_BACKOFF_MS_MAX": "200"}


def in_time(took: float, limit: float) -> bool:
    """Whether ``took`` seconds are within ``limit``, or the machine is as slow just now as that."""
    return took < limit or took < limit + lag()


class NodeProcess:
    """``posemesh-node run`` with a clean environment, in a directory of its own."""

    def __init__(self, directory: Path, env: dict[str, str], *arguments: str) -> None:
        self.lines: list[str] = []
        self.began = time.monotonic()
        self._said = threading.Condition()
        self._process = subprocess.Popen(
            [str(PROGRAM), "run", *arguments],
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        with self._said:
            return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._said:
                self.lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def wait_line(self, text: str, within: float = 10.0, *, instead: str | None = None) -> str:
        """The first line with ``text`` in it, or with what there may be ``instead``."""
        texts = [text] if instead is None else [text, instead]

        def found() -> str | None:
            return next((line for line in self.lines if any(text in line for text in texts)), None)

        with self._said:
            self._said.wait_for(found, within)
            if found() is None:
                self._said.wait_for(found, lag())
            line = found()
        assert line is not None, f"no line with {' or '.join(texts)} within {within} s:\n{self.output}"
        return line

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self, within: float = 10.0) -> int:
        """The exit code, once all output is read."""
        try:
            code = self._process.wait(within)
        except subprocess.TimeoutExpired:
            pass
        try:
            code = self._process.wait(lag())
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within} s:\n{self.output[-3000:]}") from None
        self._reader.join(10)
        return code

    def stop(self, within: float = 5.0) -> None:
        """SIGTERM, and a clean end."""
        self.signal()
        assert self.wait(within) == 0, self.output[-3000:]

    def kill(self) -> None:
        if self.running:
            self._process.kill()
        self.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def peak_mb(self) -> int:
        """The most memory it ever had; only while it runs."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) // 1024

    def url(self, path: str) -> str:
        line = self.wait_line("serving on http://")
        port = line.split("serving on http://", 1)[1].split(":")[1]
        digits = port[: next((i for i, letter in enumerate(port) if not letter.isdigit()), len(port))]
        return f"http://127.0.0.1:{digits}{path}"

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.send(urllib.request.Request(self.url(path), headers=headers))

    def send(self, request: urllib.request.Request) -> tuple[int, bytes]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def status(self) -> Any:
        code, body = self.get("/status")
        assert code == 200, body
        return json.loads(body)


class World:
    """One network and the nodes of one test."""

    def __init__(self, directory: Path) -> None:
        self.net = Network()
        self.key = self.net.secret(secrets.token_hex(32))
        self.wallet = wallet_of(self.key)
        self.nodes: list[NodeProcess] = []
        self.directory = directory

    def env(self, **changes: Any) -> dict[str, str]:
        base = {
            "DDS_BASE_URL": self.net.urls["dds"],
            "DMS_BASE_URL": self.net.urls["dms"] + "/v1",
            "REG_SECRET": self.net.dds.reg_secret,
            "SECP256K1_PRIVHEX": self.key,
            "NODE_PORT": "0",
            "LOG_LEVEL": "debug",
            **QUICK,
        }
        base.update({name: str(value) for name, value in changes.items()})
        return {name: value for name, value in base.items() if value != "None"}

    def node(self, runner: str | None = None, **env: Any) -> NodeProcess:
        """Start a node: with the source of a runner file, or else with the no-op, of 0 s unless said otherwise."""
        arguments = []
        if runner is None:
            env = {"ENABLE_NOOP": "true", "NOOP_SLEEP_SECS": "0", **env}
        else:
            (self.directory / "runner.py").write_text(textwrap.dedent(runner))
            arguments.append("runner.py")
        node = NodeProcess(self.directory, self.env(**env), *arguments)
        self.nodes.append(node)
        return node

    def again(self, runner: str | None = None, **env: Any) -> NodeProcess:
        """Start the next process of a node that has ended. It registers anew."""
        self.net.do(self.net.dds.forget)
        self.net.do(self.net.dms.restarted)
        return self.node(runner, **env)

    def signed_in(self, within: float = 15.0) -> None:
        self.net.wait(lambda: self.net.of("ask"), within, "the node asks for work")

    def verdict(self) -> list[str]:
        """What is wrong with the run as a whole."""
        found = list(dict.fromkeys(self.net.violations))
        for node in self.nodes:
            output = node.output
            shown = {text for text in self.net.secrets if text in output or text.upper() in output}
            found += [f"a secret is in the output: {text[:12]}…: {_line(output, text)}" for text in shown]
            if "Traceback" in output:
                found.append("a traceback in the output: " + output[output.index("Traceback") :][:1500])
        return found + self._kept_secrets()

    def _kept_secrets(self) -> list[str]:
        """Those that a node has put into its records, in whatever corner of the file."""
        kept = {path: path.read_bytes() for path in self.directory.rglob("ledger.*") if path.is_file()}
        return [
            f"a secret is in {path.name}: {text[:12]}…"
            for path, content in kept.items()
            for text in self.net.secrets
            if text.encode() in content or text.encode().upper() in content
        ]


def _line(output: str, text: str) -> str:
    return next((line for line in output.splitlines() if text in line), "")[:600]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Nodes and the network they live in. At the end nothing may have been violated, shown or left running."""
    made = World(tmp_path)
    made.net.open()
    try:
        yield made
        for node in made.nodes:
            node.kill()
        assert not made.verdict(), "\n".join(made.verdict()[:12])
    finally:
        for node in made.nodes:
            node.kill()
        made.net.close()
