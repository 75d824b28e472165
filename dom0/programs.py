"""Guest programs by name: the ready-made ones of `guests/`, or `module:function`.

A program is `async def main(kernel: Kernel, args: Args) -> int | None`, where Args is a pydantic model;
a program without arguments takes the kernel alone.
"""

import importlib
import inspect
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from guests import READY_MADE
from kernel.kernel import Kernel


class ProgramError(Exception):
    """A program cannot be loaded; the text says what was expected instead."""


class NoArguments(BaseModel):
    """The arguments of a program that takes none."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded guest program and the model of its arguments."""

    name: str
    main: Callable[..., Awaitable[int | None]]
    arguments: type[BaseModel]

    def bind(self, args: dict[str, Any]) -> Callable[[Kernel], Awaitable[int | None]]:
        """The program with its arguments validated and filled in."""
        arguments = self.arguments.model_validate(args)
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
    if not colon:
        raise ProgramError(f"a ready-made guest ({', '.join(sorted(READY_MADE))}) or module:function")
    try:
        main = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ProgramError(f"a module that can be imported ({error})") from error
    except AttributeError as error:
        raise ProgramError(f"a function of {module_name}, which has no {attribute!r}") from error
    if not inspect.iscoroutinefunction(main):
        raise ProgramError("an async function that takes a kernel")
    return Program(name, main, _arguments_of(main))


def _arguments_of(main: Callable[..., Any]) -> type[BaseModel]:
    parameters = list(inspect.signature(main).parameters.values())
    if len(parameters) == 1:
        return NoArguments
    annotation = typing.get_type_hints(main).get(parameters[1].name) if len(parameters) == 2 else None
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise ProgramError("an async function of a kernel and, if it has arguments, one pydantic model")
    return annotation
