"""What a request's body may be: one JSON object, of RFC 8259's JSON, and not too large."""

from typing import Any, NoReturn

from flask import current_app, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from billing.errors import InvalidFieldError
from sentences import Sentence

LONGEST_INTEGER = 100
"""In digits. What is longer is no number of ours, and int() refuses to read some thousand digits."""


class StrictJSON(DefaultJSONProvider):
    """Reads JSON without Python's additions (NaN, Infinity); an endless integer is left to its field."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Return what a text of JSON in UTF-8 says, or raise ValueError."""
        # json.loads would guess at the encoding of bytes, and let halves of surrogate pairs through.
        text = s if isinstance(s, str) else s.decode("utf-8-sig")
        return super().loads(text, parse_constant=_refuse, parse_int=_integer, **kwargs)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


def check_body() -> None:
    """Refuse what is too large (413), no JSON (415), broken JSON (400) or no object (422)."""
    limit: int = current_app.config["MAX_CONTENT_LENGTH"]
    # A body in chunks does not say how long it is, and Werkzeug would cut it off at its limit in silence.
    request.max_content_length = limit + 1
    if (request.content_length or 0) > limit or len(request.get_data()) > limit:
        raise RequestEntityTooLarge(Sentence("A body may have %(most)s KiB at most.", most=limit // 1024))
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(Sentence("The body must be application/json."))
    try:
        body = request.get_json()
    except RecursionError:
        raise BadRequest(Sentence("The body is nested too deeply.")) from None
    except BadRequest:
        raise BadRequest(Sentence("The body is not valid JSON.")) from None
    if not isinstance(body, dict):
        raise InvalidFieldError("#", "The body must be a JSON object.")
