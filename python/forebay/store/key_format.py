"""The format of API keys.

A key is ``fb-`` + kind (1) + id (12) + secret (32) + check (6), all base62: 54 characters. The
check is the CRC-32 of everything before it, so noise is refused without a look-up. Only the id,
the SHA-256 of the whole key and its last four characters are stored; a fast hash suits a secret
of 190 random bits.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Literal

KeyKind = Literal["inference", "admin"]

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "fb-"
ID_LENGTH = 12
SECRET_LENGTH = 32
CHECK_LENGTH = 6
KEY_LENGTH = len(PREFIX) + 1 + ID_LENGTH + SECRET_LENGTH + CHECK_LENGTH
_LETTERS: dict[str, str] = {"inference": "k", "admin": "a"}
_KINDS: dict[str, KeyKind] = {"k": "inference", "a": "admin"}
_ALPHABET_SET = frozenset(ALPHABET)
KEY_ID = re.compile(f"[{ALPHABET}]{{{ID_LENGTH}}}")
"""A key's id, whole."""


class MalformedKey(ValueError):
    """Text that cannot be a key of ours. The message does not repeat it."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; `key` is shown once and never stored.

    digest: SHA-256 of the key, 32 bytes. last4: its last four characters, to recognise it by.
    """

    id: str
    key: str = field(repr=False)
    digest: bytes = field(repr=False)
    last4: str


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A well-formed key, without its secret. digest: SHA-256 of the whole key, 32 bytes."""

    kind: KeyKind
    id: str
    digest: bytes = field(repr=False)


def _check(text: str) -> str:
    value = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(CHECK_LENGTH):
        value, digit = divmod(value, 62)
        digits = ALPHABET[digit] + digits
    return digits


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def generate(kind: KeyKind, key_id: str | None = None) -> NewKey:
    """Make a key from the system's random source.

    key_id: keep this id (a rotation); None makes a new one.
    """
    key_id = _random(ID_LENGTH) if key_id is None else key_id
    body = f"{PREFIX}{_LETTERS[kind]}{key_id}{_random(SECRET_LENGTH)}"
    key = body + _check(body)
    return NewKey(key_id, key, hashlib.sha256(key.encode()).digest(), key[-4:])


def parse(text: str) -> ParsedKey:
    """Read a key as a client sent it. A change of any one character is noticed.

    Raises: MalformedKey.
    """
    if len(text) != KEY_LENGTH or not text.startswith(PREFIX):
        raise MalformedKey(f"an API key starts with {PREFIX} and has {KEY_LENGTH} characters")
    if not _ALPHABET_SET.issuperset(text[len(PREFIX) :]):
        raise MalformedKey("an API key has letters and digits only")
    body, check = text[:-CHECK_LENGTH], text[-CHECK_LENGTH:]
    kind = _KINDS.get(text[len(PREFIX)])
    if kind is None or _check(body) != check:
        raise MalformedKey("the API key's check characters do not fit: it was mistyped or cut")
    start = len(PREFIX) + 1
    digest = hashlib.sha256(text.encode()).digest()
    return ParsedKey(kind, text[start : start + ID_LENGTH], digest)
