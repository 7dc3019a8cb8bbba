"""examples/golem/thumbnails.py: what becomes of a picture, and which arguments are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from posemesh import golem


@pytest.fixture
def thumbnails(example: Callable[[str], ModuleType]) -> ModuleType:
    return example("golem/thumbnails.py")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_kind_of_picture_becomes_a_small_png(thumbnails: ModuleType, tmp_path: Path, mode: str) -> None:
    Image.new(mode, (400, 200)).save(tmp_path / "picture.tiff")
    assert thumbnails.make(tmp_path / "picture.tiff", tmp_path / "in" / "folders.png", 100) == (100, 50)
    with Image.open(tmp_path / "in" / "folders.png") as small:
        assert (small.format, small.size) == ("PNG", (100, 50))


def test_a_small_picture_keeps_its_size(thumbnails: ModuleType, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "picture.png")
    assert thumbnails.make(tmp_path / "picture.png", tmp_path / "small.png", 100) == (30, 20)


def test_it_is_upright(thumbnails: ModuleType, tmp_path: Path) -> None:
    """Cameras say how they were held (EXIF 0x0112; 6 is a quarter turn)."""
    picture = Image.new("RGB", (400, 200))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "picture.jpg", exif=exif)
    assert thumbnails.make(tmp_path / "picture.jpg", tmp_path / "small.png", 100) == (50, 100)


def test_the_edge_has_a_default_and_limits(thumbnails: ModuleType) -> None:
    assert [thumbnails.edge_of(args) for args in ((), ("1",), ("4096",))] == [256, 1, 4096]


@pytest.mark.parametrize("args", [("0",), ("-1",), ("4097",), ("big",), ("",), ("64", "64")], ids=str)
def test_other_arguments_are_refused(thumbnails: ModuleType, args: tuple[str, ...]) -> None:
    with pytest.raises(golem.HandlerError, match="expected an edge from 1 to 4096 pixels"):
        thumbnails.edge_of(args)
