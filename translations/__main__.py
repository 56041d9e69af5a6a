"""Write ``messages.pot`` anew from the code, and put what is new into each language's catalogue.

What is missing there is told, and has an empty ``msgstr`` to be filled in by hand. Nothing is guessed, and
what the code says no more is dropped.
"""

import sys
from io import BytesIO
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.pofile import read_po, write_po

import wsgi  # noqa: F401 - it loads the modules of all errors
from billing.errors import InvalidFieldError
from config import PROJECT_DIR
from web import languages, refusals
from web.problem_types import family, problem_types

TEMPLATE = languages.CATALOGUES / "messages.pot"
OTHERS = [language for language in languages.LANGUAGES if language != languages.ENGLISH]


def extract() -> Catalog:
    """Return every text that the code may say to people, as a catalogue without translations."""
    found = Catalog()
    keywords = {error.__name__: (2,) if issubclass(error, InvalidFieldError) else None for error in family()}
    with (PROJECT_DIR / "babel.cfg").open() as file:
        mapping, options = parse_mapping_cfg(file)  # type: ignore[no-untyped-call]
    texts = extract_from_dir(PROJECT_DIR, mapping, options, keywords={"_": None, **keywords})
    for path, _, text, _, _ in texts:
        found.add(text, locations=[(path, 0)])
    for error in family():
        _add(found, error.__module__, error.message(), error.title, error.meaning, error.remedy)
    for type_ in problem_types().values():
        _add(found, "web.problem_types", type_.title, type_.detail, type_.meaning, type_.remedy)
    _add(found, "web.refusals", *refusals.texts())
    return found


def template_text() -> bytes:
    """Return ``messages.pot`` as the code makes it: without line numbers and dates, which change idly."""
    return _written(extract(), omit_header=True)


def updated(language: str, template: Catalog) -> Catalog:
    """Return the catalogue of a language with exactly the texts of a template."""
    with languages.path_of(language).open("rb") as file:
        catalogue = read_po(file, locale=language, abort_invalid=True)
    catalogue.update(template, no_fuzzy_matching=True, update_creation_date=False)
    catalogue.obsolete.clear()
    return catalogue


def catalogue_text(catalogue: Catalog) -> bytes:
    """Return a catalogue as it is kept: by its texts, so that two branches seldom touch the same lines."""
    return _written(catalogue, omit_header=False)


def missing(catalogue: Catalog) -> list[str]:
    """Return the texts that a catalogue has no translation of that may be used."""
    return [str(message.id) for message in catalogue if message.id and (not message.string or message.fuzzy)]


def main() -> int:
    """Write the files; return 1 where a translation is missing."""
    template = extract()
    TEMPLATE.write_bytes(template_text())
    absent = 0
    for language in OTHERS:
        catalogue = updated(language, template)
        languages.path_of(language).write_bytes(catalogue_text(catalogue))
        for text in missing(catalogue):
            absent += 1
            sys.stderr.write(f"{languages.path_of(language).relative_to(PROJECT_DIR)} lacks: {text}\n")
    return 1 if absent else 0


def _add(catalogue: Catalog, module: str, *texts: str) -> None:
    where = str(Path(*module.split(".")).with_suffix(".py"))
    for text in texts:
        catalogue.add(text, locations=[(where, 0)])


def _written(catalogue: Catalog, *, omit_header: bool) -> bytes:
    file = BytesIO()
    write_po(file, catalogue, width=0, omit_header=omit_header, sort_output=True, include_lineno=False)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
