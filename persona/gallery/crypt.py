"""Templates and crops under a passphrase.

scrypt (RFC 7914) makes a key of the passphrase, AES-256-GCM (NIST SP 800-38D) seals each value
with a random 96-bit nonce before it and a 128-bit tag behind it. The name of the person is
authenticated with it, so that a template that is moved to another person does not open. Names and
dates are not encrypted: a gallery can be listed, and somebody forgotten, without the passphrase.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from persona.errors import PersonaError
from persona.extras import missing

NONCE_BYTES = 12
SALT_BYTES = 16
SCRYPT = {"n": 2**17, "r": 8, "p": 1}
"""OWASP's password storage cheat sheet: 128 MB and about half a second a guess."""
MAX_PASSPHRASE = 4096
"""Bytes."""
CHECK = b"persona gallery"


class Sealer:
    """Seals and opens values."""

    def __init__(self, passphrase: bytes, salt: bytes) -> None:
        """Derives the key.

        Raises:
            PersonaError: `cryptography` is not installed.
        """
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
        except ImportError:
            raise missing("a gallery under a passphrase needs cryptography", "crypt") from None
        key = Scrypt(salt=salt, length=32, **SCRYPT).derive(passphrase)
        self._aes, self._invalid = AESGCM(key), InvalidTag

    def seal(self, value: bytes, name: str) -> bytes:
        """Nonce, encrypted value and tag; it opens for `name` alone."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, value, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """The value.

        Raises:
            PersonaError: another key's or name's, or changed since.
        """
        try:
            nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
            return self._aes.decrypt(nonce, rest, name.encode())
        except (self._invalid, ValueError):
            raise PersonaError(
                "a sealed value does not open: the passphrase is wrong or the gallery was changed"
            ) from None


def read_passphrase(path: Path) -> bytes:
    """The first line of a file: never an argument or the environment, which others can read.

    Raises:
        PersonaError: it cannot be read, is empty or no passphrase's length.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_PASSPHRASE + 2).rstrip(b"\r\n")
    except OSError as error:
        raise PersonaError(f"--passphrase-file {path}: {error.strerror}") from None
    if not 0 < len(line) <= MAX_PASSPHRASE:
        what = "empty" if not line else f"over {MAX_PASSPHRASE} bytes"
        raise PersonaError(f"--passphrase-file {path}: its first line is {what}")
    return line
