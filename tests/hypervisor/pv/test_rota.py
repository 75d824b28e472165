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


def test_a_turn_may_be_used_in_parts() -> None:
    one, two = vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    assert rota.choose() is one
    for _ in range(4):
        assert rota.choose() is one
        rota.used(QUANTUM_NS // 4)
    assert rota.choose() is two
    rota.used(2 * QUANTUM_NS)
    assert rota.choose() is one


def test_one_that_yields_gives_the_rest_away_unless_it_is_alone() -> None:
    one, two = vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    assert rota.choose() is one
    rota.yielded = True
    assert rota.choose() is two
    assert not rota.lonely
    one.blocked = True
    rota.yielded = True
    assert rota.choose() is two
    assert rota.lonely
    assert rota.choose() is two
    assert not rota.lonely


def test_one_that_is_sent_an_ipi_visits_and_the_turn_goes_on_afterwards() -> None:
    vcpus = some_vcpus(4)
    rota = Rota(vcpus)
    assert rota.choose() is vcpus[0]
    rota.used(QUANTUM_NS // 4)
    rota.prefer(vcpus[2])
    assert rota.choose() is vcpus[2]
    rota.used(QUANTUM_NS // 4)
    assert rota.choose() is vcpus[2]
    vcpus[2].blocked = True
    assert rota.choose() is vcpus[0]
    rota.used(QUANTUM_NS * 3 // 4)
    assert rota.choose() is vcpus[1]


def test_a_visitor_that_yields_or_has_visited_enough_goes() -> None:
    vcpus = some_vcpus(3)
    rota = Rota(vcpus)
    assert rota.choose() is vcpus[0]
    rota.prefer(vcpus[2])
    assert rota.choose() is vcpus[2]
    rota.yielded = True
    assert rota.choose() is vcpus[0]
    assert not rota.lonely
    rota.prefer(vcpus[1])
    assert rota.choose() is vcpus[1]
    rota.used(QUANTUM_NS)
    assert rota.choose() is vcpus[0]
    rota.prefer(vcpus[2])
    assert rota.choose() is vcpus[0]


def test_one_whose_turn_it_is_cannot_visit_itself_and_a_blocked_one_nobody() -> None:
    vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    assert rota.choose() is vcpus[0]
    rota.prefer(vcpus[0])
    assert rota.choose() is vcpus[0]
    rota.used(QUANTUM_NS)
    vcpus[1].blocked = True
    rota.prefer(vcpus[1])
    assert rota.choose() is vcpus[0]


def test_nobody_executes_when_all_wait() -> None:
    vcpus = some_vcpus(2)
    rota = Rota(vcpus)
    vcpus[0].blocked = True
    vcpus[1].online = False
    assert rota.choose() is None
    vcpus[0].blocked = False
    assert rota.choose() is vcpus[0]


@given(
    st.integers(1, 8),
    st.lists(
        st.tuples(st.integers(0, QUANTUM_NS), st.none() | st.integers(0, 7), st.booleans()),
        min_size=300,
        max_size=300,
    ),
)
def test_nobody_is_left_out_whoever_is_preferred(
    count: int, steps: list[tuple[int, int | None, bool]]
) -> None:
    vcpus = some_vcpus(count)
    rota = Rota(vcpus)
    waited = [0] * count
    for nanoseconds, preferred, yielded in steps:
        if preferred is not None:
            rota.prefer(vcpus[preferred % count])
        rota.yielded = yielded
        chosen = rota.choose()
        assert chosen is not None
        rota.used(nanoseconds)
        for vcpu in vcpus:
            waited[vcpu.id] = 0 if vcpu is chosen else waited[vcpu.id] + nanoseconds
        # Of each other one a turn and visits, each of which may be overdrawn by one slice.
        assert max(waited) <= 4 * count * QUANTUM_NS


def test_vcpus_that_wake_each_other_for_ever_leave_the_third_its_turns() -> None:
    one, two, three = vcpus = some_vcpus(3)
    rota = Rota(vcpus)
    time = dict.fromkeys(vcpus, 0)
    chosen = rota.choose()
    for _ in range(3000):
        assert chosen is not None
        rota.used(QUANTUM_NS // 10)
        time[chosen] += QUANTUM_NS // 10
        if chosen in (one, two):
            rota.prefer(two if chosen is one else one)
        chosen = rota.choose()
    assert time[three] >= sum(time.values()) // 7
