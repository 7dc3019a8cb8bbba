"""Any program: its inputs are files, and what it leaves in the outputs' directory is uploaded."""

from __future__ import annotations

import posemesh

node = posemesh.Node()

node.command("/examples/sort/v1", ["sort", "--output={outputs}/sorted.txt", "{input}"], timeout=60, env={"LC_ALL": "C"})

if __name__ == "__main__":
    node.run()
