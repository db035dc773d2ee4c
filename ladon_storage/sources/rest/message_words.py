"""The words of messages by which services refuse an answer, or say that it lacks something.

- They are those of English, and a few of each other language in which services were seen to speak.
- A message that denies them, such as ``no error`` or ``failed: 0``, is none. Nor is one that names
  what was not found, such as ``no failed logins``, up to where its clause ends: ``no results: the
  backend failed`` refuses.
"""

from __future__ import annotations

import re

_DENIED = "".join(
    f"(?<!{each})"
    for each in (
        *("no ", r"\b0 ", "not ", "not a ", "not been ", "never ", "none ", "nothing ", "non-"),
        *("without ", "kein ", "keine ", "ohne ", "aucune ", "sans ", "sin ", "sem "),
        *("ningún ", "nenhum ", "nessun ", "senza ", "geen ", "brak ", "нет ", "без "),
        *("无", "無", "没有", "沒有"),
    )
)
_COUNTED = (
    r"(?!\w*(?: (?:count|total|\w+s))?\s*[:=(]\s*(?:0|no|none|false|null)\s*(?:$|[,;.)\]}|]))"
    r"(?!-free\b)"
    r"(?!\s*[はが]?\s*(?:ありません|なし|無し)|\s*[이가은는]?\s*없)"
)
"""The count or the flag behind a word by which a message denies it."""

_LACKED = (
    r"longer|such|access\w*|permissions?|valid|authori\w+|api|tokens?|keys?|credentials?|quota|"
    r"credits?|subscriptions?|licen[sc]es?|response|answer|reply|connection|route"
)
_ENDS = (
    r"and|but|because|as|due|since|after|when|while|until|unless|during|from|you|please|try|retry|"
    r"temporarily|service|server|system|api|request|query|backend"
)
_QUOTED = r"(?:(?:query|search|filter)\s+)?(?:\"[^\"\n]*\"|(?<=\s)'[^'\n]*')"
_NOT_FOUND = re.compile(
    rf"(?<![\w.,:])(?:no|none|nothing|zero|0)\s+(?!(?:{_LACKED})\b)\w*"
    rf"(?:{_QUOTED}|(?![.:](?:\s|$)|\s[-\u2013\u2014]|\b(?:{_ENDS})\b)[^,;!?()\[\]\n])*",
    re.IGNORECASE,
)
"""A clause that names what was not found, up to where it ends or gives a reason."""


_OF_PARAMETER = re.compile(
    r"\b(?:param(?:eter)?|field|option|argument|attribute|property|header|column|filter)s?"
    r" \S+ (?:is|are|was|were|has been|have been|will be) deprecated",
    re.IGNORECASE,
)
"""A notice about a part of a request or a record, which leaves the answer as it is."""


class Words:
    """The words of messages with one meaning, unless a message denies them.

    Args:
        english: A pattern of English words.
        elsewhere: A pattern of words of other languages, each with its own bounds.

    >>> REFUSES.are_in("Request failed"), REFUSES.are_in("No failed requests")
    (True, False)
    """

    def __init__(self, english: str, elsewhere: str) -> None:
        self._english = re.compile(rf"{_DENIED}\b(?:{english})\b{_COUNTED}", re.IGNORECASE)
        self._elsewhere = re.compile(rf"{_DENIED}(?:{elsewhere}){_COUNTED}", re.IGNORECASE)

    def are_in(self, text: str) -> bool:
        """Return whether a message has one of the words."""
        if self._elsewhere.search(text):
            return True
        text = _OF_PARAMETER.sub(" ", _NOT_FOUND.sub(" ", text))
        return self._english.search(text) is not None


_ENGLISH = (
    r"error|errors\s*[:=]\s*[1-9]\d*|[1-9]\d* (?:errors|failures)|fail(?:ed|ure)|exception|"
    r"denied|unauthori[sz]ed|forbidden|expired|"
    r"exceed(?:ed|s)?|quota|rate.?limit|throttl\w+|too many|time[d -]{0,2}out|unavailable|"
    r"maintenance|overload\w*|temporarily|try again|bad request|captcha|"
    r"(?<!last )(?<!previous )(?:(?:could|can|did) ?not )?(?:log|sign)[ -]?in|suspended|blocked|"
    r"deactivated|disabled|deprecated|retired|discontinued|no longer|"
    r"not (?:allowed|permitted|authori[sz]ed|authenticated|whitelisted|logged)|"
    r"(?:not )?(?:have|has|lacks?|missing|insufficient) (?:no |the )?permissions?|"
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
REFUSES = Words(_ENGLISH, _ELSEWHERE)
"""The words of a message that refuses, where no list would contradict it."""

_LIST = r"(?:results?|records?|items?|rows?|entries|hits|events|data|list|output|response|answer)"
PARTS = (
    r"(?:shards?|(?:data )?sources?|backends?|partitions?|nodes?|providers?|servers?|indices|"
    r"regions?|connectors?)"
)
"""The parts of a service of which each has some of the records."""

_LIST_CUT = (
    rf"{_LIST} (?:sets? )?(?:was |were |is |are |has been |have been )?"
    r"(?:truncated|cut|incomplete|partial|limited)|truncated (?:to|at|after|because)|"
    r"partial (?:results?|response|failure|content)|only (?:the )?first \d[\d,.]*|"
    rf"limited to (?:the first )?\d[\d,]* {_LIST}|more {_LIST} (?:are |is )?available|"
    rf"too many {_LIST}|{_LIST} (?:may|might|could) be (?:incomplete|truncated|missing)"
)
LIST_CUTS = Words(_LIST_CUT, r"(?!)")
"""The words that name the list itself, so that no alert about something else has them."""

CUTS = Words(
    rf"{_LIST_CUT}|timed out|"
    rf"{PARTS} (?:\w+ )?(?:was |were |is |are |has |have )?(?:been )?"
    r"(?:failed|unavailable|down|unreachable|skipped|offline|missing)|"
    r"could not (?:be )?(?:read|load(?:ed)?|reach(?:ed)?|search(?:ed)?|quer(?:y|ied))",
    r"\babgeschnitten|\bgekürzt|\bunvollständig|\btronquée?s?\b|\bincomplets?\b|\bincomplètes?\b"
    r"|\btruncad[oa]s?\b|\bincomplet[oa]s?\b|\btroncat[oaie]\b|обрезан|неполн|截断|截斷|不完整|切り捨て|不完全",
)
"""The words of a message next to records by which others are missing."""

_BOUND = (
    r"(?:(?:the|your|our|this|its|an?|maximum|max|allowed|permitted|upper|hard|fixed|current|api|"
    r"plan|account|response|search|results?|records?|items?|pagination|paging|offset|skip|depth|"
    r"quer(?:y|ies)|requests?|index|rate|usage|daily|monthly) )*"
    r"(?:limits?|quotas?|window)(?! of \d+ pages)"
)
_COUNT = r"(?:offset|skip|window|depth|results?|records?|items?|hits|rows)"
_PARAMETER = r"(?:offset|from|start|skip|page|limit|size|top|count)"
_WINDOW = (
    r"(?:result|search|query|pagination|paging)s? window|"
    rf"(?:exceed(?:s|ed|ing)?|(?:greater|larger|higher) than|beyond|over|above|reached) {_BOUND}|"
    r"(?:limits?|quota|window) (?:of \d[\d,.]* )?(?:\w+ ){0,2}(?:exceeded|reached)|"
    # A list may end at a round number, but rarely does.
    r"(?:(?:not )?exceed|(?:less|more|greater|larger) than|equal to|at most|past|beyond|<=?|≤) "
    r"(?:or equal to )?\W?\d[\d,.]*000|"
    r"(?:beyond|past|only|more than|limited to) (?:the )?(?:first|top) \d[\d,.]*|"
    r"limited to (?:(?:a )?max(?:imum)? (?:of )?)?\d[\d,.]*|"
    rf"too many {_LIST}|(?:{_LIST}|pagination|paging) (?:is|are) (?:\w+ )?(?:limited|restricted)|"
    rf"max(?:imum)? (?:\w+ )?{_COUNT} (?:allowed|supported|permitted|reached|exceeded)|"
    rf"max(?:imum)? (?:(?:allowed|supported|permitted) (?:\w+ )?|number of ){_COUNT}|"
    rf"{_PARAMETER} ?(?:\+|plus) ?{_PARAMETER}|"
    r"deep (?:pagination|paging)|(?:pagination|paging) too deep|search ?after|"
    r"(?:cursor|keyset|scroll|seek)(?:[ -]based)? (?:pag\w+|api)|"
    r"(?:narrow|refine) (?:down )?(?:your|the|this)"
)
WINDOWS = Words(
    _WINDOW,
    r"超[过出過].{0,8}(?:限制|上限|窗口)|\blimit\w* überschritten"
    r"|\blimite? (?:dépassée?|superad[oa])",
)
"""The words of a refusal by which there is more than may be read, or than may be read like this."""
