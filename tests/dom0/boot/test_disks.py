"""`--disk VDEV=PATH[,ro]`."""

from pathlib import Path

import pytest

from dom0.boot.disks import BadDisk, parse_disk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "disk=1.img").write_bytes(bytes(512))
    return tmp_path / "disk=1.img"


def test_a_disk_is_written_to_unless_it_says_otherwise(image: Path) -> None:
    for suffix, mode in (("", "w"), (",ro", "r")):
        disk = parse_disk(f"xvda1={image}{suffix}")
        assert (disk.vdev, disk.mode, disk.backend) == ("xvda1", mode, "file")
        assert disk.config == {"path": str(image)}


def test_relative_paths_start_here(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    assert parse_disk(f"xvda={image.name}").config == {"path": str(image)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("disk.img", "expected VDEV=PATH"),
        ("xvda=", "expected VDEV=PATH"),
        ("xvda=,ro", "expected VDEV=PATH"),
        ("=disk.img", "expected VDEV=PATH"),
        ("", "expected VDEV=PATH"),
        ("floppy=disk.img", "expected a disk's name"),
        ("xvda=/none/such", "expected an image that is there"),
        ("xvda=/none/such,rw", "expected an image that is there"),
    ],
)
def test_what_is_none_is_refused(text: str, expected: str) -> None:
    with pytest.raises(BadDisk, match=expected):
        parse_disk(text)
