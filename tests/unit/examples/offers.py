"""What a file offers on its node, noted down: its runners by capability, with their options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F")


class Offer(NamedTuple):
    target: Any
    options: dict[str, Any]


class Offers:
    """Takes what ``posemesh.Node`` takes."""

    def __init__(self, config: object = None, *, runners: Iterable[Any] = ()) -> None:
        self.offered = {runner.capability(): Offer(runner, {}) for runner in runners}

    def runner(
        self,
        capability: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        executor: str | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
        memory_bytes: int | None = None,
        keep: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]:
        options = {name: value for name, value in locals().items() if name not in ("self", "capability")}

        def register(target: F) -> F:
            self.offered[capability] = Offer(target, options)
            return target

        return register

    def command(
        self,
        capability: str,
        argv: Sequence[str],
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "capability", "argv")}
        self.offered[capability] = Offer(list(argv), options)

    def register(
        self,
        routed: Any,
        capability: str,
        *,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "capability", "routed")}
        self.offered[routed.name] = Offer(routed, options)

    def run(self) -> None:
        raise AssertionError("a file that is imported does not run its node")
