"""Requests on nodes, as conversations: who may do what, what is inherited, what comes back."""

import pytest

from ringbuffers.protocols.xs_wire import XENSTORE_PAYLOAD_MAX
from tests.dom0.xenstore.clients import FakeMachine
from tests.dom0.xenstore.conversation import Conversation

CONVERSATIONS = {
    "guests see their own area and nothing of others": """
        tool  WRITE /secret =x                      -> OK
        dom1  READ /secret                          -> EACCES
        dom1  READ /nothing                         -> EACCES
        dom1  DIRECTORY /                           -> EACCES
        dom1  DIRECTORY /local/domain               -> EACCES
        dom1  READ data                             ->
        dom1  READ data/nothing                     -> ENOENT
        dom1  READ /local/domain/1/data/nothing     -> ENOENT
        dom1  GET_PERMS data                        -> n1|
        dom1  GET_PERMS /                           -> EACCES
        dom2  READ /local/domain/1/data             -> EACCES
    """,
    "guests write where they may": """
        dom1  WRITE data/x/y =v                     -> OK
        dom1  WRITE new =v                          -> EACCES
        dom1  WRITE /new =v                         -> EACCES
        dom1  MKDIR data/d                          -> OK
        dom1  MKDIR other                           -> EACCES
        dom1  RM data/x                             -> OK
        dom1  RM data/x                             -> OK
        dom1  RM data/x/y                           -> ENOENT
        dom1  RM nothing                            -> EACCES
        dom1  WRITE / =v                            -> EACCES
        dom1  RM /                                  -> EACCES
        dom1  SET_PERMS / n1                        -> EACCES
        dom1  DIRECTORY data                        -> d|
    """,
    "what guests create they own, what the control domain creates the parent's owner does": """
        tool  WRITE /shared                         -> OK
        tool  SET_PERMS /shared n0 b1 r2            -> OK
        dom1  WRITE /shared/a =v                    -> OK
        tool  GET_PERMS /shared/a                   -> n1|b1|r2|
        tool  WRITE /shared/a/b =v                  -> OK
        tool  GET_PERMS /shared/a/b                 -> n1|b1|r2|
        tool  WRITE /shared/c =v                    -> OK
        tool  GET_PERMS /shared/c                   -> n0|b1|r2|
        dom2  READ /shared/a                        -> v
        dom2  WRITE /shared/a =w                    -> EACCES
        dom2  WRITE /shared/d =w                    -> EACCES
    """,
    "only the owner changes permissions, and never gives a node away (XSA-352)": """
        tool  WRITE /shared                         -> OK
        tool  SET_PERMS /shared n1 b2               -> OK
        dom2  SET_PERMS /shared n2                  -> EACCES
        dom1  SET_PERMS /shared n0 b2               -> EPERM
        dom1  SET_PERMS /shared n2                  -> EPERM
        dom1  SET_PERMS /shared n1 r2               -> OK
        dom2  WRITE /shared =v                      -> EACCES
        dom2  READ /shared                          ->
        tool  SET_PERMS /shared n2                  -> OK
        dom1  READ /shared                          -> EACCES
    """,
    "the first letter holds for all who are not named": """
        tool  WRITE /open =v                        -> OK
        tool  SET_PERMS /open b0 n2                 -> OK
        dom1  WRITE /open =w                        -> OK
        dom2  READ /open                            -> EACCES
        tool  SET_PERMS /open w0                    -> OK
        dom1  READ /open                            -> EACCES
        dom1  WRITE /open =x                        -> OK
    """,
    "a domain acts for its target, and for nobody else's": """
        dom1  WRITE data/x =v                       -> OK
        dom3  READ /local/domain/1/data/x           -> EACCES
        tool  SET_TARGET 3 1                        -> OK
        dom3  READ /local/domain/1/data/x           -> v
        dom3  WRITE /local/domain/1/data/x =w       -> OK
        dom3  READ data                             ->
        dom2  READ data                             ->
        dom3  READ /local/domain/2/data             -> EACCES
        dom1  SET_TARGET 1 2                        -> EACCES
        tool  SET_TARGET 1 77                       -> ENOENT
    """,
    "guests are refused what concerns others": """
        tool  WRITE /x                              -> OK
        dom1  INTRODUCE 5 1 1                       -> EACCES
        dom1  RELEASE 1                             -> EACCES
        dom1  RESUME 1                              -> EACCES
        dom1  IS_DOMAIN_INTRODUCED 1                -> EACCES
        dom1  IS_DOMAIN_INTRODUCED 0                -> EACCES
        dom1  CONTROL check                         -> EACCES
        dom1  GET_DOMAIN_PATH 7                     -> /local/domain/7|
    """,
    "malformed paths (XSA-481)": """
        tool  READ                                  -> EINVAL
        tool  READ /local/domain/                   -> EINVAL
        tool  READ //                               -> EINVAL
        tool  READ /a//b                            -> EINVAL
        tool  READ /a/                              -> EINVAL
        tool  READ /é                               -> EINVAL
        tool  WATCH /a/ t                           -> EINVAL
        tool  SET_PERMS /a/ n0                      -> EINVAL
        tool  DIRECTORY_PART /a/ 0                  -> EINVAL
        tool  MKDIR /a/../b                         -> EINVAL
        tool  RM @releaseDomain                     -> EINVAL
    """,
    "children in the order of their creation, over removal too": """
        tool  MKDIR /d/b                            -> OK
        tool  MKDIR /d/a                            -> OK
        tool  MKDIR /d/c                            -> OK
        tool  DIRECTORY /d                          -> b|a|c|
        tool  RM /d/b                               -> OK
        tool  WRITE /d/b =x                         -> OK
        tool  DIRECTORY /d                          -> a|c|b|
    """,
}


@pytest.mark.parametrize("script", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_conversation(script: str) -> None:
    Conversation().play(script)


def test_a_listing_that_does_not_fit_is_refused_and_read_in_parts() -> None:
    """XSA-72."""
    tool = FakeMachine().tool()
    names = [f"child-{number:04}" for number in range(1000)]
    for name in names:
        tool.write(f"/d/{name}")
    assert tool.ask("DIRECTORY", "/d") == b"E2BIG"
    listing, generations = b"", set()
    while not listing.endswith(b"\0\0"):
        part = tool.ask("DIRECTORY_PART", "/d", str(len(listing)))
        assert len(part) <= XENSTORE_PAYLOAD_MAX
        generation, _, names_part = part.partition(b"\0")
        generations.add(generation)
        listing += names_part
    assert listing == b"".join(name.encode() + b"\0" for name in names) + b"\0"
    assert len(generations) == 1
    tool.write("/d/more")
    assert tool.ask("DIRECTORY_PART", "/d", "0").partition(b"\0")[0] not in generations


@pytest.mark.parametrize("offset", ["-1", "10", "1000000", "99999999999999999999999"])
def test_a_listing_from_beyond_its_end_is_empty(offset: str) -> None:
    tool = FakeMachine().tool()
    tool.write("/d/a")
    assert tool.ask("DIRECTORY_PART", "/d", offset).partition(b"\0")[2] == b"\0"


def test_a_path_has_the_same_limit_in_relative_and_absolute_form() -> None:
    """XSA-323: whatever can be made by one form can be read and removed by the other."""
    machine = FakeMachine()
    guest, tool = machine.guest(1), machine.tool()
    for length in (*range(1000, 1030), 2040, 2047, 2048, 2049, 2060):
        directory = "data/" + "d" * 900 + "/"
        relative = directory + "x" * (length - len(directory))
        absolute = "/local/domain/1/" + relative
        made = guest.write(relative, "v")
        assert (made == b"OK\0") == (length <= 2048)
        assert guest.value(absolute) == guest.value(relative) == tool.value(absolute)
        assert (tool.value(absolute) == b"v") == (length <= 2048)
        assert tool.ask("RM", absolute) == made


def test_paths_outside_homes_have_their_limit() -> None:
    tool = FakeMachine().tool()
    assert tool.write("/" + "x" * 2047) == b"OK\0"
    assert tool.write("/" + "x" * 2048) == b"EINVAL"
    assert tool.write("/local/domain/123456/" + "x" * 2048) == b"EINVAL"


def test_a_path_of_a_thousand_components() -> None:
    """XSA-418."""
    machine = FakeMachine()
    tool = machine.tool()
    path = "/a" * 1000
    assert tool.write(path, "deep") == b"OK\0"
    assert tool.value(path) == b"deep"
    machine.require_consistency()
    tx = tool.start()
    assert tool.ask("RM", "/a", tx=tx) == b"OK\0"
    assert tool.write("/a/b" + "/c" * 900, tx=tx) == b"OK\0"
    assert tool.end(tx) == b"OK\0"
    machine.require_consistency()
    assert tool.ask("RM", "/a") == b"OK\0"
    machine.require_consistency()
    assert tool.children("/") == ["tool"]


@pytest.mark.parametrize("payload", [b"", b"x", b"/a", b"\0", b"/a\0\0", b"/a\0b\0", b"\0" * 4096])
@pytest.mark.parametrize("kind", ["READ", "DIRECTORY", "RM", "MKDIR", "GET_PERMS", "UNWATCH", "SET_PERMS"])
def test_malformed_payloads(kind: str, payload: bytes) -> None:
    tool = FakeMachine().tool()
    answer = tool.ask_raw(kind, payload)
    assert answer in (b"EINVAL", b"ENOENT")
    assert tool.children("/") == ["tool"]
