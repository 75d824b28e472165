"""A driver domain that must not be trusted: what it can see, touch and break, beside what it was given."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from backends.block.backend import BlockBackend
from backends.block.report import STATISTICS
from dom0.embedding import RunningGuest, RunningMachine, running_machine
from dom0.launch.collect import collect_domain
from frontends.block.disk import Disk
from frontends.block.keys import BadBackendKeys
from kernel.hypercalls import HypercallError
from kernel.kernel import Kernel
from kernel.mapping import GrantError, Mapping
from kernel.xenbus.drivers import DeviceClosed, DeviceFailed, PeerGone
from kernel.xenstore.errors import StoreError
from tests.held import XVDA, XVDB, disk, held

pytestmark = pytest.mark.anyio

PATIENCE_S = 8.0


@dataclass
class World:
    """A driver domain that does what the test does with its kernel, a guest with one disk from it and one from
    dom0, and a stranger, whose disk another driver domain serves.
    """

    machine: RunningMachine
    disks: RunningGuest
    evil: Kernel
    client: RunningGuest
    guest: Kernel
    stranger: RunningGuest
    third: Kernel

    @property
    def back(self) -> str:
        """The folder of the client's disk at the driver domain."""
        return f"/local/domain/{self.disks.domid}/backend/vbd/{self.client.domid}/{XVDA}"

    @property
    def front(self) -> str:
        """The same disk's at the client."""
        return f"/local/domain/{self.client.domid}/device/vbd/{XVDA}"


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    with anyio.fail_after(60):
        async with running_machine(folder) as machine:
            disks, evil = await held(machine, name="disks")
            await machine.start("driver-domain", name="good")
            client, guest = await held(machine, disks=[disk(), disk("xvdb", served_by="")])
            stranger, third = await held(machine, disks=[disk(served_by="good")])
            try:
                yield World(machine, disks, evil, client, guest, stranger, third)
            finally:
                await disks.destroy()  # while it lives, a toolstack waits for its answer


async def sees(kernel: Kernel, path: str) -> bool:
    """Whether a domain can read a node, or list it."""
    for look in (kernel.store.read, kernel.store.directory):
        try:
            await look(path)
        except StoreError as error:
            if error.name not in ("EACCES", "ENOENT"):
                raise
        else:
            return True
    return False


async def can_write(kernel: Kernel, domid: int, path: str) -> bool:
    """Whether a domain can change a node, remove it, or say who else may."""
    able = False
    for change in (
        lambda: kernel.store.write(path, "evil"),
        lambda: kernel.store.mkdir(f"{path}/evil"),
        lambda: kernel.store.set_perms(path, [f"b{domid}"]),
        lambda: kernel.store.rm(path),
    ):
        try:
            await change()
        except StoreError as error:
            if error.name not in ("EACCES", "ENOENT", "EPERM"):
                raise
        else:
            able = True
    return able


# What it can see and write in XenStore


async def test_it_reads_its_clients_devices_and_nothing_else_of_them(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await Disk.open(w.third, XVDA)
        home = f"/local/domain/{w.client.domid}"
        for path in (w.front, f"{w.front}/state", f"{w.front}/backend", f"{w.back}/params", f"{w.back}/mode"):
            assert await sees(w.evil, path), path
        for path in (
            home,
            f"{home}/name",
            f"{home}/device",
            f"{home}/device/vbd",
            f"{home}/device/vbd/{XVDB}",
            f"{home}/device/vbd/{XVDB}/state",
            f"{home}/console",
            f"{home}/console/ring-ref",
            f"{home}/control/shutdown",
            f"{home}/data",
            f"{home}/memory/target",
            f"{home}/store/port",
            f"/local/domain/0/backend/vbd/{w.client.domid}/{XVDB}",
            f"/local/domain/0/backend/vbd/{w.client.domid}/{XVDB}/params",
            f"/local/domain/{w.stranger.domid}",
            f"/local/domain/{w.stranger.domid}/device/vbd/{XVDA}",
            f"/local/domain/{w.stranger.domid}/device/vbd/{XVDA}/event-channel",
            f"/local/domain/{w.stranger.domid - 2}/backend/vbd/{w.stranger.domid}/{XVDA}/params",
            "/local/domain",
            "/local/domain/0",
            "/libxl",
            f"/libxl/{w.client.domid}/device/vbd/{XVDA}/params",
            f"/vm/{'0' * 8}",
        ):
            assert not await sees(w.evil, path), path


async def test_it_writes_where_it_serves_and_nowhere_else(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        own = f"/local/domain/{w.disks.domid}"
        for path in (
            w.front,
            f"{w.front}/state",
            f"{w.front}/backend-id",
            f"/local/domain/{w.client.domid}/device/vbd/{XVDB}/state",
            f"/local/domain/{w.client.domid}/control/shutdown",
            f"/local/domain/0/backend/vbd/{w.client.domid}/{XVDB}/state",
            f"/local/domain/{w.stranger.domid}/device/vbd/{XVDA}/state",
            f"/libxl/{w.client.domid}/device/vbd/{XVDA}/backend",
            f"{own}/backend",
            f"{own}/backend/vbd",
            f"{own}/backend/vbd/{w.client.domid}",
            f"{own}/backend/vbd/{w.client.domid}/{XVDB}",
            f"{own}/backend/vbd/{w.stranger.domid}/{XVDA}/state",
            f"{own}/device/vbd/{XVDA}/state",
            f"{own}/name",
        ):
            assert not await can_write(w.evil, w.disks.domid, path), path
        assert await w.machine.store.read(f"{w.front}/backend-id") == str(w.disks.domid)
        assert await can_write(w.evil, w.disks.domid, w.back)


async def test_a_stranger_sees_nothing_of_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in (w.back, f"{w.back}/params", w.front, f"/local/domain/{w.disks.domid}/backend/vbd"):
            assert not await sees(w.third, path), path
            assert not await can_write(w.third, w.stranger.domid, path), path
        assert await sees(w.guest, w.back)
        assert not await can_write(w.guest, w.client.domid, w.back)
        assert not await can_write(w.guest, w.client.domid, f"{w.back}/params")


# What the hypervisor lets it do


async def test_it_has_no_control_over_others(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        hypercalls, victim = w.evil.hypercalls, w.client.domid
        for call in (
            lambda: hypercalls.getdomaininfo(victim),
            lambda: hypercalls.pausedomain(victim),
            lambda: hypercalls.destroydomain(victim),
            lambda: hypercalls.createdomain(bytes(16), flags=0),
            hypercalls.physinfo,
            lambda: hypercalls.sched_remote_shutdown(victim, 0),
            lambda: hypercalls.hvm_get_param(1, victim),
            lambda: hypercalls.hvm_set_param(1, 0, victim),
            lambda: hypercalls.evtchn_alloc_unbound(w.disks.domid, victim),
        ):
            with pytest.raises(HypercallError) as refused:
                call()
            assert refused.value.errno_name in ("EPERM", "EACCES"), refused.value
        assert hypercalls.populate_physmap([1 << 20], order=0, domid=victim) == 0
        (error,) = hypercalls.map_foreign(victim, [1], [w.evil.pages.reserve_gpfns(1)])
        assert error < 0
        assert victim in w.machine.core.domains


async def test_it_maps_what_its_clients_grant_it_and_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        own = BlockBackend(w.evil)
        w.evil.tasks.start_soon(own.run)
        await Disk.open(w.guest, XVDA)
        await Disk.open(w.guest, XVDB)
        await Disk.open(w.third, XVDA)
        for kernel, domid in ((w.guest, w.client.domid), (w.third, w.stranger.domid)):
            theirs = {entry.reference for entry in kernel.grants.ledger if entry.domid == w.disks.domid}
            for reference in range(128):
                (result,) = w.evil.grants.map(domid, [reference])
                if isinstance(result, Mapping):
                    w.evil.grants.unmap([result])
                assert isinstance(result, Mapping) == (reference in theirs), (domid, reference)
                assert isinstance(result, GrantError) == (reference not in theirs)
        assert w.machine.core.audit() == []


async def test_it_cannot_bind_to_ports_of_others(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await Disk.open(w.third, XVDA)
        for port in range(64):
            with pytest.raises(HypercallError):
                w.evil.hypercalls.evtchn_bind_interdomain(w.stranger.domid, port)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("frontend", "/local/domain/{stranger}/device/vbd/51712", "gone"),
        ("frontend-id", "{stranger}", "frontend-id"),
        ("frontend-id", "0", "frontend-id"),
        ("frontend", "/", "gone"),
        ("frontend", "device", "frontend"),
    ],
)
async def test_it_cannot_grab_the_frontend_of_somebody_else(
    key: str, value: str, said: str, tmp_path: Path
) -> None:
    """It may write into its own folder that it serves a stranger; that makes no stranger its client."""
    async with world(tmp_path) as w:
        await Disk.open(w.third, XVDA)
        mapped = w.disks.domain.counters.grant_maps
        await w.evil.store.write(f"{w.back}/{key}", value.format(stranger=w.stranger.domid))
        service = BlockBackend(w.evil)
        w.evil.tasks.start_soon(service.run)
        with anyio.fail_after(PATIENCE_S):
            while not service.disks_of(w.client.domid) and said == "gone":
                await checkpoint()
            while service.driver_of(w.client.domid, XVDA) is not None:
                await checkpoint()
        assert w.disks.domain.counters.grant_maps == mapped
        third = await Disk.open(w.guest, XVDB)
        assert await third.read(0, 1) == bytes(512)


# What it may say to its clients

NONSENSE: dict[str, dict[str, str]] = {
    "a state that is none": {"state": "nonsense"},
    "a state of another kind": {"state": "9"},
    "no size": {"state": "4"},
    "a size below zero": {"sectors": "-1", "state": "4"},
    "a size beyond reason": {"sectors": "9" * 40, "state": "4"},
    "sectors of a strange size": {"sectors": "8", "sector-size": "513", "state": "4"},
    "no text": {"sectors": "\udcff\udcfe", "state": "4"},
}


@asynccontextmanager
async def opening(kernel: Kernel) -> AsyncIterator[Callable[[], DeviceClosed | None]]:
    """Tries to open the disk; gives what came of it."""
    found: list[DeviceClosed] = []

    async def open_it() -> None:
        try:
            await Disk.open(kernel, XVDA)
        except DeviceClosed as closed:
            found.append(closed)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        yield lambda: found[0] if found else None
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_costs_a_client_that_disk_alone(what: str, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        xvdb = await Disk.open(w.guest, XVDB)
        await w.evil.store.write(f"{w.back}/state", "2")
        async with opening(w.guest) as outcome:
            while await w.machine.store.read(f"{w.front}/state") != "3":
                await checkpoint()
            await w.evil.store.write_many({f"{w.back}/{key}": text for key, text in NONSENSE[what].items()})
            with anyio.fail_after(PATIENCE_S):
                while (closed := outcome()) is None:
                    await checkpoint()
        assert isinstance(closed, DeviceFailed)
        assert "state" in str(closed.cause) or isinstance(closed.cause, BadBackendKeys)
        await xvdb.write(0, bytes(512))
        with anyio.fail_after(PATIENCE_S):
            await w.disks.destroy()
            end = await w.client.shut_down()
        assert (end.outcome, end.leaks) == ("poweroff", ())


async def test_a_backend_that_hides_keeps_what_it_has_mapped_and_no_more(tmp_path: Path) -> None:
    """It takes its nodes away and keeps its client's ring mapped: those pages are not used for anything else."""
    async with world(tmp_path) as w:
        await w.evil.store.write(f"{w.back}/state", "2")
        async with opening(w.guest) as outcome:
            while await w.machine.store.read(f"{w.front}/state") != "3":
                await checkpoint()
            grants = w.guest.grants
            ring = {entry.reference: entry.pfn for entry in grants.ledger if entry.domid == w.disks.domid}
            mapped = w.evil.grants.map(w.client.domid, list(ring)[:1])
            (mapping,) = [result for result in mapped if isinstance(result, Mapping)]
            await w.evil.store.rm(w.back)
            with anyio.fail_after(PATIENCE_S):
                while (closed := outcome()) is None:
                    await checkpoint()
        assert isinstance(closed, PeerGone)
        left = {entry.reference: entry.pfn for entry in grants.ledger if entry.domid == w.disks.domid}
        assert left == ring
        fresh = w.guest.pages.allocate(64)
        assert not set(ring.values()) & set(range(fresh.pfn, fresh.pfn + 64))
        w.evil.grants.unmap([mapping])
        assert not [leak for leak in grants.leaks() if leak.entry.domid == w.disks.domid]


async def test_flapping_between_states_harms_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        async with opening(w.guest):
            for state in "26423256126545362":
                await w.evil.store.write(f"{w.back}/state", state)
                await w.guest.store.read(f"{w.back}/state")
        with anyio.fail_after(PATIENCE_S):
            await w.disks.destroy()
            end = await w.client.shut_down()
        assert (end.outcome, end.leaks) == ("poweroff", ())
        assert w.machine.core.audit() == []


# What it may say to the toolstack


@pytest.mark.parametrize(
    "statistics",
    [
        {"": "no json"},
        {"": '{"requests": {"read": -1}}'},
        {"": '{"bytes_read": 1e400}'},
        {"": '{"errors": 5, "surprise": 1}'},
        {"": "\udcff"},
        {"": "{}", "/queue-0": "[]"},
        {"": "{}", **{f"/queue-{index}": "{}" for index in range(90)}},
        {"/queue-0": "{}"},
    ],
)
async def test_a_report_that_makes_no_sense_counts_as_nothing(
    statistics: dict[str, str], tmp_path: Path
) -> None:
    async with world(tmp_path) as w:
        folder = f"{w.back}/{STATISTICS}"
        await w.evil.store.write_many({f"{folder}{name}": text for name, text in statistics.items()})
        await w.evil.store.write(f"{w.back}/state", "6")
        end = await w.client.shut_down()
        assert end.outcome == "poweroff"
        (record,) = end.disks
        assert len(record.statistics) <= 33
        report = collect_domain("client", "", w.client.domain, w.machine.services, end)
        (_, xvda) = report.devices
        assert (xvda.requests_total, xvda.bytes_read, xvda.errors, xvda.lost) == (0, 0, 0, 0)
        assert (xvda.name, xvda.backend_domain) == ("xvda", f"domain {w.disks.domid}")


async def test_what_it_did_to_its_folder_does_not_mislead_the_toolstack(tmp_path: Path) -> None:
    """Teardown follows the toolstack's own record: no node of somebody else's goes with the device."""
    async with world(tmp_path) as w:
        victim = f"/local/domain/{w.stranger.domid}/device/vbd/{XVDA}"
        await w.evil.store.write_many(
            {
                f"{w.back}/frontend": victim,
                f"{w.back}/frontend-id": str(w.stranger.domid),
                f"{w.back}/state": "6",
            }
        )
        with anyio.fail_after(PATIENCE_S):
            assert await w.client.detach("xvda")
        assert await w.machine.store.exists(victim)
        assert not await w.machine.store.exists(w.front)
        assert not await w.machine.store.exists(w.back)
        third = await Disk.open(w.third, XVDA)
        assert await third.read(0, 1) == bytes(512)
