"""Guest programs: the ready-made ones of `guests/`, `module:function`, or a function at hand.

A program is `async def main(kernel: Kernel, args: Args) -> int | None`, where Args is a pydantic model;
a program without arguments takes the kernel alone.
"""

import importlib
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict

from guests import DRIVER_DOMAIN, READY_MADE
from kernel.kernel import Kernel

Main = Callable[..., Awaitable[int | None]]


class ProgramError(Exception):
    """There is no program `name`; the text says what was expected instead."""

    def __init__(self, name: str, expected: str) -> None:
        super().__init__(expected)
        self.name = name
        self.expected = expected


class NoArguments(BaseModel):
    """The arguments of a program that takes none."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded guest program and the model of its arguments."""

    name: str
    main: Main
    arguments: type[BaseModel]

    def bind(self, args: Mapping[str, Any] | BaseModel) -> Callable[[Kernel], Awaitable[int | None]]:
        """The program with its arguments validated and filled in. Raises pydantic.ValidationError."""
        given = args if isinstance(args, BaseModel) else dict(args)
        arguments = self.arguments.model_validate(given)
        main = self.main
        if self.arguments is NoArguments:
            return main
        return lambda kernel: main(kernel, arguments)


def load_program(name: str) -> Program:
    """Finds the program called `name`.

    Raises:
        ProgramError: there is none, or it does not have a program's shape.
    """
    target = READY_MADE.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        close = get_close_matches(name, READY_MADE, n=1)
        known = f"{close[0]}, perhaps" if close else ", ".join(sorted(READY_MADE))
        raise ProgramError(name, f"a ready-made guest ({known}) or module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        raise ProgramError(
            name, f"a module that can be imported ({type(error).__name__}: {error})"
        ) from error
    main = getattr(module, attribute, None)
    if main is None:
        raise ProgramError(name, f"a function of {module_name}, which has no {attribute!r}")
    return program_of(main, name)


def is_driver_domain(program: Program) -> bool:
    """Whether `program` serves the disks of other domains."""
    return program.main is load_program(DRIVER_DOMAIN).main


def program_of(main: Main, name: str | None = None) -> Program:
    """The program that an async function is; called `name`, or as the function calls itself.

    Raises:
        ProgramError: it does not have a program's shape.
    """
    shown = name or str(getattr(main, "__qualname__", main))
    if not inspect.iscoroutinefunction(main):
        raise ProgramError(shown, "an async function that takes a kernel")
    return Program(shown, main, _arguments_of(main, shown))


def _arguments_of(main: Main, name: str) -> type[BaseModel]:
    parameters = list(inspect.signature(main).parameters.values())
    if len(parameters) == 1:
        return NoArguments
    annotation = _resolved(main, parameters[1].annotation) if _takes_two(parameters) else None
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise ProgramError(name, "an async function of a kernel and, if it has arguments, one pydantic model")
    return annotation


def _takes_two(parameters: Sequence[inspect.Parameter]) -> bool:
    return len(parameters) == 2 and all(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )


def _resolved(main: Main, annotation: object) -> object:
    """What an annotation that is a string stands for: this one alone, since others may be there only for type
    checkers.
    """
    if not isinstance(annotation, str):
        return annotation
    scope = getattr(inspect.unwrap(main), "__globals__", {})
    probe = type("probe", (), {"__annotations__": {"args": annotation}})
    try:
        return typing.get_type_hints(probe, globalns=scope)["args"]
    except (NameError, AttributeError, SyntaxError, TypeError):
        return None
