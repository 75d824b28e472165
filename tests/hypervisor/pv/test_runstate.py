"""Runstates at slice borders: why a vCPU does not execute."""

import pytest

from hypervisor.abi.vcpu import RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_runnable, RUNSTATE_running
from hypervisor.pv import runstate
from tests.hypervisor.pv.cpu_guest import CpuGuest


@pytest.mark.parametrize(
    ("online", "blocked", "state"),
    [
        (True, False, RUNSTATE_runnable),
        (True, True, RUNSTATE_blocked),
        (False, False, RUNSTATE_offline),
        (False, True, RUNSTATE_offline),
    ],
)
def test_who_stands_says_why(online: bool, blocked: bool, state: int) -> None:
    vcpu = CpuGuest().vcpu
    vcpu.runstate_entry_ns, before = 100, list(vcpu.runstate_ns)
    runstate.run(vcpu, 100)
    vcpu.online, vcpu.blocked = online, blocked
    runstate.stand(vcpu, 130)
    runstate.stand(vcpu, 150)  # once more, as nothing has changed
    assert (vcpu.runstate, vcpu.runstate_entry_ns) == (state, 130)
    runstate.run(vcpu, 170)
    spent = [now - then for now, then in zip(vcpu.runstate_ns, before)]
    assert spent == [30 if each == RUNSTATE_running else 40 if each == state else 0 for each in range(4)]
