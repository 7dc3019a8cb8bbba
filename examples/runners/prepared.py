"""A class with setup() and teardown(): what takes long is made ready once, before the first task."""

from __future__ import annotations

import zlib

import posemesh

node = posemesh.Node()


@node.runner("/examples/squeeze/v1")
class Squeeze:
    def check(self) -> None:
        """Before the node leases anything; what it raises ends the start."""
        if not hasattr(zlib, "compressobj"):
            raise RuntimeError("this Python was built without zlib")

    async def setup(self) -> None:
        self.model = zlib.compressobj(level=9)  # as if its weights had to be loaded

    async def run(self, task: posemesh.TaskContext) -> None:
        model = self.model.copy()
        data = await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
        await task.output.put_bytes("squeezed.zlib", model.compress(data) + model.flush())

    async def teardown(self) -> None:
        del self.model


if __name__ == "__main__":
    node.run()
