"""The domain builder for paravirtualized kernels: makes a domain by hypercalls, as Xen's libxenguest does."""

from dataclasses import dataclass
from pathlib import Path

from dom0.toolstack.builder import BuiltDomain
from kernel.kernel import Kernel


@dataclass(frozen=True, slots=True)
class PvConfig:
    """A paravirtualized domain's kernel and what goes with it. shuffled: no two neighbouring pages of the domain
    need be neighbours in the machine, as on a real one; otherwise PFN i is MFN RAM_FIRST + i.
    """

    kernel: Path
    ramdisk: Path | None = None
    command_line: str = ""
    vcpus: int = 1
    shuffled: bool = False


def build_pv_domain(
    kernel: Kernel, name: str, uuid: bytes, memory_bytes: int, config: PvConfig
) -> BuiltDomain:
    """Makes a paused domain that will begin at its kernel's entry point.

    Raises:
        BuildError: the files are bad or a step was refused; nothing of the domain is left.
    """
    raise NotImplementedError
