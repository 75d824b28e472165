"""The scenario file as pydantic models; their JSON Schema is what editors complete from.

A scenario names a machine, the guests that run on it, their disks, and what must hold at the end.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from backends.block.keys import DEFAULT_QUEUES, MAX_QUEUES
from dom0.vdev import VirtualDeviceName, parse_vdev, vdev_number
from guests import READY_MADE
from hypervisor.credit import DEFAULT_WEIGHT

MIB = 1 << 20
PAGE_BYTES = 4096
MIN_MEMORY_BYTES = 4 * MIB

MAX_VCPUS = 32
"""XEN_LEGACY_MAX_VCPUS: as many as shared_info has room for"""

MAX_WEIGHT = 65535
MAX_CAP = 65534
"""of a u16; the last one means: as it is"""
MAX_PCPUS = 4096

Milestone = tuple[str, str]
"""A guest's name, and whether this is its start or its end."""

_START = "start"
_END = "end"

MISPLACED = "misplaced"
"""Type of errors whose context says where, below the model that found them, the wrong value stands (`at`)."""


def _misplaced(at: tuple[str | int, ...], expected: str) -> PydanticCustomError:
    return PydanticCustomError(MISPLACED, "{expected}", {"at": at, "expected": expected})


class Strict(BaseModel):
    """A model that refuses keys it does not know: a misspelt key is an error, never silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Loop(StrEnum):
    """The event loop that the Python domains run on."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


class Isolation(StrEnum):
    """What executes a Python guest."""

    COROUTINE = "coroutine"
    PROCESS = "process"


class ShutdownReason(StrEnum):
    """SHUTDOWN_* of sched.h, as a scenario spells them."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crash"
    WATCHDOG = "watchdog"


def _ram(size: ByteSize) -> ByteSize:
    if size < MIN_MEMORY_BYTES or size % PAGE_BYTES:
        raise _misplaced((), "at least 4MiB, in whole pages of 4KiB")
    return size


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise _misplaced((), f"a regular expression ({error})") from error
    return pattern


def _vdev(name: str) -> str:
    try:
        parse_vdev(name)
    except VirtualDeviceName as error:
        raise _misplaced((), f"a disk's name such as xvda, xvdb1 or d5p2 ({error.why})") from error
    return name


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


MemorySize = Annotated[ByteSize, AfterValidator(_ram)]
Weight = Annotated[int, Field(ge=1, le=MAX_WEIGHT)]
Cap = Annotated[int, Field(ge=0, le=MAX_CAP)]
Pcpus = Annotated[int, Field(ge=1, le=MAX_PCPUS)]
Pattern = Annotated[str, AfterValidator(_compiles)]
VdevName = Annotated[str, AfterValidator(_vdev)]
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
Patterns = Annotated[
    tuple[Pattern, ...], BeforeValidator(_one_or_many, json_schema_input_type=str | tuple[str, ...])
]
Names = Annotated[
    tuple[DomainName, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=DomainName | tuple[DomainName, ...]),
]


class Bound(Strict):
    """Inclusive bounds of a counter of the report; at least one must be given."""

    min: int | None = None
    max: int | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min is None and self.max is None:
            raise _misplaced((), "min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise _misplaced(("min",), f"at most max, which is {self.max}")
        return self


class DiskSpec(Strict):
    """One virtual disk: what the guest sees and which block backend serves it."""

    vdev: VdevName = Field(description="device name in the guest, such as xvda or xvdb1")
    backend: str = Field(
        default="file", description="a name of the entry-point group domzero.backends, or module:Class"
    )
    mode: Literal["w", "r"] = Field(default="w", description="w: read and write; r: read only")
    max_queues: int = Field(
        default=DEFAULT_QUEUES, ge=1, le=MAX_QUEUES, description="how many queues the guest may ask for"
    )
    backend_domain: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?$",
        description="the driver domain that serves the disk, a guest by name; empty: dom0",
    )
    config: dict[str, Any] = Field(default={}, description="the backend's own settings")


def _usual_memory(given: dict[str, Any]) -> ByteSize:
    return ByteSize(16 * MIB if given.get("kernel") is None else 256 * MIB)


class GuestExpectations(Strict):
    """What must hold of one guest when it has ended."""

    exit_code: int | None = Field(
        default=0, description="what the program returned; null: do not look, as for a native kernel"
    )
    shutdown: ShutdownReason = ShutdownReason.POWEROFF
    console: Patterns = Field(
        default=(), description="regular expressions, each found in the console's output"
    )
    counters: dict[str, Bound] = Field(
        default={}, description="bounds by dotted path into the domain's report, such as grants.leaked"
    )


class GuestSpec(Strict):
    """One guest: a Python kernel that runs `program`, or a native `kernel`."""

    name: DomainName
    program: str = Field(
        default="", description=f"a ready-made guest ({', '.join(READY_MADE)}) or module:function"
    )
    args: dict[str, Any] = Field(default={}, description="the program's arguments")
    kernel: Path | None = Field(
        default=None,
        description="instead of a program: a paravirtualized kernel of Xen's, an ELF image or a bzImage; a relative "
        "path starts at the scenario's file",
    )
    ramdisk: Path | None = Field(default=None, description="the kernel's initial ramdisk")
    cmdline: str = Field(default="", description="the kernel's command line")
    vcpus: int = Field(default=1, ge=1, le=MAX_VCPUS, description="how many vCPUs a native kernel has")
    weight: Weight = Field(
        default=DEFAULT_WEIGHT, description="a native kernel's share of the processors, against the others'"
    )
    cap: Cap = Field(
        default=0, description="a native kernel gets no more percent of one processor than this; 0: no limit"
    )
    memory: MemorySize = Field(
        default_factory=_usual_memory,
        description="RAM, such as 16MiB, which a program has; a kernel has 256MiB",
    )
    isolation: Isolation = Field(
        default=Isolation.COROUTINE,
        description="coroutine: in the hypervisor's process; process: in an OS process of its own",
    )
    disks: tuple[DiskSpec, ...] = ()
    start_after: Names = Field(default=(), description="guests that must have ended before this one starts")
    expect: GuestExpectations = GuestExpectations()

    @property
    def driver_domains(self) -> tuple[str, ...]:
        """Those that serve its disks, by name."""
        return tuple(dict.fromkeys(disk.backend_domain for disk in self.disks if disk.backend_domain))

    @model_validator(mode="after")
    def _one_thing_to_run(self) -> Self:
        given = self.model_fields_set
        if self.kernel is None:
            if not self.program:
                raise _misplaced(("program",), "a program, or a kernel instead of it")
            for key in ("ramdisk", "cmdline", "vcpus", "weight", "cap"):
                if key in given:
                    raise _misplaced((key,), "this for a kernel only")
        elif self.program:
            raise _misplaced(("kernel",), "a program or a kernel, not both")
        else:
            for key in ("args", "isolation"):
                if key in given:
                    raise _misplaced((key,), "this for a program only")
            if "exit_code" in self.expect.model_fields_set:
                raise _misplaced(("expect", "exit_code"), "no exit code: a native kernel has none")
        return self

    @model_validator(mode="after")
    def _disks_differ(self) -> Self:
        taken: dict[int, str] = {}
        for index, disk in enumerate(self.disks):
            number = vdev_number(disk.vdev)
            if number in taken:
                raise _misplaced(
                    ("disks", index, "vdev"), f"another disk than {taken[number]}, which is there already"
                )
            taken[number] = disk.vdev
        return self


class ImageExpectation(Strict):
    """What an image file must hold when all guests have ended; exactly one of the two is given."""

    path: Path
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    same_as: Path | None = Field(default=None, description="another image whose content must be equal")

    @model_validator(mode="after")
    def _one_claim(self) -> Self:
        if (self.sha256 is None) == (self.same_as is None):
            raise _misplaced((), "exactly one of sha256 and same_as")
        return self


class MachineSpec(Strict):
    """The machine under the domains."""

    memory: MemorySize = Field(
        default=ByteSize(1024 * MIB), description="machine memory; only what is touched is used"
    )
    dom0_memory: MemorySize = Field(default=ByteSize(64 * MIB), description="RAM of the service domain")
    pcpus: Pcpus | None = Field(
        default=None,
        description="how many physical processors native guests share; null: as many as the host has",
    )

    @model_validator(mode="after")
    def _dom0_fits(self) -> Self:
        if self.dom0_memory >= self.memory:
            smaller = "dom0_memory" if "dom0_memory" in self.model_fields_set else "memory"
            raise _misplaced((smaller,), _memory_left(self.memory, self.dom0_memory))
        return self


class Scenario(Strict):
    """A whole run: the machine, its guests, and what must hold at the end."""

    name: str
    description: str = ""
    loop: Loop = Loop.ASYNCIO
    machine: MachineSpec = MachineSpec()
    output: Path = Field(
        default=Path("domzero-out"), description="folder of console logs and of relative image paths"
    )
    timeout: float | None = Field(
        default=None, gt=0, description="seconds after which the run is stopped and failed"
    )
    guests: tuple[GuestSpec, ...] = Field(min_length=1)
    images: tuple[ImageExpectation, ...] = ()

    @model_validator(mode="after")
    def _guests_fit(self) -> Self:
        for index, guest in enumerate(self.guests):
            if guest.memory + self.machine.dom0_memory > self.machine.memory:
                left = _memory_left(self.machine.memory, self.machine.dom0_memory)
                raise _misplaced(("guests", index, "memory"), left)
        return self

    @model_validator(mode="after")
    def _order_is_possible(self) -> Self:
        places: dict[str, int] = {}
        for index, guest in enumerate(self.guests):
            if guest.name in places:
                raise _misplaced(("guests", index, "name"), "a name that no other guest has")
            places[guest.name] = index
        for index, guest in enumerate(self.guests):
            for position, name in enumerate(guest.start_after):
                if name not in places:
                    raise _misplaced(
                        ("guests", index, "start_after", position), _known_guest(name, list(places))
                    )
            for position, disk in enumerate(guest.disks):
                if disk.backend_domain and disk.backend_domain not in places:
                    raise _misplaced(
                        ("guests", index, "disks", position, "backend_domain"),
                        _known_guest(disk.backend_domain, list(places)),
                    )
        circle = _circle(_milestones(self.guests))
        if circle:
            names = [name for name, _ in groupby(name for name, _ in [*circle, circle[0]])]
            described = " after ".join(names if len(names) > 1 else names * 2)
            raise _misplaced(_reason_to_wait(self.guests, circle), f"an order, not a circle ({described})")
        return self


def _memory_left(memory: ByteSize, dom0: ByteSize) -> str:
    if dom0 >= memory:
        return f"more memory than dom0's ({memory.human_readable()} against {dom0.human_readable()})"
    left = ByteSize(memory - dom0)
    return f"at most {left.human_readable()}, which is what the machine has beside dom0"


def _known_guest(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"{close[0]!r}, perhaps" if close else f"a guest of this scenario: {', '.join(known)}"


def _milestones(guests: Sequence[GuestSpec]) -> dict[Milestone, list[Milestone]]:
    """What each guest's start and its end wait for. A driver domain starts before those that it serves and is
    asked to end after them.
    """
    waits_for: dict[Milestone, list[Milestone]] = {}
    for guest in guests:
        waits_for[guest.name, _START] = [
            *((name, _END) for name in guest.start_after),
            *((name, _START) for name in guest.driver_domains),
        ]
        waits_for[guest.name, _END] = [(guest.name, _START)]
    for guest in guests:
        for name in guest.driver_domains:
            waits_for[name, _END].append((guest.name, _END))
    return waits_for


def _circle(waits_for: Mapping[Milestone, Sequence[Milestone]]) -> list[Milestone]:
    """Milestones of which each waits for the next, and the last for the first; empty if there are none such."""
    over: set[Milestone] = set()
    while ready := [here for here, after in waits_for.items() if here not in over and over >= set(after)]:
        over.update(ready)
    stuck = [here for here in waits_for if here not in over]
    path: list[Milestone] = []
    while stuck:
        if stuck[0] in path:
            return path[path.index(stuck[0]) :]
        path.append(stuck[0])
        stuck = [here for here in waits_for[stuck[0]] if here not in over]
    return []


def _reason_to_wait(guests: Sequence[GuestSpec], circle: Sequence[Milestone]) -> tuple[str | int, ...]:
    """Where the file says the first thing that makes a guest's start wait for the next in `circle`."""
    by_name = {guest.name: (index, guest) for index, guest in enumerate(guests)}
    following = zip(circle, [*circle[1:], circle[0]])
    starts = [(*by_name[name], after) for (name, what), after in following if what == _START]
    for index, guest, (after, what) in starts:
        if what == _END and after in guest.start_after:
            return "guests", index, "start_after"
    index, guest, (after, _) = starts[0]
    position = next(i for i, disk in enumerate(guest.disks) if disk.backend_domain == after)
    return "guests", index, "disks", position, "backend_domain"
