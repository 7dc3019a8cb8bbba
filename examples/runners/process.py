"""A process of its own: what crashes, leaks or holds the interpreter there never touches the node."""

from __future__ import annotations

import hashlib

import posemesh

node = posemesh.Node()


@node.runner("/examples/digest/v1", executor="process", timeout=600, memory_bytes=2 * 1024**3)
def digest(task: posemesh.SyncTaskContext) -> None:
    meta = task.lease.task.meta
    rounds = meta.get("rounds", 1) if isinstance(meta, dict) else 1
    value = task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
    for number in range(rounds):
        value = hashlib.sha256(value).digest()
        if number % 1000 == 0:
            task.ctrl.progress({"round": number})  # where a stop is heeded
    task.output.put_bytes("digest.txt", value.hex().encode())


if __name__ == "__main__":
    node.run()
