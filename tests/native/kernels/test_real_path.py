"""The same cases in domains as they are on a real machine: built by dom0, each on the engine in a process of its own,
with the machine-wide core behind a channel. A Python guest grants the pages that are mapped.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from dom0.embedding import GuestEnd, RunningMachine, running_machine
from hypervisor.abi.grant_table import GNTST_okay
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.vcpu.native.execution import NotRunning
from kernel.hypercalls.grant_table import CopyEnd, CopyOp
from kernel.kernel import Kernel
from kernel.mapping import GrantError, Mapping
from kernel.pages import Pages
from tests.native.kernels.test_cases import CASES, CRASHES

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

PATIENCE_S = 30.0
GRANT_CASE = "grant_maps 0 8 9"
GRANTED = 0x6772616E74
ANSWER = 0x616E73776572
USER = 2
HOPS = 10
PAGE_REFERENCE = 100
TABLE_REFERENCE = 101
LEFT_REFERENCE = 102


@dataclass
class Said:
    """What the machine's domains have said on the hypervisor's console, with their names before it."""

    lines: list[str] = field(default_factory=list)

    def of(self, domid: int) -> list[str]:
        start = f"(XEN) d{domid}: "
        return [line.removeprefix(start) for line in self.lines if line.startswith(start)]

    def not_well(self, domid: int) -> list[str]:
        return [line for line in self.of(domid) if not line.startswith(("ok: ", "not confined: "))]


async def boot(machine: RunningMachine, kernel: Path, case: str, vcpus: int = 2) -> tuple[int, GuestEnd]:
    with anyio.fail_after(PATIENCE_S):
        guest = await machine.boot(kernel, cmdline=case, memory="8MiB", vcpus=vcpus)
        return guest.domid, await guest.wait()


async def test_every_case_ends_well(kernel: Path, tmp_path: Path) -> None:
    said = Said()
    async with running_machine(tmp_path, log=said.lines.append) as machine:
        for case, checks in CASES.items():
            if case == GRANT_CASE:
                continue
            domid, end = await boot(machine, kernel, case)
            assert (case, said.not_well(domid)) == (case, [f"{checks} checks, 0 failed"])
            assert (case, end.outcome) == (case, "poweroff")
            assert not machine.core.audit()
        assert not machine.core.faults


async def test_crashes_end_their_domains_alone(kernel: Path, tmp_path: Path) -> None:
    said = Said()
    async with running_machine(tmp_path, log=said.lines.append) as machine:
        for case in CRASHES:
            domid, end = await boot(machine, kernel, case, vcpus=1)
            assert (case, end.outcome) == (case, "crash")
            assert not [line for line in said.of(domid) if line.startswith(("FAILED", "went on"))]
        domid, end = await boot(machine, kernel, "hello 42 7")
        assert end.outcome == "poweroff"
        assert not machine.core.audit()
        assert not machine.core.faults


@pytest.mark.parametrize("seed", range(4))
async def test_nonsense_concerns_nobody_else(seed: int, kernel: Path, tmp_path: Path) -> None:
    async with running_machine(tmp_path) as machine:
        for case in ("fuzz_tables", "fuzz_hypercalls", "fuzz_operations"):
            await boot(machine, kernel, f"{case} {seed} 3000")
            assert not machine.core.audit()
        _, end = await boot(machine, kernel, "hello 42 7")
        assert end.outcome == "poweroff"
        assert not machine.core.faults


async def test_nonsense_hops_and_is_audited(kernel: Path, tmp_path: Path) -> None:
    said = Said()
    async with running_machine(tmp_path, log=said.lines.append) as machine:
        with anyio.fail_after(PATIENCE_S):
            guest = await machine.boot(kernel, cmdline="fuzz_both 7 30000", memory="8MiB", vcpus=2)
            assert guest.native is not None
            hops = 0
            with suppress(NotRunning):
                while guest.runs and hops < HOPS:
                    assert await guest.native.audit() == []
                    await guest.native.hop()
                    hops += 1
            end = await guest.wait()
        assert hops > 1
        assert end.outcome == "poweroff"
        assert not [line for line in said.of(guest.domid) if line.startswith("FAILED")]
        assert not machine.core.audit()


class Granter:
    """A Python guest, the first of its machine, that grants two pages to the second."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.finish = anyio.Event()
        self.references: list[int] = []
        self.kept: list[bool] = []
        self.pages: Pages

    async def program(self, guest: Kernel) -> int:
        self.pages = pages = guest.pages.allocate(2)
        pages.view[:] = bytes(len(pages.view))
        for page in (0, 1):
            pages.page(page)[:8] = GRANTED.to_bytes(8, "little")
        self.references = [
            guest.grants.grant(USER, pages.pfn),
            guest.grants.grant(USER, pages.pfn + 1, readonly=True),
        ]
        self.ready.set()
        await self.finish.wait()
        self.kept = [guest.grants.is_mapped(reference) for reference in self.references]
        for reference in self.references:
            guest.grants.end(reference)
        guest.pages.free(pages)
        return 0


async def test_a_python_guest_grants_pages(kernel: Path, tmp_path: Path) -> None:
    said = Said()
    granter = Granter()
    async with running_machine(tmp_path, log=said.lines.append) as machine:
        python = await machine.start(granter.program)
        with anyio.fail_after(PATIENCE_S):
            await granter.ready.wait()
        case = " ".join(map(str, ("grant_maps", python.domid, *granter.references)))
        domid, end = await boot(machine, kernel, case)
        assert domid == USER
        assert said.not_well(domid) == [f"{CASES[GRANT_CASE]} checks, 0 failed"]
        assert end.outcome == "poweroff"
        assert int.from_bytes(granter.pages.page(0)[8:16], "little") == ANSWER
        granter.finish.set()
        assert (await python.wait()).outcome == "poweroff"
        assert granter.kept == [False, False]
        assert not machine.core.audit()


class Mapper:
    """A Python guest, the first of its machine, that maps what the second one grants."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.table: list[Mapping | GrantError] = []
        self.copied: list[int] = []
        self.left = b""

    async def program(self, guest: Kernel) -> int:
        with anyio.fail_after(PATIENCE_S):
            while "granted" not in self.said.of(USER):  # noqa: ASYNC110 - the guest has no other way to tell
                await anyio.sleep(0.01)
            page, left = guest.grants.map(USER, [PAGE_REFERENCE, LEFT_REFERENCE])
            assert isinstance(page, Mapping)
            assert isinstance(left, Mapping)
            left.page[:8] = b"occupied"
            self.table = guest.grants.map(USER, [TABLE_REFERENCE])
            source = guest.pages.allocate()
            self.copied = guest.grants.copy(
                [
                    CopyOp(
                        CopyEnd(DOMID_SELF, source.pfn, 0, False), CopyEnd(USER, TABLE_REFERENCE, 0, True), 8
                    )
                ]
            )
            words = page.page.cast("Q")
            words[0] = 1
            while words[1] != 1:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            words.release()
            self.left = bytes(left.page[:16])
            guest.grants.unmap([page, left])
        return 0


async def test_what_others_may_write_is_no_page_table(kernel: Path, tmp_path: Path) -> None:
    said = Said()
    mapper = Mapper(said)
    async with running_machine(tmp_path, log=said.lines.append) as machine:
        python = await machine.start(mapper.program)
        domid, end = await boot(machine, kernel, f"granting {python.domid}")
        assert domid == USER
        assert said.not_well(domid) == ["granted", "23 checks, 0 failed"]
        assert end.outcome == "poweroff"
        assert (await python.wait()).outcome == "poweroff"
        assert isinstance(mapper.table[0], GrantError)
        assert mapper.copied != [GNTST_okay]
        assert mapper.left == b"occupied" + bytes(8)
        assert not machine.core.audit()


async def test_a_domain_that_ends_gives_mapped_grants_back(kernel: Path, tmp_path: Path) -> None:
    granter = Granter()
    async with running_machine(tmp_path) as machine:
        python = await machine.start(granter.program)
        with anyio.fail_after(PATIENCE_S):
            await granter.ready.wait()
        case = " ".join(map(str, ("grant_kept", python.domid, *granter.references)))
        _, end = await boot(machine, kernel, case)
        assert end.outcome == "poweroff"
        granter.finish.set()
        assert (await python.wait()).outcome == "poweroff"
        assert granter.kept == [False, False]
        assert not machine.core.audit()
