"""xen_version: what a guest learns, and that nothing else comes with it."""

import pytest

from hypervisor.abi import features, version
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOBUFS, XEN_EPERM
from hypervisor.abi.xen import __HYPERVISOR_xen_version as xen_version
from hypervisor.domain import Traits
from tests.hypervisor.fakes import ARGUMENT, Guest, new_machine


@pytest.fixture
def dom0() -> Guest:
    return Guest(new_machine()[0])


@pytest.fixture
def guest(dom0: Guest) -> Guest:
    return Guest(dom0.machine)


def ask(caller: Guest, operation: int, size: int) -> tuple[int, bytes]:
    """The answer, on memory that is full of something else (XSA-122, -132)."""
    caller.domain.memory.write(ARGUMENT, b"\xaa" * (size + 8))
    result = caller.hypercall(xen_version, operation, ARGUMENT)
    answer = caller.domain.memory.read(ARGUMENT, size + 8)
    assert answer[size:] == b"\xaa" * 8, "not a byte more"
    return result, answer[:size]


def test_version(guest: Guest) -> None:
    assert guest.hypercall(xen_version, version.XENVER_version) == 4 << 16 | 17


@pytest.mark.parametrize(
    ("operation", "size", "text"),
    [
        (version.XENVER_extraversion, version.XEN_EXTRAVERSION_LEN, b".0-domzero"),
        (version.XENVER_capabilities, version.XEN_CAPABILITIES_INFO_LEN, b"xen-3.0-x86_64 hvm-3.0-x86_64 "),
        (version.XENVER_changeset, version.XEN_CHANGESET_INFO_LEN, b"domzero"),
        (version.XENVER_compile_info, version.xen_compile_info.size, b"python"),
    ],
)
def test_strings_are_padded_with_zeros(guest: Guest, operation: int, size: int, text: bytes) -> None:
    result, answer = ask(guest, operation, size)
    assert result == 0
    assert answer.split(b"\0")[0] == text
    assert set(answer) - set(text) <= set(b"\0domzero")
    assert answer[-1] == 0


def test_features_of_a_translated_guest(dom0: Guest, guest: Guest) -> None:
    for caller, is_dom0 in ((guest, False), (dom0, True)):
        result, info = caller.operate(
            xen_version, version.XENVER_get_features, version.xen_feature_info(submap=0xFFFF_FFFF)
        )
        assert result == 0
        bits = {bit for bit in range(32) if info.submap >> bit & 1}
        assert features.XENFEAT_auto_translated_physmap in bits
        assert features.XENFEAT_direct_mapped not in bits
        assert features.XENFEAT_not_direct_mapped in bits
        assert (features.XENFEAT_dom0 in bits) == is_dom0


def test_there_is_one_word_of_features(guest: Guest) -> None:
    for index in (1, 2, 0xFFFF_FFFF):
        info = version.xen_feature_info(submap_idx=index)
        assert guest.operate(xen_version, version.XENVER_get_features, info)[0] == -XEN_EINVAL


def test_pagesize_and_virtual_start(guest: Guest) -> None:
    assert guest.hypercall(xen_version, version.XENVER_pagesize, 0) == 4096
    assert guest.hypercall(xen_version, version.XENVER_pagesize, 1) == -XEN_EINVAL
    result, answer = ask(guest, version.XENVER_platform_parameters, 8)
    assert (result, int.from_bytes(answer, "little")) == (0, 0xFFFF_8000_0000_0000)


def test_a_guest_knows_its_handle(dom0: Guest) -> None:
    handle = bytes(range(16))
    domain = dom0.machine.create_domain(Traits(handle=handle), max_pages=1)
    domain.add_vcpus()
    domain.memory.add_ram(0, domain.reservation.allocate(1)[0].mfn, 1)
    domain.unpause()
    call = (version.XENVER_guest_handle, 0x20)
    assert dom0.machine.hypercall(domain.vcpus[0], xen_version, call) == 0
    assert domain.memory.read(0x20, 16) == handle


def test_the_command_line_is_for_control_domains(dom0: Guest, guest: Guest) -> None:
    assert ask(guest, version.XENVER_commandline, 9) == (0, b"<denied>\0")
    assert ask(dom0, version.XENVER_commandline, 1024) == (0, bytes(1024))


def test_the_build_id_is_for_control_domains(dom0: Guest, guest: Guest) -> None:
    assert guest.hypercall(xen_version, version.XENVER_build_id, 0) == -XEN_EPERM
    assert dom0.hypercall(xen_version, version.XENVER_build_id, 0) == 20
    for length, expected in ((0, -XEN_EINVAL), (19, -XEN_ENOBUFS), (20, 20), (4000, 20)):
        request = version.xen_build_id(len=length)
        assert dom0.operate(xen_version, version.XENVER_build_id, request)[0] == expected
    assert dom0.domain.memory.read(ARGUMENT + 4, 20) != bytes(20)


@pytest.mark.parametrize("operation", sorted(set(range(1, 11)) - {version.XENVER_pagesize}))
def test_handles_are_checked(dom0: Guest, operation: int) -> None:
    for address in (8 << 12, (1 << 64) - 1):
        assert dom0.hypercall(xen_version, operation, address) == -XEN_EFAULT
