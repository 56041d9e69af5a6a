"""Packages: what is sold."""

from typing import Annotated

from flask import Response, url_for
from flask_openapi3 import APIBlueprint
from pydantic import Field

from billing import packages
from billing.documents import package_document
from web.access import Access, open_to
from web.conditions import conditional, shown, unchanged, versioned
from web.context import transaction
from web.idempotency import idempotent
from web.openapi import problems, tag
from web.paging import Page, PageQuery, page, read_cursor
from web.schemas import (
    FROM_TEXT,
    LEFT_OUT,
    BodyModel,
    Currency,
    NewStatus,
    PackageAnswer,
    PackageList,
    PackagePath,
    PeriodName,
    PriceMinor,
    Status,
    Text,
)

LIST = "packages"

blueprint = APIBlueprint(
    "packages", __name__, url_prefix="/api/v1/packages", abp_tags=[tag("Packages", "What is sold.")]
)


class NewPackage(BodyModel):
    """A package to be sold. Its period and currency never change."""

    name: Text
    period: PeriodName
    price_minor: Annotated[PriceMinor, Field(description="In minor units, such as kuruş.")]
    currency: Annotated[Currency, Field(description="ISO 4217.")]


class PackageChanges(BodyModel):
    """The fields to change; a package with status 0 cannot be newly taken."""

    name: Text = LEFT_OUT
    price_minor: PriceMinor = LEFT_OUT
    status: NewStatus = LEFT_OUT


class PackageQuery(PageQuery):
    """Which packages are wanted."""

    status: Annotated[Status, FROM_TEXT] | None = Field(
        None, description="Only packages that stand so: 1 = can be taken, 0 = withdrawn."
    )


@blueprint.get("", summary="List packages", responses={200: PackageList})
@open_to(Access.PUBLIC)
def list_packages(query: PackageQuery) -> Page:
    """Return the packages by id, those that are withdrawn too."""
    after_id = read_cursor(query.cursor, of=LIST) if query.cursor is not None else 0
    with transaction() as session:
        rows = packages.list_packages(session, status=query.status, after_id=after_id, limit=query.limit + 1)
    return page(rows, limit=query.limit, of=LIST, document=package_document, place=lambda row: row.id)


@blueprint.get(
    "/<id>", summary="Get a package", responses={200: PackageAnswer, **problems(s404="No such package")}
)
@open_to(Access.PUBLIC)
@conditional
def get_package(path: PackagePath) -> Response:
    """Return one package."""
    with transaction() as session:
        package = packages.find(session, path.id)
    return shown(package_document(package), public=True)


@blueprint.post("", summary="Create a package", responses={201: PackageAnswer})
@open_to(Access.OPERATOR)
@idempotent()
@conditional
def create_package(body: NewPackage) -> Response:
    """Offer a new package."""
    with transaction() as session:
        package = packages.create(session, **body.model_dump())
    response = versioned(package_document(package), status=201)
    response.location = url_for(".get_package", id=package.id)
    return response


@blueprint.patch(
    "/<id>", summary="Change a package", responses={200: PackageAnswer, **problems(s404="No such package")}
)
@open_to(Access.OPERATOR)
@conditional
def change_package(path: PackagePath, body: PackageChanges) -> Response:
    """Change name, price or status. A price holds for the periods that open from now on."""
    with transaction() as session:
        package = packages.change(
            session,
            path.id,
            body.model_dump(exclude_unset=True),
            check=unchanged(package_document),
        )
    return versioned(package_document(package))
