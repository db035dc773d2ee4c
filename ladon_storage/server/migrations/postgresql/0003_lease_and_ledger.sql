ALTER TABLE watermarks ADD COLUMN lease_microseconds BIGINT;

ALTER TABLE watermarks ADD COLUMN ledger TEXT;

ALTER TABLE history ADD COLUMN ledger TEXT;
