"""A node that downsamples point clouds: `posemesh-node run examples/pointcloud/runner.py`.

Its capability is /examples/voxel-downsample/v1. The task has one input, a PLY file, and may say in its meta:

    voxel_size    metres, the edge of the cubes whose points become one     0.05
    min_points    cubes with fewer points are left out, as noise            1

It hands in downsampled.ply, statistics.json and preview.png.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np

import posemesh
from clouds import Cloud, read_ply, write_ply
from preview import draw, sheet, view_of
from voxels import Voxels, downsample

VOXEL_SIZE_M_MAX = 100.0

node = posemesh.Node()


@node.runner("/examples/voxel-downsample/v1")
async def voxel_downsample(task: posemesh.TaskContext) -> None:
    size, min_points = settings(task.lease.task.meta)
    inputs = task.lease.task.inputs_cids
    if len(inputs) != 1:
        raise ValueError(f"expected one input, a PLY file, got {len(inputs)}")
    began = time.perf_counter()

    async def step(percent: int, name: str) -> None:
        """Tell how far the task is, and let the message out before the next stretch of work."""
        await task.ctrl.progress({"pct": percent, "step": name})
        await asyncio.sleep(0)

    await step(5, "fetching the scan")
    file = task.workspace / "scan.ply"
    file.write_bytes(await task.input.get_bytes_by_cid(inputs[0]))
    await step(15, "reading it")
    scan, skipped = finite(read_ply(file))
    await step(25, f"downsampling {len(scan.points):,} points")
    result = downsample(scan, size, min_points)
    if len(result.counts) == 0:
        raise ValueError(f"no voxel of {size} m holds {min_points} points; lower min_points or raise voxel_size")
    await step(35, "drawing the scan")
    view = view_of(scan.points)
    before = draw(scan, view)
    await step(55, "drawing the result")
    after = draw(result.cloud, view, grain_m=size)
    await step(75, "handing in the points")
    await task.output.put_bytes("downsampled.ply", write_ply(result.cloud))
    await step(80, "handing in the preview")
    labels = (f"{len(scan.points):,} points", f"{len(result.counts):,} points  ·  voxels of {size * 100:g} cm")
    await task.output.put_bytes("preview.png", sheet((before, "before", labels[0]), (after, "after", labels[1])))
    await step(95, "handing in the statistics")
    report = statistics(scan, skipped, result, size, min_points) | {"seconds": round(time.perf_counter() - began, 3)}
    await task.output.put_bytes("statistics.json", json.dumps(report, indent=2).encode() + b"\n")
    await step(100, "done")


def settings(meta: object) -> tuple[float, int]:
    """voxel_size and min_points as the task's meta has them. Raises ValueError for what cannot be used."""
    given = meta if isinstance(meta, dict) else {}
    size, min_points = given.get("voxel_size", 0.05), given.get("min_points", 1)
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size <= VOXEL_SIZE_M_MAX:
        raise ValueError(f"voxel_size: expected metres above 0 and at most {VOXEL_SIZE_M_MAX:g}, got {size!r:.40}")
    if isinstance(min_points, bool) or not isinstance(min_points, int) or min_points < 1:
        raise ValueError(f"min_points: expected a whole number of at least 1, got {min_points!r:.40}")
    return float(size), min_points


def finite(cloud: Cloud) -> tuple[Cloud, int]:
    """The cloud without points that scanners write as "no return" (NaN or infinite), and how many those were."""
    good = np.isfinite(cloud.points).all(axis=1)
    if not good.any():
        raise ValueError("expected a PLY file with points, and none has finite coordinates")
    colours = None if cloud.colours is None else cloud.colours[good]
    return Cloud(cloud.points[good], colours), int((~good).sum())


def statistics(scan: Cloud, skipped: int, result: Voxels, size: float, min_points: int) -> dict[str, Any]:
    points = result.cloud.points
    return {
        "voxel_size_m": size,
        "min_points": min_points,
        "points_in": len(scan.points) + skipped,
        "points_skipped": skipped,
        "points_left_out": len(scan.points) - int(result.counts.sum()),
        "points_out": len(points),
        "ratio": round(len(points) / len(scan.points), 6),
        "points_per_voxel": {
            "mean": round(float(result.counts.mean()), 3),
            "median": float(np.median(result.counts)),
            "max": int(result.counts.max()),
        },
        "bounds_m": {"min": np.round(points.min(axis=0), 4).tolist(), "max": np.round(points.max(axis=0), 4).tolist()},
    }


if __name__ == "__main__":
    node.run()
