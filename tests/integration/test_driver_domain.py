"""Disks that a driver domain serves: data, several clients, and the death of either side at any moment."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.lowlevel import checkpoint

from backends.block import driver_domain as told_module
from backends.block.report import BackendReport
from dom0 import driver_domain
from dom0.embedding import DiskSpec, NoSuchDriverDomain, RunningGuest, RunningMachine, running_machine
from dom0.launch.collect import live_row
from dom0.toolstack import devices as devices_module
from dom0.toolstack.errors import NoSuchBackendDomain
from dom0.toolstack.toolstack import DomainConfig
from frontends.block.disk import Disk, DiskOptions
from kernel.kernel import Kernel
from kernel.xenbus.drivers import ClosedByPeer, DeviceRemoved, PeerDomainGone, PeerGone
from tests.backends.block.stores import GatedStore
from tests.held import MIB, XVDA, XVDB, disk, held, store_has

pytestmark = pytest.mark.anyio

GATED = "tests.backends.block.stores:GatedStore"
PATIENCE_S = 5.0
"""Less than any time limit on the way: what takes longer has waited for somebody who is dead."""


async def nothing_left(machine: RunningMachine, *alive: RunningGuest) -> None:
    """Only dom0 and those domains exist, when dom0's daemons have let go of the others; and the books agree."""
    with anyio.fail_after(PATIENCE_S):
        async with machine.store.watch("@releaseDomain") as watch:
            async for _ in watch:
                if sorted(machine.core.domains) == [0, *sorted(guest.domid for guest in alive)]:
                    break
    assert machine.core.audit() == []
    assert not machine.core.faults


def mapped(guest: RunningGuest) -> int:
    """How many pages of others a domain has mapped."""
    return len(list(guest.domain.grants.maptrack))


def granted(kernel: Kernel, domid: int) -> list[int]:
    """What a domain has granted to another one and not taken back."""
    kernel.grants.leaks()  # which tries again to end what was still mapped
    return [entry.reference for entry in kernel.grants.ledger if entry.domid == domid]


# While all are well


async def test_data_goes_through_a_driver_domain(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        spec = DiskSpec(
            vdev="xvda", config={"path": "a.img", "size": "4MiB"}, backend_domain="disks", max_queues=2
        )
        client = await machine.start("block-exerciser", {"requests": 500, "depth": 8}, disks=[spec])
        end = await client.wait()
        assert (end.outcome, end.exit_code, end.leaks) == ("poweroff", 0, ())
        assert (tmp_path / "a.img").stat().st_size == 4 * MIB
        assert mapped(disks) == 0
        ended = await disks.shut_down()
        assert (ended.outcome, ended.exit_code, ended.leaks) == ("poweroff", 0, ())
        served = BackendReport.model_validate_json(ended.served[0].statistics[""])
        assert served.backend == "file"
        assert served.bytes_written >= 4 * MIB
        assert end.disks == ended.served
        console = disks.console.splitlines()
        assert console[0] == "driver domain 1 waits for devices"
        assert console[1] == "serves xvda of domain 2: file, 4096 KiB, read and write"
        assert console[2].startswith("served xvda of domain 2: ")
        assert console[2].endswith(" 0 errors")
        await nothing_left(machine)


async def test_dom0_serves_and_maps_nothing_of_it(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client, kernel = await held(machine, disks=[disk()])
        xvda = await Disk.open(kernel, XVDA)
        await xvda.write(0, bytes(8 * MIB // 16))
        assert machine.dom0.counters.grant_maps <= 4  # the rings of the store and of the console
        assert mapped(disks) > 0
        assert machine.services.blocks.disks_of(client.domid) == []
        await xvda.close()
        assert mapped(disks) == 0


async def test_two_clients_of_one_driver_domain(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        await machine.start("driver-domain", name="disks")
        kernels = [(await held(machine, disks=[disk(), disk("xvdb")]))[1] for _ in range(2)]
        disks = [await Disk.open(kernel, number) for kernel in kernels for number in (XVDA, XVDB)]

        async def work(index: int, xvd: Disk) -> None:
            for sector in range(0, 512, 16):
                await xvd.write(sector, bytes([index]) * 8192)

        async with anyio.create_task_group() as tasks:
            for index, xvd in enumerate(disks):
                tasks.start_soon(work, index, xvd)
        for index, xvd in enumerate(disks):
            assert await xvd.read(0, 512) == bytes([index]) * (512 * 512)


async def test_a_driver_domain_may_be_another_one_s_client(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        await machine.start("driver-domain", name="disks")
        await machine.start("driver-domain", name="more", disks=[disk()])
        client = await machine.start("block-exerciser", {"requests": 50}, disks=[disk(served_by="more")])
        assert (await client.wait()).exit_code == 0


async def test_what_is_served_can_be_watched_and_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told_module, "TELL_SECONDS", 0.01)
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client, kernel = await held(machine, disks=[disk()])
        xvda = await Disk.open(kernel, XVDA)
        services = machine.services
        await services.toolstack.devices.hear_all()
        assert live_row("client", "", client.domain, services).requests == 0
        for count in (1, 2):
            await xvda.write(0, bytes(4096))
            with anyio.fail_after(PATIENCE_S):
                while live_row("client", "", client.domain, services).requests < count:
                    await services.toolstack.devices.hear_all()
        for guest in (client, disks):
            row = live_row(guest.name, "", guest.domain, services)
            assert (row.requests, row.bytes_moved) == (2, 8192)
        assert live_row("Domain-0", "", machine.dom0, services).requests == 0
        end = await disks.destroy()
        (served,) = end.served
        assert BackendReport.model_validate_json(served.statistics[""]).requests == {"write": 2}


async def test_a_disk_that_comes_later(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        await machine.start("driver-domain", name="disks", files=["later.img"])
        guest, kernel = await held(machine)
        await guest.attach(
            DiskSpec(vdev="xvda", config={"path": "later.img", "size": MIB}, backend_domain="disks")
        )
        xvda = await Disk.open(kernel, XVDA)
        await xvda.write(0, b"later".ljust(512))
        with anyio.fail_after(PATIENCE_S):
            assert await guest.detach("xvda")
        assert (tmp_path / "later.img").read_bytes().startswith(b"later")
        assert not await machine.store.exists("/local/domain/1/backend")


async def test_files_are_kept_for_whoever_confines_the_domain(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        guest = await machine.start("driver-domain", name="disks", files=["a.img", "/b.img", tmp_path / "c"])
        assert guest.files == (tmp_path / "a.img", Path("/b.img"), tmp_path / "c")


async def test_an_image_that_is_missing_is_said_on_the_console(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        spec = DiskSpec(vdev="xvda", config={"path": "none.img"}, backend_domain="disks")
        client, kernel = await held(machine, disks=[spec])
        with pytest.raises(ClosedByPeer):
            await Disk.open(kernel, XVDA)
        await disks.printed("cannot serve xvda of domain 2: .*none.img cannot be opened")
        with anyio.fail_after(PATIENCE_S):
            await client.destroy()
        assert not await machine.store.exists("/local/domain/1/error/backend")


async def test_there_must_be_such_a_domain(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        await machine.start("idle", name="other")
        with pytest.raises(NoSuchDriverDomain, match=r"no domain disks runs.*only other"):
            await machine.start("idle", disks=[disk()])
        config = replace(machine.disk_config(disk(served_by="")), backend_domid=77)
        with pytest.raises(NoSuchBackendDomain, match="its backend domain, 77, does not run"):
            await machine.services.toolstack.create(DomainConfig("g", 4 * MIB, "test", disks=(config,)))
        assert list(machine.core.domains) == [0, 1]


async def test_a_driver_domain_that_somebody_took_out_of_the_store_gets_nothing_there(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks, _ = await held(machine, name="disks")
        guest, _ = await held(machine)
        await machine.store.rm(f"/local/domain/{disks.domid}")
        with pytest.raises(NoSuchBackendDomain, match="xvda"):
            await guest.attach(disk())
        assert not await machine.store.exists(f"/local/domain/{disks.domid}")
        assert not await machine.store.exists(f"/local/domain/{guest.domid}/device/vbd")


# The order of ends


async def test_a_driver_domain_that_shuts_down_closes_its_devices_first(tmp_path: Path) -> None:
    """What was in flight is answered; what is asked later is told that the domain is gone."""
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client, kernel = await held(machine, disks=[disk(backend=GATED)])
        xvda = await Disk.open(kernel, XVDA)
        written = anyio.Event()

        async def write() -> None:
            await xvda.write(0, b"x" * 512)
            written.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            while not GatedStore.last.begun:
                await checkpoint()
            tasks.start_soon(disks.shut_down)
            await disks.printed("asked to poweroff: devices to close: 1")
            GatedStore.last.gate.set()
            with anyio.fail_after(PATIENCE_S):
                await written.wait()
                end = await disks.wait()
        assert end.outcome == "poweroff"
        (served,) = end.served  # which its client still had, and has lost with it
        assert served.lost
        assert BackendReport.model_validate_json(served.statistics[""]).requests == {"write": 1}
        assert GatedStore.last.closed
        with anyio.fail_after(PATIENCE_S), pytest.raises(PeerGone):
            await xvda.read(0, 1)
        assert granted(kernel, disks.domid) == []
        await nothing_left(machine, client)


async def test_guests_that_do_not_use_their_disks_hold_nothing_up(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        missing = DiskSpec(vdev="xvdb", config={"path": "none.img"}, backend_domain="disks")
        await held(machine, disks=[disk(), missing])
        with anyio.fail_after(PATIENCE_S):
            await disks.printed("cannot serve xvdb")
            assert (await disks.shut_down(patience_s=60)).outcome == "poweroff"


async def test_what_waits_for_a_backend_that_has_closed_is_told_when_its_domain_is_gone(
    tmp_path: Path,
) -> None:
    async with running_machine(tmp_path) as machine:
        disks, service = await held(machine, name="disks")
        _, kernel = await held(machine, disks=[disk()])
        service.tasks.start_soon(driver_domain.main, service)
        xvda = await Disk.open(kernel, XVDA)
        for device in list(service.devices):
            device.close()
        assert isinstance(await xvda.device.wait_closed(), ClosedByPeer)
        async with anyio.create_task_group() as tasks:
            told = anyio.Event()

            async def read() -> None:
                with pytest.raises(PeerGone):
                    await xvda.read(0, 1)
                told.set()

            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert not told.is_set()
            tasks.start_soon(disks.destroy)
            with anyio.fail_after(PATIENCE_S):
                await told.wait()


# The death of a driver domain

Killing = Callable[[RunningGuest, Kernel], Awaitable[object]]


async def destroys(disks: RunningGuest, _service: Kernel) -> None:
    await disks.destroy()


async def crashes(disks: RunningGuest, service: Kernel) -> None:
    service.hypercalls.sched_shutdown(3)  # SHUTDOWN_crash: nothing of it executes from here on
    await disks.wait()


@pytest.mark.parametrize("kill", [destroys, crashes])
async def test_what_is_in_flight_fails_and_so_does_all_that_follows(kill: Killing, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks, service = await held(machine, name="disks")
        client, kernel = await held(machine, disks=[disk(backend=GATED), disk("xvdb", served_by="")])
        service.tasks.start_soon(driver_domain.main, service)
        xvda, xvdb = await Disk.open(kernel, XVDA), await Disk.open(kernel, XVDB)
        await xvdb.write(0, b"mine".ljust(512))
        failures: list[PeerGone] = []

        async def fails(call: Callable[..., Awaitable[object]], *args: object) -> None:
            with pytest.raises(PeerGone) as gone:
                await call(*args)
            failures.append(gone.value)

        async with anyio.create_task_group() as tasks:
            for sector in range(0, 400, 8):  # more than the ring has slots for, with the long one
                tasks.start_soon(fails, xvda.read, sector, 8)
            tasks.start_soon(fails, xvda.write, 0, bytes(MIB // 2))
            tasks.start_soon(fails, xvda.flush)
            while not GatedStore.last.begun:
                await checkpoint()
            with anyio.fail_after(PATIENCE_S):
                await kill(disks, service)
                while len(failures) < 52:
                    await checkpoint()
        with anyio.fail_after(PATIENCE_S):
            for call in (
                lambda: xvda.read(0, 1),
                lambda: xvda.read(0, 100),
                lambda: xvda.write(0, bytes(512)),
                lambda: xvda.write(0, bytes(51200)),
                lambda: xvda.read_many([(0, bytearray(4096))]),
                xvda.flush,
                xvda.reopen,
                lambda: xvda.read(0, 1),
            ):
                await fails(call)
        for gone in failures:
            assert gone.path == f"device/vbd/{XVDA}"
            assert isinstance(gone.cause, PeerDomainGone)
            assert gone.cause.domid == disks.domid
            assert str(gone) == (
                f"device/vbd/{XVDA}: the peer is gone "
                f"(backend domain {disks.domid} has ended, or has removed the device)"
            )
        assert xvda.is_settled
        assert granted(kernel, disks.domid) == []
        assert await xvdb.read(0, 1) == b"mine".ljust(512)
        with anyio.fail_after(PATIENCE_S):
            await xvda.close()
            end = await client.shut_down()
        assert (end.outcome, end.leaks) == ("poweroff", ())
        assert [(record.name, record.lost) for record in end.disks] == [("xvda", True)]
        await nothing_left(machine)


async def test_its_death_is_said_in_the_log(tmp_path: Path) -> None:
    log: list[str] = []
    async with running_machine(tmp_path, log=log.append) as machine:
        disks = await machine.start("driver-domain", name="disks")
        await held(machine, name="painter", disks=[disk()])
        await disks.destroy()
        assert log[-2:] == [
            "painter loses xvda: disks, which served it, is gone",
            "disks has ended: destroyed, exit code None",
        ]


async def test_a_guest_that_has_not_opened_its_disk_is_told_when_it_does(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client, kernel = await held(machine, disks=[disk()])
        await disks.destroy()
        with anyio.fail_after(PATIENCE_S):
            with pytest.raises(PeerGone, match=f"backend domain {disks.domid}"):
                await Disk.open(kernel, XVDA)
            assert (await client.shut_down()).outcome == "poweroff"


async def test_a_guest_that_waits_for_its_disk_is_told(tmp_path: Path) -> None:
    """Nobody serves: the frontend waits for the backend to appear."""
    async with running_machine(tmp_path) as machine:
        disks, _ = await held(machine, name="disks")
        _, kernel = await held(machine, disks=[disk()])

        async def opens() -> None:
            with pytest.raises(PeerGone):
                await Disk.open(kernel, XVDA)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(opens)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(PATIENCE_S):
                await disks.destroy()


@pytest.mark.parametrize("moment", [0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 150, 200, 400, 800])
async def test_it_may_die_at_any_moment(moment: int, tmp_path: Path) -> None:
    """Its client ends by itself, with whatever it was told, and nothing is left of either."""
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client = await machine.start(
            "block-exerciser", {"requests": 3000, "depth": 3}, disks=[disk(size=2 * MIB)]
        )
        for _ in range(moment):
            await checkpoint()
        with anyio.fail_after(2 * PATIENCE_S):
            await disks.destroy()
            end = await client.wait()
        assert end.outcome in ("crash", "poweroff")
        assert end.outcome == "poweroff" or "PeerGone" in end.crash, end.crash
        assert end.leaks == ()
        await nothing_left(machine)


async def test_detaching_and_destroying_do_not_wait_for_the_dead(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client, kernel = await held(machine, disks=[disk(), disk("xvdb")])
        other, _ = await held(machine, disks=[disk()])  # whose driver was never started
        xvda = await Disk.open(kernel, XVDA)
        await disks.destroy()
        with anyio.fail_after(PATIENCE_S):
            assert await client.detach("xvda")
            assert isinstance(await xvda.device.wait_closed(), PeerGone | DeviceRemoved)
            assert not await machine.store.exists(f"/local/domain/{client.domid}/device/vbd/{XVDA}")
            with pytest.raises(NoSuchDriverDomain):
                await client.attach(disk())
            await client.attach(disk(served_by=""))
            again = await Disk.open(kernel, XVDA)
            assert await again.read(0, 1) == bytes(512)
            await client.destroy()
            await other.destroy()
        assert not await machine.store.exists("/local/domain/1")
        await nothing_left(machine)


async def test_nothing_is_touched_where_a_dead_driver_domain_was(tmp_path: Path) -> None:
    """Its number may be another one's by then."""
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client, _ = await held(machine, disks=[disk(), disk("xvdb")])
        await disks.destroy()
        nodes = [
            f"/local/domain/{disks.domid}/backend/vbd/{client.domid}/{XVDA}/online",
            f"/local/domain/{disks.domid}/error/backend/vbd/{client.domid}/{XVDB}/error",
        ]
        await machine.store.write_many(dict.fromkeys(nodes, "another one's"))
        with anyio.fail_after(PATIENCE_S):
            assert await client.detach("xvda")
            await client.destroy()
        assert await machine.store.read_many(nodes) == ["another one's"] * 2


async def test_a_domain_that_has_ended_and_is_still_there_is_not_waited_for(tmp_path: Path) -> None:
    """As it is for whoever uses the toolstack by himself: it has crashed, and nobody has destroyed it."""
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        backend = await toolstack.create(DomainConfig("disks", 4 * MIB, "test"))
        machine.host.start(machine.core.domain(backend), lambda _: anyio.sleep_forever())
        served = replace(machine.disk_config(disk(served_by="")), backend_domid=backend)
        client = await toolstack.create(DomainConfig("client", 4 * MIB, "test", disks=(served,)))
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(PATIENCE_S):
                tasks.start_soon(toolstack.destroy, client)
                await store_has(machine, f"/local/domain/{client}/device/vbd/{XVDA}", None)
                machine.core.domain(backend).crash()
                while client in toolstack.domids or client in machine.core.domains:
                    await checkpoint()
                assert await toolstack.wait_end(backend) == "crash"
                with pytest.raises(NoSuchBackendDomain):
                    await toolstack.create(DomainConfig("late", 4 * MIB, "test", disks=(served,)))


async def test_one_that_lives_and_does_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "REMOVAL_TIMEOUT_S", 0.05)
    async with running_machine(tmp_path) as machine:
        await held(machine, name="disks")
        client, _ = await held(machine, disks=[disk()])
        assert not await client.detach("xvda")
        assert not await machine.store.exists(f"/local/domain/1/backend/vbd/{client.domid}/{XVDA}")


# The death of a client


async def test_a_client_that_dies_in_the_middle_leaves_nothing_in_the_driver_domain(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        victim, kernel = await held(machine, disks=[disk(backend=GATED), disk("xvdb")])
        _, other = await held(machine, disks=[disk()])
        gated, xvdb = await Disk.open(kernel, XVDA), await Disk.open(kernel, XVDB)
        xvda = await Disk.open(other, XVDA)
        await xvdb.write(0, bytes(MIB // 2))
        await xvda.write(0, bytes(512))
        theirs = mapped(disks)
        for sector in range(0, 80, 8):
            kernel.tasks.start_soon(gated.read, sector, 8)
        while not GatedStore.last.begun:
            await checkpoint()
        store = GatedStore.last
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(victim.destroy)
            await store_has(machine, f"/local/domain/{victim.domid}/device/vbd/{XVDA}", None)
            store.gate.set()
            with anyio.fail_after(PATIENCE_S):
                assert (await victim.wait()).outcome == "destroyed"
        assert store.closed
        assert victim.domid not in machine.core.domains
        assert 0 < mapped(disks) < theirs
        assert not await machine.store.exists(f"/local/domain/{disks.domid}/backend/vbd/{victim.domid}")
        assert await xvda.read(0, 1) == bytes(512)
        assert machine.core.audit() == []


@pytest.mark.parametrize("moment", [0, 3, 10, 30, 60, 100, 200, 500])
async def test_a_client_may_die_at_any_moment(moment: int, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        disks = await machine.start("driver-domain", name="disks")
        client = await machine.start(
            "block-exerciser", {"requests": 3000, "depth": 3}, disks=[disk(size=2 * MIB)]
        )
        for _ in range(moment):
            await checkpoint()
        with anyio.fail_after(2 * PATIENCE_S):
            await client.destroy()
            assert mapped(disks) == 0
            assert (await disks.shut_down()).outcome == "poweroff"
        await nothing_left(machine)


async def test_both_may_die_at_once(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        for moment in (0, 10, 50, 200):
            disks = await machine.start("driver-domain", name="disks")
            client = await machine.start(
                "block-exerciser", {"requests": 3000, "depth": 3}, disks=[disk(size=2 * MIB)]
            )
            for _ in range(moment):
                await checkpoint()
            with anyio.fail_after(2 * PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.destroy)
                    tasks.start_soon(disks.destroy)
            await nothing_left(machine)


async def test_requests_survive_a_service_that_begins_anew_in_its_domain(tmp_path: Path) -> None:
    """Only its domain's death is for good: a backend that closes and comes back is waited for, as ever."""
    async with running_machine(tmp_path) as machine:
        _, service = await held(machine, name="disks")
        _, kernel = await held(machine, disks=[disk()])
        service.tasks.start_soon(driver_domain.main, service)
        xvda = await Disk.open(kernel, XVDA, DiskOptions(queues=2))
        (device,) = service.devices
        async with anyio.create_task_group() as tasks:
            device.close()
            await device.wait_closed()
            tasks.start_soon(xvda.write, 0, b"again".ljust(512))
            device.reopen()
        assert (await xvda.read(0, 1)).startswith(b"again")
        await xvda.device.wait_connected()
