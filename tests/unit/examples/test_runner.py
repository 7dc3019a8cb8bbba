"""The point cloud's runner, from a PLY to its three artifacts."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import preview
from clouds import Cloud, read_ply, write_ply
from preview import draw, view_of
from runner import settings, voxel_downsample
from scene import scan

Run = Callable[..., Any]
PANEL = (90, 76)

NOTHING = b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a hundredth of its size: the drawing is the same and takes no time."""
    monkeypatch.setattr(preview, "PANEL", PANEL)


@pytest.fixture(scope="module")
def room() -> Cloud:
    return scan()


def grid(edge: int) -> Cloud:
    """Points 0.1 m apart, in a cube."""
    points = np.stack(np.meshgrid(*[np.arange(edge) / 10 + 0.05] * 3), axis=-1).reshape(-1, 3)
    return Cloud(points, np.full((len(points), 3), 200, np.uint8))


def test_the_scene_is_a_scan_of_its_seed(room: Cloud) -> None:
    assert room.colours is not None
    assert len(room.points) >= 100_000
    assert len(room.colours) == len(room.points)
    assert np.isfinite(room.points).all()
    again, other = scan(), scan(seed=8)
    assert (again.points == room.points).all()
    assert other.points.shape != room.points.shape or (other.points != room.points).any()


def test_the_scene_has_noise_off_every_surface(room: Cloud) -> None:
    heights = room.points[np.abs(room.points[:, 2]) < 0.05, 2]
    assert 0.003 < heights.std() < 0.03
    assert (room.points[:, 2] < -0.1).any()


def test_a_scan_becomes_three_artifacts(run_task: Run, tmp_path: Path) -> None:
    seen = run_task(voxel_downsample, write_ply(grid(10)), meta={"voxel_size": 0.2})
    assert set(seen.artifacts) == {"downsampled.ply", "statistics.json", "preview.png"}
    (tmp_path / "out.ply").write_bytes(seen.artifacts["downsampled.ply"])
    assert len(read_ply(tmp_path / "out.ply").points) == 125
    statistics = json.loads(seen.artifacts["statistics.json"])
    assert (statistics["points_in"], statistics["points_out"], statistics["points_left_out"]) == (1000, 125, 0)
    assert statistics["points_per_voxel"] == {"mean": 8.0, "median": 8.0, "max": 8}
    assert statistics["bounds_m"]["min"] == pytest.approx([0.1] * 3)
    with Image.open(io.BytesIO(seen.artifacts["preview.png"])) as picture:
        picture.load()
        assert picture.width > 2 * PANEL[0]


def test_progress_only_grows_and_ends_at_100(run_task: Run) -> None:
    percents = [one["pct"] for one in run_task(voxel_downsample, write_ply(grid(4))).progress]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100


def test_points_that_are_none_are_counted_and_skipped(run_task: Run) -> None:
    cloud = grid(4)
    cloud.points[3] = math.nan
    cloud.points[5, 1] = math.inf
    statistics = json.loads(run_task(voxel_downsample, write_ply(cloud)).artifacts["statistics.json"])
    assert (statistics["points_in"], statistics["points_skipped"], statistics["points_out"]) == (64, 2, 62)


def test_sparse_voxels_are_left_out(run_task: Run) -> None:
    cloud = Cloud(np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [5.1, 5.1, 5.1]]), None)
    meta = {"voxel_size": 1, "min_points": 2}
    statistics = json.loads(run_task(voxel_downsample, write_ply(cloud), meta=meta).artifacts["statistics.json"])
    assert (statistics["points_out"], statistics["points_left_out"]) == (1, 1)


@pytest.mark.parametrize(
    ("inputs", "meta", "said"),
    [
        ((), None, "expected one input, a PLY file, got 0"),
        ((b"a", b"b"), None, "expected one input, a PLY file, got 2"),
        ((b"",), None, "expected a PLY file"),
        ((b"hello",), None, "expected a PLY file"),
        ((write_ply(grid(4))[:-100],), None, "early end-of-file"),
        ((NOTHING,), None, "it has none"),
        ((NOTHING.replace(b"float z", b"float w"),), None, "x, y and z"),
        ((NOTHING.replace(b"vertex", b"face"),), None, "element 'vertex'"),
        ((NOTHING.replace(b"vertex 0", b"vertex 1") + b"nan 0 0\n",), None, "none has finite coordinates"),
        ((write_ply(grid(4)),), {"voxel_size": 1e-9}, "too small"),
        ((write_ply(grid(4)),), {"min_points": 1000}, "lower min_points or raise voxel_size"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(
    run_task: Run, inputs: tuple[bytes, ...], meta: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run_task(voxel_downsample, *inputs, meta=meta)


@pytest.mark.parametrize("meta", [None, {}, [], "text", {"other": 1}])
def test_settings_have_defaults(meta: Any) -> None:
    assert settings(meta) == (0.05, 1)


@pytest.mark.parametrize(
    "meta",
    [
        *({"voxel_size": wrong} for wrong in (0, -1, "0.1", True, None, math.nan, math.inf, 101, 10**400)),
        *({"min_points": wrong} for wrong in (0, -1, 1.5, "2", True, None)),
    ],
    ids=str,
)
def test_wrong_settings_are_named(meta: dict[str, Any]) -> None:
    (name,) = meta
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        settings(meta)


@pytest.mark.parametrize(
    "points", [[[0, 0, 0]], [[1, 2, 3]] * 5, [[0, 0, 0], [1e6, 1e6, 1e6]], [[1e-9, 0, 0], [0, 1e-9, 0]]], ids=str
)
def test_any_cloud_can_be_drawn_also_without_colours(points: list[list[float]]) -> None:
    cloud = Cloud(np.array(points, float), None)
    picture = draw(cloud, view_of(cloud.points), grain_m=0.05)
    assert picture.size == PANEL
    assert len(set(picture.get_flattened_data())) > 1
