"""Several nodes in one process, each with a wallet of its own: `python examples/hosting.py a.env b.env`."""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, suppress

import posemesh


async def hello(task):
    data = await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
    await task.output.put_bytes("outputs/hello.bin", data)


async def main(host, env_files):
    # As Ctrl-C does: wherever it waits, what was begun is ended in order.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    async with host, AsyncExitStack() as running:
        for env_file in env_files:
            node = posemesh.Node(posemesh.NodeConfig.from_env(env_file=env_file), host=host)
            node.runner("/examples/hello/v1")(hello)
            await running.enter_async_context(node)
        await asyncio.Event().wait()


if __name__ == "__main__":
    posemesh.telemetry.init_from_env()
    with suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(main(posemesh.Host("hosted-nodes", port=8080), sys.argv[1:]))
