"""The hypercall page: what is in it, and who gets one."""

import pytest

from hypervisor.abi import domctl as abi
from hypervisor.abi.errno import XEN_EBUSY, XEN_EINVAL, XEN_EOPNOTSUPP, XEN_EPERM
from hypervisor.abi.xen import HYPERVISOR_iret
from hypervisor.domain import Domain
from hypervisor.hypercall_page import PAGE
from hypervisor.pv.layout import RAM_FIRST, SHARED_INFO_MFN
from tests.hypervisor.fakes import Guest, new_machine
from tests.hypervisor.grant_guests import GrantGuest
from tests.hypervisor.test_domctl import control, created
from tests.hypervisor.test_native_domain import native


@pytest.fixture
def dom0() -> Guest:
    return GrantGuest(new_machine(256 << 20)[0], pages=64)


def ask(guest: Guest, domid: int, mfn: int) -> int:
    def fill(request: abi.xen_domctl) -> None:
        request.u.hypercall_init = abi.xen_domctl_hypercall_init(gmfn=mfn)

    return control(guest, abi.XEN_DOMCTL_hypercall_init, domid, fill)[0]


def frame(domain: Domain, mfn: int) -> bytes:
    page = domain.memory.ram_page(mfn)
    assert page is not None
    return bytes(page)


def test_every_entry_is_a_system_call_with_its_number() -> None:
    assert len(PAGE) == 4096
    for number in range(128):
        entry = PAGE[32 * number : 32 * number + 32]
        code, _, rest = entry.partition(b"\xcc")
        assert set(rest) <= {0xCC}
        move = b"\xb8" + bytes([number, 0, 0, 0])
        if number == HYPERVISOR_iret:  # push rcx; push r11; push rax; mov eax, number; syscall
            assert code == b"\x51\x41\x53\x50" + move + b"\x0f\x05"
        else:  # push rcx; push r11; mov eax, number; syscall; pop r11; pop rcx; ret
            assert code == b"\x51\x41\x53" + move + b"\x0f\x05\x41\x5b\x59\xc3"


def test_it_is_filled_where_the_toolstack_says(dom0: Guest) -> None:
    domain = native(dom0)
    assert ask(dom0, domain.domid, RAM_FIRST + 5) == 0
    assert frame(domain, RAM_FIRST + 5) == PAGE
    assert frame(domain, RAM_FIRST + 4) == frame(domain, RAM_FIRST + 6) == bytes(4096)


@pytest.mark.parametrize("mfn", [0, SHARED_INFO_MFN, RAM_FIRST - 1, RAM_FIRST + 16, (1 << 64) - 1])
def test_only_ram_is_filled(dom0: Guest, mfn: int) -> None:
    assert ask(dom0, native(dom0).domid, mfn) == -XEN_EINVAL


def test_not_in_a_domain_that_runs_or_has_no_such_kernel(dom0: Guest) -> None:
    domain = native(dom0)
    assert control(dom0, abi.XEN_DOMCTL_unpausedomain, domain.domid)[0] == 0
    assert ask(dom0, domain.domid, RAM_FIRST) == -XEN_EBUSY
    assert frame(domain, RAM_FIRST) == bytes(4096)
    _, translated = created(dom0)
    assert ask(dom0, translated, 0) == -XEN_EOPNOTSUPP
    assert ask(dom0, 0, 0) == -XEN_EINVAL


def test_only_a_control_domain_may_ask(dom0: Guest) -> None:
    domain = native(dom0)
    assert ask(GrantGuest(dom0.machine, pages=16), domain.domid, RAM_FIRST) == -XEN_EPERM
