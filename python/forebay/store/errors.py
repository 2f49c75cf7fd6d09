"""What the store raises, each with a message fit for the user's eyes."""


class StoreError(Exception):
    """Base of everything the store raises on purpose."""


class StoreUnavailable(StoreError):
    """The database cannot be reached or refuses the connection; trying again may help."""


class MigrationChanged(StoreError):
    """An applied migration differs from the one shipped: the schema's history is not ours."""


class KeyNotFound(StoreError):
    """No API key has this id."""


class KeyRevoked(StoreError):
    """The API key is revoked and cannot be changed any more."""
