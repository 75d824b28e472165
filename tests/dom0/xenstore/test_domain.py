"""One life of a domain: whoever gets its number afterwards gets nothing else."""

from dom0.xenstore.domain import DomainInfo
from tests.dom0.xenstore.clients import FakeMachine


def test_permissions_do_not_pass_to_the_next_domain_with_the_number() -> None:
    """XSA-322: granted to an introduced domain."""
    machine = FakeMachine()
    tool, first = machine.tool(), machine.guest(5)
    machine.guest(6)
    tool.write("/secret", "x")
    assert tool.permit("/secret", "n0", "r5", "r6") == b"OK\0"
    assert first.value("/secret") == b"x"
    machine.destroy(5)
    second = machine.guest(5)
    assert second.value("/secret") == b"EACCES"
    assert tool.ask("GET_PERMS", "/secret") == b"n0\0r5\0r6\0"
    tool.write("/secret", "y")
    tool.write("/secret/below", "y")
    assert second.value("/secret") == b"EACCES"
    assert second.value("/secret/below") == b"EACCES"


def test_permissions_for_a_number_that_nobody_has_never_match() -> None:
    """XSA-417: granted before the daemon, or the hypervisor, knew of the domain."""
    machine = FakeMachine()
    tool = machine.tool()
    tool.write("/secret", "x")
    tool.permit("/secret", "n0", "r5")
    assert machine.guest(5).value("/secret") == b"EACCES"
    tool.permit("/secret", "n0", "r5")
    machine.alive[9] = DomainInfo()
    tool.permit("/secret", "n0", "r9")
    del machine.alive[9]
    machine.core.domains.check(machine.core)
    assert machine.guest(9).value("/secret") == b"EACCES"


def test_special_watches_that_a_dead_domain_owned_are_the_control_domains() -> None:
    machine = FakeMachine()
    tool = machine.tool()
    machine.guest(5)
    tool.permit("@releaseDomain", "b5")
    machine.destroy(5)
    other = machine.guest(5)
    other.ask("WATCH", "@releaseDomain", "t")
    other.take_events()
    machine.guest(6)
    machine.destroy(6)
    assert other.take_events() == []


def test_counters_start_at_zero_and_the_store_does_not_grow() -> None:
    """XSA-419, XSA-483: a guest that fills shared directories and reboots, again and again."""
    machine = FakeMachine()
    tool = machine.tool()
    tool.write("/shared")
    tool.permit("/shared", "b0")
    sizes = set()
    for _ in range(50):
        guest = machine.guest(5)
        assert machine.core.domains.known[5].nodes == 1
        for number in range(30):
            assert guest.write(f"/shared/{number}", "x") == b"OK\0"
        guest.start()
        machine.destroy(5)
        tool.ask("RM", "/local/domain/5")
        sizes.add((len(machine.core.store.nodes), machine.core.domains.control.memory))
    assert len(sizes) == 1
    machine.require_consistency()


def test_a_helper_keeps_nothing_of_a_dead_target() -> None:
    machine = FakeMachine()
    tool, helper = machine.tool(), machine.guest(6)
    machine.guest(5)
    tool.ask("SET_TARGET", "6", "5")
    machine.destroy(5)
    machine.guest(5)
    assert helper.value("/local/domain/5/data") == b"EACCES"
