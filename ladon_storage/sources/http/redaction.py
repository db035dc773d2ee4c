"""The one place where secrets are taken out of a text, whoever wrote it.

- An API may echo its caller's key in an error, a next link or a status. So a text that an answer
  had a part in is masked before it is in a message, and before it is cut: half a secret is not
  found.
- A secret is looked for character by character, since any of them may be percent-encoded or escaped
  for JSON or HTML: an address that was read and written again has only some of them so.
- In Base64 and in hexadecimal digits it is found within a longer text, too. All forms are found in
  small and in capital letters, as some services fold what they echo.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html.entities import codepoint2name
from itertools import groupby

from ladon_storage.errors import CollectionError

_SHORTEST = 4
"""Characters of the shortest secret that is masked: a shorter one is part of any sentence."""

_SHORTEST_CODED = 5
"""Characters that are certain of the shortest secret in Base64 or hexadecimal digits."""

_MASK = "***"

_TWICE = "\"'\\"
"""Characters that some write twice in a text between quotes."""

_BACKSLASHES = r"(?:\\|%(?:25)*5C){0,4}+"
"""What stands before a character that is escaped, as often as it was."""


class Redactor:
    """The secrets of one source, and how they are taken out of texts.

    >>> mask = Redactor(["s3cret/key"])
    >>> mask.of("no such key: s3cret%2Fkey"), bool(mask)
    ('no such key: ***', True)
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        plain = {part for each in secrets for part in _parts(each) if len(part) >= _SHORTEST}
        # The longest first: a header holds the key that it is made of.
        self._forms = [
            re.compile(form, re.IGNORECASE)
            for each in sorted(plain, key=len, reverse=True)
            for form in _forms(each)
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


def _parts(secret: str) -> set[str]:
    """Return a secret, and what is one by itself in it: what stands behind "Bearer"."""
    scheme, _, credentials = secret.partition(" ")
    return {secret, credentials.strip()} if credentials and scheme.isalpha() else {secret}


def _forms(secret: str) -> Iterator[str]:
    """Yield the expressions of what services make of a secret."""
    yield "".join(_run(one, len(list(same))) for one, same in groupby(secret))
    sent = secret.encode(errors="surrogatepass")
    if 2 * len(sent) > _SHORTEST_CODED:
        yield "[\\s:]?".join(f"{byte:02x}" for byte in sent)
    # Three bytes are four characters, so that it matters where among them it begins.
    for before in range(3):
        coded = b64encode(bytes(before) + sent).decode().rstrip("=")
        certain = coded[before + bool(before) : -1 if (before + len(sent)) % 3 else None]
        if len(certain) >= _SHORTEST_CODED:
            around = "[A-Za-z0-9+/_-]?" if before else ""
            yield around + "".join(map(_coded, certain)) + "[A-Za-z0-9+/_-]?(?:=|%3D){0,2}"


def _run(one: str, count: int) -> str:
    """Return the expression of a character that is there a number of times."""
    most = 4 * count if one in _TWICE else count
    return _character(one) + ("" if most == 1 else f"{{{count},{most}}}+")


def _character(one: str) -> str:
    """Return the expression of a character as it is, and as it is quoted."""
    number = ord(one)
    sent = one.encode(errors="surrogatepass").hex()
    units = one.encode("utf-16-be", "surrogatepass").hex()
    plain = re.escape(one)
    percent = "".join(f"%(?:25)*{sent[at : at + 2]}" for at in range(0, len(sent), 2))
    forms = [
        plain if one == "\\" else _BACKSLASHES + plain,
        "".join(rf"\\{{1,4}}u{units[at : at + 4]}" for at in range(0, len(units), 4)),
        rf"\\{{1,4}}x{number:02x}",
        ("" if one == "\\" else _BACKSLASHES) + percent,
        f"&(?:amp;)*#(?:0*{number}|x0*{number:x});",
    ]
    if name := codepoint2name.get(number):
        forms.append(f"&(?:amp;)*{name};")
    if one == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _coded(one: str) -> str:
    """Return the expression of a character of Base64, of which there are two alphabets."""
    return {"+": "(?:[+-]|%2B)", "/": r"(?:\\{0,2}/|_|%2F)"}.get(one, one)
