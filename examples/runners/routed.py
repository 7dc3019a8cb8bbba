"""A routed runner: it says itself which tasks it takes, and its labels are what a task may ask for.

Two runners share a capability. The first takes small tasks alone. The other takes all, and has the label that this
`meta` asks for: {"runner_selector": {"matchLabels": {"size": "any"}}}.
"""

from __future__ import annotations

import posemesh
from posemesh.runners.executors.command import CommandRunner

CAPABILITY = "/examples/reverse/v1"
ARGV = ["sort", "--reverse", "--output={outputs}/reversed.txt", "{input}"]

node = posemesh.Node()


class Small(CommandRunner):
    def supports(self, spec: posemesh.TaskSpec) -> bool:
        return super().supports(spec) and isinstance(spec.meta, dict) and spec.meta.get("lines", 0) <= 1000


node.register(Small("reverse-small", CAPABILITY, ARGV), CAPABILITY, slots=4)
node.register(CommandRunner("reverse-any", CAPABILITY, ARGV), CAPABILITY, labels={"size": "any"}, slots=1)

if __name__ == "__main__":
    node.run()
