import pytest

from ringbuffers.errors import RingMisuse
from ringbuffers.protocols.console import IN_SIZE, OUT_SIZE, ConsolePage
from tests.ringbuffers.pairs import STARTS, shared_pages

IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = range(768, 772)


@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_each_side_reads_what_the_other_writes(start: int) -> None:
    (page,) = shared_pages()
    page.cast("I")[IN_CONS : OUT_PROD + 1] = memoryview(start.to_bytes(4, "little") * 4).cast("I")
    guest, daemon = ConsolePage(page).guest_side(), ConsolePage(page).daemon_side()
    assert guest.outgoing.write(b"login: ") == 7
    assert daemon.incoming.read() == b"login: "
    assert daemon.outgoing.write(b"root\n") == 5
    assert guest.incoming.read() == b"root\n"
    assert guest.outgoing.write(bytes(5000)) == OUT_SIZE
    assert daemon.outgoing.write(bytes(5000)) == IN_SIZE


def test_the_page_is_laid_out_as_in_the_header() -> None:
    (page,) = shared_pages()
    words = page.cast("I")
    console = ConsolePage(page)
    console.guest_side().outgoing.write(b"out")
    assert bytes(page[1024:1027]) == b"out"
    assert words[OUT_PROD] == 3
    console.daemon_side().outgoing.write(b"typed")
    assert bytes(page[:5]) == b"typed"
    assert words[IN_PROD] == 5
    console.daemon_side().incoming.read(2)
    console.guest_side().incoming.read(1)
    assert (words[OUT_CONS], words[IN_CONS]) == (2, 1)
    assert not any(page[3088:])


def test_a_detached_page_is_touched_no_more() -> None:
    (page,) = shared_pages()
    console = ConsolePage(page)
    side = console.guest_side()
    console.detach()
    with pytest.raises(RingMisuse, match="detached"):
        side.outgoing.write(b"late")
    assert not any(page)
