"""A pin: what the hypervisor knows of a grant while somebody uses it (Xen's struct active_grant_entry).

Domain and machine frame are looked up once, when the first use begins, and hold until the last one ends,
whatever the granter writes into the shared entry meanwhile.
"""

from __future__ import annotations

from typing import Final

PIN_LIMIT: Final = 128
"""so many uses of each kind at a time: Xen counts them in eight bits and stops at the top one"""


class Pin:
    """Uses of one grant by domain `domid`: `readers` and `writers` are its mappings and running copies by the
    access they have. gpfn: where the granter had the frame; a native one cannot make it a page table while
    there are writers.
    """

    __slots__ = ("domid", "gpfn", "mfn", "readers", "writers")

    def __init__(self, domid: int, mfn: int, gpfn: int) -> None:
        self.domid = domid
        self.mfn = mfn
        self.gpfn = gpfn
        self.readers = 0
        self.writers = 0
