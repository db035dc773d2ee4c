"""A proposed source as a TOML table, each setting with its reason.

An answer may contain anything: none of its texts ends a comment or a string early.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WIDEST = 100


def table(
    name: str,
    settings: Mapping[str, object],
    reasons: Mapping[str, str],
    unsure: Sequence[str] = (),
) -> str:
    """Return ``[sources.NAME]`` with the settings, and open questions as comments.

    >>> print(table("feed", {"kind": "rest", "id": ["a", "b"]}, {"id": "both differ"}), end="")
    [sources.feed]
    kind = "rest"
    id = ["a", "b"]  # both differ
    """
    lines = [f"# Not known: {_comment(each)}." for each in unsure]
    lines.append(f"[sources.{_key(name)}]")
    for key, value in settings.items():
        line = f"{_key(key)} = {_value(value)}"
        if key in reasons:
            comment = f"# {_comment(reasons[key])}"
            short = len(line) + len(comment) < _WIDEST
            lines += [f"{line}  {comment}"] if short else [comment, line]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        pairs = [f"{_key(str(key))} = {_value(each)}" for key, each in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"TOML has no {type(value).__name__}")


def _text(value: str) -> str:
    # As JSON, with TOML's further escapes, and without lone surrogates, which TOML does not have.
    clean = value.encode("utf-8", "replace").decode()
    return json.dumps(clean, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).rstrip(".")
