"""What the process of a native domain is told when it starts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from hypervisor.vcpu.process.confinement import Confinement


class NativeStart(BaseModel):
    """origin_ns, wall_clock_ns: CLOCK_MONOTONIC, and Unix time, when system time was 0. max_pages: most frames that
    the domain may ever have. contexts: a packed vcpu_guest_context by vCPU. p2m: u64 MFNs by PFN, packed, for the M2P
    table; empty: frames are where RAM begins, in order. state: of a domain that has been executed before.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", arbitrary_types_allowed=True)

    domid: int
    origin_ns: int
    wall_clock_ns: int
    max_vcpus: int
    max_pages: int
    contexts: dict[int, bytes] = {}
    p2m: bytes = b""
    state: bytes = b""
    outspoken: bool = False
    confinement: Confinement
