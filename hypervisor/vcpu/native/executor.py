"""Executes the vCPUs of a native domain: slices of the engine, and at their borders all else.

There is one engine for all vCPUs of a domain, which switches between them: its atomic instructions are atomic within
it alone. At slice borders, where the guest stands still, events are entered into shared_info, timers expire, and what
the hypervisor has changed is done; they are the points at which the domain can be saved.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final, TextIO

from pydantic import BaseModel, ConfigDict

from hypervisor.abi.vcpu import RUNSTATE_blocked, RUNSTATE_runnable, RUNSTATE_running
from hypervisor.pv import runstate, timers, traps
from hypervisor.pv.state import DomainState, dump_domain, load_domain
from hypervisor.pv.vcpu import PvVcpu
from hypervisor.vcpu.native.processor_state import ProcessorState, dump_processor, load_processor
from hypervisor.vcpu.process.wire import RequestKind

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.vcpu.native.engine import Engine
    from hypervisor.vcpu.native.residence import Residence
    from hypervisor.vcpu.native.turn import Turn
    from hypervisor.vcpu.process.connection import Connection

SLICE_NS: Final = 4_000_000
"""how long the engine runs before it is looked whether there is something to do"""
YIELD_S: Final = 0.0001
"""how long a domain that yields waits for a bell, if no other vCPU of it has anything to do"""
NANOSECONDS: Final = 1_000_000_000
AUDIT_BYTES: Final = 1 << 20
"""of what an audit has found, so much is told"""


class SavedDomain(BaseModel):
    """A native domain between two processes. processors: the registers of each vCPU that has executed."""

    model_config = ConfigDict(extra="forbid")

    domain: DomainState
    processors: dict[int, ProcessorState]


class Executor:
    """The engine's handler, and the loop around it."""

    def __init__(
        self,
        connection: Connection,
        residence: Residence,
        engine: Engine,
        domain: PvDomain,
        turn: Turn,
    ) -> None:
        self.vcpu: PvVcpu = domain.vcpus[0]
        self.domain = domain
        self._connection = connection
        self._residence = residence
        self._engine = engine
        self._turn = turn
        self._tally = domain.tally
        self._enter = domain.hypercalls.enter
        self._saved: dict[int, Any] = {}
        self._loaded: PvVcpu | None = None

    # ---- what the engine meets

    def syscall(self) -> None:
        """SYSCALL: a hypercall of the guest's kernel, or a system call of its user mode."""
        vcpu = self.vcpu
        if vcpu.in_kernel:
            self._enter(vcpu)
        else:
            self._tally.syscalls += 1
            traps.syscall(vcpu)
        if vcpu.upcall_due:
            traps.deliver_upcall(vcpu)

    def sysenter(self) -> None:
        """SYSENTER."""
        traps.sysenter(self.vcpu)

    def exception(self, vector: int, error_code: int) -> None:
        """A fault or trap of the processor."""
        self._tally.traps[vector] += 1
        vcpu = self.vcpu
        traps.exception(vcpu, vector, error_code, self._engine.cr2)
        if vcpu.upcall_due:
            traps.deliver_upcall(vcpu)

    def software_interrupt(self, vector: int, next_rip: int) -> None:
        """INT n."""
        self._tally.traps[vector] += 1
        traps.software_interrupt(self.vcpu, vector, next_rip)

    def invalid_opcode(self) -> None:
        """#UD."""
        self._tally.traps[6] += 1
        traps.invalid_opcode(self.vcpu)

    def cpuid(self) -> None:
        """CPUID without a prefix."""
        traps.cpuid(self.vcpu)

    # ---- the loop

    def run(self) -> None:
        """Until the hypervisor ends this process. Raises DomainCrash, and whatever a fault of ours raises."""
        engine, tally, domain, now_ns = self._engine, self._tally, self.domain, self.domain.now_ns
        rota, may_run = domain.rota, self._turn.may_run
        listening = self._connection.listening
        listening.fall_asleep()  # for good: a bell that rings while the engine runs is to stop it
        fd = listening.fileno()
        while True:
            self._attend()
            vcpu = rota.choose()
            if vcpu is None:
                self._idle()
                continue
            if rota.lonely:  # it polls for what another domain is to do, which needs a processor: GRUB
                self._sleep(YIELD_S)
                self._attend()
            if not may_run():
                self._wait()
                continue
            if vcpu is not self._loaded:
                self._switch(vcpu)
            traps.deliver_upcall(vcpu)
            tally.slices += 1
            now = now_ns()
            if vcpu.runstate != RUNSTATE_running:
                runstate.run(vcpu, now)
            domain.border_ns = border = _border(now, self._deadline())
            engine.run(max(0, border - now), fd)
            rota.used(now_ns() - now)

    def _attend(self) -> None:
        """Whatever has come since the last border."""
        self._connection.listening.drain()
        self._connection.collect(self.domain.ports.set_pending)
        if self._residence.save_fd is not None:
            self._save(self._residence.save_fd)
        if self._residence.audit_fd is not None:
            self._audit()
        now = self.domain.now_ns()
        for vcpu in self.domain.vcpus:
            deadline = vcpu.deadline_ns
            if deadline is not None and deadline <= now:
                timers.expire(vcpu, now)
            if vcpu.runstate == RUNSTATE_blocked and vcpu.runnable:
                runstate.enter(vcpu, RUNSTATE_runnable, now)

    def _deadline(self) -> int | None:
        """The earliest timer of any vCPU."""
        deadlines = [deadline for vcpu in self.domain.vcpus if (deadline := vcpu.deadline_ns) is not None]
        return min(deadlines) if deadlines else None

    def _switch(self, vcpu: PvVcpu) -> None:
        """Another vCPU's registers into the processor."""
        engine = self._engine
        if self._loaded is not None:
            traps.switch_out(self._loaded)
            self._saved[self._loaded.id] = engine.save()
        saved = self._saved.pop(vcpu.id, None)
        if saved is not None:
            engine.load(saved)
        else:
            engine.reset()
        self.vcpu = self._loaded = vcpu
        engine.activate(vcpu.id)
        traps.switch_in(vcpu)

    def _save(self, fd: int) -> None:
        """Write the state down: another process goes on with it, and this one is ended."""
        if self._loaded is not None:
            traps.switch_out(self._loaded)
            self._saved[self._loaded.id] = self._engine.save()
        processors = {}
        for vcpu_id, registers in self._saved.items():
            self._engine.load(registers)
            processors[vcpu_id] = dump_processor(self._engine)
        saved = SavedDomain(domain=dump_domain(self.domain), processors=processors)
        state = saved.model_dump_json().encode()
        with open(fd, "wb") as file:
            file.write(state)
        self._connection.request(RequestKind.SAVED, args=(len(state),))

    def _audit(self) -> None:
        """Count everything again, and say what does not agree."""
        domain, fd = self.domain, self._residence.audit_fd
        assert fd is not None
        self._residence.audit_fd = None
        found = "\n".join(domain.page_tables.audit(domain.vcpus)).encode()[:AUDIT_BYTES]
        with open(fd, "wb") as file:
            file.write(found)
        self._connection.request(RequestKind.AUDITED, args=(len(found),))

    def go_on(self, saved: SavedDomain) -> None:
        """With what another process has written down. Whoever may have rung meanwhile has rung: an event too many
        harms nobody.
        """
        load_domain(self.domain, saved.domain)
        for vcpu_id, state in saved.processors.items():
            load_processor(self._engine, state)
            self._saved[vcpu_id] = self._engine.save()
        for port in self._connection.routes.ports():
            self.domain.ports.set_pending(port)

    def ready(self) -> None:
        """The hypervisor learns that the domain is about to be executed."""
        self._connection.request(RequestKind.READY)

    def _idle(self) -> None:
        """No vCPU has anything to do: wait for a bell or a timer."""
        self._stand()
        deadline = self._deadline()
        timeout = None if deadline is None else max(0, deadline - self.domain.now_ns()) / NANOSECONDS
        self._tally.blocked = 1
        self._turn.blocked()
        self._sleep(timeout)
        self._turn.woke()
        self._tally.blocked = 0

    def _wait(self) -> None:
        """Others have the processors: wait for a turn, or for a bell."""
        self._stand()
        self._turn.wait(self._sleep)

    def _stand(self) -> None:
        if self._loaded is not None:
            runstate.stand(self._loaded, self.domain.now_ns())

    def _sleep(self, timeout: float | None = None) -> None:
        select.select([self._connection.listening.fileno()], [], [], timeout)

    def report_registers(self, output: TextIO) -> None:
        """What a domain that has crashed leaves behind, as Xen prints it."""
        cpu, vcpu = self._engine, self.vcpu
        mode = "kernel" if vcpu.in_kernel else "user"
        print(f"vcpu {vcpu.id}, guest {mode} mode, root {vcpu.root:#x}", file=output)
        for names in _REGISTERS:
            print("  ".join(f"{name:>6} {getattr(cpu, name):016x}" for name in names), file=output)
        output.flush()


def _border(now: int, deadline: int | None) -> int:
    return now + SLICE_NS if deadline is None else min(now + SLICE_NS, deadline)


_REGISTERS: Final = (
    ("rip", "rflags", "rsp"),
    ("rax", "rbx", "rcx"),
    ("rdx", "rsi", "rdi"),
    ("rbp", "r8", "r9"),
    ("r10", "r11", "r12"),
    ("r13", "r14", "r15"),
    ("cr2", "fs_base", "gs_base"),
)
