"""What the store raises, each with a message fit for the user's eyes."""


class StoreError(Exception):
    """Base of everything the store raises on purpose."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or refuses the connection; trying again may help."""


class MigrationChanged(StoreError):
    """An applied migration differs from the one shipped: the schema's history is not ours."""


class BadValue(StoreError):
    """A value that cannot be stored.

    field: its name. reason: what is wrong with it, without the name.
    """

    def __init__(self, field: str, reason: str):
        self.field = field
        self.reason = reason
        super().__init__(f"{field} {reason}")


class NotFound(StoreError):
    """There is nothing of that name."""


class KeyNotFound(NotFound):
    """No API key has this id."""


class AccountNotFound(NotFound):
    """No account has this id."""


class AccountExists(StoreError):
    """An account has this id already."""


class PriceNotFound(NotFound):
    """No price has this id."""


class KeyRevoked(StoreError):
    """The API key is revoked and cannot be changed any more."""


class LogNotFound(NotFound):
    """No prompt log has this id."""


class LogKeyMissing(StoreError):
    """A key that prompt logs are encrypted with is not configured."""


class LogUnreadable(StoreError):
    """The contents of a prompt log do not open."""


class TermNotFound(NotFound):
    """No term has this id."""


class InvoiceNotFound(NotFound):
    """No invoice has this number."""


class NotBillable(StoreError):
    """An invoice cannot be finalised or credited as it stands; the message says what is missing."""


class ResponseExists(StoreError):
    """Another account has a response of this id."""
