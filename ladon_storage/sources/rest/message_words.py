"""The words of messages by which services refuse an answer, or say that it lacks something.

- They are those of English, and a few of each other language in which services were seen to speak.
- A message that denies them, such as ``no error``, is none.
"""

from __future__ import annotations

import re

_DENIED = "".join(
    f"(?<!{each})"
    for each in (
        *("no ", "0 ", "without ", "kein ", "keine ", "ohne ", "aucune ", "sans ", "sin ", "sem "),
        *("ningún ", "nenhum ", "nessun ", "senza ", "geen ", "brak ", "нет ", "без "),
        *("无", "無", "没有", "沒有"),
    )
)

_ENGLISH = (
    r"error|fail(?:ed|ure)|exception|denied|unauthori[sz]ed|forbidden|expired|"
    r"exceed(?:ed|s)?|quota|rate.?limit|throttl\w+|too many|time[d -]{0,2}out|unavailable|"
    r"maintenance|overload\w*|temporarily|try again|bad request|captcha|"
    r"(?:log|sign)[ -]?in|suspended|blocked|deactivated|disabled|deprecated|retired|discontinued|"
    r"not (?:allowed|permitted|authori[sz]ed|authenticated|whitelisted|logged)|"
    r"(?:have|has|lacks?|missing|insufficient) (?:no |the )?permissions?|"
    r"(?:invalid|missing|bad|wrong|unknown) (?:api.?)?(?:key|token|credential)s?|"
    r"(?:key|token|credentials?|subscription|payment|authentication|login|licen[sc]e) (?:is |are )?"
    r"(?:required|missing|invalid|needed|ended|over)|trial (?:has )?ended|upgrade your"
)
_ELSEWHERE = (
    r"\bfehler|\bverweigert|\bungültig|\babgelaufen|\bgesperrt|\bwartung"
    r"|\berreur|\brefusée?\b|\binterdit|\bexpirée?\b|\binvalide\b|\bindisponible"
    r"|\bdenegad[oa]|\bno autorizad[oa]|\bcaducad[oa]|\bmantenimiento"
    r"|\berrore\b|\bnegat[oa]\b|\bscadut[oa]|\bnon autorizzat[oa]"
    r"|\berro\b|\bnegad[oa]\b|\bnão autorizad[oa]|\bexpirad[oa]|\binválid[oa]"
    r"|\bfout\b|\bgeweigerd|\bverlopen|\bbłąd|\bodmow|\bhata\b|\breddedildi"
    r"|ошибк|отказан|запрещ|недействит|истек|помилк"
    r"|错误|錯誤|失败|失敗|拒绝|拒絕|拒否|过期|過期|无效|無效|無効|超时|維護|维护|エラー|期限切れ|メンテナンス"
    r"|오류|실패|거부|만료|점검"
)
REFUSES = re.compile(rf"{_DENIED}(?:\b(?:{_ENGLISH})\b|{_ELSEWHERE})", re.IGNORECASE)
"""The words of a message that refuses, where no list would contradict it."""

_LIST = r"(?:results?|records?|items?|rows?|entries|hits|events|data|list|output|response|answer)"
PARTS = (
    r"(?:shards?|(?:data )?sources?|backends?|partitions?|nodes?|providers?|servers?|indices|"
    r"regions?|connectors?)"
)
"""The parts of a service of which each has some of the records."""

CUTS = re.compile(
    rf"{_DENIED}(?:\b(?:{_LIST} (?:sets? )?(?:was |were |is |are |has been |have been )?"
    r"(?:truncated|cut|incomplete|partial|limited)|truncated (?:to|at|after|because)|"
    r"partial (?:results?|response|failure|content)|timed out|only (?:the )?first \d|"
    rf"limited to (?:the first )?\d[\d,]* {_LIST}|more {_LIST} (?:are |is )?available|"
    rf"too many {_LIST}|{_LIST} (?:may|might|could) be (?:incomplete|truncated|missing)|"
    rf"{PARTS} (?:\w+ )?(?:was |were |is |are |has |have )?(?:been )?"
    r"(?:failed|unavailable|down|unreachable|skipped|offline|missing)|"
    r"could not (?:be )?(?:read|load(?:ed)?|reach(?:ed)?|search(?:ed)?|quer(?:y|ied)))\b"
    r"|\babgeschnitten|\bgekürzt|\bunvollständig|\btronquée?s?\b|\bincomplets?\b|\bincomplètes?\b"
    r"|\btruncad[oa]s?\b|\bincomplet[oa]s?\b|\btroncat[oaie]\b|обрезан|неполн|截断|截斷|不完整|切り捨て|不完全)",
    re.IGNORECASE,
)
"""The words of a message next to records by which others are missing."""
