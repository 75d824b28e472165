"""What the exit status of `domzero boot` says: how the guest ended, or why there was none."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class Status(IntEnum):
    """Exit statuses. 1 and 2 mean that no guest was booted; those from 3 on, that one did not power off."""

    POWEROFF = 0
    FAILED = 1
    """the machine refused, or a file cannot be read or written"""
    BAD_IMAGE = 2
    """the kernel or the command line is wrong"""
    CRASH = 3
    TIMEOUT = 4
    REBOOT = 5
    """the guest asked to be started again, which is up to the caller"""
    SUSPEND = 6
    WATCHDOG = 7
    DESTROYED = 8
    """it did not end when it was asked to, or nobody waited for that"""


_BY_OUTCOME: Final[Mapping[str, Status]] = {
    "poweroff": Status.POWEROFF,
    "crash": Status.CRASH,
    "reboot": Status.REBOOT,
    "suspend": Status.SUSPEND,
    "watchdog": Status.WATCHDOG,
}


def status_of(outcome: str) -> Status:
    """The status for how a guest ended (GuestEnd.outcome)."""
    return _BY_OUTCOME.get(outcome, Status.DESTROYED)
