"""Why a field was refused, in a sentence: what pydantic says, ready to be said in another language."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from sentences import Sentence

OURS = {
    "missing": "This field is missing.",
    "extra_forbidden": "This field is unknown.",
    "string_unicode": "This is not Unicode text: half a surrogate pair stands alone.",
}
"""What is said instead of pydantic's words, by its type of error."""

PYDANTICS = {
    "bool_type": "Input should be a valid boolean",
    "bool_parsing": "Input should be a valid boolean",
    "date_type": "Input should be a valid date",
    "date_parsing": "Input should be a valid date in the format YYYY-MM-DD",
    "date_from_datetime_parsing": "Input should be a valid date in the format YYYY-MM-DD",
    "date_from_datetime_inexact": "Input should be a valid date in the format YYYY-MM-DD",
    "datetime_type": "Input should be a valid datetime",
    "dict_type": "Input should be a valid object",
    "enum": "Input should be one of %(expected)s",
    "float_type": "Input should be a valid number",
    "float_parsing": "Input should be a valid number",
    "finite_number": "Input should be a finite number",
    "greater_than": "Input should be greater than %(gt)s",
    "greater_than_equal": "Input should be greater than or equal to %(ge)s",
    "int_type": "Input should be a valid integer",
    "int_parsing": "Input should be a valid integer",
    "int_parsing_size": "Input should be a valid integer",
    "int_from_float": "Input should be a valid integer, got a number with a fractional part",
    "less_than": "Input should be less than %(lt)s",
    "less_than_equal": "Input should be less than or equal to %(le)s",
    "list_type": "Input should be a valid list",
    "literal_error": "Input should be one of %(expected)s",
    "string_type": "Input should be a valid string",
    "string_pattern_mismatch": "String should match pattern '%(pattern)s'",
    "string_too_long": "String should have at most %(max_length)s characters",
    "string_too_short": "String should have at least %(min_length)s characters",
    "uuid_type": "Input should be a valid UUID",
    "uuid_parsing": "Input should be a valid UUID",
}
"""What pydantic says, by its type of error, for the catalogue; the values are those of its context."""


def texts() -> set[str]:
    """Return every text by which a field may be refused that no code of ours raises."""
    return {*OURS.values(), *PYDANTICS.values()}


def reason(error: ErrorDetails) -> str:
    """Return why a field was refused; without a full stop, where it is not a text of ours."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in OURS:
        return OURS[kind]
    if kind == "value_error":
        # What a validator of ours raised, with its values.
        (text,) = context["error"].args
        return str(text) if not isinstance(text, str) else text
    if kind in PYDANTICS:
        return Sentence.worded(error["msg"], PYDANTICS[kind], _values(context))
    return error["msg"]


def _values(context: Mapping[str, Any]) -> dict[str, object]:
    values = dict(context)
    if "expected" in values:
        # 'a', 'b' or 'c': the `or` is English.
        head, separator, tail = str(values["expected"]).rpartition(" or ")
        values["expected"] = f"{head}, {tail}" if separator else tail
    return values
