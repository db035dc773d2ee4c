CREATE TABLE tokens (
    name TEXT COLLATE "C" PRIMARY KEY,
    digest BYTEA NOT NULL UNIQUE,
    read_only INTEGER NOT NULL,
    prefix TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
