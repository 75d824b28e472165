"""The hypercalls of the PV CPU interface, all local to the domain's process. Arguments come masked to their widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from hypervisor.continuation import Continuation

CPU_HYPERCALLS: Final[Mapping[int, Callable[..., int | Continuation]]] = MappingProxyType({})
"""number -> handler(vcpu, *args), which raises XenError"""
