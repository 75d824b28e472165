"""The block exerciser: passes on disks that keep their word, and finds every kind of lie on others."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dom0.embedding import DiskSpec, GuestEnd, running_machine
from guests.block_exerciser import BLOCK_BYTES, Args, Expectation
from tests.guests.stores import CountingStore

KIB64 = 64 << 10


async def exercised(folder: Path, isolation: str, given: dict[str, Any], **args: Any) -> tuple[GuestEnd, str]:
    """How the guest ended that exercised a disk, and what it printed."""
    async with running_machine(folder) as machine:
        spec = DiskSpec.model_validate({"vdev": "xvda", **given})
        guest = await machine.start("block-exerciser", args, disks=[spec], isolation=isolation)
        end = await guest.wait()
        return end, guest.console


def memory(size: int = KIB64) -> dict[str, Any]:
    return {"backend": "memory", "config": {"size": size}}


@pytest.mark.anyio
async def test_a_disk_that_keeps_its_word(tmp_path: Path, isolation: str) -> None:
    end, printed = await exercised(tmp_path, isolation, memory(1 << 20), requests=500, depth=8, seed=3)
    assert (end.outcome, end.exit_code, end.leaks) == ("poweroff", 0, ())
    lines = printed.splitlines()
    assert lines[:2] == ["xvda: filled 256 blocks", "xvda: mixed 500 random requests, 8 in flight"]
    assert lines[2].startswith("xvda: verify OK: sha256 ")


@pytest.mark.anyio
async def test_it_uses_several_queues(tmp_path: Path, isolation: str) -> None:
    """More than a ring holds is in flight."""
    async with running_machine(tmp_path) as machine:
        spec = DiskSpec.model_validate({"vdev": "xvda", "max_queues": 3, **memory(4 << 20)})
        args = {"requests": 2000, "depth": 512, "queues": 4}
        guest = await machine.start("block-exerciser", args, disks=[spec], isolation=isolation)
        assert (await guest.wait()).exit_code == 0
        (disk,) = machine.services.blocks.disks_of(guest.domid)
        assert [sum(queue.requests.requests.values()) > 0 for queue in disk.stats.queues] == [True] * 3


@pytest.mark.anyio
async def test_its_hash_is_the_image_s(tmp_path: Path, isolation: str) -> None:
    disk = {"config": {"path": "disk.img", "size": "1MiB"}}
    _, printed = await exercised(tmp_path, isolation, disk, requests=200, depth=16)
    assert hashlib.sha256((tmp_path / "disk.img").read_bytes()).hexdigest() in printed


@pytest.mark.anyio
async def test_a_part_of_a_disk_leaves_the_rest_alone(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "disk.img").write_bytes(b"\xaa" * (1 << 20))
    end, printed = await exercised(
        tmp_path, isolation, {"config": {"path": "disk.img"}}, requests=50, size=KIB64 + 100
    )
    assert end.exit_code == 0
    assert "filled 16 blocks" in printed
    image = (tmp_path / "disk.img").read_bytes()
    assert b"\xaa" * 16 not in image[:KIB64]
    assert image[KIB64:] == b"\xaa" * ((1 << 20) - KIB64)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["flips a bit", "loses writes", "writes elsewhere", "swaps sectors"])
@pytest.mark.parametrize("requests", [0, 200])
async def test_corruption_is_found(how: str, requests: int, tmp_path: Path, isolation: str) -> None:
    disk = {"backend": "tests.guests.stores:LyingStore", "config": {"size": KIB64, "how": how, "block": 5}}
    end, printed = await exercised(tmp_path, isolation, disk, requests=requests, depth=4)
    found = requests > 0 or how in ("flips a bit", "swaps sectors")  # the others come with a second write
    assert (end.outcome, end.exit_code) == ("poweroff", 1 if found else 0)
    assert ("block 5 does not hold version" in printed) is found
    assert ("verify FAILED, " in printed) is found
    assert printed.count("does not hold") <= 5


@pytest.mark.anyio
async def test_what_was_wrong_once_is_not_forgotten(tmp_path: Path, isolation: str) -> None:
    """A read in the middle finds wrong content; in the end all is as it should be."""
    disk = {"backend": "tests.guests.stores:LyingStore", "config": {"size": KIB64, "how": "flips a bit once"}}
    end, printed = await exercised(tmp_path, isolation, disk, requests=200, depth=4)
    assert end.exit_code == 1
    assert printed.index("block 5 does not hold version") < printed.index("mixed 200 random requests")
    assert "verify FAILED, 1 reads found wrong content" in printed


@pytest.mark.anyio
async def test_the_lying_store_can_tell_the_truth(tmp_path: Path, isolation: str) -> None:
    disk = {"backend": "tests.guests.stores:LyingStore", "config": {"size": KIB64}}
    end, _ = await exercised(tmp_path, isolation, disk, requests=100)
    assert end.exit_code == 0


@pytest.mark.anyio
async def test_a_disk_without_flush(tmp_path: Path, isolation: str) -> None:
    disk = {"backend": "tests.guests.stores:UnflushedStore", "config": {"size": KIB64}}
    end, _ = await exercised(tmp_path, isolation, disk, requests=100, flush_every=3)
    assert end.exit_code == 0


@pytest.mark.anyio
async def test_flush_points_come_as_often_as_asked(tmp_path: Path, isolation: str) -> None:
    CountingStore.flushes.clear()
    disk = {"backend": "tests.guests.stores:CountingStore", "config": {"size": KIB64}}
    end, _ = await exercised(tmp_path, isolation, disk, requests=40, depth=1, write_share=1, flush_every=10)
    assert end.exit_code == 0
    filled = 16 * BLOCK_BYTES
    assert CountingStore.flushes == [filled + count * BLOCK_BYTES for count in (10, 20, 30, 40, 40)]


@pytest.mark.anyio
@pytest.mark.parametrize("depth", [1, 16, 512])
async def test_more_workers_than_blocks(depth: int, tmp_path: Path, isolation: str) -> None:
    end, printed = await exercised(tmp_path, isolation, memory(3 * BLOCK_BYTES), requests=20, depth=depth)
    assert end.exit_code == 0
    assert f"{min(depth, 3)} in flight" in printed


@pytest.mark.anyio
async def test_disks_that_are_no_use(tmp_path: Path, isolation: str) -> None:
    end, printed = await exercised(tmp_path / "a", isolation, memory(512 * 7))
    assert end.exit_code == 1
    assert "xvda has no whole block: nothing to exercise" in printed
    end, printed = await exercised(tmp_path / "b", isolation, memory() | {"mode": "r"})
    assert end.exit_code == 1
    assert "xvda is read only: nothing to exercise" in printed


@pytest.mark.anyio
async def test_a_disk_that_is_not_there(tmp_path: Path, isolation: str) -> None:
    end, _ = await exercised(tmp_path, isolation, memory(), disk="xvdb")
    assert end.outcome == "crash"
    assert "there is no disk xvdb; this domain has xvda" in end.crash


@pytest.mark.parametrize(
    "args",
    [{"depth": 0}, {"depth": 513}, {"write_share": 1.5}, {"size": 4095}, {"seed": 1 << 63}, {"requests": -1}],
)
def test_arguments_out_of_range(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Args.model_validate(args)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.lists(st.integers(0, 3), min_size=2, max_size=5))
def test_no_two_sectors_of_any_block_or_version_are_alike(seed: int, versions: list[int]) -> None:
    expectation = Expectation(seed, len(versions))
    expectation.versions = list(versions)
    now = expectation.run(0, len(versions))
    assert now == b"".join(expectation.content(block) for block in range(len(versions)))
    expectation.versions = [version + 1 for version in versions]
    both = now + expectation.run(0, len(versions))
    sectors = [both[start : start + 512] for start in range(0, len(both), 512)]
    assert len(set(sectors)) == len(sectors)
