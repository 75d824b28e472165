"""A Linux guest's store, devices and messages look as under a real Xen: each difference is explained."""

import uuid
from pathlib import Path

import pytest
from anyio.lowlevel import checkpoint

from dom0.toolstack.pv_builder import PvConfig
from dom0.toolstack.toolstack import DomainConfig
from tests.dom0.images.kernels import linux as elf_kernel
from tests.dom0.stores import dumped, recorded
from tests.native.golden import (
    SECTIONS,
    VIEWS,
    dmesg_lines,
    out_of_order,
    recorded_lines,
    sections,
    store_lines,
    sysfs_lines,
    table,
    unexplained,
)
from tests.native.guests import at_shell, disk, linux, native_machine

MIB = 1 << 20
COMMAND_LINE = "console=hvc0 loglevel=7 panic=-1"


def test_the_table_can_be_read() -> None:
    rows = table()
    assert {row.view for row in rows} == set(VIEWS)
    assert all(row.why for row in rows)
    assert all(row.recorded or row.here for row in rows)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_domain_that_has_not_run_is_described_as_on_a_real_xen(tmp_path: Path) -> None:
    kernel, ramdisk = tmp_path / "vmlinux", tmp_path / "domu.gz"
    kernel.write_bytes(elf_kernel())
    ramdisk.write_bytes(b"initramfs")
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(64 * MIB)
    async with native_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        config = DomainConfig(
            "u1",
            256 * MIB,
            kernel.name,
            disks=(machine.disk_config(disk("xvda", tmp_path / "disk.img")),),
            pv=PvConfig(kernel, ramdisk, COMMAND_LINE),
        )
        domid = await toolstack.create(config)
        while await machine.store.read("/local/domain/0/backend/vbd/1/51712/state") != "2":
            await checkpoint()
        store = await dumped(machine.store)
        handle = str(uuid.UUID(bytes=machine.core.domain(domid).handle))
    theirs = store_lines(recorded("xenstore-domU-paused.txt"), "none")
    ours = store_lines(store, handle)
    assert list(unexplained("store, paused", theirs, ours)) == []
    assert out_of_order(theirs, ours) == []


@pytest.mark.anyio
@pytest.mark.usefixtures("native_guests")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_linux_guest_looks_as_on_a_real_xen(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as image:
        image.truncate(64 * MIB)
    async with native_machine(tmp_path) as machine:
        guest = await linux(
            machine,
            flavour="amd64",
            name="u1",
            disks=[disk("xvda", tmp_path / "disk.img")],
            options=COMMAND_LINE,
        )
        async with at_shell(guest) as shell:
            dmesg = await shell.run("dmesg")
            found = {name: (await shell.run(command)).splitlines() for name, command in SECTIONS.items()}
            store = await dumped(machine.store)
        handle = str(uuid.UUID(bytes=guest.domain.handle))
    recorded_sysfs = sections(recorded_lines("domU-sysfs.txt"))
    theirs, ours = store_lines(recorded("xenstore-domU-running.txt"), "none"), store_lines(store, handle)
    problems = [
        *unexplained("dmesg", recorded_lines("domU-dmesg.txt"), dmesg_lines(dmesg)),
        *unexplained("sysfs", sysfs_lines(recorded_sysfs), sysfs_lines(found)),
        *unexplained("store, running", theirs, ours),
        *out_of_order(theirs, ours),
    ]
    assert problems == []
