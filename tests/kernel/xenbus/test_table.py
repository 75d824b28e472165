"""The handshake's table over its full product: sides, own states, events."""

import itertools

import pytest

from kernel.xenbus.states import BadPeerState, Side, XenbusState, parse_state
from kernel.xenbus.table import PEER_EVENTS, REOPENS_AT, TRANSITIONS, Action, Event, HandshakeError, step

S = XenbusState
PRODUCT = list(itertools.product(Side, XenbusState, Event))
OWN_STATES = {
    Side.FRONTEND: {S.Initialising, S.Initialised, S.Connected, S.Closing, S.Closed},
    Side.BACKEND: {S.Initialising, S.InitWait, S.Initialised, S.Connected, S.Closing, S.Closed},
}
"""The states that an end can be in: what it writes, and what a backend's driver before it may have left."""


def test_every_triple_is_listed_or_raises() -> None:
    raised = 0
    for side, own, event in PRODUCT:
        if (side, own, event) in TRANSITIONS:
            assert step(side, own, event) == TRANSITIONS[side, own, event]
        else:
            with pytest.raises(HandshakeError) as caught:
                step(side, own, event)
            assert (caught.value.side, caught.value.own, caught.value.event) == (side, own, event)
            raised += 1
    assert len(PRODUCT) == 2 * 9 * 16
    assert raised + len(TRANSITIONS) == len(PRODUCT)


@pytest.mark.parametrize("side", Side)
def test_the_next_state_is_one_that_this_side_can_be_in(side: Side) -> None:
    for (row_side, own, _), (_, after) in TRANSITIONS.items():
        if row_side is side:
            assert own in OWN_STATES[side]
            assert after in OWN_STATES[side] | {S.Unknown}


@pytest.mark.parametrize("side", Side)
def test_a_state_of_the_peer_never_surprises_once_the_driver_has_started(side: Side) -> None:
    """Whatever a hostile peer writes, and when, there is an entry: a peer cannot bring up HandshakeError."""
    for own in OWN_STATES[side] - {S.Initialising if side is Side.BACKEND else None, S.Initialised}:
        for event in PEER_EVENTS:
            assert (side, own, event) in TRANSITIONS, (side, own, event)


def test_removal_and_failure_are_listed_everywhere() -> None:
    for side, states in OWN_STATES.items():
        for own in states:
            assert TRANSITIONS[side, own, Event.REMOVED].next is S.Unknown
            assert TRANSITIONS[side, own, Event.FAIL].action is Action.REPORT
            assert TRANSITIONS[side, own, Event.FAIL].next in (S.Closing, S.Closed)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("peer", XenbusState)
def test_reacting_to_an_unchanging_peer_comes_to_rest(side: Side, peer: XenbusState) -> None:
    """Also if the device is wanted again, which counts once."""
    for start in OWN_STATES[side]:
        own, again = start, True
        for _ in range(6):
            event = PEER_EVENTS[peer]
            if own is S.Closed and again and peer in REOPENS_AT[side]:
                event, again = Event.REOPEN, False
            transition = TRANSITIONS.get((side, own, event))
            if transition is None or transition.next in (own, S.Unknown):
                break
            own = transition.next
        else:
            pytest.fail(f"{side} goes round and round from {start} with its peer in {peer}")


def test_the_life_of_a_disk_as_recorded() -> None:
    """Xen 4.17, Linux 6.1: the states that both ends went through from attach to shutdown."""
    frontend, backend = S.Initialising, S.Initialising
    trace = [(frontend, backend)]

    def front(event: Event) -> None:
        nonlocal frontend
        frontend = step(Side.FRONTEND, frontend, event).next
        trace.append((frontend, backend))

    def back(event: Event) -> None:
        nonlocal backend
        backend = step(Side.BACKEND, backend, event).next
        trace.append((frontend, backend))

    back(Event.START)
    front(PEER_EVENTS[backend])
    back(PEER_EVENTS[frontend])
    front(PEER_EVENTS[backend])
    front(Event.CLOSE)
    back(PEER_EVENTS[frontend])
    front(PEER_EVENTS[backend])
    back(PEER_EVENTS[frontend])
    assert [(int(f), int(b)) for f, b in trace] == [
        (1, 1), (1, 2), (3, 2), (3, 4), (4, 4), (5, 4), (5, 5), (6, 5), (6, 6),
    ]  # fmt: skip


def test_a_detached_disk_skips_closing_at_the_frontend() -> None:
    assert step(Side.FRONTEND, S.Connected, Event.PEER_CLOSING) == (Action.CLOSE, S.Closed)
    assert step(Side.BACKEND, S.Connected, Event.DETACH) == (Action.NONE, S.Closing)
    assert step(Side.BACKEND, S.Closing, Event.PEER_CLOSED) == (Action.CLOSE, S.Closed)
    assert step(Side.BACKEND, S.Closed, Event.OFFLINE) == (Action.REMOVE, S.Unknown)


@pytest.mark.parametrize("text", ["", "9", "-1", "4 ", "04", "4\0", "x", "٤", "1" * 5000])
def test_what_is_no_state_is_named(text: str) -> None:
    with pytest.raises(BadPeerState) as caught:
        parse_state("device/vbd/1/state", text)
    assert caught.value.found == text
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("state", XenbusState)
def test_states_are_decimal_digits(state: XenbusState) -> None:
    assert parse_state("p", str(int(state))) is state
