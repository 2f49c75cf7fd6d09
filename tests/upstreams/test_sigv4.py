"""The core's AWS signatures against those of AWS's own signer."""

from datetime import UTC, datetime
from unittest import mock
from urllib.parse import quote

import pytest
from botocore import auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from forebay._core import sign_v4
from hypothesis import example, given, settings
from hypothesis import strategies as st

WORD = st.text("abcXYZ019-._~", min_size=1, max_size=8)
SEGMENT = st.one_of(
    WORD,
    # A model's name, encoded as the core encodes it.
    st.text("abc019-._~:/ %+é", min_size=1, max_size=12).map(lambda text: quote(text, safe="~")),
    st.sampled_from(["", ".", "..", "anthropic.claude-3-5-sonnet-20241022-v2%3A0", "a:b", "a@b,c"]),
)
PATH = st.lists(SEGMENT, max_size=5).map(lambda parts: "/" + "/".join(parts))
VALUE = st.one_of(WORD, st.sampled_from(["", "%2F", "a%20b", "%C3%A9"]))
QUERY = st.lists(st.tuples(WORD, VALUE), max_size=5).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
)
HEADER = st.sampled_from(
    ["content-type", "accept", "x-amz-content-sha256x", "x-amzn-bedrock-trace", "x-title"]
)
HEADERS = st.dictionaries(HEADER, st.text("ab  \t,;=/é", max_size=12), max_size=4)
BODY = st.lists(st.binary(max_size=40), max_size=4)
SECRET = st.text("abcXYZ019/+=", min_size=1, max_size=40)


def botocores(
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes,
    keys: Credentials,
    region: str,
    service: str,
    unix_s: int,
) -> dict[str, str]:
    """The headers that botocore adds, by name in lower case."""
    request = AWSRequest(method=method, url=url, headers=headers, data=body)
    now = datetime.fromtimestamp(unix_s, UTC).replace(tzinfo=None)
    with mock.patch.object(auth, "get_current_datetime", return_value=now):
        auth.SigV4Auth(keys, service, region).add_auth(request)
    added = {name.lower(): value for name, value in request.headers.items()}
    return {name: value for name, value in added.items() if name not in headers}


@settings(max_examples=400)
@given(
    method=st.sampled_from(["GET", "POST", "PUT"]),
    host=st.sampled_from(
        ["bedrock-runtime.us-east-1.amazonaws.com", "127.0.0.1:8000", "h.example:8443"]
    ),
    path=PATH,
    query=QUERY,
    headers=HEADERS,
    body=BODY,
    secret=SECRET,
    token=st.none() | SECRET,
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
    service=st.sampled_from(["bedrock", "bedrock-mantle"]),
    unix_s=st.integers(0, 4_102_444_799),  # to the end of 2099
)
@example(
    method="POST",
    host="bedrock-runtime.us-east-1.amazonaws.com",
    path="/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.a/converse-stream",
    query="",
    headers={"content-type": "application/json"},
    body=[b'{"messages"', b": [", b"]}"],
    secret="s",
    token="t",
    region="us-east-1",
    service="bedrock",
    unix_s=1_795_671_879,
)
def test_signatures_are_botocores(
    method: str,
    host: str,
    path: str,
    query: str,
    headers: dict[str, str],
    body: list[bytes],
    secret: str,
    token: str | None,
    region: str,
    service: str,
    unix_s: int,
) -> None:
    ours = sign_v4(
        method,
        host,
        path,
        query,
        list(headers.items()),
        body,
        access_key="AKIDEXAMPLE",
        secret_key=secret,
        session_token=token,
        region=region,
        service=service,
        unix_s=unix_s,
    )
    url = f"https://{host}{path}" + (f"?{query}" if query else "")
    keys = Credentials("AKIDEXAMPLE", secret, token)
    theirs = botocores(method, url, headers, b"".join(body), keys, region, service, unix_s)
    assert dict(ours) == theirs


@pytest.mark.parametrize("pieces", [[b"abc"], [b"a", b"", b"bc"], [b"ab", b"c"]])
def test_a_body_is_signed_as_one(pieces: list[bytes]) -> None:
    def signed(body: list[bytes]) -> list[tuple[str, str]]:
        return sign_v4(
            "POST",
            "h",
            "/",
            "",
            [],
            body,
            access_key="a",
            secret_key="s",
            session_token=None,
            region="r",
            service="s",
            unix_s=0,
        )

    assert signed(pieces) == signed([b"abc"])
    assert signed(pieces) != signed([b"abd"])
