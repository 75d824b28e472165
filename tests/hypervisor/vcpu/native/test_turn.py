"""The process's side of a turn: what it writes, when it rings, and when it sleeps."""

import pytest

from hypervisor.vcpu.native.turn import BLOCKS, GATE, STATE, TELL, TURN_PORT, State, Turn
from hypervisor.vcpu.process.doorbell import ASLEEP, SYNC


class Words:
    """The page, as the hypervisor sees it, and what was rung."""

    def __init__(self) -> None:
        self.page = bytearray(4096)
        self.words = memoryview(self.page).cast("I")
        self.rung: list[int] = []
        self.slept = 0
        self.turn = Turn(memoryview(self.page), self.ring)

    def ring(self, port: int) -> None:
        self.rung.append(port)

    def sleep(self) -> None:
        self.slept += 1


@pytest.fixture
def words() -> Words:
    return Words()


def test_the_words_leave_the_bells_own_bytes_alone(words: Words) -> None:
    words.words[TELL] = 1
    words.turn.wait(words.sleep)
    words.turn.blocked()
    assert (words.page[ASLEEP], words.page[SYNC]) == (0, 0)
    assert 4 * GATE // 64 != 4 * STATE // 64


def test_whoever_may_run_and_blocks_tells_nobody(words: Words) -> None:
    words.words[GATE] = 1
    for count in range(3):
        assert words.turn.may_run()
        words.turn.blocked()
        assert (words.words[STATE], words.words[BLOCKS]) == (State.BLOCKED, count + 1)
        words.turn.woke()
        assert words.words[STATE] == State.RUNS
    assert words.rung == []


def test_whoever_may_not_run_asks_once_and_sleeps(words: Words) -> None:
    for _ in range(3):  # something else wakes it
        assert not words.turn.may_run()
        words.turn.wait(words.sleep)
        assert words.words[STATE] == State.WAITS
    assert (words.rung, words.slept) == ([TURN_PORT], 3)
    words.words[GATE] = 1
    assert words.turn.may_run()
    assert words.words[STATE] == State.RUNS
    words.words[GATE] = 0
    words.turn.wait(words.sleep)
    assert words.rung == [TURN_PORT] * 2


def test_nobody_sleeps_whose_turn_has_come_while_it_asked(words: Words) -> None:
    def ring(port: int) -> None:
        words.words[GATE] = 1

    turn = Turn(memoryview(words.page), ring)
    turn.wait(words.sleep)
    assert words.slept == 0
    assert turn.may_run()


def test_a_processor_that_others_wait_for_is_given_up_once_a_tick(words: Words) -> None:
    for tell, rings in ((7, 1), (7, 1), (8, 2), (0, 2), (8, 2), (9, 3)):
        words.words[TELL] = tell
        words.turn.blocked()
        words.turn.woke()
        assert len(words.rung) == rings


def test_one_that_blocks_while_it_waits_asks_again(words: Words) -> None:
    words.turn.wait(words.sleep)
    words.turn.blocked()
    words.turn.woke()
    assert not words.turn.may_run()
    words.turn.wait(words.sleep)
    assert words.rung == [TURN_PORT] * 2
