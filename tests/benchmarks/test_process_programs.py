"""The guest programs of the benchmarks do what their figures say, and see wrong content."""

import json
from pathlib import Path

import pytest

from benchmarks.process_programs import (
    MULTICALL_SIZES,
    PAGE_BYTES,
    REPORT,
    CallArgs,
    ReadArgs,
    StampArgs,
    hypercalls,
    numbered_page,
    random_reads,
    sequential_reads,
    stamp,
)
from benchmarks.process_start import _memory_mib
from dom0.embedding import DiskSpec, running_machine
from dom0.programs import Main

pytestmark = pytest.mark.anyio

PAGES = 512


def write_image(folder: Path, *, wrong: bool = False) -> DiskSpec:
    pages = [numbered_page(0 if wrong else number) for number in range(PAGES)]
    (folder / "a.img").write_bytes(b"".join(pages))
    return DiskSpec(vdev="xvda", mode="r", config={"path": "a.img"})


READS = [(random_reads, ReadArgs(requests=64, depth=8, ring_page_order=0, seed=1))]
READS += [(sequential_reads, ReadArgs(requests=6, depth=2, ring_page_order=0, seed=1))]


@pytest.mark.parametrize(("program", "args"), READS)
async def test_reads_are_checked(tmp_path: Path, program: Main, args: ReadArgs) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(program, args, memory="32MiB", disks=[write_image(tmp_path)])
        end = await guest.wait()
        assert json.loads(end.drivers[REPORT])["rate"] > 0
        assert json.loads(end.drivers["vbd-51712"])["requests"]["read"] >= args.requests
        guest = await machine.start(program, args, memory="32MiB", disks=[write_image(tmp_path, wrong=True)])
        end = await guest.wait()
        assert end.outcome == "crash"
        assert "WrongContent" in end.crash


async def test_hypercalls_are_timed_in_a_process(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(hypercalls, CallArgs(calls=512, rounds=1), isolation="process")
        figures = json.loads((await guest.wait()).drivers[REPORT])
        assert set(figures) == {"single", *map(str, MULTICALL_SIZES)}
        assert all(cost > 0 for cost in figures.values())


@pytest.mark.parametrize("connect", [False, True])
async def test_a_stamp_names_the_process(tmp_path: Path, connect: bool) -> None:
    async with running_machine(tmp_path) as machine:
        disks = [DiskSpec(vdev="xvda", backend="memory", config={"size": "1MiB"})]
        guest = await machine.start(stamp, StampArgs(connect=connect), disks=disks, isolation="process")
        found = await guest.printed(r"^(\d+) (\d+)\s*$")
        private, pss = _memory_mib(int(found[2]))
        assert 0 < private <= pss
        await guest.destroy()


async def test_pages_tell_themselves_apart() -> None:
    assert len({numbered_page(number) for number in range(PAGES)}) == PAGES
    assert {len(numbered_page(number)) for number in range(PAGES)} == {PAGE_BYTES}
