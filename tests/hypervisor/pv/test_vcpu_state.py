"""A vCPU's state written down and read again."""

from struct import pack
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from hypervisor.errors import InvalidArgument, XenError
from hypervisor.pv.vcpu import PvVcpu
from hypervisor.pv.vcpu_state import VcpuState, dump_vcpu, load_vcpu, take_frames
from tests.hypervisor.pv.cpu_guest import CODE, DATA, GDT, CpuGuest, booted
from tests.hypervisor.pv.paging import L1, mfn, va


@pytest.fixture
def guest() -> CpuGuest:
    guest = booted(masks=4)
    assert guest.call("set_timer_op", guest.time_ns + 12345678) == 0
    assert guest.register(1, 0x4000, 1) == 0
    guest.put(DATA, pack("<QII", mfn(CODE), 64, 0))
    assert guest.call("vcpu_op", 10, 0, va(DATA)) == 0
    guest.vcpu.poll_ports = (3, 4)
    return guest


def differences(one: PvVcpu, other: PvVcpu) -> list[str]:
    names = [
        name for name in PvVcpu.__slots__ if name not in ("domain", "info", "info_words", "published_ns")
    ]
    found = []
    for name in names:
        left, right = getattr(one, name), getattr(other, name)
        if hasattr(left, "masks_events"):
            left, right = (left.address, left.masks_events), (right.address, right.masks_events)
        if left != right:
            found.append(name)
    return found


def revived(guest: CpuGuest, state: VcpuState) -> PvVcpu:
    """In a domain of its own, whose memory is the same."""
    domain = SimpleNamespace(**vars(guest.domain))
    vcpu = PvVcpu(domain, 0, memoryview(bytearray(64)))  # type: ignore[arg-type]
    load_vcpu(vcpu, state)
    take_frames(vcpu, state)
    return vcpu


def test_all_of_it_comes_back(guest: CpuGuest) -> None:
    text = dump_vcpu(guest.vcpu).model_dump_json()
    vcpu = revived(guest, VcpuState.model_validate_json(text))
    assert not differences(guest.vcpu, vcpu)
    assert bytes(vcpu.info) == bytes(guest.vcpu.info)
    vcpu.info[0] ^= 1
    assert bytes(vcpu.info) == bytes(guest.vcpu.info), "it is the same memory"
    assert guest.counted(GDT)[1] == 2, "each vCPU refers to its GDT"


def test_a_vcpu_that_was_not_executed_keeps_its_context(guest: CpuGuest) -> None:
    from tests.hypervisor.pv.test_vcpu_op import second

    guest.put(DATA, second()[:4096])
    guest.put(DATA + 1, second()[4096:])
    assert guest.call("vcpu_op", 0, 1, va(DATA)) == 0
    vcpu = revived(guest, dump_vcpu(guest.vcpus[1]))
    assert vcpu.context is not None
    assert vcpu.context.pack() == second()


def test_the_memory_of_a_vcpu_without_a_place_in_shared_info_is_kept(guest: CpuGuest) -> None:
    vcpu = PvVcpu(guest.domain, 33, memoryview(bytearray(range(64))))  # type: ignore[arg-type]
    state = dump_vcpu(vcpu)
    assert bytes(revived(guest, state).info) == bytes(range(64))
    assert dump_vcpu(guest.vcpus[1]).private_info is None


@pytest.mark.parametrize(
    "changes",
    [
        {"iopl": 1 << 20},
        {"kernel_root": -1},
        {"kernel_root": 1 << 20},
        {"info_offset": 4090},
        {"cr2": 1 << 64},
        {"unknown": 1},
        {"private_info": "AAAA"},
        {"gdt": [1 << 30]},
    ],
)
def test_what_no_vcpu_can_have_is_no_state(guest: CpuGuest, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VcpuState.model_validate(dump_vcpu(guest.vcpu).model_dump() | changes)


def test_frames_that_are_not_what_they_should_be_are_refused(guest: CpuGuest) -> None:
    state = dump_vcpu(guest.vcpu)
    with pytest.raises(XenError):
        revived(guest, state.model_copy(update={"gdt": [mfn(L1)]}))
    with pytest.raises(XenError):
        revived(guest, state.model_copy(update={"info_mfn": mfn(L1)}))
    with pytest.raises(InvalidArgument, match="GDT frames"):
        revived(guest, state.model_copy(update={"gdt": []}))
    with pytest.raises(InvalidArgument, match="trap vectors"):
        revived(guest, state.model_copy(update={"traps": {256: state.traps[0]}}))
