"""Inputs and artifacts beside curl, by ``make bench-transfer``: ``benchmarks/transfer.py [--mib 1024] [--pairs 7]``.

A local network keeps bytes as files, in a process of its own. A node and curl take turns, each first in every other
pair, as a disk is slower after much was written: an item to disk, a file up.
Prints the medians, the ratio of each pair's speeds, and the highest memory of the node's process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

CAPABILITY = "/benchmarks/transfer/v1"
COMMAND = [sys.executable, "-c", "from posemesh.cli import main; main()"]
NODE = f"""
import time
from pathlib import Path
import posemesh

node = posemesh.Node()

@node.runner("{CAPABILITY}")
async def transfer(task):
    meta = task.lease.task.meta
    began = time.perf_counter()
    if meta["way"] == "down":
        path = await task.input.materialize_cid_to_temp(task.lease.task.inputs_cids[0])
        assert path.stat().st_size == meta["size"]
    else:
        await task.output.put_domain_artifact("up", Path(meta["path"]), data_id=meta["id"])
    took = time.perf_counter() - began
    (peak,) = [int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
    Path(meta["result"]).write_text(f"{{took}} {{peak}}")
"""
HEAD = "--b\r\nContent-Type: application/octet-stream\r\nContent-Disposition: form-data; {about}\r\n\r\n"


@contextmanager
def process(*words: str, sign: str, **options: Any) -> Iterator[None]:
    """A running command, once it has printed ``sign``."""
    running = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if sign in line:
                break
        else:
            raise SystemExit(f"{words[0]} ended before it said {sign!r}")
        yield
    finally:
        running.terminate()
        running.communicate(timeout=30)


class Bench:
    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        app = dotenv_values(directory / "net" / "app.env")
        self.dms, self.domain_id = app["DMS_BASE_URL"], app["DOMAIN_ID"]
        self.token = f"Authorization: Bearer {app['APP_JWT']}"
        self.data_url = f"{app['DOMAIN_SERVER_URL']}/api/v1/domains/{self.domain_id}/data"
        self.file, self.form = directory / "content", directory / "form"
        with self.file.open("wb") as file:
            for _ in range(size // 2**20):
                file.write(os.urandom(2**20))
        self.key = self._upload('name="bench"; data-type="binary"', "POST")

    def _upload(self, about: str, method: str) -> str:
        """By curl, from a file that holds the whole form."""
        with self.form.open("wb") as form, self.file.open("rb") as content:
            form.write(HEAD.format(about=about).encode())
            shutil.copyfileobj(content, form, 2**20)
            form.write(b"\r\n--b--\r\n")
        kind = "Content-Type: multipart/form-data; boundary=b"
        answer = self._curl("-X", method, "-H", kind, "-H", "Expect:", "-T", str(self.form), self.data_url)
        return str(json.loads(answer)["data"][0]["id"])

    def _curl(self, *words: str) -> bytes:
        return subprocess.run(["curl", "-sSf", "-H", self.token, *words], check=True, capture_output=True).stdout

    def curl_down(self) -> float:
        out = self.directory / "down"
        out.unlink(missing_ok=True)
        began = time.perf_counter()
        self._curl("-H", "Accept: multipart/form-data", "-o", str(out), f"{self.data_url}?ids={self.key}")
        took = time.perf_counter() - began
        assert out.stat().st_size > self.size
        out.unlink()
        return took

    def curl_up(self) -> float:
        kind = "Content-Type: multipart/form-data; boundary=b"
        began = time.perf_counter()
        self._curl("-X", "PUT", "-H", kind, "-H", "Expect:", "-T", str(self.form), self.data_url)
        return time.perf_counter() - began

    def node(self, way: str) -> tuple[float, float]:
        """Seconds of one task's transfer, and the node's highest memory so far in MiB."""
        result = self.directory / "result"
        result.unlink(missing_ok=True)
        meta = {"way": way, "size": self.size, "path": str(self.file), "id": self.key, "result": str(result)}
        task = {"label": "t", "capability": CAPABILITY, "inputs_cids": [self.key], "meta": meta}
        body = json.dumps({"label": "bench", "domain_id": self.domain_id, "tasks": [task]}).encode()
        headers = {"Content-Type": "application/json", "Authorization": self.token.partition(": ")[2]}
        urllib.request.urlopen(urllib.request.Request(f"{self.dms}/jobs", body, headers)).close()
        while not result.exists() or len(result.read_text().split()) < 2:
            time.sleep(0.05)
        took, peak = map(float, result.read_text().split())
        return took, peak

    def prepare_updates(self) -> None:
        """From here on curl's form updates the item."""
        self._upload(f'id="{self.key}"', "PUT")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dir", help="where to work; it needs about six times the size")
    given = parser.parse_args()
    if shutil.which("curl") is None:
        raise SystemExit("curl is the yardstick and is not installed")
    with tempfile.TemporaryDirectory(prefix="posemesh-bench-", dir=given.dir) as name:
        directory = Path(name)
        (directory / "node.py").write_text(NODE)
        settings = {"POLL_BACKOFF_MS_MIN": "50", "POLL_BACKOFF_MS_MAX": "50", "STATE_DIR": str(directory / "state")}
        environment = os.environ | settings | {"NODE_PORT": "0", "LOG_FORMAT": "text"}
        with process("devnet", "--port", "0", "--data", str(directory / "net"), sign="submit"):
            bench = Bench(directory, given.mib * 2**20)
            bench.prepare_updates()
            node = ("run", str(directory / "node.py"), "--env-file", str(directory / "net" / "node.env"))
            with process(*node, sign="offers", env=environment):
                measure(bench, given.pairs)


def measure(bench: Bench, pairs: int) -> None:
    mib = bench.size / 2**20
    peak = 0.0
    for way, curl in (("down", bench.curl_down), ("up", bench.curl_up)):
        rows = []
        for turn in range(pairs):
            took = {}
            for who in ("curl", "node") if turn % 2 else ("node", "curl"):
                os.sync()
                if who == "curl":
                    took[who] = curl()
                else:
                    took[who], peak = bench.node(way)
            rows.append((mib / took["curl"], mib / took["node"]))
        ratios = sorted(ours / theirs for theirs, ours in rows)
        print(
            f"{way:4} {mib:g} MiB: curl {statistics.median(row[0] for row in rows):.0f} MiB/s, "
            f"node {statistics.median(row[1] for row in rows):.0f} MiB/s, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}), "
            f"node's peak memory so far {peak:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
