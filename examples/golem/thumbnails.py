#!/usr/bin/env python3
"""A Golem runtime that makes thumbnails: of all images in its volume `/golem/input`, into `/golem/output`, as PNG.

    python thumbnails.py --workdir W deploy
    python thumbnails.py --workdir W run -- thumbnails 128

The one argument is the longest edge in pixels, 256 without it. `photo.jpg` becomes `photo.jpg.png`, and so on in
folders. The counter `thumbnails.done` says how many percent are done. What is no image is named on stderr; the exit
code is then 1, and the thumbnails of the others are there all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from posemesh import golem

INPUT, OUTPUT = golem.Volume("input", "/golem/input"), golem.Volume("output", "/golem/output")
EDGE_PIXELS, EDGE_PIXELS_MAX = 256, 4096


class Thumbnails(golem.Runtime):
    NAME = "thumbnails"
    VERSION = "0.1.0"

    async def deploy(self, ctx: golem.Context[None]) -> golem.Deployed:
        for volume in (INPUT, OUTPUT):
            folder(ctx, volume).mkdir(parents=True, exist_ok=True)
        return golem.Deployed(vols=[INPUT, OUTPUT])

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[None]) -> int:
        # Over the protocol the first argument is the name of what is called.
        own = command.args[1:] if mode is golem.RuntimeMode.SERVER else command.args
        edge = edge_of(own)
        return ctx.command(lambda run: make_all(run, folder(ctx, INPUT), folder(ctx, OUTPUT), edge))

    async def kill_command(self, kill: golem.KillProcess, ctx: golem.Context[None]) -> None:
        if not ctx.cancel(kill.pid):
            raise golem.HandlerError(f"there is no command {kill.pid}")

    async def test(self, ctx: golem.Context[None]) -> None:
        import PIL.Image  # noqa: F401


def folder(ctx: golem.Context[None], volume: golem.Volume) -> Path:
    return Path(ctx.cli.workdir or ".") / volume.name


def edge_of(args: tuple[str, ...]) -> int:
    """Raises HandlerError for anything but at most one number of pixels."""
    try:
        (edge,) = map(int, args) if args else (EDGE_PIXELS,)
        if 0 < edge <= EDGE_PIXELS_MAX:
            return edge
    except ValueError:
        pass
    raise golem.HandlerError(f"expected an edge from 1 to {EDGE_PIXELS_MAX} pixels and nothing else, got {args}")


async def make_all(run: golem.RunContext, source: Path, target: Path, edge: int) -> None:
    images = sorted(files_in(source))
    failed = 0
    for number, image in enumerate(images, 1):
        name = image.relative_to(source)
        try:
            # In a thread: requests are answered meanwhile.
            size = await asyncio.to_thread(make, image, target / f"{name}.png", edge)
            await run.stdout(f"{name}: {size[0]} x {size[1]}\n")
        except Exception as error:  # decoders raise all kinds of errors at damaged files
            failed += 1
            await run.stderr(f"{name}: {error}\n")
        await run.counter("thumbnails.done", 100 * number / len(images))
    if not images:
        await run.stderr(f"expected images in {INPUT.path}, found none\n")
    if failed or not images:
        raise golem.CommandExit(1)


def files_in(source: Path) -> Iterator[Path]:
    return (path for path in source.rglob("*") if path.is_file() and not path.is_symlink())


def make(source: Path, target: Path, edge: int) -> tuple[int, int]:
    """Write the thumbnail; its size in pixels."""
    from PIL import Image, ImageOps  # only now: other steps do without

    with Image.open(source) as image:
        image.draft("RGB", (edge, edge))
        upright = ImageOps.exif_transpose(image.convert("RGBA"))
        upright.thumbnail((edge, edge))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}")
        upright.save(unfinished, "PNG")
        unfinished.replace(target)
        return upright.size


if __name__ == "__main__":
    golem.run(Thumbnails)
