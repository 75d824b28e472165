"""Ready-made Python guest programs.

Each is `async def main(kernel, args)`; the names are those that a scenario's `program:` may use.
"""

from collections.abc import Mapping
from typing import Final

DRIVER_DOMAIN: Final = "driver-domain"

READY_MADE: Final[Mapping[str, str]] = {
    "hello": "guests.hello:main",
    "block-exerciser": "guests.block_exerciser:main",
    "block-copy": "guests.block_copy:main",
    "idle": "guests.idle:main",
    DRIVER_DOMAIN: "dom0.driver_domain:main",
}
