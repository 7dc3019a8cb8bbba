"""Point clouds, and the PLY files they come in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyParseError

__all__ = ("Cloud", "read_ply", "write_ply")

_AXES = ("x", "y", "z")
_COLOURS = ("red", "green", "blue")


class Cloud(NamedTuple):
    """Points in metres (N, 3) and their colours (N, 3), or None where the scan has none."""

    points: NDArray[np.float64]
    colours: NDArray[np.uint8] | None


def read_ply(path: Path) -> Cloud:
    """The vertices of a PLY file, text or binary. Raises ValueError for a file that holds no points."""
    # From a file, not from memory: plyfile maps the one and goes through the other row by row.
    try:
        vertices = PlyData.read(str(path))["vertex"].data
        points = np.stack([np.asarray(vertices[axis], np.float64) for axis in _AXES], axis=1)
    except PlyParseError as error:
        raise ValueError(f"expected a PLY file: {error}") from None
    except (KeyError, TypeError, ValueError):  # no element or no property of that name, or lists in its place
        raise ValueError("expected a PLY file with an element 'vertex' that has x, y and z") from None
    if len(points) == 0:
        raise ValueError("expected a PLY file with points, and it has none")
    names = vertices.dtype.names or ()
    coloured = all(name in names and vertices.dtype[name] == np.uint8 for name in _COLOURS)
    return Cloud(points, np.stack([vertices[name] for name in _COLOURS], axis=1) if coloured else None)


def write_ply(cloud: Cloud) -> bytes:
    """A binary PLY with x, y and z, and red, green and blue where the cloud has colours."""
    kinds = [(name, "<f4") for name in _AXES]
    columns = list(cloud.points.T)
    if cloud.colours is not None:
        kinds += [(name, "u1") for name in _COLOURS]
        columns += list(cloud.colours.T)
    vertices = np.empty(len(cloud.points), kinds)
    for (name, _), column in zip(kinds, columns, strict=True):
        vertices[name] = column
    file = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(file)
    return file.getvalue()
