-- The run that wrote a watermark last, so that whoever is refused learns who was faster.

ALTER TABLE watermarks ADD COLUMN run_id TEXT;
