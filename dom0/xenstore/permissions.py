"""Who may do what with a node: an owner, what everybody else may do, and exceptions by domain.

On the wire it is a list of `<letter><domid>`: the first entry names the owner, and its letter holds for all
who are not named after it (docs/misc/xenstore.txt).
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from dom0.xenstore.domain import Domain
from dom0.xenstore.errors import Invalid, Missing

READ: Final = 1
WRITE: Final = 2
OWN: Final = 4
ALL: Final = READ | WRITE | OWN

_MASKS: Final = {b"n": 0, b"r": READ, b"w": WRITE, b"b": READ | WRITE}
_ENTRY: Final = re.compile(rb"([nrwb])([+-]?[0-9]{1,10})")


class Permissions:
    """One immutable list; nodes that inherit it share the object.

    others: (mask, domain) of the entries after the first; an entry for a domain that did not exist when it
    was written has None and never matches, whoever gets that number later.
    wire: the list as GET_PERMS answers it. count: its length.
    """

    __slots__ = ("count", "default", "others", "owner", "wire")

    def __init__(
        self, owner: Domain, default: int, others: tuple[tuple[int, Domain | None], ...], wire: bytes
    ) -> None:
        self.owner = owner
        self.default = default
        self.others = others
        self.wire = wire
        self.count = 1 + len(others)

    def access(self, domain: Domain, target: Domain | None) -> int:
        """What an unprivileged domain may do, on its own behalf or on that of its target."""
        owner = self.owner
        if owner is domain or (target is not None and owner is target):
            return ALL
        for mask, other in self.others:
            if other is not None and (other is domain or other is target):
                return mask
        return self.default

    def inherited_by(self, domain: Domain) -> "Permissions":
        """The list of a node that `domain` creates below: guests own what they create."""
        return self if domain.privileged else self.owned_by(domain)

    def owned_by(self, domain: Domain) -> "Permissions":
        """The same list with another owner."""
        if domain is self.owner:
            return self
        first = self.wire.index(b"\0")
        wire = b"%s%d" % (self.wire[:1], domain.domid) + self.wire[first:]
        return Permissions(domain, self.default, self.others, wire)


def private_to(owner: Domain) -> Permissions:
    """`n<domid>`: for the owner alone."""
    return Permissions(owner, 0, (), b"n%d\0" % owner.domid)


def parse(entries: Sequence[bytes], find: Callable[[int], Domain | None]) -> Permissions:
    """The list that a SET_PERMS carries. `find` gives the living domain of a number.

    Invalid if an entry is malformed; Missing if the owner does not exist (the others need not).
    """
    parsed: list[tuple[int, Domain | None]] = []
    text = b""
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise Invalid(entry)
        domid = int(match[2])
        parsed.append((_MASKS[match[1]], find(domid)))
        text += b"%s%d\0" % (match[1], domid)
    if not parsed:
        raise Invalid(b"empty list")
    default, owner = parsed[0]
    if owner is None:
        raise Missing(entries[0])
    return Permissions(owner, default, tuple(parsed[1:]), text)
