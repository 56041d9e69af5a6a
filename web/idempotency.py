"""``Idempotency-Key``: a POST that is sent again under its key is done once, and answered as the first time.

The effect and the answer are committed together: while such a request runs, `transaction` leaves its last
transaction open, and the answer is written in it.
"""

import functools
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from typing import Any, ParamSpec, cast

from flask import Response, current_app, g, request

from billing import idempotency
from billing.errors import KeyBusyError, KeyInvalidError, RateLimitError, VadeError
from billing.idempotency import Answer, Claim, Keyed
from web.access import Caller
from web.context import transaction, vade

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"

WAIT_S = 30.0
"""How long a request waits for another one under its key."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25

KEPT_HEADERS = ("ETag", "Location", "Content-Language", "Vary", "WWW-Authenticate")

# A string of RFC 8941 §3.3.3, or the bare text that most clients send.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"')
_BARE = re.compile(r"[!#-~]{1,255}")

P = ParamSpec("P")
Again = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes an answer anew from what was kept in its place."""


def idempotent(
    again: Again | None = None, *, of_session: bool = False
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Let a view be called safely again under an ``Idempotency-Key``.

    A view whose answer is secret says `keep_instead` what is kept, of which ``again`` makes the answer.
    ``of_session`` tells that the request is about the caller's session, and another one's is another request.
    """

    def mark(view: Callable[P, Any]) -> Callable[P, Any]:
        @functools.wraps(view)
        def once(*args: P.args, **kwargs: P.kwargs) -> Any:
            key = request.headers.get(HEADER)
            if key is None:
                return view(*args, **kwargs)
            found = _claim(_keyed(key, of_session=of_session))
            if not isinstance(found, Claim):
                return _replay(found, again)
            return _answer(found, lambda: view(*args, **kwargs), again)

        once.is_idempotent = True  # type: ignore[attr-defined]
        return once

    return mark


def is_idempotent(view: Callable[..., Any]) -> bool:
    """Return whether a view minds an ``Idempotency-Key``."""
    return getattr(view, "is_idempotent", False)


def keep_instead(facts: dict[str, Any]) -> None:
    """Keep facts that are no secret in the place of the answer."""
    g.kept_instead = facts


def _claim(keyed: Keyed) -> Claim | Answer:
    """Take the request, or wait for what another one under its key is answered."""
    deadline_s, pause_s = time.monotonic() + WAIT_S, FIRST_PAUSE_S
    while True:
        with transaction() as session:
            found = idempotency.claim(session, keyed, now=vade().clock.read(session).real)
        if found is not None:
            return found
        if time.monotonic() > deadline_s:
            raise KeyBusyError
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _answer(claim: Claim, view: Callable[[], Any], again: Again | None) -> Any:
    g.pop("kept_instead", None)
    g.commits_with_answer = True
    try:
        response = current_app.make_response(view())
        answer = {"status": response.status_code, **_content(response)}
        return _keep(claim, answer, response, again)
    except RateLimitError:
        _release(claim)
        raise
    except VadeError as error:
        # Refused, with nothing changed: that is an answer too.
        response = current_app.make_response(current_app.handle_user_exception(error))
        answer = {"status": response.status_code, **_body(response)}
        return _keep(claim, answer, response, again)
    except Exception:
        # What failed for a reason of ours is not an answer.
        _release(claim)
        raise
    finally:
        g.pop("commits_with_answer", None)


def _keep(claim: Claim, answer: Answer, response: Response, again: Again | None) -> Response:
    """Commit the effect with its answer; where another request took over meanwhile, give its answer."""
    g.pop("commits_with_answer", None)
    with transaction() as session:
        # The one in which the effect stands.
        kept = idempotency.keep(session, claim, answer)
        if not kept:
            session.rollback()
    if kept:
        return response
    found = _claim(claim.keyed)
    if isinstance(found, Claim):
        _release(found)
        raise KeyBusyError
    return _replay(found, again)


def _content(response: Response) -> dict[str, Any]:
    instead = g.pop("kept_instead", None)
    return _body(response) if instead is None else {"instead": instead}


def _body(response: Response) -> dict[str, Any]:
    return {
        "body": response.get_data(as_text=True),
        "content_type": response.content_type,
        "headers": {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers},
    }


def _replay(answer: Answer, again: Again | None) -> Response:
    if again is not None and "instead" in answer:
        response = current_app.make_response((again(answer["instead"]), answer["status"]))
    else:
        response = Response(answer["body"], answer["status"], answer["headers"])
        response.headers["Content-Type"] = answer["content_type"]
    response.headers[REPLAYED] = "true"
    return response


def _release(claim: Claim) -> None:
    g.pop("commits_with_answer", None)
    with transaction() as session:
        session.rollback()
        idempotency.release(session, claim)


def _keyed(header: str, *, of_session: bool) -> Keyed:
    quoted = _QUOTED.fullmatch(header)
    if quoted is None and _BARE.fullmatch(header) is None:
        raise KeyInvalidError
    key = quoted[1].replace('\\"', '"').replace("\\\\", "\\") if quoted else header
    caller = cast(Caller | None, g.get("caller"))
    asked = [request.method, request.path, sorted(request.args.items(multi=True)), _asked_body()]
    if of_session and caller is not None:
        asked += [caller.session_id, caller.generation]
    return Keyed(
        company_id=(caller and caller.company_id) or 0,
        digest=_hmac([_name(caller), key]),
        fingerprint=_hmac(asked),
    )


def _name(caller: Caller | None) -> str:
    if caller is None:
        return f"address {request.remote_addr}"
    return f"operator {caller.operator_id}" if caller.is_operator else f"company {caller.company_id}"


def _asked_body() -> Any:
    """Return a JSON body as what it says, however it is written; anything else as it is."""
    return request.get_json() if request.is_json else request.get_data(as_text=True)


def _hmac(message: Any) -> bytes:
    secret: str = current_app.config["JWT_SECRET_KEY"]
    key = hmac.digest(secret.encode(), b"idempotency keys", hashlib.sha256)
    # Escaped, so that halves of surrogate pairs are bytes too.
    return hmac.digest(key, json.dumps(message, sort_keys=True).encode(), hashlib.sha256)
