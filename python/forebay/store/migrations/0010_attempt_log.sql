-- What came of each attempt of a request that had several, an array of objects; null where there was
-- one. No check: it would read every event there is.
ALTER TABLE usage_events ADD COLUMN attempt_log jsonb;
