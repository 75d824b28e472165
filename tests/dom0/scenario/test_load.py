"""Files that are wrong in every way there is: each complaint names line, key, what was found and what was expected."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from dom0.scenario.load import load_scenario
from dom0.scenario.source import ScenarioError
from tests.dom0.images.kernels import linux

Write = Callable[[str], Path]

HEAD = "name: x\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "scenario.yaml"
        file.write_text(dedent(text).lstrip("\n"))
        return file

    return write


def complaints(file: Path) -> list[str]:
    """What is said of `file`, a line each, without its path."""
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file)
    assert all(problem.file == file and problem.line for problem in caught.value.problems)
    return [str(problem).removeprefix(str(file)) for problem in caught.value.problems]


def test_a_right_file_loads(write: Write) -> None:
    scenario = load_scenario(
        write(
            """
            name: right
            loop: trio
            machine: {memory: 256MiB, dom0_memory: 32MiB}
            guests:
              - name: one
                program: hello
                args: {times: 2}
                disks:
                  - {vdev: xvda, backend: memory, config: {size: 1MiB}}
                expect:
                  console: ^Hello
                  counters: {grants.leaked: {max: 0}, devices.xvda.requests.read: {min: 0}}
              - name: two
                program: idle
                args: {seconds: 0.5}
                start_after: one
            """
        )
    )
    assert [guest.name for guest in scenario.guests] == ["one", "two"]
    assert scenario.guests[1].start_after == ("one",)
    assert scenario.guests[0].expect.console == ("^Hello",)
    assert scenario.machine.memory == 256 << 20


def test_a_driver_domain_may_stand_anywhere(write: Write) -> None:
    """Before or after those that it serves, by whichever name its program goes, and with a disk of another one."""
    scenario = load_scenario(
        write(
            """
            name: right
            guests:
              - name: client
                program: hello
                disks: [{vdev: xvda, backend: memory, config: {size: 1MiB}, backend_domain: more}]
              - name: more
                program: dom0.driver_domain:main
                disks: [{vdev: xvda, backend: memory, config: {size: 1MiB}, backend_domain: disks}]
                expect: {counters: {served.client-xvda.requests_total: {min: 0}}}
              - name: disks
                program: driver-domain
              - name: late
                program: hello
                start_after: disks
            """
        )
    )
    assert scenario.guests[0].driver_domains == ("more",)
    assert scenario.guests[2].driver_domains == ()


NATIVE = "guests:\n  - name: a\n    kernel: image\n"


def test_a_native_guest(write: Write, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "image").write_bytes(linux())
    (tmp_path / "ramdisk").write_bytes(b"anything")
    scenario = load_scenario(
        write(
            """
            name: right
            guests:
              - name: native
                kernel: kernels/image
                ramdisk: ramdisk
                cmdline: quiet
                vcpus: 2
                disks: [{vdev: xvda, backend: memory, config: {size: 1MiB}}]
                expect: {counters: {native.traps.page_fault: {min: 1}, native.syscalls: {min: 1}}}
              - name: python
                program: hello
            """
        )
    )
    native, python = scenario.guests
    assert (native.memory, native.vcpus, native.program) == (256 << 20, 2, "")
    assert (python.memory, python.vcpus, python.kernel) == (16 << 20, 1, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (NATIVE, ":4: guests[0].kernel: found 'image'; expected a file that can be read (No such file"),
        (
            NATIVE.replace("image", "junk"),
            ":4: guests[0].kernel: found junk, at offset 0x0 magic b'junk'; expected an ELF file, one in gzip",
        ),
        (
            NATIVE + "    program: hello\n",
            ":4: guests[0].kernel: found 'image'; expected a program or a kernel",
        ),
        (
            NATIVE + "    args: {}\n",
            ":5: guests[0].args: found an empty mapping; expected this for a program only",
        ),
        (
            NATIVE + "    isolation: process\n",
            ":5: guests[0].isolation: found 'process'; expected this for a program",
        ),
        (NATIVE + "    vcpus: 33\n", ":5: guests[0].vcpus: found 33; expected at most 32"),
        (
            NATIVE + "    ramdisk: none\n",
            ":5: guests[0].ramdisk: found 'none'; expected a file that is there",
        ),
        (
            NATIVE + "    memory: 4GiB\n",
            ":5: guests[0].memory: found '4GiB'; expected at most 4026531840 bytes",
        ),
        (
            NATIVE + "    expect:\n      exit_code: 0\n",
            ":6: guests[0].expect.exit_code: found 0; expected no exit code: a native kernel has none",
        ),
        (
            NATIVE.replace("kernel: image", "program: hello") + "    cmdline: quiet\n",
            ":5: guests[0].cmdline: found 'quiet'; expected this for a kernel only",
        ),
        (
            NATIVE + "  - name: b\n    program: hello\n"
            "    disks: [{vdev: xvda, backend: memory, config: {size: 1MiB}, backend_domain: a}]\n",
            "disks[0].backend_domain: found 'a'; expected a guest whose program is driver-domain; a's is image",
        ),
    ],
)
def test_what_is_wrong_with_a_native_guest(write: Write, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    memory = "machine: {memory: 8GiB}\n"
    found = complaints(write(f"name: x\n{text}{memory}"))
    assert any(says in complaint for complaint in found), found


GUEST = "guests:\n  - name: a\n    program: hello\n"
DISK_IN = ", disks: [{vdev: xvda, backend: memory, config: {size: 1MiB}, backend_domain: "
DISK_OF = "    disks: [{vdev: xvda, backend: memory, config: {size: 1MiB}, backend_domain: "
DISKS = "  - {name: disks, program: driver-domain}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # the file as a whole
        ("- 1\n", ":1: found a list of 1; expected a mapping"),
        ("just words\n", ":1: found 'just words'; expected a mapping"),
        (GUEST, ":1: name: found nothing; expected a value for 'name'"),
        (HEAD, ":1: guests: found nothing; expected a value for 'guests'"),
        (HEAD + "guests: []\n", ":2: guests: found an empty list; expected at least 1 of them"),
        (HEAD + "guests: {a: 1}\n", ":2: guests: found a mapping; expected a list"),
        (HEAD + "guests: [1]\n", ":2: guests[0]: found 1; expected a mapping"),
        (
            HEAD + GUEST + "guest: []\n",
            ":5: guest: found the unknown key 'guest'; expected 'guests', perhaps",
        ),
        (
            HEAD + GUEST + "zzzzzz: []\n",
            "found the unknown key 'zzzzzz'; expected one of description, guests",
        ),
        (HEAD + GUEST + "loop: uvloop\n", ":5: loop: found 'uvloop'; expected 'asyncio' or 'trio'"),
        (HEAD + GUEST + "timeout: 0\n", ":5: timeout: found 0; expected more than 0"),
        (HEAD + GUEST + "timeout: soon\n", ":5: timeout: found 'soon'; expected a number"),
        ("name: [x]\n" + GUEST, ":1: name: found a list of 1; expected text"),
        # the machine
        (
            HEAD + GUEST + "machine:\n  memory: 2MiB\n",
            ":6: machine.memory: found '2MiB'; expected at least 4MiB",
        ),
        (HEAD + GUEST + "machine:\n  memory: 8193KiB\n", "expected at least 4MiB, in whole pages of 4KiB"),
        (HEAD + GUEST + "machine:\n  memory: lots\n", "found 'lots'; expected a size such as 16MiB"),
        (
            HEAD + GUEST + "machine:\n  memory: 8 parrots\n",
            "found '8 parrots'; expected a size with a unit such as KiB, MiB or GiB",
        ),
        (
            HEAD + GUEST + "machine: {memory: 32MiB}\n",
            ":5: machine.memory: found '32MiB'; expected more memory than dom0's (32.0MiB against 64.0MiB)",
        ),
        (
            HEAD + GUEST + "machine: {dom0_memory: 2GiB}\n",
            ":5: machine.dom0_memory: found '2GiB'; expected more memory than dom0's (1.0GiB against 2.0GiB)",
        ),
        (
            HEAD + GUEST + "    memory: 1GiB\n",
            ":5: guests[0].memory: found '1GiB'; expected at most 960.0MiB, which is what the machine has",
        ),
        (
            HEAD + GUEST + "    memory: 4GiB\nmachine: {memory: 16GiB}\n",
            ":5: guests[0].memory: found '4GiB'; expected at most 4278157312 bytes",
        ),
        # guests
        (
            HEAD + "guests:\n  - name: a b\n    program: hello\n",
            ":3: guests[0].name: found 'a b'; expected text that",
        ),
        (
            HEAD + "guests:\n  - name: a\n",
            ":3: guests[0].program: found nothing; expected a program, or a kernel instead of it",
        ),
        (
            HEAD + GUEST + "    weight: 512\n",
            ":5: guests[0].weight: found 512; expected this for a kernel only",
        ),
        (
            HEAD + GUEST + "    cap: 50\n",
            ":5: guests[0].cap: found 50; expected this for a kernel only",
        ),
        (
            HEAD + "guests:\n  - name: a\n    kernel: vmlinuz\n    weight: 0\n",
            ":5: guests[0].weight: found 0; expected at least 1",
        ),
        (
            HEAD + "guests:\n  - name: a\n    kernel: vmlinuz\n    cap: 65535\n",
            ":5: guests[0].cap: found 65535; expected at most 65534",
        ),
        (
            HEAD + GUEST + "machine: {pcpus: 0}\n",
            ":5: machine.pcpus: found 0; expected at least 1",
        ),
        (
            HEAD + GUEST + "    memroy: 1\n",
            ":5: guests[0].memroy: found the unknown key 'memroy'; expected 'memory'",
        ),
        (
            HEAD + GUEST + "  - name: a\n    program: hello\n",
            ":5: guests[1].name: found 'a'; expected a name that no other guest has",
        ),
        (
            HEAD + GUEST + "    start_after: b\n",
            ":5: guests[0].start_after[0]: found 'b'; expected a guest of this scenario: a",
        ),
        (
            HEAD + GUEST + "  - name: painter\n    program: hello\n    start_after: [a, paintr]\n",
            ":7: guests[1].start_after[1]: found 'paintr'; expected 'painter', perhaps",
        ),
        (
            HEAD + GUEST + "    start_after: a\n",
            ":5: guests[0].start_after: found 'a'; expected an order, not a circle (a after a)",
        ),
        (
            HEAD + GUEST + "    start_after: b\n  - {name: b, program: hello, start_after: [a]}\n",
            ":5: guests[0].start_after: found 'b'; expected an order, not a circle (a after b after a)",
        ),
        # driver domains
        (
            HEAD + GUEST + DISK_OF + "disk}]\n" + DISKS,
            ":5: guests[0].disks[0].backend_domain: found 'disk'; expected 'disks', perhaps",
        ),
        (
            HEAD + GUEST + DISK_OF + "b}]\n  - {name: b, program: hello}\n",
            ":5: guests[0].disks[0].backend_domain: found 'b'; "
            "expected a guest whose program is driver-domain; b's is hello",
        ),
        (
            HEAD + GUEST + DISK_OF + "a}]\n",
            ":5: guests[0].disks[0].backend_domain: found 'a'; expected an order, not a circle (a after a)",
        ),
        (
            HEAD + GUEST + "    start_after: disks\n" + DISK_OF + "disks}]\n" + DISKS,
            ":5: guests[0].start_after: found 'disks'; "
            "expected an order, not a circle (a after disks after a)",
        ),
        (
            HEAD
            + GUEST
            + DISK_OF
            + "disks}]\n"
            + DISKS.replace("}", DISK_IN + "more}]}")
            + DISKS.replace("disks", "more").replace("}", DISK_IN + "disks}]}"),
            ":6: guests[1].disks[0].backend_domain: found 'more'; "
            "expected an order, not a circle (disks after more after disks)",
        ),
        (
            HEAD + GUEST + DISKS,
            ":5: guests[1].program: found 'driver-domain'; "
            "expected a guest with a disk whose backend_domain is disks: without one it never ends",
        ),
        (
            HEAD
            + GUEST
            + DISK_OF
            + "disks}]\n"
            + DISKS.replace("}", ", expect: {counters: {served.a-xvdb.errors: {max: 0}}}}"),
            ":6: guests[1].expect.counters.served.a-xvdb.errors: found the counter 'served.a-xvdb.errors'; "
            "expected served.a-xvda, perhaps",
        ),
        # programs and their arguments
        (
            HEAD + "guests:\n  - name: a\n    program: helo\n",
            ":4: guests[0].program: found 'helo'; expected a ready-made guest (hello, perhaps) or module:function",
        ),
        (HEAD + GUEST + "    args: [1]\n", ":5: guests[0].args: found a list of 1; expected a mapping"),
        (
            HEAD + GUEST + "    args: {greting: x}\n",
            ":5: guests[0].args.greting: found the unknown key 'greting'; expected 'greeting', perhaps",
        ),
        (
            HEAD + GUEST + "    args:\n      times: 0\n",
            ":6: guests[0].args.times: found 0; expected at least 1",
        ),
        (
            HEAD + GUEST + "    args: {times: 1.5}\n",
            "guests[0].args.times: found 1.5; expected a whole number",
        ),
        (
            HEAD + "guests:\n  - {name: a, program: 'tests.dom0.test_programs:plain', args: {x: 1}}\n",
            "args.x: found the unknown key 'x'; expected no keys here",
        ),
        # disks
        (
            HEAD + GUEST + "    disks:\n      - {vdev: sda}\n",
            ":6: guests[0].disks[0].vdev: found 'sda'; expected a disk's name such as xvda, xvdb1 or d5p2",
        ),
        (
            HEAD + GUEST + "    disks: [{}]\n",
            "guests[0].disks[0].vdev: found nothing; expected a value for 'vdev'",
        ),
        (HEAD + GUEST + "    disks: [{vdev: xvda, mode: rw}]\n", "found 'rw'; expected 'w' or 'r'"),
        (
            HEAD + GUEST + "    disks:\n      - vdev: xvda\n        backend: fiel\n",
            ":7: guests[0].disks[0].backend: found 'fiel'; expected one of file, memory, or module:Class",
        ),
        (
            HEAD + GUEST + "    disks: [{vdev: xvda, backend: 'nowhere_at_all:Store'}]\n",
            "found 'nowhere_at_all:Store'; expected a module that can be imported",
        ),
        (
            HEAD + GUEST + "    disks: [{vdev: xvda, backend: 'pathlib:Path'}]\n",
            "found 'pathlib:Path'; expected a subclass of backends.contract.BlockStore",
        ),
        (
            HEAD + GUEST + "    disks:\n      - vdev: xvda\n        config: {path: x, siez: 1MiB}\n",
            ":7: guests[0].disks[0].config.siez: found the unknown key 'siez'; expected 'size', perhaps",
        ),
        (
            HEAD
            + GUEST
            + "    disks:\n      - vdev: xvda\n        config:\n          path: x\n          size: big\n",
            ":9: guests[0].disks[0].config.size: found 'big'; expected a size such as 16MiB",
        ),
        (
            HEAD + GUEST + "    disks:\n      - {vdev: xvda, config: {path: x}}\n      - vdev: d0\n",
            ":7: guests[0].disks[1].vdev: found 'd0'; expected another disk than xvda, which is there already",
        ),
        # expectations
        (
            HEAD + GUEST + "    expect: {shutdown: halt}\n",
            "found 'halt'; expected 'poweroff', 'reboot', 'suspend', 'crash' or 'watchdog'",
        ),
        (
            HEAD + GUEST + "    expect:\n      console: '('\n",
            ":6: guests[0].expect.console[0]: found '('; expected a regular expression (missing ), unterminated",
        ),
        (
            HEAD + GUEST + "    expect: {console: [1]}\n",
            "guests[0].expect.console[0]: found 1; expected text",
        ),
        (HEAD + GUEST + "    expect: {exit_code: none}\n", "found 'none'; expected a whole number"),
        (
            HEAD + GUEST + "    expect: {counters: {grants.leaked: {}}}\n",
            "guests[0].expect.counters.grants.leaked: found an empty mapping; expected min, max or both",
        ),
        (
            HEAD + GUEST + "    expect: {counters: {grants.leaked: {min: 2, max: 1}}}\n",
            "counters.grants.leaked.min: found 2; expected at most max, which is 1",
        ),
        (
            HEAD + GUEST + "    expect: {counters: {grants.leaked: {maxx: 1}}}\n",
            "counters.grants.leaked.maxx: found the unknown key 'maxx'; expected 'max', perhaps",
        ),
        (
            HEAD + GUEST + "    expect:\n      counters:\n        grants.leakd: {max: 1}\n",
            ":7: guests[0].expect.counters.grants.leakd: found the counter 'grants.leakd'; "
            "expected grants.leaked, perhaps",
        ),
        # images
        (
            HEAD + GUEST + "images:\n  - path: a\n",
            ":6: images[0]: found a mapping; expected exactly one of sha256",
        ),
        (
            HEAD + GUEST + "images: [{path: a, same_as: b, sha256: 0}]\n",
            "images[0].sha256: found 0; expected text",
        ),
        (HEAD + GUEST + "images: [{path: a, sha256: abc}]\n", "found 'abc'; expected text that matches"),
    ],
)
def test_what_is_wrong_is_named(write: Write, text: str, says: str) -> None:
    found = complaints(write(text))
    assert len(found) == 1, found
    assert says in found[0]


def test_all_complaints_come_at_once_in_the_order_of_the_file(write: Write) -> None:
    found = complaints(
        write(
            """
            name: x
            timeout: -1
            guests:
              - name: a
                program: hello
                memroy: 5
              - name: b c
                program: 7
            """
        )
    )
    assert [line.split(":")[1] for line in found] == ["2", "6", "7", "8"]


def test_programs_backends_and_counters_are_all_looked_at(write: Write) -> None:
    found = complaints(
        write(
            """
            name: x
            guests:
              - name: a
                program: helo
                disks:
                  - {vdev: xvda, backend: fiel}
                expect: {counters: {upcals: {min: 1}}}
              - name: b
                program: block-copy
                args: {depth: 0}
            """
        )
    )
    assert [line.split(":")[2].strip() for line in found] == [
        "guests[0].program",
        "guests[0].disks[0].backend",
        "guests[0].expect.counters.upcals",
        "guests[1].args.depth",
    ]


def test_long_values_are_shortened(write: Write) -> None:
    (found,) = complaints(write(f"name: x\nloop: {'y' * 500}\n{GUEST}"))
    assert "..." in found
    assert len(found) < 200
