"""What a person can set or call is in the README."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
from flask import Flask

from config import PROJECT_DIR, Settings

README = (PROJECT_DIR / "README.md").read_text()
TURKISH = (PROJECT_DIR / "README.tr.md").read_text()

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)]+)\)")

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


@pytest.mark.parametrize("readme", [README, TURKISH], ids=["English", "Turkish"])
def test_links_lead_somewhere(readme: str) -> None:
    for link in LINK.findall(readme):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        assert not target or Path(PROJECT_DIR / target).exists(), link
        if anchor:
            assert anchor in anchors((PROJECT_DIR / target).read_text() if target else readme), link


def anchors(document: str) -> list[str]:
    """Return the anchors that GitHub gives the headings of ``document``, in their order.

    It lowers letters without regard to the language, keeps them, digits, ``_`` and ``-``, and makes a space
    a ``-``.
    """
    titles = [title for _, title in HEADING.findall(FENCE.sub("", document))]
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_no_turkish_heading_has_an_anchor_that_no_one_can_type() -> None:
    # İ becomes an i with a combining dot there, I an i with a dot.
    assert not [title for _, title in HEADING.findall(FENCE.sub("", TURKISH)) if re.search("[Iİ]", title)]


def pieces(document: str) -> list[str]:
    """Split ``document`` into headings, paragraphs, list items, table rows and code blocks, in order."""
    starts = r"\n+(?=\||- |\d\. |```)|\n{2,}"
    parts: list[str] = []
    end = 0
    for fence in FENCE.finditer(document):
        parts += [*re.split(starts, document[end : fence.start()]), fence[0]]
        end = fence.end()
    parts += re.split(starts, document[end:])
    return [part.strip() for part in parts if part.strip()]


def shape(piece: str, document: str) -> tuple[object, ...]:
    """Return what a translation of ``piece`` has in common with it.

    Its kind, the words of the contract, the numbers, and where its links lead: an anchor of the same document
    counts as the number of its heading.
    """
    kind = re.match(r"#+ |\||- |\d\. |", piece)
    here = anchors(document)
    links = [str(here.index(link[1:])) if link.startswith("#") else link for link in LINK.findall(piece)]
    prose = LINK.sub("]", re.sub(r"`[^`]+`", "", piece))
    words = [" ".join(word.split()) for word in re.findall(r"`[^`]+`", piece)]
    return (
        kind and kind[0],
        sorted(words),
        sorted(re.findall(r"\d+", prose)),
        sorted(links),
        piece.count("**"),
    )


def is_diagram(piece: str) -> bool:
    return piece.startswith("```text") and "company_payments" in piece


def without_languages(document: str) -> list[str]:
    """Return the pieces of ``document`` but the line that leads to the other language."""
    found = pieces(document)
    assert "README" in found[1]
    return [found[0], *found[2:]]


def test_the_turkish_readme_says_all_that_the_english_one_says() -> None:
    english, turkish = without_languages(README), without_languages(TURKISH)

    for ours, theirs in zip(english, turkish, strict=False):
        if is_diagram(ours):
            assert is_diagram(theirs)
        elif ours.startswith("```"):
            assert theirs == ours
        else:
            assert shape(theirs, TURKISH) == shape(ours, README), (ours, theirs)
    assert len(turkish) == len(english), "a part is missing at the end"


def test_the_turkish_readme_names_the_same_settings_and_commands_in_the_same_order() -> None:
    def first_cells(document: str) -> list[str]:
        return re.findall(r"^\| (`[^|]*) \|", document, re.MULTILINE)

    assert first_cells(TURKISH) == first_cells(README)


def test_each_readme_leads_to_the_other() -> None:
    assert pieces(README)[1] == "English · [Türkçe](README.tr.md)"
    assert pieces(TURKISH)[1] == "[English](README.md) · Türkçe"


@pytest.mark.parametrize("readme", [README, TURKISH], ids=["English", "Turkish"])
def test_the_diagram_is_aligned(readme: str) -> None:
    (diagram,) = filter(is_diagram, pieces(readme))
    rows = diagram.splitlines()[1:-1]
    joints = {"┌": "│└", "┐": "│┘", "▲": "│"}

    for above, below in pairwise(rows):
        for column, corner in enumerate(above):
            if corner in joints:
                assert below[column : column + 1] in joints[corner], (above, below)
        for column, corner in enumerate(below):
            if corner in "└┘┴":
                assert above[column : column + 1] == "│", (above, below)
