"""What a path may be (XSA-481), and how it is taken apart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0.xenstore import paths

LIMIT = 2048
COMPONENTS = st.lists(st.from_regex(rb"[A-Za-z0-9_@-]{1,8}", fullmatch=True), max_size=8)


@pytest.mark.parametrize("path", [b"/", b"/a", b"/a/b-c_d@e/0", b"/local/domain/0", b"/@x"])
def test_paths(path: bytes) -> None:
    assert paths.is_valid(path, LIMIT)


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"a",
        b"//",
        b"/a/",
        b"/a//b",
        b"/a b",
        b"/a\0b",
        b"/\xc3\xa9",
        b"/a.b",
        b"/a:b",
        b"/a\n",
        b"@x",
        b"/a/../b",
    ],
)
def test_no_paths(path: bytes) -> None:
    assert not paths.is_valid(path, LIMIT)


@given(st.binary(max_size=40))
def test_any_bytes_are_judged_by_the_specification(path: bytes) -> None:
    allowed = re.fullmatch(rb"[A-Za-z0-9/_@-]+", path) is not None
    shape = path.startswith(b"/") and b"//" not in path and (path == b"/" or not path.endswith(b"/"))
    assert paths.is_valid(path, LIMIT) == (allowed and shape)


@pytest.mark.parametrize(
    ("start", "beyond"),
    [
        (b"/local/domain/1/", 16),
        (b"/local/domain/12345/", 20),
        (b"/local/domain/123456/", 0),
        (b"/local/domainx/1/", 0),
    ],
)
def test_the_limit_counts_from_the_home(start: bytes, beyond: int) -> None:
    longest = start + b"x" * (LIMIT + beyond - len(start))
    assert paths.is_valid(longest, LIMIT)
    assert not paths.is_valid(longest + b"x", LIMIT)


@given(COMPONENTS)
def test_taking_apart_and_putting_together(components: list[bytes]) -> None:
    path = paths.ROOT
    for component in components:
        below = paths.join(path, component)
        assert paths.parent(below) == path
        assert paths.leaf(below) == component
        path = below
    assert paths.parent(paths.ROOT) == paths.ROOT


def test_homes() -> None:
    assert paths.home(7) == b"/local/domain/7"
