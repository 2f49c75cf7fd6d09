"""The shape in which the core answers."""

Answer = tuple[int, list[tuple[bytes, bytes]], bytes, bool]
"""Status, headers as ASGI takes them, body, and whether more of the body follows."""


def failure(answer: Answer) -> bytes | None:
    """Why there is no answer of the upstream's; None if it is its own."""
    _, headers, _, _ = answer
    return next((value for header, value in headers if header == b"x-forebay-error"), None)
