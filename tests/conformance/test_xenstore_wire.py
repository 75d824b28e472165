"""Every request recorded from C xenstored 4.17.7, and every answer and event in its order, byte for byte.

Where the recording cut long payloads, they are rebuilt: each continues as it begins. The few answers that
differ on purpose are listed with the reason (see docs/xenstore.md).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from dom0.xenstore.domain import DomainInfo
from ringbuffers.protocols.xs_wire import HEADER, XENSTORE_PAYLOAD_MAX, XS_ERROR, Message
from tests.dom0.xenstore.clients import Client, FakeMachine

RECORDING: Final = Path(__file__).parents[1] / "data" / "wire-probe-xenstored.txt"
LINE: Final = re.compile(
    r"(?P<client>[a-f])(?P<way>[<>]) (?P<name>\w+)\((?P<type>\d+)\) id=(?P<id>\d+) tx=(?P<tx>\d+) "
    r"(?P<payload>'[^']*')(?:\.\.\.\((?P<length>\d+) bytes\))?\s*(?:# .*)?"
)
CLOSED: Final = "(connection closed by daemon)"

# Answers of C xenstored that are whatever errno was met last; ours is always EINVAL.
STALE_ERRNO: Final = {
    (2, b"/p/x/y"),
    (2, b"/p/x/y\0extra\0"),
    (2, b""),
    (1, b""),
    (12, b"/p/m"),
    (13, b""),
}
# Counters of the recorded machine's own store.
OWN_COUNTERS: Final = {(0, b"quota\x000\0")}
# We list the commands that we have.
OWN_COMMANDS: Final = {(0, b"help\0")}


class Step(NamedTuple):
    """One line: `>` a request, `<` what came back; `closed` instead of a message."""

    number: int
    client: str
    way: str
    message: Message
    length: int
    closed: bool = False


def rebuild(payload: bytes, length: int, *, is_request: bool, kind: int) -> bytes:
    """The whole payload of which the recording shows the beginning."""
    if not is_request or b"\0" in payload:
        return payload + payload[-1:] * (length - len(payload))
    tail = b"\0v" if kind == 11 else b"\0"
    return payload + payload[-1:] * (length - len(payload) - len(tail)) + tail


def steps() -> Iterator[Step]:
    """The recording, without what the last lines say in prose (see the tests of framing)."""
    for number, line in enumerate(RECORDING.read_text().splitlines(), 1):
        if line.endswith(CLOSED):
            yield Step(number, line[0], "<", Message(0, 0, 0, b""), 0, closed=True)
        match = LINE.fullmatch(line)
        if match is None:
            continue
        payload = ast.literal_eval(f"b{match['payload']}")
        kind, is_request = int(match["type"]), match["way"] == ">"
        if match["length"]:
            payload = rebuild(payload, int(match["length"]), is_request=is_request, kind=kind)
        message = Message(kind, int(match["id"]), int(match["tx"]), payload)
        yield Step(number, match["client"], match["way"], message, len(payload))


def machine() -> FakeMachine:
    """What the recording found: a paused guest 1, and the directories that the toolstack had made."""
    machine = FakeMachine()
    machine.alive[1] = DomainInfo()
    domain = machine.core.domains.find(1)
    assert domain is not None
    domain.connection = machine.core.connect(domain)
    tool = machine.tool()
    for path in ("/local/domain/0", "/local/domain/1", "/vm", "/libxl"):
        tool.write(path)
    tool.permit("/local/domain/1", "n0", "r1")
    return machine


def expected_answer(request: Message, recorded: Message, got: Message) -> Message:
    """The recorded answer, or what takes its place."""
    asked = (request.type, request.payload)
    if asked in STALE_ERRNO:
        return Message(XS_ERROR, recorded.req_id, recorded.tx_id, b"EINVAL\0")
    if asked in OWN_COUNTERS:
        pattern = re.sub(rb" +\d+", rb" +[0-9]+", recorded.payload)
        assert re.fullmatch(pattern, got.payload)
        return got
    if asked in OWN_COMMANDS:
        assert set(got.payload.splitlines()) <= set(recorded.payload.splitlines())
        return got
    if request.type == 22 and recorded.type == 22:  # the generation is a counter of all changes so far
        return recorded._replace(payload=re.sub(rb"^\d+", got.payload.split(b"\0")[0], recorded.payload))
    return recorded


def test_every_recorded_answer_and_event() -> None:
    store = machine()
    clients: dict[str, Client] = {}
    asked: dict[str, dict[int, Message]] = {}
    compared = 0
    for step in steps():
        if step.client not in clients:
            clients[step.client] = store.tool()
            asked[step.client] = {}
        client = clients[step.client]
        if step.closed:
            assert client.connection.closed, step.number
            del clients[step.client]
        elif step.way == ">":
            asked[step.client][step.message.req_id] = step.message
            header = HEADER.pack(*step.message[:3], len(step.message.payload))
            store.core.receive(client.connection, header + step.message.payload)
            store.serve()
        else:
            got = Message(*HEADER.unpack(head := client.connection.output.take(16))[:3], b"")
            got = got._replace(payload=client.connection.output.take(HEADER.unpack(head)[3]))
            expected = step.message
            if expected.req_id:
                expected = expected_answer(asked[step.client][expected.req_id], expected, got)
            assert got[:3] == expected[:3], step.number
            if len(expected.payload) == 537:  # only the beginning of the list of quotas was recorded
                assert got.payload.startswith(
                    b"Quota settings:\nnodes            :     1000 Nodes per domain"
                )
                assert len(got.payload) == 537
            else:
                assert got.payload == expected.payload, step.number
            compared += 1
    assert compared > 290
    for name, client in clients.items():
        assert not client.connection.output, f"{name} got more than was recorded"
    store.require_consistency()


@pytest.mark.parametrize("length", [5000, XENSTORE_PAYLOAD_MAX + 1, 2**31, 2**32 - 1])
def test_a_header_that_announces_too_much_closes_the_connection(length: int) -> None:
    store = machine()
    client = store.tool()
    store.core.receive(client.connection, HEADER.pack(2, 1, 0, length) + b"x" * 100)
    store.serve()
    assert client.connection.closed
    assert not store.core.ready


def test_two_requests_in_one_piece() -> None:
    store = machine()
    client = store.tool()
    both = Message(2, 1, 0, b"/vm\0").pack() + Message(1, 2, 0, b"/local\0").pack()
    store.core.receive(client.connection, both)
    store.serve()
    output = client.connection.output.take(1000)
    assert output == Message(2, 1, 0, b"").pack() + Message(1, 2, 0, b"domain\0").pack()


def test_a_request_byte_by_byte() -> None:
    store = machine()
    client = store.tool()
    client.write("/x", "x")
    for byte in Message(2, 9, 0, b"/x\0").pack():
        store.core.receive(client.connection, bytes([byte]))
        store.serve()
    assert client.connection.output.take(1000) == Message(2, 9, 0, b"x").pack()
