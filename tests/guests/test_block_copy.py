"""The block copy: all of the source, durably, or a reason why not."""

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dom0.embedding import DiskSpec, GuestEnd, running_machine
from guests.block_copy import Args
from tests.guests.stores import CountingStore

KIB = 1 << 10


def image(folder: Path, name: str, size: int, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(size)
    (folder / name).write_bytes(data)
    return data


async def copied(folder: Path, isolation: str, *disks: dict[str, Any], **args: Any) -> tuple[GuestEnd, str]:
    """How the guest ended that copied a disk, and what it printed."""
    async with running_machine(folder) as machine:
        guest = await machine.start(
            "block-copy", args, disks=[DiskSpec.model_validate(disk) for disk in disks], isolation=isolation
        )
        end = await guest.wait()
        return end, guest.console


SOURCE = {"vdev": "xvda", "mode": "r", "config": {"path": "source.img"}}
TARGET = {"vdev": "xvdb", "config": {"path": "target.img"}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("size", "args"),
    [
        (512, {}),
        (64 * KIB, {}),
        (2048 * KIB + 512, {}),
        (333 * KIB + 512, {"chunk_sectors": 8, "depth": 5}),
        (100 * KIB, {"chunk_sectors": 65536, "depth": 1}),
    ],
)
async def test_the_target_begins_with_the_source(
    size: int, args: dict[str, Any], tmp_path: Path, isolation: str
) -> None:
    source = image(tmp_path, "source.img", size)
    before = image(tmp_path, "target.img", size + 4 * KIB, seed=2)
    end, printed = await copied(tmp_path, isolation, SOURCE, TARGET, **args)
    assert (end.outcome, end.exit_code, end.leaks) == ("poweroff", 0, ())
    assert (tmp_path / "target.img").read_bytes() == source + before[size:]
    digest = hashlib.sha256(source).hexdigest()
    assert printed == f"copied {size} bytes from xvda to xvdb, sha256 {digest}\n"


@pytest.mark.anyio
async def test_a_target_that_is_too_small_is_left_as_it_was(tmp_path: Path, isolation: str) -> None:
    image(tmp_path, "source.img", 64 * KIB)
    before = image(tmp_path, "target.img", 32 * KIB, seed=2)
    end, printed = await copied(tmp_path, isolation, SOURCE, TARGET)
    assert (end.outcome, end.exit_code) == ("poweroff", 1)
    assert printed == "xvdb has 64 sectors, xvda 128\n"
    assert (tmp_path / "target.img").read_bytes() == before


@pytest.mark.anyio
async def test_the_copy_is_flushed_when_all_of_it_is_written(tmp_path: Path, isolation: str) -> None:
    CountingStore.flushes.clear()
    image(tmp_path, "source.img", 64 * KIB)
    target = {"vdev": "xvdb", "backend": "tests.guests.stores:CountingStore", "config": {"size": 64 * KIB}}
    end, _ = await copied(tmp_path, isolation, SOURCE, target)
    assert end.exit_code == 0
    assert CountingStore.flushes == [64 * KIB]


@pytest.mark.anyio
async def test_a_target_without_flush(tmp_path: Path, isolation: str) -> None:
    image(tmp_path, "source.img", 64 * KIB)
    target = {"vdev": "xvdb", "backend": "tests.guests.stores:UnflushedStore", "config": {"size": 64 * KIB}}
    end, _ = await copied(tmp_path, isolation, SOURCE, target)
    assert end.exit_code == 0


@pytest.mark.anyio
async def test_disks_by_other_names(tmp_path: Path, isolation: str) -> None:
    source = image(tmp_path, "source.img", 64 * KIB)
    image(tmp_path, "target.img", 64 * KIB, seed=2)
    disks = [SOURCE | {"vdev": "xvdz"}, TARGET | {"vdev": "xvda"}]
    end, _ = await copied(tmp_path, isolation, *disks, source="xvdz", target="xvda")
    assert end.exit_code == 0
    assert (tmp_path / "target.img").read_bytes() == source


@pytest.mark.anyio
async def test_a_source_that_cannot_be_read_is_no_copy(tmp_path: Path, isolation: str) -> None:
    source = {
        "vdev": "xvda",
        "backend": "examples.flaky:FlakyStore",
        "config": {"size": 64 * KIB, "fail_every": 2},
    }
    target = {"vdev": "xvdb", "backend": "memory", "config": {"size": 64 * KIB}}
    end, printed = await copied(tmp_path, isolation, source, target, chunk_sectors=8)
    assert end.outcome == "crash"
    assert "RequestFailed" in end.crash
    assert printed == ""


@pytest.mark.parametrize(
    "args", [{"chunk_sectors": 0}, {"chunk_sectors": 12}, {"depth": 0}, {"sauce": "xvda"}]
)
def test_arguments_out_of_range(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Args.model_validate(args)
