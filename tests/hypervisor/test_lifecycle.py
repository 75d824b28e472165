"""The life cycle as a table: the full product of states and events, and what a list of domains shows."""

import pytest

from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_suspend
from hypervisor.domain import Traits
from hypervisor.errors import InvalidArgument
from hypervisor.lifecycle import TRANSITIONS, Life, LifeEvent, Status, WrongLife, next_life
from tests.hypervisor.fakes import Guest, new_machine


@pytest.mark.parametrize("life", Life)
@pytest.mark.parametrize("event", LifeEvent)
def test_what_is_not_listed_is_an_error(life: Life, event: LifeEvent) -> None:
    following = TRANSITIONS.get((life, event))
    if following is not None:
        assert next_life(3, life, event) is following
        return
    with pytest.raises(WrongLife) as caught:
        next_life(3, life, event)
    assert (caught.value.domid, caught.value.life, caught.value.event) == (3, life, event)


def test_every_state_is_reached_and_death_is_final() -> None:
    assert {*TRANSITIONS.values(), Life.CREATED} == set(Life)
    after_death = {life for (life, _), following in TRANSITIONS.items() if following is Life.DYING}
    assert after_death == {Life.CREATED, Life.ALIVE, Life.SHUT_DOWN}
    assert not any(life is Life.GONE for life, _ in TRANSITIONS)


def test_a_domain_from_creation_to_the_end() -> None:
    machine, host = new_machine()
    dom0 = Guest(machine)
    domain = Guest(machine).domain
    assert domain.status is Status.RUNNING
    domain.vcpus[0].blocked = True
    assert domain.status is Status.BLOCKED
    domain.pause()
    assert domain.status is Status.PAUSED
    assert host.stopped[-1] is domain
    domain.unpause()
    domain.vcpus[0].unblock()
    assert host.take_kicks()[-1] is domain.vcpus[0]
    domain.shutdown(SHUTDOWN_poweroff)
    assert domain.status is Status.SHUT_DOWN
    assert domain.kill(1000)
    assert domain.life is Life.GONE
    assert domain.status is Status.DEAD
    assert list(machine.domains) == [dom0.domid]
    assert machine.audit() == []


def test_a_created_domain_runs_when_it_is_unpaused_as_often_as_it_was_paused() -> None:
    machine, host = new_machine()
    Guest(machine)
    domain = machine.create_domain(Traits())
    domain.add_vcpus()
    assert domain.status is Status.CREATED
    host.take_kicks()
    domain.pause()
    domain.unpause()
    assert (domain.life, domain.executing, host.take_kicks()) == (Life.ALIVE, False, [])
    domain.unpause()
    assert domain.executing
    assert host.take_kicks() == domain.vcpus


def test_pauses_are_counted_and_limited() -> None:
    machine, _ = new_machine()
    domain = Guest(machine).domain
    with pytest.raises(InvalidArgument):
        domain.unpause()
    for _ in range(255):
        domain.pause()
    with pytest.raises(InvalidArgument):
        domain.pause()
    assert domain.pause_count == 255


def test_the_first_reason_to_shut_down_counts() -> None:
    machine, _ = new_machine()
    domain = Guest(machine).domain
    domain.shutdown(SHUTDOWN_suspend)
    domain.crash()
    assert domain.shutdown_reason == SHUTDOWN_suspend
    domain.resume()
    assert (domain.life, domain.shutdown_reason, domain.executing) == (Life.ALIVE, None, True)
    with pytest.raises(WrongLife):
        domain.resume()
    domain.crash()
    assert domain.shutdown_reason == SHUTDOWN_crash


def test_a_domain_that_is_shut_down_gets_no_kicks() -> None:
    machine, host = new_machine()
    domain = Guest(machine).domain
    domain.shutdown(SHUTDOWN_poweroff)
    host.take_kicks()
    domain.vcpus[0].unblock()
    domain.vcpus[0].select_events(1)
    assert host.take_kicks() == []
