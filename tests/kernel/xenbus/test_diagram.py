"""The page in docs is the table's."""

from pathlib import Path

from kernel.xenbus.diagram import document
from kernel.xenbus.table import TRANSITIONS

PAGE = Path(__file__).parents[3] / "docs" / "xenbus.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == document(), "run: make docs"


def test_every_transition_is_shown() -> None:
    page = document()
    for (_, own, event), (action, _) in TRANSITIONS.items():
        assert any(
            line.startswith(f"| {own.name} |") and event.value in line and f"| {action.value} |" in line
            for line in page.splitlines()
        )
