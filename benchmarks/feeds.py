"""The feeds that every contender reads: three data sets in pages over loopback HTTP.

- The server is a process of its own, and its cost is nobody's. A page of a data set is made once.
- Each record has its id and its time at the top, so that no contender has to unwrap one.
- ThreatFox and NVD are recordings where they lie beside the repository: their records in turn, each
  under an id of its own. Elsewhere records of the same shape are made.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

Item = dict[str, Any]
Kind = Literal["text", "integer", "boolean", "object", "array"]

PAGE = 1_000
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
RECORDINGS = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@dataclass(frozen=True)
class Feed:
    """The shape of a data set: what its records are, how many, their times and their fields."""

    what: str
    records: int
    times: tuple[str, ...]
    fields: dict[str, Kind]

    def title(self, records: int) -> str:
        """Return its name for readers, with the number of records that were taken of it."""
        return f"{records:,} {self.what}"


_TEXTS = (
    *("ioc_value", "ioc_type", "threat_type", "malware", "malware_alias", "malware_printable"),
    *("first_seen_utc", "last_seen_utc", "reference", "tags", "reporter"),
)
_CVE_TEXTS = (
    *("id", "sourceIdentifier", "published", "lastModified", "vulnStatus"),
    *("cisaExploitAdd", "cisaActionDue", "cisaRequiredAction", "cisaVulnerabilityName"),
)
_CVE_LISTS = ("descriptions", "weaknesses", "configurations", "references")

FEEDS = {
    "six": Feed(
        "× 6 fields",
        100_000,
        ("seen",),
        {
            **dict.fromkeys(("id", "seen", "kind", "value"), "text"),
            "confidence": "integer",
            "is_active": "boolean",
        },
    ),
    "threatfox": Feed(
        "of ThreatFox",
        50_000,
        ("first_seen_utc", "last_seen_utc"),
        {
            **dict.fromkeys(("id", *_TEXTS), "text"),
            **dict.fromkeys(("confidence_level", "anonymous"), "integer"),
            "is_compromised": "boolean",
        },
    ),
    "nvd": Feed(
        "of NVD, 4.2 KB each",
        10_000,
        ("lastModified",),
        {
            **dict.fromkeys(_CVE_TEXTS, "text"),
            **dict.fromkeys(_CVE_LISTS, "array"),
            "metrics": "object",
        },
    ),
}


def page_of(name: str, first: int, size: int) -> bytes:
    """Return the JSON list of some records of a data set."""
    line = {"six": _six, "threatfox": _threatfox, "nvd": _nvd}[name]
    return b"[" + ",".join(map(line, range(first, first + size))).encode() + b"]"


# What makes the records is no part of what is measured, and should cost next to nothing.
_days = [(BEGIN + timedelta(days=day)).date().isoformat() for day in range(400)]
_times = [f"{n // 3_600:02}:{n // 60 % 60:02}:{n % 60:02}" for n in range(86_400)]


def time_of(number: int) -> str:
    """Return the time of a generated record: one a second."""
    return f"{_days[number // 86_400]}T{_times[number % 86_400]}+00:00"


def _six(number: int) -> str:
    return (
        f'{{"id":"{number * 2654435761 % 2**32:08x}","seen":"{time_of(number)}",'
        f'"kind":"{("url", "domain", "ip")[number % 3]}",'
        f'"value":"host-{number}.example.invalid","confidence":{number % 101},'
        f'"is_active":{"true" if number % 2 else "false"}}}'
    )


def _threatfox(number: int) -> str:
    rows = _indicators()
    return f'{{"id":"{1_000_000 + number}",{rows[number % len(rows)]}'


def _nvd(number: int) -> str:
    rows = _vulnerabilities()
    return f'{{"id":"CVE-2024-{number:06}",{rows[number % len(rows)]}'


def _rest(row: Item) -> str:
    """Return the JSON of a row without its opening brace and its id."""
    fields = {name: value for name, value in row.items() if name != "id"}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)[1:]


@cache
def _indicators() -> list[str]:
    recording = RECORDINGS / "threatfox" / "polls_001_040.tar.xz"
    if not recording.is_file():
        return [_rest(_made_indicator(number)) for number in range(5_000)]
    rows: list[str] = []
    with tarfile.open(recording) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                rows += [_rest(each) for [each] in json.load(content).values()]
            if len(rows) >= FEEDS["threatfox"].records:
                break
    return rows


def _made_indicator(number: int) -> Item:
    digest = blake2b(str(number).encode(), digest_size=20).hexdigest()
    seen = datetime.fromisoformat(time_of(number * 37)).strftime("%Y-%m-%d %H:%M:%S")
    return {
        "ioc_value": (f"https://{digest[:12]}.example.invalid/", f"192.0.2.{number % 256}:8080")[
            number % 2
        ],
        "ioc_type": ("url", "ip:port")[number % 2],
        "threat_type": "botnet_cc",
        "malware": f"win.family_{number % 50}",
        "malware_alias": None if number % 3 else f"Family{number % 50},F{number % 50}",
        "malware_printable": f"Family {number % 50}",
        "first_seen_utc": seen,
        "last_seen_utc": None if number % 2 else seen,
        "confidence_level": 50 + number % 51,
        "is_compromised": number % 5 == 0,
        "reference": None if number % 4 else f"https://bazaar.example.invalid/sample/{digest}/",
        "tags": "c2,drb-ra,family",
        "anonymous": 0,
        "reporter": "reporter",
    }


@cache
def _vulnerabilities() -> list[str]:
    recording = RECORDINGS / "nvd" / "nvd_cves_2.0_page.json"
    if not recording.is_file():
        return [_rest(_made_vulnerability(number)) for number in range(50)]
    found = json.loads(recording.read_bytes())["vulnerabilities"]
    return [_rest(each["cve"]) for each in found]


def _made_vulnerability(number: int) -> Item:
    modified = datetime.fromisoformat(time_of(number * 7_919)).strftime("%Y-%m-%dT%H:%M:%S.173")
    text = f"In product {number}, versions 1.0.0 to 7.33.2 do not invalidate a session. " * 4
    score = {
        "version": "3.1",
        "vectorString": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H",
        "attackVector": "NETWORK",
        "attackComplexity": "LOW",
        "privilegesRequired": "NONE",
        "userInteraction": "NONE",
        "scope": "UNCHANGED",
        "confidentialityImpact": "HIGH",
        "integrityImpact": "HIGH",
        "availabilityImpact": "HIGH",
        "baseScore": 9.8,
        "baseSeverity": "CRITICAL",
    }
    matches = [
        {
            "vulnerable": True,
            "criteria": f"cpe:2.3:a:vendor_{number}:product_{each}:*:*:*:*:*:*:*:*",
            "versionEndIncluding": f"7.{each}.2",
            "matchCriteriaId": blake2b(str(each).encode(), digest_size=16).hexdigest(),
        }
        for each in range(6)
    ]
    return {
        "sourceIdentifier": "lab@example.invalid",
        "published": "2022-02-10T10:15:13.973",
        "lastModified": modified,
        "vulnStatus": "Analyzed",
        "descriptions": [{"lang": lang, "value": text} for lang in ("en", "es")],
        "metrics": {
            "cvssMetricV31": [
                {"type": kind, "cvssData": score, "exploitabilityScore": 3.9, "impactScore": 5.9}
                for kind in ("Primary", "Secondary")
            ]
        },
        "weaknesses": [{"type": "Primary", "description": [{"lang": "en", "value": "CWE-613"}]}],
        "configurations": [
            {"nodes": [{"operator": "OR", "negate": False, "cpeMatch": matches}]},
        ],
        "references": [
            {"url": f"https://example.invalid/advisories/{number}/{each}", "tags": ["Patch"]}
            for each in range(6)
        ],
    }


@lru_cache(maxsize=2)
def document_of(shape: str, megabytes: int) -> bytes:
    """Return one JSON document of about this size: a list of records, or an object by their ids."""
    size, lines = 0, []
    for number in itertools.count():
        line = _six(number)
        if shape == "object":
            line = f'"{line[7:15]}":{{{line[17:]}'
        lines.append(line)
        size += len(line) + 1
        if size >= megabytes * 1e6:
            break
    first, last = "[]" if shape == "list" else "{}"
    return f"{first}{','.join(lines)}{last}".encode()


# All pages of the three data sets, but not those of a million records.
_kept = lru_cache(maxsize=200)(page_of)


def _cursor_of(done: int) -> str:
    """Return the cursor behind so many records, which does not show that it counts."""
    return f"after:{done}".encode().hex()


def _place_of(cursor: str) -> int:
    return int(bytes.fromhex(cursor).removeprefix(b"after:") or 0)


async def _serve() -> None:
    from aiohttp import web

    from benchmarks.processes import serve

    async def answer(request: web.Request) -> web.Response:
        name, query = request.match_info["name"], request.query
        first, count = int(query.get("first", 0)), int(query["count"])
        does_count = "offset" in query
        done = int(query["offset"]) if does_count else _place_of(query.get("cursor", ""))
        records = _kept(name, first + done, min(PAGE, count - done))
        done += PAGE
        place = {"offset": str(done)} if does_count else {"cursor": _cursor_of(done)}
        following = {**query, **place}
        link = json.dumps(str(request.url.with_query(following)) if done < count else None)
        body = b'{"next":' + link.encode() + b',"data":' + records + b"}"
        return web.Response(body=body, content_type="application/json")

    async def whole(request: web.Request) -> web.Response:
        body = document_of(request.match_info["shape"], int(request.query["megabytes"]))
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/document/{shape}", whole)
    app.router.add_get("/{name}", answer)
    await serve(app)


if __name__ == "__main__":
    asyncio.run(_serve())
