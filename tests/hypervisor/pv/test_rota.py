"""The vCPUs of a native domain have their turns."""

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.pv.rota import QUANTUM_NS, Rota
from hypervisor.pv.vcpu import VCPU_INFO_SIZE, PvVcpu


def some_vcpus(count: int) -> list[PvVcpu]:
    info = memoryview(bytearray(count * VCPU_INFO_SIZE))
    vcpus = [
        PvVcpu(None, at, info[at * VCPU_INFO_SIZE : (at + 1) * VCPU_INFO_SIZE])  # type: ignore[arg-type]
        for at in range(count)
    ]
    for vcpu in vcpus:
        vcpu.online = True
    return vcpus


def test_a_quantum_may_be_used_in_parts() -> None:
    one, two = vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    assert rota.choose(None) is one
    for _ in range(4):
        assert rota.choose(one) is one
        rota.used(QUANTUM_NS // 4)
    assert rota.choose(one) is two
    rota.used(2 * QUANTUM_NS)
    assert rota.choose(two) is one


def test_one_that_yields_gives_the_rest_away_unless_it_is_alone() -> None:
    one, two = vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    assert rota.choose(None) is one
    rota.yielded = True
    assert rota.choose(one) is two
    assert not rota.lonely
    one.blocked = True
    rota.yielded = True
    assert rota.choose(two) is two
    assert rota.lonely
    assert rota.choose(two) is two
    assert not rota.lonely


def test_one_that_is_sent_an_ipi_comes_next() -> None:
    vcpus = some_vcpus(4)
    rota = Rota(vcpus)
    assert rota.choose(None) is vcpus[0]
    rota.prefer(vcpus[2])
    assert rota.choose(vcpus[0]) is vcpus[2]
    rota.prefer(vcpus[2])
    assert rota.choose(vcpus[2]) is vcpus[2]
    vcpus[1].blocked = True
    rota.prefer(vcpus[1])
    assert rota.choose(vcpus[2]) is vcpus[2]


def test_nobody_executes_when_all_wait() -> None:
    vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    vcpus[0].blocked = True
    vcpus[1].online = False
    assert rota.choose(vcpus[0]) is None
    vcpus[0].blocked = False
    assert rota.choose(vcpus[0]) is vcpus[0]


@given(st.integers(1, 8), st.lists(st.integers(0, QUANTUM_NS // 2), min_size=200, max_size=200))
def test_everybody_has_turns_whoever_ends_slices_early(count: int, used: list[int]) -> None:
    vcpus = some_vcpus(count)
    rota, last = Rota(vcpus), None
    time = dict.fromkeys(range(count), 0)
    for nanoseconds in used:
        last = rota.choose(last)
        assert last is not None
        rota.used(nanoseconds)
        time[last.id] += nanoseconds
    assert max(time.values()) - min(time.values()) <= 2 * QUANTUM_NS
