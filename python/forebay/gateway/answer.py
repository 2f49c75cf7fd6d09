"""The shape in which the core answers."""

Answer = tuple[int, list[tuple[bytes, bytes]], bytes, bool]
"""Status, headers as ASGI takes them, body, and whether more of the body follows."""
