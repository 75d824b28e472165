"""Engines of native domains on the machine's processors: in virtual time, and once in real time."""

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.vcpu.native.turn import BLOCKS, GATE, STATE, TELL, State
from tests.hypervisor.vcpu.native.turns import STEP_NS, TICK_STEPS, Process, TurnMachine, Wants

SLICE = 3 * TICK_STEPS
LONG = 8000


def bursts(period: int, length: int) -> Wants:
    """Something to do for `length` steps in every `period`."""
    return lambda step: step % period < length


def test_while_there_are_processors_for_all_nothing_happens() -> None:
    machine = TurnMachine(3, [Process(), Process(wants=bursts(7, 3)), Process(wants=bursts(100, 1))])
    machine.run(LONG)
    assert machine.ticks <= 1
    assert [process.asked for process in machine.processes] == [0, 0, 0]
    assert machine.processes[0].ran == LONG
    assert machine.processes[1].ran >= LONG * 3 // 7


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(32, 1024), min_size=2, max_size=5), st.integers(1, 2))
def test_who_computes_shares_by_weight(weights: list[int], pcpus: int) -> None:
    processes = [Process(weight=weight) for weight in weights]
    TurnMachine(pcpus, processes).run(LONG)
    for process in processes:
        share = min(1, pcpus * process.weight / sum(weights))
        assert process.ran >= share * LONG - (len(processes) + 2) * SLICE
    assert sum(process.ran for process in processes) <= pcpus * LONG + SLICE


def test_a_processor_that_somebody_leaves_is_taken_at_once() -> None:
    leaver, other = Process(wants=bursts(400, 200)), Process()
    machine = TurnMachine(1, [leaver, other])
    machine.run(LONG)
    assert leaver.ran + other.ran >= LONG - 2 * LONG // 400


def test_who_uses_little_runs_at_once_beside_the_others() -> None:
    waker = Process(wants=bursts(20, 4))
    TurnMachine(1, [Process(), Process(), waker]).run(LONG)
    assert waker.ran >= LONG * 4 // 20 - SLICE
    assert waker.asked <= LONG // TICK_STEPS / 10


def test_who_uses_little_takes_nobodys_processor_though_it_runs_when_it_is_looked_at() -> None:
    busy = Process()
    wakers = [Process(wants=lambda step: step % 20 >= 16) for _ in range(2)]
    TurnMachine(2, [busy, *wakers]).run(LONG)
    assert busy.ran >= LONG - SLICE
    assert sum(waker.asked for waker in wakers) <= 1  # all want to run at first


def test_what_it_uses_is_taken_from_the_others() -> None:
    processes = [Process(), Process(), Process(wants=bursts(20, 4))]
    TurnMachine(1, processes).run(LONG)
    assert sum(process.ran for process in processes) <= LONG + SLICE
    assert abs(processes[0].ran - processes[1].ran) <= 3 * SLICE


@pytest.mark.parametrize("cap", [5, 30, 80])
@pytest.mark.parametrize("wants", [bursts(1, 1), bursts(20, 18), bursts(400, 350)])
def test_a_cap_holds_though_processors_are_free(cap: int, wants: Wants) -> None:
    process = Process(cap=cap, wants=wants)
    TurnMachine(2, [process]).run(LONG)
    assert process.ran <= LONG * cap / 100 + SLICE
    assert process.ran >= min(LONG * cap / 100, sum(map(wants, range(LONG)))) * 0.85 - SLICE


def test_a_cap_that_is_set_later_counts_from_then_on() -> None:
    process = Process()
    machine = TurnMachine(2, [process])
    machine.run(LONG)
    process.guest.domain.share.cap = 10
    machine.machine.scheduler.changed()
    machine.pcpus.hurry()
    machine.run(LONG)
    assert abs(process.ran - LONG - LONG / 10) <= SLICE
    process.guest.domain.share.cap = 0
    machine.run(LONG)
    assert process.ran >= 2 * LONG


def test_idle_guests_are_looked_at_seldom() -> None:
    machine = TurnMachine(1, [Process(wants=bursts(4000, 2)) for _ in range(4)])
    machine.run(LONG)
    assert machine.ticks <= LONG / TICK_STEPS / 4


def test_one_that_computes_alone_among_sleepers_is_never_stopped() -> None:
    busy = Process()
    TurnMachine(2, [busy, *(Process(wants=bursts(1000, 4)) for _ in range(4))]).run(LONG)
    assert busy.ran == LONG


def test_a_paused_domain_leaves_its_processor() -> None:
    first, second = Process(), Process()
    machine = TurnMachine(1, [first, second])
    machine.run(SLICE)
    first.guest.domain.pause()
    before = second.ran
    machine.run(LONG)
    assert second.ran - before >= LONG - TICK_STEPS
    first.guest.domain.unpause()
    machine.run(LONG)
    assert abs(first.ran - LONG / 2) <= 3 * SLICE


def test_whoever_comes_later_has_its_share_from_then_on() -> None:
    early, late = Process(), Process()
    machine = TurnMachine(1, [early])
    machine.run(LONG)
    assert early.ran == LONG
    machine.add(late)
    machine.processes.append(late)
    machine.run(LONG)
    assert abs(late.ran - LONG / 2) <= 3 * SLICE
    machine.pcpus.remove(early.contender)
    machine.processes.remove(early)
    before = late.ran
    machine.run(LONG)
    assert late.ran - before >= LONG - TICK_STEPS


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_a_process_writes_into_its_words_harms_nobody_else(data: st.DataObject) -> None:
    liar, honest = Process(), Process()
    machine = TurnMachine(1, [liar, honest])
    words = liar.contender.words
    numbers = st.sampled_from([0, 1, 2, 3, 2**32 - 1])
    machine.run(SLICE)
    for _ in range(40):
        for index in (GATE, TELL, STATE, BLOCKS):
            words[index] = data.draw(numbers)
        machine.pcpus.heard(liar.contender)
        machine.run(TICK_STEPS)
    before = honest.ran
    machine.run(LONG // 2)
    assert honest.ran - before >= LONG / 4 - 4 * SLICE


def test_rings_that_say_nothing_new_cost_nothing() -> None:
    process = Process()
    machine = TurnMachine(2, [process])
    machine.pcpus.tick()
    assert machine.pcpus.due_ticks == 0
    for state in (State.RUNS, State.WAITS, 7):
        process.contender.words[STATE] = state
        machine.pcpus.heard(process.contender)
        assert machine.pcpus.due_ticks == 0


def test_one_that_does_not_stop_is_stopped() -> None:
    defiant, honest = Process(obeys=False), Process()
    machine = TurnMachine(1, [defiant, honest])
    machine.run(LONG)
    before = defiant.ran, honest.ran
    machine.run(LONG)
    assert honest.ran - before[1] >= LONG / 2 - 3 * SLICE
    assert LONG / 4 <= defiant.ran - before[0] <= LONG * 3 / 4
    machine.pcpus.remove(honest.contender)
    machine.processes.remove(honest)
    machine.run(TICK_STEPS)
    assert not defiant.held


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_the_clock_runs_while_somebody_waits(anyio_backend: str) -> None:
    async def main() -> None:
        machine = TurnMachine(1, [Process(), Process()])
        running, waiting = sorted(
            (process.contender for process in machine.processes), key=lambda contender: not contender.is_open
        )
        turned = anyio.Event()
        waiting.ring = turned.set

        def time_passes() -> int:
            machine.host.time_ns += TICK_STEPS * STEP_NS
            return machine.host.time_ns

        running.cpu_ns = time_passes
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.pcpus.run)
            with anyio.fail_after(30):
                await turned.wait()
            tasks.cancel_scope.cancel()
        assert waiting.words[GATE]
        assert machine.machine.scheduler.on_change is None

    anyio.run(main, backend=anyio_backend)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
def test_a_change_of_shares_wakes_the_clock(anyio_backend: str) -> None:
    async def main() -> None:
        process = Process()
        machine = TurnMachine(2, [process])
        machine.pcpus.tick()
        assert machine.pcpus.due_ticks == 0
        ticked = anyio.Event()

        def cpu_ns() -> int:
            ticked.set()
            return 0

        process.contender.cpu_ns = cpu_ns
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.pcpus.run)
            await anyio.wait_all_tasks_blocked()
            assert not ticked.is_set()
            process.guest.domain.share.cap = 10
            machine.machine.scheduler.changed()
            with anyio.fail_after(30):
                await ticked.wait()
            tasks.cancel_scope.cancel()
        assert machine.pcpus.due_ticks

    anyio.run(main, backend=anyio_backend)
