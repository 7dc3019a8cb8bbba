"""Zip archives of strangers."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from posemesh.errors import BadInput, DiskFull
from posemesh.storage import archive
from posemesh.storage.archive import extract, is_archive


def packed(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, data in entries:
            opened.writestr(name, data)
    return path


def unpack(
    path: Path, *, limit: int = 2**40, take: Callable[[int], None] = lambda size: None
) -> list[tuple[str, bytes]]:
    target = path.parent / "target"
    files = extract(path, target, limit=limit, take=take)
    return [(str(file.relative_to(target)), file.read_bytes()) for file in files]


def test_files_in_their_order(tmp_path: Path) -> None:
    entries = [("b.ply", b"1" * 1000), ("deep/", b""), ("deep/er/a.json", b"{}"), ("empty", b""), ("ä ö.txt", b"2")]
    path = packed(tmp_path / "a.zip", *entries)
    assert is_archive(path)
    taken: list[int] = []
    assert unpack(path, take=taken.append) == [entry for entry in entries if not entry[0].endswith("/")]
    assert sum(taken) == 1003


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/out", "..", "C:/out", "a\\..\\out", "x\n", "n" * 256, "a/..", "./../b"]
)
def test_traversal(tmp_path: Path, name: str) -> None:
    """Weakness 57 of the reference: the names of entries were joined unchecked."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    path = packed(tmp_path / "a.zip", ("ok", b""), (info, b"evil"))
    with pytest.raises(BadInput, match="refused"):
        unpack(path)
    assert sorted(each.name for each in tmp_path.rglob("*")) in (["a.zip"], ["a.zip", "target"])


def test_a_nul_in_a_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", ("safeXname", b""))
    path.write_bytes(path.read_bytes().replace(b"safeXname", b"safe\0name"))
    with pytest.raises(BadInput):
        unpack(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(BadInput, match="link or a device"):
        unpack(packed(tmp_path / "a.zip", (info, b"/etc/passwd")))


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "a.zip", ("zeros", bytes(100_000)))
    with pytest.raises(BadInput, match="more than is allowed"):
        unpack(path, limit=99_999)
    monkeypatch.setattr(archive, "UNSUSPECTED_BYTES", 1000)
    bomb = packed(tmp_path / "b.zip", ("zeros", bytes(100_000)))
    (tmp_path / "target" / "zeros").unlink()
    (tmp_path / "target").rmdir()
    with pytest.raises(BadInput, match="more than is allowed"):
        unpack(bomb)


def test_a_size_that_lies(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", ("zeros", bytes(100_000)))
    size = (100_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(BadInput):
        unpack(path)
    assert sum(file.stat().st_size for file in (tmp_path / "target").rglob("*")) <= 10


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ENTRIES_MAX", 5)
    with pytest.raises(BadInput, match="more than 5 entries"):
        unpack(packed(tmp_path / "a.zip", *((str(number), b"") for number in range(6))))


def test_a_list_of_entries_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "a.zip", *(("n" * 200 + str(number), b"") for number in range(2000)))
    monkeypatch.setattr(archive, "DIRECTORY_BYTES_MAX", 100_000)
    with pytest.raises(BadInput, match="too long"):
        unpack(path)


@pytest.mark.parametrize("twice", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_place_for_two(tmp_path: Path, twice: tuple[str, str]) -> None:
    path = packed(tmp_path / "a.zip", *((name, b"x") for name in twice))
    with pytest.raises(Exception) as caught:
        unpack(path)
    assert type(caught.value).__module__ == "posemesh.errors"


def test_what_is_broken(tmp_path: Path) -> None:
    whole = packed(tmp_path / "a.zip", ("a", b"some content that is long enough" * 10)).read_bytes()
    for broken in (whole[:-5], whole[30:], whole[:40] + b"\xff" * 8 + whole[48:], b"PK\x03\x04", b""):
        path = tmp_path / "b.zip"
        path.write_bytes(broken)
        with pytest.raises(BadInput):
            unpack(path)
        for file in (tmp_path / "target").glob("*"):
            file.unlink()
        if (tmp_path / "target").exists():
            (tmp_path / "target").rmdir()


def test_what_is_encrypted(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", ("a", b"x"))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="encrypted"):
        unpack(path)


def test_no_more_room(tmp_path: Path) -> None:
    def full(size: int) -> None:
        raise DiskFull("no room")

    with pytest.raises(DiskFull):
        unpack(packed(tmp_path / "a.zip", ("a", b"x")), take=full)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_does_not_unpack_in_pieces_is_refused(tmp_path: Path, method: int) -> None:
    """An archive of a kilobyte took three gigabytes of memory before the first piece could be counted."""
    with pytest.raises(BadInput, match="deflate"):
        unpack(packed(tmp_path / "a.zip", ("a", b"0" * 1000), method=method))


def test_a_depth_that_could_not_be_removed_is_not_made(tmp_path: Path) -> None:
    """Removing 1,900 directories in one another is a RecursionError, and the workspace stayed."""
    with pytest.raises(BadInput, match="64 directories"):
        unpack(packed(tmp_path / "a.zip", ("a/" * 65, b"")))
    assert not list((tmp_path / "target").iterdir())
