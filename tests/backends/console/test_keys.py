"""What is read of a console's description, and what is not believed."""

from typing import cast

import pytest

from backends.console.errors import BadKeys
from backends.console.keys import MAX_LIMIT_BYTES, MIN_LIMIT_BYTES, ConsoleKeys, read_keys
from kernel.xenstore.client import XenStoreClient

pytestmark = pytest.mark.anyio


class FakeStore:
    """XenStore as far as the daemon looks at it."""

    def __init__(self, nodes: dict[str, str]) -> None:
        self.nodes = {
            f"/local/domain/5/{key.replace('__', '/').replace('_', '-')}": value
            for key, value in nodes.items()
        }

    async def read_many(self, paths: list[str]) -> list[str | None]:
        return [self.nodes.get(path) for path in paths]


async def described(**nodes: str) -> ConsoleKeys | None:
    return await read_keys(cast(XenStoreClient, FakeStore(nodes)), 5)


async def test_a_whole_description() -> None:
    keys = await described(
        name="web",
        console__port="2",
        console__ring_ref="1044479",
        console__limit="65536",
        console__type="xenconsoled",
    )
    assert keys == ConsoleKeys(name="web", port=2, limit=65536)


async def test_what_may_be_missing() -> None:
    assert await described(console__port="2", console__ring_ref="7") == ConsoleKeys(name="domain-5", port=2)


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        {"console__port": "2"},
        {"console__ring_ref": "7"},
        {"console__port": "2", "console__ring_ref": "7", "console__type": "ioemu"},
    ],
)
async def test_no_console_yet_or_somebody_elses(nodes: dict[str, str]) -> None:
    assert await described(**nodes) is None


@pytest.mark.parametrize(
    ("key", "value"), [("port", "0"), ("port", "131072"), ("port", "two"), ("limit", "-1"), ("limit", "much")]
)
async def test_the_error_names_the_node_and_what_it_held(key: str, value: str) -> None:
    nodes = {"console__port": "2", "console__ring_ref": "7", f"console__{key}": value}
    with pytest.raises(BadKeys) as bad:
        await described(**nodes)
    assert bad.value.domid == 5
    assert key in bad.value.reason
    assert repr(value) in bad.value.reason


@pytest.mark.parametrize(
    ("limit", "log_bytes"), [(0, MIN_LIMIT_BYTES), (1 << 20, 1 << 20), (1 << 60, MAX_LIMIT_BYTES)]
)
async def test_the_limit_is_kept_within_reason(limit: int, log_bytes: int) -> None:
    assert ConsoleKeys(name="x", port=1, limit=limit).log_bytes == log_bytes
