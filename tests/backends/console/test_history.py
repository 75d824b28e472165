"""The last line that a person sees, and the bound of what is remembered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.console.history import LAST_LINE_CHARACTERS, TAIL_BYTES, History, last_line


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"one\ntwo\n", "two"),
        (b"one\ntwo", "two"),
        (b"one\r\n\r\n  \r\n", "one"),
        (b"10%\r20%\r30%", "30%"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]0;title\x1b\\text", "text"),
        (b"safe\n\x1b[2J\x1b[H\n", "safe"),
        (b"a\x00b\x08c\x7f", "abc"),
        (b"\xc2\x9b31mcsi", "31mcsi"),
        ("grüße\n".encode(), "grüße"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202egnp.exe".encode(), "gnp.exe"),
    ],
)
def test_the_last_line_is_the_last_that_shows_anything(output: bytes, line: str) -> None:
    assert last_line(output) == line


@given(st.lists(st.binary(max_size=300) | st.sampled_from([b"\x1b[", b"\x1b]", b"\x1b", b"\n", b"m"])))
def test_whatever_is_printed_the_last_line_is_short_and_printable(pieces: list[bytes]) -> None:
    history = History()
    for piece in pieces:
        history.append(piece)
    assert history.last_line == "" or history.last_line.isprintable()
    assert len(history.last_line) <= LAST_LINE_CHARACTERS


def test_a_line_grows_as_it_is_printed() -> None:
    history = History()
    seen = []
    for piece in (b"a", b"b", b"\n", b"c"):
        history.append(piece)
        seen.append(history.last_line)
    assert seen == ["a", "ab", "ab", "c"]


@given(st.lists(st.binary(max_size=TAIL_BYTES), max_size=5))
def test_the_tail_is_the_end_of_the_output(pieces: list[bytes]) -> None:
    history = History()
    for piece in pieces:
        history.append(piece)
    assert history.tail == b"".join(pieces)[-TAIL_BYTES:]
