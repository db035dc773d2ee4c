-- How long the run that says running holds its source after its last write; NULL: it did not tell.

ALTER TABLE watermarks ADD COLUMN lease_microseconds INTEGER;

-- What a run was asked for and given, as a JSON object: the last that was told, and each.

ALTER TABLE watermarks ADD COLUMN ledger TEXT;

ALTER TABLE history ADD COLUMN ledger TEXT;
