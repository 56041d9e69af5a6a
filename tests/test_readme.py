"""What a person can set or call is in the README."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from flask import Flask

from config import PROJECT_DIR, Settings

README = (PROJECT_DIR / "README.md").read_text()

# What Flask and its extensions bring along and the README need not explain.
FOREIGN = {"run", "shell", "routes", "openapi", "db"}


def commands(group: click.Group, *path: str) -> Iterator[str]:
    """Yield each command below a group, as it is called."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name))


@pytest.mark.parametrize("setting", [str(field.alias) for field in Settings.model_fields.values()])
def test_every_setting_is_documented(setting: str) -> None:
    assert f"`{setting}`" in README


def test_no_setting_is_documented_that_does_not_exist() -> None:
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}

    assert named == {field.alias for field in Settings.model_fields.values()}


def test_every_command_and_its_options_are_documented(shared_app: Flask) -> None:
    groups = {name: c for name, c in shared_app.cli.commands.items() if name not in FOREIGN}
    ours = list(commands(click.Group(commands=groups)))

    assert "billing run" in ours
    for name in ours:
        command: click.Command = shared_app.cli
        for step in name.split():
            assert isinstance(command, click.Group)
            command = command.commands[step]
        documented = re.search(rf"`flask {name}( [^`]*)?`", README)
        assert documented, name
        for option in command.params:
            name_ = option.opts[0] if isinstance(option, click.Option) else str(option.name).upper()
            assert name_ in documented[0], (name, name_)


@pytest.mark.parametrize("target", ["run", "test", "check", "bench", "scale", "chaos", "failover"])
def test_the_make_targets_that_the_readme_names_exist(target: str) -> None:
    assert f"`make {target}`" in README
    assert re.search(rf"^{target}:", (PROJECT_DIR / "Makefile").read_text(), re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or Path(PROJECT_DIR / target).exists(), target
