-- Tokens of clients. Only the SHA-256 of a token is stored.

CREATE TABLE tokens (
    name TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    read_only INTEGER NOT NULL,
    prefix TEXT NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
