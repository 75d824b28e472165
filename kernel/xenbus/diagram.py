"""The handshake's table as a page of documentation, docs/xenbus.md."""

from collections.abc import Iterator
from typing import Final

from kernel.xenbus.states import Side, XenbusState
from kernel.xenbus.table import TRANSITIONS, Action, Event

_HEAD: Final = """\
# The XenBus handshake

This page is made from the table in `kernel/xenbus/table.py` by `make docs`; a test holds it so.

Each end of a split device has a `state` node, which it writes and the other end watches (`public/io/xenbus.h`).
An end reacts to the other's state as it reads it, and to what happens at its own end, by one step of this table:
it acts, then enters the next state and writes it down. A pair of state and event that is not listed here is an
error; `stays` lists what changes nothing. In the diagrams, `[*]` is the end of a device whose nodes are gone.
"""

Row = tuple[XenbusState, XenbusState, Action, list[Event]]


def document() -> str:
    """The whole page."""
    sections = (line for side in Side for line in _section(side))
    return "\n".join([_HEAD, *sections]).rstrip() + "\n"


def _section(side: Side) -> Iterator[str]:
    yield f"## The {side.value}"
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    for own, after, action, events in _rows(side):
        if own is not after or action is not Action.NONE:
            yield f"    {own.name} --> {_target(after)}: {_label(action, events)}"
    yield "```"
    yield ""
    yield "| state | event | action | next state |"
    yield "|---|---|---|---|"
    for own, after, action, events in _rows(side):
        if own is not after or action is not Action.NONE:
            yield f"| {own.name} | {_names(events)} | {action.value} | {_shown(after)} |"
        else:
            yield f"| {own.name} | {_names(events)} | - | stays |"
    yield ""


def _rows(side: Side) -> list[Row]:
    """The side's transitions in the order of states; events that lead to the same are put together."""
    rows: dict[tuple[XenbusState, XenbusState, Action], list[Event]] = {}
    for (row_side, own, event), (action, after) in TRANSITIONS.items():
        if row_side is side:
            rows.setdefault((own, after, action), []).append(event)
    order = list(Event)
    return [
        (own, after, action, sorted(events, key=order.index))
        for (own, after, action), events in sorted(rows.items(), key=lambda row: (row[0][0], row[0][1]))
    ]


def _target(state: XenbusState) -> str:
    return "[*]" if state is XenbusState.Unknown else state.name


def _shown(state: XenbusState) -> str:
    return "(gone)" if state is XenbusState.Unknown else state.name


def _names(events: list[Event]) -> str:
    return ", ".join(event.value for event in events)


def _label(action: Action, events: list[Event]) -> str:
    """Text of an arrow. Mermaid takes a colon for its own."""
    what = " or ".join(event.value.replace(":", "") for event in events)
    return what if action is Action.NONE else f"{what} / {action.value}"
