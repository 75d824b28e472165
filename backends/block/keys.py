"""What a block backend reads from its own folder and from its frontend's, and what it writes, as pydantic
models.

Its own folder was written by the toolstack and cannot be written by the guest; from the guest's folder
nothing is believed but how to reach its ring (XSA-175, 178). All of it is checked here, once.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from backends.block.opened import OpenedStore
from ringbuffers.protocols import blkif
from ringbuffers.protocols import blkif_keys as names

MAX_RING_PAGE_ORDER: Final = 4
MAX_RING_PAGES: Final = 1 << MAX_RING_PAGE_ORDER
MAX_INDIRECT_SEGMENTS: Final = 256
MAX_QUEUES: Final = 16
"""The most that a device can be set up to offer."""
DEFAULT_QUEUES: Final = 4
MAX_QUEUES_NODE: Final = "max-queues"
"""Where our toolstack says how many queues a device is to offer; blkif.h leaves it open where that comes from."""

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
"""The nodes of a frontend's folder that a backend looks at. A frontend with several queues has a folder below
for each (`FrontendKeys.folders`).
"""

_U32_DIGITS: Final = 10
_U32_MAX: Final = 0xFFFF_FFFF


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


def _power_of_two(number: int) -> int:
    if not number or number & (number - 1):
        raise ValueError("a power of two")
    return number


_FLAGS: Final = {"0": False, "1": True}
U32 = Annotated[int, BeforeValidator(_decimal), Field(ge=0, le=_U32_MAX)]
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
    max_queues: Annotated[U32, Field(ge=1, le=MAX_QUEUES)] = Field(
        DEFAULT_QUEUES, validation_alias=MAX_QUEUES_NODE
    )

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


class QueueKeys(NamedTuple):
    """How to reach one ring. folder: where that was said. ring_refs: the grants of its pages, in order."""

    folder: str
    ring_refs: tuple[int, ...]
    event_channel: int


class FrontendKeys(_Keys):
    """What all queues of a frontend have in common. queues: how many there are."""

    protocol: Literal["x86_64-abi"] = Field("x86_64-abi", validation_alias=names.PROTOCOL)
    persistent: Flag = Field(False, validation_alias=names.FEATURE_PERSISTENT)
    queues: Annotated[U32, Field(ge=1, le=MAX_QUEUES)] = Field(
        1, validation_alias=names.MULTI_QUEUE_NUM_QUEUES
    )
    ring_page_order: Annotated[U32, Field(le=MAX_RING_PAGE_ORDER)] | None = Field(
        None, validation_alias=names.RING_PAGE_ORDER
    )
    num_ring_pages: Annotated[U32, Field(le=MAX_RING_PAGES), AfterValidator(_power_of_two)] = Field(
        1, validation_alias=names.NUM_RING_PAGES
    )

    @property
    def ring_pages(self) -> int:
        """How many pages each ring has: as ring-page-order says or, as was done before, num-ring-pages."""
        return self.num_ring_pages if self.ring_page_order is None else 1 << self.ring_page_order

    @classmethod
    def read_within(cls, path: str, keys: Mapping[str, str], max_queues: int) -> Self:
        """`read`, for a frontend that was offered `max_queues` queues."""
        found = cls.read(path, keys)
        if found.queues > max_queues:
            raise BadKeys(path, names.MULTI_QUEUE_NUM_QUEUES, str(found.queues), f"1 to {max_queues}")
        return found

    def folders(self, path: str) -> list[str]:
        """Where the frontend at `path` says how to reach each of its rings."""
        if self.queues == 1:
            return [path]
        return [f"{path}/{names.queue_directory(queue)}" for queue in range(self.queues)]

    def nodes_of_ring(self) -> list[str]:
        """The nodes of such a folder."""
        return [names.EVENT_CHANNEL, names.RING_REF, *map(names.ring_ref, range(self.ring_pages))]

    def queue(self, folder: str, keys: Mapping[str, str]) -> QueueKeys:
        """What `folder`, in which `keys` were found, says of a ring. Raises BadKeys.

        A ring of one page has its grant in ring-ref; who says how many pages a ring has, has them in ring-ref0,
        ring-ref1 and so on.
        """
        found = [names.ring_ref(page) for page in range(self.ring_pages)]
        if self.ring_pages == 1 and (self.ring_page_order is None or found[0] not in keys):
            found = [names.RING_REF]
        refs = tuple(_number(folder, keys, name) for name in found)
        return QueueKeys(folder, refs, _number(folder, keys, names.EVENT_CHANNEL))


def check_apart(queues: Sequence[QueueKeys]) -> None:
    """No page and no port is said to be of two rings. Raises BadKeys."""
    seen: dict[tuple[str, int], str] = {}
    for queue in queues:
        said = [(names.RING_REF, ref) for ref in dict.fromkeys(queue.ring_refs)]
        for what in (*said, (names.EVENT_CHANNEL, queue.event_channel)):
            owner = seen.setdefault(what, queue.folder)
            if owner is not queue.folder:
                raise BadKeys(queue.folder, what[0], str(what[1]), f"another one than that of {owner}")


def _number(folder: str, keys: Mapping[str, str], name: str) -> int:
    number = _decimal(keys.get(name))
    if not isinstance(number, int) or number > _U32_MAX:
        raise BadKeys(folder, name, keys.get(name), "a decimal number of 32 bits")
    return number


def offered(setup: SetupKeys) -> dict[str, str]:
    """What a backend writes before a frontend connects."""
    return {
        names.FEATURE_MAX_INDIRECT_SEGMENTS: str(MAX_INDIRECT_SEGMENTS),
        names.MULTI_QUEUE_MAX_QUEUES: str(setup.max_queues),
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
