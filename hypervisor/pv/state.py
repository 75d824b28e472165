"""All state of a native domain that is neither in its memory nor known to the machine-wide core, as one model.

It is taken at a slice border, where the guest stands still, and loaded by another process over the same memory. Time
goes on by the machine's clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from hypervisor.pv.grants import Mapped
from hypervisor.pv.page_tables_state import PageTablesState
from hypervisor.pv.ports import PortsState
from hypervisor.pv.vcpu_state import VcpuState, dump_vcpu, load_vcpu, take_frames

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain


class DomainState(BaseModel):
    """grants: those that are mapped, by handle: (MFN, host_addr, flags)."""

    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    vm_assist: int
    vcpus: list[VcpuState]
    page_tables: PageTablesState
    ports: PortsState
    grants: dict[int, tuple[int, int, int]]


def dump_domain(domain: PvDomain) -> DomainState:
    """At a slice border, with no vCPU in the processor."""
    return DomainState(
        vm_assist=domain.vm_assist,
        vcpus=[dump_vcpu(vcpu) for vcpu in domain.vcpus],
        page_tables=domain.page_tables.dump(),
        ports=domain.ports.dump(),
        grants={
            handle: (grant.mfn, grant.host_addr, grant.flags)
            for handle, grant in domain.mapped_grants.items()
        },
    )


def load_domain(domain: PvDomain, state: DomainState) -> None:
    """Into a domain that was just made, over the memory that the state belongs to."""
    domain.vm_assist = state.vm_assist
    for vcpu, saved in zip(domain.vcpus, state.vcpus, strict=True):
        load_vcpu(vcpu, saved)
    domain.page_tables.load(state.page_tables, domain.vcpus)
    for vcpu, saved in zip(domain.vcpus, state.vcpus, strict=True):
        take_frames(vcpu, saved)
    domain.ports.load(state.ports)
    domain.mapped_grants = {handle: Mapped(*mapped) for handle, mapped in state.grants.items()}
