"""The one error that reading a configuration raises."""


class ConfigError(Exception):
    """A configuration that cannot be used.

    source: file name as given, or "environment".
    line: 1-based line in the file; None where no line applies.
    field: dotted path such as ``models.llama.targets[0].upstream``; "" for the whole file.
    reason: what is wrong, without a secret's value.
    """

    def __init__(self, reason: str, *, source: str, field: str = "", line: int | None = None):
        self.source = source
        self.line = line
        self.field = field
        self.reason = reason
        where = source if line is None else f"{source}:{line}"
        super().__init__(": ".join(part for part in (where, field, reason) if part))
