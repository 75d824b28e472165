"""An engine that is missing, or another than the one that we know, is refused in words that help."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from types import SimpleNamespace

import pytest

from hypervisor.vcpu.native import library as module
from hypervisor.vcpu.native import replaced, written_code
from hypervisor.vcpu.native.library import EngineFailed, EngineUnavailable, library
from hypervisor.vcpu.native.machine_code import address
from tests.hypervisor.vcpu.native.guest_rig import SYSCALL, Rig


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(EngineUnavailable, match=r"unicorn 2\.1\.4 .*it is not installed"):
        module.library.__wrapped__()


def test_a_package_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: "2.2.0")
    with pytest.raises(EngineUnavailable, match=r"2\.2\.0 is installed, whose insides are not known"):
        module.library.__wrapped__()


def test_a_package_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(origin="/nowhere/unicorn/__init__.py")
    monkeypatch.setattr(module, "find_spec", lambda _name: spec)
    with pytest.raises(EngineUnavailable, match=r"libunicorn\.so\.2 is missing"):
        module.library.__wrapped__()


def test_a_library_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("unicorn")
    monkeypatch.setattr(written_code, "is_known", lambda _start, _code: False)
    monkeypatch.setattr(written_code, "_replaced", [])
    with pytest.raises(EngineUnavailable, match="of a build that is not known"):
        written_code.watch(library(), 0)
    with pytest.raises(EngineFailed, match=r"uc_open: .* \(error 2\)"):
        library().check("uc_open", 2)


def test_known_code_is_compared_octet_by_octet() -> None:
    start = address(library().held.uc_version)
    assert replaced.is_known(start, b"")
    assert not replaced.is_known(start, b"\x0f\x0b\x0f\x0b")


def test_a_guest_goes_on_when_all_translations_are_dropped() -> None:
    """As when their buffer is full."""
    rig = Rig()
    code = b"\xeb\x00" * 20 + SYSCALL
    rig.run(code)
    for _ in range(3):
        library().held.tb_flush_x86_64(rig.engine.opened.cpu)
        (event,) = rig.run(code)
        assert event[0] == "syscall"
