"""The errors of an object storage, each as a fact and a next step, without what may be secret.

The library's texts have several lines, the storage's XML and the query of the request. The first
pattern that matches decides; another error is repeated in one line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 5
_LONGEST = 300

_KNOWN = [
    (
        r"NoSuchBucket|ContainerNotFound|bucket does not exist",
        "its bucket does not exist",
        "Create the bucket, or correct the address",
    ),
    (
        r"ExpiredToken|token has expired|TokenRefreshRequired",
        "the session of the credentials has expired",
        "Renew the credentials",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|AuthenticationFailed|"
        r"InvalidClientTokenId|401 Unauthorized",
        "the storage does not accept the credentials",
        "Check the access key and its secret, in the sink's block or secrets or in "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    (
        r"169\.254\.169\.254|169\.254\.170\.|metadata\.google|MissingAccount|"
        r"Account must be specified|MissingCredential",
        "there are no credentials",
        "Set them in the sink's block or secrets, or in variables such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY",
    ),
    (
        r"RequestTimeTooSkewed",
        "the clock of this host differs from the storage's",
        "Set the clock",
    ),
    (
        r"AccessDenied|AuthorizationPermissionMismatch|403 Forbidden",
        "the storage does not permit it",
        "Permit these credentials to list, read, write and delete objects below the address",
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|301 Moved|IncorrectEndpoint",
        "its bucket is in another region or at another endpoint",
        "Set AWS_REGION and AWS_ENDPOINT_URL to those of the bucket",
    ),
    (
        r"URL scheme is not allowed|BadScheme",
        "its endpoint is http://, which encrypts nothing",
        "Use https://, or set AWS_ALLOW_HTTP to true",
    ),
    (
        r"certificate|UnknownIssuer|NotValidForName",
        "the certificate of its endpoint is not trusted",
        "Install the authority's certificate on this host, or correct the endpoint",
    ),
    (
        r"dns error",
        "the name of its endpoint is unknown",
        "Correct AWS_ENDPOINT_URL, the bucket's name or the network",
    ),
    (
        r"error sending request|tcp connect error|Connection refused|timed out|connection closed",
        "its endpoint cannot be reached",
        "Check the endpoint and the network",
    ),
    (
        r"SlowDown|TooManyRequests|503 Service",
        "the storage refuses so many requests",
        "Run again later",
    ),
    (
        r"InternalError|50[024] (Internal Server Error|Bad Gateway|Gateway Time-?out)",
        "the storage failed by itself",
        "See what its log says, and run again",
    ),
    (
        r"performing PUT .* 40[45] (?!.*NoSuch)",
        "its endpoint is no object storage",
        "Correct AWS_ENDPOINT_URL",
    ),
]
_PATTERNS = [(re.compile(pattern), said, step) for pattern, said, step in _KNOWN]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def described(text: str, secrets: Iterable[str] = ()) -> tuple[str, str]:
    """Return what an error of an object storage says, and the next step.

    Args:
        text: The error's text.
        secrets: Values that are not repeated, beside those of the environment.
    """
    for pattern, said, step in _PATTERNS:
        if pattern.search(text):
            return said, step
    return harmless(text, secrets), "Repair the storage, and run again"


def harmless(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a storage's error in one line, without the signature of a request or a key."""
    text = _COLOUR.sub("", text).partition("\n\nDebug source")[0]
    text = re.sub(r"\?[^\s'\"]*", "?…", " ".join(text.replace("↳", " ").split()))
    for value in (*secrets, *_in_environment()):
        if len(value) > _SHORTEST_SECRET:
            text = text.replace(value, "…")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _in_environment() -> list[str]:
    return [value for name, value in os.environ.items() if _SECRET.search(name)]
