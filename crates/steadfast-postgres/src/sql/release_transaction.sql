-- Releases a key that a handler's transaction held. If it took the key over, there is a row, which
-- becomes free too.
-- $1 id, $2 fingerprint
UPDATE steadfast_records
SET state = 'free', took_over = false, lease_until = NULL, forget_at = greatest(clock_timestamp(), tombstones_until)
WHERE id = $1 AND fingerprint = $2
  AND (state = 'unknown' OR state = 'running' AND lease_until <= clock_timestamp())
