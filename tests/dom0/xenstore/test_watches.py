"""Who is told of what, how paths are spelled, and in which order."""

import pytest

from ringbuffers.protocols.xs_wire import XENSTORE_PAYLOAD_MAX
from tests.dom0.xenstore.clients import FakeMachine
from tests.dom0.xenstore.conversation import Conversation

CONVERSATIONS = {
    "a watch hears of its node and all below, in the words that it was set with": """
        tool  WATCH /a t                            -> OK
        tool2 WATCH name r                          -> OK
        tool  EVENTS                                -> /a t
        tool2 EVENTS                                -> name r
        tool  WRITE /a/b/c =x                       -> OK
        tool  WRITE /ab =x                          -> OK
        tool  WRITE /local/domain/0/name/x =x       -> OK
        tool  EVENTS                                -> /a/b/c t
        tool2 EVENTS                                -> name/x r
    """,
    "the root's watch hears of everything": """
        tool  WATCH / t                             -> OK
        tool  EVENTS                                -> / t
        tool  WRITE /x =1                           -> OK
        tool  EVENTS                                -> /x t
        tool  RM /x                                 -> OK
        tool  EVENTS                                -> /x t
        tool  WRITE / =1                            -> OK
        tool  EVENTS                                -> / t
    """,
    "making what is there already is no change": """
        tool  MKDIR /a                              -> OK
        tool  WATCH /a t                            -> OK
        tool  EVENTS                                -> /a t
        tool  MKDIR /a                              -> OK
        tool  EVENTS                                ->
        tool  WRITE /a =                            -> OK
        tool  EVENTS                                -> /a t
    """,
    "removal: watches below hear of their own node, children first": """
        tool  WRITE /a/b/c                          -> OK
        tool  WATCH /a/b/c c                        -> OK
        tool  WATCH /a/b b                          -> OK
        tool  WATCH /a a                            -> OK
        tool  WATCH / root                          -> OK
        tool  WATCH /a/missing m                    -> OK
        tool  EVENTS                                -> /a/b/c c, /a/b b, /a a, / root, /a/missing m
        tool  RM /a                                 -> OK
        tool  EVENTS                                -> /a/b/c c, /a/b b, /a a, /a root
    """,
    "an event that waits already is not repeated": """
        tool  WATCH /a t                            -> OK
        tool  EVENTS                                -> /a t
        tool2 WRITE /a =1                           -> OK
        tool2 WRITE /a =2                           -> OK
        tool2 WRITE /a/b =2                         -> OK
        tool  EVENTS                                -> /a t, /a/b t
        tool2 WRITE /a =3                           -> OK
        tool  EVENTS                                -> /a t
    """,
    "guests hear only of what they may read (XSA-115)": """
        dom1  WATCH / r                             -> OK
        dom1  WATCH data d                          -> OK
        dom1  EVENTS                                -> / r, data d
        tool  WRITE /secret =x                      -> OK
        tool  WRITE /local/domain/2/data/x =x       -> OK
        dom1  EVENTS                                ->
        tool  WRITE /local/domain/1/data/x =x       -> OK
        dom1  EVENTS                                -> /local/domain/1/data/x r, data/x d
        tool  WRITE /local/domain/1/data/y =x       -> OK
        tool  SET_PERMS /local/domain/1/data/y n0   -> OK
        dom1  EVENTS                                -> /local/domain/1/data/y r, data/y d
        tool  SET_PERMS /local/domain/1/data n0     -> OK
        dom1  EVENTS                                -> /local/domain/1/data r, data d
        tool  WRITE /local/domain/1/data/y =z       -> OK
        tool  RM /local/domain/1/data/y             -> OK
        dom1  EVENTS                                ->
        dom2  READ data                             ->
    """,
    "a guest hears that a node which it could read is gone": """
        dom1  WRITE data/x =1                       -> OK
        dom1  WATCH data/x t                        -> OK
        tool  SET_PERMS /local/domain/1/data n0     -> OK
        dom1  EVENTS                                -> data/x t
        tool  RM /local/domain/1/data               -> OK
        dom1  EVENTS                                -> data/x t
    """,
    "a guest hears that it lost its permission": """
        tool  WRITE /x =1                           -> OK
        tool  SET_PERMS /x n0 r1                    -> OK
        dom1  WATCH /x t                            -> OK
        dom1  EVENTS                                -> /x t
        tool  SET_PERMS /x n0                       -> OK
        dom1  EVENTS                                -> /x t
        tool  WRITE /x =2                           -> OK
        dom1  EVENTS                                ->
    """,
    "unwatch by any spelling of the path; reset takes all (XSA-330)": """
        tool  WATCH name t                          -> OK
        tool  WATCH name u                          -> OK
        tool  WATCH name t                          -> EEXIST
        tool  WATCH /local/domain/0/name t          -> EEXIST
        tool  EVENTS                                -> name t, name u
        tool  UNWATCH /local/domain/0/name t        -> OK
        tool  UNWATCH name t                        -> ENOENT
        tool  WRITE name =x                         -> OK
        tool  EVENTS                                -> name u
        tool  WATCH @releaseDomain s                -> OK
        tool  RESET_WATCHES                         -> OK
        tool  EVENTS                                -> @releaseDomain s
        tool  WRITE name =y                         -> OK
        tool  EVENTS                                ->
        tool  UNWATCH name u                        -> ENOENT
    """,
    "other clients' watches stay": """
        tool  WATCH /a t                            -> OK
        tool2 WATCH /a t                            -> OK
        tool  RESET_WATCHES                         -> OK
        tool2 WRITE /a =x                           -> OK
        tool2 EVENTS                                -> /a t, /a t
        tool  EVENTS                                -> /a t
    """,
    "a watch takes no notice of transactions": """
        tool:A  START                               -> begun
        tool:A  WATCH /a t                          -> OK
        tool    EVENTS                              -> /a t
        tool:A  WRITE /a =x                         -> OK
        tool    EVENTS                              ->
        tool:A  END F                               -> OK
        tool    WRITE /a =x                         -> OK
        tool    EVENTS                              -> /a t
    """,
    "what a transaction made and removed is no event": """
        tool    WATCH /a t                          -> OK
        tool    EVENTS                              -> /a t
        tool:A  START                               -> begun
        tool:A  WRITE /a/x =x                       -> OK
        tool:A  RM /a/x                             -> OK
        tool:A  WRITE /a/y =y                       -> OK
        tool:A  WRITE /a/y =z                       -> OK
        tool:A  END T                               -> OK
        tool    EVENTS                              -> /a/y t
    """,
}


@pytest.mark.parametrize("script", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_conversation(script: str) -> None:
    Conversation().play(script)


def test_events_come_before_the_answer_but_the_first_one_after_it() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tool.send("WATCH", b"/a\0t\0")
    tool.send("WRITE", b"/a\0x")
    sent = tool.connection.output.take(1 << 20)
    kinds = [message.type for message in tool.parser.feed(sent)]
    assert kinds == [4, 15, 11]


def test_a_long_token_gives_events_that_fit() -> None:
    """XSA-324: an event that would be too long for the path names the watch's own path."""
    tool = FakeMachine().tool()
    token = "t" * 4000
    assert tool.ask("WATCH", "/a", token) == b"OK\0"
    assert tool.take_events() == [f"/a {token}"]
    tool.write("/a/" + "x" * 200, "v")
    assert tool.take_events() == [f"/a {token}"]
    assert all(len(event) <= XENSTORE_PAYLOAD_MAX for event in tool.events)


def test_the_transaction_of_a_watch_need_not_exist() -> None:
    tool = FakeMachine().tool()
    assert tool.ask("WATCH", "/a", "t", tx=999) == b"OK\0"
    assert tool.ask("UNWATCH", "/a", "t", tx=999) == b"OK\0"
    assert tool.value("/tool", tx=999) == b"ENOENT"


def test_a_guest_has_a_number_of_watches() -> None:
    machine = FakeMachine()
    guest = machine.guest(1)
    for number in range(machine.core.quotas.watches):
        assert guest.ask("WATCH", "data", str(number)) == b"OK\0"
    assert guest.ask("WATCH", "data", "more") == b"E2BIG"
    assert guest.ask("UNWATCH", "data", "0") == b"OK\0"
    assert guest.ask("WATCH", "data", "more") == b"OK\0"
    machine.require_consistency()


def test_special_events_reach_control_domains_and_who_was_permitted() -> None:
    machine = FakeMachine()
    tool, one, two = machine.tool(), machine.guest(1), machine.guest(2)
    for client in (tool, one, two):
        assert client.ask("WATCH", "@releaseDomain", "t") == b"OK\0"
        assert client.take_events() == ["@releaseDomain t"]
    assert one.permit("@releaseDomain", "n1") == b"EACCES"
    assert tool.permit("@releaseDomain", "n0", "r2") == b"OK\0"
    machine.guest(3)
    machine.destroy(3)
    assert tool.take_events() == ["@releaseDomain t"]
    assert one.take_events() == []
    assert two.take_events() == ["@releaseDomain t"]


def test_who_owns_a_special_watch_permits_others_but_keeps_it() -> None:
    machine = FakeMachine()
    tool, one = machine.tool(), machine.guest(1)
    machine.guest(2)
    assert tool.permit("@introduceDomain", "n1") == b"OK\0"
    assert one.permit("@introduceDomain", "n2") == b"EACCES"
    assert one.permit("@introduceDomain", "n1", "r2") == b"OK\0"
    assert tool.permit("@other", "n0") == b"EINVAL"


def test_special_events_are_not_merged() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tool.ask("WATCH", "@releaseDomain", "t")
    tool.take_events()
    for domid in (1, 2):
        machine.guest(domid)
        machine.destroy(domid)
    assert tool.take_events() == ["@releaseDomain t"] * 2
