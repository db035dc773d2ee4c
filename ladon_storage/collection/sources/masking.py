"""The one place where secrets are taken out of a text, whoever wrote it.

- An API may echo its caller's key in an error, a next link or a status. So a text that an answer
  had a part in is masked before it is in a message, and before it is cut: half a secret is not
  found.
- A secret is looked for in the forms in which services write it: as it is, percent-encoded, in
  JSON, in HTML, in Base64; and in small or in capital letters, as some of them fold what they echo.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from html import escape
from urllib.parse import quote, quote_plus

from ladon_storage.errors import CollectionError

_SHORTEST = 4
"""Characters of the shortest secret that is masked: a shorter one is part of any sentence."""

_MASK = "***"


class Mask:
    """The secrets of one source, and how they are taken out of texts.

    >>> mask = Mask(["s3cret/key"])
    >>> mask.of("no such key: s3cret%2Fkey"), bool(mask)
    ('no such key: ***', True)
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for each in secrets for form in _forms(each) if len(form) >= _SHORTEST}
        # The longest first: a header holds the key that it is made of.
        self._forms = [
            re.compile(re.escape(form), re.IGNORECASE)
            for form in sorted(forms, key=len, reverse=True)
        ]

    def __bool__(self) -> bool:
        return bool(self._forms)

    def of(self, text: str) -> str:
        """Return ``text`` with three stars in place of each secret."""
        for form in self._forms:
            text = form.sub(_MASK, text)
        return text

    def clean(self, error: BaseException) -> None:
        """Take the secrets out of the texts of an error, and the errors behind it that hold any."""
        if not self._forms:
            return
        error.args = tuple(self.of(each) if isinstance(each, str) else each for each in error.args)
        if isinstance(error, CollectionError):
            error.message = self.of(error.message)
        link: BaseException | None = error
        for _ in range(100):  # no chain is longer, and a circle ends
            if link is None:
                return
            behind = link.__cause__ or link.__context__
            if behind is not None and self._holds(behind):
                link.__cause__ = link.__context__ = None
                link.__suppress_context__ = True
            link = link.__cause__ or link.__context__

    def _holds(self, error: BaseException) -> bool:
        text = f"{error} {error!r}"
        return self.of(text) != text


def _forms(secret: str) -> set[str]:
    if not secret:
        return set()
    plain = {secret}
    # "Bearer abc": the scheme is no secret, and what stands behind it is one by itself.
    scheme, _, credentials = secret.partition(" ")
    if credentials and scheme.isalpha():
        plain.add(credentials.strip())
    forms = set(plain)
    for each in plain:
        encoded = {quote(each, safe=""), quote(each), quote_plus(each)}
        forms |= encoded | {form.replace("%", "%25") for form in encoded}
        in_json = json.dumps(each)[1:-1]
        forms |= {in_json, in_json.replace("/", "\\/"), repr(each)[1:-1], escape(each)}
        for coded in (b64encode(each.encode()), urlsafe_b64encode(each.encode())):
            forms |= {coded.decode(), coded.decode().rstrip("=")}
    return forms
