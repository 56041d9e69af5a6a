"""Headers of every answer: what browsers and caches may do with it."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, Response
from flask_cors import CORS
from secure import (
    ContentSecurityPolicy,
    CrossOriginResourcePolicy,
    PermissionsPolicy,
    ReferrerPolicy,
    Secure,
    StrictTransportSecurity,
    XContentTypeOptions,
    XFrameOptions,
)

from config import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ALWAYS = Secure(
    xcto=XContentTypeOptions(),
    xfo=XFrameOptions().deny(),
    referrer=ReferrerPolicy().no_referrer(),
    corp=CrossOriginResourcePolicy().same_origin(),
    permissions=PermissionsPolicy().geolocation().camera().microphone(),
).header_items()
"""Made once: a request only copies them."""

UNLESS_SAID = (
    # Answers are data; pages say themselves what they load.
    *Secure(csp=ContentSecurityPolicy().default_src("'none'").frame_ancestors("'none'")).header_items(),
    # Tokens, secrets, and what only their owner may see; the rest says for itself how long it keeps.
    ("Cache-Control", "no-store"),
)
_HSTS = Secure(hsts=StrictTransportSecurity().max_age(31_536_000)).header_items()

TAKEN = ("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-Id")
"""Request headers that pages of other origins may send, where ``CORS_ORIGINS`` lets them in."""

SHOWN = (
    *("Content-Language", "ETag", "Idempotent-Replayed", "Link", "Location"),
    *("RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate", "X-Request-Id"),
)
"""Headers of answers that these pages may read."""

SHARED = (r"/api/", r"/openapi\.json", r"/problems")
"""The beginnings of addresses that other origins may have a use for."""

PREFLIGHT_S = 600
"""For how long a browser need not ask again."""


def serve(app: Flask, settings: Settings) -> None:
    """Put the headers on every answer of ``app``."""
    if settings.cors_origins is not None:
        _share(app, settings.cors_origins)
    app.wsgi_app = _Protected(app.wsgi_app, hsts=settings.production)  # type: ignore[method-assign]


class _Protected:
    """The application with the headers. Around it, where a list takes them for next to nothing."""

    def __init__(self, application: "WSGIApplication", *, hsts: bool) -> None:
        self._application = application
        self._hsts = _HSTS if hsts else ()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            said = {name for name, _ in headers}
            added = [header for header in UNLESS_SAID if header[0] not in said]
            if self._hsts and environ["wsgi.url_scheme"] == "https":
                added += self._hsts
            return start_response(status, [*headers, *ALWAYS, *added], *error)

        return self._application(environ, start)


def _share(app: Flask, listed: str) -> None:
    """Let pages of other origins call the API; never with cookies, of which it has none."""
    origins = [origin.strip() for origin in listed.split(",")]
    anyone = origins == ["*"]
    CORS(
        app,
        resources=[f"{beginning}.*" for beginning in SHARED],
        # Compiled, because the library takes the brackets of an IPv6 address for an expression.
        origins="*" if anyone else [re.compile(rf"{re.escape(o)}\Z", re.IGNORECASE) for o in origins],
        methods=["GET", "HEAD", "POST", "PATCH"],
        allow_headers=TAKEN,
        expose_headers=SHOWN,
        supports_credentials=False,
        send_wildcard=anyone,
        always_send=False,
        vary_header=False,
        max_age=PREFLIGHT_S,
    )

    @app.after_request
    def vary(response: Response) -> Response:
        # Also where the origin is none of them: a cache must not give that answer to one that is.
        if not anyone:
            response.vary.add("Origin")
        return response
