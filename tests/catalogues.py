"""Nothing is told that the Turkish catalogue lacks: all that the tests make the API say is looked up."""

import pytest

from sentences import unsaid
from web import languages

lacking: list[str] = []
"""What was told, is not in the catalogue, and was not reported yet."""

_say, _catalogue = languages.say, languages.catalogue


def watch() -> None:
    """Look up every text from now on."""

    def say(text: str, language: str) -> str:
        template, _ = unsaid(text)
        if template not in _catalogue(languages.TURKISH):
            lacking.append(template)
        return _say(text, language)

    languages.say = say


def check() -> None:
    """Fail where a text was told that the catalogue lacks."""
    told, lacking[:] = sorted(set(lacking)), []
    if told:
        pytest.fail(f"translations/tr lacks what was told (make messages): {told}", pytrace=False)
