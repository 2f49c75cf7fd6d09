"""Where credentials come from, with token servers of our own in place of the clouds'."""

import datetime
import json
import time
from pathlib import Path

import pytest
from forebay.upstreams.credentials import Credentials, SourceError, StaticSource
from forebay.upstreams.credentials.aws import AwsSource
from forebay.upstreams.credentials.azure import AzureSource
from forebay.upstreams.credentials.google import SCOPE, GoogleSource

from tests.upstreams.token_server import TokenServer, certificate, pem, rsa_key

CLOUD_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AZURE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "IDENTITY_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
)


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests."""
    for name in CLOUD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_what_the_core_is_handed() -> None:
    bearer = Credentials(headers=(("authorization", "Bearer t"),), expires_at=5.0)
    assert json.loads(bearer.document()) == {"headers": [["authorization", "Bearer t"]]}
    keys = Credentials(access_key="a", secret_key="s")
    assert json.loads(keys.document()) == {
        "access_key": "a",
        "secret_key": "s",
        "session_token": None,
    }
    assert "Bearer" not in repr(bearer)
    assert StaticSource(keys).fetch() == keys


def service_account(folder: Path, token_uri: str) -> Path:
    file = folder / "service-account.json"
    account = {
        "type": "service_account",
        "project_id": "acme",
        "private_key_id": "k1",
        "private_key": pem(rsa_key()).decode(),
        "client_email": "gateway@acme.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }
    file.write_text(json.dumps(account))
    return file


def test_a_service_account_of_google(tmp_path: Path) -> None:
    with TokenServer() as server:
        server.answer = (200, {"access_token": "g-1", "expires_in": 3600, "token_type": "Bearer"})
        source = GoogleSource(str(service_account(tmp_path, f"{server.url}/token")))
        first = source.fetch()
        server.answer = (200, {"access_token": "g-2", "expires_in": 3600, "token_type": "Bearer"})
        second = source.fetch()
    assert first.headers == (("authorization", "Bearer g-1"),)
    assert second.headers == (("authorization", "Bearer g-2"),)
    assert first.expires_at is not None
    assert 3500 < first.expires_at - time.time() <= 3601
    assert {path for path, _, _ in server.asked} == {"/token"}
    assert "assertion" in server.asked[0][2]


def test_google_credentials_of_the_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TokenServer() as server:
        server.answer = (200, {"access_token": "g-3", "expires_in": 60, "token_type": "Bearer"})
        file = service_account(tmp_path, f"{server.url}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        assert GoogleSource(None).fetch().headers == (("authorization", "Bearer g-3"),)
    assert SCOPE.endswith("/cloud-platform")


def test_what_google_refuses(tmp_path: Path) -> None:
    with TokenServer() as server:
        server.answer = (400, {"error": "invalid_grant", "error_description": "account disabled"})
        source = GoogleSource(str(service_account(tmp_path, f"{server.url}/token")))
        with pytest.raises(SourceError, match="invalid_grant"):
            source.fetch()
    with pytest.raises(SourceError, match="no Google token"):
        GoogleSource(str(tmp_path / "missing.json")).fetch()
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(SourceError, match="the file's type is None"):
        GoogleSource(str(bad)).fetch()
    bad.write_text("no JSON")
    with pytest.raises(SourceError, match="no Google token"):
        GoogleSource(str(bad)).fetch()


def test_an_application_of_entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    with TokenServer(tls) as server:
        server.by_path["/t-1/v2.0/.well-known/openid-configuration"] = (
            200,
            {
                "token_endpoint": f"{server.url}/t-1/oauth2/v2.0/token",
                "authorization_endpoint": f"{server.url}/t-1/oauth2/v2.0/authorize",
                "issuer": f"{server.url}/t-1/v2.0",
            },
        )
        server.answer = (200, {"access_token": "e-1", "expires_in": 3600, "token_type": "Bearer"})
        source = AzureSource(
            "https://ai.azure.com/.default",
            tenant_id="t-1",
            client_id="c-1",
            client_secret="s3cret",
            authority=server.url,
        )
        token = source.fetch()
        assert "s3cret" not in repr(source)
    assert token.headers == (("authorization", "Bearer e-1"),)
    assert token.expires_at is not None
    assert 3500 < token.expires_at - time.time() <= 3601
    path, _, form = server.asked[-1]
    assert path == "/t-1/oauth2/v2.0/token"
    assert (form["client_id"], form["client_secret"]) == ("c-1", "s3cret")
    assert "https://ai.azure.com/.default" in form["scope"]


def test_what_entra_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    with TokenServer(tls) as server:
        server.by_path["/t-1/v2.0/.well-known/openid-configuration"] = (
            200,
            {
                "token_endpoint": f"{server.url}/t-1/oauth2/v2.0/token",
                "authorization_endpoint": f"{server.url}/t-1/oauth2/v2.0/authorize",
                "issuer": f"{server.url}/t-1/v2.0",
            },
        )
        server.answer = (401, {"error": "invalid_client", "error_description": "AADSTS7000215"})
        source = AzureSource(
            "https://ai.azure.com/.default",
            tenant_id="t-1",
            client_id="c-1",
            client_secret="s3cret",
            authority=server.url,
        )
        with pytest.raises(SourceError, match="AADSTS7000215") as caught:
            source.fetch()
    assert "s3cret" not in str(caught.value)


def test_a_managed_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenServer() as server:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{server.url}/msi")
        monkeypatch.setenv("IDENTITY_HEADER", "h-1")
        end = int(time.time()) + 3600
        server.answer = (
            200,
            {"access_token": "m-1", "expires_on": str(end), "token_type": "Bearer"},
        )
        token = AzureSource("https://ai.azure.com/.default", client_id="mine").fetch()
    assert token.headers == (("authorization", "Bearer m-1"),)
    assert token.expires_at == end
    path, headers, form = server.asked[-1]
    assert (path, headers["x-identity-header"]) == ("/msi", "h-1")
    assert form["resource"] == "https://ai.azure.com"


def test_aws_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t1")
    found = AwsSource(None).fetch()
    assert (found.access_key, found.secret_key, found.session_token) == ("AKIA1", "s1", "t1")
    assert found.again_s is not None


def test_a_profile_of_aws(tmp_path: Path) -> None:
    (tmp_path / "aws-credentials").write_text(
        "[team]\naws_access_key_id = AKIA2\naws_secret_access_key = s2\n"
    )
    found = AwsSource("team").fetch()
    assert (found.access_key, found.secret_key, found.session_token) == ("AKIA2", "s2", None)
    with pytest.raises(SourceError, match="missing"):
        AwsSource("missing").fetch()


def test_aws_credentials_of_a_container_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lasts(minutes: int) -> str:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
        return end.strftime("%Y-%m-%dT%H:%M:%SZ")

    with TokenServer() as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/creds")
        keys = {"AccessKeyId": "AKIA3", "SecretAccessKey": "s3", "Token": "t3"}
        # Within 15 minutes of the end botocore asks anew, every time.
        server.answer = (200, {**keys, "Expiration": lasts(12)})
        source = AwsSource(None)
        first = source.fetch()
        server.answer = (200, {**keys, "Token": "t4", "Expiration": lasts(120)})
        second = source.fetch()
    assert (first.session_token, second.session_token) == ("t3", "t4")


def test_no_aws_credentials_at_all() -> None:
    with pytest.raises(SourceError, match="no AWS credentials"):
        AwsSource(None).fetch()
