"""A living room as laser scanners see it: a PLY with real scans' density, shadows, noise and stray points.

    python examples/pointcloud/scene.py scene.ply

Five stations send out rays; what each ray hits first becomes a point. The same seed gives the same scene.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clouds import Cloud, write_ply

__all__ = ("scan",)

Floats = NDArray[np.float32]
Paint = Callable[[Floats], Floats]

# Metres. The room is open to the front, where x is large and y small.
ROOM: Final = (6.0, 5.0, 2.6)
STATIONS: Final = ((3.1, 2.3, 1.55), (5.2, 0.9, 1.7), (1.4, 3.9, 1.5), (4.9, 4.5, 1.35), (1.5, 0.6, 1.6))
ROWS, COLUMNS = 180, 480
LIGHT: Final = np.array((0.45, -0.35, 0.82), np.float32)
RANGE_NOISE_M: Final = 0.006
#: How many returns come from nothing: dust, edges, glass.
STRAY_SHARE: Final = 0.008


@dataclass(frozen=True, slots=True)
class Box:
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    paint: Paint

    def distance(self, origin: Floats, rays: Floats) -> Floats:
        """Along each ray, (3, N); inf where it misses."""
        one, two = (((np.array(end, np.float32) - origin)[:, None]) / rays for end in (self.low, self.high))
        enter, leave = np.minimum(one, two).max(axis=0), np.maximum(one, two).min(axis=0)
        return np.where((enter <= leave) & (enter > 0), enter, np.float32(np.inf))

    def normal(self, points: Floats) -> Floats:
        """Of the side that each point lies on."""
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        offset = (points - (low + high) / 2) / (high - low)
        side = np.abs(offset).argmax(axis=1)[:, None] == np.arange(3)
        return np.where(side, np.sign(offset), np.float32(0))


@dataclass(frozen=True, slots=True)
class Ball:
    """An ellipsoid."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    paint: Paint

    def distance(self, origin: Floats, rays: Floats) -> Floats:
        radii = np.array(self.radii, np.float32)
        start, step = (origin - np.array(self.centre, np.float32)) / radii, rays / radii[:, None]
        a, b, c = (step * step).sum(axis=0), start @ step, start @ start - 1
        root = b * b - a * c
        distance = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root > 0) & (distance > 0), distance, np.float32(np.inf))

    def normal(self, points: Floats) -> Floats:
        outward = (points - np.array(self.centre, np.float32)) / np.square(np.array(self.radii, np.float32))
        return outward / np.linalg.norm(outward, axis=1, keepdims=True)


Shape = Box | Ball


def plain(red: int, green: int, blue: int) -> Paint:
    return lambda points: np.broadcast_to(np.array((red, green, blue), np.float32), points.shape)


def _stripes(points: Floats, values: NDArray[np.integer], colours: Iterable[tuple[int, int, int]]) -> Floats:
    table = np.array(tuple(colours), np.float32)
    return table[values.astype(np.int64) % len(table)]


def planks(points: Floats) -> Floats:
    row = np.floor(points[:, 1] / 0.16)
    number = row * 7 + np.floor((points[:, 0] + row * 0.61) / 1.3) * 3
    colours = ((176, 128, 84), (164, 116, 74), (186, 140, 95), (155, 108, 68), (171, 124, 80))
    return _stripes(points, number.astype(np.int64), colours)


def rug(points: Floats) -> Floats:
    ring = np.hypot((points[:, 0] - 2.45) / 1.25, (points[:, 1] - 2.2) / 0.95)
    return _stripes(points, np.floor(ring * 9).astype(np.int64), ((38, 84, 110), (222, 205, 170), (190, 82, 60)))


def books(points: Floats) -> Floats:
    colours = ((170, 50, 45), (40, 80, 120), (215, 175, 80), (60, 110, 80), (230, 225, 210), (90, 60, 100))
    number = np.floor(points[:, 0] / 0.045) * 5 + np.floor(points[:, 2] / 0.4) * 3
    return _stripes(points, number.astype(np.int64), colours)


def picture(points: Floats) -> Floats:
    sky = np.array((240, 175, 95), np.float32) - (points[:, 2:] - 1.5) * np.array((150, 60, -90), np.float32)
    hill = points[:, 2] < 1.55 + 0.12 * np.sin(points[:, 1] * 7)
    return np.where(hill[:, None], np.array((45, 85, 90), np.float32), sky)


def foliage(points: Floats) -> Floats:
    wave = np.sin(points @ np.array((61, 47, 53), np.float32))
    return np.array((62, 120, 58), np.float32) + wave[:, None] * np.array((22, 32, 18), np.float32)


def room() -> list[Shape]:
    width, depth, height = ROOM
    wall, oak, sofa, seat = plain(226, 220, 208), plain(140, 96, 60), plain(70, 108, 122), plain(84, 124, 138)
    white, dark, orange = plain(238, 238, 234), plain(52, 50, 54), plain(225, 130, 40)
    return [
        Box((0, 0, -0.1), (width, depth, 0), planks),
        Box((-0.1, 0, 0), (0, depth, height), wall),
        Box((0, depth, 0), (width, depth + 0.1, height), wall),
        Box((0, depth - 0.015, 0), (width, depth, 0.1), white),
        Box((0, 0, 0), (0.015, depth, 0.1), white),
        Box((1.2, 1.25, 0), (3.7, 3.15, 0.02), rug),
        # sofa along the left wall
        Box((0.12, 1.15, 0.12), (0.98, 3.25, 0.42), sofa),
        Box((0.12, 1.15, 0.42), (0.34, 3.25, 0.88), sofa),
        Box((0.12, 1.0, 0.12), (0.98, 1.2, 0.64), sofa),
        Box((0.12, 3.2, 0.12), (0.98, 3.4, 0.64), sofa),
        Box((0.34, 1.22, 0.42), (1.0, 2.18, 0.52), seat),
        Box((0.34, 2.22, 0.42), (1.0, 3.18, 0.52), seat),
        Ball((0.48, 1.55, 0.72), (0.13, 0.25, 0.22), plain(214, 150, 60)),
        Ball((0.48, 2.85, 0.72), (0.13, 0.25, 0.22), plain(190, 82, 60)),
        # coffee table and what is on it
        Box((1.85, 1.6, 0.38), (2.65, 2.8, 0.43), oak),
        *(Box((x, y, 0.02), (x + 0.06, y + 0.06, 0.38), oak) for x in (1.9, 2.54) for y in (1.65, 2.69)),
        Ball((2.2, 1.95, 0.53), (0.1, 0.1, 0.11), plain(222, 222, 226)),
        Box((2.1, 2.35, 0.43), (2.4, 2.58, 0.47), plain(170, 50, 45)),
        # shelf along the back wall
        Box((1.1, 4.66, 0), (1.14, 4.98, 2.0), oak),
        Box((2.86, 4.66, 0), (2.9, 4.98, 2.0), oak),
        *(Box((1.1, 4.66, z), (2.9, 4.98, z + 0.04), oak) for z in (0.06, 0.46, 0.86, 1.26, 1.66, 1.98)),
        *(Box((1.16 + s, 4.76, z + 0.04), (2.3 + s, 4.96, z + 0.33), books) for z, s in ((0.46, 0), (0.86, 0.4))),
        *(Box((1.3 + s, 4.76, z + 0.04), (2.1 + s, 4.96, z + 0.31), books) for z, s in ((1.26, 0.6), (1.66, 0))),
        Box((0, 1.5, 1.35), (0.03, 2.9, 2.05), picture),
        # window
        Box((3.5, 4.97, 0.9), (5.3, 5, 2.2), plain(168, 206, 232)),
        *(Box((x, 4.94, 0.86), (x + 0.06, 5, 2.24), white) for x in (3.46, 4.37, 5.28)),
        *(Box((3.46, 4.92, z), (5.34, 5, z + 0.06), white) for z in (0.84, 2.18)),
        # table with two stools
        Box((3.75, 3.3, 0.72), (5.25, 4.15, 0.77), oak),
        *(Box((x, y, 0), (x + 0.07, y + 0.07, 0.72), oak) for x in (3.8, 5.13) for y in (3.35, 4.03)),
        *(Box((x, 2.75, 0.44), (x + 0.42, 3.15, 0.49), plain(190, 82, 60)) for x in (3.9, 4.7)),
        *(
            Box((x + dx, 2.75 + dy, 0), (x + dx + 0.05, 2.8 + dy, 0.44), dark)
            for x in (3.9, 4.7)
            for dx in (0, 0.37)
            for dy in (0, 0.35)
        ),
        Ball((4.5, 3.7, 0.83), (0.2, 0.2, 0.08), white),
        Ball((4.5, 3.76, 0.9), (0.06, 0.06, 0.06), orange),
        Ball((4.58, 3.65, 0.9), (0.06, 0.06, 0.06), orange),
        Ball((4.42, 3.66, 0.9), (0.06, 0.06, 0.06), orange),
        # plant, lamp, ball
        Box((0.35, 4.25, 0), (0.75, 4.65, 0.42), plain(196, 110, 80)),
        Ball((0.55, 4.45, 0.8), (0.3, 0.3, 0.25), foliage),
        Ball((0.71, 4.27, 1.05), (0.24, 0.24, 0.2), foliage),
        Ball((0.39, 4.55, 1.12), (0.26, 0.26, 0.22), foliage),
        Ball((0.65, 4.59, 1.35), (0.22, 0.22, 0.19), foliage),
        Ball((0.55, 4.4, 1.56), (0.16, 0.16, 0.14), foliage),
        Box((0.42, 0.52, 0), (0.72, 0.82, 0.03), dark),
        Box((0.555, 0.655, 0.03), (0.585, 0.685, 1.55), dark),
        Ball((0.57, 0.67, 1.6), (0.24, 0.24, 0.18), plain(250, 226, 160)),
        Ball((4.6, 1.3, 0.2), (0.2, 0.2, 0.2), plain(200, 60, 60)),
    ]


def _rays(rng: np.random.Generator) -> Floats:
    """One turn of a station: rows of nearly even angles, as directions (3, N)."""
    up, around = np.meshgrid(np.linspace(-1.25, 0.7, ROWS), np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False))
    up = up.ravel() + rng.normal(0, 0.0012, up.size)
    around = around.ravel() + rng.normal(0, 0.0012, around.size)
    return np.stack((np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up))).astype(np.float32)


def _station(origin: Floats, shapes: list[Shape], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Points and their colours (0 to 255) as one station sees them."""
    rays = _rays(rng)
    nearest = np.full(rays.shape[1], np.inf, np.float32)
    which = np.full(rays.shape[1], -1)
    for number, shape in enumerate(shapes):
        distance = shape.distance(origin, rays)
        closer = distance < nearest
        nearest[closer], which[closer] = distance[closer], number
    seen = which >= 0
    rays, nearest, which = rays[:, seen].T, nearest[seen], which[seen]
    hits = origin + rays * nearest[:, None]
    colours = np.empty_like(hits)
    for number in np.unique(which):
        mine = which == number
        lit = 0.68 + 0.32 * np.clip(shapes[number].normal(hits[mine]) @ LIGHT, 0, 1)
        colours[mine] = shapes[number].paint(hits[mine]) * lit[:, None]
    measured = nearest + rng.normal(0, RANGE_NOISE_M, len(nearest)) * (1 + nearest / 6)
    stray = rng.random(len(nearest)) < STRAY_SHARE
    measured[stray] *= rng.uniform(0.35, 1.15, stray.sum())
    return (origin + rays * measured[:, None]).astype(np.float32), colours + rng.normal(0, 4, hits.shape)


def scan(seed: int = 7) -> Cloud:
    """The whole scene."""
    rng = np.random.default_rng(seed)
    shapes = room()
    parts = [_station(np.array(origin, np.float32), shapes, rng) for origin in STATIONS]
    points, colours = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Cloud(points.astype(np.float64), np.clip(colours, 0, 255).astype(np.uint8))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: scene.py FILE.ply")
    path = Path(sys.argv[1])
    cloud = scan()
    path.write_bytes(write_ply(cloud))
    print(f"{path}: {len(cloud.points):,} points")


if __name__ == "__main__":
    main()
