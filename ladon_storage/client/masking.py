"""The rule by which secrets are removed from answers' texts, of sources and of the service alike.

- An API may echo its caller's key in an error, a next link or a status. So any text that comes
  partly from an answer is masked before it is put into a message, and before it is cut: half a
  secret is not found.
- A secret is searched for character by character, since any of them may be percent-encoded or
  escaped for JSON or HTML: an address that was parsed and written again has only some of them
  encoded.
- Base64 and hexadecimal forms are found within a longer text, too. All forms are found in lower and
  upper case, as some services change the case of what they echo.
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
"""The unambiguous characters of the shortest secret in Base64 or hexadecimal digits."""

_MASK = "***"

_TWICE = "\"'\\"
"""Characters that some programs double between quotes."""

# Atomic groups, as no other division of a text is worth a try: it may be long. A possessive
# quantifier says the same, and before Python 3.11.5 it finds less after a group of alternatives.
_BACKSLASHES = r"(?>(?:\\|%(?:25)*5C){0,16})"
"""The escapes before a character, repeated as often as it was escaped."""


class Redactor:
    """The secrets of one source or service, and their removal from texts.

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
        """Remove the secrets from the texts of an error, and drop chained errors that hold any."""
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
    """Return a secret and its parts that are secrets alone: the text after "Bearer"."""
    scheme, _, credentials = secret.partition(" ")
    return {secret, credentials.strip()} if credentials and scheme.isalpha() else {secret}


def _forms(secret: str) -> Iterator[str]:
    """Yield the regular expressions of the forms in which services write a secret."""
    yield "".join(_run(one, len(list(same))) for one, same in groupby(secret))
    sent = secret.encode(errors="surrogatepass")
    if 2 * len(sent) > _SHORTEST_CODED:
        yield "[\\s:]?".join(f"{byte:02x}" for byte in sent)
    # Three bytes are four characters, so the position of its first byte among them matters.
    for before in range(3):
        coded = b64encode(bytes(before) + sent).decode().rstrip("=")
        certain = coded[before + bool(before) : -1 if (before + len(sent)) % 3 else None]
        if len(certain) >= _SHORTEST_CODED:
            around = "[A-Za-z0-9+/_-]?" if before else ""
            yield around + "".join(map(_coded, certain)) + "[A-Za-z0-9+/_-]?(?:=|%3D){0,2}"


def _run(one: str, count: int) -> str:
    """Return the expression of a character that is repeated a number of times."""
    most = 16 * count if one in _TWICE else count
    character = _character(one)
    return character if most == 1 else f"(?>{character}{{{count},{most}}})"


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
        "".join(f"%(?:25)*u{units[at : at + 4]}" for at in range(0, len(units), 4)),
        ("" if one == "\\" else _BACKSLASHES) + percent,
        f"&(?:amp;)*#(?:0*{number}|x0*{number:x});",
    ]
    if name := codepoint2name.get(number):
        forms.append(f"&(?:amp;)*{name};")
    if one == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _coded(one: str) -> str:
    """Return the expression of a Base64 character, of which there are two alphabets."""
    return {"+": "(?:[+-]|%2B)", "/": r"(?:\\{0,2}/|_|%2F)"}.get(one, one)
