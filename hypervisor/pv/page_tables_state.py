"""The state of a domain's paging that is neither in guest memory nor in its vCPUs, as a model.

Types and counts are not in it: they follow from pins, roots and the tables themselves, and loading counts them again.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt


class FrameRun(BaseModel):
    """Frames of one kind (a Kind's number)."""

    model_config = ConfigDict(extra="forbid")

    mfn: NonNegativeInt
    count: PositiveInt
    kind: PositiveInt


class M2pRun(BaseModel):
    """MFNs whose PFNs follow each other as they do."""

    model_config = ConfigDict(extra="forbid")

    mfn: NonNegativeInt
    count: PositiveInt
    pfn: NonNegativeInt


class TypedReference(BaseModel):
    """`count` references to a frame as a type (a Type's number)."""

    model_config = ConfigDict(extra="forbid")

    mfn: NonNegativeInt
    type: PositiveInt
    count: PositiveInt = 1


class PageTablesState(BaseModel):
    """Of one domain."""

    model_config = ConfigDict(extra="forbid")

    frames: list[FrameRun]
    m2p: list[M2pRun]
    pinned: list[TypedReference]
    held: list[TypedReference]
    """by hypercalls that are not finished, by GDTs, by whoever else took one"""
    strict_m2p: bool
