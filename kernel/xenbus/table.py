"""The XenBus handshake as data: (side, own state, event) -> (action, next own state).

Follows public/io/xenbus.h and blkif.h, and what Linux 6.1's blkfront and blkback were recorded to do on Xen
4.17. An event is the peer's state as just read, or something that happened at this end. The next state is
written to the own `state` node, except where it is entered without writing (see `Next`). What is not listed
cannot happen, or must not: `step` raises.

The whole life of a device::

    frontend  1 ---------------> 3 ------------> 4 --> 5 ------> 6
    backend   1 --> 2 (features)    --> 4 (sizes)      --> 5        --> 6
"""

from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from kernel.errors import KernelError
from kernel.xenbus.states import Side, XenbusState


class Event(Enum):
    """What a device reacts to. The first nine say that the peer's `state` was read and what it is."""

    PEER_GONE = "peer: no node"
    PEER_INITIALISING = "peer: Initialising"
    PEER_INITWAIT = "peer: InitWait"
    PEER_INITIALISED = "peer: Initialised"
    PEER_CONNECTED = "peer: Connected"
    PEER_CLOSING = "peer: Closing"
    PEER_CLOSED = "peer: Closed"
    PEER_RECONFIGURING = "peer: Reconfiguring"
    PEER_RECONFIGURED = "peer: Reconfigured"
    START = "driver starts"
    CLOSE = "close asked for"
    REOPEN = "wanted again"
    FAIL = "driver failed"
    DETACH = "toolstack set Closing"
    OFFLINE = "toolstack set online=0"
    REMOVED = "own node removed"


class Action(Enum):
    """What the shell does before it enters the next state."""

    NONE = "-"
    ANNOUNCE = "write features"
    NEGOTIATE = "grant rings, write keys"
    CONNECT = "connect"
    REVISE = "read the peer's keys again"
    CLOSE = "take down"
    RESTART = "take down, write features"
    GIVE_UP = "give up waiting"
    REPORT = "write the error node"
    REMOVE = "take down, forget the device"


class Transition(NamedTuple):
    """What to do, and the own state after it. The shell writes that state unless it is the one that it is in
    already, it is Unknown (the node is gone), or the event says that somebody else wrote it (DETACH).
    """

    action: Action
    next: XenbusState


class HandshakeError(KernelError):
    """The table has no entry: an event that must not come in this state."""

    def __init__(self, side: Side, own: XenbusState, event: Event) -> None:
        super().__init__(f"{side.value} in {own.name}: unexpected event ({event.value})")
        self.side = side
        self.own = own
        self.event = event


PEER_EVENTS: Final = tuple(Event)[: len(XenbusState)]
"""The event for each state of the peer, by its number."""

_S = XenbusState
_E = Event
_A = Action

Rows = dict[Event, tuple[Action, XenbusState | None]]


def _stay(*events: Event) -> Rows:
    return dict.fromkeys(events, (_A.NONE, None))


def _go(action: Action, state: XenbusState, *events: Event) -> Rows:
    return dict.fromkeys(events, (action, state))


_RECONFIGURATION = (_E.PEER_RECONFIGURING, _E.PEER_RECONFIGURED)
_CLOSED_BY_PEER = (_E.PEER_CLOSING, _E.PEER_CLOSED)
_ALIVE = (_E.PEER_INITIALISING, _E.PEER_INITWAIT, _E.PEER_INITIALISED, _E.PEER_CONNECTED, *_RECONFIGURATION)

_FRONTEND: dict[XenbusState, Rows] = {
    _S.Initialising: {
        # A backend that is Closed here has not yet noticed that we are back; one that is Connected serves
        # whoever used the device before us and will notice, too.
        **_stay(*_ALIVE, _E.PEER_CLOSED, _E.START, _E.REOPEN),
        # Both ends' nodes are made together: a backend without any has lost them with its domain.
        **_go(_A.GIVE_UP, _S.Closed, _E.PEER_GONE),
        **_go(_A.NEGOTIATE, _S.Initialised, _E.PEER_INITWAIT),
        **_go(_A.CLOSE, _S.Closed, _E.PEER_CLOSING, _E.CLOSE),
    },
    _S.Initialised: {
        **_stay(*_ALIVE),
        **_go(_A.CONNECT, _S.Connected, _E.PEER_CONNECTED),
        **_go(_A.CLOSE, _S.Closed, _E.PEER_GONE, *_CLOSED_BY_PEER),
        **_go(_A.NONE, _S.Closing, _E.CLOSE),
        # The device was left like this by a driver that did not close it: begin from Closed.
        **_go(_A.NONE, _S.Closed, _E.START),
    },
    _S.Connected: {
        # InitWait: a backend that comes back without having closed attaches to the same ring again, as
        # Linux's does.
        **_stay(*_ALIVE),
        # The state written again while connected: sizes have changed.
        **_go(_A.REVISE, _S.Connected, _E.PEER_CONNECTED),
        **_go(_A.CLOSE, _S.Closed, _E.PEER_GONE, *_CLOSED_BY_PEER),
        **_go(_A.NONE, _S.Closing, _E.CLOSE),
        **_go(_A.NONE, _S.Closed, _E.START),
    },
    _S.Closing: {
        **_stay(*_ALIVE, _E.CLOSE),
        **_go(_A.CLOSE, _S.Closed, _E.PEER_GONE, *_CLOSED_BY_PEER),
        **_go(_A.NONE, _S.Closed, _E.START),
    },
    _S.Closed: {
        **_stay(*_ALIVE, *_CLOSED_BY_PEER, _E.CLOSE, _E.START),
        # A backend that has closed may come back; one whose nodes are gone does not.
        **_go(_A.GIVE_UP, _S.Closed, _E.PEER_GONE),
        **_go(_A.NONE, _S.Initialising, _E.REOPEN),
    },
}

_BACKEND: dict[XenbusState, Rows] = {
    _S.Initialising: {
        **_go(_A.ANNOUNCE, _S.InitWait, _E.START),
        **_go(_A.NONE, _S.Closed, _E.CLOSE),
    },
    _S.InitWait: {
        # Closed: a frontend that has not connected yet, or not again; it begins when it likes.
        **_stay(*_ALIVE, _E.PEER_CLOSED),
        # Some frontends (network) go to Connected without passing Initialised.
        **_go(_A.CONNECT, _S.Connected, _E.PEER_INITIALISED, _E.PEER_CONNECTED),
        **_go(_A.NONE, _S.Closing, _E.PEER_CLOSING, _E.CLOSE),
    },
    _S.Initialised: {},
    _S.Connected: {
        **_stay(*_ALIVE),
        # A frontend that starts over without having closed: its old ring is worth nothing any more.
        **_go(_A.RESTART, _S.InitWait, _E.PEER_INITIALISING),
        **_go(_A.NONE, _S.Closing, _E.PEER_CLOSING, _E.CLOSE),
        **_go(_A.CLOSE, _S.Closed, _E.PEER_CLOSED),
    },
    _S.Closing: {
        **_stay(*_ALIVE, _E.PEER_CLOSING, _E.CLOSE),
        **_go(_A.CLOSE, _S.Closed, _E.PEER_CLOSED),
    },
    _S.Closed: {
        # Initialised, Connected, Closing: a frontend of before our restart, which has yet to close.
        **_stay(*_ALIVE, *_CLOSED_BY_PEER, _E.CLOSE, _E.START),
        **_go(_A.ANNOUNCE, _S.InitWait, _E.PEER_INITIALISING, _E.REOPEN),
        **_go(_A.REMOVE, _S.Unknown, _E.OFFLINE),
    },
}


def _all_rows() -> dict[tuple[Side, XenbusState, Event], Transition]:
    rows: dict[tuple[Side, XenbusState, Event], Transition] = {}
    for side, states in ((Side.FRONTEND, _FRONTEND), (Side.BACKEND, _BACKEND)):
        for own, events in states.items():
            for event, (action, after) in (_everywhere(side, own) | events).items():
                rows[side, own, event] = Transition(action, own if after is None else after)
    return rows


def _everywhere(side: Side, own: XenbusState) -> Rows:
    """What holds in every state: a node that vanishes ends the device; a driver that fails closes it and says
    why.
    """
    rows = _go(_A.REMOVE, _S.Unknown, _E.REMOVED)
    closing = own in (_S.Closing, _S.Closed)
    rows |= _go(_A.REPORT, own if closing else _S.Closing, _E.FAIL)
    if side is Side.BACKEND:
        rows |= _go(_A.REMOVE, _S.Unknown, _E.PEER_GONE)
        rows |= _go(_A.NONE, _S.Closing, _E.DETACH)
        if own not in (_S.Initialising, _S.Closed):
            rows |= _go(
                _A.NONE, _S.Closed, _E.START
            )  # left by a driver that died: let the frontend close first
    return rows


TRANSITIONS: Final = MappingProxyType(_all_rows())
"""The whole table."""

REOPENS_AT: Final = MappingProxyType(
    {
        Side.FRONTEND: frozenset({_S.Initialising, _S.InitWait, _S.Closed}),
        Side.BACKEND: frozenset({_S.Initialising, _S.Closed}),
    }
)
"""The peer's states in which a closed device that is wanted again may be begun anew (event REOPEN)."""


def step(side: Side, own: XenbusState, event: Event) -> Transition:
    """What `event` means for this end in state `own`. Raises HandshakeError if that is not listed."""
    transition = TRANSITIONS.get((side, own, event))
    if transition is None:
        raise HandshakeError(side, own, event)
    return transition
