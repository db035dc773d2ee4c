"""The names that APIs give to totals, flags of more, next links and cursors, as `plain` makes them.

- A name is known as a word, or by the pattern that such names follow.
- A pattern takes the nouns of lists alone: `total_records` counts the list, and `total_users` may
  count anything.
"""

from __future__ import annotations

import re

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

    def __contains__(self, name: str) -> bool:
        return name in self._words or self._pattern.fullmatch(name) is not None


MORE = Vocabulary(
    "morepages hasmorepages hasnext hasnextpage hasnextlink istruncated truncated resultstruncated "
    "incompleteresults limitreached limitexceeded limithit overlimit exceededtransferlimit "
    "moreitemsincollection maxresultsreached",
    r"(?:is|are|has|have|there(?:is|are))?more(?:data|"
    + _NOUN
    + r")?(?:available|remaining|left|exists?)?",
)
LAST = Vocabulary(
    "islast islastpage last lastpage final isfinal end isend eof iseof endofstream endoflist "
    "endofresults exhausted",
    r"(?:is|job|query|search|export)?(?:completed?|finished|done)",
)
FIRST = names("first isfirst firstpage isfirstpage")
BEFORE = names("hasprevious hasprev hasprevpage haspreviouspage")
LINKS = Vocabulary(
    "next nextlink nextpage nexturl nexthref nexturi nextpageurl nextpagelink nextrecordsurl "
    "nextresults nexturlpath afterurl afterlink",
    rf"(?:next|more)(?:page|{_NOUN})?(?:url|uri|href|link)",
)
CURSORS = Vocabulary(
    "cursor nextoffset nextkey nextpagekey continuation continue resumptiontoken paginationtoken "
    "aftercursor afterkey lastevaluatedkey skiptoken cursorsafter",
    r"(?:next|continu(?:e|ation)|resume)(?:page|forward|scroll|batch|continuation)?"
    r"(?:token|cursor|marker)",
)
REMAINING = Vocabulary("", rf"remaining{_NOUN}(?:count)?")
"""The number of items that are still to come."""

WEAK = names("scrollid endcursor")
"""Cursors that the last page has, too."""

INNER = names(
    "meta metadata pagination paging page pager pageinfo paginginfo links responsemetadata "
    "responseheader cursors hits response responsecontext searchmetadata info resultinfo view "
    "paginator searchresult properties"
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

UNSURE_TOTALS = names("count resultcount recordcount found totalavailable")
PAGE_TOTALS = names("totalpages pagecount lastpage numpages pagestotal pages totalpage pagetotal")
PAGE_NUMBERS = names("page currentpage pagenumber pageno pages")
LAST_LINKS = names("last lastlink lastpage lasturl lasthref lastpageurl lastpagelink")
OFFSETS = names("offset skip startindex startat")
SIZES = names("limit perpage pagesize size itemsperpage maxresults resultsperpage max")
