"""YAML with a memory: every value knows the line it came from, so that an error can point at it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a scenario file."""

    file: Path
    line: int
    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else f"{self.file}"
        key = f" {self.key}:" if self.key else ""
        found = f" found {self.found};" if self.found else ""
        return f"{where}:{key}{found} expected {self.expected}"


class ScenarioError(Exception):
    """A scenario file that cannot be run; `problems` says why, one entry for each thing wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(slots=True)
class Source:
    """A parsed file: plain data, and the line of every key and list entry."""

    file: Path
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing around it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def value(self, path: KeyPath) -> Any:
        """What the file says at `path`, or at the nearest value around it; None where there is only a
        mapping or a list around it, which does not say it.
        """
        here: Any = self.data
        step: Any
        for step in path:
            if not isinstance(here, dict | list):
                return here
            try:
                here = here[step]
            except (KeyError, IndexError, TypeError):
                return None
        return here


def dotted(path: KeyPath) -> str:
    """`("guests", 0, "name")` → `guests[0].name`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


class _Reader:
    """Walks the node tree that PyYAML composes, so that no value loses its mark."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.constructor = yaml.constructor.SafeConstructor()
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: KeyPath, inside: tuple[int, ...] = ()) -> Any:
        self.source.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in inside:
            self._complain(node, path, "an anchor that contains itself", "a finite value")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*inside, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i), (*inside, id(node))) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            return self.constructor.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError) as error:
            self._complain(node, path, str(node.value), f"a plain value ({getattr(error, 'problem', error)})")
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, inside: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self._complain(key_node, path, f"the key {key!r}", "a key that is a word")
            elif key in result:
                self._complain(key_node, (*path, key), "the key twice", "each key once")
            else:
                self.source.lines[(*path, key)] = key_node.start_mark.line + 1
                result[key] = self.read(value_node, (*path, key), inside)
        return result

    def _complain(self, node: yaml.Node, path: KeyPath, found: str, expected: str) -> None:
        self.problems.append(
            Problem(self.source.file, node.start_mark.line + 1, dotted(path), found, expected)
        )


def read_source(file: Path) -> Source:
    """Reads `file` as YAML.

    Raises:
        ScenarioError: it cannot be read, is no YAML, or has a key twice.
    """
    source = Source(file)
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ScenarioError(
            [Problem(file, 0, "", error.strerror or "an error", "a file that can be read")]
        ) from error
    except UnicodeDecodeError as error:
        raise ScenarioError(
            [Problem(file, 0, "", f"byte {error.start} that is no UTF-8", "UTF-8 text")]
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ScenarioError([Problem(file, line, "", error.problem or "an error", "YAML")]) from error
    except yaml.YAMLError as error:
        raise ScenarioError([Problem(file, 0, "", str(error), "YAML")]) from error
    if node is None:
        raise ScenarioError([Problem(file, 1, "", "an empty file", "a scenario")])
    reader = _Reader(source)
    source.data = reader.read(node, ())
    if reader.problems:
        raise ScenarioError(reader.problems)
    return source
