"""The names of the keys, against what the header documents."""

from pathlib import Path

from ringbuffers.protocols import blkif_keys
from tests.requirements import needs_package

HEADER = Path("/usr/include/xen/io/blkif.h")

# Values of `protocol`, which are in protocols.h.
ELSEWHERE = {"x86_32-abi", "x86_64-abi", "arm-abi"}


def test_keys_are_those_of_the_header() -> None:
    needs_package("libxen-dev", HEADER.exists())
    documented = HEADER.read_text()
    keys = {value for name, value in vars(blkif_keys).items() if name.isupper() and isinstance(value, str)}
    assert {key for key in keys - ELSEWHERE if key not in documented} == set()


def test_rings_of_several_pages_and_queues_have_numbered_keys() -> None:
    assert [blkif_keys.ring_ref(page) for page in (0, 15)] == ["ring-ref0", "ring-ref15"]
    assert blkif_keys.queue_directory(3) == "queue-3"
