"""Stops: at a deadline, by a descriptor, from a hook; and none of them in the middle of an instruction."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable

import pytest

from hypervisor.vcpu.process.confinement import Confinement, confine
from tests.hypervisor.vcpu.native.guest_rig import CODE, SPIN, SYSCALL, Rig

FOR_EVER_NS = 3_600_000_000_000
INCREMENT = bytes.fromhex("48ff042500005000 4883c301 48ffc9 75ef")  # inc [DATA]; add rbx, 1; dec rcx; jnz
INCREMENTS = 3_000_000


@pytest.fixture(scope="module")
def shared() -> Rig:
    return Rig()


@pytest.fixture
def rig(shared: Rig) -> Rig:
    shared.start_over()
    return shared


def test_a_guest_that_turns_in_a_loop_stops_when_its_slice_is_over(rig: Rig) -> None:
    assert rig.run(SPIN, slice_ns=1_000_000) == []
    assert rig.engine.rip == CODE


@pytest.mark.parametrize("slice_ns", [0, 1, 1_000])
def test_a_slice_that_is_over_before_it_began_ends(rig: Rig, slice_ns: int) -> None:
    assert rig.run(SPIN, slice_ns=slice_ns) == []


def test_a_descriptor_that_can_be_read_stops_it(rig: Rig) -> None:
    reader, writer = os.pipe()
    rig.code(SYSCALL + SPIN)
    rig.on_syscall = lambda: _write(writer)
    rig.engine.run(FOR_EVER_NS, reader)
    assert os.read(reader, 9) == b"x"
    assert rig.engine.rip == CODE + 2
    _forget(rig, reader, writer)


def test_what_came_between_two_runs_stops_the_second(rig: Rig) -> None:
    reader, writer = os.pipe()
    rig.code(SPIN)
    rig.engine.run(1_000, reader)
    os.write(writer, b"x")
    rig.engine.run(FOR_EVER_NS, reader)
    _forget(rig, reader, writer)


def test_a_descriptor_that_is_new_and_can_be_read_stops_it(rig: Rig) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    rig.code(SPIN)
    rig.engine.run(FOR_EVER_NS, reader)
    _forget(rig, reader, writer)


def _write(writer: int) -> None:
    os.write(writer, b"x")


def _forget(rig: Rig, *descriptors: int) -> None:
    rig.run(SPIN, slice_ns=1)
    for descriptor in descriptors:
        os.close(descriptor)


def test_instructions_are_executed_once_however_often_the_guest_is_stopped(rig: Rig) -> None:
    frame = rig.data()
    rig.code(INCREMENT + SYSCALL)
    rig.engine.rbx, rig.engine.rcx = 0, INCREMENTS
    chance = random.Random(4)
    while not rig.events:
        rig.engine.run(chance.randrange(200_000))
    assert (rig.engine.rbx, rig.memory.table(frame)[0]) == (INCREMENTS, INCREMENTS)


def test_a_stop_in_a_hook_is_obeyed_before_the_next_instruction(rig: Rig) -> None:
    rig.on_syscall = rig.engine.stop
    rig.run(SYSCALL * 3)
    assert rig.engine.rip == CODE + 2
    rig.run()
    assert rig.engine.rip == CODE + 4


def test_it_works_in_a_process_that_is_confined() -> None:
    def confined() -> None:
        rig = Rig()
        confine(Confinement())
        rig.data()
        rig.code(INCREMENT + SYSCALL)
        rig.engine.rbx, rig.engine.rcx = 0, 100_000
        while not rig.events:
            rig.engine.run(50_000)
        assert rig.engine.rbx == 100_000
        assert rig.run(SPIN, slice_ns=10_000) == []

    assert _in_a_child(confined) == 0


def _in_a_child(function: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]
