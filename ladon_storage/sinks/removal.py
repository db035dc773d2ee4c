"""The limit on the records of a source that may disappear at once, the same for all sinks."""

from __future__ import annotations

from ladon_storage.errors import SourceError


def refuse_implausible_removal(source_id: str, missing: int, known: int, max_share: float) -> None:
    """Refuse to mark ``missing`` of ``known`` records as removed beyond ``max_share``.

    Raises:
        SourceError: The share is exceeded.

    >>> refuse_implausible_removal("kev", 50, 100, 0.5)
    >>> refuse_implausible_removal("kev", 51, 100, 0.5)
    Traceback (most recent call last):
    ...
    ladon_storage.errors.SourceError: Source 'kev' no longer lists 51 of its 100 records, and 50% \
may disappear at once. Its answer is incomplete, or the limit is too low; nothing was marked as \
removed. Check the source, and raise removed_share if that is right.
    """
    # Rounded: in floating point 0.29 of 100 is a little less than 29.
    if missing > round(max_share * known, 6):
        raise SourceError(
            f"Source {source_id!r} no longer lists {missing} of its {known} records, and "
            f"{max_share:.0%} may disappear at once. Its answer is incomplete, or the limit "
            "is too low; nothing was marked as removed. Check the source, and raise "
            "removed_share if that is right.",
            source_id,
        )
