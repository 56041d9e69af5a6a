"""Problems in Turkish: for whom, in which words, and that none is missing."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po
from flask import Flask
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import OperationalError

from billing import companies
from billing.errors import RateLimitError, VadeError
from config import PROJECT_DIR
from sentences import Sentence, unsaid
from tests.api import DescribedClient, assert_problem, registration
from tests.world import World
from translations.__main__ import OTHERS, TEMPLATE, extract, missing, template_text
from web import languages, refusals
from web.problem_types import family
from web.schemas import BodyModel

TURKISH = {"Accept-Language": "tr"}


# The catalogues ---------------------------------------------------------------------------------------------


def catalogue(language: str) -> Catalog:
    with languages.path_of(language).open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def test_the_template_is_as_the_code_makes_it() -> None:
    assert TEMPLATE.read_bytes() == template_text(), "messages.pot is stale: run make messages"


@pytest.mark.parametrize("language", OTHERS)
def test_a_catalogue_has_every_text_of_the_code_and_no_other(language: str) -> None:
    kept = catalogue(language)

    assert {message.id for message in kept} == {message.id for message in extract()}
    assert missing(kept) == []
    assert not kept.obsolete


VALUES_AND_WORDS = [r"%\(\w+\)s|%%", r"`[^`]*`", r"\b\d\d\d\b", r"\b[A-Z]+_[A-Z_]+\b", r"RFC \d+"]
"""What a translation has as it is: values, words of the contract, statuses, settings, sources."""


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_values_and_words_of_the_contract_and_ends_likewise(language: str) -> None:
    for text, said in languages.catalogue(language).items():
        for pattern in VALUES_AND_WORDS:
            assert sorted(re.findall(pattern, said)) == sorted(re.findall(pattern, text)), text
        assert said.endswith(".") == text.endswith("."), text
        assert said[0].isupper() or said[0] in "%`" or said[0].isdigit(), text
        assert said == " ".join(said.split()), text


def test_no_text_of_a_problem_is_put_together_where_it_is_raised() -> None:
    names = {error.__name__ for error in family()} | {"Sentence", "BadRequest", "UnsupportedMediaType"}
    names |= {"RequestEntityTooLarge"}

    for folder in ("billing", "web", "blueprints"):
        for path in Path(PROJECT_DIR / folder).rglob("*.py"):
            for call in (
                node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
            ):
                if isinstance(call.func, ast.Name) and call.func.id in names:
                    glued = [arg for arg in call.args if isinstance(arg, (ast.JoinedStr, ast.BinOp))]
                    assert not glued, f"{path}:{call.lineno}: values are named, as %(name)s"


def test_what_werkzeug_refuses_in_our_words_is_a_sentence() -> None:
    raised = re.findall(
        r"(?:BadRequest|TooLarge|MediaType|NotAcceptable|Conflict|Precondition\w*)\(([^)\s])",
        "".join(path.read_text() for path in Path(PROJECT_DIR / "web").rglob("*.py")),
    )

    assert raised
    assert set(raised) == {"S"}


# Which language ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("tr", "tr"),
        ("TR", "tr"),
        ("tr-TR", "tr"),
        ("tr-Latn-CY", "tr"),
        ("tr-TR,tr;q=0.9,en-US;q=0.8,en;q=0.7", "tr"),
        ("en-US,en;q=0.9,tr;q=0.8", "en"),
        ("tr-TR,en;q=0.9", "tr"),
        ("en;q=0.1,tr-TR;q=0.2", "tr"),
        ("en-GB;q=0.2,tr;q=0.1", "en"),
        ("de,tr;q=0.1", "tr"),
        ("de,fr;q=0.5", "en"),
        ("tr;q=0", "en"),
        ("tr;q=0,en", "en"),
        ("*", "en"),
        ("*,tr;q=0.1", "tr"),
        ("trv", "en"),
        ("t", "en"),
        ("tr;q=x", "en"),
        (";;,,=", "en"),
        ("şğ", "en"),
        ("tr" * 4000, "en"),
    ],
)
def test_the_language_is_the_one_that_is_liked_best(
    client: DescribedClient, accepted: str | None, language: str
) -> None:
    headers = {} if accepted is None else {"Accept-Language": accepted.encode().decode("latin-1")}

    response = client.get("/api/v1/nothing", headers=headers)

    problem = assert_problem(response, 404)
    assert response.headers["Content-Language"] == language
    assert problem["title"] == {"en": "Not found", "tr": "Bulunamadı"}[language]


def test_what_is_no_problem_is_the_same_in_every_language(client: DescribedClient) -> None:
    english, turkish = client.get("/api/v1/packages"), client.get("/api/v1/packages", headers=TURKISH)

    assert english.json == turkish.json
    assert "Content-Language" not in turkish.headers


def test_who_reads_english_costs_no_catalogue() -> None:
    program = """
import sys
from wsgi import create_app
client = create_app().test_client()
for accepted, loaded in (("en", False), ("tr", True)):
    assert client.get("/nothing", headers={"Accept-Language": accepted}).status_code == 404
    assert ("babel.messages.pofile" in sys.modules) is loaded, accepted
"""
    environment = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "JWT_SECRET_KEY": "x" * 32}

    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_DIR, env=environment, check=False)

    assert done.returncode == 0


# In which words ---------------------------------------------------------------------------------------------


def errors(response: Any) -> dict[str, str]:
    return {error["pointer"]: error["detail"] for error in response.json["errors"]}


def test_refused_fields_are_told_in_turkish(client: DescribedClient) -> None:
    body = registration(name="", email="gul", password="short", more=1)
    del body["lastname"]

    response = client.post("/api/v1/register", json=body, headers=TURKISH)

    pointers = ["#/email", "#/lastname", "#/more", "#/name", "#/password"]
    problem = assert_problem(response, 422, pointers=pointers)
    assert (problem["title"], problem["detail"]) == (
        "Doğrulama hatası",
        "İstek geçerli değildir: errors alanına bakın.",
    )
    assert errors(response) == {
        "#/email": "Bu bir e-posta adresi değildir.",
        "#/lastname": "Bu alan eksiktir.",
        "#/more": "Bu alan bilinmiyor.",
        "#/name": "Metin en az 1 karakter olmalıdır.",
        "#/password": "Metin en az 8 karakter olmalıdır.",
    }


def test_refused_fields_are_told_in_english_as_ever(client: DescribedClient, world: World) -> None:
    body = {"name": "", "period": "weekly", "price_minor": -1, "currency": "TL"}

    response = client.post("/api/v1/packages", json=body, headers=world.operator())

    assert errors(response) == {
        "#/name": "String should have at least 1 character.",
        "#/period": "Input should be 'monthly' or 'yearly'.",
        "#/price_minor": "Input should be greater than or equal to 0.",
        "#/currency": "A currency is three capital letters, such as TRY.",
    }


def test_values_are_told_as_they_are(client: DescribedClient, world: World) -> None:
    body = {"name": "x", "period": "weekly", "price_minor": 2**62, "currency": "TRY"}
    operator = world.operator() | TURKISH

    created = client.post("/api/v1/packages", json=body, headers=operator)
    listed = client.get("/api/v1/callbacks", query_string={"since": "%(x)s %d"}, headers=operator)

    assert errors(created)["#/period"] == "Değer şunlardan biri olmalıdır: 'monthly', 'yearly'."
    assert re.fullmatch(r"Değer en fazla \d+ olmalıdır\.", errors(created)["#/price_minor"])
    assert errors(listed) == {
        "#/since": "2026-01-31T00:00:00Z gibi bir RFC 3339 anı beklenir; '%(x)s %d' böyle değildir."
    }


def test_a_callback_url_is_refused_in_turkish(client: DescribedClient, world: World) -> None:
    headers = world.token(world.company()) | TURKISH

    for url, detail in (
        ("http://hooks.example:22/", "Port; 80, 443 veya en az 1024 olmalıdır."),
        ("http://a:b@hooks.example/", "URL, kullanıcı adı veya parola içermemelidir."),
        ("gul", "Bu bir http veya https URL'si değildir."),
    ):
        response = client.patch("/api/v1/companies/me", json={"callback_url": url}, headers=headers)
        assert_problem(response, 422, pointers=["#/callback_url"])
        assert errors(response) == {"#/callback_url": detail}


def test_what_the_business_refuses_is_told_in_turkish(client: DescribedClient, world: World) -> None:
    company = world.company()
    package = world.package()
    body = {"company_id": company.id, "package_id": package.id}
    headers = world.token(company) | TURKISH

    client.post("/api/v1/company-packages", json=body, headers=headers)
    again = client.post("/api/v1/company-packages", json=body, headers=headers)
    other = client.post("/api/v1/company-packages", json=body | {"company_id": 10**9}, headers=headers)

    assert assert_problem(again, 409, "package-open")["detail"] == "Şirketin zaten açık bir paketi vardır."
    assert assert_problem(other, 403)["detail"] == "Bir şirket yalnızca kendisi için paket alabilir."


@pytest.mark.parametrize(
    ("call", "status", "detail"),
    [
        (("GET", "/api/v1/companies/me", None), 401, "Token eksiktir, süresi dolmuştur veya geçersizdir."),
        (("GET", "/api/v1/packages/999999", None), 404, "Bu id ile bir paket yoktur."),
        (("DELETE", "/healthz", None), 405, "Bu adres bu yönteme yanıt vermez."),
        (("POST", "/api/v1/login", "{"), 400, "Gövde geçerli bir JSON değildir."),
        (("POST", "/api/v1/login", "[" * 30_000), 400, "Gövde fazla derin iç içe geçmiştir."),
        (("POST", "/api/v1/login", "[]"), 422, "İstek geçerli değildir: errors alanına bakın."),
        (("POST", "/api/v1/login", " " * 70_000), 413, "Gövde en fazla 64 KiB olabilir."),
    ],
)
def test_what_http_refuses_is_told_in_turkish(
    client: DescribedClient, call: tuple[str, str, str | None], status: int, detail: str
) -> None:
    method, path, body = call

    response = client.open(
        path, method=method, data=body, headers=TURKISH, content_type="application/json" if body else None
    )

    problem = assert_problem(response, status, pointers=["#"] if status == 422 else [])
    assert problem["detail"] == detail
    assert response.headers["Content-Language"] == "tr"


def test_what_is_sent_as_something_else_is_refused_in_turkish(client: DescribedClient) -> None:
    response = client.post("/api/v1/login", data="{}", content_type="text/plain", headers=TURKISH)

    assert assert_problem(response, 415)["detail"] == "Gövde application/json olmalıdır."


def test_a_file_that_is_asked_for_in_part_is_refused_in_turkish(client: DescribedClient) -> None:
    headers = {"Range": "bytes=99999999-"} | TURKISH

    response = client.get("/docs/assets/css/swagger-ui.css", headers=headers)

    problem = assert_problem(response, 416, "requested-range-not-satisfiable")
    assert problem["detail"] == "Dosyada istenen aralık yoktur."


def raising(error: Exception) -> Any:
    def fail(*_arguments: Any, **_values: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (ZeroDivisionError("x"), 500, "Bizim tarafımızda bir hata oluştu."),
        (
            OperationalError("", None, Exception("gone")),
            503,
            "Veritabanı yanıt vermiyor: birazdan yeniden deneyin.",
        ),
        (RateLimitError(7), 429, "Çok fazla istek gönderildi: daha sonra yeniden deneyin."),
    ],
)
def test_what_fails_is_told_in_turkish(
    client: DescribedClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, detail: str
) -> None:
    monkeypatch.setattr(companies, "check_login", raising(error))

    body = {"email": "gul@cicek.example", "password": "x"}
    response = client.post("/api/v1/login", json=body, headers=TURKISH)

    slug = "database-unavailable" if status == 503 else None
    assert assert_problem(response, status, slug)["detail"] == detail


def test_a_text_without_a_translation_is_told_in_english(
    client: DescribedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "catalogue", lambda _language: {"Not found": "Bulunamadı"})

    problem = assert_problem(client.get("/api/v1/nothing", headers=TURKISH), 404)

    assert (problem["title"], problem["detail"]) == ("Bulunamadı", "There is nothing at this address.")


def test_what_a_translator_has_not_done_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "CATALOGUES", tmp_path)
    languages.path_of("tr").parent.mkdir(parents=True)
    texts = [
        'msgid "Type"\nmsgstr "Tür"',
        'msgid "Status"\nmsgstr ""',
        '#, fuzzy\nmsgid "Problem"\nmsgstr "Sorun"',
    ]
    languages.path_of("tr").write_text("\n\n".join(texts))

    assert languages.catalogue.__wrapped__("tr") == {"Type": "Tür"}


def test_a_sentence_is_its_english_text_and_knows_its_values() -> None:
    sentence = Sentence("%(most)s of 100 %%", most=7)

    assert (sentence, json.dumps(sentence)) == ("7 of 100 %", '"7 of 100 %"')
    assert unsaid(sentence) == ("%(most)s of 100 %%", {"most": 7})
    assert unsaid("100 %") == ("100 %", {})


def test_an_error_names_its_values() -> None:
    error = VadeError("No job has the id %(id)s.", id=7)

    assert (error.detail, str(error)) == ("No job has the id 7.", "No job has the id 7.")
    assert unsaid(error.detail) == ("No job has the id %(id)s.", {"id": 7})


# Fields -----------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    *(None, True, 7, 0, -1, 1.5, 1e300, float("inf"), 10**30, 2**63, [], [1], {}, {"a": 1}),
    *(
        "",
        " ",
        "x",
        "x" * 3000,
        "a\0b",
        "\ud800",
        "1.5",
        "7",
        "-1",
        "9" * 30,
        "TL",
        "2026-02-10",
        "2026-13-01",
    ),
    *(
        "2026-02-10T00:00:00",
        "2026-02-10T00:00:00Z",
        "1969-02-10T00:00:00Z",
        "true",
        "ftp://x",
        "http://x:99999",
    ),
    *("https://" + "ş" * 1000 + ".example", "https://x.example/" + "ş" * 1000, "gul@", "gül@x.example"),
]
"""What may come for a field of a body: some of it is wrong for every type of field."""

TEXTS = [value for value in VALUES if isinstance(value, str)]
"""What may come in a path or a query."""


def models(app: Flask) -> dict[str, type[BaseModel]]:
    """Every model by which a body, a path or a query is read."""
    found = {}
    for view in app.view_functions.values():
        for parameter in signature(view, eval_str=True).parameters.values():
            if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, BaseModel):
                found[parameter.annotation.__name__] = parameter.annotation
    return found


def refused(model: type[BaseModel], values: dict[str, Any]) -> Iterator[Any]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        yield from error.errors(include_url=False)


def test_every_reason_for_which_a_field_can_be_refused_has_its_turkish(app: Flask) -> None:
    known = languages.catalogue("tr")
    kinds: set[str] = set()
    lacking: set[str] = set()

    for name, model in models(app).items():
        names = {field.alias or key for key, field in model.model_fields.items()}
        values = VALUES if issubclass(model, BodyModel) else TEXTS
        tried: list[dict[str, Any]] = [
            {},
            {"more": 1},
            *({field: value} for field in names for value in values),
        ]
        for fields in tried:
            for error in refused(model, fields):
                kinds.add(error["type"])
                if unsaid(refusals.reason(error))[0] not in known:
                    lacking.add(f"{name}: {error['type']}: {error['msg']}")

    assert not lacking
    assert {
        "missing",
        "extra_forbidden",
        "int_type",
        "string_too_long",
        "literal_error",
        "uuid_parsing",
    } <= kinds
    assert {"value_error", "greater_than_equal", "less_than_equal", "string_unicode"} <= kinds
