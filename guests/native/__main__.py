"""`python -m guests.native [FOLDER]`: fetches the kernels and builds what they boot with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from guests.native import FLAVOURS, FOLDER, GRUB, initramfs_file, kernel_file
from guests.native.initramfs import initramfs
from guests.native.modules import BadModule, NoModule, is_module, module_name
from guests.native.packages import PackageError, Packages, files_of

_GRUB_PATH = f"usr/lib/grub-xen/{GRUB}"
_BUSYBOX_PATHS = ("bin/busybox", "usr/bin/busybox")


def make_guests(folder: Path) -> None:
    """Fills `folder`. Raises PackageError, NoModule, BadModule, OSError."""
    packages = Packages(folder / "packages", print)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / GRUB, _only_file(packages.download("grub-xen-host"), (_GRUB_PATH,)))
    busybox = _only_file(packages.download("busybox-static"), _BUSYBOX_PATHS)
    for flavour in FLAVOURS:
        meta = f"linux-image-{flavour}"
        images = [name for name in packages.dependencies(meta) if name.startswith("linux-image-")]
        if len(images) != 1:
            raise PackageError(meta, f"expected one kernel among what it depends on, found {images}")
        _linux(folder, flavour, packages.download(images[0]), busybox)


def _linux(folder: Path, flavour: str, package: Path, busybox: bytes) -> None:
    kernel: bytes | None = None
    modules: dict[str, bytes] = {}
    built_in: list[str] = []
    for path, content in files_of(package, _is_of_a_kernel):
        if path.startswith("boot/vmlinuz-"):
            kernel = content
        elif is_module(path):
            modules[module_name(path)] = content
        else:
            built_in = [module_name(line) for line in content.decode().splitlines()]
    if kernel is None:
        raise PackageError(package.name, "no kernel in it")
    _write(folder / kernel_file(flavour), kernel)
    _write(folder / initramfs_file(flavour), initramfs(busybox, modules, built_in))


def _is_of_a_kernel(path: str) -> bool:
    return path.startswith("boot/vmlinuz-") or path.endswith("/modules.builtin") or is_module(path)


def _only_file(package: Path, paths: Sequence[str]) -> bytes:
    found = dict(files_of(package, lambda path: path in paths))
    if not found:
        raise PackageError(package.name, f"no {paths[0]} in it")
    return next(iter(found.values()))


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    beside = file.with_name(f"{file.name}.new")
    beside.write_bytes(content)
    beside.replace(file)
    print(f"{file}: {len(content):,} bytes")


def main(arguments: Sequence[str]) -> int:
    """The status of the program."""
    try:
        make_guests(Path(arguments[0]) if arguments else FOLDER)
    except (PackageError, NoModule, BadModule, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
