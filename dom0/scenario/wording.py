"""What pydantic's errors mean to whoever wrote a scenario: what was expected, in words."""

from collections.abc import Mapping
from typing import Any, Final

_WORDS: Final[Mapping[str, str]] = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "path_type": "a path",
    "byte_size": "a size such as 16MiB",
    "byte_size_unit": "a size with a unit such as KiB, MiB or GiB",
    "misplaced": "{expected}",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def expectation(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """What was expected where an error of type `kind` was found.

    Args:
        message: pydantic's own words, for a type that is not in the list.
        context: the error's values.
    """
    words = _WORDS.get(kind)
    if words is not None:
        return words.format_map(context)
    if kind == "value_error":
        return f"something else: {message.removeprefix('Value error, ')}"
    return message.removeprefix("Input should be ")
