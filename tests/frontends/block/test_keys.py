"""What a backend may write, and what a frontend makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.block.keys import BadBackendKeys, DiskKeys, TransportKeys, published

RECORDED = {
    "feature-flush-cache": "1",
    "discard-granularity": "4096",
    "discard-alignment": "0",
    "discard-secure": "0",
    "feature-discard": "1",
    "feature-barrier": "1",
    "feature-persistent": "1",
    "sectors": "131072",
    "info": "0",
    "sector-size": "512",
    "physical-sector-size": "512",
    "feature-max-indirect-segments": "256",
}


def test_what_linux_writes() -> None:
    keys = DiskKeys.read("backend", RECORDED)
    assert (keys.sectors, keys.sector_size, keys.read_only) == (131072, 512, False)
    assert (keys.flush, keys.barrier, keys.discard, keys.persistent) == (True, True, True, True)
    assert keys.max_indirect_segments == 256
    assert DiskKeys.read("backend", RECORDED | {"info": "4"}).read_only


def test_an_old_backend_offers_little() -> None:
    keys = DiskKeys.read("backend", {"sectors": "8"})
    assert (keys.flush, keys.barrier, keys.discard, keys.persistent) == (False, False, False, False)
    assert (keys.sector_size, keys.max_indirect_segments) == (512, 0)
    assert TransportKeys.read("backend", {}).max_ring_page_order == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"sectors": "0"},
        {"sectors": "-1"},
        {"sectors": "many"},
        {"sectors": ""},
        {"sectors": "1" * 30},
        {"sectors": str(1 << 60)},
        {"sector-size": "0"},
        {"sector-size": "513"},
        {"sector-size": "3000"},
        {"sector-size": "1048576"},
        {"feature-flush-cache": "yes"},
        {"feature-discard": "2"},
    ],
    ids=str,
)
def test_what_no_disk_is(changes: dict[str, str]) -> None:
    with pytest.raises(BadBackendKeys) as refused:
        DiskKeys.read("backend", RECORDED | changes)
    (problem,) = refused.value.problems
    assert problem[:2] == next(iter(changes.items()))


@given(st.dictionaries(st.sampled_from(list(RECORDED)), st.text(max_size=24)))
def test_anything_is_read_or_refused(changes: dict[str, str]) -> None:
    try:
        keys = DiskKeys.read("backend", RECORDED | changes)
    except BadBackendKeys:
        return
    assert 0 < keys.sectors < 1 << 55
    assert keys.sector_size in (512, 1024, 2048, 4096)


def test_what_is_published() -> None:
    assert list(published([9], 10, said_order=False, persistent=True).items()) == [
        ("ring-ref", "9"),
        ("event-channel", "10"),
        ("protocol", "x86_64-abi"),
        ("feature-persistent", "1"),
    ]
    several = published([9, 8, 7, 6], 10, said_order=True, persistent=False)
    assert several["ring-page-order"] == "2"
    assert [several[f"ring-ref{page}"] for page in range(4)] == ["9", "8", "7", "6"]
    assert (several["feature-persistent"], "ring-ref" in several) == ("0", False)
    again = published([9], 10, said_order=True, persistent=True)
    assert (again["ring-page-order"], again["ring-ref0"]) == ("0", "9")
