"""What every message to receivers must be: as OpenAPI's ``webhooks`` describe it, and nothing more."""

import json
from functools import cache
from typing import Any

from tests.api import _validator
from web.webhooks import EVENTS, message_schemas


def assert_described_message(body: str) -> None:
    """The text of a message is as its type's schema says, without a member that is not described."""
    message = json.loads(body, object_pairs_hook=_once)
    type_ = message.get("type") if isinstance(message, dict) else None
    assert type_ in EVENTS, f"{type_!r} is not described: {body}"
    validator = _validator(f"{EVENTS[type_].name}Message", _components())
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(message)]
    assert not errors, f"{'; '.join(errors)}\n{body}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, none of whose members is there twice: parsers differ in which of them they take."""
    found = dict(pairs)
    assert len(found) == len(pairs), f"a member twice: {[name for name, _ in pairs]}"
    return found


@cache
def _components() -> str:
    return json.dumps({"schemas": message_schemas()})
