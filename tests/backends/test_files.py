"""Which files settings name."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ByteSize

from backends.block.file import FileStoreConfig
from backends.errors import BadStoreSize, StoreUnavailable
from backends.files import files_of, make_files


class Layer(BaseModel):
    """Settings inside of settings."""

    path: Path
    name: str = "no path"


class Layered(BaseModel):
    """Paths wherever settings may have some."""

    base: Path
    over: Layer | None = None
    more: list[Layer] = []
    named: dict[str, Path] = {}
    pair: tuple[Path, int] | None = None


def test_paths_are_found_wherever_they_stand() -> None:
    settings = Layered(
        base=Path("/a"),
        over=Layer(path=Path("b")),
        more=[Layer(path=Path("/c")), Layer(path=Path("/a"))],
        named={"x": Path("/d")},
        pair=(Path("/e"), 1),
    )
    assert files_of(settings) == [Path("/a"), Path("b"), Path("/c"), Path("/d"), Path("/e")]


def test_settings_without_a_path_name_no_file() -> None:
    assert files_of(Layer.model_construct(name="x")) == []


class Copies(BaseModel):
    """Images inside of settings."""

    images: list[FileStoreConfig]
    note: Path


def test_files_that_settings_ask_for_are_made(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"kept")
    images = [
        FileStoreConfig(path=there, size=ByteSize(4096)),
        FileStoreConfig(path=tmp_path / "new", size=ByteSize(8192)),
        FileStoreConfig(path=tmp_path / "unsized"),
    ]
    for _ in range(2):
        make_files(Copies(images=images, note=tmp_path / "note"))
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == {"there": 4, "new": 8192}


def test_files_that_cannot_be_made(tmp_path: Path) -> None:
    odd = FileStoreConfig(path=tmp_path / "a", size=ByteSize(1000))
    with pytest.raises(BadStoreSize, match="1000"):
        make_files(odd)
    nowhere = FileStoreConfig(path=tmp_path / "none" / "a", size=ByteSize(4096))
    with pytest.raises(StoreUnavailable, match="No such file"):
        make_files(nowhere)
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    make_files(FileStoreConfig(path=tmp_path / "link", size=ByteSize(4096)))
    assert not (tmp_path / "victim").exists()
