"""From a file to a checked scenario.

Every complaint names file, line and key, what was found and what was expected.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from backends.registry import BackendError, load_backend
from dom0.images.errors import BadImage, MissingDecompressor
from dom0.images.load import read_kernel
from dom0.programs import ProgramError, is_driver_domain, load_program
from dom0.scenario.counters import served_name, wrong_counter
from dom0.scenario.model import MISPLACED, DiskSpec, GuestSpec, Scenario
from dom0.scenario.source import KeyPath, Problem, ScenarioError, Source, dotted, read_source
from dom0.scenario.wording import expectation
from dom0.toolstack.builder import MAX_PAGES
from guests import DRIVER_DOMAIN
from hypervisor.pv.layout import MFN_END, RAM_FIRST
from kernel.platform import PAGE_SIZE

MAX_NATIVE_PAGES: Final = MFN_END - RAM_FIRST


def load_scenario(file: Path) -> Scenario:
    """Reads and checks `file`: keys, programs with their arguments, backends with their settings, counters.

    Raises:
        ScenarioError: with every problem found, in the order of the file.
    """
    source = read_source(file)
    try:
        scenario = Scenario.model_validate(source.data)
    except ValidationError as error:
        raise _refused(_problems(source, (), error, Scenario)) from error
    problems = [p for i in range(len(scenario.guests)) for p in _check_guest(source, i, scenario.guests)]
    if problems:
        raise _refused(problems)
    return scenario


def _refused(problems: Iterable[Problem]) -> ScenarioError:
    return ScenarioError(sorted(problems, key=lambda problem: problem.line))


def _check_guest(source: Source, index: int, guests: Sequence[GuestSpec]) -> Iterator[Problem]:
    here: KeyPath = ("guests", index)
    guest = guests[index]
    served = [
        served_name(other.name, disk.vdev)
        for other in guests
        for disk in other.disks
        if disk.backend_domain == guest.name
    ]
    if guest.kernel is None:
        yield from _check_program(source, here, guest, served)
    else:
        yield from _check_kernel(source, here, guest)
    for number, disk in enumerate(guest.disks):
        yield from _check_disk(source, (*here, "disks", number), disk)
        yield from _check_backend_domain(source, (*here, "disks", number, "backend_domain"), disk, guests)
    vdevs = [disk.vdev for disk in guest.disks]
    for path in guest.expect.counters:
        if (expected_counter := wrong_counter(path, vdevs, served)) is not None:
            at = (*here, "expect", "counters", path)
            yield Problem(source.file, source.line(at), dotted(at), f"the counter {path!r}", expected_counter)


def _check_program(
    source: Source, here: KeyPath, guest: GuestSpec, served: Sequence[str]
) -> Iterator[Problem]:
    if guest.memory > MAX_PAGES * PAGE_SIZE:
        expected = f"at most {MAX_PAGES * PAGE_SIZE} bytes, which end where the rings' pages lie"
        yield _problem(source, (*here, "memory"), expected)
    try:
        program = load_program(guest.program)
    except ProgramError as error:
        yield _problem(source, (*here, "program"), error.expected)
        return
    yield from _check_settings(source, (*here, "args"), program.arguments, guest.args)
    if is_driver_domain(program) and not served:
        expected = f"a guest with a disk whose backend_domain is {guest.name}: without one it never ends"
        yield _problem(source, (*here, "program"), expected)


def _check_kernel(source: Source, here: KeyPath, guest: GuestSpec) -> Iterator[Problem]:
    if guest.memory > MAX_NATIVE_PAGES * PAGE_SIZE:
        yield _problem(source, (*here, "memory"), f"at most {MAX_NATIVE_PAGES * PAGE_SIZE} bytes")
    folder = source.file.parent
    try:
        read_kernel(folder / (guest.kernel or ""))
    except BadImage as error:
        found = f"{guest.kernel}, at offset {error.offset:#x} {error.what}"
        yield _problem(source, (*here, "kernel"), error.expected, found=found)
    except MissingDecompressor as error:
        yield _problem(source, (*here, "kernel"), f"a kernel that can be unpacked ({error})")
    except OSError as error:
        yield _problem(source, (*here, "kernel"), f"a file that can be read ({error.strerror})")
    if guest.ramdisk is not None and not (folder / guest.ramdisk).is_file():
        yield _problem(source, (*here, "ramdisk"), "a file that is there")


def _check_disk(source: Source, here: KeyPath, disk: DiskSpec) -> Iterator[Problem]:
    try:
        store = load_backend(disk.backend)
    except BackendError as error:
        yield _problem(source, (*here, "backend"), error.expected)
    else:
        yield from _check_settings(source, (*here, "config"), store.Config, disk.config)


def _check_backend_domain(
    source: Source, here: KeyPath, disk: DiskSpec, guests: Sequence[GuestSpec]
) -> Iterator[Problem]:
    for guest in guests:
        if guest.name == disk.backend_domain:
            with suppress(ProgramError):  # which is a problem of that guest
                if guest.kernel is not None or not is_driver_domain(load_program(guest.program)):
                    runs = guest.program or guest.kernel
                    expected = f"a guest whose program is {DRIVER_DOMAIN}; {guest.name}'s is {runs}"
                    yield _problem(source, here, expected)


def _check_settings(
    source: Source, here: KeyPath, model: type[BaseModel], settings: dict[str, Any]
) -> list[Problem]:
    """Arguments of a program or settings of a backend, against the model that it brings."""
    try:
        model.model_validate(settings)
    except ValidationError as error:
        return _problems(source, here, error, model)
    return []


def _problems(
    source: Source, prefix: KeyPath, error: ValidationError, model: type[BaseModel]
) -> list[Problem]:
    found = error.errors()
    return [_explain(source, prefix, details, model) for details in found if not _follows(details, found)]


def _follows(details: ErrorDetails, found: Sequence[ErrorDetails]) -> bool:
    """Whether a list is called too short, or something has no default, only because something else was refused."""
    here = details["loc"]
    return details["type"] == "default_factory_not_called" or (
        details["type"] == "too_short"
        and any(len(other["loc"]) > len(here) and other["loc"][: len(here)] == here for other in found)
    )


def _explain(source: Source, prefix: KeyPath, details: ErrorDetails, model: type[BaseModel]) -> Problem:
    kind, context = details["type"], details.get("ctx", {})
    path = (*prefix, *details["loc"])
    if kind == MISPLACED:
        path += context["at"]
    if kind == "missing":
        return _problem(source, path, f"a value for {path[-1]!r}", found="nothing")
    if kind == "extra_forbidden":
        hint = _known_key(str(path[-1]), _keys_at(model, details["loc"][:-1]))
        return _problem(source, path, hint, found=f"the unknown key {path[-1]!r}")
    return _problem(source, path, expectation(kind, details["msg"], context))


def _known_key(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    if close:
        return f"{close[0]!r}, perhaps"
    return f"one of {', '.join(known)}" if known else "no keys here"


def _problem(source: Source, path: KeyPath, expected: str, *, found: str | None = None) -> Problem:
    shown = _short(source.value(path)) if found is None else found
    return Problem(source.file, source.line(path), dotted(path), shown, expected)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], location: KeyPath) -> list[str]:
    """The keys of the model that a validation error's location leads to, sorted."""
    here: type[BaseModel] | None = model
    for step in location:
        field = here.model_fields.get(str(step)) if here is not None else None
        if field is not None:  # otherwise the number of an entry, or a key of a mapping of models
            here = _model_in(field.annotation)
    return sorted(here.model_fields) if here is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
