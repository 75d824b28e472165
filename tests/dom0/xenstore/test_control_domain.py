"""What the store holds before any guest: as xenstore-ls showed it on Xen."""

from pathlib import Path

from dom0.xenstore import control_domain
from tests.dom0.xenstore.clients import FakeMachine

IDLE = Path(__file__).parents[2] / "data" / "xenstore-dom0-idle.txt"


def test_the_control_domain_is_described_as_on_xen() -> None:
    machine = FakeMachine()
    control_domain.describe(machine.core)
    recorded = [line for line in IDLE.read_text().splitlines() if not line.startswith("#")]
    nodes = machine.core.store.nodes
    found = {
        f'{path.decode()} = "{node.value.decode()}"   ({node.permissions.wire.decode()[:-1]})'
        for path, node in nodes.items()
        if path != b"/"
    }
    assert found == set(recorded)
    machine.require_consistency()
