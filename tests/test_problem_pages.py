"""Every problem's type leads to a page that says what it means and what to do."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any, ClassVar

import pytest
from flask import Flask
from werkzeug.exceptions import HTTPException

from blueprints.problem_pages import with_code
from config import PROJECT_DIR
from tests.api import DescribedClient, assert_problem, description
from web import languages
from web.openapi import OF_COMMANDS
from web.problem_types import OF_HTTP, family, of_status, problem_types

SLUGS = sorted(problem_types())
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


class Page(HTMLParser):
    """What a page loads and shows, and whether its elements are closed as they were opened."""

    EMPTY: ClassVar[set[str]] = {"meta", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data))

    def values(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]

    def text_in(self, tag: str) -> str:
        return "".join(text for within, text in self.texts if within == tag)


def assert_page(response: Any, language: str) -> Page:
    """It is HTML in a language, which loads nothing, runs nothing, and has the one style that it may have."""
    assert (response.status_code, response.mimetype) == (200, "text/html")
    assert response.headers["Content-Language"] == language
    assert "accept" in response.vary
    assert "accept-language" in response.vary
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "script" not in policy
    page = Page(response.text)
    digest = base64.b64encode(hashlib.sha256(page.text_in("style").encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert page.tags[0] == ("html", {"lang": language})
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "form", "object"}
    assert not {name for _, attributes in page.tags for name in attributes} & {"style", "src", "onclick"}
    assert all(address.startswith(("/", "data:,")) for address in page.values("href"))
    return page


@pytest.mark.parametrize("language", languages.LANGUAGES)
@pytest.mark.parametrize("slug", SLUGS)
def test_a_type_leads_to_its_page(client: DescribedClient, slug: str, language: str) -> None:
    type_ = problem_types()[slug]
    headers = {"Accept": BROWSER, "Accept-Language": language}

    page = assert_page(client.get(type_.uri, headers=headers), language)
    document = client.get(type_.uri, headers=headers | {"Accept": "application/json"}).json

    assert page.text_in("h1") == document["title"] == languages.say(type_.title, language)
    shown = "".join(text for within, text in page.texts if within in {"p", "code"})
    for text in (document["meaning"], document["remedy"]):
        assert text.replace("`", "") in shown
    assert document["example"]["detail"] in page.text_in("pre")
    assert "`" not in "".join(text for _, text in page.texts)


def test_words_of_the_contract_are_code_and_no_text_is_html() -> None:
    assert with_code("`PATCH` <b> or `<i>`.") == "<code>PATCH</code> &lt;b&gt; or <code>&lt;i&gt;</code>."


@pytest.mark.parametrize("language", languages.LANGUAGES)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("DELETE", "/healthz"), ("GET", "/api/v1/packages?x=1")]
)
def test_the_example_of_a_type_is_such_a_problem(
    client: DescribedClient, method: str, path: str, language: str
) -> None:
    headers = {"Accept": "application/json", "Accept-Language": language}

    answered = client.open(path, method=method, headers=headers).json
    example = client.get(answered["type"], headers=headers).json["example"]

    assert example.keys() == answered.keys()
    example.pop("errors", None), answered.pop("errors", None)
    assert example == answered


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_the_list_has_every_type_and_leads_to_it(client: DescribedClient, language: str) -> None:
    headers = {"Accept": BROWSER, "Accept-Language": language}

    page = assert_page(client.get("/problems", headers=headers), language)
    listed = client.get("/problems", headers=headers | {"Accept": "application/json"}).json

    uris = {type_.uri for type_ in problem_types().values()}
    assert {address for address in page.values("href") if address.startswith("/problems/")} == uris
    assert {entry["type"] for entry in listed["data"]} == uris
    assert listed["next_cursor"] is None


def test_the_description_lists_every_type_that_the_api_answers_with_its_page(app: Flask) -> None:
    text = description(app)["info"]["description"]

    types = {type_.uri for type_ in problem_types().values() if type_.slug not in OF_COMMANDS}
    assert set(re.findall(r"\]\((/problems/[^)]+)\)", text)) == types


def test_what_only_commands_raise_no_view_can(app: Flask) -> None:
    """The API's modules do not call what raises it."""
    for path in (PROJECT_DIR / "blueprints").glob("*.py"):
        text = path.read_text()
        assert "parked_jobs" not in text
        assert "operators." not in text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "text/html"),
        ("*/*", "text/html"),
        (BROWSER, "text/html"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.9", "application/json"),
        ("image/png", "text/html"),
    ],
)
def test_json_is_for_who_asks_for_it(client: DescribedClient, accept: str | None, media_type: str) -> None:
    headers = {} if accept is None else {"Accept": accept}

    for path in ("/problems", "/problems/not-found"):
        assert client.get(path, headers=headers).mimetype == media_type


@pytest.mark.parametrize("slug", ["unknown", "Not-Found", "<script>", "%00", "x" * 5000])
def test_what_is_no_type_is_not_found(client: DescribedClient, slug: str) -> None:
    response = client.get(f"/problems/{slug}", headers={"Accept": BROWSER})

    assert_problem(response, 404)
    assert "script" not in response.text


def test_every_error_has_a_type_of_its_own_and_says_what_it_means_and_what_to_do() -> None:
    own = {"status", "slug", "title", "meaning", "remedy"}

    for error in family():
        assert error.slug != "refused", f"{error.__name__} has no slug"
        for parent in error.__mro__[:1] if "slug" in vars(error) else ():
            assert own <= vars(parent).keys(), f"{error.__name__} lacks {own - vars(parent).keys()}"
    for type_ in problem_types().values():
        assert re.fullmatch(r"[a-z][a-z0-9-]+", type_.slug)
        assert 400 <= type_.status < 600
        assert type_.title == type_.title.capitalize()
        for text in (type_.detail, type_.meaning, type_.remedy):
            assert text[0].isupper() or text[0] == "`"
            assert text.endswith(".")
            assert text.count("`") % 2 == 0


def test_one_type_is_one_thing_whoever_raises_it() -> None:
    for error in family():
        type_ = problem_types()[error.slug]
        assert (error.status, error.title, error.meaning, error.remedy) == (
            type_.status,
            type_.title,
            type_.meaning,
            type_.remedy,
        )


def test_an_error_of_http_that_is_none_of_ours_has_a_type_too() -> None:
    for error in HTTPException.__subclasses__():
        type_ = of_status(error.code or 500)
        assert type_.slug in problem_types()
        assert type_.status == error.code or error.code not in OF_HTTP
