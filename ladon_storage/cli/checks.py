"""Checks with verdicts: the subject, its state, and the next step."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ladon_storage.cli.output import print_json, print_table, said


@dataclass(frozen=True)
class Check:
    """One checked subject.

    Args:
        what: The name of the subject.
        verdict: The state of the subject.
        finding: The fact behind the verdict.
        next_step: The remedy.
    """

    what: str
    verdict: Literal["ok", "warning", "failed"]
    finding: str = ""
    next_step: str = ""


async def attempted(what: str, check: Coroutine[Any, Any, Check]) -> Check:
    """Return the result of a check; an error is a result too, and its text has the next step."""
    try:
        return await check
    except Exception as error:
        return Check(what, "failed", said(error))


def tell(checks: Sequence[Check], *, as_json: bool) -> int:
    """Print checks, and return the exit code: 1 where one failed."""
    if as_json:
        print_json([asdict(each) for each in checks])
    else:
        print_table(
            ("check", "verdict", "finding", "next step"),
            ((each.what, each.verdict, each.finding, each.next_step) for each in checks),
        )
    return 1 if any(each.verdict == "failed" for each in checks) else 0
