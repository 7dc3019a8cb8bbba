"""Voxel-grid downsampling, against a dictionary of cubes filled point by point."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clouds import Cloud
from voxels import downsample

COORDINATE = st.floats(-50, 50, width=32)
POINT = st.tuples(COORDINATE, COORDINATE, COORDINATE, st.integers(0, 255))
SIZE = st.sampled_from((0.01, 0.05, 0.3, 1.0, 7.5, 1000.0))


def cloud(rows: list[tuple[float, float, float, int]]) -> Cloud:
    table = np.array(rows, float).reshape(-1, 4)
    return Cloud(table[:, :3], np.repeat(table[:, 3:], 3, axis=1).astype(np.uint8))


def oracle(
    rows: list[tuple[float, float, float, int]], size: float, least: int
) -> list[tuple[list[float], float, int]]:
    cubes = defaultdict(list)
    for row in rows:
        cubes[tuple(math.floor(value / size) for value in row[:3])].append(row)
    return [
        ([math.fsum(column) / len(inside) for column in zip(*inside, strict=True)][:3],
         math.fsum(row[3] for row in inside) / len(inside), len(inside))
        for _, inside in sorted(cubes.items()) if len(inside) >= least
    ]  # fmt: skip


@given(st.lists(POINT, max_size=60), SIZE, st.integers(1, 3))
def test_each_cube_gives_the_mean_of_its_points(
    rows: list[tuple[float, float, float, int]], size: float, least: int
) -> None:
    result = downsample(cloud(rows), size, least)
    expected = oracle(rows, size, least)
    assert result.counts.tolist() == [count for *_, count in expected]
    for point, (wanted, *_) in zip(result.cloud.points.tolist(), expected, strict=True):
        assert point == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert result.cloud.colours is not None
    for colour, (_, wanted_colour, _) in zip(result.cloud.colours.tolist(), expected, strict=True):
        assert colour == pytest.approx([wanted_colour] * 3, abs=0.5 + 1e-9)


@given(st.lists(POINT, min_size=1, max_size=60), SIZE)
def test_no_point_is_lost_and_no_two_are_left_in_one_cube(
    rows: list[tuple[float, float, float, int]], size: float
) -> None:
    result = downsample(cloud(rows), size)
    assert result.counts.sum() == len(rows)
    assert len(result.cloud.points) <= len(rows)


def test_a_cloud_without_colours_stays_without() -> None:
    result = downsample(Cloud(np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]]), None), 1.0)
    assert result.cloud.colours is None
    assert result.cloud.points == pytest.approx(np.array([[0.15, 0.15, 0.15]]))


def test_large_coordinates_keep_their_millimetres() -> None:
    points = np.array([[5_000_000.001, 0, 0], [5_000_000.003, 0, 0]])
    assert downsample(Cloud(points, None), 1.0).cloud.points[0, 0] == pytest.approx(5_000_000.002, abs=1e-6, rel=0)


@pytest.mark.parametrize("size", [0, -1, math.nan, math.inf])
def test_a_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        downsample(cloud([(0, 0, 0, 0)]), size)


def test_a_size_too_small_to_number_the_cubes_is_refused() -> None:
    with pytest.raises(ValueError, match="too small for a cloud of 10 m"):
        downsample(cloud([(0, 0, 0, 0), (10, 10, 10, 0)]), 1e-7)
