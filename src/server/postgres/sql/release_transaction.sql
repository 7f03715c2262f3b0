-- Gives back a key that a handler's transaction held. Where it was taken over there is a row of it: that goes, too.
-- $1 id, $2 fingerprint
DELETE FROM steadfast_records
WHERE id = $1 AND fingerprint = $2
  AND (state = 'unknown' OR state = 'running' AND lease_until <= clock_timestamp())
