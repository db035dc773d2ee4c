-- Instants are whole microseconds since 1970-01-01 UTC: exact, and comparable as numbers.

PRAGMA application_id = 1279345742;

-- A row for each change, written in the transaction of the change and never altered. Its version
-- is the ETag of the watermark after it; AUTOINCREMENT never gives one out twice, so that a writer
-- from before a delete cannot match what was stored after it.
CREATE TABLE history (
    version INTEGER PRIMARY KEY AUTOINCREMENT,
    source_id TEXT NOT NULL,
    at INTEGER NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('put', 'reset', 'delete')),
    actor TEXT,
    run_id TEXT,
    status TEXT,
    timestamp INTEGER,
    from_timestamp INTEGER,
    to_timestamp INTEGER,
    records_collected INTEGER,
    error_message TEXT,
    reason TEXT
);

CREATE INDEX history_by_source ON history (source_id, version);

CREATE TABLE watermarks (
    source_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL REFERENCES history (version),
    last_successful_timestamp INTEGER,
    last_run_timestamp INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('success', 'failed', 'running')),
    error_message TEXT,
    records_collected INTEGER NOT NULL
) WITHOUT ROWID;

-- One row, written by each health check: only a durable write shows that writes are durable.
CREATE TABLE health (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    checked_at INTEGER NOT NULL
);
