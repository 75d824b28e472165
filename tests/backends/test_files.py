"""Which files settings name."""

from pathlib import Path

from pydantic import BaseModel

from backends.files import files_of


class Layer(BaseModel):
    """Settings inside of settings."""

    path: Path
    name: str = "no path"


class Layered(BaseModel):
    """Paths wherever settings may have some."""

    base: Path
    over: Layer | None = None
    more: list[Layer] = []
    named: dict[str, Path] = {}
    pair: tuple[Path, int] | None = None


def test_paths_are_found_wherever_they_stand() -> None:
    settings = Layered(
        base=Path("/a"),
        over=Layer(path=Path("b")),
        more=[Layer(path=Path("/c")), Layer(path=Path("/a"))],
        named={"x": Path("/d")},
        pair=(Path("/e"), 1),
    )
    assert files_of(settings) == [Path("/a"), Path("b"), Path("/c"), Path("/d"), Path("/e")]


def test_settings_without_a_path_name_no_file() -> None:
    assert files_of(Layer.model_construct(name="x")) == []
