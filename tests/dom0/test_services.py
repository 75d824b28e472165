"""What runs in dom0: every service there, and what the store is told of domains."""

from pathlib import Path

import anyio
import pytest

from dom0.embedding import DiskSpec, running_machine
from dom0.services import _domain_info
from dom0.toolstack.toolstack import DomainConfig
from hypervisor.abi.sched import SHUTDOWN_reboot
from tests.dom0 import programs
from tests.rig import running_rig

pytestmark = pytest.mark.anyio

MIB = 1 << 20
DISK = DiskSpec(vdev="xvda", backend="memory", config={"size": MIB})


async def test_each_service_stands_on_dom0_s_kernel_alone(tmp_path: Path) -> None:
    """What dom0 maps of a guest goes through grants: its counters show it, and the audit finds nothing else."""
    async with running_machine(tmp_path) as machine:
        guest = await machine.start(programs.with_disks, disks=[DISK])
        with anyio.fail_after(20):
            async with machine.store.watch(f"/local/domain/{guest.domid}/data/connected") as watch:
                async for _ in watch:
                    if await machine.store.exists(watch.path):
                        break
        counters = machine.dom0.counters
        mapped = counters.grant_maps - counters.grant_unmaps
        assert mapped >= 3  # the store's ring, the console's, and the disk's
        assert machine.core.audit() == []
        await guest.destroy()
        with anyio.fail_after(20):
            async with machine.store.watch("@releaseDomain") as watch:
                async for _ in watch:
                    if counters.grant_maps == counters.grant_unmaps:
                        break
        assert machine.core.audit() == []


async def test_what_is_mapped_of_guests_goes_with_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a guest that is destroyed in the last moment nothing stays: nobody has a page of it mapped."""
    async with running_rig(tmp_path) as rig:
        living = await rig.services.toolstack.create(DomainConfig("living", 4 * MIB, "test"))
        async with rig.guest(name="destroyed") as guest:
            # The daemon does not come to look at it.
            monkeypatch.setattr(rig.services.xenstore.core.domains, "check", lambda *_: None)
        mapped = rig.machine.domain(0).grants.maptrack
        assert {mapping.granter.domid for mapping in mapped} == {living, guest.domid}
    assert list(mapped) == []
    assert sorted(rig.machine.domains) == [0, living]
    assert rig.machine.audit() == []


async def test_what_the_store_is_told_of_domains(tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        kernel = machine.services.kernel
        domid = await machine.services.toolstack.create(DomainConfig("g", 4 * MIB, "test"))
        domain = machine.core.domain(domid)
        info = _domain_info(kernel, domid)
        assert info is not None
        assert (info.shutdown, info.dying, info.identity) == (False, False, domain.handle)
        domain.shutdown(SHUTDOWN_reboot)
        info = _domain_info(kernel, domid)
        assert info is not None
        assert info.shutdown
        assert _domain_info(kernel, domid + 1) is None
        assert _domain_info(kernel, 0) is not None


async def test_a_domain_that_nobody_knows_is_not_mistaken_for_the_next(tmp_path: Path) -> None:
    """XEN_DOMCTL_getdomaininfo answers for the next domain that there is."""
    async with running_machine(tmp_path) as machine:
        toolstack = machine.services.toolstack
        first = await toolstack.create(DomainConfig("a", 4 * MIB, "test"))
        second = await toolstack.create(DomainConfig("b", 4 * MIB, "test"))
        await toolstack.destroy(first)
        with anyio.fail_after(20):
            async with machine.store.watch("@releaseDomain") as watch:
                async for _ in watch:
                    if first not in machine.core.domains:
                        break
        assert _domain_info(machine.services.kernel, first) is None
        assert _domain_info(machine.services.kernel, second) is not None
        assert await toolstack.wait_end(first) == "destroyed"


async def test_what_daemons_say_is_passed_on(tmp_path: Path) -> None:
    said: list[str] = []
    heard = anyio.Event()

    def hear(line: str) -> None:
        said.append(line)
        heard.set()

    async with running_machine(tmp_path, log=hear) as machine:
        await machine.store.write("/local/domain/0/backend/console/9/0/frontend", "/local/domain/9/console")
        await machine.store.write("/local/domain/9/console/port", "many")
        await machine.store.write("/local/domain/9/console/ring-ref", "1")
        await machine.store.write("/local/domain/0/backend/console/9/0/state", "1")
        with anyio.fail_after(20):
            await heard.wait()
    assert said[0].startswith("dom0: ")
    assert "the console of domain 9 is badly described: port is 'many'" in said[0]
