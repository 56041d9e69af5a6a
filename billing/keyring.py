"""Secrets at rest: encrypted with a key from the settings, so that a copy of the database signs nothing."""

import base64
import contextlib
from collections.abc import Iterable, Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class SecretUnreadableError(Exception):
    """A secret in the database was encrypted with a key that is not among the settings'."""

    def __init__(self) -> None:
        super().__init__((type(self).__doc__ or "").rstrip("."))


class Keyring:
    """Encrypts with the first of some keys and decrypts with any, by Fernet (AES-128-CBC and HMAC-SHA256).

    A key is any text of 32 bytes or more; what encrypts is derived from it by HKDF (RFC 5869).
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(_derived(key)) for key in keys])

    def encrypt(self, secret: str) -> str:
        """Return a secret as it is kept."""
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, encrypted: str) -> str:
        """Return the secret, or raise `SecretUnreadableError`."""
        try:
            return self._fernet.decrypt(encrypted).decode()
        except InvalidToken:
            raise SecretUnreadableError from None

    def readable(self, encrypted: Iterable[str]) -> list[str]:
        """Return the secrets of those that can be decrypted, in their order."""
        found = []
        for token in encrypted:
            with contextlib.suppress(SecretUnreadableError):
                found.append(self.decrypt(token))
        return found


def _derived(key: str) -> bytes:
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"vade/callback-secrets")
    return base64.urlsafe_b64encode(hkdf.derive(key.encode()))
