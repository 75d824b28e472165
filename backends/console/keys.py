"""What the console daemon reads of a domain, all of it written by the toolstack and by nobody else (XSA-57)."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ringbuffers.protocols import console as names

NODES: Final = (names.RING_REF, names.PORT, names.TYPE, names.LIMIT)
"""The nodes in a domain's `console` folder that are looked at. What is below `tty` or `output` is not: no host path
comes from the store."""


def _decimal(text: object) -> object:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 20:
        return int(text)
    return text if isinstance(text, int) else None


Decimal = Annotated[int, BeforeValidator(_decimal), Field(ge=0)]


class ConsoleKeys(BaseModel):
    """How to reach a console's ring. ring_ref says only that there is one: the page is mapped by its reserved grant."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ring_ref: Decimal = Field(validation_alias=names.RING_REF)
    port: Decimal = Field(validation_alias=names.PORT)
    type: str = names.TYPE_XENCONSOLED
    limit: Decimal = 1 << 20


def console_keys(keys: Mapping[str, str]) -> ConsoleKeys | None:
    """The keys of a console that this daemon is to serve; None while there is none, or if it is somebody else's."""
    try:
        found = ConsoleKeys.model_validate(dict(keys))
    except ValidationError:
        return None
    return found if found.type == names.TYPE_XENCONSOLED else None
