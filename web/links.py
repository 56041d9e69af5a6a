"""OpenAPI's links: what an answer leads to, for readers and for tests that follow them.

What the next request takes from this one is said in runtime expressions (OpenAPI 3.1 §4.8.20.4).
"""

from typing import Any

Link = dict[str, Any]


def _link(operation: str, text: str, *, body: Link | None = None, **parameters: str) -> tuple[str, Link]:
    link: Link = {"operationId": operation, "description": text}
    if parameters:
        link["parameters"] = parameters
    if body is not None:
        link["requestBody"] = body
    return operation, link


_ID = "$response.body#/id"
_NEXT = "$response.body#/next_cursor"

LINKS: dict[tuple[str, str], dict[str, Link]] = {
    key: dict(links)
    for key, links in {
        ("register", "201"): (
            _link(
                "logIn",
                "The first login activates the company.",
                body={"email": "$request.body#/email", "password": "$request.body#/password"},
            ),
            _link(
                "assign",
                "The company takes a package.",
                body={"company_id": "$response.body#/company_id", "package_id": 1},
            ),
        ),
        ("listPackages", "200"): (
            _link("listPackages", "The next page.", cursor=_NEXT),
            _link("getPackage", "The first package of the page.", id="$response.body#/data/0/id"),
        ),
        ("createPackage", "201"): (
            _link("getPackage", "The package that was made.", id=_ID),
            _link("changePackage", "Change it.", id=_ID),
        ),
        ("getPackage", "200"): (_link("changePackage", "Change it.", id=_ID),),
        ("changePackage", "200"): (_link("getPackage", "The package as it is now.", id=_ID),),
        ("assign", "201"): (
            _link("getCurrent", "What the company has now."),
            _link("listPayments", "The attempts to collect, once its period has ended."),
        ),
        ("listPayments", "200"): (_link("listPayments", "The next page.", cursor=_NEXT),),
        ("changeCompany", "200"): (
            _link("getCompany", "The company as it is now."),
            _link("getEndpoint", "Its callback endpoint, where it has one."),
            _link("pingEndpoint", "Try the callback endpoint."),
        ),
        ("listCallbacks", "200"): (
            _link("listCallbacks", "The next page.", cursor=_NEXT),
            _link("getCallback", "The first message of the page.", id="$response.body#/data/0/id"),
            _link("replayCallback", "Send the first message again.", id="$response.body#/data/0/id"),
        ),
        ("getCallback", "200"): (_link("replayCallback", "Send the message again.", id=_ID),),
        ("replayCallback", "202"): (_link("getCallback", "What became of it.", id=_ID),),
        ("pingEndpoint", "200"): (_link("getEndpoint", "How the endpoint fares."),),
        ("rotateSecret", "200"): (_link("getEndpoint", "Until when the former secret signs."),),
    }.items()
}
"""By operation and status; a link is called after the operation that it leads to."""


def add_links(name: str, answers: dict[str, Any]) -> None:
    """Put the links of an operation into its answers."""
    for status, answer in answers.items():
        if (name, status) in LINKS:
            answer["links"] = LINKS[name, status]
