"""Programs by name and at hand: what is one, and what is said of what is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from dom0.programs import NoArguments, ProgramError, load_program, program_of
from guests import READY_MADE
from guests.hello import Args as HelloArgs

if TYPE_CHECKING:
    from kernel.kernel import Kernel


class Args(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = 1


async def plain(kernel: Kernel) -> int:
    return 7


async def with_args(kernel: Kernel, args: Args) -> int:
    """Its annotations are text, and Kernel is known to type checkers only."""
    return args.count


async def with_unknown_args(kernel: Kernel, args: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 0


async def with_an_int(kernel: Kernel, count: int) -> int:
    return count


async def with_no_kernel() -> int:
    return 0


async def with_named_args(kernel: Kernel, *, args: Args) -> int:
    return 0


async def with_too_much(kernel: Kernel, args: Args, more: Args) -> int:
    return 0


def not_async(kernel: Kernel) -> int:
    return 0


@pytest.mark.parametrize("name", sorted(READY_MADE))
def test_every_ready_made_guest_loads_by_its_name(name: str) -> None:
    program = load_program(name)
    assert program.name == name
    assert issubclass(program.arguments, BaseModel)


def test_a_program_by_module_and_function_brings_the_model_of_its_arguments() -> None:
    assert load_program(f"{__name__}:with_args").arguments is Args
    assert load_program(f"{__name__}:plain").arguments is NoArguments
    assert load_program("hello").arguments is HelloArgs


def test_a_function_at_hand_is_called_as_it_calls_itself() -> None:
    assert program_of(plain).name == "plain"
    assert program_of(plain, "mine").name == "mine"


@pytest.mark.anyio
async def test_bound_arguments_reach_the_program() -> None:
    kernel: Kernel = None  # type: ignore[assignment]
    assert await program_of(with_args).bind({"count": 3})(kernel) == 3
    assert await program_of(with_args).bind(Args(count=4))(kernel) == 4
    assert await program_of(with_args).bind({})(kernel) == 1
    assert await program_of(plain).bind({})(kernel) == 7


def test_arguments_are_checked_when_they_are_bound() -> None:
    with pytest.raises(ValidationError, match="cuont"):
        program_of(with_args).bind({"cuont": 3})
    with pytest.raises(ValidationError, match="count"):
        program_of(plain).bind({"count": 3})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("helo", r"a ready-made guest \(hello, perhaps\) or module:function"),
        ("zzz", r"a ready-made guest \(block-copy, .*\) or module:function"),
        (":main", "or module:function"),
        ("module:", "or module:function"),
        ("", "or module:function"),
        ("no_such_module_here:main", "a module that can be imported .*no_such_module_here"),
        (f"{__name__}:missing", f"a function of {__name__}, which has no 'missing'"),
        (f"{__name__}:not_async", "an async function that takes a kernel"),
        (f"{__name__}:Args", "an async function that takes a kernel"),
        (f"{__name__}:with_no_kernel", "one pydantic model"),
        (f"{__name__}:with_too_much", "one pydantic model"),
        (f"{__name__}:with_named_args", "one pydantic model"),
        (f"{__name__}:with_an_int", "one pydantic model"),
        (f"{__name__}:with_unknown_args", "one pydantic model"),
    ],
)
def test_what_is_no_program_is_told_what_was_expected(name: str, says: str) -> None:
    with pytest.raises(ProgramError, match=says) as caught:
        load_program(name)
    assert caught.value.name == name


@pytest.mark.parametrize("source", ["syntax error here", "raise RuntimeError('boom')", "1 / 0"])
def test_a_module_that_breaks_while_it_is_imported_is_a_program_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_guest.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_guest", raising=False)
    with pytest.raises(ProgramError, match="a module that can be imported"):
        load_program("broken_guest:main")
