"""Certificates: of our own ports, of what we show and believe, and what a target shows when it is called."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from chassis.settings import Settings
from triglot.checkup.finding import PATIENCE_SECONDS, Finding, fine, warning, wrong

_SOON = timedelta(days=14)
_RENEW = "renew it; a process takes the new files without a restart"


def examine_files(settings: Settings) -> Iterator[Finding]:
    """The files that the settings name."""
    pairs = (("tls_certificate", "tls_key"), ("client_certificate", "client_key"))
    for certificate_field, key_field in pairs:
        certificate, key = getattr(settings, certificate_field), getattr(settings, key_field)
        if certificate:
            yield from _file(settings.variable(certificate_field), certificate)
            yield from _pair(settings.variable(key_field), certificate, key)
    for field in ("tls_authority", "client_authority"):
        if getattr(settings, field):
            yield from _file(settings.variable(field), getattr(settings, field))


def _file(variable: str, path: str) -> Iterator[Finding]:
    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it holds no certificate in PEM"
        yield wrong(variable, f"{path}: {problem}", "let the variable name a readable PEM file")
        return
    # Of a chain, or of several authorities, the one that ends first.
    yield validity(variable, min(found, key=lambda each: each.not_valid_after_utc))


def _pair(variable: str, certificate: str, key: str) -> Iterator[Finding]:
    try:
        private = load_pem_private_key(Path(key).read_bytes(), None)
        fits = x509.load_pem_x509_certificate(Path(certificate).read_bytes()).public_key() == private.public_key()
    except (OSError, ValueError, TypeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it holds no private key in PEM without a password"
        yield wrong(variable, f"{key}: {problem}", "let the variable name a readable PEM file")
        return
    if fits:
        yield fine(variable, "fits the certificate")
    else:
        yield wrong(variable, "is not the key of the certificate", "replace both files together")


def validity(check: str, certificate: x509.Certificate) -> Finding:
    """Whether a certificate is valid today, and will be for a while."""
    now = datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        return wrong(check, f"is not valid before {begins:%Y-%m-%d %H:%M} UTC", "set the clock, or make a new one")
    if now >= ends:
        return wrong(check, f"expired on {ends:%Y-%m-%d %H:%M} UTC", _RENEW)
    text = f"is valid for {(ends - now).days} more days"
    return warning(check, text, _RENEW) if ends - now < _SOON else fine(check, text)


async def examine_target(check: str, address: str, settings: Settings) -> list[Finding]:
    """What the TLS handshake with a target shows; nothing if neither side speaks TLS. Empty too if nobody answers."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    shown = await _shown(host, int(port), None)
    if isinstance(shown, OSError) and not isinstance(shown, ssl.SSLError):
        return []  # nobody answers, which the call says
    if isinstance(shown, ssl.SSLError):
        if not settings.tls_authority:
            return []
        advice = "set TRIGLOT_TLS_CERTIFICATE there, or TRIGLOT_TLS_AUTHORITY not here"
        return [wrong(check, "does not speak TLS", advice)]
    if not settings.tls_authority:
        advice = "set TRIGLOT_TLS_AUTHORITY to the file of the authority that vouches for it"
        return [wrong(check, "speaks TLS, and is called without", advice)]
    found = [validity(check, x509.load_der_x509_certificate(shown))]
    refused = await _shown(host, int(port), settings)
    if isinstance(refused, ssl.SSLCertVerificationError) and found[0].status != "error":
        advice = (
            "have the certificate made for the names by which it is called, by an authority in TRIGLOT_TLS_AUTHORITY"
        )
        found.append(wrong(check, f"cannot be believed: {refused.verify_message}", advice))
    elif isinstance(refused, ssl.SSLError) and found[0].status != "error":
        advice = "show it a certificate that its TRIGLOT_CLIENT_AUTHORITY vouches for: TRIGLOT_CLIENT_CERTIFICATE"
        found.append(wrong(check, "refuses our certificate, or asks for one", advice))
    return found


async def _shown(host: str, port: int, verified_by: Settings | None) -> bytes | OSError:
    """The certificate that a server shows, or what kept it from being seen."""
    context = ssl.create_default_context(cafile=verified_by.tls_authority if verified_by else None)
    context.set_alpn_protocols(["h2"])
    if verified_by is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif verified_by.shown_to_targets[0]:
        context.load_cert_chain(*verified_by.shown_to_targets)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if verified_by is not None:
                # In TLS 1.3 a server says after the handshake what it thinks of our certificate.
                await reader.read(1)
            writer.close()
            return bytes(der)
    except TimeoutError:
        return OSError("no answer")
    except OSError as error:
        return error
