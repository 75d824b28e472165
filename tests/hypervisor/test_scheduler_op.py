"""Weight, cap and time slice, as a control domain asks for them."""

import pytest

from hypervisor.abi import domctl, sysctl
from hypervisor.abi.errno import XEN_EINVAL, XEN_EPERM, XEN_ESRCH
from hypervisor.abi.xen import __HYPERVISOR_domctl as domctl_number
from hypervisor.abi.xen import __HYPERVISOR_sysctl as sysctl_number
from hypervisor.credit import MILLISECOND_NS
from hypervisor.machine import Machine
from tests.hypervisor.fakes import ARGUMENT, FakeHost, Guest

PUT, GET = domctl.XEN_DOMCTL_SCHEDOP_putinfo, domctl.XEN_DOMCTL_SCHEDOP_getinfo


@pytest.fixture
def dom0() -> Guest:
    return Guest(Machine(FakeHost(), 64 << 20, pcpus=3), pages=16)


def of_domain(
    caller: Guest,
    domid: int,
    cmd: int,
    weight: int = 0,
    cap: int = 0,
    *,
    sched_id: int = domctl.XEN_SCHEDULER_CREDIT,
) -> tuple[int, tuple[int, int]]:
    request = domctl.xen_domctl(
        cmd=domctl.XEN_DOMCTL_scheduler_op,
        interface_version=domctl.XEN_DOMCTL_INTERFACE_VERSION,
        domain=domid,
    )
    request.u.scheduler_op = domctl.xen_domctl_scheduler_op(sched_id=sched_id, cmd=cmd)
    request.u.scheduler_op.u.credit = domctl.xen_domctl_sched_credit(weight=weight, cap=cap)
    caller.domain.memory.write_struct(ARGUMENT, request)
    result = caller.hypercall(domctl_number, ARGUMENT)
    credit = caller.domain.memory.read_struct(domctl.xen_domctl, ARGUMENT).u.scheduler_op.u.credit
    return result, (credit.weight, credit.cap)


def of_machine(
    caller: Guest,
    cmd: int,
    tslice_ms: int = 0,
    ratelimit_us: int = 0,
    delay_us: int = 0,
    *,
    pool: int = 0,
    sched_id: int = domctl.XEN_SCHEDULER_CREDIT,
) -> tuple[int, tuple[int, int, int]]:
    request = sysctl.xen_sysctl(
        cmd=sysctl.XEN_SYSCTL_scheduler_op, interface_version=sysctl.XEN_SYSCTL_INTERFACE_VERSION
    )
    request.u.scheduler_op = sysctl.xen_sysctl_scheduler_op(cpupool_id=pool, sched_id=sched_id, cmd=cmd)
    request.u.scheduler_op.u.sched_credit = sysctl.xen_sysctl_credit_schedule(
        tslice_ms=tslice_ms, ratelimit_us=ratelimit_us, vcpu_migr_delay_us=delay_us
    )
    caller.domain.memory.write_struct(ARGUMENT, request)
    result = caller.hypercall(sysctl_number, ARGUMENT)
    found = caller.domain.memory.read_struct(sysctl.xen_sysctl, ARGUMENT).u.scheduler_op.u.sched_credit
    return result, (found.tslice_ms, found.ratelimit_us, found.vcpu_migr_delay_us)


def test_a_domain_begins_with_xens_weight_and_no_cap(dom0: Guest) -> None:
    assert of_domain(dom0, Guest(dom0.machine).domid, GET) == (0, (256, 0))


def test_weight_and_cap_are_set_each_by_itself(dom0: Guest) -> None:
    guest = Guest(dom0.machine)
    assert of_domain(dom0, guest.domid, PUT, 512, 40)[0] == 0
    assert of_domain(dom0, guest.domid, GET) == (0, (512, 40))
    assert of_domain(dom0, guest.domid, PUT, 0, 0)[0] == 0
    assert of_domain(dom0, guest.domid, GET) == (0, (512, 0))
    assert of_domain(dom0, guest.domid, PUT, 65535, 0xFFFF)[0] == 0
    assert of_domain(dom0, guest.domid, GET) == (0, (65535, 0))
    assert of_domain(dom0, 0, GET) == (0, (256, 0))


def test_whoever_schedules_is_told(dom0: Guest) -> None:
    told: list[int] = []
    dom0.machine.scheduler.on_change = lambda: told.append(1)
    of_domain(dom0, 0, GET)
    assert told == []
    of_domain(dom0, 0, PUT, 300)
    of_machine(dom0, sysctl.XEN_SYSCTL_SCHEDOP_putinfo, 20, 500)
    assert told == [1, 1]


@pytest.mark.parametrize(
    ("cmd", "sched_id"),
    [
        (domctl.XEN_DOMCTL_SCHEDOP_putvcpuinfo, domctl.XEN_SCHEDULER_CREDIT),
        (domctl.XEN_DOMCTL_SCHEDOP_getvcpuinfo, domctl.XEN_SCHEDULER_CREDIT),
        (4, domctl.XEN_SCHEDULER_CREDIT),
        (2**32 - 1, domctl.XEN_SCHEDULER_CREDIT),
        (GET, domctl.XEN_SCHEDULER_CREDIT2),
        (PUT, 0),
    ],
)
def test_what_the_credit_scheduler_does_not_do(dom0: Guest, cmd: int, sched_id: int) -> None:
    assert of_domain(dom0, 0, cmd, 1, 1, sched_id=sched_id)[0] == -XEN_EINVAL
    assert of_domain(dom0, 0, GET) == (0, (256, 0))


def test_a_domain_that_is_not_there(dom0: Guest) -> None:
    assert of_domain(dom0, 7, GET)[0] == -XEN_ESRCH


def test_the_time_slice_begins_as_xens_and_can_be_set(dom0: Guest) -> None:
    put, get = sysctl.XEN_SYSCTL_SCHEDOP_putinfo, sysctl.XEN_SYSCTL_SCHEDOP_getinfo
    assert of_machine(dom0, get) == (0, (30, 1000, 0))
    assert of_machine(dom0, put, 5, 200) == (0, (5, 200, 0))
    assert of_machine(dom0, put, 1, 1000, 100000) == (0, (1, 1000, 0))
    assert of_machine(dom0, put, 1000, 0) == (0, (1000, 0, 0))
    assert of_machine(dom0, get) == (0, (1000, 0, 0))
    assert dom0.machine.scheduler.slice_ns == 1000 * MILLISECOND_NS


@pytest.mark.parametrize(
    ("tslice_ms", "ratelimit_us", "delay_us"),
    [
        (0, 0, 0),
        (1001, 1000, 0),
        (2**32 - 1, 1000, 0),
        (30, 99, 0),
        (600, 500001, 0),
        (1, 1001, 0),
        (30, 1000, 100001),
    ],
)
def test_slices_out_of_xens_bounds_are_refused(
    dom0: Guest, tslice_ms: int, ratelimit_us: int, delay_us: int
) -> None:
    put, get = sysctl.XEN_SYSCTL_SCHEDOP_putinfo, sysctl.XEN_SYSCTL_SCHEDOP_getinfo
    assert of_machine(dom0, put, tslice_ms, ratelimit_us, delay_us)[0] == -XEN_EINVAL
    assert of_machine(dom0, get) == (0, (30, 1000, 0))


def test_other_pools_schedulers_and_commands_are_refused(dom0: Guest) -> None:
    get = sysctl.XEN_SYSCTL_SCHEDOP_getinfo
    assert of_machine(dom0, get, pool=1)[0] == -XEN_ESRCH
    assert of_machine(dom0, get, sched_id=domctl.XEN_SCHEDULER_NULL)[0] == -XEN_EINVAL
    assert of_machine(dom0, 2)[0] == -XEN_EINVAL


def test_which_scheduler_it_is_and_its_processors(dom0: Guest) -> None:
    version = sysctl.XEN_SYSCTL_INTERFACE_VERSION
    memory = dom0.domain.memory
    memory.write_struct(
        ARGUMENT, sysctl.xen_sysctl(cmd=sysctl.XEN_SYSCTL_sched_id, interface_version=version)
    )
    assert dom0.hypercall(sysctl_number, ARGUMENT) == 0
    found = memory.read_struct(sysctl.xen_sysctl, ARGUMENT)
    assert found.u.sched_id.sched_id == domctl.XEN_SCHEDULER_CREDIT
    memory.write_struct(
        ARGUMENT, sysctl.xen_sysctl(cmd=sysctl.XEN_SYSCTL_physinfo, interface_version=version)
    )
    assert dom0.hypercall(sysctl_number, ARGUMENT) == 0
    info = memory.read_struct(sysctl.xen_sysctl, ARGUMENT).u.physinfo
    assert (info.nr_cpus, info.max_cpu_id, info.cores_per_socket, info.threads_per_core) == (3, 2, 3, 1)


def test_a_guest_may_not_ask(dom0: Guest) -> None:
    guest = Guest(dom0.machine)
    assert of_domain(guest, guest.domid, GET)[0] == -XEN_EPERM
    assert of_domain(guest, guest.domid, PUT, 65535)[0] == -XEN_EPERM
    assert of_machine(guest, sysctl.XEN_SYSCTL_SCHEDOP_putinfo, 1, 1000)[0] == -XEN_EPERM
    assert guest.domain.share.weight == 256
