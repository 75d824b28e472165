"""All bells that ring for one process, and the routes by which it rings for others."""

from __future__ import annotations

import os
import select
from typing import Final

from hypervisor.vcpu.process.doorbell import BellMemory, Listener, Ringer
from hypervisor.vcpu.process.wire import TO_HYPERVISOR, Change
from ringbuffers.atomics import fence

FROM_HYPERVISOR: Final = 0


class Listening:
    """The bells that this process listens to; `fileno` becomes readable when it was woken while it slept."""

    def __init__(self, hypervisor: Listener) -> None:
        self.hypervisor = hypervisor
        self._listeners = {FROM_HYPERVISOR: hypervisor}
        self._all = [hypervisor]
        self._pipes = select.epoll()
        self._pipes.register(hypervisor.pipe, select.EPOLLIN)
        self._asleep = False
        self._late: list[int] = []
        self.fileno = self._pipes.fileno

    def collect(self) -> list[int]:
        """The ports that were rung for since the last time."""
        rung, self._late = self._late, []
        for listener in self._all:
            rung += listener.collect()
        return rung

    def put_back(self) -> None:
        """Before a sync: let those be found after it that it is about to tell of."""
        for listener in self._all:
            listener.put_back()

    def fall_asleep(self) -> None:
        """Be woken from now on. Collect once more before sleeping."""
        self._asleep = True
        for listener in self._all:
            listener.fall_asleep()
        fence()

    def awake(self) -> None:
        """Be woken no more."""
        self._asleep = False
        for listener in self._all:
            listener.awake()

    def drain(self) -> None:
        """Forget the wake-ups so far."""
        for listener in self._all:
            listener.drain()

    def listen(self, change: Change) -> None:
        """ChangeKind.LISTEN."""
        if change.fds:
            memory, pipe = change.fds
            self._listeners[change.number] = listener = Listener(mapped(memory), pipe, set())
            if self._asleep:
                listener.fall_asleep()
                fence()
            self._all = list(self._listeners.values())
            self._pipes.register(pipe, select.EPOLLIN)
        bound = self._listeners[change.number].bound
        if bound is not None:
            bound.add(change.gpfn)

    def go_deaf(self, change: Change) -> None:
        """ChangeKind.DEAF."""
        listener = self._listeners.get(change.number)
        if listener is None or listener.bound is None:
            return
        self._late += [port for port in listener.collect() if port != change.gpfn or change.pages]
        listener.put_back()
        listener.bound.discard(change.gpfn)
        if not listener.bound:
            del self._listeners[change.number]
            self._all = list(self._listeners.values())
            self._pipes.unregister(listener.pipe)
            listener.close()


class Routes:
    """By which bell an event for each port reaches the other end. sent: events that did so without the
    hypervisor. ring_hypervisor: rings for a port by way of it.
    """

    def __init__(self, to_hypervisor: Ringer) -> None:
        self.sent = 0
        self.ring_hypervisor = to_hypervisor.ring
        self._to_hypervisor = to_hypervisor
        self._ringers = {TO_HYPERVISOR: to_hypervisor}
        self._routes: dict[int, tuple[Ringer, int]] = {}

    def send(self, port: int) -> bool:
        """Ring; False if it takes a hypercall to send an event for this port."""
        route = self._routes.get(port)
        if route is None:
            return False
        ringer, far_port = route
        ringer.ring(far_port)
        if ringer is not self._to_hypervisor:
            self.sent += 1
        return True

    def ports(self) -> list[int]:
        """Those that are bound to another domain."""
        return list(self._routes)

    def ring(self, change: Change) -> None:
        """ChangeKind.RING."""
        if change.fds:
            memory, pipe = change.fds
            self._ringers[change.number] = Ringer(mapped(memory), pipe)
        self._routes[change.gpfn] = self._ringers[change.number], change.offset

    def silence(self, change: Change) -> None:
        """ChangeKind.SILENCE."""
        route = self._routes.pop(change.gpfn, None)
        if route is None:
            return
        ringer = route[0]
        if ringer is not self._to_hypervisor and all(
            ringer is not other for other, _ in self._routes.values()
        ):
            self._ringers = {number: other for number, other in self._ringers.items() if other is not ringer}
            ringer.close()


def mapped(memory_fd: int) -> BellMemory:
    """The pages of a bell; the descriptor is used up."""
    try:
        return BellMemory(memory_fd)
    finally:
        os.close(memory_fd)
