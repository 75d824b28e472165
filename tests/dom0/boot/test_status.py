"""Exit statuses."""

from dom0.boot.status import Status, status_of
from dom0.toolstack.endings import DESTROYED, OUTCOMES


def test_each_way_to_end_has_a_status_of_its_own() -> None:
    statuses = {
        outcome: status_of(outcome) for outcome in ("poweroff", "crash", "reboot", "suspend", "watchdog")
    }
    assert len(set(statuses.values())) == len(statuses)
    assert statuses["poweroff"] == 0
    assert not {Status.FAILED, Status.BAD_IMAGE, Status.TIMEOUT, Status.DESTROYED} & set(statuses.values())


def test_every_outcome_of_the_toolstack_but_powering_off_is_told() -> None:
    for outcome in (*OUTCOMES.values(), DESTROYED, "something else"):
        assert (status_of(outcome) is Status.POWEROFF) == (outcome == "poweroff")


def test_numbers_do_not_change() -> None:
    assert {status.name: status.value for status in Status} == {
        "POWEROFF": 0,
        "FAILED": 1,
        "BAD_IMAGE": 2,
        "CRASH": 3,
        "TIMEOUT": 4,
        "REBOOT": 5,
        "SUSPEND": 6,
        "WATCHDOG": 7,
        "DESTROYED": 8,
    }
