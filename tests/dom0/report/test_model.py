"""The report's models: what is written is what is read."""

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dom0.report.model import (
    DeviceReport,
    DomainReport,
    ExpectationResult,
    GrantReport,
    LatencyReport,
    MulticallReport,
    RingReport,
    RunReport,
)

counts = st.integers(0, 1 << 62)
reports = st.builds(
    RunReport,
    scenario=st.text(),
    loop=st.sampled_from(["asyncio", "trio"]),
    seconds=st.floats(0, 1e6),
    ok=st.booleans(),
    domains=st.lists(
        st.builds(
            DomainReport,
            name=st.text(),
            domid=st.integers(0, 32000),
            program=st.text(),
            exit_code=st.none() | st.integers(-(1 << 40), 1 << 40),
            hypercalls=st.dictionaries(st.sampled_from(["domctl", "sched_op"]), counts),
            multicall=st.builds(MulticallReport, batches=counts, entries=counts),
            grants=st.builds(GrantReport, leaks=st.lists(st.text(), max_size=2)),
            devices=st.lists(
                st.builds(
                    DeviceReport,
                    name=st.text(),
                    kind=st.just("vbd"),
                    requests=st.dictionaries(st.sampled_from(["read", "write"]), counts),
                    latency=st.builds(LatencyReport, p50_us=st.floats(0, 1e9)),
                ),
                max_size=2,
            ),
        ),
        max_size=3,
    ),
    expectations=st.lists(
        st.builds(
            ExpectationResult, subject=st.text(), expected=st.text(), found=st.text(), held=st.booleans()
        ),
        max_size=2,
    ),
)


@given(reports)
def test_a_report_that_was_written_is_read_as_it_was(report: RunReport) -> None:
    written = report.model_dump_json()
    assert RunReport.model_validate_json(written) == report
    assert RunReport.model_validate_json(written).model_dump_json() == written


@given(reports)
def test_what_is_written_fits_its_schema(report: RunReport) -> None:
    schema = RunReport.model_json_schema(mode="serialization")
    jsonschema.validate(report.model_dump(mode="json"), schema, cls=jsonschema.Draft202012Validator)


def test_what_follows_from_the_rest_is_computed_anew() -> None:
    multicall = MulticallReport.model_validate({"batches": 4, "entries": 10, "mean_length": 99})
    assert multicall.mean_length == 2.5
    assert MulticallReport().mean_length == 0
    domain = DomainReport(name="g", domid=1, program="p", hypercalls={"domctl": 2, "sched_op": 3})
    assert domain.hypercalls_total == 5
    assert DeviceReport(name="d", kind="vbd", requests={"read": 2, "write": 1}).requests_total == 3


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError):
        GrantReport.model_validate({"leakd": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_latencies_are_numbers_that_make_sense(value: float) -> None:
    with pytest.raises(ValidationError):
        LatencyReport(p50_us=value)
    with pytest.raises(ValidationError):
        RingReport(size=-1)
