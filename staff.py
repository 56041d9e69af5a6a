"""`flask operator`: who of the platform's may call the API, in which role, and by which tokens."""

import sys
from datetime import datetime, timedelta

import click
from flask.cli import AppGroup
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from billing import operators
from billing.clock import Clock
from billing.documents import instant_text
from models import BIGINT_MAX, Operator, OperatorToken, Role, db
from terminal import in_sentences
from web.access import operator_token

operator = AppGroup(
    "operator", help="Operators: who may act for the platform, in which role, by which tokens."
)

ROLES = click.Choice([str(role) for role in Role])


@operator.command("add")
@click.argument("name")
@click.option("--role", type=ROLES, default=Role.READ.value, show_default=True, help="What they may do.")
@in_sentences
def add_command(name: str, role: str) -> None:
    """Make an operator, who gets tokens by `flask operator token NAME`."""
    with Session(db.engine) as session:
        operators.add(session, name, Role(role), now=Clock().read(session).real)
        session.commit()
    click.echo(f"{name} is an operator of the role {role}.")


@operator.command("list")
@in_sentences
def list_command() -> None:
    """List the operators."""
    with Session(db.engine) as session:
        found = operators.list_all(session, now=Clock().read(session).real)
    if not found:
        click.echo("There is no operator yet: flask operator add NAME.")
        return
    table = Table("name", "role", "since", "good tokens", "state")
    for each, tokens in found:
        since = _second(each.created_at)
        table.add_row(each.name, each.role, since, str(tokens), _state("disabled", each.disabled_at))
    _print(table)


@operator.command("role")
@click.argument("name")
@click.argument("role", type=ROLES)
@in_sentences
def role_command(name: str, role: str) -> None:
    """Give an operator another role, which holds from the next request on, with every token."""
    with Session(db.engine) as session:
        operators.find(session, name).role = role
        session.commit()
    click.echo(f"{name} has the role {role}.")


@operator.command("disable")
@click.argument("name")
@in_sentences
def disable_command(name: str) -> None:
    """Let none of an operator's tokens be good any more, until they are enabled again."""
    with Session(db.engine) as session:
        found = operators.find(session, name)
        found.disabled_at = found.disabled_at or Clock().read(session).real
        session.commit()
    click.echo(f"{name} is disabled.")


@operator.command("enable")
@click.argument("name")
@in_sentences
def enable_command(name: str) -> None:
    """Let an operator's tokens be good again that were not revoked."""
    with Session(db.engine) as session:
        operators.find(session, name).disabled_at = None
        session.commit()
    click.echo(f"{name} is enabled.")


@operator.command("token")
@click.argument("name", required=False)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=30, show_default=True, help="How long it lives."
)
@click.option("--role", type=ROLES, help="Without a name: for an operator of this role.  [default: admin]")
@in_sentences
def token_command(name: str | None, days: int, role: str | None) -> None:
    """Print a token for an operator; without NAME for one that is named after the role.

    That one is made where there is none.
    """
    if name is not None and role is not None:
        raise click.UsageError(f"The role is the operator's: flask operator role {name} {role}.")
    lifetime = timedelta(days=days)
    with Session(db.engine, expire_on_commit=False) as session:
        now = Clock().read(session).real
        whose = (
            operators.obtain(session, Role(role or Role.ADMIN), now=now)
            if name is None
            else operators.find(session, name)
        )
        given = operators.give_token(session, whose, lifetime=lifetime, now=now)
        session.commit()
    click.echo(operator_token(given.id, lifetime))
    told = f"Token {given.id} of {whose.name} ({whose.role}), until {instant_text(given.expires_at)}."
    click.echo(told, err=True)


@operator.command("tokens")
@click.argument("name", required=False)
@in_sentences
def tokens_command(name: str | None) -> None:
    """List by id what tokens were given, to all operators or to one, newest first."""
    with Session(db.engine) as session:
        found = operators.list_tokens(session, name)
        now = Clock().read(session).real
    if not found:
        click.echo("No token was given.")
        return
    table = Table("id", "operator", "given", "expires", "state")
    for token, whose in found:
        times = (_second(token.created_at), _second(token.expires_at))
        table.add_row(str(token.id), whose.name, *times, _token_state(token, whose, now))
    _print(table)


@operator.command("revoke")
@click.argument("id", type=click.IntRange(1, BIGINT_MAX), required=False)
@click.option("--all", "name", metavar="NAME", help="Every token of an operator.")
@in_sentences
def revoke_command(id: int | None, name: str | None) -> None:  # noqa: A002 - the argument's name
    """Revoke a token by its id, or all of an operator's: none of them opens anything more."""
    if (id is None) == (name is None):
        raise click.UsageError("Say which: flask operator revoke ID, or flask operator revoke --all NAME.")
    with Session(db.engine) as session:
        now = Clock().read(session).real
        if id is not None:
            revoked = operators.revoke(session, id, now=now)
            told = f"Token {id} is revoked." if revoked else f"Token {id} was revoked already."
        else:
            number = operators.revoke_all(session, str(name), now=now)
            told = f"{number} {'token' if number == 1 else 'tokens'} of {name} revoked."
        session.commit()
    click.echo(told)


def _token_state(token: OperatorToken, whose: Operator, now: datetime) -> str:
    if token.revoked_at is not None:
        return _state("revoked", token.revoked_at)
    if token.expires_at <= now:
        return "expired"
    return _state("disabled", whose.disabled_at)


def _state(word: str, since: datetime | None) -> str:
    return "good" if since is None else f"{word} since {_second(since)}"


def _second(instant: datetime) -> str:
    return instant_text(instant.replace(microsecond=0))


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 160).print(table)
