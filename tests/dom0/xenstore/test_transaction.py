"""Transactions: isolation, conflicts by C xenstored's rule, all or nothing."""

import pytest

from dom0.xenstore.domain import DomainInfo
from tests.dom0.xenstore.clients import FakeMachine
from tests.dom0.xenstore.conversation import Conversation

CONVERSATIONS = {
    "nobody sees what is not committed, and the transaction sees nothing new": """
        tool    WRITE /a =1                         -> OK
        tool:A  START                               -> begun
        tool:A  READ /a                             -> 1
        tool:A  WRITE /b =mine                      -> OK
        tool    READ /b                             -> ENOENT
        tool2   WRITE /a =2                         -> OK
        tool2   WRITE /a/child =2                   -> OK
        tool:A  READ /a                             -> 1
        tool:A  DIRECTORY /a                        ->
        tool    READ /a                             -> 2
        tool:A  END T                               -> EAGAIN
        tool    READ /b                             -> ENOENT
    """,
    "an aborted transaction leaves nothing": """
        tool:A  START                               -> begun
        tool:A  WRITE /a/b/c =1                     -> OK
        tool:A  SET_PERMS /tool n0 r1               -> OK
        tool:A  RM /tool/xenstored                  -> OK
        tool:A  END F                               -> OK
        tool    DIRECTORY /                         -> tool|
        tool    DIRECTORY /tool                     -> xenstored|
        tool    GET_PERMS /tool                     -> n0|
        tool:A  READ /tool                          -> ENOENT
    """,
    "a listing, a look at a missing node, a blind write and a permission all conflict": """
        tool    MKDIR /d                            -> OK
        tool:L  START                               -> begun
        tool:L  DIRECTORY /d                        ->
        tool:M  START                               -> begun
        tool:M  READ /d/x                           -> ENOENT
        tool:W  START                               -> begun
        tool:W  WRITE /d/x =mine                    -> OK
        tool2   WRITE /d/x =theirs                  -> OK
        tool:L  END T                               -> EAGAIN
        tool:M  END T                               -> EAGAIN
        tool:W  END T                               -> EAGAIN
        tool:P  START                               -> begun
        tool:P  GET_PERMS /d/x                      -> n0|
        tool2   SET_PERMS /d/x n0 r1                -> OK
        tool:P  END T                               -> EAGAIN
        tool    READ /d/x                           -> theirs
    """,
    "what it did not look at does not conflict": """
        tool    MKDIR /d/a                          -> OK
        tool    MKDIR /d/b                          -> OK
        tool:A  START                               -> begun
        tool:A  WRITE /d/a =1                       -> OK
        tool2   WRITE /d/b =1                       -> OK
        tool2   WRITE /d/b/c =1                     -> OK
        tool:A  END T                               -> OK
        tool    READ /d/a                           -> 1
        tool    READ /d/b/c                         -> 1
    """,
    "a node that was removed, or removed and made anew, conflicts": """
        tool    WRITE /d/x =1                       -> OK
        tool    WRITE /d/y =1                       -> OK
        tool:A  START                               -> begun
        tool:A  READ /d/x                           -> 1
        tool:B  START                               -> begun
        tool:B  READ /d/y                           -> 1
        tool2   RM /d/x                             -> OK
        tool2   RM /d/y                             -> OK
        tool2   WRITE /d/y =1                       -> OK
        tool:A  READ /d/x                           -> 1
        tool:A  END T                               -> EAGAIN
        tool:B  END T                               -> EAGAIN
    """,
    "one that cannot commit any more keeps what it saw, and sees the rest as it is now": """
        tool    WRITE /d/x =1                       -> OK
        tool:A  START                               -> begun
        tool:A  DIRECTORY /d                        -> x|
        tool2   RM /d/x                             -> OK
        tool2   WRITE /d/y/z =1                     -> OK
        tool:A  READ /d/y/z                         -> 1
        tool:A  READ /d/x                           -> ENOENT
        tool:A  DIRECTORY /d                        -> x|
        tool:A  RM /d/y                             -> OK
        tool:A  WRITE /d/x/w =2                     -> OK
        tool:A  DIRECTORY /d                        -> x|
        tool:A  RM /d                               -> OK
        tool:A  DIRECTORY /                         -> tool|
        tool:A  END T                               -> EAGAIN
        tool    READ /d/y/z                         -> 1
    """,
    "its own connection conflicts with it too": """
        tool    WRITE /a =1                         -> OK
        tool:A  START                               -> begun
        tool:A  READ /a                             -> 1
        tool    WRITE /a =2                         -> OK
        tool:A  END T                               -> EAGAIN
    """,
    "of two that changed the same, the first wins": """
        tool:A  START                               -> begun
        tool2:B START                               -> begun
        tool:A  WRITE /x =a                         -> OK
        tool2:B WRITE /x =b                         -> OK
        tool2:B END T                               -> OK
        tool:A  END T                               -> EAGAIN
        tool    READ /x                             -> b
    """,
    "write skew does not happen": """
        tool    WRITE /x =0                         -> OK
        tool    WRITE /y =0                         -> OK
        tool:A  START                               -> begun
        tool2:B START                               -> begun
        tool:A  READ /x                             -> 0
        tool2:B READ /y                             -> 0
        tool:A  WRITE /y =1                         -> OK
        tool2:B WRITE /x =1                         -> OK
        tool:A  END T                               -> OK
        tool2:B END T                               -> EAGAIN
    """,
    "removal of a tree conflicts with a change anywhere in it": """
        tool    WRITE /d/e/f =1                     -> OK
        tool:A  START                               -> begun
        tool:A  RM /d                               -> OK
        tool:A  READ /d/e/f                         -> ENOENT
        tool2   WRITE /d/e/f =2                     -> OK
        tool:A  END T                               -> EAGAIN
        tool    READ /d/e/f                         -> 2
    """,
    "remove and make anew in one transaction": """
        tool    WRITE /d/e/f =1                     -> OK
        tool    WRITE /d/g =1                       -> OK
        tool:A  START                               -> begun
        tool:A  RM /d/e                             -> OK
        tool:A  WRITE /d/e =2                       -> OK
        tool:A  DIRECTORY /d                        -> g|e|
        tool:A  END T                               -> OK
        tool    DIRECTORY /d                        -> g|e|
        tool    DIRECTORY /d/e                      ->
        tool    READ /d/e                           -> 2
    """,
    "ids are the connection's own": """
        tool:A  START                               -> begun
        tool2:A START                               -> begun
        tool:A  WRITE /a =1                         -> OK
        tool2:A READ /a                             -> ENOENT
        tool2:A END F                               -> OK
        tool:A  READ /a                             -> 1
    """,
    "reset forgets transactions, also the one that it is sent in (XSA-484)": """
        dom1:A  START                               -> begun
        dom1:A  WRITE data/x =1                     -> OK
        dom1:A  RESET_WATCHES                       -> OK
        dom1:A  READ data/x                         -> ENOENT
        dom1    READ data/x                         -> ENOENT
        dom1:B  START                               -> begun
        dom1:B  END T                               -> OK
    """,
    "a guest in a transaction may do no more than outside": """
        tool    WRITE /secret =x                    -> OK
        dom1:A  START                               -> begun
        dom1:A  READ /secret                        -> EACCES
        dom1:A  READ /missing                       -> EACCES
        dom1:A  WRITE /missing =x                   -> EACCES
        dom1:A  SET_PERMS data n0                   -> EPERM
        dom1:A  WRITE data/x =x                     -> OK
        dom1:A  END T                               -> OK
        tool    GET_PERMS /local/domain/1/data/x    -> n1|
    """,
}


@pytest.mark.parametrize("script", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_conversation(script: str) -> None:
    Conversation().play(script)


def test_ids_wrap_past_those_in_use() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    assert tool.start() == 1
    tool.connection.next_transaction = 2**32 - 1
    assert tool.start() == 2**32 - 1
    assert tool.start() == 2
    machine.require_consistency()


def test_an_owner_that_died_meanwhile_is_a_conflict() -> None:
    machine = FakeMachine()
    machine.alive[7] = DomainInfo()
    tool = machine.tool()
    tx = tool.start()
    tool.write("/x", tx=tx)
    assert tool.permit("/x", "n7", tx=tx) == b"OK\0"
    machine.destroy(7)
    assert tool.end(tx) == b"EAGAIN"
    machine.require_consistency()


def test_what_a_dying_domain_owned_spoils_who_looked_at_it() -> None:
    machine = FakeMachine()
    machine.guest(1)
    tool = machine.tool()
    tx = tool.start()
    tool.write("/local/domain/1/data/x", "v", tx=tx)
    machine.destroy(1)
    assert tool.end(tx) == b"EAGAIN"
    machine.require_consistency()


def test_a_closed_connection_leaves_no_transaction() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tx = tool.start()
    tool.write("/a", "1", tx=tx)
    machine.core.disconnect(tool.connection)
    assert machine.core.store.readers == {}
    machine.require_consistency()
