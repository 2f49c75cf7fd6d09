"""What cannot be read of what an upstream answers."""

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a body that is no such JSON: bytes that are no UTF-8, and deep nesting,
raise no error of its own."""
