"""The contract: what it is made of, and that a user's class inherits nothing."""

from __future__ import annotations

from posemesh.runners.api import Runner, TaskContext


def test_a_runner_is_what_has_its_two_methods() -> None:
    class Good:
        def capability(self) -> str:
            return "/a/v1"

        async def run(self, task: TaskContext) -> None: ...

    assert isinstance(Good(), Runner)
    assert not isinstance(object(), Runner)
