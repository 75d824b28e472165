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


class M2pRun(BaseModel):
    """MFNs whose M2P entries count up from `pfn`."""

    model_config = ConfigDict(extra="forbid")

    mfn: int = Field(ge=0, lt=MFN_END)
    count: int = Field(ge=1, le=MFN_END)
    pfn: int = Field(ge=0, lt=1 << 64)


class Pin(BaseModel):
    """A pinned page table."""

    model_config = ConfigDict(extra="forbid")

    mfn: int = Field(ge=0, lt=MFN_END)
    level: int = Field(ge=1, le=4)


class PageTablesState(BaseModel):
    """Of one domain."""

    model_config = ConfigDict(extra="forbid")

    pinned: list[Pin]
    m2p: list[M2pRun]
    strict_m2p: bool


def dump(frames: LocalFrames, m2p: memoryview, strict_m2p: bool) -> PageTablesState:
    """The state, when nothing is half done."""
    pins = [Pin(mfn=mfn, level=int(frames.type(mfn))) for mfn in sorted(frames.pinned)]
    runs: list[M2pRun] = []
    for first, count, _ in frames.runs():
        runs += _m2p_runs(first, m2p[first : first + count].tolist())
    return PageTablesState(pinned=pins, m2p=runs, strict_m2p=strict_m2p)


def _m2p_runs(first: int, pfns: list[int]) -> list[M2pRun]:
    runs = []
    start = 0
    for index in range(1, len(pfns) + 1):
        if index == len(pfns) or pfns[index] != pfns[index - 1] + 1:
            runs.append(M2pRun(mfn=first + start, count=index - start, pfn=pfns[start]))
            start = index
    return runs


def load_m2p(state: PageTablesState, m2p: memoryview) -> None:
    """Write the M2P table. InvalidArgument: a run that leads out of it."""
    for run in state.m2p:
        if run.mfn + run.count > MFN_END or run.pfn + run.count > 1 << 64:
            raise InvalidArgument("M2P run", run, "MFNs and PFNs that there are")
        for index in range(run.count):
            m2p[run.mfn + index] = run.pfn + index
