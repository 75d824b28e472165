"""What can go wrong on a ring, by culprit: the peer, the caller, or nobody (the ring is full)."""


class RingError(Exception):
    """Base of all errors of this package."""


class PeerViolation(RingError):
    """The other end wrote something that the protocol rules out. The ring is not to be used any more.

    what: the field, as Xen spells it. found: its value. expected: what would have been allowed.
    """

    def __init__(self, what: str, found: int, expected: str) -> None:
        super().__init__(f"peer wrote {what} = {found:#x}, expected {expected}")
        self.what = what
        self.found = found
        self.expected = expected


class ProtocolViolation(PeerViolation):
    """A message of the peer breaks the protocol that runs inside a byte ring."""


class RingMisuse(RingError):
    """This end used the ring against its contract: an error in our own code, not the peer's.

    what: the argument or the step. found: what was given. expected: what would have been allowed.
    """

    def __init__(self, what: str, found: object, expected: str) -> None:
        super().__init__(f"{what} is {found!r}, expected {expected}")
        self.what = what
        self.found = found
        self.expected = expected


class RingFull(RingError):
    """There is no room for all that was to be put; nothing was put. Both counts are slots."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} slots to put, {free} free")
        self.wanted = wanted
        self.free = free
