"""From a file to a checked scenario.

Every complaint names file, line and key, what was found and what was expected.
"""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from backends.registry import BackendError, load_backend
from dom0.programs import Program, ProgramError, load_program
from dom0.scenario.model import DiskSpec, GuestSpec, Scenario
from dom0.scenario.source import KeyPath, Problem, ScenarioError, Source, dotted, read_source


def load_scenario(file: Path) -> Scenario:
    """Reads and checks `file`: keys, programs with their arguments, backends with their settings.

    Raises:
        ScenarioError: with every problem found.
    """
    source = read_source(file)
    try:
        scenario = Scenario.model_validate(source.data)
    except ValidationError as error:
        raise ScenarioError(_problems(source, (), error, Scenario)) from error
    problems = [p for i, guest in enumerate(scenario.guests) for p in _check_guest(source, i, guest)]
    if problems:
        raise ScenarioError(problems)
    return scenario


def _check_guest(source: Source, index: int, guest: GuestSpec) -> list[Problem]:
    here: KeyPath = ("guests", index)
    problems = [
        p for i, disk in enumerate(guest.disks) for p in _check_disk(source, (*here, "disks", i), disk)
    ]
    try:
        program: Program = load_program(guest.program)
        program.arguments.model_validate(guest.args)
    except ProgramError as error:
        problems.append(_problem(source, (*here, "program"), repr(guest.program), str(error)))
    except ValidationError as error:
        problems += _problems(source, (*here, "args"), error, program.arguments)
    return problems


def _check_disk(source: Source, here: KeyPath, disk: DiskSpec) -> list[Problem]:
    try:
        store = load_backend(disk.backend)
        store.Config.model_validate(disk.config)
    except BackendError as error:
        return [_problem(source, (*here, "backend"), repr(disk.backend), str(error))]
    except ValidationError as error:
        return _problems(source, (*here, "config"), error, store.Config)
    return []


def _problem(source: Source, path: KeyPath, found: str, expected: str) -> Problem:
    return Problem(source.file, source.line(path), dotted(path), found, expected)


def _problems(
    source: Source, prefix: KeyPath, error: ValidationError, model: type[BaseModel]
) -> list[Problem]:
    return [_explain(source, prefix, details, model) for details in error.errors()]


def _explain(source: Source, prefix: KeyPath, details: ErrorDetails, model: type[BaseModel]) -> Problem:
    path = (*prefix, *details["loc"])
    kind = details["type"]
    if kind == "missing":
        return _problem(source, path, "nothing", f"a value for {path[-1]!r}")
    if kind == "extra_forbidden":
        known = _keys_at(model, details["loc"][:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"{close[0]!r}, perhaps" if close else "one of " + ", ".join(sorted(known))
        return _problem(source, path, f"the unknown key {path[-1]!r}", hint)
    if kind == "value_error":
        reason = details["msg"].removeprefix("Value error, ")
        return _problem(source, path, _short(source.value(path)), f"something else: {reason}")
    return _problem(source, path, _short(source.value(path)), details["msg"].removeprefix("Input should be "))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], location: KeyPath) -> list[str]:
    """The keys of the model that a validation error's location leads to."""
    here: Any = model
    for step in location:
        if isinstance(step, int) or here is None:
            continue
        field = here.model_fields.get(step)
        here = _model_in(field.annotation) if field is not None else None
    return list(here.model_fields) if here is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
