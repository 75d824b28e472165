"""Keys of both folders: what is right is read, what is not is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from backends.block.keys import BadKeys, FrontendKeys, SetupKeys, described, offered
from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.block.opened import OpenedStore
from ringbuffers.protocols import blkif

RIGHT = {"ring-ref": "9", "event-channel": "10", "protocol": "x86_64-abi", "feature-persistent": "1"}


def test_what_linux_writes() -> None:
    keys = FrontendKeys.read("device", RIGHT | {"state": "3", "virtual-device": "51712"})
    assert (keys.ring_refs, keys.event_channel, keys.persistent) == ((9,), 10, True)
    keys = FrontendKeys.read("device", {"ring-ref": "9", "event-channel": "10"})
    assert (keys.ring_refs, keys.persistent) == ((9,), False)


@pytest.mark.parametrize(
    ("keys", "refs"),
    [
        ({"ring-page-order": "1", "ring-ref0": "5", "ring-ref1": "6"}, (5, 6)),
        ({"ring-page-order": "0", "ring-ref0": "5"}, (5,)),
        ({"ring-page-order": "0", "ring-ref": "5"}, (5,)),
        ({"num-ring-pages": "2", "ring-ref0": "5", "ring-ref1": "6"}, (5, 6)),
        ({"num-ring-pages": "1", "ring-ref": "7"}, (7,)),
        # Left by a connection before: the order that is written now counts.
        ({"ring-page-order": "0", "ring-ref0": "5", "ring-ref1": "6", "ring-ref": "7"}, (5,)),
        ({"ring-ref": "7", "ring-ref0": "5"}, (7,)),
    ],
)
def test_rings_of_several_pages(keys: dict[str, str], refs: tuple[int, ...]) -> None:
    assert FrontendKeys.read("device", {"event-channel": "1", **keys}).ring_refs == refs


def test_a_full_ring_is_sixteen_pages() -> None:
    refs = {f"ring-ref{page}": str(page + 20) for page in range(16)}
    keys = FrontendKeys.read("device", {"event-channel": "1", "ring-page-order": "4", **refs})
    assert keys.ring_refs == tuple(range(20, 36))


@given(
    st.dictionaries(
        st.sampled_from([*RIGHT, "ring-page-order", "ring-ref0", "num-ring-pages"]), st.text(max_size=8)
    )
)
def test_anything_is_read_or_refused(changes: dict[str, str]) -> None:
    try:
        keys = FrontendKeys.read("device", RIGHT | changes)
    except BadKeys:
        return
    assert 1 <= len(keys.ring_refs) <= 16
    assert all(0 <= ref < 2**32 for ref in keys.ring_refs)


def test_the_error_names_key_and_value() -> None:
    with pytest.raises(BadKeys, match="device/event-channel is 'no'") as refused:
        FrontendKeys.read("device", RIGHT | {"event-channel": "no"})
    assert (refused.value.key, refused.value.found) == ("event-channel", "no")


def test_setup() -> None:
    keys = SetupKeys.read("backend", {"type": "file", "params": "/a.img", "mode": "w", "device-type": "disk"})
    assert (keys.read_only, keys.info) == (False, 0)
    keys = SetupKeys.read("backend", {"type": "file", "mode": "r", "device-type": "cdrom", "removable": "1"})
    assert keys.info == blkif.VDISK_READONLY | blkif.VDISK_CDROM | blkif.VDISK_REMOVABLE
    assert SetupKeys.read("backend", {"type": "file"}).read_only  # if nobody says, nothing is written
    for wrong in ({}, {"type": "file", "mode": "rw"}, {"type": "file", "discard-enable": "yes"}):
        with pytest.raises(BadKeys):
            SetupKeys.read("backend", wrong)


def test_what_the_backend_says() -> None:
    assert offered() == {
        "feature-max-indirect-segments": "256",
        "multi-queue-max-queues": "1",
        "max-ring-page-order": "4",
    }
    store = MemoryStore(MemoryStoreConfig(size=ByteSize(1 << 20)))
    store.open()
    assert list(described(OpenedStore(store), 0)) == [
        "feature-flush-cache",
        "discard-granularity",
        "discard-alignment",
        "discard-secure",
        "feature-discard",
        "feature-barrier",
        "feature-persistent",
        "sectors",
        "info",
        "sector-size",
        "physical-sector-size",
    ]
