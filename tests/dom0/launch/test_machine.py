"""A machine with its dom0, before anything runs."""

import os

import pytest

from dom0.launch.machine import build_machine
from hypervisor.errors import XenError
from hypervisor.lifecycle import Life
from hypervisor.vcpu.coroutine_host import CoroutineHost

MIB = 1 << 20


def test_dom0_has_its_ram_and_everything_may_be_asked_of_it() -> None:
    machine, dom0 = build_machine(CoroutineHost(lambda _domain, _data: None), 64 * MIB, 8 * MIB)
    assert (dom0.domid, dom0.privileged, dom0.life, len(dom0.vcpus)) == (0, True, Life.CREATED, 1)
    assert dom0.tot_pages == 8 * MIB // 4096
    assert list(machine.domains) == [0]
    assert machine.audit() == []


def test_native_domains_share_the_hosts_processors_unless_it_is_said_how_many() -> None:
    host = CoroutineHost(lambda _domain, _data: None)
    assert build_machine(host, 64 * MIB, 8 * MIB)[0].scheduler.pcpus == len(os.sched_getaffinity(0))
    assert build_machine(host, 64 * MIB, 8 * MIB, pcpus=7)[0].scheduler.pcpus == 7


def test_a_machine_smaller_than_its_dom0() -> None:
    with pytest.raises(XenError):
        build_machine(CoroutineHost(lambda _domain, _data: None), 8 * MIB, 64 * MIB)
