"""What each type of problem means and what to do: the pages that a problem's ``type`` leads to."""

import base64
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, render_template, request
from flask.json import dumps
from markupsafe import Markup, escape

from billing.errors import NotFoundError
from web import languages
from web.access import Access, open_to
from web.problem_types import ProblemType, problem_types
from web.problems import in_language, said

STYLE = (Path(__file__).parent / "templates" / "problems" / "style.css").read_text().strip()

POLICY = (
    "default-src 'none'; img-src data:; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The pages load nothing, and have this one style and no script."""

blueprint = Blueprint("problems", __name__, url_prefix="/problems", template_folder="templates")


@blueprint.get("")
@open_to(Access.PUBLIC)
def index() -> Response:
    """Return the list of all types of problems, as a page or as JSON."""
    language, types = languages.wanted(), list(problem_types().values())
    if _wants_json():
        data = [{"type": t.uri, "title": languages.say(t.title, language), "status": t.status} for t in types]
        return _answer(jsonify({"data": data, "next_cursor": None}), language)
    return _page("problems/index.html", language, types=types)


@blueprint.get("/<slug>")
@open_to(Access.PUBLIC)
def show(slug: str) -> Response:
    """Return what a type of problem means and what to do, with an example, as a page or as JSON."""
    language, type_ = languages.wanted(), problem_types().get(slug)
    if type_ is None:
        raise NotFoundError("There is no type of problem with this name.")
    document = _document(type_, language)
    if _wants_json():
        return _answer(jsonify(document), language)
    example = dumps(document["example"], indent=2)
    return _page("problems/type.html", language, problem=document, example=example)


def _document(type_: ProblemType, language: str) -> dict[str, Any]:
    return {
        "type": type_.uri,
        "title": languages.say(type_.title, language),
        "status": type_.status,
        "meaning": languages.say(type_.meaning, language),
        "remedy": languages.say(type_.remedy, language),
        "example": said(type_.example(), language),
    }


def _wants_json() -> bool:
    return request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json"


def _page(name: str, language: str, **values: Any) -> Response:
    say = partial(languages.say, language=language)
    page = render_template(name, _=say, code=with_code, language=language, style=Markup(STYLE), **values)  # noqa: S704 - a file of ours
    response = make_response(page)
    response.headers["Content-Security-Policy"] = POLICY
    return _answer(response, language)


def _answer(response: Response, language: str) -> Response:
    response.vary.add("Accept")
    return in_language(response, language)


def with_code(text: str) -> Markup:
    """Return a text as HTML, with what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    parts[1::2] = [Markup("<code>{}</code>").format(part) for part in parts[1::2]]
    return Markup("").join(parts)
