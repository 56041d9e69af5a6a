"""What schemathesis has to be told: who calls, which values are of use, and what is meant as it is."""

import os
import re
import uuid
from datetime import datetime
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import AuthContext, Case, HookContext
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData, UndefinedStatusCode

from tests.api import registration

CALLER = os.environ["FUZZ_CALLER"]
API = os.environ["FUZZ_ADDRESS"] + "/api/v1"

ENDING = ("/api/v1/token/refresh", "/api/v1/logout", "/api/v1/password")
"""Operations that use up a token or end sessions: each call has a company of its own to do it to."""


def registered() -> dict[str, Any]:
    """Return the tokens of a company that is made now."""
    email = f"{uuid.uuid4().hex}@fuzz.example"
    response = requests.post(f"{API}/register", json=registration(email=email), timeout=60)
    response.raise_for_status()
    tokens: dict[str, Any] = response.json()
    return tokens


class Bearer:
    """Sends a token, fetched now and then."""

    def get(self, _case: Case[Any], _context: AuthContext) -> str:
        return os.environ["FUZZ_OPERATOR_TOKEN"] if CALLER == "operator" else str(registered()["token"])

    def set(self, case: Case[Any], data: str, _context: AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


class OwnBearer(Bearer):
    """Sends the token of a company that nobody else uses, each time of another."""

    def get(self, case: Case[Any], context: AuthContext) -> str:
        if CALLER == "operator":
            return super().get(case, context)
        return str(registered()["refresh_token" if case.operation.path.endswith("/refresh") else "token"])


if CALLER != "nobody":
    schemathesis.auth(refresh_interval=None).apply_to(path=[*ENDING])(OwnBearer)
    schemathesis.auth().skip_for(path=[*ENDING])(Bearer)


# Addresses that are nobody's (RFC 6761 §6.5, and this machine), because a ping is really sent to them.
schemathesis.openapi.format(
    "uri",
    st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https"]),
        st.sampled_from(["kitapci.example", "127.0.0.1:1024", "[::1]:1025", "gül.example"]),
        st.from_regex(r"(/[a-z0-9._~%ğüşıöç-]{0,20}){0,3}(\?[a-z=&]{0,9})?", fullmatch=True),
    ),
)

# Of the years that an instant may be of (DESIGN.md §4), in UTC as all answers have it.
schemathesis.openapi.format(
    "date-time",
    st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31)).map(lambda at: f"{at.isoformat()}Z"),  # noqa: DTZ001
)

MEANT = {
    r"This is no cursor of this list\.": "Cursors are signed: no schema tells which there are.",
    r"There is no package with this id that can be taken\.": "Nor which packages there are.",
    r"An instant of the years 1970 to 2999 is wanted, .*": "A date-time may be of any year.",
    r"This is not the request that the key was first used for\.": "Requests that are made up share keys.",
    r"A report is of at most 366 days\.": "A schema knows nothing of the distance of two days.",
    r"This is before `from`\.": "Nor of their order.",
    r"As it is sent, with %-codes for letters, it is over 2048 characters\.": "A schema counts no bytes.",
}
"""Refusals of requests that their schema takes, and why they are right all the same."""


@schemathesis.hook
def filter_failure(
    context: HookContext,
    failure: Failure,
    case: Case[Any],
    response: Response,
) -> bool:
    """Keep what was found unless each field of the request was refused for a reason that is meant."""
    if isinstance(failure, UndefinedStatusCode) and response.status_code == 400:
        # What is no HTTP, such as a length that is no number, gunicorn refuses before the API sees it.
        return not response.content.lstrip().startswith(b"<html>")
    if not isinstance(failure, RejectedPositiveData):
        return True
    if response.status_code == 412:
        # A version that is made up is never the one that stands.
        return False
    if response.status_code != 422:
        return True
    return not all(
        _is_meant(error["pointer"], error["detail"], case.body) for error in response.json()["errors"]
    )


def _is_meant(pointer: str, detail: str, body: Any) -> bool:
    value = body.get(pointer.removeprefix("#/")) if isinstance(body, dict) else None
    if detail == "Input should be a valid integer.":
        # 1.0 is an integer to JSON Schema, and none to Vade: money has no point.
        return isinstance(value, float)
    return any(re.fullmatch(meant, detail) for meant in MEANT)
