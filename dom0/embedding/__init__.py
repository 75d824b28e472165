"""A whole machine inside somebody's event loop: dom0 with its services, and guests started one by one.

    async with running_machine(folder) as machine:
        guest = await machine.start("hello", {"greeting": "Hi"})
        end = await guest.wait()
        assert (end.outcome, end.exit_code) == ("poweroff", 0)
        assert "Hi from" in guest.console

On asyncio and on trio, in a test or in a fixture of pytest-asyncio. `domzero launch` runs scenarios on it.
"""

from dom0.embedding.guest import (
    GuestEnd,
    MachineStopped,
    NeverPrinted,
    NoSuchDriverDomain,
    RunningGuest,
)
from dom0.embedding.machine import RunningMachine, running_machine
from dom0.scenario.model import DiskSpec

__all__ = [
    "DiskSpec",
    "GuestEnd",
    "MachineStopped",
    "NeverPrinted",
    "NoSuchDriverDomain",
    "RunningGuest",
    "RunningMachine",
    "running_machine",
]
