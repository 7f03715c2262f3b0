-- Ends a claim as unknown. $1 id, $2 token
UPDATE steadfast_records
SET state = 'unknown', lease_until = NULL, forget_at = clock_timestamp() + retention_ms * interval '1 ms'
WHERE id = $1 AND token = $2 AND state = 'running' AND forget_at > clock_timestamp()
