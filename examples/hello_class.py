"""hello.py as a class, which inherits nothing: `posemesh-node run examples/hello_class.py`."""

from __future__ import annotations

import posemesh


class HelloRunner:
    def capability(self) -> str:
        return "/examples/hello/v1"

    async def run(self, ctx: posemesh.TaskCtx) -> None:
        lease = ctx.lease
        await ctx.ctrl.progress({"status": "started"})
        data = await ctx.input.get_bytes_by_cid(lease.task.inputs_cids[0])
        await ctx.output.put_bytes("outputs/hello.bin", data)
        await ctx.ctrl.progress({"status": "finished"})


node = posemesh.Node(runners=[HelloRunner()])

if __name__ == "__main__":
    node.run()
