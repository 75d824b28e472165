"""What a block backend reads from its own folder and from its frontend's, and what it writes, as pydantic
models.

Its own folder was written by the toolstack and cannot be written by the guest; from the guest's folder
nothing is believed but how to reach its ring (XSA-175, 178). All of it is checked here, once.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from backends.block.opened import OpenedStore
from ringbuffers.protocols import blkif
from ringbuffers.protocols import blkif_keys as names

MAX_RING_PAGE_ORDER: Final = 4
MAX_RING_PAGES: Final = 1 << MAX_RING_PAGE_ORDER
MAX_INDIRECT_SEGMENTS: Final = 256
FRONTEND_KEYS: Final = (
    names.EVENT_CHANNEL,
    names.RING_PAGE_ORDER,
    names.NUM_RING_PAGES,
    names.PROTOCOL,
    names.FEATURE_PERSISTENT,
    names.MULTI_QUEUE_NUM_QUEUES,
    names.RING_REF,
    *map(names.ring_ref, range(MAX_RING_PAGES)),
)
"""The nodes of a frontend that a backend looks at."""

_U32_DIGITS: Final = 10


class BadKeys(Exception):
    """A folder says what no block device can be. The first problem: which key, what was found, what was
    expected.
    """

    def __init__(self, path: str, key: str, found: object, expected: str) -> None:
        super().__init__(f"{path}/{key} is {found!r}, expected {expected}")
        self.path = path
        self.key = key
        self.found = found
        self.expected = expected


def _decimal(text: object) -> object:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= _U32_DIGITS:
        return int(text)
    return text if isinstance(text, int) else None


_FLAGS: Final = {"0": False, "1": True}
U32 = Annotated[int, BeforeValidator(_decimal), Field(ge=0, le=0xFFFF_FFFF)]
Flag = Annotated[bool, Field(strict=True), BeforeValidator(lambda text: _FLAGS.get(text, text))]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    @classmethod
    def read(cls, path: str, keys: Mapping[str, str]) -> Self:
        """The model of `keys`, which were found in the folder `path`. Raises BadKeys."""
        try:
            return cls.model_validate(dict(keys))
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0]) if first["loc"] else ""
            raise BadKeys(path, key, keys.get(key), first["msg"]) from error


class SetupKeys(_Keys):
    """What the toolstack says of a device: which store, with which settings, and what the guest may do."""

    type: str
    params: str = ""
    mode: Literal["r", "w"] = "r"
    device_type: str = Field("disk", validation_alias=names.DEVICE_TYPE)
    removable: Flag = False
    discard_enable: Flag = Field(True, validation_alias=names.DISCARD_ENABLE)

    @property
    def read_only(self) -> bool:
        """Whether the store is to be opened for reading only."""
        return self.mode == "r"

    @property
    def info(self) -> int:
        """VDISK_* of the device."""
        flags = blkif.VDISK_READONLY if self.read_only else 0
        flags |= blkif.VDISK_CDROM if self.device_type == "cdrom" else 0
        return flags | (blkif.VDISK_REMOVABLE if self.removable else 0)


class FrontendKeys(_Keys):
    """How to reach a frontend's ring. ring_refs: the grants of its pages, in order."""

    event_channel: U32 = Field(validation_alias=names.EVENT_CHANNEL)
    protocol: Literal["x86_64-abi"] = Field("x86_64-abi", validation_alias=names.PROTOCOL)
    persistent: Flag = Field(False, validation_alias=names.FEATURE_PERSISTENT)
    queues: Annotated[U32, Field(ge=1, le=1)] = Field(1, validation_alias=names.MULTI_QUEUE_NUM_QUEUES)
    ring_refs: tuple[U32, ...] = Field(min_length=1, max_length=MAX_RING_PAGES)

    @model_validator(mode="before")
    @classmethod
    def _gather_ring(cls, keys: dict[str, Any]) -> dict[str, Any]:
        """A ring of one page has its grant in ring-ref. Who says how many pages it has, in ring-page-order
        or, as was done before, in num-ring-pages, has them in ring-ref0, ring-ref1 and so on.
        """
        pages = _ring_pages(keys)
        refs = [keys.get(names.ring_ref(page)) for page in range(pages)]
        if pages == 1 and (names.RING_PAGE_ORDER not in keys or refs[0] is None):
            refs = [keys.get(names.RING_REF)]
        return {**keys, "ring_refs": tuple(refs)}


def _ring_pages(keys: Mapping[str, Any]) -> int:
    """How many pages a frontend says its ring has; 0, which is refused, if that is no number that we
    offered.
    """
    if names.RING_PAGE_ORDER in keys:
        order = _decimal(keys[names.RING_PAGE_ORDER])
        return 1 << order if isinstance(order, int) and order <= MAX_RING_PAGE_ORDER else 0
    pages = _decimal(keys.get(names.NUM_RING_PAGES, "1"))
    return pages if isinstance(pages, int) and pages in (1, 2, 4, 8, 16) else 0


def offered() -> dict[str, str]:
    """What a backend writes before a frontend connects."""
    return {
        names.FEATURE_MAX_INDIRECT_SEGMENTS: str(MAX_INDIRECT_SEGMENTS),
        names.MULTI_QUEUE_MAX_QUEUES: "1",
        names.MAX_RING_PAGE_ORDER: str(MAX_RING_PAGE_ORDER),
    }


def described(disk: OpenedStore, info: int) -> dict[str, str]:
    """What a backend writes when a frontend has connected, in the order in which Linux's blkback does."""
    able = disk.capabilities
    keys = {names.FEATURE_FLUSH_CACHE: _flag(able.flush)}
    if able.discard:
        keys |= {
            names.DISCARD_GRANULARITY: str(able.discard_granularity),
            names.DISCARD_ALIGNMENT: str(able.discard_alignment),
            names.DISCARD_SECURE: "0",
            names.FEATURE_DISCARD: "1",
        }
    return {
        **keys,
        names.FEATURE_BARRIER: _flag(able.flush),
        names.FEATURE_PERSISTENT: "1",
        **sized(disk),
        names.INFO: str(info),
        names.SECTOR_SIZE: str(disk.sector_size),
        names.PHYSICAL_SECTOR_SIZE: str(disk.physical_sector_size),
    }


def sized(disk: OpenedStore) -> dict[str, str]:
    """What a backend writes when the size has changed."""
    return {names.SECTORS: str(disk.sectors)}


def _flag(value: bool) -> str:
    return "1" if value else "0"
