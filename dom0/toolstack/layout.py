"""What XenStore says of a domain and its devices, as a real xl and Xen 4.17 write it.

Nodes, order and permissions follow docs/misc/xenstore-paths.pandoc and recordings of a real machine.
A node without permissions of its own inherits its parent's, as the daemon does it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dom0.vdev import vdev_number

Permissions = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One node to write; `permissions` in xs_wire form, owner first (`n0`, `r1`)."""

    path: str
    value: str = ""
    permissions: Permissions | None = None


@dataclass(frozen=True, slots=True)
class StoreDescription:
    """What the toolstack writes of a domain before the daemon is told of it."""

    domid: int
    name: str
    uuid: str
    program: str
    arguments: str
    memory_kib: int
    store_port: int
    store_gfn: int
    start_time: str
    ostype: str = "python"
    ramdisk: str = ""
    vcpus: int = 1


def domain_path(domid: int) -> str:
    """Where everything of a domain lies."""
    return f"/local/domain/{domid}"


def skeleton(domid: int, name: str, uuid: str, kind: str = "pvh") -> Iterator[Node]:
    """The folders of a new domain, with the parts that it may write itself. kind: pv or pvh."""
    home, vm, private = domain_path(domid), f"/vm/{uuid}", f"/libxl/{domid}"
    readable: Permissions = ("n0", f"r{domid}")
    own: Permissions = (f"n{domid}",)
    yield Node(home, permissions=readable)
    yield Node(vm, permissions=readable)
    yield Node(private, permissions=("n0",))
    yield Node(f"{private}/device", permissions=("n0",))
    yield Node(f"{home}/vm", vm)
    yield Node(f"{home}/name", name)
    yield Node(f"{vm}/name", name)
    yield from (Node(f"{home}/{folder}", permissions=readable) for folder in ("cpu", "memory", "device"))
    yield Node(f"{home}/device/suspend/event-channel", permissions=own)
    yield Node(f"{home}/control", permissions=readable)
    for leaf in ("shutdown", "feature-poweroff", "feature-reboot", "feature-suspend", "sysrq"):
        yield Node(f"{home}/control/{leaf}", permissions=own)
    yield from (
        Node(f"{home}/{area}", permissions=own) for area in ("data", "drivers", "feature", "attr", "error")
    )
    yield Node(f"{vm}/uuid", uuid)
    yield Node(f"{home}/control/platform-feature-multiprocessor-suspend", "1")
    yield Node(f"{home}/control/platform-feature-xs_reset_watches", "1")
    yield Node(f"{private}/type", kind)


def description(domain: StoreDescription) -> Iterator[Node]:
    """What is known once the domain's memory and rings exist."""
    home, vm = domain_path(domain.domid), f"/vm/{domain.uuid}"
    yield Node(f"{home}/memory/static-max", str(domain.memory_kib))
    yield Node(f"{home}/memory/target", str(domain.memory_kib))
    yield Node(f"{home}/memory/videoram", "0")
    yield Node(f"{home}/domid", str(domain.domid))
    yield Node(f"{home}/store/port", str(domain.store_port))
    yield Node(f"{home}/store/ring-ref", str(domain.store_gfn))
    yield from (Node(f"{home}/cpu/{vcpu}/availability", "online") for vcpu in range(domain.vcpus))
    yield Node(f"{vm}/image/ostype", domain.ostype)
    yield Node(f"{vm}/image/kernel", domain.program)
    if domain.ramdisk:
        yield Node(f"{vm}/image/ramdisk", domain.ramdisk)
    yield Node(f"{vm}/start_time", domain.start_time)
    yield Node(f"{vm}/image/cmdline", domain.arguments)


@dataclass(frozen=True, slots=True)
class DevicePaths:
    """The folders of a device: the frontend's, the backend's, the toolstack's own, and its backend's errors."""

    frontend: str
    backend: str
    private: str
    error: str

    @classmethod
    def of(cls, kind: str, domid: int, devid: int, backend_domid: int = 0) -> "DevicePaths":
        """The folders of device `devid` of type `kind`; the first console has its own place."""
        first_console = kind == "console" and devid == 0
        home = domain_path(domid)
        return cls(
            frontend=f"{home}/console" if first_console else f"{home}/device/{kind}/{devid}",
            backend=f"{domain_path(backend_domid)}/backend/{kind}/{domid}/{devid}",
            private=f"/libxl/{domid}/device/{kind}/{devid}",
            error=f"{domain_path(backend_domid)}/error/backend/{kind}/{domid}/{devid}",
        )


def console(domid: int, port: int, gfn: int, log_limit_bytes: int) -> Iterator[Node]:
    """The first console: served by the console daemon, found through HVM parameters or start_info, no XenBus
    handshake.
    """
    paths = DevicePaths.of("console", domid, 0)
    readable: Permissions = ("n0", f"r{domid}")
    yield from _links(paths)
    yield Node(paths.frontend, permissions=readable)
    yield Node(f"{paths.frontend}/backend", paths.backend)
    yield Node(f"{paths.frontend}/backend-id", "0", (f"n{domid}", "r0"))
    for key, value in (
        ("limit", log_limit_bytes),
        ("type", "xenconsoled"),
        ("output", "pty"),
        ("tty", ""),
        ("port", port),
        ("ring-ref", gfn),
    ):
        yield Node(f"{paths.frontend}/{key}", str(value), readable)
    yield Node(paths.backend, permissions=readable)
    keys = {"frontend-id": str(domid), "online": "1", "state": "1", "protocol": "vt100"}
    yield Node(f"{paths.backend}/frontend", paths.frontend)
    yield from (
        Node(f"{folder}/{key}", value)
        for folder in (paths.backend, paths.private)
        for key, value in keys.items()
    )


def disk(
    domid: int, vdev: str, *, mode: str, backend_keys: Mapping[str, str], backend_domid: int = 0
) -> Iterator[Node]:
    """A virtual block device; `backend_keys` say what serves it: `type`, and what that needs (`params`, …)."""
    number = vdev_number(vdev)
    paths = DevicePaths.of("vbd", domid, number, backend_domid)
    own: Permissions = (f"n{domid}", f"r{backend_domid}")
    yield from _links(paths)
    yield Node(paths.frontend, permissions=own)
    yield Node(f"{paths.frontend}/backend", paths.backend)
    for key, value in (
        ("backend-id", str(backend_domid)),
        ("state", "1"),
        ("virtual-device", str(number)),
        ("device-type", "disk"),
        ("trusted", "1" if backend_domid == 0 else "0"),
        ("protocol", "x86_64-abi"),
    ):
        yield Node(f"{paths.frontend}/{key}", value, own)
    yield Node(paths.backend, permissions=(f"n{backend_domid}", f"r{domid}"))
    keys = {
        **{key: value for key, value in backend_keys.items() if key != "type"},
        "frontend-id": str(domid),
        "online": "1",
        "removable": "0",
        "bootable": "1",
        "state": "1",
        "dev": vdev,
        "type": backend_keys["type"],
        "mode": mode,
        "device-type": "disk",
        "discard-enable": "1",
        "specification": "xen",
    }
    yield Node(f"{paths.backend}/frontend", paths.frontend)
    yield from (
        Node(f"{folder}/{key}", value)
        for folder in (paths.backend, paths.private)
        for key, value in keys.items()
    )


def _links(paths: DevicePaths) -> Iterator[Node]:
    yield Node(f"{paths.private}/frontend", paths.frontend)
    yield Node(f"{paths.private}/backend", paths.backend)
