"""The API's description, and its interactive reference from files that come with the package: no CDN."""

from pathlib import Path
from typing import Any

import flask_openapi3_swagger
from flask import Blueprint, Response, render_template_string, send_from_directory

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
<style>body { margin: 0 } .topbar { display: none }</style>
</head>
<body>
<div id="reference"></div>
<script src="{{ url_for('docs.asset', name='js/swagger-ui-bundle.js') }}"></script>
<script>
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

blueprint = Blueprint("docs", __name__)


@blueprint.get("/openapi.json")
@open_to(Access.PUBLIC)
def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    return describe()


@blueprint.get("/docs")
@open_to(Access.PUBLIC)
def reference() -> str:
    """Return the interactive reference."""
    return render_template_string(PAGE)


@blueprint.get("/docs/assets/<path:name>")
@open_to(Access.PUBLIC)
def asset(name: str) -> Response:
    """Return a file of the interactive reference."""
    return send_from_directory(ASSETS, name, max_age=86_400)
