"""Certificates of this machine's own, for servers that speak TLS and clients that show one."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """PEM files. It vouches for itself, as localhost and the loopback addresses."""

    certificate: Path
    key: Path

    def options(self) -> tuple[str, str]:
        return f"--cert={self.certificate}", f"--key={self.key}"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


def make(folder: Path) -> Certificate:
    """Write a fresh one."""
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(each)) for each in LOOPBACK)]
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named("localhost")
    return _written(folder, key, _begun(key, name, issuer=name, names=names, is_authority=True).sign(key, _HASH))


class Authority:
    """Issues certificates, each into a folder like a mounted Secret of cert-manager's: tls.crt, tls.key, ca.crt."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("authority")
        begun = _begun(self._key, self._name, issuer=self._name, names=[], is_authority=True)
        self._certificate = begun.sign(self._key, _HASH)

    def issue(self, folder: Path, names: Sequence[str], *, server: bool, client: bool) -> Certificate:
        """One for names, to be shown by a server, by a client or by both."""
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        begun = _begun(
            key, _named(names[0]), issuer=self._name, names=[x509.DNSName(each) for each in names], is_authority=False
        ).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return _written(folder, key, begun.sign(self._key, _HASH))


_HASH = hashes.SHA256()


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    *,
    issuer: x509.Name,
    names: Sequence[x509.GeneralName],
    is_authority: bool,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begun = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
    )
    return begun.add_extension(x509.SubjectAlternativeName(names), critical=False) if names else begun


def _written(folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Certificate:
    made = Certificate(folder / "tls.crt", folder / "tls.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made
