"""Declaring C structs: an annotated class is the single source of truth for a layout.

    class evtchn_alloc_unbound(Struct, size=8):
        dom: u16 = 0
        remote_dom: u16 = 0
        port: u32 = 0

Fields lie as a C compiler on x86-64 lays them; `size` is checked at import. The defaults (`= 0` for scalars,
`= ZERO` for all else) tell type checkers that every argument of the constructor may be left out. A C struct
or union without a tag is named after the struct and field that hold it and declared with `anonymous=True`.

Kinds are in kinds.py, offsets in placement.py, generated code in structs.py, unions in unions.py.
"""

from typing import Annotated

from hypervisor.abi.kinds import Array, Bytes, Scalar
from hypervisor.abi.placement import Field, Layout, LayoutError
from hypervisor.abi.structs import ZERO, Struct
from hypervisor.abi.unions import Union

u8 = Annotated[int, Scalar("B")]
u16 = Annotated[int, Scalar("H")]
u32 = Annotated[int, Scalar("I")]
u64 = Annotated[int, Scalar("Q")]
s8 = Annotated[int, Scalar("b")]
s16 = Annotated[int, Scalar("h")]
s32 = Annotated[int, Scalar("i")]
s64 = Annotated[int, Scalar("q")]
Handle = u64
"""XEN_GUEST_HANDLE: an address in the caller's memory, guest-physical or virtual by the domain's kind."""

__all__ = [
    "ZERO",
    "Array",
    "Bytes",
    "Field",
    "Handle",
    "Layout",
    "LayoutError",
    "Scalar",
    "Struct",
    "Union",
    "s8",
    "s16",
    "s32",
    "s64",
    "u8",
    "u16",
    "u32",
    "u64",
]
