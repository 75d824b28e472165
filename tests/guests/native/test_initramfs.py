"""What is in an initramfs."""

import stat

from guests.native.initramfs import MODULES, initramfs
from tests.guests.native.archives import entries
from tests.guests.native.elves import module

NAMES = dict.fromkeys(name for wanted in MODULES.values() for name in wanted)


def test_it_holds_the_modules_that_are_listed_and_what_they_need() -> None:
    modules = {name: module("helper") for name in NAMES} | {"helper": module(), "other": module()}
    found = {entry.name: entry for entry in entries(initramfs(b"busybox", modules, ["ext4"]))}
    for where, wanted in MODULES.items():
        listed = found[f"etc/modules.{where}"].content.decode().split()
        assert listed[0] == "helper"
        assert listed[1:] == [name for name in wanted if name != "ext4"]
        for name in listed:
            assert found[f"lib/modules/{name}.ko"].content == modules[name]
    assert "lib/modules/other.ko" not in found
    assert "lib/modules/ext4.ko" not in found


def test_its_first_process_can_be_executed() -> None:
    found = {entry.name: entry for entry in entries(initramfs(b"busybox", {}, list(NAMES)))}
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["init"].content.startswith(b"#!/bin/sh\n")
    assert found["bin/busybox"].content == b"busybox"
    assert found["bin/sh"].content == b"busybox"
    assert found["sbin/poweroff"].mode == stat.S_IFREG | 0o755
    assert found["sbin/reboot"].content == b"poweroff"
    assert found["dev/console"].device == (5, 1)
