"""Nothing secret is logged: all that the tests log is looked through, as production writes it.

Each record of this process is looked at when it is made; the logs of other programs when they end. What is
found fails the test in which it came up.
"""

import logging
import re

import logs

SHAPES = {
    "a JWT": r"eyJ[\w-]{8,}\.[\w-]{8,}",
    "a callback secret": r"whsec_[A-Za-z0-9+/]{8,}",
    "a password's hash": r"scrypt:\d+:|\$2[aby]\$|pbkdf2:|argon2",
    "a password": r"correct horse battery",
    "a setting's key": r"a key for tests|a-token-for-metrics",
    "an encrypted secret": r"\bgAAAA[\w-]{16,}",
    "an Authorization header": r"(?i:authorization\W|\bbearer\s+\w|\bbasic\s+[a-z0-9+/]{6,})",
    "a password in a URL": r"://[^/\s:@\"]+:[^/\s@\"]+@",
    # Of a connection string or a document; not `password=password` in the code that a traceback shows.
    "a named password": r"(?i:\bpassword=[^\s,().]+(?=[\s'\"\\]|$)|\bpassword\\?['\"]\s*:)",
    "an e-mail": r"[\w.+-]+@[\w-]+\.[\w.]*[a-z]",
    "what a query was given": r"\[parameters:",
    "a signature of a callback": r"\bv1,[A-Za-z0-9+/]{40,}",
}
_SHAPES = re.compile("|".join(f"(?P<s{number}>{shape})" for number, shape in enumerate(SHAPES.values())))

found: list[str] = []
"""What was found and not told yet."""

_formatter = logs.UtcJsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", json_ensure_ascii=False)
_handle = logging.Logger.handle


def secrets_in(text: str) -> list[str]:
    """Return what secrets a text shows, each with where it stands."""
    names = list(SHAPES)
    told = []
    for match in _SHAPES.finditer(text):
        name = names[int((match.lastgroup or "s0")[1:])]
        told.append(f"{name} in: …{text[max(0, match.start() - 150) : match.end() + 30]}…")
    return told


def look_through(text: str) -> None:
    """Remember what secrets a program's log shows."""
    found.extend(secrets_in(text))


def check() -> None:
    """Fail where a secret was found since the last time."""
    told = found[:]
    found.clear()
    assert not told, "\n".join(told)


def watch() -> None:
    """Look at every record that any logger of this process makes from now on."""

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        look_through(_formatter.format(record))
        _handle(logger, record)

    logging.Logger.handle = handle  # type: ignore[method-assign, assignment]
