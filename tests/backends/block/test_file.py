"""Raw images: which ones are taken, who may have them, and that what was flushed is durable."""

import errno
import os
from pathlib import Path

import pytest
from pydantic import ByteSize, ValidationError

from backends.block import file as file_module
from backends.block.file import FileStore, FileStoreConfig
from backends.block.holes import can_punch
from backends.block.opened import OpenedStore
from backends.errors import BadStoreSize, ShortTransfer, StoreInUse, StoreUnavailable

MIB = 1 << 20


def image(path: Path, size: int) -> FileStoreConfig:
    path.write_bytes(bytes(size))
    return FileStoreConfig(path=path)


def test_a_missing_image_is_made_sparse_if_its_size_is_known(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    with pytest.raises(StoreUnavailable, match=r"new\.img cannot be opened"):
        FileStore(FileStoreConfig(path=path)).open()
    store = FileStore(FileStoreConfig(path=path, size=ByteSize(1 << 30)))
    store.open()
    assert store.sectors == (1 << 30) // 512
    assert path.stat().st_blocks * 512 < MIB
    store.close()
    again = FileStore(FileStoreConfig(path=path, size=ByteSize(MIB)))  # an image that is there keeps its size
    again.open()
    assert again.sectors == (1 << 30) // 512
    again.close()


@pytest.mark.parametrize(("size", "sector"), [(0, 512), (511, 512), (513, 512), (MIB + 512, 4096)])
def test_sizes_that_no_disk_has(tmp_path: Path, size: int, sector: int) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(size))
    for _ in range(2):  # a refused image is not kept locked
        with pytest.raises(BadStoreSize, match=str(size)) as refused:
            FileStore(FileStoreConfig(path=path, sector_size=sector)).open()
        assert (refused.value.size_bytes, refused.value.multiple_bytes) == (size, sector)
    if size:
        with pytest.raises(BadStoreSize):
            FileStore(
                FileStoreConfig(path=tmp_path / "b.img", size=ByteSize(size), sector_size=sector)
            ).open()
        assert not (tmp_path / "b.img").exists()


def test_sector_sizes() -> None:
    for wrong in (0, 256, 513, 1000, 8192):
        with pytest.raises(ValidationError, match="sector"):
            FileStoreConfig(path=Path("a"), sector_size=wrong)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        FileStore(FileStoreConfig(path=tmp_path)).open()
    with pytest.raises(StoreUnavailable, match="neither"):
        FileStore(FileStoreConfig(path=Path("/dev/null"))).open()


def test_one_writer_or_many_readers(tmp_path: Path) -> None:
    config = image(tmp_path / "a.img", MIB)
    writer = FileStore(config)
    writer.open()
    for read_only in (False, True):
        with pytest.raises(StoreInUse, match=r"a\.img is in use") as refused:
            FileStore(config, read_only=read_only).open()
        assert (refused.value.path, refused.value.writing) == (config.path, not read_only)
    writer.close()
    readers = [FileStore(config, read_only=True) for _ in range(3)]
    for reader in readers:
        reader.open()
    with pytest.raises(StoreInUse):
        FileStore(config).open()
    for reader in readers:
        reader.close()
    writer.open()
    writer.close()


def test_a_link_to_the_same_image_is_the_same_image(tmp_path: Path) -> None:
    config = image(tmp_path / "a.img", MIB)
    (tmp_path / "b.img").hardlink_to(config.path)
    (tmp_path / "c.img").symlink_to(config.path)
    writer = FileStore(config)
    writer.open()
    for name in ("b.img", "c.img"):
        with pytest.raises(StoreInUse):
            FileStore(FileStoreConfig(path=tmp_path / name)).open()
    writer.close()


def test_a_read_only_image_is_opened_for_reading_only(tmp_path: Path) -> None:
    config = image(tmp_path / "a.img", MIB)
    config.path.chmod(0o444)
    store = FileStore(config, read_only=True)
    store.open()
    with pytest.raises(OSError, match="Bad file descriptor"):
        store.write(0, [memoryview(bytearray(512))])
    store.close()


def test_the_content_never_says_what_the_image_is(tmp_path: Path) -> None:
    """A header of another format is data like any other (XSA-258)."""
    header = b"QFI\xfb\0\0\0\3" + b"/etc/passwd".ljust(504, b"\0")
    path = tmp_path / "a.img"
    path.write_bytes(header + bytes(MIB - len(header)))
    store = FileStore(FileStoreConfig(path=path))
    store.open()
    found = bytearray(512)
    store.read(0, [memoryview(found)])
    assert found == header
    assert store.sectors == MIB // 512
    store.close()


def test_an_image_that_shrinks_under_us(tmp_path: Path) -> None:
    config = image(tmp_path / "a.img", MIB)
    store = FileStore(config)
    store.open()
    os.truncate(config.path, MIB // 2 + 100)
    buffers = [memoryview(bytearray(4096)) for _ in range(4)]
    with pytest.raises(ShortTransfer) as short:
        store.read(MIB // 2 - 4096, buffers)
    assert (short.value.expected, short.value.found) == (4 * 4096, 4096 + 100)
    failed = store.transfer_pages([(0, 0, buffers[:1]), (0, MIB // 2, buffers[:1]), (0, 4096, buffers[:1])])
    assert {index: type(error) for index, error in failed.items()} == {1: ShortTransfer}
    with pytest.raises(BadStoreSize):
        store.refresh()
    assert store.sectors == MIB // 512
    store.close()


def test_transfers_that_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may do less than it was asked for; the rest follows."""
    config = image(tmp_path / "a.img", MIB)
    store = FileStore(config)
    store.open()
    whole_write, whole_read = os.pwritev, os.preadv

    def few(buffers: object) -> list[memoryview]:
        first = memoryview(buffers[0])  # type: ignore[index]
        return [first[: max(len(first) // 3, 1)]]

    monkeypatch.setattr(file_module, "pwritev", lambda fd, buffers, at: whole_write(fd, few(buffers), at))
    monkeypatch.setattr(file_module, "preadv", lambda fd, buffers, at: whole_read(fd, few(buffers), at))
    data = os.urandom(4096 * 2 + 512)
    store.write(512, [memoryview(data)[:4096], memoryview(data)[4096:4608], memoryview(data)[4608:]])
    assert config.path.read_bytes()[512 : 512 + len(data)] == data
    found = [bytearray(512), bytearray(4096), bytearray(4096)]
    store.read(512, [memoryview(part) for part in found])
    assert b"".join(found) == data
    page = bytearray(4096)
    assert store.transfer_pages([(1, 8192, [memoryview(data)[:4096]]), (0, 8192, [memoryview(page)])]) == {}
    assert page == data[:4096]
    store.close()


@pytest.mark.anyio
async def test_flushing_is_fdatasync_and_a_failure_is_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets what it could not write; a later success would be a lie."""
    disk = await OpenedStore.open(FileStore(image(tmp_path / "a.img", MIB)))
    store = disk.store
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    await store.flush()  # type: ignore[misc]
    assert len(synced) == 1

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        await store.flush()  # type: ignore[misc]
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with pytest.raises(OSError, match="Input/output error"):
        await store.flush()  # type: ignore[misc]
    await disk.close()


@pytest.mark.anyio
async def test_discarding_gives_storage_back(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(os.urandom(MIB))
    disk = await OpenedStore.open(FileStore(FileStoreConfig(path=path)))
    if not disk.capabilities.discard:
        pytest.skip("the file system punches no holes")
    before = path.stat().st_blocks
    await disk.store.discard(65536, MIB // 2)  # type: ignore[misc]
    assert path.stat().st_blocks <= before - MIB // 2 // 512
    assert path.stat().st_size == MIB
    await disk.close()


def test_a_file_system_without_holes_offers_no_discard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("backends.block.holes.punch_hole", refuse)
    assert not can_punch(0, MIB)
    store = FileStore(image(tmp_path / "a.img", MIB))
    store.open()
    assert not store.capabilities.discard
    store.close()


def test_looking_whether_holes_can_be_punched_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    content = os.urandom(MIB + 512)
    path.write_bytes(content)
    store = FileStore(FileStoreConfig(path=path))
    store.open()
    store.close()
    assert path.read_bytes() == content


def test_relative_paths_start_where_the_scenario_says(tmp_path: Path) -> None:
    config = FileStoreConfig.model_validate({"path": "a.img"}, context={"folder": tmp_path})
    assert config.path == tmp_path / "a.img"
    assert FileStoreConfig.model_validate({"path": "a.img"}).path == Path("a.img")
    absolute = FileStoreConfig.model_validate({"path": "/x/a.img"}, context={"folder": tmp_path})
    assert absolute.path == Path("/x/a.img")
