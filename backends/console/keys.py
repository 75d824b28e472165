"""What XenStore says of a console: docs/misc/console.txt, docs/misc/xenstore-paths.pandoc.

Only nodes that the toolstack owns are read (XSA-57); `backend-id`, which the guest may write, is not among
them. No node ever names a file.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backends.console.errors import BadKeys
from kernel.xenstore.client import XenStoreClient
from ringbuffers.protocols import console as protocol

DEFAULT_LIMIT_BYTES: Final = 1 << 20
MIN_LIMIT_BYTES: Final = 1 << 12
MAX_LIMIT_BYTES: Final = 1 << 26


class ConsoleKeys(BaseModel):
    """The description of one console.

    name: the domain's. port: the guest's event channel port. limit: bytes of output that a log file may hold.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    port: Annotated[int, Field(ge=1, lt=1 << 17)]
    limit: Annotated[int, Field(ge=0)] = DEFAULT_LIMIT_BYTES

    @property
    def log_bytes(self) -> int:
        """`limit` within reason."""
        return min(max(self.limit, MIN_LIMIT_BYTES), MAX_LIMIT_BYTES)


async def read_keys(store: XenStoreClient, domid: int) -> ConsoleKeys | None:
    """The console of a domain; None if there is none, not yet, or one that somebody else serves.

    Raises BadKeys, and what the store raises.
    """
    home = f"/local/domain/{domid}"
    keys = (protocol.TYPE, protocol.PORT, protocol.RING_REF, protocol.LIMIT)
    found = await store.read_many([f"{home}/name", *(f"{home}/console/{key}" for key in keys)])
    name, kind, port, ring, limit = found
    if port is None or ring is None or (kind or protocol.TYPE_XENCONSOLED) != protocol.TYPE_XENCONSOLED:
        return None
    given = {"name": name or f"domain-{domid}", "port": port, "limit": limit}
    try:
        return ConsoleKeys.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{part['loc'][0]} is {part['input']!r}: {part['msg']}" for part in error.errors())
        raise BadKeys(domid, wrong) from error
