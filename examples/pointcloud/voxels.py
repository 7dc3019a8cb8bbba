"""Voxel-grid downsampling: space is cut into cubes, and the points in one cube become their mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clouds import Cloud

__all__ = ("Voxels", "downsample")

#: Cubes along all three axes are numbered by one integer of 64 bits.
_CUBES_MAX = 2**62


class Voxels(NamedTuple):
    """A point a cube, in the order of the cubes, and how many points each stands for."""

    cloud: Cloud
    counts: NDArray[np.int64]


def downsample(cloud: Cloud, size: float, min_points: int = 1) -> Voxels:
    """One point for each cube of edge ``size`` (metres) that holds at least ``min_points`` points.

    Cubes begin at multiples of ``size``, so that clouds of one place share them. Coordinates must be finite. Raises
    ValueError for a size that is none, or so small that the cubes cannot be numbered.
    """
    if not (np.isfinite(size) and size > 0):
        raise ValueError(f"expected a voxel size above 0 m, got {size}")
    if len(cloud.points) == 0:
        return Voxels(cloud, np.empty(0, np.int64))
    cubes = np.floor(cloud.points / size)
    low = cubes.min(axis=0)
    shape = cubes.max(axis=0) - low + 1
    if np.abs(cubes).max() >= 2**53 or np.prod(shape) >= _CUBES_MAX:
        raise ValueError(f"voxels of {size} m are too small for a cloud of {np.ptp(cloud.points, axis=0).max():g} m")
    x, y, z = (cubes - low).astype(np.int64).T
    keys = (x * int(shape[1]) + y) * int(shape[2]) + z
    _, owner, counts = np.unique(keys, return_inverse=True, return_counts=True)

    def mean(values: NDArray[np.generic]) -> NDArray[np.float64]:
        sums = [np.bincount(owner, weights=column, minlength=len(counts)) for column in values.T]
        return (np.stack(sums, axis=1) / counts[:, None])[kept]

    kept = counts >= min_points
    # Near the origin of the cloud, so that the sums of large coordinates keep their last digits.
    origin = low * size
    points = mean(cloud.points - origin) + origin
    colours = None if cloud.colours is None else np.rint(mean(cloud.colours)).astype(np.uint8)
    return Voxels(Cloud(points, colours), counts[kept])
