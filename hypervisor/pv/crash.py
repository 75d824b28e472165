"""The end of a domain that Xen would crash, too: it has left no way to tell it what happened."""

from __future__ import annotations


class DomainCrash(Exception):
    """The domain is to be crashed (SHUTDOWN_crash). Not an XenError: there is nobody left to give an errno to."""

    def __init__(self, vcpu_id: int, rip: int, reason: str) -> None:
        super().__init__(f"vcpu {vcpu_id} at {rip:#x}: {reason}")
        self.vcpu_id = vcpu_id
        self.rip = rip
        self.reason = reason
