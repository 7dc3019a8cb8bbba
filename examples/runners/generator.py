"""An async generator: each value it yields is the task's progress. It joins its inputs to one artifact."""

from __future__ import annotations

from collections.abc import AsyncIterator

import posemesh

node = posemesh.Node()


@node.runner("/examples/join/v1")
async def join(task: posemesh.TaskContext) -> AsyncIterator[dict[str, int]]:
    inputs = task.lease.task.inputs_cids
    async with task.output.open_multipart("joined.bin") as part:
        for number, cid in enumerate(inputs):
            yield {"pct": 100 * number // len(inputs)}
            await part.write(await task.input.get_bytes_by_cid(cid))
    yield {"pct": 100}


if __name__ == "__main__":
    node.run()
