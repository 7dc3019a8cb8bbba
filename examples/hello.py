import posemesh

node = posemesh.Node()


@node.runner("/examples/hello/v1")
async def hello(task):
    data = await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
    await task.output.put_bytes("hello.bin", data.upper())


if __name__ == "__main__":
    node.run()
