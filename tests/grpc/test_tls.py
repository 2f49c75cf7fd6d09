"""What is said of certificates that change."""

from pathlib import Path

import structlog
from forebay.config import GrpcTls
from forebay.grpc.tls import CertificateFiles

from tests.support.certificates import Authority


def test_each_cause_is_told_once(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.write(tmp_path, "server")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    files = CertificateFiles(GrpcTls(cert=str(cert), key=str(key), client_ca=str(ca)))
    files.credentials()
    ca.write_bytes(b"no certificate")
    with structlog.testing.capture_logs() as logs:
        assert [files.changed() for _ in range(3)] == [None] * 3
        ca.unlink()
        assert [files.changed() for _ in range(3)] == [None] * 3
        ca.write_bytes(authority.pem)
        assert files.changed() is not None
        ca.unlink()
        assert [files.changed() for _ in range(3)] == [None] * 3
    levels = [entry["log_level"] for entry in logs]
    assert levels == ["warning", "warning", "info", "warning"]
    assert "client_ca" in logs[0]["cause"]
