"""Does nothing, on purpose: an upcall now and then is all that an idle domain costs."""

import anyio
from pydantic import BaseModel, ConfigDict, Field

from frontends.console.attach import attached_console
from kernel.kernel import Kernel

NANOSECONDS = 1_000_000_000


class Args(BaseModel):
    """How long."""

    model_config = ConfigDict(extra="forbid")

    seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="how long to idle; null: until asked to shut down",
    )


async def main(kernel: Kernel, args: Args) -> int:
    """Sleeps on a timer of its domain, or until the toolstack asks for its shutdown."""
    request = kernel.shutdown_requested
    with request.deferred():
        async with attached_console(kernel) as console:
            console.write("idle\n")
            with anyio.CancelScope() as scope:
                if args.seconds is not None:
                    kernel.clock.call_at(
                        kernel.clock.now_ns() + int(args.seconds * NANOSECONDS), scope.cancel
                    )
                console.write(f"asked to {await request.wait()}\n")
    return 0
