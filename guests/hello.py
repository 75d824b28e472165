"""Says hello on its console: the smallest guest with something to show."""

from pydantic import BaseModel, ConfigDict, Field

from frontends.console.attach import attached_console
from kernel.kernel import Kernel


class Args(BaseModel):
    """What to say."""

    model_config = ConfigDict(extra="forbid")

    greeting: str = "Hello"
    times: int = Field(default=1, ge=1, le=1_000_000)


async def main(kernel: Kernel, args: Args) -> int:
    """Greets, as the domain that XenStore says it is."""
    async with attached_console(kernel) as console:
        name, domid = await kernel.store.read("name"), await kernel.store.read("domid")
        for _ in range(args.times):
            console.write(f"{args.greeting} from {name}, domain {domid}\n")
            await console.drain()
    return 0
