"""One end of a split device: reads the peer's state, steps the table, calls the driver, writes its own state.

One task runs a device (`run`). Everything else (the peer's watch, `close`, `reopen`, `fail`, the bus) only
leaves a note and wakes that task. The note of a watch is one bit: however often a peer rewrites its state,
the task reads it once a turn (XSA-349).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

import anyio

from kernel.ledger import owned_by
from kernel.parking import Broadcast, Latch
from kernel.rate_limit import RateLimit
from kernel.xenbus.drivers import (
    ClosedByPeer,
    ClosedByUs,
    DeviceClosed,
    DeviceFailed,
    DeviceRemoved,
    Keys,
    PeerDomainGone,
    PeerGone,
    reason_of,
)
from kernel.xenbus.folder import is_gone, read_folder, write_error
from kernel.xenbus.state_node import ENDS, ToolstackCloses, read_state, write_state
from kernel.xenbus.states import BadPeerState, Side, XenbusState, parse_state
from kernel.xenbus.table import PEER_EVENTS, REOPENS_AT, Action, Event, step
from kernel.xenstore.errors import StoreConnectionBroken, StoreError

if TYPE_CHECKING:
    from kernel.kernel import Kernel

TAKE_DOWN_SECONDS: Final = 1.0
"""How long a driver may take to give back what it holds when its kernel ends."""

_HOLDING: Final = (XenbusState.Connected, XenbusState.Closing)
"""states of a peer that may have mapped something"""

_PEERS: Final = {Side.FRONTEND: Side.BACKEND.value, Side.BACKEND: Side.FRONTEND.value}


class Device(ABC):
    """The shell of one end of a device.

    path: the own folder in XenStore. keys: what was in it when the driver started. own, peer: the states last
    written and last read. closed: why the device is not connected any more (None before, and once it is begun
    again).
    """

    side: ClassVar[Side]

    def __init__(self, kernel: Kernel, path: str, peer_keys: Sequence[str] | None) -> None:
        self.kernel = kernel
        self.path = path
        self.keys: Keys = {}
        self.peer_path = ""
        self.peer_domid = -1
        self.own = XenbusState.Unknown
        self.peer = XenbusState.Unknown
        self.closed: DeviceClosed | None = None
        self._peer_keys = peer_keys
        self._wanted = True
        self._again = False
        self._engaged = False
        self._look_at_own = False
        self._errors = RateLimit(kernel.clock.now_ns)  # a peer causes them as it likes
        self._notes: deque[tuple[Event, Exception | None]] = deque()
        self._woken = Latch()
        self._changed = Broadcast()

    def close(self) -> None:
        """Close the device from this end; `wait_closed` waits for the peer to agree."""
        self._note(Event.CLOSE)

    def reopen(self) -> None:
        """Begin a closed device anew once the peer has closed, too; `wait_connected` waits for that."""
        self._again = True
        self._note(Event.REOPEN)

    def fail(self, error: Exception) -> None:
        """The driver cannot go on: report `error` and close."""
        self._note(Event.FAIL, error)

    def removed(self) -> None:
        """The own folder has vanished (the bus tells)."""
        self._note(Event.REMOVED)

    def own_folder_changed(self) -> None:
        """The toolstack has written to the own folder (the bus tells): it may want the device closed."""
        self._look_at_own = True
        self._woken.set()

    async def wait_connected(self) -> None:
        """Return when the device is connected. Raises DeviceClosed when it has ended instead."""
        while self.own is not XenbusState.Connected or self.closed is not None:
            if self.closed is not None and not self._again:
                raise self.closed
            await self._changed.wait()

    async def wait_closed(self) -> DeviceClosed:
        """Return why the device was closed, once both the driver and the store know of it."""
        while self.closed is None or self.own not in (XenbusState.Closed, XenbusState.Unknown):
            await self._changed.wait()
        return self.closed

    async def wait_released(self) -> None:
        """Return when the peer, too, has closed, and so has let go of what it was granted; at once if it was
        never connected to, or if it is a frontend without a driver that could close.
        """
        while not self._is_released():
            await self._changed.wait()

    def _is_released(self) -> bool:
        if self.closed is None:
            return False
        if self.own is XenbusState.Closing:
            return self.side is Side.BACKEND and self.peer is XenbusState.Initialising
        return self.own is XenbusState.Unknown or (
            self.own is XenbusState.Closed and self.peer not in _HOLDING
        )

    async def run(self) -> None:
        """Run the device until its folder is gone. Errors stay inside: they close the device and are
        reported.
        """
        self.kernel.devices[self] = None
        try:
            with owned_by(self.path):
                await self._run()
        except Exception as error:
            await self._report(error)
            self.closed = self.closed or DeviceFailed(self.path, error)
        finally:
            self.own = XenbusState.Unknown
            self.closed = self.closed or ClosedByUs(self.path)
            with anyio.move_on_after(TAKE_DOWN_SECONDS, shield=True):
                await self._take_down()
            self._log_missed_errors()
            self.kernel.devices.pop(self, None)
            self._changed.announce()

    async def _run(self) -> None:
        try:
            self.keys = await read_folder(self.kernel.store, self.path)
        except StoreError as error:
            if not is_gone(error):
                raise
            self.closed = DeviceRemoved(self.path)
            return
        self.peer_path, self.peer_domid = self._find_peer(self.keys)
        self.own = parse_state(f"{self.path}/state", self.keys.get("state", ""))
        self._again = self.own is not XenbusState.Initialising  # a driver before us did not get to the end
        self._make_driver()
        await self._apply(Event.START)
        if self.own is XenbusState.Closed:
            await self._rest()
        async with self.kernel.store.watch(f"{self.peer_path}/state", self._woken.set):
            while self.own is not XenbusState.Unknown:
                await self._woken.wait()
                await self._turn()

    async def _turn(self) -> None:
        """React to all notes, then to the peer's state until that changes nothing any more."""
        while self._notes:
            event, error = self._notes.popleft()
            await self._apply(event, error)
        if self._look_at_own:
            await self._heed_toolstack()
        if self.own is not XenbusState.Unknown:
            await self._heed_peer()

    async def _heed_toolstack(self) -> None:
        self._look_at_own = False
        found = await read_state(self.kernel.store, self.path)
        if found is XenbusState.Closing is not self.own:
            await self._apply(Event.DETACH)

    async def _heed_peer(self) -> None:
        before = self.peer
        try:
            self.peer = await read_state(self.kernel.store, self.peer_path)
        except BadPeerState as error:
            await self._apply(Event.FAIL, error)
            return
        if self.peer is not before:
            self._changed.announce()
        if self.peer is XenbusState.Unknown and not await self._is_there():
            await self._apply(Event.REMOVED)
            return
        while await self._settle():
            pass

    async def _is_there(self) -> bool:
        """Whether the own folder still is."""
        return await read_state(self.kernel.store, self.path) is not XenbusState.Unknown

    async def _settle(self) -> bool:
        """React to the peer's state as last read. Whether that has led to a state from which to go on: from
        Connected only a state that is read anew leads anywhere.
        """
        before = self.own
        await self._apply(self._due())
        return self.own not in (before, XenbusState.Unknown, XenbusState.Connected)

    def _due(self) -> Event:
        """The event that the peer's state, as last read, amounts to."""
        if self.own is XenbusState.Closed and self._wanted:
            comes_back = self.side is Side.FRONTEND and self.peer is XenbusState.InitWait
            if comes_back or (self._again and self.peer in REOPENS_AT[self.side]):
                return Event.REOPEN
        return PEER_EVENTS[self.peer]

    async def _apply(self, event: Event, error: Exception | None = None) -> None:
        """Step the table: the action, then the next state. What goes wrong on the way is an event, too."""
        if event is Event.REOPEN and self._defer_reopening():
            return
        transition = step(self.side, self.own, event)
        if transition.next in ENDS:
            self._note_end(event, error)
        try:
            await self._perform(transition.action, error)
            await self._enter(transition.next, write=event is not Event.DETACH)
        except ToolstackCloses:
            await self._apply(Event.DETACH)
        except StoreConnectionBroken:
            raise
        except StoreError as found:
            if is_gone(found) and not await self._is_there():
                await self._apply(Event.REMOVED)
            else:
                await self._fail(event, found)
        except Exception as found:
            await self._fail(event, found)

    async def _fail(self, event: Event, error: Exception) -> None:
        if event is Event.FAIL:
            raise error
        await self._apply(Event.FAIL, error)

    def _defer_reopening(self) -> bool:
        """Whether REOPEN has to wait for the peer; `_due` raises it again when the peer is ready."""
        self._again = self._wanted = True
        return self.own is not XenbusState.Closed or self.peer not in REOPENS_AT[self.side]

    def _note_end(self, event: Event, error: Exception | None) -> None:
        if event is Event.PEER_GONE:
            self._note_peer_gone()
        elif self.closed is None and self.own is not XenbusState.Closed:
            self.closed = reason_of(event, self.path, error)
        if event in (Event.CLOSE, Event.FAIL, Event.PEER_GONE):
            self._wanted = self._again = False

    def _note_peer_gone(self) -> None:
        """Also of a peer that had closed before: it might have come back, and will not now."""
        if self._again or self.closed is None or isinstance(self.closed, ClosedByPeer):
            self.closed = PeerGone(self.path, PeerDomainGone(_PEERS[self.side], self.peer_domid))

    async def _perform(self, action: Action, error: Exception | None) -> None:
        match action:
            case Action.CLOSE | Action.REMOVE:
                await self._take_down()
            case Action.REPORT if error is not None:
                await self._report(error)
            case Action.NONE | Action.REPORT:
                pass
            case _:
                await self._drive(action)

    async def _enter(self, state: XenbusState, *, write: bool) -> None:
        if state is self.own:
            return
        if write and state is not XenbusState.Unknown:
            await write_state(self.kernel.store, self.path, self.own, state)
        self.own = state
        if state not in ENDS:
            self.closed, self._again = None, False
        self._changed.announce()
        if state is XenbusState.Closed:
            await self._rest()

    async def _read_peer_keys(self) -> Keys:
        return await read_folder(self.kernel.store, self.peer_path, self._peer_keys)

    async def _take_down(self) -> None:
        """Let the driver give back what it took, if it took anything; an error of it is reported, no more."""
        if not self._engaged:
            return
        self._engaged = False
        try:
            await self._disengage()
        except Exception as error:
            await self._report(error)

    async def _report(self, error: Exception) -> None:
        if self._errors.allows():
            self._log_missed_errors()
            self.kernel.log(f"xenbus: {self.path}: {error}")
        try:
            await write_error(self.kernel.store, self.path, error)
        except StoreConnectionBroken:
            return

    def _log_missed_errors(self) -> None:
        if missed := self._errors.take_missed():
            self.kernel.log(f"xenbus: {self.path}: {missed} errors were not logged")

    def _note(self, event: Event, error: Exception | None = None) -> None:
        if (event, error) not in self._notes:
            self._notes.append((event, error))
        self._woken.set()

    @abstractmethod
    def _find_peer(self, keys: Keys) -> tuple[str, int]:
        """The peer's folder and domain, as the toolstack wrote them into the own folder."""

    @abstractmethod
    def _make_driver(self) -> None:
        """Make the driver; its factory may look at `keys`."""

    @abstractmethod
    async def _drive(self, action: Action) -> None:
        """The actions of this side that call its driver to go forward, or to wait no longer."""

    @abstractmethod
    async def _rest(self) -> None:
        """The device is Closed: see whether that is for good."""

    @abstractmethod
    async def _disengage(self) -> None:
        """Tell the driver that its connection has ended."""
