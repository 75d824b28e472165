"""The state of a domain's paging that is neither in guest memory nor in its vCPUs, as a model.

Types and counts are not in it: they follow from pins, roots and the tables themselves, and loading counts them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from hypervisor.errors import InvalidArgument
from hypervisor.pv.layout import MFN_END

if TYPE_CHECKING:
    from hypervisor.pv.frames import LocalFrames


class M2pPart(BaseModel):
    """M2P entries from that of `mfn` on. pfns: u64s, packed."""

    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    mfn: int = Field(ge=0, lt=MFN_END)
    pfns: bytes = Field(max_length=8 * MFN_END)


class Pin(BaseModel):
    """A pinned page table."""

    model_config = ConfigDict(extra="forbid")

    mfn: int = Field(ge=0, lt=MFN_END)
    level: int = Field(ge=1, le=4)


class PageTablesState(BaseModel):
    """Of one domain."""

    model_config = ConfigDict(extra="forbid")

    pinned: list[Pin]
    m2p: list[M2pPart]
    strict_m2p: bool


def dump(frames: LocalFrames, m2p: memoryview, strict_m2p: bool) -> PageTablesState:
    """The state, when nothing is half done."""
    pins = [Pin(mfn=mfn, level=int(frames.type(mfn))) for mfn in sorted(frames.pinned)]
    parts = [
        M2pPart(mfn=first, pfns=m2p[first : first + count].tobytes()) for first, count, _ in frames.runs()
    ]
    return PageTablesState(pinned=pins, m2p=parts, strict_m2p=strict_m2p)


def load_m2p(state: PageTablesState, m2p: memoryview) -> None:
    """Write the M2P table. InvalidArgument: a part that leads out of it."""
    for part in state.m2p:
        count, rest = divmod(len(part.pfns), 8)
        if rest or part.mfn + count > min(len(m2p), MFN_END):
            raise InvalidArgument("M2P part", (part.mfn, len(part.pfns)), "u64s for MFNs that there are")
        m2p[part.mfn : part.mfn + count] = memoryview(part.pfns).cast("Q")
