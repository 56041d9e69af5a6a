"""What receivers are told that they are sent: every type has a schema, an example, and its place in OpenAPI.

That every message which is really written is as described is checked by `tests.webhooks` for all tests.
"""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from config import PROJECT_DIR
from tests.conftest import settings_for
from tests.webhooks import assert_described_message
from web.webhooks import EVENTS, message_schemas
from wsgi import create_app

OPERATIONAL = {"callback_endpoint.disabled", "report.daily", "ping"}
CHANGES = sorted(set(EVENTS) - OPERATIONAL)


def contract() -> set[str]:
    """The types of messages that DESIGN.md §6 names, and the operational ones."""
    section = (PROJECT_DIR / "docs/DESIGN.md").read_text().partition("### 6. Callbacks")[2]
    listed = re.search(r"Types:\s+((?:`[a-z_.]+`,?\s+)*`[a-z_.]+`)\.", section)
    assert listed
    return set(re.findall(r"`([a-z_.]+)`", listed[1])) | OPERATIONAL


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The answer to GET /openapi.json, for which no database is asked."""
    app = create_app(settings_for("postgresql://127.0.0.1:1/none", tmp_path_factory.mktemp("instance")))
    return json.loads(app.test_client().get("/openapi.json").data)


def altered(message: dict[str, Any], path: str, value: Any) -> str:
    """The text of a message with another value at a dotted path."""
    message = copy.deepcopy(message)
    *parents, last = path.split(".")
    place = message
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(message)


def objects(value: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all objects in a message but the outermost."""
    if isinstance(value, dict):
        for name, member in value.items():
            if isinstance(member, dict):
                yield f"{path}{name}"
            yield from objects(member, f"{path}{name}.")


def test_the_contracts_types_are_described_and_no_others(document: Any) -> None:
    assert set(EVENTS) == contract() == set(document["webhooks"])


def test_the_description_with_its_webhooks_is_valid_openapi_3_1(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()


@pytest.mark.parametrize("type_", sorted(EVENTS))
def test_every_type_has_a_schema_and_an_example_that_fits_it(document: Any, type_: str) -> None:
    content = document["webhooks"][type_]["post"]["requestBody"]["content"]["application/json"]

    name = content["schema"]["$ref"].removeprefix("#/components/schemas/")
    assert document["components"]["schemas"][name]["properties"]["type"]["const"] == type_
    assert "Ignore members that you do not know" in document["components"]["schemas"][name]["description"]
    assert content["example"] == EVENTS[type_].message()
    assert content["example"]["type"] == type_
    assert_described_message(json.dumps(content["example"]))


@pytest.mark.parametrize("type_", sorted(EVENTS))
def test_every_type_says_when_it_is_sent_how_it_is_signed_and_what_answers_mean(
    document: Any, type_: str
) -> None:
    operation = document["webhooks"][type_]["post"]

    assert operation["summary"]
    assert operation["description"].endswith(".")
    assert operation["security"] == []
    assert [(p["in"], p["name"], p["required"]) for p in operation["parameters"]] == [
        ("header", name, True) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    ]
    assert {"2XX", "410", "429", "503"} <= set(operation["responses"])
    for status in ("429", "503"):
        assert "Retry-After" in operation["responses"][status]["headers"]


def test_names_are_unique_and_shared_schemas_are_the_apis_own(document: Any) -> None:
    named = [*document["paths"].values(), *document["webhooks"].values()]
    ids = [operation["operationId"] for operations in named for operation in operations.values()]
    assert len(set(ids)) == len(ids)

    described = document["components"]["schemas"]
    for name, schema in message_schemas().items():
        assert described[name]["properties"].keys() == schema["properties"].keys(), name
        assert set(described[name].get("required", [])) == set(schema.get("required", [])), name


@pytest.mark.parametrize("type_", CHANGES)
def test_a_change_has_a_number_and_what_was_before(type_: str) -> None:
    example = copy.deepcopy(EVENTS[type_].message())

    assert list(example["data"])[-2:] == ["sequence", "previous"]
    for wrong in (0, "1", None, True):
        with pytest.raises(AssertionError, match="sequence"):
            assert_described_message(altered(example, "data.sequence", wrong))
    del example["data"]["previous"]
    with pytest.raises(AssertionError, match="previous"):
        assert_described_message(json.dumps(example))


@pytest.mark.parametrize("type_", sorted(OPERATIONAL))
def test_what_is_no_change_has_no_number(type_: str) -> None:
    with pytest.raises(AssertionError, match="sequence"):
        assert_described_message(altered(EVENTS[type_].message(), "data.sequence", 1))


@pytest.mark.parametrize("type_", sorted(EVENTS))
def test_a_member_that_is_not_described_is_found_wherever_it_is(type_: str) -> None:
    example = EVENTS[type_].message()

    with pytest.raises(AssertionError, match="password_hash"):
        assert_described_message(altered(example, "password_hash", "x"))
    for path in objects(example):
        with pytest.raises(AssertionError, match="password_hash"):
            assert_described_message(altered(example, f"{path}.password_hash", "x"))


@pytest.mark.parametrize(
    ("type_", "path", "value"),
    [
        ("company.registered", "timestamp", "2026-12-24 09:00"),
        ("company.registered", "data.company.registered_at", "2026-12-24"),
        ("company.registered", "data.company.status", 2),
        ("company.registered", "data.previous.company", {}),
        ("company.activated", "data.previous.company.status", 1),
        ("company.updated", "data.previous.company", {}),
        ("company.passivated", "data.previous.company.status", 0),
        ("company_package.assigned", "data.company_package.start_date", "24.12.2026"),
        ("company_package.renewed", "data.previous.company_package.end_date", None),
        ("payment.succeeded", "data.previous.company", {"status": 1}),
        ("payment.declined", "data.payment.id", "one"),
        ("callback_endpoint.disabled", "data.callback_endpoint.reason", "tired"),
        ("ping", "data.callback_endpoint.company_id", 0),
    ],
)
def test_a_wrong_value_is_found(type_: str, path: str, value: Any) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"$.{path.rpartition('.')[0]}".rstrip("."))):
        assert_described_message(altered(EVENTS[type_].message(), path, value))


@pytest.mark.parametrize("type_", ["payment.declined", "company.passivated"])
def test_a_company_that_was_passive_already_was_nothing_else_before(type_: str) -> None:
    assert_described_message(altered(EVENTS[type_].message(), "data.previous", {}))


@pytest.mark.parametrize(
    "body",
    ["[]", "1", "{}", '{"type": null}', '{"type": "company.sold", "timestamp": "", "data": {}}'],
)
def test_what_has_no_known_type_is_no_message(body: str) -> None:
    with pytest.raises(AssertionError, match="is not described"):
        assert_described_message(body)


def test_a_member_twice_is_found() -> None:
    body = json.dumps(EVENTS["ping"].message()).replace('"url":', '"url": "", "url":')

    with pytest.raises(AssertionError, match="a member twice"):
        assert_described_message(body)
