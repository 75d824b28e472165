"""CONTROL: what an administrator may ask."""

import pytest

from dom0.xenstore.quotas import SoftQuotas, describe
from tests.dom0.xenstore.clients import FakeMachine
from tests.dom0.xenstore.conversation import Conversation


def test_commands() -> None:
    Conversation().play("""
        tool  CONTROL                        -> EINVAL
        tool  CONTROL nosuch                 -> EINVAL
        tool  CONTROL check                  -> OK
        tool  CONTROL check more             -> EINVAL
        tool  CONTROL print                  -> EINVAL
        tool  CONTROL print hello            -> OK
        tool  CONTROL log                    -> EINVAL
        tool  CONTROL log maybe              -> EINVAL
        tool  CONTROL quota set              -> EINVAL
        tool  CONTROL quota set nodes        -> EINVAL
        tool  CONTROL quota set nodes 0      -> EINVAL
        tool  CONTROL quota set nosuch 5     -> EINVAL
        tool  CONTROL quota 77               -> ENOENT
        tool  CONTROL quota 1 2              -> EINVAL
        tool  CONTROL quota-soft 1           -> EINVAL
        tool  CONTROL quota-soft set memory 9 -> OK
        dom1  CONTROL quota                  -> EACCES
    """)


def test_help_names_every_command() -> None:
    tool = FakeMachine().tool()
    lines = tool.ask("CONTROL", "help").decode().rstrip("\0").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["check", "log", "print", "quota", "quota-soft", "help"]


def test_quotas_take_effect_at_once() -> None:
    machine = FakeMachine()
    tool, guest = machine.tool(), machine.guest(1)
    assert guest.write("data/a") == b"OK\0"
    assert tool.ask("CONTROL", "quota", "set", "nodes", "3") == b"OK\0"
    assert b"nodes            :        3 Nodes per domain\n" in tool.ask("CONTROL", "quota")
    assert guest.write("data/b") == b"OK\0"
    assert guest.write("data/c") == b"ENOSPC"
    assert tool.ask("CONTROL", "quota", "set", "memory", "10") == b"OK\0"
    assert guest.value("data/a") == b""
    assert guest.write("data/a", "more") == b"ENOSPC"
    assert guest.ask("RM", "data/a") == b"OK\0"
    assert tool.ask("CONTROL", "quota-soft") == describe(SoftQuotas()).encode() + b"\0"


def test_usage_of_a_domain() -> None:
    machine = FakeMachine()
    tool, guest = machine.tool(), machine.guest(1)
    guest.ask("WATCH", "data", "t")
    guest.start()
    guest.send("READ", b"data\0")
    lines = tool.ask("CONTROL", "quota", "1").decode().splitlines()
    assert lines[0] == "Domain 1:"
    counted = dict(line.split(":") for line in lines[1:-1])
    assert {name.strip(): int(value) for name, value in counted.items()} == {
        "nodes": 1,
        "watches": 1,
        "transactions": 1,
        "outstanding": 1,
        "memory": machine.core.domains.known[1].memory,
    }


@pytest.mark.parametrize("payload", [b"hello", b"caf\xc3\xa9", b"\xff\xfe"])
def test_print_logs_any_bytes(payload: bytes) -> None:
    machine = FakeMachine()
    assert machine.tool().ask("CONTROL", "print", payload) == b"OK\0"
    assert len(machine.log) == 1


def test_log_traces_requests_and_answers() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    tool.ask("CONTROL", "log", "on")
    machine.log.clear()
    tool.value("/tool")
    tool.ask_raw("WRITE", b"")
    assert machine.log == [
        "IN <socket of domain 0> READ (b'/tool\\x00')",
        "OUT <socket of domain 0> READ (b'')",
        "IN <socket of domain 0> WRITE (b'')",
        "OUT <socket of domain 0> ERROR (b'EINVAL\\x00')",
    ]
    tool.ask("CONTROL", "log", "off")
    machine.log.clear()
    tool.value("/tool")
    assert machine.log == []
