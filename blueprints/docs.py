"""The API's description, and its interactive reference from files that come with the package: no CDN."""

import secrets
from pathlib import Path
from typing import Any

import flask_openapi3_swagger
from flask import Blueprint, Response, make_response, render_template_string, send_from_directory

from blueprints import problem_pages
from web.access import Access, open_to
from web.openapi import describe

ASSETS = Path(flask_openapi3_swagger.__file__).parent / "templates" / "swagger"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Vade API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{{ url_for('docs.asset', name='css/swagger-ui.css') }}">
<style>body { margin: 0 }</style>
</head>
<body>
<div id="reference"></div>
<script src="{{ url_for('docs.asset', name='js/swagger-ui-bundle.js') }}"></script>
<script nonce="{{ nonce }}">
SwaggerUIBundle({
  url: "{{ url_for('docs.openapi') }}",
  dom_id: "#reference",
  deepLinking: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
</script>
</body>
</html>
"""

POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'none'"
)
"""The reference's own styles are inline; its scripts are not."""

blueprint = Blueprint("docs", __name__)
blueprint.register_blueprint(problem_pages.blueprint)


@blueprint.get("/openapi.json")
@open_to(Access.PUBLIC)
def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    return describe()


@blueprint.get("/docs")
@open_to(Access.PUBLIC)
def reference() -> Response:
    """Return the interactive reference, which may load and ask nothing but this server."""
    nonce = secrets.token_urlsafe(16)
    response = make_response(render_template_string(PAGE, nonce=nonce))
    response.headers["Content-Security-Policy"] = POLICY.format(nonce=nonce)
    return response


@blueprint.get("/docs/assets/<path:name>")
@open_to(Access.PUBLIC)
def asset(name: str) -> Response:
    """Return a file of the interactive reference."""
    return send_from_directory(ASSETS, name, max_age=86_400)
