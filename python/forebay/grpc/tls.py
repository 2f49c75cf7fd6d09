"""TLS of the gRPC listener, from files that may be replaced while it serves."""

import os
import threading

import grpc
import structlog

from forebay.config import GrpcTls

log = structlog.get_logger("forebay.grpc")

_Stamp = tuple[tuple[int, int, int], ...]


class CertificateFiles:
    """The files of a certificate, read again once one of them has changed."""

    def __init__(self, tls: GrpcTls) -> None:
        self._tls = tls
        self._paths = [tls.cert, tls.key] + ([tls.client_ca] if tls.client_ca else [])
        self._lock = threading.Lock()
        self._stamp: _Stamp = ()
        self._failed: _Stamp = ()
        self._told = ""

    def credentials(self) -> grpc.ServerCredentials:
        """For a listener: each handshake takes the files as they are then.

        Raises: OSError that names the file which cannot be read; ValueError: they do not fit.
        """
        self._stamp = self._look()
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self.changed,  # type: ignore[arg-type]  # None is allowed, and means: no change
            require_client_authentication=self._tls.client_ca is not None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificate if its files have changed since it was asked last, else None.

        gRPC calls it from its own threads before a handshake. Files that cannot be read leave
        everything as it is.
        """
        with self._lock:
            try:
                stamp = self._look()
                if stamp in (self._stamp, self._failed):
                    return None
                certificate = self._read()
            except OSError as error:
                self._tell("certificate cannot be read, the earlier one stays", error)
                return None
            except ValueError as error:
                self._failed = stamp
                self._tell("no certificate and its key, the earlier ones stay", error)
                return None
            self._stamp = stamp
            self._told = ""
        log.info("certificate read again", file=self._tls.cert)
        return certificate

    def _tell(self, what: str, error: Exception) -> None:
        """Say it once for a cause: every handshake meets it."""
        if self._told != str(error):
            self._told = str(error)
            log.warning(what, cause=self._told)

    def _look(self) -> _Stamp:
        found = (os.stat(path) for path in self._paths)
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        contents = []
        for path in self._paths:
            with open(path, "rb") as file:
                contents.append(file.read())
        check_pair(contents[0], contents[1])
        ca = contents[2] if self._tls.client_ca else None
        if ca is not None:
            check_authorities(ca)
        return grpc.ssl_server_certificate_configuration([(contents[1], contents[0])], ca)


def check_pair(cert: bytes, key: bytes) -> None:
    """Raises: ValueError unless both are PEM and the key is the certificate's.

    gRPC would take anything and fail at each handshake, without a word.
    """
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )
    from cryptography.x509 import load_pem_x509_certificates

    try:
        own = load_pem_x509_certificates(cert)[0].public_key()
        secret = load_pem_private_key(key, None)
    except TypeError:
        raise ValueError("the private key is encrypted") from None
    shape = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if own.public_bytes(*shape) != secret.public_key().public_bytes(*shape):
        raise ValueError("the private key is another certificate's")


def check_authorities(ca: bytes) -> None:
    """Raises: ValueError unless it is PEM with a certificate.

    gRPC would take anything and let nobody in.
    """
    from cryptography.x509 import load_pem_x509_certificates

    try:
        load_pem_x509_certificates(ca)
    except ValueError as error:
        raise ValueError(f"client_ca: {error}") from None
