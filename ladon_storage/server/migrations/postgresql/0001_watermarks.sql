-- The tables of SQLite's migration of the same number. What differs: names are compared by their
-- bytes, whatever the database's collation, and a name is kept as it is searched for, too.

-- Versions are of this sequence, which never gives one out twice: a writer from before a delete
-- cannot match what was stored after it.
CREATE SEQUENCE history_version;

CREATE TABLE history (
    version BIGINT PRIMARY KEY,
    source_id TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('put', 'reset', 'delete')),
    actor TEXT,
    run_id TEXT,
    status TEXT,
    timestamp BIGINT,
    from_timestamp BIGINT,
    to_timestamp BIGINT,
    records_collected BIGINT,
    error_message TEXT,
    reason TEXT
);

CREATE INDEX history_by_source ON history (source_id, version);

-- A watermark is rewritten all the time: room in its page spares the index. Its version is that of
-- the line which the same statement writes, so no foreign key looks for it.
CREATE TABLE watermarks (
    source_id TEXT COLLATE "C" PRIMARY KEY,
    folded TEXT NOT NULL,
    version BIGINT NOT NULL,
    last_successful_timestamp BIGINT,
    last_run_timestamp BIGINT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('success', 'failed', 'running')),
    error_message TEXT,
    records_collected BIGINT NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE health (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    checked_at BIGINT NOT NULL
);
