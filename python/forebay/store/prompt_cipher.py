"""Encryption at rest of what was asked and answered: AES-256-GCM under keys that have names.

What is stored is 12 bytes of nonce, the ciphertext, and the tag of 16 bytes. The id of the row (of
a prompt log, its event's) and which part it is are bound to it, so that nothing can be put in
another's place.
"""

import os
from collections.abc import Mapping
from typing import Literal
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from forebay.config.schema import PromptLogs, decode_log_key
from forebay.store.errors import LogKeyMissing, LogUnreadable

Part = Literal["request", "answer", "replay", "response", "items"]
"""Of a prompt log, `request` and `answer`; of a repeated request, `replay`; of a stored response,
`response` and its `items`."""

_NONCE = 12
_TAG = 16
_MARKS: Mapping[Part, bytes] = {
    "request": b"\0",
    "answer": b"\1",
    "replay": b"\2",
    "response": b"\3",
    "items": b"\4",
}


class PromptCipher:
    """Opens what any of the configured keys sealed, and seals with the active one."""

    def __init__(self, settings: PromptLogs):
        self._keys = {name: AESGCM(decode_log_key(key)) for name, key in settings.keys.items()}
        self.active = settings.active

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the configured keys."""
        return tuple(self._keys)

    def open(self, key: str, event_id: UUID, part: Part, sealed: bytes) -> bytes:
        """What was sealed.

        Raises: LogKeyMissing; LogUnreadable.
        """
        cipher = self._key(key)
        if len(sealed) < _NONCE + _TAG:
            raise LogUnreadable(f"the {part} of {event_id} is cut off: {len(sealed)} bytes")
        try:
            return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], event_id.bytes + _MARKS[part])
        except InvalidTag:
            raise LogUnreadable(
                f"the {part} of {event_id} does not open with the key {key!r}: it was sealed"
                " with another key of that name, or its bytes were changed or cut off"
            ) from None

    def seal(self, event_id: UUID, part: Part, plain: bytes) -> bytes:
        """Seal with the active key.

        Raises: LogKeyMissing without one.
        """
        if self.active is None:
            raise LogKeyMissing(
                "no key to encrypt with: set prompt_logs.active in the configuration"
            )
        nonce = os.urandom(_NONCE)
        return nonce + self._key(self.active).encrypt(nonce, plain, event_id.bytes + _MARKS[part])

    def _key(self, name: str) -> AESGCM:
        cipher = self._keys.get(name)
        if cipher is None:
            known = ", ".join(self._keys) or "none"
            raise LogKeyMissing(
                f"the key {name!r} is needed and not configured: add it to prompt_logs.keys"
                f" (known: {known})"
            )
        return cipher
