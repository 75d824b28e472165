"""Scenarios from their start to their report, on both loops: what holds, what fails, what is stopped."""

import ctypes
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from rich.console import Console

from backends.block.backend import BlockBackend
from backends.block.memory import MemoryStore
from dom0.embedding import RunningMachine, running_machine
from dom0.launch import run as run_module
from dom0.launch.run import launch_scenario
from dom0.report.model import DomainReport, RunReport
from dom0.report.render import print_report
from dom0.scenario.model import Scenario
from frontends.console.attach import attached_console
from guests.disks import opened_disk
from hypervisor.abi.xen import HYPERVISOR_xen_version
from hypervisor.hypercalls import TABLE
from kernel.kernel import Kernel
from kernel.xenbus.drivers import PeerGone

HERE = __name__


# Programs that the scenarios of this module run


async def interrupts(kernel: Kernel) -> int:
    """Presses Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    await anyio.sleep_forever()
    return 0


async def interrupts_twice(kernel: Kernel) -> int:
    """Presses Ctrl-C, and once more as soon as it is asked to shut down, which it does not do."""
    os.kill(os.getpid(), signal.SIGINT)
    with kernel.shutdown_requested.deferred():
        await kernel.shutdown_requested.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
    return 0


async def asks_the_version(kernel: Kernel) -> int:
    kernel.hypercalls.xen_version()
    return 0


async def touches_nothing(kernel: Kernel) -> int:
    """Reads where no memory is, as a broken extension module would."""
    ctypes.string_at(0)
    return 0


async def leaks(kernel: Kernel) -> int:
    kernel.grants.grant(0, kernel.pages.allocate().pfn)
    return 0


async def reads_and_lies(kernel: Kernel) -> int:
    """Works with its disk; what it then says of its driver's work makes no sense."""
    async with opened_disk(kernel, "xvda") as disk:
        await disk.read(0, 8)
    for name in list(kernel.reports):
        kernel.reports[name] = lambda: '{"p50_us": NaN, "ring_size": -5}'
    return 0


class LethalStore(MemoryStore):
    """Its third read ends the domain that it runs in, domain 1 of the machine that was started last."""

    reads = 0
    machine: ClassVar[RunningMachine]

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.reads += 1
        if self.reads == 3:
            self.machine.core.domain(1).crash()
        super().read(offset, buffers)


async def survives(kernel: Kernel) -> int:
    """Reads from a disk until that is gone, says why, and goes on with another one."""
    async with attached_console(kernel) as console, opened_disk(kernel, "xvdb") as other:
        async with opened_disk(kernel, "xvda") as disk:
            try:
                while True:
                    await disk.read(0, 8)
            except PeerGone as gone:
                console.write(f"{gone}\n")
        await other.read(0, 8)
    return 0


async def prints_escapes(kernel: Kernel) -> int:
    async with attached_console(kernel) as console:
        console.write("\x1b[2J\x1b]0;mine\x07cleared\n")
        await console.drain()
        await anyio.sleep(0.3)  # until the live table has been drawn
    return 0


class Result:
    """A run: its report, what was printed, and where it ran."""

    def __init__(self, report: RunReport, printed: str, folder: Path) -> None:
        self.report = report
        self.printed = printed
        self.folder = folder

    def domain(self, name: str) -> DomainReport:
        return next(domain for domain in self.report.domains if domain.name == name)

    def failed(self) -> list[str]:
        return [result.subject for result in self.report.expectations if not result.held]

    def endings(self) -> list[str]:
        """Names of guests in the order in which they ended."""
        lines = [line.split() for line in self.printed.splitlines()]
        return [words[1] for words in lines if words[2:4] == ["has", "ended:"]]


HERE_ALONE = {"interrupts": "coroutine", "interrupts_twice": "coroutine"}
"""programs that mean to signal the hypervisor's process"""


def guest(name: str, program: str, **more: Any) -> dict[str, Any]:
    if program in HERE_ALONE:
        more["isolation"] = HERE_ALONE[program]
    return {"name": name, "program": f"{HERE}:{program}" if program in globals() else program, **more}


def render(result: Result) -> str:
    output = StringIO()
    print_report(result.report, Console(file=output, width=160))
    return output.getvalue()


class Launcher:
    """Runs scenarios in a folder on one loop; guests that say nothing of it have one isolation."""

    def __init__(self, folder: Path, loop: str, isolation: str) -> None:
        self.folder = folder
        self.loop = loop
        self.isolation = isolation

    def __call__(self, *guests: dict[str, Any], terminal: bool = False, **more: Any) -> Result:
        isolated = [{"isolation": self.isolation, **guest} for guest in guests]
        scenario = Scenario.model_validate(
            {"name": "test", "loop": self.loop, "output": "out", "guests": isolated, **more}
        )
        output = StringIO()
        console = Console(file=output, force_terminal=terminal, width=120, height=20)
        report = launch_scenario(scenario, self.folder, console)
        return Result(report, output.getvalue(), self.folder / "out")


@pytest.fixture(params=["asyncio", "trio"])
def launch(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> Launcher:
    @asynccontextmanager
    async def remembered(*args: Any, **kwargs: Any) -> AsyncIterator[RunningMachine]:
        async with running_machine(*args, **kwargs) as machine:
            LethalStore.machine = machine
            yield machine

    monkeypatch.setattr(run_module, "running_machine", remembered)
    return Launcher(tmp_path, request.param, isolation)


MEMORY_DISK = {"vdev": "xvda", "backend": "memory", "config": {"size": "64KiB"}}

# Runs that end by themselves


def test_a_run_in_which_all_holds(launch: Launcher) -> None:
    result = launch(
        guest("first", "hello", expect={"console": "^Hello from first, domain 1$"}),
        guest(
            "second",
            "block-exerciser",
            args={"requests": 50, "depth": 4},
            start_after="first",
            disks=[MEMORY_DISK],
            expect={"counters": {"devices.xvda.requests.write": {"min": 16}, "grants.leaked": {"max": 0}}},
        ),
    )
    report = result.report
    assert report.ok, result.printed
    assert (report.scenario, report.loop, report.problems, report.faults) == ("test", launch.loop, [], [])
    assert [domain.name for domain in report.domains] == ["Domain-0", "first", "second"]
    assert [domain.outcome for domain in report.domains] == ["running", "poweroff", "poweroff"]
    assert Path(result.domain("first").console_log).read_text() == "Hello from first, domain 1\n"
    assert result.domain("Domain-0").grants.mapped > 0
    (disk,) = result.domain("second").devices
    assert (disk.name, disk.kind, disk.backend, disk.errors) == ("xvda", "vbd", "memory", 0)
    assert disk.frontend.size == disk.backend_ring.size > 0
    assert disk.latency.samples > 0
    assert result.endings() == ["first", "second"]
    assert f"dom0 is up: XenStore, consoles and block backends on {launch.loop}" in result.printed


def test_the_report_as_json_is_the_report(launch: Launcher) -> None:
    report = launch(guest("a", "block-exerciser", args={"requests": 5}, disks=[MEMORY_DISK])).report
    assert RunReport.model_validate_json(report.model_dump_json()) == report


def test_everything_that_does_not_hold_is_named(launch: Launcher) -> None:
    launch.folder.joinpath("out").mkdir()
    launch.folder.joinpath("out", "a.img").write_bytes(b"a")
    result = launch(
        guest(
            "wrong",
            "hello",
            expect={
                "exit_code": 3,
                "shutdown": "reboot",
                "console": ["^Hello", "^Goodbye"],
                "counters": {"upcalls": {"max": 0}, "hypercalls.grant_table_op": {"max": 0}},
            },
        ),
        guest("right", "hello"),
        images=[{"path": "a.img", "sha256": "0" * 64}, {"path": "a.img", "same_as": "a.img"}],
    )
    assert not result.report.ok
    assert result.failed() == [
        "wrong: shutdown",
        "wrong: exit code",
        "wrong: console",
        "wrong: upcalls",
        "image a.img",
    ]
    assert [result.held for result in result.report.expectations].count(True) == 5
    assert result.report.problems == []


def test_an_expected_failure_is_no_failure(launch: Launcher) -> None:
    expect = {"shutdown": "crash", "exit_code": None}
    assert launch(guest("a", "tests.dom0.programs:crash", expect=expect)).report.ok


def test_a_crash_harms_nobody_and_its_traceback_is_in_the_report(launch: Launcher) -> None:
    result = launch(
        guest("bad", "tests.dom0.programs:crash"),
        guest("neighbour", "block-exerciser", args={"requests": 200}, disks=[MEMORY_DISK]),
        guest("after", "hello", start_after="bad"),
    )
    assert not result.report.ok
    assert result.failed() == ["bad: shutdown", "bad: exit code"]
    assert "RuntimeError: on purpose" in result.domain("bad").crash
    assert result.domain("bad").outcome == "crash"
    assert result.domain("neighbour").outcome == result.domain("after").outcome == "poweroff"
    assert "(XEN) d1: RuntimeError: on purpose" in result.printed


def test_leaks_are_counted_and_named(launch: Launcher) -> None:
    expect = {"counters": {"grants.leaked": {"max": 0}}}
    result = launch(guest("leaky", "leaks", expect=expect))
    assert result.failed() == ["leaky: grants.leaked"]
    assert result.domain("leaky").grants.leaked == 1
    assert "by program, never ended" in result.domain("leaky").grants.leaks[0]


def test_a_guest_that_does_not_fit_is_a_problem_of_its_own(launch: Launcher) -> None:
    result = launch(
        guest("first", "idle", args={"seconds": 0.2}, memory="48MiB"),
        guest("second", "hello", memory="48MiB"),
        guest("third", "hello", memory="4MiB"),
        machine={"memory": "96MiB", "dom0_memory": "16MiB"},
    )
    assert not result.report.ok
    assert [domain.name for domain in result.report.domains] == ["Domain-0", "first", "third"]
    assert result.failed() == []
    built, ended = result.report.problems
    assert built.startswith("second: domain second could not be built: give it 12288 pages")
    assert ended == "second did not run to its end"


def test_what_a_guest_says_of_its_drivers_is_not_believed(launch: Launcher) -> None:
    result = launch(guest("liar", "reads_and_lies", disks=[MEMORY_DISK]))
    assert result.report.ok
    (disk,) = result.domain("liar").devices
    assert disk.backend_ring.size > 0
    assert (disk.frontend.size, disk.latency.p50_us) == (0, 0)


# Driver domains


def served(vdev: str = "xvda", *, by: str = "disks", backend: str = "memory") -> dict[str, Any]:
    return {"vdev": vdev, "backend": backend, "config": {"size": "64KiB"}, "backend_domain": by}


def test_a_driver_domain_runs_for_as_long_as_somebody_needs_it(launch: Launcher) -> None:
    """Wherever it stands in the file: it is there before those that it serves, and goes after them."""
    result = launch(
        guest("one", "block-exerciser", args={"requests": 50, "depth": 4}, disks=[served()]),
        guest("two", "hello", start_after="one", disks=[served(), {**MEMORY_DISK, "vdev": "xvdb"}]),
        guest(
            "disks",
            "driver-domain",
            expect={
                "console": ["^serves xvda of domain 2: memory, 64 KiB", "^served xvda of domain 2: "],
                "counters": {"served.one-xvda.requests.write": {"min": 16}, "grants.leaked": {"max": 0}},
            },
        ),
        guest("late", "hello", start_after="disks"),
    )
    assert result.report.ok, result.printed
    assert result.endings() == ["one", "two", "disks", "late"]
    assert "disks starts as domain 1: driver-domain" in result.printed
    (disk,) = result.domain("one").devices
    assert (disk.name, disk.backend, disk.backend_domain, disk.lost) == ("xvda", "memory", "disks", 0)
    assert disk.requests["write"] >= 16
    assert disk.bytes_written >= 65536
    assert disk.backend_ring.size == disk.frontend.size > 0
    assert disk.latency.p99_us > 0
    first, second = result.domain("disks").served
    assert (first.name, first.requests, first.bytes_written) == (
        "one-xvda",
        disk.requests,
        disk.bytes_written,
    )
    assert second.name == "two-xvda"
    assert {device.name: device.backend_domain for device in result.domain("two").devices} == {
        "xvda": "disks",
        "xvdb": "",
    }
    assert result.domain("Domain-0").served == []


def test_a_driver_domain_that_crashes_is_reported_where_it_hurts(launch: Launcher) -> None:
    result = launch(
        guest(
            "disks", "driver-domain", isolation="coroutine", expect={"shutdown": "crash", "exit_code": None}
        ),
        guest(
            "survivor",
            "survives",
            disks=[served(backend=f"{HERE}:LethalStore"), {**MEMORY_DISK, "vdev": "xvdb"}],
            expect={
                "console": r"^device/vbd/51712: the peer is gone \(backend domain 1 ",
                "counters": {"devices.xvda.lost": {"min": 1}, "grants.leaked": {"max": 0}},
            },
        ),
    )
    assert result.report.ok, result.printed
    assert "survivor loses xvda: disks, which served it, is gone" in result.printed
    assert "survivor xvda was lost: disks" in render(result)
    lost = result.domain("survivor").devices[-1]
    assert (lost.name, lost.backend_domain, lost.lost) == ("xvda", "disks", 1)
    assert lost.requests["read"] >= 3  # as the guest says: nobody else is left to
    assert [device.lost for device in result.domain("disks").served] == [1]


def test_images_of_a_driver_domain_that_is_a_process(launch: Launcher) -> None:
    """What has a size is made for it, as it may make none; what has none is refused, and nobody gets its folder."""
    disk = {"vdev": "xvda", "backend_domain": "disks", "config": {"path": "new.img", "size": "64KiB"}}
    client = guest("client", "block-exerciser", args={"requests": 20}, disks=[disk])
    result = launch(guest("disks", "driver-domain", isolation="process"), client)
    assert result.report.ok, result.printed
    assert (result.folder / "new.img").stat().st_size == 65536
    (result.folder / "new.img").unlink()
    del disk["config"]["size"]  # type: ignore[attr-defined]
    result = launch(guest("disks", "driver-domain", isolation="process"), client)
    assert not result.report.ok
    assert "new.img is not there" in result.printed
    assert not (result.folder / "new.img").exists()


def test_guests_that_are_processes_run_and_crash_by_themselves(launch: Launcher) -> None:
    launch.folder.joinpath("out").mkdir()
    disk = {"vdev": "xvda", "backend_domain": "disks", "config": {"path": "a.img", "size": "64KiB"}}
    result = launch(
        guest("disks", "driver-domain", isolation="process"),
        guest("worker", "block-exerciser", args={"requests": 50}, disks=[disk], isolation="process"),
        guest(
            "neighbour",
            "block-exerciser",
            args={"requests": 50},
            disks=[MEMORY_DISK],
            isolation="coroutine",
        ),
        guest(
            "broken",
            "touches_nothing",
            isolation="process",
            expect={"shutdown": "crash", "exit_code": None},
        ),
    )
    assert result.report.ok, result.printed
    assert {domain.name: domain.isolation for domain in result.report.domains} == {
        "Domain-0": "coroutine",
        "disks": "process",
        "worker": "process",
        "neighbour": "coroutine",
        "broken": "process",
    }
    assert "its process has ended: killed by SIGSEGV" in result.domain("broken").crash
    assert "touches_nothing" in result.domain("broken").crash
    (served,) = result.domain("disks").served
    assert served.bytes_written >= 65536
    assert Path(launch.folder, "out", "a.img").stat().st_size == 65536


def test_a_guest_that_expects_its_disk_to_last_fails_the_run(launch: Launcher) -> None:
    result = launch(
        guest("disks", "driver-domain", isolation="coroutine"),
        guest(
            "survivor",
            "survives",
            disks=[served(backend=f"{HERE}:LethalStore"), {**MEMORY_DISK, "vdev": "xvdb"}],
            expect={"counters": {"devices.xvda.lost": {"max": 0}}},
        ),
        guest("late", "hello", start_after="survivor", disks=[served()]),
    )
    assert not result.report.ok
    assert result.failed() == ["disks: shutdown", "disks: exit code", "survivor: devices.xvda.lost"]
    assert result.report.problems[0].startswith("late: no domain disks runs that could serve a disk")


def test_an_interrupt_ends_a_driver_domain_after_those_that_it_serves(launch: Launcher) -> None:
    result = launch(
        guest("one", "idle", disks=[served()]),
        guest("disks", "driver-domain"),
        guest("two", "interrupts", disks=[served()], expect={"exit_code": None}),
    )
    assert result.endings() == ["two", "one", "disks"]
    assert [result.domain(name).outcome for name in ("one", "two", "disks")] == ["poweroff"] * 3
    assert not result.report.ok


# Runs that are stopped


def test_a_run_that_takes_too_long_is_stopped_and_reported(launch: Launcher) -> None:
    limit = 0.3 if launch.isolation == "coroutine" else 3.0
    result = launch(
        guest("forever", "tests.dom0.programs:deaf"),
        guest("never", "hello", start_after="forever"),
        guest("done", "hello"),
        timeout=limit,
        images=[{"path": "a", "same_as": "b"}],
    )
    assert not result.report.ok
    assert result.report.problems == [
        f"the scenario was stopped after its {limit:g} s",
        "never did not run to its end",
    ]
    assert result.domain("forever").outcome == "destroyed"
    assert result.domain("done").outcome == "poweroff"
    assert "image a" not in [result.subject for result in result.report.expectations]


def test_an_interrupt_shuts_the_guests_down_the_youngest_first(launch: Launcher) -> None:
    sleepers = [
        guest(name, "tests.dom0.programs:sleep", expect={"exit_code": None})
        for name in ("one", "two", "three")
    ]
    result = launch(*sleepers, guest("four", "interrupts"), guest("five", "hello", start_after="four"))
    assert not result.report.ok
    assert result.endings() == ["four", "three", "two", "one"]
    assert result.report.problems == [
        "the scenario was interrupted; its guests are asked to shut down (again: destroyed)",
        "five did not run to its end",
    ]
    assert [domain.outcome for domain in result.report.domains[1:]] == ["poweroff"] * 4


def test_guests_that_are_being_built_when_the_interrupt_comes_are_ended_too(launch: Launcher) -> None:
    deaf = [guest(f"deaf{i}", "tests.dom0.programs:deaf") for i in range(4)]
    result = launch(guest("first", "interrupts"), *deaf, timeout=60)
    assert len(result.report.problems) == 1 + len(deaf) - len(result.report.domains[2:])
    assert {domain.outcome for domain in result.report.domains[2:]} <= {"destroyed"}
    assert result.report.seconds < 50


def test_a_second_interrupt_destroys_them(launch: Launcher) -> None:
    result = launch(guest("deaf", "tests.dom0.programs:deaf"), guest("last", "interrupts_twice"))
    assert not result.report.ok
    assert "destroying what still runs" in result.printed
    assert [domain.outcome for domain in result.report.domains[1:]] == ["destroyed", "destroyed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_dom0_that_breaks_is_a_problem_and_no_hang(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: BlockBackend) -> None:
        await anyio.sleep(0.05)
        raise ZeroDivisionError("in the backend")

    monkeypatch.setattr(BlockBackend, "run", broken)
    result = launch(guest("a", "tests.dom0.programs:sleep"))
    assert not result.report.ok
    assert any("dom0 ended with crash" in problem for problem in result.report.problems)
    assert any("ZeroDivisionError: in the backend" in problem for problem in result.report.problems)
    assert "a did not run to its end" in result.report.problems


def test_a_dom0_that_does_not_come_up_is_a_problem(launch: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: BlockBackend, kernel: Kernel) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(BlockBackend, "__init__", broken)
    result = launch(guest("a", "hello"))
    assert not result.report.ok
    assert "dom0 ended with crash" in result.report.problems[0]
    assert result.report.domains == []


def test_a_fault_of_the_core_is_contained_and_reported(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> int:
        raise ZeroDivisionError("in the core")

    monkeypatch.setattr(TABLE[HYPERVISOR_xen_version], "handler", broken)
    crash = {"shutdown": "crash", "exit_code": None}
    result = launch(guest("a", "asks_the_version", expect=crash), guest("b", "hello"))
    assert not result.report.ok
    assert result.failed() == []
    (fault,) = result.report.faults
    assert fault.startswith("domain 1: xen_version\n")
    assert "ZeroDivisionError: in the core" in fault
    assert result.domain("a").outcome == "crash"
    assert result.domain("b").exit_code == 0


# What is shown


def test_a_terminal_shows_a_table_while_it_runs(launch: Launcher) -> None:
    result = launch(guest("printer", "prints_escapes"), terminal=True)
    assert result.report.ok
    assert "0 Domain-0" in result.printed
    assert "1 printer" in result.printed
    assert "hypercalls" in result.printed
    assert "cleared" in result.printed
    assert "\x1b[2J" not in result.printed
    assert "\x1b]0;" not in result.printed


def test_many_guests_fit_the_terminal(launch: Launcher) -> None:
    guests = [guest(f"g{i}", "idle", args={"seconds": 0.4}, memory="4MiB") for i in range(25)]
    result = launch(*guests, terminal=True)
    assert result.report.ok
    assert "and 9 more" in result.printed


def test_plain_lines_hold_no_escapes(launch: Launcher) -> None:
    result = launch(guest("printer", "prints_escapes"))
    assert "\x1b" not in result.printed
