"""YAML with line numbers, and errors that point."""

from pathlib import Path

import pytest

from dom0.scenario.source import ScenarioError, dotted, read_source


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "scenario.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    source = read_source(written(tmp_path, "name: x\nguests:\n  - name: a\n    disks:\n      - vdev: xvda\n"))
    assert source.data == {"name": "x", "guests": [{"name": "a", "disks": [{"vdev": "xvda"}]}]}
    assert source.line(("name",)) == 1
    assert source.line(("guests", 0, "disks", 0, "vdev")) == 5
    assert source.line(("guests", 0, "disks", 0, "absent")) == 5
    assert source.value(("guests", 0, "name")) == "a"
    assert source.value(("guests", 7)) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":1: found an empty file"),
        ("a: 1\na: 2\n", ":2: a: found the key twice; expected each key once"),
        ("a: [1\n", ":2: found"),
        ("? [1]\n: 2\n", "expected a key that is a word"),
        ("1: 2\n", "found the key 1"),
        ("a: !!python/object:os.system x\n", ":1: a: found x; expected a plain value"),
        ("a: 2026-99-99\n", ":1: a: found 2026-99-99"),
        ("a: &x [*x]\n", "an anchor that contains itself"),
        (b"a: \xff\n", "no UTF-8"),
        ("a: \x01\n", "expected YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        read_source(written(tmp_path, text))
    assert says in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        read_source(tmp_path / "none.yaml")


def test_dotted() -> None:
    assert dotted(("guests", 0, "disks", 1, "vdev")) == "guests[0].disks[1].vdev"
