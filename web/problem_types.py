"""Every type of problem (RFC 9457) that the API answers with: what it means, and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from billing.errors import InvalidFieldError, NotFoundError, VadeError


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A type: its status, its slug in ``/problems/<slug>``, and its texts. ``detail`` is the usual one."""

    status: int
    slug: str
    title: str
    detail: str
    meaning: str
    remedy: str

    @property
    def uri(self) -> str:
        """The ``type`` of a problem document."""
        return f"/problems/{self.slug}"

    def example(self) -> dict[str, Any]:
        """Return a problem document of this type."""
        document: dict[str, Any] = {
            "type": self.uri,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.slug == InvalidFieldError.slug:
            document["errors"] = [{"pointer": "#/email", "detail": "This field is missing."}]
        return document


def _of_error(error: type[VadeError]) -> ProblemType:
    return ProblemType(error.status, error.slug, error.title, error.message(), error.meaning, error.remedy)


OF_HTTP = {
    400: ProblemType(
        status=400,
        slug="bad-request",
        title="Bad request",
        detail="The request cannot be read.",
        meaning="The request cannot be read, or its body is no valid JSON (RFC 8259).",
        remedy="Send one JSON object in UTF-8, without comments, `NaN` or a comma at the end of a list.",
    ),
    404: replace(_of_error(NotFoundError), detail="There is nothing at this address."),
    405: ProblemType(
        status=405,
        slug="method-not-allowed",
        title="Method not allowed",
        detail="This address does not answer to this method.",
        meaning="There is something at this address, but it answers to other methods.",
        remedy="Use one of the methods that `Allow` names.",
    ),
    413: ProblemType(
        status=413,
        slug="request-entity-too-large",
        title="Request entity too large",
        detail="The body is too large.",
        meaning="The body is larger than any that the API has a use for.",
        remedy="Send a body of 64 KiB at most.",
    ),
    415: ProblemType(
        status=415,
        slug="unsupported-media-type",
        title="Unsupported media type",
        detail="The body must be application/json.",
        meaning="A body has to be JSON, and to say so.",
        remedy="Send the header `Content-Type: application/json`.",
    ),
    416: ProblemType(
        status=416,
        slug="requested-range-not-satisfiable",
        title="Requested range not satisfiable",
        detail="The file does not have the range that was asked for.",
        meaning="The header `Range` asks for a part that the file does not have.",
        remedy="Leave out `Range`, and the whole file is sent.",
    ),
}
"""Refusals that are Werkzeug's, by status."""

INTERNAL_ERROR = ProblemType(
    status=500,
    slug="internal-error",
    title="Internal server error",
    detail="Something went wrong on our side.",
    meaning="There is a fault in Vade. Nothing of the request was stored; the log has the cause.",
    remedy="Try again later. Where it comes back, tell whoever runs Vade the `X-Request-Id` of the answer.",
)
DATABASE_UNAVAILABLE = ProblemType(
    status=503,
    slug="database-unavailable",
    title="Service unavailable",
    detail="The database does not answer: try again soon.",
    meaning="The database cannot be reached, or cannot take more work at the moment.",
    remedy=(
        "Wait for as many seconds as `Retry-After` says, and send the request again. Where something was to "
        "be changed, look first whether it was."
    ),
)


@cache
def problem_types() -> dict[str, ProblemType]:
    """Return every type by its slug, in the order of status and slug.

    They are those of the family of `VadeError`, as far as it is loaded, and those above.
    """
    types = {error.slug: _of_error(error) for error in family()}
    types |= {type_.slug: type_ for type_ in (*OF_HTTP.values(), INTERNAL_ERROR, DATABASE_UNAVAILABLE)}
    return dict(sorted(types.items(), key=lambda item: (item[1].status, item[0])))


def of_status(status: int) -> ProblemType:
    """Return the type of an error that says no more than its status; others are taken for 400 or 500."""
    return OF_HTTP.get(status, OF_HTTP[400] if status < 500 else INTERNAL_ERROR)


def family(parent: type[VadeError] = VadeError) -> Iterator[type[VadeError]]:
    """Yield each error that is a `VadeError`; one that refines a type comes before that type."""
    for error in parent.__subclasses__():
        yield from family(error)
        yield error
