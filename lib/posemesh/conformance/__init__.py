"""The protocol's test vectors as data, for this implementation and any other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

__all__ = ("VECTOR_SETS", "Vector", "load_vectors")

VECTOR_SETS: Final = ("capabilities", "dds", "keys", "legacy", "siwe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One case: ``action`` done with ``given`` gives ``expect``. ``vectors/README.md`` lists the actions.

    ``id`` begins with V for a vector of the public reference implementation, with D for one derived with
    libsecp256k1.
    """

    id: str
    action: str
    given: dict[str, Any]
    expect: dict[str, Any]


def load_vectors(name: str) -> tuple[Vector, ...]:
    """The vectors of one set of :data:`VECTOR_SETS`, in the file's order; another name raises ValueError."""
    if name not in VECTOR_SETS:
        raise ValueError(f"no vectors {name!r}; there are {', '.join(VECTOR_SETS)}")
    text = files(__package__).joinpath("vectors", f"{name}.json").read_text("utf-8")
    return tuple(Vector(**vector) for vector in json.loads(text)["vectors"])
