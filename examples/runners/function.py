"""A plain function: no `async` anywhere. It runs in a thread, and counts the words of its input."""

from __future__ import annotations

import json
from collections import Counter

import posemesh

node = posemesh.Node()


@node.runner("/examples/count-words/v1")
def count_words(task: posemesh.SyncTaskContext) -> None:
    text = task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0]).decode()
    counts = Counter(text.lower().split())
    task.ctrl.log_event({"words": counts.total()})
    task.output.put_bytes("counts.json", json.dumps(dict(counts.most_common()), indent=2).encode())


if __name__ == "__main__":
    node.run()
