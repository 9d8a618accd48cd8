"""Why a coordinator's certificate is not trusted, told from the certificate itself."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sites.config import SuperLinkConfig

if TYPE_CHECKING:
    from cryptography import x509

_NOT_YET_VALID, _EXPIRED, _HOST_NAME, _ADDRESS = 9, 10, 62, 64
"""Of OpenSSL's verification results."""


def explain(
    link: SuperLinkConfig,
    error: ssl.SSLCertVerificationError,
    connect: Callable[[ssl.SSLContext], http.client.HTTPConnection],
) -> tuple[str, str]:
    """Problem and remedy.

    Args:
        connect: opens a connection with a context. It is used to read the certificate alone; nothing is sent.
    """
    shown = _certificate(connect)
    if error.verify_code in (_HOST_NAME, _ADDRESS):
        names = f"; it names {', '.join(_names(shown))}" if shown is not None else ""
        return (
            f"the certificate of {link.address} is not for this name{names}",
            "put one of these names into superlink.address, or ask the coordinator for a certificate with this one",
        )
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        now = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        dates = (
            f" ({shown.not_valid_before_utc:%Y-%m-%d %H:%M} to {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC)"
            if shown is not None
            else ""
        )
        state = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        return (
            f"the certificate of {link.address} or of its authority {state}{dates}; {now}",
            "set the clock if it is wrong; otherwise tell the coordinator, who renews it",
        )
    issuer = f", but by '{shown.issuer.rfc4514_string()}'" if shown is not None else ""
    return (
        f"the certificate of {link.address} is not signed by {link.root_certificates or 'a public authority'}{issuer}",
        "do not go on: ask the coordinator whether ca.crt has changed; if not, something in between is answering, "
        "such as a proxy that opens TLS, which the hospital's network administrators must exempt",
    )


def _certificate(connect: Callable[[ssl.SSLContext], http.client.HTTPConnection]) -> x509.Certificate | None:
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with closing(connect(context)) as connection:
            return x509.load_der_x509_certificate(connection.sock.getpeercert(binary_form=True))
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ["nothing"]
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]
