"""Tools to examine sources before collection: a trial of a source, and a proposal for a URL.

- Nothing here writes anything, or needs Prefect, a Storage Service or a sink.
- Both are bounded: a trial ends after two pages, a proposal makes at most four requests.
"""

from ladon_storage.probing.guessing import Finding, Guess, guess
from ladon_storage.probing.results import Trial, TrialRecord, TrialReject, TrialRequest
from ladon_storage.probing.trial import try_source

__all__ = [
    "Finding",
    "Guess",
    "Trial",
    "TrialRecord",
    "TrialReject",
    "TrialRequest",
    "guess",
    "try_source",
]
