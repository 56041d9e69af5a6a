"""Each operation, parameter, field and answer is described, with an example that its schema takes."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from openapi_schema_validator import OAS31Validator, oas31_format_checker

from tests.api import DescribedClient, description
from web.examples import ANSWERS, PARAMETERS, PARAMETERS_OF, REFUSALS, SCHEMAS, operations, schema_name
from web.glossary import WORDS
from web.links import LINKS

Document = dict[str, Any]

UNKNOWN = "This field is unknown."


@pytest.fixture(scope="module")
def document(shared_app: Flask) -> Document:
    return description(shared_app)


@pytest.fixture(scope="module")
def by_name(document: Document) -> dict[str, Document]:
    return {operation["operationId"]: operation for operation in operations(document)}


def contents(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield each body that an operation takes or answers with: where it stands, and its media type object."""
    for operation in operations(document):
        name = operation["operationId"]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            yield f"{name} takes", content
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                yield f"{name} answers {status}", content


def examples(content: Document) -> list[Any]:
    if "examples" in content:
        return [example["value"] for example in content["examples"].values()]
    return [content["example"]] if "example" in content else []


def errors(document: Document, schema: Document, value: Any) -> list[str]:
    whole = {**schema, "components": document["components"]}
    validator = OAS31Validator(whole, format_checker=oas31_format_checker)
    return [error.message for error in validator.iter_errors(value)]


def test_every_body_has_an_example(document: Document) -> None:
    without = [place for place, content in contents(document) if not {"example", "examples"} & content.keys()]

    assert without == [], "web/examples.py has none that fits"


def test_every_example_of_a_body_is_what_its_schema_says(document: Document) -> None:
    wrong = {
        place: found
        for place, content in contents(document)
        for example in examples(content)
        if (found := errors(document, content["schema"], example))
    }

    assert wrong == {}


def test_every_parameter_and_header_has_a_description_and_an_example_that_fits(document: Document) -> None:
    described = {
        f"{operation['operationId']}: {parameter['name']}": parameter
        for operation in operations(document)
        for parameter in operation.get("parameters", [])
    } | document["components"]["headers"]

    assert [name for name, each in described.items() if not each.get("description")] == []
    assert [name for name, each in described.items() if "example" not in each] == []
    wrong = {name: errors(document, each["schema"], each["example"]) for name, each in described.items()}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_every_field_says_what_it_is(document: Document) -> None:
    without = [
        f"{name}.{member}"
        for name, schema in document["components"]["schemas"].items()
        for member, described in schema.get("properties", {}).items()
        if not described.get("description")
    ]

    assert without == [], "web/glossary.py has no words for them"


def test_the_example_of_a_problem_is_one_that_its_operation_has(document: Document) -> None:
    problems = {
        place: example
        for place, content in contents(document)
        if schema_name(content["schema"]).endswith("Problem")
        for example in examples(content)
    }

    assert len(problems) > 100
    for place, problem in problems.items():
        assert place.endswith(f" {problem['status']}"), place
        assert problem["title"], place
        assert problem["detail"].endswith("."), place
        assert ("errors" in problem) is (problem["status"] == 422), place


def test_a_refused_field_is_one_that_its_operation_has_or_has_not(
    document: Document, by_name: dict[str, Document]
) -> None:
    schemas = document["components"]["schemas"]

    for name, operation in by_name.items():
        if "422" not in operation["responses"]:
            continue
        ((media_type, content),) = operation["responses"]["422"]["content"].items()
        assert media_type == "application/problem+json"
        fields = {parameter["name"] for parameter in operation.get("parameters", [])}
        for body in operation.get("requestBody", {}).get("content", {}).values():
            fields |= schemas[schema_name(body["schema"])]["properties"].keys()
        for error in (error for example in examples(content) for error in example["errors"]):
            pointer = error["pointer"].removeprefix("#/")
            # The request as a whole, where a key was used for another one.
            assert pointer == "#" or (pointer in fields) is (error["detail"] != UNKNOWN), name


def test_the_sentences_of_the_examples_are_those_that_are_answered(client: DescribedClient) -> None:
    paths = description(client.application)["paths"]
    login = paths["/api/v1/login"]["post"]["responses"]
    company = paths["/api/v1/companies/me"]["get"]["responses"]

    broken = client.post("/api/v1/login", data="{", content_type="application/json")
    texted = client.post("/api/v1/login", data="{}", content_type="text/plain")
    large = client.post("/api/v1/login", data=" " * 70_000, content_type="application/json")
    empty = client.post("/api/v1/login", json={"password": "correct horse battery"})
    wrong = client.post("/api/v1/login", json=SCHEMAS["LoginBody"])
    missing = client.get("/api/v1/companies/me")

    for response in (broken, texted, large, empty, wrong):
        content = login[str(response.status_code)]["content"]["application/problem+json"]
        assert response.json in examples(content)
    assert missing.json in examples(company["401"]["content"]["application/problem+json"])


def test_no_example_is_left_over(document: Document, by_name: dict[str, Document]) -> None:
    named = {schema_name(content["schema"]) for _, content in contents(document)}
    parameters = {
        (name, parameter["name"])
        for name, operation in by_name.items()
        for parameter in operation.get("parameters", [])
    }
    answers = {(name, status) for name, operation in by_name.items() for status in operation["responses"]}
    schemas = document["components"]["schemas"]
    members = {
        f"{name}.{member}" for name, schema in schemas.items() for member in schema.get("properties", {})
    }
    members |= {f"{operation}.{name}" for operation, name in parameters}

    assert SCHEMAS.keys() - named == set()
    assert PARAMETERS.keys() - {name for _, name in parameters} == set()
    assert PARAMETERS_OF.keys() - parameters == set()
    assert (ANSWERS.keys() | REFUSALS.keys() | LINKS.keys()) - answers == set()
    assert WORDS.keys() - members - {member.rpartition(".")[2] for member in members} == set()


def test_a_link_leads_to_an_operation_and_gives_it_what_it_takes(
    document: Document, by_name: dict[str, Document]
) -> None:
    for links in LINKS.values():
        for name, link in links.items():
            target = by_name[link["operationId"]]
            taken = {parameter["name"]: parameter for parameter in target.get("parameters", [])}
            given = link.get("parameters", {})
            assert name == link["operationId"]
            assert given.keys() <= taken.keys(), name
            assert {each for each, parameter in taken.items() if parameter["required"]} <= given.keys(), name
            if "requestBody" in link:
                (content,) = target["requestBody"]["content"].values()
                schema = document["components"]["schemas"][schema_name(content["schema"])]
                assert set(schema["required"]) <= link["requestBody"].keys() <= schema["properties"].keys()


def test_operations_are_called_after_their_views_and_stay_so(by_name: dict[str, Document]) -> None:
    assert {"register", "logIn", "getCompany", "listPackages", "replayCallback", "readyz"} <= by_name.keys()
    assert all(name.isalnum() and name[0].islower() for name in by_name)


def test_an_answer_has_the_headers_that_are_described(document: Document) -> None:
    for path, operations_ in document["paths"].items():
        for operation in operations_.values():
            for status, answer in operation["responses"].items():
                expected = {"X-Request-Id"}
                if status == "401":
                    expected.add("WWW-Authenticate")
                if status == "429" or (status == "503" and path != "/readyz"):
                    expected.add("Retry-After")
                assert expected <= answer["headers"].keys(), (path, status)
