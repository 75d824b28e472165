"""The scenario file as pydantic models; their JSON Schema is what editors complete from.

A scenario names a machine, the guests that run on it, their disks, and what must hold at the end.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from dom0.vdev import VirtualDeviceName, parse_vdev

MIB = 1 << 20
PAGE_BYTES = 4096


class Strict(BaseModel):
    """A model that refuses keys it does not know: a misspelt key is an error, never silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Loop(StrEnum):
    """The event loop that the Python domains run on."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


class ShutdownReason(StrEnum):
    """SHUTDOWN_* of sched.h, as a scenario spells them."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crash"


def _whole_pages(size: ByteSize) -> ByteSize:
    if size % PAGE_BYTES:
        raise ValueError(f"{int(size)} bytes is not a whole number of 4 KiB pages")
    return size


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


def _vdev(name: str) -> str:
    try:
        parse_vdev(name)
    except VirtualDeviceName as error:
        raise ValueError(str(error)) from error
    return name


MemorySize = Annotated[ByteSize, Field(ge=4 * MIB), AfterValidator(_whole_pages)]
Pattern = Annotated[str, AfterValidator(_compiles)]
VdevName = Annotated[str, AfterValidator(_vdev)]
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Bound(Strict):
    """Inclusive bounds of a counter of the report; at least one must be given."""

    min: int | None = None
    max: int | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class DiskSpec(Strict):
    """One virtual disk: what the guest sees and which block backend serves it."""

    vdev: VdevName = Field(description="device name in the guest, such as xvda or xvdb1")
    backend: str = Field(
        "file", description="a name of the entry-point group domzero.backends, or module:Class"
    )
    mode: Literal["w", "r"] = Field("w", description="w: read and write; r: read only")
    config: dict[str, Any] = Field(default_factory=dict, description="the backend's own settings")


class GuestExpectations(Strict):
    """What must hold of one guest when it has ended."""

    exit_code: int | None = Field(0, description="what the program returned; null: do not look")
    shutdown: ShutdownReason = ShutdownReason.POWEROFF
    console: Annotated[tuple[Pattern, ...], BeforeValidator(_one_or_many)] = Field(
        (), description="regular expressions, each found in the console's output"
    )
    counters: dict[str, Bound] = Field(
        default_factory=dict,
        description="bounds by dotted path into the domain's report, such as grants.leaked",
    )


class GuestSpec(Strict):
    """One guest: a Python kernel that runs `program`."""

    name: DomainName
    program: str = Field(
        description="a ready-made guest (hello, block-exerciser, block-copy, idle) or module:function"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="the program's arguments")
    memory: MemorySize = Field(ByteSize(16 * MIB), description="RAM, such as 16MiB")
    disks: tuple[DiskSpec, ...] = ()
    start_after: Annotated[tuple[DomainName, ...], BeforeValidator(_one_or_many)] = Field(
        (), description="guests that must have ended before this one starts"
    )
    expect: GuestExpectations = GuestExpectations()

    @model_validator(mode="after")
    def _disks_differ(self) -> Self:
        names = [disk.vdev for disk in self.disks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two disks of {self.name} are called {name}")
        return self


class ImageExpectation(Strict):
    """What an image file must hold when all guests have ended; exactly one of the two is given."""

    path: Path
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    same_as: Path | None = Field(None, description="another image whose content must be equal")

    @model_validator(mode="after")
    def _one_claim(self) -> Self:
        if (self.sha256 is None) == (self.same_as is None):
            raise ValueError("give exactly one of sha256 and same_as")
        return self


class MachineSpec(Strict):
    """The machine under the domains."""

    memory: MemorySize = Field(
        ByteSize(1024 * MIB), description="machine memory; only what is touched is used"
    )
    dom0_memory: MemorySize = Field(ByteSize(64 * MIB), description="RAM of the service domain")


class Scenario(Strict):
    """A whole run: the machine, its guests, and what must hold at the end."""

    name: str
    description: str = ""
    loop: Loop = Loop.ASYNCIO
    machine: MachineSpec = MachineSpec()
    output: Path = Field(
        Path("domzero-out"), description="folder of console logs and of relative image paths"
    )
    timeout: float | None = Field(None, gt=0, description="seconds after which the run is stopped and failed")
    guests: tuple[GuestSpec, ...] = Field(min_length=1)
    images: tuple[ImageExpectation, ...] = ()

    @model_validator(mode="after")
    def _order_is_possible(self) -> Self:
        names = [guest.name for guest in self.guests]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two guests are called {twice}")
        ended: set[str] = set()
        waiting = {guest.name: set(guest.start_after) for guest in self.guests}
        for name, after in waiting.items():
            if missing := after - set(names):
                raise ValueError(
                    f"guest {name} starts after {min(missing)}, which is no guest of this scenario"
                )
        while waiting:
            ready = [name for name, after in waiting.items() if after <= ended]
            if not ready:
                raise ValueError(f"start_after goes in a circle: {', '.join(waiting)}")
            ended.update(ready)
            for name in ready:
                del waiting[name]
        return self
