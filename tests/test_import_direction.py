"""The house's arrows: which package may import which, read from the sources themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERYTHING = {"ringbuffers", "hypervisor", "kernel", "frontends", "backends", "guests", "dom0"}
MAY_IMPORT = {
    "ringbuffers": set(),
    "hypervisor": {"ringbuffers"},
    "kernel": {"hypervisor.abi", "ringbuffers"},
    "frontends": {"kernel", "ringbuffers", "hypervisor.abi"},
    "backends": {"kernel", "ringbuffers", "hypervisor.abi"},
    "guests": {"kernel", "frontends", "ringbuffers", "hypervisor.abi"},
    "dom0": EVERYTHING,
}


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import of `source`, nested ones included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(package: str, source: str) -> list[tuple[int, str]]:
    """The imports of `source`, a module of `package`, that the house forbids."""
    allowed = MAY_IMPORT[package] | {package}
    return [
        (line, name)
        for line, name in imported_modules(source)
        if name.split(".")[0] in EVERYTHING
        and not any(name == room or name.startswith(room + ".") for room in allowed)
    ]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_the_house_allows(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    found = [
        f"{m.relative_to(ROOT)}:{line}: {name}"
        for m in modules
        for line, name in violations(package, m.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_no_relative_import_hides_an_arrow(package: str) -> None:
    for module in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), f"{module}:{node.lineno}"


def test_the_check_sees_a_forbidden_import() -> None:
    assert violations("kernel", "def f():\n    from hypervisor.machine import Machine\n") == [
        (2, "hypervisor.machine.Machine")
    ]
    assert violations("frontends", "import backends.block") == [(1, "backends.block")]
    assert violations("kernel", "from hypervisor import abi") == []


@pytest.mark.parametrize("module", ["asyncio", "trio"])
def test_the_core_and_the_rings_know_no_event_loop(module: str) -> None:
    shells = {ROOT / "hypervisor" / "vcpu"}
    for package in ("ringbuffers", "hypervisor"):
        for path in (ROOT / package).rglob("*.py"):
            if not any(shell in path.parents for shell in shells):
                names = {name.split(".")[0] for _, name in imported_modules(path.read_text())}
                assert not names & {module, "anyio", "threading" if package == "hypervisor" else module}, path
