"""A client for Forebay's gRPC API, for threads and for asyncio.

>>> from forebay.client import Client
>>> with Client("127.0.0.1:50051") as client:  # the key is in FOREBAY_API_KEY
...     answer = client.chat(model="tiny", messages=[{"role": "user", "content": "hi"}])

Arguments are named as in OpenAI's API, and may be plain values or messages of
`forebay.client.types`; answers are such messages. Guide: docs/grpc-client.md.
"""

from forebay.client.aio import AsyncClient, AsyncStream
from forebay.client.blocking import Client, Stream
from forebay.client.build import text_of
from forebay.client.connection import Tls
from forebay.client.errors import (
    BudgetExhausted,
    Cancelled,
    DeadlineExceeded,
    Error,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "BudgetExhausted",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Error",
    "Forbidden",
    "InvalidRequest",
    "NotFound",
    "RateLimited",
    "Stream",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "text_of",
]
