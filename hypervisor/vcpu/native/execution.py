"""A native domain's process, as the hypervisor sees it: one for all its vCPUs."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

import anyio

from hypervisor.abi.errno import XEN_EBUSY
from hypervisor.abi.vcpu import RUNSTATE_running
from hypervisor.errors import XenError
from hypervisor.pv.tally import TALLY_BYTES, Tally
from hypervisor.sealed_memfd import sealed_memfd
from hypervisor.vcpu.native.start import NativeStart
from hypervisor.vcpu.native.turn import TURN_PORT
from hypervisor.vcpu.process.confinement import Confinement
from hypervisor.vcpu.process.execution import Image, ProcessVcpu
from hypervisor.vcpu.process.wire import ChangeKind, ChannelBroken, Request

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.native.pcpus import Contender, Pcpus
    from hypervisor.vcpu.process.bells import Bells
    from hypervisor.vcpu.process.child import Child
    from hypervisor.vcpu.process.ends import Ends
    from hypervisor.vcpu.process.spawner import Spawner
    from hypervisor.vcpu.state import Vcpu

ENTRY: Final = "hypervisor.vcpu.native.process:enter"
OPEN_FILES: Final = 4096
DATA_BYTES: Final = 2 << 30
"""of the engine: what it has translated above all"""
STATE_BYTES: Final = 64 << 20
"""a domain's state in text at most"""
AUDIT_BYTES: Final = 1 << 20
"""what an audit finds, at most"""


class NotRunning(XenError):
    """There is no process of this domain that could be asked for anything, or it has something to do already."""

    default_errno = XEN_EBUSY

    def __init__(self, domid: int) -> None:
        super().__init__(f"domain {domid} has no process that executes it")
        self.domid = domid


def native_image(domain: Domain, *, origin_ns: int, wall_clock_ns: int, p2m: bytes, outspoken: bool) -> Image:
    """What the process of `domain` executes. p2m: as in NativeStart."""
    contexts = {vcpu.id: vcpu.context.pack() for vcpu in domain.vcpus if vcpu.context is not None}
    start = NativeStart(
        domid=domain.domid,
        origin_ns=origin_ns,
        wall_clock_ns=wall_clock_ns,
        max_vcpus=len(domain.vcpus),
        max_pages=domain.max_pages,
        contexts=contexts,
        p2m=p2m,
        outspoken=outspoken,
        confinement=Confinement(open_files=OPEN_FILES, data_bytes=DATA_BYTES),
    )
    return Image(ENTRY, start.model_dump_json().encode())


class _Order:
    """Something that the process is to write down, whether somebody still waits for it or not. done: it has, or never
    will. written: what it was.
    """

    def __init__(self, most_bytes: int) -> None:
        self.done = anyio.Event()
        self.written: bytes | None = None
        self.fd = sealed_memfd(most_bytes)
        self._most_bytes = most_bytes

    def take(self, size: int) -> bytes:
        """It says that it has written so many bytes. Raises ChannelBroken."""
        if size > self._most_bytes:
            raise ChannelBroken(f"it has written {size} bytes, expected at most {self._most_bytes}")
        self.written = os.pread(self.fd, size, 0)
        return self.written

    def finish(self) -> None:
        """Whoever waits goes on."""
        os.close(self.fd)
        self.done.set()


class NativeVcpu(ProcessVcpu):
    """vCPU 0 stands for all of them. tally: what the domain has done."""

    posts_always: ClassVar[bool] = True

    def __init__(
        self,
        vcpu: Vcpu,
        image: Image,
        spawner: Spawner,
        bells: Bells,
        on_failure: Callable[[Vcpu, str], None],
        *,
        pcpus: Pcpus,
    ) -> None:
        super().__init__(vcpu, image, spawner, bells, on_failure)
        self._pcpus = pcpus
        self._contender: Contender | None = None
        self._ready = False
        self._hop: _Order | None = None
        self._audit: _Order | None = None
        self._tally_fd = sealed_memfd(TALLY_BYTES)
        self.tally = Tally.of(memoryview(mmap.mmap(self._tally_fd, TALLY_BYTES)))

    @property
    def sleeps(self) -> bool:
        """Whether no vCPU of the domain has anything to do."""
        return bool(self.tally.blocked)

    async def run(self) -> None:
        """Execute the domain from its first unpause on."""
        try:
            await super().run()
        finally:
            os.close(self._tally_fd)
            self.tally = self.tally.copy()  # the mapping would hold a descriptor of its own
            for order in (self._hop, self._audit):
                if order is not None:
                    order.finish()

    async def hop(self) -> None:
        """Let another process execute the domain from the next slice border on. Returns when it does so; whoever does
        not wait for that changes nothing. Raises NotRunning when there is none that could, or the domain ends; Busy
        while processes of others have mapped what they may only read.
        """
        if self._changes is None or self._hop is not None or not self._ready:
            raise NotRunning(self._domain.domid)
        if self._domain.moves is not None:
            self._domain.moves.succeed()
        self._hop = hop = _Order(STATE_BYTES)
        self._changes.order(ChangeKind.SAVE, hop.fd)
        await hop.done.wait()
        if self._domain.stopped:
            raise NotRunning(self._domain.domid)

    async def audit(self) -> list[str]:
        """Let the process walk all page tables of the domain at the next slice border and count everything again: what
        does not agree, in words. Raises NotRunning when there is none that could, or it ends meanwhile.
        """
        if self._changes is None or self._audit is not None:
            raise NotRunning(self._domain.domid)
        self._audit = audit = _Order(AUDIT_BYTES)
        self._changes.order(ChangeKind.AUDIT, audit.fd)
        await audit.done.wait()
        if audit.written is None:
            raise NotRunning(self._domain.domid)
        return audit.written.decode("utf-8", "replace").splitlines()

    def _audited(self, request: Request) -> None:
        if self._audit is None:
            raise ChannelBroken("it has counted what nobody has asked for")
        self._audit.take(request.args[0])
        self._audit.finish()
        self._audit = None

    def _resumed(self, request: Request) -> Image:
        if self._hop is None:
            raise ChannelBroken("it has saved a state that nobody has asked for")
        state = self._hop.take(request.args[0])
        self._ready = False
        start = NativeStart.model_validate_json(self._image.payload)
        return Image(
            ENTRY, start.model_copy(update={"state": state, "outspoken": False}).model_dump_json().encode()
        )

    def _is_ready(self) -> None:
        if not self._ready and self._hop is not None:
            self._hop.finish()
            self._hop = None
        self._ready = True

    @contextmanager
    def _scheduled(self, ends: Ends, child: Child) -> Iterator[None]:
        """It runs when it is its turn."""
        header, rouse = ends.ringer.memory.header, ends.ringer.rouse
        self._contender = contender = self._pcpus.add(
            self._domain,
            header,
            ring=rouse,
            cpu_ns=lambda: self.cpu_ns,
            hold=lambda held: self._hold(child, held),
        )
        try:
            yield
        finally:
            self._contender = None
            self._pcpus.remove(contender)

    def _hold(self, child: Child, held: bool) -> None:
        if held:
            child.pause()
        elif self._domain.executing:
            child.resume()

    def _send(self, port: int) -> None:
        if port != TURN_PORT:
            super()._send(port)
        elif self._contender is not None:
            self._pcpus.heard(self._contender)

    def _prepare(self) -> None:
        """The process publishes time itself."""
        self.vcpu.enter_runstate(RUNSTATE_running, self._domain.machine.host.now_ns())

    def _descriptors(self) -> Sequence[int]:
        ledger = self._domain.ledger
        assert ledger is not None  # a PV domain has one
        return ledger.fd, self._tally_fd

    def _caller(self, request: Request) -> Vcpu:
        vcpus = self._domain.vcpus
        if request.vcpu >= len(vcpus):
            raise ChannelBroken(f"a request of vCPU {request.vcpu}, expected 0 to {len(vcpus) - 1}")
        vcpu = vcpus[request.vcpu]
        vcpu.root = request.root
        return vcpu
