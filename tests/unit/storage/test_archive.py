"""Zip archives of strangers."""

from __future__ import annotations

import errno
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posemesh.errors import BadInput, DiskFull, StorageError
from posemesh.storage import archive
from posemesh.storage.archive import DIRECTORY_BYTES, LIST_BYTES_MAX, Budget, extract, is_archive


def packed(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, data in entries:
            opened.writestr(name, data)
    return path


def unpack(
    path: Path,
    *,
    limit: int = 2**40,
    take: Callable[[int], None] = lambda size: None,
    check: Callable[[], None] = lambda: None,
) -> list[tuple[str, bytes]]:
    target = path.parent / "target"
    files = extract(path, target, Budget(limit, take=take, check=check))
    return [(str(file.relative_to(target)), file.read_bytes()) for file in files]


def listed(*entries: bytes, content: bytes = b"") -> bytes:
    """An archive of nothing but a list of entries."""
    size = sum(map(len, entries))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, size, len(content), 0)
    return content + b"".join(entries) + end


def entry(name: bytes, *, at: int = 0, packed: int = 0, size: int = 0, method: int = 0, check: int = 0) -> bytes:
    about = (20, 3, 20, 0, 0, method, 0, 0x21, check, packed, size, len(name), 0, 0, 0, 0, 0, at)
    return struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *about) + name


def local(name: bytes, *, packed: int, size: int, method: int = 0, check: int = 0) -> bytes:
    about = (20, 0, 0, method, 0, 0x21, check, packed, size, len(name), 0)
    return struct.pack("<4s2B4H3L2H", b"PK\x03\x04", *about) + name


def test_files_in_their_order(tmp_path: Path) -> None:
    entries = [("b.ply", b"1" * 1000), ("deep/", b""), ("deep/er/a.json", b"{}"), ("empty", b""), ("ä ö.txt", b"2")]
    path = packed(tmp_path / "a.zip", *entries)
    assert is_archive(path)
    taken: list[int] = []
    assert unpack(path, take=taken.append) == [entry for entry in entries if not entry[0].endswith("/")]
    assert sum(taken) == 1003 + 2 * DIRECTORY_BYTES


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
    monkeypatch.setattr(archive, "LIST_BYTES_MAX", 100_000)
    with pytest.raises(BadInput, match="too long"):
        unpack(path)


def test_a_list_of_entries_does_not_take_much_memory(tmp_path: Path) -> None:
    """One of 16 MiB took 130 MB before its entries were counted."""
    path = tmp_path / "a.zip"
    path.write_bytes(listed(entry(b"") * (LIST_BYTES_MAX // 46)))
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="more than 10000 entries"):
            unpack(path)
        assert tracemalloc.get_traced_memory()[1] < 12 * LIST_BYTES_MAX
    finally:
        tracemalloc.stop()
    path.write_bytes(listed(entry(b"") * (LIST_BYTES_MAX // 46 + 1)))
    with pytest.raises(BadInput, match="too long"):
        unpack(path)


def test_directories_count(tmp_path: Path) -> None:
    """Sixty-four for each of ten thousand entries were made, and cost nothing."""
    path = packed(tmp_path / "a.zip", *((f"{number}/" + "d/" * 9, b"") for number in range(1001)))
    with pytest.raises(BadInput, match="more than 10000 files and directories"):
        unpack(path)
    small = packed(tmp_path / "b.zip", ("b/c/", b""))
    for number, missing in enumerate((1, 0)):
        budget = Budget(2 * DIRECTORY_BYTES - missing, take=lambda size: None, check=lambda: None)
        with pytest.raises(BadInput, match="more than is allowed") if missing else nullcontext():
            extract(small, tmp_path / str(number), budget)


def test_several_archives_share_a_budget(tmp_path: Path) -> None:
    budget = Budget(10, take=lambda size: None, check=lambda: None, entries=3)
    path = packed(tmp_path / "a.zip", ("a", b"12345"), ("b", b""))
    extract(path, tmp_path / "1", budget)
    assert (budget.bytes, budget.entries) == (5, 1)
    with pytest.raises(BadInput, match="files and directories"):
        extract(path, tmp_path / "2", budget)


NAMED_ILL = [
    ("a", "a"),
    ("a", "a/b"),
    ("a/b", "a"),
    ("a", "a/b/c"),
    ("a", "a/"),
    ("b/" * 60 + "b", "/".join(["n" * 255] * 17)),
]


@pytest.mark.parametrize("names", NAMED_ILL)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_cannot_be_beside_each_other_or_at_all(tmp_path: Path, names: tuple[str, ...]) -> None:
    """What the archive is to blame for was told as a fault of the disk."""
    path = packed(tmp_path / "a.zip", *((name, b"x") for name in names))
    with pytest.raises(BadInput, match="cannot be made beside the others"):
        unpack(path)


def test_a_disk_that_fails_is_not_the_archives_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *given: object, **more: object) -> None:
        raise OSError(errno.EIO, "no good")

    path = packed(tmp_path / "a.zip", ("a/b", b"x"))
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(StorageError, match="no good") as caught:
        unpack(path)
    assert type(caught.value) is StorageError


class Stopped(Exception):
    """Raised by a check."""


@pytest.mark.parametrize("entries", [("a/", "b/", "c/"), ("a", "b", "c")])
def test_a_stop_is_met_at_entries_without_bytes(tmp_path: Path, entries: tuple[str, ...]) -> None:
    """Only bytes were checked, so that ten thousand empty files were made for a task that had ended."""
    path = packed(tmp_path / "a.zip", *((name, b"") for name in entries))

    def check() -> None:
        if (tmp_path / "target" / "a").exists():
            raise Stopped

    with pytest.raises(Stopped):
        unpack(path, check=check)
    assert [each.name for each in (tmp_path / "target").iterdir()] == ["a"]


def test_a_stop_is_met_within_bytes_that_unpack_to_nothing(tmp_path: Path) -> None:
    """Gigabytes may be read before there is a piece to write."""
    nothing = b"\x00\x00\x00\xff\xff" * 10**6 + b"\x01\x00\x00\xff\xff"
    content = local(b"a", method=8, packed=len(nothing), size=1) + nothing
    path = tmp_path / "a.zip"
    path.write_bytes(listed(entry(b"a", method=8, packed=len(nothing), size=1), content=content))
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += (tmp_path / "target" / "a").exists()
        if checks > 10:
            raise Stopped

    with pytest.raises(Stopped):
        unpack(path, check=check)


@pytest.mark.parametrize(("entries", "fine"), [(1, True), (3, False)])
def test_entries_that_share_their_bytes_are_not_read_without_end(tmp_path: Path, entries: int, fine: bool) -> None:
    """Ten thousand of them, each the same gigabytes that unpack to nothing, would keep a thread busy for days."""
    names = [str(number).encode() for number in range(entries)]
    shared, listing = bytes(200_000), b""
    for at, name in reversed(list(enumerate(names))):
        check, size = zlib.crc32(shared), len(shared)
        listing = entry(name, at=31 * at, packed=size, size=size, check=check) + listing
        shared = local(name, packed=size, size=size, check=check) + shared
    path = tmp_path / "a.zip"
    path.write_bytes(listed(listing, content=shared))
    if fine:
        assert unpack(path) == [("0", bytes(200_000))]
    else:
        with pytest.raises(BadInput, match="share their bytes"):
            unpack(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_what_is_damaged_is_unpacked_or_refused(changes: list[tuple[int, int]], large: bool) -> None:
    """Whatever an archive holds, its reader fails with BadInput and nothing else."""
    with TemporaryDirectory(prefix="posemesh-test-") as name:
        path = Path(name) / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            with opened.open("a/b", "w", force_zip64=large) as file:
                file.write(b"content" * 10)
            opened.writestr("c", b"x" * 50)
        data = bytearray(path.read_bytes())
        for at, value in changes:
            data[at % len(data)] = value
        path.write_bytes(data)
        with suppress(BadInput):
            unpack(path)


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
