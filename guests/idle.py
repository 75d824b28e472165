"""Does nothing, on purpose: an upcall now and then is all that an idle domain costs."""

from pydantic import BaseModel, ConfigDict, Field

from frontends.console.attach import attached_console
from kernel.kernel import Kernel

NANOSECONDS = 1_000_000_000


class Args(BaseModel):
    """How long."""

    model_config = ConfigDict(extra="forbid")

    seconds: float | None = Field(
        default=None, gt=0, description="how long to idle; null: until asked to shut down"
    )


async def main(kernel: Kernel, args: Args) -> int:
    """Sleeps on a timer of its domain, or until the toolstack asks for its shutdown."""
    async with attached_console(kernel) as console:
        console.write("idle\n")
        if args.seconds is None:
            with kernel.shutdown_requested.deferred():
                command = await kernel.shutdown_requested.wait()
                console.write(f"asked to {command}\n")
        else:
            await kernel.clock.sleep_until(kernel.clock.now_ns() + int(args.seconds * NANOSECONDS))
        await console.drain()
    return 0
