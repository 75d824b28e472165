"""Text of guests' on a terminal."""


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters other than the ends of lines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
