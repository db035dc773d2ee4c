"""``ladon-storage tokens``: a token is printed once, listed by name, and revoked."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ladon_storage.server.access import stored_tokens
from ladon_storage.server.database import open_database
from tests.cli.called import Command


def test_token_is_made_listed_and_revoked(ladon: Command) -> None:
    """A person gets the token once; lists have its name and rights alone."""
    made = ladon("tokens", "add", "team", "--database", "w.db", "--read-only", "--prefix", "a/")
    assert made.code == 0
    token = made.out.strip()
    new = "'w.db' is a new database: only a service over it knows the token."
    assert made.sentence == new
    listed = ladon("tokens", "list", "--database", "w.db")
    assert (listed.code, token in listed.out) == (0, False)
    assert [each in listed.out for each in ("team", "read", "a/")] == [True] * 3
    [found] = ladon("tokens", "list", "--database", "w.db", "--json").json
    assert (found["name"], found["read_only"], found["prefix"]) == ("team", True, "a/")
    other = ladon("tokens", "add", "other", "--database", "w.db")
    assert (other.code, other.err) == (0, "")
    assert ladon("tokens", "revoke", "other", "--database", "w.db").err == ""
    last = ladon("tokens", "revoke", "team", "--database", "w.db")
    assert (last.code, "the last token" in last.sentence) == (0, True)
    again = ladon("tokens", "revoke", "team", "--database", "w.db")
    assert (again.code, again.sentence) == (1, "ladon-storage: There is no token 'team'.")


@pytest.mark.parametrize(
    "verb", [["tokens", "add", "team", "--prefix"], ["tokens", "revoke"],
             ["watermarks", "list", "--prefix"], ["watermarks", "export", "--prefix"]],
)  # fmt: skip
def test_bytes_that_are_no_text_are_wrong_usage(
    ladon: Command, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command line may have them, and no name of a source."""
    monkeypatch.setenv("STORAGE_SERVICE_DATABASE", "w.db")
    called = ladon(*verb, "\udcff")
    assert called.code == 2
    assert "no text in UTF-8" in called.sentence
    assert not Path("w.db").exists()


@pytest.mark.parametrize("where", [">&-", ">/dev/full", "| true"])
def test_token_that_nobody_can_read_is_not_kept(tmp_path: Path, where: str) -> None:
    """A secret that is printed only once, and was not, is a token for nothing."""
    add = f"{sys.executable} -m ladon_storage.cli tokens add team --database w.db"
    shell = ["bash", "-c", f"{add} {where}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    [sentence] = done.stderr.splitlines()
    assert "The token cannot be printed" in sentence or "is closed" in sentence
    if (tmp_path / "w.db").exists():
        with closing(open_database(tmp_path / "w.db")) as connection:
            assert stored_tokens(connection) == []


@pytest.mark.parametrize(
    "name", ["rw ", " rw", "rw\u00a0", "r\u200bw", "e\u0301", "rw\ufe0f", "\uff52w"]
)
def test_name_that_looks_like_another_is_refused(ladon: Command, name: str) -> None:
    """Revoking the one that is seen must not leave one that is not; case can be seen."""
    for plain in ("rw", "\u00e9", "RW", "a b"):
        assert ladon("tokens", "add", plain, "--database", "w.db").code == 0
    refused = ladon("tokens", "add", name, "--database", "w.db")
    assert refused.code == 2
    assert "choose another" in refused.sentence
    assert len(ladon("tokens", "list", "--database", "w.db", "--json").json) == 4


def test_stored_name_that_looks_like_another_is_seen_and_revoked(ladon: Command) -> None:
    """One from before is listed in quotes, told when the other is revoked, and can be revoked."""
    ladon("tokens", "add", "rw", "--database", "w.db")
    with closing(open_database(ladon.folder / "w.db")) as connection:
        connection.execute(
            "INSERT INTO tokens (name, digest, read_only, prefix, created_at) "
            "SELECT 'rw ', x'00', read_only, prefix, created_at FROM tokens"
        )
    assert "'rw '" in ladon("tokens", "list", "--database", "w.db").out
    first = ladon("tokens", "revoke", "rw", "--database", "w.db")
    assert (first.code, "Token 'rw ' looks the same, and still works" in first.err) == (0, True)
    assert ladon("tokens", "add", "rw", "--database", "w.db").code == 2
    assert ladon("tokens", "revoke", "rw ", "--database", "w.db").code == 0
    assert ladon("tokens", "list", "--database", "w.db", "--json").json == []


def test_missing_database_is_not_made_by_a_list(ladon: Command) -> None:
    """A mistyped file is named, and nothing is created."""
    listed = ladon("tokens", "list", "--database", "absent.db")
    assert listed.code == 2
    assert "absent.db" in listed.sentence
    assert not Path("absent.db").exists()
