"""The audit of a running machine: everything that the hypervisor counts, counted again.

Domains, frames, events, grants and shared pages are recounted in the machine's own process; the page tables of a native
domain in the process that executes it, at its next slice border.
"""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from hypervisor.errors import XenError

if TYPE_CHECKING:
    from dom0.embedding.machine import RunningMachine


class DomainAudit(BaseModel):
    """Of a native domain's page tables. not_done: why there is none; then nothing is found."""

    model_config = ConfigDict(extra="forbid")

    domid: int
    name: str
    found: list[str] = []
    not_done: str = ""


class MachineAudit(BaseModel):
    """What does not agree, in words: empty lists are good news."""

    model_config = ConfigDict(extra="forbid")

    pid: int
    machine: list[str]
    page_tables: list[DomainAudit]

    @property
    def agrees(self) -> bool:
        """Whether nothing was found."""
        return not self.machine and not any(domain.found for domain in self.page_tables)


async def audit_machine(machine: "RunningMachine", pid: int) -> MachineAudit:
    """Count everything again. Guests run on meanwhile; a native one stands still for some tenths of a second."""
    page_tables = []
    for guest in list(machine.guests):
        if guest.native is None:
            continue
        audit = DomainAudit(domid=guest.domid, name=guest.name)
        if guest.domain.pause_count:
            audit.not_done = "it is paused"
        else:
            try:
                audit.found = await guest.native.audit()
            except XenError as error:
                audit.not_done = str(error)
        page_tables.append(audit)
    return MachineAudit(pid=pid, machine=machine.core.audit(), page_tables=page_tables)
