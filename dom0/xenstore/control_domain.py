"""What the store says of the control domain itself before any guest is built.

On Xen its kernel writes the first three keys and xen-init-dom0 the others, in this order.
"""

from typing import TYPE_CHECKING, Final

from dom0.xenstore.operations import write

if TYPE_CHECKING:
    from dom0.xenstore.core import XenStore

_KEYS: Final = (
    (b"/local/domain/0/control/feature-poweroff", b"1"),
    (b"/local/domain/0/control/feature-reboot", b"1"),
    (b"/local/domain/0/control/feature-suspend", b"1"),
    (b"/local/domain/0/domid", b"0"),
    (b"/local/domain/0/name", b"Domain-0"),
    (b"/local/pool/0/name", b"Pool-0"),
)


def describe(core: "XenStore") -> None:
    """Write the keys."""
    client = core.connect()
    for path, value in _KEYS:
        write(client.direct, client, path, value)
    core.disconnect(client)
