"""Encryption of templates and crops with a passphrase.

scrypt (RFC 7914) derives a key from the passphrase. AES-256-GCM (NIST SP 800-38D) encrypts each
value, with a random 96-bit nonce before it and a 128-bit tag after it. The person's name is
authenticated too, so that a template that was moved to another person cannot be decrypted. Names
and dates are not encrypted: listing people and removing them needs no passphrase.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from persona.errors import PersonaError
from persona.extras import missing

NONCE_BYTES = 12
SALT_BYTES = 16
SCRYPT = {"n": 2**17, "r": 8, "p": 1}
"""Parameters from OWASP's password storage cheat sheet: 128 MB and about 0.5 s per guess."""
MAX_PASSPHRASE = 4096
"""Longest passphrase in bytes."""
CHECK = b"persona gallery"


class Sealer:
    """Encrypts (seals) and decrypts (opens) values."""

    def __init__(self, passphrase: bytes, salt: bytes) -> None:
        """Derives the key from the passphrase.

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

    @classmethod
    def fresh(cls, passphrase: bytes) -> tuple[Sealer, dict[str, str]]:
        """Makes a sealer with a new salt, and the facts by which `known` makes it again.

        Raises:
            PersonaError: `cryptography` is not installed.
        """
        salt = secrets.token_bytes(SALT_BYTES)
        sealer = cls(passphrase, salt)
        return sealer, {"salt": salt.hex(), "check": sealer.seal(CHECK, "").hex()}

    @classmethod
    def known(cls, passphrase: bytes, facts: Mapping[str, str], place: str) -> Sealer:
        """Makes the sealer whose facts were stored.

        Args:
            passphrase: the passphrase that was given.
            facts: the stored facts, those of `fresh` among them.
            place: where they are stored, for messages.

        Raises:
            ValueError: the facts are damaged.
            PersonaError: the passphrase is wrong, or `cryptography` is not installed.
        """
        salt, check = (bytes.fromhex(facts.get(name, "")) for name in ("salt", "check"))
        if not salt or not check:
            raise ValueError("the salt or the check is missing")
        sealer = cls(passphrase, salt)
        try:
            sealer.open(check, "")
        except PersonaError:
            raise PersonaError(f"{place}: the passphrase is wrong") from None
        return sealer

    def seal(self, value: bytes, name: str) -> bytes:
        """Returns nonce, encrypted value and tag, which can only be opened with the same `name`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aes.encrypt(nonce, value, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Decrypts a value.

        Raises:
            PersonaError: it was sealed with another key or name, or was changed since.
        """
        try:
            nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
            return self._aes.decrypt(nonce, rest, name.encode())
        except (self._invalid, ValueError):
            raise PersonaError(
                "a sealed value does not open: the passphrase is wrong or the gallery was changed"
            ) from None


def read_passphrase(path: Path) -> bytes:
    """Reads a passphrase from the first line of a file.

    A command's arguments and environment could be read by others.

    Raises:
        PersonaError: the file cannot be read, or its first line is empty or too long.
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
