"""The application: ``create_app`` is its table of contents."""

from flask import Flask
from flask_migrate import Migrate
from werkzeug.middleware.proxy_fix import ProxyFix

import cli
import logs
import operations
import report_commands
from billing.callbacks import Outbox
from billing.clock import Clock
from billing.gateways import load_gateway
from billing.keyring import Keyring
from blueprints import (
    callback_endpoint,
    callbacks,
    companies,
    company_packages,
    company_payments,
    docs,
    health,
    metrics,
    packages,
    reports,
    sessions,
)
from config import ConfigError, Settings
from database import engine_options
from models import db
from web import headers, limits
from web.access import guard
from web.context import Vade
from web.exposition import Watch
from web.observation import observe
from web.openapi import make_api
from web.problems import handle_errors

BODY_LIMIT = 64 * 1024
"""The largest request body, in bytes."""


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application for some settings (default: the environment's).

    Raises:
        ConfigError: when a setting is wrong, by name. No database is asked yet.
    """
    settings = settings or Settings.from_env()
    logs.configure(settings)
    app = make_api("vade")
    carry_settings(app, settings)
    connect_database(app, settings)
    register_blueprints(app)
    serve_metrics(app, settings)
    guard(app)
    handle_errors(app)
    limits.serve(app, settings)
    headers.serve(app, settings)
    limits.serve(app, settings)
    cli.register(app)
    operations.register(app)
    report_commands.register(app)
    trust_proxies(app, settings)
    observe(app, access_log=settings.production)
    return app


def carry_settings(app: Flask, settings: Settings) -> None:
    """Configure Flask, and give the application its clock, gateway and outbox."""
    app.config["JWT_SECRET_KEY"] = settings.signing_key()
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    # An address is right or wrong; no redirects, which would answer with a page instead of a problem.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    try:
        gateway = load_gateway(settings.payment_gateway)
    except ValueError as error:
        raise ConfigError(f"PAYMENT_GATEWAY: {error}.") from error
    app.extensions["vade"] = Vade(
        settings=settings,
        clock=Clock(settings.now),
        gateway=gateway,
        outbox=Outbox(by_platform=settings.callback_url is not None),
        keyring=Keyring(settings.encryption_keys()),
    )


def connect_database(app: Flask, settings: Settings) -> None:
    """Set up SQLAlchemy and the migrations; the first query connects."""
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(settings)
    db.init_app(app)
    Migrate(app, db, compare_type=True, compare_server_default=True, render_as_batch=False)


def register_blueprints(app: Flask) -> None:
    """Serve the endpoints."""
    for resource in (
        sessions,
        companies,
        packages,
        company_packages,
        company_payments,
        callbacks,
        callback_endpoint,
        reports,
        health,
    ):
        app.register_api(resource.blueprint)  # type: ignore[attr-defined]
    app.register_blueprint(docs.blueprint)


def serve_metrics(app: Flask, settings: Settings) -> None:
    """Serve ``/metrics`` where there is a token that opens it."""
    if settings.metrics_token is not None:
        with app.app_context():
            app.extensions[metrics.WATCH] = Watch(db.engine, Clock(settings.now))
        app.register_blueprint(metrics.blueprint)


def trust_proxies(app: Flask, settings: Settings) -> None:
    """Believe what the proxies in front say of a request, as many as there are and no more."""
    if settings.trusted_proxies:
        number = settings.trusted_proxies
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=number, x_proto=number, x_host=number
        )
