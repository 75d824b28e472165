"""What a block frontend reads from its backend's folder and writes into its own, as pydantic models.

Every value was written by somebody else and is checked here, once. blkif.h gives the names and the defaults.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ringbuffers.protocols import blkif
from ringbuffers.protocols import blkif_keys as names

MAX_RING_PAGE_ORDER: Final = 4  # 16 pages
_MAX_DIGITS: Final = 20


class BadBackendKeys(Exception):
    """The backend's folder says what no disk can be. problems: (key, found, expected)."""

    def __init__(self, path: str, problems: Sequence[tuple[str, object, str]]) -> None:
        shown = "; ".join(f"{key} is {found!r}, expected {expected}" for key, found, expected in problems)
        super().__init__(f"{path}: {shown}")
        self.path = path
        self.problems = list(problems)


def _decimal(text: object) -> object:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    return text if isinstance(text, int) else None


def _power_of_two(number: int) -> int:
    if number & (number - 1):
        raise ValueError("a power of two")
    return number


Decimal = Annotated[int, BeforeValidator(_decimal)]
Flag = Annotated[
    bool, Field(strict=True), BeforeValidator(lambda text: {"0": False, "1": True}.get(text, text))
]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    @classmethod
    def read(cls, path: str, keys: Mapping[str, str]) -> Self:
        """The model of `keys`, found in the folder `path`. Raises BadBackendKeys."""
        try:
            return cls.model_validate(dict(keys))
        except ValidationError as error:
            raise BadBackendKeys(
                path, [(str(e["loc"][0]), keys.get(str(e["loc"][0])), e["msg"]) for e in error.errors()]
            ) from error


class TransportKeys(_Keys):
    """What the backend offers before a frontend connects."""

    max_ring_page_order: Decimal = Field(0, validation_alias=names.MAX_RING_PAGE_ORDER, ge=0)
    max_indirect_segments: Decimal = Field(0, validation_alias=names.FEATURE_MAX_INDIRECT_SEGMENTS, ge=0)
    max_queues: Decimal = Field(1, validation_alias=names.MULTI_QUEUE_MAX_QUEUES, ge=0)


class DiskKeys(_Keys):
    """What the backend says of the disk once it is connected. Sectors are units of 512 bytes."""

    sectors: Decimal = Field(validation_alias=names.SECTORS, ge=1, lt=1 << 55)
    sector_size: Annotated[Decimal, AfterValidator(_power_of_two)] = Field(
        blkif.SECTOR_SIZE, validation_alias=names.SECTOR_SIZE, ge=512, le=4096
    )
    physical_sector_size: Decimal | None = Field(None, validation_alias=names.PHYSICAL_SECTOR_SIZE, ge=512)
    info: Decimal = Field(0, validation_alias=names.INFO, ge=0)
    flush: Flag = Field(False, validation_alias=names.FEATURE_FLUSH_CACHE)
    barrier: Flag = Field(False, validation_alias=names.FEATURE_BARRIER)
    discard: Flag = Field(False, validation_alias=names.FEATURE_DISCARD)
    discard_granularity: Decimal | None = Field(None, validation_alias=names.DISCARD_GRANULARITY, ge=1)
    discard_alignment: Decimal = Field(0, validation_alias=names.DISCARD_ALIGNMENT, ge=0)
    persistent: Flag = Field(False, validation_alias=names.FEATURE_PERSISTENT)
    max_indirect_segments: Decimal = Field(0, validation_alias=names.FEATURE_MAX_INDIRECT_SEGMENTS, ge=0)

    @property
    def read_only(self) -> bool:
        """Whether writes will be refused."""
        return bool(self.info & blkif.VDISK_READONLY)


UNKNOWN_DISK: Final = DiskKeys.model_validate({names.SECTORS: 1})
"""What a disk is taken for before its backend has said anything."""


class RingKeys(NamedTuple):
    """How a backend is to reach one ring: the grants of its pages, and a port."""

    grefs: Sequence[int]
    port: int


def published(
    rings: Sequence[RingKeys], *, said_order: bool, said_queues: bool, persistent: bool
) -> dict[str, str]:
    """What a frontend writes: its rings' grants, their ports, its features, in the order of Linux's blkfront.

    said_order, said_queues: a connection before this one has written ring-page-order, or
    multi-queue-num-queues, which stays there and has to be right.
    """
    pages = len(rings[0].grefs)
    says_order = said_order or pages > 1
    keys = {names.RING_PAGE_ORDER: str((pages - 1).bit_length())} if says_order else {}
    if said_queues or len(rings) > 1:
        keys[names.MULTI_QUEUE_NUM_QUEUES] = str(len(rings))
    for index, ring in enumerate(rings):
        folder = f"{names.queue_directory(index)}/" if len(rings) > 1 else ""
        keys |= {folder + name: value for name, value in _reaching(ring, numbered=says_order).items()}
    return {
        **keys,
        names.PROTOCOL: names.XEN_IO_PROTO_ABI_NATIVE,
        names.FEATURE_PERSISTENT: "1" if persistent else "0",
    }


def _reaching(ring: RingKeys, *, numbered: bool) -> dict[str, str]:
    refs = {
        names.ring_ref(page) if numbered else names.RING_REF: str(gref)
        for page, gref in enumerate(ring.grefs)
    }
    return {**refs, names.EVENT_CHANNEL: str(ring.port)}
