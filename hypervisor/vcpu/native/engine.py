"""The x86-64 engine: executes one vCPU at a time of a native domain, always at CPL 3, by the domain's own page tables.

What the guest does that needs a hypervisor arrives at a Handler, inside the engine's run; the handler changes
registers and returns, and the guest goes on where they say. The engine's process is its domain's: an engine that
is dropped while the process goes on has been seen to break the next one, so there is one a process, never closed.
"""

from __future__ import annotations

import ctypes
from types import MappingProxyType
from typing import Final, Self

from hypervisor.pv.cpu import Segment
from hypervisor.pv.layout import (
    MONITOR_FIRST,
    PAGE_SHIFT,
    PAGE_SIZE,
    RAM_FIRST,
    XEN_FIRST,
)
from hypervisor.vcpu.native import exit_checks, time_stamps, written_code
from hypervisor.vcpu.native.hooks import Handler, Hooks
from hypervisor.vcpu.native.library import UC_PROT_ALL, EngineFailed, EngineUnavailable, library
from hypervisor.vcpu.native.monitor_pages import (
    FLAT_SEGMENTS,
    GDT_LIMIT,
    MonitorPages,
    gdt_address,
    ldt_address,
)
from hypervisor.vcpu.native.opening import Opened, open_engine
from hypervisor.vcpu.native.registers import Registers
from hypervisor.vcpu.native.watch import Watch

CR4: Final = 0x620
"""PAE, OSFXSR, OSXMMEXCPT"""
EFER: Final = 0xD01
"""SCE, LME, LMA, NXE"""
CR0: Final = 0x8005_0033
"""PE, MP, ET, NE, WP, AM, PG"""
INITIAL_FLAGS: Final = 0x202
FPU_REGISTERS: Final = MappingProxyType({246: 0x37F, 247: 0xFFFF})
"""FPCW and FPTAG of uc_x86_reg, as FNINIT leaves them"""
FLAT_CODE_SELECTOR: Final = 0xE033
FLAT_DATA_SELECTOR: Final = 0xE02B
SAVED_BYTES: Final = 2872
"""of the engine's state: all registers down to XMM"""


class Engine(Registers):
    """The registers are those of the vCPU that executes. monitor: the hypervisor's pages. handler: who hears of what
    the guest does. tsc_hz: how fast its time stamp counter counts; tsc_offset: what is added to the machine's.
    """

    def __new__(cls, memory_address: int, pages: int, vcpus: int = 1) -> Self:  # noqa: ARG004
        """It lies over the engine's own memory."""
        opened = open_engine(library())
        engine = cls.from_address(opened.env)
        engine.opened = opened
        return engine

    opened: Opened

    def __init__(self, memory_address: int, pages: int, vcpus: int = 1) -> None:  # noqa: ARG002
        """`memory_address`: where machine address 0 is in this process. `pages`: the domain's most, so many frames
        from RAM_FIRST on are RAM for the engine. Frames without backing end the process when touched.
        EngineUnavailable.
        """
        self._loaded_library = library()
        opened = self.opened
        self.attach(self._loaded_library, opened.cpu)
        self._uc = opened.uc
        self._stop_request = ctypes.c_uint8.from_address(opened.stop_request)
        self._exit_request = ctypes.c_uint8.from_address(opened.exit_request)
        self._countdown = ctypes.c_uint16.from_address(opened.countdown)
        self._forget_code = self._loaded_library.held.tb_invalidate_phys_range_x86_64
        self._emu_start = self._loaded_library.held.uc_emu_start
        self._regions: list[tuple[int, int]] = []
        self.tsc_hz = time_stamps.frequency()
        self.monitor = MonitorPages(pages)
        self.monitor.changed = self._descriptors_changed
        self._active = 0
        # Two regions, the larger one first: the library gives wrong internal addresses to later larger ones.
        self._map(XEN_FIRST, RAM_FIRST + pages - XEN_FIRST, memory_address + (XEN_FIRST << PAGE_SHIFT))
        self._map(MONITOR_FIRST, self.monitor.pages, self.monitor.address)
        self._hooks = Hooks(self, self._loaded_library)
        written_code.watch(self._loaded_library, self._uc)
        exit_checks.make_cheap(self._loaded_library)
        self._enter_long_mode()
        self._watch: Watch | None = None
        self._pristine = b""
        self._pristine = self.save()

    @property
    def handler(self) -> Handler:
        """To be set before run()."""
        return self._hooks.handler

    @handler.setter
    def handler(self, handler: Handler) -> None:
        self._hooks.handler = handler

    # ---- memory

    def _map(self, mfn: int, count: int, host: int) -> None:
        """Let page tables name `count` machine frames from `mfn` on, which begin at `host`."""
        held = self._loaded_library.held
        code = held.uc_mem_map_ptr(self._uc, mfn << PAGE_SHIFT, count << PAGE_SHIFT, UC_PROT_ALL, host)
        self._loaded_library.check("uc_mem_map_ptr", code)
        start = sum(pages for _, pages in self._regions)
        if held.qemu_ram_addr_from_host_x86_64(self._uc, host) != start << PAGE_SHIFT:
            raise EngineUnavailable("its library places memory elsewhere than we know")
        self._regions.append((mfn, count))

    def forget_code(self, mfn: int) -> None:
        """Somebody else than the guest has written into this frame: drop what was translated of it."""
        start = mfn - XEN_FIRST << PAGE_SHIFT
        self._forget_code(self._uc, start, start + PAGE_SIZE)

    # ---- vCPUs

    def _enter_long_mode(self) -> None:
        held, env = self._loaded_library.held, self.opened.env
        held.cpu_x86_update_cr4_x86_64(env, CR4)
        self.efer = EFER
        held.cpu_x86_update_cr0_x86_64(env, CR0)
        for register in Segment:
            code = register == Segment.CS
            selector = FLAT_CODE_SELECTOR if code else FLAT_DATA_SELECTOR
            self.load_segment(register, selector, FLAT_SEGMENTS[selector & ~7])
        for number in range(16):
            self.set_gpr(number, 0)
        self.rip = 0
        self.rflags = INITIAL_FLAGS
        self.gdt.limit = GDT_LIMIT
        for number in (0, 1, 2, 3):
            self.dr[number] = 0
        for named, value in FPU_REGISTERS.items():
            code_of_error = held.uc_reg_write(self._uc, named, ctypes.byref(ctypes.c_uint64(value)))
            self._loaded_library.check("uc_reg_write", code_of_error)

    def reset(self) -> None:
        """The registers of a vCPU that has not executed yet: Xen's flat segments, the rest as after INIT."""
        self.load(self._pristine)

    def save(self) -> bytes:
        """All registers of the vCPU that executed last, to be loaded by this engine (not between versions)."""
        return ctypes.string_at(self.opened.env, SAVED_BYTES) + bytes(self.dr)

    def load(self, state: bytes) -> None:
        """What save() gave. CR3 comes with it, but translations stay: load_root."""
        ctypes.memmove(self.opened.env, state, SAVED_BYTES)
        debug = (ctypes.c_uint64 * 8).from_buffer_copy(state, SAVED_BYTES)
        if bytes(debug) != bytes(self.dr):
            self.set_debug_register(7, 0)
            for number in (0, 1, 2, 3, 6):
                self.dr[number] = debug[number]
            self.set_debug_register(7, debug[7])

    def activate(self, vcpu_id: int) -> None:
        """GDTR and LDTR are those of this vCPU from now on."""
        self._active = vcpu_id
        self.gdt.base = gdt_address(vcpu_id)
        self._load_ldt()

    def _load_ldt(self) -> None:
        entries = self.monitor.ldt_entries[self._active]
        self.ldt.base = ldt_address(self._active)
        self.ldt.limit = entries * 8 - 1 if entries else 0

    def _descriptors_changed(self, vcpu_id: int) -> None:
        if vcpu_id == self._active:
            self._load_ldt()
            self.flush()

    # ---- running

    def run(self, slice_ns: int, wake_fd: int = -1) -> None:
        """Execute until stop(), until `slice_ns` are over, until `wake_fd` can be read, or until a handler raises."""
        watch = self._watch
        if watch is None:
            watch = self._watch = Watch(self._hooks.stubs, self.opened)
        if not watch.begin(slice_ns, wake_fd):
            return
        code = self._emu_start(self._uc, self.rip, 0, 0, 0)
        watch.end()
        raised = self._hooks.raised
        if raised is not None:
            self._hooks.raised = None
            raise raised
        if code:
            raise EngineFailed("uc_emu_start", code, self._loaded_library.held.uc_strerror(code).decode())

    def stop(self) -> None:
        """Let run() return soon, between two instructions. From a handler or any thread; one that comes when nothing
        runs is forgotten.
        """
        self._stop_request.value = 1
        self._exit_request.value = 1
        self._countdown.value = 0xFFFF

    # ---- time

    def read_tsc(self) -> int:
        """The guest's time stamp counter now."""
        return (time_stamps.read() + self.tsc_offset) & 0xFFFF_FFFF_FFFF_FFFF
