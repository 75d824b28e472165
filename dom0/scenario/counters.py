"""Counters by dotted path into a domain's report, such as `grants.leaked` or `devices.xvda.bytes_read`."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel

from backends.block.keys import MAX_QUEUES
from backends.block.stats import KINDS
from dom0.report.model import DeviceReport, DomainReport, QueueReport
from dom0.report.native import VECTOR_NAMES
from hypervisor.abi.operations import HYPERCALLS
from hypervisor.hypercalls import TABLE
from hypervisor.pv.hypercalls import WIDTHS
from ringbuffers.protocols.blkif_keys import queue_directory

_HYPERCALLS: Final = frozenset(HYPERCALLS[number] for number in (*TABLE, *WIDTHS))
_NAMES: Final = {
    "hypercalls": _HYPERCALLS,
    "mean_us": _HYPERCALLS,
    "traps": frozenset(VECTOR_NAMES.values()),
    "requests": frozenset([*KINDS.values(), "unknown"]),
}
"""What may be counted by kind: what did not happen is not in a report, and counts as 0."""


def served_name(guest: str, vdev: str) -> str:
    """What a guest's disk is called in the report of the driver domain that serves it."""
    return f"{guest}-{vdev}"


def counter_at(report: DomainReport, path: str) -> int | float | None:
    """The number at `path`; None if there is none."""
    here: Any = report
    for step in path.split("."):
        if isinstance(here, BaseModel):
            here = getattr(here, step) if step in _numbers_and_sections(type(here)) else None
        elif isinstance(here, list):
            here = next((item for item in here if getattr(item, "name", None) == step), None)
        elif isinstance(here, dict):
            here = here.get(step, 0)
        else:
            return None
    return here if isinstance(here, int | float) and not isinstance(here, bool) else None


def wrong_counter(path: str, vdevs: Sequence[str], served: Sequence[str] = ()) -> str | None:
    """What was expected instead of `path` in a domain with the disks `vdevs`; None if it is a counter. served:
    the disks of others that it serves, as `served_name` calls them.
    """
    queues = [QueueReport(name=queue_directory(index)) for index in range(MAX_QUEUES)]
    devices = [DeviceReport(name=vdev, kind="vbd", queues=queues) for vdev in vdevs]
    others = [DeviceReport(name=name, kind="vbd", queues=queues) for name in served]
    sample = DomainReport(name="", domid=0, program="", devices=devices, served=others)
    here: Any = sample
    steps = path.split(".")
    for place, step in enumerate(steps):
        known = _known(here, steps[place - 1] if place else "")
        if step not in known:
            return _suggestion(steps[:place], step, known)
        if isinstance(here, dict):
            here = 0
        elif isinstance(here, list):
            here = next(item for item in here if item.name == step)
        else:
            here = getattr(here, step)
    if isinstance(here, int | float):
        return None
    return _suggestion(steps, "", _known(here, steps[-1]))


def _known(here: Any, name: str) -> list[str]:
    """What may follow in a path that has led to `here`, whose last step was `name`."""
    if isinstance(here, BaseModel):
        return sorted(_numbers_and_sections(type(here)))
    if isinstance(here, list):
        return [item.name for item in here]
    return sorted(_NAMES[name]) if isinstance(here, dict) else []


def _numbers_and_sections(model: type[BaseModel]) -> set[str]:
    """The fields that are counters, or lead to some: no text, and no lists of it."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    kept = {name for name, kind in fields.items() if kind not in (str, list[str], int | None)}
    return kept - {"domid"} | set(model.model_computed_fields)


def _suggestion(before: Sequence[str], step: str, known: Sequence[str]) -> str:
    if not known:
        return f"a counter; {'.'.join(before)} has no parts" if before else "a counter"
    close = get_close_matches(step, known, n=1)
    names = close or known
    shown = ", ".join(".".join([*before, name]) for name in names)
    return f"{shown}, perhaps" if close else f"one of {shown}"
