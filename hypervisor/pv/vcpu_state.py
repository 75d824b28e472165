"""The state of a native vCPU as a model: to be saved at a slice border, and loaded by another process.

Its register file is the engine's to save. Page-table roots, LDT and the GDT's frames are named here, and referred to
again when they are loaded. vcpu_info and the areas that the guest registered lie in its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from hypervisor.abi.arch_x86_64 import XEN_LEGACY_MAX_VCPUS, vcpu_guest_context
from hypervisor.errors import InvalidArgument
from hypervisor.pv.layout import MFN_END, PAGE_SIZE
from hypervisor.pv.segments import DESCRIPTORS_A_PAGE, install_gdt
from hypervisor.pv.vcpu import VCPU_INFO_SIZE, VECTORS, Callback

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

U64 = Annotated[int, Field(ge=0, lt=1 << 64)]
Mfn = Annotated[int, Field(ge=0, lt=MFN_END)]
_STRICT = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

_PLAIN = (
    "initialised",
    "online",
    "blocked",
    "poll_ports",
    "in_kernel",
    "kernel_ss",
    "kernel_sp",
    "gs_base_kernel",
    "gs_base_user",
    "iopl",
    "iobmp",
    "iobmp_ports",
    "cr2",
    "cr4",
    "dr7_io",
    "nmi_pending",
    "nmi_masked",
    "runstate",
    "runstate_entry_ns",
    "runstate_area",
    "time_area",
    "singleshot_ns",
    "periodic_due_ns",
    "poll_deadline_ns",
    "period_ns",
)
"""fields that are what they are in PvVcpu"""
_ROOTS = ("kernel_root", "user_root", "ldt_base", "ldt_entries", "ldt_frames")
"""fields that name frames; the page tables refer to them"""
_CALLBACKS = ("event", "failsafe", "syscall", "syscall32", "sysenter")


class TrapState(BaseModel):
    """An entry of the trap table."""

    model_config = _STRICT

    flags: int = Field(ge=0, lt=256)
    selector: int = Field(ge=0, lt=1 << 16)
    address: U64


class CallbackState(BaseModel):
    """As vcpu.Callback."""

    model_config = _STRICT

    address: U64
    masks_events: bool


class VcpuState(BaseModel):
    """As PvVcpu. traps: by vector, without those that are not handled. gdt: MFNs. context: vcpu_guest_context of a
    vCPU that was not executed yet. private_info: vcpu_info of a vCPU that has neither registered one nor a place in
    shared_info.
    """

    model_config = _STRICT

    initialised: bool
    online: bool
    blocked: bool
    poll_ports: tuple[int, ...]
    in_kernel: bool
    kernel_root: Mfn
    user_root: Mfn
    traps: dict[int, TrapState]
    event: CallbackState
    failsafe: CallbackState
    syscall: CallbackState
    syscall32: CallbackState
    sysenter: CallbackState
    kernel_ss: U64
    kernel_sp: U64
    gs_base_kernel: U64
    gs_base_user: U64
    gdt: list[Mfn]
    gdt_entries: int = Field(ge=0)
    ldt_base: U64
    ldt_entries: int = Field(ge=0, le=8192)
    ldt_frames: list[Mfn] = Field(max_length=16)
    iopl: int = Field(ge=0, le=0x3000)
    iobmp: U64
    iobmp_ports: int = Field(ge=0, le=65536)
    cr2: U64
    cr4: U64
    dr7_io: int
    nmi_pending: bool
    nmi_masked: bool
    runstate: int = Field(ge=0, le=3)
    runstate_entry_ns: int
    runstate_ns: tuple[int, int, int, int]
    runstate_area: U64
    time_area: U64
    singleshot_ns: int | None
    periodic_due_ns: int | None
    poll_deadline_ns: int | None
    period_ns: int = Field(ge=0)
    info_mfn: Mfn
    info_offset: int = Field(ge=0, le=PAGE_SIZE - VCPU_INFO_SIZE)
    private_info: Annotated[bytes, Field(min_length=VCPU_INFO_SIZE, max_length=VCPU_INFO_SIZE)] | None
    context: bytes | None


def dump_vcpu(vcpu: PvVcpu) -> VcpuState:
    """At a slice border."""
    plain = {name: getattr(vcpu, name) for name in (*_PLAIN, *_ROOTS)}
    return VcpuState(
        **plain,
        event=_dump_callback(vcpu.event),
        failsafe=_dump_callback(vcpu.failsafe),
        syscall=_dump_callback(vcpu.syscall),
        syscall32=_dump_callback(vcpu.syscall32),
        sysenter=_dump_callback(vcpu.sysenter),
        traps={
            vector: TrapState(
                flags=vcpu.trap_flags[vector], selector=vcpu.trap_selectors[vector], address=address
            )
            for vector, address in enumerate(vcpu.trap_addresses)
            if address
        },
        gdt=[mfn for mfn in vcpu.gdt_frames if mfn],
        gdt_entries=vcpu.gdt_entries,
        runstate_ns=(vcpu.runstate_ns[0], vcpu.runstate_ns[1], vcpu.runstate_ns[2], vcpu.runstate_ns[3]),
        info_mfn=vcpu.info_mfn,
        info_offset=vcpu.info_offset,
        private_info=bytes(vcpu.info) if not vcpu.info_mfn and vcpu.id >= XEN_LEGACY_MAX_VCPUS else None,
        context=None if vcpu.context is None else vcpu.context.pack(),
    )


def _dump_callback(callback: Callback) -> CallbackState:
    return CallbackState(address=callback.address, masks_events=callback.masks_events)


def load_vcpu(vcpu: PvVcpu, state: VcpuState) -> None:
    """The inverse, into a vCPU that was just made, but for the frames that it refers to: it names its roots and its LDT
    afterwards, as the page tables want to have it. XenError: no such state.
    """
    if any(not 0 <= vector < VECTORS for vector in state.traps):
        raise InvalidArgument("trap vectors", sorted(state.traps), f"below {VECTORS}")
    for name in (*_PLAIN, *_ROOTS):
        setattr(vcpu, name, getattr(state, name))
    for name in _CALLBACKS:
        callback, saved = getattr(vcpu, name), getattr(state, name)
        callback.address, callback.masks_events = saved.address, saved.masks_events
    for vector, trap in state.traps.items():
        vcpu.trap_addresses[vector] = trap.address
        vcpu.trap_flags[vector] = trap.flags
        vcpu.trap_selectors[vector] = trap.selector
    vcpu.runstate_ns = list(state.runstate_ns)
    vcpu.context = None if state.context is None else vcpu_guest_context.unpack(state.context)


def take_frames(vcpu: PvVcpu, state: VcpuState) -> None:
    """The rest, when the page tables are there: refer to the frames of its GDT, and to that of its vcpu_info. XenError:
    one is not what the state says.
    """
    if len(state.gdt) != -(-state.gdt_entries // DESCRIPTORS_A_PAGE):
        raise InvalidArgument("GDT frames", len(state.gdt), f"those of {state.gdt_entries} entries")
    install_gdt(vcpu, list(state.gdt), state.gdt_entries)
    offset = state.info_offset
    if state.info_mfn:
        domain = vcpu.domain
        domain.page_tables.take_writable(state.info_mfn)
        info = domain.memory.frame(state.info_mfn)[offset : offset + VCPU_INFO_SIZE]
        vcpu.place_info(info, state.info_mfn, offset)
    elif state.private_info is not None:
        vcpu.info[:] = state.private_info
