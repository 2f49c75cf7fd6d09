"""Amazon Bedrock: https://docs.aws.amazon.com/bedrock.
``https://bedrock-runtime.REGION.amazonaws.com``.

``api: native`` (the default) is Converse: ``/model/MODEL/converse`` and ``/converse-stream``, whose
streams are binary frames (``application/vnd.amazon.eventstream``); all of Bedrock's models with
chat have it, and usage always comes. ``api: openai`` is ``/openai/v1/chat/completions`` on the same
host, which only some models have; models there are inference profiles (``us.…``).

Credentials: ``api_key`` (a Bedrock key, sent as bearer), or ``access_key_id`` and
``secret_access_key`` with ``session_token``, or a ``profile``, or what botocore finds by itself
(environment, files, web identity, container, instance); these sign each request (Signature Version
4, service ``bedrock``).

Errors are ``{"message"}`` with the exception's name in ``x-amzn-errortype``: 400
ValidationException and ServiceQuotaExceededException, 408 ModelTimeoutException, 424
ModelErrorException, 429 ThrottlingException, and ModelNotReadyException while a model loads. In a
stream, a frame with ``:exception-type``.

A client that leaves does not stop the answer, which is billed: it is read to its end. There is
nothing on this host to look at that costs nothing: requests tell how it is.

Sources: docs.aws.amazon.com bedrock/latest/APIReference (Converse, ConverseStream, CommonErrors),
userguide "API keys"; openai/openai-python bedrock.md; openrouter.ai/docs "Stream cancellation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.upstreams.credentials.aws import AwsSource
from forebay.upstreams.credentials.source import Credentials, StaticSource
from forebay.upstreams.kind import Dialect, ErrorRule, Kind, Paths, Sign

if TYPE_CHECKING:
    from forebay.config.schema import Upstream
    from forebay.upstreams.credentials import CredentialSource

_NATIVE = Paths(
    chat="/model/{model}/converse",
    chat_stream="/model/{model}/converse-stream",
    completions=None,
    embeddings=None,
)
_OPENAI = Paths(
    chat="/openai/v1/chat/completions",
    completions=None,
    embeddings=None,
    responses="/openai/v1/responses",
)


class Bedrock(Kind):
    """An address for each region; signed, or with a key."""

    __slots__ = ()

    def address(self, upstream: Upstream) -> str:
        """The region's, unless the settings have one (a VPC endpoint)."""
        return upstream.url or f"https://bedrock-runtime.{upstream.region}.amazonaws.com"

    def dialect_for(self, upstream: Upstream) -> Dialect:
        """As ``api`` says."""
        return "open_ai" if upstream.api == "openai" else self.dialect

    def paths(self, upstream: Upstream) -> Paths:
        """Of the API that is used."""
        return _OPENAI if upstream.api == "openai" else self.default_paths

    def sign(self, upstream: Upstream) -> Sign | None:
        """All but what has a key."""
        if upstream.api_key is not None or upstream.region is None:
            return None
        return Sign("bedrock", upstream.region)

    def credentials(self, upstream: Upstream) -> CredentialSource | None:
        """What signatures are made with."""
        if upstream.api_key is not None:
            return None
        login = upstream.credentials
        if login is not None and login.access_key_id is not None:
            return StaticSource(
                Credentials(
                    access_key=login.access_key_id,
                    secret_key=login.secret_access_key,
                    session_token=login.session_token,
                )
            )
        return AwsSource(None if login is None else login.profile, upstream.region)


KIND = Bedrock(
    name="bedrock",
    dialect="converse",
    drains=True,
    default_paths=_NATIVE,
    errors=(
        *(
            ErrorRule(400, "rate_limited", code=code, retry=True)
            for code in ("ServiceQuotaExceededException", "serviceQuotaExceededException")
        ),
        ErrorRule(424, "upstream_error", retry=True),
    ),
)
