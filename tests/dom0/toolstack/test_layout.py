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


def test_a_native_domain_without_devices_looks_as_recorded() -> None:
    ours = applied(skeleton(3, "u2", UUID, "pv"), recorded("xenstore-dom0-idle.txt"))
    told = StoreDescription(
        3,
        "u2",
        UUID,
        "/guest/vmlinux",
        "console=hvc0 loglevel=7 panic=-1",
        262144,
        1,
        488449,
        "T",
        ostype="linux",
        ramdisk="/guest/domu.gz",
    )
    applied(description(told), ours)
    applied(console(3, 2, 488450, 1048576), ours)
    theirs = recorded("xenstore-domU-minimal.txt")
    differing = {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}
    assert differing == {
        "/libxl/3/dm-version",  # no device model runs
        "/local/domain/3/console/tty",  # written by the console daemon where it has a terminal
        "/local/domain/3/control/feature-poweroff",  # the three that the guest's kernel writes when it runs
        "/local/domain/3/control/feature-reboot",
        "/local/domain/3/control/feature-suspend",
        "/local/domain/0/device-model",
        "/local/domain/0/memory",  # dom0's balloon, none here
        "/local/domain/0/memory/target",
        "/local/domain/0/memory/static-max",
    }


def test_each_vcpu_has_a_folder() -> None:
    told = StoreDescription(3, "u2", UUID, "k", "", 262144, 1, 2, "T", vcpus=3)
    written = [node.path for node in description(told) if "/cpu/" in node.path]
    assert written == [f"/local/domain/3/cpu/{vcpu}/availability" for vcpu in range(3)]


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
    for above in ("/local/domain/1/", "/local/domain/0/", "/libxl/1/"):
        order = [node.path for node in written if node.path.startswith(above)]
        assert order == [path for path in theirs if path in set(order)]


def test_a_disk_of_a_driver_domain_lies_there_and_is_readable_by_its_two_ends_alone() -> None:
    """Owners and readers as libxl__device_generic_add of Xen 4.17 sets them."""
    above: Tree = {"/local/domain/7": ("", "n0,r7"), "/local/domain/1": ("", "n0,r1"), "/libxl/1": ("", "n0")}
    keys = {"params": "/images/a", "type": "file"}
    ours = applied(disk(1, "xvda", mode="w", backend_keys=keys, backend_domid=7), above | _roots())
    front, back = "/local/domain/1/device/vbd/51712", "/local/domain/7/backend/vbd/1/51712"
    assert ours[f"{front}/backend"] == (back, "n1,r7")
    assert ours[f"{front}/backend-id"] == ("7", "n1,r7")
    assert ours[f"{front}/trusted"] == ("0", "n1,r7")  # its frontend shows it no more than it has to
    assert ours[f"{back}/frontend"] == (front, "n7,r1")
    assert ours[f"{back}/params"] == ("/images/a", "n7,r1")
    for path, (_, permissions) in ours.items():
        if path.startswith(front):
            assert permissions == "n1,r7", path
        elif path.startswith(back):
            assert permissions == "n7,r1", path
        elif path.startswith("/local/domain/7/"):
            assert permissions == "n0,r7", path  # it can add no device of its own
        elif path.startswith("/libxl/1/"):
            assert permissions == "n0", path
    assert not [path for path in ours if path.startswith("/local/domain/0")]


def _roots() -> Tree:
    return dict.fromkeys(("/local", "/local/domain", "/libxl"), ("", "n0"))
