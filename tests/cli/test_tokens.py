"""``ladon-storage tokens``: a token is printed once, listed by name, and revoked."""

from __future__ import annotations

from pathlib import Path

from tests.cli.called import Command


def test_token_is_made_listed_and_revoked(ladon: Command) -> None:
    """A person gets the token once; lists have its name and rights alone."""
    made = ladon("tokens", "add", "team", "--database", "w.db", "--read-only", "--prefix", "a/")
    assert made.code == 0
    token = made.out.strip()
    listed = ladon("tokens", "list", "--database", "w.db")
    assert (listed.code, token in listed.out) == (0, False)
    assert [each in listed.out for each in ("team", "read", "a/")] == [True] * 3
    [found] = ladon("tokens", "list", "--database", "w.db", "--json").json
    assert (found["name"], found["read_only"], found["prefix"]) == ("team", True, "a/")
    assert ladon("tokens", "add", "other", "--database", "w.db").code == 0
    assert ladon("tokens", "revoke", "other", "--database", "w.db").err == ""
    last = ladon("tokens", "revoke", "team", "--database", "w.db")
    assert (last.code, "the last token" in last.sentence) == (0, True)
    again = ladon("tokens", "revoke", "team", "--database", "w.db")
    assert (again.code, again.sentence) == (1, "ladon-storage: There is no token 'team'.")


def test_missing_database_is_not_made_by_a_list(ladon: Command) -> None:
    """A mistyped file is named, and nothing is created."""
    listed = ladon("tokens", "list", "--database", "absent.db")
    assert listed.code == 2
    assert "absent.db" in listed.sentence
    assert not Path("absent.db").exists()
