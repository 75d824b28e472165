"""A page that processes of other domains may map: it lies on a memfd of its own, so that whoever is given
the descriptor reaches this page and no other.

Until its first user it can still become read-only or writable; then it is sealed for good. To take it back
is to move it: the old memfd is a dead copy from then on.
"""

from __future__ import annotations

import os

from hypervisor.sealed_memfd import SEALED, SEALED_READONLY, SEALED_SIZE, seal, sealed_memfd, seals_of


class SharedPage:
    """`fd` is open while the page is shared. `mappings`: how many mappings the process of each domain has.

    `peers` are the domains that an owner with a process has named for it; `seen` those that have ever been
    given the descriptor.
    """

    __slots__ = ("fd", "mappings", "peers", "readonly", "seen")

    def __init__(self, content: memoryview, *, readonly: bool) -> None:
        """OSError when the host has no descriptor or no memory for it."""
        self.fd = sealed_memfd(len(content), SEALED_SIZE)
        try:
            os.pwrite(self.fd, content, 0)
        except BaseException:
            os.close(self.fd)
            raise
        self.readonly = readonly
        self.mappings: dict[int, int] = {}
        self.peers: set[int] = set()
        self.seen: set[int] = set()

    @property
    def mappers(self) -> int:
        """How many mappings processes of other domains have."""
        return sum(self.mappings.values())

    @property
    def untouched(self) -> bool:
        """Whether it is sealed neither for reading nor for writing yet."""
        return seals_of(self.fd) == SEALED_SIZE

    def seal(self) -> bool:
        """Before anybody is given the descriptor: fix what can be done with it. All who may write have it
        mapped by now. False if its owner has sealed it in another way.
        """
        return seal(self.fd, self._seals)

    @property
    def sealed(self) -> bool:
        """Whether it is fixed what can be done with it."""
        return seals_of(self.fd) == self._seals

    @property
    def _seals(self) -> int:
        return SEALED_READONLY if self.readonly else SEALED
