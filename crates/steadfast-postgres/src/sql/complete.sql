-- Stores the record if the token still holds the claim. A repeat returns the same result.
-- $1 id, $2 token, $3 record, $4 retention in ms
WITH ended AS (
    UPDATE steadfast_records
    SET state = 'done', record = $3, lease_until = NULL, retention_ms = $4,
        forget_at = clock_timestamp() + $4 * interval '1 ms'
    WHERE id = $1 AND token = $2 AND state = 'running' AND forget_at > clock_timestamp()
    RETURNING 1
)
SELECT EXISTS (SELECT FROM ended)
    OR EXISTS (SELECT FROM steadfast_records
               WHERE id = $1 AND token = $2 AND state = 'done' AND forget_at > clock_timestamp())
