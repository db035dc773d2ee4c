"""Fixtures of a whole session, made once however many files ask for them."""

from tests.postgres import postgres

__all__ = ["postgres"]
