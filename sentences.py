"""What people are told: English, and ready to be said in another language."""

from collections.abc import Mapping
from typing import Self


class Sentence(str):
    """An English text with values in it, whose translation has the same values.

    ``template`` is the text with its values as ``%(name)s``. A text without values needs none of this: it is
    its own template.
    """

    __slots__ = ("template", "values")

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, **values: object) -> Self:
        """Return the text of a template with its values."""
        return cls.worded(template % values, template, values)

    @classmethod
    def worded(cls, text: str, template: str, values: Mapping[str, object]) -> Self:
        """Return a text whose English words are another's, and its translation that of ``template``."""
        self = super().__new__(cls, text)
        self.template = template
        self.values = values
        return self


def unsaid(text: str) -> tuple[str, Mapping[str, object]]:
    """Return a text's template and its values; without values, the text itself."""
    return (text.template, text.values) if isinstance(text, Sentence) else (text, {})
