"""Which labels a task asks of its runner: Kubernetes' label selectors, in their JSON form.

``matchLabels`` and ``matchExpressions`` are ANDed, so each is kept as one list of requirements: a pair of
``matchLabels`` is ``In`` with one value. See https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

from posemesh.errors import InvalidSpec
from posemesh.types import JSON, TaskSpec

__all__ = ("Operator", "Requirement", "Selector", "parse_selector", "selector_of")


class Operator(StrEnum):
    """How a label is compared. ``NotIn`` and ``DoesNotExist`` hold for a label that is absent."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


_FIELDS: Final = ("matchLabels", "matchExpressions")
_WITH_VALUES: Final = (Operator.IN, Operator.NOT_IN)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One clause. ``values`` are compared as text, letter by letter."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = f" [{', '.join(map(repr, self.values))}]" if self.values else ""
        return f"{self.key} {self.operator}{values}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements, all of which must hold; without any, every runner will do."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self.missed_by(labels) is None

    def missed_by(self, labels: Mapping[str, str]) -> Requirement | None:
        """The first requirement that these labels do not meet."""
        return next((each for each in self.requirements if not each.matches(labels)), None)


def selector_of(spec: TaskSpec) -> Selector | None:
    """The selector of a task: ``meta.runner_selector``, else ``capability_filters`` where they have the form of one.

    Other filters are the service's business and ignored. Raises InvalidSpec.
    """
    meta, filters = spec.meta, spec.capability_filters
    if isinstance(meta, dict) and meta.get("runner_selector") is not None:
        return _parse(spec, meta["runner_selector"], "meta.runner_selector")
    if isinstance(filters, dict):
        chosen = {name: filters[name] for name in _FIELDS if filters.get(name) is not None}
        if chosen:
            return _parse(spec, chosen, "capability_filters")
    return None


def _parse(spec: TaskSpec, value: JSON, where: str) -> Selector:
    return parse_selector(value, f"a task of {spec.capability!r:.200}: {where}")


def parse_selector(value: JSON, where: str = "selector") -> Selector:
    """The selector that JSON spells; null stands for absent, as in Kubernetes.

    Raises InvalidSpec, which names the place below ``where`` and what was expected there.
    """
    fields = _object(value, where, {*_FIELDS})
    pairs = _object(_or(fields, "matchLabels", {}), f"{where}.matchLabels")
    expressions = _list(_or(fields, "matchExpressions", []), f"{where}.matchExpressions")
    return Selector(
        (
            *(_pair(key, label, f"{where}.matchLabels") for key, label in pairs.items()),
            *(_requirement(each, f"{where}.matchExpressions[{at}]") for at, each in enumerate(expressions)),
        )
    )


def _pair(key: str, value: Any, where: str) -> Requirement:
    return Requirement(_key(key, where), Operator.IN, (_text(value, f"{where}[{key!r:.80}]"),))


def _requirement(value: Any, where: str) -> Requirement:
    fields = _object(value, where, {"key", "operator", "values"})
    key = _key(_text(fields.get("key"), f"{where}.key"), f"{where}.key")
    said = fields.get("operator")
    if said not in list(Operator):
        _refuse(f"{where}.operator", f"one of {', '.join(Operator)}", said)
    operator = Operator(said)
    values = _list(_or(fields, "values", []), f"{where}.values")
    if operator in _WITH_VALUES and not values:
        _refuse(f"{where}.values", f"at least one for {operator}", values)
    if operator not in _WITH_VALUES and values:
        _refuse(f"{where}.values", f"none for {operator}", values)
    return Requirement(key, operator, tuple(_text(each, f"{where}.values[{at}]") for at, each in enumerate(values)))


def _or(fields: dict[str, Any], name: str, default: Any) -> Any:
    return default if fields.get(name) is None else fields[name]


def _object(value: Any, where: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, "an object", value)
    unknown = sorted(value.keys() - known) if known is not None else []
    if known is not None and unknown:
        _refuse(where, f"no fields but {', '.join(sorted(known))}", unknown)
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(where, "a list", value)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        _refuse(where, "text", value)
    return value


def _key(value: str, where: str) -> str:
    if not value:
        _refuse(where, "a label's name that is not empty", value)
    return value


def _refuse(where: str, expected: str, value: object) -> NoReturn:
    raise InvalidSpec(f"{where}: expected {expected}, got {value!r:.200}")
