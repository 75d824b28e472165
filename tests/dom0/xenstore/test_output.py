"""The output queue: nothing is lost, repeated or cut, whatever pieces it is taken in; and it all adds up."""

from hypothesis import given
from hypothesis import strategies as st

from dom0.xenstore.domain import Domain
from dom0.xenstore.output import Output
from dom0.xenstore.quotas import Quotas
from ringbuffers.protocols.xs_wire import XS_READ, XS_WATCH_EVENT, Message, Parser

MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just("answer"), st.binary(max_size=60)),
        st.tuples(st.just("event"), st.binary(max_size=3)),
        st.tuples(st.just("take"), st.integers(0, 50)),
        st.tuples(st.just("expire"), st.integers(0, 3)),
    ),
    max_size=60,
)


class Model:
    """The messages queued, with their deadlines, and how much of them was taken."""

    def __init__(self) -> None:
        self.all: list[tuple[Message, int | None]] = []
        self.taken = b""

    def unread(self) -> list[tuple[Message, int | None]]:
        """What was not taken at all."""
        rest, position = [], 0
        for message, deadline in self.all:
            if position >= len(self.taken):
                rest.append((message, deadline))
            position += len(message.pack())
        return rest

    def is_waiting(self, payload: bytes) -> bool:
        waits = any(m.payload == payload and d is not None for m, d in self.unread())
        return waits and not payload.startswith(b"@")

    def expire(self, now: int) -> None:
        unread = self.unread()
        kept = [(m, d) for m, d in unread if d is None or d > now]
        self.all[len(self.all) - len(unread) :] = kept

    def size(self) -> int:
        """Bytes held: a message counts until all of it was taken."""
        held, position = 0, 0
        for message, _ in self.all:
            position += len(message.pack())
            if position > len(self.taken):
                held += len(message.pack())
        return held


@given(MESSAGES)
def test_what_is_taken_is_what_was_queued(steps: list[tuple[str, bytes | int]]) -> None:
    domain = Domain(1, Quotas())
    output, model = Output(domain), Model()
    for now, (step, argument) in enumerate(steps):
        if isinstance(argument, int):
            if step == "take":
                data = output.take(argument)
                assert len(data) <= argument
                model.taken += data
            else:
                output.expire(now - argument)
                model.expire(now - argument)
        elif step == "answer":
            output.answer(XS_READ, now, 0, argument, None)
            model.all.append((Message(XS_READ, now, 0, argument), None))
        else:
            assert output.event(argument, None, now) != model.is_waiting(argument)
            if not model.is_waiting(argument):
                model.all.append((Message(XS_WATCH_EVENT, 0, 0, argument), now))
        assert output.size == domain.memory == model.size()
        assert output.next_deadline_ns() == next((d for _, d in model.unread() if d is not None), None)
    model.taken += output.take(1 << 20)
    assert Parser().feed(model.taken) == [message for message, _ in model.all]
    assert output.size == domain.memory == 0
    assert not output


def test_an_event_that_was_read_in_part_is_not_the_one_that_waits() -> None:
    output = Output(Domain(1, Quotas()))
    assert output.event(b"/a\0t\0", None, 5)
    output.take(3)
    assert output.event(b"/a\0t\0", None, 5)
    output.take(3)
    assert not output.event(b"/a\0t\0", None, 5)


def test_clearing_gives_everything_back() -> None:
    domain = Domain(1, Quotas())
    output = Output(domain)
    output.answer(XS_READ, 1, 0, b"x" * 100, None)
    output.event(b"/a\0t\0", None, 5)
    output.take(10)
    output.clear()
    assert domain.memory == output.size == 0
    assert output.take(100) == b""
    assert output.event(b"/a\0t\0", None, 5)


def test_a_domain_that_holds_too_much_gets_no_events() -> None:
    quotas = Quotas(memory=100)
    domain = Domain(1, quotas)
    output = Output(domain)
    output.answer(XS_READ, 1, 0, b"x" * 200, None)
    assert not output.event(b"/a\0t\0", None, 5)
    assert output.dropped == 1
    output.take(1000)
    assert output.event(b"/a\0t\0", None, 5)
