-- Ends a claim as unknown. A repeat returns the same result. $1 id, $2 token
WITH ended AS (
    UPDATE steadfast_records
    SET state = 'unknown', lease_until = NULL, forget_at = clock_timestamp() + retention_ms * interval '1 ms'
    WHERE id = $1 AND token = $2 AND state = 'running' AND forget_at > clock_timestamp()
    RETURNING 1
)
SELECT EXISTS (SELECT FROM ended)
    OR EXISTS (SELECT FROM steadfast_records
               WHERE id = $1 AND token = $2 AND state = 'unknown' AND forget_at > clock_timestamp())
