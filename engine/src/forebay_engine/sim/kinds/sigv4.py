"""Checks AWS Signature Version 4 with botocore, the signers' own code."""

from __future__ import annotations

import hashlib
import hmac
import importlib
from datetime import UTC, datetime
from typing import Any

from forebay_engine.sim.wire import Exchange

MAX_SKEW_S = 300.0


class BadSignature(Exception):
    """Why a request is refused: the AWS error's name and text."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


def check(exchange: Exchange, credentials: str, service: str, region: str) -> None:
    """Check a request's signature.

    credentials: ACCESS_KEY:SECRET, or ACCESS_KEY:SECRET:SESSION_TOKEN.
    Raises: BadSignature. Needs botocore.
    """
    auth: Any = importlib.import_module("botocore.auth")
    request_type: Any = importlib.import_module("botocore.awsrequest").AWSRequest
    credentials_type: Any = importlib.import_module("botocore.credentials").Credentials
    access, secret, *session = credentials.split(":", 2)
    given = (exchange.header(b"authorization") or b"").decode("latin-1")
    if not given:
        raise BadSignature("MissingAuthenticationTokenException", "Missing Authentication Token")
    algorithm, _, rest = given.partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    stamp = (exchange.header(b"x-amz-date") or b"").decode("latin-1")
    if algorithm != "AWS4-HMAC-SHA256" or not stamp:
        text = "Authorization header requires 'Credential', 'Signature' and 'SignedHeaders'."
        raise BadSignature("IncompleteSignatureException", text)
    scope = f"{access}/{stamp[:8]}/{region}/{service}/aws4_request"
    if fields.get("Credential") != scope:
        text = "The security token included in the request is invalid."
        raise BadSignature("UnrecognizedClientException", text)
    if session and (exchange.header(b"x-amz-security-token") or b"").decode() != session[0]:
        text = "The security token included in the request is invalid."
        raise BadSignature("UnrecognizedClientException", text)
    when = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs((datetime.now(UTC) - when).total_seconds()) > MAX_SKEW_S:
        raise BadSignature("InvalidSignatureException", f"Signature expired: {stamp}")
    signed = fields.get("SignedHeaders", "").split(";")
    for needed in ("host", "x-amz-date"):
        if needed not in signed:
            raise BadSignature("InvalidSignatureException", f"'{needed}' must be signed.")
    host = (exchange.header(b"host") or b"").decode("latin-1")
    query = f"?{exchange.query}" if exchange.query else ""
    request = request_type(
        method=exchange.method, url=f"http://{host}{exchange.path}{query}", data=exchange.body
    )
    for name in signed:
        value = exchange.header(name.encode())
        if value is None:
            raise BadSignature("InvalidSignatureException", f"'{name}' is signed and missing.")
        request.headers[name] = value.decode("latin-1")
    digest = exchange.header(b"x-amz-content-sha256")
    if digest is not None and digest.decode() != hashlib.sha256(exchange.body).hexdigest():
        raise BadSignature("InvalidSignatureException", "The body's digest is not what is signed.")
    request.context["timestamp"] = stamp
    signer = auth.SigV4Auth(credentials_type(access, secret, *session), service, region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    if not hmac.compare_digest(signer.signature(text, request), fields.get("Signature", "")):
        text = "The request signature we calculated does not match the signature you provided."
        raise BadSignature("InvalidSignatureException", text)
