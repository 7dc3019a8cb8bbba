import posemesh

node = posemesh.Node()


@node.runner("/examples/hello/v1")
async def hello(task):
    task.ctrl.progress({"status": "started"})
    data = await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
    await task.output.put_bytes("outputs/hello.bin", data)
    task.ctrl.progress({"status": "finished"})


if __name__ == "__main__":
    node.run()
