"""The languages that people are answered in: English, and those that have a catalogue."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from flask import request

from config import PROJECT_DIR
from sentences import unsaid

ENGLISH = "en"
TURKISH = "tr"
LANGUAGES = (ENGLISH, TURKISH)

CATALOGUES = PROJECT_DIR / "translations"


def wanted() -> str:
    """Return the language that the request likes best by its ``Accept-Language``; English where it has none.

    Of ``tr-TR`` only the language counts, as RFC 4647 §3.4 looks it up.
    """
    # Werkzeug's best_match would prefer `en;q=0.1` to `tr-TR`, because it is an exact match.
    for tag, quality in request.accept_languages:
        language = tag.partition("-")[0].lower()
        if quality > 0 and language in LANGUAGES:
            return language
    return ENGLISH


def say(text: str, language: str) -> str:
    """Return a text in a language, with its values; in English where the catalogue does not have it."""
    if language == ENGLISH:
        return text
    template, values = unsaid(text)
    said = catalogue(language).get(template)
    if said is None:
        return text
    return said % values if values else said


def path_of(language: str) -> Path:
    """Return where the catalogue of a language is kept."""
    return CATALOGUES / language / "LC_MESSAGES" / "messages.po"


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """Return what each text is in a language. It is read once, when it is first needed."""
    # Nor is the library that reads it loaded before: most processes never need it.
    from babel.messages.pofile import read_po  # noqa: PLC0415

    with path_of(language).open("rb") as file:
        messages = read_po(file, locale=language, abort_invalid=True)
    return {
        str(message.id): str(message.string)
        for message in messages
        if message.id and message.string and not message.fuzzy
    }
