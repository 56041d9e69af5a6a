"""Arrows point down: what may import what, read from the imports."""

import ast
import sys
from pathlib import Path

import pytest

from config import PROJECT_DIR

# Each layer may import itself and the layers after it in its line.
LAYERS = {
    "models": set(),
    "sentences": set(),
    "billing": {"models", "sentences"},
    "config": {"sentences"},
    "postgres_server": {"config"},
    "embedded": {"config", "postgres_server"},
    "database": {"config", "embedded"},
    "logs": {"billing", "config"},
    "metrics_directory": set(),
    "worker_metrics": {"billing"},
    "metrics_server": {"web"},
    "web": {"billing", "models", "config", "sentences"},
    "blueprints": {"web", "billing", "models", "config", "sentences"},
    "fakes": {"billing", "models", "config"},
    "terminal": {"billing"},
    "listener": {"terminal", "billing", "models", "config"},
    "seed": {"terminal", "fake_companies", "fake_payments", "billing", "models", "config", "web"},
    "inspection": {"terminal", "web", "billing", "models"},
    "operations": {"cli", "inspection", "terminal", "web", "billing", "models"},
    "report_tables": {"terminal", "billing"},
    "metric_tables": {"report_tables", "terminal", "billing"},
    "report_commands": {"metric_tables", "report_tables", "terminal", "web", "billing", "models"},
    "staff": {"terminal", "web", "billing", "models"},
    "cli": {"terminal", "listener", "seed", "staff", "web", "billing", "models", "config"},
    "wsgi": {
        "blueprints",
        "cli",
        "operations",
        "report_commands",
        "web",
        "billing",
        "models",
        "config",
        "database",
        "logs",
    },
    "scheduler": {
        "wsgi",
        "cli",
        "web",
        "billing",
        "models",
        "config",
        "embedded",
        "metrics_server",
        "worker_metrics",
    },
}
LAYERS["fake_companies"] = LAYERS["fakes"] | {"fake_payments"}
LAYERS["fake_payments"] = LAYERS.pop("fakes")


def sources(layer: str) -> list[Path]:
    package = PROJECT_DIR / layer
    return sorted(package.rglob("*.py")) if package.is_dir() else [PROJECT_DIR / f"{layer}.py"]


def imported(path: Path) -> set[str]:
    """Return the first names of all that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def ours() -> set[str]:
    files = {path.stem for path in PROJECT_DIR.glob("*.py")}
    packages = {path.parent.name for path in PROJECT_DIR.glob("*/__init__.py")}
    return files | packages


@pytest.mark.parametrize("layer", LAYERS)
def test_no_import_points_up(layer: str) -> None:
    allowed = LAYERS[layer] | {layer}
    for path in sources(layer):
        assert imported(path) & ours() <= allowed, path


def test_billing_knows_nothing_of_http() -> None:
    for path in sources("billing"):
        # `requests` delivers callbacks; nothing there answers a request.
        assert not imported(path) & {"flask", "flask_jwt_extended", "flask_openapi3", "gunicorn"}, path


def test_no_module_shadows_the_standard_library() -> None:
    assert not ours() & set(sys.stdlib_module_names)


def test_no_module_is_too_long_to_have_one_idea() -> None:
    long = {
        path.name: lines
        for layer in LAYERS
        for path in sources(layer)
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert set(long) <= {"models.py"}, long
