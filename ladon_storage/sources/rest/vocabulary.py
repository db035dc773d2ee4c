"""The names that APIs give to totals, flags of more, next links and cursors, as `plain` makes them.

- A name is known as a word, or by the pattern that such names follow.
- A pattern takes the nouns of lists alone: `total_records` counts the list, and `total_users` may
  count anything.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ladon_storage.sources.rest.names import names

_NOUN = (
    r"(?:items?|results?|records?|elements?|hits?|rows?|entries|docs?|documents?|objects?|"
    r"match(?:es)?)"
)


class Vocabulary:
    """A set of names with one meaning.

    >>> "hasmoreitems" in MORE, "moretolove" in MORE
    (True, False)
    """

    def __init__(self, words: str, pattern: str) -> None:
        self._words = names(words)
        self._pattern = re.compile(pattern)
        # Each page of an API has the same names.
        self._has = lru_cache(maxsize=4096)(self._look_up)

    def __contains__(self, name: str) -> bool:
        return self._has(name)

    def _look_up(self, name: str) -> bool:
        return name in self._words or self._pattern.fullmatch(name) is not None


_CUT = rf"(?:data|content|output|response|list|{_NOUN})?"
_LEFT = rf"more(?:data|batch|pages?|{_NOUN})?(?:available|remaining|left|exists?)?"
_FOLLOWS = rf"has(?:a)?next(?:page|link|batch|set|{_NOUN})?"
MORE = Vocabulary(
    "truncation incompleteresults partial ispartial overlimit capped "
    "iscapped sampled issampled overflow exceededtransferlimit moreitemsincollection "
    "hascontinuation existsmore",
    rf"(?:is|are|has|have|there(?:is|are)|load|query)?{_LEFT}|{_FOLLOWS}"
    rf"|(?:is|was|were)?{_CUT}truncated{_CUT}"
    r"|next(?:page|batch)(?:exists|available)"
    rf"|(?:max|page|size|{_NOUN})?limit(?:was|is)?(?:reached|exceeded|hit)"
    rf"|max{_NOUN}(?:reached|exceeded)|(?:reached|hit|exceeded|exceeds)(?:the)?limit"
    rf"|toomany{_NOUN}",
)
HAS_MORE = Vocabulary("", rf"(?:has|have|there(?:is|are)){_LEFT}|{_FOLLOWS}")
IS_LAST = names("islast islastpage isfinalpage islastbatch")
"""The flags that name a list wherever they stand: the first say that it goes on, the second not."""

MAY_BE_MORE = Vocabulary(
    "",
    r"(?:has|have|thereare)(?:more|additional)(?!than|info|detail|option)[a-z]+"
    rf"|(?:is|are|was|were)?{_CUT}limited",
)
"""The flags that may be about something else, such as another list or the user's plan."""

LAST = Vocabulary(
    "islast last lastpage final isfinal end isend eof iseof exhausted fullyloaded isfullyloaded",
    rf"(?:is|job|query|search|export|{_NOUN})?(?:completed?|finished|done)"
    rf"|(?:is)?(?:end|last|final)(?:of)?(?:page|list|batch|stream|data|set|{_NOUN})"
    rf"|nomore(?:data|pages?|{_NOUN})?|all(?:data|{_NOUN})?(?:loaded|returned|retrieved|fetched)",
)
FIRST = names("first isfirst firstpage isfirstpage")
BEFORE = names("hasprevious hasprev hasprevpage haspreviouspage")
LINKS = Vocabulary(
    "next nextlink nextpage nexturl nexthref nexturi nextpageurl nextpagelink nextrecordsurl "
    "nextresults nexturlpath afterurl afterlink",
    rf"(?:next|(?:load)?more|continuation)(?:page|{_NOUN})?(?:url|uri|href|link)",
)
CURSORS = Vocabulary(
    "cursor nextoffset nextkey nextpagekey continuation continue resumptiontoken paginationtoken "
    "aftercursor afterkey lastevaluatedkey skiptoken cursorsafter cursornext "
    "pagingtoken pagingstate nextstart nextpagestart nextrecordposition nextmaxid nextminid "
    "nextpageid nextpageparams",
    r"(?:next|more|continu(?:e|ation)|resume)"
    rf"(?:page|paging|forward|scroll|batch|continuation|key|version|partition|{_NOUN})?"
    r"(?:token|cursor|marker|key|state)",
)
NOWHERE = names("null none nil undefined n/a false -1")
"""The texts that some APIs have in place of a link or cursor where no page follows."""

REMAINING = Vocabulary("", rf"remaining{_NOUN}(?:count)?|{_NOUN}(?:remaining|left)")
"""The number of items that are still to come."""

WEAK = names(
    "scrollid scrolltoken endcursor bookmark nextbookmark searchafter nextid nextfrom nextsince "
    "nextafter nextbatch nextstreamposition nextsequencetoken nextsharditerator nextcursormark "
    "pagestate querylocator"
)
"""Cursors that the last page has, too."""

INNER = names(
    "meta metadata pagination paging page pager pageinfo paginginfo links responsemetadata "
    "responseheader cursors hits response responsecontext searchmetadata info resultinfo view "
    "paginator searchresult properties paginationinfo paginationmeta pagingmetadata list pages "
    "resultset opensearch"
)

TOTALS = Vocabulary(
    "total nbhits numfound itemcount ntotal globalcount",
    rf"total(?:num(?:ber)?)?(?:of)?{_NOUN}?(?:count|size|found)?|{_NOUN}total",
)
FILTERED_TOTALS = Vocabulary(
    "recordsfiltered filteredcount",
    rf"(?:total|num(?:ber)?|{_NOUN})(?:matched|filtered)|filteredtotal|totalmatch(?:es|ing)",
)
"""Totals of what a request asked for, next to which another one may count all there is."""

UNSURE_TOTALS = Vocabulary(
    "count found hits matches totals totalavailable counttotal rowsbeforelimitatleast",
    rf"(?:collection|list|query|filter|resource|hit|item|edges|{_NOUN})(?:count|size|found|total)"
    rf"|(?!numofrows)(?:num(?:ber)?|nb|n)(?:of)?{_NOUN}|(?:full|grand|overall|estimated|approximate)(?:count|total)",
)
PAGE_TOTALS = names(
    "totalpages pagecount lastpage lastpagenumber numpages nbpages npages numberofpages pagestotal "
    "pages pagescount totalpage totalpagecount pagetotal"
)
PAGE_NUMBERS = names("page currentpage pagenumber pageno pages")
LAST_LINKS = names("last lastlink lastpage lasturl lasthref lastpageurl lastpagelink")
OFFSETS = names("offset skip startindex startat")
SIZES = names("limit perpage pagesize size itemsperpage maxresults resultsperpage max numofrows")
