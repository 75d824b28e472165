"""What domains say on the hypervisor's console."""

from hypothesis import given
from hypothesis import strategies as st

from dom0.embedding.words import LEAKS_KEPT, LINES_KEPT, MAX_LINE, DomainWords
from kernel.kernel import LEAK_PREFIX


def heard(*pieces: bytes) -> tuple[DomainWords, list[str]]:
    told: list[str] = []
    words = DomainWords(told.append)
    for piece in pieces:
        words.hear(piece)
    words.end()
    return words, told


def test_lines_are_told_when_they_are_complete() -> None:
    told: list[str] = []
    words = DomainWords(told.append)
    words.hear(b"one\ntw")
    assert told == ["one"]
    words.hear(b"o\n")
    assert told == ["one", "two"]
    words.hear(b"three")
    words.end()
    words.end()
    assert told == ["one", "two", "three"]
    assert words.text == "one\ntwo\nthree"


@given(st.lists(st.text(alphabet="ab \n", max_size=20)), st.data())
def test_it_does_not_matter_where_writes_are_cut(lines: list[str], data: st.DataObject) -> None:
    text = "\n".join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    assert heard(*pieces)[1] == heard(text)[1]


def test_leaks_are_kept_apart() -> None:
    words, told = heard(f"before\n{LEAK_PREFIX}grant 9\nafter\n".encode())
    assert words.leaks == ["grant 9"]
    assert words.text == "before\nafter"
    assert len(told) == 3


def test_a_domain_that_says_much_is_kept_within_bounds() -> None:
    words, told = heard(*[f"line {i}\n{LEAK_PREFIX}{i}\n".encode() for i in range(LEAKS_KEPT + 5)])
    assert words.text.splitlines()[0] == f"line {LEAKS_KEPT + 5 - LINES_KEPT}"
    assert len(words.leaks) == LEAKS_KEPT
    assert len(told) == 2 * (LEAKS_KEPT + 5)


def test_a_line_without_an_end_is_cut() -> None:
    words, told = heard(*[b"x" * 1000] * 10)
    assert max(map(len, told)) == MAX_LINE
    assert "".join(told) == "x" * 10_000 == words.text.replace("\n", "")


def test_what_is_no_text_is_still_shown() -> None:
    assert heard(b"\xff\xfe\n")[1] == ["\ufffd\ufffd"]
