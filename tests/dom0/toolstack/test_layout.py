"""The store's layout against recordings of a real Xen 4.17 (tests/data/xenstore-*.txt)."""

from collections.abc import Iterable

from dom0.toolstack.layout import Node, StoreDescription, console, description, disk, skeleton
from tests.dom0.stores import Tree, recorded

UUID = "11111111-2222-3333-4444-555555555556"


def applied(nodes: Iterable[Node], tree: Tree) -> Tree:
    """Writes `nodes` into `tree` as the daemon does: missing parents appear, permissions are inherited."""
    for node in nodes:
        parts = node.path.split("/")[1:]
        for depth in range(1, len(parts) + 1):
            path = "/" + "/".join(parts[:depth])
            parent = tree["/" + "/".join(parts[: depth - 1])] if depth > 1 else ("", "n0")
            tree.setdefault(path, ("", parent[1]))
        permissions = ",".join(node.permissions) if node.permissions else tree[node.path][1]
        tree[node.path] = (node.value, permissions)
    return tree


def test_a_domain_without_devices_looks_as_recorded() -> None:
    ours = applied(skeleton(3, "u2", UUID), recorded("xenstore-dom0-idle.txt"))
    told = StoreDescription(
        3, "u2", UUID, "/guest/vmlinux", "console=hvc0 loglevel=7 panic=-1", 262144, 1, 488449, "T"
    )
    applied(description(told), ours)
    applied(console(3, 2, 488450, 1048576), ours)
    theirs = recorded("xenstore-domU-minimal.txt")
    differing = {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}
    assert differing == {
        "/libxl/3/type",  # pvh: our kernels are auto-translated
        "/libxl/3/dm-version",  # no device model runs
        f"/vm/{UUID}/image/ostype",
        f"/vm/{UUID}/image/ramdisk",  # a Python kernel has none
        "/local/domain/3/console/tty",  # written by the console daemon where it has a terminal
        "/local/domain/3/control/feature-poweroff",  # the three that the guest's kernel writes when it runs
        "/local/domain/3/control/feature-reboot",
        "/local/domain/3/control/feature-suspend",
        "/local/domain/0/device-model",
        "/local/domain/0/memory",  # dom0's balloon, none here
        "/local/domain/0/memory/target",
        "/local/domain/0/memory/static-max",
    }


def test_the_folders_of_a_disk_have_the_recorded_keys_in_the_recorded_order() -> None:
    theirs = recorded("xenstore-domU-2disks.txt")
    keys = {"params": "/dev/loop1", "script": "/etc/xen/scripts/block", "type": "phy"}
    written = list(disk(1, "xvdb", mode="w", backend_keys=keys))
    ours = applied(
        written,
        {"/local/domain/0": ("", "n0"), "/local/domain/1": ("", "n0,r1"), "/libxl/1": ("", "n0")} | _roots(),
    )
    for node in written:
        value, permissions = theirs[node.path]
        assert ours[node.path][1] == permissions, node.path
        if not node.path.endswith("/state"):
            assert ours[node.path][0] == value, node.path
    order = [node.path for node in written if node.path.startswith("/local/domain/1/")]
    assert order == [path for path in theirs if path in set(order)]


def _roots() -> Tree:
    return dict.fromkeys(("/local", "/local/domain", "/libxl"), ("", "n0"))
