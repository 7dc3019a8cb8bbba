"""Pictures of clouds: from an oblique side, shaded by depth, side by side with labels."""

from __future__ import annotations

import io
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clouds import Cloud

__all__ = ("View", "draw", "sheet", "view_of")

Floats = NDArray[np.float64]

# Pixels of the picture. Each panel is drawn twice as large and then made smaller, which smooths edges.
PANEL: Final = (900, 760)
MARGIN, HEADER, OVERSAMPLE = 28, 96, 2
#: Of a panel. Larger voxels are drawn apart: a point must fit into the margin, and a picture must not take for ever.
RADIUS_MAX: Final = 1 / 40
BACKGROUND: Final = (17, 21, 28)
TITLE, SUBTITLE = (240, 243, 247), (142, 156, 176)
#: Where the eye is: turned from the x axis towards -y, and above the horizon. Degrees.
AZIMUTH, ELEVATION = 40, 34
#: From low to high, for clouds without colours.
RAMP: Final = np.array(((48, 56, 140), (38, 130, 142), (53, 183, 121), (180, 222, 44), (253, 231, 37)), float)


class View(NamedTuple):
    """Metres to pixels: axes right, up and towards the eye, the point in the middle, and the scale."""

    axes: Floats
    middle: Floats
    pixels_per_metre: float


def view_of(points: Floats) -> View:
    """From an oblique side, so that all but stray points fit into a panel."""
    turn, lift = np.radians((AZIMUTH, ELEVATION))
    towards = np.array((np.cos(lift) * np.cos(turn), -np.cos(lift) * np.sin(turn), np.sin(lift)))
    right = np.array((np.sin(turn), np.cos(turn), 0.0))
    axes = np.stack((right, np.cross(towards, right), towards))
    seen = points @ axes.T
    low, high = np.percentile(seen, (0.3, 99.7), axis=0)
    fit = np.array(PANEL) * OVERSAMPLE * 0.92 / np.maximum(high[:2] - low[:2], 1e-9)
    return View(axes, (low + high) / 2, float(fit.min()))


def draw(cloud: Cloud, view: View, grain_m: float = 0.0) -> Image.Image:
    """A panel: each point a little ball, of the size of a voxel of ``grain_m`` or the smallest that fills the gaps."""
    width, height = PANEL[0] * OVERSAMPLE, PANEL[1] * OVERSAMPLE
    wanted = min(min(width, height) * RADIUS_MAX, grain_m * view.pixels_per_metre * 0.62)
    radius = max(OVERSAMPLE + 1, round(wanted))
    depth, owner = _splat((cloud.points @ view.axes.T - view.middle) * view.pixels_per_metre, width, height, radius)
    colours = np.vstack((_colours(cloud), BACKGROUND))[owner]  # the owner -1 is the background
    image = np.clip(colours * _shade(depth)[:, :, None], 0, 255).astype(np.uint8)
    return Image.fromarray(image).resize(PANEL, Image.Resampling.BOX)


def sheet(*panels: tuple[Image.Image, str, str]) -> bytes:
    """A PNG with the panels side by side, each below its title and subtitle."""
    width, height = PANEL
    paper = Image.new("RGB", (MARGIN + len(panels) * (width + MARGIN), height + HEADER + MARGIN), BACKGROUND)
    write = ImageDraw.Draw(paper)
    for number, (panel, title, subtitle) in enumerate(panels):
        x = MARGIN + number * (width + MARGIN)
        paper.paste(panel, (x, HEADER))
        write.text((x, 20), title, TITLE, ImageFont.load_default(34))
        write.text((x, 60), subtitle, SUBTITLE, ImageFont.load_default(22))
    png = io.BytesIO()
    paper.save(png, "PNG", compress_level=4)
    return png.getvalue()


def _splat(seen: Floats, width: int, height: int, radius: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Every point as a little ball: for each pixel how near it is to the eye, and whose it is (-1 for nobody's)."""
    nearness = np.full(width * height, -np.inf, np.float32)
    owner = np.full(width * height, -1, np.int32)
    order = np.argsort(seen[:, 2], kind="stable")  # far ones first: near ones are painted over them
    x, y, z = np.rint(seen[order, 0] + width / 2), np.rint(height / 2 - seen[order, 1]), seen[order, 2]
    inside = (x >= radius) & (x < width - radius) & (y >= radius) & (y < height - radius)
    order, z = order[inside].astype(np.int32), z[inside].astype(np.float32)
    place = (y[inside] * width + x[inside]).astype(np.int64)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            rest = radius * radius + 1 - dx * dx - dy * dy
            if rest <= 0:
                continue
            at, near = place + (dy * width + dx), z + np.float32(rest**0.5)
            first = near > nearness[at]
            # Of equal places the last assignment stays, which is the nearest of these.
            nearness[at[first]], owner[at[first]] = near[first], order[first]
    return nearness.reshape(height, width), owner.reshape(height, width)


def _shade(nearness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Eye-dome lighting (Boucheny 2009): a pixel is dark as far as its neighbours are nearer to the eye."""
    empty = np.isneginf(nearness)
    level = np.where(empty, np.float32(-1e6), nearness)
    hidden = np.zeros_like(level)
    steps = ((2, 0), (-2, 0), (0, 2), (0, -2), (3, 3), (3, -3), (-3, 3), (-3, -3), (7, 0), (-7, 0), (0, 7), (0, -7))
    for dy, dx in steps:
        hidden += np.clip(np.roll(level, (dy, dx), (0, 1)) - level, 0, 40)
    shade = np.exp(-hidden / (len(steps) * 9))
    return np.where(empty, np.float32(1), shade * np.float32(1.08))


def _colours(cloud: Cloud) -> Floats:
    if cloud.colours is not None:
        return cloud.colours.astype(float)
    low, high = np.percentile(cloud.points[:, 2], (1, 99))
    height = np.clip((cloud.points[:, 2] - low) / max(high - low, 1e-9), 0, 1) * (len(RAMP) - 1)
    return np.stack([np.interp(height, range(len(RAMP)), column) for column in RAMP.T], axis=1)
