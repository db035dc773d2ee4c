ALTER TABLE watermarks ADD COLUMN run_id TEXT;
