"""Metrics for Prometheus: for whoever has METRICS_TOKEN. No part of the JSON API that OpenAPI describes."""

from typing import cast

from flask import Blueprint, Response, current_app, request

from billing.errors import TokenError
from web.access import Access, open_to
from web.context import vade
from web.exposition import CONTENT_TYPE, Watch, may_read
from web.metrics import request_metrics

blueprint = Blueprint("metrics", __name__)

WATCH = "vade-watch"
"""Where the application keeps its `Watch`."""


@blueprint.get("/metrics")
@open_to(Access.PUBLIC)
def metrics() -> Response:
    """Answer what the API counted and what stands in the database, to whoever sends METRICS_TOKEN."""
    token = vade().settings.metrics_token
    if token is None or not may_read(request.headers.get("Authorization"), token=token):
        raise TokenError
    watch = cast(Watch, current_app.extensions[WATCH])
    return Response(request_metrics() + watch.metrics(), content_type=CONTENT_TYPE)
