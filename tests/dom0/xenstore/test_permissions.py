"""Lists of permissions: spelling, and who may do what by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.xenstore.domain import Domain
from dom0.xenstore.errors import Invalid, Missing
from dom0.xenstore.permissions import ALL, READ, WRITE, parse, private_to
from dom0.xenstore.quotas import Quotas

DOMAINS = {domid: Domain(domid, Quotas()) for domid in range(4)}


@given(st.lists(st.tuples(st.sampled_from("nrwb"), st.integers(0, 65535)), min_size=1, max_size=10))
def test_a_list_is_answered_as_it_was_set(entries: list[tuple[str, int]]) -> None:
    spelled = [f"{letter}{domid}".encode() for letter, domid in entries]
    if entries[0][1] in DOMAINS:
        parsed = parse(spelled, DOMAINS.get)
        assert parsed.wire == b"".join(entry + b"\0" for entry in spelled)
        assert parsed.count == len(entries)
    else:
        with pytest.raises(Missing):
            parse(spelled, DOMAINS.get)


@pytest.mark.parametrize(
    "entry", [b"", b"n", b"x1", b"1", b"n1x", b"n 1", b"nn1", b"N1", b"n99999999999", b"\xff1"]
)
def test_malformed_entries(entry: bytes) -> None:
    with pytest.raises(Invalid):
        parse([b"n0", entry], DOMAINS.get)


def test_an_empty_list() -> None:
    with pytest.raises(Invalid):
        parse([], DOMAINS.get)


def test_access() -> None:
    permissions = parse([b"r1", b"w2", b"n3", b"b3"], DOMAINS.get)
    assert permissions.access(DOMAINS[1], None) == ALL
    assert permissions.access(DOMAINS[2], None) == WRITE
    assert permissions.access(DOMAINS[3], None) == 0
    stranger = Domain(9, Quotas())
    assert permissions.access(stranger, None) == READ
    assert permissions.access(stranger, DOMAINS[1]) == ALL
    assert permissions.access(stranger, DOMAINS[2]) == WRITE
    assert permissions.access(Domain(1, Quotas()), None) == READ


def test_an_entry_for_nobody_does_not_match_those_without_a_target() -> None:
    permissions = parse([b"n0", b"b77"], DOMAINS.get)
    assert permissions.access(DOMAINS[1], None) == 0


def test_inheritance() -> None:
    permissions = parse([b"b0", b"r3"], DOMAINS.get)
    assert permissions.inherited_by(DOMAINS[0]) is permissions
    inherited = permissions.inherited_by(DOMAINS[2])
    assert inherited.wire == b"b2\0r3\0"
    assert inherited.owner is DOMAINS[2]
    assert inherited.inherited_by(DOMAINS[2]) is inherited
    assert private_to(DOMAINS[1]).wire == b"n1\0"
