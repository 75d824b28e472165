"""The report on a terminal: everything is there, on 80 columns too, and text stays text."""

from io import StringIO

import pytest
from rich.console import Console

from dom0.report.model import (
    DeviceReport,
    DomainReport,
    ExpectationResult,
    GrantReport,
    LatencyReport,
    MulticallReport,
    QueueReport,
    RingReport,
    RunReport,
)
from dom0.report.printable import printable
from dom0.report.render import human_bytes, print_report

LONG = "a.rather.long.package.name:ProgramOrBackend"
REPORT = RunReport(
    scenario="example",
    loop="trio",
    seconds=12.345,
    ok=False,
    domains=[
        DomainReport(name="Domain-0", domid=0, program="services", outcome="running", upcalls=1234567),
        DomainReport(
            name="exerciser",
            domid=12,
            program=LONG,
            outcome="crash",
            exit_code=3,
            crash="Traceback\nRuntimeError: [/x] \x1b[2J",
            hypercalls={"event_channel_op": 1000000, "grant_table_op": 20},
            multicall=MulticallReport(batches=64, entries=128),
            upcalls=7654321,
            events_sent=456789,
            grants=GrantReport(mapped=111222, copied=333444, leaked=1, leaks=["grant 9: pfn 0x5"]),
            devices=[
                DeviceReport(
                    name="xvda",
                    kind="vbd",
                    backend=LONG,
                    requests={"read": 900000, "write": 100000},
                    errors=5,
                    last_error="the disk is full",
                    bytes_read=3 << 30,
                    bytes_written=5 << 20,
                    frontend=RingReport(size=128, high_water=77, notifications_sent=1111),
                    backend_ring=RingReport(size=128, high_water=99, notifications_suppressed=2222),
                    queues=[
                        QueueReport(name="queue-0", ring=RingReport(size=128, high_water=99)),
                        QueueReport(name="queue-1", ring=RingReport(notifications_suppressed=2221)),
                    ],
                    latency=LatencyReport(samples=9, p50_us=123.4, p99_us=98765.4),
                )
            ],
        ),
    ],
    expectations=[
        ExpectationResult(
            subject="exerciser: console", expected="/[a-z]+[/b]/", found="no match", held=False
        ),
        ExpectationResult(subject="exerciser: upcalls", expected="n <= 5", found="3", held=True),
    ],
    problems=["dom0 ended with crash"],
    faults=["domain 12: domctl\nZeroDivisionError"],
)


def printed(report: RunReport, width: int) -> str:
    output = StringIO()
    print_report(report, Console(file=output, width=width, force_terminal=False))
    return output.getvalue()


@pytest.mark.parametrize("width", [80, 100, 132, 250])
def test_every_number_is_shown_whatever_the_width(width: int) -> None:
    shown = printed(REPORT, width)
    numbers = (
        "1,234,567 7,654,321 456,789 111,222 333,444 1,000,020 64 2.0 1,000,000 3.0 GiB 5.0 MiB 123 98,765 "
        "128 99 1,111/0 0/2,222 queue-0 queue-1 -/2,221 FAILED held"
    )
    for number in numbers.split():
        assert number in shown, number
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 132])
def test_text_is_folded_and_not_cut(width: int) -> None:
    shown = printed(REPORT, width)
    assert shown.count("a.rather.long") == 2
    unfolded = "".join(shown.split())
    for text in ("12exerciser", "exerciserxvda", "crash", "/[a-z]+[/b]/", "nomatch", "grant9:pfn0x5"):
        assert text in unfolded, text


def test_trouble_is_told_in_full() -> None:
    shown = printed(REPORT, 132)
    assert "exerciser crashed: Traceback\nRuntimeError: [/x] \N{REPLACEMENT CHARACTER}[2J\n" in shown
    assert "exerciser leaked grant 9: pfn 0x5" in shown
    assert "exerciser xvda, the last error: the disk is full" in shown
    assert "problem: dom0 ended with crash" in shown
    assert "fault contained: domain 12: domctl\nZeroDivisionError" in shown
    assert "example: the run FAILED after 12.35 s on trio" in shown
    assert "\x1b" not in shown


def test_a_failed_expectation_is_not_clipped_and_one_that_held_is() -> None:
    long = "x" * 300
    results = [
        ExpectationResult(subject="s", expected=long, found="f", held=False),
        ExpectationResult(subject="s", expected="y" * 300, found="f", held=True),
    ]
    report = REPORT.model_copy(update={"expectations": results, "domains": []})
    shown = printed(report, 132)
    assert shown.count("x") - printed(report.model_copy(update={"expectations": []}), 132).count("x") >= 300
    assert 30 < shown.count("y") < 60


def test_a_run_that_went_well_says_so_and_no_more() -> None:
    domain = DomainReport(name="Domain-0", domid=0, program="services", outcome="running")
    report = RunReport(scenario="s", loop="asyncio", seconds=1, ok=True, domains=[domain], expectations=[])
    shown = printed(report, 80)
    assert "s: every guest ended well after 1.00 s on asyncio" in shown
    assert "Devices" not in shown
    assert "Expectations" not in shown


def test_what_a_driver_domain_has_served_is_shown_with_it_and_with_its_guest() -> None:
    ours = DeviceReport(name="xvda", kind="vbd", backend="file", backend_domain="disks", lost=1)
    theirs = DeviceReport(
        name="painter-xvda", kind="vbd", backend="file", requests={"read": 4711}, bytes_read=3 << 20, errors=2
    )
    domains = [
        DomainReport(name="painter", domid=2, program="block-exerciser", devices=[ours]),
        DomainReport(name="disks", domid=1, program="driver-domain", served=[theirs]),
    ]
    shown = printed(REPORT.model_copy(update={"domains": domains, "expectations": []}), 80)
    assert "file in disks" in shown
    assert "painter xvda was lost: disks, which served it, ended before" in shown
    (served,) = [line.split() for line in shown.splitlines() if line.startswith("disks ")]
    assert served == ["disks", "painter-xvda", "file", "4,711", "3.0", "MiB", "0", "B", "2"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_printable_keeps_text_and_nothing_that_a_terminal_obeys() -> None:
    assert printable("grün │ 漢字\n\tx") == "grün │ 漢字\n\tx"
    assert printable("\x1b\x07\x00\x9b\u202e\r") == "\N{REPLACEMENT CHARACTER}" * 6
