"""`.env.example` says every setting, and its default."""

import re

from config import PROJECT_DIR, Settings

NOT_VADES = {"POSTGRES_PASSWORD"}
"""What `.env` says to `docker compose` alone."""


def example() -> dict[str, str]:
    """Return what `.env.example` would set, were no line of it a comment."""
    text = (PROJECT_DIR / ".env.example").read_text()
    return dict(re.findall(r"^# ([A-Z][A-Z0-9_]*)=(.*)$", text, flags=re.MULTILINE))


def test_every_setting_is_in_the_example_and_no_other() -> None:
    aliases = {field.alias for field in Settings.model_fields.values()}

    assert example().keys() - NOT_VADES == aliases


def test_the_values_in_the_example_are_the_defaults() -> None:
    assert Settings.from_env(example()) == Settings.from_env({})


def test_the_example_sets_nothing_as_it_stands() -> None:
    lines = (PROJECT_DIR / ".env.example").read_text().splitlines()

    assert [line for line in lines if line and not line.startswith("#")] == []
