"""Why TLS failed, by OpenSSL's codes and names: its texts may quote an address."""

from __future__ import annotations

import re
import ssl

import aiohttp

_ERRORS = (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError)

_EXPIRED = "a certificate has expired", "have it renewed, or set the clock of this machine"
_EARLY = "a certificate is not valid yet", "set the clock of this machine, or have it replaced"
_NAME = "the certificate has another name", "check the address, or have its name added there"
_ISSUER = (
    "the certificate is of an unknown authority",
    "name the file of that authority as ca_file if you trust it, or have the whole chain sent",
)
_NO_TLS = "there is no TLS at that port", "check the port, or write http:// where TLS is not meant"
_CLIENT = (
    "the client's certificate was refused, or is missing",
    "check client_cert, its authority and when it expires",
)

_VERIFYING = dict.fromkeys((2, 18, 19, 20, 21), _ISSUER) | {
    9: _EARLY,
    10: _EXPIRED,
    62: _NAME,
    64: _NAME,
}
"""What OpenSSL's ``X509_V_ERR`` mean; the text of any other one quotes nothing."""

_SHAKING = (
    (re.compile(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"), _NO_TLS),
    (re.compile(r".*ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)"), _CLIENT),
)


def tls_failure(error: BaseException) -> tuple[str, str] | None:
    """Return why TLS failed and the next step, or ``None`` if an error is not of TLS.

    An alert that comes after the handshake, such as TLS 1.3's for a client's certificate, is in the
    cause of what aiohttp raises.
    """
    told = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if not isinstance(told, _ERRORS):
        return None
    if isinstance(told, ssl.SSLCertVerificationError) and hasattr(told, "verify_code"):
        other = f"a certificate was refused, {told.verify_message}", "check it and ca_file"
        return _VERIFYING.get(told.verify_code, other)
    name = getattr(told, "reason", None) or type(told).__name__
    for pattern, meant in _SHAKING:
        if pattern.match(name):
            return meant
    return (
        f"it failed with {name}",
        "check the versions of TLS, and whether client_cert is asked for",
    )
