"""Certificates for a serving side and its clients: an authority of our own, and what it signs.

For loopback, tests and demos; whoever serves others brings certificates of theirs. Keys are P-256, because TLS
stacks take those everywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness.remote.serve.files import publish

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LAST = timedelta(days=365)
_EARLY = timedelta(minutes=5)


@dataclass(frozen=True)
class Tls:
    """What a serving side needs: its own certificate and key, and the authority of its clients if they must have one.

    All three are PEM.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


class Authority:
    """Signs certificates; ``certificate`` (PEM) is what others are to trust."""

    def __init__(self, name: str = "remote configuration", *, now: datetime | None = None) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self._now = now or datetime.now(UTC)
        signed = (
            self._builder(self._name, self._key.public_key(), self._now, LAST)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, SHA256())
        )
        self.certificate = signed.public_bytes(Encoding.PEM)

    def issue(
        self, names: Sequence[str] = LOOPBACK, *, start: datetime | None = None, last: timedelta = LAST
    ) -> tuple[bytes, bytes]:
        """A certificate for these host names and addresses, and its key, both PEM; for servers and clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        signed = (
            self._builder(_named(names[0]), key.public_key(), start or self._now, last)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return signed.public_bytes(Encoding.PEM), private

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, last: timedelta
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _EARLY)
            .not_valid_after(start + last)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def kept_in(folder: Path, *, mutual: bool = False) -> Tls:
    """The server's certificate in ``folder``; it, ``ca.pem``, ``client.pem`` and ``client.key`` are made if need be.

    ``mutual``: clients must have a certificate of the same authority.
    """
    names = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    if not all((folder / name).exists() for name in names):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = Authority()
        made = (authority.certificate, *authority.issue(), *authority.issue(("client",)))
        for name, pem in zip(names, made, strict=True):
            publish(folder / name, pem)
    ca, certificate, key = ((folder / name).read_bytes() for name in names[:3])
    return Tls(certificate, key, ca if mutual else None)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
